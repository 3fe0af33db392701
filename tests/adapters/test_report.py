"""The dataset report and the normalised scores, against numbers worked out by hand."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtp_datasets import (
    D4RL_REFERENCE,
    NormalizedScore,
    ReferenceScores,
    Summary,
    normalized_score,
    report,
)
from gtp_policy import ObservationLayout, OfflineDataset
from gtp_policy.errors import DataError


def dataset(**changes: object) -> OfflineDataset:
    """Three episodes: rewards 1, 2, 3 (terminated), 4 (truncated), 5, 6 (both flags)."""
    fields: dict[str, Any] = {
        "obs": np.array([[0, 7], [1, 7], [2, 7], [3, 7], [4, 7], [-5, 7]], float),
        "next_obs": np.zeros((6, 2)),
        "action": np.array([[-2, 5], [2, 5.1], [0, 5], [2, 5.2], [2, 5], [2, 5]], float),
        "reward": [1, 2, 3, 4, 5, 6],
        "terminated": [0, 0, 1, 0, 0, 1],
        "truncated": [0, 0, 0, 1, 0, 1],
        "low": [-2.0, 0.0],
        "high": [2.0, 10.0],
        "source": "by hand",
    }
    return OfflineDataset.from_arrays(**(fields | changes))


def test_the_numbers_are_those_of_the_data() -> None:
    found = report(dataset())
    assert (found.transitions, found.episodes) == (6, 3)
    assert (found.terminated, found.truncated) == (2, 1)
    assert found.returns == Summary(7.0, np.sqrt(26 / 3 - 0), 4.0, 5.0, 6.0, 8.5, 11.0)
    assert (found.lengths.mean, found.lengths.min, found.lengths.max) == (2.0, 1.0, 3.0)
    np.testing.assert_allclose(found.action_low, [-2, 5])
    np.testing.assert_allclose(found.action_high, [2, 5.2], rtol=1e-6)
    np.testing.assert_allclose(found.action_at_bounds, [5 / 6, 0])
    assert (found.obs_low, found.obs_high) == ((-5, 7), (4, 7))
    assert found.reward_histogram == tuple((float(r), float(r), 1) for r in range(1, 7))
    assert found.source == "by hand"


def test_an_episode_that_goes_on_behind_a_termination_is_one() -> None:
    flags = {"terminated": [0, 1, 1, 0, 0, 0], "truncated": [0] * 6, "ends": [0, 0, 0, 1, 0, 1]}
    found = report(dataset(**flags))
    assert (found.episodes, found.terminated, found.truncated) == (2, 1, 1)
    assert (found.lengths.min, found.lengths.max) == (2.0, 4.0)
    assert found.returns is not None
    assert (found.returns.min, found.returns.max) == (10.0, 11.0)


def test_the_warnings_name_the_dimensions() -> None:
    assert report(dataset()).warnings == (
        "1 of 3 episodes have a single transition.",
        "Observation dimensions 1 never change.",
        "Action dimensions 1 use under 10 % of their range.",
        "Action dimensions 0 are at a bound in over half of the rows.",
    )


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"reward": np.ones(6)}, "Every reward is 1: good and bad actions look alike."),
        ({"terminated": np.zeros(6)}, "No episode terminates: right for an endless task"),
        ({"action": np.ones((6, 2))}, "Action dimensions 0, 1 never change."),
        (
            {"obs": np.zeros((6, 12)), "next_obs": np.zeros((6, 12))},
            "Observation dimensions 0, 1, 2, 3, 4, 5, 6, 7 and 4 more never change.",
        ),
    ],
)
def test_what_deserves_a_look_is_said(changes: dict[str, Any], warning: str) -> None:
    def lines(changes: dict[str, Any]) -> str:
        return "\n".join(report(dataset(**changes)).warnings)

    assert warning in lines(changes)
    assert warning not in lines({})


def test_the_text_holds_the_numbers_and_fits_a_page() -> None:
    found = report(dataset())
    text = str(found)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 100
    for expected in (
        r"source +by hand",
        r"6 transitions in 3 episodes: 2 terminated, 1 truncated; gamma 0\.99",
        r"return +7 +2\.944 +4 +5 +6 +8\.5 +11",
        r"length +2 +0\.8165 +1 +1\.5 +2 +2\.5 +3",
        r" 1  16\.67 % #{40}",
        r" 0 +-2 +2 +83\.33 %",
        r"observation +2 dimensions, -5 to 7; widest: dimension 0, -5 to 4",
        r"warning +1 of 3 episodes have a single transition\.",
    ):
        assert re.search(expected, text), expected


def test_many_reward_values_are_binned() -> None:
    n = 1000
    rewards = np.linspace(0, 10, n)
    found = report(
        OfflineDataset.from_arrays(
            obs=np.zeros((n, 1)),
            next_obs=np.zeros((n, 1)),
            action=np.zeros((n, 1)),
            reward=rewards,
            terminated=np.zeros(n),
            truncated=np.zeros(n),
            low=[-1.0],
            high=[1.0],
        )
    )
    assert [count for _, _, count in found.reward_histogram] == [100] * 10
    assert [low for low, _, _ in found.reward_histogram] == pytest.approx(list(range(10)))
    assert found.episodes == 1
    assert found.returns.mean == pytest.approx(5 * n, rel=1e-6)


def test_keys_of_a_dict_observation_are_shown() -> None:
    data = dataset()
    data.layout = ObservationLayout({"observation": (1,), "desired_goal": (1,)})
    assert "2 dimensions (observation, desired_goal)" in str(report(data))


@pytest.mark.parametrize("change", [lambda d: d.with_chunks(2), lambda d: d.with_n_step(2)])
def test_sums_of_rewards_are_not_reported_as_rewards(
    change: Callable[[OfflineDataset], OfflineDataset],
) -> None:
    with pytest.raises(DataError, match="report needs rewards of single steps"):
        report(change(dataset()))
    assert report(dataset().with_history(2)).obs_low == (0, 7, -5, 7)


def test_images_are_looked_at_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them as numbers would be eight times as large as the images."""
    n = 600
    images = np.random.default_rng(0).integers(0, 256, (n, 4, 5, 3), np.uint8)
    columns: dict[str, Any] = {
        "action": np.zeros((n, 1)),
        "reward": np.arange(n),
        "terminated": np.arange(n) % 100 == 99,
        "truncated": np.zeros(n),
        "low": [-1.0],
        "high": [1.0],
    }
    flat = OfflineDataset.from_arrays(obs=images.reshape(n, -1), **columns)
    expected, held = report(flat), OfflineDataset.from_arrays(obs=images, **columns)
    assert held.images == ("",)
    monkeypatch.delattr(OfflineDataset, "transitions")
    assert report(held) == expected


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_episode_sums_add_up(lengths: list[int]) -> None:
    n = sum(lengths)
    ends = np.isin(np.arange(n), np.cumsum(lengths) - 1)
    rewards = np.arange(n) % 7
    found = report(
        OfflineDataset.from_arrays(
            obs=np.zeros((n, 1)),
            next_obs=np.zeros((n, 1)),
            action=np.zeros((n, 1)),
            reward=rewards,
            terminated=ends,
            truncated=np.zeros(n),
            low=[-1.0],
            high=[1.0],
        )
    )
    assert found.episodes == len(lengths)
    assert found.lengths.max == max(lengths)
    assert found.lengths.min == min(lengths)
    assert found.returns.mean * len(lengths) == pytest.approx(rewards.sum())
    assert sum(count for _, _, count in found.reward_histogram) == n


# --- normalised scores


def test_scores_run_from_0_to_100() -> None:
    reference = ReferenceScores(-10.0, 30.0, "hand")
    score = normalized_score([-10.0, 10.0, 30.0, 50.0], reference)
    assert score.values == (0.0, 50.0, 100.0, 150.0)
    assert score.value == 75.0
    assert score.std == pytest.approx(np.sqrt(50**2 * 5 / 4))
    assert score.source == "hand"
    assert normalized_score(10.0, reference) == NormalizedScore((50.0,), "hand")


def test_a_score_is_never_printed_without_its_source() -> None:
    reference = D4RL_REFERENCE["hopper"]
    assert str(normalized_score(3234.3, reference)) == "100.0 (reference: D4RL hopper)"
    pair = normalized_score(np.array([-20.272305, 3234.3]), reference)
    assert str(pair) == "50.0 +- 50.0 over 2 returns (reference: D4RL hopper)"


@pytest.mark.parametrize("returns", [[], np.nan, [1.0, np.inf], [[1.0]]])
def test_returns_are_finite_numbers(returns: Any) -> None:
    with pytest.raises(DataError, match="`returns` is unusable"):
        normalized_score(returns, D4RL_REFERENCE["hopper"])


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 1.0), (2.0, 1.0), (np.nan, 1.0), (0.0, np.inf), ("0", 1.0), (None, 1.0)]
)
def test_reference_scores_are_two_ordered_numbers(low: Any, high: Any) -> None:
    with pytest.raises(DataError, match="Reference scores are unusable"):
        ReferenceScores(low, high, "hand")


def test_reference_scores_have_a_source() -> None:
    with pytest.raises(DataError, match="need a source"):
        ReferenceScores(0.0, 1.0, "")


def test_the_table_of_d4rl_is_complete_and_cannot_be_changed() -> None:
    assert len(D4RL_REFERENCE) == 13
    assert all(task in reference.source for task, reference in D4RL_REFERENCE.items())
    assert (D4RL_REFERENCE["walker2d"].min, D4RL_REFERENCE["walker2d"].max) == (1.629008, 4592.3)
    assert (D4RL_REFERENCE["antmaze"].min, D4RL_REFERENCE["antmaze"].max) == (0.0, 1.0)
    with pytest.raises(TypeError):
        D4RL_REFERENCE["hopper"] = ReferenceScores(0.0, 1.0, "mine")  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        D4RL_REFERENCE["hopper"].max = 1.0  # type: ignore[misc]
