"""Folders of runs from others: nothing in them is imported, followed or believed unread."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from gtp_experiments import (
    EvaluationConfig,
    ExperimentError,
    RunConfig,
    RunFolder,
    reevaluate,
    run,
)
from gtp_experiments.cli import main
from gtp_experiments.listing import list_of_runs, shown
from gtp_policy.errors import GTPError
from tests.reliability.mutations import peak_memory

Make = Callable[..., RunConfig]


@pytest.fixture
def finished(make_config: Make, tmp_path: Path) -> Path:
    """A run that has come to its end."""
    config = make_config(updates=5)
    run(config, tmp_path / "runs")
    return tmp_path / "runs" / config.name


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    document = json.loads(path.read_text())
    path.write_text(json.dumps(change(document) or document))


@pytest.mark.parametrize("name", ["canary:make", "canary:Canary-v0", "os:abort", "Canary-v0", ""])
def test_no_file_names_what_is_imported(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    mark = finished / "mark"
    (finished / "canary.py").write_text(f"open({str(mark)!r}, 'w')")
    monkeypatch.syspath_prepend(finished)
    edit(finished / "result.json", lambda d: d["config"]["evaluation"].update(environment=name))
    with pytest.raises(ExperimentError, match="not registered"):
        reevaluate(finished, EvaluationConfig(steps=1, episodes=1))
    assert main(["evaluate", str(finished), "--steps", "1"]) == 2
    assert "--environment" in capsys.readouterr().err
    assert not mark.exists()
    assert "canary" not in sys.modules


def test_the_caller_names_what_is_imported(finished: Path) -> None:
    evaluation = EvaluationConfig(environment="line_world:make", steps=1, episodes=1)
    assert reevaluate(finished, evaluation).evaluations
    # What gymnasium knows already may stand in a file; here it only does not fit the data.
    edit(
        finished / "result.json",
        lambda d: d["config"]["evaluation"].update(environment="Pendulum-v1"),
    )
    with pytest.raises(ExperimentError, match=r"Pendulum-v1 do not fit"):
        reevaluate(finished, EvaluationConfig(steps=2, episodes=1))


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations.jsonl", "checkpoints", "run.json"])
def test_no_link_in_a_folder_is_followed(make_config: Make, tmp_path: Path, name: str) -> None:
    config, target = make_config(updates=5), tmp_path / "target"
    folder = tmp_path / "runs" / config.name
    folder.mkdir(parents=True)
    (folder / name).symlink_to(target)
    with pytest.raises(ExperimentError, match="is a link"):
        run(config, tmp_path / "runs")
    assert not target.exists()
    (folder / name).unlink()
    target.mkdir()
    folder.rmdir()
    folder.symlink_to(target)
    with pytest.raises(ExperimentError, match="is a link"):
        run(config, tmp_path / "runs")
    assert not list(target.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="the lock is one of fcntl")
def test_a_look_at_a_folder_is_no_run_in_it(make_config: Make, tmp_path: Path) -> None:
    """A run that started while `list` looked at its folder ended with an error."""
    import fcntl

    folder = RunFolder(tmp_path, make_config(updates=5), "")
    look = os.open(folder.path / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(look, fcntl.LOCK_SH | fcntl.LOCK_NB)
    over = threading.Timer(0.1, os.close, [look])
    over.start()
    with folder.locked():
        over.join()


def test_one_process_at_a_time(make_config: Make, tmp_path: Path) -> None:
    config, refused = make_config(updates=5), []

    def stop() -> bool:
        if not refused:
            try:
                run(config, tmp_path)
            except ExperimentError as error:
                refused.append(str(error))
        return False

    run(config, tmp_path, stop=stop)
    assert "in use" in refused[0]
    lines = (tmp_path / config.name / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in lines] == [5]


def test_a_lock_ends_with_its_process(make_config: Make, tmp_path: Path) -> None:
    config = make_config(updates=5)
    (tmp_path / config.name).mkdir()
    lock = tmp_path / config.name / ".lock"
    code = f"import filelock, os; filelock.FileLock({str(lock)!r}).acquire(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert run(config, tmp_path) is not None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("result.json", lambda d: [1]),
        ("result.json", lambda d: d.update(config={})),
        ("result.json", lambda d: d["config"].update(device="cuda:99")),
        ("result.json", lambda d: d["config"].update(dataset="nowhere.hdf5")),
        ("result.json", lambda d: d["config"].update(best_episodes=0.0)),
        ("result.json", lambda d: d["config"]["policy"]["actor"].update(hidden=[])),
        ("result.json", lambda d: d.update(evaluations=[{}])),
        ("result.json", lambda d: d.update(reference={"min": 1})),
        ("run.json", lambda d: [1]),
        ("run.json", lambda d: "text"),
        ("run.json", lambda d: d.update(config=3)),
    ],
)
def test_a_record_that_was_tampered_with_is_a_typed_error(
    finished: Path, make_config: Make, name: str, change: Any
) -> None:
    edit(finished / name, change)
    evaluation = EvaluationConfig(environment="line_world:make", episodes=1)
    use = {
        "run.json": lambda: run(make_config(updates=5), finished.parent),
        "result.json": lambda: reevaluate(finished, evaluation),
    }
    with pytest.raises(GTPError):
        use[name]()


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"[" * 10**6,
        b"{}",
        b"[1]",
        b'{"update": "1"}\n{}',
        b'{"update": 1}\n{"update": 2}',
    ],
)
def test_records_that_were_tampered_with_are_a_typed_error(
    make_config: Make, tmp_path: Path, content: bytes
) -> None:
    config = make_config(updates=20)
    assert run(config, tmp_path, stop=lambda: True) is None
    folder = tmp_path / config.name
    (folder / "evaluations.jsonl").write_bytes(content + b"\n" + content)
    with pytest.raises(GTPError):
        run(config, tmp_path)


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_a_look_at_runs_changes_nothing(finished: Path, tmp_path: Path, make: Any) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("a file of the user's")
    (finished / "result.json").unlink()
    (finished / ".lock").unlink(missing_ok=True)
    make(precious, finished / ".lock")
    list_of_runs(finished.parent)
    shown(finished)
    assert precious.read_text() == "a file of the user's"


def test_a_list_follows_no_link_to_checkpoints(finished: Path, tmp_path: Path) -> None:
    (finished / "result.json").unlink()
    (finished / "checkpoints").rename(tmp_path / "elsewhere")
    (finished / "checkpoints").symlink_to(tmp_path / "elsewhere")
    assert "stopped, 0 of" in shown(finished)


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/*", "checkpoints/step_*/*"])
def test_no_checkpoint_is_read_from_elsewhere(finished: Path, tmp_path: Path, name: str) -> None:
    path = sorted(finished.glob(name))[-1]
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExperimentError, match="is a link"):
        reevaluate(finished, EvaluationConfig(steps=1, episodes=1))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("run.json", lambda d: d["config"].update(updates="many")),
        ("run.json", lambda d: d["config"].update(updates=None)),
        ("evaluations.jsonl", lambda d: d.pop("returns")),
        ("evaluations.jsonl", lambda d: d.update(returns=[])),
        ("evaluations.jsonl", lambda d: d.update(returns=["a"])),
        ("evaluations.jsonl", lambda d: d.update(lengths=[])),
        ("evaluations.jsonl", lambda d: d.update(success=[True] * 99)),
    ],
)
def test_a_run_that_was_tampered_with_is_not_shown(finished: Path, name: str, change: Any) -> None:
    lines = finished / "evaluations.jsonl"
    lines.write_text(lines.read_text().splitlines()[0])
    edit(finished / name, lambda record: change(record) and None)
    with pytest.raises(ExperimentError, match=r"got .* expected"):
        shown(finished)


def test_a_terminal_obeys_no_record_and_no_name(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = finished.rename(finished.with_name("run\x1b[2J\udcff"))
    evil = "\x1b]0;\ud800\n"
    edit(finished / "run.json", lambda d: d["config"].update(method=evil))
    edit(finished / "result.json", lambda d: d.update(message=evil, method=evil, data_note=evil))
    for words in (["list", finished.parent], ["show", finished], ["table", finished.parent]):
        assert main([str(word) for word in words]) == 0
        said = capsys.readouterr().out
        said.encode()
        assert r"\x1b" in said
        assert "\x1b" not in said


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda c: c["policy"]["actor"].update(history=4000),
            "got actor.history=4000, expected actor.history=1. Restore",
        ),
        (
            lambda c: c["policy"]["actor"].update(chunk=1000),
            "got actor.chunk=1000, expected actor.chunk=1. Restore",
        ),
        (lambda c: c["policy"]["weighter"].update(eta=0.5), "got weighter.eta=0.5, expected"),
        (
            lambda c: c["policy"]["learner"].update(ema_rate=None, max_grad_norm=1.0),
            "got learner.max_grad_norm=1.0, expected learner.max_grad_norm=None. Restore",
        ),
        (lambda c: c.update(seed=1), "got learner.seed=1, expected learner.seed=0. Restore"),
        (lambda c: c.update(device="meta"), "wrong `device`"),
    ],
    ids=["history", "chunk", "eta", "norm", "seed", "device"],
)
def test_a_record_and_its_checkpoint_must_agree(finished: Path, change: Any, match: str) -> None:
    edit(finished / "result.json", lambda d: change(d["config"]))
    evaluation = EvaluationConfig(environment="line_world:make", episodes=1)
    with peak_memory() as peak, pytest.raises(ExperimentError, match=match):
        reevaluate(finished, evaluation)
    assert peak[0] < 2**26


def test_checkpoints_of_another_run_are_refused(
    finished: Path, make_config: Make, tmp_path: Path
) -> None:
    """Also where that has a policy of the same choices, and learned otherwise."""
    other, evaluation = make_config(updates=5, batch_size=8), EvaluationConfig(episodes=1)
    evaluation = evaluation.replace(environment="line_world:make")
    run(other, tmp_path / "runs")
    moved = finished.rename(tmp_path / "moved")
    assert reevaluate(moved, evaluation).evaluations  # the record says what it was called
    folder = tmp_path / "runs" / other.name
    shutil.rmtree(folder / "checkpoints")
    shutil.copytree(moved / "checkpoints", folder / "checkpoints")
    match = f"belongs to another run: got a checkpoint of '{finished.name}', expected one of"
    with pytest.raises(ExperimentError, match=f"{match} '{other.name}'"):
        reevaluate(folder, evaluation)
    (folder / "result.json").unlink()
    with pytest.raises(ExperimentError, match=f"{match} '{other.name}'"):
        run(other, tmp_path / "runs")


def test_returns_of_a_record_are_summed_no_further_than_there_are_steps(finished: Path) -> None:
    edit(finished / "result.json", lambda d: d["config"].update(n_step=10**12))
    evaluation = EvaluationConfig(environment="line_world:make", episodes=1)
    assert reevaluate(finished, evaluation).evaluations


@pytest.mark.parametrize("field", ["dataset", "device", "environment", "method", "data_note"])
def test_half_a_character_is_told_by_every_door(
    finished: Path, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a record of somebody else's, or a name of a file that is not UTF-8."""

    def change(record: Any) -> None:
        config = record["config"]
        (config["evaluation"] if field == "environment" else config)[field] = "x\ud800"

    edit(finished / "result.json", change)
    with pytest.raises(GTPError, match=field):
        reevaluate(finished, EvaluationConfig())
    words = ["run", "--dataset", "a/b-v0", "--updates", "1", "--out", str(finished)]
    option = f"--{field.replace('_', '-')}"
    assert main([*words, option, "x\udcff"]) == 2
    said = capsys.readouterr().err
    assert "UTF-8" in said or "unicode" in said  # ours, or pydantic's
    said.encode()


@pytest.mark.parametrize("kind", ["pipe", "folder", "long"])
def test_what_is_no_record_is_not_read(finished: Path, kind: str) -> None:
    path = finished / "result.json"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with open(path, "w") as file:
            file.truncate(2**30)
    with peak_memory() as peak, pytest.raises(GTPError):
        reevaluate(finished, EvaluationConfig())
    assert peak[0] < 2**26


def test_a_run_of_another_device_is_looked_at_on_this_one(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(finished / "result.json", lambda d: d["config"].update(device="cuda:99"))
    evaluate = ["evaluate", str(finished), "--steps", "1", "--episodes", "1"]
    evaluate += ["--environment", "line_world:make"]
    plot = ["plot", str(finished), "--out", str(finished.parent / "pictures")]
    for command in (evaluate, plot):
        assert main(command) == 2
        assert "cuda:99" in capsys.readouterr().err
        assert main([*command, "--device", "cpu"]) == 0
        assert capsys.readouterr().out


class Odd(gymnasium.Env[np.ndarray, np.ndarray]):
    """An environment that says something odd."""

    observation_space, action_space = Box(-np.inf, np.inf, (2,)), Box(-1.0, 1.0, (1,))

    def __init__(self, obs: float = 0.0, reward: Any = 1.0, success: Any = True) -> None:
        self._said = np.full(2, obs), reward, False, True, {"is_success": success}

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return self._said[0], {}

    def step(self, action: np.ndarray) -> Any:
        return self._said


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"obs": np.nan}, "an observation that is not finite"),
        ({"reward": np.nan}, "a `reward` that is not finite"),
        ({"reward": "much"}, "a `reward` that is no number"),
        ({"success": np.nan}, "a `success` that is not finite"),
        ({"reward": np.array([1.0])}, None),
    ],
)
def test_what_an_environment_says_is_looked_at(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: Any, message: Any
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "odd", lambda: Odd(**odd), raising=False)
    monkeypatch.setitem(sys.modules, "odd_worlds", sys.modules[__name__])
    config = make_config(updates=1, evaluation={"environment": "odd_worlds:odd"})
    if message is None:
        result = run(config, tmp_path)
        assert result is not None
        assert result.evaluations[0].returns[0] == 1.0
    else:
        with pytest.raises(ExperimentError, match=message):
            run(config, tmp_path)
