"""The benchmark of clones: its truths measure as such, and it goes on where it stopped."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cloning
from gtp_experiments import sliced_distance


@pytest.mark.parametrize("modes", [cloning.FOUR, cloning.EIGHT])
def test_the_truth_measures_as_the_truth(modes: cloning.Modes) -> None:
    measured = modes.measure(modes.draw(100_000, np.random.default_rng(0))[1])
    assert measured["share"] == pytest.approx(0.989, abs=0.003)
    assert measured["ratios"] == pytest.approx([1.0] * len(modes.weights), abs=0.05)
    assert measured["rms"] == pytest.approx(measured["true_rms"], rel=0.01)


def test_a_sample_is_nearer_to_its_own_law_than_to_another() -> None:
    rng = np.random.default_rng(0)
    first, second = (np.hstack(cloning.moons(20_000, rng)) for _ in range(2))
    other = np.hstack(cloning.spiral(20_000, rng))
    floor = sliced_distance(first, second)
    assert floor < 0.01
    assert sliced_distance(first, other) > 5 * floor


def test_rows_that_are_there_are_not_run_again(tmp_path: Path) -> None:
    output = tmp_path / "cloning.json"
    arguments = ["--seeds", "1", "--updates", "3", "--tasks", "modes", "--output", str(output)]
    cloning.main([*arguments, "--methods", "one_step"])
    first = json.loads(output.read_text(encoding="utf-8"))["rows"]
    cloning.main(arguments)
    rows = json.loads(output.read_text(encoding="utf-8"))["rows"]
    assert rows[0] == first[0]
    assert [row["method"] for row in rows] == ["one_step", "gtp"]
    assert set(rows[0]["measured"]["3"]) == {"1", "2", "5"}
