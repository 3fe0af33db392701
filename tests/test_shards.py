"""Datasets in files: minibatches as in memory, bit for bit; what is wrong with a file is named."""

import copy
import gc
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gtp_policy.shards
from gtp_policy import (
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    MultiSeedLearner,
    OfflineDataset,
    QEnsembleConfig,
)
from gtp_policy.errors import DataError, EmptyDatasetError
from gtp_policy.files import stored_bytes
from gtp_policy.rewards import LinearReward
from gtp_policy.shards import INDEX, UNFINISHED, ShardWriter, builders_write, builders_write_to
from tests.reliability.mutations import peak_memory

ROOT = Path(__file__).parents[1]
N = 57
SMALL = GTPConfig(
    actor=FlowMapActorConfig(hidden=(16,), time_dim=4, steps=2),
    critic=QEnsembleConfig(hidden=(16,)),
    learner=GTPLearnerConfig(total_updates=20),
)


def vectors(n: int = N, **changes: Any) -> OfflineDataset:
    rng = np.random.default_rng(0)
    step = np.arange(n)
    fields: dict[str, Any] = {
        "obs": rng.normal(1000.0, 1.0, (n, 3)) * [1.0, 0.0, 1e-3],
        "action": rng.uniform(-2, 2, (n, 2)),
        "reward": rng.normal(size=n),
        "next_obs": rng.normal(size=(n, 3)),
        "terminated": step % 10 == 9,
        "truncated": step % 10 == 4,
        "low": [-2.0, -2.5],
        "high": [2.0, 2.1],
        "gamma": 0.9,
    }
    return OfflineDataset.from_arrays(**(fields | changes))


def pictures() -> OfflineDataset:
    rng = np.random.default_rng(1)
    camera, wrist = (rng.integers(0, 256, (N, *s), dtype=np.uint8) for s in ((8, 6, 3), (3, 5, 5)))
    obs = {"camera": camera, "speed": rng.normal(size=(N, 2)), "wrist": wrist}
    return vectors(obs=obs, next_obs={key: np.roll(part, -1, 0) for key, part in obs.items()})


def wide() -> OfflineDataset:
    dataset = vectors()
    table = dataset.table.double() * 1.1
    return OfflineDataset(
        table,
        layout=dataset.layout,
        terminated=dataset.terminated,
        truncated=dataset.truncated,
        action_scaler=dataset.action_scaler,
        gamma=0.9,
        source="wide \udcff",
    )


KINDS: dict[str, Callable[[], OfflineDataset]] = {
    "vectors": vectors,
    "one row": lambda: vectors(1),
    "no rewards": lambda: vectors(reward=None),
    "n-step": lambda: vectors().with_n_step(3),
    "history": lambda: vectors().with_history(3),
    "history and chunks": lambda: vectors().with_history(2).with_chunks(4),
    "next actions": lambda: vectors().with_next_actions(),
    "logs that go on": lambda: vectors(ends=np.arange(N) % 50 == 49),
    "images": pictures,
    "images, moved": lambda: pictures().with_random_shift(2),
    "images, history": lambda: pictures().with_history(2),
    "double": wide,
}


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()
    if a is None or b is None:
        return a is b
    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


# --- the same numbers as in memory


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shard_bytes", [900, 2**30], ids=["several shards", "one"])
def test_everything_is_as_in_memory_bit_for_bit(
    tmp_path: Path, kind: str, shard_bytes: int
) -> None:
    dataset = KINDS[kind]()
    written = dataset.to_memmap(tmp_path / "set", shard_bytes=shard_bytes)
    mapped = OfflineDataset.memmap(tmp_path / "set")
    if kind == "images, moved":  # how images are augmented is no part of the data
        mapped = mapped.with_random_shift(2)
    assert equal(  # but what was written goes on with it
        written.sample(64, generator=generator()), mapped.sample(64, generator=generator())
    )
    several = shard_bytes < 2**30 and len(dataset) > 1
    assert (len(list((tmp_path / "set").glob("table-*.npy"))) > 1) == several
    assert equal(
        dataset.sample(64, generator=generator()), mapped.sample(64, generator=generator())
    )
    found = [d.sample_rows(8, [generator(i) for i in range(3)]) for d in (dataset, mapped)]
    assert equal(*found)
    index = torch.tensor([len(dataset) - 1, 0, 0])
    assert equal(dataset.take(index), mapped.take(index))
    if not dataset.images:
        assert equal(dataset.take(index[:0]), mapped.take(index[:0]))
    assert equal(dataset.rows(0, 40), mapped.rows(0, 40))
    assert equal(dataset.observation_statistics(), mapped.observation_statistics())
    assert equal(dataset.action_statistics(), mapped.action_statistics())
    assert dataset.action_std() == mapped.action_std()
    np.testing.assert_array_equal(dataset.terminated, mapped.terminated)
    np.testing.assert_array_equal(dataset.truncated, mapped.truncated)
    np.testing.assert_array_equal(dataset.ends, mapped.ends)
    more = (tmp_path / "set" / "ends-00000.npy").exists()  # only what the flags do not say
    assert more == (kind == "logs that go on")
    for name in (
        "action_dim action_scaler chunk device dtype gamma has_rewards history images layout "
        "n_step nbytes obs_dim obs_keys"
    ).split():
        assert getattr(dataset, name) == getattr(mapped, name), name
    assert len(mapped) == len(dataset)
    assert mapped.source.encode() == dataset.source.encode(errors="backslashreplace")


@pytest.mark.slow
@given(
    shard_bytes=st.integers(200, 3000),
    rows=st.lists(st.integers(0, N - 1), max_size=40),
    bounds=st.tuples(st.integers(0, N), st.integers(0, N)),
)
def test_any_rows_of_any_shards(
    tmp_path_factory: pytest.TempPathFactory,
    shard_bytes: int,
    rows: list[int],
    bounds: tuple[int, int],
) -> None:
    dataset = vectors()
    mapped = dataset.to_memmap(tmp_path_factory.mktemp("any"), shard_bytes=shard_bytes)
    index = torch.tensor(rows, dtype=torch.int64)
    assert equal(dataset.take(index), mapped.take(index))
    assert equal(dataset.rows(*bounds), mapped.rows(*bounds))


@pytest.mark.parametrize("row", [-1, N])
def test_a_row_that_is_not_there_is_an_index_error(tmp_path: Path, row: int) -> None:
    mapped = vectors().to_memmap(tmp_path)
    with pytest.raises(IndexError, match=f"got {row}, expected 0 to {N - 1}"):
        mapped.take(torch.tensor([0, row]))


def test_statistics_are_those_of_numpy_in_double_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pieces(rows: Any) -> Iterator[slice]:
        yield from (slice(i, min(i + 13, len(rows))) for i in range(0, len(rows), 13))

    monkeypatch.setattr("gtp_policy.dataset.pieces", pieces)
    dataset = vectors(501)
    obs = dataset.transitions.obs.double().numpy()
    for found in (dataset, dataset.to_memmap(tmp_path, shard_bytes=999)):
        mean, std = found.observation_statistics()
        np.testing.assert_allclose(mean, obs.mean(0), rtol=1e-7)
        np.testing.assert_allclose(std, obs.std(0), rtol=1e-6)
        assert std[1] == 0.0  # of what is constant, exactly
        action = dataset.transitions.action.double().numpy()
        np.testing.assert_allclose(found.action_std(), np.sqrt(action.var(0).mean()), rtol=1e-12)


@pytest.mark.parametrize("kind", ["vectors", "history and chunks", "next actions"])
def test_a_learner_becomes_the_same(tmp_path: Path, kind: str) -> None:
    dataset = KINDS[kind]()
    config = SMALL
    if kind == "next actions":
        config = config.replace(learner=config.learner.replace(critic_penalty=0.1))
    states = []
    for data in (dataset, dataset.to_memmap(tmp_path, shard_bytes=999)):
        learner = GTPLearner.from_dataset(data, config)
        learner.update_from(data, 9, batch_size=16)
        states.append({k: v for k, v in learner.actor.state_dict().items() if k != "_extra_state"})
    assert states[0].keys() == states[1].keys()
    assert all(equal(states[0][key], states[1][key]) for key in states[0])


def test_several_seeds_train_from_files(tmp_path: Path) -> None:
    dataset = vectors()
    metrics = []
    for data in (dataset, dataset.to_memmap(tmp_path, shard_bytes=999)):
        learners = MultiSeedLearner.from_dataset(data, SMALL, seeds=[0, 1])
        metrics.append([m.actor_loss for m in learners.update_from(data, 3, batch_size=8)])
    assert metrics[0] == metrics[1]


def test_files_of_files_are_the_same_files(tmp_path: Path) -> None:
    first = pictures().to_memmap(tmp_path / "first", shard_bytes=500)
    first.to_memmap(tmp_path / "second", shard_bytes=500)
    names = sorted(p.name for p in (tmp_path / "first").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "second").iterdir())
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_numpy_reads_the_shards(tmp_path: Path) -> None:
    dataset = vectors()
    dataset.to_memmap(tmp_path, shard_bytes=400)
    shards = [np.load(p, allow_pickle=False) for p in sorted(tmp_path.glob("table-*.npy"))]
    np.testing.assert_array_equal(np.concatenate(shards), dataset.table.numpy())
    mapped = np.load(tmp_path / "table-00000.npy", mmap_mode="r", allow_pickle=False)
    assert mapped.offset % 64 == 0


# --- what needs the whole table


@pytest.mark.parametrize(
    "call",
    [
        lambda d: d.transitions,
        lambda d: d.rewards,
        lambda d: d.table,
        lambda d: d.stored(),
        lambda d: d.with_rewards(LinearReward(subtract=1.0)),
        lambda d: d.with_reward_column(torch.zeros(N)),
        lambda d: d.with_best_episodes(0.5),
        lambda d: d.with_return_weighting(1.0),
        lambda d: d.split_episodes(0.5),
        lambda d: d.with_n_step(2),
        lambda d: d.with_history(2),
        lambda d: d.with_chunks(2),
        lambda d: d.with_steps(1, 2),
        lambda d: d.with_next_actions(),
    ],
)
def test_what_needs_the_whole_table_says_what_to_do(
    tmp_path: Path, call: Callable[[OfflineDataset], object]
) -> None:
    mapped = vectors().to_memmap(tmp_path)
    with pytest.raises(DataError, match=r"stay in files.*before the data is converted"):
        call(mapped)


def test_what_changes_nothing_needs_nothing(tmp_path: Path) -> None:
    mapped = vectors().to_memmap(tmp_path)
    assert mapped.with_steps(1, 1) is mapped
    assert mapped.to("cpu").take(torch.tensor([3])).obs.shape == (1, 3)


def test_a_device_with_room_takes_the_table(tmp_path: Path) -> None:
    dataset = pictures()
    mapped = dataset.to_memmap(tmp_path, shard_bytes=500)
    moved = mapped.to("meta")
    assert moved.table.shape == dataset.table.shape
    assert moved.device.type == "meta"
    assert [i.shape for i in moved.stored()] == [i.shape for i in dataset.stored()]


# --- several processes, one copy


@pytest.mark.slow
def test_other_processes_read_the_same_files_and_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = vectors()
    monkeypatch.chdir(tmp_path)
    mapped = dataset.to_memmap("set", shard_bytes=400)  # other processes stand elsewhere
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "set").iterdir()}
    (tmp_path / "dataset.pkl").write_bytes(pickle.dumps(mapped))
    code = (
        "import pickle, sys, torch\n"
        "dataset = pickle.load(open(sys.argv[1], 'rb'))\n"
        "generator = torch.Generator().manual_seed(3)\n"
        "print(*dataset.sample(64, generator=generator).reward.tolist())\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "dataset.pkl")]
    running = [
        subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)
    ]
    expected = dataset.sample(64, generator=generator()).reward.tolist()
    for process in running:
        assert [float(word) for word in process.communicate()[0].split()] == expected
    assert equal(copy.deepcopy(mapped).rows(0, N), dataset.rows(0, N))
    after = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "set").iterdir()}
    assert after == before
    with pytest.raises(ValueError, match="read-only"):
        mapped.terminated[0] = True


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux says what is mapped")
def test_rows_are_read_and_files_closed(tmp_path: Path) -> None:
    def names() -> list[str]:
        links = Path("/proc/self/fd").iterdir()
        return [name for link in links if str(tmp_path) in (name := os.path.realpath(link))]

    mapped = vectors(200_000).to_memmap(tmp_path, shard_bytes=2**20)
    shards = len(list(tmp_path.glob("table-*.npy")))
    with peak_memory() as grown:
        for _ in range(20):
            mapped.sample(256, generator=generator())
    assert sum(file.stat().st_size for file in tmp_path.glob("table-*.npy")) > 7 * 2**20
    assert grown[0] < 2**22
    assert "table-" not in Path("/proc/self/maps").read_text(encoding="utf-8")
    assert sum("table-" in name for name in names()) == shards
    del mapped
    gc.collect()
    assert names() == []


def test_a_shard_that_is_cut_in_use_is_named(tmp_path: Path) -> None:
    mapped = vectors().to_memmap(tmp_path, shard_bytes=400)
    path = tmp_path / "table-00003.npy"
    os.truncate(path, path.stat().st_size - 8)
    mapped.rows(0, 10)
    for read in (lambda: mapped.rows(0, N), lambda: mapped.take(torch.arange(N))):
        with pytest.raises(DataError, match=r"table-00003\.npy` was cut while it was in use"):
            read()


@pytest.mark.slow
def test_a_system_without_reads_at_a_place(tmp_path: Path) -> None:
    code = (
        "import os, sys, torch\n"
        "del os.pread\n"
        "from gtp_policy import OfflineDataset\n"
        "dataset = OfflineDataset.memmap(sys.argv[1])\n"
        "generator = torch.Generator().manual_seed(3)\n"
        "print(*dataset.sample(64, generator=generator).reward.tolist())\n"
    )
    dataset = vectors()
    dataset.to_memmap(tmp_path, shard_bytes=400)
    words = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    expected = dataset.sample(64, generator=generator()).reward.tolist()
    assert [float(word) for word in result.stdout.split()] == expected


# --- writing


def episodes(count: int, steps: int = 100) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(5)
    for i in range(count):
        yield {
            "obs": rng.normal(size=(steps + 1, 8)),
            "action": rng.uniform(-1, 1, (steps, 2)),
            "reward": rng.normal(size=steps),
            "terminated": i % 2 == 0,
        }


def converted(folder: Path, source: Any, shard_bytes: int = 1000) -> OfflineDataset:
    with ShardWriter(folder, shard_bytes) as writer, builders_write_to(writer):
        return OfflineDataset.from_episodes(source, low=-1.0, high=1.0)


def test_episodes_go_to_files_one_after_the_other(tmp_path: Path) -> None:
    expected = OfflineDataset.from_episodes(episodes(7), low=-1.0, high=1.0)
    found = converted(tmp_path, episodes(7))
    assert equal(found.rows(0, 700), expected.rows(0, 700))
    np.testing.assert_array_equal(found.truncated, expected.truncated)
    assert equal(found.observation_statistics(), expected.observation_statistics())
    assert not builders_write()


def test_a_conversion_never_holds_the_table(tmp_path: Path) -> None:
    converted(tmp_path / "warm", episodes(1))
    with peak_memory() as grown:
        converted(tmp_path / "set", episodes(600, 2000), 2**24)
    table = sum(p.stat().st_size for p in (tmp_path / "set").glob("table-*.npy"))
    assert table > 96e6
    assert grown[0] < 0.6 * table


def test_only_the_next_builder_writes(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer, builders_write_to(writer):
        first = OfflineDataset.from_episodes(episodes(1), low=-1.0, high=1.0)
        assert not builders_write()
        second = OfflineDataset.from_episodes(episodes(1), low=-1.0, high=1.0)
    assert "in files" in repr(first)
    assert "in files" not in repr(second)


def test_an_interrupted_conversion_says_so_and_can_be_repeated(tmp_path: Path) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield from episodes(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converted(tmp_path, broken())
    assert list(tmp_path.glob("table-*.npy"))
    with pytest.raises(DataError, match=r"is incomplete: .* shards without dataset\.json.*again"):
        OfflineDataset.memmap(tmp_path)
    assert len(converted(tmp_path, episodes(2), 10**6)) == 200
    assert len(list(tmp_path.glob("table-*.npy"))) == 1  # nothing is left of the first
    assert not (tmp_path / UNFINISHED).exists()


@pytest.mark.parametrize("length", [0, 1, 20])
def test_a_list_that_a_full_disk_has_cut_is_the_writers_own(tmp_path: Path, length: int) -> None:
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / UNFINISHED).write_bytes(gtp_policy.shards._HEAD.encode()[:length])
    assert len(converted(tmp_path / "cut", episodes(1))) == 100
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / UNFINISHED).write_text("mine")
    with pytest.raises(DataError, match="holds other files"):
        converted(tmp_path / "other", episodes(1))


def test_a_conversion_that_was_killed_at_its_index_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a kill leaves it: with the temporary name of the index, and whatever a line was to say.
    with monkeypatch.context() as patch:
        patch.setattr(gtp_policy.files, "remove", lambda path: None)
        patch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            vectors().to_memmap(tmp_path)
    assert list(tmp_path.glob(f".{INDEX}.tmp-*"))
    with (tmp_path / UNFINISHED).open("a") as listed:
        listed.write("images0-0")
    with pytest.raises(DataError, match="is incomplete"):
        OfflineDataset.memmap(tmp_path)
    assert len(vectors(7).to_memmap(tmp_path)) == 7
    expected = {INDEX, *(f"{column}-00000.npy" for column in ("table", "terminated", "truncated"))}
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_what_an_earlier_version_left_is_not_guessed_at(tmp_path: Path) -> None:
    vectors().to_memmap(tmp_path)
    (tmp_path / INDEX).unlink()  # it left no list
    with pytest.raises(DataError, match=r"is incomplete: got 3 shards .* delete the folder and"):
        OfflineDataset.memmap(tmp_path)
    with pytest.raises(DataError, match=r"If an earlier version was interrupted in this one, del"):
        vectors().to_memmap(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def interrupted(folder: Path) -> None:
    with ShardWriter(folder) as writer:
        writer.add("table", np.zeros((2, 3), np.float32))


def a_folder_of_a_shards_name(folder: Path) -> None:
    (folder / "camera-00000.npy" / "deep").mkdir(parents=True)


def a_log(folder: Path) -> None:
    np.save(folder / "episode-00001.npy", np.zeros(3))


def a_shards_name(folder: Path) -> None:
    np.save(folder / "table-00000.npy", np.zeros(3))


def a_temporary_name(folder: Path) -> None:
    (folder / ".notes.tmp-of-mine").write_text("mine")


def a_list_of_somebody_else(folder: Path) -> None:
    (folder / UNFINISHED).write_text("my list\ntable-00000.npy\n")
    a_shards_name(folder)


def a_file_beside_an_interrupted_conversion(folder: Path) -> None:
    interrupted(folder)
    np.save(folder / "table-00001.npy", np.zeros(3))


def a_folder_in_place_of_a_shard(folder: Path) -> None:
    interrupted(folder)
    (folder / "table-00000.npy").unlink()
    (folder / "table-00000.npy").mkdir()


def a_link_in_place_of_a_shard(folder: Path) -> None:
    interrupted(folder)
    (folder / "table-00000.npy").unlink()
    (folder / "table-00000.npy").symlink_to("elsewhere")


def a_list_that_says_more_than_a_conversion_writes(folder: Path) -> None:
    interrupted(folder)
    (folder / "thesis.txt").write_text("mine")
    with (folder / UNFINISHED).open("a") as listed:
        listed.write("thesis.txt\n")


@pytest.mark.parametrize("linked", [False, True], ids=["folder", "link"])
@pytest.mark.parametrize(
    "foreign",
    [
        a_folder_of_a_shards_name,
        a_log,
        a_shards_name,
        a_temporary_name,
        a_list_of_somebody_else,
        a_file_beside_an_interrupted_conversion,
        a_folder_in_place_of_a_shard,
        a_link_in_place_of_a_shard,
        a_list_that_says_more_than_a_conversion_writes,
    ],
)
def test_a_conversion_removes_nothing_that_it_has_not_written(
    tmp_path: Path, foreign: Callable[[Path], None], linked: bool
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    foreign(mine)
    before = sorted(mine.rglob("*"))
    folder = tmp_path / "link" if linked else mine
    if linked:
        folder.symlink_to(mine)
    with pytest.raises(DataError, match="holds other files"):
        vectors().to_memmap(folder)
    with pytest.raises(DataError, match="holds other files"):
        converted(folder, episodes(1))
    assert sorted(mine.rglob("*")) == before


def test_more_parts_than_an_index_may_name_are_refused_before_rows_are_written(
    tmp_path: Path,
) -> None:
    """It would be written, and then not be read."""
    parts = {f"k{i}": np.zeros((2, 1)) for i in range(12_000)}
    episode = {"obs": parts, "action": np.zeros((2, 1)), "terminated": True}
    dataset = OfflineDataset.from_episodes([episode], low=-1.0, high=1.0)
    match = r"cannot be written: got an index of more than 32768 values.*Join parts"
    with pytest.raises(DataError, match=match):
        dataset.to_memmap(tmp_path / "set")
    assert not (tmp_path / "set").exists()
    with pytest.raises(DataError, match=match):
        converted(tmp_path / "set", iter([episode]))
    assert not list((tmp_path / "set").iterdir())


@pytest.mark.parametrize("limit", ["shards._LONGEST_INDEX", "records._MOST_VALUES"])
def test_an_index_that_would_not_be_read_is_not_written(
    limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever makes it long: here it is the number of files."""
    converted(tmp_path / "few", episodes(2), 10**6)
    most = (tmp_path / "few" / INDEX).stat().st_size if "LONGEST" in limit else 100
    monkeypatch.setattr(f"gtp_policy.{limit}", most)
    assert len(converted(tmp_path / "again", episodes(2), 10**6)) == 200
    with pytest.raises(
        DataError, match=r"cannot be written: got an index of more than.*shard_bytes"
    ):
        converted(tmp_path / "many", episodes(2), 100)
    with pytest.raises(DataError, match="is incomplete"):
        OfflineDataset.memmap(tmp_path / "many")


def test_a_bad_episode_is_named_and_leaves_an_incomplete_folder(tmp_path: Path) -> None:
    zeros = {"obs": np.zeros((3, 8)), "reward": np.zeros(2)}
    bad = [*episodes(2), {**zeros, "action": np.full((2, 2), 9.0)}]
    with pytest.raises(DataError, match=r"Episode 2: `action` lies outside the Box"):
        converted(tmp_path, iter(bad))
    bad[2] = {**zeros, "action": np.zeros((2, 3))}
    with pytest.raises(DataError, match=r"Episode 2: `action` has the wrong shape"):
        converted(tmp_path, iter(bad))
    with pytest.raises(EmptyDatasetError, match="no episode"):
        converted(tmp_path, iter([]))


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    vectors().to_memmap(tmp_path / "set")
    with pytest.raises(DataError, match="holds a dataset"):
        vectors(5).to_memmap(tmp_path / "set")
    assert len(OfflineDataset.memmap(tmp_path / "set")) == N
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "table-00000.npy").write_text("")
    (tmp_path / "notes" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds other files: got .*'thesis.txt'\]"):
        vectors().to_memmap(tmp_path / "notes")
    assert len(list((tmp_path / "notes").iterdir())) == 2
    with pytest.raises(DataError, match="is no folder"):
        vectors().to_memmap(tmp_path / "notes" / "thesis.txt")


@pytest.mark.parametrize("folder", [None, 3, "", b"set", "a\0b"])
def test_what_is_no_name_of_a_folder(folder: Any) -> None:
    with pytest.raises(DataError, match="`folder` is no path"):
        OfflineDataset.memmap(folder)
    with pytest.raises(DataError, match="`folder` is no path"):
        vectors().to_memmap(folder)


def test_a_name_that_is_too_long_is_no_folder() -> None:
    with pytest.raises(DataError, match="is no dataset: got no folder"):
        OfflineDataset.memmap("x" * 5_000)


@pytest.mark.parametrize("size", [0, -1, 1.0, True, None])
def test_what_is_no_length_of_a_shard(tmp_path: Path, size: Any) -> None:
    with pytest.raises(DataError, match="`shard_bytes` is out of range"):
        vectors().to_memmap(tmp_path, shard_bytes=size)


# --- damage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures().to_memmap(tmp_path / "set", shard_bytes=400)
    return tmp_path / "set"


def with_header(path: Path, text: str, body: bytes | None = None) -> None:
    """Gives a file another header, with the same bytes behind it or others."""
    body = path.read_bytes()[192:] if body is None else body
    packed = text.encode().ljust(181) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(packed).to_bytes(2, "little") + packed + body)


class Canary:
    """Says, where a pickle is loaded, that it was."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def objects(path: Path) -> None:
    array = np.array([Canary(path.parent / "loaded")], dtype=object)
    np.save(path, array, allow_pickle=True)


def linked(path: Path) -> None:
    shutil.move(path, path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


HEAD = "{'descr': %r, 'fortran_order': %s, 'shape': %s, }"
DAMAGE: dict[str, tuple[Callable[[Path], object], str, bool]] = {
    # what is done, what the message says, whether it is found without hashes
    "missing": (Path.unlink, "cannot be read", True),
    "empty": (lambda p: p.write_bytes(b""), "is damaged", True),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-4]), "wrong length", True),
    "longer": (lambda p: p.write_bytes(p.read_bytes() + b"1234"), "wrong length", True),
    "a bit": (flipped, "is damaged: got the SHA-256", False),
    "no header": (lambda p: p.write_bytes(b"x" * 1000), "header of a .npy file", True),
    "objects": (objects, "Objects are never decoded", True),
    "columns": (lambda p: with_header(p, HEAD % ("<f4", True, (7, 12))), "something else", True),
    "shape": (lambda p: with_header(p, HEAD % ("<f4", False, (2**40, 12))), "else", True),
    "negative": (lambda p: with_header(p, HEAD % ("<f4", False, (-7, -12))), "else", True),
    "dtype": (lambda p: with_header(p, HEAD % ("<i4", False, (7, 12))), "else", True),
    "code": (lambda p: with_header(p, "__import__('os').abort()"), "is damaged", True),
    "deep": (lambda p: with_header(p, "(" * 170), "is damaged", True),
    "link": (linked, "is no plain file", True),
    "pipe": (pipe, "is no plain file", True),
    "directory": (directory, "is no plain file", True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["table-00001.npy", "images1-00000.npy"])
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_named_before_training(
    folder: Path, name: str, verify: bool, damage: str
) -> None:
    change, message, always = DAMAGE[damage]
    change(folder / name)
    if not (always or verify):
        OfflineDataset.memmap(folder, verify=False)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's parser of headers, by what they hold
        with pytest.raises(DataError) as caught:
            OfflineDataset.memmap(folder, verify=verify)
    assert name in str(caught.value)
    assert message in str(caught.value)
    assert not (folder / "loaded").exists()


@pytest.mark.parametrize("verify", [True, False])
def test_shards_that_are_holes_are_refused_unread(tmp_path: Path, verify: bool) -> None:
    # To hash a hole of 400 GB takes minutes, and flags in several files are joined in memory.
    vectors().to_memmap(tmp_path / "set")
    rows, shards = 2**37, [tmp_path / "set" / f"terminated-0000{i}.npy" for i in range(3)]
    for path in shards:
        path.touch()
        with_header(path, HEAD % ("|b1", False, (rows,)), b"")
        with open(path, "r+b") as file:
            file.truncate(192 + rows)
            if stored_bytes(file.fileno()) > 2**20:
                pytest.skip("this file system fills holes")
    listed = [{"file": path.name, "rows": rows, "sha256": "0" * 64} for path in shards]
    edited(tmp_path / "set", lambda i: i["columns"]["terminated"].update(shards=listed))
    with pytest.raises(DataError, match="are holes: got 412"):
        OfflineDataset.memmap(tmp_path / "set", verify=verify)


def edited(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes an index as somebody does who knows of its hash."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    del index["sha256"]  # as in folders of before
    change(index)
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


@pytest.mark.parametrize("name", ["gamma", "mean", "variance", "low", "high", "n_step", "source"])
def test_one_digit_of_an_index_is_missed(tmp_path: Path, name: str) -> None:
    vectors().to_memmap(tmp_path)
    text = (tmp_path / INDEX).read_text(encoding="utf-8")
    at = text.index(f'"{name}"') + len(name) + 2
    at += next(i for i, sign in enumerate(text[at:]) if sign.isalnum())
    digit = "1" if text[at] != "1" else "0" if name == "gamma" else "2"
    (tmp_path / INDEX).write_text(text[:at] + digit + text[at + 1 :], encoding="utf-8")
    for verify in (True, False):
        with pytest.raises(DataError, match=r"some have been changed|is no index: got a wrong"):
            OfflineDataset.memmap(tmp_path, verify=verify)
    edited_back = json.loads(text)
    (tmp_path / INDEX).write_text(json.dumps(edited_back, indent=7), encoding="utf-8")
    assert len(OfflineDataset.memmap(tmp_path)) == len(vectors())
    del edited_back["sha256"]  # a folder of before
    (tmp_path / INDEX).write_text(json.dumps(edited_back), encoding="utf-8")
    assert len(OfflineDataset.memmap(tmp_path)) == len(vectors())


def first(index: dict[str, Any], column: str = "table") -> dict[str, Any]:
    found: dict[str, Any] = index["columns"][column]["shards"][0]
    return found


INDICES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "format": (lambda i: i.update(format="zarr"), "another format or version"),
    "version": (lambda i: i.update(version=2), "another format or version: .* 2"),
    "no version": (lambda i: i.pop("version"), "is no index"),
    "upwards": (lambda i: first(i).update(file="../table-00000.npy"), "the name '../table"),
    "absolute": (lambda i: first(i).update(file="/etc/passwd"), "the name '/etc/passwd'"),
    "swapped": (lambda i: first(i).update(file="table-00001.npy"), "the name 'table-00001.npy'"),
    "rows": (lambda i: first(i).update(rows=3), "table-00000.npy` holds something else"),
    "many rows": (lambda i: first(i).update(rows=2**60), "is no index: got a wrong `columns.table"),
    "no rows": (lambda i: first(i).update(rows=0), "is no index: got a wrong `columns.table"),
    "no shards": (lambda i: i["columns"]["table"].update(shards=[]), "is no index"),
    "no table": (lambda i: i["columns"].pop("table"), "does not fit together"),
    "no flags": (lambda i: i["columns"].pop("truncated"), "does not fit together"),
    "half a table": (lambda i: i["columns"]["table"]["shards"].pop(), "flags of"),
    "a column more": (
        lambda i: i.update(images=i["images"][:1]),
        "does not fit together",
    ),
    "a column's name": (
        lambda i: i["columns"].update({"../x": i["columns"]["table"]}),
        "the name 'table-00000.npy', expected '../x-00000.npy'",
    ),
    "objects": (lambda i: i["columns"]["table"].update(dtype="|O"), "is no index"),
    "layout": (lambda i: i.update(shapes=[[2, 2, 2]] * 3), "does not fit together"),
    "keys": (lambda i: i.update(keys=["a"]), "does not fit together"),
    "a key twice": (lambda i: i.update(keys=["wrist"] * 3), "one key twice in .*wrist"),
    "an image twice": (lambda i: i.update(images=["wrist"] * 2), "one key twice in .*wrist"),
    "chunk": (lambda i: i.update(chunk=2), "does not fit together"),
    "history": (lambda i: i.update(history=2), "does not fit together"),
    "gamma": (lambda i: i.update(gamma=1.5), "is no index: got a wrong `gamma`"),
    "NaN": (lambda i: i.update(gamma=float("nan")), "is no index"),
    "a word": (lambda i: i.update(n_step="1"), "is no index: got a wrong `n_step`"),
    "a field more": (lambda i: i.update(more=1), "is no index: got a wrong `more`"),
    "bounds": (lambda i: i.update(high=i["low"]), "does not fit together: .*no range"),
    "moments": (lambda i: i.update(mean=i["mean"][1:]), "does not fit together"),
    "variance": (lambda i: i.update(variance=[-1.0]), "is no index: got variance"),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", INDICES)
def test_a_wrong_index_is_named_before_training(folder: Path, change: str) -> None:
    edited(folder, INDICES[change][0])
    with pytest.raises(DataError, match=INDICES[change][1]):
        OfflineDataset.memmap(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda i: i.update(keys=[1] * 300_000),
        lambda i: i["columns"]["table"].update(shards=[{}] * 300_000),
        lambda i: i.update(mean=[None] * 300_000),
        lambda i: i.update(variance=[-1] * 300_000),
        lambda i: i.update(low=[10**400] * 3_000),
        lambda i: (i.pop("gamma"), i.update(mean=[-9] * 2_000_000)),
        lambda i: (i.pop("gamma"), i.update(source="a" * 4_000_000 + "\U0001f600")),
        lambda i: i.update(mean=[json.loads("[" * 500 + "]" * 500)] * 3_000),
    ],
    ids=["keys", "shards", "null", "negative", "infinite", "a field less", "a word", "nested"],
)
def test_an_index_that_is_wrong_throughout_takes_no_more_than_others(
    folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    # Pydantic keeps half a kilobyte for each of the errors: a gigabyte, and seven seconds.
    edited(folder, change)
    with peak_memory() as peak, pytest.raises(DataError, match="is no index"):
        OfflineDataset.memmap(folder)
    assert peak[0] <= 2**26 + 30 * (folder / INDEX).stat().st_size


def test_an_index_has_no_more_numbers_than_there_is_data(folder: Path) -> None:
    # Of which a list, their floats and a tensor were made, in several seconds.
    edited(folder, lambda i: i.update(mean=[0] * 4_000_000))
    with peak_memory() as peak, pytest.raises(DataError, match="than its files have bytes"):
        OfflineDataset.memmap(folder)
    assert peak[0] <= 2**26 + 2 * (folder / INDEX).stat().st_size


def test_rows_may_be_longer_than_a_record(tmp_path: Path) -> None:
    obs = np.zeros((2, 40_000), np.float32)
    dataset = vectors(2, obs=obs, next_obs=obs, action=np.zeros((2, 2)))
    assert dataset.to_memmap(tmp_path / "set").obs_dim == 40_000


def test_one_array_has_one_shape(tmp_path: Path) -> None:
    vectors().to_memmap(tmp_path / "set")
    edited(tmp_path / "set", lambda i: i["shapes"].append([99]))
    with pytest.raises(DataError, match="does not fit together"):
        OfflineDataset.memmap(tmp_path / "set")


@pytest.mark.parametrize(
    "text", ["", "[]", "3", '{"format"', "[" * 10**5, "\0", '{"format": 1, "version": []}']
)
def test_what_is_no_json_is_no_index(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"dataset\.json` is (no index|of another format)"):
        OfflineDataset.memmap(folder)


def test_an_index_has_a_bound_and_is_no_link(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(gtp_policy.shards, "_LONGEST_INDEX", 100)
        with pytest.raises(DataError, match="more than 100 bytes"):
            OfflineDataset.memmap(folder)
    linked(folder / INDEX)
    with pytest.raises(DataError, match="is no plain file"):
        OfflineDataset.memmap(folder)


def test_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got no folder"):
        OfflineDataset.memmap(tmp_path / "missing")
    with pytest.raises(DataError, match=r"got no dataset\.json"):
        OfflineDataset.memmap(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="got something else"):
        OfflineDataset.memmap(tmp_path / "file")
