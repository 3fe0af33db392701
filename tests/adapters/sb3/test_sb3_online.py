"""Learning from an environment: wherever SB3 code takes an off-policy algorithm, GTP fits."""

import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import TD3, HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import (
    EvalCallback,
    LogEveryNTimesteps,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv, IdentityEnvBox
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import (
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from gtp_policy import AdvantageWeighterConfig, GTPConfig, Transitions
from gtp_sb3 import GTP

Make = Callable[..., GTP]

# SB3's loop draws from numpy's global generator.
pytestmark = pytest.mark.global_rng


@pytest.fixture
def make_online(make_model: Make) -> Make:
    return lambda env, *args, **changes: make_model(env, *args, **({"dataset": None} | changes))


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train_freq": 4},
        {"train_freq": (5, "step"), "gradient_steps": 3},
        {"train_freq": (1, "episode"), "gradient_steps": -1},
        {"gradient_steps": -1},
        {"gradient_steps": 0},
        {"learning_starts": 0},
        {"n_steps": 3},
        {"replay_buffer_class": NStepReplayBuffer, "replay_buffer_kwargs": {"n_steps": 2}},
        {
            "optimize_memory_usage": True,
            "replay_buffer_kwargs": {"handle_timeout_termination": False},
        },
    ],
)
def test_learns_as_often_as_td3_does(
    make_online: Make, walk: Any, changes: dict[str, Any], n_envs: int
) -> None:
    if n_envs > 1 and changes.get("train_freq") == (1, "episode"):
        with pytest.raises(AssertionError, match="only one env"):  # SB3's own error
            make_online(make_vec_env(walk, n_envs), **changes).learn(30)
        return
    model = make_online(make_vec_env(walk, n_envs), **changes).learn(30)
    oracle = TD3(
        "MlpPolicy",
        make_vec_env(walk, n_envs),
        **{"buffer_size": 1000, "learning_starts": 10, "batch_size": 8} | changes,
        policy_kwargs={"net_arch": [4]},
    ).learn(30)
    assert (model.num_timesteps, model._n_updates) == (oracle.num_timesteps, oracle._n_updates)
    assert model.replay_buffer is not None
    assert oracle.replay_buffer is not None
    assert type(model.replay_buffer) is type(oracle.replay_buffer)
    assert model.replay_buffer.size() == oracle.replay_buffer.size()
    assert model.replay_buffer.n_envs == n_envs


def test_a_transition_reaches_the_learner_as_it_was(
    make_online: Make, walk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Actions in [-1, 1], a time limit bootstraps, a real end does not."""
    seen: list[Transitions] = []
    model = make_online(walk(), learning_starts=20, gamma=0.9)
    monkeypatch.setattr(model.learner, "update", lambda batch: seen.append(batch))
    model.learn(30)
    buffer = model.replay_buffer
    assert buffer is not None
    assert buffer.timeouts.sum() == 3
    for batch in seen:
        assert [x.dtype for x in batch.present()] == [torch.float32] * 5
        assert batch.action.abs().max() <= 1
        assert set(batch.discount.tolist()) == {np.float32(0.9)}
        # The walk: position + action, the reward its distance from 0.
        moved = (batch.obs[:, 0] + 2 * batch.action[:, 0]).clamp(-5, 5)
        torch.testing.assert_close(moved, batch.next_obs[:, 0])
        torch.testing.assert_close(batch.reward, -moved.abs())


def test_n_step_returns_bring_their_own_discount(
    make_online: Make, walk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Transitions] = []
    model = make_online(walk(), learning_starts=20, gamma=0.5, n_steps=2)
    monkeypatch.setattr(model.learner, "update", lambda batch: seen.append(batch))
    model.learn(30)
    # Two steps, or one before the time limit.
    assert {d for batch in seen for d in batch.discount.tolist()} == {0.25, 0.5}


def test_rounding_never_takes_an_action_out_of_the_unit_cube(make_online: Make, walk: Any) -> None:
    model = make_online(walk()).learn(10)
    assert model.replay_buffer is not None
    model.replay_buffer.actions[:10] = np.nextafter(np.float32(1), np.float32(2))
    assert model._minibatch(8).action.unique().tolist() == [1.0]


def test_reaches_sb3s_own_bar_on_its_identity_environment() -> None:
    """As SB3 tests SAC: 400 steps, a reward of at least 90."""
    env = IdentityEnvBox(eps=0.5)
    model = GTP(
        "MlpPolicy",
        env,
        learning_rate=1e-3,
        batch_size=64,
        tau=0.02,
        seed=0,
        # Online the critic has seen what it values: it chooses, as it does by its argument.
        policy_kwargs={"net_arch": [64, 64], "candidates": 16},
    ).learn(400)
    evaluate_policy(model, env, n_eval_episodes=20, reward_threshold=90, warn=False)


def test_equal_seeds_give_equal_runs(make_online: Make, walk: Any, equal: Any) -> None:
    def run(seed: int) -> GTP:
        return make_online(walk(), seed=seed).learn(25)

    a, b, c = run(1), run(1), run(2)
    assert equal(a, b)
    assert not equal(a, c)
    obs = np.zeros((5, 3), np.float32)
    np.testing.assert_array_equal(a.predict(obs)[0], b.predict(obs)[0])


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("noise", [NormalActionNoise, OrnsteinUhlenbeckActionNoise])
def test_action_noise(make_online: Make, walk: Any, n_envs: int, noise: Any) -> None:
    env = make_vec_env(walk, n_envs)
    model = make_online(env, action_noise=noise(np.zeros(1), 0.5 * np.ones(1)))
    model.learn(30)
    assert isinstance(model.action_noise, VectorizedActionNoise) == (n_envs > 1)
    assert model.replay_buffer is not None
    assert np.abs(model.replay_buffer.actions).max() <= 1


def test_callbacks_see_an_environment(make_online: Make, walk: Any) -> None:
    seen: list[set[str]] = []

    def look(variables: dict[str, Any], _: Any) -> bool:
        seen.append(set(variables))
        return True

    model = make_online(walk())
    model.learn(30, callback=look)
    assert {"new_obs", "rewards", "dones", "infos"} <= seen[-1]
    model.learn(100, callback=[StopTrainingOnMaxEpisodes(2), LogEveryNTimesteps(5)])
    assert model.num_timesteps == 20


def test_logs_of_a_run_online(
    make_online: Make, walk: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    make_online(walk(), verbose=1).learn(45)
    text = capfd.readouterr().out
    for name in ("ep_rew_mean", "actor_loss", "weight_ess", "n_updates", "ms_per_update"):
        assert name in text
    make_online(walk(), verbose=1).learn(45, log_interval=None)
    assert "actor_loss" not in capfd.readouterr().out


def test_horizon_online_counts_updates(make_online: Make, walk: Any) -> None:
    model = make_online(walk(), train_freq=2, gradient_steps=3, learning_starts=10)
    model.learn(30)
    # SB3 learns once more than (30 - 10) / 2 if the last of the first steps is the tenth.
    assert model.learner.config.total_updates == 30
    assert model.learner.progress == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("frequency", "updates"), [(1, 1), (1, 30), (2, 30)])
def test_horizon_by_episodes_follows_them(
    make_online: Make, walk: Any, frequency: int, updates: int
) -> None:
    model = make_online(walk(), train_freq=(frequency, "episode"), gradient_steps=updates)
    model.learn(200)  # episodes of 10 steps, of which the first only fills the buffer
    assert model.learner.updates in (updates * 19 // frequency, updates * 20 // frequency)
    assert model.learner.config.total_updates == model.learner.updates
    model.learn(100, reset_num_timesteps=False)
    assert model.learner.updates in (updates * 29 // frequency, updates * 30 // frequency)
    assert model.learner.config.total_updates == model.learner.updates


def test_a_short_run_by_episodes_leaves_what_another_was_to_be(
    make_online: Make, walk: Any
) -> None:
    model = make_online(walk(), train_freq=(1, "episode"), gradient_steps=30)
    model.learn(200, callback=lambda seen, _: seen["self"].num_timesteps < 55)
    length = model.learner.config.total_updates
    model.learn(40)
    assert model.learner.config.total_updates == length
    assert model.learner.progress < 1


def test_a_horizon_of_the_config_stays_by_episodes(make_online: Make, walk: Any) -> None:
    config = make_online(walk()).gtp_config
    config = config.replace(learner=config.learner.replace(total_updates=50))
    model = make_online(walk(), gtp_config=config, train_freq=(1, "episode"))
    assert model.learn(100).learner.config.total_updates == 50


def test_what_is_counted_already_is_not_waited_for_again(make_model: Make, walk: Any) -> None:
    model = make_model(walk(), learning_starts=25).learn(20)
    model.set_dataset(None, keep_data=True)
    model.learn(20, reset_num_timesteps=False)  # SB3 waits for 5 of them
    assert model.learner.config.total_updates == 20 + 15
    model.learn(20)  # and here for all
    assert model.learner.updates == 20 + 15


@pytest.mark.parametrize("offline", [False, True])
def test_whole_numbers_may_be_floats(make_model: Make, walk: Any, offline: bool) -> None:
    other = {} if offline else {"dataset": None}
    model = make_model(walk(), learning_starts=1e1, **other).learn(3e1)
    assert model.num_timesteps == 30
    assert model.learner.config.total_updates in (20, 30)
    for wrong in (1.5, math.nan, math.inf, "many"):
        with pytest.raises(ValueError, match=f"got {wrong!r}, expected a whole one"):
            model.learn(wrong)


def test_learning_that_never_starts_has_no_updates(make_online: Make, walk: Any) -> None:
    model = make_online(walk(), learning_starts=math.inf).learn(20)
    assert model.learner.updates == 0


def test_a_step_at_least_is_collected(make_online: Make, walk: Any) -> None:
    with pytest.raises(ValueError, match="`train_freq` is out of range: got 0"):
        make_online(walk(), train_freq=0).learn(20)


# --- observations of every kind


@pytest.mark.parametrize("space", ["default", "discrete"])
def test_her_with_sb3s_bit_flipping(make_online: Make, space: str) -> None:
    env = BitFlippingEnv(n_bits=3, continuous=True, discrete_obs_space=space == "discrete")
    model = make_online(
        env,
        "MultiInputPolicy",
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": 2, "goal_selection_strategy": "future"},
    )
    assert model.policy.is_vector == (space == "default")
    model.learn(30, callback=EvalCallback(env, eval_freq=15, verbose=0, warn=False))
    assert model._n_updates == 20
    assert isinstance(model.replay_buffer, HerReplayBuffer)
    action, _ = model.predict(env.reset()[0], deterministic=True)
    assert env.action_space.contains(action)


def test_her_needs_an_environment(make_model: Make) -> None:
    model = make_model(dataset=None, env=IdentityEnvBox())
    model.replay_buffer_class, model.env, model.replay_buffer = HerReplayBuffer, None, None
    with pytest.raises(ValueError, match="HerReplayBuffer needs an environment"):
        _ = model.replay_buffer


@pytest.mark.parametrize("channel_first", [True, False])
def test_images(make_online: Make, channel_first: bool) -> None:
    env = FakeImageEnv(
        screen_height=36, screen_width=36, n_channels=1, discrete=False, channel_first=channel_first
    )
    model = make_online(
        env,
        "CnnPolicy",
        buffer_size=50,
        policy_kwargs={"features_extractor_kwargs": {"features_dim": 8}},
    ).learn(13)
    assert model._n_updates == 3
    assert model.replay_buffer is not None
    assert model.replay_buffer.observations.dtype == np.uint8
    assert model.observation_space.shape == (1, 36, 36)
    obs = env.reset()[0]
    assert model.predict(obs)[0].shape == (5,)
    assert model.predict(np.stack([obs] * 3))[0].shape == (3, 5)


def test_stacked_frames(make_online: Make) -> None:
    env = VecFrameStack(
        DummyVecEnv(
            [lambda: FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=False)]
        ),
        4,
    )
    model = make_online(
        env,
        "CnnPolicy",
        buffer_size=50,
        policy_kwargs={"features_extractor_kwargs": {"features_dim": 8}},
    ).learn(12)
    assert model.observation_space.shape == (4, 36, 36)
    evaluate_policy(model, env, n_eval_episodes=1, warn=False)


MIXED = spaces.Dict(
    {
        "camera": spaces.Box(0, 255, (36, 36, 1), np.uint8),
        "speed": spaces.Box(-1, 1, (2,)),
        "gear": spaces.Discrete(3),
        "doors": spaces.MultiDiscrete([2, 2]),
        "lights": spaces.MultiBinary(2),
    }
)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_dict_of_everything(make_online: Make, walk: Any, n_envs: int) -> None:
    env = make_vec_env(lambda: walk(MIXED), n_envs)
    model = make_online(
        env,
        "MultiInputPolicy",
        buffer_size=50,
        policy_kwargs={"features_extractor_kwargs": {"cnn_output_dim": 8}},
    ).learn(14)
    assert model._n_updates > 0
    # 8 of the camera, 2, 3 and 2 + 2 one-hot, 2.
    assert model.actor.encoder.features_dim == 8 + 2 + 3 + 4 + 2
    assert model.predict(MIXED.sample())[0].shape == (1,)
    evaluate_policy(model, env, n_eval_episodes=1, warn=False)


@pytest.mark.parametrize(
    "space", [spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)]
)
def test_discrete_observations(make_online: Make, walk: Any, space: Any) -> None:
    env = walk(space)
    model = make_online(env).learn(15)
    assert model._n_updates == 5
    assert model.predict(env.reset()[0])[0].shape == (1,)
    evaluate_policy(model, env, n_eval_episodes=1, warn=False)


def test_vec_normalize_online_moves_and_is_used(
    make_online: Make, walk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = VecNormalize(make_vec_env(walk, 1))
    model = make_online(env)
    seen: list[Transitions] = []
    update = model.learner.update
    monkeypatch.setattr(model.learner, "update", lambda b: seen.append(b) or update(b))
    model.learn(40)
    assert model.get_vec_normalize_env() is env
    assert env.obs_rms.count > 40
    buffer = model.replay_buffer
    assert buffer is not None
    # The buffer keeps what the environment said, the learner sees what the policy sees.
    assert set(buffer.observations[:40, 0, 2]) == {1.0}
    assert seen[-1].obs[:, 2].abs().max() < 0.01


def test_spaces_of_a_box_of_any_shape_for_actions(make_online: Make) -> None:
    class Grid(gymnasium.Env[Any, Any]):
        observation_space = spaces.Box(-1, 1, (2, 2))
        action_space = spaces.Box(
            np.full((2, 3), -2, np.float32), np.arange(6, dtype=np.float32).reshape(2, 3) + 1
        )

        def reset(self, **_: Any) -> Any:
            return np.zeros((2, 2), np.float32), {}

        def step(self, action: Any) -> Any:
            assert action.shape == (2, 3)
            return np.zeros((2, 2), np.float32), 0.0, False, True, {}

    model = make_online(Grid()).learn(12)
    assert model._n_updates == 2
    action, _ = model.predict(np.zeros((5, 2, 2)), deterministic=True)
    assert action.shape == (5, 2, 3)
    assert (action >= Grid.action_space.low).all()
    assert (action <= Grid.action_space.high).all()


# --- what has to be there


def test_without_environment_and_dataset_nothing_is_known() -> None:
    with pytest.raises(ValueError, match="neither `env` nor `dataset`"):
        GTP("MlpPolicy", None)


def test_learning_online_needs_an_environment(make_model: Make) -> None:
    model = make_model(None)
    model.set_dataset(None)
    with pytest.raises(ValueError, match="needs an environment"):
        model.learn(3)


def test_mlp_policy_refuses_a_dict(make_online: Make, walk: Any) -> None:
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        make_online(walk(MIXED), "MlpPolicy")


def test_sb3s_errors_on_a_replay_buffer_come_at_construction(make_online: Make, walk: Any) -> None:
    with pytest.raises(ValueError, match="optimize_memory_usage"):
        make_online(walk(), optimize_memory_usage=True)


def test_replay_buffer_can_be_saved_and_loaded_by_sb3(
    make_online: Make, walk: Any, tmp_path: Any
) -> None:
    model = make_online(walk()).learn(20)
    model.save_replay_buffer(tmp_path / "buffer")
    other = make_online(walk())
    other.load_replay_buffer(tmp_path / "buffer")
    assert isinstance(other.replay_buffer, ReplayBuffer)
    assert other.replay_buffer.size() == 20
    other.learn(5, reset_num_timesteps=False)
    assert other.replay_buffer.size() == 25


# --- offline to online


def test_a_trained_policy_acts_from_the_start_and_collects_before_it_learns(
    make_model: Make, walk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(walk()).learn(5)
    model.set_dataset(None)
    monkeypatch.setattr(
        model.action_space, "sample", lambda: pytest.fail("a random action was taken")
    )
    model.learn(15)
    assert model._n_updates == 5 + 5
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() == 15


@pytest.mark.parametrize(("rows", "n_envs", "kept"), [(60, 1, 60), (60, 4, 60), (50, 3, 48)])
def test_kept_data_is_the_beginning_of_the_replay_buffer(
    make_model: Make, walk: Any, arrays: Any, rows: int, n_envs: int, kept: int
) -> None:
    columns = {k: v[:rows] for k, v in arrays.items()}
    model = make_model(make_vec_env(walk, n_envs), dataset=columns)
    model.set_dataset(None, keep_data=True)
    buffer = model.replay_buffer
    assert buffer is not None
    steps = kept // n_envs
    assert buffer.pos == steps

    def flat(name: str) -> np.ndarray:
        column = getattr(buffer, name)[:steps]
        return np.swapaxes(column, 0, 1).reshape(kept, *column.shape[2:])

    newest = {k: v[rows - kept :] for k, v in columns.items()}
    np.testing.assert_array_equal(flat("observations"), newest["obs"].astype(np.float32))
    np.testing.assert_array_equal(flat("next_observations"), newest["next_obs"].astype(np.float32))
    np.testing.assert_allclose(flat("actions"), newest["action"] / 2, atol=1e-6)
    np.testing.assert_array_equal(flat("rewards"), newest["reward"].astype(np.float32))
    cut = newest["truncated"].astype(bool) & ~newest["terminated"].astype(bool)
    cut[steps - 1 :: steps] |= ~newest["terminated"][steps - 1 :: steps].astype(bool)
    np.testing.assert_array_equal(flat("dones"), newest["terminated"] | cut)
    np.testing.assert_array_equal(flat("timeouts"), cut)
    model.learn(4 * n_envs)
    assert buffer.pos == steps + 4


def test_kept_data_is_not_added_twice(
    make_model: Make, walk: Any, arrays: Any, tmp_path: Path
) -> None:
    model = make_model(walk())
    model.set_dataset(None, keep_data=True)
    model.learn(20)
    model.set_dataset(arrays)
    model.learn(1)
    model.set_dataset(None, keep_data=True)
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() == 60 + 20
    model.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")
    model.set_dataset(arrays)
    model.set_dataset(None, keep_data=True)
    assert model.replay_buffer.size() == 60 + 20
    model.set_dataset({k: v[:30] for k, v in arrays.items()})
    with pytest.warns(UserWarning, match="holds 80 transitions: got keep_data=True") as caught:
        model.set_dataset(None, keep_data=True)
    assert caught[0].filename == __file__
    assert model.replay_buffer.size() == 60 + 20 + 30
    model.set_dataset(arrays)
    model.replay_buffer = None
    model.set_dataset(None, keep_data=True)
    assert model.replay_buffer.size() == 60


def test_a_small_buffer_keeps_the_newest(make_model: Make, walk: Any, arrays: Any) -> None:
    model = make_model(walk(), buffer_size=10)
    model.set_dataset(None, keep_data=True)
    assert model.replay_buffer is not None
    np.testing.assert_array_equal(
        model.replay_buffer.rewards[:, 0], arrays["reward"][-10:].astype(np.float32)
    )


def test_going_online_without_the_data(make_model: Make, walk: Any) -> None:
    model = make_model(walk()).learn(3)
    assert model.replay_buffer is None
    assert model._replay_buffer is None  # nothing was allocated
    model.set_dataset(None)
    assert model.dataset is None
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() == 0


def test_what_keep_data_cannot_mean(make_model: Make, walk: Any, dataset: Any) -> None:
    model = make_model(walk(), dataset=None)
    with pytest.raises(ValueError, match="nothing to keep"):
        model.set_dataset(None, keep_data=True)
    with pytest.raises(ValueError, match="goes with set_dataset"):
        model.set_dataset(dataset, keep_data=True)


def test_scales_stay_when_the_model_goes_online(make_model: Make, walk: Any) -> None:
    model = make_model(walk()).learn(2)
    mean = model.actor.normalizer.mean.clone()
    sigma_data = model.actor.sigma_data
    model.set_dataset(None, keep_data=True)
    model.learn(12)
    assert torch.equal(model.actor_target.normalizer.mean, mean)
    assert mean.abs().sum() > 0
    assert model.actor.sigma_data == model.actor_target.sigma_data == sigma_data


def test_greedier_weights_are_a_choice_of_the_config(make_online: Make, walk: Any) -> None:
    config = GTPConfig(weighter=AdvantageWeighterConfig(eta=3.0))
    model = make_online(walk(), gtp_config=config, policy_kwargs={"net_arch": [8]})
    assert model.learner.weighter.config.eta == 3.0


def test_tau_may_be_changed_at_any_time(make_online: Make, walk: Any) -> None:
    model = make_online(walk(), tau=0.5).learn(20)
    names = ("actor_target", "critic_target")

    def targets() -> list[torch.Tensor]:
        return [p.detach().clone() for name in names for p in getattr(model, name).parameters()]

    for tau, moves in ((0.0, False), (0.01, True), (0.0, False)):
        before = targets()
        model.tau = tau
        model.train(gradient_steps=1, batch_size=8)
        assert model.learner.config.ema_rate == tau
        assert [torch.equal(*pair) for pair in zip(before, targets(), strict=True)] == [
            not moves
        ] * len(before)


@pytest.mark.parametrize("offline", [False, True])
def test_tau_is_the_rate_in_use(make_model: Make, walk: Any, tmp_path: Path, offline: bool) -> None:
    other = {} if offline else {"dataset": None}
    model = make_model(walk(), **other)
    default = model.tau  # of a run of a million updates
    model.learn(20)
    assert model.tau == model.learner.config.actor_rate == 0.05
    model = make_model(walk(), **other)
    model.tau = default
    model.learn(20)
    assert model.tau == model.learner.config.actor_rate == default
    model.save(tmp_path / "model")
    loaded = GTP.load(tmp_path / "model", custom_objects={"tau": 0.5, "seed": 5})
    assert loaded.tau == loaded.learner.config.actor_rate == 0.5
    assert loaded.seed == loaded.learner.config.seed == 5
    loaded = GTP.load(tmp_path / "model", custom_objects={"tau": 0.5}, tau=0.25)
    assert loaded.tau == loaded.learner.config.actor_rate == 0.25


def test_tau_of_zero_is_kept_in_the_file(make_online: Make, walk: Any, tmp_path: Path) -> None:
    model = make_online(walk(), tau=0)
    model.save(tmp_path / "model")
    loaded = GTP.load(tmp_path / "model")
    assert (loaded.tau, loaded.learner.config.ema_rate) == (0, 0)
    assert GTP.load(tmp_path / "model", tau=0.25).learner.config.ema_rate == 0.25


def test_the_number_of_updates_is_in_the_log_at_once(make_online: Make, walk: Any) -> None:
    model = make_online(
        make_vec_env(walk, 2), learning_starts=0, train_freq=3, gradient_steps=-1
    ).learn(3, log_interval=None)
    assert model.logger.name_to_value["train/n_updates"] == 6


def test_a_deleted_replay_buffer_is_gone_until_one_is_given(
    make_online: Make, walk: Any, tmp_path: Path
) -> None:
    model = make_online(walk()).learn(15)
    model.save_replay_buffer(tmp_path / "buffer")
    del model.replay_buffer
    with pytest.raises(AttributeError, match="was deleted"):
        model.replay_buffer  # noqa: B018
    model.save(tmp_path / "model")  # what it is deleted for
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer.size() == 15
    del model.replay_buffer
    model.replay_buffer = None  # a new one
    assert model.learn(5, reset_num_timesteps=False).replay_buffer.size() == 5


@pytest.mark.parametrize("wrapper", [lambda env: env, VecNormalize])
def test_a_loaded_model_goes_on_where_the_environment_stands(
    make_online: Make, walk: Any, tmp_path: Path, wrapper: Any
) -> None:
    env = wrapper(DummyVecEnv([walk]))
    model = make_online(env).learn(13)
    model.save(tmp_path / "model")
    steps = env.unwrapped.envs[0].steps
    loaded = GTP.load(tmp_path / "model", env=env, force_reset=False)
    np.testing.assert_array_equal(loaded._last_obs, model._last_obs)
    loaded.learn(2, reset_num_timesteps=False)
    assert env.unwrapped.envs[0].steps == steps + 2
    assert loaded.num_timesteps == 15
    for changes in ({"env": env}, {}, {"env": make_vec_env(walk, 2), "force_reset": False}):
        assert GTP.load(tmp_path / "model", **changes)._last_obs is None


def test_images_are_not_kept_as_the_place_where_an_environment_stands(
    make_online: Make, tmp_path: Path
) -> None:
    env = DummyVecEnv([lambda: FakeImageEnv(64, 64, n_channels=3, discrete=False)])
    model = make_online(env, "CnnPolicy", buffer_size=50).learn(5)
    model.save(tmp_path / "model")
    loaded = GTP.load(tmp_path / "model", env=env, force_reset=False)
    assert loaded._last_obs is None


def test_a_signal_that_interrupts_nothing_costs_no_updates(make_model: Make) -> None:
    # As a handler of the user's own does that only makes a note.
    model, seen = make_model(), []
    model.gradient_steps = 5
    weight = next(model.learner.actor.parameters())
    handle = weight.register_hook(lambda _: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        model.learn(2)
    finally:
        signal.signal(signal.SIGINT, before)
        handle.remove()
    assert model.learner.updates == len(seen) == 10


@pytest.mark.parametrize("offline", [True, False])
def test_ctrl_c_waits_for_the_end_of_an_update(
    make_model: Make, make_online: Make, walk: Any, tmp_path: Path, offline: bool
) -> None:
    model = make_model() if offline else make_online(walk())
    model.gradient_steps = 3
    weight = next(model.learner.actor.parameters())
    handle = weight.register_hook(lambda _: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            model.learn(50)
    finally:
        signal.signal(signal.SIGINT, before)
    handle.remove()
    assert model.learner.updates == model._n_updates == 1
    model.save(tmp_path / "model")
    assert GTP.load(tmp_path / "model").learner.updates == 1
    assert model.learn(50).learner.updates > 1
