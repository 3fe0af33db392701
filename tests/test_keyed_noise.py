"""Noise of the observation: the contract's integers, normal, different, and independent."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gtp_policy import GTPConfig, GTPLearner
from gtp_policy.keyed_noise import keyed_noise
from gtp_runtime.keyed_noise import keyed_noise as in_numpy

P = 2**24 - 3
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def by_the_page(obs: list[float], count: int) -> list[float]:
    """The formulas of the page on the policy file, in whole numbers of any size."""
    total = 0
    for i, value in enumerate(obs, 1):
        near = Fraction(min(max(value, -(2.0**42)), 2.0**42)) * 2**20
        total += int(near) * pow(12_345_679, i, P)  # `int` cuts towards zero
    key = pow(1 + total % P % (P - 1), 5, P)
    uniform = [key * pow(4_653_209, m, P) % P for m in range(1, 12 * count + 1)]
    sums = (sum(uniform[12 * j : 12 * j + 12]) - 6 * P for j in range(count))
    return [float(np.float32(s) / np.float32(P)) for s in sums]


@given(st.lists(st.lists(floats, min_size=3, max_size=3), min_size=1, max_size=4))
def test_it_is_that_of_the_contract_bit_for_bit(rows: list[list[float]]) -> None:
    expected = [by_the_page(row, 5) for row in rows]
    assert keyed_noise(torch.tensor(rows), 5).tolist() == expected
    parts = [np.float32(rows)[:, :2], np.float32(rows)[:, 2:]]
    assert in_numpy(parts, 1, (5,)).tolist() == expected


def test_parts_of_a_history_are_joined_step_by_step(generator: torch.Generator) -> None:
    position, speed = (torch.randn(7, 2, n, generator=generator) for n in (3, 1))
    flat = torch.cat([position, speed], 2).reshape(7, 8)
    found = in_numpy([position.numpy(), speed.numpy()], 2, (4, 2))
    assert found.tolist() == keyed_noise(flat, 8).view(7, 4, 2).tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_is_the_observations(dtype: torch.dtype, generator: torch.Generator) -> None:
    obs = torch.randn(5, 3, generator=generator).to(dtype)
    assert torch.equal(keyed_noise(obs, 4), keyed_noise(obs.float(), 4).to(dtype))


LINES = {
    "at random": torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)),
    "along a line": torch.linspace(0, 1, 20_000)[:, None].expand(-1, 3),
    "a unit apart": torch.arange(20_000.0)[:, None] * torch.tensor([2.0**-20, 0.0, 0.0]),
    "on a grid": torch.tensor(list(itertools.product(range(28), repeat=3)), dtype=torch.float32),
}


@pytest.mark.parametrize("obs", LINES.values(), ids=LINES.keys())
def test_it_is_normal_and_says_nothing_of_its_neighbours(obs: torch.Tensor) -> None:
    noise = keyed_noise(obs, 32).double().numpy()
    rows = len(noise)
    limit = 5 / rows**0.5  # five standard errors, of some two thousand numbers
    assert abs(noise.mean(0)).max() < limit
    assert abs(noise.var(0) - 1).max() < limit * 2**0.5
    among = np.corrcoef(noise.T) - np.eye(32)
    after = [np.corrcoef(noise[:-1, j], noise[1:, j])[0, 1] for j in range(32)]
    assert max(abs(among).max(), *map(abs, after)) < limit
    # 0.003 is what the sum of twelve is away from the normal distribution.
    apart = max(stats.kstest(noise[:, j], "norm").statistic for j in range(32))
    assert apart < 0.003 + 2.6 / rows**0.5


def test_a_sum_of_twelve_is_normal_to_three_thousandths() -> None:
    """Irwin and Hall's distribution function, by its alternating sum, in exact fractions."""
    worst = 0.0
    for x in np.linspace(-4, 4, 161):
        at = Fraction(float(x)) + 6
        terms = (
            Fraction((-1) ** k * int(stats.binom(12, 0.5).pmf(k) * 4096 + 0.5)) * (at - k) ** 12
            for k in range(int(at) + 1)
        )
        worst = max(worst, abs(float(sum(terms) / 479_001_600) - stats.norm.cdf(x)))
    assert worst < 0.003


def test_a_policy_starts_elsewhere_at_every_observation(generator: torch.Generator) -> None:
    """Of one noise for all it would be a smooth function, which can lead back to its start."""
    learner = GTPLearner.build(2, 1, GTPConfig())
    obs = torch.randn(4000, 2, generator=generator)
    given_noise = keyed_noise(obs, 1)
    action = learner.act(obs, deterministic=True, candidates=1)
    torch.testing.assert_close(action, learner.target_actor.sample(obs, noise=given_noise))
    nudged = learner.act(obs + 1e-4, deterministic=True, candidates=1)
    alike = learner.target_actor.sample(obs + 1e-4, noise=given_noise)
    assert (nudged - action).abs().mean() > 100 * (alike - action).abs().mean()
