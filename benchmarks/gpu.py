"""Measures everything on a GPU, step by step, within a number of seconds.

    python -m benchmarks.gpu --output DIR [--device cuda] [--seconds 200] [--quick] [--only STEP ..]
    python -m benchmarks.gpu --nodes

``DIR/gpu.json`` is written after every step: what fails, hangs or crashes costs that step alone.
Steps share a process while they succeed; after an error the next ones get a fresh one. Called again
on the same folder, it does not repeat what is done, so that one run can be several calls. As
benchmarks/results/gpu.json the file is what `python -m benchmarks.performance` shows.

Needed are the core's dependencies, and pytest for the tests; hosts and peers are measured if they
are installed. What comes from folders on PYTHONPATH is found in every process.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import ROOT, read, write
from benchmarks.processes import environment

# Torch is not imported here: whatever a step does to its process, this one goes on.

# Steps by the process that they share, in order, each with the seconds that it may take;
# `benchmarks.gpu_steps` has a function for each.
GROUPS: tuple[dict[str, int], ...] = (
    {
        "environment": 60,
        "first_updates": 60,
        "equal_to_the_reference": 60,
        "update_from_m1": 40,
        "update_from_m4": 40,
        "update_alone": 40,
        "samplers": 90,
        "actions": 40,
        "seeds_4": 60,
        "seeds_16": 60,
        "kernels_by_name": 40,
        "tf32": 40,
    },
    {"tests_on_gpu": 100},
    {"tests_of_triton": 90},
    {"speed": 150},
    {"growth": 120},
    {"host_speed": 60},
    {"memory": 90},
)
LIMITS = {name: limit for group in GROUPS for name, limit in group.items()}
# Steps that leave a file in the folder, which is taken as far as it got.
BENCHMARKS = ("speed", "growth", "host_speed", "memory")
DONE = "done"
# What a process needs to start, in seconds: with less it would be started for nothing.
LEAST = 10


def run(
    folder: Path, device: str, *, seconds: float, quick: bool = False, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs steps that are not done, or those that are named, and returns the record."""
    start, path = time.monotonic(), folder / "gpu.json"
    record: dict[str, Any] = read(path) or {"steps": {}}
    record["command"] = f"python -m benchmarks.gpu --device {device}" + " --quick" * quick
    names = [n for n in LIMITS if (n in only if only else _status(record, n) != DONE)]
    for name in names:
        record["steps"].pop(name, None)
        record.pop(name, None)
    write(record, path)
    # A quick run shows whether everything runs: for that, one process is enough.
    for group in [list(LIMITS)] if quick else [list(group) for group in GROUPS]:
        waiting = [name for name in group if name in names]
        while waiting:
            left = seconds - (time.monotonic() - start)
            if left < LEAST:
                reason = "not begun: no time was left"
            elif _status(record, "environment", DONE) != DONE:
                reason = "not begun: the device did not answer"
            else:
                reason = f"not begun: its process {work(waiting, folder, device, left, quick)}"
            record = read(path) or record
            rest = [name for name in waiting if name not in record["steps"]]
            if rest == waiting:  # another process would not begin them either
                record["steps"] |= {name: {"status": reason} for name in rest}
                write(record, path)
                rest = []
            waiting = rest
    for name in BENCHMARKS:
        if name not in record and (part := read(folder / f"{name}.json")) is not None:
            record[name] = part
    record["left_out"] = [
        f"{name} ({_status(record, name)})" for name in LIMITS if _status(record, name) != DONE
    ]
    record["note"] = f"{time.monotonic() - start:.0f} s in all"
    write(record, path)
    return record


def _status(record: dict[str, Any], name: str, default: str = "not run") -> str:
    return str(record["steps"].get(name, {}).get("status", default))


def work(names: Sequence[str], folder: Path, device: str, left: float, quick: bool) -> str:
    """Runs steps in one process until it ends or the time is over; returns how it ended."""
    words = ["--folder", str(folder), "--device", device, *["--quick"] * quick, *names]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu_steps", *words],
        cwd=ROOT,
        env=environment() | {"PYTHONUNBUFFERED": "1"},
        process_group=0,
    )
    try:
        return f"ended with status {process.wait(left)}"
    except subprocess.TimeoutExpired:
        return "was ended: no time was left"
    finally:  # with all that it has started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main() -> None:
    """Runs the steps and prints how each of them ended."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("--output", type=Path, metavar="DIR")
    options.add_argument(
        "--nodes", action="store_true", help="count what an update records, without a GPU, as JSON"
    )
    options.add_argument("--device", default="cuda", help="cuda, or cpu to see whether it runs")
    options.add_argument("--seconds", type=float, default=200, help="for all steps together")
    options.add_argument("--quick", action="store_true", help="tiny: does it run?")
    options.add_argument("--only", nargs="+", choices=LIMITS, metavar="STEP", default=[])
    args = options.parse_args()
    if args.nodes:
        from benchmarks import nodes  # imports torch

        nodes.main()
        return
    if args.output is None:
        options.error("--output is needed: where should the record go?")
    # A signal has to reach the processes of the steps.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("gpu: ended by SIGTERM"))
    folder = args.output.resolve()
    record = run(folder, args.device, seconds=args.seconds, quick=args.quick, only=args.only)
    for name, step in record["steps"].items():
        print(f"{name:24} {step.get('seconds', 0):6.1f} s  {step['status']}")
    print(f"wrote {folder / 'gpu.json'}: {record['note']}")
    if "environment" not in record:
        sys.exit(f"gpu: nothing was measured: got device {args.device!r}, expected one for torch.")


if __name__ == "__main__":
    main()
