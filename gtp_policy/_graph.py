"""The fused update recorded as one CUDA graph: what is left to the host is one launch per update.

At 256 rows a device waits for its host: every operator costs more to launch than to compute. A
graph is launched at once. It reads minibatch, draws and learning rates from fixed places, which
are written before each replay, so that schedules, the curriculum and every law of time go on.
"""

from typing import Any

import torch
from torch import Tensor

from gtp_policy._fused import FusedUpdate
from gtp_policy._update import Draws
from gtp_policy.times import Times
from gtp_policy.transitions import Transitions

# Updates done before recording: libraries choose algorithms and workspaces in their first calls.
_WARM_UP = 3


class GraphedUpdate:
    """A fused update that records itself after its first calls.

    The first calls are updates like any other, on a stream of their own, as recording asks for.
    """

    def __init__(self, fused: FusedUpdate) -> None:
        self._fused = fused
        self._calls = 0
        self._inputs: list[Tensor] = []
        self._rates: dict[str, Tensor] = {}
        self._known: dict[str, float] = {}
        self._outputs: dict[str, Tensor] = {}
        self._graph: torch.cuda.CUDAGraph | None = None
        self._places: list[int] = []
        self._side: torch.cuda.Stream | None = None

    def __call__(
        self, batch: Transitions, draws: Draws, rates: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Does the update and returns metrics, (S,) each."""
        self._fused.prepare(rates)
        # Learning rates as tensors, whoever rules them: a number would be recorded for ever.
        rates = self._fused.rates()
        given = _tensors(batch, draws)
        if not self._inputs:
            self._inputs = [torch.empty_like(x) for x in given]
            self._rates = {name: batch.obs.new_zeros(()) for name in rates}
        torch._foreach_copy_(self._inputs, given)
        for name, rate in rates.items():
            if self._known.get(name) != rate:
                self._rates[name].fill_(rate)
                self._known[name] = rate
        places = self._fused.places()
        if places != self._places:  # a state was loaded: the old memory may be somebody else's now
            self._graph, self._places = None, places
        if self._graph is not None:
            self._graph.replay()
        elif self._calls < _WARM_UP:
            self._on_side_stream(batch, draws)
        else:
            self._record(batch, draws).replay()
        self._calls += 1
        # A replay writes to parameters without their counting it, as whoever keeps copies needs.
        torch.autograd.graph.increment_version(self._fused.written)
        # The next replay overwrites what this one left.
        stacked = torch.stack(list(self._outputs.values()))
        return dict(zip(self._outputs, stacked, strict=True))

    def _run(self, batch: Transitions, draws: Draws) -> None:
        fields = iter(self._inputs)
        fixed = Transitions(*(next(fields) for _ in batch))
        fixed_draws = Draws(
            backup=None if draws.backup is None else next(fields),
            baseline=None if draws.baseline is None else next(fields),
            times=Times(*(next(fields) for _ in draws.times)),
            z=next(fields),
        )
        self._outputs = self._fused(fixed, fixed_draws, self._rates)

    def _on_side_stream(self, batch: Transitions, draws: Draws) -> None:
        current, side = torch.cuda.current_stream(batch.obs.device), self._stream(batch)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            self._run(batch, draws)
        current.wait_stream(side)

    def _stream(self, batch: Transitions) -> torch.cuda.Stream:
        """Returns one stream for all, on the batch's device, which need not be the current one."""
        if self._side is None:
            self._side = torch.cuda.Stream(batch.obs.device)  # type: ignore[no-untyped-call]
        return self._side

    def _record(self, batch: Transitions, draws: Draws) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device meanwhile.
        with (
            torch.cuda.device(batch.obs.device),
            torch.cuda.graph(graph, stream=self._stream(batch), capture_error_mode="thread_local"),
        ):
            self._run(batch, draws)
        self._graph = graph  # not before it is whole
        return graph


def _tensors(batch: Transitions, draws: Draws) -> list[Tensor]:
    """Returns everything that changes from update to update, always in the same order."""
    drawn = [draws.backup, draws.baseline, *draws.times, draws.z]
    return [*batch, *(x for x in drawn if x is not None)]
