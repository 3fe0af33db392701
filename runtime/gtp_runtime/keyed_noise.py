"""The noise of a deterministic action: a function of the observation, exact in every runtime.

The contract, in formulas, is the section "Noise of a deterministic action" of the page on the
policy file in gtp-policy's documentation.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

from gtp_runtime.graph import Array

_PRIME, _HASH, _STEP, _TERMS = 16_777_213, 12_345_679, 4_653_209, 12
_FARTHEST, _UNITS = np.float32(2.0**42), np.float32(2.0**20)


def keyed_noise(parts: Sequence[Array], history: int, shape: Sequence[int]) -> Array:
    """Returns the noise of a deterministic action for each observation.

    Args:
        parts: The inputs in the order of the document, float32, each (B, ...), finite.
        history: m, observations that each holds.
        shape: Shape of the noise of one observation.

    Returns:
        Float32, (B, ``*shape``), standard normal over different observations.

    Example:
        >>> import numpy as np
        >>> from gtp_runtime.keyed_noise import keyed_noise
        >>> noise = keyed_noise([np.float32([[0.1], [0.2]])], 1, (3,))
        >>> noise.shape, bool((noise[0] == noise[1]).any())
        ((2, 3), False)
    """
    batch, count = len(parts[0]), math.prod(shape)
    steps = [part.reshape(batch, history, -1) for part in parts]
    obs = np.concatenate(steps, 2).reshape(batch, -1)
    whole = (obs.clip(-_FARTHEST, _FARTHEST) * _UNITS).astype(np.int64) % _PRIME
    key = (whole * _powers(_HASH, obs.shape[1]) % _PRIME).sum(1, keepdims=True) % _PRIME
    key = key % (_PRIME - 1) + 1
    square = key * key % _PRIME
    key = square * square % _PRIME * key % _PRIME
    uniform = key * _powers(_STEP, _TERMS * count) % _PRIME
    total = uniform.reshape(batch, count, _TERMS).sum(2) - _TERMS // 2 * _PRIME
    return np.asarray(total.astype(np.float32) / np.float32(_PRIME)).reshape(batch, *shape)


@functools.lru_cache(maxsize=32)
def _powers(base: int, count: int) -> Array:
    """Returns a number to the power of 1 to ``count``, modulo p."""
    found, power = np.empty(count, np.int64), 1
    for i in range(count):
        power = power * base % _PRIME
        found[i] = power
    found.flags.writeable = False
    return found
