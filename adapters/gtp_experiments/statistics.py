"""Statistics over a few seeds: means, interquartile means and bootstrap intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from gtp_policy.errors import DataError

RESAMPLES = 10_000


class Spread(NamedTuple):
    """A figure over seeds.

    Attributes:
        mean: Arithmetic mean.
        std: Sample standard deviation (divided by n - 1); None for one seed.
        iqm: Interquartile mean: a quarter is cut off at both ends, rounded down, so that fewer
            than four seeds lose none.
        low: Lower end of the 95 % bootstrap interval of ``iqm``; None for one seed.
        high: Upper end.
        seeds: Number of seeds.

    Example:
        >>> from gtp_experiments import spread
        >>> spread([0.0, 10.0, 20.0, 90.0]).iqm
        15.0
    """

    mean: float
    std: float | None
    iqm: float
    low: float | None
    high: float | None
    seeds: int


def spread(values: Sequence[float]) -> Spread:
    """Summarises one figure per seed.

    The interval is the percentile bootstrap over seeds, with a fixed generator: the same values
    give the same interval.

    Args:
        values: At least one finite number.

    Returns:
        The summary.

    Raises:
        DataError: If there is no value or one that is not finite.

    References:
        | Deep Reinforcement Learning at the Edge of the Statistical Precipice (Agarwal et al.,
        | 2021), https://arxiv.org/abs/2108.13264

    Example:
        >>> from gtp_experiments import spread
        >>> spread([1.0, 2.0, 3.0]).std
        1.0
    """
    sample = _checked(values)
    iqm = float(stats.trim_mean(sample, 0.25))
    if len(sample) == 1:
        return Spread(iqm, None, iqm, None, None, 1)
    interval = stats.bootstrap(
        (sample,),
        lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    std = float(sample.std(ddof=1))
    low, high = float(interval.low), float(interval.high)
    return Spread(float(sample.mean()), std, iqm, low, high, len(sample))


def difference_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Bounds how much better one method is than another, by bootstrap over the seeds of both.

    Args:
        first: One finite number per seed, at least two.
        second: Likewise of the other method.

    Returns:
        The 95 % interval of mean(first) - mean(second).

    Raises:
        DataError: If a side has fewer than two values or one that is not finite.

    Example:
        >>> from gtp_experiments import difference_interval
        >>> difference_interval([3.0, 3.0], [1.0, 1.0])
        (2.0, 2.0)
    """
    samples = _checked(first, 2), _checked(second, 2)
    interval = stats.bootstrap(
        samples,
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def mean_interval(values: npt.ArrayLike) -> tuple[float, float]:
    """Bounds a mean over seeds and episodes, by bootstrap over seeds and, within them, episodes.

    Args:
        values: Finite numbers, shape (seeds, episodes).

    Returns:
        The 95 % interval.

    Raises:
        DataError: If there is no value, one that is not finite, or another rank.

    Example:
        >>> from gtp_experiments import mean_interval
        >>> mean_interval([[1.0, 1.0], [1.0, 1.0]])
        (1.0, 1.0)
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 2 or not sample.size or not np.isfinite(sample).all():
        raise DataError(
            f"`values` is unusable: got shape {sample.shape}, expected finite numbers of shape "
            "(seeds, episodes)."
        )
    rng = np.random.default_rng(0)
    seeds, episodes = sample.shape
    pick = rng.integers(seeds, size=(RESAMPLES, seeds, 1))
    means = sample[pick, rng.integers(episodes, size=(RESAMPLES, seeds, episodes))].mean((1, 2))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _checked(values: Sequence[float], least: int = 1) -> npt.NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) < least or not np.isfinite(sample).all():
        raise DataError(
            f"`values` is unusable: got {values!r}, expected at least {least} finite numbers."
        )
    return sample
