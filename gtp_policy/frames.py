"""Images of a dataset: bytes that are stored once, and become numbers where they are sampled.

A table that held pixels as float32, in observations and next observations, would be eight times as
large as the images. It holds their numbers instead: one column for an image, its row in `frames`.
"""

import copy
import itertools
import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gtp_policy.dataset_builder import as_array
from gtp_policy.errors import DataError, EmptyDatasetError
from gtp_policy.shards import ShardedRows
from gtp_policy.spaces import ObservationLayout

# float32 holds every integer up to there.
MOST_FRAMES = 2**24


class FrameStore:
    """The images of a dataset, and how a row of the table becomes an observation.

    A row has, in the order of the layout, one number for each image and all numbers of other parts.

    Args:
        layout: Parts of an observation.
        frames: Images by key, uint8, shape (F, ...), in memory or in files; the key of a plain
            array is "".
        shift: As for `OfflineDataset.with_random_shift`.

    Example:
        >>> import torch
        >>> from gtp_policy import ObservationLayout
        >>> from gtp_policy.frames import FrameStore
        >>> layout = ObservationLayout({"camera": (1, 2), "speed": (1,)})
        >>> store = FrameStore(layout, {"camera": torch.tensor([[[7, 8]], [[9, 255]]]).byte()})
        >>> store.expand(torch.tensor([[1.0, 0.5]]))
        tensor([[  9.0000, 255.0000,   0.5000]])
    """

    def __init__(
        self,
        layout: ObservationLayout,
        frames: Mapping[str, Tensor | ShardedRows],
        shift: int = 0,
    ) -> None:
        self.layout, self.shift = layout, shift
        self.frames: dict[str, Tensor | ShardedRows] = dict(frames)
        self._widths = [
            1 if key in self.frames else math.prod(shape)
            for key, shape in zip(layout.keys or ("",), layout.shapes, strict=True)
        ]

    @property
    def columns(self) -> int:
        """S, numbers of a row for one observation."""
        return sum(self._widths)

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""
        return sum(frames.nbytes for frames in self.frames.values())

    def to(self, device: torch.device | str) -> Self:
        """Returns the same images on another device.

        Args:
            device: Target device.

        Returns:
            A store.
        """
        return self.replace({k: v.to(device) for k, v in self.frames.items()}, self.shift)

    def replace(self, frames: Mapping[str, Tensor | ShardedRows], shift: int) -> Self:
        """Returns a store with other images or another shift.

        Args:
            frames: As for the constructor.
            shift: As for the constructor.

        Returns:
            A store.
        """
        changed = copy.copy(self)
        changed.frames, changed.shift = dict(frames), shift
        return changed

    def spread(self, values: Tensor, of_pixels: float) -> Tensor:
        """Returns numbers by column as numbers by pixel.

        Args:
            values: Shape (m S,).
            of_pixels: What stands for every pixel.

        Returns:
            Shape (m O,).
        """
        pieces = torch.split(values, self._widths * (len(values) // self.columns))
        sizes = [math.prod(shape) for shape in self.layout.shapes]
        parts = zip(self.layout.keys or ("",), sizes, strict=True)
        named = itertools.cycle(list(parts))
        return torch.cat(
            [
                values.new_full((size,), of_pixels) if key in self.frames else piece
                for piece, (key, size) in zip(pieces, named, strict=False)
            ]
        )

    def expand(self, rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Returns observations with their pixels, from 0 to 255, on the device of the images.

        Args:
            rows: Columns of m observations each, shape (B, m S).
            generator: Source of random shifts; without one, images stay where they are.

        Returns:
            Shape (B, m O).
        """
        single = rows.reshape(-1, self.columns)
        parts = torch.split(single, self._widths, 1)
        found = []
        for key, part in zip(self.layout.keys or ("",), parts, strict=True):
            if key in self.frames:
                images = self.frames[key].index_select(0, part[:, 0].long())
                if self.shift and generator is not None:
                    images = self._shifted(images, len(rows), generator)
                part = images.reshape(len(single), -1).to(rows.dtype)
            found.append(part)
        return torch.cat(found, 1).view(len(rows), -1)

    def _shifted(self, images: Tensor, rows: int, generator: torch.Generator) -> Tensor:
        """Moves images by whole pixels, those of one history alike; edges are repeated."""
        channels_last = channels_are_last(tuple(images.shape[1:]))
        if not channels_last:
            images = images.movedim(1, -1)
        height, width = images.shape[1:3]
        moves = torch.randint(
            -self.shift,
            self.shift + 1,
            (rows, 2),
            generator=generator,
            device=images.device,
        ).repeat_interleave(len(images) // rows, 0)
        y = (torch.arange(height, device=images.device) + moves[:, :1]).clamp(0, height - 1)
        x = (torch.arange(width, device=images.device) + moves[:, 1:]).clamp(0, width - 1)
        row = torch.arange(len(images), device=images.device)[:, None, None]
        moved = images[row, y[:, :, None], x[:, None, :]]
        return moved if channels_last else moved.movedim(-1, 1)


def channels_are_last(shape: tuple[int, ...]) -> bool:
    """Returns where the channels of an image are: on its first or its last axis.

    Where two axes of a square picture stand together, on the other one, however many channels
    there are; otherwise on the shorter one.

    Args:
        shape: Of one image, three axes.

    Returns:
        True for (height, width, channels), also where all axes or both ends are of one length.

    Example:
        >>> from gtp_policy.frames import channels_are_last
        >>> channels_are_last((64, 64, 3)), channels_are_last((3, 64, 64))
        (True, False)
        >>> channels_are_last((8, 8, 12)), channels_are_last((12, 8, 8))
        (True, False)
    """
    first, middle, last = shape
    if first != last and middle in (first, last):
        return middle == first
    return last <= first


def is_image_shape(shape: tuple[int, ...], dtype: object) -> bool:
    """Returns whether parts of a shape and a type are stored as images.

    Args:
        shape: Of one.
        dtype: Of its numbers.

    Returns:
        True of uint8 with three axes.

    Example:
        >>> import numpy as np
        >>> from gtp_policy.frames import is_image_shape
        >>> is_image_shape((8, 8, 3), np.uint8), is_image_shape((8,), np.uint8)
        (True, False)
    """
    return dtype == np.uint8 and len(shape) == 3


def is_image(part: npt.NDArray[Any]) -> bool:
    """Returns whether a part of observations, shape (N, ...), is stored as images.

    Args:
        part: Rows of it.

    Returns:
        True of uint8 with three axes behind the first.

    Example:
        >>> import numpy as np
        >>> from gtp_policy.frames import is_image
        >>> is_image(np.zeros((2, 8, 8, 3), np.uint8)), is_image(np.zeros((2, 8, 8, 3)))
        (True, False)
    """
    return part.ndim == 4 and is_image_shape(part.shape[1:], part.dtype)


def pool(
    name: str, images: npt.NDArray[Any], following: npt.NDArray[Any] | None
) -> tuple[Tensor, npt.NDArray[np.intp], npt.NDArray[np.intp] | None]:
    """Copies images to one array, those that come twice but once.

    Args:
        name: What messages call them.
        images: Of observations in time order, shape (N, ...).
        following: Of next observations; where one is the next row's image, it is not kept again.

    Returns:
        The array, and for observations and next observations the rows in it.

    Raises:
        DataError: If the next ones are of another shape or type, or there are more than 2^24.

    Example:
        >>> import numpy as np
        >>> from gtp_policy.frames import pool
        >>> images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
        >>> frames, _, next_rows = pool("obs", images, np.roll(images, -1, 0))
        >>> len(frames), next_rows.tolist()
        (4, [1, 2, 3])
    """
    size = len(images)
    rows = np.arange(size)
    if following is None:
        _check_count(name, size)
        return torch.from_numpy(np.array(images)), rows, None
    if following.shape != images.shape or following.dtype != images.dtype:
        raise DataError(
            f"`next_{name}` is not like `{name}`: got {following.shape} of {following.dtype}, "
            f"expected {images.shape} of {images.dtype}."
        )
    same = np.zeros(size, np.bool_)
    step = max(1, 2**24 // max(images[:1].nbytes, 1))
    for start in range(0, size - 1, step):
        stop = min(start + step, size - 1)
        pair = images[start + 1 : stop + 1], following[start:stop]
        same[start:stop] = (pair[0] == pair[1]).reshape(stop - start, -1).all(1)
    more = np.flatnonzero(~same)
    _check_count(name, size + len(more))
    frames = np.empty((size + len(more), *images.shape[1:]), np.uint8)
    frames[:size] = images
    frames[size:] = following[more]
    next_rows = rows + 1
    next_rows[more] = size + np.arange(len(more))
    return torch.from_numpy(frames), rows, next_rows


def stored_columns(
    obs: npt.ArrayLike | Mapping[str, npt.ArrayLike],
    next_obs: npt.ArrayLike | Mapping[str, npt.ArrayLike] | None,
    source: str,
) -> tuple[
    npt.NDArray[np.generic],
    npt.NDArray[np.generic] | None,
    ObservationLayout,
    dict[str, Tensor],
]:
    """Returns observations of parts as columns of a table, and their images apart.

    Args:
        obs: One array of images, shape (N, ...), or parts by key.
        next_obs: Next observations, likewise; None where those of the next row are meant.
        source: Where they come from, for the message.

    Returns:
        Columns of observations and next observations, (N, S) each, the layout, and images by key.

    Raises:
        DataError: If the parts disagree in length, a part has no numbers, or next observations are
            not like observations.
        EmptyDatasetError: If there is no row.

    Example:
        >>> import numpy as np
        >>> from gtp_policy.frames import stored_columns
        >>> obs = {"camera": np.zeros((2, 8, 8, 3), np.uint8), "speed": [[0.5], [1.5]]}
        >>> stored_columns(obs, None, "here")[0].tolist()
        [[0.0, 0.5], [1.0, 1.5]]
    """
    parts = _parts("obs", obs)
    following = None if next_obs is None else _parts("next_obs", next_obs)
    if following is not None and set(following) != set(parts):
        raise DataError(
            f"`next_obs` has other parts: got {sorted(following)}, expected {sorted(parts)}."
        )
    size = len(next(iter(parts.values())))
    if not size:
        raise EmptyDatasetError(
            f"The dataset is empty: got 0 transitions from {source}, expected at least 1."
        )
    for name, found in (("obs", parts), ("next_obs", following or {})):
        for key, part in found.items():
            if len(part) != size or part.shape[1:] != parts[key].shape[1:]:
                raise DataError(
                    f"`{name}[{key!r}]` has the wrong shape: got {part.shape}, expected "
                    f"{(size, *parts[key].shape[1:])}."
                )
    shapes = {key: tuple(part.shape[1:]) for key, part in parts.items()}
    layout = (
        ObservationLayout.of_dict(shapes) if "" not in shapes else ObservationLayout(shapes[""])
    )
    columns: list[npt.NDArray[np.generic]] = []
    next_columns: list[npt.NDArray[np.generic]] = []
    frames: dict[str, Tensor] = {}
    for key in layout.keys or ("",):
        part, after = parts[key], None if following is None else following[key]
        if is_image(part):
            name = f"obs[{key!r}]" if key else "obs"
            frames[key], rows, next_rows = pool(name, part, after)
            part, after = rows[:, None], None if next_rows is None else next_rows[:, None]
        columns.append(part.reshape(size, -1))
        if after is not None:
            next_columns.append(after.reshape(size, -1))
    joined = np.concatenate([c.astype(np.float64, copy=False) for c in columns], 1)
    if following is None:
        return joined, None, layout, frames
    next_joined = np.concatenate([c.astype(np.float64, copy=False) for c in next_columns], 1)
    return joined, next_joined, layout, frames


def _parts(
    name: str, obs: npt.ArrayLike | Mapping[str, npt.ArrayLike]
) -> dict[str, npt.NDArray[np.generic]]:
    named = dict(obs) if isinstance(obs, Mapping) else {"": obs}
    if not named or (isinstance(obs, Mapping) and not all(isinstance(k, str) and k for k in named)):
        raise DataError(
            f"`{name}` has no parts: got keys {list(named)}, expected at least one name."
        )
    found = {}
    for key, values in named.items():
        found[key] = array = as_array(f"{name}[{key!r}]", values)
        if array.dtype.kind not in "fiub" or not array.ndim:
            raise DataError(
                f"`{name}[{key!r}]` holds no rows of numbers: got {array.dtype} of shape "
                f"{array.shape}, expected numbers, (N, ...)."
            )
    return found


def _check_count(name: str, count: int) -> None:
    if count > MOST_FRAMES:
        raise DataError(
            f"`{name}` has too many images: got {count}, expected at most {MOST_FRAMES}. Split the "
            "dataset."
        )
