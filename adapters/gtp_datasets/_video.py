"""Frames of videos from untrusted sources, by PyAV: of one container, of a size that is known.

FFmpeg opens the container that is named here and nothing else: no playlist, no other file, no
address.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gtp_datasets._mp4 import check_index
from gtp_policy.errors import DataError, GTPError, MissingDependencyError, how_to_install


class Clip(NamedTuple):
    """The frames of one episode in a video.

    Attributes:
        start: When the first one is shown, in seconds.
        into: Where they go, uint8, shape (T, H, W, 3).
    """

    start: float
    into: npt.NDArray[np.uint8]


def read_clips(path: Path, clips: Sequence[Clip], fps: float) -> None:
    """Decodes a video once and puts the frames of every episode in their place.

    Args:
        path: An mp4 file.
        clips: The episodes in it.
        fps: Frames per second.

    Raises:
        DataError: If it cannot be decoded, or its frames have another size, rate or number.
        MissingDependencyError: If PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError(
            f"Videos need PyAV: got `{error}`. {how_to_install('lerobot')}"
        ) from error
    shown = os.fspath(path)
    if not os.path.isfile(shown):  # also where it is no name
        raise DataError(f"`{shown}` is no video: got no such file, expected an mp4 file.")
    wanted: dict[int, list[npt.NDArray[np.uint8]]] = {}
    for clip in clips:
        first = round(clip.start * fps)
        for i, image in enumerate(clip.into):
            wanted.setdefault(first + i, []).append(image)
    left = set(wanted)
    try:
        with open(path, "rb") as file:
            check_index(file)
            # From the opening on: FFmpeg decodes the first frames to see what they are.
            bound = _bound(clips)
            with av.open(file, "r", format="mp4", options=bound) as container:
                stream = container.streams.video[0]
                stream.thread_type = "NONE"
                for clip in clips:
                    _check_size(stream, clip.into.shape[1:], shown)
                stream.codec_context.options = bound
                for frame in container.decode(stream):
                    number = _number(frame, fps, shown)
                    for image in wanted.get(number, ()):
                        _check_size(frame, image.shape, shown)
                        image[...] = frame.to_ndarray(format="rgb24")
                    left.discard(number)
                    if not left:
                        break
    except GTPError:
        raise
    except Exception as error:  # whatever FFmpeg says of a foreign file
        if isinstance(error, MemoryError) and not isinstance(error, av.error.FFmpegError):
            raise
        raise DataError(
            f"`{shown}` cannot be decoded: got {type(error).__name__} ({error}), expected an mp4 "
            "file. Download it again."
        ) from error
    if left:
        raise DataError(
            f"`{shown}` has too few frames: got none at {min(left) / fps:.3f} s ({len(left)} are "
            f"missing), expected {fps:g} per second. Download it again."
        )


def _bound(clips: Sequence[Clip]) -> dict[str, str]:
    """Returns what keeps FFmpeg from decoding frames of another size, whatever a header says.

    A frame of a size that nobody asked for is some kilobytes in the file, and as large as it likes
    in the memory.
    """
    # Codecs work in whole blocks, of up to 128 pixels.
    most = max((clip.into.shape[1] + 128) * (clip.into.shape[2] + 128) for clip in clips)
    return {"max_pixels": str(most)}


def _check_size(of: Any, wanted: Sequence[int], shown: str) -> None:  # noqa: ANN401 - PyAV's
    if (of.height, of.width) != tuple(wanted[:2]):
        raise DataError(
            f"`{shown}` has frames of another size: got {of.height} x {of.width}, expected "
            f"{wanted[0]} x {wanted[1]}."
        )


def _number(frame: Any, fps: float, shown: str) -> int:  # noqa: ANN401 - PyAV's
    """Returns which frame it is by its time, which must be that of a steady rate."""
    time = frame.time
    if time is None or abs(time * fps - round(time * fps)) > 0.25:
        raise DataError(
            f"`{shown}` has frames at odd times: got {time} s, expected a multiple of 1/{fps:g} s."
        )
    return round(time * fps)
