"""The record that crosses the wall into the learner: one minibatch of transitions."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gtp_policy.errors import ShapeError
from gtp_policy.functional import Placed, check_like, check_shape


class Transitions(NamedTuple):
    r"""A minibatch: one device, one floating dtype, row i of every field is transition i.

    Attributes:
        obs: Observation, shape (B, O).
        action: Action in [-1, 1], shape (B, A).
        reward: Reward, shape (B,).
        next_obs: Next observation, shape (B, O).
        discount: :math:`\gamma (1 - \mathrm{terminated})`, shape (B,), of n steps
            :math:`\gamma^n` instead. A time limit that cut the episode (truncation) does not zero
            it.
        next_action: The data's action at the next observation, in [-1, 1], shape (B, A), where the
            critic's penalty needs it; see `OfflineDataset.with_next_actions`. Default: none.

    Example:
        >>> import torch
        >>> from gtp_policy import Transitions
        >>> batch = Transitions(torch.zeros(4, 3), torch.zeros(4, 2), torch.zeros(4),
        ...                     torch.zeros(4, 3), torch.full((4,), 0.99))
        >>> batch.check(obs_dim=3, action_dim=2).obs.shape
        torch.Size([4, 3])
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    discount: Tensor
    next_action: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Transitions":
        """Applies a function to every field that is there.

        Args:
            function: From a field to a field.

        Returns:
            A new record.

        Example:
            >>> import torch
            >>> from gtp_policy import Transitions
            >>> batch = Transitions(torch.zeros(4, 3), torch.zeros(4, 2), torch.zeros(4),
            ...                     torch.zeros(4, 3), torch.full((4,), 0.99))
            >>> batch.map(lambda field: field[:2]).obs.shape
            torch.Size([2, 3])
        """
        return Transitions(*(function(field) for field in self.present()))

    def present(self) -> list[Tensor]:
        """Returns the fields that are there, in order; `Transitions` takes them in this order.

        Returns:
            Five tensors, or six with ``next_action``.
        """
        return [field for field in self if field is not None]

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Transitions":
        """Moves or casts every field.

        Args:
            device: Target device; default unchanged.
            dtype: Target floating type; default unchanged.

        Returns:
            A new record.

        Example:
            >>> import torch
            >>> from gtp_policy import Transitions
            >>> batch = Transitions(*[torch.zeros(1, 1)] * 2, torch.zeros(1), torch.zeros(1, 1),
            ...                     torch.zeros(1))
            >>> batch.to(dtype=torch.float64).reward.dtype
            torch.float64
        """
        return self.map(lambda field: field.to(device=device, dtype=dtype))

    def check(self, obs_dim: int, action_dim: int, like: Placed | None = None) -> "Transitions":
        """Raises unless every field has the shape that the dimensions imply.

        Args:
            obs_dim: O.
            action_dim: A.
            like: What has the dtype and device that every field must have, such as a learner;
                default: not looked at.

        Returns:
            The record itself.

        Raises:
            ShapeError: If a field has another shape.
            DataError: If a field is no tensor, or one of another dtype or device than ``like``.

        Example:
            >>> import torch
            >>> from gtp_policy import Transitions
            >>> batch = Transitions(torch.zeros(4, 3), torch.zeros(4, 2), torch.zeros(4, 1),
            ...                     torch.zeros(4, 3), torch.zeros(4))
            >>> batch.check(3, 2)
            Traceback (most recent call last):
            ...
            gtp_policy.errors.ShapeError: `reward` has the wrong shape: got (4, 1), expected (4,).
        """
        if like is not None:
            for name, value in self._asdict().items():
                if name != "next_action" or value is not None:
                    check_like(name, value, like)
        if not self.obs.ndim:
            raise ShapeError(f"`obs` has the wrong shape: got (), expected (B, {obs_dim}).")
        batch = self.obs.shape[0]
        if not batch:
            raise ShapeError("The batch is empty: got 0 transitions, expected at least 1.")
        check_shape("obs", self.obs, (batch, obs_dim))
        check_shape("action", self.action, (batch, action_dim))
        check_shape("reward", self.reward, (batch,))
        check_shape("next_obs", self.next_obs, (batch, obs_dim))
        check_shape("discount", self.discount, (batch,))
        if self.next_action is not None:
            check_shape("next_action", self.next_action, (batch, action_dim))
        return self


def unpack(rows: Tensor, obs_dim: int, action_dim: int) -> Transitions:
    """Returns a dataset's rows, shape (..., W), as transitions, without a copy."""
    of_reward = obs_dim + action_dim
    of_next_action = of_reward + 2 + obs_dim
    return Transitions(
        obs=rows[..., :obs_dim],
        action=rows[..., obs_dim:of_reward],
        reward=rows[..., of_reward],
        discount=rows[..., of_reward + 1],
        next_obs=rows[..., of_reward + 2 : of_next_action],
        next_action=rows[..., of_next_action:] if rows.shape[-1] > of_next_action else None,
    )
