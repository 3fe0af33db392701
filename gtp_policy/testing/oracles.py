r"""Analytic flow maps: data distributions whose trajectories are known exactly.

They satisfy the same protocol as the network, so whatever is asserted of a trained actor can be
compared with the truth, and whatever tests the oracles tests a custom flow map.

Each oracle is defined by its endpoint map in closed form; the flow map follows from it,

.. math:: \Phi(x, t, s) = \tfrac{s}{t} x + (1 - \tfrac{s}{t}) \varphi(x, t, s),

so that identity and boundary hold bit for bit, as they do for the network. With
:math:`r = s/t`, :math:`h_t = \sqrt{\sigma^2 + t^2}` and :math:`h_s = \sqrt{\sigma^2 + s^2}`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from gtp_policy.errors import NonFiniteError, ShapeError
from gtp_policy.functional import check_shape, flow_map
from gtp_policy.times import KarrasTimes, LinearTimes, TimeSchedule

Values: TypeAlias = Tensor | Sequence[float] | Sequence[Sequence[float]]


def as_float64(name: str, values: Values | float, rank: int) -> Tensor:
    """Returns finite float64 values of the given rank, or raises."""
    tensor = torch.as_tensor(values, dtype=torch.float64).detach()
    if tensor.ndim != rank or not tensor.numel():
        raise ShapeError(
            f"`{name}` has the wrong shape: got {tuple(tensor.shape)}, expected {rank} dimension"
            f"{'s' if rank > 1 else ''}, none of them empty."
        )
    if not tensor.isfinite().all():
        raise NonFiniteError(
            f"`{name}` is not finite: got {tensor.tolist()}, expected finite numbers."
        )
    return tensor


class AnalyticFlowMap(ABC):
    r"""A flow map known in closed form, with the data distribution it belongs to.

    Ignores the observation apart from its batch size. Parameters are held in float64 and cast to
    the dtype and device of each call.

    Attributes:
        mean: Mean of the data, shape (A,), float64.
        std: Standard deviation of the data per dimension, shape (A,), float64.
        times: The time range.

    Args:
        mean: Mean of the data, shape (A,).
        std: Standard deviation of the data, shape (A,).
        times: The time range.

    Example:
        >>> from gtp_policy.testing import AnalyticFlowMap, GaussianFlowMap
        >>> issubclass(GaussianFlowMap, AnalyticFlowMap)
        True
    """

    def __init__(self, mean: Tensor, std: Tensor, times: TimeSchedule) -> None:
        check_shape("std", std, tuple(mean.shape))
        self.mean, self.std, self.times = mean, std, times

    @abstractmethod
    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        r"""Returns :math:`\varphi(x_t, t, s)`; at s = t the denoiser :math:`E[a | x_t]`.

        Args:
            obs: Observation, shape (B, O); ignored.
            x: Noisy action :math:`x_t`, shape (B, A).
            t: Start time, shape (B,), > 0.
            s: Target time, shape (B,), 0 <= s <= t.

        Returns:
            :math:`\varphi`, shape (B, A).

        Raises:
            ShapeError: If the shapes disagree with each other or with the oracle's dimension.
        """

    @abstractmethod
    def sample(self, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        """Draws actions from the data distribution itself.

        Args:
            obs: Observation, shape (B, O); gives the batch size, dtype and device.
            generator: Source of randomness.

        Returns:
            Actions, shape (B, A).
        """

    def __call__(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        r"""Returns :math:`\Phi(x_t, t, s)`.

        Args:
            obs: Observation, shape (B, O); ignored.
            x: Noisy action :math:`x_t`, shape (B, A).
            t: Start time, shape (B,), > 0.
            s: Target time, shape (B,), 0 <= s <= t.

        Returns:
            :math:`x_s`, shape (B, A).

        Raises:
            ShapeError: If the shapes disagree with each other or with the oracle's dimension.
        """
        return flow_map(x, self.endpoint(obs, x, t, s), t, s)

    def _check(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> None:
        batch = obs.shape[0]
        check_shape("x", x, (batch, self.mean.shape[0]))
        check_shape("t", t, (batch,))
        check_shape("s", s, (batch,))


class PointMassFlowMap(AnalyticFlowMap):
    r"""The flow map of data that is always one action: straight lines into it.

    .. math:: \varphi(x, t, s) = a, \qquad \Phi(x, t, s) = a + \tfrac{s}{t} (x - a)

    Both losses of GTP are 0 here, for any times and any noise.

    Args:
        action: The action a, shape (A,), finite.
        times: The time range.

    Raises:
        ShapeError: If ``action`` is not of rank 1.
        NonFiniteError: If ``action`` is not finite.

    Example:
        >>> import torch
        >>> from gtp_policy.testing import PointMassFlowMap
        >>> oracle = PointMassFlowMap([0.5])
        >>> oracle(torch.zeros(1, 3), torch.tensor([[1.5]]), torch.tensor([2.0]), torch.ones(1))
        tensor([[1.]])
    """

    def __init__(self, action: Values, *, times: TimeSchedule | None = None) -> None:
        mean = as_float64("action", action, 1)
        super().__init__(mean, torch.zeros_like(mean), times or KarrasTimes())

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Returns the action, whatever the input.

        Args:
            obs: Observation, shape (B, O); ignored.
            x: Noisy action, shape (B, A); ignored.
            t: Start time, shape (B,); ignored.
            s: Target time, shape (B,); ignored.

        Returns:
            a, shape (B, A).

        Raises:
            ShapeError: If the shapes disagree with each other or with the oracle's dimension.
        """
        self._check(obs, x, t, s)
        return self.mean.to(x).repeat(x.shape[0], 1)

    def sample(self, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        """Returns the action once per observation; nothing is drawn.

        Args:
            obs: Observation, shape (B, O); gives the batch size, dtype and device.
            generator: Not used.

        Returns:
            Actions, shape (B, A).
        """
        return self.mean.to(obs).repeat(obs.shape[0], 1)


class GaussianFlowMap(AnalyticFlowMap):
    r"""The flow map of normal data :math:`N(\mu, \Sigma)`: a scaling along each eigenvector.

    .. math:: \varphi(x, t, s) = \mu + \frac{\sigma^2 (1 + r)}{h_t (h_s + r h_t)} (x - \mu),
        \qquad \Phi(x, t, s) = \mu + \frac{h_s}{h_t} (x - \mu)

    for each eigenvalue :math:`\sigma^2` of :math:`\Sigma`. No difference of nearly equal numbers
    is taken: at s = t the factor is exactly :math:`\sigma^2 / (\sigma^2 + t^2)`, the denoiser's.

    Args:
        mean: :math:`\mu`, shape (A,), finite.
        std: Standard deviations of independent dimensions, shape (A,), or one for all; >= 0.
        covariance: :math:`\Sigma`, shape (A, A), symmetric and positive semi-definite; instead of
            ``std``.
        times: The time range.

    Raises:
        ShapeError: If a shape disagrees with the mean's.
        NonFiniteError: If a value is not finite.
        ValueError: If not exactly one of ``std`` and ``covariance`` is given, a std is negative,
            or the covariance is not symmetric or has a negative eigenvalue.

    Example:
        >>> import torch
        >>> from gtp_policy.testing import GaussianFlowMap
        >>> oracle = GaussianFlowMap([0.0], 1.0)
        >>> x, t = torch.tensor([[2.0]]), torch.tensor([1.0])
        >>> oracle.endpoint(torch.zeros(1, 3), x, t, t)  # the denoiser halves at t = std
        tensor([[1.]])
        >>> oracle(torch.zeros(1, 3), x, t, torch.zeros(1))  # the flow map scales by sqrt(1/2)
        tensor([[1.4142]])
    """

    def __init__(
        self,
        mean: Values,
        std: Values | float | None = None,
        *,
        covariance: Values | None = None,
        times: TimeSchedule | None = None,
    ) -> None:
        center = as_float64("mean", mean, 1)
        self._axes: Tensor | None = None  # eigenvectors in columns
        if covariance is None and std is not None:
            scalar = isinstance(std, int | float) or (isinstance(std, Tensor) and std.ndim == 0)
            scales = as_float64("std", std, 0 if scalar else 1)
            scales = scales.expand_as(center) if scalar else scales
            if (scales < 0).any():
                raise ValueError(f"`std` is negative: got {scales.tolist()}, expected >= 0.")
            marginal = scales
        elif std is None and covariance is not None:
            sigma = as_float64("covariance", covariance, 2)
            check_shape("covariance", sigma, (len(center), len(center)))
            variances, self._axes = _eigen(sigma)
            scales, marginal = variances.sqrt(), sigma.diagonal().sqrt()
        else:
            raise ValueError(
                f"The spread is not clear: got std={std}, covariance={covariance}, expected "
                "exactly one of the two."
            )
        super().__init__(center, marginal, times or KarrasTimes())
        self._scales = scales  # standard deviation along each axis

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        r"""Returns :math:`\varphi(x_t, t, s)`; at s = t the denoiser :math:`E[a | x_t]`.

        Args:
            obs: Observation, shape (B, O); ignored.
            x: Noisy action :math:`x_t`, shape (B, A).
            t: Start time, shape (B,), > 0.
            s: Target time, shape (B,), 0 <= s <= t.

        Returns:
            :math:`\varphi`, shape (B, A).

        Raises:
            ShapeError: If the shapes disagree with each other or with the oracle's dimension.
        """
        self._check(obs, x, t, s)
        mean = self.mean.to(x)
        factor = gaussian_factor(self._scales.to(x), t.unsqueeze(-1), s.unsqueeze(-1))
        return mean + self._along_axes(x - mean, factor)

    def sample(self, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        """Draws from the normal distribution.

        Args:
            obs: Observation, shape (B, O); gives the batch size, dtype and device.
            generator: Source of randomness.

        Returns:
            Actions, shape (B, A).
        """
        z = torch.randn(
            (obs.shape[0], len(self.mean)),
            generator=generator,
            device=generator.device,
            dtype=torch.float64,
        ).to(obs)
        if self._axes is None:
            return self.mean.to(obs) + self._scales.to(obs) * z
        return self.mean.to(obs) + (self._scales.to(obs) * z) @ self._axes.to(obs).T

    def _along_axes(self, vector: Tensor, factor: Tensor) -> Tensor:
        if self._axes is None:
            return factor * vector
        axes = self._axes.to(vector)
        return (factor * (vector @ axes)) @ axes.T


def gaussian_factor(std: Tensor, t: Tensor, s: Tensor) -> Tensor:
    r"""Returns :math:`(\varphi - \mu) / (x - \mu)` of normal data, by broadcasting."""
    r = s / t
    h_t, h_s = torch.hypot(std, t), torch.hypot(std, s)
    # std = s = 0 makes the denominator 0, and the numerator with it.
    tiny = torch.finfo(std.dtype).tiny
    return (std / h_t) * (std * (1 + r) / (h_s + r * h_t).clamp_min(tiny))


def _eigen(covariance: Tensor) -> tuple[Tensor, Tensor]:
    scale = covariance.abs().amax()
    skew = (covariance - covariance.T).abs().amax()
    if skew > 1e-6 * scale:
        raise ValueError(
            f"`covariance` is not symmetric: got a difference of {float(skew):.3g} to its "
            "transpose, expected none beyond rounding."
        )
    variances, axes = torch.linalg.eigh((covariance + covariance.T) / 2)
    if variances.amin() < -1e-6 * scale:
        raise ValueError(
            f"`covariance` is not positive semi-definite: got an eigenvalue of "
            f"{float(variances.amin()):.3g}, expected none below 0."
        )
    return variances.clamp_min(0), axes


class LinearPathFlowMap(AnalyticFlowMap):
    r"""The flow map of the same data along the linear path of flow matching.

    .. math:: y_a = (1 - a) x + a z, \qquad
        \Phi_{lin}(y, a, b) = \frac{\Phi(y (1 + t), t, s)}{1 + s}, \quad
        t = \frac{a}{1 - a}, \; s = \frac{b}{1 - b}

    Rescaling time and space turns one path into the other, so the endpoint map is the same
    function, :math:`\varphi_{lin}(y, a, b) = \varphi(y (1 + t), t, s)`, and the flow map follows
    from it as everywhere: :math:`\Phi_{lin} = \tfrac{b}{a} y + (1 - \tfrac{b}{a}) \varphi_{lin}`.
    Times are in (0, 1] here; at a = 1, pure noise, the limit is taken to rounding.

    Args:
        flow_map: The oracle of the data on the path :math:`x_t = x + t z`.
        times: The time range, ``t_max`` at most 1; default `LinearTimes`, from which losses
            know that actions are perturbed along this path.

    Raises:
        ValueError: If ``times`` reach beyond 1.

    Example:
        >>> import torch
        >>> from gtp_policy.testing import GaussianFlowMap, LinearPathFlowMap
        >>> oracle = LinearPathFlowMap(GaussianFlowMap([0.25], 0.5))
        >>> noise = torch.tensor([[1.0]])  # one standard deviation stays one standard deviation
        >>> oracle(torch.zeros(1, 3), noise, torch.ones(1), torch.zeros(1))
        tensor([[0.7500]])
    """

    def __init__(self, flow_map: AnalyticFlowMap, *, times: TimeSchedule | None = None) -> None:
        times = times or LinearTimes()
        if times.t_max > 1:
            raise ValueError(
                f"`times` reach beyond the linear path: got t_max={times.t_max}, expected at "
                "most 1."
            )
        super().__init__(flow_map.mean, flow_map.std, times)
        self._flow_map = flow_map

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        r"""Returns :math:`\varphi_{lin}(y, a, b)`; at b = a the denoiser :math:`E[x | y_a]`.

        Args:
            obs: Observation, shape (B, O); ignored.
            x: Noisy action :math:`y_a`, shape (B, A).
            t: Start time a, shape (B,), 0 < a <= 1.
            s: Target time b, shape (B,), 0 <= b <= a.

        Returns:
            :math:`\varphi_{lin}`, shape (B, A).

        Raises:
            ShapeError: If the shapes disagree with each other or with the oracle's dimension.
        """
        self._check(obs, x, t, s)
        eps = torch.finfo(x.dtype).eps
        rest_t, rest_s = (1 - t).clamp_min(eps), (1 - s).clamp_min(eps)
        return self._flow_map.endpoint(obs, x / rest_t.unsqueeze(-1), t / rest_t, s / rest_s)

    def sample(self, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        """Draws from the data distribution, which is the same for both paths.

        Args:
            obs: Observation, shape (B, O); gives the batch size, dtype and device.
            generator: Source of randomness.

        Returns:
            Actions, shape (B, A).
        """
        return self._flow_map.sample(obs, generator=generator)
