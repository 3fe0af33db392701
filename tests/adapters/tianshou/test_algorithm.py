"""The algorithm in Tianshou's own trainer, against the core's learner and next to TD3BC."""

import copy
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from tianshou.algorithm import TD3BC
from tianshou.algorithm.modelfree.ddpg import ContinuousDeterministicPolicy
from tianshou.algorithm.optim import (
    AdamOptimizerFactory,
    LRSchedulerFactoryLinear,
    TorchOptimizerFactory,
)
from tianshou.data import (
    Batch,
    Collector,
    CollectStats,
    HERReplayBuffer,
    PrioritizedReplayBuffer,
    ReplayBuffer,
    VectorReplayBuffer,
)
from tianshou.env import DummyVectorEnv, SubprocVectorEnv
from tianshou.trainer import OfflineTrainerParams, OffPolicyTrainerParams
from tianshou.utils import LazyLogger
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorDeterministic, ContinuousCritic
from tianshou.utils.torch_utils import policy_within_training_step

from gtp_policy import (
    Curriculum,
    ExpectileBaseline,
    FlowMapActor,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    GTPLoss,
    GTPLossConfig,
    ObservationLayout,
    OfflineDataset,
    QEnsemble,
    QEnsembleConfig,
    Transitions,
    UpdateMetrics,
)
from gtp_policy.errors import DataError, EmptyDatasetError, NonFiniteError
from gtp_tianshou import (
    GTP,
    GTPPolicy,
    GTPTrainingStats,
    buffer_from_dataset,
    dataset_from_buffer,
)
from gtp_tianshou._batches import td_error
from gtp_tianshou.buffers import WithoutCuts

Make = Callable[..., GTP]
Params = Callable[..., OfflineTrainerParams]
ADAM = AdamOptimizerFactory(lr=1e-3)


def tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)}


def assert_same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    ours, theirs = tensors(a), tensors(b)
    assert ours.keys() == theirs.keys()
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []


def train_core(learner: GTPLearner, dataset: OfflineDataset, updates: int) -> GTPLearner:
    for _ in range(updates):
        learner.update(dataset.sample(16, generator=learner.stream("batch")))
    return learner


@pytest.mark.parametrize("through", ["dataset", "buffer"])
@pytest.mark.parametrize("critic", [True, False])
def test_parameters_are_those_of_the_core(
    dataset: OfflineDataset,
    action_space: Box,
    small: GTPConfig,
    params: Params,
    through: str,
    critic: bool,
) -> None:
    config = small if critic else small.replace(critic=None)
    data = dataset if through == "dataset" else buffer_from_dataset(dataset)
    algorithm = GTP.from_buffer(data, action_space=action_space, config=config)
    result = algorithm.run_training(params(data))
    assert result.update_step == 10
    # The config names no length, so that the core gets the trainer's.
    core = GTPLearner.from_dataset(
        dataset, config.replace(learner=GTPLearnerConfig(total_updates=10))
    )
    assert_same(algorithm.learner, train_core(core, dataset, 10))
    assert algorithm.learner.full_config == core.full_config


@pytest.mark.parametrize("factory", [ADAM, TorchOptimizerFactory(torch.optim.AdamW, lr=1e-2)])
def test_optimiser_factories_are_what_the_core_steps(
    dataset: OfflineDataset, make_algorithm: Make, small: GTPConfig, params: Params, factory: Any
) -> None:
    config = GTPLearnerConfig(total_updates=50, baseline=ExpectileBaseline(hidden=(8,)))
    algorithm = make_algorithm(policy_optim=factory, critic_optim=ADAM, config=config)
    algorithm.run_training(params(dataset))
    core = GTPLearner(
        FlowMapActor(3, 2, small.actor),
        QEnsemble(3, 2, small.critic),
        loss=GTPLoss(GTPLossConfig(curriculum=Curriculum().capped(50, config.actor_rate))),
        config=config,
        optimizer=lambda name, module: (factory if name == "actor" else ADAM).create_instances(
            module
        )[0],
    )
    assert_same(algorithm.learner, train_core(core, dataset, 10))
    lr = algorithm.learner.optimizers["actor"].param_groups[0]["lr"]
    assert lr == (1e-2 if factory is not ADAM else 1e-3)
    assert algorithm.learner.optimizers["value"].param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize("steps", [1, 3])
def test_next_actions_and_returns_of_several_steps_equal_the_core(
    dataset: OfflineDataset, make_algorithm: Make, small: GTPConfig, params: Params, steps: int
) -> None:
    """What a dataset of n-step returns holds passes the host; next actions it adds by itself."""
    config = GTPLearnerConfig(total_updates=50, critic_penalty=0.5)
    full = dataset.with_next_actions().with_n_step(steps)
    algorithm = make_algorithm(policy_optim=ADAM, critic_optim=ADAM, config=config)
    algorithm.run_training(params(dataset if steps == 1 else full))
    core = GTPLearner(
        FlowMapActor(3, 2, small.actor),
        QEnsemble(3, 2, small.critic),
        loss=GTPLoss(GTPLossConfig(curriculum=Curriculum().capped(50, config.actor_rate))),
        config=config,
        optimizer=lambda name, module: ADAM.create_instances(module)[0],
    )
    assert_same(algorithm.learner, train_core(core, full, 10))


def test_the_stock_path_does_the_same_update(
    dataset: OfflineDataset, make_algorithm: Make, params: Params
) -> None:
    """The same 16 rows, as a Batch of numpy arrays and as a part of the table."""
    stock, table = make_algorithm(preload=False), make_algorithm()
    buffer = buffer_from_dataset(dataset, seed=4)
    assert stock.process_buffer(buffer) is buffer
    rows = buffer_from_dataset(dataset, seed=4).sample_indices(16)
    for algorithm, batch in (
        (stock, buffer.sample(16)[0]),
        (table, dataset.transitions.map(lambda x: x[rows])),
    ):
        algorithm._update_with_batch(batch)
    assert_same(stock.learner, table.learner)


@pytest.mark.slow
@pytest.mark.global_rng  # PrioritizedReplayBuffer samples from numpy's global generator
def test_a_prioritised_buffer_gets_its_priorities(
    dataset: OfflineDataset, make_algorithm: Make, caplog: pytest.LogCaptureFixture
) -> None:
    source = buffer_from_dataset(dataset)
    buffer = PrioritizedReplayBuffer(60, alpha=1.0, beta=0.4)
    for row in range(60):
        buffer.add(Batch(source[row]))
    np.random.seed(3)  # noqa: NPY002 (the host's generator)
    rows = buffer.sample_indices(8)
    np.random.seed(3)  # noqa: NPY002
    algorithm, twin = make_algorithm(), make_algorithm()
    with policy_within_training_step(algorithm.policy):
        algorithm.update(algorithm.process_buffer(buffer), 8)
    assert "weight" not in caplog.text  # Tianshou warns where an algorithm forgets them
    batch = dataset.transitions.map(lambda x: x[rows])
    learner = twin.learner
    learner.update(batch)
    assert_same(algorithm.learner, learner)
    noise = learner.stream("priority")
    after = learner.target_actor.sample(batch.next_obs, generator=noise)
    next_q = learner.target_critic(batch.next_obs, after).amin(0)
    y = batch.reward + batch.discount * next_q
    error = (learner.critic(batch.obs, batch.action) - y).abs().mean(0)
    expected = dict(zip(rows.tolist(), error.tolist(), strict=True))
    weights = buffer.weight[np.arange(60)]
    for row in range(60):
        assert weights[row] == pytest.approx(expected.get(row, 1.0), abs=1e-5)


@pytest.mark.parametrize("kind", ["prioritised", "stacked", "by its own rule"])
@pytest.mark.global_rng  # PrioritizedReplayBuffer samples from numpy's global generator
def test_rows_without_a_next_observation_are_never_drawn(
    kind: str, small: GTPConfig, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer: ReplayBuffer = ReplayBuffer(
        40, ignore_obs_next=True, stack_num=2 if kind == "stacked" else 1
    )
    if kind == "prioritised":
        buffer = PrioritizedReplayBuffer(40, alpha=0.6, beta=0.4, ignore_obs_next=True)
    for row in range(39):  # of four episodes, of which the third terminates and the last goes on
        ends = {"terminated": row == 29, "truncated": row in (9, 19)}
        buffer.add(Batch(obs=np.full(3, row), act=np.zeros(1), rew=1.0, info={}, **ends))
    shape = (2, 3) if kind == "stacked" else (3,)
    algorithm = GTP(
        policy=GTPPolicy(
            actor=FlowMapActor(int(np.prod(shape)), 1, small.actor),
            action_space=Box(-1, 1, (1,)),
            layout=ObservationLayout(shape),
        ),
        critic=QEnsemble(int(np.prod(shape)), 1, small.critic),
        preload=False,
    )
    drawn: list[Transitions] = []
    update = algorithm.learner.update

    def see(batch: Transitions) -> UpdateMetrics:
        drawn.append(batch)
        return update(batch)

    monkeypatch.setattr(algorithm.learner, "update", see)
    algorithm.run_training(params(buffer, batch_size=64, max_epochs=1))
    assert [len(batch.obs) for batch in drawn] == [64] * 5
    obs = torch.cat([batch.obs[:, -1] for batch in drawn])
    assert not torch.isin(obs, torch.tensor([9.0, 19.0, 38.0])).any()
    assert len(obs.unique()) == 36
    everything, _ = WithoutCuts(buffer).sample(0)
    assert len(everything) == 36


def test_a_buffer_without_any_next_observation_is_empty() -> None:
    buffer = ReplayBuffer(4, ignore_obs_next=True)
    for _ in range(4):
        row = Batch(obs=np.zeros(3), act=np.zeros(1), rew=1.0, terminated=False, truncated=True)
        buffer.add(row)
    for size in (0, 8):
        with pytest.raises(EmptyDatasetError, match="too few transitions with a next observation"):
            WithoutCuts(buffer).sample(size)
    with pytest.raises(EmptyDatasetError):
        dataset_from_buffer(buffer, action_space=Box(-1, 1, (1,)))


def test_td_errors_of_a_terminal_row_need_no_next_value(
    dataset: OfflineDataset, make_algorithm: Make
) -> None:
    algorithm = make_algorithm()
    rows = np.flatnonzero(dataset.terminated)
    batch = dataset.transitions.map(lambda x: x[rows])
    error = td_error(algorithm.learner, batch)
    q = algorithm.learner.critic(batch.obs, batch.action)
    assert torch.allclose(error, (q - batch.reward).abs().mean(0))
    assert torch.equal(td_error(make_algorithm(critic=None).learner, batch), torch.ones(len(rows)))


@pytest.mark.global_rng  # HERReplayBuffer samples goals from numpy's global generator
def test_hindsight_buffers_train(goal_env: Any, params: Params, small: GTPConfig) -> None:
    buffer = HERReplayBuffer(
        20,
        compute_reward_fn=lambda achieved, goal: -np.abs(achieved - goal).sum(-1),
        horizon=5,
        future_k=4.0,
    )
    env, rng = goal_env(), np.random.default_rng(0)
    for _ in range(4):
        obs, _ = env.reset(seed=1)
        for _ in range(5):
            act = rng.uniform(-1, 1, 1)
            after, rew, terminated, truncated, _ = env.step((0.4 * act).astype(np.float32))
            flags = {"terminated": terminated, "truncated": truncated}
            buffer.add(Batch(obs=obs, act=act, rew=rew, obs_next=after, info={}, **flags))
            obs = after
    algorithm = GTP(
        policy=GTPPolicy(
            actor=FlowMapActor(4, 1, small.actor),
            action_space=env.action_space,
            observation_space=env.observation_space,
        ),
        critic=QEnsemble(4, 1, small.critic),
    )
    assert algorithm.process_buffer(buffer) is buffer
    assert algorithm.run_training(params(buffer)).update_step == 10


@pytest.mark.parametrize("venv", [DummyVectorEnv, SubprocVectorEnv])
@pytest.mark.global_rng  # environments and Tianshou's networks draw from global generators
def test_the_stock_trainer_evaluates_in_vector_environments(
    venv: Any, small: GTPConfig, params: Params
) -> None:
    envs = venv([lambda: gym.make("Pendulum-v1", max_episode_steps=5) for _ in range(2)])
    envs.seed([1, 2])
    space, obs_space = envs.action_space[0], envs.observation_space[0]
    rng = np.random.default_rng(0)
    dataset = OfflineDataset.from_arrays(
        obs=rng.normal(size=(40, 3)),
        action=rng.uniform(-2, 2, (40, 1)),
        reward=rng.normal(size=40),
        next_obs=rng.normal(size=(40, 3)),
        terminated=np.zeros(40, bool),
        truncated=np.arange(40) % 5 == 4,
        low=[-2],
        high=[2],
    )
    buffer = buffer_from_dataset(dataset)
    algorithm = GTP.from_buffer(
        buffer, action_space=space, observation_space=obs_space, config=small
    )
    kept: list[Any] = []
    collector = Collector[CollectStats](algorithm, envs)
    collector.reset()
    result = algorithm.run_training(
        params(
            buffer,
            test_collector=collector,
            test_step_num_episodes=2,
            save_best_fn=kept.append,
            compute_score_fn=lambda stat: float(len(kept)),  # each test is the best so far
        )
    )
    envs.close()
    assert result.update_step == 10
    assert result.best_reward < 0
    assert kept == [algorithm] * 3
    stored = collector.buffer
    assert np.abs(stored.act[stored.sample_indices(0)]).max() <= 1  # the policy's units
    assert result.test_episode == 6


@pytest.mark.global_rng  # Tianshou's networks draw from torch's global generator
def test_td3bc_alongside(action_space: Box, dataset: OfflineDataset, params: Params) -> None:
    """The same buffer and parameters drive both, and both report alike."""
    buffer, optim = buffer_from_dataset(dataset), AdamOptimizerFactory(lr=1e-3)
    net = Net(state_shape=(3,), hidden_sizes=[8])
    pair = Net(state_shape=(3,), action_shape=(2,), hidden_sizes=[8], concat=True)
    stock = TD3BC(
        policy=ContinuousDeterministicPolicy(
            actor=ContinuousActorDeterministic(preprocess_net=net, action_shape=(2,)),
            action_space=action_space,
            action_scaling=True,
        ),
        policy_optim=optim,
        critic=ContinuousCritic(preprocess_net=pair),
        critic_optim=optim,
    )
    ours = GTP(
        policy=GTPPolicy(actor=FlowMapActor(3, 2), action_space=action_space),
        policy_optim=optim,
        critic=QEnsemble(3, 2),
        critic_optim=optim,
    )
    loggers = [Recorder(), Recorder()]
    for algorithm, logger in zip((stock, ours), loggers, strict=True):
        info = algorithm.run_training(params(buffer, logger=logger))
        assert (info.update_step, info.train_step, info.best_reward) == (10, 0, 0.0)
        assert info.timing.train_time_update > 0
        assert [step for step, _ in logger.updates] == list(range(1, 11))
        assert {"train_time", "smoothed_loss", "actor_loss"} <= set(logger.updates[-1][1])
    smoothed = loggers[1].updates[-1][1]["smoothed_loss"]
    assert set(smoothed) == set(ours._floats)  # every loss term, nothing else


class Recorder(LazyLogger):
    """A logger that keeps what updates report."""

    def __init__(self) -> None:
        super().__init__()
        self.updates: list[tuple[int, dict[str, Any]]] = []

    def log_update_data(self, log_data: dict[str, Any], step: int) -> None:
        self.updates.append((step, log_data))


def test_metrics_are_fetched_once_in_log_every(
    dataset: OfflineDataset, make_algorithm: Make, params: Params
) -> None:
    core = make_algorithm().learner
    floats = []
    for _ in range(10):
        batch = dataset.sample(16, generator=core.stream("batch"))
        floats.append(core.update(batch).to_floats())
    for every in (1, 4):
        logger = Recorder()
        make_algorithm(log_every=every).run_training(params(dataset, logger=logger))
        for i, (_, data) in enumerate(logger.updates):
            expected = floats[i - i % every]
            assert {k: data[k] for k in expected} == expected
            assert data["ms_per_update"] > 0


def test_behaviour_cloning_reports_no_critic(
    dataset: OfflineDataset, make_algorithm: Make, params: Params
) -> None:
    algorithm = make_algorithm(critic=None)
    logger = Recorder()
    algorithm.run_training(params(dataset, logger=logger))
    terms = {"actor_loss", "consistency", "flow", "actor_grad_norm", "ms_per_update"}
    assert set(logger.updates[-1][1]["smoothed_loss"]) == terms
    assert logger.updates[-1][1]["critic_loss"] is None


def test_the_discount_is_the_learners(make_algorithm: Make) -> None:
    algorithm = make_algorithm(gamma=0.9)
    assert algorithm.gamma == algorithm.learner.config.gamma == 0.9
    algorithm.gamma = 0.5
    assert algorithm.learner.config.gamma == 0.5
    with pytest.raises(ValueError, match="gamma"):
        algorithm.gamma = 1.5
    assert algorithm.gamma == 0.5


def test_stats_name_every_metric_of_the_core() -> None:
    ours = set(GTPTrainingStats.__dataclass_fields__)
    assert ours == {"train_time", "smoothed_loss", "ms_per_update", *UpdateMetrics._fields}


def test_divergence_is_an_error_that_says_so(
    dataset: OfflineDataset, make_algorithm: Make, params: Params
) -> None:
    algorithm = make_algorithm(policy_optim=AdamOptimizerFactory(lr=1e30), critic=None, log_every=1)
    with pytest.raises(NonFiniteError, match="Lower the learning rate"):
        algorithm.run_training(params(dataset))


def test_schedulers_step_once_per_update(
    dataset: OfflineDataset, make_algorithm: Make, params: Params
) -> None:
    factory = AdamOptimizerFactory(lr=1.0)
    factory.with_lr_scheduler_factory(LRSchedulerFactoryLinear(2, 5, 1))
    algorithm = make_algorithm(policy_optim=factory, critic_optim=AdamOptimizerFactory(lr=0.5))
    rates = []
    original = algorithm.learner.update

    def update(batch: Transitions) -> UpdateMetrics:
        rates.append([g.param_groups[0]["lr"] for g in algorithm.learner.optimizers.values()])
        return original(batch)

    algorithm.learner.update = update  # type: ignore[method-assign]
    algorithm.run_training(params(dataset))
    assert np.allclose(rates, [[1 - i / 10, 0.5] for i in range(10)])


@pytest.mark.parametrize("open_", [True, False])
def test_the_length_of_the_run_is_the_trainers_unless_it_was_said(
    dataset: OfflineDataset, make_algorithm: Make, params: Params, open_: bool
) -> None:
    chosen = GTPLearnerConfig() if open_ else GTPLearnerConfig(total_updates=1_000_000)
    algorithm = make_algorithm(config=chosen)
    algorithm.create_trainer(params(dataset))
    assert algorithm.learner.config.total_updates == (10 if open_ else 1_000_000)
    algorithm.run_training(params(dataset, max_epochs=1))
    algorithm.run_training(params(dataset, max_epochs=3))  # trains on for 15 more
    assert algorithm.learner.config.total_updates == (20 if open_ else 1_000_000)
    assert algorithm.learner.loss.config.curriculum.end == (10 if open_ else Curriculum().end)


def test_the_parameters_of_another_trainer_are_refused(
    dataset: OfflineDataset, action_space: Box, small: GTPConfig
) -> None:
    algorithm = GTP.from_buffer(dataset, action_space=action_space, config=small)
    online = object.__new__(OffPolicyTrainerParams)  # whose collectors play no part
    with pytest.raises(TypeError, match=r"got .* OffPolicyTrainerParams, expected Offline"):
        algorithm.run_training(online)


def test_training_can_stop_early(small: GTPConfig, goal_env: Any, params: Params) -> None:
    envs = DummyVectorEnv([goal_env, goal_env])
    envs.seed(0)
    n = 30
    rng = np.random.default_rng(0)
    space = goal_env.action_space
    buffer = VectorReplayBuffer(n, 2)
    collector = Collector[CollectStats](
        GTPPolicy(
            actor=FlowMapActor(4, 1, small.actor),
            action_space=space,
            observation_space=goal_env.observation_space,
            seed=int(rng.integers(9)),
        ),
        envs,
        buffer,
    )
    collector.reset()
    collector.collect(n_step=n)  # Dict observations, collected by the policy itself
    algorithm = GTP.from_buffer(
        buffer,
        action_space=space,
        observation_space=goal_env.observation_space,
        config=small,
    )
    assert algorithm.policy.layout.keys == ("observation", "achieved_goal", "desired_goal")
    test = Collector[CollectStats](algorithm, DummyVectorEnv([goal_env]))
    test.reset()
    scores: list[float] = []
    result = algorithm.run_training(
        params(
            buffer,
            test_collector=test,
            stop_fn=lambda score: scores.append(score) or len(scores) > 1,
            test_step_num_episodes=1,
        )
    )
    assert result.update_step == 5  # after the first of two epochs
    assert isinstance(scores[0], float)


def test_an_update_outside_a_training_step_is_tianshous_error(
    dataset: OfflineDataset, make_algorithm: Make
) -> None:
    algorithm = make_algorithm()
    table = algorithm.process_buffer(dataset)
    with pytest.raises(RuntimeError, match="outside of a training step"):
        algorithm.update(table, 16)
    with policy_within_training_step(algorithm.policy):
        stats = algorithm.update(table, 16)
        algorithm.update(table, 0)  # 0 and None mean everything
        algorithm.update(table, None)
    assert stats.train_time > 0
    assert algorithm.learner.updates == 3
    assert len(table) == 60


@pytest.mark.parametrize("in_the_table", [True, False])
def test_ctrl_c_in_an_update_leaves_an_algorithm_that_can_be_saved(
    dataset: OfflineDataset,
    make_algorithm: Make,
    params: Params,
    tmp_path: Path,
    in_the_table: bool,
) -> None:
    algorithm = make_algorithm(preload=in_the_table)
    before = signal.getsignal(signal.SIGINT)
    calls: list[int] = []

    def press(*_: object) -> None:
        hook.remove()  # a second one would not wait
        calls.append(algorithm.learner.updates)
        signal.raise_signal(signal.SIGINT)

    hook = algorithm.learner.actor.network.register_forward_hook(press)
    with pytest.raises(KeyboardInterrupt):
        algorithm.run_training(params(buffer_from_dataset(dataset)))
    assert calls == [0]
    assert signal.getsignal(signal.SIGINT) is before
    assert algorithm.learner.updates == 1
    assert GTP.load(algorithm.save(tmp_path / "a.zip")).learner.updates == 1
    algorithm.run_training(params(buffer_from_dataset(dataset)))


def test_modes_after_training(
    dataset: OfflineDataset, make_algorithm: Make, params: Params
) -> None:
    algorithm = make_algorithm()
    flags: list[bool] = []
    actor = algorithm.learner.actor
    actor.network.register_forward_hook(lambda *_: flags.append(actor.training))
    algorithm.run_training(params(dataset))
    assert flags
    assert all(flags)
    algorithm.policy.train()
    assert not algorithm.policy.actor.training
    assert not algorithm.policy.is_within_training_step


def test_the_policy_acts_with_the_target_network(
    dataset: OfflineDataset, make_algorithm: Make, params: Params, make_policy: Any
) -> None:
    algorithm = make_algorithm()
    algorithm.run_training(params(dataset))
    learner, policy, obs = algorithm.learner, algorithm.policy, dataset.transitions.obs[:5]
    assert policy.actor is learner.target_actor
    assert policy.critic is learner.target_critic
    policy.candidates = 4
    assert torch.equal(
        policy(Batch(obs=obs.numpy())).act, learner.act(obs, candidates=4, deterministic=True)
    )
    deployed = make_policy(candidates=4)
    deployed.load_state_dict(policy.state_dict())
    row = obs[0].numpy()
    assert np.array_equal(deployed.compute_action(row), policy.compute_action(row))


def test_the_policy_acts_as_the_config_says_now(
    dataset: OfflineDataset, make_algorithm: Make
) -> None:
    algorithm, obs = make_algorithm(), dataset.transitions.obs[:5]
    alone = copy.deepcopy(algorithm.policy)
    for one in (algorithm, copy.deepcopy(algorithm)):
        one.learner.config = one.learner.config.replace(eval_candidates=16)
        act = one.policy(Batch(obs=obs.numpy())).act
        assert torch.equal(act, one.learner.act(obs, deterministic=True))
        assert not torch.equal(act, alone(Batch(obs=obs.numpy())).act)
    state = algorithm.policy.state_dict()
    with pytest.warns(UserWarning, match=r"acts otherwise: got eval_candidates=16.*has None"):
        make_algorithm().policy.load_state_dict(state)


def test_copies_train_alike_and_apart(
    dataset: OfflineDataset, make_algorithm: Make, params: Params
) -> None:
    factory = AdamOptimizerFactory(lr=1e-2)
    factory.with_lr_scheduler_factory(LRSchedulerFactoryLinear(4, 5, 1))
    algorithm = make_algorithm(policy_optim=factory)
    algorithm.run_training(params(dataset))
    twin = copy.deepcopy(algorithm)
    assert twin.policy.actor is twin.learner.target_actor
    before = {k: v.clone() for k, v in tensors(algorithm).items()}
    twin.run_training(params(dataset))
    assert all(torch.equal(v, before[k]) for k, v in tensors(algorithm).items())
    algorithm.run_training(params(dataset))
    assert_same(algorithm, twin)
    assert twin.lr_schedulers[0].last_epoch == algorithm.lr_schedulers[0].last_epoch == 20


def test_another_dtype_in_the_middle_of_training(
    dataset: OfflineDataset, make_algorithm: Make, params: Params
) -> None:
    algorithm = make_algorithm()
    algorithm.run_training(params(dataset))
    algorithm.to(torch.float64)
    algorithm.run_training(params(dataset))
    assert algorithm.learner.updates == 20
    kinds = {
        v.dtype
        for o in algorithm.learner.optimizers.values()
        for s in o.state.values()
        for k, v in s.items()
        if k != "step"
    }
    assert kinds == {torch.float64}
    assert algorithm.policy.compute_action(np.zeros(3)).dtype == np.float32


def test_a_table_follows_the_algorithm_to_another_device(
    dataset: OfflineDataset, make_algorithm: Make
) -> None:
    """`meta` stands for a GPU: it holds no numbers, but it is another device."""
    algorithm = make_algorithm()
    table = algorithm.process_buffer(dataset)
    table._stream = lambda name: type("Elsewhere", (), {"device": torch.device("meta")})()
    rows, _ = table.sample(0)
    assert rows.obs.device.type == "meta"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"critic_optim": ADAM}, "stands alone"),
        ({"policy_optim": ADAM, "critic_optim": ADAM, "critic": None}, "stands alone"),
        ({"log_every": 0}, "`log_every` is out of range"),
    ],
)
def test_options_that_do_not_fit(make_algorithm: Make, options: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_algorithm(**options)


def test_a_policy_has_one_algorithm(make_algorithm: Make) -> None:
    policy = make_algorithm().policy
    with pytest.raises(ValueError, match="belongs to another algorithm"):
        GTP(policy=policy, critic=None)


def test_data_that_does_not_fit_the_algorithm(
    dataset: OfflineDataset, action_space: Box, make_algorithm: Make, params: Params
) -> None:
    algorithm = make_algorithm(gamma=0.5)
    with pytest.raises(DataError, match=r"`gamma`: got 0.99, expected 0.5"):
        algorithm.run_training(params(dataset))
    with pytest.raises(DataError, match=r"got gamma=0.99, expected 0.5"):
        GTP.from_buffer(dataset, action_space=action_space, gamma=0.5)
    with pytest.raises(DataError, match="`action_scaler`"):
        GTP.from_buffer(dataset, action_space=Box(-1, 1, (2,)))
    buffer = buffer_from_dataset(dataset)
    buffer.act[7, 1] = 1.5
    with pytest.raises(DataError, match=r"got 1.5 in row 7, dimension 1"):
        make_algorithm().create_trainer(params(buffer))
    stock = make_algorithm(preload=False)
    with pytest.raises(DataError, match=r"got 1.5"):
        stock._update_with_batch(buffer[np.array([7])])
    loose = make_algorithm(out_of_bounds="clip")
    assert loose.process_buffer(buffer).dataset.transitions.action[7, 1] == 1
    twin, row = make_algorithm(out_of_bounds="clip"), copy.deepcopy(buffer[np.array([7])])
    loose._update_with_batch(row)
    row.act[0, 1] = 1.0
    twin._update_with_batch(row)
    assert_same(loose.learner, twin.learner)
    unknown = ReplayBuffer(2)
    unknown.add(
        Batch(
            obs=np.zeros(3),
            act=np.zeros(2),
            rew=0.0,
            terminated=False,
            truncated=False,
            obs_next=np.full(3, np.nan),
            info={},
        )
    )
    with pytest.raises(DataError, match="`next_obs` is not finite"):
        make_algorithm().process_buffer(unknown)
    row = unknown[np.array([0])]
    with pytest.raises(DataError, match="`obs` is not finite"):
        make_algorithm()._update_with_batch(row)
    for name in ("act", "rew"):
        broken = copy.deepcopy(row)
        broken[name][...] = np.nan
        with pytest.raises(DataError, match=f"`{name}` is not finite"):
            make_algorithm()._update_with_batch(broken)


def test_scales_come_from_the_buffer(
    dataset: OfflineDataset, action_space: Box, small: GTPConfig
) -> None:
    algorithm = GTP.from_buffer(
        buffer_from_dataset(dataset), action_space=action_space, config=small, gamma=0.9
    )
    mean, std = dataset.observation_statistics()
    for module in (algorithm.policy.actor, algorithm.policy.critic, algorithm.learner.actor):
        assert torch.equal(module.normalizer.mean, mean)
        assert torch.equal(module.normalizer.scale, std)
    mean, std = dataset.action_statistics()
    statistics = algorithm.policy.actor.config.action_statistics
    assert statistics is not None
    assert statistics.mean == pytest.approx(mean.tolist())
    assert statistics.std == pytest.approx(std.tolist())
    assert algorithm.gamma == 0.9
    batch, _ = algorithm.process_buffer(buffer_from_dataset(dataset)).sample(None)
    assert sorted(set(batch.discount.tolist())) == pytest.approx([0.0, 0.9])


def test_q_values_of_a_chain_are_exact(make_policy: Any, params: Params) -> None:
    """Three states in a row, reward 1 each step; at the end one chain terminates, one is cut.

    Q is 1 + 0.5 + 0.25 from the first state of the chain that ends, and 2 wherever it goes on: with
    gamma 0.5 a cut chain that comes back to its first state is worth 1 / (1 - 0.5).
    """
    buffer = ReplayBuffer(6)
    for chain in (0.0, 1.0):
        for i in range(3):
            last = i == 2
            buffer.add(
                Batch(
                    obs=np.eye(3)[i] + 3 * chain,
                    act=np.zeros(2),
                    rew=1.0,
                    terminated=last and chain == 0,
                    truncated=last and chain == 1,
                    obs_next=np.eye(3)[(i + 1) % 3] + 3 * chain,
                    info={},
                )
            )
    config = QEnsembleConfig(hidden=(32,), members=1)
    learner = GTPLearnerConfig(ema_rate=0.2, total_updates=400)
    optim = AdamOptimizerFactory(lr=2e-2)
    optim.with_lr_scheduler_factory(LRSchedulerFactoryLinear(1, 400, 1))
    algorithm = GTP(
        policy=make_policy(critic=None),
        policy_optim=optim,
        critic=QEnsemble(3, 2, config),
        gamma=0.5,
        config=learner,
    )
    algorithm.run_training(params(buffer, max_epochs=1, epoch_num_steps=400, batch_size=64))
    table = algorithm.process_buffer(buffer).dataset.transitions
    q = algorithm.learner.critic(table.obs, table.action)[0]
    expected = torch.tensor([1.75, 1.5, 1.0, 2.0, 2.0, 2.0])
    assert (q - expected).abs().max() < 0.05


@pytest.mark.parametrize(
    "wrong", [{"config": []}, {"gamma": "x"}, {"layout": 3}, {"candidates": 1.5}]
)
def test_a_choice_of_the_wrong_kind_is_named(
    action_space: Box, dataset: OfflineDataset, wrong: dict[str, Any]
) -> None:
    (name,) = wrong
    with pytest.raises(DataError, match=f"`{name}` is of the wrong kind: got .*expected"):
        GTP.from_buffer(dataset, action_space=action_space, **wrong)
