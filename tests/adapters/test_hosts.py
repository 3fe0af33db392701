"""One algorithm in three places: the core, Tianshou and Stable-Baselines3 agree to the last bit."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tianshou.data import Batch
from tianshou.trainer import OfflineTrainerParams

import gtp_sb3
import gtp_tianshou
from gtp_policy import (
    ActionScaler,
    ExpectileBaseline,
    FlowMapActor,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    ObservationLayout,
    OfflineDataset,
    PolicyBaseline,
    QEnsembleConfig,
    act,
    save_checkpoint,
)
from gtp_policy.acting import ModeChoice
from gtp_policy.dataset_builder import OfflineDatasetBuilder

UPDATES = 6
BOX = gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32))
VECTOR = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
GOAL = gym.spaces.Dict(
    {
        "achieved_goal": gym.spaces.Box(-np.inf, np.inf, (1,), np.float32),
        "desired_goal": gym.spaces.Box(-np.inf, np.inf, (1,), np.float32),
        "observation": gym.spaces.Box(-np.inf, np.inf, (2,), np.float32),
    }
)
CONFIG = GTPConfig(
    actor=FlowMapActorConfig(hidden=(16,), time_dim=4, steps=2),
    critic=QEnsembleConfig(hidden=(16,)),
    learner=GTPLearnerConfig(total_updates=UPDATES, ema_rate=0.1, eval_candidates=4, seed=5),
)
CONFIGS = {
    "policy baseline": CONFIG,
    "expectile": CONFIG.replace(
        learner=CONFIG.learner.replace(
            baseline=ExpectileBaseline(hidden=(8,)), lr_schedule="cosine", max_grad_norm=0.5
        )
    ),
    "cloning": CONFIG.replace(critic=None),
    "one sample": CONFIG.replace(
        learner=CONFIG.learner.replace(baseline=PolicyBaseline(samples=1), backup_actions=3)
    ),
}


def make_dataset(space: gym.Space[Any], gamma: float = 0.99) -> OfflineDataset:
    rng, n = np.random.default_rng(0), 50
    layout = ObservationLayout((4,))
    if isinstance(space, gym.spaces.Dict):
        layout = ObservationLayout.of_dict({k: part.shape for k, part in space.items()})
    scaler = ActionScaler(BOX.low, BOX.high)
    builder = OfflineDatasetBuilder(n, obs_dim=4, action_scaler=scaler, gamma=gamma)
    builder.append(
        obs=rng.normal(2.0, 3.0, (n, 4)),
        action=rng.uniform(BOX.low, BOX.high, (n, 2)),
        reward=rng.normal(size=n),
        next_obs=rng.normal(size=(n, 4)),
        terminated=np.arange(n) % 10 == 9,
        truncated=np.arange(n) % 25 == 12,
    )
    return OfflineDataset.from_builder(builder, layout=layout)


class Trained:
    """A learner that a host trained, and the host's way to act and to save."""

    def __init__(
        self,
        learner: GTPLearner,
        act: Callable[[Any], np.ndarray],
        save: Callable[[Path], Any],
    ) -> None:
        self.learner, self.act, self.save = learner, act, save


def in_core(dataset: OfflineDataset, space: gym.Space[Any], config: GTPConfig) -> Trained:
    learner = GTPLearner.from_dataset(dataset, config)
    while learner.updates < UPDATES:
        learner.update(dataset.sample(16, generator=learner.stream("batch")))

    def act(obs: Any) -> np.ndarray:
        flat = torch.from_numpy(dataset.layout.flatten(obs))
        return dataset.action_scaler.to_box(learner.act(flat, deterministic=True)).numpy()

    def save(path: Path) -> None:
        save_checkpoint(path, learner, action_scaler=dataset.action_scaler, layout=dataset.layout)

    return Trained(learner, act, save)


def in_tianshou(dataset: OfflineDataset, space: gym.Space[Any], config: GTPConfig) -> Trained:
    algorithm = gtp_tianshou.GTP.from_buffer(
        dataset, action_space=BOX, observation_space=space, config=config
    )
    algorithm.run_training(
        OfflineTrainerParams(
            buffer=dataset,
            batch_size=16,
            max_epochs=2,
            epoch_num_steps=UPDATES // 2,
            show_progress=False,
            verbose=False,
        )
    )
    return Trained(algorithm.learner, tianshou_act(algorithm), algorithm.save)


def tianshou_act(algorithm: gtp_tianshou.GTP) -> Callable[[Any], np.ndarray]:
    policy = algorithm.policy
    return lambda obs: policy.map_action(policy(Batch(obs=obs, info={})).act)


def in_sb3(dataset: OfflineDataset, space: gym.Space[Any], config: GTPConfig) -> Trained:
    name = "MultiInputPolicy" if dataset.obs_keys else "MlpPolicy"
    model = gtp_sb3.GTP(name, None, dataset=dataset, gtp_config=config, batch_size=16, device="cpu")
    model.learn(UPDATES)
    return Trained(model.learner, sb3_act(model), model.save)


def sb3_act(model: gtp_sb3.GTP) -> Callable[[Any], np.ndarray]:
    return lambda obs: model.predict(obs, deterministic=True)[0]


HOSTS = {"core": in_core, "tianshou": in_tianshou, "sb3": in_sb3}
LOAD: dict[str, Callable[[Path], tuple[GTPLearner, Callable[[Any], np.ndarray]]]] = {
    "tianshou": lambda path: (
        (loaded := gtp_tianshou.GTP.load(path)).learner,
        tianshou_act(loaded),
    ),
    "sb3": lambda path: ((loaded := gtp_sb3.GTP.load(path, device="cpu")).learner, sb3_act(loaded)),
}


def tensors(learner: GTPLearner) -> dict[str, torch.Tensor]:
    """Returns every parameter, target network, buffer and moment by name."""
    found = {n: t for n, t in learner.state_dict().items() if isinstance(t, torch.Tensor)}
    for part, optimizer in learner.optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            found |= {f"{part}/{index}/{key}": value for key, value in state.items()}
    return found


def assert_same(a: GTPLearner, b: GTPLearner) -> None:
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert (a.updates, a.full_config) == (b.updates, b.full_config)


def some_observations(space: gym.Space[Any]) -> Any:
    rng = np.random.default_rng(1)
    if isinstance(space, gym.spaces.Dict):
        return {k: rng.normal(size=(7, *p.shape)).astype(np.float32) for k, p in space.items()}
    return rng.normal(size=(7, 4)).astype(np.float32)


@pytest.mark.global_rng
@pytest.mark.parametrize("space", [VECTOR, GOAL], ids=["vector", "goal"])
@pytest.mark.parametrize("name", CONFIGS)
def test_equal_parameters_and_equal_actions(name: str, space: gym.Space[Any]) -> None:
    dataset, obs = make_dataset(space), some_observations(space)
    trained = [train(dataset, space, CONFIGS[name]) for train in HOSTS.values()]
    assert trained[0].learner.updates == UPDATES
    actions = [each.act(obs) for each in trained]
    for other, action in zip(trained[1:], actions[1:], strict=True):
        assert_same(trained[0].learner, other.learner)
        # The hosts scale to the Box in float32 by their own formulas.
        np.testing.assert_allclose(action, actions[0], rtol=0, atol=2e-6)


@pytest.mark.global_rng
@pytest.mark.parametrize("space", [VECTOR, GOAL], ids=["vector", "goal"])
@pytest.mark.parametrize(("saver", "loader"), list(itertools.product(HOSTS, LOAD)))
def test_what_one_saves_the_others_load(
    tmp_path: Path, saver: str, loader: str, space: gym.Space[Any]
) -> None:
    dataset, obs = make_dataset(space), some_observations(space)
    trained = HOSTS[saver](dataset, space, CONFIGS["expectile"])
    path = tmp_path / "policy.zip"
    trained.save(path)
    bare = GTPLearner.load(path)
    assert_same(bare, trained.learner)
    action = bare.predict(obs, deterministic=True)
    np.testing.assert_allclose(action, trained.act(obs), rtol=0, atol=2e-6)
    learner, act = LOAD[loader](path)
    assert_same(learner, trained.learner)
    np.testing.assert_allclose(act(obs), trained.act(obs), rtol=0, atol=2e-6)


@pytest.mark.global_rng
@pytest.mark.parametrize("loader", [gtp_tianshou.GTP, gtp_sb3.GTP])
@pytest.mark.parametrize("saver", HOSTS)
def test_the_discount_goes_with_the_file(saver: str, loader: Any, tmp_path: Path) -> None:
    dataset = make_dataset(VECTOR, gamma=0.9)
    HOSTS[saver](dataset, VECTOR, CONFIG).save(tmp_path / "policy.zip")
    loaded = loader.load(tmp_path / "policy.zip")
    assert loaded.gamma == loaded.learner.config.gamma == 0.9
    assert loader.load(tmp_path / "policy.zip", gamma=0.5).gamma == 0.5


@pytest.mark.global_rng
@pytest.mark.parametrize("share", [0.1, 0.9])
@pytest.mark.parametrize("host", HOSTS)
def test_every_host_takes_the_mode_where_the_critic_prefers_it(
    host: str, share: float, tmp_path: Path
) -> None:
    dataset, obs = make_dataset(VECTOR), some_observations(VECTOR)
    config = CONFIG.replace(learner=CONFIG.learner.replace(eval_candidates=None))
    trained = HOSTS[host](dataset, VECTOR, config)
    measured = trained.learner.target_actor.mode_share
    assert measured is not None  # at the last update of the run
    trained.learner.target_actor.mode_share = share
    candidates = 16 if share > 0.5 else 1
    own = act(
        trained.learner.target_actor,
        None,
        torch.from_numpy(obs),
        candidates=candidates,
        choice=ModeChoice(),
        deterministic=True,
    )
    expected = dataset.action_scaler.to_box(own).numpy()
    np.testing.assert_allclose(trained.act(obs), expected, rtol=0, atol=2e-6)
    trained.save(tmp_path / "policy.zip")
    for load in LOAD.values():
        np.testing.assert_allclose(
            load(tmp_path / "policy.zip")[1](obs), expected, rtol=0, atol=2e-6
        )


@pytest.mark.global_rng
def test_what_was_seen_of_the_mode_goes_with_a_policys_state(tmp_path: Path) -> None:
    def sb3() -> gtp_sb3.MlpPolicy:
        return gtp_sb3.MlpPolicy(VECTOR, BOX, net_arch=[8])

    def tianshou() -> gtp_tianshou.GTPPolicy:
        return gtp_tianshou.GTPPolicy(actor=FlowMapActor(4, 2), action_space=BOX)

    for make, name in ((sb3, "actor_target"), (tianshou, "actor")):
        seen, other = make(), make()
        getattr(seen, name).mode_share = 0.9
        state = copy.deepcopy(seen.state_dict())
        other.load_state_dict(state)
        assert getattr(other, name).mode_share == 0.9
        seen.load_state_dict(make().state_dict())  # of others, at which nobody has looked
        assert getattr(seen, name).mode_share is None


@pytest.mark.global_rng
def test_sb3s_parameters_bring_what_was_seen_of_the_mode(tmp_path: Path) -> None:
    dataset = make_dataset(VECTOR)
    config = CONFIG.replace(learner=CONFIG.learner.replace(eval_candidates=None))
    trained, other = (HOSTS["sb3"](dataset, VECTOR, config) for _ in range(2))
    trained.learner.target_actor.mode_share, other.learner.target_actor.mode_share = 0.9, 0.1
    trained.save(tmp_path / "policy.zip")
    model = gtp_sb3.GTP.load(tmp_path / "policy.zip")
    first = model.get_parameters()
    model.learner.target_actor.mode_share = None
    for given in (first, tmp_path / "policy.zip"):
        model.set_parameters(given)
        assert model.learner.target_actor.mode_share == 0.9
        model.learner.target_actor.mode_share = None
    other.save(tmp_path / "other.zip")
    model.set_parameters(tmp_path / "other.zip")
    assert model.learner.target_actor.mode_share == 0.1


def test_a_policy_goes_from_tianshou_to_sb3_as_it_acts(tmp_path: Path) -> None:
    space = gym.spaces.Box(-3, 3, (2, 1), np.int8)
    learner = GTPLearner.build(4, 2, CONFIG)
    policy = gtp_tianshou.GTPPolicy(
        actor=learner.actor,
        critic=learner.critic,
        action_space=space,
        candidates=3,
        layout=ObservationLayout((4,)),
    )
    algorithm = gtp_tianshou.GTP(policy=policy, critic=learner.critic, config=CONFIG.learner)
    path = algorithm.save(tmp_path / "policy.zip")
    model = gtp_sb3.GTP.load(path)
    assert model.action_space == gym.spaces.Box(-3, 3, (2, 1), np.int64)
    assert model.policy.candidates == 3
    obs = np.random.default_rng(0).standard_normal((20, 4), np.float32)
    theirs = policy.map_action(np.asarray(policy.forward(Batch(obs=obs, info={})).act))
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], theirs)
    policy.steps = 5
    with pytest.warns(UserWarning, match="acted with 5 steps: here it acts with 2"):
        gtp_sb3.GTP.load(algorithm.save(tmp_path / "five.zip"))
    env = gym.wrappers.TransformAction(
        gym.make("Pendulum-v1"), lambda a: a, gym.spaces.Box(-3, 3, (2,), np.float32)
    )
    env.observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    with pytest.raises(ValueError, match="actions of the environment do not fit"):
        gtp_sb3.GTP.load(path, env=env)
