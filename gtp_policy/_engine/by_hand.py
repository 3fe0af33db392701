r"""Algorithm 1 on plain tensors, for one seed or several: what `reference_update` computes, faster.

Nothing here allocates what an update needs again, asks autograd, or looks at a number: on a device
that records its work, the whole update can be recorded once and replayed. Every tensor has a
leading axis of seeds, S, which is 1 for one learner; critics stand side by side, S N networks.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from gtp_policy._engine.loss_gradients import ActorGradients
from gtp_policy._engine.seeds import Net, Optimizer, Parameters, net_of, stack_of, together
from gtp_policy._folding_cuda import fastest, fold
from gtp_policy.actor import uses_plan
from gtp_policy.algorithm import Draws, Parts
from gtp_policy.critic import ExpectileBaseline, PolicyBaseline, QEnsemble, ValueNetwork
from gtp_policy.functional import advantage_weights
from gtp_policy.guidance import AdvantageGuidance, AdvantageWeighter, LinearQGuidance
from gtp_policy.kernels.folded import Sampler
from gtp_policy.kernels.mlp import GradientPass, Pass, Stack, coarse_products
from gtp_policy.networks import FlowMapMLP
from gtp_policy.transitions import Transitions, unpack


class FusedUpdate:
    """Lines 4 to 9 of Algorithm 1 for S learners of one configuration and B rows each."""

    def __init__(self, learners: Sequence[Parts], rows: int) -> None:
        self.learners, self.rows = learners, rows
        first = learners[0]
        self._seeds, self._first = len(learners), first
        config = first.config
        actor = net_of([p.actor for p in learners])
        self._actor_net, target = actor, net_of([p.target_actor for p in learners])
        gradients, into = self._gradients(actor, linear=True)
        self._actor = ActorGradients(learners, actor, target, into, rows)
        self._actor_gradients = gradients
        self._optimizers = {
            "actor": self._optimizer("actor", [p.actor for p in learners], actor, gradients)
        }
        # Folded are the jumps alone; actors themselves know every sampler.
        jumps = uses_plan(first.target_actor.config)
        on_cpu = actor.mean.device.type == "cpu"
        self._sampler = self._make_sampler(target) if jumps and not on_cpu else None
        # Actors sample along a grid from a cache, which a recorded update must not outlive.
        self._grid = first.target_actor.times.grid(
            first.target_actor.config.steps, device=actor.mean.device, dtype=actor.mean.dtype
        )
        # What follows what, and at which rate.
        self._followers = [(target, actor, config.ema_rate)]
        names = ("actor", "target_actor", "critic", "target_critic", "value")
        owners = [getattr(parts, name) for parts in learners for name in names]
        # Every parameter that an update changes.
        self.written = [p for m in owners if m is not None for p in m.parameters()]
        if first.critic is not None:
            self._prepare_critic(rows, config.backup_actions)

    def _make_sampler(self, target: Net) -> Sampler:
        """Returns what samples for all seeds at once, away from the CPU."""
        actor = self._first.target_actor
        tensors = [*target.parameters, target.mean.squeeze(1), target.scale.squeeze(1)]
        if self._seeds == 1:  # plain products are faster than batches of one
            tensors = [tensor[0] for tensor in tensors]
        *parameters, mean, scale = tensors
        folded = fold(
            parameters[::2],
            parameters[1::2],
            mean,
            scale,
            cast(FlowMapMLP, actor.network).embedding,
            actor.times.grid(actor.config.steps, dtype=target.mean.dtype),
            actor.sigma_data,
        )
        coarse = self._first.config.no_grad_precision == "bfloat16"
        return fastest(folded, "bf16" if coarse else "fp32")[0]

    def _prepare_critic(self, rows: int, backups: int) -> None:
        critics = [cast(QEnsemble, p.critic) for p in self.learners]
        critic = net_of(critics)
        target = net_of([cast(QEnsemble, p.target_critic) for p in self.learners])
        first, members = self._first, critics[0].config.members
        stack = stack_of(critic.parameters, linear=False)
        slow = stack_of(target.parameters, linear=False)
        gradients, into = self._gradients(critic, linear=False)
        self._critic = GradientPass(stack, rows, into, share=members)
        self._critic_net, self._members = critic, members
        self._target_critic = Pass(slow, rows * backups, share=members)
        self._optimizers["critic"] = self._optimizer("critic", critics, critic, gradients)
        self._target_critic_net = target
        self._followers.append((target, critic, first.config.critic_rate))
        if first.value is not None:
            self._prepare_value(slow, rows)
        if isinstance(first.guidance, AdvantageGuidance):
            baseline = first.config.baseline
            copies = 1 + baseline.samples if isinstance(baseline, PolicyBaseline) else 1
            self._judge = Pass(stack, copies * rows, share=members)

    def _prepare_value(self, slow: Stack, rows: int) -> None:
        values = [cast(ValueNetwork, p.value) for p in self.learners]
        value = net_of(values)
        self._value_net = value
        gradients, into = self._gradients(value, linear=True)
        stack = stack_of(value.parameters, linear=True)
        self._value = GradientPass(stack, rows, into, transposed=True)
        self._data_target = Pass(slow, rows, share=self._members)
        self._optimizers["value"] = self._optimizer("value", values, value, gradients)

    def _gradients(self, net: Net, *, linear: bool) -> tuple[Parameters, Stack]:
        """Returns where gradients go, as parameters and as matrices, in one piece of memory."""
        flat = net.mean.new_empty(sum(p.numel() for p in net.parameters))
        pieces = torch.split(flat, [p.numel() for p in net.parameters])
        gradients = [g.view(p.shape) for g, p in zip(pieces, net.parameters, strict=True)]
        if linear:
            return gradients, Stack(gradients[::2], gradients[1::2])
        stack = stack_of(gradients, linear=False)
        return gradients, Stack(stack.weights, [b.squeeze(1) for b in stack.biases])

    def _optimizer(
        self, name: str, modules: Sequence[nn.Module], net: Net, gradients: Parameters
    ) -> Optimizer:
        optimizers = [p.optimizers[name] for p in self.learners]
        limit = self._first.config.max_grad_norm
        return Optimizer(optimizers, modules, net.parameters, gradients, limit)

    def __call__(
        self, batch: Transitions, draws: Draws, rates: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Does the update and returns metrics, (S,) each; rows of seeds one below the other."""
        self.prepare(rates)
        # In inference mode operators cost less; what is made outside it is a plain tensor.
        with torch.inference_mode():
            metrics = self._update(batch, draws, rates)
        if self._seeds > 1:  # views of the first seed count for it alone
            torch.autograd.graph.increment_version(self.written)
        return dict(zip(metrics, torch.stack(list(metrics.values())), strict=True))

    def prepare(self, rates: dict[str, Any]) -> None:
        """Does what has to be done before an update outside of inference mode."""
        for name, optimizer in self._optimizers.items():
            rate = rates.get(name)
            optimizer.prepare(None if isinstance(rate, Tensor) else rate)

    @property
    def recordable(self) -> bool:
        """Whether every optimiser's step may be recorded: those of Adam, at one rate."""
        return all(optimizer.adam for optimizer in self._optimizers.values())

    def unpack(self, rows: Tensor) -> Transitions:
        """Returns rows of a dataset as a minibatch."""
        return unpack(rows, self._first.actor.obs_dim, self._first.actor.action_dim)

    def places(self) -> list[int]:
        """Returns where the optimisers keep what a recorded step writes to."""
        return [place for optimizer in self._optimizers.values() for place in optimizer.places()]

    def rates(self) -> dict[str, float]:
        """Returns the learning rates that the optimisers hold."""
        return {name: optimizer.rate for name, optimizer in self._optimizers.items()}

    def _update(self, batch: Transitions, draws: Draws, rates: dict[str, Any]) -> dict[str, Tensor]:
        weight, metrics = None, {}
        shaped = Transitions(*(self._per_seed(x) for x in batch))
        if self._first.critic is not None:
            obs = self._critic_net.normalise(shaped.obs)
            with self._coarse():
                next_action, sampled = self._sample(shaped, draws)
            metrics = self._step_critic(shaped, obs, next_action, rates)
            value = None if self._first.value is None else self._step_value(shaped, rates)
            if isinstance(self._first.guidance, AdvantageGuidance):
                advantage = self._advantage(shaped, obs, sampled, value)
                weight = self._weigh(advantage)
                metrics |= self._about(advantage, weight)
        metrics |= self._step_actor(shaped, weight, draws, rates)
        for slow, fast, rate in self._followers:
            torch._foreach_lerp_(slow.parameters, fast.parameters, rate)
            torch._foreach_copy_([slow.mean, slow.scale], [fast.mean, fast.scale])
        return metrics

    def _coarse(self) -> AbstractContextManager[None]:
        """Within it, products of matrices may be as coarse as the config allows."""
        return coarse_products(self._first.config.no_grad_precision)

    def _per_seed(self, x: Tensor) -> Tensor:
        return x.view(self._seeds, -1, *x.shape[1:])

    def _sample(self, batch: Transitions, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """Returns the backup's actions (S, B R, A) and the baseline's (S, M B, A), in one pass."""
        assert draws.backup is not None
        copies = self._first.config.backup_actions
        next_obs = batch.next_obs
        obs = [next_obs.repeat_interleave(copies, 1) if copies > 1 else next_obs]
        noise = [self._per_seed(draws.backup)]
        if draws.baseline is not None:
            noise.append(self._per_seed(draws.baseline))
            obs.append(batch.obs.repeat(1, noise[1].shape[1] // self.rows, 1))
        action = self._sampled(torch.cat(obs, 1), torch.cat(noise, 1))
        n = noise[0].shape[1]
        return action[:, :n], action[:, n:] if draws.baseline is not None else None

    def _sampled(self, obs: Tensor, noise: Tensor) -> Tensor:
        if self._sampler is not None and self._seeds == 1:
            return self._sampler.run(obs[0], noise[0]).unsqueeze(0)
        if self._sampler is not None:
            return self._sampler.run(obs, noise)
        actors = [p.target_actor for p in self.learners]
        parts = [a.sample(o, noise=z) for a, o, z in zip(actors, obs, noise, strict=True)]
        return together(parts)

    def _q(self, judge: Pass, obs: Tensor, action: Tensor) -> Tensor:
        """Returns values (S, N, n) for normalised observations."""
        torch.cat([obs, action], -1, out=judge.inputs)
        with nullcontext() if isinstance(judge, GradientPass) else self._coarse():
            return judge.run().view(self._seeds, self._members, -1)

    def _step_critic(
        self, batch: Transitions, obs: Tensor, next_action: Tensor, rates: dict[str, Any]
    ) -> dict[str, Tensor]:
        copies = self._first.config.backup_actions
        next_obs = self._target_critic_net.normalise(batch.next_obs)
        if copies > 1:
            next_obs = next_obs.repeat_interleave(copies, 1)
        next_q = self._q(self._target_critic, next_obs, next_action)
        next_q = next_q.view(self._seeds, self._members, self.rows, copies).amax(-1).amin(1)
        y = torch.addcmul(batch.reward, batch.discount, next_q)
        q = self._q(self._critic, obs, batch.action)
        error = q - y.unsqueeze(1)
        self._critic.gradients((error * (2 / error[0].numel())).view(-1, self.rows, 1))
        # Before the step: q is a view of what the next pass overwrites.
        metrics = {"critic_loss": error.square().mean((1, 2)), "q_mean": q.mean((1, 2))}
        metrics["critic_grad_norm"] = self._optimizers["critic"].step(rates.get("critic"))
        return metrics

    def _advantage(
        self, batch: Transitions, obs: Tensor, sampled: Tensor | None, value: Tensor | None
    ) -> Tensor:
        if value is not None:
            return self._q(self._judge, obs, batch.action).amin(1) - value
        assert sampled is not None
        tiled = obs.repeat(1, 1 + sampled.shape[1] // self.rows, 1)
        q = self._q(self._judge, tiled, torch.cat([batch.action, sampled], 1)).amin(1)
        q = q.view(self._seeds, -1, self.rows)
        return q[:, 0] - q[:, 1:].mean(1)

    def _step_value(self, batch: Transitions, rates: dict[str, Any]) -> Tensor:
        """Does V's step and returns the values after it, (S, B)."""
        baseline = cast(ExpectileBaseline, self._first.config.baseline)
        seen = self._target_critic_net.normalise(batch.obs)
        q = self._q(self._data_target, seen, batch.action).amin(1)
        self._value.inputs.copy_(self._value_net.normalise(batch.obs))
        difference = q - self._value.run().squeeze(-1)
        factor = torch.where(difference < 0, 1 - baseline.expectile, baseline.expectile)
        slope = difference * factor * (-2 / self.rows)
        self._value.gradients(slope.unsqueeze(-1))
        self._optimizers["value"].step(rates.get("value"))
        return self._value.run().squeeze(-1)

    def _weigh(self, advantage: Tensor) -> Tensor:
        if self._seeds == 1 or advantage.device.type == "cpu":
            weigh = zip(self.learners, advantage, strict=True)
            if type(self._first.weighter) is AdvantageWeighter:
                return together([parts.weighter(a) for parts, a in weigh])
            with torch.inference_mode(False):  # a user's own may keep or differentiate what it sees
                return together([parts.weighter(a.clone()) for parts, a in weigh])
        c = self._first.weighter.config
        return torch.vmap(lambda a: advantage_weights(a, c.eta, c.eps, c.max_weight))(advantage)

    def _about(self, advantage: Tensor, weight: Tensor) -> dict[str, Tensor]:
        largest = weight.amax(1)
        part = weight / largest.unsqueeze(1)
        return {
            "advantage_mean": advantage.mean(1),
            "advantage_std": advantage.std(1, correction=0),
            "weight_mean": weight.mean(1),
            "weight_max": largest,
            "weight_clipped": (weight >= self._first.weighter.config.max_weight).float().mean(1),
            "weight_ess": part.mean(1).square() / part.square().mean(1),
        }

    def _step_actor(
        self, batch: Transitions, weight: Tensor | None, draws: Draws, rates: dict[str, Any]
    ) -> dict[str, Tensor]:
        metrics = self._actor(batch, weight, draws)
        if isinstance(self._first.guidance, LinearQGuidance) and self._first.critic:
            metrics |= self._guide(batch, draws, metrics["actor_loss"])
        metrics["actor_grad_norm"] = self._optimizers["actor"].step(rates.get("actor"))
        return metrics

    def _guide(self, batch: Transitions, draws: Draws, loss: Tensor) -> dict[str, Tensor]:
        """Adds the gradients of linear-Q guidance, which is what autograd is still asked for."""
        guidance = cast(LinearQGuidance, self._first.guidance)
        noise, told = self._per_seed(cast(Tensor, draws.guide)), []
        for i, parts in enumerate(self.learners):
            critic, own = cast(QEnsemble, parts.critic), list(parts.actor.parameters())
            with torch.inference_mode(False), torch.enable_grad():
                pull, q = guidance.loss(parts.actor, critic, batch.obs[i], noise[i])
                gradients = torch.autograd.grad(pull, own)
            torch._foreach_add_([g[i] for g in self._actor_gradients], gradients)
            told.append(torch.stack([loss[i] + pull.detach(), q]))
        actor_loss, guided_q = torch.stack(told, 1)
        return {"actor_loss": actor_loss, "guided_q": guided_q}
