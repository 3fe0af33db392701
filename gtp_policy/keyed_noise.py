r"""Noise as a function of the observation: varied as a sample's, and the same in every call.

A deterministic action that starts from one noise at all observations can get stuck where a sampled
one would not: the policy is then a smooth function of the observation, and may lead back to where
it came from. Here each observation has a noise of its own, drawn by a generator whose seed is a
hash of the observation:

.. math::
    q_i &= \mathrm{trunc}(2^{20} o_i), \quad
    x = 1 + \Bigl(\sum_{i=1}^{O} q_i h^i \bmod p\Bigr) \bmod (p - 1), \quad k = x^5 \bmod p \\
    z_j &= \frac{1}{p} \sum_{m=12j+1}^{12j+12} (k\, g^m \bmod p) - 6, \quad j = 0, 1, \ldots

with the prime p = 16,777,213, h = 12,345,679 and g = 4,653,209. So a polynomial hash of the
observation gives a key, its fifth power (one to one, as 5 does not divide p - 1) sets neighbouring
keys apart, Lehmer's generator starts there, and twelve of its numbers add up to one of variance 1
that is normal to 0.003 in its distribution function. All of it is arithmetic of integers, or of
float32 with one rounding at a time: the noise has the same bits on every device and in every
runtime, and needs no table.

Observations that differ by less than 2^-20 in every element may share a noise.

References:
    | Efficient randomized pattern-matching algorithms (Karp and Rabin, 1987), for the hash,
    | https://doi.org/10.1147/rd.312.0249
    | Random number generators: good ones are hard to find (Park and Miller, 1988), for Lehmer's
    | generator, https://doi.org/10.1145/63039.63042
"""

import torch
from torch import Tensor

from gtp_policy._contexts import constant

PRIME, HASH, STEP = 16_777_213, 12_345_679, 4_653_209
TERMS = 12  # uniform numbers in a normal one
# Beyond, the integers would leave 64 bits; an observation is looked at in units of 2^-20.
FARTHEST, UNITS = 2.0**42, 2.0**20


def keyed_noise(obs: Tensor, count: int) -> Tensor:
    """Returns standard normal numbers for each observation, a function of it alone.

    Args:
        obs: Observation, shape (B, O), finite, of any floating type; looked at in float32.
        count: How many numbers for each.

    Returns:
        Shape (B, count), of the observation's dtype, on its device; within [-6, 6].

    Example:
        >>> import torch
        >>> from gtp_policy.keyed_noise import keyed_noise
        >>> one, two = torch.tensor([[0.1, 0.2]]), torch.tensor([[0.1, 0.2], [0.1, 0.3]])
        >>> torch.equal(keyed_noise(one, 3)[0], keyed_noise(two, 3)[0])
        True
        >>> torch.equal(keyed_noise(two, 3)[0], keyed_noise(two, 3)[1])
        False
    """
    device = obs.device
    units = obs.detach().to(torch.float32).clamp(-FARTHEST, FARTHEST) * UNITS
    key = (units.to(torch.int64) % PRIME * powers(HASH, obs.shape[1], device) % PRIME).sum(1)
    key = (key % PRIME % (PRIME - 1) + 1).unsqueeze(1)
    square = key * key % PRIME
    key = square * square % PRIME * key % PRIME
    uniform = key * powers(STEP, TERMS * count, device) % PRIME
    total = uniform.view(-1, count, TERMS).sum(2) - TERMS // 2 * PRIME
    return (total.to(torch.float32) / PRIME).to(obs.dtype)


@constant(maxsize=32)
def powers(base: int, count: int, device: torch.device | None = None) -> Tensor:
    """Returns a number to the power of 1 to ``count``, modulo p.

    Args:
        base: The number.
        count: The highest power.
        device: Where; default the CPU.

    Returns:
        Shape (count,), int64.

    Example:
        >>> from gtp_policy.keyed_noise import powers
        >>> powers(5000, 3)
        tensor([   5000, 8222787, 9763150])
    """
    found, power = [], 1
    for _ in range(count):
        power = power * base % PRIME
        found.append(power)
    return torch.tensor(found, dtype=torch.int64, device=device or "cpu")
