r"""Teachers: what the arrival of the flow map at time s is compared with.

Every teacher leads a point along its trajectory from time t to time s without the network that is
being trained. Points are held as their deviation e from the ray of the transition,
:math:`x_t = r_t + e` with :math:`r_t = \alpha_t a + t z` and the path's signal :math:`\alpha_t`.
Since :math:`r_s = \tfrac{s}{t} r_t + (1 - \tfrac{s}{t}) a` on every path, a jump is

.. math:: e_s = \tfrac{s}{t} e_t + (1 - \tfrac{s}{t}) (\varphi - a)

and the noise, which is large at large t, never enters a difference. An Euler step of the model's
own field :math:`f = (x - \varphi(x, t, t)) / t` is the same jump with the denoiser as its endpoint.
"""

import contextlib
import threading
import warnings
from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from gtp_policy._config import Config, Float, Int
from gtp_policy.functional import FlowMap, perturb
from gtp_policy.times import Path, Times


class SurrogateTeacher(Config):
    r"""Teaches from the point that the data itself puts at time u: the score approximation.

    .. math:: x_u = a + u z, \qquad \text{target } \Phi_{\theta^-}(x_u, u, s)

    The field :math:`(x_t - a) / t` is constant along its ray, so any solver follows it exactly; no
    solver is needed. Averages to the true flow only where u is close to t: keep ``max_gap`` small.

    References:
        | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al., 2025),
        | Algorithm 1, https://arxiv.org/abs/2510.11499

    Example:
        >>> from gtp_policy import presets
        >>> from gtp_policy.teachers import SurrogateTeacher
        >>> presets.paper_loss().loss.teacher == SurrogateTeacher()
        True
    """

    kind: Literal["surrogate"] = Field(
        default="surrogate", description="Discriminator of the union."
    )

    def offset(
        self, target: FlowMap, obs: Tensor, action: Tensor, times: Times, z: Tensor
    ) -> Tensor:
        """Returns how far from the ray the target lies at time s.

        Args:
            target: Flow map of the teacher.
            obs: Observation, shape (B, O).
            action: Action in [-1, 1], shape (B, A).
            times: t > u >= s >= 0, each of shape (B,).
            z: Standard normal noise, shape (B, A).

        Returns:
            Shape (B, A), in at least float32.
        """
        return _arrive(target, obs, action, times, z, None)


class OdeTeacher(Config):
    r"""Teaches from where a solver arrives at time u, along the model's own field.

    .. math:: \hat x_u = \mathrm{solve}(x_t, t \to u), \quad
        f(x, t) = \frac{x - \varphi_{\theta^-}(x, t, t)}{t}, \qquad
        \text{target } \Phi_{\theta^-}(\hat x_u, u, s)

    The method without score approximation. Costs one more network pass per step, two with Heun's.

    References:
        | Consistency Trajectory Models (Kim et al., 2023), eq. 7 and 8
        | https://arxiv.org/abs/2310.02279

    Example:
        >>> from gtp_policy import GTPLossConfig
        >>> from gtp_policy.teachers import OdeTeacher
        >>> GTPLossConfig(teacher=OdeTeacher(method="heun", steps=3), max_gap=3).teacher.steps
        3
    """

    kind: Literal["ode"] = Field(default="ode", description="Discriminator of the union.")
    method: Literal["euler", "heun"] = Field(
        default="heun", description="Solver: of first order, or of second at two passes a step."
    )
    steps: Int = Field(
        default=1, ge=1, le=3, description="Steps from t to u, evenly spaced in time."
    )

    def offset(
        self, target: FlowMap, obs: Tensor, action: Tensor, times: Times, z: Tensor
    ) -> Tensor:
        """Returns how far from the ray the target lies at time s.

        Args:
            target: Flow map of the teacher, whose field is solved.
            obs: Observation, shape (B, O).
            action: Action in [-1, 1], shape (B, A).
            times: t > u >= s >= 0, each of shape (B,).
            z: Standard normal noise, shape (B, A).

        Returns:
            Shape (B, A), in at least float32.
        """
        step = _SOLVERS[self.method]
        t, deviation = times.t, torch.zeros_like(action)
        for left in range(self.steps, 0, -1):
            following = t + (times.u - t) / left if left > 1 else times.u
            deviation = step(target, obs, action, t, following, z, deviation)
            t = following
        return _arrive(target, obs, action, times, z, deviation)


class SelfTeacher(Config):
    r"""Teaches with two jumps of the model itself instead of one, as Shortcut models do.

    .. math:: \text{target } \Phi_{\theta^-}(\Phi_{\theta^-}(x_t, t, u), u, s)

    For u halfway, ``u_rule="midpoint"``. Where no grid time lies between, u = s, the target is a
    step along the model's own field, :math:`\Phi` with the denoiser :math:`\varphi(x_t, t, t)`,
    which the flow loss teaches: there the recursion touches the data.

    References:
        | One Step Diffusion via Shortcut Models (Frans et al., 2024), eq. 4 and 5
        | https://arxiv.org/abs/2410.12557

    Example:
        >>> from gtp_policy import GTPLossConfig
        >>> from gtp_policy.teachers import SelfTeacher
        >>> GTPLossConfig().teacher == SelfTeacher()
        True
    """

    kind: Literal["self"] = Field(default="self", description="Discriminator of the union.")

    def offset(
        self, target: FlowMap, obs: Tensor, action: Tensor, times: Times, z: Tensor
    ) -> Tensor:
        """Returns how far from the ray the target lies at time s.

        Args:
            target: Flow map of the teacher.
            obs: Observation, shape (B, O).
            action: Action in [-1, 1], shape (B, A).
            times: t > u >= s >= 0, each of shape (B,).
            z: Standard normal noise, shape (B, A).

        Returns:
            Shape (B, A), in at least float32.
        """
        t, u, s = times
        x_t = perturb(action, t, z, target.times.path)
        first = target.endpoint(obs, x_t, t, torch.where(u > s, u, t))
        deviation = _move(torch.zeros_like(action), first, action, t, u)
        return _arrive(target, obs, action, times, z, deviation)


class JvpTeacher(Config):
    r"""Teaches by differentiating along the trajectory, as Mean Flows do; no point in between.

    .. math:: \varphi_{tgt} = a + (1 - \tfrac{s}{t})(\varphi - a)
        - (t - s)(v \cdot \partial_x + \partial_t) \varphi, \qquad v = \frac{x_t - a}{t}

    all of :math:`\theta^-`. With the average velocity :math:`\bar v = (x - \varphi) / t` this is
    the identity :math:`\bar v = v - (t - s) \tfrac{d}{dt} \bar v`. The mean over a, given
    :math:`x_t`, of v is the true field, and the target is linear in v: no grid biases the result.

    References:
        | Mean Flows for One-step Generative Modeling (Geng et al., 2025), eq. 6
        | https://arxiv.org/abs/2505.13447

    Example:
        >>> from gtp_policy import GTPLossConfig
        >>> from gtp_policy.teachers import JvpTeacher
        >>> GTPLossConfig(teacher=JvpTeacher(), target="stopgrad").teacher.kind
        'jvp'
    """

    kind: Literal["jvp"] = Field(default="jvp", description="Discriminator of the union.")

    def offset(
        self, target: FlowMap, obs: Tensor, action: Tensor, times: Times, z: Tensor
    ) -> Tensor:
        """Returns how far from the ray the target lies at time s.

        Args:
            target: Flow map of the teacher; differentiable in x and t.
            obs: Observation, shape (B, O).
            action: Action in [-1, 1], shape (B, A).
            times: t >= s >= 0, each of shape (B,), t > 0; u is not looked at.
            z: Standard normal noise, shape (B, A).

        Returns:
            Shape (B, A), in at least float32.
        """
        t, _, s = times
        path = target.times.path
        velocity = _ray(action, z, path)

        def at(x: Tensor, t: Tensor) -> Tensor:
            return target.endpoint(obs, x, t, s)

        here = perturb(action, t, z, path), t.contiguous()  # of an expanded t no dual is made
        with _quiet_at_first():
            endpoint, change, *_ = torch.func.jvp(at, here, (velocity, torch.ones_like(t)))
        action, t, s, endpoint, change = _wide(action, t, s, endpoint, change)
        share = ((t - s) / t).unsqueeze(-1)
        return share * (share * (endpoint - action) - (t - s).unsqueeze(-1) * change)


class DifferenceTeacher(Config):
    r"""Teaches by a finite difference along the target's own field: no derivative is taken.

    .. math:: \bar v_{tgt} = \dot r - (t - s)
        \frac{\bar v(x_t, t, s) - \bar v(x_t - h f, t - h, s)}{h}, \qquad
        \bar v = \frac{x - \varphi}{t}, \quad f = \bar v(x_t, t, t)

    with the ray's velocity :math:`\dot r`, z or z - a by the path, and all else of
    :math:`\theta^-`. The direction of the difference is the model's own field, whose noise is that
    of the network, not of a single action. Three passes without gradient.

    References:
        | Improved Mean Flows: On the Challenges of Fastforward Generative Models
        | (Geng et al., 2025), with a difference for its derivative
        | https://arxiv.org/abs/2512.02012

    Example:
        >>> from gtp_policy import GTPLossConfig
        >>> from gtp_policy.teachers import DifferenceTeacher
        >>> GTPLossConfig(teacher=DifferenceTeacher(step=0.02)).teacher.step
        0.02
    """

    kind: Literal["difference"] = Field(
        default="difference", description="Discriminator of the union."
    )
    step: Float = Field(
        default=0.01, gt=0, description="h, in units of time; at most half of t - s is taken."
    )

    def offset(
        self, target: FlowMap, obs: Tensor, action: Tensor, times: Times, z: Tensor
    ) -> Tensor:
        """Returns how far from the ray the target lies at time s.

        Args:
            target: Flow map of the teacher.
            obs: Observation, shape (B, O).
            action: Action in [-1, 1], shape (B, A).
            times: t > s >= 0, each of shape (B,); u is not looked at.
            z: Standard normal noise, shape (B, A).

        Returns:
            Shape (B, A), in at least float32.
        """
        t, _, s = times
        x = perturb(action, t, z, target.times.path)
        field = _velocity(target, obs, x, t, t)
        h = torch.minimum((t - s) / 2, torch.full_like(t, self.step))
        behind = x - h.unsqueeze(-1) * field.to(x)
        change = _velocity(target, obs, x, t, s) - _velocity(target, obs, behind, t - h, s)
        change, t, s, h = _wide(change, t, s, h)
        return ((t - s).square() / h).unsqueeze(-1) * change


class TerminalTeacher(Config):
    r"""Teaches by how the arrival moves with s: it has to move along the field there.

    .. math:: \bar v_{tgt} = f(x_{s+h}, s + h) + (t - s)
        \frac{\bar v(x_t, t, s + h) - \bar v(x_t, t, s)}{h}, \qquad
        x_{s+h} = \Phi(x_t, t, s + h)

    with :math:`\bar v = (x - \varphi) / t` and :math:`f = \bar v(x, t, t)`, all of
    :math:`\theta^-`: terminal velocity matching, :math:`\partial_s \Phi = f(\Phi, s)`, with a
    difference for its derivative and without gradient in the target. Three passes without gradient.

    References:
        | Terminal Velocity Matching (Zhou et al., 2025)
        | https://arxiv.org/abs/2511.19797

    Example:
        >>> from gtp_policy import GTPLossConfig
        >>> from gtp_policy.teachers import TerminalTeacher
        >>> GTPLossConfig(teacher=TerminalTeacher(step=0.02)).teacher.step
        0.02
    """

    kind: Literal["terminal"] = Field(default="terminal", description="Discriminator of the union.")
    step: Float = Field(
        default=0.01, gt=0, description="h, in units of time; at most half of t - s is taken."
    )

    def offset(
        self, target: FlowMap, obs: Tensor, action: Tensor, times: Times, z: Tensor
    ) -> Tensor:
        """Returns how far from the ray the target lies at time s.

        Args:
            target: Flow map of the teacher.
            obs: Observation, shape (B, O).
            action: Action in [-1, 1], shape (B, A).
            times: t > s >= 0, each of shape (B,); u is not looked at.
            z: Standard normal noise, shape (B, A).

        Returns:
            Shape (B, A), in at least float32.
        """
        t, _, s = times
        x = perturb(action, t, z, target.times.path)
        h = torch.minimum((t - s) / 2, torch.full_like(t, self.step))
        before = s + h
        earlier = _velocity(target, obs, x, t, before)
        change = earlier - _velocity(target, obs, x, t, s)
        there = x - (t - before).unsqueeze(-1) * earlier.to(x)
        field = _velocity(target, obs, there, before, before)
        ray, change, field, t, s, h = _wide(
            _ray(action, z, target.times.path), change, field, t, s, h
        )
        gap = (t - s).unsqueeze(-1)
        return gap * (ray - field - gap / h.unsqueeze(-1) * change)


class NoTeacher(Config):
    """Teaches no jumps: the flow loss alone, which makes a diffusion or flow-matching model.

    The network then knows its endpoint at s = t only; sample it with an `OdeSampler`.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364

    Example:
        >>> from gtp_policy import GTPLossConfig
        >>> from gtp_policy.teachers import NoTeacher
        >>> GTPLossConfig(teacher=NoTeacher()).teacher.kind
        'none'
    """

    kind: Literal["none"] = Field(default="none", description="Discriminator of the union.")


Teacher = Annotated[
    SurrogateTeacher
    | OdeTeacher
    | SelfTeacher
    | JvpTeacher
    | DifferenceTeacher
    | TerminalTeacher
    | NoTeacher,
    Field(discriminator="kind"),
]


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Casts to the widest dtype among tensors, at least float32: differences stay exact there."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)


_FIRST = threading.Lock()
_used: list[bool] = []


@contextlib.contextmanager
def _quiet_at_first() -> Iterator[None]:
    """Torch scripts a part of its forward mode when that is first used, and warns: not once more.

    What is ignored is so for all threads, and for good where two come and go at a time: the first
    update alone does it, and others wait for that one.
    """
    if _used:
        yield
        return
    with _FIRST, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
    _used.append(True)


def _ray(action: Tensor, z: Tensor, path: Path) -> Tensor:
    """Returns the velocity of the ray: it is straight in t on every path."""
    return z if path == "ve" else z - action


def _velocity(target: FlowMap, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Returns the average velocity from time t > 0 to time s."""
    x, endpoint, t = _wide(x, target.endpoint(obs, x, t, s), t)
    return (x - endpoint) / t.unsqueeze(-1)


def _move(deviation: Tensor, endpoint: Tensor, action: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Moves a deviation from time t > 0 to time s by an endpoint."""
    deviation, endpoint, action, t, s = _wide(deviation, endpoint, action, t, s)
    share = ((t - s) / t).unsqueeze(-1)
    return (1 - share) * deviation + share * (endpoint - action)


def _point(target: FlowMap, action: Tensor, t: Tensor, z: Tensor, deviation: Tensor) -> Tensor:
    return perturb(action, t, z, target.times.path) + deviation.to(action)


def _euler(
    target: FlowMap, obs: Tensor, action: Tensor, t: Tensor, s: Tensor, z: Tensor, deviation: Tensor
) -> Tensor:
    denoised = target.endpoint(obs, _point(target, action, t, z, deviation), t, t)
    return _move(deviation, denoised, action, t, s)


def _heun(
    target: FlowMap, obs: Tensor, action: Tensor, t: Tensor, s: Tensor, z: Tensor, deviation: Tensor
) -> Tensor:
    first = target.endpoint(obs, _point(target, action, t, z, deviation), t, t)
    ahead = _move(deviation, first, action, t, s)
    # The field is not defined at time 0: there the step stays an Euler step.
    start = torch.where(s > 0, s, t)
    second = target.endpoint(obs, _point(target, action, start, z, ahead), start, start)
    deviation, first, second, action, t, s, start = _wide(
        deviation, first, second, action, t, s, start
    )
    # The field less the velocity of the ray, at both ends.
    slope = (deviation + action - first) / t.unsqueeze(-1)
    slope_ahead = (ahead + action - second) / start.unsqueeze(-1)
    corrected = deviation + (s - t).unsqueeze(-1) * (slope + slope_ahead) / 2
    return torch.where(s.unsqueeze(-1) > 0, corrected, ahead)


_SOLVERS = {"euler": _euler, "heun": _heun}


def _arrive(
    target: FlowMap,
    obs: Tensor,
    action: Tensor,
    times: Times,
    z: Tensor,
    deviation: Tensor | None,
) -> Tensor:
    """Jumps from a point near the ray at time u to time s; None is the ray itself."""
    _, u, s = times
    # A flow map starts at positive times only; where u = 0 its answer gets no share.
    start = torch.where(u > 0, u, times.t)
    x_u = perturb(action, u, z, target.times.path)
    if deviation is not None:
        x_u = x_u + deviation.to(x_u)
    endpoint = target.endpoint(obs, x_u, start, s)
    action, u, s, start, endpoint = _wide(action, u, s, start, endpoint)
    share = torch.where(u > 0, (u - s) / start, 0).unsqueeze(-1)
    moved = share * (endpoint - action)
    return moved if deviation is None else moved + (1 - share) * deviation
