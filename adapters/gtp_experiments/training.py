"""Trains runs between their folders: one, or several that differ in their seed, in one program."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from gtp_datasets import normalized_score
from gtp_experiments.config import RunConfig
from gtp_experiments.errors import ExperimentError
from gtp_experiments.evaluation import Evaluation, Evaluator, policy_of
from gtp_experiments.processes import first_does, together, writes
from gtp_experiments.results import RunFolder, RunResult, check_run
from gtp_experiments.trackers import Tracker, TrackerName, tracking
from gtp_policy import CheckpointFolder, MultiSeedLearner, OfflineDataset, read_metadata, restore_
from gtp_policy.errors import NonFiniteError
from gtp_policy.metrics import UpdateMetrics
from gtp_policy.progress import Progress


class Training:
    """One run while it trains: its learner, its records, its checkpoints.

    Args:
        config: The experiment.
        dataset: What it learns from.
        folder: Where it records; what is there beyond the newest checkpoint is cut back.
        evaluators: The environments, in the process that evaluates; nothing in the others.
        progress: What is said meanwhile.

    Raises:
        ExperimentError: If the newest checkpoint is none of this run.

    Example:
        >>> from gtp_experiments.training import Training
        >>> sorted(name for name in vars(Training) if name in ("finish", "keep", "look"))
        ['finish', 'keep', 'look']
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: OfflineDataset,
        folder: RunFolder,
        evaluators: Sequence[Evaluator],
        progress: Progress,
    ) -> None:
        self.config = config
        self._dataset, self._folder = dataset, folder
        self._evaluators, self._progress = evaluators, progress
        self.learner = config.build_learner(dataset)
        self._checkpoints = CheckpointFolder(folder.checkpoints, keep=config.keep_checkpoints)
        self._seconds = 0.0
        if (newest := first_does(self._checkpoints.latest)) is not None:
            check_run(newest, read_metadata(newest).metadata, config.name)
            self._seconds = _seconds_of(restore_(self.learner, newest).metadata, newest)
        first_does(lambda: folder.resume_at_(self.learner.updates))
        if together():
            self.learner.distribute_()
        self._trackers: Tracker | None = None
        self._every = config.log_every, config.evaluation.every, config.checkpoint_every

    @contextlib.contextmanager
    def tracked(self, track: Sequence[TrackerName | Tracker]) -> Iterator[None]:
        """Lets trackers have the figures while the block lasts.

        Args:
            track: Their names, or trackers that are open.

        Yields:
            Nothing.
        """
        asked = track if writes() else ()
        with tracking(asked, self.config, self._folder.path, self.learner.updates) as trackers:
            self._trackers = trackers
            try:
                yield
            finally:
                self._trackers = None

    @property
    def done(self) -> bool:
        """Whether all updates are done."""
        return self.learner.updates >= self.config.updates

    @property
    def until_next(self) -> int:
        """Updates until there is something to record, to evaluate or to save."""
        done = self.learner.updates
        return min(self.config.updates - done, *(n - done % n for n in self._every))

    def look(self, metrics: UpdateMetrics, seconds: float) -> None:
        """Records and evaluates if it is time to.

        Args:
            metrics: Of the last update.
            seconds: What the updates since the last call took.

        Raises:
            NonFiniteError: If training has diverged.
        """
        done, began = self.learner.updates, time.perf_counter()
        if self.done or not done % self.config.log_every:
            figures = metrics.to_floats()  # where it diverged, in every process
            if writes():
                self._record(figures)
        self._seconds += seconds + time.perf_counter() - began
        if self.done or not done % self.config.evaluation.every:
            first_does(self._evaluate)

    def keep(self, leaving: bool) -> None:
        """Saves a checkpoint if it is time to.

        Args:
            leaving: Whether it is time to in any case.

        Raises:
            NonFiniteError: If training has diverged.
        """
        if self.done or leaving or not self.learner.updates % self.config.checkpoint_every:
            first_does(self._save)

    def finish(self, diverged: str = "") -> RunResult:
        """Writes the result.

        Args:
            diverged: How, if training diverged.

        Returns:
            What was written.
        """
        done = self.learner.updates
        message = f"after {done} updates: {diverged}" if diverged else ""
        per_update = 1000 * self._seconds / max(done, 1)
        return first_does(lambda: self._folder.finish(per_update, diverged=message))

    def _record(self, figures: Mapping[str, float]) -> None:
        self._folder.metrics.append(update=self.learner.updates, **figures)
        self._progress.measured(figures)
        self._track({f"train/{name}": x for name, x in figures.items()})

    def _evaluate(self) -> None:
        (evaluator,) = self._evaluators
        act = policy_of(self.learner, self._dataset, self.config.evaluation)
        evaluation = evaluator.run(
            act, self.learner.updates, self._progress.evaluates, seed=self.config.seed
        )
        self._folder.record(evaluation)
        self._progress.measured({"mean_return": evaluation.mean})
        self._track(_figures(evaluation, self.config))

    def _save(self) -> None:
        self._checkpoints.save(
            self.learner,
            action_scaler=self._dataset.action_scaler,
            layout=self._dataset.layout,
            metadata={"seconds": self._seconds, "run": self.config.name},
        )

    def _track(self, figures: Mapping[str, float]) -> None:
        if self._trackers is not None:
            self._trackers.log(self.learner.updates, figures)


def train(
    trainings: Sequence[Training],
    dataset: OfflineDataset,
    stop: Callable[[], bool],
    progress: Progress,
) -> list[RunResult | None]:
    """Trains runs to their end, those with equally many updates side by side.

    Runs of one config and several seeds that were killed between their checkpoints have gone
    apart; those that are behind catch up first.

    Args:
        trainings: The runs; of equal configs but for the seed.
        dataset: What they learn from.
        stop: Asked after updates; True saves all and leaves.
        progress: What is said meanwhile.

    Returns:
        Their results in that order; None for those that were stopped.

    Raises:
        NonFiniteError: If one of several diverged in the middle of an update on the CPU, so that
            none of them can go on but from its checkpoint.

    Example:
        >>> from gtp_experiments.training import train
        >>> train([], None, lambda: False, None)
        []
    """
    results: list[RunResult | None] = [None] * len(trainings)
    going = dict(enumerate(trainings))

    @contextlib.contextmanager
    def unless_diverged(i: int) -> Iterator[None]:
        try:
            yield
        except NonFiniteError as error:
            results[i] = going.pop(i).finish(diverged=str(error))

    if going:
        progress.start(min(training.learner.updates for training in trainings))
    for i in [i for i, training in going.items() if training.done]:  # killed before the result
        results[i] = going.pop(i).finish()
    side_by_side: MultiSeedLearner | None = None
    while going:
        least = min(training.learner.updates for training in going.values())
        behind = [i for i, training in going.items() if training.learner.updates == least]
        learners = tuple(trainings[i].learner for i in behind)
        first, batch_size = trainings[behind[0]], trainings[behind[0]].config.batch_size
        # On a GPU several updates are one launch; never beyond what comes between updates.
        n = min(
            first.learner.updates_per_launch(batch_size),
            first.until_next,
            *(t.learner.updates - least for t in going.values() if t.learner.updates > least),
        )
        began = time.perf_counter()
        try:
            if len(learners) == 1:
                found = [first.learner.update_from(dataset, n, batch_size=batch_size)]
            else:
                if side_by_side is None or side_by_side.learners != learners:
                    side_by_side = MultiSeedLearner(learners)
                found = side_by_side.update_from(dataset, n, batch_size=batch_size)
        except NonFiniteError as error:
            if len(learners) > 1:
                raise  # one of them, it does not say which, and has left all half-way
            results[behind[0]] = going.pop(behind[0]).finish(diverged=str(error))
            continue
        seconds = (time.perf_counter() - began) / len(learners)
        for i, metrics in zip(behind, found, strict=True):
            with unless_diverged(i):
                trainings[i].look(metrics, seconds)
        leaving = stop()
        for i in (i for i in behind if i in going):
            with unless_diverged(i):
                trainings[i].keep(leaving)
                if trainings[i].done:
                    results[i] = going.pop(i).finish()
        progress.advance(n)
        if leaving:
            break
    return results


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
