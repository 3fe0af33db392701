"""What the pages of a Parquet file announce: the counts that a reader goes by, in their headers.

The metadata at the end of a file repeat them in sums, and nobody compares the two: a page of a
billion values reads as such, whatever the sums say.

References:
    | Apache Parquet, parquet.thrift, https://github.com/apache/parquet-format
    | Apache Thrift, compact protocol, https://github.com/apache/thrift/tree/master/doc/specs
"""

from typing import Any, BinaryIO, NamedTuple

# Numbers of types and of an encoding, as the two formats have them.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64 = 1, 2, 3, 4, 5, 6
_DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 7, 8, 9, 10, 12
DELTA_BYTE_ARRAY = 7
_DICTIONARY = 7  # the field of a page's header, which has one of three
# A header is some 20 bytes, and some kilobytes with the least and the largest value of its page.
_LONGEST_HEADER = 2**16
_WINDOW, _USUAL_HEADER = 2**13, 2**9
_DEEPEST = 8
_LARGEST = 2**31 - 1


class Pages(NamedTuple):
    """The pages of a column, all together.

    Attributes:
        values: How many values, or places of lists, there are in them.
        shared: How many of them are of a dictionary, which values are numbers of.
        size: Bytes that they unpack to.
        encodings: How they are written, by Parquet's numbers.
        pages: How many there are.
    """

    values: int
    shared: int
    size: int
    encodings: frozenset[int]
    pages: int


def pages_of(file: BinaryIO, start: int, length: int, most: int) -> Pages:
    """Reads the headers of pages, one after the other.

    Args:
        file: The open file.
        start: Where the first page begins.
        length: Bytes of all pages with their headers.
        most: How many pages there may be: each takes its time, and may have a few bytes alone.

    Returns:
        The sums.

    Raises:
        ValueError: If there is something else there, or there are more pages.
    """
    values = shared = size = count = 0
    encodings = set()
    at, end = start, start + length
    window, begins = b"", start  # bytes of the file, and where
    while at < end:
        count += 1
        if count > most:
            raise ValueError(f"more than {most} pages in {length} bytes")
        if begins + len(window) - at < min(_USUAL_HEADER, end - at):
            window, begins = _read(file, at, min(_WINDOW, end - at)), at
        try:
            header, after = _struct(window, at - begins, 0)
        except ValueError:  # it may be longer than what was read
            window, begins = _read(file, at, min(_LONGEST_HEADER, end - at)), at
            header, after = _struct(window, 0, 0)
        unpacked, packed = (_number(header, field) for field in (2, 3))
        size += unpacked
        if not any((kind, _STRUCT) in header for kind in (5, _DICTIONARY, 8)):
            raise ValueError("a page that does not say what is in it")
        for kind, encoding in (
            (5, 2),
            (_DICTIONARY, 2),
            (8, 4),
        ):  # of data, of a dictionary, of data anew
            inside = header.get((kind, _STRUCT))
            if inside is not None:
                values += _number(inside, 1)
                shared += _number(inside, 1) if kind == _DICTIONARY else 0
                encodings.add(_number(inside, encoding))
        at = begins + after + packed
    if at != end:
        raise ValueError("pages that reach beyond their column")
    return Pages(values, shared, size, frozenset(encodings), count)


def _read(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)


def _number(fields: dict[tuple[int, int], Any], field: int) -> int:
    found = fields.get((field, _I32))
    if not isinstance(found, int) or not 0 <= found <= _LARGEST:
        raise ValueError(f"a page whose field {field} is {found}")
    return found


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[tuple[int, int], Any], int]:
    """Returns what stands in a struct by field and type, and where it ends.

    By both, as Thrift's own readers pass over a field of another type than they expect.
    """
    if depth > _DEEPEST:
        raise ValueError("structs too deep in each other")
    found: dict[tuple[int, int], Any] = {}
    field = 0
    while True:
        head, at = _byte(data, at)
        if not head:
            return found, at
        kind = head & 15
        if head >> 4:
            field += head >> 4
        else:
            number, at = _varint(data, at)
            field = _signed(number)
        if kind in (_TRUE, _FALSE):  # the type is the value
            continue
        found[field, kind], at = _value(data, at, kind, depth)


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (_I16, _I32, _I64):
        number, at = _varint(data, at)
        return _signed(number), at
    if kind == _STRUCT:
        return _struct(data, at, depth + 1)
    if kind in (_LIST, _SET):
        head, at = _byte(data, at)
        count = head >> 4
        if count == 15:
            count, at = _varint(data, at)
        if count > len(data):
            raise ValueError(f"a list of {count} in a header")
        for _ in range(count):
            _, at = _value(data, at, head & 15, depth + 1)
        return None, at
    if kind == _BINARY:
        length, at = _varint(data, at)
    else:
        lengths = {_TRUE: 1, _FALSE: 1, _BYTE: 1, _DOUBLE: 8}  # flags of a list are bytes
        if kind not in lengths:
            raise ValueError(f"a header with the type {kind}")
        length = lengths[kind]
    if length > len(data) - at:
        raise ValueError("a header that is not whole")
    return None, at + length


def _byte(data: bytes, at: int) -> tuple[int, int]:
    if at >= len(data):
        raise ValueError("a header that is not whole")
    return data[at], at + 1


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte, at = _byte(data, at)
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number without an end")


def _signed(number: int) -> int:
    return (number >> 1) ^ -(number & 1)
