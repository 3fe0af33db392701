"""The wire format of protocol buffers, in which ONNX files are written: a reader with bounds.

Nothing is copied: parts are views into the file. Nothing is trusted: a length never reaches beyond
the part that it stands in, a number has at most ten bytes.

References:
    | Protocol Buffers, Encoding, https://protobuf.dev/programming-guides/encoding/
"""

import struct
from collections.abc import Iterator

from gtp_runtime.errors import PolicyFileError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
Value = int | memoryview
_LIMIT = 1 << 64


def unreadable(got: str) -> PolicyFileError:
    """Returns the error of a file that is none.

    Args:
        got: What was found.

    Returns:
        The error, to be raised.

    Example:
        >>> from gtp_runtime.wire import unreadable
        >>> unreadable("an empty file")
        PolicyFileError('The policy file cannot be read: got an empty file, expected an ONNX model \
that gtp_policy.export wrote.')
    """
    return PolicyFileError(
        f"The policy file cannot be read: got {got}, expected an ONNX model that "
        "gtp_policy.export wrote."
    )


def fields(view: memoryview) -> Iterator[tuple[int, int, Value]]:
    """Yields the fields of a message in their order.

    Args:
        view: The message, as bytes.

    Yields:
        Number, wire type and value: an integer below 2^64 of `VARINT`, else the bytes.

    Raises:
        PolicyFileError: If the bytes are no message.

    Example:
        >>> from gtp_runtime.wire import fields
        >>> [(n, w, v if isinstance(v, int) else bytes(v))
        ...  for n, w, v in fields(memoryview(bytes([0x08, 0x96, 0x01, 0x12, 0x02, 0x68, 0x69])))]
        [(1, 0, 150), (2, 2, b'hi')]
    """
    at, end = 0, len(view)
    while at < end:
        key, at = varint(view, at)
        number, kind = key >> 3, key & 7
        if not 0 < number < 1 << 29:
            raise unreadable(f"a field with the number {number}")
        if kind == VARINT:
            value, at = varint(view, at)
            yield number, kind, value
            continue
        if kind == BYTES:
            length, at = varint(view, at)
        elif kind == FIXED32:
            length = 4
        elif kind == FIXED64:
            length = 8
        else:
            raise unreadable(f"a field of wire type {kind}")
        if length > end - at:
            raise unreadable(f"{end - at} bytes where {length} are announced")
        yield number, kind, view[at : at + length]
        at += length


def varint(view: memoryview, at: int) -> tuple[int, int]:
    """Reads a number of one to ten bytes.

    Args:
        view: The bytes.
        at: Where the number starts.

    Returns:
        The number, below 2^64, and where the next thing starts.

    Raises:
        PolicyFileError: If the bytes end within it, or it is longer.

    Example:
        >>> from gtp_runtime.wire import varint
        >>> varint(memoryview(bytes([0x96, 0x01])), 0)
        (150, 2)
    """
    value = shift = 0
    for byte in view[at : at + 10]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= _LIMIT:
                break
            return value, at
        shift += 7
    raise unreadable("a number without an end")


def signed(value: int) -> int:
    """Returns the signed number that 64 bits stand for.

    Args:
        value: The bits as a number below 2^64.

    Returns:
        The number, at least -2^63.

    Example:
        >>> from gtp_runtime.wire import signed
        >>> signed(2**64 - 1)
        -1
    """
    return value - _LIMIT if value >= _LIMIT >> 1 else value


def integers(kind: int, value: Value, limit: int) -> list[int]:
    """Reads one entry of a repeated integer field, packed or not.

    Args:
        kind: Wire type.
        value: As `fields` yields it.
        limit: Largest number of integers.

    Returns:
        The integers, signed.

    Raises:
        PolicyFileError: If the type is another, or there are more.

    Example:
        >>> from gtp_runtime.wire import BYTES, integers
        >>> integers(BYTES, memoryview(bytes([3, 4])), 8)
        [3, 4]
    """
    if isinstance(value, int):
        return [signed(value)]
    if kind != BYTES:
        raise unreadable(f"integers of wire type {kind}")
    result: list[int] = []
    at = 0
    while at < len(value):
        if len(result) >= limit:
            raise unreadable(f"more than {limit} integers in one field")
        number, at = varint(value, at)
        result.append(signed(number))
    return result


def floats(kind: int, value: Value) -> list[float]:
    """Reads one entry of a repeated float field, packed or not.

    Args:
        kind: Wire type.
        value: As `fields` yields it.

    Returns:
        The numbers.

    Raises:
        PolicyFileError: If the type or the length is another.

    Example:
        >>> import struct
        >>> from gtp_runtime.wire import BYTES, floats
        >>> floats(BYTES, memoryview(struct.pack("<2f", 0.5, 2.0)))
        [0.5, 2.0]
    """
    if isinstance(value, int) or kind not in (FIXED32, BYTES) or len(value) % 4:
        raise unreadable(f"floats of wire type {kind}")
    return list(struct.unpack(f"<{len(value) // 4}f", value))


def text(kind: int, value: Value) -> str:
    """Reads a string.

    Args:
        kind: Wire type.
        value: As `fields` yields it.

    Returns:
        The string.

    Raises:
        PolicyFileError: If it is none.

    Example:
        >>> from gtp_runtime.wire import BYTES, text
        >>> text(BYTES, memoryview(b"obs"))
        'obs'
    """
    try:
        return str(message(kind, value), "utf-8")
    except UnicodeDecodeError as error:
        raise unreadable("a string that is not UTF-8") from error


def number(kind: int, value: Value) -> int:
    """Reads a signed integer.

    Args:
        kind: Wire type.
        value: As `fields` yields it.

    Returns:
        The integer.

    Raises:
        PolicyFileError: If it is none.

    Example:
        >>> from gtp_runtime.wire import VARINT, number
        >>> number(VARINT, 7)
        7
    """
    if kind != VARINT or not isinstance(value, int):
        raise unreadable(f"an integer of wire type {kind}")
    return signed(value)


def message(kind: int, value: Value) -> memoryview:
    """Reads an embedded message, or bytes.

    Args:
        kind: Wire type.
        value: As `fields` yields it.

    Returns:
        The bytes.

    Raises:
        PolicyFileError: If it is none.

    Example:
        >>> from gtp_runtime.wire import BYTES, message
        >>> bytes(message(BYTES, memoryview(b"abc")))
        b'abc'
    """
    if kind != BYTES or isinstance(value, int):
        raise unreadable(f"a message of wire type {kind}")
    return value
