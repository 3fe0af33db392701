"""The learner: networks, optimisers and the counter behind one method, ``update``."""

import copy
import hashlib
import itertools
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gtp_policy._config import is_name
from gtp_policy._engine.adam import Adam, check_moments, check_optimizers
from gtp_policy._engine.by_autograd import ByAutograd
from gtp_policy._engine.choice import LAUNCH, Dispatcher, explain
from gtp_policy._engine.launches import check_discount, update_from
from gtp_policy._engine.processes import Processes
from gtp_policy._engine.whole import changing, check_whole
from gtp_policy._fitting import fit
from gtp_policy._prediction import in_box, seen
from gtp_policy._random import generator_or_private, new_stream
from gtp_policy.acting import act, chosen_by, look
from gtp_policy.actor import FlowMapActor
from gtp_policy.algorithm import Shared, advantage_of, minibatch, td_advantage_of
from gtp_policy.chunks import ChunkPlayer, Playback
from gtp_policy.config import GTPConfig, GTPLearnerConfig
from gtp_policy.critic import (
    NetworkBaseline,
    PolicyBaseline,
    QEnsemble,
    ValueNetwork,
)
from gtp_policy.dataset import OfflineDataset
from gtp_policy.encoders import ImpalaEncoder
from gtp_policy.errors import FOREIGN_STATE_ERRORS, DataError, StateMismatchError
from gtp_policy.functional import (
    WRAPPERS,
    check_device,
    check_kind,
    check_like,
    check_rows,
    check_shape,
    unwrapped,
)
from gtp_policy.guidance import AdvantageWeighter, Guidance, LinearQGuidance, NoGuidance
from gtp_policy.loss import GTPLoss
from gtp_policy.metrics import UpdateMetrics, per_learner
from gtp_policy.spaces import ActionScaler, ObservationLayout, check_numbers
from gtp_policy.times import Curriculum
from gtp_policy.transitions import Transitions

_NO_GUIDANCE = NoGuidance()
_M = TypeVar("_M", bound=nn.Module | None)
OptimizerFactory = Callable[[str, nn.Module], torch.optim.Optimizer]


class GTPLearner(nn.Module):
    r"""Algorithm 1 of the paper as one object: ``fit`` trains, ``predict`` acts.

    Behind ``fit`` is one method to call in a loop of your own, ``update``; behind ``predict`` is
    ``act``, which has actions in [-1, 1]. `GTPLearner.save` and `GTPLearner.load` keep all of it.

    Holds the actor, the critic, their targets and the optimisers; all of it, with the number of
    updates done, is in ``state_dict``. The randomness of an update is a function of the seed and of
    that number alone, so a resumed run draws what the uninterrupted one would have drawn.

    Args:
        actor: The policy to train.
        critic: Its critic; None for behaviour cloning.
        loss: The actor's loss; default `GTPLoss` with default choices.
        weighter: From advantages to weights; default `AdvantageWeighter` with default choices.
        config: The choices.
        optimizer: Called with ``"actor"``, ``"critic"`` or ``"value"`` and that module, returns its
            optimiser. Its learning rate is yours: ``actor_lr``, ``critic_lr`` and ``lr_schedule``
            of the config then stay unused. Default: Adam with the config's learning rates.

    Attributes:
        updates: Number of updates done.
        optimizers: The optimiser of each part, by name.
        action_scaler: Bounds of the environment's actions, which `predict` acts in: those of the
            dataset or of the checkpoint that the learner comes from, or of the first dataset that
            it was fitted to. None where there are none; may be set.
        layout: How an observation becomes a vector, likewise; None: it is one.
        broken: What ended an update half-way; None of a learner that is whole. One that is not
            neither trains nor saves, until a state is loaded into it.

    Raises:
        ValueError: If actor and critic disagree on a dimension, or the guidance needs a critic and
            there is none.
        DataError: If one of them is inside ``DistributedDataParallel`` or ``DataParallel``, has no
            parameters, or cannot be copied for its target network.

    References:
        | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al., 2025),
        | Algorithm 1, https://arxiv.org/abs/2510.11499

    Example:
        >>> import torch
        >>> from gtp_policy import Curriculum, GTPConfig, GTPLearner, GTPLossConfig, Transitions
        >>> config = GTPConfig(loss=GTPLossConfig(curriculum=Curriculum(end=160)))
        >>> learner = GTPLearner.build(obs_dim=3, action_dim=2, config=config)
        >>> batch = Transitions(torch.zeros(8, 3), torch.zeros(8, 2), torch.ones(8),
        ...                     torch.zeros(8, 3), torch.full((8,), 0.99))
        >>> metrics = learner.update(batch)
        >>> learner.act(torch.zeros(1, 3)).shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        actor: FlowMapActor,
        critic: QEnsemble | None,
        *,
        loss: GTPLoss | None = None,
        weighter: AdvantageWeighter | None = None,
        config: GTPLearnerConfig | None = None,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__()
        for part in (actor, critic):
            if isinstance(part, WRAPPERS):
                raise DataError(
                    "The learner takes networks as they are: got a "
                    f"{type(part).__name__}, expected a {type(unwrapped(part)).__name__}. On "
                    "several devices, or with averages of your own, train by a loop of your own: "
                    "GTPLoss, act and ema_ take wrapped networks."
                )
            if part is not None and optimizer is None and not [*part.parameters()]:
                raise DataError(
                    f"Nothing is to be learned: got a {type(part).__name__} without parameters, "
                    "expected some. Give its network parameters; frozen ones do."
                )
        dims = [(m.obs_dim, m.action_dim) for m in (actor, critic) if m is not None]
        if len(set(dims)) > 1:
            raise ValueError(
                f"Actor and critic disagree on (obs_dim, action_dim): got {dims[0]} and {dims[1]}, "
                "expected the same."
            )
        self.config = config or GTPLearnerConfig()
        if critic is None and isinstance(self.config.guidance, LinearQGuidance):
            raise ValueError(
                "Linear-Q guidance needs a critic: got critic=None (behaviour cloning), expected "
                "a QEnsemble. Give one, or take AdvantageGuidance, which needs none."
            )
        self.actor, self.critic = actor, critic
        self.loss, self.weighter = loss or GTPLoss(), weighter or AdvantageWeighter()
        self.value: ValueNetwork | None = None
        if critic is not None and isinstance(self.config.baseline, NetworkBaseline):
            self.value = ValueNetwork(
                actor.obs_dim,
                self.config.baseline.hidden,
                encoder=_copied(critic.encoder),
                seed=self.config.seed,
            ).to(actor.device, actor.dtype)
            self.value.normalizer = copy.deepcopy(critic.normalizer)
        self.target_actor = _copied(actor).requires_grad_(False).eval()
        self.target_critic = None
        if critic is not None:
            self.target_critic = _copied(critic).requires_grad_(False).eval()
        self.updates = 0
        self.action_scaler: ActionScaler | None = None
        self.layout: ObservationLayout | None = None
        self.broken: str | None = None
        self.processes: Shared | None = None
        self._dispatcher = Dispatcher()
        self._own_rates = optimizer is not None
        parts = {"actor": self.actor, "critic": self.critic, "value": self.value}
        self.optimizers = {
            name: optimizer(name, module) if optimizer is not None else Adam(module)
            for name, module in parts.items()
            if module is not None
        }

    @classmethod
    def build(
        cls,
        obs_dim: int,
        action_dim: int,
        config: GTPConfig | None = None,
        *,
        network: nn.Module | None = None,
        encoder: nn.Module | None = None,
        optimizer: OptimizerFactory | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Builds actor, critic and learner from one config.

        A curriculum that is too fine for ``total_updates`` is capped (``full_config`` says to
        what), with a warning if its ``end`` was set by hand: a grid that is refined faster than the
        targets can follow ends training on unlearned times.

        Args:
            obs_dim: O.
            action_dim: A.
            config: Every choice; default all defaults.
            network: Backbone of the actor instead of the default MLP.
            encoder: Module from normalised observations (B, O) to features (B, ``features_dim``);
                every network gets a separate copy.
            optimizer: As for the constructor.
            device: Where parameters live.

        Returns:
            The learner.

        Example:
            >>> from gtp_policy import GTPConfig, GTPLearner
            >>> GTPLearner.build(3, 2, GTPConfig(critic=None)).critic is None
            True
        """
        check_device(device)
        config = GTPConfig() if config is None else config
        check_kind("config", config, GTPConfig)
        if optimizer is not None and not callable(optimizer):
            raise DataError(
                f"`optimizer` is no factory: got {type(optimizer).__name__}, expected a function "
                "from a name and a module to an optimiser."
            )
        config = config.cap_curriculum(stacklevel=3)
        seed = config.learner.seed
        if config.encoder is not None:
            if encoder is not None:
                raise ValueError(
                    f"Two encoders: got a {type(encoder).__name__} and the config's "
                    f"{config.encoder.kind}, expected one of them."
                )
            encoder = config.encoder.build(
                obs_dim, config.actor.history, generator=new_stream(seed, "encoder")
            )
        actor = FlowMapActor(
            obs_dim,
            action_dim,
            config.actor,
            network=network,
            encoder=_copied(encoder),
            seed=seed,
        )
        critic = None
        if config.critic is not None:
            critic = QEnsemble(
                obs_dim, action_dim, config.critic, encoder=_copied(encoder), seed=seed
            ).to(device, actor.dtype)
        return cls(
            actor.to(device),
            critic,
            loss=GTPLoss(config.loss),
            weighter=AdvantageWeighter(config.weighter),
            config=config.learner,
            optimizer=optimizer,
        )

    @classmethod
    def from_dataset(
        cls,
        dataset: OfflineDataset,
        config: GTPConfig | None = None,
        *,
        network: nn.Module | None = None,
        encoder: nn.Module | None = None,
        optimizer: OptimizerFactory | None = None,
    ) -> Self:
        """Builds a learner that fits a dataset: dimensions, device, scales.

        Where the config leaves them open, history and chunk are the dataset's, and the actions'
        statistics are taken from it if ``config.learner.normalize_actions``, ``sigma_data`` if not.
        Observations are normalised if ``config.learner.normalize_obs``. ``learner.full_config``
        holds the former, the actor's and critic's state the latter.

        Args:
            dataset: The data to learn from.
            config: Every choice; default all defaults.
            network: Backbone of the actor instead of the default MLP.
            encoder: As for `build`.
            optimizer: As for the constructor.

        Returns:
            The learner, on the dataset's device.

        Raises:
            DataError: If the config is for other histories or chunks, or another discount factor,
                or images have no encoder, or an encoder no images.

        Example:
            >>> import numpy as np
            >>> from gtp_policy import GTPConfig, GTPLearner, OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [2.0]], action=[[0.8], [-0.8]], reward=[0.0, 1.0],
            ...     next_obs=[[2.0], [0.0]], terminated=[0, 1], truncated=[0, 0],
            ...     low=[-1.0], high=[1.0])
            >>> learner = GTPLearner.from_dataset(dataset, GTPConfig(critic=None))
            >>> round(learner.full_config.actor.action_statistics.std[0], 4)
            0.8
        """
        check_kind("dataset", dataset, OfflineDataset)
        config = GTPConfig() if config is None else config
        check_kind("config", config, GTPConfig)
        config = config.cap_curriculum(stacklevel=3)
        if config.critic is not None:
            dataset.check_rewards("A critic")
        if dataset.images and config.encoder is None and encoder is None and network is None:
            raise DataError(
                f"Images need an encoder: got {dataset.layout} and none, expected one. Take "
                "GTPConfig(encoder=ImpalaEncoderConfig()), or pass encoder=."
            )
        config = config.fit_to_steps(dataset.history, dataset.chunk).fit_to_actions(dataset)
        config = config.fit_to_observations(dataset.layout, dataset.images)
        config = config.with_gamma(dataset.gamma)
        if config.critic is not None:
            check_discount(config.learner.gamma, dataset)
        learner = cls.build(
            dataset.obs_dim,
            dataset.action_dim,
            config,
            network=network,
            encoder=encoder,
            optimizer=optimizer,
            device=dataset.device,
        )
        # Whatever torch's default type is: the data's decides.
        if learner.dtype != dataset.dtype:
            learner.to(dtype=dataset.dtype)
        if config.learner.normalize_obs:
            learner.set_observation_statistics_(*dataset.observation_statistics())
        learner.action_scaler, learner.layout = dataset.action_scaler, dataset.layout
        return learner

    @classmethod
    def from_actor(
        cls,
        source: "GTPLearner",
        config: GTPConfig | None = None,
        *,
        optimizer: OptimizerFactory | None = None,
    ) -> Self:
        """Goes on from a trained actor with other choices: from a clone to reinforcement learning.

        The new learner acts as the old one does, bit for bit, until its first update (unless a
        critic is to choose its deterministic actions). It has the
        actor, its target network, its scales and the normalisation of observations; critic, value
        network, optimisers and the counter of updates are new. Until a critic has learned
        something, it leads nowhere: ``config.learner.guidance_start`` gives it time.

        Where ``config`` leaves the curriculum open, the grid stays as fine as the old learner's is:
        a coarser one would undo what is learned.

        Args:
            source: The learner to go on from, e.g. ``load_checkpoint("clone.zip").learner``.
            config: Every choice of what follows; default all defaults. Its ``actor`` is the
                source's: left at its default, or equal to it.
            optimizer: As for the constructor.

        Returns:
            The learner, on the source's device; the source stays as it is.

        Raises:
            StateMismatchError: If ``config.actor`` or ``config.encoder`` was chosen, and is another
                one.
            BrokenLearnerError: If an update of the source ended half-way.

        Example:
            >>> import torch
            >>> from gtp_policy import GTPConfig, GTPLearner
            >>> clone = GTPLearner.build(3, 2, GTPConfig(critic=None))
            >>> learner = GTPLearner.from_actor(clone, GTPConfig())
            >>> obs = torch.zeros(1, 3)
            >>> torch.equal(*(x.act(obs, deterministic=True) for x in (clone, learner)))
            True
        """
        check_kind("source", source, GTPLearner)
        check_whole([source])
        config = source.continued(config or GTPConfig()).cap_curriculum(stacklevel=3)
        actor, seed, critic = _copied(source.actor), config.learner.seed, None
        if config.critic is not None:
            encoder = _copied(actor.encoder)
            critic = QEnsemble(
                actor.obs_dim, actor.action_dim, config.critic, encoder=encoder, seed=seed
            ).to(actor.device, actor.dtype)
        learner = cls(
            actor,
            critic,
            loss=GTPLoss(config.loss),
            weighter=AdvantageWeighter(config.weighter),
            config=config.learner,
            optimizer=optimizer,
        )
        learner.take_actor_(source)
        learner.action_scaler, learner.layout = source.action_scaler, source.layout
        return learner

    def continued(self, config: GTPConfig) -> GTPConfig:
        """Returns the config of a learner that goes on from this one's actor.

        Args:
            config: Every choice of what follows.

        Returns:
            The config with this learner's actor and scales, and with its grid where the curriculum
            is left open.

        Raises:
            StateMismatchError: If ``config.actor`` or ``config.encoder`` was chosen, and is another
                one.

        Example:
            >>> from gtp_policy import GTPConfig, GTPLearner
            >>> clone = GTPLearner.build(3, 2, GTPConfig(critic=None))
            >>> clone.continued(GTPConfig()).loss.curriculum
            Curriculum(start=10, end=10)
        """
        chosen, own = config.actor, self.actor.config
        differing = [
            f"{name}: {getattr(own, name)!s:.60} there, {getattr(chosen, name)!s:.60} here"
            for name in sorted(chosen.model_fields_set)
            if getattr(chosen, name) not in (None, getattr(own, name))
        ]
        if differing:
            raise StateMismatchError(
                f"`config.actor` is another actor: got {'; '.join(differing)}, expected the "
                "source's. Leave `actor` out of the config."
            )
        encoder = self.open_config.encoder
        if config.encoder not in (None, encoder, encoder and encoder.replace(parts=None)):
            raise StateMismatchError(
                f"`config.encoder` is another encoder: got {config.encoder!s:.60}, expected the "
                "source's. Leave `encoder` out of the config."
            )
        loss = config.loss
        if "curriculum" not in loss.model_fields_set:
            grid = self.loss.config.curriculum.intervals(self.progress)
            loss = loss.replace(curriculum=Curriculum(start=grid, end=grid))
        choices = config.learner.replace(normalize_actions=own.action_statistics is not None)
        return config.replace(actor=own, encoder=encoder, loss=loss, learner=choices)

    def take_actor_(self, source: "GTPLearner") -> None:
        """Takes over the actor of another learner, its target network and its scales, in place.

        For hosts, which build learners by other means than `from_actor`.

        Args:
            source: The learner to take it from.

        Raises:
            StateMismatchError: If its actor has other networks or another flow map; nothing has
                been changed then.

        Example:
            >>> from gtp_policy import GTPConfig, GTPLearner
            >>> clone = GTPLearner.build(3, 2, GTPConfig(critic=None))
            >>> GTPLearner.build(3, 2).take_actor_(clone)
        """
        check_whole([source])
        pairs = [(self.actor, source.actor), (self.target_actor, source.target_actor)]
        own, theirs = ({k: v.shape for k, v in a.named_parameters()} for a in pairs[0])
        if own != theirs:
            wrong = sorted(k for k in own.keys() | theirs if own.get(k) != theirs.get(k))
            raise StateMismatchError(
                f"The actor has other networks: got others in {wrong[:3]} ({len(wrong)} in all), "
                "expected the same. Build the learner for the observations, actions and "
                "config.actor of the source."
            )
        before = copy.deepcopy([actor.state_dict() for actor, _ in pairs])
        was = self.broken
        try:
            with changing([self]):
                for actor, other in pairs:
                    actor.load_state_dict(other.state_dict())
        except BaseException:
            for (actor, _), state in zip(pairs, before, strict=True):
                actor.load_state_dict(state)
            self.broken = was
            raise
        self.broken = was
        normalizer = source.actor.normalizer
        self.set_observation_statistics_(normalizer.mean, normalizer.scale)

    @property
    def full_config(self) -> GTPConfig:
        """Every choice of this learner, with those resolved that its config left open."""
        config = self.open_config
        return config.replace(learner=config.learner.resolved())

    @property
    def open_config(self) -> GTPConfig:
        """As `full_config`, but what goes by the length of the run is left open: what is saved."""
        encoder = self.actor.encoder
        return GTPConfig(
            actor=self.actor.config,
            encoder=encoder.config if isinstance(encoder, ImpalaEncoder) else None,
            critic=self.critic.config if self.critic is not None else None,
            loss=self.loss.config,
            weighter=self.weighter.config,
            learner=self.config,
        )

    @property
    def progress(self) -> float:
        """Fraction of ``total_updates`` done, at most 1."""
        return min(self.updates / self.config.total_updates, 1.0)

    @property
    def device(self) -> torch.device:
        """Where the learner's parameters live, and its minibatches have to be."""
        return self.actor.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of its parameters and minibatches."""
        return self.actor.dtype

    def set_total_updates_(self, total_updates: int) -> None:
        """Changes the length of the run; for hosts that learn it only when training starts.

        The curriculum is capped to the new length as in `build`, and never refined.

        Args:
            total_updates: Number of updates over which curriculum and learning rates unfold.

        Raises:
            pydantic.ValidationError: If it is smaller than 1.

        Example:
            >>> from gtp_policy import GTPConfig, GTPLearner
            >>> learner = GTPLearner.build(1, 1, GTPConfig(critic=None))
            >>> learner.set_total_updates_(20_000)
            >>> learner.full_config.loss.curriculum.end
            640
        """
        config = self.config.replace(total_updates=total_updates)
        full = self.open_config.replace(learner=config)
        # Both at once, after everything that may raise (a warning may, too).
        self.loss.config, self.config = full.cap_curriculum(stacklevel=3).loss, config

    @property
    def normalized_by(self) -> str | None:
        """What normalises observations before the actors see them, see `FlowMapActor`.

        Example:
            >>> from gtp_policy import GTPLearner
            >>> learner = GTPLearner.build(3, 2)
            >>> learner.normalized_by = "VecNormalize"
            >>> learner.target_actor.normalized_by
            'VecNormalize'
        """
        return self.actor.normalized_by

    @normalized_by.setter
    def normalized_by(self, name: str | None) -> None:
        for actor in (self.actor, self.target_actor):
            actor.normalized_by = name

    def set_observation_statistics_(self, mean: Tensor, std: Tensor) -> None:
        """Gives every network the same observation normaliser, in place.

        Args:
            mean: Mean of the observations, shape (O,).
            std: Their standard deviation, shape (O,).

        Raises:
            ShapeError: If a shape is not (O,).
            NonFiniteError: If a value is not finite or a std is negative.

        Example:
            >>> import torch
            >>> from gtp_policy import GTPConfig, GTPLearner
            >>> learner = GTPLearner.build(1, 1, GTPConfig(critic=None))
            >>> learner.set_observation_statistics_(torch.ones(1), torch.ones(1))
            >>> learner.target_actor.normalizer.mean
            tensor([1.])
        """
        self.actor.normalizer.check_statistics(mean, std)
        modules = self.actor, self.target_actor, self.critic, self.target_critic, self.value
        was = self.broken
        with changing([self]):
            for module in modules:
                if module is not None:
                    module.normalizer.set_statistics_(mean, std)
        self.broken = was

    def stream(self, name: str, device: torch.device | str | None = None) -> torch.Generator:
        """Returns a generator that depends on the seed, the name and the number of updates alone.

        Sampling minibatches from ``learner.stream("batch")`` makes a resumed run see the batches
        of the uninterrupted one.

        Args:
            name: Any label; each has its own stream.
            device: Where to draw; default the learner's device.

        Returns:
            A fresh generator.

        Example:
            >>> from gtp_policy import GTPConfig, GTPLearner
            >>> learner = GTPLearner.build(1, 1, GTPConfig(critic=None))
            >>> a, b = learner.stream("batch"), learner.stream("batch")
            >>> a.initial_seed() == b.initial_seed()
            True
        """
        if device is not None:
            check_device(device)
        device = device or self.device
        return new_stream(self.config.seed, name, self.updates, device)

    def distribute_(self, group: Any = None) -> None:  # noqa: ANN401 - a process group of torch
        """Shares every further update with the other processes of a group: data-parallel training.

        To be called in each process, with learners that were built alike. From then on, every
        process calls `update` with the same whole minibatch, or `update_from`, and computes its
        share of the rows; gradients are averaged, and the advantages' scale, the weights and the
        metrics are those of the whole minibatch. So any number of processes compute the update
        that one would, up to the order of floating-point sums, and a checkpoint of one process is a
        checkpoint of all: save in one, resume with any number.

        Args:
            group: Of `torch.distributed`; None for the default one, which torchrun with
                ``accelerate.PartialState()`` or `torch.distributed.init_process_group` makes.

        Raises:
            DistributedError: If there is no process group, or another process holds another
                learner.

        Example:
            >>> import tempfile, torch
            >>> from gtp_policy import GTPConfig, GTPLearner
            >>> learner = GTPLearner.build(3, 2, GTPConfig(critic=None))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     torch.distributed.init_process_group(
            ...         "gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
            ...     learner.distribute_()
            ...     torch.distributed.destroy_process_group()
        """
        check_whole([self])
        processes = Processes(group)
        processes.check_equal([self.updates, *_digests(self)], "learners")
        self.processes = processes

    def update(self, batch: Transitions) -> UpdateMetrics:
        """Does one update of everything: Algorithm 1, lines 4 to 9. Nothing leaves the device.

        It trains whatever the caller's mode is, within ``torch.no_grad()`` too. An error that is
        raised before the first network is stepped changes nothing; one that is raised later leaves
        a learner that is ``broken``.

        Args:
            batch: A minibatch on the learner's device, actions in [-1, 1].

        Returns:
            Metrics as tensors on the device; `UpdateMetrics.to_floats` fetches them.

        Raises:
            ShapeError: If a field of the batch has the wrong shape.
            DataError: If a field of the batch is not of the networks' dtype and device, the data's
                next actions are missing that ``critic_penalty`` needs, or on the CPU a number is
                NaN, infinite or outside its range; names field and row. Or if a learning rate of
                the config's was set in an optimiser.
            NonFiniteError: On the CPU, if the advantages are NaN or infinite: training diverges.
            BrokenLearnerError: If an earlier update ended half-way.
            DeviceError: If the device has no memory left, or another process has taken it.

        Example:
            >>> import torch
            >>> from gtp_policy import GTPConfig, GTPLearner, Transitions
            >>> learner = GTPLearner.build(1, 1, GTPConfig(critic=None))
            >>> batch = Transitions(torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4),
            ...                     torch.zeros(4, 1), torch.zeros(4))
            >>> sorted(learner.update(batch).to_floats())
            ['actor_grad_norm', 'actor_loss', 'consistency', 'flow']
        """
        check_whole([self])
        check_optimizers([self])
        check_kind("batch", batch, Transitions)
        actor, penalty = self.actor, self.config.critic_penalty > 0
        batch.check(
            actor.obs_dim,
            actor.action_dim,
            like=actor.fixed_noise,
            next_action=penalty,
            chunk=actor.config.chunk,
        )
        batch.check_values(rewards=self.critic is not None)
        one = batch.map(lambda field: field.unsqueeze(0))
        compute = self._dispatcher.plan([self], one)
        with changing([self]):
            (metrics,) = per_learner(compute(), 1)
            self.updates += 1
            look(self, 1, lambda: batch.obs)
        return metrics

    def update_from(
        self, dataset: OfflineDataset, updates: int = 1, *, batch_size: int = 256
    ) -> UpdateMetrics:
        """Does several updates on minibatches of a dataset, on a GPU some of them in one launch.

        On the CPU the same as a loop of ``update`` on ``dataset.sample(batch_size,
        generator=learner.stream("batch"))``. On a GPU minibatches are drawn by counter, as all that
        is random: a function of seed and number of updates too, but other transitions. Where
        updates are recorded, one graph gathers sixteen minibatches and does sixteen updates. What
        is learned does not depend on how updates are divided among calls.

        Args:
            dataset: The data, on the learner's device.
            updates: How many updates to do.
            batch_size: B, transitions per update.

        Returns:
            Metrics of the last update.

        Raises:
            ValueError: If ``updates`` is smaller than 1.
            DataError: If ``batch_size`` is smaller than 1, or the dataset is not on the learner's
                device, or has other bounds of actions or another layout of observations.
            ShapeError: If the dataset has other dimensions.
            NonFiniteError: On the CPU, if the advantages are NaN or infinite.
            BrokenLearnerError: If an earlier update ended half-way.

        Warns:
            TrainingWarning: If updates lie behind ``total_updates``, where learning rates are 0.

        References:
            | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al.,
            | 2025), Algorithm 1, https://arxiv.org/abs/2510.11499

        Example:
            >>> from gtp_policy import GTPConfig, GTPLearner, OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [2.0]], action=[[0.8], [-0.8]], reward=[0.0, 1.0],
            ...     terminated=[1, 1], truncated=[0, 0], low=[-1.0], high=[1.0])
            >>> learner = GTPLearner.from_dataset(dataset, GTPConfig(critic=None))
            >>> metrics = learner.update_from(dataset, 3, batch_size=8)
            >>> learner.updates
            3
        """

        def one() -> list[UpdateMetrics]:
            return [self.update(minibatch(self, dataset, batch_size))]

        return update_from([self], self._dispatcher, dataset, updates, batch_size, one)[0]

    def fit(
        self,
        dataset: OfflineDataset,
        updates: int | None = None,
        *,
        batch_size: int = 256,
        progress: bool = True,
        callback: "Callback | None" = None,
        every: int = 1000,
    ) -> dict[str, float]:
        """Trains on a dataset: the whole loop.

        Bit for bit what a loop of `update_from` does, and on the CPU one of ``update`` on
        ``dataset.sample(batch_size, generator=learner.stream("batch"))``. So a run that was
        stopped, saved and loaded goes on as if it had never been.

        ``config.learner.total_updates`` is the length of the run, over which curriculum and
        learning rates unfold. Where nobody has chosen it, ``updates`` of the first call does: that
        many behind what `update_from` has done. Where ``updates`` leads beyond it, it becomes
        longer, as by `set_total_updates_`.

        Ctrl-C and SIGTERM end it after the update that is being computed, and then do what they
        always do: whoever catches the ``KeyboardInterrupt`` has a whole learner to save. Inside a
        `StopSignal` of yours it returns, and the flag is yours to look at.

        Args:
            dataset: The data, on the learner's device. Its bounds and layout are those that
                `predict` acts in from then on; a learner that has others refuses it.
            updates: How many updates to do; default what is left of ``total_updates``, which may
                be none.
            batch_size: B, transitions per update.
            progress: Whether to show on stderr how far it is: as a bar on a terminal, where tqdm
                is installed, and as a line every ten seconds anywhere else.
            callback: Called with the learner and the last metrics whenever ``updates`` of the
                learner is a multiple of ``every``, and after the last update. One that returns
                True ends the training; of processes that share updates, any one's does, as a
                signal to any one does.
            every: Updates between two looks at the metrics, which a callback gets and the bar
                shows. A multiple of sixteen costs a GPU nothing.

        Returns:
            Metrics of the last update as numbers, by the names in `UpdateMetrics`; empty where
            nothing was left to do.

        Raises:
            ValueError: If ``updates`` or ``every`` is smaller than 1.
            DataError: If ``batch_size`` is smaller than 1, the dataset is not on the learner's
                device, lacks rewards that a critic needs, or has other bounds of actions, another
                layout of observations or, for a critic, another discount factor than the learner.
            ShapeError: If the dataset has other dimensions.
            NonFiniteError: If training diverges: at the latest when metrics are looked at.
            BrokenLearnerError: If an earlier update ended half-way.

        Example:
            >>> from gtp_policy import GTPConfig, GTPLearner, OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [2.0]], action=[[0.8], [-0.8]], reward=[0.0, 1.0],
            ...     terminated=[1, 1], truncated=[0, 0], low=[-1.0], high=[1.0])
            >>> learner = GTPLearner.from_dataset(dataset, GTPConfig(critic=None))
            >>> metrics = learner.fit(dataset, 3, batch_size=8, progress=False)
            >>> learner.updates, sorted(metrics)
            (3, ['actor_grad_norm', 'actor_loss', 'consistency', 'flow'])
        """
        return fit(
            self,
            dataset,
            updates,
            batch_size=batch_size,
            progress=progress,
            callback=callback,
            every=every,
        )

    def updates_per_launch(self, batch_size: int = 256) -> int:
        """Returns how many updates `update_from` does at once, for the learner as it stands.

        A loop that has something to do between updates loses nothing by doing it so often.

        Args:
            batch_size: B, transitions per update.

        Returns:
            1, or 16 where updates are recorded.

        Example:
            >>> from gtp_policy import GTPConfig, GTPLearner
            >>> GTPLearner.build(1, 1, GTPConfig(critic=None)).updates_per_launch()
            1
        """
        return LAUNCH if self._dispatcher.records([self], batch_size) else 1

    def explain(self, rows: int | None = None) -> list[str]:
        """Tells how updates and actions will be computed; see `gtp_policy.kernels.explain`.

        Args:
            rows: Number of observations to act on; default 1.

        Returns:
            A line per computation.

        Example:
            >>> from gtp_policy import GTPConfig, GTPLearner
            >>> for line in GTPLearner.build(3, 2, GTPConfig(critic=None)).explain(rows=64):
            ...     print(line)
            update: fused (gradients by hand, into buffers) on cpu, torch.float32
            sample: torch (its operators, in place), because its matrix products are the faster ones
            beyond 24 rows
        """
        return [explain(self, self._dispatcher.refused), *self.target_actor.explain(rows)]

    @property
    def guidance(self) -> Guidance:
        """The guidance in force: none before ``config.guided_from`` updates."""
        late = self.critic is not None and self.updates < self.config.guided_from
        return _NO_GUIDANCE if late else self.config.guidance

    @property
    def learning_rates(self) -> dict[str, float]:
        """The learning rate of each part's next step; none for optimisers that were passed in."""
        if self._own_rates:
            return {}
        config = self.config
        rates = {
            "actor": config.initial_actor_lr * self._schedule(config.total_updates),
            "critic": config.initial_critic_lr * self._schedule(config.critic_length),
        }
        return {name: rates["actor" if name == "actor" else "critic"] for name in self.optimizers}

    @property
    def critic_learns(self) -> bool:
        """Whether critic and value network do a step: not from ``config.critic_length`` updates on.

        A critic that learns for the whole run learns beyond its end, too, as its actor does.

        Example:
            >>> from gtp_policy import GTPConfig, GTPLearner, GTPLearnerConfig
            >>> config = GTPConfig(learner=GTPLearnerConfig(total_updates=9, critic_updates=3))
            >>> learner = GTPLearner.build(3, 2, config)
            >>> learner.updates = 3
            >>> learner.critic_learns
            False
        """
        config = self.config
        return self.updates < config.critic_length or config.critic_length == config.total_updates

    def _schedule(self, length: int) -> float:
        """Returns the share of a learning rate that is left by now of a number of updates."""
        if self.config.lr_schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(self.updates / length, 1.0)))

    @torch.no_grad()
    def advantage(
        self, obs: Tensor, action: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""Returns how much better actions are than what the baseline expects.

        .. math:: A = \min_j Q_j(o, a) - V(o)

        Args:
            obs: Observation, shape (B, O).
            action: Action in [-1, 1], shape (B, A).
            generator: Source of the baseline's samples; default a stream of the package's own.

        Returns:
            A, shape (B,).

        Raises:
            ValueError: If the learner has no critic.
            ShapeError: If a shape disagrees with the learner's dimensions.

        Example:
            >>> import torch
            >>> from gtp_policy import GTPConfig, GTPLearner
            >>> learner = GTPLearner.build(3, 2)
            >>> learner.advantage(torch.zeros(4, 3), torch.zeros(4, 2)).shape
            torch.Size([4])
        """
        self._need_critic()
        check_rows("obs", obs, self.actor.obs_dim)
        check_shape("action", action, (len(obs), self.actor.action_dim))
        for name, value in (("obs", obs), ("action", action)):
            check_like(name, value, self)
        sampled, baseline = None, self.config.baseline
        if isinstance(baseline, PolicyBaseline):
            tiled = obs.repeat(baseline.samples, 1)
            drawn = self.target_actor.sample(tiled, generator=generator)
            sampled = drawn.view(1, baseline.samples, *action.shape)
        return advantage_of(ByAutograd([self]), obs[None], action[None], sampled)[0]

    @torch.no_grad()
    def td_advantage(
        self, batch: Transitions, *, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""Returns how much better what followed is than what the baseline expects.

        .. math:: A = r + \gamma V(o') - V(o)

        with the critic's target as its first two terms. Target critics value the sampled actions,
        which come of the same noise for o and o'. With ``learner.advantage="td"`` the weights of an
        update are those of this advantage.

        Args:
            batch: Transitions, B of them.
            generator: Source of the samples; default a stream of the package's own.

        Returns:
            A, shape (B,).

        Raises:
            ValueError: If the learner has no critic.
            ShapeError: If a shape disagrees with the learner's dimensions.
            DataError: If a field is not of the networks' dtype and device.

        Example:
            >>> import torch
            >>> from gtp_policy import GTPLearner, Transitions
            >>> zeros = torch.zeros(4, 3), torch.zeros(4, 2), torch.zeros(4), torch.zeros(4, 3)
            >>> batch = Transitions(*zeros, torch.ones(4))  # nothing happens: nothing is better
            >>> GTPLearner.build(3, 2).td_advantage(batch).tolist()
            [0.0, 0.0, 0.0, 0.0]
        """
        self._need_critic()
        check_kind("batch", batch, Transitions)
        penalty, chunk = self.config.critic_penalty > 0, self.actor.config.chunk
        batch.check(
            self.actor.obs_dim, self.actor.action_dim, like=self, next_action=penalty, chunk=chunk
        )
        config, baseline = self.config, self.config.baseline
        copies = 0 if config.backup == "value" else config.backup_actions
        samples = baseline.samples if isinstance(baseline, PolicyBaseline) else 0
        noise = torch.randn(
            (max(copies, samples), len(batch.obs), self.actor.noise_dim()),
            generator=generator_or_private(generator, self.device),
            device=self.device,
            dtype=batch.obs.dtype,
        )

        def sampled(obs: Tensor, n: int) -> Tensor | None:
            if not n:
                return None
            drawn = self.target_actor.sample(obs.repeat(n, 1), noise=noise[:n].flatten(0, 1))
            return drawn.view(1, n, len(obs), -1)

        return td_advantage_of(
            ByAutograd([self]),
            batch.map(lambda field: field[None]),
            sampled(batch.next_obs, copies),
            sampled(batch.obs, samples),
        )[0]

    def _need_critic(self) -> None:
        if self.critic is None:
            raise ValueError(
                "An advantage needs a critic: got critic=None (behaviour cloning), expected a "
                "QEnsemble. Build the learner with one."
            )

    @overload
    def act(
        self,
        obs: Tensor,
        *,
        steps: int | None = None,
        candidates: int | None = None,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor: ...

    @overload
    def act(
        self,
        obs: npt.NDArray[Any],
        *,
        steps: int | None = None,
        candidates: int | None = None,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> npt.NDArray[np.floating]: ...

    def act(
        self,
        obs: Tensor | npt.NDArray[Any],
        *,
        steps: int | None = None,
        candidates: int | None = None,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor | npt.NDArray[np.floating]:
        """Acts with the target network of the actor, in [-1, 1].

        `predict` acts in the units of the environment.

        With ``deterministic=True`` equal calls give equal bits: the same observations in a batch of
        the same size, on the same machine, with the same number of threads. In another row or in a
        batch of another size, an observation gets the same action up to rounding, since processors
        add up the rows of a batch in different orders: about 1e-6 in float32, more with large
        weights. Of two candidates whose values differ by no more than that, it may be the other
        one.

        Args:
            obs: Observation, shape (B, O), of the learner's dtype, on its device or on the CPU. On
                the CPU they get their actions there: few rows from a copy of the networks,
                which is faster than waiting for a GPU, more from the device. Or a NumPy array of
                any real numbers, which are rounded to the learner's dtype.
            steps: K; default the actor's.
            candidates: Actions to draw per observation; above 1 the target critic chooses among
                them, as ``config.choice`` says. Default: 1; for a deterministic action
                ``config.eval_candidates``, of which ``config.deterministic_choice`` makes one,
                their mode. That is 16 where the critic prefers the mode, otherwise 1
                (`gtp_policy.acting.mode_share`).
            deterministic: Start from noises that are a function of the observation
                (`gtp_policy.keyed_noise`), as above. Never from zero noise, which can end between
                two modes.
            generator: Source of the noise; default a stream of the package's own, which begins at
                the same place in every process. Workers that collect side by side, forked or
                spawned, would draw the same noise: give each a generator that it keeps,
                ``generator = learner.stream(f"worker {rank}")``.

        Returns:
            Actions in [-1, 1], shape (B, A): an array for an array, a tensor for a tensor.

        Raises:
            ShapeError: If ``obs`` has the wrong shape.
            DataError: If ``obs`` is neither an array nor a tensor of the dtype and device, or on
                the CPU holds NaN or infinity, or is an array for which the action is not finite.
            ValueError: If ``candidates`` or ``steps`` is smaller than 1, or several candidates are
                wanted without a critic.

        Example:
            >>> import torch
            >>> from gtp_policy import GTPLearner
            >>> learner, obs = GTPLearner.build(3, 2), torch.zeros(2, 3)
            >>> torch.equal(*(learner.act(obs, deterministic=True) for _ in range(2)))
            True
        """
        # Not as attributes: `nn.Module` takes as long to find one as an operator to run.
        actor = cast(FlowMapActor, self._modules["target_actor"])
        critic = cast(QEnsemble | None, self._modules.get("target_critic"))
        candidates, choice = chosen_by(self.config, actor, critic, candidates, deterministic)
        return act(
            actor,
            critic,
            obs,
            steps=steps,
            candidates=candidates,
            choice=choice,
            deterministic=deterministic,
            generator=generator,
        )

    @overload
    def predict(
        self,
        obs: Tensor | Mapping[str, Tensor],
        *,
        steps: int | None = None,
        candidates: int | None = None,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor: ...

    @overload
    def predict(
        self,
        obs: npt.ArrayLike | Mapping[str, npt.ArrayLike],
        *,
        steps: int | None = None,
        candidates: int | None = None,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> npt.NDArray[np.floating]: ...

    def predict(
        self,
        obs: Any,
        *,
        steps: int | None = None,
        candidates: int | None = None,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor | npt.NDArray[np.floating]:
        """Acts in the units of the environment, for one observation or several.

        Sampled by default, as the data's own actions vary and as ``predict`` of Stable-Baselines3
        does: ``deterministic=True`` gives an observation the same action every time. Unlike there,
        actions alone are returned.

        Args:
            obs: An array or tensor of any real type, of the shape that the environment shows, or
                with (B,) in front. A mapping of such where observations are mappings; parts that
                the data did not have are left out. A policy that looks back takes m observations,
                the oldest first, as (m, ...) or (B, m, ...); `player` remembers them instead.
            steps: As for `act`.
            candidates: As for `act`.
            deterministic: As for `act`.
            generator: As for `act`.

        Returns:
            Actions inside the bounds of ``action_scaler``: of the kind that ``obs`` is, shape (A,)
            of one observation and (B, A) of several; of a policy of chunks (h, A) and (B, h, A).

        Raises:
            DataError: If the learner has no ``action_scaler``, or an observation is NaN or infinite
                or no real number, or on the CPU so large that the action is not finite.
            ShapeError: If a part of the observation is missing or has another shape.
            ValueError: As for `act`.

        Example:
            >>> import numpy as np
            >>> from gtp_policy import GTPConfig, GTPLearner, OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [2.0]], action=[[80.0], [20.0]], reward=[0.0, 1.0],
            ...     terminated=[1, 1], truncated=[0, 0], low=[0.0], high=[100.0])
            >>> learner = GTPLearner.from_dataset(dataset, GTPConfig(critic=None))
            >>> learner.predict(np.zeros(1)).shape, learner.predict(np.zeros((5, 1))).shape
            ((1,), (5, 1))
        """
        config, scaler = self.target_actor.config, self.action_scaler
        if scaler is None:
            raise DataError(
                "The learner does not know the units of the environment: got no action_scaler, "
                "expected the bounds of its actions. Set learner.action_scaler = "
                "ActionScaler(low, high), or take learner.act, whose actions are in [-1, 1]."
            )
        layout = self.layout or ObservationLayout((self.actor.obs_dim // config.history,))
        found = seen(obs, layout, config.history)
        action = self.act(
            found.rows.to(self.dtype),
            steps=steps,
            candidates=candidates,
            deterministic=deterministic,
            generator=generator,
        )
        return in_box(action, scaler, config.chunk, found)

    def player(
        self,
        *,
        playback: Playback | None = None,
        steps: int | None = None,
        candidates: int | None = None,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> ChunkPlayer:
        """Returns what plays this policy in environments, observation by observation.

        It holds the history and the chunk of each environment; `act` gives whole chunks for whole
        histories. Also of a policy without either.

        Args:
            playback: How chunks are played; default ``config.playback``.
            steps: As for `act`.
            candidates: As for `act`.
            deterministic: As for `act`.
            generator: As for `act`.

        Returns:
            A player without a state, in the units of `act`: actions in [-1, 1].

        Raises:
            ValueError: If ``playback`` does not fit the chunk.

        Example:
            >>> import torch
            >>> from gtp_policy import FlowMapActorConfig, GTPConfig, GTPLearner
            >>> config = GTPConfig(actor=FlowMapActorConfig(chunk=4, history=2))
            >>> player = GTPLearner.build(obs_dim=2 * 3, action_dim=4 * 1, config=config).player()
            >>> player.act(torch.zeros(5, 3)).shape
            torch.Size([5, 1])
        """

        def plan(obs: Tensor) -> Tensor:
            return self.act(
                obs.to(self.dtype),
                steps=steps,
                candidates=candidates,
                deterministic=deterministic,
                generator=generator,
            )

        config = self.target_actor.config
        return ChunkPlayer(
            plan,
            chunk=config.chunk,
            history=config.history,
            playback=playback or self.config.playback,
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Saves the learner: networks, optimisers, counter, every choice, bounds and layout.

        `gtp_policy.save_checkpoint` is the same and takes metadata.

        Args:
            path: A name that ends in ``.zip``, which replaces a file of that name; or a new folder.

        Returns:
            The path.

        Raises:
            CheckpointError: If it cannot be written; what was there before is unchanged.
            NonFiniteError: If a weight is NaN or infinite.
            BrokenLearnerError: If an update ended half-way.

        Example:
            >>> import tempfile
            >>> from gtp_policy import GTPConfig, GTPLearner
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = GTPLearner.build(3, 2, GTPConfig(critic=None)).save(f"{folder}/a.zip")
            ...     GTPLearner.load(path).updates
            0
        """
        return _on_disk().save(path, self)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: torch.device | str = "cpu",
        network: nn.Module | None = None,
        encoder: nn.Module | None = None,
        optimizer: OptimizerFactory | None = None,
    ) -> "GTPLearner":
        """Builds the learner that was saved, here or by Stable-Baselines3, Tianshou or a run.

        `gtp_policy.load_checkpoint` is the same and returns the metadata too.

        Args:
            path: Zip file or folder; what it holds is numbers and text, and executes nothing.
            device: Where parameters should live.
            network: The actor's backbone, if it was a custom one.
            encoder: The encoder, likewise.
            optimizer: The optimiser factory, likewise.

        Returns:
            The learner, ready to act and to go on training.

        Raises:
            CheckpointError: If the file is missing, damaged, foreign or malicious.
            StateMismatchError: If ``network``, ``encoder`` or ``optimizer`` are not like those
                saved.

        Example:
            >>> from gtp_policy import GTPLearner
            >>> GTPLearner.load("nowhere.zip")  # doctest: +ELLIPSIS
            Traceback (most recent call last):
            ...
            gtp_policy.errors.CheckpointError: Checkpoint nowhere.zip cannot be read: ...
        """
        return _on_disk().load(
            path, device=device, network=network, encoder=encoder, optimizer=optimizer
        )

    def train(self, mode: bool = True) -> Self:
        """Sets training mode; the targets stay in evaluation mode in either.

        Args:
            mode: Whether to train.

        Returns:
            The learner itself.
        """
        super().train(mode)
        self.target_actor.eval()
        if self.target_critic is not None:
            self.target_critic.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers.values():
            if optimizer.state:  # follows its parameters to another device or dtype
                optimizer.load_state_dict(optimizer.state_dict())
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # noqa: ANN401 - as torch has it
        """Returns everything that training changes: networks, targets, optimisers, counter.

        Args:
            *args: As for any torch module.
            **kwargs: As for any torch module.

        Returns:
            Tensors, and numbers and strings in plain containers.

        Raises:
            BrokenLearnerError: If an update ended half-way.
        """
        check_whole([self])
        return cast(dict[str, Any], super().state_dict(*args, **kwargs))

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:  # noqa: ANN401 - torch's own return type has no public name
        """Takes over a saved state, all of it or nothing.

        Args:
            state_dict: What ``state_dict`` returned.
            strict: Whether the keys must match exactly.
            assign: Whether to take over the tensors themselves instead of their values.

        Returns:
            The missing and unexpected keys.

        Raises:
            StateMismatchError: If the state belongs to a learner with other networks, optimisers
                or another flow map, or holds numbers that no training leaves behind; nothing has
                been changed then.
        """
        was, before = self.broken, copy.deepcopy(super().state_dict())
        held = [(m, dict(m._parameters), dict(m._buffers)) for m in self.modules()]
        try:
            with changing([self]):
                result = self._take_over(state_dict, strict, assign)
                check_numbers(self)
                return result
        except BaseException as error:
            # What was assigned by then belongs to whom the state is from: nothing is written there.
            assigned = dict(self.named_parameters())
            for module, parameters, buffers in held:
                module._parameters.update(parameters)
                module._buffers.update(buffers)
            self._exchange_(assigned)
            self._take_over(before, True, False)
            self.broken = was
            if isinstance(error, StateMismatchError) or not isinstance(error, FOREIGN_STATE_ERRORS):
                raise
            raise StateMismatchError(
                f"The state does not fit the learner: got {type(error).__name__} ({error}), "
                "expected what state_dict of a learner of the same config returned."
            ) from error

    def _take_over(self, state_dict: Mapping[str, Any], strict: bool, assign: bool) -> Any:  # noqa: ANN401
        extra = state_dict.get("_extra_state", {})
        got, own = sorted(extra.get("optimizers", {})), sorted(self.optimizers)
        if got != own:
            raise StateMismatchError(
                f"The state belongs to another kind of learner: got optimisers of {got}, expected "
                f"{own}. Build the learner from the config that was saved with it."
            )
        self.actor.set_extra_state(state_dict.get("actor._extra_state", {}))
        held, types, was = dict(self.named_parameters()), self._float_types(), self.dtype
        result = super().load_state_dict(state_dict, strict, assign)
        if assign:
            stands = set(state_dict)
            for name, buffer in dict(self.named_buffers(remove_duplicate=False)).items():
                if name not in stands:  # in no state: it follows what does
                    module, _, last = name.rpartition(".")
                    dtype = self.dtype if buffer.dtype == was else None
                    setattr(self.get_submodule(module), last, buffer.to(self.device, dtype))
            if len(types) < len(now := self._float_types()):
                raise StateMismatchError(
                    f"The state is of several types: got {sorted(map(str, now))} with what the "
                    "state leaves out, expected one. Convert it as a whole, or the learner first."
                )
            # The optimisers go on with what is there now, which may be of another dtype.
            self._exchange_(held)
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(copy.deepcopy(extra["optimizers"][name]))
        # After the actor, to which a state in a plain dictionary, as of a file, says nothing of it.
        self.target_actor.mode_share = extra.get("mode_share")
        if "normalized_by" in extra:  # not in states before version 0.1
            self.normalized_by = extra["normalized_by"]
        return result

    def _float_types(self) -> set[torch.dtype]:
        tensors = itertools.chain(self.parameters(), self.buffers())
        return {tensor.dtype for tensor in tensors if tensor.is_floating_point()}

    def _exchange_(self, held: Mapping[str, nn.Parameter]) -> None:
        """Gives the optimisers, which have parameters of these names, those that are there now."""
        now = dict(self.named_parameters())
        news: dict[Tensor, nn.Parameter] = {old: now[name] for name, old in held.items()}
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["params"] = [news.get(p, p) for p in group["params"]]
            state = {news.get(p, p): entries for p, entries in optimizer.state.items()}
            optimizer.state.clear()
            optimizer.state.update(state)

    def get_extra_state(self) -> dict[str, Any]:
        """Returns what ``state_dict`` holds besides tensors of modules: optimisers and counter."""
        return {
            "updates": self.updates,
            "mode_share": self.target_actor.mode_share,
            "normalized_by": self.normalized_by,
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Takes over what `get_extra_state` returned; called by ``load_state_dict``.

        Args:
            state: The dictionary; not changed.

        Raises:
            StateMismatchError: If the counter is no number of updates, or a moment has another
                shape than its parameter.
        """
        updates = state["updates"]
        if type(updates) is not int or updates < 0:
            raise StateMismatchError(
                f"The state has no number of updates: got {updates!r}, expected an integer >= 0."
            )
        share = state.get("mode_share")  # of states before version 0.1: not measured
        if not (share is None or (type(share) is float and 0 <= share <= 1)):
            raise StateMismatchError(
                f"The state has no share of the mode: got {share!r}, expected a float from 0 to 1."
            )
        name = state.get("normalized_by")
        if not (name is None or is_name(name)):
            raise StateMismatchError(
                f"The state names nothing that normalises: got {name!r:.100}, expected a word of "
                "ASCII or None."
            )
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(copy.deepcopy(state["optimizers"][name]))
            check_moments(name, optimizer)
        self.updates = updates


Callback = Callable[[GTPLearner, dict[str, float]], object]


class Disk(NamedTuple):
    """What writes learners and reads them.

    Attributes:
        save: From a path and a learner to the path.
        load: From a path, and what no file can hold, to a learner.
    """

    save: Callable[..., Path]
    load: Callable[..., GTPLearner]


# It knows learners, and they do not know it: the package tells them, whatever of it is imported.
_disk: Disk | None = None


def keep_on_(disk: Disk) -> None:
    """Says where `GTPLearner.save` and `GTPLearner.load` go."""
    global _disk
    _disk = disk


def _on_disk() -> Disk:
    assert _disk is not None  # the package imports gtp_policy.checkpoint
    return _disk


def _copied(module: _M) -> _M:
    """Returns a copy of a user's network, which may hold what cannot be copied."""
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        computed = [
            f"{name}.{attribute}".removeprefix(".")
            for name, part in (module.named_modules() if module is not None else ())
            for attribute, value in vars(part).items()
            if isinstance(value, Tensor) and not value.is_leaf
        ]
        raise DataError(
            f"A network cannot be copied, as its target network is: got "
            f"{f'`{computed[0]}`, which is computed from other parameters' if computed else error}"
            ", expected what copy.deepcopy takes. Instead of torch's old weight_norm take that of "
            "torch.nn.utils.parametrizations; after pruning, call torch.nn.utils.prune.remove."
        ) from error


def _digests(learner: GTPLearner) -> list[int]:
    """Returns numbers that differ where learners do: of their choices, and of their parameters."""
    words = hashlib.blake2b(learner.open_config.model_dump_json().encode(), digest_size=7)
    state = hashlib.blake2b(digest_size=7)
    for module in (learner.actor, learner.target_actor, learner.critic, learner.value):
        for name, value in () if module is None else module.state_dict().items():
            state.update(name.encode() + value.detach().cpu().double().numpy().tobytes())
    return [int.from_bytes(digest.digest(), "little") for digest in (words, state)]
