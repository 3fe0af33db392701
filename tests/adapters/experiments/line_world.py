"""A tiny task: keep a point near the middle of a line."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

STEPS = 12


class Line(gymnasium.Env[np.ndarray, np.ndarray]):
    """A point on a line, pushed by the action; the reward is highest in the middle."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float64)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-1, 1), 0
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(np.asarray(action, np.float32))
        self.x += float(action[0])
        self.t += 1
        reached = abs(self.x) < 0.2
        return self._obs(), -abs(self.x), abs(self.x) > 2, self.t == STEPS, {"success": reached}

    def _obs(self) -> np.ndarray:
        return np.array([self.x, self.t / STEPS])


def make() -> Line:
    return Line()
