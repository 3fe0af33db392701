"""Fast ways to the same numbers: against torch's operators, exact values and finite differences."""

import math
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from gtp_policy.kernels import mish as module
from gtp_policy.kernels import using
from gtp_policy.kernels.mish import mish

BIG = (64, 80)  # enough elements for the formula
EDGES = [0.0, -0.0, 1e-30, -1e-30, 19.999, 20.0, 20.001, 88.8, 1e4, 1e12, 3e38, -20.0, -87.0]


def spread_out(dtype: torch.dtype, low: float = -40.0, high: float = 40.0) -> Tensor:
    x = torch.linspace(low, high, math.prod(BIG), dtype=dtype)
    x[: len(EDGES)] = torch.tensor(EDGES, dtype=dtype)
    return x.view(BIG)


def exact(x: Tensor) -> Tensor:
    """Mish in float64 in the form that loses nothing: x (1 - 2 / (n + 2)) would, for x << 0."""
    e = x.double().clamp_max(300).exp()
    return x.double() * torch.where(e < 1e8, e * (e + 2) / (e * (e + 2) + 2), 1.0)


class Spy:
    """Counts calls of torch's own operator."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, original = 0, functional.mish

        def counting(x: Tensor) -> Tensor:
            self.calls += 1
            return original(x)

        monkeypatch.setattr(functional, "mish", counting)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 3e-7), (torch.float64, 1e-15)])
def test_values_are_exact_to_rounding(dtype: torch.dtype, rtol: float, grad: bool) -> None:
    x = spread_out(dtype).requires_grad_(grad)
    expected = exact(x.detach())
    got = mish(x).detach().double()
    torch.testing.assert_close(got, expected, rtol=rtol, atol=1e-37)
    # Torch's operator is no closer to the exact values.
    theirs = functional.mish(x).detach().double()
    scale = expected.abs().clamp_min(1e-30)
    assert ((got - expected) / scale).abs().max() <= 1.1 * ((theirs - expected) / scale).abs().max()


@given(st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=20))
def test_values_and_slopes_are_those_of_torch(values: list[float]) -> None:
    x = torch.tensor(values).repeat(module.SMALLEST).requires_grad_()
    reference = x.detach().double().requires_grad_()
    y, expected = mish(x), functional.mish(reference)
    torch.testing.assert_close(y.double(), expected, rtol=3e-7, atol=1e-30)
    (slope,) = torch.autograd.grad(y.sum(), x)
    (expected_slope,) = torch.autograd.grad(expected.sum(), reference)
    torch.testing.assert_close(slope.double(), expected_slope, rtol=0, atol=1e-6)


def test_not_a_number_and_infinities_pass_as_through_torch() -> None:
    x = torch.zeros(BIG)
    x[0, :4] = torch.tensor([math.nan, math.inf, -math.inf, 3e38])
    torch.testing.assert_close(mish(x), functional.mish(x), equal_nan=True)
    x.requires_grad_()
    (got,) = torch.autograd.grad(mish(x).sum(), x)
    assert got[0, 0].isnan()
    assert got[0, [1, 3]].tolist() == [1.0, 1.0]


def test_gradients_by_finite_differences() -> None:
    x = torch.linspace(-8, 24, 5000).double().requires_grad_()
    h = 1e-6
    (slope,) = torch.autograd.grad(mish(x).sum(), x)
    with torch.no_grad():
        difference = (exact(x + h) - exact(x - h)) / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=0, atol=1e-8)


@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)  # torch's own
@pytest.mark.global_rng
def test_first_and_second_gradients_by_torchs_own_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALLEST", 1)
    spy = Spy(monkeypatch)
    x = torch.linspace(-6, 6, 12).double().requires_grad_()
    assert torch.autograd.gradcheck(mish, x, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(mish, x, check_batched_grad=True)
    assert not spy.calls
    # Forward-mode differentiation, and forward over reverse, take torch's operator.
    assert torch.autograd.gradcheck(mish, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(mish, x, check_fwd_over_rev=True)
    assert spy.calls


@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)  # torch's own
def test_function_transforms_take_torchs_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALLEST", 1)
    x = torch.linspace(-6, 6, 12).double().view(4, 3)
    torch.testing.assert_close(torch.func.vmap(mish)(x), functional.mish(x))
    for transform in (torch.func.hessian, torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(mish)(x[0]), transform(functional.mish)(x[0]))
    y, tangent = torch.func.jvp(mish, (x,), (torch.ones_like(x),))
    with forward_ad.dual_level():
        dual = mish(forward_ad.make_dual(x, torch.ones_like(x)))
        assert torch.equal(forward_ad.unpack_dual(dual).tangent, tangent)
    assert torch.equal(y, functional.mish(x))


def test_torchs_operator_where_the_formula_has_no_business(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    mish(torch.zeros(BIG))
    assert spy.calls == 0
    for other in (
        torch.zeros(3, 256),
        torch.zeros(BIG).bfloat16(),
        torch.zeros(BIG, device="meta"),
    ):
        before = spy.calls
        assert mish(other).dtype == other.dtype
        assert spy.calls == before + 1


def test_the_input_stays_as_it_is_and_layouts_do_not_matter() -> None:
    x = spread_out(torch.float32)
    before = x.clone()
    expected = mish(x)
    assert torch.equal(mish(x.clone().requires_grad_()), expected)
    assert torch.equal(mish(x.T.contiguous().T), expected)
    assert torch.equal(mish(x[:, None].expand(-1, 2, -1))[:, 1], expected)
    assert torch.equal(x, before)
    x.requires_grad_()
    mish(x, inplace=True)
    assert torch.equal(x, before)  # a gradient needs it
    with torch.no_grad():
        assert torch.equal(mish(x.detach().clone(), inplace=True), expected)
        assert torch.equal(mish(x), expected)


@given(st.integers(1, 3 * 100), st.sampled_from([1, 7, 64]))
def test_blocks_are_one(rows: int, block: int) -> None:
    x = torch.linspace(-9, 9, rows * 3).view(rows, 3)
    expected = functional.mish(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SMALLEST", 1)
        patch.setattr(module, "_BLOCK", block)
        torch.testing.assert_close(mish(x), expected, rtol=5e-7, atol=0)
        again = x.clone().requires_grad_()
        y = mish(again)
        assert torch.equal(y, mish(x))
        (slope,) = torch.autograd.grad(y.sum(), again)
    (expected,) = torch.autograd.grad(functional.mish(again.double()).sum(), again)
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-6)


def test_the_reference_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    spy, x = Spy(monkeypatch), torch.zeros(BIG)
    with using("reference"):
        mish(x)
        assert spy.calls == 1
        with using("auto"):
            mish(x)
        # Another thread chooses for itself.
        thread = threading.Thread(target=mish, args=(x,))
        thread.start()
        thread.join()
        assert spy.calls == 1
        mish(x)
    mish(x)
    assert spy.calls == 2
    with pytest.raises(ValueError, match="Unknown engine: got 'fast'"), using("fast"):
        pass
    with pytest.raises(RuntimeError, match="inside"), using("reference"):
        raise RuntimeError("inside")
    mish(x)
    assert spy.calls == 2


def test_compiled_code_gets_one_operator_to_fuse() -> None:
    seen = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        seen.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph

    x = torch.zeros(BIG)
    torch.compile(mish, backend=backend, fullgraph=True)(x)
    assert [target.__name__ for target in seen] == ["mish"]
