"""The one base class of every configuration: frozen, closed, finite, and exact in JSON."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Self, TypeGuard, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from gtp_policy._numbers import plain_float, plain_int, plain_number
from gtp_policy.errors import suggestion
from gtp_policy.records import check_values

# Of a number that is computed with, the square and its inverse have to be float32's, too.
_SMALLEST, _LARGEST = 1e-12, 1e12


def is_computable(value: object) -> bool:
    """Returns whether a value of decoded JSON is a number that a `Float` takes.

    Args:
        value: The value.
    """
    return type(value) in (int, float) and (value == 0 or _SMALLEST <= abs(value) <= _LARGEST)  # type: ignore[arg-type]


def _computable(value: float) -> float:
    if not is_computable(value):
        raise ValueError(
            f"{value:g} is out of the range that is computed with: a number is 0, or from "
            f"{_SMALLEST:g} to {_LARGEST:g} in size"
        )
    return value


def is_name(value: object) -> TypeGuard[str]:
    """Returns whether a value is a `Name`."""
    return type(value) is str and 1 <= len(value) <= 100 and value.isascii() and value.isprintable()


def _named(value: str) -> str:
    if not is_name(value):
        raise ValueError("a name is of 1 to 100 printable characters of ASCII")
    return value


# Lax pydantic turns `True` into 1.0 and "1e-3" into 0.001; a configuration should not guess. What
# is a number of NumPy or torch is no guess, and becomes a plain one: configs are written as JSON.
AnyFloat = Annotated[float, Field(strict=True), BeforeValidator(plain_float)]
Float = Annotated[
    float, Field(strict=True), BeforeValidator(plain_float), AfterValidator(_computable)
]
Int = Annotated[int, Field(strict=True), BeforeValidator(plain_int)]
Width = Annotated[int, Field(strict=True, ge=1), BeforeValidator(plain_int)]
Bool = Annotated[bool, Field(strict=True)]
Name = Annotated[str, Field(strict=True), AfterValidator(_named)]  # of something, for a message

# Hidden layers of a network: to build more takes seconds, of however few numbers they are.
MOST_HIDDEN = 128


def _paths(kind: type["Config"], outer: str = "", depth: int = 3) -> Iterator[str]:
    """Yields where the fields of the configs inside one are, such as ``learner.seed``."""
    for name, field in kind.model_fields.items():
        if outer:
            yield f"{outer}{name}"
        for inside in _kinds_in(field.annotation) if depth else ():
            yield from _paths(inside, f"{outer}{name}.", depth - 1)


def _kinds_in(annotation: Any) -> Iterator[type["Config"]]:  # noqa: ANN401 - of any kind
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for part in get_args(annotation):
        yield from _kinds_in(part)


RECORDED = {"recorded": True}
"""Context in which to validate what an earlier version may have written: see `Config.before`."""


class Config(BaseModel):
    """Holds choices: immutable, hashable, without unknown fields and without NaN or infinity.

    A number that is computed with is 0, or between 1e-12 and 1e12 in size: beyond, squares and
    their inverses leave float32.

    Configs compare by value and survive JSON exactly:
    ``type(c).model_validate_json(c.model_dump_json()) == c``.

    Raises:
        pydantic.ValidationError: If a field is unknown, of the wrong type, out of range or not
            finite. The message names the field, the rule and the value.

    Example:
        >>> from gtp_policy import AdvantageWeighterConfig
        >>> AdvantageWeighterConfig(eta=0.5).replace(max_weight=20.0).eta
        0.5
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )

    before: ClassVar[Mapping[str, Any]] = {}
    """Fields whose defaults are others by now, with what was done before they were there.

    Versions write all fields, so that one which a record lacks had not been there yet: of what is
    validated in the context `RECORDED`, these values fill in.
    """

    uncounted: ClassVar[frozenset[str]] = frozenset()
    """Fields that may be of any length in what is validated in the context `RECORDED`."""

    @model_validator(mode="before")
    @classmethod
    def _as_it_was(cls, fields: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - whatever was given
        if not isinstance(fields, Mapping):
            return fields
        if info.context is RECORDED:
            check_values({n: value for n, value in fields.items() if n not in cls.uncounted})
        unknown = (n for n in fields if n not in cls.model_fields and isinstance(n, str))
        for name in itertools.islice(unknown, 9):  # a guess takes longer than to read a name
            # What is like nothing is left to pydantic, which names all of them.
            if meant := cls._meant(name):
                raise ValueError(
                    f"Extra inputs are not permitted: got {name!r} for a {cls.__name__}.{meant}"
                )
        # Of any config, also of those that others derive from this class.
        fields = {name: plain_number(value) for name, value in fields.items()}
        return {**cls.before, **fields} if info.context is RECORDED else fields

    @classmethod
    def _meant(cls, name: str) -> str:
        """Returns a guess at what an unknown field was to be, of this config or one inside."""
        paths = dict.fromkeys(path for path in _paths(cls) if path.rpartition(".")[2] == name)
        if paths:
            return f" Did you mean {' or '.join(paths)}?"
        return suggestion(name, cls.model_fields)

    @classmethod
    def from_record(cls, record: Any) -> Self:  # noqa: ANN401 - decoded JSON
        """Validates what this or an earlier version wrote, see `before`.

        Args:
            record: The decoded JSON.

        Returns:
            The config.

        Raises:
            pydantic.ValidationError: If it is no record of this kind of config.

        Example:
            >>> from gtp_policy import FlowMapActorConfig
            >>> FlowMapActorConfig.from_record({"hidden": [64, 64]}).embedding
            'log'
        """
        return cls.model_validate(record, context=RECORDED)

    def replace(self, **changes: Any) -> Self:  # noqa: ANN401 - the fields' types check the values
        """Returns a copy with some fields changed, validated again as a whole.

        Unlike pydantic's ``model_copy(update=...)``, which validates nothing.

        Args:
            **changes: New values by field name. Of a field that holds a config, a dict changes what
                it names and leaves the rest, unless it names another ``kind``.

        Returns:
            A new config of the same type.

        Raises:
            pydantic.ValidationError: If the result would not be a valid config.

        Example:
            >>> from gtp_policy.times import KarrasTimes
            >>> KarrasTimes(t_max=80.0).replace(rho=5.0).rho
            5.0
        """
        # Only what was set stays set: a field left open is still open afterwards.
        return type(self).model_validate(_changed(self, changes))


def _changed(config: Config, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is set of a config with changes, not yet validated."""
    given = {name: getattr(config, name) for name in config.model_fields_set}
    for name, value in changes.items():
        own = getattr(config, name, None) if name in type(config).model_fields else None
        if isinstance(own, Config) and isinstance(value, Mapping):
            kind = getattr(own, "kind", None)
            if value.get("kind", kind) == kind:
                kept = {} if kind is None else {"kind": kind}
                value = {**kept, **_changed(own, value)}
        given[name] = value
    return given
