"""Pictures of the examples: trips through a maze and their worth, a bandit, the flow of actions.

Every function draws arrays into one PNG file and returns its path; nothing is read or computed
beyond what the picture says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import NullLocator

from examples.pointmaze import EvaluationResult

FOUR_MODES = np.array([[-0.8, -0.8], [-0.8, 0.8], [0.8, -0.8], [0.8, 0.8]])
INK, QUIET, WALL, FLOOR, MISS = "#1f2933", "#7b8794", "#cbd2d9", "#fbfcfd", "#d64545"
MODE_COLOURS = ("#2f6fde", "#12a37f", "#f0932b", "#9b4dca")
STYLE: Any = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": WALL,
    "axes.facecolor": FLOOR,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


@contextmanager
def _canvas(path: str | Path, columns: int, size: float) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yields a row of square axes on the Agg backend and saves the figure, without pyplot."""
    with rc_context(STYLE):
        figure = Figure(figsize=(columns * size, size + 0.8), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, list(figure.subplots(1, columns, squeeze=False)[0])
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160, facecolor="white", bbox_inches="tight", pad_inches=0.12)


def _title(axes: Axes, name: str, fact: str) -> None:
    axes.set_title(f"{name}\n", fontweight="bold", size=11)
    axes.text(0.5, 1.025, fact, transform=axes.transAxes, ha="center", color=QUIET, size=9)


def _draw_walls(axes: Axes, walls: np.ndarray) -> None:
    """Fills the wall cells and inks the border between wall and floor."""
    height, width = walls.shape
    box = (-width / 2, width / 2, -height / 2, height / 2)
    axes.imshow(walls, cmap=ListedColormap([FLOOR, WALL]), extent=box, interpolation="nearest")
    for i, j in np.argwhere(walls[1:] != walls[:-1]):
        axes.plot(np.array([j, j + 1]) + box[0], [box[3] - i - 1] * 2, c=QUIET, lw=1.2)
    for i, j in np.argwhere(walls[:, 1:] != walls[:, :-1]):
        axes.plot([box[0] + j + 1] * 2, box[3] - np.array([i, i + 1]), c=QUIET, lw=1.2)


def plot_trajectories(
    path: str | Path,
    maze_map: Sequence[Sequence[int]],
    panels: Mapping[str, EvaluationResult],
    *,
    most: int = 40,
) -> Path:
    """Draws trips through the maze, one panel per policy, coloured by speed.

    The title of a panel counts all its episodes; at most `most` of them, the first, are drawn.

    Args:
        path: PNG file to write.
        maze_map: Rows of 0 (free) and 1 (wall), a cell has side 1 and the maze is centred at 0.
        panels: Name of the policy to its episodes.
        most: Number of episodes drawn per panel.
    """
    walls = np.array([[cell == 1 for cell in row] for row in maze_map], dtype=float)
    reach = np.array([-0.5, 0.5]) * (max(walls.shape) - 1.4)  # most of the outer wall is cut off
    speeds = ScalarMappable(Normalize(0.0, 5.0), "plasma")  # 5 is the environment's limit per axis
    with _canvas(path, len(panels), 4.0) as (figure, row):
        for axes, (name, result) in zip(row, panels.items(), strict=True):
            _draw_walls(axes, walls)
            success, goals = result.success[:most], result.goals[:most]
            for points in result.trajectories[:most]:
                speed = 100 * np.linalg.norm(np.diff(points, axis=0), axis=1)
                pieces = list(np.stack([points[:-1], points[1:]], axis=1))
                axes.add_collection(
                    LineCollection(pieces, colors=list(speeds.to_rgba(speed, alpha=0.8)), lw=1.3)
                )
            starts = np.array([points[0] for points in result.trajectories[:most]])
            axes.scatter(starts[:, 0], starts[:, 1], s=16, c="white", ec=INK, lw=0.9, zorder=3)
            colours = np.where(success, MODE_COLOURS[1], MISS)
            stars: Any = {"marker": "*", "s": 90, "ec": "white", "lw": 0.7, "zorder": 4}
            axes.scatter(goals[:, 0], goals[:, 1], c=colours, **stars)
            share, mean = 100 * result.success.mean(), result.steps.mean()
            _title(axes, name, f"{share:.1f} % reach the goal · {mean:.1f} steps on average")
            axes.set(xlim=reach, ylim=reach, aspect="equal")
            axes.set_axis_off()
        bar = figure.colorbar(speeds, ax=row, shrink=0.6, pad=0.015, aspect=28)
        bar.set_label("speed, cells per 100 steps", size=9)
        bar.outline.set_visible(False)
        key = "○ start    ★ goal, red if not reached in time"
        row[0].text(0.0, -0.05, key, transform=row[0].transAxes, color=QUIET, size=9)
    return Path(path)


def plot_advantage(
    path: str | Path,
    maze_map: Sequence[Sequence[int]],
    position: np.ndarray,
    advantage: np.ndarray,
    weight: np.ndarray,
    goal: Sequence[float],
    *,
    bin_width: float = 0.1,
) -> Path:
    """Draws where in a maze the actions of trips to one goal were good, and how much they count.

    Two heat maps of the same transitions, means over square bins: the advantage that the critic
    gives their actions, and the weight that it makes of each in the policy's loss.

    Args:
        path: PNG file to write.
        maze_map: Rows of 0 (free) and 1 (wall), as for `plot_trajectories`.
        position: Where each transition began, shape (n, 2).
        advantage: Of its action, shape (n,).
        weight: Of its action, shape (n,).
        goal: Centre of the goals of these trips.
        bin_width: Side of a bin in cells.
    """
    walls = np.array([[cell == 1 for cell in row] for row in maze_map], dtype=float)
    reach = np.array([-0.5, 0.5]) * (max(walls.shape) - 1.4)
    half = np.array(walls.shape[::-1]) / 2
    edges = [np.arange(-h, h + bin_width / 2, bin_width) for h in half]
    count, *_ = np.histogram2d(*position.T, bins=edges)
    most = float(np.quantile(np.abs(advantage), 0.95))
    panels: list[tuple[str, str, np.ndarray, Any]] = [
        (
            "advantage",
            f"{100 * (advantage > 0).mean():.0f} % of the actions are better than expected",
            advantage,
            {"cmap": "RdBu", "vmin": -most, "vmax": most},
        ),
        (
            "weight in the loss",
            f"the tenth that counts most has {100 * _share_of_the_top(weight):.0f} % of it",
            weight,
            {"cmap": "viridis", "norm": LogNorm(1.0, max(float(np.quantile(weight, 0.98)), 1.1))},
        ),
    ]
    with _canvas(path, len(panels), 4.4) as (figure, row):
        for axes, (name, fact, values, colours) in zip(row, panels, strict=True):
            _draw_walls(axes, walls)
            total, *_ = np.histogram2d(*position.T, bins=edges, weights=values)
            mean = np.ma.masked_where(count < 3, total / np.maximum(count, 1))
            mesh = axes.pcolormesh(*edges, mean.T, **colours)
            axes.scatter(*goal, marker="*", s=140, c=MODE_COLOURS[1], ec="white", zorder=4)
            axes.set(xlim=reach, ylim=reach, xticks=(), yticks=())
            _title(axes, name, fact)
            bar = figure.colorbar(mesh, ax=axes, shrink=0.8, aspect=30, pad=0.02)
            bar.outline.set_visible(False)
        key = f"{len(position):,} transitions of trips to ★, mean per bin"
        row[0].text(0.0, -0.05, key, transform=row[0].transAxes, color=QUIET, size=9)
    return Path(path)


def _share_of_the_top(weight: np.ndarray, part: float = 0.1) -> float:
    """Returns the share that the largest weights have of their sum."""
    top = np.sort(weight)[-max(round(part * len(weight)), 1) :]
    return float(top.sum() / weight.sum())


def _nearest_mode(points: np.ndarray, modes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distance (n,) to the nearest mode and its index (n,)."""
    distance = np.linalg.norm(points[:, None] - modes[None], axis=-1)
    return distance.min(axis=1), distance.argmin(axis=1)


def plot_bandit(
    path: str | Path,
    panels: Mapping[str, np.ndarray],
    modes: np.ndarray = FOUR_MODES,
    *,
    std: float = 0.05,
) -> Path:
    """Draws samples of actions side by side; a sample is coloured by its mode or red for none.

    A sample belongs to a mode within 3 standard deviations of its centre (the circles). For a
    Gaussian mode in the plane, 98.9 % of its own samples do.

    Args:
        path: PNG file to write.
        panels: Name of the policy to its samples (n, 2).
        modes: Centres (m, 2), at most four.
        std: Standard deviation of every mode.
    """
    reach = 1.35 * np.abs(modes).max()
    with _canvas(path, len(panels), 2.6) as (_, row):
        for axes, (name, points) in zip(row, panels.items(), strict=True):
            distance, mode = _nearest_mode(points, modes)
            inside = distance <= 3 * std
            colours = np.where(inside, np.array(MODE_COLOURS)[mode], MISS)
            axes.scatter(points[:, 0], points[:, 1], s=5, c=colours, alpha=0.45, lw=0)
            for centre in modes:
                axes.add_patch(Circle(centre, 3 * std, fill=False, ec=INK, lw=0.8))
            _title(axes, name, f"{100 * inside.mean():.1f} % within 3 std of a mode")
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
            axes.set(xticks=(-1, 0, 1), yticks=(-1, 0, 1))
        row[0].set(xlabel="first action dimension", ylabel="second action dimension")
    return Path(path)


def plot_flow(
    path: str | Path,
    paths: np.ndarray,
    times: np.ndarray | Sequence[float],
    modes: np.ndarray = FOUR_MODES,
) -> Path:
    """Draws how samples flow from noise to actions: one panel per time, then all jumps together.

    A sample keeps the colour of the mode it ends nearest to, so that the first panel shows which
    noise becomes which action. Every panel has the scale of its own time; the last one is linear
    near 0 and logarithmic beyond (asinh).

    Args:
        path: PNG file to write.
        paths: Samples (K + 1, n, 2), from noise to actions.
        times: The K + 1 times, descending to 0.
        modes: Centres (m, 2), at most four.
    """
    colours = np.array(MODE_COLOURS)[_nearest_mode(paths[-1], modes)[1]]
    with _canvas(path, len(paths) + 1, 2.5) as (_, row):
        for k, (axes, points, t) in enumerate(zip(row[:-1], paths, times, strict=True)):
            axes.scatter(points[:, 0], points[:, 1], s=5, c=colours, alpha=0.5, lw=0)
            reach = 1.2 * max(np.quantile(np.abs(points), 0.99), np.abs(modes).max())
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
            axes.locator_params(nbins=5)
            stage = "noise" if k == 0 else "action" if k == len(paths) - 1 else f"jump {k}"
            _title(axes, stage, f"t = {float(t):.3g}")
        jumps = np.stack([paths[:-1], paths[1:]], axis=2).reshape(-1, 2, 2)
        hues = list(np.tile(colours, len(paths) - 1))
        row[-1].add_collection(LineCollection(list(jumps), colors=hues, lw=0.5, alpha=0.35))
        row[-1].scatter(paths[-1, :, 0], paths[-1, :, 1], s=4, c=INK, lw=0, zorder=3)
        reach = 1.1 * np.abs(paths).max()
        ticks = [tick for tick in (-100, -10, -1, 0, 1, 10, 100) if abs(tick) < reach]
        row[-1].set(xscale="asinh", yscale="asinh", xlim=(-reach, reach), ylim=(-reach, reach))
        for axis in (row[-1].xaxis, row[-1].yaxis):
            axis.set_minor_locator(NullLocator())
            axis.set_ticks(ticks, [str(tick) for tick in ticks])
        _title(row[-1], "all jumps", f"{paths.shape[1]} samples, asinh scale")
        for axes in row:
            axes.set_box_aspect(1)
    return Path(path)
