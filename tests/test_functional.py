"""The mathematics on plain tensors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gtp_policy.errors import ShapeError
from gtp_policy.functional import (
    check_shape,
    ema_,
    flow_map,
    perturb,
    precondition,
    sample_flow,
    td_target,
)
from gtp_policy.testing import GaussianFlowMap, actions, flow_times, observations
from gtp_policy.times import KarrasTimes, Times


@given(st.integers(1, 4).flatmap(lambda b: st.tuples(actions(2, batch=b), flow_times(batch=b))))
def test_noise_is_scaled_row_by_row(case: tuple[Tensor, Times]) -> None:
    action, times = case
    z = torch.ones_like(action) * torch.tensor([1.0, -2.0])
    x = perturb(action, times.t, z)
    for i in range(len(action)):
        for j, scale in enumerate((1.0, -2.0)):
            assert x[i, j].item() == action[i, j].item() + times.t[i].item() * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(data=st.data())
def test_identity_and_boundary_are_exact_and_the_rest_lies_between(
    dtype: torch.dtype, data: st.DataObject
) -> None:
    times = data.draw(flow_times(batch=3, dtype=dtype))
    x = data.draw(observations(2, batch=3, dtype=dtype))
    endpoint = data.draw(observations(2, batch=3, dtype=dtype)) * 1e6
    assert torch.equal(flow_map(x, endpoint, times.t, times.t), x)
    assert torch.equal(flow_map(x, endpoint, times.t, torch.zeros_like(times.t)), endpoint)
    moved = flow_map(x, endpoint, times.t, times.s)
    slack = 1e-6 * (1 + endpoint.abs().amax())
    assert (moved >= torch.minimum(x, endpoint) - slack).all()
    assert (moved <= torch.maximum(x, endpoint) + slack).all()


def test_the_flow_map_by_hand() -> None:
    x, endpoint = torch.tensor([[4.0], [8.0]]), torch.tensor([[0.0], [-8.0]])
    t, s = torch.tensor([4.0, 2.0]), torch.tensor([1.0, 1.5])
    assert flow_map(x, endpoint, t, s).tolist() == [[1.0], [4.0]]


@given(flow_times(), st.floats(0.01, 10))
def test_preconditioning_is_the_optimal_linear_denoiser(times: Times, sigma: float) -> None:
    t = times.t
    skip, out, inner = precondition(t, sigma)
    # Input x_t has variance sigma^2 + t^2; the best linear estimate of a given x_t has the factor
    # cov(a, x_t) / var(x_t), and leaves an error of variance c_out^2.
    variance = sigma**2 + t**2
    torch.testing.assert_close(inner**2 * variance, torch.ones_like(t))
    torch.testing.assert_close(skip * variance, torch.full_like(t, sigma**2))
    # (1 - skip) a - skip t z: two independent terms.
    torch.testing.assert_close(out**2, (1 - skip) ** 2 * sigma**2 + (skip * t) ** 2)


def test_preconditioning_at_time_zero_passes_the_action_on() -> None:
    skip, out, inner = precondition(torch.zeros(1), 0.25)
    assert (skip.item(), out.item(), inner.item()) == (1.0, 0.0, 4.0)


def test_the_td_target_by_hand() -> None:
    y = td_target(torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.0]), torch.tensor([4.0, 1e30]))
    assert y.tolist() == [3.0, 1.0]
    for discount, next_q in ((torch.zeros(2, 1), torch.zeros(2)), (torch.zeros(2), torch.zeros(1))):
        with pytest.raises(ShapeError):
            td_target(torch.zeros(2), discount, next_q)


@given(st.floats(0, 1), st.integers(1, 20))
def test_the_average_decays_geometrically(rate: float, rounds: int) -> None:
    target = [torch.zeros(2).double(), torch.full((1,), -1.0).double()]
    source = [torch.ones(2).double(), torch.full((1,), 3.0).double().requires_grad_()]
    for _ in range(rounds):
        ema_(iter(target), iter(source), rate)
    share = 1 - (1 - rate) ** rounds
    torch.testing.assert_close(target[0], torch.full((2,), share).double())
    torch.testing.assert_close(target[1], torch.full((1,), 4 * share - 1).double())
    assert source[0].tolist() == [1.0, 1.0]
    assert not target[1].requires_grad


@pytest.mark.parametrize("rate", [-0.1, 1.5, math.nan])
def test_a_rate_at_which_the_target_runs_away_is_refused(rate: float) -> None:
    target = torch.zeros(2)
    with pytest.raises(ValueError, match="`rate` is no share"):
        ema_([target], [torch.ones(2)], rate)
    assert not target.any()


def test_rates_zero_and_one_keep_and_copy_exactly() -> None:
    target, source = torch.tensor([0.1, 1e30]), torch.tensor([0.3, -7.0])
    for rate, expected in ((0.0, target.clone()), (1.0, source)):
        got = target.clone()
        ema_([got], [source], rate)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_sampling_goes_through_every_node(steps: int) -> None:
    oracle = GaussianFlowMap([0.3, -0.5], 0.4, times=KarrasTimes(t_max=10.0))
    grid = oracle.times.grid(steps, dtype=torch.float64)
    x = torch.tensor([[12.0, -3.0], [0.5, 7.0]]).double()
    path = sample_flow(oracle, torch.zeros(2, 1).double(), x, grid)
    assert path.shape == (steps + 1, 2, 2)
    assert torch.equal(path[0], x)
    for t, state in zip(grid.tolist(), path, strict=True):
        # The exact flow of N(mu, sigma^2) in one formula, whatever lies between.
        scale = math.sqrt((0.16 + t**2) / (0.16 + 100.0))
        torch.testing.assert_close(state, oracle.mean + scale * (x - oracle.mean))


@pytest.mark.parametrize(
    ("field", "shapes"),
    [
        ("endpoint", [(2, 3), (2, 2), (2,), (2,)]),
        ("t", [(2, 3), (2, 3), (2, 1), (2,)]),
        ("s", [(2, 3), (2, 3), (2,), (1,)]),
    ],
)
def test_the_flow_map_broadcasts_nothing(field: str, shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ShapeError, match=f"`{field}` has the wrong shape"):
        flow_map(*(torch.ones(shape) for shape in shapes))


def test_perturbing_broadcasts_nothing() -> None:
    for t, z in ((torch.ones(2, 1), torch.ones(2, 3)), (torch.ones(2), torch.ones(2, 1))):
        with pytest.raises(ShapeError):
            perturb(torch.ones(2, 3), t, z)
    with pytest.raises(ShapeError, match=r"`x` has the wrong shape: got \(2,\), expected \(2, 1\)"):
        check_shape("x", torch.ones(2), (2, 1))
