r"""The K jumps of the default network along a fixed grid, in place and without what is constant.

Along a grid the times are known, and so is the share of the first layer that is made of times
alone. With :math:`x = y + \gamma_i b_n`, where :math:`b_n` is the bias of the last layer, jump i is

.. math:: h_1 = (W_o o + b_1) + r_i + c_{in} W_x y, \quad y' = \alpha_i y + \beta_i W_n h_{n-1}

where :math:`r_i` holds both time embeddings' share and that of :math:`\gamma_i b_n`. That is one
matrix product and one activation per layer, into buffers, in place of some fifty operators a jump.
Where numba is installed, few rows go through one compiled function instead, which computes the same
(`gtp_policy.kernels.folded_numba`). It is compiled when it is first needed, a few seconds, and
then kept in numba's cache on the disk.

Only times are kept. Parameters are read where they are, on every call, so an optimiser's step,
``load_state_dict`` and a write through ``.data`` all count at once. `FlowMapActor._jump` is the
reference.
"""

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gtp_policy._folding_cuda import DevicePlan, fold_network
from gtp_policy.kernels import SMALLEST_MISH, engine, few_threads, mish_
from gtp_policy.kernels.numba_loader import load
from gtp_policy.networks import FlowMapMLP, Mish, TimeEmbedding
from gtp_policy.spaces import ObservationNormalizer
from gtp_policy.times import TimeSchedule

# Elements of a hidden layer at a time: what one block of rows needs stays in a core's own cache.
_BLOCK = 2**16
# Beyond it a block would need more memory than it saves time, and nobody samples with so many.
_MOST_STEPS = 32
# Beyond it torch's matrix products gain more from the rows than the compiled sampler does.
_FEW_ROWS = 24

_address, _layout = Tensor.data_ptr, Tensor.stride


class _Buffers(NamedTuple):
    rows: int
    mean: Tensor  # (O,); of one row (K, O)
    normalised: Tensor  # (rows, O); of one row (K, O), the same K times
    y: Tensor  # (rows, A), noise that becomes actions
    operators: list[Callable[[], object]]  # what computes the one from the other, in its order


@functools.cache
def _compiled(layers: int) -> tuple[Callable[..., NDArray[np.float32]] | None, str]:
    """Returns the compiled sampler for networks of so many layers, or why there is none."""

    def warm_up(module: Any) -> None:  # noqa: ANN401 - a module of functions that numba compiled
        # The smallest network there is.
        one, square = np.ones(1, np.float32), np.ones((1, 1), np.float32)
        weights = np.ones((1, 3), np.float32), *[square] * (layers - 1)
        network = weights, (one,) * layers, one, one, square, np.ones((4, 1), np.float32), 1.0
        module.sample(*network, square, square)

    module, why_not = load("folded_numba", warm_up)
    return (None if module is None else module.sample), why_not


def _array(tensor: Tensor) -> NDArray[np.float32]:
    packed = tensor if tensor.is_contiguous() else tensor.contiguous()
    array: NDArray[np.float32] = packed.numpy(force=True)  # also one that a gradient is asked of
    return array


class Parts:
    """What a plan was made of: to notice, at every call and in little time, when it is not."""

    def __init__(
        self,
        network: FlowMapMLP,
        normalizer: ObservationNormalizer,
        times: TimeSchedule,
        sigma_data: float,
    ) -> None:
        self._of = network, normalizer, times, sigma_data
        modules: list[nn.Module] = [normalizer, network, network.embedding, network.mlp]
        modules += network.mlp
        self._hooks = [h for m in modules for h in (m._forward_hooks, m._forward_pre_hooks)]
        self._layers, self._depth = network.mlp._modules, len(network.mlp)
        places: list[Mapping[str, nn.Module | Tensor | None]] = [network._modules, self._layers]
        places += [normalizer._buffers, *(layer._parameters for layer in network.mlp)]
        self._places = [(place, *item) for place in places for item in place.items()]
        self._tensors = [part for *_, part in self._places if isinstance(part, Tensor)]
        self._addresses = [_address(tensor) for tensor in self._tensors]
        self._layouts = [_layout(tensor) for tensor in self._tensors]

    def are(
        self,
        network: nn.Module | None,
        normalizer: nn.Module | None,
        times: TimeSchedule,
        sigma_data: float,
    ) -> bool:
        """Tells whether these are the same, part by part, and parameters in the same memory."""
        of = self._of
        if (
            network is not of[0]
            or normalizer is not of[1]
            or not (times is of[2] or times == of[2])
            or sigma_data != of[3]
            or any(self._hooks)
            or len(self._layers) != self._depth
        ):
            return False
        for place, name, part in self._places:
            if place.get(name) is not part:
                return False
        return (
            list(map(_address, self._tensors)) == self._addresses
            and list(map(_layout, self._tensors)) == self._layouts
        )


class SamplerPlan:
    """The sampler of one network along one grid, for as long as its parts stay what they are."""

    def __init__(
        self,
        network: FlowMapMLP,
        normalizer: ObservationNormalizer,
        grid: Tensor,
        sigma_data: float,
    ) -> None:
        folded = fold_network(network, normalizer, grid, sigma_data)
        # These share memory with the parameters, and keep it from being used for anything else.
        self._weights = [weight.t() for weight in folded.weights]
        self._biases = list(folded.biases)
        self._mean, self._scale = folded.mean, folded.scale
        obs_dim, self._action_dim = folded.obs_dim, folded.action_dim
        first, last = self._weights[0], obs_dim + self._action_dim
        self._of_obs, self._of_x, self._of_rest = (
            first[:obs_dim],
            first[obs_dim:last],
            first[obs_dim:],
        )
        self._embedded = folded.embedded
        self._inner, self._alpha = list(folded.inner), list(folded.alpha)
        self._beta = folded.beta
        shares, self._gamma = folded.bias_shares()
        self._bias_shares = grid.new_tensor(shares).unsqueeze(1)
        # The noise comes with variance 1; the first jump takes it to that of the first time.
        self._inner[0] *= folded.start
        self._alpha[0] *= folded.start
        self._local = threading.local()

    def run(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Returns actions in [-1, 1], shape (B, A), for observations (B, O) and noise (B, A)."""
        rows = obs.shape[0]
        if rows <= _FEW_ROWS and engine() == "auto":
            sample, _ = self._few
            if sample is not None:
                return torch.from_numpy(sample(_array(obs), _array(noise)))
        obs, noise = obs.detach(), noise.detach()
        out = torch.empty_like(noise, memory_format=torch.contiguous_format)
        if rows == 1:  # is too little for more than one thread
            return self._run(obs, noise, out)
        with few_threads():
            return self._run(obs, noise, out)

    def explain(self, rows: int) -> tuple[str, str]:
        """Returns what computes so many rows, "numba" or "torch", and why not the other one."""
        if rows > _FEW_ROWS:
            return "torch", f"its matrix products are the faster ones beyond {_FEW_ROWS} rows"
        if engine() != "auto":
            return "torch", f'kernels.using("{engine()}") asks for it'
        sample, why_not = self._few
        return ("torch", why_not) if sample is None else ("numba", "")

    @functools.cached_property
    def _few(self) -> tuple[Callable[..., NDArray[np.float32]] | None, str]:
        """The compiled sampler, given all but observations and noise; or why there is none."""
        weights = [weight.t() for weight in self._weights]
        if self._mean.dtype != torch.float32:
            return None, f"numba is for float32, the network has {self._mean.dtype}"
        if not all(t.is_contiguous() for t in (*weights, *self._biases, self._mean, self._scale)):
            return None, "a parameter is not contiguous"
        sample, why_not = _compiled(len(weights))
        if sample is None:
            return None, why_not
        jumps = [self._inner, self._alpha, self._beta, self._bias_shares[:, 0].tolist()]
        # Arrays of parameters share their memory, as the tensors do.
        return functools.partial(
            sample,
            tuple(weight.numpy() for weight in weights),
            tuple(bias.numpy() for bias in self._biases),
            self._mean.numpy(),
            self._scale.numpy(),
            self._embedded.numpy(),
            np.array(jumps, np.float32),
            self._gamma,
        ), ""

    def _run(self, obs: Tensor, noise: Tensor, out: Tensor) -> Tensor:
        """Returns ``out``, filled with actions."""
        block = max(_BLOCK // self._of_x.shape[1], 1)
        # In inference mode operators cost less; ``out`` was made outside and is a plain tensor. Not
        # by `torch.inference_mode`, which for a single row is 3 % of the time.
        with torch._C._InferenceMode(True):
            if len(out) <= block:
                self._block(obs, noise, out)
            else:
                parts = (torch.split(tensor, block) for tensor in (obs, noise, out))
                for rows in zip(*parts, strict=True):
                    self._block(*rows)
        return out

    def _block(self, obs: Tensor, noise: Tensor, out: Tensor) -> None:
        b = self._buffers(noise.shape[0])
        torch.sub(obs, b.mean, out=b.normalised).div_(self._scale)
        b.y.copy_(noise)
        for operator in b.operators:
            operator()
        torch.add(b.y, self._biases[-1], alpha=self._gamma, out=out).clamp_(-1.0, 1.0)

    def _buffers(self, rows: int) -> _Buffers:
        """Returns this thread's buffers, those of the last call if it had as many rows."""
        found: _Buffers | None = getattr(self._local, "buffers", None)
        if found is None or found.rows != rows:
            found = self._local.buffers = self._allocate(rows)
        return found

    def _allocate(self, rows: int) -> _Buffers:
        """Returns buffers for so many rows, and the operators that work on them.

        Operators are bound to what they read and write once, not on every call: to look that up
        is a twentieth of the time of a single row.
        """
        new, bind = self._mean.new_empty, functools.partial
        steps, obs_dim, width = len(self._alpha), len(self._mean), self._of_x.shape[1]
        inputs = new(steps, self._weights[0].shape[0])  # (K, O + A + 2 E), of the first layer
        times = inputs[:, obs_dim:]
        bias_shares = times[:, : self._action_dim]
        times[:, self._action_dim :] = self._embedded
        # Two rows are multiplied sooner than one: one goes to the product of matrix and vector,
        # which reads these weights against the grain. The second row is never looked at.
        padded = max(rows, 2)
        # The first layer before x comes to it; jumps compute in place there.
        biased = self._mean.new_zeros(steps, padded, width)
        operators: list[Callable[[], object]] = [
            bind(torch.mul, self._bias_shares, self._biases[-1], out=bias_shares)
        ]
        if rows == 1:
            # One observation goes with all times at once.
            mean, normalised = self._mean.expand(steps, -1), inputs[:, :obs_dim]
            together = biased[:, 0]
            operators.append(
                bind(torch.addmm, self._biases[0], inputs, self._weights[0], out=together)
            )
        else:
            # Of several, each part is taken once.
            mean, normalised = self._mean, new(rows, obs_dim)
            projected, constants = new(rows, width), new(steps, width)
            operators += [
                bind(torch.addmm, self._biases[0], normalised, self._of_obs, out=projected),
                bind(torch.mm, times, self._of_rest, out=constants),
                bind(torch.add, projected, constants.unsqueeze(1), out=biased),
            ]
        # The rows of W_x are apart; to gather them once per jump is slower.
        of_x, y = new(self._action_dim, width), new(rows, self._action_dim)
        operators.append(bind(of_x.copy_, self._of_x))
        deeper = []
        for bias, weight in zip(self._biases[1:-1], self._weights[1:-1], strict=True):
            shift = bias.unsqueeze(0)
            if rows == 1:  # a product first copies its bias: two rows sooner than one for both
                shift = new(padded, len(bias))
                operators.append(bind(shift.copy_, bias))
            deeper.append((shift, weight, self._mean.new_zeros(padded, len(bias))))
        scratch: dict[int, tuple[Tensor, Tensor]] = {}
        for step, (inner, alpha, beta) in enumerate(
            zip(self._inner, self._alpha, self._beta, strict=True)
        ):
            h = biased[step]
            operators.append(bind(h[:rows].addmm_, y, of_x, alpha=inner))
            operators.append(_activation(h[:rows], scratch))
            for shift, weight, output in deeper:
                operators.append(bind(torch.addmm, shift, h, weight, out=output))
                operators.append(_activation(output[:rows], scratch))
                h = output
            operators.append(bind(y.addmm_, h[:rows], self._weights[-1], beta=alpha, alpha=beta))
        return _Buffers(rows, mean, normalised, y, operators)


def _activation(x: Tensor, scratch: dict[int, tuple[Tensor, Tensor]]) -> Callable[[], object]:
    """Returns what computes Mish in place; equal widths share what it needs beside."""
    if x.numel() < SMALLEST_MISH:
        # `torch.nn.functional` would cost few elements a fifth on top of what it calls.
        return functools.partial(torch._C._nn.mish_, x)
    if x.shape[1] not in scratch:
        scratch[x.shape[1]] = torch.empty_like(x), torch.empty_like(x)
    return functools.partial(mish_, x, scratch[x.shape[1]])


Plan = SamplerPlan | DevicePlan
# Devices for which there is one.
PLANNED = ("cpu", "cuda")


class PlanCache:
    """The plans of one actor by number of jumps; a copy of the actor starts without any."""

    def __init__(self) -> None:
        self._plans: dict[int, tuple[Parts, Plan]] = {}

    def __reduce__(self) -> tuple[type["PlanCache"], tuple[()]]:
        """Copies and pickles as an empty cache: plans hold views and buffers of threads."""
        return PlanCache, ()

    def find(
        self,
        network: nn.Module | None,
        normalizer: nn.Module | None,
        times: TimeSchedule,
        sigma_data: float,
        steps: int,
    ) -> Plan | None:
        """Returns a plan that fits, made anew if need be; None if there can be none."""
        found = self._plans.get(steps)
        if found is not None and found[0].are(network, normalizer, times, sigma_data):
            return found[1]
        if why_no_plan(network, normalizer, steps):
            return None
        assert isinstance(network, FlowMapMLP)
        assert isinstance(normalizer, ObservationNormalizer)
        parts = Parts(network, normalizer, times, sigma_data)
        with torch.no_grad():
            grid = times.grid(steps, dtype=normalizer.mean.dtype)
            kind = SamplerPlan if normalizer.mean.is_cpu else DevicePlan
            plan = kind(network, normalizer, grid, sigma_data)
        self._plans[steps] = parts, plan
        return plan


def has_default_layers(network: nn.Sequential) -> bool:
    """Tells whether a network's layers are those that `gtp_policy.networks.mlp` builds."""
    kinds = [nn.Linear if i % 2 == 0 else Mish for i in range(len(network))]
    return len(network) >= 3 and len(network) % 2 == 1 and [type(m) for m in network] == kinds


def why_no_plan(network: nn.Module | None, normalizer: nn.Module | None, steps: int) -> str:
    """Returns what is not as planned; empty for the default network, as built, on one device."""
    if steps > _MOST_STEPS:
        return f"{steps} jumps are more than {_MOST_STEPS}"
    if type(network) is not FlowMapMLP or type(normalizer) is not ObservationNormalizer:
        return "the network or its normaliser is not the default one"
    if type(network.mlp) is not nn.Sequential or type(network.embedding) is not TimeEmbedding:
        return "a part of the network was replaced"
    layers = list(network.mlp)
    if not has_default_layers(network.mlp):
        return "the network has other layers than the default one"
    watched = [network, network.embedding, network.mlp, normalizer, *layers]
    if any(m._forward_hooks or m._forward_pre_hooks for m in watched):
        return "the network has hooks"
    if any(m._parameters["bias"] is None for m in layers[::2]):
        return "a layer has no bias"
    tensors = [*network.mlp.parameters(), *normalizer.buffers()]
    if tensors[0].device.type not in PLANNED:
        return f"the device is {tensors[0].device}"
    if len({t.device for t in tensors}) > 1:
        return "parameters are on several devices"
    if len({t.dtype for t in tensors}) > 1:
        return "parameters have several dtypes"
    return ""
