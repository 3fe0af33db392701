"""The benchmark of tables in files runs, and what it repeats is the same table again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import memmap
from benchmarks.contenders import Case
from gtp_datasets import convert
from gtp_policy import OfflineDataset

CASE = Case(width=8, batch=16)


def test_a_table_is_repeated(tmp_path: Path) -> None:
    small = memmap.in_memory(CASE, 50_000)
    convert(small, tmp_path / "small")
    memmap.repeat(tmp_path / "small", tmp_path / "large", 3)
    large = OfflineDataset.memmap(tmp_path / "large", verify=False)
    n = len(small)
    assert len(large) == 3 * n
    assert len(large.truncated) == 3 * n
    assert all(
        torch.equal(large.rows(i * n, (i + 1) * n).obs, small.rows(0, n).obs) for i in (0, 2)
    )
    assert memmap.equal_minibatches(small, small, 16, 3) == 3
    assert memmap.equal_minibatches(small, small.with_reward_column(torch.zeros(n)), 16, 3) == 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says what is resident")
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(folder: Path, updates: int) -> dict[str, float]:
        return memmap.child(folder, CASE, updates)

    monkeypatch.setattr(memmap, "fresh", here)
    record: dict[str, Any] = memmap.run(CASE, 1, tmp_path, 10**5, quick=True)
    assert record["equal_minibatches"] == "100 of 100"
    assert record["rows"]["in files"] == 3 * record["rows"]["in memory"]
    assert record["rate_of_that_in_memory"] > 0
    assert record["resident"]["peak_mib"] > 0
