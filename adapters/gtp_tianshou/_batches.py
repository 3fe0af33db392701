"""Minibatches of Tianshou as the core's, and what the core says of them for Tianshou."""

from typing import Literal

import numpy as np
import torch
from tianshou.data.types import RolloutBatchProtocol
from torch import Tensor

from gtp_policy import GTPLearner, Transitions
from gtp_policy.dataset_builder import as_array
from gtp_policy.errors import DataError
from gtp_policy.functional import td_target
from gtp_tianshou._spaces import flatten
from gtp_tianshou.buffers import action_rows, check_bounds
from gtp_tianshou.policy import GTPPolicy


def to_transitions(
    batch: RolloutBatchProtocol,
    policy: GTPPolicy,
    gamma: float,
    out_of_bounds: Literal["error", "clip"],
) -> Transitions:
    """Converts a minibatch; the target is one step away, and termination alone ends it."""
    action = action_rows(batch.act, policy.action_space)
    if out_of_bounds != "clip":
        check_bounds(action, np.arange(len(action)))
    for name, column in (("act", action), ("rew", as_array("rew", batch.rew))):
        if not np.isfinite(column).all():
            raise DataError(
                f"`{name}` is not finite: got {column[~np.isfinite(column)][0]} in a minibatch, "
                "expected finite numbers. Remove or repair the episode."
            )
    columns = (
        flatten(policy.layout, batch.obs),
        action.clip(-1.0, 1.0),
        batch.rew,
        flatten(policy.layout, batch.obs_next),
        gamma * ~np.asarray(batch.terminated, np.bool_),
    )
    return Transitions(
        *(torch.as_tensor(np.array(column), device="cpu").float() for column in columns)
    )


@torch.no_grad()
def td_error(learner: GTPLearner, batch: Transitions) -> Tensor:
    """Returns absolute TD errors, mean over members, shape (B,); without a critic, ones."""
    critic, target = learner.critic, learner.target_critic
    if critic is None or target is None:
        return torch.ones_like(batch.reward)
    if learner.config.backup == "value" and learner.value is not None:
        next_value = learner.value(batch.next_obs)
    else:
        generator = learner.stream("priority")
        next_action = learner.target_actor.sample(batch.next_obs, generator=generator)
        next_value = target.config.reduce(target(batch.next_obs, next_action))
    y = td_target(batch.reward, batch.discount, next_value)
    error: Tensor = critic(batch.obs, batch.action) - y
    return error.abs().mean(0)
