"""Files that somebody made to do harm, or that broke: a typed error, within bounds, nothing run."""

import copy
import json
import re
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_writer import (
    attribute,
    document,
    field,
    graph,
    model,
    node,
    policy_bytes,
    port,
    tensor,
    varint,
)

from gtp_runtime import GTPRuntimeError, Policy, PolicyFileError
from gtp_runtime.document import parse_document, read_document
from gtp_runtime.graph import Graph, read_graph

PORTS = [port("obs", ("batch", 3))], [port("action", ("batch", 3))]
CONTENT = document(
    action__shape=[3],
    action__low=[-1.0] * 3,
    action__high=[1.0] * 3,
    noise={"source": "keyed", "input": None, "shape": [1]},
)
PROPERTY = {"gtp_policy": json.dumps(CONTENT)}
ECHO = node("Identity", ["obs"], ["action"])


def file(
    nodes: list[bytes], constants: dict[str, np.ndarray] | None = None, more: bytes = b""
) -> bytes:
    return model(graph(nodes, constants or {}, *PORTS) + more, PROPERTY)


def external(**more: bytes) -> bytes:
    """A weight whose numbers stand in another file."""
    where = field(1, "location") + field(2, "../../etc/passwd")
    return field(1, 3) + field(2, 1) + field(8, "w") + field(13, where) + more.get("also", b"")


def if_node() -> bytes:
    inside = graph([node("Identity", ["obs"], ["y"])], {}, [], [port("y", ("batch", 3))])
    branch = [
        field(5, field(1, n) + field(6, inside) + field(20, 5))
        for n in ("then_branch", "else_branch")
    ]
    return field(1, "flag") + field(2, "action") + field(4, "If") + b"".join(branch)


# Each is small for zeros, and as large as one likes for other observations.
SIZED: dict[str, tuple[list[bytes], dict[str, np.ndarray]]] = {
    "Expand": ([node("Expand", ["obs", "seen"], ["big"])], {}),
    "its own number": (
        [node("Add", ["seen", "one"], ["n"]), node("ConstantOfShape", ["n"], ["big"])],
        {"one": np.array([[1, 1, 1]])},
    ),
    "Range": (
        [
            node("ReduceSum", ["seen"], ["n"], keepdims=0),
            node("Range", ["zero", "n", "one"], ["big"]),
        ],
        {"zero": np.array(0), "one": np.array(1)},
    ),
    "Tile": (
        [
            node("Squeeze", ["seen", "axis"], ["n"]),
            node("Slice", ["n", "axis", "two"], ["k"]),
            node("Tile", ["obs", "k"], ["big"]),
        ],
        {"axis": np.array([0]), "two": np.array([2])},
    ),
    "Pad": (
        [
            node("Reshape", ["seen", "flat"], ["n"]),
            node("Concat", ["n", "zero"], ["k"], axis=0),
            node("Pad", ["obs", "k"], ["big"]),
        ],
        {"flat": np.array([-1]), "zero": np.array([0])},
    ),
    "Slice": (
        [
            node("Reshape", ["seen", "flat"], ["n"]),
            node("Slice", ["w", "zero", "n"], ["big"]),
        ],
        {"flat": np.array([-1]), "zero": np.array([0, 0, 0]), "w": np.zeros((9, 9, 9))},
    ),
    "Slice, its steps": (
        [
            node("Reshape", ["seen", "flat"], ["n"]),
            node("Slice", ["w", "zero", "zero", "", "n"], ["big"]),
        ],
        {"flat": np.array([-1]), "zero": np.array([0, 0, 0]), "w": np.zeros((9, 9, 9))},
    ),
    "TopK": (
        [
            node("ReduceMax", ["seen"], ["n"], keepdims=0),
            node("Reshape", ["n", "flat"], ["k"]),
            node("TopK", ["w", "k"], ["big", "index"]),
        ],
        {"flat": np.array([-1]), "w": np.zeros(99)},
    ),
    "Reshape": (
        [node("Reshape", ["seen", "flat"], ["n"]), node("Reshape", ["w", "n"], ["big"])],
        {"flat": np.array([-1]), "w": np.zeros((0, 9))},
    ),
    "ReduceSum": ([node("ReduceSum", ["obs", "seen"], ["big"])], {}),
}


REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no graph"),
    "text": (b"hello world", "cannot be read"),
    "pickle": (b"\x80\x04\x95.", "cannot be read"),
    "zip": (b"PK\x03\x04" + bytes(30), "got a zip file"),
    "another model": (model(graph([ECHO], {}, *PORTS)), "no property `gtp_policy`"),
    "custom operator": (
        file([node("Evil", ["obs"], ["action"], domain="com.evil")]),
        "'Evil' of the domain 'com.evil'",
    ),
    "python operator": (
        file([node("PyOp", ["obs"], ["action"], domain="ai.onnx.contrib")]),
        "refused: got the operator 'PyOp'",
    ),
    "unknown operator": (file([node("Loopy", ["obs"], ["action"])]), "the operator 'Loopy'"),
    "another domain": (
        file([ECHO]) + field(8, field(1, "com.microsoft") + field(2, 1)),
        "operators of the domain 'com.microsoft'",
    ),
    "two opsets": (file([ECHO]) + field(8, field(1, "") + field(2, 17)), "two versions"),
    "function": (file([ECHO]) + field(25, field(1, "f")), "functions"),
    "training": (file([ECHO]) + field(20, b""), "the field 20 of a model"),
    "external weight": (file([ECHO], more=field(5, external())), "data in another file"),
    "external location": (
        file([ECHO], more=field(5, external(also=field(14, 1)))),
        "data in another file",
    ),
    "location alone": (
        file([ECHO], more=field(5, field(8, "w") + field(2, 1) + field(14, 1))),
        "data in another file",
    ),
    "external attribute": (
        file(
            [
                node("Constant", [], ["c"])
                + field(5, field(1, "value") + field(5, external()) + field(20, 4)),
                ECHO,
            ]
        ),
        "data in another file",
    ),
    "subgraph": (
        file([if_node()], {"flag": np.array(True)}),
        "a subgraph or the field 6",
    ),
    "sparse weight": (file([ECHO], more=field(15, b"")), "the field 15 of a graph"),
    "second graph": (file([ECHO]) + field(7, graph([ECHO], {}, *PORTS)), "two graphs"),
    "second property": (
        file([ECHO]) + field(14, field(1, "gtp_policy") + field(2, "{}")),
        "two properties",
    ),
    "second weight": (
        file([ECHO], {"w": np.zeros(1, np.float32)}, field(5, tensor("w", np.ones(1, np.float32)))),
        "a second 'w'",
    ),
    "second maker": (file([ECHO, ECHO]), "a second 'action'"),
    "weight over input": (file([ECHO], {"obs": np.zeros((1, 3), np.float32)}), "a second 'obs'"),
    "circle": (
        file([node("Add", ["obs", "b"], ["a"]), node("Identity", ["a"], ["b"]), ECHO]),
        "'b' before it is computed",
    ),
    "an attribute that is a tensor": (
        file(
            [node("LeakyRelu", ["x"], ["y"], alpha=np.ones((9, 1), np.float32)), ECHO],
            {"x": np.ones((1, 9), np.float32)},
        ),
        "an attribute 'alpha' of several numbers",
    ),
    "an attribute that is a list": (
        file(
            [node("LeakyRelu", ["x"], ["y"], alpha=[0.1] * 9), ECHO],
            {"x": np.ones((9, 1), np.float32)},
        ),
        "an attribute 'alpha' of several numbers",
    ),
    "a shape that is a tensor": (
        file([node("RandomNormal", [], ["y"], shape=np.full(5, 64, np.int8)), ECHO]),
        "an attribute 'shape' of several numbers",
    ),
    "many groups of nothing": (
        file(
            [node("Conv", ["x", "w"], ["y"], group=65536), ECHO],
            {"x": np.zeros((1, 0, 1), np.float32), "w": np.zeros((65536, 0, 1), np.float32)},
        ),
        "needs more than 8,589,934,592 multiplications",
    ),
    "no output": (file([node("Identity", ["obs"], ["y"])]), "an output 'action' that is not"),
    "weight too short": (
        file(
            [ECHO],
            more=field(5, field(1, 10**9) + field(2, 1) + field(8, "w") + field(9, bytes(8))),
        ),
        "8 bytes of 'w' for the shape",
    ),
    "negative shape": (
        file([ECHO], more=field(5, field(1, -1) + field(2, 1) + field(8, "w") + field(9, b""))),
        "of shape",
    ),
    "many dimensions": (
        file(
            [ECHO],
            more=field(5, field(1, 1) * 9 + field(2, 1) + field(8, "w") + field(9, bytes(4))),
        ),
        "too large in this form",
    ),
    "text weight": (
        file([ECHO], more=field(5, field(1, 1) + field(2, 8) + field(8, "w") + field(6, "x"))),
        "the field 6 of a tensor",
    ),
    "flag of 2": (
        file([ECHO], more=field(5, field(1, 1) + field(2, 9) + field(8, "w") + field(9, b"\x02"))),
        "neither 0 nor 1",
    ),
    "memory": (
        file(
            [
                node("Expand", ["obs", "s"], ["big"]),
                node("ReduceMean", ["big", "axis"], ["m"]),
                node("Identity", ["obs"], ["action"]),
            ],
            {"s": np.array([10**6, 10**6, 1, 3]), "axis": np.array([0])},
        ),
        "numbers in memory",
    ),
    **{
        f"a size that an observation decides: {name}": (
            file([node("Cast", ["obs"], ["seen"], to=7), *nodes, ECHO], constants),
            "which an observation decides",
        )
        for name, (nodes, constants) in SIZED.items()
    },
    "constant memory": (
        file([node("ConstantOfShape", ["s"], ["big"]), ECHO], {"s": np.array([10**6, 10**6])}),
        "numbers in memory",
    ),
    "bounds that make a number many": (
        file(
            [node("Clip", ["row", "column"], ["big"]), ECHO],
            {"row": np.zeros((1, 50_000), "f4"), "column": np.zeros((50_000, 1), "f4")},
        ),
        "numbers in memory",
    ),
    "copies of copies": (
        file(
            [
                node("ConstantOfShape", ["s"], ["a"]),
                node("Transpose", ["a"], ["b"]),
                *(node("Reshape", ["b", "flat"], [f"c{i}"]) for i in range(1000)),
                ECHO,
            ],
            {"s": np.array([2000, 2000]), "flat": np.array([-1])},
        ),
        "numbers in memory",
    ),
    "weight of nothing": (
        file([ECHO], {"w": np.zeros((0, 10**9), np.float32)}),
        "of shape",
    ),
    "work": (
        file(
            [
                node("ConstantOfShape", ["s"], ["a"]),
                *(node("MatMul", ["a", "a"], [f"b{i}"]) for i in range(10)),
                ECHO,
            ],
            {"s": np.array([3000, 3000])},
        ),
        "multiplications|numbers in memory",
    ),
    **{
        f"work of {operator}": (
            file(
                [
                    node("ConstantOfShape", ["s"], ["a"]),
                    *(node(operator, ["a", *more], [f"{o}{i}" for o in outputs]) for i in range(9)),
                    ECHO,
                ],
                {"s": np.array([4_400_000]), "k": np.array([1])},
            ),
            "needs more than 8,589,934,592 multiplications",
        )
        for operator, more, outputs in (
            ("Erf", [], "b"),
            ("Gelu", [], "b"),
            ("TopK", ["k"], "bc"),
        )
    },
    "wrong shape inside": (
        file([node("Concat", ["obs", "obs"], ["action"], axis=1)]),
        "float32 of shape .1, 6. for one observation",
    ),
    "wrong types": (
        file([node("Add", ["obs", "w"], ["action"])], {"w": np.zeros(3, np.int64)}),
        "at an operator Add",
    ),
    "unknown attribute": (
        file([node("Tanh", ["obs"], ["action"], self=1)]),
        "at an operator Tanh",
    ),
    "attribute by another name": (
        file([node("Tanh", ["obs"], ["action"], meter=1)]),
        "at an operator Tanh",
    ),
    "attribute of two types": (
        file(
            [
                node("ArgMax", ["obs"], ["i"])
                + field(5, field(1, "axis") + field(3, 1) + field(2, 1.0) + field(20, 2)),
                ECHO,
            ]
        ),
        "of two types",
    ),
    "attribute without a type": (
        file([node("ArgMax", ["obs"], ["i"]) + field(5, field(1, "axis") + field(3, 1)), ECHO]),
        "of type 0",
    ),
    "more outputs": (file([node("Identity", ["obs"], ["action", "b"])]), "2 outputs"),
    "no nodes left": (
        file([node("Gather", ["obs", "i"], ["action"], axis=9)], {"i": np.array([0])}),
        "at an operator Gather",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_file_is_refused_in_time_and_memory(name: str) -> None:
    data, match = REFUSED[name]
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(PolicyFileError, match=match):
            Policy.load(data, backend="numpy")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 600e6
    assert time.process_time() - start < 20
    with pytest.raises(PolicyFileError):
        Policy.load(data)


def test_sizes_come_of_sizes_alone() -> None:
    """How many observations there are may decide a size, and what is cast, put together of it."""
    nodes = [
        node("Shape", ["obs"], ["shape"]),
        node("Gather", ["shape", "first"], ["batch"]),
        node("Cast", ["batch"], ["real"], to=1),
        node("Cast", ["real"], ["whole"], to=7),
        node("Concat", ["whole", "three"], ["n"], axis=0),
        node("Expand", ["mean", "n"], ["means"]),
        node("ReduceMin", ["obs"], ["least"], keepdims=0),
        node("Pad", ["obs", "none", "least"], ["padded"]),
        node("Add", ["padded", "means"], ["action"]),
    ]
    constants = {
        "first": np.array([0]),
        "three": np.array([3]),
        "none": np.zeros(4, np.int64),
        "mean": np.full((1, 3), 0.5, np.float32),
    }
    policy = Policy.load(file(nodes, constants), backend="numpy")
    obs = np.full((5, 3), 0.25, np.float32)
    np.testing.assert_array_equal(policy.act(obs), np.full((5, 3), 0.75, np.float32))


def test_numbers_that_are_drawn_decide_no_size() -> None:
    content = copy.deepcopy(CONTENT)
    content["noise"] = {"source": "seeded", "input": None, "shape": [1], "seed": 0}
    drawn = [
        node("RandomNormalLike", ["obs"], ["z"]),
        node("Cast", ["z"], ["n"], to=7),
        node("Expand", ["obs", "n"], ["big"]),
    ]
    made = graph([*drawn, ECHO], {}, *PORTS)
    with pytest.raises(PolicyFileError, match="as large as 'n' says, which an observation"):
        Policy.load(model(made, {"gtp_policy": json.dumps(content)}), backend="numpy")


@pytest.mark.parametrize("operator", ["Erf", "Gelu"])
def test_an_error_function_takes_no_more_than_its_result(operator: str) -> None:
    # As numbers of Python, two million would take 64 MB beside the 8 MB that are counted.
    nodes = [
        node("Expand", ["zero", "shape"], ["many"]),
        node(operator, ["many"], ["more"]),
        node("ReduceSum", ["more", "axis"], ["sum"]),
        node("Add", ["obs", "sum"], ["action"]),
    ]
    constants = {
        "zero": np.zeros((1, 1), np.float32),
        "shape": np.array([1, 2_000_000]),
        "axis": np.array([1]),
    }
    tracemalloc.start()
    Policy.load(file(nodes, constants), backend="numpy")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 4 * 2_000_000


def test_inputs_count_before_they_are_filled() -> None:
    """Three kilobytes that name twenty inputs of sixteen million numbers took 1.3 GB."""
    parts = [{"input": f"i{k}", "key": f"i{k}", "shape": [1 << 24]} for k in range(20)]
    parts.append({"input": "obs", "key": "obs", "shape": [3]})
    content = copy.deepcopy(CONTENT)
    rest = {"dtype": "float32", "low": None, "high": None}
    content["observation"] = {"kind": "dict", "parts": [p | rest for p in parts], "history": 1}
    ports = [port(str(p["input"]), ("batch", *p["shape"])) for p in parts]  # type: ignore[misc]
    data = model(graph([ECHO], {}, ports, PORTS[1]), {"gtp_policy": json.dumps(content)})
    tracemalloc.start()
    with pytest.raises(PolicyFileError, match="needs more than 134,217,728 numbers"):
        Policy.load(data, backend="numpy")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 600e6


def test_parts_are_counted_as_they_are_read() -> None:
    """Each takes up to 600 bytes of memory, and can stand in two of the file."""
    tensors, numbers = (
        [field(5, field(1, str(i)) + content) for i in range(30)]
        for content in (
            field(20, 4) + field(5, field(2, 2) + field(1, 1) + field(9, b"a")),
            field(20, 2),
        )
    )
    cases = {
        "operators and constants": b"\x0a\x00" * 50_000 + b"\x2a\x00" * 50_000,
        "operators, attributes": field(1, b"".join(numbers)) * 3_000,
        "of several numbers": field(1, b"".join(tensors)) * 3_000,
        "or too many": field(
            1, b"".join(field(5, field(1, str(i)) + field(20, 2)) for i in range(99))
        ),
    }
    for match, many in cases.items():
        data = model(graph([ECHO], {}, *PORTS) + many, {"gtp_policy": json.dumps(CONTENT)})
        tracemalloc.start()
        with pytest.raises(PolicyFileError, match=match):
            Policy.load(data, backend="numpy")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**24 + 20 * len(data)


def test_a_second_version_of_operators_is_refused_behind_one_without_a_number() -> None:
    with pytest.raises(PolicyFileError, match="two versions"):
        read_graph(b"\x42\x00" * 2 + file([ECHO]))


@pytest.mark.parametrize("part", ["[" * 500 + "]" * 500, "{}"])
def test_a_document_takes_a_small_multiple_of_its_letters(part: str) -> None:
    text = f'{{"more": [{",".join([part] * (4_000_000 // len(part)))}]}}'
    tracemalloc.start()
    with pytest.raises(PolicyFileError, match="lists, objects and words"):
        read_document(Graph(metadata={"gtp_policy": text}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


def test_the_good_file_beside_them_is_taken() -> None:
    assert Policy.load(file([ECHO])).act([0.5, -2.0, 0.0]).tolist() == [0.5, -1.0, 0.0]


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "no version": ({"format_version": None}, "`format_version` of None"),
    "version 0": ({"format_version": 0}, "`format_version` of 0"),
    "version True": ({"format_version": True}, "`format_version` of True"),
    "kind": ({"kind": "critic"}, "`kind` of 'critic'"),
    "steps": ({"steps": 1.5}, "`steps` of 1.5"),
    "precision": ({"precision": "int4"}, "`precision`"),
    "observation": ({"observation": []}, "no object at `observation`"),
    "parts": ({"observation__parts": []}, "no list of objects"),
    "kind of observation": ({"observation__kind": "graph"}, "`observation.kind`"),
    "dict without keys": ({"observation__kind": "dict"}, "the key None"),
    "action shape": ({"action__shape": [-1]}, "`action.shape`"),
    "action size": ({"action__shape": [2**20, 2**20]}, "`action.shape`"),
    "playback": ({"action__playback": [2]}, "no object at `action.playback`"),
    "never played": ({"action__playback": {"every": 0}}, "`action.playback.every` of 0"),
    "played beyond its end": ({"action__playback": {"every": 2}}, "of 2 for a chunk of 1"),
    "no average": (
        {"action__playback": {"every": 1, "ensemble": 0.5}},
        "`action.playback.every` of 1 for a chunk of 1",
    ),
    "a rate that grows": (
        {"action__chunk": 2, "action__playback": {"every": 1, "ensemble": -0.5}},
        "`action.playback.ensemble` of -0.5",
    ),
    "low": ({"action__low": [0.0]}, "no list of 2 numbers"),
    "low null": ({"action__low": [None, 0.0]}, "with null"),
    "low text": ({"action__low": ["a", 0.0]}, "no list of numbers"),
    "low huge": ({"action__low": [-1e300, 0.0]}, "not finite in float32"),
    "low integer": ({"action__low": [-(10**400), 0.0]}, "beyond float64"),
    "low above high": ({"action__low": [3.0, 0.0]}, "`action.low` below `action.high`"),
    "observation's low above high": (
        {
            "observation__parts": [
                {"input": "obs", "key": None, "shape": [2], "low": [0, 5], "high": [None, -5]}
            ]
        },
        "no `low` of the observation None below `high`",
    ),
    "noise source": ({"noise__source": "internet"}, "`noise.source`"),
    "noise input": ({"noise__input": None}, "`noise.input` of None"),
    "checkpoint": ({"checkpoint": 3}, "no object at `checkpoint`"),
    "history": (
        {
            "observation__history": 10**7,
            "observation__parts": [{"input": "obs", "key": None, "shape": [100]}],
        },
        "more than",
    ),
}


@pytest.mark.parametrize("more", [r'"\ud800"', "1e999", r'{"\udfff": 1}'])
def test_what_no_server_can_repeat_is_no_document(more: str) -> None:
    text = json.dumps(CONTENT)[:-1] + f', "more": {more}}}'
    with pytest.raises(PolicyFileError, match="got no JSON"):
        Policy.load(model(graph([ECHO], {}, *PORTS), {"gtp_policy": text}))


@pytest.mark.parametrize("name", CHANGES)
def test_a_wrong_document_is_named(name: str) -> None:
    changes, match = CHANGES[name]
    with pytest.raises(PolicyFileError, match=match):
        parse_document(document(**changes))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"action__output": "u"}, "got the outputs action"),
        ({"noise__shape": [3]}, "got the inputs"),
        ({"action__chunk": 2}, "got the outputs"),
        ({"opset": 17}, "got opset 18"),
    ],
)
def test_a_document_of_another_model_is_refused(changes: dict[str, Any], match: str) -> None:
    data = read_graph(policy_bytes())
    content = document(**changes)
    data.metadata["gtp_policy"] = json.dumps(content)
    with pytest.raises(PolicyFileError, match=match):
        read_document(data)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"format_version": NaN}', "null"])
def test_a_property_that_is_no_document_is_refused(text: str) -> None:
    with pytest.raises(PolicyFileError):
        Policy.load(model(graph([ECHO], {}, *PORTS), {"gtp_policy": text}))


GOOD = policy_bytes()


@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=8),
    st.one_of(st.none(), st.integers(0, len(GOOD))),
)
def test_a_damaged_file_acts_or_is_refused_by_a_typed_error(
    changes: list[tuple[int, int]], end: int | None
) -> None:
    data = bytearray(GOOD)
    for at, value in changes:
        data[at] = value
    try:
        policy = Policy.load(bytes(data[:end]))
    except GTPRuntimeError:
        return
    assert policy.act(policy.zeros(), deterministic=True).shape == policy.document.result_shape


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(PolicyFileError):
        Policy.load(data)


@given(st.binary(max_size=60), st.sampled_from([1, 5, 7, 8, 11, 12, 14]))
def test_any_message_in_a_model_is_refused_or_no_part_of_it(data: bytes, number: int) -> None:
    try:
        read_graph(field(number, data))
    except PolicyFileError:
        return


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(sorted(document())), inner, max_size=5)
        ),
    ),
    st.sampled_from(sorted(document())),
)
def test_any_json_is_a_document_or_a_typed_error(value: Any, key: str) -> None:
    for content in (value, document() | {key: value}):
        try:
            parse_document(content)
        except PolicyFileError:
            continue


def test_nothing_is_opened_or_started_while_a_file_is_refused() -> None:
    seen: list[str] = []
    bad = re.compile(r"^(open|exec|compile|import|os\.|subprocess|socket|ctypes\.dlopen|pickle)")
    watching = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and bad.match(event):
            seen.append(f"{event} {arguments[:1]!r:.100}")

    for data, _ in REFUSED.values():  # what is imported on the way is there
        with pytest.raises(PolicyFileError):
            Policy.load(data, backend="numpy")
    sys.addaudithook(hook)
    try:
        for data, _ in REFUSED.values():
            with pytest.raises(PolicyFileError):
                Policy.load(data, backend="numpy")
    finally:
        watching = False
    assert seen == []


def test_numbers_as_lists_are_read_as_onnx_says(tmp_path: Path) -> None:
    def listed(
        element: int, number: int, content: bytes, dims: tuple[int, ...] = (2,)
    ) -> np.ndarray:
        part = b"".join(field(1, n) for n in dims) + field(2, element) + field(8, "w")
        data = model(graph([ECHO], {}, *PORTS) + field(5, part + field(number, content)))
        return read_graph(data).constants["w"]

    assert listed(1, 4, struct.pack("<2f", 0.5, -2)).tolist() == [0.5, -2.0]
    assert listed(7, 7, varint(3) + varint(-1)).tolist() == [3, -1]
    assert listed(6, 5, varint(3) + varint(-1)).tolist() == [3, -1]
    assert listed(9, 5, varint(1) + varint(0)).tolist() == [True, False]
    assert listed(10, 5, varint(0x3C00) + varint(0xC000)).tolist() == [1.0, -2.0]
    for element, number, content in (
        (1, 7, varint(1) * 2),
        (2, 5, varint(256) * 2),
        (10, 5, varint(-1) * 2),
        (11, 4, bytes(8)),
    ):
        with pytest.raises(PolicyFileError):
            listed(element, number, content)


def test_an_attribute_of_zero_may_be_left_out() -> None:
    silent = node("ArgMax", ["obs"], ["i"]) + field(5, field(1, "axis") + field(20, 2))
    read = read_graph(model(graph([silent], {}, PORTS[0], [port("i", ("batch", 1), 7)])))
    assert read.nodes[0].attributes == {"axis": 0}
    assert attribute("axis", 0) == field(1, "axis") + field(3, 0) + field(20, 2)


def test_onnx_takes_what_these_tests_write() -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: another writer's own check")
    check: Callable[..., None] = onnx.checker.check_model
    check(onnx.load_from_string(policy_bytes()), full_check=True)
