"""The algorithm: the core's learner behind Tianshou's offline interface."""

import copy
import time
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Self, cast

import gymnasium as gym
import torch
from pydantic import JsonValue
from tianshou.algorithm.algorithm_base import OfflineAlgorithm, TrainingStats
from tianshou.algorithm.optim import OptimizerFactory
from tianshou.data import ReplayBuffer, ReplayBufferManager, VectorReplayBuffer
from tianshou.data.buffer.buffer_base import TBuffer
from tianshou.data.types import PrioBatchProtocol, RolloutBatchProtocol
from tianshou.trainer import OfflineTrainer, OfflineTrainerParams
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from gtp_datasets.spaces import check_dataset, is_whole
from gtp_policy import (
    AdvantageWeighter,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    GTPLoss,
    ObservationLayout,
    OfflineDataset,
    QEnsemble,
    StopSignal,
    Transitions,
    UpdateMetrics,
    load_checkpoint,
    save_checkpoint,
)
from gtp_policy.errors import DataError
from gtp_policy.export import PolicySource, Surroundings
from gtp_policy.functional import check_kind
from gtp_tianshou._batches import td_error, to_transitions
from gtp_tianshou._state import (
    METADATA,
    SCHEDULERS,
    Saved,
    check_schedulers,
    check_state,
    optimizer_maker,
    plain_numbers,
    space_of,
)
from gtp_tianshou.buffers import (
    TransitionTable,
    Undrawn,
    WithoutCuts,
    dataset_from_buffer,
)
from gtp_tianshou.policy import GTPPolicy
from gtp_tianshou.stats import GTPTrainingStats

# Buffers that sample uniformly: one table on the device replaces them. Others keep their own
# sampling, and a minibatch is converted when it is drawn.
_UNIFORM = (ReplayBuffer, ReplayBufferManager, VectorReplayBuffer)
_WITHOUT_REWARDS = (
    "Clone without one, GTP.from_buffer(..., config=GTPConfig(critic=None)); or load data with "
    "rewards, and go on from a clone with GTP.from_actor."
)


class GTP(OfflineAlgorithm[GTPPolicy]):
    r"""Generative trajectory policies as an offline algorithm of Tianshou, used like TD3BC.

    An update is Algorithm 1 as the core's `GTPLearner` does it: with the same data, seed and
    weights the parameters are bit for bit those of a run without Tianshou on the same machine. A
    uniform buffer becomes one table on the device when a trainer is made; other buffers
    (prioritised, hindsight) are sampled by their own rule, with ``batch.weight`` set to the
    absolute TD errors.

    Afterwards the policy acts with the target networks of actor and critic, which it shares with
    the learner. ``state_dict`` holds optimisers, counters and learning-rate schedulers too, and is
    readable with ``torch.load(..., weights_only=True)``.

    Args:
        policy: The policy; its actor is the one to train.
        policy_optim: Factory of the actor's optimiser, learning-rate scheduler included; default
            Adam with the config's ``actor_lr``, ``critic_lr`` and ``lr_schedule``.
        critic: The critic to train; None for behaviour cloning.
        critic_optim: Factory of the critic's (and a value network's) optimiser; default
            ``policy_optim``.
        loss: The actor's loss; default `GTPLoss` with default choices.
        weighter: From advantages to weights; default `AdvantageWeighter` with default choices.
        gamma: Discount factor, in [0, 1]; default the config's, or 0.99.
        config: The learner's choices. If they leave ``total_updates`` open, the trainer's
            ``max_epochs * epoch_num_steps`` are taken; one that leads beyond makes it longer. With
            a factory, its learning rates are unused.
        log_every: Metrics are fetched from the device once in so many updates.
        preload: Whether a uniform buffer becomes a table on the device.
        out_of_bounds: Whether buffered actions outside [-1, 1] raise or are clipped.

    Attributes:
        learner: The core's learner: networks, targets, optimisers, counter.

    Raises:
        ValueError: If ``critic_optim`` comes without ``policy_optim`` or without a critic, or
            ``log_every`` is smaller than 1, ``gamma`` is outside [0, 1] or not the config's, or the
            policy belongs to another algorithm.

    References:
        | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al., 2025),
        | Algorithm 1, https://arxiv.org/abs/2510.11499

    Example:
        >>> import numpy as np
        >>> from gymnasium.spaces import Box
        >>> from tianshou.algorithm.optim import AdamOptimizerFactory
        >>> from tianshou.trainer import OfflineTrainerParams
        >>> from gtp_policy import FlowMapActor, OfflineDataset, QEnsemble
        >>> from gtp_tianshou import GTP, GTPPolicy, buffer_from_dataset
        >>> buffer = buffer_from_dataset(OfflineDataset.from_arrays(
        ...     obs=np.zeros((9, 3)), action=np.zeros((9, 1)), reward=np.ones(9),
        ...     terminated=np.arange(9) == 8, truncated=np.zeros(9, bool), low=[-2], high=[2]))
        >>> policy = GTPPolicy(actor=FlowMapActor(3, 1), action_space=Box(-2.0, 2.0, (1,)))
        >>> algorithm = GTP(policy=policy, policy_optim=AdamOptimizerFactory(lr=3e-4),
        ...                 critic=QEnsemble(3, 1))
        >>> result = algorithm.run_training(OfflineTrainerParams(
        ...     buffer=buffer, max_epochs=1, epoch_num_steps=2, batch_size=4, show_progress=False))
        >>> result.update_step, algorithm.learner.updates
        (2, 2)
    """

    def __init__(
        self,
        *,
        policy: GTPPolicy,
        policy_optim: OptimizerFactory | None = None,
        critic: QEnsemble | None,
        critic_optim: OptimizerFactory | None = None,
        loss: GTPLoss | None = None,
        weighter: AdvantageWeighter | None = None,
        gamma: float | None = None,
        config: GTPLearnerConfig | None = None,
        log_every: int = 10,
        preload: bool = True,
        out_of_bounds: Literal["error", "clip"] = "error",
    ) -> None:
        if critic_optim is not None and (policy_optim is None or critic is None):
            raise ValueError(
                f"`critic_optim` stands alone: got policy_optim={policy_optim} and critic="
                f"{type(critic).__name__}, expected both, since one factory is of no use."
            )
        config = config or GTPLearnerConfig()
        gamma = _one_gamma(gamma, config.gamma)
        gamma = 0.99 if gamma is None else float(gamma)
        if not 0 <= gamma <= 1:
            raise ValueError(f"`gamma` is out of range: got {gamma}, expected 0 to 1.")
        if log_every < 1:
            raise ValueError(f"`log_every` is out of range: got {log_every}, expected >= 1.")
        if not any(p.requires_grad for p in policy.actor.parameters()):
            raise ValueError(
                "The policy belongs to another algorithm: got an actor without a parameter to "
                "train, expected a separate policy for each algorithm."
            )
        super().__init__(policy=policy)
        if config.gamma is None:
            config = config.replace(gamma=gamma)
        make = None
        if policy_optim is not None:
            make = optimizer_maker(policy_optim, critic_optim or policy_optim, self.lr_schedulers)
        self.learner = GTPLearner(
            policy.actor, critic, loss=loss, weighter=weighter, config=config, optimizer=make
        )
        self._length_is_open = "total_updates" not in config.model_fields_set
        if not self._length_is_open:
            self.learner.set_total_updates_(config.total_updates)
        self.log_every = log_every
        self.preload, self.out_of_bounds = preload, out_of_bounds
        self._floats: dict[str, float] = {}
        self._seconds, self._timed = 0.0, 0
        policy.act_with(self.learner)

    @property
    def gamma(self) -> float:
        """Discount factor of what is trained on from now on: that of the learner's config.

        Example:
            >>> from gymnasium.spaces import Box
            >>> from gtp_policy import FlowMapActor
            >>> from gtp_tianshou import GTP, GTPPolicy
            >>> policy = GTPPolicy(actor=FlowMapActor(3, 1), action_space=Box(-2.0, 2.0, (1,)))
            >>> algorithm = GTP(policy=policy, critic=None)
            >>> algorithm.gamma = 0.9
            >>> algorithm.learner.config.gamma
            0.9
        """
        gamma = self.learner.config.gamma
        return 0.99 if gamma is None else gamma

    @gamma.setter
    def gamma(self, gamma: float) -> None:
        self.learner.config = self.learner.config.replace(gamma=float(gamma))

    @classmethod
    def from_buffer(
        cls,
        buffer: ReplayBuffer | OfflineDataset,
        *,
        action_space: gym.Space[Any],
        observation_space: gym.Space[Any] | None = None,
        config: GTPConfig | None = None,
        gamma: float | None = None,
        policy_optim: OptimizerFactory | None = None,
        critic_optim: OptimizerFactory | None = None,
        layout: ObservationLayout | None = None,
        network: nn.Module | None = None,
        encoder: nn.Module | None = None,
        device: torch.device | str | None = None,
        deterministic_eval: bool = True,
        steps: int | None = None,
        candidates: int | None = None,
        log_every: int = 10,
        out_of_bounds: Literal["error", "clip"] = "error",
    ) -> Self:
        """Builds networks, policy and algorithm that fit the data: dimensions and scales.

        ``sigma_data`` is taken from the actions where the config leaves it open, and observations
        are normalised inside the networks if ``config.learner.normalize_obs``.

        Args:
            buffer: Any of Tianshou's buffers, or a dataset of ``gtp_policy``. Pass the same to
                ``OfflineTrainerParams(buffer=...)``, which takes both.
            action_space: The environment's.
            observation_space: The environment's; default: vectors, or what the dataset says.
            config: Every choice; default all defaults.
            gamma: Discount factor; default the config's, or 0.99, or the dataset's.
            policy_optim: As for the constructor.
            critic_optim: As for the constructor.
            layout: As for `GTPPolicy`.
            network: Backbone of the actor instead of the default MLP.
            encoder: Module from normalised observations to features, for actor and critic.
            device: Where to train; default the CPU, or where the dataset is.
            deterministic_eval: As for `GTPPolicy`.
            steps: As for `GTPPolicy`.
            candidates: As for `GTPPolicy`.
            log_every: As for the constructor.
            out_of_bounds: As for the constructor.

        Returns:
            The algorithm.

        Raises:
            DataError: If something in the buffer is wrong, or a dataset has another discount.
            UnsupportedSpaceError: If a space does not fit.
            ValueError: If ``gamma`` is not the config's.

        Example:
            >>> from gymnasium.spaces import Box
            >>> from gtp_policy import GTPConfig, OfflineDataset
            >>> from gtp_tianshou import GTP
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [2.0]], action=[[1.6], [-1.6]], reward=[0.0, 1.0],
            ...     terminated=[1, 1], truncated=[0, 0], low=[-2.0], high=[2.0])
            >>> algorithm = GTP.from_buffer(dataset, action_space=Box(-2.0, 2.0, (1,)),
            ...                             config=GTPConfig(critic=None))
            >>> round(algorithm.policy.actor.config.action_statistics.std[0], 4)
            0.8
        """
        config = GTPConfig() if config is None else config
        check_kind("config", config, GTPConfig)
        check_kind("gamma", gamma, Real, type(None))
        check_kind("layout", layout, ObservationLayout, type(None))
        for name, count in (("steps", steps), ("candidates", candidates)):
            check_kind(name, count, Integral, type(None))
        gamma = _one_gamma(gamma, config.learner.gamma)
        if gamma is not None:
            config = config.with_gamma(gamma)
        if isinstance(buffer, OfflineDataset):
            dataset = buffer if device is None else buffer.to(device)
        else:
            check_kind("buffer", buffer, ReplayBuffer, OfflineDataset)
            dataset = dataset_from_buffer(
                buffer,
                action_space=action_space,
                observation_space=observation_space,
                layout=layout,
                gamma=0.99 if gamma is None else gamma,
                out_of_bounds=out_of_bounds,
                device=device or "cpu",
            )
        if dataset.history == dataset.chunk == 1:  # otherwise it says what the policy's are
            dataset = dataset.with_steps(config.actor.history, config.actor.chunk)
        if config.critic is not None:
            dataset.check_rewards("A critic", _WITHOUT_REWARDS)
        parts = GTPLearner.from_dataset(dataset, config, network=network, encoder=encoder)
        policy = GTPPolicy(
            actor=parts.actor,
            action_space=action_space,
            observation_space=observation_space,
            critic=parts.critic,
            layout=dataset.layout,
            deterministic_eval=deterministic_eval,
            steps=steps,
            candidates=candidates,
            seed=parts.config.seed,
        )
        algorithm = cls(
            policy=policy,
            policy_optim=policy_optim,
            critic=parts.critic,
            critic_optim=critic_optim,
            loss=parts.loss,
            weighter=parts.weighter,
            gamma=dataset.gamma if gamma is None else gamma,
            config=parts.config,
            log_every=log_every,
            out_of_bounds=out_of_bounds,
        )
        if isinstance(buffer, OfflineDataset):
            check_dataset(buffer, policy.layout, policy.action_scaler, algorithm.gamma)
        return algorithm

    @classmethod
    def from_actor(
        cls,
        source: "GTP | str | Path",
        buffer: ReplayBuffer | OfflineDataset,
        *,
        config: GTPConfig | None = None,
        **options: Any,  # noqa: ANN401 - those of another function
    ) -> Self:
        """Goes on from a trained actor with other choices: from a clone to reinforcement learning.

        The new algorithm's policy acts as the old one's does, bit for bit, until its first update.
        Spaces, layout and scales are the old one's, and so are ``deterministic_eval``, ``steps``,
        ``out_of_bounds``, with a critic ``candidates``, and the discount factor, unless ``config``,
        a dataset or ``options`` say another. Critic, optimisers and counters are new, as
        `gtp_policy.GTPLearner.from_actor` says.

        Args:
            source: The algorithm to go on from, or what `save` wrote.
            buffer: As for `from_buffer`, with rewards where the config has a critic.
            config: Every choice of what follows; default all defaults.
            **options: Others of `from_buffer`, such as ``network`` and ``encoder`` if the actor has
                custom ones.

        Returns:
            The algorithm.

        Raises:
            CheckpointError: If the file is missing, damaged or foreign.
            StateMismatchError: If ``config`` chooses another actor.
            DataError: If something in the buffer is wrong, or it has no rewards for the critic.

        Example:
            >>> from gymnasium.spaces import Box
            >>> from gtp_policy import GTPConfig, OfflineDataset
            >>> from gtp_tianshou import GTP
            >>> logs = dict(obs=[[0.0], [2.0]], action=[[1.6], [-1.6]], terminated=[1, 1],
            ...             truncated=[0, 0], low=[-2.0], high=[2.0])
            >>> clone = GTP.from_buffer(OfflineDataset.from_arrays(**logs),
            ...                         action_space=Box(-2.0, 2.0, (1,)),
            ...                         config=GTPConfig(critic=None))
            >>> scored = OfflineDataset.from_arrays(reward=[0.0, 1.0], **logs)
            >>> GTP.from_actor(clone, scored).learner.critic is None
            False
        """
        clone = source if isinstance(source, GTP) else cls.load(source, **_modules(options))
        config = clone.learner.continued(config or GTPConfig())
        names = "action_space", "observation_space", "layout", "deterministic_eval", "steps"
        own = {name: getattr(clone.policy, name) for name in names}
        own |= {"device": clone.learner.device, "out_of_bounds": clone.out_of_bounds}
        if config.critic is not None:  # without one, there is none to choose
            own["candidates"] = clone.policy.candidates
        if isinstance(buffer, OfflineDataset):
            gamma = options.get("gamma", buffer.gamma)
            check_dataset(buffer, clone.policy.layout, clone.policy.action_scaler, gamma)
        elif config.learner.gamma is None:
            own["gamma"] = clone.gamma
        algorithm = cls.from_buffer(buffer, config=config, **own | options)
        algorithm.learner.take_actor_(clone.learner)
        return algorithm

    def create_trainer(self, params: OfflineTrainerParams) -> OfflineTrainer:
        """Makes the stock trainer; the length of the run, if open, becomes that of the trainer's.

        Where the trainer leads beyond the length, it becomes longer, as by `GTPLearner.fit`, also
        of what `load` returned: behind the end of a run nothing is learned.

        Args:
            params: Tianshou's parameters; ``buffer`` may also be an `OfflineDataset`.

        Returns:
            The trainer.

        Raises:
            DataError: If something in the buffer is wrong.
            TypeError: If the parameters are those of another trainer.
        """
        if not isinstance(params, OfflineTrainerParams):
            raise TypeError(
                "GTP learns offline in Tianshou: got the parameters of another trainer, "
                f"{type(params).__name__}, expected OfflineTrainerParams with a buffer. To learn "
                "online, take gtp_sb3.GTP."
            )
        before = 0 if params.resume_from_log else self.learner.updates
        last = max(1, before + params.max_epochs * params.epoch_num_steps)
        config = self.learner.config
        is_open = "total_updates" not in config.model_fields_set
        # The length that a trainer gave, and that nothing was trained over, is the next one's too.
        is_open |= self._length_is_open and not self.learner.updates
        if is_open or last > config.total_updates:
            self.learner.set_total_updates_(last)
        return super().create_trainer(params)

    def process_buffer(self, buffer: TBuffer) -> TBuffer:
        """Turns a uniform buffer into one table on the learner's device; called by the trainer.

        Args:
            buffer: A buffer of Tianshou's, or an `OfflineDataset`. Prioritised, hindsight and
                frame-stacking buffers are left as they are.

        Returns:
            What the trainer samples from.

        Raises:
            DataError: If something in the buffer is wrong, or a dataset does not fit the policy.
            EmptyDatasetError: If there is no transition.
        """
        policy, device = self.policy, self.learner.device
        if isinstance(buffer, OfflineDataset):
            check_dataset(buffer, policy.layout, policy.action_scaler, self.gamma)
            if self.learner.critic is not None:
                buffer.check_rewards("A critic", _WITHOUT_REWARDS)
            dataset = buffer.to(device)
        elif not self.preload or type(buffer) not in _UNIFORM or buffer.stack_num > 1:
            actor = self.learner.actor.config
            if actor.history > 1 or actor.chunk > 1:
                raise DataError(
                    "Chunks and histories are cut from whole episodes: got a "
                    f"{type(buffer).__name__} that is sampled by its own rule, expected a uniform "
                    "buffer, preload=True and stack_num=1, or an OfflineDataset."
                )
            return buffer
        else:
            dataset = dataset_from_buffer(
                buffer,
                action_space=policy.action_space,
                layout=policy.layout,
                gamma=self.gamma,
                out_of_bounds=self.out_of_bounds,
                device=device,
            )
        if self.learner.config.critic_penalty:
            dataset = dataset.with_next_actions()
        actor = self.learner.actor.config
        dataset = dataset.with_steps(actor.history, actor.chunk)
        return cast("TBuffer", TransitionTable(dataset, self.learner.stream))

    def update(self, buffer: Any, sample_size: int | None) -> TrainingStats:  # noqa: ANN401 - as Tianshou has it
        """Does one update on a minibatch of a buffer; called by the trainer.

        Where updates are recorded, on a GPU, minibatches of a table are drawn and gathered there.
        The first Ctrl-C or SIGTERM takes effect after the update, and the algorithm can be saved.

        Args:
            buffer: What `process_buffer` returned.
            sample_size: Transitions per update; 0 and None mean everything.

        Returns:
            Figures of the update.
        """
        with StopSignal() as stop:  # half an update would leave a learner that is broken
            stats = self._whole_update(buffer, sample_size)
        stop.pass_on()
        return stats

    def _whole_update(self, buffer: Any, sample_size: int | None) -> TrainingStats:  # noqa: ANN401
        if (
            isinstance(buffer, TransitionTable)
            and sample_size
            and self.learner.updates_per_launch(sample_size) > 1
        ):
            table = buffer.on(self.learner.device)

            def launch(_: object) -> GTPTrainingStats:
                start = time.perf_counter()
                metrics = self.learner.update_from(table, batch_size=sample_size)
                return self._stats(metrics, start)

            return self._update(sample_size, cast("Any", Undrawn(table)), launch)
        if isinstance(buffer, ReplayBuffer) and buffer.options["ignore_obs_next"]:
            buffer = WithoutCuts(buffer)
        return super().update(buffer, sample_size)

    def _update_with_batch(self, batch: RolloutBatchProtocol | Transitions) -> GTPTrainingStats:
        start = time.perf_counter()
        like = self.learner
        if isinstance(batch, Transitions):
            transitions = batch if batch.obs.dtype == like.dtype else batch.to(dtype=like.dtype)
        else:
            transitions = to_transitions(batch, self.policy, self.gamma, self.out_of_bounds).to(
                like.device, like.dtype
            )
        metrics = self.learner.update(transitions)
        if hasattr(batch, "weight"):  # a prioritised buffer takes it for the new priority
            cast("PrioBatchProtocol", batch).weight = td_error(self.learner, transitions)
        return self._stats(metrics, start)

    def _stats(self, metrics: UpdateMetrics, start: float) -> GTPTrainingStats:
        due = not self._floats or (self.learner.updates - 1) % self.log_every == 0
        floats = metrics.to_floats() if due else {}
        self._seconds += time.perf_counter() - start  # with the wait for the device, where it is
        self._timed += 1
        if due:
            self._floats = {**floats, "ms_per_update": 1e3 * self._seconds / self._timed}
            self._seconds, self._timed = 0.0, 0
        return GTPTrainingStats(**cast("dict[str, Any]", self._floats))

    def policy_source(self) -> PolicySource:
        """Returns what `gtp_policy.export` writes into a file: the policy as it is evaluated.

        Returns:
            That of the policy, with the number of updates.
        """
        return self.policy.policy_source()._replace(updates=self.learner.updates)

    def save(self, path: str | Path, *, metadata: Mapping[str, JsonValue] | None = None) -> Path:
        """Saves everything that `load` needs, in the core's format: tensors and JSON, no pickle.

        Args:
            path: A new directory; or a name that ends in ``.zip``, which replaces a file of that
                name in one step.
            metadata: Anything else that JSON can hold.

        Returns:
            The path.

        Raises:
            CheckpointError: If it cannot be written, or holds something that is neither tensor nor
                JSON. What was there before is unchanged.

        Example:
            >>> import tempfile
            >>> from gymnasium.spaces import Box
            >>> from gtp_policy import FlowMapActor
            >>> from gtp_tianshou import GTP, GTPPolicy
            >>> policy = GTPPolicy(actor=FlowMapActor(3, 1), action_space=Box(-2.0, 2.0, (1,)))
            >>> algorithm = GTP(policy=policy, critic=None)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     GTP.load(algorithm.save(f"{folder}/policy.zip")).policy.action_space
            Box(-2.0, 2.0, (1,), float32)
        """
        policy = self.policy
        own: dict[str, Any] = {
            "gamma": self.gamma,
            "deterministic_eval": bool(policy.deterministic_eval),  # acts by its truth
            "steps": policy.steps,
            "candidates": policy.candidates,
            "seed": policy.seed,
            "lr_schedulers": [s.state_dict() for s in self.lr_schedulers],
        }
        saved = Saved.write(own, self.learner)
        surroundings = Surroundings(
            action_shape=policy.action_space.shape,
            whole_actions=is_whole(policy.action_space),
            steps=saved["steps"],
            candidates=saved["candidates"],
        )
        return save_checkpoint(
            path,
            self.learner,
            action_scaler=policy.action_scaler,
            layout=policy.layout,
            metadata={
                **(metadata or {}),
                **surroundings.record(),
                METADATA: saved,
            },
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        action_space: gym.Space[Any] | None = None,
        observation_space: gym.Space[Any] | None = None,
        policy_optim: OptimizerFactory | None = None,
        critic_optim: OptimizerFactory | None = None,
        network: nn.Module | None = None,
        encoder: nn.Module | None = None,
        device: torch.device | str = "cpu",
        train_state: bool = True,
        gamma: float | None = None,
        log_every: int = 10,
        preload: bool = True,
        out_of_bounds: Literal["error", "clip"] = "error",
    ) -> Self:
        """Builds the algorithm that was saved, ready to act and to train on.

        Args:
            path: Directory or zip file, saved by `save`, or by another host or the core.
            action_space: The environment's; default: a Box with the saved bounds and shape, of
                float32, or of int64 where actions were whole numbers.
            observation_space: The environment's; default: what the saved layout says.
            policy_optim: The factory it was trained with, if there was one.
            critic_optim: Likewise.
            network: The actor's backbone, if it was a custom one.
            encoder: The encoder, likewise.
            device: Where to put parameters.
            train_state: Whether to restore optimisers and schedulers. False is for acting, or for
                other optimisers than those saved.
            gamma: Discount factor to train on with; default the saved one.
            log_every: As for the constructor.
            preload: As for the constructor.
            out_of_bounds: As for the constructor.

        Returns:
            The algorithm.

        Raises:
            CheckpointError: If the file is missing, damaged, foreign or malicious.
            StateMismatchError: If optimisers, schedulers, networks or spaces are not like those
                saved.
        """
        schedulers: list[LRScheduler] = []
        make = None
        if policy_optim is not None:
            make = optimizer_maker(policy_optim, critic_optim or policy_optim, schedulers)
        learner, scaler, layout, metadata = load_checkpoint(
            path,
            network=network,
            encoder=encoder,
            optimizer=make,
            device=device,
            train_state=train_state,
        )
        surroundings = Surroundings.read(path, metadata, learner)
        saved = Saved.read(path, metadata, learner, surroundings)
        known = learner.config.gamma if saved.gamma is None else saved.gamma
        gamma = known if gamma is None else gamma
        policy = GTPPolicy(
            actor=learner.actor,
            action_space=space_of(path, scaler, surroundings, action_space),
            observation_space=observation_space,
            critic=learner.critic,
            layout=layout,
            deterministic_eval=saved.deterministic_eval,
            steps=saved.steps,
            candidates=saved.candidates,
            seed=saved.seed,
        )
        algorithm = cls(
            policy=policy,
            policy_optim=policy_optim,
            critic=learner.critic,
            critic_optim=critic_optim,
            loss=learner.loss,
            weighter=learner.weighter,
            gamma=gamma,
            config=learner.config.replace(gamma=gamma),
            log_every=log_every,
            preload=preload,
            out_of_bounds=out_of_bounds,
        )
        algorithm.learner.load_state_dict(learner.state_dict())
        if train_state:
            algorithm._load_schedulers(saved.lr_schedulers)
        return algorithm

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.policy.act_with(self.learner)

    def state_dict(  # type: ignore[override]
        self,
        *args: Any,  # noqa: ANN401 - as torch has it
        **kwargs: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        """Returns networks, targets, optimisers, counters and schedulers, for ``torch.save``.

        Args:
            *args: As for any torch module.
            **kwargs: As for any torch module.

        Returns:
            Tensors, and numbers and strings in plain containers.
        """
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        state[prefix + SCHEDULERS] = [s.state_dict() for s in self.lr_schedulers]
        # Tianshou's linear schedule makes learning rates of numpy's type, which torch.load refuses.
        for key in (f"{prefix}learner._extra_state", prefix + SCHEDULERS):
            state[key] = plain_numbers(state[key])
        return state

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:  # noqa: ANN401 - torch's own return type has no public name
        """Takes over what `state_dict` returned.

        Args:
            state_dict: The state; not changed.
            strict: Whether names and shapes must match exactly.
            assign: Whether to take over the tensors themselves instead of their values.

        Returns:
            The missing and unexpected keys.

        Raises:
            StateMismatchError: If the state belongs to an algorithm with other networks, optimisers
                or schedulers; nothing has been changed then.
        """
        before = copy.deepcopy(self.state_dict()) if self.learner.broken is None else None
        try:
            return self._take_over(state_dict, strict, assign)
        except BaseException:
            if before is not None:
                self._take_over(before, True, False)
            raise

    def _take_over(self, state_dict: Mapping[str, Any], strict: bool, assign: bool) -> Any:  # noqa: ANN401
        state = dict(state_dict)
        schedulers = state.pop(SCHEDULERS, None)
        if strict:
            if self.learner.broken is None:  # otherwise it has no state to compare with
                check_state(state, schedulers, self.state_dict())
        if strict or schedulers is not None:
            check_schedulers(schedulers or [], self.lr_schedulers)
        # Before the networks: what is refused after tensors were assigned writes into the state.
        if (acting := state.pop("policy._extra_state", None)) is not None:
            self.policy.set_extra_state(acting)
        state.setdefault(self._STATE_DICT_KEY_OPTIMIZERS, [])
        own = {k.removeprefix("learner."): v for k, v in state.items() if k.startswith("learner.")}
        if "_extra_state" in own:
            self.learner.load_state_dict(own, strict, assign)
            assign = False  # a second time, and the learner's optimisers would keep the first ones
        result = super().load_state_dict(state, strict, assign)
        if schedulers is not None:
            self._load_schedulers(schedulers)
        return result

    def _load_schedulers(self, states: Sequence[Any]) -> None:
        check_schedulers(states, self.lr_schedulers)
        for scheduler, state in zip(self.lr_schedulers, states, strict=True):
            scheduler.load_state_dict(copy.deepcopy(state))


def _one_gamma(gamma: float | None, of_config: float | None) -> float | None:
    """Returns a choice that can be made in two places; None where it was made in neither."""
    if None not in (gamma, of_config) and gamma != of_config:
        raise ValueError(
            f"`gamma` and `learner.gamma` of the config are one choice: got {gamma} and "
            f"{of_config}, expected one of them. Leave one out."
        )
    return of_config if gamma is None else gamma


def _modules(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that say what no file holds."""
    return {name: options[name] for name in ("network", "encoder") if name in options}
