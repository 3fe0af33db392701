"""The operators of ONNX that policies are made of, in numpy.

Each function has the inputs and attributes of its operator as its own parameters, so that an
attribute which is not implemented is an error and never ignored. Before anything is computed that
could be larger than its inputs, its size is taken from a `Meter`.

References:
    | Open Neural Network Exchange, Operators, opset 18, https://onnx.ai/onnx/operators
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from gtp_runtime.errors import PolicyFileError
from gtp_runtime.graph import DTYPES, MAX_NAMES, Array

Operator = Callable[..., Any]
Ints = Sequence[int] | None
_PIECE = 2**16
# Multiplications that count for a call of NumPy, whatever it computes, and for a number of those
# that a function of Python makes, or a sort.
_PER_CALL, _PER_NUMBER = 200_000, 2_000


class Meter:
    """What a computation may take: numbers in memory, and multiplications.

    Args:
        numbers: Largest number of elements of all results together.
        products: Largest number of multiplications in matrix products and convolutions.

    Raises:
        PolicyFileError: By its methods, where a file needs more.

    Example:
        >>> from gtp_runtime.operators import Meter
        >>> Meter(numbers=100).take((10, 11))
        Traceback (most recent call last):
        ...
        gtp_runtime.errors.PolicyFileError: The policy file is refused: got a computation that \
needs more than 100 numbers in memory, expected less. Load it with larger limits if you trust it.
    """

    def __init__(self, numbers: float = math.inf, products: float = math.inf) -> None:
        self.numbers, self.products = numbers, products
        self._numbers = self._products = 0

    def take(self, shape: Sequence[int]) -> None:
        """Counts a result.

        Args:
            shape: Its shape.
        """
        # Of no numbers in many dimensions others make many: a sum over the empty axis, say.
        self._numbers += math.prod(max(int(n), 1) for n in shape)
        if self._numbers > self.numbers:
            raise _too_much(f"{self.numbers:,.0f} numbers in memory")

    def multiply(self, products: int) -> None:
        """Counts multiplications.

        Args:
            products: How many.
        """
        self._products += products
        if self._products > self.products:
            raise _too_much(f"{self.products:,.0f} multiplications")


def _too_much(what: str) -> PolicyFileError:
    return PolicyFileError(
        f"The policy file is refused: got a computation that needs more than {what}, expected "
        "less. Load it with larger limits if you trust it."
    )


# --- element by element


def _unary(function: Callable[[Array], Any]) -> Operator:
    def operator(meter: Meter, x: Array, /) -> Array:
        meter.take(x.shape)
        return np.asarray(function(x), x.dtype)

    return operator


def _binary(function: Callable[..., Any]) -> Operator:
    def operator(meter: Meter, a: Array, b: Array, /) -> Array:
        _same_type(a, b)
        meter.take(np.broadcast_shapes(a.shape, b.shape))
        return np.asarray(function(a, b))

    return operator


def _variadic(function: Callable[..., Any]) -> Operator:
    def operator(meter: Meter, first: Array, /, *rest: Array) -> Array:
        result = first
        for x in rest:
            _same_type(result, x)
            meter.take(np.broadcast_shapes(result.shape, x.shape))
            result = np.asarray(function(result, x))
        return result

    return operator


def _same_type(a: Array, b: Array) -> None:
    if a.dtype != b.dtype:
        raise ValueError(f"inputs of types {a.dtype} and {b.dtype}")


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    if not np.all(b):
        raise ValueError("division of an integer by zero")
    # Integers are cut towards zero, where numpy rounds down.
    quotient = np.abs(a) // np.abs(b)
    return np.asarray(np.where((a < 0) ^ (b < 0), -quotient, quotient), a.dtype)


def _power(meter: Meter, a: Array, b: Array, /) -> Array:
    meter.take(np.broadcast_shapes(a.shape, b.shape))
    return np.asarray(np.power(a, b), a.dtype)


def _mod(meter: Meter, a: Array, b: Array, /, *, fmod: int = 0) -> Array:
    _same_type(a, b)
    if a.dtype.kind == "f" and not fmod:
        raise ValueError("fmod=0 of reals")
    if a.dtype.kind != "f" and not np.all(b):
        raise ValueError("division of an integer by zero")
    meter.take(np.broadcast_shapes(a.shape, b.shape))
    return np.asarray((np.fmod if fmod else np.mod)(a, b))


def _sigmoid(x: Array) -> Array:
    # Of the two forms each is used where it cannot overflow.
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)


def _softplus(x: Array) -> Array:
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


def _erf(x: Array) -> Array:
    # Piece by piece: a number of Python's takes eight times the place of one of the array.
    flat, result = x.reshape(-1), np.empty(x.size, x.dtype)
    for start in range(0, x.size, _PIECE):
        piece = slice(start, start + _PIECE)
        result[piece] = [math.erf(v) for v in flat[piece].tolist()]
    return result.reshape(x.shape)


def _metered_erf(meter: Meter, x: Array, /) -> Array:
    meter.take(x.shape)
    meter.multiply(x.size * _PER_NUMBER)
    return _erf(x)


def _gelu(meter: Meter, x: Array, /, *, approximate: str = "none") -> Array:
    meter.take(x.shape)
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
        return np.asarray(0.5 * x * (1 + np.tanh(inner)), x.dtype)
    meter.multiply(x.size * _PER_NUMBER)
    return np.asarray(0.5 * x * (1 + _erf(x / math.sqrt(2))), x.dtype)


def _elu(meter: Meter, x: Array, /, *, alpha: float = 1.0) -> Array:
    meter.take(x.shape)
    return np.asarray(np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))), x.dtype)


def _leaky_relu(meter: Meter, x: Array, /, *, alpha: float = 0.01) -> Array:
    meter.take(x.shape)
    return np.asarray(np.where(x >= 0, x, alpha * x), x.dtype)


def _clip(meter: Meter, x: Array, low: Array | None = None, high: Array | None = None, /) -> Array:
    meter.take(np.broadcast_shapes(*(v.shape for v in (x, low, high) if v is not None)))
    x = x if low is None else np.maximum(x, low)
    return np.asarray(x if high is None else np.minimum(x, high))


def _where(meter: Meter, condition: Array, a: Array, b: Array, /) -> Array:
    _same_type(a, b)
    meter.take(np.broadcast_shapes(condition.shape, a.shape, b.shape))
    return np.where(condition.astype(bool), a, b)


def _cast(meter: Meter, x: Array, /, *, to: int, saturate: int = 1) -> Array:
    if to not in DTYPES:
        raise ValueError(f"a cast to ONNX's type {to}")
    meter.take(x.shape)
    return x.astype(DTYPES[to])


def _cast_like(meter: Meter, x: Array, like: Array, /, *, saturate: int = 1) -> Array:
    meter.take(x.shape)
    return x.astype(like.dtype)


# --- matrix products; half floats are multiplied as float32, as runtimes do on a CPU


def _wide(x: Array) -> Array:
    return x.astype(np.float32) if x.dtype == np.float16 else x


def _matmul(meter: Meter, a: Array, b: Array, /) -> Array:
    _same_type(a, b)
    if a.ndim < 1 or b.ndim < 1:
        raise ValueError("a product of numbers")
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    columns = b.shape[-1] if b.ndim > 1 else 1
    rows = a.shape[-2] if a.ndim > 1 else 1
    meter.take((*lead, rows, columns))
    meter.multiply(math.prod((*lead, rows, a.shape[-1], columns)))
    return np.asarray(np.matmul(_wide(a), _wide(b)), a.dtype)


def _gemm(
    meter: Meter,
    a: Array,
    b: Array,
    c: Array | None = None,
    /,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    _same_type(a, b)
    a, b = a.T if transA else a, b.T if transB else b
    if a.ndim != 2 or b.ndim != 2:
        raise ValueError("matrices of another rank than 2")
    meter.take((a.shape[0], b.shape[1]))
    meter.multiply(a.shape[0] * a.shape[1] * b.shape[1])
    result = _wide(a) @ _wide(b)
    if alpha != 1:
        result = result * np.float32(alpha)
    if c is not None:
        np.broadcast_to(c, result.shape)  # one way only
        result = result + (_wide(c) if beta == 1 else _wide(c) * np.float32(beta))
    return np.asarray(result, a.dtype)


# --- shapes


def _shape(meter: Meter, x: Array, /, *, start: int = 0, end: int | None = None) -> Array:
    return np.array(x.shape[slice(start, end)], np.int64)


def _size(meter: Meter, x: Array, /) -> Array:
    return np.array(x.size, np.int64)


def _reshape(meter: Meter, x: Array, shape: Array, /, *, allowzero: int = 0) -> Array:
    wanted = _ints(shape)
    if not allowzero:
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return _reshaped(meter, x, wanted)


def _flatten(meter: Meter, x: Array, /, *, axis: int = 1) -> Array:
    axis = axis + x.ndim if axis < 0 else axis
    return _reshaped(meter, x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def _reshaped(meter: Meter, x: Array, shape: Sequence[int]) -> Array:
    if not x.flags.c_contiguous:  # a copy, where it else is a view
        meter.take(x.shape)
    if not x.size:
        meter.take(shape)
    return x.reshape(shape)


def _squeeze(meter: Meter, x: Array, axes: Array | None = None, /) -> Array:
    return np.squeeze(x, None if axes is None else tuple(_ints(axes)))


def _unsqueeze(meter: Meter, x: Array, axes: Array, /) -> Array:
    return np.expand_dims(x, tuple(_ints(axes)))


def _transpose(meter: Meter, x: Array, /, *, perm: Ints = None) -> Array:
    return np.transpose(x, perm)


def _concat(meter: Meter, /, *parts: Array, axis: int) -> Array:
    for x in parts:
        _same_type(parts[0], x)
        meter.take(x.shape)
    return np.concatenate(parts, axis)


def _expand(meter: Meter, x: Array, shape: Array, /) -> Array:
    result = np.broadcast_shapes(x.shape, tuple(_ints(shape)))
    meter.take(result)
    return np.broadcast_to(x, result)


def _tile(meter: Meter, x: Array, repeats: Array, /) -> Array:
    times = _ints(repeats)
    if len(times) != x.ndim or min(times, default=0) < 0:
        raise ValueError("repeats of another number of dimensions")
    meter.take([n * t for n, t in zip(x.shape, times, strict=True)])
    return np.tile(x, times)


def _slice(
    meter: Meter,
    x: Array,
    starts: Array,
    ends: Array,
    axes: Array | None = None,
    steps: Array | None = None,
    /,
) -> Array:
    first, last = _ints(starts), _ints(ends)
    where = list(range(len(first))) if axes is None else _ints(axes)
    by = [1] * len(first) if steps is None else _ints(steps)
    index = [slice(None)] * x.ndim
    for start, end, axis, step in zip(first, last, where, by, strict=True):
        size = x.shape[axis]
        # Beyond the first element backwards there is no index that means it.
        stop = None if step < 0 and end < -size else end
        index[axis] = slice(start, stop, step)
    return x[tuple(index)]


def _top_k(
    meter: Meter,
    x: Array,
    count: Array,
    /,
    *,
    axis: int = -1,
    largest: int = 1,
    sorted: int = 1,
) -> tuple[Array, Array]:
    (k,) = _ints(count)
    if not 0 <= k <= x.shape[axis]:
        raise ValueError(f"the first {k} of {x.shape[axis]}")
    meter.take(x.shape)
    meter.multiply(x.size * _PER_NUMBER)
    order = np.argsort(-x if largest else x, axis, kind="stable")
    index = np.take(order, np.arange(k), axis)
    return np.take_along_axis(x, index, axis), index.astype(np.int64)


def _split(
    meter: Meter,
    x: Array,
    split: Array | None = None,
    /,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
) -> tuple[Array, ...]:
    size = x.shape[axis]
    if split is not None:
        sizes = _ints(split)
        if min(sizes, default=-1) < 0 or sum(sizes) != size:
            raise ValueError(f"parts of {sizes} of {size}")
        ends = list(np.cumsum(sizes)[:-1])
    else:
        if num_outputs is None or not 1 <= num_outputs <= min(max(size, 1), MAX_NAMES):
            raise ValueError("no number of parts")
        each = -(-size // num_outputs)
        ends = list(range(each, each * num_outputs, each))
    return tuple(np.split(x, ends, axis))


def _gather(meter: Meter, x: Array, index: Array, /, *, axis: int = 0) -> Array:
    meter.take((*x.shape[:axis], *index.shape, *x.shape[axis:][1:]))
    return np.take(x, index, axis)


def _gather_elements(meter: Meter, x: Array, index: Array, /, *, axis: int = 0) -> Array:
    meter.take(index.shape)
    axis = axis + x.ndim if axis < 0 else axis
    sizes = zip(index.shape, x.shape, strict=True)
    if any(n > m for i, (n, m) in enumerate(sizes) if i != axis):
        raise ValueError(f"indices of shape {index.shape} into {x.shape}")
    # Of the other axes as much as there are indices for; numpy would repeat them over all of it.
    whole = [slice(None) if i == axis else slice(n) for i, n in enumerate(index.shape)]
    found = np.where(index < 0, index + x.shape[axis], index)
    return np.take_along_axis(x[tuple(whole)], found, axis)


def _gather_nd(meter: Meter, x: Array, index: Array, /, *, batch_dims: int = 0) -> Array:
    lead = index.shape[:batch_dims]
    if x.shape[:batch_dims] != lead or index.shape[-1] > x.ndim - batch_dims:
        raise ValueError("indices of another batch")
    meter.take((*index.shape[:-1], *x.shape[batch_dims + index.shape[-1] :]))
    grid = [
        np.arange(n).reshape([-1 if i == j else 1 for j in range(index.ndim - 1)])
        for i, n in enumerate(lead)
    ]
    return np.asarray(x[(*grid, *np.moveaxis(index, -1, 0))])


def _pad(
    meter: Meter,
    x: Array,
    pads: Array,
    value: Array | None = None,
    axes: Array | None = None,
    /,
    *,
    mode: str = "constant",
) -> Array:
    if mode not in ("constant", "edge", "reflect"):
        raise ValueError(f"the mode {mode!r}")
    widths = [(0, 0)] * x.ndim
    numbers = _ints(pads)
    where = list(range(x.ndim)) if axes is None else _ints(axes)
    for i, axis in enumerate(where):
        widths[axis] = numbers[i], numbers[i + len(where)]
    meter.take([n + before + after for n, (before, after) in zip(x.shape, widths, strict=True)])
    if mode == "constant":
        return np.pad(x, widths, constant_values=0 if value is None else value.item())
    return np.pad(x, widths, mode="edge" if mode == "edge" else "reflect")


def _constant(meter: Meter, /, **given: Any) -> Array:  # noqa: ANN401 - one of several types
    ((name, value),) = given.items()
    if name == "value":
        return np.asarray(value)
    types = {"value_float": "f4", "value_floats": "f4", "value_int": "i8", "value_ints": "i8"}
    if name not in types:
        raise ValueError(f"the attribute {name!r}")
    return np.array(value, types[name])


def _constant_of_shape(meter: Meter, shape: Array, /, *, value: Array | None = None) -> Array:
    wanted = _ints(shape)
    meter.take(wanted)
    fill = np.zeros(1, np.float32) if value is None else value
    return np.full(wanted, fill.item(), fill.dtype)


def _range(meter: Meter, start: Array, limit: Array, delta: Array, /) -> Array:
    first, last, step = (v.item() for v in (start, limit, delta))
    if not step:
        raise ValueError("a step of 0")
    count = max(math.ceil((last - first) / step), 0)
    meter.take((count,))
    return np.asarray(first + np.arange(count) * step, start.dtype)


# --- over axes


def _reduce(function: Callable[..., Any]) -> Operator:
    def operator(
        meter: Meter,
        x: Array,
        axes: Array | None = None,
        /,
        *,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Array:
        over = None if axes is None or not axes.size else tuple(_ints(axes))
        if over is None and noop_with_empty_axes:
            return x
        meter.take(x.shape)
        return np.asarray(function(x, axis=over, keepdims=bool(keepdims)), x.dtype)

    return operator


def _arg(function: Callable[..., Any]) -> Operator:
    def operator(
        meter: Meter, x: Array, /, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
    ) -> Array:
        if select_last_index:
            raise ValueError("the last of equals")
        meter.take(x.shape)
        return np.asarray(function(x, axis=axis, keepdims=bool(keepdims)), np.int64)

    return operator


def _l2(x: Array, *, axis: Any, keepdims: bool) -> Array:  # noqa: ANN401 - as numpy has it
    return np.asarray(np.sqrt(np.sum(x * x, axis=axis, keepdims=keepdims)))


def _softmax(meter: Meter, x: Array, /, *, axis: int = -1) -> Array:
    meter.take(x.shape)
    e = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(e / e.sum(axis, keepdims=True), x.dtype)


def _log_softmax(meter: Meter, x: Array, /, *, axis: int = -1) -> Array:
    meter.take(x.shape)
    shifted = x - x.max(axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis, keepdims=True)), x.dtype)


def _layer_norm(
    meter: Meter,
    x: Array,
    scale: Array,
    bias: Array | None = None,
    /,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Array:
    meter.take(np.broadcast_shapes(*(v.shape for v in (x, scale, bias) if v is not None)))
    over = tuple(range(axis + x.ndim if axis < 0 else axis, x.ndim))
    wide = _wide(x)
    centred = wide - wide.mean(over, keepdims=True)
    norm = centred / np.sqrt((centred * centred).mean(over, keepdims=True) + np.float32(epsilon))
    result = norm.astype(x.dtype) * scale
    return np.asarray(result if bias is None else result + bias, x.dtype)


def _batch_norm(
    meter: Meter,
    x: Array,
    scale: Array,
    bias: Array,
    mean: Array,
    variance: Array,
    /,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Array:
    if training_mode:
        raise ValueError("training")
    if any(v.shape != x.shape[1:2] for v in (scale, bias, mean, variance)):
        raise ValueError(f"statistics of another number of channels than {x.shape[1:2]}")
    meter.take(x.shape)
    shape = (1, -1) + (1,) * (x.ndim - 2)
    factor = scale / np.sqrt(variance + np.float32(epsilon))
    return np.asarray((x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape))


# --- windows over images


def _windows(
    x: Array, kernel: Sequence[int], strides: Ints, pads: Ints, dilations: Ints, auto_pad: str
) -> tuple[Array, list[int], list[int]]:
    """Returns pads, strides and dilations of a window, all given."""
    rank = len(kernel)
    if x.ndim != rank + 2:
        raise ValueError(f"{x.ndim} dimensions for a window of {rank}")
    by, wide = list(strides or [1] * rank), list(dilations or [1] * rank)
    if min(by, default=1) < 1 or min(wide, default=1) < 1 or min(kernel, default=1) < 1:
        raise ValueError("a window of no size")
    if len(by) != rank or len(wide) != rank:
        raise ValueError("strides of another number of dimensions")
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        both = []
        for n, k, s, d in zip(x.shape[2:], kernel, by, wide, strict=True):
            total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            less = total // 2
            both.append((less, total - less) if auto_pad == "SAME_UPPER" else (total - less, less))
        edges = [b for b, _ in both] + [a for _, a in both]
    elif auto_pad in ("NOTSET", "VALID"):
        edges = list(pads or [0] * 2 * rank) if auto_pad == "NOTSET" else [0] * 2 * rank
    else:
        raise ValueError(f"auto_pad of {auto_pad!r}")
    if len(edges) != 2 * rank or min(edges, default=0) < 0:
        raise ValueError("pads of another number of dimensions")
    return np.array(edges).reshape(2, rank), by, wide


def _slide(
    meter: Meter, x: Array, kernel: Sequence[int], edges: Array, by: Ints, wide: Ints, fill: float
) -> Array:
    """Returns a view (N, C, *out, *kernel) of windows."""
    rank = len(kernel)
    widths = [(0, 0), (0, 0), *((int(b), int(a)) for b, a in edges.T)]
    meter.take([n + b + a for n, (b, a) in zip(x.shape, widths, strict=True)])
    x = np.pad(x, widths, constant_values=fill)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, wide or (), strict=True)]
    view = sliding_window_view(x, spans, axis=tuple(range(2, 2 + rank)))
    steps = [slice(None, None, s) for s in by or ()]
    inside = [slice(None, None, d) for d in wide or ()]
    return view[(slice(None), slice(None), *steps, *inside)]


def _conv(
    meter: Meter,
    x: Array,
    w: Array,
    b: Array | None = None,
    /,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> Array:
    kernel = w.shape[2:]
    if kernel_shape is not None and tuple(kernel_shape) != kernel:
        raise ValueError("kernel_shape that is not the weight's")
    edges, by, wide = _windows(x, kernel, strides, pads, dilations, auto_pad)
    outputs, rank = w.shape[0], len(kernel)
    if not 1 <= group <= outputs or outputs % group or x.shape[1] != group * w.shape[1]:
        raise ValueError(f"{x.shape[1]} channels in {group} groups")
    if b is not None and b.shape != (outputs,):
        raise ValueError(f"a bias of shape {b.shape} for {outputs} channels")
    view = _slide(meter, _wide(x), kernel, edges, by, wide, 0.0)
    out = view.shape[2 : 2 + rank]
    meter.take((len(x), outputs, *out))
    meter.take((len(x), *out, *w.shape[1:]))  # windows side by side
    meter.multiply(len(x) * math.prod(out) * w.size + group * _PER_CALL)
    parts = []
    channels, made = w.shape[1], outputs // group
    for g in range(group):
        windows = view[:, g * channels : (g + 1) * channels]
        weight = _wide(w[g * made : (g + 1) * made])
        axes = [1, *range(2 + rank, 2 + 2 * rank)], [*range(1, 2 + rank)]
        parts.append(np.moveaxis(np.tensordot(windows, weight, axes), -1, 1))
    result = np.concatenate(parts, 1)
    if b is not None:
        result = result + _wide(b).reshape(1, -1, *[1] * rank)
    return np.asarray(result, x.dtype)


def _max_pool(
    meter: Meter,
    x: Array,
    /,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints = None,
    pads: Ints = None,
    storage_order: int = 0,
    strides: Ints = None,
) -> Array:
    if ceil_mode:
        raise ValueError("ceil_mode")
    edges, by, wide = _windows(x, kernel_shape, strides, pads, dilations, auto_pad)
    view = _slide(meter, x, kernel_shape, edges, by, wide, -math.inf)
    meter.take(view.shape)
    return np.asarray(view.max(tuple(range(-len(kernel_shape), 0))))


def _average_pool(
    meter: Meter,
    x: Array,
    /,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    pads: Ints = None,
    strides: Ints = None,
) -> Array:
    if ceil_mode:
        raise ValueError("ceil_mode")
    edges, by, wide = _windows(x, kernel_shape, strides, pads, None, auto_pad)
    over = tuple(range(-len(kernel_shape), 0))
    total = _slide(meter, x, kernel_shape, edges, by, wide, 0.0)
    meter.take(total.shape)
    if count_include_pad:
        return np.asarray(total.mean(over), x.dtype)
    ones = np.ones((1, 1, *x.shape[2:]), x.dtype)
    count = _slide(meter, ones, kernel_shape, edges, by, wide, 0.0).sum(over)
    return np.asarray(total.sum(over) / count, x.dtype)


def _global(function: Callable[..., Any]) -> Operator:
    def operator(meter: Meter, x: Array, /) -> Array:
        over = tuple(range(2, x.ndim))
        meter.take(x.shape)
        return np.asarray(function(x, axis=over, keepdims=True), x.dtype)

    return operator


# --- randomness inside the graph: where only the size of what comes after it matters


def _random_normal(
    meter: Meter,
    /,
    *,
    shape: Sequence[int],
    dtype: int = 1,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> Array:
    if dtype not in (1, 10, 11):
        raise ValueError(f"random numbers of ONNX's type {dtype}")
    meter.take(shape)
    numbers = np.random.default_rng(0).standard_normal(tuple(shape))
    return np.asarray(mean + scale * numbers, DTYPES[dtype])


def _random_normal_like(
    meter: Meter,
    like: Array,
    /,
    *,
    dtype: int = 1,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> Array:
    return _random_normal(meter, shape=like.shape, dtype=dtype, mean=mean, scale=scale, seed=seed)


def _ints(x: Array) -> list[int]:
    if x.dtype.kind != "i" or x.ndim > 1 or x.size > 64:
        raise ValueError(f"{x.dtype} of shape {x.shape} instead of a list of integers")
    return [int(v) for v in x.reshape(-1)]


# Those that draw: what they give is no function of what they take.
RANDOM = frozenset({"RandomNormal", "RandomNormalLike"})
# Those whose result is a function of the shape of what they take.
SHAPES_ALONE = frozenset({"RandomNormalLike", "Shape", "Size"})
# Where the inputs stand whose numbers decide how large a result is, or what is cut out of another.
_SECOND, _BEHIND_FIRST = slice(1, 2), slice(1, None)
SIZES: dict[str, slice] = {
    "ConstantOfShape": slice(0, 1),
    "Expand": _SECOND,
    "Pad": slice(1, None, 2),  # not the value in between
    "Range": slice(0, None),
    **dict.fromkeys(("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin"), _SECOND),
    **dict.fromkeys(("ReduceProd", "ReduceSum", "Reshape"), _SECOND),
    "Slice": _BEHIND_FIRST,
    "Split": _SECOND,
    "Squeeze": _SECOND,
    "Tile": _SECOND,
    "TopK": _SECOND,
    "Unsqueeze": _SECOND,
}

OPERATORS: dict[str, Operator] = {
    "Abs": _unary(np.abs),
    "Add": _binary(np.add),
    "And": _binary(np.logical_and),
    "ArgMax": _arg(np.argmax),
    "ArgMin": _arg(np.argmin),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": _unary(np.ceil),
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "Cos": _unary(np.cos),
    "Div": _binary(_divide),
    "Elu": _elu,
    "Equal": _binary(np.equal),
    "Erf": _metered_erf,
    "Exp": _unary(np.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _unary(np.floor),
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global(np.mean),
    "GlobalMaxPool": _global(np.max),
    "Greater": _binary(np.greater),
    "GreaterOrEqual": _binary(np.greater_equal),
    "Identity": _unary(np.asarray),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _leaky_relu,
    "Less": _binary(np.less),
    "LessOrEqual": _binary(np.less_equal),
    "Log": _unary(np.log),
    "LogSoftmax": _log_softmax,
    "MatMul": _matmul,
    "Max": _variadic(np.maximum),
    "MaxPool": _max_pool,
    "Min": _variadic(np.minimum),
    "Mish": _unary(lambda x: x * np.tanh(_softplus(x))),
    "Mod": _mod,
    "Mul": _binary(np.multiply),
    "Neg": _unary(np.negative),
    "Not": _unary(np.logical_not),
    "Or": _binary(np.logical_or),
    "Pad": _pad,
    "Pow": _power,
    "RandomNormal": _random_normal,
    "RandomNormalLike": _random_normal_like,
    "Range": _range,
    "Reciprocal": _unary(np.reciprocal),
    "ReduceL2": _reduce(_l2),
    "ReduceMax": _reduce(np.max),
    "ReduceMean": _reduce(np.mean),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "Relu": _unary(lambda x: np.maximum(x, 0)),
    "Reshape": _reshape,
    "Round": _unary(np.rint),
    "Shape": _shape,
    "Sigmoid": _unary(_sigmoid),
    "Sign": _unary(np.sign),
    "Sin": _unary(np.sin),
    "Size": _size,
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": _unary(_softplus),
    "Split": _split,
    "Sqrt": _unary(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(np.subtract),
    "Sum": _variadic(np.add),
    "Tanh": _unary(np.tanh),
    "Tile": _tile,
    "TopK": _top_k,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
