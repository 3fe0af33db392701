"""SB3's learning loop without an environment: an update instead of a step."""

import time
from collections import deque
from typing import Any

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
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv


class UpdateProgressBar(ProgressBarCallback):
    """SB3's progress bar, one step per timestep however many environments there are."""

    def _on_step(self) -> bool:
        self.pbar.update(1)
        return True


class NoEnvironment(gymnasium.Env[Any, Any]):
    """Two spaces for callbacks that need them; it cannot run.

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


class OfflineLoop(OffPolicyAlgorithm):
    """An off-policy algorithm of SB3 that can also learn without stepping an environment."""

    _stand_in: VecEnv | None = None  # while a model without an environment learns

    def get_env(self) -> VecEnv | None:
        """Returns the environment; for callbacks of a model without one, a stand-in with spaces.

        Returns:
            The environment, or None.
        """
        return self.env if self.env is not None else self._stand_in

    @property
    def _updates_per_timestep(self) -> int:
        return 1 if self.gradient_steps < 0 else self.gradient_steps

    def _learn_offline(
        self,
        total_timesteps: int,
        callback: MaybeCallback,
        log_interval: int | None,
        tb_log_name: str,
        reset_num_timesteps: bool,
        progress_bar: bool,
    ) -> None:
        """Does what SB3's ``learn`` does, with updates alone; callbacks see the variables here."""
        if self.env is None:
            none = NoEnvironment(self.observation_space, self.action_space)
            self._stand_in = DummyVecEnv([lambda: none])
        try:
            total_timesteps, callback = self._begin(
                total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
            )
            callback.on_training_start(locals(), globals())
            # For callbacks, which see the local variables: no step was made, so that nothing is
            # new, rewarded or done.
            new_obs: None = None
            rewards: npt.NDArray[np.float32] = np.zeros(self.n_envs, np.float32)
            dones = np.zeros(self.n_envs, np.bool_)
            infos: list[dict[str, Any]] = [{} for _ in range(self.n_envs)]
            while self.num_timesteps < total_timesteps:
                callback.on_rollout_start()
                self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
                if self._updates_per_timestep:
                    self.train(self._updates_per_timestep, self.batch_size)
                # After the update: a checkpoint at timestep n holds the updates of n timesteps.
                self.num_timesteps += 1
                callback.update_locals(locals())
                if not callback.on_step():
                    break
                callback.on_rollout_end()
                if log_interval and self.num_timesteps % log_interval == 0:
                    self.dump_logs()
            callback.on_training_end()
        finally:
            self._stand_in = None

    def _begin(
        self,
        total_timesteps: int,
        callback: MaybeCallback,
        reset_num_timesteps: bool,
        tb_log_name: str,
        progress_bar: bool,
    ) -> tuple[int, BaseCallback]:
        """Does what SB3 does at the beginning, but for the environment, which it would reset."""
        self.start_time = time.time_ns()
        if self.ep_info_buffer is None or reset_num_timesteps:
            self.ep_info_buffer = deque(maxlen=self._stats_window_size)
            self.ep_success_buffer = deque(maxlen=self._stats_window_size)
        if reset_num_timesteps:
            self.num_timesteps = self._episode_num = 0
        self._total_timesteps = total_timesteps + self.num_timesteps
        self._num_timesteps_at_start = self.num_timesteps
        if not self._custom_logger:
            self._logger = utils.configure_logger(
                self.verbose, self.tensorboard_log, tb_log_name, reset_num_timesteps
            )
        if progress_bar:
            if isinstance(callback, list):
                callback = CallbackList(callback)
            elif not isinstance(callback, BaseCallback):
                callback = ConvertCallback(callback)
            callback = CallbackList([callback, UpdateProgressBar()])
        return self._total_timesteps, self._init_callback(callback)
