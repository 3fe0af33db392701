"""A run that several processes share: what one alone does, and what happens if one is killed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from gtp_experiments import RunFolder, list_of_runs, processes, read_results, run
from gtp_experiments.cli import command_parser, configs_of, main
from gtp_experiments.records import Lines

pytestmark = pytest.mark.slow


def words(data: Path, out: Path, updates: int) -> list[str]:
    text = f"run --dataset {data} --updates {updates} --batch-size 16 --episodes 2 --out {out}"
    text += " --environment line_world:make --evaluate-every 20 --set actor.hidden=[16]"
    return [*text.split(), "--set", "critic.hidden=[16]"]


def command(data: Path, out: Path, updates: int, processes: int) -> list[str]:
    shared = ["--processes", str(processes)]
    return [sys.executable, "-m", "gtp_experiments", *words(data, out, updates), *shared]


def test_two_processes_do_the_run_of_one_and_resume_what_one_began(
    line_data: Path, tmp_path: Path
) -> None:
    (config,) = configs_of(command_parser().parse_args(words(line_data, tmp_path, 60)))
    alone, begun = tmp_path / "alone", tmp_path / "begun"
    assert run(config, alone) is not None
    calls = iter([False] * 29 + [True])  # one process does the first half
    assert run(config, begun, stop=lambda: next(calls)) is None
    result = subprocess.run(
        command(line_data, begun, 60, 2), capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("| gtp") == 1  # one of them reports
    assert "goes on from update 30" in result.stderr
    one, two = (read_results(folder)[0] for folder in (alone, begun))
    assert one.last is not None
    assert two.last is not None
    assert two.last.returns == pytest.approx(one.last.returns, rel=1e-3)
    assert [e.update for e in two.evaluations] == [20, 40, 60]
    last = [Lines(f / config.name / "metrics.jsonl").read()[-1] for f in (alone, begun)]
    assert last[1] == pytest.approx(last[0], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("victim", range(int(os.environ.get("GTP_KILLS", "1"))))
def test_when_one_is_killed_the_other_ends_and_the_run_goes_on_to_the_bit(
    line_data: Path, tmp_path: Path, victim: int
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    updates = 300
    process = subprocess.Popen(
        command(line_data, broken, updates, 2), stderr=subprocess.PIPE, text=True
    )
    (config,) = configs_of(command_parser().parse_args(words(line_data, broken, updates)))
    metrics = broken / config.name / "evaluations.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and len(Lines(metrics).read()) > 2 + victim % 10):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "gtp_experiments" in child.cmdline()]
    assert len(workers) == 2
    workers[victim % 2].send_signal(signal.SIGKILL)
    psutil.wait_procs(workers, timeout=60)
    assert not any(worker.is_running() for worker in workers)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert RunFolder.finished(broken, config) is None
    assert re.search(r"error: (A process of the run was killed|Process . of 2 has lost)", errors)
    assert "stopped" in list_of_runs(broken)
    # Shorter, with the checkpoint that is there: what two processes do that nobody killed.
    for folder in (whole, broken):
        done = subprocess.run(
            command(line_data, folder, updates, 2), capture_output=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr.decode()[-3000:]
    one, two = (read_results(folder)[0] for folder in (whole, broken))
    assert one.evaluations == two.evaluations
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert (whole / config.name / name).read_bytes() == (
            broken / config.name / name
        ).read_bytes()


def test_a_process_of_a_shared_run_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with pytest.raises(SystemExit, match="3"):
        processes.end(3)
    assert not ended
    monkeypatch.setattr(processes, "together", lambda: True)
    with pytest.raises(SystemExit):  # where the stand-in for _exit comes back
        processes.end(3)
    assert ended == [3]


def test_processes_do_not_go_with_jobs(
    line_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words(line_data, tmp_path, 5), "--processes", "2", "--jobs", "2"]) == 2
    assert "`processes` is out of range" in capsys.readouterr().err
    assert main([*words(line_data, tmp_path, 5), "--processes", "0"]) == 2
