"""Data for OGBench's manipulation tasks from OGBench's scripted oracles; nothing is downloaded.

    python -m benchmarks.ogbench_data [--environments cube-single cube-double scene]
        [--kind play] [--transitions 100000] [--seed 0] [--output outputs/data]

For each environment, training data and a tenth as much validation data in the layout of OGBench's
own files (``cube-single-play-v0.npz``, ``cube-single-play-v0-val.npz``), which its
``make_env_and_datasets(..., dataset_path=)`` reads; and, for its single-task variants, the same
with ``rewards`` and ``masks`` by OGBench's own relabelling
(``cube-single-play-singletask-task2-v0.npz``), which `gtp_datasets.load_ogbench` reads.

``play`` follows plans with correlated noise, ``noisy`` reacts to the state and adds noise to the
action, of a strength that is drawn for each episode. An episode is a function of seed and number:
a call that was interrupted goes on with the next one. `make ogbench-data` installs OGBench.

    python -m benchmarks.ogbench_data --kind demonstrations [--episodes 500]

Demonstrations of one single-task variant, for cloning: the reacting oracle with noise plays the
task itself, from its starts to its goal, into an HDF5 file in D4RL's layout
(``cube-single-task2-demonstrations.hdf5``). Only for ``cube-single``.
"""

import argparse
import importlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.clock import versions
from benchmarks.pages import read, write
from benchmarks.rollouts import (
    Arrays,
    collect,
    rollout,
    save,
    save_d4rl,
    seeds_of,
    successes_of,
)

# Before ogbench is imported: states need no renderer.
os.environ.setdefault("MUJOCO_GL", "disabled")

Kind = Literal["play", "noisy"]
ENVIRONMENTS: Mapping[str, tuple[str, ...]] = {  # what the oracles are for, by environment
    "cube-single": ("cube",),
    "cube-double": ("cube",),
    "scene": ("cube", "button", "drawer", "window"),
}
TASKS = range(1, 6)  # OGBench has five single-task variants of each
DEFAULT_TASK = 2  # which of them OGBench takes if none is named
EPISODE = 1000  # transitions, as in OGBench's own files
VALIDATION_SHARE = 0.1
NOISE = 0.3  # largest standard deviation of `noisy` actions, in units of [-1, 1]
EPISODES = 500  # of demonstrations
P_STACK = 0.1  # one cube on the other: OGBench's default of a half leaves the floor's tasks rare


def make_env(name: str) -> Any:  # noqa: ANN401 - a type of ogbench's
    """Returns an environment in which a target follows a target."""
    import gymnasium
    import ogbench  # noqa: F401 - registers its environments

    return gymnasium.make(
        f"{name}-v0",
        mode="data_collection",
        terminate_at_goal=False,
        max_episode_steps=EPISODE + 1,
    )


def make_oracles(env: Any, name: str, kind: Kind) -> dict[str, Any]:  # noqa: ANN401
    """Returns OGBench's oracles by what they move."""
    folder, ending = {"play": ("plan", "PlanOracle"), "noisy": ("markov", "MarkovOracle")}[kind]
    return {
        what: getattr(
            importlib.import_module(f"ogbench.manipspace.oracles.{folder}.{what}_{folder}"),
            f"{what.capitalize()}{ending}",
        )(env=env)
        for what in ENVIRONMENTS[name]
    }


def episode(env: Any, oracles: Mapping[str, Any], seed: int, noise: float, rows: int) -> Arrays:  # noqa: ANN401
    """Plays one trajectory; its last row has no successor, and ``terminals`` marks it.

    Args:
        env: As of `make_env`.
        oracles: As of `make_oracles`.
        seed: Of everything that is random in it.
        noise: Largest standard deviation of what is added to the actions.
        rows: Its length, one more than it has transitions.

    Returns:
        The fields of OGBench's files, each with that many rows.
    """
    np.random.seed(seed)  # noqa: NPY002 - the oracles draw from numpy's global generator
    rng = np.random.default_rng(seed)
    strength = rng.uniform(0, noise)
    obs, info = env.reset(seed=seed)
    columns: dict[str, list[Any]] = {}
    oracle = None
    for _ in range(rows):
        if oracle is None or oracle.done:
            if oracle is not None:
                obs, info = env.unwrapped.set_new_target(p_stack=P_STACK)
            oracle = oracles[str(info["privileged/target_task"])]
            oracle.reset(obs, info)
        action = np.asarray(oracle.select_action(obs, info))
        action = np.clip(action + strength * rng.standard_normal(action.shape), -1, 1)
        before = obs
        obs, _, _, _, info = env.step(action)
        row = {
            "observations": np.asarray(before, np.float32),
            "actions": action.astype(np.float32),
            "qpos": info["prev_qpos"].astype(np.float32),
            "qvel": info["prev_qvel"].astype(np.float32),
        }
        if "prev_button_states" in info:
            row["button_states"] = info["prev_button_states"]
        for field, value in row.items():
            columns.setdefault(field, []).append(value)
    arrays = {field: np.stack(values) for field, values in columns.items()}
    return arrays | {"terminals": np.arange(rows) == rows - 1}


def relabelled(name: str, task: int, arrays: Arrays) -> Arrays:
    """Returns what learning one task needs, with rewards and masks by OGBench's own function."""
    import gymnasium
    import ogbench  # noqa: F401 - registers its environments
    from ogbench.relabel_utils import relabel_dataset

    single = f"{name}-singletask-task{task}-v0"
    env = gymnasium.make(single)
    labelled = dict(arrays)
    relabel_dataset(single, env, labelled)
    env.close()
    wanted = ("observations", "actions", "terminals", "rewards", "masks")
    return {field: labelled[field] for field in wanted}


def success_share(labelled: Arrays) -> float:
    """Returns the share of trajectories that reach the goal of a task at some time."""
    trajectories = np.split(labelled["masks"], np.flatnonzero(labelled["terminals"])[:-1] + 1)
    return float(np.mean([(masks == 0).any() for masks in trajectories]))


def generate(name: str, kind: Kind, transitions: int, seed: int, output: Path) -> dict[str, Any]:
    """Makes the files of one environment unless they are there, and returns their record."""
    base = f"{name}-{kind}"
    record_path = output / f"{base}-v0.json"
    settings = {"environment": name, "kind": kind, "transitions": transitions, "seed": seed}
    record = read(record_path) or {}
    if record.get("settings") == settings and (output / f"{base}-v0.npz").exists():
        return record
    start = time.perf_counter()
    env = make_env(name)
    oracles = make_oracles(env, name, kind)
    noise = NOISE if kind == "noisy" else 0.0

    def play(episode_seed: int) -> Arrays:
        return episode(env, oracles, episode_seed, noise, EPISODE + 1)

    shares: dict[str, dict[str, float]] = {}
    parts = output / f"{base}-v0.parts"
    count = max(1, round(transitions / EPISODE))
    for split, ending in enumerate(("", "-val")):
        episodes = max(1, round(count * VALIDATION_SHARE)) if split else count
        arrays = collect(play, seeds_of(seed, split, episodes), parts)
        save(output / f"{base}-v0{ending}.npz", arrays)
        for task in TASKS:
            labelled = relabelled(name, task, arrays)
            save(output / f"{base}-singletask-task{task}-v0{ending}.npz", labelled)
            shares.setdefault(f"task{task}", {})["validation" if split else "training"] = (
                success_share(labelled)
            )
    env.close()
    record = {
        "settings": settings,
        "episodes": count,
        "share_of_episodes_that_reach_the_goal": shares,
        "seconds": round(time.perf_counter() - start, 1),
        "versions": versions(["ogbench", "mujoco", "dm_control", "gymnasium", "numpy"]),
    }
    write(record, record_path)
    shutil.rmtree(parts, ignore_errors=True)
    return record


def demonstration(env: Any, oracle: Any, seed: int, noise: float) -> Arrays:  # noqa: ANN401
    """Plays one episode of a single-task variant with one cube, up to its goal.

    Args:
        env: The variant, as ``gymnasium.make`` returns it.
        oracle: Of OGBench's reacting ones, for a cube.
        seed: Of everything that is random in it.
        noise: Largest standard deviation of what is added to the actions.

    Returns:
        As of `rollout`.
    """
    np.random.seed(seed)  # noqa: NPY002 - the oracles draw from numpy's global generator
    rng = np.random.default_rng(seed)
    strength = rng.uniform(0, noise)
    oracle.reset(None, None)

    def act(obs: np.ndarray) -> np.ndarray:
        # The oracle is made for data collection, where the environment says where a cube goes.
        base = env.unwrapped
        goal = {"block": 0, "block_pos": base.cur_task_info["goal_xyzs"][0], "block_yaw": [0.0]}
        targets = {f"privileged/target_{name}": value for name, value in goal.items()}
        action = np.asarray(oracle.select_action(obs, base.compute_ob_info() | targets))
        return action + strength * rng.standard_normal(action.shape)

    return rollout(env, act, seed)


def demonstrate(episodes: int, seed: int, output: Path) -> dict[str, Any]:
    """Makes the file of demonstrations unless it is there, and returns its record."""
    import gymnasium

    path = output / f"cube-single-task{DEFAULT_TASK}-demonstrations.hdf5"
    record_path = path.with_suffix(".json")
    settings = {"task": DEFAULT_TASK, "episodes": episodes, "seed": seed, "noise": NOISE}
    record = read(record_path) or {}
    if record.get("settings") == settings and path.exists():
        return record
    start = time.perf_counter()
    import ogbench  # noqa: F401 - registers its environments

    env = gymnasium.make(f"cube-single-singletask-task{DEFAULT_TASK}-v0")
    (oracle,) = make_oracles(env, "cube-single", "noisy").values()

    def play(episode_seed: int) -> Arrays:
        return demonstration(env, oracle, episode_seed, NOISE)

    parts = path.with_suffix(".parts")
    arrays = collect(play, seeds_of(seed, 0, episodes), parts)
    save_d4rl(path, arrays)
    env.close()
    record = {
        "settings": settings,
        "transitions": len(arrays["actions"]),
        "share_of_episodes_that_reach_the_goal": float(successes_of(arrays).mean()),
        "seconds": round(time.perf_counter() - start, 1),
        "versions": versions(["ogbench", "mujoco", "dm_control", "gymnasium", "numpy"]),
    }
    write(record, record_path)
    shutil.rmtree(parts, ignore_errors=True)
    return record


def files_of(name: str, kind: Kind, output: Path) -> Iterator[Path]:
    """Yields the files of one environment that are there."""
    yield from sorted(output.glob(f"{name}-{kind}-*.npz"))


def main() -> None:
    """Generates what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--environments", nargs="+", choices=list(ENVIRONMENTS), default=list(ENVIRONMENTS))
    add("--kind", choices=["play", "noisy", "demonstrations"], default="play")
    add("--episodes", type=int, default=EPISODES, help="of demonstrations")
    add("--transitions", type=int, default=100_000, help="for training; rounded to episodes")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("outputs/data"))
    args = parser.parse_args()
    if args.kind == "demonstrations":
        record = demonstrate(args.episodes, args.seed, args.output)
        share = record["share_of_episodes_that_reach_the_goal"]
        print(f"{args.episodes} episodes, {record['transitions']} transitions, {share:.0%} arrive")
        return
    for name in args.environments:
        record = generate(name, args.kind, args.transitions, args.seed, args.output)
        print(f"{name}: {record['episodes']} episodes in {record['seconds']} s")
        for task, share in record["share_of_episodes_that_reach_the_goal"].items():
            print(f"  {task}: {share['training']:.0%} of the episodes reach the goal")
        for path in files_of(name, args.kind, args.output):
            print(f"  {path} ({path.stat().st_size / 2**20:.1f} MiB)")


if __name__ == "__main__":
    main()
