"""Every format from a file that its own writer made: the same transitions as from flat arrays."""

import contextlib
import csv
import io
import json
import pickle
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtp_datasets import (
    load_csv,
    load_d4rl_hdf5,
    load_dataset,
    load_lerobot,
    load_npz,
    load_ogbench,
    load_robomimic,
    report,
)
from gtp_datasets._arrow import ParquetFile
from gtp_datasets._mp4 import check_index
from gtp_datasets._pages import pages_of
from gtp_datasets.loader import kind_of
from gtp_policy import ActionScaler, ObservationLayout, OfflineDataset
from gtp_policy.errors import (
    DataError,
    EmptyDatasetError,
    GTPError,
    MissingDependencyError,
    UnsupportedSpaceError,
)
from tests.adapters.writers import (
    flat,
    make_episodes,
    write_growing_video,
    write_lerobot,
    write_robomimic,
    write_video,
)
from tests.reliability.mutations import SLACK, peak_memory
from tests.test_episodes import assert_equal

BOX: dict[str, Any] = {"low": -1.0, "high": 1.0}
EPISODES = make_episodes()
KEY = "observation.images.top"
Loader = Callable[[Path], OfflineDataset]


def write_csv(path: Path, rows: dict[str, np.ndarray]) -> Path:
    """A table of plain columns, by Python's own writer."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(rows)
        writer.writerows(zip(*(column.tolist() for column in rows.values()), strict=True))
    return path


def table(episodes: list[dict[str, np.ndarray]] = EPISODES) -> dict[str, np.ndarray]:
    rows, ids = flat(episodes, final=False), np.arange(len(episodes))
    return {
        "run": np.repeat(ids, [len(e["action"]) for e in episodes]),
        **{f"joint_{i}": rows["obs"][:, i] for i in range(3)},
        "left": rows["action"][:, 0],
        "right": rows["action"][:, 1],
        "score": rows["reward"],
        "won": rows["terminated"],
    }


OF_TABLE: dict[str, Any] = {
    "obs": "joint_*",
    "action": ["left", "right"],
    "reward": "score",
    "terminated": "won",
    "episode": "run",
    **BOX,
}


# --- the same bits, by format: from a folder of the test to the dataset, with the last observation
# or without it


def npz_of_transitions(folder: Path) -> OfflineDataset:
    np.savez(folder / "a.npz", **flat(EPISODES, final=True))
    return load_npz(folder / "a.npz", **BOX)


def npz_with_ends(folder: Path) -> OfflineDataset:
    rows = flat(EPISODES, final=False)
    del rows["truncated"]
    ends = np.cumsum([len(e["action"]) for e in EPISODES])
    np.savez_compressed(folder / "a.npz", **rows, episode_ends=ends)
    return load_npz(folder / "a.npz", **BOX)


def npz_of_episodes(folder: Path) -> OfflineDataset:
    arrays = {f"episode_{i}/{k}": v for i, e in enumerate(EPISODES) for k, v in e.items()}
    np.savez(folder / "a.npz", **arrays)
    return load_npz(folder / "a.npz", **BOX)


def npz_by_episode(folder: Path) -> OfflineDataset:
    for i, episode in enumerate(EPISODES):
        np.savez(folder / f"run_{i + 9}.npz", **episode)  # 9, 10, 11: not in their letters' order
    return load_npz(folder, **BOX)


def csv_of_transitions(folder: Path) -> OfflineDataset:
    return load_csv(write_csv(folder / "log.csv", table()), **OF_TABLE)


def csv_by_episode(folder: Path) -> OfflineDataset:
    for i, episode in enumerate(EPISODES):
        write_csv(folder / f"{i + 9}.csv", table([episode]))
    return load_csv(folder, **OF_TABLE)


def robomimic(folder: Path) -> OfflineDataset:
    path = write_robomimic(folder / "demo.hdf5", EPISODES)
    return load_robomimic(path, obs_keys=["robot0_eef_pos", "object"])


def robomimic_open(folder: Path) -> OfflineDataset:
    path = write_robomimic(folder / "demo.hdf5", EPISODES, next_obs=False)
    with h5py.File(path) as file:
        dataset = load_robomimic(file, obs_keys=["robot0_eef_pos", "object"])
        assert file["data"]
    return dataset


def lerobot(folder: Path) -> OfflineDataset:
    return load_lerobot(write_lerobot(folder / "le", EPISODES), terminated="next.success", **BOX)


def d4rl_fields() -> dict[str, np.ndarray]:
    rows = flat(EPISODES, final=True)
    names = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
    return dict(zip(names, rows.values(), strict=True))


def d4rl_dict(folder: Path) -> OfflineDataset:
    return load_d4rl_hdf5(d4rl_fields())


def d4rl_open(folder: Path) -> OfflineDataset:
    with h5py.File(folder / "a.hdf5", "w") as file:
        for name, column in d4rl_fields().items():
            file[name] = column
        return load_d4rl_hdf5(file)


def in_memory(folder: Path) -> OfflineDataset:
    with h5py.File("nowhere.hdf5", "w", driver="core", backing_store=False) as file:
        for name, column in d4rl_fields().items():
            file[name] = column
        return load_d4rl_hdf5(file)


def ogbench(folder: Path) -> OfflineDataset:
    rows = flat(EPISODES, final=True)
    np.savez(
        folder / "a.npz",
        observations=rows["obs"],
        actions=rows["action"],
        rewards=rows["reward"],
        masks=1.0 - rows["terminated"],
        terminals=rows["truncated"] | rows["terminated"],  # where trajectories end, however
        next_observations=rows["next_obs"],
    )
    return load_ogbench(folder / "a.npz")


WITH_LAST = (
    npz_of_transitions,
    npz_of_episodes,
    npz_by_episode,
    robomimic,
    d4rl_dict,
    d4rl_open,
    in_memory,
    ogbench,
)
WITHOUT = (npz_with_ends, csv_of_transitions, csv_by_episode, robomimic_open, lerobot)


@pytest.mark.parametrize("load", [*WITH_LAST, *WITHOUT], ids=lambda load: load.__name__)
def test_the_same_transitions_as_from_arrays_bit_for_bit(load: Loader, tmp_path: Path) -> None:
    rows = flat(EPISODES, final=load in WITH_LAST)
    if load is ogbench:
        rows["truncated"] = rows["truncated"] | rows["terminated"]
    expected = OfflineDataset.from_arrays(**rows, **BOX)
    got = load(tmp_path)
    assert_equal(got, expected)


def test_names_that_are_known_need_no_mapping(tmp_path: Path) -> None:
    rows = flat(EPISODES, final=False)
    columns = {f"obs_{i}": rows["obs"][:, i] for i in range(3)}
    columns |= {f"action[{i}]": rows["action"][:, i] for i in range(2)}
    columns |= {name: rows[name] for name in ("reward", "terminated", "truncated")}
    got = load_csv(write_csv(tmp_path / "log.tsv", columns), delimiter=",", **BOX)
    assert_equal(got, OfflineDataset.from_arrays(**rows, **BOX))


def test_several_arrays_become_parts_of_the_observation(tmp_path: Path) -> None:
    for i, episode in enumerate(EPISODES):
        obs = episode["obs"]
        parts = {"arm/joints": obs[:, :2], "arm/hand": obs[:, 2], "action": episode["action"]}
        np.savez(tmp_path / f"{i}.npz", **{k.replace("/", "_"): v for k, v in parts.items()})
    got = load_npz(tmp_path, obs=["arm_joints", "arm_hand"], **BOX)
    assert got.layout == ObservationLayout({"arm_joints": (2,), "arm_hand": ()})
    assert not got.has_rewards
    np.testing.assert_array_equal(
        got.transitions.obs, np.concatenate([e["obs"][:-1] for e in EPISODES])
    )


def test_rewards_may_be_left_out_and_the_report_says_so(tmp_path: Path) -> None:
    load_options = OF_TABLE | {"reward": False}
    dataset = load_csv(write_csv(tmp_path / "log.csv", table()), **load_options)
    assert not dataset.has_rewards
    page = str(report(dataset))
    assert "no rewards: clone without a critic" in page
    assert "nan" not in page
    assert report(dataset).returns is None


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (("obs", "obs.1", "action"), r"`obs` may be several columns: got \['obs', 'obs.1'\]"),
        (("obs", "action", "action_0"), "`action` may be several columns"),
        (("obs", "observation_0", "action"), "`obs` may be several columns"),
        (("obs", "action", "reward", "rewards"), "`reward` may be several columns"),
        (("obs", "action", "terminated", "terminal"), "`terminated` may be several columns"),
        (("obs", "action", "episode", "episode_id"), "`episode` may be several columns"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_two_columns_that_may_be_one_field_are_named(
    kind: str, names: tuple[str, ...], match: str, tmp_path: Path
) -> None:
    """The other one would be lost: the second end of an episode, or half of an observation."""
    fields = {name: np.array([0.0, 0.0, 1.0, 1.0]) for name in names}
    fields["truncated"] = np.array([0.0, 1.0, 0.0, 1.0])
    if kind == "csv":
        write_csv(tmp_path / "a.csv", fields)
    else:
        npz(tmp_path, **fields)
    with pytest.raises(DataError, match=match):
        load_dataset(next(tmp_path.iterdir()), low=-1.0, high=1.0)
    last = {match.split("`")[1]: names[-1] if names[-1] != "action" else "obs"}
    # A row that an episode is cut at has no next observation; one that it ends at needs none.
    right = 3 if "terminal" in names else 2
    assert len(load_dataset(next(tmp_path.iterdir()), low=-1.0, high=1.0, **last)) == right


@pytest.mark.parametrize("first", ["20240101123456000000", "0.25"])
def test_numbers_of_episodes_that_may_be_equal_are_refused(first: str, tmp_path: Path) -> None:
    """Twenty digits are read as a float, and three such episodes as one."""
    ids = [first, first, first[:-1] + "1", first[:-1] + "1"]
    lines = [f"{number},{i},0.5" for i, number in enumerate(ids)]
    (tmp_path / "a.csv").write_text("\n".join(["episode,obs,action", *lines]))
    with pytest.raises(DataError, match="`episode` has numbers that may be of two episodes"):
        load_csv(tmp_path / "a.csv", low=-1.0, high=1.0)


def test_demonstrations_that_are_links_to_one_are_counted(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "demo.hdf5", EPISODES)
    with h5py.File(path, "a") as file:
        for i in range(100, 2000):
            file[f"data/demo_{i}"] = file["data/demo_0"]
    with pytest.raises(DataError, match="has more fields than fit into it"):
        load_robomimic(path)


def test_a_list_of_demonstrations_is_no_longer_than_they_are(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "demo.hdf5", EPISODES)
    with h5py.File(path, "a") as file:
        file.create_dataset("mask/many", data=np.full(10**7, b"a"), compression="gzip")
    with peak_memory() as peak, pytest.raises(DataError, match="names more than there is"):
        load_robomimic(path, filter_key="many")
    assert peak[0] < SLACK


def test_robomimics_lists_and_keys(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "demo.hdf5", EPISODES)
    train, valid = (load_robomimic(path, filter_key=key) for key in ("train", "valid"))
    assert (len(train), len(valid)) == (7, 5)
    assert train.obs_keys == ("object", "robot0_eef_pos")
    cut = load_robomimic(path, dones="truncated")
    assert not cut.terminated.any()
    assert cut.truncated.sum() == len(EPISODES)
    with h5py.File(path, "a") as file:
        file["data/demo_0/obs/front_image"] = np.zeros((4, 6, 6, 3), np.uint8)
    with pytest.warns(UserWarning, match=r"Images are left out: \['front_image'\]"):
        assert load_robomimic(path).obs_keys == ("object", "robot0_eef_pos")


# --- LeRobot's images


def make_frames() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (len(e["action"]), 16, 24, 3), np.uint8) for e in EPISODES]


def test_frames_of_videos_are_those_of_their_rows(tmp_path: Path) -> None:
    frames = make_frames()
    root = write_lerobot(tmp_path / "le", EPISODES, frames=frames)
    dataset = load_lerobot(root, obs=["observation.*"], **BOX)
    assert dataset.obs_keys == ("observation.state", KEY)
    parts = dataset.layout.unflatten(dataset.transitions.obs.numpy())
    after = dataset.layout.unflatten(dataset.transitions.next_obs.numpy())
    assert isinstance(parts, dict)
    assert isinstance(after, dict)
    np.testing.assert_array_equal(parts[KEY], np.concatenate([f[:-1] for f in frames]))
    np.testing.assert_array_equal(after[KEY], np.concatenate([f[1:] for f in frames]))
    with pytest.raises(DataError, match=r"take too much memory: got .* Pass memory="):
        load_lerobot(root, obs=[KEY], memory=100, **BOX)


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [
        ("from_timestamp", 1e308, "is not where meta/episodes says: got .*1e\\+308"),
        ("from_timestamp", -1.0, "is not where meta/episodes says"),
        ("chunk_index", 0.5, r"no whole number: got 0\.5 as videos/.*chunk_index at row 0"),
        ("episode_index", 1, "names an episode again: got 1 at row 1"),
    ],
)
def test_where_frames_are_is_said_once_and_in_whole_numbers(
    column: str, value: float, match: str, tmp_path: Path
) -> None:
    root = write_lerobot(tmp_path / "le", EPISODES, frames=make_frames())
    (path,) = root.glob("meta/episodes/*/*.parquet")
    table = pq.read_table(path)
    name = column if column == "episode_index" else f"videos/{KEY}/{column}"
    changed = [value, *table[name].to_pylist()[1:]]
    table = table.set_column(table.column_names.index(name), name, [changed])
    pq.write_table(table, path)
    with pytest.raises(DataError, match=match):
        load_lerobot(root, obs=[KEY], **BOX)


def test_images_in_rows_are_decoded(tmp_path: Path) -> None:
    import io

    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (len(e["action"]), 4, 5, 3), np.uint8) for e in EPISODES]

    def packed(image: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="PNG")
        return file.getvalue()

    images = [[packed(image) for image in episode] for episode in pixels]
    root = write_lerobot(tmp_path / "le", EPISODES, images=images)
    got = load_lerobot(root, obs=KEY, **BOX)
    assert got.layout.shapes == ((4, 5, 3),)
    np.testing.assert_array_equal(
        got.transitions.obs, np.concatenate([p[:-1] for p in pixels]).reshape(9, -1)
    )


# --- LeRobot's rows

LISTS: dict[str, tuple[list[int], pa.DataType, list[Any], str]] = {
    "lengths that make up for each other": (
        [2],
        pa.list_(pa.float32()),
        [[0, 0], [1, 1, 1], [2], [3, 3]],
        r"a list of 3 where one of 2 belongs at row 1, expected \(2,\) in each",
    ),
    "no list at all": ([2], pa.list_(pa.float32()), [[0, 0], [1, 1], None, [3, 3]], "no list .*2"),
    "no list of a fixed length": (
        [2],
        pa.list_(pa.float32(), 2),
        [[0, 0], [1, 1], [2, 2], None],
        # pyarrow reads it from version 18 on.
        "got no list .*at row 3|cannot be read as Parquet: got ArrowInvalid",
    ),
    "large lists": ([2], pa.large_list(pa.float32()), [[0], [0, 0, 0], [0], []], "of 1 .*at row 0"),
    "lists within lists": (
        [2, 2],
        pa.list_(pa.list_(pa.float32())),
        [[[0, 0], [0, 0]], [[1, 1], [1, 1]], [[2, 2, 2], [2]], [[3, 3], [3, 3]]],
        r"a list of 3 where one of 2 belongs at row 2, expected \(2, 2\) in each",
    ),
    "lists of lists of another number": (
        [2, 2],
        pa.list_(pa.list_(pa.float32())),
        [[[0, 0]], [[1, 1], [1, 1], [1, 1]], [[2, 2], [2, 2]], [[3, 3], [3, 3]]],
        "a list of 1 where one of 2 belongs at row 0",
    ),
    "the shape the other way round": (
        [1, 2],
        pa.list_(pa.list_(pa.float32())),
        [[[0], [0]]] * 4,
        "a list of 2 where one of 1 belongs at row 0",
    ),
    "lists deeper than the shape": (
        [2],
        pa.list_(pa.list_(pa.float32())),
        [[[0, 0]]] * 4,
        "another shape: got list<element: list<element: float>>, expected lists",
    ),
    "numbers where lists belong": ([2], pa.float32(), [0, 1, 2, 3], "another shape: got float"),
}


def with_state(root: Path, shape: list[int], kind: pa.DataType, rows: list[Any]) -> Path:
    """A folder of one episode of four rows, whose observations are these."""
    write_lerobot(root, EPISODES[:1])
    path = root / "meta" / "info.json"
    said = json.loads(path.read_text())
    said["features"]["observation.state"] |= {"shape": shape}
    path.write_text(json.dumps(said))
    table = pq.read_table(root / DATA).drop_columns("observation.state")
    pq.write_table(table.append_column("observation.state", pa.array(rows, kind)), root / DATA)
    return root


@pytest.mark.parametrize("name", LISTS)
def test_each_list_has_the_length_that_the_shape_says(name: str, tmp_path: Path) -> None:
    shape, kind, rows, match = LISTS[name]
    root = with_state(tmp_path / "le", shape, kind, rows)
    with pytest.raises(DataError, match=f"{DATA}: `observation.state` has rows of .*{match}"):
        load_lerobot(root, **BOX)


@pytest.mark.parametrize("kind", ["(2, 3)", "6", "2, 3"])
def test_lists_are_within_each_other_or_all_numbers_are_in_one(kind: str, tmp_path: Path) -> None:
    whole = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    types = {
        "(2, 3)": pa.list_(pa.list_(pa.float32(), 3), 2),
        "6": pa.list_(pa.float32()),
        "2, 3": pa.large_list(pa.list_(pa.float32())),
    }
    rows = whole.reshape(4, 6) if kind == "6" else whole
    root = with_state(tmp_path / "le", [2, 3], types[kind], rows.tolist())
    dataset = load_lerobot(root, **BOX)
    assert dataset.layout.shapes == ((2, 3),)
    np.testing.assert_array_equal(dataset.transitions.obs, whole[:3].reshape(3, 6))


FRAMES: dict[str, tuple[Any, str]] = {  # of an episode of 4 rows and one of 3
    "in another order": ([0, 2, 1, 3, 0, 1, 2], "got 2 behind 0 at row 1, in episode 0"),
    "backwards": ([0, 1, 2, 3, 2, 1, 0], "got 1 behind 2 at row 5, in episode 1"),
    "one twice": ([0, 1, 1, 2, 0, 1, 2], "got 1 behind 1 at row 2"),
    "one that is lacking": ([0, 1, 2, 3, 0, 1, 3], "got 3 behind 1 at row 6, in episode 1"),
    "none": ([0, 1, None, 3, 0, 1, 2], "got nan behind 1.0 at row 2"),
    "bytes that begin anew": (
        pa.array([0, 1, 2, 3, 254, 255, 0], pa.uint8()),
        "got 0 behind 255 at row 6, in episode 1",
    ),
}


@pytest.mark.parametrize("name", FRAMES)
def test_rows_that_do_not_stand_in_the_order_of_their_frames_are_refused(
    name: str, tmp_path: Path
) -> None:
    numbers, match = FRAMES[name]
    root = write_lerobot(tmp_path / "le", EPISODES)
    table = pq.read_table(root / DATA).drop_columns("frame_index")
    pq.write_table(table.append_column("frame_index", [numbers]), root / DATA)
    with pytest.raises(DataError, match=f"`frame_index` is not in order: {match}.*rise by one"):
        load_lerobot(root, **BOX)


@pytest.mark.parametrize("name", ["frame_index", "episode_index"])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_numbers_of_rows_are_no_images(name: str, kind: str, tmp_path: Path) -> None:
    root = features(tmp_path, **{name: {"dtype": kind, "shape": [4, 5, 3]}})
    with pytest.raises(DataError, match=f"`{name}` holds no numbers: got {kind}"):
        load_lerobot(root, obs=["observation.state", name], **BOX)


def test_frames_may_begin_anywhere_or_have_no_numbers(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "le", EPISODES)
    expected = load_lerobot(root, **BOX)
    paths = sorted(root.glob("data/*/*.parquet"))
    for path, start in zip(paths, (-3, 100), strict=True):
        table = pq.read_table(path)
        numbers = np.array(table["frame_index"]) + start
        table = table.drop_columns("frame_index")
        pq.write_table(table.append_column("frame_index", [numbers]), path)
    assert_equal(load_lerobot(root, **BOX), expected)
    for path, match in zip(paths, (r"expected \['frame_index'\] too", ""), strict=True):
        pq.write_table(pq.read_table(path).drop_columns("frame_index"), path)
        with contextlib.nullcontext() if not match else pytest.raises(DataError, match=match):
            assert_equal(load_lerobot(root, **BOX), expected)


@pytest.mark.parametrize("name", ["action", "next.reward", "frame_index", "episode_index"])
def test_a_feature_may_be_several_fields(name: str, tmp_path: Path) -> None:
    """Its rows stood there twice, and of several files in the place of others."""
    root = write_lerobot(tmp_path / "le", EPISODES)
    alone = load_lerobot(root, **BOX).transitions
    twice = load_lerobot(root, obs=["observation.state", name], **BOX).transitions
    np.testing.assert_array_equal(twice.action, alone.action)
    np.testing.assert_array_equal(twice.reward, alone.reward)
    np.testing.assert_array_equal(twice.obs[:, :3], alone.obs)
    rows = {
        "action": alone.action,
        "next.reward": alone.reward[:, None],
        "frame_index": np.array([[0, 1, 2, 0, 1, 0, 1, 2, 3]]).T,
        "episode_index": np.array([[0, 0, 0, 1, 1, 2, 2, 2, 2]]).T,
    }
    np.testing.assert_array_equal(twice.obs[:, 3:], rows[name])


# --- one call for all


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (lambda p: write_robomimic(p / "a.hdf5", EPISODES), "robomimic"),
        (lambda p: write_lerobot(p / "le", EPISODES), "lerobot"),
        (lambda p: write_csv(p / "a.csv", table()), "csv"),
        (lambda p: (np.savez(p / "a.npz", obs=1), p / "a.npz")[1], "npz"),
        (lambda p: (np.savez(p / "a.npz", obs=1), p)[1], "npz"),
        (lambda p: (ogbench(p), p / "a.npz")[1], "ogbench"),
        (lambda p: (d4rl_open(p), p / "a.hdf5")[1], "d4rl"),
        (lambda p: d4rl_fields(), "d4rl"),
        (lambda p: d4rl_fields() | {"masks": 1}, "ogbench"),
        (lambda p: EPISODES, "episodes"),
        (lambda p: iter(EPISODES), "episodes"),
        (lambda p: "mujoco/hopper/medium-v0", "minari"),
    ],
)
def test_what_data_is_taken_for(tmp_path: Path, write: Any, kind: str) -> None:
    assert kind_of(write(tmp_path)) == kind


def test_one_call_loads_what_each_loader_does_and_says_which(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "log.csv", table())
    assert_equal(load_dataset(path, **OF_TABLE), load_csv(path, **OF_TABLE))
    assert load_dataset(path, **OF_TABLE).source == "CSV log.csv"
    root = write_lerobot(tmp_path / "le", EPISODES)
    assert load_dataset(str(root), **BOX).source == "LeRobot le"
    assert_equal(
        load_dataset(EPISODES, **BOX), OfflineDataset.from_arrays(**flat(EPISODES, True), **BOX)
    )
    given = load_dataset(tmp_path / "log.csv", kind="csv", **OF_TABLE)
    assert given.action_scaler == ActionScaler([-1, -1], [1, 1])


@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_a_row_before_a_first_one_has_no_next_observation(kind: str, tmp_path: Path) -> None:
    """It got the first observation of the next episode."""
    rows = {"obs": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "action": [0.0] * 6}
    flags = {"is_first": [1, 0, 0, 1, 0, 0], "is_terminal": [0, 0, 0, 0, 0, 1]}
    path = rows_of(kind, rows | flags, tmp_path)
    dataset = load_dataset(path, obs=["obs"], low=-1.0, high=1.0)
    assert dataset.transitions.obs.flatten().tolist() == [0, 1, 3, 4, 5]
    assert dataset.transitions.next_obs.flatten()[:4].tolist() == [1, 2, 4, 5]
    assert dataset.ends.tolist() == [False, True, False, False, True]
    with pytest.raises(DataError, match=r"`is_first` is set behind the start.*row 3"):
        load_dataset(tmp_path, obs=["obs"], low=-1.0, high=1.0)


@pytest.mark.parametrize(
    "name",
    [
        "episode_idx",
        "episode_number",
        "traj",
        "trajectory",
        "trajectory_id",
        "demo_id",
        "rollout_id",
    ],
)
@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_clear_names_are_the_number_of_the_episode(kind: str, name: str, tmp_path: Path) -> None:
    rows = {"obs": [0.0, 1.0, 2.0, 3.0], "action": [0.0] * 4, "terminal": [0.0, 0.0, 0.0, 1.0]}
    ids = {name: [7.0, 7.0, 8.0, 8.0]}
    dataset = load_dataset(rows_of(kind, rows | ids, tmp_path), obs=["obs"], low=-1.0, high=1.0)
    assert dataset.transitions.obs.flatten().tolist() == [0, 2, 3]
    assert dataset.truncated.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ({"traj": [7.0, 8.0, 7.0, 8.0], "truncated": [0.0] * 4}, {}),
        ({"trajectory": [7.0, 8.0, 7.0, 8.0]}, {"obs": ["obs", "trajectory"]}),
        ({"traj": [7.0, 8.0, 7.0, 8.0]}, {"episode": False}),
        ({"demo": [0.0, 1.0, 0.0, 1.0]}, {}),
    ],
)
@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_what_is_another_field_or_not_needed_is_no_number_of_the_episode(
    kind: str, columns: dict[str, list[float]], options: dict[str, Any], tmp_path: Path
) -> None:
    rows = {"obs": [0.0, 1.0, 2.0, 3.0], "action": [0.0] * 4, "terminal": [0.0, 0.0, 0.0, 1.0]}
    path = rows_of(kind, rows | columns, tmp_path)
    assert len(load_dataset(path, **{"obs": ["obs"], "low": -1.0, "high": 1.0} | options)) == 4


@pytest.mark.parametrize("time", ["2024-01-0{}", "2024-01-01T00:00:0{}", "2024-01-01 00:00:0{}Z"])
def test_dates_do_not_fall_within_an_episode(time: str, tmp_path: Path) -> None:
    for days, rises in (("1234", True), ("1243", False)):
        rows = [f"{i // 2},{time.format(day)},{i},0.5" for i, day in enumerate(days)]
        (tmp_path / "a.csv").write_text("\n".join(["episode,time,obs,action", *rows]))
        if rises:
            assert len(load_csv(tmp_path / "a.csv", low=-1.0, high=1.0)) == 2
            continue
        with pytest.raises(DataError, match=r"`time` is not in order: got .* at row 3"):
            load_csv(tmp_path / "a.csv", low=-1.0, high=1.0)


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("kind", ["npz", "csv"])
@pytest.mark.parametrize(
    "name", ["t", "time", "timestamp", "step", "timestep", "time_step", "frame_index"]
)
def test_time_does_not_fall_within_an_episode(
    name: str, kind: str, folder: bool, tmp_path: Path
) -> None:
    rows = {"obs": [0.0, 1.0, 2.0, 3.0], "action": [0.0] * 4, "terminal": [0.0, 0.0, 0.0, 1.0]}
    box: dict[str, Any] = {"obs": ["obs"], "low": -1.0, "high": 1.0}

    def load(times: list[float], ids: str = "episode", **options: Any) -> OfflineDataset:
        path = rows_of(kind, rows | {ids: [0.0, 0.0, 1.0, 1.0], name: times}, tmp_path)
        return load_dataset(tmp_path if folder else path, **box | options)

    with pytest.raises(DataError, match=f"`{name}` is not in order: got 5.0 behind 6.0 at row 3"):
        load([0.0, 1.0, 6.0, 5.0])
    assert len(load([0.0, 0.0, -2.0, 7.0])) == 3
    if not folder:
        assert len(load([3.0, 2.0, 1.0, 0.0], ids="other")) == 4
    assert len(load([0.0, 1.0, 6.0, 5.0], obs=["obs", name])) == 3


@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_times_that_are_no_numbers_are_not_looked_at(kind: str, tmp_path: Path) -> None:
    rows: dict[str, Any] = {"obs": [0.0, 1.0], "action": [0.0] * 2, "episode": [0, 0]}
    rows["time"] = ["second", "first"]  # dates of CSV are looked at, see above
    path = rows_of(kind, rows | {"t": [[1.0], [2.0]] if kind == "npz" else ["b", "a"]}, tmp_path)
    assert len(load_dataset(path, obs=["obs"], low=-1.0, high=1.0)) == 1


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_steps_of_rlds_end_with_an_observation(kind: str, folder: bool, tmp_path: Path) -> None:
    columns = {"obs": [0, 1, 2, 3, 4, 5], "action": [0] * 6, "episode": [0, 0, 0, 1, 1, 1]}
    columns |= {"is_last": [0, 0, 1] * 2, "is_terminal": [0, 0, 1, 0, 0, 0]}
    if kind == "npz":
        arrays = {
            n: np.array(c)[:, None] if n == "obs" else np.array(c) for n, c in columns.items()
        }
        path = npz(tmp_path, **arrays)
    else:
        rows = zip(*columns.values(), strict=True)
        path = text(
            tmp_path, "\n".join([",".join(columns), *(",".join(map(str, r)) for r in rows)])
        )
    dataset = load_dataset(path.parent if folder else path, low=-1.0, high=1.0)
    assert dataset.transitions.obs.flatten().tolist() == [0, 1, 3, 4]
    assert dataset.terminated.tolist() == [False, True, False, False]
    assert dataset.truncated.tolist() == [False, False, False, True]
    told = load_dataset(path, low=-1.0, high=1.0, terminated="is_terminal")
    assert len(told) == 5  # what the caller names is as it says


@pytest.mark.parametrize(
    ("flags", "options", "terminated", "truncated"),
    [
        ({"dones": "0101", "timeouts": "0000"}, {}, "0101", "0000"),
        ({"dones": "0101", "timeouts": "0001"}, {}, "0100", "0001"),
        ({"done": "0101", "terminals": "0100"}, {}, "0100", "0001"),
        ({"terminal": "0101"}, {}, "0101", "0000"),
        ({"is_terminal": "0100", "is_last": "0101"}, {}, "0100", "0001"),
        ({"is_last": "0101"}, {}, "0000", "0101"),
        ({"is_first": "1010"}, {}, "0000", "0101"),
        ({"is_first": "0010", "is_terminal": "0001"}, {}, "0001", "0100"),
        ({"is_first": "1010", "terminated": "0000", "truncated": "0001"}, {}, "0000", "0101"),
        ({"is_first": "1010", "is_last": "0101", "is_terminal": "0100"}, {}, "0100", "0001"),
        ({"is_first": "1010", "is_last": "0100"}, {}, "0000", "0101"),
        ({"is_first": "1010"}, {"terminated": False, "episode": "run"}, "0000", "0101"),
        ({"is_first": "1000", "is_last": "0101"}, {}, "", "`is_last` contradicts `is_first`"),
        ({"is_first": "1010", "is_last": "0001"}, {}, "", "`is_first` contradicts `is_last`"),
        ({"is_first": "1010", "terminals": "1000"}, {}, "", "`terminated` contradicts `is_first`"),
        ({"dones": "0101"}, {"terminated": "dones"}, "0101", "0000"),
        ({"dones": "0101"}, {"truncated": "dones"}, "0000", "0101"),
        ({"dones": "0111"}, {"terminated": False, "episode": "run"}, "0000", "0101"),
        ({"dones": "0101"}, {"episode": "run"}, "", "mixes two things"),
        ({"dones": "0001", "terminals": "0101"}, {}, "", "contradicts `done`"),
    ],
)
@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_every_flag_of_a_file_is_read(
    kind: str,
    flags: dict[str, str],
    options: dict[str, Any],
    terminated: str,
    truncated: str,
    tmp_path: Path,
) -> None:
    columns: dict[str, Any] = {name: [int(x) for x in of] for name, of in flags.items()}
    columns |= {"obs": [0, 1, 2, 3], "next_obs": [1, 2, 3, 4], "action": [0] * 4}
    columns |= {"run": [0, 0, 1, 1]}
    if kind == "npz":
        vectors = {n: np.array(c)[:, None] for n, c in columns.items() if "obs" in n}
        path = npz(tmp_path, **columns | vectors)
    else:
        rows = zip(*columns.values(), strict=True)
        lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
        path = text(tmp_path, "\n".join(lines))
    box = {"low": -1.0, "high": 1.0}
    if not terminated:
        with pytest.raises(DataError, match=truncated):
            load_dataset(path, **box, **options)
        return
    dataset = load_dataset(path, **box, **options)
    assert dataset.terminated.tolist() == [x == "1" for x in terminated]
    assert dataset.truncated.tolist() == [x == "1" for x in truncated]


# --- columns in any order, endings in any case

NUMBERED = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
ORDERS = {
    "as they are": NUMBERED,
    "backwards": NUMBERED[::-1],
    "as letters are sorted": sorted(NUMBERED, key=str),
}


@pytest.mark.parametrize("kind", ["npz", "csv"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("{}_{}", {}),
        ("{}.{}", {}),
        ("{}[{}]", {}),
        ("{}{:03d}", {}),
        ("x{}_{}", {"obs": "xobs_*", "next_obs": "xnext_obs_*", "action": "xaction_*"}),
        ("x{}_{}", {"obs": [f"xobs_{i}" for i in NUMBERED], "next_obs": "xn*", "action": "xa*"}),
    ],
)
def test_numbered_columns_go_by_their_numbers(
    kind: str, order: str, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """The column with a number is that dimension, wherever it stands in the file."""
    columns: dict[str, list[float]] = {"terminated": [0, 0, 1]}
    for field, offset in (("next_obs", 1.0), ("obs", 0.0), ("action", 0.0)):
        for number in ORDERS[order] if field != "obs" else NUMBERED:
            start = offset + 10 * number if "obs" in field else number / 100
            columns[name.format(field, number)] = [start + row for row in range(3)]
    columns = {n: [v / 100 for v in c] if "action" in n else c for n, c in columns.items()}
    path = rows_of(kind, columns, tmp_path)
    dataset = load_dataset(path, low=-1.0, high=1.0, **options)
    rows = dataset.transitions
    np.testing.assert_array_equal(rows.obs[0], 10 * np.array(NUMBERED))
    np.testing.assert_array_equal(rows.next_obs - rows.obs, np.ones((3, 11)))
    assert (np.diff(rows.action.numpy(), axis=1) > 0).all()


def rows_of(kind: str, columns: dict[str, list[float]], folder: Path) -> Path:
    if kind == "npz":
        return npz(folder, **{name: np.array(column) for name, column in columns.items()})
    lines = [
        ",".join(columns),
        *(",".join(map(str, r)) for r in zip(*columns.values(), strict=True)),
    ]
    return text(folder, "\n".join(lines))


@pytest.mark.parametrize("kind", ["npz", "csv"])
@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["obs_0", "obs_2", "action"], {}, "`obs` has numbered columns that do not follow"),
        (["obs_5", "obs_6", "action"], {}, "`obs` has numbered columns that do not follow"),
        (["obs_0", "obs.0", "action"], {}, "`obs` has numbered columns that do not follow"),
        (
            ["obs_0", "obs_1", "next_obs_1", "next_obs_2", "action"],
            {},
            "`next_obs` is of other columns than `obs`: got .*'next_obs_1', 'next_obs_2'",
        ),
        (
            ["at_x", "at_y", "to_y", "to_z", "action"],
            {"obs": "at_*", "next_obs": "to_*"},
            "`next_obs` is of other columns than `obs`",
        ),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    kind: str, names: list[str], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = rows_of(kind, {name: [0.0, 0.0] for name in [*names, "terminated"]}, tmp_path)
    with pytest.raises(DataError, match=message):
        load_dataset(path, low=-1.0, high=1.0, **options)


@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_words_pair_observations_and_lists_keep_their_order(kind: str, tmp_path: Path) -> None:
    columns = {"at_x": [0.0], "at_y": [5.0], "to_y": [6.0], "to_x": [1.0], "action": [0.0]}
    path = rows_of(kind, columns | {"terminated": [1]}, tmp_path)
    box = {"low": -1.0, "high": 1.0}
    by_word = load_dataset(path, obs="at_*", next_obs="to_*", **box)
    assert by_word.transitions.next_obs.tolist() == [[1.0, 6.0]]
    as_said = load_dataset(path, obs=["at_x", "at_y"], next_obs=["to_y", "to_x"], **box)
    assert as_said.transitions.next_obs.tolist() == [[6.0, 1.0]]


def episodes_of(layout: str, episodes: list[dict[str, list[float]]], folder: Path) -> Path:
    """Writes columns of episodes to a folder of files, or to the folders of one file."""
    if layout == "npz groups":
        named = {f"{i}/{n}": c for i, episode in enumerate(episodes) for n, c in episode.items()}
        return rows_of("npz", named, folder)
    for i, episode in enumerate(episodes):
        made = rows_of(layout, episode, folder)
        made.rename(folder / f"run_{i}{made.suffix}")
    return folder


LAYOUTS = ["csv", "npz", "npz groups"]
IN_ORDER = {
    "at_x": [1.0],
    "at_y": [100.0],
    "to_x": [2.0],
    "to_y": [200.0],
    "u_a": [0.1],
    "u_b": [0.9],
}
WORDS = {"obs": "at_*", "next_obs": "to_*", "action": "u_*", "reward": "r*"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_of_a_later_file_go_by_the_names_of_the_first(layout: str, tmp_path: Path) -> None:
    """They are no others because they stand in another order, whatever finds them."""
    first = IN_ORDER | {"r": [7.0]}
    path = episodes_of(layout, [first, dict(reversed(first.items()))], tmp_path)
    rows = load_dataset(path, low=-1.0, high=1.0, **WORDS).transitions
    assert rows.obs.tolist() == [[1.0, 100.0]] * 2
    assert rows.next_obs.tolist() == [[2.0, 200.0]] * 2
    np.testing.assert_allclose(rows.action, [[0.1, 0.9]] * 2, atol=1e-6)
    assert rows.reward.tolist() == [7.0, 7.0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("first", "second", "options", "field"),
    [
        (["at_x", "at_y", "action"], ["at_x", "at_z", "action"], {"obs": "at_*"}, "obs"),
        (["q_0", "q_1", "action"], ["q_1", "q_2", "action"], {"obs": "q_*"}, "obs"),
        (["obs_0", "obs_1", "action"], ["obs_1", "obs_2", "action"], {}, "obs"),
        (["obs", "u_a", "u_b"], ["obs", "u_a", "u_b", "u_c"], {"action": "u_*"}, "action"),
        (["obs", "action", "reward"], ["obs", "action", "rewards"], {}, "reward"),
        (["obs", "action"], ["obs", "action", "terminated"], {}, "terminated"),
        (["obs", "action", "truncated"], ["obs", "action"], {}, "truncated"),
        (["obs", "action", "is_last"], ["obs", "action"], {}, "is_last"),
    ],
)
def test_other_columns_in_a_later_file_are_refused(
    layout: str,
    first: list[str],
    second: list[str],
    options: dict[str, Any],
    field: str,
    tmp_path: Path,
) -> None:
    """One number would stand where another belongs, or nowhere."""
    episodes = [{n: [0.0, 1.0] for n in names} for names in (first, second)]
    path = episodes_of(layout, episodes, tmp_path)
    name = "Episode '1'" if "groups" in layout else f"run_1.{layout}"
    with pytest.raises(DataError, match=rf"{name}: `{field}` is of other columns than in .*0"):
        load_dataset(path, low=-1.0, high=1.0, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_later_file_that_lacks_a_column_is_named(layout: str, tmp_path: Path) -> None:
    episodes = [{n: [0.0] for n in names} for names in (["x", "action"], ["action"])]
    path = episodes_of(layout, episodes, tmp_path)
    name = "Episode '1'" if "groups" in layout else f"run_1.{layout}"
    with pytest.raises(DataError, match=f"{name}: `obs` names a column that is not there: got 'x'"):
        load_dataset(path, obs="x", low=-1.0, high=1.0)


SEVERAL = [EPISODES[:1], EPISODES[1:]]  # by file; the first of the two in one was cut


def several(layout: str, folder: Path, ends: bool = False) -> Path:
    """Writes two files, or folders of one file, the first of which holds two episodes."""
    files = []
    for episodes in SEVERAL:
        rows = table(episodes)
        if ends:
            del rows["run"]
            rows["episode_ends"] = np.cumsum([len(episode["action"]) for episode in episodes])
        files.append(rows)
    return episodes_of(layout, files, folder)


@pytest.mark.parametrize(
    ("layout", "ends"), [*((n, False) for n in LAYOUTS), *((n, True) for n in LAYOUTS[1:])]
)
def test_a_file_of_a_folder_may_hold_several_episodes(
    layout: str, ends: bool, tmp_path: Path
) -> None:
    """They were glued together: the first state of one followed the last one of another."""
    options = OF_TABLE | {"episode": None if ends else "run"}
    got = load_dataset(several(layout, tmp_path, ends), **options)
    assert_equal(got, OfflineDataset.from_arrays(**flat(EPISODES, final=False), **BOX))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [None, "episode_id"])
def test_names_of_numbers_of_episodes_are_known_in_a_folder(
    layout: str, name: str | None, tmp_path: Path
) -> None:
    rows = {"episode_id": [3.0, 3, 1, 1], "obs": [0.0, 1, 5, 6], "action": [0.0] * 4}
    path = episodes_of(layout, [rows, rows], tmp_path)
    dataset = load_dataset(path, episode=name, **{"low": -1.0, "high": 1.0})
    assert dataset.transitions.next_obs.ravel().tolist() == [1.0, 6.0] * 2
    assert dataset.truncated.all()
    whole = load_dataset(path, episode=False, **{"low": -1.0, "high": 1.0})
    assert whole.transitions.next_obs.ravel().tolist() == [1.0, 5.0, 6.0] * 2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("ids", "match"),
    [
        ([0.0, 1, 0, 1], "`episode` is not in order: got 0"),
        ([0.0, 0, np.nan, 1], "`episode` has no number of the episode: got nan at row 2"),
    ],
)
def test_a_file_whose_episodes_cannot_be_told_apart_is_named(
    layout: str, ids: list[float], match: str, tmp_path: Path
) -> None:
    rows = {"obs": [0.0, 1, 5, 6], "action": [0.0] * 4}
    path = episodes_of(layout, [rows | {"episode": [0.0] * 4}, rows | {"episode": ids}], tmp_path)
    name = "Episode '1'" if "groups" in layout else f"run_1.{layout}"
    with pytest.raises(DataError, match=f"{name}: {match}"):
        load_dataset(path, low=-1.0, high=1.0)


@pytest.mark.parametrize("ids", [5, [5], [5] * 4, [5] * 5])
def test_an_observation_after_the_last_action_needs_one_episode(ids: Any, tmp_path: Path) -> None:
    rows = {"obs": np.arange(5.0), "action": np.zeros(4)}
    np.savez(tmp_path / "0.npz", **rows, episode=np.array(ids))
    assert len(load_npz(tmp_path, low=-1.0, high=1.0)) == 4
    several = np.array([0, 0, 1, 1])
    np.savez(tmp_path / "1.npz", **rows, episode=several)
    for match in (
        r"1.npz: `obs` has the wrong shape: got \(5,\) with 2 episodes in 4 rows",
        r"1.npz: `episode_ends` does not fit: got 5 as its last",
    ):
        with pytest.raises(DataError, match=match):
            load_npz(tmp_path, low=-1.0, high=1.0)
        np.savez(tmp_path / "0.npz", **rows)
        np.savez(tmp_path / "1.npz", **rows, episode_ends=np.array([2, 5]))


@pytest.mark.parametrize("load", [load_dataset, load_csv, load_npz], ids=lambda load: load.__name__)
@pytest.mark.parametrize("ending", [".csv", ".CSV", ".Tsv", ".npz", ".NPZ"])
def test_an_ending_in_capitals_is_the_same_ending(
    load: Loader, ending: str, tmp_path: Path
) -> None:
    kind = "npz" if ending.lower() == ".npz" else "csv"
    if load in (load_csv, load_npz) and not load.__name__.endswith(kind):
        return
    folder = tmp_path / "runs"
    folder.mkdir()
    between = "\t" if ending == ".Tsv" else ","
    for i, own in enumerate((ending, ending.lower())):
        lines = [between.join(["obs", "action"]), *(between.join([f"{n}", "0"]) for n in range(5))]
        if kind == "npz":
            with open(folder / f"run_{i}{own}", "wb") as file:
                np.savez(file, obs=np.zeros((5, 1)), action=np.zeros((5, 1)))
        else:
            (folder / f"run_{i}{own}").write_text("\n".join(lines))
    box = {"low": -1.0, "high": 1.0}
    assert len(load(folder, **box)) == 8
    assert len(load(folder / f"run_0{ending}", episode=False, **box)) == 4


@pytest.mark.parametrize("other", ["a.NPZ", "a.h5", "A.HDF5"])
def test_a_folder_of_two_kinds_is_refused_with_both_counts(other: str, tmp_path: Path) -> None:
    text(tmp_path, "obs,action\n0,0\n1,0\n", "0.csv")
    text(tmp_path, "obs,action\n0,0\n1,0\n", "1.CSV")
    (tmp_path / other).write_bytes(b"")
    with pytest.raises(DataError, match=r"several kinds: got (2 of csv|1 of npz) and .*kind="):
        load_dataset(tmp_path, low=-1.0, high=1.0)
    assert len(load_dataset(tmp_path, kind="csv", low=-1.0, high=1.0)) == 2


@pytest.mark.parametrize("ids", [[0, 0, np.nan, 1, 1], [0, 0, np.nan, np.nan, 1], [np.nan] * 5])
@pytest.mark.parametrize("kind", ["npz", "csv", "lerobot"])
def test_a_row_without_the_number_of_its_episode_is_named(
    kind: str, ids: list[float], tmp_path: Path
) -> None:
    row, options, column = int(np.argmax(np.isnan(ids))), {"episode": "run"}, "run"
    if kind == "npz":
        path = npz(tmp_path, obs=np.zeros((5, 1)), action=np.zeros((5, 1)), run=np.array(ids))
    elif kind == "csv":
        path = text(
            tmp_path, "obs,action,run\n" + "".join(f"0,0,{i}\n" for i in ids).replace("nan", "")
        )
    else:
        path, options, column = info(tmp_path), {}, "episode_index"
        rows = pq.read_table(path / DATA)
        short = [None if np.isnan(i) else int(i) for i in ids][: rows.num_rows]
        short += [9] * (rows.num_rows - len(short))
        at = rows.column_names.index("episode_index")
        pq.write_table(
            rows.set_column(at, "episode_index", pa.array(short, pa.int64())), path / DATA
        )
    with pytest.raises(
        DataError, match=f"`{column}` has no number of the episode: got nan at row {row}"
    ):
        load_dataset(path, **BOX if kind == "lerobot" else {"low": -1.0, "high": 1.0}, **options)


# --- what is wrong: files and mappings, each with what it says


def damaged(path: Path, share: float = 0.6) -> Path:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


def npz(folder: Path, name: str = "a.npz", **arrays: Any) -> Path:
    np.savez(folder / name, **arrays)
    return folder / name


def text(folder: Path, content: str, name: str = "a.csv") -> Path:
    (folder / name).write_text(content)
    return folder / name


def hdf5(folder: Path, change: Callable[[Any], object]) -> Path:
    path = write_robomimic(folder / "a.hdf5", EPISODES)
    with h5py.File(path, "a") as file:
        change(file)
    return path


def info(folder: Path, **changes: Any) -> Path:
    root = write_lerobot(folder / "le", EPISODES, frames=make_frames())
    path = root / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return root


def features(folder: Path, **changes: Any) -> Path:
    root = info(folder)
    said = json.loads((root / "meta/info.json").read_text())["features"]
    path = root / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"features": said | changes}))
    return root


def replaced(root: Path, name: str, content: Any) -> Path:
    path = root / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(content, path)
    return root


def with_video(folder: Path, frames: np.ndarray, fps: int = 10) -> Path:
    root = info(folder)
    write_video(root / "videos" / KEY / "chunk-000" / "file-000.mp4", frames, fps=fps)
    return root


class Canary:
    """Unpickling it would raise what no loader does."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('executed')",))


DATA = "data/chunk-000/file-000.parquet"
ROWS = flat(EPISODES, final=False)
IDS = np.repeat([0, 1, 2], [4, 3, 5])
WRONG: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    # npz
    "npz that is cut short": (
        lambda p: damaged(npz(p, **ROWS)),
        {},
        "a.npz` cannot be read as npz",
    ),
    "npz that is no zip": (lambda p: text(p, "PK no", "a.npz"), {}, "got BadZipFile"),
    "npz with objects": (
        lambda p: npz(p, **ROWS | {"obs": np.array([Canary()] * 12, object)}),
        {},
        "`obs.npy` has the wrong dtype: got object.*never decoded",
    ),
    "npz without actions": (
        lambda p: npz(p, obs=ROWS["obs"], torque=ROWS["action"]),
        {},
        r"`action` is not found: got the columns \['obs', 'torque'\].*Say which it is",
    ),
    "a name that is not there": (
        lambda p: npz(p, **ROWS),
        {"obs": "state"},
        r"`obs` names a column that is not there: got 'state', expected some of \['action'",
    ),
    "a mapping that is no name": (
        lambda p: npz(p, **ROWS),
        {"obs": 3},
        "`obs` is no name of a column: got 3",
    ),
    "an option that is none": (
        lambda p: npz(p, **ROWS),
        {"observation": "obs"},
        "An option is none of its loader's: got .*observation.*those of load_npz",
    ),
    "rows of another number": (
        lambda p: npz(p, **ROWS | {"reward": np.zeros(3)}),
        {},
        r"`reward` has the wrong shape: got \(3,\), expected as many rows",
    ),
    "ends that nothing shows": (
        lambda p: npz(p, obs=ROWS["obs"], action=ROWS["action"]),
        {},
        "Nothing shows where an episode ends.*episode=False",
    ),
    "ends that do not fit": (
        lambda p: npz(p, obs=ROWS["obs"], action=ROWS["action"], episode_ends=np.array([4, 99])),
        {},
        "`episode_ends` does not fit: got 99 as its last of 2.*up to 12",
    ),
    "more ends than rows": (  # refused before they are read: they take 16 times their bytes
        lambda p: npz(
            p, obs=ROWS["obs"], action=ROWS["action"], episode_ends=np.zeros(99, np.int8)
        ),
        {},
        "`episode_ends` does not fit: got 99 ends, expected at most 12",
    ),
    "episodes of long names": (
        lambda p: npz(p, obs=ROWS["obs"], action=ROWS["action"], episode=IDS.astype("S300")),
        {},
        r"`episode` has names that are too long: got \|S300",
    ),
    "ends that are no rows": (
        lambda p: npz(p, obs=ROWS["obs"], action=ROWS["action"], episode_ends=np.array([4.5])),
        {},
        "`episode_ends` is no list of rows: got float64",
    ),
    "an episode in two places": (
        lambda p: npz(p, obs=ROWS["obs"], action=ROWS["action"], episode=IDS[::-1] % 2),
        {},
        "`episode` is not in order: got 0 again at row 8.*Sort them",
    ),
    "an episode of a folder that is damaged": (
        lambda p: (npz(p, "0.npz", **EPISODES[0]), damaged(npz(p, "1.npz", **EPISODES[1])), p)[2],
        {},
        r"1.npz` cannot be read as npz",
    ),
    "next observations of fewer arrays": (
        lambda p: npz(p, **ROWS, more=np.zeros((4, 1))),
        {"obs": ["obs", "more"], "next_obs": ["obs"]},
        r"`next_obs` is of other arrays than `obs`: got \['obs'\], expected 2, one for each of",
    ),
    "several columns of one episode": (
        lambda p: text(p, "obs,action,run,part\n1,0,0,0\n1,0,0,1\n"),
        {"episode": ["run", "part"]},
        r"`episode` has the wrong shape: got \(2, 2\), expected one number per row",
    ),
    "an episode of a folder that does not fit": (
        lambda p: (
            npz(p, "0.npz", **EPISODES[0]),
            npz(p, "1.npz", **EPISODES[1] | {"obs": np.zeros((9, 3))}),
            p,
        )[2],
        {},
        "1.npz: `obs` has the wrong length: got 9 rows, expected 3 or 4 with 3 actions",
    ),
    "no bounds": (
        lambda p: npz(p, **ROWS),
        {"low": None, "high": None},
        "Action dimension 0 is unbounded.*Pass low= and high=, or unbounded='data'",
    ),
    "bounds of another shape": (lambda p: npz(p, **ROWS), {"low": [-1.0] * 3}, "wrong shape"),
    "bounds that the data leaves": (
        lambda p: npz(p, **ROWS),
        {"high": -0.9},
        "`action` lies outside the Box.*out_of_bounds='clip'",
    ),
    # CSV
    "CSV without a first line": (
        lambda p: text(p, ""),
        {},
        "has no usable first line: got 0 names",
    ),
    "CSV with equal names": (
        lambda p: text(p, "a,a\n1,2\n"),
        {"obs": "a", "action": "a"},
        r"of which \['a'\] stand there twice",
    ),
    "CSV with rows of another length": (
        lambda p: text(p, "obs,action\n1,0\n1,2,3\n"),
        {"episode": False},
        "cannot be read as CSV: got ArrowInvalid.*Expected 2 columns, got 3",
    ),
    "CSV with words": (
        lambda p: text(p, "obs,action\n1,0\nleft,0\n"),
        {"episode": False},
        "Column 'obs' holds no numbers: got string, e.g. '1' at row 0",
    ),
    "CSV with a gap": (
        lambda p: text(p, "obs,action\n1,0\n,0\n2,0\n"),
        {"episode": False},
        "`obs` is not finite.*got nan at row 1",
    ),
    "CSV with other separators": (
        lambda p: text(p, "obs;action\n1;0\n"),
        {},
        r"`obs` is not found: got the columns \['obs;action'\]",
    ),
    "CSV that is binary": (
        lambda p: replaced(p, "a.csv", b"\xff\xfe\x00") / "a.csv",
        {},
        "cannot be read as CSV: got UnicodeDecodeError",
    ),
    "CSV without rows": (lambda p: text(p, "obs,action\n"), {"episode": False}, "is empty: got 0"),
    "CSV of a first line alone": (lambda p: text(p, "obs,action,episode\n"), {}, "is empty: got 0"),
    # HDF5
    "HDF5 that is cut short": (lambda p: damaged(hdf5(p, bool)), {}, "cannot be read as HDF5"),
    "HDF5 of neither layout": (
        lambda p: hdf5(p, lambda f: f.move("data", "demos")),
        {},
        r"of no known kind: got the HDF5 file .* with \['demos', 'mask'\], expected one of minari",
    ),
    "a demonstration without actions": (
        lambda p: hdf5(p, lambda f: f.__delitem__("data/demo_1/actions")),
        {},
        "for robomimic.*demo_1: `actions` is missing",
    ),
    "a demonstration without a key": (
        lambda p: hdf5(p, lambda f: f.__delitem__("data/demo_2/obs/object")),
        {},
        r"demo_2: `obs` lacks keys: got \['robot0_eef_pos'\], expected \['object'\] too",
    ),
    "a key that is not there": (
        lambda p: hdf5(p, bool),
        {"obs_keys": ["eef"]},
        "The observations of demo_0 are not there",
    ),
    "a list that is not there": (
        lambda p: hdf5(p, bool),
        {"filter_key": "test"},
        r"`filter_key` is not there: got 'test', expected one of \['train', 'valid'\]",
    ),
    "a demonstration with NaN": (
        lambda p: hdf5(p, lambda f: f["data/demo_1/actions"].__setitem__((2, 1), np.nan)),
        {},
        "demo_1: `action` is not finite.*got nan at row 2, dimension 1",
    ),
    "a demonstration that is a link": (
        lambda p: hdf5(
            p, lambda f: f.__setitem__("data/demo_3", h5py.ExternalLink("/etc/passwd", "/"))
        ),
        {},
        "`data/demo_3` is not stored here: got a soft or external link",
    ),
    "a demonstration that is a dataset": (
        lambda p: hdf5(
            p,
            lambda f: (
                f.__delitem__("data/demo_0"),
                f.create_dataset("data/demo_0", (10**9,), "f8", chunks=(100,)),
            ),
        ),
        {},
        "The observations of demo_0 are not there: got no `obs`",
    ),
    "lists that are a dataset": (
        lambda p: hdf5(p, lambda f: (f.__delitem__("mask"), f.__setitem__("mask", [1.0]))),
        {"filter_key": "train"},
        r"`filter_key` is not there: got 'train', expected one of \[\]",
    ),
    "lists of numbers": (
        lambda p: hdf5(
            p, lambda f: (f.__delitem__("mask/train"), f.__setitem__("mask/train", [2**62]))
        ),
        {"filter_key": "train"},
        "`mask/train` is no list of names: got int64, expected strings",
    ),
    "a demonstration of objects": (
        lambda p: hdf5(
            p,
            lambda f: (
                f.__delitem__("data/demo_0/rewards"),
                f["data/demo_0"].create_dataset(
                    "rewards", (4,), dtype=h5py.special_dtype(vlen=float)
                ),
            ),
        ),
        {},
        "`data/demo_0/rewards` has the wrong dtype: got elements of any length",
    ),
    # LeRobot
    "LeRobot of version 2": (
        lambda p: info(p, codebase_version="v2.1"),
        {},
        "for lerobot.*got v2.1, expected v3. Convert it",
    ),
    "LeRobot with broken JSON": (
        lambda p: replaced(info(p), "meta/info.json", b"{"),
        {},
        "got JSONDecodeError",
    ),
    "LeRobot without rows": (
        lambda p: (
            ((r := info(p)) / DATA).unlink() or (r / DATA.replace("000.p", "001.p")).unlink() or r
        ),
        {},
        "holds no rows: got 0 files",
    ),
    "Parquet that is cut short": (
        lambda p: (damaged((r := info(p)) / DATA), r)[1],
        {},
        "cannot be read as Parquet: got ArrowInvalid",
    ),
    "Parquet without a column": (
        lambda p: replaced(info(p), DATA, pa.table({"episode_index": [0], "action": [[0.0, 0.0]]})),
        {},
        r"lacks columns: got \['episode_index', 'action'\], expected \['observation.state'",
    ),
    "Parquet with rows of another length": (
        lambda p: features(p, action={"dtype": "float32", "shape": [3]}),
        {},
        r"`action` has rows of another length.*expected \(3,\) in each",
    ),
    "a feature that is not there": (
        lambda p: info(p),
        {"obs": "observation.velocity"},
        "`obs` names a column that is not there: got 'observation.velocity'",
    ),
    "a feature without a shape": (
        lambda p: features(p, action={"dtype": "float32", "shape": "2"}),
        {},
        "`action` has no shape: got '2' in meta/info.json",
    ),
    "a feature of more axes than arrays have": (
        lambda p: features(p, action={"dtype": "float32", "shape": [1] * 70}),
        {},
        "`action` has no shape: got .* expected a list of at most 32 integers",
    ),
    "a video that leads out of its folder": (
        lambda p: features(p, **{"../../top": {"dtype": "video", "shape": [16, 24, 3]}}),
        {"obs": "../../top"},
        r"`../../top` is no image that is read",
    ),
    "a video that is none": (
        lambda p: replaced(info(p), f"videos/{KEY}/chunk-000/file-000.mp4", b"#EXTM3U\nhttp://a"),
        {"obs": KEY},
        "cannot be decoded: got InvalidDataError",
    ),
    "a video with too few frames": (
        lambda p: with_video(p, make_frames()[0]),
        {"obs": KEY},
        "has too few frames: got none at 0.400 s",
    ),
    "a video of another size": (
        lambda p: with_video(p, np.zeros((7, 32, 24, 3), np.uint8)),
        {"obs": KEY},
        "frames of another size: got 32 x 24, expected 16 x 24",
    ),
    "a video of another rate": (
        lambda p: with_video(p, np.zeros((7, 16, 24, 3), np.uint8), fps=13),
        {"obs": KEY},
        "has frames at odd times",
    ),
    # what is of no kind
    "a pickle": (
        lambda p: replaced(p, "a.pkl", pickle.dumps([Canary()])) / "a.pkl",
        {},
        "of no known kind: got the file .*Pickles are never read",
    ),
    "a folder of something else": (
        lambda p: text(p, "", "notes.txt").parent,
        {},
        r"of no known kind: got the folder .* with \['notes.txt'\]",
    ),
    "a path where nothing is": (lambda p: p / "a.zarr", {}, "where there is nothing"),
    "an id of nothing": (lambda p: "mine/none-v0", {}, "for minari.*not on this machine"),
    "a dict of other names": (lambda p: {"states": 1}, {}, r"got a dict with \['states'\]"),
    "a number": (lambda p: 3, {}, "got a int"),
    "the name of a file as bytes": (lambda p: b"a.csv", {}, "got a bytes.*as str or Path"),
    "a file that is open": (lambda p: io.StringIO("obs,action"), {}, "got a StringIO.*by its name"),
    "a kind that is unknown": (lambda p: p, {"kind": "zarr"}, "`kind` is unknown: got 'zarr'"),
    "no episode": (lambda p: [], {}, "There is no episode: got 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_a_typed_error_that_says_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    make, options, message = WRONG[name]
    source = make(tmp_path)
    of_file = isinstance(source, Path) and source.suffix in (".hdf5",)
    box = {} if source == "mine/none-v0" or of_file else BOX
    with pytest.raises(GTPError, match=message) as caught:
        load_dataset(source, **box | options)
    assert isinstance(caught.value, DataError | UnsupportedSpaceError | EmptyDatasetError)
    assert "got " in str(caught.value)
    assert "expected" in str(caught.value)


def test_the_table_has_forty_rows_and_more() -> None:
    assert len(WRONG) >= 40


# --- memory and time


def test_a_parquet_file_that_announces_too_much_is_refused(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "le", EPISODES)
    rows = 30_000_000  # of equal values: some kilobytes on the disk
    numbers = pa.array(np.zeros(rows, np.int8)).dictionary_encode()
    pq.write_table(pa.table({"episode_index": numbers}), root / DATA, compression="zstd")
    assert (root / DATA).stat().st_size < 150_000
    with pytest.raises(DataError, match="declares more than it can hold"):
        load_lerobot(root, **BOX)


def test_a_zip_that_packs_too_well_is_refused_before_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gtp_datasets._hdf5.SLACK_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "0.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("obs.npy", "action.npy"):
            with archive.open(name, "w") as file:
                shape = {"descr": "|u1", "fortran_order": False, "shape": (2_000_000, 1)}
                np.lib.format.write_array_header_1_0(file, shape)
                file.write(bytes(2_000_000))
    with pytest.raises(DataError, match="declares more than it can hold"):
        load_npz(tmp_path, **BOX)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_unpacks_to_more_than_it_announces_is_refused(
    tmp_path: Path, method: int
) -> None:
    path, rows = tmp_path / "0.npz", io.BytesIO()
    np.save(rows, np.zeros((4, 1), np.float32))
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in ("obs.npy", "action.npy"):
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(rows.getvalue())
                for _ in range(150 if name == "obs.npy" else 0):
                    file.write(bytes(2**20))
    data = bytearray(path.read_bytes())  # its table of contents speaks of the array alone
    struct.pack_into("<L", data, data.index(b"PK\x01\x02") + 24, len(rows.getvalue()))
    path.write_bytes(data)
    with peak_memory() as peak, pytest.raises(DataError, match="packed in an unusual way"):
        load_npz(tmp_path, **BOX)
    assert peak[0] < SLACK


def test_a_header_of_an_array_is_read_as_far_as_numpy_writes_one(tmp_path: Path) -> None:
    length = 150 * 2**20
    with zipfile.ZipFile(tmp_path / "0.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("obs.npy", "action.npy"):
            with archive.open(name, "w") as file:
                file.write(b"\x93NUMPY\x02\x00" + length.to_bytes(4, "little"))
                for _ in range(150 if name == "obs.npy" else 0):
                    file.write(b" " * 2**20)
    with peak_memory() as peak, pytest.raises(DataError, match="cannot be read as npz"):
        load_npz(tmp_path, **BOX)
    assert peak[0] < SLACK


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_frame_that_grows_within_a_video_is_not_decoded(tmp_path: Path, codec: str) -> None:
    """Of 8000 x 8000 pixels, 100 MB, in a small file whose beginning says 24 x 16."""
    root = info(tmp_path)
    path = root / "videos" / KEY / "chunk-000" / "file-000.mp4"
    write_growing_video(path, make_frames()[0], 8000, codec)
    assert path.stat().st_size < 1_000_000
    with peak_memory() as peak, pytest.raises(DataError, match="cannot be decoded"):
        load_lerobot(root, obs=[KEY], **BOX)
    assert peak[0] < SLACK


def box(name: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4, "big") + name + content


def counted(name: bytes, *numbers: int) -> bytes:
    return box(name, b"".join(number.to_bytes(4, "big") for number in numbers) + bytes(8))


def test_samples_that_a_video_does_not_hold_are_not_indexed(tmp_path: Path) -> None:
    """Thirty million of one size: 6 kB, and more than 2 GB in FFmpeg's index."""
    root = with_video(tmp_path, make_frames()[0])
    path, count = root / "videos" / KEY / "chunk-000" / "file-000.mp4", 30_000_000
    data = bytearray(path.read_bytes())
    for name, numbers in {
        b"stsz": (0, 1, count),
        b"stts": (0, 1, count, 512),
        b"stsc": (0, 1, 1, count, 1),
    }.items():
        at = data.index(name) + 4
        data[at : at + 4 * len(numbers)] = b"".join(n.to_bytes(4, "big") for n in numbers)
    path.write_bytes(data)
    with peak_memory() as peak, pytest.raises(DataError, match="30000000 samples in"):
        load_lerobot(root, obs=[KEY], **BOX)
    assert peak[0] < SLACK


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (box(b"moof", counted(b"trun", 0, 10**6)), "1000000 samples in"),
        (box(b"free", counted(b"stsz", 0, 1, 10**6)), "1000000 samples in"),
        (box(b"moov", counted(b"stsz", 0, 1, 40)) * 2, "80 samples in 72 bytes"),
        (
            box(b"moov", counted(b"stsz", 0, 1, 40) + counted(b"elst", 0, 9)),
            "40 samples, shown in 9 parts, in 60 bytes",
        ),
        (box(b"moov", box(b"cmov", box(b"dcom", b"zlib"))), "an index that is packed"),
        (box(b"free", bytes(2**20 - 10) + counted(b"stsz", 0, 1, 2**22)), "4194304 samples in"),
        (b"\0\0\0\4free" + bytes(16), "a box of 4 bytes"),
        (box(b"free", b"") * 70_000, "more than 65536 boxes"),
    ],
    ids=range(8),
)
def test_what_makes_an_index_larger_than_its_file_is_refused(content: bytes, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        check_index(io.BytesIO(content))


@pytest.mark.parametrize("options", [{}, {"movflags": "frag_keyframe+empty_moov"}], ids=str)
def test_a_video_however_it_is_written_has_the_samples_that_it_says(
    options: dict[str, str], tmp_path: Path
) -> None:
    """The smallest frames: of one colour, in one long group."""
    with av.open(str(tmp_path / "a.mp4"), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        for image in [frame] * 300 + [None]:
            container.mux(stream.encode(image))
    with open(tmp_path / "a.mp4", "rb") as file:
        check_index(file)
        assert file.tell() == 0
    # Samples are no boxes: names within them count for nothing.
    check_index(io.BytesIO(box(b"mdat", counted(b"stsz", 0, 1, 10**6))))
    check_index(io.BytesIO(b"\0\0\0\0mdat" + counted(b"stsz", 0, 1, 10**6)))
    large = (1).to_bytes(4, "big") + b"mdat" + (60).to_bytes(8, "big") + bytes(44)
    with pytest.raises(ValueError, match="1000000 samples"):
        check_index(io.BytesIO(large + counted(b"stsz", 0, 1, 10**6)))


def test_a_header_of_thousands_of_signs_is_an_error_with_words(tmp_path: Path) -> None:
    """Python's parser raises MemoryError, which is what a lack of memory is."""
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"-" * 9000 + b"1, 2), }\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("obs", "action"):
            size = len(head).to_bytes(2, "little")
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + size + head + bytes(8))
    with pytest.raises(DataError, match="has a header that is none"):
        load_npz(tmp_path / "a.npz", **BOX)


@pytest.mark.parametrize("rows", [-1, -20_000, True])
def test_a_shape_that_is_none_is_refused(rows: int, tmp_path: Path) -> None:
    # NumPy takes -1 for "what is left", and what is made of -1 rows would count for nothing.
    n, path = 2_000_000, tmp_path / "a.npz"
    fields = {"obs": ("|u1", 30), "action": ("|u1", 1), "terminated": ("|b1", 1)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, (kind, width) in fields.items():
            text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({rows}, {width}), }}\n"
            head = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
            file.writestr(f"{name}.npy", head + bytes([1]) * (n * width))
    with peak_memory() as peak, pytest.raises(DataError, match="has a shape that is none"):
        load_npz(path, low=-1.0, high=2.0)
    assert peak[0] < SLACK


def test_a_first_line_of_a_megabyte_takes_no_time(tmp_path: Path) -> None:
    path, start = tmp_path / "a.csv", time.process_time()
    for line, match in (
        ("," * 2**20, "no usable first line"),
        ("," * 500_000, "no usable first line: got 500001 names"),
        (f"obs_{'1' * 5_000},action_0,done", "numbered columns that do not follow each other"),
    ):
        path.write_text(f"{line}\n1,0,1\n")
        with pytest.raises(DataError, match=match):
            load_csv(path, low=-1.0, high=1.0)
    digits = "1" * 100_000
    path.write_text(f"a_{digits}x,a_{digits},action,terminated\n1,2,0,1\n")
    dataset = load_csv(path, obs="a_*", low=-1.0, high=1.0)
    assert dataset.transitions.obs.tolist() == [[1.0, 2.0]]
    assert time.process_time() - start < 20  # what is quadratic takes minutes


@pytest.mark.parametrize("load", [load_dataset, load_npz, load_csv, load_lerobot])
@pytest.mark.parametrize("name", ["x" * 5_000, "a\0b"])
def test_what_is_no_name_of_a_file_is_told(load: Any, name: str) -> None:
    with pytest.raises(DataError, match="got"):
        load(name, **BOX)


def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(npz(tmp_path, **ROWS), "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("action.npy", archive.read("action.npy"))
    with pytest.raises(DataError, match="two fields of one name"):
        load_npz(tmp_path / "a.npz", **BOX)


def test_the_pages_of_a_parquet_file_are_counted_and_not_their_sums(tmp_path: Path) -> None:
    root, rows = write_lerobot(tmp_path / "le", EPISODES, per_file=len(EPISODES)), 30_000_000
    table = pq.read_table(root / DATA).slice(0, 2)
    long = pa.ListArray.from_arrays(pa.array([0, rows, rows + 1], pa.int32()), zeros(rows + 1))
    table = table.set_column(table.column_names.index("action"), "action", long)
    pq.write_table(
        table, root / DATA, compression="zstd", write_batch_size=rows + 1, data_page_size=2**30
    )
    data = (root / DATA).read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    said = varint(2 * (rows + 1))
    assert said in data[start:]
    less = bytes([4 | 128, *[128] * (len(said) - 2), 0])  # 2, in as many bytes
    (root / DATA).write_bytes(data[:start] + data[start:].replace(said, less))
    assert max(column_counts(root / DATA)) < 100
    with peak_memory() as peak, pytest.raises(DataError, match="declares more than it can hold"):
        load_lerobot(root, **BOX)
    assert peak[0] < SLACK


def thrift(*fields: tuple[int, int, bytes]) -> bytes:
    """Returns a struct in Thrift's compact protocol: of number, type and bytes of each field."""
    packed, last = b"", 0
    for number, kind, value in fields:
        packed, last = packed + bytes([(number - last) << 4 | kind]) + value, number
    return packed + b"\0"


def test_pages_of_a_few_bytes_take_no_minutes() -> None:
    def page(*inside: tuple[int, int, bytes]) -> bytes:
        return thrift((1, 5, b"\0"), (2, 5, b"\0"), (3, 5, b"\0"), *inside)

    data = thrift((1, 5, b"\0"), (2, 5, b"\0"), (3, 5, b"\0"), (4, 5, b"\0"))
    with pytest.raises(ValueError, match="does not say what is in it"):
        pages_of(io.BytesIO(page() * 9), 0, 9 * len(page()), 10)
    data = page((5, 12, data))
    assert pages_of(io.BytesIO(data * 1000), 0, 1000 * len(data), 1000).pages == 1000
    with pytest.raises(ValueError, match="more than 999 pages"):
        pages_of(io.BytesIO(data * 1000), 0, 1000 * len(data), 999)


@pytest.mark.parametrize("rows", [0, 1, 7, 50])
@pytest.mark.parametrize("part", ["data", "meta/episodes"])
def test_a_number_of_rows_that_is_not_theirs_is_refused(
    tmp_path: Path, part: str, rows: int
) -> None:
    frames, many = make_frames(), len(EPISODES)
    root = write_lerobot(tmp_path / "le", EPISODES, frames=frames, per_file=many)
    path = next((root / part).rglob("*.parquet"))
    data, there = path.read_bytes(), pq.ParquetFile(path).metadata.num_rows
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    said, refused = varint(2 * there), 0
    new = varint(2 * rows) if rows else b"\0"
    for at in range(start, len(data) - 8):
        if data[at : at + 1 + len(said)] != b"\x16" + said:  # of the file, or of a row group
            continue
        footer = data[start : at + 1] + new + data[at + 1 + len(said) : -8]
        path.write_bytes(data[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
        try:
            load_lerobot(root, obs=[KEY], action="action", **BOX)
        except DataError as error:
            refused += "contradicts itself" in str(error)
    assert refused
    path.write_bytes(data)
    assert len(load_lerobot(root, obs=[KEY], action="action", **BOX))


@pytest.mark.parametrize("nested", [False, True])
def test_rows_without_values_are_refused(tmp_path: Path, nested: bool) -> None:
    """Room is made for as many rows as a group says that it has: 1 kB took half a gigabyte."""
    root = write_lerobot(tmp_path / "le", EPISODES, per_file=len(EPISODES))
    path = root / DATA
    if not nested:  # columns of lists, of which a row may have none, are not asked for
        table = pq.read_table(path)
        keep = [n for n in table.column_names if not pa.types.is_nested(table[n].type)]
        pq.write_table(table.select(keep), path)
    data, rows = path.read_bytes(), pq.ParquetFile(path).metadata.num_rows
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    said = b"\x16" + varint(2 * rows)
    footer = data[start:-8].replace(said, b"\x16" + varint(2 * 2_000_000_000))
    path.write_bytes(data[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    meta = pq.ParquetFile(path).metadata
    assert meta.num_rows == meta.row_group(0).num_rows == 2_000_000_000
    with peak_memory() as peak, pytest.raises(DataError, match="contradicts itself"):
        ParquetFile(path, pq.ParquetFile(path).schema_arrow.names)
    assert peak[0] < SLACK


def test_row_groups_that_share_their_pages_are_refused(tmp_path: Path) -> None:
    """Each would have the headers of the same pages read once more."""
    root = write_lerobot(tmp_path / "le", EPISODES, per_file=len(EPISODES))
    number, words, structs = 5, 8, 12
    pages = thrift((1, number, b"\0"), (2, number, b"\0"), (3, number, b"\0")) * 1000
    length = varint(2 * len(pages))
    chunk = thrift(
        (1, number, varint(2)),
        (2, 9, bytes([1 << 4 | number, 0])),
        (3, 9, bytes([1 << 4 | words, 6]) + b"action"),
        (4, number, b"\0"),
        (5, 6, b"\0"),
        (6, 6, length),
        (7, 6, length),
        (9, 6, varint(8)),
    )
    column = thrift((2, 6, varint(8)), (3, structs, chunk))
    group = thrift((1, 9, bytes([1 << 4 | structs]) + column), (2, 6, b"\0"), (3, 6, b"\0"))
    top = thrift((4, words, b"\x06schema"), (5, number, varint(2)))
    leaf = thrift((1, number, varint(2)), (3, number, b"\0"), (4, words, b"\x06action"))
    footer = thrift(
        (1, number, varint(2)),
        (2, 9, bytes([2 << 4 | structs]) + top + leaf),
        (3, 6, b"\0"),
        (4, 9, bytes([15 << 4 | structs]) + varint(100) + group * 100),
    )
    size = len(footer).to_bytes(4, "little")
    (root / DATA).write_bytes(b"PAR1" + pages + footer + size + b"PAR1")
    with pytest.raises(DataError, match="columns in each other: got 700000 bytes of pages"):
        load_lerobot(root, **BOX)


@pytest.mark.parametrize(("kind", "depth"), [("list", 46), ("struct", 90)])
def test_what_stands_around_the_values_of_a_parquet_file_counts(
    kind: str, depth: int, tmp_path: Path
) -> None:
    """Lists within lists, one number in each: some kilobytes of file, an array per level."""
    root, rows = write_lerobot(tmp_path / "le", EPISODES[:1]), 3_000_000
    values: pa.Array = zeros(rows)
    for _ in range(depth):
        if kind == "list":
            starts = pa.array(np.arange(rows + 1, dtype=np.int32))
            values = pa.ListArray.from_arrays(starts, values)
        else:
            values = pa.StructArray.from_arrays([values], ["x"])
    whole = pa.ListArray.from_arrays(pa.array([0, rows, rows, rows, rows], pa.int32()), values)
    table = pq.read_table(root / DATA).drop_columns("action").append_column("action", whole)
    pq.write_table(table, root / DATA, compression="zstd", write_statistics=False)
    assert (root / DATA).stat().st_size < 30_000
    with peak_memory() as peak, pytest.raises(DataError, match="declares more than it can hold"):
        load_lerobot(root, **BOX)
    assert peak[0] < SLACK


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"data_page_version": "2.0", "compression": "gzip"},
        {"use_dictionary": False, "compression": "none"},
        {"data_page_size": 64, "write_batch_size": 3},
        {"data_page_size": 64, "write_batch_size": 3, "data_page_version": "2.0"},
        {"row_group_size": 5, "write_page_checksum": True, "write_page_index": True},
        {"write_statistics": False, "use_dictionary": False, "compression": "zstd"},
    ],
    ids=str,
)
def test_pages_are_found_however_a_file_is_written(tmp_path: Path, options: Any) -> None:
    words = [["a", None, "b" * 5000], [], None, ["c"]] * 30
    columns = {"n": np.arange(120.0), "s": words, "l": [[1.0, 2.0], []] * 60}
    pq.write_table(pa.table(columns), tmp_path / "a", **options)
    meta = pq.ParquetFile(tmp_path / "a").metadata
    for group in map(meta.row_group, range(meta.num_row_groups)):
        for part in map(group.column, range(group.num_columns)):
            start = part.dictionary_page_offset or part.data_page_offset
            with open(tmp_path / "a", "rb") as file:
                pages = pages_of(file, start, part.total_compressed_size, 1000)
            named = 4 if part.path_in_schema.startswith("s") else part.num_values
            most = part.num_values + (named if part.dictionary_page_offset else 0)
            assert part.num_values <= pages.values <= most
            assert 0 < pages.size < part.total_uncompressed_size


@given(data=st.binary(max_size=60))
def test_any_bytes_are_pages_or_a_typed_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert pages_of(io.BytesIO(data), 0, len(data), 99).size >= 0


def zeros(count: int) -> pa.Array:
    return pa.array(np.zeros(count, np.float32))


def varint(number: int) -> bytes:
    parts = [number >> shift & 127 | 128 for shift in range(0, number.bit_length(), 7)]
    return bytes([*parts[:-1], parts[-1] & 127])


def column_counts(path: Path) -> list[int]:
    group = pq.ParquetFile(path).metadata.row_group(0)
    return [group.column(i).num_values for i in range(group.num_columns)]


def test_words_where_numbers_belong_stand_in_the_memory_once(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "le", EPISODES, per_file=len(EPISODES))
    table = pq.read_table(root / DATA)
    words = pa.array(["x" * (900 * 1024)])
    said = pa.DictionaryArray.from_arrays(pa.array(np.zeros(300, np.int32)), words)
    rows = table.take(pa.array(np.zeros(300, np.int64)))
    rows = rows.set_column(rows.column_names.index("action"), "action", said)
    pq.write_table(rows, root / DATA, compression="zstd", store_schema=False)
    assert (root / DATA).stat().st_size < 20_000
    with peak_memory() as peak, pytest.raises(DataError, match="'action' holds no numbers"):
        load_lerobot(root, **BOX)
    assert peak[0] < SLACK


def test_one_image_in_many_rows_stands_in_the_memory_once(tmp_path: Path) -> None:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (5, 4)).save(file, format="PNG")
    image = file.getvalue() + bytes(2**19)  # Pillow stops at its end
    episodes = make_episodes((300,))
    root = write_lerobot(tmp_path / "le", episodes, images=[[image] * 300])
    pq.write_table(pq.read_table(root / DATA), root / DATA, compression="zstd")
    assert (root / DATA).stat().st_size < 40_000
    with peak_memory() as peak:
        assert len(load_lerobot(root, obs=[KEY], **BOX)) == 299
    assert peak[0] < SLACK


def test_words_that_are_made_of_others_are_refused(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "le", EPISODES, per_file=len(EPISODES))
    table = pq.read_table(root / DATA)
    words = pa.array(["x" * 1000] * len(table))
    table = table.set_column(table.column_names.index("action"), "action", words)
    packed = {"action": "DELTA_BYTE_ARRAY"}
    pq.write_table(table, root / DATA, use_dictionary=False, column_encoding=packed)
    with pytest.raises(DataError, match="'action' is packed in an unusual way"):
        load_lerobot(root, **BOX)


@pytest.mark.slow
def test_a_folder_of_many_episodes_takes_seconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    obs, action = rng.normal(size=(51, 17)).astype(np.float32), np.zeros((50, 6), np.float32)
    for i in range(200):
        np.savez(tmp_path / f"{i}.npz", obs=obs, action=action, reward=np.zeros(50))
    load_npz(tmp_path, **BOX)  # imports
    start = time.process_time()  # of this process alone, however busy the machine is
    dataset = load_npz(tmp_path, **BOX)
    seconds = time.process_time() - start
    assert len(dataset) == 10_000
    assert seconds < 4, f"10,000 episodes would take {50 * seconds:.1f} s"  # 0.3, alone


def test_nothing_is_imported_that_a_format_does_not_need(tmp_path: Path) -> None:
    npz(tmp_path, **ROWS)
    code = f"""
import sys
for name in ("h5py", "pyarrow", "av", "gymnasium", "minari", "PIL"):
    sys.modules[name] = None  # what an import finds that is not there
from gtp_datasets import load_dataset
print(load_dataset({str(tmp_path / "a.npz")!r}, low=-1, high=1).source)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "npz a.npz", done.stderr


@pytest.mark.parametrize(
    ("missing", "extra"), [("pyarrow", "csv"), ("pyarrow", "lerobot"), ("av", "lerobot")]
)
def test_what_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, extra: str
) -> None:
    path = write_csv(tmp_path / "a.csv", table()) if extra == "csv" else info(tmp_path)
    for name in (missing, "pyarrow.csv", "pyarrow.parquet")[: 1 if missing == "av" else 3]:
        monkeypatch.setitem(sys.modules, name, None)
    options = OF_TABLE if extra == "csv" else {"obs": KEY, **BOX}
    with pytest.raises(MissingDependencyError, match=rf"pip install .\.\[{extra}\]"):
        load_dataset(path, **options)


def test_a_name_where_there_is_nothing_and_a_list_of_paths_are_told(tmp_path: Path) -> None:
    for options in ({}, {"obs": "q"}):
        with pytest.raises(DataError, match="no file or folder of this name"):
            load_dataset("my_logs", **options)
    with pytest.raises(DataError, match=r"a list of paths, expected .* as the folder"):
        load_dataset([str(tmp_path / "a.npz"), str(tmp_path / "b.npz")])


@pytest.mark.parametrize("shape", [(6, 10, 2), (6, 2), (100, 2)])
def test_an_array_of_paths_is_not_the_number_of_an_episode(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    fields = {
        "obs": np.zeros((6, 2)),
        "action": np.zeros((6, 1)),
        "reward": np.zeros(6),
        "terminated": np.arange(6) == 2,
    }
    np.savez(tmp_path / "a.npz", **fields, trajectory=np.zeros(shape))
    assert len(load_npz(tmp_path / "a.npz", low=-1, high=1)) == 5
    np.savez(tmp_path / "b.npz", **fields, trajectory=[0, 0, 0, 1, 1, 1])
    assert len(load_npz(tmp_path / "b.npz", low=-1, high=1)) == 5
    with pytest.raises(DataError, match="trajectory"):  # who names it means it
        load_npz(tmp_path / "a.npz", low=-1, high=1, episode="trajectory")
