"""Which way an update is computed: the fastest that does what the reference would do.

The choice is made once for learners as they stand, and anew whenever something that it depends on
has changed: a parameter that moved, a module or a hook that came, a config, the number of rows.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gtp_policy._engine.adam import standing
from gtp_policy._engine.by_autograd import ByAutograd
from gtp_policy._engine.by_hand import ByHand
from gtp_policy._engine.cuda_graph import GraphedUpdate, NotRecordedError
from gtp_policy._engine.support import against_by_hand, against_recording
from gtp_policy._fingerprint import Fingerprint
from gtp_policy._folding import DEVICES
from gtp_policy.algorithm import Learner, draw, update
from gtp_policy.functional import named_device_errors
from gtp_policy.kernels import mlp
from gtp_policy.kernels.switch import engine, few_threads, only_reference
from gtp_policy.transitions import Transitions

# Updates per launch: a launch is then a small share of them, and recording them takes no time.
LAUNCH = 16
Metrics = Mapping[str, Sequence[Tensor] | Tensor]
Call = Callable[[], Metrics]


class Dispatcher:
    """Computes updates of one or several learners; a copy of it starts without buffers."""

    def __init__(self) -> None:
        self._fingerprint = Fingerprint()
        self._facts: tuple[Any, ...] = ()
        self._fast: ByHand | None = None
        self._recordable = False
        self._graphs: dict[tuple[int, bool], GraphedUpdate] = {}  # by updates, and who gathers
        self._refused = ""  # why updates are not recorded though they might be
        self._triton = True

    def __reduce__(self) -> tuple[type["Dispatcher"], tuple[()]]:
        """Copies and pickles as a new one: buffers belong to the networks they were made for."""
        return Dispatcher, ()

    def plan(self, learners: Sequence[Learner], batch: Transitions) -> Call:
        """Returns a function that does lines 4 to 9 of Algorithm 1 and returns metrics.

        What is random is drawn before, so that nothing has changed if that fails.

        Args:
            learners: S of them.
            batch: A minibatch per learner, fields (S, B, ...).

        Returns:
            The function; its metrics are S each by name.
        """
        rows, processes = batch.obs.shape[1], learners[0].processes
        if processes is not None:
            mapped = math.ceil(learners[0].loss.config.map_share * rows)
            rows = processes.rows_of(rows, mapped)
        fast = self._find(learners, rows)
        if self._records(fast):
            planned = self._recorded(learners, 1, None, batch)
            if planned is not None:
                return planned
            fast = self._find(learners, rows)  # built anew, without what failed
        return self._planned(fast, learners, batch)

    def _planned(
        self, fast: ByHand | None, learners: Sequence[Learner], batch: Transitions
    ) -> Call:
        """Returns a function that computes an update operator by operator."""
        with _named(learners):
            draws, processes = draw(learners, batch.action), learners[0].processes
            if processes is not None:
                draws, batch = processes.draws(draws), processes.batch(batch)

        def call() -> Metrics:
            with _named(learners):
                return compute()

        def compute() -> Metrics:
            # Also for a caller in inference mode: what is made here outlives it.
            if fast is None:
                with torch.inference_mode(False), torch.enable_grad():
                    return update(ByAutograd(learners), _plain(batch), draws)
            with few_threads(), torch.inference_mode(False):
                return fast(batch, draws, learners[0].learning_rates)

        return call

    def records(self, learners: Sequence[Learner], rows: int) -> bool:
        """Returns whether updates of learners as they stand are recorded, several a launch."""
        return self._records(self._find(learners, rows))

    def _records(self, fast: ByHand | None) -> bool:
        return fast is not None and self._recordable and not self._refused

    def plan_launch(self, learners: Sequence[Learner], data: Tensor, updates: int) -> Call | None:
        """Returns a function that does updates on minibatches of a dataset at once.

        To be called after `records` said yes.

        Args:
            learners: Those that `records` was called with.
            data: The dataset's rows.
            updates: How many.

        Returns:
            The function, as `plan` does; None if recording failed, which is said once.
        """
        return self._recorded(learners, updates, data, None)

    def _recorded(
        self,
        learners: Sequence[Learner],
        updates: int,
        data: Tensor | None,
        batch: Transitions | None,
    ) -> Call | None:
        try:
            with torch.inference_mode(False), _named(learners):
                graph = self._graph(updates, data)
                graph.prepare(batch)
        except NotRecordedError as error:
            self._refuse(error)
            return None

        def call() -> Metrics:
            with _named(learners):
                return graph.replay()

        return call

    def _graph(self, updates: int, data: Tensor | None) -> GraphedUpdate:
        key = updates, data is None
        found = self._graphs.get(key)
        if found is None or found.data is not data:
            assert self._fast is not None
            found = self._graphs[key] = GraphedUpdate(self._fast, updates, data)
        return found

    @property
    def refused(self) -> str:
        """Why updates are not recorded though they might be; empty unless recording failed."""
        return self._refused

    def _refuse(self, error: NotRecordedError) -> None:
        """Goes on without recording; without Triton's kernels too, if it is they that failed."""
        self._refused, self._graphs = str(error), {}
        self._triton = error.computed
        self._facts = ()  # builds anew
        warnings.warn(
            f"Updates are not recorded as a CUDA graph: {error}. They go on without one, more "
            "slowly.",
            RuntimeWarning,
            stacklevel=5,
        )

    def _find(self, learners: Sequence[Learner], rows: int) -> ByHand | None:
        """Returns the fast way for learners as they stand, or None."""
        if only_reference(learners[0].actor.device) is not None:
            return None
        facts = (rows, engine(), *_facts(learners))
        if facts != self._facts or not self._fingerprint.holds():
            # First: memory for one set of buffers suffices, and there may be none.
            self._fast, self._graphs, self._facts = None, {}, ()
            with _named(learners), torch.inference_mode(False):
                self._fast = _build(learners, rows, triton=self._triton)
            self._facts = facts
            modules = [learner for learner in learners if isinstance(learner, nn.Module)]
            self._fingerprint = Fingerprint(*modules, gradients=True)
            self._recordable = self._fast is not None and _recordable(self._fast)
        return self._fast


def _on_cpu(learner: Learner) -> bool:
    return learner.actor.fixed_noise.is_cpu


@contextmanager
def _named(learners: Sequence[Learner]) -> Iterator[None]:
    """Within it, errors of the device name what an update needs there, about."""
    try:
        yield
    except RuntimeError:
        if _on_cpu(learners[0]):
            raise
        # Counted where there is an error: every launch goes through here.
        with named_device_errors("updates", learners[0].actor.device, _size(learners)):
            raise


def _size(learners: Sequence[Learner]) -> int:
    """Returns about how many bytes updates take."""
    first = learners[0]
    # With target networks; parameters, gradients and two moments.
    modules = [x for x in (first.actor, first.critic, first.value) if x is not None]
    count = sum(p.numel() for module in modules for p in module.parameters())
    return 5 * count * first.actor.fixed_noise.element_size() * len(learners)


def _plain(batch: Transitions) -> Transitions:
    """Returns a minibatch that autograd may keep, which those made in inference mode are not."""
    return batch.map(lambda field: field.clone() if field.is_inference() else field)


def _build(learners: Sequence[Learner], rows: int, *, triton: bool = True) -> ByHand | None:
    if against_by_hand(learners) is not None:
        return None
    return ByHand(learners, rows, triton=triton)


def _recordable(by_hand: ByHand) -> bool:
    return by_hand.recordable and against_recording(by_hand.learners) is None


def _facts(learners: Sequence[Learner]) -> Iterator[Any]:
    """Yields what the choice depends on and no `Fingerprint` of modules sees."""
    if not _on_cpu(learners[0]):  # a recorded product keeps its precision
        yield mlp.precision()
    for name in learners[0].optimizers:  # not the rates themselves, which a schedule changes
        yield len({x.optimizers[name].param_groups[0]["lr"] for x in learners}) == 1
    for learner in learners:
        yield learner.processes
        yield learner.critic_learns
        yield from (learner.config, learner.guidance, learner.loss.config, learner.weighter.config)
        yield from (learner.actor.config, learner.target_actor.config)
        for critic in (learner.critic, learner.target_critic):
            yield None if critic is None else critic.config
        for optimizer in learner.optimizers.values():
            yield optimizer
            yield from standing(optimizer)


def explain(learner: Learner, refused: str = "") -> str:
    """Returns which way a learner's next update will take, and why.

    Args:
        learner: The learner.
        refused: Why its updates were not recorded, where that failed.
    """
    device, dtype = learner.actor.device, learner.actor.dtype
    if device.type not in DEVICES:
        reason: str | None = (
            f"there are no faster ways on {device.type}, only on {' and '.join(DEVICES)}"
        )
    else:
        reason = only_reference(device) or against_by_hand([learner])
    if reason is not None:
        return f"update: reference (modules and autograd), because {reason}"
    why_not = refused or against_recording([learner])
    how = "recorded as a CUDA graph" if why_not is None else "into buffers"
    if refused or (why_not is not None and device.type == "cuda"):
        how += f", not recorded because {why_not}"
    line = f"update: fused (gradients by hand, {how}) on {device}, {dtype}"
    if learner.config.no_grad_precision == "bfloat16":
        line += ", bfloat16 products where no gradient is taken"
    return line
