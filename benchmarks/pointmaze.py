"""PointMaze UMaze, random start to random goal: behaviour cloning and GTP over seeds, as JSON.

    python -m benchmarks.pointmaze [--seeds 5] [--updates 6000] [--output FILE]

The dataset is collected by `examples.pointmaze` (100k steps of its waypoint controller) and the
policies are those of `examples.quickstart`, trained longer. Every policy is evaluated with its last
weights, on the same episodes. The interval of the difference is a bootstrap over seeds and, within
them, over episodes.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.clock import training_parser, versions
from benchmarks.pages import RESULTS, write
from examples.pointmaze import REVISION, UMAZE, behaviour, collect
from examples.quickstart import (
    CLONING,
    GAMMA,
    GTP,
    Run,
    maze_config,
    maze_dataset_id,
    run_maze,
    worker_pool,
)
from gtp_experiments import mean_interval


def figures(success: np.ndarray, steps: np.ndarray) -> dict[str, Any]:
    """Returns mean, seed spread and interval of each figure for (seeds, episodes) arrays."""
    values = {
        "success": success.astype(float),
        "steps": steps.astype(float),
        "discounted_return": success * GAMMA ** (steps - 1.0),
    }
    return {
        name: {
            "mean": float(v.mean()),
            "std_over_seeds": float(v.mean(1).std(ddof=1)) if len(v) > 1 else None,
            "std_over_episodes": float(v.std()),
            "interval_95": mean_interval(v),
        }
        for name, v in values.items()
    }


def main() -> None:
    """Trains and evaluates every policy and writes the figures."""
    parser = training_parser(__doc__, RESULTS / "pointmaze.json", updates=6_000, seeds=5)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--eta", type=float, default=3.0)
    parser.add_argument("--data", type=Path, default=Path("outputs/minari"))
    args = parser.parse_args()
    os.environ.setdefault("MINARI_DATASETS_PATH", str(args.data.resolve()))
    dataset_id = maze_dataset_id(100_000)
    data = behaviour(collect(dataset_id))
    with worker_pool(args.processes) as pool:
        futures = [
            pool.submit(run_maze, dataset_id, eta, seed, args.updates, args.episodes, 0)
            for seed in range(args.seeds)
            for eta in (args.eta, 0.0)
        ]
        runs = [future.result() for future in futures]
    groups: dict[str, list[Run]] = {
        name: [run for run in runs if run.policy == name] for name in (CLONING, GTP)
    }
    success = {k: np.stack([r.result.success for r in v]) for k, v in groups.items()}
    steps = {k: np.stack([r.result.steps for r in v]) for k, v in groups.items()}
    record = {
        "command": f"python -m benchmarks.pointmaze --seeds {args.seeds} --updates {args.updates} "
        f"--episodes {args.episodes} --eta {args.eta}",
        "environment": UMAZE,
        "data": f"examples.pointmaze.collect, 100000 steps, seed 0, controller {REVISION}",
        "evaluation": "last weights, random start to random goal, the same episodes for all",
        "seeds": args.seeds,
        "episodes_per_seed": args.episodes,
        "updates": args.updates,
        "eta": args.eta,
        "versions": versions(["gymnasium", "gymnasium-robotics", "mujoco", "minari"]),
        "config": maze_config(args.eta, args.updates, 0).model_dump(mode="json"),
        "policies": {
            "behaviour": {
                "episodes": len(data.steps),
                **figures(data.success[None], data.steps[None]),
            },
            **{
                name: {
                    **figures(success[name], steps[name]),
                    "success_by_seed": success[name].mean(1).tolist(),
                    "ms_per_update": float(np.median([r.ms_per_update for r in groups[name]])),
                }
                for name in groups
            },
        },
        "gtp_minus_cloning": {
            "success": mean_interval(success[GTP].astype(float) - success[CLONING]),
            "steps": mean_interval((steps[GTP] - steps[CLONING]).astype(float)),
        },
    }
    write(record, args.output)
    for name, row in record["policies"].items():
        cells = [f"{k} {row[k]['mean']:.3f} {row[k]['interval_95']}" for k in ("success", "steps")]
        print(name, *cells, sep="  ")
    print("GTP - cloning:", record["gtp_minus_cloning"])
    print(f"wrote {args.output}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
