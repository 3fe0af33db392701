"""What was true of modules when something was made from them, and whether it still is."""

import itertools
import operator
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# What of a module is computed by other code, where that is the faster: to sample actions, and to
# do an update.
SAMPLING = "forward", "_features", "_endpoint", "_jump", "to_action"
UPDATING = (
    *SAMPLING,
    *("endpoint", "to_standard", "sample", "sample_with_gradient"),
    *("terms", "unit_factors", "time_weights", "_distance"),
)
# Hooks of all modules there are, in the order of `hooks_of`. Torch never makes new dictionaries.
GLOBAL_HOOKS: tuple[dict[int, Any], ...] = (
    torch.nn.modules.module._global_forward_hooks,
    torch.nn.modules.module._global_forward_pre_hooks,
    torch.nn.modules.module._global_backward_hooks,
    torch.nn.modules.module._global_backward_pre_hooks,
)
_own: dict[tuple[type[nn.Module], str], Any] = {}
_address, _layout = Tensor.data_ptr, Tensor.stride
_entry, _NOTHING = dict.get, dict[str, Any]()
_values: Callable[[dict[str, Any]], Iterable[Any]] = dict.values


def hooks_of(module: nn.Module) -> tuple[dict[int, Any], ...]:
    """Returns where a module keeps its hooks: of the forward pass, then of the backward pass."""
    forward = module._forward_hooks, module._forward_pre_hooks
    return *forward, module._backward_hooks, module._backward_pre_hooks


def knows(*kinds: type[nn.Module]) -> None:
    """Keeps what the methods of classes are, so that `replaced` can tell that they no longer are.

    Args:
        *kinds: Classes that some other code computes like.
    """
    for kind in kinds:
        for name in _methods_of(kind, UPDATING):
            _own[kind, name] = getattr(kind, name)


def replaced(module: nn.Module, methods: tuple[str, ...]) -> list[str]:
    """Returns which methods of a module are not those that its class came with.

    Something stands in their place on the module itself, as quantisers, adapters and probes put it
    there, or on the class.

    Args:
        module: Any module.
        methods: Names to look at.
    """
    kind, own = type(module), module.__dict__
    found = []
    for name in _methods_of(kind, methods):
        function = getattr(kind, name)
        # Who takes a replacement back often leaves the method itself there.
        put = own.get(name, function)
        given_back = getattr(put, "__self__", None) is module and put.__func__ is function
        if not (put is function or given_back) or _own.get((kind, name), function) is not function:
            found.append(name)
    return found


def _methods_of(kind: type[nn.Module], names: tuple[str, ...]) -> list[str]:
    return [name for name in names if hasattr(kind, name)]


def watched(tensor: Tensor) -> bool:
    """Returns whether a tensor has hooks on its gradient."""
    return bool(tensor._backward_hooks or tensor._post_accumulate_grad_hooks)


class Fingerprint:
    """Notices at every call, and in little time, that modules are not what they were.

    Seen are modules, parameters and buffers that were replaced, added or removed, memory that
    moved, strides, hooks, and methods that were replaced. Not seen are other plain attributes, and
    new values in the same memory, which code that reads parameters where they are need not know.

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
        self._hooks += GLOBAL_HOOKS[:kinds]
        self._modules = [weakref.ref(module) for module in modules]
        named = [(m, name) for m in modules for name in _methods_of(type(m), UPDATING)]
        shared = dict.fromkeys((type(module), name) for module, name in named)
        self._kinds, self._names = [kind for kind, _ in shared], [name for _, name in shared]
        # Of a root, its attributes may hold this.
        inside = [(module.__dict__, name) for module, name in named if module not in roots]
        self._inside, self._called = [own for own, _ in inside], [name for _, name in inside]
        self._roots = [(weakref.ref(m), name) for m, name in named if m in roots]
        self._methods = self._of_methods()
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
            and all(map(operator.is_, self._of_methods(), self._methods))
            and (not self._gradients or self._of_autograd() == self._seen)
        )

    def _of_methods(self) -> list[Any]:
        # Of modules that are gone, their types say so.
        return [
            *[type(module()) for module in self._modules],
            *map(getattr, self._kinds, self._names),
            *map(_entry, self._inside, self._called),
            *[getattr(root(), "__dict__", _NOTHING).get(name) for root, name in self._roots],
        ]

    def _of_autograd(self) -> list[tuple[bool, bool]]:
        return [(tensor.requires_grad, watched(tensor)) for tensor in self.tensors]
