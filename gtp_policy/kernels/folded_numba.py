"""The sampler for few rows as one compiled function; only imported where numba is installed.

With few rows an action costs as much as it takes to read the weights from the cache, once per jump.
Torch's operators add a call each to that; here there is one call for all jumps.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from gtp_policy.kernels.mish_numba import mish_

Array = NDArray[np.float32]

_F = np.float32
_CHOICES: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
# Sums over a row may be taken in any order, which is what lets them use the processor's vectors.
# Nothing else is given up: what is not a number stays so.
_sums = njit(fastmath={"reassoc", "contract", "nsz"}, **_CHOICES)
_exact = njit(fastmath={"contract"}, **_CHOICES)


@_sums
def _product(weight: Array, first: int, x: Array, out: Array) -> None:
    """Writes x W^T to ``out``, with the columns of W (out, in) from ``first`` on.

    Four outputs at a time, and two rows where there are two, so that what is read once serves
    several products. Without slices and inner functions, for which numba would count references.
    """
    rows, inputs, end = x.shape[0], x.shape[1], weight.shape[0] - 1
    start = max(first, 0)  # never below 0: the compiler then omits the test for negative indices
    for o in range(0, end + 1, 4):
        # Beyond the end, the last output once more.
        p, q, s = min(o + 1, end), min(o + 2, end), min(o + 3, end)
        for k in range(0, rows if rows > 1 else 0, 2):
            r = min(k, rows - 2)  # of an odd number, the last but one twice: all rows round alike
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = _F(0)
            for i in range(inputs):
                a0 += weight[o, start + i] * x[r, i]
                a1 += weight[p, start + i] * x[r, i]
                a2 += weight[q, start + i] * x[r, i]
                a3 += weight[s, start + i] * x[r, i]
                b0 += weight[o, start + i] * x[r + 1, i]
                b1 += weight[p, start + i] * x[r + 1, i]
                b2 += weight[q, start + i] * x[r + 1, i]
                b3 += weight[s, start + i] * x[r + 1, i]
            out[r, o], out[r, p], out[r, q], out[r, s] = a0, a1, a2, a3
            out[r + 1, o], out[r + 1, p], out[r + 1, q], out[r + 1, s] = b0, b1, b2, b3
        if rows == 1:
            a0 = a1 = a2 = a3 = _F(0)
            for i in range(inputs):
                a0 += weight[o, start + i] * x[0, i]
                a1 += weight[p, start + i] * x[0, i]
                a2 += weight[q, start + i] * x[0, i]
                a3 += weight[s, start + i] * x[0, i]
            out[0, o], out[0, p], out[0, q], out[0, s] = a0, a1, a2, a3


@_exact
def sample(
    weights: tuple[Array, ...],
    biases: tuple[Array, ...],
    mean: Array,
    scale: Array,
    center: Array,
    spread: Array,
    embedded: Array,
    jumps: Array,
    gamma: float,
    obs: Array,
    noise: Array,
) -> Array:
    """Returns actions (B, A) for observations (B, O) and noise (B, A); see `gtp_policy._folding`.

    Weights (out, in) and biases by layer; both time embeddings by jump (K, 2 E); the rows of
    ``jumps`` (4, K) are c_in, alpha, beta and the share of the last bias at the network's input;
    ``gamma`` is its share of the result, which ``center + spread x`` makes an action. Everything is
    contiguous.
    """
    rows, obs_dim = obs.shape
    steps, action_dim, layers = embedded.shape[0], noise.shape[1], len(weights)
    first, last, last_bias = weights[0], weights[layers - 1], biases[layers - 1]
    width, widest = first.shape[0], 0
    for i in range(layers):
        widest = max(widest, weights[i].shape[0])
    # What the first layer makes of observations and of times, and its columns for the action.
    normalised = np.empty((rows, obs_dim), np.float32)
    for r in range(rows):
        for j in range(obs_dim):
            normalised[r, j] = (obs[r, j] - mean[j]) / scale[j]
    from_obs = np.empty((rows, width), np.float32)
    _product(first, 0, normalised, from_obs)
    times = np.empty((steps, action_dim + embedded.shape[1]), np.float32)
    for k in range(steps):
        times[k, :action_dim] = jumps[3, k] * last_bias
        times[k, action_dim:] = embedded[k]
    from_times = np.empty((steps, width), np.float32)
    _product(first, obs_dim, times, from_times)
    of_action = np.empty((action_dim, width), np.float32)
    for o in range(width):
        for a in range(action_dim):
            of_action[a, o] = first[o, obs_dim + a]
    # The jumps; hidden layers go from one half of a buffer to the other.
    y, raw = noise.copy(), np.empty((rows, action_dim), np.float32)
    buffers = np.empty((2, rows * widest), np.float32)
    for k in range(steps):
        h = buffers[0, : rows * width].reshape((rows, width))
        for r in range(rows):
            for o in range(width):
                h[r, o] = from_obs[r, o] + from_times[k, o]
            for a in range(action_dim):
                factor = jumps[0, k] * y[r, a]
                for o in range(width):
                    h[r, o] += factor * of_action[a, o]
        mish_(h, biases[0])
        for i in range(1, layers - 1):
            outputs = weights[i].shape[0]
            output = buffers[i % 2, : rows * outputs].reshape((rows, outputs))
            _product(weights[i], 0, h, output)
            mish_(output, biases[i])
            h = output
        _product(last, 0, h, raw)
        for r in range(rows):
            for a in range(action_dim):
                y[r, a] = jumps[1, k] * y[r, a] + jumps[2, k] * raw[r, a]
    for r in range(rows):
        for a in range(action_dim):
            v = center[a] + spread[a] * (y[r, a] + _F(gamma) * last_bias[a])
            y[r, a] = _F(1) if v > _F(1) else _F(-1) if v < _F(-1) else v
    return y
