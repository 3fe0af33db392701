"""Episodes of our own generators: fields, joining, files; and the data of Pendulum."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from benchmarks import pendulum_data
from benchmarks.rollouts import (
    load,
    returns_of,
    rollout,
    save,
    save_d4rl,
    seeds_of,
    successes_of,
)
from gtp_datasets import load_d4rl_hdf5
from gtp_experiments import TASKS


class Walk(gymnasium.Env):
    """A point that the action moves: beyond 1 it falls, after five steps it is stopped."""

    observation_space = Box(-np.inf, np.inf, (1,))
    action_space = Box(-1.0, 1.0, (1,))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-0.5, 0.5), 0
        return np.array([self.x]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.x, self.t = self.x + float(action[0]), self.t + 1
        falls = abs(self.x) > 1
        info = {"success": float(self.t == 2)}
        return np.array([self.x]), self.t * 1.0, falls, self.t == 5, info


def still(obs: np.ndarray) -> np.ndarray:
    return np.zeros(1)


def test_an_episode_that_is_stopped_is_a_timeout() -> None:
    arrays = rollout(Walk(), still, 0)
    assert arrays["timeouts"].tolist() == [False] * 4 + [True]
    assert not arrays["terminals"].any()
    assert arrays["success"].tolist() == [False, True, True, True, True]  # once is enough
    np.testing.assert_array_equal(arrays["observations"][1:], arrays["next_observations"][:-1])
    assert arrays["rewards"].tolist() == [1, 2, 3, 4, 5]


def test_an_episode_that_ends_by_itself_terminates_and_actions_are_clipped() -> None:
    arrays = rollout(Walk(), lambda obs: np.full(1, 7.0), 0)
    assert arrays["terminals"].tolist() in ([True], [False, True])
    assert not arrays["timeouts"].any()
    assert (arrays["actions"] == 1).all()


def test_an_end_of_both_kinds_terminates() -> None:
    steps = iter([0.0, 0.0, 0.0, 0.0, 1.0])
    env = Walk()
    arrays = rollout(env, lambda obs: np.array([next(steps) * np.sign(obs[0])]), 0)
    assert len(arrays["rewards"]) == 5
    assert abs(env.x) > 1
    assert arrays["terminals"][-1]
    assert not arrays["timeouts"][-1]


def test_figures_are_those_of_the_episodes() -> None:
    one, two = rollout(Walk(), still, 0), rollout(Walk(), lambda obs: np.ones(1), 1)
    joined = {field: np.concatenate([one[field], two[field]]) for field in one}
    assert returns_of(joined).tolist() == [15.0, float(two["rewards"].sum())]
    assert successes_of(joined).tolist() == [True, bool(two["success"][-1])]


def test_what_is_written_is_read_by_the_loader(tmp_path: Path) -> None:
    arrays = rollout(Walk(), still, 0)
    save_d4rl(tmp_path / "walk.hdf5", arrays)
    dataset = load_d4rl_hdf5(tmp_path / "walk.hdf5")
    assert dataset.transitions.reward.tolist() == [1, 2, 3, 4, 5]
    assert dataset.truncated.tolist() == [False] * 4 + [True]
    assert (dataset.transitions.discount > 0).all()
    assert [p.name for p in tmp_path.iterdir()] == ["walk.hdf5"]


def test_training_and_validation_have_seeds_of_their_own() -> None:
    assert not set(seeds_of(0, 0, 100)) & set(seeds_of(0, 1, 100))
    assert seeds_of(0, 0, 5) == seeds_of(0, 0, 100)[:5] != seeds_of(1, 0, 5)


def test_files_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    save(path, {"x": np.arange(3)})
    assert load(path)["x"].tolist() == [0, 1, 2]

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="no space"):
        save(path, {"x": np.arange(4)})
    assert load(path)["x"].tolist() == [0, 1, 2]


def test_pendulum_data_are_between_chance_and_the_good_controller() -> None:
    """The returns that the task is scored by, within what 60 episodes can tell."""
    reference = TASKS["pendulum"].reference
    low, high = (
        returns_of(pendulum_data.play(controller, 1, 60))
        for controller in (pendulum_data.at_random, lambda _: pendulum_data.swing_up)
    )
    for wanted, returns in ((reference.min, low), (reference.max, high)):
        assert abs(returns.mean() - wanted) < 5 * returns.std() / np.sqrt(60)
    middle = returns_of(pendulum_data.play(pendulum_data.mediocre, 1, 60)).mean()
    assert low.mean() + 300 < middle < high.mean() - 200
    again = pendulum_data.play(pendulum_data.mediocre, 1, 1)
    np.testing.assert_array_equal(
        again["actions"], pendulum_data.play(pendulum_data.mediocre, 1, 2)["actions"][:200]
    )
