"""Arrays to OfflineDataset: what is refused and how, what is kept, and what bootstraps."""

import math
import tracemalloc
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gtp_policy.dataset_builder
from gtp_policy import ActionScaler, OfflineDataset
from gtp_policy.dataset_builder import OfflineDatasetBuilder
from gtp_policy.errors import DataError, EmptyDatasetError, UnsupportedSpaceError
from gtp_policy.rewards import LinearReward

N, OBS, ACT = 6, 3, 2
FIELDS = ("obs", "action", "reward", "next_obs", "terminated", "truncated")


def arrays(n: int = N, seed: int = 0, **changes: object) -> dict[str, Any]:
    """One valid episode of n transitions that ends by itself."""
    rng = np.random.default_rng(seed)
    fields = {
        "obs": rng.normal(size=(n, OBS)),
        "action": rng.uniform(-2, 2, size=(n, ACT)),
        "reward": rng.normal(size=n),
        "next_obs": rng.normal(size=(n, OBS)),
        "terminated": np.arange(n) == n - 1,
        "truncated": np.zeros(n, bool),
        "low": [-2.0] * ACT,
        "high": [2.0] * ACT,
    }
    return fields | changes


def build(**changes: object) -> OfflineDataset:
    return OfflineDataset.from_arrays(**arrays(**changes))


def test_every_number_arrives_in_its_field() -> None:
    fields = arrays()
    batch = OfflineDataset.from_arrays(**fields, gamma=0.5).transitions
    for name in ("obs", "reward", "next_obs"):
        np.testing.assert_array_equal(getattr(batch, name), fields[name].astype(np.float32))
    np.testing.assert_allclose(batch.action, fields["action"] / 2, rtol=1e-6)
    assert batch.discount.tolist() == [0.5] * (N - 1) + [0.0]
    batch.check(OBS, ACT)


# --- what is refused, and what the message says


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [slice(4, 5), slice(None)], ids=["one", "all"])
@pytest.mark.parametrize("mode", ["error", "clip"])
def test_a_number_that_is_not_finite_is_named(
    field: str, value: float, rows: slice, mode: str
) -> None:
    column = np.array(arrays()[field], dtype=np.float64)
    column[rows] = value
    with pytest.raises(DataError) as caught:
        build(**{field: column}, out_of_bounds=mode)
    message = str(caught.value)
    assert f"`{field}`" in message
    assert f"got {value} at row {4 if rows.start else 0}" in message
    assert "expected" in message


@pytest.mark.parametrize("field", ["obs", "reward", "next_obs", "action"])
def test_what_float32_cannot_hold_is_not_finite(field: str) -> None:
    column = np.array(arrays()[field])
    column[2] = 1e39
    with pytest.raises(
        DataError, match=rf"`{field}` is not finite in float32: got 1e\+39 at row 2"
    ):
        build(**{field: column})


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_another_length_is_named(field: str) -> None:
    short = np.asarray(arrays()[field])[:-1]
    with pytest.raises(
        DataError, match=r"wrong shape: got \(\d, ?\d?\), expected \(\d, ?\d?\)"
    ) as e:
        build(**{field: short})
    # When obs itself is short, the first field that disagrees with it is named.
    assert f"`{'action' if field == 'obs' else field}`" in str(e.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("reward", np.zeros((N, 1)), r"`reward` .* got \(6, 1\), expected \(6,\)\. Pass reward\["),
        ("terminated", np.zeros((N, 1)), r"got \(6, 1\), expected \(6,\)\. Pass terminated\["),
        ("obs", np.zeros(N), r"`obs` .* got \(6,\), expected \(N, O\)"),
        ("obs", np.zeros((N, 2, 2)), r"`obs` .* got \(6, 2, 2\), expected \(N, O\)"),
        ("obs", 3.0, r"`obs` .* got \(\), expected \(N, O\)"),
        ("action", np.zeros(N), r"`action` .* got \(6,\), expected \(6, 2\)"),
        ("action", np.zeros((N, 3)), r"`action` .* got \(6, 3\), expected \(6, 2\)"),
        ("next_obs", np.zeros((N, OBS + 1)), r"`next_obs` .* got \(6, 4\), expected \(6, 3\)"),
        ("obs", np.zeros((N, OBS), complex), r"`obs` .* got complex128, expected floating"),
        ("reward", np.zeros(N, bool), r"`reward` .* got bool, expected floating point or integer"),
        ("action", np.full((N, ACT), None), r"`action` .* got object, expected"),
        ("reward", ["1"] * N, r"`reward` .* got <U1, expected"),
        ("obs", [[0.0], [0.0, 1.0]], r"`obs` is not an array: got list"),
        ("truncated", ["no"] * N, r"`truncated` .* got <U2, expected bool or 0/1"),
        ("truncated", [0, 0, 2, 0, 0, 0], r"`truncated` is not a flag: got 2 at row 2"),
        ("terminated", [0, 0.5, 0, 0, 0, 1], r"`terminated` is not a flag: got 0.5 at row 1"),
    ],
)
def test_a_wrong_rank_dtype_or_flag_is_named(field: str, value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(**{field: value})


def test_an_action_outside_the_box_is_named_or_clipped() -> None:
    action = np.zeros((N, ACT))
    action[3, 1], action[5, 0] = 2.5, -9.0
    with pytest.raises(
        DataError,
        match=r"got 2.5 at row 3, dimension 1 \(2 such rows among 6\), expected -2.0 to 2.0",
    ):
        build(action=action)
    unit = build(action=action, out_of_bounds="clip").transitions.action
    assert unit[3].tolist() == [0.0, 1.0]
    assert unit[5].tolist() == [-1.0, 0.0]


def test_rounding_at_the_edge_of_the_box_is_not_outside() -> None:
    edge = np.full((N, ACT), np.float32(0.1))  # 0.1 in float32 is larger than 0.1
    unit = build(action=edge, low=[-0.1] * ACT, high=[0.1] * ACT).transitions.action
    assert unit.max() == 1.0


@pytest.mark.parametrize("bounds", [([-1.0, -np.inf], [1.0, 1.0]), ([1.0, 1.0], [1.0, 2.0])])
def test_an_unusable_box_is_refused(bounds: tuple[list[float], list[float]]) -> None:
    with pytest.raises(UnsupportedSpaceError, match="Action dimension"):
        build(low=bounds[0], high=bounds[1])


@pytest.mark.parametrize("gamma", [-0.1, 1.1, np.nan])
def test_gamma_is_a_discount(gamma: float) -> None:
    with pytest.raises(DataError, match="`gamma` is out of range"):
        build(gamma=gamma)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(DataError, match="`out_of_bounds` is unknown: got 'wrap'"):
        build(out_of_bounds="wrap")


@pytest.mark.parametrize("empty", [np.zeros((0, OBS)), []])
def test_no_transition_is_a_separate_error(empty: npt.ArrayLike) -> None:
    with pytest.raises(EmptyDatasetError, match="got 0 transitions from nowhere"):
        build(obs=empty, source="nowhere")


def test_nothing_left_is_an_error_with_a_hint() -> None:
    with pytest.raises(EmptyDatasetError, match=r"got 6 rows .* Pass `next_obs`"):
        build(next_obs=None, terminated=[0] * N, truncated=[1] * N)


# --- what is accepted


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "i1", "i8", "u1", "u8"])
@pytest.mark.parametrize("layout", ["C", "F", "strided", "reversed", "read-only"])
def test_any_number_type_and_layout_gives_the_same_dataset(dtype: str, layout: str) -> None:
    def convert(x: np.ndarray) -> np.ndarray:
        x = x.astype(dtype)
        if layout == "strided":
            x = np.repeat(x, 2, axis=0)[::2]
        elif layout == "reversed":
            x = np.ascontiguousarray(x[::-1])[::-1]
        else:
            x = np.array(x, order="F" if layout == "F" else "C")
        x.flags.writeable = layout != "read-only"
        return x

    plain = arrays(
        obs=np.arange(N * OBS).reshape(N, OBS) % 7,
        action=np.arange(N * ACT).reshape(N, ACT) % 3,
        reward=np.arange(N),
        next_obs=np.arange(N * OBS).reshape(N, OBS) % 5,
    )
    converted = plain | {name: convert(np.asarray(plain[name])) for name in FIELDS}
    before = {name: converted[name].copy() for name in FIELDS}
    expected, got = (OfflineDataset.from_arrays(**x).transitions for x in (plain, converted))
    for a, b in zip(expected.present(), got.present(), strict=True):
        assert torch.equal(a, b)
    for name in FIELDS:
        np.testing.assert_array_equal(converted[name], before[name])


def test_torch_tensors_are_arrays_too() -> None:
    tensors = {k: torch.as_tensor(np.asarray(v)) for k, v in arrays().items()}
    assert torch.equal(
        OfflineDataset.from_arrays(**tensors).transitions.obs, build().transitions.obs
    )
    with pytest.raises(DataError, match="`obs` is not an array: got Tensor"):
        build(obs=torch.zeros(N, OBS, requires_grad=True))


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("flag", ["terminated", "truncated"])
@pytest.mark.parametrize("constant", [False, True])
def test_the_smallest_datasets_can_be_sampled(
    n: int, flag: str, constant: bool, generator: torch.Generator
) -> None:
    """One-step episodes, one transition in all, everything constant: legal."""
    flags = {"terminated": [0] * n, "truncated": [0] * n} | {flag: [1] * n}
    fields = arrays(n, **flags)
    if constant:
        fields |= {k: np.zeros_like(fields[k]) for k in ("obs", "action", "reward", "next_obs")}
    dataset = OfflineDataset.from_arrays(**fields)
    batch = dataset.sample(200, generator=generator).check(OBS, ACT)
    assert all(x.isfinite().all() for x in batch.present())
    assert set(batch.discount.tolist()) == {0.0 if flag == "terminated" else np.float32(0.99)}
    assert np.isfinite(dataset.action_std())


@pytest.mark.parametrize(
    "index",
    [[0, 1], np.array([0]), torch.tensor([0.5]), torch.tensor(1), torch.ones(N, dtype=torch.bool)],
    ids=["list", "array", "reals", "number", "mask"],
)
def test_what_is_no_index_is_named(index: Any) -> None:
    with pytest.raises(DataError, match="`index`"):
        build().take(index)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integers_of_any_type_are_an_index(dtype: torch.dtype) -> None:
    rows = build().take(torch.tensor([2, 0], dtype=dtype))
    assert torch.equal(rows.obs, build().transitions.obs[[2, 0]])


def test_an_unfinished_last_row_counts_as_truncated() -> None:
    dataset = build(terminated=[0] * N)
    assert dataset.truncated.tolist() == [False] * (N - 1) + [True]
    assert dataset.transitions.discount.min() == np.float32(0.99)


def test_where_both_flags_are_set_termination_decides() -> None:
    dataset = build(truncated=np.arange(N) == N - 1)
    assert dataset.transitions.discount.tolist() == [np.float32(0.99)] * (N - 1) + [0.0]
    assert dataset.terminated[-1]
    assert dataset.truncated[-1]


@pytest.mark.parametrize("rows", [4, 6])
def test_without_next_obs_the_last_of_both_flags_is_kept(rows: int) -> None:
    """A terminated row needs no next observation, so truncation at the same row drops nothing."""
    both = np.arange(N) == rows - 1
    dataset = build(next_obs=None, terminated=both, truncated=both)
    assert len(dataset) == (N if rows == N else N - 1)


EPISODES = st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=8)


@given(episodes=EPISODES, chunk=st.integers(1, 7))
def test_shifted_rows_never_cross_an_episode(episodes: list[tuple[int, bool]], chunk: int) -> None:
    """Observation (e, k) is step k of episode e: what follows it must be (e, k + 1)."""
    obs = np.array([(e, k) for e, (n, _) in enumerate(episodes) for k in range(n)], float)
    ends = np.array([k == n - 1 for n, _ in episodes for k in range(n)])
    terminates = np.array([t for n, t in episodes for _ in range(n)])
    kept = [n if t else n - 1 for n, t in episodes]
    fields = {
        "obs": obs,
        "action": np.zeros((len(obs), 1)),
        "reward": obs[:, 1],
        "terminated": ends & terminates,
        "truncated": ends & ~terminates,
        "low": [-1.0],
        "high": [1.0],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gtp_policy.dataset_builder, "CHUNK_BYTES", 8 * 7 * chunk)
        if not sum(kept):
            with pytest.raises(EmptyDatasetError):
                OfflineDataset.from_arrays(**fields)
            return
        dataset = OfflineDataset.from_arrays(**fields)
    batch = dataset.transitions
    assert len(dataset) == sum(kept)
    going = torch.as_tensor(~dataset.terminated)
    assert torch.equal(batch.next_obs[going], batch.obs[going] + torch.tensor([0.0, 1.0]))
    assert torch.equal(batch.discount == 0, ~going)
    ended = dataset.terminated | dataset.truncated
    assert ended.sum() == sum(n > 0 for n in kept)
    assert batch.obs[torch.as_tensor(ended), 1].tolist() == [n - 1 for n in kept if n]


@given(
    episodes=st.lists(
        st.tuples(st.lists(st.integers(-3, 3), min_size=1, max_size=4), st.booleans()),
        min_size=1,
        max_size=9,
    ),
    percent=st.integers(1, 100),
)
def test_the_best_episodes_are_those_of_the_highest_returns(
    episodes: list[tuple[list[int], bool]], percent: int
) -> None:
    """The number of an episode is its observation, so what is left says which were kept."""
    numbers = [e for e, (rewards, _) in enumerate(episodes) for _ in rewards]
    ends = np.array([k == len(r) - 1 for r, _ in episodes for k in range(len(r))])
    terminates = np.array([t for r, t in episodes for _ in r])
    dataset = OfflineDataset.from_arrays(
        obs=np.array(numbers, float)[:, None],
        action=np.zeros((len(numbers), 1)),
        reward=[x for rewards, _ in episodes for x in rewards],
        next_obs=np.array(numbers, float)[:, None],
        terminated=ends & terminates,
        truncated=ends & ~terminates,
        low=[-1.0],
        high=[1.0],
    )
    best = dataset.with_best_episodes(percent / 100)
    kept = sorted(set(best.transitions.obs[:, 0].int().tolist()))
    assert len(kept) == -(-len(episodes) * percent // 100)
    lost = [e for e in range(len(episodes)) if e not in kept]
    lowest = min(sum(episodes[e][0]) for e in kept)
    assert all(sum(episodes[e][0]) <= lowest for e in lost)
    # Of equal ones the earlier are kept, each whole, in time order, with its flags.
    equal = [e for e in range(len(episodes)) if sum(episodes[e][0]) == lowest]
    assert [e in kept for e in equal] == sorted((e in kept for e in equal), reverse=True)
    rows = torch.tensor([number in kept for number in numbers])
    for ours, theirs in zip(best.transitions.present(), dataset.transitions.present(), strict=True):
        assert torch.equal(ours, theirs[rows])
    assert np.array_equal(best.terminated, dataset.terminated[rows.numpy()])
    assert np.array_equal(best.truncated, dataset.truncated[rows.numpy()])


@given(
    episodes=st.lists(
        st.tuples(st.lists(st.integers(-3, 3), min_size=1, max_size=4), st.booleans()),
        min_size=1,
        max_size=9,
    ),
    tilt=st.floats(0, 10),
    flagged=st.booleans(),
)
def test_episodes_come_as_often_as_their_returns_say(
    episodes: list[tuple[list[int], bool]], tilt: float, flagged: bool
) -> None:
    """The number of an episode is its observation, so what is left says how often each comes."""
    numbers = np.array([e for e, (rewards, _) in enumerate(episodes) for _ in rewards])
    ends = np.array([k == len(r) - 1 for r, _ in episodes for k in range(len(r))])
    ends[-1] = flagged
    terminates = np.array([t for r, t in episodes for _ in r])
    row = np.arange(float(len(numbers)))[:, None]
    dataset = OfflineDataset.from_arrays(
        obs=np.hstack([numbers[:, None], row]),
        action=np.zeros((len(numbers), 1)),
        reward=[x for rewards, _ in episodes for x in rewards],
        next_obs=np.hstack([numbers[:, None], row]),
        terminated=ends & terminates,
        truncated=ends & ~terminates,
        low=[-1.0],
        high=[1.0],
    )
    weighted = dataset.with_return_weighting(tilt)
    # What is promised, by hand: exp(tilt z), z over transitions, as many rows as before.
    returns, lengths = [sum(r) for r, _ in episodes], [len(r) for r, _ in episodes]
    mean = sum(r * n for r, n in zip(returns, lengths, strict=True)) / len(numbers)
    variance = sum(n * (r - mean) ** 2 for r, n in zip(returns, lengths, strict=True))
    spread = math.sqrt(variance / len(numbers))
    if spread == 0 or tilt == 0:
        assert weighted is dataset
        return
    expected = [math.exp(tilt * (r - mean) / spread) for r in returns]
    total = sum(w * n for w, n in zip(expected, lengths, strict=True))
    chosen, at = weighted.transitions.obs.T.int().tolist()
    last = np.flatnonzero(weighted.terminated | weighted.truncated)
    assert last[-1] == len(chosen) - 1
    counts, start = dict.fromkeys(range(len(episodes)), 0), 0
    for end in last:  # whole episodes in time order, whatever the flag of the last one was
        e = chosen[start]
        assert at[start : end + 1] == np.flatnonzero(numbers == e).tolist()
        counts[e] += 1
        assert weighted.terminated[end] == dataset.terminated[at[end]]
        start = end + 1
    assert chosen == sorted(chosen)
    for e, weight in enumerate(expected):
        assert abs(counts[e] - len(numbers) * weight / total) < 1 + 1e-9


@pytest.mark.parametrize("tilt", [-0.1, 10.5, float("nan"), True, "1"])
def test_a_tilt_is_a_number_in_its_range(tilt: Any) -> None:
    with pytest.raises(DataError, match=r"`tilt` is out of range: got .* expected 0 to 10"):
        build().with_return_weighting(tilt)


@given(
    episodes=st.lists(
        st.tuples(st.lists(st.integers(-3, 3), min_size=1, max_size=6), st.booleans()),
        min_size=1,
        max_size=6,
    ),
    n=st.integers(1, 8) | st.just(10**12),
    gamma=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_n_step_transitions_by_brute_force(
    episodes: list[tuple[list[int], bool]], n: int, gamma: float
) -> None:
    """Step by step through each episode; an observation is its place, so none is confused."""
    places = [(e, k) for e, (rewards, _) in enumerate(episodes) for k in range(len(rewards))]
    ends = np.array([k == len(episodes[e][0]) - 1 for e, k in places])
    terminates = np.array([episodes[e][1] for e, _ in places])
    dataset = OfflineDataset.from_arrays(
        obs=np.array(places, float),
        action=np.zeros((len(places), 1)),
        reward=[episodes[e][0][k] for e, k in places],
        next_obs=np.array([(e, k + 1) for e, k in places], float),
        terminated=ends & terminates,
        truncated=ends & ~terminates,
        low=[-1.0],
        high=[1.0],
        gamma=gamma,
    )
    several = dataset.with_n_step(n)
    batch = several.transitions
    for i, (e, start) in enumerate(places):
        rewards, terminated = episodes[e]
        total, factor, k = 0.0, 1.0, start
        while k < len(rewards) and k < start + n:
            total += factor * rewards[k]
            factor *= gamma
            k += 1
        if k == len(rewards) and terminated:
            factor = 0.0
        assert float(batch.reward[i]) == pytest.approx(total, rel=1e-6)
        assert float(batch.discount[i]) == pytest.approx(factor, rel=1e-6)
        # Of the same episode, also at its end: what a cut episode goes on with is in no other.
        assert batch.next_obs[i].tolist() == [e, k]
    for name in ("obs", "action"):
        assert torch.equal(getattr(batch, name), getattr(dataset.transitions, name))
    assert several.gamma == gamma
    assert (several.terminated == dataset.terminated).all()
    assert n > 1 or torch.equal(several._table, dataset._table)


@given(
    episodes=st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=6),
    n=st.integers(1, 4),
)
def test_next_actions_are_those_of_the_data(episodes: list[tuple[int, bool]], n: int) -> None:
    """The number of a row is its action: of each row that is left, the next of its episode."""
    places = [(e, k) for e, (length, _) in enumerate(episodes) for k in range(length)]
    number = {place: i / 100 for i, place in enumerate(places)}
    ends = np.array([k == episodes[e][0] - 1 for e, k in places])
    terminates = np.array([episodes[e][1] for e, _ in places])
    dataset = OfflineDataset.from_arrays(
        obs=np.array(places, float),
        action=np.array([[number[place]] for place in places]),
        reward=np.ones(len(places)),
        next_obs=np.array([(e, k + 1) for e, k in places], float),
        terminated=ends & terminates,
        truncated=ends & ~terminates,
        low=[-1.0],
        high=[1.0],
        gamma=0.5,
    )
    kept = [(e, k) for e, k in places if episodes[e][1] or k < episodes[e][0] - 1]
    if not kept:
        with pytest.raises(EmptyDatasetError, match="No transition has a next action"):
            dataset.with_next_actions()
        return
    one = dataset.with_next_actions()
    assert one.with_next_actions() is one
    assert one.transitions.obs.tolist() == [list(place) for place in kept]
    last = [k == max(j for i, j in kept if i == e) for e, k in kept]
    assert (one.terminated | one.truncated).tolist() == last
    assert one.terminated.tolist() == [
        end and episodes[e][1] for end, (e, _) in zip(last, kept, strict=True)
    ]
    several = one.with_n_step(n).transitions
    assert several.next_action is not None
    for i, (e, k) in enumerate(kept):
        steps = 1
        while steps < n and (e, k + steps) in kept:
            steps += 1
        assert several.next_obs[i].tolist() == [e, k + steps]
        if several.discount[i] > 0:
            expected = pytest.approx(number[e, k + steps], abs=1e-6)
            assert float(several.next_action[i]) == expected
        else:
            assert episodes[e][1]
    for batch in (one.sample(5, generator=torch.Generator()), several):
        batch.check(2, 1, like=torch.zeros(1))
    with pytest.raises(DataError, match="needs rewards of single steps"):
        dataset.with_n_step(2).with_next_actions()


def test_rewards_of_several_steps_are_not_taken_for_those_of_one() -> None:
    several = build().with_n_step(2)
    assert several.n_step == 2
    assert several.to("cpu").n_step == 2
    assert "n_step=2" in repr(several)
    for wrong in (
        lambda: several.with_n_step(2),
        lambda: several.with_rewards(LinearReward()),
        lambda: several.with_best_episodes(0.5),
        lambda: several.with_return_weighting(1.0),
    ):
        with pytest.raises(DataError, match="needs rewards of single steps: got n_step=2"):
            wrong()


def test_a_column_of_rewards_is_taken_as_it_is() -> None:
    """Of any number type, on data with rewards and without; the original keeps its own."""
    dataset = build()
    before, given = dataset.rewards.clone(), torch.arange(len(dataset))
    changed = dataset.with_reward_column(given)
    assert torch.equal(changed.rewards, given.float())
    assert torch.equal(changed.transitions.reward, given.float())
    assert torch.equal(dataset.rewards, before)
    for name in ("obs", "action", "next_obs", "discount"):
        assert torch.equal(getattr(changed.transitions, name), getattr(dataset.transitions, name))
    without = build(reward=None)
    assert not without.has_rewards
    assert without.with_reward_column(given).has_rewards


def bad_rewards(rows: int) -> dict[str, tuple[Any, str]]:
    ones = torch.ones(rows)
    return {
        "a list": ([1.0] * rows, "of the wrong kind: got list, expected Tensor"),
        "too few": (ones[1:], rf"got shape \({rows - 1},\) of torch.float32, expected \({rows},\)"),
        "a column": (ones[:, None], rf"got shape \({rows}, 1\)"),
        "complex": (ones + 1j, "of torch.complex64"),
        "NaN": (ones.index_fill(0, torch.tensor(1), float("nan")), "got nan at row 1"),
        "too large": (
            1e39 * ones.double(),
            r"got 1e\+39 at row 0, expected .* torch.float32 holds",
        ),
    }


@pytest.mark.parametrize("name", bad_rewards(2))
def test_a_bad_column_of_rewards_is_named(name: str) -> None:
    dataset = build()
    rewards, message = bad_rewards(len(dataset))[name]
    with pytest.raises(DataError, match=f"`rewards` (is|are|do) .*{message}"):
        dataset.with_reward_column(rewards)


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2"])
def test_n_is_a_number_of_steps(n: Any) -> None:
    with pytest.raises(DataError, match=r"`n` is out of range: got .* expected an integer >= 1"):
        build().with_n_step(n)


def test_a_table_whose_last_row_has_no_flag_ends_there() -> None:
    whole = build()
    bare = OfflineDataset(
        whole._table,
        layout=whole.layout,
        terminated=np.zeros(len(whole), bool),
        truncated=np.zeros(len(whole), bool),
        action_scaler=whole.action_scaler,
        gamma=whole.gamma,
        source="bare",
    )
    last = bare.with_n_step(4).transitions
    assert torch.equal(last.next_obs[-1], whole.transitions.next_obs[-1])
    assert torch.equal(last.reward[-1], whole.transitions.reward[-1])


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan"), True, "all"])
def test_a_share_of_episodes_is_a_share(share: Any) -> None:
    with pytest.raises(DataError, match=r"`share` is out of range: got .* expected 0 < share <= 1"):
        build().with_best_episodes(share)


def logs(lengths: Sequence[int], flagged: bool = True) -> OfflineDataset:
    """Episodes of these lengths, whose number is their observation."""
    number = np.repeat(np.arange(len(lengths)), lengths)
    last = np.zeros(len(number), bool)
    last[np.cumsum(lengths) - 1] = True
    last[-1] &= flagged
    terminated = last & (number % 2 == 0)
    return OfflineDataset.from_arrays(
        obs=number[:, None].astype(float),
        action=np.linspace(-1, 1, len(number))[:, None],
        reward=np.arange(len(number)),
        terminated=terminated,
        truncated=last & ~terminated,
        next_obs=number[:, None].astype(float),
        low=[-1.0],
        high=[1.0],
    )


@given(
    lengths=st.lists(st.integers(1, 5), min_size=2, max_size=30),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
)
def test_whole_episodes_are_kept_back(lengths: list[int], share: float, seed: int) -> None:
    """Each episode is in one of the two, whole, in time order, with its flags."""
    dataset = logs(lengths)
    parts = dataset.split_episodes(share, seed=seed)
    numbers = [part.transitions.obs[:, 0].long().tolist() for part in parts]
    assert set(numbers[0]).isdisjoint(numbers[1])
    assert sorted(numbers[0] + numbers[1]) == np.repeat(range(len(lengths)), lengths).tolist()
    assert abs(len(set(numbers[0])) - share * len(lengths)) <= 1
    for part, number in zip(parts, numbers, strict=True):
        assert number
        assert number == sorted(number)
        rows = np.flatnonzero(np.isin(dataset.transitions.obs[:, 0].numpy(), number))
        for ours, theirs in zip(
            part.transitions.present(), dataset.transitions.present(), strict=True
        ):
            assert torch.equal(ours, theirs[torch.from_numpy(rows)])
        assert np.array_equal(part.terminated, dataset.terminated[rows])
        assert np.array_equal(part.truncated, dataset.truncated[rows])
    again = dataset.split_episodes(share, seed=seed)
    assert all(torch.equal(a.table, b.table) for a, b in zip(parts, again, strict=True))


def test_which_episodes_are_kept_back_is_drawn() -> None:
    """Over seeds, each of ten episodes is kept back about as often as the others."""
    dataset = logs([1] * 10)
    count = np.zeros(10)
    for seed in range(400):
        kept_back = dataset.split_episodes(0.8, seed=seed)[1].transitions.obs[:, 0]
        count[kept_back.long().numpy()] += 1
    assert count.sum() == 800
    assert np.abs(count - 80).max() < 4 * np.sqrt(400 * 0.2 * 0.8)


def test_a_log_that_was_not_closed_stays_the_last() -> None:
    dataset = logs([2, 3, 2], flagged=False)
    for seed in range(9):
        for part in dataset.split_episodes(0.5, seed=seed):
            open_ends = np.flatnonzero(~(part.terminated | part.truncated))
            last = part.transitions.obs[:, 0]
            assert part.terminated[-1] or part.truncated[-1] or last[-1] == 2
            assert all(last[i] == last[i + 1] for i in open_ends if i + 1 < len(part))


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.01, float("nan"), True, "all", None])
def test_a_share_to_train_on_leaves_something(share: Any) -> None:
    with pytest.raises(DataError, match=r"`share` is out of range: got .* expected 0 < share < 1"):
        logs([1, 1]).split_episodes(share)


@pytest.mark.parametrize("seed", [-1, 0.5, "a", True, None])
def test_a_seed_of_a_split_is_a_number(seed: Any) -> None:
    with pytest.raises(DataError, match="`seed` is out of range"):
        logs([1, 1]).split_episodes(0.5, seed=seed)


def test_one_episode_cannot_be_split() -> None:
    with pytest.raises(DataError, match="Nothing can be kept back: got 1 episode"):
        logs([5]).split_episodes(0.5)


# --- what the flags mean


@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [
        # The cycle 0 -> 1 -> 2 -> 0 with rewards 1, 2, 3 and gamma 1/2. Cut by a time limit, it
        # goes on: V0 = (1 + 2/2 + 3/4) / (1 - 1/8), and so on around.
        (False, True, [22 / 7, 30 / 7, 32 / 7]),
        # Ended by itself after state 2: V2 = 3, V1 = 2 + 3/2, V0 = 1 + 2/2 + 3/4.
        (True, False, [11 / 4, 7 / 2, 3.0]),
        (True, True, [11 / 4, 7 / 2, 3.0]),
    ],
)
def test_only_termination_stops_bootstrapping(
    terminated: bool, truncated: bool, expected: list[float]
) -> None:
    """Value iteration on the dataset's own discounts meets the closed form of a 3-state chain."""
    batch = OfflineDataset.from_arrays(
        obs=np.eye(3),
        action=np.zeros((3, 1)),
        reward=[1, 2, 3],
        next_obs=np.roll(np.eye(3), -1, axis=0),
        terminated=[False, False, terminated],
        truncated=[False, False, truncated],
        low=[-1.0],
        high=[1.0],
        gamma=0.5,
    ).transitions
    value = torch.zeros(3)
    for _ in range(60):
        value = batch.reward + batch.discount * (batch.next_obs @ value)
    np.testing.assert_allclose(value, expected, atol=1e-6)


# --- sampling, statistics, moving


def test_sampling_is_uniform_with_replacement(generator: torch.Generator) -> None:
    n, draws = 50, 100_000
    rows = build(n=n, reward=np.arange(n)).sample(draws, generator=generator).reward
    counts = torch.bincount(rows.long(), minlength=n)
    # Six standard deviations of a binomial: one false alarm in 10 million such tests.
    assert (counts - draws / n).abs().max() < 6 * (draws / n) ** 0.5
    assert counts.min() > 0


def test_sampling_repeats_with_the_generator_and_keeps_rows_together() -> None:
    dataset = build(n=100)
    a, b = (dataset.sample(64, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a.present(), b.present(), strict=True))
    whole = torch.cat([x.reshape(100, -1) for x in dataset.transitions.present()], 1).tolist()
    assert all(
        row in whole for row in torch.cat([x.reshape(64, -1) for x in a.present()], 1).tolist()
    )


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_has_at_least_one_row(size: int, generator: torch.Generator) -> None:
    with pytest.raises(DataError, match=f"`batch_size` is out of range: got {size}"):
        build().sample(size, generator=generator)


def test_statistics_are_those_of_the_population() -> None:
    fields = arrays(1000, obs=np.random.default_rng(1).normal(1e3, [1, 2, 3], size=(1000, OBS)))
    dataset = OfflineDataset.from_arrays(**fields)
    mean, std = dataset.observation_statistics()
    np.testing.assert_allclose(mean, fields["obs"].mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, fields["obs"].std(0), rtol=1e-3)
    expected = np.sqrt((fields["action"] / 2).var(0).mean())
    assert dataset.action_std() == pytest.approx(expected, rel=1e-5)


def test_moving_keeps_the_description() -> None:
    dataset = build(source="here")
    there = dataset.to("meta")
    assert there.device.type == "meta"
    assert (there.source, there.gamma, len(there)) == ("here", 0.99, N)
    assert dataset.device.type == "cpu"
    assert dataset.nbytes == N * (4 * (2 * OBS + ACT + 2) + 2)
    assert "'here', 6 transitions" in repr(dataset)


# --- the builder


def builder(size: int = 4) -> OfflineDatasetBuilder:
    return OfflineDatasetBuilder(
        size, obs_dim=OBS, action_scaler=ActionScaler([-2] * ACT, [2] * ACT)
    )


def piece(n: int = 2, **changes: object) -> dict[str, Any]:
    fields = arrays(n, **changes)
    return {k: v for k, v in fields.items() if k in FIELDS}


def test_a_bad_piece_leaves_nothing_behind() -> None:
    filling = builder()
    filling.append(**piece(seed=1))
    with pytest.raises(DataError, match="`reward` is not finite in float32: got nan at row 3"):
        filling.append(**piece(reward=[0.0, np.nan]))
    filling.append(**piece(seed=2))
    expected = [torch.from_numpy(arrays(2, seed)["obs"]).float() for seed in (1, 2)]
    assert torch.equal(OfflineDataset.from_builder(filling).transitions.obs, torch.cat(expected))


def test_rows_may_have_names_of_their_own() -> None:
    with pytest.raises(DataError, match="at row 41"):
        builder().append(**piece(reward=[0.0, np.nan]), rows=np.array([40, 41]))


def test_more_than_announced_is_refused() -> None:
    with pytest.raises(DataError, match="got 5, expected at most 4"):
        builder().append(**piece(5))


def test_building_needs_less_than_twice_the_memory_of_the_result() -> None:
    fields = arrays(500_000, terminated=np.arange(500_000) % 1000 == 999, next_obs=None)
    tracemalloc.start()
    try:
        dataset = OfflineDataset.from_arrays(**fields)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(dataset) == 500_000
    assert dataset.nbytes < peak < 2 * dataset.nbytes


def test_sampling_without_a_generator_is_refused() -> None:
    dataset = OfflineDataset.from_arrays(
        obs=[[0.0]],
        action=[[0.0]],
        reward=[0.0],
        next_obs=[[0.0]],
        terminated=[1],
        truncated=[0],
        low=[-1.0],
        high=[1.0],
    )
    none: Any = None  # torch would take its global generator
    with pytest.raises(TypeError, match="`generator` has the wrong type: got NoneType"):
        dataset.sample(1, generator=none)


def with_rewards(reward: Any) -> OfflineDataset:
    n = len(reward)
    return OfflineDataset.from_arrays(
        obs=np.zeros((n, 1)),
        action=np.zeros((n, 1)),
        reward=reward,
        next_obs=np.zeros((n, 1)),
        terminated=np.zeros(n, bool),
        truncated=np.arange(n) == n - 1,
        low=[-1.0],
        high=[1.0],
    )


def test_rewards_that_float32_leaves_little_of_are_told() -> None:
    with pytest.warns(UserWarning, match=r"Rewards, from 100000000 to 100000009, lose much"):
        with_rewards(1e8 + np.arange(10))


@pytest.mark.parametrize(
    "reward",
    [
        np.arange(10) / 3,
        np.full(10, 1e8),
        1e8 + np.zeros(10) + 1e-9,
        1e8 * np.arange(10),
        [0.1] * 9,
    ],
)
def test_other_rewards_are_not(reward: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_rewards(reward)
