"""The reliability trials at their counts per release, as JSON, and the page that shows them.

    python -m benchmarks.scorecard [--only A1 B1 ...] [--fresh]   run what the JSON does not hold
    python -m benchmarks.scorecard --pr                           run the counts per pull request
    python -m benchmarks.scorecard --page                         write docs/reliability.md
    python -m benchmarks.scorecard --check                        see whether that page is current

The JSON is written after each trial: a run that was interrupted goes on where it stopped, as long
as the library's code and the versions are the same.
"""

import argparse
import ast
import hashlib
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import pages
from benchmarks.pages import RESULTS, ROOT, publish, table, write

# What the trials need is imported where it is used: the processes that they kill import this file.

RECORD = RESULTS / "scorecard.json"
PAGE = ROOT / "docs" / "reliability.md"
LIBRARY = (
    "gtp_policy",
    "adapters/gtp_datasets",
    "adapters/gtp_experiments",
    "adapters/gtp_sb3",
    "adapters/gtp_tianshou",
)
COUNTS = ("release", "pull request")
FAILURES_KEPT = 20

PROMISES = """\
## What this promises

**A, interruptions.** A checkpoint is there as a whole or not at all, whatever ends the process
that writes it, and whichever call to the operating system fails; a reader beside the writer always
finds one. What is saved loads again: anything else is refused before something old goes. An error
in the middle of an update leaves a learner as it was, or one that says that it is broken. A run
that was killed, stopped or resumed at any update ends with the parameters, target networks,
optimiser moments and counter that the uninterrupted run ends with, bit for bit. *Not promised:* a
disk that confirms what it has not written; two processes that write to one folder; the same bits
with another version of a dependency, another processor, another device or another number of
threads. There a checkpoint loads as well, and the run goes on with other rounding.

**B, files from others.** Loading executes nothing, writes nothing, builds no environment and
connects to nothing, at the core's door and at every host's. A damaged file is an error that names
it, never another policy. A file whose every hash is right, but which contradicts itself or declares
more memory than it fills, is an error too. *Not promised:* who wrote a file: a hash is no
signature; defects of the HDF5 library, which reads Minari's and D4RL's files; that a policy from a
stranger is a good one. Known vulnerabilities of dependencies are not looked up here, as that needs
the network: `make audit` does, each night.

**C, data.** A value that is not finite is named with its field and row. Odd types, layouts, ranks
and devices either act as plain input or are an error that says what was got and expected. A time
limit bootstraps, a termination does not. A wrong argument works, or is an error that says what was
got and expected, and not one of torch or NumPy. *Not promised:* that data which passes makes sense.

**E, repeatability.** On one machine, with one number of threads, seed, data and versions decide
every bit of a run, whatever Python's hash seed is. Equal calls give equal actions to the last bit.
Acting changes nothing, and may be done from many threads, each call with its own generator.
*Not promised:* equal bits for an observation alone and in a batch, or in two rows of one, only
equal up to rounding, which is about 1e-6; of two candidates whose values differ by no more than
that, the same one; training one learner from several threads. `make test-cpus` runs the numerical
tests as other processors would compute.

**L, formulas.** Gradients by hand and by autograd are those of the method's formulas, which the
trial writes out a second time, for losses, teachers, times, weights, critics, backups and guidance
at random. *Not promised:* the same digits in float32.
"""


def library_digest() -> str:
    """Returns a hash of the library's code; comments and docstrings do not count."""
    digest = hashlib.sha256()
    for path in sorted(p for folder in LIBRARY for p in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
                node
            ):
                node.body[0] = ast.Pass()
        digest.update(f"{path.relative_to(ROOT)}\n{ast.unparse(tree)}\n".encode())
    return digest.hexdigest()[:12]


def surroundings() -> dict[str, str]:
    """Returns what the figures depend on."""
    import numpy
    import safetensors
    import torch

    import gtp_policy

    return {
        "gtp_policy": gtp_policy.__version__,
        "code": library_digest(),
        "torch": torch.__version__.split("+")[0],
        "numpy": numpy.__version__,
        "safetensors": safetensors.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def read(path: Path) -> dict[str, Any]:
    """Returns a record, or an empty one."""
    return pages.read(path) or {"versions": {}, "trials": {}}


def run(path: Path, names: list[str], *, release: bool, fresh: bool) -> bool:
    """Runs the trials that a record does not hold yet; returns whether all have passed."""
    import torch

    from tests.reliability import registry

    torch.set_num_threads(1)  # as in the tests
    record = read(path)
    command = "python -m benchmarks.scorecard" + ("" if release else " --pr")
    head = {"command": command, "counts": COUNTS[not release], "versions": surroundings()}
    if fresh or any(record.get(key) != value for key, value in head.items()):
        record = head | {"trials": {}}
    trials = record["trials"]
    for name in names:
        if name in trials and trials[name]["passed"] == trials[name]["count"]:
            print(f"{name}  held: {trials[name]['count']} passed on {trials[name]['date']}")
            continue
        trials[name] = one(name, registry.run, release=release)
        record["trials"] = {key: trials[key] for key in registry.TRIALS if key in trials}
        write(record, path)
        print(
            f"{name}  {trials[name]['passed']} of {trials[name]['count']} passed in "
            f"{trials[name]['seconds']} s: {trials[name]['worst']}",
            *trials[name]["failures"],
            sep="\n    ",
            flush=True,
        )
    return all(trials[name]["passed"] == trials[name]["count"] for name in names)


def one(name: str, run_trial: Any, *, release: bool) -> dict[str, Any]:  # noqa: ANN401
    """Runs a trial; returns its row."""
    start = time.monotonic()
    try:
        outcome = run_trial(name, release=release)
        count, passed = outcome.count, outcome.passed
        failures, worst, details = outcome.failures, outcome.worst, outcome.details
    except Exception as error:  # a trial that breaks is a trial that fails
        count, passed, worst, details = 1, 0, "the trial broke", {}
        failures = [f"{type(error).__name__}: {error}"]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "count": count,
        "passed": passed,
        "worst": worst,
        "seconds": round(time.monotonic() - start, 1),
        "failures": failures[:FAILURES_KEPT],
        "details": details,
    }


def render(record: dict[str, Any]) -> str:
    """Returns the page of a record."""
    from tests.reliability.registry import TRIALS

    rows, details = [], []
    for name, trial in TRIALS.items():
        row = record["trials"].get(name)
        if row is None:
            rows.append([name, trial.title, "", "not run", "", ""])
            continue
        count, passed = (f"{row[key]:,}" for key in ("count", "passed"))
        rows.append([name, trial.title, count, passed, row["worst"], f"{row['seconds']:,}"])
        details += [f"- {name}, {key}: {shown(value)}" for key, value in row["details"].items()]
    parts = [
        "# Reliability",
        "What the project is put through before a release. The table is written by a command from "
        "the record that the trials leave, and a test fails where the two differ. The trials "
        "themselves are in `tests/reliability`; each runs with every change at a smaller count.",
        table(["ID", "trial", "count", "passed", "worst figure", "seconds"], rows),
        PROMISES.strip(),
    ]
    if record["trials"]:
        dates = sorted({row["date"] for row in record["trials"].values()})
        versions = ", ".join(f"{name} {value}" for name, value in record["versions"].items())
        days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        counts = f"Counts per {record['counts']}; `{record['command']}`"
        parts.insert(2, f"{counts}; {days}; {versions}.")
        parts += ["## Further figures", "\n".join(details)]
    else:
        parts.insert(2, "No trial has been run at its count per release yet.")
    return "\n\n".join(parts) + "\n"


def shown(value: object) -> str:
    """Returns a figure of the record as text."""
    if isinstance(value, dict):
        return "; ".join(f"{key} {shown(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "none"
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def main() -> None:
    """Runs the trials, or writes or checks the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="ID", help="these trials")
    parser.add_argument("--fresh", action="store_true", help="forget what the record holds")
    parser.add_argument("--pr", action="store_true", help="the counts per pull request")
    parser.add_argument("--page", action="store_true", help="write the page")
    parser.add_argument("--check", action="store_true", help="compare the page with the record")
    parser.add_argument("--output", type=Path, help="the record; with --pr outputs/scorecard.json")
    args = parser.parse_args()
    path = args.output or (ROOT / "outputs" / "scorecard.json" if args.pr else RECORD)
    if args.page or args.check:
        publish(PAGE, render(read(path)), check=args.check, target="scorecard")
        return
    from tests.reliability.registry import TRIALS

    names = args.only or list(TRIALS)
    if unknown := set(names) - set(TRIALS):
        parser.error(f"no such trial: {', '.join(sorted(unknown))}; there are {', '.join(TRIALS)}")
    sys.exit(not run(path, names, release=not args.pr, fresh=args.fresh))


if __name__ == "__main__":
    main()
