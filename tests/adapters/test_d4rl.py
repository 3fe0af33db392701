"""D4RL's HDF5 to OfflineDataset: the two conventions, what is refused, hostile files."""

import os
import pickle
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gtp_datasets import load_d4rl_hdf5
from gtp_policy import OfflineDataset
from gtp_policy.errors import (
    DataError,
    EmptyDatasetError,
    MissingDependencyError,
    UnsupportedSpaceError,
)
from tests.reliability.mutations import SLACK, peak_memory

N = 7
# Rows 0-2 end by themselves, rows 3-5 are timed out, row 6 is left unfinished.
TERMINALS = np.array([0, 0, 1, 0, 0, 0, 0], bool)
TIMEOUTS = np.array([0, 0, 0, 0, 0, 1, 0], bool)


def raw(**changes: object) -> dict[str, Any]:
    """The fields of a raw file, without next observations; observation i is (i, i, i)."""
    rng = np.random.default_rng(0)
    fields = {
        "observations": np.repeat(np.arange(N, dtype=np.float32)[:, None], 3, axis=1),
        "actions": rng.uniform(-1, 1, (N, 2)).astype(np.float32),
        "rewards": np.arange(N, dtype=np.float32),
        "terminals": TERMINALS,
        "timeouts": TIMEOUTS,
        "infos/qpos": rng.normal(size=(N, 4)),
    }
    return {k: v for k, v in (fields | changes).items() if v is not None}


def write(path: Path, fields: Mapping[str, Any], **options: object) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in fields.items():
            file.create_dataset(name, data=value, **options)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "toy-medium-v2.hdf5"


def rewards_of(dataset: OfflineDataset) -> list[float]:
    """Reward i marks row i of the file."""
    return dataset.transitions.reward.tolist()


def test_raw_without_next_observations_drops_what_has_no_successor(path: Path) -> None:
    dataset = load_d4rl_hdf5(write(path, raw()), gamma=0.5)
    batch = dataset.transitions
    assert rewards_of(dataset) == [0, 1, 2, 3, 4]
    assert batch.obs[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert batch.next_obs[batch.discount > 0, 0].tolist() == [1, 2, 4, 5]
    assert batch.discount.tolist() == [0.5, 0.5, 0.0, 0.5, 0.5]
    assert np.flatnonzero(dataset.terminated).tolist() == [2]
    assert np.flatnonzero(dataset.truncated).tolist() == [4]
    assert dataset.source == "D4RL HDF5 toy-medium-v2.hdf5"


def test_raw_with_next_observations_keeps_every_row(path: Path) -> None:
    following = raw()["observations"] + 0.5
    dataset = load_d4rl_hdf5(write(path, raw(next_observations=following)))
    assert rewards_of(dataset) == list(range(N))
    assert torch.equal(dataset.transitions.next_obs, dataset.transitions.obs + 0.5)
    assert np.flatnonzero(dataset.truncated).tolist() == [5, 6]
    assert np.flatnonzero(dataset.transitions.discount == 0).tolist() == [2]
    shifted = load_d4rl_hdf5(path, next_obs="shifted")
    assert rewards_of(shifted) == [0, 1, 2, 3, 4]
    assert shifted.transitions.next_obs[0, 0] == 1


def test_qlearning_fields_find_their_episodes(path: Path) -> None:
    """Without timeouts, an episode is cut where the next observation is not the next row's."""
    fields = raw(timeouts=None)
    following = fields["observations"] + 1
    following[4] = 99  # the transition after it was dropped when the file was made
    dataset = load_d4rl_hdf5(write(path, fields | {"next_observations": following}))
    assert rewards_of(dataset) == list(range(N))
    assert np.flatnonzero(dataset.terminated).tolist() == [2]
    assert np.flatnonzero(dataset.truncated).tolist() == [4, 6]
    assert np.flatnonzero(dataset.transitions.discount == 0).tolist() == [2]


def as_qlearning_dataset(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a loop over the rows keeps: neither the last of the file nor a timed-out one."""
    kept = [i for i in range(len(fields["rewards"]) - 1) if not fields["timeouts"][i]]
    obs = fields["observations"]
    return {
        "observations": obs[kept],
        "actions": fields["actions"][kept],
        "next_observations": obs[[i + 1 for i in kept]],
        "rewards": fields["rewards"][kept],
        "terminals": fields["terminals"][kept],
    }


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=8))
def test_both_conventions_hold_the_same_transitions(
    tmp_path_factory: pytest.TempPathFactory, episodes: list[tuple[int, bool]]
) -> None:
    """The raw file and what `qlearning_dataset` makes of it agree where D4RL keeps a row."""
    n = sum(steps for steps, _ in episodes) + 2  # two more rows, of an unfinished episode
    ends = np.zeros(n, bool)
    ends[np.cumsum([steps for steps, _ in episodes]) - 1] = True
    terminates = np.concatenate([[t] * steps for steps, t in episodes] + [[False] * 2]).astype(bool)
    fields = {
        "observations": np.arange(3.0 * n).reshape(n, 3),
        "actions": np.zeros((n, 2)),
        "rewards": np.arange(float(n)),
        "terminals": ends & terminates,
        "timeouts": ends & ~terminates,
    }
    folder = tmp_path_factory.mktemp("d4rl")
    ours = load_d4rl_hdf5(write(folder / "raw.hdf5", fields))
    theirs = load_d4rl_hdf5(write(folder / "q.hdf5", as_qlearning_dataset(fields)))
    assert torch.equal(ours.transitions.obs, theirs.transitions.obs)
    assert torch.equal(ours.transitions.reward, theirs.transitions.reward)
    assert torch.equal(ours.transitions.discount, theirs.transitions.discount)
    going = ours.transitions.discount > 0
    assert torch.equal(ours.transitions.next_obs[going], theirs.transitions.next_obs[going])
    np.testing.assert_array_equal(ours.terminated, theirs.terminated)
    np.testing.assert_array_equal(ours.truncated, theirs.truncated)


def test_a_terminated_row_is_kept_even_where_d4rl_drops_it(path: Path) -> None:
    both = np.arange(N) == N - 1
    dataset = load_d4rl_hdf5(write(path, raw(terminals=both, timeouts=both)))
    assert rewards_of(dataset) == list(range(N))
    assert dataset.transitions.discount[-1] == 0


def test_bounds_default_to_one_and_can_be_given(path: Path) -> None:
    write(path, raw(actions=np.tile([-1.0, 0.0], (N, 1))))
    assert load_d4rl_hdf5(path).transitions.action[0].tolist() == [-1.0, 0.0]
    wide = load_d4rl_hdf5(path, low=-2.0, high=[2.0, 4.0])
    np.testing.assert_allclose(wide.transitions.action[0], [-1 / 2, -1 / 3], rtol=1e-6)
    assert wide.action_scaler.high.tolist() == [2.0, 4.0]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f8"])
@pytest.mark.parametrize("options", [{}, {"chunks": (2, 1), "compression": "gzip"}])
def test_types_and_storage_make_no_difference(
    path: Path, dtype: str, options: dict[str, Any]
) -> None:
    with h5py.File(path, "w") as file:
        for name, value in raw().items():
            kept = options if value.ndim == 2 else {}
            kind = dtype if value.dtype.kind == "f" else "u1"
            file.create_dataset(name, data=value.astype(kind), **kept)
    dataset = load_d4rl_hdf5(path)
    assert dataset.transitions.obs[:, 0].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(dataset.transitions.action, raw()["actions"][:5], atol=1e-3)


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": None}, r"`actions` is missing: got the fields \['infos', 'observations'"),
        ({"terminals": None}, r"`terminals` is missing"),
        ({"timeouts": None}, r"`timeouts` is missing: .* nothing shows where an episode was cut"),
        ({"rewards": np.zeros((N, 1))}, r"`reward` .* got \(7, 1\), expected \(7,\)"),
        ({"rewards": np.zeros(N - 1)}, r"`reward` .* got \(6,\), expected \(7,\)"),
        ({"actions": np.zeros(N)}, r"`actions` has the wrong shape: got \(7,\)"),
        ({"observations": np.zeros((N, 2, 2))}, r"`observations` has the wrong shape: got \(7, 2"),
        ({"observations": 3.0}, r"`observations` has the wrong shape: got \(\)"),
        ({"terminals": np.full(N, 2)}, r"`terminals` is not a flag: got 2 at row 0"),
        ({"timeouts": np.zeros(N - 1)}, r"`timeouts` has the wrong shape: got \(6,\)"),
        ({"terminals": np.zeros((N, 1))}, r"`terminals` .* Pass terminals\[:, 0\]"),
        ({"rewards": np.where(np.arange(N) == 4, np.nan, 0)}, r"`reward` .* got nan at row 4"),
        ({"actions": np.full((N, 2), 1.5)}, r"`action` lies outside the Box: got 1.5 at row 0"),
        ({"actions": np.zeros((N, 2), complex)}, r"`actions` .* got complex128"),
        ({"next_observations": np.zeros((N, 4))}, r"`next_obs` .* got \(7, 4\), expected \(7, 3\)"),
        ({"observations": h5py.Empty("f4")}, r"cannot be read"),
    ],
)
def test_a_bad_field_is_named(path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_d4rl_hdf5(write(path, raw(**changes)))


def test_rows_are_those_of_the_file(path: Path) -> None:
    """Row 5 is left out, yet the rows behind it keep their numbers."""
    rewards = np.zeros(N + 3)
    rewards[7] = np.inf
    fields = {k: np.concatenate([v, v[:3]]) for k, v in raw().items()} | {"rewards": rewards}
    with pytest.raises(DataError, match=r"`reward` .* got inf at row 7"):
        load_d4rl_hdf5(write(path, fields))


def test_qlearning_fields_of_another_width_are_refused(path: Path) -> None:
    write(path, raw(timeouts=None, next_observations=np.zeros((N, 4))))
    with pytest.raises(DataError, match=r"`next_observations` .* got \(7, 4\), expected \(7, 3\)"):
        load_d4rl_hdf5(path)


def test_a_group_is_no_field(path: Path) -> None:
    write(path, raw(rewards=None) | {"rewards/inner": np.zeros(N)})
    with pytest.raises(DataError, match="`rewards` has the wrong type: got Group"):
        load_d4rl_hdf5(path)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"next_obs": "stored"}, "`next_observations` is missing"),
        ({"next_obs": "guess"}, "`next_obs` is unknown: got 'guess'"),
        ({"out_of_bounds": "wrap"}, "`out_of_bounds` is unknown"),
        ({"gamma": 2.0}, "`gamma` is out of range"),
        ({"unbounded": "guess"}, "`unbounded` is unknown: got 'guess', expected 'error' or 'data'"),
    ],
)
def test_unknown_options_are_refused(path: Path, option: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_d4rl_hdf5(write(path, raw()), **option)


@pytest.mark.parametrize("bounds", [{"low": [-1.0] * 3}, {"high": np.inf}, {"low": 1.0}])
def test_unusable_bounds_are_refused(path: Path, bounds: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedSpaceError):
        load_d4rl_hdf5(write(path, raw()), **bounds)


def test_an_empty_file_is_an_empty_dataset(path: Path) -> None:
    empty = {k: v[:0] for k, v in raw().items()}
    with pytest.raises(EmptyDatasetError, match="got 0 transitions from D4RL HDF5 toy-medium-v2"):
        load_d4rl_hdf5(write(path, empty))
    with pytest.raises(EmptyDatasetError, match="No transition is left"):
        load_d4rl_hdf5(write(path, raw(timeouts=np.ones(N), terminals=np.zeros(N))))


def test_a_missing_file_and_a_foreign_one_are_refused(path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as HDF5: got no file of that name"):
        load_d4rl_hdf5(path)
    path.write_bytes(pickle.dumps([1, 2, 3]))
    with pytest.raises(DataError, match="cannot be read as HDF5: got OSError"):
        load_d4rl_hdf5(path)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95])
def test_a_truncated_file_is_refused(path: Path, share: float) -> None:
    content = write(path, raw()).read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        load_d4rl_hdf5(path)


def test_without_h5py_the_extra_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingDependencyError, match=r"pip install '\.\[datasets\]'"):
        load_d4rl_hdf5(path)


# --- hostile files


def link_out(folder: Path, file: h5py.File) -> None:
    write(folder / "secret.hdf5", {"x": raw()["rewards"]})
    file["rewards"] = h5py.ExternalLink(str(folder / "secret.hdf5"), "x")


def link_soft(folder: Path, file: h5py.File) -> None:
    file["rewards"] = h5py.SoftLink("/elsewhere")
    file["elsewhere"] = h5py.ExternalLink(str(folder / "secret.hdf5"), "x")


def virtual(folder: Path, file: h5py.File) -> None:
    write(folder / "secret.hdf5", {"x": raw()["rewards"]})
    layout = h5py.VirtualLayout((N,), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "secret.hdf5"), "x", (N,))
    file.create_virtual_dataset("rewards", layout)


def external(folder: Path, file: h5py.File) -> None:
    raw()["rewards"].tofile(folder / "secret.bin")
    where = [(str(folder / "secret.bin"), 0, 4 * N)]
    file.create_dataset("rewards", (N,), "f4", external=where)


@pytest.mark.parametrize("spoil", [link_out, link_soft, virtual, external])
def test_nothing_outside_the_file_is_read(
    path: Path, spoil: Callable[[Path, h5py.File], None]
) -> None:
    write(path, raw(rewards=None))
    with h5py.File(path, "a") as file:
        spoil(path.parent, file)
    with pytest.raises(DataError, match="`rewards` is not stored here"):
        load_d4rl_hdf5(path)


class Canary:
    """Unpickling an instance leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("field", ["observations", "actions", "rewards", "terminals", "timeouts"])
@pytest.mark.parametrize("kind", ["opaque", "vlen", "text"])
def test_pickled_objects_are_never_decoded(path: Path, field: str, kind: str) -> None:
    mark = path.parent / "executed"
    payload = pickle.dumps(Canary(mark))
    write(path, raw(**{field: None}))
    with h5py.File(path, "a") as file:
        if kind == "opaque":
            file[field] = np.array([np.void(payload)] * N)
        elif kind == "vlen":
            file.create_dataset(field, (N,), h5py.vlen_dtype(np.uint8))
            file[field][0] = np.frombuffer(payload, np.uint8)
        else:
            file[field] = ["text"] * N
    with pytest.raises(DataError, match=f"`{field}` has the wrong dtype.*never decoded"):
        load_d4rl_hdf5(path)
    assert not mark.exists()
    pickle.loads(payload)  # noqa: S301 (shows that the canary works)
    assert mark.exists()


def test_a_file_cannot_declare_more_memory_than_it_fills(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for name, shape in {"observations": (10**11, 3), "actions": (10**11, 2)}.items():
            file.create_dataset(name, shape, "f4", chunks=(10**6, 1))
        for name in ("rewards", "terminals", "timeouts"):
            file.create_dataset(name, (10**11,), "u1", chunks=(10**6,))
    assert path.stat().st_size < 10**5
    with pytest.raises(DataError, match="declares more than it can hold: got 65000000003"):
        load_d4rl_hdf5(path)


@pytest.mark.parametrize("field", ["rewards", "terminals"])
def test_a_chunk_cannot_be_larger_than_what_it_holds(path: Path, field: str) -> None:
    write(path, raw(**{field: None}))
    with h5py.File(path, "a") as file:
        kind = {"rewards": "f8", "terminals": "?"}[field]
        file.create_dataset(field, (N,), kind, maxshape=(None,), chunks=(2**28,), compression=9)
    with peak_memory() as peak, pytest.raises(DataError, match="declares more than it can hold"):
        load_d4rl_hdf5(path)
    assert peak[0] < SLACK


def test_bytes_count_as_the_numbers_that_they_become(path: Path) -> None:
    """A table has four bytes for each, twice."""
    rows = 2**21
    with h5py.File(path, "w") as file:
        for name, shape in {"observations": (rows, 8), "actions": (rows, 2)}.items():
            file.create_dataset(name, shape, "u1", chunks=(2**12, 1))
        for name in ("rewards", "terminals", "timeouts"):
            file.create_dataset(name, (rows,), "u1", chunks=(2**12,))
    with peak_memory() as peak, pytest.raises(DataError, match="declares more than it can hold"):
        load_d4rl_hdf5(path)
    assert peak[0] < SLACK


def test_a_pipe_is_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(DataError, match="is no file"):
        load_d4rl_hdf5(path)


@pytest.mark.parametrize("given", [3, None, ["a"]])
def test_what_is_no_path_is_named(given: Any) -> None:
    with pytest.raises(DataError, match="is no path: got"):
        load_d4rl_hdf5(given)


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_rounding_cuts_no_episode(path: Path, noise: float) -> None:
    obs = np.random.default_rng(0).normal(size=(101, 3))
    fields = {
        "observations": obs[:-1].astype(np.float32),
        "next_observations": obs[1:] + noise,
        "actions": np.zeros((100, 1)),
        "rewards": np.ones(100),
        "terminals": np.arange(100) % 25 == 24,
    }
    dataset = load_d4rl_hdf5(write(path, fields))
    assert (dataset.terminated | dataset.truncated).sum() == 4
    with pytest.warns(UserWarning, match="end an episode"):
        load_d4rl_hdf5(write(path, fields | {"next_observations": obs[1:] + 1}))


def walks(offset: float, step: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns observations and next observations of four walks of 25 steps, with a goal each."""
    rng = np.random.default_rng(0)
    walk = offset + rng.normal(size=(4, 1, 3)) + np.cumsum(rng.normal(size=(4, 26, 3)) * step, 1)
    goal = np.broadcast_to(rng.normal(size=(4, 1, 1)), (4, 26, 1))
    whole = np.concatenate([walk, goal], 2) * scale
    return whole[:, :-1].reshape(100, 4), whole[:, 1:].reshape(100, 4)


@pytest.mark.filterwarnings("ignore:Observation dimensions")  # which such units deserve
@pytest.mark.parametrize("types", ["f8 f8", "f4 f4", "f4 f8", "f8 f4"])
@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-3])
@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize(
    ("offset", "step", "scale"),
    [
        (0, 1, 1),  # as most are
        (5e5, 0.5, 1),  # metres of a map
        (0, 1, 1e-6),  # micrometres, in metres
        (0, 1, 1e6),
        (100, 0.02, 1),  # little steps far from 0
    ],
)
def test_ends_are_found_whatever_the_units(
    path: Path,
    offset: float,
    step: float,
    scale: float,
    share: float,
    noise: float,
    types: str,
) -> None:
    """Offsets, scales, types and a sensor that is read twice show neither more ends nor fewer."""
    obs, following = walks(offset, step, scale)
    again = np.random.default_rng(1).random((100, 1)) < share
    following = following + again * (noise * step * scale)
    following[:, 3] -= (again * noise * step * scale)[:, 0]  # a goal is not measured
    kinds = types.split()
    fields = {
        "observations": obs.astype(kinds[0]),
        "next_observations": following.astype(kinds[1]),
        "actions": np.zeros((100, 1)),
        "rewards": np.ones(100),
        "terminals": np.zeros(100, bool),
    }
    dataset = load_d4rl_hdf5(write(path, fields))
    assert np.flatnonzero(dataset.truncated).tolist() == [24, 49, 74, 99]


def test_rows_that_do_not_follow_each_other_are_shown(path: Path) -> None:
    """Shuffled transitions: every row is an end, and a warning says so."""
    obs, following = walks(0, 1, 1)
    order = np.random.default_rng(2).permutation(100)
    fields = {
        "observations": obs[order],
        "next_observations": following[order],
        "actions": np.zeros((100, 1)),
        "rewards": np.ones(100),
        "terminals": np.zeros(100, bool),
    }
    with pytest.warns(UserWarning, match="Many rows of .* end an episode"):
        dataset = load_d4rl_hdf5(write(path, fields))
    assert dataset.truncated.sum() > 90


def test_loading_needs_less_than_twice_the_memory_of_the_result(path: Path) -> None:
    n = 300_000
    rng = np.random.default_rng(0)
    fields = {
        "observations": rng.normal(size=(n, 11)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, 3)).astype(np.float32),
        "rewards": rng.normal(size=n).astype(np.float32),
        "terminals": np.zeros(n, bool),
        "timeouts": np.arange(n) % 1000 == 999,
    }
    write(path, fields)
    tracemalloc.start()
    try:
        dataset = load_d4rl_hdf5(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(dataset) == n - n // 1000
    assert dataset.nbytes < peak < 2 * dataset.nbytes
