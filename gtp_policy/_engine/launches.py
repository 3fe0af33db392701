"""Several updates on minibatches of a dataset, some in one launch where that is possible."""

import math
import warnings
from collections.abc import Callable, Sequence

from gtp_policy._engine.adam import check_optimizers
from gtp_policy._engine.choice import LAUNCH, Dispatcher
from gtp_policy._engine.whole import changing, check_whole
from gtp_policy._numbers import as_int
from gtp_policy.acting import LOOK_AT, look
from gtp_policy.algorithm import Learner, minibatch
from gtp_policy.dataset import OfflineDataset, check_batch_size
from gtp_policy.errors import DataError, TrainingWarning
from gtp_policy.functional import check_kind
from gtp_policy.metrics import UpdateMetrics, per_learner

MOST_UPDATES = 2**53  # a checkpoint's counter goes no further, as no JSON of others does


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
    left = counted("updates", updates)
    batch_size, first = check_data(learners, dataset, batch_size), learners[0]
    _warn_behind_the_end(first, left)
    # A custom way to draw minibatches is respected.
    plain = type(dataset).sample is OfflineDataset.sample and not dataset.images
    metrics: list[UpdateMetrics] = []
    records, phase = None, None
    while left:
        # Nothing but guidance that begins and a critic that rests changes meanwhile: to look at
        # everything takes a while.
        if records is None or phase != (first.guidance, first.critic_learns):
            phase = first.guidance, first.critic_learns
            records = plain and dispatcher.records(learners, batch_size)
        turns = first.config.guided_from, first.config.critic_length
        crossed = any(0 < turn - first.updates < LAUNCH for turn in turns)
        n = 1 if left < LAUNCH or crossed else LAUNCH
        if records and (found := _launch(learners, dispatcher, dataset, n)) is not None:
            metrics, left = found, left - n
            continue
        records = False
        metrics, left = one(), left - 1
    return metrics


def counted(name: str, given: int) -> int:
    """Returns a number of updates as a plain one.

    Raises:
        ValueError: If it is none, or more than any learner can do.
    """
    number = as_int(given)
    if number is None or not 1 <= number <= MOST_UPDATES:
        raise ValueError(
            f"`{name}` is out of range: got {given!r}, expected an integer >= 1, and at most 2^53."
        )
    return number


def check_data(learners: Sequence[Learner], dataset: OfflineDataset, batch_size: int) -> int:
    """Raises unless learners are whole and the dataset is one for them; changes nothing.

    Args:
        learners: Who is to learn.
        dataset: What from.
        batch_size: B.

    Returns:
        B as a plain number.
    """
    check_whole(learners)
    check_optimizers(learners)
    check_kind("dataset", dataset, OfflineDataset)
    first = learners[0]
    actor = first.actor
    penalty = first.config.critic_penalty > 0
    if first.critic is not None:
        dataset.check_rewards("A critic")
    chunk, history = actor.config.chunk, actor.config.history
    # Of equal widths, two steps of one number are one of two. Histories may be stacked by oneself.
    if chunk != dataset.chunk or (history > 1 and history != dataset.history):
        raise DataError(
            f"The dataset has other steps: got history={dataset.history} and chunk={dataset.chunk}"
            f", expected {history} and {chunk}, the learner's. Take dataset.with_history({history})"
            f" and dataset.with_chunks({chunk}), or GTPLearner.from_dataset."
        )
    dataset.rows(0, 1).check(
        actor.obs_dim, actor.action_dim, like=actor, next_action=penalty, chunk=chunk
    )
    for learner in learners:
        _check_units(learner, dataset)
        if learner.critic is not None:
            check_discount(learner.config.gamma, dataset)
    return check_batch_size(batch_size)


def _check_units(learner: Learner, dataset: OfflineDataset) -> None:
    """Raises where data is in other units than the learner acts in: nobody would notice."""
    scaler, layout = learner.action_scaler, learner.layout
    given = dataset.action_scaler  # most often the same object: a loop of single updates asks, too
    if scaler is not None and scaler is not given and not scaler.is_close(given):
        raise DataError(
            f"The dataset has other bounds of actions: got {given}, expected "
            f"{scaler}, which learner.predict acts in. Load it with those bounds; or, if the "
            "learner is to act in the new ones, set learner.action_scaler = dataset.action_scaler."
        )
    if layout is not None and layout is not dataset.layout and layout != dataset.layout:
        raise DataError(
            f"The dataset has other observations: got {dataset.layout}, expected {layout}, which "
            "learner.predict takes. If they are the same numbers in the same order, set "
            "learner.layout = dataset.layout."
        )


def check_discount(gamma: float | None, dataset: OfflineDataset) -> None:
    """Raises where a critic would have values of another discount factor than its config says."""
    # Either may have been of float32.
    if gamma is not None and not math.isclose(gamma, dataset.gamma, rel_tol=1e-6):
        raise DataError(
            f"The dataset has another discount factor: got gamma={dataset.gamma}, expected {gamma}"
            ", which the config says, and the critic may have learned with. Load it with "
            f"gamma={gamma}, or leave it out of the config."
        )


def _warn_behind_the_end(learner: Learner, updates: int) -> None:
    """Warns where learning rates have fallen to 0 before all of the updates are done."""
    total = learner.config.total_updates
    lost = min(updates, learner.updates + updates - total)
    if lost > 0 and learner.config.lr_schedule == "cosine" and learner.learning_rates:
        warnings.warn(
            f"{lost} of {updates} updates learn nothing: learning rates fall to 0 over "
            f"total_updates={total}, and {learner.updates} are done. Call "
            f"learner.set_total_updates_({learner.updates + updates}) first, or learner.fit, which "
            "does.",
            TrainingWarning,
            stacklevel=4,
        )


def _launch(
    learners: Sequence[Learner], dispatcher: Dispatcher, dataset: OfflineDataset, n: int
) -> list[UpdateMetrics] | None:
    """Does n updates on minibatches of a dataset in one launch, all or nothing.

    Returns:
        Metrics of the last one per learner; None if there are no launches after all.
    """
    launch = dispatcher.plan_launch(learners, dataset.table, n)
    if launch is None:
        return None
    with changing(learners):
        found = launch()
        for learner in learners:
            learner.updates += n
            look(learner, n, lambda x=learner: minibatch(x, dataset, LOOK_AT).obs)  # type: ignore[misc]
    return per_learner(found, len(learners))
