"""The Triton kernel for the K jumps of the default network: what it takes, and how it is launched.

Tested: in float32 through Triton's interpreter on the CPU, against the reference, and compiled
without a GPU for compute capability 9.0 in float32, tf32 and bfloat16 (shared memory, spills).
Not yet run on a GPU: neither its speed nor the accuracy of tf32 and bfloat16 is measured.

This module is imported where it may be of use, and never by ``import gtp_policy``: importing
Triton takes time.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gtp_policy.kernels import folded_triton_kernel as kernel
from gtp_policy.kernels import triton_launch
from gtp_policy.kernels.folded import Folded, FoldedSampler, Precision
from gtp_policy.kernels.triton_launch import power_of_two

# Layers are written out one after the other, and actions stay in registers.
_MOST_LAYERS, _MOST_ACTIONS = 8, 32
# Bytes of shared memory a program may have with which three slices of a layer can be on their way,
# and tiles have 64 rows; with less it is two slices and 32 rows.
_MUCH_SHARED = 200 * 2**10
_WARPS = 8


class _Buffers(NamedTuple):
    constants: Tensor  # ([S,] K, H)
    weights: tuple[Tensor, ...]  # as the kernel takes them: in place, or cast
    projected: Tensor
    hidden: Tensor
    grid: tuple[int, int]  # programs per network, networks
    layout: dict[str, Any]  # what is constant within a compiled kernel, in addition to the settings


class TritonSampler(FoldedSampler):
    """The folded sampler as one kernel for all rows, networks, jumps and layers.

    What is made of times alone is one operator more before it, and in bfloat16 the cast of the
    weights behind the first layer another one. Call it once before a CUDA graph is captured: the
    first call compiles.

    Args:
        folded: The network; `unsupported` must know no reason against it.
        precision: Of the factors in matrix products; sums, activations and actions are float32.
            ``"bf16"`` takes tf32 for the first layer, which sees observations and actions.
        tile: Rows a program carries at a time, 16, 32 or 64; default by the number of rows.
    """

    def __init__(
        self, folded: Folded, precision: Precision = "fp32", tile: int | None = None
    ) -> None:
        super().__init__(folded)
        self._tile, self._cast = tile, precision == "bf16"
        self._networks = folded.stack[0] if folded.stack else 1
        self._processors, much = 1, True
        if self._device.type == "cuda":
            properties = torch.cuda.get_device_properties(self._device)
            self._processors = properties.multi_processor_count
            much = getattr(properties, "shared_memory_per_block_optin", 0) >= _MUCH_SHARED
        # Of float32, three products of parts of tf32 are computed: more rows would not fit into
        # registers.
        self._tiles: tuple[int, ...] = (16, 32, 64) if much else (16, 32)
        if precision == "fp32":
            self._tiles = (16,)
        self._settings = settings(folded, precision, stages=4 if much else 3)
        numbers = list(zip(folded.inner, folded.alpha, folded.beta, strict=True))
        self._numbers = folded.biases[0].new_tensor(numbers)
        bias = folded.biases[0].unsqueeze(-2) if folded.stack else folded.biases[0]
        of_times = folded.weights[0][..., folded.obs_dim + folded.action_dim :].mT
        self._of_times = bias, folded.embedded.expand(*folded.stack, -1, -1), of_times
        self._product: Callable[..., Tensor] = torch.baddbmm if folded.stack else torch.addmm

    def _allocate(self, rows: int) -> _Buffers:
        folded, networks = self.folded, self._networks
        new, padded = self._numbers.new_empty, self._settings["PADDED"]
        # As many rows as keep every processor busy: a program reads all weights, K times.
        fits = (t for t in self._tiles if -(-rows // t) * networks <= self._processors)
        tile = self._tile or next(fits, self._tiles[-1])
        # One program a processor: its threads hold all registers there are. Turns in powers of two,
        # as the kernel is compiled for each.
        tiles, most = -(-rows // tile), -(-self._processors // networks)
        turns = power_of_two(-(-tiles // most))
        programs = -(-tiles // turns)
        scratch = networks * programs * tile * padded
        dtype = torch.bfloat16 if self._cast else torch.float32
        weights = folded.weights
        if self._cast:
            deeper = (new(weight.shape, dtype=dtype) for weight in weights[1:])
            weights = (weights[0], *deeper)
        return _Buffers(
            constants=new(*folded.stack, folded.steps, folded.widths[0]),
            weights=weights,
            projected=new(scratch),
            hidden=new(2 * scratch, dtype=dtype),
            grid=(programs, networks),
            layout={"TILE": tile, "TURNS": turns, "WEIGHT_STRIDES": strides(weights, 2)},
        )

    def _sample(self, obs: Tensor, noise: Tensor, out: Tensor) -> None:
        b: _Buffers = self._buffers(obs.shape[-2])
        folded = self.folded
        self._product(*self._of_times, out=b.constants)
        if self._cast:
            torch._foreach_copy_(b.weights[1:], folded.weights[1:])
        triton_launch.launch(
            kernel.jumps,
            b.grid,
            out,
            obs.contiguous(),
            noise.contiguous(),
            out,
            folded.mean,
            folded.scale,
            folded.center,
            folded.spread,
            b.weights,
            folded.biases,
            b.constants,
            self._numbers,
            b.projected,
            b.hidden,
            obs.shape[-2],
            folded.start,
            0,
            **self._settings,
            **b.layout,
        )


def settings(folded: Folded, precision: Precision, stages: int) -> dict[str, Any]:
    """Returns what is constant within a kernel compiled for a network."""
    widest = max(folded.widths)
    columns = min(max(power_of_two(widest), 16), 256)
    return {
        "STEPS": folded.steps,
        "OBS": folded.obs_dim,
        "ACT": folded.action_dim,
        "WIDTHS": folded.widths,
        "BIAS_STRIDES": strides(folded.biases, 1),
        "MEAN_STRIDES": strides([folded.mean], 1),
        "SCALE_STRIDES": strides([folded.scale], 1),
        "COLUMNS": columns,
        # 32 KiB of weights at a time at most.
        "SLICE": min(64 if precision == "bf16" else 32, columns),
        "LAST_SLICE": min(64, columns),
        "PADDED": -(-widest // columns) * columns,
        "PADDED_ACT": max(power_of_two(folded.action_dim), 16),
        # Float32 on the tensor cores, to about its own precision: outside of them, weights are
        # read from shared memory by all threads of a warp at once from one bank.
        "PRECISION": "tf32x3" if precision == "fp32" else "tf32",
        "STAGES": stages,
        "INTERPRETED": kernel.INTERPRETED,
        "num_warps": _WARPS,
        "enable_fp_fusion": True,  # Triton 3.9 warns where it is left out: the default will change
    }


def strides(tensors: Sequence[Tensor], dims: int) -> tuple[int, ...]:
    """Returns the strides of the stack, 0 without one, and of the last dimensions, in a row."""
    found: list[int] = []
    for tensor in tensors:
        found.append(tensor.stride(0) if tensor.dim() > dims else 0)
        found.extend(tensor.stride()[-dims:])
    return tuple(found)


def unsupported(folded: Folded, precision: Precision = "fp32") -> str | None:
    """Returns why the kernel cannot take a network.

    Args:
        folded: The network.
        precision: What it would compute in.

    Returns:
        The reason, None if there is none.
    """
    tensors = [*folded.weights, *folded.biases, folded.mean, folded.scale, folded.embedded]
    tensors += [folded.center, folded.spread]
    why_not = triton_launch.why_not(kernel, tensors)
    if why_not is not None:
        return why_not
    if precision == "bf16" and kernel.INTERPRETED:
        return "Triton's interpreter multiplies no bfloat16"
    if len(folded.widths) > _MOST_LAYERS:
        return f"{len(folded.widths)} hidden layers are more than {_MOST_LAYERS}"
    if folded.action_dim > _MOST_ACTIONS:
        return f"{folded.action_dim} action dimensions are more than {_MOST_ACTIONS}"
    return None
