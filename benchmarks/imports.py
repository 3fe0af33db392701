"""How long `import gtp_policy` takes over `import torch`, and which packages take it.

    python -m benchmarks.imports [--rounds 15]

Every import is that of a fresh interpreter, in turn, with process time: its bytecode is compiled
before, and files are in the system's cache.
"""

import collections
import json
import re
import subprocess
import sys
import time
from typing import Any

import numpy as np

from benchmarks.clock import command, conditions, parser, spread, versions
from benchmarks.pages import RESULTS, ROOT, write
from benchmarks.processes import environment

RESULT = RESULTS / "imports.json"
STATEMENTS = (
    "import torch",
    "import torch; import gtp_policy",
    "import torch; import gtp_tianshou",
)
TIMED = """
import json, sys, time
start = time.process_time()
{statement}
print(json.dumps([time.process_time() - start, len(sys.modules)]))
"""


def interpreter(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a fresh interpreter, one thread."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )


def imported(text: str, after: str) -> dict[str, float]:
    """Returns milliseconds by package from ``-X importtime``, of what follows a line."""
    spent: dict[str, float] = collections.defaultdict(float)
    _, _, rest = text.partition(after)
    for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", rest):
        spent[package(name)] += int(own) / 1000
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def package(name: str) -> str:
    """Returns the package that a module belongs to; Python's own are one."""
    top = name.partition(".")[0].lstrip("_")
    if top.startswith("pydantic") or top == "annotated_types" or top.startswith("typing_insp"):
        return "pydantic"
    return "standard library" if name.partition(".")[0] in sys.stdlib_module_names else top


def run(rounds: int) -> dict[str, Any]:
    """Measures everything."""
    seconds: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    modules: dict[str, int] = {}
    for r in range(rounds + 1):
        for statement in list(seconds):
            try:
                answer = interpreter("-c", TIMED.format(statement=statement))
            except subprocess.CalledProcessError:  # a host that is not installed
                del seconds[statement]
                continue
            spent, modules[statement] = json.loads(answer.stdout)
            if r:  # the first round fills caches
                seconds[statement].append(spent)
    alone = np.array(seconds["import torch"])
    split = "import sys, torch; print('---', file=sys.stderr); import gtp_policy"
    profiles = [imported(interpreter("-X", "importtime", "-c", split).stderr, "---\n")]
    profiles += [
        imported(interpreter("-X", "importtime", "-c", split).stderr, "---\n")
        for _ in range(min(rounds, 5) - 1)
    ]
    return {
        "conditions": conditions("cpu", rounds=rounds) | {"threads": 1},
        "versions": versions(["pydantic", "safetensors"]),
        "seconds": {statement: spread(np.array(values)) for statement, values in seconds.items()},
        "over_torch": {
            statement: spread(np.array(values) - alone)
            for statement, values in seconds.items()
            if statement != "import torch"
        },
        "modules": {statement: modules[statement] for statement in seconds},
        "by_package_ms": {
            name: float(np.median([profile.get(name, 0.0) for profile in profiles]))
            for name in profiles[0]
        },
    }


def main() -> None:
    """Measures and writes the JSON."""
    args = parser(__doc__, RESULT, rounds=15).parse_args()
    start = time.perf_counter()
    record = run(args.rounds)
    write({"command": command("imports", args)} | record, args.output)
    for statement, over in record["over_torch"].items():
        print(
            f"{statement:36} {over['median']:.3f} s over torch [{over['q1']:.3f}, {over['q3']:.3f}]"
        )
    for name, ms in record["by_package_ms"].items():
        print(f"  {name:24} {ms:6.1f} ms")
    print(f"wrote {args.output} after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
