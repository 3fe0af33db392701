"""Several methods over several tasks: scores by task, IQM by number of updates, improvement.

    python -m benchmarks.aggregates RUNS [--method gtp] [--budgets 25000 50000 100000]
        [--pictures FOLDER]

Reads every ``result.json`` below a folder and prints two tables: mean ± standard deviation over
seeds by task, and over all tasks the interquartile mean at each number of updates, beside the
probability that one method's runs are better than the other's. Intervals are stratified bootstraps
of 95 %. Only tasks that every method has with two seeds or more are summarised; the others are
named. With ``--pictures`` a learning curve per task and one picture of the summary are drawn.
"""

import argparse
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pages import table
from gtp_experiments import (
    Estimate,
    RunResult,
    interquartile_mean,
    probability_of_improvement,
    read_results,
)

Scores = dict[str, dict[str, list[float]]]  # by method and task, one per seed
DIVERGED = 0.0  # what a run that diverged scores: the reference's lower end


def score_at(result: RunResult, updates: int | None) -> float | None:
    """Returns a run's score.

    Args:
        result: The run.
        updates: After how many; None: at the end.

    Returns:
        The score; of a run that had diverged by then `DIVERGED`, and None where a run was not
        evaluated.
    """
    if updates is None or updates == result.updates:
        done = result.status == "finished"
        return result.score(result.last) if done else DIVERGED
    found = next((e for e in result.evaluations if e.update == updates), None)
    if found is None and result.status == "diverged" and updates < result.updates:
        return DIVERGED
    return result.score(found)


def scores_of(results: Iterable[RunResult], updates: int | None = None) -> Scores:
    """Collects the scores of all methods on all tasks, seeds in order."""
    scores: Scores = {}
    for result in sorted(results, key=lambda r: r.seed):
        score = score_at(result, updates)
        if score is not None:
            task = result.task or result.dataset
            scores.setdefault(result.method, {}).setdefault(task, []).append(score)
    return scores


def shared_tasks(scores: Scores) -> list[str]:
    """Returns the tasks that every method has with two seeds or more."""
    tasks = sorted({task for by_task in scores.values() for task in by_task})
    return [t for t in tasks if all(len(of.get(t, [])) >= 2 for of in scores.values())]


def restricted(scores: Scores, tasks: Sequence[str]) -> Scores:
    """Returns the scores on some tasks."""
    return {method: {t: of[t] for t in tasks} for method, of in scores.items()}


def tasks_table(scores: Scores) -> str:
    """Returns mean ± standard deviation over seeds, one row per task, one column per method."""
    tasks = sorted({task for by_task in scores.values() for task in by_task})
    lines = []
    for task in tasks:
        cells = [task]
        for by_task in scores.values():
            values = by_task.get(task, [])
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{spread} ({len(values)})" if values else "")
        lines.append(cells)
    return table(["task", *scores], lines, aligned=True)


def shown(figure: Estimate, digits: int = 1) -> str:
    """Returns a figure with its interval as text."""
    return f"{figure.value:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"


def summary_table(results: Sequence[RunResult], method: str, budgets: Sequence[int]) -> str:
    """Returns IQM by number of updates, and how likely a run of one method beats another's.

    Args:
        results: Runs of all methods.
        method: The one that the others are compared with.
        budgets: Numbers of updates, besides the end of the runs.

    Returns:
        A table in Markdown and a line that says what it is over.

    Raises:
        SystemExit: If the method has no run, or no task is shared by all methods.
    """
    last = scores_of(results)
    if method not in last:
        raise SystemExit(f"error: there is no run of {method!r}; there are {', '.join(last)}.")
    tasks = shared_tasks(last)
    if not tasks:
        raise SystemExit("error: no task has two seeds or more of every method.")
    last = restricted(last, tasks)
    columns = {budget: scores_of(results, budget) for budget in budgets}
    lines = []
    for name, of in last.items():
        cells = [name]
        for scores in columns.values():
            there = scores.get(name, {})
            whole = all(len(there.get(t, [])) == len(of[t]) for t in tasks)
            figure = interquartile_mean({t: there[t] for t in tasks}) if whole else None
            cells.append("" if figure is None else shown(figure))
        cells.append(shown(interquartile_mean(of)))
        better = "" if name == method else shown(probability_of_improvement(last[method], of), 2)
        lines.append([*cells, better])
    header = ["method", *(f"{b:,} updates" for b in budgets), "at the end"]
    left_out = sorted({t for of in scores_of(results).values() for t in of} - set(tasks))
    note = f"Interquartile mean [95 %] over {len(tasks)} tasks: {', '.join(tasks)}."
    if left_out:
        note += f" Not every method has two seeds of: {', '.join(left_out)}."
    return "\n\n".join([table([*header, f"P({method} is better)"], lines, aligned=True), note])


def curves_of(results: Iterable[RunResult]) -> dict[str, dict[str, list[tuple[int, list[float]]]]]:
    """Returns by task and method the scores of all seeds at each evaluation."""
    curves: dict[str, dict[str, dict[int, list[float]]]] = {}
    for result in results:
        task = result.task or result.dataset
        of = curves.setdefault(task, {}).setdefault(result.method, {})
        for evaluation in result.evaluations:
            score = result.score(evaluation)
            if score is not None:
                of.setdefault(evaluation.update, []).append(score)
    return {
        task: {method: sorted(of.items()) for method, of in methods.items()}
        for task, methods in sorted(curves.items())
    }


def draw(results: Sequence[RunResult], folder: Path) -> list[Path]:
    """Draws a learning curve per task, mean and range over seeds, and the summary.

    Args:
        results: Runs of all methods.
        folder: Where the pictures are written.

    Returns:
        The pictures.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from benchmarks.pictures import STYLE, save

    curves = curves_of(results)
    methods = list(dict.fromkeys(method for of in curves.values() for method in of))
    cycle = itertools.cycle(mpl.color_sequences["tab10"])
    colours = dict(zip(methods, cycle, strict=False))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(STYLE):
        for task, of in curves.items():
            figure = Figure(figsize=(4.2, 2.8), layout="constrained")
            axes = figure.subplots()
            for method, points in of.items():
                updates = [update for update, _ in points]
                low, middle, high = (
                    [float(summarise(scores)) for _, scores in points]
                    for summarise in (np.min, np.mean, np.max)
                )
                axes.plot(updates, middle, color=colours[method], label=method)
                axes.fill_between(updates, low, high, color=colours[method], alpha=0.15, lw=0)
            axes.set_title(task, fontsize=9)
            axes.set_xlabel("updates")
            axes.set_ylabel("score")
            axes.legend(frameon=False)
            written.append(folder / f"{task}.svg")
            save(figure, {"curves": of}, written[-1])
        scores = scores_of(results)
        if tasks := shared_tasks(scores):
            estimates = {m: interquartile_mean(of) for m, of in restricted(scores, tasks).items()}
            written.append(folder / "summary.svg")
            save(_summary(estimates, colours, len(tasks)), {"iqm": estimates}, written[-1])
    return written


def _summary(estimates: dict[str, Estimate], colours: dict[str, Any], tasks: int) -> Any:  # noqa: ANN401 - matplotlib's
    """Draws each method's interquartile mean as a point with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 0.8 + 0.3 * len(estimates)), layout="constrained")
    axes = figure.subplots()
    for i, (method, found) in enumerate(reversed(estimates.items())):
        axes.plot([found.low, found.high], [i, i], color=colours[method], linewidth=3, alpha=0.5)
        axes.plot([found.value], [i], "o", color=colours[method])
    axes.set_yticks(range(len(estimates)), list(reversed(estimates)))
    axes.set_ylim(-0.6, len(estimates) - 0.4)
    axes.set_xlabel(f"interquartile mean over {tasks} tasks, 95 %")
    return figure


def main() -> None:
    """Prints the tables and draws the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("runs", type=Path)
    add("--method", default="gtp", help="compared with the others")
    add("--budgets", type=int, nargs="*", default=[])
    add("--pictures", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    results = read_results(args.runs)
    if not results:
        raise SystemExit(f"error: there is no result below {args.runs}.")
    print(tasks_table(scores_of(results)))
    print()
    print(summary_table(results, args.method, args.budgets))
    if args.pictures is not None:
        for path in draw(results, args.pictures):
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
