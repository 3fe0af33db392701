"""Measures: what training approaches is a number to watch, not an assertion."""

import torch
from torch import Tensor

from gtp_policy.errors import ShapeError
from gtp_policy.functional import FlowMap
from gtp_policy.times import Times


def semigroup_defect(flow_map: FlowMap, obs: Tensor, x: Tensor, times: Times) -> Tensor:
    r"""Returns how far two jumps end from the one jump over the same time.

    .. math:: \|\Phi(\Phi(x_t, t, u), u, s) - \Phi(x_t, t, s)\|_2

    Zero for an exact flow. A small value alone certifies nothing: the identity map has none. Look
    at moments or at `wasserstein1` too.

    Args:
        flow_map: Any flow map.
        obs: Observation, shape (B, O).
        x: Noisy action :math:`x_t`, shape (B, A).
        times: t > u >= s >= 0, each of shape (B,).

    Returns:
        The Euclidean distance per row, in action units, shape (B,); with gradient if the flow map
        has one.

    Example:
        >>> import torch
        >>> from gtp_policy.times import Times
        >>> from gtp_policy.testing import PointMassFlowMap, semigroup_defect
        >>> times = Times(torch.tensor([4.0]), torch.tensor([2.0]), torch.tensor([1.0]))
        >>> semigroup_defect(PointMassFlowMap([0.5]), torch.zeros(1, 3), torch.ones(1, 1), times)
        tensor([0.])
    """
    two_jumps = flow_map(obs, flow_map(obs, x, times.t, times.u), times.u, times.s)
    one_jump = flow_map(obs, x, times.t, times.s)
    defect: Tensor = torch.linalg.vector_norm(two_jumps - one_jump, dim=-1)
    return defect


def wasserstein1(x: Tensor, y: Tensor) -> Tensor:
    r"""Returns the Wasserstein-1 distance of two samples, per coordinate.

    .. math:: W_1 = \int |F_x(v) - F_y(v)| \, dv

    with the two empirical distribution functions; the mean distance by which points have to be
    moved. Two samples of n points from one distribution still have a distance of order
    :math:`n^{-1/2}`.

    Args:
        x: Samples, shape (N, A) or (N,).
        y: Samples, shape (M, A) or (M,); M may differ from N.

    Returns:
        The distance per coordinate, in the units of the samples, shape (A,), or 0-d for samples of
        rank 1.

    Raises:
        ShapeError: If the samples disagree on A, are empty, or have another rank.

    Example:
        >>> import torch
        >>> from gtp_policy.testing import wasserstein1
        >>> wasserstein1(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
        tensor(1.)
    """
    if x.ndim not in (1, 2) or x.shape[1:] != y.shape[1:] or not (x.numel() and y.numel()):
        raise ShapeError(
            f"The samples do not match: got {tuple(x.shape)} and {tuple(y.shape)}, expected (N, A) "
            "and (M, A), or (N,) and (M,), none of them empty."
        )
    values, gap = ecdf_gap(x, y)
    widths = values.diff(dim=-1)
    return (gap.abs()[..., :-1] * widths).sum(-1).to(x.dtype)


def ecdf_gap(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the pooled, sorted values and :math:`F_x - F_y` at each, both (A, N + M), float64."""
    x, y = (v.detach().double().movedim(0, -1).sort(-1).values.contiguous() for v in (x, y))
    pooled = torch.cat([x, y], -1).sort(-1).values.contiguous()
    f_x, f_y = (torch.searchsorted(v, pooled, right=True).double() / v.shape[-1] for v in (x, y))
    return pooled, f_x - f_y
