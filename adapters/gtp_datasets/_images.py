"""Images from untrusted sources: JPEG and PNG alone, decoded after a look at their header."""

import io

import numpy as np
import numpy.typing as npt

from gtp_policy.errors import DataError

# Minari writes JPEG. Pillow alone would take any format that it knows, and start programs for some.
_FORMATS = ("JPEG", "PNG")
_PNG = b"\x89PNG\r\n\x1a\n"
# Of a PNG, what its pixels are made of. Its texts and profiles are packed a thousand to one, and
# Pillow unpacks them on opening.
_PIXELS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))


def decoded(data: bytes, shape: tuple[int, ...], name: str) -> npt.NDArray[np.uint8]:
    """Returns an image of a shape that is known.

    Args:
        data: The file.
        shape: What it has to have: rows, columns and, of more than one, bands.
        name: What messages call it.

    Raises:
        DataError: If it is no such image.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(_bare(data)), formats=_FORMATS) as image:
            bands = len(image.getbands())
            if (image.height, image.width, *([bands] if bands > 1 else [])) != shape[:3]:
                raise ValueError(f"{image.mode} of {image.height} x {image.width}")
            return np.asarray(image, np.uint8)
    except Exception as error:  # whatever a foreign file makes Pillow raise
        raise DataError(
            f"`{name}` is no image: got {type(error).__name__} ({error}), expected "
            f"{' or '.join(_FORMATS)} of shape {shape}."
        ) from error


def _bare(data: bytes) -> bytes:
    """Returns a PNG without what is no part of its pixels, and anything else as it is."""
    if not data.startswith(_PNG):
        return data
    parts, at = [_PNG], len(_PNG)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")  # length, kind, content, check
        if data[at + 4 : at + 8] in _PIXELS:
            parts.append(data[at:end])
        at = end
    return b"".join(parts)
