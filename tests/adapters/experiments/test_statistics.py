"""Figures over tasks: against their definition, and against rliable's."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gtp_experiments import interquartile_mean, probability_of_improvement
from gtp_policy.errors import DataError

TASKS = ("hopper", "antmaze", "scene", "pendulum")


def scores(seed: int, seeds: int, shift: float = 0.0) -> dict[str, list[float]]:
    """Scores of a method, of another level on each task."""
    rng = np.random.default_rng(seed)
    return {
        task: (20.0 * i + shift + rng.normal(size=seeds)).tolist() for i, task in enumerate(TASKS)
    }


def matrix(by_task: dict[str, list[float]]) -> np.ndarray:
    """What rliable takes: shape (runs, tasks)."""
    return np.array(list(by_task.values())).T


def test_the_interquartile_mean_is_over_all_runs_together() -> None:
    found = interquartile_mean({"a": [0.0, 0.0, 1.0, 2.0], "b": [3.0, 4.0, 100.0, 100.0]})
    assert found.value == np.mean([1.0, 2.0, 3.0, 4.0])
    assert found.low <= found.value <= found.high


def test_the_strata_are_the_tasks() -> None:
    """Tasks that differ a lot and seeds that agree leave no doubt about the figure."""
    found = interquartile_mean({"a": [0.0, 0.0, 0.0], "b": [90.0, 90.0, 90.0]})
    assert found == (45.0, 45.0, 45.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.global_rng
def test_figures_and_intervals_are_rliables() -> None:
    library = pytest.importorskip("rliable.library", reason="rliable is no dependency of ours")
    metrics = pytest.importorskip("rliable.metrics", reason="rliable is no dependency of ours")
    ours, theirs = scores(0, 8), scores(1, 8, shift=0.5)

    def interval(data: Any, function: Any) -> tuple[float, float, float]:
        values, bounds = library.get_interval_estimates(
            {"x": data}, function, reps=1000, random_state=np.random.RandomState(0)
        )
        return (float(values["x"][0]), *bounds["x"][:, 0].tolist())

    iqm = interval(matrix(ours), lambda x: np.array([metrics.aggregate_iqm(x)]))
    np.testing.assert_allclose(interquartile_mean(ours), iqm, atol=0.1)
    improvement = interval(
        [matrix(theirs), matrix(ours)],
        lambda x, y: np.array([metrics.probability_of_improvement(x, y)]),
    )
    np.testing.assert_allclose(probability_of_improvement(theirs, ours), improvement, atol=0.03)


@pytest.mark.slow
def test_the_interval_of_many_seeds_is_the_normal_one() -> None:
    """Of a mean of middle halves, by the delta method: the trimmed mean's standard error."""
    rng = np.random.default_rng(0)
    values = rng.uniform(size=4000)
    found = interquartile_mean({"a": values[:2000].tolist(), "b": values[2000:].tolist()})
    # Winsorised variance over (1 - 2 * 0.25)^2, for the uniform law 1/24 / 0.25.
    half = 1.96 * np.sqrt(1 / 24 / 0.25 / 4000)
    np.testing.assert_allclose((found.low, found.high), found.value + half * np.array([-1, 1]),
                               atol=0.1 * half)  # fmt: skip


@settings(max_examples=15)
@given(
    st.lists(st.integers(-3, 3), min_size=2, max_size=5),
    st.lists(st.integers(-3, 3), min_size=2, max_size=5),
)
def test_improvement_counts_pairs(x: list[int], y: list[int]) -> None:
    pairs = [(a > b) + 0.5 * (a == b) for a in x for b in y]
    one, other = {"a": [float(v) for v in x]}, {"a": [float(v) for v in y]}
    found = probability_of_improvement(one, other)
    assert found.value == pytest.approx(np.mean(pairs))
    assert found.low - 1e-12 <= found.value <= found.high + 1e-12
    assert probability_of_improvement(other, one).value == pytest.approx(1 - found.value)


def test_each_task_counts_once_for_improvement() -> None:
    one = {"a": [1.0] * 9, "b": [0.0, 0.0]}
    other = {"b": [1.0, 1.0], "a": [0.0, 0.0]}  # in another order
    assert probability_of_improvement(one, other) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "`scores` is empty"),
        ({"a": [1.0]}, "expected at least 2 finite numbers"),
        ({"a": [1.0, 2.0], "b": [1.0, float("nan")]}, "`values` is unusable"),
    ],
)
def test_unusable_scores_are_refused(values: dict[str, list[float]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        interquartile_mean(values)
    with pytest.raises(DataError, match=message):
        probability_of_improvement(values, values)


def test_methods_of_different_tasks_are_not_compared() -> None:
    with pytest.raises(DataError, match=r"The tasks differ: got \['a'\] and \['b'\]"):
        probability_of_improvement({"a": [1.0, 2.0]}, {"b": [1.0, 2.0]})
