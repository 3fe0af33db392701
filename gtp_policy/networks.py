"""Default networks: what stands inside a flow map, a critic or a value function.

Initial parameters come from an explicit generator and never from torch's global one.
"""

import itertools
import math

import torch
from torch import Tensor, nn

from gtp_policy._numbers import as_int
from gtp_policy.functional import signal
from gtp_policy.kernels.mish import mish
from gtp_policy.times import Path


class TimeEmbedding(nn.Module):
    r"""Embeds a time as sines and cosines of its logarithm.

    .. math:: \left(\sin 2\pi f_j \tau, \cos 2\pi f_j \tau\right)_{j=1}^{dim/2}, \quad
        \tau = \tfrac14 \ln \max(t, floor)

    with frequencies :math:`f_j` spaced geometrically from 1/8 (one period spans 14 decades of t) to
    4 (one period spans a factor e of t). Finite at t = 0 by the floor. No parameters.

    Args:
        dim: Number of features, even.
        floor: Times below it look alike, > 0; below the smallest positive time of the grid.

    Raises:
        ValueError: If ``dim`` is odd or not positive, or ``floor`` not positive.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
        | noise label ln(t)/4, table 1, https://arxiv.org/abs/2206.00364

    Example:
        >>> import torch
        >>> from gtp_policy.networks import TimeEmbedding
        >>> TimeEmbedding(8)(torch.tensor([0.0, 0.1, 5.0])).shape
        torch.Size([3, 8])
    """

    frequencies: Tensor

    def __init__(self, dim: int, floor: float = 1e-3) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"`dim` is unusable: got {dim}, expected an even number >= 2.")
        if not floor > 0:
            raise ValueError(f"`floor` is out of range: got {floor}, expected > 0.")
        self.floor = floor
        octaves = torch.linspace(-3.0, 2.0, dim // 2, dtype=torch.float64, device="cpu")
        self.register_buffer("frequencies", (2 * math.pi * 2**octaves).float(), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """Embeds times.

        Args:
            t: Times, shape (B,), >= 0.

        Returns:
            Features in [-1, 1], shape (B, dim).
        """
        angle = 0.25 * t.clamp_min(self.floor).log().unsqueeze(-1) * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class LogRatioEmbedding(nn.Module):
    r"""Embeds a time as sines and cosines of the logarithm of noise over signal, softened.

    .. math:: \left(\sin f_j \lambda, \cos f_j \lambda\right)_{j=1}^{dim/2}, \quad
        \lambda = \ln \frac{t + \delta}{\alpha_t + \delta}

    with the path's signal :math:`\alpha_t` and frequencies :math:`f_j` spaced geometrically from
    1/8 to 1. From noise alone to signal alone :math:`\lambda` moves from about 4 to -4, little more
    than a period of the fastest feature: smooth in t, which is what lets one network learn long
    jumps in few updates. No parameters.

    Args:
        dim: Number of features, even.
        path: Of the times.
        delta: :math:`\delta`, > 0; times and signals far below it look alike.

    Raises:
        ValueError: If ``dim`` is odd or not positive, or ``delta`` not positive.

    Example:
        >>> import torch
        >>> from gtp_policy.networks import LogRatioEmbedding
        >>> LogRatioEmbedding(8, "linear")(torch.tensor([0.0, 0.5, 1.0])).shape
        torch.Size([3, 8])
    """

    frequencies: Tensor

    def __init__(self, dim: int, path: Path, delta: float = 0.02) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"`dim` is unusable: got {dim}, expected an even number >= 2.")
        if not delta > 0:
            raise ValueError(f"`delta` is out of range: got {delta}, expected > 0.")
        self.path, self.delta = path, delta
        octaves = torch.linspace(-3.0, 0.0, dim // 2, dtype=torch.float64, device="cpu")
        self.register_buffer("frequencies", (2**octaves).float(), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """Embeds times.

        Args:
            t: Times, any shape, >= 0.

        Returns:
            Features in [-1, 1], shape (..., dim).
        """
        ratio = (t + self.delta) / (signal(t, self.path) + self.delta)
        angle = ratio.log().unsqueeze(-1) * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class Mish(nn.Module):
    """The activation `gtp_policy.kernels.mish` as a layer.

    Example:
        >>> import torch
        >>> from gtp_policy.networks import Mish
        >>> Mish()(torch.zeros(2))
        tensor([0., 0.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns Mish of every element.

        Args:
            x: Any shape.

        Returns:
            The same shape.
        """
        return mish(x)


class FlowMapMLP(nn.Module):
    """The default backbone of a flow map: one MLP over observation, noisy action and two times.

    Any module with the same ``forward`` can replace it (`FlowMapActor`'s ``network``). The hidden
    layers' weights start with variance 1 / inputs (LeCun et al., Efficient BackProp, 1998).

    Args:
        obs_dim: O.
        action_dim: A.
        hidden: Widths of the hidden layers.
        time_dim: Features per time embedding.
        floor: Time below which times look alike; below the smallest positive time of the grid.
        embedding: Module from times to ``time_dim`` features each; default `TimeEmbedding`.
        generator: Source of the initial parameters.

    Example:
        >>> import torch
        >>> from gtp_policy.networks import FlowMapMLP
        >>> net = FlowMapMLP(3, 2, (16, 16), 8, generator=torch.Generator())
        >>> net(torch.zeros(5, 3), torch.zeros(5, 2), torch.ones(5), torch.zeros(5)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: tuple[int, ...],
        time_dim: int,
        *,
        floor: float = 1e-3,
        embedding: nn.Module | None = None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.embedding = embedding or TimeEmbedding(time_dim, floor)
        inputs = obs_dim + action_dim + 2 * time_dim
        # With torch's default law the signal of the few action features fades from layer to layer
        # among the many of time: thousands of updates pass before the output depends on x at all.
        self.mlp = mlp(inputs, hidden, action_dim, gain=math.sqrt(3), generator=generator)

    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Returns the raw output that the flow map's preconditioning turns into an endpoint.

        Args:
            obs: Normalised observation, shape (B, O).
            x: Noisy action scaled to unit variance, shape (B, A).
            t: Start time, shape (B,), >= 0.
            s: Target time, shape (B,), >= 0.

        Returns:
            Shape (B, A).
        """
        features = torch.cat([obs, x, self.embedding(t), self.embedding(s)], dim=-1)
        output: Tensor = self.mlp(features)
        return output


def features_dim(encoder: nn.Module | None, obs_dim: int) -> int:
    """Returns the width of what a network sees: the encoder's features, or the observation.

    Args:
        encoder: A module with an integer attribute ``features_dim``, or None.
        obs_dim: O.

    Returns:
        F.

    Raises:
        ValueError: If the encoder does not say how wide its features are.

    Example:
        >>> from torch import nn
        >>> from gtp_policy.networks import features_dim
        >>> features_dim(None, 3)
        3
        >>> features_dim(nn.Linear(3, 8), 3)
        Traceback (most recent call last):
        ...
        ValueError: `encoder` does not say how wide its features are: got Linear without an integer
        `features_dim`, expected one. Set encoder.features_dim.
    """
    if encoder is None:
        return obs_dim
    width = as_int(getattr(encoder, "features_dim", None))
    if width is None or width < 1:
        raise ValueError(
            f"`encoder` does not say how wide its features are: got {type(encoder).__name__} "
            "without an integer `features_dim`, expected one. Set encoder.features_dim."
        )
    return width


def mlp(
    inputs: int,
    hidden: tuple[int, ...],
    outputs: int,
    *,
    gain: float = 1.0,
    generator: torch.Generator,
) -> nn.Sequential:
    """Builds a multi-layer perceptron with Mish activations.

    Args:
        inputs: Width of the input.
        hidden: Widths of the hidden layers.
        outputs: Width of the output, which has no activation.
        gain: Factor of the hidden layers' initial weights; sqrt(3) gives them variance 1 / inputs,
            which keeps the size of the signal.
        generator: Source of the initial parameters.

    Returns:
        The network, on the CPU, in float32 whatever torch's default dtype is.

    Example:
        >>> import torch
        >>> from gtp_policy.networks import mlp
        >>> mlp(3, (8,), 1, generator=torch.Generator())(torch.zeros(2, 3)).shape
        torch.Size([2, 1])
    """
    widths = [inputs, *hidden]
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(widths):
        layers += [linear(i, o, gain=gain, generator=generator), Mish()]
    return nn.Sequential(*layers, linear(widths[-1], outputs, generator=generator))


def linear(
    inputs: int, outputs: int, *, gain: float = 1.0, generator: torch.Generator
) -> nn.Linear:
    r"""Builds a linear layer whose parameters come from ``generator``, by default in torch's law.

    .. math:: W \sim gain \cdot U(-1/\sqrt{inputs}, 1/\sqrt{inputs}), \quad
        b \sim U(-1/\sqrt{inputs}, 1/\sqrt{inputs})

    Args:
        inputs: Width of the input.
        outputs: Width of the output.
        gain: Factor of the weights.
        generator: Source of the initial parameters.

    Returns:
        The layer.

    Example:
        >>> import torch
        >>> from gtp_policy.networks import linear
        >>> linear(4, 2, generator=torch.Generator()).weight.shape
        torch.Size([2, 4])
    """
    # On the meta device the layer's own initialisation draws nothing from the global generator;
    # `to_empty` would load sympy.
    layer = nn.Linear(inputs, outputs, dtype=torch.float32, device="meta")
    layer.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=torch.float32, device="cpu"))
    layer.bias = nn.Parameter(torch.empty(outputs, dtype=torch.float32, device="cpu"))
    for parameter in layer.parameters():
        uniform_(parameter, inputs, generator)
    if gain != 1:
        layer.weight.detach().mul_(gain)
    return layer


@torch.no_grad()
def uniform_(parameter: Tensor, inputs: int, generator: torch.Generator) -> None:
    """Fills a parameter in place from U(-1/sqrt(inputs), 1/sqrt(inputs)).

    Args:
        parameter: The tensor to fill.
        inputs: Width of the layer's input.
        generator: Source of randomness, on the parameter's device.

    Example:
        >>> import torch
        >>> from gtp_policy.networks import uniform_
        >>> weight = torch.empty(100)
        >>> uniform_(weight, 4, torch.Generator())
        >>> bool((weight.abs() <= 0.5).all())
        True
    """
    bound = 1 / math.sqrt(inputs)
    parameter.uniform_(-bound, bound, generator=generator)
