r"""Forward and backward passes of several equal networks at once, by hand and into buffers.

Autograd needs none of this; it is what autograd costs that is saved: new tensors on every call,
copies, and a graph of small operators. With hidden layers :math:`h_l = m(p_l)`,
:math:`p_l = h_{l-1} W_l + b_l`, and the gradient :math:`g_l` of a loss by :math:`p_l`:

.. math:: \frac{dL}{dW_l} = h_{l-1}^T g_l, \quad \frac{dL}{db_l} = 1^T g_l, \quad
    g_{l-1} = (g_l W_l^T) \odot m'(p_{l-1})

With layer normalisation :math:`h_l = m(\gamma_l \odot u_l + \beta_l)`, where :math:`u_l` is
:math:`p_l` with mean 0 and variance 1 over its width. With :math:`z_l` the gradient by what the
activation gets, :math:`d_l = \gamma_l \odot z_l`, means over the width and :math:`\sigma_l` the
standard deviation of :math:`p_l`:

.. math:: \frac{dL}{d\gamma_l} = 1^T (z_l \odot u_l), \quad \frac{dL}{d\beta_l} = 1^T z_l, \quad
    g_l = \frac{d_l - \overline{d_l} - u_l \odot \overline{d_l \odot u_l}}{\sigma_l}
"""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gtp_policy.kernels.activations import ACTIVATIONS, Activation
from gtp_policy.kernels.layer_norm import LAYER_NORM_EPS, compiled_layer_norm
from gtp_policy.kernels.mish import compiled_mish, mish_, mish_with_slope_
from gtp_policy.kernels.switch import engine

# Elements of a hidden layer at a time: what one block of rows needs stays in a core's own cache.
_BLOCK = 2**16


Switch = str | tuple[str, str]


def precision() -> Switch:
    """Returns the state of torch's switch for products of float32 matrices.

    Torch names one precision for all; of somebody who set those of CUDA and of the CPU apart, it
    names none, and both are returned.
    """
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return torch.backends.cuda.matmul.fp32_precision, _on_cpu().fp32_precision


def _set(switch: Switch) -> None:
    if isinstance(switch, str):
        torch.set_float32_matmul_precision(switch)
    else:
        torch.backends.cuda.matmul.fp32_precision, _on_cpu().fp32_precision = switch


def _on_cpu() -> Any:  # noqa: ANN401 - torch gives it no type
    return torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


class _Precision:
    """Torch's switch for products of float32 matrices, which is one for all threads.

    Counted: the first that needs coarse products sets it, the last brings back what was there. A
    choice that somebody else makes meanwhile stays. Without the switch, factors and results would
    be cast here: 1.4 to 2 times as long for 256 to 4096 rows of width 256, and 1.5 times the error.
    """

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._before: Switch = ""
        self._coarse: Switch = ""

    def enter(self) -> None:
        with self._lock:
            if not self._users:
                self._before = precision()
                self._coarse = "medium" if isinstance(self._before, str) else ("tf32", "bf16")
                _set(self._coarse)
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and precision() == self._coarse:
                _set(self._before)


_PRECISION = _Precision()


@contextmanager
def coarse_products(precision: str) -> Iterator[None]:
    """Lets products of float32 matrices round their factors to bfloat16, if that is requested.

    While the block lasts, those of other threads may do so too: torch has one switch for all.
    """
    if precision == "float32":
        yield
        return
    _PRECISION.enter()
    try:
        yield
    finally:
        _PRECISION.leave()


class Stack(NamedTuple):
    """The parameters of G networks of one shape: weights (G, in, out), biases (G, 1, out).

    With layer normalisation of hidden layers, its gains and shifts too, (G, 1, out).
    """

    weights: list[Tensor]
    biases: list[Tensor]
    gains: Sequence[Tensor] = ()
    shifts: Sequence[Tensor] = ()


class _Norm(NamedTuple):
    gain: Tensor
    shift: Tensor
    unit: Tensor | None  # what the backward pass needs: the normalised layer, and 1 over its spread
    rstd: Tensor | None


class _Layer(NamedTuple):
    bias: Tensor
    weight: Tensor
    output: Tensor
    norm: _Norm | None
    kept: Tensor | None  # what the backward pass needs of the activation
    finish: Callable[[], Any] | None  # does all that follows the product, where that is compiled


class _Block(NamedTuple):
    inputs: Tensor
    layers: list[_Layer]  # those with an activation
    bias: Tensor
    weight: Tensor
    outputs: Tensor


class Pass:
    """A forward pass of a stack for a fixed number of rows, without gradient.

    The caller fills ``inputs``, (G / share, rows, in), where ``share`` networks side by side see
    the same rows, and finds the result in ``outputs``, (G, rows, out), until the next call.
    """

    def __init__(
        self, stack: Stack, rows: int, *, share: int = 1, activation: Activation = "mish"
    ) -> None:
        self.stack, self.rows, self.share, self.activation = stack, rows, share, activation
        first, last = stack.weights[0], stack.weights[-1]
        self.groups, self.new = first.shape[0], first.new_empty
        self.inputs = self.new(self.groups // share, rows, first.shape[1])
        self.outputs = self.new(self.groups, rows, last.shape[2])
        self.widths = [w.shape[2] for w in stack.weights[:-1]]
        self.cpu = in_blocks(first)
        # Batched products where launching is what costs; elsewhere one network after the other.
        self.batched = not self.cpu and self.groups > 1
        self.triton: Any = None if self.cpu else _triton(stack)
        n = self._block_rows()
        self.scratch: dict[int, tuple[Tensor, Tensor]] = {}
        if self.cpu:
            self.scratch = {w: (self.new(n, w), self.new(n, w)) for w in set(self.widths)}
        self.blocks = self._make_blocks(n)

    def _block_rows(self) -> int:
        return min(self.rows, max(_BLOCK // max(self.widths), 1)) if self.cpu else self.rows

    def _make_blocks(self, n: int) -> list[_Block]:
        shape = (self.groups,) if self.batched else ()
        hidden = [self.new(*shape, n, w) for w in self.widths]
        if self.batched:
            return [self._block(slice(None), slice(None), hidden, [None] * len(hidden))]
        blocks = []
        for g, start in itertools.product(range(self.groups), range(0, self.rows, n)):
            rows = slice(start, min(start + n, self.rows))
            parts = [h[: rows.stop - start] for h in hidden]
            blocks.append(self._block(g, rows, parts, [None] * len(parts)))
        return blocks

    def _block(
        self,
        group: int | slice,
        rows: slice,
        hidden: Sequence[Tensor],
        kept: Sequence[Tensor | None],
    ) -> _Block:
        weights = [w[group] for w in self.stack.weights]
        biases = [b[group] if self.batched else b[group][0] for b in self.stack.biases]
        if isinstance(group, int):
            inputs = self.inputs[group // self.share, rows]
        else:
            # One copy per network only where several differ: a stride of 0 costs nothing.
            several = self.inputs.unsqueeze(1).expand(-1, self.share, -1, -1)
            inputs = several[0] if len(self.inputs) == 1 else several
        norms = [self._norm(group, i, output) for i, output in enumerate(hidden)]
        layers = [
            _Layer(bias, weight, output, norm, keep, self._finish(output, bias, norm, keep))
            for bias, weight, output, norm, keep in zip(
                biases[:-1], weights[:-1], hidden, norms, kept, strict=True
            )
        ]
        return _Block(inputs, layers, biases[-1], weights[-1], self.outputs[group, rows])

    def _norm(self, group: int | slice, i: int, output: Tensor) -> _Norm | None:
        """Returns the normalisation of a hidden layer, if there is one."""
        if not self.stack.gains:
            return None
        return _Norm(self.stack.gains[i][group], self.stack.shifts[i][group], None, None)

    def run(self) -> Tensor:
        """Computes and returns ``outputs``."""
        if self.triton is not None:
            return self._run_by_triton()
        for block in self.blocks:
            h = block.inputs.flatten(0, 1) if block.inputs.ndim == 4 else block.inputs
            for bias, weight, output, norm, kept, finish in block.layers:
                if finish is None:
                    h = _linear(bias, h, weight, output)
                    h = self._activate(h if norm is None else _normalise_(h, norm), kept)
                else:
                    h = torch.mm(h, weight, out=output)
                    finish()
            _linear(block.bias, h, block.weight, block.outputs)
        return self.outputs

    def _run_by_triton(self) -> Tensor:
        """Computes with two launches a hidden layer: its product, and all that follows it."""
        (block,) = self.blocks
        h = block.inputs.flatten(0, 1) if block.inputs.ndim == 4 else block.inputs
        for i, layer in enumerate(block.layers):
            h = _product(h, layer.weight, layer.output)
            is_last = i + 1 == len(block.layers)
            of_triton, last = self._of_triton(i), self._last() if is_last else None
            self.triton.forward(of_triton, self.activation, last, self.outputs)
        return self.outputs

    def _of_triton(self, i: int) -> Any:  # noqa: ANN401 - of a module that is not always imported
        """Returns a hidden layer as Triton's kernels take it."""
        layer, stack = self.blocks[0].layers[i], self.stack
        if layer.norm is None:
            return self.triton.Layer(layer.output, stack.biases[i], slope=layer.kept)
        norm = stack.gains[i], stack.shifts[i]
        kept = layer.kept, layer.norm.unit, layer.norm.rstd
        return self.triton.Layer(layer.output, stack.biases[i], *norm, *kept)

    def _last(self) -> Any:  # noqa: ANN401 - as above
        return self.triton.Last(self.stack.weights[-1], self.stack.biases[-1])

    def _finish(
        self, output: Tensor, bias: Tensor, norm: _Norm | None, kept: Tensor | None
    ) -> Callable[[], Any] | None:
        """Returns the compiled functions that follow a product, bound to its memory."""
        if not self.cpu or output.dtype != torch.float32:
            return None
        steps: list[Callable[[], Any]] = []
        if norm is not None:
            compiled = compiled_layer_norm()
            if compiled is None:
                return None
            arrays = [x.numpy() for x in (output, bias, norm.gain[0], norm.shift[0])]
            if norm.unit is None or norm.rstd is None:
                steps.append(partial(compiled.normalise_, *arrays))
            else:
                kept_arrays = norm.unit.numpy(), norm.rstd[:, 0].numpy()
                steps.append(partial(compiled.normalise_and_keep_, *arrays, *kept_arrays))
            bias = torch.zeros_like(bias)  # it is in the normalised layer already
        if self.activation == "mish":
            compiled = compiled_mish()
            if compiled is None:
                return None
            arrays = [x.numpy() for x in (output, bias, kept) if x is not None]
            steps.append(
                partial(compiled.mish_ if kept is None else compiled.mish_with_slope_, *arrays)
            )
        elif norm is not None:
            steps.append(partial(self._activate, output, kept))
        else:
            return None
        return steps[0] if len(steps) == 1 else partial(_one_after_the_other, steps)

    def _activate(self, x: Tensor, kept: Tensor | None) -> Tensor:
        if not self.cpu or self.activation != "mish":
            return ACTIVATIONS[self.activation].apply_(x)
        a, b = self.scratch[x.shape[-1]]
        if x.shape[0] < a.shape[0]:
            a, b = a[: x.shape[0]], b[: x.shape[0]]
        return mish_(x, (a, b))


class GradientPass(Pass):
    """A pass that can be gone back: `gradients` follows a `run`, before parameters change.

    Args:
        stack: The networks.
        rows: Rows per network.
        gradients: Where to leave the gradients of weights and biases, shaped like the parameters:
            (G, out, in) where ``transposed``, else (G, in, out); biases (G, out), gains and shifts
            likewise.
        share: As for `Pass`.
        activation: As for `Pass`.
        transposed: Whether the weights are views of matrices (out, in).
    """

    def __init__(
        self,
        stack: Stack,
        rows: int,
        gradients: Stack,
        *,
        share: int = 1,
        activation: Activation = "mish",
        transposed: bool = False,
    ) -> None:
        self._into, self._transposed = gradients, transposed
        super().__init__(stack, rows, share=share, activation=activation)
        shape = (self.groups,) if self.batched else ()
        self._back = {w: self.new(*shape, rows, w) for w in set(self.widths)}

    def _make_blocks(self, n: int) -> list[_Block]:
        shape = (self.groups, self.rows)
        hidden, kept = ([self.new(*shape, w) for w in self.widths] for _ in range(2))
        groups = [slice(None)] if self.batched else range(self.groups)
        return [
            self._block(g, slice(None), [h[g] for h in hidden], [k[g] for k in kept])
            for g in groups
        ]

    def _norm(self, group: int | slice, i: int, output: Tensor) -> _Norm | None:
        norm = super()._norm(group, i, output)
        if norm is None:
            return None
        rstd = output.new_empty(*output.shape[:-1], 1)
        return norm._replace(unit=torch.empty_like(output), rstd=rstd)

    def _activate(self, x: Tensor, kept: Tensor | None) -> Tensor:
        assert kept is not None
        if not self.cpu or self.activation != "mish":
            kept.copy_(x)
            return ACTIVATIONS[self.activation].apply_(x)
        return mish_with_slope_(x, kept, self.scratch[x.shape[-1]])

    def gradients(self, output_gradient: Tensor) -> None:
        """Goes back from the gradient of a loss by ``outputs``, of their shape."""
        into = self._into
        if self.triton is not None:
            self._back_by_triton(output_gradient, into)
            return
        for g, block in enumerate(self.blocks):
            group: int | slice = slice(None) if self.batched else g
            gradient = output_gradient[group]
            inputs = block.inputs.flatten(0, 1) if block.inputs.ndim == 4 else block.inputs
            below = [inputs, *[layer.output for layer in block.layers]]
            for i in reversed(range(len(below))):
                weight, bias = into.weights[i][group], into.biases[i][group]
                if self._transposed:
                    _product(gradient.mT, below[i], weight)
                else:
                    _product(below[i].mT, gradient, weight)
                torch.sum(gradient, -2, out=bias)
                if i:
                    of_norm = None
                    if block.layers[i - 1].norm is not None:
                        of_norm = into.gains[i - 1][group], into.shifts[i - 1][group]
                    gradient = self._below(block, i, gradient, of_norm)

    def input_gradients(self, output_gradient: Tensor) -> Tensor:
        """Returns the gradient of a loss by every network's inputs, (G, rows, in).

        Like `gradients` it follows a `run` and uses up what that kept; the gradients of parameters
        stay as they are.
        """
        found = []
        if self.triton is not None:
            gradient = self._back_by_triton(output_gradient, None)
            below = gradient @ self.blocks[0].layers[0].weight.mT
            return below if self.batched else below.unsqueeze(0)
        for g, block in enumerate(self.blocks):
            gradient = output_gradient[slice(None) if self.batched else g]
            for i in reversed(range(1, len(block.layers) + 1)):
                norm, of_norm = block.layers[i - 1].norm, None
                if norm is not None:
                    unused = torch.empty_like(norm.gain.squeeze(-2))
                    of_norm = unused, torch.empty_like(unused)
                gradient = self._below(block, i, gradient, of_norm)
            found.append(gradient @ block.layers[0].weight.mT)
        return found[0] if self.batched else torch.stack(found)

    def _back_by_triton(self, output_gradient: Tensor, into: Stack | None) -> Tensor:
        """Goes back with one launch a layer in addition to its products, two with a normalisation.

        Returns:
            The gradient by the first layer's product.
        """
        (block,) = self.blocks
        gradient, n = output_gradient, len(block.layers)
        inputs = block.inputs.flatten(0, 1) if block.inputs.ndim == 4 else block.inputs
        for i in reversed(range(n)):
            layer, is_last = block.layers[i], i + 1 == n
            back, found = self._back[layer.output.shape[-1]], None
            if not is_last:
                _product(gradient, block.layers[i + 1].weight.mT, back)
            if into is not None:
                norm = (into.gains[i], into.shifts[i]) if into.gains else (None, None)
                found = self.triton.Gradients(into.biases[i], *norm)
                if is_last:
                    weight = into.weights[-1].mT if self._transposed else into.weights[-1]
                    found = found._replace(weight=weight, out_bias=into.biases[-1])
            upstream = output_gradient.contiguous() if is_last else None
            last = self._last() if is_last else None
            gradient = self.triton.backward(self._of_triton(i), back, found, last, upstream)
            if into is not None:
                group = slice(None) if self.batched else 0
                below = inputs if i == 0 else block.layers[i - 1].output
                left, right = (gradient.mT, below) if self._transposed else (below.mT, gradient)
                _product(left, right, into.weights[i][group])
        return gradient

    def _below(
        self, block: _Block, i: int, gradient: Tensor, of_norm: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Returns the gradient by what layer i - 1 adds its bias to, given that of layer i.

        Where it is normalised, the gradients of its gain and shift are left in ``of_norm``.
        """
        layer = block.layers[i - 1]
        above = block.weight if i == len(block.layers) else block.layers[i].weight
        back = self._back[layer.output.shape[-1]]
        gradient = self._chain(_product(gradient, above.mT, back), layer)
        if layer.norm is None or of_norm is None:
            return gradient
        return self._chain_norm(gradient, layer.norm, *of_norm)

    def _chain(self, gradient: Tensor, layer: _Layer) -> Tensor:
        assert layer.kept is not None
        if not self.cpu or self.activation != "mish":
            return ACTIVATIONS[self.activation].backward(gradient, layer.kept)
        return layer.kept.mul_(gradient)

    def _chain_norm(self, gradient: Tensor, norm: _Norm, gain: Tensor, shift: Tensor) -> Tensor:
        """Goes back through a normalisation; leaves the gradients of its gain and shift."""
        assert norm.unit is not None
        assert norm.rstd is not None
        compiled = None
        if self.cpu and gradient.dtype == torch.float32:
            compiled = compiled_layer_norm()
        if compiled is not None:
            arrays = (gradient, norm.unit, norm.rstd[:, 0], norm.gain[0], gain, shift)
            compiled.normalise_back_(*(x.numpy() for x in arrays))
            return gradient
        torch.sum(gradient * norm.unit, -2, out=gain)
        torch.sum(gradient, -2, out=shift)
        scaled = gradient * norm.gain
        along = (scaled * norm.unit).mean(-1, keepdim=True)
        centred = scaled - scaled.mean(-1, keepdim=True)
        return torch.addcmul(centred, norm.unit, along, value=-1).mul_(norm.rstd)


def _triton(stack: Stack) -> Any:  # noqa: ANN401 - a module, which is not always imported
    """Returns the module of Triton's kernels where they take a stack, else None."""
    if engine() != "auto":
        return None
    from gtp_policy.kernels import mlp_triton  # importing Triton takes time

    return None if mlp_triton.unsupported(stack.weights) else mlp_triton


def in_blocks(x: Tensor) -> bool:
    """Returns whether rows are worked on in pieces that fit a cache, not all in one launch."""
    return x.device.type == "cpu"


def _normalise_(x: Tensor, norm: _Norm) -> Tensor:
    """Normalises in place, scales and shifts; keeps what the backward pass needs."""
    unit, _, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, LAYER_NORM_EPS)
    if norm.unit is not None and norm.rstd is not None:
        norm.unit.copy_(unit)
        norm.rstd.copy_(rstd)
    return torch.addcmul(norm.shift, unit, norm.gain, out=x)


def _one_after_the_other(steps: Sequence[Callable[[], Any]]) -> None:
    for step in steps:
        step()


def _linear(bias: Tensor, x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    product = torch.addmm if out.ndim == 2 else torch.baddbmm
    return product(bias, x, weight, out=out)


def _product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    return torch.mm(a, b, out=out) if out.ndim == 2 else torch.bmm(a, b, out=out)
