"""Rows in files: a table that need not fit into memory, read from shards row by row.

A folder holds columns, each of them one or more ``.npy`` files of equal rows, and ``dataset.json``,
which lists the files with their lengths and hashes. The index is written last. Until then
``dataset.unfinished`` lists the files, each before it is made: what an interrupted conversion left
is known for certain, and no file of anybody else is ever removed.
"""

import contextlib
import hashlib
import io
import itertools
import json
import math
import os
import re
import stat
import struct
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gtp_policy._numbers import as_int
from gtp_policy.errors import DataError
from gtp_policy.files import expanded, remove, replacing, stored_bytes, target_of
from gtp_policy.records import check_values, decode, is_finite, what_is_wrong

FORMAT: Final = "gtp-policy dataset"
VERSION: Final = 1
INDEX = "dataset.json"
UNFINISHED = "dataset.unfinished"
# A shard is an open file for as long as it is in use, and systems allow about a thousand of them.
SHARD_BYTES = 2**30

# The first line of the list of files, by which it is known to be one.
_HEAD = f"{FORMAT} {VERSION}, unfinished: what is listed is removed by the next conversion"
_DTYPES = ("<f4", "<f8", "|u1", "|b1")
_HEADER = 192  # bytes, a multiple of 64: rows begin where NumPy wants them
_LONGEST_HEADER = 4096
_LONGEST_INDEX = 2**26
# Values of an index, besides those of which there are four for each number of a row.
_FEW_VALUES = 2**15
_LONGEST_REST = 2**21  # of it, besides lists of numbers: some thousand names of files
# Bytes that files may hold for each byte of data on the disk, and besides: what any compressed
# dataset may become. To read a hole of a terabyte takes an hour, and it is a file of 4 kB.
_MOST_EXPANSION, _SLACK = 1032, 2**26
_SHARD_NAME = re.compile(r"[a-z]+\d*-\d{5}\.npy")
# One call reads no more; the system's own limit is 2 GiB.
_LONGEST_READ = 2**26

Count = Annotated[int, Field(ge=1, lt=2**53)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Shard(_Part):
    """One file of a column, as the index lists it.

    Example:
        >>> from gtp_policy.shards import Shard
        >>> Shard(file="table-00000.npy", rows=4, sha256="0" * 64).rows
        4
    """

    file: str = Field(max_length=100, description="Name in the folder.")
    rows: Count = Field(description="How many there are in it.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of the whole file.")


class Column(_Part):
    """What the rows of a column are, and the files that hold them one after the other.

    Example:
        >>> from gtp_policy.shards import Column, Shard
        >>> shard = Shard(file="table-00000.npy", rows=4, sha256="0" * 64)
        >>> Column(dtype="<f4", shape=(7,), shards=(shard,)).shape
        (7,)
    """

    dtype: Literal["<f4", "<f8", "|u1", "|b1"] = Field(description="As NumPy names it.")
    shape: tuple[Count, ...] = Field(description="Of one row.")
    shards: tuple[Shard, ...] = Field(min_length=1, description="The files in their order.")


class Index(_Part):
    """What ``dataset.json`` says: an `OfflineDataset` but for its rows.

    Example:
        >>> from gtp_policy.shards import Index
        >>> Index.model_fields["gamma"].description
        'Discount factor of one step.'
    """

    format: Literal["gtp-policy dataset"] = Field(description="What the folder is.")
    version: Literal[1] = Field(description="Of the format.")
    source: str = Field(description="Where the data comes from.")
    gamma: float = Field(ge=0, le=1, description="Discount factor of one step.")
    n_step: Count = Field(description="Steps that a transition spans at most.")
    history: Count = Field(description="Observations in one.")
    chunk: Count = Field(description="Steps of an action.")
    has_rewards: bool = Field(description="Whether the data has rewards.")
    keys: tuple[str, ...] = Field(description="Of an observation's parts; none: it is an array.")
    shapes: tuple[tuple[Count, ...], ...] = Field(min_length=1, description="Of these parts.")
    images: tuple[str, ...] = Field(description='Keys of images, "" for an array, in order.')
    low: tuple[float, ...] = Field(min_length=1, description="Lower bounds of the action Box.")
    high: tuple[float, ...] = Field(min_length=1, description="Upper bounds of the action Box.")
    mean: tuple[float, ...] = Field(description="Of the columns of obs and one action.")
    variance: tuple[Annotated[float, Field(ge=0)], ...] = Field(description="Of the same columns.")
    columns: dict[str, Column] = Field(
        description="`table`, `terminated`, `truncated`, `ends` where the flags do not say it, and "
        "`images0` and so on."
    )
    sha256: str | None = Field(
        default=None, description="Hash of all other fields; None in folders of before version 0.1."
    )

    def hashed(self) -> str:
        """Returns the hash of all fields but it.

        Example:
            >>> from gtp_policy.shards import Index
            >>> callable(Index.hashed)
            True
        """
        fields = self.model_dump(mode="json", exclude={"sha256"})
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


# Lists of an index that are as long as a row, and what their numbers have to be.
_NUMBERS: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("mean", "low", "high"), is_finite),
    "variance": lambda value: is_finite(value) and value >= 0,  # type: ignore[operator]
}


class Moments(NamedTuple):
    """Mean and population variance of columns, in double precision.

    Attributes:
        mean: Shape (C,).
        variance: Shape (C,).

    Example:
        >>> import torch
        >>> from gtp_policy.shards import Moments
        >>> Moments(torch.zeros(2), torch.ones(2)).variance
        tensor([1., 1.])
    """

    mean: Tensor
    variance: Tensor


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


if hasattr(os, "pread"):
    _read_at = os.pread
else:  # a system where files have one place each: one thread at a time
    _PLACE = threading.Lock()

    def _read_at(file: int, count: int, place: int, /) -> bytes:
        with _PLACE:
            os.lseek(file, place, os.SEEK_SET)
            return os.read(file, count)


class ShardedRows:
    """Rows in several files: what a dataset asks of a tensor, without one that holds them.

    Rows that are asked for are read, others are never touched. Read, not mapped: pages of a mapping
    count as resident until they are given back, and to map and unmap one for a row takes several
    times as long as to copy the row out of the system's page cache. Several processes share one
    copy there. Nothing may write to the files meanwhile; a file that is cut is an error, where a
    mapping would end the process.

    Args:
        folder: Where the files are.
        column: Their names, lengths and type.
        moments: Statistics of the leading columns, where they are known.

    Attributes:
        shape: (N, ...), as of a tensor.
        dtype: Type of the numbers, as of a tensor.
        device: The CPU.
        moments: As given.

    Raises:
        DataError: If a file is missing, no plain file, of another type or length than the column
            says; the message names it.

    Example:
        >>> import tempfile
        >>> import numpy as np, torch
        >>> from gtp_policy.shards import ShardWriter
        >>> with tempfile.TemporaryDirectory() as folder, ShardWriter(folder, 16) as writer:
        ...     writer.add("table", np.arange(6, dtype=np.float32).reshape(3, 2))
        ...     rows = writer.rows("table")
        ...     rows.shape, rows.index_select(0, torch.tensor([2, 0]))
        ((3, 2), tensor([[4., 5.],
                [0., 1.]]))
    """

    def __init__(self, folder: Path, column: Column, moments: Moments | None = None) -> None:
        # Absolute: another process may stand elsewhere.
        self._folder, self._column, self.moments = folder.absolute(), column, moments
        self._kind = np.dtype(column.dtype)
        self._starts = np.cumsum([0, *(shard.rows for shard in column.shards)])
        self.shape = (int(self._starts[-1]), *column.shape)
        self.dtype: torch.dtype = torch.from_numpy(np.empty(0, self._kind)).dtype
        self.device = torch.device("cpu")
        self._row_bytes = math.prod(column.shape) * self._kind.itemsize
        files: list[int] = []
        weakref.finalize(self, _close, files)
        begins = []
        for shard in column.shards:
            with _opened(folder, shard.file) as file:
                begins.append(self._begin(file, shard))
                files.append(os.dup(file.fileno()))
        self._files, self._begins = np.array(files), np.array(begins)

    def _begin(self, file: BinaryIO, shard: Shard) -> int:
        """Returns where rows begin, once header and size are what they should be."""
        name = file.name
        shape = (shard.rows, *self._column.shape)
        begin, got = _read_header(file, name)
        if got != (self._kind, False, shape):
            raise DataError(
                f"The shard `{name}` holds something else: got {got[0]} of shape {got[2]}"
                f"{' by columns' if got[1] else ''}, expected {self._kind} of shape {shape}. "
                "Convert the data again."
            )
        expected = begin + shard.rows * self._row_bytes
        size = os.fstat(file.fileno()).st_size
        if size != expected:
            raise DataError(
                f"The shard `{name}` has the wrong length: got {size} bytes, expected {expected}. "
                "Copy it again, or convert the data again."
            )
        return begin

    def __reduce__(self) -> tuple[type[Self], tuple[Path, Column, Moments | None]]:
        """Copies and other processes open the same files."""
        return type(self), (self._folder, self._column, self.moments)

    def __len__(self) -> int:
        """Returns N."""
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, in files."""
        return len(self) * self._row_bytes

    @property
    def stored_bytes(self) -> int:
        """Bytes of the files that take place on the disk, without holes."""
        return sum(map(stored_bytes, self._files.tolist()))

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Returns copies of some rows, as ``torch.Tensor.index_select`` does.

        Args:
            dim: 0.
            index: Integers from 0 to N - 1, shape (B,), on the CPU.

        Returns:
            Shape (B, ...).

        Raises:
            IndexError: If there is no such row.
        """
        assert dim == 0, dim
        rows = index.numpy()
        if len(rows) and not (0 <= rows.min() and rows.max() < len(self)):
            wrong = rows.min() if rows.min() < 0 else rows.max()
            raise IndexError(
                f"`index` is out of range: got {wrong}, expected 0 to {len(self) - 1}."
            )
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        places = self._begins[shard] + (rows - self._starts[shard]) * self._row_bytes
        # A list of calls, not a loop: for a short row the call is most of the work.
        read = bytearray().join(
            map(
                _read_at,
                self._files[shard].tolist(),
                itertools.repeat(self._row_bytes),
                places.tolist(),
            )
        )
        if len(read) != len(rows) * self._row_bytes:
            raise self._cut(shard)
        found = np.frombuffer(read, self._kind).reshape(len(rows), *self.shape[1:])
        return torch.from_numpy(found)

    def __getitem__(self, rows: slice) -> Tensor:
        """Returns copies of consecutive rows."""
        start, stop, step = rows.indices(len(self))
        assert step == 1, step
        out = np.empty((max(stop - start, 0), *self.shape[1:]), self._kind)
        into = out.reshape(-1).view(np.uint8).data
        done = 0
        for i, first in enumerate(self._starts[:-1].tolist()):
            a, b = max(start, first), min(stop, int(self._starts[i + 1]))
            at = int(self._begins[i]) + (a - first) * self._row_bytes
            end = at + (b - a) * self._row_bytes
            while at < end:
                read = _read_at(int(self._files[i]), min(end - at, _LONGEST_READ), at)
                if not read:
                    raise self._cut(np.array([i]))
                into[done : done + len(read)] = read
                at, done = at + len(read), done + len(read)
        return torch.from_numpy(out)

    def _cut(self, numbers: npt.NDArray[np.intp]) -> DataError:
        """Returns the error for rows that end early: of one of these shards, the first such."""
        for i in np.unique(numbers):
            shard = self._column.shards[i]
            expected = int(self._begins[i]) + shard.rows * self._row_bytes
            size = os.fstat(int(self._files[i])).st_size
            if size != expected:
                break
        return DataError(
            f"The shard `{self._folder / shard.file}` was cut while it was in use: got {size} "
            f"bytes, expected {expected}. Copy it again, or convert the data again."
        )

    def array(self) -> npt.NDArray[Any]:
        """Returns all rows as an array that is mapped from the file, read-only; of several, copied.

        For what is looked at as a whole if at all, such as flags.
        """
        parts = []
        for shard, begin in zip(self._column.shards, self._begins.tolist(), strict=True):
            shape = (shard.rows, *self.shape[1:])
            with _opened(self._folder, shard.file) as file:
                parts.append(np.memmap(file, self._kind, "r", begin, shape))
        return np.asarray(parts[0]) if len(parts) == 1 else np.concatenate(parts)

    def to(self, device: torch.device | str) -> "Tensor | ShardedRows":
        """Returns the rows on a device: as a tensor there, or as they are on the CPU.

        Args:
            device: Target device.

        Returns:
            A tensor, or itself.
        """
        if torch.device(device).type == "cpu":
            return self
        moved = torch.empty(self.shape, dtype=self.dtype, device=device)
        for piece in pieces(self):
            moved[piece].copy_(self[piece])
        return moved


class ShardWriter:
    """Writes the columns of a folder piece by piece, and the index last.

    What an interrupted writer left in the folder is removed; anything else there is an error, and
    then nothing is touched.

    Args:
        folder: Where to; made if there is none.
        shard_bytes: Bytes of rows in a file at most, but for the flags, which are one file each.

    Attributes:
        folder: As given.

    Raises:
        DataError: If the folder holds a dataset, or other files, or an argument is wrong.
        OSError: If the operating system refuses.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from gtp_policy.shards import ShardWriter
        >>> with tempfile.TemporaryDirectory() as folder, ShardWriter(folder) as writer:
        ...     for _ in range(3):
        ...         writer.add("table", np.zeros((4, 5), np.float32))
        ...     len(writer.rows("table"))
        12
    """

    def __init__(self, folder: str | os.PathLike[str], shard_bytes: int = SHARD_BYTES) -> None:
        size = as_int(shard_bytes)
        if size is None or size < 1:
            raise DataError(
                f"`shard_bytes` is out of range: got {shard_bytes!r}, expected an integer >= 1."
            )
        self.folder = checked_folder(folder)
        self._shard_bytes = size
        self._columns: dict[str, _ColumnWriter] = {}
        self._clear()

    def _clear(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"`{self.folder}` is no folder: got something else, expected one.")
        self.folder.mkdir(parents=True, exist_ok=True)
        there = sorted(os.scandir(self.folder), key=lambda entry: entry.name)
        if any(entry.name == INDEX for entry in there):
            raise DataError(
                f"`{self.folder}` holds a dataset: got a folder with {INDEX}, expected an empty or "
                "a new one. Open it with OfflineDataset.memmap, or remove it first."
            )
        ours = _unfinished(self.folder)
        others = [
            entry.name
            for entry in there
            if entry.name not in ours or not entry.is_file(follow_symlinks=False)
        ]
        if others:
            raise DataError(
                f"`{self.folder}` holds other files: got {others[:9]}, expected an empty or a new "
                "folder, or what an interrupted conversion left. Choose another folder. If an "
                "earlier version was interrupted in this one, delete it first."
            )
        # The list goes last, so that it still holds whatever is left if this is interrupted too.
        for entry in sorted(there, key=lambda entry: entry.name == UNFINISHED):
            os.unlink(entry)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes what is open; without an index the folder is incomplete."""
        for column in self._columns.values():
            column.close()

    def add(self, name: str, rows: npt.NDArray[Any], *, one_file: bool = False) -> None:
        """Writes rows of a column behind those already there.

        Args:
            name: The column: letters, and digits behind them.
            rows: Shape (n, ...), of the same type and row as the first ones.
            one_file: Whether the column is not split.

        Raises:
            DataError: If the type is none that is stored.
        """
        if name not in self._columns:
            row_bytes = max(rows[:1].nbytes, 1)
            most = 2**53 if one_file else max(1, self._shard_bytes // row_bytes)
            self._columns[name] = _ColumnWriter(self._new_file, name, rows, most)
        self._columns[name].add(rows)

    def __contains__(self, name: object) -> bool:
        """Returns whether a column has rows."""
        return name in self._columns

    def rows(self, name: str, moments: Moments | None = None) -> ShardedRows:
        """Finishes a column and returns its rows.

        Args:
            name: The column, which has rows.
            moments: As for `ShardedRows`.

        Returns:
            The rows, open.
        """
        return ShardedRows(self.folder, self._columns[name].finished(), moments)

    def finish(self, **fields: Any) -> None:  # noqa: ANN401 - those of the index
        """Writes the index: from then on the folder is a dataset.

        Args:
            **fields: Those of `Index`, but for format, version and columns.

        Raises:
            DataError: If it says more than is read again.
        """
        columns = {name: column.finished() for name, column in self._columns.items()}
        index = Index(format=FORMAT, version=VERSION, columns=columns, **fields)
        index = index.model_copy(update={"sha256": index.hashed()})
        data = (index.model_dump_json(indent=1) + "\n").encode()
        if len(data) > _LONGEST_INDEX:
            raise _too_much(f"more than {_LONGEST_INDEX} bytes")
        try:
            _index_of(decode(data))
        except ValueError as error:
            raise _too_much(what_is_wrong(error)) from error
        with replacing(self.folder / INDEX) as temporary, self._new_file(temporary.name) as file:
            file.write(data)
        remove(self.folder / UNFINISHED)

    def _new_file(self, name: str) -> BinaryIO:
        """Makes a file of the folder, once it is listed among those of an unfinished conversion."""
        with open(self.folder / UNFINISHED, "ab") as listed:
            head = "" if listed.tell() else f"{_HEAD}\n"
            listed.write(f"{head}{name}\n".encode())
            listed.flush()
            os.fsync(listed.fileno())
        return open(self.folder / name, "xb")


def check_parts(keys: Sequence[str], shapes: Sequence[Sequence[int]]) -> None:
    """Raises if observations have more parts than an index may name: before rows are written.

    Args:
        keys: Of a layout.
        shapes: Likewise.

    Raises:
        DataError: If so.

    Example:
        >>> from gtp_policy.shards import check_parts
        >>> check_parts(["camera", "speed"], [(8, 8, 3), ()])
    """
    try:
        check_values({"keys": keys, "shapes": shapes})
    except ValueError as error:
        raise _too_much(str(error)) from error


def _too_much(got: str) -> DataError:
    return DataError(
        f"The dataset cannot be written: got an index of {got}, expected what can be read again. "
        "Join parts of the observation, or write fewer and larger files with shard_bytes."
    )


class _ColumnWriter:
    def __init__(
        self, new_file: Callable[[str], BinaryIO], name: str, like: npt.NDArray[Any], most: int
    ) -> None:
        self._new_file, self._name, self._most = new_file, name, most
        self._kind, self._shape = like.dtype.newbyteorder("<"), like.shape[1:]
        if self._kind.str not in _DTYPES:
            raise DataError(
                f"`{name}` cannot be stored: got numbers of type {like.dtype}, expected one of "
                f"{', '.join(_DTYPES)}."
            )
        self._shards: list[Shard] = []
        self._file: BinaryIO | None = None
        self._count = 0

    def add(self, rows: npt.NDArray[Any]) -> None:
        assert rows.shape[1:] == self._shape, (rows.shape, self._shape)
        rows = np.ascontiguousarray(rows, self._kind)
        while len(rows):
            if self._file is None:
                name = f"{self._name}-{len(self._shards):05d}.npy"
                self._file, self._count = self._new_file(name), 0
                self._file.write(bytes(_HEADER))  # the number of rows is not known yet
            piece = rows[: self._most - self._count]
            self._file.write(piece.data)
            self._count += len(piece)
            rows = rows[len(piece) :]
            if self._count == self._most:
                self._end()

    def _end(self) -> None:
        """Completes a file: its header, the disk, its hash."""
        file = self._file
        assert file is not None
        path = Path(file.name)
        with file:
            file.seek(0)
            file.write(_header(self._kind, (self._count, *self._shape)))
            file.flush()
            os.fsync(file.fileno())
        self._file = None
        with path.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        self._shards.append(Shard(file=path.name, rows=self._count, sha256=digest))

    def finished(self) -> Column:
        if self._file is not None:
            self._end()
        return Column.model_validate(
            {"dtype": self._kind.str, "shape": self._shape, "shards": tuple(self._shards)}
        )

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


_WRITER: ContextVar[ShardWriter | None] = ContextVar("shard_writer", default=None)


@contextlib.contextmanager
def builders_write_to(writer: ShardWriter) -> Iterator[None]:
    """Has the next `OfflineDatasetBuilder` of this context write shards instead of a table.

    Loaders make their builder deep inside, and none of them needs to know where rows go.

    Args:
        writer: Where to.

    Yields:
        Nothing.

    Example:
        >>> import tempfile
        >>> from gtp_policy import OfflineDataset
        >>> from gtp_policy.shards import ShardWriter, builders_write_to
        >>> pushed = {"obs": [[0.0], [1.0]], "action": [[0.5]], "terminated": True}
        >>> with tempfile.TemporaryDirectory() as folder, ShardWriter(folder) as writer:
        ...     with builders_write_to(writer):
        ...         dataset = OfflineDataset.from_episodes([pushed], low=[-1.0], high=[1.0])
        ...     dataset.rows(0, 1).action
        tensor([[0.5000]])
    """
    token = _WRITER.set(writer)
    try:
        yield
    finally:
        _WRITER.reset(token)


def builders_write() -> bool:
    """Returns whether the next builder of this context writes shards.

    Example:
        >>> from gtp_policy.shards import builders_write
        >>> builders_write()
        False
    """
    return _WRITER.get() is not None


def take_writer() -> ShardWriter | None:
    """Returns the writer of this context to the builder that asks first; None from then on.

    Example:
        >>> from gtp_policy.shards import take_writer
        >>> take_writer()
    """
    writer = _WRITER.get()
    if writer is not None:
        _WRITER.set(None)
    return writer


def images_column(number: int) -> str:
    """Returns the name of a column of images.

    Args:
        number: Which of the parts that are images, in the order of the layout.

    Returns:
        The name.

    Example:
        >>> from gtp_policy.shards import images_column
        >>> images_column(0)
        'images0'
    """
    return f"images{number}"


def pieces(rows: Tensor | ShardedRows) -> Iterator[slice]:
    """Returns slices of rows, one after the other, of about a million numbers each.

    Args:
        rows: Shape (N, ...).

    Yields:
        Slices that depend on the shape alone, so that sums over them are the same wherever rows
        are.

    Example:
        >>> import torch
        >>> from gtp_policy.shards import pieces
        >>> list(pieces(torch.zeros(5, 2**19)))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    size, *row = rows.shape
    step = max(1, 2**20 // max(1, math.prod(row)))
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def open_shards(folder: Path, *, verify: bool) -> tuple[Index, dict[str, ShardedRows]]:
    """Opens a folder: reads the index, and looks at every file.

    Args:
        folder: The folder.
        verify: Whether to compare hashes, which reads all files.

    Returns:
        The index, and the rows of each column.

    Raises:
        DataError: If the folder is no dataset, or an incomplete one, or one of another version, or
            a file is missing, damaged, a link, or not the one that was written.

    Example:
        >>> from pathlib import Path
        >>> from gtp_policy.shards import open_shards
        >>> open_shards(Path("missing"), verify=True)
        Traceback (most recent call last):
        ...
        gtp_policy.errors.DataError: `missing` is no dataset: got no folder, expected one that \
gtp_datasets.convert has written.
    """
    index = _read_index(folder)
    columns = {}
    for name, column in index.columns.items():
        for number, shard in enumerate(column.shards):
            expected = f"{name}-{number:05d}.npy"
            if shard.file != expected or not _SHARD_NAME.fullmatch(expected):
                raise _bad_index(folder, f"the name {shard.file!r}, expected {expected!r}")
        moments = None
        if name == "table":
            numbers = (index.mean, index.variance)
            moments = Moments(*(torch.tensor(x, dtype=torch.float64) for x in numbers))
        columns[name] = ShardedRows(folder, column, moments)
    _check_holes(folder, columns.values())
    if verify:  # once all lengths are right, which takes no time
        for shard in (s for column in index.columns.values() for s in column.shards):
            _check_hash(folder, shard)
    return index, columns


def _check_holes(folder: Path, columns: Collection[ShardedRows]) -> None:
    """Raises if nearly all of the files are holes, before anything goes through them."""
    size = sum(column.nbytes for column in columns)
    if size <= _SLACK:
        return
    stored = sum(column.stored_bytes for column in columns)
    if size > _MOST_EXPANSION * stored + _SLACK:
        raise DataError(
            f"The shards of `{folder}` are holes: got {size} bytes of which {stored} are on the "
            "disk, expected files that are written. They are damaged or hostile: convert the data "
            "again."
        )


def _check_hash(folder: Path, shard: Shard) -> None:
    with _opened(folder, shard.file) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != shard.sha256:
        raise DataError(
            f"The shard `{folder / shard.file}` is damaged: got the SHA-256 {digest[:16]}..., "
            f"expected {shard.sha256[:16]}... Copy it again, or convert the data again."
        )


def _read_index(folder: Path) -> Index:
    if not os.path.isdir(folder):  # False too of a name that is too long, which pathlib raises for
        found = "something else" if os.path.exists(folder) else "no folder"
        raise DataError(
            f"`{folder}` is no dataset: got {found}, expected one that gtp_datasets.convert has "
            "written."
        )
    path = folder / INDEX
    if not os.path.lexists(path):
        left = sum(_SHARD_NAME.fullmatch(entry.name) is not None for entry in os.scandir(folder))
        ours = _unfinished(folder)
        if ours or left:
            advice = (
                "Convert the data again, into the same folder."
                if ours
                else "Copy it again, or delete the folder and convert the data again."
            )
            raise DataError(
                f"`{folder}` is incomplete: got {left} shards without {INDEX}, which is written "
                f"last. {advice}"
            )
        raise DataError(
            f"`{folder}` is no dataset: got no {INDEX}, expected a folder that "
            "gtp_datasets.convert has written."
        )
    with _opened(folder, INDEX) as file:
        data = file.read(_LONGEST_INDEX + 1)
    if len(data) > _LONGEST_INDEX:
        raise _bad_index(folder, f"more than {_LONGEST_INDEX} bytes")
    values = data.count(b",")
    if values > _FEW_VALUES and values > _FEW_VALUES + _stored(folder):
        raise _bad_index(folder, f"{values} values, which are more than its files have bytes")
    try:
        found = decode(data)
        kind = (found["format"], found["version"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _bad_index(folder, f"{type(error).__name__} ({error})") from error
    if kind != (FORMAT, VERSION):
        raise DataError(
            f"`{path}` is of another format or version: got {kind[0]!r:.60} {kind[1]!r:.20}, "
            f"expected {FORMAT!r} {VERSION}. Convert the data again with this version."
        )
    try:
        return _index_of(found)
    except ValueError as error:
        raise _bad_index(folder, what_is_wrong(error)) from error


def _index_of(found: Mapping[str, Any]) -> Index:
    """Returns an index from decoded JSON, in which of two equal names the last alone is left.

    Lists of numbers are judged by themselves: pydantic keeps a copy of all that there is with every
    field that is missing or wrong, two hundred times the size of a file of numbers.

    Raises:
        ValueError: If it is none.
    """
    numbers = {n: found[n] for n in _NUMBERS if isinstance(found.get(n), list)}
    check_values(numbers, _NUMBERS)
    rest = {**found, **{name: values[:1] for name, values in numbers.items()}}
    check_values(rest)
    text = json.dumps(rest)
    if len(text) > _LONGEST_REST:
        raise ValueError(
            f"{len(text)} characters besides numbers, of which {_LONGEST_REST} are read"
        )
    index = Index.model_validate_json(text)
    index = index.model_copy(update={n: tuple(map(float, v)) for n, v in numbers.items()})
    if index.sha256 not in (None, index.hashed()):
        raise ValueError(f"fields of another hash than {index.sha256:.80}: some have been changed")
    return index


def _stored(folder: Path) -> int:
    """Returns how many bytes of data the shards of a folder hold."""
    stored = 0
    for name in filter(_SHARD_NAME.fullmatch, os.listdir(folder)):
        with contextlib.suppress(DataError), _opened(folder, name) as file:  # none of a link
            stored += stored_bytes(file.fileno())
    return stored


def _unfinished(folder: Path) -> set[str]:
    """Returns the names of files that a conversion was writing when it was interrupted."""
    try:
        with _opened(folder, UNFINISHED) as file:
            head, *names = file.read(_LONGEST_INDEX).decode(errors="replace").split("\n")
    except DataError:  # none, or a link
        return set()
    if head != _HEAD and (names or not _HEAD.startswith(head)):  # a full disk cuts it anywhere
        return set()
    # Whatever a list from a stranger says, a conversion writes nothing else.
    return {UNFINISHED, *(n for n in names if _SHARD_NAME.fullmatch(n) or target_of(n) == INDEX)}


def _bad_index(folder: Path, got: str) -> DataError:
    return DataError(
        f"`{folder / INDEX}` is no index: got {got}. Copy it again, or convert the data again."
    )


def checked_folder(folder: str | os.PathLike[str]) -> Path:
    """Returns a folder's name as a path.

    Args:
        folder: The name.

    Returns:
        The path, ``~`` expanded.

    Raises:
        DataError: If it is no name.

    Example:
        >>> from gtp_policy.shards import checked_folder
        >>> checked_folder("data").name
        'data'
    """
    try:
        name = os.fspath(folder)
        if not isinstance(name, str) or not name or "\0" in name:
            raise TypeError
    except TypeError as error:
        raise DataError(
            f"`folder` is no path: got {folder!r:.60}, expected the name of a folder."
        ) from error
    return expanded(name)


@contextlib.contextmanager
def _opened(folder: Path, name: str) -> Iterator[io.BufferedReader]:
    """Opens a plain file of the folder; a link, which may lead anywhere, is none."""
    path = folder / name
    what = "shard" if name.endswith(".npy") else "index"

    def no_link(path: str, flags: int) -> int:
        return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0))

    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):  # before opening: a pipe would wait
            raise DataError(
                f"The {what} `{path}` is no plain file: got a link or something else, expected the "
                "file itself."
            )
        with open(path, "rb", opener=no_link) as file:
            yield file
    except OSError as error:
        raise DataError(
            f"The {what} `{path}` cannot be read: got {type(error).__name__} ({error}), expected a "
            "file. Copy it again, or convert the data again."
        ) from error


def _header(kind: np.dtype[Any], shape: Sequence[int]) -> bytes:
    """Returns NumPy's header of a file, of one length whatever the number of rows."""
    numbers = "".join(f"{n}, " for n in shape)
    text = f"{{'descr': {kind.str!r}, 'fortran_order': False, 'shape': ({numbers}), }}"
    body = text.encode("ascii").ljust(_HEADER - 11) + b"\n"
    assert len(body) == _HEADER - 10, text
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body


def _read_header(
    file: BinaryIO, name: str
) -> tuple[int, tuple[np.dtype[Any], bool, tuple[int, ...]]]:
    """Returns where rows begin, and their type, order and shape; reads a few kilobytes at most."""
    stream = io.BytesIO(file.read(_LONGEST_HEADER))
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"version {version}")
        shape, by_columns, kind = np.lib.format.read_array_header_1_0(
            stream, max_header_size=_LONGEST_HEADER
        )
    except Exception as error:  # whatever NumPy makes of a few kilobytes of anything
        raise DataError(
            f"The shard `{name}` is damaged: got {type(error).__name__} ({error!s:.99}), expected "
            "the header of a .npy file. Copy it again, or convert the data again."
        ) from error
    if kind.hasobject:
        raise DataError(
            f"The shard `{name}` has the wrong dtype: got {kind}, expected numbers. Objects are "
            "never decoded."
        )
    return stream.tell(), (kind, by_columns, tuple(shape))
