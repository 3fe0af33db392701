"""The sampler's plan away from the CPU: one folded network, and the fastest way through it.

`DevicePlan` does for an actor on a device what `gtp_policy._folding.SamplerPlan` does on the CPU.
`fold` and `fastest` serve an update, which keeps the parameters of several seeds in one piece and
records what it does as a CUDA graph.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gtp_policy.functional import precondition
from gtp_policy.kernels.folded import Folded, Precision, Sampler, TorchSampler
from gtp_policy.networks import FlowMapMLP, TimeEmbedding
from gtp_policy.spaces import ObservationNormalizer


@torch.no_grad()
def fold(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    mean: Tensor,
    scale: Tensor,
    embedding: TimeEmbedding,
    grid: Tensor,
    sigma_data: float,
) -> Folded:
    """Folds the default network along a grid; waits for the device if the grid lives there.

    Args:
        weights: Of the linear layers, each ([S,] out, in), in the memory of the parameters.
        biases: The same, each ([S,] out).
        mean: Of the observations, ([S,] O) or (O,).
        scale: Their standard deviation, like ``mean``.
        embedding: What embeds times, on the device of the weights.
        grid: Descending times, shape (K + 1,), on any device.
        sigma_data: Standard deviation of the actions for the preconditioning.
    """
    embedded = embedding(grid.to(weights[0].device))
    times = grid.cpu()
    # As arrays: on the CPU this is no transfer.
    skip, out, inner = (c.double().numpy() for c in precondition(times[:-1], sigma_data))
    ratio = (times[1:] / times[:-1]).double().numpy()
    return Folded(
        weights=tuple(weight.detach() for weight in weights),
        biases=tuple(bias.detach() for bias in biases),
        mean=mean.detach(),
        scale=scale.detach(),
        embedded=torch.cat([embedded[:-1], embedded[1:]], 1),
        start=times.numpy()[0].item(),
        inner=tuple(inner.tolist()),
        alpha=tuple((ratio + (1 - ratio) * skip).tolist()),
        beta=tuple(((1 - ratio) * out).tolist()),
    )


def fold_network(
    network: FlowMapMLP, normalizer: ObservationNormalizer, grid: Tensor, sigma_data: float
) -> Folded:
    """Folds one network along a grid, as `fold` does."""
    linears = [layer for layer in network.mlp if isinstance(layer, nn.Linear)]
    return fold(
        [layer.weight for layer in linears],
        [layer.bias for layer in linears],
        normalizer.mean,
        normalizer.scale,
        network.embedding,
        grid,
        sigma_data,
    )


def fastest(folded: Folded, precision: Precision = "fp32") -> tuple[Sampler, str]:
    """Returns the fastest sampler that takes a network, and why not the Triton kernel, if so.

    Args:
        folded: The network.
        precision: Of the factors in matrix products, where the Triton kernel takes the network;
            torch's operators go by torch's own switches.
    """
    if folded.weights[0].device.type == "cpu":
        return TorchSampler(folded), "the network is on the CPU"
    from gtp_policy.kernels import folded_triton  # importing Triton takes time

    why_not = folded_triton.unsupported(folded, precision)
    if why_not is not None:
        return TorchSampler(folded), why_not
    return folded_triton.TritonSampler(folded, precision), ""


class DevicePlan:
    """The sampler of one network along one grid, for as long as its parts stay what they are."""

    def __init__(
        self,
        network: FlowMapMLP,
        normalizer: ObservationNormalizer,
        grid: Tensor,
        sigma_data: float,
        precision: Precision = "fp32",
    ) -> None:
        folded = fold_network(network, normalizer, grid, sigma_data)
        self._sampler, self._why_not = fastest(folded, precision)

    def run(self, obs: Tensor, noise: Tensor, out: Tensor | None = None) -> Tensor:
        """Returns actions in [-1, 1], shape (B, A), for observations (B, O) and noise (B, A)."""
        return self._sampler.run(obs, noise, out)

    def explain(self, rows: int) -> tuple[str, str]:
        """Returns what computes so many rows, "triton" or "torch", and why not the other one."""
        return ("torch", self._why_not) if self._why_not else ("triton", "")
