"""Noise inside a graph instead of its input: of the observation, or drawn by the runtime."""

import math

import numpy as np
import onnx
from onnx import TensorProto

from gtp_policy.export.nodes import Nodes
from gtp_policy.export.opset import NOISE
from gtp_policy.export.policy_file import NoiseInput
from gtp_policy.export.source import Plan
from gtp_policy.keyed_noise import FARTHEST, HASH, PRIME, STEP, TERMS, UNITS, powers


def replace_(model: onnx.ModelProto, plan: Plan, noise: NoiseInput) -> None:
    """Gives a graph its noise, in place, if the caller is not to give it.

    Args:
        model: A graph with the input ``noise``.
        plan: The policy.
        noise: Where the randomness is to come from.
    """
    if noise.source == "input":
        return
    graph = model.graph
    kept = [entry for entry in graph.input if entry.name != NOISE]
    del graph.input[:]
    graph.input.extend(kept)
    own = Nodes("noise_")
    if noise.source == "keyed":
        _keyed(own, plan)
    else:
        batch = own.op("Shape", plan.inputs[0], start=0, end=1)
        shape = own.op("Concat", batch, own.integers(*noise.shape), axis=0)
        zeros = own.op("ConstantOfShape", shape)
        own.op("RandomNormalLike", zeros, output=NOISE, seed=float(noise.seed or 0))
    graph.initializer.extend(own.constants)
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*own.nodes, *rest])


def _keyed(graph: Nodes, plan: Plan) -> None:
    """Adds `gtp_policy.keyed_noise`, operator by operator."""
    parts = [
        graph.reshape(name, -1, plan.history, math.prod(shape))
        for name, shape in zip(plan.inputs, plan.layout.shapes, strict=True)
    ]
    steps = graph.op("Concat", *parts, axis=2) if len(parts) > 1 else parts[0]
    obs = graph.reshape(steps, -1, plan.actor.obs_dim)
    near = graph.op("Clip", obs, graph.number(-FARTHEST), graph.number(FARTHEST))
    units = graph.op("Mul", near, graph.number(UNITS))
    prime, one = graph.constant(np.int64(PRIME)), graph.integers(1)

    def product(a: str, b: str) -> str:
        return graph.op("Mod", graph.op("Mul", a, b), prime)

    whole = graph.op("Mod", graph.op("Cast", units, to=TensorProto.INT64), prime)
    weighted = product(whole, graph.constant(powers(HASH, plan.actor.obs_dim).numpy()))
    key = graph.op("Mod", graph.op("ReduceSum", weighted, one), prime)
    key = graph.op("Mod", key, graph.constant(np.int64(PRIME - 1)))
    key = graph.op("Add", key, one)
    square = product(key, key)
    key = product(product(square, square), key)
    count = math.prod(plan.noise_shape)
    uniform = product(key, graph.constant(powers(STEP, TERMS * count).numpy()))
    terms = graph.reshape(uniform, -1, count, TERMS)
    total = graph.op("ReduceSum", terms, graph.integers(2), keepdims=0)
    total = graph.op("Sub", total, graph.constant(np.int64(TERMS // 2 * PRIME)))
    total = graph.op("Cast", total, to=TensorProto.FLOAT)
    normal = graph.op("Div", total, graph.number(PRIME))
    graph.op("Reshape", normal, graph.integers(-1, *plan.noise_shape), output=NOISE)
