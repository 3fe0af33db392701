"""Acting in chunks: per environment, the actions that are still to be played and what was seen.

A policy of chunks says h actions at once, and one of histories looks at m observations. What lies
between two calls of such a policy is one record of arrays, `ChunkState`, with a row per
environment. `ChunkPlayer.step` takes it and gives it back, so that hosts can carry it with their
hidden state; `ChunkPlayer.act` keeps it, for loops of your own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor

from gtp_policy._config import Config, Float, Int
from gtp_policy.errors import DataError, ShapeError
from gtp_policy.functional import check_actions, check_finite
from gtp_policy.spaces import real_array

Array = npt.NDArray[np.floating]
Plan = Callable[[Tensor], Tensor]
"""From observations with their history, (n, m O), to chunks of actions in [-1, 1], (n, h A)."""


class Playback(Config):
    r"""How chunks of h actions are played.

    By default a chunk is played to its end before the next one is computed: h steps of the
    environment cost one call of the networks. With ``every=k`` a new chunk comes every k steps and
    replaces what is left of the old one. With ``ensemble`` the chunks that speak of the present
    step are averaged, the oldest being number 0:

    .. math:: a = \sum_i w_i a_i \Big/ \sum_i w_i, \quad w_i = \exp(-ensemble \cdot i)

    An average of two good actions can be a bad one where the data go two ways; it suits policies
    that act alike from call to call, as ``deterministic=True`` has them.

    Raises:
        pydantic.ValidationError: If ``ensemble`` comes without ``every``: nothing would overlap.

    References:
        | Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware (Zhao et al., 2023),
        | section 4.2 (temporal ensemble), https://arxiv.org/abs/2304.13705

    Example:
        >>> from gtp_policy import GTPLearnerConfig
        >>> from gtp_policy.chunks import Playback
        >>> GTPLearnerConfig(playback=Playback(every=2, ensemble=0.1)).playback.every
        2
    """

    every: Int | None = Field(
        default=None,
        ge=1,
        description="k, steps until the policy acts again, at most h; None: h.",
    )
    ensemble: Float | None = Field(
        default=None,
        ge=0,
        description="Rate at which newer chunks weigh less in the average of those that overlap, "
        "0 for equal weights; None: the newest alone is played.",
    )

    @model_validator(mode="after")
    def _overlapping(self) -> Self:
        if self.ensemble is not None and self.every is None:
            raise ValueError("ensemble averages chunks that overlap: give every, smaller than h")
        return self

    def check(self, chunk: int) -> None:
        """Raises unless chunks of a length can be played so; of one step, all of it is ignored.

        Args:
            chunk: h.

        Raises:
            ValueError: If ``every`` is larger than h, or there is an average of nothing.
        """
        if chunk == 1 or self.every is None:
            return
        most = chunk if self.ensemble is None else chunk - 1
        if self.every > most:
            raise ValueError(
                f"playback.every is out of range: got {self.every}, expected at most {most} for "
                f"chunks of {chunk} steps"
            )


class ChunkState(NamedTuple):
    """What environments are in the middle of: row i of every array belongs to environment i.

    A row of zeros is an environment whose episode has not begun.

    Attributes:
        age: Steps that the episode has, int64, shape (B,).
        past: The m - 1 observations before the present one, shape (B, m - 1, O).
        plans: Chunks that may still speak, the newest first, shape (B, ceil(h / k), h, A).

    Example:
        >>> import torch
        >>> from gtp_policy.chunks import ChunkPlayer
        >>> player = ChunkPlayer(lambda obs: torch.zeros(len(obs), 4), chunk=2)
        >>> action, state = player.step(torch.zeros(3, 5))
        >>> state.age.tolist(), state.plans.shape
        ([1, 1, 1], (3, 1, 2, 2))
    """

    age: npt.NDArray[np.int64]
    past: Array
    plans: Array

    def to_rows(self) -> Array:
        """Returns all of it as one array, a row per environment: for hosts that carry one.

        Returns:
            Shape (B, W); `ChunkPlayer.from_rows` is the way back.
        """
        # Plans may be of half precision, which counts steps to 2,048.
        dtype = np.result_type(self.past, self.plans, np.float32)
        parts = [part.reshape(len(self.age), -1).astype(dtype) for part in self]
        return np.concatenate(parts, 1)


class ChunkPlayer:
    """Plays a policy of chunks and histories step by step, in any number of environments at once.

    In the first step of an episode the observation is repeated to make a history, as
    `OfflineDataset.with_history` does, and a chunk is computed. Environments need not be in step:
    the policy is called for those alone whose next chunk is due.

    Not offered is to let a new chunk go on from the part of the old one that is being played while
    the policy computes (real-time chunking). Overwriting that part with noisy copies of itself
    while the flow runs, as diffusion models paint into an image, needs many small steps from noise
    to action; a flow map takes few or one, and at its first step the copies are nothing but noise.

    Args:
        plan: The policy, called without gradient.
        chunk: h, steps of an action.
        history: m, observations that the policy looks at.
        playback: How often the policy acts, and what becomes of chunks that overlap.

    Attributes:
        state: Of `act`: what its environments are in the middle of, None before the first step.

    Raises:
        ValueError: If ``playback`` does not fit the chunk.

    Example:
        >>> import torch
        >>> from gtp_policy.chunks import ChunkPlayer
        >>> rows = []
        >>> def plan(obs):
        ...     rows.append(len(obs))
        ...     return torch.tensor([[0.1, 0.2, 0.3]]).expand(len(obs), 3)
        >>> player = ChunkPlayer(plan, chunk=3)
        >>> [round(player.act(torch.zeros(1, 2)).item(), 1) for _ in range(4)], rows
        ([0.1, 0.2, 0.3, 0.1], [1, 1])
    """

    def __init__(
        self, plan: Plan, *, chunk: int, history: int = 1, playback: Playback | None = None
    ) -> None:
        self.plan, self.chunk, self.history = plan, chunk, history
        self.playback = playback or Playback()
        self.playback.check(chunk)
        # Of single steps, every one is computed.
        self._every = min(self.playback.every or chunk, chunk)
        self.state: ChunkState | None = None

    def act(self, obs: Tensor | Array, episode_start: npt.ArrayLike | None = None) -> Tensor:
        """Plays a step and remembers it.

        Args:
            obs: One observation per environment, always in the same order, shape (B, O).
            episode_start: Which episodes begin with this observation, bool, shape (B,); what was
                still to be played there is forgotten. Default: none but the very first.

        Returns:
            Actions of one step in [-1, 1], shape (B, A).

        Raises:
            ShapeError: If the number of environments or of numbers changes.
        """
        action, self.state = self.step(obs, self.state, episode_start)
        return action

    def reset(self) -> None:
        """Forgets all environments: the next observations begin episodes."""
        self.state = None

    def step(
        self,
        obs: Tensor | Array,
        state: ChunkState | None = None,
        episode_start: npt.ArrayLike | None = None,
    ) -> tuple[Tensor, ChunkState]:
        """Plays a step and remembers nothing: the state goes in and comes out.

        Args:
            obs: One observation per environment, shape (B, O).
            state: What the step before returned, not changed; None if all episodes begin.
            episode_start: Which episodes begin, bool, shape (B,). Default: those of age 0.

        Returns:
            Actions of one step in [-1, 1], shape (B, A), and the state after it.

        Raises:
            ShapeError: If a shape is another one than before.
            DataError: If ``state`` is none of this player, or an observation is no array of real,
                finite numbers, or masked, or so large that the policy's actions are not finite.
        """
        # A copy: torch warns of arrays that must not be written to.
        like = obs if isinstance(obs, Tensor) else torch.from_numpy(real_array("obs", obs).copy())
        if like.is_complex():
            raise DataError(
                f"`obs` has the wrong dtype: got {like.dtype}, expected real numbers. Convert it "
                "first."
            )
        like = like if like.is_floating_point() else like.float()
        here = like.detach().cpu()
        here = here.float() if here.dtype == torch.bfloat16 else here  # which NumPy has not
        # Also those that no chunk is computed for: they become history, and are a fault anyway.
        check_finite("obs", here)
        seen: Array = here.numpy()
        if seen.ndim != 2 or not len(seen):
            raise ShapeError(
                f"`obs` has the wrong shape: got {seen.shape}, expected (B, O), B >= 1. Flatten "
                "each observation to one vector."
            )
        rows = len(seen)
        past, age, plans = self._unpacked(state, seen)
        if episode_start is not None:
            starts = np.asarray(episode_start, np.bool_)
            if starts.shape != (rows,):
                raise ShapeError(
                    f"`episode_start` has the wrong shape: got {starts.shape}, expected {(rows,)}."
                )
            age = np.where(starts, 0, age)
        past = np.where(age[:, None, None] == 0, seen[:, None], past)
        window = np.concatenate([past, seen[:, None]], 1)
        due = np.flatnonzero(age % self._every == 0)
        if len(due):
            new = self._asked(torch.from_numpy(window[due].reshape(len(due), -1)).to(like))
            if plans is None:
                plans = np.zeros((rows, -(-self.chunk // self._every), *new.shape[1:]), new.dtype)
            plans = plans.copy()
            plans[due] = np.concatenate([new[:, None], plans[due, :-1]], 1)
        assert plans is not None  # where there was none, every episode begins
        action = torch.from_numpy(self._spoken(plans, age)).to(like)
        return action, ChunkState(age + 1, window[:, 1:], plans)

    def from_rows(self, rows: npt.ArrayLike, obs_dim: int) -> ChunkState:
        """Returns what `ChunkState.to_rows` made an array of.

        Args:
            rows: Shape (B, W); a row of zeros is an episode that has not begun.
            obs_dim: O, of one observation.

        Returns:
            The state.

        Raises:
            ShapeError: If W is not that of this player.

        Example:
            >>> import numpy as np, torch
            >>> from gtp_policy.chunks import ChunkPlayer
            >>> player = ChunkPlayer(lambda obs: torch.zeros(len(obs), 4), chunk=2, history=3)
            >>> _, state = player.step(torch.zeros(1, 5))
            >>> again = player.from_rows(state.to_rows(), obs_dim=5)
            >>> all(np.array_equal(a, b) for a, b in zip(again, state))
            True
        """
        array = np.asarray(rows)
        behind, kept = 1 + (self.history - 1) * obs_dim, -(-self.chunk // self._every)
        if (
            array.ndim != 2
            or array.shape[1] <= behind
            or (array.shape[1] - behind) % (kept * self.chunk)
        ):
            raise ShapeError(
                f"`rows` have the wrong shape: got {array.shape}, expected (B, {behind} + "
                f"{kept * self.chunk} A)."
            )
        return ChunkState(
            array[:, 0].astype(np.int64),
            array[:, 1:behind].reshape(len(array), self.history - 1, obs_dim),
            array[:, behind:].reshape(len(array), kept, self.chunk, -1),
        )

    def _asked(self, obs: Tensor) -> Array:
        """Returns new chunks, (n, h, A)."""
        with torch.no_grad():
            planned = self.plan(obs)
        if planned.ndim != 2 or len(planned) != len(obs) or planned.shape[1] % self.chunk:
            raise ShapeError(
                f"The policy's chunks have the wrong shape: got {tuple(planned.shape)}, expected "
                f"({len(obs)}, {self.chunk} * A)."
            )
        planned = planned.to(obs).cpu()
        check_actions(planned)
        planned = planned.float() if planned.dtype == torch.bfloat16 else planned
        chunks: Array = planned.numpy().reshape(len(obs), self.chunk, -1)
        return chunks

    def _spoken(self, plans: Array, age: npt.NDArray[np.int64]) -> Array:
        """Returns the actions (B, A) of the present step."""
        row, now = np.arange(len(age)), age % self._every
        if self.playback.ensemble is None or self.chunk == 1:
            spoken: Array = plans[row, 0, now]
            return spoken
        # Where each chunk is by now, and whether it was computed in this episode.
        place = now[:, None] + self._every * np.arange(plans.shape[1])
        speaks = (place < self.chunk) & (place <= age[:, None])
        said = plans[row[:, None], np.arange(plans.shape[1]), place.clip(max=self.chunk - 1)]
        number = speaks.sum(1, keepdims=True) - 1 - np.arange(plans.shape[1])  # the oldest is 0
        weight = np.where(speaks, np.exp(-self.playback.ensemble * number.clip(min=0)), 0.0)
        weight = (weight / weight.sum(1, keepdims=True)).astype(plans.dtype)
        mean: Array = (weight[:, :, None] * said).sum(1)
        return mean

    def _unpacked(
        self, state: ChunkState | None, seen: Array
    ) -> tuple[Array, npt.NDArray[np.int64], Array | None]:
        rows, width = seen.shape
        shape = rows, self.history - 1, width
        if state is None:
            return np.zeros(shape, seen.dtype), np.zeros(rows, np.int64), None
        try:
            parts: list[npt.NDArray[Any]] = [np.asarray(part) for part in state]
            age, past, plans = parts
        except (TypeError, ValueError) as error:
            raise DataError(
                f"`state` is none of this policy: got {type(state).__name__}, expected the "
                "ChunkState that the step before returned, or None."
            ) from error
        kept = rows, -(-self.chunk // self._every), self.chunk
        if age.shape != (rows,) or past.shape != shape or plans.shape[:3] != kept:
            raise ShapeError(
                f"`state` does not fit: got one of shapes {age.shape}, {past.shape} and "
                f"{plans.shape}, expected {(rows,)}, {shape} and ({', '.join(map(str, kept))}, A). "
                "Begin anew with state=None where the number of environments changes."
            )
        return past, age.astype(np.int64), plans
