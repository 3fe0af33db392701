"""Files that are there as a whole or not at all."""

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

# A write takes no longer; what is left of an older one will never be finished.
_ABANDONED_AFTER = 3600.0
_MARK = ".tmp-"


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
    return path.with_name(f".{path.name}{_MARK}{secrets.token_hex(8)}{suffix}")


def is_temporary(name: str) -> bool:
    """Returns whether a name is one that `temporary_name` gives.

    Args:
        name: A file's name, without its folder.

    Returns:
        The answer.

    Example:
        >>> from gtp_policy.files import is_temporary
        >>> is_temporary(".model.zip.tmp-0a1b"), is_temporary("model.zip")
        (True, False)
    """
    return name.startswith(".") and _MARK in name


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
    prefix, old = f".{path.name}{_MARK}", time.time() - _ABANDONED_AFTER
    for leftover in path.parent.iterdir():
        if leftover.name.startswith(prefix):
            with contextlib.suppress(FileNotFoundError):  # its writer has just finished
                if leftover.lstat().st_mtime < old:
                    remove(leftover)


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
