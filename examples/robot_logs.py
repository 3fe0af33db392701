"""From robot logs to a policy: load, look, clone in chunks, judge offline, improve with rewards.

    python examples/robot_logs.py [--smoke] [--out outputs/robot-logs]   # some minutes

The page `docs/tutorials/robot-logs.md` walks through this file. It needs the extras ``datasets``
and ``plots``.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it also runs as a file

from examples.arm import LIMIT, STEPS, Arm, record, write_logs
from gtp_datasets import load_dataset, report
from gtp_experiments import fit_of_actions, plot_actions
from gtp_policy import (
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    OfflineDataset,
    load_checkpoint,
    save_checkpoint,
)


# start: load
def load(folder: Path) -> OfflineDataset:
    """Reads a folder of npz files, one per episode."""
    return load_dataset(folder, obs=["joints", "target"], action="command", low=-LIMIT, high=LIMIT)


# end: load


# start: clone
def clone(logs: OfflineDataset, updates: int) -> GTPLearner:
    """Clones the logs in chunks of four commands, looking back one observation."""
    chunks = logs.with_history(2).with_chunks(4)
    config = GTPConfig(
        critic=None,  # no rewards yet
        learner=GTPLearnerConfig(total_updates=updates, normalize_actions=True),
    )
    learner = GTPLearner.from_dataset(chunks, config)
    learner.update_from(chunks, updates)
    return learner


# end: clone


# start: reward
def with_rewards(logs: OfflineDataset) -> OfflineDataset:
    """Returns the logs with a reward: minus the distance to the target after each step."""
    seen = logs.transitions.next_obs
    away = (seen[:, :7] - seen[:, 7:]) / torch.from_numpy(LIMIT)
    return logs.with_reward_column(-away.square().mean(1).sqrt())


# end: reward


# start: improve
def improve(checkpoint: Path, logs: OfflineDataset, updates: int) -> GTPLearner:
    """Goes on from the clone, with a critic that learns what follows from a chunk."""
    chunks, source = logs.with_history(2).with_chunks(4), load_checkpoint(checkpoint).learner
    config = GTPConfig(learner=GTPLearnerConfig(total_updates=updates, normalize_actions=True))
    learner = GTPLearner.from_actor(source, config)
    learner.update_from(chunks, updates)
    return learner


# end: improve


# start: drive
def drive(learner: GTPLearner, logs: OfflineDataset, arms: int = 200) -> np.ndarray:
    """Returns the distances to targets that nobody has driven to, shape (40, arms)."""
    arm, player, distances = Arm(arms, seed=1), learner.player(), []
    for _ in range(STEPS):
        obs = torch.from_numpy(arm.obs).float()
        arm.step(logs.action_scaler.to_box(player.act(obs).numpy()))
        distances.append(arm.distance)
    return np.array(distances)


# end: drive


def of_operators(episodes: int) -> np.ndarray:
    """Returns the operators' distances, on episodes that are in no log, shape (40, episodes)."""
    distances = []
    for number in range(episodes):
        arm = Arm(1, seed=0)
        logged = record(number, seed=3)
        arm.joints, arm.target = logged["joints"][:1], logged["target"][:1]
        way = []
        for command in logged["command"]:
            arm.step(command[None])
            way.append(arm.distance[0])
        distances.append(way)
    return np.array(distances).T


def picture(path: Path, distances: dict[str, np.ndarray]) -> None:
    """Draws the distance to the target over time: the mean, and where half of the episodes are."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    seconds = np.arange(1, STEPS + 1) / 20
    for name, distance in distances.items():
        (line,) = axes.plot(seconds, distance.mean(1), label=name)
        low, high = np.quantile(distance, [0.25, 0.75], axis=1)
        axes.fill_between(seconds, low, high, color=line.get_color(), alpha=0.15, lw=0)
    axes.set(xlabel="seconds", ylabel="distance to the target", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Walks the five steps; writes pictures and what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="few updates: runs, learns little")
    parser.add_argument("--out", type=Path, default=Path("outputs/robot-logs"))
    args = parser.parse_args()
    episodes, updates = (12, 20) if args.smoke else (300, 5000)
    out = args.out
    write_logs(out / "logs", episodes)
    write_logs(out / "held_out", max(6, episodes // 10), seed=1)

    logs, held_out = load(out / "logs"), load(out / "held_out")
    print(report(logs))

    cloned = clone(logs, updates)
    checkpoint = save_checkpoint(out / "clone.zip", cloned, action_scaler=logs.action_scaler)
    plot_actions(cloned, held_out).savefig(out / "actions.png", dpi=80)

    fit = fit_of_actions(cloned, held_out)
    print("error of each joint over its spread:", np.round(fit.relative_error, 2))
    print(f"distance {fit.distance:.3f}, between halves of the data {fit.floor:.3f}")

    improved = improve(checkpoint, with_rewards(logs), updates)
    save_checkpoint(out / "policy.zip", improved, action_scaler=logs.action_scaler)
    distances = {
        "operators": of_operators(200),
        "clone": drive(cloned, logs),
        "with rewards": drive(improved, logs),
    }
    picture(out / "distance.png", distances)
    measured = {
        name: {"mean": float(d.mean()), "last": float(d[-1].mean())}
        for name, d in distances.items()
    }
    for name, figures in measured.items():
        print(f"{name}: mean distance {figures['mean']:.3f}, at the end {figures['last']:.3f}")
    found = {
        "updates": updates, "episodes": episodes, "distances": measured,
        "relative_error": fit.relative_error.tolist(), "error": fit.error.tolist(),
        "distance": fit.distance, "floor": fit.floor,
    }  # fmt: skip
    (out / "measured.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
