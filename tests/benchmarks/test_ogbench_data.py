"""The generator of OGBench's data: layout, seeds, resuming; real environments if installed."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from benchmarks import ogbench_data
from benchmarks.ogbench_data import demonstrate, demonstration, episode, success_share
from benchmarks.rollouts import collect, seeds_of
from gtp_datasets import load_d4rl_hdf5, load_ogbench

# OGBench's oracles draw from numpy's global generator, and so do those that stand for them.
pytestmark = pytest.mark.global_rng

needs_ogbench = pytest.mark.skipif(
    importlib.util.find_spec("ogbench") is None,
    reason="OGBench is an extra: PYTHONPATH=outputs/ogbench after make ogbench-data",
)


class Counter:
    """An environment whose state counts its steps, with a new target where one is asked for."""

    def __init__(self) -> None:
        self.unwrapped = self
        self.targets = 0

    def _info(self) -> dict[str, Any]:
        state = np.array([self.x])
        return {
            "privileged/target_task": "cube",
            "prev_qpos": state - 1,
            "prev_qvel": state,
            "prev_button_states": np.array([1, 0]),
        }

    def reset(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        self.x = float(np.random.default_rng(seed).integers(100))
        return np.array([self.x]), self._info()

    def set_new_target(self, p_stack: float) -> tuple[np.ndarray, dict[str, Any]]:
        self.targets += 1
        return np.array([self.x]), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.x += 1
        return np.array([self.x]), 0.0, False, False, self._info()


class ThreeSteps:
    """An oracle that is done after three steps and draws from numpy's global generator."""

    def reset(self, obs: np.ndarray, info: dict[str, Any]) -> None:
        self.left = 3

    @property
    def done(self) -> bool:
        return self.left == 0

    def select_action(self, obs: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        self.left -= 1
        return np.random.uniform(-1, 1, 2)  # noqa: NPY002 - as OGBench's oracles do


def play(seed: int, noise: float = 0.0, rows: int = 10) -> dict[str, np.ndarray]:
    return episode(Counter(), {"cube": ThreeSteps()}, seed, noise, rows)


def test_a_row_is_a_state_and_the_action_taken_there() -> None:
    env = Counter()
    arrays = episode(env, {"cube": ThreeSteps()}, 3, 0.0, 10)
    first = arrays["observations"][0, 0]
    assert arrays["observations"][:, 0].tolist() == [first + i for i in range(10)]
    np.testing.assert_array_equal(arrays["qpos"], arrays["observations"])
    assert arrays["actions"].shape == (10, 2)
    assert arrays["terminals"].tolist() == [False] * 9 + [True]
    assert arrays["button_states"].tolist() == [[1, 0]] * 10
    assert env.targets == 3  # after steps 3, 6 and 9


def test_a_trajectory_is_a_function_of_its_seed() -> None:
    for noise in (0.0, 0.5):
        np.testing.assert_array_equal(play(1, noise)["actions"], play(1, noise)["actions"])
    assert (play(1)["actions"] != play(2)["actions"]).all()
    assert (play(1)["actions"] != play(1, 0.5)["actions"]).any()
    assert np.abs(play(1, 50.0)["actions"]).max() == 1  # clipped to the bounds


def test_what_was_collected_is_not_collected_again(tmp_path: Path) -> None:
    seeds = seeds_of(0, 0, 3)
    whole = collect(play, seeds, tmp_path / "whole")

    def interrupted(seed: int) -> dict[str, np.ndarray]:
        if seed == seeds[2]:
            raise KeyboardInterrupt
        return play(seed)

    with pytest.raises(KeyboardInterrupt):
        collect(interrupted, seeds, tmp_path / "parts")
    played: list[int] = []

    def counting(seed: int) -> dict[str, np.ndarray]:
        played.append(seed)
        return play(seed)

    resumed = collect(counting, seeds, tmp_path / "parts")
    assert played == seeds[2:]
    for field, values in whole.items():
        np.testing.assert_array_equal(resumed[field], values)
    assert len(whole["terminals"]) == 30
    assert whole["terminals"].sum() == 3


def test_the_share_counts_trajectories() -> None:
    ends = np.array([0, 0, 1, 0, 1, 0, 0, 1], bool)
    masks = np.array([1, 0, 0, 1, 1, 1, 1, 1])
    assert success_share({"masks": masks, "terminals": ends}) == pytest.approx(1 / 3)


class Table:
    """A cube on a line that has arrived where the action has taken it to its goal."""

    cur_task_info: Mapping[str, Any] = {"goal_xyzs": np.array([[3.0, 0.0, 0.0]])}
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self) -> None:
        self.unwrapped = self

    def reset(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        self.x, self.steps = 0.0, 0
        return np.array([self.x]), {}

    def compute_ob_info(self) -> dict[str, Any]:
        return {"privileged/block_0_pos": np.array([self.x, 0.0, 0.0])}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.x, self.steps = self.x + float(action[0]), self.steps + 1
        arrived = self.x >= 3.0
        return np.array([self.x]), arrived - 1.0, arrived, self.steps == 8, {"success": arrived}


class Pusher:
    """An oracle that looks at where the cube is and where it goes."""

    def reset(self, obs: None, info: None) -> None:
        pass

    def select_action(self, obs: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        block = info["privileged/target_block"]
        way = info["privileged/target_block_pos"] - info[f"privileged/block_{block}_pos"]
        return np.clip(way[:1], -1, 1)


def test_a_demonstration_ends_at_the_goal() -> None:
    straight = demonstration(Table(), Pusher(), 0, 0.0)
    assert straight["observations"][:, 0].tolist() == [0, 1, 2]
    assert straight["next_observations"][:, 0].tolist() == [1, 2, 3]
    assert straight["terminals"].tolist() == [False, False, True]
    assert straight["success"].tolist() == [False, False, True]
    noisy = [demonstration(Table(), Pusher(), seed, 2.0) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(noisy[0]["actions"], noisy[1]["actions"])
    assert noisy[0]["actions"][0] != noisy[2]["actions"][0]
    assert all(np.abs(episode["actions"]).max() <= 1 for episode in noisy)


@needs_ogbench
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_oracle_of_ogbench_demonstrates_its_task(tmp_path: Path) -> None:
    record = demonstrate(3, 0, tmp_path)
    assert record["share_of_episodes_that_reach_the_goal"] == 1
    assert not list(tmp_path.glob("*.parts"))
    (path,) = tmp_path.glob("*.hdf5")
    ours = load_d4rl_hdf5(path)
    assert len(ours) == record["transitions"]
    assert ours.terminated.sum() == 3
    assert ours.transitions.obs.shape == (len(ours), 28)
    before = path.stat().st_mtime_ns
    assert demonstrate(3, 0, tmp_path) == record
    assert path.stat().st_mtime_ns == before


@needs_ogbench
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["play", "noisy"])
@pytest.mark.parametrize("name", ogbench_data.ENVIRONMENTS)
def test_oracles_of_ogbench_make_readable_files(
    name: str, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ogbench

    monkeypatch.setattr(ogbench_data, "EPISODE", 40)
    monkeypatch.setattr(ogbench_data, "TASKS", [2])
    record = ogbench_data.generate(name, kind, 80, 0, tmp_path)
    assert record["episodes"] == 2
    assert not list(tmp_path.glob("*.parts"))
    single = tmp_path / f"{name}-{kind}-singletask-task2-v0.npz"
    ours = load_ogbench(single)
    assert len(ours) == 80
    assert len(load_ogbench(single, split="validation")) == 40
    # OGBench's own function reads the file without rewards and comes to the same data.
    _, train, _ = ogbench.make_env_and_datasets(
        single.stem, dataset_path=str(tmp_path / f"{name}-{kind}-v0.npz")
    )
    theirs = load_ogbench(train)
    np.testing.assert_array_equal(ours.transitions.obs, theirs.transitions.obs)
    np.testing.assert_array_equal(ours.transitions.reward, theirs.transitions.reward)
    np.testing.assert_array_equal(ours.terminated, theirs.terminated)
    assert ogbench_data.generate(name, kind, 80, 0, tmp_path) == record  # nothing is repeated
