"""npz files from untrusted sources: no object is decoded, and declared sizes are checked."""

import contextlib
import io
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from gtp_datasets._hdf5 import check_expansion, check_place, is_of_writing, stored_bytes
from gtp_policy.errors import DataError, GTPError

Shape = tuple[int, ...]
# What NumPy writes. Of the others, zipfile unpacks everything before it looks at the length that is
# announced, and a byte of theirs can hold a million.
_PACKED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
# Bytes before the numbers: NumPy would read as many as a header says that it has.
_LONGEST_HEADER = 2**16


class NpzFile:
    """An open file: its fields by name, each looked at before it is read.

    Args:
        archive: The open zip file.
        path: The file, for messages and its size on the disk.
    """

    def __init__(self, archive: zipfile.ZipFile, path: str | os.PathLike[str]) -> None:
        self._archive, self._shown = archive, os.fspath(path)
        members = archive.infolist()
        self._members = {i.filename.removesuffix(".npy"): i for i in members}
        if len(self._members) != len(members):  # readers differ in which of the two they take
            raise DataError(
                f"`{self._shown}` has two fields of one name: got {len(members)} members of "
                f"{len(self._members)} names, expected one of each. Save it again."
            )
        # Of a field that was looked at: where its numbers begin, and what they are.
        self._begins: dict[str, tuple[int, Shape, bool, np.dtype[np.generic]]] = {}
        self.names = tuple(self._members)
        self.on_disk = stored_bytes(path)

    def declared(self, names: Sequence[str]) -> int:
        """Returns how many bytes fields take, after comparing that with the size of the file."""
        for member in map(self._members.__getitem__, names):
            if member.compress_type not in _PACKED:
                raise DataError(
                    f"`{member.filename}` is packed in an unusual way: got the method "
                    f"{member.compress_type} of zip files, expected none or deflate. Save it again "
                    "with numpy.savez or numpy.savez_compressed."
                )
        total = sum(self._members[name].file_size for name in names)
        check_expansion(total, self.on_disk, self._shown)
        return total

    def shape(self, name: str) -> Shape:
        """Returns the shape of a field, unless it says that it is larger than its part of the file.

        NumPy would believe it.
        """
        member = self._members[name]
        with self._archive.open(member) as packed:
            stream = io.BytesIO(packed.read(_LONGEST_HEADER))
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise DataError(
                f"`{member.filename}` has an unknown format: got version {version}, expected "
                "1.0 or 2.0. Save it again with numpy.savez."
            )
        try:
            shape, by_columns, dtype = read(stream)
        except MemoryError:  # Python's parser, of thousands of signs
            raise DataError(
                f"`{member.filename}` has a header that is none: got one that cannot be parsed, "
                "expected NumPy's. The file is damaged or hostile."
            ) from None
        begin = stream.tell()
        if dtype.hasobject:
            raise DataError(
                f"`{member.filename}` has the wrong dtype: got {dtype}, expected numbers or flags. "
                "Objects are never decoded. Save rows of equal shape, or one file per episode."
            )
        if any(type(n) is not int or n < 0 for n in shape):  # NumPy would take -1 for the rest
            raise DataError(
                f"`{member.filename}` has a shape that is none: got {shape!r:.80}, expected "
                "integers >= 0. The file is damaged or hostile."
            )
        if math.prod(shape) * dtype.itemsize > member.file_size:
            raise DataError(
                f"`{member.filename}` declares more than it holds: got shape {shape} of {dtype}, "
                f"expected at most {member.file_size} bytes. The file is damaged or hostile."
            )
        self._begins[name] = begin, tuple(shape), by_columns, dtype
        return tuple(shape)

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """Returns a field whose shape was looked at."""
        begin, shape, by_columns, dtype = self._begins[name]
        member = self._members[name]
        with self._archive.open(member) as stream:
            stream.seek(begin)
            data = stream.read(member.file_size - begin)  # and not all that the member unpacks to
        array = np.frombuffer(data, dtype, math.prod(shape))
        return array.reshape(shape, order="F" if by_columns else "C")


@contextlib.contextmanager
def open_npz(path: str | os.PathLike[str]) -> Iterator[NpzFile]:
    """Opens a file and turns what reading it raises into `DataError`.

    Args:
        path: The file.

    Yields:
        The file.

    Raises:
        DataError: If it cannot be opened or read.
    """
    path = check_place(path, "npz")
    shown = os.fspath(path)
    try:
        with zipfile.ZipFile(path) as archive:
            yield NpzFile(archive, path)
    except (GTPError, MemoryError):
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        if is_of_writing(error):
            raise
        raise DataError(
            f"`{shown}` cannot be read as npz: got {type(error).__name__} ({error}), expected a "
            "complete file of NumPy's without objects. Make or download it again."
        ) from error
    except Exception as error:  # zlib.error, struct.error, RuntimeError of encrypted members
        raise DataError(
            f"`{shown}` is damaged: got {type(error).__name__} ({error}), expected a complete npz "
            "file. Make or download it again."
        ) from error


def read_npz(
    path: str | os.PathLike[str],
    names: Sequence[str],
    made_of: Callable[[Mapping[str, Shape]], int],
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
    with open_npz(path) as file:
        found = [name for name in names if name in file.names]
        declared = file.declared(found)
        # Before anything is read: zeros of a wrong length would fill the memory first.
        shapes = {name: file.shape(name) for name in found}
        check_rows(shapes)
        check_expansion(declared + made_of(shapes), file.on_disk, os.fspath(path))
        return {name: file.read(name) for name in found}


def check_rows(shapes: dict[str, Shape]) -> None:
    """Raises unless all fields have as many rows as the first one.

    Args:
        shapes: Shapes by name.
    """
    first = next(iter(shapes), "")
    for name, shape in shapes.items():
        if shape[:1] != shapes[first][:1]:
            raise DataError(
                f"`{name}` has the wrong shape: got {shape}, expected as many rows as `{first}`, "
                f"whose shape is {shapes[first]}."
            )
