"""What a person sees of runs: lines while they go, lists, tables, help, and errors in words."""

import io
import re
import shutil
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gtp_experiments.cli
from gtp_experiments import (
    EvaluationConfig,
    RunConfig,
    list_of_runs,
    load_data,
    markdown,
    policy_of,
    read_results,
    run,
    shown,
    table,
)
from gtp_experiments.cli import main
from gtp_policy import GTPLearner, presets
from gtp_policy.progress import Progress

Make = Callable[..., RunConfig]


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end() -> None:
    clock, log = Clock(), io.StringIO()
    progress = Progress("gtp seed 3", 1000, stream=log, clock=clock)
    progress.start(200)
    progress.measured({"actor_loss": 1.25, "critic_loss": 0.5, "effective_share": 0.9})
    for _ in range(800):
        clock.now += 0.05  # 20 per second, 40 seconds
        progress.advance(1)
    progress.close()
    lines = log.getvalue().splitlines()
    assert lines[0] == "gtp seed 3: goes on from update 200"
    assert lines[1] == (
        "gtp seed 3: 400 of 1,000 updates, 20 per second, 30 s left, actor_loss 1.25, "
        "critic_loss 0.5"
    )
    assert len(lines) == 5
    assert lines[-1].startswith("gtp seed 3: 1,000 of 1,000 updates, 20 per second, actor_loss")


def test_a_line_is_written_at_once() -> None:
    pieces: list[str] = []

    class Log(io.StringIO):
        def write(self, text: str) -> int:
            pieces.append(text)
            return len(text)

    Progress("gtp seed 0", 100, stream=Log()).say("reads a.hdf5")
    assert pieces == ["gtp seed 0: reads a.hdf5\n"]


def test_a_long_evaluation_says_that_it_goes_on() -> None:
    clock, log = Clock(), io.StringIO()
    progress = Progress("gtp seed 0", 10, stream=log, clock=clock)
    for left in range(30, 0, -1):
        clock.now += 1.0
        progress.evaluates(left)
    assert log.getvalue().splitlines() == [
        "gtp seed 0: evaluates, 21 episodes left",
        "gtp seed 0: evaluates, 11 episodes left",
        "gtp seed 0: evaluates, 1 episodes left",
    ]


def test_a_terminal_gets_a_bar_and_no_lines() -> None:
    terminal = Terminal()
    progress = Progress("gtp seed 0", 100, stream=terminal)
    progress.start(0)
    progress.advance(100)
    progress.close()
    assert "100/100" in terminal.getvalue()
    assert " of 100 updates" not in terminal.getvalue()


def test_a_run_says_what_it_does_and_a_finished_one_does_not_read_its_data(
    make_config: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(updates=10)
    result = run(config, tmp_path)
    log = capsys.readouterr().err
    assert f"reads {config.dataset}" in log
    assert "10 of 10 updates" in log
    monkeypatch.setattr(
        "gtp_experiments.runner.load_data", lambda _: pytest.fail("read the data again")
    )
    assert run(config, tmp_path) == result
    with pytest.raises(pytest.fail.Exception):
        run(config.replace(seed=1), tmp_path)


def test_runs_are_listed_and_shown_done_or_not(make_config: Make, tmp_path: Path) -> None:
    done, half = make_config(updates=10), make_config(updates=10, seed=1)
    result = run(done, tmp_path)
    assert result is not None
    calls = iter([False] * 5 + [True])
    assert run(half, tmp_path, stop=lambda: next(calls)) is None
    lines = [[c.strip() for c in x.split("|")[1:-1]] for x in list_of_runs(tmp_path).splitlines()]
    by_name = {line[0]: line[1:] for line in lines[2:]}
    score = result.score(result.last)
    assert by_name[done.name] == ["gtp", "0", "finished", "10 of 10", f"{score:.1f}"]
    assert by_name[half.name][:3] == ["gtp", "1", "stopped"]
    # From where it goes on, whatever was recorded behind it.
    kept = max(
        int(path.name.removeprefix("step_")) for path in (tmp_path / half.name).glob("*/step_*")
    )
    assert 0 < kept < 10
    assert by_name[half.name][3] == f"{kept} of 10"
    shutil.rmtree(tmp_path / half.name / "checkpoints")
    assert "0 of 10 updates" in shown(tmp_path / half.name)
    text = shown(tmp_path / done.name)
    assert text.startswith(f"{done.name}: finished, 10 of 10 updates\nlast score {score:.1f}")
    assert RunConfig.model_validate_json(text[text.index("\n{") :]) == done
    assert "stopped" in shown(tmp_path / half.name)


def test_rows_of_one_name_say_which_choice_tells_them_apart(
    make_config: Make, tmp_path: Path
) -> None:
    small = make_config(updates=5).policy
    for eta in (1.0, 3.0):
        run(make_config(updates=5, policy=small.replace(weighter={"eta": eta})), tmp_path)
    text = table(read_results(tmp_path))
    assert "gtp (policy.weighter.eta=1.0)" in text
    assert "gtp (policy.weighter.eta=3.0)" in text
    assert "seed=" not in text
    run(
        make_config(
            updates=5,
            policy=small.replace(weighter={"eta": 5.0}),
            checkpoint_every=3,
            log_every=2,
            batch_size=7,
        ),
        tmp_path,
    )
    text = table(read_results(tmp_path))
    assert "gtp (policy.weighter.eta=5.0, batch_size=7, checkpoint_every=3, and 1 more)" in text
    # What the first three settings leave alike, more of them tell apart; and the data, at last.
    results = read_results(tmp_path)
    other = results[-1].replace(group="0", config={**results[-1].config, "log_every": 7})
    later = other.replace(group="1", data_sha256="0123456789")
    names = [line.split("|")[2] for line in table([*results, other, later]).splitlines()[2:-2]]
    assert len(set(names)) == 5
    assert sum("log_every=7" in name and 'data_sha256="01234567"' in name for name in names) == 1


def test_a_bar_in_a_name_is_no_end_of_a_cell() -> None:
    line = markdown(["method"], [["a|b"]]).splitlines()[-1]
    assert line == r"| a\|b   |"


def test_an_evaluation_without_sampling_is_what_the_learner_does(make_config: Make) -> None:
    config = make_config()
    dataset = load_data(config).dataset
    learner = GTPLearner.from_dataset(dataset, config.policy)
    act = policy_of(learner, dataset, EvaluationConfig(deterministic=True))
    obs = np.random.default_rng(0).normal(size=(7, dataset.obs_dim)).astype(np.float32)
    expected = learner.act(torch.from_numpy(obs), deterministic=True).numpy()
    np.testing.assert_array_equal(act(obs), dataset.action_scaler.to_box(expected))
    np.testing.assert_array_equal(act(obs), act(obs))
    # Runs that were published without the choice keep their names.
    assert config.replace(evaluation=config.evaluation.replace(deterministic=False)).group == (
        config.group
    )
    with pytest.raises(ValueError, match="leave candidates at 1"):
        EvaluationConfig(deterministic=True, candidates=4)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("--preset gtp_linear", "Did you mean gtp_linear_q?"),
        ("--set learner.actor_rl=1", "Did you mean actor_lr?"),
        ("--set wieghter.eta=1", "Did you mean weighter?"),
        ("--task hoper-medium", "Did you mean hopper?"),
    ],
)
def test_a_misspelling_is_told_apart(
    words: str, hint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    base = f"run --dataset no/such-v0 --updates 5 --out {tmp_path}"
    assert main([*base.split(), *words.split()]) == 2
    assert hint in capsys.readouterr().err


def test_a_home_folder_is_expanded(
    line_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments: Any = gtp_experiments.cli.command_parser().parse_args(
        ["run", "--dataset", str(line_data), "--updates", "1", "--out", "~/runs"]
    )
    assert arguments.out == tmp_path / "runs"


def test_walls_of_the_machine_are_one_line(
    line_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("")
    base = [
        "run",
        "--dataset",
        str(line_data),
        "--updates",
        "1",
        "--environment",
        "line_world:make",
    ]
    assert main([*base, "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    if not torch.cuda.is_available():
        assert main([*base, "--device", "cuda", "--out", str(tmp_path / "runs")]) == 2
        assert "error: The device 'cuda' cannot be used" in capsys.readouterr().err

    def killed(*_: Any, **__: Any) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr(gtp_experiments.cli, "run_all", killed)
    assert main([*base, "--out", str(tmp_path / "runs")]) == 2
    assert "take fewer --jobs" in capsys.readouterr().err
    assert main(["list", str(tmp_path / "nowhere")]) == 2
    assert "is no folder of runs: got nothing" in capsys.readouterr().err


def test_help_names_defaults_choices_and_presets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for words in (*presets.NAMES, "(default: 256)", "(default: 0.99)", "(default: 10)", "hopper"):
        assert words in text
