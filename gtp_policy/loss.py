r"""The two losses of GTP: consistency along the trajectory, and the instantaneous flow."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from gtp_policy._config import Config, Float, Int
from gtp_policy._random import generator_or_private
from gtp_policy.errors import ShapeError
from gtp_policy.functional import FlowMap, check_shape, frozen, perturb, precondition
from gtp_policy.teachers import NoTeacher, SurrogateTeacher, Teacher
from gtp_policy.times import (
    Curriculum,
    SRule,
    TimeLaw,
    Times,
    TimeSchedule,
    UniformIndex,
    URule,
    draw_times,
)


class GTPLossConfig(Config):
    """The choices of a `GTPLoss`.

    Example:
        >>> from gtp_policy import Curriculum, GTPLossConfig
        >>> GTPLossConfig(flow_weight=0.1, curriculum=Curriculum(end=80)).curriculum.end
        80
    """

    flow_weight: Float = Field(
        default=1.0, ge=0, description="Factor of the flow loss beside the consistency loss."
    )
    curriculum: Curriculum = Field(
        default_factory=Curriculum, description="Grid intervals N as training proceeds."
    )
    t_law: TimeLaw = Field(
        default_factory=UniformIndex, description="How the start time is drawn from the grid."
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
        default="adjacent",
        description="How u is drawn: adjacent to t, within max_gap; or the midpoint.",
    )
    teacher: Teacher = Field(
        default_factory=SurrogateTeacher, description="What the consistency loss compares with."
    )
    target: Literal["ema", "stopgrad"] = Field(
        default="ema",
        description="Whose flow map the teacher uses: the slow copy's, or the actor's own without "
        "gradient.",
    )
    compare_at: Literal["s", "zero"] = Field(
        default="s",
        description="Where the two arrivals are compared: at time s, or after one more jump of the "
        "teacher's flow map from s to 0.",
    )
    time_weight: Literal["none", "gap", "endpoint", "edm"] = Field(
        default="none",
        description="Factor of the consistency loss: none; gap, 1/(t-u); endpoint, (1-s/t)^-2, "
        "which measures the error in the endpoint instead of in the state at time s. edm, "
        "1/c_out(t)^2, of both losses: the error in the network's own units; on the default path "
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
        target: Its slow copy, :math:`\theta^-`; evaluated without gradient.
        obs: Observation, shape (B, O).
        action: Action in [-1, 1], shape (B, A).
        times: t > u >= s >= 0, each of shape (B,).
        z: Standard normal noise, shape (B, A).
        teacher: What the arrival is compared with; default `SurrogateTeacher`. With `NoTeacher`
            the first residual is 0.
        compare_at: Where the two arrivals are compared: at time s, or both after one more jump of
            the target's flow map to time 0, through which the gradient passes.

    Returns:
        The two residuals, each of shape (B, A).

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
    t, s = times.t, times.s
    x_t = perturb(action, t, z, actor.times.path)
    if isinstance(teacher, NoTeacher):
        denoised = actor.endpoint(obs, x_t, t, t)
        flow = denoised.to(torch.promote_types(denoised.dtype, torch.float32)) - action
        return GTPResiduals(consistency=torch.zeros_like(flow), flow=flow)
    # One pass for both gradient branches: the times are per row anyway.
    endpoint = actor.endpoint(
        torch.cat([obs, obs]), torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([s, t])
    )
    taught = teach(target, obs, action, times, z, teacher)
    wide = torch.promote_types(endpoint.dtype, torch.float32)
    arrival, denoised = endpoint.to(wide).chunk(2)
    action, t, s = (tensor.to(wide) for tensor in (action, t, s))
    # (t - s) / t, not 1 - s / t: neighbours of a fine grid subtract exactly, their ratio rounds.
    offset, flow = ((t - s) / t).unsqueeze(-1) * (arrival - action), denoised - action
    taught = taught.to(wide)
    if compare_at == "zero":
        offset, taught = (_at_zero(target, obs, action, times, z, e) for e in (offset, taught))
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
    return teacher.offset(target, obs, action, times, z)


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

    With another ``teacher``, another arrival at time s stands in the place of the second.

    One draw per transition of the noise z and of t > u >= s. Has no parameters and keeps no state.

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
        self.config = config or GTPLossConfig()

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
            target: Its slow copy (`ema_`), which gets no gradient.
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
            if tensor.ndim != 2:
                raise ShapeError(
                    f"`{name}` has the wrong shape: got {tuple(tensor.shape)}, expected 2 "
                    "dimensions, (B, ...)."
                )
        check_shape("obs", obs, (action.shape[0], obs.shape[1]))
        if weight is not None:
            check_shape("weight", weight, (action.shape[0],))
        generator = generator_or_private(generator, action.device)
        times, z = self.draw(actor.times, action, progress=progress, generator=generator)
        return self.terms(actor, target, obs, action, weight, times, z)

    def draw(
        self,
        schedule: TimeSchedule,
        action: Tensor,
        *,
        progress: float,
        generator: torch.Generator,
    ) -> tuple[Times, Tensor]:
        """Draws what is random in the loss: one triple of times and one noise per transition.

        Args:
            schedule: The actor's time range.
            action: Gives shape, device and dtype, shape (B, A).
            progress: Fraction of training done, in [0, 1].
            generator: Source of randomness, on the actions' device.

        Returns:
            Times, each of shape (B,), and noise z, shape (B, A).

        Example:
            >>> import torch
            >>> from gtp_policy import GTPLoss
            >>> from gtp_policy.times import KarrasTimes
            >>> times, z = GTPLoss().draw(KarrasTimes(), torch.zeros(4, 2), progress=0.0,
            ...                           generator=torch.Generator())
            >>> times.t.shape, z.shape
            (torch.Size([4]), torch.Size([4, 2]))
        """
        times = draw_times(
            schedule,
            self.config.curriculum.intervals(progress),
            action.shape[0],
            generator=generator,
            law=self.config.t_law,
            max_gap=self.config.max_gap,
            s_rule=self.config.s_rule,
            u_rule=self.config.u_rule,
            dtype=action.dtype,
        )
        z = torch.randn(action.shape, generator=generator, device=action.device, dtype=action.dtype)
        return times, z

    def terms(
        self,
        actor: FlowMap,
        target: FlowMap,
        obs: Tensor,
        action: Tensor,
        weight: Tensor | None,
        times: Times,
        z: Tensor,
    ) -> GTPLossTerms:
        """Returns the weighted mean of both losses for given times and noise.

        Args:
            actor: Flow map to train.
            target: Its slow copy, which gets no gradient.
            obs: Observation, shape (B, O).
            action: Action in [-1, 1], shape (B, A).
            weight: Weight per transition, shape (B,); None is 1.
            times: t > u >= s >= 0, each of shape (B,).
            z: Standard normal noise, shape (B, A).

        Returns:
            The loss and its parts.

        Raises:
            ShapeError: If the shapes disagree.

        Example:
            >>> import torch
            >>> from gtp_policy import GTPLoss
            >>> from gtp_policy.times import Times
            >>> from gtp_policy.testing import PointMassFlowMap
            >>> exact, times = PointMassFlowMap(torch.zeros(1)), Times(*torch.ones(3, 1) * 0.5)
            >>> terms = GTPLoss().terms(exact, exact, torch.zeros(1, 3), torch.zeros(1, 1), None,
            ...                         times, torch.ones(1, 1))
            >>> float(terms.loss)
            0.0
        """
        c = self.config
        teaching = actor if c.target == "stopgrad" else target
        residuals = gtp_residuals(
            actor, teaching, obs, action, times, z, c.teacher, compare_at=c.compare_at
        )
        on_consistency, on_flow = self.time_weights(times, actor)
        consistency = self._distance(residuals.consistency) * on_consistency
        flow = self._distance(residuals.flow) * on_flow
        if weight is not None:
            weight = weight.detach()
            consistency, flow = weight * consistency, weight * flow
        consistency, flow = consistency.mean(), flow.mean()
        return GTPLossTerms(
            loss=consistency + self.config.flow_weight * flow,
            consistency=consistency.detach(),
            flow=flow.detach(),
        )

    def _distance(self, residual: Tensor) -> Tensor:
        square = residual.square()
        square = square.mean(-1) if self.config.reduction == "mean" else square.sum(-1)
        if self.config.huber is None:
            return square
        return (square + self.config.huber**2).sqrt() - self.config.huber

    def time_weights(self, times: Times, actor: FlowMap) -> tuple[Tensor | float, Tensor | float]:
        """Returns the factors of the consistency and of the flow loss per transition.

        Args:
            times: t > u >= s >= 0, each of shape (B,).
            actor: Whose path and ``sigma_data`` count, 0.5 for a flow map that has none.

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
        return _TIME_WEIGHTS[self.config.time_weight](times, actor)


def _no_weights(times: Times, actor: FlowMap) -> tuple[float, float]:
    return 1.0, 1.0


def _gap_weights(times: Times, actor: FlowMap) -> tuple[Tensor, float]:
    return 1 / (times.t - times.u), 1.0


def _endpoint_weights(times: Times, actor: FlowMap) -> tuple[Tensor, float]:
    return (1 - times.s / times.t) ** -2, 1.0


def _edm_weights(times: Times, actor: FlowMap) -> tuple[Tensor, Tensor]:
    sigma_data = getattr(actor, "sigma_data", 0.5)
    weight = precondition(times.t, sigma_data, actor.times.path).out ** -2
    return weight, weight


_TIME_WEIGHTS: dict[str, Callable[[Times, FlowMap], tuple[Tensor | float, Tensor | float]]] = {
    "none": _no_weights,
    "gap": _gap_weights,
    "endpoint": _endpoint_weights,
    "edm": _edm_weights,
}
"""Factors of the consistency and of the flow loss."""
