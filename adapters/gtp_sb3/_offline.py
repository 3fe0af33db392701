"""SB3's learning loop without an environment: an update in place of a step."""

import time
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common import utils
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    ConvertCallback,
    ProgressBarCallback,
)
from stable_baselines3.common.type_aliases import MaybeCallback, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from gtp_sb3 import _attach
from gtp_sb3._data import Dataset

if TYPE_CHECKING:
    from gtp_sb3.gtp import GTP


class UpdateProgressBar(ProgressBarCallback):
    """SB3's progress bar, one step per timestep however many environments there are."""

    def _on_step(self) -> bool:
        self.pbar.update(1)
        return True


class NoEnvironment(gymnasium.Env[Any, Any]):
    """Two spaces for callbacks that ask for them; it cannot run.

    Args:
        observation_space: Observation space.
        action_space: Action space.
    """

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
    ) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401 - gymnasium's arguments
        """Raises: there is nothing to reset."""
        raise _no_environment("a reset")

    def step(self, action: object) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Raises: there is nothing to step."""
        raise _no_environment("a step")


def _no_environment(what: str) -> RuntimeError:
    return RuntimeError(
        f"The model has no environment: got {what}, expected learning from the dataset alone. Pass "
        "env=... or call set_env()."
    )


def stand_in(model: "GTP") -> VecEnv:
    """Returns what callbacks see as the training environment of a model without one."""
    return DummyVecEnv([lambda: NoEnvironment(model.observation_space, model.action_space)])


def learn(
    model: "GTP",
    total_timesteps: int,
    callback: MaybeCallback,
    log_interval: int | None,
    tb_log_name: str,
    reset_num_timesteps: bool,
    progress_bar: bool,
) -> None:
    """See `GTP.learn`; the local variables here are those that callbacks see."""
    _attach.check(model)
    # The environment may be another one since.
    _attach.show(model, cast(Dataset, model.dataset))
    total_timesteps, callback = _begin(
        model, total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
    )
    callback.on_training_start(locals(), globals())
    # No step was made: nothing is new, rewarded or done.
    new_obs: None = None
    rewards: npt.NDArray[np.float32] = np.zeros(model.n_envs, np.float32)
    dones = np.zeros(model.n_envs, np.bool_)
    infos: list[dict[str, Any]] = [{} for _ in range(model.n_envs)]
    updates = 1 if model.gradient_steps < 0 else model.gradient_steps
    while model.num_timesteps < total_timesteps:
        callback.on_rollout_start()
        model._update_current_progress_remaining(model.num_timesteps, total_timesteps)
        if updates:
            model.train(updates, model.batch_size)
        # After the update: a checkpoint at timestep n holds the updates of n timesteps.
        model.num_timesteps += 1
        callback.update_locals({**locals(), "self": model})
        if not callback.on_step():
            break
        callback.on_rollout_end()
        if log_interval and model.num_timesteps % log_interval == 0:
            model.dump_logs()
    callback.on_training_end()


def _begin(
    model: "GTP",
    total_timesteps: int,
    callback: MaybeCallback,
    reset_num_timesteps: bool,
    tb_log_name: str,
    progress_bar: bool,
) -> tuple[int, BaseCallback]:
    """Does what SB3 does at the beginning, but for the environment, which it would reset."""
    model.start_time = time.time_ns()
    if model.ep_info_buffer is None or reset_num_timesteps:
        model.ep_info_buffer = deque(maxlen=model._stats_window_size)
        model.ep_success_buffer = deque(maxlen=model._stats_window_size)
    if reset_num_timesteps:
        model.num_timesteps = model._episode_num = 0
    model._total_timesteps = total_timesteps + model.num_timesteps
    model._num_timesteps_at_start = model.num_timesteps
    if not model._custom_logger:
        model._logger = utils.configure_logger(
            model.verbose, model.tensorboard_log, tb_log_name, reset_num_timesteps
        )
    if progress_bar:
        if isinstance(callback, list):
            callback = CallbackList(callback)
        elif not isinstance(callback, BaseCallback):
            callback = ConvertCallback(callback)
        callback = CallbackList([callback, UpdateProgressBar()])
    return model._total_timesteps, model._init_callback(callback)


def set_horizon(model: "GTP", total_timesteps: int) -> None:
    """Lets curriculum and schedules of the config unfold over the first run.

    Warns if a second run on data begins where they have ended, and if a model that was trained on
    data would go online because nobody has said what it shall learn from.
    """
    learner = model.learner
    if model._dataset_is_missing:
        warnings.warn(
            "The model was trained on a dataset, which is not in its file: it learns online now. "
            "Call set_dataset(data) to go on offline, or set_dataset(None) if this is meant.",
            stacklevel=3,
        )
    updates = total_timesteps * (1 if model.gradient_steps < 0 else model.gradient_steps)
    if model.dataset is None:
        updates = _updates_online(model, total_timesteps)
    if updates < 1:
        return
    if model._horizon is None:
        learner.set_total_updates_(updates)
        model._horizon = "first run"
    elif model._horizon == "first run" and learner.progress >= 1 and model.dataset is not None:
        warnings.warn(
            f"The curriculum has ended with the first run, after {learner.config.total_updates} "
            "updates. To train in portions, name the length of all of them: "
            "gtp_config=GTPConfig(learner=GTPLearnerConfig(total_updates=...)).",
            stacklevel=3,
        )


def _updates_online(model: "GTP", total_timesteps: int) -> int:
    """Returns about how many updates a run online will do; at most so many, for episodes."""
    steps = total_timesteps - model.learning_starts
    train_freq = cast(TrainFreq, model.train_freq)
    if model.gradient_steps < 0 or train_freq.unit is TrainFrequencyUnit.EPISODE:
        return steps
    return steps * model.gradient_steps // (train_freq.frequency * model.n_envs)
