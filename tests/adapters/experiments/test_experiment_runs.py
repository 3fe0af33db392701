"""Runs from start to end, and across every way to be interrupted."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest
import torch
from gymnasium.spaces import Box
from minari.data_collector import EpisodeBuffer

from gtp_experiments import (
    Evaluation,
    ExperimentError,
    RunConfig,
    RunFolder,
    read_result,
    read_results,
    reevaluate,
    reevaluation,
    run,
    run_all,
    run_seeds,
    runner,
)
from gtp_experiments.cli import main
from gtp_experiments.records import Lines, read_json
from gtp_experiments.results import read_evaluations
from gtp_policy import (
    CheckpointFolder,
    GTPConfig,
    GTPLearner,
    OfflineDataset,
    load_checkpoint,
)
from gtp_policy.errors import DataError
from tests.reliability.mutations import peak_memory

Make = Callable[..., RunConfig]
RECORDS = ("metrics.jsonl", "evaluations.jsonl")


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    newest = CheckpointFolder(folder / "checkpoints").latest()
    assert newest is not None
    state = load_checkpoint(newest).learner.state_dict()
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def assert_same_run(first: Path, second: Path) -> None:
    for name in RECORDS:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    a, b = parameters(first), parameters(second)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    mine, theirs = (read_result(folder / "result.json") for folder in (first, second))
    assert mine is not None
    assert theirs is not None
    assert mine.replace(ms_per_update=0.0) == theirs.replace(ms_per_update=0.0)


class After:
    """Returns True at the n-th call, and counts."""

    def __init__(self, updates: int) -> None:
        self.left = updates

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def test_a_run_records_what_was_requested(make_config: Make, tmp_path: Path) -> None:
    config = make_config(updates=25, evaluation={"episodes": 3})
    result = run(config, tmp_path)
    folder = tmp_path / config.name
    assert result is not None
    assert [line["update"] for line in Lines(folder / "metrics.jsonl").read()] == [
        5,
        10,
        15,
        20,
        25,
    ]
    assert [e.update for e in result.evaluations] == [10, 20, 25]
    assert all(len(e.returns) == len(e.lengths) == 3 for e in result.evaluations)
    assert all(e.success is not None and len(e.success) == 3 for e in result.evaluations)
    assert (result.status, result.reference, result.seed) == ("finished", None, 0)
    assert read_result(folder / "result.json") == result
    assert RunConfig.model_validate(result.config) == config
    checkpoints = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert checkpoints == ["step_000000000020", "step_000000000025"]  # keep_checkpoints=2


def test_a_finished_run_is_not_repeated(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(updates=5)
    result = run(config, tmp_path)
    monkeypatch.setattr(GTPLearner, "update", lambda *_: pytest.fail("trained again"))
    assert run(config, tmp_path) == result
    with pytest.raises(pytest.fail.Exception):  # another seed is another run
        run(config.replace(seed=1), tmp_path)


def test_a_run_that_is_made_again_has_evaluations_of_its_own(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(updates=5)
    folder, again = tmp_path / config.name, config.evaluation.replace(steps=1)
    run(config, tmp_path)
    first = reevaluate(folder, again)
    (kept,) = folder.glob("*_result.json")
    old = kept.read_bytes()
    shutil.rmtree(folder / "checkpoints")
    for name in ("result.json", "metrics.jsonl", "evaluations.jsonl"):
        (folder / name).unlink()
    build = RunConfig.build_learner

    def build_otherwise(self: RunConfig, dataset: OfflineDataset) -> GTPLearner:
        learner = build(self, dataset)
        with torch.no_grad():
            for parameter in (*learner.actor.parameters(), *learner.target_actor.parameters()):
                parameter.add_(0.3)
        return learner

    monkeypatch.setattr(RunConfig, "build_learner", build_otherwise)
    run(config, tmp_path)
    assert not kept.exists()  # the table of the folder would hold it
    as_before = json.loads(old)
    del as_before["provenance"]["checkpoint_sha256"]
    for of_first in (old, json.dumps(as_before).encode()):  # the latter of an earlier version
        kept.write_bytes(of_first)
        second = reevaluate(folder, again)
        assert second.evaluations != first.evaluations
    assert reevaluate(folder, again) == second


@pytest.mark.parametrize("fields", [{}, {"policy": GTPConfig(critic=None)}])
@pytest.mark.filterwarnings("ignore:The curriculum is too fine")
def test_a_resumed_run_is_the_uninterrupted_one(
    make_config: Make, tmp_path: Path, fields: dict[str, object]
) -> None:
    config = make_config(**fields)
    assert run(config, tmp_path / "whole") is not None
    assert run(config, tmp_path / "parts", stop=After(7)) is None
    assert run(config, tmp_path / "parts", stop=After(10)) is None
    assert run(config, tmp_path / "parts") is not None
    assert_same_run(tmp_path / "whole" / config.name, tmp_path / "parts" / config.name)


def test_what_a_crash_leaves_behind_is_cut_back(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    run(config, tmp_path / "whole")
    run(config, tmp_path / "parts")
    folder = tmp_path / "parts" / config.name
    # The power failed after update 24: records up to there, a torn line, the last checkpoint at 20,
    # a newer one that did not get whole.
    (folder / "result.json").unlink()
    (folder / "checkpoints" / "step_000000000030" / "weights.safetensors").write_bytes(b"half")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"update": 35, "actor_lo')
    with pytest.warns(UserWarning, match=r"step_000000000030.*skipped"):
        assert run(config, tmp_path / "parts") is not None
    assert_same_run(tmp_path / "whole" / config.name, folder)


def test_a_run_without_a_checkpoint_starts_again(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    run(config, tmp_path / "whole")
    run(config, tmp_path / "parts")
    folder = tmp_path / "parts" / config.name
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "checkpoints")
    run(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole" / config.name, folder)


def test_other_data_under_the_same_name_are_refused(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    RunFolder(tmp_path, config, data_sha256="before")
    with pytest.raises(ExperimentError, match="belongs to another run: got another `data_sha256`"):
        run(config, tmp_path)


def written_anew(path: Path, **fields: float) -> None:
    """Writes a file of data again, with constants in the place of some columns."""
    with h5py.File(path, "r") as file:
        columns = {name: file[name][()] for name in file}
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            file[name] = np.full_like(column, fields[name]) if name in fields else column


def test_a_result_answers_for_the_data_it_is_of(
    make_config: Make, line_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "line.hdf5", tmp_path / "runs"
    shutil.copy(line_data, data)
    configs = [make_config(dataset=str(data), updates=5, seed=seed) for seed in (0, 1)]
    done = run_seeds(configs, out)
    folder, again = out / configs[0].name, configs[0].evaluation.replace(steps=7)
    other = reevaluate(folder, again)
    written_anew(data, rewards=1.0)
    for config in configs:
        with pytest.raises(ExperimentError, match="another run: got another `data_sha256`"):
            run(config, out)
    with pytest.raises(ExperimentError, match="another run: got another `data_sha256`"):
        run_seeds(configs, out)
    with pytest.raises(ExperimentError, match="has changed"):
        reevaluate(folder, again)
    shutil.copy(line_data, data)  # another file with what there was
    assert run_seeds(configs, out) == done
    assert reevaluate(folder, again) == other
    with monkeypatch.context() as m:  # a file that was read once is not read again
        m.setattr(runner, "stored_hash", None)
        m.setattr(reevaluation, "load_data", None)
        assert run_seeds(configs, out) == done
        assert reevaluate(folder, again) == other
    for name in (config.name for config in configs):
        (out / name / "data.json").unlink()  # as an older version left it
    assert run_seeds(configs, out) == done
    data.write_bytes(b"damaged")
    with pytest.raises(DataError):
        run_seeds(configs, out)
    data.unlink()
    assert run_seeds(configs, out) == done
    assert reevaluate(folder, again) == other


def test_a_result_answers_for_the_minari_dataset_it_is_of(
    make_config: Make, make_minari: Callable[..., Any], minari_root: Path
) -> None:
    def record(reward: float) -> None:
        shutil.rmtree(minari_root / "toy", ignore_errors=True)
        make_minari(
            EpisodeBuffer(
                observations=np.zeros((4, 2)),
                actions=np.zeros((3, 1)),
                rewards=[reward] * 3,
                terminations=[0, 0, 1],
                truncations=[0] * 3,
            ),
            observation_space=Box(-9, 9, (2,)),
            action_space=Box(-1, 1, (1,)),
        )

    config, out = make_config(dataset="toy/set-v0", updates=5), minari_root / "runs"
    record(0.0)
    done = run(config, out)
    assert run(config, out) == done
    record(1.0)
    with pytest.raises(ExperimentError, match="another run: got another `data_sha256`"):
        run(config, out)
    shutil.rmtree(minari_root / "toy")
    assert run(config, out) == done


def test_a_run_begun_by_an_older_version_goes_on(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    record = RunFolder(tmp_path, config, data_sha256="00").path / "run.json"
    document = json.loads(record.read_text())
    del document["config"]["best_episodes"]  # a field that an older version did not have
    record.write_text(json.dumps(document))
    RunFolder(tmp_path, config, data_sha256="00")
    document["config"]["best_episodes"] = 0.5
    for other in (document, document | {"config": None}, {"data_sha256": "00"}):
        record.write_text(json.dumps(other))
        with pytest.raises(ExperimentError, match="got another `config`"):
            RunFolder(tmp_path, config, data_sha256="00")


def test_a_foreign_result_is_refused(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"method": "gtp"}')
    with pytest.raises(ExperimentError, match=r"result.json is no result of a run: got a wrong `"):
        read_result(tmp_path / "result.json")


def test_a_result_that_is_wrong_throughout_takes_no_more_than_others(tmp_path: Path) -> None:
    # Pydantic keeps half a kilobyte for each of the errors: a gigabyte, and four seconds.
    path = tmp_path / "result.json"
    for evaluations in ([{}] * 300_000, [{"update": 1, "returns": [[]] * 300_000, "lengths": []}]):
        path.write_text(json.dumps({"evaluations": evaluations}))
        (tmp_path / "lines.jsonl").write_text(json.dumps({"update": 1} | evaluations[0]) + "\n")
        with peak_memory() as peak:
            with pytest.raises((DataError, ExperimentError), match=r"is no result of|is damaged"):
                read_result(path)
            with pytest.raises((DataError, ExperimentError), match=r"holds no eval|is damaged"):
                read_evaluations(Lines(tmp_path / "lines.jsonl"))
        assert peak[0] <= 2**26 + 30 * path.stat().st_size


@pytest.mark.parametrize("part", ["[" * 500 + "]" * 500, "[]", "{}", '{"":0}', '"ab"'])
def test_a_record_takes_no_more_than_a_dozen_times_its_size(tmp_path: Path, part: str) -> None:
    # A list in a list is 104 bytes of memory and two of the file.
    text = f'{{"update": 1, "a": [{",".join([part] * (6_000_000 // len(part)))}]}}\n'
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    for read in (read_json, read_result, lambda path: Lines(path).read()):
        with peak_memory() as peak, pytest.raises(DataError, match="lists, objects and words"):
            read(path)
        assert peak[0] <= 2**24 + 3 * len(text)


def test_many_evaluations_of_one_episode_are_a_record(make_config: Make, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, make_config(), data_sha256="00")
    line = json.dumps({"update": 1, "returns": [0.5], "lengths": [3], "success": [True]}) + "\n"
    (folder.path / "evaluations.jsonl").write_text(line * 20_000)
    assert folder.finish(1.0) == folder.result()


def test_an_evaluation_of_any_number_of_episodes_is_read_again(
    make_config: Make, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path, make_config(), data_sha256="00")
    seen = [
        Evaluation(update=u, returns=(-1 / 3,) * n, lengths=(7,) * n, success=(False,) * n)
        for u, n in ((1, 400_000), (2, 1))
    ]
    for evaluation in seen:
        folder.record(evaluation)
    assert folder.resume_at_(1) == seen[:1]
    result = folder.finish(1.0)
    assert (folder.path / "result.json").stat().st_size > 2**24
    assert folder.result() == result
    assert result.evaluations == (seen[0],)


@pytest.mark.parametrize("name", ["returns", "lengths", "success"])
def test_a_wrong_value_of_one_episode_is_named(
    make_config: Make, tmp_path: Path, name: str
) -> None:
    folder = RunFolder(tmp_path, make_config(), data_sha256="00")
    folder.record(Evaluation(update=1, returns=(0.5,), lengths=(7,), success=(True,)))
    folder.finish(1.0)
    path = folder.path / "result.json"
    document = json.loads(path.read_text())
    document["evaluations"][0][name] = ["x"]
    path.write_text(json.dumps(document))
    with pytest.raises(ExperimentError, match=f"is no result of a run: got {name} with 'x'"):
        folder.result()


def test_records_of_any_length_are_read_line_by_line(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    run(config, tmp_path / "whole")
    run(config, tmp_path / "parts", stop=After(7))
    metrics = tmp_path / "parts" / config.name / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    last = json.loads(lines[-1])
    # What it would have recorded after its checkpoint until the power failed, update by update.
    with metrics.open("a") as file:
        for update in range(8, 8 + 2**24 // len(lines[-1])):
            file.write(json.dumps(last | {"update": update}) + "\n")
    assert metrics.stat().st_size > 2**24
    records = Lines(metrics)
    with peak_memory() as peak:
        records.cut_back_(10**9)  # nothing
        assert sum(1 for _ in records) > 2**24 // len(lines[-1])
    assert peak[0] < 2**23
    run(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole" / config.name, tmp_path / "parts" / config.name)


def test_only_the_last_line_may_be_torn(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"update": 1}\n{"upd')
    assert Lines(path).read() == [{"update": 1}]
    path.write_text('{"update": 1}\n{"upd\n{"update": 2}\n')
    with pytest.raises(DataError, match=r"metrics.jsonl is damaged: got JSONDecodeError"):
        Lines(path).read()
    path.write_text('{"updates": 1}\n{"update": 2}\n')
    with pytest.raises(DataError, match="no update in line 1"):
        Lines(path).cut_back_(1)
    assert path.read_text() == '{"updates": 1}\n{"update": 2}\n'


def test_divergence_is_a_result(make_config: Make, tmp_path: Path) -> None:
    config = make_config(
        policy=make_config().policy.replace(
            learner=make_config().policy.learner.replace(critic_lr=1e12)
        )
    )
    result = run(config, tmp_path)
    assert result is not None
    assert result.status == "diverged"
    assert "not finite" in result.message
    assert result.score(result.last) is None or result.last is not None
    assert run(config, tmp_path) == result  # deterministic: no second try


def test_the_streams_of_evaluation_do_not_touch_training(make_config: Make, tmp_path: Path) -> None:
    often, seldom = make_config(evaluation={"every": 1}), make_config(evaluation={"every": 30})
    for config in (often, seldom):
        run(config, tmp_path)
    a, b = (parameters(tmp_path / config.name) for config in (often, seldom))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_trained_policy_is_tried_again(make_config: Make, tmp_path: Path) -> None:
    config = make_config(updates=5)
    trained = run(config, tmp_path)
    assert trained is not None
    folder = tmp_path / config.name
    same = reevaluate(folder, config.evaluation)
    assert same.evaluations == trained.evaluations  # the weights, the starts and the noise
    assert same.method == "gtp, K = 2"
    other = reevaluate(folder, config.evaluation.replace(steps=7, candidates=3))
    assert other.method == "gtp, K = 7, 3 candidates"
    assert other.evaluations != trained.evaluations
    assert other.ms_per_action is not None
    (folder / "checkpoints").rename(folder / "elsewhere")
    with pytest.raises(ExperimentError, match="no finished run: got no checkpoint"):
        reevaluate(folder, config.evaluation)
    (folder / "elsewhere").rename(folder / "checkpoints")
    assert reevaluate(folder, config.evaluation.replace(steps=7, candidates=3)) == other
    assert len(read_results(tmp_path)) == 3


def test_a_trained_policy_is_tried_again_as_it_was(make_config: Make, tmp_path: Path) -> None:
    trained = run(make_config(updates=5, evaluation={"max_steps": 3, "seed": 4}), tmp_path)
    assert trained is not None
    (folder,) = tmp_path.iterdir()
    again = ["evaluate", str(folder), "--steps", "2", "--episodes", "5"]
    again += ["--environment", "line_world:make"]
    assert main(again) == 0
    (kept,) = folder.glob("*_result.json")
    seen = read_result(kept)
    assert seen is not None
    assert seen.evaluations == trained.evaluations  # as long, from the same starts, with one noise
    kept.unlink()
    assert main([*again, "--max-steps", "2"]) == 0
    (kept,) = folder.glob("*_result.json")
    seen = read_result(kept)
    assert seen is not None
    assert max(seen.evaluations[0].lengths) == 2


@pytest.mark.slow
def test_runs_side_by_side_are_those_of_one_after_the_other(
    make_config: Make, tmp_path: Path
) -> None:
    configs = [make_config(seed=seed) for seed in (0, 1)]
    apart = run_all(configs, tmp_path / "apart", jobs=2)
    together = run_all(configs, tmp_path / "together")
    assert [r and r.seed for r in apart] == [r and r.seed for r in together] == [0, 1]
    for config in configs:
        assert_same_run(tmp_path / "apart" / config.name, tmp_path / "together" / config.name)


def test_a_signal_is_meant_for_all_runs(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, updates = GTPLearner.update, []

    def interrupted(self: GTPLearner, *batch: object) -> object:
        updates.append(self.config.seed)
        if len(updates) == 3:
            signal.raise_signal(signal.SIGTERM)
        return update(self, *batch)

    monkeypatch.setattr(GTPLearner, "update", interrupted)
    assert run_all([make_config(seed=seed) for seed in (0, 1)], tmp_path) == [None, None]
    assert updates == [0, 0, 0]


def test_wrong_requests_for_several_runs(make_config: Make, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="`jobs` is out of range: got 0"):
        run_all([], tmp_path, jobs=0)
    with pytest.raises(ExperimentError, match="got 2 with 1 different"):
        run_all([make_config(), make_config()], tmp_path)


def test_an_error_in_a_worker_arrives(make_config: Make, tmp_path: Path) -> None:
    configs = [make_config(dataset="missing.hdf5", seed=seed) for seed in (0, 1)]
    with pytest.raises(ValueError, match=r"missing\.hdf5"):
        run_all(configs, tmp_path, jobs=2)


@pytest.mark.slow
def test_sigterm_lets_the_command_save_and_leave(line_data: Path, tmp_path: Path) -> None:
    words = f"run --dataset {line_data} --updates 400 --seeds 0 1 --evaluate-every 100 --episodes 2"
    words += " --environment line_world:make --batch-size 8 --set actor.hidden=[8]"
    words += " --set critic.hidden=[8] --set actor.steps=1 --set actor.time_dim=2 --out"
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    command = [sys.executable, "-m", "gtp_experiments", *words.split(), str(cut), "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 200
            while not list(cut.glob("*/checkpoints/step_*")) and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=200)
        finally:
            process.kill()
    # 0 only if both were done before the signal came, which a slow machine makes of it.
    assert process.returncode == (3 if "the same command goes on" in output else 0)
    assert main([*words.split(), str(cut)]) == 0
    assert main([*words.split(), str(whole)]) == 0
    for folder in whole.iterdir():
        seen = [line["update"] for line in Lines(folder / "evaluations.jsonl").read()]
        assert seen == [100, 200, 300, 400]
        assert_same_run(folder, cut / folder.name)


def test_workers_do_not_outlive_a_command_that_was_killed(line_data: Path, tmp_path: Path) -> None:
    words = f"run --dataset {line_data} --updates 1000000 --seeds 0 1 --jobs 2 --out {tmp_path}"
    words += " --environment line_world:make --batch-size 8 --preset gtp_bc --set actor.hidden=[8]"
    command = [sys.executable, "-m", "gtp_experiments", *words.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 200
        while len(list(tmp_path.glob("*/metrics.jsonl"))) < 2:  # both train
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    for orphan in alive:
        orphan.kill()
    assert not alive
