"""Policies: pure prediction, the core's action, SB3's extractors, compiled policies."""

import copy
import io
import random
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from gtp_policy import (
    ExpectileBaseline,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearnerConfig,
    QEnsembleConfig,
)
from gtp_policy.acting import act
from gtp_policy.errors import DataError, StateMismatchError, UnsupportedSpaceError
from gtp_policy.keyed_noise import keyed_noise
from gtp_sb3 import GTP, CnnPolicy, GTPPolicy, MlpPolicy, MultiInputPolicy
from gtp_sb3.networks import Actor, Critic

Make = Callable[..., GTP]
BOX, ACTIONS = spaces.Box(-10, 10, (3,)), spaces.Box(-2, 2, (2,))
IMAGE, FIRST = (spaces.Box(0, 255, shape, np.uint8) for shape in ((36, 36, 1), (1, 36, 36)))


def make_policy(**changes: Any) -> GTPPolicy:
    return MlpPolicy(BOX, ACTIONS, **{"net_arch": [16]} | changes)


# --- prediction


@pytest.mark.parametrize("candidates", [None, 1, 5])
def test_predict_is_the_cores_act_in_the_units_of_the_box(
    make_model: Make, candidates: int | None
) -> None:
    model = make_model(policy_kwargs={"candidates": candidates}).learn(3)
    obs = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    unit = model.learner.act(torch.from_numpy(obs), candidates=candidates, deterministic=True)
    action, state = model.predict(obs, deterministic=True)
    np.testing.assert_array_equal(action, model.policy.scaler.to_box(unit).numpy())
    assert state is None
    sampled = model.learner.act(
        torch.from_numpy(obs), candidates=candidates, generator=model.learner.stream("predict")
    )
    np.testing.assert_array_equal(
        model.predict(obs)[0], model.policy.scaler.to_box(sampled).numpy()
    )


@pytest.mark.parametrize("candidates", [None, 1, 5])
def test_what_is_exported_acts_as_the_policy_does(candidates: int | None) -> None:
    policy = make_policy(candidates=candidates)
    source, obs = policy.policy_source(), torch.linspace(-1, 1, 12).view(4, 3)
    got = act(
        source.actor,
        source.critic,
        obs,
        candidates=source.candidates or 1,
        choice=source.choice,
        deterministic=True,
    )
    assert torch.equal(got, policy.learner.act(obs, candidates=candidates, deterministic=True))


def test_candidates_can_be_changed_at_any_time() -> None:
    policy = make_policy(candidates=1)
    obs = np.ones((4, 3))
    one = policy.predict(obs, deterministic=True)[0]
    policy.candidates = 16
    many = policy.predict(obs, deterministic=True)[0]
    assert not np.array_equal(one, many)
    # The critic prefers what it chose.
    critic, units = policy.critic_target, policy.scaler
    assert critic is not None
    values = [
        torch.cat(critic(torch.ones(4, 3), torch.from_numpy(units.to_unit(a))), 1).amin(1)
        for a in (many, one)
    ]
    assert (values[0] >= values[1] - 1e-6).all()


@pytest.mark.parametrize("number", [0, 10_001, 1.5, True])
def test_so_many_candidates_are_refused_when_they_are_set(number: Any) -> None:
    policy = make_policy(candidates=np.int64(2))
    with pytest.raises(ValueError, match=r"`candidates` is out of range: got .* to 10000"):
        policy.candidates = number
    assert policy.candidates == 2
    with pytest.raises(ValueError, match="out of range"):
        make_policy(candidates=number)


def test_deterministic_repeats_and_stochastic_does_not() -> None:
    policy, obs = make_policy(), np.zeros((6, 3))
    fixed = policy.predict(obs, deterministic=True)[0]
    # Up to rounding: rows of one batch may be added up in different orders.
    np.testing.assert_allclose(fixed, fixed[:1].repeat(6, 0), rtol=0, atol=4e-6)
    np.testing.assert_array_equal(fixed, policy.predict(obs, deterministic=True)[0])
    drawn = policy.predict(obs)[0]
    assert len(np.unique(drawn, axis=0)) == 6
    assert not np.array_equal(drawn, policy.predict(obs)[0])


def test_one_observation_or_a_batch() -> None:
    policy = make_policy()
    batch = np.random.default_rng(0).normal(size=(5, 3))
    whole = policy.predict(batch, deterministic=True)[0]
    single = np.stack([policy.predict(obs, deterministic=True)[0] for obs in batch])
    assert whole.shape == (5, 2)
    np.testing.assert_allclose(single, whole, atol=1e-6)


def test_actions_never_leave_a_box_of_odd_bounds() -> None:
    box = spaces.Box(np.array([-0.3, 1e-3], np.float32), np.array([0.1, 1e5], np.float32))
    policy = MlpPolicy(BOX, box, net_arch=[8])
    obs = 1e3 * np.random.default_rng(0).normal(size=(500, 3))
    action, _ = policy.predict(obs)
    assert all(box.contains(a) for a in action)
    unscaled = policy.unscale_action(np.array([[1.0, 1.0], [-1.0, -1.0]], np.float32))
    assert all(box.contains(a) for a in unscaled.astype(np.float32))
    np.testing.assert_allclose(policy.scale_action(unscaled), [[1, 1], [-1, -1]], atol=1e-5)


def snapshot(policy: GTPPolicy) -> tuple[Any, ...]:
    tensors = [v for v in policy.state_dict().values() if isinstance(v, torch.Tensor)]
    return (
        [t.clone() for t in tensors],
        [m.training for m in policy.modules()],
        torch.get_rng_state(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002 - read, never drawn from
        random.getstate(),
    )


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("deterministic", [True, False])
def test_predict_changes_nothing(mode: bool, deterministic: bool) -> None:
    policy = make_policy()
    policy.set_training_mode(mode)
    before = snapshot(policy)
    obs = np.random.default_rng(0).normal(size=(10, 3))
    given = obs.copy()
    for _ in range(20):
        policy.predict(obs, deterministic=deterministic)
    after = snapshot(policy)
    np.testing.assert_array_equal(obs, given)
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    assert torch.equal(before[2], after[2])
    assert before[1] == after[1]
    assert before[3:] == after[3:]


def test_threads_get_the_same_answers() -> None:
    policy = make_policy()
    observations = np.random.default_rng(0).normal(size=(64, 3))
    expected = [policy.predict(obs, deterministic=True)[0] for obs in observations]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda obs: policy.predict(obs, deterministic=True)[0], observations))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_observations_that_are_not_finite_are_refused(bad: float) -> None:
    obs = np.zeros((4, 3))
    obs[2, 1] = bad
    with pytest.raises(DataError, match="row 2 of 4"):
        make_policy().predict(obs)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ((np.zeros(3), {}), "Unpack it"),
        (np.zeros(4), "(?i)shape"),
        (np.zeros((2, 4)), "(?i)shape"),
        ({"a": np.zeros(3)}, "(?i)dict"),
    ],
)
def test_mistaken_calls_get_sb3s_hints(observation: Any, message: str) -> None:
    with pytest.raises((ValueError, AssertionError), match=message):
        make_policy().predict(observation)


def test_seeds_of_prediction(make_model: Make) -> None:
    model, obs = make_model(), np.zeros((3, 3))
    model.policy.reseed(1)
    first, second = model.predict(obs)[0], model.predict(obs)[0]
    model.policy.reseed(1)
    np.testing.assert_array_equal(model.predict(obs)[0], first)
    np.testing.assert_array_equal(model.predict(obs)[0], second)
    model.policy.reseed(2)
    assert not np.array_equal(model.predict(obs)[0], first)


@pytest.mark.global_rng
def test_set_random_seed_seeds_the_model_and_as_in_sb3_the_rest(make_model: Make) -> None:
    model, obs = make_model(), np.zeros((3, 3))
    model.set_random_seed(None)
    model.set_random_seed(5)
    first, drawn = model.predict(obs)[0], torch.rand(1)
    assert (model.seed, model.learner.config.seed) == (5, 5)
    model.set_random_seed(5)
    np.testing.assert_array_equal(model.predict(obs)[0], first)
    assert torch.equal(torch.rand(1), drawn)
    model.seed = 5  # the model's streams alone
    np.testing.assert_array_equal(model.predict(obs)[0], first)
    model.seed = 6
    assert model.learner.config.seed == 6


# --- modules


def test_parts_are_where_sb3_code_looks_for_them(make_model: Make) -> None:
    model = make_model()
    policy, learner = model.policy, model.learner
    for name, core in (
        ("actor", learner.actor),
        ("actor_target", learner.target_actor),
        ("critic", learner.critic),
        ("critic_target", learner.target_critic),
    ):
        assert getattr(policy, name) is getattr(model, name)
        assert getattr(policy, name).core is core
    assert policy.actor.optimizer is learner.optimizers["actor"]
    assert policy.critic.optimizer is learner.optimizers["critic"]
    own = {id(p) for group in policy.actor.optimizer.param_groups for p in group["params"]}
    assert own == {id(p) for p in policy.actor.parameters()}
    names = {name.partition(".")[0] for name in policy.state_dict()}
    assert names == {"actor", "actor_target", "critic", "critic_target"}


def test_target_networks_never_train() -> None:
    policy = make_policy()
    policy.set_training_mode(True)
    assert policy.training
    assert policy.actor.training
    assert not any(m.training for m in policy.actor_target.modules())
    policy.train(True)
    assert policy.critic_target is not None
    assert not any(m.training for m in policy.critic_target.modules())


def test_copies_keep_optimisers_and_parameters_together(make_model: Make) -> None:
    policy = make_model().learn(2).policy
    twin = copy.deepcopy(policy)
    own = {id(p) for p in twin.learner.optimizers["actor"].param_groups[0]["params"]}
    assert own == {id(p) for p in twin.actor.parameters()}
    assert twin.actor.core is twin.learner.actor
    assert twin.actor.policy is twin
    assert twin.actor.core is not policy.actor.core
    obs = np.ones((2, 3))
    np.testing.assert_array_equal(
        twin.predict(obs, deterministic=True)[0], policy.predict(obs, deterministic=True)[0]
    )


def test_vector_parameters_round_trip() -> None:
    a, b = make_policy(), make_policy(config=GTPConfig(learner=GTPLearnerConfig(seed=9)))
    b.load_from_vector(a.parameters_to_vector())
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y)


def test_optimisers_of_sb3s_choices(make_model: Make) -> None:
    model = make_model(
        learning_rate=1e-2,
        policy_kwargs={
            "optimizer_class": torch.optim.RMSprop,
            "optimizer_kwargs": {"alpha": 0.9},
        },
    ).learn(2)
    for optimizer in model.learner.optimizers.values():
        assert type(optimizer) is torch.optim.RMSprop
        assert optimizer.param_groups[0]["alpha"] == 0.9
        assert optimizer.param_groups[0]["lr"] == 1e-2


def test_an_optimiser_takes_the_configs_rates_without_a_learning_rate(make_model: Make) -> None:
    config = make_model().gtp_config
    config = config.replace(learner=config.learner.replace(actor_lr=1e-2, critic_lr=1e-3))
    kwargs = {"optimizer_class": torch.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1}}
    model = make_model(gtp_config=config, policy_kwargs=kwargs).learn(2)
    rates = {n: o.param_groups[0]["lr"] for n, o in model.learner.optimizers.items()}
    assert rates == {"actor": 1e-2, "critic": 1e-3}
    cosine = config.replace(learner=config.learner.replace(lr_schedule="cosine"))
    with pytest.raises(ValueError, match="goes with its own optimiser"):
        make_model(gtp_config=cosine, policy_kwargs=kwargs)


# --- observations


class Doubler(BaseFeaturesExtractor):
    """A custom extractor with state that only training changes."""

    def __init__(self, observation_space: spaces.Box, width: int = 6) -> None:
        super().__init__(observation_space, width)
        self.linear = nn.Linear(observation_space.shape[0], width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(observations))


@pytest.mark.global_rng
def test_own_extractor_is_trained_with_each_network(make_model: Make) -> None:
    kwargs = {"features_extractor_class": Doubler, "features_extractor_kwargs": {"width": 4}}
    model = make_model(policy_kwargs=kwargs)
    policy = model.policy
    encoders = [
        m.encoder for m in (policy.actor, policy.actor_target, policy.critic, policy.critic_target)
    ]
    assert len({id(e) for e in encoders}) == 4
    assert all(e.features_dim == 4 for e in encoders)
    before = [e.extractor.linear.weight.clone() for e in encoders]
    assert all(torch.equal(before[0], w) for w in before)
    model.learn(3)
    after = [e.extractor.linear.weight for e in encoders]
    assert not any(torch.equal(b, a) for b, a in zip(before, after, strict=True))
    assert policy.actor.encoder.extractor.norm.num_batches_tracked > 0
    # Raw observations: an extractor has its own idea of scales.
    assert policy.actor.normalizer.mean.abs().sum() == 0


@pytest.mark.parametrize(
    ("space", "extractor", "divide", "expected"),
    [
        (BOX, FlattenExtractor, True, True),
        (spaces.Box(-1, 1, (2, 3)), FlattenExtractor, True, True),
        (spaces.MultiBinary(3), FlattenExtractor, True, True),
        (spaces.Discrete(3), FlattenExtractor, True, False),
        (spaces.MultiDiscrete([2, 2]), FlattenExtractor, True, False),
        (IMAGE, FlattenExtractor, True, False),  # divided by 255
        (IMAGE, FlattenExtractor, False, True),
        (FIRST, NatureCNN, True, False),
        (BOX, Doubler, True, False),
        (spaces.Dict({"a": BOX, "b": spaces.MultiBinary(2)}), CombinedExtractor, True, True),
        (spaces.Dict({"a": BOX, "b": FIRST}), CombinedExtractor, True, False),
        (
            spaces.Dict({"a": spaces.Box(-1, 1, (3, 36, 36))}),
            CombinedExtractor,
            False,
            False,
        ),
    ],
)
@pytest.mark.global_rng
def test_the_core_serves_what_sb3_would_only_flatten(
    space: Any, extractor: Any, divide: bool, expected: bool
) -> None:
    """Where the core's networks see observations directly, SB3's features are the same numbers."""
    from stable_baselines3.common.preprocessing import preprocess_obs

    policy = (MultiInputPolicy if isinstance(space, spaces.Dict) else MlpPolicy)(
        space,
        ACTIONS,
        net_arch=[8],
        features_extractor_class=extractor,
        normalize_images=divide,
    )
    assert policy.is_vector == expected
    assert (policy.actor.encoder is None) == expected
    sample = space.sample()
    tensors, _ = policy.obs_to_tensor(sample)
    if expected:
        made = policy.make_features_extractor()
        theirs = made(preprocess_obs(tensors, space, divide))
        ours = policy.layout.flatten(tensors)
        assert torch.equal(theirs.sort().values, ours.sort().values)
    assert policy.predict(sample)[0].shape == (2,)


@pytest.mark.global_rng
def test_cnn_policy_sees_what_sb3s_extractor_would_see() -> None:
    """The features equal those of SB3's own pipeline."""
    from stable_baselines3.common.preprocessing import preprocess_obs

    policy = CnnPolicy(FIRST, ACTIONS, net_arch=[8])
    image = FIRST.sample()
    tensors, _ = policy.obs_to_tensor(image)
    encoder = policy.actor_target.encoder
    theirs = encoder.extractor(preprocess_obs(tensors, FIRST))
    assert torch.equal(encoder(policy.layout.flatten(tensors)), theirs)
    # Channels last are turned, as SB3 does.
    np.testing.assert_array_equal(
        policy.predict(np.moveaxis(image, 0, -1), deterministic=True)[0],
        policy.predict(image, deterministic=True)[0],
    )


def test_a_part_of_one_number_needs_no_axis() -> None:
    space = spaces.Dict({"time": spaces.Box(0, 1, ()), "speed": spaces.Box(-1, 1, (1,))})
    policy = MultiInputPolicy(space, ACTIONS, net_arch=[8])
    rows = torch.tensor([[0.5, 0.25], [-0.5, 0.75]])  # in the order of the layout
    assert policy.layout.keys == ("speed", "time")
    obs = {"speed": rows[:, :1].numpy(), "time": rows[:, 1].numpy()}
    expected = policy.scaler.to_box(policy.learner.act(rows, deterministic=True).numpy())
    found, _ = policy.predict(obs, deterministic=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    found, _ = policy.predict({k: v[0] for k, v in obs.items()}, deterministic=True)
    np.testing.assert_allclose(found, expected[0], atol=1e-6)


def test_spaces_of_another_kind_are_not_taken_over() -> None:
    policy = MlpPolicy(spaces.Box(-np.inf, np.inf, (4,)), ACTIONS, net_arch=[8])
    with pytest.raises(ValueError, match="of another kind"):
        policy.take_spaces(spaces.MultiDiscrete([2, 2, 2, 2]), ACTIONS)
    policy.take_spaces(spaces.MultiBinary(4), ACTIONS)


def test_array_policy_refuses_a_dict_at_construction() -> None:
    with pytest.raises(UnsupportedSpaceError, match="MultiInputPolicy"):
        MlpPolicy(spaces.Dict({"a": BOX}), ACTIONS)


def test_own_backbone_is_used_and_copied(make_model: Make) -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.zeros(1))

        def forward(self, obs: Any, x: torch.Tensor, t: Any, s: Any) -> torch.Tensor:
            return self.gain * x

    network = Backbone()
    model = make_model(policy_kwargs={"network": network}).learn(2)
    assert type(model.actor.network) is Backbone
    assert model.actor.network is not network
    assert network.gain == 0
    assert model.actor.network.gain != 0


# --- choices made twice, or not offered


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau": 0.1, "learner": {"ema_rate": 0.2}}, "`tau` and `learner.ema_rate`"),
        ({"seed": 1, "learner": {"seed": 2}}, "`seed` and `learner.seed`"),
        ({"learning_rate": 1e-3, "learner": {"actor_lr": 1e-3}}, "`learning_rate` and"),
        ({"learning_rate": 1e-3, "learner": {"lr_schedule": "cosine"}}, "`learning_rate` and"),
        ({"policy_kwargs": {"net_arch": [8]}, "hidden": (16,)}, "`net_arch\\['pi'\\]`"),
        ({"policy_kwargs": {"net_arch": {"pi": [8], "qf": [8]}}, "hidden": (16,)}, "`net_arch"),
        ({"policy_kwargs": {"n_critics": 3}, "members": 2}, "`n_critics`"),
        ({"policy_kwargs": {"net_arch": {"vf": [8]}}}, "other keys"),
        ({"policy_kwargs": {"activation_fn": nn.ReLU}}, "`activation_fn` is fixed"),
        ({"policy_kwargs": {"share_features_extractor": True}}, "share_features_extractor"),
        ({"policy_kwargs": {"config": GTPConfig()}}, "Pass gtp_config="),
    ],
)
def test_a_choice_made_twice_or_not_offered_is_named(
    dataset: Any, arguments: dict[str, Any], message: str
) -> None:
    hidden, members = arguments.pop("hidden", None), arguments.pop("members", None)
    config = GTPConfig(
        actor=FlowMapActorConfig(**({"hidden": hidden} if hidden else {})),
        critic=QEnsembleConfig(**({"members": members} if members else {})),
        learner=GTPLearnerConfig(**arguments.pop("learner", {})),
    )
    with pytest.raises(ValueError, match=message):
        GTP("MlpPolicy", None, dataset=dataset, gtp_config=config, **arguments)


def test_the_same_choice_twice_is_no_conflict(make_model: Make) -> None:
    config = make_model().gtp_config
    config = config.replace(learner=GTPLearnerConfig(ema_rate=0.1, seed=3))
    arguments = {"gtp_config": config, "tau": 0.1, "policy_kwargs": {"net_arch": [16]}}
    assert make_model(**arguments).learner.config.ema_rate == 0.1


def test_net_arch_is_the_value_networks_too(make_model: Make) -> None:
    config = GTPConfig(learner=GTPLearnerConfig(baseline=ExpectileBaseline()))
    model = make_model(gtp_config=config, policy_kwargs={"net_arch": [8]})
    assert model.value is not None
    assert model.value.network[0].out_features == 8
    assert model.learner.config.baseline == ExpectileBaseline(hidden=(8,))


# --- torch.compile


@pytest.mark.global_rng  # the compiler's own affair
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_compiled_policy_learns_predicts_and_survives_a_file(
    make_model: Make, walk: Any, tmp_path: Any, equal: Any
) -> None:
    # One candidate: among several of an untrained policy a rounding can decide.
    model = make_model(walk(), policy_kwargs={"candidates": 1})
    before = model.get_parameters()
    model.policy = torch.compile(model.policy, backend="eager")
    assert model.get_parameters().keys() == before.keys()
    model.learn(3)
    obs = np.ones((2, 3), np.float32)
    action = model.predict(obs, deterministic=True)[0]
    # The compiled forward is the same function, without the sampler's plan.
    unit = model.policy(torch.from_numpy(obs), deterministic=True)
    np.testing.assert_allclose(model.policy.scaler.to_box(unit.numpy()), action, atol=1e-6)
    model.save(tmp_path / "model")
    loaded = GTP.load(tmp_path / "model", env=walk())
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], action)
    model.set_parameters(loaded.get_parameters())
    model.set_parameters(tmp_path / "model")
    model.set_dataset(None)
    model.learn(15)
    assert model._n_updates == 8


def test_importing_without_the_host_names_the_extra() -> None:
    import subprocess
    import sys

    code = "import sys; sys.modules['stable_baselines3'] = None\nimport gtp_sb3"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert "MissingDependencyError" in result.stderr
    assert "pip install '.[sb3]'" in result.stderr


def test_environment_ids_are_made(dataset: Any, config: GTPConfig) -> None:
    model = GTP("MlpPolicy", "Pendulum-v1", dataset=dataset, gtp_config=config, device="cpu")
    assert isinstance(model.get_env(), DummyVecEnv)
    assert isinstance(model.observation_space, gymnasium.spaces.Box)


# --- what the host's own tests look at


@pytest.mark.global_rng
def test_a_state_holds_numbers_alone_and_is_still_checked() -> None:
    policy = make_policy()
    state = policy.state_dict()
    assert all(value.is_floating_point() for value in state.values())
    other = make_policy(config=GTPConfig(actor=FlowMapActorConfig(sigma_data=0.1)))
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    nested = nn.ModuleDict({"policy": policy}).state_dict()
    for given, module in (
        (state, other),
        (copy.deepcopy(state), other),
        (torch.load(file, weights_only=True), other),
        (nested, nn.ModuleDict({"policy": other})),
    ):
        with pytest.raises(StateMismatchError, match="another flow map"):
            module.load_state_dict(given)
    nn.ModuleDict({"policy": make_policy()}).load_state_dict(nested)
    # Numbers from anywhere say nothing of what they are for.
    drawn = {name: torch.rand_like(value) for name, value in state.items()}
    with pytest.warns(UserWarning, match="does not say which flow map it is of: got no metadata"):
        other.load_state_dict(drawn)
    assert all(torch.equal(value, drawn[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("part", ["", "actor"])
def test_what_was_assigned_is_trained_on(make_model: Make, part: str) -> None:
    model = make_model()
    state = copy.deepcopy(make_model().policy.get_submodule(part).state_dict())
    model.policy.get_submodule(part).load_state_dict(state, assign=True)
    before = [p.detach().clone() for p in model.actor.parameters()]
    model.learn(2)
    assert not any(map(torch.equal, before, model.actor.parameters()))


@pytest.mark.parametrize("part", ["", "actor", "actor_target", "critic", "critic_target"])
def test_a_state_that_does_not_fit_changes_nothing(part: str) -> None:
    policy = make_policy()
    module = policy.get_submodule(part)
    before = copy.deepcopy(policy.state_dict())
    given = copy.deepcopy(module.state_dict())
    for name in given:
        if given[name].is_floating_point():
            given[name] += 1
    given[name] = torch.zeros(3, 3)  # the last one, by when torch has written the others
    with pytest.raises(StateMismatchError, match=r"(?s)do not fit: .*size mismatch.*expected what"):
        module.load_state_dict(given)
    with pytest.raises(StateMismatchError, match=r"do not fit: .*expected what"):
        module.load_state_dict(None)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert not policy.scales_are_given


def test_a_state_of_earlier_versions_is_loaded_and_checked() -> None:
    policy = make_policy()
    # The core's networks were the policy's own children, and told of themselves there.
    state = {name.replace(".core.", "."): part for name, part in policy.state_dict().items()}
    told = OrderedDict(state)
    told._metadata = {"": {"made_for": {}}}
    for name in ("actor", "actor_target"):
        state[f"{name}._extra_state"] = getattr(policy, name).core.get_extra_state()
        told._metadata[""]["made_for"][f"{name}._extra_state"] = bytes(
            state[f"{name}._extra_state"].tolist()
        ).decode()
    for old in (state, told):
        new = make_policy(config=GTPConfig(learner=GTPLearnerConfig(seed=9)))
        new.load_state_dict(old)
        for a, b in zip(new.parameters(), policy.parameters(), strict=True):
            assert torch.equal(a, b)
    other = make_policy(config=GTPConfig(actor=FlowMapActorConfig(sigma_data=0.1)))
    for old in (state, told):
        with pytest.raises(StateMismatchError, match="another flow map"):
            other.load_state_dict(old)


def test_actor_and_critic_are_called_as_sb3_calls_them(make_model: Make) -> None:
    model = make_model()
    obs = torch.arange(15.0).reshape(5, 3) / 15
    reward = torch.zeros(5, 1)
    action = model.actor(obs)
    assert action.shape == (5, 1)
    q1, q2 = model.critic(obs, action)
    assert q1.shape == q2.shape == (q1 - reward).shape == (5, 1)
    both = model.learner.critic(obs, action)
    assert torch.equal(torch.stack([q1, q2]).squeeze(-1), both)
    assert torch.equal(model.critic.q1_forward(obs, action), q1)
    # As in a loss of one's own: a gradient to the actor, through its actions.
    model.critic.q1_forward(obs, action).mean().neg().backward()
    assert all(p.grad is not None for p in model.actor.parameters())
    same = [model.actor(obs, deterministic=True) for _ in range(2)]
    assert torch.equal(*same)
    noise = keyed_noise(obs, model.learner.actor.noise_dim())
    torch.testing.assert_close(same[0], model.learner.actor.sample(obs, noise=noise))
    assert not torch.equal(model.actor(obs), model.actor(obs))
    seen = np.ones((4, 3), np.float32)
    for part in (model.actor, model.actor_target):
        np.testing.assert_array_equal(
            part.predict(seen, deterministic=True)[0], model.predict(seen, deterministic=True)[0]
        )
    assert type(model.actor.features_extractor) is FlattenExtractor
    assert model.actor.obs_dim == model.critic.obs_dim == 3  # the core's
    model.actor_target.mode_share = 0.9
    assert model.learner.target_actor.mode_share == 0.9


def test_a_saved_actor_is_a_saved_policy(make_model: Make, tmp_path: Path) -> None:
    model = make_model().learn(2)
    obs = np.ones((4, 3), np.float32)
    model.actor.save(tmp_path / "actor.zip")
    for part in (Actor.load(tmp_path / "actor.zip"), MlpPolicy.load(tmp_path / "actor.zip")):
        np.testing.assert_array_equal(
            part.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0]
        )
    critic = Critic.load(tmp_path / "actor.zip")
    x = torch.ones(1, 3), torch.zeros(1, 1)
    assert torch.equal(critic(*x)[0], model.critic(*x)[0])


@pytest.mark.parametrize("name", ["mu", "latent_pi", "log_std", "qf0", "q_networks"])
def test_parts_that_only_sb3s_networks_have_say_what_there_is(name: str) -> None:
    policy = make_policy()
    for part in (policy.actor, policy.critic):
        with pytest.raises(AttributeError, match=r"expected (actor|critic)"):
            getattr(part, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        policy.actor.nothing  # noqa: B018


def test_a_policy_with_memory_has_no_actor_of_one_observation() -> None:
    policy = make_policy(config=GTPConfig(actor=FlowMapActorConfig(chunk=2)))
    with pytest.raises(ValueError, match=r"got a policy with history=1 and chunk=2"):
        policy.actor(torch.zeros(1, 3))
    assert policy.actor.predict(np.zeros(3))[0].shape == (2,)


@pytest.mark.global_rng
def test_extractors_have_the_hosts_name_and_no_second_one_in_the_state() -> None:
    baseline = GTPConfig(learner=GTPLearnerConfig(baseline=ExpectileBaseline()))
    policy = CnnPolicy(FIRST, ACTIONS, config=baseline)
    networks = (
        policy.actor,
        policy.actor_target,
        policy.critic,
        policy.critic_target,
        policy.value,
    )
    extractors = {id(network.features_extractor) for network in networks}
    assert len(extractors) == 5
    assert not any("features_extractor" in name for name in policy.state_dict())
    copied = copy.deepcopy(policy)
    assert copied.actor.features_extractor is copied.actor.core.encoder.extractor


def test_a_space_that_does_not_fit_is_an_assertion_error_as_in_sb3() -> None:
    for make in (
        lambda: GTP("MlpPolicy", "CartPole-v1"),
        lambda: MlpPolicy(BOX, spaces.Discrete(3)),
        lambda: MlpPolicy(BOX, spaces.Box(-np.inf, np.inf, (1,))),
    ):
        with pytest.raises(AssertionError) as caught:
            make()
        assert isinstance(caught.value, UnsupportedSpaceError)


def test_a_misspelt_argument_of_the_policy_is_guessed(make_model: Make) -> None:
    with pytest.raises(TypeError, match=r"got 'net_arh', .* Did you mean net_arch"):
        make_model(policy_kwargs={"net_arh": [8]})


@pytest.mark.parametrize(
    "part", [spaces.Discrete(3, start=3), spaces.MultiDiscrete([2, 2], start=[0, 1])]
)
def test_categories_that_do_not_begin_at_zero_are_refused(part: spaces.Space[Any]) -> None:
    """SB3 encodes them without a look at where they begin, which ends in an error of torch."""
    for space in (part, spaces.Dict(a=part, b=spaces.Box(-1, 1, (2,)))):
        kind = MultiInputPolicy if isinstance(space, spaces.Dict) else MlpPolicy
        with pytest.raises(UnsupportedSpaceError, match="counts categories from 0"):
            kind(space, spaces.Box(-1, 1, (2,)))
