r"""All K jumps of the default network as one kernel, in Triton's language.

With :math:`x` the noisy action, jump i of the folded network is

.. math:: h_1 = mish(p + r_i + c_i W_x x), \quad h_l = mish(W_l h_{l-1} + b_l), \quad
    x' = \alpha_i x + \beta_i (W_n h_{n-1} + b_n)

where :math:`p` is the observation's share of the first layer, computed once, and :math:`r_i` holds
its bias and the share of both times, one row per jump. A program carries a tile of rows through
all jumps and layers. Weights are streamed in slices of their input; the activations of a layer
pass to the next through a scratch buffer of the program's own, which stays in the cache.

Triton decides whether to compile or to interpret when this module is imported.
"""

from __future__ import annotations  # without Triton there is no `tl` for the kernel's annotations

from gtp_policy.kernels.triton_jit import INSTALLED as INSTALLED
from gtp_policy.kernels.triton_jit import interpreted, jit, tl

INTERPRETED: bool = interpreted()


@jit
def mish(x: tl.tensor) -> tl.tensor:  # noqa: D103 - Triton compiles what stands here
    e = tl.exp(tl.minimum(x, 20.0))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


@jit
def product(
    rows: tl.tensor,  # where each row of activations begins, (TILE, 1), zeros after its end
    weight: tl.tensor,
    stride_out: tl.constexpr,
    stride_in: tl.constexpr,
    j: tl.tensor,  # outputs, (COLUMNS,)
    outputs: tl.constexpr,
    inputs: tl.constexpr,
    zero: tl.int32,
    TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Returns activations times the transpose of a weight, (TILE, COLUMNS)."""
    total = tl.full([TILE, COLUMNS], 0.0, tl.float32)
    # A loop, not written out: what it loads must not move out of the jumps, where it would need
    # more shared memory than there is. Triton's interpreter needs a plain integer as the end.
    for k in tl.range(0, inputs if INTERPRETED else inputs + zero, SLICE, num_stages=STAGES):
        i = k + tl.arange(0, SLICE)
        h = tl.load(rows + i[None, :])
        w = tl.load(
            weight + j[None, :] * stride_out + i[:, None] * stride_in,
            mask=(i < inputs)[:, None] & (j < outputs)[None, :],
            other=0.0,
        )
        total = tl.dot(h, w, total, input_precision=PRECISION)
    return total


@jit
def jumps(  # noqa: D103 - the header of this file says what it computes
    obs: tl.tensor,  # (S, rows, OBS)
    noise: tl.tensor,  # (S, rows, ACT)
    out: tl.tensor,  # (S, rows, ACT)
    mean: tl.tensor,  # (S or 1, OBS), like scale
    scale: tl.tensor,
    center: tl.tensor,  # (ACT,), like spread
    spread: tl.tensor,
    weights: tl.tuple,  # each (S, out, in), of any strides
    biases: tl.tuple,  # each (S, out), of any strides
    constants: tl.tensor,  # (S, STEPS, WIDTHS[0])
    numbers: tl.tensor,  # (STEPS, 3): c_in, alpha, beta
    projected: tl.tensor,  # (programs, TILE, PADDED), scratch
    hidden: tl.tensor,  # (programs, 2, TILE, PADDED), scratch
    rows: tl.int32,
    start: tl.float32,
    zero: tl.int32,  # 0, which the compiler cannot know
    STEPS: tl.constexpr,
    TURNS: tl.constexpr,  # tiles per program
    OBS: tl.constexpr,
    ACT: tl.constexpr,
    WIDTHS: tl.constexpr,  # of the hidden layers
    WEIGHT_STRIDES: tl.constexpr,  # of seed, output and input, layer by layer
    BIAS_STRIDES: tl.constexpr,  # of seed and output, layer by layer
    MEAN_STRIDES: tl.constexpr,  # of seed and feature
    SCALE_STRIDES: tl.constexpr,
    TILE: tl.constexpr,  # rows at a time
    COLUMNS: tl.constexpr,  # outputs of a layer at a time
    SLICE: tl.constexpr,  # inputs of a layer at a time
    PADDED: tl.constexpr,  # the widest hidden layer in whole COLUMNS
    PADDED_ACT: tl.constexpr,
    LAST_SLICE: tl.constexpr,  # inputs of the last layer at a time
    PRECISION: tl.constexpr,  # of factors in float32
    STAGES: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> None:
    seed = tl.program_id(1).to(tl.int64)
    program = seed * tl.num_programs(0) + tl.program_id(0)
    LAYERS: tl.constexpr = len(WIDTHS)
    row_in_tile = tl.arange(0, TILE)
    column = tl.arange(0, COLUMNS)
    act = tl.arange(0, PADDED_ACT)
    scratch = row_in_tile[:, None] * PADDED
    projected += program * (TILE * PADDED)
    hidden += program * (2 * TILE * PADDED)
    first = weights[0] + seed * WEIGHT_STRIDES[0]
    last_bias = tl.load(
        biases[LAYERS] + seed * BIAS_STRIDES[2 * LAYERS] + act * BIAS_STRIDES[2 * LAYERS + 1],
        mask=act < ACT,
        other=0.0,
    )
    mean += seed * MEAN_STRIDES[0]
    scale += seed * SCALE_STRIDES[0]
    constants += seed * STEPS * WIDTHS[0]

    for turn in tl.range(0, TURNS, num_stages=1):
        row = (turn * tl.num_programs(0) + tl.program_id(0)) * TILE + row_in_tile
        place = seed * rows + row
        here = (row < rows)[:, None]
        tl.debug_barrier()  # the tile before has been read
        for n in tl.range(0, WIDTHS[0], COLUMNS, num_stages=1):
            j = n + column
            h = tl.full([TILE, COLUMNS], 0.0, tl.float32)
            for k in tl.range(0, OBS, 16, num_stages=1):
                i = k + tl.arange(0, 16)
                o = tl.load(
                    obs + place[:, None] * OBS + i[None, :],
                    mask=here & (i < OBS)[None, :],
                    other=0.0,
                )
                o -= tl.load(mean + i * MEAN_STRIDES[1], mask=i < OBS, other=0.0)[None, :]
                o /= tl.load(scale + i * SCALE_STRIDES[1], mask=i < OBS, other=1.0)[None, :]
                w = tl.load(
                    first + j[None, :] * WEIGHT_STRIDES[1] + i[:, None] * WEIGHT_STRIDES[2],
                    mask=(i < OBS)[:, None] & (j < WIDTHS[0])[None, :],
                    other=0.0,
                )
                h = tl.dot(o, w, h, input_precision=PRECISION)
            tl.store(projected + scratch + j[None, :], h)

        here &= (act < ACT)[None, :]
        x = start * tl.load(noise + place[:, None] * ACT + act[None, :], mask=here, other=0.0)
        for step in tl.range(0, STEPS, num_stages=1):
            fed = x * tl.load(numbers + 3 * step)
            tl.debug_barrier()  # what was written can be read, what was read can be overwritten
            for n in tl.range(0, WIDTHS[0], COLUMNS, num_stages=1):
                j = n + column
                h = tl.load(projected + scratch + j[None, :])
                r = tl.load(constants + step * WIDTHS[0] + j, mask=j < WIDTHS[0], other=0.0)
                w = tl.load(
                    first
                    + j[None, :] * WEIGHT_STRIDES[1]
                    + (OBS + act[:, None]) * WEIGHT_STRIDES[2],
                    mask=(act < ACT)[:, None] & (j < WIDTHS[0])[None, :],
                    other=0.0,
                )
                h = mish(tl.dot(fed, w, h + r[None, :], input_precision=PRECISION))
                tl.store(hidden + scratch + j[None, :], h.to(hidden.dtype.element_ty))
            for layer in tl.static_range(1, LAYERS):
                source = hidden + ((layer - 1) % 2) * (TILE * PADDED)
                target = hidden + (layer % 2) * (TILE * PADDED)
                tl.debug_barrier()
                for n in tl.range(0, WIDTHS[layer], COLUMNS):
                    j = n + column
                    h = product(
                        source + scratch,
                        weights[layer] + seed * WEIGHT_STRIDES[3 * layer],
                        WEIGHT_STRIDES[3 * layer + 1],
                        WEIGHT_STRIDES[3 * layer + 2],
                        j,
                        WIDTHS[layer],
                        WIDTHS[layer - 1],
                        zero,
                        TILE,
                        COLUMNS,
                        SLICE,
                        PRECISION,
                        STAGES,
                        INTERPRETED,
                    )
                    b = tl.load(
                        biases[layer]
                        + seed * BIAS_STRIDES[2 * layer]
                        + j * BIAS_STRIDES[2 * layer + 1],
                        mask=j < WIDTHS[layer],
                        other=0.0,
                    )
                    h = mish(h + b[None, :])
                    tl.store(target + scratch + j[None, :], h.to(hidden.dtype.element_ty))
            tl.debug_barrier()
            raw = product(
                hidden + ((LAYERS - 1) % 2) * (TILE * PADDED) + scratch,
                weights[LAYERS] + seed * WEIGHT_STRIDES[3 * LAYERS],
                WEIGHT_STRIDES[3 * LAYERS + 1],
                WEIGHT_STRIDES[3 * LAYERS + 2],
                act,
                ACT,
                WIDTHS[LAYERS - 1],
                zero,
                TILE,
                PADDED_ACT,
                LAST_SLICE,
                PRECISION,
                STAGES,
                INTERPRETED,
            )
            alpha, beta = tl.load(numbers + 3 * step + 1), tl.load(numbers + 3 * step + 2)
            x = alpha * x + beta * (raw + last_bias[None, :])
        c = tl.load(center + act, mask=act < ACT, other=0.0)
        x = c[None, :] + tl.load(spread + act, mask=act < ACT, other=1.0)[None, :] * x
        # Not by minimum and maximum: on a GPU those turn what is not a number into a bound.
        x = tl.where(x > 1.0, 1.0, tl.where(x < -1.0, -1.0, x))
        tl.store(out + place[:, None] * ACT + act[None, :], x, mask=here)
