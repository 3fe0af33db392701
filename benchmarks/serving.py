"""A policy server under load: clients that each check their own answers, memory, refusals, as JSON.

    python -m benchmarks.serving [--clients 32] [--minutes 10] [--kill]

Clients are threads of several processes with one connection each; each asks as fast as it is
answered, with seeds of its own, and compares every answer with what the policy gives by itself.
``--kill`` ends the server by SIGKILL every 30 seconds and starts it again.
"""

import argparse
import http.client
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pages import RESULTS, ROOT, write
from gtp_runtime import Policy, example_file

RESULT = RESULTS / "serving.json"
HEADERS = {"content-type": "application/json"}
PROCESSES = 4


def start(port: int) -> tuple[subprocess.Popen[str], int]:
    """Starts a server and returns it with its port.

    Args:
        port: Where; 0 for a free one.
    """
    command = [sys.executable, "-m", "gtp_runtime", "serve", str(example_file())]
    path = os.pathsep.join([str(ROOT / "runtime"), os.environ.get("PYTHONPATH", "")])
    server = subprocess.Popen(
        [*command, "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert server.stdout is not None
    return server, int(server.stdout.readline().rpartition(":")[2])


def client(port: int, seed: int, seconds: float) -> dict[str, int]:
    """Asks until the time is over.

    Args:
        port: The server's.
        seed: The client's own.
        seconds: For how long.

    Returns:
        Counts: right and wrong answers, refusals, broken connections.
    """
    policy, rng = Policy.load(example_file()), np.random.default_rng(seed)
    counts = {"right": 0, "wrong": 0, "refused": 0, "broken": 0}
    end, link = time.monotonic() + seconds, None
    while time.monotonic() < end:
        obs, own = rng.normal(size=(int(rng.integers(1, 4)), 3)), int(rng.integers(2**62))
        body = json.dumps({"obs": obs.tolist(), "seed": own, "id": own})
        try:
            link = link or http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            link.request("POST", "/act", body, HEADERS)
            response = link.getresponse()
            answer = json.loads(response.read())
        except (OSError, ValueError, http.client.HTTPException):
            counts["broken"] += 1
            if link is not None:
                link.close()
            link = None
            time.sleep(0.05)
            continue
        if response.status == 503:
            counts["refused"] += 1
            time.sleep(0.01)
        elif answer.get("id") == own and np.allclose(
            answer["action"], policy.act(obs, seed=own), atol=1e-5
        ):
            counts["right"] += 1
        else:
            counts["wrong"] += 1
    return counts


def several(arguments: tuple[int, list[int], float]) -> list[dict[str, int]]:
    """Runs clients in threads.

    Args:
        arguments: Port, seeds, seconds.
    """
    port, seeds, seconds = arguments
    with ThreadPoolExecutor(len(seeds)) as pool:
        return list(pool.map(lambda s: client(port, s, seconds), seeds))


def run(clients: int, seconds: float, kill: bool) -> dict[str, Any]:
    """Loads a server, looks at its memory every second, and returns what happened.

    Args:
        clients: How many at once.
        seconds: For how long.
        kill: Whether the server is killed and started again.
    """
    server, port = start(0)
    memory: list[int] = []
    over, restarts = threading.Event(), 0

    def watch() -> None:
        nonlocal server, restarts
        born = time.monotonic()
        while not over.wait(1.0):
            pages = Path(f"/proc/{server.pid}/statm").read_text(encoding="ascii").split()[1]
            memory.append(int(pages) * os.sysconf("SC_PAGE_SIZE"))
            if kill and time.monotonic() - born > 30:
                server.kill()
                server.wait()
                server, _ = start(port)
                born, restarts = time.monotonic(), restarts + 1

    watcher = threading.Thread(target=watch)
    watcher.start()
    seeds = [list(range(i, clients, PROCESSES)) for i in range(min(PROCESSES, clients))]
    with multiprocessing.get_context("spawn").Pool(len(seeds)) as pool:
        found = [c for part in pool.map(several, [(port, s, seconds) for s in seeds]) for c in part]
    over.set()
    watcher.join()
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    link.request("GET", "/metrics")
    metrics = json.loads(link.getresponse().read())
    link.close()
    server.terminate()
    server.wait(20)
    counts = {key: sum(c[key] for c in found) for key in found[0]}
    early = memory[min(len(memory) - 1, 10)]
    return {
        "counts": counts,
        "answers_per_s": counts["right"] / seconds,
        "restarts": restarts,
        "memory_bytes": {"early": early, "last": memory[-1], "max": max(memory)},
        "metrics": metrics,
    }


def main() -> None:
    """Loads and writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    command = f"python -m benchmarks.serving --clients {args.clients} --minutes {args.minutes:g}"
    found = run(args.clients, args.minutes * 60, args.kill)
    print(json.dumps(found, indent=2))
    record = {"command": command + " --kill" * args.kill, "load": os.getloadavg()[0], **found}
    write(record, args.output)
    assert found["counts"]["wrong"] == 0


if __name__ == "__main__":
    main()
