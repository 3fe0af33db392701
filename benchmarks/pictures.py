"""The pictures of the pages on performance and results, drawn from the benchmarks' JSON."""

import hashlib
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

COLOURS = {
    "naive": "#8a8a8a",
    "library": "#0b62a4",
    "library, torch": "#6fa8d6",
    "tianshou TD3+BC": "#c2570c",
    "d3rlpy TD3+BC": "#5b8a3c",
    "d3rlpy IQL": "#8e5ba6",
}
OTHERS = ("#a3333d", "#3a8f8f", "#6b5b2e")  # contenders that a user named
STYLE: Any = {  # matplotlib types its keys one by one
    "svg.fonttype": "none",  # text stays text: small files, and it can be searched
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "axes.axisbelow": True,
}
LABELS = {
    "steps": "steps K",
    "batch": "batch size",
    "width": "hidden width",
    "action_dim": "action dimensions",
    "samples": "baseline's samples M",
    "seeds": "seeds in one program",
}


def digest(record: dict[str, Any]) -> str:
    """Returns the digest by which a picture names the record it was drawn from."""
    text = json.dumps(record, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shows(path: Path, record: dict[str, Any]) -> bool:
    """Returns whether a picture was drawn from a record."""
    return path.exists() and digest(record) in path.read_text(encoding="utf-8")


def colour(name: str, index: int) -> str:
    """Returns a contender's colour."""
    return COLOURS.get(name, OTHERS[index % len(OTHERS)])


def save(figure: Figure, record: dict[str, Any], path: Path) -> None:
    """Writes a picture: the same bytes for the same record and version of matplotlib."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": "gtp_policy"}):
        figure.savefig(path, metadata={"Date": None, "Description": digest(record)})
    # matplotlib leaves blanks at line ends.
    text = path.read_text(encoding="utf-8")
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", "utf-8")


def plain_ticks(axes: Axes, values: list[int]) -> None:
    """Puts ticks at the measured sizes, and plain numbers on both logarithmic axes."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(values, [str(value) for value in values])
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    ticks = [base * 10**e for e in range(-3, 6) for base in (1, 2, 5)]
    axes.set_yticks([t for t in ticks if low <= t <= high])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def line(axes: Axes, values: list[int], figures: list[dict[str, float]], **style: Any) -> None:  # noqa: ANN401 - matplotlib's
    """Draws medians with quartiles."""
    middle = [figure["median"] for figure in figures]
    below = [figure["median"] - figure["q1"] for figure in figures]
    above = [figure["q3"] - figure["median"] for figure in figures]
    axes.errorbar(values, middle, [below, above], marker="o", markersize=4, capsize=2, **style)


def draw_growth(record: dict[str, Any], path: Path) -> None:
    """Draws the time of an update against each size."""
    panels: dict[str, dict[str, Any]] = dict(record["update"])
    if "seeds" in record:
        panels["seeds"] = record["seeds"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 5.0), layout="constrained")
        grid = figure.subplots(2, 3, sharey=True).ravel()
        for axes, (axis, of) in zip(grid, panels.items(), strict=False):
            values = [int(value) for value in of]
            names = ("one seed", "all seeds") if axis == "seeds" else ("naive", "library")
            for name, shade in zip(names, ("naive", "library"), strict=True):
                figures = [of[str(value)][name]["ms"] for value in values]
                line(axes, values, figures, color=COLOURS[shade], label=name)
            plain_ticks(axes, values)
            axes.set_xlabel(LABELS[axis])
            if axis == "seeds":
                axes.legend(frameon=False)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes in grid[::3]:
            axes.set_ylabel("ms per update")
        grid[0].legend(frameon=False)
        save(figure, record, path)


def draw_latency(record: dict[str, Any], path: Path) -> None:
    """Draws median, 99th percentile and slowest call of one action."""
    panels = record["action"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 2.8), layout="constrained")
        row = figure.subplots(1, len(panels), sharex=True, sharey=True)
        for axes, (label, of) in zip(row, panels.items(), strict=True):
            for i, (name, entry) in enumerate(reversed(of.items())):
                shade = colour(name, i)
                axes.plot([entry["p50"], entry["max"]], [i, i], color=shade, linewidth=1)
                axes.plot([entry["p50"]], [i], "o", color=shade, markersize=6)
                axes.plot([entry["p99"]], [i], "|", color=shade, markersize=11, mew=2)
                axes.plot([entry["max"]], [i], "x", color=shade, markersize=5)
            axes.set_title(label, fontsize=9)
            axes.set_xscale("log")
            axes.set_yticks(range(len(of)), list(reversed(of)))
            axes.set_ylim(-0.6, len(of) - 0.4)
        figure.supxlabel("ms   (● median   | p99   × slowest)", fontsize=9)
        low, high = row[0].get_xlim()
        ticks = [b * 10**e for e in range(-3, 4) for b in (1, 2, 5)]
        for axes in row:
            axes.set_xticks([t for t in ticks if low <= t <= high])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        save(figure, record, path)


def draw_scores(panels: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Draws scores by task and method, peers in grey: a dot per seed and a bar to the mean."""
    with mpl.rc_context(STYLE):
        height = 0.8 + 0.27 * max(map(len, panels.values()))
        figure = Figure(figsize=(9.6, height), layout="constrained")
        row = figure.subplots(1, len(panels), sharex=True)
        for axes, (title, of) in zip(row, panels.items(), strict=True):
            for i, (name, values) in enumerate(reversed(of.items())):
                peer = name.startswith(("Gaussian", "TD3", "IQL", "ReBRAC"))
                shade = COLOURS["naive" if peer else "library"]
                axes.barh(i, sum(values) / len(values), color=shade, alpha=0.35, height=0.7)
                axes.plot(values, [i] * len(values), "o", color=shade, markersize=4)
            axes.set_title(title, fontsize=10)
            axes.set_yticks(range(len(of)), list(reversed(of)), fontsize=8)
            axes.grid(visible=False, axis="y")
            axes.set_xlim(0, 100)
        figure.supxlabel("score", fontsize=9)
        save(figure, panels, path)


def draw_glance(record: dict[str, Any], path: Path) -> None:
    """Draws the README's picture: clones by the number of network calls, and scores by task."""
    shades = {"GTP": "#0b62a4", "GTP, the paper's objective": "#6fa8d6"}
    shades |= {"cloning": "#8a8a8a", "TD3+BC": "#c2570c", "IQL": "#5b8a3c"}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.3), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.9])
        for i, (name, of) in enumerate(record["modes"].items()):
            places = [j + 0.36 * (i - 0.5) for j in range(len(of))]
            left.bar(places, of.values(), 0.34, color=shades[name])
            for x, y in zip(places, of.values(), strict=True):
                left.text(x, y - 3, f"{y:.0f}", ha="center", va="top", color="white", size=8)
        left.bar([len(of)], [record["gaussian"]], 0.34, color=shades["cloning"])
        left.text(len(of), record["gaussian"] + 2, f"{record['gaussian']:.0f}", ha="center", size=8)
        left.set_xticks(range(len(of) + 1), [*(f"K = {k}" for k in of), "Gaussian"])
        left.axhline(record["truth"], color="#444444", lw=1)
        left.text(len(of) + 0.4, record["truth"] + 1, "the data", ha="right", size=8)
        left.set_title("four modes cloned: samples at a mode, %\nby K, network calls per action")
        for i, of in enumerate(record["scores"].values()):
            for j, name in enumerate(shades):
                x = i + 0.17 * (j - 2)
                if name not in of:
                    right.text(x, 1, "not run", ha="center", rotation=90, size=7, color="#777777")
                    continue
                middle, low, high = of[name]
                error = [[middle - low], [high - middle]]
                right.bar(x, middle, 0.155, color=shades[name], label=name if i == 0 else None)
                right.errorbar(x, middle, error, color="#333333", capsize=2, lw=1)
        right.set_xticks(range(len(record["scores"])), list(record["scores"]))
        right.set_title("scores, three seeds; mean and 95 % interval")
        right.legend(
            frameon=False,
            ncols=5,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.1),
            columnspacing=1.0,
            handlelength=1.2,
        )
        for axes in (left, right):
            axes.grid(axis="x", visible=False)
            axes.set_ylim(0, 105)
        save(figure, record, path)
