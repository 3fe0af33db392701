"""Writes ONNX models byte by byte: the tests need no package for it, and can write wrong ones."""

import json
import struct
from typing import Any

import numpy as np

TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10}
TYPES["float64"] = 11


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | str | bytes | float) -> bytes:
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name: str, array: np.ndarray) -> bytes:
    array = np.ascontiguousarray(array)
    dims = b"".join(field(1, n) for n in array.shape)
    return dims + field(2, TYPES[array.dtype.name]) + field(8, name) + field(9, array.tobytes())


def attribute(name: str, value: Any) -> bytes:
    head = field(1, name)
    if isinstance(value, np.ndarray):
        return head + field(5, tensor("", value)) + field(20, 4)
    if isinstance(value, str):
        return head + field(4, value) + field(20, 3)
    if isinstance(value, float):
        return head + field(2, value) + field(20, 1)
    if isinstance(value, int):
        return head + field(3, value) + field(20, 2)
    if value and isinstance(value[0], float):
        return head + b"".join(field(7, v) for v in value) + field(20, 6)
    return head + b"".join(field(8, v) for v in value) + field(20, 7)


def node(
    operator: str, inputs: list[str], outputs: list[str], *, domain: str = "", **attributes: Any
) -> bytes:
    return (
        b"".join(field(1, name) for name in inputs)
        + b"".join(field(2, name) for name in outputs)
        + field(4, operator)
        + b"".join(field(5, attribute(k, v)) for k, v in attributes.items())
        + (field(7, domain) if domain else b"")
    )


def port(name: str, shape: tuple[int | str, ...], element: int = 1) -> bytes:
    dims = b"".join(field(1, field(1, n) if isinstance(n, int) else field(2, n)) for n in shape)
    return field(1, name) + field(2, field(1, field(1, element) + field(2, dims)))


def graph(
    nodes: list[bytes],
    constants: dict[str, np.ndarray],
    inputs: list[bytes],
    outputs: list[bytes],
) -> bytes:
    return (
        b"".join(field(1, n) for n in nodes)
        + field(2, "policy")
        + b"".join(field(5, tensor(name, array)) for name, array in constants.items())
        + b"".join(field(11, p) for p in inputs)
        + b"".join(field(12, p) for p in outputs)
    )


def model(graph: bytes, metadata: dict[str, str] | None = None, opset: int = 18) -> bytes:
    properties = b"".join(
        field(14, field(1, key) + field(2, value)) for key, value in (metadata or {}).items()
    )
    return field(1, 8) + field(8, field(1, "") + field(2, opset)) + field(7, graph) + properties


def document(**changes: Any) -> dict[str, Any]:
    """Returns the document of a policy from a Box (3,) to actions (2,); changes by dotted name."""
    part = {"input": "obs", "key": None, "shape": [3], "dtype": "float32"}
    result: dict[str, Any] = {
        "format_version": 1,
        "package_version": "0.1.0",
        "kind": "policy",
        "opset": 18,
        "precision": "float32",
        "steps": 1,
        "candidates": 1,
        "observation": {"kind": "box", "parts": [part | {"low": None, "high": None}], "history": 1},
        "action": {"output": "action", "shape": [2], "dtype": "float32", "chunk": 1}
        | {"low": [-2.0, 0.0], "high": [2.0, 1.0]},
        "noise": {"source": "input", "input": "noise", "shape": [2], "seed": None},
        "checkpoint": {"sha256": "0" * 64, "updates": 1},
    }
    for name, value in changes.items():
        where = result
        *path, last = name.split("__")
        for key in path:
            where = where[key]
        where[last] = value
    return result


def policy_bytes(content: dict[str, Any] | None = None, width: int = 8) -> bytes:
    """Returns a policy file: an untrained network with the contract's inputs and output."""
    content = content or document()
    parts = content["observation"]["parts"]
    history, chunk = content["observation"]["history"], content["action"]["chunk"]
    past = [history] if history > 1 else []
    rng = np.random.default_rng(0)
    inputs, flat, names, o = [], [], [], 0
    for part in parts:
        inputs.append(port(part["input"], ("batch", *past, *part["shape"])))
        flat.append(node("Flatten", [part["input"]], [f"{part['input']}.flat"], axis=1))
        names.append(f"{part['input']}.flat")
        o += int(np.prod([*past, *part["shape"]]))
    noise = content["noise"]
    if noise["input"]:
        inputs.append(port(noise["input"], ("batch", *noise["shape"])))
        flat.append(node("Flatten", [noise["input"]], ["z.flat"], axis=1))
        names.append("z.flat")
        o += int(np.prod(noise["shape"]))
    shape = [*([chunk] if chunk > 1 else []), *content["action"]["shape"]]
    a = int(np.prod(shape))
    low, high = (np.tile(np.float32(content["action"][k]), chunk) for k in ("low", "high"))
    constants = {
        "w1": rng.normal(size=(o, width)).astype(np.float32) / np.float32(np.sqrt(o)),
        "b1": rng.normal(size=width).astype(np.float32),
        "w2": rng.normal(size=(width, a)).astype(np.float32) / np.float32(np.sqrt(width)),
        "one": np.float32(1),
        "minus": np.float32(-1),
        "half": (high - low) / 2,
        "mid": (high + low) / 2,
        "shape": np.array([-1, *shape], np.int64),
    }
    nodes = [
        *flat,
        node("Concat", names, ["x"], axis=1),
        node("Gemm", ["x", "w1", "b1"], ["h"]),
        node("Tanh", ["h"], ["t"]),
        node("MatMul", ["t", "w2"], ["u"]),
        node("Clip", ["u", "minus", "one"], ["c"]),
        node("Mul", ["c", "half"], ["m"]),
        node("Add", ["m", "mid"], ["f"]),
        node("Reshape", ["f", "shape"], [content["action"]["output"]]),
    ]
    outputs = [port(content["action"]["output"], ("batch", *shape))]
    return model(graph(nodes, constants, inputs, outputs), {"gtp_policy": json.dumps(content)})


def expected(content: dict[str, Any], obs: list[np.ndarray], noise: np.ndarray | None) -> Any:
    """Returns what `policy_bytes` computes, in float64 by its formula."""
    parts = [np.asarray(o, np.float64).reshape(len(o), -1) for o in obs]
    if noise is not None:
        parts.append(np.asarray(noise, np.float64).reshape(len(noise), -1))
    x = np.concatenate(parts, 1)
    chunk = content["action"]["chunk"]
    shape = [*([chunk] if chunk > 1 else []), *content["action"]["shape"]]
    rng, o, a, width = np.random.default_rng(0), x.shape[1], int(np.prod(shape)), 8
    w1 = rng.normal(size=(o, width)) / np.sqrt(o)
    b1, w2 = rng.normal(size=width), rng.normal(size=(width, a)) / np.sqrt(width)
    low, high = (np.tile(np.float64(content["action"][k]), chunk) for k in ("low", "high"))
    unit = np.clip(np.tanh(x @ w1 + b1) @ w2, -1, 1)
    return (unit * (high - low) / 2 + (high + low) / 2).reshape(-1, *shape)
