"""The learners and data of the trials: small, so that a trial spends its time on its subject."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gtp_policy import (
    Curriculum,
    ExpectileBaseline,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    GTPLossConfig,
    OfflineDataset,
    PolicyBaseline,
    QEnsembleConfig,
)
from gtp_policy.times import LogNormalIndex, UniformTimes

ROOT = Path(__file__).parents[2]
OBS, ACT, BATCH = 3, 2, 32


def make_config(total_updates: int, *, critic: bool = True, **choices: Any) -> GTPConfig:
    """Returns a config of small networks; ``choices`` by field name of whichever part has it."""
    choices = {"baseline": PolicyBaseline(samples=1), "ema_rate": 0.1} | choices

    def part(cls: Any, **fixed: Any) -> Any:
        own = {name: choices.pop(name) for name in list(choices) if name in cls.model_fields}
        return cls(**{**cls.before, **fixed, **own})  # the paper's method, step by step

    loss = part(GTPLossConfig, curriculum=Curriculum(start=4, end=8))  # first: its `reduction`
    config = GTPConfig(
        actor=part(FlowMapActorConfig, hidden=(16, 16), time_dim=8, steps=2),
        critic=part(QEnsembleConfig, hidden=(16, 16)) if critic else None,
        loss=loss,
        learner=part(GTPLearnerConfig, total_updates=total_updates, actor_lr=1e-3, critic_lr=1e-3),
    )
    if choices:
        raise TypeError(f"no part of a config has {sorted(choices)}")
    return config


def configs(total_updates: int) -> dict[str, GTPConfig]:
    """Returns ten ways to train, the three most different ones first."""
    expectile = ExpectileBaseline(hidden=(16,))
    ways: dict[str, dict[str, Any]] = {
        "policy baseline": {},
        "expectile baseline, cosine": {"baseline": expectile, "lr_schedule": "cosine"},
        "behaviour cloning": {"critic": False},
        "four members with layer norm": {"members": 4, "layer_norm": True},
        "max-Q backup": {"backup_actions": 3},
        "clipped gradients": {"max_grad_norm": 0.5, "lr_schedule": "cosine"},
        "pseudo-Huber": {"huber": 0.1, "reduction": "sum"},
        "log-normal times": {"t_law": LogNormalIndex(), "max_gap": 2, "time_weight": "gap"},
        "uniform times": {"times": UniformTimes(), "steps": 3},
        "raw observations": {"normalize_obs": False, "baseline": PolicyBaseline(samples=3)},
    }
    return {
        name: make_config(total_updates, seed=seed, **way)
        for seed, (name, way) in enumerate(ways.items())
    }


def make_dataset(rows: int = 256, *, seed: int = 0) -> OfflineDataset:
    """Returns random transitions in episodes of 16, every second one truncated."""
    rng = np.random.default_rng(seed)
    end = np.arange(rows) % 16 == 15
    odd = np.arange(rows) // 16 % 2 == 1
    return OfflineDataset.from_arrays(
        obs=rng.normal(3.0, 2.0, size=(rows, OBS)),
        action=rng.uniform(-0.6, 0.6, size=(rows, ACT)),
        reward=rng.normal(size=rows),
        next_obs=rng.normal(3.0, 2.0, size=(rows, OBS)),
        terminated=end & odd,
        truncated=end & ~odd,
        low=[-1.0] * ACT,
        high=[1.0] * ACT,
    )


def train(learner: GTPLearner, dataset: OfflineDataset, updates: int) -> list[str]:
    """Does some updates; returns a log of them, one JSON line each."""
    lines = []
    for _ in range(updates):
        metrics = learner.update(dataset.sample(BATCH, generator=learner.stream("batch")))
        lines.append(json.dumps({"update": learner.updates, **metrics.to_floats()}))
    return lines


def flat_state(learner: GTPLearner) -> dict[str, Tensor]:
    """Returns everything that an update may change: parameters, buffers, moments, counters."""
    return dict(_flatten(learner.state_dict(), ""))


def _flatten(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _flatten(entry, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from _flatten(entry, f"{name}/{index}")
    elif isinstance(value, int | float):
        yield name, torch.tensor(value, dtype=torch.float64)


def differences(left: dict[str, Tensor], right: dict[str, Tensor]) -> list[str]:
    """Returns the names under which two states are not equal bit for bit."""
    return [
        name
        for name in sorted(left.keys() | right.keys())
        if name not in left or name not in right or not same_bits(left[name], right[name])
    ]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Returns whether two tensors agree in dtype, shape and every bit; NaN equals itself."""
    return a.dtype == b.dtype and a.shape == b.shape and _bytes(a) == _bytes(b)


def digests(learner: GTPLearner) -> dict[str, str]:
    """Returns a SHA-256 per entry of the state."""
    return {
        name: hashlib.sha256(f"{t.dtype} {tuple(t.shape)}".encode() + _bytes(t)).hexdigest()
        for name, t in flat_state(learner).items()
    }


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
