"""Data of Meta-World's scripted policies, with noise and a share of failures.

    PYTHONPATH=outputs/metaworld python -m benchmarks.metaworld_data [--tasks pick-place door-open]
        [--transitions 100000] [--seed 0] [--output outputs/data]

Each episode has 500 steps, a start and a goal of its own, and a strength of noise of its own. In
the share `FAILURES` of the episodes the policy is given up at a random step, and actions are drawn
at random from there on. The reward is Meta-World's, no step terminates, and ``success`` says
whether the goal had been reached by then. The data are an HDF5 file in D4RL's layout.

`pick_place` and `door_open` are the environments of the evaluation:
``--environment benchmarks.metaworld_data:pick_place``. Meta-World takes one version of MuJoCo only,
which `make metaworld-data` installs into a folder of its own.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from benchmarks.clock import versions
from benchmarks.pages import read, write
from benchmarks.rollouts import (
    Arrays,
    collect,
    returns_of,
    rollout,
    save_d4rl,
    seeds_of,
    successes_of,
)

POLICIES = {"pick-place": "SawyerPickPlaceV3Policy", "door-open": "SawyerDoorOpenV3Policy"}
EPISODE = 500  # steps, Meta-World's own limit
NOISE = 1.0  # largest standard deviation, in units of [-1, 1]
FAILURES = 0.3
GIVEN_UP_BY = 50  # step before which a failing episode is given up: no goal is reached by then


class Seeded(gymnasium.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """Lets ``reset(seed=...)`` decide start and goal: Meta-World's own ignores the seed."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode; with a seed, that seed's."""
        if seed is not None:
            self.unwrapped.seed(seed)  # type: ignore[attr-defined]
        return self.env.reset()


def make_env(task: str) -> Seeded:
    """Returns a task's environment, with the goal in the observation and drawn anew each time."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

    env = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-v3-goal-observable"](seed=0)
    env._freeze_rand_vec = False  # otherwise every episode is the first one
    env.seeded_rand_vec = True  # from the environment's generator instead of numpy's global one
    return Seeded(env)


def pick_place() -> Seeded:
    """Returns the environment of pick-place."""
    return make_env("pick-place")


def door_open() -> Seeded:
    """Returns the environment of door-open."""
    return make_env("door-open")


def episode(env: Any, policy: Any, seed: int) -> Arrays:  # noqa: ANN401 - Meta-World's
    """Plays one episode with noise, or one that fails.

    Args:
        env: As of `make_env`.
        policy: With ``get_action(obs)``.
        seed: Of everything that is random in it.

    Returns:
        As `rollout` does.
    """
    rng = np.random.default_rng(seed)
    strength = rng.uniform(0, NOISE)
    given_up = int(rng.integers(GIVEN_UP_BY)) if rng.uniform() < FAILURES else None
    step = 0

    def act(obs: np.ndarray) -> np.ndarray:
        nonlocal step
        step += 1
        if given_up is not None and step > given_up:
            return rng.uniform(-1, 1, env.action_space.shape)
        # A copy: some policies write into the observation. Clipped before the noise: they ask for
        # more than the bounds, where noise would be lost.
        action: np.ndarray = np.clip(policy.get_action(obs.copy()), -1, 1)
        return action + strength * rng.standard_normal(action.shape)

    return rollout(env, act, seed)


def generate(task: str, transitions: int, seed: int, output: Path) -> dict[str, Any]:
    """Makes the data of one task unless they are there, and returns their record."""
    from metaworld import policies

    path = output / f"metaworld-{task}.hdf5"
    settings = {"task": task, "transitions": transitions, "seed": seed}
    record = read(path.with_suffix(".json")) or {}
    if record.get("settings") == settings and path.exists():
        return record
    env, policy = make_env(task), getattr(policies, POLICIES[task])()
    parts = path.with_suffix(".parts")
    episodes = -(-transitions // EPISODE)
    data = collect(lambda s: episode(env, policy, s), seeds_of(seed, 0, episodes), parts)
    env.close()
    save_d4rl(path, data)
    record = {
        "settings": settings,
        "episodes": len(returns_of(data)),
        "success": float(successes_of(data).mean()),
        "return": float(returns_of(data).mean()),
        "versions": versions(["metaworld", "mujoco", "gymnasium", "numpy"]),
    }
    write(record, path.with_suffix(".json"))
    shutil.rmtree(parts, ignore_errors=True)
    return record


def main() -> None:
    """Generates what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--tasks", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    add("--transitions", type=int, default=100_000)
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("outputs/data"))
    args = parser.parse_args()
    for task in args.tasks:
        record = generate(task, args.transitions, args.seed, args.output)
        print(
            f"{task}: {record['episodes']} episodes, {record['success']:.0%} reach the goal, "
            f"return {record['return']:.0f}"
        )


if __name__ == "__main__":
    main()
