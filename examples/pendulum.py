"""Pendulum-v1: a mediocre controller, the data it gathers, and the evaluation of a policy."""

from collections.abc import Callable

import gymnasium as gym
import numpy as np

from gtp_policy import OfflineDataset

STEPS = 200  # of an episode, which only the time limit ends


def controller(obs: np.ndarray, rng: np.random.Generator, strength: float = 0.35) -> np.ndarray:
    """Swings the pendulum up and holds it, too weakly and with a shaking hand; a torque (1,)."""
    angle, speed = np.arctan2(obs[1], obs[0]), obs[2]
    energy = speed**2 / 6 + 5 * (obs[0] - 1)  # zero at rest on the top
    hold = np.clip(-8.0 * angle - 2.0 * speed, -2.0, 2.0)
    pump = -2.0 * np.sign(energy) * np.sign(speed or 1.0)
    torque = strength * (hold if obs[0] > 0.8 else pump)
    return np.clip([torque + rng.normal(scale=1.5)], -2.0, 2.0).astype(np.float32)


def collect(episodes: int, seed: int, gamma: float = 0.99) -> tuple[OfflineDataset, float]:
    """Returns the data of the controller, and its mean return."""
    env, rng = gym.make("Pendulum-v1"), np.random.default_rng(seed)
    rows: dict[str, list[np.ndarray]] = {"obs": [], "action": [], "reward": [], "next_obs": []}
    for _ in range(episodes):
        obs, _ = env.reset(seed=int(rng.integers(2**31)))
        for _ in range(STEPS):
            action = controller(obs, rng)
            after, reward, *_ = env.step(action)
            for name, value in zip(rows, (obs, action, reward, after), strict=True):
                rows[name].append(np.asarray(value, np.float32))
            obs = after
    columns = {name: np.stack(values) for name, values in rows.items()}
    last = np.arange(len(columns["reward"])) % STEPS == STEPS - 1
    box = env.action_space
    dataset = OfflineDataset.from_arrays(
        **columns,
        terminated=np.zeros_like(last),
        truncated=last,
        low=box.low,
        high=box.high,
        gamma=gamma,
        source="Pendulum-v1, mediocre controller",
    )
    return dataset, float(columns["reward"].sum() / episodes)


def evaluate(act: Callable[[np.ndarray], np.ndarray], episodes: int, seed: int) -> np.ndarray:
    """Returns one return per episode of a policy from observations (1, 3) to torques (1, 1)."""
    env, returns = gym.make("Pendulum-v1"), np.zeros(episodes)
    for i in range(episodes):
        obs, _ = env.reset(seed=seed + i)
        for _ in range(STEPS):
            obs, reward, *_ = env.step(np.asarray(act(obs[None]))[0])
            returns[i] += reward
    return returns
