"""Runs as they lie in a folder, done or not: a list of them, and one of them in full."""

import json
import os
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gtp_experiments.errors import ExperimentError
from gtp_experiments.records import Lines, read_json
from gtp_experiments.results import check_checkpoints, read_evaluations, read_result
from gtp_experiments.table import markdown, printable
from gtp_policy import CheckpointFolder, read_metadata
from gtp_policy.files import expanded
from gtp_policy.functional import check_kind


def list_of_runs(out: str | Path) -> str:
    """Lists the runs below a folder, with how far each is and what it scored last.

    Args:
        out: The folder of all runs.

    Returns:
        A table in Markdown; a run is ``finished``, ``diverged``, ``running``, or ``stopped`` and
        goes on when its command is given again.

    Raises:
        DataError: If a record is damaged.

    Example:
        >>> from gtp_experiments import list_of_runs
        >>> list_of_runs("nowhere")
        'No run.'
    """
    check_kind("out", out, str, Path)
    folders = sorted(path.parent for path in expanded(out).rglob("run.json"))
    if not folders:
        return "No run."
    lines = []
    for folder in folders:
        config, state, done, score = _state(folder)
        lines.append(
            [
                folder.name,
                str(config.get("method", "")),
                str(config.get("seed", "")),
                state,
                f"{done:,} of {config.get('updates', 0):,}",
                "" if score is None else f"{score:.1f}",
            ]
        )
    return markdown(["run", "method", "seed", "state", "updates", "last score"], lines)


def shown(folder: str | Path) -> str:
    """Describes one run: where it stands, every evaluation, and every choice.

    Args:
        folder: The run's folder.

    Returns:
        The text; choices as JSON.

    Raises:
        ExperimentError: If there is no run in the folder.
        DataError: If a record is damaged.

    Example:
        >>> from gtp_experiments import shown
        >>> shown("nowhere")
        Traceback (most recent call last):
        ...
        gtp_experiments.errors.ExperimentError: nowhere is no run: got no run.json, expected one. \
`list` says which there are.
    """
    check_kind("folder", folder, str, Path)
    folder = expanded(folder)
    config, state, done, score = _state(folder)
    result = read_result(folder / "result.json")
    name = printable(folder.name)
    words = [f"{name}: {state}, {done:,} of {config.get('updates', 0):,} updates"]
    if result is not None and result.message:
        words.append(printable(result.message))
    if score is not None:
        words.append(f"last score {score:.1f}")
    evaluations = [
        [f"{seen.update:,}", f"{seen.mean:.4g}", str(len(seen.returns))]
        for seen in read_evaluations(Lines(folder / "evaluations.jsonl"))
    ]
    if evaluations:
        words += ["", markdown(["updates", "mean return", "episodes"], evaluations)]
    return "\n".join([*words, "", json.dumps(config, indent=1)])


def _state(folder: Path) -> tuple[dict[str, Any], str, int, float | None]:
    """Returns a run's config, how it stands, its number of updates and its last score."""
    record = read_json(folder / "run.json")
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise ExperimentError(
            f"{folder} is no run: got no run.json, expected one. `list` says which there are."
        )
    config, result = record["config"], read_result(folder / "result.json")
    if type(config.get("updates", 0)) is not int:
        raise ExperimentError(
            f"{folder}/run.json is no record of a run: got {config['updates']!r:.40} as its number "
            "of updates, expected an integer. Delete that folder, or list another one."
        )
    if result is not None:
        done = result.updates if result.status == "finished" else _updates_of(folder)
        return config, result.status, done, result.score(result.last)
    if _in_use(folder):
        return config, "running", _updates_of(folder), None
    return config, "stopped", _kept(folder), None


def _updates_of(folder: Path) -> int:
    done = 0
    for line in Lines(folder / "metrics.jsonl"):
        done = line["update"]
    return done


def _kept(folder: Path) -> int:
    """Returns the update from which a stopped run goes on, whatever it had recorded by then."""
    try:
        check_checkpoints(folder)
    except ExperimentError:  # no run goes on there
        return 0
    newest = CheckpointFolder(folder / "checkpoints").latest()
    return 0 if newest is None else read_metadata(newest).updates


def _in_use(folder: Path) -> bool:
    """Returns whether a process works in a folder; a look at it changes nothing.

    No system says whether another process could take a lock but by taking it: runs wait for the
    moment that this lasts, see `RunFolder.locked`.
    """
    lock = folder / ".lock"
    try:
        import fcntl
    except ImportError:  # a system where nothing but to take the lock tells
        return _is_taken(lock)
    # Not by FileLock, which empties the file: it may be another name of anything.
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # there is none, or something that no run has made
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_taken(lock: Path) -> bool:
    if not lock.is_file() or lock.is_symlink():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except (Timeout, OSError):
        return True
