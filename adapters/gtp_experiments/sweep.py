"""A search over choices with Optuna: trials are runs, shared by any number of workers.

The k-th draw depends on the seed and on k alone (for TPE also on the scores before it), not on
which worker draws. Workers on one storage share the folder of the runs as well: files there are
locked while a worker draws or runs a trial, so that no trial is done twice, none is lost, and one
whose worker was killed is known at once and goes on from its last checkpoint.
"""

import contextlib
import itertools
import json
import math
import multiprocessing
import os
import re
import signal as signals
import sqlite3
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from pydantic import (
    Discriminator,
    Field,
    JsonValue,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from gtp_experiments.arguments import assigned
from gtp_experiments.config import RunConfig
from gtp_experiments.errors import ExperimentError, InUseError
from gtp_experiments.results import RunFolder, RunResult, lock_at
from gtp_experiments.runner import beyond_interrupts, check_data, leave_with_parent, run
from gtp_experiments.table import markdown
from gtp_policy import Config, StopSignal
from gtp_policy.errors import GTPError, MissingDependencyError, how_to_install
from gtp_policy.files import expanded, replacing
from gtp_policy.records import what_is_wrong

if TYPE_CHECKING:
    import optuna

Value = JsonValue
# Optuna writes all of a grid down before the first trial.
_MOST_POINTS = 100_000
# What SQLite keeps beside its database, and the end of a journal that names another file.
_JOURNAL = "sweep.db-journal"
_BESIDE = _JOURNAL, "sweep.db-wal", "sweep.db-shm"
_MAGIC = bytes.fromhex("d9d505f920a163d7")
_WAIT = 1.0  # seconds until a worker without a trial looks again
_SCORE = "evaluation/score"
_SHOWN = 9  # of what is wrong with a file


class Range(Config):
    """A range of numbers to draw from.

    Integers are drawn if both ends are integers, and a step, if there is one, is whole.

    Example:
        >>> from gtp_experiments.sweep import Range
        >>> Range(low=1e-4, high=1e-2, log=True).step is None
        True
    """

    low: float | int = Field(description="The smallest.")
    high: float | int = Field(description="The largest.")
    log: bool = Field(default=False, description="Whether every power of ten is as likely.")
    step: float | int | None = Field(default=None, gt=0, description="Distance of neighbours.")

    @model_validator(mode="after")
    def _in_order(self) -> "Range":
        if not self.low <= self.high:
            raise ValueError(f"low must not be above high: got {self.low} and {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a logarithmic range begins above 0 and has no step")
        return self

    @property
    def whole(self) -> bool:
        """Whether integers are drawn."""
        ends = all(type(x) is int for x in (self.low, self.high))
        return ends and (self.step is None or self.step % 1 == 0)

    def values(self) -> list[float | int]:
        """Returns all numbers of a range with steps, for a grid.

        Returns:
            The numbers.

        Raises:
            ExperimentError: If there is no step, and the numbers are no integers; or if they are
                more than a grid may have points, or closer than floats lie.

        Example:
            >>> from gtp_experiments.sweep import Range
            >>> Range(low=1, high=4).values()
            [1, 2, 3, 4]
        """
        step = int(self.step or 1) if self.whole and not self.log else self.step
        if step is None:
            raise ExperimentError(
                f"A grid needs values: got a range from {self.low} to {self.high} without a step, "
                "expected a list, or a range with a step."
            )
        try:
            count = math.floor((self.high - self.low) / step + 1e-9) + 1
        except OverflowError:  # beyond float64
            count = sys.maxsize
        _check_points(count)
        values = [self.low + i * step for i in range(count)]
        if twice := _twice(values):
            raise ExperimentError(
                f"A grid has every point once: got {_listed(twice)} twice in a range from "
                f"{self.low} to {self.high}, expected another one after each step. Take larger "
                "steps."
            )
        return values


def _twice(values: Iterable[Any]) -> list[Any]:
    """Returns which of some values come more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def _listed(values: Sequence[object]) -> str:
    return ", ".join(f"{value!s:.60}" for value in values[:_SHOWN])


def _check_points(count: int) -> None:
    if count > _MOST_POINTS:
        raise ExperimentError(
            f"A grid has too many points: got {count if count < sys.maxsize else 'no end'}, "
            f"expected at most {_MOST_POINTS}. Take larger steps or fewer values, or another "
            "sampler."
        )


def _kind_of_entry(entry: object) -> str:
    return "range" if isinstance(entry, Range | Mapping) else "values"


Values = Annotated[list[Value], Field(min_length=1)]
Entry = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Values, Tag("values")],
    Discriminator(_kind_of_entry),
]


class SweepConfig(Config):
    """What is searched for, how, and how often it is tried.

    Raises:
        pydantic.ValidationError: If a field is unknown or out of range, or a grid has a value
            twice.

    Example:
        >>> from gtp_experiments import SweepConfig
        >>> config = SweepConfig(
        ...     space={"weighter.eta": [1.0, 3.0], "learner.actor_lr": {"low": 1e-4, "high": 1e-3}},
        ...     trials=20)
        >>> config.sampler, config.space["learner.actor_lr"].high
        ('tpe', 0.001)
    """

    space: dict[str, Entry] = Field(
        min_length=1,
        description="By path: a list of values, or a range {low, high, log, step}. A path is that "
        "of a field of the policy, as weighter.eta, or of the run, as batch_size or "
        "evaluation.candidates. Values may be lists and objects, as of actor.hidden.",
    )
    trials: int | None = Field(
        default=None,
        ge=1,
        strict=True,
        description="How many; None: all points of a grid, 20 of other samplers.",
    )
    sampler: Literal["tpe", "random", "grid"] = Field(
        default="tpe", description="What draws them: Optuna's samplers."
    )
    prune: bool = Field(
        default=True,
        description="Whether trials stop at an evaluation that is below the median of the others.",
    )
    seed: int = Field(default=0, ge=0, strict=True, description="Of the draws.")

    @model_validator(mode="after")
    def _points_once(self) -> "SweepConfig":
        for path, entry in self.space.items() if self.sampler == "grid" else ():
            if not isinstance(entry, Range) and (twice := _twice(_encoded(entry))):
                raise ValueError(
                    f"a grid has every point once: got {path} with {_listed(twice)} twice (1, 1.0 "
                    "and true are one value), expected each value of a path once"
                )
        return self

    @property
    def count(self) -> int:
        """Number of trials: of a grid at most its points."""
        if self.sampler != "grid":
            return 20 if self.trials is None else self.trials
        return self.points if self.trials is None else min(self.trials, self.points)

    @property
    def points(self) -> int:
        """Number of points of a grid."""
        return math.prod(map(len, self.grid().values()))

    def grid(self) -> dict[str, list[Any]]:
        """Returns the values of every path, for a grid.

        Returns:
            Lists by path.

        Raises:
            ExperimentError: If a range has no step, or there are too many points.

        Example:
            >>> from gtp_experiments import SweepConfig
            >>> SweepConfig(space={"batch_size": {"low": 1, "high": 2}}, sampler="grid").grid()
            {'batch_size': [1, 2]}
        """
        found = {
            path: entry.values() if isinstance(entry, Range) else list(entry)
            for path, entry in self.space.items()
        }
        _check_points(math.prod(map(len, found.values())))
        return found


def sweep(
    configs: Sequence[RunConfig],
    search: SweepConfig,
    out: str | Path,
    *,
    storage: str | None = None,
    workers: int = 1,
    stop: Callable[[], bool] = lambda: False,
) -> "optuna.Study":
    """Searches for the choices with the highest last score, mean over the configs.

    Called again with the same arguments, it goes on where it stopped. A trial whose values fit one
    by one and not together is left out with a warning, and counts.

    Args:
        configs: What every trial starts from: one experiment per seed.
        search: What is searched for.
        out: Folder of all runs, and of the locks that workers share.
        storage: Optuna's, such as ``sqlite:///sweep.db``; default a file in ``out``.
        workers: Processes; 1 works here.
        stop: Called after each update; True leaves.

    Returns:
        Optuna's study, with a trial for each that was drawn.

    Raises:
        ExperimentError: If a path or a value does not fit, or the storage holds another search or
            trials on other data.
        MissingDependencyError: If Optuna is not installed.

    Example:
        >>> from gtp_experiments import RunConfig, SweepConfig, sweep
        >>> search = SweepConfig(space={"weighter.etta": [1.0]})
        >>> sweep([RunConfig(dataset="a/b-v0", updates=1)], search, "runs")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        gtp_experiments.errors.ExperimentError: The space does not fit: got 'weighter.etta=1.0', ...
    """
    if workers < 1:
        raise ExperimentError(f"`workers` is out of range: got {workers}, expected at least 1.")
    check_values(configs, search)
    out = expanded(out)
    study = open_study(configs, search, out, storage)
    if workers == 1:
        work(configs, search, out, storage, stop=stop)
        return study
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_work_alone, args=(configs, search, out, storage))
        for _ in range(workers)
    ]
    passed_on = False
    with StopSignal() as signal:
        with beyond_interrupts():
            for process in processes:
                process.start()
        while any(process.is_alive() for process in processes):
            for process in processes:
                process.join(0.1)
            if (signal or stop()) and not passed_on:
                passed_on = True  # once: at a second one they would leave without saving
                for process in processes:
                    process.terminate()
    ended = [process.exitcode for process in processes]
    # One that was stopped while it was still starting has nothing to save, and just ends.
    if any(code and not (passed_on and code == -signals.SIGTERM) for code in ended):
        raise ExperimentError(
            f"Workers of the sweep ended early: got exit codes {ended}, expected 0. What they said "
            "stands above; the same command goes on."
        )
    return study


def check_values(configs: Sequence[RunConfig], search: SweepConfig) -> None:
    """Raises if a run could not have one of the values, before anything is written.

    Args:
        configs: As for `sweep`.
        search: As for `sweep`.

    Raises:
        ExperimentError: If a path or a value does not fit.

    Example:
        >>> from gtp_experiments import RunConfig, SweepConfig
        >>> from gtp_experiments.sweep import check_values
        >>> search = SweepConfig(space={"actor.hidden": [[8], [16, 16]]})
        >>> check_values([RunConfig(dataset="a/b-v0", updates=1)], search)
    """
    for path, entry in search.space.items():
        tried = entry
        if isinstance(entry, Range):
            # With a fractional step numbers are drawn that a field of integers does not take.
            tried = [entry.low, entry.high, min(entry.low + (entry.step or 0), entry.high)]
        for value in tried:
            _assigned(configs[0], path, value)


def work(
    configs: Sequence[RunConfig],
    search: SweepConfig,
    out: str | Path,
    storage: str | None = None,
    *,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Runs trials of a sweep until all are done: one worker of any number.

    Args:
        configs: As for `sweep`.
        search: As for `sweep`.
        out: As for `sweep`; all workers have the same.
        storage: As for `sweep`.
        stop: Called after each update; True leaves.

    Example:
        >>> from gtp_experiments.sweep import work
        >>> work.__name__
        'work'
    """
    out = expanded(out)
    study = open_study(configs, search, out, storage)
    with StopSignal() as signal:

        def leave() -> bool:
            return bool(signal) or stop()

        while not leave():
            with _trial(study, search, out) as trial:
                if trial is not None:
                    if not _try(study, trial, configs, search, out, leave):
                        return
                    continue
                if not _others_run(study):
                    return
            time.sleep(_WAIT)


def open_study(
    configs: Sequence[RunConfig], search: SweepConfig, out: Path, storage: str | None
) -> "optuna.Study":
    """Opens the study of a sweep, or makes it.

    Args:
        configs: As for `sweep`.
        search: As for `sweep`.
        out: As for `sweep`.
        storage: As for `sweep`.

    Returns:
        Optuna's study.

    Raises:
        ExperimentError: If it cannot be opened, or holds the trials of another search or of other
            data.
        MissingDependencyError: If Optuna is not installed.

    Example:
        >>> from gtp_experiments.sweep import open_study
        >>> open_study.__name__
        'open_study'
    """
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    out.mkdir(parents=True, exist_ok=True)
    for path in (out / name for name in (*_BESIDE, "sweep.db", "sweep.lock", "sweep_trials")):
        if path.is_symlink():  # it would be written to, wherever it leads
            raise ExperimentError(
                f"{path} is a link: got one to {os.readlink(path)}, expected a sweep's own file or "
                "folder. Choose another folder for the results, or remove the link."
            )
    if storage is None:
        _check_database(out / "sweep.db")
    place = storage or f"sqlite:///{out.resolve() / 'sweep.db'}"
    what = {
        "configs": [config.model_dump(mode="json") for config in configs],
        "search": search.model_dump(mode="json", exclude={"trials"}),
    }
    with _locked(out):  # two that make the tables at once fail
        try:
            study = optuna.create_study(
                study_name="sweep", storage=place, direction="maximize", load_if_exists=True
            )
            before = study.user_attrs.get("what")
            if before is None:
                study.set_user_attr("what", what)
            there = study.get_trials(deepcopy=False)
        except Exception as error:  # of Optuna, SQLAlchemy, a driver, or what is no JSON
            raise ExperimentError(
                f"The storage {place} cannot be used: got {type(error).__name__} "
                f"({error!s:.200}), expected a place for Optuna's studies such as "
                "sqlite:///sweep.db."
            ) from error
        if before not in (None, what):
            raise ExperimentError(
                f"The storage {place} holds another search: got other runs or another space, "
                "expected these. Choose another --storage and --out, or delete that one. More "
                "trials of the same search are no other search."
            )
    # A score of other data is not compared with those that are there.
    done = [t for t in there if t.state.name == "COMPLETE"]
    tried = [config for trial in done for config in _tried(trial.params, configs, search)]
    check_data(out, tried, [RunFolder.finished(out, config) for config in tried])
    return study


# What Optuna's tables and indexes are made of. Views, triggers, generated columns, checks and
# indexes of expressions, conditions and defaults would compute whatever they like.
_TABLE = re.compile(r"CREATE TABLE [^()]*\((?:[^()]|\([\w ,\"]*\))*\)", re.IGNORECASE)
_INDEX = re.compile(r"CREATE (?:UNIQUE )?INDEX \w+ ON \w+ \([\w ,\"]+\)", re.IGNORECASE)
_ONE_ROW = re.compile(r"CHECK \(\w+ ?= ?[0-9]+\)")  # Optuna's own
_COMPUTES = re.compile(r"\b(?:AS|CHECK|DEFAULT|WHERE|USING)\b", re.IGNORECASE)


def _check_database(path: Path) -> None:
    """Raises if a database of a sweep would do something else than keep tables.

    Optuna makes it, in a folder that may come from anywhere.
    """
    _check_journal(path.with_name(_JOURNAL))
    if not path.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as database:
            database.execute("PRAGMA trusted_schema = OFF")
            found = database.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    except sqlite3.Error as error:
        raise ExperimentError(
            f"{path} is no study: got {type(error).__name__} ({error}), expected the database of a "
            "sweep. Choose another folder for the results."
        ) from error
    for kind, name, sql in found:
        sql = _ONE_ROW.sub("", sql) if isinstance(sql, str) else sql
        rule = {"table": _TABLE, "index": _INDEX}.get(kind)
        made_by_sqlite = kind == "index" and sql is None
        if not made_by_sqlite and not (
            rule and isinstance(sql, str) and rule.fullmatch(sql) and not _COMPUTES.search(sql)
        ):
            raise ExperimentError(
                f"{path} is no study of a sweep: got the {kind} {name!r:.80}, which computes "
                "something, expected tables as Optuna makes them. Choose another folder for the "
                "results."
            )


def _check_journal(path: Path) -> None:
    """Raises if SQLite would remove a file that a journal names, when it has played it back.

    The journal of a worker that was killed is played back when the study is next opened. One of a
    transaction over several databases ends in the name of a file that they share; a sweep has one.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - len(_MAGIC), 0))
            names_another = file.read() == _MAGIC
    except FileNotFoundError:
        return
    if names_another:
        raise ExperimentError(
            f"{path} is no journal of a sweep: got one that names another file, which SQLite would "
            "remove, expected one of a single database. Choose another folder for the results."
        )


def _tried(
    values: Mapping[str, Any], configs: Sequence[RunConfig], search: SweepConfig
) -> Iterator[RunConfig]:
    """Yields the runs of a trial."""
    for config in configs:
        for path, value in values.items():
            config = _assigned(config, path, _decoded(search.space[path], value))
        yield config


def _assigned(config: RunConfig, path: str, value: Any) -> RunConfig:  # noqa: ANN401 - JSON
    try:
        return assigned(config, path, value)
    except ValidationError as error:  # a choice of the policy that does not go with one of the run
        raise ExperimentError(
            f"The space does not fit: got '{path}={value}' with {what_is_wrong(error)}, expected "
            "choices that go together."
        ) from error


def outcome(study: "optuna.Study") -> str:
    """Summarises a sweep as a table in Markdown, the best first.

    Args:
        study: What `sweep` returned.

    Returns:
        The text.

    Example:
        >>> import optuna
        >>> from gtp_experiments.sweep import outcome
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> outcome(optuna.create_study())
        'No trial.'
    """
    trials = [t for t in study.trials if t.state.name != "FAIL"]
    if not trials:
        return "No trial."
    paths = sorted({path for trial in trials for path in trial.params})
    trials.sort(key=lambda t: (t.state.name != "COMPLETE", -(t.value or 0.0), t.number))
    return markdown(
        ["trial", "state", "score", *paths],
        [
            [
                str(trial.number),
                trial.user_attrs.get("ended", trial.state.name.lower()),
                "" if trial.value is None else f"{trial.value:.1f}",
                *(_short(trial.params.get(path)) for path in paths),
            ]
            for trial in trials
        ],
    )


def draw_outcome(study: "optuna.Study", out: Path) -> list[Path]:
    """Draws the scores in the order of the trials, and over each choice.

    Args:
        study: What `sweep` returned.
        out: Folder of the pictures.

    Returns:
        The files; none if no trial has come to its end.

    Example:
        >>> import optuna
        >>> from pathlib import Path
        >>> from gtp_experiments.sweep import draw_outcome
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> draw_outcome(optuna.create_study(), Path("pictures"))
        []
    """
    optuna = _optuna()
    if not any(trial.state.name == "COMPLETE" for trial in study.trials):
        return []
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    files = []
    with mpl.rc_context({"backend": "Agg"}), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        pictures = optuna.visualization.matplotlib
        for name in ("optimization_history", "slice"):
            axes = getattr(pictures, f"plot_{name}")(study, target_name="score")
            figure = np.ravel(axes)[0].figure
            files.append(out / f"sweep_{name}.png")
            with replacing(files[-1], ".png") as temporary:  # and not what a link leads to
                figure.savefig(temporary, dpi=110, bbox_inches="tight")
            plt.close(figure)
    return files


def read_space(path: Path) -> dict[str, Entry]:
    """Reads what is searched over.

    Args:
        path: A JSON file: values or a range by path, as in `SweepConfig.space`.

    Returns:
        The space.

    Raises:
        ExperimentError: If it cannot be read, or is none.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from gtp_experiments.sweep import read_space
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "space.json")
        ...     _ = path.write_text('{"weighter.eta": [1, 3]}')
        ...     read_space(path)
        {'weighter.eta': [1, 3]}
    """
    try:
        text = path.read_text(encoding="utf-8")
        space = TypeAdapter(dict[str, Entry]).validate_json(text)
        json.loads(text, object_pairs_hook=_once_each)
        return space
    except OSError as error:
        raise ExperimentError(
            f"{path} cannot be read: got {error.strerror}, expected a JSON file with the space."
        ) from error
    except ValueError as error:  # of pydantic, of JSON, of its bytes
        got = str(error)
        if isinstance(error, ValidationError):
            problems = error.errors(include_url=False, include_context=False, include_input=False)
            got = "; ".join(_said(problem) for problem in problems[:_SHOWN])
            got += f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ExperimentError(
            f"{path} is no space of a sweep: got {got}, expected lists of values or ranges by "
            'path, such as {"weighter.eta": [1, 3], "learner.actor_lr": {"low": 1e-4, "high": '
            '1e-2, "log": true}}.'
        ) from error


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the object of JSON that has these pairs; of two with one name one would be lost."""
    if twice := _twice(name for name, _ in pairs):
        raise ValueError(f"twice: {', '.join(twice[:_SHOWN])}")
    return dict(pairs)


def _said(problem: Any) -> str:  # noqa: ANN401 - pydantic's dictionary
    """Returns what is wrong with an entry: its path, the part of it, and the rule."""
    path, *rest = problem["loc"] or ("all of it",)
    part = ".".join(str(word) for word in rest if word not in ("range", "values"))
    rule = problem["msg"].removeprefix("Value error, ").rstrip(".?")
    return f"{path}{f' ({part})' if part else ''}: {rule}"


@contextlib.contextmanager
def _trial(
    study: "optuna.Study", search: SweepConfig, out: Path
) -> Iterator["optuna.trial.Trial | None"]:
    """Draws the next trial and keeps its lock, as long as the block lasts; None if none is left."""
    optuna = _optuna()
    running, waiting = optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.WAITING
    with contextlib.ExitStack() as stack:
        trial = None
        with _locked(out):
            begun = [t.number for t in study.get_trials(deepcopy=False) if t.state == running]
            left = {number: lock for number in begun if (lock := _free(out, number)) is not None}
            for old in study.get_trials(deepcopy=False):  # a worker tells, and only then lets go
                if old.number in left and old.state == running:
                    # Its worker is gone. Another trial takes its place, and goes on with its runs.
                    # It stands there first: between the two calls this worker can be gone as well.
                    _enqueue(study, _values(old))
                    study.tell(old.number, state=optuna.trial.TrialState.FAIL)
            for lock in left.values():
                lock.release()
            trials = [t for t in study.get_trials(deepcopy=False) if t.state.name != "FAIL"]
            waits = any(t.state == waiting for t in trials)
            if not waits and len(trials) < search.count:
                _enqueue(study, _draw(search, trials))
                waits = True
            if waits:
                trial = study.ask()
                lock = _free(out, trial.number)
                assert lock is not None  # numbers are given once
                stack.callback(lock.release)
                for path, entry in search.space.items():
                    _suggest(trial, path, entry)
        yield trial


def _enqueue(study: "optuna.Study", values: dict[str, Any]) -> None:
    """Adds a trial with all of its values in one step, unless it waits already."""
    trials = study.get_trials(deepcopy=False)
    if not any(t.state.name == "WAITING" and _values(t) == values for t in trials):
        study.enqueue_trial(values)


def _values(trial: "optuna.trial.FrozenTrial") -> dict[str, Any]:
    """Returns what a trial tries, also of one whose worker has not said all of it to Optuna."""
    return dict(trial.system_attrs.get("fixed_params", trial.params))


def _draw(search: SweepConfig, trials: "Sequence[optuna.trial.FrozenTrial]") -> dict[str, Any]:
    """Returns the values of the next trial: the same whichever worker draws, after the same ones.

    They are drawn in a copy of the study: in the storage a trial stands with all of its values, or
    not at all.
    """
    optuna = _optuna()
    if search.sampler == "grid":
        tried = {tuple(_values(trial).get(path) for path in search.space) for trial in trials}
        points = list(itertools.product(*_points(search)))
        order = np.random.default_rng(search.seed).permutation(len(points))
        point = next(points[i] for i in order if points[i] not in tried)
        return dict(zip(search.space, point, strict=True))
    seed = int(np.random.SeedSequence((search.seed, len(trials))).generate_state(1)[0])
    copied = optuna.create_study(direction="maximize")
    copied.sampler = optuna.samplers.RandomSampler(seed=seed)
    if search.sampler == "tpe":
        # Trials that still run count as bad ones, so that workers do not draw the same.
        with warnings.catch_warnings():  # Optuna 4 calls the argument experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            copied.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        copied.add_trials(trials)
    trial = copied.ask()
    for path, entry in search.space.items():
        _suggest(trial, path, entry)
    return dict(trial.params)


def _points(search: SweepConfig) -> list[Sequence[Any]]:
    """Returns the values of every path of a grid as Optuna takes them."""
    return [
        values if isinstance(search.space[path], Range) else _encoded(values)
        for path, values in search.grid().items()
    ]


def _try(
    study: "optuna.Study",
    trial: "optuna.trial.Trial",
    configs: Sequence[RunConfig],
    search: SweepConfig,
    out: Path,
    stop: Callable[[], bool],
) -> bool:
    """Runs one trial; False if it was stopped before its end."""
    try:
        tried = list(_tried(trial.params, configs, search))
    except ExperimentError as error:
        # Every value fits by itself. The trial counts as done: drawn again it would be no other.
        warnings.warn(f"Trial {trial.number} is left out: {error}", stacklevel=2)
        trial.set_user_attr("ended", "does not fit")
        study.tell(trial, state=_optuna().trial.TrialState.PRUNED)
        return True
    scores = []
    for number, config in enumerate(tried):
        pruner = _Pruner(trial, active=search.prune and number == 0)

        def leave(of: _Pruner = pruner) -> bool:
            return of.pruned or stop()

        result = _run_or_wait(config, out, leave, pruner)
        if result is None and not pruner.pruned:
            return False
        if result is None or result.status == "diverged":
            trial.set_user_attr("ended", "pruned" if result is None else "diverged")
            study.tell(trial, state=_optuna().trial.TrialState.PRUNED)
            return True
        scores.append(_score_of(result))
    study.tell(trial, statistics.fmean(scores))
    return True


def _run_or_wait(
    config: RunConfig, out: Path, stop: Callable[[], bool], pruner: "_Pruner"
) -> RunResult | None:
    """Runs, once no other worker does: one that drew the same leaves its result to both."""
    while not stop():
        with contextlib.suppress(InUseError):
            return run(config, out, stop=stop, track=[pruner])
        time.sleep(_WAIT)
    return None


def _score_of(result: RunResult) -> float:
    score = result.score(result.last)
    assert score is not None  # a finished run was evaluated
    return score


class _Pruner:
    """Reports evaluations to Optuna, and remembers that it wants the trial to end."""

    def __init__(self, trial: "optuna.trial.Trial", *, active: bool) -> None:
        self._trial, self._active, self.pruned = trial, active, False

    def log(self, update: int, figures: Mapping[str, float]) -> None:
        if self._active and _SCORE in figures:
            self._trial.report(figures[_SCORE], update)
            self.pruned = self._trial.should_prune()

    def close(self) -> None:
        """Has nothing to write."""


def _suggest(trial: "optuna.trial.Trial", path: str, entry: Entry) -> None:
    if not isinstance(entry, Range):
        trial.suggest_categorical(path, _encoded(entry))
    elif entry.whole:
        step = 1 if entry.step is None else int(entry.step)
        trial.suggest_int(path, int(entry.low), int(entry.high), step=step, log=entry.log)
    else:
        trial.suggest_float(path, entry.low, entry.high, step=entry.step, log=entry.log)


def _encoded(values: Sequence[Value]) -> Sequence[Any]:
    """Returns values as Optuna takes them: lists and objects as text of JSON."""
    if any(isinstance(value, list | dict) for value in values):
        return [json.dumps(value) for value in values]
    return values


def _decoded(entry: Entry, value: Any) -> Any:  # noqa: ANN401 - JSON
    if not isinstance(entry, Range) and _encoded(entry) is not entry:
        return json.loads(value)
    return value


def _others_run(study: "optuna.Study") -> bool:
    return any(t.state.name == "RUNNING" for t in study.get_trials(deepcopy=False))


def _locked(out: Path) -> FileLock:
    return lock_at(out / "sweep.lock")


def _free(out: Path, number: int) -> FileLock | None:
    """Takes the lock of a trial; None if a worker has it."""
    folder = out / "sweep_trials"
    folder.mkdir(exist_ok=True)
    lock = lock_at(folder / f"{number}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def _work_alone(
    configs: Sequence[RunConfig], search: SweepConfig, out: Path, storage: str | None
) -> None:
    leave_with_parent()
    try:
        with StopSignal() as signal:  # from here on; `work` opens the storage first
            work(configs, search, out, storage, stop=lambda: bool(signal))
    except GTPError as error:
        sys.exit(f"error: {error}")


def _short(value: object) -> str:
    if isinstance(value, str) and value[:1] in ("[", "{"):
        return value  # a list or an object, as text already
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def _optuna() -> Any:  # noqa: ANN401 - a module
    try:
        import optuna
    except ImportError as error:
        raise MissingDependencyError(
            f"Optuna is not installed: got {error}. {how_to_install('sweep')}"
        ) from error
    return optuna
