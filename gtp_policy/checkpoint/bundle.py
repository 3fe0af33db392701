"""A few files that belong together: written all or not at all, read only if every byte is right.

A bundle is a directory, or a zip file of one without compression. Its ``manifest.json`` holds the
length and the SHA-256 of every other file and, against accidents, of itself. A hash is no
signature: it shows that nothing was damaged, not who wrote it.
"""

import contextlib
import hashlib
import io
import json
import os
import stat
import struct
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from gtp_policy.errors import CheckpointError
from gtp_policy.files import check_holes, remove, sweep, temporary_name

FORMAT = "gtp-policy checkpoint"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
# A manifest is a few hundred bytes, a config a few thousand; more is not read.
MANIFEST_LIMIT = 2**16

_END_OF_ZIP = struct.Struct("<4s4H2LH")
# Before the end of a zip file of more than 2 GiB: the same in wider numbers, and where that is.
_WIDE_END = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def write_bundle(
    path: Path, files: Mapping[str, bytes], *, written_by: str, replaces: bool = False
) -> None:
    """Writes a bundle: to a temporary place, flushed to the disk, renamed into place.

    A zip file (``path`` ends in ``.zip``) replaces one that is there; a directory must be new
    unless it ``replaces`` one: no file system call that Python offers exchanges two directories, so
    that for a moment there is none.

    Raises:
        CheckpointError: If the operating system refuses. Nothing of the bundle is left then, and
            what was at ``path`` is still there; unless all is written and only the last flush, of
            the folder that holds it, failed, as the message then says.
    """
    manifest = _make_manifest(files, written_by)
    temporary = temporary_name(path)
    then = "What was there before is unchanged."
    try:
        os.makedirs(path.parent, exist_ok=True)
        sweep(path)
        if path.suffix == ".zip":
            _write_file(temporary, _zipped({**files, MANIFEST: manifest}))
            os.replace(temporary, path)
        else:
            os.mkdir(temporary)
            for name, data in {**files, MANIFEST: manifest}.items():
                _write_file(temporary / name, data)
            _flush_directory(temporary)
            with _out_of_the_way(path) if replaces else contextlib.nullcontext():
                # rename() would replace an empty directory without a word.
                if os.path.lexists(path):
                    raise FileExistsError(
                        f"{path} exists, expected a new directory; a path that ends in .zip is "
                        "replaced"
                    )
                os.rename(temporary, path)
        then = "It is in its place, but a power failure now may undo that."
        _flush_directory(path.parent)
    except (OSError, ValueError) as error:  # a name with a zero byte
        raise CheckpointError(
            f"Checkpoint {path} cannot be written: got {_reason(error)}, expected a writable "
            f"place. {then}"
        ) from error
    finally:
        remove(temporary)


def read_bundle(
    path: Path,
    names: Collection[str],
    *,
    limit: Mapping[str, int],
    others: Collection[str] | None = None,
) -> tuple[dict[str, bytes], dict[str, int], str]:
    """Reads some files of a bundle and checks them against its manifest.

    Args:
        path: A directory, or a zip file.
        names: Which files.
        limit: Most bytes of a file by name; without an entry, what is there.
        others: What other files there are; they have to be there, in their length. None: whatever
            the manifest says, and nobody looks whether it is there.

    Returns:
        The files, the lengths that the manifest gives of all, and their `content_id`.

    Raises:
        CheckpointError: If anything is not as `write_bundle` left it.
    """
    try:
        with _opened(path) as (read, length_of):
            entries = _check_manifest(read(MANIFEST, MANIFEST_LIMIT))
            if others is not None and (strange := entries.keys() - {*names, *others}):
                raise ValueError(f"{MANIFEST} has an entry for {min(strange)!r:.40}")
            # By the length of what is not read goes what may be built.
            for name in others or ():
                if name in entries and length_of(name) != entries[name]["bytes"]:
                    raise ValueError(f"{name} has another length than {MANIFEST} says")
            found = {}
            for name in names:
                if name not in entries:
                    raise ValueError(f"{MANIFEST} has no entry for {name}")
                data = read(name, min(entries[name]["bytes"], limit.get(name, 2**63)))
                if len(data) != entries[name]["bytes"]:
                    raise ValueError(f"{name} has another length than {MANIFEST} says")
                if _sha256(data) != entries[name]["sha256"]:
                    raise ValueError(f"{name} is damaged: its SHA-256 is not the manifest's")
                found[name] = data
            lengths = {name: entry["bytes"] for name, entry in entries.items()}
            return found, lengths, _sha256(_canonical(entries))
    except Exception as error:  # whatever a foreign file makes a parser raise
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """Returns the error of a checkpoint that cannot be read, with its reason."""
    if isinstance(error, CheckpointError):
        return error
    return CheckpointError(
        f"Checkpoint {path} cannot be read: got {_reason(error)}, expected a directory or a zip "
        "file that save_checkpoint wrote."
    )


def content_id(path: Path) -> str:
    """Returns a hash of the content of a bundle whose manifest is right; its files are not read."""
    try:
        with _opened(path) as (read, _):
            entries = _check_manifest(read(MANIFEST, MANIFEST_LIMIT))
    except Exception as error:  # as in read_bundle
        raise unreadable(path, error) from error
    return _sha256(_canonical(entries))


def content_id_of(files: Mapping[str, bytes]) -> str:
    """Returns what `content_id` would return once these files are written."""
    return _sha256(_canonical(_entries(files)))


def discard(path: Path) -> None:
    """Removes a bundle, in one step for other readers of the folder."""
    temporary = temporary_name(path)
    with contextlib.suppress(OSError):
        os.rename(path, temporary)
    remove(temporary)


@contextlib.contextmanager
def _out_of_the_way(path: Path) -> Iterator[None]:
    """Gives what is at a path another name while the block puts its successor there."""
    old = temporary_name(path)
    os.rename(path, old)
    try:
        yield
    except BaseException:
        os.rename(old, path)
        raise
    remove(old)


def _make_manifest(files: Mapping[str, bytes], written_by: str) -> bytes:
    body: dict[str, Any] = {
        "files": _entries(files),
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "written_by": written_by,
    }
    return _canonical({**body, "sha256": _sha256(_canonical(body))})


def _entries(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    return {n: {"bytes": len(data), "sha256": _sha256(data)} for n, data in files.items()}


def _check_manifest(data: bytes) -> dict[str, dict[str, Any]]:
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{MANIFEST} is no JSON") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{MANIFEST} of another kind of file")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"format version {version!r}, and this release reads version {FORMAT_VERSION}"
        )
    digest = manifest.pop("sha256", None)
    # Byte for byte: a manifest that only looks alike was not written by us.
    if digest != _sha256(_canonical(manifest)) or data != _canonical(manifest | {"sha256": digest}):
        raise ValueError(f"{MANIFEST} is damaged: it does not match its own SHA-256")
    entries: dict[str, dict[str, Any]] = manifest["files"]
    for entry in entries.values():
        if type(entry["bytes"]) is not int or not isinstance(entry["sha256"], str):
            raise ValueError(f"{MANIFEST} has an entry of the wrong type")
    return entries


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Yields functions from (name, most bytes) to the bytes of a member, and to its length."""
    if path.is_dir():
        yield lambda name, most: _read_file(path / name, most), lambda n: _length_of_file(path / n)
        return
    # Without waiting for the writer of a pipe.
    with os.fdopen(os.open(path, _READ), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("something that is neither a file nor a directory")
        check_holes(file)
        _check_end_of_zip(file)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len({m.filename for m in members}) != len(members):
                raise ValueError("a zip file with two members of one name")
            yield (
                lambda name, most: _read_member(archive, name, most),
                # More than the whole archive has is no length, whatever its table says.
                lambda name: min(_member(archive, name).file_size, status.st_size),
            )


def _check_end_of_zip(file: io.BufferedReader) -> None:
    # Read by hand first: a long table of contents would fill the memory before it was refused.
    size = file.seek(0, os.SEEK_END)
    both = _WIDE_END.size + _LOCATOR.size
    before = max(0, size - _END_OF_ZIP.size - both)
    file.seek(before)
    tail = file.read()
    end, tail = tail[-_END_OF_ZIP.size :], tail[: -_END_OF_ZIP.size]
    if len(end) < _END_OF_ZIP.size or end[:4] != b"PK\x05\x06":
        raise ValueError("no zip file, or one with something behind its end")
    _, _, _, _, count, length, start, comment = _END_OF_ZIP.unpack(end)
    facts: tuple[int, ...] = (count, length, start)
    if tail[-_LOCATOR.size :][:4] == b"PK\x06\x07":
        facts = _wide_end_of_zip(tail, before, facts)
    # It would send zipfile to another table of contents than the one that was looked at.
    if comment or not facts:
        raise ValueError("a zip file with a second table of contents")
    if facts[0] > 64 or facts[1] > MANIFEST_LIMIT:
        raise ValueError(f"a zip file of {facts[0]} members")


def _wide_end_of_zip(data: bytes, place: int, narrow: tuple[int, ...]) -> tuple[int, ...]:
    """Returns number of members, and length and begin of the table of contents, by the wide end.

    Nothing if it contradicts the locator behind it or the narrow end: a reader might believe those.
    """
    if len(data) != _WIDE_END.size + _LOCATOR.size or data[:4] != b"PK\x06\x06":
        return ()
    _, rest, _, _, *disks, here, count, length, start = _WIDE_END.unpack_from(data)
    _, disk, where, of_disks = _LOCATOR.unpack_from(data, _WIDE_END.size)
    told = (rest, *disks, here, disk, where, of_disks)
    if told != (_WIDE_END.size - 12, 0, 0, count, 0, place, 1):
        return ()
    # A narrow number that does not suffice is the highest that it can be.
    highest = (2**16 - 1, 2**32 - 1, 2**32 - 1)
    wide = (count, length, start)
    return wide if narrow == tuple(map(min, wide, highest)) else ()


def _member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    try:
        member = archive.getinfo(name)
    except KeyError:
        raise ValueError(f"a zip file without {name}") from None
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed; a checkpoint is zipped without compression")
    return member


def _read_member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    member = _member(archive, name)
    if member.file_size > most:
        raise ValueError(f"{name} is longer than it may be")
    with archive.open(member) as file:
        return file.read(most + 1)


@contextlib.contextmanager
def _opened_file(path: Path) -> Iterator[tuple[io.BufferedReader, int]]:
    """Yields a file of a directory, and its length."""
    # Not through a symbolic link.
    with os.fdopen(os.open(path, _READ | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path.name} is no regular file")
        yield file, status.st_size


def _read_file(path: Path, most: int) -> bytes:
    with _opened_file(path) as (file, length):
        if length > most:
            raise ValueError(f"{path.name} is longer than it may be")
        check_holes(file)
        return file.read(length + 1)


def _length_of_file(path: Path) -> int:
    with _opened_file(path) as (file, length):
        check_holes(file)
        return length


def _write_file(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_directory(path: Path) -> None:
    if os.name != "posix":  # elsewhere a directory cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            # A fixed date: equal content gives equal files.
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def _canonical(document: Mapping[str, Any]) -> bytes:
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return text.encode() + b"\n"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[:1].lower() + error.strerror[1:]
    return str(error) or type(error).__name__
