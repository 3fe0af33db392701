"""From the name of a dataset to transitions ready for training, with a hash of what was read."""

import hashlib
import os
from typing import NamedTuple

import numpy as np
import torch

from gtp_datasets import load_d4rl_hdf5, load_minari, load_ogbench
from gtp_experiments.config import ExperimentConfig, RunConfig
from gtp_experiments.errors import ExperimentError
from gtp_policy import OfflineDataset


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
    try:
        torch.empty(0, device=config.device)
    except (AssertionError, RuntimeError) as error:  # what torch raises, by the kind of device
        raise ExperimentError(
            f"The device {config.device!r} cannot be used: got {error}, expected one of this "
            "machine. Set device (on the command line: --device)."
        ) from error
    name = os.path.expanduser(config.dataset)
    if name.endswith(".npz"):
        dataset = load_ogbench(name, gamma=config.gamma, device=config.device)
    elif config.is_file:
        dataset = load_d4rl_hdf5(name, gamma=config.gamma, device=config.device)
    else:
        dataset = load_minari(name, gamma=config.gamma, device=config.device)
    digest = data_hash(dataset)
    if config.best_episodes is not None:
        dataset = dataset.with_best_episodes(config.best_episodes)
    dataset = dataset.with_rewards(config.reward)
    if isinstance(config, RunConfig) and config.policy.learner.critic_penalty:
        dataset = dataset.with_next_actions()
    dataset = dataset.with_n_step(config.n_step)
    if isinstance(config, RunConfig):
        dataset = dataset.with_steps(config.policy.actor.history, config.policy.actor.chunk)
    return Data(dataset, digest)


def data_hash(dataset: OfflineDataset) -> str:
    """Hashes every number of a dataset: what was trained on, however it was stored.

    Args:
        dataset: Any dataset.

    Returns:
        SHA-256 over observations, actions, rewards, discounts, next observations and flags.

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
    for array in (*fields, dataset.terminated, dataset.truncated):
        digest.update(f"{array.shape} {array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
