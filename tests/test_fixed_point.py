r"""What the loss converges to: the *discretised* flow of Gaussian data, within Monte-Carlo error.

For data N(0, sigma^2) everything is linear: Phi(x, t, s) = c(t, s) x. With u the neighbour of t,
the best predictor of the target's arrival from x_t is E[c(u, s) x_u | x_t], so the fixed point is

    c(t_k, t_m) = prod_{j=m+1..k} a_j,    a_j = (sigma^2 + t_{j-1} t_j) / (sigma^2 + t_j^2)

A backbone with one free number per pair of grid times can represent it exactly. The numbers are
the means over the second half of training, which makes them as good as least squares over all
n(k, m) samples of that half. The error of c(t_k, t_m) then comes from its own regression and,
through the target, from the one below:

    d(k, m) = a_k d(k-1, m) + e(k, m),
    Var e(k, m) = c(t_{k-1}, t_m)^2 Var(x_u | x_t) / (n(k, m) E[x_t^2])
"""

import copy
import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor, nn

from gtp_policy import Curriculum, FlowMapActor, FlowMapActorConfig, GTPLoss, presets
from gtp_policy.functional import ema_
from gtp_policy.times import KarrasTimes

SIGMA, INTERVALS, BATCH, UPDATES = 0.5, 8, 4096, 4000
TIMES = KarrasTimes(t_min=0.02, t_max=5.0)
NODES = TIMES.grid(INTERVALS, dtype=torch.float64).flip(0)  # t_0 = 0 upwards


class Table(nn.Module):
    """One factor per pair of grid times: linear in x, free of everything else."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(INTERVALS + 1, INTERVALS + 1, dtype=torch.float64))
        self.register_buffer("middles", (NODES[1:] + NODES[:-1]) / 2)

    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        k, m = torch.bucketize(t, self.middles), torch.bucketize(s, self.middles)
        return self.factor[k, m].unsqueeze(-1) * x


def train(max_gap: int) -> FlowMapActor:
    """Trains on fresh draws; returns the actor with its mean parameters over the last half."""
    config = FlowMapActorConfig(sigma_data=0.3, times=TIMES)
    actor = FlowMapActor(1, 1, config, network=Table()).double()
    target = copy.deepcopy(actor).requires_grad_(False)
    curriculum = Curriculum(start=INTERVALS, end=INTERVALS)
    loss_fn = GTPLoss(presets.paper_loss().loss.replace(curriculum=curriculum, max_gap=max_gap))
    optimizer = torch.optim.Adam(actor.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    obs = torch.zeros(BATCH, 1, dtype=torch.float64)
    average = torch.zeros_like(actor.network.factor.data)
    for update in range(UPDATES):
        action = SIGMA * torch.randn(BATCH, 1, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        loss_fn(actor, target, obs, action, generator=generator).loss.backward()
        optimizer.step()
        ema_(target.parameters(), actor.parameters(), 0.05)
        if update >= UPDATES // 2:
            average += actor.network.factor.data / (UPDATES - UPDATES // 2)
    actor.network.factor.data.copy_(average)
    return actor


def learned(actor: FlowMapActor, k: int, m: int) -> float:
    one = torch.ones(1, 1, dtype=torch.float64)
    with torch.no_grad():
        return actor(torch.zeros_like(one), one, NODES[k : k + 1], NODES[m : m + 1]).item()


def expected() -> dict[tuple[int, int], tuple[float, float]]:
    """Returns c(t_k, t_m) and its standard error for every pair m < k."""
    result: dict[tuple[int, int], tuple[float, float]] = {}
    draws = BATCH * (UPDATES - UPDATES // 2)
    for m in range(INTERVALS):
        c, variance = 1.0, 0.0
        for k in range(m + 1, INTERVALS + 1):
            t, u = NODES[k].item(), NODES[k - 1].item()
            total = SIGMA**2 + t**2
            a = (SIGMA**2 + u * t) / total
            conditional = SIGMA**2 + u**2 - (SIGMA**2 + u * t) ** 2 / total
            samples = draws / INTERVALS / k  # k is uniform, m uniform below it
            variance = a**2 * variance + c**2 * conditional / (samples * total)
            c *= a
            result[k, m] = c, math.sqrt(variance)
    return result


def z_scores(actor: FlowMapActor) -> dict[tuple[int, int], float]:
    return {(k, m): (learned(actor, k, m) - c) / error for (k, m), (c, error) in expected().items()}


FALSE_ALARM = 1e-6
PAIRS = [(k, m) for k in range(1, INTERVALS + 1) for m in range(k)]
BOUND = NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * len(PAIRS)))  # 5.4 standard errors


@pytest.mark.slow
def test_the_neighbour_rule_meets_the_discretised_fixed_point() -> None:
    scores = z_scores(train(max_gap=1))
    assert sorted(scores) == PAIRS
    worst = max(scores, key=lambda pair: abs(scores[pair]))
    assert abs(scores[worst]) < BOUND, f"{worst}: {scores[worst]:.1f} standard errors away"
    # The test is sharp: a standard error is a small part of what it measures.
    assert max(error / c for c, error in expected().values()) < 3e-3


@pytest.mark.slow
def test_with_u_anywhere_between_t_and_s_the_same_test_fails() -> None:
    scores = z_scores(train(max_gap=INTERVALS))
    # Where only the neighbour lies between t and s, nothing changes ...
    assert all(abs(scores[k, k - 1]) < BOUND for k in range(1, INTERVALS + 1))
    # ... and everywhere else the map contracts too much, the more the longer the jump.
    assert all(scores[k, m] < -BOUND for k, m in PAIRS if k - m > 1)
