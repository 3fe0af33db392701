"""An actor as a folded network: made once along each grid, and kept for as long as it is right.

Times are kept, and what they are embedded to, once. Parameters are read where they are, on every
call, so an optimiser's step, ``load_state_dict`` and a write through ``.data`` all count at once.
`FlowMapActor._jump` is the reference; `gtp_policy.kernels.folded` has the mathematics.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gtp_policy._config import Config
from gtp_policy._contexts import outside
from gtp_policy._fingerprint import GLOBAL_HOOKS, SAMPLING, Fingerprint, hooks_of, knows, replaced
from gtp_policy.functional import precondition
from gtp_policy.kernels.folded import Folded, FoldedSampler, Precision, TorchSampler, compiled
from gtp_policy.kernels.switch import engine
from gtp_policy.networks import FlowMapMLP, LogRatioEmbedding, Mish, TimeEmbedding
from gtp_policy.spaces import ObservationNormalizer

# Devices that have a folded sampler.
DEVICES = ("cpu", "cuda")
# Beyond it a block of rows would need more memory than it saves time, at numbers of steps that no
# sampling needs.
_MOST_STEPS = 32
# Beyond it torch's matrix products gain more from the rows than the compiled sampler does.
_FEW_ROWS = 24
_EMBEDDINGS = TimeEmbedding, LogRatioEmbedding

knows(nn.Linear, nn.Sequential, Mish, FlowMapMLP, ObservationNormalizer, *_EMBEDDINGS)


@torch.no_grad()
def fold(
    actor: Any,  # noqa: ANN401 - a FlowMapActor, whose module imports this one
    steps: int,
    parameters: Sequence[Tensor] | None = None,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Folded:
    """Folds an actor's network along a grid; waits for the device if its embedding lives there.

    Args:
        actor: Of the default network.
        steps: K.
        parameters: Weights and biases by turns, in the memory of the parameters, each ([S,] ...)
            where those of several seeds are stacked; default the actor's own.
        statistics: Mean and standard deviation of the observations, ([S,] O); default its own.
    """
    network: FlowMapMLP = actor.network
    if parameters is None:
        parameters = layer_parameters(network.mlp)
    mean, scale = statistics or (actor.normalizer.mean, actor.normalizer.scale)
    weights, biases = parameters[::2], parameters[1::2]
    grid = actor.times.grid(steps, dtype=mean.dtype)
    embedded = network.embedding(grid.to(weights[0].device))
    # As arrays: on the CPU this is no transfer.
    skip, out, inner = (
        c.double().numpy() for c in precondition(grid[:-1], actor.sigma_data, actor.times.path)
    )
    standardised = actor.config.action_statistics is not None
    # Without statistics the reference does not look at these buffers, whatever is in them.
    center, spread = actor.action_mean, actor.action_scale
    if not standardised:
        center, spread = torch.zeros_like(center), torch.ones_like(spread)
    ratio = (grid[1:] / grid[:-1]).double().numpy()
    return Folded(
        weights=tuple(weight.detach() for weight in weights),
        biases=tuple(bias.detach() for bias in biases),
        mean=mean.detach(),
        scale=scale.detach(),
        center=center,
        spread=spread,
        standardised=standardised,
        embedded=torch.cat([embedded[:-1], embedded[1:]], 1),
        start=grid.numpy()[0].item(),
        inner=tuple(inner.tolist()),
        alpha=tuple((ratio + (1 - ratio) * skip).tolist()),
        beta=tuple(((1 - ratio) * out).tolist()),
    )


def fastest(folded: Folded, precision: Precision = "fp32") -> tuple[FoldedSampler, str]:
    """Returns the fastest sampler for many rows, and why not the Triton kernel, if so.

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


class FoldedActor:
    """An actor's sampler along one grid: which kernel takes so many rows.

    Args:
        folded: The actor's network, or those of several seeds.
        precision: As for `fastest`.
    """

    def __init__(self, folded: Folded, precision: Precision = "fp32") -> None:
        self._folded = folded
        self._many, self._why_not = fastest(folded, precision)
        self._on_cpu = folded.mean.is_cpu

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Returns actions in [-1, 1], ([S,] B, A), for observations and noise, ([S,] B, ...)."""
        if self._on_cpu and obs.shape[0] <= _FEW_ROWS and engine() == "auto":
            few, _ = self._few
            if few is not None:
                return few(obs, noise)
        return self._many.sample(obs, noise)

    def backend(self, rows: int) -> tuple[str, str]:
        """Returns "numba", "triton" or "torch", and why not what would be faster."""
        if not self._on_cpu:
            return ("torch", self._why_not) if self._why_not else ("triton", "")
        if rows > _FEW_ROWS:
            return "torch", f"its matrix products are the faster ones beyond {_FEW_ROWS} rows"
        if engine() != "auto":
            return "torch", f'kernels.using("{engine()}") selects it'
        few, why_not = self._few
        return ("torch", why_not) if few is None else ("numba", "")

    @functools.cached_property
    def _few(self) -> tuple[Callable[[Tensor, Tensor], Tensor] | None, str]:
        return compiled(self._folded)


class _Made(NamedTuple):
    kind: type[Any]
    config: Config
    fingerprint: Fingerprint
    sampler: FoldedActor | None
    why_not: str


class Foldings:
    """What an actor was folded to, by number of jumps; a copy of the actor starts without any."""

    def __init__(self) -> None:
        self._made: dict[int, _Made] = {}

    def __reduce__(self) -> tuple[type["Foldings"], tuple[()]]:
        """Copies and pickles as empty: what was folded holds views and buffers of threads."""
        return Foldings, ()

    def find(
        self,
        actor: Any,  # noqa: ANN401 - a FlowMapActor, whose module imports this one
        steps: int,
        changes: Callable[[], Iterable[str]],
    ) -> tuple[FoldedActor | None, str]:
        """Returns the actor's sampler, made anew if need be, or None and why there is none.

        Args:
            actor: Always the same one.
            steps: K.
            changes: Returns in what its flow map or its sampler is not the library's own.
        """
        found, config = self._made.get(steps), actor.config
        if (
            found is None
            or found.kind is not type(actor)
            or not (found.config is config or found.config == config)
            or not found.fingerprint.holds()
        ):
            why_not = next(reasons(actor, changes()), "")
            if steps > _MOST_STEPS:
                why_not = f"{steps} jumps are more than {_MOST_STEPS}"
            with outside():  # it is kept
                sampler = None if why_not else FoldedActor(fold(actor, steps))
            found = _Made(type(actor), config, Fingerprint(actor), sampler, why_not)
            self._made[steps] = found
        return found.sampler, found.why_not


def reasons(actor: Any, changes: Iterable[str]) -> Iterator[str]:  # noqa: ANN401
    """Yields why an actor cannot be folded."""
    for reason in itertools.chain(changes, network_reasons(actor, flow_map=True)):
        yield f"the actor {reason}"


def network_reasons(
    module: Any,  # noqa: ANN401
    *,
    flow_map: bool,
    methods: tuple[str, ...] = SAMPLING,
) -> Iterator[str]:
    """Yields in what an actor, critic or value network is not as the library builds it.

    Args:
        module: With an encoder, a normaliser and, unless it is an ensemble, a network.
        flow_map: Whether the network is that of an actor.
        methods: Those that are computed in another way.
    """
    if module.encoder is not None:
        yield "has an encoder"
    if type(module.normalizer) is not ObservationNormalizer:
        yield "has a custom normaliser"
    mlp = getattr(module, "network", None)
    if flow_map:
        if type(mlp) is not FlowMapMLP or type(mlp.embedding) not in _EMBEDDINGS:
            yield "has a custom network"
            return
        mlp = mlp.mlp
    if mlp is not None:
        if type(mlp) is not nn.Sequential or not _has_default_layers(mlp):
            yield "has a network of other layers"
            return
        if any(layer.bias is None for layer in list(mlp)[::2]):
            yield "has a layer without bias"
    if any(any(hooks_of(m)) for m in module.modules()):
        yield "has hooks"
    if any(GLOBAL_HOOKS):
        yield "is under hooks of all modules of this process"
    for name, part in module.named_modules():
        changed = replaced(part, methods)
        if changed:
            where = f" of {name}" if name else ""
            yield f"has a {changed[0]}{where} that was put in the place of its class's"
    tensors = [*module.parameters(), *module.normalizer.buffers()]
    if len({t.device for t in tensors}) > 1:
        yield "has parameters on several devices"
    elif tensors[0].device.type not in DEVICES:
        yield f"is on {tensors[0].device}"
    if len({t.dtype for t in tensors}) > 1:
        yield "has parameters of several dtypes"


def _has_default_layers(network: nn.Sequential) -> bool:
    """Returns whether layers are those that `gtp_policy.networks.mlp` builds."""
    kinds = [nn.Linear if i % 2 == 0 else Mish for i in range(len(network))]
    return len(network) >= 3 and len(network) % 2 == 1 and [type(m) for m in network] == kinds


def layer_parameters(network: Any) -> list[Tensor]:  # noqa: ANN401 - typed too widely by torch
    """Returns weights and biases by turns, layer by layer, also those that layers share."""
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    return [p for layer in layers for p in (layer.weight, layer.bias)]
