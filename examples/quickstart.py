"""The main job: collect a dataset, train on it offline, evaluate, print a table, draw pictures.

    python -m examples.quickstart [--updates 5000] [--seeds 1] [--episodes 200] [--smoke]

1. A controller drives PointMaze and its trips become a Minari dataset.
2. Behaviour cloning (no critic) and GTP learn from that dataset alone, never from the environment.
3. Both drive the maze: random start to random goal, the same ones for both.
4. GTP's critic judges trips of the data: how good each action was, and how much it counted.
5. The four-mode bandit, an illustration, shows what a generative policy is for.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from examples import bandit
from examples.plots import plot_advantage, plot_bandit, plot_flow, plot_trajectories
from examples.pointmaze import UMAZE, EvaluationResult, behaviour, collect, evaluate, maze_map
from gtp_datasets import load_minari, report
from gtp_policy import (
    Curriculum,
    ExpectileBaseline,
    GTPConfig,
    GTPLearner,
    OfflineDataset,
    QEnsembleConfig,
    presets,
)
from gtp_policy.functional import sample_flow

BEHAVIOUR, CLONING, GTP = "behaviour (the data)", "behaviour cloning (η = 0)", "GTP"
GAMMA = 0.99
MINUTES = "three minutes of one core"  # what the defaults take
BATCH = 128  # of the maze policies: half of the benchmark's, for two thirds of its time
FAR_CORNER = (-1.0, -1.0)  # one end of the U


class Judgement(NamedTuple):
    """What a critic says of the data's trips to one place."""

    position: np.ndarray  # (n, 2), where each action was taken
    advantage: np.ndarray  # (n,)
    weight: np.ndarray  # (n,), of the action in the policy's loss


class Run(NamedTuple):
    """One trained policy and how it drove."""

    policy: str
    seed: int
    updates: int
    ms_per_update: float
    result: EvaluationResult
    judgement: Judgement | None = None  # of a policy with a critic


def maze_dataset_id(steps: int) -> str:
    """Returns the id under which the collected dataset is kept."""
    return f"gtp-policy/pointmaze-umaze-{steps}-v0"


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Returns a pool whose processes share one lock for their progress bars.

    Spawned, since a fork would copy torch's thread pool in an undefined state.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(
        workers, context, initializer=tqdm.set_lock, initargs=(context.RLock(),)
    )


def maze_config(eta: float, updates: int, seed: int) -> GTPConfig:
    """Returns the paper's method with small networks and fast targets, for minutes on a CPU."""
    paper, hidden, ema_rate = presets.paper_loss(), (256, 256), 0.02
    curriculum = Curriculum(start=10, end=80).capped(updates, ema_rate)
    return GTPConfig(
        actor=paper.actor.replace(hidden=hidden, steps=2),
        critic=QEnsembleConfig(hidden=hidden, layer_norm=False) if eta else None,
        loss=paper.loss.replace(curriculum=curriculum),
        weighter=paper.weighter.replace(eta=eta),
        learner=paper.learner.replace(
            total_updates=updates,
            actor_lr=1e-3,
            critic_lr=1e-3,
            lr_schedule="cosine",
            ema_rate=ema_rate,
            baseline=ExpectileBaseline(expectile=0.7, hidden=hidden),
            seed=seed,
        ),
    )


def train(
    dataset: OfflineDataset, config: GTPConfig, *, name: str, line: int = 0, batch_size: int = 256
) -> tuple[GTPLearner, float]:
    """Trains for ``total_updates`` and returns the learner and the milliseconds per update.

    A terminal gets a progress bar, a file a line per quarter.
    """
    torch.set_num_threads(1)  # small matrices: a second thread costs more than it brings
    learner = GTPLearner.from_dataset(dataset, config)
    total = config.learner.total_updates
    bar = tqdm(total=total, desc=name, position=line, disable=None)
    start = time.perf_counter()
    while learner.updates < total:
        updates = min(200, total - learner.updates)
        metrics = learner.update_from(dataset, updates, batch_size=batch_size)
        bar.set_postfix(flow=f"{metrics.to_floats()['flow']:.3f}", refresh=False)
        bar.update(updates)
        if bar.disable and learner.updates * 4 // total > (learner.updates - updates) * 4 // total:
            print(f"{name}: {learner.updates:,} of {total:,} updates", flush=True)
    bar.close()
    return learner, 1000 * (time.perf_counter() - start) / total


def drive(
    learner: GTPLearner, dataset: OfflineDataset, episodes: int, seed: int
) -> EvaluationResult:
    """Evaluates a learner in the maze; its noise is a function of the evaluation's seed."""
    generator = torch.Generator().manual_seed(seed)

    def act(obs: np.ndarray) -> np.ndarray:
        action = learner.act(torch.from_numpy(obs), generator=generator)
        return dataset.action_scaler.to_box(action).numpy()

    return evaluate(act, env_id=UMAZE, episodes=episodes, seed=seed)


def judge(
    learner: GTPLearner, dataset: OfflineDataset, goal: tuple[float, float] = FAR_CORNER
) -> Judgement:
    """Asks the critic about the data's trips to the cell around a goal."""
    everything = dataset.transitions
    there = (everything.obs[:, 6:] - torch.tensor(goal)).abs().amax(1) < 0.5
    obs, action = everything.obs[there], everything.action[there]
    advantage = learner.advantage(obs, action)
    return Judgement(*(x.numpy() for x in (obs[:, :2], advantage, learner.weighter(advantage))))


def run_maze(
    dataset_id: str,
    eta: float,
    seed: int,
    updates: int,
    episodes: int,
    line: int,
    batch_size: int = 256,
) -> Run:
    """Trains and evaluates one policy: a job for a separate process."""
    dataset, name = load_minari(dataset_id, gamma=GAMMA), GTP if eta else CLONING
    config = maze_config(eta, updates, seed)
    learner, ms = train(dataset, config, name=seeded(name, seed), line=line, batch_size=batch_size)
    result = drive(learner, dataset, episodes, seed=10_000)
    return Run(name, seed, updates, ms, result, judge(learner, dataset) if eta else None)


def run_bandit(updates: int, line: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Clones the four-mode bandit; returns samples by panel, the flow from noise, its times."""
    dataset, n = bandit.make_dataset(), 3000
    config = bandit.one_step_config(updates)
    config = config.replace(actor=config.actor.replace(hidden=(128, 128, 128)))
    learner, _ = train(dataset, config, name="four-mode bandit", line=line)
    panels = {
        "data": dataset.transitions.action[:n],
        "Gaussian cloning": bandit.gaussian_clone(dataset, n),
    }
    for steps in (1, 2, 5):
        generator = torch.Generator().manual_seed(0)
        panels[f"GTP, K = {steps}"] = learner.act(
            torch.zeros(n, 1), steps=steps, generator=generator
        )
    actor, start = learner.target_actor, 400
    grid = actor.times.grid(5)
    z = torch.randn((start, 2), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        flow = sample_flow(actor, torch.zeros(start, 1), grid[0] * z, grid)
        paths = actor.action_mean + actor.action_scale * flow  # what moves is standardised
    return {k: v.numpy() for k, v in panels.items()}, paths.numpy(), grid.numpy()


def summarize(runs: list[Run], data: EvaluationResult) -> str:
    """Returns the table: a row per policy and seed, and the mean over seeds where there are more.

    The figures are those of the titles in ``trajectories.png``.
    """
    rows = [("policy", "success", "steps to goal", "discounted return", "updates", "ms/update")]

    def add(name: str, results: list[EvaluationResult], *costs: str) -> None:
        def cell(values: list[float], form: str) -> str:
            spread = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
            return f"{np.mean(values):{form}}{spread}"

        success = cell([100 * r.success.mean() for r in results], ".1f")
        steps = cell([r.steps.mean() for r in results], ".1f")
        value = cell([(r.success * GAMMA ** (r.steps - 1.0)).mean() for r in results], ".3f")
        rows.append((name, f"{success} %", steps, value, *(costs or ("-", "-"))))

    add(BEHAVIOUR, [data])
    for policy in (CLONING, GTP):
        mine = [run for run in runs if run.policy == policy]
        for run in mine:
            costs = f"{run.updates:,}", f"{run.ms_per_update:.1f}"
            add(seeded(policy, run.seed), [run.result], *costs)
        if len(mine) > 1:
            add(f"{policy}, mean ± std", [run.result for run in mine])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)


def seeded(policy: str, seed: int) -> str:
    """Returns what tables and pictures call a trained policy."""
    return f"{policy}, seed {seed}"


def main() -> None:
    """Runs the main job."""
    parser = argparse.ArgumentParser(description="Collect, train offline, evaluate, draw.")
    parser.add_argument("--steps", type=int, default=100_000, help="environment steps to collect")
    parser.add_argument("--updates", type=int, default=5000, help="updates of each maze policy")
    parser.add_argument("--bandit-updates", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=200, help="evaluation episodes per seed")
    parser.add_argument("--eta", type=float, default=3.0, help="temperature of GTP's weights")
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    parser.add_argument("--smoke", action="store_true", help="tiny figures: runs, learns nothing")
    args = parser.parse_args()
    if args.smoke:
        args.steps, args.updates, args.bandit_updates, args.seeds, args.episodes = (
            2000,
            30,
            30,
            1,
            4,
        )
    jobs = [(eta, seed) for seed in range(args.seeds) for eta in (args.eta, 0.0)]
    # To start a process takes longer than what a smoke test has it do.
    workers = 1 if args.smoke else min(os.cpu_count() or 1, len(jobs) + 1)
    print(
        f"""Offline reinforcement learning in a maze, in four steps. The defaults take {MINUTES}.

1. collect: a controller drives a ball through a maze, {args.steps:,} steps, kept as a dataset;
2. train on that dataset alone, {args.updates:,} updates: a clone of the controller, and GTP;
3. evaluate both, {args.episodes} trips each from random starts to random goals, and print a table;
4. draw four pictures into {args.output}.

Processes: {workers}. What was collected before is used again.
""",
        flush=True,
    )
    began = time.perf_counter()
    os.environ.setdefault("MINARI_DATASETS_PATH", str((args.output / "minari").resolve()))
    dataset_id = maze_dataset_id(args.steps)
    print("Collecting, or looking for what was collected ...", flush=True)
    collected = collect(dataset_id, steps=args.steps)
    print(report(load_minari(dataset_id, gamma=GAMMA)), "\n")

    print(
        f"Training {len(jobs)} maze policies and the bandit, {workers} at a time ...\n", flush=True
    )
    with worker_pool(workers) as pool:
        futures = [
            pool.submit(run_maze, dataset_id, *job, args.updates, args.episodes, line, BATCH)
            for line, job in enumerate(jobs)
        ]
        illustration = pool.submit(run_bandit, args.bandit_updates, len(jobs))
        runs = [future.result() for future in futures]
        panels, paths, times = illustration.result()

    data = behaviour(collected)
    print("\n" * len(jobs) if sys.stderr.isatty() else "")  # below the progress bars
    print(summarize(runs, data))
    print(
        f"\n{args.episodes} episodes per seed, failures count as 300 steps. Starts and goals are "
        "random, the same\nfor both learners and others than the data's. The README has five seeds "
        "with intervals."
    )
    first = {run.policy: run for run in runs if run.seed == 0}
    shown = {BEHAVIOUR: data} | {seeded(p, 0): first[p].result for p in (CLONING, GTP)}
    judgement, maze = first[GTP].judgement, maze_map(UMAZE)
    assert judgement is not None  # GTP has a critic
    pictures = {
        plot_trajectories(args.output / "trajectories.png", maze, shown): "trips of each policy",
        plot_advantage(
            args.output / "advantage.png", maze, *judgement, FAR_CORNER
        ): "what GTP's critic says of the data, and how much each action counts",
        plot_bandit(args.output / "bandit.png", panels): "four modes, by each number of jumps",
        plot_flow(args.output / "flow.png", paths, times): "from noise to those actions",
    }
    print("\nPictures:")
    for path, what in pictures.items():
        print(f"  {path}: {what}")
    print(f"\n{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
