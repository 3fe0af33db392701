"""Sweeps: every trial once, whatever ends; draws that do not depend on workers; what is refused."""

import contextlib
import importlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import optuna
import pytest
from filelock import FileLock
from pydantic import ValidationError

from gtp_experiments import (
    ExperimentError,
    Range,
    RunConfig,
    RunFolder,
    SweepConfig,
    list_of_runs,
    load_data,
    outcome,
    run,
    submit,
    sweep,
)
from gtp_experiments.cli import main
from gtp_experiments.sweep import _draw, _Pruner, _trial, _values, open_study, read_space

Make = Callable[..., RunConfig]
SPACE = {"weighter.eta": {"low": 0.5, "high": 3.0}, "batch_size": [8, 16]}
SPEC = json.dumps(SPACE)


def search(trials: int, sampler: str = "random", **more: object) -> SweepConfig:
    fields = {"space": SPACE, "trials": trials, "sampler": sampler, "prune": False}
    return SweepConfig.model_validate({**fields, **more})


def params(study: optuna.Study, *states: str) -> list[tuple[float, int]]:
    # By the values that were dealt: a worker killed between being dealt them and using them
    # leaves a failed trial with no parameters of its own.
    names = states or ("COMPLETE",)
    dealt = [_values(t) for t in study.trials if t.state.name in names]
    return [(values["weighter.eta"], values["batch_size"]) for values in dealt]


def draws(config: SweepConfig) -> set[tuple[float, int]]:
    """What the draws of a search are, one after the other, without running anything."""
    trials: list[optuna.trial.FrozenTrial] = []
    for _ in range(config.count):
        values = _draw(config, trials)
        trials.append(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.WAITING, system_attrs={"fixed_params": values}
            )
        )
    found = [t.system_attrs["fixed_params"] for t in trials]
    return {(values["weighter.eta"], values["batch_size"]) for values in found}


def test_a_sweep_is_done_once_and_can_grow(make_config: Make, tmp_path: Path) -> None:
    configs = [make_config(updates=10, seed=seed) for seed in (0, 1)]
    study = sweep(configs, search(3), tmp_path)
    first, best = params(study), study.best_trial
    assert len(first) == 3
    again = sweep(configs, search(3), tmp_path)
    assert [t.number for t in again.trials] == [0, 1, 2]
    more = sweep(configs, search(5), tmp_path)
    assert params(more)[:3] == first
    assert len(set(params(more))) == 5
    # A run per trial and seed, with the choices of its trial; the score is their mean.
    folders = [line.split("|")[1].strip() for line in list_of_runs(tmp_path).splitlines()[2:]]
    assert len(folders) == 10
    records = [json.loads((tmp_path / f / "result.json").read_text()) for f in folders]
    own = [
        sum(r["evaluations"][-1]["returns"]) / 5
        for r in records
        if r["config"]["policy"]["weighter"]["eta"] == best.params["weighter.eta"]
    ]
    assert best.value == pytest.approx(sum(own) / 2)


def test_values_that_do_not_go_together_are_left_out(make_config: Make, tmp_path: Path) -> None:
    """The first such point ended the sweep, and every call that was to go on with it."""
    configs = [make_config(updates=5)]
    grid = search(4, "grid", space={"n_step": [1, 3], "actor.chunk": [1, 2]})
    with pytest.warns(UserWarning, match="left out: The space does not fit.*a chunk sums"):
        study = sweep(configs, grid, tmp_path)
    states = {(t.params["n_step"], t.params["actor.chunk"]): t.state.name for t in study.trials}
    rest = dict.fromkeys([(1, 1), (1, 2), (3, 1)], "COMPLETE")
    assert states == {(3, 2): "PRUNED"} | rest
    assert "| does not fit |" in outcome(study)
    assert len(sweep(configs, grid, tmp_path).trials) == 4
    with pytest.raises(ExperimentError, match=r"'actor\.chunk=2' with .*a chunk sums"):
        sweep([configs[0].replace(n_step=3)], grid, tmp_path / "other")


def test_a_sweep_goes_on_with_the_data_that_it_began_with(
    make_config: Make, line_data: Path, tmp_path: Path
) -> None:
    """Trials on others joined it without a word; the discount factor of one is no other data."""
    data, out = tmp_path / "line.hdf5", tmp_path / "runs"
    shutil.copy(line_data, data)
    configs = [make_config(dataset=str(data), updates=5)]
    space = {"gamma": [0.9, 0.99], "batch_size": [8, 16]}
    began = [t.value for t in sweep(configs, search(3, "grid", space=space), out).trials]
    with h5py.File(data, "r+") as file:
        file["rewards"][...] = 1.0
    for trials, workers in ((3, 1), (4, 1), (4, 2)):
        with pytest.raises(ExperimentError, match="another run: got another `data_sha256`"):
            sweep(configs, search(trials, "grid", space=space), out, workers=workers)
    assert len(list(out.glob("*/run.json"))) == 3
    shutil.copy(line_data, data)  # another file with what there was
    study = sweep(configs, search(4, "grid", space=space), out)
    assert [t.value for t in study.trials][:3] == began
    assert len(study.trials) == 4
    data.unlink()
    assert len(sweep(configs, search(4, "grid", space=space), out).trials) == 4


def test_draws_depend_on_their_number_and_not_on_the_workers(
    make_config: Make, tmp_path: Path
) -> None:
    configs = [make_config(updates=10)]
    shared = sweep(configs, search(4), tmp_path, workers=2)
    assert set(params(shared)) == draws(search(4))
    assert not draws(search(4, seed=1)) & draws(search(4))


def test_a_grid_has_every_point_once(make_config: Make, tmp_path: Path) -> None:
    space = {"weighter.eta": [1.0, 2.0], "batch_size": {"low": 8, "high": 16, "step": 4}}
    study = sweep([make_config(updates=10)], search(99, "grid", space=space), tmp_path)
    assert sorted(params(study)) == [(e, b) for e in (1.0, 2.0) for b in (8, 12, 16)]


def test_a_grid_is_complete_unless_trials_say_fewer() -> None:
    space = {"batch_size": {"low": 1, "high": 30}}
    for trials, points in ((None, 30), (7, 7), (99, 30)):
        assert SweepConfig(space=space, sampler="grid", trials=trials).count == points
    assert SweepConfig(space=space).count == 20


@pytest.mark.parametrize(
    ("path", "values", "twice"),
    [
        ("weighter.eta", [1.0, 3.0, 1], "1.0"),
        ("actor.hidden", [[8], [16], [8]], r"\[8\]"),
        ("learner.normalize_obs", [True, False, True], "True"),
        ("method", ["a", "b", "b", "a"], "a, b"),
    ],
)
def test_a_grid_with_a_value_twice_is_refused(
    path: str,
    values: list[Any],
    twice: str,
    line_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It ended in a StopIteration, once all other points were done; other samplers take it."""
    with pytest.raises(ValidationError, match=f"got {path} with {twice} twice"):
        search(9, "grid", space={path: values})
    assert search(9, space={path: values}).count == 9
    (tmp_path / "space.json").write_text(json.dumps({path: values}))
    words = f"sweep --dataset {line_data} --updates 5 --environment line_world:make"
    words += f" --space {tmp_path}/space.json --sampler grid --out {tmp_path}/runs"
    assert main(words.split()) == 2
    assert f"error: a grid has every point once: got {path} with" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_grid_takes_no_step_that_floats_do_not_resolve() -> None:
    with pytest.raises(ExperimentError, match=r"got 1e\+17.* twice in a range from 1e\+17 to"):
        Range(low=1e17, high=1e17 + 64, step=1.0).values()


def test_a_fractional_step_between_whole_ends_is_kept(make_config: Make, tmp_path: Path) -> None:
    """It was cut to an integer, and the numbers between were never drawn."""
    space = {"weighter.eta": {"low": 1, "high": 4, "step": 1.5}, "batch_size": [8]}
    config = make_config(updates=5)
    points = [(1.0, 8), (2.5, 8), (4.0, 8)]
    study = sweep([config], search(9, "grid", space=space), tmp_path / "grid")
    assert sorted(params(study)) == points
    assert draws(search(20, space=space)) == set(points)
    whole = Range(low=8, high=16, step=4.0)
    assert [(type(value), value) for value in whole.values()] == [(int, n) for n in (8, 12, 16)]
    space = {"batch_size": {"low": 8, "high": 16, "step": 1.5}}
    with pytest.raises(ExperimentError, match=r"batch_size=9\.5.*valid integer"):
        sweep([config], search(1, space=space), tmp_path / "none")


def test_a_worker_that_draws_what_another_one_runs_waits_for_it(
    make_config: Make, tmp_path: Path
) -> None:
    config = make_config(updates=10)
    drawn = config.replace(policy=config.policy.replace(weighter={"eta": 1.0}))
    folder = RunFolder(tmp_path, drawn, load_data(drawn).sha256)
    begun = threading.Event()

    def other() -> None:
        with folder.locked():
            begun.set()
            time.sleep(0.5)

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait()
    study = sweep([config], search(2, space={"weighter.eta": [1.0]}), tmp_path)
    thread.join()
    assert [t.state.name for t in study.trials] == ["COMPLETE", "COMPLETE"]
    assert len(list(tmp_path.glob("*/result.json"))) == 1


def test_a_worker_that_ends_while_another_looks_has_not_failed(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other saw the trial run, and takes its lock when the worker has told and let go."""
    configs = [make_config(updates=5)]
    study = open_study(configs, search(2), tmp_path, None)
    worker = _trial(study, search(2), tmp_path)
    trial = worker.__enter__()
    assert trial is not None
    module = importlib.import_module("gtp_experiments.sweep")
    take = module._free

    def free(out: Path, number: int) -> FileLock | None:
        if number == trial.number:
            study.tell(trial, 1.0)
            worker.__exit__(None, None, None)
        return take(out, number)

    monkeypatch.setattr(module, "_free", free)
    with _trial(study, search(2), tmp_path) as other:
        assert other is not None
        assert [t.state.name for t in study.trials] == ["COMPLETE", "RUNNING"]


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
@pytest.mark.parametrize(
    "last", ["enqueue_trial", "ask", "suggest", "tell"], ids="killed behind {}".format
)
def test_a_worker_that_is_killed_within_a_draw_costs_no_trial(
    make_config: Make, tmp_path: Path, sampler: str, last: str
) -> None:
    """A worker is gone behind each of its calls of the storage, also one that clears up."""
    space = {"weighter.eta": [1.0, 2.0], "batch_size": [8, 16]}
    config = search(4, sampler, space=space)
    whole = sweep([make_config(updates=5)], config, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def then_killed(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            call(*args, **kwargs)
            raise Killed

        return called

    study = open_study([make_config(updates=5)], config, tmp_path / "killed", None)
    for kill in (last, "tell", "enqueue_trial"):  # in the second and third, while it clears up
        with pytest.MonkeyPatch.context() as patch:
            if kill == "suggest":
                module = importlib.import_module("gtp_experiments.sweep")
                patch.setattr(module, "_suggest", then_killed(module._suggest))
            else:
                patch.setattr(study, kill, then_killed(getattr(study, kill)))
            with contextlib.suppress(Killed), _trial(study, config, tmp_path / "killed"):
                raise Killed
    again = sweep([make_config(updates=5)], config, tmp_path / "killed")
    assert sorted(params(again)) == sorted(params(whole))


@pytest.mark.slow
def test_workers_say_in_a_line_what_is_wrong(
    make_config: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = make_config(dataset=str(tmp_path / "missing.hdf5"))
    with pytest.raises(ExperimentError, match=r"got exit codes \[1, 1\]"):
        sweep([config], search(2), tmp_path, workers=2)
    said = capfd.readouterr().err
    assert "error: `" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_killed_worker_costs_no_trial_and_repeats_none(
    line_data: Path, make_config: Make, tmp_path: Path
) -> None:
    """Twenty trials by two workers; one of them is killed in the middle of a trial."""
    out = tmp_path / "runs"
    (tmp_path / "space.json").write_text(SPEC)
    config = make_config(updates=60, evaluation={"every": 60, "episodes": 1})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    script = (
        "import sys; from pathlib import Path\n"
        "from gtp_experiments import RunConfig, SweepConfig\n"
        "from gtp_experiments.sweep import read_space, work\n"
        "config = RunConfig.model_validate_json(Path('config.json').read_text())\n"
        "search = SweepConfig(space=read_space(Path('space.json')), trials=20, sampler='random',\n"
        "                     prune=False)\n"
        "work([config], search, Path('runs'))\n"
    )
    command = [sys.executable, "-c", script]
    workers = [
        subprocess.Popen(command, cwd=tmp_path, env=dict(os.environ), stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]

    def done() -> int:
        return len(list(out.glob("*/result.json")))

    deadline = time.monotonic() + 240
    while done() < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    workers[0].send_signal(signal.SIGKILL)
    assert [worker.wait(240) for worker in workers] == [-signal.SIGKILL, 0]
    full = SweepConfig.model_validate(
        {"space": SPACE, "trials": 20, "sampler": "random", "prune": False}
    )
    study = sweep([config], full, out)  # nothing is left to do
    assert len(params(study)) == 20
    assert len(set(params(study))) == 20
    lost = params(study, "FAIL")
    assert len(lost) <= 1
    assert set(lost) <= set(params(study))
    assert done() == 20
    assert set(params(study)) == draws(full)


@pytest.mark.slow
def test_workers_that_are_stopped_save_and_leave(make_config: Make, tmp_path: Path) -> None:
    config = make_config(updates=1_000_000, checkpoint_every=1_000_000)

    def begun() -> bool:
        return len(list(tmp_path.glob("*/metrics.jsonl"))) == 2

    study = sweep([config], search(2), tmp_path, workers=2, stop=begun)  # no worker was killed
    assert [trial.state.name for trial in study.trials] == ["RUNNING"] * 2
    assert len(list(tmp_path.glob("*/checkpoints/step_*"))) == 2


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="tells by /proc who has started")
@pytest.mark.parametrize("command", ["run", "sweep"])
def test_a_ctrl_c_while_workers_start_leaves_no_traceback(
    command: str, line_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "space.json").write_text(SPEC)
    words = (
        f"{command} --dataset {line_data} --environment line_world:make --updates 100000 --out o"
    )
    words += " --jobs 2 " + ("--seeds 0 1" if command == "run" else "--space space.json --trials 2")
    process = subprocess.Popen(
        [sys.executable, "-m", "gtp_experiments", *words.split()],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 120
    while len(children.read_text().split()) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)  # the two, and the tracker of their semaphores
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 3, said
    assert "KeyboardInterrupt" not in said


@pytest.mark.slow
def test_workers_that_are_stopped_while_they_start_just_end(
    make_config: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study = sweep([make_config()], search(2), tmp_path, workers=2, stop=lambda: True)
    assert not study.trials
    assert "Traceback" not in capfd.readouterr().err


def test_a_trial_below_the_median_is_pruned_and_no_other() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for value in (1.0, 2.0, 3.0, 4.0, 5.0):
        trial = study.ask()
        trial.report(value, 10)
        study.tell(trial, value)
    for value, expected in ((4.0, False), (1.0, True)):
        trial = study.ask()
        pruner = _Pruner(trial, active=True)
        pruner.log(10, {"train/actor_loss": 0.0})
        pruner.log(10, {"evaluation/score": value})
        assert pruner.pruned == expected
        off = _Pruner(study.ask(), active=False)
        off.log(10, {"evaluation/score": value})
        assert not off.pruned


def test_workers_can_be_submitted_as_jobs(make_config: Make, tmp_path: Path) -> None:
    configs = [make_config(updates=5)]
    jobs = submit(configs, search(3), tmp_path, jobs=2, cluster="local", timeout_min=5)
    for job in jobs:
        job.result()
    assert len(params(sweep(configs, search(3), tmp_path))) == 3
    with pytest.raises(ExperimentError, match="submitit refuses"):
        submit(configs, search(3), tmp_path, cluster="nowhere")


def test_the_command_prints_a_table_and_draws(
    line_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "space.json").write_text('{"weighter.eta": [1, 3]}')
    words = f"sweep --dataset {line_data} --updates 5 --batch-size 8 --episodes 1"
    words += f" --environment line_world:make --space {tmp_path}/space.json --sampler grid"
    words += f" --out {tmp_path}/runs --set actor.hidden=[8] --set critic.hidden=[8]"
    assert main(words.split()) == 0
    text = capsys.readouterr().out
    assert text.startswith("2 trials of the 2 points of the grid\n")
    assert "| trial | state    | score" in text
    assert text.count("complete") == 2
    pictures = sorted(path.name for path in (tmp_path / "runs").glob("*.png"))
    assert pictures == ["sweep_optimization_history.png", "sweep_slice.png"]
    assert outcome(optuna.create_study()) == "No trial."


def test_wrong_requests_say_why(make_config: Make, tmp_path: Path) -> None:
    configs = [make_config(updates=5)]

    def refused(space: dict[str, object], message: str, sampler: str = "random") -> None:
        with pytest.raises(ExperimentError, match=message):
            sweep(configs, search(1, sampler, space=space), tmp_path / "none")
        assert not list(tmp_path.glob("none/*/run.json"))

    refused({"weighter.etta": [1.0]}, "Did you mean eta?")
    for path in ("learner.seed", "policy.learner.total_updates"):
        refused({path: [1, 2]}, f"The space has no effect: got {path}=1")
    refused({"weighter.eta": ["high"]}, "valid number")
    refused({"batch_size": {"low": 0, "high": 4}}, "greater than or equal to 1")
    refused({"weighter.eta": {"low": 0.1, "high": 1.0}}, "A grid needs values", "grid")
    sweep(configs, search(1), tmp_path / "one")
    with pytest.raises(ExperimentError, match="holds another search"):
        sweep([make_config(updates=6)], search(1), tmp_path / "one")
    with pytest.raises(ExperimentError, match="cannot be used"):
        sweep(configs, search(1), tmp_path / "two", storage="nonsense://x")
    for text, message in (
        ("{", "no space of a sweep"),
        ('{"a": {"low": 2, "high": 1}}', "low must not be above high"),
        ('{"a": {"low": 0, "high": 1, "log": true}}', "begins above 0"),
        ('{"a": []}', "at least 1 item"),
    ):
        (tmp_path / "space.json").write_text(text)
        with pytest.raises(ExperimentError, match=message):
            read_space(tmp_path / "space.json")
    with pytest.raises(ExperimentError, match="cannot be read: got No such file"):
        read_space(tmp_path / "missing.json")
    assert Range(low=0.0, high=1.0, step=0.25).values() == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    "name",
    ["sweep.db", "sweep.lock", "sweep_trials", "sweep.db-journal", "sweep.db-wal", "sweep.db-shm"],
)
def test_a_sweep_writes_nowhere_else(make_config: Make, tmp_path: Path, name: str) -> None:
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    out.mkdir()
    theirs.touch()
    (out / name).symlink_to(theirs)
    with pytest.raises(ExperimentError, match=f"{name} is a link"):
        sweep([make_config(updates=5)], search(1), out)
    assert theirs.read_bytes() == b""


def hot_journal(database: bytes, names: bytes = b"") -> bytes:
    """A journal that SQLite plays back: it holds the first page of a database, as it is.

    References:
        | https://www.sqlite.org/fileformat2.html, "The Rollback Journal"; the names of files at the
        | end are of its source alone
    """
    size = int.from_bytes(database[16:18], "big")
    page, magic = database[:size], bytes.fromhex("d9d505f920a163d7")
    check = 7 + sum(page[i] for i in range(size - 200, 0, -200))
    numbers = 1, 7, len(database) // size, 512, size
    head = magic + b"".join(number.to_bytes(4, "big") for number in numbers)
    row = (1).to_bytes(4, "big") + page + (check & 0xFFFFFFFF).to_bytes(4, "big")
    journal = head.ljust(512, b"\0") + row
    if names:
        journal = journal.ljust(-(-len(journal) // 512) * 512, b"\0")
        tail = (0x40000000 // size + 1, len(names), sum(names))
        first, length, total = (number.to_bytes(4, "big") for number in tail)
        journal += first + names + length + total + magic
    return journal


HOSTILE = {
    "a view": [
        "ALTER TABLE trials RENAME TO t0",
        "CREATE VIEW trials AS WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) "
        "SELECT n AS trial_id, n AS number, 1 AS study_id, 'COMPLETE' AS state FROM r",
    ],
    "a trigger": [
        "CREATE TRIGGER more AFTER INSERT ON trials BEGIN SELECT hex(zeroblob(400000000)); END"
    ],
    "a column that is computed": [
        "DROP TABLE study_user_attributes",
        "CREATE TABLE study_user_attributes (study_user_attribute_id INTEGER, study_id INTEGER, "
        "key VARCHAR(9), value_json TEXT AS (hex(zeroblob(400000000))))",
    ],
    "a default": [
        "CREATE TABLE t (a INTEGER DEFAULT (abs(1)))",
    ],
    "a check": ["CREATE TABLE t (a INTEGER CHECK (a))"],
    "an index of an expression": ["CREATE INDEX i ON trials (hex(zeroblob(number)))"],
    "an index of some rows": ["CREATE INDEX i ON trials (number) WHERE number > 3"],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_study_computes_nothing(make_config: Make, tmp_path: Path, name: str) -> None:
    """114 kB took 3.4 GB and 25 s, or never came to an end."""
    config = make_config(updates=5)
    open_study([config], search(1), tmp_path, None)
    with contextlib.closing(sqlite3.connect(tmp_path / "sweep.db")) as database:
        for statement in HOSTILE[name]:
            database.execute(statement)
        database.commit()
    with pytest.raises(ExperimentError, match="is no study of a sweep: got the"):
        open_study([config], search(1), tmp_path, None)


def test_a_study_that_cannot_be_read_is_told(make_config: Make, tmp_path: Path) -> None:
    config = make_config(updates=5)
    open_study([config], search(1), tmp_path, None)
    with contextlib.closing(sqlite3.connect(tmp_path / "sweep.db")) as database:
        database.execute("UPDATE study_user_attributes SET value_json = 'x'")
        database.commit()
    with pytest.raises(ExperimentError, match="cannot be used: got JSONDecodeError"):
        open_study([config], search(1), tmp_path, None)
    (tmp_path / "sweep.db").write_bytes(b"x" * 5000)
    with pytest.raises(ExperimentError, match="is no study: got DatabaseError"):
        open_study([config], search(1), tmp_path, None)


def test_no_lock_empties_a_file_of_somebody(make_config: Make, tmp_path: Path) -> None:
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    config = make_config(updates=5)
    for name in ("sweep.lock", "sweep_trials/0.lock", f"{config.name}/.lock"):
        theirs.write_text("precious")
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(theirs, out / name)
        with pytest.raises(ExperimentError, match="is no lock: got a file of 2 names and 8 bytes"):
            sweep([config], search(1), out) if "sweep" in name else run(config, out)
        assert theirs.read_text() == "precious"
        shutil.rmtree(out)


@pytest.mark.parametrize("hostile", [True, False])
def test_a_journal_in_a_sweep_removes_no_file(
    make_config: Make, tmp_path: Path, hostile: bool
) -> None:
    """One of a worker that was killed is played back, one that names another file is refused."""
    out, theirs = tmp_path / "out", tmp_path / "theirs.tex"
    theirs.write_text("precious")
    config = make_config(updates=5)
    sweep([config], search(1), out)
    database = (out / "sweep.db").read_bytes()
    journal = hot_journal(database, os.fsencode(theirs) if hostile else b"")
    (out / "sweep.db-journal").write_bytes(journal)
    if hostile:
        with pytest.raises(ExperimentError, match="names another file"):
            sweep([config], search(2), out)
        assert (out / "sweep.db").read_bytes() == database
    else:
        assert len(sweep([config], search(2), out).trials) == 2
        assert not (out / "sweep.db-journal").exists()
    assert theirs.read_text() == "precious"


@pytest.mark.parametrize(
    "space",
    [
        {"weighter.eta": {"low": 0.0, "high": 1e9, "step": 1e-9}},
        {"weighter.eta": {"low": 0.0, "high": 1e308, "step": 1e-308}},
        {"batch_size": {"low": 1, "high": 10**400}},
        {f"field_{i}": [1, 2] for i in range(64)},
    ],
)
def test_a_grid_beyond_all_measure_is_refused(space: dict[str, Any]) -> None:
    with pytest.raises(ExperimentError, match="A grid has too many points"):
        _ = SweepConfig(space=space, sampler="grid").count


def test_what_is_wrong_with_a_large_space_is_told_at_once(tmp_path: Path) -> None:
    path, start = tmp_path / "space.json", time.process_time()
    path.write_text("{" + ", ".join(f'"a{i}": [1], "b": [1]' for i in range(40_000)) + "}")
    with pytest.raises(ExperimentError, match="got twice: b, expected"):
        read_space(path)
    path.write_text(json.dumps({f"a{i}": [] for i in range(40_000)}))
    with pytest.raises(ExperimentError, match="and 39991 more") as caught:
        read_space(path)
    assert len(str(caught.value)) < 2_000
    assert time.process_time() - start < 10  # name by name it was half a minute
