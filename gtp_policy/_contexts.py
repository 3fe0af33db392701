"""Contexts in which torch does something else with an operator than compute numbers.

Under ``torch.export``, a trace, ``FakeTensorMode`` or a function transform a new tensor belongs to
that context and is of no use outside of it; a default device decides where it lives. What the
package keeps from one call to the next is therefore made `outside` of all of them.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

P = ParamSpec("P")
# The modes that stand for tracing; others, such as a counter of operators, compute as always.
_KEYS = torch._C._TorchDispatchModeKey
_TRACING = _KEYS.FAKE, _KEYS.PROXY, _KEYS.FUNCTIONAL


def transforming() -> bool:
    """Returns whether a compiler, a tracer or a function transform is at work in this thread.

    Example:
        >>> import torch
        >>> from gtp_policy._contexts import transforming
        >>> torch.func.vmap(lambda x: x * transforming())(torch.ones(1)), transforming()
        (tensor([1.]), False)
    """
    return (
        torch.compiler.is_compiling()  # first: a compiler cannot trace the rest
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or (
            torch._C._len_torch_dispatch_stack() > 0
            and any(torch._C._get_dispatch_mode(key) is not None for key in _TRACING)
        )
    )


@contextmanager
def outside() -> Iterator[None]:
    """Leaves, for a block, every context that would make a new tensor anything but a plain one.

    The default device is the CPU there. The default dtype is the whole process's and stays.

    Yields:
        Nothing.

    Example:
        >>> import torch
        >>> from gtp_policy._contexts import outside
        >>> with torch.device("meta"), torch.inference_mode(), outside():
        ...     x = torch.zeros(1)
        >>> x.device.type, x.is_inference()
        ('cpu', False)
    """
    tracing = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        with (
            _disable_current_modes(),
            temporarily_clear_interpreter_stack(),
            torch.inference_mode(False),
            torch.device("cpu"),
        ):
            yield
    finally:
        torch._C._set_tracing_state(tracing)


def constant(maxsize: int) -> Callable[[Callable[P, Tensor]], Callable[P, Tensor]]:
    """Keeps the tensors that a function returns, for the arguments that it was last called with.

    Under a transform the caller gets a tensor of that context with the same numbers.

    Args:
        maxsize: How many are kept.

    Returns:
        A decorator. What it returns has the attribute ``kept``, a function of the same arguments
        with ``functools``' own cache.

    Example:
        >>> import torch
        >>> from gtp_policy._contexts import constant
        >>> ones = constant(maxsize=1)(lambda n: torch.ones(n, device="cpu"))
        >>> ones(2) is ones(2)
        True
    """

    def decorate(compute: Callable[P, Tensor]) -> Callable[P, Tensor]:
        @functools.lru_cache(maxsize)
        def kept(*args: P.args, **kwargs: P.kwargs) -> Tensor:
            with outside():
                return compute(*args, **kwargs)

        @functools.wraps(compute)
        def get(*args: P.args, **kwargs: P.kwargs) -> Tensor:
            if torch.compiler.is_dynamo_compiling():  # it reads the function, and keeps the graph
                return compute(*args, **kwargs)
            found = kept(*args, **kwargs)
            return _born_here(found) if transforming() else found

        get.kept = kept  # type: ignore[attr-defined]
        return get

    return decorate


def _born_here(value: Tensor) -> Tensor:
    """Returns a tensor of the context that is in force, with the same numbers."""
    if value.is_meta:
        return torch.empty(value.shape, dtype=value.dtype, device=value.device)
    with outside():
        numbers = value.tolist()
    return torch.tensor(numbers, dtype=value.dtype, device=value.device)
