"""The stated false-alarm rates hold, and errors of the stated size are found."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from gtp_policy.errors import ShapeError
from gtp_policy.testing import (
    assert_frequencies_close,
    assert_moments_close,
    assert_same_distribution,
)

RUNS = 2000


def fails(assertion: Callable[[], None]) -> bool:
    try:
        assertion()
    except AssertionError:
        return True
    return False


def rate(assertions: Iterator[Callable[[], None]]) -> float:
    results = [fails(assertion) for assertion in assertions]
    assert len(results) == RUNS
    return sum(results) / RUNS


def allowance(stated: float) -> float:
    """Returns four standard errors of a rate that is measured in RUNS runs."""
    return 4 * math.sqrt(stated * (1 - stated) / RUNS)


DATA: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float, float]] = {
    # name: (draws from a normal and a uniform tensor, mean, std)
    "normal": (lambda z, u: 0.3 + 0.2 * z, 0.3, 0.2),
    "uniform": (lambda z, u: u, 0.5, 12**-0.5),
    "exponential": (lambda z, u: -u.log(), 1.0, 1.0),
    "two modes": (lambda z, u: (u < 0.3).double() + 0.05 * z, 0.3, math.sqrt(0.21 + 0.0025)),
}


def draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    z = torch.randn(shape, generator=generator, dtype=torch.float64)
    u = torch.rand(shape, generator=generator, dtype=torch.float64).clamp_min(1e-300)
    return DATA[name][0](z, u)


# --- moments --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["normal", "uniform", "two modes"])
def test_moments_raise_false_alarms_as_often_as_stated(
    name: str, generator: torch.Generator
) -> None:
    _, mean, std = DATA[name]
    samples = draw(name, (RUNS, 1000, 2), generator)
    measured = rate(
        lambda x=x: assert_moments_close(x, mean, std, false_alarm=0.05) for x in samples
    )
    assert measured <= 0.05 + allowance(0.05)
    # Of two modes alone, mean and variance are one number: the two claims then fail together.
    assert measured >= 0.05 / 2 - allowance(0.05 / 2)


def test_skewness_does_not_ruin_the_rate(generator: torch.Generator) -> None:
    n, stated = 1000, 0.01
    samples = draw("exponential", (RUNS, n), generator)
    measured = rate(
        lambda x=x: assert_moments_close(x, 1.0, 1.0, false_alarm=stated) for x in samples
    )
    assert measured <= stated + allowance(stated)
    # Plain t tests of the same two claims fail about twice as often as they state.
    claims = torch.stack([samples - 1, (samples - 1).square() - 1])
    t = math.sqrt(n) * claims.mean(-1) / claims.std(-1)
    plain = (t.abs() > -torch.special.ndtri(torch.tensor(stated / 4))).any(0).double().mean()
    assert plain > stated + allowance(stated)


@pytest.mark.parametrize("name", DATA)
def test_true_moments_pass_and_shifts_of_nine_standard_errors_fail(
    name: str, generator: torch.Generator
) -> None:
    _, mean, std = DATA[name]
    n = 40_000
    x = draw(name, (n,), generator)
    assert_moments_close(x, mean, std)
    for sign in (-1, 1):
        with pytest.raises(AssertionError, match="wrong mean"):
            assert_moments_close(x + sign * 9 * std / math.sqrt(n), mean, std)


@pytest.mark.parametrize("factor", [1 - 0.05, 1 + 0.05])
def test_a_std_off_by_seven_standard_errors_fails(
    factor: float, generator: torch.Generator
) -> None:
    x = draw("normal", (10_000, 2), generator)  # standard error of the std: 0.7 %
    scaled = 0.3 + (x - 0.3) * torch.tensor([1.0, factor])
    with pytest.raises(AssertionError, match="Coordinate 1 has the wrong standard deviation"):
        assert_moments_close(scaled, 0.3, 0.2)


def test_five_sigma_is_found_at_a_rate_of_one_in_a_thousand(generator: torch.Generator) -> None:
    samples = draw("normal", (RUNS, 400), generator) + 5 * 0.2 / math.sqrt(400)
    found = rate(lambda x=x: assert_moments_close(x, 0.3, 0.2, false_alarm=1e-3) for x in samples)
    assert found > 0.9  # the threshold lies at 3.5 of these 5 sigma


def test_a_bias_can_be_allowed(generator: torch.Generator) -> None:
    x = draw("normal", (100_000,), generator) + 0.01
    with pytest.raises(AssertionError):
        assert_moments_close(x, 0.3, 0.2)
    assert_moments_close(x, 0.3, 0.2, atol=0.01)
    with pytest.raises(AssertionError):
        assert_moments_close(x + 0.01, 0.3, 0.2, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_point_mass_has_moments(dtype: torch.dtype) -> None:
    x = torch.full((200, 1), 0.1, dtype=dtype)
    assert_moments_close(x, 0.1, 0.0)
    with pytest.raises(AssertionError, match="wrong mean"):
        assert_moments_close(x, 0.1001, 0.0)
    with pytest.raises(AssertionError, match="wrong standard deviation"):
        assert_moments_close(x, 0.1, 0.01)


def test_collapsed_samples_fail() -> None:
    x = torch.tensor([-1.0, 1.0]).repeat(500)
    assert_moments_close(x, 0.0, 1.0)  # a variance that has no spread itself
    with pytest.raises(AssertionError, match="wrong standard deviation"):
        assert_moments_close(x, 0.0, 0.9)


# --- distributions --------------------------------------------------------------------------------


def test_distribution_raises_no_more_false_alarms_than_stated(generator: torch.Generator) -> None:
    samples = torch.randn(RUNS, 300, 3, generator=generator, dtype=torch.float64)
    measured = rate(
        lambda x=x: assert_same_distribution(x, torch.special.ndtr, false_alarm=0.05)
        for x in samples
    )
    assert measured <= 0.05 + allowance(0.05)
    assert measured >= 0.02  # Massart's constant is tight: the bound is no idle one
    others = torch.randn(RUNS, 200, 3, generator=generator, dtype=torch.float64)
    measured = rate(
        lambda x=x, y=y: assert_same_distribution(x, y, false_alarm=0.05)
        for x, y in zip(samples, others, strict=True)
    )
    assert measured <= 0.05


def test_distances_that_are_stated_to_be_found_are_found(generator: torch.Generator) -> None:
    n = 10_000
    x = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    y = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    assert_same_distribution(x, lambda v: v)
    assert_same_distribution(x, y)

    def shifted(by: float) -> Tensor:  # a shift of uniform data moves its distribution function
        return x + torch.tensor([0.0, by], dtype=torch.float64)

    with pytest.raises(AssertionError, match="Coordinate 1 has another distribution"):
        assert_same_distribution(shifted(4 / math.sqrt(n)), lambda v: v.clamp(0, 1))
    with pytest.raises(AssertionError, match="Coordinate 1 has another distribution"):
        assert_same_distribution(shifted(7 / math.sqrt(n)), y)


def test_a_lost_mode_is_found(generator: torch.Generator) -> None:
    z = torch.randn(4000, generator=generator)
    sign = torch.randint(2, (4000,), generator=generator) * 2 - 1
    two_modes, one_width = 0.8 * sign + 0.05 * z, 0.8 * z  # the same mean and nearly the same std
    with pytest.raises(AssertionError, match="another distribution"):
        assert_same_distribution(one_width, two_modes)


def test_the_distance_is_that_of_scipy(generator: torch.Generator) -> None:
    x = torch.randn(57, generator=generator, dtype=torch.float64)
    y = torch.randn(33, generator=generator, dtype=torch.float64).round(decimals=1) + 4
    for other, reference in ((y, y.numpy()), (torch.special.ndtr, "norm")):
        with pytest.raises(AssertionError) as caught:
            assert_same_distribution(x + 2, other, false_alarm=0.5)
        distance = kstest((x + 2).numpy(), reference).statistic
        assert f"differ by {distance:.4g} " in str(caught.value)


# --- frequencies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("probabilities", [[0.25] * 4, [0.9, 0.09, 0.01]], ids=str)
def test_frequencies_raise_no_more_false_alarms_than_stated(
    probabilities: list[float], generator: torch.Generator
) -> None:
    chance = torch.tensor(probabilities)
    draws = torch.multinomial(chance.expand(RUNS, -1), 500, replacement=True, generator=generator)
    counts = torch.nn.functional.one_hot(draws, len(probabilities)).sum(1)
    measured = rate(
        lambda c=c: assert_frequencies_close(c, chance, false_alarm=0.05) for c in counts
    )
    assert 0 < measured <= 0.05


def test_a_share_off_by_seven_standard_errors_fails() -> None:
    n, p = 10_000, 0.25
    step = round(math.sqrt(p * (1 - p) * n))
    for sigmas in (0, 3):
        assert_frequencies_close([2500 + sigmas * step, 2500 - sigmas * step, 2500, 2500], [p] * 4)
    more, less = 2500 + 7 * step, 2500 - 7 * step
    rest = (n - more) // 3
    with pytest.raises(AssertionError, match=f"Outcome 0 .* got {more} of 10000, expected 2500 on"):
        assert_frequencies_close([more, rest, rest, n - more - 2 * rest], [p] * 4)
    rest = (n - less) // 3
    with pytest.raises(AssertionError, match=f"Outcome 3 .* got {less} of 10000, expected 2500 on"):
        assert_frequencies_close([n - less - 2 * rest, rest, rest, less], [p] * 4)


def test_certain_and_impossible_outcomes() -> None:
    assert_frequencies_close([10, 0], [1.0, 0.0])
    with pytest.raises(AssertionError, match=r"Outcome 1 .* got 1000000 of 1000001"):
        assert_frequencies_close([0, 1_000_000, 1], [0.0, 1.0, 0.0])
    with pytest.raises(AssertionError):
        assert_frequencies_close([9_999, 1], [1.0, 0.0])


# --- input ----------------------------------------------------------------------------------------


def test_values_that_are_not_finite_fail() -> None:
    x = torch.zeros(200, 2)
    x[7, 1] = math.nan
    for assertion in (
        lambda: assert_moments_close(x, 0.0, 0.0),
        lambda: assert_same_distribution(x, torch.special.ndtr),
    ):
        with pytest.raises(AssertionError, match=r"`x` is not finite: got \[0.0, nan\] in row 7"):
            assertion()


def test_wrong_input_is_named() -> None:
    x = torch.zeros(200, 2)
    with pytest.raises(ShapeError, match=r"`x` has the wrong shape: got \(2, 2, 2\)"):
        assert_moments_close(torch.zeros(2, 2, 2), 0.0, 1.0)
    with pytest.raises(ShapeError, match=r"`mean` has the wrong shape: got \(3,\)"):
        assert_moments_close(x, [0.0, 0.0, 0.0], 1.0)
    with pytest.raises(ValueError, match="too few samples: got 99"):
        assert_moments_close(x[:99], 0.0, 1.0)
    with pytest.raises(ShapeError, match="do not match"):
        assert_same_distribution(x, x[:, :1])
    with pytest.raises(ShapeError, match="distribution function returns the wrong shape"):
        assert_same_distribution(x, lambda v: v[:, 0])
    with pytest.raises(ShapeError, match="do not match"):
        assert_frequencies_close([1, 2], [1.0])
    with pytest.raises(ValueError, match="are not counts"):
        assert_frequencies_close([-1, 2], [0.5, 0.5])
    with pytest.raises(ValueError, match="are not counts"):
        assert_frequencies_close([0, 0], [0.5, 0.5])
    with pytest.raises(ValueError, match="are no distribution"):
        assert_frequencies_close([1, 1], [0.5, 0.6])


@pytest.mark.parametrize("false_alarm", [0.0, 1.0, -0.1, math.nan])
def test_the_rate_is_a_probability(false_alarm: float) -> None:
    x = torch.linspace(-1, 1, 200)
    for assertion in (
        lambda: assert_moments_close(x, 0.0, 1.0, false_alarm=false_alarm),
        lambda: assert_same_distribution(x, x, false_alarm=false_alarm),
        lambda: assert_frequencies_close([1, 1], [0.5, 0.5], false_alarm=false_alarm),
    ):
        with pytest.raises(ValueError, match="`false_alarm` is out of range"):
            assertion()
