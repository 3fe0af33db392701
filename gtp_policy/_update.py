"""The pieces of Algorithm 1: what `GTPLearner.update` puts together, without its state."""

import torch
from torch import Tensor, nn

from gtp_policy.actor import FlowMapActor
from gtp_policy.critic import QEnsemble
from gtp_policy.functional import check_shape, effective_sample_size, ema_, td_target
from gtp_policy.transitions import Transitions


def sample_together(
    actor: FlowMapActor, parts: list[tuple[Tensor, torch.Generator]]
) -> list[Tensor]:
    """Samples actions for several batches of observations in one pass of the actor.

    Each part has a stream of its own: what it gets does not depend on what is sampled beside it.
    """
    noise = [
        torch.randn((len(obs), actor.action_dim), generator=g, device=obs.device, dtype=obs.dtype)
        for obs, g in parts
    ]
    action = actor.sample(torch.cat([obs for obs, _ in parts]), noise=torch.cat(noise))
    return list(torch.split(action, [len(obs) for obs, _ in parts]))


def tile_next_obs(batch: Transitions, n: int) -> Tensor:
    """Returns each next observation n times, the copies side by side."""
    return batch.next_obs.repeat_interleave(n, 0) if n > 1 else batch.next_obs


@torch.no_grad()
def backup(target_critic: QEnsemble, batch: Transitions, next_action: Tensor) -> Tensor:
    """Returns the critic's targets y from one or more actions per next observation."""
    n = len(next_action) // len(batch.reward)
    next_q = target_critic(tile_next_obs(batch, n), next_action)
    # Max-Q backup: each member's best action first, the pessimism over members last.
    next_q = next_q.reshape(-1, len(batch.reward), n).amax(-1).amin(0)
    return td_target(batch.reward, batch.discount, next_q)


@torch.no_grad()
def advantage_over(critic: QEnsemble, obs: Tensor, action: Tensor, sampled: Tensor) -> Tensor:
    """Returns how much better actions are than M sampled ones on average, in one pass.

    Args:
        critic: The judge.
        obs: Shape (B, O).
        action: Shape (B, A).
        sampled: Actions for ``obs.repeat(M, 1)``, shape (M B, A).
    """
    check_shape("action", action, (len(obs), critic.action_dim))
    tiled = obs.repeat(1 + len(sampled) // len(obs), 1)
    q: Tensor = critic(tiled, torch.cat([action, sampled])).amin(0).view(-1, len(obs))
    return q[0] - q[1:].mean(0)


def weight_metrics(advantage: Tensor, weight: Tensor, max_weight: float) -> dict[str, Tensor]:
    """Returns what is told of advantages and weights."""
    return {
        "advantage_mean": advantage.mean(),
        "advantage_std": advantage.std(correction=0),
        "weight_mean": weight.mean(),
        "weight_max": weight.amax(),
        "weight_clipped": (weight >= max_weight).float().mean(),
        "weight_ess": effective_sample_size(weight) / len(weight),
    }


def optimize(optimizer: torch.optim.Optimizer, loss: Tensor, max_grad_norm: float | None) -> Tensor:
    """Does one step on a loss and returns the gradient's norm before clipping."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    optimizer.step()
    return norm.detach()


@torch.no_grad()
def follow_(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Moves a slow copy towards its source, in place."""
    ema_(target.parameters(), source.parameters(), rate)
    # Running statistics of a user's own network are copied, or the target would keep those of its
    # construction for ever.
    for kept, current in zip(target.buffers(), source.buffers(), strict=True):
        kept.copy_(current)
