"""VecNormalize without an environment that runs: statistics from the dataset, or a refusal."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from gtp_policy import OfflineDataset, Transitions
from gtp_policy.errors import DataError
from gtp_sb3._data import Dataset, HostDataset, replace_columns

_CHUNK = 4096  # rows of images at a time


def settle_(wrapper: VecNormalize, dataset: Dataset) -> bool:
    """Makes a wrapper's statistics those of the dataset and freezes them, if they are untouched.

    Returns:
        Whether that was done.

    Raises:
        DataError: If they are neither untouched nor frozen: they would move away from what the
            dataset was normalised with.
    """
    if not (wrapper.norm_obs or wrapper.norm_reward) or not wrapper.training:
        return False
    counts = [rms.count for rms in _observation_statistics(wrapper).values()]
    if max([*counts, wrapper.ret_rms.count]) >= 1:
        raise DataError(
            "The statistics of VecNormalize still move: got training=True after "
            f"{max([*counts, wrapper.ret_rms.count]):.0f} steps of the environment, expected new "
            "or frozen ones. Set env.training = False, or wrap the environment anew."
        )
    if wrapper.norm_obs:
        for start in range(0, len(dataset), _CHUNK):
            parts = _parts(dataset, _rows(dataset, start, start + _CHUNK).obs)
            for key, rms in _observation_statistics(wrapper).items():
                rms.update(parts[key] if key else parts)
    if wrapper.norm_reward:
        wrapper.ret_rms.update(_discounted(dataset, wrapper.gamma))
    wrapper.training = False
    return True


@contextlib.contextmanager
def kept_if_refused(wrapper: VecNormalize | None) -> Iterator[None]:
    """Gives a wrapper back its statistics if what is done here raises: the data is refused."""
    if wrapper is None:
        yield
        return
    found: Any = [*_observation_statistics(wrapper).values(), wrapper.ret_rms]
    before, training = copy.deepcopy([vars(rms) for rms in found]), wrapper.training
    try:
        yield
    except BaseException:
        for rms, values in zip(found, before, strict=True):
            vars(rms).update(values)
        wrapper.training = training
        raise


def normalized(wrapper: VecNormalize, dataset: Dataset) -> Dataset:
    """Returns the dataset as the wrapper would show it; images stay stored as they are."""
    shown = dataset
    if wrapper.norm_reward:
        rewards = wrapper.normalize_reward(dataset.rewards.cpu().numpy())
        shown = dataset.with_reward_column(torch.from_numpy(rewards))
    if not wrapper.norm_obs:
        return shown
    if isinstance(shown, HostDataset):
        shown = copy.copy(shown)
        shown.convert = wrapper.normalize_obs
        return shown
    columns = {}
    whole = shown.transitions
    for name in ("obs", "next_obs"):
        parts = wrapper.normalize_obs(_parts(shown, getattr(whole, name)))
        flat: Any = shown.layout.flatten(parts)
        columns[name] = torch.from_numpy(flat).to(shown.device)
    return replace_columns(shown, **columns)


def _rows(dataset: Dataset, start: int, stop: int) -> Transitions:
    if isinstance(dataset, OfflineDataset):
        return dataset.rows(start, stop)
    raw = copy.copy(dataset)
    raw.convert = None
    return raw.rows(start, stop)


def check_parts(wrapper: VecNormalize, dataset: Dataset) -> None:
    """Raises if the wrapper normalises what the dataset leaves out, or keeps as images.

    Raises:
        DataError: If it does.
    """
    absent = set(wrapper.norm_obs_keys or ()) - set(dataset.layout.keys)
    if wrapper.norm_obs and absent:
        raise DataError(
            f"VecNormalize normalises what the dataset leaves out: got {sorted(absent)}, expected "
            f"keys of {list(dataset.layout.keys)}. Pass norm_obs_keys= to VecNormalize."
        )
    if wrapper.norm_obs and isinstance(dataset, OfflineDataset) and dataset.images:
        shown = " ".join(filter(None, dataset.images))
        raise DataError(
            "VecNormalize normalises observations with images, which an OfflineDataset keeps as "
            f"bytes: got norm_obs=True and the images {shown or 'that are the observations'}, "
            "expected norm_obs=False. An encoder takes pixels as they are; a dict of arrays can be "
            "normalised."
        )


def _parts(dataset: Dataset, obs: torch.Tensor) -> Any:  # noqa: ANN401 - an array or a dict
    return dataset.layout.unflatten(obs.cpu().numpy())


def _observation_statistics(wrapper: VecNormalize) -> dict[str, RunningMeanStd]:
    if not wrapper.norm_obs:
        return {}
    found: Any = wrapper.obs_rms
    return found if isinstance(found, dict) else {"": found}


def _discounted(dataset: Dataset, gamma: float) -> "np.ndarray[Any, Any]":
    """Returns the running discounted rewards of which VecNormalize takes the variance."""
    returns = np.empty(len(dataset))
    running = 0.0
    ended = dataset.terminated | dataset.truncated
    for i, (r, end) in enumerate(zip(dataset.rewards.tolist(), ended.tolist(), strict=True)):
        running = running * gamma + r
        returns[i] = running
        running = 0.0 if end else running
    return returns
