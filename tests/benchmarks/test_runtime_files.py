"""What is written for the runtime's tests: the core's actions beside a file are the file's."""

from pathlib import Path

import numpy as np

from benchmarks import runtime_files
from gtp_runtime import Policy


def test_files_that_choose_among_candidates_are_what_stands_beside_them(tmp_path: Path) -> None:
    written = {"candidates", "layer_norm", "mode"}
    for name, policy, options in runtime_files.policies():
        if name not in written:
            continue
        runtime_files.write(name, policy, options, tmp_path)
        with np.load(tmp_path / f"{name}.npz") as right:
            found = Policy.load(tmp_path / f"{name}.onnx").act(right["obs"], noise=right["noise"])
            away = np.abs(found - right["action"]).max(1)
        # Of two candidates that are worth the same, rounding may choose the other.
        assert (away < 1e-5).mean() > 0.9
