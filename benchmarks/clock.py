"""How the speed benchmarks measure: contenders in turn, one thread, medians with their spread.

One process, every contender in turn, round by round, so that a slow moment of the machine meets
all of them. On the CPU, time is that of the process: what neighbours take from it is not counted,
what they do to its caches is. On a GPU it is wall time with the device idle at both ends. A figure
is the median over rounds with its quartiles; a ratio is that of two contenders in one round, then
the median over rounds.
"""

import argparse
import platform
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gtp_policy

Call = Callable[[], Any]
Contenders = dict[str, Call]
Comparison = dict[str, dict[str, Any]]  # contender: what `compare` returns for it


def on_gpu(device: str) -> bool:
    """Returns whether calls on a device return before their work is done."""
    return torch.device(device).type != "cpu"


def first_calls(device: str) -> int:
    """Returns how many calls are not timed: compilers, captured graphs, buffers."""
    return 12 if on_gpu(device) else 3


def now(device: str) -> int:
    """Returns nanoseconds of the clock that is right for a device, once the device is idle."""
    if not on_gpu(device):
        return time.process_time_ns()
    torch.accelerator.synchronize()
    return time.perf_counter_ns()


def measure(
    contenders: Contenders,
    rounds: int,
    calls: int,
    *,
    device: str = "cpu",
    together: bool = False,
) -> dict[str, np.ndarray]:
    """Returns milliseconds per call, rounds interleaved.

    Args:
        contenders: What to call, by name.
        rounds: How many turns each contender has.
        calls: Calls per turn.
        device: Where the contenders work.
        together: Whether a turn's calls are timed as one, which is how training works: on a GPU
            one update is prepared while the last one runs; and not all updates of a method are
            alike. Each call alone otherwise, which shows the slowest.

    Returns:
        Shape (rounds, 1) if timed together, else (rounds, calls), by name.
    """
    groups, each = (1, calls) if together else (calls, 1)
    times = {name: np.empty((rounds, groups)) for name in contenders}
    for call in contenders.values():
        for _ in range(first_calls(device)):
            call()
    for r in range(rounds):
        for name, call in contenders.items():
            for c in range(groups):
                start = now(device)
                for _ in range(each):
                    call()
                times[name][r, c] = (now(device) - start) / 1e6 / each
    return times


def spread(values: np.ndarray) -> dict[str, float]:
    """Returns the median and the quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(middle), "q1": float(low), "q3": float(high)}


def compare(times: dict[str, np.ndarray], first: str = "naive") -> Comparison:
    """Returns per contender the spread over rounds, the tails of calls and the ratio to another."""
    rounds = {name: np.median(values, axis=1) for name, values in times.items()}
    return {
        name: {
            "ms": spread(rounds[name]),
            "p50": float(np.quantile(values, 0.5)),
            "p99": float(np.quantile(values, 0.99)),
            "max": float(values.max()),
            f"times_faster_than_{first}": spread(rounds[first] / rounds[name]),
        }
        for name, values in times.items()
    }


def processor() -> str:
    """Returns the name of the processor, as far as the system knows it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def conditions(device: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON values
    """Returns what a figure depends on in addition to the code that is timed."""
    result: dict[str, Any] = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "device": device,
        "clock": "wall time, device idle at both ends" if on_gpu(device) else "process time",
    }
    if on_gpu(device):
        result["gpu"] = torch.cuda.get_device_name(device)
    return result | more


def versions(names: Iterable[str] = ()) -> dict[str, str]:
    """Returns the versions of this package, Python, torch, numpy and, if installed, others."""
    result = {}
    for name in ("torch", "numpy", *names):
        try:
            result[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            continue
    return result | {"gtp_policy": gtp_policy.__version__, "python": platform.python_version()}


def parser(doc: str | None, result: Path, rounds: int) -> argparse.ArgumentParser:
    """Returns a parser with the options that every speed benchmark has."""
    options = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=rounds)
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    options.add_argument("--quick", action="store_true", help="tiny: does it run?")
    options.add_argument("--output", type=Path, default=result)
    return options


def training_parser(
    doc: str | None, result: Path | None, *, updates: int, seeds: int
) -> argparse.ArgumentParser:
    """Returns a parser with the options of every benchmark that trains over seeds."""
    options = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("--updates", type=int, default=updates)
    options.add_argument("--seeds", type=int, default=seeds)
    options.add_argument("--processes", type=int, default=2, help="runs at a time")
    options.add_argument("--output", type=Path, default=result)
    return options


def command(module: str, args: argparse.Namespace) -> str:
    """Returns the command that measures again what was measured."""
    words = [f"python -m benchmarks.{module}", f"--rounds {args.rounds}"]
    if args.device != "cpu":
        words.append(f"--device {args.device}")
    return " ".join(words + ["--quick"] * args.quick)


def say(section: str, label: str, comparison: Comparison) -> None:
    """Prints what was measured, one line per contender."""
    for name, entry in comparison.items():
        ms = entry["ms"]
        ratios = [
            f"  {entry[key]['median']:.2f} {key.replace('_', ' ')}"
            for key in entry
            if key.startswith("times_faster")
        ]
        print(
            f"{section:14} {label:14} {name:26} {ms['median']:9.3f} ms "
            f"[{ms['q1']:.3f}, {ms['q3']:.3f}]  p99 {entry['p99']:.3f}  max {entry['max']:.3f}"
            + "".join(ratios),
            flush=True,
        )
