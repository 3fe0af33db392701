"""What a policy file says of itself: the property `gtp_policy` of an ONNX file, as one document.

``docs/reference/policy-file.md`` is the contract for readers in any language, and
``policy_file.schema.json`` beside this module its JSON schema, which `PolicyFile` generates.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field

from gtp_policy._config import Config, Float, Int, Width, is_computable
from gtp_policy.errors import PolicyFileError
from gtp_policy.records import check_values, decode, what_is_wrong

FORMAT_VERSION = 2
PROPERTY = "gtp_policy"
SCHEMA = Path(__file__).with_name("policy_file.schema.json")

_BOUNDS = "low", "high"  # where lists of numbers stand
Bounds = tuple[Float | None, ...]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(Config):
    """A part of the document: later versions may add fields that an older reader may ignore."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", allow_inf_nan=False, validate_default=True
    )


class ObservationPart(_Part):
    """One input of observations: a Box, or one leaf of a Dict.

    Example:
        >>> from gtp_policy.export.policy_file import ObservationPart
        >>> ObservationPart(input="obs", key=None, shape=(3,), dtype="float32").low is None
        True
    """

    input: str = Field(description="Name of the graph's input: obs, or obs.<key> of a Dict.")
    key: str | None = Field(description="Key in the Dict observation; null of a Box.")
    shape: tuple[Width, ...] = Field(description="Shape of one observation, without the batch.")
    dtype: str = Field(
        description="Type of the environment's numbers, e.g. float32 or uint8. The input itself "
        "is float32, and takes the same numbers converted, not rescaled."
    )
    low: Bounds | None = Field(
        default=None,
        description="Least value of each element in C order, null where unbounded; null where the "
        "bounds are not known.",
    )
    high: Bounds | None = Field(default=None, description="Largest values, likewise.")


class ObservationSpace(_Part):
    """What the policy sees, in the units of the environment."""

    kind: Literal["box", "dict"] = Field(description="One array, or one array by key.")
    parts: tuple[ObservationPart, ...] = Field(
        min_length=1, description="The inputs, in the order in which they are joined."
    )
    history: Width = Field(
        default=1,
        description="m, observations that an input holds; above 1 each input is (batch, m, "
        "*shape), the newest last.",
    )


class ActionPlayback(_Part):
    """How chunks are played, where it is not each to its end before the next is computed.

    Example:
        >>> from gtp_policy.export.policy_file import ActionPlayback
        >>> ActionPlayback(every=2).ensemble is None
        True
    """

    every: Width = Field(
        description="k, steps until the next chunk is computed, which replaces the one before; at "
        "most h, and smaller with ensemble."
    )
    ensemble: Annotated[Float, Field(ge=0)] | None = Field(
        default=None,
        description="The action is the average of what the chunks of this episode say of the "
        "present step, of weight exp(-ensemble i), the oldest of them being number i = 0; null: "
        "the newest one's.",
    )


class ActionSpace(_Part):
    """What the policy does, in the units of the environment."""

    output: str = Field(description="Name of the graph's output.")
    shape: tuple[Width, ...] = Field(description="Shape of one action; [] of a number.")
    dtype: str = Field(description="Type of the output's numbers: float32.")
    low: tuple[Float, ...] = Field(
        min_length=1, description="Least value of each element in C order, as float32."
    )
    high: tuple[Float, ...] = Field(min_length=1, description="Largest values, likewise.")
    chunk: Width = Field(
        default=1,
        description="h, actions that one call returns; above 1 the output is (batch, h, *shape), "
        "the first to be done first.",
    )
    playback: ActionPlayback | None = Field(
        default=None, description="How chunks are played; null: each to its end. Since version 2."
    )


class NoiseInput(_Part):
    """Where the randomness of actions comes from."""

    source: Literal["input", "keyed", "seeded"] = Field(
        description="An input of the graph; or inside the graph, the noise of a deterministic "
        "action, a function of the observation; or inside, drawn by the runtime from a seed."
    )
    input: str | None = Field(description="Name of the graph's input; null without one.")
    shape: tuple[Width, ...] = Field(
        description="Shape for one observation: (D,), or (n, D) for n candidates."
    )
    seed: Int | None = Field(default=None, description="Of a source that is seeded.")


class CheckpointOrigin(_Part):
    """What the policy was made from."""

    sha256: Sha256 = Field(
        description="Of a checkpoint: hash of its content, the same for its folder and its zip "
        "file. Of a policy that came from elsewhere: hash of its weights."
    )
    updates: Annotated[int, Field(strict=True, ge=0)] | None = Field(
        default=None, description="Number of updates done."
    )


class PolicyFile(_Part):
    """The document in a policy file's metadata.

    Example:
        >>> from gtp_policy.export.policy_file import PolicyFile
        >>> PolicyFile.from_json('{"format_version": 3, "package_version": "9.0"}')
        Traceback (most recent call last):
        ...
        gtp_policy.errors.PolicyFileError: The policy file is of a later format: got version 3, \
expected at most 2. gtp-policy 9.0 wrote it: read it with that version or a later one.
    """

    title: ClassVar[str] = "gtp-policy file"

    format_version: Literal[1, 2] = Field(
        description="Version of this document and of the graph: the first one whose readers act as "
        "the policy does. 2 where one of its fields says something; else 1."
    )
    package_version: str = Field(description="Version of gtp-policy that wrote the file.")
    kind: Literal["policy"] = Field(description="What the graph is: from observation to action.")
    opset: Width = Field(description="Opset of ONNX's own operators; no others are used.")
    precision: Literal["float32", "float16"] = Field(
        description="Type of the numbers inside the flow map's network; inputs and output are "
        "float32."
    )
    steps: Width = Field(description="K, jumps from noise to action, unrolled in the graph.")
    candidates: Width = Field(
        description="n, actions drawn per observation, of which the graph makes one: the mode, or "
        "the one that the critic values most."
    )
    observation: ObservationSpace = Field(description="What the policy sees.")
    action: ActionSpace = Field(description="What the policy does.")
    noise: NoiseInput = Field(description="Where the randomness comes from.")
    checkpoint: CheckpointOrigin = Field(description="What the policy was made from.")

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Reads the document of this version of the format or an earlier one.

        Args:
            text: The value of the property `gtp_policy`.

        Returns:
            The document.

        Raises:
            PolicyFileError: If it is of a later format, or no such document.
        """
        try:
            found = decode(text)
        except (ValueError, RecursionError) as error:
            raise _unreadable(f"no JSON of a document ({error})") from error
        version = found.get("format_version") if isinstance(found, Mapping) else None
        if type(version) is not int or version < 1:
            raise _unreadable(f"format_version {version!r}")
        if version > FORMAT_VERSION:
            raise PolicyFileError(
                f"The policy file is of a later format: got version {version}, expected at most "
                f"{FORMAT_VERSION}. gtp-policy {found.get('package_version')} wrote it: read it "
                "with that version or a later one."
            )
        try:
            check_values(found.get("action"), dict.fromkeys(_BOUNDS, is_computable))
            check_values(found, dict.fromkeys(_BOUNDS, lambda v: v is None or is_computable(v)))
            # Not as JSON again: each number of it would take another hundred bytes.
            return cls.model_validate(found)
        except ValueError as error:
            raise _unreadable(what_is_wrong(error)) from error


def _unreadable(what: str) -> PolicyFileError:
    return PolicyFileError(
        f"The policy file cannot be read: got {what}, expected the document that export_onnx "
        "writes into the file's metadata."
    )


def json_schema() -> dict[str, Any]:
    """Returns the JSON schema of the document, as it stands in ``policy_file.schema.json``.

    Example:
        >>> from gtp_policy.export.policy_file import SCHEMA, json_schema
        >>> import json
        >>> json.loads(SCHEMA.read_text()) == json_schema()
        True
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **PolicyFile.model_json_schema(),
        "title": PolicyFile.title,
    }
