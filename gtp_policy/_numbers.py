"""Numbers of NumPy and torch as plain ones: the one place that says what counts as a number."""

import operator
from typing import Any

import numpy as np
from torch import Tensor


def as_int(value: Any) -> int | None:  # noqa: ANN401 - whatever was given
    """Returns an integer as a plain one, or None if it is none.

    Integers of NumPy and of torch, 0-d arrays of them too. No booleans, and no floating number,
    however whole: ``2.0`` may be a mistake.

    Args:
        value: Anything.
    """
    if type(value) is int:
        return value
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, Tensor | np.ndarray) and (value.ndim or "bool" in str(value.dtype)):
        return None
    if np.ma.is_masked(value):  # what lies under a mask is no number
        return None
    try:
        return int(operator.index(value))
    except (TypeError, RuntimeError):  # torch's, of a tensor that has no data
        return None


def as_float(value: Any) -> float | None:  # noqa: ANN401 - whatever was given
    """Returns a real number as a plain float, or None if it is none; integers are real numbers.

    Args:
        value: Anything.
    """
    if type(value) is float:
        return value
    array = isinstance(value, np.ndarray) and not value.ndim and value.dtype.kind == "f"
    tensor = isinstance(value, Tensor) and not value.ndim and value.is_floating_point()
    whole = None if array or tensor else as_int(value)
    if whole is None and not (array or tensor or isinstance(value, float | np.floating)):
        return None
    try:
        return float(value if whole is None else whole)
    except (OverflowError, RuntimeError):  # an integer beyond every float; a tensor without data
        return None


def plain_number(value: Any) -> Any:  # noqa: ANN401 - whatever was given
    """Returns a number of NumPy or torch as a plain one, and anything else as it is.

    Args:
        value: Anything.
    """
    if not isinstance(value, np.generic | np.ndarray | Tensor):
        return value
    whole = as_int(value)
    found = as_float(value) if whole is None else whole
    return value if found is None else found


def plain_int(value: Any) -> Any:  # noqa: ANN401 - whatever was given
    """Returns what `as_int` does, and anything else as it is: for validators, which refuse it.

    Args:
        value: Anything.
    """
    found = as_int(value)
    return value if found is None else found


def plain_float(value: Any) -> Any:  # noqa: ANN401 - whatever was given
    """Returns a number as a plain one, and what a validator refuses anyway as it is.

    Args:
        value: Anything.

    Raises:
        ValueError: If it is none, but pretends to be one: a validator would believe it.
    """
    if isinstance(value, int):  # also booleans, which a strict validator refuses
        return value
    real = as_float(value)
    if real is None and hasattr(type(value), "__float__"):
        raise ValueError(f"{value!r} is no real number")
    return value if real is None else real
