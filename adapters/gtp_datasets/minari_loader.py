"""Minari datasets: every episode checked, flattened and written to its place in one table."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch

from gtp_datasets._hdf5 import check_expansion, table_bytes
from gtp_datasets._minari import Episode, Episodes, open_minari
from gtp_datasets.scores import ReferenceScores
from gtp_datasets.spaces import action_scaler_of, layout_of
from gtp_policy import ActionScaler, ObservationLayout, OfflineDataset
from gtp_policy.dataset_builder import OfflineDatasetBuilder, as_array, as_flags
from gtp_policy.episodes import scaler_of
from gtp_policy.errors import DataError, UnsupportedSpaceError
from gtp_policy.frames import MOST_FRAMES, is_image_shape
from gtp_policy.shards import (
    ShardedRows,
    ShardWriter,
    builders_write,
    check_parts,
    images_column,
)

if TYPE_CHECKING:
    from gymnasium import Space
    from minari import MinariDataset


def load_minari(
    dataset_or_id: "MinariDataset | str",
    *,
    gamma: float = 0.99,
    obs_keys: Sequence[str] | None = None,
    low: npt.ArrayLike | None = None,
    high: npt.ArrayLike | None = None,
    out_of_bounds: Literal["error", "clip"] = "error",
    unbounded: Literal["error", "data"] = "error",
    on_bad_episode: Literal["error", "skip"] = "error",
    unflagged_end: Literal["error", "truncate"] = "error",
    device: torch.device | str = "cpu",
) -> OfflineDataset:
    """Converts a Minari dataset on this machine; builds no environment and downloads nothing.

    ``terminations`` become ``terminated`` and stop bootstrapping, ``truncations`` become
    ``truncated`` and only end the episode. A Box observation is flattened in C order; a Dict
    observation by ``obs_keys``, which the result remembers as its ``obs_keys``. Images (uint8,
    three axes) stay bytes, each of an episode once.

    Args:
        dataset_or_id: A ``MinariDataset``, possibly filtered or split, or the id of a local one.
        gamma: Discount factor, in [0, 1].
        obs_keys: Keys of a Dict observation in the order to flatten them; others are left out.
            Default: `ObservationLayout.GOAL_KEYS`, if these are its keys.
        low: Lower bounds of the actions, of their shape or a scalar, instead of the space's.
        high: Upper bounds of the actions, likewise, instead of the space's.
        out_of_bounds: Whether actions outside the bounds raise or are clipped.
        unbounded: Whether a dimension without finite bounds raises, or takes the limits of the
            data, with a warning; the actions are then read twice.
        on_bad_episode: Whether an episode that fails a check raises, or is left out; a warning
            and the dataset's ``source`` then say how many were.
        unflagged_end: Whether an episode that ends with neither flag fails, or counts as truncated.
        device: Where the table lives.

    Returns:
        The dataset, actions scaled to [-1, 1].

    Raises:
        DataError: If there is no such dataset, or it cannot be read, or an episode is bad (wrong
            lengths, NaN, actions outside the bounds, a flag before its end, no flag at its end).
            The message names episode, field and row, counted from the start of the episode.
        EmptyDatasetError: If no transition is left.
        UnsupportedSpaceError: If the observation is neither a Box nor a Dict of Boxes, or the
            action no bounded Box. A Box of any shape is flattened in C order.
        MissingDependencyError: If Minari is not installed.

    Example:
        >>> import os, tempfile, warnings
        >>> from unittest.mock import patch
        >>> import minari, numpy as np
        >>> from gymnasium.spaces import Box
        >>> from minari.data_collector import EpisodeBuffer
        >>> from gtp_datasets import load_minari
        >>> episode = EpisodeBuffer(observations=np.zeros((4, 2)), actions=np.zeros((3, 1)),
        ...                         rewards=[0, 0, 1], terminations=[0, 0, 1], truncations=[0] * 3)
        >>> with (tempfile.TemporaryDirectory() as root, warnings.catch_warnings(),
        ...       patch.dict(os.environ, MINARI_DATASETS_PATH=root)):
        ...     warnings.simplefilter("ignore")  # Minari wants an author and a description
        ...     _ = minari.create_dataset_from_buffers("toy/line-v0", [episode],
        ...                                            observation_space=Box(-9, 9, (2,)),
        ...                                            action_space=Box(-1, 1, (1,)))
        ...     load_minari("toy/line-v0")
        OfflineDataset('Minari toy/line-v0', 3 transitions, obs_dim=2, action_dim=1, gamma=0.99,
                       device='cpu')
    """
    for name, value, known in (
        ("on_bad_episode", on_bad_episode, ("error", "skip")),
        ("unflagged_end", unflagged_end, ("error", "truncate")),
    ):
        if not isinstance(value, str) or value not in known:
            raise DataError(
                f"`{name}` is unknown: got {value!r}, expected {known[0]!r} or {known[1]!r}."
            )
    dataset = open_minari(dataset_or_id)
    layout = _obs_layout(dataset.observation_space, obs_keys)
    if builders_write():
        check_parts(layout.keys, layout.shapes)
    episodes = Episodes(dataset, layout.keys)
    scaler = _scaler(dataset, episodes, low, high, unbounded)
    frames = _Frames(dataset.observation_space, layout, episodes.steps, dataset.total_episodes)
    table = table_bytes(episodes.steps, frames.columns, scaler.action_dim)
    needed = episodes.declared + table + frames.nbytes
    check_expansion(needed, episodes.on_disk, dataset.id)
    builder = OfflineDatasetBuilder(
        episodes.steps,
        obs_dim=frames.columns,
        action_scaler=scaler,
        gamma=gamma,
        out_of_bounds=out_of_bounds,
    )
    frames.allocate(builder.writer)
    shape = dataset.action_space.shape or ()
    skipped: list[str] = []
    for number, read in episodes:
        try:
            _append(builder, read(), layout, shape, unflagged_end, frames)
        except DataError as error:
            message = f"Episode {number} of {dataset.id}: {error}"
            if on_bad_episode == "error":
                raise DataError(f"{message} Or pass on_bad_episode='skip'.") from error
            skipped.append(message)
    source = f"Minari {dataset.id}"
    if skipped:
        note = f"{len(skipped)} of {dataset.total_episodes} episodes left out"
        source += f" ({note})"
        warnings.warn(f"{note}. First: {skipped[0]}", stacklevel=2)
    return OfflineDataset.from_builder(
        builder, device=device, layout=layout, source=source, frames=frames.stored()
    )


def minari_reference(dataset_or_id: "MinariDataset | str") -> ReferenceScores:
    """Reads the reference scores that a Minari dataset carries in its metadata.

    Args:
        dataset_or_id: A ``MinariDataset``, or the id of a local one.

    Returns:
        Returns of the reference policies, with the dataset's id as their source.

    Raises:
        DataError: If there is no such dataset, or it carries no usable scores.
        MissingDependencyError: If Minari is not installed.

    Example:
        >>> import os, tempfile
        >>> from unittest.mock import patch
        >>> from gtp_datasets import minari_reference
        >>> with (tempfile.TemporaryDirectory() as root,
        ...       patch.dict(os.environ, MINARI_DATASETS_PATH=root)):
        ...     minari_reference("toy/none-v0")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        gtp_policy.errors.DataError: Minari dataset 'toy/none-v0' is not on this machine: got no ...
    """
    dataset = open_minari(dataset_or_id)
    metadata = dataset.storage.metadata
    low, high = (metadata.get(key) for key in ("ref_min_score", "ref_max_score"))
    if low is None or high is None:
        raise DataError(
            f"{dataset.id} has no reference scores: got ref_min_score={low}, ref_max_score={high}, "
            "expected two numbers. Pass custom ReferenceScores."
        )
    return ReferenceScores(low, high, f"metadata of Minari {dataset.id}")


def _scaler(
    dataset: "MinariDataset",
    episodes: Episodes,
    low: npt.ArrayLike | None,
    high: npt.ArrayLike | None,
    unbounded: Literal["error", "data"],
) -> ActionScaler:
    from gymnasium.spaces import Box

    space = dataset.action_space
    if unbounded == "error" or not isinstance(space, Box):
        advice = "Pass low= and high= to load_minari, or unbounded='data'."
        return action_scaler_of(space, low, high, advice=advice)

    def actions() -> Iterator[npt.NDArray[Any]]:
        for _, read in episodes:
            with contextlib.suppress(DataError):  # raised, or left out, when it is appended
                action = as_array("actions", read().actions)
                if action.shape[1:] == space.shape and action.dtype.kind in "fiu":
                    yield action

    return scaler_of(
        actions(),
        space.low if low is None else low,
        space.high if high is None else high,
        unbounded,
    )


def _append(
    builder: OfflineDatasetBuilder,
    episode: Episode,
    layout: ObservationLayout,
    shape: tuple[int, ...],
    unflagged_end: Literal["error", "truncate"],
    frames: "_Frames",
) -> None:
    reward = as_array("rewards", episode.rewards)
    steps = len(reward) if reward.ndim else 0
    if not steps:
        raise DataError(f"`rewards` is empty: got shape {reward.shape}, expected (T,), T >= 1.")
    flags = {
        "terminations": as_flags("terminations", episode.terminations, steps),
        "truncations": as_flags("truncations", episode.truncations, steps),
    }
    for name, flag in flags.items():
        early = np.flatnonzero(flag[:-1])
        if len(early):
            raise DataError(
                f"`{name}` is set before the end: got True at row {early[0]} of {steps}, expected "
                "it at the last row only. Split the episode there."
            )
    if not (flags["terminations"][-1] or flags["truncations"][-1]):
        if unflagged_end == "error":
            raise DataError(
                f"`terminations` and `truncations` leave the end open: got False twice at row "
                f"{steps - 1}, the last, expected one of them True. Pass unflagged_end='truncate' "
                "if the episode was cut there."
            )
        flags["truncations"] = np.arange(steps) == steps - 1
    parts = _parts(episode.observations, layout, steps + 1)
    obs = frames.columns_of(parts)
    action = as_array("actions", episode.actions)
    if len(shape) != 1 and action.shape[1:] == shape:
        action = action.reshape(len(action), -1)
    builder.append(
        obs=obs[:-1],
        action=action,
        reward=reward,
        next_obs=obs[1:],
        terminated=flags["terminations"],
        truncated=flags["truncations"],
        rows=np.arange(steps),
    )
    frames.keep(parts)


class _Frames:
    """The images of a dataset while it is read; those of an episode that is left out are not kept.

    Args:
        space: The observation space.
        layout: The parts of it that are read.
        steps: Transitions of all episodes.
        episodes: Their number.

    Attributes:
        columns: Numbers that the table has for an observation.

    Raises:
        DataError: If there are more images than a table can number.
    """

    def __init__(
        self, space: "Space[Any]", layout: ObservationLayout, steps: int, episodes: int
    ) -> None:
        keys = layout.keys or ("",)
        boxes: Any = space
        self._keys, self._shapes, self.columns, self._kept = keys, layout.shapes, 0, 0
        self._sizes: dict[str, tuple[int, ...]] = {}
        self._arrays: dict[str, npt.NDArray[np.uint8]] = {}
        self._writer: ShardWriter | None = None
        for key, shape in zip(keys, layout.shapes, strict=True):
            if is_image_shape(shape, (boxes[key] if key else boxes).dtype):
                self._sizes[key] = (steps + episodes, *shape)
                self.columns += 1
            else:
                self.columns += math.prod(shape)
        if self._sizes and steps + episodes > MOST_FRAMES:
            raise DataError(
                f"There are too many images: got {steps + episodes}, expected at most "
                f"{MOST_FRAMES}. Take a part of the dataset."
            )

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""
        return sum(math.prod(size) for size in self._sizes.values())

    def allocate(self, writer: ShardWriter | None) -> None:
        """Takes the memory, once its size has been checked, unless images go to files."""
        self._writer = writer
        if writer is None:
            self._arrays = {key: np.empty(size, np.uint8) for key, size in self._sizes.items()}

    def columns_of(self, parts: Sequence[npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
        """Returns an episode's observations with numbers instead of images."""
        found: list[npt.NDArray[Any]] = []
        for key, part in zip(self._keys, parts, strict=True):
            if key in self._sizes:
                if part.dtype != np.uint8:
                    raise DataError(
                        f"`observations` are no images: got {part.dtype} for {key!r}, expected "
                        "uint8 as the space says."
                    )
                found.append((self._kept + np.arange(len(part), dtype=np.float64))[:, None])
            else:
                found.append(part.reshape(len(part), -1))
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def keep(self, parts: Sequence[npt.NDArray[np.generic]]) -> None:
        """Copies the images of an episode that was taken, or writes them."""
        if not self._sizes:
            return
        stop = self._kept + len(parts[0])
        named = dict(zip(self._keys, parts, strict=True))
        for i, key in enumerate(self._sizes):
            if self._writer is not None:
                self._writer.add(images_column(i), named[key])
            else:
                self._arrays[key][self._kept : stop] = named[key]
        self._kept = stop

    def stored(self) -> "Mapping[str, torch.Tensor | ShardedRows]":
        """Returns the images by key, in memory or in files."""
        if self._writer is not None and self._kept:
            return {k: self._writer.rows(images_column(i)) for i, k in enumerate(self._sizes)}
        return {k: torch.from_numpy(array[: self._kept]) for k, array in self._arrays.items()}


def _parts(
    observations: npt.ArrayLike | Mapping[str, npt.ArrayLike],
    layout: ObservationLayout,
    rows: int,
) -> list[npt.NDArray[np.generic]]:
    parts = []
    for key, shape in zip(layout.keys or (None,), layout.shapes, strict=True):
        name = "observations" if key is None else f"observations[{key!r}]"
        value = observations
        if key is not None:
            # Minari decodes by the space, so that a Dict space always gives a dict.
            group = cast("Mapping[str, npt.ArrayLike]", observations)
            if key not in group:
                raise DataError(f"`{name}` is missing: got {sorted(group)}, expected {key!r}.")
            value = group[key]
        part = as_array(name, cast("npt.ArrayLike", value))
        if part.shape != (rows, *shape):
            raise DataError(
                f"`{name}` has the wrong shape: got {part.shape}, expected {(rows, *shape)}, one "
                f"row more than the {rows - 1} rewards."
            )
        parts.append(part)
    return parts


def _obs_layout(space: "Space[Any]", obs_keys: Sequence[str] | None) -> ObservationLayout:
    from gymnasium.spaces import Dict

    if isinstance(space, Dict) and obs_keys is None:
        if set(space.spaces) != set(ObservationLayout.GOAL_KEYS):
            raise UnsupportedSpaceError(
                f"The observation has custom keys: got {sorted(space.spaces)}, expected "
                f"{list(ObservationLayout.GOAL_KEYS)}. Pass obs_keys= in the order to flatten them."
            )
        obs_keys = ObservationLayout.GOAL_KEYS
    if obs_keys is not None and not obs_keys:
        raise UnsupportedSpaceError("`obs_keys` is empty: got no key, expected at least one.")
    return layout_of(space, obs_keys)
