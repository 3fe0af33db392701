"""Small data, small networks, and an environment with a goal, all made on the spot."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict
from tianshou.trainer import OfflineTrainerParams

from gtp_policy import (
    FlowMapActor,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearnerConfig,
    OfflineDataset,
    QEnsemble,
    QEnsembleConfig,
)
from gtp_tianshou import GTP, GTPPolicy

SMALL = GTPConfig(
    actor=FlowMapActorConfig(hidden=(16,), steps=2), critic=QEnsembleConfig(hidden=(16,))
)


class GoalEnv(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """A point on a line that has to go elsewhere; five steps, then the time is up."""

    observation_space = Dict(
        achieved_goal=Box(-9, 9, (1,)), desired_goal=Box(-9, 9, (1,)), observation=Box(-9, 9, (2,))
    )
    action_space = Box(-0.4, 0.4, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.at, self.goal, self.steps = self.np_random.normal(size=1), np.array([1.0]), 0
        return self.observe(), {}

    def observe(self) -> dict[str, np.ndarray]:
        x = self.at.astype(np.float32)
        return {
            "achieved_goal": x,
            "desired_goal": self.goal.astype(np.float32),
            "observation": np.concatenate([x, x * 0 + self.steps]).astype(np.float32),
        }

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.at = self.at + action
        self.steps += 1
        reward = -float(np.abs(self.at - self.goal).sum())
        return self.observe(), reward, False, self.steps == 5, {}


@pytest.fixture
def goal_env() -> type[GoalEnv]:
    return GoalEnv


@pytest.fixture
def dataset() -> OfflineDataset:
    """60 transitions of ten episodes, of which every second terminates; O = 3, A = 2."""
    return make_dataset()


def make_dataset(n: int = 60, seed: int = 0) -> OfflineDataset:
    rng = np.random.default_rng(seed)
    end = np.arange(n) % 6 == 5
    terminated = end & (np.arange(n) % 12 == 11)
    return OfflineDataset.from_arrays(
        obs=rng.normal(size=(n, 3)),
        action=rng.uniform([-2.0, 0.0], [2.0, 5.0], (n, 2)),
        reward=rng.normal(size=n),
        next_obs=rng.normal(size=(n, 3)),
        terminated=terminated,
        truncated=end & ~terminated,
        low=[-2.0, 0.0],
        high=[2.0, 5.0],
    )


@pytest.fixture
def action_space() -> Box:
    """The space of the dataset's actions."""
    return Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 5.0], np.float32))


@pytest.fixture
def small() -> GTPConfig:
    """A config of tiny networks."""
    return SMALL


@pytest.fixture
def make_policy(action_space: Box) -> Callable[..., GTPPolicy]:
    """Makes a policy, by default for the dataset's spaces and with a critic."""

    def make(**options: Any) -> GTPPolicy:
        space = options.setdefault("action_space", action_space)
        layout_dim = options.pop("obs_dim", 3)
        dims = layout_dim, int(np.prod(getattr(space, "shape", None) or (1,)))
        options.setdefault("actor", FlowMapActor(*dims, SMALL.actor))
        options.setdefault("critic", QEnsemble(*dims, SMALL.critic))
        return GTPPolicy(**options)

    return make


@pytest.fixture
def make_algorithm(make_policy: Callable[..., GTPPolicy]) -> Callable[..., GTP]:
    """Makes an algorithm for the dataset; keyword arguments go to GTP."""

    def make(**options: Any) -> GTP:
        policy = make_policy(critic=None)
        options.setdefault("critic", QEnsemble(3, 2, SMALL.critic))
        options.setdefault("config", GTPLearnerConfig(total_updates=50))
        return GTP(policy=policy, **options)

    return make


@pytest.fixture
def params() -> Callable[..., OfflineTrainerParams]:
    """Trainer parameters without output; two epochs of five updates."""

    def make(buffer: Any, **options: Any) -> OfflineTrainerParams:
        quiet = {"verbose": False, "show_progress": False}
        short = {"max_epochs": 2, "epoch_num_steps": 5, "batch_size": 16}
        return OfflineTrainerParams(buffer=buffer, **(quiet | short | options))

    return make
