"""Agents of different quality: trained in steps, resumed, and their episodes put together."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import mixed_data
from benchmarks.mixed_data import TASKS, Task, agent_path, generate, mix, train
from benchmarks.rollouts import returns_of
from gtp_datasets import load_d4rl_hdf5
from gtp_experiments.tasks import task_of

# Stable-Baselines3 draws from global generators.
pytestmark = [pytest.mark.global_rng, pytest.mark.slow]

TINY = Task("Hopper-v5", (0, 60, 120))
OPTIONS: dict[str, Any] = {
    "learning_starts": 20,
    "batch_size": 8,
    "buffer_size": 1000,
    "policy_kwargs": {"net_arch": [8, 8]},
}


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed_data, "CHECKPOINT_EVERY", 40)


def test_every_task_begins_untrained_and_has_a_scale() -> None:
    for name, task in TASKS.items():
        assert task.steps[0] == 0
        assert list(task.steps) == sorted(set(task.steps))
        assert task_of(f"{name}-mixed") is not None


def test_a_training_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stable_baselines3 import SAC

    whole = mixed_data.checkpoint

    def killed(model: SAC, place: Path) -> None:
        whole(model, place)
        if model.num_timesteps == 100:
            raise KeyboardInterrupt

    monkeypatch.setattr(mixed_data, "checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, tmp_path, 0, **OPTIONS)
    assert agent_path(tmp_path, 60).exists()
    assert not agent_path(tmp_path, 120).exists()
    done = {steps: agent_path(tmp_path, steps).read_bytes() for steps in (0, 60)}
    monkeypatch.setattr(mixed_data, "checkpoint", whole)
    resumed: list[int] = []
    start = mixed_data.start_or_resume

    def watched(*args: Any, **options: Any) -> SAC:
        model = start(*args, **options)
        resumed.extend((model.num_timesteps, model.replay_buffer.size()))
        return model

    monkeypatch.setattr(mixed_data, "start_or_resume", watched)
    train(TINY, tmp_path, 0, **OPTIONS)
    assert resumed == [100, 100]
    assert SAC.load(agent_path(tmp_path, 120), device="cpu").num_timesteps == 120
    assert {s: agent_path(tmp_path, s).read_bytes() for s in (0, 60)} == done
    assert not (tmp_path / "checkpoint").exists()


def test_agents_differ_and_each_gives_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        mixed_data, "train", lambda task, folder, seed: train(task, folder, seed, **OPTIONS)
    )
    record = generate("hopper", TINY, 150, 3, tmp_path)
    dataset = load_d4rl_hdf5(tmp_path / "hopper-mixed.hdf5")
    assert len(dataset) == record["transitions"] >= 150
    assert [agent["steps_of_training"] for agent in record["agents"]] == [0, 60, 120]
    scores = [agent["score"] for agent in record["agents"]]
    assert len(set(scores)) == 3
    assert min(scores) <= record["behaviour_score"] <= max(scores)
    reference = task_of("hopper")
    assert reference is not None
    assert record["reference"] == reference.reference.source
    written = (tmp_path / "hopper-mixed.hdf5").stat().st_mtime_ns
    assert generate("hopper", TINY, 150, 3, tmp_path) == json.loads(json.dumps(record))
    assert (tmp_path / "hopper-mixed.hdf5").stat().st_mtime_ns == written
    generate("hopper", TINY, 160, 3, tmp_path)
    assert (tmp_path / "hopper-mixed.hdf5").stat().st_mtime_ns > written


def test_the_mixture_says_whose_rows_are_whose() -> None:
    one = {"rewards": np.ones(3), "terminals": np.array([0, 0, 1], bool), "timeouts": np.zeros(3)}
    one["timeouts"] = np.zeros(3, bool)
    two = {field: values[1:] for field, values in one.items()}
    mixed = mix([one, two])
    assert mixed["agent"].tolist() == [0, 0, 0, 1, 1]
    assert returns_of(mixed).tolist() == [3.0, 2.0]
