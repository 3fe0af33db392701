"""How much memory training takes on top of what the imports take: the data, the learner, acting.

    python -m benchmarks.memory [--rounds 3] [--device cuda]

Each figure is of a fresh process, which loads random transitions of Hopper's dimensions from a
file, makes a learner for them, does some updates and acts. What counts is the growth of the
resident set since the imports, the data included, and that of its peak. On a GPU it is what the
allocator handed out there. "library, torch" is a process without numba, where that is installed:
numba alone takes more than everything else. Stages say where it goes, and which packages were
loaded on the way.
Linux only: the resident set is read from the system's own files.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.clock import (
    command,
    conditions,
    on_gpu,
    parser,
    spread,
    versions,
)
from benchmarks.contenders import Case, random_data
from benchmarks.pages import RESULTS, write
from benchmarks.processes import answer_of

RESULT = RESULTS / "memory.json"
MIB = 2**20


def resident() -> tuple[float, float]:
    """Returns the resident set and its peak so far, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    now, peak = (int(fields[key].split()[0]) * 1024 / MIB for key in ("VmRSS", "VmHWM"))
    return now, peak


def packages(modules: set[str]) -> list[str]:
    """Returns what was loaded, by the first two parts of its name."""
    return sorted({".".join(name.split(".")[:2]) for name in modules})


def child(contender: str, folder: Path, case: Case, updates: int) -> dict[str, Any]:
    """Trains in this process, and returns what that took: run in a fresh process."""
    if contender.endswith("torch"):
        sys.modules["numba"] = None  # type: ignore[assignment]  # as if it were not installed
    from benchmarks import contenders

    torch.set_num_threads(1)
    gpu = on_gpu(case.device)
    if gpu:
        torch.zeros(1, device=case.device)  # the context is no part of the figure
        torch.cuda.reset_peak_memory_stats()
    data = {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}
    known, stages = set(sys.modules), []
    start, _ = resident()
    # Copies out of the mapped files, which are no part of the figure once they are closed.
    if contender.startswith("library"):
        table = contenders.dataset(data, case.device)
        _close(data)
        stages.append(_stage("data", start, known))
        learner = contenders.GTPLearner.from_dataset(table, contenders.config(case))
        stages.append(_stage("learner", start, known))

        def update() -> None:
            learner.update(table.sample(case.batch, generator=learner.stream("batch")))

        def act() -> None:
            learner.act(torch.zeros(1, case.obs_dim))  # from where environments are

    else:
        make = contenders.make_naive(case)
        peer = make(data, case.batch, case.device)
        _close(data)
        stages.append(_stage("data and learner", start, known))
        update = peer["update"]

        def act() -> None:
            peer["act"](np.zeros((1, case.obs_dim), np.float32))

    update()
    stages.append(_stage("first update", start, known))
    for _ in range(updates - 1):
        update()
    stages.append(_stage(f"{updates} updates", start, known))
    for _ in range(100):
        act()
    stages.append(_stage("100 actions", start, known))
    end, peak = resident()
    result = {"growth": end - start, "peak": peak - start, "imports": start, "stages": stages}
    if gpu:
        result["growth"] = torch.cuda.memory_allocated() / MIB
        result["peak"] = torch.cuda.max_memory_allocated() / MIB
    return result


def _close(data: dict[str, np.ndarray]) -> None:
    data.clear()


def _stage(name: str, start: float, known: set[str]) -> dict[str, Any]:
    loaded = set(sys.modules) - known
    known |= loaded
    return {
        "after": name,
        "growth": resident()[0] - start,
        "modules_loaded": len(loaded),
        "packages_loaded": packages(loaded),
    }


def fresh(contender: str, folder: Path, case: Case, updates: int) -> dict[str, Any]:
    """Runs `child` in a fresh process."""
    words = [contender, "--folder", folder, "--samples", case.samples, "--width", case.width]
    words += ["--device", case.device, "--updates", updates]
    return answer_of("benchmarks.memory", words)


def run(
    case: Case,
    rounds: int,
    *,
    quick: bool = False,
    keep: Callable[[dict[str, Any]], None] = lambda record: None,
) -> dict[str, Any]:
    """Measures all cases, contenders in turn; ``keep`` gets the record as it grows."""
    updates = 5 if quick else 200
    sizes = ((50_000, 1),) if quick else ((100_000, 1), (100_000, 4), (1_000_000, 1))
    about = conditions(
        case.device, batch=case.batch, updates=updates, rounds=rounds, hidden=[case.width] * 3
    )
    del about["clock"]
    record: dict[str, Any] = {
        "conditions": about | {"threads": 1},
        "versions": versions(),
        "cases": [],
    }
    contenders = ["library"] if quick else ["naive", "library"]
    if importlib.util.find_spec("numba") is not None and not quick:
        contenders.append("library, torch")
    for rows, samples in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            data = random_data(case, rows)
            for key, array in data.items():
                np.save(folder / f"{key}.npy", array)
            entry: dict[str, Any] = {
                "rows": rows,
                "samples": samples,
                "data_mib": sum(array.nbytes for array in data.values()) / MIB,
            }
            record["cases"].append(entry)
            taken: dict[str, list[dict[str, Any]]] = {contender: [] for contender in contenders}
            for _ in range(rounds):
                for contender, runs in taken.items():
                    runs.append(fresh(contender, folder, case.but(samples=samples), updates))
                    entry[contender] = summary(runs)
                    keep(record)
        for contender in contenders:
            growth, peak = (entry[contender][key]["median"] for key in ("growth", "peak"))
            print(
                f"{rows:9} rows, M = {samples} {contender:14} {growth:6.1f} MiB, peak {peak:6.1f}"
            )
    return record


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the spread of a contender's figures, and the stages of its last run."""
    figures = {
        key: spread(np.array([run[key] for run in runs])) for key in ("growth", "peak", "imports")
    }
    return figures | {"stages": runs[-1]["stages"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes the JSON; with ``--child``, prints the answer of one process."""
    options = parser(__doc__, RESULT, rounds=3)
    options.add_argument("--child", help=argparse.SUPPRESS)
    options.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--samples", type=int, default=1, help=argparse.SUPPRESS)
    options.add_argument("--width", type=int, default=256, help=argparse.SUPPRESS)
    options.add_argument("--updates", type=int, default=200, help=argparse.SUPPRESS)
    args = options.parse_args(arguments)
    case = Case(device=args.device, width=args.width, samples=args.samples)
    if args.child:
        print(json.dumps(child(args.child, args.folder, case, args.updates)))
        return
    start = time.perf_counter()

    def keep(record: dict[str, Any]) -> None:
        write({"command": command("memory", args)} | record, args.output)

    run(case, args.rounds, quick=args.quick, keep=keep)
    print(f"wrote {args.output} after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
