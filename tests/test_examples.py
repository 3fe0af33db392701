"""The examples run, and stay short enough to be read."""

import subprocess
import sys
from pathlib import Path

import pytest

from examples.arm import LIMIT
from gtp_datasets import load_dataset

ROOT = Path(__file__).parents[1]
SHORT = (
    "chunks",
    "control_loop",
    "custom_trainer",
    "property_test",
    "tianshou_offline",
    "sb3_offline",
    "sb3_offline_to_online",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SHORT, "robot_logs"])
def test_example_runs_as_a_user_would_run_it(name: str, tmp_path: Path) -> None:
    script = ROOT / "examples" / f"{name}.py"
    result = subprocess.run(
        [sys.executable, str(script), "--smoke"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_logs_of_the_arm_are_written_by_its_script(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "examples" / "arm.py"), "logs", "--episodes", "2"]
    result = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == "2 episodes in logs\n"
    logs = load_dataset(
        tmp_path / "logs", obs=["joints", "target"], action="command", low=-LIMIT, high=LIMIT
    )
    assert (len(logs), logs.obs_dim, logs.action_dim) == (2 * 39, 14, 7)


@pytest.mark.parametrize("name", SHORT)
def test_example_fits_on_two_screens(name: str) -> None:
    source = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 80
