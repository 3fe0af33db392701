"""Why a fast way does not fit: the one list of reasons, for what an update is made of."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gtp_policy._engine.adam import is_plain_adam
from gtp_policy._fingerprint import UPDATING, knows, replaced, watched
from gtp_policy._folding import DEVICES, layer_parameters, network_reasons
from gtp_policy.actor import FlowMapActor
from gtp_policy.algorithm import Learner
from gtp_policy.critic import QEnsemble, QEnsembleConfig, ValueNetwork
from gtp_policy.guidance import AdvantageWeighter, LinearQGuidance
from gtp_policy.kernels import mlp, philox
from gtp_policy.kernels.switch import engine
from gtp_policy.loss import GTPLoss
from gtp_policy.samplers import JumpSampler
from gtp_policy.teachers import JvpTeacher

knows(QEnsemble, ValueNetwork, GTPLoss, AdvantageWeighter)

_KINDS: dict[str, type[Any]] = {"actor": FlowMapActor, "critic": QEnsemble, "value": ValueNetwork}


def against_by_hand(learners: Sequence[Learner]) -> str | None:
    """Returns why gradients by hand cannot do what the reference would, or None."""
    for learner in learners:
        for reason in _reasons(learner):
            return reason
    if any(_choices(learner) != _choices(learners[0]) for learner in learners):
        return "the learners differ in more than the seed"
    if len(learners) > 1 and any(_custom_weighter(learner) for learner in learners):
        return "the weighter is a custom class, which takes one learner at a time"
    return None


def against_recording(learners: Sequence[Learner]) -> str | None:
    """Returns why an update by hand is not recorded, or None."""
    first = learners[0]
    through_steps = isinstance(first.guidance, LinearQGuidance) and not jumps_once(first)
    if through_steps or isinstance(first.loss.config.teacher, JvpTeacher):
        return "a part of it needs autograd"
    for learner in learners:
        if _custom_weighter(learner):
            return "the weighter is a custom class"
        for name, optimizer in learner.optimizers.items():
            if not is_plain_adam(optimizer, list(getattr(learner, name).parameters())):
                return f"the optimiser of {name} is not a plain torch.optim.Adam"
    if type(first.loss).draw is not GTPLoss.draw or "draw" in vars(first.loss):
        return "the loss draws in a custom way"
    if first.processes is not None:
        return "several processes share it"
    if not philox.serves(first.actor.device):
        return "CUDA graphs need a CUDA device"
    return against_triton(learners)


def against_triton(learners: Sequence[Learner]) -> str | None:
    """Returns why what is between the products of an update is not Triton's, or None."""
    first = learners[0]
    if first.actor.config.chunk > 1:
        return "actions are chunks, whose padding Triton's kernels do not know"
    if mlp.in_blocks(first.actor.fixed_noise):
        return "the device is the CPU"
    if engine() != "auto":
        return f'kernels.using("{engine()}") selects it'
    from gtp_policy.kernels import mlp_triton, update_triton  # importing Triton takes time

    for learner in learners:
        for _, module in _networks(learner):
            parameters = [p.detach() for p in _known(module)]
            ensemble = isinstance(module, QEnsemble)
            matrices = parameters[: len(module.weights)] if ensemble else parameters[::2]
            stacked = [m if ensemble else m.mT.unsqueeze(0) for m in matrices]
            normalizer = [module.normalizer.mean, module.normalizer.scale]
            reason = mlp_triton.unsupported(stacked)
            reason = reason or update_triton.unsupported([*parameters, *normalizer])
            if reason is not None:
                return reason
    return None


def jumps_once(learner: Learner) -> bool:
    """Returns whether linear-Q guidance is in force and goes through one jump of the flow map."""
    guidance, actor = learner.guidance, learner.actor.config
    if learner.critic is None or not isinstance(guidance, LinearQGuidance):
        return False
    return (guidance.steps or actor.steps) == 1 and isinstance(actor.sampler, JumpSampler)


def _choices(learner: Learner) -> tuple[Any, ...]:
    """Returns what seeds that are updated as one must have in common."""
    return (
        learner.config.replace(seed=0),
        learner.guidance,
        learner.critic_learns,
        learner.loss.config,
        learner.weighter.config,
        learner.actor.config,
        _critic_config(learner.critic),
        [*learner.learning_rates],
    )


def _custom_weighter(learner: Learner) -> bool:
    return type(learner.weighter) is not AdvantageWeighter


def _reasons(learner: Learner) -> Iterator[str]:
    device, dtype = learner.actor.device, learner.actor.dtype
    if device.type not in DEVICES:
        yield f"the device is {device}"
    if dtype not in (torch.float32, torch.float64):
        yield f"the dtype is {dtype}"
    for name, module in _networks(learner):
        if type(module) is not _KINDS[name]:
            yield f"{name} is a {type(module).__name__}, a custom class"
            return
        for reason in network_reasons(module, flow_map=name == "actor", methods=UPDATING):
            yield f"{name} {reason}"
        own = list(module.parameters())
        if [id(p) for p in own] != [id(p) for p in _known(module)]:
            yield f"{name} has further parameters, or shares some between layers"
        if not all(p.is_contiguous() for p in own):
            yield f"{name} has parameters that are not contiguous"
        if any(map(watched, own)):
            yield f"{name} has hooks on its parameters"
        tensors = [*own, *module.normalizer.buffers()]
        if any(t.device != device or t.dtype != dtype for t in tensors):
            yield f"{name} has another dtype or device than the actor"
    if _flow_map(learner.actor) != _flow_map(learner.target_actor):
        yield "the flow map of the target actor differs from the actor's"
    if _critic_config(learner.critic) != _critic_config(learner.target_critic):
        yield "the config of the target critic differs from the critic's"
    if type(learner.loss) is not GTPLoss:
        yield f"the loss is a {type(learner.loss).__name__}, a custom class"
        return
    parts: dict[str, nn.Module] = {"loss": learner.loss}
    if not _custom_weighter(learner):  # which is called as it is
        parts["weighter"] = learner.weighter
    for name, part in parts.items():
        for method in replaced(part, UPDATING):
            yield f"the {name} has a {method} that was put in the place of its class's"
    if learner.loss.config.compare_at != "s":
        yield f"the loss compares at {learner.loss.config.compare_at!r}"
    for name, optimizer in learner.optimizers.items():
        own = [p for p in getattr(learner, name).parameters() if p.requires_grad]
        stepped = [p for group in optimizer.param_groups for p in group["params"]]
        if len(own) != len(list(getattr(learner, name).parameters())):
            yield f"parameters of {name} are frozen"
        if {id(p) for p in own} != {id(p) for p in stepped}:
            yield f"the optimiser of {name} does not step exactly its parameters"


def _flow_map(actor: FlowMapActor) -> tuple[Any, ...]:
    """Returns what one computation for an actor and its target network takes from either."""
    config = actor.config
    statistics, embedding = config.action_statistics, getattr(actor.network, "embedding", None)
    return config.times, config.sigma_data, statistics, type(embedding)


def _critic_config(critic: QEnsemble | None) -> QEnsembleConfig | None:
    return None if critic is None else critic.config


def _networks(learner: Learner) -> Iterator[tuple[str, Any]]:
    """Yields every network with the name of its kind."""
    for name in ("actor", "target_actor", "critic", "target_critic", "value"):
        module = getattr(learner, name)
        if module is not None:
            yield name.removeprefix("target_"), module


def _known(module: Any) -> list[Tensor]:  # noqa: ANN401 - one of three kinds
    """Returns the parameters that gradients by hand know of, in the order of the module's own."""
    if isinstance(module, QEnsemble):
        return [*module.weights, *module.biases, *module.gains, *module.shifts]
    return layer_parameters(
        module.network.mlp if isinstance(module, FlowMapActor) else module.network
    )
