"""Episodes collected by our own generators: played, kept as they come, joined, written for D4RL.

An episode is a function of its seed, and each is kept in a file of its own until all are there: a
collection that was interrupted goes on with the next one.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gtp_policy.files import replacing

Arrays = dict[str, np.ndarray]


def rollout(
    env: Any,  # noqa: ANN401 - gymnasium's, imported where it is needed
    act: Callable[[np.ndarray], np.ndarray],
    seed: int,
) -> Arrays:
    """Plays one episode.

    Args:
        env: An environment of gymnasium with a bounded Box of actions.
        act: From an observation (O,) to an action (A,), which is clipped to the bounds.
        seed: Of the start.

    Returns:
        D4RL's fields with T rows each, ``next_observations`` among them, and ``success`` where the
        environment reports it: whether the episode had reached its goal by then.
    """
    columns: dict[str, list[Any]] = {}
    obs, _ = env.reset(seed=seed)
    ended, success = False, False
    while not ended:
        action = np.clip(act(obs), env.action_space.low, env.action_space.high)
        following, reward, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
        row = {
            "observations": np.asarray(obs, np.float32),
            "actions": np.asarray(action, np.float32),
            "rewards": np.float32(reward),
            "next_observations": np.asarray(following, np.float32),
            "terminals": bool(terminated),
            "timeouts": bool(truncated and not terminated),
        }
        if "success" in info:
            success = success or bool(info["success"])
            row["success"] = success
        for field, value in row.items():
            columns.setdefault(field, []).append(value)
        obs = following
    return {field: np.array(values) for field, values in columns.items()}


def returns_of(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the sum of rewards of each episode."""
    ends = np.flatnonzero(arrays["terminals"] | arrays["timeouts"]) + 1
    return np.add.reduceat(arrays["rewards"].astype(np.float64), np.r_[0, ends[:-1]])


def successes_of(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns of each episode whether it reached its goal."""
    return arrays["success"][arrays["terminals"] | arrays["timeouts"]]


def seeds_of(seed: int, split: int, count: int) -> list[int]:
    """Returns a seed for each episode of a split."""
    return [int(s) for s in np.random.SeedSequence([seed, split]).generate_state(count)]


def collect(play: Callable[[int], Arrays], seeds: Sequence[int], parts: Path) -> Arrays:
    """Joins one episode per seed, each played unless it is there already.

    Args:
        play: Plays the episode of a seed.
        seeds: One per episode.
        parts: Folder of the episodes.

    Returns:
        The fields of all of them, one after the other.
    """
    pieces = []
    for number, seed in enumerate(seeds):
        path = parts / f"{number:05}-{seed}.npz"
        if not path.exists():
            save(path, play(seed))
        pieces.append(load(path))
    return {field: np.concatenate([piece[field] for piece in pieces]) for field in pieces[0]}


def save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an npz file that is there as a whole or not at all."""
    with replacing(path, ".npz") as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def load(path: Path) -> Arrays:
    """Reads all fields of an npz file."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file}


def save_d4rl(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an HDF5 file in D4RL's layout that is there as a whole or not at all."""
    import h5py

    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for field, values in arrays.items():
            file.create_dataset(field, data=values, compression="gzip")
