"""Between Tianshou's replay buffers and the core's datasets, both ways."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from tianshou.data import Batch, ReplayBuffer
from tianshou.data.types import RolloutBatchProtocol

from gtp_datasets import load_d4rl_hdf5, load_minari
from gtp_datasets.spaces import layout_of
from gtp_policy import ActionScaler, ObservationLayout, OfflineDataset, Transitions
from gtp_policy.dataset_builder import OfflineDatasetBuilder, as_array, as_flags
from gtp_policy.episodes import look_at
from gtp_policy.errors import DataError, EmptyDatasetError, ShapeError
from gtp_tianshou._spaces import action_scaler_of, plain

if TYPE_CHECKING:
    from minari import MinariDataset

_FLAGS = ("terminated", "truncated", "done")
_CHUNK_BYTES = 2 * 2**20  # what reading a buffer needs on top of its result
_MOST_DRAWS = 100  # for one minibatch


class TransitionTable:
    """A dataset with the two methods that Tianshou's trainer calls on a buffer.

    A minibatch is one gather on the device, and a function of seed and update alone.
    """

    def __init__(self, dataset: OfflineDataset, stream: Callable[[str], torch.Generator]) -> None:
        self.dataset, self._stream = dataset, stream

    def __len__(self) -> int:
        return len(self.dataset)

    def sample(self, batch_size: int | None) -> tuple[Transitions, npt.NDArray[np.intp]]:
        """Draws a minibatch; 0 and None mean everything, as in Tianshou. Indices are not kept."""
        generator = self._stream("batch")
        dataset = self.on(generator.device)
        if not batch_size:
            return dataset.transitions, np.arange(len(dataset))
        return dataset.sample(batch_size, generator=generator), np.empty(0, np.intp)

    def on(self, device: torch.device) -> OfflineDataset:
        """Returns the dataset on a device, where it stays: the algorithm may have moved."""
        if self.dataset.device != device:
            self.dataset = self.dataset.to(device)
        return self.dataset


class Undrawn:
    """A dataset for an update that draws its minibatch itself: what is sampled is not looked at."""

    def __init__(self, dataset: OfflineDataset) -> None:
        self.dataset = dataset

    def sample(self, batch_size: int | None) -> tuple[Transitions, npt.NDArray[np.intp]]:
        """Returns the whole table, which costs nothing."""
        del batch_size
        return self.dataset.transitions, np.empty(0, np.intp)


class WithoutCuts:
    """A buffer that keeps no ``obs_next``, sampled without the rows that have none.

    The last row of an episode that was cut shows its own observation as the next one, and would
    bootstrap from it. What Tianshou's algorithms do with a buffer besides reaches the buffer.
    """

    def __init__(self, buffer: ReplayBuffer) -> None:
        self._buffer = buffer

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a buffer has
        return getattr(self._buffer, name)

    def sample(self, batch_size: int | None) -> tuple[RolloutBatchProtocol, npt.NDArray[np.intp]]:
        """Draws a minibatch, and for each row without a next observation another one."""
        wanted, parts, rows = batch_size, [], []
        for _ in range(_MOST_DRAWS):
            batch, drawn = self._buffer.sample(wanted)
            keep = has_next(self._buffer, drawn, np.asarray(batch.terminated))
            if hasattr(self._buffer, "update_weight") and not keep.all():
                # Rows that are never learned from would keep the highest priority.
                left_out = drawn[~keep]
                self._buffer.update_weight(left_out, np.zeros(len(left_out)))
            if keep.any():
                parts.append(batch[keep])
                rows.append(drawn[keep])
            if not batch_size:
                break
            wanted = batch_size - sum(map(len, rows))
            if wanted == 0:
                break
        if not parts or (batch_size and wanted):
            raise EmptyDatasetError(
                "The buffer has too few transitions with a next observation: got "
                f"{sum(map(len, rows))} in {_MOST_DRAWS} minibatches, expected {batch_size or 1}. "
                "With ignore_obs_next=True the last one of an episode that was cut has none: fill "
                "a buffer without it."
            )
        return cast("RolloutBatchProtocol", Batch.cat(parts)), np.concatenate(rows)


def has_next(
    buffer: ReplayBuffer, rows: npt.NDArray[np.intp], terminated: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Returns which rows of a buffer without ``obs_next`` need none, or have one in the next."""
    found: npt.NDArray[np.bool_] = terminated.astype(bool) | (buffer.next(rows) != rows)
    return found


def dataset_from_buffer(
    buffer: ReplayBuffer,
    *,
    action_space: gym.Space[Any],
    observation_space: gym.Space[Any] | None = None,
    layout: ObservationLayout | None = None,
    gamma: float = 0.99,
    out_of_bounds: Literal["error", "clip"] = "error",
    device: torch.device | str = "cpu",
) -> OfflineDataset:
    """Reads all of a Tianshou buffer, in time order, into one table on one device.

    ``terminated`` stops bootstrapping; ``truncated``, ``done`` without it and the end of an
    unfinished episode only end the episode.
    A buffer that keeps no ``obs_next`` loses the last transition of each episode that was cut:
    what came after is stored nowhere.

    Args:
        buffer: Actions in [-1, 1], as Tianshou's collectors store them.
        action_space: The environment's; the dataset remembers its bounds.
        observation_space: The environment's; default: vectors.
        layout: As for `GTPPolicy`.
        gamma: Discount factor, in [0, 1].
        out_of_bounds: Whether actions outside [-1, 1] raise, or are clipped as a collector clips
            the raw actions of a Gaussian policy.
        device: Where to put the table.

    Returns:
        The dataset.

    Raises:
        DataError: If an action lies outside [-1, 1], or a number is not finite, or a field has the
            wrong shape; names field and row.
        EmptyDatasetError: If there is no transition.
        ShapeError: If actions have another shape than the action space.
        UnsupportedSpaceError: If a space does not fit.

    Example:
        >>> import numpy as np
        >>> from gymnasium.spaces import Box
        >>> from tianshou.data import Batch, ReplayBuffer
        >>> from gtp_tianshou import dataset_from_buffer
        >>> buffer = ReplayBuffer(3)
        >>> for done in (False, False, True):
        ...     _ = buffer.add(Batch(obs=np.zeros(2), act=np.zeros(1), rew=1.0, terminated=done,
        ...                          truncated=False, obs_next=np.ones(2), info={}))
        >>> dataset_from_buffer(buffer, action_space=Box(-2, 2, (1,))).transitions.discount
        tensor([0.9900, 0.9900, 0.0000])
    """
    scaler = action_scaler_of(action_space)
    if not len(buffer):
        raise EmptyDatasetError("The buffer is empty: got 0 transitions, expected at least 1.")
    rows = buffer.sample_indices(0)
    ended, cut, done = (as_flags(f, getattr(buffer, f)[rows], len(rows)) for f in _FLAGS)
    # By `done` a buffer's own `next` goes: columns given to `from_data` may set it alone.
    cut = cut | (done | np.isin(rows, buffer.unfinished_index())) & ~ended
    if buffer.options["ignore_obs_next"]:
        keep = has_next(buffer, rows, ended)
        # The row before one that is left out now ends its episode.
        cut |= np.append(~keep[1:], False) & ~ended
        rows, ended, cut = rows[keep], ended[keep], cut[keep]
    if layout is None and observation_space is not None:
        layout = layout_of(observation_space)
    builder = OfflineDatasetBuilder(
        len(rows),
        obs_dim=(layout := layout or _layout_in(buffer)).obs_dim,
        action_scaler=ActionScaler([-1.0] * scaler.action_dim, [1.0] * scaler.action_dim),
        gamma=gamma,
        out_of_bounds="clip",
    )
    step = max(1, _CHUNK_BYTES // (8 * builder.table.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        batch = buffer[rows[part]]
        obs = layout.flatten(plain(batch.obs))
        look_at(builder, plain(batch.obs), layout)
        action = action_rows(batch.act, action_space)
        if out_of_bounds != "clip":
            check_bounds(action, rows[part])
        builder.append(
            obs=obs,
            action=action,
            reward=batch.rew,
            next_obs=layout.flatten(plain(batch.obs_next)),
            terminated=ended[part],
            truncated=cut[part],
            rows=rows[part],
        )
    dataset = OfflineDataset.from_builder(
        builder, layout=layout, device=device, source="Tianshou buffer"
    )
    dataset.action_scaler = scaler
    return dataset


def buffer_from_dataset(
    dataset: OfflineDataset, *, seed: int = 0, unflatten: bool = False
) -> ReplayBuffer:
    """Puts a dataset into a stock buffer, for any of Tianshou's algorithms.

    Actions are in [-1, 1], as collectors store them; flags are bool, and ``done`` is either of
    them; ``next`` and ``prev`` stop at the episodes' ends. The buffer has memory of its own, and
    may go on with what is collected.

    Args:
        dataset: The data.
        seed: Seed of the buffer's sampling. Without one, Tianshou seeds every buffer alike.
        unflatten: Whether observations get their own shape or keys back, for algorithms whose
            networks expect them. Default: vectors.

    Returns:
        A full buffer.

    Raises:
        DataError: If there are no rewards, or they are sums of several steps, as of
            `OfflineDataset.with_n_step`.

    Example:
        >>> from gtp_policy import OfflineDataset
        >>> from gtp_tianshou import buffer_from_dataset
        >>> dataset = OfflineDataset.from_arrays(
        ...     obs=[[0.0], [1.0]], action=[[2.0], [-2.0]], reward=[0.0, 1.0], terminated=[0, 1],
        ...     truncated=[0, 0], low=[-2.0], high=[2.0])
        >>> buffer = buffer_from_dataset(dataset)
        >>> buffer.act.tolist(), buffer.done.tolist(), buffer.next([0, 1]).tolist()
        ([[1.0], [-1.0]], [False, True], [1, 1])
    """
    dataset.check_one_step("A buffer of Tianshou's")
    dataset.check_rewards(
        "A buffer of Tianshou's",
        "Clone from the dataset itself, GTP.from_buffer(dataset, ..., "
        "config=GTPConfig(critic=None)); or load data with rewards.",
    )
    if dataset.history > 1:
        raise DataError(
            f"A buffer of Tianshou's holds single observations: got history={dataset.history}, "
            "expected 1. Take the dataset that with_history was called on."
        )
    # Copies: a buffer that goes on collecting writes over its oldest rows.
    rows = [column.to("cpu", copy=True).numpy() for column in dataset.transitions.present()]
    obs, action, reward, next_obs = rows[:4]
    terminated, truncated = dataset.terminated.copy(), dataset.truncated.copy()
    buffer = ReplayBuffer(len(dataset), random_seed=seed)
    buffer.set_batch(
        cast(
            "RolloutBatchProtocol",
            Batch(
                obs=dataset.layout.unflatten(obs) if unflatten else obs,
                act=action,
                rew=reward.astype(np.float64),
                terminated=terminated,
                truncated=truncated,
                done=terminated | truncated,
                obs_next=dataset.layout.unflatten(next_obs) if unflatten else next_obs,
            ),
        )
    )
    buffer._size = len(dataset)
    buffer.last_index = np.array([len(dataset) - 1])  # else `next` takes row 0 for the last one
    return buffer


def buffer_from_minari(
    dataset_or_id: "MinariDataset | str",
    *,
    seed: int = 0,
    unflatten: bool = False,
    **options: Any,  # noqa: ANN401 - those of another function
) -> ReplayBuffer:
    """Puts a Minari dataset on this machine into a Tianshou buffer; downloads nothing.

    Args:
        dataset_or_id: A ``MinariDataset``, or the id of a local one.
        seed: As for `buffer_from_dataset`.
        unflatten: As for `buffer_from_dataset`: a Dict observation is one vector by default, in
            the order of the dataset's ``layout``.
        **options: Options of `gtp_datasets.load_minari`: ``obs_keys``, ``low``, ``high``,
            ``out_of_bounds``, ``on_bad_episode``, ``unflagged_end``.

    Returns:
        A full buffer, actions in [-1, 1].

    Raises:
        DataError: If the dataset is missing or unreadable, or something in it is wrong.
        UnsupportedSpaceError: If a space does not fit.
        MissingDependencyError: If Minari is not installed.

    Example:
        >>> from gtp_tianshou import buffer_from_minari
        >>> buffer_from_minari("missing/nothing-v0")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        gtp_policy.errors.DataError: Minari dataset 'missing/nothing-v0' is not on this machine: ...
    """
    return buffer_from_dataset(
        load_minari(dataset_or_id, **options), seed=seed, unflatten=unflatten
    )


def buffer_from_d4rl(
    path: str | os.PathLike[str],
    *,
    seed: int = 0,
    **options: Any,  # noqa: ANN401 - those of another function
) -> ReplayBuffer:
    """Puts a D4RL HDF5 file into a Tianshou buffer, time limits and terminations kept apart.

    Args:
        path: The file.
        seed: As for `buffer_from_dataset`.
        **options: Options of `gtp_datasets.load_d4rl_hdf5`: ``next_obs``, ``low``, ``high``,
            ``out_of_bounds``.

    Returns:
        A full buffer, actions in [-1, 1].

    Raises:
        DataError: If the file is missing or unreadable, or something in it is wrong.
        UnsupportedSpaceError: If the bounds do not fit.
        MissingDependencyError: If h5py is not installed.

    Example:
        >>> from gtp_tianshou import buffer_from_d4rl
        >>> buffer_from_d4rl("nothing.hdf5")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        gtp_policy.errors.DataError: ...
    """
    return buffer_from_dataset(load_d4rl_hdf5(path, **options), seed=seed)


def _layout_in(buffer: ReplayBuffer) -> ObservationLayout:
    """Returns the layout that the buffer's observations show."""
    obs = plain(buffer.obs)
    if isinstance(obs, dict):
        return ObservationLayout.of_dict({key: part.shape[1:] for key, part in obs.items()})
    return ObservationLayout(obs.shape[1:])


def action_rows(act: Any, space: gym.Space[Any]) -> npt.NDArray[np.generic]:  # noqa: ANN401
    """Returns buffered actions as vectors; raises where as many numbers stand in another order."""
    action = as_array("act", act)
    # Axes of length 1 change no order, and vectors are what `buffer_from_dataset` stores.
    got, expected = ([n for n in shape or () if n > 1] for shape in (action.shape[1:], space.shape))
    if len(got) > 1 and got != expected:
        raise ShapeError(
            f"`act` has the wrong shape: got {action.shape[1:]}, expected {space.shape} as the "
            "action space has it, or a vector. Transpose the actions, or correct the space."
        )
    return action.reshape(len(action), -1)


def check_bounds(action: npt.NDArray[np.generic], rows: npt.NDArray[np.intp]) -> None:
    """Raises where a buffered action lies outside [-1, 1]; not part of the public API."""
    outside = np.abs(action) > 1 + 1e-5
    if outside.any():
        row, dim = np.argwhere(outside)[0]
        raise DataError(
            f"`act` lies outside [-1, 1]: got {action[row, dim]} in row {rows[row]}, dimension "
            f"{dim}, expected actions as a collector stores them. Those of an environment go "
            "through policy.map_action_inverse first; for raw actions that a collector has "
            "clipped, pass out_of_bounds='clip'."
        )
