"""From the name of a dataset to transitions ready for training, with a hash of what was read."""

import hashlib
import json
import os
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.spaces import Box

from gtp_datasets import load_d4rl_hdf5, load_minari, load_ogbench
from gtp_datasets._minari import data_path
from gtp_experiments.config import ExperimentConfig, RunConfig
from gtp_experiments.environments import make_env
from gtp_experiments.errors import ExperimentError
from gtp_policy import OfflineDataset
from gtp_policy.errors import UnsupportedSpaceError
from gtp_policy.files import expanded
from gtp_policy.functional import check_kind
from gtp_policy.rewards import LinearReward

_OTHER_FILES = (
    ".csv",
    ".tsv",
    ".npy",
    ".parquet",
    ".pkl",
    ".pickle",
    ".pt",
    ".zarr",
    ".json",
    ".zip",
)


class Data(NamedTuple):
    """A dataset as it is trained on, and what it was before.

    Attributes:
        dataset: The transitions of the chosen episodes, with transformed rewards.
        sha256: Hash of the arrays as they were read.

    Example:
        >>> from gtp_experiments import Data
        >>> Data._fields
        ('dataset', 'sha256')
    """

    dataset: OfflineDataset
    sha256: str


def load_data(config: ExperimentConfig) -> Data:
    """Loads the dataset of an experiment, hashes it, chooses episodes, transforms and sums rewards.

    Args:
        config: The experiment.

    Returns:
        The data.

    Raises:
        DataError: If there is no such dataset or it cannot be read, or its rewards do not admit
            the transform.
        ExperimentError: If the device is none of this machine.
        MissingDependencyError: If Minari or h5py is not installed.

    Example:
        >>> from gtp_experiments import RunConfig, load_data
        >>> load_data(RunConfig(dataset="missing.hdf5", updates=1))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        gtp_policy.errors.DataError: `missing.hdf5` cannot be read as HDF5: ...
    """
    check_kind("config", config, ExperimentConfig)
    dataset = _as_stored(config)
    digest = data_hash(dataset)
    if config.best_episodes is not None:
        dataset = dataset.with_best_episodes(config.best_episodes)
    if config.return_weighting:
        dataset = dataset.with_return_weighting(config.return_weighting)
    if dataset.has_rewards or config.reward != LinearReward():
        dataset = dataset.with_rewards(config.reward)
    if isinstance(config, RunConfig) and config.policy.learner.critic_penalty:
        dataset = dataset.with_next_actions()
    if isinstance(config, RunConfig):  # before the sums: what they reach has its history, too
        dataset = dataset.with_history(config.policy.actor.history)
    dataset = dataset.with_n_step(config.n_step)
    if isinstance(config, RunConfig):
        dataset = dataset.with_chunks(config.policy.actor.chunk)
    return Data(dataset, digest)


def stored_hash(config: ExperimentConfig) -> str:
    """Hashes the dataset of an experiment, wherever that computes.

    Args:
        config: The experiment.

    Returns:
        The ``sha256`` of `load_data`.

    Raises:
        DataError: As `load_data`.
        ExperimentError: As `load_data`.
        MissingDependencyError: As `load_data`.

    Example:
        >>> from gtp_experiments import RunConfig
        >>> from gtp_experiments.data import stored_hash
        >>> stored_hash(RunConfig(dataset="missing.hdf5", updates=1))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        gtp_policy.errors.DataError: `missing.hdf5` cannot be read as HDF5: ...
    """
    return data_hash(_as_stored(config.replace(device="cpu")))


def stored_by(config: ExperimentConfig) -> tuple[object, ...]:
    """Returns what decides `stored_hash`, but for what the files hold.

    Args:
        config: The experiment.

    Returns:
        Its choices, in one hashable object.

    Example:
        >>> from gtp_experiments import RunConfig
        >>> from gtp_experiments.data import stored_by
        >>> config = RunConfig(dataset="a/b-v0", updates=1)
        >>> stored_by(config) == stored_by(config.replace(batch_size=8))
        True
        >>> stored_by(config) == stored_by(config.replace(gamma=0.9))  # discounts are data
        False
    """
    bounds = config.low, config.high, config.out_of_bounds, config.evaluation.environment
    return config.dataset, config.gamma, *bounds


def data_files(config: ExperimentConfig) -> str | None:
    """Returns a digest of what the file system says of a dataset's files, without reading them.

    As long as it stays the same, so do the data. Of a file that was written again all of size,
    time of change and time of the last change to its entry would have to be what they were; the
    last of these no program sets.

    Args:
        config: The experiment.

    Returns:
        The digest; None if the dataset is not on this machine.

    Example:
        >>> from gtp_experiments import RunConfig
        >>> from gtp_experiments.data import data_files
        >>> data_files(RunConfig(dataset="missing.hdf5", updates=1)) is None
        True
    """
    path = expanded(config.dataset)
    try:
        if not config.is_file:
            path = data_path(config.dataset)
            if not (path / "metadata.json").is_file():
                return None
        files = [path] if config.is_file else sorted(path.rglob("*"))
        there = [(str(file.relative_to(path)), file.stat()) for file in files if file.is_file()]
    except (ImportError, OSError, ValueError):  # no Minari; or what is no name of a file
        return None
    said = [(name, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for name, at in there]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest() if said else None


def _as_stored(config: ExperimentConfig) -> OfflineDataset:
    """Loads the dataset of an experiment as it was recorded, but for its choice of bounds."""
    try:
        torch.empty(0, device=config.device)
    except (AssertionError, RuntimeError) as error:  # what torch raises, by the kind of device
        raise ExperimentError(
            f"The device {config.device!r} cannot be used: got {error}, expected one of this "
            "machine. Set device (on the command line: --device)."
        ) from error
    name, device = os.path.expanduser(config.dataset), config.device
    choices: dict[str, Any] = {"gamma": config.gamma, "out_of_bounds": config.out_of_bounds}
    if not config.is_file:
        _check_id(name)
        dataset = load_minari(name, low=config.low, high=config.high, device=device, **choices)
    else:
        load = load_ogbench if name.lower().endswith(".npz") else load_d4rl_hdf5
        low, high = _bounds(config)
        try:
            dataset = load(name, low=low, high=high, device=device, **choices)
        except UnsupportedSpaceError as error:
            raise ExperimentError(
                f"{error} Bounds are those of {config.evaluation.environment} where low and high "
                "do not say otherwise: evaluate in the environment that the data comes from, or "
                "correct them (on the command line: --environment, --low, --high)."
            ) from error
    return dataset


def _check_id(name: str) -> None:
    """Raises if what is taken for the id of a Minari dataset is the name of something else."""
    if (
        os.path.isabs(name)
        or os.path.isfile(name)
        or os.path.splitext(name)[1].lower() in _OTHER_FILES
    ):
        what = "a folder" if os.path.isdir(name) else "a file"
        raise ExperimentError(
            f"`dataset` names {what} that runs do not read: got {name!r}, expected the id of a "
            "Minari dataset, or a file that ends in .hdf5, .h5 (as D4RL's) or .npz (as OGBench's). "
            "gtp_datasets.load_dataset reads other files, for a loop of your own: "
            "GTPLearner.from_dataset and update_from."
        )


def _bounds(config: ExperimentConfig) -> tuple[npt.ArrayLike, npt.ArrayLike]:
    """Returns the bounds of the actions in a file, which does not hold them."""
    low: npt.ArrayLike | None = config.low
    high: npt.ArrayLike | None = config.high
    name = config.evaluation.environment
    if name is not None and (low is None or high is None):
        env = make_env(name)
        try:
            space = env.action_space
        finally:
            env.close()
        if not isinstance(space, Box):
            raise ExperimentError(
                f"Actions of {name} do not fit the dataset: got {space}, expected a Box. "
                "Evaluate in the environment that the data comes from."
            )
        if space.is_bounded():
            of_env = space.low if low is None else low, space.high if high is None else high
            return np.ravel(cast(Any, of_env[0])), np.ravel(cast(Any, of_env[1]))
    return -1.0 if low is None else low, 1.0 if high is None else high


def data_hash(dataset: OfflineDataset) -> str:
    """Hashes every number of a dataset: what was trained on, however it was stored.

    Args:
        dataset: Any dataset.

    Returns:
        SHA-256 over observations, actions, rewards, discounts, next observations and flags, and
        over the ends of episodes where they are others than the flags say.

    Example:
        >>> from gtp_experiments import data_hash
        >>> from gtp_policy import OfflineDataset
        >>> one = dict(obs=[[0.0]], action=[[0.0]], terminated=[1], truncated=[0],
        ...            low=[-1.0], high=[1.0])
        >>> a, b = (OfflineDataset.from_arrays(reward=[r], **one) for r in (0.0, 1.0))
        >>> data_hash(a) == data_hash(a), data_hash(a) == data_hash(b)
        (True, False)
    """
    digest = hashlib.sha256()
    fields = [value.cpu().numpy() for value in dataset.stored()]
    flags = [dataset.terminated, dataset.truncated]
    by_flags = flags[0] | flags[1]
    by_flags[-1:] = True
    if not np.array_equal(dataset.ends, by_flags):  # others keep the hash that records have
        flags.append(dataset.ends)
    for array in (*fields, *flags):
        digest.update(f"{array.shape} {array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
