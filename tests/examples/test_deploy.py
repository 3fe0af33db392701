"""What the page on deployment names: the client, the control loop, the program in C++."""

import http.client
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from examples.serving import client
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


class Full(BaseHTTPRequestHandler):
    """A server with too many connections, as uvicorn says it, and then with too many requests."""

    answers: ClassVar[list[tuple[int, bytes, dict[str, str]]]] = []

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        status, body, headers = self.answers.pop(0)
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def test_the_client_asks_again_where_the_server_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    Full.answers[:] = [
        (503, b"Service Unavailable", {"content-type": "text/plain", "connection": "close"}),
        (503, b'{"error": {"type": "OverloadedError", "message": ""}}', {"retry-after": "7"}),
        (200, b'{"action": [0.5]}', {}),
    ]
    waits: list[float] = []
    monkeypatch.setattr(client.time, "sleep", waits.append)
    with ThreadingHTTPServer(("127.0.0.1", 0), Full) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        link = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        try:
            assert client.act(link, [0.0]) == [0.5]
        finally:
            link.close()
            server.shutdown()
            thread.join()
    assert waits == [1.0, 7.0]


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
