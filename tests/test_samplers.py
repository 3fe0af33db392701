"""Samplers: by hand on two jumps, by their order, by the variance they must keep."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from gtp_policy import FlowMapActor, FlowMapActorConfig, GTPConfig, GTPLearner
from gtp_policy.errors import ShapeError
from gtp_policy.functional import precondition
from gtp_policy.keyed_noise import keyed_noise
from gtp_policy.samplers import JumpSampler, OdeSampler, Sampler
from gtp_policy.testing import (
    AnalyticFlowMap,
    GaussianFlowMap,
    LinearPathFlowMap,
    check_flow_map,
)
from gtp_policy.times import KarrasTimes, LinearTimes, TimeSchedule, UniformTimes

MEAN, STD = 0.1, 0.4
VE = GaussianFlowMap([MEAN], STD, times=KarrasTimes(t_min=0.02, t_max=5.0))
LINEAR = LinearPathFlowMap(GaussianFlowMap([MEAN], STD))
oracles = pytest.mark.parametrize("oracle", [VE, LINEAR], ids=["ve", "linear"])


def follow(sampler: Sampler, oracle: AnalyticFlowMap, noise: Tensor, steps: int) -> Tensor:
    grid = oracle.times.grid(steps, dtype=noise.dtype)
    obs = torch.zeros(len(noise), 1).to(noise)
    return sampler.follow(oracle, oracle.endpoint, obs, noise, grid, oracle.times.path)


def normal(rows: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


@oracles
def test_two_jumps_by_hand(oracle: AnalyticFlowMap) -> None:
    noise = normal(5, 2)
    obs = torch.zeros(5, 1).double()
    t, s, zero = (node.expand(5) for node in oracle.times.grid(2, dtype=torch.float64))
    start = t[:, None] * noise[:, :1]
    plain = oracle(obs, oracle(obs, start, t, s), s, zero)
    torch.testing.assert_close(follow(JumpSampler(), oracle, noise[:, :1], 2), plain)
    # Full noise is the sampler of consistency models: to the data, and noise of time s anew.
    alpha = 1 - s if oracle.times.path == "linear" else torch.ones_like(s)
    again = alpha[:, None] * oracle(obs, start, t, zero) + s[:, None] * noise[:, 1:]
    expected = oracle(obs, again, s, zero)
    torch.testing.assert_close(follow(JumpSampler(gamma=1.0), oracle, noise, 2), expected)


@oracles
@pytest.mark.parametrize("gamma", [0.3, 0.8, 1.0])
def test_noise_that_is_added_leaves_the_distribution_alone(
    oracle: AnalyticFlowMap, gamma: float
) -> None:
    """With the exact flow, every state has the distribution of noisy data, if the first has."""
    n, steps = 200_000, 4
    x = follow(JumpSampler(gamma=gamma), oracle, normal(n, steps), steps)
    mean, variance = MEAN, STD**2
    if oracle.times.path == "ve":
        # Sampling starts from noise alone: what is missing of mean and variance shrinks with it.
        nodes, keep = oracle.times.grid(steps, dtype=torch.float64).tolist(), 1 - gamma**2
        mean_off, variance_off = -MEAN, -(STD**2)
        for t, s in itertools.pairwise(nodes):
            factor = math.sqrt((STD**2 + keep * s**2) / (STD**2 + t**2))
            mean_off, variance_off = factor * mean_off, factor**2 * variance_off
        mean, variance = mean + mean_off, variance + variance_off
    # Six standard errors: a correct sampler fails with probability 4e-9 each.
    assert abs(x.mean().item() - mean) < 6 * math.sqrt(variance / n)
    assert abs(x.var().item() - variance) < 6 * variance * math.sqrt(2 / n)


@pytest.mark.parametrize(("method", "expected"), [("euler", 1), ("heun", 2)])
def test_solvers_converge_to_the_flow_with_their_order(method: str, expected: int) -> None:
    for oracle in (LINEAR, GaussianFlowMap([MEAN], STD, times=UniformTimes(t_max=2.0))):
        noise = torch.tensor([[1.3], [-0.4]]).double()
        exact = follow(JumpSampler(), oracle, noise, 1)
        errors = [
            (follow(OdeSampler(method=method), oracle, noise, steps) - exact).norm().item()
            for steps in (64, 128)
        ]
        assert abs(math.log2(errors[0] / errors[1]) - expected) < 0.1


def test_a_solver_evaluates_the_denoiser_alone() -> None:
    calls = []

    def endpoint(obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        calls.append((t, s))
        return VE.endpoint(obs, x, t, s)

    grid = VE.times.grid(3, dtype=torch.float64)
    for method, passes in (("euler", 3), ("heun", 5)):
        calls.clear()
        OdeSampler(method=method).follow(
            VE, endpoint, torch.zeros(2, 1).double(), normal(2, 1), grid, "ve"
        )
        assert len(calls) == passes
        assert all(torch.equal(t, s) and (t > 0).all() for t, s in calls)


# --- in the actor


def actor_with(sampler: Sampler, times: TimeSchedule | None = None) -> FlowMapActor:
    config = FlowMapActorConfig(
        hidden=(8,), time_dim=4, steps=3, sampler=sampler, times=times or KarrasTimes()
    )
    return FlowMapActor(2, 3, config)


SAMPLERS: list[Sampler] = [
    JumpSampler(),
    JumpSampler(gamma=0.5),
    OdeSampler(method="euler"),
    OdeSampler(method="heun"),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("times", [KarrasTimes(), LinearTimes()], ids=["ve", "linear"])
def test_the_actor_samples_as_its_sampler_says(sampler: Sampler, times: TimeSchedule) -> None:
    actor = actor_with(sampler, times)
    obs = normal(4, 2, 1).float()
    noise = normal(4, actor.noise_dim(), 2).float()
    action = actor.sample(obs, noise=noise)
    with torch.no_grad():
        expected = sampler.follow(
            actor, actor.endpoint, obs, noise, times.grid(3), times.path
        ).clamp(-1, 1)
    torch.testing.assert_close(action, expected)
    assert torch.equal(action, actor.sample(obs, noise=noise))
    torch.testing.assert_close(actor.sample(obs[:1], noise=noise[:1]), action[:1])
    assert not torch.equal(actor.sample(obs), actor.sample(obs))
    with_gradient = actor.sample_with_gradient(obs, noise)
    torch.testing.assert_close(with_gradient.detach(), action)
    with_gradient.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in actor.parameters())


def test_how_many_numbers_an_action_takes() -> None:
    assert actor_with(JumpSampler()).noise_dim(7) == 3
    stochastic = actor_with(JumpSampler(gamma=0.1))
    assert (stochastic.noise_dim(), stochastic.noise_dim(1), stochastic.noise_dim(7)) == (9, 3, 21)
    with pytest.raises(ShapeError, match=r"`noise`.*got \(4, 3\), expected \(4, 9\)"):
        stochastic.sample(torch.zeros(4, 2), noise=torch.zeros(4, 3))
    with pytest.raises(ValueError, match="`steps` is out of range"):
        stochastic.noise_dim(0)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_deterministic_actions_are_those_of_the_observations_noise(sampler: Sampler) -> None:
    config = FlowMapActorConfig(hidden=(8,), time_dim=4, sampler=sampler)
    learner = GTPLearner.build(2, 3, GTPConfig(actor=config))
    obs = normal(1, 2, 1).float().expand(3, 2)
    for candidates in (1, 4):
        action, again = (
            learner.act(obs, deterministic=True, candidates=candidates) for _ in range(2)
        )
        assert torch.equal(action, again)
        # Rows of one batch may be added up in different orders.
        torch.testing.assert_close(action, action[:1].expand(3, 3), rtol=0, atol=2e-6)
    noise = keyed_noise(obs, learner.target_actor.noise_dim())
    alone = learner.act(obs, deterministic=True, candidates=1)
    torch.testing.assert_close(learner.target_actor.sample(obs, noise=noise), alone)


# --- the linear path in the actor


def test_an_actor_on_the_linear_path_satisfies_every_structural_check() -> None:
    check_flow_map(actor_with(JumpSampler(), LinearTimes()).double(), obs_dim=2, action_dim=3)


def test_preconditioning_of_the_linear_path_is_that_of_its_conjugate() -> None:
    a = torch.tensor([0.0, 0.1, 0.5, 0.9, 0.999]).double()
    t = a / (1 - a)
    ours, theirs = precondition(a, 0.3, "linear"), precondition(t, 0.3)
    torch.testing.assert_close(ours.skip, theirs.skip * (1 + t))
    torch.testing.assert_close(ours.out, theirs.out)
    torch.testing.assert_close(ours.inner, theirs.inner * (1 + t))
    pure = precondition(torch.ones(1).double(), 0.3, "linear")
    assert [v.item() for v in pure] == [0.0, pytest.approx(0.3), 1.0]


def test_a_network_that_says_nothing_is_the_denoiser_of_normal_data() -> None:
    config = FlowMapActorConfig(hidden=(8,), times=LinearTimes(), sigma_data=0.3)
    actor = FlowMapActor(1, 1, config).double()
    for parameter in actor.parameters():
        parameter.data.zero_()
    oracle = LinearPathFlowMap(GaussianFlowMap([0.0], 0.3))
    a = torch.linspace(0.05, 0.95, 19).double()
    x, obs = normal(19, 1), torch.zeros(19, 1).double()
    torch.testing.assert_close(actor.endpoint(obs, x, a, a), oracle.endpoint(obs, x, a, a))
    # One jump to data goes all the way to the mean, in steps the spread comes back.
    noise = normal(1000, 1)
    obs = torch.zeros(1000, 1).double()
    assert actor.sample(obs, noise=noise, steps=1).abs().max() == 0
    nodes = LinearTimes().grid(4, dtype=torch.float64)
    factor = 1.0
    for t, s in itertools.pairwise(nodes.tolist()):
        factor *= s / t + (1 - s / t) * (1 - t) * 0.09 / (t**2 + (1 - t) ** 2 * 0.09)
    got = actor.sample(obs, noise=noise, steps=4)
    torch.testing.assert_close(got, (factor * noise).clamp(-1, 1))
