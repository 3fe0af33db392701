"""The record that crosses the wall into the learner: one minibatch of transitions."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gtp_policy.errors import DataError, ShapeError
from gtp_policy.functional import Placed, check_like, check_shape

# Actions come from Boxes of other types: at the edge, a rounding error is not a bad action.
_ROUNDING = 1e-5
_RANGES = {
    "action": (-1.0, 1.0),
    "next_action": (-1.0, 1.0),
    "discount": (0.0, 1.0),
    "chunk_length": (1.0, math.inf),
}


class Transitions(NamedTuple):
    r"""A minibatch: one device, one floating dtype, row i of every field is transition i.

    Attributes:
        obs: Observation, shape (B, O).
        action: Action in [-1, 1], shape (B, A).
        reward: Reward, shape (B,). NaN throughout where the data has no rewards: what has no
            critic learns from it all the same.
        next_obs: Next observation, shape (B, O).
        discount: :math:`\gamma (1 - \mathrm{terminated})`, shape (B,), of n steps
            :math:`\gamma^n` instead. A time limit that cut the episode (truncation) does not zero
            it.
        next_action: The data's action at the next observation, in [-1, 1], shape (B, A), where the
            critic's penalty needs it; see `OfflineDataset.with_next_actions`. Default: none.
        chunk_length: How many steps of an action in chunks are the data's, at least 1, shape (B,);
            the rest is padding behind the end of the episode. Default: all of them. See
            `OfflineDataset.with_chunks`.

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
    chunk_length: Tensor | None = None

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
        return Transitions(*(None if field is None else function(field) for field in self))  # type: ignore[arg-type]

    def present(self) -> list[Tensor]:
        """Returns the fields that are there, in order.

        Returns:
            Five tensors, and up to two more where there are ``next_action`` and ``chunk_length``.
        """
        return [field for field in self if field is not None]

    def in_rows(self) -> list[Tensor]:
        """Returns the fields that are there in the order of a dataset's rows, which `unpack` reads.

        Returns:
            ``obs``, ``action``, ``reward``, ``discount``, ``next_obs``, and ``next_action`` or
            ``chunk_length``.
        """
        obs, action, reward, next_obs, discount, *rest = self.present()
        return [obs, action, reward, discount, next_obs, *rest]

    def action_mask(self, chunk: int) -> Tensor | None:
        """Returns which numbers of the actions are the data's: what the actor's loss counts.

        Args:
            chunk: h, steps of an action.

        Returns:
            1 for numbers of the data, 0 for padding, shape (B, A); None where all are the data's.

        Example:
            >>> import torch
            >>> from gtp_policy import Transitions
            >>> batch = Transitions(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2),
            ...                     torch.zeros(2, 3), torch.zeros(2),
            ...                     chunk_length=torch.tensor([1.0, 2.0]))
            >>> batch.action_mask(chunk=2)
            tensor([[1., 1., 0., 0.],
                    [1., 1., 1., 1.]])
        """
        if self.chunk_length is None:
            return None
        step = torch.arange(chunk, device=self.action.device)
        inside = (step < self.chunk_length.unsqueeze(-1)).to(self.action.dtype)
        return inside.repeat_interleave(self.action.shape[-1] // chunk, -1)

    def critic_mask(self, chunk: int) -> Tensor | None:
        """Returns which transitions say what their whole action is worth: what the critic learns.

        All of them but those of chunks that a cut left incomplete. Of a chunk in which the episode
        ends by itself nothing further is ever played, so that its return is known.

        Args:
            chunk: h, steps of an action.

        Returns:
            1 or 0 by transition, shape (B,); None where it is 1 for all.

        Example:
            >>> import torch
            >>> from gtp_policy import Transitions
            >>> batch = Transitions(torch.zeros(3, 3), torch.zeros(3, 4), torch.zeros(3),
            ...                     torch.zeros(3, 3), torch.tensor([0.9, 0.0, 0.8]),
            ...                     chunk_length=torch.tensor([1.0, 1.0, 2.0]))
            >>> batch.critic_mask(chunk=2)
            tensor([0., 1., 1.])
        """
        if self.chunk_length is None:
            return None
        known = (self.chunk_length >= chunk) | (self.discount == 0)
        return known.to(self.reward.dtype)

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

    def check(
        self,
        obs_dim: int,
        action_dim: int,
        like: Placed | None = None,
        *,
        next_action: bool = False,
        chunk: int = 1,
    ) -> "Transitions":
        """Raises unless every field has the shape that the dimensions imply.

        Args:
            obs_dim: O.
            action_dim: A.
            like: What has the dtype and device that every field must have, such as a learner;
                default: not looked at.
            next_action: Whether the data's next actions must be there, for a ``critic_penalty``.
            chunk: h, steps of an action.

        Returns:
            The record itself.

        Raises:
            ShapeError: If a field has another shape.
            DataError: If a field is no tensor, or one of another dtype or device than ``like``, or
                next actions are missing, or lengths of chunks are given where actions have one
                step.

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
                if value is not None or name not in ("next_action", "chunk_length"):
                    check_like(name, value, like)
        if next_action and self.next_action is None:
            raise DataError(
                "`next_action` is missing: got a minibatch without it, expected the data's next "
                "actions for critic_penalty. Take minibatches of dataset.with_next_actions()."
            )
        if self.chunk_length is not None and chunk == 1:
            raise DataError(
                "`chunk_length` is of no use: got a minibatch of chunks, expected actions of one "
                "step. Build the learner from the dataset, or give the actor's config its chunk."
            )
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
        if self.chunk_length is not None:
            check_shape("chunk_length", self.chunk_length, (batch,))
        return self

    def check_values(self, *, rewards: bool = True) -> "Transitions":
        """Raises unless every number is finite, and actions and discounts are within their ranges.

        On the CPU: elsewhere the host would have to wait for the device.

        Args:
            rewards: Whether there must be rewards, for a critic. Without, they may be missing.

        Returns:
            The record itself.

        Raises:
            DataError: If a value is NaN or infinite, rewards are missing, an action lies outside
                [-1, 1] by more than rounding, a discount outside [0, 1], or the length of a chunk
                is smaller than 1. The message names field and row.

        Example:
            >>> import torch
            >>> from gtp_policy import Transitions
            >>> batch = Transitions(torch.zeros(4, 3), torch.zeros(4, 2), torch.zeros(4),
            ...                     torch.zeros(4, 3), torch.full((4,), 1.5))
            >>> batch.check_values()
            Traceback (most recent call last):
            ...
            gtp_policy.errors.DataError: `discount` is out of range: got 1.5 at row 0, expected \
0.0 to 1.0.
        """
        if not self.obs.is_cpu:
            return self
        # One look at everything: a sum shows NaN and infinity, and so do both ends of a range.
        sums = [x.sum() for x in (self.obs, self.next_obs, self.reward)]
        length = 1.0 if self.chunk_length is None else float(self.chunk_length.min())
        bounded = [x for x in (self.discount, self.action, self.next_action) if x is not None]
        ends = [end for x in bounded for end in x.aminmax()]
        *total, earned = (looks := torch.stack(sums + ends).tolist())[:3]
        (least, most), *of_actions = zip(looks[3::2], looks[4::2], strict=True)
        missing = not rewards and math.isnan(earned) and bool(self.reward.isnan().all())
        edge = 1 + _ROUNDING
        ranges = 0 <= least <= most <= edge and 1 <= length < math.inf
        ranges = ranges and all(-edge <= low <= high <= edge for low, high in of_actions)
        if not (ranges and all(map(math.isfinite, total + [earned] * (not missing)))):
            self._raise_bad_value(missing)
        return self

    def _raise_bad_value(self, missing: bool) -> None:
        """Raises on the first bad value; a sum may be infinite though every term is finite."""
        if not missing and self.reward.isnan().all():
            raise missing_rewards("A critic", "got a minibatch in which each of them is NaN")
        for name, field in self._asdict().items():
            if field is None or (name == "reward" and missing):
                continue
            low, high = _RANGES.get(name, (-math.inf, math.inf))
            bad = ~field.isfinite() | (field < low - _ROUNDING) | (field > high + _ROUNDING)
            if name == "discount":  # 0 is exact: below it, a backup would change its sign
                bad |= field < 0
            if bad.any():
                place = tuple(int(i) for i in bad.nonzero()[0])
                value, where = float(field[place]), f"row {place[0]}"
                if len(place) > 1:
                    where += f", dimension {place[1]}"
                if not math.isfinite(value):
                    raise DataError(
                        f"`{name}` is not finite: got {value} at {where}, expected finite numbers. "
                        "Look at where the minibatch comes from."
                    )
                raise DataError(
                    f"`{name}` is out of range: got {value:g} at {where}, expected {low} to {high}."
                )


def missing_rewards(what: str, got: str, advice: str | None = None) -> DataError:
    """Returns the error of something that needs rewards and finds none.

    Args:
        what: What needs them, as the beginning of a sentence.
        got: What there is instead.
        advice: What to do; default: what helps a learner.
    """
    advice = advice or (
        "Clone without a critic, GTPConfig(critic=None); or load data with rewards, and go on from "
        "the clone with GTPLearner.from_actor."
    )
    return DataError(f"{what} needs rewards: {got}, expected one per transition. {advice}")


def unpack(rows: Tensor, obs_dim: int, action_dim: int, chunk: int = 1) -> Transitions:
    """Returns a dataset's rows, shape (..., W), as transitions, without a copy."""
    of_reward = obs_dim + action_dim
    of_next_action = of_reward + 2 + obs_dim
    length = None
    if chunk > 1:  # the last column
        rows, length = rows[..., :-1], rows[..., -1]
    return Transitions(
        obs=rows[..., :obs_dim],
        action=rows[..., obs_dim:of_reward],
        reward=rows[..., of_reward],
        discount=rows[..., of_reward + 1],
        next_obs=rows[..., of_reward + 2 : of_next_action],
        next_action=rows[..., of_next_action:] if rows.shape[-1] > of_next_action else None,
        chunk_length=length,
    )
