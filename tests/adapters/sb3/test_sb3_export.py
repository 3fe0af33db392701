"""A Stable-Baselines3 policy and its exported file give the same deterministic actions."""

from pathlib import Path

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space

from gtp_policy.export import export_onnx, export_torch
from gtp_runtime import Policy
from gtp_sb3 import MlpPolicy, MultiInputPolicy


@pytest.mark.parametrize("candidates", [None, 1, 6])
def test_a_file_acts_as_the_policy_predicts(tmp_path: Path, candidates: int | None) -> None:
    policy = MlpPolicy(Box(-np.inf, np.inf, (4,)), Box(-2.0, 2.0, (2,)), net_arch=[16])
    policy.candidates = candidates
    export_onnx(policy, tmp_path / "policy.onnx")
    obs = np.random.default_rng(0).standard_normal((50, 4), np.float32)
    right, _ = policy.predict(obs, deterministic=True)
    found = Policy.load(tmp_path / "policy.onnx").act(obs, deterministic=True)
    # Of two that are as central, or as good, it may be the other.
    assert (np.abs(found - right).max(1) < 1e-5).mean() > 0.9


@pytest.mark.parametrize("backend", ["numpy", "onnxruntime"])
@pytest.mark.parametrize(
    "space",
    [
        Discrete(4),
        MultiDiscrete([3, 4]),
        MultiBinary(3),
        Dict(kind=Discrete(3), place=Box(-1.0, 1.0, (2,))),
    ],
    ids=lambda space: type(space).__name__,
)
def test_classes_are_inputs_of_a_file(tmp_path: Path, space: Space, backend: str) -> None:
    kind = MultiInputPolicy if isinstance(space, Dict) else MlpPolicy
    policy = kind(space, Box(-2.0, 2.0, (2,)), net_arch=[16])
    export_onnx(policy, tmp_path / "policy.onnx")
    export_torch(policy, tmp_path / "policy.pt2")
    found = Policy.load(tmp_path / "policy.onnx", backend=backend)
    space.seed(0)
    for _ in range(5):
        obs = space.sample()
        right, _ = policy.predict(obs, deterministic=True)
        np.testing.assert_allclose(found.act(obs, deterministic=True), right, atol=1e-5)
