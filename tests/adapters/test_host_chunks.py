"""Chunks in both hosts: what they play in vectors of environments is what one walk would play."""

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from tianshou.data import Batch, Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OfflineTrainerParams

import gtp_sb3
import gtp_tianshou
from gtp_experiments import EvaluationConfig, policy_of
from gtp_experiments.evaluation import _run_episodes
from gtp_policy import (
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    OfflineDataset,
    QEnsembleConfig,
)
from gtp_policy.chunks import Playback
from gtp_policy.errors import DataError
from gtp_policy.export import export_onnx
from gtp_runtime import ActionQueue, Policy

LOW, HIGH = [-2.0, 0.0], [2.0, 10.0]
BOX = Box(np.array(LOW, np.float32), np.array(HIGH, np.float32))
VECTOR = Box(-np.inf, np.inf, (3,), np.float32)


class Recorder(gym.Env[np.ndarray, np.ndarray]):
    """Episodes of given lengths, one after the other; keeps what was seen and what was done."""

    observation_space, action_space = VECTOR, BOX

    def __init__(self, lengths: list[int], number: int) -> None:
        self.lengths, self.number, self.episode, self.log = lengths, number, -1, []

    def observe(self) -> np.ndarray:
        return np.array(
            [self.number, math.sin(3.0 * self.episode + self.number), self.time / 5], np.float32
        )

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:  # type: ignore[override]
        self.episode, self.time = self.episode + 1, 0
        self.log.append([])
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(np.asarray(action, np.float32))
        self.log[-1].append((self.observe(), np.asarray(action)))
        self.time += 1
        done = self.time >= self.lengths[self.episode % len(self.lengths)]
        return self.observe(), 0.0, done, False, {}


def data() -> OfflineDataset:
    random = np.random.default_rng(0)
    return OfflineDataset.from_arrays(
        obs=random.normal(size=(60, 3)),
        action=random.uniform(LOW, HIGH, (60, 2)),
        reward=random.normal(size=60),
        next_obs=random.normal(size=(60, 3)),
        terminated=np.arange(60) % 12 == 11,
        truncated=np.arange(60) % 12 == 5,
        low=LOW,
        high=HIGH,
    )


def config_of(chunk: int, history: int, playback: Playback | None = None) -> GTPConfig:
    return GTPConfig(
        actor=FlowMapActorConfig(hidden=(16,), time_dim=4, steps=2, chunk=chunk, history=history),
        critic=QEnsembleConfig(hidden=(16,)),
        learner=GTPLearnerConfig(
            total_updates=3,
            ema_rate=0.5,
            eval_candidates=1,
            seed=3,
            playback=playback or Playback(),
        ),
    )


def check_log(learner: GTPLearner, dataset: OfflineDataset, envs: list[Recorder]) -> None:
    """Every episode against a walk through it with lists and the learner's own `act`."""
    actor, playback = learner.actor.config, learner.config.playback
    every = playback.every or actor.chunk
    steps = 0
    for env in envs:
        for episode in env.log:
            seen: list[np.ndarray] = []
            plans: list[np.ndarray] = []
            for t, (obs, action) in enumerate(episode):
                seen.append(obs)
                if t % every == 0:
                    past = [seen[max(t - back, 0)] for back in range(actor.history - 1, -1, -1)]
                    window = torch.from_numpy(np.concatenate(past))[None]
                    chunk = learner.act(window, candidates=1, deterministic=True)
                    plans.append(chunk.numpy().reshape(actor.chunk, -1))
                speaking = [
                    plan[t - every * i]
                    for i, plan in enumerate(plans)
                    if t - every * i < actor.chunk
                ]
                expected = speaking[-1]
                if playback.ensemble is not None:
                    weights = [math.exp(-playback.ensemble * i) for i in range(len(speaking))]
                    total = sum(w * a for w, a in zip(weights, speaking, strict=True))
                    expected = total / sum(weights)
                box = dataset.action_scaler.to_box(expected)
                np.testing.assert_allclose(action, box, rtol=1e-4, atol=1e-4)
                steps += 1
    assert steps


PLAYED = [
    config_of(4, 1),
    config_of(4, 3, Playback(every=2)),
    config_of(5, 2, Playback(every=2, ensemble=0.3)),
    config_of(1, 3),
]
LENGTHS = [[3, 7], [9], [1, 4, 2]]


@pytest.fixture(scope="module")
def models() -> list[tuple[gtp_sb3.GTP, gtp_tianshou.GTP]]:
    found = []
    for config in PLAYED:
        model = gtp_sb3.GTP(
            "MlpPolicy", None, dataset=data(), gtp_config=config, batch_size=16, device="cpu"
        )
        model.learn(3)
        algorithm = gtp_tianshou.GTP.from_buffer(data(), action_space=BOX, config=config)
        algorithm.run_training(
            OfflineTrainerParams(
                buffer=data(), max_epochs=1, epoch_num_steps=3, batch_size=16, show_progress=False
            )
        )
        found.append((model, algorithm))
    return found


def test_three_places_learn_the_same_chunks(
    models: list[tuple[gtp_sb3.GTP, gtp_tianshou.GTP]],
) -> None:
    for config, (model, algorithm) in zip(PLAYED, models, strict=True):
        dataset = data().with_steps(config.actor.history, config.actor.chunk)
        learner = GTPLearner.from_dataset(dataset, config)
        learner.update_from(dataset, 3, batch_size=16)
        for other in (model.learner, algorithm.learner):
            for a, b in zip(learner.parameters(), other.parameters(), strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("number", range(len(PLAYED)))
def test_sb3_evaluates_chunks_in_a_vector_of_environments(
    models: list[tuple[gtp_sb3.GTP, gtp_tianshou.GTP]], number: int
) -> None:
    model, _ = models[number]
    envs = [Recorder(lengths, i) for i, lengths in enumerate(LENGTHS)]
    vector = DummyVecEnv([lambda env=env: env for env in envs])
    evaluate_policy(model, vector, n_eval_episodes=9, deterministic=True, warn=False)
    for env in envs:  # of further ones SB3 does not count, it says that each step begins one
        env.log = env.log[:3]
    check_log(model.learner, data(), envs)


@pytest.mark.parametrize("number", range(len(PLAYED)))
def test_tianshou_collects_chunks_in_a_vector_of_environments(
    models: list[tuple[gtp_sb3.GTP, gtp_tianshou.GTP]], number: int
) -> None:
    _, algorithm = models[number]
    envs = [Recorder(lengths, i) for i, lengths in enumerate(LENGTHS)]
    vector = DummyVectorEnv([lambda env=env: env for env in envs])
    algorithm.policy.deterministic_eval, algorithm.policy.candidates = True, 1
    collector = Collector(algorithm, vector, VectorReplayBuffer(200, 3))
    collector.reset()
    for _ in range(2):  # the second goes on in the middle of episodes
        collector.collect(n_step=21)
    check_log(algorithm.learner, data(), envs)
    collector.reset()
    collector.collect(n_episode=5)
    check_log(algorithm.learner, data(), envs)


@pytest.mark.parametrize("number", range(len(PLAYED)))
def test_experiments_evaluate_chunks(
    models: list[tuple[gtp_sb3.GTP, gtp_tianshou.GTP]], number: int
) -> None:
    learner = models[number][0].learner
    envs = [Recorder(lengths, i) for i, lengths in enumerate(LENGTHS)]
    act = policy_of(learner, data(), EvaluationConfig())
    # Noise is drawn anew for each call: of one that is always the same, equal walks follow.
    fixed = learner.target_actor.fixed_noise
    learner.target_actor.sample = (  # type: ignore[method-assign]
        lambda obs, steps=None, noise=None, generator=None: type(learner.target_actor).sample(
            learner.target_actor, obs, steps=steps, noise=fixed.expand(len(obs), -1)
        )
    )
    try:
        _run_episodes(act, envs, data(), list(range(8)), 3, None)
        check_log(learner, data(), envs)
    finally:
        del learner.target_actor.sample


@given(
    starts=st.lists(st.lists(st.booleans(), min_size=2, max_size=2), min_size=1, max_size=9),
    number=st.integers(0, len(PLAYED) - 1),
)
@settings(max_examples=10)
def test_a_state_is_cleared_where_episodes_start(
    models: list[tuple[gtp_sb3.GTP, gtp_tianshou.GTP]], starts: list[list[bool]], number: int
) -> None:
    """SB3's `predict` and Tianshou's `forward` against two players with one environment each."""
    model, algorithm = models[number]
    algorithm.policy.deterministic_eval, algorithm.policy.candidates = True, 1
    alone = [model.learner.player(candidates=1, deterministic=True) for _ in range(2)]
    state, hidden = None, None
    for t, begins in enumerate(starts):
        obs = np.array([[t, 0.1 * t, 1.0], [-t, 0.3, 0.5]], np.float32)
        expected = []
        for player, begin, one in zip(alone, begins, obs, strict=True):
            if begin:
                player.reset()
            expected.append(player.act(torch.from_numpy(one)[None])[0])
        box = data().action_scaler.to_box(torch.stack(expected).numpy())
        action, state = model.predict(
            obs, state=state, episode_start=np.array(begins), deterministic=True
        )
        np.testing.assert_allclose(action, box, rtol=1e-4, atol=1e-4)
        if hidden is not None:
            hidden[np.array(begins)] = 0
        out = algorithm.policy(Batch(obs=obs, info={}), hidden)
        hidden = out.state
        np.testing.assert_allclose(algorithm.policy.map_action(out.act), box, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("number", range(len(PLAYED)))
@pytest.mark.parametrize("host", [0, 1], ids=["sb3", "tianshou"])
def test_an_exported_host_is_played_as_it_plays(
    models: list[tuple[gtp_sb3.GTP, gtp_tianshou.GTP]], tmp_path: Path, host: int, number: int
) -> None:
    policy = models[number][host].policy
    export_onnx(policy, tmp_path / "policy.onnx", candidates=1)
    queue = ActionQueue(Policy.load(tmp_path / "policy.onnx"), deterministic=True)
    player = models[number][host].learner.player(candidates=1, deterministic=True)
    for obs in np.random.default_rng(0).standard_normal((9, 3), np.float32):
        unit = player.act(torch.from_numpy(obs)[None])[0].numpy()
        expected = data().action_scaler.to_box(unit)
        np.testing.assert_allclose(queue.act(obs), expected, rtol=1e-4, atol=1e-4)


def test_files_of_hosts_know_chunks(
    models: list[tuple[gtp_sb3.GTP, gtp_tianshou.GTP]], tmp_path: Any
) -> None:
    model, algorithm = models[1]
    model.save(tmp_path / "sb3.zip")
    algorithm.save(tmp_path / "tianshou.zip")
    loaded = gtp_sb3.GTP.load(tmp_path / "sb3.zip", device="cpu")
    again = gtp_tianshou.GTP.load(tmp_path / "tianshou.zip")
    assert loaded.learner.actor.config == model.learner.actor.config
    assert again.learner.actor.config == algorithm.learner.actor.config
    obs = np.zeros((2, 3), np.float32)
    a, state = model.predict(obs, deterministic=True)
    b, other = loaded.predict(obs, deterministic=True)
    np.testing.assert_array_equal(a, b)
    for x, y in zip(state, other, strict=True):
        np.testing.assert_array_equal(x, y)
    assert again.policy.compute_action(obs[0]).shape == (2,)


def test_a_dataset_in_chunks_says_what_the_policy_is() -> None:
    dataset = data().with_history(2).with_chunks(3)
    config = config_of(1, 1)
    model = gtp_sb3.GTP(
        "MlpPolicy", None, dataset=dataset, gtp_config=config, batch_size=16, device="cpu"
    )
    assert model.learner.actor.action_dim == 6
    assert model.learn(1).predict(np.zeros(3))[0].shape == (2,)
    algorithm = gtp_tianshou.GTP.from_buffer(dataset, action_space=BOX, config=config)
    assert algorithm.learner.actor.obs_dim == 6


def test_chunks_are_learned_offline_from_whole_episodes() -> None:
    env = Recorder([5], 0)
    model = gtp_sb3.GTP("MlpPolicy", env, gtp_config=config_of(2, 1), device="cpu", buffer_size=9)
    with pytest.raises(ValueError, match="Chunks and histories are learned offline"):
        model.learn(1)
    with pytest.raises(DataError, match=r"got \(history, chunk\) = \(1, 3\), expected \(1, 2\)"):
        model.set_dataset(data().with_chunks(3))
    algorithm = gtp_tianshou.GTP.from_buffer(data(), action_space=BOX, config=config_of(2, 1))
    algorithm.preload = False
    with pytest.raises(DataError, match="are cut from whole episodes"):
        algorithm.process_buffer(VectorReplayBuffer(10, 1))
    with pytest.raises(DataError, match="holds single observations: got history=2"):
        gtp_tianshou.buffer_from_dataset(data().with_history(2))
