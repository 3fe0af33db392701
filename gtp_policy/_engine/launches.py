"""Several updates on minibatches of a dataset, some in one launch where that is possible."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from gtp_policy._engine.choice import Engine
from gtp_policy._engine.cuda_graph import Step
from gtp_policy.algorithm import Draws, Parts, draw
from gtp_policy.config import GTPLearnerConfig
from gtp_policy.dataset import OfflineDataset
from gtp_policy.metrics import UpdateMetrics
from gtp_policy.times import Times


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
    *,
    plain: bool,
) -> list[UpdateMetrics]:
    """Does updates and returns metrics of the last one per learner.

    Args:
        learners: Whose; they have done equally many.
        engine: Theirs.
        dataset: Where minibatches come from.
        updates: How many.
        batch_size: B.
        one: Does one update of all learners on minibatches of the dataset.
        plain: Whether nobody changed what an update is, so that ``one`` may be left out.
    """
    if not isinstance(updates, int) or isinstance(updates, bool) or updates < 1:
        raise ValueError(f"`updates` is out of range: got {updates!r}, expected an integer >= 1.")
    first = learners[0]
    actor = first._parts().actor
    dataset.transitions.check(actor.obs_dim, actor.action_dim, like=actor.fixed_noise)
    dataset._numbers(batch_size, first.stream("batch"))  # or says that there is no such minibatch
    # Who changed how minibatches are drawn or updates are done is taken at their word.
    plain = plain and type(dataset).sample is OfflineDataset.sample
    told: list[UpdateMetrics] = []
    while updates:
        n = 1
        if plain:
            parts = [learner._parts() for learner in learners]
            n = engine.updates_per_launch(parts, batch_size)
            until_guided = first.config.guidance_start - first.updates
            if n > updates or (parts[0].critic is not None and 0 < until_guided < n):
                n = 1
        told = one() if n == 1 else _launch(learners, engine, dataset, batch_size, n)
        updates -= n
    return told


def _launch(
    learners: Sequence[Learner],
    engine: Engine,
    dataset: OfflineDataset,
    batch_size: int,
    n: int,
) -> list[UpdateMetrics]:
    """Does n updates on minibatches of a size in one launch; counts none of them if it fails."""
    done, numbers, drawn = learners[0].updates, [], []
    like = dataset.sample(batch_size, generator=learners[0].stream("batch"))  # of such a shape
    try:
        for _ in range(n):
            parts = [learner._parts() for learner in learners]
            numbers += [dataset._numbers(batch_size, x.stream("batch")) for x in learners]
            draws = [
                draw(own, like, x.stream, x.progress)
                for own, x in zip(parts, learners, strict=True)
            ]
            drawn.append((join(draws), parts[0].rates))
            for learner in learners:
                learner.updates += 1
        # One operation gathers all minibatches.
        rows = dataset._rows(torch.cat(numbers)).chunk(n)
        steps = [Step(own, *rest) for own, rest in zip(rows, drawn, strict=True)]
        metrics = engine.run(steps)
    except BaseException:
        for learner in learners:
            learner.updates = done
        raise
    return per_learner(metrics, len(learners))


def per_learner(metrics: dict[str, Tensor], count: int) -> list[UpdateMetrics]:
    """Returns metrics (S,) by name as one record per learner."""
    return [
        UpdateMetrics(**{name: value[i] for name, value in metrics.items()}) for i in range(count)
    ]


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
