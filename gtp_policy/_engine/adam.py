"""Adam as torch has it, without loading torch's compiler, which alone is larger than our policies.

The first call of a few methods of `torch.optim.Optimizer`, the constructor's among them, imports
``torch._dynamo`` (some 70 MiB and most of a second) to tell it not to look inside. Here these
methods are the plain functions beneath.
"""

import inspect
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

_OPTIONS = ("fused", "betas", "eps", "weight_decay", "amsgrad", "maximize", "differentiable")


class Adam(torch.optim.Adam):
    """`torch.optim.Adam`, fused; its own ``step`` is what the reference takes."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module.parameters(), fused=True)


def is_plain_adam(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> bool:
    """Tells whether one fused operator does what an optimiser's step would do."""
    if not isinstance(optimizer, torch.optim.Adam) or len(optimizer.param_groups) != 1:
        return False
    # Torch wraps the step of a class when its first instance is made.
    if inspect.unwrap(type(optimizer).step) is not inspect.unwrap(torch.optim.Adam.step):
        return False
    if not getattr(
        vars(optimizer).get("step"), "_wrapped_by_lr_sched", "step" not in vars(optimizer)
    ):
        return False  # somebody's own, on this one; torch's schedulers merely count
    group = optimizer.param_groups[0]
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    return (
        bool(group["fused"])
        and not any(group[k] for k in ("amsgrad", "maximize", "weight_decay", "differentiable"))
        and not any(hooks)
        and [id(p) for p in group["params"]] == [id(p) for p in parameters]
    )


def standing(optimizer: torch.optim.Optimizer) -> Iterator[object]:
    """Yields what an optimiser's step depends on beside its state and its learning rate."""
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
