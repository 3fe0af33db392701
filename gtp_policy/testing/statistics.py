r"""Statistical assertions that state how often they fail on correct code.

A tolerance such as "within 5 %" hides two questions: how often does correct code fail, and how
large an error passes. Here the first is an argument, ``false_alarm``, the probability that one call
fails although the claim is true; the second follows from the number of samples, and each docstring
says how. The default of 1e-6 lets a suite of a thousand such assertions run a thousand times with
about one false alarm. Where several coordinates are tested at once, each gets its share of
``false_alarm`` (Bonferroni), so the stated rate holds for the call as a whole.

Draws have to be independent: samples of one flow map from independent noise are.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gtp_policy.errors import ShapeError
from gtp_policy.testing.measures import ecdf_gap

_FEWEST = 100  # below it, the expansion behind the moment test is not trustworthy


def assert_moments_close(
    x: Tensor,
    mean: Tensor | Sequence[float] | float,
    std: Tensor | Sequence[float] | float,
    *,
    atol: float = 0.0,
    false_alarm: float = 1e-6,
) -> None:
    r"""Asserts that samples have the given mean and standard deviation, per coordinate.

    Both are claims about a mean: :math:`E[x - \mu] = 0` and
    :math:`E[(x - \mu)^2 - \sigma^2] = 0`. For such a variable y with sample mean
    :math:`\bar y`, standard deviation :math:`\hat\sigma` and skewness :math:`\hat\gamma`,

    .. math:: g = T + \frac{\hat\gamma T^2}{3 \sqrt n} + \frac{\hat\gamma^2 T^3}{27 n}
        + \frac{\hat\gamma}{6 \sqrt n}, \qquad T = \frac{\sqrt n \, \bar y}{\hat\sigma}

    is standard normal up to terms of order 1/n: the cubic removes the effect of skewness, which
    squares always have and which makes a plain t test of a variance fail far too often. The data
    need not be normal: the fourth moment that the variance test needs is the empirical one inside
    :math:`\hat\sigma`. The call fails if :math:`|g|` exceeds the normal quantile of
    ``false_alarm`` / (4 A): two sides, two claims, A coordinates.

    The rate is asymptotic. Measured on normal, uniform and two-mode data it is within 10 % of the
    stated one at 1000 samples for rates of 5 % and 0.1 %, and up to twice as large at 100 samples.
    Heavy tails (an infinite fourth moment) are outside its reach.

    Power: at 1e-6 and A = 1, a mean is found wrong in most runs when it is off by
    :math:`5 \sigma / \sqrt n`, a standard deviation of normal data by
    :math:`5 \sigma / \sqrt{2 n}`.

    Args:
        x: Samples, shape (N, A) or (N,), N >= 100.
        mean: Expected mean, a number or shape (A,).
        std: Expected standard deviation, a number or shape (A,), >= 0.
        atol: Bias that the claim allows in mean and standard deviation, in the units of x, >= 0.
            Rounding of x is always allowed for.
        false_alarm: Probability that a true claim fails, in (0, 1).

    Raises:
        AssertionError: If the samples contradict the claim, or are not finite.
        ShapeError: If ``x`` is not of rank 1 or 2, or ``mean`` or ``std`` do not match it.
        ValueError: If there are fewer than 100 samples or ``false_alarm`` is not in (0, 1).

    References:
        | On the Removal of Skewness by Transformation (Hall, 1992)
        | https://doi.org/10.1111/j.2517-6161.1992.tb01876.x

    Example:
        >>> import torch
        >>> from gtp_policy.testing import assert_moments_close
        >>> x = torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0))
        >>> assert_moments_close(x, mean=0.0, std=1.0)
        >>> assert_moments_close(x, mean=[0.0, 0.1], std=1.0)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        AssertionError: Coordinate 1 has the wrong mean: got -0.0054...
    """
    eps = torch.finfo(x.dtype).eps
    samples = _samples("x", x)
    n, dims = samples.shape
    if n < _FEWEST:
        raise ValueError(f"`x` has too few samples: got {n}, expected at least {_FEWEST}.")
    center, width = _per_coordinate("mean", mean, samples), _per_coordinate("std", std, samples)
    slack = atol + 8 * eps * torch.maximum(samples.abs().amax(0), center.abs())
    threshold = -_normal_quantile(_rate(false_alarm) / (4 * dims))
    deviation = samples - center
    claims = (
        ("mean", deviation, slack, samples.mean(0), center),
        (
            "standard deviation",
            deviation.square() - width.square(),
            slack * (2 * width + slack),
            deviation.square().mean(0).sqrt(),
            width,
        ),
    )
    for name, y, allowed, got, expected in claims:
        score = _mean_score(y, allowed)
        if not (score.abs() <= threshold).all():
            i = int(score.abs().argmax())
            raise AssertionError(
                f"Coordinate {i} has the wrong {name}: got {float(got[i]):.6g} from {n} samples, "
                f"expected {float(expected[i]):.6g}. The score is {float(score[i]):.2f}, beyond "
                f"{threshold:.2f}, which a true claim exceeds with probability {false_alarm:g}."
            )


def _mean_score(y: Tensor, allowed: Tensor) -> Tensor:
    """Returns a score that is standard normal if the mean of y is 0, per column of (N, A)."""
    n = y.shape[0]
    bias = y.mean(0)
    centered = y - bias
    scale = centered.square().mean(0).sqrt()
    excess = bias.sign() * (bias.abs() - allowed).clamp_min(0)
    # No spread at all: the claim holds exactly or not at all.
    tiny = torch.finfo(y.dtype).tiny
    t = math.sqrt(n) * excess / scale.clamp_min(tiny)
    gamma = (centered / scale.clamp_min(tiny)).pow(3).mean(0) / math.sqrt(n)
    score = t + gamma * t.square() / 3 + gamma.square() * t.pow(3) / 27 + gamma / 6
    return torch.where(scale > 0, score, t)


def assert_same_distribution(
    x: Tensor,
    y_or_cdf: Tensor | Callable[[Tensor], Tensor],
    *,
    false_alarm: float = 1e-6,
) -> None:
    r"""Asserts that samples come from a distribution, per coordinate (Kolmogorov-Smirnov).

    Against a distribution function F, by the inequality of Dvoretzky, Kiefer and Wolfowitz with
    Massart's constant, valid for every number of samples:

    .. math:: P\left(\sup_v |F_n(v) - F(v)| > \epsilon\right) \le 2 e^{-2 n \epsilon^2}, \qquad
        \epsilon_n(\alpha) = \sqrt{\frac{\ln (2 / \alpha)}{2 n}}

    Against other samples, :math:`\sup|F_n - G_m| \le \sup|F_n - F| + \sup|G_m - F|`, so
    :math:`\epsilon_n(\alpha/2) + \epsilon_m(\alpha/2)`. With :math:`\alpha` = ``false_alarm`` / A
    the stated rate is a proven bound; between samples the true rate is far below it.

    Only coordinates are compared, one by one: dependence between them is not seen.

    Power: at 1e-6 and A = 1, a gap between distribution functions above :math:`2.7 / \sqrt n` is
    found against a distribution function; above :math:`5.6 / \sqrt n` between two samples of n.

    Args:
        x: Samples, shape (N, A) or (N,).
        y_or_cdf: Other samples, shape (M, A) or (M,); or a continuous distribution function that
            maps samples of the shape of ``x``, in float64, to probabilities of that shape.
        false_alarm: Probability that a true claim fails, in (0, 1).

    Raises:
        AssertionError: If the samples contradict the claim, or are not finite.
        ShapeError: If the shapes do not match.
        ValueError: If ``false_alarm`` is not in (0, 1).

    References:
        | The Tight Constant in the Dvoretzky-Kiefer-Wolfowitz Inequality (Massart, 1990)
        | https://doi.org/10.1214/aop/1176990746

    Example:
        >>> import torch
        >>> from gtp_policy.testing import assert_same_distribution
        >>> x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
        >>> assert_same_distribution(x, torch.special.ndtr)
        >>> assert_same_distribution(x, x[:5_000] + 0.5)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        AssertionError: Coordinate 0 has another distribution: ...
    """
    samples = _samples("x", x)
    n, dims = samples.shape
    alpha = _rate(false_alarm) / dims
    if isinstance(y_or_cdf, Tensor):
        others = _samples("y_or_cdf", y_or_cdf)
        if others.shape[1] != dims:
            raise ShapeError(
                f"The samples do not match: got {tuple(x.shape)} and {tuple(y_or_cdf.shape)}, "
                "expected the same number of coordinates."
            )
        distance = ecdf_gap(samples, others)[1].abs().amax(-1)
        threshold = _dkw(n, alpha / 2) + _dkw(others.shape[0], alpha / 2)
    else:
        probability = y_or_cdf(x.detach().double()).reshape(n, -1)
        if probability.shape[1] != dims:
            raise ShapeError(
                f"The distribution function returns the wrong shape: got {probability.shape[1]} "
                f"coordinates, expected {dims}."
            )
        ordered = probability.sort(0).values
        rank = torch.arange(1, n + 1, dtype=ordered.dtype, device=ordered.device).unsqueeze(-1) / n
        distance = torch.maximum(rank - ordered, ordered - (rank - 1 / n)).amax(0)
        threshold = _dkw(n, alpha)
    if not (distance <= threshold).all():
        i = int(distance.argmax())
        raise AssertionError(
            f"Coordinate {i} has another distribution: got distribution functions that differ by "
            f"{float(distance[i]):.4g} ({n} samples), expected at most {threshold:.4g}, which a "
            f"true claim exceeds with probability below {false_alarm:g}."
        )


def assert_frequencies_close(
    counts: Tensor | Sequence[int],
    probabilities: Tensor | Sequence[float],
    *,
    false_alarm: float = 1e-6,
) -> None:
    r"""Asserts that counts of outcomes agree with their probabilities, outcome by outcome.

    Chernoff's bound holds for every number of draws: with :math:`\hat p = c / n`,

    .. math:: P(\hat p \text{ as far above } p) \le e^{-n D}, \qquad
        D = \hat p \ln \frac{\hat p}{p} + (1 - \hat p) \ln \frac{1 - \hat p}{1 - p},

    and the same below. The call fails if :math:`n D > \ln(2 K / \alpha)` for one of K outcomes.
    The stated rate is a proven bound. An outcome of probability 0 must never occur.

    Power: at 1e-6 and K = 4, a share is found wrong in most runs when it is off by
    :math:`5.6 \sqrt{p (1 - p) / n}`.

    Args:
        counts: How often each outcome occurred, shape (K,), whole numbers >= 0, not all 0.
        probabilities: Expected probabilities, shape (K,), >= 0, with sum 1.
        false_alarm: :math:`\alpha`, probability that a true claim fails, in (0, 1).

    Raises:
        AssertionError: If the counts contradict the probabilities.
        ShapeError: If the two are not vectors of one length.
        ValueError: If counts are negative or all 0, probabilities do not sum to 1, or
            ``false_alarm`` is not in (0, 1).

    Example:
        >>> from gtp_policy.testing import assert_frequencies_close
        >>> assert_frequencies_close([260, 240, 255, 245], [0.25] * 4)
        >>> assert_frequencies_close([500, 200, 150, 150], [0.25] * 4)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        AssertionError: Outcome 0 has the wrong frequency: got 500 of 1000, expected 250 ...
    """
    seen = torch.as_tensor(counts).detach().double()
    chance = torch.as_tensor(probabilities).detach().double().to(seen.device)
    if seen.ndim != 1 or seen.shape != chance.shape:
        raise ShapeError(
            f"Counts and probabilities do not match: got {tuple(seen.shape)} and "
            f"{tuple(chance.shape)}, expected two vectors of one length."
        )
    n = float(seen.sum())
    if not n > 0 or bool((seen < 0).any() | (seen != seen.round()).any()):
        raise ValueError(f"`counts` are not counts: got {seen.tolist()}, expected whole numbers.")
    if not (chance >= 0).all() or abs(float(chance.sum()) - 1) > 1e-6:
        raise ValueError(
            f"`probabilities` are no distribution: got {chance.tolist()}, expected numbers >= 0 "
            "with sum 1."
        )
    share = seen / n
    # xlogy(0, .) is 0; a share of an impossible outcome gives infinity, and fails.
    surprise = n * (
        torch.xlogy(share, share / chance.clamp_max(1))
        + torch.xlogy(1 - share, (1 - share) / (1 - chance).clamp_min(0))
    ).nan_to_num(nan=0.0, posinf=math.inf)
    threshold = math.log(2 * len(seen) / _rate(false_alarm))
    if not (surprise <= threshold).all():
        i = int(surprise.argmax())
        raise AssertionError(
            f"Outcome {i} has the wrong frequency: got {seen[i]:.0f} of {n:.0f}, expected "
            f"{float(chance[i]) * n:.6g} on average. The bound on its probability is "
            f"exp(-{float(surprise[i]):.1f}); a claim of {len(seen)} outcomes that is true fails "
            f"with probability below {false_alarm:g}."
        )


def _samples(name: str, x: Tensor) -> Tensor:
    if x.ndim not in (1, 2) or not x.numel():
        raise ShapeError(f"`{name}` has the wrong shape: got {tuple(x.shape)}, expected (N, A).")
    samples = x.detach().double().reshape(x.shape[0], -1)
    if not samples.isfinite().all():
        rows = (~samples.isfinite()).any(-1).nonzero()
        raise AssertionError(
            f"`{name}` is not finite: got {samples[rows[0, 0]].tolist()} in row {int(rows[0, 0])}, "
            f"and {len(rows)} such rows of {len(samples)}, expected finite numbers."
        )
    return samples


def _per_coordinate(name: str, value: Tensor | Sequence[float] | float, samples: Tensor) -> Tensor:
    tensor = torch.as_tensor(value, dtype=torch.float64, device=samples.device).detach()
    if tensor.ndim and tuple(tensor.shape) != (samples.shape[1],):
        raise ShapeError(
            f"`{name}` has the wrong shape: got {tuple(tensor.shape)}, expected a number or "
            f"({samples.shape[1]},)."
        )
    return tensor.expand(samples.shape[1])


def _rate(false_alarm: float) -> float:
    if not 0 < false_alarm < 1:
        raise ValueError(f"`false_alarm` is out of range: got {false_alarm}, expected 0 to 1.")
    return false_alarm


def _normal_quantile(probability: float) -> float:
    return float(torch.special.ndtri(torch.tensor(probability, dtype=torch.float64)))


def _dkw(n: int, alpha: float) -> float:
    return math.sqrt(math.log(2 / alpha) / (2 * n))
