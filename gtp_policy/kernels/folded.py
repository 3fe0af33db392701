r"""The folded sampler of the default network on any device, of one network or of several at once.

Along a grid the times are known, and so is the share of the first layer that is made of times
alone. `Folded` holds what is left: the parameters where they are, and a few numbers per jump.
`TorchSampler` computes the jumps with torch's operators, `gtp_policy.kernels.folded_triton` in one
kernel. Both read the parameters on every call and wait for no device, so that a CUDA graph can
capture them. Several networks of one shape, say of several seeds, are stacked along a leading
axis S of parameters, observations and noise.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gtp_policy.errors import DataError, ShapeError

Precision = Literal["fp32", "tf32", "bf16"]


class Folded(NamedTuple):
    """A network without what is constant along a grid; ``[S,]`` is the axis of stacked networks.

    Parameters are read where they are: the tensors must share memory with them.
    """

    weights: tuple[Tensor, ...]  # each ([S,] out, in), of every linear layer, any strides
    biases: tuple[Tensor, ...]  # each ([S,] out)
    mean: Tensor  # ([S,] O) or (O,)
    scale: Tensor  # like mean
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


class Sampler(ABC):
    """What samplers share: checks, and buffers that outlive the graphs they were captured in.

    Args:
        folded: The network.
    """

    def __init__(self, folded: Folded) -> None:
        self.folded = folded
        self._device = folded.biases[0].device
        self._local = threading.local()  # threads take turns on a stream, at any operator
        self._captured: dict[int, Any] = {}

    def run(self, obs: Tensor, noise: Tensor, out: Tensor | None = None) -> Tensor:
        """Samples actions.

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
        if out is None:
            out = torch.empty_like(noise, memory_format=torch.contiguous_format)
        rows = obs.shape[-2]
        if rows:
            with torch.no_grad():
                self._sample(obs.detach(), noise.detach(), out, self._buffers(rows))
        return out

    @abstractmethod
    def _sample(self, obs: Tensor, noise: Tensor, out: Tensor, buffers: Any) -> None:  # noqa: ANN401
        """Fills ``out``."""

    @abstractmethod
    def _allocate(self, rows: int) -> Any:  # noqa: ANN401
        """Returns buffers for a number of rows, whatever `_sample` needs."""

    def _check(self, obs: Tensor, noise: Tensor, out: Tensor | None) -> None:
        """Raises unless a kernel may read and write as far as it is going to."""
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
        cuda = self._device.type == "cuda"
        stream = torch.cuda.current_stream(self._device).cuda_stream if cuda else 0
        by_stream: dict[int, tuple[int, Any]] = self._local.__dict__.setdefault("by_stream", {})
        found = by_stream.get(stream)
        if found is None or found[0] != rows:
            # Made in inference mode, nobody outside could write to them.
            with torch.inference_mode(False):
                found = by_stream[stream] = rows, self._allocate(rows)
        if cuda and torch.cuda.is_current_stream_capturing():
            # The graph will write there on every replay, whatever is asked of us in between.
            self._captured[id(found)] = found
        return found[1]


class _Buffers(NamedTuple):
    normalised: Tensor  # ([S,] B, O)
    projected: Tensor  # ([S,] B, H)
    bias_shares: Tensor  # ([S,] K, A), the first columns of the next
    times: Tensor  # ([S,] K, A + 2 E), what the first layer sees beside observation and action
    constants: Tensor  # ([S,] K, H), its share of the first layer
    biased: Tensor  # (K, [S,] B, H)
    steps: tuple[Tensor, ...]  # its rows
    layers: tuple[Tensor, ...]  # ([S,] B, H) of each hidden layer


class TorchSampler(Sampler):
    """The folded sampler in torch's operators: about two per layer and jump.

    Args:
        folded: The network, on any device and in any dtype.
    """

    def __init__(self, folded: Folded) -> None:
        super().__init__(folded)
        obs_dim, last = folded.obs_dim, folded.obs_dim + folded.action_dim
        self._weights = [weight.mT for weight in folded.weights]  # ([S,] in, out)
        first = self._weights[0]
        self._of_obs, self._of_x = first[..., :obs_dim, :], first[..., obs_dim:last, :]
        self._of_rest = first[..., obs_dim:, :]
        # A bias for every row: of shape (H,) for addmm, which adds it in the product's own kernel.
        stacked = bool(folded.stack)
        self._biases = [b.unsqueeze(-2) if stacked else b for b in folded.biases]
        self._stacked = [t.unsqueeze(-2) if t.dim() > 1 else t for t in (folded.mean, folded.scale)]
        self._product: Callable[..., Tensor] = torch.baddbmm if stacked else torch.addmm
        shares, self._gamma = folded.bias_shares()
        self._bias_shares = folded.embedded.new_tensor(shares).unsqueeze(1)

    def _allocate(self, rows: int) -> _Buffers:
        folded = self.folded
        new, stack, steps = folded.biases[0].new_empty, folded.stack, folded.steps
        times = new(*stack, steps, folded.action_dim + folded.embedded.shape[1])
        times[..., folded.action_dim :] = folded.embedded
        biased = new(steps, *stack, rows, folded.widths[0])
        return _Buffers(
            normalised=new(*stack, rows, folded.obs_dim),
            projected=new(*stack, rows, folded.widths[0]),
            bias_shares=times[..., : folded.action_dim],
            times=times,
            constants=new(*stack, steps, folded.widths[0]),
            biased=biased,
            steps=biased.unbind(),
            layers=tuple(new(*stack, rows, width) for width in folded.widths),
        )

    def _sample(self, obs: Tensor, noise: Tensor, out: Tensor, buffers: _Buffers) -> None:
        b, folded, product = buffers, self.folded, self._product
        mean, scale = self._stacked
        torch.sub(obs, mean, out=b.normalised).div_(scale)
        product(self._biases[0], b.normalised, self._of_obs, out=b.projected)
        last = folded.biases[-1].unsqueeze(-2)
        torch.mul(self._bias_shares, last, out=b.bias_shares)
        torch.matmul(b.times, self._of_rest, out=b.constants)
        torch.add(b.projected, b.constants.movedim(-2, 0).unsqueeze(-2), out=b.biased)
        torch.mul(noise, folded.start, out=out)
        for step, biased in enumerate(b.steps):
            h = b.layers[0]
            product(biased, out, self._of_x, alpha=folded.inner[step], out=h)
            for bias, weight, output in zip(
                self._biases[1:-1], self._weights[1:-1], b.layers[1:], strict=True
            ):
                functional.mish(h, inplace=True)
                h = product(bias, h, weight, out=output)
            functional.mish(h, inplace=True)
            product(
                out, h, self._weights[-1], beta=folded.alpha[step], alpha=folded.beta[step], out=out
            )
        out.add_(last, alpha=self._gamma).clamp_(-1.0, 1.0)
