"""Fresh interpreters see this tree first, and then everything that the caller's own path has."""

import os

from benchmarks.pages import ROOT


def environment() -> dict[str, str]:
    """Returns the environment of a process of ours: one thread, and the caller's path kept."""
    given = [os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    # Each once: a process of a process would see the tree again.
    paths = dict.fromkeys([str(ROOT), str(ROOT / "adapters"), *given])
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
