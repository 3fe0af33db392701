"""Data of several agents of very different quality on one locomotion task, trained on the spot.

    python -m benchmarks.mixed_data [--tasks hopper halfcheetah] [--transitions 100000] [--seed 0]
        [--output outputs/data]

Soft actor-critic of Stable-Baselines3 learns each task (half an hour of CPU per task); what it is
after each number of steps in `TASKS` is an agent, the untrained one among them. Each contributes
the same number of transitions with sampled actions, as whole episodes, the agents one after the
other: what D4RL's medium-replay and medium-expert test. The data are an HDF5 file in D4RL's layout,
whose additional field ``agent`` says which rows are whose.

A training that was interrupted goes on from its last checkpoint, 5,000 steps apart at most, with a
new episode: not to the bit. Agents that are there are not trained again.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.clock import versions
from benchmarks.pages import read, write
from benchmarks.rollouts import Arrays, returns_of, rollout, save_d4rl, seeds_of
from gtp_datasets import normalized_score
from gtp_experiments.tasks import task_of
from gtp_policy.files import replacing

CHECKPOINT_EVERY = 5_000


class Task(NamedTuple):
    """An environment, and after how many steps of training an agent is kept."""

    environment: str
    steps: tuple[int, ...]


TASKS = {
    "hopper": Task("Hopper-v5", (0, 20_000, 40_000, 80_000, 150_000)),
    "halfcheetah": Task("HalfCheetah-v5", (0, 10_000, 30_000, 70_000, 150_000)),
}


def agent_path(folder: Path, steps: int) -> Path:
    """Returns where an agent is kept."""
    return folder / f"agent-{steps:07}.zip"


def train(task: Task, folder: Path, seed: int, **options: Any) -> None:  # noqa: ANN401
    """Trains the agents of a task that are not there yet.

    Args:
        task: The task.
        folder: Of the agents, and of the training's checkpoint.
        seed: Of the training.
        options: Of Stable-Baselines3's SAC instead of its defaults.
    """
    missing = [steps for steps in task.steps if not agent_path(folder, steps).exists()]
    if not missing:
        return
    model = start_or_resume(task, folder, seed, **options)
    while missing:
        if model.num_timesteps == missing[0]:
            keep(model, agent_path(folder, missing.pop(0)))
            continue
        left = missing[0] - model.num_timesteps
        model.learn(min(left, CHECKPOINT_EVERY), reset_num_timesteps=False)
        checkpoint(model, folder / "checkpoint")
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)


def start_or_resume(task: Task, folder: Path, seed: int, **options: Any) -> Any:  # noqa: ANN401
    """Returns the training's model, from its checkpoint if there is one."""
    import gymnasium
    from stable_baselines3 import SAC

    env = gymnasium.make(task.environment)
    place = folder / "checkpoint"
    if not place.exists():
        return SAC("MlpPolicy", env, seed=seed, device="cpu", **options)
    model = SAC.load(place / "model.zip", env=env, device="cpu")
    model.load_replay_buffer(place / "buffer.pkl")
    return model


def keep(model: Any, path: Path) -> None:  # noqa: ANN401
    """Saves an agent; the file is there as a whole or not at all."""
    with replacing(path, ".zip") as temporary:
        model.save(temporary)


def checkpoint(model: Any, place: Path) -> None:  # noqa: ANN401
    """Replaces the checkpoint; a kill in between leaves the older one, or none, but no half."""
    temporary = place.with_name("checkpoint.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    model.save(temporary / "model.zip")
    model.save_replay_buffer(temporary / "buffer.pkl")
    shutil.rmtree(place, ignore_errors=True)
    temporary.rename(place)


def collect_agent(task: Task, path: Path, transitions: int, seed: int) -> Arrays:
    """Plays episodes with an agent's sampled actions until there are enough transitions."""
    import gymnasium
    from stable_baselines3 import SAC

    agent = SAC.load(path, device="cpu")
    agent.set_random_seed(seed)
    env = gymnasium.make(task.environment)

    def act(obs: np.ndarray) -> np.ndarray:
        action: np.ndarray = agent.predict(obs)[0]
        return action

    pieces: list[Arrays] = []
    for start in seeds_of(seed, 0, transitions):  # an episode has at least one transition
        if sum(len(piece["rewards"]) for piece in pieces) >= transitions:
            break
        pieces.append(rollout(env, act, start))
    return {field: np.concatenate([piece[field] for piece in pieces]) for field in pieces[0]}


def mix(parts: Sequence[Arrays]) -> Arrays:
    """Joins the agents' data; ``agent`` numbers them."""
    agent = np.concatenate([np.full(len(part["rewards"]), i) for i, part in enumerate(parts)])
    joined = {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}
    return joined | {"agent": agent.astype(np.int8)}


def generate(name: str, task: Task, transitions: int, seed: int, output: Path) -> dict[str, Any]:
    """Makes the data of one task unless they are there, and returns their record."""
    path = output / f"{name}-mixed.hdf5"
    settings = {"task": name, "transitions": transitions, "seed": seed, "steps": list(task.steps)}
    record = read(path.with_suffix(".json")) or {}
    if record.get("settings") == settings and path.exists():
        return record
    folder = output / f"{name}-agents-seed{seed}"
    train(task, folder, seed)
    share = -(-transitions // len(task.steps))
    parts = [
        collect_agent(task, agent_path(folder, steps), share, seed + i)
        for i, steps in enumerate(task.steps)
    ]
    mixed = mix(parts)
    save_d4rl(path, mixed)
    scale = task_of(name)
    assert scale is not None
    record = {
        "settings": settings,
        "environment": task.environment,
        "transitions": len(mixed["rewards"]),
        "agents": [
            {
                "steps_of_training": steps,
                "episodes": len(returns_of(part)),
                "return": float(returns_of(part).mean()),
                "score": normalized_score(returns_of(part), scale.reference).value,
            }
            for steps, part in zip(task.steps, parts, strict=True)
        ],
        "behaviour_score": normalized_score(returns_of(mixed), scale.reference).value,
        "reference": scale.reference.source,
        "versions": versions(["stable-baselines3", "gymnasium", "mujoco", "torch"]),
    }
    write(record, path.with_suffix(".json"))
    return record


def main() -> None:
    """Generates what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    add("--transitions", type=int, default=100_000, help="of all agents together, or a little more")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("outputs/data"))
    args = parser.parse_args()
    for name in args.tasks:
        record = generate(name, TASKS[name], args.transitions, args.seed, args.output)
        print(f"{name}: {record['transitions']} transitions, {record['behaviour_score']:.1f}")
        for agent in record["agents"]:
            print(f"  after {agent['steps_of_training']:7} steps: score {agent['score']:.1f}")


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    main()
