r"""The actor's half of the fused update: both losses and their gradients, written out.

With :math:`r` a residual, :math:`d` its distance over A dimensions, and :math:`\kappa = 1/A` for a
mean or 1 for a sum,

.. math:: \frac{\partial d}{\partial r} = 2 \kappa r \ \text{(squared L2)}, \quad
    \frac{\kappa r}{\sqrt{\kappa \|r\|^2 + c^2}} \ \text{(pseudo-Huber)}

and a residual depends on the network's output through :math:`c_{out}(t)` times its share. What a
teacher says has no gradient, so that every teacher is asked as the reference asks it.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from gtp_policy._engine.seeds import Inputs, Net, stack_of
from gtp_policy.algorithm import Draws, Parts
from gtp_policy.functional import flow_map, perturb, precondition
from gtp_policy.kernels.mlp import GradientPass, Pass, Stack, coarse_products
from gtp_policy.networks import FlowMapMLP
from gtp_policy.teachers import JvpTeacher, NoTeacher
from gtp_policy.times import Times
from gtp_policy.transitions import Transitions


class FixedFlowMap:
    """The flow maps of S actors without gradient, run into buffers; what teachers ask.

    Rows are (S, B, ...), times (S, B): a flow map like any other, with one more axis in front.
    """

    def __init__(self, of: Parts, net: Net, rows: int) -> None:
        self.times, self._of, self._net = of.actor.times, of.actor, net
        self._pass = Pass(stack_of(net.parameters, linear=True), rows)
        self._inputs = Inputs(of.actor, self._pass, 1)

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Returns where trajectories end, as `FlowMapActor.endpoint` does."""
        factors = precondition(t.unsqueeze(-1), self._of.sigma_data, self.times.path)
        embedding = cast(FlowMapMLP, self._of.network).embedding
        normalised = self._net.normalise(obs)
        self._inputs.write(normalised, factors.inner * x, embedding(t), [embedding(s)])
        return torch.addcmul(factors.skip * x, factors.out, self._pass.run())

    def __call__(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Returns where trajectories are at time s."""
        return flow_map(x, self.endpoint(obs, x, t, s), t, s)


class ActorGradients:
    """The losses of S actors on B rows each, and their gradients.

    Args:
        learners: Whose loss and actors.
        actor: Their networks, stacked.
        target: Those of their slow copies.
        gradients: Where to leave the gradients, as matrices.
        rows: B.
    """

    def __init__(
        self, learners: Sequence[Parts], actor: Net, target: Net, gradients: Stack, rows: int
    ) -> None:
        self._learners, self._first, self._net, self._rows = learners, learners[0], actor, rows
        config = self._first.loss.config
        # Without a teacher of jumps there is the flow loss alone.
        self._jumps = not isinstance(config.teacher, NoTeacher)
        copies = 1 + self._jumps
        stack = stack_of(actor.parameters, linear=True)
        self._pass = GradientPass(stack, copies * rows, gradients, transposed=True)
        self._inputs = Inputs(self._first.actor, self._pass, copies)
        taught_by = actor if config.target == "stopgrad" else target
        self._teaching = FixedFlowMap(self._first, taught_by, rows) if self._jumps else None

    def __call__(
        self, batch: Transitions, weight: Tensor | None, draws: Draws
    ) -> dict[str, Tensor]:
        """Computes the gradients and returns the losses, (S,) each."""
        config, actor = self._first.loss.config, self._first.actor
        action, path = batch.action, actor.times.path
        times = Times(*(time.view(action.shape[:2]) for time in draws.times))
        t, s, z = times.t, times.s, draws.z.view(action.shape)
        taught = self._taught(batch, times, z) if self._jumps else None
        x_t = perturb(action, t, z, path)
        skip, out, inner = precondition(t.unsqueeze(-1), actor.sigma_data, path)
        embedding = cast(FlowMapMLP, actor.network).embedding
        ends = [embedding(s), embedding(t)] if self._jumps else [embedding(t)]
        self._inputs.write(self._net.normalise(batch.obs), inner * x_t, ends[-1], ends)
        raw = self._pass.run().view(len(action), len(ends), self._rows, -1)
        endpoint = torch.addcmul((skip * x_t).unsqueeze(1), out.unsqueeze(1), raw)
        on_consistency, on_flow = (
            w.view(t.shape) if isinstance(w, Tensor) else w
            for w in self._first.loss.time_weights(draws.times, actor)
        )
        per_row = 1 / self._rows if weight is None else weight * (1 / self._rows)
        d_flow, g_flow = self._distance(endpoint[:, -1] - action)
        weights = config.flow_weight * per_row * on_flow
        flow, upstream = (per_row * on_flow * d_flow).sum(1), [_column(weights) * out * g_flow]
        consistency = torch.zeros_like(flow)
        if taught is not None:
            share = ((t - s) / t).unsqueeze(-1)
            d, g = self._distance(share * (endpoint[:, 0] - action) - taught)
            weights = per_row * on_consistency
            consistency = (weights * d).sum(1)
            upstream.insert(0, _column(weights) * share * out * g)
        self._pass.gradients(torch.cat(upstream, 1))
        loss = consistency + config.flow_weight * flow
        return {"actor_loss": loss, "consistency": consistency, "flow": flow}

    def _taught(self, batch: Transitions, times: Times, z: Tensor) -> Tensor:
        config = self._first.loss.config
        teacher = config.teacher
        assert not isinstance(teacher, NoTeacher)
        assert self._teaching is not None
        if not isinstance(teacher, JvpTeacher):
            with coarse_products(self._first.config.no_grad_precision):
                return teacher.offset(self._teaching, batch.obs, batch.action, times, z)
        parts = []
        with torch.inference_mode(False), torch.no_grad():  # inference has no forward mode
            for i, one in enumerate(self._learners):
                of = one.actor if config.target == "stopgrad" else one.target_actor
                own = Times(*(time[i] for time in times))
                parts.append(teacher.offset(of, batch.obs[i], batch.action[i], own, z[i]))
        return torch.stack(parts)

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
