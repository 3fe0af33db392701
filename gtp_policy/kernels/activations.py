"""Activations of hidden layers by name, and how gradients pass them."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Activation = Literal["mish", "gelu", "relu"]


class _Operators(NamedTuple):
    apply_: Callable[[Tensor], Tensor]  # in place
    backward: Callable[[Tensor, Tensor], Tensor]  # of the gradient by the output, and the input


def _mish_(x: Tensor) -> Tensor:
    return functional.mish(x, inplace=True)


def _mish_backward(gradient: Tensor, x: Tensor) -> Tensor:
    chained: Tensor = torch.ops.aten.mish_backward(gradient, x)
    return chained


def _gelu_(x: Tensor) -> Tensor:
    activated: Tensor = torch.ops.aten.gelu_(x)
    return activated


def _gelu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    chained: Tensor = torch.ops.aten.gelu_backward(gradient, x)
    return chained


def _relu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    chained: Tensor = torch.ops.aten.threshold_backward(gradient, x, 0)
    return chained


ACTIVATIONS: dict[Activation, _Operators] = {
    "mish": _Operators(_mish_, _mish_backward),
    "gelu": _Operators(_gelu_, _gelu_backward),
    "relu": _Operators(torch.relu_, _relu_backward),
}
"""Torch's operators; GELU is the exact one, x times the normal distribution function."""
