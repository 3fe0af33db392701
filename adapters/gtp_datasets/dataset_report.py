"""What is in a dataset, as numbers and as a page of text."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gtp_policy import OfflineDataset

_CHUNK = 256  # rows of observations at a time: images become numbers of four bytes each


@dataclass(frozen=True)
class Summary:
    """Distribution of one number per episode.

    Args:
        mean: Arithmetic mean.
        std: Population standard deviation.
        min: Smallest.
        q25: Lower quartile.
        median: Median.
        q75: Upper quartile.
        max: Largest.

    Example:
        >>> import numpy as np
        >>> from gtp_datasets import Summary
        >>> Summary.of(np.array([1.0, 3.0])).mean
        2.0
    """

    mean: float
    std: float
    min: float
    q25: float
    median: float
    q75: float
    max: float

    @classmethod
    def of(cls, values: npt.NDArray[np.float64]) -> "Summary":
        """Summarises a vector.

        Args:
            values: At least one number.

        Returns:
            Its summary.
        """
        quantiles = np.quantile(values, (0.0, 0.25, 0.5, 0.75, 1.0))
        return cls(float(values.mean()), float(values.std()), *(float(q) for q in quantiles))


@dataclass(frozen=True)
class DatasetReport:
    """What `report` found; ``str()`` lays it out as text.

    Args:
        source: Where the data comes from.
        obs_keys: Keys of a Dict observation in the order they were flattened.
        gamma: Discount factor of the dataset.
        transitions: N.
        episodes: Episodes, an unfinished last one included.
        terminated: Episodes that ended by themselves, or in which a log went on behind a row that
            is ``terminated``.
        truncated: The others, which were cut.
        returns: Undiscounted sums of rewards by episode; None without rewards.
        lengths: Transitions by episode.
        reward_histogram: (from, to, transitions) by bin; from = to for single values; empty without
            rewards.
        action_low: Smallest action by dimension, in the units of the Box, (A,).
        action_high: Largest action by dimension, in the units of the Box, (A,).
        action_at_bounds: Share of actions on a bound by dimension, 0 to 1, (A,).
        obs_low: Smallest observation by dimension, (O,).
        obs_high: Largest observation by dimension, (O,).
        warnings: What deserves a look before training.

    Example:
        >>> from gtp_datasets import report
        >>> from gtp_policy import OfflineDataset
        >>> dataset = OfflineDataset.from_arrays(
        ...     obs=[[0.0], [1.0]], action=[[0.5], [1.0]], reward=[0.0, 1.0],
        ...     terminated=[0, 1], truncated=[0, 0], low=[-1.0], high=[1.0])
        >>> report(dataset).action_at_bounds
        (0.5,)
    """

    source: str
    obs_keys: tuple[str, ...]
    gamma: float
    transitions: int
    episodes: int
    terminated: int
    truncated: int
    returns: Summary | None
    lengths: Summary
    reward_histogram: tuple[tuple[float, float, int], ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_at_bounds: tuple[float, ...]
    obs_low: tuple[float, ...]
    obs_high: tuple[float, ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        """Lays the report out as a page of text."""
        heads = ("mean", "std", "min", "25 %", "median", "75 %", "max")
        lines = [
            f"source       {self.source}",
            f"size         {self.transitions} transitions in {self.episodes} episodes: "
            f"{self.terminated} terminated, {self.truncated} truncated; gamma {self.gamma:g}",
            " " * 13 + "".join(f"{head:>10}" for head in heads),
        ]
        for name, summary in (("return", self.returns), ("length", self.lengths)):
            if summary is None:
                continue
            values = (getattr(summary, field) for field in Summary.__dataclass_fields__)
            lines.append(f"{name:13}" + "".join(f"{value:10.4g}" for value in values))
        none = "" if self.reward_histogram else "       no rewards: clone without a critic"
        lines.append(f"reward{none}")
        most = max((count for _, _, count in self.reward_histogram), default=0)
        for low, high, count in self.reward_histogram:
            label = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
            share = 100 * count / self.transitions
            lines.append(f"  {label:>22} {share:6.2f} % {'#' * round(40 * count / most)}".rstrip())
        lines.append("action              low      high  at a bound")
        for i, (low, high, share) in enumerate(
            zip(self.action_low, self.action_high, self.action_at_bounds, strict=True)
        ):
            lines.append(f"  {i:3}      {low:12.4g}{high:10.4g}{100 * share:10.2f} %")
        keys = f" ({', '.join(self.obs_keys)})" if self.obs_keys else ""
        widest = int(np.argmax(np.subtract(self.obs_high, self.obs_low)))
        lines.append(
            f"observation  {len(self.obs_low)} dimensions{keys}, {min(self.obs_low):.4g} to "
            f"{max(self.obs_high):.4g}; widest: dimension {widest}, {self.obs_low[widest]:.4g} to "
            f"{self.obs_high[widest]:.4g}"
        )
        lines += [f"warning      {text}" for text in self.warnings]
        return "\n".join(lines)


def report(dataset: OfflineDataset) -> DatasetReport:
    """Describes a dataset: episodes, returns, rewards, ranges, and what deserves a look.

    Returns are sums over the transitions that the dataset holds: where a loader had to leave out
    the last transition of a truncated episode, its reward is not in them.

    Args:
        dataset: Any dataset.

    Returns:
        The report; print it.

    Raises:
        DataError: If rewards are sums of several steps, or actions are chunks.

    Example:
        >>> from gtp_datasets import report
        >>> from gtp_policy import OfflineDataset
        >>> dataset = OfflineDataset.from_arrays(
        ...     obs=[[0.0], [1.0], [2.0]], action=[[0.5], [1.0], [0.0]], reward=[0.0, 0.0, 1.0],
        ...     terminated=[0, 0, 1], truncated=[0, 0, 0], low=[-1.0], high=[1.0])
        >>> print(report(dataset))
        source       arrays
        size         3 transitions in 1 episodes: 1 terminated, 0 truncated; gamma 0.99
                           mean       std       min      25 %    median      75 %       max
        return                1         0         1         1         1         1         1
        length                3         0         3         3         3         3         3
        reward
                               0  66.67 % ########################################
                               1  33.33 % ####################
        action              low      high  at a bound
            0                 0         1     33.33 %
        observation  1 dimensions, 0 to 2; widest: dimension 0, 0 to 2
    """
    dataset.check_one_step("report")
    _, action, *_ = dataset.stored()
    reward = dataset.rewards.cpu().numpy().astype(np.float64)
    last = np.flatnonzero(dataset.ends)
    starts = np.concatenate(([0], last[:-1] + 1))
    ended = int(np.logical_or.reduceat(dataset.terminated, starts).sum())
    lengths = np.diff(np.append(starts, len(reward))).astype(np.float64)
    low, high = (
        dataset.action_scaler.to_box(bound.cpu().numpy())
        for bound in (action.amin(0).double(), action.amax(0).double())
    )
    at_bounds = (action.abs() >= 1 - 1e-6).double().mean(0).cpu().numpy()
    obs_low, obs_high = (bound.cpu().numpy() for bound in _extremes(dataset))
    return DatasetReport(
        source=dataset.source,
        obs_keys=dataset.obs_keys,
        gamma=dataset.gamma,
        transitions=len(dataset),
        episodes=len(last),
        terminated=ended,
        truncated=len(last) - ended,
        returns=Summary.of(np.add.reduceat(reward, starts)) if dataset.has_rewards else None,
        lengths=Summary.of(lengths),
        reward_histogram=_histogram(reward) if dataset.has_rewards else (),
        action_low=tuple(low.tolist()),
        action_high=tuple(high.tolist()),
        action_at_bounds=tuple(at_bounds.tolist()),
        obs_low=tuple(obs_low.tolist()),
        obs_high=tuple(obs_high.tolist()),
        warnings=tuple(_warnings(dataset, action, reward, lengths, obs_low, obs_high, at_bounds)),
    )


def _extremes(dataset: OfflineDataset) -> tuple[Tensor, Tensor]:
    """Returns the smallest and the largest observation by dimension."""
    starts = range(0, len(dataset), _CHUNK)
    bounds = [torch.aminmax(dataset.rows(i, i + _CHUNK).obs, dim=0) for i in starts]
    return torch.stack([b.min for b in bounds]).amin(0), torch.stack([b.max for b in bounds]).amax(
        0
    )


def _histogram(reward: npt.NDArray[np.float64]) -> tuple[tuple[float, float, int], ...]:
    values, counts = np.unique(reward, return_counts=True)
    if len(values) <= 8:
        return tuple((float(v), float(v), int(c)) for v, c in zip(values, counts, strict=True))
    counts, edges = np.histogram(reward, bins=10)
    return tuple(
        (float(a), float(b), int(c)) for a, b, c in zip(edges, edges[1:], counts, strict=False)
    )


def _warnings(
    dataset: OfflineDataset,
    action: Tensor,
    reward: npt.NDArray[np.float64],
    lengths: npt.NDArray[np.float64],
    obs_low: npt.NDArray[np.float32],
    obs_high: npt.NDArray[np.float32],
    at_bounds: npt.NDArray[np.float64],
) -> list[str]:
    found = []
    if reward.min() == reward.max():
        found.append(f"Every reward is {reward[0]:g}: good and bad actions look alike.")
    if not dataset.terminated.any():
        found.append("No episode terminates: right for an endless task, else check the flags.")
    if (one := int((lengths == 1).sum())) and len(lengths) > 1:
        found.append(f"{one} of {len(lengths)} episodes have a single transition.")
    spread = (action.amax(0) - action.amin(0)).cpu().numpy() / 2  # share of [-1, 1]
    for where, what in (
        (obs_low == obs_high, "Observation dimensions {} never change."),
        (spread == 0, "Action dimensions {} never change."),
        ((spread > 0) & (spread < 0.1), "Action dimensions {} use under 10 % of their range."),
        (at_bounds > 0.5, "Action dimensions {} are at a bound in over half of the rows."),
    ):
        if where.any():
            found.append(what.format(_indices(where)))
    return found


def _indices(where: npt.NDArray[np.bool_]) -> str:
    index = np.flatnonzero(where)
    return ", ".join(map(str, index[:8])) + (
        f" and {len(index) - 8} more" if index[8:].size else ""
    )
