r"""Mish on the CPU in a few sweeps over memory, where torch's operator takes many."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gtp_policy.kernels.numba_loader import load
from gtp_policy.kernels.switch import engine, plain

# Elements below which dispatching six operators costs more than torch's one slow one.
SMALLEST = 4096
# Elements that are worked on at a time.
_BLOCK = 2**16
_PACKED = torch.contiguous_format
# exp(20)^2 is finite in float32, and there x n / (n + 2) is x already.
_LARGEST_EXPONENT = 20.0
# As a tensor: an operator makes one of a number on every call.
_ONE = torch.ones((), dtype=torch.float32, device="cpu")


def mish(x: Tensor, inplace: bool = False) -> Tensor:
    r"""Mish, exactly, and on the CPU several times as fast as torch's operator.

    .. math:: x \tanh(\ln(1 + e^x)) = \frac{x h}{h + 1}, \quad h = e + \tfrac12 e^2, \quad e = e^x

    The right-hand side needs one exponential where torch takes three transcendental functions, and
    has no cancellation: both are within 3e-7 of the exact value, relatively, in float32. Torch's
    operator is used for few elements, on other devices and dtypes, when compiling, and under
    function transforms and forward-mode differentiation.

    Args:
        x: Any shape.
        inplace: Whether ``x`` may be overwritten; it is where that saves memory and no gradient
            needs it.

    Returns:
        The same shape.

    References:
        | Mish: A Self Regularized Non-Monotonic Activation Function (Misra, 2019)
        | https://arxiv.org/abs/1908.08681

    Example:
        >>> import torch
        >>> from gtp_policy.kernels.mish import mish
        >>> mish(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-0.3034, 0.0000, 0.8651])
    """
    # What traces must not meet the number of rows as a condition.
    if not plain(x) or x.numel() < SMALLEST:
        return functional.mish(x)
    if x.requires_grad and torch.is_grad_enabled():
        y: Tensor = _Mish.apply(x)  # type: ignore[no-untyped-call]
        return y
    out = x if inplace and x.is_contiguous() else torch.empty_like(x, memory_format=_PACKED)
    for block, part, e, h in _blocks(x, out):
        _values(block, e, h, part)
    return out


def _blocks(x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields blocks of tensors of one size, with two tensors of scratch; the last ones shorter.

    What a block needs stays in a core's own cache from one pass over it to the next.
    """
    rows = [torch.split(tensor.view(-1), _BLOCK) for tensor in (x.contiguous(), *others)]
    e, h = x.new_empty(2, min(_BLOCK, x.numel()))
    for parts in zip(*rows, strict=True):
        n = parts[0].numel()
        yield (*parts, e, h) if n == e.numel() else (*parts, e[:n], h[:n])


def _values(x: Tensor, e: Tensor, h: Tensor, out: Tensor) -> None:
    # As in `_values_and_slopes`: a value must not depend on whether a gradient is needed.
    torch.clamp_max(x, _LARGEST_EXPONENT, out=e).exp_()
    torch.addcmul(e, e, e, value=0.5, out=h)
    torch.mul(x, h.div_(torch.add(h, _ONE, out=e)), out=out)


def _values_and_slopes(x: Tensor, e: Tensor, h: Tensor, out: Tensor, slope: Tensor) -> None:
    # The values are those of `_values` to the last bit; ``out`` may be ``x``.
    torch.clamp_max(x, _LARGEST_EXPONENT, out=e).exp_()
    torch.addcmul(e, e, e, value=0.5, out=h)
    torch.addcmul(e, e, e, out=slope)  # dh/dx
    torch.add(h, _ONE, out=e)
    h.div_(e)  # w
    slope.div_(e.square_())  # dw/dx
    torch.clamp_max(x, _LARGEST_EXPONENT, out=e)  # beyond, dw/dx x is 0, not inf 0
    torch.addcmul(h, slope, e, out=slope)
    torch.mul(x, h, out=out)


def mish_(x: Tensor, scratch: tuple[Tensor, Tensor]) -> Tensor:
    r"""Computes Mish in place, on the CPU, without gradient and without a new tensor.

    .. math:: x - \frac{x}{h + 1}

    It is `mish` with two passes over memory less. Its error is that of one subtraction, about
    1e-7 \|x\|, where `mish` keeps its relative accuracy however negative x is.

    Args:
        x: Overwritten, in float32 or float64.
        scratch: Two tensors like ``x``, overwritten.

    Returns:
        ``x``.

    Example:
        >>> import torch
        >>> from gtp_policy.kernels.mish import mish_
        >>> mish_(torch.ones(1), (torch.empty(1), torch.empty(1)))
        tensor([0.8651])
    """
    e, h = scratch
    torch.exp(x, out=e)
    # Where e^2 is infinite, x / (h + 1) is 0: no limit is needed.
    torch.addcmul(e, e, e, value=0.5, out=h)
    return x.addcdiv_(x, torch.add(h, _ONE, out=h), value=-1)


def mish_with_slope_(x: Tensor, slope: Tensor, scratch: tuple[Tensor, Tensor]) -> Tensor:
    """Computes `mish` in place, and its derivative, on the CPU and without a new tensor.

    Args:
        x: Contiguous, in float32 or float64; overwritten with the values.
        slope: Contiguous, like ``x``; overwritten with the derivatives.
        scratch: Two tensors of one size, overwritten; ``x`` is worked on in pieces of that size.

    Returns:
        ``x``.

    Example:
        >>> import torch
        >>> from gtp_policy.kernels.mish import mish_with_slope_
        >>> slope = torch.empty(1)
        >>> mish_with_slope_(torch.zeros(1), slope, (torch.empty(1), torch.empty(1))), slope
        (tensor([0.]), tensor([0.6000]))
    """
    block = scratch[0].numel()
    e, h = (tensor.view(-1) for tensor in scratch)
    for part, d in zip(
        torch.split(x.view(-1), block), torch.split(slope.view(-1), block), strict=True
    ):
        n = part.numel()
        _values_and_slopes(part, e[:n], h[:n], part, d)
    return x


class _Mish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - torch names no type
        y, slope = (torch.empty_like(x, memory_format=_PACKED) for _ in range(2))
        for block, value, part, e, h in _blocks(x, y, slope):
            _values_and_slopes(block, e, h, value, part)
        ctx.save_for_backward(x, slope)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        x: Tensor
        slope: Tensor
        x, slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative: the slope as a function of x
            w = functional.softplus(x).tanh()
            slope = w + x * x.sigmoid() * (1 - w * w)
        return grad * slope


def compiled_mish() -> Any:  # noqa: ANN401 - a module of functions that numba compiled
    """Returns the compiled functions for hidden layers, or None where they cannot be used.

    Example:
        >>> from gtp_policy.kernels import using
        >>> from gtp_policy.kernels.mish import compiled_mish
        >>> with using("reference"):
        ...     compiled_mish() is None
        True
    """
    return _compiled_mish()[0] if engine() == "auto" else None


@functools.cache
def _compiled_mish() -> tuple[Any, str]:
    """Returns the functions, compiled, or None and why there are none."""

    def warm_up(module: Any) -> None:  # noqa: ANN401 - as above
        one = np.ones((1, 1), np.float32)
        module.mish_(one, one[0])
        module.mish_with_slope_(one, one[0], one.copy())

    return load("mish_numba", warm_up)
