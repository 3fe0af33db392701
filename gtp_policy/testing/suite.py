"""All checks at once: as one call, or as one pytest test per flow map and check."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import pytest
import torch
from torch import nn

from gtp_policy.functional import FlowMap, unwrapped
from gtp_policy.testing import checks
from gtp_policy.testing.probes import Probe, draw_probe

Check: TypeAlias = Callable[[FlowMap, Probe], None]


def check_flow_map(
    flow_map: FlowMap,
    *,
    obs_dim: int,
    action_dim: int,
    semigroup_atol: float | None = None,
    batch: int = 32,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Runs every check that applies to a flow map, at the points of `draw_probe`.

    The semigroup is checked only with a ``semigroup_atol``: a trained network approaches it, see
    `semigroup_defect`. Gradients are checked only for modules.

    Args:
        flow_map: The flow map to check.
        obs_dim: O.
        action_dim: A.
        semigroup_atol: Largest allowed difference between two jumps and one, in action units.
        batch: B, number of points, at least 2.
        device: Where the points live; default that of the module's first parameter, or the CPU.
        dtype: Floating type; default that of the module's first parameter, or torch's default.

    Raises:
        CheckFailure: If an invariant does not hold; the most basic one that does not.

    Example:
        >>> from gtp_policy.testing import GaussianFlowMap, check_flow_map
        >>> oracle = GaussianFlowMap([0.0, 0.5], 0.3)
        >>> check_flow_map(oracle, obs_dim=3, action_dim=2, semigroup_atol=1e-4)
    """
    flow_map = unwrapped(flow_map)  # wrappers have no `endpoint`
    for check in _due(flow_map, semigroup_atol).values():
        probe = draw_probe(flow_map, obs_dim, action_dim, batch=batch, device=device, dtype=dtype)
        check(flow_map, probe)


def parametrize_with_checks(
    flow_maps: Mapping[str, FlowMap] | Sequence[FlowMap],
    *,
    obs_dim: int,
    action_dim: int,
    semigroup_atol: float | None = None,
    expected_failures: Mapping[str, str] | None = None,
    batch: int = 32,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> pytest.MarkDecorator:
    """Decorates a test of ``flow_map`` and ``check``: one test per flow map and check.

    An expected failure is a strict ``xfail`` with its reason: the test fails as soon as the check
    passes, so that the reason cannot outlive the defect.

    Args:
        flow_maps: The flow maps, by the name that stands in the test's id; from a sequence, the
            name is the type, with a number if a type comes twice.
        obs_dim: O.
        action_dim: A.
        semigroup_atol: Largest allowed difference between two jumps and one; default unchecked.
        expected_failures: Reasons by test id, such as ``{"mine-check_identity": "not exact yet"}``.
        batch: B, number of points, at least 2.
        device: Where the points live; default that of the module's first parameter, or the CPU.
        dtype: Floating type; default that of the module's first parameter, or torch's default.

    Returns:
        The decorator. The test calls ``check(flow_map)``.

    Raises:
        ValueError: If an expected failure names no test.

    Example:
        >>> from gtp_policy.testing import PointMassFlowMap, parametrize_with_checks
        >>> @parametrize_with_checks([PointMassFlowMap([0.5])], obs_dim=3, action_dim=1)
        ... def test_my_flow_map(flow_map, check):
        ...     check(flow_map)
    """
    reasons = dict(expected_failures or {})
    cases = []
    for name, flow_map in _named(flow_maps).items():
        for check_name, check in _due(unwrapped(flow_map), semigroup_atol).items():
            case = f"{name}-{check_name}"
            reason = reasons.pop(case, None)
            run = functools.partial(
                _run, check, obs_dim, action_dim, batch=batch, device=device, dtype=dtype
            )
            marks = []
            if reason is not None:
                marks = [pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError)]
            cases.append(pytest.param(flow_map, run, id=case, marks=marks))
    if reasons:
        raise ValueError(
            f"Expected failures name no test: got {sorted(reasons)}, expected some of "
            f"{[case.id for case in cases]}."
        )
    return pytest.mark.parametrize(("flow_map", "check"), cases)


def _run(
    check: Check,
    obs_dim: int,
    action_dim: int,
    flow_map: FlowMap,
    *,
    batch: int,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> None:
    flow_map = unwrapped(flow_map)
    check(
        flow_map,
        draw_probe(flow_map, obs_dim, action_dim, batch=batch, device=device, dtype=dtype),
    )


def _named(flow_maps: Mapping[str, FlowMap] | Sequence[FlowMap]) -> dict[str, FlowMap]:
    if isinstance(flow_maps, Mapping):
        return dict(flow_maps)
    kinds = [type(flow_map).__name__ for flow_map in flow_maps]
    names = [k if kinds.count(k) == 1 else f"{k}{kinds[:i].count(k)}" for i, k in enumerate(kinds)]
    return dict(zip(names, flow_maps, strict=True))


def _due(flow_map: FlowMap, semigroup_atol: float | None) -> dict[str, Check]:
    """Returns the checks that apply to a flow map, by name, the most basic ones first."""
    due: dict[str, Check] = {
        "check_no_inplace": checks.check_no_inplace,
        "check_shape_dtype_device": checks.check_shape_dtype_device,
        "check_finite": checks.check_finite,
        "check_deterministic": checks.check_deterministic,
        "check_batch_independence": checks.check_batch_independence,
        "check_identity": checks.check_identity,
        "check_boundary": checks.check_boundary,
        "check_line": checks.check_line,
        "check_between": checks.check_between,
        "check_denoiser_is_endpoint": checks.check_denoiser_is_endpoint,
    }
    if semigroup_atol is not None:
        due["check_semigroup"] = functools.partial(checks.check_semigroup, atol=semigroup_atol)
    if isinstance(flow_map, nn.Module):
        due["check_finite_gradients"] = checks.check_finite_gradients
    return due
