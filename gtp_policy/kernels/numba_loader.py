"""Loads functions that numba compiles, compiled and tried, or says why they cannot be used."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any


def load(name: str, warm_up: Callable[[Any], object]) -> tuple[Any, str]:
    """Returns a module of compiled functions and no reason, or None and why there is none.

    Args:
        name: The module, one of this package.
        warm_up: Called with the module: compiles, or takes what was compiled before.
    """
    try:
        if importlib.util.find_spec("numba") is None:
            return None, "numba is not installed (in a checkout: pip install '.[fast]')"
        module = importlib.import_module(f"gtp_policy.kernels.{name}")
        warm_up(module)
    except Exception as error:
        # Whatever fails in numba, its compiler or its cache: torch's operators do the same.
        return None, f"numba does not work here ({type(error).__name__}: {error})"
    return module, ""
