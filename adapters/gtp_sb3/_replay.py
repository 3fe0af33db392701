"""SB3's replay buffers: minibatches of them, and a dataset as the beginning of one."""

import hashlib
import warnings
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from gtp_policy import ObservationLayout, OfflineDataset, Transitions
from gtp_policy.errors import DataError
from gtp_sb3._data import Dataset

_CHUNK = 4096  # rows that are converted at a time


def check_plain(buffer_class: type[ReplayBuffer] | None, n_steps: int) -> None:
    """Raises if a replay buffer would make other samples of the data than a dataset does.

    Raises:
        DataError: If so.
    """
    buffer_class = buffer_class or ReplayBuffer
    if n_steps > 1 or issubclass(buffer_class, HerReplayBuffer | NStepReplayBuffer):
        raise DataError(
            f"A dataset is learned from as it is: got n_steps={n_steps} and "
            f"{buffer_class.__name__}, expected n_steps=1 and no buffer that sums rewards or "
            "relabels goals. Pass dataset.with_n_step(n) for sums of rewards; goals are relabelled "
            "online alone."
        )


def sample(
    buffer: ReplayBuffer,
    batch_size: int,
    wrapper: VecNormalize | None,
    gamma: float,
    layout: ObservationLayout,
) -> Transitions:
    """Draws a minibatch as SB3 does, n-step returns and relabelled goals included."""
    data = buffer.sample(batch_size, env=wrapper)
    discount = gamma if data.discounts is None else data.discounts[:, 0]
    return Transitions(
        obs=layout.flatten(data.observations),
        # Scaling to the Box and back may leave [-1, 1] by a rounding error.
        action=data.actions.float().clamp(-1.0, 1.0),
        reward=data.rewards[:, 0].float(),
        next_obs=layout.flatten(data.next_observations),
        discount=(discount * (1 - data.dones[:, 0])).float(),
    )


def fill_(buffer: ReplayBuffer, dataset: Dataset) -> int:
    """Adds the newest transitions of a dataset to a buffer, as if they had been collected.

    Those that it was given before, and still holds, are not added again. What was added is noted
    in the buffer, so that copies and files of it know. Warns if it holds others.

    Returns:
        How many were added: as many as fit, and a multiple of the number of environments.

    Raises:
        DataError: If the buffer cannot hold such transitions.
    """
    _check(buffer, dataset)
    notes: set[str] = buffer.__dict__.setdefault("gtp_given", set())
    digest = _digest(dataset)
    if not buffer.size():
        notes.clear()
    elif digest in notes:
        return 0
    else:
        warnings.warn(
            f"The replay buffer holds {buffer.size() * buffer.n_envs} transitions: got "
            f"keep_data=True, which adds those of the dataset to them. Where they are in it "
            "already, leave keep_data out; to begin with the dataset alone, set "
            "model.replay_buffer = None first.",
            stacklevel=4,
        )
    notes.add(digest)
    envs = buffer.n_envs
    steps = min(len(dataset) // envs, buffer.buffer_size)
    first = len(dataset) - steps * envs
    ends = dataset.terminated | dataset.truncated
    # Environment e gets the e-th of as many consecutive stretches; where one stops, it was cut.
    starts = first + steps * np.arange(envs)
    for begin in range(0, steps, _CHUNK):
        stop = min(begin + _CHUNK, steps)
        columns = [_host(dataset, _rows(dataset, s + begin, s + stop)) for s in starts.tolist()]
        for i in range(stop - begin):
            at = starts + begin + i
            terminated = dataset.terminated[at]
            done = ends[at] | (begin + i == steps - 1)
            buffer.add(
                _stack([c["obs"] for c in columns], i),
                _stack([c["next_obs"] for c in columns], i),
                np.stack([c["action"][i] for c in columns]),
                np.stack([c["reward"][i] for c in columns]),
                done,
                [
                    {"TimeLimit.truncated": bool(d and not t)}
                    for d, t in zip(done, terminated, strict=True)
                ],
            )
    return steps * envs


def _check(buffer: ReplayBuffer, dataset: Dataset) -> None:
    if isinstance(dataset, OfflineDataset):
        dataset.check_one_step("A replay buffer")
    dataset.check_rewards("A replay buffer", "Give `reward` with the data.")
    space = buffer.observation_space
    keys = set(space.spaces) if isinstance(space, spaces.Dict) else set()
    if buffer.optimize_memory_usage:
        raise DataError(
            "A memory-optimised replay buffer cannot take over a dataset: got "
            "optimize_memory_usage=True, expected False. It stores no next observations."
        )
    if keys != set(dataset.layout.keys):
        raise DataError(
            f"The dataset leaves parts of the observation out: got {list(dataset.layout.keys)}, "
            f"expected all of {sorted(keys)}. Load it with all keys to keep it in the replay "
            "buffer."
        )


def _digest(dataset: Dataset) -> str:
    """Returns what tells a dataset from others, without a look at its observations."""
    columns = (*dataset.action_statistics(), dataset.rewards)
    parts = [column.cpu().numpy() for column in columns]
    parts += [dataset.terminated, dataset.truncated]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def _rows(dataset: Dataset, start: int, stop: int) -> Transitions:
    return dataset.rows(start, stop)


def _host(dataset: Dataset, rows: Transitions) -> dict[str, Any]:
    def parts(flat: torch.Tensor) -> Any:  # noqa: ANN401 - an array or a dict
        return dataset.layout.unflatten(flat.cpu().numpy())

    return {
        "obs": parts(rows.obs),
        "next_obs": parts(rows.next_obs),
        "action": rows.action.cpu().numpy(),
        "reward": rows.reward.cpu().numpy(),
    }


def _stack(columns: list[Any], row: int) -> Any:  # noqa: ANN401 - an array or a dict
    if isinstance(columns[0], dict):
        return {k: np.stack([c[k][row] for c in columns]) for k in columns[0]}
    return np.stack([c[row] for c in columns])
