"""Models and policies as the core's checkpoints: SB3's naming of files, and no pickle."""

import contextlib
import io
import pathlib
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import stable_baselines3
from gymnasium.spaces import Space
from pydantic import JsonValue
from stable_baselines3.common.utils import get_system_info

from gtp_datasets.spaces import action_scaler_of, is_whole
from gtp_policy import (
    ActionScaler,
    CheckpointInfo,
    GTPLearner,
    ObservationLayout,
    read_metadata,
    save_checkpoint,
)
from gtp_policy.errors import CheckpointError, StateMismatchError, UnsupportedSpaceError
from gtp_policy.export import Surroundings
from gtp_policy.files import expanded, replacing
from gtp_policy.functional import check_kind
from gtp_sb3 import _codec
from gtp_sb3._choices import reopen_schedule
from gtp_sb3._spaces import has_parts, layout_of

Place = str | pathlib.Path | io.BufferedIOBase
_LOCAL_HEADER = b"PK\x03\x04"
# A space in a file may claim any shape. More numbers than a large image has are made only for
# networks that take so many, and the file holds those.
_MOST_ELEMENTS = 2**20


def write(
    place: Place,
    learner: GTPLearner,
    scaler: ActionScaler,
    layout: ObservationLayout,
    attributes: Mapping[str, JsonValue],
    surroundings: Surroundings,
) -> None:
    """Writes a learner and SB3's attributes, atomically where the place is a path.

    Raises:
        CheckpointError: If it cannot be written.
    """
    metadata: dict[str, JsonValue] = {
        "sb3": dict(attributes),
        "sb3_version": stable_baselines3.__version__,
        "system_info": get_system_info(print_info=False)[1],
        **surroundings.record(),
    }
    extras: dict[str, Any] = {"action_scaler": scaler, "layout": layout, "metadata": metadata}
    if not isinstance(place, str | pathlib.Path):
        with tempfile.TemporaryDirectory() as folder:
            path = save_checkpoint(pathlib.Path(folder, "model.zip"), learner, **extras)
            place.write(path.read_bytes())
        return
    path = expanded(place)
    if not path.suffix:
        path = path.with_name(f"{path.name}.zip")
    if path.suffix == ".zip":
        save_checkpoint(path, learner, **extras)
        return
    try:
        with replacing(path, ".zip") as temporary:
            save_checkpoint(temporary, learner, **extras)
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"Checkpoint {path} cannot be written: got {error.strerror}, expected a writable "
            "place. What was there before is unchanged."
        ) from error


@contextlib.contextmanager
def located(place: Place) -> Iterator[pathlib.Path]:
    """Yields the path of what to read, by SB3's rule that ``.zip`` may be left out."""
    if not isinstance(place, str | pathlib.Path):
        check_kind("path", place, str, pathlib.Path, io.IOBase)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "model.zip")
            path.write_bytes(place.read())
            yield path
        return
    path = expanded(place)
    if not path.name:
        raise CheckpointError(
            f"`path` names no file: got {str(place)!r}, expected one that GTP.save wrote."
        )
    with_ending = path.with_name(f"{path.name}.zip")
    yield with_ending if not path.exists() and with_ending.exists() else path


def read(path: pathlib.Path) -> tuple[CheckpointInfo, dict[str, JsonValue]]:
    """Reads what a checkpoint says of itself, and SB3's attributes in it, still as JSON.

    Raises:
        CheckpointError: If it is missing, damaged or foreign; a file of SB3's own is named so.
    """
    try:
        info = read_metadata(path)
    except CheckpointError as error:
        if _of_sb3(path):
            raise CheckpointError(
                f"Checkpoint {path} is a file of Stable-Baselines3 itself: got pickled objects, "
                "which run code when they are read, expected a file that GTP.save wrote. Load it "
                "with the algorithm of SB3 that wrote it."
            ) from error
        raise
    attributes = info.metadata.get("sb3", {})
    if not isinstance(attributes, dict):
        raise CheckpointError(
            f"Checkpoint {path} cannot be read: got {type(attributes).__name__} instead of SB3's "
            "attributes, expected names and values."
        )
    return info._replace(config=reopen_schedule(info.config)), attributes


@contextlib.contextmanager
def built_from(path: pathlib.Path) -> Iterator[None]:
    """Turns what SB3, gymnasium and torch raise while they build what a file says.

    Raises:
        CheckpointError: Instead of anything that is no error of a checkpoint.
    """
    try:
        yield
    except (CheckpointError, StateMismatchError, MemoryError):
        raise
    except Exception as error:  # whatever a foreign file makes a constructor raise
        raise CheckpointError(
            f"Checkpoint {path} cannot be used: got {type(error).__name__} ({error}), expected "
            "attributes that fit each other, as GTP.save writes them."
        ) from error


def _of_sb3(path: pathlib.Path) -> bool:
    """Returns whether a file begins like SB3's zip files: with the member `data`, or tensors."""
    if not path.is_file():  # a pipe would wait for its writer
        return False
    with contextlib.suppress(OSError), open(path, "rb") as file:
        head = file.read(512)
        name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return head[:4] == _LOCAL_HEADER and (name == b"data" or name.endswith(b".pth"))
    return False


def encode_attributes(
    attributes: Mapping[str, object],
) -> tuple[dict[str, JsonValue], dict[str, Any]]:
    """Returns attributes as JSON, and as they will be read; what no file can hold is a note."""
    encoded: dict[str, JsonValue] = {}
    found: dict[str, Any] = {}
    for name, value in attributes.items():
        try:
            encoded[name], found[name] = _encode(value)
        except _codec.NotInAFile as error:
            encoded[name] = _note(value, error)
    return encoded, found


def _encode(value: object) -> tuple[JsonValue, Any]:
    encoded = _codec.encode(value)
    # What could not be read again is not in the file either.
    return encoded, _codec.decode(encoded)


def _note(value: object, error: _codec.NotInAFile) -> JsonValue:
    if not (isinstance(value, dict) and _codec.has_plain_keys(value)):
        return {":absent": str(error)}
    noted: dict[str, JsonValue] = {}
    for key, part in value.items():
        try:
            noted[key], _ = _encode(part)
        except _codec.NotInAFile as inner:
            noted[key] = _note(part, inner)
    return noted


def decode_attributes(
    path: pathlib.Path,
    info: CheckpointInfo,
    attributes: Mapping[str, JsonValue],
    replaced: Iterable[str],
) -> dict[str, Any]:
    """Returns attributes from JSON, without those that are replaced.

    Raises:
        CheckpointError: If one is not in the file and not replaced, or not what was written.
    """
    found: dict[str, Any] = {}
    kept = {name: value for name, value in attributes.items() if name not in replaced}
    name = ""
    try:
        # All of them together, before any is made.
        made, most = 0, max(_MOST_ELEMENTS, 2 * info.obs_dim)
        for name, value in kept.items():  # noqa: B007 - for the message
            made += _codec.elements(value)
            if made > most:
                raise _codec.NotInAFile(f"spaces of {made} numbers, where at most {most} are read")
        for name, value in kept.items():
            found[name] = _codec.decode(value)
    except (_codec.NotInAFile, RecursionError) as error:
        raise CheckpointError(
            f"Checkpoint {path} does not hold `{name}`: got {error}, which no file without "
            f"pickle can hold. Pass it: load(..., custom_objects={{{name!r}: ...}})."
        ) from error
    return found


def check_spaces(
    path: pathlib.Path,
    info: CheckpointInfo,
    observation_space: Space[Any],
    action_space: Space[Any],
) -> None:
    """Raises unless SB3's spaces and the core's layout and bounds in a file say the same."""
    try:
        layout, scaler = info.layout or layout_of(observation_space), info.action_scaler
        fits = has_parts(observation_space, layout)
        fits &= layout.obs_dim * info.config.actor.history == info.obs_dim
        ours = action_scaler_of(action_space)
        fits &= ours.action_dim * info.config.actor.chunk == info.action_dim
        fits &= scaler is None or ours.is_close(scaler)
    except (UnsupportedSpaceError, NotImplementedError, TypeError) as error:
        raise CheckpointError(
            f"Checkpoint {path} cannot be used: got spaces that do not fit ({error}), expected "
            "those of its networks."
        ) from error
    if not fits:
        raise CheckpointError(
            f"Checkpoint {path} contradicts itself: got the spaces {observation_space!s:.200} and "
            f"{action_space!s:.200}, expected what fits its {layout} and {scaler}."
        )


def check_surroundings(path: pathlib.Path, info: CheckpointInfo, learner: GTPLearner) -> None:
    """Raises unless what an export goes by is what SB3's attributes say.

    Warns if another host has acted with another number of steps.

    Raises:
        CheckpointError: If it is another policy's.
    """
    found, own = Surroundings.read(path, info.metadata, learner), info.metadata.get("sb3")
    if found.steps not in (None, learner.actor.config.steps):
        warnings.warn(
            f"{path} is of a policy that acted with {found.steps} steps: here it acts with "
            f"{learner.actor.config.steps}, as its config says.",
            stacklevel=5,
        )
    if Surroundings.KEY not in info.metadata or not isinstance(own, dict):
        return
    expected = found.replace(steps=None)
    if "action_space" in own:
        space = decode_attributes(path, info, {"action_space": own["action_space"]}, ())
        box = space["action_space"]
        expected = expected.replace(action_shape=box.shape, whole_actions=is_whole(box))
    kwargs = own.get("policy_kwargs")
    candidates = kwargs.get("candidates") if isinstance(kwargs, dict) else found.candidates
    if candidates is None or isinstance(candidates, int):  # others have a tag
        expected = expected.replace(candidates=candidates)
    if found != expected:
        raise CheckpointError(
            f"Checkpoint {path} contradicts itself: got {found} beside attributes that say "
            f"{expected}, expected the same, as GTP.save writes them."
        )


def with_candidates(
    custom: Mapping[str, Any], attributes: Mapping[str, JsonValue]
) -> dict[str, Any]:
    """Returns custom objects, whose ``policy_kwargs`` get the candidates of the file.

    They may have been changed since the policy was made with those arguments.
    """
    ours, theirs = custom.get("policy_kwargs"), attributes.get("policy_kwargs")
    kept = theirs.get("candidates") if isinstance(theirs, dict) else None
    if not isinstance(ours, dict) or not isinstance(kept, int):
        return dict(custom)
    return {**custom, "policy_kwargs": {"candidates": kept, **ours}}
