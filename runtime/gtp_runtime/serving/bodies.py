"""Bodies of requests and answers: JSON, MessagePack and npy, and what a request asks for."""

import io
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgpack
import numpy as np

from gtp_runtime.graph import Array
from gtp_runtime.policy import Observation

JSON, MSGPACK, NPY = "application/json", "application/msgpack", "application/x-npy"
_NUMBERS = {"bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"}
_NPY_TYPES = {
    kind.str.encode(): kind
    for order in "<>"
    for kind in (np.dtype(order + np.dtype(name).str[1:]) for name in sorted(_NUMBERS))
}
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<>|][biuf][1248])', 'fortran_order': (True|False), "
    rb"'shape': \(((?:[0-9]{1,18}, ?)*(?:[0-9]{1,18})?)\),? *\}[ \n]*"
)
# Of an observation: how deep lists are in each other, and how many parts a Dict has.
_DEEPEST, _MOST_PARTS = 16, 4096
_FIELDS = {"obs", "deterministic", "seed", "id"}


class BodyError(ValueError):
    """A body that is no request: malformed, or with something in it that is not understood."""


@dataclass(frozen=True)
class Request:
    """What a client asks for.

    Attributes:
        obs: The observation, unchecked.
        deterministic: Whether the action starts from a noise that is a function of the observation.
        seed: Seed of the noise; None for a random one.
        id: Anything that the answer is to repeat; None for nothing.
    """

    obs: Observation
    deterministic: bool
    seed: int | None
    id: str | int | None


def parse(kind: str, body: bytes, query: Mapping[str, str]) -> Request:
    """Reads a request.

    Args:
        kind: Type of the body: `JSON`, `MSGPACK` or `NPY`.
        body: The body.
        query: Of an npy body what is not the observation: ``deterministic``, ``seed``, ``id``.

    Returns:
        The request.

    Raises:
        BodyError: If the body is malformed.
    """
    if kind == NPY:
        fields: Mapping[str, Any] = {"obs": _from_npy(body), **_from_query(query)}
    else:
        fields = _object(_READ[kind], body)
    if unknown := sorted(map(str, fields.keys() - _FIELDS)):
        raise BodyError(f"Unknown field: got {unknown[0][:80]!r}, expected {sorted(_FIELDS)}.")
    if "obs" not in fields:
        raise BodyError(f"No observation: got the fields {sorted(fields)}, expected `obs`.")
    deterministic, seed, id_ = (
        fields.get("deterministic", False),
        fields.get("seed"),
        fields.get("id"),
    )
    if not isinstance(deterministic, bool):
        raise BodyError(f"`deterministic` is {deterministic!r:.80}, expected true or false.")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 1 << 64):
        raise BodyError(f"`seed` is {seed!r:.80}, expected an integer from 0 below 2^64.")
    if id_ is not None and (type(id_) not in (int, str) or len(str(id_)) > 200):
        raise BodyError("`id` is unusable, expected an integer or a short string.")
    try:
        obs = _observation(fields["obs"])
    except RecursionError as error:
        raise BodyError(
            "The observation is no array: got objects too deep in each other."
        ) from error
    return Request(obs, deterministic, seed, id_)


def dump(kind: str, content: Mapping[str, Any]) -> bytes:
    """Writes an answer in the type of its request.

    Args:
        kind: Type of the body.
        content: The answer: an array ``action``, or an ``error``, and an ``id``.

    Returns:
        The body.
    """
    if kind == NPY:
        file = io.BytesIO()
        np.save(file, content["action"], allow_pickle=False)
        return file.getvalue()
    plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in content.items()}
    if kind == MSGPACK:
        return bytes(msgpack.packb(plain))
    return json.dumps(plain, separators=(",", ":")).encode()


def _object(read: Callable[[bytes], Any], body: bytes) -> dict[str, Any]:
    try:
        found = read(body)
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise BodyError(f"The body cannot be read: got {str(error)[:200]}.") from error
    if not isinstance(found, dict):
        raise BodyError(f"The body is {type(found).__name__}, expected an object.")
    return found


_READ: dict[str, Callable[[bytes], Any]] = {JSON: json.loads, MSGPACK: msgpack.unpackb}


def _observation(found: object) -> Any:  # noqa: ANN401 - is checked by the policy
    """Returns arrays for what stands for them: lists of numbers, or bytes with dtype and shape."""
    if isinstance(found, dict):
        if found.keys() == {"dtype", "shape", "data"} and isinstance(found["data"], bytes):
            return _from_bytes(found)
        if len(found) > _MOST_PARTS:
            raise BodyError(f"The observation has {len(found)} parts, expected fewer.")
        return {key: _observation(value) for key, value in found.items()}
    if not isinstance(found, (list, int, float, np.ndarray)):
        raise BodyError(f"The observation has a {type(found).__name__} in it, expected numbers.")
    try:
        array = _from_lists(found) if isinstance(found, list) else np.asarray(found)
    except (ValueError, OverflowError) as error:
        raise BodyError(f"The observation is no array: got {str(error)[:200]}.") from error
    if array.dtype.kind not in "biuf":
        raise BodyError("The observation has something else than numbers in it.")
    return array


def _from_lists(found: list[Any]) -> Array:
    """Returns lists of lists of numbers as an array, level by level.

    List by list it would be microseconds for each, in which nobody else is answered. Next to a word
    NumPy would take as many letters for every number as the longest word has.
    """
    level: list[Any] = [found]
    shape: tuple[int, ...] = (1,)
    while True:
        lengths = set(map(len, level))
        if len(lengths) != 1:
            raise ValueError(f"lists of {min(lengths)} and {max(lengths)} parts side by side")
        shape = (*shape, *lengths)
        inside = list(itertools.chain.from_iterable(level))
        kinds = set(map(type, inside))
        if not kinds <= {bool, int, float, list}:
            raise BodyError("The observation has something else than numbers in it.")
        if list not in kinds:
            return np.array(inside).reshape(shape[1:])
        if len(kinds) > 1:
            raise ValueError("numbers and lists side by side")
        if len(shape) > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} lists in each other")
        level = inside


def _from_bytes(found: Mapping[str, Any]) -> Array:
    dtype, shape, data = found["dtype"], found["shape"], found["data"]
    if not isinstance(dtype, str) or dtype not in _NUMBERS:
        raise BodyError(f"The dtype is {dtype!r:.80}, expected one of {sorted(_NUMBERS)}.")
    if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in shape):
        raise BodyError(f"The shape is {shape!r:.80}, expected a list of integers.")
    kind = np.dtype(dtype).newbyteorder("<")
    if len(shape) > 16 or math.prod(shape) * kind.itemsize != len(data):
        raise BodyError(f"There are {len(data)} bytes for {dtype} of shape {shape!r:.80}.")
    return _shaped(np.frombuffer(data, kind), shape)


def _from_npy(body: bytes) -> Array:
    # Not np.load: it evaluates the header as Python's literals, and takes memory for what that says
    # before it looks for the numbers.
    start = 10 + int.from_bytes(body[8:10], "little")
    found = _NPY_HEADER.fullmatch(body[10:start]) if body.startswith(_NPY_MAGIC) else None
    if found is None:
        raise BodyError("The body is no npy array, expected one that numpy.save writes.")
    dtype = _NPY_TYPES.get(found[1])
    shape = tuple(map(int, re.findall(rb"[0-9]+", found[3])))
    if dtype is None or len(shape) > 16:
        raise BodyError(f"The npy array is {found[1]!r} of shape {shape!r:.80}, expected numbers.")
    if math.prod(shape) * dtype.itemsize != len(body) - start:
        raise BodyError(f"There are {len(body) - start} bytes for {dtype} of shape {shape!r:.80}.")
    flat = np.frombuffer(body, dtype, offset=start)
    return _shaped(flat, shape, "F" if found[2] == b"True" else "C")


def _shaped(flat: Array, shape: Sequence[int], order: Literal["C", "F"] = "C") -> Array:
    try:
        return flat.reshape(shape, order=order)
    except (ValueError, OverflowError) as error:  # of no numbers, in dimensions beyond NumPy's
        raise BodyError(f"The array is of shape {shape!r:.80}, which there is none of.") from error


def _from_query(query: Mapping[str, str]) -> dict[str, Any]:
    result: dict[str, Any] = dict(query)
    if "deterministic" in result:
        words = {"1": True, "true": True, "0": False, "false": False}
        result["deterministic"] = words.get(result["deterministic"], result["deterministic"])
    if "seed" in result:
        if not re.fullmatch("[0-9]{1,20}", result["seed"]):
            raise BodyError("`seed` is no integer.")
        result["seed"] = int(result["seed"])
    return result
