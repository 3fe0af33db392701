"""Runs as they lie in a folder, done or not: a list of them, and one of them in full."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from gtp_experiments.errors import ExperimentError
from gtp_experiments.records import Lines, read_json
from gtp_experiments.results import read_result
from gtp_experiments.table import markdown
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
    words = [f"{folder.name}: {state}, {done:,} of {config.get('updates', 0):,} updates"]
    if result is not None and result.message:
        words.append(result.message)
    if score is not None:
        words.append(f"last score {score:.1f}")
    evaluations = [
        [f"{line['update']:,}", f"{np.mean(line['returns']):.4g}", str(len(line["returns"]))]
        for line in Lines(folder / "evaluations.jsonl").read()
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
    if result is not None:
        done = result.updates if result.status == "finished" else _updates_of(folder)
        return config, result.status, done, result.score(result.last)
    if _in_use(folder):
        return config, "running", _updates_of(folder), None
    return config, "stopped", _kept(folder), None


def _updates_of(folder: Path) -> int:
    lines = Lines(folder / "metrics.jsonl").read()
    return int(lines[-1]["update"]) if lines else 0


def _kept(folder: Path) -> int:
    """Returns the update from which a stopped run goes on, whatever it had recorded by then."""
    newest = CheckpointFolder(folder / "checkpoints").latest()
    return 0 if newest is None else read_metadata(newest).updates


def _in_use(folder: Path) -> bool:
    lock = folder / ".lock"
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except (Timeout, OSError):
        return True
