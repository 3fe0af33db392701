"""What follows the matrix products of `gtp_policy.kernels.mlp`, one Triton kernel a layer.

Tested through Triton's interpreter on the CPU against autograd, and compiled without a GPU.
"""

from typing import Any, NamedTuple

from torch import Tensor

from gtp_policy.kernels import mlp_triton_kernel as kernel
from gtp_policy.kernels import triton_launch
from gtp_policy.kernels.activations import Activation
from gtp_policy.kernels.layer_norm import LAYER_NORM_EPS

# A layer's row stays in registers, and outputs of the last layer are computed one by one.
_WIDEST, _MOST_OUTPUTS = 1024, 64
# Elements that a program carries at a time.
_TILE = 2048
_KINDS: dict[Activation, int] = {"mish": 0, "gelu": 1, "relu": 2}


class Layer(NamedTuple):
    """A hidden layer of G networks: what comes before its activation, and what it keeps.

    Shapes are (G, rows, width), or (rows, width) for one network.
    """

    output: Tensor
    bias: Tensor  # (G, 1, width)
    gain: Tensor | None = None  # (G, 1, width), like shift
    shift: Tensor | None = None
    slope: Tensor | None = None  # None: nothing is kept for a backward pass
    unit: Tensor | None = None
    rstd: Tensor | None = None


class Last(NamedTuple):
    """The last layer of G networks."""

    weight: Tensor  # (G, width, out)
    bias: Tensor  # (G, 1, out)


class Gradients(NamedTuple):
    """Where gradients go that are sums over rows."""

    bias: Tensor  # (G, width)
    gain: Tensor | None = None
    shift: Tensor | None = None
    weight: Tensor | None = None  # of the last layer, (G, width, out)
    out_bias: Tensor | None = None  # (G, out)


def unsupported(weights: list[Tensor]) -> str | None:
    """Returns why the kernels cannot take networks, or None.

    Args:
        weights: Of their layers, (G, in, out) each.
    """
    why_not = triton_launch.why_not(kernel, weights)
    if why_not is not None:
        return why_not
    widest, outputs = max(w.shape[2] for w in weights[:-1]), weights[-1].shape[2]
    if widest > _WIDEST:
        return f"a layer of {widest} units is wider than {_WIDEST}"
    return f"{outputs} outputs are more than {_MOST_OUTPUTS}" if outputs > _MOST_OUTPUTS else None


def forward(
    layer: Layer, activation: Activation, last: Last | None = None, out: Tensor | None = None
) -> None:
    """Finishes a layer's product in place; with the last layer's, fills ``out``, (G, rows, out)."""
    rows, width = layer.output.shape[-2:]
    groups, keep, padded = len(layer.bias), layer.slope is not None, _padded(width)
    none = layer.output  # what a kernel does not look at
    tile, grid = _tiles(rows, groups, padded)
    triton_launch.launch(
        kernel.forward,
        grid,
        layer.output,
        layer.output,
        layer.bias,
        layer.bias.stride(0),
        none if layer.gain is None else layer.gain,
        none if layer.shift is None else layer.shift,
        0 if layer.gain is None else layer.gain.stride(0),
        none if layer.unit is None else layer.unit,
        none if layer.rstd is None else layer.rstd,
        none if layer.slope is None else layer.slope,
        *(_with_strides(None if last is None else last.weight, none)),
        none if last is None else last.bias,
        0 if last is None else last.bias.stride(0),
        none if out is None else out,
        rows,
        EPS=LAYER_NORM_EPS,
        WIDTH=width,
        PADDED=padded,
        ROWS=tile,
        OUT=0 if last is None else last.weight.shape[2],
        KIND=_KINDS[activation],
        NORM=layer.gain is not None,
        KEEP=keep,
    )


def backward(
    layer: Layer,
    back: Tensor,
    into: Gradients | None,
    last: Last | None = None,
    upstream: Tensor | None = None,
) -> Tensor:
    """Returns the gradient by a layer's product, in the memory of its slope.

    Args:
        layer: After `forward`, with what it kept.
        back: The gradient by the layer's output, (G, rows, width); overwritten. Behind the last
            layer only memory for it.
        into: Where sums over rows go; None: they are not wanted.
        last: The last layer, if this is the one before it.
        upstream: The gradient by the last layer's output, (G, rows, out), contiguous.
    """
    rows, width = layer.output.shape[-2:]
    groups, norm, padded = len(layer.bias), layer.gain is not None, _padded(width)
    assert layer.slope is not None
    none = layer.output
    outputs = 0 if last is None else last.weight.shape[2]
    up = none if upstream is None else upstream
    weight = _with_strides(None if last is None else last.weight, none)
    unit = none if layer.unit is None else layer.unit
    if norm:
        assert layer.gain is not None
        tile, grid = _tiles(rows, groups, padded)
        triton_launch.launch(
            kernel.backward_rows,
            grid,
            back,
            back,
            up,
            *weight,
            layer.slope,
            unit,
            layer.rstd,
            layer.gain,
            layer.gain.stride(0),
            rows,
            WIDTH=width,
            PADDED=padded,
            ROWS=tile,
            OUT=outputs,
        )
        if into is None:
            return layer.slope
    # Few columns a program, many rows at a time: sums over rows need the programs.
    columns, tile = min(16, padded), 64
    given = Gradients(none) if into is None else into
    triton_launch.launch(
        kernel.backward_columns,
        (-(-width // columns), groups),
        back,
        back,
        up,
        *weight,
        layer.output,
        layer.slope,
        unit,
        given.bias,
        given.bias.stride(0),
        none if given.gain is None else given.gain,
        none if given.shift is None else given.shift,
        0 if given.gain is None else given.gain.stride(0),
        *_with_strides(given.weight, none),
        none if given.out_bias is None else given.out_bias,
        0 if given.out_bias is None else given.out_bias.stride(0),
        rows=rows,
        WIDTH=width,
        COLUMNS=columns,
        ROWS=tile,
        OUT=outputs,
        NORM=norm,
        PARAMETERS=into is not None,
    )
    return layer.slope


def _tiles(rows: int, groups: int, padded: int) -> tuple[int, tuple[int, int]]:
    """Returns how many whole rows a program carries, and the programs there are."""
    tile = max(_TILE // padded, 1)
    return tile, (-(-rows // tile), groups)


def _with_strides(weight: Tensor | None, none: Tensor) -> tuple[Any, int, int, int]:
    if weight is None:
        return none, 0, 0, 0
    of_seed, of_row, of_column = weight.stride()
    return weight, of_seed, of_row, of_column


def _padded(width: int) -> int:
    return max(triton_launch.power_of_two(width), 16)
