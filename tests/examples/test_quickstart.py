"""The main job from end to end, with tiny figures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    table = run.stdout[run.stdout.index("policy ") :]
    for row in ("behaviour (the data)", "behaviour cloning (η = 0)", "GTP "):
        assert row in table
    assert "±" not in table.splitlines()[2], "one dataset has no spread over seeds"
    for name in ("trajectories.png", "bandit.png", "flow.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "minari/gtp-policy/pointmaze-umaze-2000-v0").is_dir()
    assert "Traceback" not in run.stderr
    assert "Warning" not in run.stderr
