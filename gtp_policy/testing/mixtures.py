r"""The flow map of one-dimensional Gaussian mixtures and their products, to rounding.

In one dimension a flow cannot reorder points, so it maps quantiles to quantiles:
:math:`F_s(\Phi(x)) = F_t(x)` with :math:`F_t(x) = \sum_k \pi_k \, N(w_k)`, N the normal
distribution function, :math:`w_k = (x - m_k) / h_{t,k}` and :math:`h_{t,k}^2 = v_k + t^2`.

Solving this for :math:`\Phi` loses all digits in the tails, between separated modes (F is flat
there) and as s approaches t (a difference of nearly equal numbers). So it is written for the
endpoint. With :math:`\varphi_k` the endpoint of component k alone, which is normal and known,
the quantile of component k moves by exactly

.. math:: \delta_k = (1 - r) \frac{\varphi - \varphi_k}{h_{s,k}},

and the condition :math:`\sum_k \pi_k (N(w_k + \delta_k) - N(w_k)) = 0` becomes

.. math:: \sum_k \frac{\pi_k}{h_{s,k}} \bar n_k \, (\varphi - \varphi_k) = 0,
    \qquad \bar n_k = \text{mean of the normal density over } [w_k, w_k + \delta_k]

The endpoint of a mixture is a weighted mean of its components' endpoints. At s = t the weights are
the posterior probabilities and the mean is :math:`E[a | x_t]`: the denoiser is no special case.
The left side increases in :math:`\varphi` and changes sign between the smallest and the largest
:math:`\varphi_k`: a bracket for Newton's method, with all weights scaled in log space.
"""

import math

import numpy as np
import torch
from torch import Tensor

from gtp_policy.functional import check_shape
from gtp_policy.testing.oracles import AnalyticFlowMap, Values, as_float64, gaussian_factor
from gtp_policy.times import KarrasTimes, TimeSchedule

_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(8)
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class MixtureFlowMap(AnalyticFlowMap):
    r"""The flow map of a mixture of normal distributions, each action dimension by itself.

    .. math:: \Phi(x, t, s) = F_s^{-1}(F_t(x)), \qquad
        F_t(x) = \sum_k \pi_k N\left(\frac{x - m_k}{\sqrt{v_k + t^2}}\right)

    with N the normal distribution function: exact, no differential equation is solved. Several
    dimensions are independent of each other, so two two-mode mixtures make four modes in the plane.

    Errors stay near 1e-12 in float64, also in the tails, between separated modes and as s
    approaches t. The computation is done in float64 whatever the input, and is not differentiable.

    A component with standard deviation 0 is a point mass. For two of them at :math:`\pm m` the
    denoiser is :math:`m \tanh(m x / t^2)`.

    Args:
        means: :math:`m_k`, shape (K,) for one action dimension, (A, K) for several.
        stds: :math:`\sqrt{v_k}`, of the same shape or one for all, >= 0.
        weights: :math:`\pi_k`, of the same shape, >= 0, scaled to sum 1 per dimension; default
            all equal.
        times: The time range.

    Raises:
        ShapeError: If the shapes disagree.
        NonFiniteError: If a value is not finite.
        ValueError: If a standard deviation or a weight is negative, or all weights are 0.

    Example:
        >>> import torch
        >>> from gtp_policy.testing import MixtureFlowMap
        >>> oracle = MixtureFlowMap([-0.7, 0.7], 0.1)
        >>> x, t = torch.tensor([[0.0], [0.01], [2.5]]), torch.full((3,), 2.0)
        >>> oracle(torch.zeros(3, 1), x, t, torch.zeros(3))
        tensor([[0.0000],
                [0.4326],
                [0.7708]])
    """

    def __init__(
        self,
        means: Values,
        stds: Values | float,
        weights: Values | None = None,
        *,
        times: TimeSchedule | None = None,
    ) -> None:
        centers = as_float64("means", means, min(max(torch.as_tensor(means).ndim, 1), 2))
        single = torch.as_tensor(stds).ndim == 0
        widths = as_float64("stds", stds, 0 if single else centers.ndim)
        widths = widths.expand_as(centers) if single else widths
        shares = as_float64(
            "weights", torch.ones_like(centers) if weights is None else weights, centers.ndim
        )
        for name, values in (("stds", widths), ("weights", shares)):
            check_shape(name, values, tuple(centers.shape))
            if (values < 0).any():
                raise ValueError(f"`{name}` are negative: got {values.tolist()}, expected >= 0.")
        if not (shares.sum(-1) > 0).all():
            raise ValueError(
                f"`weights` are all 0: got {shares.tolist()}, expected a positive one for each "
                "dimension."
            )
        shares = shares / shares.sum(-1, keepdim=True)
        # One row per action dimension from here on: (A, K).
        self._means, self._stds, self._weights = (
            v.reshape(-1, v.shape[-1]) for v in (centers, widths, shares)
        )
        mean = (self._weights * self._means).sum(-1)
        spread = self._stds.square() + (self._means - mean.unsqueeze(-1)).square()
        super().__init__(mean, (self._weights * spread).sum(-1).sqrt(), times or KarrasTimes())

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        r"""Returns :math:`\varphi(x_t, t, s)`; at s = t the denoiser :math:`E[a | x_t]`.

        Args:
            obs: Observation, shape (B, O); ignored.
            x: Noisy action :math:`x_t`, shape (B, A).
            t: Start time, shape (B,), > 0.
            s: Target time, shape (B,), 0 <= s <= t.

        Returns:
            :math:`\varphi`, shape (B, A), without gradient.

        Raises:
            ShapeError: If the shapes disagree with each other or with the oracle's dimension.
        """
        self._check(obs, x, t, s)
        with torch.no_grad():
            wide = (v.to(x.device) for v in (self._means, self._stds, self._weights))
            columns = (v.double().reshape(-1, 1, 1) for v in (t, s))
            return _endpoint(x.double().unsqueeze(-1), *columns, *wide).to(x.dtype)

    def sample(self, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        """Draws from the mixture: a component, then a normal number.

        Args:
            obs: Observation, shape (B, O); gives the batch size, dtype and device.
            generator: Source of randomness.

        Returns:
            Actions, shape (B, A).
        """
        batch, device = obs.shape[0], generator.device
        weights, means, stds = (v.to(device) for v in (self._weights, self._means, self._stds))
        component = torch.multinomial(weights, batch, replacement=True, generator=generator)
        z = torch.randn(component.shape, generator=generator, device=device, dtype=torch.float64)
        draws = means.gather(1, component) + stds.gather(1, component) * z
        return draws.T.contiguous().to(obs)


def _endpoint(
    x: Tensor, t: Tensor, s: Tensor, means: Tensor, stds: Tensor, weights: Tensor
) -> Tensor:
    """Solves for the endpoint, (B, A), from x (B, A, 1), t and s (B, 1, 1), the rest (A, K)."""
    r = s / t
    # A point mass has no width at s = 0; this stand-in is far below any difference of actions.
    h_s = torch.hypot(stds, s).clamp_min(1e-100)
    start = (x - means) / torch.hypot(stds, t)
    alone = means + gaussian_factor(stds, t, s) * (x - means)
    log_share = weights.log() - h_s.log()

    low, high = alone.amin(-1), alone.amax(-1)
    tolerance = 4 * torch.finfo(torch.float64).eps * torch.maximum(low.abs(), high.abs())
    phi = (low + high) / 2
    done = high - low <= tolerance
    # Two Newton steps, then one bisection: at worst 53 bisections, usually 6 steps in all.
    for iteration in range(3 * 60):
        if done.all():
            break
        difference = phi.unsqueeze(-1) - alone
        shift = (1 - r) * difference / h_s
        log_weight = log_share + _log_mean_density(start, shift)
        scale = log_weight.amax(-1, keepdim=True)
        value = ((log_weight - scale).exp() * difference).sum(-1)
        slope = (log_share - _half_square(start + shift) - scale).exp().sum(-1)
        low, high = torch.where(value < 0, phi, low), torch.where(value > 0, phi, high)
        newton = phi - value / slope
        settled = (newton - phi).abs() <= tolerance
        usable = (newton > low) & (newton < high) & (iteration % 3 < 2)
        following = torch.where(usable | settled, newton, (low + high) / 2)
        phi, done = torch.where(done, phi, following), done | settled | (high - low <= tolerance)
    return phi


def _log_mean_density(start: Tensor, shift: Tensor) -> Tensor:
    """Returns the log of the mean of the normal density over [start, start + shift]."""
    half = shift.abs() / 2
    center = (start + shift / 2).abs()  # the density is even
    # Short: n(center) times the mean of exp(-center u - u^2/2), |u| <= half, by Gauss-Legendre.
    short = torch.zeros_like(half)
    for node, weight in zip(_NODES.tolist(), _NODE_WEIGHTS.tolist(), strict=True):
        short += weight / 2 * (-(center + half * node / 2) * half * node).exp()
    # Long: a difference of two tails that are not nearly equal, mirrored to the lower one.
    end = start + shift
    mirrored = torch.where(start + end > 0, -1.0, 1.0)
    edges = torch.special.log_ndtr(mirrored * start), torch.special.log_ndtr(mirrored * end)
    upper, lower = torch.maximum(*edges), torch.minimum(*edges)
    long = upper + torch.log1p(-(lower - upper).exp()) - shift.abs().log()
    is_short = (center + half) * half < 0.5
    return torch.where(is_short, short.log() - _half_square(center), long)


def _half_square(w: Tensor) -> Tensor:
    """Returns minus the log of the normal density."""
    return 0.5 * w.square() + _LOG_SQRT_2PI
