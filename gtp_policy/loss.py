r"""The two losses of GTP: consistency along the trajectory, and the instantaneous flow."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from gtp_policy._config import AnyFloat, Bool, Config, Float, Int
from gtp_policy._random import generator_or_private
from gtp_policy.errors import ShapeError
from gtp_policy.functional import (
    FlowMap,
    check_kind,
    check_like,
    check_shape,
    frozen,
    perturb,
    precondition,
    unwrapped,
)
from gtp_policy.teachers import NoTeacher, SelfTeacher, SurrogateTeacher, Teacher
from gtp_policy.times import (
    Curriculum,
    LogitNormalPairs,
    SRule,
    TimeLaw,
    Times,
    TimeSchedule,
    UniformIndex,
    UniformPairs,
    URule,
    raw_draws,
    times_at_shares,
    times_of,
)

_InnerPoint = Annotated[AnyFloat, Field(ge=0.001, le=0.999)]


class AlphaSchedule(Config):
    r"""Moves u from s to t as training proceeds: from flow matching to Mean Flows.

    .. math:: u = t - \alpha (t - s), \quad
        \alpha = \frac{1}{1 + e^{\gamma (p - 1/2)}} \text{ of progress } p

    and :math:`\alpha = 1` while it is above 1 - floor, ``floor`` once it is below. With the
    surrogate teacher and residuals of velocities, :math:`\alpha = 1` is flow matching and the limit
    0 the identity of Mean Flows.

    References:
        | AlphaFlow: Understanding and Improving MeanFlow Models (Zhang et al., 2025), eq. 8 and 13
        | https://arxiv.org/abs/2510.20771

    Example:
        >>> from gtp_policy.loss import AlphaSchedule
        >>> [round(AlphaSchedule().at(progress), 3) for progress in (0.0, 0.45, 0.5, 1.0)]
        [0.0, 0.223, 0.5, 0.995]
    """

    sharpness: Float = Field(default=25.0, gt=0, description="Gamma, how fast alpha falls.")
    floor: Float = Field(default=0.005, ge=0.001, lt=0.5, description="Smallest alpha.")

    def at(self, progress: float) -> float:
        """Returns where u lies between s (0) and t (1): 1 - alpha.

        Args:
            progress: Fraction of training done, in [0, 1].

        Returns:
            From 0 to 1 - floor.
        """
        exponent = -self.sharpness * (progress - 0.5)
        inner = 1 / (1 + math.exp(min(exponent, 700.0)))  # beyond, a float overflows
        return 0.0 if inner < self.floor else min(inner, 1 - self.floor)


class GTPLossConfig(Config):
    """The choices of a `GTPLoss`.

    Example:
        >>> from gtp_policy import Curriculum, GTPLossConfig
        >>> GTPLossConfig(flow_weight=0.1, curriculum=Curriculum(end=80)).curriculum.end
        80
    """

    before: ClassVar[Mapping[str, Any]] = {
        "flow_weight": 1.0,
        "t_law": UniformIndex(),
        "u_rule": "adjacent",
        "teacher": SurrogateTeacher(),
        "inner": 0.5,
        "map_share": 1.0,
        "flow_times": "shared",
        "units": "position",
        "adaptive_power": 0.0,
        "adaptive_constant": 0.01,
        "adaptive_flow": False,
    }

    flow_weight: Float = Field(
        default=0.5, ge=0, description="Factor of the flow loss next to the consistency loss."
    )
    curriculum: Curriculum = Field(
        default_factory=Curriculum,
        description="Grid intervals N as training proceeds; of no effect off the grid.",
    )
    t_law: TimeLaw = Field(
        default_factory=UniformPairs,
        description="How times are drawn: t from a grid, or pairs of t and s off it.",
    )
    max_gap: Int = Field(
        default=1,
        ge=1,
        description="Largest gap from t down to u in grid intervals; 1 is the neighbour rule. Of "
        "no effect with the midpoint rule.",
    )
    s_rule: SRule = Field(
        default="uniform",
        description="How s is drawn: uniform below t; zero; equal_u; dyadic, a power of two grid "
        "intervals below t.",
    )
    u_rule: URule = Field(
        default="between",
        description="How u is drawn: between s and t, at inner, off the grid; on it adjacent to t, "
        "within max_gap, or the midpoint.",
    )
    teacher: Teacher = Field(
        default_factory=SelfTeacher, description="What the consistency loss compares with."
    )
    target: Literal["ema", "stopgrad"] = Field(
        default="ema",
        description="Whose flow map the teacher uses: the target network's, or the actor's own "
        "without gradient.",
    )
    compare_at: Literal["s", "zero"] = Field(
        default="s",
        description="Where the two arrivals are compared: at time s, or after one more jump of the "
        "teacher's flow map from s to 0.",
    )
    inner: _InnerPoint | AlphaSchedule = Field(
        default=0.3,
        description='Where u lies between s (0) and t (1) with u_rule="between"; constant, from '
        "0.001 to 0.999, or as training proceeds.",
    )
    map_share: Float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of the minibatch, its first rows, that the consistency loss is taken "
        "of; the flow loss takes all.",
    )
    flow_times: Literal["shared", "uniform"] = Field(
        default="uniform",
        description="Times of the flow loss: those of the pairs, or uniform draws of the share of "
        "noise. A map_share below 1 needs uniform.",
    )
    units: Literal["position", "velocity"] = Field(
        default="velocity",
        description="What residuals measure: positions, at time s and of the endpoint; or the "
        "average velocity, which divides them by t - s and by t.",
    )
    adaptive_power: Float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="p: each consistency residual is weighted by (e^2 + c)^-p, without gradient, "
        "e^2 reduced as the distance is; 0 is the squared distance, 0.5 has the gradient of a "
        "pseudo-Huber metric.",
    )
    adaptive_constant: Float = Field(
        default=0.01, gt=0, description="c of the adaptive weight, in squared units of residuals."
    )
    adaptive_flow: Bool = Field(
        default=False, description="Whether the flow loss is weighted so too."
    )
    time_weight: Literal["none", "gap", "endpoint", "edm"] = Field(
        default="none",
        description="Factor of the consistency loss: none; gap, 1/(t-u); endpoint, (1-s/t)^-2, "
        "which measures the error in the endpoint instead of in the state at time s. edm, "
        "1/c_out(t)^2, of both losses: the error in the network's own units; on the path a + t z "
        "(t^2+sigma_data^2)/(t sigma_data)^2.",
    )
    huber: Float | None = Field(
        default=None,
        gt=0,
        description="c of the pseudo-Huber metric; None for the squared L2 distance.",
    )
    reduction: Literal["mean", "sum"] = Field(
        default="mean", description="Reduction of the squared error over the action's dimensions."
    )

    def inner_at(self, progress: float) -> float:
        """Returns where u lies between s (0) and t (1) at a point of training.

        Args:
            progress: Fraction of training done, in [0, 1].

        Returns:
            A number in [0, 1).

        Example:
            >>> from gtp_policy import GTPLossConfig
            >>> GTPLossConfig(inner=0.3).inner_at(0.5)
            0.3
        """
        return self.inner.at(progress) if isinstance(self.inner, AlphaSchedule) else self.inner

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        off_grid = isinstance(self.t_law, UniformPairs | LogitNormalPairs)
        if off_grid != (self.u_rule == "between"):
            raise ValueError(
                'u_rule="between" belongs to a t_law of pairs, and to no other: got '
                f"u_rule={self.u_rule!r} and t_law={self.t_law.kind!r}"
            )
        if self.map_share < 1 and self.flow_times == "shared":
            raise ValueError(
                f'map_share={self.map_share} needs flow_times="uniform": with shared times the '
                "flow loss has times for the consistency loss's rows alone"
            )
        if self.adaptive_power and self.huber is not None:
            raise ValueError(
                f"adaptive_power={self.adaptive_power} and huber={self.huber} are two metrics of "
                "one residual: choose one"
            )
        if self.units == "velocity" and self.compare_at != "s":
            raise ValueError('units="velocity" compares at time s: got compare_at="zero"')
        return self


class GTPLossTerms(NamedTuple):
    """The loss and its parts, each a 0-d tensor on the device; only ``loss`` carries a gradient.

    Attributes:
        loss: ``consistency + flow_weight * flow``, weighted.
        consistency: Trajectory consistency loss, weighted, detached.
        flow: Instantaneous flow loss, weighted, without its factor, detached.

    Example:
        >>> import torch
        >>> from gtp_policy.loss import GTPLossTerms
        >>> GTPLossTerms(torch.tensor(3.0), torch.tensor(1.0), torch.tensor(2.0)).flow
        tensor(2.)
    """

    loss: Tensor
    consistency: Tensor
    flow: Tensor


class LossDraws(NamedTuple):
    """What is random in the loss.

    Attributes:
        times: t > u >= s >= 0 of the consistency loss, shape (M,) each, for the first M of B rows.
        z: Standard normal noise, shape (B, A).
        flow_t: Times of the flow loss, shape (B,); None: those of the consistency loss.

    Example:
        >>> import torch
        >>> from gtp_policy.loss import LossDraws
        >>> from gtp_policy.times import Times
        >>> LossDraws(Times(*torch.ones(3, 4)), torch.zeros(4, 2)).flow_t is None
        True
    """

    times: Times
    z: Tensor
    flow_t: Tensor | None = None


class GTPResiduals(NamedTuple):
    """What the two losses measure, before metric, weight and mean.

    Attributes:
        consistency: Difference of two arrivals at time s, shape (B, A).
        flow: Difference of the denoised action and the action, shape (B, A).

    Example:
        >>> import torch
        >>> from gtp_policy.loss import GTPResiduals
        >>> GTPResiduals(torch.zeros(4, 2), torch.ones(4, 2)).flow.mean()
        tensor(1.)
    """

    consistency: Tensor
    flow: Tensor


def gtp_residuals(
    actor: FlowMap,
    target: FlowMap,
    obs: Tensor,
    action: Tensor,
    times: Times,
    z: Tensor,
    teacher: Teacher | None = None,
    compare_at: Literal["s", "zero"] = "s",
    flow_t: Tensor | None = None,
) -> GTPResiduals:
    r"""Returns the residuals of both losses for given times and noise.

    .. math:: r_{cons} &= \Phi_\theta(x_t, t, s) - \mathrm{sg}\,\Phi_{\theta^-}(x_u, u, s)
        = (1 - \tfrac{s}{t})(\varphi_\theta - a) - (1 - \tfrac{s}{u})(\varphi_{\theta^-} - a)

    .. math:: r_{flow} = \varphi_\theta(x_t, t, t) - a

    with :math:`x_t = a + t z` and :math:`x_u = a + u z` for the same z. The right-hand form is
    exact and is the one computed, in at least float32 even under autocast: at large t both arrivals
    are dominated by the same noise, and their difference would drown in rounding. The surrogate
    velocity (x_t - a) / t is never formed; through x_t - t v = a it *is* the flow target. At u = 0,
    where s = 0 too, the target is the action itself. Other teachers put another arrival in the
    place of the second, see `teach`.

    Args:
        actor: Flow map with gradient, :math:`\theta`.
        target: Its target network, :math:`\theta^-`; evaluated without gradient.
        obs: Observation, shape (B, O).
        action: Action in [-1, 1], shape (B, A), as the flow moves it: for an actor with statistics
            of actions, what `FlowMapActor.to_standard` makes of it.
        times: t > u >= s >= 0, each of shape (M,) for the first M of B rows.
        z: Standard normal noise, shape (B, A).
        teacher: What the arrival is compared with; default `SurrogateTeacher`. With `NoTeacher`
            the first residual is 0.
        compare_at: Where the two arrivals are compared: at time s, or both after one more jump of
            the target's flow map to time 0, through which the gradient passes.
        flow_t: Times of the flow loss, shape (B,); default t, for M = B.

    Returns:
        The two residuals, of shapes (M, A) and (B, A).

    Raises:
        ShapeError: If the shapes disagree.

    References:
        | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al., 2025),
        | eq. 17 and 18, https://arxiv.org/abs/2510.11499

    Example:
        >>> import torch
        >>> from gtp_policy.loss import gtp_residuals
        >>> from gtp_policy.times import Times
        >>> from gtp_policy.testing import PointMassFlowMap
        >>> exact = PointMassFlowMap(torch.tensor([0.5]))
        >>> action, times = torch.full((1, 1), 0.5), Times(*torch.tensor([[2.0], [1.0], [0.5]]))
        >>> gtp_residuals(exact, exact, torch.zeros(1, 3), action, times, torch.ones(1, 1))
        GTPResiduals(consistency=tensor([[0.]]), flow=tensor([[0.]]))
    """
    own, target = unwrapped(actor), unwrapped(target)
    # A wrapper reduces the gradients of what it computes itself.
    predict = own.endpoint if own is actor else partial(cast(Any, actor), endpoint=True)
    t, s, path = times.t, times.s, own.times.path
    tau = t if flow_t is None else flow_t
    x_tau = perturb(action, tau, z, path)
    if isinstance(teacher, NoTeacher):
        denoised = predict(obs, x_tau, tau, tau)
        flow = denoised.to(torch.promote_types(denoised.dtype, torch.float32)) - action
        return GTPResiduals(consistency=torch.zeros_like(flow[: len(t)]), flow=flow)
    rows = len(t)
    obs_m, action_m, z_m = obs[:rows], action[:rows], z[:rows]
    x_t = x_tau if flow_t is None else perturb(action_m, t, z_m, path)
    # One pass for both gradient branches: the times are per row anyway.
    endpoint = predict(
        torch.cat([obs_m, obs]),
        torch.cat([x_t, x_tau]),
        torch.cat([t, tau]),
        torch.cat([s, tau]),
    )
    taught = teach(target, obs_m, action_m, times, z_m, teacher)
    wide = torch.promote_types(endpoint.dtype, torch.float32)
    endpoint = endpoint.to(wide)
    arrival, denoised = endpoint[:rows], endpoint[rows:]
    action, t, s = (tensor.to(wide) for tensor in (action, t, s))
    # (t - s) / t, not 1 - s / t: neighbours of a fine grid subtract exactly, their ratio rounds.
    offset = ((t - s) / t).unsqueeze(-1) * (arrival - action[:rows])
    flow, taught = denoised - action, taught.to(wide)
    if compare_at == "zero":
        offset, taught = (
            _at_zero(target, obs_m, action_m, times, z_m, e) for e in (offset, taught)
        )
        taught = taught.detach()
    return GTPResiduals(consistency=offset - taught, flow=flow)


@torch.no_grad()
def teach(
    target: FlowMap,
    obs: Tensor,
    action: Tensor,
    times: Times,
    z: Tensor,
    teacher: Teacher | None = None,
) -> Tensor:
    r"""Returns what the consistency loss is measured against, without gradient.

    It is the place at time s of what a teacher taught, seen from the ray :math:`r_s` of action and
    noise, on which the actor's arrival is :math:`(1 - \tfrac{s}{t})(\varphi_\theta - a)`. For the
    surrogate teacher

    .. math:: (1 - \tfrac{s}{u})(\varphi_{\theta^-}(x_u, u, s) - a), \quad x_u = a + u z

    which is 0 at u = 0: the target is the action itself.

    Args:
        target: Flow map :math:`\theta^-`.
        obs: Observation, shape (B, O).
        action: Action in [-1, 1], shape (B, A).
        times: t > u >= s >= 0, each of shape (B,).
        z: Standard normal noise, shape (B, A).
        teacher: How the target's flow map is used; default `SurrogateTeacher`. `NoTeacher` has
            nothing to teach.

    Returns:
        Shape (B, A), in at least float32.

    Raises:
        ShapeError: If the shapes disagree.
        ValueError: If there is no teacher to ask.

    Example:
        >>> import torch
        >>> from gtp_policy.times import Times
        >>> from gtp_policy.loss import teach
        >>> from gtp_policy.testing import PointMassFlowMap
        >>> exact = PointMassFlowMap(torch.tensor([0.5]))
        >>> action, times = torch.full((1, 1), 0.5), Times(*torch.tensor([[2.0], [1.0], [0.5]]))
        >>> teach(exact, torch.zeros(1, 3), action, times, torch.ones(1, 1))
        tensor([[0.]])
    """
    teacher = teacher or SurrogateTeacher()
    if isinstance(teacher, NoTeacher):
        raise ValueError(
            "There is nothing to compare with: got NoTeacher, expected a teacher of jumps. Use the "
            "flow loss alone."
        )
    return teacher.offset(unwrapped(target), obs, action, times, z)


def _at_zero(
    target: FlowMap, obs: Tensor, action: Tensor, times: Times, z: Tensor, offset: Tensor
) -> Tensor:
    """Jumps from beside the ray at time s to time 0, with a gradient to the offset alone."""
    s = times.s
    x_s = perturb(action, s, z, target.times.path) + offset.to(action)
    # A flow map starts at positive times only; at s = 0 the place is reached already.
    start = torch.where(s > 0, s, times.t)
    arrived = frozen(target)(obs, x_s, start, torch.zeros_like(s))
    return torch.where(s.unsqueeze(-1) > 0, arrived, x_s).to(offset)


class GTPLoss(nn.Module):
    r"""The training loss of a generative trajectory policy.

    .. math:: L = E\left[ w \left( \lambda_t \|\Phi_\theta(x_t, t, s) -
        \mathrm{sg}\,\Phi_{\theta^-}(x_u, u, s)\|^2
        + \lambda_{flow} \|\varphi_\theta(x_t, t, t) - a\|^2 \right) \right]

    With another ``teacher``, another arrival at time s stands instead of the second.

    One draw per transition of the noise z and of t > u >= s. Has no parameters and keeps no state.
    The actor may be inside ``DistributedDataParallel``, ``DataParallel`` or ``torch.compile``: a
    loss calls it once, through its wrapper.

    Args:
        config: The choices.

    References:
        | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al., 2025),
        | eq. 17 to 19, https://arxiv.org/abs/2510.11499

    Example:
        >>> import copy, torch
        >>> from gtp_policy import FlowMapActor, GTPLoss
        >>> actor = FlowMapActor(obs_dim=3, action_dim=2)
        >>> target = copy.deepcopy(actor).requires_grad_(False)
        >>> terms = GTPLoss()(actor, target, torch.zeros(8, 3), torch.zeros(8, 2))
        >>> terms.loss.backward()
    """

    def __init__(self, config: GTPLossConfig | None = None) -> None:
        super().__init__()
        self.config = GTPLossConfig() if config is None else config
        check_kind("config", self.config, GTPLossConfig)

    def forward(
        self,
        actor: FlowMap,
        target: FlowMap,
        obs: Tensor,
        action: Tensor,
        weight: Tensor | None = None,
        *,
        progress: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> GTPLossTerms:
        """Draws times and noise, and returns the weighted mean of both losses.

        Args:
            actor: Flow map to train.
            target: Its target network (`ema_`), which gets no gradient.
            obs: Observation, shape (B, O).
            action: Action in [-1, 1], shape (B, A).
            weight: Weight per transition, shape (B,), e.g. from `AdvantageWeighter`; default 1.
            progress: Fraction of training done, in [0, 1]; drives the curriculum.
            generator: Source of times and noise, on the actions' device; default a stream of the
                package's own, never torch's global one.

        Returns:
            The loss and its parts.

        Raises:
            ShapeError: If the shapes disagree, e.g. a weight of shape (B, 1).
            ValueError: If ``progress`` lies outside [0, 1].

        Example:
            >>> import copy, torch
            >>> from gtp_policy import FlowMapActor, GTPLoss
            >>> actor = FlowMapActor(3, 2)
            >>> obs, action, weight = torch.zeros(8, 3), torch.zeros(8, 2), torch.ones(8, 1)
            >>> GTPLoss()(actor, copy.deepcopy(actor), obs, action, weight)
            Traceback (most recent call last):
            ...
            gtp_policy.errors.ShapeError: `weight` has the wrong shape: got (8, 1), expected (8,).
        """
        for name, tensor in (("obs", obs), ("action", action)):
            check_kind(name, tensor, Tensor)
            if tensor.ndim != 2:
                raise ShapeError(
                    f"`{name}` has the wrong shape: got {tuple(tensor.shape)}, expected 2 "
                    "dimensions, (B, ...)."
                )
        check_shape("obs", obs, (action.shape[0], obs.shape[1]))
        check_like("obs", obs, action)
        if weight is not None:
            check_shape("weight", weight, (action.shape[0],))
            check_like("weight", weight, action)
        generator = generator_or_private(generator, action.device)
        draws = self.draw(unwrapped(actor).times, action, progress=progress, generator=generator)
        return self.terms(actor, target, obs, action, weight, *draws)

    def draw(
        self,
        schedule: TimeSchedule,
        action: Tensor,
        *,
        progress: float,
        generator: torch.Generator,
    ) -> LossDraws:
        """Draws what is random in the loss: times, and one noise per transition.

        Args:
            schedule: The actor's time range.
            action: Gives shape, device and dtype, shape (B, A).
            progress: Fraction of training done, in [0, 1].
            generator: Source of randomness, on the actions' device.

        Returns:
            Times of the first ``map_share`` of the rows, noise, and times of the flow loss.

        Example:
            >>> import torch
            >>> from gtp_policy import GTPLoss
            >>> from gtp_policy.times import KarrasTimes
            >>> draws = GTPLoss().draw(KarrasTimes(), torch.zeros(4, 2), progress=0.0,
            ...                        generator=torch.Generator())
            >>> draws.times.t.shape, draws.z.shape
            (torch.Size([2]), torch.Size([4, 2]))
        """
        c, batch, share = self.config, action.shape[0], None
        raw = raw_draws(c.t_law, math.ceil(c.map_share * batch), generator)
        z = torch.randn(action.shape, generator=generator, device=action.device, dtype=action.dtype)
        if c.flow_times == "uniform":
            share = torch.rand(batch, generator=generator, device=z.device, dtype=torch.float32)
        return self.draws_of(schedule, raw, z, share, progress=progress)

    def draws_of(
        self,
        schedule: TimeSchedule,
        raw: Tensor,
        z: Tensor,
        share: Tensor | None,
        *,
        progress: float,
    ) -> LossDraws:
        """Returns what is random in the loss, made of numbers that were drawn elsewhere.

        Args:
            schedule: The actor's time range.
            raw: As `gtp_policy.times.raw_draws` has it, shape (3, M).
            z: Standard normal noise, shape (B, A); its dtype is that of the times.
            share: From [0, 1), for times of the flow loss, shape (B,); None: they have none.
            progress: Fraction of training done, in [0, 1].

        Returns:
            Times of the first ``map_share`` of the rows, noise, and times of the flow loss.

        Example:
            >>> import torch
            >>> from gtp_policy import GTPLoss
            >>> from gtp_policy.times import KarrasTimes
            >>> raw, z = torch.full((3, 4), 0.5), torch.zeros(4, 2)
            >>> GTPLoss().draws_of(KarrasTimes(), raw, z, None, progress=0.0).times.t.shape
            torch.Size([4])
        """
        c = self.config
        times = times_of(
            raw,
            schedule,
            c.curriculum.intervals(progress),
            law=c.t_law,
            max_gap=c.max_gap,
            s_rule=c.s_rule,
            u_rule=c.u_rule,
            inner=c.inner_at(progress),
            dtype=z.dtype,
        )
        return LossDraws(
            times, z, None if share is None else times_at_shares(schedule, share, z.dtype)
        )

    def terms(
        self,
        actor: FlowMap,
        target: FlowMap,
        obs: Tensor,
        action: Tensor,
        weight: Tensor | None,
        times: Times,
        z: Tensor,
        flow_t: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> GTPLossTerms:
        """Returns the weighted mean of both losses for given times and noise.

        Args:
            actor: Flow map to train.
            target: Its target network, which gets no gradient.
            obs: Observation, shape (B, O).
            action: Action in [-1, 1], shape (B, A).
            weight: Weight per transition, shape (B,); None is 1.
            times: t > u >= s >= 0, each of shape (M,) for the first M of B rows.
            z: Standard normal noise, shape (B, A).
            flow_t: Times of the flow loss, shape (B,); default t, for M = B.
            mask: 1 for numbers of the action that count, 0 for those that do not, shape (B, A);
                the mean over A stays one over all, so that each number counts alike. Default: 1.

        Returns:
            The loss and its parts.

        Raises:
            ShapeError: If the shapes disagree.

        Example:
            >>> import torch
            >>> from gtp_policy import GTPLoss
            >>> from gtp_policy.times import Times
            >>> from gtp_policy.testing import PointMassFlowMap
            >>> exact = PointMassFlowMap(torch.zeros(1))
            >>> times = Times(*torch.tensor([[0.5], [0.3], [0.0]]))
            >>> terms = GTPLoss().terms(exact, exact, torch.zeros(1, 3), torch.zeros(1, 1), None,
            ...                         times, torch.ones(1, 1))
            >>> float(terms.loss)
            0.0
        """
        c = self.config
        # A flow map of another kind moves actions as they are.
        standardise = getattr(unwrapped(actor), "to_standard", None)
        if standardise is not None:
            action = standardise(action)
        teaching = actor if c.target == "stopgrad" else target
        residuals = gtp_residuals(
            actor,
            teaching,
            obs,
            action,
            times,
            z,
            c.teacher,
            compare_at=c.compare_at,
            flow_t=flow_t,
        )
        if mask is not None:
            check_shape("mask", mask, tuple(action.shape))
            residuals = GTPResiduals(*(r * mask[: len(r)] for r in residuals))
        scales = self.unit_factors(times, flow_t)
        weights = self.time_weights(times, actor, flow_t)
        powers = c.adaptive_power, c.adaptive_power * c.adaptive_flow
        consistency, flow = (
            self._distance(residual * scale, power) * on
            for residual, scale, power, on in zip(residuals, scales, powers, weights, strict=True)
        )
        if weight is not None:
            weight = weight.detach()
            consistency, flow = weight[: len(consistency)] * consistency, weight * flow
        consistency, flow = consistency.mean(), flow.mean()
        return GTPLossTerms(
            loss=consistency + self.config.flow_weight * flow,
            consistency=consistency.detach(),
            flow=flow.detach(),
        )

    def unit_factors(
        self, times: Times, flow_t: Tensor | None = None
    ) -> tuple[Tensor | float, Tensor | float]:
        """Returns by what residuals are multiplied to be in the units that the config names.

        Args:
            times: t > u >= s >= 0, each of shape (..., M).
            flow_t: Times of the flow loss, shape (..., B); default t.

        Returns:
            Of the consistency residuals, shape (..., M, 1), and of the flow residuals,
            shape (..., B, 1), or the one number that holds for all.

        Example:
            >>> import torch
            >>> from gtp_policy import GTPLoss, GTPLossConfig
            >>> from gtp_policy.times import Times
            >>> times = Times(*torch.tensor([[2.0], [1.5], [1.0]]))
            >>> GTPLoss(GTPLossConfig(units="velocity")).unit_factors(times)
            (tensor([[1.]]), tensor([[0.5000]]))
        """
        if self.config.units == "position":
            return 1.0, 1.0
        tau = times.t if flow_t is None else flow_t
        return 1 / (times.t - times.s).unsqueeze(-1), 1 / tau.unsqueeze(-1)

    def _distance(self, residual: Tensor, power: float) -> Tensor:
        square = residual.square()
        square = square.mean(-1) if self.config.reduction == "mean" else square.sum(-1)
        if power:
            return square * (square.detach() + self.config.adaptive_constant) ** -power
        if self.config.huber is None:
            return square
        return (square + self.config.huber**2).sqrt() - self.config.huber

    def time_weights(
        self, times: Times, actor: FlowMap, flow_t: Tensor | None = None
    ) -> tuple[Tensor | float, Tensor | float]:
        """Returns the factors of the consistency and of the flow loss per transition.

        Args:
            times: t > u >= s >= 0, each of shape (B,).
            actor: Whose path and ``sigma_data`` count, 0.5 for a flow map that has none.
            flow_t: Times of the flow loss, shape (B,); default t.

        Returns:
            Two of shape (B,), or the one number that holds for all.

        Example:
            >>> import torch
            >>> from gtp_policy import FlowMapActor, GTPLoss, GTPLossConfig
            >>> from gtp_policy.times import Times
            >>> times = Times(*torch.tensor([[2.0], [1.5], [1.0]]))
            >>> GTPLoss(GTPLossConfig(time_weight="gap")).time_weights(times, FlowMapActor(1, 1))
            (tensor([2.]), 1.0)
        """
        return _TIME_WEIGHTS[self.config.time_weight](times, unwrapped(actor), flow_t)


def _no_weights(times: Times, actor: FlowMap, flow_t: Tensor | None) -> tuple[float, float]:
    return 1.0, 1.0


def _gap_weights(times: Times, actor: FlowMap, flow_t: Tensor | None) -> tuple[Tensor, float]:
    return 1 / (times.t - times.u), 1.0


def _endpoint_weights(times: Times, actor: FlowMap, flow_t: Tensor | None) -> tuple[Tensor, float]:
    return (1 - times.s / times.t) ** -2, 1.0


def _edm_weights(times: Times, actor: FlowMap, flow_t: Tensor | None) -> tuple[Tensor, Tensor]:
    weight = _output_scale(times.t, actor) ** -2
    return weight, weight if flow_t is None else _output_scale(flow_t, actor) ** -2


def _output_scale(t: Tensor, actor: FlowMap) -> Tensor:
    return precondition(t, getattr(actor, "sigma_data", 0.5), actor.times.path).out


_TIME_WEIGHTS: dict[
    str, Callable[[Times, FlowMap, Tensor | None], tuple[Tensor | float, Tensor | float]]
] = {
    "none": _no_weights,
    "gap": _gap_weights,
    "endpoint": _endpoint_weights,
    "edm": _edm_weights,
}
"""Factors of the consistency and of the flow loss."""
