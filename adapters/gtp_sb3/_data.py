"""Transitions to sample from: the core's table, or images that stay in their own type."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecTransposeImage
from torch import Tensor

from gtp_datasets.spaces import action_scaler_of
from gtp_policy import (
    ActionScaler,
    ObservationLayout,
    OfflineDataset,
    Transitions,
)
from gtp_policy.dataset_builder import OfflineDatasetBuilder, as_array
from gtp_policy.episodes import look_at
from gtp_policy.errors import DataError
from gtp_sb3._spaces import has_images

Array = npt.NDArray[Any]
Observations = Array | Mapping[str, Array]


class HostDataset:
    """Transitions whose observations stay in the host's memory in their own type: images.

    Args:
        index: The other columns; its observations and next ones are row numbers of the arrays.
        obs: All of them, one array or one per key, images with their channels first.
        layout: How an observation becomes one vector.
        device: Where minibatches go.
    """

    def __init__(
        self,
        index: OfflineDataset,
        obs: Observations,
        layout: ObservationLayout,
        device: torch.device,
    ) -> None:
        self._index, self._obs = index, obs
        self.layout, self.device = layout, device
        self.obs_dim, self.action_dim = layout.obs_dim, index.action_dim
        self.history, self.chunk = index.history, index.chunk
        self.terminated, self.truncated = index.terminated, index.truncated
        self.action_scaler, self.gamma, self.source = index.action_scaler, index.gamma, index.source
        self.has_rewards = index.has_rewards
        self.convert: Callable[[Any], Any] | None = None

    def __len__(self) -> int:
        """Returns N, the number of transitions."""
        return len(self._index)

    def sample(self, batch_size: int, *, generator: torch.Generator) -> Transitions:
        """Draws a minibatch uniformly with replacement."""
        return self._read(self._index.sample(batch_size, generator=generator))

    def rows(self, start: int, stop: int) -> Transitions:
        """Returns consecutive transitions."""
        return self._read(self._index.transitions.map(lambda column: column[start:stop]))

    @property
    def rewards(self) -> Tensor:
        """Returns what `OfflineDataset.rewards` is."""
        return self._index.rewards

    def with_reward_column(self, rewards: Tensor) -> Self:
        """Returns what `OfflineDataset.with_reward_column` does."""
        changed = copy.copy(self)
        changed._index = self._index.with_reward_column(rewards)
        changed.has_rewards = changed._index.has_rewards
        return changed

    def action_statistics(self) -> tuple[Tensor, Tensor]:
        """Returns what `OfflineDataset.action_statistics` does."""
        return self._index.action_statistics()

    def with_next_actions(self) -> Self:
        """Returns what `OfflineDataset.with_next_actions` does."""
        changed = copy.copy(self)
        changed._index = self._index.with_next_actions()
        changed.terminated, changed.truncated = changed._index.terminated, changed._index.truncated
        return changed

    def check_rewards(self, what: str, advice: str | None = None) -> None:
        """Does what `OfflineDataset.check_rewards` does."""
        self._index.check_rewards(what, advice)

    def with_steps(self, history: int, chunk: int) -> Self:
        """Returns what `OfflineDataset.with_steps` does."""
        changed = copy.copy(self)
        changed._index = index = self._index.with_steps(history, chunk)
        changed.history, changed.chunk = index.history, index.chunk
        changed.obs_dim, changed.action_dim = self.layout.obs_dim * index.history, index.action_dim
        return changed

    def action_std(self) -> float:
        """Returns what `OfflineDataset.action_std` does."""
        return self._index.action_std()

    def _read(self, batch: Transitions) -> Transitions:
        return batch._replace(obs=self._gather(batch.obs), next_obs=self._gather(batch.next_obs))

    def _gather(self, numbers: Tensor) -> Tensor:
        rows = numbers.flatten().long().cpu().numpy()  # m of them for each, with a history
        parts = _take(self._obs, rows)
        if self.convert is not None:
            parts = self.convert(parts)
        flat = torch.from_numpy(self.layout.flatten(parts))
        return flat.view(len(numbers), -1).to(self.device)


Dataset = OfflineDataset | HostDataset


@dataclass(frozen=True)
class Frame:
    """What a dataset is read for: spaces, layout, discount, device and choices of the model."""

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    layout: ObservationLayout
    gamma: float
    device: torch.device
    out_of_bounds: Literal["error", "clip"] = "error"

    @property
    def scaler(self) -> ActionScaler:
        """Bounds of the actions."""
        return action_scaler_of(self.action_space)


@dataclass(frozen=True)
class Columns:
    """Columns of transitions in time order.

    ``rows`` and ``next_rows`` say which observations are meant; default: all in order, and without
    ``next_obs`` the following ones.
    """

    obs: Observations
    next_obs: Observations | None
    action: Array
    reward: Array | None
    terminated: Array
    truncated: Array
    rows: Array | None = None
    next_rows: Array | None = None


def assemble(
    columns: Columns,
    frame: Frame,
    source: str,
    *,
    unit_actions: bool = False,
    copy_images: bool = True,
) -> Dataset:
    """Checks columns and puts them together.

    With ``unit_actions`` actions are in [-1, 1]. Without ``copy_images`` the arrays are nobody
    else's.
    """
    raw = has_images(frame.observation_space)
    if raw:
        _check_parts(columns)
        columns = _pooled(columns) if copy_images else columns
        obs, next_obs = _numbers(columns)
    else:
        obs, next_obs = _vectors(columns, frame.layout)
    scaler = frame.scaler
    if unit_actions:
        scaler = ActionScaler(-np.ones(scaler.action_dim), np.ones(scaler.action_dim))
    builder = OfflineDatasetBuilder(
        len(obs),
        obs_dim=obs.shape[1],
        action_scaler=scaler,
        gamma=frame.gamma,
        out_of_bounds=frame.out_of_bounds,
    )
    if not raw:
        look_at(builder, columns.obs, frame.layout)
    action = columns.action
    builder.extend(
        obs=obs,
        # A Box of any shape: what is not one row per transition fails the builder's check.
        action=action.reshape(len(action), -1) if action.size else action,
        reward=columns.reward,
        terminated=columns.terminated,
        truncated=columns.truncated,
        next_obs=next_obs,
    )
    table = OfflineDataset.from_builder(
        builder, device=frame.device, layout=None if raw else frame.layout, source=source
    )
    table.action_scaler = frame.scaler
    if not raw:
        return table
    return HostDataset(table, columns.obs, frame.layout, frame.device)


def _vectors(columns: Columns, layout: ObservationLayout) -> tuple[Array, Array | None]:
    with np.errstate(over="ignore"):  # what is infinite in float32 is found by the builder
        obs = layout.flatten(columns.obs)
        next_obs = None if columns.next_obs is None else layout.flatten(columns.next_obs)
    if columns.next_rows is not None and next_obs is not None:
        next_obs = next_obs[columns.next_rows]
    return (obs if columns.rows is None else obs[columns.rows]), next_obs


def _check_parts(columns: Columns) -> None:
    """Raises if what stays as it is holds what cannot be learned from, or does not go together."""
    for name, parts in (("obs", columns.obs), ("next_obs", columns.next_obs)):
        for key, part in parts.items() if isinstance(parts, Mapping) else ():
            if part.dtype.kind == "f" and not np.isfinite(part).all():
                row = int(np.argwhere(~np.isfinite(part))[0, 0])
                raise DataError(
                    f"`{name}[{key!r}]` is not finite: got {part[row]} at row {row}, expected "
                    "finite numbers. Remove or repair the episode."
                )
    count = _length(columns.obs)
    if columns.next_obs is None or columns.next_rows is not None:
        return
    if _length(columns.next_obs) != count:
        raise DataError(
            f"`next_obs` has the wrong length: got {_length(columns.next_obs)}, expected {count}."
        )


def _pooled(columns: Columns) -> Columns:
    """Copies the observations that are meant, those that come twice but once.

    What the caller does with its arrays afterwards is no change of the data.
    """
    rows = np.arange(_length(columns.obs)) if columns.rows is None else columns.rows
    if columns.next_obs is None:
        return replace(columns, obs=_take(columns.obs, rows), rows=None)
    next_rows = rows if columns.next_rows is None else columns.next_rows
    size, obs, after = len(rows), _by_key(columns.obs), _by_key(columns.next_obs)
    step = max(1, 2**24 // max(1, *(part[:1].nbytes for part in obs.values())))
    same = np.zeros(size, np.bool_)
    for start in range(0, size - 1, step):
        stop = min(start + step, size - 1)
        here, ahead = next_rows[start:stop], rows[start + 1 : stop + 1]
        equal = (after[key][here] == part[ahead] for key, part in obs.items())
        same[start:stop] = np.all([e.reshape(stop - start, -1).all(1) for e in equal], 0)
    more = np.flatnonzero(~same)
    found = {}
    for key, part in obs.items():
        kind = np.result_type(part, after[key])
        found[key] = pool = np.empty((size + len(more), *part.shape[1:]), kind)
        pieces = (pool[:size], part, rows), (pool[size:], after[key], next_rows[more])
        for own, source, meant in pieces:
            for start in range(0, len(meant), step):
                own[start : start + step] = source[meant[start : start + step]]
    following = np.arange(1, size + 1)
    following[more] = size + np.arange(len(more))
    kept: Observations = found if isinstance(columns.obs, Mapping) else found[""]
    return replace(columns, obs=kept, next_obs=kept, rows=np.arange(size), next_rows=following)


def _by_key(obs: Observations) -> Mapping[str, Array]:
    return obs if isinstance(obs, Mapping) else {"": obs}


def _take(obs: Observations, rows: Array) -> Observations:
    return {k: v[rows] for k, v in obs.items()} if isinstance(obs, Mapping) else obs[rows]


def _numbers(columns: Columns) -> tuple[Array, Array | None]:
    """Returns row numbers instead of observations."""
    count = _length(columns.obs)
    if count > 2**24:
        raise DataError(
            f"Too many images: got {count}, expected at most 2^24. Split the dataset."
        )  # float32 holds all integers up to there
    rows = np.arange(count) if columns.rows is None else columns.rows
    following = None if columns.next_rows is None else columns.next_rows[:, None]
    return rows[:, None], following


def _length(obs: Observations) -> int:
    return len(next(iter(obs.values())) if isinstance(obs, Mapping) else obs)


def arrays_of(name: str, values: Any, layout: ObservationLayout) -> Observations:  # noqa: ANN401
    """Returns observations as arrays of a layout's shapes, images with their channels first.

    Raises:
        DataError: If a key is missing, or an array has another shape or no numbers.
    """
    if not layout.keys:
        return _shaped(name, as_array(name, values), layout.shapes[0])
    if not isinstance(values, Mapping) or any(key not in values for key in layout.keys):
        got = sorted(values) if isinstance(values, Mapping) else type(values).__name__
        raise DataError(
            f"`{name}` has other keys: got {got}, expected {list(layout.keys)}, those of the "
            "observation space."
        )
    found = {
        key: _shaped(f"{name}[{key!r}]", as_array(f"{name}[{key!r}]", values[key]), shape)
        for key, shape in zip(layout.keys, layout.shapes, strict=True)
    }
    lengths = {key: len(part) for key, part in found.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"`{name}` has parts of several lengths: got {lengths}, expected one.")
    return found


def _shaped(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    if array.dtype.kind not in "fiub":
        raise DataError(f"`{name}` has the wrong dtype: got {array.dtype}, expected numbers.")
    if array.shape[1:] == shape:
        return array
    if array.ndim == 4 and len(shape) == 3:
        turned: Array = VecTransposeImage.transpose_image(array)
        if turned.shape[1:] == shape:
            return turned
    if array.ndim == 1 and shape == (1,):  # of a Discrete space
        return array[:, None]
    raise DataError(
        f"`{name}` has the wrong shape: got {array.shape}, expected one row of shape {shape} per "
        "transition."
    )


def replace_columns(dataset: OfflineDataset, **columns: Tensor) -> OfflineDataset:
    """Returns a table with some columns replaced; of a dataset without images."""
    rows = dataset.transitions._replace(**columns)
    return OfflineDataset(
        torch.cat([part.view(len(dataset), -1) for part in rows.in_rows()], 1),
        layout=dataset.layout,
        terminated=dataset.terminated,
        truncated=dataset.truncated,
        action_scaler=dataset.action_scaler,
        gamma=dataset.gamma,
        source=dataset.source,
        n_step=dataset.n_step,
        has_rewards=dataset.has_rewards,
        history=dataset.history,
        chunk=dataset.chunk,
        ends=dataset.ends,
    )
