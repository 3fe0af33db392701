"""Parameters of several seeds side by side in memory, so that their products are batches."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gtp_policy.actor import FlowMapActor
from gtp_policy.critic import ValueNetwork
from gtp_policy.kernels.mlp import Stack

Parameters = list[Tensor]  # (S, ...) each


class Net(NamedTuple):
    """One network of every seed: its parameters, stacked, and what it normalises by."""

    parameters: Parameters
    mean: Tensor  # (S, 1, O)
    scale: Tensor

    def normalise(self, obs: Tensor) -> Tensor:
        """Returns observations (S, B, O) as the network sees them."""
        return (obs - self.mean) / self.scale


def stack_of(parameters: Parameters) -> Stack:
    """Returns stacked parameters of layers as matrices (in, out)."""
    return Stack([w.mT for w in parameters[::2]], [b.unsqueeze(1) for b in parameters[1::2]])


def ensemble_of(parameters: Parameters, *, layer_norm: bool) -> Stack:
    """Returns stacked parameters of ensembles as those of S N networks side by side."""
    flat = [p.view(-1, *p.shape[2:]) for p in parameters]
    if not layer_norm:
        half = len(flat) // 2
        return Stack(flat[:half], flat[half:])
    n = (len(flat) + 2) // 4  # the last of n layers is not normalised
    return Stack(flat[:n], flat[n : 2 * n], flat[2 * n : 3 * n - 1], flat[3 * n - 1 :])


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
