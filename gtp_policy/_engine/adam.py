"""Steps of optimisers on gradients in buffers, and Adam without torch's compiler.

The first call of a few methods of `torch.optim.Optimizer`, the constructor's among them, imports
``torch._dynamo`` only to exclude the method from compilation. The import takes some 70 MiB and most
of a second, more than our policies. Here these methods are the functions without that wrapper.
"""

import inspect
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from gtp_policy._engine.seeds import Parameters, share_, together
from gtp_policy.algorithm import Learner
from gtp_policy.errors import DataError, StateMismatchError

_OPTIONS = ("fused", "betas", "eps", "weight_decay", "amsgrad", "maximize", "differentiable")


class Adam(torch.optim.Adam):
    """`torch.optim.Adam`, fused; its own ``step`` is what the reference takes.

    Its learning rate is the learner's, which sets it before every step.
    """

    _set: float | None = None  # what `set_rate` has set last

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    _load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module.parameters(), fused=True)
        self._set = self.param_groups[0]["lr"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a state, and its learning rate until the next step.

        Raises:
            StateMismatchError: If it is none that a step could go on from; nothing has been
                changed then.
        """
        before = {"state": self.state, "param_groups": self.param_groups}
        try:
            self._load_state_dict(state_dict)
            _check_options(self.param_groups[0])
            for parameter, state in self.state.items():
                _settle(parameter, state)
        except BaseException:
            cast(Any, self).__setstate__(before)
            raise
        self._set = None

    def check_rate(self, name: str) -> None:
        """Raises if somebody has set the learning rate, which the next step would undo.

        Args:
            name: What the message calls the part.
        """
        rate = self.param_groups[0]["lr"]
        if self._set is not None and rate != self._set:
            choice = "actor_lr" if name == "actor" else "critic_lr"
            raise DataError(
                f"The learning rate of the {name} is the config's: got {float(rate):g} set in its "
                f"optimiser, expected {self._set:g}. Set `learner.config = learner.config.replace("
                f"{choice}=..., lr_schedule='constant')`, or build the learner with `optimizer=`, "
                "whose rates and schedulers are yours."
            )

    def check_parameters(self, name: str, module: nn.Module) -> None:
        """Raises if somebody has put parameters into the module that no step would change.

        Args:
            name: What the message calls the part.
            module: The part.
        """
        stepped = {id(p) for p in self.param_groups[0]["params"]}
        strange = [n for n, p in module.named_parameters() if id(p) not in stepped]
        if strange:
            raise StateMismatchError(
                f"The optimiser of the {name} does not step all of it: got {len(strange)} other "
                f"parameters, {strange[:3]}, expected those that it was made for. Copy values with "
                "load_state_dict without assign=True; for other modules, build the learner with "
                "`network=`, `encoder=` or `optimizer=`."
            )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of an optimiser's next step."""
    optimizer.param_groups[0]["lr"] = rate
    if isinstance(optimizer, Adam):
        optimizer._set = rate


def check_optimizers(learners: Sequence[Learner]) -> None:
    """Raises if an optimiser of the core's would undo what somebody has set, or not step it."""
    for learner in learners:
        for name, optimizer in learner.optimizers.items():
            if isinstance(optimizer, Adam):
                optimizer.check_rate(name)
                optimizer.check_parameters(name, getattr(learner, name))


def is_plain_adam(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> bool:
    """Returns whether one fused operator does what an optimiser's step would do."""
    if not isinstance(optimizer, torch.optim.Adam) or len(optimizer.param_groups) != 1:
        return False
    # Torch wraps the step of a class when its first instance is made.
    if inspect.unwrap(type(optimizer).step) is not inspect.unwrap(torch.optim.Adam.step):
        return False
    if not getattr(
        vars(optimizer).get("step"), "_wrapped_by_lr_sched", "step" not in vars(optimizer)
    ):
        return False  # a custom one, on this optimiser; torch's schedulers merely count
    group = optimizer.param_groups[0]
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    return (
        bool(group["fused"])
        and not any(group[k] for k in ("amsgrad", "maximize", "weight_decay", "differentiable"))
        and not any(hooks)
        and [id(p) for p in group["params"]] == [id(p) for p in parameters]
    )


def standing(optimizer: torch.optim.Optimizer) -> Iterator[object]:
    """Yields what an optimiser's step depends on in addition to its state and learning rate."""
    yield bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)
    yield vars(optimizer).get("step")
    for group in optimizer.param_groups:
        yield len(group["params"])
        yield from (group.get(name) for name in _OPTIONS)


def adam_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    """Returns the state of a parameter, made as Adam's first step makes it."""
    state = cast(dict[str, Any], optimizer.state[parameter])
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state


def _check_options(group: dict[str, Any]) -> None:
    betas = group.get("betas")
    pair = betas if isinstance(betas, list | tuple) and len(betas) == 2 else (None, None)
    checked = [(name, group.get(name), math.inf) for name in ("lr", "eps")]
    for name, number, most in [*checked, *(("betas", beta, 1.0) for beta in pair)]:
        if name == "lr" and isinstance(number, Tensor) and number.numel() == 1:
            number = number.item()
        if not isinstance(number, int | float) or not 0 <= number < most:
            raise StateMismatchError(
                f"The state of an optimiser does not fit: got `{name}` {group.get(name)!r:.60}, "
                f"expected {'two numbers from 0 below 1' if name == 'betas' else '0 or more'}."
            )


@torch.inference_mode(False)
@torch.no_grad()
def _settle(parameter: Tensor, state: dict[str, Any]) -> None:
    """Checks a parameter's state, and lays its moments out as the parameter is.

    The fused operator walks through memory, whatever the strides say: a moment of others is another
    one to it, one that is expanded has no room for what it writes, and of two that are one tensor
    it makes nothing that has a meaning.
    """
    if not state:
        return
    for name in ("exp_avg", "exp_avg_sq", "step"):
        value = state.get(name)
        shape = () if name == "step" else tuple(parameter.shape)
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_complex():
            kind = value.layout if isinstance(value, Tensor) else type(value).__name__
            raise StateMismatchError(
                f"The state of an optimiser does not fit: got {kind} for `{name}`, expected a "
                f"dense tensor of shape {shape}."
            )
        if tuple(value.shape) != shape:
            raise StateMismatchError(
                f"The optimiser belongs to other parameters: got `{name}` of shape "
                f"{tuple(value.shape)}, expected {shape}."
            )
        least = -math.inf if name == "exp_avg" else 0
        if type(value) is Tensor and not value.is_meta:  # others have no numbers to look at
            if not bool((value.isfinite() & (value >= least)).all()):
                raise StateMismatchError(
                    f"The state of an optimiser does not fit: got `{name}` with numbers that are "
                    f"not finite or below {least}, expected those of a step of Adam."
                )
        own = torch.empty_like(value if name == "step" else parameter.detach())
        state[name] = own.copy_(value)


def check_moments(name: str, optimizer: torch.optim.Optimizer) -> None:
    """Raises unless every moment of Adam has the shape of its parameter, which torch leaves open.

    Args:
        name: What the message calls the part.
        optimizer: Any optimiser; those of other kinds keep what they like.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if key.startswith("exp_avg") and value.shape != parameter.shape:
                raise StateMismatchError(
                    f"The optimiser of the {name} belongs to other parameters: got `{key}` of "
                    f"shape {tuple(value.shape)}, expected {tuple(parameter.shape)}."
                )


class Optimizer:
    """The steps of one part's optimisers, one per seed, on gradients in buffers.

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
        triton: Any = None,  # noqa: ANN401 - a module, which is not always imported
    ) -> None:
        self._optimizers, self._max_norm = optimizers, max_norm
        self._own = [list(module.parameters()) for module in modules]
        self._parameters, self.gradients = parameters, gradients
        self._views = [[g[i] for g in gradients] for i in range(len(self._own))]
        self.adam = all(map(is_plain_adam, optimizers, self._own)) and _alike(optimizers)
        self._triton: Any = triton if self.adam else None
        # Triton's step, and where moments and counts were when `prepare` last looked.
        self._compiled: Any = None
        self.places: list[int] = []
        self._rate = (
            torch.zeros((), dtype=torch.float32, device=parameters[0].device)
            if self._triton
            else None
        )

    def prepare(self, rate: float | None) -> None:
        """Sets the learning rate, and makes what Adam's first step would make.

        To be called outside of inference mode, whose tensors no other mode could change.
        """
        for i, (optimizer, own) in enumerate(zip(self._optimizers, self._own, strict=True)):
            if rate is not None:
                set_rate(optimizer, rate)
            for parameter, gradient in zip(own, self._views[i], strict=True):
                parameter.grad = gradient
                if self.adam:
                    adam_state(optimizer, parameter)
            optimizer._opt_called = True  # type: ignore[attr-defined]  # torch's schedulers need it
        if self._triton is not None:
            self._find_places()
        elif self.adam:
            for name in ("exp_avg", "exp_avg_sq") if len(self._own) > 1 else ():
                for same in zip(*(self._states(i) for i in range(len(self._own))), strict=True):
                    share_([state[name] for state in same])

    def _find_places(self) -> None:
        """Makes Triton's step, unless moments and counts are where they were."""
        places = [tensor.data_ptr() for tensor in self.tensors()]
        if places == self.places:
            return
        states = [self._states(i) for i in range(len(self._own))]
        names = ("exp_avg", "exp_avg_sq", "step")
        moments = ([[state[name] for state in of_seed] for of_seed in states] for name in names)
        group = self._optimizers[0].param_groups[0]
        options = self._max_norm, group["betas"], group["eps"]
        self._compiled = self._triton.Adam(self._own, self._views, *moments, *options)
        self.places = places

    def tensors(self) -> list[Tensor]:
        """Returns Adam's moments and counts."""
        states = (state for i in range(len(self._own)) for state in self._states(i))
        return [tensor for state in states for tensor in state.values()]

    @property
    def rate(self) -> float:
        """The learning rate that the first seed's optimiser holds."""
        return float(self._optimizers[0].param_groups[0]["lr"])

    def step(self, rate: float | Tensor | None) -> Tensor:
        """Does one step and returns the gradients' norms before clipping, (S,)."""
        if self._compiled is not None:
            if not isinstance(rate, Tensor):
                assert self._rate is not None
                rate = self._rate.fill_(self.rate if rate is None else rate)
            return cast(Tensor, self._compiled.step(rate))
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
        steps = [[state["step"] for state in seed] for seed in states]
        torch._foreach_add_(list(itertools.chain(*steps)), 1)
        if len(states) == 1 or not _equal(steps):  # a layer of one seed was frozen for a while
            for own, views, seed, counts in zip(self._own, self._views, states, steps, strict=True):
                first, second = ([state[n] for state in seed] for n in ("exp_avg", "exp_avg_sq"))
                self._call(list[Tensor](own), views, first, second, counts, rate, scale)
            return
        first, second = (
            [together([state[n] for state in same]) for same in zip(*states, strict=True)]
            for n in ("exp_avg", "exp_avg_sq")
        )
        self._call(self._parameters, self.gradients, first, second, steps[0], rate, scale)

    def _call(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        first: list[Tensor],
        second: list[Tensor],
        steps: list[Tensor],
        rate: float | Tensor | None,
        scale: Tensor | None,
    ) -> None:
        group = self._optimizers[0].param_groups[0]
        torch._fused_adam_(
            parameters,
            gradients,
            first,
            second,
            [],
            steps,
            lr=cast(float, group["lr"] if rate is None else rate),  # or a tensor
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=scale,
        )


def _equal(steps: Sequence[Sequence[Tensor]]) -> bool:
    """Returns whether all seeds have taken equally many steps; they have where nobody can look."""
    if steps[0][0].is_cuda and torch.cuda.is_current_stream_capturing():
        return True
    counts = torch.stack([torch.stack(list(seed)) for seed in steps])
    return bool((counts == counts[0]).all())


def _alike(optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    """Returns whether optimisers of Adam differ in nothing but what they step."""
    names = ("lr", "betas", "eps")
    return len({tuple(o.param_groups[0][name] for name in names) for o in optimizers}) == 1
