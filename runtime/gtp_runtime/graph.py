"""An ONNX model as plain data, read from bytes: its nodes, its constants, its inputs and outputs.

Everything that could run something or open something is refused: operators of other domains,
functions, subgraphs, data in other files. So is whatever this reader does not know: a runtime that
reads the same bytes must not see more in them than was checked here.

References:
    | Open Neural Network Exchange, onnx.proto, https://onnx.ai/onnx/repo-docs/IR.html
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gtp_runtime.errors import PolicyFileError
from gtp_runtime.wire import (
    FIXED32,
    fields,
    floats,
    integers,
    message,
    number,
    text,
    unreadable,
)

Array = np.ndarray[Any, np.dtype[Any]]
Attribute = int | float | str | list[int] | list[float] | Array

# TensorProto.DataType; what a policy is made of.
DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    2: np.dtype("u1"),
    3: np.dtype("i1"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
    9: np.dtype("?"),
    10: np.dtype("<f2"),
    11: np.dtype("<f8"),
}
FLOAT32 = 1
# Inputs or outputs of an operator, or of the graph.
MAX_NAMES = 1024
_MAX_NODES, _MAX_RANK, _MAX_LIST = 200_000, 8, 4096
# Of operators, their attributes and constants: each takes up to 600 bytes of memory, and can stand
# in two of the file. Those that are written have more.
_FREE_PARTS, _BYTES_OF_A_PART = 1 << 15, 32
_MAX_ATTRIBUTES = 32
_MAX_DEFAULTS = 1 << 16
# Attributes that are a list or, by operator, a tensor; all others are one number or word.
_LISTS = frozenset("dilations kernel_shape pads perm shape strides value_floats value_ints".split())
_TENSORS = {"Constant": ("value",), "ConstantOfShape": ("value",)}
# What a tensor without numbers would hold, if its empty dimensions had one: operators make that.
_MAX_EMPTY = 1 << 16


@dataclass(frozen=True)
class Node:
    """One operator of ONNX's own domain.

    Attributes:
        operator: Its name, such as ``MatMul``.
        inputs: Names of what it takes; "" of an optional one that is left out.
        outputs: Names of what it makes.
        attributes: Its attributes by name.

    Example:
        >>> from gtp_runtime.graph import Node
        >>> Node("Tanh", ("x",), ("y",), {}).operator
        'Tanh'
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True)
class Port:
    """An input or output of the graph.

    Attributes:
        element: ONNX's number of the element type; `FLOAT32` of all that policies have.
        shape: Dimensions; None of the symbolic one, the batch.

    Example:
        >>> from gtp_runtime.graph import FLOAT32, Port
        >>> Port(FLOAT32, (None, 3)).shape
        (None, 3)
    """

    element: int
    shape: tuple[int | None, ...]


@dataclass
class Graph:
    """A model: what `read_graph` returns.

    Attributes:
        nodes: Operators in an order in which they can be computed.
        constants: Weights and other constants by name, read-only.
        inputs: Inputs by name.
        outputs: Outputs by name.
        metadata: Properties of the model by key.
        opset: Version of ONNX's operators.

    Example:
        >>> from gtp_runtime.graph import Graph
        >>> Graph().nodes
        []
    """

    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    inputs: dict[str, Port] = field(default_factory=dict)
    outputs: dict[str, Port] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    opset: int = 0


def refused(what: str) -> PolicyFileError:
    """Returns the error of a file with something that is not done.

    Args:
        what: What stands in the file.

    Returns:
        The error, to be raised.

    Example:
        >>> from gtp_runtime.graph import refused
        >>> refused("a subgraph")
        PolicyFileError('The policy file is refused: got a subgraph, expected operators of ONNX \
and weights inside the file, as gtp_policy.export writes them.')
    """
    return PolicyFileError(
        f"The policy file is refused: got {what}, expected operators of ONNX and weights inside "
        "the file, as gtp_policy.export writes them."
    )


def read_graph(data: bytes) -> Graph:
    """Reads a model.

    Memory is bounded by a small multiple of the number of bytes; weights are views into them.

    Args:
        data: The content of an ``.onnx`` file.

    Returns:
        The model.

    Raises:
        PolicyFileError: If it is no model, or one with something that is refused.

    Example:
        >>> from gtp_runtime.graph import read_graph
        >>> read_graph(b"")
        Traceback (most recent call last):
        ...
        gtp_runtime.errors.PolicyFileError: The policy file cannot be read: got no graph, expected \
an ONNX model that gtp_policy.export wrote.
    """
    result, graph, opsets = Graph(), None, 0
    for key, kind, value in fields(memoryview(data)):
        if key == 7:
            if graph is not None:  # some readers would join the two
                raise refused("two graphs")
            graph = message(kind, value)
        elif key == 8:
            domain, version = _opset(message(kind, value))
            if domain not in ("", "ai.onnx"):
                raise refused(f"operators of the domain {domain[:80]!r}")
            opsets += 1
            if opsets > 1:  # also behind one without a number
                raise refused("two versions of ONNX's operators")
            result.opset = version
        elif key == 14:
            name, content = _pair(message(kind, value))
            if name in result.metadata:
                raise refused(f"two properties {name[:80]!r}")
            result.metadata[name] = content
        elif key == 25:
            raise refused("functions")
        elif key not in (1, 2, 3, 4, 5, 6):  # versions, names and remarks
            raise unreadable(f"the field {key} of a model")
    if graph is None:
        raise unreadable("no graph")
    _read_graph(graph, result)
    return result


def _read_graph(view: memoryview, result: Graph) -> None:
    known: set[str] = set()
    initializers: list[memoryview] = []
    nodes: list[memoryview] = []
    parts, most = 0, min(_MAX_NODES, _FREE_PARTS + len(view) // _BYTES_OF_A_PART)
    for key, kind, value in fields(view):
        if key in (1, 5):
            (nodes if key == 1 else initializers).append(message(kind, value))
            parts += 1
            if parts > most:
                raise refused(f"more than {most} operators and constants")
        elif key in (11, 12):
            name, port = _port(message(kind, value))
            ports = result.inputs if key == 11 else result.outputs
            if name in ports:
                raise refused(f"two inputs or outputs {name[:80]!r}")
            if len(ports) >= MAX_NAMES:
                raise refused(f"more than {MAX_NAMES} inputs or outputs")
            ports[name] = port
        elif key not in (2, 10, 13, 16):  # name, remarks, shapes in between
            raise refused(f"the field {key} of a graph")
    for part in initializers:
        name, tensor = _tensor(part)
        if not name or name in known or name in result.inputs:
            raise refused(f"a second {name[:80]!r}")
        known.add(name)
        result.constants[name] = tensor
    known |= result.inputs.keys()
    for part in nodes:
        node = _node(part)
        if missing := [name for name in node.inputs if name and name not in known]:
            raise refused(f"{missing[0][:80]!r} before it is computed")
        for name in filter(None, node.outputs):
            if name in known:
                raise refused(f"a second {name[:80]!r}")
            known.add(name)
        parts += len(node.attributes)
        if parts > most:
            raise refused(f"more than {most} operators, attributes and constants")
        result.nodes.append(node)
    if missing := [name for name in result.outputs if name not in known]:
        raise refused(f"an output {missing[0][:80]!r} that is not computed")


def _node(view: memoryview) -> Node:
    inputs: list[str] = []
    outputs: list[str] = []
    attributes: dict[str, Attribute] = {}
    operator = domain = overload = ""
    for key, kind, value in fields(view):
        if key in (1, 2):
            names = inputs if key == 1 else outputs
            if len(names) >= MAX_NAMES:
                raise refused(f"an operator with more than {MAX_NAMES} inputs or outputs")
            names.append(text(kind, value))
        elif key == 4:
            operator = text(kind, value)
        elif key == 5:
            name, attribute = _attribute(message(kind, value))
            if name in attributes or len(attributes) >= _MAX_ATTRIBUTES:
                raise refused(f"two attributes {name[:80]!r} of one operator, or too many")
            attributes[name] = attribute
        elif key == 7:
            domain = text(kind, value)
        elif key == 8:
            overload = text(kind, value)
        elif key not in (3, 6, 9):  # name and remarks
            raise refused(f"the field {key} of an operator")
    if domain not in ("", "ai.onnx") or overload:
        raise refused(f"the operator {operator[:80]!r} of the domain {domain[:80]!r}")
    for name, attribute in attributes.items():
        # Numbers in the place of one would make as many of each that they are computed with.
        known = _LISTS if isinstance(attribute, list) else _TENSORS.get(operator, ())
        if not isinstance(attribute, float | int | str) and name not in known:
            raise refused(f"an attribute {name[:80]!r} of several numbers")
    return Node(operator, tuple(inputs), tuple(outputs), attributes)


def _attribute(view: memoryview) -> tuple[str, Attribute]:
    name, kind_of = "", 0
    found: dict[int, Attribute] = {}
    whole: list[int] = []
    parts: list[float] = []
    for key, kind, value in fields(view):
        if key == 1:
            name = text(kind, value)
        elif key == 2:
            if kind != FIXED32:
                raise unreadable(f"a float of wire type {kind}")
            found[1] = floats(kind, value)[0]
        elif key == 3:
            found[2] = number(kind, value)
        elif key == 4:
            found[3] = text(kind, value)
        elif key == 5:
            found[4] = _tensor(message(kind, value))[1]
        elif key == 7:
            parts += floats(kind, value)
        elif key == 8:
            whole += integers(kind, value, _MAX_LIST)
        elif key == 20:
            kind_of = number(kind, value)
        elif key != 13:  # a remark; others are subgraphs, references, sparse tensors, types
            raise refused(f"a subgraph or the field {key} of an attribute")
        if len(whole) > _MAX_LIST or len(parts) > _MAX_LIST:
            raise refused(f"an attribute of more than {_MAX_LIST} numbers")
    # A zero may be left out.
    values: dict[int, Attribute] = {1: 0.0, 2: 0, 3: "", 6: parts, 7: whole}
    values.update(found)
    # Without a type it could be read as either.
    if kind_of not in values or (kind_of != 6 and parts) or (kind_of != 7 and whole):
        raise refused(f"an attribute {name[:80]!r} of type {kind_of}")
    if len(found) > (kind_of in found):
        raise refused(f"an attribute {name[:80]!r} of two types")
    return name, values[kind_of]


def _tensor(view: memoryview) -> tuple[str, Array]:
    dims: list[int] = []
    element, name = 0, ""
    raw: memoryview | None = None
    given: dict[int, list[float]] = {}
    for key, kind, value in fields(view):
        if key == 1:
            dims += integers(kind, value, _MAX_RANK)
        elif key == 2:
            element = number(kind, value)
        elif key == 4:
            given.setdefault(key, []).extend(floats(kind, value))
        elif key in (5, 7):
            given.setdefault(key, []).extend(integers(kind, value, _MAX_DEFAULTS))
        elif key == 8:
            name = text(kind, value)
        elif key == 9:
            if raw is not None:
                raise refused(f"two contents of {name[:80]!r}")
            raw = message(kind, value)
        elif key == 13 or (key == 14 and number(kind, value)):
            raise refused("data in another file")
        elif key not in (12, 14, 16):  # remarks
            raise refused(f"the field {key} of a tensor")
        if len(dims) > _MAX_RANK or any(len(v) > _MAX_DEFAULTS for v in given.values()):
            raise refused(f"a tensor {name[:80]!r} that is too large in this form")
    dtype = DTYPES.get(element)
    if dtype is None:
        raise refused(f"a tensor {name[:80]!r} of ONNX's type {element}")
    if any(d < 0 for d in dims) or (0 in dims and math.prod(max(d, 1) for d in dims) > _MAX_EMPTY):
        raise unreadable(f"a tensor {name[:80]!r} of shape {dims}")
    if (raw is not None) + len(given) > 1:
        raise refused(f"two contents of {name[:80]!r}")
    tensor = np.frombuffer(raw, np.uint8) if raw is not None else _listed(dtype, given, name)
    if tensor.nbytes != math.prod(dims) * dtype.itemsize:
        raise unreadable(
            f"{tensor.nbytes} bytes of {name[:80]!r} for the shape {dims} of {dtype.name}"
        )
    if raw is not None and tensor.size and dtype.kind == "b" and tensor.max() > 1:
        raise unreadable(f"a flag {name[:80]!r} that is neither 0 nor 1")
    result = tensor.view(dtype).reshape(dims)
    result.flags.writeable = False
    return name, result


def _listed(dtype: np.dtype[Any], given: Mapping[int, Any], name: str) -> Array:
    """Returns the bytes of a tensor that stands in the file as a list of numbers."""
    expected = 4 if dtype == DTYPES[1] else 7 if dtype == DTYPES[7] else 5
    if not given:
        return np.empty(0, np.uint8)
    if expected not in given or (dtype.kind == "f" and dtype.itemsize == 8):
        raise refused(f"a tensor {name[:80]!r} as a list of another type")
    numbers = np.array(given[expected])
    if dtype == DTYPES[10]:  # half floats stand there as their bits
        if numbers.min() < 0 or numbers.max() > 0xFFFF:
            raise unreadable(f"numbers of {name[:80]!r} beyond {dtype.name}")
        return numbers.astype("<u2").view(np.uint8)
    converted = numbers.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(converted, numbers):
        raise unreadable(f"numbers of {name[:80]!r} beyond {dtype.name}")
    return converted.view(np.uint8)


def _port(view: memoryview) -> tuple[str, Port]:
    name, kind_of = "", None
    for key, kind, value in fields(view):
        if key == 1:
            name = text(kind, value)
        elif key == 2:
            kind_of = _once(kind_of, message(kind, value), "types")
        elif key not in (3, 4):
            raise refused(f"the field {key} of an input or output")
    tensor = _only(kind_of, 1, "an input or output that is no tensor", {6})
    element, shape = 0, None
    for key, kind, value in fields(tensor):
        if key == 1:
            element = number(kind, value)
        elif key == 2:
            shape = _once(shape, message(kind, value), "shapes")
        else:
            raise refused(f"the field {key} of a tensor's type")
    if not name or shape is None:
        raise refused("an input or output without a name or a shape")
    dims: list[int | None] = []
    for key, kind, value in fields(shape):
        if key != 1 or len(dims) >= _MAX_RANK:
            raise refused(f"a shape with the field {key} or more than {_MAX_RANK} dimensions")
        dims.append(_dimension(message(kind, value)))
    return name, Port(element, tuple(dims))


def _dimension(view: memoryview) -> int | None:
    size: int | None = None
    for key, kind, value in fields(view):
        if key == 1:
            size = number(kind, value)
        elif key not in (2, 3):  # the name of a symbolic one, a remark
            raise refused(f"the field {key} of a dimension")
    return size


def _once(before: memoryview | None, found: memoryview, what: str) -> memoryview:
    if before is not None:
        raise refused(f"two {what} of one input or output")
    return found


def _only(view: memoryview | None, wanted: int, what: str, remarks: set[int]) -> memoryview:
    """Returns the one message in a message."""
    result: memoryview | None = None
    for key, kind, value in fields(view if view is not None else memoryview(b"")):
        if key == wanted:
            result = _once(result, message(kind, value), "types")
        elif key not in remarks:
            raise refused(what)
    if result is None:
        raise refused(what)
    return result


def _opset(view: memoryview) -> tuple[str, int]:
    domain, version = "", 0
    for key, kind, value in fields(view):
        if key == 1:
            domain = text(kind, value)
        elif key == 2:
            version = number(kind, value)
        else:
            raise refused(f"the field {key} of an opset")
    return domain, version


def _pair(view: memoryview) -> tuple[str, str]:
    found: dict[int, str] = {}
    for key, kind, value in fields(view):
        if key not in (1, 2):
            raise refused(f"the field {key} of a property")
        found[key] = text(kind, value)
    return found.get(1, ""), found.get(2, "")
