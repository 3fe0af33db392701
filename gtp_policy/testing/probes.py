"""The points at which flow maps are checked, and their draw from a seeded generator."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gtp_policy.functional import FlowMap, perturb, unwrapped
from gtp_policy.times import KarrasTimes, Times, TimeSchedule


class Probe(NamedTuple):
    """The points at which a flow map is checked.

    Attributes:
        obs: Observation, shape (B, O).
        x: Noisy action, shape (B, A).
        times: t > u > s >= 0, each of shape (B,).

    Example:
        >>> import torch
        >>> from gtp_policy.times import Times
        >>> from gtp_policy.testing import PointMassFlowMap, Probe, check_identity
        >>> times = Times(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([0.0]))
        >>> probe = Probe(torch.zeros(1, 3), torch.ones(1, 2), times)
        >>> check_identity(PointMassFlowMap([0.5, 0.0]), probe)
    """

    obs: Tensor
    x: Tensor
    times: Times


def time_at(schedule: TimeSchedule, fraction: Tensor) -> Tensor:
    """Returns the times at fractions in [0, 1] of a schedule's range, evenly in log t, float64."""
    low = schedule.t_min if isinstance(schedule, KarrasTimes) else 1e-4 * schedule.t_max
    return (low * (schedule.t_max / low) ** fraction.double()).clamp_max(schedule.t_max)


def draw_probe(
    flow_map: FlowMap,
    obs_dim: int,
    action_dim: int,
    *,
    batch: int = 32,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Probe:
    """Draws points over the whole time range, with the ends in it.

    Times are even in log t; the first row starts at exactly ``t_max``, and s is exactly 0 in every
    fourth row. Noisy actions are uniform ones in [-1, 1] plus noise of standard deviation t.

    Args:
        flow_map: Gives the time range; a module also the default device and dtype.
        obs_dim: O.
        action_dim: A.
        batch: B, number of points, at least 2.
        generator: Source of randomness on the CPU; default one with a fixed seed, so that the same
            points are drawn every time.
        device: Where the points live; default that of the module's first parameter, or the CPU.
        dtype: Floating type; default that of the module's first parameter, or torch's default.

    Returns:
        The points.

    Raises:
        ValueError: If ``batch`` is smaller than 2.

    Example:
        >>> from gtp_policy.testing import PointMassFlowMap, draw_probe
        >>> draw_probe(PointMassFlowMap([0.5]), obs_dim=3, action_dim=1, batch=8).x.shape
        torch.Size([8, 1])
    """
    if batch < 2:
        raise ValueError(f"`batch` is out of range: got {batch}, expected at least 2.")
    generator = generator or torch.Generator().manual_seed(0)
    flow_map = unwrapped(flow_map)
    first = next(flow_map.parameters(), None) if isinstance(flow_map, nn.Module) else None
    device = device or (first.device if first is not None else "cpu")
    dtype = dtype or (first.dtype if first is not None else torch.get_default_dtype())

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def normal(dim: int) -> Tensor:
        return torch.randn(batch, dim, generator=generator, dtype=torch.float64)

    # Sorted and pushed apart by 0.01 of the range each: distinct in any floating type.
    fractions = (uniform(batch, 3).sort(-1).values + torch.tensor([0.0, 0.01, 0.02])) / 1.02
    fractions[0, 2] = 1.0
    s, u, t = time_at(flow_map.times, fractions).unbind(-1)
    s[::4] = 0.0
    x = perturb(2 * uniform(batch, action_dim) - 1, t, normal(action_dim))
    obs, x, t, u, s = (v.to(device=device, dtype=dtype) for v in (normal(obs_dim), x, t, u, s))
    return Probe(obs, x, Times(t, u, s))
