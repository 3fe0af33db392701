"""Every teacher can be tried with every loss, and the share of the worst draws is a share."""

import pytest

from benchmarks import teachers
from benchmarks.teachers import LOSSES, PRESETS, STEPS, clone, section


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_teacher_is_tried(preset: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teachers, "SAMPLES", 1000)
    run = clone(3, 0, preset, loss, LOSSES[loss])
    assert (run["preset"], run["loss"], run["seed"]) == (preset, loss, 0)
    assert 0.01 < run["worst_share"] < 1  # 0.01 if all draws were alike
    assert [int(k) for k in run["within_3_std"]] == list(STEPS)
    assert all(0 <= share <= 1 for share in run["within_3_std"].values())


def test_what_diverges_is_reported_as_that() -> None:
    lost = {"preset": "mean_flow", "loss": "edm", "diverged": "not finite"}
    record = {
        "command": "c",
        "updates": 1,
        "seeds": 2,
        "runs": [lost | {"seed": i} for i in (0, 1)],
    }
    assert "| mean_flow | edm | 2 of 2 diverged |" in section(record)
