"""Every kind of data that is loaded is converted to the same numbers, by the same loaders."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict
from minari.data_collector import EpisodeBuffer

from gtp_datasets import convert, load_dataset
from gtp_policy import OfflineDataset
from gtp_policy.errors import DataError, EmptyDatasetError
from gtp_policy.shards import ShardWriter
from tests.adapters.writers import Episode, flat, make_episodes, write_lerobot, write_robomimic

Make = Callable[..., minari.MinariDataset]
BOX = {"low": -1.0, "high": 1.0}


def d4rl(path: Path, episodes: list[Episode]) -> Path:
    names = {
        "obs": "observations",
        "action": "actions",
        "reward": "rewards",
        "terminated": "terminals",
        "truncated": "timeouts",
        "next_obs": "next_observations",
    }
    with h5py.File(path, "w") as file:
        for name, column in flat(episodes, final=True).items():
            file[names[name]] = column
    return path


def ogbench(path: Path, episodes: list[Episode]) -> Path:
    columns = flat(episodes, final=True)
    np.savez(
        path,
        observations=columns["obs"],
        next_observations=columns["next_obs"],
        actions=columns["action"],
        rewards=columns["reward"],
        masks=1.0 - columns["terminated"],
        terminals=columns["truncated"] | columns["terminated"],
    )
    return path


def npz(path: Path, episodes: list[Episode]) -> Path:
    np.savez(path, **flat(episodes, final=True))
    return path


def npz_folder(path: Path, episodes: list[Episode]) -> Path:
    path.mkdir()
    for i, episode in enumerate(episodes):
        np.savez(path / f"{i}.npz", **episode)
    return path


def csv_folder(path: Path, episodes: list[Episode]) -> Path:
    path.mkdir()
    for i, episode in enumerate(episodes):
        rows = np.concatenate(
            [episode["obs"][:-1], episode["action"], episode["reward"][:, None]], 1
        )
        names = "obs_0,obs_1,obs_2,action_0,action_1,reward"
        np.savetxt(path / f"{i}.csv", rows, delimiter=",", header=names, comments="")
    return path


SOURCES: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "d4rl": (lambda p: d4rl(p / "a.hdf5", make_episodes()), {}),
    "d4rl, of the data": (
        lambda p: d4rl(p / "a.hdf5", make_episodes()),
        {"low": -np.inf, "high": np.inf, "unbounded": "data"},
    ),
    "robomimic": (lambda p: write_robomimic(p / "b.hdf5", make_episodes()), {}),
    "ogbench": (lambda p: ogbench(p / "c.npz", make_episodes()), {}),
    "npz": (lambda p: npz(p / "d.npz", make_episodes()), BOX),
    "folder of npz": (lambda p: npz_folder(p / "e", make_episodes()), BOX),
    "folder of csv": (lambda p: csv_folder(p / "f", make_episodes()), BOX),
    "lerobot": (lambda p: write_lerobot(p / "g", make_episodes()), {"action": "action", **BOX}),
    "a list": (lambda _: make_episodes(), BOX),
    "a list, of the data": (lambda _: make_episodes(), {"unbounded": "data"}),
}


def check_same(found: OfflineDataset, expected: OfflineDataset) -> None:
    assert "in files" in repr(found)
    assert repr(found).replace("in files, ", "") == repr(expected)
    for a, b in zip(found.rows(0, len(found)), expected.transitions, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    np.testing.assert_array_equal(found.terminated, expected.terminated)
    np.testing.assert_array_equal(found.truncated, expected.truncated)
    assert found.layout == expected.layout
    assert found.action_scaler == expected.action_scaler
    assert found.images == expected.images
    for a, b in zip(found.observation_statistics(), expected.observation_statistics(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", SOURCES)
def test_what_is_converted_is_what_is_loaded(tmp_path: Path, kind: str) -> None:
    write, options = SOURCES[kind]
    source = write(tmp_path)
    expected = load_dataset(source, **options)
    found = convert(source, tmp_path / "set", shard_bytes=150, **options)
    check_same(found, expected)
    check_same(OfflineDataset.memmap(tmp_path / "set"), expected)
    assert len(list((tmp_path / "set").glob("table-*.npy"))) > 1


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", [kind for kind in SOURCES if not kind.startswith("a list")])
def test_a_full_disk_is_no_fault_of_what_is_read(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, options = SOURCES[kind]
    source = write(tmp_path)

    def full(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ShardWriter, "add", full)
    with pytest.raises(OSError, match="No space left on device"):
        convert(source, tmp_path / "set", **options)


def test_a_dataset_and_episodes_one_at_a_time(tmp_path: Path) -> None:
    expected = load_dataset(make_episodes(), gamma=0.5, **BOX)
    check_same(convert(expected, tmp_path / "whole"), expected)
    stream = iter(make_episodes())
    check_same(convert(stream, tmp_path / "stream", gamma=0.5, **BOX), expected)


@pytest.mark.parametrize("wrong", [None, "error", "skip"])
def test_images_of_minari_go_to_files(tmp_path: Path, make_minari: Make, wrong: str | None) -> None:
    rng = np.random.default_rng(0)
    sizes = (4, 2, 3)  # of images from 32 x 32 on: Minari 0.5.3 does not read smaller ones it wrote
    buffers = [
        EpisodeBuffer(
            observations={
                "camera": rng.integers(0, 256, (n + 1, 32, 33, 3), dtype=np.uint8),
                "speed": rng.normal(size=(n + 1, 2)),
            },
            actions=np.full((n, 2), 9.0 if wrong and n == 2 else 0.5, np.float32),
            rewards=rng.normal(size=n),
            terminations=np.arange(n) == n - 1,
            truncations=np.zeros(n, bool),
        )
        for n in sizes
    ]
    space = Dict(
        camera=Box(0, 255, (32, 33, 3), np.uint8), speed=Box(-np.inf, np.inf, (2,), np.float64)
    )
    source = make_minari(*buffers, observation_space=space)
    options: dict[str, Any] = {"obs_keys": ["camera", "speed"]}
    if wrong == "error":
        with pytest.raises(DataError, match="Episode 1 of toy/set-v0: `action` lies outside"):
            convert(source, tmp_path / "set", **options)
        with pytest.raises(DataError, match="is incomplete"):
            OfflineDataset.memmap(tmp_path / "set")
        return
    if wrong:
        options["on_bad_episode"] = wrong
        with pytest.warns(UserWarning, match="1 of 3 episodes left out"):
            expected = load_dataset(source, **options)
        with pytest.warns(UserWarning, match="1 of 3 episodes left out"):
            found = convert(source, tmp_path / "set", shard_bytes=500, **options)
    else:
        expected = load_dataset(source, **options)
        found = convert(source, tmp_path / "set", shard_bytes=500, **options)
    check_same(found, expected)
    assert len(list((tmp_path / "set").glob("images0-*.npy"))) > 1


@pytest.mark.parametrize("kind", ["npz", "minari", "episodes"])
def test_too_many_parts_are_refused_before_a_row_is_written(
    kind: str, tmp_path: Path, make_minari: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {f"at_{i}": np.zeros((3, 1)) for i in range(40)}
    ended = {"action": np.zeros((3, 2)), "terminated": [0, 0, 1]}
    source: Any = [{"obs": parts, **ended}]
    if kind == "npz":
        source = tmp_path / "a.npz"
        np.savez(source, **parts, **ended)
    if kind == "minari":
        episode = EpisodeBuffer(
            observations=parts,
            actions=np.zeros((2, 2), np.float32),
            rewards=np.zeros(2),
            terminations=np.array([False, True]),
            truncations=np.zeros(2, bool),
        )
        space = Dict({key: Box(-1, 1, (1,), np.float64) for key in parts})
        source = make_minari(episode, observation_space=space)
    options: dict[str, Any] = {"obs_keys": [*parts]} if kind == "minari" else dict(BOX)
    options |= {"obs": "at_*"} if kind == "npz" else {}
    assert len(convert(source, tmp_path / "whole", **options)) >= 2
    monkeypatch.setattr("gtp_policy.records._MOST_VALUES", 100)
    with pytest.raises(DataError, match="cannot be written: got an index of more than 100 values"):
        convert(source, tmp_path / "set", **options)
    assert not list((tmp_path / "set").iterdir())


def test_wrong_options_are_named(tmp_path: Path) -> None:
    dataset = load_dataset(make_episodes(), **BOX)
    with pytest.raises(DataError, match=r"has no options: got \['gamma', 'kind'\]"):
        convert(dataset, tmp_path, gamma=0.9, kind="npz")
    with pytest.raises(DataError, match="An option is none of its loader's"):
        convert(make_episodes(), tmp_path, colour="red")
    with pytest.raises(DataError, match="for rows that go to files, expected 'cpu'"):
        convert(make_episodes(), tmp_path, device="meta", **BOX)
    with pytest.raises(EmptyDatasetError, match="no episode"):
        convert([], tmp_path, **BOX)
    with pytest.raises(DataError, match="is of no known kind"):
        convert(3, tmp_path)
    assert len(convert(make_episodes(), tmp_path, **BOX)) == len(dataset)
