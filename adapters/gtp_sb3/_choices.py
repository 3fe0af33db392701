"""One choice, one place: SB3's arguments and the core's config, merged or refused."""

import inspect
import secrets
from numbers import Integral
from typing import Any, cast

from torch import nn

from gtp_policy import Curriculum, GTPConfig
from gtp_policy.acting import MOST_JUMPS
from gtp_policy.errors import suggestion

_MOST_CANDIDATES = 10_000  # as ``eval_candidates`` of the config


def pick(name: str, given: object, field: str, config_value: object, set_there: bool) -> Any:  # noqa: ANN401
    """Returns a choice that can be made in two places; None where it was made in neither.

    Raises:
        ValueError: If both places were used and disagree.
    """
    if not set_there:
        return given
    if given is not None and given != config_value:
        raise ValueError(
            f"`{name}` and `{field}` of the config are one choice: got {given} and "
            f"{config_value}, expected one of them. Leave one out."
        )
    return config_value


def merge_learner(config: GTPConfig, tau: float | None, seed: int | None) -> GTPConfig:
    """Puts SB3's ``tau`` and ``seed`` into the config; without a seed one is drawn."""
    learner, fields = config.learner, config.learner.model_fields_set
    tau = pick("tau", tau, "learner.ema_rate", learner.ema_rate, "ema_rate" in fields)
    seed = pick("seed", seed, "learner.seed", learner.seed, "seed" in fields)
    changes: dict[str, Any] = {"seed": secrets.randbelow(2**31) if seed is None else int(seed)}
    if tau is not None:
        changes["ema_rate"] = float(tau)
    return config.replace(learner=learner.replace(**changes))


def merge_networks(
    config: GTPConfig, net_arch: list[int] | dict[str, list[int]] | None, n_critics: int | None
) -> GTPConfig:
    """Puts SB3's ``net_arch`` and ``n_critics`` into the config."""
    arch = net_arch if isinstance(net_arch, dict) else {"pi": net_arch, "qf": net_arch}
    if set(arch) != {"pi", "qf"}:
        raise ValueError(
            f"`net_arch` has other keys: got {sorted(arch)}, expected ['pi', 'qf'] or a list."
        )
    hidden = {k: None if v is None else tuple(v) for k, v in arch.items()}
    actor, critic, learner = config.actor, config.critic, config.learner
    pi = pick(
        "net_arch['pi']", hidden["pi"], "actor.hidden", actor.hidden, _is_set(actor, "hidden")
    )
    if pi is not None:
        actor = actor.replace(hidden=pi)
    if critic is not None:
        changes = {
            "hidden": pick(
                "net_arch['qf']",
                hidden["qf"],
                "critic.hidden",
                critic.hidden,
                _is_set(critic, "hidden"),
            ),
            "members": pick(
                "n_critics",
                n_critics,
                "critic.members",
                critic.members,
                _is_set(critic, "members"),
            ),
        }
        critic = critic.replace(**{k: v for k, v in changes.items() if v is not None})
        baseline = learner.baseline
        if hidden["qf"] is not None and hasattr(baseline, "hidden"):
            if not _is_set(baseline, "hidden"):
                learner = learner.replace(baseline=baseline.replace(hidden=hidden["qf"]))
    return config.replace(actor=actor, critic=critic, learner=learner)


def check_learning_rate(config: GTPConfig, learning_rate: object) -> None:
    """Raises if learning rates were chosen in both places."""
    twice = config.learner.model_fields_set & {"actor_lr", "critic_lr", "lr_schedule"}
    if learning_rate is not None and twice:
        raise ValueError(
            f"`learning_rate` and `learner.{min(twice)}` of the config are one choice: got both, "
            "expected one of them. Leave one out."
        )


def check_policy_kwargs(kwargs: dict[str, Any], policy: type) -> None:
    """Raises on arguments that a policy does not take, or that the model passes itself."""
    if kwargs.keys() & {"config", "layout"}:
        raise ValueError(
            "`policy_kwargs` holds choices of the model: got `config` or `layout`, expected "
            "neither. Pass gtp_config= to GTP."
        )
    taken = inspect.signature(policy).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return  # of a subclass that passes them on
    for name in kwargs.keys() - taken.keys():
        raise TypeError(
            f"`policy_kwargs` has an unknown argument: got {name!r}, expected one of "
            f"{policy.__name__}.{suggestion(name, taken)}"
        )


def check_policy_choices(activation_fn: type[nn.Module] | None, shared: bool) -> None:
    """Raises on choices of SB3 that the core does not offer."""
    if activation_fn not in (None, nn.Mish):
        raise ValueError(
            f"`activation_fn` is fixed: got {activation_fn}, expected nn.Mish or nothing. Pass "
            "policy_kwargs=dict(network=...) for a custom actor."
        )
    if shared:
        raise ValueError(
            "`share_features_extractor` is not supported: got True, expected False. Each network "
            "has its own extractor."
        )


def check_candidates(candidates: object, steps: int) -> None:
    """Raises on more candidates than the config takes, also where a file names them."""
    most = min(_MOST_CANDIDATES, MOST_JUMPS // steps)
    is_one = isinstance(candidates, Integral) and not isinstance(candidates, bool)
    if not is_one or not 1 <= int(cast(int, candidates)) <= most:
        raise ValueError(
            f"`candidates` is out of range: got {candidates!r:.40}, expected an integer from 1 to "
            f"{most}, for {steps} jumps each. Take fewer, or None for one sample."
        )


def reopen_curriculum(config: GTPConfig) -> GTPConfig:
    """Forgets that a default curriculum came from a file, where every field counts as chosen."""
    if config.loss.curriculum != Curriculum():
        return config
    return config.replace(loss=config.loss.replace(curriculum=Curriculum()))


def reopen_schedule(config: GTPConfig) -> GTPConfig:
    """Forgets likewise that a default schedule of learning rates came from a file.

    It would count as chosen beside an optimiser of one's own, whose rates it says nothing about.
    """
    learner = config.learner
    chosen = {n: getattr(learner, n) for n in learner.model_fields_set - {"lr_schedule"}}
    opened = type(learner).model_validate(chosen)
    return config.replace(learner=opened) if opened == learner else config


def _is_set(config: Any, field: str) -> bool:  # noqa: ANN401 - any config
    return field in config.model_fields_set
