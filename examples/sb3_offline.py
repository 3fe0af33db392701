"""Offline training in Stable-Baselines3: own data or Minari, callbacks, TensorBoard, save, load.

    python examples/sb3_offline.py [--minari ID --env ENV] [--updates 8000] [--smoke]

Without --minari a clumsy controller swings a pendulum, and GTP learns from what it did.
"""

import argparse

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from gtp_policy import AdvantageWeighterConfig, GTPConfig
from gtp_sb3 import GTP


def own_data(steps: int) -> dict[str, np.ndarray]:
    """Lets the controller act; your logs go the same way: arrays, in the units of the world."""
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
    """Trains, keeps the best model, loads it and evaluates it once more."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minari", help="id of a Minari dataset on this machine")
    parser.add_argument("--env", default="Pendulum-v1", help="environment to evaluate in")
    parser.add_argument("--updates", type=int, default=8000, help="updates in all")
    parser.add_argument("--smoke", action="store_true", help="tiny figures: does it run?")
    args = parser.parse_args()
    updates, episodes = (20, 2) if args.smoke else (args.updates, 10)
    dataset = args.minari or own_data(400 if args.smoke else 20_000)

    env = make_vec_env(args.env, n_envs=episodes, seed=0)  # for its spaces; training never steps it
    model = GTP(
        "MultiInputPolicy" if isinstance(env.observation_space, gym.spaces.Dict) else "MlpPolicy",
        env,
        learning_rate=1e-3,
        dataset=dataset,
        gtp_config=GTPConfig(weighter=AdvantageWeighterConfig(eta=3.0)),
        policy_kwargs={"net_arch": [64, 64]},
        tensorboard_log="runs/sb3_offline",
        seed=0,
    )
    evaluation = EvalCallback(
        make_vec_env(args.env, n_envs=episodes, seed=1),
        eval_freq=updates // 4,
        n_eval_episodes=episodes,
        best_model_save_path="sb3_offline",
    )
    checkpoints = CheckpointCallback(updates // 2, "sb3_offline", name_prefix="gtp")
    model.learn(updates, callback=[evaluation, checkpoints], log_interval=max(updates // 20, 1))

    best = GTP.load("sb3_offline/best_model", env=env)
    mean, std = evaluate_policy(best, env, n_eval_episodes=episodes)
    print(f"return per episode: GTP {mean:.0f} ± {std:.0f}", end="")
    if not args.minari:
        print(f", data {dataset['reward'].sum() / dataset['truncated'].sum():.0f}", end="")
    print()


if __name__ == "__main__":
    main()
