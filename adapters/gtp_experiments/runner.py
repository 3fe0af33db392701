"""Runs experiments: trains, evaluates, records; goes on where a killed run has stopped."""

import contextlib
import io
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

import torch
from tqdm import tqdm

from gtp_datasets import normalized_score
from gtp_experiments.config import RunConfig
from gtp_experiments.data import Data, load_data
from gtp_experiments.errors import ExperimentError
from gtp_experiments.evaluation import Evaluation, Evaluator, policy_of
from gtp_experiments.processes import agreed, first_does, join, together, writes
from gtp_experiments.results import RunFolder, RunResult
from gtp_experiments.trackers import Tracker, TrackerName, tracking
from gtp_policy import CheckpointFolder, StopSignal, restore_
from gtp_policy.errors import NonFiniteError
from gtp_policy.metrics import UpdateMetrics
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
        holds; the data are not read again.

    Raises:
        DataError: If the dataset cannot be read.
        ExperimentError: If there is no fitting environment, or the folder belongs to another run,
            holds a link or is in use by another process.

    Example:
        >>> from gtp_experiments import RunConfig, run
        >>> run(RunConfig(dataset="missing.hdf5", updates=10), "runs")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        gtp_policy.errors.DataError: `missing.hdf5` cannot be read as HDF5: ...
    """
    join(config.device)
    if (done := RunFolder.finished(out, config)) is not None:
        return done
    quiet = None if writes() else io.StringIO()
    title = f"{config.method} seed {config.seed}"
    progress = Progress(title, config.updates, line=line, stream=quiet)
    with contextlib.ExitStack() as stack:
        stack.callback(progress.close)
        progress.say(f"reads {config.dataset}")
        data = load_data(config)

        def open_folder() -> None:
            folder = RunFolder(out, config, data.sha256)
            if folder.result() is None:
                stack.enter_context(folder.locked())

        first_does(open_folder)
        folder = RunFolder(out, config, data.sha256)
        if (done := folder.result()) is not None:  # of another one, while this one waited
            return done
        evaluators: list[Evaluator] = []
        first_does(lambda: evaluators.append(Evaluator(config, data.dataset)))
        for evaluator in evaluators:
            stack.callback(evaluator.close)
        stack.enter_context(_torch_threads(config.threads))
        signal = stack.enter_context(StopSignal())

        def leave() -> bool:
            return agreed(bool(signal) or stop(), config.device)

        return _train(config, data, folder, evaluators, leave, progress, track)


def _train(
    config: RunConfig,
    data: Data,
    folder: RunFolder,
    evaluators: Sequence[Evaluator],
    stop: Callable[[], bool],
    progress: Progress,
    track: Sequence[TrackerName | Tracker],
) -> RunResult | None:
    dataset = data.dataset
    learner = config.build_learner(dataset)
    checkpoints = CheckpointFolder(folder.checkpoints, keep=config.keep_checkpoints)
    seconds = 0.0
    if (newest := first_does(checkpoints.latest)) is not None:
        seconds = _seconds_of(restore_(learner, newest).metadata, newest)
    first_does(lambda: folder.resume_at_(learner.updates))
    if together():
        learner.distribute_()
    progress.start(learner.updates)
    every = config.log_every, config.evaluation.every, config.checkpoint_every

    with tracking(track if writes() else (), config, folder.path, learner.updates) as trackers:

        def log(metrics: UpdateMetrics) -> None:
            figures = metrics.to_floats()
            folder.metrics.append(update=learner.updates, **figures)
            progress.measured(figures)
            trackers.log(learner.updates, {f"train/{name}": x for name, x in figures.items()})

        def evaluate() -> None:
            (evaluator,) = evaluators
            act = policy_of(learner, dataset, config.evaluation)
            evaluation = evaluator.run(act, learner.updates, progress.evaluates)
            folder.record(evaluation)
            progress.measured({"mean_return": evaluation.mean})
            trackers.log(learner.updates, _figures(evaluation, config))

        def save() -> None:
            checkpoints.save(
                learner,
                action_scaler=dataset.action_scaler,
                layout=dataset.layout,
                metadata={"seconds": seconds, "run": config.name},
            )

        try:
            while learner.updates < config.updates:
                began = time.perf_counter()
                # On a GPU several updates are one launch; never beyond what comes between updates.
                at_once = min(
                    learner.updates_per_launch(config.batch_size),
                    config.updates - learner.updates,
                    *(n - learner.updates % n for n in every),
                )
                metrics = learner.update_from(dataset, at_once, batch_size=config.batch_size)
                done = learner.updates
                last = done == config.updates
                if writes() and (last or not done % config.log_every):
                    log(metrics)
                seconds += time.perf_counter() - began
                if last or not done % config.evaluation.every:
                    first_does(evaluate)
                leave = stop()
                if last or leave or not done % config.checkpoint_every:
                    first_does(save)
                progress.advance(at_once)
                if leave and not last:
                    return None
        except NonFiniteError as error:
            message = f"after {learner.updates} updates: {error}"
            per_update = 1000 * seconds / max(learner.updates, 1)
            return first_does(lambda: folder.finish(per_update, diverged=message))
    return first_does(lambda: folder.finish(1000 * seconds / config.updates))


def _figures(evaluation: Evaluation, config: RunConfig) -> dict[str, float]:
    """Returns what trackers get of an evaluation."""
    found = {"evaluation/mean_return": evaluation.mean}
    if evaluation.success is not None:
        found["evaluation/success"] = sum(evaluation.success) / len(evaluation.success)
    scored = found.get(f"evaluation/{config.scored_by}", evaluation.mean)
    if config.reference is not None:
        scored = normalized_score([scored], config.reference).value
    return {**found, "evaluation/score": scored}


def _seconds_of(metadata: Mapping[str, object], path: Path) -> float:
    seconds = metadata.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
        raise ExperimentError(
            f"{path} is no checkpoint of a run: got {seconds!r} for its seconds of training, "
            "expected a number >= 0. Choose another folder for the results, or delete that one."
        )
    return float(seconds)


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
    """Runs several experiments, each in a separate process.

    SIGTERM and Ctrl-C let the running ones save and leave, and start no other.

    Args:
        configs: The experiments; no two of them equal.
        out: The folder of all runs.
        jobs: How many at a time; 1 runs them here, one after the other.
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
    if len({config.name for config in configs}) < len(configs):
        raise ExperimentError(
            f"Some experiments are the same: got {len(configs)} with "
            f"{len({config.name for config in configs})} different ones, expected no double."
        )
    if jobs == 1:
        return _run_here(configs, out, track)
    with StopSignal() as signal:
        return _run_in_processes(configs, out, jobs, signal, track)


def _run_here(
    configs: Sequence[RunConfig], out: str | Path, track: Sequence[TrackerName]
) -> list[RunResult | None]:
    results: list[RunResult | None] = []
    for config in configs:
        results.append(run(config, out, track=track))
        if results[-1] is None:  # a signal, which is meant for all of them
            break
    return results + [None] * (len(configs) - len(results))


def _run_in_processes(
    configs: Sequence[RunConfig],
    out: str | Path,
    jobs: int,
    signal: StopSignal,
    track: Sequence[TrackerName],
) -> list[RunResult | None]:
    # Spawned, since a fork would copy torch's thread pool in an undefined state.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(
        min(jobs, len(configs)) or 1,
        context,
        initializer=_start_worker,
        initargs=(stop, context.RLock()),
    ) as pool:
        futures = [pool.submit(_work, c, out, i % jobs, track) for i, c in enumerate(configs)]
        try:
            _wait(futures, signal, stop.set)
            return [f.result() if not f.cancelled() else None for f in futures]
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _wait(
    futures: list["Future[RunResult | None]"], signal: StopSignal, stop: Callable[[], None]
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
    config: RunConfig, out: str | Path, line: int, track: Sequence[TrackerName]
) -> RunResult | None:
    return run(config, out, stop=_stops[0], line=line, track=track)
