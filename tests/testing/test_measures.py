"""Measures against numbers one can work out, and against scipy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance
from torch import Tensor

from gtp_policy.errors import ShapeError
from gtp_policy.functional import flow_map
from gtp_policy.testing import GaussianFlowMap, Probe, probes, semigroup_defect, wasserstein1
from gtp_policy.times import KarrasTimes, Times


class AlwaysDenoises:
    """Takes the denoiser of N(0, 1) as endpoint for all s: one Euler step, not the flow."""

    times = KarrasTimes()

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return x / (1 + t.square()).unsqueeze(-1)

    def __call__(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return flow_map(x, self.endpoint(obs, x, t, s), t, s)


def test_defect_of_a_linear_map_is_known() -> None:
    # The step from t to s multiplies by (1 + s t) / (1 + t^2).
    times = Times(torch.tensor([3.0]), torch.tensor([2.0]), torch.tensor([1.0]))
    two_jumps, one_jump = 7 / 10 * 3 / 5, 4 / 10
    defect = semigroup_defect(
        AlwaysDenoises(), torch.zeros(1, 1), torch.tensor([[3.0, 4.0]]), times
    )
    torch.testing.assert_close(defect, torch.tensor([5 * (two_jumps - one_jump)]))


@given(probes(1, 2))
def test_an_exact_flow_has_no_defect(probe: Probe) -> None:
    defect = semigroup_defect(GaussianFlowMap([0.1, -0.3], [0.2, 0.6]), *probe)
    assert defect.shape == probe.times.t.shape
    assert (defect < 1e-9).all()


def test_the_defect_can_be_trained_on() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    times = Times(torch.full((2,), 3.0), torch.full((2,), 2.0), torch.full((2,), 1.0))
    semigroup_defect(AlwaysDenoises(), torch.zeros(2, 1), x, times).sum().backward()
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0]]) * (7 / 10 * 3 / 5 - 4 / 10)
    torch.testing.assert_close(x.grad, expected)  # finite also where the defect is 0


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_wasserstein_agrees_with_scipy(n: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Few distinct values: ties within and between the samples.
    x, y = rng.integers(-4, 5, (n, 2)) / 3, rng.integers(-4, 5, (m, 2)) / 3
    got = wasserstein1(torch.from_numpy(x), torch.from_numpy(y))
    expected = [wasserstein_distance(x[:, i], y[:, i]) for i in range(2)]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)


def test_wasserstein_of_a_shift_is_the_shift(generator: torch.Generator) -> None:
    x = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    shift = torch.tensor([0.5, -1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(wasserstein1(x, x + shift), shift.abs())


def test_wasserstein_keeps_dtype_and_rank() -> None:
    assert wasserstein1(torch.zeros(3), torch.ones(2)).shape == ()
    assert wasserstein1(torch.zeros(3, 2), torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(("x", "y"), [((3, 2), (3,)), ((3, 2), (3, 1)), ((0,), (3,)), ((), ())])
def test_wasserstein_refuses_samples_that_do_not_match(
    x: tuple[int, ...], y: tuple[int, ...]
) -> None:
    with pytest.raises(ShapeError, match="do not match"):
        wasserstein1(torch.zeros(x), torch.zeros(y))
