"""Parameters of several seeds in one piece of memory, and the steps of their optimisers."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from gtp_policy._engine.adam import adam_state, is_plain_adam
from gtp_policy.actor import FlowMapActor
from gtp_policy.critic import ValueNetwork
from gtp_policy.kernels.mlp import Pass, Stack
from gtp_policy.networks import FlowMapMLP

Parameters = list[Tensor]  # (S, ...) each


class Net(NamedTuple):
    """One network of every seed: its parameters, stacked, and what it normalises by."""

    parameters: Parameters
    mean: Tensor  # (S, 1, O)
    scale: Tensor

    def normalise(self, obs: Tensor) -> Tensor:
        """Returns observations (S, B, O) as the network sees them."""
        return (obs - self.mean) / self.scale


class Inputs:
    """Where the inputs of S flow maps are written: H times over the same rows, at other times."""

    def __init__(self, of: FlowMapActor, passes: Pass, copies: int) -> None:
        embedded = 2 * len(cast(FlowMapMLP, of.network).embedding.frequencies)
        widths = [of.obs_dim, of.action_dim, embedded, embedded]
        seeds, rows, features = passes.inputs.shape
        inputs = passes.inputs.view(seeds, copies, rows // copies, features)
        parts = torch.split(inputs, widths, -1)
        self._obs, self._x, self._start, self._end = parts

    def write(self, obs: Tensor, x: Tensor, start: Tensor, ends: Sequence[Tensor]) -> None:
        """Writes observations, scaled actions and embedded times, each (S, n, ...)."""
        self._obs.copy_(obs.unsqueeze(1))
        self._x.copy_(x.unsqueeze(1))
        self._start.copy_(start.unsqueeze(1))
        for i, end in enumerate(ends):
            self._end[:, i].copy_(end)


def stack_of(parameters: Parameters, *, linear: bool) -> Stack:
    """Returns stacked parameters as matrices (in, out): those of layers or of an ensemble."""
    if linear:
        return Stack([w.mT for w in parameters[::2]], [b.unsqueeze(1) for b in parameters[1::2]])
    half = len(parameters) // 2
    flat = [p.view(-1, *p.shape[2:]) for p in parameters]
    return Stack(flat[:half], flat[half:])


class Optimizer:
    """The steps of one part's optimisers, one per seed, on gradients that stand beside it.

    Adam as torch builds it is stepped by one fused operator with the clip folded in, for all seeds
    at once; any other optimiser finds clipped gradients where autograd would have left them.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        modules: Sequence[nn.Module],
        parameters: Parameters,
        gradients: Parameters,
        max_norm: float | None,
    ) -> None:
        self._optimizers, self._max_norm = optimizers, max_norm
        self._own = [list(module.parameters()) for module in modules]
        self._parameters, self._gradients = parameters, gradients
        self._views = [[g[i] for g in gradients] for i in range(len(self._own))]
        self.adam = all(map(is_plain_adam, optimizers, self._own)) and _alike(optimizers)

    def prepare(self, rate: float | None) -> None:
        """Sets the learning rate, and makes what Adam's first step would make.

        To be called outside of inference mode, whose tensors no other mode could change.
        """
        for i, (optimizer, own) in enumerate(zip(self._optimizers, self._own, strict=True)):
            if rate is not None:
                optimizer.param_groups[0]["lr"] = rate
            for parameter, gradient in zip(own, self._views[i], strict=True):
                parameter.grad = gradient
                if self.adam:
                    adam_state(optimizer, parameter)
            optimizer._opt_called = True  # type: ignore[attr-defined]  # as torch's schedulers ask
        if self.adam:
            for name in ("exp_avg", "exp_avg_sq") if len(self._own) > 1 else ():
                for same in zip(*(self._states(i) for i in range(len(self._own))), strict=True):
                    share_([state[name] for state in same])

    def places(self) -> list[int]:
        """Returns where Adam's moments and counts are."""
        states = (state for i in range(len(self._own)) for state in self._states(i))
        return [tensor.data_ptr() for state in states for tensor in state.values()]

    @property
    def rate(self) -> float:
        """The learning rate that the first seed's optimiser holds."""
        return float(self._optimizers[0].param_groups[0]["lr"])

    def step(self, rate: float | Tensor | None) -> Tensor:
        """Does one step and returns the gradients' norms before clipping, (S,)."""
        norms = torch.stack([n for views in self._views for n in torch._foreach_norm(views)])
        norm: Tensor = torch.linalg.vector_norm(norms.view(len(self._own), -1), dim=1)
        scale = None
        if self._max_norm is not None:
            # The divisor of the gradients; as in torch, 1e-6 keeps it from 0.
            scale = ((norm + 1e-6) / self._max_norm).clamp_min_(1)
        # The fused operator takes one divisor, and takes it for a number of single precision.
        if self.adam and len(self._own) == 1 and norm.dtype == torch.float32:
            self._fused(rate, scale)
            return norm
        if scale is not None:
            for views, divisor in zip(self._views, scale, strict=True):
                torch._foreach_div_(views, divisor)
        if self.adam:
            self._fused(rate, None)
            return norm
        with torch.inference_mode(False):  # or the reference could not write to their state
            for optimizer in self._optimizers:
                optimizer.step()
        return norm

    def _states(self, i: int) -> list[dict[str, Any]]:
        return [adam_state(self._optimizers[i], p) for p in self._own[i]]

    def _fused(self, rate: float | Tensor | None, scale: Tensor | None) -> None:
        states = [self._states(i) for i in range(len(self._own))]
        steps = [state["step"] for seed in states for state in seed]
        torch._foreach_add_(steps, 1)
        group, several = self._optimizers[0].param_groups[0], len(states) > 1

        def moments(name: str) -> list[Tensor]:
            if not several:
                return [state[name] for state in states[0]]
            return [together([s[name] for s in same]) for same in zip(*states, strict=True)]

        torch._fused_adam_(
            self._parameters if several else list[Tensor](self._own[0]),
            self._gradients if several else self._views[0],
            moments("exp_avg"),
            moments("exp_avg_sq"),
            [],
            steps[: len(states[0])],  # equal for all seeds
            lr=cast(float, group["lr"] if rate is None else rate),  # or a tensor
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=scale,
        )


def _alike(optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    """Tells whether optimisers of Adam differ in nothing but what they step."""
    names = ("lr", "betas", "eps")
    return len({tuple(o.param_groups[0][name] for name in names) for o in optimizers}) == 1


def share_(tensors: Sequence[Tensor]) -> None:
    """Moves equal tensors of several seeds into one piece of memory, unless they are there."""
    if len(tensors) > 1 and _step(tensors) is None:
        for tensor, slot in zip(tensors, torch.stack([t.detach() for t in tensors]), strict=True):
            tensor.data = slot


def together(tensors: Sequence[Tensor]) -> Tensor:
    """Returns equal tensors of several seeds as one, (S, ...), in the memory where they are.

    Several seeds have been through `share_`; where their memory is not shared it is a copy.
    """
    first = tensors[0].detach()
    if len(tensors) == 1:
        return first.unsqueeze(0)
    step = _step(tensors)
    if step is None:
        return torch.stack([t.detach() for t in tensors])
    return first.as_strided((len(tensors), *first.shape), (step, *first.stride()))


def _step(tensors: Sequence[Tensor]) -> int | None:
    """Returns the distance from one tensor to the next in one piece of memory, if there is one."""
    first, size = tensors[0], tensors[0].element_size()
    places = [t.data_ptr() for t in tensors]
    step = places[1] - places[0]
    alike = all(
        t.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and t.stride() == first.stride()
        for t in tensors
    )
    evenly = places == [places[0] + i * step for i in range(len(tensors))]
    # Side by side, with nothing between: what lies there is another seed's.
    side_by_side = first.is_contiguous() and step == first.numel() * size
    return step // size if alike and evenly and side_by_side else None


def net_of(modules: Sequence[Any]) -> Net:
    """Returns the parameters of equal networks as (S, ...), in the memory where they are."""
    owners = [m.network if isinstance(m, FlowMapActor | ValueNetwork) else m for m in modules]
    lists = [[p.detach() for p in owner.parameters()] for owner in owners]
    normalizers = [m.normalizer for m in modules]
    return Net(
        [together(copies) for copies in zip(*lists, strict=True)],
        together([n.mean for n in normalizers]).unsqueeze(1),
        together([n.scale for n in normalizers]).unsqueeze(1),
    )
