"""What is read from files as JSON: how much of it may be wrong, how that is said, what differs."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

# Besides lists of numbers that are as long as an observation, or as there are episodes.
_MOST_VALUES = 2**15
# What a record within another counts besides its values: each field that it lacks is an error too.
_LACKING = 2
# Letters of a record for each list, object and word in it, besides those of `_MOST_VALUES`: what
# such a one takes, 88 bytes and more, can stand in two letters. Those that are written have more.
_LETTERS = 12


def decode(text: str | bytes) -> Any:  # noqa: ANN401 - whatever the text says
    """Returns what JSON says, unless it would take many times its size in memory.

    Numbers may be as many as there are: none takes more than a dozen times its letters.

    Args:
        text: JSON, as UTF-8 if it is bytes.

    Returns:
        Decoded JSON.

    Raises:
        ValueError: If it is none, or has more lists, objects and words than one that is written.
        RecursionError: If they stand too deep in each other.

    Example:
        >>> from gtp_policy.records import decode
        >>> decode('{"shape": [3]}')
        {'shape': [3]}
        >>> decode("[" + "[]," * 50_000 + "[]]")
        Traceback (most recent call last):
        ...
        ValueError: more than 45268 lists, objects and words in 150004 characters
    """
    text = text.decode() if isinstance(text, bytes) else text
    most = _MOST_VALUES + len(text) // _LETTERS
    if text.count("[") + text.count("{") + text.count('"') // 2 > most:
        raise ValueError(f"more than {most} lists, objects and words in {len(text)} characters")
    return json.loads(text)


def check_values(
    record: object, numbers: Mapping[str, Callable[[object], bool]] | None = None
) -> None:
    """Raises if a record from a file has more values than one that is written.

    Pydantic keeps an error for every value that is wrong, of half a kilobyte and more: lists that
    are wrong throughout would take four hundred times the size of their file.

    Args:
        record: Decoded JSON.
        numbers: Names under which there are lists of any length, such as an observation's, with
            what is right in them: then they do not count.

    Raises:
        ValueError: If there are too many, or a number of such a list is wrong.

    Example:
        >>> from gtp_policy.records import check_values
        >>> check_values({"shape": [3], "low": [0.0] * 100_000}, {"low": lambda x: x == 0})
        >>> check_values({"shape": [0] * 100_000})
        Traceback (most recent call last):
        ...
        ValueError: more than 32768 values
    """
    left, count, tests = [record], 0, numbers or {}
    while left:
        part = left.pop()
        named: Iterable[tuple[object, object]] = ()
        if isinstance(part, Mapping):
            named = part.items()
        elif isinstance(part, list | tuple):
            named = ((None, value) for value in part)
        for name, value in named:
            count += 1 + _LACKING * isinstance(value, Mapping)
            if count > _MOST_VALUES:
                raise ValueError(f"more than {_MOST_VALUES} values")
            if isinstance(name, str) and name in tests and isinstance(value, list):
                for number in value:
                    if not tests[name](number):
                        raise ValueError(f"{name} with {number!r:.40}")
            elif isinstance(value, Mapping | list | tuple):
                left.append(value)


def is_finite(value: object) -> bool:
    """Returns whether a value of decoded JSON is a number that a float holds.

    Args:
        value: The value.

    Returns:
        The answer.

    Example:
        >>> from gtp_policy.records import is_finite
        >>> is_finite(-1.5), is_finite(10**400), is_finite(True), is_finite("1")
        (True, False, False, False)
    """
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def what_is_wrong(error: Exception) -> str:
    """Returns what an error message says was got: of pydantic's errors, the first field and why.

    Args:
        error: What was raised.

    Returns:
        A part of a sentence.

    Example:
        >>> from gtp_policy import GTPLearnerConfig
        >>> from gtp_policy.records import what_is_wrong
        >>> try:
        ...     GTPLearnerConfig(seed="one")
        ... except ValueError as error:
        ...     what_is_wrong(error)
        'a wrong `seed` (Input should be a valid integer)'
        >>> what_is_wrong(ValueError("more than 32768 values"))
        'more than 32768 values'
    """
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"][:9])) or "all of it"
    return f"a wrong `{where}` ({first['msg'].removeprefix('Value error, ')})"


def differences(a: object, b: object, name: str = "") -> Iterator[tuple[str, object, object]]:
    """Yields where two records differ, value by value.

    Args:
        a: Decoded JSON.
        b: Decoded JSON.
        name: Where both stand in something larger.

    Yields:
        Dotted name, value in ``a`` and value in ``b``; None for what one of them lacks.

    Example:
        >>> from gtp_policy.records import differences
        >>> list(differences({"actor": {"steps": 1}, "eta": 3}, {"actor": {"steps": 2}, "eta": 3}))
        [('actor.steps', 1, 2)]
    """
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from differences(a.get(key), b.get(key), f"{name}.{key}" if name else key)
    elif a != b:
        yield name, a, b
