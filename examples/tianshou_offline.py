"""Offline training in Tianshou: own data or Minari, trainer, TensorBoard, checkpoint, evaluation.

    python examples/tianshou_offline.py [--minari ID --env ENV] [--updates 6000] [--smoke]

Without --minari a clumsy controller swings a pendulum, and GTP learns from what it did.
"""

import argparse

import gymnasium as gym
import numpy as np
from tianshou.data import Collector, CollectStats, ReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OfflineTrainerParams
from tianshou.utils import TensorboardLogger
from torch.utils.tensorboard import SummaryWriter

from gtp_policy import GTPConfig, OfflineDataset
from gtp_tianshou import GTP, buffer_from_dataset, buffer_from_minari


def own_data(steps: int) -> ReplayBuffer:
    """Lets the controller act; your logs go the same way: arrays, dataset, buffer."""
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
    columns = dict(zip(names, map(np.stack, zip(*rows, strict=True)), strict=True))
    return buffer_from_dataset(OfflineDataset.from_arrays(**columns, low=[-2], high=[2]))


def main() -> None:
    """Trains, keeps the best policy, loads it and evaluates it once more."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minari", help="id of a Minari dataset on this machine")
    parser.add_argument("--env", default="Pendulum-v1", help="environment to evaluate in")
    parser.add_argument("--updates", type=int, default=6000, help="updates in all")
    parser.add_argument("--smoke", action="store_true", help="tiny figures: does it run?")
    args = parser.parse_args()
    updates, episodes = (20, 2) if args.smoke else (args.updates, 10)
    buffer = buffer_from_minari(args.minari) if args.minari else own_data(max(400, 3 * updates))

    envs = DummyVectorEnv([lambda: gym.make(args.env) for _ in range(episodes)])
    envs.seed(0)
    spaces = {"action_space": envs.action_space[0], "observation_space": envs.observation_space[0]}
    config = {
        "actor": {"hidden": (64, 64)},
        "critic": {"hidden": (64, 64)},
        "weighter": {"eta": 3.0},
        "learner": {"actor_lr": 1e-3, "critic_lr": 1e-3},
    }
    algorithm = GTP.from_buffer(buffer, config=GTPConfig.model_validate(config), **spaces)
    collector = Collector[CollectStats](algorithm, envs)
    collector.reset()
    algorithm.run_training(
        OfflineTrainerParams(
            buffer=buffer, batch_size=256, max_epochs=4, epoch_num_steps=updates // 4,
            test_collector=collector, test_step_num_episodes=episodes,
            logger=TensorboardLogger(SummaryWriter("runs/tianshou_offline"), update_interval=10),
            save_best_fn=lambda best: best.save("tianshou_offline.zip"),
        )
    )  # fmt: skip
    best = GTP.load("tianshou_offline.zip", **spaces)
    collector = Collector[CollectStats](best, envs)
    collector.reset()
    returns = collector.collect(n_episode=episodes).returns
    data = buffer.rew.sum() / buffer.done.sum()
    print(f"return per episode: data {data:.0f}, GTP {returns.mean():.0f} ± {returns.std():.0f}")


if __name__ == "__main__":
    main()
