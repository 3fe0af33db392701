"""Training on a table in files: its rate beside one in memory, and the resident set it takes.

    python -m benchmarks.memmap [--rounds 7] [--gigabytes 20] [--folder /somewhere]

Random transitions of Hopper's dimensions, one gigabyte of them, are converted; the large table is
that shard many times over, each a file of its own. "in memory" trains on the one gigabyte, "in
files" on all of it, in turn in one process, after every file has been read once: the page cache is
warm as far as the machine has memory for it. The resident set is that of a fresh process that
opens the large table without its hashes, trains and draws minibatches all over it. Minibatches are
compared for the one gigabyte, that fits into memory. CPU only. Linux only: the resident set is read
from the system's own files.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.clock import command, compare, conditions, measure, parser, say, versions
from benchmarks.contenders import Case, config, dataset, random_data
from benchmarks.memory import resident
from benchmarks.pages import RESULTS, write
from benchmarks.processes import answer_of
from gtp_datasets import convert
from gtp_policy import GTPLearner, OfflineDataset

RESULT = RESULTS / "memmap.json"
GIGABYTE = 10**9


def in_memory(case: Case, size: int) -> OfflineDataset:
    """Returns random transitions that take so many bytes."""
    width = 2 * case.obs_dim + case.action_dim + 2
    return dataset(random_data(case, size // (4 * width)), "cpu")


def repeat(small: Path, large: Path, times: int) -> None:
    """Writes a table many times over: shards are copies, flags are repeated."""
    large.mkdir()
    index = json.loads((small / "dataset.json").read_text(encoding="utf-8"))
    del index["sha256"]  # which would be another one
    (shard,) = index["columns"]["table"]["shards"]
    shards = [shard | {"file": f"table-{i:05d}.npy"} for i in range(times)]
    for one in shards:
        shutil.copyfile(small / shard["file"], large / one["file"])
    index["columns"]["table"]["shards"] = shards
    for name in ("terminated", "truncated"):
        flags = np.lib.format.open_memmap(
            large / f"{name}-00000.npy", "w+", np.bool_, (times * shard["rows"],)
        )
        flags.reshape(times, -1)[:] = np.load(small / f"{name}-00000.npy", mmap_mode="r")
        flags.flush()
        # Nothing here compares hashes of flags: the process that is measured opens without.
        index["columns"][name]["shards"][0]["rows"] = times * shard["rows"]
    (large / "dataset.json").write_text(json.dumps(index), encoding="utf-8")


def warm(folder: Path) -> float:
    """Reads every file once, and returns the seconds that took."""
    start = time.perf_counter()
    for path in sorted(folder.iterdir()):
        with path.open("rb", buffering=0) as file:
            while file.read(2**24):
                pass
    return time.perf_counter() - start


def child(folder: Path, case: Case, updates: int) -> dict[str, float]:
    """Trains in this process and draws minibatches, and returns the resident set that took."""
    torch.set_num_threads(1)
    start, _ = resident()
    table = OfflineDataset.memmap(folder, verify=False)
    learner = GTPLearner.from_dataset(table, config(case))
    learner.update_from(table, updates, batch_size=case.batch)
    trained, _ = resident()
    # Far more rows than a resident set of 2 GiB would hold pages of.
    generator = torch.Generator().manual_seed(0)
    for _ in range(20 * updates):
        table.sample(case.batch, generator=generator)
    end, peak = resident()
    return {"imports_mib": start, "trained_mib": trained, "end_mib": end, "peak_mib": peak}


def fresh(folder: Path, updates: int) -> dict[str, float]:
    """Runs `child` in a fresh process."""
    return answer_of("benchmarks.memmap", ["--folder", folder, "--updates", updates])


def equal_minibatches(a: OfflineDataset, b: OfflineDataset, batch: int, count: int) -> int:
    """Returns how many minibatches of one seed are the same in both, bit for bit."""
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    return sum(
        all(
            x.numpy().tobytes() == y.numpy().tobytes()
            for x, y in zip(
                a.sample(batch, generator=generators[0]).present(),
                b.sample(batch, generator=generators[1]).present(),
                strict=True,
            )
        )
        for _ in range(count)
    )


def training(table: OfflineDataset, case: Case) -> Callable[[], object]:
    """Returns what does one update."""
    learner = GTPLearner.from_dataset(table, config(case))
    return lambda: learner.update_from(table, batch_size=case.batch)


def drawing(table: OfflineDataset, case: Case) -> Callable[[], object]:
    """Returns what draws one minibatch."""
    generator = torch.Generator().manual_seed(0)
    return lambda: table.sample(case.batch, generator=generator)


def run(case: Case, rounds: int, folder: Path, size: int, *, quick: bool = False) -> dict[str, Any]:
    """Measures everything in a folder, which is removed by the caller."""
    torch.set_num_threads(1)
    part = size if quick else GIGABYTE
    times = 3 if quick else max(1, size // part)
    small = in_memory(case, part)
    start = time.perf_counter()
    files = convert(small, folder / "small", shard_bytes=2 * part)
    seconds = {"convert_per_gigabyte": (time.perf_counter() - start) * GIGABYTE / part}
    start = time.perf_counter()
    OfflineDataset.memmap(folder / "small")
    seconds["open_and_verify_per_gigabyte"] = (time.perf_counter() - start) * GIGABYTE / part
    batches = 100
    equal = equal_minibatches(small, files, case.batch, batches)
    del files
    repeat(folder / "small", folder / "large", times)
    shutil.rmtree(folder / "small")
    seconds["read_all"] = warm(folder / "large")
    start = time.perf_counter()
    large = OfflineDataset.memmap(folder / "large", verify=False)
    seconds["open"] = time.perf_counter() - start
    tables = {"in memory": small, "in files": large}
    record: dict[str, Any] = {
        "conditions": conditions("cpu", batch=case.batch, hidden=[case.width] * 3, rounds=rounds),
        "versions": versions(),
        "gigabytes": {name: table.nbytes / GIGABYTE for name, table in tables.items()},
        "rows": {name: len(table) for name, table in tables.items()},
        "equal_minibatches": f"{equal} of {batches}",
        "seconds": seconds,
    }
    calls = 3 if quick else 50
    for section, make in (("update", training), ("minibatch", drawing)):
        contenders = {name: make(table, case) for name, table in tables.items()}
        found = compare(measure(contenders, rounds, calls, together=True), "in memory")
        record[section] = found
        say(section, f"{times} shards", found)
    ratio = record["update"]["in files"]["times_faster_than_in memory"]["median"]
    record["rate_of_that_in_memory"] = ratio
    del small, large, tables, contenders
    record["resident"] = fresh(folder / "large", 20 if quick else 500)
    print(
        f"{ratio:.1%} of the rate in memory; resident set at most "
        f"{record['resident']['peak_mib']:.0f} MiB; {record['equal_minibatches']} minibatches equal"
    )
    return record


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes the JSON; with ``--child``, prints the answer of one process."""
    options = parser(__doc__, RESULT, rounds=7)
    options.add_argument("--gigabytes", type=float, default=20.0, help="of the large table")
    options.add_argument("--folder", type=Path, help="where there is room for them")
    options.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options.add_argument("--updates", type=int, default=500, help=argparse.SUPPRESS)
    args = options.parse_args(arguments)
    case = Case()
    if args.child:
        print(json.dumps(child(args.folder, case, args.updates)))
        return
    start = time.perf_counter()
    size = 10**6 if args.quick else int(args.gigabytes * GIGABYTE)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        record = run(case, args.rounds, Path(name), size, quick=args.quick)
    called = f"{command('memmap', args)} --gigabytes {args.gigabytes:g}"
    write({"command": called} | record, args.output)
    print(f"wrote {args.output} after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
