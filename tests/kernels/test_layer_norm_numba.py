"""Layer normalisation row by row, there and back, against torch's in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from gtp_policy import GTPConfig, GTPLearner, QEnsembleConfig, Transitions
from gtp_policy.kernels import using
from gtp_policy.kernels.layer_norm import LAYER_NORM_EPS

pytest.importorskip("numba", reason="the compiled kernels need numba (extra 'fast')")
from gtp_policy.kernels import layer_norm_numba


def draw(shape: tuple[int, int], scale: float, seed: int) -> list[Tensor]:
    """Returns a layer, its bias, gain and shift, and a gradient."""
    g = torch.Generator().manual_seed(seed)
    rows = [torch.randn(shape[1], generator=g) for _ in range(3)]
    x, gradient = (torch.randn(shape, generator=g) * scale for _ in range(2))
    return [x, *rows, gradient]


@settings(max_examples=50, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(2, 70)),
    scale=st.sampled_from([1e-2, 1.0, 30.0]),
    seed=st.integers(0, 2**31),
)
def test_values_and_gradients_are_those_of_torch(
    shape: tuple[int, int], scale: float, seed: int
) -> None:
    x, bias, gain, shift, gradient = draw(shape, scale, seed)
    inputs = [v.double().requires_grad_() for v in (x + bias, gain, shift)]
    expected = functional.layer_norm(inputs[0], shape[1:], inputs[1], inputs[2], LAYER_NORM_EPS)
    expected.backward(gradient.double())
    of_x, of_gain, of_shift = (v.grad for v in inputs)
    assert of_x is not None
    plain, both = x.clone(), x.clone()
    unit, rstd = torch.empty(shape), torch.empty(shape[0])
    arrays = [v.numpy() for v in (bias, gain, shift)]
    layer_norm_numba.normalise_(plain.numpy(), *arrays)
    layer_norm_numba.normalise_and_keep_(both.numpy(), *arrays, unit.numpy(), rstd.numpy())
    # Values that are close together cancel: of a row's spread the last bits of its size are lost.
    size, spread = (x + bias).abs().amax(1), 1 / rstd
    lost = 1e-6 * float((1 + size / spread).max())
    for got in (plain, both):
        torch.testing.assert_close(got.double(), expected.detach(), rtol=0, atol=10 * lost)
    grads = torch.full_like(gain, torch.nan), torch.full_like(shift, torch.nan)  # overwritten
    back = gradient.clone()
    layer_norm_numba.normalise_back_(
        *(v.numpy() for v in (back, unit, rstd, gain, *grads)),
    )
    for got, exact in zip((back, *grads), (of_x, of_gain, of_shift), strict=True):
        scale = float(exact.abs().max()) + float(gradient.abs().max()) * math.sqrt(shape[0])
        scale *= max(1.0, float(rstd.max())) if got is back else 1.0
        torch.testing.assert_close(got.double(), exact, rtol=0, atol=20 * lost * scale)


def test_what_is_no_number_stays_so() -> None:
    x = np.array([[np.nan, 1, 2], [3, 1, 2]], np.float32)
    one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    layer_norm_numba.normalise_(x, zero, one, zero)
    assert np.isnan(x[0]).all()
    assert np.isfinite(x[1]).all()


def test_a_constant_row_is_its_shift() -> None:
    x, shift = np.full((2, 4), 7.0, np.float32), np.arange(4, dtype=np.float32)
    layer_norm_numba.normalise_(x, np.zeros(4, np.float32), np.ones(4, np.float32), shift)
    assert x.tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize("activation", ["mish", "gelu", "relu"])
def test_an_update_is_the_same_without_numba(activation: str) -> None:
    config = GTPConfig(critic=QEnsembleConfig(layer_norm=True, activation=activation))
    compiled, plain = GTPLearner.build(3, 2, config), GTPLearner.build(3, 2, config)
    g = torch.Generator().manual_seed(0)
    batch = Transitions(
        obs=torch.randn(300, 3, generator=g),
        action=torch.rand(300, 2, generator=g) * 2 - 1,
        reward=torch.randn(300, generator=g),
        next_obs=torch.randn(300, 3, generator=g),
        discount=torch.full((300,), 0.99),
    )
    got = compiled.update(batch).to_floats()
    with using("torch"):
        assert got == pytest.approx(plain.update(batch).to_floats(), rel=1e-3, abs=1e-5)
    assert compiled.critic is not None
    assert plain.critic is not None
    for a, b in zip(compiled.critic.parameters(), plain.critic.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)
