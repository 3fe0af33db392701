"""Several seeds of one experiment, trained side by side as one batch of matrices."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from gtp_policy._engine.adam import check_optimizers
from gtp_policy._engine.choice import Dispatcher
from gtp_policy._engine.launches import update_from
from gtp_policy._engine.seeds import share_
from gtp_policy._engine.whole import changing, check_whole
from gtp_policy._numbers import as_int
from gtp_policy.acting import look
from gtp_policy.algorithm import minibatch
from gtp_policy.config import GTPConfig
from gtp_policy.dataset import OfflineDataset
from gtp_policy.functional import check_kind
from gtp_policy.learner import GTPLearner
from gtp_policy.metrics import UpdateMetrics, per_learner
from gtp_policy.transitions import Transitions


class MultiSeedLearner:
    r"""Updates several learners, which differ in their seed alone, in one go.

    Each stays a `GTPLearner`, to act with, to save, to load, and does what it would do alone: the
    same minibatches and draws give the same parameters, up to the order of floating-point sums.
    Their parameters lie side by side in memory, and products of matrices become products of batches
    of them. On a GPU, where an update waits for launches and not for arithmetic, sixteen seeds so
    take little longer than one; on a CPU they take sixteen times as long, and separate
    processes are as good.

    Args:
        learners: Learners of equal configs but for the seed, with equal numbers of updates done.

    Raises:
        ValueError: If there are none, one is given twice, or they differ in more than the seed.

    Example:
        >>> import torch
        >>> from gtp_policy import GTPConfig, GTPLearner, GTPLearnerConfig, MultiSeedLearner
        >>> from gtp_policy import Transitions
        >>> configs = [GTPConfig(critic=None, learner=GTPLearnerConfig(seed=s)) for s in (0, 1)]
        >>> both = MultiSeedLearner([GTPLearner.build(1, 1, config) for config in configs])
        >>> batch = Transitions(torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4),
        ...                     torch.zeros(4, 1), torch.zeros(4))
        >>> first, second = both.update([batch, batch])
        >>> both.learners[1].updates
        1
    """

    def __init__(self, learners: Sequence[GTPLearner]) -> None:
        if not isinstance(learners, list | tuple):
            raise ValueError(
                f"Learners are unusable: got {type(learners).__name__}, expected a list of them."
            )
        for learner in learners:
            check_kind("learner", learner, GTPLearner)
        if not learners or len({id(learner) for learner in learners}) < len(learners):
            raise ValueError(
                f"Learners are unusable: got {len(learners)} of which some are the same, expected "
                "one learner per seed, and at least one."
            )
        self.learners: tuple[GTPLearner, ...] = tuple(learners)
        if any(learner.processes is not None for learner in learners):
            raise ValueError(
                "Learners that share their updates with other processes cannot be updated side by "
                "side: got some, expected none. Leave `distribute_` out."
            )
        self._checked: list[tuple[Any, ...]] = []
        self._check_equal()
        self._dispatcher = Dispatcher()

    @classmethod
    def from_dataset(
        cls, dataset: OfflineDataset, config: GTPConfig | None = None, *, seeds: Sequence[int]
    ) -> Self:
        """Builds one learner per seed, each as `GTPLearner.from_dataset` builds it.

        Args:
            dataset: The data to learn from.
            config: Every choice; the seed in it is not used.
            seeds: One per learner, all different.

        Returns:
            The learners, side by side.

        Raises:
            ValueError: If there are no seeds, or equal ones.

        Example:
            >>> from gtp_policy import GTPConfig, MultiSeedLearner, OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [2.0]], action=[[0.8], [-0.8]], reward=[0.0, 1.0],
            ...     next_obs=[[2.0], [0.0]], terminated=[0, 1], truncated=[0, 0],
            ...     low=[-1.0], high=[1.0])
            >>> both = MultiSeedLearner.from_dataset(dataset, GTPConfig(critic=None), seeds=(0, 1))
            >>> [learner.config.seed for learner in both.learners]
            [0, 1]
        """
        sequence = isinstance(seeds, list | tuple | range | np.ndarray)
        found = [as_int(seed) for seed in seeds] if sequence else [None]
        if None in found:
            raise ValueError(f"Seeds are unusable: got {seeds!r:.60}, expected a list of integers.")
        if len(set(found)) < len(found):
            raise ValueError(f"Seeds are not all different: got {found}, expected each once.")
        config = GTPConfig() if config is None else config
        check_kind("config", config, GTPConfig)
        configs = [config.replace(learner=config.learner.replace(seed=s)) for s in found]
        return cls([GTPLearner.from_dataset(dataset, c) for c in configs])

    @property
    def updates(self) -> int:
        """Number of updates that every learner has done."""
        return self.learners[0].updates

    def sample(self, dataset: OfflineDataset, batch_size: int) -> list[Transitions]:
        """Draws the minibatch that each learner would draw for its next update in `update_from`.

        Args:
            dataset: The data.
            batch_size: B.

        Returns:
            One minibatch per learner.

        Example:
            >>> from gtp_policy import GTPConfig, MultiSeedLearner, OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [2.0]], action=[[0.8], [-0.8]], reward=[0.0, 1.0],
            ...     next_obs=[[2.0], [0.0]], terminated=[0, 1], truncated=[0, 0],
            ...     low=[-1.0], high=[1.0])
            >>> both = MultiSeedLearner.from_dataset(dataset, GTPConfig(critic=None), seeds=(0, 1))
            >>> len(both.sample(dataset, 4))
            2
        """
        return [minibatch(x, dataset, batch_size) for x in self.learners]

    def update(self, batches: Sequence[Transitions]) -> list[UpdateMetrics]:
        """Does one update of every learner, each on its own minibatch.

        Args:
            batches: One minibatch per learner, all of one size.

        Returns:
            Metrics per learner.

        Raises:
            ValueError: If there are not as many minibatches as learners, or sizes or fields differ,
                or a learner has been updated apart from the others, or has another config since.
            ShapeError: If a field of a minibatch has the wrong shape.
            DataError: If a field is not of the networks' dtype and device, or on the CPU a number
                is NaN, infinite or outside its range.
            NonFiniteError: On the CPU, if advantages are NaN or infinite.
            BrokenLearnerError: If an earlier update ended half-way.

        Example:
            >>> from gtp_policy import GTPConfig, GTPLearner, MultiSeedLearner
            >>> MultiSeedLearner([GTPLearner.build(1, 1, GTPConfig(critic=None))]).update([])
            Traceback (most recent call last):
            ...
            ValueError: Minibatches do not fit the learners: got 0 of sizes [], expected 1 of one \
size.
        """
        if not isinstance(batches, list | tuple):
            raise ValueError(
                f"Minibatches are unusable: got {type(batches).__name__}, expected a list of them."
            )
        for batch in batches:
            check_kind("batch", batch, Transitions)
            check_kind("obs", batch.obs, Tensor)
        sizes = [len(batch.obs) for batch in batches]
        if len(sizes) != len(self.learners) or len(set(sizes)) != 1:
            raise ValueError(
                f"Minibatches do not fit the learners: got {len(sizes)} of sizes {sizes}, expected "
                f"{len(self.learners)} of one size."
            )
        self._check_together()
        for learner, batch in zip(self.learners, batches, strict=True):
            actor, penalty = learner.actor, learner.config.critic_penalty > 0
            chunk = actor.config.chunk
            batch.check(
                actor.obs_dim, actor.action_dim, like=learner, next_action=penalty, chunk=chunk
            )
            batch.check_values(rewards=learner.critic is not None)
        given = [sorted(name for name, v in b._asdict().items() if v is not None) for b in batches]
        if any(names != given[0] for names in given):
            other = next(names for names in given if names != given[0])
            raise ValueError(
                f"Minibatches have different fields: got {given[0]} and {other}, expected the same "
                "of each. Sample them from one dataset, or from datasets made alike."
            )
        self._share()
        fields = zip(*(batch.present() for batch in batches), strict=True)
        stacked = iter([torch.stack(same) for same in fields])
        together = batches[0].map(lambda _: next(stacked))
        compute = self._dispatcher.plan(self.learners, together)
        with changing(self.learners):
            metrics = per_learner(compute(), len(self.learners))
            for learner, batch in zip(self.learners, batches, strict=True):
                learner.updates += 1
                look(learner, 1, lambda batch=batch: batch.obs)  # type: ignore[misc]
        return metrics

    def update_from(
        self, dataset: OfflineDataset, updates: int = 1, *, batch_size: int = 256
    ) -> list[UpdateMetrics]:
        """Does several updates of every learner; see `GTPLearner.update_from`.

        Args:
            dataset: The data, on the learners' device.
            updates: How many updates to do.
            batch_size: B, transitions per update and learner.

        Returns:
            Metrics of the last update per learner.

        Raises:
            ValueError: If ``updates`` is smaller than 1, or a learner has been updated apart from
                the others, or has another config since.
            DataError: If ``batch_size`` is smaller than 1, or the dataset is not on the learners'
                device, or has other bounds of actions or another layout of observations.
            ShapeError: If the dataset has other dimensions.
            NonFiniteError: On the CPU, if advantages are NaN or infinite.

        Example:
            >>> from gtp_policy import GTPConfig, MultiSeedLearner, OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [2.0]], action=[[0.8], [-0.8]], reward=[0.0, 1.0],
            ...     terminated=[1, 1], truncated=[0, 0], low=[-1.0], high=[1.0])
            >>> both = MultiSeedLearner.from_dataset(dataset, GTPConfig(critic=None), seeds=(0, 1))
            >>> metrics = both.update_from(dataset, 3, batch_size=8)
            >>> both.updates
            3
        """
        self._check_together()
        self._share()
        return update_from(
            self.learners,
            self._dispatcher,
            dataset,
            updates,
            batch_size,
            lambda: self.update(self.sample(dataset, batch_size)),
        )

    def _check_together(self) -> None:
        check_whole(self.learners)
        check_optimizers(self.learners)
        if len({learner.updates for learner in self.learners}) > 1:
            raise ValueError(
                "Learners have gone apart: got numbers of updates "
                f"{[learner.updates for learner in self.learners]}, expected equal ones. Update "
                "them through this object alone."
            )
        self._check_equal()

    def _check_equal(self) -> None:
        """Raises unless learners differ in their seed alone, once after each change of a choice."""
        choices = [_choices(learner) for learner in self.learners]
        if choices == self._checked:
            return
        first = _kind(self.learners[0])
        for learner in self.learners:
            if _kind(learner) != first:
                raise ValueError(
                    f"Learners differ in more than the seed: got {_kind(learner)} and {first}, "
                    "expected equal configs, dimensions, devices and numbers of updates."
                )
        self._checked = choices

    def _share(self) -> None:
        """Moves parameters and buffers of all learners side by side, unless they are there."""
        tensors = [[*learner.parameters(), *learner.buffers()] for learner in self.learners]
        with torch.inference_mode(False):  # a parameter made in inference mode cannot be trained
            for same in zip(*tensors, strict=True):
                share_(same)


def _choices(learner: GTPLearner) -> tuple[Any, ...]:
    """Returns the configs of a learner as they are, which costs little."""
    critic = None if learner.critic is None else learner.critic.config
    parts = (learner.actor, learner.loss, learner.weighter, learner)
    return (critic, *(part.config for part in parts))


def _kind(learner: GTPLearner) -> tuple[Any, ...]:
    """Returns everything in which learners of several seeds must agree."""
    config = learner.full_config
    config = config.replace(learner=config.learner.replace(seed=0))
    shapes = [tuple(p.shape) for p in learner.parameters()]
    return config, learner.updates, learner.device, learner.dtype, shapes
