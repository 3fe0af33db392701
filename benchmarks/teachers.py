"""Why Shortcut and Mean Flows degrade, and what keeps them: every teacher on the four-mode bandit.

    python -m benchmarks.teachers [--updates 6000] [--seeds 2] [--output FILE]

Each teacher clones the four modes with three losses: the squared residual, the same in units of the
network's output (`time_weight="edm"`), and its pseudo-Huber distance. The figures are of samples
in 1, 2, 4 and 8 steps, and how much of the squared residual the worst per cent of draws has: 1 % of
them would have 1 % of it if all were alike. About half an hour on one core.
"""

import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from benchmarks.clock import training_parser
from benchmarks.pages import RESULTS, table, write
from examples.bandit import STD, make_config, make_dataset, mode_shares
from gtp_policy import GTPLearner, presets
from gtp_policy.errors import NonFiniteError
from gtp_policy.loss import gtp_residuals

OUTPUT = RESULTS / "teachers.json"
STEPS = (1, 2, 4, 8)
SAMPLES = 20_000
# "gtp" is the name in the records of what is paper_loss.
PRESETS = ("gtp", "gtp_solver", "shortcut", "mean_flow")
LOSSES: dict[str, dict[str, Any]] = {
    "squared": {"time_weight": "none"},
    "edm": {"time_weight": "edm"},
    "edm, pseudo-Huber": {"time_weight": "edm", "huber": 0.1},
}
TARGET_AS_TEACHER = "edm, slow copy as teacher"  # its name in the record
SHOWN = {TARGET_AS_TEACHER: "edm, target network as teacher"}


def worst_share(learner: GTPLearner) -> float:
    """Returns the share of the squared consistency residual that the worst 1 % of draws has."""
    dataset, generator = make_dataset(SAMPLES, seed=1), learner.stream("evaluation")
    config = learner.loss.config
    teaching = learner.actor if config.target == "stopgrad" else learner.target_actor
    batch = dataset.transitions
    times, z, _ = learner.loss.draw(
        learner.actor.times, batch.action, progress=1.0, generator=generator
    )
    with torch.no_grad():
        residual = gtp_residuals(
            learner.actor, teaching, batch.obs, batch.action, times, z, config.teacher
        ).consistency
        square = residual.square().sum(1) * learner.loss.time_weights(times, learner.actor)[0]
    largest = square.sort(descending=True).values
    return float(largest[: len(largest) // 100].sum() / largest.sum())


def clone(
    updates: int, seed: int, preset: str, name: str, changes: dict[str, Any]
) -> dict[str, Any]:
    """Clones the four modes with a teacher and a loss."""
    torch.set_num_threads(1)
    dataset, config = make_dataset(seed=seed), make_config(updates, seed=seed)
    loss = presets.get("paper_loss" if preset == "gtp" else preset).loss.replace(**changes)
    if preset in ("gtp", "gtp_solver"):  # the others have their own grids
        loss = loss.replace(curriculum=config.loss.curriculum)
    learner = GTPLearner.from_dataset(dataset, config.replace(loss=loss))
    measured: dict[str, Any] = {"preset": preset, "loss": name, "seed": seed}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # grids finer than so short a run allows are the point
            for _ in range(updates):
                metrics = learner.update(dataset.sample(256, generator=learner.stream("batch")))
        measured["loss_at_the_end"] = metrics.to_floats()["actor_loss"]
    except NonFiniteError as error:
        return measured | {"diverged": str(error)}
    obs, generator = torch.zeros(SAMPLES, 1), learner.stream("evaluation")
    measured["worst_share"] = worst_share(learner)
    measured["within_3_std"] = {
        str(k): mode_shares(learner.act(obs, steps=k, generator=generator))[0] for k in STEPS
    }
    return measured


def section(record: dict[str, Any]) -> str:
    """Returns the section of the results page."""
    lines = []
    kinds = list(dict.fromkeys((run["preset"], run["loss"]) for run in record["runs"]))
    for preset, loss in kinds:
        runs = [r for r in record["runs"] if (r["preset"], r["loss"]) == (preset, loss)]
        good = [r for r in runs if "diverged" not in r]
        cells = [f"{len(runs) - len(good)} of {len(runs)} diverged"] + [""] * len(STEPS)
        if len(good) == len(runs):
            cells = [f"{100 * np.mean([r['worst_share'] for r in good]):.0f}"]
            for k in map(str, STEPS):
                share = [100 * r["within_3_std"][k] for r in good]
                cells.append(f"{np.mean(share):.0f} ({min(share):.0f} to {max(share):.0f})")
        lines.append([preset, SHOWN.get(loss, loss), *cells])
    headed = ["preset", "loss", "worst 1 % of draws, % of the squared residual"]
    headed += [f"at a mode, K = {k}, %" for k in STEPS]
    return "\n\n".join(
        [
            "## Why Shortcut and Mean Flows degrade",
            f"Clones of the four-mode bandit (`{record['command']}`, {record['updates']} updates, "
            f"mean and range over {record['seeds']} seeds); samples *at a mode* lie within three "
            f"standard deviations ({3 * STD:g}) of it, of the data 98.9 %.",
            table(headed, lines),
            FOUND,
        ]
    )


FOUND = """\
- **Mean Flows feed on their own derivative.** With the target network as teacher its errors come
  back larger, and nothing is learned (last row): the teacher has to be the network itself, as in
  the preset. The target also holds that derivative times the noise, most at large times, where
  the action is unknown; the squared loss without a weight that evens out times sees little else.
- **What keeps them** is the `edm` weight, which is part of the preset, and for few steps the
  pseudo-Huber distance (`huber=0.1`), which bounds what a single draw can do. With both, four
  steps and more are as good as any teacher's. One step is not.
- **It did not carry over to hopper-medium** (the ablation's rows above, one seed): there the
  distance gave Mean Flows nothing, and they stay behind the teachers with a second point.
- **Shortcut does not degrade here.** Two of its own jumps teach the long jump directly, where
  the other teachers pass it on from neighbour to neighbour, and its samples of one step are the
  best.
- **Every teacher gains** on the bandit from the pseudo-Huber distance: a few draws have most of
  the squared residual, with any teacher."""


def main() -> None:
    """Runs every teacher with every loss and writes the figures."""
    parser = training_parser(__doc__, OUTPUT, updates=6000, seeds=2)
    args = parser.parse_args()
    kinds = [(preset, name, changes) for preset in PRESETS for name, changes in LOSSES.items()]
    kinds.append(("mean_flow", TARGET_AS_TEACHER, {"target": "ema"}))
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        futures = [
            pool.submit(partial(clone, args.updates, seed, *kind))
            for kind in kinds
            for seed in range(args.seeds)
        ]
        runs = [future.result() for future in futures]
    record = {
        "command": f"python -m benchmarks.teachers --updates {args.updates} --seeds {args.seeds}",
        "updates": args.updates,
        "seeds": args.seeds,
        "runs": runs,
    }
    write(record, args.output)
    print(section(record))


if __name__ == "__main__":
    main()
