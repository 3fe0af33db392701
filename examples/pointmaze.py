"""PointMaze: a controller that gathers data, its collection into Minari, and batched evaluation.

A ball is pushed through a maze from a random start to a random goal. The reward is 1 on the step
that reaches the goal, which ends the episode, and 0 otherwise: a discounted return is worth more
the shorter the trip. The controller's trips are fast and slow, straight and wandering. A clone of
the data drives them all alike; offline reinforcement learning may prefer the good ones.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from typing import Any, NamedTuple

import gymnasium as gym
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer
from tqdm import tqdm

with contextlib.redirect_stderr(io.StringIO()):  # its import prints a notice about other tasks
    import gymnasium_robotics

gym.register_envs(gymnasium_robotics)

UMAZE, MEDIUM = "PointMaze_UMaze-v3", "PointMaze_Medium-v3"
OBS_KEYS = ("observation", "achieved_goal", "desired_goal")  # x y vx vy | x y | goal x y
REVISION = 1  # of the controller, part of a dataset's identity: raise it when the driving changes

Cell = tuple[int, int]
Act = Callable[[np.ndarray], np.ndarray]
Maze = tuple[tuple[int, ...], ...]  # rows from top to bottom, 1 is a wall; a cell has side 1


class EvaluationResult(NamedTuple):
    """Outcome of E episodes."""

    success: np.ndarray  # (E,) bool: the goal was reached within the time limit
    steps: np.ndarray  # (E,) int: length T of the episode, the time limit where it failed
    returns: np.ndarray  # (E,) float: undiscounted sum of rewards
    trajectories: list[np.ndarray]  # E arrays (T + 1, 2): the positions, the start included
    goals: np.ndarray  # (E, 2)


def maze_map(env_id: str = UMAZE) -> Maze:
    """Returns the maze of a registered PointMaze environment, 1 for a wall, 0 for a free cell."""
    return tuple(tuple(int(c == 1) for c in row) for row in gym.spec(env_id).kwargs["maze_map"])


def make_env(env_id: str = UMAZE) -> gym.Env:
    """Builds the environment in which reaching the goal ends the episode."""
    env: Any = gym.make(env_id, continuing_task=False, disable_env_checker=True)
    os.unlink(env.unwrapped.tmp_xml_file_path)  # compiled by now; the host would leave the file
    return env


def flatten(obs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Concatenates a goal observation in the order of ``OBS_KEYS``, shape (8,)."""
    return np.concatenate([obs[key] for key in OBS_KEYS])


@cache
def _next_cells(maze: Maze, goal: Cell) -> dict[Cell, Cell]:
    """Maps every cell from which `goal` can be reached to its successor on a shortest path."""
    successor, queue = {goal: goal}, deque([goal])
    while queue:
        i, j = cell = queue.popleft()
        for near in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):  # the border is all wall
            if not maze[near[0]][near[1]] and near not in successor:
                successor[near] = cell
                queue.append(near)
    return successor


@dataclass
class WaypointController:
    """Drives along the shortest path: PD control toward the centre of the next cell, plus noise.

    Successive noises are correlated (0.9), so that the ball wanders instead of trembling.
    """

    maze: Maze
    speed: float = 5.0  # cruising speed in cells per 100 steps (one second), in (0, 5]
    noise: float = 0.0  # standard deviation of the action noise
    detour: Cell | None = None  # cell to visit before the goal
    _drift: np.ndarray = field(default_factory=lambda: np.zeros(2), init=False)

    @classmethod
    def draw(cls, maze: Maze, rng: np.random.Generator) -> WaypointController:
        """Draws the manner of one trip: speed, noise and, one time in four, a detour."""
        free = [(i, j) for i, row in enumerate(maze) for j, wall in enumerate(row) if not wall]
        speed, noise = rng.uniform((1.0, 0.0), (5.0, 0.6)).tolist()
        detour = free[rng.integers(len(free))] if rng.random() < 0.25 else None
        return cls(maze, speed=speed, noise=noise, detour=detour)

    def __call__(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns the action (2,) in [-1, 1] for one flat observation (8,)."""
        x, y, vx, vy, _, _, *goal = obs.tolist()
        cell, end = self._cell(x, y), self._cell(*goal)
        if cell == self.detour:
            self.detour = None
        waypoint = _next_cells(self.maze, self.detour or end).get(cell, end)
        tx, ty = goal if cell == end == waypoint else self._centre(waypoint)
        wx, wy = 8 * (tx - x), 8 * (ty - y)  # wanted velocity, held to the cruising speed
        hold = min(1.0, self.speed / max(math.hypot(wx, wy), 1e-9))
        self._drift = 0.9 * self._drift + self.noise * math.sqrt(1 - 0.9**2) * rng.normal(size=2)
        push = 0.8 * np.array([hold * wx - vx, hold * wy - vy]) + self._drift
        return np.clip(push, -1.0, 1.0).astype(np.float32)

    def _cell(self, x: float, y: float) -> Cell:
        return math.floor(len(self.maze) / 2 - y), math.floor(len(self.maze[0]) / 2 + x)

    def _centre(self, cell: Cell) -> tuple[float, float]:
        return cell[1] + 0.5 - len(self.maze[0]) / 2, len(self.maze) / 2 - cell[0] - 0.5


def _drive(env: gym.Env, maze: Maze, rng: np.random.Generator, budget: int) -> EpisodeBuffer:
    """Runs one episode of at most `budget` steps; it ends with exactly one of the two flags."""
    driver, seed = WaypointController.draw(maze, rng), int(rng.integers(2**31))
    obs, info = env.reset(seed=seed)
    observations, infos, actions, rewards = [obs], [info], [], []
    terminated = truncated = False
    while not (terminated or truncated):
        actions.append(driver(flatten(obs), rng))
        obs, reward, terminated, truncated, info = env.step(actions[-1])
        observations.append(obs)
        infos.append(info)
        rewards.append(reward)
        truncated = not terminated and (truncated or len(rewards) == budget)
    last = np.arange(len(rewards)) == len(rewards) - 1
    return EpisodeBuffer(
        seed=seed,
        observations={key: np.stack([o[key] for o in observations]) for key in OBS_KEYS},
        actions=np.stack(actions),
        rewards=np.array(rewards),
        terminations=last & terminated,
        truncations=last & truncated,
        infos={"success": np.array([i["success"] for i in infos])},
    )


def collect(
    dataset_id: str,
    *,
    steps: int = 10**5,
    seed: int = 0,
    env_id: str = UMAZE,
    progress: bool = True,
) -> minari.MinariDataset:
    """Drives the controller through the real environment and stores a Minari dataset.

    The data depend on the arguments alone; the last episode is cut by the step budget and marked
    truncated. Minari's ``MINARI_DATASETS_PATH`` decides where the dataset lies. One that is there
    under the same id is reused if it was collected with the same arguments.

    Raises:
        ValueError: If `steps` < 1, or the id is taken by a dataset with other arguments.
    """
    if steps < 1:
        raise ValueError(f"`steps` is out of range: got {steps}, expected at least 1.")
    made_by = {"env_id": env_id, "steps": steps, "seed": seed, "controller": REVISION}
    with contextlib.suppress(FileNotFoundError):
        dataset = minari.load_dataset(dataset_id)
        if (found := dataset.storage.metadata.get("collected_with")) != made_by:
            raise ValueError(
                f"The dataset id {dataset_id!r} is taken: got data collected with {found}, expected"
                f" {made_by}. Choose another id or delete {dataset.storage.data_path.parent}."
            )
        return dataset
    rng, maze, env, left = np.random.default_rng(seed), maze_map(env_id), make_env(env_id), steps
    episodes: list[EpisodeBuffer] = []
    with tqdm(
        total=steps, desc="collect", unit=" steps", disable=None if progress else True
    ) as bar:
        while left:
            episodes.append(_drive(env, maze, rng, left))
            left -= len(episodes[-1])
            bar.update(len(episodes[-1]))
    hosts = ("gymnasium", "gymnasium-robotics", "mujoco")
    dataset = minari.create_dataset_from_buffers(
        dataset_id,
        episodes,
        env=env,
        eval_env=env,
        algorithm_name="waypoint controller",
        author="gtp-policy",
        author_email=set(),
        code_permalink="examples/pointmaze.py",
        description="Random start to random goal; PD control along the shortest path; an episode "
        "ends at the goal. Speed, noise and detours vary by episode.",
        requirements=[f"{name}=={version(name)}" for name in hosts],
        data_format="hdf5",
    )
    env.close()
    dataset.storage.update_metadata({"collected_with": made_by})
    return dataset


def behaviour(dataset: minari.MinariDataset) -> EvaluationResult:
    """Reads the data's own episodes as an evaluation, leaving out one cut by the step budget."""
    limit = dataset.env_spec.max_episode_steps
    whole = [e for e in dataset.iterate_episodes() if e.terminations[-1] or len(e) == limit]
    return EvaluationResult(
        success=np.array([e.terminations[-1] for e in whole]),
        steps=np.array([len(e) for e in whole]),
        returns=np.array([e.rewards.sum() for e in whole]),
        trajectories=[e.observations["achieved_goal"] for e in whole],
        goals=np.array([e.observations["desired_goal"][0] for e in whole]),
    )


def evaluate(act: Act, *, env_id: str = UMAZE, episodes: int, seed: int = 0) -> EvaluationResult:
    """Runs a policy from random starts to random goals, one call for all running episodes.

    Episode i is reset with ``seed + i``, so two policies evaluated with the same seed meet the
    same starts and goals, and a deterministic `act` gives the same result twice.

    Args:
        act: Maps flat float32 observations (n, 8), in the order of ``OBS_KEYS``, to actions
            (n, 2) in [-1, 1]; n shrinks as episodes end.
        env_id: A registered PointMaze environment.
        episodes: Number of episodes E, >= 1.
        seed: Seed of the first episode's start and goal.

    Raises:
        ValueError: If `act` returns another shape or a number that is not finite.
    """
    world: Any = make_env(env_id).unwrapped
    limit: Any = gym.spec(env_id).max_episode_steps
    # One compiled maze (60 ms, 12 MB) serves all episodes: each has its own state and goal.
    states = [copy.copy(world.data) for _ in range(episodes)]
    obs, returns, success = np.empty((episodes, 8)), np.zeros(episodes), np.zeros(episodes, bool)
    for i, world.point_env.data in enumerate(states):
        obs[i] = flatten(world.reset(seed=seed + i)[0])
    goals, paths, running = obs[:, 6:].copy(), [[row[:2].copy()] for row in obs], [*range(episodes)]
    while running and len(paths[running[0]]) <= limit:  # all that run are at the same step
        actions = np.asarray(act(obs[running].astype(np.float32)))
        if actions.shape != (len(running), 2) or not np.isfinite(actions).all():
            raise ValueError(
                f"`act` returned bad actions: got {actions.dtype} of shape {actions.shape}, "
                f"expected finite numbers of shape ({len(running)}, 2)."
            )
        for action, i in zip(actions, running, strict=True):
            world.point_env.data, world.goal = states[i], goals[i]
            after, reward, success[i], _, _ = world.step(action)
            obs[i] = flatten(after)
            paths[i].append(obs[i, :2].copy())
            returns[i] += reward
        running = [i for i in running if not success[i]]
    steps = np.array([len(path) - 1 for path in paths])
    return EvaluationResult(success, steps, returns, [np.array(path) for path in paths], goals)
