"""The builder of experiments in Tianshou's high-level API: from environments and data to a run.

Tianshou's ``ExperimentBuilder`` needs packages of its extra ``eval`` (joblib, scipy, rliable), and
so does this module, which is imported by name. ``gtp_tianshou.highlevel`` needs none of them.
"""

import dataclasses
from collections.abc import Callable
from typing import Self

from tianshou.highlevel.env import EnvFactory
from tianshou.highlevel.persistence import PolicyPersistence

from gtp_policy.errors import MissingDependencyError
from gtp_tianshou.highlevel import Data, GTPAlgorithmFactory, GTPParams, GTPTrainingConfig

try:
    from tianshou.highlevel.experiment import ExperimentBuilder, ExperimentConfig
except ImportError as error:
    raise MissingDependencyError(
        f"Tianshou's experiments need {error.name}: got no installed package of that name, "
        'expected Tianshou\'s extra `eval`. Run: pip install "tianshou[eval]".'
    ) from error


class GTPExperimentBuilder(ExperimentBuilder[GTPTrainingConfig]):
    """Builds an offline experiment with GTP, as Tianshou's builders do for online algorithms.

    Policies are persisted as state dictionaries: Tianshou's default, the pickled policy, cannot
    be restored by torch 2.6 or newer. The seed is the experiment's.

    Args:
        env_factory: Makes the environments to evaluate in.
        data: The id of a Minari dataset on this machine; or a function without arguments that
            returns a buffer or a dataset, picklable if the experiment is saved.
        experiment_config: As in Tianshou, persistence of pickled policies excepted.
        training_config: Length of the run, batch size.

    Raises:
        MissingDependencyError: On import, if Tianshou's extra ``eval`` is not installed.

    Example:
        >>> from tianshou.highlevel.env import EnvFactoryRegistered, VectorEnvType
        >>> from gtp_tianshou.experiment import GTPExperimentBuilder
        >>> from gtp_tianshou.highlevel import GTPParams, GTPTrainingConfig
        >>> envs = EnvFactoryRegistered(task="Hopper-v5", venv_type=VectorEnvType.DUMMY)
        >>> training = GTPTrainingConfig(max_epochs=20, epoch_num_steps=5000)
        >>> builder = GTPExperimentBuilder(
        ...     envs, "mujoco/hopper/medium-v0", training_config=training)
        >>> builder = builder.with_gtp_params(GTPParams(gamma=0.99))
    """

    def __init__(
        self,
        env_factory: EnvFactory,
        data: str | Callable[[], Data],
        experiment_config: ExperimentConfig | None = None,
        training_config: GTPTrainingConfig | None = None,
    ) -> None:
        config = dataclasses.replace(
            experiment_config or ExperimentConfig(),
            policy_persistence_mode=PolicyPersistence.Mode.POLICY_STATE_DICT,
        )
        super().__init__(env_factory, config, training_config)
        self._data = data
        self._params = GTPParams()

    def with_gtp_params(self, params: GTPParams) -> Self:
        """Sets the parameters of the algorithm.

        Args:
            params: The parameters.

        Returns:
            The builder.
        """
        self._params = params
        return self

    def _create_training_config(self) -> GTPTrainingConfig:
        return GTPTrainingConfig()

    def _create_algorithm_factory(self) -> GTPAlgorithmFactory:
        return GTPAlgorithmFactory(
            self._data,
            self._params,
            self._training_config,
            self._get_optim_factory(),
            seed=self._config.seed,
        )
