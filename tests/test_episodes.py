"""Episodes of any shape and kind to OfflineDataset: the same transitions as flat arrays give."""

import contextlib
import copy
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gtp_policy import ActionScaler, ObservationLayout, OfflineDataset
from gtp_policy.errors import DataError, EmptyDatasetError, UnsupportedSpaceError
from gtp_policy.shards import ShardWriter, builders_write_to

BOX: dict[str, Any] = {"low": [-1.0, -1.0], "high": [1.0, 1.0]}


def make_episode(steps: int = 4, seed: int = 0, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    fields = {
        "obs": rng.normal(size=(steps + 1, 3)),
        "action": rng.uniform(-1, 1, size=(steps, 2)),
        "reward": rng.normal(size=steps),
        "terminated": bool(seed % 2),
    }
    return {name: value for name, value in (fields | changes).items() if value is not None}


def assert_equal(first: OfflineDataset, second: OfflineDataset) -> None:
    """Compares every number and flag bit for bit, missing rewards included."""
    for a, b in zip(first.transitions.present(), second.transitions.present(), strict=True):
        np.testing.assert_array_equal(a.numpy().view(np.int32), b.numpy().view(np.int32))
    np.testing.assert_array_equal(first.terminated, second.terminated)
    np.testing.assert_array_equal(first.truncated, second.truncated)
    np.testing.assert_array_equal(first.ends, second.ends)
    assert first.has_rewards == second.has_rewards
    assert first.action_scaler == second.action_scaler


lengths = st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=5)


@given(lengths, st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_episodes_are_what_flat_arrays_are(
    kinds: list[tuple[int, bool]], final: bool, rewarded: bool, seed: int
) -> None:
    """With the observation after the last action, and without it."""
    rng = np.random.default_rng(seed)
    episodes, flat = [], []
    for steps, ends in kinds:
        obs, action = rng.normal(size=(steps + 1, 3)), rng.uniform(-1, 1, (steps, 2))
        rows = {"action": action, "terminated": np.arange(steps) == steps - 1 if ends else None}
        rows |= {"reward": rng.normal(size=steps)} if rewarded else {}
        episodes.append({"obs": obs if final else obs[:-1], **rows})
        last = np.arange(steps) == steps - 1
        flags = {"terminated": last & ends, "truncated": last & (not ends)}
        flat.append(rows | flags | {"obs": obs[:-1], "next_obs": obs[1:]})
    names = flat[0].keys() if final else flat[0].keys() - {"next_obs"}
    joined = {name: np.concatenate([rows[name] for rows in flat]) for name in names}
    try:
        expected = OfflineDataset.from_arrays(**joined, **BOX)
    except EmptyDatasetError:
        with pytest.raises(EmptyDatasetError):
            OfflineDataset.from_episodes(episodes, **BOX)
        return
    got = OfflineDataset.from_episodes(iter(episodes), **BOX)
    assert_equal(got, expected)


def as_lists(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def as_objects(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    rows = np.empty(len(value), object)
    for i, row in enumerate(value):
        rows[i] = row
    return rows


def as_tensors(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def as_rows_of_tensors(value: Any) -> Any:
    return [torch.as_tensor(row) for row in value] if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("kind", [as_lists, as_objects, as_tensors, as_rows_of_tensors])
def test_every_kind_of_rows_gives_the_same_bits(kind: Any) -> None:
    episodes = [make_episode(seed=s) for s in range(3)]
    changed = [{name: kind(value) for name, value in e.items()} for e in episodes]
    assert_equal(
        OfflineDataset.from_episodes(changed, **BOX), OfflineDataset.from_episodes(episodes, **BOX)
    )


class Shown:
    """What makes an array of itself, as columns of pandas do: the memory stays its own."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.array


def refilled(kind: Any, by_key: bool) -> Iterator[dict[str, Any]]:
    """Yields episodes in the same arrays, which are filled for each of them."""
    buffers = make_episode(terminated=np.zeros(4), next_obs=np.zeros((4, 3)), obs=np.zeros((4, 3)))
    for seed in range(4):
        new = make_episode(seed=seed, obs=None, terminated=np.arange(4) == 3 * (seed % 2))
        rows = np.random.default_rng(seed).normal(size=(5, 3))
        for name, values in (new | {"obs": rows[:-1], "next_obs": rows[1:]}).items():
            buffers[name][:] = values
        shown = {name: kind(buffer) for name, buffer in buffers.items()}
        parts = ("obs", "next_obs") if by_key else ()
        yield shown | {part: {"joints": shown[part]} for part in parts}


@pytest.mark.parametrize("kind", [as_tensors, lambda array: array, Shown, as_lists])
@pytest.mark.parametrize("by_key", [False, True])
@pytest.mark.parametrize("box", [BOX, {"unbounded": "data"}])
@pytest.mark.filterwarnings("ignore:Action dimensions")
def test_a_generator_may_fill_the_same_arrays_for_each_episode(
    kind: Any, by_key: bool, box: dict[str, Any], tmp_path: Path
) -> None:
    """Every episode would be the last one."""
    apart = [copy.deepcopy(episode) for episode in refilled(np.copy, by_key)]
    expected = OfflineDataset.from_episodes(apart, **box)
    assert len(np.unique(expected.transitions.obs.numpy(), axis=0)) == 16
    assert_equal(OfflineDataset.from_episodes(refilled(kind, by_key), **box), expected)
    with ShardWriter(tmp_path) as writer, builders_write_to(writer):
        in_files = OfflineDataset.from_episodes(refilled(kind, by_key), **box)
    assert torch.equal(in_files.rows(0, 16).obs, expected.transitions.obs)
    assert torch.equal(in_files.rows(0, 16).action, expected.transitions.action)


def test_episodes_that_are_there_already_are_not_copied() -> None:
    """What a list holds is not filled again, and may be half of the memory."""
    episodes = [
        make_episode(obs=np.zeros((1001, 300)), action=np.zeros((1000, 2)), reward=None)
    ] * 9
    tracemalloc.start()
    dataset = OfflineDataset.from_episodes(episodes, **BOX)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * 4 * len(dataset) * (300 + 300 + 2 + 2)


def test_the_long_names_are_known_and_the_rest_is_not_looked_at() -> None:
    short = make_episode(seed=1)
    long = {
        "observations": short["obs"],
        "actions": short["action"],
        "rewards": short["reward"],
        "terminations": np.arange(4) == 3,
        "truncations": np.zeros(4),
        "infos": ["what", {"ever": 1}, None, 4],
    }
    assert_equal(
        OfflineDataset.from_episodes([long], **BOX), OfflineDataset.from_episodes([short], **BOX)
    )


def test_observations_by_key_are_joined_in_one_order() -> None:
    rng = np.random.default_rng(0)
    parts = {"speed": rng.normal(size=(5, 1)), "joints": rng.normal(size=(5, 2))}
    by_key = make_episode(obs=parts)
    row_by_row = make_episode(obs=[{k: v[i] for k, v in parts.items()} for i in range(5)])
    joined = make_episode(obs=np.concatenate([parts["joints"], parts["speed"]], 1))
    first, second, plain = (
        OfflineDataset.from_episodes([e], **BOX) for e in (by_key, row_by_row, joined)
    )
    assert_equal(first, plain)
    assert_equal(second, plain)
    assert first.layout == ObservationLayout({"joints": (2,), "speed": (1,)})
    chosen = OfflineDataset.from_episodes([by_key], obs_keys=["speed"], **BOX)
    assert chosen.obs_keys == ("speed",)
    np.testing.assert_array_equal(chosen.transitions.obs, parts["speed"][:4].astype(np.float32))


def test_an_end_that_is_not_said_is_a_cut() -> None:
    dataset = OfflineDataset.from_episodes([make_episode(terminated=None)], gamma=0.5, **BOX)
    assert dataset.truncated.tolist() == [False, False, False, True]
    assert not dataset.terminated.any()
    assert (dataset.transitions.discount == 0.5).all()


def test_a_goal_that_is_reached_before_the_log_ends_terminates_there() -> None:
    rows = make_episode(terminated=[0, 1, 0, 0])
    dataset = OfflineDataset.from_episodes([rows], gamma=0.5, **BOX)
    assert dataset.transitions.discount.tolist() == [0.5, 0.0, 0.5, 0.5]
    assert dataset.truncated.tolist() == [False, False, False, True]
    assert dataset.ends.tolist() == [False, False, False, True]


@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=2, max_size=4),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_an_episode_goes_on_behind_a_termination_where_its_log_does(
    goals: list[list[bool]], final: bool, seed: int
) -> None:
    """Everything that goes by episodes, against the episodes one by one, and as flat arrays."""
    rng = np.random.default_rng(seed)
    episodes = [
        {
            "obs": np.stack([np.full(len(g) + final, i), np.arange(len(g) + final)], 1) * 1.0,
            "action": rng.uniform(-1, 1, (len(g), 2)),
            "reward": rng.normal(size=len(g)),
            "terminated": g,
        }
        for i, g in enumerate(goals)
    ]
    # Without an observation behind it, the last row of a log that was cut is left out.
    kept = [len(g) if final or g[-1] else len(g) - 1 for g in goals]
    left = [i for i, length in enumerate(kept) if length]
    if not left:
        return
    dataset = OfflineDataset.from_episodes(episodes, **BOX)
    number = dataset.transitions.obs[:, 0].int().numpy()
    stops = np.cumsum([kept[i] for i in left])
    assert np.flatnonzero(dataset.ends).tolist() == (stops - 1).tolist()
    names = ("obs", "action", "reward", "terminated")
    flat: dict[str, Any] = {
        name: np.concatenate([np.asarray(e[name])[: len(e["action"])] for e in episodes])
        for name in names
    }
    if final:
        flat["next_obs"] = np.concatenate([e["obs"][1:] for e in episodes])
    ends = np.concatenate([np.arange(len(g)) == len(g) - 1 for g in goals])
    assert_equal(
        OfflineDataset.from_arrays(**flat, truncated=np.zeros(len(ends)), ends=ends, **BOX), dataset
    )
    step = dataset.transitions.obs[:, 1]
    history = dataset.with_history(3).transitions.obs.view(-1, 3, 2)
    assert torch.equal(history[:, :, 0], dataset.transitions.obs[:, :1].expand(-1, 3))
    back = torch.stack([step - 2, step - 1, step], 1).clip(min=0)
    assert torch.equal(history[:, :, 1], back)
    returns = [float(np.sum(episodes[i]["reward"][: kept[i]])) for i in left]
    best = dataset.with_best_episodes(1e-9)
    assert set(best.transitions.obs[:, 0].tolist()) == {float(left[int(np.argmax(returns))])}
    assert len(best) == kept[left[int(np.argmax(returns))]]
    weighted = dataset.with_return_weighting(1.0)
    for part in (weighted, weighted.with_next_actions() if (~weighted.ends).any() else weighted):
        for run in np.split(part.transitions.obs.numpy(), np.flatnonzero(part.ends)[:-1] + 1):
            assert len(set(run[:, 0])) == 1
            assert run[:, 1].tolist() == list(range(len(run)))
    if len(left) > 1:
        first, second = dataset.split_episodes(0.5)
        seen = [set(part.transitions.obs[:, 0].tolist()) for part in (first, second)]
        assert not seen[0] & seen[1]
    # What is earned ends where something terminates.
    three = dataset.with_n_step(3).transitions
    for row in range(len(dataset)):
        stop = row
        while stop < row + 2 and not (dataset.terminated[stop] or dataset.ends[stop]):
            stop += 1
        assert number[stop] == number[row]
        assert torch.equal(three.next_obs[row], dataset.transitions.next_obs[stop])


@pytest.mark.parametrize("shape", [(2, 3), (), (1,)], ids=str)
def test_actions_of_any_shape_are_vectors_inside(shape: tuple[int, ...]) -> None:
    action = np.random.default_rng(0).uniform(-2, 2, (4, *shape))
    box = {"low": np.full(shape, -2.0), "high": np.full(shape, 2.0)}
    one = OfflineDataset.from_episodes([make_episode(action=action)], **box)
    rows = make_episode()
    flags = {"terminated": np.zeros(4), "truncated": np.arange(4) == 3}
    flat = OfflineDataset.from_arrays(
        obs=rows["obs"][:-1],
        next_obs=rows["obs"][1:],
        action=action,
        reward=rows["reward"],
        **flags,
        **box,
    )
    assert_equal(one, flat)
    np.testing.assert_array_equal(
        one.transitions.action, (action.reshape(4, -1) / 2).astype(np.float32)
    )


# --- bounds from the data


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, np.ones((3, 2))), (np.zeros((2, 3)), np.ones((3, 2))), (np.zeros((3, 2)), 1.0)],
)
def test_bounds_of_another_shape_are_not_guessed_at(low: Any, high: Any) -> None:
    episode = make_episode(action=np.full((4, 2, 3), 0.5))
    with pytest.raises(UnsupportedSpaceError, match=r"wrong shape: got \((3, 2|2, 3)\), expected"):
        OfflineDataset.from_episodes([episode], low=low, high=high)
    for action in (episode["action"], np.full((4, 6), 0.5)):
        if np.ndim(low) != np.ndim(high) and action.ndim == 2:
            continue  # a vector has the order of either
        with pytest.raises(UnsupportedSpaceError, match=r"wrong shape: got \((3, 2|2, 3)\)"):
            OfflineDataset.from_arrays(
                obs=np.zeros((4, 1)),
                action=action,
                terminated=[1] * 4,
                truncated=[0] * 4,
                low=low,
                high=high,
            )


def test_bounds_that_are_not_known_come_from_the_data_where_that_is_chosen() -> None:
    action = np.array([[-3.0, 0.5], [0.0, 0.5], [5.0, 0.5], [1.0, 0.5]])
    with pytest.raises(UnsupportedSpaceError, match=r"got low=-inf.*unbounded='data'"):
        OfflineDataset.from_episodes([make_episode(action=action)])
    with pytest.warns(UserWarning, match=r"Action dimensions \[0, 1\] have no bounds"):
        dataset = OfflineDataset.from_episodes([make_episode(action=action)], unbounded="data")
    assert dataset.action_scaler == ActionScaler([-3.0, -0.5], [5.0, 1.5])
    with pytest.warns(UserWarning, match=r"Action dimensions \[0\] have no bounds"):
        dataset = OfflineDataset.from_episodes(
            [make_episode(action=action)], low=[-np.inf, 0.0], high=[9.0, 1.0], unbounded="data"
        )
    assert dataset.action_scaler == ActionScaler([-3.0, 0.0], [9.0, 1.0])


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=6),
    st.sampled_from([-np.inf, -2e6]),
    st.sampled_from([np.inf, 2e6, float(np.finfo(np.float32).max)]),
)
def test_limits_from_the_data_hold_all_of_it(values: list[float], low: float, high: float) -> None:
    action = np.array(values)[:, None]
    known = (low, high) == (-2e6, 2e6)
    with contextlib.nullcontext() if known else pytest.warns(UserWarning, match="have no bounds"):
        scaler = ActionScaler.of_data(action, [low], [high])
    assert scaler.low[0] <= min(values)
    assert scaler.high[0] >= max(values)
    assert np.isfinite([scaler.low, scaler.high]).all()
    if np.isfinite(low):
        assert scaler.low[0] == low


# --- what is wrong


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs": None}, "`obs` is missing: got .*Rename the field"),
        ({"action": None}, "`action` is missing"),
        ({"actions": np.zeros((4, 2))}, r"`action` is given twice: got \['action', 'actions'\]"),
        ({"obs": np.zeros((7, 3))}, r"`obs` has the wrong length: got 7 rows, expected 4 or 5"),
        ({"obs": {"a": np.zeros((5, 1)), "b": np.zeros((2, 1))}}, r"`obs\['b'\]` has the wrong le"),
        ({"obs": {"a": {"b": np.zeros((5, 1))}}}, r"`obs\['a'\]` has parts of its own.*'a/b'"),
        ({"obs": [{"a": 0.0}] * 4 + [{"b": 0.0}]}, "`obs` changes its parts: got .* at row 4"),
        ({"obs": [[0.0], [1.0, 2.0]]}, "`obs` is not an array"),
        ({"obs": np.full((5, 3), "left")}, "`obs` has the wrong dtype: got <U4"),
        ({"next_obs": np.zeros((3, 3)), "obs": np.zeros((4, 3))}, "`next_obs` has the wrong le"),
        ({"next_obs": np.zeros((4, 3))}, "`obs` has the wrong length: got 5 rows, expected 4 with"),
        ({"action": np.zeros((0, 2))}, "`action` is empty"),
        ({"action": np.full((4, 2), np.nan)}, "`action` is not finite.* at row 0, dimension 0"),
        ({"action": np.full((4, 2), 1.5)}, "`action` lies outside the Box: got 1.5 at row 0"),
        ({"action": np.zeros((4, 3))}, r"`action` has the wrong shape: got rows of \(3,\)"),
        ({"reward": np.zeros(3)}, r"`reward` has the wrong shape: got \(3,\), expected \(4,\)"),
        ({"reward": [0.0, np.inf, 0.0, 0.0]}, "`reward` is not finite.* at row 1"),
        ({"terminated": [0, 0, 2, 0]}, "`terminated` is not a flag: got 2 at row 2"),
        ({"terminated": np.zeros(3)}, "`terminated` has the wrong shape"),
        ({"truncated": [0, 1, 0, 0]}, "`truncated` is set before the end: got True at row 1 of 4"),
        ({"terminated": None, "dones": [0, 0, 0, 1]}, "`done` mixes two things"),
    ],
)
def test_a_wrong_episode_is_named_with_its_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"Episode 1: .*{message}"):
        OfflineDataset.from_episodes([make_episode(), make_episode(**changes)], **BOX)


HIDDEN = np.ma.masked_equal([[0.1], [0.2], [-0.5], [0.3]], -0.5)
KEPT = np.asarray(HIDDEN)
MASKS: dict[str, Any] = {
    "one array": HIDDEN,
    "a list of rows": list(HIDDEN),
    "a tuple of rows": tuple(HIDDEN),
    "lists of numbers": [[x for x in row] for row in HIDDEN],
    "an array of objects": as_objects(HIDDEN),
    "objects that are masked": HIDDEN.astype(object),
    "a part": {"a": HIDDEN},
    "a part of rows": {"a": list(HIDDEN), "b": KEPT},
    "rows with parts": [{"a": row, "b": [0.0]} for row in HIDDEN],
}
WHERE = ("obs", "next_obs", "action", "reward", "terminated", "truncated", "low", "high")


@pytest.mark.parametrize(
    ("field", "kind"),
    [(f, k) for f in WHERE for k in MASKS if "part" not in k or "obs" in f],
)
def test_no_hidden_number_gets_in_wherever_it_is(field: str, kind: str) -> None:
    """As an array of its own or deep in lists, of rows, of parts, in bounds."""
    value = MASKS[kind]
    plain = {"a": KEPT, "b": KEPT} if "part" in kind else KEPT
    rows = {"obs": plain, "next_obs": plain, "action": KEPT, "reward": np.zeros(4)}
    rows |= {"terminated": [0, 0, 0, 1], "truncated": [0] * 4}
    box: dict[str, Any] = {"low": -1.0, "high": 1.0}
    wrong = {**rows, **box, field: value}
    bounds = {name: wrong.pop(name) for name in ("low", "high")}
    with pytest.raises((DataError, UnsupportedSpaceError), match="mask"):
        OfflineDataset.from_episodes([wrong], **bounds)
    if kind == "rows with parts":
        return  # which from_arrays does not take
    with pytest.raises((DataError, UnsupportedSpaceError), match="mask"):
        OfflineDataset.from_arrays(**wrong, **bounds)


def test_a_masked_flag_or_bound_of_all_is_named() -> None:
    with pytest.raises(DataError, match="`terminated` has masked values: got the first at row 0"):
        OfflineDataset.from_episodes([make_episode(terminated=np.ma.masked)], **BOX)
    for box in ({"low": np.ma.masked, "high": 1.0}, {"low": -1.0, "high": [1.0, np.ma.masked]}):
        with pytest.raises(UnsupportedSpaceError, match="Action bounds are masked"):
            OfflineDataset.from_episodes([make_episode()], **box)
        with pytest.raises(UnsupportedSpaceError, match="Action bounds are masked"):
            OfflineDataset.from_episodes([make_episode()], **box, unbounded="data")
    with pytest.raises(UnsupportedSpaceError, match=r"got `low` without a value for dimension 1"):
        ActionScaler(np.ma.array([-7.0, -7.0], mask=[False, True]), [1.0, 1.0])
    plain = np.ma.array(np.zeros((5, 3)))
    assert len(OfflineDataset.from_episodes([make_episode(obs=list(plain))], **BOX)) == 4


# --- flags: what is there, then terminated and truncated of three steps; None: an error
ENDS: list[tuple[dict[str, Any], str | None, str]] = [
    ({"dones": [0, 0, 1], "truncated": [0, 0, 0]}, "001", "000"),
    ({"dones": [0, 0, 1], "truncated": [0, 0, 1]}, "000", "001"),
    ({"done": [0, 0, 0], "truncated": [0, 0, 1]}, "000", "001"),
    ({"done": True, "timeouts": [0, 0, 0]}, "001", "000"),
    ({"done": [0, 0, 1], "terminated": [0, 0, 0]}, "000", "001"),
    ({"done": [0, 0, 1], "terminated": [0, 0, 1]}, "001", "000"),
    ({"done": [0, 1, 1], "truncated": [0, 0, 1]}, "010", "001"),
    ({"done": [0, 0, 1], "terminated": [0, 0, 1], "truncated": [0, 0, 0]}, "001", "000"),
    ({"terminal": [0, 0, 1]}, "001", "000"),
    ({"termination": True}, "001", "000"),
    ({"timeout": [0, 0, 1]}, "000", "001"),
    ({"truncation": True}, "000", "001"),
    ({"is_terminal": [0, 0, 1], "is_last": [0, 0, 1]}, "001", "000"),
    ({"is_terminal": [0, 0, 0], "is_last": [0, 0, 1]}, "000", "001"),
    ({"is_last": [0, 0, 1]}, "000", "001"),
    ({"done": None, "is_last": None, "terminal": True}, "001", "000"),
    ({"done": [0, 0, 1]}, None, "`done` mixes two things"),
    ({"dones": [0, 0, 1], "is_last": [0, 0, 1]}, None, "`done` mixes two things"),
    ({"done": [0, 0, 0], "terminated": [0, 0, 1]}, None, "`terminated` contradicts `done`.*row 2"),
    (
        {"done": [0, 0, 1], "terminated": [0, 0, 0], "truncated": [0, 0, 0]},
        None,
        "`done` contradicts the other flags: got it set at row 2",
    ),
    (
        {"is_terminal": [0, 1, 0], "is_last": [0, 0, 1]},
        None,
        "`terminated` contradicts `is_last`.*row 1",
    ),
    (
        {"truncated": [0, 0, 1], "is_last": [0, 0, 0]},
        None,
        "`truncated` contradicts `is_last`.*row 2",
    ),
    ({"is_first": [1, 0, 0]}, "000", "001"),
    ({"is_first": True, "is_terminal": True}, "001", "000"),
    ({"is_first": [1, 0, 0], "dones": [0, 0, 1], "timeouts": [0, 0, 0]}, "001", "000"),
    ({"is_first": [0, 0, 0], "is_last": [0, 0, 0]}, "000", "001"),
    ({"is_first": [1, 0, 0], "is_last": [0, 0, 1], "is_terminal": [0, 0, 1]}, "001", "000"),
    ({"is_first": [1, 0, 1], "is_terminal": True}, None, "at row 2 of 3.*Split the episode there"),
    ({"is_first": [1, 1, 0], "is_last": [1, 0, 1]}, None, "at row 1 of 3.*Split the episode there"),
    (
        {"is_first": [1, 0, 0], "is_terminal": [0, 1, 1]},
        None,
        "`terminated` contradicts `is_first`: got it set at row 1",
    ),
    (
        {"is_first": [1, 0, 0], "dones": [0, 1, 1], "truncated": [0, 0, 1]},
        None,
        "`done` contradicts `is_first`: got it set at row 1",
    ),
    ({"terminal": True, "terminated": True}, None, "`terminated` is given twice"),
    ({"done": True, "dones": True}, None, "`done` is given twice"),
]


@pytest.mark.parametrize(("flags", "terminated", "truncated"), ENDS)
def test_every_name_of_an_end_is_read(
    flags: dict[str, Any], terminated: str | None, truncated: str
) -> None:
    """No flag is dropped: what a step earned and how the episode ended stay."""
    episode = make_episode(3, **{"terminated": None} | flags)
    if terminated is None:
        with pytest.raises(DataError, match=truncated):
            OfflineDataset.from_episodes([episode], **BOX)
        return
    dataset = OfflineDataset.from_episodes([episode], **BOX)
    assert dataset.terminated.tolist() == [x == "1" for x in terminated]
    assert dataset.truncated.tolist() == [x == "1" for x in truncated]


@pytest.mark.parametrize("ends", [True, False])
def test_the_last_step_of_rlds_is_an_observation_alone(ends: bool) -> None:
    """Its action and reward mean nothing: what terminates is the step before."""
    steps = make_episode(4, terminated=None, obs=np.arange(4.0)[:, None], reward=[0, 0, 1, 0])
    rows = {"is_last": [0, 0, 0, 1], "is_terminal": [0, 0, 0, int(ends)]}
    dataset = OfflineDataset.from_episodes([steps | rows, steps | rows], gamma=0.5, **BOX)
    batch = dataset.transitions
    assert batch.obs.flatten().tolist() == [0, 1, 2] * 2
    assert batch.reward.tolist() == [0, 0, 1] * 2
    assert batch.discount.tolist() == [0.5, 0.5, 0.0 if ends else 0.5] * 2
    assert dataset.ends.tolist() == [False, False, True] * 2
    if ends:  # other names, or an observation behind it, say that the last step is one
        named = {"is_last": rows["is_last"], "terminated": rows["is_terminal"]}
        assert len(OfflineDataset.from_episodes([steps | named], **BOX)) == 4
        whole = steps | rows | {"obs": np.arange(5.0)[:, None]}
        assert len(OfflineDataset.from_episodes([whole], **BOX)) == 4
        with pytest.warns(UserWarning, match="some of these rewards are not 0"):
            OfflineDataset.from_episodes([steps | rows | {"reward": [0, 0, 0, 1]}], **BOX)


@pytest.mark.parametrize("way", ["arrays", "episodes"])
def test_what_float32_leaves_little_of_is_told(way: str) -> None:
    def load(obs: Any, low: float = -1.0, high: float = 1.0) -> OfflineDataset:
        rows = {"obs": obs, "action": np.linspace(low, high, len(obs))[:, None]}
        box = {"low": low, "high": high}
        if way == "episodes":
            return OfflineDataset.from_episodes([rows], **box)
        flags = {"terminated": np.zeros(len(obs)), "truncated": np.zeros(len(obs))}
        return OfflineDataset.from_arrays(**rows, **flags, **box)

    wave = np.stack([np.sin(np.arange(50.0)), np.cos(np.arange(50.0))], 1)
    with pytest.warns(UserWarning, match=r"dimensions \[1\], the first from 5299999.* offset"):
        load(wave * 0.2 + [0.0, 5.3e6])
    with pytest.warns(UserWarning, match=r"dimensions \[0\], .*centred and not scaled. If it"):
        load(wave * [5e-7, 1.0])
    with pytest.warns(UserWarning, match=r"Action dimensions \[0\] have few values in float32"):
        load(wave, 1e6, 1e6 + 1)
    load(wave * 1e3 + 1e6)
    load(np.round(wave) + 1e6)  # whole numbers are exact
    load(np.full((50, 1), 5.3e6 + 0.1))  # what never changes loses nothing
    # Neither does the noise of rounding, of a joint that never moves.
    load(wave * 1e-16 + [0.0, 0.45])
    load((wave * 1e-7 + [0.7, -1.0]).astype(np.float32))


def test_episodes_that_do_not_go_together() -> None:
    with pytest.raises(DataError, match="Episode 1: `reward` is missing in a part of the data"):
        OfflineDataset.from_episodes([make_episode(), make_episode(reward=None)], **BOX)
    with pytest.raises(DataError, match=r"Episode 1: `obs` has the wrong shape: got \(5, 2\)"):
        OfflineDataset.from_episodes([make_episode(), make_episode(obs=np.zeros((5, 2)))], **BOX)
    with pytest.raises(DataError, match=r"Episode 1: `action` has the wrong shape: got rows of"):
        OfflineDataset.from_episodes(
            [make_episode(), make_episode(action=np.zeros((4, 2, 1)))], **BOX
        )
    with pytest.raises(EmptyDatasetError, match="There is no episode: got 0 from episodes"):
        OfflineDataset.from_episodes([], **BOX)
    with pytest.raises(DataError, match="An episode is no mapping: got int"):
        OfflineDataset.from_episodes([3], **BOX)  # type: ignore[list-item]
    with pytest.raises(DataError, match="`obs_keys` does not fit"):
        OfflineDataset.from_episodes([make_episode()], obs_keys=["a"], **BOX)
    with pytest.raises(DataError, match="`unbounded` is unknown: got 'dta'"):
        OfflineDataset.from_episodes([make_episode()], unbounded="dta", **BOX)  # type: ignore[arg-type]
