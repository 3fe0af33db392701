"""A1, A2, A4, A5: a run that is killed, stopped or resumed ends where it would have ended."""

import os
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from gtp_policy import (
    CheckpointFolder,
    GTPLearner,
    latest_valid,
    load_checkpoint,
    restore_,
    save_checkpoint,
)
from tests.reliability import jobs
from tests.reliability.outcome import Outcome
from tests.reliability.small import (
    configs,
    differences,
    digests,
    flat_state,
    make_dataset,
    train,
)

KILLED = -signal.SIGKILL if os.name == "posix" else None
UPDATES = 40
STOP_LIMIT = 5.0


def temporaries(directory: str | Path) -> list[str]:
    """Returns the names of what an unfinished write has left in a folder."""
    return sorted(name for name in os.listdir(directory) if ".tmp-" in name)


def compare(first: dict[str, str], second: dict[str, str]) -> str | None:
    """Returns which digests differ, or None."""
    names = sorted(k for k in first.keys() | second.keys() if first.get(k) != second.get(k))
    return f"{len(names)} of {len(first)} entries differ, first {names[:3]}" if names else None


# --- A1 -------------------------------------------------------------------------------------------


def killed_while_training(count: int, *, updates: int = UPDATES) -> Outcome:
    """A1: kill -9 at random times, start again until done: bit-equal to the uninterrupted run."""
    outcome, rng = Outcome(), np.random.default_rng(7)
    runs, left_behind, entries = 0, 0, 0
    for way, name in enumerate(list(configs(updates))[:3]):
        with TemporaryDirectory() as directory:
            process, reader = jobs.start(jobs.train, directory, name, updates)
            reader.poll(60)
            start = time.monotonic()
            process.join(600)
            duration, ((_, reference),) = time.monotonic() - start, jobs.sent(reader)[1:]
        kills = (count + 2 - way) // 3
        while kills:
            with TemporaryDirectory() as directory:
                killed, final = 0, None
                while final is None:
                    patience = rng.uniform(0, duration) if killed < kills else None
                    final = _train(directory, name, updates, patience)
                    if final is None:
                        killed += 1
                        left_behind += bool(temporaries(directory))
                left = temporaries(directory)
                problem = compare(reference, final) or (f"left {left} behind" if left else None)
            runs, kills, entries = runs + 1, kills - killed, entries + len(reference)
            for _ in range(killed):
                outcome.add(f"{name}, run {runs}", problem)
    outcome.details |= {"runs": runs, "kills in the middle of a save": left_behind}
    outcome.worst = (
        f"0 of {entries} entries differ in {runs} runs" if not outcome.failures else "not bit-equal"
    )
    return outcome


def _train(directory: str, name: str, updates: int, patience: float | None) -> Any:
    """Starts training; kills it after some seconds. Returns the final digests if it came so far."""
    process, reader = jobs.start(jobs.train, directory, name, updates)
    if patience is not None:
        reader.poll(60)  # ready, so that the kill falls into the training
        time.sleep(patience)
        process.kill()
    process.join(600)
    messages = jobs.sent(reader)
    if len(messages) == 2 and process.exitcode in (0, KILLED):
        return messages[-1][1]
    if patience is None or process.exitcode != KILLED:
        raise RuntimeError(f"the worker failed with exit code {process.exitcode}")
    return None


# --- A2 -------------------------------------------------------------------------------------------


def killed_while_saving(count: int) -> Outcome:
    """A2: kill -9 during saves back to back: what was reported as saved is there, and right."""
    outcome, rng = Outcome(), np.random.default_rng(8)
    in_the_middle, lost, skipped = 0, 0, 0
    with TemporaryDirectory() as directory:
        for index in range(count):
            process, reader = jobs.start(jobs.save_back_to_back, directory)
            reader.poll(60)
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
            process.join(60)
            reported = jobs.sent(reader)
            in_the_middle += bool(temporaries(directory))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                problem = _saved_problem(directory, reported)
            skipped += len(caught)
            if process.exitcode != KILLED:
                problem = f"the worker ended by itself with {process.exitcode}"
            outcome.add(f"kill {index}", problem)
            lost += problem is not None
    outcome.details |= {
        "kills in the middle of a save": in_the_middle,
        "damaged ones seen": skipped,
    }
    outcome.worst = f"{lost} of {outcome.count} lost, damaged or not cleaned up"
    return outcome


def _saved_problem(directory: str, reported: list[int]) -> str | None:
    newest = latest_valid(directory)
    if newest is None:
        return "no valid checkpoint"
    learner, *_, metadata = load_checkpoint(newest)
    if reported and learner.updates < reported[-1]:
        return f"update {reported[-1]} was reported as saved, the newest is {learner.updates}"
    problem = compare(digests(learner), metadata["digests"])
    # The next start: the first save removes what the aborted one left.
    CheckpointFolder(directory).save(learner, metadata=metadata)
    left = temporaries(directory)
    return problem or (f"left {left} behind" if left else None)


# --- A4 -------------------------------------------------------------------------------------------


def resumed_at(count: int, *, updates: int = UPDATES) -> Outcome:
    """A4: saved and resumed at any update, 0, 1 and the last among them: bit-equal to the end."""
    outcome = Outcome()
    cuts = [0, *np.linspace(1, updates - 1, count - 2, dtype=int).tolist(), updates]
    ways = list(configs(updates).items())
    for index, (name, config) in enumerate(ways[:3]):
        # The cuts are dealt to the three ways to train, and each goes through all forms in turn.
        own = cuts[index::3]
        outcome_of_way = _resume_one(config, own, updates, index)
        for cut, problem in outcome_of_way.items():
            outcome.add(f"{name}, update {cut}", problem)
    outcome.worst = "all entries bit-equal" if not outcome.failures else "not bit-equal"
    return outcome


def _resume_one(config: Any, cuts: list[int], updates: int, shift: int) -> dict[int, str | None]:
    dataset, problems = make_dataset(), {}
    with TemporaryDirectory() as directory:
        learner, paths, log = GTPLearner.from_dataset(dataset, config), {}, []
        for update in range(updates + 1):
            if update in cuts:
                suffix = ".zip" if update % 2 else ""
                paths[update] = save_checkpoint(f"{directory}/{update}{suffix}", learner)
            if update < updates:
                log += train(learner, dataset, 1)
        for number, (cut, path) in enumerate(paths.items()):
            resumed = _load_in_some_way(path, number + shift, config)
            rest = train(resumed, dataset, updates - cut)
            names = differences(flat_state(learner), flat_state(resumed))
            problems[cut] = f"{len(names)} entries differ, first {names[:3]}" if names else None
            if rest != log[cut:]:
                problems[cut] = f"another log; {problems[cut]}"
    return problems


def _load_in_some_way(path: Path, number: int, config: Any) -> GTPLearner:
    if number % 2:
        # Into a learner that has gone elsewhere meanwhile.
        learner = GTPLearner.from_dataset(make_dataset(), config)
        train(learner, make_dataset(seed=9), 3)
        return restore_(learner, path).learner
    return load_checkpoint(path).learner


# --- A5 -------------------------------------------------------------------------------------------


def stopped_by_signal(count: int, *, send: Callable[[int, int], None] = os.kill) -> Outcome:
    """A5: SIGTERM or Ctrl-C in the middle of training: a checkpoint and a clean exit in 5 s."""
    outcome, rng, slowest = Outcome(), np.random.default_rng(10), 0.0
    names = list(configs(UPDATES))[:3]
    for index in range(count):
        number = (signal.SIGTERM, signal.SIGINT)[index % 2]
        with TemporaryDirectory() as directory:
            process, reader = jobs.start(jobs.train, directory, names[index % 3], 100_000)
            reader.poll(60)
            time.sleep(rng.uniform(0, 0.2))
            start = time.monotonic()
            send(process.pid, number)
            process.join(STOP_LIMIT)
            seconds = time.monotonic() - start
            slowest = max(slowest, seconds)
            if process.exitcode is None:
                process.kill()
                process.join()
            outcome.add(f"{number.name} {index}", _stop_problem(directory, process, reader))
    outcome.worst = f"exit at most {slowest:.2f} s after the signal"
    return outcome


def _stop_problem(directory: str, process: Any, reader: Any) -> str | None:
    messages = jobs.sent(reader)
    if process.exitcode != 0 or len(messages) != 2:
        return f"exit code {process.exitcode}, expected 0 within {STOP_LIMIT} s"
    updates, final = messages[-1]
    newest = CheckpointFolder(directory).latest()
    if newest is None:
        return "no valid checkpoint"
    learner = load_checkpoint(newest).learner
    if learner.updates != updates:
        return f"stopped at update {updates}, the newest checkpoint is of {learner.updates}"
    return compare(final, digests(learner))
