"""A learner as the content of files, and back: what stands in a checkpoint and under which name."""

import copy
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import safetensors.torch
import torch
from pydantic import Field, JsonValue, ValidationError
from torch import Tensor, nn

from gtp_policy._config import RECORDED, AnyFloat, Bool, Config, Float, Int, Name, Width
from gtp_policy._engine.whole import check_whole
from gtp_policy.checkpoint import bundle
from gtp_policy.config import GTPConfig
from gtp_policy.critic import NetworkBaseline
from gtp_policy.encoders import ImpalaEncoder
from gtp_policy.errors import CheckpointError, NonFiniteError, StateMismatchError
from gtp_policy.guidance import AdvantageWeighter
from gtp_policy.learner import GTPLearner
from gtp_policy.loss import GTPLoss
from gtp_policy.networks import FlowMapMLP, features_dim
from gtp_policy.records import what_is_wrong
from gtp_policy.spaces import ActionScaler, ObservationLayout, ObservationNormalizer

CONFIG, WEIGHTS, TRAIN_STATE = "config.json", "weights.safetensors", "train_state.safetensors"
_LIMITS = {CONFIG: 2**20}
# Lists and objects in config.json: to read a megabyte of empty ones takes seconds. Of others, as
# they are written, it holds no more.
_MOST_PARTS = 2**16
# Bytes in which a file of tensors names them, and how many it names: each takes a kilobyte.
_MOST_NAMES, _MOST_TENSORS = 2**21, 10_000
# What of a learner's state config.json and train_state.safetensors hold.
_SAID_BY_CONFIG = "_extra_state", "actor._extra_state", "target_actor._extra_state"
# Options that schedulers of torch leave in an optimiser.
_OF_SCHEDULERS = {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum"}
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


class _Box(Config):
    low: tuple[AnyFloat, ...]
    high: tuple[AnyFloat, ...]


class _Layout(Config):
    keys: tuple[str, ...]
    shapes: tuple[tuple[Width, ...], ...]


class _OptimizerState(Config):
    """The numbers of an optimiser that are no tensors: options, and state by parameter."""

    groups: tuple[dict[str, JsonValue], ...]
    numbers: dict[str, dict[str, JsonValue]]
    untrained: tuple[Annotated[Int, Field(ge=0)], ...] = ()  # parameters it has taken no step of


class Document(Config):
    """The content of config.json."""

    obs_dim: Width
    action_dim: Width
    updates: Int = Field(ge=0, le=2**53)
    dtype: Literal["float32", "float64", "bfloat16"]
    own_network: Bool  # a custom backbone, which no file can describe
    own_encoder: Bool
    # Classes that stand in the place of the package's, which no file can describe either.
    own_classes: dict[Literal["loss", "weighter"], Name] = Field(default={})
    config: GTPConfig
    action_box: _Box | None
    layout: _Layout | None
    optimizers: dict[str, _OptimizerState]
    # Of an optimiser that has not taken a step per update, as after a load without its state.
    optimizer_steps: dict[str, Annotated[Int, Field(ge=0)]] = Field(default_factory=dict)
    # Of a learner that is new: nobody has said how long its run is, and its first `fit` does.
    length_is_open: Bool = False
    mode_share: Float | None = Field(default=None, ge=0, le=1)  # of the target actor, if measured
    normalized_by: Name | None = None  # the observations that the actor sees
    # Of what normalises observations inside the actor, by which a run is known without the tensors.
    statistics: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    metadata: dict[str, JsonValue]

    uncounted: ClassVar[frozenset[str]] = frozenset({"metadata"})  # any JSON is right there


def files_of(
    learner: GTPLearner,
    action_scaler: ActionScaler | None,
    layout: ObservationLayout | None,
    metadata: Mapping[str, JsonValue] | None,
) -> dict[str, bytes]:
    """Returns the content of every file but the manifest, once it is sure that it loads again.

    Raises:
        BrokenLearnerError: If an update of the learner ended half-way.
        CheckpointError: If something in it is no tensor and no JSON, or could not be read again.
        NonFiniteError: If a weight or a moment is not finite: training has diverged.
    """
    check_whole([learner])
    for name in ("actor", "critic"):
        own, target = getattr(learner, name), getattr(learner, f"target_{name}")
        if own is not None and own.config != target.config:
            raise CheckpointError(
                f"The learner cannot be saved: got a target {name} of another config than its "
                f"{name}'s, expected the same, of which a file holds one. Set `config` of both; or "
                "give `steps` of an actor where you act."
            )
    box = learner.action_scaler if action_scaler is None else action_scaler
    layout = learner.layout if layout is None else layout
    weights = _weights(learner)
    moments: dict[str, Tensor] = {}
    optimizers: dict[str, _OptimizerState] = {}
    steps: dict[str, int] = {}
    for name, optimizer in learner.optimizers.items():
        tensors, optimizers[name] = _split_optimizer(name, optimizer)
        taken = _steps_in(tensors)
        if taken != learner.updates and _keeps_steps(optimizer):
            steps[name] = taken
        moments |= tensors
    dtype = str(learner.dtype).removeprefix("torch.")
    try:
        document = Document(
            obs_dim=learner.actor.obs_dim,
            action_dim=learner.actor.action_dim,
            updates=learner.updates,
            dtype=dtype,
            own_network=not isinstance(learner.actor.network, FlowMapMLP),
            own_encoder=_has_own_encoder(learner),
            own_classes={
                name: type(getattr(learner, name)).__name__[:100]
                for name, own in (("loss", GTPLoss), ("weighter", AdvantageWeighter))
                if type(getattr(learner, name)) is not own
            },
            config=learner.open_config,
            action_box=box and _Box(low=tuple(box.low.tolist()), high=tuple(box.high.tolist())),
            layout=layout and _Layout(keys=layout.keys, shapes=layout.shapes),
            optimizers=optimizers,
            optimizer_steps=steps,
            length_is_open=not learner.updates
            and "total_updates" not in learner.config.model_fields_set,
            mode_share=learner.target_actor.mode_share,
            normalized_by=learner.normalized_by,
            statistics=statistics_of(weights),
            metadata=dict(metadata or {}),
        )
        # Through json and not pydantic: NaN in the metadata is an error, not null.
        text = json.dumps(document.model_dump(mode="json"), indent=1, allow_nan=False)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:  # of what was passed in
        raise CheckpointError(
            f"The learner cannot be saved: got {what_is_wrong(error)}, expected tensors and JSON "
            "values."
        ) from error
    bad = next(_bad_values(learner, weights, moments), None)
    if bad is not None:
        raise NonFiniteError(
            f"The learner cannot be saved: got {bad}, expected finite numbers. Training has "
            "diverged: go on from an earlier checkpoint, with a lower learning rate."
        )
    files = {
        CONFIG: text.encode(),
        WEIGHTS: _serialize(weights),
        TRAIN_STATE: _serialize(moments),
    }
    _check_loads(files, learner)
    return files


def statistics_of(weights: Mapping[str, Tensor]) -> str:
    """Returns a hash of what the actor in a state normalises observations by."""
    digest, prefix = hashlib.sha256(), "actor.normalizer."
    for name in sorted(name for name in weights if name.startswith(prefix)):
        digest.update(name.encode() + weights[name].double().cpu().numpy().astype("<f8").tobytes())
    return digest.hexdigest()


def _check_loads(files: Mapping[str, bytes], learner: GTPLearner) -> None:
    """Raises unless files can be read, and loaded into the learner that they are of."""
    try:
        read = state_of(files, {name: len(data) for name, data in files.items()})
        _checked(learner, Path("that is being written"), *read)
    except Exception as error:  # whatever keeps it from being read again
        raise CheckpointError(
            f"The learner cannot be saved: got {error}, expected what can be loaded again. Nothing "
            "was written."
        ) from error


def _has_own_encoder(learner: GTPLearner) -> bool:
    """Returns whether there is an encoder that the config does not name."""
    return not isinstance(learner.actor.encoder, ImpalaEncoder | None)


def _bad_values(
    learner: GTPLearner, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]
) -> Iterator[str]:
    """Yields what no training leaves behind; buffers of custom networks hold what they like."""
    normalizers = [n for n, m in learner.named_modules() if isinstance(m, ObservationNormalizer)]
    of_normalizers = [f"{n}.{part}" for n in normalizers for part in ("mean", "scale")]
    for name in [*dict(learner.named_parameters()), *of_normalizers]:
        if not weights[name].isfinite().all():
            yield f"{name} with NaN or infinity"
        elif name.endswith("normalizer.scale") and not (weights[name] > 0).all():
            yield f"{name} with a scale that is not positive"
    for name, moment in moments.items():
        if not moment.isfinite().all():
            yield f"{name} with NaN or infinity"
        elif name.endswith("exp_avg_sq") and (moment < 0).any():
            yield f"{name} with a negative mean of squares"


def _steps_in(moments: Mapping[str, Tensor]) -> int:
    """Returns how many steps an optimiser has taken, by its own count; 0 without one."""
    counts = [float(value) for name, value in moments.items() if name.endswith("/step")]
    if any(count != int(count) or count < 0 for count in counts):
        raise ValueError(f"steps {counts[:3]}, which are no counts")
    return int(max(counts, default=0))


def _keeps_steps(optimizer: torch.optim.Optimizer) -> bool:
    """Returns whether an optimiser counts its steps as Adam does."""
    return isinstance(optimizer, torch.optim.Adam)


def _weights(learner: GTPLearner) -> dict[str, Tensor]:
    weights = {}
    # Of a learner that is not whole too: a state can be loaded into it.
    for name, value in nn.Module.state_dict(learner).items():
        if name in _SAID_BY_CONFIG:
            continue
        if isinstance(value, Tensor):
            weights[name] = value
        else:
            raise CheckpointError(
                f"The learner cannot be saved: got {type(value).__name__} in {name!r} of its "
                "state, expected tensors. Keep such state in buffers."
            )
    return weights


def _serialize(tensors: Mapping[str, Tensor]) -> bytes:
    # Sorted, and no memory shared: equal content gives equal bytes.
    data = {n: tensors[n].detach().to("cpu").contiguous().clone() for n in sorted(tensors)}
    return safetensors.torch.save(data)


def _split_optimizer(
    part: str, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], _OptimizerState]:
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, JsonValue]] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{part}/{index}/{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    try:
        groups = [{k: _plain(v) for k, v in group.items()} for group in state["param_groups"]]
        every = [index for group in groups for index in group["params"]]
        return tensors, _OptimizerState(
            groups=tuple(groups),
            numbers=numbers,
            untrained=tuple(i for i in every if state["state"] and i not in state["state"]),
        )
    except ValidationError as error:
        raise CheckpointError(
            f"The optimiser of the {part} cannot be saved: got {error}, expected tensors and JSON "
            "values."
        ) from error


def _plain(value: Any) -> Any:  # noqa: ANN401 - an option of an optimiser may be anything
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, Tensor) and value.ndim == 0 else value


def read_document(
    path: Path, encoder: nn.Module | None = None, *, whole: bool = True
) -> tuple[Document, str]:
    """Reads the choices alone, of the tensors only the length; and the hash of all content."""
    others = (WEIGHTS, TRAIN_STATE) if whole else None
    files, lengths, content = bundle.read_bundle(path, [CONFIG], limit=_LIMITS, others=others)
    try:
        return _parse(files[CONFIG], lengths, encoder), content
    except Exception as error:  # as in read_bundle: hashes can be right and the content malicious
        raise bundle.unreadable(path, error) from error


def read_state(
    path: Path, encoder: nn.Module | None = None
) -> tuple[Document, dict[str, Tensor], dict[str, Tensor]]:
    """Returns the document, the weights and the training state of a checkpoint."""
    names = [CONFIG, WEIGHTS, TRAIN_STATE]
    files, lengths, _ = bundle.read_bundle(path, names, limit=_LIMITS, others=())
    try:
        return state_of(files, lengths, encoder)
    except Exception as error:  # as above
        raise bundle.unreadable(path, error) from error


def state_of(
    files: Mapping[str, bytes], lengths: Mapping[str, int], encoder: nn.Module | None = None
) -> tuple[Document, dict[str, Tensor], dict[str, Tensor]]:
    """Returns what files hold: the one rule for what is read and for what is written.

    Raises:
        Exception: Of any kind, if they are not those of a checkpoint.
    """
    if len(files[CONFIG]) > _LIMITS[CONFIG]:
        raise ValueError(
            f"{CONFIG} of {len(files[CONFIG])} bytes, of which {_LIMITS[CONFIG]} are read"
        )
    document = _parse(files[CONFIG], lengths, encoder)
    weights, moments = (_tensors(files[n], n) for n in (WEIGHTS, TRAIN_STATE))
    return document, weights, moments


def _tensors(data: bytes, name: str) -> dict[str, Tensor]:
    """Returns the tensors of a file, unless it names more of them than a learner has.

    A tensor takes a kilobyte of memory, and an empty one 50 bytes of the file.
    """
    names = int.from_bytes(data[:8], "little")
    if names > _MOST_NAMES:
        raise ValueError(
            f"{name} with {names} bytes of names and shapes, of which {_MOST_NAMES} are read"
        )
    tensors = data.count(b"{", 8, 8 + names) - 1  # no object of JSON begins otherwise
    if tensors > _MOST_TENSORS:
        raise ValueError(f"{name} with {tensors} tensors, of which {_MOST_TENSORS} are read")
    return safetensors.torch.load(data)


def _parse(data: bytes, lengths: Mapping[str, int], encoder: nn.Module | None) -> Document:
    """Returns the choices, once it is sure that the weights can fill what is built from them."""
    parts = data.count(b"[") + data.count(b"{")
    if parts > _MOST_PARTS:
        raise ValueError(
            f"{CONFIG} with {parts} lists and objects, of which {_MOST_PARTS} are read"
        )
    try:
        document = Document.model_validate_json(data, context=RECORDED)
    except ValidationError as error:
        raise ValueError(f"{CONFIG} with {what_is_wrong(error)}") from error
    saved_with(document)
    _check_size(document, lengths[WEIGHTS], encoder)
    return document


def config_of(document: Document) -> GTPConfig:
    """Returns the choices, with the length of the run left open where it was."""
    config = document.config
    if not document.length_is_open:
        return config
    learner = config.learner
    chosen = {n: getattr(learner, n) for n in learner.model_fields_set - {"total_updates"}}
    opened = type(learner).model_validate(chosen)
    return config.replace(learner=opened) if opened == learner else config


def saved_with(
    document: Document,
) -> tuple[ActionScaler | None, ObservationLayout | None, dict[str, JsonValue]]:
    """Returns what a document holds with the learner: scaler, layout and metadata.

    Raises:
        TypeError: If the bounds are no Box, or the layout has a part without elements.
        ValueError: If they, or the actions' statistics, do not fit the learner's dimensions.
    """
    box, parts = document.action_box, document.layout
    scaler = layout = None
    if box is not None:
        scaler = ActionScaler(box.low, box.high)
    if parts is not None and parts.keys:
        layout = ObservationLayout(dict(zip(parts.keys, parts.shapes, strict=True)))
    elif parts is not None:
        (shape,) = parts.shapes
        layout = ObservationLayout(shape)
    actor = document.config.actor
    statistics = actor.action_statistics
    # Bounds and layout are those of one step.
    action_dims = (scaler and scaler.action_dim * actor.chunk, statistics and len(statistics.mean))
    if (layout and layout.obs_dim * actor.history) not in (None, document.obs_dim) or any(
        n not in (None, document.action_dim) for n in action_dims
    ):
        raise ValueError(
            f"{CONFIG} whose bounds, layout or action statistics do not fit its dimensions"
        )
    return scaler, layout, document.metadata


def _check_size(document: Document, length: int, encoder: nn.Module | None) -> None:
    """Raises if the config needs more parameters than the file holds, before they are made."""

    def mlp(inputs: int, hidden: tuple[int, ...], outputs: int) -> int:
        return sum(i * o + o for i, o in itertools.pairwise([inputs, *hidden, outputs]))

    config, a = document.config, document.action_dim
    # Without the custom encoder, the number of its features is not known.
    features, inside = 0 if document.own_encoder else document.obs_dim, 0
    if encoder is None and config.encoder is not None:
        features, inside = config.encoder.count(document.obs_dim, config.actor.history)
    elif encoder is not None:
        features = features_dim(encoder, document.obs_dim)
        inside = sum(p.numel() for p in encoder.parameters())
    needed = a + 2 * document.obs_dim + inside
    if not document.own_network:
        needed += mlp(features + a + 2 * config.actor.time_dim, config.actor.hidden, a)
    if config.critic is not None:
        needed += inside + config.critic.members * mlp(features + a, config.critic.hidden, 1)
        if isinstance(config.learner.baseline, NetworkBaseline):
            needed += inside + mlp(features, config.learner.baseline.hidden, 1)
    held = length // DTYPES[document.dtype].itemsize
    if needed > held:
        raise ValueError(
            f"{CONFIG} for networks of at least {needed} numbers, and at most {held} in {WEIGHTS}"
        )


def fill_(
    learner: GTPLearner,
    path: Path,
    document: Document,
    weights: dict[str, Tensor],
    moments: dict[str, Tensor] | None,
) -> None:
    """Loads a state into a learner after checking all of it; without moments, no optimiser's."""
    learner.load_state_dict(_checked(learner, path, document, weights, moments))


def _checked(
    learner: GTPLearner,
    path: Path,
    document: Document,
    weights: dict[str, Tensor],
    moments: dict[str, Tensor] | None,
) -> dict[str, Any]:
    """Returns the state of a learner that a checkpoint says, every entry compared with its own."""
    own = _weights(learner)
    kinds = [
        {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
        for tensors in (weights, own)
    ]
    wrong = [
        f"{n} is {a} there, {b} here"
        for n in sorted(kinds[0].keys() | kinds[1].keys())
        if (a := kinds[0].get(n)) != (b := kinds[1].get(n))
    ]
    if wrong:
        raise StateMismatchError(
            f"Checkpoint {path} belongs to other networks: got {'; '.join(wrong[:3])} "
            f"({len(wrong)} in all), expected the same names, shapes and dtypes."
        )
    if moments is not None and sorted(document.optimizers) != sorted(learner.optimizers):
        raise StateMismatchError(
            f"Checkpoint {path} has the optimisers of another learner: got "
            f"{sorted(document.optimizers)}, expected {sorted(learner.optimizers)}."
        )
    bad = next(_bad_values(learner, weights, moments or {}), None)
    if bad is not None:
        raise CheckpointError(
            f"Checkpoint {path} cannot be used: got {bad}, expected what training leaves behind."
        )
    optimizers = {}
    for name, optimizer in learner.optimizers.items():
        if moments is None:
            optimizers[name] = optimizer.state_dict()
            continue
        try:
            optimizers[name] = _join_optimizer(name, optimizer, document, moments)
        except (KeyError, TypeError, ValueError) as error:
            raise StateMismatchError(
                f"Checkpoint {path} does not fit the optimiser of the {name}: got {error}, "
                f"expected the state of {type(optimizer).__name__}. To act, or to train on with "
                "this optimiser, pass train_state=False."
            ) from error
    own_state = nn.Module.state_dict(learner)
    extras = {n: own_state[n] for n in _SAID_BY_CONFIG}
    extras["_extra_state"] = {
        "updates": document.updates,
        "mode_share": document.mode_share,
        "normalized_by": document.normalized_by,
        "optimizers": optimizers,
    }
    return {**weights, **extras}


def _join_optimizer(
    part: str,
    optimizer: torch.optim.Optimizer,
    document: Document,
    moments: Mapping[str, Tensor],
) -> dict[str, Any]:
    """Returns a state dict for an optimiser, every entry compared with what it has itself."""
    saved = document.optimizers[part]
    live = optimizer.state_dict()["param_groups"]
    if len(live) != len(saved.groups):
        raise ValueError(f"{len(saved.groups)} parameter groups instead of {len(live)}")
    groups = [_join_group(own, group) for own, group in zip(live, saved.groups, strict=True)]
    expected = _state_after_a_step(optimizer)
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in moments.items():
        owner, number, key = name.split("/")
        if owner == part:
            state.setdefault(int(number), {})[key] = tensor
    for number, entries in saved.numbers.items():
        state.setdefault(int(number), {}).update(entries)
    for index, entries in state.items():
        got, own = ({k: _kind(v) for k, v in s.items()} for s in (entries, expected[index]))
        if got != own:
            raise ValueError(f"state {got} of parameter {index} instead of {own}")
    if _keeps_steps(optimizer):
        taken = _steps_in({n: t for n, t in moments.items() if n.startswith(f"{part}/")})
        steps = document.optimizer_steps.get(part, document.updates)
        if taken != steps:
            raise ValueError(f"{taken} steps where {steps} were taken")
        whole = not (document.own_network or document.own_encoder)  # all of it is always trained
        trained = expected.keys() - set(saved.untrained)
        if whole and steps and state.keys() != trained:
            raise ValueError(f"state of {len(state)} parameters instead of {len(trained)}")
    return {"state": state, "param_groups": groups}


def _state_after_a_step(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """Returns what an optimiser itself keeps of its parameters, from a step of a copy."""
    probe = copy.deepcopy(optimizer)
    for group in probe.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    probe.step()
    state: dict[int, dict[str, Any]] = probe.state_dict()["state"]
    return state


def _kind(value: object) -> tuple[object, ...]:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    return (float,) if type(value) is int else (type(value),)


def _join_group(own: dict[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the live options with what a schedule may have changed in them."""
    if (own.keys() ^ saved.keys()) - _OF_SCHEDULERS or own["params"] != saved["params"]:
        raise ValueError(f"options {sorted(saved)} instead of {sorted(own)}")
    group = {key: _like(value, saved.get(key, value), key) for key, value in own.items()}
    left = {key: _like(0.0, saved[key], key) for key in saved.keys() - own.keys()}
    return group | left


def _like(own: Any, saved: Any, name: str) -> Any:  # noqa: ANN401 - as in _plain
    """Returns a saved option in the type of the live one; schedules change numbers only."""
    if type(own) is type(saved) and own == saved:
        return own
    if isinstance(own, tuple) and isinstance(saved, list) and len(own) == len(saved):
        return tuple(_like(a, b, name) for a, b in zip(own, saved, strict=True))
    if isinstance(own, Tensor) and isinstance(saved, float):
        return torch.full_like(own, saved)
    if all(isinstance(o, int | float) and not isinstance(o, bool) for o in (own, saved)):
        # Every option that is a number is a rate, a decay or a small constant.
        if math.isfinite(saved) and saved >= 0 and (name != "betas" or saved < 1):
            return float(saved)
        raise ValueError(f"option {name}={saved!r}, which is out of range")
    if name in ("foreach", "fused") or own == saved:  # how fast a step is taken is not what it does
        return own
    raise ValueError(f"option {name}={saved!r} instead of {own!r}")
