"""Advantages to weights: what holds for every batch, the harmful ones before all."""

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from torch import Tensor

from gtp_policy import AdvantageWeighter, AdvantageWeighterConfig
from gtp_policy.errors import NonFiniteError, ShapeError
from gtp_policy.functional import advantage_weights, effective_sample_size, temperature_of
from gtp_policy.testing import advantages, assert_moments_close

ETAS = st.sampled_from([0.0, 0.01, 0.5, 1.0, 3.0, 10.0, 1e6, 1e30])
CAPS = st.sampled_from([1.0, 1.5, 3.3, 7.0, 20.0, 100.0, 12345.6, 1e30])
ordinary = st.lists(st.floats(-10.0, 10.0, width=32), min_size=1, max_size=8)


def weights(advantage: Tensor, eta: float = 1.0, max_weight: float = 100.0) -> Tensor:
    config = AdvantageWeighterConfig(eta=eta, max_weight=max_weight, signed=False)
    return AdvantageWeighter(config)(advantage)


def printed(advantage: list[float], eta: float, eps: float = 1e-6) -> np.ndarray:
    """Equation 14 as the paper prints it, in float64."""
    a = np.array(advantage, dtype=np.float64)
    with np.errstate(over="ignore"):
        return np.exp(eta * np.maximum(a, 0) / (a.std() + eps))


@pytest.mark.slow
@settings(max_examples=10_000)
@given(advantages(), ETAS, CAPS)
def test_weights_are_finite_in_range_and_monotone(
    advantage: Tensor, eta: float, cap: float
) -> None:
    w = weights(advantage, eta, cap)
    highest = torch.tensor(cap).item()  # the cap as float32 knows it
    assert w.isfinite().all()
    assert w.min() >= 1
    assert w.max().item() <= highest
    assert (w[advantage <= 0] == 1).all() or cap == 1
    assert eta > 0 or (w == 1).all()
    assert (w[advantage.argsort()].diff() >= 0).all()
    # At the cap is exactly at the cap: the metric counts it.
    assert cap < 10 or not ((w > 0.99999 * highest) & (w < highest)).any()


@given(advantages(nan=True) | advantages().map(lambda a: a / 0.0 + torch.inf))
def test_advantages_that_are_not_finite_raise(advantage: Tensor) -> None:
    with pytest.raises(NonFiniteError, match=r"got (nan|-?inf) at index \d+ of \d+"):
        weights(advantage)


def test_the_error_names_the_first_bad_index() -> None:
    with pytest.raises(NonFiniteError, match="got -inf at index 2 of 4"):
        weights(torch.tensor([0.0, 1.0, -torch.inf, torch.nan]))


@given(st.permutations(range(8)), st.lists(st.floats(-9, 9, width=32), min_size=8, max_size=8))
def test_weights_go_with_their_advantages(order: list[int], values: list[float]) -> None:
    a = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(weights(a[order]), weights(a)[order])


@given(ordinary, st.floats(-6, 6))
def test_the_unit_of_the_reward_does_not_matter(values: list[float], log10: float) -> None:
    a = torch.tensor(values, dtype=torch.float64)
    w = advantage_weights(a, 1.0, 1e-12, 100.0)
    if a.std(correction=0) > 1e-2:  # elsewhere eps is no small addition
        scaled = advantage_weights(a * 10**log10, 1.0, 1e-12 * 10**log10, 100.0)
        torch.testing.assert_close(scaled, w)
        torch.testing.assert_close(advantage_weights(a * 1e3, 1.0, 1e-12, 100.0), w)


@settings(max_examples=500)
@given(ordinary, st.floats(0.0, 5.0), st.floats(1.0, 1e6))
def test_below_the_cap_it_is_the_printed_formula(
    values: list[float], eta: float, cap: float
) -> None:
    got = weights(torch.tensor(values, dtype=torch.float64), eta, cap).numpy()
    np.testing.assert_allclose(got, np.minimum(printed(values, eta), cap), rtol=1e-9)


@pytest.mark.parametrize("values", [[1.0, 1.0], [3.0], [5.0 - 1e-3, 5.0 + 1e-3], [1e30, 1e30]])
def test_where_the_printed_formula_explodes_the_cap_holds(values: list[float]) -> None:
    assert not np.isfinite(printed(values, 1.0)).all()
    assert weights(torch.tensor(values)).tolist() == [100.0] * len(values)


def test_a_floor_that_underflows_divides_nothing_by_nothing() -> None:
    assert advantage_weights(torch.tensor([-1e38]), 1.0, 1e-8, 100.0).tolist() == [1.0]
    assert advantage_weights(torch.tensor([1e38]), 0.0, 1e-8, 100.0).tolist() == [1.0]
    assert advantage_weights(torch.tensor([1e38]), 1.0, 1e-8, 100.0).tolist() == [100.0]


def test_by_hand() -> None:
    # A = (-1, 0, 1, 4): mean 1, population variance (4 + 1 + 0 + 9) / 4 = 3.5.
    w = advantage_weights(torch.tensor([-1.0, 0.0, 1.0, 4.0]).double(), 0.5, 1e-15, 100.0)
    expected = [1.0, 1.0, math.exp(0.5 / math.sqrt(3.5)), math.exp(2.0 / math.sqrt(3.5))]
    assert w.tolist() == pytest.approx(expected, rel=1e-12)
    # The floor: one advantage alone has std 0, so eps = 2 is the whole denominator.
    assert advantage_weights(torch.tensor([3.0]), 1.0, 2.0, 100.0).item() == pytest.approx(
        math.exp(1.5), rel=1e-6
    )


def test_no_gradient_reaches_the_critic() -> None:
    a = torch.tensor([0.5, 1.0], requires_grad=True)
    assert not weights(a).requires_grad


@pytest.mark.parametrize("shape", [(), (0,), (4, 1), (1, 4)])
def test_only_vectors_are_weighed(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="`advantage` has the wrong shape"):
        weights(torch.zeros(shape))


def test_the_effective_sample_size() -> None:
    assert effective_sample_size(torch.full((256,), 3.0)).item() == pytest.approx(256.0)
    assert effective_sample_size(torch.tensor([1.0, 1.0, 2.0])).item() == pytest.approx(16 / 6)
    assert effective_sample_size(torch.tensor([1e30, 1e30, 1.0])).item() == pytest.approx(2.0)
    assert effective_sample_size(torch.tensor([1e30] + [1.0] * 9)).item() == pytest.approx(1.0)


@pytest.mark.parametrize("eta", [0.25, 0.5, 1.0])
def test_the_effective_sample_size_of_a_normal_batch(
    eta: float, generator: torch.Generator
) -> None:
    a = torch.randn(1_000_000, generator=generator, dtype=torch.float64)
    cdf = statistics.NormalDist().cdf
    # E exp(c max(0, A)) = 1/2 + exp(c^2 / 2) cdf(c) for a standard normal A.
    first, second = (0.5 + math.exp(c**2 / 2) * cdf(c) for c in (eta, 2 * eta))
    ess = effective_sample_size(weights(a, eta, 1e30)).item() / len(a)
    # At eta = 1 the mean of w^2 has a standard error of 0.7 %, the largest here.
    assert ess == pytest.approx(first**2 / second, rel=0.05)


def test_exponential_weights_tilt_a_normal_distribution(generator: torch.Generator) -> None:
    """Weights e^{beta a} on N(mu, s^2) give N(mu + beta s^2, s^2)."""
    mu, s, n = 0.3, 0.5, 400_000
    a = mu + s * torch.randn(n, generator=generator, dtype=torch.float64)
    # A constant shift of A makes every advantage positive and cancels in the normalised weights.
    shifted = a - a.min()
    eta = 1.2
    w = advantage_weights(shifted, eta, 1e-12, 1e30)
    beta = eta / float(a.std(correction=0))
    chosen = torch.multinomial(w, n, replacement=True, generator=generator)
    ess = float(effective_sample_size(w))
    # Resampling adds to the sampling error of the weighted mean: ESS stands for n.
    allowed = 6 * s / math.sqrt(ess)
    assert_moments_close(a[chosen], mu + beta * s**2, s, atol=allowed)
    assert beta * s**2 > 20 * allowed


def test_the_papers_choices_are_those_before() -> None:
    c = AdvantageWeighterConfig(**AdvantageWeighterConfig.before)
    assert (c.eta, c.eps, c.max_weight) == (1.0, 1e-6, 100.0)
    assert (c.signed, c.effective_share) == (False, None)


# --- without max(0, A)


@settings(max_examples=500)
@given(ordinary, st.floats(0.0, 5.0), st.floats(1.0, 1e6))
def test_signed_weights_are_exponentials_of_the_advantage(
    values: list[float], eta: float, cap: float
) -> None:
    config = AdvantageWeighterConfig(eta=eta, max_weight=cap, signed=True)
    a = np.array(values, dtype=np.float64)
    expected = np.exp(np.clip(eta * a / (a.std() + 1e-6), -math.log(cap), math.log(cap)))
    got = AdvantageWeighter(config)(torch.tensor(values, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-9)


@settings(max_examples=500)
@given(advantages(), ETAS, CAPS)
def test_signed_weights_are_finite_in_range_and_monotone(
    advantage: Tensor, eta: float, cap: float
) -> None:
    w = AdvantageWeighterConfig(eta=eta, max_weight=cap, signed=True).weigh(advantage)
    assert w.isfinite().all()
    assert w.min().item() >= 1 / cap * (1 - 1e-5)
    assert w.max().item() <= torch.tensor(cap).item()
    assert (w[advantage.argsort()].diff() >= 0).all()
    assert effective_sample_size(w).isfinite()


# --- a temperature for a share of effective samples


def share_of(a: np.ndarray, eta: float) -> float:
    """Kish's share of exponential weights, from its definition and in float64."""
    w = np.exp(eta * (a - a.max()))
    return float(w.sum() ** 2 / (len(w) * (w**2).sum()))


@settings(max_examples=300)
@given(
    values=st.lists(st.integers(-50, 50), min_size=4, max_size=64, unique=True),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    target=st.floats(0.3, 0.95),
    signed=st.booleans(),
)
def test_the_temperature_is_where_the_share_is_met(
    values: list[int], scale: float, target: float, signed: bool
) -> None:
    """Against a root finder of scipy's, which knows the definition alone."""
    a = np.array(values) * scale
    counted = (a if signed else np.maximum(a, 0)) / a.std()
    if np.ptp(counted) < 0.05:  # nothing is better than anything else
        return
    if share_of(counted, 1e3) > target:  # as many are best as should count
        return
    eta = optimize.brentq(lambda x: share_of(counted, x) - target, 1e-3, 1e3, xtol=1e-12)
    found = float(temperature_of(torch.tensor(counted - counted.max()), target))
    assert found == pytest.approx(eta, rel=1e-5)
    if eta * np.abs(counted).max() < 60:  # below the cap, above what is the same as 0
        w = advantage_weights(
            torch.tensor(a), 1.0, 1e-12, 1e30, signed=signed, effective_share=target
        ).numpy()
        np.testing.assert_allclose(w, np.exp(eta * counted), rtol=1e-3)
    # The cap makes the share larger, never smaller.
    capped = AdvantageWeighterConfig(
        max_weight=3.0, eps=1e-12, signed=signed, effective_share=target
    ).weigh(torch.tensor(a))
    assert effective_sample_size(capped).item() / len(a) >= target * (1 - 1e-4)


@given(advantages(), st.floats(0.01, 0.99), st.booleans())
def test_a_share_that_cannot_be_met_gives_weights_all_the_same(
    advantage: Tensor, target: float, signed: bool
) -> None:
    config = AdvantageWeighterConfig(signed=signed, effective_share=target)
    w = config.weigh(advantage)
    assert w.isfinite().all()
    assert (w > 0).all()
    assert w.max() <= 100
    assert (w[advantage.argsort()].diff() >= 0).all()


def test_eta_is_not_used_where_a_share_is_given(generator: torch.Generator) -> None:
    a = torch.randn(256, generator=generator)
    one, two = (AdvantageWeighterConfig(eta=e, effective_share=0.5).weigh(a) for e in (0.0, 9.0))
    assert torch.equal(one, two)
    # Of a standard normal A and signed weights, ESS / B is exp(-eta^2).
    b = torch.randn(200_000, generator=generator, dtype=torch.float64)
    w = AdvantageWeighterConfig(effective_share=0.5, signed=True, max_weight=1e30).weigh(b)
    eta = float((w.log() / b).mean())
    assert eta == pytest.approx(math.sqrt(math.log(2)), rel=0.02)
