"""What an update computes between its networks, and the steps of its optimisers, by Triton.

Plain tensors go in and out: S seeds, B rows each. Tested through Triton's interpreter on the CPU
against the reference, and compiled without a GPU.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gtp_policy.kernels import triton_launch
from gtp_policy.kernels import update_triton_kernel as kernel
from gtp_policy.kernels.triton_launch import power_of_two

# Elements of a parameter that a program carries.
_CHUNK = 2048
# A program holds a whole minibatch of advantages.
MOST_WEIGHTS = 8192


def join(obs: Tensor, mean: Tensor, scale: Tensor, action: Tensor, out: Tensor) -> None:
    """Fills a critic's inputs: normalised observations next to actions.

    Args:
        obs: Shape (S, B, O), its last dimension contiguous.
        mean: Shape (S, 1, O), like ``scale``, of the same strides.
        scale: Standard deviation.
        action: Shape (S, n, B, A).
        out: Shape (S, n B, O + A), contiguous.
    """
    copies, batch, act = action.shape[1:]
    width = obs.shape[-1] + act
    padded = power_of_two(width)
    tile = max(1024 // padded, 1)
    triton_launch.launch(
        kernel.join,
        (-(-copies * batch // tile), len(obs)),
        out,
        obs,
        *obs.stride()[:2],
        mean,
        scale,
        mean.stride(0),
        action,
        *action.stride(),
        out,
        batch,
        copies,
        OBS=obs.shape[-1],
        ACT=act,
        PADDED=padded,
        ROWS=tile,
    )


def critic_error(q: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradient of the mean of (Q - y)^2 by Q, and that mean and the mean of Q.

    Args:
        q: Shape (S, N, B), contiguous.
        y: Shape (S, B), contiguous.

    Returns:
        Of shapes (S, N, B) and (2, S).
    """
    seeds, members, batch = q.shape
    upstream, metrics = torch.empty_like(q), q.new_empty(2, seeds)
    triton_launch.launch(
        kernel.critic_error,
        (seeds,),
        q,
        q,
        y,
        upstream,
        metrics,
        seeds,
        BATCH=batch,
        MEMBERS=members,
        ROWS=min(power_of_two(batch), 256),
    )
    return upstream, metrics


def weights(
    advantage: Tensor,
    eta: float,
    eps: float,
    max_weight: float,
    signed: bool,
    effective_share: float | None,
    halvings: int,
) -> tuple[Tensor, Tensor]:
    """Returns `gtp_policy.functional.advantage_weights` of every seed, and metrics.

    Args:
        advantage: Shape (S, B), contiguous, of at most `MOST_WEIGHTS` rows.
        eta: As there, like all that follow.
        eps: Added to the standard deviation.
        max_weight: Largest weight.
        signed: Whether negative advantages count as they are.
        effective_share: Share of the batch; None: ``eta`` is the temperature.
        halvings: Steps to find the temperature in.

    Returns:
        Of shapes (S, B) and (6, S).
    """
    seeds, batch = advantage.shape
    weight, metrics = torch.empty_like(advantage), advantage.new_empty(6, seeds)
    triton_launch.launch(
        kernel.weights,
        (seeds,),
        advantage,
        advantage,
        weight,
        metrics,
        seeds,
        TINY=torch.finfo(torch.float32).tiny,
        ETA=float(eta),
        EPS=float(eps),
        LIMIT=math.log(max_weight),
        MOST=float(max_weight),
        SIGNED=signed,
        SHARE=effective_share or 0.0,
        HALVINGS=halvings,
        BATCH=batch,
        PADDED=power_of_two(batch),
    )
    return weight, metrics


class Flow(NamedTuple):
    """The choices of a flow map and of its losses, as kernels take them."""

    sigma: float
    floor: float  # of the embedding of times
    ratio: bool  # whether times are embedded by noise over signal
    linear: bool  # the path
    standard: bool  # whether actions are standardised
    teacher: int  # 0: none or another one, 1: surrogate, 2: two jumps
    flow_weight: float
    velocity: bool
    time_weight: int  # 0: none, 1: gap, 2: endpoint, 3: edm
    power: float
    flow_power: float
    constant: float
    huber: float  # 0: squared L2
    share: float  # of a dimension's square in a distance


class FlowRows(NamedTuple):
    """What the losses of an actor are taken of."""

    obs: Tensor  # (S, B, O), its last dimension contiguous, like the actions'
    mean: Tensor  # (S, 1, O), like scale, of the same strides
    scale: Tensor
    action: Tensor  # (S, B, A)
    center: Tensor  # (A,), like spread
    spread: Tensor
    z: Tensor  # (S, B, A), contiguous like all that follow
    t: Tensor  # (S, M), like u and s
    u: Tensor
    s: Tensor
    tau: Tensor  # (S, B)


def flow_inputs(
    flow: Flow,
    rows: FlowRows,
    frequencies: Tensor,
    own: Tensor | None,
    taught: Tensor | None,
    first: Tensor | None = None,
) -> None:
    """Fills what networks get: the actor that is trained, and its teacher.

    Args:
        flow: The choices.
        rows: Transitions, noise and times.
        frequencies: Of the embedding.
        own: Of the actor, (S, M + B, I); None with ``first``.
        taught: Of the teacher's first jump, (S, M, I); None where there is none.
        first: What the teacher's network gave for the first of two jumps, (S, M, A): its second
            jump's inputs are filled then, and nothing else.
    """
    seeds, batch, act = rows.action.shape
    jumps, second = rows.t.shape[1], first is not None
    writes_taught = taught is not None
    count = jumps if second else jumps + batch + jumps * writes_taught
    into = [x for x in (own, taught) if x is not None]
    tile = 16
    triton_launch.launch(
        kernel.flow_inputs,
        (-(-count // tile), seeds),
        rows.z,
        rows.obs,
        *rows.obs.stride()[:2],
        rows.mean,
        rows.scale,
        rows.mean.stride(0),
        rows.action,
        *rows.action.stride()[:2],
        rows.center,
        rows.spread,
        rows.z,
        rows.t,
        rows.u,
        rows.s,
        rows.tau,
        frequencies,
        rows.z if first is None else first,
        into[0],
        into[-1],
        jumps,
        batch,
        count,
        OBS=rows.obs.shape[-1],
        ACT=act,
        HALF=len(frequencies),
        PADDED_OBS=power_of_two(rows.obs.shape[-1]),
        PADDED_ACT=power_of_two(act),
        PADDED_HALF=power_of_two(len(frequencies)),
        ROWS=tile,
        SIGMA=flow.sigma,
        FLOOR=flow.floor,
        RATIO=flow.ratio,
        LINEAR=flow.linear,
        STANDARD=flow.standard,
        TEACHER=flow.teacher,
        SECOND=second,
    )


def flow_loss(
    flow: Flow,
    rows: FlowRows,
    weight: Tensor | None,
    raw: Tensor,
    taught: Tensor | None,
    first: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the gradient of the actor's loss by its network's output, and the losses.

    Args:
        flow: The choices.
        rows: As for `flow_inputs`.
        weight: Shape (S, B), contiguous; None is 1.
        raw: The network's output, (S, M + B, A), contiguous.
        taught: The teacher's network's, for its last jump, (S, M, A), contiguous; of another
            teacher what it taught; None where M is 0.
        first: The same for the first of two jumps.

    Returns:
        Of shapes (S, M + B, A) and (3, S): loss, consistency, flow.
    """
    seeds, batch, act = rows.action.shape
    jumps = 0 if taught is None else rows.t.shape[1]
    upstream, metrics = torch.empty_like(raw), raw.new_empty(3, seeds)
    triton_launch.launch(
        kernel.flow_loss,
        (seeds,),
        raw,
        rows.action,
        *rows.action.stride()[:2],
        rows.center,
        rows.spread,
        rows.z,
        rows.t,
        rows.u,
        rows.s,
        rows.tau,
        raw if weight is None else weight,
        raw,
        raw if first is None else first,
        raw if taught is None else taught,
        upstream,
        metrics,
        seeds,
        M=jumps,
        BATCH=batch,
        ACT=act,
        PADDED_ACT=power_of_two(act),
        ROWS=min(power_of_two(batch), 128),
        SIGMA=flow.sigma,
        LINEAR=flow.linear,
        STANDARD=flow.standard,
        TEACHER=flow.teacher,
        WEIGHTED=weight is not None,
        FLOW_WEIGHT=flow.flow_weight,
        VELOCITY=flow.velocity,
        TIME_WEIGHT=flow.time_weight,
        POWER=flow.power,
        FLOW_POWER=flow.flow_power,
        CONSTANT=flow.constant,
        HUBER=flow.huber,
        SHARE=flow.share,
    )
    return upstream, metrics


class Adam:
    """Steps of Adam for one part of every seed: two launches for all its parameters.

    Addresses are read from a table, as parameters and moments lie where their owners put them.

    Args:
        parameters: Of each seed, contiguous.
        gradients: Like them.
        means: First moments, like them.
        squares: Second moments, like them.
        counts: Numbers of steps, 0-d each, like them.
        max_norm: Norm that each seed's gradients are clipped to, or None.
        betas: As Adam's.
        eps: As Adam's.
    """

    def __init__(
        self,
        parameters: Sequence[Sequence[Tensor]],
        gradients: Sequence[Sequence[Tensor]],
        means: Sequence[Sequence[Tensor]],
        squares: Sequence[Sequence[Tensor]],
        counts: Sequence[Sequence[Tensor]],
        max_norm: float | None,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        self._like, self._seeds = parameters[0][0], len(parameters)
        table = []
        for of_seed in zip(parameters, gradients, means, squares, counts, strict=True):
            for *tensors, count in zip(*of_seed, strict=True):
                places, step = [t.data_ptr() for t in tensors], count.data_ptr()
                for at, size in _chunks(tensors[0]):
                    # The step is counted once, by the program whose size is negative.
                    table.append([*(p + 4 * at for p in places), size if at else -size, step])
        self._chunks = len(table) // self._seeds
        device = self._like.device
        self._table = torch.tensor(table, dtype=torch.int64).to(device)
        self._partial = torch.empty(len(table), dtype=torch.float32, device=device)
        self._constants = {
            "CHUNK": _CHUNK,
            "CHUNKS": self._chunks,
            "PADDED": power_of_two(self._chunks),
            "MOST": max_norm or 0.0,
            "BETA1": float(betas[0]),
            "BETA2": float(betas[1]),
            "LOG_BETA1": math.log(betas[0]) if betas[0] else -math.inf,
            "LOG_BETA2": math.log(betas[1]) if betas[1] else -math.inf,
            "EPS": float(eps),
        }

    def step(self, rate: Tensor) -> Tensor:
        """Does one step and returns the gradients' norms before clipping, (S,).

        Args:
            rate: Learning rate, 0-d, on the device, of single precision.
        """
        norms, grid = self._partial.new_empty(self._seeds), (len(self._table),)
        like, table, partial = self._like, self._table, self._partial
        triton_launch.launch(kernel.gradient_norms, grid, like, table, partial, CHUNK=_CHUNK)
        triton_launch.launch(
            kernel.adam, grid, like, table, partial, rate, norms, **self._constants
        )
        return norms


class Followers:
    """Target networks that follow their networks: one launch for all of them.

    Args:
        pairs: Target, source and rate; both contiguous; rate 1 copies.
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor, float]]) -> None:
        table, rates = [], []
        for target, source, rate in pairs:
            for at, size in _chunks(target):
                table.append([target.data_ptr() + 4 * at, source.data_ptr() + 4 * at, size])
                rates.append(rate)
        self._like = pairs[0][0]
        self._table = torch.tensor(table, dtype=torch.int64).to(self._like.device)
        self._rates = torch.tensor(rates, dtype=torch.float32).to(self._like.device)

    def move(self) -> None:
        """Moves every target towards its source."""
        grid = (len(self._table),)
        triton_launch.launch(
            kernel.follow, grid, self._like, self._table, self._rates, CHUNK=_CHUNK
        )


def _chunks(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Yields where the pieces of a tensor begin, in elements, and their sizes."""
    for at in range(0, tensor.numel(), _CHUNK):
        yield at, min(_CHUNK, tensor.numel() - at)


def unsupported(tensors: Sequence[Tensor]) -> str | None:
    """Returns why the kernels cannot take tensors, or None."""
    return triton_launch.why_not(kernel, tensors)
