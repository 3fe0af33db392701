"""A Stable-Baselines3 policy and its exported file give the same deterministic actions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import gtp_tianshou
from gtp_policy import (
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    load_checkpoint,
)
from gtp_policy.chunks import Playback
from gtp_policy.errors import ExportError
from gtp_policy.export import export_onnx, export_torch
from gtp_policy.keyed_noise import keyed_noise
from gtp_runtime import ActionQueue, Policy
from gtp_sb3 import GTP, MlpPolicy, MultiInputPolicy

Make = Callable[..., GTP]
Arrays = dict[str, np.ndarray]


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


def test_actions_of_a_box_of_integers_are_whole(tmp_path: Path) -> None:
    policy = MlpPolicy(Box(-np.inf, np.inf, (4,)), Box(0, 9, (2, 1), np.int16), net_arch=[16])
    obs = np.random.default_rng(0).standard_normal((200, 4), np.float32)
    right, _ = policy.predict(obs, deterministic=True)
    policy.save(tmp_path / "policy.zip")
    for i, source in enumerate([policy, tmp_path / "policy.zip"]):
        file, program = tmp_path / f"{i}.onnx", tmp_path / f"{i}.pt2"
        export_onnx(source, file)
        export_torch(source, program)
        for backend in ("numpy", "onnxruntime"):
            found = Policy.load(file, backend=backend).act(obs, deterministic=True)
            assert found.shape == right.shape
            np.testing.assert_array_equal(found, right)
        noise = keyed_noise(torch.from_numpy(obs), 2).float()
        found = torch.export.load(program).module()(torch.from_numpy(obs), noise)
        np.testing.assert_array_equal(found.numpy(), right)
    export_onnx(policy, tmp_path / "half.onnx", precision="float16")
    found = Policy.load(tmp_path / "half.onnx").act(obs, deterministic=True)
    assert np.array_equal(found, found.round())
    assert np.abs(found - right).max() <= 1


@pytest.mark.parametrize("kind", [np.int64, np.float32])
@pytest.mark.parametrize("candidates", [2, 5, 33])
def test_the_critic_chooses_among_whole_actions(tmp_path: Path, candidates: int, kind: Any) -> None:
    """33 is one of the batches that the file is compared in."""
    config = GTPConfig(actor=FlowMapActorConfig(hidden=[16]))
    policy = MlpPolicy(
        Box(-1, 1, (4,)), Box(0, 9, (2,), kind), config=config, candidates=candidates
    )
    obs = np.random.default_rng(0).standard_normal((50, 4), np.float32)
    right, _ = policy.predict(obs, deterministic=True)
    export_onnx(policy, tmp_path / "policy.onnx")
    export_torch(policy, tmp_path / "policy.pt2")
    found = Policy.load(tmp_path / "policy.onnx").act(obs, deterministic=True)
    # Of two of nearly one value it may be the other.
    assert (np.abs(found - right).max(1) < 1e-4).mean() > 0.9


@pytest.mark.parametrize("backend", ["numpy", "onnxruntime"])
def test_an_action_that_is_a_number_is_one(tmp_path: Path, backend: Any) -> None:
    space = Box(-2, 3, ())
    policy = MlpPolicy(Box(-1, 1, (4,)), space, net_arch=[16])
    obs = np.random.default_rng(0).standard_normal((5, 4), np.float32)
    right, _ = policy.predict(obs, deterministic=True)
    policy.save(tmp_path / "policy.zip")
    for source in (policy, tmp_path / "policy.zip"):
        export_onnx(source, tmp_path / "policy.onnx")
        file = Policy.load(tmp_path / "policy.onnx", backend=backend)
        assert file.document.action_shape == ()
        np.testing.assert_allclose(file.act(obs, deterministic=True), right, atol=1e-5)
        assert right.shape == (5,)
        assert space.contains(file.act(obs[0], deterministic=True))
        assert space.contains(ActionQueue(file).act(obs[0]))


def test_averages_of_whole_actions_are_no_whole_actions(tmp_path: Path) -> None:
    config = GTPConfig(
        actor=FlowMapActorConfig(chunk=3, hidden=[16]),
        learner=GTPLearnerConfig(playback=Playback(every=1, ensemble=0.1)),
        critic=None,
    )
    policy = MlpPolicy(Box(-1, 1, (4,)), Box(0, 9, (2,), np.int16), config=config)
    with pytest.raises(ExportError, match="average whole numbers"):
        export_onnx(policy, tmp_path / "policy.onnx")


def test_a_file_made_from_a_checkpoint_is_that_of_the_policy(tmp_path: Path) -> None:
    policy = MlpPolicy(Box(-1.0, 1.0, (4,)), Box(-2.0, 2.0, (2, 3)), net_arch=[16])
    policy.candidates = 3
    policy.save(tmp_path / "policy.zip")
    documents = [
        export_onnx(source, tmp_path / "policy.onnx").model_dump()
        for source in (policy, tmp_path / "policy.zip", load_checkpoint(tmp_path / "policy.zip"))
    ]
    for document in documents:
        del document["observation"], document["checkpoint"]  # bounds and the hash
    assert documents[0] == documents[1] == documents[2]
    assert documents[0]["candidates"] == 3
    assert documents[0]["action"]["shape"] == (2, 3)


@pytest.mark.filterwarnings("ignore:The policy of .* VecNormalize had normalised")
@pytest.mark.parametrize("changes", [{}, {"norm_obs": False}])
def test_no_file_of_a_policy_that_sees_normalised_observations(
    make_model: Make, untouchable: Any, arrays: Arrays, tmp_path: Path, changes: dict[str, bool]
) -> None:
    env = VecNormalize(DummyVecEnv([lambda: untouchable]), **changes)
    model = make_model(env, dataset=arrays).learn(2)
    model.save(tmp_path / "model.zip")
    model.policy.save(tmp_path / "policy.zip")
    sources = [
        model,
        model.policy,
        tmp_path / "model.zip",
        tmp_path / "policy.zip",
        GTP.load(tmp_path / "model.zip"),
        MlpPolicy.load(tmp_path / "policy.zip"),
        GTP.from_actor(tmp_path / "model.zip"),
        load_checkpoint(tmp_path / "policy.zip").learner,
        load_checkpoint(tmp_path / "policy.zip").learner.actor,
        load_checkpoint(model.learner.save(tmp_path / "learner.zip")),
        gtp_tianshou.GTP.load(tmp_path / "model.zip"),
        gtp_tianshou.GTP.load(gtp_tianshou.GTP.load(tmp_path / "model.zip").save(tmp_path / "t")),
        tmp_path / "t",
        GTPLearner.from_actor(model.learner, GTPConfig()),
    ]
    for parameters in (tmp_path / "model.zip", model.get_parameters()):
        other = make_model(type(untouchable)(), dataset=arrays)
        other.set_parameters(parameters)
        sources.append(other)
    for source in sources:
        if changes:
            export_onnx(source, tmp_path / "policy.onnx")
            continue
        with pytest.raises(ExportError, match="VecNormalize has normalised"):
            export_onnx(source, tmp_path / "policy.onnx")
    # What the message advises: it takes what `normalize_obs` returns.
    source = model.policy_source()._replace(normalized_by=None)
    export_onnx(source, tmp_path / "policy.onnx")
    obs = env.normalize_obs(arrays["obs"].astype(np.float32))
    right, _ = model.predict(obs, deterministic=True)
    found = Policy.load(tmp_path / "policy.onnx").act(obs, deterministic=True)
    np.testing.assert_allclose(found, right, atol=1e-5)
