"""Every operator in numpy against ONNX Runtime, an implementation of others."""

import math
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx_writer import TYPES, field, graph, model, node, port

from gtp_runtime.errors import PolicyFileError
from gtp_runtime.graph import read_graph
from gtp_runtime.operators import OPERATORS, RANDOM, Meter

ONNX_RUNTIME = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])

rng = np.random.default_rng(0)


def real(*shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def whole(*shape: int) -> np.ndarray:
    return rng.integers(-5, 6, size=shape)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


X, POSITIVE, FLAGS = real(2, 3), np.abs(real(2, 3)) + 0.1, real(2, 3) > 0
LARGE = np.array([-1e4, -90.0, -1e-4, 0.0, 1e-4, 90.0, 1e4], np.float32)
IMAGE = real(2, 4, 9, 8)

Case = tuple[str, list[np.ndarray | None], dict[str, Any]]
UNARY = (
    "Abs Ceil Cos Elu Erf Exp Floor Identity LeakyRelu Mish Neg Reciprocal Relu Sigmoid Sign Sin "
    "Softplus Tanh"
).split()
CASES: list[Case] = [
    *((name, [X], {}) for name in UNARY),
    ("Round", [np.array([-2.5, -0.5, 0.4, 0.5, 1.5, 2.6], np.float32)], {}),
    *((name, [LARGE], {}) for name in ("Elu", "Mish", "Sigmoid", "Softplus", "Tanh")),
    *((name, [POSITIVE], {}) for name in ("Log", "Sqrt")),
    *((name, [X, real(3)], {}) for name in ("Add", "Sub", "Mul", "Div")),
    *((name, [whole(4), whole(4) | 1], {}) for name in ("Add", "Sub", "Mul", "Div", "Mod")),
    *((n, [X, real(1, 3)], {}) for n in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual")),
    ("Mod", [X, real(3)], {"fmod": 1}),
    ("Mod", [whole(9), ints(3)], {"fmod": 1}),
    ("Equal", [whole(20), whole(20)], {}),
    ("And", [FLAGS, ~FLAGS[:1]], {}),
    ("Or", [FLAGS, ~FLAGS[:1]], {}),
    ("Not", [FLAGS], {}),
    ("Pow", [POSITIVE, real(3)], {}),
    ("Pow", [X, ints(2)], {}),
    ("Max", [X, real(3), real(1)], {}),
    ("Min", [X, real(3), real(1)], {}),
    ("Sum", [X, real(3), real(1)], {}),
    ("Where", [FLAGS, X, real(3)], {}),
    ("Clip", [X, np.float32(-0.5), np.float32(0.5)], {}),
    ("Clip", [X, None, np.float32(0.5)], {}),
    ("Clip", [X], {}),
    ("Gelu", [X], {}),
    ("Gelu", [X], {"approximate": "tanh"}),
    ("Elu", [X], {"alpha": 0.3}),
    ("LeakyRelu", [X], {"alpha": 0.3}),
    ("Cast", [X], {"to": 7}),
    ("Cast", [X], {"to": 10}),
    ("Cast", [FLAGS], {"to": 1}),
    ("CastLike", [whole(3), X], {}),
    ("MatMul", [real(2, 5, 3), real(3, 4)], {}),
    ("MatMul", [real(2, 1, 5, 3), real(4, 3, 2)], {}),
    ("MatMul", [real(3), real(3, 2)], {}),
    ("MatMul", [real(2, 3), real(3)], {}),
    ("Gemm", [X, real(3, 4), real(4)], {}),
    ("Gemm", [X, real(4, 3)], {"transB": 1}),
    ("Gemm", [X, real(2, 4), real(3, 1)], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    ("Shape", [real(2, 3, 4)], {}),
    ("Shape", [real(2, 3, 4)], {"start": 1}),
    ("Shape", [real(2, 3, 4)], {"start": -2, "end": -1}),
    ("Size", [real(2, 3, 4)], {}),
    ("Reshape", [real(2, 3, 4), ints(0, -1)], {}),
    ("Reshape", [real(0, 3), ints(3, 0)], {"allowzero": 1}),
    ("Flatten", [real(2, 3, 4)], {}),
    ("Flatten", [real(2, 3, 4)], {"axis": -1}),
    ("Flatten", [real(2, 3, 4)], {"axis": 0}),
    ("Squeeze", [real(1, 3, 1)], {}),
    ("Squeeze", [real(1, 3, 1), ints(-1)], {}),
    ("Unsqueeze", [X, ints(0, 3)], {}),
    ("Transpose", [real(2, 3, 4)], {}),
    ("Transpose", [real(2, 3, 4)], {"perm": [1, 0, 2]}),
    ("Concat", [X, real(2, 1)], {"axis": -1}),
    ("Concat", [X, real(1, 3), real(4, 3)], {"axis": 0}),
    ("Expand", [real(2, 1, 3), ints(4, 1, 5, 1)], {}),
    ("Tile", [X, ints(2, 3)], {}),
    ("Slice", [real(5, 4), ints(1), ints(-1)], {}),
    ("Slice", [real(5, 4), ints(0, 1), ints(100, 3), ints(1, 0)], {}),
    ("Slice", [real(5, 4), ints(-1), ints(-100), ints(0), ints(-2)], {}),
    ("Slice", [real(5, 4), ints(4), ints(0), ints(0), ints(-1)], {}),
    ("Slice", [real(5, 4), ints(100), ints(-3), ints(0), ints(-1)], {}),
    ("Split", [real(2, 6), ints(1, 2, 3)], {"axis": 1}),
    ("TopK", [real(3, 7), ints(4)], {"axis": 1, "largest": 0}),
    ("TopK", [real(3, 7), ints(2)], {}),
    ("Split", [real(7, 2)], {"num_outputs": 3}),
    ("Gather", [real(5, 4), whole(2, 3) % 4], {}),
    ("Gather", [real(5, 4), ints(-1, 0)], {"axis": 1}),
    ("Gather", [real(5, 4), np.int64(2)], {"axis": 1}),
    ("GatherElements", [real(5, 4), whole(2, 4) % 5], {}),
    ("GatherElements", [real(5, 4), -1 - whole(5, 2) % 4], {"axis": 1}),
    ("GatherElements", [real(5, 4), whole(1, 2) % 4], {"axis": 1}),
    ("GatherElements", [real(5, 4), whole(2, 3) % 5], {"axis": -2}),
    ("GatherND", [real(5, 4, 3), whole(2, 2) % 4], {}),
    ("GatherND", [real(2, 4, 3), whole(2, 1) % 4], {"batch_dims": 1}),
    ("GatherND", [real(2, 4, 3), whole(2, 5, 2) % 3], {"batch_dims": 1}),
    ("Pad", [X, ints(1, 0, 0, 2)], {}),
    ("Pad", [X, ints(1, 2), np.float32(7), ints(-1)], {}),
    ("Pad", [real(4, 5), ints(1, 2, 3, 1)], {"mode": "reflect"}),
    ("Pad", [real(4, 5), ints(1, 2, 3, 1)], {"mode": "edge"}),
    ("Constant", [], {"value": real(2, 2)}),
    ("Constant", [], {"value_float": 0.5}),
    ("Constant", [], {"value_floats": [0.5, 2.0]}),
    ("Constant", [], {"value_int": -3}),
    ("Constant", [], {"value_ints": [1, -3]}),
    ("ConstantOfShape", [ints(2, 3)], {}),
    ("ConstantOfShape", [ints(2)], {"value": ints(4)}),
    ("Range", [np.int64(2), np.int64(9), np.int64(3)], {}),
    ("Range", [np.int64(9), np.int64(2), np.int64(-3)], {}),
    *((f"Reduce{n}", [POSITIVE, ints(-1)], {}) for n in "L2 Max Mean Min Prod Sum".split()),
    *((f"Reduce{n}", [X], {"keepdims": 0}) for n in "L2 Max Mean Min Prod Sum".split()),
    ("ReduceSum", [X], {"noop_with_empty_axes": 1}),
    ("ArgMax", [real(4, 5)], {"axis": 1}),
    ("ArgMax", [np.ones((2, 3), np.float32)], {"axis": -1, "keepdims": 0}),
    ("ArgMin", [real(4, 5)], {"axis": 0, "keepdims": 0}),
    ("Softmax", [10 * real(2, 3)], {}),
    ("Softmax", [real(2, 3, 4)], {"axis": 1}),
    ("LogSoftmax", [10 * real(2, 3)], {}),
    ("LayerNormalization", [real(2, 3, 8), real(8), real(8)], {}),
    ("LayerNormalization", [real(2, 3, 8), real(3, 8)], {"axis": 1, "epsilon": 0.1}),
    ("BatchNormalization", [IMAGE, real(4), real(4), real(4), np.abs(real(4))], {"epsilon": 0.1}),
    ("Conv", [IMAGE, real(6, 4, 3, 2), real(6)], {}),
    ("Conv", [IMAGE, real(6, 2, 3, 2)], {"group": 2, "strides": [2, 1], "pads": [1, 0, 2, 1]}),
    ("Conv", [IMAGE, real(6, 4, 3, 2)], {"dilations": [2, 3], "strides": [1, 2]}),
    ("Conv", [IMAGE, real(6, 4, 3, 2)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", [IMAGE, real(6, 4, 4, 4)], {"auto_pad": "SAME_LOWER", "kernel_shape": [4, 4]}),
    ("Conv", [IMAGE, real(6, 4, 3, 3)], {"auto_pad": "VALID"}),
    ("Conv", [real(2, 3, 10), real(5, 3, 4)], {"pads": [2, 1]}),
    ("MaxPool", [IMAGE], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}),
    ("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "dilations": [2, 1]}),
    ("AveragePool", [IMAGE], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}),
    (
        "AveragePool",
        [IMAGE],
        {"kernel_shape": [2, 2], "pads": [1, 1, 0, 0], "count_include_pad": 1},
    ),
    ("GlobalAveragePool", [IMAGE], {}),
    ("GlobalMaxPool", [IMAGE], {}),
]


def single(case: Case, outputs: int) -> bytes:
    name, inputs, attributes = case
    names = [f"i{k}" if x is not None else "" for k, x in enumerate(inputs)]
    made = [f"o{k}" for k in range(outputs)]
    opset = 20 if name == "Gelu" else 18
    ports = [
        port(n, x.shape, TYPES[np.asarray(x).dtype.name])
        for n, x in zip(names, inputs, strict=True)
        if x is not None
    ]
    results = [field(1, n) for n in made]  # of any type: a single operator says which
    return model(graph([node(name, names, made, **attributes)], {}, ports, results), {}, opset)


ROW, COLUMN = np.ones((1, 10**4), np.float32), np.ones((10**4, 1), np.float32)


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)])
def test_operator_computes_what_onnx_runtime_does(case: Case) -> None:
    name, inputs, attributes = case
    if attributes == {"noop_with_empty_axes": 1} and ONNX_RUNTIME < (1, 23):
        pytest.skip("ONNX Runtime 1.22 cannot compute a reduction of no axes, which is the oracle")
    with np.errstate(all="ignore"):
        found = OPERATORS[name](Meter(), *inputs, **attributes)
    found = found if isinstance(found, tuple) else (found,)
    session = onnxruntime.InferenceSession(
        single(case, len(found)), providers=["CPUExecutionProvider"]
    )
    feeds = {f"i{k}": np.asarray(x) for k, x in enumerate(inputs) if x is not None}
    right = session.run(None, feeds)
    for a, b in zip(found, right, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_every_operator_has_a_case() -> None:
    assert OPERATORS.keys() - {name for name, _, _ in CASES} == RANDOM


@pytest.mark.parametrize(
    ("name", "inputs", "attributes"),
    [
        ("Expand", [np.ones(1, np.float32), ints(10**6, 10**6)], {}),
        ("Tile", [np.ones((1, 1), np.float32), ints(10**6, 10**6)], {}),
        ("ConstantOfShape", [ints(10**6, 10**6)], {}),
        ("Pad", [np.ones(1, np.float32), ints(10**9, 10**9)], {}),
        ("Range", [np.int64(0), np.int64(2**62), np.int64(1)], {}),
        ("RandomNormal", [], {"shape": [10**6, 10**6]}),
        ("Add", [np.ones((10**4, 1), np.float32), np.ones((1, 10**4), np.float32)], {}),
        ("MatMul", [np.ones((10**4, 1), np.float32), np.ones((1, 10**4), np.float32)], {}),
        ("Gemm", [np.ones((10**4, 1), np.float32), np.ones((1, 10**4), np.float32)], {}),
        ("Gather", [np.ones((1, 10**4), np.float32), np.zeros(10**4, np.int64)], {}),
        ("Conv", [real(1, 1, 4, 4), real(1, 1, 1, 1)], {"pads": [10**5] * 4}),
        ("Where", [FLAGS[:1, :1], np.ones((10**4, 1)), np.ones((1, 10**4))], {}),
        ("Clip", [ROW, COLUMN, None], {}),
        ("Clip", [ROW, None, COLUMN], {}),
        ("LayerNormalization", [COLUMN, ROW], {}),
        ("LayerNormalization", [COLUMN, np.ones(1, np.float32), ROW], {}),
        ("Reshape", [np.ones((4000, 4000), np.uint8).T, ints(-1)], {}),
        ("Flatten", [np.ones((4000, 4000), np.uint8).T], {}),
        ("ArgMax", [np.ones((4000, 4000, 1), np.uint8)], {"axis": 2}),
        ("GlobalAveragePool", [np.ones((4000, 4000), np.float32)], {}),
        ("ReduceSum", [np.ones((0, 10**4, 10**4), np.float32), ints(0)], {}),
        ("GlobalAveragePool", [np.ones((10**4, 10**4, 0), np.float32)], {}),
        ("AveragePool", [np.ones((0, 1, 10**4, 10**4), np.float32)], {"kernel_shape": [1, 1]}),
        ("TopK", [np.ones((0, 10**8), np.float32), ints(10**8)], {}),
        ("GatherElements", [np.ones((10**8, 0)), np.zeros((10**8, 0), np.int64)], {"axis": 1}),
        ("GatherND", [np.ones((10**8, 0)), np.zeros((10**8, 0, 1), np.int64)], {"batch_dims": 1}),
        ("Reshape", [np.ones(0, np.float32), ints(0, 10**8)], {"allowzero": 1}),
        ("ConstantOfShape", [ints(0, 10**8)], {}),
    ],
)
def test_what_grows_is_measured_before_it_is_computed(
    name: str, inputs: list[np.ndarray], attributes: dict[str, Any]
) -> None:
    with pytest.raises(PolicyFileError, match="needs more than"):
        OPERATORS[name](Meter(numbers=10**7), *inputs, **attributes)


def test_products_are_counted() -> None:
    meter = Meter(products=1000)
    OPERATORS["MatMul"](meter, real(10, 10), real(10, 5))
    OPERATORS["Gemm"](meter, real(10, 10), real(10, 5))
    with pytest.raises(PolicyFileError, match="1,000 multiplications"):
        OPERATORS["MatMul"](meter, real(1, 1), real(1, 1))


@pytest.mark.parametrize(
    ("name", "inputs", "attributes"),
    [
        ("Tanh", [X], {"alpha": 1.0}),
        ("Div", [whole(3), ints(0)], {}),
        ("Add", [X, whole(3)], {}),
        ("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "ceil_mode": 1}),
        ("Split", [X, ints(5, -2)], {"axis": 1}),
        ("Cast", [X], {"to": 8}),
        ("Mod", [X, X], {}),
        ("Concat", [], {"axis": 0}),
        ("ArgMax", [X], {"select_last_index": 1}),
        ("Split", [np.ones((2000, 1))], {"num_outputs": 2000}),
        ("GatherElements", [X, np.zeros((X.shape[0] + 1, 1), np.int64)], {"axis": 1}),
        ("BatchNormalization", [np.ones((9, 1)), *[np.ones(9)] * 4], {}),
        ("Conv", [real(1, 1, 4), real(1, 1, 1), np.ones(9, np.float32)], {}),
        ("Conv", [np.ones((1, 0, 4)), np.ones((0, 0, 1))], {"group": 10**12}),
    ],
)
def test_what_is_not_implemented_is_an_error(
    name: str, inputs: list[np.ndarray], attributes: dict[str, Any]
) -> None:
    with pytest.raises((TypeError, ValueError, IndexError)):
        OPERATORS[name](Meter(), *inputs, **attributes)


def test_random_numbers_are_standard_normal() -> None:
    numbers = OPERATORS["RandomNormalLike"](Meter(), np.empty((100, 100), np.float32))
    # Four standard errors of mean and variance of 10,000 draws: fails once in 8,000 right ones.
    assert abs(numbers.mean()) < 4 / math.sqrt(numbers.size)
    assert abs(numbers.var() - 1) < 4 * math.sqrt(2 / numbers.size)
    assert numbers.dtype == np.float32


def test_the_writer_of_these_tests_is_read_back() -> None:
    gemm = node("Gemm", ["x", "w"], ["y"], transB=1, alpha=0.5)
    ports = [port("x", ("batch", 3))], [port("y", ("batch", 4))]
    read = read_graph(model(graph([gemm], {"w": real(4, 3)}, *ports)))
    (found,) = read.nodes
    assert found.operator == "Gemm"
    assert found.attributes == {"transB": 1, "alpha": 0.5}
