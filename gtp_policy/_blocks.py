"""Several updates on minibatches of a dataset, some in one launch where that is possible."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from gtp_policy._engine import Engine
from gtp_policy._graph import Step
from gtp_policy._update import Draws, Parts, draw
from gtp_policy.dataset import OfflineDataset
from gtp_policy.errors import DataError
from gtp_policy.gtp_config import GTPLearnerConfig
from gtp_policy.metrics import UpdateMetrics
from gtp_policy.times import Times
from gtp_policy.transitions import Transitions


class Learner(Protocol):
    """What is asked of a learner here."""

    config: GTPLearnerConfig
    updates: int

    @property
    def progress(self) -> float:
        """Fraction of the run that is done."""
        ...

    def stream(self, name: str) -> torch.Generator:
        """Returns the generator of this update for one purpose."""
        ...

    def _parts(self) -> Parts: ...


def update_in_blocks(
    learners: Sequence[Learner],
    engine: Engine,
    dataset: OfflineDataset,
    updates: int,
    batch_size: int,
    one: Callable[[], list[UpdateMetrics]],
) -> list[UpdateMetrics]:
    """Does updates and returns metrics of the last one per learner.

    Args:
        learners: Whose; they have done equally many.
        engine: Theirs.
        dataset: Where minibatches come from.
        updates: How many.
        batch_size: B.
        one: Does one update of all learners on minibatches of the dataset.
    """
    if not isinstance(updates, int) or isinstance(updates, bool) or updates < 1:
        raise ValueError(f"`updates` is out of range: got {updates}, expected an integer >= 1.")
    if batch_size < 1:
        raise DataError(f"`batch_size` is out of range: got {batch_size}, expected >= 1.")
    rows = dataset.take(torch.zeros(batch_size, dtype=torch.long, device=dataset.device))
    parts = [learner._parts() for learner in learners]
    rows.check(parts[0].actor.obs_dim, parts[0].actor.action_dim, like=parts[0].actor.fixed_noise)
    told: list[UpdateMetrics] = []
    while updates:
        block = engine.block([learner._parts() for learner in learners], batch_size)
        first = learners[0]
        until_guided = first.config.guidance_start - first.updates
        if block == 1 or block > updates or 0 < until_guided < block:
            told, updates = one(), updates - 1
            continue
        done = first.updates
        try:
            metrics = engine.replay(dataset, _steps(learners, dataset, rows, block))
        except BaseException:
            for learner in learners:
                learner.updates = done
            raise
        told = [
            UpdateMetrics(**{name: value[i] for name, value in metrics.items()})
            for i in range(len(learners))
        ]
        updates -= block
    return told


def _steps(
    learners: Sequence[Learner], dataset: OfflineDataset, rows: Transitions, block: int
) -> list[Step]:
    """Draws what is random in the next updates, for minibatches like this one, and counts them."""
    steps = []
    for _ in range(block):
        parts = [learner._parts() for learner in learners]
        numbers = torch.cat([dataset.draw(len(rows.obs), x.stream("batch")) for x in learners])
        drawn = [
            draw(own, rows, x.stream, x.progress) for own, x in zip(parts, learners, strict=True)
        ]
        steps.append(Step(numbers, join(drawn), parts[0].rates))
        for learner in learners:
            learner.updates += 1
    return steps


def join(draws: Sequence[Draws]) -> Draws:
    """Returns the draws of all learners, one below the other."""

    def rows(tensors: Sequence[Any]) -> Any:  # noqa: ANN401 - None stays None
        return None if tensors[0] is None else torch.cat(list(tensors))

    return Draws(
        backup=rows([d.backup for d in draws]),
        baseline=rows([d.baseline for d in draws]),
        times=Times(*(torch.cat(same) for same in zip(*(d.times for d in draws), strict=True))),
        z=rows([d.z for d in draws]),
        guide=rows([d.guide for d in draws]),
    )
