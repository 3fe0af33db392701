"""Which way an update is computed: the fastest that does what the reference would do.

The choice is made once for learners as they stand, and anew whenever something that it depends on
has changed: a parameter that moved, a module or a hook that came, a config, the number of rows.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gtp_policy._engine.adam import standing
from gtp_policy._engine.by_autograd import ByAutograd
from gtp_policy._engine.by_hand import ByHand
from gtp_policy._engine.cuda_graph import GraphedUpdate, Step
from gtp_policy._engine.support import against_by_hand, against_recording
from gtp_policy._fingerprint import Fingerprint
from gtp_policy.algorithm import Draws, Learner, update
from gtp_policy.kernels.switch import engine, few_threads, only_reference
from gtp_policy.transitions import Transitions

# Updates per launch: a launch is then a small share of them, and recording them takes no time.
LAUNCH = 16


class Dispatcher:
    """Computes updates of one or several learners; a copy of it starts without buffers."""

    def __init__(self) -> None:
        self._fingerprint = Fingerprint()
        self._facts: tuple[Any, ...] = ()
        self._fast: ByHand | GraphedUpdate | None = None
        self._several: GraphedUpdate | None = None  # the same, for several updates at once

    def __reduce__(self) -> tuple[type["Dispatcher"], tuple[()]]:
        """Copies and pickles as a new one: buffers belong to the networks they were made for."""
        return Dispatcher, ()

    def update(
        self, learners: Sequence[Learner], batch: Transitions, draws: Draws
    ) -> dict[str, Tensor]:
        """Does lines 4 to 9 of Algorithm 1 and returns metrics.

        Args:
            learners: S of them.
            batch: A minibatch per learner, fields (S, B, ...).
            draws: What is random.

        Returns:
            Metrics by name, (S,) each.
        """
        fast = self._find(learners, batch.obs.shape[1])
        # Also for a caller in inference mode: what is made here outlives it.
        if fast is None:
            with torch.inference_mode(False), torch.enable_grad():
                return update(ByAutograd(learners), _plain(batch), draws)
        with few_threads(), torch.inference_mode(False):
            return fast(batch, draws, learners[0].learning_rates)

    def updates_per_launch(self, learners: Sequence[Learner], rows: int) -> int:
        """Returns how many updates `run` does at once, for learners as they stand; 1: none."""
        return LAUNCH if isinstance(self._find(learners, rows), GraphedUpdate) else 1

    def run(self, steps: Sequence[Step]) -> dict[str, Tensor]:
        """Does `updates_per_launch` updates and returns metrics of the last one, (S,) each."""
        if self._several is None:
            assert isinstance(self._fast, GraphedUpdate)
            self._several = self._fast.another()
        with torch.inference_mode(False):
            return self._several.run(steps)

    def _find(self, learners: Sequence[Learner], rows: int) -> ByHand | GraphedUpdate | None:
        """Returns the fast way for learners as they stand, or None."""
        if only_reference(learners[0].actor.device) is not None:
            return None
        facts = (rows, engine(), *_facts(learners))
        if facts != self._facts or not self._fingerprint.holds():
            self._fast = self._several = None  # first: memory for one set of buffers suffices
            with torch.inference_mode(False):
                self._fast = _build(learners, rows)
            self._facts = facts
            modules = [learner for learner in learners if isinstance(learner, nn.Module)]
            self._fingerprint = Fingerprint(*modules, gradients=True)
        return self._fast


def _plain(batch: Transitions) -> Transitions:
    """Returns a minibatch that autograd may keep, which those made in inference mode are not."""
    return batch.map(lambda field: field.clone() if field.is_inference() else field)


def _build(learners: Sequence[Learner], rows: int) -> ByHand | GraphedUpdate | None:
    if against_by_hand(learners) is not None:
        return None
    by_hand = ByHand(learners, rows)
    recorded = by_hand.recordable and against_recording(learners) is None
    return GraphedUpdate(by_hand) if recorded else by_hand


def _facts(learners: Sequence[Learner]) -> Iterator[Any]:
    """Yields what the choice depends on and no `Fingerprint` of modules sees."""
    for name in learners[0].optimizers:  # not the rates themselves, which a schedule changes
        yield len({x.optimizers[name].param_groups[0]["lr"] for x in learners}) == 1
    for learner in learners:
        yield from (learner.config, learner.guidance, learner.loss.config, learner.weighter.config)
        yield from (learner.actor.config, learner.target_actor.config)
        for critic in (learner.critic, learner.target_critic):
            yield None if critic is None else critic.config
        for optimizer in learner.optimizers.values():
            yield optimizer
            yield from standing(optimizer)


def explain(learner: Learner) -> str:
    """Returns which way a learner's next update will take, and why."""
    device, dtype = learner.actor.device, learner.actor.dtype
    reason = only_reference(device) or against_by_hand([learner])
    if reason is not None:
        return f"update: reference (modules and autograd), because {reason}"
    why_not = against_recording([learner])
    how = "recorded as a CUDA graph" if why_not is None else "into buffers"
    if why_not is not None and device.type == "cuda":
        how += f", not recorded because {why_not}"
    line = f"update: fused (gradients by hand, {how}) on {device}, {dtype}"
    if learner.config.no_grad_precision == "bfloat16":
        line += ", bfloat16 products where no gradient is taken"
    return line
