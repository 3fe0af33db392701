"""HDF5 files from untrusted sources: no link is followed, and every size is checked before reading.

The budget of a file is `MAX_EXPANSION` bytes for each byte of data in it, and `SLACK_BYTES`: for
all that is read of it and all that is made from it. One compressing filter can pack no more.
"""

import contextlib
import errno
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gtp_policy import files
from gtp_policy.errors import DataError, GTPError, MissingDependencyError, how_to_install
from gtp_policy.files import expanded

if TYPE_CHECKING:
    import h5py

# Deflate, HDF5's strongest built-in compression, cannot shrink anything by more than 1032 to 1:
# what declares more holds no data, and would fill the memory with zeros.
MAX_EXPANSION = 1032
SLACK_BYTES = 64 * 2**20
_FULL = errno.ENOSPC, errno.EFBIG, errno.EDQUOT
_LEAST_BYTES = 64  # of an object in a file: its header, and its name among those of its group
# Filters by number: shuffle and checksum change no length; of the others, one at most.
_HARMLESS, _COMPRESSING = {2, 3}, {1: "deflate", 4: "szip", 32000: "lzf"}


@contextlib.contextmanager
def open_hdf5(path: "str | os.PathLike[str] | h5py.File") -> Iterator["h5py.File"]:
    """Opens a file for reading and turns what h5py raises meanwhile into `DataError`.

    Args:
        path: The file, or one that is open: that one stays open.

    Yields:
        The h5py file.

    Raises:
        DataError: If the file cannot be opened or read.
        MissingDependencyError: If h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError(
            f"HDF5 files need h5py: got `{error}`. {how_to_install('datasets')}"
        ) from error
    is_open, given = isinstance(path, h5py.File), cast(Any, path)
    if is_open and not path:
        raise DataError(
            "The file is closed: got an h5py.File that was closed, expected an open one."
        )
    if not is_open:
        path = check_place(path, "HDF5")
    shown = str(given.filename) if is_open else str(path)
    try:
        if is_open:
            yield path
            return
        with h5py.File(path, "r") as file:
            yield file
    except (GTPError, MemoryError):
        raise
    except Exception as error:  # h5py has no base class for its errors
        if is_of_writing(error):
            raise
        raise DataError(
            f"`{shown}` cannot be read as HDF5: got {type(error).__name__} ({error}), "
            "expected a complete HDF5 file. Download it again."
        ) from error


def is_of_writing(error: Exception) -> bool:
    """Returns whether an error is one of writing, elsewhere, what was read: a disk that is full.

    Args:
        error: What was raised while a file was open.
    """
    return isinstance(error, OSError) and error.errno in _FULL


def located(path: object) -> Path:
    """Returns the path that something names; ``~`` is the home directory.

    Args:
        path: Anything.

    Raises:
        DataError: If it is no path.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise DataError(
            f"`path` is no path: got {type(path).__name__}, expected the name of a file as str or "
            "Path. Arrays go through OfflineDataset.from_arrays; what is open, or in memory, has "
            "to be written to a file first."
        )
    return expanded(path)


def check_place(path: object, kind: str) -> Path:
    """Returns the path of a file: a pipe, for one, would wait for its writer.

    Args:
        path: Anything.
        kind: What the file should be, for the message.

    Raises:
        DataError: If it is no path, or one of something that is there and no file.
    """
    place = located(path)
    if not os.path.exists(place):
        raise DataError(
            f"`{place}` cannot be read as {kind}: got no file of that name in "
            f"{os.path.abspath(place.parent)}, expected one. Correct the path, or make or download "
            "the file."
        )
    if not os.path.isfile(place):
        raise DataError(f"`{place}` is no file: got something else, expected {kind}.")
    return place


def check_count(objects: int, on_disk: int, name: str) -> None:
    """Raises if a file speaks of more objects than fit into it, each of which takes time.

    A name of an object takes a few bytes, the object itself some hundred: more names than that are
    several of one, which is read again for each.

    Args:
        objects: How many are to be looked at.
        on_disk: Bytes of data in the file.
        name: What messages call it.

    Raises:
        DataError: If they are more.
    """
    if objects * _LEAST_BYTES > on_disk:
        raise DataError(
            f"{name} has more fields than fit into it: got {objects} in {on_disk} bytes, expected "
            f"{_LEAST_BYTES} bytes and more for each. The file is damaged or hostile."
        )


def check_object(file: "h5py.File", name: bytes, *, images: bool = False) -> int:
    """Raises if an object is a reference, or a dataset whose values no one can bound.

    Through h5py's low-level interface: a Minari file has five objects and more per episode.

    Args:
        file: The open file.
        name: Path of an object in it; everything above it has been checked.
        images: Whether its elements may differ in length, as encoded images do.

    Returns:
        Bytes that reading it takes; 0 for a group.

    Raises:
        DataError: If it is not stored in the file, has elements of any length, or filters that
            expand more than once.
    """
    import h5py

    shown = name.decode(errors="replace")
    hint = "expected data stored in the file itself. Copy it there if you trust its origin."
    if file.id.links.get_info(name).type != h5py.h5l.TYPE_HARD:
        raise DataError(f"`{shown}` is not stored here: got a soft or external link, {hint}")
    found = h5py.h5o.open(file.id, name)
    if not isinstance(found, h5py.h5d.DatasetID):
        return 0
    plist = found.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL or plist.get_external_count():
        raise DataError(f"`{shown}` is not stored here: got a virtual or external dataset, {hint}")
    kind = found.get_type()
    text = isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()
    if text or any(map(kind.detect_class, (h5py.h5t.VLEN, h5py.h5t.REFERENCE))):
        # Many elements may share one piece of the file, each of them as long as all of it.
        if not (images and isinstance(kind, h5py.h5t.TypeVlenID)):
            raise DataError(
                f"`{shown}` has the wrong dtype: got elements of any length, expected numbers or "
                "flags. Objects are never decoded."
            )
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    compressing = [number for number in filters if number not in _HARMLESS]
    if len(compressing) > 1 or not set(compressing) <= set(_COMPRESSING):
        raise DataError(
            f"`{shown}` is packed in an unusual way: got the filters {filters}, expected at most "
            f"one of {', '.join(_COMPRESSING.values())}. Write it again without."
        )
    size = int(found.get_space().get_simple_extent_npoints() * kind.get_size())
    if plist.get_layout() == h5py.h5d.CHUNKED:
        # Whole chunks are unpacked, however few of their elements belong to the dataset.
        size = max(size, math.prod(plist.get_chunk()) * kind.get_size())
    return size


def stored_bytes(path: str | os.PathLike[str]) -> int:
    """Returns how many bytes of a file are data; a hole in it takes no place on the disk.

    Args:
        path: The file.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return files.stored_bytes(descriptor)
    finally:
        os.close(descriptor)


def stored_bytes_of(file: "h5py.File") -> int:
    """Returns how many bytes of an open file are data, wherever it is kept.

    Args:
        file: The file.
    """
    path = str(file.filename)
    return stored_bytes(path) if os.path.isfile(path) else int(file.id.get_filesize())


def table_bytes(rows: int, obs_dim: int, action_dim: int) -> int:
    """Returns how much memory a dataset of so many transitions takes, and making it meanwhile."""
    width = 2 * obs_dim + action_dim + 2
    # It is filled in chunks of one row at least, of which there are several copies in float64.
    return rows * (4 * width + 2 * np.dtype(np.bool_).itemsize) + 32 * width


def check_expansion(declared: int, on_disk: int, name: str) -> None:
    """Raises if more memory is declared than data of that size on disk can fill.

    Args:
        declared: Bytes that loading would need.
        on_disk: Bytes of data in the file.
        name: What the message calls it.
    """
    limit = MAX_EXPANSION * on_disk + SLACK_BYTES
    if declared > limit:
        raise DataError(
            f"`{name}` declares more than it can hold: got {declared} bytes from {on_disk} on "
            f"disk, expected at most {limit}. The file is damaged or hostile."
        )
