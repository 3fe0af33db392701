"""What a model learns from offline, with all that must agree between data, wrapper and policy."""

import warnings
from typing import Any

from stable_baselines3.common.vec_env import VecNormalize

from gtp_policy import GTPConfig, GTPLearner, OfflineDataset
from gtp_policy.errors import DataError
from gtp_sb3 import _normalize
from gtp_sb3._data import Dataset
from gtp_sb3.policies import GTPPolicy

# What a file holds of it: names of attributes there, which older files have too, and here.
_SAVED = {
    "_horizon": "horizon",
    "_offline_updates": "updates",
    "_scales_are_fixed": "scales_are_fixed",
    "_sigma_is_open": "sigma_is_open",
    "_statistics_are_open": "statistics_are_open",
}

# A run that is shorter than this, over the updates before it, gets the end of a falling curve.
LEAST_PORTION = 0.1


class OfflineTraining:
    """The dataset of a model, and what training on it has settled: scales, and the horizon.

    Args:
        config: Every choice of the method, as the user made it.

    Attributes:
        dataset: The dataset as it was given; None where the model learns online.
        shown: The dataset as the environment in its wrapper would show it: what is sampled.
        is_missing: Whether the model was trained on a dataset that is not here, as after loading.
        updates: How many updates were done on data.
        horizon: What set the number of updates over which curriculum and schedules unfold:
            ``"config"`` or ``"first run"``; None where nothing has yet.
        scales_are_fixed: Whether scales came with parameters: no dataset sets them then.
        sigma_is_open: Whether the config leaves ``sigma_data`` to the dataset.
        statistics_are_open: Whether it leaves the actions' statistics to the dataset.
    """

    def __init__(self, config: GTPConfig) -> None:
        self.dataset: Dataset | None = None
        self.shown: Dataset | None = None
        self.is_missing = False
        self.updates = 0
        is_set = "total_updates" in config.learner.model_fields_set
        self.horizon: str | None = "config" if is_set else None
        self.scales_are_fixed = False
        self.sigma_is_open = config.actor.sigma_data is None
        self.statistics_are_open = config.actor.action_statistics is None

    def attach(
        self, dataset: Dataset, policy: GTPPolicy, wrapper: VecNormalize | None, verbose: int = 0
    ) -> None:
        """Makes a dataset what is learned from, and gives its scales to an untrained policy.

        Raises:
            DataError: If the wrapper's statistics still move, or are of parts that are left out, or
                it normalises rewards that are sums of several steps, or a dataset of histories or
                chunks.
        """
        shown = dataset
        if policy.critic is not None:
            dataset.check_rewards(
                "A critic",
                "Clone without one, GTP(..., gtp_config=GTPConfig(critic=None)); or give `reward` "
                "with the data, and go on from a clone with GTP.from_actor.",
            )
        if policy.learner.config.critic_penalty:
            shown = dataset.with_next_actions()
        if wrapper is not None:
            _normalize.check_parts(wrapper, dataset)
            if dataset.history > 1 or dataset.chunk > 1:
                raise DataError(
                    f"VecNormalize knows single steps: got a dataset of history={dataset.history} "
                    f"and chunk={dataset.chunk}, expected 1. Give the dataset of single steps, and "
                    "gtp_config the history and chunk."
                )
            if wrapper.norm_reward:
                dataset.check_rewards(
                    "VecNormalize(norm_reward=True)",
                    "Set norm_reward=False, or give `reward` with the data.",
                )
            if wrapper.norm_reward and isinstance(dataset, OfflineDataset):
                dataset.check_one_step("VecNormalize(norm_reward=True)")
            if _normalize.settle_(wrapper, dataset) and verbose >= 1:
                print("VecNormalize takes its statistics from the dataset and keeps them.")
            shown = _normalize.normalized(wrapper, shown)
        shown = shown.with_steps(policy.actor.config.history, policy.actor.config.chunk)
        self.scales_are_fixed |= policy.scales_are_given
        if not (self.scales_are_fixed or policy.learner.updates):
            self._fit_scales_(policy, shown)
        self.dataset, self.shown, self.is_missing = dataset, shown, False

    def detach(self) -> None:
        """Makes the environment what is learned from."""
        self.dataset, self.shown, self.is_missing = None, None, False

    def look_at_wrapper_(self, learner: GTPLearner, wrapper: VecNormalize | None) -> None:
        """Notes what normalises observations, and warns if a trained policy knows other ones.

        Its networks, and what they take off observations, are made for those.
        """
        normalizes = wrapper is not None and wrapper.norm_obs
        before, now = learner.normalized_by, "VecNormalize" if normalizes else None
        learner.normalized_by = now
        # Without updates, what normalises them is that of the clone it goes on from.
        if (learner.updates or before) and before != now:
            seen = [f"normalised by {name}" if name else "as they are" for name in (now, before)]
            warnings.warn(
                f"The policy was trained on other observations: got them {seen[0]}, expected them "
                f"{seen[1]}, as before. Set an environment that shows them so, or build a new "
                "model for this one.",
                stacklevel=3,
            )

    def set_horizon_(self, learner: GTPLearner, updates: int, is_known: bool = True) -> bool:
        """Lets curriculum and learning rates unfold over the first run, and the run become longer.

        A later run, online or not, that leads beyond their end makes them longer: nothing would be
        learned any more. Warns if it is so short beside what was before that little will be, if the
        config sets a length that it leads beyond, and if a model that was trained on data would go
        online because its dataset was not given again.

        Args:
            learner: The model's learner.
            updates: Number of updates of the run that begins.
            is_known: Whether it is one, and not a guess until more is known.

        Returns:
            Whether the length is that of the run that begins.
        """
        if self.is_missing:
            warnings.warn(
                "The model was trained on a dataset, which is not in its file: it learns online "
                "now. Call set_dataset(data) to go on offline, or set_dataset(None) if this is "
                "meant.",
                stacklevel=3,
            )
        if updates < 1:
            return False
        total = learner.config.total_updates
        if self.horizon is None:
            learner.set_total_updates_(updates)
            self.horizon = "first run"
            return True
        if self.horizon == "first run" and learner.updates + updates > total:
            # Also where an earlier run was stopped: what it left undone is not enough.
            before = learner.updates
            learner.set_total_updates_(before + updates)
            if is_known and updates < LEAST_PORTION * before:
                warnings.warn(
                    f"{updates} more updates after {before} change little: learning rates and "
                    "curriculum are near their end. To train in portions, name the length of all "
                    "of them: gtp_config=GTPConfig(learner=GTPLearnerConfig(total_updates=...)).",
                    stacklevel=3,
                )
            return True
        if self.horizon == "config" and is_known and _falls_to_zero(learner):
            beyond = learner.updates + updates - max(total, learner.updates)
            if beyond > LEAST_PORTION * updates:  # online, their number is an estimate
                warnings.warn(
                    f"{beyond} of {updates} updates change nothing: got total_updates={total} in "
                    f"gtp_config and {learner.updates} updates before, behind which the learning "
                    "rate is 0. Name the length of all runs together, leave total_updates out, or "
                    "call model.learner.set_total_updates_.",
                    stacklevel=3,
                )
        return False

    def attributes(self) -> dict[str, object]:
        """Returns what a file holds of it, by the names there."""
        return {name: getattr(self, attribute) for name, attribute in _SAVED.items()}

    def take_attributes_(self, attributes: dict[str, Any]) -> None:
        """Takes its part out of the attributes of a file; what is not there stays as it is."""
        for name in _SAVED.keys() & attributes.keys():
            setattr(self, _SAVED[name], attributes.pop(name))
        self.is_missing = self.updates > 0

    def _fit_scales_(self, policy: GTPPolicy, dataset: Dataset) -> None:
        """Gives an untrained policy the scales of a dataset, as `GTPLearner.from_dataset` does."""
        learner, config = policy.learner, policy.learner.full_config
        is_open = {"sigma_data": self.sigma_is_open, "action_statistics": self.statistics_are_open}
        left_open = {name: None for name, is_so in is_open.items() if is_so}
        config = config.replace(actor=config.actor.replace(**left_open))
        fitted = config.fit_to_actions(dataset).actor
        for actor in (learner.actor, learner.target_actor):
            actor.set_action_scales_(fitted.sigma_data, fitted.action_statistics)
        # An encoder expects observations as they are: pixels from 0 to 255, indices.
        normalizes = learner.config.normalize_obs and policy.is_vector
        if normalizes and isinstance(dataset, OfflineDataset):
            learner.set_observation_statistics_(*dataset.observation_statistics())


def _falls_to_zero(learner: GTPLearner) -> bool:
    """Returns whether the core's own learning rates end at 0."""
    return bool(learner.learning_rates) and learner.config.lr_schedule == "cosine"
