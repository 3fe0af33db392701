r"""One named check per invariant of a flow map.

A check is a plain function of a flow map and a `Probe`, the points to check it at. It draws nothing
itself, so the same check runs on points from a seeded generator (`draw_probe`) and on points from
hypothesis (`gtp_policy.testing.probes`), which shrinks them to the simplest ones that fail.

A failed check raises `CheckFailure`, an ``AssertionError`` that says what is wrong, what was got,
what was expected, and at which times. "Up to rounding" is :math:`\epsilon^{3/4} (1 + |x|)` with
:math:`\epsilon` the spacing of the dtype: 6e-6 in float32, 2e-12 in float64.
"""

import torch
from torch import Tensor, nn

from gtp_policy.functional import FlowMap
from gtp_policy.functional import flow_map as on_line
from gtp_policy.testing.probes import Probe


class CheckFailure(AssertionError):
    """An invariant that a flow map does not satisfy; the message names row and times.

    Example:
        >>> from gtp_policy.testing import CheckFailure
        >>> issubclass(CheckFailure, AssertionError)
        True
    """


@torch.no_grad()
def check_no_inplace(flow_map: FlowMap, probe: Probe) -> None:
    """Checks that a flow map does not write to its inputs.

    Args:
        flow_map: The flow map to check.
        probe: The points.

    Raises:
        CheckFailure: If obs, x, t or s is changed by a call or by ``endpoint``.

    Example:
        >>> from gtp_policy.testing import PointMassFlowMap, check_no_inplace, draw_probe
        >>> oracle = PointMassFlowMap([0.5])
        >>> check_no_inplace(oracle, draw_probe(oracle, obs_dim=3, action_dim=1))
    """
    inputs = (probe.obs, probe.x, probe.times.t, probe.times.s)
    for name, function in (("The call", flow_map), ("`endpoint`", flow_map.endpoint)):
        copies = [v.clone() for v in inputs]
        function(*copies)
        for argument, before, after in zip(("obs", "x", "t", "s"), inputs, copies, strict=True):
            what = f"{name} writes to its input `{argument}`"
            _compare(what, probe, after, before, 0.0)


@torch.no_grad()
def check_shape_dtype_device(flow_map: FlowMap, probe: Probe) -> None:
    """Checks that results have the shape, dtype and device of the noisy action.

    Args:
        flow_map: The flow map to check.
        probe: The points.

    Raises:
        CheckFailure: If a result differs from x in one of the three.

    Example:
        >>> from gtp_policy.testing import PointMassFlowMap, check_shape_dtype_device, draw_probe
        >>> oracle = PointMassFlowMap([0.5])
        >>> check_shape_dtype_device(oracle, draw_probe(oracle, obs_dim=3, action_dim=1))
    """
    obs, x, (t, _, s) = probe
    for name, result in (
        ("Phi(x, t, s)", flow_map(obs, x, t, s)),
        ("phi(x, t, s)", flow_map.endpoint(obs, x, t, s)),
    ):
        for kind in ("shape", "dtype", "device"):
            got, expected = getattr(result, kind), getattr(x, kind)
            if got != expected:
                raise CheckFailure(
                    f"{name} has the wrong {kind}: got {got}, expected that of x, {expected}."
                )


@torch.no_grad()
def check_finite(flow_map: FlowMap, probe: Probe) -> None:
    """Checks that results are finite, down to s = 0 and up to s = t.

    Args:
        flow_map: The flow map to check.
        probe: The points.

    Raises:
        CheckFailure: If a result is NaN or infinite.

    Example:
        >>> from gtp_policy.testing import PointMassFlowMap, check_finite, draw_probe
        >>> oracle = PointMassFlowMap([0.5])
        >>> check_finite(oracle, draw_probe(oracle, obs_dim=3, action_dim=1))
    """
    obs, x, (t, _, s) = probe
    for name, target in (("s", s), ("t", t), ("0", torch.zeros_like(s))):
        for symbol, function in (("Phi", flow_map), ("phi", flow_map.endpoint)):
            result = function(obs, x, t, target)
            zero = torch.where(result.isfinite(), result, torch.zeros_like(result))
            _compare(f"{symbol}(x, t, {name}) is not finite", probe, result, zero, 0.0)


@torch.no_grad()
def check_deterministic(flow_map: FlowMap, probe: Probe) -> None:
    """Checks that the same inputs give the same result, bit for bit.

    Args:
        flow_map: The flow map to check.
        probe: The points.

    Raises:
        CheckFailure: If a second call differs from the first.

    Example:
        >>> from gtp_policy.testing import PointMassFlowMap, check_deterministic, draw_probe
        >>> oracle = PointMassFlowMap([0.5])
        >>> check_deterministic(oracle, draw_probe(oracle, obs_dim=3, action_dim=1))
    """
    obs, x, (t, _, s) = probe
    for symbol, function in (("Phi", flow_map), ("phi", flow_map.endpoint)):
        first = function(obs, x, t, s).clone()
        second = function(obs, x, t, s)
        _compare(f"{symbol}(x, t, s) differs from call to call", probe, second, first, 0.0)


@torch.no_grad()
def check_batch_independence(flow_map: FlowMap, probe: Probe, *, atol: float | None = None) -> None:
    """Checks that each row of a batch gives what it gives alone.

    Args:
        flow_map: The flow map to check.
        probe: The points; at least 2, or there is nothing to be independent of.
        atol: Largest allowed difference; default up to rounding.

    Raises:
        CheckFailure: If a row depends on the others.

    Example:
        >>> from gtp_policy.testing import PointMassFlowMap, check_batch_independence, draw_probe
        >>> oracle = PointMassFlowMap([0.5])
        >>> check_batch_independence(oracle, draw_probe(oracle, obs_dim=3, action_dim=1))
    """
    obs, x, (t, _, s) = probe
    rows = [slice(i, i + 1) for i in range(x.shape[0])]
    for symbol, function in (("Phi", flow_map), ("phi", flow_map.endpoint)):
        together = function(obs, x, t, s)
        alone = torch.cat([function(obs[i], x[i], t[i], s[i]) for i in rows])
        what = f"{symbol}(x, t, s) depends on the rest of the batch"
        # Rounding grows with the result too, which can be far larger than the input.
        scale = torch.cat([x, together], -1) if together.shape == x.shape else x
        _compare(what, probe, together, alone, _allowed(scale, atol))


@torch.no_grad()
def check_identity(flow_map: FlowMap, probe: Probe, *, atol: float = 0.0) -> None:
    r"""Checks that no time means no move: :math:`\Phi(x, t, t) = x`.

    Args:
        flow_map: The flow map to check.
        probe: The points.
        atol: Largest allowed difference; default none, bit for bit.

    Raises:
        CheckFailure: If the identity does not hold.

    Example:
        >>> from gtp_policy.testing import PointMassFlowMap, check_identity, draw_probe
        >>> oracle = PointMassFlowMap([0.5])
        >>> check_identity(oracle, draw_probe(oracle, obs_dim=3, action_dim=1))
    """
    for name, time in zip(("t", "u"), probe.times, strict=False):
        moved = flow_map(probe.obs, probe.x, time, time)
        _compare(f"Phi(x, {name}, {name}) is not x", probe, moved, probe.x, atol)


@torch.no_grad()
def check_boundary(flow_map: FlowMap, probe: Probe, *, atol: float | None = None) -> None:
    r"""Checks that the jump to 0 is the endpoint: :math:`\Phi(x, t, 0) = \varphi(x, t, 0)`.

    Args:
        flow_map: The flow map to check.
        probe: The points.
        atol: Largest allowed difference; default up to rounding, 0 for bit for bit.

    Raises:
        CheckFailure: If the boundary condition does not hold.

    Example:
        >>> from gtp_policy.testing import PointMassFlowMap, check_boundary, draw_probe
        >>> oracle = PointMassFlowMap([0.5])
        >>> check_boundary(oracle, draw_probe(oracle, obs_dim=3, action_dim=1), atol=0.0)
    """
    obs, x, (t, _, s) = probe
    zero = torch.zeros_like(s)
    moved, endpoint = flow_map(obs, x, t, zero), flow_map.endpoint(obs, x, t, zero)
    _compare("Phi(x, t, 0) is not phi(x, t, 0)", probe, moved, endpoint, _allowed(x, atol))


@torch.no_grad()
def check_line(flow_map: FlowMap, probe: Probe, *, atol: float | None = None) -> None:
    r"""Checks that call and endpoint belong together.

    .. math:: \Phi = \tfrac{s}{t} x + (1 - \tfrac{s}{t}) \varphi

    Args:
        flow_map: The flow map to check.
        probe: The points.
        atol: Largest allowed difference; default up to rounding.

    Raises:
        CheckFailure: If Phi does not lie on the line at that place.

    Example:
        >>> from gtp_policy.testing import PointMassFlowMap, check_line, draw_probe
        >>> oracle = PointMassFlowMap([0.5])
        >>> check_line(oracle, draw_probe(oracle, obs_dim=3, action_dim=1))
    """
    obs, x, (t, _, s) = probe
    moved, endpoint = flow_map(obs, x, t, s), flow_map.endpoint(obs, x, t, s)
    what = "Phi(x, t, s) is not (s/t) x + (1 - s/t) phi(x, t, s)"
    _compare(what, probe, moved, on_line(x, endpoint, t, s), _allowed(x, atol))


@torch.no_grad()
def check_between(flow_map: FlowMap, probe: Probe, *, atol: float | None = None) -> None:
    r"""Checks that :math:`\Phi` lies between :math:`\varphi` and x in each coordinate.

    Args:
        flow_map: The flow map to check.
        probe: The points.
        atol: By how much it may lie outside; default up to rounding.

    Raises:
        CheckFailure: If Phi overshoots the endpoint or moves away from it.

    Example:
        >>> from gtp_policy.testing import PointMassFlowMap, check_between, draw_probe
        >>> oracle = PointMassFlowMap([0.5])
        >>> check_between(oracle, draw_probe(oracle, obs_dim=3, action_dim=1))
    """
    obs, x, (t, _, s) = probe
    moved, endpoint = flow_map(obs, x, t, s), flow_map.endpoint(obs, x, t, s)
    inside = torch.maximum(
        torch.minimum(moved, torch.maximum(x, endpoint)), torch.minimum(x, endpoint)
    )
    what = "Phi(x, t, s) is not between x and phi(x, t, s)"
    _compare(what, probe, moved, inside, _allowed(x, atol))


@torch.no_grad()
def check_denoiser_is_endpoint(flow_map: FlowMap, probe: Probe) -> None:
    r"""Checks that the denoiser :math:`E[a | x_t]` is :math:`\varphi(x, t, t)`, not :math:`\Phi`.

    :math:`\Phi(x, t, t)` is x itself, so a flow map that mixes the two up removes no noise at all:
    its ``endpoint`` at s = t returns the input. Checked on the upper half of the times, where
    nearly everything is noise.

    Args:
        flow_map: The flow map to check.
        probe: The points.

    Raises:
        CheckFailure: If ``endpoint`` at s = t gives back x.

    Example:
        >>> from gtp_policy.testing import (
        ...     PointMassFlowMap, check_denoiser_is_endpoint, draw_probe)
        >>> oracle = PointMassFlowMap([0.5])
        >>> check_denoiser_is_endpoint(oracle, draw_probe(oracle, obs_dim=3, action_dim=1))
    """
    obs, x, (t, _, _) = probe
    noisy = t >= t.median()
    denoised = flow_map.endpoint(obs, x, t, t)
    if ((denoised - x).abs() <= _allowed(x, None))[noisy].all():
        row = int(t.argmax())
        raise CheckFailure(
            "The denoiser phi(x, t, t) removes nothing: got x itself, as from Phi(x, t, t), "
            f"expected E[a | x_t]. At t={float(t[row]):.6g}, x={x[row].tolist()}, it returns "
            f"{denoised[row].tolist()}."
        )


@torch.no_grad()
def check_semigroup(flow_map: FlowMap, probe: Probe, *, atol: float) -> None:
    r"""Checks that two jumps make one: :math:`\Phi(\Phi(x, t, u), u, s) = \Phi(x, t, s)`.

    True for the flow of a differential equation only. A trained network approaches it: measure
    that with `semigroup_defect`.

    Args:
        flow_map: The flow map to check.
        probe: The points.
        atol: Largest allowed difference, in action units.

    Raises:
        CheckFailure: If the semigroup law does not hold.

    Example:
        >>> import torch
        >>> from gtp_policy.testing import GaussianFlowMap, check_semigroup, draw_probe
        >>> oracle = GaussianFlowMap([0.5], 0.2)
        >>> probe = draw_probe(oracle, obs_dim=3, action_dim=1, dtype=torch.float64)
        >>> check_semigroup(oracle, probe, atol=1e-9)
    """
    obs, x, (t, u, s) = probe
    two_jumps = flow_map(obs, flow_map(obs, x, t, u), u, s)
    what = "Phi(Phi(x, t, u), u, s) is not Phi(x, t, s)"
    _compare(what, probe, two_jumps, flow_map(obs, x, t, s), atol)


def check_finite_gradients(flow_map: FlowMap, probe: Probe) -> None:
    """Checks that every parameter gets a finite gradient, also at s = 0 and s = t.

    Differentiates the squares of Phi and of the denoiser. ``.grad`` stays as it is.

    Args:
        flow_map: The flow map to check, a module.
        probe: The points.

    Raises:
        CheckFailure: If a parameter gets no gradient, or one with NaN or infinity.
        TypeError: If the flow map is not a ``torch.nn.Module``.

    Example:
        >>> from gtp_policy import FlowMapActor
        >>> from gtp_policy.testing import check_finite_gradients, draw_probe
        >>> actor = FlowMapActor(3, 2)
        >>> check_finite_gradients(actor, draw_probe(actor, obs_dim=3, action_dim=2))
    """
    if not isinstance(flow_map, nn.Module):
        raise TypeError(
            f"Only modules have parameters: got {type(flow_map).__name__}, expected a "
            "torch.nn.Module."
        )
    obs, x, (t, _, s) = probe
    named = {n: p for n, p in flow_map.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        parts = (flow_map(obs, x, t, s), flow_map.endpoint(obs, x, t, t))
        loss = torch.stack([part.square().mean() for part in parts]).sum()
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    for name, gradient in zip(named, gradients, strict=True):
        if gradient is None:
            raise CheckFailure(
                f"Parameter `{name}` gets no gradient: got None, expected one. Use it, or freeze "
                "it with requires_grad_(False)."
            )
        bad = ~gradient.isfinite()
        if bad.any():
            raise CheckFailure(
                f"The gradient of parameter `{name}` is not finite: got {float(gradient[bad][0])} "
                f"in {int(bad.sum())} of {bad.numel()} entries, expected finite numbers."
            )


def _allowed(x: Tensor, atol: float | None) -> Tensor | float:
    """Returns the allowed difference per row: the given one, or what rounding explains."""
    if atol is not None:
        return atol
    rounding: float = torch.finfo(x.dtype).eps ** 0.75
    return rounding * (1 + x.abs().amax(-1, keepdim=True))


def _compare(
    what: str, probe: Probe, got: Tensor, expected: Tensor, allowed: Tensor | float
) -> None:
    """Raises unless two results agree in every row; NaN never does."""
    if got.shape != expected.shape:
        raise CheckFailure(f"{what}: got shape {tuple(got.shape)}, not {tuple(expected.shape)}.")
    rows = probe.x.shape[0]
    # NaN and infinity count as infinitely far, whatever they are compared with.
    error = (got - expected).abs().nan_to_num(nan=torch.inf).reshape(rows, -1).amax(-1)
    limit = torch.as_tensor(allowed).to(error).reshape(-1).expand(rows)
    bad = ~(error <= limit)
    if bad.any():
        row = int((error - limit).argmax())
        t, u, s = (float(v[row]) for v in probe.times)
        raise CheckFailure(
            f"{what}: got {got[row].tolist()}, expected {expected[row].tolist()}, a difference of "
            f"{float(error[row]):.3g} where {float(limit[row]):.3g} is allowed, in row {row} with "
            f"t={t:.6g}, u={u:.6g}, s={s:.6g}. {int(bad.sum())} of {rows} rows fail."
        )
