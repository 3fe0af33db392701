"""How fast an update is inside a host's own training loop, against the core's loop.

    python -m benchmarks.host_speed [--rounds 15] [--device cuda]

The core's loop is `learner.update_from(dataset, n)` and nothing else. Each host trains by its
own public call on the same dataset, moved to the device once. The clock is read whenever the host
calls `learner.update`: what lies between two readings is one update and all that the host does
around it, logging included; what a host does once per call of its trainer is left out.
"""

import importlib.util
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.clock import (
    command,
    compare,
    conditions,
    now,
    on_gpu,
    parser,
    say,
    versions,
)
from benchmarks.contenders import Case, config, dataset, random_data
from benchmarks.pages import RESULTS, write
from gtp_policy import GTPConfig, GTPLearner, OfflineDataset

RESULT = RESULTS / "host_speed.json"
Loop = tuple[GTPLearner, Callable[[int], object]]  # the learner inside, and a run of n updates


def choices(case: Case) -> GTPConfig:
    """Returns the config, with a length that no host sets to that of one round."""
    chosen = config(case)
    return chosen.replace(learner=chosen.learner.replace(total_updates=1_000_000))


def core(table: OfflineDataset, case: Case) -> Loop:
    """Returns the loop that needs no host."""
    learner = GTPLearner.from_dataset(table, choices(case))

    def train(n: int) -> None:
        learner.update_from(table, n, batch_size=case.batch)

    return learner, train


def tianshou(table: OfflineDataset, case: Case) -> Loop:
    """Returns the loop of Tianshou's offline trainer."""
    import gymnasium as gym
    from tianshou.trainer import OfflineTrainerParams

    from gtp_tianshou import GTP

    space = gym.spaces.Box(-1.0, 1.0, (case.action_dim,))
    algorithm = GTP.from_buffer(table, action_space=space, config=choices(case))

    def train(n: int) -> None:
        algorithm.run_training(
            OfflineTrainerParams(
                buffer=table,
                batch_size=case.batch,
                max_epochs=1,
                epoch_num_steps=n,
                show_progress=False,
                verbose=False,
            )
        )

    return algorithm.learner, train


def sb3(table: OfflineDataset, case: Case) -> Loop:
    """Returns the loop of Stable-Baselines3's `learn`."""
    from gtp_sb3 import GTP

    model = GTP(
        "MlpPolicy",
        None,
        dataset=table,
        gtp_config=choices(case),
        batch_size=case.batch,
        device=case.device,
    )

    def train(n: int) -> None:
        model.learn(n)

    return model.learner, train


LOOPS: dict[str, tuple[str, Callable[[OfflineDataset, Case], Loop]]] = {
    "core": ("gtp_policy", core),
    "gtp_tianshou": ("tianshou", tianshou),
    "gtp_sb3": ("stable_baselines3", sb3),
}


class Period:
    """Times a loop from its first update to its last, by its calls of the learner.

    Raises:
        RuntimeError: If a loop trains without calling ``learner.update`` once per update.
    """

    def __init__(self, learner: GTPLearner, train: Callable[[int], object], device: str) -> None:
        self.learner, self.train, self.device = learner, train, device
        self.first, self.last, self.called, self.expected = 0, 0, 0, 0
        update = learner.update

        def counted(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the update's own
            if not self.called:
                self.first = now(device)
            elif self.called == self.expected - 1:
                self.last = now(device)
            self.called += 1
            return update(*args, **kwargs)

        learner.update = counted  # type: ignore[method-assign]

    def __call__(self, updates: int) -> float:
        """Returns milliseconds per update."""
        self.called, self.expected = 0, updates
        self.train(updates)
        if self.called != updates:
            raise RuntimeError(
                f"The host cannot be timed: got {self.called} calls of learner.update, expected "
                f"{updates}."
            )
        return (self.last - self.first) / 1e6 / (updates - 1)


def loops(case: Case, rows: int, names: Iterable[str] = tuple(LOOPS)) -> dict[str, Period]:
    """Returns the loops of those hosts that are installed."""
    table = dataset(random_data(case, rows), case.device)
    result = {}
    for name in names:
        needed, make = LOOPS[name]
        if importlib.util.find_spec(needed) is not None:
            with torch.random.fork_rng():
                result[name] = Period(*make(table, case), case.device)
    return result


def run(
    case: Case,
    rounds: int,
    *,
    quick: bool = False,
    keep: Callable[[dict[str, Any]], None] = lambda record: None,
) -> dict[str, Any]:
    """Measures every loop in turn; ``keep`` gets the record as it grows."""
    updates = 3 if quick else 200 if on_gpu(case.device) else 40
    rows = 1000 if quick else 100_000
    record: dict[str, Any] = {
        "conditions": conditions(
            case.device,
            batch=case.batch,
            hidden=[case.width] * 3,
            steps=case.steps,
            rows=rows,
            rounds=rounds,
            updates_per_round=updates,
        ),
        "versions": versions(["tianshou", "stable-baselines3"]),
        "hosts": {},
    }
    for samples in (1, 4):
        # Importing Tianshou takes longer than the rest of a quick run.
        names = ("core", "gtp_sb3") if quick else tuple(LOOPS)
        periods = loops(case.but(samples=samples), rows, names)
        times = {name: np.empty((rounds, 1)) for name in periods}
        for period in periods.values():
            period(max(3, updates // 4))
        for r in range(rounds):
            for name, period in periods.items():
                times[name][r, 0] = period(updates)
        taken = compare(times, first="core")
        record["hosts"][f"M = {samples}"] = taken
        say("host", f"M = {samples}", taken)
        keep(record)
    return record


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes the JSON."""
    args = parser(__doc__, RESULT, rounds=15).parse_args(arguments)
    torch.set_num_threads(1)
    case = Case(device=args.device, **({"width": 8} if args.quick else {}))
    start = time.perf_counter()

    def keep(record: dict[str, Any]) -> None:
        write({"command": command("host_speed", args)} | record, args.output)

    run(case, args.rounds, quick=args.quick, keep=keep)
    print(f"wrote {args.output} after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
