"""Files that are there as a whole or not at all."""

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

# A write takes no longer; what is left of an older one will never be finished.
_ABANDONED_AFTER = 3600.0
_TEMPORARY = re.compile(r"\.(.+)\.tmp-[0-9a-f]{16}(\.\w+)?")


@contextlib.contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """Yields a name to write a file to, which then replaces the one at ``path`` in one step.

    Readers see the old file or the new one. The new one is flushed to the disk first; if the block
    raises, it is removed, and the old one stays. Where ``path`` is a link, the link is replaced:
    what it points to is never written to. The folder is made if there is none. Names of
    writers that were killed more than an hour ago are removed.

    Args:
        path: The file.
        suffix: What the name has to end in, where a writer goes by it.

    Yields:
        A name beside ``path`` that starts with a dot and is not in use.

    Raises:
        OSError: If the operating system refuses.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from gtp_policy.files import replacing
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder, "scores.txt")) as temporary:
        ...         _ = temporary.write_text("hopper 58.7")
        ...     [file.name for file in Path(folder).iterdir()]
        ['scores.txt']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    temporary = temporary_name(path, suffix)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        remove(temporary)


@contextlib.contextmanager
def replacing_together(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Yields names to write files to, which then replace those at ``paths``, all of them or none.

    Where nothing is written to a name, the file at its path is removed. Each file is replaced as by
    `replacing`; if one cannot be, those that were are put back, and one that cannot be put back
    either stays beside its path under a name that the error's note says. So does, as
    ``.NAME.old-...``, what a killed writer has not put back.

    Args:
        *paths: The files, each in a folder that may not be there yet.

    Yields:
        A name for each, with the same ending.

    Raises:
        OSError: If the operating system refuses.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from gtp_policy.files import replacing_together
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing_together(Path(folder, "a.txt"), Path(folder, "b.txt")) as (a, b):
        ...         _ = a.write_text("hopper 58.7")
        ...     [file.name for file in Path(folder).iterdir()]
        ['a.txt']
    """
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
    names = [temporary_name(path, path.suffix) for path in paths]
    # Not names that `sweep` knows: what has another name too keeps its age, and looks abandoned.
    kept = {path: path.with_name(f".{path.name}.old-{secrets.token_hex(8)}") for path in paths}
    begun: list[Path] = []
    try:
        yield tuple(names)
        for name in names:
            if name.exists():
                with open(name, "rb+") as file:
                    os.fsync(file.fileno())
        had = [path for path in paths if os.path.lexists(path)]
        for path in had:
            _keep(path, kept[path])
        for path, name in zip(paths, names, strict=True):
            begun.append(path)
            if name.exists():
                os.replace(name, path)
            else:
                path.unlink(missing_ok=True)
    except BaseException as error:
        for path in begun:
            _put_back(path, kept.pop(path) if path in had else None, error)
        raise
    finally:
        for name in (*names, *kept.values()):
            remove(name)


def _put_back(path: Path, old: Path | None, error: BaseException) -> None:
    """Gives a path what was there before.

    Args:
        path: The path.
        old: The other name of what was there; None if nothing was.
        error: What the matter is; a note says if this fails too, and ``old`` stays.
    """
    try:
        if old is None:
            path.unlink(missing_ok=True)
        else:
            os.replace(old, path)
            remove(old)  # still there where both were names of one file
    except BaseException as again:  # the other files are put back all the same
        error.add_note(f"{path} could not be put back ({again!r}): what was there is {old}.")


def _keep(path: Path, name: Path) -> None:
    """Gives a file, or a link as it is, a second name."""
    try:
        os.link(path, name, follow_symlinks=False)
    except OSError:  # a file system without such names
        shutil.copy2(path, name, follow_symlinks=False)


def expanded(path: str | os.PathLike[str]) -> Path:
    """Returns a path in which a leading ``~`` or ``~user`` is a home directory, as in a shell.

    Every function that takes a path from outside calls it. A user that there is not stays as it is.

    Args:
        path: The path.

    Returns:
        The path.

    Example:
        >>> from pathlib import Path
        >>> from gtp_policy.files import expanded
        >>> expanded("~/runs/model.zip") == Path.home() / "runs" / "model.zip"
        True
        >>> expanded("runs/~model.zip").name
        '~model.zip'
    """
    return Path(os.path.expanduser(path))


def temporary_name(path: Path, suffix: str = "") -> Path:
    """Returns a new name beside a path, by which `sweep` knows what a killed writer left.

    Args:
        path: What is to be written.
        suffix: What the name has to end in.

    Returns:
        The name; nothing is there yet.

    Example:
        >>> from pathlib import Path
        >>> from gtp_policy.files import temporary_name
        >>> temporary_name(Path("run/model.zip")).name.startswith(".model.zip.tmp-")
        True
    """
    return path.with_name(f".{path.name}.tmp-{secrets.token_hex(8)}{suffix}")


def target_of(name: str) -> str | None:
    """Returns the name that a temporary file was to take in the end.

    Exactly the names that `temporary_name` gives are temporary: a file of somebody else that only
    looks alike is none of ours to remove.

    Args:
        name: A file's name, without its folder.

    Returns:
        The name without what `temporary_name` put around it; None if it is not temporary.

    Example:
        >>> from gtp_policy.files import target_of
        >>> target_of(".model.zip.tmp-0123456789abcdef")
        'model.zip'
        >>> target_of("model.zip"), target_of(".model.zip.tmp-of-mine")
        (None, None)
    """
    found = _TEMPORARY.fullmatch(name)
    return found and found[1]


def sweep(path: Path) -> None:
    """Removes files that writers to a path left when they were killed, an hour ago or more.

    Args:
        path: What they were going to write.

    Raises:
        OSError: If its folder cannot be read.

    Example:
        >>> from pathlib import Path
        >>> from gtp_policy.files import sweep
        >>> sweep(Path("model.zip"))
    """
    old = time.time() - _ABANDONED_AFTER
    for leftover in path.parent.iterdir():
        if target_of(leftover.name) == path.name:
            with contextlib.suppress(FileNotFoundError):  # its writer has just finished
                if leftover.lstat().st_mtime < old:
                    remove(leftover)


def stored_bytes(descriptor: int) -> int:
    """Returns how many bytes of a file are data; a hole in it takes no place on the disk.

    Args:
        descriptor: Of a regular file that is open; its position changes.

    Returns:
        The number.

    Example:
        >>> import tempfile
        >>> from gtp_policy.files import stored_bytes
        >>> with tempfile.TemporaryFile() as file:
        ...     _ = file.write(b"hopper 58.7")
        ...     file.flush()
        ...     stored_bytes(file.fileno())
        11
    """
    size = os.fstat(descriptor).st_size
    if not hasattr(os, "SEEK_DATA"):  # a system that does not tell
        return size
    stored = end = 0
    with contextlib.suppress(OSError):  # after the last data there is none to seek
        while end < size:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            stored += end - start
    return stored


def check_holes(file: IO[Any], most: int = 2**26) -> None:
    """Raises if a file has longer holes than it may, and goes to its start.

    A hole costs nothing on the disk, and as many bytes of memory as it is long.

    Args:
        file: A regular file of which nothing has been read.
        most: Bytes of all holes together.

    Raises:
        ValueError: If there are more.

    Example:
        >>> import tempfile
        >>> from gtp_policy.files import check_holes
        >>> with tempfile.TemporaryFile() as file:
        ...     _ = file.write(b"hopper 58.7")
        ...     check_holes(file)
        ...     file.read(6)
        b'hopper'
    """
    size = os.fstat(file.fileno()).st_size
    if size > most and size - stored_bytes(file.fileno()) > most:
        raise ValueError(f"{size} bytes with a hole of more than {most}")
    file.seek(0)


def remove(path: Path) -> None:
    """Removes a file or a directory if it is there; what cannot be removed stays.

    Args:
        path: The file or directory. Links are removed, not followed.

    Example:
        >>> from pathlib import Path
        >>> from gtp_policy.files import remove
        >>> remove(Path("not-there.zip"))
    """
    # ignore_errors does not ignore a failing close; a name with a zero byte is no name.
    with contextlib.suppress(OSError, ValueError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
