"""What failing looks like: three ways to train badly, and the number in which each one shows.

    python -m benchmarks.signatures [--updates 6000] [--output FILE]

Weights without a cap, jumps that are taught over large gaps, and a grid of times that is fine from
the first update on. Data are made here: the four-mode bandit, and a bandit whose reward has a heavy
tail. Some five minutes on two cores.
"""

import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.clock import training_parser
from benchmarks.pages import RESULTS, table, write
from benchmarks.pictures import STYLE, save
from examples.bandit import STD, make_config, make_dataset, mode_shares
from gtp_policy import AdvantageWeighterConfig, Curriculum, GTPConfig, GTPLearner, OfflineDataset
from gtp_policy.errors import TrainingWarning
from gtp_policy.metrics import spread_ratio

OUTPUT = RESULTS / "signatures.json"
STEPS = (1, 2, 5)
SAMPLES = 20_000
CURVES = {"curriculum": None, "fine from the start": 320, "coarse to the end": 10}


def quality(learner: GTPLearner, dataset: OfflineDataset) -> dict[str, dict[str, float]]:
    """Returns how good samples are, by the number of steps."""
    obs, data, found = torch.zeros(SAMPLES, 1), dataset.transitions.action[:SAMPLES], {}
    generator = learner.stream("evaluation")
    for steps in STEPS:
        first, second = (learner.act(obs, steps=steps, generator=generator) for _ in range(2))
        found[str(steps)] = {
            "within_3_std": mode_shares(first)[0],
            "spread": spread_ratio(data, first, second).item(),
        }
    return found


def clone(
    updates: int, seed: int, intervals: int | None, flow_weight: float = 1.0, every: int = 0
) -> dict[str, Any]:
    """Clones the four modes, with a fixed number of grid intervals if one is given."""
    torch.set_num_threads(1)
    dataset, config = make_dataset(seed=seed), make_config(updates, seed=seed)
    loss = config.loss.replace(flow_weight=flow_weight)
    if intervals is not None:
        loss = loss.replace(curriculum=Curriculum(start=intervals, end=intervals))
    learner = GTPLearner.from_dataset(dataset, config.replace(loss=loss))
    curve = []
    for update in range(1, updates + 1):
        learner.update(dataset.sample(256, generator=learner.stream("batch")))
        if update == updates or (every and update % every == 0):
            curve.append({"update": update, "steps": quality(learner, dataset)})
    finest = learner.loss.config.curriculum.end
    return {"seed": seed, "intervals": finest, "flow_weight": flow_weight, "curve": curve}


def weigh(updates: int, eta: float, max_weight: float) -> dict[str, Any]:
    """Trains with a critic on a reward with a heavy tail; returns how many transitions count."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    action = rng.uniform(-1, 1, (20_000, 2))
    dataset = OfflineDataset.from_arrays(
        obs=np.zeros((len(action), 1)),
        action=action,
        reward=np.exp(4 * action[:, 0]),
        next_obs=np.zeros((len(action), 1)),
        terminated=np.ones(len(action), bool),
        truncated=np.zeros(len(action), bool),
        low=[-1.0, -1.0],
        high=[1.0, 1.0],
        source="bandit with a heavy tail",
    )
    config: GTPConfig = make_config(updates, eta=eta).replace(
        weighter=AdvantageWeighterConfig(eta=eta, max_weight=max_weight),
    )
    learner, found = GTPLearner.from_dataset(dataset, config), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TrainingWarning)
        for update in range(updates):
            metrics = learner.update(dataset.sample(256, generator=learner.stream("batch")))
            if update >= updates - 100:
                found.append(metrics.to_floats())
    return {
        "eta": eta,
        "max_weight": max_weight,
        "effective_share": float(np.median([m["weight_ess"] for m in found])),
        "clipped_share": float(np.median([m["weight_clipped"] for m in found])),
        "warned_share": sum(issubclass(w.category, TrainingWarning) for w in caught) / len(found),
    }


def draw(record: dict[str, Any], path: Path) -> None:
    """Draws quality over updates for the three grids of times."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 2.8), layout="constrained")
        row = figure.subplots(1, len(STEPS), sharey=True)
        colours = ("#0b62a4", "#c2570c", "#8a8a8a")
        for axes, steps in zip(row, STEPS, strict=True):
            for colour, name in zip(colours, CURVES, strict=True):
                runs = [run["curve"] for run in record["grids"][name]]
                x = [point["update"] for point in runs[0]]
                y = 100 * np.array(
                    [[p["steps"][str(steps)]["within_3_std"] for p in run] for run in runs]
                )
                axes.plot(x, y.mean(0), color=colour, label=name)
                axes.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.2, linewidth=0)
            axes.set_title(f"K = {steps}", fontsize=9)
            axes.set_ylim(0, 100)
            axes.set_xlabel("updates")
        row[0].set_ylabel("samples at a mode, %")
        row[-1].legend(frameon=False, fontsize=8)
        save(figure, record, path)


def section(record: dict[str, Any]) -> str:
    """Returns the section of the results page."""
    weights = [
        [
            f"{w['eta']:g}",
            f"{w['max_weight']:g}",
            f"{100 * w['effective_share']:.1f}",
            f"{100 * w['clipped_share']:.1f}",
            f"{100 * w['warned_share']:.0f}",
        ]
        for w in record["weights"]
    ]
    gaps = []
    for run in record["gaps"]:
        end = run["curve"][-1]["steps"]
        spread = [f"{end[str(k)]['spread']:.2f}" for k in STEPS]
        within = [f"{100 * end[str(k)]['within_3_std']:.0f}" for k in STEPS]
        gaps.append([str(run["intervals"]), f"{run['flow_weight']:g}", *spread, *within])
    headed = ["intervals", "flow_weight"]
    headed += [f"spread, K = {k}" for k in STEPS] + [f"at a mode, K = {k}, %" for k in STEPS]
    return "\n\n".join(
        [
            "## What failing looks like",
            f"On bandits made by the script (`{record['command']}`); samples *at a mode* lie "
            f"within three standard deviations ({3 * STD:g}) of it.",
            "**Weights without a cap** count a few transitions only. `weight_ess` is the effective "
            "share of the minibatch; `UpdateMetrics.to_floats` warns below 5 %. Median of the last "
            "hundred minibatches, and how many of them were warned of; the reward is $e^{4 a_1}$:",
            table(
                [
                    "η",
                    "max_weight",
                    "weight_ess, %",
                    "weight_clipped, %",
                    "minibatches warned of, %",
                ],
                weights,
            ),
            "**Lost modes** show in `spread_ratio`, 1 for a policy as wide as its data. The data's "
            "point at time u stands for the model's own only where u is close to t: taught over "
            "large gaps, one jump goes to the mean of what could follow. The flow loss is not what "
            "keeps the modes, since the last jump of the consistency loss is compared with the "
            "data itself; samples of several steps are better with it. Fixed grids:",
            table(headed, gaps),
            "**Without a curriculum** learning is slow: over a fine grid a value has many short "
            "jumps to travel. Bands are the range over "
            f"{len(record['grids']['curriculum'])} seeds:",
            "![Samples at a mode over training](explanation/signatures.svg)",
        ]
    )


def main() -> None:
    """Runs everything and writes the figures."""
    parser = training_parser(__doc__, OUTPUT, updates=6000, seeds=3)
    args = parser.parse_args()
    n, every = args.updates, max(args.updates // 12, 1)
    weights = [(1.0, 100.0), (3.0, 100.0), (10.0, 100.0), (10.0, 1e30)]
    gaps = [(n_, flow) for n_ in (4, 10, 40) for flow in (1.0, 0.0)]
    calls: dict[str, list[Callable[[], dict[str, Any]]]] = {
        "weights": [partial(weigh, n // 4, *w) for w in weights],
        "gaps": [partial(clone, n, 0, *g) for g in gaps],
    }
    for name, intervals in CURVES.items():
        calls[name] = [partial(clone, n, s, intervals, every=every) for s in range(args.seeds)]
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        futures = {name: [pool.submit(call) for call in of] for name, of in calls.items()}
        done = {name: [future.result() for future in of] for name, of in futures.items()}
    record = {
        "command": f"python -m benchmarks.signatures --updates {n} --seeds {args.seeds}",
        "updates": n,
        "weights": done.pop("weights"),
        "gaps": done.pop("gaps"),
        "grids": done,
    }
    write(record, args.output)
    print(section(record))


if __name__ == "__main__":
    main()
