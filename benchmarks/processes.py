"""Fresh interpreters see this tree first, and then everything that the caller's own path has."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.pages import ROOT


def environment() -> dict[str, str]:
    """Returns the environment of a process of ours: one thread, and the caller's path kept."""
    given = [os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    # Each once: a process of a process would see the tree again.
    paths = dict.fromkeys([str(ROOT), str(ROOT / "adapters"), *given])
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def answer_of(module: str, words: Sequence[object]) -> dict[str, Any]:
    """Runs a benchmark with ``--child`` and more words in a fresh process; returns its answer."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module, "--child", *map(str, words)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer
