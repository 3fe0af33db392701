"""The trained policies that the repository ships: training, files, cards and pictures.

    python -m benchmarks.models [NAME ...] [--output models]    # some minutes each; runs resume

Each is one run of `gtp_experiments` on data that the project makes itself (``make pointmaze-data``,
``make pendulum-data``, ``make ogbench-data``). What the card says of its score is read from the
run's record, which lies beside it. Networks are small, so that a checkpoint stays below a megabyte.
Films are drawn from the states of episodes: they need no renderer.
"""

import argparse
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.tasks import DEMONSTRATIONS, TASKS, Task
from examples import pendulum
from examples.plots import INK, MISS, MODE_COLOURS, WALL, plot_trajectories
from examples.pointmaze import UMAZE, evaluate, maze_map
from gtp_experiments.cli import main as experiment
from gtp_experiments.reevaluation import finished
from gtp_policy import ActionScaler, Checkpoint, load_checkpoint
from gtp_policy.chunks import ChunkPlayer
from gtp_policy.export import from_pretrained, save_pretrained

FOLDER = Path("models")
RECORD, PICTURE, FILM = "result.json", "picture.png", "film.gif"
EPISODES = 100
BLUE = MODE_COLOURS[0]
SMALL = ("--set 'actor.hidden=[96,96]'", "--set 'critic.hidden=[96,96]'")


def canvas(*shape: int, width: float, height: float) -> tuple[Figure, Any]:
    """Returns a figure, and its panels in rows and columns."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(*shape)


def write_film(path: Path, figure: Figure, moments: Iterator[None], fps: int) -> None:
    """Writes a figure at each moment as a GIF."""
    images = []
    for _ in moments:
        figure.canvas.draw()
        pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
        images.append(Image.fromarray(pixels).quantize(16, dither=Image.Dither.NONE))
    first, *rest = images
    first.save(path, save_all=True, append_images=rest, duration=1000 // fps, loop=0, optimize=True)


def draw_maze(policy: Checkpoint, folder: Path) -> str:
    """Draws trips through the maze; returns what is to be seen, in words."""
    assert policy.action_scaler is not None
    scaler, generator = policy.action_scaler, torch.Generator().manual_seed(0)

    def act(obs: np.ndarray) -> np.ndarray:
        action = policy.learner.act(torch.from_numpy(obs), generator=generator)
        return scaler.to_box(action).numpy()

    result = evaluate(act, env_id=UMAZE, episodes=40, seed=20_000)
    plot_trajectories(folder / PICTURE, maze_map(UMAZE), {"pointmaze-umaze": result})
    figure, axes = canvas(width=2.2, height=2.2)
    walls = np.array([[cell == 1 for cell in row] for row in maze_map(UMAZE)])
    half = walls.shape[1] / 2
    axes.imshow(np.where(walls, 0.8, 1.0), "gray", vmin=0, vmax=1, extent=[-half, half] * 2)
    axes.set_axis_off()
    # Four trips of different lengths, one after the other; a step takes a hundredth of a second.
    trips = sorted(range(40), key=lambda trip: int(result.steps[trip]))[3::10]

    def moments() -> Iterator[None]:
        (goal,) = axes.plot([], [], "*", ms=14, color=MISS)
        (trail,) = axes.plot([], [], color=WALL, lw=2, zorder=1)
        (ball,) = axes.plot([], [], "o", ms=10, color=BLUE)
        for trip in trips:
            points = result.trajectories[trip]
            goal.set_data(*result.goals[trip][:, None])
            for step in [*range(0, len(points), 8), len(points) - 1]:
                trail.set_data(*points[: step + 1].T)
                ball.set_data(*points[step][:, None])
                yield

    write_film(folder / FILM, figure, moments(), fps=12)
    return "Forty trips through the maze, from random starts to random goals"


def draw_pendulum(policy: Checkpoint, folder: Path) -> str:
    """Draws torques over angle and speed, and swings on them; returns what is to be seen."""
    assert policy.action_scaler is not None
    scaler, generator = policy.action_scaler, torch.Generator().manual_seed(0)
    visited: list[np.ndarray] = []

    def act(obs: np.ndarray) -> np.ndarray:
        visited.append(obs[0])
        rows = torch.from_numpy(np.asarray(obs, np.float32))
        return scaler.to_box(policy.learner.act(rows, generator=generator)).numpy()

    angle, speed = np.meshgrid(np.linspace(-np.pi, np.pi, 121), np.linspace(-8, 8, 121))
    states = np.stack([np.cos(angle), np.sin(angle), speed], -1).reshape(-1, 3)
    torque = np.mean([act(states) for _ in range(8)], axis=0).reshape(angle.shape)
    figure, axes = canvas(width=5.2, height=4.0)
    mesh = axes.pcolormesh(angle, speed, torque, cmap="RdBu", vmin=-2, vmax=2)
    for episode in range(6):
        visited.clear()
        pendulum.evaluate(act, 1, 20_000 + episode)
        cos, sin, speeds = np.array(visited).T
        swing = np.stack([np.arctan2(sin, cos), speeds], 1)
        axes.plot(*swing[0], "o", color="white", mec=INK, ms=5, zorder=3)
        swing[1:][np.abs(np.diff(swing[:, 0])) > np.pi] = np.nan  # once around is no line
        axes.plot(*swing.T, color=INK, lw=1)
    axes.set(xlabel="angle, rad, 0 is upright", ylabel="speed, rad/s")
    figure.colorbar(mesh, label="mean torque, N m")
    figure.savefig(folder / PICTURE, dpi=110)
    visited.clear()
    pendulum.evaluate(act, 1, 20_000)
    figure, axes = canvas(width=2.2, height=2.2)
    axes.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")
    axes.set_axis_off()

    def moments() -> Iterator[None]:
        (rod,) = axes.plot([], [], "-o", color=BLUE, lw=6, ms=9, solid_capstyle="round")
        for cos, sin, _ in visited[::2]:  # 20 steps per second
            rod.set_data([0, -sin], [0, cos])
            yield

    write_film(folder / FILM, figure, moments(), fps=10)
    return "Torque over angle and speed, and six swings from ○ to the upright position"


class Trip(NamedTuple):
    """What happened on the table: positions in metres, shape (T, 3), and whether it went well."""

    gripper: np.ndarray
    cube: np.ndarray
    goal: np.ndarray
    arrived: bool


def cube_trips(policy: Checkpoint, episodes: int, seed: int) -> list[Trip]:
    """Plays OGBench's task: an arm takes a cube to its goal."""
    import gymnasium
    import ogbench  # noqa: F401 - registers its environments

    assert policy.action_scaler is not None
    assert DEMONSTRATIONS.environment is not None
    learner, scaler = policy.learner, policy.action_scaler
    generator = torch.Generator().manual_seed(seed)
    player = ChunkPlayer(
        lambda obs: learner.act(obs, generator=generator), chunk=learner.actor.config.chunk
    )
    env = gymnasium.make(DEMONSTRATIONS.environment.removeprefix("ogbench:"))
    base: Any = env.unwrapped
    trips = []
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed + episode)
        rows, ended, arrived = [], False, False
        player.reset()
        while True:
            known = base.compute_ob_info()
            rows.append((known["proprio/effector_pos"], known["privileged/block_0_pos"]))
            if ended:
                break
            action = player.act(np.asarray(obs, np.float32)[None]).cpu().numpy()
            obs, _, arrived, cut, _ = env.step(scaler.to_box(action)[0])
            ended = arrived or cut
        gripper, cube = np.array(rows, float).transpose(1, 0, 2)
        trips.append(Trip(gripper, cube, base.cur_task_info["goal_xyzs"][0], bool(arrived)))
    env.close()
    return trips


def draw_cube(policy: Checkpoint, folder: Path) -> str:
    """Draws where cubes were taken, and one of them on its way; returns what is to be seen."""
    trips = cube_trips(policy, 40, 20_000)
    figure, (above, side) = canvas(1, 2, width=7.0, height=3.2)
    for trip in trips:
        colour = BLUE if trip.arrived else MISS
        for axes, x, y in ((above, 1, 0), (side, 0, 2)):
            axes.plot(trip.cube[:, x], trip.cube[:, y], color=colour, lw=0.8, alpha=0.6)
            axes.plot(*trip.cube[0, [x, y]], "o", ms=4, mfc="white", mec=INK, zorder=3)
            axes.plot(*trip.goal[[x, y]], "*", ms=12, color=INK, mec="white", zorder=4)
    labels: tuple[tuple[Axes, str, str, str], ...] = (
        (above, "from above", "y, m", "x, m"),
        (side, "from the side", "x, m", "height, m"),
    )
    for axes, title, x_label, y_label in labels:
        axes.set(title=title, xlabel=x_label, ylabel=y_label, aspect="equal", adjustable="datalim")
    figure.savefig(folder / PICTURE, dpi=110)

    film = trips[0]
    figure, axes = canvas(width=3.2, height=2.2)
    axes.set(xlim=(0.25, 0.6), ylim=(0.0, 0.32), aspect="equal")
    axes.set_axis_off()
    axes.axhline(0.0, color=INK, lw=2)

    def moments() -> Iterator[None]:
        axes.plot(film.goal[0], film.goal[2], "s", ms=20, mfc="none", mec=WALL, mew=2)
        (arm,) = axes.plot([], [], color=INK, lw=3)
        (cube,) = axes.plot([], [], "s", ms=20, color=BLUE)
        for gripper, block in zip(film.gripper, film.cube, strict=True):
            arm.set_data([gripper[0]] * 2, [gripper[2], gripper[2] + 0.3])
            cube.set_data(*block[[0, 2], None])
            yield

    write_film(folder / FILM, figure, moments(), fps=10)
    arrived = sum(trip.arrived for trip in trips)
    return f"Where forty cubes were taken from ○ to their goal ★; {arrived} arrived"


class Model(NamedTuple):
    """A policy: its task in `benchmarks.tasks`, the choices of its run, and its pictures."""

    task: Task
    updates: int
    choices: tuple[str, ...]
    draw: Callable[[Checkpoint, Path], str]  # into a folder; returns what is to be seen
    box: ActionScaler | None = None  # of its actions, where the data's are fractions of it


def task_of(name: str) -> Task:
    """Returns a task of the comparison by its name."""
    (task,) = (task for task in TASKS if task.name == name)
    return task


MODELS = {
    "pointmaze-umaze": Model(
        task_of("pointmaze-umaze"),
        5000,
        (
            *SMALL,
            """--set 'learner.baseline={"kind":"expectile","expectile":0.7,"hidden":[96,96]}'""",
        ),
        draw_maze,
    ),
    # Swings are short: a discount of 0.95 sees to their end, and is learned sooner.
    "pendulum": Model(
        task_of("pendulum-mediocre"),
        6000,
        (
            *SMALL,
            "--gamma 0.95",
            "--set weighter.eta=5",
            """--set 'learner.baseline={"kind":"policy","samples":4}'""",
        ),
        draw_pendulum,
        ActionScaler([-2.0], [2.0]),
    ),
    "cube-single": Model(
        DEMONSTRATIONS,
        30_000,
        ("--set 'actor.hidden=[128,128,128]'", "--set critic=null", "--set actor.chunk=5"),
        draw_cube,
    ),
}


def command(name: str, runs: Path) -> str:
    """Returns the command that trains and evaluates a policy."""
    model = MODELS[name]
    words = [f"--updates {model.updates}", f"--evaluate-every {model.updates}", "--seeds 0"]
    words = [model.task.words(episodes=EPISODES), *words, *model.choices, f"--out {runs}"]
    return " ".join(["python -m gtp_experiments run", *words])


def make(name: str, folder: Path) -> None:
    """Trains a policy where that is still to be done, and writes its files."""
    runs = Path("outputs/models") / name
    words = command(name, runs)
    if (status := experiment(shlex.split(words)[3:])) != 0:
        raise SystemExit(status)
    (record,) = runs.rglob(RECORD)
    _, _, checkpoint = finished(record.parent)
    model = MODELS[name]
    policy, files = load_checkpoint(checkpoint), {"command": words, "license": "mit"}
    save_pretrained(policy, folder, action_scaler=model.box, result=record, **files)
    shutil.copy(record, folder / RECORD)
    seen = model.draw(from_pretrained(folder), folder)
    pictures = f"![{seen}.]({PICTURE})\n\n![An episode, drawn from its states.]({FILM})\n"
    card = folder / "README.md"
    head, title, rest = card.read_text(encoding="utf-8").partition("# A policy of gtp-policy\n")
    card.write_text(f"{head}{title}\n{pictures}{rest}", encoding="utf-8")


def main() -> None:
    """Makes the policies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--output", type=Path, default=FOLDER)
    args = parser.parse_args()
    os.environ.setdefault("MINARI_DATASETS_PATH", str(Path("outputs/minari").resolve()))
    torch.set_num_threads(1)
    for name in args.names or MODELS:
        make(name, args.output / name)


if __name__ == "__main__":
    main()
