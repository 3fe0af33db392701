"""The server as clients meet it: another process, by HTTP and WebSocket, under load, killed."""

import gc
import http.client
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_writer import document, expected, policy_bytes

from gtp_runtime import Policy

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
msgpack = pytest.importorskip("msgpack", reason="the extra `serve` is not installed")
from websockets.exceptions import ConnectionClosed  # noqa: E402 - after what skips
from websockets.sync.client import connect  # noqa: E402

from gtp_runtime.serving.bodies import BodyError, parse  # noqa: E402 - after what skips
from gtp_runtime.serving.server import listen  # noqa: E402


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    kind = draw(st.sampled_from(["<f4", ">f8", "<f2", "|b1", "|u1", "<i8", ">i2"]))
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(kind)
    return np.asfortranarray(array) if draw(st.booleans()) else array


LONG = 60.0  # for what comes at once, however busy the machine is
JSON = {"content-type": "application/json"}
HEAD = b"POST /act HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
DICT = document(
    observation={
        "kind": "dict",
        "parts": [
            {"input": "obs.a", "key": "a", "shape": [2]},
            {"input": "obs.b", "key": "b", "shape": [1]},
        ],
        "history": 1,
    }
)


class Server:
    """A server process, and how to talk to it."""

    def __init__(self, path: Path, *options: str, port: int = 0) -> None:
        command = [sys.executable, "-m", "gtp_runtime", "serve", str(path), "--port", str(port)]
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert " at http://127.0.0.1:" in line, line
        self.port = int(line.rpartition(":")[2])

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONG)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read(), response.headers
        finally:
            connection.close()

    def act(self, **content: Any) -> tuple[int, dict[str, Any]]:
        status, body, _ = self.request("POST", "/act", json.dumps(content), JSON)
        return status, json.loads(body)

    def metrics(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.request("GET", "/metrics")[1])
        return found

    def wait_for_answers(self, number: int) -> None:
        wait_until(lambda: self.metrics()["answered"] >= number)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=LONG)

    def raw(self, data: bytes) -> bytes:
        """Sends bytes and returns everything that comes until the connection ends."""
        with self.connect() as link:
            link.sendall(data)
            found = b""
            try:
                while part := link.recv(65536):
                    found += part
            except (TimeoutError, ConnectionResetError):
                pass
            return found

    def memory(self) -> int:
        text = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii")
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(LONG)
        assert self.process.stdout is not None
        self.process.stdout.close()


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "policy.onnx"
    path.write_bytes(policy_bytes())
    return path


@pytest.fixture(scope="module")
def server(file: Path) -> Iterator[Server]:
    made = Server(file, "--body-seconds", "60", "--max-body", "20000", "--max-rows", "64")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def policy(file: Path) -> Policy:
    return Policy.load(file)


def test_json_is_answered_with_the_policys_action(server: Server, policy: Policy) -> None:
    obs = [[0.1, 0.2, 0.3], [1.0, -2.0, 3.0]]
    status, found = server.act(obs=obs, seed=3, id="mine")
    assert (status, found["id"]) == (200, "mine")
    np.testing.assert_allclose(found["action"], policy.act(obs, seed=3), atol=1e-6)
    _, found = server.act(obs=obs[0], deterministic=True)
    np.testing.assert_allclose(found["action"], policy.act(obs[0], deterministic=True), atol=1e-6)
    assert "id" not in found
    answers = [server.act(obs=obs[0])[1]["action"] for _ in range(2)]
    assert answers[0] != answers[1]


def test_msgpack_and_npy_are_answered_in_kind(server: Server, policy: Policy) -> None:
    obs = np.array([[0.1, 0.2, 0.3], [1.0, -2.0, 3.0]])
    right = policy.act(obs, seed=3)
    kind = {"content-type": "application/msgpack"}
    for array in (
        obs.tolist(),
        {"dtype": "float64", "shape": [2, 3], "data": obs.tobytes()},
    ):
        body = msgpack.packb({"obs": array, "seed": 3, "id": 7})
        status, found, headers = server.request("POST", "/act", body, kind)
        content = msgpack.unpackb(found)
        assert (status, headers["content-type"], content["id"]) == (200, kind["content-type"], 7)
        np.testing.assert_allclose(content["action"], right, atol=1e-6)
    for array in (obs, np.asfortranarray(obs), obs.astype(np.float32)):
        file = io.BytesIO()
        np.save(file, array)
        kind = {"content-type": "application/x-npy"}
        status, found, _ = server.request("POST", "/act?seed=3", file.getvalue(), kind)
        assert status == 200
        np.testing.assert_allclose(np.load(io.BytesIO(found)), right, atol=1e-6)


def test_a_word_among_numbers_takes_no_memory() -> None:
    # NumPy would give each of the 2,000 numbers room for 500,000 letters: four gigabytes.
    body = {"obs": ["a" * 500_000, *[1] * 2_000]}
    for inside in (body, {"obs": [[body["obs"]]]}, {"obs": [b"a" * 500_000, *[1] * 2_000]}):
        packed = msgpack.packb(inside)
        tracemalloc.start()
        with pytest.raises(BodyError, match="something else than numbers"):
            parse("application/msgpack", packed, {})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10 * len(packed)


def test_lists_are_read_as_numpy_reads_them() -> None:
    for lists in (
        [],
        [[], []],
        [1, 2.5],
        [True, 2],
        [[1, 2], [3, 4], [5, 6]],
        [[[1.0]], [[2**40]]],
        [True, False],
    ):
        found = parse("application/json", json.dumps({"obs": lists}).encode(), {}).obs
        np.testing.assert_array_equal(found, np.asarray(lists), strict=True)
    for lists, match in (
        ([[1], [2, 3]], "lists of 1 and 2 parts side by side"),
        ([1, [2]], "numbers and lists side by side"),
        ([[], 1], "numbers and lists side by side"),
        (json.loads("[" * 40 + "]" * 40), "more than 16 lists in each other"),
        ([2**70], "something else than numbers"),
    ):
        with pytest.raises(BodyError, match=match):
            parse("application/json", json.dumps({"obs": lists}).encode(), {})


def test_many_lists_keep_nobody_waiting() -> None:
    """Read list by list, they took several times as long as JSON's own reader.

    What is counted is calls, which a busy machine makes no more of. Garbage is collected later,
    since Hypothesis has functions called then.
    """
    body = b'{"obs":[' + b"[]," * 300_000 + b"[]]}"
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    gc.disable()
    sys.setprofile(count)
    try:
        request = parse("application/json", body, {})
    finally:
        sys.setprofile(None)
        gc.enable()
    assert request.obs.shape == (300_001, 0)
    assert calls < 1000
    many = {"obs": {str(i): [1] for i in range(5000)}}
    with pytest.raises(BodyError, match="5000 parts, expected fewer"):
        parse("application/json", json.dumps(many).encode(), {})


def test_requests_that_are_sent_ahead_wait_outside(file: Path) -> None:
    """A client that reads nothing had its requests in the memory of the server, all of them."""
    server = Server(file)
    try:
        with server.connect() as link:
            link.settimeout(1)
            ahead = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" * 1000
            before = server.memory()
            with pytest.raises(TimeoutError):  # the system's buffers are full
                link.sendall(ahead * 5000)
            assert server.memory() - before < 30e6
            assert server.act(obs=[1, 2, 3])[0] == 200
            # Whatever was sent is answered as soon as somebody reads it.
            found = b""
            while found.count(b"HTTP/1.1 200") < 2_000:
                found += link.recv(1 << 20)
    finally:
        server.stop()


def test_each_of_requests_sent_ahead_is_answered(server: Server, policy: Policy) -> None:
    """Also where the next one is not whole yet, at the edge of what is read ahead."""
    numbers = range(3000)
    bodies = [json.dumps({"obs": [i, 0, 0], "seed": i, "id": i}).encode() for i in numbers]
    head = b"POST /act HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
    with server.connect() as link, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(link.sendall, b"".join(head % len(b) + b for b in bodies))
        found = b""
        while found.count(b'"id":') < len(bodies):
            found += link.recv(1 << 20)
        sending.result()
    answers = re.findall(rb'{"action":(\[[^]]*\]),"id":([0-9]+)}', found)
    assert [int(number) for _, number in answers] == [*numbers]
    right = policy.act([2999, 0, 0], seed=2999)
    np.testing.assert_allclose(json.loads(answers[-1][0]), right, atol=1e-6)


def test_no_packed_message_is_taken(server: Server) -> None:
    """A kilobyte of them would be a megabyte, and hundreds of those wait in a small buffer."""
    with connect(f"ws://127.0.0.1:{server.port}/act", compression="deflate") as link:
        assert not link.protocol.extensions
        link.send(json.dumps({"obs": [1, 2, 3]}))
        assert "action" in json.loads(link.recv())


def test_messages_sent_ahead_keep_nobody_waiting(server: Server) -> None:
    wrong = b'{"obs":[' + b"[]," * 6000 + b"1]}"
    with connect(f"ws://127.0.0.1:{server.port}/act", max_queue=None) as link:
        for _ in range(300):
            link.send(wrong.decode())
        start = time.monotonic()
        assert server.request("GET", "/health")[0] == 200
        assert time.monotonic() - start < 5


def test_websockets_answer_in_order(server: Server, policy: Policy) -> None:
    with connect(f"ws://127.0.0.1:{server.port}/act") as link:
        for i in range(20):
            link.send(json.dumps({"obs": [i, 0, 0], "seed": i, "id": i}))
        for i in range(20):
            found = json.loads(link.recv())
            assert found["id"] == i
            np.testing.assert_allclose(found["action"], policy.act([i, 0, 0], seed=i), atol=1e-6)
        link.send(msgpack.packb({"obs": [1, 2, 3], "seed": 5}))
        answer = link.recv()
        assert isinstance(answer, bytes)
        np.testing.assert_allclose(
            msgpack.unpackb(answer)["action"], policy.act([1, 2, 3], seed=5), atol=1e-6
        )
        link.send("{")
        assert json.loads(link.recv())["error"]["type"] == "BodyError"
        link.send(json.dumps({"obs": [1, 2, 3]}))
        assert "action" in json.loads(link.recv())  # the connection goes on


def test_a_message_that_is_too_large_ends_its_connection_alone(server: Server) -> None:
    with connect(f"ws://127.0.0.1:{server.port}/act") as link:
        link.send("x" * 30_000)
        with pytest.raises(ConnectionClosed) as caught:
            link.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009
    assert server.act(obs=[1, 2, 3])[0] == 200


def test_health_metadata_and_metrics(server: Server, policy: Policy) -> None:
    assert json.loads(server.request("GET", "/health")[1]) == {"status": "ok"}
    about = json.loads(server.request("GET", "/metadata")[1])
    assert about["policy"] == policy.document.content
    assert about["backend"] == "onnxruntime"
    before = server.metrics()
    server.act(obs=[[1, 2, 3]] * 5)
    server.act(obs=[1, 2])
    after = server.metrics()
    assert after["answered"] - before["answered"] == 1
    assert after["rows"] - before["rows"] == 5
    assert after["failed"] - before["failed"] == 1
    assert (
        0 < after["latency_ms"]["p50"] <= after["latency_ms"]["p99"] <= after["latency_ms"]["max"]
    )


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"", 400, "BodyError"),
        (b"{", 400, "BodyError"),
        (b"\xff\xfe", 400, "BodyError"),
        (b"[1, 2, 3]", 400, "BodyError"),
        (b"[" * 15_000, 400, "BodyError"),
        (b'{"obs": ' + b"[" * 900 + b"]" * 900 + b"}", 400, "BodyError"),
        (b"{}", 400, "BodyError"),
        (b'{"obs": [1, 2, 3], "steps": 100}', 400, "BodyError"),
        (b'{"obs": "abc"}', 400, "BodyError"),
        (b'{"obs": null}', 400, "BodyError"),
        (b'{"obs": ["a", 1, 2]}', 400, "BodyError"),
        (b'{"obs": [[1], [2, 3]]}', 400, "BodyError"),
        (b'{"obs": [1, 2, 3], "seed": -1}', 400, "BodyError"),
        (b'{"obs": [1, 2, 3], "seed": true}', 400, "BodyError"),
        (b'{"obs": [1, 2, 3], "deterministic": 1}', 400, "BodyError"),
        (b'{"obs": [1, 2, 3], "id": []}', 400, "BodyError"),
        (b'{"obs": [1, 2, 3], "deterministic": true, "seed": 1}', 422, "NoiseError"),
        (b'{"obs": [1, 2]}', 422, "ObservationError"),
        (b'{"obs": {"a": 1}}', 422, "ObservationError"),
        (b'{"obs": ' + b'{"a": ' * 900 + b"1" + b"}" * 900 + b"}", 400, "BodyError"),
        (b'{"obs": [NaN, 0, 0]}', 422, "ObservationError"),
        (b'{"obs": [1e999, 0, 0]}', 422, "ObservationError"),
        (b'{"obs": [1' + b"0" * 400 + b", 0, 0]}", 400, "BodyError"),
        (json.dumps({"obs": [[0, 0, 0]] * 65}).encode(), 413, "TooManyRowsError"),
        (b" " * 20_001, 413, "BodyTooLargeError"),
    ],
)
def test_a_wrong_body_is_answered_by_type(
    server: Server, body: bytes, status: int, kind: str
) -> None:
    found, answer, _ = server.request("POST", "/act", body, JSON)
    assert (found, json.loads(answer)["error"]["type"]) == (status, kind)
    assert len(answer) < 1000


@pytest.mark.parametrize(
    "obs",
    [
        {"dtype": "object", "shape": [3], "data": bytes(24)},
        {"dtype": "float32", "shape": [-3], "data": bytes(12)},
        {"dtype": "float32", "shape": [2**40], "data": bytes(12)},
        {"dtype": "float32", "shape": [3], "data": bytes(11)},
        {"dtype": "float32", "shape": [0, 2**62, 2**62], "data": b""},
        {"dtype": "float32", "shape": [0, 2**63], "data": b""},
        b"abc",
        {"obs": {"dtype": "|O", "shape": [1], "data": b""}},
        msgpack.ExtType(5, b"x"),
        msgpack.Timestamp(1),
    ],
)
def test_a_wrong_msgpack_array_is_refused(server: Server, obs: Any) -> None:
    body = msgpack.packb({"obs": obs})
    status, answer, _ = server.request(
        "POST", "/act", body, {"content-type": "application/msgpack"}
    )
    assert status in (400, 422)
    assert "error" in msgpack.unpackb(answer)


def npy(header: str) -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x93NUMPY",
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}") + bytes(24),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,)}") + bytes(24),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-3,)}") + bytes(24),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': 3}") + bytes(24),
        npy("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (3,)}") + bytes(24),
        npy("__import__('os').abort()") + bytes(24),
        npy("(" * 100),
        npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': (0, {10**17}, {10**17})}}"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (3,)}") + bytes(23),
    ],
)
def test_a_wrong_npy_is_refused(server: Server, body: bytes) -> None:
    kind = {"content-type": "application/x-npy"}
    status, answer, _ = server.request("POST", "/act", body, kind)
    assert (status, json.loads(answer)["error"]["type"]) == (400, "BodyError")


def test_what_else_is_wrong_is_answered_by_type(server: Server) -> None:
    def kind(status: int, answer: bytes, _: Any) -> tuple[int, str]:
        return status, json.loads(answer)["error"]["type"]

    assert kind(*server.request("GET", "/nothing")) == (404, "NotFound")
    assert kind(*server.request("GET", "/act")) == (405, "MethodNotAllowed")
    text = {"content-type": "text/plain"}
    assert kind(*server.request("POST", "/act", b"{}", text)) == (415, "ContentTypeError")
    status, _, _ = server.request("GET", "/health", headers={"host": "evil.example"})
    assert status == 400  # a page in a browser that calls itself by this machine's address


def test_a_huge_body_is_refused_before_it_is_read(server: Server) -> None:
    before = server.memory()
    answer = server.raw(HEAD + b"content-length: 100000000000\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"BodyTooLargeError" in answer
    chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    answer = server.raw(HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk * 6)
    assert b"BodyTooLargeError" in answer
    answer = server.raw(b"GET /health HTTP/1.1\r\nx: " + b"a" * 200_000)
    assert answer.startswith(b"HTTP/1.1 4")
    assert server.memory() - before < 20e6


def test_a_slow_body_is_given_up(file: Path) -> None:
    server = Server(file, "--body-seconds", "0.5")
    try:
        start = time.perf_counter()
        answer = server.raw(HEAD + b"content-length: 100\r\n\r\n{")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"SlowBodyError" in answer
        assert time.perf_counter() - start > 0.4
    finally:
        server.stop()


def test_connections_beyond_the_limit_are_refused(file: Path) -> None:
    server = Server(file, "--max-connections", "2")
    links = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=LONG) for _ in range(2)]
    try:
        for link in links:  # both of them stay open
            link.request("GET", "/health")
            assert link.getresponse().read() == b'{"status":"ok"}'
        assert server.request("GET", "/health")[:2] == (503, b"Service Unavailable")
        links[0].close()
        wait_until(lambda: server.request("GET", "/health")[0] == 200)
    finally:
        for link in links:
            link.close()
        server.stop()


@pytest.mark.slow
def test_a_request_that_never_begins_is_given_up(server: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(server.raw, [b"", b"POST /act HTTP/1.1\r\nhost: x"]))
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"SlowRequestError" in answer


@pytest.mark.slow
@pytest.mark.parametrize(
    "after", [b"POST /act HTTP/1.1\r\nhost: x", b""], ids=["a later request", "a body unread"]
)
def test_what_drips_behind_an_answer_is_given_up(server: Server, after: bytes) -> None:
    length = b"" if after else b"content-length: 1000\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=LONG) as link:
        link.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + length + b"\r\n")
        answer = b""
        while b'"ok"}' not in answer:
            answer += link.recv(1000)
        link.sendall(after)
        link.settimeout(1)
        answer, start = b"", time.monotonic()
        while b"}" not in answer:
            assert time.monotonic() - start < 30
            try:
                link.sendall(b"a")  # each byte would start uvicorn's own clock anew
                answer += link.recv(1000)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_dict_observations_are_served(tmp_path: Path) -> None:
    path = tmp_path / "dict.onnx"
    path.write_bytes(policy_bytes(DICT))
    server = Server(path)
    try:
        a, b = np.array([[0.1, 0.2]]), np.array([[0.3]])
        policy = Policy.load(path)
        noise = policy.draw_noise(policy.check({"a": a, "b": b})[0], deterministic=True)
        right = expected(DICT, [a, b], noise)
        obs = {"a": a.tolist(), "b": b.tolist()}
        status, found = server.act(obs=obs, deterministic=True)
        assert status == 200
        np.testing.assert_allclose(found["action"], right, atol=1e-6)
        packed = {
            k: {"dtype": "float64", "shape": list(v.shape), "data": v.tobytes()}
            for k, v in (("a", a), ("b", b))
        }
        body = msgpack.packb({"obs": packed, "deterministic": True})
        _, answer, _ = server.request("POST", "/act", body, {"content-type": "application/msgpack"})
        np.testing.assert_allclose(msgpack.unpackb(answer)["action"], right, atol=1e-6)
    finally:
        server.stop()


def client(
    port: int, seed: int, policy: Policy, more: Callable[[int], bool] = lambda i: i < 40
) -> dict[str, int]:
    """Asks as long as it is to, checks each answer to be its own, and counts what happened."""
    rng, counts = random.Random(seed), {"right": 0, "wrong": 0, "refused": 0, "broken": 0}
    link: http.client.HTTPConnection | None = None
    i = 0
    while more(i):
        i += 1
        obs = [[rng.gauss(0, 1) for _ in range(3)] for _ in range(rng.choice([1, 1, 1, 5]))]
        body = json.dumps({"obs": obs, "seed": seed * 10**6 + i, "id": f"{seed}-{i}"})
        try:
            link = link or http.client.HTTPConnection("127.0.0.1", port, timeout=LONG)
            link.request("POST", "/act", body, JSON)
            response = link.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            counts["broken"] += 1
            if link is not None:
                link.close()
            link = None
            time.sleep(0.05)
            continue
        if response.status == 503:
            counts["refused"] += 1
            assert answer["error"]["type"] == "OverloadedError"
            time.sleep(0.01)
            continue
        right = policy.act(obs, seed=seed * 10**6 + i)
        own = answer.get("id") == f"{seed}-{i}" and np.allclose(answer["action"], right, atol=1e-5)
        counts["right" if own else "wrong"] += 1
    if link is not None:
        link.close()
    return counts


def crowd(clients: int, one: Callable[[int], dict[str, int]]) -> dict[str, int]:
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(one, range(clients)))
    return {key: sum(f[key] for f in found) for key in found[0]}


@pytest.mark.slow
def test_answers_do_not_wait_for_the_clients_word() -> None:
    """Two packets on a connection that is kept took 44 ms, of which the policy took one."""
    with listen("127.0.0.1", 0) as listener:
        with socket.create_connection(listener.getsockname()):
            served, _ = listener.accept()
            with served:
                assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_each_of_32_clients_gets_its_own_answers(file: Path, policy: Policy) -> None:
    server = Server(file)
    try:
        crowd(8, lambda c: client(server.port, 100 + c, policy))
        before = server.memory()
        counts = crowd(32, lambda c: client(server.port, c, policy))
        metrics = server.metrics()
        assert counts["wrong"] == counts["broken"] == 0
        assert counts["right"] == 32 * 40
        assert metrics["batches"] < metrics["answered"]  # some were computed together
        assert server.memory() - before < 30e6
    finally:
        server.stop()


@pytest.mark.slow
def test_a_full_queue_is_refused_clearly(tmp_path: Path) -> None:
    content = document(candidates=1)
    path = tmp_path / "wide.onnx"
    path.write_bytes(policy_bytes(content))
    policy = Policy.load(path)
    server = Server(path, "--max-waiting", "1")
    try:
        counts = crowd(32, lambda c: client(server.port, c, policy))
        assert counts["wrong"] == counts["broken"] == 0
        assert counts["right"] > 0
        assert counts["refused"] == server.metrics()["refused"] > 0
    finally:
        server.stop()


@pytest.mark.slow
def test_killed_and_started_again_under_load_loses_only_what_was_under_way(
    file: Path, policy: Policy
) -> None:
    server = Server(file)
    port, clients, over = server.port, 8, threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            crowd, clients, lambda c: client(port, c, policy, lambda i: not over.is_set())
        )
        try:
            for kill in (True, True, False):
                server.wait_for_answers(20)
                if kill:
                    server.process.kill()
                    server.process.wait()
                    assert server.process.stdout is not None
                    server.process.stdout.close()
                    server = Server(file, port=port)
        finally:
            over.set()
        counts = running.result()
    server.stop()
    assert counts["wrong"] == 0
    assert counts["right"] >= 60 - 3 * clients  # what was under way at the end is not counted
    assert counts["broken"] > 0  # it was killed at work


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_answers_what_is_under_way(file: Path, policy: Policy, number: int) -> None:
    server = Server(file, "--body-seconds", "60")

    def listens() -> bool:
        try:
            server.connect().close()
        except OSError:
            return False
        return True

    body = json.dumps({"obs": [1, 2, 3], "seed": 1}).encode()
    with server.connect() as link:
        link.sendall(HEAD + f"expect: 100-continue\r\ncontent-length: {len(body)}\r\n\r\n".encode())
        # It waits for the body, and then has seen that it is to stop.
        assert link.recv(65536).startswith(b"HTTP/1.1 100 ")
        server.process.send_signal(number)
        wait_until(lambda: not listens())
        assert server.process.poll() is None
        link.sendall(body)
        answer = b""
        while part := link.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200 ")
    found = json.loads(answer.rpartition(b"\r\n\r\n")[2])
    np.testing.assert_allclose(found["action"], policy.act([1, 2, 3], seed=1), atol=1e-6)
    assert server.process.wait(LONG) == 0
    server.stop()


def test_an_address_that_is_taken_is_an_error(server: Server, file: Path) -> None:
    command = [sys.executable, "-m", "gtp_runtime", "serve", str(file), "--port", str(server.port)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 1
    assert "error: " in run.stderr
    assert "Traceback" not in run.stderr


@given(
    st.sampled_from([JSON["content-type"], "application/msgpack", "application/x-npy"]),
    st.binary(max_size=80),
)
def test_any_bytes_are_a_request_or_a_typed_error(kind: str, body: bytes) -> None:
    good = {
        "application/json": b'{"obs": [1, 2, 3]}',
        "application/msgpack": msgpack.packb({"obs": [1, 2, 3]}),
        "application/x-npy": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (3,)}")
        + bytes(24),
    }[kind]
    for data in (body, good + body, good[: len(body)] + body, good.replace(b"1", body[:2])):
        try:
            parse(kind, data, {})
        except BodyError:
            continue


@given(arrays())
def test_every_array_that_numpy_saves_is_read(array: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, array)
    found = parse("application/x-npy", file.getvalue(), {}).obs
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, array)


def test_threads_end_with_the_tests() -> None:
    assert not [t for t in threading.enumerate() if t.name.startswith("gtp-serve")]
