"""E1 to E4: the same again in another process, in another thread, and from a batch of any size."""

import argparse
import copy
import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gtp_policy import GTPLearner
from tests.reliability.outcome import Outcome
from tests.reliability.small import (
    ACT,
    OBS,
    ROOT,
    configs,
    digests,
    make_config,
    make_dataset,
    train,
)

Act = Callable[..., Tensor]


def trained(updates: int = 20) -> GTPLearner:
    """Returns a learner whose target networks are no longer those of its construction."""
    learner = GTPLearner.from_dataset(make_dataset(), make_config(200))
    train(learner, make_dataset(), updates)
    return learner


# --- E1 -------------------------------------------------------------------------------------------


def same_seed_twice(count: int, *, updates: int = 200) -> Outcome:
    """E1: fresh processes with other hash seeds reach the same state and write the same log."""
    outcome = Outcome()
    runs = [_in_a_fresh_process(count, updates, hash_seed) for hash_seed in ("0", "4711")]
    for name in runs[0]:
        first, second = (run[name] for run in runs)
        other = [key for key in first if first[key] != second.get(key)]
        outcome.add(name, f"differs between processes: {other}" if other else None)
    entries = sum(len(run) for run in runs[0].values())
    outcome.worst = f"0 of {entries} digests differ" if not outcome.failures else "digests differ"
    outcome.details["updates"] = updates
    return outcome


def _in_a_fresh_process(count: int, updates: int, hash_seed: str) -> dict[str, dict[str, str]]:
    command = [sys.executable, "-m", __name__, "--configs", str(count), "--updates", str(updates)]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise RuntimeError(f"the training process failed: {result.stderr}")
    runs: dict[str, dict[str, str]] = json.loads(result.stdout)
    return runs


def run_configs(count: int, updates: int) -> dict[str, dict[str, str]]:
    """Trains some configs; returns a digest of each tensor of the state, and of the log."""
    runs, dataset = {}, make_dataset()
    for name, config in itertools.islice(configs(updates).items(), count):
        learner = GTPLearner.from_dataset(dataset, config)
        log = train(learner, dataset, updates)
        runs[name] = digests(learner) | {"log": hashlib.sha256("\n".join(log).encode()).hexdigest()}
    return runs


# --- E2 -------------------------------------------------------------------------------------------


def concurrent_acts(count: int, *, threads: int = 8, act: Act | None = None) -> Outcome:
    """E2: many threads act at once, each call with its own generator, while a copy is trained."""
    learner = trained()
    act = act or learner.act
    rng = np.random.default_rng(4)
    obs = torch.from_numpy(rng.normal(3.0, 2.0, (64, 1, OBS))).float()

    def call(index: int) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        candidates = 1 + 3 * (index % 10 == 0)
        return act(obs[index % len(obs)], candidates=candidates, generator=generator)

    # What each call must give is known from calls one after the other.
    expected = [call(index) for index in range(min(count, 1000))]
    with _training_copy(learner) as trainer, ThreadPoolExecutor(threads) as pool:
        results = pool.map(call, (i % len(expected) for i in range(count)), chunksize=50)
        outcome = Outcome()
        for index, result in enumerate(results):
            same = torch.equal(result, expected[index % len(expected)])
            outcome.add(f"call {index}", None if same else "another action than alone")
    outcome.details["updates of the copy meanwhile"] = trainer.updates
    outcome.worst = f"{len(outcome.failures)} of {outcome.count} actions differ"
    if not trainer.updates:
        outcome.add("trainer", "made no update meanwhile")
    return outcome


class _training_copy:
    """Trains a copy of a learner in a thread for as long as the block lasts."""

    def __init__(self, learner: GTPLearner) -> None:
        self.updates = 0
        self._learner, self._stop = copy.deepcopy(learner), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        dataset = make_dataset()
        while not self._stop.is_set():
            train(self._learner, dataset, 1)
            self.updates += 1

    def __enter__(self) -> "_training_copy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


# --- E3 -------------------------------------------------------------------------------------------


def acting_is_pure(count: int, *, act: Callable[[GTPLearner], Act] | None = None) -> Outcome:
    """E3: acting changes no parameter, no mode, no global generator and no observation."""
    outcome, learner = Outcome(worst="nothing moved"), trained()
    rng = np.random.default_rng(5)
    for index in range(count):
        learner.train(bool(rng.integers(2)))
        options = {
            "steps": [None, 1, 4][rng.integers(3)],
            "candidates": int(rng.integers(1, 5)),
            "deterministic": bool(rng.integers(2)),
        }
        if rng.integers(2):
            options["generator"] = torch.Generator().manual_seed(index)
        obs = torch.from_numpy(rng.normal(size=(int(rng.integers(1, 9)), OBS))).float()
        given, before = obs.clone(), _surroundings(learner)
        (act(learner) if act else learner.act)(obs, **options)
        after = _surroundings(learner)
        moved = [name for name in before if before[name] != after[name]]
        moved += [] if torch.equal(obs, given) else ["obs"]
        outcome.add(f"call {index} with {options}", f"moved {moved}" if moved else None)
    if outcome.failures:
        outcome.worst = f"{len(outcome.failures)} calls moved something"
    return outcome


def _surroundings(learner: GTPLearner) -> dict[str, Any]:
    _, keys, position, *_ = np.random.get_state()  # noqa: NPY002 (read, never drawn from)
    return digests(learner) | {
        "training flags": [module.training for module in learner.modules()],
        "gradients": [p.grad is None for p in learner.parameters()],
        "gradient mode": torch.is_grad_enabled(),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (np.asarray(keys).tobytes(), position),
        "random": random.getstate(),
    }


# --- E4 -------------------------------------------------------------------------------------------


def batch_equals_single(count: int) -> Outcome:
    """E4: a row's action does not depend on the other rows, up to rounding."""
    outcome, learner, worst = Outcome(), trained(), 0.0
    rng = np.random.default_rng(6)
    obs = torch.from_numpy(rng.normal(3.0, 2.0, (count, OBS))).float()
    noise = torch.from_numpy(rng.normal(size=(count, ACT))).float()
    batches = {
        "deterministic": (
            learner.act(obs, deterministic=True),
            lambda i: learner.act(obs[i : i + 1], deterministic=True),
        ),
        "sampled": (
            learner.target_actor.sample(obs, noise=noise, steps=5),
            lambda i: learner.target_actor.sample(obs[i : i + 1], noise=noise[i : i + 1], steps=5),
        ),
    }
    for index in range(count):
        errors = {
            name: float((batch[index] - single(index)[0]).abs().max())
            for name, (batch, single) in batches.items()
        }
        worst = max(worst, *errors.values())
        far = {name: error for name, error in errors.items() if not error <= 1e-6}
        outcome.add(f"row {index}", f"off by {far}" if far else None)
    outcome.worst = f"at most {worst:.1e} apart"
    return outcome


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--configs", type=int, required=True)
    parser.add_argument("--updates", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(run_configs(arguments.configs, arguments.updates)))
