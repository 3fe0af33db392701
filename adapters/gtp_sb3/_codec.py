"""SB3's attributes as JSON and back: numbers, spaces, and names from a closed list. Never code.

What SB3, torch or this package has a name for is stored by that name and looked up in the list
below; nothing is imported because a file says so.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from pydantic import JsonValue
from stable_baselines3.common import noise, torch_layers
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from torch import nn


class NotInAFile(ValueError):
    """A value that a file cannot hold, or that it does not hold."""


def _named(*classes: type) -> dict[str, type]:
    return {f"{cls.__module__.partition('.')[0]}.{cls.__name__}": cls for cls in classes}


CLASSES: dict[str, type] = _named(
    torch_layers.CombinedExtractor,
    torch_layers.FlattenExtractor,
    torch_layers.NatureCNN,
    DictReplayBuffer,
    HerReplayBuffer,
    NStepReplayBuffer,
    ReplayBuffer,
    nn.ELU,
    nn.GELU,
    nn.LeakyReLU,
    nn.Mish,
    nn.ReLU,
    nn.SiLU,
    nn.Tanh,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.SGD,
)
"""Classes that are stored by name; the policies add theirs."""

# Objects that their constructor's arguments describe, and where these are found.
_OBJECTS: dict[str, tuple[type, tuple[str, ...]]] = {
    "ConstantSchedule": (ConstantSchedule, ("val",)),
    "LinearSchedule": (LinearSchedule, ("start", "end", "end_fraction")),
    "NormalActionNoise": (noise.NormalActionNoise, ("_mu", "_sigma")),
    "OrnsteinUhlenbeckActionNoise": (
        noise.OrnsteinUhlenbeckActionNoise,
        ("_mu", "_sigma", "_theta", "_dt", "initial_noise"),
    ),
    "FloatSchedule": (FloatSchedule, ("value_schedule",)),
}
_ENUMS = {"TrainFrequencyUnit": TrainFrequencyUnit, "GoalSelectionStrategy": GoalSelectionStrategy}


def encode(value: object) -> JsonValue:
    """Returns a value as JSON.

    Raises:
        NotInAFile: If it is neither numbers, strings and containers of them nor on the lists.
    """
    if isinstance(value, torch.Tensor) and not value.shape:  # a number, as NumPy's are
        value = value.item()
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else {":float": str(float(value))}
    if isinstance(value, list):
        return [encode(v) for v in value]
    if isinstance(value, TrainFreq):
        return {":train_freq": [value.frequency, value.unit.value]}
    if isinstance(value, tuple):
        return {":tuple": [encode(v) for v in value]}
    if isinstance(value, dict):
        if not has_plain_keys(value):
            raise NotInAFile(f"a dict with the keys {list(value)}")
        return {k: encode(v) for k, v in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return {":array": encode(value.tolist()), "dtype": str(value.dtype)}
    if isinstance(value, spaces.Space):
        return {":space": _encode_space(value)}
    if isinstance(value, type):
        for name, cls in CLASSES.items():
            if value is cls:
                return {":class": name}
    for name, enum in _ENUMS.items():
        if isinstance(value, enum):
            return {":enum": name, "value": value.name}
    if isinstance(value, noise.VectorizedActionNoise):
        return encode(value.base_noise)  # SB3 makes one per environment when it learns
    for name, (cls, arguments) in _OBJECTS.items():
        if type(value) is cls:
            return {":object": name, "arguments": [encode(getattr(value, a)) for a in arguments]}
    what = value.__name__ if isinstance(value, type) else type(value).__name__
    raise NotInAFile(f"{what} of {getattr(value, '__module__', 'unknown origin')}")


def has_plain_keys(value: dict[Any, Any]) -> bool:
    """Returns whether a dict is one in JSON too, and none of what `encode` writes for others."""
    return all(isinstance(k, str) and not k.startswith(":") for k in value)


def decode(value: JsonValue) -> Any:  # noqa: ANN401 - whatever `encode` was given
    """Returns what `encode` was given.

    Raises:
        NotInAFile: If the JSON is not what `encode` writes.
    """
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value), "")
    if tag == ":absent":
        raise NotInAFile(str(value[tag]))
    if not tag.startswith(":"):
        return {k: _decode_part(k, v) for k, v in value.items()}
    try:
        return _DECODERS[tag](value)
    except (KeyError, TypeError, ValueError, AssertionError, OverflowError) as error:
        raise NotInAFile(f"{tag}: {type(error).__name__} ({error})") from error


def elements(value: JsonValue) -> int:
    """Returns how many numbers the spaces in a value would have, which a shape alone may claim.

    Raises:
        NotInAFile: If a space is none that `encode` writes.
    """
    if isinstance(value, list):
        return sum(map(elements, value))
    if not isinstance(value, dict):
        return 0
    if next(iter(value), "") != ":space":  # by the first key alone, as `decode` goes by it
        return sum(map(elements, value.values()))
    try:
        return _elements_of(value[":space"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise NotInAFile(f":space: {type(error).__name__} ({error})") from error


def _elements_of(space: Any) -> int:  # noqa: ANN401 - JSON
    if space["kind"] == "Dict":
        return sum(map(_elements_of, space["parts"].values()))
    if space["kind"] == "Box":
        return math.prod(_shape_of(space["shape"]))
    if space["kind"] == "MultiBinary":
        return math.prod(_shape_of(_plain_shape(space["n"])))
    return 1  # n is the number of values, which takes no memory


def _shape_of(shape: JsonValue) -> tuple[int, ...]:
    """Returns a shape as it is counted and as it is built."""
    if not isinstance(shape, list):
        raise TypeError(f"the shape {shape!r:.40}")
    sizes = tuple(n for n in shape if isinstance(n, int) and not isinstance(n, bool) and n >= 0)
    if len(sizes) != len(shape):
        raise ValueError(f"the shape {shape!s:.40}")
    return sizes


def _plain_shape(n: JsonValue) -> JsonValue:
    """Returns a number, a list or an encoded tuple as a list."""
    if isinstance(n, dict):
        n = n[":tuple"]
    return [n] if isinstance(n, int) else n


def _decode_part(name: str, value: JsonValue) -> object:
    try:
        return decode(value)
    except NotInAFile as error:
        raise NotInAFile(f"{name} = {error}") from error


def _decode_object(value: dict[str, Any]) -> object:
    cls, _ = _OBJECTS[value[":object"]]
    return cls(*(decode(v) for v in value["arguments"]))


def _decode_train_freq(value: dict[str, Any]) -> TrainFreq:
    frequency, unit = value[":train_freq"]
    return TrainFreq(int(frequency), TrainFrequencyUnit(unit))


_DECODERS: dict[str, Callable[[dict[str, Any]], object]] = {
    ":array": lambda v: np.asarray(decode(v[":array"]), dtype=_dtype(v["dtype"])),
    ":class": lambda v: CLASSES[v[":class"]],
    ":enum": lambda v: _ENUMS[v[":enum"]][v["value"]],
    ":float": lambda v: {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[v[":float"]],
    ":object": _decode_object,
    ":space": lambda v: _decode_space(v[":space"]),
    ":train_freq": _decode_train_freq,
    ":tuple": lambda v: tuple(decode(item) for item in v[":tuple"]),
}


def _encode_space(space: spaces.Space[Any]) -> dict[str, JsonValue]:
    if isinstance(space, spaces.Dict):
        return {"kind": "Dict", "parts": {k: _encode_space(v) for k, v in space.spaces.items()}}
    if isinstance(space, spaces.Box):
        return {
            "kind": "Box",
            "low": encode(_compact(space.low)),
            "high": encode(_compact(space.high)),
            "shape": list(space.shape),
            "dtype": str(space.dtype),
        }
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"kind": "MultiDiscrete", "n": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "n": encode(space.n)}
    raise NotInAFile(f"the space {space}")


def _compact(bound: np.ndarray[Any, Any]) -> object:
    """Returns one number where all are equal: the bounds of an image are two numbers."""
    return bound.flat[0].item() if bound.size and (bound == bound.flat[0]).all() else bound.tolist()


def _decode_space(value: dict[str, Any]) -> spaces.Space[Any]:
    kind = value["kind"]
    if kind == "Dict":
        # In its order, by which SB3's extractor joins the parts; gymnasium sorts a plain dict.
        return spaces.Dict([(k, _decode_space(v)) for k, v in value["parts"].items()])
    if kind == "Box":
        shape, dtype = _shape_of(value["shape"]), _dtype(value["dtype"])
        low, high = (
            np.broadcast_to(np.asarray(_decode_bound(value[k]), dtype), shape)
            for k in ("low", "high")
        )
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(value["n"], start=value["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(value["n"], start=value["start"])
    if kind == "MultiBinary":
        shape = _shape_of(_plain_shape(value["n"]))  # what was counted, and nothing else
        return spaces.MultiBinary(value["n"] if isinstance(value["n"], int) else shape)
    raise KeyError(kind)


def _decode_bound(value: JsonValue) -> JsonValue:
    """Returns numbers, and lists of them: any other value might be a space that nobody counted."""
    if isinstance(value, list):
        return [_decode_bound(v) for v in value]
    if isinstance(value, dict) and [*value] != [":float"]:
        raise ValueError(f"the bound {value!s:.40}")
    return decode(value)


def _dtype(name: str) -> "np.dtype[Any]":
    dtype = np.dtype(name)
    if dtype.kind not in "fiub":
        raise ValueError(f"the dtype {name}")
    return dtype
