"""What was true of modules when something was made from them, and whether it still is."""

import itertools
import operator
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

_address, _layout = Tensor.data_ptr, Tensor.stride
_values: Callable[[dict[str, Any]], Iterable[Any]] = dict.values


class Fingerprint:
    """Notices at every call, and in little time, that modules are not what they were.

    Seen are modules, parameters and buffers that were replaced, added or removed, memory that
    moved, strides, hooks, and what requires a gradient. Not seen are plain attributes, and new
    values in the same memory, which code that reads parameters where they are need not know.

    Args:
        roots: Modules; everything inside is looked at.
    """

    def __init__(self, *roots: nn.Module) -> None:
        modules = [module for root in roots for module in root.modules()]
        # The dictionaries themselves: modules are the keys under which some of this is kept, and
        # must not be kept alive by it. Empty ones belong to modules without parts.
        self._places: list[dict[str, Any]] = [
            place
            for module in modules
            for place in (module._modules, module._parameters, module._buffers)
            if place
        ]
        self._parts = self._now()
        # These are held: new tensors cannot be in their memory.
        self.tensors = [part for part in self._parts if isinstance(part, Tensor)]
        self._hooks = [
            hooks
            for module in modules
            for hooks in (
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
                module._backward_pre_hooks,
            )
        ]
        self._seen = self._look()

    def holds(self) -> bool:
        """Returns whether everything is as it was."""
        parts = self._now()
        return (
            len(parts) == len(self._parts)
            and all(map(operator.is_, parts, self._parts))
            and self._look() == self._seen
        )

    def _now(self) -> list[nn.Module | Tensor | None]:
        return [*itertools.chain.from_iterable(map(_values, self._places))]

    def _look(self) -> tuple[list[object], ...]:
        tensors = self.tensors
        return (
            [*map(_address, tensors)],
            [*map(_layout, tensors)],
            [*map(bool, self._hooks)],
            [t.requires_grad for t in tensors],
            [bool(t._backward_hooks or t._post_accumulate_grad_hooks) for t in tensors],
        )
