r"""Random numbers that are a function of where they are used: Philox, by counter and without state.

A number is that of (seed, stream, update, row, column): nothing has to be saved, and a device can
draw for itself, in a recorded update too. This is the readable reference, in torch's operators on
any device; `gtp_policy.kernels.draws_triton` draws the same numbers in one kernel.

References:
    | Parallel Random Numbers: As Easy as 1, 2, 3 (Salmon et al., 2011), Philox4x32-10
    | https://doi.org/10.1145/2063384.2063405
"""

import hashlib
import math

import torch
from torch import Tensor

STREAMS = {"batch": 0, "backup": 1, "baseline": 2, "guidance": 3, "z": 4, "times": 5, "flow": 6}
"""Numbers of streams: a draw from one says nothing of another."""
_LOW = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS, _WEYL = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)


def serves(device: torch.device) -> bool:
    """Returns whether updates on a device draw by counter and not from torch's generators.

    Args:
        device: Of a learner; where Triton has no kernels for it, it is slower than they are.
    """
    return device.type == "cuda" and torch.version.hip is None


def key_of(seed: int) -> int:
    """Returns the key of a seed, in [0, 2^63): a hash, so that neighbouring seeds share nothing.

    Args:
        seed: Any integer.
    """
    digest = hashlib.blake2b(f"{seed}/philox".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def words(
    key: int, stream: str, update: int, rows: int, columns: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Returns two words of 32 random bits for every row and column.

    Args:
        key: Of a seed.
        stream: One of `STREAMS`.
        update: Number of updates done.
        rows: Rows.
        columns: Columns; those of another row or number of rows stay the same.
        device: Where to draw.

    Returns:
        int64 tensors of shape (rows, columns), values in [0, 2^32).
    """
    return several({stream: columns}, key, update, rows, device)[stream]


def several(
    columns: dict[str, int], key: int, update: int, rows: int, device: torch.device
) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns `words` of several streams, computed together: there are many operators to it.

    Args:
        columns: Number of columns by stream.
        key: As for `words`, like all that follow.
        update: Number of updates done.
        rows: Rows.
        device: Where to draw.
    """
    numbers = [
        torch.arange(n, device=device) + (STREAMS[stream] << 24) for stream, n in columns.items()
    ]
    row = torch.arange(rows, device=device).unsqueeze(1).expand(-1, sum(columns.values()))
    column = torch.cat(numbers).expand(rows, -1)
    low, high = torch.full_like(row, update & _LOW), torch.full_like(row, update >> 32)
    found = philox(key, row, column, low, high)[:2]
    parts = (torch.split(word, list(columns.values()), 1) for word in found)
    return dict(zip(columns, zip(*parts, strict=True), strict=True))


def philox(
    key: int, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns Philox4x32-10 of a key of 64 bits and counters of four words.

    Args:
        key: The low word of the key in its low half.
        c0: Words in int64, like the other three.
        c1: Second words.
        c2: Third words.
        c3: Fourth words.
    """
    k0, k1 = key & _LOW, (key >> 32) & _LOW
    for _ in range(_ROUNDS):
        high0, low0 = _product(c0, _MULTIPLIERS[0])
        high1, low1 = _product(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def _product(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """Returns the high and the low word of products of words, without passing 63 bits."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    middle = high + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def uniform(words: tuple[Tensor, Tensor]) -> Tensor:
    """Returns float32 numbers in [0, 1), multiples of 2^-24."""
    return (words[0] >> 8).float() * 2.0**-24


def normal(words: tuple[Tensor, Tensor]) -> Tensor:
    r"""Returns standard normal numbers by Box and Muller, of float32, at most 6.8 in size.

    .. math:: \sqrt{-2 \ln u_1} \cos 2 \pi u_2
    """
    # float32 may round up to 2^32, whose logarithm would be below 0 after half a step more.
    first = ((words[0].float() + 0.5) * 2.0**-32).clamp_max(1.0)
    return (-2 * first.log()).sqrt() * torch.cos(2 * math.pi * uniform((words[1], words[0])))


def below(words: tuple[Tensor, Tensor], n: int) -> Tensor:
    """Returns integers in [0, n), n at most 2^31, each as likely as another up to n / 2^32."""
    return (words[0] * n) >> 32
