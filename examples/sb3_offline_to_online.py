"""Offline, then online, in Stable-Baselines3: a policy from data goes on learning by itself.

    python examples/sb3_offline_to_online.py [--updates 1000] [--steps 3000] [--smoke]

1. A clumsy controller swings a pendulum.
2. GTP learns from what it did, without touching the environment.
3. The same model goes on online; the data is the beginning of its replay buffer.
"""

import argparse

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from gtp_policy import AdvantageWeighterConfig, GTPConfig
from gtp_sb3 import GTP


def clumsy_data(steps: int) -> dict[str, np.ndarray]:
    """Lets the controller act; returns columns of transitions in the units of the world."""
    env, rng, rows = gym.make("Pendulum-v1"), np.random.default_rng(0), []
    obs, _ = env.reset(seed=0)
    for _ in range(steps):
        cos, sin, speed = obs
        energy = speed**2 / 2 + 15 * (cos - 1)  # 0 at rest on the top
        push = -5 * np.arctan2(sin, cos) - speed if cos > 0.8 else -0.015 * speed * energy
        action = np.clip([push + 2 * rng.normal()], -2, 2).astype(np.float32)
        after, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, action, reward, terminated, truncated, after))
        obs = env.reset()[0] if terminated or truncated else after
    names = ("obs", "action", "reward", "terminated", "truncated", "next_obs")
    return dict(zip(names, map(np.stack, zip(*rows, strict=True)), strict=True))


def main() -> None:
    """Trains twice and evaluates after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--updates", type=int, default=1000, help="updates on the data")
    parser.add_argument("--steps", type=int, default=3000, help="steps in the environment")
    parser.add_argument("--smoke", action="store_true", help="tiny figures: does it run?")
    args = parser.parse_args()
    if args.smoke:
        args.updates = args.steps = 20
    data = clumsy_data(400 if args.smoke else 20_000)
    episodes = 2 if args.smoke else 10
    print(f"data: {data['reward'].sum() / data['truncated'].sum():.0f} per episode")

    env = make_vec_env("Pendulum-v1", seed=0)
    model = GTP(
        "MlpPolicy",
        env,
        learning_rate=1e-3,
        learning_starts=0,  # the replay buffer is not empty when the environment starts
        dataset=data,
        gtp_config=GTPConfig(weighter=AdvantageWeighterConfig(eta=3.0)),
        policy_kwargs={"net_arch": [64, 64]},
        seed=0,
    )

    def report(when: str) -> None:
        mean, std = evaluate_policy(model, make_vec_env("Pendulum-v1", seed=1), episodes)
        print(f"{when}: {mean:.0f} ± {std:.0f} per episode")

    model.learn(args.updates)
    report(f"after {args.updates} updates offline")

    model.set_dataset(None, keep_data=True)
    model.learn(args.steps)
    report(f"after {args.steps} steps online")
    model.save("sb3_offline_to_online")


if __name__ == "__main__":
    main()
