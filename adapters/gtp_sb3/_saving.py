"""What the file of a model holds in addition to the core's checkpoint, and what it must fit."""

import math
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from gymnasium.spaces import Box, Dict, Space
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import Schedule, TrainFreq
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import nn

from gtp_datasets.spaces import box_of
from gtp_policy import ActionScaler, CheckpointInfo, load_checkpoint
from gtp_policy.errors import CheckpointError
from gtp_policy.export import Surroundings
from gtp_policy.records import check_values, what_is_wrong
from gtp_sb3 import _files
from gtp_sb3._spaces import check_env, layout_of, space_of
from gtp_sb3.policies import GTPPolicy

# Not saved, in addition to what SB3 leaves out: parts of the learner, which the checkpoint itself
# holds; what is derived; what belongs to a run that is over.
EXCLUDED = (
    "actor",
    "actor_target",
    "critic",
    "critic_target",
    "ep_info_buffer",
    "ep_success_buffer",
    "gtp_config",
    "lr_schedule",
    "start_time",
    "tensorboard_log",  # where a run writes is not for a file to say
    "value",
    "_clock",
    "_episodes_before",
    "_followed",
    "_last_episode_starts",
    "_layout",
    "_least_length",
    "_metrics",
    "_offline",
    "_replay_buffer",
    "_stand_in",
)
# At what the environment stands, as a policy and as a replay buffer sees it; with more numbers than
# this (images) it is not in a file, and training begins with a reset.
_STANDING = ("_last_obs", "_last_original_obs")
_MOST_STANDING = 2**12
# What SB3 leaves out itself. In a file, either would replace a part of the model that is built.
_NEVER = frozenset(EXCLUDED) - {"tensorboard_log"} | {
    "device",
    "env",
    "policy",
    "replay_buffer",
    "rollout_buffer",
    "_custom_logger",
    "_logger",
    "_vec_normalize_env",
}


_Observations = np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]


def _whole(value: object) -> object:
    if isinstance(value, bool):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _flag(value: object) -> object:
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else value


# As SB3 takes them: 1e4 is a number of steps, False a verbosity, 1 a flag.
_Whole = Annotated[int, BeforeValidator(_whole)]
_Real = Annotated[float, BeforeValidator(lambda v: int(v) if isinstance(v, bool) else v)]
_Flag = Annotated[bool, BeforeValidator(_flag)]


class _Attributes(BaseModel):
    """What SB3 takes in its attributes; those of a subclass are as they are.

    Without a range where SB3 has none: -1 steps before learning are none.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="allow", strict=True)
    __pydantic_extra__: dict[str, Any]

    observation_space: Space[Any] | None = None
    action_space: Box | None = None
    policy_class: type[GTPPolicy] | None = None
    policy_kwargs: dict[str, Any] | None = None
    action_noise: ActionNoise | None = None
    batch_size: _Whole = 1
    buffer_size: _Whole = 1
    gamma: _Real = Field(0.99, ge=0, le=1)
    gradient_steps: _Whole = 1
    learning_rate: _Real | Callable[..., Any] | None = None
    learning_starts: _Real = 0
    n_envs: _Whole = Field(1, ge=1, le=2**16)  # there is a record of each
    n_steps: _Whole = 1
    num_timesteps: _Whole = Field(0, ge=0)
    optimize_memory_usage: _Flag = False
    replay_buffer_class: type[ReplayBuffer] | None = None
    replay_buffer_kwargs: dict[str, Any] | None = None
    seed: _Whole | None = Field(None, ge=0)
    tau: _Real = Field(1, ge=0, le=1)
    train_freq: TrainFreq | int | tuple[int, str] = 1
    use_sde: Literal[False] = False
    verbose: _Whole = 0
    # Names that begin with an underscore, which pydantic keeps for itself.
    last_obs: _Observations | None = Field(None, alias="_last_obs")
    last_original_obs: _Observations | None = Field(None, alias="_last_original_obs")
    horizon: Literal["config", "first run"] | None = Field(None, alias="_horizon")
    n_updates: int = Field(0, ge=0, alias="_n_updates")
    offline_updates: int = Field(0, ge=0, alias="_offline_updates")
    scales_are_fixed: bool = Field(False, alias="_scales_are_fixed")
    seeds_globally: bool = Field(False, alias="_seeds_globally")
    sigma_is_open: bool = Field(False, alias="_sigma_is_open")
    spaces_are_derived: bool = Field(False, alias="_spaces_are_derived")
    stats_window_size: _Whole = Field(1, ge=0, alias="_stats_window_size")
    episode_num: int = Field(0, ge=0, alias="_episode_num")
    num_timesteps_at_start: int = Field(0, ge=0, alias="_num_timesteps_at_start")
    total_timesteps: _Real = Field(0, alias="_total_timesteps")
    current_progress_remaining: float = Field(0, alias="_current_progress_remaining")


def encode(
    cls: type, attributes: Mapping[str, object], included: Collection[str]
) -> dict[str, JsonValue]:
    """Returns attributes of a model of a class as JSON.

    Raises:
        ValueError: If no file can hold one that the user wants included, or one has the name of
            something that belongs to the class.
        CheckpointError: If one is nothing that `read` takes.
    """
    if foreign := sorted(_foreign(cls, attributes) - set(included)):
        raise ValueError(
            f"Attributes cannot be saved: got {foreign}, which the class has too, expected other "
            "names. Rename them, or leave them out with exclude=."
        )
    standing = [part for name in _STANDING for part in _parts(attributes.get(name)).values()]
    if sum(part.size for part in standing) > _MOST_STANDING:
        attributes = {k: v for k, v in attributes.items() if k not in _STANDING}
    encoded, found = _files.encode_attributes(attributes)
    for name in included:
        value = encoded.get(name)
        if isinstance(value, dict) and ":absent" in value:
            raise ValueError(
                f"`{name}` cannot be included: got {value[':absent']}, expected numbers, strings "
                "or containers of them. Replay buffers have save_replay_buffer()."
            )
    try:
        _check(found)  # what is a note has to be given when it is loaded
    except ValueError as error:
        raise CheckpointError(
            f"The model cannot be saved: got {what_is_wrong(error)}, which GTP.load would refuse, "
            "expected what SB3 takes there. Set the attribute, or leave it out with exclude=."
        ) from error
    return encoded


def read(
    path: pathlib.Path, cls: type, custom: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[CheckpointInfo, dict[str, Any]]:
    """Reads what a checkpoint says of itself, and the attributes of a model.

    Args:
        path: The file.
        cls: Class of the model.
        custom: What `GTP.load` was given as ``custom_objects``.
        changes: What it was given as further arguments.

    Raises:
        CheckpointError: If the file is missing, damaged or foreign, or lacks something that no
            file can hold.
        ValueError: If it was written with other ``policy_kwargs`` than those given.
    """
    info, encoded = _files.read(path)
    encoded.pop("tensorboard_log", None)  # of earlier versions
    # Not replaced are `policy_kwargs` to compare with. A dataset is in no file.
    replaced = {*custom, *changes, "dataset"} - ({"policy_kwargs"} - set(custom))
    attributes = _files.decode_attributes(path, info, encoded, replaced)
    if foreign := sorted(_foreign(cls, attributes)):
        raise CheckpointError(
            f"Checkpoint {path} names what is no attribute: got {foreign}, expected names that "
            "GTP.save wrote."
        )
    try:
        _check(attributes)
    except ValueError as error:
        raise CheckpointError(
            f"Checkpoint {path} has wrong attributes: got {what_is_wrong(error)}, expected what "
            "GTP.save wrote."
        ) from error
    custom = _files.with_candidates(custom, encoded)
    attributes |= {k: v for k, v in custom.items() if k in encoded}
    kwargs = attributes.get("policy_kwargs", {})
    if changes.get("policy_kwargs", kwargs) != kwargs:
        raise ValueError(
            f"`policy_kwargs` are not those of the file: expected {kwargs}. To replace what the "
            "file cannot hold, pass custom_objects={'policy_kwargs': ...}."
        )
    return info, attributes


def _check(attributes: Mapping[str, Any]) -> None:
    """Raises a ValueError unless attributes, read or to be written, are what SB3 takes."""
    check_values({name: attributes.get(name) for name in _STANDING})
    _Attributes.model_validate(attributes)


def _foreign(cls: type, names: Iterable[str]) -> set[str]:
    """Returns names that would replace something of the class, or of a model that was set up."""
    return {name for name in names if hasattr(cls, name) or name in _NEVER}


def complete(
    path: pathlib.Path, info: CheckpointInfo, attributes: Mapping[str, Any], env: VecEnv | None
) -> dict[str, Any]:
    """Returns attributes with the spaces of an environment, and with what a file leaves out.

    A checkpoint of the core, of another host or of a policy alone leaves out most.

    Raises:
        CheckpointError: If neither the file nor an environment says what the model acts on.
        ValueError: If the environment has other spaces.
    """
    known = "observation_space" in attributes and "action_space" in attributes
    gamma = info.config.learner.gamma
    defaults: dict[str, Any] = {
        # Nothing there says who set it: more updates make it longer, as `GTPLearner.fit` does.
        "_horizon": "first run",
        "_n_updates": info.updates,
        "_offline_updates": info.updates,
        "_scales_are_fixed": True,
        "_spaces_are_derived": not known,
        "gamma": 0.99 if gamma is None else gamma,
        "n_envs": 1,
        "seed": info.config.learner.seed,
        "tau": info.config.learner.actor_rate,
    }
    surroundings = Surroundings.read(path, info.metadata)  # whichever host has described it
    if surroundings.candidates is not None:
        defaults["policy_kwargs"] = {"candidates": surroundings.candidates}
    if not known and info.layout is not None and info.action_scaler is not None:
        # Images with their axes as the encoder has learned them, whatever SB3 would make of them.
        encoder, keys = info.config.encoder, info.layout.keys or ("",)
        parts = () if encoder is None else encoder.parts or ()
        images = [key for key, part in zip(keys, parts, strict=False) if part.image]
        defaults["observation_space"] = space_of(info.layout, images)
        defaults["action_space"] = _action_space_of(path, surroundings, info.action_scaler)
    elif not known and env is None:
        raise CheckpointError(
            f"Checkpoint {path} does not say what it acts on: got no layout or no bounds, expected "
            "both, or an environment. Pass env=."
        )
    found = defaults | dict(attributes)
    if known:
        _files.check_spaces(path, info, found["observation_space"], found["action_space"])
    if env is None:
        return found
    ours = found.get("observation_space"), found.get("action_space")
    if not found["_spaces_are_derived"]:
        check_for_correct_spaces(env, ours[0], ours[1])  # type: ignore[arg-type]
    elif ours[0] is not None and ours[1] is not None:
        check_env(env, info.layout or layout_of(ours[0]), ours[1])
    return found | {
        "observation_space": env.observation_space,
        "action_space": env.action_space,
        "n_envs": env.num_envs,
        "_spaces_are_derived": False,
    }


def _action_space_of(path: pathlib.Path, found: Surroundings, scaler: ActionScaler) -> Box:
    """Returns the space of the actions of a file without SB3's, as its host has described it."""
    shape = scaler.low.shape if found.action_shape is None else found.action_shape
    if math.prod(shape) != scaler.action_dim:
        raise CheckpointError(
            f"Checkpoint {path} contradicts itself: got actions of shape {found.action_shape} and "
            f"{scaler.action_dim} bounds, expected as many."
        )
    return box_of(scaler, found.action_shape, whole=found.whole_actions)


def standing(attributes: Mapping[str, Any], env: VecEnv | None) -> dict[str, Any]:
    """Returns at what an environment stands, by the attributes of a file.

    Both are None, so that the environment is reset, if there is none or it has other observations.
    """
    now, original = (attributes.get(name) for name in _STANDING)
    if env is not None and _is_of(now, env):
        if unwrap_vec_normalize(env) is None or _is_of(original, env):
            return {"_last_obs": now, "_last_original_obs": original}
    return dict.fromkeys(_STANDING)


def _is_of(obs: object, env: VecEnv) -> bool:
    space = env.observation_space
    wanted = space.spaces if isinstance(space, Dict) else {"": space}
    given = _parts(obs)
    return given.keys() == wanted.keys() and all(
        given[key].shape == (env.num_envs, *(part.shape or ())) for key, part in wanted.items()
    )


def _parts(obs: object) -> dict[str, np.ndarray[Any, Any]]:
    parts = obs if isinstance(obs, dict) else {"": obs}
    return {key: part for key, part in parts.items() if isinstance(part, np.ndarray)}


def read_parameters(
    place: _files.Place, policy: GTPPolicy, lr_schedule: Schedule | None
) -> dict[str, Any]:
    """Reads from a file what ``get_parameters`` of its model would return.

    Raises:
        CheckpointError: If the file is missing, damaged or foreign.
    """
    with _files.located(place) as path:
        info, _ = _files.read(path)
        config = info.config
        learner = load_checkpoint(
            path,
            network=policy.make_network(),
            encoder=None if config.encoder else policy.make_encoder(config.actor.history),
            optimizer=policy.optimizer_factory(config, lr_schedule),
        ).learner
    cores = {
        "actor": learner.actor,
        "actor_target": learner.target_actor,
        "critic": learner.critic,
        "critic_target": learner.target_critic,
    }
    parts: dict[str, nn.Module] = {
        name: nn.ModuleDict({"core": core}) for name, core in cores.items() if core is not None
    }
    if learner.value is not None:
        parts["value"] = learner.value
    # Of a module: what was seen of the mode goes with its state.
    state = nn.ModuleDict(parts).state_dict()
    states = {f"{name}.optimizer": o.state_dict() for name, o in learner.optimizers.items()}
    return {"policy": state, **states}
