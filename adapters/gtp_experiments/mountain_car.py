"""Logs to try things on: drives of a weak and shaky driver in Gymnasium's MountainCarContinuous."""

from typing import Any

import numpy as np

from gtp_experiments.environments import make_env
from gtp_policy import OfflineDataset

MOUNTAIN_CAR = "MountainCarContinuous-v0"


def mountain_car_logs(episodes: int = 60, *, seed: int = 0, gamma: float = 0.99) -> OfflineDataset:
    """Drives a car that is too weak for its hill, badly, and keeps what happened.

    The driver pushes in the direction of travel, which is how the car gets up, with a strength that
    differs from drive to drive and is negative in some; his hand shakes, with noise that is
    correlated from step to step. One drive in five never arrives. It takes a second, and no
    file and no network.

    Args:
        episodes: How many drives.
        seed: Of the starts and of the driver; the same seed gives the same logs.
        gamma: Discount factor.

    Returns:
        The logs.

    Raises:
        ValueError: If ``episodes`` is smaller than 1.

    Example:
        >>> from gtp_datasets import report
        >>> from gtp_experiments import mountain_car_logs
        >>> logs = mountain_car_logs(2)
        >>> report(logs).episodes, logs.obs_dim, logs.action_scaler
        (2, 2, ActionScaler(low=[-1.0], high=[1.0]))
    """
    if episodes < 1:
        raise ValueError(f"`episodes` is out of range: got {episodes}, expected at least 1.")
    env, rng = make_env(MOUNTAIN_CAR), np.random.default_rng(seed)
    rows = []
    for _ in range(episodes):
        strength, drift, over = rng.uniform(-0.2, 0.4), 0.0, False
        obs, _ = env.reset(seed=int(rng.integers(2**31)))
        while not over:
            drift = 0.9 * drift + 0.26 * rng.normal()
            push = strength * np.sign(obs[1]) + drift
            action = np.clip([push], -1.0, 1.0).astype(np.float32)
            after, reward, terminated, truncated, _ = env.step(action)
            rows.append((obs, action, reward, terminated, truncated, after))
            obs, over = after, terminated or truncated
    env.close()
    names = ("obs", "action", "reward", "terminated", "truncated", "next_obs")
    columns: dict[str, Any] = dict(zip(names, map(np.stack, zip(*rows, strict=True)), strict=True))
    return OfflineDataset.from_arrays(
        **columns, low=[-1.0], high=[1.0], gamma=gamma, source=f"{MOUNTAIN_CAR}, a weak driver"
    )
