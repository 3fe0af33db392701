"""Which files of the package a minibatch and an action pass, and how many, as JSON.

    python -m benchmarks.walks [--root DIR]

The default config, steady: what first calls choose, build and compile is left out. A file is passed
if one of its functions is entered. ``--root`` names another checkout to look at.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.pages import ROOT

# Nothing of the package is imported here: which checkout it comes from is decided in `main`.
PACKAGE = "gtp_policy"
FIRST_CALLS = 3


def passed(call: Callable[[], object], folder: Path) -> list[str]:
    """Returns the files below a folder whose functions a call enters, in that order."""
    entered: dict[str, None] = {}

    def enter(frame: FrameType, event: str, argument: object) -> None:
        entered.setdefault(frame.f_code.co_filename)

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        call()
    finally:
        sys.settrace(before)
    paths = [Path(name) for name in entered]
    return [str(path.relative_to(folder)) for path in paths if path.is_relative_to(folder)]


def walks() -> dict[str, Callable[[], object]]:
    """Returns the ways of an update, of a whole minibatch and of an action, as calls."""
    import numpy as np
    import torch

    from gtp_policy import GTPLearner, OfflineDataset

    torch.set_num_threads(1)
    rng, rows = np.random.default_rng(0), 1000
    dataset = OfflineDataset.from_arrays(
        obs=rng.standard_normal((rows, 11), dtype=np.float32),
        action=rng.random((rows, 3), dtype=np.float32) * 2 - 1,
        reward=rng.standard_normal(rows, dtype=np.float32),
        next_obs=rng.standard_normal((rows, 11), dtype=np.float32),
        terminated=np.zeros(rows, np.bool_),
        truncated=np.arange(rows) % 100 == 99,
        low=-np.ones(3, np.float32),
        high=np.ones(3, np.float32),
    )
    learner = GTPLearner.from_dataset(dataset)
    batch = dataset.sample(256, generator=learner.stream("batch"))

    def minibatch() -> None:
        own = dataset.sample(256, generator=learner.stream("batch"))
        learner.update(own).to_floats()

    return {
        "update": lambda: learner.update(batch),
        "sample, update, metrics": minibatch,
        "act": lambda: learner.act(batch.obs[:1]),
    }


def measure(folder: Path) -> dict[str, Any]:
    """Returns the files of the package in a folder that each walk passes, and their number."""
    result = {}
    for name, call in walks().items():
        for _ in range(FIRST_CALLS):
            call()
        files = passed(call, folder)
        result[name] = {"files": files, "count": len(files)}
    return result


def main() -> None:
    """Prints the walks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout")
    root = parser.parse_args().root.resolve()
    sys.path.insert(0, str(root))
    found = Path(str(importlib.import_module(PACKAGE).__file__)).parent
    if found != root / PACKAGE:
        sys.exit(f"The package is another one: got {found}, expected {root / PACKAGE}.")
    print(json.dumps(measure(found), indent=1))


if __name__ == "__main__":
    main()
