"""What trackers get, read back from the files that TensorBoard and Weights & Biases write."""

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from gtp_experiments import ExperimentError, RunConfig, read_result, run, run_seeds
from gtp_experiments.records import Lines

Make = Callable[..., RunConfig]
needs_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None,
    reason="wandb brings two dozen packages and is not installed: make test-extras",
)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B without a network, and without words."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


class Kept:
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def log(self, update: int, figures: Mapping[str, float]) -> None:
        self.lines.append((update, dict(figures)))

    def close(self) -> None:
        self.closed = True


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def kept_by_wandb(folder: Path) -> bytes:
    """What W&B has written of a run, which is named after its folder and has its losses."""
    (run_folder,) = (folder / "wandb").glob("offline-run-*")
    (record,) = run_folder.glob("run-*.wandb")
    assert folder.name in record.name
    data = record.read_bytes()
    assert b"train/actor_loss" in data
    return data


def test_a_tracker_gets_the_records_of_the_run(make_config: Make, tmp_path: Path) -> None:
    kept, config = Kept(), make_config(updates=10)
    result = run(config, tmp_path, track=[kept])
    assert result is not None
    metrics = Lines(tmp_path / config.name / "metrics.jsonl").read()
    trained = [(u, f) for u, f in kept.lines if "train/actor_loss" in f]
    assert [u for u, _ in trained] == [5, 10]
    assert trained[1][1]["train/actor_loss"] == metrics[1]["actor_loss"]
    (evaluated,) = [f for _, f in kept.lines if "evaluation/score" in f]
    assert evaluated["evaluation/mean_return"] == result.evaluations[0].mean
    assert evaluated["evaluation/success"] == np.mean(result.evaluations[0].success)
    assert evaluated["evaluation/score"] == result.score(result.last)
    assert not kept.closed  # whoever opened it closes it


def test_a_score_is_what_tables_say(make_config: Make, tmp_path: Path) -> None:
    kept = Kept()
    for task in ("hopper-medium", "pointmaze-line"):
        result = run(make_config(updates=5, task=task), tmp_path, track=[kept])
        assert result is not None
        assert kept.lines[-1][1]["evaluation/score"] == pytest.approx(result.score(result.last))


def test_tensorboard_goes_on_where_the_run_does(make_config: Make, tmp_path: Path) -> None:
    config, calls = make_config(updates=20), iter([False] * 14 + [True])
    assert run(config, tmp_path, stop=lambda: next(calls), track=["tensorboard"]) is None
    assert run(config, tmp_path, track=["tensorboard"]) is not None
    folder = tmp_path / config.name
    metrics = Lines(folder / "metrics.jsonl").read()
    expected = [(line["update"], np.float32(line["critic_loss"])) for line in metrics]
    assert scalars(folder, "train/critic_loss") == expected
    assert [step for step, _ in scalars(folder, "evaluation/score")] == [10, 20]


def test_seeds_in_one_program_are_told_apart(make_config: Make, tmp_path: Path) -> None:
    configs = [make_config(updates=10, seed=seed) for seed in (0, 1)]
    run_seeds(configs, tmp_path, track=["tensorboard"])
    losses = [scalars(tmp_path / c.name, "train/actor_loss") for c in configs]
    assert [[step for step, _ in of_one] for of_one in losses] == [[5, 10], [5, 10]]
    assert losses[0] != losses[1]


def test_an_unknown_tracker_is_refused_with_a_guess(make_config: Make, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="Did you mean tensorboard"):
        run(make_config(updates=5), tmp_path, track=["tensorbord"])  # type: ignore[list-item]


@needs_wandb
@pytest.mark.usefixtures("offline")
def test_wandb_keeps_the_run_offline(make_config: Make, tmp_path: Path) -> None:
    config = make_config(updates=10)
    assert run(config, tmp_path, track=["wandb"]) is not None
    assert read_result(tmp_path / config.name / "result.json") is not None
    data = kept_by_wandb(tmp_path / config.name)
    assert b"evaluation/score" in data
    assert json.dumps(config.dataset)[1:-1].encode() in data  # the choices are with it


@needs_wandb
@pytest.mark.usefixtures("offline")
def test_wandb_tells_seeds_in_one_program_apart(make_config: Make, tmp_path: Path) -> None:
    configs = [make_config(updates=10, seed=seed) for seed in (0, 1)]
    run_seeds(configs, tmp_path, track=["wandb"])
    for config, other in (configs, configs[::-1]):
        data = kept_by_wandb(tmp_path / config.name)
        assert config.name.encode() in data
        assert other.name.encode() not in data
