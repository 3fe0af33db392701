"""What the tests of the SB3 adapter share: arrays, tiny models, environments that must not run."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from gtp_policy import (
    FlowMapActorConfig,
    GTPConfig,
    GTPLearnerConfig,
    OfflineDataset,
    PolicyBaseline,
    QEnsembleConfig,
)
from gtp_sb3 import GTP

Arrays = dict[str, np.ndarray]


def make_arrays(rows: int = 60, obs_dim: int = 3, action_dim: int = 1, seed: int = 0) -> Arrays:
    """Transitions of episodes of 20 steps, cut in turns, actions of a Box from -2 to 2."""
    rng = np.random.default_rng(seed)
    number = np.arange(rows)
    return {
        "obs": rng.normal(size=(rows, obs_dim)),
        "action": rng.uniform(-2, 2, size=(rows, action_dim)),
        "reward": rng.normal(size=rows),
        "next_obs": rng.normal(size=(rows, obs_dim)),
        "terminated": number % 40 == 19,
        "truncated": number % 40 == 39,
    }


def make_config(**learner: Any) -> GTPConfig:
    """Networks as small as they get, of two jumps."""
    return GTPConfig(
        actor=FlowMapActorConfig(hidden=(16,), steps=2),
        critic=QEnsembleConfig(hidden=(16,)),
        learner=GTPLearnerConfig(baseline=PolicyBaseline(samples=1), **learner),
    )


class Untouchable(gymnasium.Env[Any, Any]):
    """An environment that must never run."""

    def __init__(self, obs_dim: int = 3) -> None:
        self.observation_space = spaces.Box(-10, 10, (obs_dim,), np.float32)
        self.action_space = spaces.Box(-2, 2, (1,), np.float32)

    def reset(self, **_: Any) -> Any:
        pytest.fail("the environment was reset")

    def step(self, action: object) -> Any:
        pytest.fail("the environment was stepped")


class Walk(gymnasium.Env[Any, Any]):
    """A point on a line, rewarded near 0; episodes of 10 steps, drawn from its own generator.

    Args:
        observation_space: Space to sample observations from; default three numbers, the first the
            position.
    """

    def __init__(self, observation_space: spaces.Space[Any] | None = None) -> None:
        self.sampled = observation_space is not None
        self.observation_space = observation_space or spaces.Box(-10, 10, (3,), np.float32)
        self.action_space = spaces.Box(-2, 2, (1,), np.float32)
        self.rng = np.random.default_rng(0)
        self.steps, self.position = 0, 0.0

    def observe(self) -> Any:
        if self.sampled:
            return self.observation_space.sample()
        return np.array([self.position, self.steps / 10, 1.0], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
            self.observation_space.seed(seed)
        self.steps, self.position = 0, float(self.rng.uniform(-2, 2))
        return self.observe(), {}

    def step(self, action: np.ndarray) -> Any:
        assert self.action_space.contains(np.asarray(action, np.float32)), action
        self.steps += 1
        self.position = float(np.clip(self.position + float(action[0]), -5, 5))
        return self.observe(), -abs(self.position), False, self.steps >= 10, {}


@pytest.fixture
def arrays() -> Arrays:
    return make_arrays()


@pytest.fixture
def dataset(arrays: Arrays) -> OfflineDataset:
    return OfflineDataset.from_arrays(**arrays, low=[-2.0], high=[2.0])


@pytest.fixture
def config() -> GTPConfig:
    return make_config()


@pytest.fixture
def untouchable() -> Untouchable:
    return Untouchable()


@pytest.fixture
def walk() -> type[Walk]:
    return Walk


@pytest.fixture
def make_model(dataset: OfflineDataset) -> Callable[..., GTP]:
    """Makes a tiny offline model; `dataset=None` or other arguments replace the defaults."""

    def make(env: Any = None, policy: str = "MlpPolicy", **changes: Any) -> GTP:
        arguments: dict[str, Any] = {
            "dataset": dataset,
            "gtp_config": make_config(),
            "batch_size": 8,
            "buffer_size": 1000,
            "learning_starts": 10,
            "device": "cpu",
        }
        return GTP(policy, env, **(arguments | changes))

    return make


def state_of(model: GTP) -> dict[str, torch.Tensor]:
    """Returns every number that training changes, by name."""
    found = {k: v for k, v in model.policy.state_dict().items() if isinstance(v, torch.Tensor)}
    for name, optimizer in model.learner.optimizers.items():
        for index, entries in optimizer.state_dict()["state"].items():
            found |= {f"{name}/{index}/{k}": torch.as_tensor(v) for k, v in entries.items()}
    return found


def same_state(a: GTP, b: GTP) -> bool:
    """Returns whether two models are equal to the bit."""
    ours, theirs = state_of(a), state_of(b)
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


@pytest.fixture
def equal() -> Callable[[GTP, GTP], bool]:
    return same_state
