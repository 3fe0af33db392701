"""Bias, Mish and its slope in one sweep over memory; only imported where numba is installed.

Torch's operators go over a hidden layer once per operation, six times for Mish; at 256 rows the
second sweep already reads from a slower cache.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[np.float32]

_F, _I = np.float32, np.int32
_ONE, _HALF, _ZERO = _F(1), _F(0.5), _F(0)
_LOG2_E = _F(1.4426950408889634)
# ln 2 in two parts, the first with so few digits that products with small integers are exact.
_LN2, _LN2_REST = _F(0.693145751953125), _F(1.4286068203094173e-06)
_LARGEST_EXPONENT = _F(20)  # as in `gtp_policy.kernels`
_SMALLEST_EXPONENT = _F(-87)  # below, exp is no normal number, and Mish 0 to rounding

# "contract" allows fused multiply-add and nothing else: what is not a number stays so.
_compiled = njit(fastmath={"contract"}, cache=True, nogil=True, error_model="numpy")


@_compiled
def _exp(v: np.float32) -> np.float32:
    """Returns e = exp(v), within what float32 holds, and 0 far below."""
    c = v if v < _LARGEST_EXPONENT else _LARGEST_EXPONENT  # also what is no number
    c = c if c > _SMALLEST_EXPONENT else _SMALLEST_EXPONENT
    # exp(c) = 2^k exp(r), |r| <= ln(2) / 2; k + 127 > 0 is the exponent's bits in float32.
    biased = _I(c * _LOG2_E + _F(127.5))
    k = _F(biased - _I(127))
    r = c - k * _LN2 - k * _LN2_REST
    p = _F(1 / 5040)  # Taylor: the first term left out is below 6e-9
    p = p * r + _F(1 / 720)
    p = p * r + _F(1 / 120)
    p = p * r + _F(1 / 24)
    p = p * r + _F(1 / 6)
    p = p * r + _HALF
    p = p * r + _ONE
    p = p * r + _ONE
    e = p * _I(biased << _I(23)).view(np.float32)
    return e if c > _SMALLEST_EXPONENT else _ZERO


@_compiled
def mish_(x: Array, bias: Array) -> None:
    """Replaces each element of x (n, H) by the Mish of it and its column's bias."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            v = x[i, j] + bias[j]
            e = _exp(v)
            h = e + _HALF * e * e
            x[i, j] = v * (h / (h + _ONE))


@_compiled
def mish_with_slope_(x: Array, bias: Array, slope: Array) -> None:
    """Does what `mish_` does and leaves the derivatives in ``slope``."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            v = x[i, j] + bias[j]
            e = _exp(v)
            h = e + _HALF * e * e
            r = _ONE / (h + _ONE)
            w = h * r
            # Beyond the limit the second term is 0 for every v; what is no number stays so.
            c = _LARGEST_EXPONENT if v > _LARGEST_EXPONENT else v
            slope[i, j] = w + c * (e + e * e) * r * r
            x[i, j] = v * w
