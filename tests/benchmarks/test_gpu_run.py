"""A run on a GPU: what one step does costs no other, and what is done is not repeated."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_steps, imports, processes
from benchmarks.pages import read, write

ROOT = Path(__file__).parents[2]
Work = Callable[[Sequence[str], Path, str, float, bool], str]


def fake_work(calls: list[list[str]], **ends: str) -> Work:
    """A process that does its steps, except those that end otherwise, and it with them."""

    def work(names: Sequence[str], folder: Path, device: str, left: float, quick: bool) -> str:
        calls.append(list(names))
        path = folder / "gpu.json"
        record = read(path)
        assert record is not None
        for name in names:
            if ends.get(name) == "not begun":
                break
            record["steps"][name] = {"status": ends.get(name, gpu.DONE)}
            if name in ends:
                break
            record[name] = {"of": name}
        write(record, path)
        return "ended with status 1"

    return work


def test_steps_go_on_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    ends = {"samplers": "failed: it", "tf32": "not finished", "speed": "not finished"}
    monkeypatch.setattr(gpu, "work", fake_work(calls, **ends, growth="not begun"))
    (tmp_path / "speed.json").write_text('{"update": 1}', encoding="utf-8")
    record = gpu.run(tmp_path, "cuda", seconds=1000)
    first, second, *others = calls
    assert first == list(gpu.GROUPS[0])
    assert second == first[first.index("samplers") + 1 :]
    assert [name for (name,) in others] == [name for group in gpu.GROUPS[1:] for name in group]
    assert record["left_out"] == [
        "samplers (failed: it)",
        "tf32 (not finished)",
        "speed (not finished)",
        "growth (not begun: its process ended with status 1)",
    ]
    assert record["speed"] == {"update": 1}  # as far as it got
    assert read(tmp_path / "gpu.json") == record

    del calls[:]
    monkeypatch.setattr(gpu, "work", fake_work(calls))
    record = gpu.run(tmp_path, "cuda", seconds=1000)
    assert calls == [["samplers", "tf32"], ["speed"], ["growth"]]  # not what is done
    assert record["left_out"] == []
    assert record["memory"] == {"of": "memory"}

    del calls[:]
    gpu.run(tmp_path, "cuda", seconds=1000, only=["memory", "actions"])
    assert calls == [["actions"], ["memory"]]  # whether it is done or not


def test_without_a_device_nothing_else_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(gpu, "work", fake_work(calls, environment="failed: no device"))
    record = gpu.run(tmp_path, "cuda", seconds=1000)
    assert len(calls) == 1
    assert "speed (not begun: the device did not answer)" in record["left_out"]


def test_no_step_is_begun_without_time_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "work", lambda *_: pytest.fail("begun"))
    record = gpu.run(tmp_path, "cuda", seconds=gpu.LEAST - 1)
    assert record["left_out"] == [f"{name} (not begun: no time was left)" for name in gpu.LIMITS]


def test_a_process_is_ended_when_the_time_is_over(tmp_path: Path) -> None:
    ended = gpu.work(["environment"], tmp_path, "cpu", left=0.1, quick=True)
    assert ended == "was ended: no time was left"


@pytest.fixture
def at(tmp_path: Path) -> gpu_steps.Setting:
    return gpu_steps.Setting(tmp_path, "cpu", quick=True)


def test_a_failed_step_is_noted_and_the_next_one_runs(
    at: gpu_steps.Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(at: gpu_steps.Setting) -> dict[str, Any]:
        raise ZeroDivisionError("a step's own")

    monkeypatch.setitem(gpu_steps.STEPS, "samplers", fail)
    monkeypatch.setitem(gpu_steps.STEPS, "actions", lambda at: {"x": 1.0})
    assert not gpu_steps.run("samplers", at)
    assert gpu_steps.run("actions", at)
    record = read(at.folder / "gpu.json")
    assert record is not None
    assert record["steps"]["samplers"]["status"] == 'failed: ZeroDivisionError("a step\'s own")'
    assert "in fail" in record["steps"]["samplers"]["trace"]
    assert str(ROOT) not in json.dumps(record)
    assert record["actions"] == {"x": 1.0}


def test_a_step_that_hangs_ends_its_process(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time; from benchmarks import gpu_steps as steps\n"
        "steps.LIMITS['actions'] = 1\n"
        "steps.STEPS['actions'] = lambda at: time.sleep(60)\n"
        "steps.run('actions', steps.Setting(pathlib.Path(sys.argv[1]), 'cpu', True))"
    )
    command = [sys.executable, "-c", code, tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Timeout" in result.stderr
    record = read(tmp_path / "gpu.json")
    assert record is not None
    assert record["steps"]["actions"]["status"] == "not finished: at most 1 s"


def test_replayed_graphs_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: calls.append(graph))
    with gpu_steps.replays() as seen:
        torch.cuda.CUDAGraph.replay("a graph")
    torch.cuda.CUDAGraph.replay("another")
    assert seen == ["a graph"]
    assert calls == ["a graph", "another"]


def test_processes_keep_the_callers_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_there.py").write_text("x = 3\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    assert imports.interpreter("-c", "import only_there; print(only_there.x)").stdout == "3\n"
    paths = processes.environment()["PYTHONPATH"].split(os.pathsep)
    assert paths == [str(ROOT), str(ROOT / "adapters"), str(tmp_path)]


def test_collecting_the_tests_on_a_gpu_imports_the_core_alone() -> None:
    """There, neither hosts nor file formats nor hypothesis have to be installed."""
    code = (
        "import sys, numpy, pytest, torch, gtp_policy\n"
        "def tops(): return {name.partition('.')[0] for name in sys.modules}\n"
        "before = tops()\n"
        "words = ['-c', '/dev/null', '--rootdir=.', '--import-mode=importlib', '--noconftest']\n"
        "words += ['-p', 'no:cacheprovider', '--collect-only', '-q', 'tests/test_gpu.py']\n"
        "status = pytest.main(words)\n"
        "print(int(status), *sorted(tops() - before - sys.stdlib_module_names))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=processes.environment() | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    status, *imported = result.stdout.splitlines()[-1].split()
    assert status == "0"
    assert set(imported) <= {"_pytest", "packaging", "pygments", "tests"}
