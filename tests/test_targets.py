"""What the critic learns towards: against loops, closed forms and chains with known returns."""

import copy
import math
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gtp_policy import (
    ExpectileBaseline,
    FlowMapActor,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    NoGuidance,
    OfflineDataset,
    PolicyBaseline,
    QEnsembleConfig,
    QuantileBaseline,
    Transitions,
)
from gtp_policy._engine.by_hand import ByHand
from gtp_policy.algorithm import draw
from gtp_policy.critic import NetworkBaseline, quantile_loss
from gtp_policy.errors import DataError, ShapeError
from gtp_policy.kernels import using

OBS, ACT, ROWS = 3, 2, 12


def make_learner(critic: dict[str, Any] | None = None, **choices: Any) -> GTPLearner:
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=(16,), time_dim=4, steps=2),
        critic=QEnsembleConfig(**{"hidden": (16,), "members": 3} | (critic or {})),
        learner=GTPLearnerConfig(**choices),
    )
    return GTPLearner.build(OBS, ACT, config).double()


def make_batch(seed: int = 0) -> Transitions:
    g = torch.Generator().manual_seed(seed)
    return Transitions(
        obs=torch.randn(ROWS, OBS, generator=g),
        action=torch.rand(ROWS, ACT, generator=g) * 2 - 1,
        reward=torch.randn(ROWS, generator=g),
        next_obs=torch.randn(ROWS, OBS, generator=g),
        discount=0.99 * (torch.rand(ROWS, generator=g) > 0.2),
        next_action=torch.rand(ROWS, ACT, generator=g) * 2 - 1,
    ).to(dtype=torch.float64)


def critic_loss(learner: GTPLearner, batch: Transitions, y: list[float]) -> float:
    """The mean of (Q - y)^2 over members and transitions, in a loop."""
    assert learner.critic is not None
    q = learner.critic(batch.obs, batch.action).detach().numpy()
    return float(np.mean([(q[j, i] - y[i]) ** 2 for j in range(len(q)) for i in range(ROWS)]))


def pessimistic(values: Tensor, reduction: str, rho: float) -> float:
    v = values.detach().numpy()
    return float(v.min() if reduction == "min" else v.mean() - rho * v.std())


def disturbed(learner: GTPLearner) -> GTPLearner:
    """Moves networks and target networks apart, that no test takes one for the other."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return learner


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("backup", ["max_q", "best_of_n"])
@pytest.mark.parametrize(("reduction", "rho"), [("min", 0.0), ("mean", 0.0), ("mean", 0.7)])
@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_targets_from_sampled_actions_by_brute_force(
    engine: Any, backup: str, reduction: str, rho: float, penalty: float
) -> None:
    """Every sampled action by itself, through the modules, in python's loops."""
    learner = disturbed(
        make_learner(
            {"reduction": reduction, "rho": rho, "layer_norm": False},
            backup=backup,
            backup_actions=4,
            critic_penalty=penalty,
        )
    )
    batch = make_batch()
    noise = draw([learner], batch.action.unsqueeze(0)).backup
    assert noise is not None
    assert learner.target_critic is not None
    y, gaps = [], []
    for i in range(ROWS):
        obs = batch.next_obs[i : i + 1]
        assert batch.next_action is not None
        actions = [learner.target_actor.sample(obs, noise=noise[0, k, i][None]) for k in range(4)]
        values = [
            learner.target_critic(obs, a) - penalty * math.dist(a[0], batch.next_action[i]) ** 2
            for a in actions
        ]
        best = max(pessimistic(v, reduction, rho) for v in values)
        high = torch.stack([max(v[j, 0] for v in values) for j in range(3)])
        gaps.append(pessimistic(high, reduction, rho) - best)
        following = best if backup == "best_of_n" else pessimistic(high, reduction, rho)
        y.append(float(batch.reward[i] + batch.discount[i] * following))
    assert max(gaps) > 1e-3  # the two backups differ
    assert rho > 0 or min(gaps) >= -1e-12  # members that choose apart are never less optimistic
    expected = critic_loss(learner, batch, y)
    with using(engine):
        metrics = learner.update(batch).to_floats()
    assert metrics["critic_loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "baseline", [ExpectileBaseline(hidden=(8,)), QuantileBaseline(hidden=(8,))]
)
def test_a_target_from_the_value_network_samples_no_action(
    baseline: NetworkBaseline, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = disturbed(make_learner(backup="value", baseline=baseline))
    batch = make_batch()
    assert learner.value is not None
    following = learner.value(batch.next_obs).tolist()
    y = [
        float(r) + float(d) * v
        for r, d, v in zip(batch.reward, batch.discount, following, strict=True)
    ]
    expected = critic_loss(learner, batch, y)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an action was sampled")

    monkeypatch.setattr(FlowMapActor, "sample", refuse)
    monkeypatch.setattr(ByHand, "sample", refuse)
    twin = copy.deepcopy(learner)
    with using("reference"):
        assert twin.update(batch).to_floats()["critic_loss"] == pytest.approx(expected, rel=1e-6)
    assert learner.update(batch).to_floats()["critic_loss"] == pytest.approx(expected, rel=1e-6)


def test_backups_that_cannot_be() -> None:
    with pytest.raises(pydantic.ValidationError, match="needs a value network: got PolicyBaseline"):
        GTPLearnerConfig(backup="value")
    with pytest.raises(pydantic.ValidationError, match="samples no actions: got backup_actions=4"):
        GTPLearnerConfig(backup="value", baseline=QuantileBaseline(), backup_actions=4)
    with pytest.raises(pydantic.ValidationError, match=r"samples no actions: got critic_penalty"):
        GTPLearnerConfig(backup="value", baseline=QuantileBaseline(), critic_penalty=0.1)
    with pytest.raises(pydantic.ValidationError, match="needs a value network"):
        GTPLearnerConfig(backup="value", baseline=QuantileBaseline()).replace(
            baseline=PolicyBaseline()
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"backup": "best_of_n", "backup_actions": 3},
        {"backup": "value", "baseline": ExpectileBaseline(expectile=0.5, hidden=(32,))},
        {"backup": "value", "baseline": QuantileBaseline(quantile=0.5, hidden=(32,))},
    ],
    ids=["sampled", "best of n", "expectile", "quantile"],
)
def test_a_chain_gets_its_known_values(choices: dict[str, Any]) -> None:
    """Four states in a row, a reward of 1 at the end: Q(i) = gamma^(3 - i), whatever the action."""
    gamma, states = 0.8, torch.eye(4, dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    number = torch.arange(64) % 4
    batch = Transitions(
        obs=states[number],
        action=torch.rand(64, 1, generator=g).double() * 2 - 1,
        reward=(number == 3).double(),
        next_obs=states[(number + 1) % 4],
        discount=gamma * (number < 3).double(),
    )
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=(8,), time_dim=4, steps=1),
        critic=QEnsembleConfig(hidden=(32,), layer_norm=True, reduction="mean"),
        learner=GTPLearnerConfig(
            guidance=NoGuidance(), critic_lr=1e-2, lr_schedule="cosine", critic_ema_rate=0.2,
            total_updates=600, **choices,
        ),
    )  # fmt: skip
    learner = GTPLearner.build(4, 1, config).double()
    for _ in range(600):
        learner.update(batch)
    assert learner.critic is not None
    q = learner.critic(batch.obs, batch.action).mean(0)
    expected = gamma ** (3 - number).double()
    torch.testing.assert_close(q, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_penalty_needs_the_next_actions_of_the_data(engine: Any) -> None:
    learner = make_learner(critic_penalty=0.1)
    before = copy.deepcopy(learner.state_dict())
    with using(engine), pytest.raises(DataError, match="`next_action` is missing: got a minibatch"):
        learner.update(make_batch()._replace(next_action=None))
    assert learner.updates == 0
    for name, value in learner.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(value, before[name])
    with pytest.raises(ShapeError, match="`next_action` has the wrong shape"):
        learner.update(make_batch()._replace(next_action=torch.zeros(ROWS, 1).double()))
    with pytest.raises(DataError, match="`next_action` has the wrong dtype"):
        learner.update(make_batch()._replace(next_action=torch.zeros(ROWS, ACT)))


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3, 9])
def test_a_chain_gets_its_known_values_over_n_steps(n: int) -> None:
    """Six steps from end to end; half of the episodes are cut after four, which bootstraps on."""
    gamma, states = 0.8, np.eye(6)
    walks = [(6, True), (4, False)] * 8
    number = np.concatenate([np.arange(length) for length, _ in walks])
    ends = np.concatenate([np.arange(length) == length - 1 for length, _ in walks])
    whole = np.concatenate([[full] * length for length, full in walks])
    dataset = OfflineDataset.from_arrays(
        obs=states[number],
        action=np.random.default_rng(0).uniform(-1, 1, (len(number), 1)),
        reward=(number == 5).astype(float),
        next_obs=states[(number + 1) % 6],
        terminated=ends & whole,
        truncated=ends & ~whole,
        low=[-1.0],
        high=[1.0],
        gamma=gamma,
    )
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=(8,), time_dim=4, steps=1),
        critic=QEnsembleConfig(hidden=(32,), layer_norm=True, reduction="mean"),
        learner=GTPLearnerConfig(
            guidance=NoGuidance(),
            critic_lr=1e-2,
            lr_schedule="cosine",
            critic_ema_rate=0.2,
            total_updates=500,
        ),
    )
    learner, several = GTPLearner.build(6, 1, config), dataset.with_n_step(n)
    learner.update_from(several, 500, batch_size=64)
    assert learner.critic is not None
    q = learner.critic(dataset.transitions.obs, dataset.transitions.action).mean(0).detach()
    expected = torch.tensor(gamma ** (5 - number), dtype=torch.float32)
    torch.testing.assert_close(q, expected, atol=0.03, rtol=0)


@given(
    values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=9),
    rho=st.just(0.0) | st.floats(1e-6, 3),
    rows=st.integers(1, 3),
)
def test_the_reduction_of_an_ensemble(values: list[float], rho: float, rows: int) -> None:
    q = np.outer(values, np.arange(1, rows + 1))
    lcb = QEnsembleConfig(reduction="mean", rho=rho)
    for dim, array in ((0, q), (1, q.T)):
        expected = array.mean(dim) - rho * array.std(dim)
        reduced = lcb.reduce(torch.tensor(array), dim).numpy()
        np.testing.assert_allclose(reduced, expected, rtol=1e-9, atol=1e-9)
        lowest = QEnsembleConfig().reduce(torch.tensor(array), dim).numpy()
        np.testing.assert_array_equal(lowest, array.min(dim))


def test_the_reduction_is_what_candidates_are_chosen_by() -> None:
    """Among fixed candidates, the one of the highest pessimistic value, found in a loop."""
    learner = disturbed(make_learner({"reduction": "mean", "rho": 2.0}))
    obs = make_batch().obs
    chosen = learner.act(obs, deterministic=True, candidates=8)
    assert learner.target_critic is not None

    def worth(action: Tensor, of: int) -> float:
        assert learner.target_critic is not None
        values = learner.target_critic(obs[of : of + 1], action[None])
        return pessimistic(values, "mean", 2.0)

    learner.target_critic.config = QEnsembleConfig(hidden=(16,), members=3)
    others = learner.act(obs, deterministic=True, candidates=8)
    differs = [i for i in range(ROWS) if not torch.equal(chosen[i], others[i])]
    assert differs
    assert all(worth(chosen[i], i) > worth(others[i], i) for i in differs)


@given(
    values=st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=1, max_size=5),
    rho=st.just(0.0) | st.floats(1e-6, 3),
)
def test_the_slope_of_a_reduction_is_that_of_autograd(values: list[list[int]], rho: float) -> None:
    """Integers, so that members often agree."""
    for config in (QEnsembleConfig(), QEnsembleConfig(reduction="mean", rho=rho)):
        q = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        (expected,) = torch.autograd.grad(config.reduce(q).sum(), q)
        slope = config.reduction_slope(q.detach())
        torch.testing.assert_close(slope, expected, rtol=1e-9, atol=1e-12)
        turned = config.reduction_slope(q.detach().T, 1)
        torch.testing.assert_close(turned, slope.T)


@pytest.mark.slow
@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
@given(values=st.lists(st.integers(-80, 80), min_size=1, max_size=20))
def test_the_minimiser_is_the_quantile(quantile: float, values: list[int]) -> None:
    q = torch.tensor(values, dtype=torch.float64)
    lowest = np.quantile(values, quantile, method="inverted_cdf")

    def at(v: float) -> float:
        return float(quantile_loss(q, torch.full_like(q, v), quantile).mean())

    assert all(at(float(lowest)) <= at(v / 2) + 1e-9 for v in range(-200, 200))


@settings(max_examples=30)
@given(
    pairs=st.lists(
        st.tuples(st.floats(-9, 9, width=32), st.floats(-9, 9, width=32)), min_size=1, max_size=9
    ),
    share=st.floats(0.05, 0.95),
)
def test_slopes_are_those_of_autograd(pairs: list[tuple[float, float]], share: float) -> None:
    q, v = torch.tensor(pairs, dtype=torch.float64).T
    for baseline in (ExpectileBaseline(expectile=share), QuantileBaseline(quantile=share)):
        value = v.clone().requires_grad_()
        (expected,) = torch.autograd.grad(baseline.loss(q, value).sum(), value)
        torch.testing.assert_close(baseline.slope(q, v), expected, rtol=1e-12, atol=1e-12)


def test_the_quantile_loss_refuses_to_broadcast() -> None:
    with pytest.raises(ShapeError, match="`value` has the wrong shape"):
        quantile_loss(torch.zeros(4), torch.zeros(4, 1), 0.7)
