r"""What an update computes between its networks, and the steps of its optimisers, in Triton.

Rows of the actor's network come in two parts, those of the M jumps first, then those of the B
denoised actions. Formulas are those of `gtp_policy.loss`, `gtp_policy.teachers`,
`gtp_policy.functional` and `torch.optim.Adam`. S seeds lie side by side; a program along the last
axis of the grid belongs to one of them. What is summed over a minibatch is summed by one program,
in a fixed order.

Triton decides whether to compile or to interpret when this module is imported.
"""

from __future__ import annotations  # without Triton there is no `tl` for the kernels' annotations

from gtp_policy.kernels.triton_jit import INSTALLED as INSTALLED
from gtp_policy.kernels.triton_jit import interpreted, jit, tl

INTERPRETED: bool = interpreted()


# --- critics


@jit
def join(
    obs: tl.tensor,  # (S, B, O)
    obs_s: tl.int64,  # strides by seed and row
    obs_r: tl.int64,
    mean: tl.tensor,  # (S, O), like scale
    scale: tl.tensor,
    mean_s: tl.int64,
    action: tl.tensor,  # (S, n, B, A)
    action_s: tl.int64,
    action_n: tl.int64,
    action_r: tl.int64,
    action_d: tl.int64,
    out: tl.tensor,  # (S, n, B, O + A)
    batch: tl.int32,
    copies: tl.int32,
    OBS: tl.constexpr,
    ACT: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Normalised observations next to actions, n for each."""
    seed = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    exists = row < copies * batch
    copy, place = row // batch, row % batch
    of_obs = exists[:, None] & (column < OBS)[None, :]
    value = tl.load(
        obs + seed * obs_s + place[:, None] * obs_r + column[None, :], mask=of_obs, other=0.0
    )
    value -= tl.load(mean + seed * mean_s + column, mask=column < OBS, other=0.0)[None, :]
    value /= tl.load(scale + seed * mean_s + column, mask=column < OBS, other=1.0)[None, :]
    dim = column - OBS
    of_action = exists[:, None] & ((dim >= 0) & (dim < ACT))[None, :]
    value += tl.load(
        action
        + seed * action_s
        + copy[:, None] * action_n
        + place[:, None] * action_r
        + dim[None, :] * action_d,
        mask=of_action,
        other=0.0,
    )
    into = out + (seed * copies * batch + row)[:, None] * (OBS + ACT) + column[None, :]
    tl.store(into, value, mask=of_obs | of_action)


@jit
def critic_error(
    q: tl.tensor,  # (S, MEMBERS, B)
    y: tl.tensor,  # (S, B)
    upstream: tl.tensor,  # (S, MEMBERS, B)
    metrics: tl.tensor,  # (2, S): loss, mean of q
    seeds: tl.int32,
    BATCH: tl.constexpr,
    MEMBERS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """The gradient of the mean of (Q - y)^2 by Q, that mean, and the mean of Q."""
    seed = tl.program_id(0).to(tl.int64)
    loss = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, BATCH, ROWS):
        row = start + tl.arange(0, ROWS)
        target = tl.load(y + seed * BATCH + row, mask=row < BATCH, other=0.0)
        for member in range(MEMBERS):
            place = (seed * MEMBERS + member) * BATCH + row
            value = tl.load(q + place, mask=row < BATCH, other=0.0)
            error = value - target
            tl.store(upstream + place, error * (2.0 / (MEMBERS * BATCH)), mask=row < BATCH)
            loss += error * error
            total += value
    tl.store(metrics + seed, tl.sum(loss, 0) / (MEMBERS * BATCH))
    tl.store(metrics + seeds + seed, tl.sum(total, 0) / (MEMBERS * BATCH))


@jit
def weights(
    advantage: tl.tensor,  # (S, BATCH)
    weight: tl.tensor,  # (S, BATCH)
    metrics: tl.tensor,  # (6, S), as `gtp_policy.algorithm.weight_metrics` has them
    seeds: tl.int32,
    TINY: tl.constexpr,
    ETA: tl.constexpr,
    EPS: tl.constexpr,
    LIMIT: tl.constexpr,  # of the exponent
    MOST: tl.constexpr,
    SIGNED: tl.constexpr,
    SHARE: tl.constexpr,  # of an effective sample; 0: ETA is the temperature
    HALVINGS: tl.constexpr,
    BATCH: tl.constexpr,
    PADDED: tl.constexpr,
) -> None:
    """Exponential weights of advantages, and metrics of both."""
    seed = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, PADDED)
    here = row < BATCH
    a = tl.load(advantage + seed * BATCH + row, mask=here, other=0.0)
    bad = tl.sum(tl.where(a == a, 0, 1), 0) > 0  # a maximum would pass over what is no number
    largest = tl.maximum(tl.max(tl.abs(a), 0), TINY)
    scaled = a / largest
    centred = tl.where(here, scaled - tl.sum(scaled, 0) / BATCH, 0.0)
    std = tl.sqrt(tl.sum(centred * centred, 0) / BATCH)
    spread = tl.maximum(std + EPS / largest, TINY)
    counted = scaled if SIGNED else tl.maximum(scaled, 0.0)
    temperature = ETA
    if SHARE > 0.0:
        relative = (counted - tl.max(tl.where(here, counted, -float("inf")), 0)) / spread
        low = largest * 0.0 - 10.0
        high = largest * 0.0 + 10.0
        for _ in range(HALVINGS):
            middle = (low + high) * 0.5
            w = tl.where(here, tl.exp(tl.exp2(middle) * relative), 0.0)
            total = tl.sum(w, 0) / BATCH
            larger = total * total / (tl.sum(w * w, 0) / BATCH) > SHARE
            low = tl.where(larger, middle, low)
            high = tl.where(larger, high, middle)
        temperature = tl.exp2((low + high) * 0.5)
    exponent = temperature * counted / spread
    bounded = tl.minimum(exponent, LIMIT)
    if SIGNED:
        bounded = tl.maximum(bounded, -LIMIT)
    w = tl.minimum(tl.exp(bounded), MOST)
    # exp(log(cap)) may round below the cap; at the cap means exactly the cap.
    w = tl.where(exponent >= LIMIT, MOST, w)
    w = tl.where(bad, float("nan"), w)
    tl.store(weight + seed * BATCH + row, w, mask=here)
    w = tl.where(here, w, 0.0)
    most = tl.max(w, 0)
    most = tl.where(bad, float("nan"), most)
    # Squares of scaled weights: weights up to 1e30 are legal.
    relative = w / most
    total = tl.sum(relative, 0)
    metrics += seed
    tl.store(metrics, tl.sum(a, 0) / BATCH)
    tl.store(metrics + seeds, tl.where(bad, float("nan"), std * largest))
    tl.store(metrics + 2 * seeds, tl.sum(w, 0) / BATCH)
    tl.store(metrics + 3 * seeds, most)
    tl.store(metrics + 4 * seeds, tl.sum(tl.where(here & (w >= MOST), 1.0, 0.0), 0) / BATCH)
    tl.store(metrics + 5 * seeds, total * total / tl.sum(relative * relative, 0) / BATCH)


# --- flow maps


@jit
def _signal(t: tl.tensor, LINEAR: tl.constexpr) -> tl.tensor:
    """Returns the share of the action at a time: 1, or 1 - t on the linear path."""
    return 1.0 - t if LINEAR else t * 0.0 + 1.0


@jit
def _skip(t: tl.tensor, SIGMA: tl.constexpr, LINEAR: tl.constexpr) -> tl.tensor:
    share = _signal(t, LINEAR)
    return SIGMA * SIGMA / (t * t + share * share * (SIGMA * SIGMA)) * share


@jit
def _out(t: tl.tensor, SIGMA: tl.constexpr, LINEAR: tl.constexpr) -> tl.tensor:
    share = _signal(t, LINEAR)
    return t * SIGMA / tl.sqrt(t * t + share * share * (SIGMA * SIGMA))


@jit
def _inner(t: tl.tensor, SIGMA: tl.constexpr, LINEAR: tl.constexpr) -> tl.tensor:
    share = _signal(t, LINEAR)
    return 1.0 / tl.sqrt(t * t + share * share * (SIGMA * SIGMA))


@jit
def _angle(
    t: tl.tensor, FLOOR: tl.constexpr, RATIO: tl.constexpr, LINEAR: tl.constexpr
) -> tl.tensor:
    """Returns the logarithm that a time is embedded by; RATIO: of noise over signal."""
    if RATIO:
        y = tl.log((t + FLOOR) / (_signal(t, LINEAR) + FLOOR))
    else:
        y = 0.25 * tl.log(tl.maximum(t, FLOOR))
    return y


@jit
def flow_inputs(
    obs: tl.tensor,  # (S, B, O)
    obs_s: tl.int64,
    obs_r: tl.int64,
    mean: tl.tensor,  # (S, O), like scale
    scale: tl.tensor,
    mean_s: tl.int64,
    action: tl.tensor,  # (S, B, A)
    action_s: tl.int64,
    action_r: tl.int64,
    center: tl.tensor,  # (A,), like spread: what actions are standardised by
    spread: tl.tensor,
    z: tl.tensor,  # (S, B, A)
    t: tl.tensor,  # (S, M), like u and s
    u: tl.tensor,
    s: tl.tensor,
    tau: tl.tensor,  # (S, B)
    frequencies: tl.tensor,  # (HALF,)
    first: tl.tensor,  # (S, M, A): what the first of two jumps of the teacher gave
    own: tl.tensor,  # (S, M + B, INPUTS): of the actor that is trained
    taught: tl.tensor,  # (S, M, INPUTS): of its teacher
    M: tl.int32,
    batch: tl.int32,
    rows: tl.int32,  # that are written: of both, or of a second jump alone
    OBS: tl.constexpr,
    ACT: tl.constexpr,
    HALF: tl.constexpr,
    PADDED_OBS: tl.constexpr,
    PADDED_ACT: tl.constexpr,
    PADDED_HALF: tl.constexpr,
    ROWS: tl.constexpr,
    SIGMA: tl.constexpr,
    FLOOR: tl.constexpr,
    RATIO: tl.constexpr,
    LINEAR: tl.constexpr,
    STANDARD: tl.constexpr,
    TEACHER: tl.constexpr,  # 0: none or another one, 1: surrogate, 2: two jumps
    SECOND: tl.constexpr,  # whether this is the second of two jumps
) -> None:
    """What networks get: observation, noisy action and two times, for each of their rows."""
    seed = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = row < rows
    # Where in the output a row is, and what transition it belongs to.
    is_flow = (row >= M) & (row < M + batch) & (not SECOND)
    is_taught = (row >= M + batch) | SECOND
    of_taught = row if SECOND else row - M - batch
    place = tl.where(is_taught, of_taught, tl.where(is_flow, row - M, row))
    of_jump = exists & ((row < M) | is_taught)
    t_row = tl.load(t + seed * M + place, mask=of_jump, other=1.0)
    u_row = tl.load(u + seed * M + place, mask=of_jump, other=1.0)
    s_row = tl.load(s + seed * M + place, mask=of_jump, other=0.0)
    tau_row = tl.load(tau + seed * batch + place, mask=exists & is_flow, other=1.0)
    point = tl.where(is_flow, tau_row, t_row)  # the time of the noisy action
    begin = point
    end = tl.where(is_flow, tau_row, s_row)
    if TEACHER == 1 or SECOND:
        point = tl.where(is_taught, u_row, point)
        # A flow map starts at positive times only; where u = 0 its answer gets no share.
        begin = tl.where(is_taught, tl.where(u_row > 0.0, u_row, t_row), begin)
    elif TEACHER == 2:
        end = tl.where(is_taught, tl.where(u_row > s_row, u_row, t_row), end)

    act = tl.arange(0, PADDED_ACT)
    real = act < ACT
    here = exists[:, None] & real[None, :]
    a = tl.load(
        action + seed * action_s + place[:, None] * action_r + act[None, :], mask=here, other=0.0
    )
    if STANDARD:
        a -= tl.load(center + act, mask=real, other=0.0)[None, :]
        a /= tl.load(spread + act, mask=real, other=1.0)[None, :]
    noise = tl.load(z + (seed * batch + place)[:, None] * ACT + act[None, :], mask=here, other=0.0)
    x = _signal(point, LINEAR)[:, None] * a + point[:, None] * noise
    if SECOND:
        x_t = _signal(t_row, LINEAR)[:, None] * a + t_row[:, None] * noise
        raw = tl.load(
            first + (seed * M + place)[:, None] * ACT + act[None, :], mask=here, other=0.0
        )
        endpoint = _skip(t_row, SIGMA, LINEAR)[:, None] * x_t
        endpoint += _out(t_row, SIGMA, LINEAR)[:, None] * raw
        x += ((t_row - u_row) / t_row)[:, None] * (endpoint - a)
    x *= _inner(begin, SIGMA, LINEAR)[:, None]

    INPUTS: tl.constexpr = OBS + ACT + 4 * HALF
    to_taught = exists & is_taught
    to_own = exists & (row < M + batch) & (not SECOND)
    own += (seed * (M + batch) + row)[:, None] * INPUTS
    taught += (seed * M + place)[:, None] * INPUTS
    tl.store(own + OBS + act[None, :], x, mask=to_own[:, None] & real[None, :])
    tl.store(taught + OBS + act[None, :], x, mask=to_taught[:, None] & real[None, :])

    column = tl.arange(0, PADDED_OBS)
    real = column < OBS
    o = tl.load(
        obs + seed * obs_s + place[:, None] * obs_r + column[None, :],
        mask=exists[:, None] & real[None, :],
        other=0.0,
    )
    o -= tl.load(mean + seed * mean_s + column, mask=real, other=0.0)[None, :]
    o /= tl.load(scale + seed * mean_s + column, mask=real, other=1.0)[None, :]
    tl.store(own + column[None, :], o, mask=to_own[:, None] & real[None, :])
    tl.store(taught + column[None, :], o, mask=to_taught[:, None] & real[None, :])

    half = tl.arange(0, PADDED_HALF)
    real = half < HALF
    f = tl.load(frequencies + half, mask=real, other=0.0)
    into_own = own + OBS + ACT + half[None, :]
    into_taught = taught + OBS + ACT + half[None, :]
    own_mask = to_own[:, None] & real[None, :]
    taught_mask = to_taught[:, None] & real[None, :]
    for which in tl.static_range(0, 2):
        angle = _angle(begin if which == 0 else end, FLOOR, RATIO, LINEAR)[:, None] * f[None, :]
        tl.store(into_own + 2 * HALF * which, tl.sin(angle), mask=own_mask)
        tl.store(into_own + 2 * HALF * which + HALF, tl.cos(angle), mask=own_mask)
        tl.store(into_taught + 2 * HALF * which, tl.sin(angle), mask=taught_mask)
        tl.store(into_taught + 2 * HALF * which + HALF, tl.cos(angle), mask=taught_mask)


@jit
def _distance(
    residual: tl.tensor,
    POWER: tl.constexpr,
    CONSTANT: tl.constexpr,
    HUBER: tl.constexpr,
    SHARE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Returns distances of rows, and the factor from residuals to the distance's gradient."""
    square = tl.sum(residual * residual, 1) * SHARE
    if POWER > 0.0:
        factor = tl.exp(-POWER * tl.log(square + CONSTANT))
        distance = square * factor
        slope = 2.0 * SHARE * factor
    elif HUBER > 0.0:
        root = tl.sqrt(square + HUBER * HUBER)
        distance = root - HUBER
        slope = SHARE / root
    else:
        distance = square
        slope = square * 0.0 + 2.0 * SHARE
    return distance, slope


@jit
def flow_loss(
    action: tl.tensor,
    action_s: tl.int64,
    action_r: tl.int64,
    center: tl.tensor,
    spread: tl.tensor,
    z: tl.tensor,
    t: tl.tensor,
    u: tl.tensor,
    s: tl.tensor,
    tau: tl.tensor,
    weight: tl.tensor,  # (S, BATCH)
    raw: tl.tensor,  # (S, M + BATCH, A): of the actor's network
    first: tl.tensor,  # (S, M, A): of the teacher's, for the first of two jumps
    second: tl.tensor,  # (S, M, A): for its last jump; or what another teacher taught
    upstream: tl.tensor,  # (S, M + BATCH, A)
    metrics: tl.tensor,  # (3, S): loss, consistency, flow
    seeds: tl.int32,
    M: tl.constexpr,
    BATCH: tl.constexpr,
    ACT: tl.constexpr,
    PADDED_ACT: tl.constexpr,
    ROWS: tl.constexpr,
    SIGMA: tl.constexpr,
    LINEAR: tl.constexpr,
    STANDARD: tl.constexpr,
    TEACHER: tl.constexpr,  # 0: another one, 1: surrogate, 2: two jumps
    WEIGHTED: tl.constexpr,
    FLOW_WEIGHT: tl.constexpr,
    VELOCITY: tl.constexpr,
    TIME_WEIGHT: tl.constexpr,  # 0: none, 1: gap, 2: endpoint, 3: edm
    POWER: tl.constexpr,
    FLOW_POWER: tl.constexpr,
    CONSTANT: tl.constexpr,
    HUBER: tl.constexpr,
    SHARE: tl.constexpr,
) -> None:
    """Both losses of the actor, and their gradient by its network's output."""
    seed = tl.program_id(0).to(tl.int64)
    act = tl.arange(0, PADDED_ACT)
    real = act < ACT
    consistency = tl.zeros([ROWS], tl.float32)
    flow = tl.zeros([ROWS], tl.float32)
    raw += seed * (M + BATCH) * ACT
    upstream += seed * (M + BATCH) * ACT
    for start in range(0, BATCH, ROWS):
        row = start + tl.arange(0, ROWS)
        here = (row < BATCH)[:, None] & real[None, :]
        place = row[:, None] * ACT + act[None, :]
        a = tl.load(
            action + seed * action_s + row[:, None] * action_r + act[None, :], mask=here, other=0.0
        )
        if STANDARD:
            a -= tl.load(center + act, mask=real, other=0.0)[None, :]
            a /= tl.load(spread + act, mask=real, other=1.0)[None, :]
        noise = tl.load(z + seed * BATCH * ACT + place, mask=here, other=0.0)
        w = tl.full([ROWS], 1.0, tl.float32)
        if WEIGHTED:
            w = tl.load(weight + seed * BATCH + row, mask=row < BATCH, other=0.0)
        w = tl.where(row < BATCH, w, 0.0)

        at = tl.load(tau + seed * BATCH + row, mask=row < BATCH, other=1.0)
        x = _signal(at, LINEAR)[:, None] * a + at[:, None] * noise
        out = _out(at, SIGMA, LINEAR)
        denoised = _skip(at, SIGMA, LINEAR)[:, None] * x
        denoised += out[:, None] * tl.load(raw + M * ACT + place, mask=here, other=0.0)
        residual = denoised - a
        unit = 1.0 / at if VELOCITY else at * 0.0 + 1.0
        residual *= unit[:, None]
        distance, slope = _distance(residual, FLOW_POWER, CONSTANT, HUBER, SHARE)
        on = w * (1.0 / BATCH)
        if TIME_WEIGHT == 3:
            on *= 1.0 / (out * out)
        flow += on * distance
        by_raw = (FLOW_WEIGHT * on * unit * out * slope)[:, None] * residual
        tl.store(upstream + M * ACT + place, by_raw, mask=here)

        if start < M:
            exists = row < M
            here = exists[:, None] & real[None, :]
            t_row = tl.load(t + seed * M + row, mask=exists, other=1.0)
            u_row = tl.load(u + seed * M + row, mask=exists, other=0.5)
            s_row = tl.load(s + seed * M + row, mask=exists, other=0.0)
            x = _signal(t_row, LINEAR)[:, None] * a + t_row[:, None] * noise
            skip, out = _skip(t_row, SIGMA, LINEAR), _out(t_row, SIGMA, LINEAR)
            taught = tl.load(second + seed * M * ACT + place, mask=here, other=0.0)
            if TEACHER > 0:
                begin = tl.where(u_row > 0.0, u_row, t_row)
                x_u = _signal(u_row, LINEAR)[:, None] * a + u_row[:, None] * noise
                deviation = x_u * 0.0
                if TEACHER == 2:
                    jumped = tl.load(first + seed * M * ACT + place, mask=here, other=0.0)
                    jumped = skip[:, None] * x + out[:, None] * jumped
                    deviation = ((t_row - u_row) / t_row)[:, None] * (jumped - a)
                x_u += deviation
                endpoint = _skip(begin, SIGMA, LINEAR)[:, None] * x_u
                endpoint += _out(begin, SIGMA, LINEAR)[:, None] * taught
                part = tl.where(u_row > 0.0, (u_row - s_row) / begin, 0.0)[:, None]
                taught = part * (endpoint - a) + (1.0 - part) * deviation
            arrival = skip[:, None] * x
            arrival += out[:, None] * tl.load(raw + place, mask=here, other=0.0)
            part = (t_row - s_row) / t_row
            residual = tl.where(here, part[:, None] * (arrival - a) - taught, 0.0)
            unit = 1.0 / (t_row - s_row) if VELOCITY else t_row * 0.0 + 1.0
            residual *= unit[:, None]
            distance, slope = _distance(residual, POWER, CONSTANT, HUBER, SHARE)
            on = w * (1.0 / M)
            if TIME_WEIGHT == 1:
                on *= 1.0 / (t_row - u_row)
            elif TIME_WEIGHT == 2:
                back = 1.0 - s_row / t_row
                on *= 1.0 / (back * back)
            elif TIME_WEIGHT == 3:
                on *= 1.0 / (out * out)
            on = tl.where(exists, on, 0.0)
            consistency += on * distance
            by_raw = (on * part * unit * out * slope)[:, None] * residual
            tl.store(upstream + place, by_raw, mask=here)
    of_jumps, of_flow = tl.sum(consistency, 0), tl.sum(flow, 0)
    tl.store(metrics + seed, of_jumps + FLOW_WEIGHT * of_flow)
    tl.store(metrics + seeds + seed, of_jumps)
    tl.store(metrics + 2 * seeds + seed, of_flow)


# --- optimisers


@jit
def gradient_norms(
    table: tl.tensor,  # (chunks, 6) addresses and numbers: see `gtp_policy.kernels.update_triton`
    partial: tl.tensor,  # (chunks,)
    CHUNK: tl.constexpr,
) -> None:
    """The sum of squares of every chunk's gradients; and counts the step, once per parameter."""
    chunk = tl.program_id(0)
    table += chunk * 6
    gradient = tl.load(table + 1).to(tl.pointer_type(tl.float32))
    size = tl.load(table + 4)
    i = tl.arange(0, CHUNK)
    g = tl.load(gradient + i, mask=i < tl.abs(size), other=0.0)
    tl.store(partial + chunk, tl.sum(g * g, 0))
    if size < 0:  # the first chunk of a parameter
        count = tl.load(table + 5).to(tl.pointer_type(tl.float32))
        tl.store(count, tl.load(count) + 1.0)


@jit
def adam(
    table: tl.tensor,  # (chunks, 6), those of a seed one after the other
    partial: tl.tensor,  # (chunks,)
    rate: tl.tensor,  # ()
    norms: tl.tensor,  # (S,)
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,  # per seed
    PADDED: tl.constexpr,
    MOST: tl.constexpr,  # the norm that gradients are clipped to; 0: they are not
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    LOG_BETA1: tl.constexpr,
    LOG_BETA2: tl.constexpr,
    EPS: tl.constexpr,
) -> None:
    """A step of Adam on clipped gradients."""
    chunk = tl.program_id(0)
    seed = chunk // CHUNKS
    every = tl.arange(0, PADDED)
    squares = tl.load(partial + seed * CHUNKS + every, mask=every < CHUNKS, other=0.0)
    norm = tl.sqrt(tl.sum(squares, 0))
    if chunk % CHUNKS == 0:
        tl.store(norms + seed, norm)
    table += chunk * 6
    p = tl.load(table).to(tl.pointer_type(tl.float32))
    gradient = tl.load(table + 1).to(tl.pointer_type(tl.float32))
    mean = tl.load(table + 2).to(tl.pointer_type(tl.float32))
    square = tl.load(table + 3).to(tl.pointer_type(tl.float32))
    count = tl.load(tl.load(table + 5).to(tl.pointer_type(tl.float32))).to(tl.float64)
    i = tl.arange(0, CHUNK)
    here = i < tl.abs(tl.load(table + 4))
    g = tl.load(gradient + i, mask=here, other=0.0)
    if MOST > 0.0:
        divisor = (norm + 1e-6) / MOST
        # Not by a maximum: that would pass over what is no number.
        g /= tl.where(divisor < 1.0, 1.0, divisor)
        tl.store(gradient + i, g, mask=here)  # where the reference leaves them, too
    m = tl.load(mean + i, mask=here, other=0.0)
    v = tl.load(square + i, mask=here, other=0.0)
    m += (1.0 - BETA1) * (g - m)
    v = BETA2 * v + (1.0 - BETA2) * g * g
    # In double precision: near 1, a power of a beta has few digits.
    correction1 = 1.0 - tl.exp(count * LOG_BETA1)
    correction2 = tl.sqrt(1.0 - tl.exp(count * LOG_BETA2))
    size = (tl.load(rate).to(tl.float64) / correction1).to(tl.float32)
    denominator = tl.sqrt(v) / correction2.to(tl.float32) + EPS
    value = tl.load(p + i, mask=here, other=0.0) - size * m / denominator
    tl.store(p + i, value, mask=here)
    tl.store(mean + i, m, mask=here)
    tl.store(square + i, v, mask=here)


@jit
def follow(
    table: tl.tensor,  # (chunks, 3): addresses of target and source, size
    rates: tl.tensor,  # (chunks,)
    CHUNK: tl.constexpr,
) -> None:
    """Moves target networks towards their networks; at rate 1 it copies."""
    chunk = tl.program_id(0)
    table += chunk * 3
    target = tl.load(table).to(tl.pointer_type(tl.float32))
    source = tl.load(table + 1).to(tl.pointer_type(tl.float32))
    i = tl.arange(0, CHUNK)
    here = i < tl.load(table + 2)
    rate = tl.load(rates + chunk)
    a = tl.load(target + i, mask=here, other=0.0)
    b = tl.load(source + i, mask=here, other=0.0)
    # From the nearer end, as torch does.
    moved = tl.where(rate < 0.5, a + rate * (b - a), b - (1.0 - rate) * (b - a))
    tl.store(target + i, moved, mask=here)
