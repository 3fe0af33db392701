"""HDF5 files from untrusted sources: no link is followed, and declared sizes are checked."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gtp_policy.errors import DataError, GTPError, MissingDependencyError

if TYPE_CHECKING:
    import h5py

# Deflate, HDF5's strongest built-in compression, cannot shrink anything by more than 1032 to 1:
# what declares more holds no data, and would fill the memory with zeros.
MAX_EXPANSION = 1032
SLACK_BYTES = 64 * 2**20


@contextmanager
def open_hdf5(path: str | os.PathLike[str]) -> Iterator["h5py.File"]:
    """Opens a file for reading and turns what h5py raises meanwhile into `DataError`.

    Args:
        path: The file.

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
            f"HDF5 files need h5py: got `{error}`. Run `pip install 'gtp-policy[datasets]'`."
        ) from error
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (GTPError, MemoryError):
        raise
    except Exception as error:  # h5py has no base class for its errors
        raise DataError(
            f"`{os.fspath(path)}` cannot be read as HDF5: got {type(error).__name__} ({error}), "
            "expected a complete HDF5 file. Download it again."
        ) from error


def check_file(path: str | os.PathLike[str]) -> None:
    """Raises if any object of a file leads outside it, or if it declares more than it can hold.

    Args:
        path: The file.
    """
    declared = 0
    with open_hdf5(path) as file:

        def visit(name: bytes) -> Exception | None:
            nonlocal declared
            try:
                declared += check_object(file, name)
            except Exception as error:  # h5py cannot carry it through HDF5, but a value it can
                return error
            return None

        error = file.id.links.visit(visit)
        if error is not None:
            raise error
    check_expansion(declared, os.path.getsize(path), os.fspath(path))


def check_object(file: "h5py.File", name: bytes) -> int:
    """Raises if an object is a reference, or a dataset whose values lie in other files.

    Through h5py's low-level interface: a Minari file has five objects and more per episode.

    Args:
        file: The open file.
        name: Path of an object in it; everything above it has been checked.

    Returns:
        Bytes that the object declares; 0 for a group.
    """
    import h5py

    shown = name.decode(errors="replace")
    hint = "expected data stored in the file itself. Copy it there if you trust its origin."
    if file.id.links.get_info(name).type != h5py.h5l.TYPE_HARD:
        raise DataError(f"`{shown}` is not stored here: got a soft or external link, {hint}")
    found = h5py.h5o.open(file.id, name)
    if not isinstance(found, h5py.h5d.DatasetID):
        return 0
    layout = found.get_create_plist()
    if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
        raise DataError(f"`{shown}` is not stored here: got a virtual or external dataset, {hint}")
    return int(found.get_space().get_simple_extent_npoints() * found.get_type().get_size())


def check_expansion(declared: int, on_disk: int, name: str) -> None:
    """Raises if more memory is declared than data of that size on disk can fill.

    Args:
        declared: Bytes that loading would need.
        on_disk: Bytes of the file.
        name: What the message calls it.
    """
    limit = MAX_EXPANSION * on_disk + SLACK_BYTES
    if declared > limit:
        raise DataError(
            f"`{name}` declares more than it can hold: got {declared} bytes from {on_disk} on "
            f"disk, expected at most {limit}. The file is damaged or hostile."
        )
