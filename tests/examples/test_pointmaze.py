from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import gymnasium as gym
import matplotlib.image
import minari
import numpy as np
import pytest

from examples.plots import (
    FOUR_MODES,
    plot_advantage,
    plot_bandit,
    plot_flow,
    plot_trajectories,
)
from examples.pointmaze import (
    MEDIUM,
    UMAZE,
    EvaluationResult,
    WaypointController,
    behaviour,
    collect,
    evaluate,
    flatten,
    make_env,
    maze_map,
)

STEPS = 3_000
FAR = {UMAZE: ((1, 1), (3, 1)), MEDIUM: ((1, 1), (6, 6))}


@pytest.fixture(autouse=True)
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # `gym.make` leaves a file of its maze
    return tmp_path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> minari.MinariDataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        return collect("test/umaze-v0", steps=STEPS, seed=3, progress=False)


def towards_goal(obs: np.ndarray) -> np.ndarray:
    """A policy without a map: straight at the goal, braking."""
    return np.clip(4 * (obs[:, 6:] - obs[:, :2]) - obs[:, 2:4], -1, 1)


def assert_same(one: EvaluationResult, two: EvaluationResult) -> None:
    for name in ("success", "steps", "returns", "goals"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
    for a, b in zip(one.trajectories, two.trajectories, strict=True):
        np.testing.assert_array_equal(a, b)


# --- the data ----------------------------------------------------------------------------------


def test_every_episode_has_one_ending_and_a_reward_only_at_the_goal(
    dataset: minari.MinariDataset,
) -> None:
    lengths = []
    for episode in dataset.iterate_episodes():
        length = len(episode)
        lengths.append(length)
        for key, width in (("observation", 4), ("achieved_goal", 2), ("desired_goal", 2)):
            assert episode.observations[key].shape == (length + 1, width)
        assert episode.actions.shape == (length, 2)
        assert episode.actions.dtype == np.float32
        assert np.abs(episode.actions).max() <= 1
        ends = episode.terminations | episode.truncations
        assert not (episode.terminations & episode.truncations).any()
        assert ends.tolist() == [False] * (length - 1) + [True]
        np.testing.assert_array_equal(episode.rewards, episode.terminations.astype(float))
        gap = episode.observations["achieved_goal"] - episode.observations["desired_goal"]
        reached = np.linalg.norm(gap, axis=1) <= 0.45  # the radius that the environment documents
        np.testing.assert_array_equal(reached[1:], episode.terminations)
        np.testing.assert_array_equal(reached, episode.infos["success"])
    assert sum(lengths) == dataset.total_steps == STEPS
    assert max(lengths) <= gym.spec(UMAZE).max_episode_steps


def test_the_last_episode_is_cut_by_the_budget_and_is_no_result(
    dataset: minari.MinariDataset,
) -> None:
    *whole, last = dataset.iterate_episodes()
    assert last.truncations[-1]
    assert len(last) < gym.spec(UMAZE).max_episode_steps
    result = behaviour(dataset)
    assert result.steps.tolist() == [len(episode) for episode in whole]
    assert result.success.tolist() == [episode.rewards.sum() == 1 for episode in whole]


def test_the_data_replay_in_an_ordinary_environment(dataset: minari.MinariDataset) -> None:
    """The stored seed and actions lead a plain `gym.make` through the stored observations."""
    env = gym.make(UMAZE, continuing_task=False)
    metadata = dataset.storage.get_episode_metadata(range(5))
    for episode, stored in zip(dataset.iterate_episodes(range(5)), metadata, strict=True):
        states = [env.reset(seed=stored["seed"])[0], *(env.step(a)[0] for a in episode.actions)]
        for key, values in episode.observations.items():
            np.testing.assert_array_equal(np.stack([s[key] for s in states]), values)


def test_the_behaviour_is_good_and_leaves_room(dataset: minari.MinariDataset) -> None:
    result = behaviour(dataset)
    assert result.success.mean() > 0.8
    assert result.steps.max() > 2 * np.median(result.steps)


def test_the_same_seed_gives_the_same_data_and_another_seed_does_not(
    dataset: minari.MinariDataset,
) -> None:
    for seed, same in ((3, True), (4, False)):
        other = collect(f"test/again-v{seed}", steps=STEPS, seed=seed, progress=False)
        pairs = zip(dataset.iterate_episodes(), other.iterate_episodes(), strict=False)
        equal = [
            np.array_equal(a.actions, b.actions)
            and np.array_equal(a.observations["observation"], b.observations["observation"])
            and np.array_equal(a.observations["desired_goal"], b.observations["desired_goal"])
            for a, b in pairs
        ]
        assert all(equal) if same else not any(equal)
        assert (dataset.total_episodes == other.total_episodes) or not same


def test_the_metadata_say_what_the_data_are(dataset: minari.MinariDataset) -> None:
    metadata = dataset.storage.metadata
    assert metadata["author"] == {"gtp-policy"}
    assert metadata["data_format"] == "hdf5"
    assert any(line.startswith("mujoco==") for line in metadata["requirements"])
    assert dataset.env_spec.id == UMAZE
    assert dataset.env_spec.kwargs["continuing_task"] is False


def test_a_dataset_is_reused_only_for_the_same_arguments(datasets: Path) -> None:
    first = collect("test/reuse-v0", steps=50, progress=False)
    written = (first.storage.data_path / "main_data.hdf5").stat().st_mtime_ns
    again = collect("test/reuse-v0", steps=50, progress=False)
    assert (again.storage.data_path / "main_data.hdf5").stat().st_mtime_ns == written
    assert again.storage.data_path.is_relative_to(datasets)
    with pytest.raises(ValueError, match=r"'test/reuse-v0' is taken: got .*'steps': 50.*expected"):
        collect("test/reuse-v0", steps=60, progress=False)
    with pytest.raises(ValueError, match="is taken"):
        collect("test/reuse-v0", steps=50, seed=1, progress=False)


def test_a_foreign_dataset_is_not_taken_for_ours() -> None:
    collect("test/ours-v0", steps=20, progress=False).storage.update_metadata(
        {"collected_with": None}
    )
    with pytest.raises(ValueError, match="got data collected with None"):
        collect("test/ours-v0", steps=20, progress=False)


def test_nothing_is_left_behind_and_nothing_is_printed(tmp_path: Path) -> None:
    code = "from examples.pointmaze import make_env; make_env()"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, check=True)
    assert (run.stdout, run.stderr) == (b"", b"")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("steps", [0, -1])
def test_a_budget_below_one_step_is_refused(steps: int, datasets: Path) -> None:
    with pytest.raises(ValueError, match=f"got {steps}, expected at least 1"):
        collect("test/none-v0", steps=steps, progress=False)
    assert not any(datasets.iterdir())


# --- the controller ----------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", [UMAZE, MEDIUM])
@pytest.mark.parametrize("back", [False, True])
def test_the_controller_reaches_a_far_goal(env_id: str, back: bool) -> None:
    start, goal = FAR[env_id][:: -1 if back else 1]
    env, rng = make_env(env_id), np.random.default_rng(0)
    driver = WaypointController(maze_map(env_id))
    obs, _ = env.reset(seed=1, options={"reset_cell": np.array(start), "goal_cell": np.array(goal)})
    terminated = truncated = False
    while not (terminated or truncated):
        obs, _, terminated, truncated, _ = env.step(driver(flatten(obs), rng))
    assert terminated


@pytest.mark.parametrize("env_id", [UMAZE, MEDIUM])
def test_the_map_agrees_with_the_environment(env_id: str) -> None:
    """Cells and coordinates of the controller against those of the environment's own maze."""
    maze, world = maze_map(env_id), make_env(env_id).unwrapped.maze
    driver = WaypointController(maze)
    for i, row in enumerate(maze):
        for j, wall in enumerate(row):
            assert wall == (world.maze_map[i][j] == 1)
            centre = world.cell_rowcol_to_xy(np.array([i, j]))
            np.testing.assert_allclose(driver._centre((i, j)), centre)
            assert driver._cell(*centre) == tuple(world.cell_xy_to_rowcol(centre))


def test_the_manner_of_driving_varies() -> None:
    rng = np.random.default_rng(0)
    drivers = [WaypointController.draw(maze_map(), rng) for _ in range(400)]
    speeds, noises = [d.speed for d in drivers], [d.noise for d in drivers]
    assert 1.0 <= min(speeds) < 1.2 < 4.8 < max(speeds) <= 5.0
    assert 0.0 <= min(noises) < 0.03 < 0.57 < max(noises) <= 0.6
    assert 0.25 == pytest.approx(np.mean([d.detour is not None for d in drivers]), abs=0.12)


# --- the evaluation ----------------------------------------------------------------------------


def test_two_evaluations_are_identical_and_a_seed_matters() -> None:
    one = evaluate(towards_goal, episodes=12, seed=5)
    assert 0 < one.success.sum() < 12  # both endings are compared below
    assert_same(one, evaluate(towards_goal, episodes=12, seed=5))
    assert not np.array_equal(one.goals, evaluate(towards_goal, episodes=12, seed=50).goals)


@pytest.mark.parametrize("env_id", [UMAZE, MEDIUM])
def test_the_batched_evaluation_equals_one_environment_at_a_time(env_id: str) -> None:
    episodes, seed = 5, 7
    batched = evaluate(towards_goal, env_id=env_id, episodes=episodes, seed=seed)
    env = gym.make(env_id, continuing_task=False)
    for i in range(episodes):
        obs, _ = env.reset(seed=seed + i)
        path, total, terminated, truncated = [obs["achieved_goal"]], 0.0, False, False
        while not (terminated or truncated):
            flat = flatten(obs).astype(np.float32)
            obs, reward, terminated, truncated, _ = env.step(towards_goal(flat[None])[0])
            path.append(obs["achieved_goal"])
            total += float(reward)
        np.testing.assert_array_equal(batched.trajectories[i], np.stack(path))
        np.testing.assert_array_equal(batched.goals[i], obs["desired_goal"])
        assert batched.success[i] == terminated
        assert batched.steps[i] == len(path) - 1
        assert batched.returns[i] == total


def test_running_episodes_share_one_call_in_the_documented_order() -> None:
    sizes: list[int] = []
    rows: list[np.ndarray] = []

    def act(obs: np.ndarray) -> np.ndarray:
        sizes.append(len(obs))
        rows.append(obs[0])
        return towards_goal(obs)

    result = evaluate(act, episodes=8, seed=5)
    assert sizes == [int((result.steps > t).sum()) for t in range(result.steps.max())]
    assert rows[0].dtype == np.float32
    np.testing.assert_array_equal(rows[0][4:6], rows[0][:2])  # achieved_goal is the position
    np.testing.assert_array_equal(rows[0][6:], result.goals[0].astype(np.float32))
    np.testing.assert_array_equal(rows[0][:2], result.trajectories[0][0].astype(np.float32))


@pytest.mark.parametrize("bad", [np.zeros((3, 1)), np.zeros(2), np.full((3, 2), np.nan)])
def test_a_bad_action_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"`act` returned bad actions: .*shape \(3, 2\)"):
        evaluate(lambda obs: bad, episodes=3)


# --- the pictures ------------------------------------------------------------------------------


def test_pictures_are_written_to_the_given_path(
    tmp_path: Path, dataset: minari.MinariDataset
) -> None:
    rng = np.random.default_rng(0)
    actions = FOUR_MODES[rng.integers(4, size=50)] + 0.05 * rng.normal(size=(50, 2))
    flow = np.stack([5 * rng.normal(size=(50, 2)), actions])
    results = {"data": behaviour(dataset), "straight": evaluate(towards_goal, episodes=3)}
    written = [
        plot_trajectories(tmp_path / "new" / "maze.png", maze_map(), results),
        plot_advantage(
            tmp_path / "advantage.png",
            maze_map(),
            rng.uniform(-1.5, 1.5, (500, 2)),
            rng.normal(size=500),
            rng.uniform(1, 100, 500),
            (-1.0, -1.0),
        ),
        plot_bandit(tmp_path / "bandit.png", {"data": actions}),
        plot_flow(tmp_path / "flow.png", flow, [5.0, 0.0]),
    ]
    for path in written:
        assert path.is_relative_to(tmp_path)
        assert matplotlib.image.imread(path).std() > 0.02  # something was drawn


def test_a_picture_counts_the_samples_near_a_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr("examples.plots._title", lambda axes, name, fact: seen.append(fact))
    shift = 0.05 * np.array([[2.8, 0.0], [0.0, 2.9], [-2.9, 0.0], [0.0, 3.2]])
    plot_bandit(tmp_path / "share.png", {"three of four": FOUR_MODES + shift})
    assert seen == ["75.0 % within 3 std of a mode"]


def test_a_picture_of_advantages_says_how_few_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr("examples.plots._title", lambda axes, name, fact: seen.append(fact))
    position, advantage = np.zeros((20, 2)), np.array([1.0] * 5 + [-1.0] * 15)
    weight = np.array([36.0, 36.0] + [1.0] * 18)  # 72 of 90 are two of twenty's
    plot_advantage(tmp_path / "a.png", maze_map(), position, advantage, weight, (-1.0, -1.0))
    assert seen == [
        "25 % of the actions are better than expected",
        "the tenth that counts most has 80 % of it",
    ]
