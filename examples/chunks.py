"""Clone an arm's position commands one by one and in chunks, and follow movements not seen before.

    python examples/chunks.py [--smoke]

An illustration. Two joints move from anywhere to a target, slowly at both ends; observed are the
joints and the target, not the speed. At rest, one step says little of the movement to come.
"""

import argparse

import numpy as np
import torch

from gtp_policy import FlowMapActorConfig, GTPConfig, GTPLearner, GTPLearnerConfig, OfflineDataset
from gtp_policy.times import LinearTimes

STEPS, LIMIT = 24, 1.2


def movement(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns the joints at every step, (25, 2), and the target, (2,)."""
    start, target = rng.uniform(-1, 1, (2, 2))
    s = np.arange(STEPS + 1)[:, None] / STEPS
    return start + (target - start) * (10 * s**3 - 15 * s**4 + 6 * s**5), target


def logs(count: int, rng: np.random.Generator) -> OfflineDataset:
    """Returns what a controller logged: commands are the next position, up to some noise."""
    moves = [movement(rng) for _ in range(count)]
    command = np.concatenate([path[1:] for path, _ in moves])
    command += rng.normal(0, 0.01, command.shape)
    before, after = (
        np.concatenate([np.c_[path[own], np.tile(target, (STEPS, 1))] for path, target in moves])
        for own in (slice(None, -1), slice(1, None))
    )
    return OfflineDataset.from_arrays(
        obs=before, action=command.clip(-LIMIT, LIMIT), next_obs=after,
        reward=np.zeros(len(command)), terminated=np.zeros(len(command)),
        truncated=np.arange(len(command)) % STEPS == STEPS - 1,
        low=[-LIMIT] * 2, high=[LIMIT] * 2,
    )  # fmt: skip


def follow(learner: GTPLearner, dataset: OfflineDataset, count: int = 40) -> tuple[float, int]:
    """Returns the mean distance to new movements, and how often the policy was asked."""
    moves = [movement(np.random.default_rng(1000 + i)) for i in range(count)]
    joints, calls, player = np.stack([path[0] for path, _ in moves]), [], learner.player()
    plan = player.plan
    player.plan = lambda obs: calls.append(len(obs)) or plan(obs)
    distance = []
    for t in range(STEPS):
        obs = np.c_[joints, np.stack([target for _, target in moves])].astype(np.float32)
        command = dataset.action_scaler.to_box(player.act(torch.from_numpy(obs)).numpy())
        joints = joints + (command - joints).clip(-0.25, 0.25)
        there = np.stack([path[t + 1] for path, _ in moves])
        distance.append(np.linalg.norm(joints - there, axis=1).mean())
    return float(np.mean(distance)), len(calls)


def main() -> None:
    """Trains both on the same logs and prints how they follow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="few updates: runs, learns little")
    updates = 20 if parser.parse_args().smoke else 1000
    config = GTPConfig(
        critic=None,
        actor=FlowMapActorConfig(hidden=(64, 64), steps=2, times=LinearTimes()),
        learner=GTPLearnerConfig(total_updates=updates, actor_lr=2e-3, ema_rate=0.01,
                                 normalize_actions=True),
    )  # fmt: skip
    for h in (1, 4):
        dataset = logs(100, np.random.default_rng(0)).with_chunks(h)
        learner = GTPLearner.from_dataset(dataset, config)
        learner.update_from(dataset, updates, batch_size=128)
        distance, calls = follow(learner, dataset)
        print(f"chunks of {h}: mean distance {distance:.2f}, {calls} calls for {STEPS} steps")


if __name__ == "__main__":
    main()
