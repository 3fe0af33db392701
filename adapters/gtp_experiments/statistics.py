"""Statistics over a few seeds, of one task or of several: means, IQM and bootstrap intervals."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from gtp_policy.errors import DataError

RESAMPLES = 10_000
Array = npt.NDArray[np.float64]


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


class Estimate(NamedTuple):
    """A figure over tasks and seeds, with its 95 % interval.

    Attributes:
        value: The figure.
        low: Lower end of the stratified bootstrap interval.
        high: Upper end.

    Example:
        >>> from gtp_experiments import Estimate
        >>> Estimate(0.5, 0.25, 0.75).value
        0.5
    """

    value: float
    low: float
    high: float


Scores = Mapping[str, Sequence[float]]
"""Scores of one method by task: one finite number per seed, at least two of them."""


def interquartile_mean(scores: Scores) -> Estimate:
    """Summarises a method over tasks: the mean of the middle half of all its runs.

    The interval is the stratified percentile bootstrap: seeds are drawn anew within each task, the
    tasks stay. Every run counts once, so that a task with more seeds weighs more.

    Args:
        scores: Scores by task, all of them on one scale.

    Returns:
        The interquartile mean and its 95 % interval.

    Raises:
        DataError: If there is no task, or one with fewer than two seeds or a value that is not
            finite.

    References:
        | Deep Reinforcement Learning at the Edge of the Statistical Precipice (Agarwal et al.,
        | 2021), https://arxiv.org/abs/2108.13264

    Example:
        >>> from gtp_experiments import interquartile_mean
        >>> interquartile_mean({"hopper": [50.0, 50.0], "scene": [50.0, 50.0]})
        Estimate(value=50.0, low=50.0, high=50.0)
    """

    def figure(*samples: Array, axis: int = -1) -> Array:
        mean: Array = stats.trim_mean(np.concatenate(samples, axis), 0.25, axis=axis)
        return mean

    return _estimate(figure, _by_task(scores))


def probability_of_improvement(first: Scores, second: Scores) -> Estimate:
    r"""Tells how likely a run of one method is better than a run of another on the same task.

    .. math:: \frac{1}{T} \sum_{t=1}^T P(X_t > Y_t) + \tfrac12 P(X_t = Y_t)

    The interval is the stratified percentile bootstrap over the seeds of both, as for
    `interquartile_mean`. Each task counts once.

    Args:
        first: Scores by task of one method, X.
        second: Scores of the other on the same tasks, Y; the numbers of seeds may differ.

    Returns:
        The probability, from 0 to 1, and its 95 % interval.

    Raises:
        DataError: If the tasks differ, there is none, or one has fewer than two seeds or a value
            that is not finite.

    References:
        | Deep Reinforcement Learning at the Edge of the Statistical Precipice (Agarwal et al.,
        | 2021), https://arxiv.org/abs/2108.13264

    Example:
        >>> from gtp_experiments import probability_of_improvement
        >>> probability_of_improvement({"hopper": [2.0, 3.0]}, {"hopper": [0.0, 1.0]}).value
        1.0
    """
    if first.keys() != second.keys():
        raise DataError(
            f"The tasks differ: got {sorted(first)} and {sorted(second)}, expected the same. "
            "Compare on the tasks that both methods have."
        )
    samples = [*_by_task(first), *_by_task({task: second[task] for task in first})]
    count = len(first)

    def figure(*drawn: Array, axis: int = -1) -> Array:
        pairs = zip(drawn[:count], drawn[count:], strict=True)
        return np.mean(
            [_win_share(np.moveaxis(x, axis, -1), np.moveaxis(y, axis, -1)) for x, y in pairs],
            axis=0,
        )

    return _estimate(figure, samples)


def _win_share(x: Array, y: Array) -> Array:
    """Returns the share of pairs in which x (..., n) is larger than y (..., m), ties as halves."""
    x, y = x[..., :, None], y[..., None, :]
    share: Array = ((x > y) + 0.5 * (x == y)).mean((-2, -1))
    return share


def _estimate(figure: Callable[..., Array], samples: list[Array]) -> Estimate:
    interval = stats.bootstrap(
        samples,
        figure,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(float(figure(*samples)), float(interval.low), float(interval.high))


def _by_task(scores: Scores) -> list[Array]:
    if not scores:
        raise DataError("`scores` is empty: got no task, expected at least one.")
    return [_checked(values, 2) for values in scores.values()]


def _checked(values: Sequence[float], least: int = 1) -> npt.NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) < least or not np.isfinite(sample).all():
        raise DataError(
            f"`values` is unusable: got {values!r}, expected at least {least} finite numbers."
        )
    return sample
