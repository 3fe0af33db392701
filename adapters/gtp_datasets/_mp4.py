"""How many samples an mp4 file says that it has, compared with its size before FFmpeg opens it.

FFmpeg makes an entry of its index for each sample, some seventy bytes, and again for each part of
an edit list that shows it. Where samples have one size, or the default of their fragment, a few
bytes say how many there are.

References:
    | ISO/IEC 14496-12, ISO base media file format: stsz 8.7.3.2, trun 8.8.8, elst 8.6.6
    | QuickTime file format, compressed movie resources: cmov
"""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

_PIECE = 2**20
# Bytes behind a name that are looked at.
_BEHIND = 12
_MOST_BOXES = 2**16


def check_index(file: BinaryIO) -> None:
    r"""Raises if a file says that it has more samples than bytes, or says it in a packed form.

    Names are looked for in every byte that is no sample, whatever box it seems to be in: readers
    differ in which boxes they look into.

    Args:
        file: The open file, at any place; is left at its start.

    Raises:
        ValueError: If its samples are too many, or where they are stands in a packed box.

    Example:
        >>> import io
        >>> from gtp_datasets._mp4 import check_index
        >>> check_index(io.BytesIO(b"\0\0\0\x14stsz" + bytes(8) + b"\0\0\xff\xff"))
        Traceback (most recent call last):
        ...
        ValueError: 65535 samples in 20 bytes
    """
    size = file.seek(0, os.SEEK_END)
    samples = edits = 0
    for start, end in _without_samples(file, size):
        for name, behind in _named(file, start, end):
            first, second, third = struct.unpack(">3I", behind)
            if name == b"cmov" and behind[4:8] == b"dcom":
                raise ValueError("an index that is packed")
            if name == b"stsz":  # flags, the size of each, how many
                samples += third
            elif name == b"trun" and not first >> 24 > 1:  # flags, how many
                samples += second
            elif name == b"elst" and not first >> 24 > 1:
                edits += second
        if samples > size or edits * samples > size:
            parts = f", shown in {edits} parts," if edits * samples > size >= samples else ""
            raise ValueError(f"{samples} samples{parts} in {size} bytes")
    file.seek(0)


def _without_samples(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Yields from where to where there is something else than samples, box by box."""
    at = 0
    for _ in range(_MOST_BOXES):
        if size - at < 8:
            return
        file.seek(at)
        length, name = struct.unpack(">I4s", file.read(8))
        if length == 1 and size - at >= 16:
            (length,) = struct.unpack(">Q", file.read(8))
        end = size if not length else min(at + length, size)
        if end < at + 8:
            raise ValueError(f"a box of {length} bytes")
        if name != b"mdat":
            yield at, end
        at = end
    raise ValueError(f"more than {_MOST_BOXES} boxes")


def _named(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields the names that count, with the bytes behind each."""
    for at in range(start, end, _PIECE):
        file.seek(at)
        data = file.read(min(_PIECE + 4 + _BEHIND, end - at))
        for name in (b"stsz", b"trun", b"elst", b"cmov"):
            found = data.find(name)
            while 0 <= found < _PIECE:
                behind = data[found + 4 : found + 4 + _BEHIND]
                if len(behind) == _BEHIND:
                    yield name, behind
                found = data.find(name, found + 1)
