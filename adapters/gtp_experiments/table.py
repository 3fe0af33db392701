"""One line per method: statistics over seeds, last and best apart, next to the paper's figures."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gtp_experiments.paper import PAPER
from gtp_experiments.results import RunResult
from gtp_experiments.statistics import Spread, spread
from gtp_policy.errors import DataError


class Row(NamedTuple):
    """The runs of one method on one dataset that differ by their seed alone.

    Attributes:
        results: The runs, ordered by seed.
        last: Score of the last checkpoints; None if a run diverged before its first evaluation.
        best: Score of the best checkpoints, chosen in hindsight by these same evaluations.
        ms_per_update: Mean time of an update.
        paper: The paper's figure, on other data; empty if it has none.

    Example:
        >>> from gtp_experiments import Row
        >>> Row._fields
        ('results', 'last', 'best', 'ms_per_update', 'paper')
    """

    results: tuple[RunResult, ...]
    last: Spread | None
    best: Spread | None
    ms_per_update: float
    paper: str

    @property
    def diverged(self) -> int:
        """Number of runs that diverged."""
        return sum(result.status == "diverged" for result in self.results)


def rows(results: Sequence[RunResult]) -> list[Row]:
    """Groups results by everything but the seed.

    Args:
        results: Results in any order.

    Returns:
        One row per group, in order of task and dataset, the groups of each as they came.

    Raises:
        DataError: If two results of a group have the same seed: two collections were mixed.

    Example:
        >>> from gtp_experiments import rows
        >>> rows([])
        []
    """
    groups: dict[tuple[str, str, str], list[RunResult]] = {}
    for result in results:
        key = (result.task or result.dataset, result.data_sha256, result.group)
        groups.setdefault(key, []).append(result)
    return [_row(groups[key]) for key in sorted(groups, key=lambda key: key[0])]


def _row(group: list[RunResult]) -> Row:
    group = sorted(group, key=lambda result: result.seed)
    first = group[0]
    seeds = [result.seed for result in group]
    if len(set(seeds)) < len(seeds):
        raise DataError(
            f"Results of {first.method} on {first.dataset} are there twice: got seeds {seeds}, "
            "expected each once. Point to one folder of runs."
        )

    def over_seeds(scores: list[float | None]) -> Spread | None:
        present = [score for score in scores if score is not None]
        return spread(present) if len(present) == len(scores) else None

    return Row(
        results=tuple(group),
        last=over_seeds([result.score(result.last) for result in group]),
        best=over_seeds([result.score(result.best) for result in group]),
        ms_per_update=sum(result.ms_per_update for result in group) / len(group),
        paper=PAPER.get((first.task or "", first.method), ""),
    )


def differences(found: Sequence[Row]) -> list[str]:
    """Says of rows that go by one name which choices tell them apart.

    Args:
        found: The rows of a table.

    Returns:
        A text per row, such as `` (policy.weighter.eta=3.0)``; empty where data and method are the
        row's alone.

    Example:
        >>> from gtp_experiments.table import differences
        >>> differences([])
        []
    """
    named: dict[tuple[str, str], list[dict[str, str]]] = {}
    choices = []
    for first in (row.results[0] for row in found):
        config = {**dict(_flat(first.config)), _DATA: json.dumps(first.data_sha256[:8])}
        named.setdefault((first.task or first.dataset, first.method), []).append(config)
        choices.append(config)
    words = []
    for first, config in zip((row.results[0] for row in found), choices, strict=True):
        others = named[first.task or first.dataset, first.method]
        apart = sorted(
            (
                name
                for name in {key for other in others for key in other} - _NOT_A_CHOICE - {_DATA}
                if len({other.get(name) for other in others}) > 1
            ),
            key=lambda name: (not name.startswith("policy."), name),  # what was tried comes first
        )
        named_here = _telling(apart, others)
        chosen = [f"{name}={config.get(name, 'none')}" for name in named_here]
        left = len(set(apart) - set(named_here))
        more = [f"and {left} more"] if left else []
        words.append(f" ({', '.join([*chosen, *more])})" if chosen else "")
    return words


def _telling(apart: Sequence[str], others: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns the first three settings, and of the others those without which two rows are one."""

    def told(names: Sequence[str]) -> int:
        return len({tuple(other.get(name) for name in names) for other in others})

    found = list(apart[:3])
    for name in (*apart[3:], _DATA):  # a file under the same name may have changed
        if told([*found, name]) > told(found):
            found.append(name)
    return found


_DATA = "data_sha256"
# What follows from other fields, or has a column.
_NOT_A_CHOICE = {"seed", "updates", "policy.learner.seed", "policy.learner.total_updates", "method"}


def _flat(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yields the fields of a config and of those in it, by their paths."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", json.dumps(value)


HEADER = (
    "data",
    "method",
    "seeds",
    "updates",
    "last: mean ± std",
    "last: IQM [95 %]",
    "best: mean ± std",
    "ms/update",
    "paper, D4RL's files",
)


def cells(row: Row) -> list[str]:
    """Formats a row of the table.

    Args:
        row: The row.

    Returns:
        One text per column of the header.
    """
    first = row.results[0]
    data = f"{first.task} ({first.dataset})" if first.task else first.dataset
    last = _mean(row.last)
    if row.diverged:
        last += f" ({row.diverged} of {len(row.results)} diverged)"
    return [
        data,
        first.method,
        ", ".join(str(result.seed) for result in row.results),
        str(first.updates),
        last,
        _interval(row.last),
        _mean(row.best),
        f"{row.ms_per_update:.1f}",
        row.paper,
    ]


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Lays out a table that reads well as text, too.

    Args:
        header: Names of the columns.
        lines: One text per column and line.

    Returns:
        A table in Markdown.

    Example:
        >>> from gtp_experiments import markdown
        >>> print(markdown(["method", "score"], [["gtp", "1"]]))
        | method | score |
        | ------ | ----- |
        | gtp    | 1     |
    """
    # A bar in a name is no end of a cell.
    table = [[printable(cell).replace("|", "\\|") for cell in line] for line in (header, *lines)]
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    table.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))} |" for line in table
    )


def printable(text: str) -> str:
    r"""Returns text of a file or of a folder's name without what a terminal would obey, or refuse.

    Args:
        text: Any text, in one line.

    Returns:
        The text, with such characters as Python writes them.

    Example:
        >>> from gtp_experiments.table import printable
        >>> print(printable("hopper\x1b[2J"))
        hopper\x1b[2J
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def table(results: Sequence[RunResult]) -> str:
    """Summarises results as a table in Markdown, with the sources of data and scores below.

    Scores are normalised where the task has reference scores, else they are returns.

    Args:
        results: Results in any order.

    Returns:
        The text.

    Raises:
        DataError: If a run is among them twice.

    Example:
        >>> from gtp_experiments import table
        >>> print(table([]))
        No finished run.
    """
    if not results:
        return "No finished run."
    found = rows(results)
    notes = {
        f"{r.task or r.dataset}: "
        + (
            "mean return, no reference"
            if r.reference is None
            else f"score = {r.reference.source}, in %"
            if r.reference.scored_by == "success"
            else f"score = 100 (R - {r.reference.min:g}) / ({r.reference.max:g} - "
            f"{r.reference.min:g}), reference {r.reference.source}"
        )
        + (f"; data: {r.data_note}" if r.data_note else "")
        for r in (row.results[0] for row in found)
    }
    lines = [cells(row) for row in found]
    for line, what in zip(lines, differences(found), strict=True):
        line[1] += what
    return "\n".join([markdown(HEADER, lines), "", *(f"- {printable(n)}" for n in sorted(notes))])


def _mean(figure: Spread | None) -> str:
    if figure is None:
        return "no evaluation"
    return f"{figure.mean:.1f}" + ("" if figure.std is None else f" ± {figure.std:.1f}")


def _interval(figure: Spread | None) -> str:
    if figure is None or figure.low is None or figure.high is None:
        return ""
    return f"{figure.iqm:.1f} [{figure.low:.1f}, {figure.high:.1f}]"
