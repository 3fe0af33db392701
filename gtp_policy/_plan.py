r"""The K jumps of the default network along a fixed grid, in place and without what is constant.

Along a grid the times are known, and so is the share of the first layer that is made of times
alone. With :math:`x = y + \gamma_i b_n`, where :math:`b_n` is the bias of the last layer, jump i is

.. math:: h_1 = (W_o o + b_1) + r_i + c_{in} W_x y, \quad y' = \alpha_i y + \beta_i W_n h_{n-1}

where :math:`r_i` holds both time embeddings' share and that of :math:`\gamma_i b_n`. That is one
matrix product and one activation per layer, into buffers, in place of some fifty operators a jump.

Only times are kept. Parameters are read where they are, on every call, so an optimiser's step,
``load_state_dict`` and a write through ``.data`` all count at once. `FlowMapActor._jump` is the
reference.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from gtp_policy.functional import precondition
from gtp_policy.kernels import SMALLEST_MISH, mish_
from gtp_policy.networks import FlowMapMLP, Mish, TimeEmbedding
from gtp_policy.spaces import ObservationNormalizer

# Elements of a hidden layer at a time: what one block of rows needs stays in a core's own cache.
_BLOCK = 2**16
# Beyond it a block would need more memory than it saves time, and nobody samples with so many.
_MOST_STEPS = 32


class _Layer(NamedTuple):
    bias: Tensor
    weight: Tensor  # (in, out)
    output: Tensor  # (rows, out)
    activate: Callable[[Tensor, Any], Tensor]  # in place, given this:
    scratch: Any


class _Buffers(NamedTuple):
    rows: int
    normalised: Tensor  # (rows, O)
    projected: Tensor  # (rows, H)
    biased: Tensor  # (K, rows, H)
    steps: tuple[Tensor, ...]  # its rows
    bias_shares: Tensor  # (K, A), the first columns of the next
    times: Tensor  # (K, A + 2 E), what the first layer sees beside observation and action
    constants: Tensor  # (K, H), its share of the first layer
    layers: list[_Layer]  # those with an activation


class SamplerPlan:
    """The sampler of one network along one grid, for as long as its parameters stay in place."""

    def __init__(
        self,
        network: FlowMapMLP,
        normalizer: ObservationNormalizer,
        grid: Tensor,
        sigma_data: float,
    ) -> None:
        self._of = network, normalizer, network.embedding, grid, sigma_data
        self._layers: list[nn.Module | None] = list(network.mlp)
        self._watched = [normalizer, network, network.embedding, network.mlp, *network.mlp]
        linears = [layer for layer in network.mlp if isinstance(layer, nn.Linear)]
        self._owners: list[Mapping[str, Tensor | None]] = [m._parameters for m in linears]
        self._owners.append(normalizer._buffers)
        self._stamp = self._where()
        # These share memory with the parameters, and keep it from being used for anything else.
        self._weights = [layer.weight.detach().t() for layer in linears]
        self._biases = [layer.bias.detach() for layer in linears]
        self._mean, self._scale = normalizer.mean.detach(), normalizer.scale.detach()
        obs_dim, self._action_dim = len(self._mean), len(self._biases[-1])
        first, last = self._weights[0], obs_dim + self._action_dim
        self._of_obs, self._of_x, self._of_rest = (
            first[:obs_dim],
            first[obs_dim:last],
            first[obs_dim:],
        )
        embedded = network.embedding(grid)
        self._embedded = torch.cat([embedded[:-1], embedded[1:]], 1)
        # Numbers of the grid, which is on the CPU; as arrays, so that this is no transfer.
        skip, out, inner = (c.double().numpy() for c in precondition(grid[:-1], sigma_data))
        ratio = (grid[1:] / grid[:-1]).double().numpy()
        self._start: float = grid.numpy()[0].item()
        self._inner: list[float] = inner.tolist()
        self._alpha = (ratio + (1 - ratio) * skip).tolist()
        self._beta = ((1 - ratio) * out).tolist()
        gammas = [0.0]
        for alpha, beta in zip(self._alpha, self._beta, strict=True):
            gammas.append(alpha * gammas[-1] + beta)
        self._gamma = gammas.pop()
        # x's share of gamma b_n passes c_in like the rest of x.
        shares = [g * c for g, c in zip(gammas, self._inner, strict=True)]
        self._bias_shares = grid.new_tensor(shares).unsqueeze(1)
        self._local = threading.local()

    def still_fits(self, *of: Any) -> bool:  # noqa: ANN401 - the constructor's arguments
        """Tells whether network, normaliser, grid and scale are, part by part, what was planned."""
        network, normalizer, embedding, grid, sigma_data = self._of
        return (
            of[0] is network
            and of[1] is normalizer
            and of[2] is grid
            and of[3] == sigma_data
            and network.embedding is embedding
            and list(network.mlp._modules.values()) == self._layers
            and self._where() == self._stamp
            and not any(m._forward_hooks or m._forward_pre_hooks for m in self._watched)
        )

    def _where(self) -> list[tuple[int, tuple[int, ...]] | None]:
        """Returns in which memory, and in which layout, the parameters are."""
        return [
            None if tensor is None else (tensor.data_ptr(), tensor.stride())
            for owner in self._owners
            for tensor in owner.values()
        ]

    def run(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Returns actions in [-1, 1], shape (B, A), for observations (B, O) and noise (B, A)."""
        y = noise.detach() * self._start
        block = max(_BLOCK // self._of_x.shape[1], 1)
        # In inference mode operators cost less; the result was made outside and is a plain tensor.
        with torch.inference_mode():
            if y.shape[0] <= block:
                self._block(obs, y)
            else:
                for rows, part in zip(torch.split(obs, block), torch.split(y, block), strict=True):
                    self._block(rows, part)
            return y.add_(self._biases[-1], alpha=self._gamma).clamp_(-1.0, 1.0)

    def _block(self, obs: Tensor, y: Tensor) -> None:
        b = self._buffers(y.shape[0])
        torch.sub(obs, self._mean, out=b.normalised).div_(self._scale)
        torch.addmm(self._biases[0], b.normalised, self._of_obs, out=b.projected)
        torch.mul(self._bias_shares, self._biases[-1], out=b.bias_shares)
        torch.mm(b.times, self._of_rest, out=b.constants)
        torch.add(b.projected, b.constants.unsqueeze(1), out=b.biased)
        (_, of_x, first, activate, scratch), *deeper = b.layers
        last = self._weights[-1]
        for biased, inner, alpha, beta in zip(
            b.steps, self._inner, self._alpha, self._beta, strict=True
        ):
            h = activate(torch.addmm(biased, y, of_x, alpha=inner, out=first), scratch)
            for bias, weight, output, activate_, scratch_ in deeper:
                h = activate_(torch.addmm(bias, h, weight, out=output), scratch_)
            y.addmm_(h, last, beta=alpha, alpha=beta)

    def _buffers(self, rows: int) -> _Buffers:
        """Returns this thread's buffers, those of the last call if it had as many rows."""
        found: _Buffers | None = getattr(self._local, "buffers", None)
        if found is not None and found.rows == rows:
            return found
        new, width = self._mean.new_empty, self._of_x.shape[1]
        steps, features = len(self._alpha), self._of_rest.shape[0]
        times = new(steps, features)
        times[:, self._action_dim :] = self._embedded
        layers, scratch = [], {}
        for bias, weight in zip(self._biases[:-1], [self._of_x, *self._weights[1:-1]], strict=True):
            output = new(rows, len(bias))
            if output.numel() < SMALLEST_MISH:
                layers.append(_Layer(bias, weight, output, functional.mish, True))  # in place
                continue
            if len(bias) not in scratch:
                scratch[len(bias)] = new(output.shape), new(output.shape)
            layers.append(_Layer(bias, weight, output, mish_, scratch[len(bias)]))
        biased = new(steps, rows, width)
        self._local.buffers = made = _Buffers(
            rows=rows,
            normalised=new(rows, len(self._mean)),
            projected=new(rows, width),
            biased=biased,
            steps=biased.unbind(),
            bias_shares=times[:, : self._action_dim],
            times=times,
            constants=new(steps, width),
            layers=layers,
        )
        return made


class PlanCache:
    """The plans of one actor by number of jumps; a copy of the actor starts without any."""

    def __init__(self) -> None:
        self._plans: dict[int, SamplerPlan] = {}

    def __reduce__(self) -> tuple[type["PlanCache"], tuple[()]]:
        """Copies and pickles as an empty cache: plans hold views and buffers of threads."""
        return PlanCache, ()

    def find(
        self,
        network: nn.Module,
        normalizer: nn.Module,
        grid: Tensor,
        sigma_data: float,
    ) -> SamplerPlan | None:
        """Returns a plan that fits, made anew if need be; None if there can be none."""
        steps = grid.shape[0] - 1
        plan = self._plans.get(steps)
        if plan is not None and plan.still_fits(network, normalizer, grid, sigma_data):
            return plan
        if steps > _MOST_STEPS or not _can_plan(network, normalizer, grid):
            return None
        assert isinstance(network, FlowMapMLP)
        assert isinstance(normalizer, ObservationNormalizer)
        with torch.no_grad():
            plan = self._plans[steps] = SamplerPlan(network, normalizer, grid, sigma_data)
        return plan


def _can_plan(network: nn.Module, normalizer: nn.Module, grid: Tensor) -> bool:
    """Tells whether a network is the default one, as built, on the CPU in one dtype."""
    if type(network) is not FlowMapMLP or type(normalizer) is not ObservationNormalizer:
        return False
    if type(network.mlp) is not nn.Sequential or type(network.embedding) is not TimeEmbedding:
        return False
    layers = list(network.mlp)
    kinds = [nn.Linear if i % 2 == 0 else Mish for i in range(len(layers))]
    if [type(layer) for layer in layers] != kinds or len(layers) < 3:
        return False
    watched = [network, network.embedding, network.mlp, normalizer, *layers]
    if any(m._forward_hooks or m._forward_pre_hooks for m in watched):
        return False
    if any(m._parameters["bias"] is None for m in layers[::2]):
        return False
    tensors = [*network.mlp.parameters(), *normalizer.buffers()]
    return all(t.device.type == "cpu" and t.dtype == grid.dtype for t in tensors)
