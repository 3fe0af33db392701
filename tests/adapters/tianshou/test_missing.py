"""Importing the adapter where its host is not installed."""

import subprocess
import sys


def test_without_tianshou_the_extra_is_named() -> None:
    code = """
import sys
sys.modules["tianshou"] = None  # what an import finds that is not there
from gtp_policy.errors import MissingDependencyError
try:
    import gtp_tianshou
except MissingDependencyError as error:
    assert isinstance(error, ImportError)
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "pip install '.[tianshou]'" in result.stdout


def test_the_adapter_imports_neither_the_high_level_api_nor_other_hosts() -> None:
    code = "import sys, gtp_tianshou; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split())
    assert "tianshou.trainer" in loaded
    assert not loaded & {"gtp_sb3", "minari", "stable_baselines3", "tianshou.highlevel"}
