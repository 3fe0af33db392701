"""A policy does what its file's formula says, on both backends, and checks what it gets."""

import json
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_writer import document, expected, graph, model, node, policy_bytes, port

from gtp_runtime import NoiseError, ObservationError, Policy, PolicyFileError, example_file
from gtp_runtime.errors import ActionError, NewerFormatError

BACKENDS = ("onnxruntime", "numpy")
RNG = np.random.default_rng(0)


def part(input: str, key: str | None, shape: list[int], **more: Any) -> dict[str, Any]:
    return {"input": input, "key": key, "shape": shape, "dtype": "float32"} | more


DICT = document(
    observation={
        "kind": "dict",
        "parts": [part("obs.camera", "camera", [2, 2]), part("obs.speed", "speed", [1])],
        "history": 1,
    }
)
CANDIDATES = document(noise__shape=[3, 2], candidates=3)
CHUNKS = document(action__chunk=4, observation__history=2)
KEYED = document(noise={"source": "keyed", "input": None, "shape": [2]})


def draw(content: dict[str, Any], batch: int) -> tuple[list[np.ndarray], np.ndarray]:
    past = [content["observation"]["history"]] if content["observation"]["history"] > 1 else []
    parts = content["observation"]["parts"]
    obs = [RNG.normal(size=(batch, *past, *p["shape"])) for p in parts]
    return obs, RNG.normal(size=(batch, *content["noise"]["shape"]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 2, 7, 300])
@pytest.mark.parametrize(
    "content", [document(), DICT, CANDIDATES, CHUNKS], ids=["box", "dict", "candidates", "chunks"]
)
def test_actions_are_those_of_the_formula(
    content: dict[str, Any], batch: int, backend: Any
) -> None:
    policy = Policy.load(policy_bytes(content), backend=backend)
    assert policy.backend == backend
    obs, noise = draw(content, batch)
    keys = [p["key"] for p in content["observation"]["parts"]]
    given = obs[0] if keys == [None] else dict(zip(keys, obs, strict=True))
    right = expected(content, obs, noise)
    found = policy.act(given, noise=noise)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, right, atol=1e-6)
    own = policy.draw_noise(policy.check(given)[0], deterministic=True)
    assert own is not None
    assert own.shape == noise.shape
    np.testing.assert_allclose(
        policy.act(given, deterministic=True), expected(content, obs, own), atol=1e-6
    )
    first = {k: v[0] for k, v in given.items()} if isinstance(given, dict) else given[0]
    alone = policy.act(first, noise=noise[0])
    assert alone.shape == found.shape[1:]
    np.testing.assert_allclose(alone, right[0], atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_keyed_noise_inside_takes_none(backend: Any) -> None:
    policy = Policy.load(policy_bytes(KEYED), backend=backend)
    obs = RNG.normal(size=(5, 3))
    right = expected(KEYED, [obs], None)
    for how in ({}, {"deterministic": True}):
        np.testing.assert_allclose(policy.act(obs, **how), right, atol=1e-6)
    for how in ({"seed": 1}, {"noise": np.zeros((5, 2))}):
        with pytest.raises(NoiseError, match="inside the file"):
            policy.act(obs, **how)
    assert policy.draw_noise(policy.check(obs)[0]) is None


def seeded() -> tuple[dict[str, Any], bytes]:
    content = document(
        noise={"source": "seeded", "input": None, "shape": [3], "seed": 7},
        action__shape=[3],
        action__low=[-9.0] * 3,
        action__high=[9.0] * 3,
    )
    nodes = [
        node("RandomNormalLike", ["obs"], ["z"], seed=7.0),
        node("Add", ["obs", "z"], ["action"]),
    ]
    ports = [port("obs", ("batch", 3))], [port("action", ("batch", 3))]
    return content, model(graph(nodes, {}, *ports), {"gtp_policy": json.dumps(content)})


def test_a_seeded_noise_inside_needs_onnx_runtime() -> None:
    content, data = seeded()
    policy = Policy.load(data)
    assert not np.array_equal(policy.act(np.zeros(3)), policy.act(np.zeros(3)))
    with pytest.raises(NoiseError, match="deterministic=True"):
        policy.act(np.zeros(3), deterministic=True)
    with pytest.raises(PolicyFileError, match="needs ONNX Runtime"):
        Policy.load(data, backend="numpy")
    content["noise"]["source"] = "keyed"
    silent = data.replace(b'"seeded"', b'"keyed" ')
    with pytest.raises(PolicyFileError, match="draws numbers"):
        Policy.load(silent)


def test_a_seed_is_that_of_numpy_and_moves_nothing_else() -> None:
    policy = Policy.load(policy_bytes())
    obs = RNG.normal(size=(4, 3))
    before = np.random.get_state()[1].tolist()  # noqa: NPY002 (read here, never drawn from)
    noise = np.random.default_rng(5).standard_normal((4, 2), np.float32)
    assert np.array_equal(policy.act(obs, seed=5), policy.act(obs, noise=noise))
    assert np.array_equal(policy.draw_noise(policy.check(obs)[0], seed=5), noise)
    assert not np.array_equal(policy.act(obs), policy.act(obs))
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


@pytest.mark.parametrize("dtype", ["float64", "float16", "int8", "int64", "uint8", "bool"])
def test_any_real_numbers_are_taken_as_they_are(dtype: str) -> None:
    policy = Policy.load(policy_bytes())
    obs = np.array([[0, 1, 1], [1, 0, 1]], dtype)
    assert np.array_equal(policy.act(obs, seed=0), policy.act(obs.astype(np.float32), seed=0))
    assert np.array_equal(policy.act(obs[::-1], seed=0), policy.act(obs[::-1].copy(), seed=0))
    assert np.array_equal(policy.act(obs.tolist(), seed=0), policy.act(obs, seed=0))


@pytest.mark.parametrize(
    ("obs", "match"),
    [
        (np.zeros(4), "wrong shape"),
        (np.zeros((2, 2, 3)), "wrong shape"),
        (np.zeros((0, 3)), "wrong shape"),
        (0.0, "wrong shape"),
        ([[0.0, 0.0, 0.0], [0.0]], "no array"),
        (["a", "b", "c"], "wrong type"),
        (np.zeros(3, complex), "wrong type"),
        (np.array([None, 1, 2]), "wrong type"),
        ({"obs": np.zeros(3)}, "wrong structure"),
        (np.array([0.0, np.nan, 0.0]), r"not finite: got nan at row 0, index \(1,\)"),
        (
            np.array([[0.0] * 3, [0.0, 0.0, -np.inf]]),
            r"not finite: got -inf at row 1, index \(2,\)",
        ),
        (np.array([0.0, 1e39, 0.0]), "not finite: got inf"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_observation_is_refused(obs: Any, match: str, backend: Any) -> None:
    policy = Policy.load(policy_bytes(), backend=backend)
    for call in (policy.act, policy.check):
        with pytest.raises(ObservationError, match=match):
            call(obs)


@pytest.mark.parametrize(
    ("obs", "match"),
    [
        (np.zeros(5), "wrong structure"),
        ({"camera": np.zeros((2, 2))}, "'speed' too"),
        ({"camera": np.zeros((2, 2)), "speed": np.zeros((1, 1))}, "wrong shape"),
        ({"camera": np.zeros((3, 2, 2)), "speed": np.zeros((2, 1))}, "wrong shape"),
        ({"camera": np.full((2, 2), np.nan), "speed": np.zeros(1)}, "`obs.camera` is not finite"),
    ],
)
def test_a_wrong_dict_observation_is_refused(obs: Any, match: str) -> None:
    policy = Policy.load(policy_bytes(DICT))
    with pytest.raises(ObservationError, match=match):
        policy.act(obs)


def test_keys_that_are_not_the_policys_are_left_out() -> None:
    policy = Policy.load(policy_bytes(DICT))
    obs = {"camera": np.ones((2, 2)), "speed": np.ones(1)}
    assert np.array_equal(policy.act(obs, seed=1), policy.act({"extra": "text", **obs}, seed=1))


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"noise": np.zeros(3)}, "wrong shape"),
        ({"noise": np.zeros((1, 2))}, "wrong shape"),
        ({"noise": np.array(["a", "b"])}, "wrong shape or type"),
        ({"noise": np.array([0, np.nan])}, "not finite"),
        ({"noise": np.array([0, 1e300])}, "not finite: got .* beyond float32"),
        ({"noise": [[0.0], [0.0, 1.0]]}, "`noise` is no array"),
        ({"seed": -1}, "`seed` is unusable"),
        ({"seed": "x"}, "`seed` is unusable"),
        ({"seed": 1, "deterministic": True}, "given twice"),
        ({"seed": 1, "noise": np.zeros(2)}, "given twice"),
        ({"noise": np.zeros(2), "deterministic": True}, "given twice"),
    ],
)
def test_a_wrong_noise_is_refused(how: dict[str, Any], match: str) -> None:
    policy = Policy.load(policy_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an error is all that is said
        with pytest.raises(NoiseError, match=match):
            policy.act(np.zeros(3), **how)


def bounded() -> bytes:
    content = document()
    content["observation"]["parts"][0] |= {"low": [-1.0, None, 0.0], "high": [1.0, 5.0, None]}
    return policy_bytes(content)


def test_bounds_are_ignored_clipped_to_or_refused() -> None:
    data = bounded()
    outside, inside = [-2.0, -100.0, 3.0], [-1.0, -100.0, 3.0]
    by = {bounds: Policy.load(data, bounds=bounds) for bounds in ("ignore", "clip", "refuse")}
    assert not np.array_equal(by["ignore"].act(outside, seed=0), by["ignore"].act(inside, seed=0))
    assert np.array_equal(by["clip"].act(outside, seed=0), by["ignore"].act(inside, seed=0))
    assert np.array_equal(by["refuse"].act(inside, seed=0), by["ignore"].act(inside, seed=0))
    with pytest.raises(ObservationError, match=r"out of bounds: got -2.0 .* expected -1.0 to 1.0"):
        by["refuse"].act(outside)
    with pytest.raises(ObservationError, match=r"row 1, index \(1,\), expected -inf to 5.0"):
        by["refuse"].act([inside, [0.0, 5.5, 0.0]])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bounds", ["clip", "refuse"])
def test_bounds_without_zero_are_loaded(backend: Any, bounds: Any) -> None:
    content = document()
    content["observation"]["parts"][0] |= {"low": [1.0] * 3, "high": [2.0] * 3}
    policy = Policy.load(policy_bytes(content), backend=backend, bounds=bounds)
    assert policy.act([1.0, 1.5, 2.0]).shape == (2,)


@pytest.mark.parametrize("backend", BACKENDS)
@given(scale=st.floats(1e-3, 1e6), seed=st.integers(0, 2**32))
def test_every_finite_observation_gives_an_action_in_the_box(
    backend: Any, scale: float, seed: int
) -> None:
    policy = Policy.load(policy_bytes(), backend=backend)
    obs = scale * np.random.default_rng(seed).normal(size=(8, 3))
    action = policy.act(obs, seed=seed)
    assert (action >= policy.document.low).all()
    assert (action <= policy.document.high).all()


def test_a_graph_that_leaves_the_box_or_gives_nan_does_not_act_so() -> None:
    content = document(action__shape=[3], action__low=[-1.0] * 3, action__high=[1.0] * 3)
    content["noise"] = {"source": "keyed", "input": None, "shape": [1]}
    ports = [port("obs", ("batch", 3))], [port("action", ("batch", 3))]
    wide = model(
        graph([node("Identity", ["obs"], ["action"])], {}, *ports),
        {"gtp_policy": json.dumps(content)},
    )
    assert Policy.load(wide).act([-5.0, 0.5, 5.0]).tolist() == [-1.0, 0.5, 1.0]
    root = model(
        graph([node("Sqrt", ["obs"], ["action"])], {}, *ports), {"gtp_policy": json.dumps(content)}
    )
    for backend in BACKENDS:
        with pytest.raises(ActionError, match="not finite"):
            Policy.load(root, backend=backend).act([-5.0, 0.5, 5.0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_do_not_disturb_each_other(backend: Any) -> None:
    policy = Policy.load(policy_bytes(), backend=backend)
    obs = RNG.normal(size=(8, 40, 3)).astype(np.float32)
    noise = RNG.normal(size=(8, 40, 2)).astype(np.float32)
    right = [
        [policy.act(o, noise=z) for o, z in zip(*w, strict=True)]
        for w in zip(obs, noise, strict=True)
    ]
    together = threading.Barrier(8)

    def work(w: int) -> bool:
        together.wait()
        for _ in range(5):
            for i in range(40):
                if not np.array_equal(policy.act(obs[w, i], noise=noise[w, i]), right[w][i]):
                    return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_results_are_the_callers_own() -> None:
    policy = Policy.load(policy_bytes())
    obs = RNG.normal(size=3)
    kept = policy.act(obs, seed=0)
    copy = kept.copy()
    policy.act(-obs, seed=1)[:] = 99
    assert np.array_equal(kept, copy)
    zeros = policy.zeros()
    assert isinstance(zeros, np.ndarray)
    assert zeros.shape == (3,)


def test_a_call_allocates_little_more_than_its_result() -> None:
    import tracemalloc

    policy, obs = Policy.load(policy_bytes()), np.zeros((40_000, 3), np.float32)
    noise = np.zeros((40_000, 2), np.float32)
    policy.act(obs, noise=noise)
    tracemalloc.start()
    try:
        policy.act(obs, noise=noise)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The result has 320 kB, flags of what is finite 120 kB, numpy's own buffers 33 kB; a copy of
    # the input would have 480 kB.
    assert peak < 320_000 + 120_000 + 40_000


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"backend": "torch"}, "`backend` is unknown"),
        ({"bounds": "warn"}, "`bounds` is unknown"),
        ({"threads": 0}, "`threads` is out of range"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Policy.load(policy_bytes(), **arguments)


def test_files_that_are_not_there_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(PolicyFileError, match="no such file"):
        Policy.load(tmp_path / "nothing.onnx")
    with pytest.raises(PolicyFileError, match="no such file"):
        Policy.load(tmp_path)
    path = tmp_path / "policy.onnx"
    path.write_bytes(policy_bytes())
    assert Policy.load(path).act(np.zeros(3)).shape == (2,)
    for source in (path, str(path), path.read_bytes()):
        with pytest.raises(PolicyFileError, match="too large: got"):
            Policy.load(source, max_bytes=1000)


def test_a_later_format_names_who_wrote_it() -> None:
    with pytest.raises(NewerFormatError, match=r"got version 3.*gtp-policy 9.1 wrote it"):
        Policy.load(policy_bytes(document(format_version=3, package_version="9.1")))


def test_fields_that_are_not_known_are_ignored() -> None:
    content = document(remark={"a": [1]}, noise__remark=3)
    assert Policy.load(policy_bytes(content)).act(np.zeros(3)).shape == (2,)


def test_the_package_loads_no_torch_and_no_onnxruntime_by_itself() -> None:
    code = "import sys, gtp_runtime; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "gtp_runtime" in loaded
    assert not loaded & {"torch", "onnxruntime", "onnx", "pydantic", "starlette", "msgpack"}


def test_without_onnxruntime_numpy_computes() -> None:
    code = f"""
import sys
sys.modules["onnxruntime"] = None
import numpy as np
from gtp_runtime import MissingDependencyError, Policy
policy = Policy.load({str(example_file())!r})
print(policy.backend, policy.act(np.zeros(3), deterministic=True).shape)
try:
    Policy.load({str(example_file())!r}, backend="onnxruntime")
except MissingDependencyError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("numpy (1,)")
    assert 'backend="numpy"' in run.stdout


def test_a_checkpoint_is_told_from_a_policy_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.zip"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(PolicyFileError, match=r"got a zip file.*export_onnx"):
        Policy.load(path)
