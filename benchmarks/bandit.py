"""The four-mode bandit: mode coverage of GTP at K = 1, 2, 5, 10 and of a Gaussian, as JSON.

    python -m benchmarks.bandit [--seeds 5] [--updates 15000] [--output FILE]

Behaviour cloning (eta = 0) for every seed, then one run with advantage weights and reward at one
mode, whose mode frequencies are compared with pi_BC * w. Seeds run in separate processes.
"""

import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.clock import training_parser, versions
from benchmarks.pages import RESULTS, write
from examples.bandit import (
    MODES,
    STD,
    gaussian_clone,
    make_config,
    make_dataset,
    mode_shares,
    tilted_frequencies,
    train_clone,
    train_weighted,
)
from gtp_policy.times import KarrasTimes

STEPS = (1, 2, 5, 10)
SAMPLES = 100_000


def clone(seed: int, updates: int, time_weight: str = "none") -> dict[str, Any]:
    """Clones the bandit's data and measures the samples at every K."""
    torch.set_num_threads(1)
    dataset = make_dataset(seed=seed)
    config = make_config(updates, seed=seed)
    config = config.replace(loss=config.loss.replace(time_weight=time_weight))
    learner = train_clone(dataset, config)
    obs = torch.zeros(SAMPLES, 1)
    measured = {}
    for steps in STEPS:
        action = learner.act(obs, steps=steps, generator=learner.stream("evaluation"))
        within, modes = mode_shares(action)
        measured[str(steps)] = {"within_3_std": within, "modes": modes}
    within, modes = mode_shares(gaussian_clone(dataset, SAMPLES, seed))
    gaussian = {"within_3_std": within, "modes": modes}
    return {
        "seed": seed,
        "gtp": measured,
        "gaussian": gaussian,
        "config": learner.full_config.model_dump(mode="json"),
    }


def weighted(updates: int, t_max: float, eta: float = 1.0) -> dict[str, Any]:
    """Trains with the weights of the true advantage and counts the modes."""
    torch.set_num_threads(1)
    target = train_weighted(make_dataset(), make_config(updates, eta=eta, t_max=t_max))
    generator = torch.Generator().manual_seed(1)
    _, modes = mode_shares(target.sample(torch.zeros(SAMPLES, 1), generator=generator))
    return {"eta": eta, "t_max": t_max, "modes": modes, "expected": tilted_frequencies(eta)}


def main() -> None:
    """Runs all seeds and writes the figures."""
    parser = training_parser(__doc__, None, updates=15_000, seeds=5)
    parser.add_argument("--time-weight", default="none", help="of the cloning loss")
    args = parser.parse_args()
    if args.output is None:  # the record of the defaults is the one that is kept
        kept = args.time_weight == "none"
        args.output = (RESULTS if kept else Path("outputs")) / "bandit.json"
    # Fork would copy torch's thread pool in an undefined state.
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        runs = [
            pool.submit(clone, seed, args.updates, args.time_weight) for seed in range(args.seeds)
        ]
        # A range that is cut short pulls unequal modes together: shown with a longer one.
        tilted = [pool.submit(weighted, args.updates, t) for t in (KarrasTimes().t_max, 20.0)]
        record = {
            "command": f"python -m benchmarks.bandit --seeds {args.seeds} --updates {args.updates}"
            + (f" --time-weight {args.time_weight}" if args.time_weight != "none" else ""),
            "data": "four-mode bandit, made by the script",
            "modes": MODES.tolist(),
            "std": STD,
            "truth_within_3_std": 1 - math.exp(-4.5),  # chi-square with 2 degrees of freedom
            "samples": SAMPLES,
            "updates": args.updates,
            "versions": versions(),
            "runs": [run.result() for run in runs],
            "weighted": [run.result() for run in tilted],
        }
    write(record, args.output)
    for run in record["runs"]:
        shares = {k: round(v["within_3_std"], 3) for k, v in run["gtp"].items()}
        print(
            f"seed {run['seed']}: within 3 std {shares}, "
            f"Gaussian {run['gaussian']['within_3_std']:.3f}"
        )
    for run in record["weighted"]:
        modes, expected = ([round(x, 3) for x in run[k]] for k in ("modes", "expected"))
        print(f"weighted, t_max {run['t_max']}: {modes}, expected {expected}")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
