r"""Algorithm 1 on plain tensors, for one seed or several: what `reference_update` computes, faster.

Nothing here allocates what an update needs again, asks autograd, or looks at a number: on a device
that records its work, the whole update can be recorded once and replayed. Every tensor has a
leading axis of seeds, S, which is 1 for one learner; critics stand side by side, S N networks.

The gradients are written out. With :math:`r` a residual, :math:`d` its distance over A dimensions,
and :math:`\kappa = 1/A` for a mean or 1 for a sum,

.. math:: \frac{\partial d}{\partial r} = 2 \kappa r \ \text{(squared L2)}, \quad
    \frac{\kappa r}{\sqrt{\kappa \|r\|^2 + c^2}} \ \text{(pseudo-Huber)}

and a residual depends on the network's output through :math:`c_{out}(t)` times its share.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from gtp_policy._passes import GradientPass, Pass, Stack
from gtp_policy._plan_cuda import fastest, fold
from gtp_policy._stacked import Inputs, Net, Optimizer, Parameters, net_of, stack_of, together
from gtp_policy._update import Draws, Parts
from gtp_policy.critic import ExpectileBaseline, PolicyBaseline, QEnsemble, ValueNetwork
from gtp_policy.functional import advantage_weights, precondition
from gtp_policy.kernels._sampler import Sampler
from gtp_policy.networks import FlowMapMLP
from gtp_policy.samplers import JumpSampler
from gtp_policy.transitions import Transitions
from gtp_policy.weighting import AdvantageWeighter


@contextmanager
def coarse_products() -> Iterator[None]:
    """Lets products of float32 matrices round their factors to bfloat16, within a block.

    The switch is torch's, and one for all threads.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


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
        stack, slow = (stack_of(net.parameters, linear=True) for net in (actor, target))
        self._actor = GradientPass(stack, 2 * rows, into, transposed=True)
        self._target = Pass(slow, rows)
        self._inputs = Inputs(first.actor, self._actor, 2)
        self._target_inputs = Inputs(first.actor, self._target, 1)
        self._optimizers = {
            "actor": self._optimizer("actor", [p.actor for p in learners], actor, gradients)
        }
        # Folded are the jumps alone; actors themselves know every sampler.
        jumps = first.target_actor.config.sampler == JumpSampler()
        self._sampler = self._make_sampler(target) if jumps and not self._target.cpu else None
        self._slow, self._fast = list(target.parameters), list(actor.parameters)
        self._target_net = target
        self._slow_statistics, self._statistics = [*target[1:]], [*actor[1:]]
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
        members, config = critics[0].config.members, self._first.config
        stack = stack_of(critic.parameters, linear=False)
        slow = stack_of(target.parameters, linear=False)
        gradients, into = self._gradients(critic, linear=False)
        self._critic = GradientPass(stack, rows, into, share=members)
        self._critic_net, self._members = critic, members
        self._target_critic = Pass(slow, rows * backups, share=members)
        self._optimizers["critic"] = self._optimizer("critic", critics, critic, gradients)
        self._target_critic_net = target
        self._slow += target.parameters
        self._fast += critic.parameters
        self._slow_statistics += target[1:]
        self._statistics += critic[1:]
        judged = rows
        if isinstance(config.baseline, PolicyBaseline):
            judged *= 1 + config.baseline.samples
        else:
            self._prepare_value(slow, rows)
        self._judge = Pass(stack, judged, share=members)

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
        """Whether every optimiser's step may be recorded: those of Adam."""
        return all(optimizer.adam for optimizer in self._optimizers.values())

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
            advantage = self._advantage(shaped, obs, sampled, rates)
            weight = self._weigh(advantage)
            metrics |= self._about(advantage, weight)
        metrics |= self._step_actor(shaped, weight, draws, rates)
        torch._foreach_lerp_(self._slow, self._fast, self._first.config.ema_rate)
        torch._foreach_copy_(self._slow_statistics, self._statistics)
        return metrics

    def _coarse(self) -> AbstractContextManager[None]:
        """Within it, products of matrices may be as coarse as the config allows."""
        if self._first.config.no_grad_precision == "float32":
            return nullcontext()
        return coarse_products()

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
        self, batch: Transitions, obs: Tensor, sampled: Tensor | None, rates: dict[str, Any]
    ) -> Tensor:
        if sampled is None:
            value = self._step_value(batch, rates)
            return self._q(self._judge, obs, batch.action).amin(1) - value
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
        loss, config = self._first.loss, self._first.loss.config
        t, u, s = (time.view(self._seeds, -1) for time in draws.times)
        z, action = draws.z.view(batch.action.shape), batch.action
        obs = self._actor_net.normalise(batch.obs)
        # A flow map starts at positive times only; where u = 0 its answer gets no share.
        start = torch.where(u > 0, u, t)
        times = torch.cat([t, start, s], 1)
        at_t, at_start, at_s = self._embedding(times).chunk(3, 1)
        factors = precondition(
            times[:, : 2 * self.rows].unsqueeze(-1), self._first.actor.sigma_data
        )
        (skip, skip_u), (out, out_u), (inner, inner_u) = (c.chunk(2, 1) for c in factors)
        x_u = torch.addcmul(action, u.unsqueeze(-1), z)
        x_t = torch.addcmul(action, t.unsqueeze(-1), z)
        seen = self._target_net.normalise(batch.obs)
        self._target_inputs.write(seen, inner_u * x_u, at_start, [at_s])
        with self._coarse():
            raw = self._target.run()
        taught = torch.addcmul(skip_u * x_u, out_u, raw)
        self._inputs.write(obs, inner * x_t, at_t, [at_s, at_t])
        raw = self._actor.run().view(self._seeds, 2, self.rows, -1)
        arrival, denoised = torch.addcmul((skip * x_t).unsqueeze(1), out.unsqueeze(1), raw).unbind(
            1
        )
        share_u = torch.where(u > 0, (u - s) / start, 0).unsqueeze(-1)
        share_t = ((t - s) / t).unsqueeze(-1)
        consistency = share_t * (arrival - action) - share_u * (taught - action)
        flow = denoised - action
        c_factor, f_factor = (
            w.view(self._seeds, -1) if isinstance(w, Tensor) else w
            for w in loss.time_weights(draws.times, self._first.actor)
        )
        d_consistency, g_consistency = self._distance(consistency)
        d_flow, g_flow = self._distance(flow)
        per_row = 1 / self.rows if weight is None else weight * (1 / self.rows)
        c_weight, f_weight = per_row * c_factor, per_row * f_factor
        c_gradient = _column(c_weight) * share_t * out * g_consistency
        f_gradient = config.flow_weight * _column(f_weight) * out * g_flow
        self._actor.gradients(torch.cat([c_gradient, f_gradient], 1))
        consistency, flow = (c_weight * d_consistency).sum(1), (f_weight * d_flow).sum(1)
        norm = self._optimizers["actor"].step(rates.get("actor"))
        return {
            "actor_loss": consistency + config.flow_weight * flow,
            "consistency": consistency,
            "flow": flow,
            "actor_grad_norm": norm,
        }

    def _embedding(self, t: Tensor) -> Tensor:
        embedding = cast(FlowMapMLP, self._first.actor.network).embedding
        features: Tensor = embedding(t)
        return features

    def _distance(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Returns distances (S, B) and their gradients by the residuals (S, B, A)."""
        config = self._first.loss.config
        share = 1 / residual.shape[-1] if config.reduction == "mean" else 1.0
        square = residual.square().sum(-1) * share
        if config.huber is None:
            return square, residual * (2 * share)
        root = (square + config.huber**2).sqrt()
        return root - config.huber, residual * (share / root).unsqueeze(-1)


def _column(x: Tensor | float) -> Tensor | float:
    return x.unsqueeze(-1) if isinstance(x, Tensor) else x
