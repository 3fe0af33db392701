"""The properties of an ONNX file, read without the model that they stand beside.

Protocol buffers as the libraries read them become one object of a hundred bytes for every two bytes
of a file: here nothing is built, and parts that are not asked for are not even read.

References:
    | Protocol Buffers, Encoding, https://protobuf.dev/programming-guides/encoding/
"""

import os
from collections.abc import Iterator
from typing import BinaryIO

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Fields of ONNX's ModelProto, and of its StringStringEntryProto.
_GRAPH, _PROPERTY = 7, 14
_KEY, _VALUE = 1, 2
# A model has ten fields, and a property two; some have a thousand functions.
_MOST_FIELDS = 2**14


def read_property(file: BinaryIO, key: str) -> bytes | None:
    r"""Returns a property of a model.

    Args:
        file: An ONNX file, seekable, at its start.
        key: Of the property.

    Returns:
        Its value; None if there is no such property.

    Raises:
        ValueError: If it is no model, or says the property twice.

    Example:
        >>> import io
        >>> from gtp_policy.export.properties import read_property
        >>> model = b"\x3a\x00" + b"\x72\x06" + b"\x0a\x01a" + b"\x12\x01b"
        >>> read_property(io.BytesIO(model), "a"), read_property(io.BytesIO(model), "c")
        (b'b', None)
    """
    found: list[bytes] = []
    graphs = 0
    for number, length in _fields(file, file.seek(0, os.SEEK_END), start=0):
        graphs += number == _GRAPH
        if number == _PROPERTY:
            start = file.tell()
            entry = {
                n: file.read(size)
                for n, size in _fields(file, start + length, start)
                if n in (_KEY, _VALUE)
            }
            if entry.get(_KEY, b"") == key.encode():
                found.append(entry.get(_VALUE, b""))
    if graphs != 1 or len(found) > 1:
        raise ValueError(f"{graphs} graphs and {len(found)} properties `{key}` instead of one")
    return found[0] if found else None


def _fields(file: BinaryIO, end: int, start: int) -> Iterator[tuple[int, int]]:
    """Yields number and length of every part that is bytes, with the file at its first one."""
    file.seek(start)
    for _ in range(_MOST_FIELDS):
        if file.tell() == end:
            return
        number, kind = divmod(_varint(file), 8)
        if kind == _VARINT:
            _varint(file)
            length = 0
        elif kind == _BYTES:
            length = _varint(file)
        else:
            length = {_FIXED32: 4, _FIXED64: 8}.get(kind, end)
        after = file.tell() + length
        if not number or after > end:
            raise ValueError(f"a part {number} of type {kind} that is none, or is cut off")
        if kind == _BYTES:
            yield number, length
        file.seek(after)
    raise ValueError(f"more than {_MOST_FIELDS} parts")


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a number without an end")
