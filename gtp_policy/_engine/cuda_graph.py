"""The fused update recorded as one CUDA graph: what is left to the host is one launch per update.

At 256 rows a device waits for its host: every operator costs more to launch than to compute. A
graph is launched at once. It reads minibatch, draws and learning rates from fixed places, which
are written before each replay, so that schedules, the curriculum and every law of time go on.

A graph may hold several updates, one after the other; their minibatches are gathered together.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gtp_policy._engine.by_hand import ByHand
from gtp_policy.algorithm import Draws
from gtp_policy.times import Times
from gtp_policy.transitions import Transitions

# Updates done before recording: libraries choose algorithms and workspaces in their first calls.
_WARM_UP = 3


class Step(NamedTuple):
    """What one update is made from: a minibatch or rows of a dataset, draws and learning rates."""

    minibatch: Transitions | Tensor
    draws: Draws
    rates: dict[str, Any]


class GraphedUpdate:
    """Fused updates that record themselves after their first calls.

    The first calls are updates like any other, on a separate stream, as recording requires.
    """

    def __init__(self, fused: ByHand) -> None:
        self._fused = fused
        self._calls = 0
        self._inputs: list[Tensor] = []
        self._rates: list[dict[str, Tensor]] = []
        self._known: list[dict[str, float]] = []
        self._outputs: dict[str, Tensor] = {}
        self._graph: torch.cuda.CUDAGraph | None = None
        self._places: list[int] = []
        self._refused = False  # the device or its libraries would not record
        self._side: torch.cuda.Stream | None = None

    def __call__(
        self, batch: Transitions, draws: Draws, rates: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Does the update and returns metrics, (S,) each."""
        return self.run([Step(batch, draws, rates)])

    def another(self) -> "GraphedUpdate":
        """Returns a new one for the same update and another number of steps."""
        return type(self)(self._fused)

    def run(self, steps: Sequence[Step]) -> dict[str, Tensor]:
        """Does updates, as many on every call, and returns metrics of the last one, (S,) each."""
        # Learning rates as tensors, a custom schedule's included: a number would be recorded.
        self._fused.prepare(steps[-1].rates)
        held = self._fused.rates()
        rates = [{name: step.rates.get(name, held[name]) for name in held} for step in steps]
        given = [x for step in steps for x in _tensors(step)]
        if not self._inputs:
            self._inputs = [torch.empty_like(x) for x in given]
            # The fused operator takes rates of single precision whatever the parameters have.
            device = steps[0].draws.z.device
            self._rates = [{name: torch.zeros((), device=device) for name in held} for _ in steps]
            self._known = [{} for _ in rates]
        torch._foreach_copy_(self._inputs, given)
        for fixed, known, now in zip(self._rates, self._known, rates, strict=True):
            for name, rate in now.items():
                if known.get(name) != rate:
                    fixed[name].fill_(rate)
                    known[name] = rate
        places = self._fused.places()
        if places != self._places:  # a state was loaded: the old memory may hold something else now
            self._graph, self._places = None, places
        if self._graph is not None:
            self._graph.replay()
        elif self._calls < _WARM_UP or self._refused:
            self._on_side_stream(steps)
        else:
            self._record_or_run(steps)
        self._calls += 1
        # A replay writes to parameters without counting it, which code that keeps copies needs.
        torch.autograd.graph.increment_version(self._fused.written)
        # The next replay overwrites what this one left.
        stacked = torch.stack(list(self._outputs.values()))
        return dict(zip(self._outputs, stacked, strict=True))

    def _record_or_run(self, steps: Sequence[Step]) -> None:
        """Records and replays; where that fails, says so once and goes on as in the first calls.

        Nothing was computed while recording, so that the updates are still to be done.
        """
        try:
            graph = self._record(steps)
        except RuntimeError as error:  # what CUDA and torch raise
            self._refused = True
            warnings.warn(
                f"Updates are not recorded as a CUDA graph: {error}. They go on without one, more "
                "slowly.",
                RuntimeWarning,
                stacklevel=2,
            )
            self._on_side_stream(steps)
        else:
            graph.replay()

    def _run(self, steps: Sequence[Step]) -> None:
        fields = iter(self._inputs)
        for (minibatch, draws, _), rates in zip(steps, self._rates, strict=True):
            if isinstance(minibatch, Tensor):
                fixed = self._fused.unpack(next(fields))
            else:
                fixed = minibatch.map(lambda _: next(fields))
            fixed_draws = Draws(
                backup=None if draws.backup is None else next(fields),
                baseline=None if draws.baseline is None else next(fields),
                times=Times(*(next(fields) for _ in draws.times)),
                z=next(fields),
                guide=None if draws.guide is None else next(fields),
                flow_t=None if draws.flow_t is None else next(fields),
            )
            self._outputs = self._fused(fixed, fixed_draws, rates)

    def _on_side_stream(self, steps: Sequence[Step]) -> None:
        device = steps[0].draws.z.device
        current, side = torch.cuda.current_stream(device), self._stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            self._run(steps)
        current.wait_stream(side)

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        """Returns one stream for all, on the batch's device, which need not be the current one."""
        if self._side is None:
            self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self._side

    def _record(self, steps: Sequence[Step]) -> torch.cuda.CUDAGraph:
        graph, device = torch.cuda.CUDAGraph(), steps[0].draws.z.device
        # Other threads may go on using the device meanwhile.
        with (
            torch.cuda.device(device),
            torch.cuda.graph(graph, stream=self._stream(device), capture_error_mode="thread_local"),
        ):
            self._run(steps)
        self._graph = graph  # not before it is whole
        return graph


def _tensors(step: Step) -> list[Tensor]:
    """Returns everything that changes from update to update, always in the same order."""
    draws = step.draws
    whole = step.minibatch
    batch = [whole] if isinstance(whole, Tensor) else whole.present()
    drawn = [draws.backup, draws.baseline, *draws.times, draws.z, draws.guide, draws.flow_t]
    return [*batch, *(x for x in drawn if x is not None)]
