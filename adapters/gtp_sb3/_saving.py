"""Saving, loading and taking over parameters, for `GTP`."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces, get_system_info
from stable_baselines3.common.vec_env import VecEnv

from gtp_policy import (
    CheckpointInfo,
    ObservationLayout,
    load_checkpoint,
    restore_,
)
from gtp_policy.errors import CheckpointError
from gtp_sb3 import _files
from gtp_sb3._choices import reopen_curriculum
from gtp_sb3._spaces import action_scaler_of, layout_of, space_of
from gtp_sb3.policies import MlpPolicy, MultiInputPolicy

if TYPE_CHECKING:
    from gtp_sb3.gtp import GTP

SelfGTP = TypeVar("SelfGTP", bound="GTP")

# Not saved, besides what SB3 leaves out: parts of the learner, which the checkpoint holds itself;
# what is derived; what belongs to a run that is over.
EXCLUDED = (
    "actor",
    "actor_target",
    "critic",
    "critic_target",
    "dataset",
    "ep_info_buffer",
    "ep_success_buffer",
    "gtp_config",
    "lr_schedule",
    "start_time",
    "value",
    "_clock",
    "_dataset_is_missing",
    "_last_episode_starts",
    "_last_obs",
    "_last_original_obs",
    "_layout",
    "_metrics",
    "_prepared",
    "_replay_buffer",
    "_stand_in",
)


def check_spaces(
    env: VecEnv,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    layout: ObservationLayout | None,
) -> None:
    """Raises unless an environment has observations of the same shapes and the same actions.

    Parts that ``layout`` leaves out do not matter.
    """
    theirs, ours = layout_of(env.observation_space), layout or layout_of(observation_space)
    there = dict(zip(theirs.keys, theirs.shapes, strict=False))
    fits = (
        all(there.get(k) == s for k, s in zip(ours.keys, ours.shapes, strict=True))
        if ours.keys
        else not theirs.keys and theirs.obs_dim == ours.obs_dim
    )
    if not fits:
        raise ValueError(
            f"The observations of the environment do not fit: got {theirs}, expected {ours}."
        )
    got, expected = action_scaler_of(env.action_space), action_scaler_of(action_space)
    if not got.is_close(expected):
        raise ValueError(
            f"The actions of the environment do not fit: got {got}, expected {expected}."
        )


def take_spaces(model: "GTP", env: VecEnv) -> None:
    """Takes over the spaces of the first environment of a model that had them from its data."""
    check_spaces(env, model.observation_space, model.action_space, model._layout)
    model.policy.take_spaces(env.observation_space, env.action_space)
    model.observation_space, model.action_space = env.observation_space, env.action_space
    model.n_envs, model._spaces_are_derived = env.num_envs, False


def save(
    model: "GTP",
    place: _files.Place,
    exclude: Iterable[str] | None,
    include: Iterable[str] | None,
) -> None:
    """See `GTP.save`."""
    left_out = set(exclude or ()) | set(model._excluded_save_params())
    left_out -= set(include or ())
    attributes = {k: v for k, v in model.__dict__.items() if k not in left_out}
    wanted = [name for name in include or () if hasattr(model, name)]
    attributes |= {name: getattr(model, name) for name in wanted}
    encoded = _files.encode_attributes(attributes)
    for name in wanted:
        value = encoded.get(name)
        if isinstance(value, dict) and ":absent" in value:
            raise ValueError(
                f"`{name}` cannot be included: got {value[':absent']}, expected numbers, strings "
                "or containers of them. Replay buffers have save_replay_buffer()."
            )
    policy = model.policy
    _files.write(place, model.learner, policy.scaler, policy.layout, encoded)


def load(
    cls: "type[SelfGTP]",
    place: _files.Place,
    env: GymEnv | None,
    device: torch.device | str,
    custom_objects: dict[str, Any] | None,
    print_system_info: bool,
    changes: dict[str, Any],
) -> "SelfGTP":
    """See `GTP.load`."""
    if "gtp_config" in changes:
        raise ValueError(
            "`gtp_config` belongs to the weights: got one to load with, expected the file's. Build "
            "a new model, and take over what fits with set_parameters(path, exact_match=False)."
        )
    with _files.located(place) as path:
        info, encoded = _files.read(path)
        if print_system_info:
            print("== CURRENT SYSTEM INFO ==")
            get_system_info()
            print("== SAVED MODEL SYSTEM INFO ==")
            print(info.metadata.get("system_info", "not known"))
        custom = custom_objects or {}
        replaced = {*custom, *changes} - ({"policy_kwargs"} - set(custom))
        attributes = _files.decode_attributes(path, encoded, replaced)
        attributes |= {k: v for k, v in custom.items() if k in encoded}
        foreign = [k for k in attributes if hasattr(cls, k)]
        if foreign:
            raise CheckpointError(
                f"Checkpoint {path} names what is no attribute: got {foreign}, expected names that "
                "GTP.save wrote."
            )
        _complete(path, info, attributes, env)
        return _rebuild(cls, path, info, attributes, env, device, dict(changes))


def _complete(
    path: pathlib.Path, info: CheckpointInfo, attributes: dict[str, Any], env: GymEnv | None
) -> None:
    """Adds what a checkpoint of the core, of another host or of a policy alone does not say."""
    layout, scaler = info.layout, info.action_scaler
    known = "observation_space" in attributes and "action_space" in attributes
    if not known and layout is not None and scaler is not None:
        low, high = scaler.low.astype(np.float32), scaler.high.astype(np.float32)
        attributes["observation_space"] = space_of(layout)
        attributes["action_space"] = spaces.Box(low, high, dtype=np.float32)
    elif not known and env is None:
        raise CheckpointError(
            f"Checkpoint {path} does not say what it acts on: got no layout or no bounds, expected "
            "both, or an environment. Pass env=."
        )
    defaults = {
        "_horizon": "config",
        "_n_updates": info.updates,
        "_offline_updates": info.updates,
        "_scales_are_fixed": True,
        "_spaces_are_derived": not known,
        "n_envs": 1,
        "seed": info.config.learner.seed,
        "tau": info.config.learner.ema_rate,
    }
    for name, value in defaults.items():
        attributes.setdefault(name, value)


def _rebuild(
    cls: "type[SelfGTP]",
    path: pathlib.Path,
    info: CheckpointInfo,
    attributes: dict[str, Any],
    env: GymEnv | None,
    device: torch.device | str,
    changes: dict[str, Any],
) -> "SelfGTP":
    kwargs = attributes.get("policy_kwargs", {})
    if changes.pop("policy_kwargs", kwargs) != kwargs:
        raise ValueError(
            f"`policy_kwargs` are not those of the file: expected {kwargs}. To replace what the "
            "file cannot hold, pass custom_objects={'policy_kwargs': ...}."
        )
    dataset, tau, seed = (changes.pop(k, None) for k in ("dataset", "tau", "seed"))
    if env is not None:
        env = cls._wrap_env(env, attributes.get("verbose", 0))
        ours = [attributes.get(k) for k in ("observation_space", "action_space")]
        if attributes.get("_spaces_are_derived"):
            if ours[0] is not None and ours[1] is not None:
                check_spaces(env, ours[0], ours[1], info.layout)
        else:
            check_for_correct_spaces(env, ours[0], ours[1])  # type: ignore[arg-type]
        attributes |= {
            "observation_space": env.observation_space,
            "action_space": env.action_space,
            "n_envs": env.num_envs,
            "_spaces_are_derived": False,
        }
    space = attributes["observation_space"]
    model = cls(
        attributes.get(
            "policy_class", MultiInputPolicy if isinstance(space, spaces.Dict) else MlpPolicy
        ),
        env,
        device=device,
        _init_setup_model=False,
    )
    model.__dict__.update(attributes)
    model.__dict__.update(changes)
    model.gtp_config = info.config
    if model._horizon is None:
        model.gtp_config = reopen_curriculum(info.config)
    model._layout = info.layout or layout_of(space)
    model._setup_model()
    restore_(model.learner, path)
    if tau is not None:
        model.tau = float(tau)
        model.learner.config = model.learner.config.replace(ema_rate=float(tau))
    if seed is not None:
        model.set_random_seed(seed)
    model._dataset_is_missing = model._offline_updates > 0
    if dataset is not None:
        model.set_dataset(dataset)
    return model


def set_parameters(model: "GTP", given: Any, exact_match: bool) -> None:  # noqa: ANN401
    """See `GTP.set_parameters`."""
    if not isinstance(given, Mapping):
        given = _parameters_in(model, given)
    needed = set(model._get_torch_save_params()[0])
    unknown = sorted(set(given) - needed)
    missing = sorted(needed - set(given)) if exact_match else []
    if unknown or missing:
        raise ValueError(
            f"The names do not match: got {sorted(given)}, expected {sorted(needed)}; unknown "
            f"{unknown}, missing {missing}. Pass exact_match=False to leave some out."
        )
    for name, state in given.items():
        target = recursive_getattr(model, name)
        if isinstance(target, torch.optim.Optimizer):
            target.load_state_dict(state)
        else:  # of a compiled policy, the policy itself
            getattr(target, "_orig_mod", target).load_state_dict(state, strict=exact_match)
    model._scales_are_fixed = True


def _parameters_in(model: "GTP", place: _files.Place) -> dict[str, Any]:
    """Reads from a file what `GTP.get_parameters` would return."""
    policy = model.policy
    with _files.located(place) as path:
        info, _ = _files.read(path)
        learner = load_checkpoint(
            path,
            network=policy.make_network(),
            encoder=policy.make_encoder(),
            optimizer=policy.optimizer_factory(info.config, model.lr_schedule),
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
