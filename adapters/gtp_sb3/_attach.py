"""A dataset put on a model and taken off again, with all that must agree between the two."""

from typing import TYPE_CHECKING, cast

from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from gtp_policy import OfflineDataset
from gtp_policy.errors import DataError
from gtp_sb3 import _normalize, _replay, _sources
from gtp_sb3._data import Dataset, Frame
from gtp_sb3.policies import GTPPolicy

if TYPE_CHECKING:
    from gtp_sb3.gtp import GTP


def attach(model: "GTP", dataset: object) -> None:
    """Reads a dataset, and makes it what the model learns from."""
    check(model)
    spaces = model.observation_space, model.action_space
    found = _sources.read(dataset, Frame(*spaces, model._layout, model.gamma, model.device))
    show(model, found)
    model.dataset, model._dataset_is_missing = found, False


def show(model: "GTP", dataset: Dataset) -> None:
    """Makes minibatches what the environment in its wrappers would show, and fits the scales."""
    model._prepared = _prepare(model, dataset)
    if not (model._scales_are_fixed or model.learner.updates):
        _fit_scales_(model.policy, model._sigma_is_open, model._prepared)


def detach(model: "GTP", keep_data: bool) -> None:
    """Makes the environment what the model learns from."""
    previous = model.dataset
    if keep_data and previous is None:
        raise ValueError("`keep_data` has nothing to keep: got no dataset, expected one.")
    model.dataset = None
    if keep_data and previous is not None:
        try:
            _replay.fill_(cast(ReplayBuffer, model.replay_buffer), previous)
        except DataError:
            model.dataset = previous
            raise
    model._prepared, model._dataset_is_missing = None, False


def check(model: "GTP") -> None:
    """Raises if the replay buffer would have made other samples of the data than a dataset does.

    Raises:
        DataError: If so.
    """
    buffer_class = model.replay_buffer_class or ReplayBuffer
    if model.n_steps > 1 or issubclass(buffer_class, HerReplayBuffer | NStepReplayBuffer):
        raise DataError(
            f"A dataset is learned from as it is: got n_steps={model.n_steps} and "
            f"{buffer_class.__name__}, expected n_steps=1 and no buffer that sums rewards or "
            "relabels goals. Train offline without them; they work online."
        )


def _prepare(model: "GTP", dataset: Dataset) -> Dataset:
    """Returns a dataset as the policy will see observations and rewards."""
    wrapper = model.get_vec_normalize_env()
    if wrapper is None:
        return dataset
    _normalize.check_keys(wrapper, dataset)
    if _normalize.settle_(wrapper, dataset) and model.verbose >= 1:
        print("VecNormalize takes its statistics from the dataset and keeps them.")
    return _normalize.normalized(wrapper, dataset)


def _fit_scales_(policy: GTPPolicy, sigma_is_open: bool, dataset: Dataset) -> None:
    """Gives an untrained policy the scales of a dataset, as `GTPLearner.from_dataset` does."""
    learner = policy.learner
    if sigma_is_open:
        sigma_data = max(dataset.action_std(), 0.01)  # see GTPLearner.from_dataset
        for actor in (learner.actor, learner.target_actor):
            actor.config = actor.config.replace(sigma_data=sigma_data)
    # An encoder expects observations as they are: pixels from 0 to 255, indices.
    if learner.config.normalize_obs and policy.is_vector and isinstance(dataset, OfflineDataset):
        learner.set_observation_statistics_(*dataset.observation_statistics())
