"""Noise inside a graph instead of its input: fixed, or drawn by the runtime."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from gtp_policy.export.opset import NOISE
from gtp_policy.export.policy_file import NoiseInput
from gtp_policy.export.source import Plan


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
    fixed = np.array(noise.fixed, np.float32).reshape(1, *noise.shape)
    constants: dict[str, npt.NDArray[Any]] = {
        "noise_rest": np.array(noise.shape, np.int64),
        **({"noise_fixed": fixed} if noise.source == "fixed" else {}),
    }
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    nodes = [
        _node("Shape", [plan.inputs[0]], "noise_batch", start=0, end=1),
        _node("Concat", ["noise_batch", "noise_rest"], "noise_shape", axis=0),
    ]
    if noise.source == "fixed":
        nodes.append(_node("Expand", ["noise_fixed", "noise_shape"], NOISE))
    else:
        nodes += [
            _node("ConstantOfShape", ["noise_shape"], "noise_zeros"),
            _node("RandomNormalLike", ["noise_zeros"], NOISE, seed=float(noise.seed or 0)),
        ]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:  # noqa: ANN401
    return helper.make_node(kind, inputs, [output], name=output, **attributes)
