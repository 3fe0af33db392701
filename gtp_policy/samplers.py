r"""Samplers: how K steps lead from noise to an action."""

import itertools
import math
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from gtp_policy._config import Config, Float
from gtp_policy.functional import flow_map, sample_flow, signal
from gtp_policy.times import Path

# Called with what stands in for the observation, x, t and s, the last two of shape (B,).
Jump = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class JumpSampler(Config):
    r"""K jumps of the flow map; with gamma > 0 each falls short of its target by some noise.

    .. math:: x_{i+1} = \Phi(x_i, t_i, \sqrt{1 - \gamma^2}\, t_{i+1}) + \gamma\, t_{i+1} z_i

    so that :math:`x_{i+1}` has noise of standard deviation :math:`t_{i+1}` again. gamma = 0 is
    deterministic given the first noise; gamma = 1 jumps to time 0 and starts anew, which is the
    multistep sampler of consistency models. On the linear path jump and noise are scaled so that
    the same holds for :math:`t / (1 - t)`. A stochastic sampler takes K noises instead of one.

    References:
        | Consistency Trajectory Models (Kim et al., 2023), Algorithm 3
        | https://arxiv.org/abs/2310.02279

    Example:
        >>> from gtp_policy import FlowMapActorConfig
        >>> from gtp_policy.samplers import JumpSampler
        >>> FlowMapActorConfig(sampler=JumpSampler(gamma=0.3)).sampler.noises(5)
        5
    """

    kind: Literal["jump"] = Field(default="jump", description="Discriminator of the union.")
    gamma: Float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of each jump's noise that is drawn anew; 0: none.",
    )

    def noises(self, steps: int) -> int:
        """Returns how many noises an action takes.

        Args:
            steps: K.

        Returns:
            1, or K for a stochastic sampler.
        """
        return steps if self.gamma else 1

    def follow(
        self, jump: Jump, endpoint: Jump, context: Tensor, noise: Tensor, grid: Tensor, path: Path
    ) -> Tensor:
        """Leads noise to actions.

        Args:
            jump: The flow map.
            endpoint: Its endpoint map; not used.
            context: What both take instead of the observation, shape (B, ...).
            noise: Standard normal, shape (B, n A) for n noises.
            grid: Descending times, shape (K + 1,), the last of them 0.
            path: The path that the times belong to.

        Returns:
            Actions, not clipped, shape (B, A).
        """
        steps = len(grid) - 1
        if not self.gamma:
            return sample_flow(jump, context, grid[0] * noise, grid)[-1]
        rows = noise.shape[0]  # not len(): to a tracer that is one number for ever
        first, *more = noise.chunk(steps, -1)
        x, keep = grid[0] * first, math.sqrt(1 - self.gamma**2)
        for t, s, z in zip(grid[:-2], grid[1:-1], more, strict=True):
            alpha = signal(s, path)
            # The time at which noise over signal is `keep` times that at s.
            short = keep * s if path == "ve" else keep * s / (alpha + keep * s)
            x = jump(context, x, t.expand(rows), short.expand(rows))
            x = alpha / signal(short, path) * x + self.gamma * s * z
        return jump(context, x, grid[-2].expand(rows), grid[-1].expand(rows))


class OdeSampler(Config):
    r"""K steps of a solver along the field :math:`f = (x - \varphi(x, t, t)) / t`.

    For networks that were trained without a teacher (`NoTeacher`), and to compare a flow map with
    the field it came from. Euler's step is that of DDIM; Heun's takes two network passes, except
    for the last step, which is Euler's in either.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
        | Algorithm 1, https://arxiv.org/abs/2206.00364

    Example:
        >>> from gtp_policy import FlowMapActorConfig
        >>> from gtp_policy.samplers import OdeSampler
        >>> FlowMapActorConfig(sampler=OdeSampler(method="euler"), steps=10).sampler.noises(10)
        1
    """

    kind: Literal["ode"] = Field(default="ode", description="Discriminator of the union.")
    method: Literal["euler", "heun"] = Field(
        default="heun", description="Solver: of first order, or of second at two passes a step."
    )

    def noises(self, steps: int) -> int:
        """Returns how many noises an action takes.

        Args:
            steps: K.

        Returns:
            1.
        """
        return 1

    def follow(
        self, jump: Jump, endpoint: Jump, context: Tensor, noise: Tensor, grid: Tensor, path: Path
    ) -> Tensor:
        """Leads noise to actions.

        Args:
            jump: The flow map; not used.
            endpoint: Its endpoint map, called at s = t alone.
            context: What both take instead of the observation, shape (B, ...).
            noise: Standard normal, shape (B, A).
            grid: Descending times, shape (K + 1,), the last of them 0.
            path: The path that the times belong to; the field reads the same on each.

        Returns:
            Actions, not clipped, shape (B, A).
        """
        x = grid[0] * noise
        times = [node.expand(x.shape[0]) for node in grid]
        for number, (t, s) in enumerate(itertools.pairwise(times), 1):
            denoised = endpoint(context, x, t, t)
            ahead = flow_map(x, denoised, t, s)
            if self.method == "heun" and number < len(times) - 1:
                field = (x - denoised) / t[:, None]
                field_ahead = (ahead - endpoint(context, ahead, s, s)) / s[:, None]
                ahead = x + (s - t)[:, None] * (field + field_ahead) / 2
            x = ahead
        return x


Sampler = Annotated[JumpSampler | OdeSampler, Field(discriminator="kind")]
