"""The main job: collect a dataset, train on it offline, evaluate, print a table, draw pictures.

    python -m examples.quickstart [--updates 4000] [--seeds 2] [--episodes 100] [--smoke]

1. A controller drives PointMaze and its trips become a Minari dataset.
2. Behaviour cloning (eta = 0) and GTP learn from that dataset alone, never from the environment.
3. Both drive the maze: random start to random goal, the same ones for both.
4. The four-mode bandit, an illustration, shows what a generative policy is for.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from examples import bandit
from examples.plots import plot_bandit, plot_flow, plot_trajectories
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

CLONING, GTP = "behaviour cloning (η = 0)", "GTP"
GAMMA = 0.99


class Run(NamedTuple):
    """One trained policy and how it drove."""

    policy: str
    seed: int
    updates: int
    ms_per_update: float
    result: EvaluationResult


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
    dataset: OfflineDataset, config: GTPConfig, *, name: str, line: int = 0
) -> tuple[GTPLearner, float]:
    """Trains for ``total_updates`` and returns the learner and the milliseconds per update.

    The progress bar is drawn on a terminal, not into a file.
    """
    torch.set_num_threads(1)  # small matrices: a second thread costs more than it brings
    learner = GTPLearner.from_dataset(dataset, config)
    total = config.learner.total_updates
    bar = tqdm(total=total, desc=name, position=line, disable=None)
    start = time.perf_counter()
    while learner.updates < total:
        updates = min(200, total - learner.updates)
        metrics = learner.update_from(dataset, updates, batch_size=256)
        bar.set_postfix(flow=f"{metrics.to_floats()['flow']:.3f}", refresh=False)
        bar.update(updates)
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


def run_maze(dataset_id: str, eta: float, seed: int, updates: int, episodes: int, line: int) -> Run:
    """Trains and evaluates one policy: a job for a separate process."""
    dataset = load_minari(dataset_id, gamma=GAMMA)
    name = GTP if eta else CLONING
    learner, ms = train(
        dataset, maze_config(eta, updates, seed), name=f"{name}, seed {seed}", line=line
    )
    return Run(name, seed, updates, ms, drive(learner, dataset, episodes, seed=10_000))


def run_bandit(updates: int, line: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Clones the four-mode bandit; returns samples by panel, the flow from noise, its times."""
    dataset, n = bandit.make_dataset(), 3000
    config = bandit.one_step_config(updates)
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
    """Returns the table: each figure's mean ± std over seeds, and its std over episodes."""

    def cell(values: list[np.ndarray], digits: int) -> str:
        means, pooled = [v.mean() for v in values], np.concatenate(values)
        seeds = f" ± {np.std(means, ddof=1):.{digits}f}" if len(means) > 1 else ""
        return f"{np.mean(means):.{digits}f}{seeds} ({pooled.std():.{digits}f})"

    rows = [("policy", "success", "steps to goal", "discounted return", "updates", "ms/update")]
    for policy in ("behaviour (the data)", CLONING, GTP):
        mine = [run for run in runs if run.policy == policy]
        results = [run.result for run in mine] or [data]
        rows.append(
            (
                policy,
                cell([r.success.astype(float) for r in results], 3),
                cell([r.steps.astype(float) for r in results], 1),
                cell([r.success * GAMMA ** (r.steps - 1.0) for r in results], 3),
                str(mine[0].updates) if mine else "-",
                f"{np.mean([run.ms_per_update for run in mine]):.1f}" if mine else "-",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    """Runs the main job."""
    parser = argparse.ArgumentParser(description="Collect, train offline, evaluate, draw.")
    parser.add_argument("--steps", type=int, default=100_000, help="environment steps to collect")
    parser.add_argument("--updates", type=int, default=4000, help="updates of each maze policy")
    parser.add_argument("--bandit-updates", type=int, default=8000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=100, help="evaluation episodes per seed")
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
    began = time.perf_counter()
    os.environ.setdefault("MINARI_DATASETS_PATH", str((args.output / "minari").resolve()))
    dataset_id = maze_dataset_id(args.steps)
    collected = collect(dataset_id, steps=args.steps)
    print(report(load_minari(dataset_id, gamma=GAMMA)), "\n")

    jobs = [(eta, seed) for seed in range(args.seeds) for eta in (args.eta, 0.0)]
    workers = min(os.cpu_count() or 1, len(jobs) + 1)
    print(f"Training {len(jobs)} maze policies and the bandit, {workers} at a time ...\n")
    with worker_pool(workers) as pool:
        illustration = pool.submit(run_bandit, args.bandit_updates, 0)
        futures = [
            pool.submit(run_maze, dataset_id, *job, args.updates, args.episodes, line)
            for line, job in enumerate(jobs, start=1)
        ]
        runs = [future.result() for future in futures]
        panels, paths, times = illustration.result()

    data = behaviour(collected)
    print("\n" * len(jobs))
    print(summarize(runs, data))
    print(
        f"\nMean ± std over {args.seeds} seeds (std over episodes; {args.episodes} per seed, "
        "failures count as 300 steps).\nDrawn from random starts to random goals, which are the "
        "same for both learners and others than the data's."
    )
    first = {run.policy: run.result for run in runs if run.seed == 0}
    shown = {"behaviour (the data)": data, CLONING: first[CLONING], GTP: first[GTP]}
    pictures = [
        plot_trajectories(args.output / "trajectories.png", maze_map(UMAZE), shown),
        plot_bandit(args.output / "bandit.png", panels),
        plot_flow(args.output / "flow.png", paths, times),
    ]
    print("Pictures:", ", ".join(str(path) for path in pictures))
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
