r"""Reward transforms: what is done to a dataset's rewards before training, as a config."""

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from torch import Tensor

from gtp_policy._config import Config, Float
from gtp_policy.errors import DataError


class LinearReward(Config):
    r"""Shifts and scales rewards by fixed numbers: :math:`(r - subtract) \cdot multiply`.

    The default changes nothing.

    Example:
        >>> import torch
        >>> from gtp_policy.rewards import LinearReward
        >>> antmaze = LinearReward(subtract=0.5, multiply=4.0)
        >>> antmaze.apply(torch.tensor([0.0, 1.0]), torch.tensor([False, True]).numpy())
        tensor([-2.,  2.])
    """

    kind: Literal["linear"] = Field(default="linear", description="Discriminator of the union.")
    subtract: Float = Field(default=0.0, description="Taken from every reward first.")
    multiply: Float = Field(default=1.0, gt=0, description="Factor after that.")

    def apply(self, reward: Tensor, ends: npt.NDArray[np.bool_]) -> Tensor:
        """Returns transformed rewards.

        Args:
            reward: Rewards in time order, shape (N,).
            ends: Whether an episode ends with the transition, shape (N,); not looked at.

        Returns:
            A new tensor, shape (N,).
        """
        return (reward - self.subtract) * self.multiply


class StandardizedReward(Config):
    """Gives the rewards of the dataset mean 0 and standard deviation 1.

    Example:
        >>> import numpy as np, torch
        >>> from gtp_policy.rewards import StandardizedReward
        >>> StandardizedReward().apply(torch.tensor([1.0, 3.0]), np.array([False, True]))
        tensor([-1.,  1.])
    """

    kind: Literal["standardize"] = Field(
        default="standardize", description="Discriminator of the union."
    )

    def apply(self, reward: Tensor, ends: npt.NDArray[np.bool_]) -> Tensor:
        """Returns transformed rewards.

        Args:
            reward: Rewards in time order, shape (N,).
            ends: Whether an episode ends with the transition, shape (N,); not looked at.

        Returns:
            A new tensor, shape (N,).

        Raises:
            DataError: If every reward is the same.
        """
        wide = reward.double()
        spread = float(wide.std(correction=0))
        return ((wide - wide.mean()) / _nonzero("reward", spread)).to(reward)


class ReturnRangeReward(Config):
    """Scales rewards so that the returns of the dataset's episodes span ``to``.

    The custom of implicit Q-learning (IQL) on locomotion, with ``to=1000``.

    References:
        | Offline Reinforcement Learning with Implicit Q-Learning (Kostrikov et al., 2021)
        | https://arxiv.org/abs/2110.06169

    Example:
        >>> import numpy as np, torch
        >>> from gtp_policy.rewards import ReturnRangeReward
        >>> ends = np.array([False, True, True])
        >>> ReturnRangeReward(to=10.0).apply(torch.tensor([1.0, 3.0, 2.0]), ends)
        tensor([ 5., 15., 10.])
    """

    kind: Literal["return_range"] = Field(
        default="return_range", description="Discriminator of the union."
    )
    to: Float = Field(default=1000.0, gt=0, description="Span from the worst to the best episode.")

    def apply(self, reward: Tensor, ends: npt.NDArray[np.bool_]) -> Tensor:
        """Returns transformed rewards.

        Args:
            reward: Rewards in time order, shape (N,).
            ends: Whether an episode ends with the transition, shape (N,). What follows the last
                end counts as an episode too.

        Returns:
            A new tensor, shape (N,).

        Raises:
            DataError: If every episode has the same return.
        """
        spread = float(np.ptp(episode_returns(reward, ends)))
        return (reward.double() * (self.to / _nonzero("return", spread))).to(reward)


RewardTransform = Annotated[
    LinearReward | StandardizedReward | ReturnRangeReward, Field(discriminator="kind")
]


def episode_numbers(ends: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Numbers the episodes of transitions in time order.

    Args:
        ends: Whether an episode ends with the transition, shape (N,). What follows the last end
            counts as an episode too.

    Returns:
        The number of each transition's episode, from 0 on, shape (N,).

    Example:
        >>> import numpy as np
        >>> from gtp_policy.rewards import episode_numbers
        >>> episode_numbers(np.array([False, True, True])).tolist()
        [0, 0, 1]
    """
    numbers: npt.NDArray[np.int64] = np.cumsum(np.concatenate([[False], ends[:-1]]))
    return numbers


def episode_returns(reward: Tensor, ends: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Sums the rewards of every episode.

    Args:
        reward: Rewards in time order, shape (N,).
        ends: Whether an episode ends with the transition, shape (N,); as for `episode_numbers`.

    Returns:
        One undiscounted return per episode, in time order.

    Example:
        >>> import numpy as np, torch
        >>> from gtp_policy.rewards import episode_returns
        >>> episode_returns(torch.tensor([1.0, 3.0, 2.0]), np.array([False, True, True])).tolist()
        [4.0, 2.0]
    """
    starts = np.flatnonzero(np.diff(episode_numbers(ends), prepend=-1))
    returns: npt.NDArray[np.float64] = np.add.reduceat(reward.double().cpu().numpy(), starts)
    return returns


def _nonzero(what: str, spread: float) -> float:
    if spread > 0:
        return spread
    raise DataError(
        f"The rewards have no spread: got the same {what} everywhere, expected differences to "
        "scale. Use a LinearReward."
    )
