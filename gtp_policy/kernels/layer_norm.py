"""Layer normalisation on the CPU in one sweep over memory, where numba is installed."""

import functools
from typing import Any

import numpy as np

from gtp_policy.kernels.numba_loader import load
from gtp_policy.kernels.switch import engine

LAYER_NORM_EPS = 1e-5
"""Added to the variance, as torch's layers do by default."""


def compiled_layer_norm() -> Any:  # noqa: ANN401 - a module of functions that numba compiled
    """Returns the compiled functions for hidden layers, or None where they cannot be used.

    Example:
        >>> from gtp_policy.kernels import using
        >>> from gtp_policy.kernels.layer_norm import compiled_layer_norm
        >>> with using("reference"):
        ...     compiled_layer_norm() is None
        True
    """
    return _compiled_layer_norm()[0] if engine() == "auto" else None


@functools.cache
def _compiled_layer_norm() -> tuple[Any, str]:
    """Returns the functions, compiled, or None and why there are none."""

    def warm_up(module: Any) -> None:  # noqa: ANN401 - as above
        one, row = np.ones((1, 1), np.float32), np.ones(1, np.float32)
        module.normalise_(one, row, row, row)
        module.normalise_and_keep_(one, row, row, row, one.copy(), row.copy())
        module.normalise_back_(one, one.copy(), row, row, row.copy(), row.copy())

    return load("layer_norm_numba", warm_up)
