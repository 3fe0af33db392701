"""Columns that pyarrow reads, as arrays: of CSV and Parquet from untrusted sources.

CSV is bounded by its size: every byte of the file is taken for twenty of memory, and holes in it
count for nothing. Of Parquet, the counts of values and bytes that its pages announce are compared
with its size before anything is read.
"""

import csv
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gtp_datasets._hdf5 import check_expansion, is_of_writing, stored_bytes
from gtp_datasets._pages import DELTA_BYTE_ARRAY, Pages, pages_of
from gtp_policy.errors import DataError, GTPError, MissingDependencyError, how_to_install

if TYPE_CHECKING:
    import pyarrow

Array = npt.NDArray[Any]
# Of a CSV file: each column takes a kilobyte, however few letters its name has.
_MOST_COLUMNS, _MOST_HEADER = 10_000, 2**20
_BYTES_PER_LETTER = 20
_FEW_PAGES = 2**14


@contextmanager
def _reading(path: str | os.PathLike[str], kind: str, extra: str) -> Iterator[None]:
    """Turns what pyarrow raises into the package's errors."""
    shown = os.fspath(path)
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would wait for its writer
        raise DataError(f"`{shown}` is no file: got something else, expected {kind}.")
    try:
        yield
    except (GTPError, MemoryError):
        raise
    except ImportError as error:
        raise MissingDependencyError(
            f"{kind} needs pyarrow: got `{error}`. {how_to_install(extra)}"
        ) from error
    except Exception as error:  # ArrowInvalid, OSError, UnicodeDecodeError
        if is_of_writing(error):
            raise
        text = str(error).split("\n")[0]
        raise DataError(
            f"`{shown}` cannot be read as {kind}: got {type(error).__name__} ({text:.200}), "
            f"expected a complete {kind} file. Make or download it again."
        ) from error


def csv_columns(path: str | os.PathLike[str], delimiter: str) -> list[str]:
    """Returns the names in the first line of a CSV file.

    Args:
        path: The file.
        delimiter: What stands between them.

    Raises:
        DataError: If it cannot be read, or has no names, equal ones or too many.
    """
    with _reading(path, "CSV", "csv"):
        with open(path, encoding="utf-8-sig", newline="") as file:
            line = file.readline(_MOST_HEADER)
        names = next(csv.reader([line], delimiter=delimiter), [])
        counts = Counter(names)
        twice = sorted(name for name, count in counts.items() if count > 1)
        if not names or len(names) > _MOST_COLUMNS or twice or len(line) == _MOST_HEADER:
            raise DataError(
                f"`{os.fspath(path)}` has no usable first line: got {len(names)} names"
                f"{f', of which {twice[:3]} stand there twice' if twice else ''}, expected 1 to "
                f"{_MOST_COLUMNS} different names of columns. Write a line of names."
            )
    return names


def read_csv(
    path: str | os.PathLike[str], names: Sequence[str], delimiter: str, also: Sequence[str] = ()
) -> dict[str, Array]:
    """Reads columns of a CSV file.

    Args:
        path: The file, with names in its first line.
        names: Columns to read.
        delimiter: What stands between the cells.
        also: Others, left out where they hold words.

    Returns:
        The columns by name.

    Raises:
        DataError: If it cannot be read, or a column holds words.
        MissingDependencyError: If pyarrow is not installed.
    """
    with _reading(path, "CSV", "csv"):
        import pyarrow.csv

        letters = os.path.getsize(path)
        check_expansion(_BYTES_PER_LETTER * letters, stored_bytes(path), os.fspath(path))
        with open(path, "rb") as file:  # not by its name, whose ending might ask to decompress it
            table = pyarrow.csv.read_csv(
                file,
                read_options=pyarrow.csv.ReadOptions(use_threads=False),
                parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
                convert_options=pyarrow.csv.ConvertOptions(include_columns=[*names, *also]),
            )
        found = {name: _numbers(name, table.column(name)) for name in names}
        for name in also:
            values = table.column(name)
            if pyarrow.types.is_date(values.type) or pyarrow.types.is_timestamp(values.type):
                values = values.cast(pyarrow.timestamp("us")).cast(pyarrow.int64())
            with suppress(DataError):
                found[name] = _numbers(name, values)
        return found


class ParquetFile:
    """An open Parquet file whose counts were compared with its size.

    Args:
        path: The file.
        columns: Columns to read; those that it lacks are left out.

    Attributes:
        rows: How many there are.
        declared: Bytes that reading the columns takes, by what the file says.
    """

    def __init__(self, path: str | os.PathLike[str], columns: Sequence[str]) -> None:
        with _reading(path, "Parquet", "lerobot"):
            import pyarrow.parquet

            self._path = path
            file = pyarrow.parquet.ParquetFile(path, memory_map=False)
            self.names = list(file.schema_arrow.names)
            self._columns = [name for name in columns if name in self.names]
            meta = file.metadata
            self.rows, self.declared = int(meta.num_rows), 0
            groups = sum(int(meta.row_group(i).num_rows) for i in range(meta.num_row_groups))
            if groups != self.rows:
                raise self._contradiction(f"{self.rows} rows and {groups} in its row groups")
            wanted = {name.split(".")[0] for name in self._columns}
            parts = [
                (meta.schema.column(i), part, int(group.num_rows))
                for group in map(meta.row_group, range(meta.num_row_groups))
                for i, part in enumerate(map(group.column, range(group.num_columns)))
                if part.path_in_schema.split(".")[0] in wanted
            ]
            packed = sum(int(part.total_compressed_size) for _, part, _ in parts)
            if packed > os.path.getsize(path):  # pages are looked at once for each that has them
                raise DataError(
                    f"`{os.fspath(path)}` has columns in each other: got {packed} bytes of pages, "
                    f"expected at most its {os.path.getsize(path)}. The file is damaged or hostile."
                )
            words = set()
            # Honest pages of a few bytes come one by one, each with a hundred bytes of metadata.
            left = _FEW_PAGES + os.path.getsize(path) // 128
            for schema, part, rows in parts:
                pages = self._pages(part, left)
                left -= pages.pages
                # pyarrow makes room for the rows of a group before it reads any. A list has at
                # least one place in its pages, also where there is nothing in it.
                held = pages.values - pages.shared
                if held < rows or (held > rows and not schema.max_repetition_level):
                    raise self._contradiction(
                        f"{rows} rows in a row group, and {held} values of {part.path_in_schema!r}"
                    )
                self.declared += pages.values * _width(schema) + pages.size
                if part.physical_type == "BYTE_ARRAY":
                    words.add(part.path_in_schema)
                    self._check_encodings(part.path_in_schema, pages)
            check_expansion(self.declared, stored_bytes(path), os.fspath(path))
            # A value that stands in the file once may stand in a million rows: they stay numbers of
            # values, where they would become as many copies of it.
            self._file = pyarrow.parquet.ParquetFile(
                path, memory_map=False, metadata=meta, read_dictionary=sorted(words)
            )

    def _pages(self, part: "pyarrow.parquet.ColumnChunkMetaData", most: int) -> Pages:
        """Returns what the pages of a column announce, which no sum in the metadata bounds."""
        start, first = int(part.data_page_offset), part.dictionary_page_offset
        if part.has_dictionary_page and first is not None and 0 < first < start:
            start = int(first)
        with open(self._path, "rb") as file:
            return pages_of(file, start, int(part.total_compressed_size), most)

    @staticmethod
    def _check_encodings(name: str, pages: Pages) -> None:
        """Raises if values of any length are made of others, to be as long as all of them."""
        if DELTA_BYTE_ARRAY in pages.encodings:
            raise DataError(
                f"Column {name!r} is packed in an unusual way: got values that repeat the "
                "beginning of the one before, expected whole ones. Write it again without "
                "DELTA_BYTE_ARRAY."
            )

    def read(self) -> "pyarrow.Table":
        """Returns the columns."""
        with _reading(self._path, "Parquet", "lerobot"):
            table = self._file.read(columns=self._columns, use_threads=False)
            table.validate()
            if len(table) != self.rows and self._columns:
                raise self._contradiction(f"{len(table)} rows and {self.rows} in its metadata")
            return table

    def _contradiction(self, got: str) -> DataError:
        return DataError(
            f"`{os.fspath(self._path)}` contradicts itself: got {got}, expected as many. The file "
            "is damaged or hostile."
        )


def _width(column: "pyarrow.parquet.ColumnSchema") -> int:
    """Returns the bytes that a value of a column takes with the lists and structs around it.

    Each level of lists has an offset for it, which is copied once where pieces are put together,
    and all that may be missing has a flag. They cost nothing in the file.
    """
    levels = 8 * int(column.max_repetition_level) + int(column.max_definition_level)
    return max(8, int(column.length)) + levels


def column(name: str, values: "pyarrow.ChunkedArray", shape: tuple[int, ...]) -> Array:
    """Returns a column of numbers, or of lists of them, as an array of rows.

    Args:
        name: What messages call it.
        values: The column.
        shape: Of one row; () and (1,) for plain numbers.

    Raises:
        DataError: If rows have another length, or are missing or no numbers.
    """
    import pyarrow.compute

    rows, whole = len(values), values.combine_chunks()
    whole = getattr(whole, "storage", whole)  # of an extension type
    kind, depth, size = whole.type, 0, math.prod(shape)
    while _of_lists(kind):
        kind, depth = kind.value_type, depth + 1
    if depth == len(shape):
        expected = shape
    elif depth == 1 or (depth == 0 and size == 1):  # all numbers of a row in one list, or no list
        expected = (size,) * depth
    else:
        if not depth:
            _numbers(name, whole)  # which words are not, whatever their shape
        raise DataError(
            f"`{name}` has rows of another shape: got {whole.type!s:.80}, expected lists of "
            f"numbers, {shape} in each row."
        )
    lists = 1  # of this level in each row
    for length in expected:
        # Each of them: too long and too short ones may make up for each other in a sum.
        lengths = pyarrow.compute.list_value_length(whole)
        wrong = lengths.fill_null(-1).to_numpy(zero_copy_only=False) != length
        if wrong.any():
            at = int(np.argmax(wrong))
            got = lengths[at].as_py()
            raise DataError(
                f"`{name}` has rows of another length: got "
                f"{'no list' if got is None else f'a list of {got}'} where one of {length} belongs "
                f"at row {at // lists}, expected {shape} in each. Correct or remove the row."
            )
        lists, whole = lists * length, whole.flatten()
    return _numbers(name, whole).reshape(rows, *shape)


def _of_lists(kind: Any) -> bool:  # noqa: ANN401 - pyarrow has no types
    import pyarrow.types as kinds

    return bool(kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind))


def _numbers(name: str, values: Any) -> Array:  # noqa: ANN401 - pyarrow has no types
    import pyarrow
    import pyarrow.types as kinds

    kind = values.type
    if kinds.is_null(kind):
        return np.full(len(values), np.nan)
    if not (kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind)):
        at = next((i for i, v in enumerate(values) if v.is_valid), 0)
        raise DataError(
            f"Column {name!r} holds no numbers: got "
            f"{kind.value_type if kinds.is_dictionary(kind) else kind}, e.g. "
            f"{str(values[at])[:40]!r} at row {at}, expected numbers. Leave it out, or encode its "
            "words as numbers."
        )
    if values.null_count:  # an empty cell: NaN, which is found where it matters
        values = values.cast(pyarrow.float64())
    found: Array = (
        values.to_numpy(zero_copy_only=False)
        if isinstance(values, pyarrow.Array)
        else values.to_numpy()
    )
    return found
