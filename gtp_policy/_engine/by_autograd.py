"""Algorithm 1 on modules and autograd, one learner after the other: the reference."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from gtp_policy._engine.adam import set_rate
from gtp_policy.algorithm import Draws, Learner, means_of, weight_metrics
from gtp_policy.critic import NetworkBaseline, QEnsemble
from gtp_policy.functional import ema_
from gtp_policy.guidance import LinearQGuidance
from gtp_policy.times import Times
from gtp_policy.transitions import Transitions

T = TypeVar("T")


class ByAutograd:
    """The `gtp_policy.algorithm.Networks` that every faster way is compared with.

    Args:
        learners: Any, of one configuration.
    """

    def __init__(self, learners: Sequence[Learner]) -> None:
        self.learners = learners

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Returns the target actors' actions (S, n, A)."""
        actors = [learner.target_actor for learner in self.learners]
        return _stack(a.sample(o, noise=z) for a, o, z in zip(actors, obs, noise, strict=True))

    @torch.no_grad()
    def target_q(self, obs: Tensor, action: Tensor) -> Tensor:
        """Returns the target critics' values (S, N, n, B)."""
        return _values([learner.target_critic for learner in self.learners], obs, action)

    @torch.no_grad()
    def q(self, obs: Tensor, action: Tensor) -> Tensor:
        """Returns the critics' values (S, N, n, B)."""
        return _values([learner.critic for learner in self.learners], obs, action)

    @torch.no_grad()
    def value(self, obs: Tensor) -> Tensor:
        """Returns V (S, B)."""
        return _stack(_given(x.value)(o) for x, o in zip(self.learners, obs, strict=True))

    def fit_critic(
        self, obs: Tensor, action: Tensor, y: Tensor, mask: Tensor | None
    ) -> dict[str, Tensor]:
        """Does a step of every critic on the mean of (Q - y)^2."""
        metrics = []
        for i, (learner, o, a, target) in enumerate(
            zip(self.learners, obs, action, y, strict=True)
        ):
            q = _given(learner.critic)(o, a)
            square = (q - target).square()
            loss = (square if mask is None else square * mask[i]).mean()
            norm = _step(learner, "critic", loss)
            metrics.append(
                {
                    "critic_loss": loss.detach(),
                    "q_mean": q.detach().mean(),
                    "critic_grad_norm": norm,
                }
            )
        return _join(metrics)

    def fit_value(self, obs: Tensor, q: Tensor, mask: Tensor | None) -> None:
        """Does a step of every value network on the baseline's loss."""
        for i, (learner, o, target) in enumerate(zip(self.learners, obs, q, strict=True)):
            baseline = learner.config.baseline
            assert isinstance(baseline, NetworkBaseline)
            loss = baseline.loss(target, _given(learner.value)(o))
            _step(learner, "value", (loss if mask is None else loss * mask[i]).mean())

    def weigh(self, advantage: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighters' weights (S, B), and metrics of them."""
        weight = _stack(x.weighter(a) for x, a in zip(self.learners, advantage, strict=True))
        most = self.learners[0].weighter.config.max_weight
        return weight, weight_metrics(advantage, weight, most)

    def fit_actor(
        self, batch: Transitions, weight: Tensor | None, draws: Draws
    ) -> dict[str, Tensor]:
        """Does a step of every actor on its loss, and on the guidance's if there is one."""
        metrics, chunk = [], self.learners[0].actor.config.chunk
        mask = batch.action_mask(chunk)
        for i, learner in enumerate(self.learners):
            obs, own_weight = batch.obs[i], None if weight is None else weight[i]
            terms = learner.loss.terms(
                learner.actor,
                learner.target_actor,
                obs,
                batch.action[i],
                own_weight,
                Times(*(time[i] for time in draws.times)),
                draws.z[i],
                None if draws.flow_t is None else draws.flow_t[i],
                mask=None if mask is None else mask[i],
            )
            loss, own = terms.loss, {"consistency": terms.consistency, "flow": terms.flow}
            if learner.critic is not None and isinstance(learner.guidance, LinearQGuidance):
                noise = _given(draws.guide)[i]
                pull, own["guided_q"] = learner.guidance.loss(
                    learner.actor, learner.critic, obs, noise, mean_=means_of(learner)
                )
                loss = loss + pull
            own["actor_grad_norm"] = _step(learner, "actor", loss)
            metrics.append({"actor_loss": loss.detach(), **own})
        return _join(metrics)

    def follow(self) -> None:
        """Moves every target network towards its network."""
        for learner in self.learners:
            _follow_(learner.target_actor, learner.actor, learner.config.actor_rate)
            if learner.critic is not None and learner.target_critic is not None:
                _follow_(learner.target_critic, learner.critic, learner.config.critic_rate)


def _given(part: T | None) -> T:
    assert part is not None
    return part


def _values(critics: Sequence[QEnsemble | None], obs: Tensor, action: Tensor) -> Tensor:
    """Returns each critic's values (S, N, n, B) of actions (S, n, B, A)."""
    n, rows = action.shape[1:3]
    return _stack(
        _given(critic)(o.repeat(n, 1), a.flatten(0, 1)).unflatten(1, (n, rows))
        for critic, o, a in zip(critics, obs, action, strict=True)
    )


def _step(learner: Learner, name: str, loss: Tensor) -> Tensor:
    """Does one optimiser step on a loss and returns the gradient's norm before clipping."""
    optimizer, rates = learner.optimizers[name], learner.learning_rates
    if name in rates:
        set_rate(optimizer, rates[name])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    if not loss.requires_grad:  # every parameter is frozen
        return torch.zeros_like(loss)
    torch.autograd.backward(loss)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if learner.processes is not None:
        learner.processes.mean_(gradients)
    norm = nn.utils.get_total_norm(gradients)
    if learner.config.max_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, learner.config.max_grad_norm, norm)
    optimizer.step()
    return norm.detach()


@torch.no_grad()
def _follow_(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Moves a target network towards its network, in place."""
    ema_(target.parameters(), source.parameters(), rate)
    # Running statistics of a custom network are copied, or the target would keep those of its
    # construction for ever.
    for kept, current in zip(target.buffers(), source.buffers(), strict=True):
        kept.copy_(current)


def _stack(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(tensors))


def _join(metrics: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the metrics of every learner, (S,) each by name."""
    return {name: torch.stack([own[name] for own in metrics]) for name in metrics[0]}
