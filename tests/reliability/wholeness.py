"""A6, E5: what an exception in the middle of a change, or another trainer, leaves behind."""

import copy
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gtp_policy import GTPLearner, MultiSeedLearner, Transitions, kernels, restore_, save_checkpoint
from gtp_policy.errors import BrokenLearnerError
from tests.reliability.outcome import Outcome
from tests.reliability.small import (
    BATCH,
    configs,
    differences,
    flat_state,
    make_config,
    make_dataset,
    train,
)


class Injected(BaseException):
    """What is raised in the middle; like Ctrl-C no `Exception`, so that nothing swallows it."""


class Fault(TorchDispatchMode):
    """Counts operators of torch, and raises once instead of one of them.

    Attributes:
        count: Operators seen.
    """

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.count, self._at = 0, at

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        if self.count - 1 == self._at:
            raise Injected(f"instead of {func}")
        return func(*args, **(kwargs or {}))


class Given(NamedTuple):
    """What a change is made with, ready before it begins.

    Attributes:
        path: A checkpoint of the learner, one update earlier.
        batch: A minibatch.
        state: A state dict of another learner of the same config.
    """

    path: Path
    batch: Transitions
    state: dict[str, Any]


Change = Callable[[GTPLearner, Given], Any]


def _reference(learner: GTPLearner, given: Given) -> None:
    with kernels.using("reference"):
        learner.update(given.batch)


CHANGES: dict[str, Change] = {
    "update": lambda learner, given: learner.update(given.batch),
    "reference update": _reference,
    "update of several seeds": lambda learner, given: MultiSeedLearner([learner]).update(
        [given.batch]
    ),
    "load_state_dict": lambda learner, given: learner.load_state_dict(given.state),
    "restore_": lambda learner, given: restore_(learner, given.path),
    "set_observation_statistics_": lambda learner, given: learner.set_observation_statistics_(
        torch.full((learner.actor.obs_dim,), 7.0), torch.full((learner.actor.obs_dim,), 3.0)
    ),
    "set_total_updates_": lambda learner, given: learner.set_total_updates_(77),
}


def interrupted_changes(
    count: int | None = None, *, changes: dict[str, Change] | None = None
) -> Outcome:
    """A6: after a failure at any operator, a state that is equal bit for bit, or a refusal.

    Args:
        count: At most so many, evenly over all; None for every operator of every change.
        changes: What to try.
    """
    outcome, refused = Outcome(), 0
    with TemporaryDirectory() as directory:
        cases = list(_cases(changes or CHANGES, Path(directory)))
        every = max(1, len(cases) // (count or len(cases)))
        for name, change, learner, given, at in cases[::every]:
            problem, says_so = _problem(copy.deepcopy(learner), change, given, at)
            refused += says_so
            outcome.add(f"{name} at operator {at}", problem)
    outcome.details["said to be broken, as networks were being stepped"] = refused
    outcome.worst = f"{len(outcome.failures)} of {outcome.count} left half a change without a word"
    return outcome


def _cases(
    changes: dict[str, Change], directory: Path
) -> Iterator[tuple[str, Change, GTPLearner, Given, int]]:
    dataset = make_dataset()
    for way, config in itertools.islice(configs(200).items(), 3):
        learner = GTPLearner.from_dataset(dataset, config)
        train(learner, dataset, 2)
        other = GTPLearner.build(dataset.obs_dim, dataset.action_dim, learner.full_config)
        given = Given(
            save_checkpoint(directory / f"{config.learner.seed}.zip", learner),
            dataset.sample(BATCH, generator=learner.stream("batch")),
            other.state_dict(),
        )
        train(learner, dataset, 1)
        for name, change in changes.items():
            change(copy.deepcopy(learner), given)  # what is made once per process is made
            own = copy.deepcopy(learner)
            with Fault() as fault:
                change(own, given)
            for at in range(fault.count):
                yield f"{way}, {name}", change, learner, given, at


def _problem(learner: GTPLearner, change: Change, given: Given, at: int) -> tuple[str | None, bool]:
    """Returns what is wrong after a failure, and whether the learner says that it is broken."""
    before = {name: value.clone() for name, value in flat_state(learner).items()}
    config, dataset = learner.full_config, make_dataset()
    try:
        with Fault(at):
            change(learner, given)
    except Injected:
        pass
    else:
        return "the failure was swallowed", False
    if learner.broken is None:
        found = differences(before, flat_state(learner))
        if found or learner.full_config != config:
            return f"changed without a word: {found[:3] or 'the config'}", False
        train(learner, dataset, 1)
        return None, False
    with TemporaryDirectory() as directory:
        uses: tuple[Callable[[], Any], ...] = (
            lambda: save_checkpoint(Path(directory, "a"), learner),
            lambda: train(learner, dataset, 1),
            learner.state_dict,
        )
        for use in uses:
            try:
                use()
            except BrokenLearnerError:
                continue
            return "a broken learner went on", True
        restore_(learner, given.path)
        train(learner, dataset, 1)
    return None, True


def two_trainers(count: int = 2, updates: int = 30) -> Outcome:
    """E5: two learners, trained in two threads at a time, leave the process as it was.

    Args:
        count: Pairs of trainers.
        updates: Of each.
    """
    outcome, dataset = Outcome(), make_dataset()
    config = make_config(200, no_grad_precision="bfloat16")
    for number in range(count):
        before = _switches()
        learners = [GTPLearner.from_dataset(dataset, config) for _ in range(2)]
        threads = [threading.Thread(target=train, args=(x, dataset, updates)) for x in learners]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        changed = [name for name, value in _switches().items() if value != before[name]]
        problem = f"changed {changed}" if changed else None
        if learners[0].updates != updates or learners[1].updates != updates:
            problem = "an update was lost"
        outcome.add(f"pair {number}", problem)
    outcome.worst = f"{len(outcome.failures)} of {outcome.count} left a switch in another place"
    return outcome


def _switches() -> dict[str, Any]:
    """Returns what torch keeps for a whole process, or for this thread, and code may change."""
    return {
        "precision of products": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "global generator": torch.get_rng_state().tolist(),
    }
