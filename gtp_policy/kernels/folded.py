r"""The K jumps of the default network along a fixed grid, folded: without what is constant there.

Along a grid the times are known, and so is the share of the first layer that is made of times
alone. With :math:`x = y + \gamma_i b_n`, where :math:`b_n` is the bias of the last layer, jump i is

.. math:: h_1 = (W_o o + b_1) + r_i + c_{in} W_x y, \quad y' = \alpha_i y + \beta_i W_n h_{n-1}

where :math:`r_i` holds both time embeddings' share and that of :math:`\gamma_i b_n`. That is one
matrix product and one activation per layer, into buffers, instead of some fifty operators a jump.

`Folded` holds a network so; one sampler per backend computes its jumps: `TorchSampler` with torch's
operators on any device, `compiled` one function for few rows where numba is installed,
`gtp_policy.kernels.folded_triton` one kernel on CUDA. All read the parameters where they are on
every call, and wait for no device, so that a CUDA graph can capture them. Several networks of one
shape, those of several seeds, are stacked along a leading axis S of parameters, observations and
noise.
"""

import functools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gtp_policy.errors import DataError, ShapeError
from gtp_policy.kernels.mish import SMALLEST, mish_
from gtp_policy.kernels.numba_loader import load
from gtp_policy.kernels.switch import few_threads

Precision = Literal["fp32", "tf32", "bf16"]
# Elements of a hidden layer at a time on a CPU: what a block of rows needs stays in a core's cache.
_BLOCK = 2**16


class Folded(NamedTuple):
    """A network without what is constant along a grid; ``[S,]`` is the axis of stacked networks.

    Parameters are read where they are: the tensors must share memory with them.
    """

    weights: tuple[Tensor, ...]  # each ([S,] out, in), of every linear layer, any strides
    biases: tuple[Tensor, ...]  # each ([S,] out)
    mean: Tensor  # ([S,] O) or (O,)
    scale: Tensor  # like mean
    center: Tensor  # (A,), what the flow's end is an action by: center + spread x, clipped
    spread: Tensor  # (A,)
    standardised: bool  # whether they are not 0 and 1
    embedded: Tensor  # (K, 2 E), both times of each jump
    start: float  # T
    inner: tuple[float, ...]  # c_in of each jump
    alpha: tuple[float, ...]  # what is kept of the noisy action
    beta: tuple[float, ...]  # what comes of the network's output

    @property
    def stack(self) -> tuple[int, ...]:
        """(S,), or () of a single network."""
        return tuple(self.biases[0].shape[:-1])

    @property
    def obs_dim(self) -> int:
        """O."""
        return self.mean.shape[-1]

    @property
    def action_dim(self) -> int:
        """A."""
        return self.biases[-1].shape[-1]

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return tuple(bias.shape[-1] for bias in self.biases[:-1])

    @property
    def steps(self) -> int:
        """K."""
        return len(self.inner)

    def bias_shares(self) -> tuple[list[float], float]:
        """Returns the last layer's bias in the network's input at each jump, and in the result.

        With x = y + gamma b_n the last layer needs no bias; x's share of it passes c_in.
        """
        gammas = [0.0]
        for alpha, beta in zip(self.alpha, self.beta, strict=True):
            gammas.append(alpha * gammas[-1] + beta)
        gamma = gammas.pop()
        return [g * c for g, c in zip(gammas, self.inner, strict=True)], gamma


class FoldedSampler(ABC):
    """What samplers share: checks, and buffers that outlive the graphs they were captured in.

    Args:
        folded: The network.
    """

    def __init__(self, folded: Folded) -> None:
        self.folded = folded
        self._device = folded.biases[0].device
        self._on_cpu = self._device.type == "cpu"
        self._local = threading.local()  # threads take turns on a stream, at any operator
        self._captured: dict[int, Any] = {}

    def run(self, obs: Tensor, noise: Tensor, out: Tensor | None = None) -> Tensor:
        """Samples actions, after checking that a kernel may read and write what it is going to.

        Args:
            obs: Observation, shape ([S,] B, O), of the network's dtype and on its device.
            noise: z, standard normal, shape ([S,] B, A).
            out: Where the result goes, contiguous, shape ([S,] B, A); default a new tensor.

        Returns:
            Actions in [-1, 1], shape ([S,] B, A).

        Raises:
            ShapeError: If a shape disagrees with the network's dimensions.
            DataError: If a tensor is of another dtype or on another device.
        """
        self._check(obs, noise, out)
        return self.sample(obs, noise, out)

    def sample(self, obs: Tensor, noise: Tensor, out: Tensor | None = None) -> Tensor:
        """Does what `run` does, without its checks."""
        obs, noise = obs.detach(), noise.detach()
        if out is None:
            out = torch.empty_like(noise, memory_format=torch.contiguous_format)
        if obs.shape[-2]:
            self._sample(obs, noise, out)
        return out

    @abstractmethod
    def _sample(self, obs: Tensor, noise: Tensor, out: Tensor) -> None:
        """Fills ``out``."""

    @abstractmethod
    def _allocate(self, rows: int) -> Any:  # noqa: ANN401
        """Returns buffers for a number of rows, whatever `_sample` needs."""

    def _check(self, obs: Tensor, noise: Tensor, out: Tensor | None) -> None:
        stack, rows = self.folded.stack, obs.shape[-2:-1]
        like = self.folded.biases[0]
        expected = {
            "obs": (obs, (*stack, *rows, self.folded.obs_dim)),
            "noise": (noise, (*stack, *rows, self.folded.action_dim)),
            "out": (out, (*stack, *rows, self.folded.action_dim)),
        }
        for name, (tensor, shape) in expected.items():
            if tensor is None:
                continue
            if tuple(tensor.shape) != shape or not rows:
                raise ShapeError(
                    f"`{name}` has the wrong shape: got {tuple(tensor.shape)}, expected {shape}."
                )
            if tensor.dtype != like.dtype or tensor.device != like.device:
                raise DataError(
                    f"`{name}` is of the wrong kind: got {tensor.dtype} on {tensor.device}, "
                    f"expected {like.dtype} on {like.device}. Convert it with .to()."
                )
        if out is not None and not out.is_contiguous():
            raise DataError(
                f"`out` has gaps: got strides {out.stride()}, expected a contiguous tensor."
            )

    def _buffers(self, rows: int) -> Any:  # noqa: ANN401
        """Returns this thread's buffers on the current stream, the last ones if they fit."""
        on_cuda = self._device.type == "cuda"
        stream = torch.cuda.current_stream(self._device).cuda_stream if on_cuda else 0
        by_stream: dict[int, tuple[int, Any]] = self._local.__dict__.setdefault("by_stream", {})
        found = by_stream.get(stream)
        if found is None or found[0] != rows:
            # Made in inference mode, nothing outside could write to them.
            with torch.inference_mode(False):
                found = by_stream[stream] = rows, self._allocate(rows)
        if on_cuda and torch.cuda.is_current_stream_capturing():
            # The graph will write there on every replay, whatever happens in between.
            self._captured[id(found)] = found
        return found[1]


class _Buffers(NamedTuple):
    mean: Tensor  # ([S,] 1, O) or (O,); of a single row (K, O)
    normalised: Tensor  # ([S,] B, O); of a single row (K, O), the same K times
    y: Tensor  # ([S,] B, A), noise that becomes actions
    operators: list[Callable[[], object]]  # what computes the one from the other, in its order


class TorchSampler(FoldedSampler):
    """The folded sampler in torch's operators, bound to their buffers: about two a layer and jump.

    Args:
        folded: The network, on any device and in any dtype.
    """

    def __init__(self, folded: Folded) -> None:
        super().__init__(folded)
        obs_dim, last = folded.obs_dim, folded.obs_dim + folded.action_dim
        # These share memory with the parameters, and keep it from being used for anything else.
        self._weights = [weight.mT for weight in folded.weights]  # ([S,] in, out)
        first = self._weights[0]
        self._of_obs, self._of_x = first[..., :obs_dim, :], first[..., obs_dim:last, :]
        self._of_rest = first[..., obs_dim:, :]
        # A bias for every row: of shape (H,) for addmm, which adds it in the product's own kernel.
        stacked = bool(folded.stack)
        self._biases = [b.unsqueeze(-2) if stacked else b for b in folded.biases]
        self._mean, self._scale = (
            t.unsqueeze(-2) if t.dim() > 1 else t for t in (folded.mean, folded.scale)
        )
        self._product: Callable[..., Tensor] = torch.baddbmm if stacked else torch.addmm
        self._add_product = "baddbmm_" if stacked else "addmm_"
        shares, self._gamma = folded.bias_shares()
        self._bias_shares = folded.embedded.new_tensor(shares).unsqueeze(1)
        # The noise comes with variance 1; the first jump takes it to that of the first time.
        inner, alpha = list(folded.inner), list(folded.alpha)
        inner[0] *= folded.start
        alpha[0] *= folded.start
        self._jumps = list(zip(inner, alpha, folded.beta, strict=True))
        # Blocks of rows fit a CPU's cache; elsewhere everything goes in one launch.
        self._block = max(_BLOCK // folded.widths[0], 1) if self._on_cpu else 0

    def _sample(self, obs: Tensor, noise: Tensor, out: Tensor) -> None:
        rows = out.shape[-2]
        if rows == 1 or not self._on_cpu:  # a single row is too little for several threads
            self._in_blocks(obs, noise, out)
        else:
            with few_threads():
                self._in_blocks(obs, noise, out)

    def _in_blocks(self, obs: Tensor, noise: Tensor, out: Tensor) -> None:
        # In inference mode operators cost less; ``out`` was made outside and is a plain tensor. Not
        # by `torch.inference_mode`, which for a single row is 3 % of the time.
        with torch._C._InferenceMode(True):
            if not self._block or out.shape[-2] <= self._block:
                self._follow(obs, noise, out)
            else:
                parts = (torch.split(tensor, self._block, -2) for tensor in (obs, noise, out))
                for rows in zip(*parts, strict=True):
                    self._follow(*rows)

    def _follow(self, obs: Tensor, noise: Tensor, out: Tensor) -> None:
        b: _Buffers = self._buffers(noise.shape[-2])
        torch.sub(obs, b.mean, out=b.normalised).div_(self._scale)
        b.y.copy_(noise)
        for operator in b.operators:
            operator()
        torch.add(b.y, self._biases[-1], alpha=self._gamma, out=out)
        if self.folded.standardised:
            torch.addcmul(self.folded.center, self.folded.spread, out, out=out)
        out.clamp_(-1.0, 1.0)

    def _allocate(self, rows: int) -> _Buffers:
        """Returns buffers for so many rows, and the operators that work on them.

        Operators are bound to what they read and write once, not on every call: to look that up
        is a twentieth of the time of a single row.
        """
        folded, bind = self.folded, functools.partial
        new, stack, steps = folded.biases[0].new_empty, folded.stack, folded.steps
        width = folded.widths[0]
        inputs = new(*stack, steps, self._weights[0].shape[-2])  # (K, O + A + 2 E), first layer's
        times = inputs[..., folded.obs_dim :]
        bias_shares = times[..., : folded.action_dim]
        times[..., folded.action_dim :] = folded.embedded
        # On a CPU two rows are multiplied faster than one: a single row takes the product of matrix
        # and vector, which is slow for weights stored as (out, in). The second row is never read.
        single = rows == 1 and self._on_cpu and not stack
        padded = 2 if single else rows
        # The first layer before x comes to it; jumps compute in place there.
        biased = new(steps, *stack, padded, width).zero_()
        last = folded.biases[-1].unsqueeze(-2)
        operators: list[Callable[[], object]] = [
            bind(torch.mul, self._bias_shares, last, out=bias_shares)
        ]
        if single:
            # One observation goes with all times at once.
            mean, normalised = self._mean.expand(steps, -1), inputs[:, : folded.obs_dim]
            operators.append(
                bind(torch.addmm, self._biases[0], inputs, self._weights[0], out=biased[:, 0])
            )
        else:
            # Of several, each part is taken once.
            mean, normalised = self._mean, new(*stack, rows, folded.obs_dim)
            projected, constants = new(*stack, rows, width), new(*stack, steps, width)
            by_jump = constants.movedim(-2, 0).unsqueeze(-2)
            operators += [
                bind(self._product, self._biases[0], normalised, self._of_obs, out=projected),
                bind(torch.matmul, times, self._of_rest, out=constants),
                bind(torch.add, projected, by_jump, out=biased),
            ]
        # The rows of W_x are not contiguous: gathered here once, not once per jump.
        of_x = new(*stack, folded.action_dim, width)
        y = new(*stack, rows, folded.action_dim)
        operators.append(bind(of_x.copy_, self._of_x))
        deeper = []
        for bias, weight in zip(self._biases[1:-1], self._weights[1:-1], strict=True):
            shift = bias
            if single:  # addmm copies a full bias faster than it broadcasts one
                shift = new(padded, bias.shape[-1])
                operators.append(bind(shift.copy_, bias))
            deeper.append((shift, weight, new(*stack, padded, bias.shape[-1]).zero_()))
        scratch: dict[int, tuple[Tensor, Tensor]] = {}
        for (inner, alpha, beta), h in zip(self._jumps, biased, strict=True):
            first = h[..., :rows, :]
            operators.append(bind(getattr(first, self._add_product), y, of_x, alpha=inner))
            operators.append(_activation(first, scratch))
            for shift, weight, output in deeper:
                operators.append(bind(self._product, shift, h, weight, out=output))
                operators.append(_activation(output[..., :rows, :], scratch))
                h = output
            result = h[..., :rows, :]
            add_to_y = getattr(y, self._add_product)
            operators.append(bind(add_to_y, result, self._weights[-1], beta=alpha, alpha=beta))
        return _Buffers(mean, normalised, y, operators)


def _activation(x: Tensor, scratch: dict[int, tuple[Tensor, Tensor]]) -> Callable[[], object]:
    """Returns what computes Mish in place; layers of one width share their scratch."""
    if x.numel() < SMALLEST or x.device.type != "cpu":
        # `torch.nn.functional` would cost few elements a fifth on top of what it calls.
        return functools.partial(torch._C._nn.mish_, x)
    if x.shape[-1] not in scratch:
        scratch[x.shape[-1]] = torch.empty_like(x), torch.empty_like(x)
    return functools.partial(mish_, x, scratch[x.shape[-1]])


def compiled(folded: Folded) -> tuple[Callable[[Tensor, Tensor], Tensor] | None, str]:
    """Returns the sampler for few rows that numba compiled, or None and why there is none.

    Args:
        folded: A single network.
    """
    if folded.mean.device.type != "cpu":
        return None, f"numba is for the CPU, the network is on {folded.mean.device}"
    if folded.mean.dtype != torch.float32:
        return None, f"numba is for float32, the network has {folded.mean.dtype}"
    constants = folded.mean, folded.scale, folded.center, folded.spread
    tensors = (*folded.weights, *folded.biases, *constants)
    if not all(t.is_contiguous() for t in tensors):
        return None, "a parameter is not contiguous"
    function, why_not = _compiled(len(folded.weights))
    if function is None:
        return None, why_not
    shares, gamma = folded.bias_shares()
    inner, alpha = np.array(folded.inner), np.array(folded.alpha)
    inner[0] *= folded.start
    alpha[0] *= folded.start
    # Arrays of parameters share their memory, as the tensors do.
    bound = functools.partial(
        function,
        tuple(weight.numpy() for weight in folded.weights),
        tuple(bias.numpy() for bias in folded.biases),
        *(constant.numpy() for constant in constants),
        folded.embedded.numpy(),
        np.array([inner, alpha, folded.beta, shares], np.float32),
        gamma,
    )
    return lambda obs, noise: torch.from_numpy(bound(_array(obs), _array(noise))), ""


@functools.cache
def _compiled(layers: int) -> tuple[Callable[..., NDArray[np.float32]] | None, str]:
    """Returns the compiled function for networks of so many layers, or why there is none."""

    def warm_up(module: Any) -> None:  # noqa: ANN401 - a module of functions that numba compiled
        # The smallest network there is.
        one, square = np.ones(1, np.float32), np.ones((1, 1), np.float32)
        weights = np.ones((1, 3), np.float32), *[square] * (layers - 1)
        network = (
            weights,
            (one,) * layers,
            one,
            one,
            one,
            one,
            square,
            np.ones((4, 1), np.float32),
            1.0,
        )
        module.sample(*network, square, square)

    module, why_not = load("folded_numba", warm_up)
    return (None if module is None else module.sample), why_not


def _array(tensor: Tensor) -> NDArray[np.float32]:
    packed = tensor if tensor.is_contiguous() else tensor.contiguous()
    array: NDArray[np.float32] = packed.numpy(force=True)  # also one with a gradient
    return array
