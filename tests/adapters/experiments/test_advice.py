"""Requests that would be ignored are refused, and what an error says to do leads somewhere."""

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from gtp_datasets import load_dataset
from gtp_experiments import (
    EvaluationConfig,
    RunConfig,
    SweepConfig,
    film,
    load_data,
    make_env,
    submit,
    sweep,
)
from gtp_experiments.cli import main
from gtp_experiments.errors import ExperimentError
from gtp_experiments.sweep import outcome, read_space
from gtp_policy import ActionScaler, GTPConfig, GTPLearner, OfflineDataset
from gtp_policy.acting import SoftmaxChoice
from gtp_policy.errors import DataError, MissingDependencyError
from gtp_policy.export import export_onnx

BASE = ("--dataset", "toy.hdf5", "--updates", "2", "--out", "runs")
# What is asked, and what the answer says.
ASKED: list[tuple[list[str], str]] = [
    (
        ["config", "--choice", "softmax"],
        r"got softmax with candidates=1, expected .*Set candidates",
    ),
    (
        ["config", "--choice", "softmax", "--deterministic"],
        r"candidates=1 and deterministic.*deterministic_choice",
    ),
    (["sweep", "--space", "space.json", "--jobs", "0"], r"`jobs` is out of range: got 0"),
    (["run", "--jobs", "0"], r"`jobs` is out of range: got 0"),
    (["run", "--out", "space.json"], r"space.json is no folder: got a file.*another folder"),
    (["run", "--dataset", "d.csv"], r"a file that runs do not read: got 'd.csv'.*load_dataset"),
    (["run", "--processes", "2", "--batch-size", "3"], r"`batch_size` does not fit: got 3 with 2"),
    (
        ["config", "--n-step", "3", "--set", "actor.chunk=4"],
        r"got n_step=3 with actor.chunk=4.*Leave n_step at 1",
    ),
    (
        ["config", "--set", "learner.baseline.kind=nothing"],
        r"kinds there are 'policy', 'expectile'",
    ),
    (
        ["config", "--set", "batch_size=3"],
        r"got 'batch_size=3', and batch_size is a field of the run",
    ),
    (["run", "--seeds", "0", "0"], r"are the same: got 2 with 1 .*Name each seed once"),
    (["run"], r"does not say where to evaluate.*--environment"),
    (["run", "--dataset", "/"], r"names a folder that runs do not read: got '/'"),
    (["config", "--set", "learner.backup.kind=x"], r'\'backup\', which is "max_q" now, to have'),
]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("space.json").write_text('{"weighter.eta": [1, 3]}')
    return tmp_path


@pytest.mark.parametrize(("words", "message"), ASKED, ids=lambda w: " ".join(w)[:50])
def test_what_would_be_ignored_or_fail_late_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([words[0], *BASE, *words[1:]]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--seed", "1", "--candidats", "3"],
            r"unknown: --candidats 3. Did you mean --cand",
        ),
        (["--out", ""], r"--out: got '', expected a path"),
        (["--reward", "standardise"], r"got 'standardise', .*Did you mean standardize?"),
        (["--reward", '{"kind": "linear", "multiply_": 2}'], r"got 'multiply_' .*mean multiply?"),
    ],
)
def test_a_word_that_is_misspelt_ends_the_usage(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["run", *BASE, *words])
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize(
    "fields", [{"evaluation": {"environment": "CartPole-v1"}}, {"low": (-1.0, -1.0)}]
)
def test_bounds_of_another_environment_are_told_from_bad_data(
    fields: Any, make_config: Callable[..., RunConfig]
) -> None:
    config = make_config(**fields)
    named = config.evaluation.environment
    with pytest.raises(ExperimentError, match=f"of {named}.*[Ee]valuate in the environment that"):
        load_data(config)


def test_a_reader_that_has_seen_enough_is_no_error(line_data: Path) -> None:
    words = ["config", "--dataset", str(line_data), "--updates", "1", "--out", "runs"]
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "gtp_experiments", *words]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=True)
    os.close(writer)
    assert not ended.stderr


def test_a_machine_that_refuses_files_is_told_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs")

    monkeypatch.setattr("gtp_experiments.cli.run_all", full)
    assert main(["run", *BASE]) == 2
    message = r"got \[Errno 28\] No space left.*'runs', expected a place with room.*Free space"
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    "change",
    ["learner.baseline.kind=expectile", "actor.sampler.kind=ode", "encoder.kind=impala"],
)
def test_the_words_that_an_error_gives_can_be_typed(
    change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", *BASE, "--set", change]) == 2
    typed = re.search(r"(--set '.*?}')", capsys.readouterr().err)
    assert typed
    assert main(["config", *BASE, *shlex.split(typed[1])]) == 0
    assert change.rpartition("=")[2] in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--low", "-1,-2"], ["--low=-1,-2"], ["--high", "-1,-2"]])
def test_bounds_may_begin_with_a_minus(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", *BASE, *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[words[0].strip("-").partition("=")[0]] == [-1.0, -2.0]


def test_a_choice_that_earlier_records_hold_is_read() -> None:
    record = EvaluationConfig(choice=SoftmaxChoice(), candidates=4).model_dump(mode="json")
    assert EvaluationConfig.from_record(record | {"candidates": 1}).candidates == 1
    with pytest.raises(ValueError, match="got softmax with candidates=1"):
        EvaluationConfig(choice=SoftmaxChoice())


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"weighter.eta": {"low": 1, "hihg": 2}},
            r"eta: Extra .*'hihg'.*Did you mean high",
        ),
        ({"weighter.eta": {"low": 3, "high": 2}}, r"weighter.eta: .*low must not be above high"),
        ({"weighter.eta": []}, r"weighter.eta: .*at least 1 item"),
        ({"weighter.eta": 3}, r"weighter.eta: .*list"),
        ([1], r"all of it: Input should be"),
    ],
)
def test_what_is_wrong_in_a_space_is_one_line(space: Any, message: str) -> None:
    Path("space.json").write_text(json.dumps(space))
    with pytest.raises(ExperimentError, match=message) as caught:
        read_space(Path("space.json"))
    assert "\n" not in str(caught.value)
    assert "function-after" not in str(caught.value)


def test_a_path_that_is_twice_in_a_space_is_refused() -> None:
    Path("space.json").write_text('{"weighter.eta": [1], "batch_size": [2], "weighter.eta": [3]}')
    with pytest.raises(ExperimentError, match=r"got twice: weighter\.eta, expected"):
        read_space(Path("space.json"))


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_a_space_holds_lists_objects_and_fields_of_the_evaluation(
    sampler: str, make_config: Callable[..., RunConfig], place: Path
) -> None:
    pytest.importorskip("optuna")
    space = {
        "actor.hidden": [[8], [8, 8]],
        "learner.baseline": [{"kind": "policy"}, {"kind": "expectile"}],
        "evaluation.steps": [1, 2],
    }
    Path("space.json").write_text(json.dumps(space))
    search = SweepConfig(
        space=read_space(Path("space.json")), trials=2, sampler=sampler, prune=False
    )
    study = sweep([make_config(updates=2)], search, place / "runs")
    assert len(study.trials) == 2
    assert "[8" in outcome(study)
    made = [json.loads(p.read_text())["config"] for p in (place / "runs").rglob("run.json")]
    assert {tuple(config["policy"]["actor"]["hidden"]) for config in made} <= {(8,), (8, 8)}


def test_a_sweep_is_not_run_here_where_slurm_is_asked_for(
    make_config: Callable[..., RunConfig], place: Path
) -> None:
    pytest.importorskip("submitit")
    search = SweepConfig(space={"weighter.eta": [1.0]}, trials=1)
    with pytest.raises(ExperimentError, match=r"submitit refuses.*leave --slurm out"):
        submit([make_config()], search, place / "runs")
    with pytest.raises(ExperimentError, match="`jobs` is out of range: got 0"):
        submit([make_config()], search, place / "runs", jobs=0)
    with pytest.raises(ExperimentError, match="`workers` is out of range: got 0"):
        sweep([make_config()], search, place / "runs", workers=0)


def test_a_film_names_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    data = OfflineDataset.from_arrays(
        obs=np.zeros((1, 3)), action=[[0.0]], terminated=[1], truncated=[0], low=[-2.0], high=[2.0]
    )

    def lacks(*_: object, **__: object) -> None:
        raise gymnasium.error.DependencyNotInstalled("pygame is not installed")

    monkeypatch.setattr("gymnasium.envs.classic_control.pendulum.PendulumEnv.render", lacks)
    with pytest.raises(MissingDependencyError, match="cannot be filmed: got `pygame is not inst"):
        film(lambda obs: obs[:, :1], data, "Pendulum-v1", "a.gif")
    with pytest.raises(
        ExperimentError, match=r"takes no render_mode.*def no_pictures\(render_mode"
    ):
        make_env(f"{__name__}:no_pictures", render_mode="rgb_array")


def no_pictures() -> None:
    """An environment's function as people write it."""


EPISODE = {"obs": np.zeros((4, 2)), "action": np.zeros((4, 2)), "terminated": True}


def test_data_says_where_it_belongs(place: Path) -> None:
    data = OfflineDataset.from_episodes([EPISODE], low=-1.0, high=1.0)
    data.to_memmap(place / "map")
    with pytest.raises(DataError, match=r"Open it with OfflineDataset.memmap\('.*map'\)"):
        load_dataset(place / "map")
    with pytest.raises(DataError, match=r"OfflineDataset.from_episodes\(\[episode\]\)"):
        load_dataset(EPISODE)
    with pytest.raises(DataError, match=r"since `low` and `high` are of 1 dim.*or the bounds"):
        load_dataset([EPISODE], low=[-1.0], high=[1.0])
    with pytest.raises(DataError, match=r"Leave with_best_episodes out.*with_reward_column"):
        data.with_best_episodes(0.5)


def test_a_policy_is_exported_within_autocast(place: Path) -> None:
    learner = GTPLearner.build(3, 2, GTPConfig(critic=None))
    box = ActionScaler([-1.0, -1.0], [1.0, 1.0])
    export_onnx(learner, "a.onnx", action_scaler=box)
    with torch.autocast("cpu"):
        export_onnx(learner, "b.onnx", action_scaler=box)
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
