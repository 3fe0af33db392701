"""The scorecard: each trial with its count per pull request and per release."""

import gc
from collections.abc import Callable
from typing import NamedTuple

from tests.reliability.bad_data import degenerate, not_finite, odd_inputs
from tests.reliability.bootstrapping import truncation_bootstraps
from tests.reliability.canaries import hostile_files
from tests.reliability.faults import failing_disk
from tests.reliability.forged_data import forged_datasets
from tests.reliability.forgeries import forged_files
from tests.reliability.interruptions import (
    killed_while_saving,
    killed_while_training,
    resumed_at,
    stopped_by_signal,
)
from tests.reliability.misuse import misused
from tests.reliability.mutations import mutated
from tests.reliability.oracle import engines_and_formulas
from tests.reliability.outcome import Outcome
from tests.reliability.repeatability import (
    acting_is_pure,
    batch_equals_single,
    concurrent_acts,
    same_seed_twice,
)
from tests.reliability.saves import reader_beside_writer, saves_load_again
from tests.reliability.wholeness import interrupted_changes, two_trainers
from tests.test_sources import LIBRARY, ROOT, forbidden_calls


class Trial(NamedTuple):
    """One row of the scorecard.

    Attributes:
        title: What is tried, and what must hold.
        run: The trial at a given count, and with the options of the release if requested.
        pull_request: Cases per pull request; None for all there are.
        release: Cases per release; None for all there are.
        options: Further arguments per release.
    """

    title: str
    run: Callable[..., Outcome]
    pull_request: int | None
    release: int | None
    options: dict[str, int] = {}  # noqa: RUF012 (a NamedTuple's default is never changed)


def nothing_executes(count: int | None = None) -> Outcome:
    """B5: no source of the library calls what executes data, or draws from a global generator."""
    outcome = Outcome(worst="0 sites")
    for path in LIBRARY[:count]:
        found = forbidden_calls(path)
        outcome.add(str(path.relative_to(ROOT)), f"{found}" if found else None)
    if outcome.failures:
        outcome.worst = f"{len(outcome.failures)} files with sites"
    return outcome


TRIALS: dict[str, Trial] = {
    "A1": Trial(
        "kill -9 while training, started again until done: bit-equal to the uninterrupted run",
        killed_while_training,
        6,
        100,
        {"updates": 400},
    ),
    "A2": Trial(
        "kill -9 while saving back to back: the newest valid one is what was reported as saved",
        killed_while_saving,
        25,
        200,
    ),
    "A3": Trial(
        "no space, I/O error, no access at every call of the writer: the previous one loads",
        failing_disk,
        None,
        None,
    ),
    "A4": Trial(
        "resumed at update 0, 1, the last and between: bit-equal, log included", resumed_at, 5, 20
    ),
    "A5": Trial(
        "SIGTERM and Ctrl-C: a checkpoint and a clean exit within 5 s", stopped_by_signal, 2, 20
    ),
    "A6": Trial(
        "an exception at every operator of an update, of loading a state, of setting statistics: "
        "equal bit for bit, or a learner that refuses to train and to save",
        interrupted_changes,
        100,
        None,
    ),
    "A7": Trial(
        "odd content saved by every host: a typed error that leaves what was there, or it loads "
        "again bit for bit",
        saves_load_again,
        60,
        3_000,
    ),
    "A8": Trial(
        "a reader beside a writer that keeps one checkpoint: it always finds one",
        reader_beside_writer,
        300,
        2_560,
    ),
    "B1": Trial(
        "eight kinds of damage to every file: an error or the same content, at most 1 s and "
        "twice the file + 64 MB",
        mutated,
        3_000,
        60_000,
    ),
    "B2": Trial(
        "hostile files: nothing executed or written, a typed error within 1 s",
        hostile_files,
        None,
        None,
    ),
    "B5": Trial("sources without a call that executes data", nothing_executes, None, None),
    "B6": Trial(
        "random forgeries of JSON with right hashes, at eight doors: a typed error or no harm, at "
        "most 1 s and twice the file + 64 MB",
        forged_files,
        320,
        10_000,
    ),
    "B7": Trial(
        "datasets changed at random in type, shape, storage and values, at four doors: a typed "
        "error or a dataset, at most 1 s and the stated budget",
        forged_datasets,
        160,
        4_000,
    ),
    "C1": Trial(
        "NaN and infinity in data, a minibatch, an observation: an error with field and row, "
        "before anything changes",
        not_finite,
        None,
        None,
    ),
    "C2": Trial("degenerate datasets: a typed error, or 200 finite updates", degenerate, 30, 30),
    "C3": Trial(
        "odd types, layouts, ranks, devices, values: as plain input, or an error that says what "
        "was got and expected",
        odd_inputs,
        None,
        None,
    ),
    "C4": Trial(
        "truncation bootstraps, termination does not: Q within 1e-4 of the exact one",
        truncation_bootstraps,
        4,
        4,
    ),
    "C5": Trial(
        "each argument of the public entry points in turn replaced by what does not belong there: "
        "it works, or a typed error says what was got and expected",
        misused,
        400,
        None,
    ),
    "E1": Trial(
        "same seed in fresh processes with other hash seeds: all tensors and the log equal",
        same_seed_twice,
        3,
        10,
        {"updates": 1000},
    ),
    "E2": Trial(
        "8 threads act with separate generators while a copy is trained: as one by one",
        concurrent_acts,
        4_000,
        100_000,
    ),
    "E3": Trial(
        "acting changes no parameter, mode, global generator or input", acting_is_pure, 100, 1_000
    ),
    "E4": Trial("an action alone and in a batch: within 1e-6", batch_equals_single, 100, 1_000),
    "E5": Trial(
        "two learners in two threads, with products in bfloat16: no switch of the process differs "
        "afterwards",
        two_trainers,
        2,
        50,
    ),
    "L1": Trial(
        "an update by METHOD.md's formulas and `torch.func`: metrics, steps and targets of both "
        "engines in float64 within 1e-10",
        engines_and_formulas,
        16,
        360,
    ),
}


def run(name: str, *, release: bool) -> Outcome:
    """Runs a trial at one of its two counts."""
    trial = TRIALS[name]
    # A full pass of the garbage collector over what other tests left takes a second, which would
    # be counted as a door's: what is there already is not looked through.
    gc.collect()
    gc.freeze()
    try:
        if release:
            return trial.run(trial.release, **trial.options)
        return trial.run(trial.pull_request)
    finally:
        gc.unfreeze()
