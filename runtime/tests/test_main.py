"""The commands, as they are typed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gtp_runtime import __version__, example_file


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gtp_runtime", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_info_prints_what_a_file_says_of_itself() -> None:
    found = run("info", str(example_file()))
    assert found.returncode == 0
    document, _, policy = found.stdout.rpartition("}\n")
    assert json.loads(document + "}")["format_version"] == 1
    assert policy.startswith("Policy(")


@pytest.mark.parametrize("command", ["info", "serve"])
def test_a_wrong_file_is_an_error_in_one_line(command: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.onnx"
    path.write_text("hello")
    for name in (path, tmp_path / "nothing.onnx"):
        found = run(command, str(name))
        assert found.returncode == 1
        assert found.stderr.startswith("error: ")
        assert found.stderr.count("\n") == 1


@pytest.mark.parametrize("port", ["99999", "-1"])
def test_a_port_that_there_is_not_is_an_error_in_one_line(port: str) -> None:
    found = run("serve", str(example_file()), "--port", port)
    assert found.returncode == 1
    assert found.stderr.startswith(
        f"error: `port` is out of range: got {port}, expected 1 to 65535"
    )
    assert found.stderr.count("\n") == 1


def test_the_version() -> None:
    assert run("--version").stdout.strip() == __version__


def test_without_the_extra_serving_names_it() -> None:
    code = (
        "import sys; sys.modules['starlette'] = None; from gtp_runtime.__main__ import main; "
        f"sys.exit(main(['serve', {str(example_file())!r}]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert "gtp-policy-runtime[serve]" in found.stderr
