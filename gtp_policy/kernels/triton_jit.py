"""Triton's compiler where it is installed, and what stands for it where it is not.

Triton decides whether to compile or to interpret a function when that is defined: reloading a
module of kernels decides anew.
"""

from collections.abc import Callable
from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:  # it comes with torch's builds for CUDA, on Linux
    triton = tl = None

__all__ = ["INSTALLED", "interpreted", "jit", "tl"]

INSTALLED: bool = triton is not None


def interpreted() -> bool:
    """Returns whether functions that are defined now are interpreted, on the CPU."""
    return INSTALLED and bool(triton.knobs.runtime.interpret)


def jit(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - Triton has no types
    """Returns a function of Triton's language, compiled when it is first launched."""
    return function if triton is None else triton.jit(function)
