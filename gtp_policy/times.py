r"""Time: grids, the curriculum, and the draw of :math:`t > u \ge s \ge 0`.

============ ==================================================================================
symbol       meaning
============ ==================================================================================
:math:`t`    start time of a jump; the standard deviation of the noise, in units of the action
:math:`u`    intermediate time, the grid neighbour below :math:`t` unless configured otherwise
:math:`s`    target time of a jump, down to exactly 0
:math:`T`    ``t_max``, where sampling starts
:math:`N`    number of grid intervals; the curriculum lets it grow over training
:math:`K`    number of jumps of the sampler, ``steps``
============ ==================================================================================

One grid serves both: training draws its times from ``schedule.grid(N)`` and the sampler jumps
along ``schedule.grid(K)``. The last node is exactly 0, so the sampler's last jump was trained.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gtp_policy._config import Config, Float, Int
from gtp_policy._contexts import constant
from gtp_policy._numbers import as_float

Path = Literal["ve", "linear"]


class KarrasTimes(Config):
    r"""Times spaced evenly in :math:`t^{1/\rho}`, the grid of EDM, with the last node at 0.

    .. math:: t_i = \left(T^{1/\rho} + \tfrac{i}{n}(t_{min}^{1/\rho} - T^{1/\rho})\right)^\rho,
        \quad i = 0..n-1, \qquad t_n = 0

    ``KarrasTimes(t_min=0.002, t_max=80.0)`` is the range of the paper's parents. Actions live in
    [-1, 1], so a far smaller ``t_max`` wastes less of the network on pure noise: on the four-mode
    bandit the shortest range gives the sharpest modes. The default is a compromise: sampling
    starts from the noise alone, which makes data of standard deviation sigma come out narrower by
    :math:`T / \sqrt{T^2 + \sigma^2}`, 0.995 at sigma = 0.5, and a little nearer to 0; unequal modes
    come out slightly less unequal. Raise ``t_max`` where that matters.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364, eq. 5

    Example:
        >>> from gtp_policy.times import KarrasTimes
        >>> KarrasTimes(t_min=0.002, t_max=80.0).grid(2)
        tensor([80.0000,  2.5152,  0.0000])
    """

    kind: Literal["karras"] = Field(default="karras", description="Discriminator of the union.")
    t_min: Float = Field(
        default=0.005,
        gt=0,
        description="Time that the grid's spacing would reach instead of 0.",
    )
    t_max: Float = Field(
        default=5.0, gt=0, description="T, the noise std at which sampling starts."
    )
    rho: Float = Field(
        default=7.0, ge=1, description="Larger values put more nodes at small times."
    )
    path: ClassVar[Path] = "ve"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.t_min < self.t_max:
            raise ValueError(f"t_min={self.t_min} must be smaller than t_max={self.t_max}")
        return self

    def grid(
        self, n: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Returns the grid with ``n`` intervals, built in float64 and cast once.

        Args:
            n: Number of intervals, at least 1.
            device: Where the result lives; default the CPU.
            dtype: Floating type of the result; default torch's default.

        Returns:
            Strictly descending times from exactly ``t_max`` to exactly 0, shape (n + 1,). The
            result is shared by all callers: do not write to it.

        Raises:
            ValueError: If ``n`` is smaller than 1.

        Example:
            >>> from gtp_policy.times import KarrasTimes
            >>> KarrasTimes(t_max=80.0).grid(1).tolist()
            [80.0, 0.0]
        """
        return _grid(self, n, str(device or "cpu"), dtype or torch.get_default_dtype())

    @property
    def floor(self) -> float:
        """A time below every positive node of every grid."""
        return self.t_min / 2

    def _node(self, fraction: Tensor) -> Tensor:
        start, end = math.pow(self.t_max, 1 / self.rho), math.pow(self.t_min, 1 / self.rho)
        return torch.pow(start + fraction * (end - start), self.rho)


class UniformTimes(Config):
    r"""Times spaced evenly: :math:`t_i = T (1 - i/n)`.

    Example:
        >>> from gtp_policy.times import UniformTimes
        >>> UniformTimes(t_max=2.0).grid(4)
        tensor([2.0000, 1.5000, 1.0000, 0.5000, 0.0000])
    """

    kind: Literal["uniform"] = Field(default="uniform", description="Discriminator of the union.")
    t_max: Float = Field(
        default=5.0, gt=0, description="T, the noise std at which sampling starts."
    )
    path: ClassVar[Path] = "ve"

    def grid(
        self, n: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Returns the grid with ``n`` intervals, built in float64 and cast once.

        Args:
            n: Number of intervals, at least 1.
            device: Where the result lives; default the CPU.
            dtype: Floating type of the result; default torch's default.

        Returns:
            Strictly descending times from exactly ``t_max`` to exactly 0, shape (n + 1,). The
            result is shared by all callers: do not write to it.

        Raises:
            ValueError: If ``n`` is smaller than 1.

        Example:
            >>> from gtp_policy.times import UniformTimes
            >>> UniformTimes(t_max=1.0).grid(2).tolist()
            [1.0, 0.5, 0.0]
        """
        return _grid(self, n, str(device or "cpu"), dtype or torch.get_default_dtype())

    @property
    def floor(self) -> float:
        """A time below every positive node of grids with up to 5000 intervals."""
        return self.t_max / 5000

    def _node(self, fraction: Tensor) -> Tensor:
        return self.t_max * (1 - fraction)


class LinearTimes(Config):
    r"""Times of the linear path of flow matching, spaced evenly from noise at 1 to data at 0.

    .. math:: x_t = (1 - t) a + t z, \quad t_i = (1 - i/n)^\rho

    The other schedules belong to the path :math:`x_t = a + t z`. Rescaling time and space turns one
    path into the other, :math:`\Phi_{lin}(y, a, b) = \Phi(y (1 + t), t, s) / (1 + s)` with
    :math:`t = a / (1 - a), s = b / (1 - b)`; the flow map in terms of its endpoint, the field
    :math:`(x - \varphi) / t` and both losses read the same on either. Sampling starts from noise
    alone, and that is exact here: at t = 1 nothing of the action is left.

    References:
        | Flow Matching for Generative Modeling (Lipman et al., 2022)
        | https://arxiv.org/abs/2210.02747

    Example:
        >>> from gtp_policy.times import LinearTimes
        >>> LinearTimes().grid(4)
        tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000])
    """

    before: ClassVar[Mapping[str, Any]] = {"rho": 1.0}

    kind: Literal["linear"] = Field(default="linear", description="Discriminator of the union.")
    rho: Float = Field(
        default=1.0,
        gt=0,
        le=8,
        description="Nodes are (1 - i/n)^rho: above 1 more of them lie near the action.",
    )
    path: ClassVar[Path] = "linear"

    @property
    def t_max(self) -> float:
        """T, where sampling starts: 1, noise alone."""
        return 1.0

    def grid(
        self, n: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Returns the grid with ``n`` intervals, built in float64 and cast once.

        Args:
            n: Number of intervals, at least 1.
            device: Where the result lives; default the CPU.
            dtype: Floating type of the result; default torch's default.

        Returns:
            Strictly descending times from exactly 1 to exactly 0, shape (n + 1,). The result is
            shared by all callers: do not write to it.

        Raises:
            ValueError: If ``n`` is smaller than 1.

        Example:
            >>> from gtp_policy.times import LinearTimes
            >>> LinearTimes().grid(1).tolist()
            [1.0, 0.0]
        """
        return _grid(self, n, str(device or "cpu"), dtype or torch.get_default_dtype())

    @property
    def floor(self) -> float:
        """A time below every positive node of grids with up to 5000 intervals at rho = 1."""
        floor: float = (1 / 5000) ** max(self.rho, 1.0)
        return floor

    def _node(self, fraction: Tensor) -> Tensor:
        return (1 - fraction) ** self.rho


AnyTimes = KarrasTimes | UniformTimes | LinearTimes
TimeSchedule = Annotated[AnyTimes, Field(discriminator="kind")]


@constant(maxsize=256)
def _grid(schedule: AnyTimes, n: int, device: str, dtype: torch.dtype) -> Tensor:
    if n < 1:
        raise ValueError(f"A time grid has too few intervals: got {n}, expected at least 1.")
    # From int64 arange: exact, whatever torch's default dtype.
    nodes = schedule._node(torch.arange(n + 1, dtype=torch.float64, device="cpu") / n)
    nodes[0], nodes[-1] = schedule.t_max, 0.0
    nodes = nodes.to(dtype)
    # A compiler reads no numbers; a config has looked at the grid of its own steps.
    tracing = torch.compiler.is_dynamo_compiling()
    if not tracing and any(t <= s for t, s in itertools.pairwise(nodes.tolist())):
        # A jump between equal times divides by their distance.
        raise ValueError(
            f"A time grid has equal neighbours: got {n} intervals of {schedule!r} in {dtype}, "
            "expected times that fall. Take fewer intervals or a wider range of times."
        )
    return nodes.to(device)


class UniformIndex(Config):
    r"""Draws the index of :math:`t` uniformly from the grid's nodes above 0.

    Example:
        >>> from gtp_policy import GTPLossConfig
        >>> from gtp_policy.times import UniformIndex
        >>> GTPLossConfig(t_law=UniformIndex(), u_rule="adjacent").t_law.kind
        'uniform'
    """

    kind: Literal["uniform"] = Field(default="uniform", description="Discriminator of the union.")


class LogNormalIndex(Config):
    r"""Draws the node of :math:`t` with the mass that :math:`\ln t \sim N(mean, std^2)` puts there.

    Node :math:`t_k` gets the mass between its geometric means with its neighbours, so the law does
    not change as the grid is refined.

    References:
        | Improved Techniques for Training Consistency Models (Song and Dhariwal, 2023)
        | https://arxiv.org/abs/2310.14189, eq. 10

    Example:
        >>> from gtp_policy import GTPLossConfig
        >>> from gtp_policy.times import LogNormalIndex
        >>> law = LogNormalIndex(mean=-1.1, std=2.0)
        >>> GTPLossConfig(t_law=law, u_rule="adjacent").t_law.std
        2.0
    """

    kind: Literal["lognormal"] = Field(
        default="lognormal", description="Discriminator of the union."
    )
    mean: Float = Field(default=-1.1, description="Mean of ln t.")
    std: Float = Field(default=2.0, gt=0, description="Standard deviation of ln t.")


class UniformPairs(Config):
    r"""Pairs of t and s off the grid: the larger and the smaller of two uniform draws.

    Uniform is the share of noise :math:`t / (\alpha_t + t)` with the path's signal
    :math:`\alpha_t`: t itself on the linear path, :math:`t / (1 + t)` on the other.

    References:
        | One Step Diffusion via Shortcut Models (Frans et al., 2024)
        | https://arxiv.org/abs/2410.12557

    Example:
        >>> import torch
        >>> from gtp_policy.times import LinearTimes, UniformPairs
        >>> t, s = UniformPairs().draw(LinearTimes(), 4, torch.Generator(), torch.float32)
        >>> bool((t > s).all())
        True
    """

    kind: Literal["uniform_pairs"] = Field(
        default="uniform_pairs", description="Discriminator of the union."
    )
    edge: Float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of draws at the pair of the one-step sampler, t = T and s = 0.",
    )

    def draw(
        self, schedule: "AnyTimes", batch: int, generator: torch.Generator, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Draws pairs.

        Args:
            schedule: The time range.
            batch: B.
            generator: Source of randomness; the result lives on its device.
            dtype: Floating type of the result.

        Returns:
            t and s, shape (B,) each, t > s >= 0.
        """
        return self.pairs(schedule, _three_uniforms(batch, generator), dtype)

    def pairs(
        self, schedule: "AnyTimes", draws: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Returns the pairs that uniform draws stand for.

        Args:
            schedule: The time range.
            draws: From [0, 1), shape (3, B).
            dtype: Floating type of the result.

        Returns:
            t and s, shape (B,) each, t > s >= 0.
        """
        first, second, edge = draws
        return _pairs(schedule, first, second, edge < self.edge, dtype)


class LogitNormalPairs(Config):
    r"""Pairs of t and s off the grid: two logit-normal draws, the larger and the smaller.

    .. math:: \mathrm{logit}\, \tau \sim N(\mu, \sigma^2), \quad \tau = t / (\alpha_t + t)

    of the share of noise, see `UniformPairs`; the first draw has the mean and standard deviation
    ``mean`` and ``std``, the second those with the prefix ``s_``.

    References:
        | Mean Flows for One-step Generative Modeling (Geng et al., 2025), table 1
        | https://arxiv.org/abs/2505.13447

    Example:
        >>> from gtp_policy import GTPLossConfig
        >>> from gtp_policy.times import LogitNormalPairs
        >>> law = LogitNormalPairs(mean=-0.4, std=1.0)
        >>> GTPLossConfig(t_law=law, u_rule="between").t_law.s_std
        1.0
    """

    kind: Literal["logitnormal_pairs"] = Field(
        default="logitnormal_pairs", description="Discriminator of the union."
    )
    mean: Float = Field(default=0.0, description="Mean of the first draw's logit.")
    std: Float = Field(default=1.0, gt=0, description="Its standard deviation.")
    s_mean: Float = Field(default=0.0, description="Mean of the second draw's logit.")
    s_std: Float = Field(default=1.0, gt=0, description="Its standard deviation.")
    edge: Float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of draws at the pair of the one-step sampler, t = T and s = 0.",
    )

    def draw(
        self, schedule: "AnyTimes", batch: int, generator: torch.Generator, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Draws pairs.

        Args:
            schedule: The time range.
            batch: B.
            generator: Source of randomness; the result lives on its device.
            dtype: Floating type of the result.

        Returns:
            t and s, shape (B,) each, t > s >= 0.
        """
        return self.pairs(schedule, _two_normals_and_a_uniform(batch, generator), dtype)

    def pairs(
        self, schedule: "AnyTimes", draws: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Returns the pairs that draws stand for.

        Args:
            schedule: The time range.
            draws: Two standard normal ones and one from [0, 1), shape (3, B).
            dtype: Floating type of the result.

        Returns:
            t and s, shape (B,) each, t > s >= 0.
        """
        first = torch.sigmoid(self.mean + self.std * draws[0])
        second = torch.sigmoid(self.s_mean + self.s_std * draws[1])
        return _pairs(schedule, first, second, draws[2] < self.edge, dtype)


TimeLaw = Annotated[
    UniformIndex | LogNormalIndex | UniformPairs | LogitNormalPairs, Field(discriminator="kind")
]
SRule = Literal["uniform", "zero", "equal_u", "dyadic"]
URule = Literal["adjacent", "midpoint", "between"]


def draw_shares(
    schedule: "AnyTimes", batch: int, *, generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    r"""Draws positive times whose share of noise is uniform, as `UniformPairs` does for pairs.

    .. math:: \tau = t / (\alpha_t + t), \quad t = \tau \ \text{(linear)}, \quad
        t = \tau / (1 - \tau) \ \text{(} x = a + t z \text{)}

    Args:
        schedule: The time range.
        batch: B.
        generator: Source of randomness; the result lives on its device.
        dtype: Floating type of the result.

    Returns:
        Times in [T / 5000, T], shape (B,).

    Example:
        >>> import torch
        >>> from gtp_policy.times import KarrasTimes, draw_shares
        >>> t = draw_shares(
        ...     KarrasTimes(t_max=5.0), 4, generator=torch.Generator(), dtype=torch.float32)
        >>> bool(((t > 0) & (t <= 5)).all())
        True
    """
    share = torch.rand(batch, generator=generator, device=generator.device, dtype=torch.float32)
    return times_at_shares(schedule, share, dtype)


def times_at_shares(schedule: "AnyTimes", share: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the times of `draw_shares` for given draws.

    Args:
        schedule: The time range.
        share: Draws from [0, 1), as a fraction of the largest share of noise there is.
        dtype: Floating type of the result.

    Returns:
        Times in [T / 5000, T], of the draws' shape.

    Example:
        >>> import torch
        >>> from gtp_policy.times import KarrasTimes, times_at_shares
        >>> times_at_shares(KarrasTimes(t_max=5.0), torch.tensor([0.6]), torch.float32)
        tensor([1.0000])
    """
    return _positive(_at_share(share, schedule), schedule).to(dtype)


def _positive(t: Tensor, schedule: "AnyTimes") -> Tensor:
    """Keeps times above 0, which flow maps start from and velocities are divided by."""
    return t.clamp_min(schedule.t_max / 5000)


def _at_share(share: Tensor, schedule: "AnyTimes") -> Tensor:
    """Returns times of [0, T] by their share of noise, as a fraction of the largest there is."""
    if schedule.path == "linear":
        return share
    largest = schedule.t_max / (1 + schedule.t_max)
    return (share * largest / (1 - share * largest)).clamp(max=schedule.t_max)


def _pairs(
    schedule: "AnyTimes", first: Tensor, second: Tensor, edge: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Orders two shares, puts some at the ends, and returns them as times t > s >= 0."""
    t = _at_share(torch.maximum(first, second), schedule).masked_fill(edge, schedule.t_max)
    s = _at_share(torch.minimum(first, second), schedule).masked_fill(edge, 0.0)
    t = _positive(t, schedule)
    return t.to(dtype), torch.minimum(s, t * (1 - 1e-3)).to(dtype)


class Times(NamedTuple):
    """A draw of times per transition, each of shape (B,), with ``t > u >= s >= 0``.

    Attributes:
        t: Start time.
        u: Intermediate time.
        s: Target time.

    Example:
        >>> import torch
        >>> from gtp_policy.times import Times
        >>> Times(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([0.0])).u
        tensor([1.])
    """

    t: Tensor
    u: Tensor
    s: Tensor


class Curriculum(Config):
    r"""Number of grid intervals as training proceeds: doubling from ``start`` to ``end``.

    .. math:: N(p) = \min(start \cdot 2^{\lfloor p (\log_2(end/start) + 1) \rfloor}, end)

    where :math:`p` is the fraction of training done. A coarse grid carries the data's signal to
    large times in few updates; a fine one removes the bias (the one-step sampler of Gaussian data
    has 0.75 of the true std on 10 intervals and 0.998 on 1280, with the paper's time range).

    References:
        | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al., 2025),
        | "dynamic timestep scheduling", https://arxiv.org/abs/2510.11499
        | Improved Techniques for Training Consistency Models (Song and Dhariwal, 2023), eq. 11

    Example:
        >>> from gtp_policy import Curriculum
        >>> [Curriculum(start=10, end=80).intervals(p) for p in (0.0, 0.3, 0.5, 0.75, 1.0)]
        [10, 20, 40, 80, 80]
    """

    start: Int = Field(default=10, ge=1, description="Intervals at the beginning of training.")
    end: Int = Field(default=1280, ge=1, le=2**20, description="Intervals at the end of training.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.start > self.end:
            raise ValueError(f"start={self.start} must not exceed end={self.end}")
        return self

    @property
    def stages(self) -> float:
        """Number of stages, log2(end / start) + 1."""
        return math.log2(self.end / self.start) + 1

    def intervals(self, progress: float) -> int:
        """Returns the number of grid intervals at a point of training.

        Args:
            progress: Fraction of training done, in [0, 1].

        Returns:
            An integer in [start, end].

        Raises:
            ValueError: If ``progress`` lies outside [0, 1].

        Example:
            >>> from gtp_policy import Curriculum
            >>> Curriculum(start=10, end=1280).intervals(0.0)
            10
        """
        share = as_float(progress)
        if share is None or not 0.0 <= share <= 1.0:
            raise ValueError(f"`progress` is out of range: got {progress}, expected 0 to 1.")
        return min(self.start << math.floor(share * self.stages), self.end)

    def every_interval(self) -> list[int]:
        """Returns every number of grid intervals that a run passes through.

        Returns:
            Integers from ``start`` to ``end``, ascending.

        Example:
            >>> from gtp_policy import Curriculum
            >>> Curriculum(start=10, end=60).every_interval()
            [10, 20, 40, 60]
        """
        found = [self.start]
        while found[-1] < self.end:
            found.append(min(2 * found[-1], self.end))
        return found

    def capped(self, total_updates: int, ema_rate: float) -> "Curriculum":
        r"""Returns the curriculum with ``end`` halved until its stages are long enough to learn.

        What is known at small times reaches large ones along the grid, one interval per round of
        the target network, so a stage needs a number of updates in proportion to
        :math:`N / ema\_rate`. Needed here: at least an eighth of it, since the network carries
        over what the coarser stages taught it.

        Deviation: the paper lets the grid grow to its end whatever the length of the run.

        Args:
            total_updates: Length of the run.
            ema_rate: Rate of the target network, in [0, 1].

        Returns:
            A curriculum with the same start, and ``end`` at least ``start``.

        Example:
            >>> from gtp_policy import Curriculum
            >>> Curriculum(start=10, end=1280).capped(20_000, ema_rate=0.005).end
            160
        """
        end = self.end
        while end > self.start:
            stage = total_updates / Curriculum(start=self.start, end=end).stages
            if stage * ema_rate >= end / 8:
                break
            end = max(end // 2, self.start)
        return self.replace(end=end)


def draw_times(
    schedule: TimeSchedule,
    intervals: int,
    batch: int,
    *,
    generator: torch.Generator,
    law: TimeLaw | None = None,
    max_gap: int = 1,
    s_rule: SRule = "uniform",
    u_rule: URule = "adjacent",
    inner: float = 0.5,
    dtype: torch.dtype | None = None,
) -> Times:
    r"""Draws :math:`t > u \ge s \ge 0` from the nodes of a grid, one triple per transition.

    With nodes numbered upwards from :math:`t_0 = 0` to :math:`t_N = T`: :math:`k` is drawn from
    1..N by ``law``, :math:`m` uniformly from 0..k-1, and :math:`t = t_k`, :math:`s = t_m`,
    :math:`u = t_{k-g}` with the gap :math:`g` uniform in 1..min(max_gap, k - m).

    A law of pairs, `UniformPairs` or `LogitNormalPairs`, draws t and s off the grid, and
    ``u_rule="between"`` puts u at :math:`s + inner\,(t - s)`; grid, gap and rule for s are then of
    no effect.

    Other rules for s: ``zero``, m = 0; ``equal_u``, s = u; ``dyadic``, :math:`m = k - 2^j` with j
    uniform in :math:`0..\lfloor\log_2 N\rfloor`, and k rounded up to a multiple of :math:`2^j`
    where there is one (the pairs that samplers with 1, 2, 4, ... jumps use). Another rule for u:
    ``midpoint``, the node halfway between t and s, or s itself if no node lies between.

    ``max_gap=1`` makes u the neighbour below t. This is not a detail: with u anywhere in [s, t) the
    loss has a fixed point far from the flow however long one trains (docs/explanation/deviations).

    Args:
        schedule: Where the grid's nodes lie.
        intervals: N, number of grid intervals, at least 1.
        batch: B, number of triples.
        generator: Source of randomness; the result lives on its device.
        law: How t is drawn; default uniform over the nodes above 0.
        max_gap: Largest distance from t down to u, in grid intervals, at least 1; for ``adjacent``.
        s_rule: How s is drawn below t.
        u_rule: How u is drawn between t and s; ``between`` for laws of pairs, and for them alone.
        inner: Where u lies between s (0) and t (1), for ``between``.
        dtype: Floating type of the result; default torch's default.

    Returns:
        Times ``t``, ``u``, ``s``, each of shape (B,).

    Raises:
        ValueError: If ``intervals`` or ``max_gap`` is smaller than 1, or law and rule do not belong
            together.

    References:
        | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al., 2025),
        | Algorithm 1, https://arxiv.org/abs/2510.11499

    Example:
        >>> import torch
        >>> from gtp_policy.times import UniformTimes, draw_times
        >>> times = draw_times(UniformTimes(t_max=4.0), 4, 3, generator=torch.Generator())
        >>> bool((times.t - times.u == 1).all() and (times.s <= times.u).all())
        True
    """
    draws = raw_draws(law or UniformIndex(), batch, generator)
    return times_of(
        draws,
        schedule,
        intervals,
        law=law,
        max_gap=max_gap,
        s_rule=s_rule,
        u_rule=u_rule,
        inner=inner,
        dtype=dtype,
    )


def raw_draws(law: TimeLaw, batch: int, generator: torch.Generator) -> Tensor:
    """Draws what `times_of` makes times of: numbers from [0, 1), or normal ones where a law says.

    Args:
        law: How t is drawn.
        batch: B.
        generator: Source of randomness; the result lives on its device.

    Returns:
        Shape (3, B); with `LogitNormalPairs` the first two rows are standard normal.

    Example:
        >>> import torch
        >>> from gtp_policy.times import UniformIndex, raw_draws
        >>> raw_draws(UniformIndex(), 4, torch.Generator()).shape
        torch.Size([3, 4])
    """
    if isinstance(law, LogitNormalPairs):
        return _two_normals_and_a_uniform(batch, generator)
    return _three_uniforms(batch, generator)


def times_of(
    draws: Tensor,
    schedule: TimeSchedule,
    intervals: int,
    *,
    law: TimeLaw | None = None,
    max_gap: int = 1,
    s_rule: SRule = "uniform",
    u_rule: URule = "adjacent",
    inner: float = 0.5,
    dtype: torch.dtype | None = None,
) -> Times:
    """Returns the times of `draw_times` for given draws.

    Args:
        draws: Of `raw_draws`, shape (3, B).
        schedule: As for `draw_times`, like all that follow.
        intervals: N.
        law: How t is drawn.
        max_gap: Largest distance from t down to u.
        s_rule: How s is drawn.
        u_rule: How u is drawn.
        inner: Where u lies between s and t.
        dtype: Floating type of the result.

    Returns:
        Times, each of shape (B,).

    Raises:
        ValueError: As `draw_times`.

    Example:
        >>> import torch
        >>> from gtp_policy.times import UniformTimes, times_of
        >>> times_of(torch.tensor([[0.6], [0.9], [0.0]]), UniformTimes(t_max=4.0), 4)
        Times(t=tensor([3.]), u=tensor([2.]), s=tensor([2.]))
    """
    device, law = draws.device, law or UniformIndex()
    _check(law, max_gap, u_rule)
    if isinstance(law, UniformPairs | LogitNormalPairs):
        t, s = law.pairs(schedule, draws, dtype or torch.get_default_dtype())
        return Times(t, s + inner * (t - s), s)
    nodes = schedule.grid(intervals, device=device, dtype=dtype)
    cdf = masses(schedule, intervals, law, str(device))
    t_draw, s_draw, gap_draw = draws
    # right=True: a draw equal to an edge belongs to the node above it, never to one without mass.
    k = torch.searchsorted(cdf, t_draw, right=True).clamp_(max=intervals - 1) + 1
    k, m = _PAIRS[s_rule](k, s_draw, intervals)
    gap = _GAPS[u_rule](k - m, gap_draw, max_gap)
    if s_rule == "equal_u":
        m = k - gap
    # The grid descends, so node number k stands at position N - k.
    return Times(nodes[intervals - k], nodes[intervals - k + gap], nodes[intervals - m])


def _check(law: TimeLaw, max_gap: int, u_rule: URule) -> None:
    if max_gap < 1:
        raise ValueError(f"`max_gap` is out of range: got {max_gap}, expected at least 1.")
    if isinstance(law, UniformPairs | LogitNormalPairs) != (u_rule == "between"):
        raise ValueError(
            f"Law of times and rule for u do not belong together: got {law.kind!r} and {u_rule!r}, "
            "expected 'between' with a law of pairs, and with no other."
        )


def _three_uniforms(batch: int, generator: torch.Generator) -> Tensor:
    return torch.rand((3, batch), generator=generator, device=generator.device, dtype=torch.float32)


def _two_normals_and_a_uniform(batch: int, generator: torch.Generator) -> Tensor:
    device = generator.device
    normal = torch.randn((2, batch), generator=generator, device=device, dtype=torch.float32)
    uniform = torch.rand((1, batch), generator=generator, device=device, dtype=torch.float32)
    return torch.cat([normal, uniform])


def _uniform_pair(k: Tensor, draw: Tensor, intervals: int) -> tuple[Tensor, Tensor]:
    return k, _uniform_below(draw, k)


def _pair_with_zero(k: Tensor, draw: Tensor, intervals: int) -> tuple[Tensor, Tensor]:
    return k, torch.zeros_like(k)


def _dyadic_pair(k: Tensor, draw: Tensor, intervals: int) -> tuple[Tensor, Tensor]:
    levels = torch.full_like(k, intervals.bit_length())
    width = torch.ones_like(k) << _uniform_below(draw, levels)
    k = torch.minimum((k + width - 1) // width, intervals // width) * width
    return k, k - width


_PAIRS: dict[SRule, Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]] = {
    "uniform": _uniform_pair,
    "zero": _pair_with_zero,
    "equal_u": _pair_with_zero,  # u may lie anywhere its own rule puts it, and s follows
    "dyadic": _dyadic_pair,
}


def _adjacent_gap(distance: Tensor, draw: Tensor, max_gap: int) -> Tensor:
    return 1 + _uniform_below(draw, distance.clamp(max=max_gap))


def _gap_to_midpoint(distance: Tensor, draw: Tensor, max_gap: int) -> Tensor:
    return (distance + 1) // 2


_GAPS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "adjacent": _adjacent_gap,
    "midpoint": _gap_to_midpoint,
}


def _uniform_below(draw: Tensor, bound: Tensor) -> Tensor:
    """Maps a draw from [0, 1) to 0..bound-1; float32 may round draw*bound up to bound itself."""
    return torch.minimum((draw * bound).long(), bound - 1)


@constant(maxsize=256)
def masses(
    schedule: AnyTimes, n: int, law: UniformIndex | LogNormalIndex, device: str = "cpu"
) -> Tensor:
    """Returns the cumulative mass that a law puts on the nodes of t.

    Args:
        schedule: Where the nodes lie.
        n: Number of grid intervals.
        law: How t is drawn.
        device: Where the result lives; it is shared by all callers.

    Returns:
        Of nodes 1..n, shape (n,); the last is 1.

    Example:
        >>> from gtp_policy.times import UniformIndex, UniformTimes, masses
        >>> masses(UniformTimes(), 4, UniformIndex())
        tensor([0.2500, 0.5000, 0.7500, 1.0000])
    """
    if isinstance(law, UniformIndex):
        mass = torch.ones(n, dtype=torch.float64, device="cpu")
    else:
        log_t = schedule.grid(n, dtype=torch.float64)[:-1].flip(0).log()
        middle = (log_t[1:] + log_t[:-1]) / 2
        inner = 0.5 * (1 + torch.erf((middle - law.mean) / (law.std * math.sqrt(2))))
        edges = torch.cat([inner.new_zeros(1), inner, inner.new_ones(1)])
        mass = edges.diff()
    return (mass.cumsum(0) / mass.sum()).to(device=device, dtype=torch.float32)
