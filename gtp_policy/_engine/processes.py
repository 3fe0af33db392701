"""One update by several processes: each computes some rows of the minibatch, all take one step.

Every process has the whole minibatch and draws all that is random for it, which costs little, so
that both are those of one process. Row i belongs to process i modulo their number: so each has its
share of the rows that the map's loss takes, which are the first ones. Means over rows become means
over processes; what needs all rows at once, the weights, sees the advantages of all.
"""

import atexit
import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from gtp_policy.errors import DistributedError, ShapeError
from gtp_policy.functional import named_connection_errors
from gtp_policy.transitions import Transitions

if TYPE_CHECKING:
    from gtp_policy.algorithm import Draws


@functools.cache  # once is enough
def _leave_at_exit() -> None:
    """Lets the process leave its groups before it ends, if nobody has by then.

    Left to the interpreter's end, threads of theirs ended every third run by std::terminate.
    """
    atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())


class Processes:
    """The rows that this process computes, and what processes tell each other.

    Args:
        group: A process group of `torch.distributed`; None for the default one.

    Raises:
        DistributedError: If there is none.
    """

    def __init__(self, group: Any = None) -> None:  # noqa: ANN401 - a torch.distributed.ProcessGroup
        if not dist.is_available() or not dist.is_initialized():
            raise DistributedError(
                "There are no processes to share updates with: got no process group, expected one. "
                "Start the script by torchrun, and call accelerate.PartialState() or "
                "torch.distributed.init_process_group() first."
            )
        _leave_at_exit()
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """Copies and pickles as None: a copy of a learner is this process's alone."""
        return _none, ()

    def rows_of(self, rows: int, mapped: int) -> int:
        """Returns how many of a minibatch's rows this process computes.

        Args:
            rows: B, of the whole minibatch.
            mapped: M, the first rows, which the map's loss takes.

        Raises:
            ShapeError: If processes would have unequal shares.
        """
        if rows % self.size or mapped % self.size:
            raise ShapeError(
                f"A minibatch cannot be shared evenly: got {rows} rows, {mapped} of them for the "
                f"flow map's loss, and {self.size} processes, expected multiples of "
                f"{self.size}. Change batch_size."
            )
        return rows // self.size

    def own(self, tensor: Tensor, dim: int = 1) -> Tensor:
        """Returns this process's rows of a tensor."""
        index = [slice(None)] * tensor.dim()
        index[dim] = slice(self.rank, None, self.size)
        return tensor[tuple(index)].contiguous()

    def batch(self, batch: Transitions) -> Transitions:
        """Returns this process's rows of minibatches, fields (S, B, ...)."""
        return batch.map(self.own)

    def draws(self, draws: "Draws") -> "Draws":
        """Returns what was drawn for this process's rows."""
        by_action = {"backup", "baseline"}  # (S, n, B, W)
        own: dict[str, Any] = {}
        for name, drawn in draws._asdict().items():
            if isinstance(drawn, Tensor):
                own[name] = self.own(drawn, 2 if name in by_action else 1)
            elif drawn is not None:  # times, (S, M) each
                own[name] = type(drawn)(*map(self.own, drawn))
        return type(draws)(**{**dict.fromkeys(draws._fields), **own})

    def gather(self, own: Tensor) -> Tensor:
        """Returns the rows of all processes, (S, B), of those of each, (S, B / size)."""
        found = [torch.empty_like(own) for _ in range(self.size)]
        with named_connection_errors("its share of an update", self._group):
            dist.all_gather(found, own.contiguous(), group=self._group)
        return torch.stack(found, 2).flatten(1)

    def mean_(self, tensors: Iterable[Tensor]) -> None:
        """Replaces tensors, in place, by their means over the processes; one message for all."""
        parts = list(tensors)
        flat = torch.cat([part.reshape(-1) for part in parts])
        with named_connection_errors("its share of an update", self._group):
            dist.all_reduce(flat, group=self._group)
        flat /= self.size
        means = torch.split(flat, [part.numel() for part in parts])
        for part, mean in zip(parts, means, strict=True):
            part.copy_(mean.view_as(part))

    def means(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns metrics, (S,) each, as means over the processes."""
        together = torch.stack(list(metrics.values()))
        self.mean_([together])
        return dict(zip(metrics, together, strict=True))

    def any(self, flag: bool) -> bool:
        """Returns whether a flag is up in any of the processes, so that all do the same."""
        flags = torch.tensor([int(flag)], device=self._device())
        with named_connection_errors("its answer", self._group):
            dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group)
        return bool(flags.item())

    def check_equal(self, numbers: Sequence[int], what: str) -> None:
        """Raises unless all processes have the same numbers.

        Raises:
            DistributedError: If they have not.
        """
        own = torch.tensor([numbers], dtype=torch.int64, device=self._device())
        all_of_them = [torch.empty_like(own) for _ in range(self.size)]
        with named_connection_errors("its share of an update", self._group):
            dist.all_gather(all_of_them, own, group=self._group)
        if any(not torch.equal(own, other) for other in all_of_them):
            raise DistributedError(
                f"The processes have different {what}: got {self.size} that do not agree, expected "
                "one and the same. Build the learner from the same config, data and checkpoint "
                "everywhere."
            )

    def _device(self) -> str:
        return "cuda" if dist.get_backend(self._group) == "nccl" else "cpu"


def _none() -> None:
    return None
