"""Latency of exported policies without torch, beside the core's own at 100 Hz, as JSON.

    python -m benchmarks.runtime [--ticks 60000] [--steps 1 2 5]

One core, at real-time priority where the user may set it, as control loops have. For each K, a loop
at 100 Hz in which every contender acts once per tick, in turn: the core by its numba kernel,
gtp-policy-runtime by ONNX Runtime, through its `Watchdog`, and by numpy. Wall time: what a control
loop sees. A tick is missed if all of them together end after the next one is due; those in which a
hypervisor took the core away are counted apart, too. Also states what the runtime costs: import
time beyond onnxruntime's, resident memory, the size of its wheel.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

import gtp_runtime
from benchmarks.clock import conditions, versions
from benchmarks.pages import RESULTS, ROOT, write
from benchmarks.processes import environment
from gtp_policy import ActionScaler, FlowMapActor
from gtp_policy.export import export_onnx

RESULT = RESULTS / "runtime.json"
PERIOD = 0.01
O, A = 11, 3
IMPORT = "import time; s = time.perf_counter(); import {what}; print(time.perf_counter() - s)"
RESIDENT = """
import numpy as np, os
from gtp_runtime import Policy
policy = Policy.load({path!r}, backend={backend!r})
for _ in range(100):
    policy.act(np.zeros({obs}), seed=0)
pages = int(open("/proc/self/statm").read().split()[1])
print(pages * os.sysconf("SC_PAGE_SIZE"))
"""

Act = Callable[[np.ndarray], object]


def loop(contenders: dict[str, Act], ticks: int) -> dict[str, Any]:
    """Acts at 100 Hz and returns what each contender took, and how many ticks were missed.

    Args:
        contenders: What acts, by name.
        ticks: Number of ticks.
    """
    observations = np.random.default_rng(0).normal(size=(1000, O)).astype(np.float32)
    for act in contenders.values():
        for obs in observations[:50]:
            act(obs)
    times = {name: np.empty(ticks) for name in contenders}
    order, missed, robbed = list(contenders), 0, 0
    start, taken = time.perf_counter(), stolen()
    for tick in range(ticks):
        obs = observations[tick % 1000]
        order.append(order.pop(0))
        for name in order:
            before = time.perf_counter()
            contenders[name](obs)
            times[name][tick] = time.perf_counter() - before
        left = start + (tick + 1) * PERIOD - time.perf_counter()
        earlier, taken = taken, stolen()
        if left < 0:
            missed += 1
            robbed += taken > earlier
            start -= left  # a late tick does not make the next one late
        else:
            time.sleep(max(0.0, start + (tick + 1) * PERIOD - time.perf_counter()))
    return {
        "missed": missed,
        "missed_while_stolen": robbed,
        "ms": {name: tails(values * 1e3) for name, values in times.items()},
    }


def stolen() -> float:
    """Returns the seconds that a hypervisor has taken from the core, where the system says so."""
    core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    return float(getattr(psutil.cpu_times(percpu=True)[core], "steal", 0.0))


def tails(values: np.ndarray) -> dict[str, float]:
    """Returns p50, p99, p99.9 and the largest."""
    p50, p99, p999 = np.quantile(values, [0.5, 0.99, 0.999])
    return {"p50": float(p50), "p99": float(p99), "p999": float(p999), "max": float(values.max())}


def latency(steps: int, ticks: int, folder: Path) -> dict[str, Any]:
    """Measures one K.

    Args:
        steps: K.
        ticks: Number of ticks.
        folder: Where the policy file goes.
    """
    actor, scaler = FlowMapActor(O, A), ActionScaler([-1.0] * A, [1.0] * A)
    path = folder / f"{steps}.onnx"
    export_onnx(actor, path, steps=steps, action_scaler=scaler)
    fast, plain = (gtp_runtime.Policy.load(path, backend=b) for b in ("onnxruntime", "numpy"))
    generator = torch.Generator().manual_seed(0)

    def core(obs: np.ndarray) -> object:
        tensor = torch.from_numpy(obs).unsqueeze(0)
        action = actor.sample(tensor, steps=steps, generator=generator)
        return scaler.to_box(action).numpy()[0]

    with gtp_runtime.Watchdog(fast.act, PERIOD, first=np.zeros(A)) as watchdog:
        contenders: dict[str, Act] = {
            "core": core,
            "runtime": fast.act,
            "runtime, watchdog": watchdog.act,
            "runtime, numpy": plain.act,
        }
        result = loop(contenders, ticks)
        result["late"] = watchdog.late
    return result | {"core": actor.explain(steps=steps)[0], "bytes": path.stat().st_size}


def priority() -> str:
    """Takes real-time priority if that is allowed; returns the scheduler of the process."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    except (AttributeError, PermissionError):  # another system, or a user without the right
        return "other"
    return "fifo"


def fresh(code: str) -> float:
    """Returns the number that a fresh interpreter prints.

    Args:
        code: What it runs.
    """
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=environment() | {"PYTHONPATH": str(ROOT / "runtime")},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(found.stdout)


def footprint(path: Path, rounds: int) -> dict[str, Any]:
    """Measures what the runtime costs beside its computations.

    Args:
        path: A policy file.
        rounds: Fresh interpreters per figure.
    """
    imports = {"onnxruntime": "onnxruntime", "both": "onnxruntime, gtp_runtime"}
    seconds: dict[str, list[float]] = {name: [] for name in imports}
    for _ in range(rounds + 1):
        for name, what in imports.items():
            seconds[name].append(fresh(IMPORT.format(what=what)))
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
        subprocess.run([*build, str(ROOT / "runtime")], check=True, capture_output=True)
        (wheel,) = Path(folder).glob("*.whl")
        size = wheel.stat().st_size
    return {
        "import_s": medians["both"] - medians["onnxruntime"],
        "import_onnxruntime_s": medians["onnxruntime"],
        "wheel_bytes": size,
        "resident_bytes": {
            backend: fresh(RESIDENT.format(path=str(path), backend=backend, obs=O))
            for backend in ("onnxruntime", "numpy")
        },
    }


def main() -> None:
    """Measures and writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ticks", type=int, default=60_000)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 5])
    parser.add_argument("--rounds", type=int, default=7, help="interpreters per import time")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    command = f"python -m benchmarks.runtime --ticks {args.ticks} --steps "
    record: dict[str, Any] = {
        "command": command + " ".join(map(str, args.steps)),
        "conditions": conditions("cpu", ticks=args.ticks, hertz=1 / PERIOD, observation=O, action=A)
        | {
            "clock": "wall time",
            "cores": 1,
            "scheduler": priority(),
            "load": os.getloadavg()[0],
        },
        "versions": versions(["onnxruntime", "numba"]),
    }
    with tempfile.TemporaryDirectory() as folder:
        record["steps"] = {}
        for steps in args.steps:
            found = record["steps"][str(steps)] = latency(steps, args.ticks, Path(folder))
            print(
                f"K={steps}: {found['missed']} of {args.ticks} ticks missed, "
                f"{found['missed_while_stolen']} of them to the hypervisor",
                flush=True,
            )
            for name, ms in found["ms"].items():
                print("  " + f"{name:20}" + "  ".join(f"{k} {v:.3f}" for k, v in ms.items()))
        record["footprint"] = footprint(Path(folder) / f"{args.steps[0]}.onnx", args.rounds)
    print(json.dumps(record["footprint"], indent=2))
    write(record, args.output)


if __name__ == "__main__":
    main()
