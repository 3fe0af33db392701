"""Several updates on minibatches of a dataset, some in one launch where that is possible."""

from collections.abc import Callable, Sequence

import torch

from gtp_policy._engine.choice import Dispatcher
from gtp_policy._engine.cuda_graph import Step
from gtp_policy._engine.whole import changing, check_whole
from gtp_policy.algorithm import Learner, draw
from gtp_policy.dataset import OfflineDataset, check_batch_size
from gtp_policy.metrics import UpdateMetrics, per_learner
from gtp_policy.transitions import check_kind


def update_from(
    learners: Sequence[Learner],
    dispatcher: Dispatcher,
    dataset: OfflineDataset,
    updates: int,
    batch_size: int,
    one: Callable[[], list[UpdateMetrics]],
) -> list[UpdateMetrics]:
    """Does updates and returns metrics of the last one per learner.

    Args:
        learners: Whose; they have done equally many.
        dispatcher: Theirs.
        dataset: Where minibatches come from.
        updates: How many.
        batch_size: B.
        one: Does one update of all learners on minibatches of the dataset.
    """
    if not isinstance(updates, int) or isinstance(updates, bool) or updates < 1:
        raise ValueError(f"`updates` is out of range: got {updates!r}, expected an integer >= 1.")
    check_whole(learners)
    check_kind("dataset", dataset, OfflineDataset)
    first = learners[0]
    actor = first.actor
    penalty = first.config.critic_penalty > 0
    chunk = actor.config.chunk
    dataset.rows(0, 1).check(
        actor.obs_dim, actor.action_dim, like=actor, next_action=penalty, chunk=chunk
    )
    check_batch_size(batch_size)
    # A custom way to draw minibatches is respected.
    plain = type(dataset).sample is OfflineDataset.sample and not dataset.images
    metrics: list[UpdateMetrics] = []
    while updates:
        n = dispatcher.updates_per_launch(learners, batch_size) if plain else 1
        until_guided = first.config.guidance_start - first.updates
        if n > updates or (first.critic is not None and 0 < until_guided < n):
            n = 1
        metrics = one() if n == 1 else _launch(learners, dispatcher, dataset, batch_size, n)
        updates -= n
    return metrics


def _launch(
    learners: Sequence[Learner],
    dispatcher: Dispatcher,
    dataset: OfflineDataset,
    batch_size: int,
    n: int,
) -> list[UpdateMetrics]:
    """Does n updates on minibatches of a size in one launch, which is all or nothing.

    Streams and learning rates are those of the updates to come, so that the counters go ahead
    while what is random is drawn. They come back before anything is computed.
    """
    done, streams, drawn = learners[0].updates, [], []
    shape = len(learners), batch_size, learners[0].actor.action_dim
    like = torch.empty(shape, device=learners[0].actor.device, dtype=learners[0].actor.dtype)
    try:
        for _ in range(n):
            streams += [learner.stream("batch") for learner in learners]
            drawn.append((draw(learners, like), learners[0].learning_rates))
            for learner in learners:
                learner.updates += 1
    finally:
        for learner in learners:
            learner.updates = done
    # One operation gathers all minibatches.
    rows = dataset.sample_rows(batch_size, streams).view(n, len(learners), batch_size, -1)
    steps = [Step(own, *rest) for own, rest in zip(rows, drawn, strict=True)]
    with changing(learners):
        metrics = per_learner(dispatcher.run(steps), len(learners))
        for learner in learners:
            learner.updates = done + n
    return metrics
