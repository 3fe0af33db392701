"""Files: one line to save, one to load, nothing that runs, and everything that was there."""

import contextlib
import copy
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import TD3
from stable_baselines3.common.noise import (
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from gtp_policy import (
    ActionScaler,
    Curriculum,
    GTPConfig,
    GTPLearner,
    ObservationLayout,
    OfflineDataset,
    load_checkpoint,
    read_metadata,
    save_checkpoint,
)
from gtp_policy.checkpoint import bundle
from gtp_policy.encoders import ImpalaEncoderConfig
from gtp_policy.errors import CheckpointError, StateMismatchError
from gtp_sb3 import GTP, MlpPolicy, MultiInputPolicy, _codec
from gtp_sb3.networks import Actor
from tests.reliability.mutations import SLACK, peak_memory

Make = Callable[..., GTP]
Equal = Callable[[GTP, GTP], bool]
OBS = np.ones((4, 3), np.float32)

# These tests train in portions; what that means is tested in test_sb3_offline.py.
pytestmark = pytest.mark.filterwarnings("ignore:.* more updates after")


def actions(model: Any) -> np.ndarray:
    return model.predict(OBS, deterministic=True)[0]


# --- saving and loading


def test_round_trip_without_anything(make_model: Make, tmp_path: Path, equal: Equal) -> None:
    model = make_model(batch_size=7, gamma=None, tau=0.02, gradient_steps=2).learn(3)
    model.save(tmp_path / "model")
    loaded = GTP.load(tmp_path / "model")
    assert equal(model, loaded)
    np.testing.assert_array_equal(actions(model), actions(loaded))
    for name in ("batch_size", "tau", "gamma", "gradient_steps", "num_timesteps", "_n_updates"):
        assert getattr(loaded, name) == getattr(model, name), name
    for name in ("seed", "n_envs", "train_freq", "learning_rate", "policy_kwargs"):
        assert getattr(loaded, name) == getattr(model, name), name
    assert loaded.observation_space == model.observation_space
    assert loaded.action_space == model.action_space
    assert loaded.learner.full_config == model.learner.full_config
    assert loaded.dataset is None
    assert loaded._replay_buffer is None  # nothing of a million rows was made to act


@pytest.mark.parametrize(
    ("given", "written"),
    [("a", "a.zip"), ("a.zip", "a.zip"), ("a.v1", "a.v1"), ("new/b", "new/b.zip")],
)
def test_names_of_files_as_in_sb3(
    make_model: Make, tmp_path: Path, given: str, written: str
) -> None:
    model = make_model().learn(1)
    for place in (tmp_path / given, str(tmp_path / given)):
        model.save(place)
        assert [p.name for p in (tmp_path / written).parent.iterdir()] == [Path(written).name]
        np.testing.assert_array_equal(actions(GTP.load(place)), actions(model))


def test_streams(make_model: Make) -> None:
    model, stream = make_model().learn(1), io.BytesIO()
    model.save(stream)
    stream.seek(0)
    np.testing.assert_array_equal(actions(GTP.load(stream)), actions(model))


def test_the_file_is_a_checkpoint_of_the_core(make_model: Make, tmp_path: Path) -> None:
    model = make_model().learn(2)
    model.save(tmp_path / "model")
    checkpoint = load_checkpoint(tmp_path / "model.zip")
    act = checkpoint.learner.act(torch.from_numpy(OBS), deterministic=True)
    assert checkpoint.action_scaler is not None
    np.testing.assert_array_equal(checkpoint.action_scaler.to_box(act).numpy(), actions(model))
    assert checkpoint.layout == ObservationLayout((3,))
    assert set(zipfile.ZipFile(tmp_path / "model.zip").namelist()) == {
        "config.json",
        "manifest.json",
        "train_state.safetensors",
        "weights.safetensors",
    }


def test_candidates_that_were_changed_are_in_the_file(
    make_model: Make, dataset: OfflineDataset, tmp_path: Path
) -> None:
    model = make_model().learn(2)
    model.policy.candidates = 8
    model.save(tmp_path / "model")
    loaded = (GTP.load(tmp_path / "model"), MlpPolicy.load(tmp_path / "model"))
    for policy in (*loaded, GTP.from_actor(model, dataset=dataset)):
        assert getattr(policy, "policy", policy).candidates == 8
    np.testing.assert_array_equal(actions(loaded[0]), actions(model))
    assert "candidates" not in model.policy_kwargs
    custom: dict[str, Any] = {"policy_kwargs": {}}  # as where an own class is given again
    assert GTP.load(tmp_path / "model", custom_objects=custom).policy.candidates == 8
    assert MlpPolicy.load(tmp_path / "model", custom_objects=custom).candidates == 8
    custom = {"policy_kwargs": {"candidates": 2}}
    assert GTP.load(tmp_path / "model", custom_objects=custom).policy.candidates == 2


def test_a_checkpoint_of_the_core_learns_on(
    dataset: OfflineDataset, config: GTPConfig, tmp_path: Path
) -> None:
    learner = GTPLearner.from_dataset(dataset, config)
    learner.fit(dataset, 4, batch_size=8, progress=False)
    model = GTP.load(learner.save(tmp_path / "core.zip"), dataset=dataset)
    model.learn(4)
    assert (model.learner.config.total_updates, model.learner.updates) == (8, 8)


def test_a_checkpoint_of_the_core_is_a_model(
    make_model: Make, dataset: OfflineDataset, config: GTPConfig, walk: Any, tmp_path: Path
) -> None:
    learner = GTPLearner.from_dataset(dataset, config)
    learner.update(dataset.sample(8, generator=learner.stream("batch")))
    whole = save_checkpoint(
        tmp_path / "whole",
        learner,
        action_scaler=ActionScaler([-2.0], [2.0]),
        layout=ObservationLayout((3,)),
    )
    own = learner.save(tmp_path / "own.zip")  # with what the dataset said
    learner.action_scaler = learner.layout = None
    bare = save_checkpoint(tmp_path / "bare.zip", learner)
    expected = 2 * learner.act(torch.from_numpy(OBS), deterministic=True)
    for path, env in ((whole, None), (own, None), (whole, walk()), (bare, walk())):
        model = GTP.load(path, env=env)
        np.testing.assert_allclose(actions(model), expected, atol=1e-6)
        assert (model._n_updates, model.seed) == (1, config.learner.seed)
        model.set_dataset(dataset)
        model.learn(2)
        assert model.learner.updates == 3
        assert torch.equal(model.actor.normalizer.mean, learner.actor.normalizer.mean)
    with pytest.raises(CheckpointError, match="does not say what it acts on"):
        GTP.load(bare)
    with pytest.raises(ValueError, match="observations of the environment do not fit"):
        GTP.load(whole, env=walk(spaces.Box(-1, 1, (4,))))


def test_a_dict_checkpoint_of_the_core_is_a_model(tmp_path: Path, config: GTPConfig) -> None:
    learner = GTPLearner.build(4, 1, config)
    layout = ObservationLayout({"b": (1,), "a": (3,)})
    path = save_checkpoint(
        tmp_path / "a", learner, action_scaler=ActionScaler([-1.0], [1.0]), layout=layout
    )
    model = GTP.load(path)
    assert type(model.policy) is MultiInputPolicy
    obs = {"a": np.ones((2, 3), np.float32), "b": np.zeros((2, 1), np.float32)}
    expected = learner.act(torch.tensor([[0.0, 1, 1, 1]] * 2), deterministic=True)
    np.testing.assert_allclose(model.predict(obs, deterministic=True)[0], expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 12, 12), (12, 12, 3)])
@pytest.mark.parametrize("key", ["", "camera"])
def test_a_checkpoint_of_the_core_with_images_is_a_model(
    tmp_path: Path, config: GTPConfig, key: str, shape: tuple[int, ...]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, *shape), np.uint8)
    obs = {key: images, "speed": np.ones((4, 2))} if key else images
    dataset = OfflineDataset.from_arrays(
        obs=obs, action=np.zeros((4, 1)), terminated=[0, 0, 0, 1], truncated=[0] * 4, low=-1, high=1
    )
    encoder = ImpalaEncoderConfig(channels=(4,), features=8)
    learner = GTPLearner.from_dataset(dataset, config.replace(encoder=encoder, critic=None))
    path = save_checkpoint(
        tmp_path / "a", learner, action_scaler=dataset.action_scaler, layout=dataset.layout
    )
    model = GTP.load(path)
    assert (model.observation_space[key] if key else model.observation_space).shape == shape
    model.save(tmp_path / "b")
    for found in (model, GTP.load(tmp_path / "b")):
        action = found.predict(obs, deterministic=True)[0]
        expected = learner.act(dataset.layout.flatten(obs), deterministic=True)
        np.testing.assert_allclose(action, expected, atol=1e-6)


@pytest.mark.global_rng
def test_with_an_environment(make_model: Make, walk: Any, tmp_path: Path) -> None:
    make_model(walk(), dataset=None, learning_starts=3).learn(5).save(tmp_path / "model")
    env = DummyVecEnv([walk, walk])
    model = GTP.load(tmp_path / "model", env=env)
    assert (model.n_envs, model.get_env()) == (2, env)
    model.learn(10, reset_num_timesteps=False)
    assert model.num_timesteps >= 15
    with pytest.raises(ValueError, match=r"(?i)observation spaces do not match"):
        GTP.load(tmp_path / "model", env=walk(spaces.Box(-1, 1, (3,))))
    later = GTP.load(tmp_path / "model")
    later.set_env(walk())
    later.learn(10)


def test_environment_after_training_from_data_alone(
    make_model: Make, walk: Any, tmp_path: Path, untouchable: Any
) -> None:
    model = make_model(None).learn(1)
    model.save(tmp_path / "model")
    for loaded in (model, GTP.load(tmp_path / "model")):
        env = walk()
        loaded.set_env(env)
        assert loaded.observation_space == env.observation_space
        assert loaded.policy.action_space == env.action_space
        loaded.set_env(walk())
        with pytest.raises(ValueError, match=r"(?i)observation spaces do not match"):
            loaded.set_env(walk(spaces.Box(-1, 1, (4,))))
    assert GTP.load(tmp_path / "model", env=walk()).get_env() is not None
    wide = type(untouchable)()
    wide.action_space = spaces.Box(-3, 3, (1,))
    for place in (lambda: GTP.load(tmp_path / "model").set_env(wide),):
        with pytest.raises(ValueError, match="actions of the environment do not fit"):
            place()


def test_exclude_and_include(make_model: Make, tmp_path: Path) -> None:
    model = make_model(verbose=2)
    for changes, expected in (
        ({}, 2),
        ({"exclude": ["verbose"]}, 0),
        ({"exclude": ["verbose"], "include": ["verbose"]}, 2),
    ):
        model.save(tmp_path / "model", **changes)
        assert GTP.load(tmp_path / "model").verbose == expected
    model.set_dataset(None)
    assert model.replay_buffer is not None
    for name in ("replay_buffer", "_replay_buffer", "policy"):
        with pytest.raises(ValueError, match=f"`{name}` cannot be included"):
            model.save(tmp_path / "model", include=[name])


def test_a_save_reads_each_attribute_again_once(
    make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, decode = make_model(), _codec.decode
    model.notes = ["a note"]  # type: ignore[attr-defined]
    seen: list[Any] = []
    monkeypatch.setattr(_codec, "decode", lambda value: (seen.append(value), decode(value))[1])
    model.save(tmp_path / "a")
    assert seen.count("a note") == 1


def test_attributes_of_a_subclass_are_saved(make_model: Make, tmp_path: Path) -> None:
    class Mine(GTP):
        def __init__(self, *args: Any, lucky: int = 0, **kwargs: Any) -> None:
            self.lucky = lucky
            super().__init__(*args, **kwargs)

    made = make_model()
    model = Mine("MlpPolicy", None, dataset=made.dataset, gtp_config=made.gtp_config, lucky=7)
    model.notes = {"who": ("me", 1.5), "when": None}
    model.save(tmp_path / "model")
    loaded = Mine.load(tmp_path / "model")
    assert (loaded.lucky, loaded.notes) == (7, model.notes)


@pytest.mark.global_rng
def test_everything_on_the_list_comes_back(make_model: Make, walk: Any, tmp_path: Path) -> None:
    noise = NormalActionNoise(np.array([0.1]), np.array([0.2]))
    model = make_model(
        walk(),
        dataset=None,
        learning_rate=LinearSchedule(1e-3, 1e-4, 0.5),
        action_noise=noise,
        train_freq=(2, "episode"),
        replay_buffer_kwargs={"handle_timeout_termination": False},
        policy_kwargs={
            "net_arch": {"pi": [16], "qf": [16]},
            "optimizer_class": torch.optim.AdamW,
            "optimizer_kwargs": {"betas": (0.8, 0.9)},
            "candidates": 3,
        },
    ).learn(20)
    model.save(tmp_path / "model")
    loaded = GTP.load(tmp_path / "model", env=walk())
    assert repr(loaded.action_noise) == repr(noise)
    assert loaded.policy_kwargs == model.policy_kwargs
    assert loaded.train_freq == model.train_freq
    assert loaded.lr_schedule(0.75) == model.lr_schedule(0.75) == pytest.approx(5.5e-4)
    assert loaded.policy.candidates == 3
    assert type(loaded.actor.optimizer) is torch.optim.AdamW
    loaded.learn(20, reset_num_timesteps=False)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"optimizer_class": torch.optim.AdamW},
        {"optimizer_class": torch.optim.SGD},
        {"optimizer_kwargs": {"weight_decay": 1e-4}},
    ],
)
def test_an_optimiser_of_ones_own_comes_back(
    make_model: Make, dataset: OfflineDataset, tmp_path: Path, equal: Equal, kwargs: Any
) -> None:
    model = make_model(policy_kwargs=kwargs).learn(2)
    model.save(tmp_path / "model")
    loaded, other = GTP.load(tmp_path / "model", dataset=dataset), make_model(policy_kwargs=kwargs)
    other.set_parameters(tmp_path / "model")
    assert equal(model, loaded)
    assert equal(model, other)
    assert type(MlpPolicy.load(tmp_path / "model").actor.optimizer) is type(model.actor.optimizer)
    GTP.from_actor(tmp_path / "model", dataset=dataset)
    assert equal(model.learn(2), loaded.learn(2))
    loaded.save(tmp_path / "again")
    assert equal(GTP.load(tmp_path / "again"), loaded)


class Narrow(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 2)
        self.linear = nn.Linear(3, 2)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.linear(observations)


class MyPolicy(MlpPolicy):
    pass


@pytest.mark.global_rng
def test_what_no_file_can_hold_has_to_be_given(make_model: Make, tmp_path: Path) -> None:
    kwargs = {"features_extractor_class": Narrow, "candidates": 2}
    cases = {
        "policy_kwargs": ({"policy_kwargs": kwargs}, kwargs, "features_extractor_class = Narrow"),
        "learning_rate": ({"learning_rate": lambda left: 1e-3 * left}, 1e-3, "function"),
        "policy_class": ({"policy": MyPolicy}, MyPolicy, "MyPolicy"),
    }
    for name, (arguments, replacement, message) in cases.items():
        model = make_model(**arguments).learn(1)
        model.save(tmp_path / "model")
        with pytest.raises(CheckpointError, match=f"does not hold `{name}`.*{message}"):
            GTP.load(tmp_path / "model")
        loaded = GTP.load(tmp_path / "model", custom_objects={name: replacement})
        np.testing.assert_array_equal(actions(loaded), actions(model))


def test_own_backbone_has_to_be_given(make_model: Make, tmp_path: Path) -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))

        def forward(self, obs: Any, x: torch.Tensor, t: Any, s: Any) -> torch.Tensor:
            return self.gain * x

    model = make_model(policy_kwargs={"network": Scale()}).learn(2)
    model.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="network = Scale"):
        GTP.load(tmp_path / "model")
    custom = {"policy_kwargs": {"network": Scale()}}
    loaded = GTP.load(tmp_path / "model", custom_objects=custom)
    np.testing.assert_array_equal(actions(loaded), actions(model))
    model.policy.save(tmp_path / "policy")
    policy = MlpPolicy.load(tmp_path / "policy", custom_objects=custom)
    np.testing.assert_array_equal(actions(policy), actions(model))
    with pytest.raises(CheckpointError, match=r"custom_objects=\{'policy_kwargs'"):
        Actor.load(tmp_path / "policy")
    actor = Actor.load(tmp_path / "policy", custom_objects=custom)
    np.testing.assert_array_equal(actions(actor.policy), actions(model))


def test_an_actor_of_an_own_policy_has_to_be_given_its_class(tmp_path: Path) -> None:
    class Own(MlpPolicy):
        pass

    policy = Own(spaces.Box(-1, 1, (3,)), spaces.Box(-2, 2, (1,)), net_arch=[8])
    policy.actor.save(tmp_path / "policy")
    with pytest.raises(CheckpointError, match=r"custom_objects=\{'policy_class'"):
        Actor.load(tmp_path / "policy")
    actor = Actor.load(tmp_path / "policy", custom_objects={"policy_class": Own})
    assert type(actor.policy) is Own
    np.testing.assert_array_equal(actions(actor.policy), actions(policy))


def test_arguments_of_load_replace_attributes(
    make_model: Make, dataset: Any, tmp_path: Path
) -> None:
    model = make_model().learn(2)
    model.save(tmp_path / "model")
    loaded = GTP.load(
        tmp_path / "model", dataset=dataset, batch_size=3, tau=0.5, learning_rate=1e-2
    )
    assert (loaded.batch_size, loaded.tau, loaded.learner.config.ema_rate) == (3, 0.5, 0.5)
    loaded.learn(1)
    assert loaded.actor.optimizer.param_groups[0]["lr"] == 1e-2
    with pytest.raises(ValueError, match="`policy_kwargs` are not those of the file"):
        GTP.load(tmp_path / "model", policy_kwargs={"net_arch": [8]})
    GTP.load(tmp_path / "model", policy_kwargs=model.policy_kwargs)
    with pytest.raises(ValueError, match="belongs to the weights"):
        GTP.load(tmp_path / "model", gtp_config=GTPConfig())
    # What SB3's users often pass although our files do not need it.
    GTP.load(tmp_path / "model", custom_objects={"lr_schedule": lambda _: 0.0, "clip_range": 1})


@pytest.mark.global_rng
def test_going_online_by_forgetting_the_data_warns(
    make_model: Make, walk: Any, dataset: Any, tmp_path: Path
) -> None:
    make_model(walk()).learn(2).save(tmp_path / "model")
    with pytest.warns(UserWarning, match="it learns online now") as caught:
        GTP.load(tmp_path / "model", env=walk()).learn(1)
    assert caught[0].filename == __file__
    meant = GTP.load(tmp_path / "model", env=walk())
    meant.set_dataset(None)
    meant.learn(1)
    GTP.load(tmp_path / "model", env=walk(), dataset=dataset).learn(1)


@pytest.mark.global_rng
def test_seed_at_load(make_model: Make, tmp_path: Path) -> None:
    make_model().save(tmp_path / "model")
    loaded = GTP.load(tmp_path / "model", seed=3)
    assert (loaded.seed, loaded.learner.config.seed) == (3, 3)


def test_system_info(make_model: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_model().save(tmp_path / "model")
    GTP.load(tmp_path / "model", print_system_info=True)
    assert capsys.readouterr().out.count("Stable-Baselines3") == 2


def test_an_untrained_model_still_takes_its_scales_from_data(
    make_model: Make, untouchable: Any, dataset: Any, tmp_path: Path, equal: Equal
) -> None:
    config = make_model().gtp_config
    config = config.replace(learner=config.learner.replace(seed=2))
    model = make_model(untouchable, dataset=None, gtp_config=config)
    model.save(tmp_path / "model")
    loaded = GTP.load(tmp_path / "model", env=type(untouchable)())
    for one in (model, loaded):
        one.set_dataset(dataset)
        one.learn(3)
    assert equal(model, loaded)
    assert model.actor.normalizer.mean.abs().sum() > 0
    assert model.learner.full_config == loaded.learner.full_config


def test_an_untrained_model_keeps_a_custom_curriculum(
    make_model: Make, dataset: Any, tmp_path: Path
) -> None:
    config = make_model().gtp_config
    for curriculum in (Curriculum(start=4, end=8), Curriculum()):
        changed = config.replace(loss=config.loss.replace(curriculum=curriculum))
        make_model(gtp_config=changed).save(tmp_path / "model")
        loaded = GTP.load(tmp_path / "model", dataset=dataset)
        assert loaded.learner.full_config.loss.curriculum == curriculum
        if curriculum == Curriculum():
            loaded.learn(2)  # capped without a warning: the default's fineness was not chosen
            assert loaded.learner.full_config.loss.curriculum.end == 10


# --- policies alone


@pytest.mark.parametrize("whole", [True, False])
def test_policy_alone(make_model: Make, tmp_path: Path, whole: bool) -> None:
    model = make_model(policy_kwargs={"candidates": 2}).learn(2)
    (model if whole else model.policy).save(tmp_path / "policy")
    policy = MlpPolicy.load(tmp_path / "policy")
    assert policy.candidates == 2
    np.testing.assert_array_equal(actions(policy), actions(model))
    again = GTP.load(tmp_path / "policy")
    np.testing.assert_array_equal(actions(again), actions(model))
    assert again.learner.updates == 2


def test_policy_of_a_core_checkpoint_needs_the_model(tmp_path: Path, config: GTPConfig) -> None:
    path = save_checkpoint(tmp_path / "a", GTPLearner.build(3, 1, config))
    with pytest.raises(CheckpointError, match="no policy of SB3"):
        MlpPolicy.load(path)


# --- parameters


def test_parameters_round_trip(make_model: Make, tmp_path: Path, equal: Equal) -> None:
    a, b, c = make_model().learn(3), make_model(), make_model()
    assert list(a.get_parameters()) == ["policy", "actor.optimizer", "critic.optimizer"]
    b.set_parameters(a.get_parameters())
    a.save(tmp_path / "a")
    c.set_parameters(tmp_path / "a")
    assert equal(a, b)
    assert equal(a, c)
    c.set_parameters(str(tmp_path / "a.zip"))
    # They are values, not the same tensors.
    b.learn(1)
    assert not equal(a, b)


def test_a_dataset_leaves_the_scales_of_a_state_that_was_loaded(
    make_model: Make, walk: Any, arrays: Any, tmp_path: Path
) -> None:
    far = {**arrays, "obs": 3 * arrays["obs"] + 5, "next_obs": 3 * arrays["next_obs"] + 5}
    a = make_model(walk(), dataset=far).learn(2)
    b = make_model(walk(), dataset=arrays)
    b.policy.load_state_dict(a.policy.state_dict())
    b.save(tmp_path / "b")
    for model in (b, GTP.load(tmp_path / "b", env=walk())):
        model.set_dataset(arrays)
        model.learn(0)
        np.testing.assert_array_equal(actions(model), actions(a))
        assert torch.equal(model.learner.actor.normalizer.mean, a.learner.actor.normalizer.mean)


@pytest.mark.filterwarnings("ignore:The state does not say which flow map it is of")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parameters_that_are_no_numbers_are_not_taken_over(make_model: Make, value: float) -> None:
    model = make_model()
    before = copy.deepcopy(model.policy.state_dict())
    name = next(name for name in before if name.endswith("weight"))
    spoilt = {**copy.deepcopy(before), name: torch.full_like(before[name], value)}
    for load in (
        lambda: model.set_parameters({"policy": spoilt}, exact_match=False),
        lambda: model.policy.load_state_dict(spoilt),
    ):
        with pytest.raises(StateMismatchError, match="NaN or infinity"):
            load()
        now = model.policy.state_dict()
        assert all(torch.equal(now[n], v) for n, v in before.items() if isinstance(v, torch.Tensor))


@pytest.mark.filterwarnings("ignore:The state does not say which flow map it is of")
def test_a_state_that_did_not_fit_leaves_the_scales_to_the_dataset(
    make_model: Make, arrays: Any
) -> None:
    model = make_model()
    state = model.policy.state_dict()
    name = next(iter(state))
    with pytest.raises(StateMismatchError):
        model.set_parameters({"policy": {**state, name: torch.zeros(1, 1)}}, exact_match=False)
    before = model.learner.actor.normalizer.mean.clone()
    model.set_dataset({**arrays, "obs": arrays["obs"] + 5})
    assert not torch.equal(model.learner.actor.normalizer.mean, before)


@pytest.mark.filterwarnings("ignore:The state does not say which flow map it is of")
def test_set_parameters_is_exact_if_requested(make_model: Make, config: GTPConfig) -> None:
    # A plain dict does not tell what was seen of the mode.
    config = config.replace(learner=config.learner.replace(eval_candidates=1))
    model = make_model(gtp_config=config).learn(1)
    parameters = model.get_parameters()
    before = actions(model)
    with pytest.raises(ValueError, match=r"unknown \['mystery'\]"):
        model.set_parameters({**parameters, "mystery": {}})
    part = {"policy": parameters["policy"]}
    with pytest.raises(ValueError, match=r"missing \['actor.optimizer'"):
        model.set_parameters(part)
    model.set_parameters(part, exact_match=False)
    state = dict(parameters["policy"])
    name = next(k for k, v in state.items() if isinstance(v, torch.Tensor) and v.ndim == 2)
    with pytest.raises(RuntimeError, match=r"(?i)missing key"):
        model.set_parameters(
            {**parameters, "policy": {k: v for k, v in state.items() if k != name}}
        )
    model.set_parameters({"policy": {name: state[name]}}, exact_match=False)
    with pytest.raises(RuntimeError, match=r"(?i)size mismatch"):
        model.set_parameters({"policy": {**state, name: torch.zeros(1, 1)}}, exact_match=False)
    np.testing.assert_array_equal(actions(model), before)


def test_parameters_of_another_flow_map_are_refused(make_model: Make) -> None:
    model = make_model().learn(1)
    config = model.gtp_config
    other = make_model(gtp_config=config.replace(actor=config.actor.replace(sigma_data=0.1)))
    with pytest.raises(StateMismatchError):
        other.set_parameters(model.get_parameters())


def test_scales_come_with_parameters_and_stay(make_model: Make, arrays: Any, walk: Any) -> None:
    model = make_model(walk()).learn(1)
    fresh = make_model(walk(), gtp_config=model.learner.full_config)
    fresh.set_parameters(model.get_parameters())
    mean = model.actor.normalizer.mean
    fresh.set_dataset({**arrays, "obs": arrays["obs"] + 5})
    assert torch.equal(fresh.actor.normalizer.mean, mean)


# --- foreign, damaged, malicious


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.global_rng
def test_files_of_sb3_are_left_to_sb3(walk: Any, tmp_path: Path) -> None:
    TD3("MlpPolicy", walk(), policy_kwargs={"net_arch": [4]}, buffer_size=10).save(tmp_path / "td3")
    for load in (GTP.load, MlpPolicy.load):
        with pytest.raises(CheckpointError, match="file of Stable-Baselines3 itself"):
            load(tmp_path / "td3")


def test_no_pickle_is_ever_read(make_model: Make, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bomb = pickle.dumps(Bomb(canary))
    (tmp_path / "raw.zip").write_bytes(bomb)
    with zipfile.ZipFile(tmp_path / "zipped.zip", "w") as archive:
        archive.writestr("policy.pth", bomb)
    model = make_model()
    for name in ("raw.zip", "zipped.zip", "missing.zip"):
        for load in (GTP.load, MlpPolicy.load, model.set_parameters):
            with pytest.raises(CheckpointError):
                load(tmp_path / name)
    assert not canary.exists()


@pytest.mark.parametrize(
    "attributes",
    [
        {"policy_class": {":class": "os.system"}},
        {"policy_class": {":class": []}},
        {"verbose": {":object": "ConstantSchedule", "arguments": 3}},
        {"verbose": {":object": "subprocess.Popen", "arguments": ["ls"]}},
        {"verbose": {":unknown": 1}},
        {"verbose": {":array": [1, [2]], "dtype": "float32"}},
        {"verbose": {":array": ["a"], "dtype": "object"}},
        {"verbose": {":float": "1e9"}},
        {"verbose": {":enum": "TrainFrequencyUnit", "value": "__class__"}},
        {"verbose": {":space": {"kind": "Tuple"}}},
        {
            "verbose": {
                ":space": {"kind": "Box", "low": 0, "high": 1, "shape": [10**9], "dtype": "f4"}
            }
        },
        {"verbose": {":space": {"kind": "Box", "low": 0, "high": 1, "shape": [-1], "dtype": "f4"}}},
        {"verbose": {":space": {"kind": "MultiBinary", "n": 10**9}}},
        {"verbose": {":space": {"kind": "MultiBinary", "n": "9" * 9}}},
        {"verbose": {":space": {"kind": "Box", "low": 0, "high": 1, "shape": "99", "dtype": "f4"}}},
        {
            "verbose": {
                ":space": {"kind": "Box", "low": 0, "high": 1, "shape": {"3": 1}, "dtype": "f4"}
            }
        },
        {"verbose": {":train_freq": [1, "year"]}},
        {"learn": 1},
        {"__class__": 1},
        {"policy_aliases": {}},
        [1, 2],
    ],
)
def test_attributes_that_no_save_wrote_are_refused(
    make_model: Make, tmp_path: Path, attributes: Any
) -> None:
    model = make_model()
    path = save_checkpoint(
        tmp_path / "a",
        model.learner,
        action_scaler=model.policy.scaler,
        layout=model.policy.layout,
        metadata={"sb3": attributes},
    )
    with pytest.raises(CheckpointError):
        GTP.load(path)


# --- files that are larger inside, or contradict themselves


def forged(model: GTP, tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Returns a file of a model with other content and right hashes."""
    model.save(tmp_path / "model")
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    del files["manifest.json"]
    document = json.loads(files["config.json"])
    change(document)
    files["config.json"] = json.dumps(document).encode()
    bundle.write_bundle(path, files, written_by="someone else")
    return path


def box(shape: list[int], low: Any = -1.0, high: Any = 1.0) -> dict[str, Any]:
    return {"kind": "Box", "low": low, "high": high, "shape": shape, "dtype": "float32"}


def many_boxes(document: dict[str, Any]) -> None:
    parts = {str(i): box([2**20]) for i in range(8_000)}
    document["metadata"]["sb3"]["observation_space"] = {":space": {"kind": "Dict", "parts": parts}}


def huge_extractor(document: dict[str, Any]) -> None:
    document["own_encoder"] = True
    document["metadata"]["sb3"] |= {
        "observation_space": {":space": box([3, 64, 64], 0, 255) | {"dtype": "uint8"}},
        "policy_class": {":class": "gtp_sb3.CnnPolicy"},
        "policy_kwargs": {"features_extractor_kwargs": {"features_dim": 10**6}},
    }
    document["layout"] = None
    document["obs_dim"] = 3 * 64 * 64


def huge_discrete(document: dict[str, Any]) -> None:
    document["own_encoder"], document["layout"] = True, None
    document["metadata"]["sb3"]["observation_space"] = {
        ":space": {"kind": "Discrete", "n": 10**9, "start": 0}
    }
    document["obs_dim"] = 1


def set_attribute(**attributes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["metadata"]["sb3"].update(attributes)


@pytest.mark.parametrize("load", [GTP.load, MlpPolicy.load], ids=["model", "policy"])
@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["config"]["actor"].update(hidden=[16_000, 16_000]),
        lambda d: d["config"]["actor"].update(hidden=[10**9]),
        lambda d: d["config"]["critic"].update(hidden=[16_000, 16_000]),
        lambda d: d["config"]["critic"].update(members=10_000),
        many_boxes,
        huge_extractor,
        huge_discrete,
    ],
    ids=["actor", "wide actor", "critic", "members", "boxes", "extractor", "discrete"],
)
def test_a_file_builds_nothing_that_it_does_not_fill(
    make_model: Make, tmp_path: Path, change: Any, load: Any
) -> None:
    path = forged(make_model(), tmp_path, change)
    with peak_memory() as peak, pytest.raises(CheckpointError):
        load(path)
    assert peak[0] <= 2 * path.stat().st_size + SLACK


@pytest.mark.parametrize(
    "change",
    [
        set_attribute(action_space={":space": box([1], -1000.0, 1000.0)}),
        set_attribute(action_space={":space": box([2])}),
        set_attribute(action_space={":space": {"kind": "Discrete", "n": 3, "start": 0}}),
        set_attribute(observation_space={":space": box([7])}),
        set_attribute(observation_space={":space": {"kind": "Dict", "parts": {}}}),
        set_attribute(policy_class={":class": "gtp_sb3.CnnPolicy"}),
        set_attribute(policy_class={":class": "torch.Adam"}),
        set_attribute(policy_class={":class": "stable_baselines3.ReplayBuffer"}),
        set_attribute(policy_kwargs={"net_arch": [99]}),
        set_attribute(policy_kwargs={"no_such_argument": 1}),
        set_attribute(policy_kwargs={"optimizer_class": {":class": "torch.SGD"}}),
        set_attribute(policy_kwargs=[1]),
        set_attribute(policy_kwargs={"candidates": 50_001}),  # of 2 jumps each
        set_attribute(policy_kwargs={"candidates": 10_001}),
        set_attribute(policy_kwargs={"candidates": 0}),
        set_attribute(policy_kwargs={"candidates": True}),
        set_attribute(verbose="1"),
        set_attribute(gamma=1.5),
        set_attribute(tau=-1.0),
        set_attribute(batch_size="many"),
        set_attribute(train_freq="often"),
        set_attribute(learning_rate={":array": [1.0], "dtype": "float32"}),
        set_attribute(_offline_updates=-1),
        set_attribute(_horizon="never"),
        set_attribute(_last_obs={str(i): 1 for i in range(40_000)}),
        set_attribute(device="meta"),
        set_attribute(_custom_logger=True),
        lambda d: d.update(updates=123_456),
        lambda d: d.update(normalized_by="nobody\nat all"),
        *(
            lambda d, change=change: d["metadata"]["policy_surroundings"].update(change)
            for change in (
                {"action_shape": [1, 1]},
                {"action_shape": None},
                {"whole_actions": True},
                {"steps": 3},
                {"candidates": 3},
            )
        ),
        lambda d: d["action_box"].update(low=[-1000.0], high=[1000.0]),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    make_model: Make, tmp_path: Path, change: Any
) -> None:
    path = forged(make_model().learn(2), tmp_path, change)
    with pytest.raises((CheckpointError, StateMismatchError)):
        GTP.load(path)


@pytest.mark.parametrize(
    "space", [{"kind": "MultiBinary", "n": 17}, {"kind": "Box", "shape": [9, 9]}]
)
def test_the_file_of_a_policy_whose_spaces_do_not_fit_is_refused(
    make_model: Make, tmp_path: Path, space: dict[str, Any]
) -> None:
    space = {"low": 0, "high": 1, "dtype": "float32", **space}
    change = set_attribute(observation_space={":space": space})
    path = forged(make_model(), tmp_path, change)
    with pytest.raises(CheckpointError):
        MlpPolicy.load(path)


@pytest.mark.parametrize("space", [3, "x", None])
def test_the_file_of_a_policy_without_spaces_is_refused(
    make_model: Make, tmp_path: Path, space: Any
) -> None:
    path = forged(make_model(), tmp_path, set_attribute(action_space=space))
    for load in (GTP.load, MlpPolicy.load):
        with pytest.raises(CheckpointError):
            load(path)


def test_what_a_file_says_of_the_learner_is_the_learners(make_model: Make, tmp_path: Path) -> None:
    path = forged(make_model().learn(2), tmp_path, set_attribute(gamma=0.5, _n_updates=10**15))
    loaded = GTP.load(path)
    assert loaded.gamma == loaded.learner.config.gamma == 0.5
    assert loaded._n_updates == loaded.learner.updates


def test_parts_of_a_dict_keep_their_order(tmp_path: Path) -> None:
    """SB3's extractor joins features in the order of the space; gymnasium sorts plain dicts."""
    parts = {"z": spaces.Box(-1, 1, (2,)), "a": spaces.Discrete(3), "m": spaces.MultiBinary(2)}
    space = spaces.Dict(list(parts.items()))
    policy = MultiInputPolicy(space, spaces.Box(-1, 1, (2,)), net_arch=[8])
    policy.save(tmp_path / "policy")
    loaded = MultiInputPolicy.load(tmp_path / "policy")
    assert list(loaded.observation_space.spaces) == list(parts)
    obs = {"z": np.ones((1, 2), np.float32), "a": np.array([2]), "m": np.ones((1, 2), np.int8)}
    np.testing.assert_array_equal(
        loaded.predict(obs, deterministic=True)[0], policy.predict(obs, deterministic=True)[0]
    )


def test_a_file_does_not_say_where_a_run_writes(make_model: Make, tmp_path: Path) -> None:
    model = make_model(tensorboard_log=str(tmp_path / "mine")).learn(1)
    model.save(tmp_path / "own")
    assert "tensorboard_log" not in read_metadata(tmp_path / "own.zip").metadata["sb3"]
    path = forged(make_model(), tmp_path, set_attribute(tensorboard_log=str(tmp_path / "theirs")))
    assert GTP.load(path).tensorboard_log is None
    assert GTP.load(path, tensorboard_log="here").tensorboard_log == "here"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("verbose", False),
        ("buffer_size", 0),
        ("buffer_size", 1e3),
        ("learning_starts", -1),
        ("learning_starts", 1e1),
        ("learning_starts", np.float32(2.5)),
        ("learning_starts", np.inf),
        ("gradient_steps", -2),
        ("stats_window_size", 0),
        ("n_steps", 0),
        ("optimize_memory_usage", np.bool_(False)),
        ("optimize_memory_usage", 0),
        ("learning_starts", False),
        ("batch_size", np.int64(8)),
        ("batch_size", torch.tensor(8)),
        ("gamma", torch.tensor(0.99)),
    ],
    ids=str,
)
def test_what_sb3_takes_is_saved_and_loaded(
    make_model: Make, tmp_path: Path, name: str, value: Any
) -> None:
    model = make_model(**{name: value}).learn(1)
    model.save(tmp_path / "model")
    attribute = "_stats_window_size" if name == "stats_window_size" else name
    assert getattr(GTP.load(tmp_path / "model"), attribute) == value
    np.testing.assert_array_equal(actions(GTP.load(tmp_path / "model")), actions(model))


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch_size", 2.5), ("n_steps", 1.5), ("verbose", "1"), ("_stats_window_size", -1)],
)
def test_an_attribute_that_loading_refuses_is_refused_when_it_is_saved(
    make_model: Make, tmp_path: Path, name: str, value: Any
) -> None:
    model = make_model()
    model.save(tmp_path / "a")
    before = (tmp_path / "a.zip").read_bytes()
    setattr(model, name, value)
    with pytest.raises(CheckpointError, match=f"cannot be saved: got a wrong `{name}`.*exclude="):
        model.save(tmp_path / "a")
    assert (tmp_path / "a.zip").read_bytes() == before
    model.save(tmp_path / "b", exclude=[name])
    np.testing.assert_array_equal(actions(GTP.load(tmp_path / "b")), actions(model))


def test_a_dict_like_an_encoded_one_is_no_other_value(make_model: Make, tmp_path: Path) -> None:
    model = make_model()
    model.note = {":tuple": [1, 2]}
    model.save(tmp_path / "a")
    with pytest.raises(CheckpointError, match="does not hold `note`"):
        GTP.load(tmp_path / "a")


def test_what_loading_refuses_is_not_saved(make_model: Make, tmp_path: Path) -> None:
    model = make_model()
    model.save(tmp_path / "a")
    before = (tmp_path / "a.zip").read_bytes()
    model.learn(1)
    model.dump_logs = 5
    with pytest.raises(ValueError, match="dump_logs"):
        model.save(tmp_path / "a")
    del model.dump_logs
    model.note = "\ud800"
    with pytest.raises(CheckpointError, match="cannot be saved"):
        model.save(tmp_path / "a")
    assert (tmp_path / "a.zip").read_bytes() == before


def test_what_a_killed_save_left_is_removed_later(make_model: Make, tmp_path: Path) -> None:
    old, new = (tmp_path / f".m.v1.tmp-{x * 16}.zip" for x in "ab")
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    make_model().save(tmp_path / "m.v1")
    assert not old.exists()
    assert new.exists()


def test_parameters_that_do_not_fit_change_nothing(make_model: Make) -> None:
    model = make_model().learn(2)
    before = copy.deepcopy(model.get_parameters())
    given = copy.deepcopy(make_model().get_parameters())
    given["critic.optimizer"]["param_groups"].append({})
    with pytest.raises(StateMismatchError, match="do not fit"):
        model.set_parameters(given)
    found = model.get_parameters()
    assert all(
        torch.equal(found["policy"][k], v)
        for k, v in before["policy"].items()
        if isinstance(v, torch.Tensor)
    )
    first = before["actor.optimizer"]["state"][0]
    assert torch.equal(found["actor.optimizer"]["state"][0]["exp_avg"], first["exp_avg"])


def test_a_failed_save_leaves_the_old_file(
    make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    model = make_model().learn(1)
    model.save(tmp_path / "m.v1")
    before = (tmp_path / "m.v1").read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    model.learn(1)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CheckpointError, match=r"(?i)no space left"):
        model.save(tmp_path / "m.v1")
    assert [p.name for p in tmp_path.iterdir()] == ["m.v1"]
    assert (tmp_path / "m.v1").read_bytes() == before


# --- the codec


SPACES = [
    spaces.Box(-1, 1, (3,)),
    spaces.Box(np.array([-np.inf, 0.1]), np.array([np.inf, 1e-30]) + 1, dtype=np.float64),
    spaces.Box(0, 255, (84, 84, 4), np.uint8),
    spaces.Box(-1, 1, ()),
    spaces.Discrete(4, start=-2),
    spaces.MultiDiscrete([2, 5]),
    spaces.MultiBinary(3),
    spaces.MultiBinary([2, 2]),
    spaces.Dict({"b": spaces.Discrete(3), "a": spaces.Dict({"c": spaces.Box(0, 1, (2,))})}),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_spaces_survive_json(space: Any) -> None:
    text = json.dumps(_codec.encode(space), allow_nan=False)
    found = _codec.decode(json.loads(text))
    assert found == space
    assert type(found) is type(space)
    assert found.dtype == space.dtype
    assert len(text) < 1000


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        2.5,
        float("inf"),
        "text",
        [1, (2, [3.0])],
        {"a": {"b": (None,)}},
        np.float32(0.5),
        np.int64(3),
        np.bool_(True),
        torch.tensor(0.5),
        torch.tensor(float("inf")),
        nn.ReLU,
        torch.optim.Adam,
        MlpPolicy,
    ],
    ids=str,
)
def test_values_survive_json(value: object) -> None:
    found = _codec.decode(json.loads(json.dumps(_codec.encode(value), allow_nan=False)))
    assert found == value


@pytest.mark.parametrize(
    "value",
    [
        {
            ":tuple": [{":space": {"kind": "Box", "low": 0, "high": 1, "shape": [9, 9]}}],
            ":space": {"kind": "Discrete", "n": 1, "start": 0},
        },
        {":space": {"kind": "MultiBinary", "shape": [1], "n": 81}},
        {"a": {":space": {"kind": "MultiBinary", "n": {":tuple": [9, 9]}}}},
    ],
)
def test_what_is_counted_of_a_space_is_what_would_be_made(value: Any) -> None:
    assert _codec.elements(value) == 81


_UNCOUNTED = {":space": {"kind": "Box", "low": 0, "high": 1, "shape": [9, 9], "dtype": "f4"}}


@pytest.mark.parametrize(
    "change",
    [
        {"low": _UNCOUNTED},
        {"high": [0, _UNCOUNTED]},
        {"low": {":array": [0], "dtype": "f4"}},
        {"low": {**_UNCOUNTED, ":float": "inf"}},
        {"kind": "MultiBinary", "n": {**_UNCOUNTED, ":tuple": [3]}},
        {"kind": "MultiBinary", "n": {":tuple": [_UNCOUNTED]}},
    ],
    ids=str,
)
def test_a_bound_is_a_number(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    """What is made has been counted: a space in the place of a number is no space anywhere."""
    made: list[object] = []
    monkeypatch.setattr(_codec.spaces, "Box", lambda *args: made.append(args))
    monkeypatch.setattr(_codec.spaces, "MultiBinary", lambda n: made.append(n))
    space = {"kind": "Box", "low": 0, "high": 1, "shape": [2], "dtype": "f4", **change}
    with contextlib.suppress(_codec.NotInAFile):
        _codec.decode({":space": space})
    assert made in ([], [(3,)])


def test_arrays_and_noise_survive_json() -> None:
    array = np.array([[0.1, np.inf]], np.float32)
    found = _codec.decode(json.loads(json.dumps(_codec.encode(array), allow_nan=False)))
    np.testing.assert_array_equal(found, array)
    assert found.dtype == np.float32
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1), theta=0.3, dt=0.1)
    found = _codec.decode(json.loads(json.dumps(_codec.encode(noise))))
    assert (found._theta, found._dt, repr(found)) == (0.3, 0.1, repr(noise))
    # SB3 multiplies a noise by environments when it learns.
    assert repr(_codec.decode(_codec.encode(VectorizedActionNoise(noise, 3)))) == repr(noise)


@pytest.mark.parametrize(
    "value", [object(), nn.Linear, print, {1: 2}, {":a": 1}, {1, 2}, b"x", spaces.Tuple([])]
)
def test_what_is_not_on_the_lists_is_not_encoded(value: object) -> None:
    with pytest.raises(_codec.NotInAFile):
        _codec.encode(value)


def test_metadata_is_small_and_readable(make_model: Make, tmp_path: Path) -> None:
    model = make_model()
    model.save(tmp_path / "model")
    metadata = read_metadata(tmp_path / "model.zip").metadata
    assert metadata["sb3"]["batch_size"] == 8  # type: ignore[index,call-overload]
    assert len(json.dumps(metadata)) < 5000
    assert isinstance(gymnasium.spaces.Box(-1, 1), spaces.Box)


@pytest.mark.parametrize("path", ["", ".", Path()])
def test_a_path_without_a_name_is_none_of_a_file(path: Any) -> None:
    with pytest.raises(CheckpointError, match=r"`path` names no file: got .*expected"):
        GTP.load(path)


@pytest.mark.global_rng  # of extractors of SB3
@pytest.mark.parametrize("encoder", [None, ImpalaEncoderConfig(channels=(4,), features=8)])
@pytest.mark.parametrize("history", [1, 2])
def test_parameters_of_a_file_of_images_fit_its_model(
    config: GTPConfig, tmp_path: Path, encoder: ImpalaEncoderConfig | None, history: int
) -> None:
    columns = {"action": np.zeros((8, 1)), "reward": np.zeros(8), "terminated": np.zeros(8)}
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 36, 36), dtype=np.uint8)
    dataset = OfflineDataset.from_arrays(
        obs=images, truncated=np.arange(8) == 7, low=[-1], high=[1], **columns
    )
    config = config.replace(actor=config.actor.replace(history=history), encoder=encoder)
    model = GTP("CnnPolicy", None, dataset=dataset, gtp_config=config, batch_size=4).learn(1)
    model.save(tmp_path / "model")
    saved = {k: v.clone() for k, v in model.policy.state_dict().items()}
    model.learn(1)
    model.set_parameters(tmp_path / "model")
    for name, value in model.policy.state_dict().items():
        assert torch.equal(value, saved[name]), name
