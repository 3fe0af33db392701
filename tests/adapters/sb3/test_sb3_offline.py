"""Learning from a dataset: the core's numbers, SB3's loop, and no environment that runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common import callbacks as sb3_callbacks
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv

from gtp_policy import (
    Curriculum,
    ExpectileBaseline,
    GTPConfig,
    GTPLearner,
    GTPLossConfig,
    OfflineDataset,
)
from gtp_sb3 import GTP

Make = Callable[..., GTP]
Equal = Callable[[GTP, GTP], bool]

# A seed that is given seeds the global generators, as every algorithm of SB3 does.
seeds_globally = pytest.mark.global_rng
in_portions = pytest.mark.filterwarnings("ignore:.* more updates after")
# SB3 silences this one where it imports tqdm; pytest sets all filters anew.
draws_a_bar = pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")


def core_learner(
    dataset: OfflineDataset, config: GTPConfig, updates: int, batch: int
) -> GTPLearner:
    learner = GTPLearner.from_dataset(dataset, config)
    for _ in range(updates):
        learner.update(dataset.sample(batch, generator=learner.stream("batch")))
    return learner


def assert_equals_core(model: GTP, learner: GTPLearner) -> None:
    ours, theirs = model.learner.state_dict(), learner.state_dict()
    assert ours["_extra_state"]["updates"] == theirs["_extra_state"]["updates"]
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(ours[name], value), name
    for name, optimizer in learner.optimizers.items():
        own = model.learner.optimizers[name].state_dict()["state"]
        for index, entries in optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                assert torch.equal(own[index][key], value), (name, index, key)
    assert model.learner.full_config == learner.full_config


# --- the core's numbers


@pytest.mark.parametrize("changes", [{}, {"max_grad_norm": 1.0, "lr_schedule": "cosine"}])
def test_same_data_seed_and_config_give_the_core_learner_to_the_bit(
    make_model: Make, dataset: OfflineDataset, changes: dict[str, Any]
) -> None:
    config = make_model().gtp_config
    config = config.replace(learner=config.learner.replace(seed=7, total_updates=12, **changes))
    model = make_model(gtp_config=config).learn(12)
    assert_equals_core(model, core_learner(dataset, config, 12, batch=8))


def test_expectile_baseline_has_its_own_optimiser_and_equals_the_core(
    make_model: Make, dataset: OfflineDataset, config: GTPConfig
) -> None:
    baseline = ExpectileBaseline(hidden=(16,))
    learner = config.learner.replace(baseline=baseline, seed=1, total_updates=5)
    config = config.replace(learner=learner)
    model = make_model(gtp_config=config).learn(5)
    assert set(model.learner.optimizers) == {"actor", "critic", "value"}
    assert_equals_core(model, core_learner(dataset, config, 5, batch=8))


@pytest.mark.parametrize("steps", [1, 3])
def test_next_actions_and_returns_of_several_steps_equal_the_core(
    make_model: Make, dataset: OfflineDataset, config: GTPConfig, steps: int
) -> None:
    """What a dataset of n-step returns holds passes the host; next actions it adds by itself."""
    learner = config.learner.replace(seed=1, total_updates=5, critic_penalty=0.5)
    config = config.replace(learner=learner)
    full = dataset.with_next_actions().with_n_step(steps)
    model = make_model(gtp_config=config, dataset=dataset if steps == 1 else full).learn(5)
    assert len(model.dataset) == len(dataset if steps == 1 else full)  # as it was given
    assert_equals_core(model, core_learner(full, config, 5, batch=8))


@seeds_globally
def test_sb3s_arguments_are_the_configs_fields(dataset: OfflineDataset, config: GTPConfig) -> None:
    model = GTP(
        "MlpPolicy",
        None,
        learning_rate=1e-3,
        batch_size=8,
        tau=0.1,
        seed=5,
        dataset=dataset,
        gtp_config=GTPConfig(actor=config.actor.replace(hidden=(16,)), learner=config.learner),
        policy_kwargs={"net_arch": {"pi": [16], "qf": [8, 8]}, "n_critics": 3},
        device="cpu",
    ).learn(6)
    critic = config.critic
    assert critic is not None
    expected = config.replace(
        critic=critic.replace(hidden=(8, 8), members=3),
        learner=config.learner.replace(
            actor_lr=1e-3,
            critic_lr=1e-3,
            lr_schedule="constant",  # SB3's rate is what it says
            ema_rate=0.1,
            seed=5,
            total_updates=6,
        ),
    )
    learner = core_learner(dataset, expected, 6, batch=8)
    for name, value in learner.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(model.learner.state_dict()[name], value), name


def test_dict_of_vectors_equals_the_core_in_its_own_order(make_model: Make) -> None:
    rng = np.random.default_rng(0)
    keys = ("achieved_goal", "desired_goal", "observation")
    columns = {
        name: {key: rng.normal(size=(30, 2)) for key in keys} for name in ("obs", "next_obs")
    }
    rest = {
        "action": rng.uniform(-1, 1, size=(30, 1)),
        "reward": rng.normal(size=30),
        "terminated": np.zeros(30),
        "truncated": np.zeros(30),
    }

    class Goals(gymnasium.Env[Any, Any]):
        observation_space = spaces.Dict({k: spaces.Box(-9, 9, (2,)) for k in keys})
        action_space = spaces.Box(-1, 1, (1,))

    config = make_model().gtp_config
    config = config.replace(learner=config.learner.replace(total_updates=5, seed=2))
    model = make_model(
        Goals(), "MultiInputPolicy", dataset={**columns, **rest}, gtp_config=config
    ).learn(5)
    order = ("observation", "achieved_goal", "desired_goal")
    flat = {k: np.concatenate([v[key] for key in order], 1) for k, v in columns.items()}
    dataset = OfflineDataset.from_arrays(**flat, **rest, low=[-1.0], high=[1.0])
    learner = core_learner(dataset, config, 5, batch=8)
    for name, value in learner.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(model.learner.state_dict()[name], value), name


def test_a_dataset_set_later_is_a_dataset_given_at_once(
    make_model: Make, dataset: OfflineDataset, equal: Equal, untouchable: gymnasium.Env[Any, Any]
) -> None:
    config = make_model().gtp_config
    config = config.replace(learner=config.learner.replace(seed=3))
    at_once = make_model(untouchable, gtp_config=config)
    later = make_model(untouchable, gtp_config=config, dataset=None)
    later.set_dataset(dataset)
    assert equal(at_once, later)
    assert equal(at_once.learn(3), later.learn(3))


@seeds_globally
def test_equal_seeds_give_equal_runs_and_others_do_not(make_model: Make, equal: Equal) -> None:
    a, b, c = (make_model(seed=s).learn(4) for s in (1, 1, 2))
    assert equal(a, b)
    assert not equal(a, c)


def test_without_a_seed_one_is_drawn_and_recorded(make_model: Make, equal: Equal) -> None:
    a, b = make_model(), make_model()
    assert a.seed is not None
    assert a.seed != b.seed  # equal with probability 2^-31
    assert a.learner.config.seed == a.seed
    config = a.gtp_config.replace(learner=a.gtp_config.learner.replace(seed=a.seed))
    again = make_model(gtp_config=config)
    assert equal(a.learn(3), again.learn(3))


# --- SB3's loop


@in_portions
def test_environment_is_neither_reset_nor_stepped(
    make_model: Make, untouchable: gymnasium.Env[Any, Any]
) -> None:
    model = make_model(untouchable)
    assert model.learn(3) is model
    model.learn(3, reset_num_timesteps=False, progress_bar=False)
    assert (model.num_timesteps, model._n_updates, model.learner.updates) == (6, 6, 6)


@pytest.mark.parametrize(("gradient_steps", "expected"), [(1, 3), (4, 12), (-1, 3), (0, 0)])
def test_a_timestep_is_as_many_updates_as_gradient_steps(
    make_model: Make, gradient_steps: int, expected: int
) -> None:
    model = make_model(gradient_steps=gradient_steps).learn(3)
    assert (model.num_timesteps, model.learner.updates) == (3, expected)


def test_gradient_steps_are_the_same_updates_in_other_portions(
    make_model: Make, equal: Equal
) -> None:
    config = make_model().gtp_config
    config = config.replace(learner=config.learner.replace(seed=1, total_updates=6))
    assert equal(
        make_model(gtp_config=config, gradient_steps=3).learn(2),
        make_model(gtp_config=config).learn(6),
    )


class Recorder(sb3_callbacks.BaseCallback):
    """Writes down what SB3 calls, and what the callback can see."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.seen: dict[str, Any] = {}
        self.stop_at = stop_at

    def _on_training_start(self) -> None:
        self.calls.append("training_start")

    def _on_rollout_start(self) -> None:
        self.calls.append("rollout_start")

    def _on_step(self) -> Any:
        self.calls.append("step")
        self.seen = dict(self.locals)
        self.updates_at_step = self.model._n_updates
        return np.bool_(self.num_timesteps != self.stop_at)

    def _on_rollout_end(self) -> None:
        self.calls.append("rollout_end")

    def _on_training_end(self) -> None:
        self.calls.append("training_end")


def test_callbacks_are_called_in_sb3s_order_with_sb3s_locals(make_model: Make) -> None:
    recorder = Recorder()
    model = make_model().learn(2, callback=recorder)
    one = ["rollout_start", "step", "rollout_end"]
    assert recorder.calls == ["training_start", *one, *one, "training_end"]
    assert recorder.seen["self"] is model
    assert {"new_obs", "rewards", "dones", "infos", "total_timesteps"} <= set(recorder.seen)
    assert recorder.updates_at_step == 2


def test_a_false_of_any_kind_stops(make_model: Make) -> None:
    recorder = Recorder(stop_at=2)
    model = make_model().learn(10, callback=[recorder])
    assert model.num_timesteps == 2
    assert recorder.calls[-2:] == ["step", "training_end"]


def test_a_function_is_a_callback(make_model: Make) -> None:
    model = make_model().learn(10, callback=lambda seen, _: seen["self"].num_timesteps < 3)
    assert model.num_timesteps == 3


@draws_a_bar
def test_stock_callbacks_work(make_model: Make, walk: Any, tmp_path: Path) -> None:
    env = walk()
    events: list[int] = []
    evaluation = sb3_callbacks.EvalCallback(
        env,
        eval_freq=4,
        n_eval_episodes=1,
        best_model_save_path=str(tmp_path / "best"),
        log_path=str(tmp_path),
        callback_after_eval=sb3_callbacks.StopTrainingOnNoModelImprovement(100),
        callback_on_new_best=sb3_callbacks.StopTrainingOnRewardThreshold(1e6),
        verbose=0,
        warn=False,
    )
    callback = [
        evaluation,
        sb3_callbacks.CheckpointCallback(3, str(tmp_path), save_replay_buffer=True),
        sb3_callbacks.EveryNTimesteps(
            5, sb3_callbacks.ConvertCallback(lambda s, _: events.append(1) or True)
        ),
        sb3_callbacks.StopTrainingOnMaxEpisodes(1),
        sb3_callbacks.LogEveryNTimesteps(5),
        sb3_callbacks.ProgressBarCallback(),
    ]
    model = make_model(walk()).learn(10, callback=callback)
    assert model.num_timesteps == 10
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [4, 8]
    assert (tmp_path / "best" / "best_model.zip").is_file()
    names = sorted(path.name for path in tmp_path.glob("*.zip"))
    assert names == ["rl_model_3_steps.zip", "rl_model_6_steps.zip", "rl_model_9_steps.zip"]
    assert not list(tmp_path.glob("*.pkl"))  # there is no replay buffer to pickle
    assert len(events) == 2
    assert GTP.load(tmp_path / "rl_model_6_steps").learner.updates == 6


@draws_a_bar
def test_evaluation_and_progress_bar_without_the_models_environment(
    make_model: Make, walk: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    evaluation = sb3_callbacks.EvalCallback(walk(), eval_freq=2, verbose=0, warn=False)
    model = make_model(None)
    model.learn(2, callback=[evaluation], progress_bar=True)
    assert len(evaluation.evaluations_results) == 0  # no log_path
    assert np.isfinite(evaluation.last_mean_reward)
    assert model.get_env() is None


def test_the_stand_in_for_an_environment_cannot_run(make_model: Make) -> None:
    def run(seen: dict[str, Any], _: Any) -> bool:
        env = seen["self"].get_env()
        assert env.action_space == seen["self"].action_space
        with pytest.raises(RuntimeError, match="no environment: got a reset"):
            env.reset()
        with pytest.raises(RuntimeError, match="no environment: got a step"):
            env.step(np.zeros((1, 1)))
        return True

    make_model(None).learn(1, callback=run)


@draws_a_bar
def test_progress_bar_counts_timesteps_not_environments(
    make_model: Make, untouchable: gymnasium.Env[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Any] = []
    end = sb3_callbacks.ProgressBarCallback._on_training_end
    monkeypatch.setattr(
        sb3_callbacks.ProgressBarCallback,
        "_on_training_end",
        lambda self: (bars.append(self.pbar), end(self))[1],
    )
    env = DummyVecEnv([type(untouchable)] * 3)
    make_model(env).learn(5, progress_bar=True)
    assert [(bar.n, bar.total) for bar in bars] == [(5, 5)]


# --- logs


def test_logs_hold_the_losses_the_weights_and_the_time(make_model: Make, tmp_path: Path) -> None:
    model = make_model(learning_rate=3e-4)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(6, log_interval=3)
    model.logger.close()
    lines = (tmp_path / "progress.csv").read_text().splitlines()
    header = set(lines[0].split(","))
    metrics = {"actor_loss", "critic_loss", "consistency", "flow", "weight_ess", "weight_clipped"}
    metrics |= {"q_mean", "advantage_mean", "advantage_std", "n_updates", "learning_rate"}
    assert {f"train/{m}" for m in metrics} <= header
    assert {"time/ms_per_update", "time/total_timesteps", "time/fps"} <= header
    assert len(lines) == 3
    values = dict(zip(lines[0].split(","), lines[2].split(","), strict=True))
    assert values["time/total_timesteps"] == "6"
    assert values["train/n_updates"] == "6"
    assert float(values["train/learning_rate"]) == pytest.approx(3e-4)
    assert 0 < float(values["time/ms_per_update"]) < 1e3


@pytest.mark.parametrize(("log_interval", "lines"), [(-1, 2), (None, 0), (500, 4)])
def test_log_interval_is_in_timesteps(
    make_model: Make, log_interval: int | None, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs: list[int] = []
    monkeypatch.setattr(GTP, "train", lambda *_: None)
    monkeypatch.setattr(GTP, "dump_logs", lambda self: logs.append(self.num_timesteps))
    make_model().learn(2000, log_interval=log_interval)
    assert len(logs) == lines


def test_metrics_are_fetched_only_for_a_log(
    make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gtp_policy import UpdateMetrics

    fetched: list[int] = []
    original = UpdateMetrics.to_floats
    monkeypatch.setattr(
        UpdateMetrics, "to_floats", lambda self: fetched.append(1) or original(self)
    )
    make_model().learn(9, log_interval=4)
    assert len(fetched) == 2


@in_portions
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorBoard's own imports
def test_tensorboard_gets_a_folder_per_run(make_model: Make, tmp_path: Path) -> None:
    model = make_model(tensorboard_log=str(tmp_path))
    for reset in (True, True, False):
        model.learn(2, log_interval=1, reset_num_timesteps=reset)
        model.logger.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["GTP_1", "GTP_2"]
    assert len(list((tmp_path / "GTP_2").iterdir())) == 2


def test_what_a_model_is_built_of_is_not_set_later(make_model: Make) -> None:
    model = make_model()
    for name in ("gtp_config", "policy_kwargs"):
        was = getattr(model, name)
        with pytest.raises(ValueError, match=f"`{name}` was set on a model that is built"):
            setattr(model, name, was)
        assert getattr(model, name) is was


def test_a_learning_rate_that_is_set_later_is_used(make_model: Make) -> None:
    model = make_model(learning_rate=1e-4).learn(1)
    model.learning_rate = 1e-2
    model.learn(1)
    rates = {g["lr"] for o in model.learner.optimizers.values() for g in o.param_groups}
    assert rates == {1e-2}
    model.learning_rate = lambda left: 0.5
    model.learn(1)
    assert model.actor.optimizer.param_groups[0]["lr"] == 0.5


def test_learning_rates_of_the_config_are_not_set_later(make_model: Make) -> None:
    for name, value in (("learning_rate", 1e-4), ("lr_schedule", lambda _: 0.0)):
        model = make_model().learn(1)
        setattr(model, name, value)
        with pytest.raises(ValueError, match=f"`{name}` was set on a model whose learning rates"):
            model.learn(1)
    model = make_model().learn(1)
    model.learning_rate = 1e-4
    model._setup_lr_schedule()
    with pytest.raises(ValueError, match="`lr_schedule` was set"):
        model.learn(1)


@pytest.mark.parametrize(
    "changes", [{"learning_rate": 1e-3}, {"policy_kwargs": {"optimizer_class": torch.optim.AdamW}}]
)
def test_a_schedule_that_is_set_later_is_followed(make_model: Make, changes: Any) -> None:
    model = make_model(**changes).learn(1)
    model.lr_schedule = lambda _: 0.25
    model.learn(1)
    assert model.actor.optimizer.param_groups[0]["lr"] == 0.25


@in_portions
def test_learning_rate_follows_sb3s_schedule(make_model: Make) -> None:
    rates: list[float] = []

    def look(seen: dict[str, Any], _: Any) -> bool:
        groups = [o.param_groups[0]["lr"] for o in seen["self"].learner.optimizers.values()]
        assert len(set(groups)) == 1
        rates.append(groups[0])
        return True

    model = make_model(learning_rate=LinearSchedule(1.0, 0.0, 1.0))
    model.learn(4, callback=look)
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.25])
    model.learn(4, callback=look, reset_num_timesteps=False)
    assert rates[4:] == pytest.approx([0.5, 0.375, 0.25, 0.125])


# --- the horizon of the curriculum


def test_a_second_run_makes_the_horizon_longer(make_model: Make) -> None:
    model = make_model(gradient_steps=2)
    model.learn(0)  # nothing to learn, nothing to set
    model.learn(3)
    assert model.learner.config.total_updates == 6
    assert model.learner.progress == 1.0
    rates = [model.learner.learning_rates["actor"]]

    def look(*_: object) -> bool:
        rates.append(model.learner.learning_rates["actor"])
        return True

    model.learn(5, callback=look)
    assert rates[0] == 0  # which is what it would have learned with
    assert max(rates) > 1e-4
    assert (model.learner.config.total_updates, model.learner.progress) == (16, 1.0)
    model.learn(50)
    with pytest.warns(UserWarning, match="2 more updates after 116 change little") as caught:
        model.learn(1)
    assert caught[0].filename == __file__


def test_an_interrupted_first_run_goes_on_without_a_word(make_model: Make) -> None:
    model = make_model().learn(10, callback=lambda seen, _: seen["self"].num_timesteps < 4)
    model.learn(6, reset_num_timesteps=False)
    assert (model.learner.updates, model.learner.progress) == (10, 1.0)


def test_a_run_longer_than_what_an_interrupted_one_left_makes_the_horizon_longer(
    make_model: Make,
) -> None:
    model = make_model().learn(10, callback=lambda seen, _: seen["self"].num_timesteps < 4)
    model.learn(20)
    assert (model.learner.config.total_updates, model.learner.updates) == (24, 24)


def test_a_horizon_of_the_config_stays(make_model: Make, config: GTPConfig) -> None:
    config = config.replace(
        learner=config.learner.replace(total_updates=40),
        loss=GTPLossConfig(curriculum=Curriculum(start=2, end=2)),
    )
    model = make_model(gtp_config=config)
    model.learn(10).learn(10)
    assert model.learner.progress == 0.5
    with pytest.warns(UserWarning, match="10 of 30 updates change nothing") as caught:
        model.learn(30)
    assert caught[0].filename == __file__
    assert model.learner.config.total_updates == 40


# --- resuming


@pytest.mark.parametrize("cut", [0, 1, 4, 7])
def test_resumed_run_is_the_uninterrupted_one_to_the_bit(
    make_model: Make, dataset: OfflineDataset, equal: Equal, tmp_path: Path, cut: int
) -> None:
    config = make_model().gtp_config
    config = config.replace(learner=config.learner.replace(seed=4, total_updates=8))
    arguments = {"gtp_config": config, "learning_rate": None}
    whole = make_model(**arguments).learn(8)

    part = make_model(**arguments)
    part.learn(cut)
    part.save(tmp_path / "model")
    resumed = GTP.load(tmp_path / "model")
    resumed.set_dataset(dataset)
    resumed.learn(8 - cut, reset_num_timesteps=False)
    assert equal(whole, resumed)
    assert (resumed.num_timesteps, resumed._n_updates) == (8, 8)


def test_run_that_was_killed_resumes_without_a_horizon_in_the_config(
    make_model: Make, dataset: OfflineDataset, equal: Equal, tmp_path: Path
) -> None:
    config = make_model().gtp_config
    arguments = {
        "gtp_config": config.replace(learner=config.learner.replace(seed=4)),
        "learning_rate": LinearSchedule(1e-3, 1e-4, 1.0),
    }
    arguments["gtp_config"] = arguments["gtp_config"].model_validate(
        {
            **dict(arguments["gtp_config"]),
            "learner": {"seed": 4, "baseline": {"kind": "policy", "samples": 1}},
        }
    )
    whole = make_model(**arguments).learn(8)

    saver = sb3_callbacks.CheckpointCallback(5, str(tmp_path))
    killed = make_model(**arguments)
    with pytest.raises(KeyboardInterrupt):
        killed.learn(8, callback=[saver, sb3_callbacks.ConvertCallback(interrupt_at(6))])
    resumed = GTP.load(tmp_path / "rl_model_5_steps", dataset=dataset)
    resumed.learn(3, reset_num_timesteps=False)
    assert equal(whole, resumed)


def interrupt_at(timestep: int) -> Callable[..., bool]:
    def callback(seen: dict[str, Any], _: Any) -> bool:
        if seen["self"].num_timesteps == timestep:
            raise KeyboardInterrupt
        return True

    return callback


# --- behaviour cloning, going online without a critic


def test_behaviour_cloning_learns_offline_alone(
    make_model: Make, dataset: OfflineDataset, config: GTPConfig, walk: Any
) -> None:
    config = config.replace(critic=None)
    model = make_model(walk(), gtp_config=config).learn(2)
    assert list(model.get_parameters()) == ["policy", "actor.optimizer"]
    model.set_dataset(None)
    with pytest.raises(ValueError, match="needs a critic"):
        model.learn(2)
