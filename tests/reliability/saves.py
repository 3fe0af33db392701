"""A7, A8: every save that succeeds loads again, and a reader beside a writer always finds one."""

import contextlib
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Dict

import gtp_sb3
import gtp_tianshou
from gtp_policy import (
    ActionScaler,
    CheckpointFolder,
    GTPLearner,
    ObservationLayout,
    load_checkpoint,
    save_checkpoint,
)
from gtp_policy.errors import GTPError
from tests.reliability.outcome import Outcome
from tests.reliability.small import ACT, OBS, configs, digests, make_config, make_dataset, train

Loaded = Callable[[], GTPLearner]


def odd_json(rng: np.random.Generator, depth: int = 0) -> Any:
    """Returns something that JSON may hold, or that only looks so: long, deep, or no text."""
    kinds: list[Callable[[], Any]] = [
        lambda: int(rng.integers(-(2**62), 2**62)) * int(rng.choice([1, 2**70])),
        lambda: float(rng.choice([0.1, 1e-320, 1e308, np.inf, np.nan, -0.0])),
        lambda: "".join(map(chr, rng.choice([0, 65, 233, 0xD800, 0xDFFF, 0x1F600], 5))),
        lambda: "x" * int(rng.choice([0, 10, 2**20])),
        lambda: rng.choice([True, False, None]),
        lambda: list(range(int(rng.choice([0, 5, 10**5])))),
        lambda: _nested(int(rng.choice([5, 100, 200, 300, 2000]))),
    ]
    if depth < 3:
        kinds.append(lambda: {str(i): odd_json(rng, depth + 1) for i in range(rng.integers(4))})
        kinds.append(lambda: [odd_json(rng, depth + 1) for _ in range(rng.integers(4))])
    return kinds[rng.integers(len(kinds))]()


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _core(rng: np.random.Generator, path: Path) -> Loaded:
    learner = _learner(rng)
    low = rng.choice([-1.0, 0.0, 1.0, 3e38, -3e38, 1 - 1e-9], ACT)
    keys = ["", "a", "\ud800", "b" * 2**20]
    layout = ObservationLayout({keys[rng.integers(4)]: (2,), "z": (1,)})
    saved = save_checkpoint(
        path,
        learner,
        action_scaler=ActionScaler(low, low + rng.choice([1.0, 1e-9, 1e-6, 1e30])),
        layout=layout if rng.integers(2) else None,
        metadata={"note": odd_json(rng)} if rng.integers(2) else None,
    )
    return _checked(learner, lambda: load_checkpoint(saved).learner)


def _sb3(rng: np.random.Generator, path: Path) -> Loaded:
    size = int(rng.choice([3, 30, 20_000]))
    low = rng.uniform(-9, -1, size).astype(np.float32) if rng.integers(2) else -9.0
    box = Box(low, 9.0, (size,))
    space = Dict(a=box, b=Box(-1, 1, (2,))) if rng.integers(2) else box
    policy = gtp_sb3.MultiInputPolicy if isinstance(space, Dict) else gtp_sb3.MlpPolicy
    action = Box(-1.0, float(rng.choice([1.0, -1 + 1e-6, 1e30])), (2,))
    own = policy(space, action, net_arch=[4], candidates=int(rng.choice([1, 16, 10**4, 10**7])))
    own.save(path)
    return _checked(own.learner, lambda: policy.load(path).learner)


def _tianshou(rng: np.random.Generator, path: Path) -> Loaded:
    algorithm = gtp_tianshou.GTP.from_buffer(
        make_dataset(32), action_space=Box(-1, 1, (ACT,)), config=make_config(200)
    )
    with contextlib.suppress(ValueError):  # out of range, told at once
        algorithm.gamma = float(rng.choice([0.9, 0.0, 1.0, 1.5, -1.0, np.nan]))
    policy = algorithm.policy
    policy.steps = rng.choice([None, 1, 10**4, 10**5, -1, 2.5])
    policy.candidates = rng.choice([None, 1, 100, 10**4, 10**6])
    policy.seed = int(rng.choice([0, 2**40, -1])) * int(rng.choice([1, 2**40]))
    saved = algorithm.save(path, metadata={"note": odd_json(rng)})
    return _checked(algorithm.learner, lambda: gtp_tianshou.GTP.load(saved).learner)


def _learner(rng: np.random.Generator) -> GTPLearner:
    ways = list(configs(200).values())
    learner = GTPLearner.from_dataset(make_dataset(32), ways[rng.integers(len(ways))])
    for _ in range(rng.integers(3)):
        batch = make_dataset(32).sample(8, generator=learner.stream("batch"))
        learner.update(batch)
    if not rng.integers(6):
        parameter = list(learner.parameters())[rng.integers(3)]
        parameter.data.view(-1)[0] = float(rng.choice([np.nan, np.inf, 1e38]))
    return learner


def _checked(learner: GTPLearner, load: Loaded) -> Loaded:
    expected = digests(learner)

    def loaded() -> GTPLearner:
        found = load()
        if digests(found) != expected:
            raise ValueError("another learner came back")
        return found

    return loaded


WRITERS: dict[str, Callable[[np.random.Generator, Path], Loaded]] = {
    "core": _core,
    "Stable-Baselines3": _sb3,
    "Tianshou": _tianshou,
}


def saves_load_again(count: int = 300) -> Outcome:
    """A7: a save is a typed error that leaves what was there, or loads again bit for bit."""
    outcome, saved, rng = Outcome(), 0, np.random.default_rng(0)
    with TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bounds in float64, and the like
        path = Path(directory, "policy.zip")
        for number in range(count):
            name, write = list(WRITERS.items())[number % len(WRITERS)]
            before, problem = path.read_bytes() if path.exists() else None, None
            try:
                load = write(rng, path)
            except (GTPError, ValueError) as error:
                # Where an argument is wrong already, nothing has been asked to be saved.
                if path.exists() and path.read_bytes() != before:
                    problem = f"what was there is gone: {error!r:.200}"
            except BaseException as error:
                problem = f"raised {error!r:.200}"
            else:
                saved += 1
                try:
                    load()
                except BaseException as error:
                    problem = f"does not load: {error!r:.300}"
            outcome.add(f"{number} {name}", problem)
    outcome.details["saved"] = saved
    outcome.worst = f"{len(outcome.failures)} of {saved} saves did not load again"
    return outcome


def reader_beside_writer(count: int = 200) -> Outcome:
    """A8: polls of a folder of which the writer keeps one checkpoint; each finds one that loads."""
    outcome, dataset, empty = Outcome(), make_dataset(32), 0
    with TemporaryDirectory() as directory:
        folder = CheckpointFolder(directory, keep=1)
        learner = GTPLearner.from_dataset(dataset, configs(10**6)["behaviour cloning"])
        folder.save(learner)
        done, errors = threading.Event(), list[BaseException]()

        def write() -> None:
            torch.set_num_threads(1)
            try:
                while not done.is_set():
                    train(learner, dataset, 1)
                    folder.save(learner)
            except BaseException as error:
                errors.append(error)

        writer = threading.Thread(target=write)
        writer.start()
        start = time.monotonic()
        try:
            for number in range(count):
                with warnings.catch_warnings():
                    warnings.simplefilter("error")  # nothing that is there is damaged
                    found = CheckpointFolder(directory).latest()
                empty += found is None
                outcome.add(f"poll {number}", "found none" if found is None else None)
        finally:
            done.set()
            writer.join()
        if errors:
            outcome.add("writer", repr(errors[0]))
    seconds = time.monotonic() - start
    outcome.details["checkpoints written meanwhile"] = learner.updates
    outcome.details["polls per second"] = round(count / seconds)
    outcome.worst = f"{empty} of {count} polls found none"
    return outcome


assert OBS == 3  # the layouts above have three numbers
