"""GTP in Tianshou's high-level API, where experiments are built from factories.

The builder of experiments itself is in ``gtp_tianshou.experiment``, since it needs packages of
Tianshou's extra ``eval``. What is here needs none of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from tianshou.data import ReplayBuffer
from tianshou.highlevel.algorithm import AlgorithmFactory
from tianshou.highlevel.config import TrainingConfig
from tianshou.highlevel.env import Environments
from tianshou.highlevel.module.core import TDevice
from tianshou.highlevel.params.algorithm_params import (
    Params,
    ParamsMixinActorAndCritic,
    ParamsMixinGamma,
    ParamTransformer,
    ParamTransformerData,
)
from tianshou.highlevel.params.optim import OptimizerFactoryFactory
from tianshou.highlevel.persistence import PolicyPersistence
from tianshou.highlevel.trainer import TrainingContext
from tianshou.highlevel.world import World
from tianshou.trainer import OfflineTrainer, OfflineTrainerParams

from gtp_policy import GTPConfig, OfflineDataset
from gtp_tianshou.algorithm import GTP
from gtp_tianshou.buffers import buffer_from_minari

Data = ReplayBuffer | OfflineDataset

__all__ = ["GTPAlgorithmFactory", "GTPParams", "GTPTrainingConfig"]


@dataclass(kw_only=True)
class GTPTrainingConfig(TrainingConfig):
    """Tianshou's training configuration with what offline training needs.

    Of the base class's fields, ``max_epochs``, ``epoch_num_steps`` (updates per epoch),
    ``num_test_envs`` and ``test_step_num_episodes`` matter; the training environment, which the
    high-level API insists on, is never stepped.

    Args:
        batch_size: Transitions per update.
        num_training_envs: The smallest number that Tianshou accepts.
        collection_step_num_env_steps: 1, so that Tianshou's linear learning-rate schedule counts
            updates.

    Example:
        >>> from gtp_tianshou.highlevel import GTPTrainingConfig
        >>> GTPTrainingConfig(max_epochs=10, epoch_num_steps=5000).batch_size
        256
    """

    batch_size: int = 256
    num_training_envs: int = 1
    collection_step_num_env_steps: int | None = 1


@dataclass(kw_only=True)
class GTPParams(Params, ParamsMixinGamma, ParamsMixinActorAndCritic):
    """Parameters of `GTP` in the manner of the high-level API.

    Optimisers and learning-rate schedulers are those of every actor-critic in Tianshou
    (``actor_optim``, ``actor_lr``, ``actor_lr_scheduler`` and their ``critic_`` sisters), and
    ``gamma`` is too; learning rates in ``config`` are not used.

    Args:
        config: Every choice of networks, losses and learner. Its seed is overruled by the
            experiment's.
        actor_lr: Learning rate of the actor.
        critic_lr: Learning rate of the critic.
        deterministic_eval: As for `GTPPolicy`.
        candidates: As for `GTPPolicy`.
        log_every: As for `GTP`.

    Example:
        >>> from gtp_policy import AdvantageWeighterConfig, GTPConfig
        >>> from gtp_tianshou.highlevel import GTPParams
        >>> GTPParams(config=GTPConfig(weighter=AdvantageWeighterConfig(eta=3.0))).gamma
        0.99
    """

    config: GTPConfig = field(default_factory=GTPConfig)
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    deterministic_eval: bool = True
    candidates: int | None = None
    log_every: int = 10

    def _get_param_transformers(self) -> list[ParamTransformer]:
        return ParamsMixinActorAndCritic._get_param_transformers(self)


class GTPAlgorithmFactory(AlgorithmFactory[GTPTrainingConfig]):
    """Makes algorithm and trainer of an experiment; what a ``GTPExperimentBuilder`` configures.

    Args:
        data: The id of a Minari dataset on this machine; or a function without arguments that
            returns a buffer or a dataset, picklable if the experiment is saved.
        params: Parameters of the algorithm.
        training_config: Length of the run, batch size.
        optim_factory: Default optimiser, where the parameters name none.
        seed: Seed of networks and updates.

    Example:
        >>> from tianshou.highlevel.params.optim import OptimizerFactoryFactoryAdam
        >>> from gtp_tianshou.highlevel import GTPAlgorithmFactory, GTPParams, GTPTrainingConfig
        >>> factory = GTPAlgorithmFactory("mujoco/hopper/medium-v0", GTPParams(),
        ...                               GTPTrainingConfig(), OptimizerFactoryFactoryAdam())
        >>> factory.params.candidates is None
        True
    """

    def __init__(
        self,
        data: str | Callable[[], Data],
        params: GTPParams,
        training_config: GTPTrainingConfig,
        optim_factory: OptimizerFactoryFactory,
        seed: int = 0,
    ) -> None:
        super().__init__(training_config, optim_factory)
        self.data, self.params, self.seed = data, params, seed
        self._loaded: Data | None = None

    def create_trainer(self, world: World, policy_persistence: PolicyPersistence) -> OfflineTrainer:
        """Makes the stock offline trainer; called by the experiment.

        Args:
            world: The experiment's objects.
            policy_persistence: Writes the best policy, and checkpoints.

        Returns:
            The trainer.
        """
        config, callbacks = self.training_config, self.trainer_callbacks
        context = TrainingContext(world.algorithm, world.envs, world.logger)
        test, stop = callbacks.epoch_test_callback, callbacks.epoch_stop_callback
        return cast("GTP", world.algorithm).create_trainer(
            OfflineTrainerParams(
                buffer=cast("ReplayBuffer", self._load()),
                batch_size=config.batch_size,
                max_epochs=config.max_epochs,
                epoch_num_steps=config.epoch_num_steps,
                test_collector=world.test_collector,
                test_step_num_episodes=config.test_step_num_episodes,
                test_fn=test.get_trainer_fn(context) if test else None,
                stop_fn=stop.get_trainer_fn(context) if stop else None,
                save_best_fn=policy_persistence.get_save_best_fn(world),
                save_checkpoint_fn=policy_persistence.get_save_checkpoint_fn(world),
                logger=world.logger,
                verbose=False,
            )
        )

    def _create_algorithm(self, envs: Environments, device: TDevice) -> GTP:
        options = self.params.create_kwargs(
            ParamTransformerData(envs=envs, device=device, optim_factory_default=self.optim_factory)
        )
        config: GTPConfig = options.pop("config")
        if config.critic is None:
            del options["critic_optim"]
        return GTP.from_buffer(
            self._load(),
            action_space=envs.get_action_space(),
            observation_space=envs.get_observation_space(),
            config=config.replace(learner=config.learner.replace(seed=self.seed)),
            device=device,
            **options,
        )

    def _load(self) -> Data:
        if self._loaded is None:
            data = self.data
            self._loaded = (
                buffer_from_minari(data, seed=self.seed) if isinstance(data, str) else data()
            )
        return self._loaded

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the loaded data out: an experiment holds configuration alone."""
        return self.__dict__ | {"_loaded": None}

    def _tostring_excludes(self) -> list[str]:
        return [*super()._tostring_excludes(), "_loaded"]
