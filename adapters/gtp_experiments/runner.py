"""Runs experiments: trains, evaluates, records; goes on where a killed run has stopped."""

import contextlib
import io
import multiprocessing
import os
import signal as signals
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import resource_tracker
from pathlib import Path

import torch
from tqdm import tqdm

from gtp_experiments.config import RunConfig
from gtp_experiments.data import data_files, load_data, stored_by, stored_hash
from gtp_experiments.environments import environment_of
from gtp_experiments.errors import ExperimentError
from gtp_experiments.evaluation import Evaluator
from gtp_experiments.processes import agreed, first_does, join, together, writes
from gtp_experiments.results import RunFolder, RunResult, has_seen, note_seen
from gtp_experiments.trackers import Tracker, TrackerName
from gtp_experiments.training import Training, train
from gtp_policy import StopSignal
from gtp_policy.errors import NonFiniteError
from gtp_policy.files import expanded
from gtp_policy.progress import Progress


def run(
    config: RunConfig,
    out: str | Path,
    *,
    stop: Callable[[], bool] = lambda: False,
    line: int = 0,
    track: Sequence[TrackerName | Tracker] = (),
) -> RunResult | None:
    """Runs one experiment to its end, from its newest checkpoint if there is one.

    A run is a function of its config, its data, the versions of software and the machine: one that
    was killed and resumed has the parameters and the records of one that was not, and on another
    machine it goes on with other rounding. A run that has its ``result.json`` is not repeated.

    Where torchrun or Accelerate started several processes, they share every update; the first one
    writes.

    Args:
        config: The experiment.
        out: The folder of all runs; this one gets ``config.name`` in it.
        stop: Called after each update; True saves and leaves, as SIGTERM and Ctrl-C do.
        line: Line of the terminal for the progress bar.
        track: Where figures go as well: ``"tensorboard"``, ``"wandb"``, or a `Tracker` of your own,
            which stays open.

    Returns:
        The result; None if the run was stopped. Of a run that is finished it is what its folder
        holds: its data may be gone, and are read again only if their files have changed.

    Raises:
        DataError: If the dataset cannot be read.
        ExperimentError: If there is no fitting environment, or the folder belongs to another run or
            to other data, holds a link or is in use by another process.

    Example:
        >>> from gtp_experiments import EvaluationConfig, RunConfig, run
        >>> evaluation = EvaluationConfig(environment="Pendulum-v1")
        >>> config = RunConfig(dataset="missing.hdf5", updates=10, evaluation=evaluation)
        >>> run(config, "runs")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        gtp_policy.errors.DataError: `missing.hdf5` cannot be read as HDF5: ...
    """
    join(config.device)
    return _run([config], out, stop, line, track)[0]


def run_seeds(
    configs: Sequence[RunConfig],
    out: str | Path,
    *,
    stop: Callable[[], bool] = lambda: False,
    line: int = 0,
    track: Sequence[TrackerName] = (),
) -> list[RunResult | None]:
    """Runs several seeds of one experiment in one program, their updates side by side.

    Each is the run that `run` does, with folder, records and checkpoints of its own, up to the
    order of floating-point sums; see `MultiSeedLearner`. The data are read once. On a GPU sixteen
    seeds take little longer than one, and `run_all` runs them so; on a CPU each takes its own time,
    and separate processes are as good. The time of an update is shared equally among the seeds.

    Seeds that a killed program left at other checkpoints catch up with the others first. Where
    several processes share updates, or a subclass of `RunConfig` builds learners of its own, they
    are run one after the other; so they are, from their checkpoints, when one diverges on the CPU.

    Args:
        configs: The experiments; equal but for the seed.
        out: The folder of all runs.
        stop: Called after each update; True saves and leaves, as SIGTERM and Ctrl-C do.
        line: Line of the terminal for the progress bar.
        track: Where figures go as well, as for `run`.

    Returns:
        Their results in that order; None for those that were stopped.

    Raises:
        DataError: If the dataset cannot be read.
        ExperimentError: If they differ in more than the seed or two are equal, there is no fitting
            environment, or a folder belongs to another run or to other data, holds a link or is in
            use by another process.

    Example:
        >>> from gtp_experiments import RunConfig, run_seeds
        >>> configs = [RunConfig(dataset="a/b-v0", updates=10 * seed) for seed in (1, 2)]
        >>> run_seeds(configs, "runs")
        Traceback (most recent call last):
        ...
        gtp_experiments.errors.ExperimentError: Experiments differ in more than the seed: got 2 \
different ones, expected one with several seeds. Run the others by a call of their own.
    """
    different = {_but_for_the_seed(config) for config in configs}
    if len(different) > 1:
        raise ExperimentError(
            f"Experiments differ in more than the seed: got {len(different)} different ones, "
            "expected one with several seeds. Run the others by a call of their own."
        )
    _check_different(configs)
    own = any(type(config).build_learner is not RunConfig.build_learner for config in configs)
    if configs:
        join(configs[0].device)
    if len(configs) > 1 and not own and not together():
        with contextlib.suppress(NonFiniteError):
            return _run(configs, out, stop, line, track)
    results: list[RunResult | None] = []
    for config in configs:
        results += _run([config], out, stop, line, track)
        if results[-1] is None:  # a signal, which is meant for all of them
            break
    return results + [None] * (len(configs) - len(results))


def _run(
    configs: Sequence[RunConfig],
    out: str | Path,
    stop: Callable[[], bool],
    line: int,
    track: Sequence[TrackerName | Tracker],
) -> list[RunResult | None]:
    """Runs one experiment, or several seeds of one side by side."""
    config = configs[0]
    done = [RunFolder.finished(out, c) for c in configs]
    if None not in done:
        check_data(out, configs, done)
        return done
    quiet = None if writes() else io.StringIO()
    left = [c for c, result in zip(configs, done, strict=True) if result is None]
    seeds = ", ".join(str(c.seed) for c in left)
    title = f"{config.method} seed{'s' * (len(left) > 1)} {seeds}"
    progress = Progress(title, config.updates, line=line, stream=quiet)
    with contextlib.ExitStack() as stack:
        stack.callback(progress.close)
        if config.is_file:  # which names no environment: that is said before it is read
            environment_of(config)
        progress.say(f"reads {config.dataset}")
        files = data_files(config)  # before they are read: a change meanwhile is seen next time
        data = load_data(config)
        folders = [_opened(out, c, data.sha256, files, stack) for c in configs]
        done = [folder.result() for folder in folders]  # of another process, while this one waited
        evaluators: list[Evaluator] = []
        if None in done:
            first_does(lambda: evaluators.append(Evaluator(config, data.dataset)))
        for evaluator in evaluators:
            stack.callback(evaluator.close)
        stack.enter_context(_torch_threads(config.threads))
        signal = stack.enter_context(StopSignal())
        trainings = [
            Training(c, data.dataset, folder, evaluators, progress)
            for c, folder, result in zip(configs, folders, done, strict=True)
            if result is None
        ]
        for training in trainings:
            stack.enter_context(training.tracked(track))

        def leave() -> bool:
            return agreed(bool(signal) or stop(), config.device)

        results = iter(train(trainings, data.dataset, leave, progress))
        return [next(results) if result is None else result for result in done]


def check_data(
    out: str | Path, configs: Sequence[RunConfig], done: Sequence[RunResult | None]
) -> None:
    """Raises if the data of finished runs are there and are others.

    Where they are gone, a result stands by itself.

    Args:
        out: The folder of all runs.
        configs: The experiments.
        done: Their results; None for those that are not finished, which are not looked at.

    Raises:
        DataError: If the data have changed and cannot be read.
        ExperimentError: If they are others than those of a result.

    Example:
        >>> from gtp_experiments.runner import check_data
        >>> check_data("runs", [], [])
    """
    hashes: dict[tuple[object, ...], str] = {}  # data that many runs have are hashed once
    for config, result in zip(configs, done, strict=True):
        if result is None or (files := data_files(config)) is None:
            continue
        if not has_seen(expanded(out) / config.name, result.data_sha256, files):
            key = files, *stored_by(config)
            sha256 = hashes[key] = hashes.get(key) or stored_hash(config)
            folder = RunFolder(out, config, sha256)
            if writes():
                note_seen(folder.path, sha256, files)


def _opened(
    out: str | Path,
    config: RunConfig,
    sha256: str,
    files: str | None,
    stack: contextlib.ExitStack,
) -> RunFolder:
    """Returns a run's folder, which nobody else works in until the stack is left."""

    def open_folder() -> None:
        folder = RunFolder(out, config, sha256)
        if folder.result() is None:
            stack.enter_context(folder.locked())
        note_seen(folder.path, sha256, files)

    first_does(open_folder)
    return RunFolder(out, config, sha256)


def _but_for_the_seed(config: RunConfig) -> str:
    # Older versions of pydantic warn of unions, and write them all the same.
    return f"{type(config)} {config.replace(seed=0).model_dump_json(warnings=False)}"


def _check_different(configs: Sequence[RunConfig]) -> None:
    if len(names := {config.name for config in configs}) < len(configs):
        raise ExperimentError(
            f"Some experiments are the same: got {len(configs)} with {len(names)} different ones, "
            "expected no double. Name each seed once."
        )


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_all(
    configs: Sequence[RunConfig],
    out: str | Path,
    *,
    jobs: int = 1,
    track: Sequence[TrackerName] = (),
) -> list[RunResult | None]:
    """Runs several experiments: on a CPU each by itself, on a GPU the seeds of one side by side.

    SIGTERM and Ctrl-C let the running ones save and leave, and start no other.

    Args:
        configs: The experiments; no two of them equal.
        out: The folder of all runs.
        jobs: How many at a time, each in a process of its own; 1 runs them here, one after the
            other. Seeds that `run_seeds` runs in one program count as one.
        track: Where figures go as well, as for `run`.

    Returns:
        Their results in that order; None for those that were stopped or not started.

    Raises:
        ExperimentError: If ``jobs`` is smaller than 1, or two experiments are the same.

    Example:
        >>> from gtp_experiments import run_all
        >>> run_all([], "runs", jobs=2)
        []
    """
    if jobs < 1:
        raise ExperimentError(f"`jobs` is out of range: got {jobs}, expected at least 1.")
    _check_different(configs)
    programs = _programs(configs)
    if jobs == 1:
        found = _run_here(programs, out, track)
    else:
        with StopSignal() as signal:
            found = _run_in_processes(programs, out, jobs, signal, track)
    results = {
        c.name: r for p, rs in zip(programs, found, strict=True) for c, r in zip(p, rs, strict=True)
    }
    return [results[config.name] for config in configs]


def _programs(configs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Splits experiments into what one program runs: on a GPU all seeds of one, else one run."""
    programs: dict[str, list[RunConfig]] = {}
    for config in configs:
        on_gpu = config.device.startswith("cuda")
        programs.setdefault(_but_for_the_seed(config) if on_gpu else config.name, []).append(config)
    return list(programs.values())


def _run_here(
    programs: Sequence[Sequence[RunConfig]], out: str | Path, track: Sequence[TrackerName]
) -> list[list[RunResult | None]]:
    results: list[list[RunResult | None]] = []
    for configs in programs:
        results.append(run_seeds(configs, out, track=track))
        if None in results[-1]:  # a signal, which is meant for all of them
            break
    return results + [[None] * len(configs) for configs in programs[len(results) :]]


def _run_in_processes(
    programs: Sequence[Sequence[RunConfig]],
    out: str | Path,
    jobs: int,
    signal: StopSignal,
    track: Sequence[TrackerName],
) -> list[list[RunResult | None]]:
    # Spawned, since a fork would copy torch's thread pool in an undefined state.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(
        min(jobs, len(programs)) or 1,
        context,
        initializer=_start_worker,
        initargs=(stop, context.RLock()),
    ) as pool:
        with beyond_interrupts():
            futures = [pool.submit(_work, p, out, i % jobs, track) for i, p in enumerate(programs)]
        try:
            _wait(futures, signal, stop.set)
            return [
                [None] * len(configs) if future.cancelled() else future.result()
                for configs, future in zip(programs, futures, strict=True)
            ]
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _wait(
    futures: list["Future[list[RunResult | None]]"], signal: StopSignal, stop: Callable[[], None]
) -> None:
    """Returns when all are done; passes a signal on; raises the first error."""
    pending = set(futures)
    while pending:
        finished, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
        for future in finished:
            if not future.cancelled():
                future.result()
        if signal:
            stop()
            for future in pending:
                future.cancel()


@contextlib.contextmanager
def beyond_interrupts() -> Iterator[None]:
    """Lets processes that start in the block hear of Ctrl-C from this one alone.

    A terminal sends it to all of them, and one that still imports would end with a traceback.

    Yields:
        Nothing.
    """
    mask = getattr(signals, "pthread_sigmask", None)  # not on Windows
    if mask:
        resource_tracker.ensure_running()  # which lets interrupts in again where it starts
    before = mask and mask(signals.SIG_BLOCK, {signals.SIGINT})
    try:
        yield
    finally:
        if mask:
            mask(signals.SIG_SETMASK, before)


def leave_with_parent() -> None:
    """Lets a worker end when its parent does, however that ended.

    An orphan would write into the folders that the next call of the command works in. Runs
    can be ended at any point and resumed.
    """
    if (parent := multiprocessing.parent_process()) is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


_stops: list[Callable[[], bool]] = []  # in a worker: whether the parent wants it to leave


def _start_worker(stop: "multiprocessing.synchronize.Event", lock: object) -> None:
    _stops.append(stop.is_set)
    leave_with_parent()
    tqdm.set_lock(lock)


def _work(
    configs: Sequence[RunConfig], out: str | Path, line: int, track: Sequence[TrackerName]
) -> list[RunResult | None]:
    return run_seeds(configs, out, stop=_stops[0], line=line, track=track)
