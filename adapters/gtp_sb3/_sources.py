"""Every kind of data source: arrays, Minari, D4RL, SB3's replay buffers, read as a dataset."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from gtp_datasets import load_d4rl_hdf5, load_minari
from gtp_datasets import spaces as any_host
from gtp_datasets._hdf5 import check_expansion, table_bytes
from gtp_datasets._minari import Episodes, open_minari
from gtp_datasets.spaces import action_scaler_of, box_of, check_dataset
from gtp_policy import ObservationLayout, OfflineDataset
from gtp_policy.dataset_builder import as_array, as_flags
from gtp_policy.errors import DataError
from gtp_sb3._data import Array, Columns, Dataset, Frame, Observations, arrays_of, assemble
from gtp_sb3._spaces import channels_first, has_images, has_parts, layout_of, space_of

# The columns of a transition dict: the core's names, and those that D4RL made common.
_LONG = {
    "obs": "observations",
    "action": "actions",
    "reward": "rewards",
    "terminated": "terminals",
    "truncated": "timeouts",
    "next_obs": "next_observations",
}
# Files of data that are no D4RL files, and no ids of Minari either.
_FOREIGN = (".npy", ".npz", ".pkl", ".pickle", ".pt", ".pth", ".csv", ".json", ".zip")
_SHORT = {name: name for name in _LONG}


def named(dataset: object) -> bool:
    """Returns whether a dataset is given by its id or path."""
    return isinstance(dataset, str | os.PathLike)


def open_named(dataset: "str | os.PathLike[str]", gamma: float, frame: Frame | None) -> Any:  # noqa: ANN401
    """Opens the Minari dataset of an id, or loads the D4RL file at a path.

    Raises:
        DataError: If there is none, or the observations of a file are to be images.
    """
    suffix = Path(dataset).suffix.lower()
    if suffix in _FOREIGN:
        raise DataError(
            f"`dataset` names a file of another kind: got {str(dataset)!r}, expected a D4RL file "
            "(.hdf5) or the id of a Minari dataset. gtp_datasets.load_dataset reads other files; "
            "pass what it returns. Pickles are never read."
        )
    if isinstance(dataset, str) and suffix not in (".hdf5", ".h5"):
        return open_minari(dataset)
    if frame is None:
        return load_d4rl_hdf5(dataset, gamma=gamma)
    if has_images(frame.observation_space):
        raise DataError(
            f"A dataset of images cannot be a D4RL file: got {str(dataset)!r}, expected another "
            "kind. Pass a dict of arrays, or the id of a Minari dataset, so that images stay uint8."
        )
    return load_d4rl_hdf5(
        dataset,
        gamma=gamma,
        low=frame.scaler.low,
        high=frame.scaler.high,
        out_of_bounds=frame.out_of_bounds,
    )


def spaces_of(dataset: object) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """Returns the spaces that a dataset implies, for a model without an environment.

    Raises:
        DataError: If it does not say in which units its actions are.
    """
    if isinstance(dataset, OfflineDataset):
        space = space_of(dataset.layout, dataset.images)
        return channels_first(space), box_of(dataset.action_scaler)
    if isinstance(dataset, ReplayBuffer):
        return channels_first(dataset.observation_space), dataset.action_space
    if _is_minari(dataset):
        there: Any = dataset
        action_scaler_of(there.action_space)
        return channels_first(there.observation_space), there.action_space
    raise DataError(
        f"The bounds of the actions are unknown: got env=None and a {type(dataset).__name__}, "
        "expected an environment or a dataset that has them. Pass env=..., or make the dataset "
        "with OfflineDataset.from_arrays(..., low=..., high=...)."
    )


def layout_for(dataset: object, space: spaces.Space[Any]) -> ObservationLayout:
    """Returns the layout of a model: the dataset's, where it chose keys, or the space's."""
    if isinstance(dataset, OfflineDataset) and dataset.obs_keys:
        if has_parts(space, dataset.layout):
            return dataset.layout
    return layout_of(space)


def read(dataset: object, frame: Frame) -> Dataset:
    """Converts anything that holds transitions.

    Raises:
        DataError: If it is none of what is known, or does not fit the model.
    """
    found: Dataset
    if isinstance(dataset, str | os.PathLike):
        dataset = open_named(dataset, frame.gamma, frame)
    if isinstance(dataset, OfflineDataset):
        found = dataset.to(frame.device)
    elif isinstance(dataset, ReplayBuffer):
        found = _read_buffer(dataset, frame)
    elif _is_minari(dataset):
        found = _read_minari(dataset, frame)
    elif isinstance(dataset, Mapping):
        found = _read_arrays(dataset, frame)
    else:
        raise DataError(
            f"`dataset` is of no known kind: got {type(dataset).__name__}, expected an "
            "OfflineDataset, a dict of arrays, a MinariDataset or its id, the path of a D4RL file, "
            "or a ReplayBuffer of SB3."
        )
    check_dataset(found, frame.layout, frame.scaler, frame.gamma)
    return found


def _read_arrays(columns: Mapping[str, Any], frame: Frame) -> Dataset:
    names = _LONG if set(columns) & set(_LONG.values()) else _SHORT
    given = {short: columns[name] for short, name in names.items() if name in columns}
    missing = [names[k] for k in ("obs", "action", "terminated") if k not in given]
    unknown = [
        k for k in columns if k not in names.values() and not k.startswith(("infos", "metadata"))
    ]
    if missing or unknown:
        raise DataError(
            f"The columns do not fit: got {sorted(columns)}, expected {list(_SHORT)} or "
            f"{list(_LONG.values())}; missing {missing}, unknown {unknown}. Keep termination and "
            "truncation apart: `dones` mixes them."
        )
    next_obs = given.get("next_obs")
    if "truncated" not in given:
        if next_obs is None:
            raise DataError(
                f"`{names['truncated']}` is missing: got no `{names['next_obs']}` either, expected "
                "one of them. Nothing else shows where an episode was cut."
            )
        given["truncated"] = np.zeros(np.shape(given["terminated"]), np.bool_)
    return assemble(
        Columns(
            obs=arrays_of(names["obs"], given["obs"], frame.layout),
            next_obs=None
            if next_obs is None
            else arrays_of(names["next_obs"], next_obs, frame.layout),
            reward=as_array(names["reward"], given["reward"]) if "reward" in given else None,
            **{k: as_array(names[k], given[k]) for k in ("action", "terminated", "truncated")},
        ),
        frame,
        "arrays",
    )


def _read_buffer(buffer: ReplayBuffer, frame: Frame) -> Dataset:
    if isinstance(buffer, HerReplayBuffer | NStepReplayBuffer):
        does = "relabels goals" if isinstance(buffer, HerReplayBuffer) else "sums rewards"
        raise DataError(
            f"The replay buffer {does} when it is sampled: got a {type(buffer).__name__}, expected "
            "a ReplayBuffer or DictReplayBuffer. A dataset is taken as it is stored."
        )
    size, envs = buffer.size(), buffer.n_envs
    order = (np.arange(size) + (buffer.pos if buffer.full else 0)) % buffer.buffer_size
    overlapping = buffer.optimize_memory_usage
    if overlapping and buffer.full:
        order = order[1:]  # the observation after it has been overwritten
    # One environment after the other, each in time order.
    t, e = np.tile(order, envs), np.repeat(np.arange(envs), len(order))
    done, cut = buffer.dones[t, e] > 0, buffer.timeouts[t, e] > 0
    terminated = done & ~cut
    last = np.zeros(len(t), np.bool_)
    last[len(order) - 1 :: max(len(order), 1)] = True
    obs = arrays_of("observations", _pool(buffer.observations), frame.layout)
    following = (t + 1) % buffer.buffer_size if overlapping else t
    return assemble(
        Columns(
            obs=obs,
            next_obs=obs
            if overlapping
            else arrays_of("next_observations", _pool(buffer.next_observations), frame.layout),
            rows=t * envs + e,
            next_rows=following * envs + e,
            action=buffer.actions[t, e],
            reward=buffer.rewards[t, e],
            terminated=terminated,
            truncated=(done & cut) | (last & ~terminated),
        ),
        frame,
        f"SB3 {type(buffer).__name__}",
        unit_actions=True,  # as SB3 stores them
    )


def _pool(columns: Any) -> Observations:  # noqa: ANN401 - an array, or a dict of them
    """Returns arrays (steps, envs, ...) as (steps * envs, ...), without a copy."""
    if isinstance(columns, Mapping):
        return {k: v.reshape(-1, *v.shape[2:]) for k, v in columns.items()}
    flat: Array = columns.reshape(-1, *columns.shape[2:])
    return flat


def _is_minari(dataset: object) -> bool:
    return hasattr(dataset, "iterate_episodes") and hasattr(dataset, "observation_space")


def _read_minari(dataset: Any, frame: Frame) -> Dataset:  # noqa: ANN401 - Minari is optional
    layout = frame.layout
    if any_host.has_parts(dataset.observation_space, layout) and not has_images(
        frame.observation_space
    ):
        return load_minari(
            dataset,
            gamma=frame.gamma,
            obs_keys=layout.keys or None,
            out_of_bounds=frame.out_of_bounds,
            device=frame.device,
        )
    # Images stay as they are; discrete parts have a number, which SB3 makes a vector.
    pools: list[Any] = []
    columns: dict[str, list[Array]] = {
        k: [] for k in ("action", "reward", "terminated", "truncated", "rows")
    }
    start, found = 0, Episodes(dataset, layout.keys)
    width = 1 if has_images(frame.observation_space) else layout.obs_dim
    table = table_bytes(found.steps, width, frame.scaler.action_dim)
    check_expansion(found.declared + table, found.on_disk, dataset.id)
    for _, read in found:
        episode = read()
        reward = as_array("rewards", episode.rewards)
        obs = arrays_of("observations", episode.observations, layout)
        steps = len(next(iter(obs.values())) if isinstance(obs, Mapping) else obs) - 1
        ended = as_flags("terminations", episode.terminations, steps)
        cut = as_flags("truncations", episode.truncations, steps)
        if reward.shape != (steps,) or not steps or not (ended[-1] or cut[-1]):
            raise DataError(
                f"Episode {episode.id} of {dataset.id} is incomplete: got {steps + 1} observations "
                f"and rewards of shape {reward.shape}, expected one reward less and a flag at the "
                "end."
            )
        pools.append(obs)
        values = (as_array("actions", episode.actions), reward, ended, cut)
        for column, value in zip(columns.values(), values, strict=False):
            column.append(value)
        columns["rows"].append(np.arange(start, start + steps))
        start += steps + 1
    if not pools:
        raise DataError(f"{dataset.id} is empty: got 0 episodes, expected at least 1.")
    obs = (
        {k: np.concatenate([pool[k] for pool in pools]) for k in layout.keys}
        if layout.keys
        else np.concatenate(pools)
    )
    joined = {k: np.concatenate(v) for k, v in columns.items()}
    return assemble(
        Columns(obs=obs, next_obs=obs, next_rows=joined["rows"] + 1, **joined),
        frame,
        f"Minari {dataset.id}",
        copy_images=False,
    )
