"""OGBench's files to OfflineDataset: the two layouts, ends and goals, what is refused."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gtp_datasets import load_ogbench
from gtp_policy.errors import DataError, EmptyDatasetError, UnsupportedSpaceError

N = 9
# Two trajectories of five and four states; the goal is reached in states 2, 3 and 8.
TERMINALS = np.isin(np.arange(N), (4, 8))
MASKS = (~np.isin(np.arange(N), (2, 3, 8))).astype(np.float32)


def fields(**changes: object) -> dict[str, Any]:
    """The fields of a file; observation i is (i, i, i), reward i is i."""
    rng = np.random.default_rng(0)
    rows = {
        "observations": np.repeat(np.arange(N, dtype=np.float32)[:, None], 3, axis=1),
        "actions": rng.uniform(-1, 1, (N, 2)).astype(np.float32),
        "terminals": TERMINALS,
        "rewards": np.arange(N, dtype=np.float32),
        "masks": MASKS,
        "qpos": rng.normal(size=(N, 4)),
    }
    return {k: v for k, v in (rows | changes).items() if v is not None}


def returned(rows: Mapping[str, Any]) -> dict[str, Any]:
    """The same as a loop over the transitions, as OGBench's function returns it."""
    columns: dict[str, list[Any]] = {}
    for i, end in enumerate(rows["terminals"]):
        if end:
            continue
        for name in ("observations", "actions", "rewards", "masks"):
            columns.setdefault(name, []).append(rows[name][i])
        columns.setdefault("next_observations", []).append(rows["observations"][i + 1])
        columns.setdefault("terminals", []).append(float(rows["terminals"][i + 1]))
    return {name: np.array(values) for name, values in columns.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cube-play-v0.npz"


def write(path: Path, rows: Mapping[str, Any]) -> Path:
    np.savez_compressed(path, **rows)
    return path


def test_the_end_of_a_trajectory_cuts_and_only_the_goal_terminates(path: Path) -> None:
    dataset = load_ogbench(write(path, fields()), gamma=0.5)
    batch = dataset.transitions
    assert batch.reward.tolist() == [0, 1, 2, 3, 5, 6, 7]
    assert batch.next_obs[:, 0].tolist() == [1, 2, 3, 4, 6, 7, 8]
    assert batch.discount.tolist() == [0.5, 0.5, 0.0, 0.0, 0.5, 0.5, 0.5]
    assert np.flatnonzero(dataset.terminated).tolist() == [2, 3]
    assert np.flatnonzero(dataset.truncated).tolist() == [3, 6]
    assert np.flatnonzero(dataset.ends).tolist() == [3, 6]
    assert dataset.source == "OGBench cube-play-v0.npz"


def test_without_a_goal_nothing_terminates(path: Path) -> None:
    dataset = load_ogbench(write(path, fields(masks=np.ones(N))))
    assert not dataset.terminated.any()
    assert (dataset.transitions.discount > 0).all()


@given(
    st.lists(st.integers(2, 6), min_size=1, max_size=6), st.integers(0, 2**32 - 1), st.booleans()
)
def test_both_layouts_hold_the_same_transitions(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seed: int, as_float: bool
) -> None:
    n, rng = sum(lengths), np.random.default_rng(seed)
    ends = np.isin(np.arange(n), np.cumsum(lengths) - 1)
    rows = {
        "observations": np.arange(3.0 * n).reshape(n, 3),
        "actions": rng.uniform(-1, 1, (n, 2)),
        "rewards": rng.normal(size=n),
        "masks": rng.integers(0, 2, n),
        "terminals": ends.astype(np.float32) if as_float else ends,
    }
    file = load_ogbench(write(tmp_path_factory.mktemp("ogbench") / "a.npz", rows))
    theirs = load_ogbench(returned(rows))
    for ours, other in zip(file.transitions.present(), theirs.transitions.present(), strict=True):
        assert torch.equal(ours, other)
    np.testing.assert_array_equal(file.terminated, theirs.terminated)
    np.testing.assert_array_equal(file.truncated, theirs.truncated)
    np.testing.assert_array_equal(file.ends, theirs.ends)
    assert file.ends.sum() == len(lengths)
    assert theirs.source == "OGBench"
    assert file.truncated.sum() == len(lengths)


def test_the_file_is_read_as_ogbench_reads_it(path: Path) -> None:
    utils = pytest.importorskip("ogbench.utils", reason="OGBench is an extra: make ogbench-data")
    theirs = utils.load_dataset(write(path, fields()))
    ours = load_ogbench(path)
    np.testing.assert_array_equal(ours.transitions.obs, theirs["observations"])
    np.testing.assert_array_equal(ours.transitions.next_obs, theirs["next_observations"])
    np.testing.assert_array_equal(ours.transitions.action, theirs["actions"])
    np.testing.assert_array_equal(ours.truncated, theirs["terminals"] == 1)


def test_the_validation_file_is_the_twin(path: Path) -> None:
    write(path, fields())
    write(path.with_name("cube-play-v0-val.npz"), fields(rewards=np.full(N, 7.0)))
    assert load_ogbench(path).transitions.reward[0] == 0
    twin = load_ogbench(path, split="validation")
    assert (twin.transitions.reward == 7).all()
    assert twin.source == "OGBench cube-play-v0-val.npz"
    with pytest.raises(DataError, match="`split` is unknown: got 'test'"):
        load_ogbench(path, split="test")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="`split` does not fit: got 'validation' with a dataset"):
        load_ogbench(returned(fields()), split="validation")


def test_images_keep_their_shape(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (N, 4, 5, 3), np.uint8)
    dataset = load_ogbench(write(path, fields(observations=pixels)))
    assert dataset.layout.shapes == ((4, 5, 3),)
    np.testing.assert_array_equal(
        dataset.layout.unflatten(dataset.transitions.obs.numpy())[0], pixels[0]
    )


def test_bounds_are_those_of_the_call(path: Path) -> None:
    write(path, fields(actions=np.tile([-1.0, 0.5], (N, 1))))
    assert load_ogbench(path).transitions.action[0].tolist() == [-1.0, 0.5]
    wide = load_ogbench(path, low=-2.0, high=2.0)
    assert wide.transitions.action[0].tolist() == [-0.5, 0.25]
    assert load_ogbench(
        path, low=-1, high=0.25, out_of_bounds="clip"
    ).transitions.action.max().item() == pytest.approx(1.0)
    with pytest.raises(DataError, match=r"`action` lies outside the Box: got 0.5 at row 0"):
        load_ogbench(path, high=0.25)
    with pytest.raises(UnsupportedSpaceError, match="bounds"):
        load_ogbench(path, low=[-1.0, -1.0, -1.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terminals": None}, "`terminals` is missing: got the fields .*Is this a file of OGBench"),
        ({"masks": None}, "`masks` is missing.*They belong to a task"),
        ({"rewards": None}, "`rewards` is missing.*make_env_and_datasets"),
        ({"rewards": np.zeros(N - 1)}, r"`rewards` has the wrong shape: got \(8,\)"),
        ({"masks": np.zeros((N, 1))}, r"`masks` has the wrong shape.*Pass masks\[:, 0\]"),
        ({"masks": np.full(N, 0.5)}, "`masks` is not a flag: got 0.5 at row 0"),
        ({"actions": np.zeros((N - 1, 2))}, r"`actions` has the wrong shape: got \(8, 2\)"),
        ({"observations": np.zeros(N)}, r"`observations` has the wrong shape: got \(9,\)"),
        ({"terminals": np.zeros(N)}, "`terminals` leaves the end open: got no flag at row 8"),
        ({"terminals": TERMINALS[:-1]}, r"`terminals` has the wrong shape: got \(8,\)"),
        ({"observations": np.full((N, 3), np.nan)}, "`obs` is not finite.* at row 0, dimension 0"),
        ({"observations": np.full((N, 3), "a")}, "`obs` has the wrong dtype"),
        ({"valids": np.ones(N)}, "`valids` belongs to OGBench's compact layout"),
        ({"next_observations": np.zeros((N, 2))}, "`next_observations` has the wrong shape"),
    ],
)
def test_what_is_wrong_is_named(path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_ogbench(write(path, fields(**changes)))


def test_rows_that_are_no_transitions_are_no_dataset(path: Path) -> None:
    with pytest.raises(EmptyDatasetError, match="got 9 rows that each end a trajectory"):
        load_ogbench(write(path, fields(terminals=np.ones(N, bool))))


def test_the_fields_of_another_npz_are_listed(path: Path) -> None:
    np.savez(path, obs=np.zeros((2, 3)), torque=np.zeros((2, 1)))
    with pytest.raises(DataError, match=r"got the fields \['obs', 'torque'\].*load_npz reads"):
        load_ogbench(path)


def test_a_missing_or_broken_file_is_named(path: Path) -> None:
    with pytest.raises(
        DataError, match=r"cube-play-v0.npz` cannot be read as npz: got no file of that name"
    ):
        load_ogbench(path)
    path.write_bytes(b"PK no archive")
    with pytest.raises(DataError, match="cannot be read as npz: got BadZipFile"):
        load_ogbench(path)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_file_that_is_cut_short_is_an_error(path: Path, share: float) -> None:
    whole = write(path, fields()).read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError):
        load_ogbench(path)


class Canary:
    """Unpickling it would raise what no loader does."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('executed')",))


def test_objects_are_never_decoded(path: Path) -> None:
    write(path, fields(rewards=np.array([Canary()] * N, object)))
    with pytest.raises(DataError, match=r"`rewards.npy` has the wrong dtype: got object"):
        load_ogbench(path)


def test_a_header_that_declares_too_much_is_refused_before_memory_is_taken(path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3)}
    )
    write(path, fields(observations=None))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("observations.npy", header.getvalue())
    with pytest.raises(DataError, match=r"`observations.npy` declares more than it holds"):
        load_ogbench(path)
