"""The main job from end to end, with tiny figures."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from examples.plots import plot_trajectories
from examples.pointmaze import EvaluationResult
from examples.quickstart import CLONING, GTP, Run, seeded, summarize

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_main_job_runs_and_shows_what_it_promises(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "examples.quickstart", "--smoke", "--output", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "MINARI_DATASETS_PATH": str(tmp_path / "minari")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("Offline reinforcement learning in a maze, in four steps")
    for name in ("behaviour cloning (η = 0), seed 0", "GTP, seed 0", "four-mode bandit"):
        assert f"{name}: 30 of 30 updates\n" in run.stdout  # lines, since this is no terminal
    table = run.stdout[run.stdout.index("policy ") :]
    for row in ("behaviour (the data)", "behaviour cloning (η = 0), seed 0", "GTP, seed 0"):
        assert row in table
    for name in ("trajectories.png", "advantage.png", "bandit.png", "flow.png"):
        assert f"{tmp_path / name}: " in run.stdout
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "minari/gtp-policy/pointmaze-umaze-2000-v0").is_dir()
    assert "Traceback" not in run.stderr
    assert "Warning" not in run.stderr


def test_the_table_and_the_titles_have_the_same_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, titles = np.random.default_rng(0), {}
    monkeypatch.setattr(
        "examples.plots._title", lambda axes, name, fact: titles.update({name: fact})
    )

    def result(episodes: int) -> EvaluationResult:
        success, steps = rng.random(episodes) < 0.9, rng.integers(1, 300, episodes)
        paths = [rng.normal(size=(2, 2)) for _ in range(episodes)]
        return EvaluationResult(
            success, steps, success * 1.0, paths, rng.normal(size=(episodes, 2))
        )

    runs = [Run(policy, seed, 10, 1.0, result(37)) for policy in (CLONING, GTP) for seed in (0, 1)]
    lines = summarize(runs, result(53)).splitlines()
    assert len(lines) == 2 + 1 + 2 * 3  # a row per seed, and their mean
    shown = {seeded(run.policy, run.seed): run.result for run in runs if run.seed == 0}
    plot_trajectories(tmp_path / "maze.png", [[1, 1, 1], [1, 0, 1], [1, 1, 1]], shown)
    for name, fact in titles.items():
        success, steps = re.fullmatch(
            r"(\S+) % reach the goal · (\S+) steps on average", fact
        ).groups()
        (row,) = (line for line in lines if line.startswith(name))
        assert row.removeprefix(name).split()[:3] == [success, "%", steps]
