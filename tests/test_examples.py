"""The examples run, and stay short enough to be read."""

import subprocess
import sys
from pathlib import Path

import pytest

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
@pytest.mark.parametrize("name", SHORT)
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


@pytest.mark.parametrize("name", SHORT)
def test_example_fits_on_two_screens(name: str) -> None:
    source = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 80
