"""Exported policies of every origin give the core's actions, in batches of any size."""

from pathlib import Path

import pytest

from benchmarks import parity

pytest.importorskip("stable_baselines3", reason="the extra `sb3` is not installed")
pytest.importorskip("tianshou", reason="the extra `tianshou` is not installed")


@pytest.mark.global_rng
@pytest.mark.slow  # torch's own exporter takes its time
def test_files_act_as_the_policies_of_every_origin(tmp_path: Path) -> None:
    found = {
        kind: parity.parity(policy, 2, 60, [1, 7, 60], "float32", tmp_path)
        for kind, policy in parity.policies(tmp_path)
    }
    assert tuple(found) == parity.KINDS
    for measured in found.values():
        assert max(measured["apart"].values()) <= 1e-5
        assert measured["in_box"]
        assert measured["nan_refused"]
