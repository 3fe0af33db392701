"""Where Triton's kernels are launched, and why a device cannot have them.

Triton is imported where it may be of use, and never by ``import gtp_policy``: that takes time.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

OLDEST = (8, 0)  # compute capability, of Triton itself and of tf32 and bfloat16


def launch(kernel: Any, grid: tuple[int, ...], like: Tensor, *args: Any, **constants: Any) -> None:  # noqa: ANN401 - Triton has no types
    """Launches a kernel on the device of a tensor: every launch goes through here.

    Args:
        kernel: What Triton made of a function.
        grid: Number of programs along each axis.
        like: Triton launches on the current device, which need not be this one's.
        *args: Tensors and numbers.
        **constants: What is constant within a compiled kernel, and how many warps it has.
    """
    with torch.cuda.device_of(like):  # type: ignore[no-untyped-call]
        kernel[grid](*args, **constants)


def why_not(kernels: ModuleType, tensors: Sequence[Tensor]) -> str | None:
    """Returns why Triton's kernels cannot take tensors, or None.

    Args:
        kernels: The module that defines them, with ``INSTALLED`` and ``INTERPRETED``.
        tensors: At least one.
    """
    device = tensors[0].device
    if not kernels.INSTALLED:
        return "Triton is not installed"
    if device.type != "cuda" and not kernels.INTERPRETED:
        return f"the network is on {device.type}, and compiled kernels are for CUDA"
    if torch.version.hip is not None:
        return "the kernel was not made for ROCm"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST:
        found, needed = torch.cuda.get_device_capability(device), OLDEST
        return f"compute capability {found[0]}.{found[1]} is below {needed[0]}.{needed[1]}"
    if any(t.dtype != torch.float32 for t in tensors):
        return "the network is not in float32"
    if any(t.device != device for t in tensors):
        return "the network is on several devices"
    return None


def power_of_two(n: int) -> int:
    """Returns the smallest power of two that is not below n."""
    return 1 << (n - 1).bit_length()
