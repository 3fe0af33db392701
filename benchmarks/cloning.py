"""How well a flow map clones what is there, by the number of jumps: six tasks with known truth.

    python -m benchmarks.cloning [--seeds 5] [--updates 15000] [--output FILE] [--tasks NAME ...]

- ``modes``: four modes around the corners of a square (`examples.bandit`).
- ``unequal``: eight modes of weights 1:1:2:2:3:3:4:4 in six dimensions, after 30,000 updates.
- ``moons``, ``spiral``: a shape turned by the observation.
- ``slope``: actions with a linear conditional mean, after 1000, 2000 and 3000 updates.
- ``joints``: six joints that move by 1 to 0.02 of their range, after 3000 updates.

Each is cloned with the method's own loss (``gtp``) and with the one made for one step
(``one_step``). A row that is in the file is not run again.
"""

import argparse
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.clock import versions
from benchmarks.pages import RESULTS, read, write
from examples import bandit
from gtp_experiments import sliced_distance
from gtp_policy import GTPConfig, GTPLearner, OfflineDataset

SAMPLES, STEPS = 50_000, (1, 2, 5)
METHODS = ("one_step", "gtp")
Array = NDArray[np.float64]
Draw = Callable[[int, np.random.Generator], tuple[Array, Array]]  # observations and actions


@dataclass(frozen=True)
class Modes:
    """A mixture of narrow Gaussians."""

    centres: Array  # (M, A)
    weights: Array  # (M,)
    std: float

    @property
    def radius(self) -> float:
        """Around a mode, within it lie 98.9 % of the truth: three deviations in two dimensions."""
        return self.std * (3.0 if self.centres.shape[1] == 2 else 4.07)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Draws observations, all zero, and actions."""
        which = rng.choice(len(self.weights), n, p=self.weights)
        noise = self.std * rng.normal(size=(n, self.centres.shape[1]))
        return np.zeros((n, 1)), np.clip(self.centres[which] + noise, -1, 1)

    def nearest(self, action: Array) -> tuple[Array, Array]:
        """Returns the number of the nearest mode and the distance to it, (n,) each."""
        distance = np.linalg.norm(action[:, None] - self.centres, axis=-1)
        return distance.argmin(1), distance.min(1)

    @functools.cached_property
    def true_rms(self) -> float:
        """Width of the truth within `radius`, per dimension."""
        _, distance = self.nearest(self.draw(200_000, np.random.default_rng(1))[1])
        kept = distance[distance < self.radius] ** 2
        return float(np.sqrt(kept.mean() / self.centres.shape[1]))

    def measure(self, action: Array) -> dict[str, Any]:
        """Returns the share at modes, each mode's share over its weight, and the width of modes."""
        nearest, distance = self.nearest(action)
        inside = distance < self.radius
        shares = np.bincount(nearest, minlength=len(self.weights)) / len(action)
        offset = (action - self.centres[nearest])[inside]
        return {
            "share": float(inside.mean()),
            "modes": shares.tolist(),
            "ratios": (shares / self.weights).tolist(),
            "rms": float(np.sqrt((offset**2).mean())) if len(offset) else None,
            "true_rms": self.true_rms,
        }


FOUR = Modes(bandit.MODES, np.full(4, 0.25), bandit.STD)
_CORNERS = np.array([[1 if number >> bit & 1 else -1 for bit in range(3)] for number in range(8)])
EIGHT = Modes(
    np.hstack([0.6 * _CORNERS, np.random.default_rng(77).uniform(-0.8, 0.8, (8, 3))]),
    np.array([1, 1, 2, 2, 3, 3, 4, 4]) / 20,
    0.05,
)


def _turned(shape: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Returns observations in [-1, 1], and a noisy shape that each turns by up to a right angle."""
    obs = rng.uniform(-1, 1, (len(shape), 1))
    x, y = (shape + 0.02 * rng.normal(size=shape.shape)).T
    angle = obs[:, 0] * math.pi / 2
    cos, sin = np.cos(angle), np.sin(angle)
    return obs, np.clip(np.stack([x * cos - y * sin, x * sin + y * cos], 1), -1, 1)


def moons(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws two half circles that interlock."""
    angle, second = rng.uniform(0, math.pi, n), rng.integers(2, size=n)
    x = np.cos(angle) * (1 - 2 * second) + second - 0.5
    y = np.sin(angle) * (1 - 2 * second) + 0.5 * second - 0.25
    return _turned(0.6 * np.stack([x, y], 1), rng)


def spiral(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws a spiral of one and a half turns."""
    radius = np.sqrt(rng.uniform(0, 1, n))
    angle = 3 * math.pi * radius
    return _turned(0.8 * radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), rng)


SLOPE, NOISE = 0.5, 0.15


def linear(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws three actions that follow three observations, with noise."""
    obs = rng.uniform(-1, 1, (n, 3))
    return obs, np.clip(SLOPE * obs + NOISE * rng.normal(size=(n, 3)), -1, 1)


RANGES = np.array([1.0, 0.5, 0.2, 0.1, 0.05, 0.02])


def joints(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws six joints that follow three observations without noise, each in its own range."""
    obs = rng.uniform(-1, 1, (n, 3))
    phase = obs @ np.random.default_rng(6).normal(size=(3, 6)) + np.arange(6)
    return obs, RANGES * np.sin(phase)


TASKS: dict[str, Draw] = {
    "modes": FOUR.draw,
    "unequal": EIGHT.draw,
    "moons": moons,
    "spiral": spiral,
    "slope": linear,
    "joints": joints,
}


_CHECKS = {"slope": (1000, 2000, 3000), "joints": (3000,), "unequal": (30_000,)}


def config_of(method: str, updates: int, seed: int) -> GTPConfig:
    """Returns a method's config for a short run of cloning, each with its own learning rate."""
    make = bandit.make_config if method == "gtp" else bandit.one_step_config
    return make(updates, seed=seed)


def measure(task: str, learner: GTPLearner, steps: int) -> dict[str, Any]:
    """Returns what samples of a policy are like."""
    rng = np.random.default_rng(99)
    obs, action = TASKS[task](SAMPLES, rng)
    drawn = learner.act(
        torch.from_numpy(obs).float(), steps=steps, generator=learner.stream("evaluation")
    )
    sampled = drawn.double().numpy()
    if task in ("modes", "unequal"):
        return (FOUR if task == "modes" else EIGHT).measure(sampled)
    if task == "slope":
        slope = (obs * sampled).mean(0) / (obs**2).mean(0)
        return {
            "slope": float(slope.mean() / SLOPE),
            "std": float((sampled - slope * obs).std() / NOISE),
        }
    if task == "joints":
        error = np.sqrt(((sampled - action) ** 2).mean(0))
        return {"errors": (error / action.std(0)).tolist()}
    again = np.hstack(TASKS[task](SAMPLES, rng))
    data = np.hstack([obs, action])
    return {
        "distance": sliced_distance(data, np.hstack([obs, sampled]), seed=5),
        "noise_floor": sliced_distance(data, again, seed=5),
    }


def run(task: str, method: str, seed: int, updates: int) -> dict[str, Any]:
    """Clones a task and measures the samples at every K."""
    torch.set_num_threads(1)
    obs, action = TASKS[task](100_000, np.random.default_rng(1000 + seed))
    n, dims = action.shape
    dataset = OfflineDataset.from_arrays(
        obs=obs,
        action=action,
        reward=np.zeros(n),
        next_obs=obs,
        terminated=np.ones(n, bool),
        truncated=np.zeros(n, bool),
        low=[-1.0] * dims,
        high=[1.0] * dims,
    )
    checks = _CHECKS.get(task, (updates,))
    learner = GTPLearner.from_dataset(dataset, config_of(method, checks[-1], seed))
    begin, measured = time.process_time(), {}
    for done in range(1, checks[-1] + 1):
        learner.update(dataset.sample(256, generator=learner.stream("batch")))
        if done in checks:
            spent = time.process_time() - begin
            measured[str(done)] = {str(k): measure(task, learner, k) for k in STEPS}
            begin = time.process_time() - spent
    return {
        "task": task,
        "method": method,
        "seed": seed,
        "updates": checks[-1],
        "ms_per_update": 1e3 * spent / checks[-1],
        "measured": measured,
        "config": learner.full_config.model_dump(mode="json"),
    }


def rows_to_run(args: argparse.Namespace, known: list[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    """Yields task, method and seed of every row that is not there."""
    done = {(row["task"], row["method"], row["seed"]) for row in known}
    for seed in range(args.seeds):
        for task in args.tasks:
            for method in args.methods:
                if (task, method, seed) not in done:
                    yield task, method, seed


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command."""
    command = argparse.ArgumentParser(prog="python -m benchmarks.cloning", description=__doc__)
    command.add_argument("--seeds", type=int, default=5)
    command.add_argument("--updates", type=int, default=15_000)
    command.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    command.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    command.add_argument("--output", type=Path, default=RESULTS / "cloning.json")
    return command


def main(argv: list[str] | None = None) -> None:
    """Runs what is missing, and writes after every row."""
    args = parser().parse_args(argv)
    record = read(args.output) or {"rows": []}
    record["command"] = "python -m benchmarks.cloning"
    record["versions"] = versions()
    for task, method, seed in rows_to_run(args, record["rows"]):
        record["rows"].append(run(task, method, seed, args.updates))
        write(record, args.output)
        print(task, method, seed, record["rows"][-1]["measured"], flush=True)


if __name__ == "__main__":
    main()
