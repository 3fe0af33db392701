"""Algorithm 1 as modules and autograd say it: the reference of every faster way to compute it.

An update has two halves. `draw` draws everything random; what follows is a function of the
minibatch and of these draws alone, so that engines can be compared with each other.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gtp_policy.actor import FlowMapActor
from gtp_policy.config import GTPLearnerConfig
from gtp_policy.critic import (
    ExpectileBaseline,
    PolicyBaseline,
    QEnsemble,
    ValueNetwork,
    expectile_loss,
)
from gtp_policy.functional import check_shape, effective_sample_size, ema_, td_target
from gtp_policy.guidance import AdvantageGuidance, AdvantageWeighter, Guidance, LinearQGuidance
from gtp_policy.loss import GTPLoss
from gtp_policy.times import Times
from gtp_policy.transitions import Transitions


class Parts(NamedTuple):
    """What an update reads and changes."""

    actor: FlowMapActor
    target_actor: FlowMapActor
    critic: QEnsemble | None
    target_critic: QEnsemble | None
    value: ValueNetwork | None
    loss: GTPLoss
    weighter: AdvantageWeighter
    guidance: Guidance  # the one in force, which begins later than the updates if so asked
    config: GTPLearnerConfig
    optimizers: dict[str, torch.optim.Optimizer]
    rates: dict[str, float]  # learning rates to set first; none for optimisers with rates of theirs


class Draws(NamedTuple):
    """What is random in an update; the noises of actions are None where none are sampled."""

    backup: Tensor | None  # (B R, A), for R actions per next observation, side by side
    baseline: Tensor | None  # (M B, A), for M copies of the observations, one below the other
    times: Times  # (B,) each
    z: Tensor  # (B, A)
    guide: Tensor | None = None  # (B, A), for the actor's own actions under linear-Q guidance


def draw(
    parts: Parts,
    batch: Transitions,
    stream: Callable[[str], torch.Generator],
    progress: float,
) -> Draws:
    """Draws from one stream per purpose: none depends on how much another one took."""
    action, config = batch.action, parts.config

    def noise(name: str, copies: int, steps: int | None = None) -> Tensor:
        shape = copies * action.shape[0], parts.actor.noise_dim(steps)
        generator = stream(name)
        return torch.randn(shape, generator=generator, device=action.device, dtype=action.dtype)

    backup = baseline = guide = None
    if parts.critic is not None:
        backup = noise("backup", config.backup_actions)
        if isinstance(parts.guidance, LinearQGuidance):
            guide = noise("guidance", 1, parts.guidance.steps)
        if isinstance(parts.guidance, AdvantageGuidance) and isinstance(
            config.baseline, PolicyBaseline
        ):
            baseline = noise("baseline", config.baseline.samples)
    times, z = parts.loss.draw(
        parts.actor.times, action, progress=progress, generator=stream("loss")
    )
    return Draws(backup, baseline, times, z, guide)


def reference_update(parts: Parts, batch: Transitions, draws: Draws) -> dict[str, Tensor]:
    """Does lines 4 to 9 of Algorithm 1 and returns the metrics by name."""
    weight, metrics = None, {}
    if parts.critic is not None:
        next_action, sampled = sample_actions(parts, batch, draws)
        metrics = _step_critic(parts, batch, next_action)
        if parts.value is not None:
            _step_value(parts, batch)
        if isinstance(parts.guidance, AdvantageGuidance):
            advantage = advantage_over(parts.critic, parts.value, batch.obs, batch.action, sampled)
            weight = parts.weighter(advantage)
            metrics |= weight_metrics(advantage, weight, parts.weighter.config.max_weight)
    metrics |= _step_actor(parts, batch, weight, draws)
    follow_(parts.target_actor, parts.actor, parts.config.ema_rate)
    if parts.critic is not None and parts.target_critic is not None:
        follow_(parts.target_critic, parts.critic, parts.config.critic_rate)
    return metrics


def sample_actions(parts: Parts, batch: Transitions, draws: Draws) -> tuple[Tensor, Tensor | None]:
    """Samples the backup's actions and, if there is one, the baseline's, in one pass."""
    assert draws.backup is not None
    obs, noise = [tile_next_obs(batch, parts.config.backup_actions)], [draws.backup]
    if draws.baseline is not None:
        obs.append(batch.obs.repeat(len(draws.baseline) // len(batch.obs), 1))
        noise.append(draws.baseline)
    action = parts.target_actor.sample(torch.cat(obs), noise=torch.cat(noise))
    n = len(draws.backup)
    return action[:n], action[n:] if draws.baseline is not None else None


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
def advantage_over(
    critic: QEnsemble,
    value: ValueNetwork | None,
    obs: Tensor,
    action: Tensor,
    sampled: Tensor | None,
) -> Tensor:
    """Returns how much better actions are than V: a network, or the mean over sampled actions.

    Args:
        critic: The judge.
        value: V, where no actions are sampled.
        obs: Shape (B, O).
        action: Shape (B, A).
        sampled: Actions for ``obs.repeat(M, 1)``, shape (M B, A), judged in the same pass.
    """
    if sampled is None:
        assert value is not None
        advantage: Tensor = critic(obs, action).amin(0) - value(obs)
        return advantage
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


def _step_critic(parts: Parts, batch: Transitions, next_action: Tensor) -> dict[str, Tensor]:
    assert parts.critic is not None
    assert parts.target_critic is not None
    y = backup(parts.target_critic, batch, next_action)
    q = parts.critic(batch.obs, batch.action)
    loss = (q - y).square().mean()
    norm = _optimize(parts, "critic", loss)
    return {"critic_loss": loss.detach(), "critic_grad_norm": norm, "q_mean": q.detach().mean()}


def _step_value(parts: Parts, batch: Transitions) -> None:
    assert parts.value is not None
    assert parts.target_critic is not None
    assert isinstance(parts.config.baseline, ExpectileBaseline)
    with torch.no_grad():
        q = parts.target_critic(batch.obs, batch.action).amin(0)
    loss = expectile_loss(q, parts.value(batch.obs), parts.config.baseline.expectile).mean()
    _optimize(parts, "value", loss)


def _step_actor(
    parts: Parts, batch: Transitions, weight: Tensor | None, draws: Draws
) -> dict[str, Tensor]:
    terms = parts.loss.terms(
        parts.actor,
        parts.target_actor,
        batch.obs,
        batch.action,
        weight,
        draws.times,
        draws.z,
    )
    loss, metrics = terms.loss, {"consistency": terms.consistency, "flow": terms.flow}
    if parts.critic is not None and isinstance(parts.guidance, LinearQGuidance):
        assert draws.guide is not None
        pull, metrics["guided_q"] = parts.guidance.loss(
            parts.actor, parts.critic, batch.obs, draws.guide
        )
        loss = loss + pull
    metrics["actor_grad_norm"] = _optimize(parts, "actor", loss)
    return {"actor_loss": loss.detach(), **metrics}


def _optimize(parts: Parts, name: str, loss: Tensor) -> Tensor:
    """Does one step on a loss and returns the gradient's norm before clipping."""
    optimizer = parts.optimizers[name]
    if name in parts.rates:
        optimizer.param_groups[0]["lr"] = parts.rates[name]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if parts.config.max_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, parts.config.max_grad_norm, norm)
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
