"""npz files from untrusted sources: no object is decoded, and declared sizes are checked."""

import math
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from gtp_datasets._hdf5 import check_expansion, check_place, stored_bytes
from gtp_policy.errors import DataError


def read_npz(
    path: str | os.PathLike[str],
    names: Sequence[str],
    made_of: Callable[[Mapping[str, tuple[int, ...]]], int],
) -> dict[str, npt.NDArray[np.generic]]:
    """Reads those fields of a file that are there, if they have equally many rows.

    Args:
        path: The file.
        names: Fields to read; others are not looked at.
        made_of: How many bytes will be made of fields of these shapes.

    Returns:
        The fields by name.

    Raises:
        DataError: If the file cannot be read, declares more than it holds, has objects in it, or
            fields of different lengths.
    """
    check_place(path, "npz")
    shown = os.fspath(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
            found = [members[name] for name in names if name in members]
            declared, on_disk = sum(i.file_size for i in found), stored_bytes(path)
            check_expansion(declared, on_disk, shown)
            # Before anything is read: zeros of a wrong length would fill the memory first.
            shapes = {i.filename.removesuffix(".npy"): _checked_shape(archive, i) for i in found}
            _check_rows(shapes)
            check_expansion(declared + made_of(shapes), on_disk, shown)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names if name in file}
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(
            f"`{shown}` cannot be read as npz: got {type(error).__name__} ({error}), expected a "
            "complete file of NumPy's without objects. Make or download it again."
        ) from error
    except Exception as error:  # zlib.error, struct.error, RuntimeError of encrypted members
        raise DataError(
            f"`{shown}` is damaged: got {type(error).__name__} ({error}), expected a complete npz "
            "file. Make or download it again."
        ) from error


def _checked_shape(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[int, ...]:
    """Raises if an array says that it is larger than its part of the file: NumPy would believe it.

    Args:
        archive: The open file.
        member: The array in it.

    Returns:
        Its shape.
    """
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise DataError(
                f"`{member.filename}` has an unknown format: got version {version}, expected 1.0 "
                "or 2.0. Save it again with numpy.savez."
            )
        shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise DataError(
            f"`{member.filename}` has the wrong dtype: got {dtype}, expected numbers or flags. "
            "Objects are never decoded."
        )
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise DataError(
            f"`{member.filename}` declares more than it holds: got shape {shape} of {dtype}, "
            f"expected at most {member.file_size} bytes. The file is damaged or hostile."
        )
    return shape


def _check_rows(shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises unless all fields have as many rows as the first one."""
    first = next(iter(shapes), "")
    for name, shape in shapes.items():
        if shape[:1] != shapes[first][:1]:
            raise DataError(
                f"`{name}` has the wrong shape: got {shape}, expected as many rows as `{first}`, "
                f"whose shape is {shapes[first]}."
            )
