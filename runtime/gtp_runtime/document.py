"""What a policy file says of itself: the JSON document in its metadata, read and checked.

The fields are explained in gtp-policy's reference, "The policy file". Fields that this release does
not know are ignored, as the contract says.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gtp_runtime.errors import NewerFormatError, PolicyFileError
from gtp_runtime.graph import FLOAT32, Array, Graph

FORMAT_VERSION = 2
PROPERTY = "gtp_policy"
Shape = tuple[int, ...]
_MAX_RANK, _MAX_SIZE, _MAX_RATE = 6, 1 << 24, 1e12
# Lists, objects and words of a document, and letters for each of the others: two letters can take
# a hundred bytes of memory, and those that are written have more.
_FREE_PARTS, _LETTERS_OF_A_PART = 1 << 15, 12


@dataclass(frozen=True, eq=False)
class ObservationPart:
    """One input of observations.

    Args:
        input: Name of the graph's input.
        key: Key in a Dict observation; None of a Box.
        shape: Shape of one observation as the policy takes it, with the history if there is one.
        low: Least values of one observation, -inf where unbounded; None where not known.
        high: Largest values, likewise.

    Example:
        >>> from gtp_runtime.document import ObservationPart
        >>> ObservationPart("obs", None, (3,), None, None).shape
        (3,)
    """

    input: str
    key: str | None
    shape: Shape
    low: Array | None
    high: Array | None


@dataclass(frozen=True, eq=False)
class Document:
    """A policy file's document.

    Args:
        package_version: Version of gtp-policy that wrote the file.
        opset: Version of ONNX's operators.
        precision: ``float32`` or ``float16``, inside the networks.
        steps: K, jumps from noise to action.
        candidates: n, actions drawn per observation.
        observation: The inputs, in their order.
        history: m, observations that the policy takes at once.
        output: Name of the graph's output.
        action_shape: Shape of one action.
        chunk: h, actions that one call returns.
        every: k, steps after which the policy is to be called again: h, or fewer.
        ensemble: Rate at which newer chunks weigh less in the average of those that overlap; None:
            the newest alone is played.
        low: Least values of an action, float32, of its shape.
        high: Largest values, likewise.
        noise: ``input``, ``keyed`` or ``seeded``: where the randomness comes from.
        noise_input: Name of the graph's input; None without one.
        noise_shape: Shape of the noise of one observation.
        checkpoint_sha256: Hash of what the file was made from.
        content: The whole document as it stands in the file.

    Example:
        >>> from gtp_runtime.document import Document
        >>> Document.__dataclass_params__.frozen
        True
    """

    package_version: str
    opset: int
    precision: str
    steps: int
    candidates: int
    observation: tuple[ObservationPart, ...]
    history: int
    output: str
    action_shape: Shape
    chunk: int
    every: int
    ensemble: float | None
    low: Array
    high: Array
    noise: str
    noise_input: str | None
    noise_shape: Shape
    checkpoint_sha256: str
    content: Mapping[str, Any]

    @property
    def is_dict(self) -> bool:
        """Whether observations are mappings."""
        return self.observation[0].key is not None

    @property
    def result_shape(self) -> Shape:
        """Shape of what one observation gets: an action, or h of them."""
        return self.action_shape if self.chunk == 1 else (self.chunk, *self.action_shape)

    @property
    def input_shapes(self) -> dict[str, Shape]:
        """Shape of each input for one observation, by the input's name."""
        shapes = {part.input: part.shape for part in self.observation}
        if self.noise_input is not None:
            shapes[self.noise_input] = self.noise_shape
        return shapes


def read_document(graph: Graph) -> Document:
    """Reads the document of a model and compares it with the model's inputs and outputs.

    Args:
        graph: The model.

    Returns:
        The document.

    Raises:
        NewerFormatError: If the file is of a later format.
        PolicyFileError: If it has no document, a wrong one, or one of another model.

    Example:
        >>> from gtp_runtime.document import read_document
        >>> from gtp_runtime.graph import Graph
        >>> read_document(Graph())
        Traceback (most recent call last):
        ...
        gtp_runtime.errors.PolicyFileError: The model is no policy file: got no property \
`gtp_policy` in its metadata, expected the document that gtp_policy.export writes there.
    """
    if PROPERTY not in graph.metadata:
        raise PolicyFileError(
            f"The model is no policy file: got no property `{PROPERTY}` in its metadata, expected "
            "the document that gtp_policy.export writes there."
        )
    content = graph.metadata[PROPERTY]
    most = _FREE_PARTS + len(content) // _LETTERS_OF_A_PART
    if content.count("[") + content.count("{") + content.count('"') // 2 > most:
        raise _wrong(f"more than {most} lists, objects and words")
    try:
        found = json.loads(content, parse_constant=_no_constant)
        # Half a character or 1e999, which no answer of a server can hold.
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise _wrong("no JSON") from error
    document = parse_document(found)
    _compare(document, graph)
    return document


def parse_document(found: object) -> Document:
    """Reads a document that is parsed JSON.

    Args:
        found: The JSON value.

    Returns:
        The document.

    Raises:
        NewerFormatError: If it is of a later format.
        PolicyFileError: If it is no such document.

    Example:
        >>> from gtp_runtime.document import parse_document
        >>> parse_document({"format_version": 7, "package_version": "3.0"})
        Traceback (most recent call last):
        ...
        gtp_runtime.errors.NewerFormatError: The policy file is of a later format: got version 7, \
expected at most 2. gtp-policy 3.0 wrote it: install gtp-policy-runtime of that version.
    """
    root = _Object(found, "")
    version = root.integer("format_version")
    if version > FORMAT_VERSION:
        raise NewerFormatError(
            f"The policy file is of a later format: got version {version}, expected at most "
            f"{FORMAT_VERSION}. gtp-policy {str(root.value.get('package_version'))[:40]} wrote it: "
            "install gtp-policy-runtime of that version."
        )
    root.one_of("kind", "policy")
    observation, action, noise = (root.member(k) for k in ("observation", "action", "noise"))
    history, chunk = observation.integer("history", 1), action.integer("chunk", 1)
    shape = action.shape("shape")
    low, high = (action.numbers(key, shape) for key in ("low", "high"))
    if low is None or high is None or not np.all(low < high):
        raise _wrong("no `action.low` below `action.high`")
    noise_shape = noise.shape("shape")
    source = noise.one_of("source", "input", "keyed", "seeded")
    named = noise.value.get("input")
    if (source == "input") != isinstance(named, str):
        raise _wrong(f"a `noise.input` of {named!r:.40} for the source {source!r}")
    every, ensemble = _playback(action, chunk)
    content: Mapping[str, Any] = root.value
    return Document(
        package_version=root.string("package_version"),
        opset=root.integer("opset"),
        precision=root.one_of("precision", "float32", "float16"),
        steps=root.integer("steps"),
        candidates=root.integer("candidates"),
        observation=_parts(observation, history),
        history=history,
        output=action.string("output"),
        action_shape=shape,
        chunk=chunk,
        every=every,
        ensemble=ensemble,
        low=low,
        high=high,
        noise=source,
        noise_input=named,
        noise_shape=noise_shape,
        checkpoint_sha256=root.member("checkpoint").string("sha256"),
        content=content,
    )


class _Object:
    """A JSON object, and how its members are read."""

    def __init__(self, value: object, name: str) -> None:
        if not isinstance(value, dict):
            raise _wrong(f"no object at `{name or 'the top'}`")
        self.value: dict[str, Any] = value
        self.name = name

    def _where(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def member(self, key: str) -> "_Object":
        return _Object(self.value.get(key), self._where(key))

    def members(self, key: str) -> list["_Object"]:
        found = self.value.get(key)
        if not isinstance(found, list) or not 1 <= len(found) <= 1000:
            raise _wrong(f"no list of objects at `{self._where(key)}`")
        return [_Object(v, f"{self._where(key)}[{i}]") for i, v in enumerate(found)]

    def integer(self, key: str, default: object = None) -> int:
        found = self.value.get(key, default)
        if type(found) is not int or not 1 <= found <= _MAX_SIZE:
            raise _wrong(f"`{self._where(key)}` of {found!r:.40}")
        return found

    def string(self, key: str) -> str:
        found = self.value.get(key)
        if not isinstance(found, str) or not 0 < len(found) <= 1000:
            raise _wrong(f"`{self._where(key)}` of {found!r:.40}")
        return found

    def one_of(self, key: str, *allowed: str) -> str:
        found = self.value.get(key)
        if not isinstance(found, str) or found not in allowed:
            raise _wrong(f"`{self._where(key)}` of {found!r:.40}")
        return found

    def shape(self, key: str) -> Shape:
        found = self.value.get(key)
        if (
            not isinstance(found, list)
            or len(found) > _MAX_RANK
            or any(type(n) is not int or n < 1 for n in found)
            or math.prod(found) > _MAX_SIZE
        ):
            raise _wrong(f"`{self._where(key)}` of {found!r:.40}")
        return tuple(found)

    def numbers(self, key: str, shape: Shape, unbounded: float = 0.0) -> Array | None:
        found = self.value.get(key)
        if found is None:
            return None
        if not isinstance(found, list) or len(found) != math.prod(shape):
            raise _wrong(f"`{self._where(key)}` that is no list of {math.prod(shape)} numbers")
        if any(v is not None and type(v) not in (int, float) for v in found):
            raise _wrong(f"`{self._where(key)}` that is no list of numbers")
        if not unbounded and None in found:
            raise _wrong(f"`{self._where(key)}` with null")
        try:
            wide = np.array([unbounded if v is None else v for v in found], np.float64)
        except OverflowError as error:
            raise _wrong(f"`{self._where(key)}` beyond float64") from error
        with np.errstate(over="ignore"):
            result = wide.astype(np.float32)
        if not unbounded and not np.isfinite(result).all():
            raise _wrong(f"`{self._where(key)}` that is not finite in float32")
        if np.isnan(result).any():
            raise _wrong(f"`{self._where(key)}` with NaN")
        result = result.reshape(shape)
        result.flags.writeable = False
        return result


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and the like are no JSON


def _parts(observation: _Object, history: int) -> tuple[ObservationPart, ...]:
    kind = observation.one_of("kind", "box", "dict")
    result: list[ObservationPart] = []
    for part in observation.members("parts"):
        key = part.value.get("key")
        if (kind == "dict") != isinstance(key, str):
            raise _wrong(f"the key {key!r:.40} in an observation of kind {kind!r}")
        shape = part.shape("shape")
        whole = shape if history == 1 else (history, *shape)
        if math.prod(whole) > _MAX_SIZE:
            raise _wrong(f"an observation of more than {_MAX_SIZE} numbers")
        low, high = part.numbers("low", shape, -math.inf), part.numbers("high", shape, math.inf)
        if low is not None and high is not None and not np.all(low <= high):
            raise _wrong(f"no `low` of the observation {part.value.get('key')!r:.40} below `high`")
        result.append(ObservationPart(part.string("input"), key, whole, low, high))
    if kind == "box" and len(result) != 1:
        raise _wrong(f"{len(result)} parts of a Box")
    for names in ([p.input for p in result], [p.key for p in result]):
        if len(set(names)) != len(names):
            raise _wrong("two parts of one name")
    return tuple(result)


def _playback(action: _Object, chunk: int) -> tuple[int, float | None]:
    """Returns after how many steps a chunk is replaced, and at what rate those before speak on."""
    if action.value.get("playback") is None:
        return chunk, None
    playback = action.member("playback")
    every, ensemble = playback.integer("every"), playback.value.get("ensemble")
    if ensemble is not None:
        # Of the size that gtp-policy computes with: no power of it is beyond float64.
        if type(ensemble) not in (int, float) or not 0 <= ensemble <= _MAX_RATE:
            raise _wrong(f"`action.playback.ensemble` of {ensemble!r:.40}")
        ensemble = float(ensemble)
    if every > (chunk if ensemble is None else chunk - 1):
        raise _wrong(f"`action.playback.every` of {every} for a chunk of {chunk}")
    return every, ensemble


def _compare(document: Document, graph: Graph) -> None:
    """Raises unless a model has the inputs and the output that its document says."""
    if document.noise_input in {part.input for part in document.observation}:
        raise _wrong(f"an observation and a noise that are both {document.noise_input!r:.40}")
    for what, ports, expected in (
        ("inputs", graph.inputs, document.input_shapes),
        ("outputs", graph.outputs, {document.output: document.result_shape}),
    ):
        found = {name: (port.element, port.shape) for name, port in ports.items()}
        right = {name: (FLOAT32, (None, *shape)) for name, shape in expected.items()}
        if found != right:
            raise PolicyFileError(
                f"The policy file contradicts itself: got the {what} {_shown(found)}, expected "
                f"{_shown(right)} as its document says. Export the policy again."
            )
    if graph.opset != document.opset:
        raise PolicyFileError(
            f"The policy file contradicts itself: got opset {graph.opset}, expected "
            f"{document.opset} as its document says. Export the policy again."
        )


def _shown(ports: Mapping[str, tuple[int, tuple[int | None, ...]]]) -> str:
    text = ", ".join(
        f"{name} {('batch', *shape[1:]) if shape and shape[0] is None else shape}"
        + ("" if element == FLOAT32 else f" of ONNX's type {element}")
        for name, (element, shape) in ports.items()
    )
    return text[:300].replace("'batch'", "batch") or "none"


def _wrong(what: str) -> PolicyFileError:
    return PolicyFileError(
        f"The policy file cannot be read: got {what}, expected the document that "
        f"gtp_policy.export writes into the property `{PROPERTY}`."
    )
