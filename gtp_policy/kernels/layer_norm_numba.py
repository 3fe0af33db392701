"""Bias and layer normalisation, and the way back, row by row; only where numba is installed.

A row is read from memory once and stays in the nearest cache for its mean, its variance and what
follows.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from gtp_policy.kernels.layer_norm import LAYER_NORM_EPS

Array = NDArray[np.float32]

_F = np.float32
_ZERO, _ONE, _EPS = _F(0), _F(1), _F(LAYER_NORM_EPS)

_compiled = njit(fastmath={"contract"}, cache=True, nogil=True, error_model="numpy")
# Sums alone may be taken in another order, several elements at a time.
_summing = njit(fastmath={"contract", "reassoc"}, cache=True, nogil=True, error_model="numpy")


@_summing
def _mean(x: Array) -> np.float32:
    total = _ZERO
    for j in range(x.shape[0]):
        total += x[j]
    return total / _F(x.shape[0])


@_summing
def _mean_product(x: Array, y: Array) -> np.float32:
    total = _ZERO
    for j in range(x.shape[0]):
        total += x[j] * y[j]
    return total / _F(x.shape[0])


@_compiled
def _centre_(row: Array, bias: Array) -> np.float32:
    """Adds the bias, takes the mean away, and returns 1 over the standard deviation."""
    for j in range(row.shape[0]):
        row[j] += bias[j]
    mean = _mean(row)
    for j in range(row.shape[0]):
        row[j] -= mean
    rstd: np.float32 = _ONE / np.sqrt(_mean_product(row, row) + _EPS)
    return rstd


@_compiled
def normalise_(x: Array, bias: Array, gain: Array, shift: Array) -> None:
    """Replaces x (n, H) by the layer normalisation of it and its columns' biases."""
    for i in range(x.shape[0]):
        row = x[i]
        rstd = _centre_(row, bias)
        for j in range(row.shape[0]):
            row[j] = row[j] * rstd * gain[j] + shift[j]


@_compiled
def normalise_and_keep_(
    x: Array, bias: Array, gain: Array, shift: Array, unit: Array, rstd: Array
) -> None:
    """Does what `normalise_` does; leaves what has mean 0 and variance 1, and 1 over the spread."""
    for i in range(x.shape[0]):
        row, kept = x[i], unit[i]
        scale = _centre_(row, bias)
        rstd[i] = scale
        for j in range(row.shape[0]):
            kept[j] = row[j] * scale
            row[j] = kept[j] * gain[j] + shift[j]


@_compiled
def normalise_back_(
    gradient: Array, unit: Array, rstd: Array, gain: Array, of_gain: Array, of_shift: Array
) -> None:
    """Replaces the gradient (n, H) by a layer normalisation by that by its input.

    ``unit`` and ``rstd`` are what `normalise_and_keep_` left; the gradients of gain and shift are
    written to the last two.
    """
    of_gain[:] = _ZERO
    of_shift[:] = _ZERO
    for i in range(gradient.shape[0]):
        row, kept, scale = gradient[i], unit[i], rstd[i]
        for j in range(row.shape[0]):
            of_gain[j] += row[j] * kept[j]
            of_shift[j] += row[j]
            row[j] *= gain[j]
        mean, along = _mean(row), _mean_product(row, kept)
        for j in range(row.shape[0]):
            row[j] = (row[j] - mean - kept[j] * along) * scale
