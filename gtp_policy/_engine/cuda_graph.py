"""Updates recorded as one CUDA graph: what is left to the host is one copy and one launch.

At 256 rows a device waits for its host: every operator costs more to launch than to compute. A
graph is launched at once. It draws everything random itself, by counter, and may gather its
minibatches too; what differs from update to update besides, such as learning rates, it reads from
a record of a few words, which the host writes before each replay.

A graph may hold several updates, one after the other.
"""

import ctypes
import functools
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gtp_policy._engine.by_hand import ByHand
from gtp_policy.algorithm import Draws, Learner
from gtp_policy.critic import PolicyBaseline
from gtp_policy.guidance import LinearQGuidance, weighs
from gtp_policy.times import LogitNormalPairs, Times, UniformPairs, masses
from gtp_policy.transitions import Transitions

# Trials before recording: libraries choose algorithms and workspaces, and kernels are compiled.
_TRIALS = 2
# One thread at a time: others would record into the same graph, or disturb it.
_RECORDING = threading.Lock()


class NotRecordedError(Exception):
    """An update was not recorded; nothing has changed.

    Attributes:
        computed: Whether it could be computed, and only not be recorded.
    """

    def __init__(self, reason: str, *, computed: bool) -> None:
        super().__init__(reason)
        self.computed = computed


class GraphedUpdate:
    """Some updates in one graph, recorded on the first call.

    Everything runs on one stream per device, as all graphs that were recorded on a stream share
    what its libraries keep for it.

    Args:
        by_hand: The update.
        updates: How many.
        data: A dataset's rows of which to gather minibatches; None: they are given.
    """

    def __init__(self, by_hand: ByHand, updates: int, data: Tensor | None) -> None:
        from gtp_policy.kernels import draws_triton  # importing Triton takes time

        self._by_hand, self.updates, self._triton = by_hand, updates, draws_triton
        self.data = data
        learners, batch = by_hand.learners, by_hand.rows
        first = self._first = learners[0]
        like = self._like = first.actor.fixed_noise
        self._length = draws_triton.record_length(len(learners))
        self._keys = draws_triton.keys_of([learner.config.seed for learner in learners])
        self._grids = _grids(draws_triton, first, like)
        sizes = _sizes(draws_triton, learners, batch)
        with torch.inference_mode(False):
            self._record = torch.zeros(
                (updates, self._length), dtype=torch.int32, device=like.device
            )
            self._draws = draws_triton.Draws(
                sizes, _laws(draws_triton, first), self._grids, like, data
            )
            # A minibatch that is given lies as a dataset's rows do.
            width = 2 * first.actor.obs_dim + first.actor.action_dim + 2
            width += first.actor.action_dim * (first.config.critic_penalty > 0)
            self._rows = (
                self._draws.rows
                if data is not None
                else like.new_empty(len(learners), batch, width)
            )
        self._names: list[str] = []
        self._outputs: Tensor | None = None
        self._graph: Any = None
        self._places: list[int] = []

    def prepare(self, batch: Transitions | None = None) -> None:
        """Writes what the next `replay` reads, and records unless that is done.

        Args:
            batch: The minibatch, fields (S, B, ...), unless it is gathered here.

        Raises:
            NotRecordedError: If recording fails; nothing has changed.
        """
        with self._beside():
            self._write(batch)
            if self._graph is None or self._by_hand.places() != self._places:
                self._graph = None  # a state was loaded: the old memory may hold other things
                self._graph = self._recorded()
                self._places = self._by_hand.places()

    def replay(self) -> dict[str, Sequence[Tensor]]:
        """Does the updates and returns metrics of the last one, S each."""
        with self._beside():
            self._graph.replay()
        # A replay writes to parameters without counting it, which code that keeps copies needs.
        torch.autograd.graph.increment_version(self._by_hand.written)
        assert self._outputs is not None
        with torch.inference_mode(False):
            # The next replay overwrites what this one left.
            values, seeds = self._outputs.clone().unbind(), len(self._by_hand.learners)
        return {name: values[i * seeds : (i + 1) * seeds] for i, name in enumerate(self._names)}

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """Lets the block's work run on the device's stream for updates, in order with all else."""
        device = self._like.device
        with torch.cuda.device(device):
            current, side = torch.cuda.current_stream(device), _stream(device)
            side.wait_stream(current)
            with torch.cuda.stream(side):
                yield
            current.wait_stream(side)

    def _write(self, batch: Transitions | None) -> None:
        """Writes the record of the updates to come, and a minibatch."""
        first, done = self._first, self._first.updates
        config, total = first.loss.config, first.config.total_updates
        words, rates = [], list[dict[str, float]]()
        held = self._by_hand.rates()
        try:
            for update in range(done, done + self.updates):
                first.updates = update  # rates are those of the updates to come
                rates.append({name: first.learning_rates.get(name, held[name]) for name in held})
                progress = min(update / total, 1.0)
                n = config.curriculum.intervals(progress)
                offset = self._grids.offsets.get(n, 0)
                inner = config.inner_at(progress)
                row = self._triton.words(
                    update, n, offset, inner, [*rates[-1].values()], self._keys
                )
                words.append(row)
        finally:
            first.updates = done
        self._by_hand.prepare(rates[-1] if first.learning_rates else {})
        # Pinned memory is not used again before its copy is done, and comes from a pool.
        host = torch.empty(
            self._record.shape, dtype=torch.int32, pin_memory=self._record.device.type == "cuda"
        )
        record = b"".join(words)
        ctypes.memmove(host.data_ptr(), record, len(record))
        self._record.copy_(host, non_blocking=True)
        if batch is not None:
            fields = batch.in_rows()[: 6 if first.config.critic_penalty else 5]
            columns = [x if x.ndim == 3 else x.unsqueeze(-1) for x in fields]
            torch.cat(columns, -1, out=self._rows)

    def compute(self) -> None:
        """Does the updates that the record describes: what is recorded."""
        floats, at = self._record.view(torch.float32), self._triton.RATES
        names = list(self._by_hand.rates())
        stacked = None
        for j in range(self.updates):
            self._draws.fill(self._record[j])
            rates = {name: floats[j, at + i] for i, name in enumerate(names)}
            batch = self._by_hand.unpack(self._rows)
            self._names, stacked = self._by_hand.run(batch, self._drawn(), rates)
        assert stacked is not None
        self._outputs = stacked.view(-1)

    def _drawn(self) -> Draws:
        d = self._draws
        return Draws(
            backup=d.backup if d.backup.numel() else None,
            baseline=d.baseline if d.baseline.numel() else None,
            times=Times(d.t, d.u, d.s),
            z=d.z,
            guide=d.guide if d.guide.numel() else None,
            flow_t=d.tau if d.tau.numel() else None,
        )

    def _recorded(self) -> Any:  # noqa: ANN401 - a graph
        """Returns the recorded updates, after trials whose results are taken back."""
        computed = False
        with _RECORDING:
            state = self._by_hand.state()
            kept = [tensor.clone() for tensor in state]
            try:
                for _ in range(_TRIALS):
                    self.compute()
                    torch._foreach_copy_(state, kept)
                torch.cuda.synchronize(self._like.device)  # errors come late
                computed = True
                return self.record_graph()
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever torch, CUDA, Triton and its compiler raise
                raise NotRecordedError(
                    f"{type(error).__name__}: {error}", computed=computed
                ) from error
            finally:
                if not computed:
                    torch._foreach_copy_(state, kept)

    def record_graph(self) -> Any:  # noqa: ANN401 - a graph
        """Returns a graph that does what `compute` does."""
        graph = torch.cuda.CUDAGraph()
        stream = _stream(self._like.device)
        # Other threads may go on using the device meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self.compute()
        return graph


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Returns the stream of a device that updates run on, one for all learners."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _grids(triton: Any, learner: Learner, like: Tensor) -> Any:  # noqa: ANN401 - of a module
    """Returns every grid of the curriculum."""
    config, schedule = learner.loss.config, learner.actor.times
    if isinstance(config.t_law, UniformPairs | LogitNormalPairs):
        return triton.Grids({}, {}, like.device)
    stages = config.curriculum.every_interval()
    nodes = {n: schedule.grid(n, dtype=like.dtype) for n in stages}
    return triton.Grids(nodes, {n: masses(schedule, n, config.t_law) for n in stages}, like.device)


def _laws(triton: Any, learner: Learner) -> Any:  # noqa: ANN401 - of a module
    config, times = learner.loss.config, learner.actor.times
    law, of_pairs = config.t_law, {}
    if isinstance(law, UniformPairs):
        of_pairs = {"edge": law.edge}
    elif isinstance(law, LogitNormalPairs):
        of_pairs = law.model_dump(exclude={"kind"})
    return triton.Laws(
        law={UniformPairs: 1, LogitNormalPairs: 2}.get(type(law), 0),
        s_rule=("uniform", "zero", "equal_u", "dyadic").index(config.s_rule),
        midpoint=config.u_rule == "midpoint",
        max_gap=config.max_gap,
        linear=times.path == "linear",
        most=float(times.t_max),
        **of_pairs,
    )


def _sizes(triton: Any, learners: Sequence[Learner], batch: int) -> Any:  # noqa: ANN401
    """Returns what an update of the learners draws, as `gtp_policy.algorithm.draw` does."""
    first = learners[0]
    config, actor, loss = first.config, first.actor, first.loss.config
    critic, guidance = first.critic is not None, first.guidance
    of_actions = critic and first.critic_learns and config.backup != "value"
    baseline, samples, guide = config.baseline, 0, 0
    if critic and weighs(guidance) and isinstance(baseline, PolicyBaseline):
        samples = baseline.samples
    if critic and isinstance(guidance, LinearQGuidance):
        guide = actor.noise_dim(guidance.steps)
    return triton.Sizes(
        seeds=len(learners),
        batch=batch,
        jumps=math.ceil(loss.map_share * batch),
        actions=actor.action_dim,
        noise=actor.noise_dim(),
        backup=config.backup_actions if of_actions else 0,
        baseline=samples,
        guide=guide,
        flow=loss.flow_times == "uniform",
    )
