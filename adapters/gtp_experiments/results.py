"""The folder of one run, and the one document that it leaves behind."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout
from pydantic import Field, JsonValue, ValidationError

from gtp_datasets import ReferenceScores, normalized_score
from gtp_experiments.config import ExperimentConfig
from gtp_experiments.errors import ExperimentError, InUseError
from gtp_experiments.evaluation import Evaluation
from gtp_experiments.provenance import provenance
from gtp_experiments.records import Lines, read_json, write_json
from gtp_experiments.tasks import Figure
from gtp_policy import Config
from gtp_policy.files import expanded
from gtp_policy.functional import check_kind
from gtp_policy.records import check_values, is_finite, what_is_wrong

_LOCK = ".lock"
# Seconds until a folder counts as in use: `list` holds the lock for the moment of its look.
_LOOK = 1.0
_SEEN = "data.json"
# Lists of an evaluation that have a value per episode, and what these have to be.
_BY_EPISODE: Mapping[str, Callable[[object], bool]] = {
    "returns": is_finite,
    "lengths": lambda value: type(value) is int,
    "success": lambda value: type(value) is bool,
}


class Reference(Config):
    """What scores 0 and 100, with its source.

    Example:
        >>> from gtp_experiments import Reference
        >>> Reference(min=0.0, max=1.0, source="D4RL antmaze").max
        1.0
    """

    min: float = Field(description="Return, or success, that scores 0.")
    max: float = Field(description="Return, or success, that scores 100.")
    source: str = Field(description="Where the two numbers come from.")
    scored_by: Figure = Field(
        default="return", description="Whether the two are returns, or shares of success."
    )


class RunResult(Config):
    """A run that has come to its end, complete in itself: ``result.json``.

    Example:
        >>> from gtp_experiments import Evaluation, Reference, RunResult
        >>> result = RunResult(
        ...     method="gtp", dataset="a/b-v0", group="0", seed=0, updates=20, status="finished",
        ...     evaluations=(Evaluation(update=10, returns=(0.5,), lengths=(3,)),
        ...                  Evaluation(update=20, returns=(0.4,), lengths=(3,))),
        ...     reference=Reference(min=0.0, max=1.0, source="made up"), ms_per_update=1.0,
        ...     data_sha256="", config={}, provenance={})
        >>> result.score(result.last), result.score(result.best)
        (40.0, 50.0)
    """

    format: Literal[1] = Field(default=1, description="Version of this document.")
    method: str = Field(description="What tables call the policy.")
    dataset: str = Field(description="What it was trained on.")
    data_note: str = Field(default="", description="Where the data comes from, in words.")
    task: str | None = Field(default=None, description="Name of the task in D4RL's manner.")
    group: str = Field(description="Digest of every choice but the seed.")
    seed: int = Field(description="Seed of the run.")
    updates: int = Field(description="Number of updates that were requested.")
    status: Literal["finished", "diverged"] = Field(description="How the run ended.")
    message: str = Field(default="", description="Of a run that diverged: where and how.")
    evaluations: tuple[Evaluation, ...] = Field(description="All evaluations in time order.")
    reference: Reference | None = Field(
        default=None, description="Scale of the scores, if there is one."
    )
    ms_per_update: float = Field(description="Milliseconds of training per update.")
    ms_per_action: float | None = Field(
        default=None,
        description="Milliseconds per action for one observation, where it was measured.",
    )
    data_sha256: str = Field(description="Hash of the arrays before the reward transform.")
    config: dict[str, JsonValue] = Field(description="Every choice.")
    provenance: dict[str, JsonValue] = Field(description="Software and machine.")

    @property
    def last(self) -> Evaluation | None:
        """The last evaluation; None if the run diverged before the first."""
        return self.evaluations[-1] if self.evaluations else None

    @property
    def best(self) -> Evaluation | None:
        """The evaluation with the highest score, the earliest of equals; chosen in hindsight."""
        return max(self.evaluations, key=lambda e: float(np.mean(self._figures(e))), default=None)

    def score(self, evaluation: Evaluation | None) -> float | None:
        """Returns the mean of an evaluation on the scale of ``reference``.

        Args:
            evaluation: One of the run's, or None.

        Returns:
            The normalised score, or the mean return if there is no reference; None for None.

        Raises:
            ExperimentError: If successes are scored, and the evaluation has none.
        """
        if evaluation is None:
            return None
        if self.reference is None:
            return evaluation.mean
        scale = ReferenceScores(self.reference.min, self.reference.max, self.reference.source)
        return normalized_score(self._figures(evaluation), scale).value

    def _figures(self, evaluation: Evaluation) -> npt.NDArray[np.float64]:
        """Returns what is scored, episode by episode."""
        if self.reference is None or self.reference.scored_by == "return":
            return np.array(evaluation.returns)
        if evaluation.success is None:
            raise ExperimentError(
                f"An evaluation of {self.method} on {self.task} has no successes: got None after "
                f"{evaluation.update} updates, expected one per episode. Run it again in the "
                "task's own environment."
            )
        return np.array(evaluation.success, np.float64)


class RunFolder:
    """Where one run keeps its files; a second run of the same experiment finds them again.

    ``run.json`` says what is being done, ``metrics.jsonl`` and ``evaluations.jsonl`` grow with the
    run, ``checkpoints`` holds the newest states, ``result.json`` is written at the end.

    Args:
        out: The folder of all runs.
        config: The experiment.
        data_sha256: Hash of its data.
        packages: Distributions whose version to record besides the usual ones.

    Attributes:
        path: The run's own folder.
        metrics: Training metrics by update.
        evaluations: Evaluations by update.
        checkpoints: Folder of the checkpoints.

    Raises:
        ExperimentError: If the folder holds a run of another experiment or of other data, or a
            link.

    Example:
        >>> import tempfile
        >>> from gtp_experiments import RunConfig, RunFolder
        >>> config = RunConfig(dataset="a/b-v0", updates=10)
        >>> with tempfile.TemporaryDirectory() as out:
        ...     folder = RunFolder(out, config, data_sha256="00")
        ...     folder.path.name == config.name, folder.result() is None
        (True, True)
    """

    def __init__(
        self,
        out: str | Path,
        config: ExperimentConfig,
        data_sha256: str,
        packages: tuple[str, ...] = (),
    ) -> None:
        self.config, self.data_sha256, self._packages = config, data_sha256, packages
        self.path = expanded(out) / config.name
        self.metrics = Lines(self.path / "metrics.jsonl")
        self.evaluations = Lines(self.path / "evaluations.jsonl")
        self.checkpoints = self.path / "checkpoints"
        document: dict[str, Any] = {
            "config": config.model_dump(mode="json"),
            "data_sha256": data_sha256,
        }
        _check_links(self.path)
        there = read_json(self.path / "run.json")
        if there is None:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(
                self.path / "run.json", {**document, "provenance": provenance(*self._packages)}
            )
            return
        if not isinstance(there, dict):
            raise ExperimentError(
                f"{self.path}/run.json is no record of a run: got {type(there).__name__}, expected "
                "an object. Choose another folder for the results, or delete that one."
            )
        there["config"] = self._with_new_fields(there.get("config"))
        for key, wanted in document.items():
            if there.get(key) != wanted:
                raise ExperimentError(
                    f"{self.path} belongs to another run: got another `{key}` there, expected this "
                    "experiment's. Choose another folder for the results, or delete that one."
                )

    @staticmethod
    def finished(out: str | Path, config: ExperimentConfig) -> RunResult | None:
        """Returns the result of an experiment that has come to its end, without its data.

        Whether these are still what they were is not looked at, as they may be gone.

        Args:
            out: The folder of all runs.
            config: The experiment.

        Returns:
            The result; None if there is none, or one of another config, which a run will refuse.

        Raises:
            ExperimentError: If the file is there and is no result, or behind a link.

        Example:
            >>> from gtp_experiments import RunConfig, RunFolder
            >>> RunFolder.finished("runs", RunConfig(dataset="a/b-v0", updates=10)) is None
            True
        """
        path = expanded(out) / config.name
        _check_links(path)
        result, begun = read_result(path / "result.json"), read_json(path / "run.json")
        if result is None or not isinstance(begun, dict):
            return None
        try:
            same = all(
                type(config).from_record(record) == config
                for record in (result.config, begun.get("config"))
            )
        except ValidationError:
            same = False
        return result if same else None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out of the folder while the block lasts.

        The lock belongs to the process: it is gone with it, however that ends.

        Yields:
            Nothing.

        Raises:
            InUseError: If another process works in the folder.
        """
        try:
            with lock_at(self.path / _LOCK, timeout=_LOOK, poll_interval=0.02):
                yield
        except Timeout as error:
            raise InUseError(
                f"{self.path} is in use: got a run of another process in it, expected none. Wait "
                "for that one; this command then goes on where it stopped, or reads its result."
            ) from error

    def _with_new_fields(self, record: Any) -> Any:  # noqa: ANN401 - JSON
        """Fills what a config recorded by an older version of the package does not have yet.

        All fields are recorded, so that one that is missing is new, see `Config.before`.
        """
        try:
            return type(self.config).from_record(record).model_dump(mode="json")
        except ValidationError:
            return record  # of another experiment, certainly

    def result(self) -> RunResult | None:
        """Returns the result if the run has come to its end.

        Returns:
            The result or None.

        Raises:
            ExperimentError: If the file is there and is no result.
        """
        return read_result(self.path / "result.json")

    def resume_at_(self, update: int) -> list[Evaluation]:
        """Cuts the records back to a checkpoint.

        Args:
            update: Number of updates of the checkpoint; 0 to start anew.

        Returns:
            The evaluations up to there.
        """
        for lines in (self.metrics, self.evaluations):
            lines.cut_back_(update)
        return self._evaluations()

    def _evaluations(self) -> list[Evaluation]:
        return read_evaluations(self.evaluations)

    def record(self, evaluation: Evaluation) -> None:
        """Adds an evaluation to the records.

        Args:
            evaluation: What was seen.
        """
        self.evaluations.append(**evaluation.model_dump(mode="json"))

    def finish(self, ms_per_update: float, *, diverged: str = "") -> RunResult:
        """Writes the result.

        Args:
            ms_per_update: Milliseconds of training per update.
            diverged: Of a run that diverged: where and how.

        Returns:
            What was written.
        """
        reference, config = self.config.reference, self.config
        result = RunResult(
            method=config.method,
            dataset=config.dataset,
            data_note=config.data_note,
            task=config.task,
            group=config.group,
            seed=config.seed,
            updates=config.updates,
            status="diverged" if diverged else "finished",
            message=diverged,
            evaluations=tuple(self._evaluations()),
            reference=reference
            and Reference(
                min=reference.min,
                max=reference.max,
                source=reference.source,
                scored_by=config.scored_by,
            ),
            ms_per_update=ms_per_update,
            data_sha256=self.data_sha256,
            config=config.model_dump(mode="json"),
            provenance=dict(provenance(*self._packages)),
        )
        for of_others in self.path.glob("*_result.json"):  # of the weights of an earlier run
            of_others.unlink(missing_ok=True)
        write_json(self.path / "result.json", result.model_dump(mode="json"))
        return result


def _check_links(folder: Path) -> None:
    """Raises if a run would write, or delete, where a link of its folder leads."""
    there = next((place for place in folder.parents if place.exists()), None)
    if there is not None and not there.is_dir():
        raise ExperimentError(
            f"{there} is no folder: got a file, expected the folder of all runs, or a name that is "
            "free. Choose another folder for the results."
        )
    files = ("run.json", _SEEN, "metrics.jsonl", "evaluations.jsonl", "result.json", _LOCK)
    for path in (folder, *(folder / name for name in (*files, "tensorboard", "wandb"))):
        _check_link(path)
    check_checkpoints(folder)


def lock_at(path: Path, **options: Any) -> FileLock:  # noqa: ANN401 - those of FileLock
    """Returns the lock of a file, which is emptied where it is taken.

    Args:
        path: The file; made if there is none.
        **options: Of `filelock.FileLock`.

    Returns:
        The lock, not taken.

    Raises:
        ExperimentError: If it is another name of somebody's file, or has something in it.

    Example:
        >>> from pathlib import Path
        >>> from gtp_experiments.results import lock_at
        >>> lock_at(Path("nowhere.lock")).is_locked
        False
    """
    try:
        found = os.lstat(path)
    except OSError:  # there is none yet
        return FileLock(path, **options)
    if found.st_nlink > 1 or found.st_size:
        raise ExperimentError(
            f"{path} is no lock: got a file of {found.st_nlink} names and {found.st_size} bytes, "
            "expected an empty one. It would be emptied; choose another folder for the results."
        )
    return FileLock(path, **options)


def check_checkpoints(folder: Path) -> None:
    """Raises if the checkpoints of a run, or any file of them, are links to what lies elsewhere.

    Args:
        folder: The run's folder.

    Raises:
        ExperimentError: If one is.

    Example:
        >>> from pathlib import Path
        >>> from gtp_experiments.results import check_checkpoints
        >>> check_checkpoints(Path("nowhere"))
    """
    place = folder / "checkpoints"
    # One after the other: what lies in a link is not looked at.
    for path in itertools.chain((place,), place.glob("*"), place.glob("*/*")):
        _check_link(path)


def _check_link(path: Path) -> None:
    if path.is_symlink():
        raise ExperimentError(
            f"{path} is a link: got one to {os.readlink(path)!s:.200}, expected a run's own files "
            "and folders. Choose another folder for the results, or remove the link."
        )


def check_run(checkpoint: Path, metadata: Mapping[str, object], *names: str) -> None:
    """Raises if a checkpoint says that it is of another run.

    Runs that differ in their data or in the size of a minibatch have policies of equal choices.

    Args:
        checkpoint: Where it is.
        metadata: What was saved with it.
        *names: What its run may be called.

    Raises:
        ExperimentError: If it is called otherwise.

    Example:
        >>> from pathlib import Path
        >>> from gtp_experiments.results import check_run
        >>> check_run(Path("a"), {"run": "one"}, "one")
        >>> check_run(Path("a"), {"run": "one"}, "other")
        Traceback (most recent call last):
        ...
        gtp_experiments.errors.ExperimentError: a belongs to another run: got a checkpoint of \
'one', expected one of 'other'. Restore the run's own checkpoints, or run again in another folder.
    """
    if (run := metadata.get("run", names[0])) not in names:
        raise ExperimentError(
            f"{checkpoint} belongs to another run: got a checkpoint of {run!r:.200}, expected one "
            f"of {names[0]!r}. Restore the run's own checkpoints, or run again in another folder."
        )


def has_seen(folder: Path, data_sha256: str, files: str) -> bool:
    """Returns whether the data of a run were read, and are the same files since.

    Args:
        folder: The run's folder.
        data_sha256: Hash of its data.
        files: What `data_files` says of them.

    Returns:
        Whether they need not be read again to know their hash.

    Raises:
        DataError: If the record of it is damaged.

    Example:
        >>> from pathlib import Path
        >>> from gtp_experiments.results import has_seen
        >>> has_seen(Path("nowhere"), "00", "11")
        False
    """
    return bool(read_json(folder / _SEEN) == {"data_sha256": data_sha256, "files": files})


def note_seen(folder: Path, data_sha256: str, files: str | None) -> None:
    """Notes which files had the data of a run, for `has_seen`.

    Args:
        folder: The run's folder.
        data_sha256: Hash of its data.
        files: What `data_files` said of them before they were read; None notes nothing.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from gtp_experiments.results import has_seen, note_seen
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     note_seen(Path(folder), "00", "11")
        ...     has_seen(Path(folder), "00", "11"), has_seen(Path(folder), "00", "22")
        (True, False)
    """
    if files is not None:
        with contextlib.suppress(OSError):  # in a folder that is only read it saves no time
            write_json(folder / _SEEN, {"data_sha256": data_sha256, "files": files})


def read_evaluations(lines: Lines) -> list[Evaluation]:
    """Reads an ``evaluations.jsonl``.

    Args:
        lines: The file.

    Returns:
        The evaluations in the order of the file.

    Raises:
        DataError: If it is damaged.
        ExperimentError: If it holds something else.

    Example:
        >>> from pathlib import Path
        >>> from gtp_experiments.records import Lines
        >>> from gtp_experiments.results import read_evaluations
        >>> read_evaluations(Lines(Path("nowhere.jsonl")))
        []
    """
    try:
        return [_evaluation(line) for line in lines]
    except ValueError as error:
        raise ExperimentError(
            f"{lines.path} holds no evaluations: got {what_is_wrong(error)}, expected what a run "
            "writes. Delete the folder and run again."
        ) from error


def _evaluation(content: object) -> Evaluation:
    check_values(content, _BY_EPISODE)
    return Evaluation.model_validate(content)


def read_result(path: str | Path) -> RunResult | None:
    """Reads a ``result.json``.

    Args:
        path: The file.

    Returns:
        The result; None if there is no such file.

    Raises:
        ExperimentError: If it is no result.

    Example:
        >>> from gtp_experiments import read_result
        >>> read_result("nowhere/result.json") is None
        True
    """
    check_kind("path", path, str, os.PathLike)
    content = read_json(expanded(path))
    if content is None:
        return None
    try:
        if isinstance(content, dict) and isinstance(content.get("evaluations"), list):
            # One by one: there may be thousands, of hundreds of episodes.
            seen = [_evaluation(one) for one in content["evaluations"]]
            check_values({**content, "evaluations": []})
            content = {**content, "evaluations": tuple(seen)}
        else:
            check_values(content)
        # Strict fields take lists for tuples from JSON alone.
        return RunResult.model_validate(content)
    except ValueError as error:
        raise ExperimentError(
            f"{path} is no result of a run: got {what_is_wrong(error)}, expected what a run "
            "writes. Delete it and run again."
        ) from error


def read_results(out: str | Path) -> list[RunResult]:
    """Reads every result below a folder.

    Args:
        out: A folder of runs, or of collected results.

    Returns:
        The results, ordered by path.

    Raises:
        ExperimentError: If a file is no result.

    Example:
        >>> from gtp_experiments import read_results
        >>> read_results("nowhere")
        []
    """
    check_kind("out", out, str, os.PathLike)
    found = (read_result(path) for path in sorted(expanded(out).rglob("*result.json")))
    return [result for result in found if result is not None]
