"""Bias, Mish and slope in one sweep, against float64 and against the same update without them."""

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from gtp_policy import GTPConfig, GTPLearner, Transitions

pytest.importorskip("numba", reason="the compiled kernels need numba (extra 'fast')")
from gtp_policy.kernels import mish, mish_numba


def oracle(x: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    total = (x.double() + bias.double()).requires_grad_()
    values = functional.mish(total)
    values.sum().backward()
    assert total.grad is not None
    return values.detach(), total.grad


@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64, 256)])
def test_values_and_slopes(shape: tuple[int, int], scale: float) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=g) * scale
    bias = torch.zeros(shape[1])  # the sum itself rounds, and is no matter of the kernel
    values, slopes = oracle(x, bias)
    plain, both, slope = x.clone(), x.clone(), torch.empty(shape)
    mish_numba.mish_(plain.numpy(), bias.numpy())
    mish_numba.mish_with_slope_(both.numpy(), bias.numpy(), slope.numpy())
    # Relative, however negative x is, down to where exp(x) is no normal number.
    normal = values.abs() > 2e-36
    for got in (plain, both):
        assert float(((got - values).abs() / values.abs())[normal].max()) < 2e-6
    torch.testing.assert_close(slope.double(), slopes, rtol=0, atol=3e-7)


def test_the_bias_belongs_to_its_column() -> None:
    x, bias = torch.zeros(2, 3), torch.tensor([-1.0, 0.0, 1.0])
    values, slopes = oracle(x, bias)
    slope = torch.empty(2, 3)
    mish_numba.mish_with_slope_(x.numpy(), bias.numpy(), slope.numpy())
    torch.testing.assert_close(x.double(), values, rtol=1e-6, atol=0)
    torch.testing.assert_close(slope.double(), slopes, rtol=1e-6, atol=1e-7)


def test_what_is_no_number_stays_so() -> None:
    x = np.array([[np.nan, np.inf, 3e38, -3e38]], np.float32)
    slope, bias = np.empty_like(x), np.zeros(4, np.float32)
    mish_numba.mish_with_slope_(x, bias, slope)
    assert np.isnan(x[0, 0])
    assert np.isnan(slope[0, 0])
    assert x[0, 1:].tolist() == [np.inf, np.float32(3e38), 0.0]
    assert slope[0, 1:].tolist() == [1.0, 1.0, 0.0]


def update(learner: GTPLearner) -> dict[str, float]:
    g = torch.Generator().manual_seed(0)
    batch = Transitions(
        obs=torch.randn(300, 3, generator=g),
        action=torch.rand(300, 2, generator=g) * 2 - 1,
        reward=torch.randn(300, generator=g),
        next_obs=torch.randn(300, 3, generator=g),
        discount=torch.full((300,), 0.99),
    )
    return learner.update(batch).to_floats()


@pytest.mark.parametrize("reason", ["numba is not installed", "numba does not work here"])
def test_without_numba_the_update_is_the_same(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    compiled, plain = GTPLearner.build(3, 2, GTPConfig()), GTPLearner.build(3, 2, GTPConfig())
    expected = update(compiled)

    def broken(*_: Any) -> Any:
        if "not installed" in reason:
            return None
        raise OSError("no place for the cache")

    mish._compiled_mish.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", broken)
    try:
        assert update(plain) == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert reason in mish._compiled_mish()[1]
    finally:
        mish._compiled_mish.cache_clear()
    for a, b in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert float((a - b).detach().abs().max()) <= 5e-5
