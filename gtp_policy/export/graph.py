r"""The default networks as a graph of ONNX: few operators, with all that is constant folded in.

Jump i of the flow map is, with :math:`h_0` the share of the observation in the first layer,

.. math:: h_1 = h_0 + c_i W_x x + b_i, \quad x' = \alpha_i x + \beta_i (W_n h_{n-1} + b_n)

where :math:`b_i` holds the bias and both time embeddings' share (`gtp_policy.kernels.folded`). That
is one product and one activation per layer, and the observation's share is computed once, for all
jumps and all candidates.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper
from torch import Tensor

from gtp_policy._folding import network_reasons
from gtp_policy.acting import EQUALLY_CENTRAL, LEAST_SPREAD, LEAST_WIDTH, ModeChoice
from gtp_policy.critic import QEnsemble
from gtp_policy.export.nodes import Nodes
from gtp_policy.export.opset import ACTION, IR_VERSION, NOISE, OPSET, Precision
from gtp_policy.export.source import Plan
from gtp_policy.kernels.folded import Folded
from gtp_policy.kernels.layer_norm import LAYER_NORM_EPS

_Array = npt.NDArray[Any]
# In half precision, where 65504 is the largest number: observations so many standard deviations
# away look alike, and so do activations beyond.
_FAR, _LARGEST = 100.0, 3e4


def default_graph(plan: Plan, precision: Precision) -> onnx.ModelProto | None:
    """Returns the graph of a policy, or None if its networks are not the default ones.

    Args:
        plan: The policy.
        precision: Of the flow map's network.
    """
    folded = plan.actor.fold(plan.steps)
    if folded is None or (plan.critic is not None and not _is_default(plan.critic)):
        return None
    graph = _Graph()
    flat = _flat(graph, plan)
    n = plan.candidates
    noise = graph.reshape(NOISE, -1, plan.noise_dim) if n > 1 else NOISE
    action = _flow_map(graph, folded, flat, noise, n, precision)
    if plan.critic is not None:
        value = _value(graph, plan.critic, flat, action, n)
        best = graph.op("ArgMax", value, axis=1, keepdims=1)
        several = graph.reshape(action, -1, n, folded.action_dim)
        action = graph.op("GatherND", several, best, batch_dims=1)
    elif n > 1 and isinstance(plan.choice, ModeChoice):
        action = _mode(graph, plan.choice, graph.reshape(action, -1, n, folded.action_dim), n)
    if plan.scaler is not None:
        low, high = (np.tile(bound, plan.chunk) for bound in plan.box)
        span = np.tile((plan.scaler.high - plan.scaler.low).astype(np.float32), plan.chunk)
        action = graph.op("Mul", action, graph.number(span / np.float32(2)))
        action = graph.op("Add", action, graph.number((low + high) / np.float32(2)))
        action = graph.op("Max", action, graph.number(low))
        action = graph.op("Min", action, graph.number(high))
    if plan.whole:
        action = graph.op("Round", action)
    graph.op("Reshape", action, graph.integers(-1, *plan.result_shape), output=ACTION)
    return graph.model(plan)


def _is_default(critic: QEnsemble) -> bool:
    return type(critic) is QEnsemble and not any(network_reasons(critic, flow_map=False))


def _flat(graph: "_Graph", plan: Plan) -> str:
    """Adds what makes vectors of observations, (B, m O), the oldest of a history first."""
    if plan.history > 1 and len(plan.inputs) > 1:
        widths = [math.prod(shape) for shape in plan.layout.shapes]
        parts = [
            graph.reshape(name, -1, plan.history, width)
            for name, width in zip(plan.inputs, widths, strict=True)
        ]
        return graph.op("Flatten", graph.op("Concat", *parts, axis=2), axis=1)
    shapes = zip(plan.inputs, plan.input_shapes, strict=True)
    parts = [n if len(s) == 1 else graph.op("Flatten", n, axis=1) for n, s in shapes]
    return graph.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]


def _flow_map(
    graph: "_Graph", folded: Folded, flat: str, noise: str, n: int, precision: Precision
) -> str:
    """Adds the K jumps and returns actions in [-1, 1], (B n, A)."""
    half = precision == "float16"
    weights, biases = ([_float64(t) for t in ts] for ts in (folded.weights, folded.biases))
    o, a, width = folded.obs_dim, folded.action_dim, len(biases[0])
    times = biases[0] + _float64(folded.embedded) @ weights[0][:, o + a :].T
    obs = graph.op("Sub", flat, graph.number(_float64(folded.mean)))
    obs = graph.op("Div", obs, graph.number(_float64(folded.scale)))
    if half:
        obs = graph.op("Clip", obs, graph.number(-_FAR), graph.number(_FAR))
    projected = graph.product(obs, weights[0][:, :o], None, half)
    if n > 1:
        projected = graph.op("Unsqueeze", projected, graph.integers(1))
    inner, alpha = list(folded.inner), list(folded.alpha)
    # The noise comes with variance 1; the first jump takes it to that of the first time.
    inner[0] *= folded.start
    alpha[0] *= folded.start
    x = noise
    for i, beta in enumerate(folded.beta):
        h = graph.product(x, inner[i] * weights[0][:, o : o + a], times[i], half)
        if n > 1:
            h = graph.reshape(h, -1, n, width)
        h = graph.op("Add", projected, h)
        if n > 1:
            h = graph.reshape(h, -1, width)
        h = graph.mish(h, half)
        for weight, bias in zip(weights[1:-1], biases[1:-1], strict=True):
            h = graph.mish(graph.product(h, weight, bias, half), half)
        out = graph.product(h, beta * weights[-1], beta * biases[-1], half)
        if half:
            out = graph.op("Cast", out, to=TensorProto.FLOAT)
        x = graph.op("Add", graph.op("Mul", x, graph.number(alpha[i])), out)
    if folded.standardised:
        x = graph.op("Mul", x, graph.number(_float64(folded.spread)))
        x = graph.op("Add", x, graph.number(_float64(folded.center)))
    return graph.op("Clip", x, graph.number(-1.0), graph.number(1.0))


def _value(graph: "_Graph", critic: QEnsemble, flat: str, action: str, n: int) -> str:
    """Adds the critic and returns what it thinks of every candidate, (B, n)."""
    config, members, o = critic.config, critic.config.members, critic.obs_dim
    obs = graph.op("Sub", flat, graph.number(_float64(critic.normalizer.mean)))
    obs = graph.op("Div", obs, graph.number(_float64(critic.normalizer.scale)))
    first = _float64(critic.weights[0])
    of_obs = graph.op("MatMul", obs, graph.number(first[:, :o]))  # (N, B, H)
    of_obs = graph.op("Unsqueeze", of_obs, graph.integers(2))
    h = graph.op("MatMul", action, graph.number(first[:, o:]))
    h = graph.reshape(h, members, -1, n, first.shape[-1])
    h = graph.reshape(graph.op("Add", h, of_obs), members, -1, first.shape[-1])
    h = graph.op("Add", h, graph.number(_float64(critic.biases[0])))
    for i in range(len(critic.weights) - 1):
        if config.layer_norm:
            ones = graph.number(np.ones(h_width := critic.weights[i].shape[-1]))
            zeros = graph.number(np.zeros(h_width))
            h = graph.op("LayerNormalization", h, ones, zeros, axis=-1, epsilon=LAYER_NORM_EPS)
            h = graph.op("Mul", h, graph.number(_float64(critic.gains[i])))
            h = graph.op("Add", h, graph.number(_float64(critic.shifts[i])))
        h = graph.activation(h, config.activation)
        h = graph.op("MatMul", h, graph.number(_float64(critic.weights[i + 1])))
        h = graph.op("Add", h, graph.number(_float64(critic.biases[i + 1])))
    q, members_axis = graph.reshape(h, members, -1, n), graph.integers(0)
    if config.reduction == "min":
        return graph.op("ReduceMin", q, members_axis, keepdims=0)
    mean = graph.op("ReduceMean", q, members_axis, keepdims=0)
    if not config.rho:
        return mean
    away = graph.op("Sub", q, mean)
    variance = graph.op("ReduceMean", graph.op("Mul", away, away), members_axis, keepdims=0)
    std = graph.op("Mul", graph.op("Sqrt", variance), graph.number(config.rho))
    return graph.op("Sub", mean, std)


def _mode(graph: "_Graph", choice: ModeChoice, several: str, n: int) -> str:
    """Adds the mean shift of `ModeChoice` and returns where it ends, (B, A)."""
    first, second, third = (graph.integers(axis) for axis in (1, 2, 3))

    def square(x: str) -> str:
        return graph.op("Mul", x, x)

    from_mean = graph.op("Sub", several, graph.op("ReduceMean", several, first, keepdims=1))
    spread = graph.op("Sqrt", graph.op("ReduceMean", square(from_mean), first, keepdims=1))
    scale = graph.op("Max", spread, graph.number(LEAST_SPREAD))
    point = graph.op("Div", several, scale)
    pair = (graph.op("Unsqueeze", point, axis) for axis in (first, second))
    apart = graph.op("ReduceSum", square(graph.op("Sub", *pair)), third, keepdims=0)
    away = graph.op("ReduceSum", graph.op("Sqrt", apart), second, keepdims=0)
    least = graph.op("ReduceMin", away, first, keepdims=1)
    beyond = graph.op("Sub", away, graph.op("Mul", least, graph.number(1 + EQUALLY_CENTRAL)))
    # Of those that are equally central, the first.
    medoid = graph.op("ArgMin", graph.op("Max", beyond, graph.number(0.0)), axis=1, keepdims=1)
    centre = graph.op("GatherND", point, medoid, batch_dims=1)
    # The nearest of all pairs, those of one and the same candidate among them, up to the width.
    k = n + math.ceil(choice.neighbours * (n * n - n))
    nearest = graph.topk(graph.reshape(apart, -1, n * n), k)
    width = graph.op("Slice", nearest, graph.integers(k - 1), graph.integers(k), first)
    factor = graph.op("Div", graph.number(-0.5), graph.op("Max", width, graph.number(LEAST_WIDTH)))
    for _ in range(choice.iterations):
        shift = square(graph.op("Sub", point, graph.op("Unsqueeze", centre, first)))
        away = graph.op("ReduceSum", shift, second, keepdims=0)
        near = graph.op("Softmax", graph.op("Mul", away, factor), axis=1)
        share = graph.op("Mul", graph.op("Unsqueeze", near, second), point)
        centre = graph.op("ReduceSum", share, first, keepdims=0)
    mode = graph.op("Mul", centre, graph.op("Squeeze", scale, first))
    mode = graph.op("Max", mode, graph.op("ReduceMin", several, first, keepdims=0))
    return graph.op("Min", mode, graph.op("ReduceMax", several, first, keepdims=0))


class _Graph(Nodes):
    """The nodes of a policy, of operators and of what its networks are made of."""

    def topk(self, x: str, k: int) -> str:
        """Adds the k smallest of each row, in their order."""
        name = f"TopK_{len(self.nodes)}"
        inputs, outputs = [x, self.integers(k)], [name, f"{name}_indices"]
        self.nodes.append(helper.make_node("TopK", inputs, outputs, name=name, largest=0, axis=1))
        return name

    def product(self, x: str, weight: _Array, bias: _Array | None, half: bool) -> str:
        dtype = np.float16 if half else np.float32
        if half:
            x = self.op("Cast", x, to=TensorProto.FLOAT16)
        constants = [weight] if bias is None else [weight, bias]
        return self.op("Gemm", x, *(self.constant(c.astype(dtype)) for c in constants), transB=1)

    def mish(self, x: str, half: bool) -> str:
        if half:  # infinity would become NaN
            limits = (self.constant(np.array(v, np.float16)) for v in (-_LARGEST, _LARGEST))
            x = self.op("Clip", x, *limits)
        return self.op("Mish", x)

    def activation(self, x: str, kind: str) -> str:
        if kind == "mish":
            return self.mish(x, half=False)
        if kind == "relu":
            return self.op("Relu", x)
        grown = self.op("Erf", self.op("Mul", x, self.number(math.sqrt(0.5))))
        grown = self.op("Add", grown, self.number(1.0))
        return self.op("Mul", self.op("Mul", x, self.number(0.5)), grown)

    def model(self, plan: Plan) -> onnx.ModelProto:
        float32 = TensorProto.FLOAT
        shapes = zip(plan.inputs, plan.input_shapes, strict=True)
        inputs = [helper.make_tensor_value_info(n, float32, ["batch", *s]) for n, s in shapes]
        inputs.append(helper.make_tensor_value_info(NOISE, float32, ["batch", *plan.noise_shape]))
        output = helper.make_tensor_value_info(ACTION, float32, ["batch", *plan.result_shape])
        graph = helper.make_graph(self.nodes, "policy", inputs, [output], self.constants)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )


def _float64(tensor: Tensor) -> _Array:
    return tensor.detach().double().numpy()
