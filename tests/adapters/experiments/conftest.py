"""A dataset of a tiny task, made on the spot, and experiments that take a fraction of a second."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gtp_experiments import EvaluationConfig, RunConfig
from gtp_policy import (
    Curriculum,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearnerConfig,
    GTPLossConfig,
    PolicyBaseline,
    QEnsembleConfig,
)

HERE = Path(__file__).parent
FIELDS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
SMALL = GTPConfig(
    actor=FlowMapActorConfig(hidden=(16,), time_dim=4, steps=2),
    critic=QEnsembleConfig(hidden=(16,)),
    loss=GTPLossConfig(curriculum=Curriculum(start=4, end=4)),
    learner=GTPLearnerConfig(baseline=PolicyBaseline(samples=1), ema_rate=0.1),
)


@pytest.fixture(autouse=True)
def _line_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the environment importable, here and in processes that a test starts."""
    monkeypatch.syspath_prepend(HERE)
    path = filter(None, (str(HERE), os.environ.get("PYTHONPATH")))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))


@pytest.fixture(scope="session")
def line_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy pushes toward the middle of the line, as a file in D4RL's layout."""
    rng = np.random.default_rng(0)
    columns: dict[str, list[Any]] = {name: [] for name in FIELDS}
    for _ in range(60):
        x = rng.uniform(-1, 1)
        for t in range(12):
            push = np.clip(-0.5 * x + rng.normal(0, 0.5), -1, 1)
            before, x = x, x + push
            gone = abs(x) > 2
            row = ([before, t / 12], [push], -abs(x), gone, t == 11 and not gone, [x, (t + 1) / 12])
            for name, value in zip(FIELDS, row, strict=True):
                columns[name].append(value)
            if gone:
                break
    path = tmp_path_factory.mktemp("line") / "line.hdf5"
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[name] = np.array(values)
    return path


@pytest.fixture
def make_config(line_data: Path) -> Callable[..., RunConfig]:
    """Builds a small experiment on the line."""

    def make(**fields: Any) -> RunConfig:
        evaluation = {"environment": "line_world:make", "every": 10, "episodes": 5, "parallel": 2}
        defaults: dict[str, Any] = {
            "dataset": str(line_data),
            "updates": 30,
            "batch_size": 16,
            "log_every": 5,
            "checkpoint_every": 10,
            "policy": SMALL,
            "evaluation": EvaluationConfig(**{**evaluation, **fields.pop("evaluation", {})}),
        }
        return RunConfig(**{**defaults, **fields})

    return make
