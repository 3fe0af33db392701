"""What follows the matrix products of a network, forwards and backwards, in Triton's language.

The formulas are those of `gtp_policy.kernels.mlp`. G networks lie side by side; a program along the
second axis of the grid belongs to one of them. Sums over rows are taken by one program each, in a
fixed order: equal calls give equal bits.

Triton decides whether to compile or to interpret when this module is imported.
"""

from __future__ import annotations  # without Triton there is no `tl` for the kernels' annotations

from gtp_policy.kernels.triton_jit import INSTALLED as INSTALLED
from gtp_policy.kernels.triton_jit import interpreted, jit, tl

INTERPRETED: bool = interpreted()


@jit
def _activate(x: tl.tensor, KIND: tl.constexpr) -> tl.tensor:
    """Returns Mish (0), GELU (1) or ReLU (2) of every element."""
    if KIND == 0:
        e = tl.exp(tl.minimum(x, 20.0))
        n = e * (e + 2.0)
        y = x * (n / (n + 2.0))
    elif KIND == 1:
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        y = tl.where(x < 0.0, 0.0, x)
    return y


@jit
def _slope(x: tl.tensor, KIND: tl.constexpr) -> tl.tensor:
    """Returns the derivative of `_activate`."""
    if KIND == 0:
        e = tl.exp(tl.minimum(x, 20.0))
        n = e * (e + 2.0)
        # Beyond 20, where the exponential is cut off, the second term vanishes.
        y = n / (n + 2.0) + 4.0 * x * (e / (n + 2.0)) * ((e + 1.0) / (n + 2.0))
    elif KIND == 1:
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        y = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * density
    else:
        y = tl.where(x > 0.0, 1.0, 0.0)
    return y


@jit
def _down(
    back: tl.tensor,  # (G, rows, WIDTH), read at ``place`` where no last layer follows
    place: tl.tensor,
    here: tl.tensor,
    upstream: tl.tensor,  # (G, rows, OUT), in its place behind the last layer
    of_row: tl.tensor,  # which rows of it
    is_row: tl.tensor,
    weight: tl.tensor,  # of the last layer
    weight_i: tl.int64,
    weight_o: tl.int64,
    column: tl.tensor,
    real: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OUT: tl.constexpr,
) -> tl.tensor:
    """Returns the gradient that comes down to a layer's output."""
    if OUT == 0:
        z = tl.load(back + place, mask=here, other=0.0)
    else:
        z = tl.zeros([ROWS, COLUMNS], tl.float32)
        for o in range(OUT):
            w = tl.load(weight + column * weight_i + o * weight_o, mask=real, other=0.0)
            up = tl.load(upstream + of_row * OUT + o, mask=is_row, other=0.0)
            z += up[:, None] * w[None, :]
    return z


@jit
def forward(
    x: tl.tensor,  # (G, rows, WIDTH): the product, which becomes the layer's output
    bias: tl.tensor,  # (G, WIDTH)
    bias_g: tl.int64,  # its stride from network to network, like all that end so
    gain: tl.tensor,  # (G, WIDTH), like shift
    shift: tl.tensor,
    norm_g: tl.int64,
    unit: tl.tensor,  # (G, rows, WIDTH): the normalised layer, where it is kept
    rstd: tl.tensor,  # (G, rows)
    slope: tl.tensor,  # (G, rows, WIDTH): the activation's derivative, where it is kept
    weight: tl.tensor,  # (G, WIDTH, OUT): of the last layer, where this is the one before
    weight_g: tl.int64,
    weight_i: tl.int64,  # its strides by input and output
    weight_o: tl.int64,
    out_bias: tl.tensor,  # (G, OUT)
    out_bias_g: tl.int64,
    out: tl.tensor,  # (G, rows, OUT)
    rows: tl.int32,
    EPS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,  # 0: the last layer follows later
    KIND: tl.constexpr,
    NORM: tl.constexpr,
    KEEP: tl.constexpr,
) -> None:
    """Bias, normalisation and activation of a layer, and the few outputs of the last one."""
    g = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    real = column < WIDTH
    here = (row < rows)[:, None] & real[None, :]
    place = (g * rows + row)[:, None] * WIDTH + column[None, :]
    v = tl.load(x + place, mask=here, other=0.0)
    v += tl.load(bias + g * bias_g + column, mask=real, other=0.0)[None, :]
    if NORM:
        centred = tl.where(real[None, :], v - (tl.sum(v, 1) / WIDTH)[:, None], 0.0)
        r = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / WIDTH + EPS)
        u = centred * r[:, None]
        if KEEP:
            tl.store(unit + place, u, mask=here)
            tl.store(rstd + g * rows + row, r, mask=row < rows)
        v = tl.load(shift + g * norm_g + column, mask=real, other=0.0)[None, :]
        v += u * tl.load(gain + g * norm_g + column, mask=real, other=0.0)[None, :]
    h = _activate(v, KIND)
    if KEEP or OUT == 0:
        tl.store(x + place, h, mask=here)
    if KEEP:
        tl.store(slope + place, _slope(v, KIND), mask=here)
    for o in range(OUT):
        w = tl.load(weight + g * weight_g + column * weight_i + o * weight_o, mask=real, other=0.0)
        y = tl.sum(h * w[None, :], 1) + tl.load(out_bias + g * out_bias_g + o)
        tl.store(out + (g * rows + row) * OUT + o, y, mask=row < rows)


@jit
def backward_rows(
    back: tl.tensor,  # (G, rows, WIDTH): what comes down; leaves as that by the normalised layer
    upstream: tl.tensor,  # (G, rows, OUT), in its place behind the last layer
    weight: tl.tensor,
    weight_g: tl.int64,
    weight_i: tl.int64,
    weight_o: tl.int64,
    slope: tl.tensor,  # (G, rows, WIDTH): leaves as the gradient by the product
    unit: tl.tensor,
    rstd: tl.tensor,
    gain: tl.tensor,
    norm_g: tl.int64,
    rows: tl.int32,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
) -> None:
    """Back through an activation and the normalisation before it, row by row."""
    g = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    real = column < WIDTH
    here = (row < rows)[:, None] & real[None, :]
    place = (g * rows + row)[:, None] * WIDTH + column[None, :]
    of_row, is_row = g * rows + row, row < rows
    weight += g * weight_g
    z = _down(
        back,
        place,
        here,
        upstream,
        of_row,
        is_row,
        weight,
        weight_i,
        weight_o,
        column,
        real,
        ROWS,
        PADDED,
        OUT,
    )
    z *= tl.load(slope + place, mask=here, other=0.0)
    u = tl.load(unit + place, mask=here, other=0.0)
    r = tl.load(rstd + g * rows + row, mask=row < rows, other=0.0)
    d = z * tl.load(gain + g * norm_g + column, mask=real, other=0.0)[None, :]
    along = tl.sum(d * u, 1) / WIDTH
    d = (d - (tl.sum(d, 1) / WIDTH)[:, None] - u * along[:, None]) * r[:, None]
    tl.store(back + place, z, mask=here)
    tl.store(slope + place, d, mask=here)


@jit
def backward_columns(
    back: tl.tensor,  # (G, rows, WIDTH): what comes down, or what `backward_rows` left
    upstream: tl.tensor,
    weight: tl.tensor,
    weight_g: tl.int64,
    weight_i: tl.int64,
    weight_o: tl.int64,
    h: tl.tensor,  # (G, rows, WIDTH): the layer's output
    slope: tl.tensor,  # (G, rows, WIDTH): leaves as the gradient by the product
    unit: tl.tensor,
    of_bias: tl.tensor,  # (G, WIDTH), like the next two: where gradients go
    of_bias_g: tl.int64,
    of_gain: tl.tensor,
    of_shift: tl.tensor,
    of_norm_g: tl.int64,
    of_weight: tl.tensor,  # of the last layer
    of_weight_g: tl.int64,
    of_weight_i: tl.int64,
    of_weight_o: tl.int64,
    of_out_bias: tl.tensor,
    of_out_bias_g: tl.int64,
    rows: tl.constexpr,  # Triton's interpreter needs a plain integer as a loop's end
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
    NORM: tl.constexpr,
    PARAMETERS: tl.constexpr,  # whether their gradients are wanted
) -> None:
    """Back through an activation, and the gradients that are sums over rows, column by column."""
    g = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    real = column < WIDTH
    weight += g * weight_g
    total = tl.zeros([COLUMNS], tl.float32)
    total_gain = tl.zeros([COLUMNS], tl.float32)
    total_shift = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        here = (row < rows)[:, None] & real[None, :]
        place = (g * rows + row)[:, None] * WIDTH + column[None, :]
        s = tl.load(slope + place, mask=here, other=0.0)
        if NORM:
            z = tl.load(back + place, mask=here, other=0.0)
            total_gain += tl.sum(z * tl.load(unit + place, mask=here, other=0.0), 0)
            total_shift += tl.sum(z, 0)
        else:
            of_row, is_row = g * rows + row, row < rows
            s *= _down(
                back,
                place,
                here,
                upstream,
                of_row,
                is_row,
                weight,
                weight_i,
                weight_o,
                column,
                real,
                ROWS,
                COLUMNS,
                OUT,
            )
            tl.store(slope + place, s, mask=here)
        total += tl.sum(s, 0)
    if PARAMETERS:
        tl.store(of_bias + g * of_bias_g + column, total, mask=real)
        if NORM:
            tl.store(of_gain + g * of_norm_g + column, total_gain, mask=real)
            tl.store(of_shift + g * of_norm_g + column, total_shift, mask=real)
        for o in range(OUT):
            total_weight = tl.zeros([COLUMNS], tl.float32)
            total_bias = tl.zeros([ROWS], tl.float32)
            for start in range(0, rows, ROWS):
                row = start + tl.arange(0, ROWS)
                here = (row < rows)[:, None] & real[None, :]
                place = (g * rows + row)[:, None] * WIDTH + column[None, :]
                up = tl.load(upstream + (g * rows + row) * OUT + o, mask=row < rows, other=0.0)
                total_weight += tl.sum(up[:, None] * tl.load(h + place, mask=here, other=0.0), 0)
                total_bias += up
            tl.store(
                of_weight + g * of_weight_g + column * of_weight_i + o * of_weight_o,
                total_weight,
                mask=real,
            )
            if tl.program_id(0) == 0:
                tl.store(of_out_bias + g * of_out_bias_g + o, tl.sum(total_bias, 0))
