"""What the file of a model holds in addition to the core's checkpoint, and what it must fit."""

import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import JsonValue
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv

from gtp_datasets.spaces import action_scaler_of, box_of
from gtp_policy import CheckpointInfo, load_checkpoint
from gtp_policy.errors import CheckpointError
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
    "value",
    "_clock",
    "_last_episode_starts",
    "_last_obs",
    "_last_original_obs",
    "_layout",
    "_metrics",
    "_offline",
    "_replay_buffer",
    "_stand_in",
)


def encode(attributes: Mapping[str, object], included: Collection[str]) -> dict[str, JsonValue]:
    """Returns attributes as JSON.

    Raises:
        ValueError: If no file can hold one that the user wants included.
    """
    encoded = _files.encode_attributes(attributes)
    for name in included:
        value = encoded.get(name)
        if isinstance(value, dict) and ":absent" in value:
            raise ValueError(
                f"`{name}` cannot be included: got {value[':absent']}, expected numbers, strings "
                "or containers of them. Replay buffers have save_replay_buffer()."
            )
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
    # Not replaced are `policy_kwargs` to compare with. A dataset is in no file.
    replaced = {*custom, *changes, "dataset"} - ({"policy_kwargs"} - set(custom))
    attributes = _files.decode_attributes(path, encoded, replaced)
    attributes |= {k: v for k, v in custom.items() if k in encoded}
    foreign = [k for k in attributes if hasattr(cls, k)]
    if foreign:
        raise CheckpointError(
            f"Checkpoint {path} names what is no attribute: got {foreign}, expected names that "
            "GTP.save wrote."
        )
    kwargs = attributes.get("policy_kwargs", {})
    if changes.get("policy_kwargs", kwargs) != kwargs:
        raise ValueError(
            f"`policy_kwargs` are not those of the file: expected {kwargs}. To replace what the "
            "file cannot hold, pass custom_objects={'policy_kwargs': ...}."
        )
    return info, attributes


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
    defaults: dict[str, Any] = {
        "_horizon": "config",
        "_n_updates": info.updates,
        "_offline_updates": info.updates,
        "_scales_are_fixed": True,
        "_spaces_are_derived": not known,
        "n_envs": 1,
        "seed": info.config.learner.seed,
        "tau": info.config.learner.ema_rate,
    }
    if not known and info.layout is not None and info.action_scaler is not None:
        defaults["observation_space"] = space_of(info.layout)
        defaults["action_space"] = box_of(info.action_scaler)
    elif not known and env is None:
        raise CheckpointError(
            f"Checkpoint {path} does not say what it acts on: got no layout or no bounds, expected "
            "both, or an environment. Pass env=."
        )
    found = defaults | dict(attributes)
    if env is None:
        return found
    ours = found.get("observation_space"), found.get("action_space")
    if not found["_spaces_are_derived"]:
        check_for_correct_spaces(env, ours[0], ours[1])  # type: ignore[arg-type]
    elif ours[0] is not None and ours[1] is not None:
        check_env(env, info.layout or layout_of(ours[0]), action_scaler_of(ours[1]))
    return found | {
        "observation_space": env.observation_space,
        "action_space": env.action_space,
        "n_envs": env.num_envs,
        "_spaces_are_derived": False,
    }


def read_parameters(
    place: _files.Place, policy: GTPPolicy, lr_schedule: Schedule | None
) -> dict[str, Any]:
    """Reads from a file what ``get_parameters`` of its model would return.

    Raises:
        CheckpointError: If the file is missing, damaged or foreign.
    """
    with _files.located(place) as path:
        info, _ = _files.read(path)
        learner = load_checkpoint(
            path,
            network=policy.make_network(),
            encoder=policy.make_encoder(),
            optimizer=policy.optimizer_factory(info.config, lr_schedule),
        ).learner
    parts = {
        "actor": learner.actor,
        "actor_target": learner.target_actor,
        "critic": learner.critic,
        "critic_target": learner.target_critic,
        "value": learner.value,
    }
    state = {
        f"{name}.{key}": value
        for name, module in parts.items()
        if module is not None
        for key, value in module.state_dict().items()
    }
    states = {f"{name}.optimizer": o.state_dict() for name, o in learner.optimizers.items()}
    return {"policy": state, **states}
