"""Bodies of requests and answers: JSON, MessagePack and npy, and what a request asks for."""

import io
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from numpy.lib import format as npy

from gtp_runtime.graph import Array
from gtp_runtime.policy import Observation

JSON, MSGPACK, NPY = "application/json", "application/msgpack", "application/x-npy"
_NUMBERS = {"bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"}
_FIELDS = {"obs", "deterministic", "seed", "id"}


class BodyError(ValueError):
    """A body that is no request: malformed, or with something in it that is not understood."""


@dataclass(frozen=True)
class Request:
    """What a client asks for.

    Attributes:
        obs: The observation, unchecked.
        deterministic: Whether the action starts from the fixed noise.
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
    return Request(_observation(fields["obs"]), deterministic, seed, id_)


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
        return {key: _observation(value) for key, value in found.items()}
    if not isinstance(found, (list, int, float, np.ndarray)):
        raise BodyError(f"The observation has a {type(found).__name__} in it, expected numbers.")
    try:
        array = np.asarray(found)
    except (ValueError, RecursionError, OverflowError) as error:
        raise BodyError(f"The observation is no array: got {str(error)[:200]}.") from error
    if array.dtype.kind not in "biuf":
        raise BodyError("The observation has something else than numbers in it.")
    return array


def _from_bytes(found: Mapping[str, Any]) -> Array:
    dtype, shape, data = found["dtype"], found["shape"], found["data"]
    if not isinstance(dtype, str) or dtype not in _NUMBERS:
        raise BodyError(f"The dtype is {dtype!r:.80}, expected one of {sorted(_NUMBERS)}.")
    if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in shape):
        raise BodyError(f"The shape is {shape!r:.80}, expected a list of integers.")
    kind = np.dtype(dtype).newbyteorder("<")
    if len(shape) > 16 or math.prod(shape) * kind.itemsize != len(data):
        raise BodyError(f"There are {len(data)} bytes for {dtype} of shape {shape!r:.80}.")
    return np.frombuffer(data, kind).reshape(shape)


def _from_npy(body: bytes) -> Array:
    # Not np.load: it takes memory for what the header says before it looks for the numbers.
    file = io.BytesIO(body)
    try:
        version = npy.read_magic(file)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file, max_header_size=1000)
        if dtype.name not in _NUMBERS or len(shape) > 16:
            raise ValueError(f"{dtype} of shape {shape}")
        rest = len(body) - file.tell()
        if math.prod(shape) * dtype.itemsize != rest:
            raise ValueError(f"{rest} bytes for {dtype} of shape {shape}")
        flat = np.frombuffer(body, dtype, offset=file.tell())
    except (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise BodyError(f"The body is no npy array of numbers: got {str(error)[:200]}.") from error
    return flat.reshape(shape, order="F" if fortran else "C")


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
