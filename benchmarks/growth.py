"""What an update costs as sizes grow: K, batch, width, action dimensions, M, and seeds.

    python -m benchmarks.growth [--rounds 7] [--device cuda]

One size at a time; the others stay Hopper's with the paper's networks, and M = 1. Several seeds in
one program are compared with one alone. How many passes of the actor's network an update takes is
counted for every preset.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.clock import (
    Comparison,
    Contenders,
    command,
    compare,
    conditions,
    measure,
    on_gpu,
    parser,
    say,
    versions,
)
from benchmarks.contenders import (
    Case,
    batch,
    config,
    library,
    make_library,
    make_naive,
    random_data,
)
from benchmarks.contenders import naive as naive_of
from benchmarks.pages import RESULTS, write
from gtp_policy import GTPConfig, GTPLearner, MultiSeedLearner, NoGuidance, presets
from gtp_policy.kernels import using

RESULT = RESULTS / "growth.json"
AXES: dict[str, tuple[int, ...]] = {
    "steps": (1, 2, 5, 10),
    "batch": (64, 256, 1024),
    "width": (64, 128, 256, 512),
    "action_dim": (1, 3, 8, 17, 38),
    "samples": (1, 2, 4, 8),
}
SEEDS = (1, 4, 16)


def update_at(case: Case, rounds: int, calls: int) -> Comparison:
    """Times one update of the naive transcription and of the library."""
    theirs, ours, data = naive_of(case), library(case), batch(case)
    contenders: Contenders = {
        "naive": lambda: theirs.update(*data.present()),
        "library": lambda: ours.update(data),
    }
    return compare(measure(contenders, rounds, calls, device=case.device, together=True))


def action_at(case: Case, rounds: int, calls: int) -> Comparison:
    """Times one action of both."""
    data = random_data(case, 8)
    contenders: Contenders = {}
    for name, make in {"naive": make_naive(case), "library": make_library(case)}.items():
        act = make(data, case.batch, case.device)["act"]
        contenders[name] = lambda act=act: act(data["obs"][:1])  # type: ignore[misc]
    return compare(measure(contenders, rounds, calls, device=case.device))


def seeds_at(case: Case, seeds: int, rounds: int, calls: int) -> Comparison:
    """Times one update of several seeds in one program, and of one learner."""
    one, chosen = library(case), config(case)
    data = [batch(case, seed) for seed in range(seeds)]
    several = MultiSeedLearner(
        [
            GTPLearner.build(
                case.obs_dim,
                case.action_dim,
                chosen.replace(learner=chosen.learner.replace(seed=seed)),
                device=case.device,
            )
            for seed in range(seeds)
        ]
    )
    contenders: Contenders = {
        "one seed": lambda: one.update(data[0]),
        "all seeds": lambda: several.update(data),
    }
    times = measure(contenders, rounds, calls, device=case.device, together=True)
    return compare(times, first="one seed")


def passes(chosen: GTPConfig, rows: int = 64) -> dict[str, float]:
    """Counts the passes of a minibatch through the actor's network in one update.

    Args:
        chosen: The policy and its training.
        rows: B; a pass of B rows counts as 1.

    Returns:
        Passes with gradient and without.
    """
    case, counts = Case(batch=rows), {"with gradient": 0.0, "without": 0.0}
    small = chosen.replace(actor=chosen.actor.replace(hidden=(8,)))
    learner = GTPLearner.build(case.obs_dim, case.action_dim, small)

    def count(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        counts["with gradient" if output.requires_grad else "without"] += len(output) / rows

    for actor in (learner.actor, learner.target_actor):
        actor.network.register_forward_hook(count)
    with using("reference"):
        learner.update(batch(case))
    return counts


def run(
    case: Case,
    rounds: int,
    *,
    quick: bool = False,
    keep: Callable[[dict[str, Any]], None] = lambda record: None,
) -> dict[str, Any]:
    """Measures all axes; ``keep`` gets the record as it grows."""
    calls = 2 if quick else 30 if on_gpu(case.device) else 4
    record: dict[str, Any] = {
        "conditions": conditions(
            case.device,
            batch=case.batch,
            obs_dim=case.obs_dim,
            action_dim=case.action_dim,
            hidden=[case.width] * 3,
            steps=case.steps,
            samples=case.samples,
            rounds=rounds,
        ),
        "versions": versions(),
    }
    for name in presets.NAMES:
        preset = presets.get(name)
        taken = {"with a critic": passes(preset)} if preset.critic else {}
        cloning = preset.replace(critic=None, learner=preset.learner.replace(guidance=NoGuidance()))
        record.setdefault("passes", {})[name] = taken | {"cloning": passes(cloning)}
    for n in SEEDS[: 2 if quick else None]:
        taken = seeds_at(case, n, rounds, calls)
        record.setdefault("seeds", {})[str(n)] = taken
        say("update", f"seeds {n}", taken)
        keep(record)
    for axis, values in AXES.items():
        for value in values:
            if quick and value not in values[:2]:
                continue
            at = case.but(**{axis: value})
            taken = update_at(at, rounds, calls)
            record.setdefault("update", {}).setdefault(axis, {})[str(value)] = taken
            say("update", f"{axis} {value}", taken)
            keep(record)
    for k in AXES["steps"][: 2 if quick else None]:
        taken = action_at(case.but(steps=k), rounds, 2 if quick else 100)
        record.setdefault("action", {}).setdefault("steps", {})[str(k)] = taken
        say("action", f"steps {k}", taken)
    keep(record)
    return record


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes the JSON."""
    args = parser(__doc__, RESULT, rounds=7).parse_args(arguments)
    torch.set_num_threads(1)
    case = Case(device=args.device, **({"width": 8} if args.quick else {}))
    start = time.perf_counter()

    def keep(record: dict[str, Any]) -> None:
        write({"command": command("growth", args)} | record, args.output)

    run(case, args.rounds, quick=args.quick, keep=keep)
    print(f"wrote {args.output} after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
