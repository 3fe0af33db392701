"""Which way an update is computed: the fastest that does what the reference would do, or that.

The choice is made once for a learner as it stands, and anew whenever something it rests on has
changed: a parameter that moved, a module or a hook that came, a config, the number of rows.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gtp_policy._engine.adam import is_plain_adam, standing
from gtp_policy._engine.by_hand import FusedUpdate
from gtp_policy._engine.cuda_graph import GraphedUpdate, Step
from gtp_policy._folding import has_default_layers
from gtp_policy.actor import FlowMapActor
from gtp_policy.algorithm import Draws, Parts, reference_update
from gtp_policy.critic import QEnsemble, ValueNetwork
from gtp_policy.guidance import AdvantageWeighter, LinearQGuidance
from gtp_policy.kernels import engine, few_threads
from gtp_policy.loss import GTPLoss
from gtp_policy.networks import FlowMapMLP, TimeEmbedding
from gtp_policy.spaces import ObservationNormalizer
from gtp_policy.teachers import JvpTeacher
from gtp_policy.transitions import Transitions

# Updates per launch: a launch is then a small share of them, and recording them takes no time.
LAUNCH = 16


class Engine:
    """Computes updates of one or several learners; a copy of it starts without memory."""

    def __init__(self) -> None:
        self._stamp: tuple[Any, ...] = ()
        self._fused: FusedUpdate | GraphedUpdate | None = None
        self._several: GraphedUpdate | None = None  # the same, for several updates at once

    def __reduce__(self) -> tuple[type["Engine"], tuple[()]]:
        """Copies and pickles as a new engine: buffers belong to the networks they were made for."""
        return Engine, ()

    def update(
        self, learners: Sequence[Parts], batch: Transitions, draws: Draws
    ) -> dict[str, Tensor]:
        """Does lines 4 to 9 of Algorithm 1 for every learner and returns metrics, (S,) each."""
        fused = self._find(learners, len(batch.obs) // len(learners))
        if fused is not None:
            # Also for a caller in inference mode: what is made here outlives it.
            with few_threads(), torch.inference_mode(False):
                return fused(batch, draws, learners[0].rates)
        told = [
            reference_update(parts, *own)
            for parts, own in zip(learners, _split(batch, draws, len(learners)), strict=True)
        ]
        return {name: torch.stack([metrics[name] for metrics in told]) for name in told[0]}

    def updates_per_launch(self, learners: Sequence[Parts], rows: int) -> int:
        """Returns how many updates `run` does at once, for learners as they stand; 1: none."""
        return LAUNCH if isinstance(self._find(learners, rows), GraphedUpdate) else 1

    def run(self, steps: Sequence[Step]) -> dict[str, Tensor]:
        """Does `updates_per_launch` updates and returns metrics of the last one, (S,) each."""
        if self._several is None:
            assert isinstance(self._fused, GraphedUpdate)
            self._several = self._fused.another()
        with torch.inference_mode(False):
            return self._several.run(steps)

    def _find(self, learners: Sequence[Parts], rows: int) -> FusedUpdate | GraphedUpdate | None:
        """Returns the fast way for learners as they stand, or None."""
        if momentarily_unsupported(learners[0].actor.fixed_noise):
            return None
        stamp = (rows, engine(), *_stamp(learners))
        if stamp != self._stamp:
            self._fused = self._several = None  # first: memory for one set of buffers suffices
            with torch.inference_mode(False):
                self._fused = _build(learners, rows)
            self._stamp = stamp
        return self._fused


def _split(batch: Transitions, draws: Draws, seeds: int) -> Iterator[tuple[Transitions, Draws]]:
    """Yields what belongs to each seed."""
    for i in range(seeds):

        def own(x: Tensor | None, i: int = i) -> Any:  # noqa: ANN401 - None stays None
            return None if x is None else x.chunk(seeds)[i]

        times = type(draws.times)(*map(own, draws.times))
        yield (
            Transitions(*map(own, batch)),
            Draws(own(draws.backup), own(draws.baseline), times, own(draws.z), own(draws.guide)),
        )


def _build(learners: Sequence[Parts], rows: int) -> FusedUpdate | GraphedUpdate | None:
    if any(unsupported(parts) for parts in learners):
        return None
    if any(_choices(parts) != _choices(learners[0]) for parts in learners):
        return None
    if len(learners) > 1 and any(_own_weights(parts) for parts in learners):
        return None
    fused = FusedUpdate(learners, rows)
    recorded = fused.recordable and not any(_unrecorded(parts) for parts in learners)
    return GraphedUpdate(fused) if recorded else fused


def _own_weights(parts: Parts) -> bool:
    return type(parts.weighter) is not AdvantageWeighter


def _unrecorded(parts: Parts) -> str | None:
    """Returns why a fused update is not recorded, or None."""
    if isinstance(parts.guidance, LinearQGuidance) or isinstance(
        parts.loss.config.teacher, JvpTeacher
    ):
        return "autograd has a part in it"
    if _own_weights(parts):
        return "the weighter is a class of its own"
    for name, optimizer in parts.optimizers.items():
        if not is_plain_adam(optimizer, list(getattr(parts, name).parameters())):
            return f"the optimiser of {name} is not Adam as it comes"
    return None if parts.actor.fixed_noise.device.type == "cuda" else "only CUDA records"


def _choices(parts: Parts) -> tuple[Any, ...]:
    """Returns what seeds that are updated as one must have in common."""
    config = parts.config.replace(seed=0)
    return (
        config,
        parts.guidance,
        parts.loss.config,
        parts.weighter.config,
        parts.actor.config,
        [*parts.rates],
    )


def explain(parts: Parts) -> str:
    """Returns which way a learner's next update will take, and why."""
    like = parts.actor.fixed_noise
    reason = momentarily_unsupported(like) or unsupported(parts)
    if reason is not None:
        return f"update: reference (modules and autograd), because {reason}"
    why_not = _unrecorded(parts)
    how = "recorded as a CUDA graph" if why_not is None else "into buffers"
    if why_not is not None and like.device.type == "cuda":
        how += f", not recorded because {why_not}"
    told = f"update: fused (gradients by hand, {how}) on {like.device}, {like.dtype}"
    if parts.config.no_grad_precision == "bfloat16":
        told += ", bfloat16 products where no gradient is taken"
    return told


def momentarily_unsupported(like: Tensor) -> str | None:
    """Returns why nothing but the reference may run at this moment, or None."""
    if engine() == "reference":
        return 'kernels.using("reference") asks for it'
    if torch.is_anomaly_enabled():
        return "anomaly detection is on, which watches autograd"
    if torch.is_autocast_enabled(like.device.type):
        return "autocast is on"
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return "a compiler or a function transform is at work"
    return None


def unsupported(parts: Parts) -> str | None:
    """Returns why the fused update cannot do what the reference would, or None."""
    return next(_reasons(parts), None)


def _reasons(parts: Parts) -> Iterator[str]:
    like = parts.actor.fixed_noise
    if like.device.type not in ("cpu", "cuda"):
        yield f"the device is {like.device}"
    if like.dtype not in (torch.float32, torch.float64):
        yield f"the dtype is {like.dtype}"
    module: Any
    for name, module in _modules(parts):
        kind: type[Any] = _KINDS[name]
        if type(module) is not kind:
            yield f"{name} is a {type(module).__name__}, a class of its own"
            return
        if module.encoder is not None:
            yield f"{name} has an encoder"
        if type(module.normalizer) is not ObservationNormalizer:
            yield f"{name} has another normaliser"
        network = getattr(module, "network", None)
        if isinstance(module, FlowMapActor):
            if type(network) is not FlowMapMLP or type(network.embedding) is not TimeEmbedding:
                yield f"{name} has a network of its own"
                return
            network = network.mlp
        if network is not None and not _is_mlp(network):
            yield f"{name} has a network of its own"
        if isinstance(module, QEnsemble) and module.config.layer_norm:
            yield f"{name} has layer normalisation"
        own = list(module.parameters())
        if [id(p) for p in own] != [id(p) for p in _known(module)]:
            yield f"{name} has further parameters, or shares some between layers"
        if not all(p.is_contiguous() for p in own):
            yield f"{name} has parameters that are not contiguous"
        if any(_watched(p) for p in own):
            yield f"{name} has hooks on its parameters"
        tensors = [*own, *module.normalizer.buffers()]
        if any(t.device != like.device or t.dtype != like.dtype for t in tensors):
            yield f"{name} has parameters of several dtypes or devices"
        if any(_hooked(m) for m in module.modules()):
            yield f"{name} has hooks"
    if type(parts.loss) is not GTPLoss:
        yield f"the loss is a {type(parts.loss).__name__}, a class of its own"
        return
    c = parts.loss.config
    if c.compare_at != "s":
        yield f"the loss compares at {c.compare_at!r}"
    for name, optimizer in parts.optimizers.items():
        own = [p for p in getattr(parts, name).parameters() if p.requires_grad]
        stepped = [p for group in optimizer.param_groups for p in group["params"]]
        if len(own) != len(list(getattr(parts, name).parameters())):
            yield f"parameters of {name} are frozen"
        if {id(p) for p in own} != {id(p) for p in stepped}:
            yield f"the optimiser of {name} does not step exactly its parameters"


_KINDS: dict[str, type[Any]] = {"actor": FlowMapActor, "critic": QEnsemble, "value": ValueNetwork}


def _is_mlp(network: nn.Module) -> bool:
    """Tells whether a network is what `gtp_policy.networks.mlp` builds, with all its biases."""
    if type(network) is not nn.Sequential or not has_default_layers(network):
        return False
    return all(layer.bias is not None for layer in list(network)[::2])


def _modules(parts: Parts) -> Iterator[tuple[str, Any]]:
    """Yields every network with the name of its kind."""
    for name in ("actor", "target_actor", "critic", "target_critic", "value"):
        module = getattr(parts, name)
        if module is not None:
            yield name.removeprefix("target_"), module


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _known(module: Any) -> list[nn.Parameter]:  # noqa: ANN401 - one of three kinds
    """Returns the parameters that the fused update knows of, in the order of the module's own."""
    if isinstance(module, QEnsemble):
        return [*module.weights, *module.biases]
    layers: Any = module.network.mlp if isinstance(module, FlowMapActor) else module.network
    return [p for layer in layers[::2] for p in (layer.weight, layer.bias)]


def _watched(tensor: Tensor) -> bool:
    return bool(tensor._backward_hooks or tensor._post_accumulate_grad_hooks)


def _stamp(learners: Sequence[Parts]) -> Iterator[Any]:
    """Yields everything that the choice and its buffers rest on."""
    for name in learners[0].optimizers:  # not the rates themselves, which a schedule changes
        yield len({parts.optimizers[name].param_groups[0]["lr"] for parts in learners}) == 1
    for parts in learners:
        yield from (parts.config, parts.guidance, parts.loss, parts.loss.config, parts.weighter)
        yield from (parts.weighter.config, parts.actor.config, parts.target_actor.config)
        for optimizer in parts.optimizers.values():
            yield optimizer
            yield from standing(optimizer)
        for _, root in _modules(parts):
            for module in root.modules():
                yield module
                yield _hooked(module)
                for tensor in (*module._parameters.values(), *module._buffers.values()):
                    if tensor is not None:
                        yield tensor.data_ptr()
                        yield tensor.requires_grad
                        yield tensor.stride()
                        yield _watched(tensor)
