"""Everything random of an update, drawn by counter in one Triton kernel, and its minibatch.

The numbers are those of `gtp_policy.kernels.philox`, the laws of times those of `gtp_policy.times`.

Triton decides whether to compile or to interpret when this module is imported.
"""

from __future__ import annotations  # without Triton there is no `tl` for the kernels' annotations

from gtp_policy.kernels.triton_jit import INSTALLED as INSTALLED
from gtp_policy.kernels.triton_jit import interpreted, jit, tl

INTERPRETED: bool = interpreted()


@jit
def _uniform(word: tl.tensor) -> tl.tensor:
    return (word >> 8).to(tl.float32) * (1.0 / 16777216.0)


@jit
def _normal(first: tl.tensor, second: tl.tensor) -> tl.tensor:
    u = (first.to(tl.float32) + 0.5) * (1.0 / 4294967296.0)
    u = tl.minimum(u, 1.0)
    return tl.sqrt(-2.0 * tl.log(u)) * tl.cos(6.283185307179586 * _uniform(second))


@jit
def _noise(
    out: tl.tensor,  # (S, COPIES, B, WIDTH)
    seed: tl.tensor,
    key: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    row: tl.tensor,
    batch: tl.tensor,
    STREAM: tl.constexpr,
    COPIES: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
) -> None:
    column = tl.arange(0, PADDED)
    zero = row[:, None] * 0 + column[None, :] * 0
    here = (row < batch)[:, None] & (column < WIDTH)[None, :]
    for copy in range(COPIES):
        place = copy * WIDTH + column + STREAM * 16777216
        first, second, _, _ = tl.philox(
            key, row[:, None] + zero, place[None, :] + zero, low + zero, high + zero
        )
        into = out + ((seed * COPIES + copy) * batch + row)[:, None] * WIDTH + column[None, :]
        tl.store(into, _normal(first, second), mask=here)


@jit
def _at_share(share: tl.tensor, LINEAR: tl.constexpr, MOST: tl.constexpr) -> tl.tensor:
    if LINEAR:
        t = share
    else:
        scaled = share * (MOST / (1.0 + MOST))
        t = tl.minimum(scaled / (1.0 - scaled), MOST)
    return t


@jit
def _below(draw: tl.tensor, bound: tl.tensor) -> tl.tensor:
    return tl.minimum((draw * bound.to(tl.float32)).to(tl.int32), bound - 1)


@jit
def draws(
    record: tl.tensor,  # of this update: see `gtp_policy.kernels.draws_triton`
    data: tl.tensor,  # (size, WIDTH): a dataset's rows
    minibatch: tl.tensor,  # (S, B, WIDTH)
    backup: tl.tensor,  # (S, BACKUP, B, NOISE)
    baseline: tl.tensor,  # (S, BASELINE, B, NOISE)
    guide: tl.tensor,  # (S, B, GUIDE)
    z: tl.tensor,  # (S, B, ACT)
    t: tl.tensor,  # (S, M), like u and s
    u: tl.tensor,
    s: tl.tensor,
    tau: tl.tensor,  # (S, B)
    nodes: tl.tensor,  # grids, one after the other
    masses: tl.tensor,  # cumulative masses of their nodes, at the same places
    size: tl.int64,
    M: tl.int32,
    batch: tl.int32,
    FIRST_KEY: tl.constexpr,  # where the keys of seeds begin in the record
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,  # 0: the minibatch is given
    PADDED_WIDTH: tl.constexpr,
    BACKUP: tl.constexpr,
    BASELINE: tl.constexpr,
    NOISE: tl.constexpr,
    PADDED_NOISE: tl.constexpr,
    GUIDE: tl.constexpr,
    PADDED_GUIDE: tl.constexpr,
    ACT: tl.constexpr,
    PADDED_ACT: tl.constexpr,
    LAW: tl.constexpr,  # 0: nodes of a grid, 1: pairs of uniform shares, 2: of logit-normal ones
    LEVELS: tl.constexpr,  # halvings that find a node
    S_RULE: tl.constexpr,  # 0: uniform, 1: zero, 2: equal to u, 3: dyadic
    MIDPOINT: tl.constexpr,
    MAX_GAP: tl.constexpr,
    LINEAR: tl.constexpr,
    MOST: tl.constexpr,  # T
    EDGE: tl.constexpr,
    MEAN: tl.constexpr,
    STD: tl.constexpr,
    S_MEAN: tl.constexpr,
    S_STD: tl.constexpr,
    FLOW: tl.constexpr,  # whether the flow loss has separate times
) -> None:
    """Everything random of some rows of a seed's minibatch, and these rows."""
    seed = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    low, high = tl.load(record), tl.load(record + 1)
    key_low = tl.load(record + FIRST_KEY + 2 * seed).to(tl.int64) & 0xFFFFFFFF
    key = (tl.load(record + FIRST_KEY + 1 + 2 * seed).to(tl.int64) << 32) | key_low
    here = row < batch
    if WIDTH > 0:
        first, _, _, _ = tl.philox(key, row, row * 0, row * 0 + low, row * 0 + high)
        place = ((first.to(tl.uint64) * size) >> 32).to(tl.int64)
        column = tl.arange(0, PADDED_WIDTH)
        mask = here[:, None] & (column < WIDTH)[None, :]
        values = tl.load(data + place[:, None] * WIDTH + column[None, :], mask=mask, other=0.0)
        into = minibatch + (seed * batch + row)[:, None] * WIDTH + column[None, :]
        tl.store(into, values, mask=mask)
    _noise(backup, seed, key, low, high, row, batch, 1, BACKUP, NOISE, PADDED_NOISE)
    _noise(baseline, seed, key, low, high, row, batch, 2, BASELINE, NOISE, PADDED_NOISE)
    if GUIDE > 0:
        _noise(guide, seed, key, low, high, row, batch, 3, 1, GUIDE, PADDED_GUIDE)
    _noise(z, seed, key, low, high, row, batch, 4, 1, ACT, PADDED_ACT)

    zero = row * 0
    a, a2, _, _ = tl.philox(key, row, zero + 5 * 16777216, zero + low, zero + high)
    b, b2, _, _ = tl.philox(key, row, zero + 5 * 16777216 + 1, zero + low, zero + high)
    c, _, _, _ = tl.philox(key, row, zero + 5 * 16777216 + 2, zero + low, zero + high)
    third = _uniform(c)
    jumps = row < M
    if LAW == 0:
        n = tl.load(record + 2)
        offset = tl.load(record + 3)
        levels = tl.load(record + 4)  # of N in binary digits
        draw = _uniform(a)
        least, most = zero, zero + n
        for _ in range(LEVELS):
            middle = (least + most) // 2
            searching = least < most
            mass = tl.load(masses + offset + middle, mask=searching, other=2.0)
            further = searching & (mass <= draw)
            least = tl.where(further, middle + 1, least)
            most = tl.where(further, most, middle)
        k = tl.minimum(least, n - 1) + 1
        if S_RULE == 0:
            m = _below(_uniform(b), k)
        elif S_RULE == 3:
            width = (zero + 1) << _below(_uniform(b), zero + levels)
            k = tl.minimum((k + width - 1) // width, n // width) * width
            m = k - width
        else:
            m = zero
        if MIDPOINT:
            gap = (k - m + 1) // 2
        else:
            gap = 1 + _below(third, tl.minimum(k - m, MAX_GAP))
        if S_RULE == 2:
            m = k - gap
        nodes += offset + n
        t_row = tl.load(nodes - k, mask=jumps, other=1.0)
        u_row = tl.load(nodes - k + gap, mask=jumps, other=0.0)
        s_row = tl.load(nodes - m, mask=jumps, other=0.0)
    else:
        if LAW == 1:
            share, other = _uniform(a), _uniform(b)
        else:
            share = 1.0 / (1.0 + tl.exp(-(MEAN + STD * _normal(a, a2))))
            other = 1.0 / (1.0 + tl.exp(-(S_MEAN + S_STD * _normal(b, b2))))
        t_row = _at_share(tl.maximum(share, other), LINEAR, MOST)
        s_row = _at_share(tl.minimum(share, other), LINEAR, MOST)
        t_row = tl.maximum(tl.where(third < EDGE, MOST, t_row), MOST / 5000)
        s_row = tl.minimum(tl.where(third < EDGE, 0.0, s_row), t_row * (1 - 1e-3))
        inner = tl.load(record + 5).to(tl.float32, bitcast=True)
        u_row = s_row + inner * (t_row - s_row)
    tl.store(t + seed * M + row, t_row, mask=jumps)
    tl.store(u + seed * M + row, u_row, mask=jumps)
    tl.store(s + seed * M + row, s_row, mask=jumps)
    if FLOW:
        d, _, _, _ = tl.philox(key, row, zero + 6 * 16777216, zero + low, zero + high)
        at = tl.maximum(_at_share(_uniform(d), LINEAR, MOST), MOST / 5000)
        tl.store(tau + seed * batch + row, at, mask=here)
