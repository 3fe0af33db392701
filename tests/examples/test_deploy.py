"""What the page on deployment names: the client, the control loop, the program in C++."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gtp_runtime import Policy, example_file

ROOT = Path(__file__).parents[2]
OBS = ["0.1", "-0.2", "0.3"]


def test_the_client_gets_the_policys_action(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="the runtime's extra `serve` is not installed")
    serve = [sys.executable, "-m", "gtp_runtime", "serve", str(example_file()), "--port", "0"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().rpartition(":")[2].strip()
            client = [sys.executable, str(ROOT / "examples" / "serving" / "client.py"), port]
            found = subprocess.run([*client, *OBS], capture_output=True, text=True, check=True)
            wrong = subprocess.run([*client, "1"], capture_output=True, text=True, check=False)
        finally:
            server.terminate()
    right = Policy.load(example_file()).act(np.array(OBS, np.float64), deterministic=True)
    np.testing.assert_allclose(numbers(found.stdout), right, atol=1e-5)
    assert "wrong shape" in wrong.stderr


def numbers(text: str) -> list[float]:
    return [float(number) for number in text.strip().strip("[]").split(",")]


def header() -> str:
    """Returns the folder that CMake is to look into, or skips."""
    given = os.environ.get("ONNXRUNTIME", "")
    system = [Path(p) for p in ("/usr/include", "/usr/local/include")]
    places = [Path(given) / "include"] if given else []
    places += [p / s for p in system for s in (".", "onnxruntime", "onnxruntime/core/session")]
    if not any((p / "onnxruntime_c_api.h").is_file() for p in places):
        pytest.skip(
            "there is no onnxruntime_c_api.h: Python's packages of ONNX Runtime have the library "
            "without its header. Set ONNXRUNTIME to an unpacked release of it"
        )
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}")
    return given


@pytest.mark.slow
def test_the_program_in_c_plus_plus_does_what_python_does(tmp_path: Path) -> None:
    given = header()
    for command in (
        ["cmake", "-S", str(ROOT / "examples" / "cpp"), "-B", ".", f"-DONNXRUNTIME={given}"],
        ["cmake", "--build", "."],
    ):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    act = [str(tmp_path / "act"), str(example_file())]
    policy = Policy.load(example_file())
    for noise in ("0.25", "-1.5"):
        run = subprocess.run([*act, *OBS, "--", noise], capture_output=True, text=True, check=True)
        action, times = run.stdout.splitlines()
        right = policy.act(np.array(OBS, np.float64), noise=[float(noise)])
        assert float(action) == pytest.approx(float(right[0]), abs=1e-6)
        assert times.startswith("p50 ")
    drawn = [
        subprocess.run([*act, *OBS], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert drawn[0].splitlines()[0] != drawn[1].splitlines()[0]
    for wrong in (OBS[:2], [*OBS, "1"], [*OBS, "--", "1", "2"]):
        run = subprocess.run([*act, *wrong], capture_output=True, text=True, check=False)
        assert run.returncode == 1
        assert run.stderr.startswith("error: ")
