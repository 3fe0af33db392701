"""What several processes gain in one update: measured on the CPU, and on paper for eight GPUs.

    python -m benchmarks.scaling [--rounds 5] [--updates 30]

One process alone and two that share every update, in turn, each on one thread, at several sizes of
the minibatch; time is that on the clock, so the machine should have two idle cores. What an update
sends is counted in the processes themselves, and its arithmetic by torch's counter. The estimate
for GPUs is these two numbers over what the machine is said to do (`MACHINE`): the time of a ring of
messages beside the time that the arithmetic saves. It is an estimate, and no GPU has shown it yet.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.clock import conditions, parser, spread, versions
from benchmarks.contenders import Case, dataset, random_data
from benchmarks.pages import RESULTS, ROOT, write
from benchmarks.processes import environment
from gtp_experiments.processes import end
from gtp_policy import GTPConfig, GTPLearner, GTPLearnerConfig, OfflineDataset, kernels

RESULT = RESULTS / "scaling.json"
BATCHES = (256, 1024, 4096)
TRANSITIONS = 20_000


class Machine(NamedTuple):
    """What an estimate assumes of GPUs and of what connects them."""

    processes: int = 8
    flops_per_second: float = 2e13  # of float32 products as small as these; its peak is 3 times it
    launch_seconds: float = 5e-6  # of the host per kernel, as shared updates are not recorded
    kernels: int = 82  # of an update, see benchmarks.nodes
    message_seconds: float = 20e-6  # before the first byte of a message arrives


MACHINE = Machine()
# Bytes per second that a ring of all-reduce moves.
WIRES = {"NVLink, 300 GB/s": 3e11, "Ethernet, 100 Gbit/s": 1.1e10}


def prepared() -> tuple[GTPLearner, OfflineDataset]:
    """Returns a learner whose critic guides it from the first update on, and its data."""
    data = dataset(random_data(Case(), TRANSITIONS), "cpu")
    config = GTPConfig(learner=GTPLearnerConfig(guidance_start=0))
    return GTPLearner.from_dataset(data, config), data


class Sent:
    """Counts what this process tells the others, while it is entered."""

    def __enter__(self) -> "Sent":
        self.messages, self.bytes = 0, 0
        self._kept = {name: getattr(dist, name) for name in ("all_reduce", "all_gather")}
        dist.all_reduce = self._counting("all_reduce", 0)  # type: ignore[assignment]
        dist.all_gather = self._counting("all_gather", 1)  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        for name, function in self._kept.items():
            setattr(dist, name, function)

    def _counting(self, name: str, sent: int) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - as torch has it
            self.messages += 1
            self.bytes += args[sent].numel() * args[sent].element_size()
            return self._kept[name](*args, **options)

        return call


def child(rank: int, size: int, meet: str, updates: int, batches: Sequence[int]) -> dict[str, Any]:
    """Trains in one of several processes and returns milliseconds per update, and what it sent."""
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=size)
    learner, data = prepared()
    if size > 1:
        learner.distribute_()
    ms, sent = {}, None
    for batch in batches:
        learner.update_from(data, 3, batch_size=batch)
        if size > 1:
            dist.barrier()
        start = time.perf_counter()
        learner.update_from(data, updates, batch_size=batch)
        ms[batch] = 1e3 * (time.perf_counter() - start) / updates
    if size > 1:
        with Sent() as sent:
            learner.update_from(data, batch_size=batches[0])
    return {"ms": ms, "messages": sent and sent.messages, "bytes": sent and sent.bytes}


def processes(size: int, updates: int, batches: Sequence[int]) -> dict[str, Any]:
    """Runs `child` in fresh processes and returns the answer of the first."""
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.scaling", "--child"]
    with tempfile.TemporaryDirectory() as folder:
        started = [
            subprocess.Popen(
                [*words, *map(str, (rank, size, f"file://{folder}/meet", updates, *batches))],
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]
        answers = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit("error: a process did not come to its end.")
    answer: dict[str, Any] = json.loads(answers[0])
    return answer


def arithmetic(batches: Sequence[int]) -> dict[str, float]:
    """Returns the floating-point operations of an update: per row, and whatever the rows."""
    counts = []
    few, many = min(batches), max(batches)
    for batch in (few, many):
        learner, data = prepared()
        with kernels.using("reference"), FlopCounterMode(display=False) as counter:
            learner.update_from(data, batch_size=batch)
        counts.append(counter.get_total_flops())
    per_row = (counts[1] - counts[0]) / (many - few)
    return {"flops_per_row": per_row, "flops_besides": counts[0] - few * per_row}


def estimate(
    flops_per_row: float, sent: float, messages: int, speed: float, machine: Machine = MACHINE
) -> dict[str, float]:
    r"""Returns what an update costs on the wire, and from which minibatch on it pays.

    A ring of N moves :math:`2 \frac{N - 1}{N}` times the bytes. Kernels of small minibatches wait
    for their launches, which sharing does not make fewer; arithmetic is divided by N. So it pays
    where :math:`(1 - 1/N) B f / F` is more than the time on the wire, with f operations per row at
    F a second; and only what is more than the launches counts.

    Args:
        flops_per_row: f.
        sent: Bytes of an update.
        messages: How many they are in.
        speed: Bytes per second.
        machine: What is assumed.

    Returns:
        ``wire_ms``, ``launches_ms``, ``pays_from``: a power of two of rows; and by
        ``speedup_BATCH`` how many times faster an update of so many rows is.
    """
    n = machine.processes
    wire = messages * machine.message_seconds + 2 * (n - 1) / n * sent / speed
    launches = machine.kernels * machine.launch_seconds

    def seconds(rows: float) -> float:
        return max(launches, rows * flops_per_row / machine.flops_per_second)

    rows = next(r for r in (2**i for i in range(60)) if seconds(r / n) + wire < seconds(r))
    found = {"wire_ms": 1e3 * wire, "launches_ms": 1e3 * launches, "pays_from": float(rows)}
    for batch in (rows, 8 * rows):
        found[f"speedup_{batch}"] = seconds(batch) / (seconds(batch / n) + wire)
    return found


def run(rounds: int, updates: int, batches: Sequence[int] = BATCHES) -> dict[str, Any]:
    """Measures, counts and estimates."""
    torch.set_num_threads(1)
    times: dict[int, list[list[float]]] = {1: [], 2: []}
    answer: dict[str, Any] = {}
    for _ in range(rounds):
        for size, rows in times.items():
            answer = processes(size, updates, batches)
            rows.append([answer["ms"][str(batch)] for batch in batches])
    alone, shared = (np.array(times[size]) for size in (1, 2))
    work = arithmetic(batches)
    return {
        "conditions": conditions("cpu", clock="wall time", rounds=rounds, updates=updates),
        "versions": versions(),
        "measured": {
            str(batch): {
                "one": spread(alone[:, i]),
                "two": spread(shared[:, i]),
                "times_faster": spread(alone[:, i] / shared[:, i]),
            }
            for i, batch in enumerate(batches)
        },
        "bytes": answer["bytes"],
        "messages": answer["messages"],
        **work,
        "machine": MACHINE._asdict(),
        "estimates": {
            name: estimate(work["flops_per_row"], answer["bytes"], answer["messages"], speed)
            for name, speed in WIRES.items()
        },
    }


def main() -> None:
    """Measures and writes the JSON."""
    if sys.argv[1:2] == ["--child"]:
        rank, size, meet, updates, *batches = sys.argv[2:]
        found = child(int(rank), int(size), meet, int(updates), [int(b) for b in batches])
        print(json.dumps(found))
        end(0)
    options: argparse.ArgumentParser = parser(__doc__, RESULT, rounds=5)
    options.add_argument("--updates", type=int, default=30)
    args = options.parse_args()
    record = run(args.rounds, args.updates)
    record = {"command": f"python -m benchmarks.scaling --rounds {args.rounds}"} | record
    write(record, args.output)
    for batch, found in record["measured"].items():
        print(f"{batch:>6} rows: {found['times_faster']['median']:.2f} times faster with two")
    for name, found in record["estimates"].items():
        rows = math.log2(found["pays_from"])
        print(f"8 GPUs, {name}: {found['wire_ms']:.2f} ms on the wire, pays from 2^{rows:.0f} rows")


if __name__ == "__main__":
    main()
