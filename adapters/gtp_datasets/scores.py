"""Normalised scores that never lose the source of their reference values."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from gtp_policy.dataset_builder import as_array
from gtp_policy.errors import DataError


@dataclass(frozen=True)
class ReferenceScores:
    """Returns of two reference policies, which stand for the scores 0 and 100.

    Args:
        min: Return that scores 0, usually a random policy's.
        max: Return that scores 100, usually an expert's.
        source: Where the two numbers come from.

    Raises:
        DataError: If they are no finite numbers with min < max, or the source is empty.

    Example:
        >>> from gtp_datasets import ReferenceScores
        >>> ReferenceScores(0.0, 1.0, "success rate").source
        'success rate'
    """

    min: float
    max: float
    source: str

    def __post_init__(self) -> None:
        numbers = [isinstance(x, int | float | np.number) for x in (self.min, self.max)]
        if not (all(numbers) and np.isfinite([self.min, self.max]).all() and self.min < self.max):
            raise DataError(
                f"Reference scores are unusable: got min={self.min!r}, max={self.max!r}, expected "
                "finite numbers, min < max."
            )
        if not self.source:
            raise DataError(
                f"Reference scores need a source: got {self.source!r}, expected where the numbers "
                "come from."
            )


@dataclass(frozen=True)
class NormalizedScore:
    """Scores of one or several returns, 0 to 100 between the reference policies.

    Args:
        values: One score per return.
        source: Where the reference values come from.

    Example:
        >>> from gtp_datasets import NormalizedScore
        >>> print(NormalizedScore((50.0, 100.0), "success rate"))
        75.0 +- 25.0 over 2 returns (reference: success rate)
    """

    values: tuple[float, ...]
    source: str

    @property
    def value(self) -> float:
        """Mean score."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """Population standard deviation of the scores."""
        return float(np.std(self.values))

    def __str__(self) -> str:
        """Shows the score, and always its source."""
        spread = (
            f" +- {self.std:.1f} over {len(self.values)} returns" if len(self.values) > 1 else ""
        )
        return f"{self.value:.1f}{spread} (reference: {self.source})"


def normalized_score(returns: npt.ArrayLike, reference: ReferenceScores) -> NormalizedScore:
    r"""Places returns on the scale from 0 (reference min) to 100 (reference max).

    .. math:: \text{score} = 100 \, \frac{R - R_{min}}{R_{max} - R_{min}}

    Scores of different sources do not belong in one column: Minari's sets are not D4RL's.

    Args:
        returns: Undiscounted sum of rewards of one episode, or of several, shape (E,).
        reference: The two reference returns, e.g. ``D4RL_REFERENCE["hopper"]``, or
            `minari_reference` of a dataset.

    Returns:
        The scores, with the source of the reference values.

    Raises:
        DataError: If there is no return, or one that is not finite.

    References:
        | D4RL: Datasets for Deep Data-Driven Reinforcement Learning (Fu et al., 2020), section 5
        | https://arxiv.org/abs/2004.07219

    Example:
        >>> from gtp_datasets import D4RL_REFERENCE, normalized_score
        >>> print(normalized_score(3234.3, D4RL_REFERENCE["hopper"]))
        100.0 (reference: D4RL hopper)
    """
    array = as_array("returns", returns).astype(np.float64)
    if array.ndim > 1 or not array.size or not np.isfinite(array).all():
        raise DataError(
            f"`returns` is unusable: got {returns!r}, expected one finite number or a vector of "
            "them."
        )
    span = reference.max - reference.min
    scores = 100 * (np.atleast_1d(array) - reference.min) / span
    return NormalizedScore(tuple(scores.tolist()), reference.source)


D4RL_REFERENCE: Mapping[str, ReferenceScores] = MappingProxyType(
    {
        task: ReferenceScores(low, high, f"D4RL {task}")
        for task, low, high in (
            ("halfcheetah", -280.178953, 12135.0),
            ("hopper", -20.272305, 3234.3),
            ("walker2d", 1.629008, 4592.3),
            ("ant", -325.6, 3879.7),
            ("antmaze", 0.0, 1.0),
            ("pen", 96.262799, 3076.8331),
            ("hammer", -274.856578, 12794.1342),
            ("door", -56.512833, 2880.5693),
            ("relocate", -6.425911, 4233.8777),
            ("kitchen", 0.0, 4.0),
            ("maze2d-umaze", 23.85, 161.86),
            ("maze2d-medium", 13.13, 277.39),
            ("maze2d-large", 6.7, 273.99),
        )
    }
)
"""D4RL's reference returns by task (Fu et al., 2020)."""
