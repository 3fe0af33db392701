"""Algorithm 1: what an update changes, what it leaves alone, and that it can be resumed."""

import copy
import io
import math
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

from gtp_policy import (
    AdvantageGuidance,
    AdvantageWeighterConfig,
    Curriculum,
    ExpectileBaseline,
    FlowMapActor,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    GTPLossConfig,
    LinearQGuidance,
    MultiSeedLearner,
    OfflineDataset,
    PolicyBaseline,
    QEnsemble,
    QEnsembleConfig,
    Transitions,
    UpdateMetrics,
    kernels,
    presets,
    save_checkpoint,
)
from gtp_policy.acting import ArgmaxChoice
from gtp_policy.errors import (
    BrokenLearnerError,
    DataError,
    NonFiniteError,
    ShapeError,
    StateMismatchError,
)
from gtp_policy.export import PolicySource
from gtp_policy.functional import precondition
from gtp_policy.guidance import Guidance
from gtp_policy.keyed_noise import keyed_noise
from gtp_policy.networks import linear
from gtp_policy.times import KarrasTimes

OBS, ACT, BATCH = 3, 2, 16
BASELINES = [PolicyBaseline(samples=2), ExpectileBaseline(hidden=(8,))]


def make_config(*, eta: float = 1.0, max_weight: float = 100.0, **learner: Any) -> GTPConfig:
    rates = {"ema_rate": 0.5, "actor_lr": 1e-2, "critic_lr": 1e-2}
    choices = {"total_updates": 6, "guidance_start": 0, **rates}
    return GTPConfig(
        actor=FlowMapActorConfig(hidden=(16,), time_dim=4, steps=2),
        critic=QEnsembleConfig(hidden=(16,)),
        loss=GTPLossConfig(curriculum=Curriculum(start=4, end=8)),
        weighter=AdvantageWeighterConfig(eta=eta, max_weight=max_weight, signed=False),
        learner=GTPLearnerConfig(**(choices | learner)),
    )


def make_learner(*, network: nn.Module | None = None, **choices: Any) -> GTPLearner:
    return GTPLearner.build(OBS, ACT, make_config(**choices), network=network)


@pytest.fixture(scope="module")
def dataset() -> OfflineDataset:
    rng = np.random.default_rng(1)
    n = 64
    return OfflineDataset.from_arrays(
        obs=rng.normal(3.0, 2.0, size=(n, OBS)),
        action=rng.uniform(-0.6, 0.6, size=(n, ACT)),
        reward=rng.normal(size=n),
        next_obs=rng.normal(3.0, 2.0, size=(n, OBS)),
        terminated=np.arange(n) % 8 == 7,
        truncated=np.arange(n) % 16 == 3,
        low=[-1.0] * ACT,
        high=[1.0] * ACT,
    )


@pytest.fixture
def batch(dataset: OfflineDataset, generator: torch.Generator) -> Transitions:
    return dataset.sample(BATCH, generator=generator)


def train(learner: GTPLearner, dataset: OfflineDataset, updates: int) -> list[UpdateMetrics]:
    return [
        learner.update(dataset.sample(BATCH, generator=learner.stream("batch")))
        for _ in range(updates)
    ]


def leaves(value: Any) -> list[Any]:
    """All tensors and numbers of a state, in a fixed order."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value, key=str) for leaf in leaves(value[key])]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def same(a: Any, b: Any) -> bool:
    first, second = leaves(a), leaves(b)
    return len(first) == len(second) and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y
        for x, y in zip(first, second, strict=True)
    )


# --- resuming


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda b: b.kind)
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(
    dataset: OfflineDataset, baseline: PolicyBaseline | ExpectileBaseline
) -> None:
    choices = {"baseline": baseline, "lr_schedule": "cosine", "max_grad_norm": 1.0}
    whole, first, second = (make_learner(**choices) for _ in range(3))
    train(whole, dataset, 6)
    train(first, dataset, 3)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    assert not same(second.state_dict(), first.state_dict())
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.updates == 3
    assert same(second.state_dict(), first.state_dict())
    train(second, dataset, 3)
    assert same(second.state_dict(), whole.state_dict())


def test_loading_copies_the_optimizers(dataset: OfflineDataset) -> None:
    first, second = make_learner(), make_learner()
    train(first, dataset, 1)
    state = first.state_dict()
    second.load_state_dict(state)
    before = copy.deepcopy(state)
    train(second, dataset, 1)
    assert same(state, before)


def test_equal_seeds_repeat_and_different_seeds_do_not(dataset: OfflineDataset) -> None:
    first, second, third = make_learner(), make_learner(), make_learner(seed=1)
    for learner in (first, second, third):
        train(learner, dataset, 5)
    assert same(first.state_dict(), second.state_dict())
    for a, b in zip(first.actor.parameters(), third.actor.parameters(), strict=True):
        assert not torch.equal(a, b)


def test_the_seed_also_moves_the_draws_of_an_update(batch: Transitions) -> None:
    first, second = make_learner(), make_learner()
    second.config = second.config.replace(seed=1)
    assert not torch.equal(first.update(batch).flow, second.update(batch).flow)


def test_streams_depend_on_name_and_update() -> None:
    learner = make_learner()
    seeds = [learner.stream("a").initial_seed(), learner.stream("b").initial_seed()]
    learner.updates = 1
    seeds.append(learner.stream("a").initial_seed())
    assert len(set(seeds)) == 3


# --- what the critic learns


class PointMassBackbone(nn.Module):
    """A backbone whose flow map moves everything into one action, exactly, whatever it is fed."""

    def __init__(self, action: float, sigma_data: float) -> None:
        super().__init__()
        self.action, self.sigma_data = action, sigma_data
        self.idle = nn.Parameter(torch.zeros(1))  # the optimiser wants something to hold

    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        skip, out, inner = (c.unsqueeze(-1) for c in precondition(t, self.sigma_data))
        return (self.action - skip * x / inner) / out + 0 * self.idle


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["terminated", "truncated"])
def test_termination_stops_bootstrapping_and_truncation_does_not(ending: str) -> None:
    # Three states in a ring, each with one action: 0 -> 1 -> 2 -> 0, cut or ended after state 2.
    gamma, reward = 0.5, np.array([1.0, 0.0, 2.0])
    dataset = OfflineDataset.from_arrays(
        obs=np.eye(3),
        action=np.full((3, 1), 0.25),
        reward=reward,
        next_obs=np.roll(np.eye(3), -1, axis=0),
        terminated=[0, 0, ending == "terminated"],
        truncated=[0, 0, ending == "truncated"],
        low=[-1.0],
        high=[1.0],
        gamma=gamma,
    )
    follow = np.roll(np.eye(3), 1, axis=1)
    if ending == "terminated":
        follow[2] = 0.0
    exact = np.linalg.solve(np.eye(3) - gamma * follow, reward)
    config = GTPConfig(
        actor=FlowMapActorConfig(steps=1, sigma_data=0.5, times=KarrasTimes()),
        critic=QEnsembleConfig(hidden=(32,), layer_norm=False),
        loss=GTPLossConfig(curriculum=Curriculum(start=4, end=4)),
        learner=GTPLearnerConfig(
            total_updates=1500,
            normalize_actions=False,
            critic_lr=1e-2,
            lr_schedule="cosine",
            ema_rate=0.1,
            baseline=PolicyBaseline(samples=1),
        ),
    )
    learner = GTPLearner.from_dataset(dataset, config, network=PointMassBackbone(0.25, 0.5))
    for _ in range(config.learner.total_updates):
        metrics = learner.update(dataset.transitions)
    data = dataset.transitions
    with torch.no_grad():
        q = learner.critic(data.obs, data.action)
        q_target = learner.target_critic(data.obs, data.action)
    torch.testing.assert_close(q, torch.tensor(exact).float().expand(2, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(q_target, q, atol=1e-4, rtol=0)
    # One action per state: nothing is better than expected, and the point mass has no loss.
    assert float(learner.advantage(data.obs, data.action).abs().max()) < 1e-4
    assert metrics.to_floats()["actor_loss"] < 1e-10


def test_next_observations_of_terminal_rows_do_not_matter(batch: Transitions) -> None:
    terminal = batch.discount == 0
    assert 0 < int(terminal.sum()) < BATCH
    elsewhere = torch.where(terminal.unsqueeze(-1), -50.0, batch.next_obs)
    first, second, third = make_learner(), make_learner(), make_learner()
    first.update(batch)
    second.update(batch._replace(next_obs=elsewhere))
    assert same(first.state_dict(), second.state_dict())
    third.update(batch._replace(next_obs=torch.full_like(batch.next_obs, -50.0)))
    assert not same(first.state_dict(), third.state_dict())


@pytest.mark.parametrize("backup_actions", [1, 3])
def test_the_td_error_by_hand(
    dataset: OfflineDataset, batch: Transitions, backup_actions: int
) -> None:
    learner = make_learner(backup_actions=backup_actions)
    train(learner, dataset, 2)  # so that targets and networks differ
    # The second member wants the opposite action: the order of maximum and minimum matters.
    for parameter in learner.target_critic.parameters():
        parameter[1] = parameter[0]
    learner.target_critic.weights[0][1, OBS:].neg_()
    noise = torch.randn((BATCH * backup_actions, ACT), generator=learner.stream("backup"))
    losses = []
    with torch.no_grad():
        q = learner.critic(batch.obs, batch.action)
        for i in range(BATCH):
            rows = noise[i * backup_actions : (i + 1) * backup_actions]
            obs = batch.next_obs[i].expand(backup_actions, -1)
            values = learner.target_critic(obs, learner.target_actor.sample(obs, noise=rows))
            best = min(max(member.tolist()) for member in values)
            y = float(batch.reward[i]) + float(batch.discount[i]) * best
            losses += [(float(member[i]) - y) ** 2 for member in q]
    metrics = learner.update(batch).to_floats()
    assert metrics["critic_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert metrics["q_mean"] == pytest.approx(float(q.mean()), rel=1e-4)


def test_the_advantage_over_the_policy_by_hand(dataset: OfflineDataset, batch: Transitions) -> None:
    samples = 3
    learner = make_learner(baseline=PolicyBaseline(samples=samples))
    train(learner, dataset, 2)
    got = learner.advantage(batch.obs, batch.action, generator=torch.Generator().manual_seed(5))
    noise = torch.randn((samples * BATCH, ACT), generator=torch.Generator().manual_seed(5))
    expected = learner.critic(batch.obs, batch.action).min(0).values
    for chunk in noise.chunk(samples):
        action = learner.target_actor.sample(batch.obs, noise=chunk)
        expected = expected - learner.critic(batch.obs, action).min(0).values / samples
    torch.testing.assert_close(got, expected)
    assert not got.requires_grad


@pytest.mark.parametrize(("n", "samples"), [(1, 1), (3, 2), (1, 3)])
def test_the_advantage_of_what_followed_by_hand(
    dataset: OfflineDataset, batch: Transitions, n: int, samples: int
) -> None:
    """Row by row, member by member, with the same noises on both sides."""
    learner = make_learner(
        advantage="td", backup_actions=n, baseline=PolicyBaseline(samples=samples)
    )
    train(learner, dataset, 2)
    got = learner.td_advantage(batch, generator=torch.Generator().manual_seed(5))
    noise = torch.randn((max(n, samples), BATCH, ACT), generator=torch.Generator().manual_seed(5))

    def values(obs: Tensor, row: int, copies: int) -> list[list[float]]:
        """Of each member of the target critic, for each action."""
        rows, here = noise[:copies, row], obs[row].expand(copies, -1)
        with torch.no_grad():
            q = learner.target_critic(here, learner.target_actor.sample(here, noise=rows))
        return q.tolist()

    for row in range(BATCH):
        after = min(max(member) for member in values(batch.next_obs, row, n))
        before = [min(pair) for pair in zip(*values(batch.obs, row, samples), strict=True)]
        y = float(batch.reward[row]) + float(batch.discount[row]) * after
        assert float(got[row]) == pytest.approx(y - sum(before) / samples, rel=1e-4, abs=1e-5)
    assert not got.requires_grad


def test_weights_of_what_followed_are_those_of_the_update(batch: Transitions) -> None:
    """An update draws the same noise for both observations, as `td_advantage` does."""
    learner = make_learner(advantage="td", baseline=PolicyBaseline(samples=1), guidance_start=0)
    noise = torch.randn((BATCH, ACT), generator=learner.stream("backup"))
    with torch.no_grad():
        after, before = (
            learner.target_critic(o, learner.target_actor.sample(o, noise=noise)).min(0).values
            for o in (batch.next_obs, batch.obs)
        )
    advantage = batch.reward + batch.discount * after - before
    metrics = learner.update(batch).to_floats()
    assert metrics["advantage_mean"] == pytest.approx(float(advantage.mean()), rel=1e-4, abs=1e-6)
    assert metrics["advantage_std"] == pytest.approx(
        float(advantage.std(correction=0)), rel=1e-4, abs=1e-6
    )


def test_what_changes_nothing_is_no_advantage(batch: Transitions) -> None:
    """Where an observation follows itself, the noises cancel to the last bit."""
    learner = make_learner(advantage="td", baseline=PolicyBaseline(samples=1), guidance_start=0)
    same_state = batch._replace(
        next_obs=batch.obs,
        reward=torch.zeros_like(batch.reward),
        discount=torch.ones_like(batch.discount),
    )
    assert not learner.td_advantage(same_state).any()
    assert learner.update(same_state).to_floats()["advantage_std"] == 0


def test_the_value_network_descends_its_expectile(batch: Transitions) -> None:
    learner = make_learner(baseline=ExpectileBaseline(expectile=0.9, hidden=(16,)))
    before = copy.deepcopy(learner)
    learner.update(batch)

    def loss(value: nn.Module) -> float:
        # The update fits V to the target critic as it was; the EMA has moved it since.
        d = before.target_critic(batch.obs, batch.action).min(0).values - value(batch.obs)
        return sum((0.9 if x > 0 else 0.1) * x * x for x in d.tolist())

    assert loss(learner.value) < loss(before.value)


# --- what the actor learns


def test_eta_zero_is_behaviour_cloning_bit_for_bit(dataset: OfflineDataset) -> None:
    config = make_config(eta=0.0)
    with_critic = GTPLearner.from_dataset(dataset, config)
    without = GTPLearner.from_dataset(dataset, config.replace(critic=None))
    greedy = GTPLearner.from_dataset(dataset, make_config(eta=1.0))
    for learner in (with_critic, without, greedy):
        train(learner, dataset, 4)
    assert same(with_critic.actor.state_dict(), without.actor.state_dict())
    assert same(with_critic.target_actor.state_dict(), without.target_actor.state_dict())
    assert not same(greedy.actor.state_dict(), without.actor.state_dict())


def test_weights_and_their_metrics_by_hand(batch: Transitions) -> None:
    # An expectile baseline: after the update, critic and value are still those of the weights.
    learner = make_learner(baseline=BASELINES[1], eta=2.0, max_weight=7.0)
    metrics = learner.update(batch).to_floats()
    a = learner.advantage(batch.obs, batch.action).double().numpy()
    w = np.minimum(np.exp(2.0 * np.maximum(a, 0) / (a.std() + 1e-6)), 7.0)
    expected = {
        "advantage_mean": a.mean(),
        "advantage_std": a.std(),
        "weight_mean": w.mean(),
        "weight_max": w.max(),
        "weight_clipped": (w == 7.0).mean(),
        "weight_ess": w.sum() ** 2 / (w**2).sum() / len(w),
    }
    assert expected["weight_clipped"] > 0
    assert {k: metrics[k] for k in expected} == pytest.approx(expected, rel=1e-4)


class Recorder(nn.Module):
    """A backbone that remembers its start times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear(ACT, ACT, generator=torch.Generator())
        self.seen: list[Tensor] = []

    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        self.seen.append(t)
        return self.layer(x)


def test_progress_drives_the_curriculum(dataset: OfflineDataset) -> None:
    config = make_config(total_updates=4, ema_rate=1.0)
    on_grid = presets.paper_loss().loss.replace(curriculum=Curriculum(start=1, end=4))
    config = config.replace(critic=None, loss=on_grid)
    learner = GTPLearner.from_dataset(dataset, config, network=Recorder())
    seen = []
    for _ in range(5):
        learner.actor.network.seen.clear()
        assert learner.progress == min(learner.updates / 4, 1.0)
        train(learner, dataset, 1)
        seen.append(set(torch.cat(learner.actor.network.seen).tolist()))
    grids = [set(config.actor.times.grid(n)[:-1].tolist()) for n in (1, 1, 2, 4, 4)]
    assert seen[0] == seen[1] == grids[0]
    assert all(times <= grid for times, grid in zip(seen, grids, strict=True))
    assert len(seen[4]) > 2


def test_learning_rates_fall_along_a_half_cosine(dataset: OfflineDataset) -> None:
    def rates(schedule: str) -> list[float]:
        learner = make_learner(total_updates=6, lr_schedule=schedule, critic_lr=4e-3)
        seen = []
        for _ in range(8):
            train(learner, dataset, 1)
            (group,) = learner.get_extra_state()["optimizers"]["critic"]["param_groups"]
            seen.append(group["lr"])
        return seen

    assert rates("constant") == [4e-3] * 8
    expected = [4e-3, 2e-3 * (1 + math.sqrt(0.75)), 3e-3, 2e-3, 1e-3]
    assert rates("cosine")[:5] == pytest.approx(expected)
    assert rates("cosine")[6:] == pytest.approx([0.0, 0.0], abs=1e-12)


@pytest.mark.parametrize("way", ["by hand", "before the first update", "scheduler"])
def test_a_learning_rate_that_would_be_undone_is_refused(batch: Transitions, way: str) -> None:
    learner = make_learner()
    optimizer = learner.optimizers["critic"]
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    for _ in range(0 if way == "before the first update" else 3):
        learner.update(batch)
        optimizer.param_groups[0]["lr"] *= 1
    if way == "scheduler":
        for _ in range(2):
            scheduler.step()
    else:
        optimizer.param_groups[0]["lr"] = 1e-2
    before = copy.deepcopy(learner.state_dict())
    for update in (
        lambda: learner.update(batch),
        lambda: MultiSeedLearner([learner]).update([batch]),
    ):
        with pytest.raises(DataError, match=r"learning rate of the critic.*critic_lr=.*optimizer="):
            update()
    assert same(learner.state_dict(), before)
    learner.load_state_dict(before)  # a state is taken as it is
    learner.config = learner.config.replace(critic_lr=1e-2, lr_schedule="constant")
    learner.update(batch)
    assert optimizer.param_groups[0]["lr"] == 1e-2


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("own", [None, torch.optim.SGD, torch.optim.AdamW])
def test_the_critic_rests_after_its_updates(
    dataset: OfflineDataset, engine: Any, schedule: Any, own: Any
) -> None:
    factory = None if own is None else lambda _, module: own(module.parameters(), lr=1e-2)
    config = make_config(
        critic_updates=3,
        lr_schedule=schedule,
        baseline=ExpectileBaseline(hidden=(8,)),
        critic_ema_rate=0.9,
    )
    learner = GTPLearner.build(OBS, ACT, config, optimizer=factory)
    assert learner.critic is not None
    assert learner.target_critic is not None
    assert learner.value is not None
    with kernels.using(engine):
        assert train(learner, dataset, 3)[-1].critic_loss is not None
        rested = [*learner.critic.parameters(), *learner.value.parameters()]
        before = [p.detach().clone() for p in rested]
        actor = copy.deepcopy(learner.actor.state_dict())
        metrics = train(learner, dataset, 10)[-1]
    assert metrics.critic_loss is None  # nothing is computed that nobody needs
    assert metrics.weight_mean is not None
    assert all(torch.equal(p, was) for p, was in zip(rested, before, strict=True))
    assert not same(learner.actor.state_dict(), actor)
    for target, net in zip(
        learner.target_critic.parameters(), learner.critic.parameters(), strict=True
    ):
        torch.testing.assert_close(target, net)
    if own is not None:  # its rate is one's own: a longer run learns on with it
        assert learner.optimizers["critic"].param_groups[0]["lr"] == 1e-2
        learner.config = learner.config.replace(total_updates=50, critic_updates=40)
        train(learner, dataset, 1)
        assert not torch.equal(rested[0], before[0])


def test_a_critic_that_learns_all_the_way_is_the_default() -> None:
    config = GTPLearnerConfig(total_updates=100_000, gamma=0.99)
    assert config.critic_length == 100_000
    short = config.replace(critic_updates=30_000)
    assert short.critic_rate == GTPLearnerConfig(total_updates=30_000).critic_rate
    assert short.actor_rate == config.actor_rate
    assert short.resolved().critic_updates == 30_000
    assert config.replace(critic_updates=10**6).critic_length == 100_000


def other_critic(learner: GTPLearner) -> None:
    assert learner.critic is not None
    learner.critic = copy.deepcopy(learner.critic)


def assigned(learner: GTPLearner) -> None:
    learner.actor.load_state_dict(copy.deepcopy(learner.actor.state_dict()), assign=True)


def other_layer(learner: GTPLearner) -> None:
    layers = learner.actor.network.mlp
    name, layer = next(iter(layers.named_children()))  # type: ignore[union-attr,operator]
    setattr(layers, name, copy.deepcopy(layer))


@pytest.mark.parametrize("change", [other_critic, assigned, other_layer])
@pytest.mark.parametrize(
    "learn",
    [
        lambda learner, data: learner.update(data.rows(0, 4)),
        lambda learner, data: learner.update_from(data, 1, batch_size=4),
        lambda learner, data: learner.fit(data, 1, batch_size=4, progress=False),
        lambda learner, data: MultiSeedLearner([learner]).update_from(data, 1, batch_size=4),
    ],
    ids=["update", "update_from", "fit", "seeds"],
)
def test_what_no_optimiser_steps_is_not_trained_in_silence(
    dataset: OfflineDataset,
    change: Callable[[GTPLearner], None],
    learn: Callable[[GTPLearner, OfflineDataset], Any],
) -> None:
    learner = GTPLearner.from_dataset(dataset, make_config())
    change(learner)
    with pytest.raises(StateMismatchError, match="does not step all of it"):
        learn(learner, dataset)
    assert not learner.updates


def test_each_seed_counts_its_own_steps(dataset: OfflineDataset) -> None:
    """A layer of one seed rests for a while: Adam corrects its moments by fewer steps."""
    config = make_config(lr_schedule="constant")
    side_by_side, alone = (
        [
            GTPLearner.from_dataset(
                dataset, config.replace(learner=config.learner.replace(seed=seed))
            )
            for seed in (0, 1)
        ]
        for _ in range(2)
    )
    both = MultiSeedLearner(side_by_side)
    for updates, trained in ((5, False), (2, True)):
        for learner in (side_by_side[1], alone[1]):
            for parameter in list(learner.actor.parameters())[:2]:
                parameter.requires_grad_(trained)
        both.update_from(dataset, updates, batch_size=8)
        for learner in alone:
            learner.update_from(dataset, updates, batch_size=8)
    for ours, right in zip(side_by_side, alone, strict=True):
        for a, b in zip(ours.parameters(), right.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_a_discount_that_the_data_has_not_is_refused(dataset: OfflineDataset) -> None:
    with pytest.raises(DataError, match=r"another discount factor: got gamma=.*expected 0.5"):
        GTPLearner.from_dataset(dataset, make_config(gamma=0.5))
    clone = make_config(gamma=0.5).replace(critic=None)
    assert GTPLearner.from_dataset(dataset, clone).config.gamma == 0.5  # of no effect


def test_steps_of_another_number_are_refused() -> None:
    """Of equal widths: two steps of four numbers for four of two."""
    rows = np.random.default_rng(0).uniform(-1, 1, (20, 2))
    data = OfflineDataset.from_arrays(
        obs=rows,
        action=rows,
        reward=rows[:, 0],
        terminated=np.zeros(20),
        truncated=np.arange(20) == 19,
        low=-1.0,
        high=1.0,
    )
    actor = FlowMapActorConfig(hidden=(8,), chunk=2)
    learner = GTPLearner.build(2, 8, GTPConfig(actor=actor, critic=None))
    with pytest.raises(DataError, match="got history=1 and chunk=4, expected 1 and 2"):
        learner.update_from(data.with_chunks(4), 1, batch_size=4)
    learner = GTPLearner.build(2, 2, GTPConfig(actor=actor, critic=None))
    with pytest.raises(DataError, match="got history=1 and chunk=1, expected 1 and 2"):
        learner.fit(data, 1, batch_size=4, progress=False)
    stacked = FlowMapActorConfig(hidden=(8,), history=2)
    learner = GTPLearner.build(2, 2, GTPConfig(actor=stacked, critic=None))
    with pytest.raises(DataError, match="got history=1 and chunk=1, expected 2 and 1"):
        learner.update_from(data, 1, batch_size=4)
    # Stacked by oneself, an observation is one.
    flat = GTPConfig(actor=FlowMapActorConfig(hidden=(8,)), critic=None)
    GTPLearner.build(4, 2, flat).update_from(data.with_history(2), 1, batch_size=4)


def test_gradients_are_clipped_and_their_norm_is_reported_before(batch: Transitions) -> None:
    free, clipped = make_learner(), make_learner(max_grad_norm=1e-3)
    reported = [learner.update(batch).to_floats() for learner in (free, clipped)]
    for name in ("actor", "critic"):
        norms = [
            math.sqrt(sum(float(p.grad.square().sum()) for p in module.parameters()))
            for module in (getattr(free, name), getattr(clipped, name))
        ]
        assert reported[0][f"{name}_grad_norm"] == pytest.approx(norms[0], rel=1e-5)
        assert norms[0] > 1e-2
        assert norms[1] == pytest.approx(1e-3, rel=1e-2)
    assert reported[1]["critic_grad_norm"] == reported[0]["critic_grad_norm"]


# --- the targets


@pytest.mark.parametrize(
    ("of_actor", "given", "of_critic"),
    [(0.125, None, 0.125), (0.125, 0.5, 0.5), (0.0, None, 0.0), (0.125, 0.0, 0.0)],
)
def test_targets_follow_at_the_ema_rate(
    batch: Transitions, of_actor: float, given: float | None, of_critic: float
) -> None:
    learner = make_learner(ema_rate=of_actor, critic_ema_rate=given, total_updates=1000)
    before = copy.deepcopy(learner)
    learner.update(batch)
    for name, rate in (("actor", of_actor), ("critic", of_critic)):
        old, new, kept = (
            torch.cat([p.flatten().double() for p in module.parameters()])
            for module in (
                getattr(before, name),
                getattr(learner, name),
                getattr(learner, f"target_{name}"),
            )
        )
        assert not torch.equal(old, new)
        torch.testing.assert_close(kept, (1 - rate) * old + rate * new, atol=1e-7, rtol=0)


def test_targets_get_no_gradient_and_stay_in_evaluation_mode(batch: Transitions) -> None:
    learner = make_learner().train()
    learner.update(batch)
    for target in (learner.target_actor, learner.target_critic):
        assert not any(m.training for m in target.modules())
        assert all(p.grad is None and not p.requires_grad for p in target.parameters())
    assert all(m.training for m in learner.actor.modules())
    assert all(p.grad is not None for p in learner.actor.parameters())
    learner.eval()
    assert not any(m.training for m in learner.modules())


class Normed(nn.Module):
    """A backbone with its own running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear(OBS + ACT, ACT, generator=torch.Generator())
        self.norm = nn.BatchNorm1d(ACT)

    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.norm(self.layer(torch.cat([obs, x], -1)))


def test_running_statistics_of_a_users_network_reach_the_target(batch: Transitions) -> None:
    learner = make_learner(network=Normed())
    learner.update(batch)
    norm, kept = learner.actor.network.norm, learner.target_actor.network.norm
    assert int(norm.num_batches_tracked) == 1
    assert not torch.equal(norm.running_mean, torch.zeros(ACT))
    assert same(dict(norm.named_buffers()), dict(kept.named_buffers()))


# --- acting


class Backbone(nn.Module):
    """A user's network, whose layer is made into another one."""

    def __init__(self, change: Callable[[nn.Linear], object]) -> None:
        super().__init__()
        self.layer = nn.Linear(3 + 2 + 2, 2)
        change(self.layer)

    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        found: Tensor = self.layer(torch.cat([obs, x, t.view(-1, 1), s.view(-1, 1)], 1))
        return found


@pytest.mark.parametrize("guidance", [AdvantageGuidance(), LinearQGuidance()])
@pytest.mark.parametrize("frozen", ["actor", "critic", "value", "all"])
def test_a_frozen_network_stays_as_it_is(
    batch: Transitions, frozen: str, guidance: Guidance
) -> None:
    learner = make_learner(guidance=guidance, baseline=ExpectileBaseline(hidden=(8,)))
    parts = {name: getattr(learner, name) for name in ("actor", "critic", "value")}
    learner.update(batch)  # a gradient is left of before
    for name, part in parts.items():
        part.requires_grad_(frozen not in (name, "all"))
    before = copy.deepcopy({name: part.state_dict() for name, part in parts.items()})
    for _ in range(2):
        learner.update(batch)
    for name, part in parts.items():
        moved = any(not torch.equal(v, before[name][k]) for k, v in part.state_dict().items())
        assert moved == (frozen not in (name, "all")), name


@pytest.mark.global_rng
def test_a_network_is_trainable_or_says_why_not() -> None:
    def built(network: nn.Module) -> GTPLearner:
        return GTPLearner.build(3, 2, GTPConfig(critic=None), network=network)

    built(Backbone(nn.utils.parametrizations.weight_norm))
    built(Backbone(lambda layer: layer.requires_grad_(False)))
    with pytest.raises(DataError, match=r"got `network.layer.weight`, which is computed from"):
        built(Backbone(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)))
    with pytest.raises(DataError, match="cannot be copied, as its target network is: got cannot"):
        built(Backbone(lambda layer: setattr(layer, "lock", threading.Lock())))
    with pytest.raises(DataError, match="got a FlowMapActor without parameters"):
        built(nn.Identity())


def test_acting_uses_the_target_network(dataset: OfflineDataset) -> None:
    learner = make_learner(ema_rate=0.01, total_updates=1000)
    train(learner, dataset, 3)
    obs = torch.ones(4, OBS)
    noise = keyed_noise(obs, ACT)
    got = learner.act(obs, deterministic=True, candidates=1)
    assert torch.equal(got, learner.target_actor.sample(obs, noise=noise))
    assert not torch.equal(got, learner.actor.sample(obs, noise=noise))
    first, second = (
        act(obs, steps=3, generator=torch.Generator().manual_seed(3))
        for act in (learner.act, learner.target_actor.sample)
    )
    assert torch.equal(first, second)


def test_a_learner_made_of_parts_goes_on_like_the_one_they_came_from(
    dataset: OfflineDataset,
) -> None:
    """Hosts take a dataset's actor and critic and make their own learner."""
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=(16,), time_dim=4),
        critic=QEnsembleConfig(hidden=(16,)),
        learner=GTPLearnerConfig(total_updates=40, baseline=ExpectileBaseline(hidden=(8,))),
    )
    whole, parts = (GTPLearner.from_dataset(dataset, config) for _ in range(2))
    again = GTPLearner(
        parts.actor,
        parts.critic,
        loss=parts.loss,
        weighter=parts.weighter,
        config=parts.config,
    )
    train(whole, dataset, 3)
    train(again, dataset, 3)
    assert same(whole.state_dict(), again.state_dict())


def test_moments_follow_the_parameters_to_another_dtype(dataset: OfflineDataset) -> None:
    learner = make_learner()
    train(learner, dataset, 2)
    learner.to(torch.float64)
    for optimizer in learner.optimizers.values():
        for parameter, state in optimizer.state.items():
            assert parameter.dtype == state["exp_avg"].dtype == torch.float64
    batch = dataset.transitions.to(dtype=torch.float64)
    assert learner.update(batch).to_floats()


def test_the_critic_chooses_deterministic_actions(dataset: OfflineDataset) -> None:
    choices = {"eval_candidates": 5, "deterministic_choice": ArgmaxChoice()}
    learner, obs = make_learner(**choices), dataset.transitions.obs[:6]
    train(learner, dataset, 3)
    got = learner.act(obs, deterministic=True)
    assert torch.equal(got, learner.act(obs, deterministic=True, candidates=5))
    assert not torch.equal(got, learner.act(obs, deterministic=True, candidates=1))
    cloning = GTPLearner(learner.actor, None, config=learner.config)
    assert torch.equal(
        cloning.act(obs, deterministic=True), cloning.act(obs, deterministic=True, candidates=1)
    )


@pytest.mark.parametrize("candidates", [1, 4])
def test_deterministic_actions_are_a_function_of_the_observation(candidates: int) -> None:
    learner = make_learner()
    obs = torch.linspace(-1, 1, 5 * OBS).view(5, OBS)
    together = learner.act(obs, candidates=candidates, deterministic=True)
    assert torch.equal(together, learner.act(obs, candidates=candidates, deterministic=True))
    alone = torch.cat(
        [learner.act(row, candidates=candidates, deterministic=True) for row in obs.split(1)]
    )
    torch.testing.assert_close(together, alone)
    assert not torch.equal(learner.act(obs), learner.act(obs))
    assert (learner.actor.fixed_noise != 0).all()


def test_the_best_of_several_candidates_by_brute_force(dataset: OfflineDataset) -> None:
    learner = make_learner(ema_rate=0.01, total_updates=1000)
    train(learner, dataset, 3)
    n, obs = 7, dataset.transitions.obs[:5]
    got = learner.act(obs, candidates=n, generator=torch.Generator().manual_seed(3))
    noise = torch.randn((5 * n, ACT), generator=torch.Generator().manual_seed(3)).view(5, n, ACT)
    chosen = []
    for i, row in enumerate(obs):
        tiled = row.expand(n, -1)
        actions = learner.target_actor.sample(tiled, noise=noise[i])
        values = learner.target_critic(tiled, actions)
        worst = [min(column) for column in values.T.tolist()]
        best = max(range(n), key=worst.__getitem__)
        chosen.append(best)
        torch.testing.assert_close(got[i], actions[best])
    assert len(set(chosen)) > 1


def test_acting_refuses_what_makes_no_sense() -> None:
    learner = make_learner()
    cloning = GTPLearner.build(OBS, ACT, make_config().replace(critic=None))
    obs = torch.zeros(2, OBS)
    with pytest.raises(ValueError, match="`candidates` is out of range: got 0"):
        learner.act(obs, candidates=0)
    with pytest.raises(ValueError, match="`steps` is out of range: got 0"):
        learner.act(obs, steps=0)
    with pytest.raises(ValueError, match="needs a critic"):
        cloning.act(obs, candidates=2)
    with pytest.raises(ValueError, match="An advantage needs a critic"):
        cloning.advantage(obs, torch.zeros(2, ACT))
    for wrong in (torch.zeros(OBS), torch.zeros(2, OBS + 1)):
        for deterministic in (False, True):
            with pytest.raises(ShapeError, match="`obs` has the wrong shape"):
                learner.act(wrong, deterministic=deterministic)


# --- errors and metrics


@pytest.mark.parametrize(
    ("field", "shape"),
    [
        ("obs", (BATCH, OBS + 1)),
        ("obs", (BATCH,)),
        ("obs", ()),
        ("action", (BATCH, ACT + 1)),
        ("action", (BATCH - 1, ACT)),
        ("reward", (BATCH, 1)),
        ("next_obs", (BATCH, OBS + 1)),
        ("discount", (BATCH, 1)),
        ("discount", (1,)),
    ],
)
def test_a_wrong_batch_changes_nothing(
    batch: Transitions, field: str, shape: tuple[int, ...]
) -> None:
    learner = make_learner()
    before = copy.deepcopy(learner.state_dict())
    with pytest.raises(ShapeError, match=f"`{field}` has the wrong shape"):
        learner.update(batch._replace(**{field: torch.zeros(shape)}))
    assert same(learner.state_dict(), before)
    assert learner.updates == 0


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("critic", [True, False])
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        *(
            (f, v, f"`{f}` is not finite")
            for f in Transitions._fields
            if f != "chunk_length"  # which is of no use here: tests/test_chunks.py
            for v in (torch.nan, torch.inf)
        ),
        ("discount", 1.5, "`discount` is out of range: got 1.5 at row 3"),
        ("discount", -1e-6, "`discount` is out of range"),
        ("action", -10.0, "`action` is out of range: got -10 at row 3"),
        ("next_action", 10.0, "`next_action` is out of range: got 10 at row 3"),
    ],
)
def test_a_bad_number_changes_nothing(
    batch: Transitions, engine: Any, critic: bool, field: str, value: float, message: str
) -> None:
    config = make_config() if critic else make_config().replace(critic=None)
    learner = GTPLearner.build(OBS, ACT, config)
    learner.update(batch)
    before = copy.deepcopy(learner.state_dict())
    bad = (batch.action if field == "next_action" else getattr(batch, field)).clone()
    bad[3] = value
    with kernels.using(engine), pytest.raises(DataError, match=message):
        learner.update(batch._replace(**{field: bad}))
    assert same(learner.state_dict(), before)
    learner.update(batch)


def test_large_numbers_whose_sum_overflows_are_finite(batch: Transitions) -> None:
    batch._replace(reward=torch.full((BATCH,), 3e38)).check_values()


def test_what_diverges_says_so_and_is_not_saved(batch: Transitions, tmp_path: Path) -> None:
    """The critic is stepped before advantages show that it has diverged."""
    learner = make_learner()
    saved = copy.deepcopy(learner.state_dict())
    for parameter in learner.critic.parameters():
        parameter.data.fill_(1e30)
    with pytest.raises(NonFiniteError, match="`advantage` is not finite"):
        learner.update(batch)
    assert "NonFiniteError" in learner.broken
    for use in (
        lambda: learner.update(batch),
        learner.state_dict,
        lambda: save_checkpoint(tmp_path / "a.zip", learner),
        lambda: PolicySource.of_learner(learner),
    ):
        with pytest.raises(BrokenLearnerError, match="restore_"):
            use()
    assert not list(tmp_path.iterdir())
    learner.load_state_dict(saved)
    learner.update(batch)
    assert learner.broken is None


@pytest.mark.parametrize("fits", [True, False])
def test_optimisers_go_on_with_tensors_that_a_state_brings(batch: Transitions, fits: bool) -> None:
    learner = make_learner()
    learner.update(batch)
    twin, state = copy.deepcopy(learner), copy.deepcopy(learner.state_dict())
    if not fits:  # what was taken over by then goes back
        del state["target_critic.weights.0"]
        with pytest.raises(StateMismatchError):
            learner.load_state_dict(state, assign=True)
    else:
        learner.load_state_dict(state, assign=True)
        assert learner.actor.network.mlp[0].weight.data_ptr() == (
            state["actor.network.mlp.0.weight"].data_ptr()
        )
    for one in (learner, twin):
        one.update(batch)
    for a, b in zip(learner.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_refused_state_that_was_assigned_stays_its_owners(
    batch: Transitions, dtype: torch.dtype
) -> None:
    source = make_learner().to(dtype)
    source.update(batch.to(dtype=dtype))
    state = dict(source.state_dict())  # not a copy: its tensors are the source's own
    del state["target_critic.weights.0"]
    before, learner = copy.deepcopy(source.state_dict()), make_learner()
    own = copy.deepcopy(learner.state_dict())
    with pytest.raises(StateMismatchError):
        learner.load_state_dict(state, assign=True)
    assert same(source.state_dict(), before)
    assert same(learner.state_dict(), own)
    assert {p.dtype for p in learner.parameters()} == {torch.float32}
    learner.update(batch)
    assert same(source.state_dict(), before)


def moments_of(state: dict[str, Any]) -> dict[str, Any]:
    """Returns the first parameter's state of the actor's optimiser, which has two dimensions."""
    found = state["_extra_state"]["optimizers"]["actor"]["state"]
    return next(entries for entries in found.values() if entries["exp_avg"].dim() == 2)


def options_of(state: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = state["_extra_state"]["optimizers"]["actor"]["param_groups"][0]
    return found


@pytest.mark.parametrize("kind", ["by columns", "expanded", "one for both", "every second"])
def test_moments_laid_out_otherwise_are_the_same_numbers(batch: Transitions, kind: str) -> None:
    """The fused step walks through memory: it took them for others, or wrote beyond them."""
    source = make_learner()
    source.update(batch)
    state = copy.deepcopy(source.state_dict())
    plain = moments_of(state)
    if kind in ("expanded", "one for both"):
        for name in ("exp_avg", "exp_avg_sq"):
            plain[name] = torch.full_like(plain[name], 0.01)
    expected, other = make_learner(), copy.deepcopy(state)
    expected.load_state_dict(state)
    moments = moments_of(other)
    for name in ("exp_avg", "exp_avg_sq"):
        value = moments[name]
        if kind == "by columns":
            moments[name] = value.t().contiguous().t()
        elif kind == "expanded":
            moments[name] = torch.full((1,), 0.01).expand(value.shape)
        elif kind == "one for both":
            moments[name] = moments["exp_avg"]
        else:
            moments[name] = torch.stack([value, value], -1)[..., 0]
        assert torch.equal(moments[name], value)
    found = make_learner()
    found.load_state_dict(other)
    for learner in (expected, found):
        learner.update(batch)
    for a, b in zip(expected.parameters(), found.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: moments_of(s).pop("exp_avg"), "got NoneType for `exp_avg`"),
        (lambda s: moments_of(s).pop("step"), "got KeyError .'step'."),
        (
            lambda s: moments_of(s).update(exp_avg=moments_of(s)["exp_avg"].to_sparse()),
            "got torch.sparse_coo for `exp_avg`",
        ),
        (lambda s: moments_of(s).update(exp_avg_sq="x"), "got str for `exp_avg_sq`"),
        (lambda s: moments_of(s).update(step=torch.zeros(1)), r"`step` of shape \(1,\)"),
        (lambda s: moments_of(s).update(step=torch.tensor(-1.0)), "not finite or below 0"),
        (lambda s: moments_of(s)["exp_avg_sq"].fill_(-1), "not finite or below 0"),
        (lambda s: moments_of(s)["exp_avg"].fill_(torch.nan), "not finite"),
        (lambda s: options_of(s).update(lr="x"), "got `lr` 'x'"),
        (lambda s: options_of(s).update(lr=-1.0), "got `lr` -1.0"),
        (lambda s: options_of(s).update(lr=math.nan), "got `lr` nan"),
        (lambda s: options_of(s).pop("eps"), "got `eps` None"),
        (lambda s: options_of(s).update(betas="xy"), "got `betas` 'xy'"),
        (lambda s: options_of(s).update(betas=(0.9, 1.0)), "two numbers from 0 below 1"),
        (lambda s: s["actor.network.mlp.0.weight"].fill_(torch.inf), "NaN or infinity in `actor"),
        (lambda s: s["target_critic.normalizer.mean"].fill_(torch.nan), "NaN or infinity"),
        (lambda s: s["actor.normalizer.scale"].fill_(0), "a scale that is not positive"),
    ],
)
def test_a_state_that_no_step_can_go_on_from_changes_nothing(
    batch: Transitions, change: Callable[[dict[str, Any]], object], match: str
) -> None:
    learner = make_learner()
    learner.update(batch)
    state = copy.deepcopy(learner.state_dict())
    before = copy.deepcopy(state)
    change(state)
    with pytest.raises(StateMismatchError, match=match):
        learner.load_state_dict(state)
    assert learner.broken is None
    twin = make_learner()
    twin.load_state_dict(before)
    for one in (learner, twin):
        one.update(batch)
    for a, b in zip(learner.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_of_another_dtype_that_is_assigned_brings_its_moments(batch: Transitions) -> None:
    source, learner = make_learner().to(torch.float64), make_learner()
    double = batch.to(dtype=torch.float64)
    source.update(double)
    learner.load_state_dict(copy.deepcopy(source.state_dict()), assign=True)
    for one in (source, learner):
        one.update(double)
    assert same(learner.state_dict(), source.state_dict())


@pytest.mark.parametrize("of", [torch.float32, torch.float64])
def test_a_state_of_another_dtype_that_is_assigned_leaves_one_dtype(
    batch: Transitions, of: torch.dtype
) -> None:
    learner, obs = make_learner().to(torch.float64), torch.zeros(2, OBS, dtype=of)
    if of == torch.float64:
        learner = make_learner()
    source = make_learner().to(of)
    learner.load_state_dict(copy.deepcopy(source.state_dict()), assign=True)
    # Also of buffers that no state holds, such as the frequencies of times.
    assert {b.dtype for b in learner.buffers()} == {of}
    actions = [one.act(obs, deterministic=True) for one in (learner, source)]
    assert actions[0].dtype == of
    assert torch.equal(*actions)
    learner.update(batch.to(dtype=of))


def test_a_part_of_a_state_of_another_dtype_is_not_assigned() -> None:
    learner, state = make_learner(), dict(make_learner().to(torch.float64).state_dict())
    before = copy.deepcopy(learner.state_dict())
    del state["target_critic.weights.0"]
    with pytest.raises(StateMismatchError, match="of several types"):
        learner.load_state_dict(state, strict=False, assign=True)
    assert same(learner.state_dict(), before)


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("baseline", BASELINES, ids=lambda b: b.kind)
def test_an_update_trains_in_every_mode_of_the_caller(
    dataset: OfflineDataset, baseline: Any, mode: Any, engine: Any
) -> None:
    plain, other = (GTPLearner.from_dataset(dataset, make_config(baseline=baseline)) for _ in "ab")
    with kernels.using(engine):
        for _ in range(2):
            plain.update(dataset.sample(8, generator=plain.stream("batch")))
            with mode():
                other.update(dataset.sample(8, generator=other.stream("batch")))
    assert same(plain.state_dict(), other.state_dict())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: s.pop("target_actor.fixed_noise"),
        lambda s: s.update({"critic.weights.0": torch.zeros(1)}),
        lambda s: s["_extra_state"].pop("updates"),
        lambda s: s["_extra_state"].update(updates="7"),
        lambda s: s["_extra_state"].update(updates=-1),
        lambda s: s["_extra_state"]["optimizers"].update(critic={}),
        lambda s: s["_extra_state"]["optimizers"]["critic"]["state"][0].update(
            exp_avg=torch.zeros(1)
        ),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(batch: Transitions, spoil: Any) -> None:
    learner, other = make_learner(), make_learner()
    learner.update(batch)
    for _ in range(2):
        other.update(batch)
    state, before = copy.deepcopy(other.state_dict()), copy.deepcopy(learner.state_dict())
    spoil(state)
    with pytest.raises(StateMismatchError):
        learner.load_state_dict(state)
    assert same(learner.state_dict(), before)
    learner.update(batch)


def test_metrics_are_finite_numbers_or_an_error_with_their_name(batch: Transitions) -> None:
    full = make_learner().update(batch)
    # Weights and linear-Q guidance exclude each other.
    assert set(full.to_floats()) == set(UpdateMetrics._fields) - {"guided_q"}
    assert full.guided_q is None
    assert all(v.ndim == 0 and not v.requires_grad for v in full if v is not None)
    cloning = GTPLearner.build(OBS, ACT, make_config().replace(critic=None))
    floats = cloning.update(batch).to_floats()
    assert set(floats) == {"actor_loss", "consistency", "flow", "actor_grad_norm"}
    expected = floats["consistency"] + cloning.loss.config.flow_weight * floats["flow"]
    assert floats["actor_loss"] == pytest.approx(expected)
    broken = full._replace(q_mean=torch.tensor(torch.nan), flow=torch.tensor(-torch.inf))
    with pytest.raises(NonFiniteError, match=r"got flow=-inf, q_mean=nan, expected"):
        broken.to_floats()


class Transfers(TorchDispatchMode):
    """Counts the operators that make the host wait for the device."""

    # In inference mode `item` and `is_nonzero` are seen under their own names.
    WAITING = frozenset(
        {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        # A mask as an index makes the host wait for the number of its ones.
        mask = name.startswith("index") and any(
            isinstance(x, Tensor) and x.dtype == torch.bool for x in leaves(args[1])
        )
        if name in self.WAITING or mask:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_the_counter_sees_a_transfer() -> None:
    with Transfers() as transfers:
        float(torch.ones(1))
        torch.ones(2)[torch.tensor([True, False])]
        torch.ones(2)[torch.tensor([0, 1])]
        torch.ones(2).nonzero()
    assert transfers.seen == ["_local_scalar_dense", "index", "nonzero"]


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("baseline", BASELINES, ids=lambda b: b.kind)
def test_an_update_copies_nothing_to_the_host(
    batch: Transitions, baseline: PolicyBaseline | ExpectileBaseline, engine: Any
) -> None:
    learner = make_learner(baseline=baseline, max_grad_norm=1.0, backup_actions=2)
    cloning = GTPLearner.build(OBS, ACT, make_config().replace(critic=None))
    for _ in range(2):
        with kernels.using(engine), Transfers() as transfers:
            cloning.update(batch)
        assert transfers.seen == []
        # On the CPU, and only there, `AdvantageWeighter` looks at the advantages, and the actor
        # that the reference samples from at its observations.
        with kernels.using(engine), Transfers() as transfers:
            learner.update(batch)
        assert len(transfers.seen) == (1 if engine == "auto" else 2)


# --- building


def test_everything_is_taken_from_the_dataset(dataset: OfflineDataset) -> None:
    standard = make_config(normalize_actions=True).replace(critic=None)
    learner = GTPLearner.from_dataset(dataset, standard)
    action = dataset.transitions.action.double()
    for actor in (learner.actor, learner.target_actor):
        x = actor.to_standard(action)
        torch.testing.assert_close(x.mean(0), torch.zeros(ACT).double(), atol=1e-5, rtol=0)
        torch.testing.assert_close(x.std(0, correction=0), torch.ones(ACT).double())
    sigma = float((action - action.mean(0)).square().mean().sqrt())
    learner = GTPLearner.from_dataset(
        dataset, make_config(baseline=BASELINES[1], normalize_actions=False)
    )
    assert learner.actor.sigma_data == pytest.approx(sigma, rel=1e-5)
    assert learner.target_actor.sigma_data == learner.actor.sigma_data
    obs = dataset.transitions.obs
    for module in (
        learner.actor,
        learner.target_actor,
        learner.critic,
        learner.target_critic,
        learner.value,
    ):
        out = module.normalizer(obs).double()
        torch.testing.assert_close(out.mean(0), torch.zeros(OBS).double(), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            out.square().mean(0), torch.ones(OBS).double(), atol=1e-5, rtol=0
        )


def test_what_the_user_chose_is_kept(dataset: OfflineDataset) -> None:
    config = make_config(normalize_obs=False)
    config = config.replace(actor=config.actor.replace(sigma_data=0.3))
    learner = GTPLearner.from_dataset(dataset, config)
    assert learner.actor.sigma_data == 0.3
    assert torch.equal(learner.actor.normalizer.mean, torch.zeros(OBS))
    assert torch.equal(learner.critic.normalizer.scale, torch.ones(OBS))


def test_equal_actions_still_give_a_usable_scale() -> None:
    dataset = OfflineDataset.from_arrays(
        obs=[[0.0], [1.0]], action=[[0.5], [0.5]], reward=[0.0, 0.0], next_obs=[[1.0], [0.0]],
        terminated=[0, 1], truncated=[0, 0], low=[-1.0], high=[1.0],
    )  # fmt: skip
    learner = GTPLearner.from_dataset(dataset, make_config(normalize_actions=True))
    learner.update(dataset.transitions).to_floats()
    assert float((learner.act(torch.zeros(64, 1)) - 0.5).abs().max()) < 1e-3
    learner = GTPLearner.from_dataset(dataset, make_config(normalize_actions=False))
    assert learner.actor.sigma_data == 0.01
    learner.update(dataset.transitions).to_floats()


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda b: b.kind)
def test_the_full_config_rebuilds_the_learner(
    dataset: OfflineDataset, baseline: PolicyBaseline | ExpectileBaseline
) -> None:
    learner = GTPLearner.from_dataset(dataset, make_config(baseline=baseline))
    train(learner, dataset, 2)
    config = GTPConfig.model_validate_json(learner.full_config.model_dump_json())
    assert config == learner.full_config
    again = GTPLearner.build(OBS, ACT, config)
    again.load_state_dict(learner.state_dict())
    obs = torch.ones(3, OBS)
    assert torch.equal(again.act(obs, deterministic=True), learner.act(obs, deterministic=True))


def test_a_curriculum_too_fine_for_the_run_is_capped_with_a_warning() -> None:
    config = make_config(total_updates=100, ema_rate=0.1)
    on_grid = presets.paper_loss().loss
    fine = config.replace(loss=on_grid.replace(curriculum=Curriculum(start=4, end=256)))
    with pytest.warns(UserWarning, match=r"end=256 is capped to 16 for total_updates=100"):
        learner = GTPLearner.build(OBS, ACT, fine)
    assert learner.loss.config.curriculum == Curriculum(start=4, end=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert GTPLearner.build(OBS, ACT, config).loss.config == config.loss
        # The default's fineness was not chosen by the user: it is capped without a warning.
        default = config.replace(loss=GTPLossConfig())
        assert GTPLearner.build(OBS, ACT, default).loss.config.curriculum.end == 20
        # Off the grid, where it is of no effect, one that was chosen is too.
        off = config.replace(loss=GTPLossConfig(curriculum=Curriculum(start=4, end=256)))
        assert GTPLearner.build(OBS, ACT, off).loss.config.curriculum.end == 16


def test_actor_and_critic_must_agree() -> None:
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(3, 1\)"):
        GTPLearner(FlowMapActor(3, 2), QEnsemble(3, 1))


def test_a_learner_can_be_put_together_by_hand(batch: Transitions) -> None:
    actor, critic = FlowMapActor(OBS, ACT), QEnsemble(OBS, ACT)
    learner = GTPLearner(actor, critic)
    assert learner.actor is actor
    assert learner.critic is critic
    assert learner.open_config == GTPConfig(actor=FlowMapActorConfig(sigma_data=0.5))
    assert learner.full_config.learner == GTPLearnerConfig().resolved()
    learner.update(batch).to_floats()


def test_an_empty_batch_is_refused() -> None:
    learner = GTPLearner.build(1, 1, GTPConfig(critic=None))
    empty = Transitions(*[torch.zeros(0, 1)] * 2, torch.zeros(0), torch.zeros(0, 1), torch.zeros(0))
    with pytest.raises(ShapeError, match="empty"):
        learner.update(empty)
    assert learner.updates == 0


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        (GTPConfig(critic=None), GTPConfig()),
        (GTPConfig(), GTPConfig(critic=None)),
        (GTPConfig(), GTPConfig(learner=GTPLearnerConfig(baseline=ExpectileBaseline()))),
        (GTPConfig(), GTPConfig(actor=FlowMapActorConfig(sigma_data=0.1))),
    ],
)
def test_a_state_of_another_learner_is_refused_and_changes_nothing(
    saved: GTPConfig, loaded: GTPConfig
) -> None:
    state = GTPLearner.build(OBS, ACT, saved.replace(learner=saved.learner.replace(seed=1)))
    learner = GTPLearner.build(OBS, ACT, loaded)
    before = copy.deepcopy(dict(learner.named_parameters()))
    with pytest.raises(StateMismatchError):
        learner.load_state_dict(state.state_dict())
    assert all(torch.equal(p, before[name]) for name, p in learner.named_parameters())


# --- what goes by the length of the run


@pytest.mark.parametrize(
    ("updates", "gamma", "expected"),
    [
        # actor_lr, critic_lr, ema_rate, critic_ema_rate, guidance_start
        (2_500, 0.99, (2e-3, 1e-3, 0.05, 0.1, 416)),
        (30_000, 0.99, (2e-3, 3e-4, 0.05, 0.05, 5_000)),
        (30_000, 0.9, (2e-3, 3e-4, 0.05, 0.005, 5_000)),
        (200_000, 0.99, (1e-3, 3e-4, 0.0075, 0.0075, 5_000)),
        (2_000_000, 0.999, (2e-3 / 40**0.5, 3e-4, 0.005, 0.0075, 5_000)),
    ],
)
def test_open_choices_go_by_the_length_of_the_run(
    updates: int, gamma: float, expected: tuple[float, ...]
) -> None:
    config = GTPLearnerConfig(total_updates=updates, gamma=gamma).resolved()
    got = (
        *(config.actor_lr, config.critic_lr, config.ema_rate, config.critic_ema_rate),
        config.guidance_start,
    )
    assert got == pytest.approx(expected)
    assert config.resolved() == config  # and what is set stays


def test_a_length_that_is_known_late_resolves_them_anew(dataset: OfflineDataset) -> None:
    """Hosts learn it when training starts; a checkpoint keeps open what was left open."""
    small = make_config()
    learner = small.learner.replace(total_updates=1_000_000)
    fields = learner.model_dump(exclude={"actor_lr", "critic_lr", "ema_rate", "guidance_start"})
    config = small.replace(learner=GTPLearnerConfig.model_validate(fields))
    fused, plain = (GTPLearner.from_dataset(dataset, config) for _ in range(2))
    assert fused.full_config.learner.ema_rate == 0.005
    assert fused.open_config.learner.ema_rate is None
    assert fused.config.gamma == dataset.gamma
    for kind, learner in (("auto", fused), ("reference", plain)):
        with kernels.using(kind):
            learner.update_from(dataset, 1, batch_size=8)
            learner.set_total_updates_(40)
            learner.update_from(dataset, 8, batch_size=8)
    assert fused.full_config.learner.ema_rate == 0.05
    assert fused.full_config.learner.guidance_start == 6
    for a, b in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
