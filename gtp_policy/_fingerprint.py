"""What was true of modules when something was made from them, and whether it still is."""

import itertools
import operator
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

_address, _layout = Tensor.data_ptr, Tensor.stride
_values: Callable[[dict[str, Any]], Iterable[Any]] = dict.values


def hooks_of(module: nn.Module) -> tuple[dict[int, Any], ...]:
    """Returns where a module keeps its hooks: of the forward pass, then of the backward pass."""
    forward = module._forward_hooks, module._forward_pre_hooks
    return *forward, module._backward_hooks, module._backward_pre_hooks


def watched(tensor: Tensor) -> bool:
    """Returns whether a tensor has hooks on its gradient."""
    return bool(tensor._backward_hooks or tensor._post_accumulate_grad_hooks)


class Fingerprint:
    """Notices at every call, and in little time, that modules are not what they were.

    Seen are modules, parameters and buffers that were replaced, added or removed, memory that
    moved, strides and hooks. Not seen are plain attributes, and new values in the same memory,
    which code that reads parameters where they are need not know.

    Args:
        roots: Modules; everything inside is looked at.
        gradients: Whether to see also what autograd would do differently: what requires a gradient,
            and hooks of the backward pass.
    """

    def __init__(self, *roots: nn.Module, gradients: bool = False) -> None:
        modules = [module for root in roots for module in root.modules()]
        # The dictionaries themselves: modules are the keys under which some of this is kept, and
        # must not be kept alive by it. Empty ones belong to modules without parts.
        self._places: list[dict[str, Any]] = [
            place
            for module in modules
            for place in (module._modules, module._parameters, module._buffers)
            if place
        ]
        self._parts = [*itertools.chain.from_iterable(map(_values, self._places))]
        # These are held: new tensors cannot be in their memory.
        self.tensors = [part for part in self._parts if isinstance(part, Tensor)]
        self._addresses = [*map(_address, self.tensors)]
        self._layouts = [*map(_layout, self.tensors)]
        kinds = 4 if gradients else 2
        self._hooks = [hooks for module in modules for hooks in hooks_of(module)[:kinds]]
        self._hooked, self._gradients = any(self._hooks), gradients
        self._seen = self._of_autograd()

    def holds(self) -> bool:
        """Returns whether everything is as it was."""
        parts = [*itertools.chain.from_iterable(map(_values, self._places))]
        return (
            len(parts) == len(self._parts)
            and all(map(operator.is_, parts, self._parts))
            and [*map(_address, self.tensors)] == self._addresses
            and [*map(_layout, self.tensors)] == self._layouts
            and any(self._hooks) == self._hooked
            and (not self._gradients or self._of_autograd() == self._seen)
        )

    def _of_autograd(self) -> list[tuple[bool, bool]]:
        return [(tensor.requires_grad, watched(tensor)) for tensor in self.tensors]
