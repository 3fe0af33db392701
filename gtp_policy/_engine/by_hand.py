r"""Algorithm 1 on plain tensors with gradients by hand: what the reference computes, faster.

Nothing here allocates what an update needs again, builds a graph of autograd, or reads a number: on
a device that records its work, the whole update can be recorded once and replayed. Critics stand
side by side, S N networks.

Of the actor's losses, with :math:`r` a residual, :math:`d` its distance over A dimensions, and
:math:`\kappa = 1/A` for a mean or 1 for a sum,

.. math:: \frac{\partial d}{\partial r} = 2 \kappa r \ \text{(squared L2)}, \quad
    \frac{\kappa r}{\sqrt{\kappa \|r\|^2 + c^2}} \ \text{(pseudo-Huber)}

and a residual depends on the network's output through :math:`c_{out}(t)` times its share. What a
teacher says has no gradient, so that a teacher is the same object here as for the reference.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn

from gtp_policy._engine.adam import Optimizer
from gtp_policy._engine.seeds import (
    Net,
    Parameters,
    ensemble_of,
    net_of,
    stack_of,
    together,
)
from gtp_policy._engine.support import against_triton, jumps_once
from gtp_policy._folding import FoldedActor, fold
from gtp_policy.actor import FlowMapActor
from gtp_policy.algorithm import (
    WEIGHT_METRICS,
    Draws,
    Learner,
    means_of,
    update,
    weight_metrics,
)
from gtp_policy.critic import NetworkBaseline, QEnsemble, QEnsembleConfig, ValueNetwork
from gtp_policy.functional import HALVINGS, flow_map, perturb, precondition
from gtp_policy.guidance import AdvantageWeighter, LinearQGuidance
from gtp_policy.kernels.mlp import GradientPass, Pass, Stack, coarse_products
from gtp_policy.networks import FlowMapMLP, LogRatioEmbedding
from gtp_policy.samplers import JumpSampler
from gtp_policy.teachers import JvpTeacher, NoTeacher, SelfTeacher, SurrogateTeacher
from gtp_policy.times import Times
from gtp_policy.transitions import Transitions, unpack

# Teachers whose jumps Triton's kernels know.
_TEACHERS = {SurrogateTeacher: 1, SelfTeacher: 2}


class ByHand:
    """The `gtp_policy.algorithm.Networks` of S learners of one configuration and B rows each.

    Args:
        learners: For which `gtp_policy._engine.support` knows no reason against it.
        rows: B.
        triton: Whether Triton's kernels may be used where they can.
    """

    def __init__(self, learners: Sequence[Learner], rows: int, *, triton: bool = True) -> None:
        self.learners, self.rows = learners, rows
        first = self._first = learners[0]
        self._config, self._rates = first.config, dict[str, Any]()
        actor = net_of([learner.actor for learner in learners])
        target = net_of([learner.target_actor for learner in learners])
        gradients, into = _gradients(actor)
        # Triton's kernels for what is between the products, where all networks can have them.
        self._triton: Any = _triton(learners) if triton else None
        self._actor = _Actors(learners, actor, target, into, rows, self._triton)
        self._actor_gradients = gradients
        self._jump: _GuidedJump | None = None
        modules: list[nn.Module] = [learner.actor for learner in learners]
        self._optimizers = {"actor": self._optimizer("actor", modules, actor, gradients)}
        # Folded are jumps alone; actors themselves know every sampler.
        folds = first.target_actor.config.sampler == JumpSampler()
        self._samplers = self._make_samplers(target) if folds else []
        # Actors sample along a grid from a cache, which a recorded update must not outlive.
        self._grid = first.target_actor.times.grid(
            first.target_actor.config.steps, device=actor.mean.device, dtype=actor.mean.dtype
        )
        # What follows what, and at which rate.
        self._followers = [(target, actor, first.config.actor_rate)]
        self._mover: Any = None
        names = ("actor", "target_actor", "critic", "target_critic", "value")
        owners = [getattr(learner, name) for learner in learners for name in names]
        # Every parameter that an update changes.
        self.written = [p for m in owners if m is not None for p in m.parameters()]
        if first.critic is not None:
            self._prepare_critics(rows)
            if jumps_once(first):
                self._jump = _GuidedJump(learners, actor, self._critic, rows)
        if first.value is not None:
            self._prepare_values(rows)

    def _make_samplers(self, target: Net) -> list[FoldedActor]:
        """Returns one sampler for all seeds, or on the CPU one for each."""
        actors = [learner.target_actor for learner in self.learners]
        steps = actors[0].config.steps
        if target.mean.device.type == "cpu":
            return [FoldedActor(fold(actor, steps)) for actor in actors]
        tensors = [*target.parameters, target.mean.squeeze(1), target.scale.squeeze(1)]
        if len(actors) == 1:  # plain products are faster than batches of one
            tensors = [tensor[0] for tensor in tensors]
        *parameters, mean, scale = tensors
        coarse = self._config.no_grad_precision == "bfloat16"
        folded = fold(actors[0], steps, parameters, (mean, scale))
        return [FoldedActor(folded, "bf16" if coarse else "fp32")]

    def _prepare_critics(self, rows: int) -> None:
        critics = [cast(QEnsemble, learner.critic) for learner in self.learners]
        targets = [cast(QEnsemble, learner.target_critic) for learner in self.learners]
        net, target = net_of(critics), net_of(targets)
        config = critics[0].config
        gradients, into = _gradients(net, config)
        self._critic = _Critics(net, config, rows, self._triton, into)
        self._target_critic = _Critics(target, config, rows, self._triton)
        self._optimizers["critic"] = self._optimizer("critic", critics, net, gradients)
        self._followers.append((target, net, self._config.critic_rate))

    def _prepare_values(self, rows: int) -> None:
        values = [cast(ValueNetwork, learner.value) for learner in self.learners]
        net = net_of(values)
        gradients, into = _gradients(net)
        self._value_net = net
        self._value = GradientPass(stack_of(net.parameters), rows, into, transposed=True)
        self._optimizers["value"] = self._optimizer("value", values, net, gradients)

    def _optimizer(
        self, name: str, modules: Sequence[nn.Module], net: Net, gradients: Parameters
    ) -> Optimizer:
        optimizers = [learner.optimizers[name] for learner in self.learners]
        limit = self._config.max_grad_norm
        triton = self._triton
        return Optimizer(optimizers, modules, net.parameters, gradients, limit, triton)

    # --- an update, and what its being recorded needs

    def __call__(
        self, batch: Transitions, draws: Draws, rates: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Does the update at some learning rates and returns metrics, (S,) each."""
        self.prepare(rates)
        names, values = self.run(batch, draws, rates)
        # Views of the first seed count for it alone, and what Triton writes to for none.
        if len(self.learners) > 1 or self._triton is not None:
            torch.autograd.graph.increment_version(self.written)
        return dict(zip(names, values, strict=True))

    def run(
        self, batch: Transitions, draws: Draws, rates: dict[str, Any]
    ) -> tuple[list[str], Tensor]:
        """Does the update after `prepare`, and returns names of metrics and their values, (n, S).

        Nothing in it depends on the host: this is what a graph records.
        """
        self._rates = rates
        # In inference mode operators cost less; what is made outside it is a plain tensor.
        with torch.inference_mode():
            metrics = update(self, batch, draws)
        return list(metrics), torch.stack(list(metrics.values()))

    def prepare(self, rates: dict[str, Any]) -> None:
        """Does what has to be done before an update outside of inference mode."""
        for name, optimizer in self._optimizers.items():
            rate = rates.get(name)
            optimizer.prepare(None if isinstance(rate, Tensor) else rate)
        if self._triton is not None and self._mover is None:
            # Where targets and sources are: they stay there for as long as this object is right.
            nets = [
                zip([*t.parameters, t.mean, t.scale], [*s.parameters, s.mean, s.scale], strict=True)
                for t, s, _ in self._followers
            ]
            self._mover = self._triton.Followers(
                [
                    (to, of, 1.0 if to is target.mean or to is target.scale else rate)
                    for pairs, (target, _, rate) in zip(nets, self._followers, strict=True)
                    for to, of in pairs
                ]
            )

    @property
    def recordable(self) -> bool:
        """Whether every optimiser's step may be recorded: those of Adam, at one rate."""
        return all(optimizer.adam for optimizer in self._optimizers.values())

    def unpack(self, rows: Tensor) -> Transitions:
        """Returns rows of a dataset, shape (S, B, W), as a minibatch."""
        actor = self._first.actor
        return unpack(rows, actor.obs_dim, actor.action_dim, actor.config.chunk)

    def state(self) -> list[Tensor]:
        """Returns everything that an update changes: after `prepare`, which makes some of it."""
        parameters = [p.detach() for p in self.written]
        statistics = [x for target, _, _ in self._followers for x in (target.mean, target.scale)]
        moments = [x for optimizer in self._optimizers.values() for x in optimizer.tensors()]
        return [*parameters, *statistics, *moments]

    @property
    def by_triton(self) -> bool:
        """Whether what is between the products is computed by Triton's kernels."""
        return self._triton is not None

    def places(self) -> list[int]:
        """Returns where the optimisers keep what a recorded step writes to: as of `prepare`."""
        return [place for optimizer in self._optimizers.values() for place in optimizer.places]

    def rates(self) -> dict[str, float]:
        """Returns the learning rates that the optimisers hold."""
        return {name: optimizer.rate for name, optimizer in self._optimizers.items()}

    # --- what Algorithm 1 needs

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Returns the target actors' actions (S, n, A)."""
        with self._coarse():
            if not self._samplers:
                actors = [learner.target_actor for learner in self.learners]
                drawn = [a.sample(o, noise=z) for a, o, z in zip(actors, obs, noise, strict=True)]
                return together(drawn)
            if len(self._samplers) < len(self.learners):
                return self._samplers[0].sample(obs, noise)
            samplers = zip(self._samplers, obs, noise, strict=True)
            return together([sampler.sample(o, z) for sampler, o, z in samplers])

    def target_q(self, obs: Tensor, action: Tensor) -> Tensor:
        """Returns the target critics' values (S, N, n, B)."""
        with self._coarse():
            return self._target_critic(obs, action)

    def q(self, obs: Tensor, action: Tensor) -> Tensor:
        """Returns the critics' values (S, N, n, B)."""
        with self._coarse():
            return self._critic(obs, action)

    def value(self, obs: Tensor) -> Tensor:
        """Returns V (S, B)."""
        self._value.inputs.copy_(self._value_net.normalise(obs))
        return self._value.run().squeeze(-1)

    def fit_critic(
        self, obs: Tensor, action: Tensor, y: Tensor, mask: Tensor | None
    ) -> dict[str, Tensor]:
        """Does a step of every critic on the mean of (Q - y)^2."""
        q = self._critic.values_with_gradient(obs, action)
        if self._triton is not None:
            upstream, found = self._triton.critic_error(q, y.contiguous())
            self._critic.gradients(upstream)
            metrics = dict(zip(("critic_loss", "q_mean"), found, strict=True))
        else:
            error = q - y.unsqueeze(1)
            if mask is not None:
                error = error * mask.unsqueeze(1)
            self._critic.gradients(error * (2 / error[0].numel()))
            # Before the step: q is a view of what the next pass overwrites.
            metrics = {"critic_loss": error.square().mean((1, 2)), "q_mean": q.mean((1, 2))}
        metrics["critic_grad_norm"] = self._step("critic")
        return metrics

    def fit_value(self, obs: Tensor, q: Tensor, mask: Tensor | None) -> None:
        """Does a step of every value network on the baseline's loss."""
        baseline = cast(NetworkBaseline, self._config.baseline)
        slope = baseline.slope(q, self.value(obs)) * (1 / self.rows)
        if mask is not None:
            slope = slope * mask
        self._value.gradients(slope.unsqueeze(-1))
        self._step("value")

    def weigh(self, advantage: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighters' weights (S, B), and metrics of them."""
        choices = self._first.weighter.config
        few = advantage.shape[1] <= self._triton.MOST_WEIGHTS if self._triton else False
        if few and type(self._first.weighter) is AdvantageWeighter:
            weight, metrics = self._triton.weights(
                advantage.contiguous(), halvings=HALVINGS, **choices.model_dump()
            )
            return weight, dict(zip(WEIGHT_METRICS, metrics, strict=True))
        weight = self._weights(advantage)
        return weight, weight_metrics(advantage, weight, choices.max_weight)

    def _weights(self, advantage: Tensor) -> Tensor:
        weighters = [learner.weighter for learner in self.learners]
        if type(weighters[0]) is not AdvantageWeighter:
            # A custom one may keep or differentiate what it gets.
            with torch.inference_mode(False):
                weights = zip(weighters, advantage, strict=True)
                return together([weigh(a.clone()) for weigh, a in weights])
        if len(weighters) == 1 or advantage.device.type == "cpu":
            return together([weigh(a) for weigh, a in zip(weighters, advantage, strict=True)])
        return torch.vmap(weighters[0].config.weigh)(advantage)

    def fit_actor(
        self, batch: Transitions, weight: Tensor | None, draws: Draws
    ) -> dict[str, Tensor]:
        """Does a step of every actor on its loss, and on the guidance's if there is one."""
        metrics = self._actor.gradients(batch, weight, draws)
        if isinstance(self._first.guidance, LinearQGuidance) and self._first.critic:
            metrics |= self._guide(batch, draws, metrics["actor_loss"])
        metrics["actor_grad_norm"] = self._step("actor")
        return metrics

    def follow(self) -> None:
        """Moves every target network towards its network."""
        if self._mover is not None:
            self._mover.move()
            return
        for target, source, rate in self._followers:
            torch._foreach_lerp_(target.parameters, source.parameters, rate)
            torch._foreach_copy_([target.mean, target.scale], [source.mean, source.scale])

    def _guide(self, batch: Transitions, draws: Draws, loss: Tensor) -> dict[str, Tensor]:
        """Adds the gradients of linear-Q guidance; autograd goes through several steps."""
        guidance, noise = cast(LinearQGuidance, self._first.guidance), cast(Tensor, draws.guide)
        if self._jump is not None:
            pull, q, added = self._jump.gradients(batch.obs, noise, guidance)
            torch._foreach_add_(self._actor_gradients, added)
            return {"actor_loss": loss + pull, "guided_q": q}
        metrics = []
        for i, learner in enumerate(self.learners):
            critic, own = cast(QEnsemble, learner.critic), list(learner.actor.parameters())
            with torch.inference_mode(False), torch.enable_grad():
                pull, q = guidance.loss(
                    learner.actor, critic, batch.obs[i], noise[i], mean_=means_of(learner)
                )
                gradients = torch.autograd.grad(pull, own)
            torch._foreach_add_([g[i] for g in self._actor_gradients], gradients)
            metrics.append(torch.stack([loss[i] + pull.detach(), q]))
        actor_loss, guided_q = torch.stack(metrics, 1)
        return {"actor_loss": actor_loss, "guided_q": guided_q}

    def _step(self, name: str) -> Tensor:
        if self._first.processes is not None:
            self._first.processes.mean_(self._optimizers[name].gradients)
        return self._optimizers[name].step(self._rates.get(name))

    def _coarse(self) -> AbstractContextManager[None]:
        """Within it, products of matrices may be as coarse as the config allows."""
        return coarse_products(self._config.no_grad_precision)


def _triton(learners: Sequence[Learner]) -> Any:  # noqa: ANN401 - a module, not always imported
    """Returns the module of Triton's kernels where they take all of an update, else None."""
    if against_triton(learners) is not None:
        return None
    from gtp_policy.kernels import update_triton  # importing Triton takes time

    return update_triton


def _gradients(net: Net, ensemble: QEnsembleConfig | None = None) -> tuple[Parameters, Stack]:
    """Returns where gradients go, as parameters and as matrices, in one piece of memory."""
    flat = net.mean.new_empty(sum(p.numel() for p in net.parameters))
    pieces = torch.split(flat, [p.numel() for p in net.parameters])
    gradients = [g.view(p.shape) for g, p in zip(pieces, net.parameters, strict=True)]
    if ensemble is None:
        return gradients, Stack(gradients[::2], gradients[1::2])
    weights, *rows = ensemble_of(gradients, layer_norm=ensemble.layer_norm)
    return gradients, Stack(weights, *([row.squeeze(1) for row in kind] for kind in rows))


class _Critics:
    """N critics of each of S learners, in passes for one number of actions per observation each.

    Args:
        net: Their parameters.
        config: Their choices.
        rows: B.
        triton: Module of Triton's kernels, or None.
        gradients: Where to leave gradients; None for target networks.
    """

    def __init__(
        self,
        net: Net,
        config: QEnsembleConfig,
        rows: int,
        triton: Any = None,  # noqa: ANN401 - a module, which is not always imported
        gradients: Stack | None = None,
    ) -> None:
        self._net, self._rows, self._triton = net, rows, triton
        self._members, self._activation = config.members, config.activation
        self._stack = ensemble_of(net.parameters, layer_norm=config.layer_norm)
        self._passes: dict[int, Pass] = {}
        if gradients is not None:
            self._backward = GradientPass(
                self._stack, rows, gradients, share=config.members, activation=config.activation
            )

    def __call__(self, obs: Tensor, action: Tensor) -> Tensor:
        """Returns values (S, N, n, B) of actions (S, n, B, A)."""
        n = action.shape[1]
        if n not in self._passes:
            with torch.inference_mode(False):
                self._passes[n] = Pass(
                    self._stack,
                    n * self._rows,
                    share=self._members,
                    activation=self._activation,
                )
        return self._run(self._passes[n], obs, action)

    def values_with_gradient(self, obs: Tensor, action: Tensor) -> Tensor:
        """Returns values (S, N, B) of actions (S, B, A); `gradients` goes back from them."""
        return self._run(self._backward, obs, action.unsqueeze(1)).squeeze(2)

    def gradients(self, upstream: Tensor) -> None:
        """Leaves the gradients of a loss, given that by the values, (S, N, B)."""
        self._backward.gradients(upstream.view(-1, self._rows, 1))

    def action_gradients(self, upstream: Tensor) -> Tensor:
        """Returns a loss's gradient by actions (S, B, A), given that by the values, (S, N, B)."""
        by_inputs = self._backward.input_gradients(upstream.view(-1, self._rows, 1))
        by_action = by_inputs[..., self._net.mean.shape[-1] :]
        return by_action.view(-1, self._members, *by_action.shape[1:]).sum(1)

    def _run(self, through: Pass, obs: Tensor, action: Tensor) -> Tensor:
        if self._triton is not None:
            net = self._net
            self._triton.join(obs, net.mean, net.scale, action, through.inputs)
            return through.run().view(len(obs), self._members, *action.shape[1:3])
        inputs = through.inputs.view(*action.shape[:3], -1)
        inputs[..., : obs.shape[-1]].copy_(self._net.normalise(obs).unsqueeze(1))
        inputs[..., obs.shape[-1] :].copy_(action)
        return through.run().view(len(obs), self._members, *action.shape[1:3])


class _Inputs:
    """Where the inputs of S flow maps are written."""

    def __init__(self, actor: FlowMapActor, passes: Pass) -> None:
        self.embed = cast(FlowMapMLP, actor.network).embedding  # (S, n) -> (S, n, E)
        embedded = 2 * len(cast(Tensor, self.embed.frequencies))
        parts = torch.split(
            passes.inputs, [actor.obs_dim, actor.action_dim, embedded, embedded], -1
        )
        self._obs, self._x, self._start, self._end = parts

    def write(self, rows: slice, obs: Tensor, x: Tensor, start: Tensor, end: Tensor) -> None:
        """Writes observations, scaled actions and embedded times, (S, n, ...) each."""
        self._obs[:, rows].copy_(obs)
        self._x[:, rows].copy_(x)
        self._start[:, rows].copy_(start)
        self._end[:, rows].copy_(end)


class _FixedFlowMap:
    """The flow maps of S actors without gradient, run into buffers: what teachers get.

    Rows are (S, B, ...), times (S, B): a flow map like any other, with one more axis in front.
    """

    def __init__(self, of: Learner, net: Net, rows: int) -> None:
        actor = of.actor
        self.times, self._sigma_data, self._net = actor.times, actor.sigma_data, net
        self.passes = Pass(stack_of(net.parameters), rows)
        self._inputs = _Inputs(actor, self.passes)

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Returns where trajectories end, as `FlowMapActor.endpoint` does."""
        factors = precondition(t.unsqueeze(-1), self._sigma_data, self.times.path)
        start = self._inputs.embed(t)
        end = start if s is t else self._inputs.embed(s)
        self._inputs.write(slice(None), self._net.normalise(obs), factors.inner * x, start, end)
        return torch.addcmul(factors.skip * x, factors.out, self.passes.run())

    def __call__(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Returns where trajectories are at time s."""
        return flow_map(x, self.endpoint(obs, x, t, s), t, s)


class _Actors:
    """The losses of S actors on B rows each, and their gradients: `GTPLoss.terms` by hand.

    Args:
        learners: Whose loss and actors.
        net: The actors' networks, stacked.
        target: Those of their target networks.
        gradients: Where to leave the gradients, as matrices.
        rows: B.
        triton: Module of Triton's kernels, or None.
    """

    def __init__(
        self,
        learners: Sequence[Learner],
        net: Net,
        target: Net,
        gradients: Stack,
        rows: int,
        triton: Any = None,  # noqa: ANN401 - a module, which is not always imported
    ) -> None:
        self._learners, self._first, self._net, self._rows = learners, learners[0], net, rows
        self._triton = triton
        config, actor = self._first.loss.config, self._first.actor
        # Without a teacher of jumps there is the flow loss alone.
        self._jumps = not isinstance(config.teacher, NoTeacher)
        self._map_rows = math.ceil(config.map_share * rows) if self._jumps else 0
        stack = stack_of(net.parameters)
        self._pass = GradientPass(stack, self._map_rows + rows, gradients, transposed=True)
        self._inputs = _Inputs(actor, self._pass)
        self._times, self._sigma_data = actor.times, actor.sigma_data
        taught_by = net if config.target == "stopgrad" else target
        self._teaching = None
        if self._jumps:
            self._teaching = _FixedFlowMap(self._first, taught_by, self._map_rows)
        self._flow: Any = (
            None if triton is None else self._choices(_TEACHERS.get(type(config.teacher), 0))
        )

    def _choices(self, teacher: int) -> Any:  # noqa: ANN401 - of a module as above
        """Returns the choices of flow map and losses as Triton's kernels take them."""
        config, actor = self._first.loss.config, self._first.actor
        embedding = self._inputs.embed
        ratio = isinstance(embedding, LogRatioEmbedding)
        return self._triton.Flow(
            sigma=float(self._sigma_data),
            floor=float(cast(Tensor, embedding.delta if ratio else embedding.floor)),
            ratio=ratio,
            linear=self._times.path == "linear",
            standard=actor.config.action_statistics is not None,
            teacher=teacher,
            flow_weight=float(config.flow_weight),
            velocity=config.units == "velocity",
            time_weight=("none", "gap", "endpoint", "edm").index(config.time_weight),
            power=float(config.adaptive_power),
            flow_power=float(config.adaptive_power * config.adaptive_flow),
            constant=float(config.adaptive_constant),
            huber=float(config.huber or 0),
            share=1 / actor.action_dim if config.reduction == "mean" else 1.0,
        )

    def _gradients_by_triton(
        self, batch: Transitions, weight: Tensor | None, draws: Draws
    ) -> dict[str, Tensor]:
        """Does what `gradients` does with a launch before the networks' passes and one after."""
        triton, flow, actor, n = self._triton, self._flow, self._first.actor, self._map_rows
        t, u, s = (time[:, :n] for time in draws.times)  # without a teacher, none of them
        tau = draws.times.t if draws.flow_t is None else draws.flow_t
        rows = triton.FlowRows(
            *(batch.obs, self._net.mean, self._net.scale, batch.action),
            *(actor.action_mean, actor.action_scale, draws.z, t, u, s, tau),
        )
        frequencies = cast(Tensor, self._inputs.embed.frequencies)
        own, teaching = self._pass.inputs, self._teaching if flow.teacher else None
        into = None if teaching is None else teaching.passes.inputs
        triton.flow_inputs(flow, rows, frequencies, own, into)
        first = taught = None
        if teaching is not None:
            with coarse_products(self._first.config.no_grad_precision):
                taught = teaching.passes.run()
                if flow.teacher == _TEACHERS[SelfTeacher]:
                    first = taught.clone()
                    triton.flow_inputs(flow, rows, frequencies, None, into, first)
                    taught = teaching.passes.run()
        elif n:
            action = actor.to_standard(batch.action)
            taught = self._taught(batch.obs, action, draws).contiguous()
        raw = self._pass.run()
        upstream, metrics = triton.flow_loss(flow, rows, weight, raw, taught, first)
        self._pass.gradients(upstream)
        return dict(zip(("actor_loss", "consistency", "flow"), metrics, strict=True))

    def gradients(
        self, batch: Transitions, weight: Tensor | None, draws: Draws
    ) -> dict[str, Tensor]:
        """Computes the gradients and returns the losses, (S,) each."""
        if self._triton is not None:
            return self._gradients_by_triton(batch, weight, draws)
        loss_of, config, path = self._first.loss, self._first.loss.config, self._times.path
        action, times, z = self._first.actor.to_standard(batch.action), draws.times, draws.z
        (t, _, s), n = times, self._map_rows
        tau = t if draws.flow_t is None else draws.flow_t
        taught = self._taught(batch.obs, action, draws) if n else None
        obs = self._net.normalise(batch.obs)
        x_tau = perturb(action, tau, z, path)
        flow_factors = precondition(tau.unsqueeze(-1), self._sigma_data, path)
        scaled, start = flow_factors.inner * x_tau, self._inputs.embed(tau)
        self._inputs.write(slice(n, None), obs, scaled, start, start)
        if n:
            x_t, factors = x_tau, flow_factors
            if draws.flow_t is not None:
                x_t = perturb(action[:, :n], t, z[:, :n], path)
                factors = precondition(t.unsqueeze(-1), self._sigma_data, path)
                scaled, start = factors.inner * x_t, self._inputs.embed(t)
            self._inputs.write(slice(n), obs[:, :n], scaled, start, self._inputs.embed(s))
        raw = self._pass.run()
        on_consistency, on_flow = loss_of.time_weights(times, self._first.actor, draws.flow_t)
        map_unit, flow_unit = loss_of.unit_factors(times, draws.flow_t)
        per_row = 1 / self._rows if weight is None else weight * (1 / self._rows)
        denoised = torch.addcmul(flow_factors.skip * x_tau, flow_factors.out, raw[:, n:])
        power, mask = config.adaptive_power, batch.action_mask(self._first.actor.config.chunk)
        if mask is not None:  # what has no residual has no gradient either
            flow_unit = flow_unit * mask
        d, g = self._distance((denoised - action) * flow_unit, power * config.adaptive_flow)
        weights = config.flow_weight * per_row * on_flow
        flow, upstream = (per_row * on_flow * d).sum(1), []
        upstream.append(_column(weights) * flow_unit * flow_factors.out * g)
        consistency = torch.zeros_like(flow)
        if taught is not None:
            if mask is not None:
                map_unit = map_unit * mask[:, :n]
            arrival = torch.addcmul(factors.skip * x_t, factors.out, raw[:, :n])
            share = ((t - s) / t).unsqueeze(-1)
            residual = share * (arrival - action[:, :n]) - taught
            d, g = self._distance(residual * map_unit, power)
            per_row = 1 / n if weight is None else weight[:, :n] * (1 / n)
            weights = per_row * on_consistency
            consistency = (weights * d).sum(1)
            upstream.insert(0, _column(weights) * share * map_unit * factors.out * g)
        self._pass.gradients(torch.cat(upstream, 1))
        loss = consistency + config.flow_weight * flow
        return {"actor_loss": loss, "consistency": consistency, "flow": flow}

    def _taught(self, obs: Tensor, action: Tensor, draws: Draws) -> Tensor:
        config, times, n = self._first.loss.config, draws.times, self._map_rows
        obs, action, z = obs[:, :n], action[:, :n], draws.z[:, :n]
        teacher = config.teacher
        assert not isinstance(teacher, NoTeacher)
        assert self._teaching is not None
        if not isinstance(teacher, JvpTeacher):
            with coarse_products(self._first.config.no_grad_precision):
                return teacher.offset(self._teaching, obs, action, times, z)
        parts = []
        with torch.inference_mode(False), torch.no_grad():  # inference has no forward mode
            for i, one in enumerate(self._learners):
                of = one.actor if config.target == "stopgrad" else one.target_actor
                own = Times(*(time[i] for time in times))
                parts.append(teacher.offset(of, obs[i], action[i], own, z[i]))
        return torch.stack(parts)

    def _distance(self, residual: Tensor, power: float) -> tuple[Tensor, Tensor]:
        """Returns distances (S, B) and their gradients by the residuals (S, B, A)."""
        config = self._first.loss.config
        share = 1 / residual.shape[-1] if config.reduction == "mean" else 1.0
        square = residual.square().sum(-1) * share
        if power:
            factor = (square + config.adaptive_constant) ** -power
            return square * factor, residual * (2 * share * factor).unsqueeze(-1)
        if config.huber is None:
            return square, residual * (2 * share)
        root = (square + config.huber**2).sqrt()
        return root - config.huber, residual * (share / root).unsqueeze(-1)


class _GuidedJump:
    """Linear-Q guidance through one jump of S actors: `LinearQGuidance.loss` by hand.

    Args:
        learners: Whose actors and critics.
        net: The actors' networks, stacked.
        critic: The critics.
        rows: B.
    """

    def __init__(self, learners: Sequence[Learner], net: Net, critic: _Critics, rows: int) -> None:
        actor = learners[0].actor
        self._net, self._critic, self._mean_ = net, critic, means_of(learners[0])
        self._mean, self._scale = actor.action_mean, actor.action_scale
        self._reduction = cast(QEnsemble, learners[0].critic).config
        self._gradients, into = _gradients(net)
        self._pass = GradientPass(stack_of(net.parameters), rows, into, transposed=True)
        self._inputs = _Inputs(actor, self._pass)
        grid = actor.times.grid(1, device=net.mean.device, dtype=net.mean.dtype)
        self._start, self._end = (node.expand(len(learners), rows) for node in grid)
        self._factors = precondition(self._start.unsqueeze(-1), actor.sigma_data, actor.times.path)

    def gradients(
        self, obs: Tensor, noise: Tensor, guidance: LinearQGuidance
    ) -> tuple[Tensor, Tensor, Parameters]:
        """Returns the term and the mean of Q, (S,) each, and the gradients by the actors."""
        t, s, factors = self._start, self._end, self._factors
        x = t.unsqueeze(-1) * noise
        embed = self._inputs.embed
        self._inputs.write(
            slice(None), self._net.normalise(obs), factors.inner * x, embed(t), embed(s)
        )
        endpoint = torch.addcmul(factors.skip * x, factors.out, self._pass.run())
        # As `FlowMapActor.to_action` does, but that what it clips is known.
        action = torch.addcmul(self._mean, self._scale, flow_map(x, endpoint, t, s))
        by_member = self._critic.values_with_gradient(obs, action.clamp(-1.0, 1.0))
        q = self._reduction.reduce(by_member, 1)
        factor = torch.full_like(q[:, 0], -guidance.scale)
        if guidance.normalize:
            divisor = q.abs().mean(1)
            if self._mean_ is not None:
                self._mean_([divisor])
            factor = factor / divisor
        mean = q.mean(1)
        slope = self._reduction.reduction_slope(by_member, 1)
        per_row = (factor / q.shape[1]).view(-1, 1, 1)
        by_action = self._critic.action_gradients(slope * per_row)
        # The gradient of a clipped coordinate is 0.
        share = (1 - s / t).unsqueeze(-1) * factors.out * self._scale
        self._pass.gradients(torch.where(action.abs() <= 1, by_action, 0) * share)
        return factor * mean, mean, self._gradients


def _column(x: Tensor | float) -> Tensor | float:
    return x.unsqueeze(-1) if isinstance(x, Tensor) else x
