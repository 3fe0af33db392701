"""The whole loop of a training run: what is done between updates, and how it ends."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from gtp_policy._engine.launches import check_data, counted
from gtp_policy._stopping import StopSignal
from gtp_policy.algorithm import Learner
from gtp_policy.dataset import OfflineDataset
from gtp_policy.errors import DataError
from gtp_policy.metrics import UpdateMetrics
from gtp_policy.progress import Progress


class Trainable(Learner, Protocol):
    """A learner that does its own updates: `gtp_policy.GTPLearner` is one."""

    def update_from(
        self, dataset: OfflineDataset, updates: int = 1, *, batch_size: int = 256
    ) -> UpdateMetrics:
        """Does updates on minibatches of a dataset."""
        ...

    def updates_per_launch(self, batch_size: int = 256) -> int:
        """Returns how many of them are best done at once."""
        ...

    def set_total_updates_(self, total_updates: int) -> None:
        """Changes the length of the run."""
        ...


T = TypeVar("T", bound=Trainable)


def fit(
    learner: T,
    dataset: OfflineDataset,
    updates: int | None,
    *,
    batch_size: int,
    progress: bool,
    callback: Callable[[T, dict[str, float]], object] | None,
    every: int,
) -> dict[str, float]:
    """Trains a learner; see `gtp_policy.GTPLearner.fit`."""
    interval = counted("every", every)
    wanted = None if updates is None else counted("updates", updates)
    if callback is not None and not callable(callback):
        raise DataError(
            f"`callback` is no function: got {type(callback).__name__}, expected one of the "
            "learner and its metrics."
        )
    batch_size = check_data([learner], dataset, batch_size)
    if learner.action_scaler is None:
        learner.action_scaler = dataset.action_scaler
    if learner.layout is None:
        learner.layout = dataset.layout
    if wanted is not None:
        _make_room_(learner, wanted)
    last = learner.config.total_updates if wanted is None else learner.updates + wanted
    shown = Progress("fit", last) if progress else None
    try:
        return _train(learner, dataset, last, batch_size, shown, callback, interval)
    finally:
        if shown is not None:
            shown.close()


def _make_room_(learner: Trainable, wanted: int) -> None:
    """Lets the run be as long as what was asked for, where it is shorter or nobody said how long.

    Curriculum and learning rates unfold over it: the beginning of a run of a million updates is no
    run of a thousand, and behind the end of a run nothing is learned.
    """
    last, total = learner.updates + wanted, learner.config.total_updates
    # Also after updates that were done without it, which say nothing of the length.
    left_open = "total_updates" not in learner.config.model_fields_set
    if last > total or (left_open and last < total):
        learner.set_total_updates_(last)


def _train(
    learner: T,
    dataset: OfflineDataset,
    last: int,
    batch_size: int,
    shown: Progress | None,
    callback: Callable[[T, dict[str, float]], object] | None,
    every: int,
) -> dict[str, float]:
    figures: dict[str, float] = {}
    metrics: UpdateMetrics | None = None
    if shown is not None:
        shown.start(learner.updates)
    leave, shared = False, learner.processes
    with StopSignal() as stop:
        while learner.updates < last:
            leave = leave or bool(stop)
            # Processes that share updates leave after the same one, or one waits for another.
            if leave if shared is None else shared.any(leave):
                break
            until = min(last, learner.updates - learner.updates % every + every)
            # On a GPU several updates are one launch; never beyond what comes between updates.
            n = min(learner.updates_per_launch(batch_size), until - learner.updates)
            metrics = learner.update_from(dataset, n, batch_size=batch_size)
            if learner.updates == until:
                figures, metrics = metrics.to_floats(), None
                if shown is not None:
                    shown.measured(figures)
            if shown is not None:
                shown.advance(n)
            if metrics is None and callback is not None:
                leave = _is_true(callback(learner, figures))
    stop.pass_on()
    return figures if metrics is None else metrics.to_floats()


def _is_true(answer: Any) -> bool:  # noqa: ANN401 - whatever a callback returns
    if isinstance(answer, Tensor):
        return answer.dtype == torch.bool and answer.numel() == 1 and bool(answer)
    return isinstance(answer, bool | np.bool_) and bool(answer)
