"""The trained policies that the repository ships: training, files, card and picture by one command.

    python -m benchmarks.models [NAME ...] [--output models]    # some minutes each; runs resume

Each is one run of `gtp_experiments` on data that the project makes itself (``make pointmaze-data``,
``make pendulum-data``). What the card says of its score is read from the run's record, which lies
beside it. Networks are small, so that a checkpoint stays below a megabyte.
"""

import argparse
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.tasks import TASKS
from examples import pendulum
from examples.plots import plot_trajectories
from examples.pointmaze import UMAZE, evaluate, maze_map
from gtp_experiments.cli import main as experiment
from gtp_experiments.reevaluation import finished
from gtp_policy import ActionScaler, Checkpoint, load_checkpoint
from gtp_policy.export import from_pretrained, save_pretrained

FOLDER = Path("models")
RECORD, PICTURE = "result.json", "picture.png"
EPISODES = 100
SMALL = ("--set 'actor.hidden=[96,96]'", "--set 'critic.hidden=[96,96]'")


def draw_maze(policy: Checkpoint, path: Path) -> str:
    """Draws trips through the maze; returns what is to be seen, in words."""
    assert policy.action_scaler is not None
    scaler, generator = policy.action_scaler, torch.Generator().manual_seed(0)

    def act(obs: np.ndarray) -> np.ndarray:
        action = policy.learner.act(torch.from_numpy(obs), generator=generator)
        return scaler.to_box(action).numpy()

    result = evaluate(act, env_id=UMAZE, episodes=40, seed=20_000)
    plot_trajectories(path, maze_map(UMAZE), {"pointmaze-umaze": result})
    return "Forty trips through the maze, from random starts to random goals"


def draw_pendulum(policy: Checkpoint, path: Path) -> str:
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
    figure = Figure(figsize=(5.2, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    mesh = axes.pcolormesh(angle, speed, torque, cmap="RdBu", vmin=-2, vmax=2)
    for episode in range(6):
        visited.clear()
        pendulum.evaluate(act, 1, 20_000 + episode)
        cos, sin, speeds = np.array(visited).T
        swing = np.stack([np.arctan2(sin, cos), speeds], 1)
        axes.plot(*swing[0], "o", color="white", mec="#1f2933", ms=5, zorder=3)
        swing[1:][np.abs(np.diff(swing[:, 0])) > np.pi] = np.nan  # once around is no line
        axes.plot(*swing.T, color="#1f2933", lw=1)
    axes.set(xlabel="angle, rad, 0 is upright", ylabel="speed, rad/s")
    figure.colorbar(mesh, label="mean torque, N m")
    figure.savefig(path, dpi=110)
    return "Torque over angle and speed, and six swings from ○ to the upright position"


class Model(NamedTuple):
    """A policy: its task in `benchmarks.tasks`, the choices of its run, and its picture."""

    task: str
    updates: int
    choices: tuple[str, ...]
    draw: Callable[[Checkpoint, Path], str]
    box: ActionScaler | None = None  # of its actions, where the data's are fractions of it


MODELS = {
    "pointmaze-umaze": Model(
        "pointmaze-umaze",
        5000,
        (
            *SMALL,
            """--set 'learner.baseline={"kind":"expectile","expectile":0.7,"hidden":[96,96]}'""",
        ),
        draw_maze,
    ),
    # Swings are short: a discount of 0.95 sees to their end, and is learned sooner.
    "pendulum": Model(
        "pendulum-mediocre",
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
}


def command(name: str, runs: Path) -> str:
    """Returns the command that trains and evaluates a policy."""
    model = MODELS[name]
    (task,) = [task for task in TASKS if task.name == model.task]
    words = [f"--updates {model.updates}", f"--evaluate-every {model.updates}", "--seeds 0"]
    words = [task.words(episodes=EPISODES), *words, *model.choices, f"--out {runs}"]
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
    seen = model.draw(from_pretrained(folder), folder / PICTURE)
    card = folder / "README.md"
    head, title, rest = card.read_text(encoding="utf-8").partition("# A policy of gtp-policy\n")
    card.write_text(f"{head}{title}\n![{seen}.]({PICTURE})\n{rest}", encoding="utf-8")


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
