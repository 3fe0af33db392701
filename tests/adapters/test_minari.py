"""Minari to OfflineDataset: layout, flags, bad episodes, hostile files."""

import io
import json
import pickle
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium
import h5py
import minari
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from hypothesis import given
from hypothesis import strategies as st
from minari.data_collector import EpisodeBuffer
from minari.serialization import serialize_space
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gtp_datasets import _hdf5, load_minari, minari_loader, minari_reference, normalized_score
from gtp_datasets._images import decoded
from gtp_policy import ActionScaler, ObservationLayout
from gtp_policy.errors import (
    DataError,
    EmptyDatasetError,
    MissingDependencyError,
    UnsupportedSpaceError,
)
from tests.reliability.mutations import SLACK, peak_memory

Make = Callable[..., minari.MinariDataset]
GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")
ID = "toy/set-v0"


def episode(steps: int = 4, seed: int = 0, **changes: object) -> EpisodeBuffer:
    """A valid episode that ends by itself; Minari stores whatever is put in its place."""
    rng = np.random.default_rng(seed)
    fields: dict[str, Any] = {
        "observations": rng.normal(size=(steps + 1, 3)),
        "actions": rng.uniform(-1, 1, size=(steps, 2)).astype(np.float32),
        "rewards": rng.normal(size=steps),
        "terminations": np.arange(steps) == steps - 1,
        "truncations": np.zeros(steps, bool),
    }
    return EpisodeBuffer(**(fields | changes))


def cut(steps: int = 4, seed: int = 0, **changes: object) -> EpisodeBuffer:
    """A valid episode that a time limit ended."""
    flags = {"terminations": [False] * steps, "truncations": [False] * (steps - 1) + [True]}
    return episode(steps, seed, **(flags | changes))


# --- layout and flags


def test_every_step_becomes_a_transition(make_minari: Make) -> None:
    episodes = [episode(4, 1), cut(1, 2), cut(3, 3)]
    make_minari(*episodes)
    dataset = load_minari(ID, gamma=0.5)
    batch = dataset.transitions
    for name, parts in {
        "obs": [e.observations[:-1] for e in episodes],
        "next_obs": [e.observations[1:] for e in episodes],
        "action": [e.actions for e in episodes],
        "reward": [e.rewards for e in episodes],
    }.items():
        np.testing.assert_array_equal(
            getattr(batch, name), np.concatenate(parts).astype(np.float32)
        )
    assert batch.discount.tolist() == [0.5, 0.5, 0.5, 0.0, 0.5, 0.5, 0.5, 0.5]
    assert np.flatnonzero(dataset.terminated).tolist() == [3]
    assert np.flatnonzero(dataset.truncated).tolist() == [4, 7]
    assert (dataset.source, dataset.obs_keys) == (f"Minari {ID}", ())


@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=6), st.data())
def test_any_lengths_and_any_selection(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[tuple[int, bool]], data: st.DataObject
) -> None:
    """Step k of episode e shows (e, k, 0): each row must lead to (e, k + 1, 0)."""

    def numbered(e: int, steps: int, ends: bool) -> EpisodeBuffer:
        obs = np.array([(e, k, 0) for k in range(steps + 1)], np.float32)
        return (episode if ends else cut)(steps, observations=obs)

    chosen = data.draw(st.sets(st.sampled_from(range(len(lengths))), min_size=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = minari.create_dataset_from_buffers(
                ID,
                [numbered(e, n, ends) for e, (n, ends) in enumerate(lengths)],
                observation_space=Box(0, 9, (3,)),
                action_space=Box(-1, 1, (2,)),
            )
        dataset = load_minari(whole.filter_episodes(lambda e: e.id in chosen))
    batch = dataset.transitions
    expected = [(e, k, 0) for e in sorted(chosen) for k in range(lengths[e][0])]
    assert batch.obs.tolist() == [list(row) for row in expected]
    assert torch.equal(batch.next_obs, batch.obs + torch.tensor([0.0, 1.0, 0.0]))
    assert (batch.discount == 0).sum() == sum(lengths[e][1] for e in chosen)


def goal_space(**more: gymnasium.Space) -> Dict:
    goal = Box(-9, 9, (2,))
    return Dict(observation=Box(-9, 9, (3,)), achieved_goal=goal, desired_goal=goal, **more)


def goal_episode(**more: np.ndarray) -> EpisodeBuffer:
    parts = {
        k: np.full((5, n), i) for i, (k, n) in enumerate(zip(GOAL_KEYS, (3, 2, 2), strict=True))
    }
    return episode(4, observations=parts | more)


def test_goal_observations_are_flattened_in_the_documented_order(make_minari: Make) -> None:
    """HDF5 and spaces.Dict iterate alphabetically: the goals must not come first."""
    make_minari(goal_episode(), observation_space=goal_space())
    dataset = load_minari(ID)
    assert dataset.obs_keys == GOAL_KEYS == ObservationLayout.GOAL_KEYS
    assert dataset.transitions.obs.tolist() == [[0, 0, 0, 1, 1, 2, 2]] * 4
    assert dataset.transitions.next_obs.tolist() == [[0, 0, 0, 1, 1, 2, 2]] * 4


def test_a_missing_part_of_an_observation_is_named(make_minari: Make, minari_root: Path) -> None:
    make_minari(goal_episode(), observation_space=goal_space())
    with h5py.File(hdf5(minari_root), "a") as file:
        del file["episode_0/observations/desired_goal"]
    with pytest.raises(DataError, match=r"Episode 0 .*/desired_goal` is missing: got \['ach"):
        load_minari(ID)


def test_obs_keys_choose_and_order(make_minari: Make) -> None:
    make_minari(goal_episode(), observation_space=goal_space())
    dataset = load_minari(ID, obs_keys=["desired_goal", "observation"])
    assert dataset.obs_keys == ("desired_goal", "observation")
    assert dataset.transitions.obs.tolist() == [[2, 2, 0, 0, 0]] * 4


def test_a_box_of_higher_rank_is_flattened(make_minari: Make) -> None:
    obs = np.arange(5 * 6).reshape(5, 2, 3).astype(float)
    make_minari(episode(observations=obs), observation_space=Box(0, 99, (2, 3)))
    assert load_minari(ID).transitions.obs.tolist() == obs[:4].reshape(4, 6).tolist()


def test_actions_are_scaled_by_the_space_or_by_given_bounds(make_minari: Make) -> None:
    actions = np.array([[-2.0, 0.0], [2.0, 10.0], [0.0, 5.0], [1.0, 5.0]])
    make_minari(episode(actions=actions), action_space=Box(np.array([-2, 0]), np.array([2, 10])))
    expected = [[-1, -1], [1, 1], [0, 0], [0.5, 0]]
    assert load_minari(ID).transitions.action.tolist() == expected
    wide = load_minari(ID, low=-10.0, high=[10.0, 20.0]).transitions.action
    np.testing.assert_allclose(wide[1], [0.2, 2 * 20 / 30 - 1], rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3), (1, 1, 2), ()], ids=str)
def test_actions_of_any_shape_are_flattened(make_minari: Make, shape: tuple[int, ...]) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (4, *shape))
    make_minari(episode(actions=actions), action_space=Box(-1, 1, shape))
    got = load_minari(ID).transitions.action
    np.testing.assert_array_equal(got, actions.reshape(4, -1).astype(np.float32))


def test_bounds_that_the_space_lacks_may_be_those_of_the_data(make_minari: Make) -> None:
    actions = np.array([[-0.5, 3.0], [0.5, 4.0], [0.0, 7.0], [0.0, 5.0]])
    make_minari(
        episode(actions=actions), action_space=Box(np.float32([-1, 0]), np.float32([1, np.inf]))
    )
    with pytest.raises(UnsupportedSpaceError, match="unbounded='data'"):
        load_minari(ID)
    with pytest.warns(UserWarning, match=r"Action dimensions \[1\] have no bounds"):
        dataset = load_minari(ID, unbounded="data")
    assert dataset.action_scaler == ActionScaler([-1, 0], [1, 7])


# --- spaces that do not fit


@pytest.mark.parametrize(
    ("spaces", "options", "message"),
    [
        ({"action_space": Box(-np.inf, 1, (2,))}, {}, r"dimension 0 is unbounded.* Pass low="),
        ({}, {"low": [-1.0] * 3}, r"Pass low= and high="),
        ({"action_space": Discrete(3)}, {}, r"action space .* got Discrete\(3\)"),
        ({"observation_space": Discrete(3)}, {}, r"observation space .* got Discrete"),
        ({}, {"obs_keys": ["observation"]}, r"expected a Box without keys"),
        (
            {"observation_space": goal_space(extra=Box(0, 1, (1,)))},
            {},
            r"custom keys: got \['achieved_goal', 'desired_goal', 'extra', 'observation'\]",
        ),
        (
            {"observation_space": goal_space(extra=Discrete(2))},
            {"obs_keys": ["extra"]},
            r"part 'extra' does not fit: got Discrete\(2\)",
        ),
        (
            {"observation_space": goal_space()},
            {"obs_keys": ["observaton"]},
            r"part 'observaton' does not fit: got None, .* there are \['achieved_goal'",
        ),
        ({"observation_space": goal_space()}, {"obs_keys": []}, "`obs_keys` is empty"),
    ],
)
def test_a_space_that_does_not_fit_is_refused(
    make_minari: Make, spaces: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    make_minari(**spaces)  # the spaces are looked at before any episode
    with pytest.raises(UnsupportedSpaceError, match=message):
        load_minari(ID, **options)


# --- bad episodes


def spoilt(field: str, row: int, value: float, steps: int = 4) -> dict[str, np.ndarray]:
    column = np.array(getattr(episode(steps), field), np.float64)
    column[row] = value
    return {field: column}


BAD = {
    "observations too few": (
        {"observations": np.zeros((4, 3))},
        r"`observations`.*\(4, 3\).*\(5, 3",
    ),
    "observations too wide": ({"observations": np.zeros((5, 4))}, r"`observations`.*\(5, 4\)"),
    "actions too few": (
        {"actions": np.zeros((3, 2))},
        r"`action`.*got \(3, 2\), expected \(4, 2\)",
    ),
    "rewards in a column": ({"rewards": np.zeros((4, 1))}, r"`reward`.*\(4, 1\), expected \(4,\)"),
    "rewards too few": ({"rewards": np.zeros(3)}, r"`terminations`.*got \(4,\), expected \(3,\)"),
    "truncations too many": ({"truncations": [False] * 5}, r"`truncations`.*\(5,\), expected \(4,"),
    "nan": (spoilt("observations", 2, np.nan), r"`obs` is not finite.*got nan at row 2"),
    "nan in the last observation": (
        spoilt("observations", 4, np.nan),
        r"`next_obs` is not finite.*got nan at row 3",
    ),
    "inf": (spoilt("rewards", 1, np.inf), r"`reward` is not finite.*got inf at row 1"),
    "outside": (spoilt("actions", 3, 1.5), r"`action` lies outside the Box: got 1.5 at row 3"),
    "no flag": ({"terminations": [False] * 4}, r".* leave the end open: got False twice at row 3"),
    "early end": ({"terminations": [0, 1, 0, 1]}, r"`terminations`.*before the end.*at row 1 of 4"),
    "early cut": ({"truncations": [1, 0, 0, 0]}, r"`truncations`.*before the end.*at row 0 of 4"),
    "no flags at all": ({"terminations": [0, 3, 0, 1]}, r"`terminations` is not a flag: got 3"),
    "text": ({"rewards": list("abcd")}, r"`episode_1/rewards` has the wrong dtype"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_a_bad_episode_is_named_or_left_out(
    make_minari: Make, changes: dict[str, Any], message: str
) -> None:
    make_minari(episode(4, 1), episode(4, 2, **changes), episode(2, 3))
    with pytest.raises(DataError, match=rf"^Episode 1 of {ID}: {message}"):
        load_minari(ID)
    with pytest.warns(UserWarning, match=rf"1 of 3 episodes left out. First: Episode 1 of {ID}"):
        dataset = load_minari(ID, on_bad_episode="skip")
    assert dataset.source == f"Minari {ID} (1 of 3 episodes left out)"
    expected = [episode(4, 1).observations[:-1], episode(2, 3).observations[:-1]]
    np.testing.assert_array_equal(
        dataset.transitions.obs, np.concatenate(expected).astype(np.float32)
    )


def test_an_episode_without_a_step_is_bad(make_minari: Make, minari_root: Path) -> None:
    make_minari(episode())
    with h5py.File(hdf5(minari_root), "a") as file:
        file["episode_0/rewards"].resize((0,))
    with pytest.raises(DataError, match=r"Episode 0 .*`rewards` is empty: got shape \(0,\)"):
        load_minari(ID)


def test_an_open_end_can_count_as_truncated(make_minari: Make) -> None:
    make_minari(episode(terminations=[False] * 4))
    dataset = load_minari(ID, unflagged_end="truncate")
    assert dataset.truncated.tolist() == [False, False, False, True]
    assert dataset.transitions.discount.tolist() == [np.float32(0.99)] * 4


def test_actions_outside_can_be_clipped(make_minari: Make) -> None:
    make_minari(episode(**spoilt("actions", 3, 1.5)))
    assert load_minari(ID, out_of_bounds="clip").transitions.action[3].tolist() == [1.0, 1.0]


def test_nothing_left_is_an_empty_dataset(make_minari: Make) -> None:
    make_minari(episode(terminations=[False] * 4))
    with (
        pytest.warns(UserWarning, match="1 of 1 episodes"),
        pytest.raises(
            EmptyDatasetError, match=r"got 0 transitions from Minari toy/set-v0 \(1 of 1"
        ),
    ):
        load_minari(ID, on_bad_episode="skip")


def test_no_episode_is_an_empty_dataset(make_minari: Make) -> None:
    make_minari()
    with pytest.raises(EmptyDatasetError, match="got 0 transitions from Minari toy/set-v0"):
        load_minari(ID)


@pytest.mark.parametrize("option", ["on_bad_episode", "unflagged_end", "out_of_bounds"])
def test_unknown_options_are_refused(make_minari: Make, option: str) -> None:
    make_minari(episode())
    with pytest.raises(DataError, match=f"`{option}` is unknown: got 'ignore'"):
        load_minari(ID, **{option: "ignore"})


# --- what is not there


def test_a_missing_dataset_is_not_downloaded(
    minari_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: object, **__: object) -> None:
        pytest.fail("the loader went to the network")

    monkeypatch.setattr("minari.storage.hosting.download_dataset", download)
    with pytest.raises(DataError, match=r"not on this machine.*Run `minari download D4RL/x/y-v2`"):
        load_minari("D4RL/x/y-v2")


@pytest.mark.parametrize("name", ["", "../toy/set-v0", "toy/set", "toy", "toy/../toy/set-v0"])
def test_an_id_leads_nowhere_else(make_minari: Make, minari_root: Path, name: str) -> None:
    make_minari(episode())
    (minari_root / "inner").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "MINARI_DATASETS_PATH", str(minari_root / "inner" if ".." in name else minari_root)
        )
        with pytest.raises(DataError, match="Minari dataset"):
            load_minari(name)
        with pytest.raises(DataError, match="Minari dataset"):
            load_minari(str(minari_root / "toy" / "set-v0"))


def test_something_else_than_a_dataset_is_refused() -> None:
    with pytest.raises(DataError, match="got list, expected a MinariDataset or an id"):
        load_minari([])  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [load_minari, minari_reference])
def test_without_minari_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, function: Callable[[str], object]
) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(MissingDependencyError, match=r"pip install '\.\[datasets\]'"):
        function(ID)


def test_a_storage_format_without_its_library_is_named(
    make_minari: Make, minari_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_minari(episode())
    edit_metadata(minari_root, data_format="arrow")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "minari.dataset._storages.arrow_storage", raising=False)
    with pytest.raises(MissingDependencyError, match="pyarrow"):
        load_minari(ID)


# --- hostile and damaged files


def edit_metadata(root: Path, **changes: object) -> None:
    path = root / ID / "data" / "metadata.json"
    metadata = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in metadata.items() if v is not None}))


def hdf5(root: Path) -> Path:
    return root / ID / "data" / "main_data.hdf5"


HOSTILE_SPEC = json.dumps(
    {
        "id": "Canary-v0",
        "entry_point": "canary:Env",
        "reward_threshold": None,
        "nondeterministic": False,
        "max_episode_steps": None,
        "order_enforce": True,
        "disable_env_checker": False,
        "kwargs": {},
        "additional_wrappers": [],
        "vector_entry_point": None,
    }
)


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A module that shows whether it was imported stands where the file's entry point leads."""
    (tmp_path / "canary.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)

    def make(*_: object, **__: object) -> None:
        pytest.fail("the loader built an environment")

    monkeypatch.setattr(gymnasium, "make", make)


@pytest.mark.usefixtures("no_environment")
def test_the_environment_in_the_metadata_is_never_built(
    make_minari: Make, minari_root: Path
) -> None:
    make_minari(episode())
    edit_metadata(minari_root, env_spec=HOSTILE_SPEC, eval_env_spec=HOSTILE_SPEC)
    assert len(load_minari(ID)) == 4
    assert "canary" not in sys.modules


@pytest.mark.usefixtures("no_environment")
@pytest.mark.parametrize("space", ["observation_space", "action_space"])
def test_nor_to_learn_a_missing_space(make_minari: Make, minari_root: Path, space: str) -> None:
    """Minari itself makes the environment of the file here."""
    make_minari(episode())
    edit_metadata(minari_root, env_spec=HOSTILE_SPEC, **{space: None})
    with pytest.raises(DataError, match=f"got no `{space}` in its metadata"):
        load_minari(ID)
    assert "canary" not in sys.modules


def link_out(root: Path, file: h5py.File) -> None:
    with h5py.File(root / "secret.hdf5", "w") as secret:
        secret["x"] = file["episode_0/observations"][:]
    del file["episode_0/observations"]
    file["episode_0/observations"] = h5py.ExternalLink(str(root / "secret.hdf5"), "x")


def link_soft(root: Path, file: h5py.File) -> None:
    del file["episode_0/rewards"]
    file["episode_0/rewards"] = h5py.SoftLink("/episode_1/rewards")


def group_out(root: Path, file: h5py.File) -> None:
    with h5py.File(root / "secret.hdf5", "w") as secret:
        file.copy("episode_0", secret)
    del file["episode_0"]
    file["episode_0"] = h5py.ExternalLink(str(root / "secret.hdf5"), "episode_0")


def virtual(root: Path, file: h5py.File) -> None:
    with h5py.File(root / "secret.hdf5", "w") as secret:
        secret["x"] = file["episode_0/rewards"][:]
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource(str(root / "secret.hdf5"), "x", (4,))
    del file["episode_0/rewards"]
    file.create_virtual_dataset("episode_0/rewards", layout)


def external(root: Path, file: h5py.File) -> None:
    np.zeros(4).tofile(root / "secret.bin")
    del file["episode_0/rewards"]
    where = [(str(root / "secret.bin"), 0, 32)]
    file.create_dataset("episode_0/rewards", (4,), "f8", external=where)


@pytest.mark.parametrize("spoil", [link_out, link_soft, group_out, virtual, external])
def test_nothing_outside_the_file_is_read(
    make_minari: Make, minari_root: Path, spoil: Callable[[Path, h5py.File], None]
) -> None:
    make_minari(episode(), episode())
    with h5py.File(hdf5(minari_root), "a") as file:
        spoil(minari_root, file)
    with pytest.raises(DataError, match=r"`episode_0\S*` is not stored here.*stored in the file"):
        load_minari(ID)


class Canary:
    """Unpickling an instance leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("field", ["actions", "observations", "rewards"])
def test_pickled_objects_stay_bytes(make_minari: Make, minari_root: Path, field: str) -> None:
    make_minari(episode())
    mark = minari_root / "executed"
    payload = np.frombuffer(pickle.dumps(Canary(mark)), np.uint8)
    with h5py.File(hdf5(minari_root), "a") as file:
        del file["episode_0"][field]
        rows = file["episode_0"].create_dataset(field, (4,), h5py.vlen_dtype(np.uint8))
        for i in range(4):
            rows[i] = payload
    with pytest.raises(DataError, match=field.rstrip("s")):
        load_minari(ID)
    assert not mark.exists()
    pickle.loads(payload.tobytes())  # noqa: S301 (shows that the canary works)
    assert mark.exists()


def test_a_file_cannot_declare_more_memory_than_it_fills(
    make_minari: Make, minari_root: Path
) -> None:
    make_minari(episode())
    with h5py.File(hdf5(minari_root), "a") as file:
        del file["episode_0/rewards"]
        file.create_dataset("episode_0/rewards", (10**11,), "f8", chunks=(10**6,))
    with pytest.raises(DataError, match="declares more than it can hold: got 8000000"):
        load_minari(ID)


def box(**changes: object) -> str:
    return json.dumps(
        json.loads(serialize_space(Box(-1, 1, (2,)))) | {"low": -1, "high": 1} | changes
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_episodes": 7}, r"Episode 2 .*`episode_2` is missing"),
        ({"total_episodes": 10**9}, r"`total_episodes` .* is wrong: got 1000000000, expected"),
        ({"total_episodes": -1}, r"`total_episodes` .* is wrong: got -1"),
        ({"total_episodes": "many"}, r"`total_episodes` .* is wrong: got 'many'"),
        ({"observation_space": box(shape=[10**9])}, "1000000000 numbers from"),
        ({"action_space": box(shape=[10**5] * 2)}, "10000000000 numbers from"),
        ({"action_space": box(dtype="U100000000")}, "the dtype U100000000"),
        ({"observation_space": "[" * 10**5}, "cannot be opened"),
        ({"observation_space": "x" * 2**25}, "more than 16777216 bytes"),
        ({"minari_version": "9.9.9"}, r"cannot be opened: got ValueError .*9\.9\.9"),
        ({"observation_space": "{}"}, r"cannot be opened: got KeyError"),
        ({"observation_space": "[]"}, r"cannot be opened: got AttributeError"),
        ({"data_format": "zip"}, r"cannot be opened"),
        ({"dataset_id": "other/set-v0"}, r"not on this machine: got Misconfigured.*other/set-v0"),
    ],
)
def test_metadata_that_lie_are_refused(
    make_minari: Make, minari_root: Path, changes: dict[str, object], message: str
) -> None:
    make_minari(episode(4), episode(2))
    edit_metadata(minari_root, **changes)
    with pytest.raises(DataError, match=message):
        load_minari(ID)


@pytest.mark.parametrize("said", [5, 10**12, -1, "many"])
def test_no_count_of_steps_is_believed(make_minari: Make, minari_root: Path, said: object) -> None:
    make_minari(episode(4), episode(2))
    edit_metadata(minari_root, total_steps=said)
    assert len(load_minari(ID)) == 6


def oversized_chunk(group: h5py.Group) -> None:
    """40 rewards in a chunk of a gigabyte, deflated twice: some kilobytes."""
    group.create_dataset("rewards", (4,), "f8", maxshape=(None,), chunks=(2**27,))


def deflated_twice(group: h5py.Group) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((2**20,))
    for _ in range(2):
        plist.set_deflate(9)
    space = h5py.h5s.create_simple((4,), (h5py.h5s.UNLIMITED,))
    h5py.h5d.create(group.id, b"rewards", h5py.h5t.IEEE_F64LE, space, plist)


def shared_elements(group: h5py.Group) -> None:
    """Elements of any length, which may all be the same piece of the file."""
    group.create_dataset("rewards", (4,), h5py.vlen_dtype(np.float64))


def texts(group: h5py.Group) -> None:
    group.create_dataset("rewards", (4,), h5py.string_dtype())


def references(group: h5py.Group) -> None:
    group.create_dataset("rewards", (4,), h5py.ref_dtype)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (oversized_chunk, "declares more than it can hold"),
        (deflated_twice, "packed in an unusual way"),
        (shared_elements, "elements of any length"),
        (texts, "elements of any length"),
        (references, "elements of any length"),
    ],
)
def test_rewards_that_would_fill_the_memory(
    make_minari: Make, minari_root: Path, make: Callable[[h5py.Group], None], message: str
) -> None:
    make_minari(episode())
    with h5py.File(hdf5(minari_root), "a") as file:
        del file["episode_0/rewards"]
        make(file["episode_0"])
    with peak_memory() as peak, pytest.raises(DataError, match=message):
        load_minari(ID)
    assert peak[0] < SLACK


def test_a_dataset_in_the_place_of_an_episode_is_refused_unread(
    make_minari: Make, minari_root: Path
) -> None:
    """To look for a name in it would read it, row by row."""
    make_minari(episode())
    with h5py.File(hdf5(minari_root), "a") as file:
        del file["episode_0"]
        file.create_dataset("episode_0", (10**7,), "f8", chunks=(100,), compression="gzip")
    start = time.process_time()
    with pytest.raises(DataError, match="`episode_0` has the wrong type: got a dataset"):
        load_minari(ID)
    assert time.process_time() - start < 20  # row by row it is minutes


def test_what_is_not_asked_for_is_not_read(make_minari: Make, minari_root: Path) -> None:
    """Groups in groups, and infos of any size and kind."""
    make_minari(episode())
    with h5py.File(hdf5(minari_root), "a") as file:
        group = file["episode_0"].require_group("infos")
        group.create_dataset("bomb", (10**10,), "f8", chunks=(10**6,))
        group["out"] = h5py.ExternalLink("secret.hdf5", "x")
        for _ in range(2_000):
            group = group.create_group("g")
    start = time.process_time()  # of this process alone, however busy the machine is
    assert len(load_minari(ID)) == 4
    assert time.process_time() - start < 20  # the bomb alone unpacks in minutes


def test_holes_in_a_file_count_for_nothing(make_minari: Make, minari_root: Path) -> None:
    make_minari(episode())
    path = hdf5(minari_root)
    with h5py.File(path, "a") as file:
        del file["episode_0/rewards"]
        file.create_dataset("episode_0/rewards", (10**9,), "f8", chunks=(10**6,))
        file["hole"] = np.zeros(4)
    size = path.stat().st_size
    with open(path, "ab") as raw:
        raw.truncate(2**33)
    if _hdf5.stored_bytes(path) > size + 2**20:
        pytest.skip("this file system stores holes")
    with pytest.raises(DataError, match="declares more than it can hold"):
        load_minari(ID)


# --- images


PICTURES = Box(0, 255, (32, 48, 3), np.uint8)


def encoded(form: str, size: tuple[int, int] = (48, 32), mode: str = "RGB") -> np.ndarray:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, form)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def test_memory_of_images_is_taken_after_their_size_is_known(
    make_minari: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.zeros((5, 32, 48, 3), np.uint8)
    make_minari(episode(observations=frames), observation_space=PICTURES)

    def refuse(*_: object) -> None:
        raise DataError("too large")

    monkeypatch.setattr("gtp_datasets.minari_loader.check_expansion", refuse)
    monkeypatch.setattr(minari_loader._Frames, "allocate", lambda _: pytest.fail("allocated"))
    with pytest.raises(DataError, match="too large"):
        load_minari(ID)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 32\n%%EndComments\nshowpage\n"


def test_images_are_those_that_minari_decodes(make_minari: Make) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), np.uint8)
    dataset = make_minari(episode(observations=frames), observation_space=PICTURES)
    (theirs,) = dataset.iterate_episodes()
    ours = load_minari(ID).transitions
    np.testing.assert_array_equal(ours.obs.reshape(4, 32, 48, 3), theirs.observations[:-1])
    np.testing.assert_array_equal(ours.next_obs.reshape(4, 32, 48, 3), theirs.observations[1:])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.frombuffer(EPS, np.uint8), "UnidentifiedImageError"),
        (encoded("WEBP"), "UnidentifiedImageError"),
        (encoded("BMP"), "UnidentifiedImageError"),
        (encoded("PNG", (4000, 4000)), "RGB of 4000 x 4000"),
        (encoded("PNG", mode="L"), "L of 32 x 48"),
        (encoded("JPEG", (32, 48)), "RGB of 48 x 32"),
        (encoded("JPEG")[:200], "Error"),
        (np.zeros(0, np.uint8), "UnidentifiedImageError"),
        (encoded("PNG"), None),
    ],
)
def test_images_of_two_formats_and_one_size(
    make_minari: Make, minari_root: Path, image: np.ndarray, message: str | None
) -> None:
    frames = np.zeros((5, 32, 48, 3), np.uint8)
    make_minari(episode(observations=frames), observation_space=PICTURES)
    with h5py.File(hdf5(minari_root), "a") as file:
        good = file["episode_0/observations"][0]
        del file["episode_0/observations"]
        kind = h5py.vlen_dtype(np.uint8)
        rows = file["episode_0"].create_dataset("observations", (5,), kind)
        for i in range(5):
            rows[i] = image if i == 3 else good
    if message is None:
        assert len(load_minari(ID)) == 4
        return
    with (
        mock.patch("subprocess.Popen", side_effect=AssertionError("a program was started")),
        mock.patch("subprocess.call", side_effect=AssertionError("a program was started")),
        peak_memory() as peak,
        pytest.raises(DataError, match=f"observations at row 3` is no image: got .*{message}"),
    ):
        load_minari(ID)
    assert peak[0] < SLACK


def test_texts_of_an_image_are_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """They pack a thousand to one, and no pixel is made of them."""
    frame, buffer, info = np.full((32, 48, 3), 7, np.uint8), io.BytesIO(), PngInfo()
    info.add_text("remark", "a" * 10**6, zip=True)
    Image.fromarray(frame).save(buffer, "PNG", pnginfo=info, icc_profile=bytes(10**6))
    monkeypatch.setattr("PIL.PngImagePlugin.MAX_TEXT_MEMORY", 1000)
    monkeypatch.setattr("PIL.PngImagePlugin.MAX_TEXT_CHUNK", 1000)
    with pytest.raises(ValueError, match="ecompressed"):
        Image.open(io.BytesIO(buffer.getvalue())).load()
    assert (decoded(buffer.getvalue(), frame.shape, "obs") == frame).all()
    with pytest.raises(DataError, match="is no image"):
        decoded(buffer.getvalue()[:60], frame.shape, "obs")


def test_rows_that_share_an_image_are_refused(make_minari: Make, minari_root: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), np.uint8)
    make_minari(episode(8, observations=frames), observation_space=PICTURES)
    with h5py.File(hdf5(minari_root), "a") as file:
        rows = file["episode_0/observations"]
        long = np.resize(rows[0], 20_000)  # what is behind a JPEG's end is not looked at
        del file["episode_0/observations"]
        kind = h5py.vlen_dtype(np.uint8)
        rows = file["episode_0"].create_dataset("observations", (9,), kind)
        rows[0] = long
        at = rows.id.get_offset()
    data = bytearray(hdf5(minari_root).read_bytes())
    data[at : at + 9 * 16] = data[at : at + 16] * 9  # nine times the same place in the file
    hdf5(minari_root).write_bytes(data)
    with pytest.raises(DataError, match="images that share their bytes"):
        load_minari(ID)


def test_a_part_is_no_path(make_minari: Make, minari_root: Path) -> None:
    space = Dict({"a": Box(-9, 9, (1,)), "x/y": Box(-9, 9, (1,))})
    parts = {"a": np.zeros((5, 1), np.float32), "x/y": np.ones((5, 1), np.float32)}
    make_minari(episode(observations=parts), observation_space=space)
    with pytest.raises(DataError, match=r"`obs_keys` names no part: got \['x/y'\]"):
        load_minari(ID, obs_keys=["a", "x/y"])


def test_episodes_that_are_links_to_one_are_counted(make_minari: Make, minari_root: Path) -> None:
    make_minari(*[episode()] * 50)
    with h5py.File(hdf5(minari_root), "r") as file:
        rows = {
            name: file[f"episode_0/{name}"][()] for name in file["episode_0"] if name != "infos"
        }
    hdf5(minari_root).unlink()
    with h5py.File(hdf5(minari_root), "w", libver="latest") as file:
        for name, values in rows.items():
            file[f"episode_0/{name}"] = values
        for i in range(1, 50):
            file[f"episode_{i}"] = file["episode_0"]
    with pytest.raises(DataError, match="has more fields than fit into it: got 300 in"):
        load_minari(ID)


def test_numbers_in_the_place_of_images_are_no_lengths(
    make_minari: Make, minari_root: Path
) -> None:
    make_minari(
        episode(observations=np.zeros((5, 32, 48, 3), np.uint8)), observation_space=PICTURES
    )
    with h5py.File(hdf5(minari_root), "a") as file:
        del file["episode_0/observations"]
        file["episode_0/observations"] = np.full(5, 200 * 2**20)
    with peak_memory() as peak, pytest.raises(DataError, match="row 0` is no image"):
        load_minari(ID)
    assert peak[0] < SLACK


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_a_truncated_file_is_refused(make_minari: Make, minari_root: Path, share: float) -> None:
    make_minari(*(episode(seed=i) for i in range(5)))
    content = hdf5(minari_root).read_bytes()
    hdf5(minari_root).write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"main_data.hdf5` cannot be read as HDF5: got OSError"):
        load_minari(ID)


# --- reference scores and memory


def test_reference_scores_come_with_the_id(make_minari: Make, minari_root: Path) -> None:
    make_minari(episode())
    with pytest.raises(
        DataError, match="toy/set-v0 has no reference scores: got ref_min_score=None"
    ):
        minari_reference(ID)
    edit_metadata(minari_root, ref_min_score=-1.0, ref_max_score=3.0)
    dataset = minari.load_dataset(ID)
    reference = minari_reference(dataset)
    returns = np.array([-1.0, 0.0, 3.0])
    expected = 100 * minari.get_normalized_score(dataset, returns)  # Minari counts from 0 to 1
    np.testing.assert_allclose(normalized_score(returns, reference).values, expected)
    assert reference.source == "metadata of Minari toy/set-v0"
    edit_metadata(minari_root, ref_min_score="low")
    with pytest.raises(DataError, match="Reference scores are unusable"):
        minari_reference(ID)


def test_loading_needs_less_than_twice_the_memory_of_the_result(make_minari: Make) -> None:
    long = [cut(1000, seed) for seed in range(100)]
    whole = make_minari(*long)
    load_minari(whole.filter_episodes(lambda e: e.id == 0))  # imports are not what is measured
    tracemalloc.start()
    try:
        dataset = load_minari(ID)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(dataset) == 100_000
    assert dataset.nbytes < peak < 2 * dataset.nbytes
