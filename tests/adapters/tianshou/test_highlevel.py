"""The high-level API: what can be run without Tianshou's extra `eval`, and the rest where it is."""

import importlib
import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tianshou.env import DummyVectorEnv
from tianshou.highlevel.env import ContinuousEnvironments, EnvFactoryRegistered, VectorEnvType
from tianshou.highlevel.params.lr_scheduler import LRSchedulerFactoryFactoryLinear
from tianshou.highlevel.params.optim import (
    OptimizerFactoryFactoryAdam,
    OptimizerFactoryFactoryRMSprop,
)
from tianshou.highlevel.persistence import PolicyPersistence
from tianshou.highlevel.trainer import EpochStopCallbackRewardThreshold
from tianshou.highlevel.world import World
from tianshou.utils import LazyLogger

from gtp_policy import GTPConfig, GTPLearnerConfig, OfflineDataset
from gtp_policy.errors import DataError, MissingDependencyError
from gtp_tianshou import buffer_from_dataset
from gtp_tianshou.highlevel import GTPAlgorithmFactory, GTPParams, GTPTrainingConfig

EVAL = all(importlib.util.find_spec(name) for name in ("joblib", "rliable", "scipy"))


def pendulum_data() -> OfflineDataset:
    rng = np.random.default_rng(0)
    return OfflineDataset.from_arrays(
        obs=rng.normal(size=(40, 3)),
        action=rng.uniform(-2, 2, (40, 1)),
        reward=rng.normal(size=40),
        next_obs=rng.normal(size=(40, 3)),
        terminated=np.zeros(40, bool),
        truncated=np.arange(40) % 5 == 4,
        low=[-2],
        high=[2],
    )


def training() -> GTPTrainingConfig:
    return GTPTrainingConfig(max_epochs=2, epoch_num_steps=5, batch_size=8)


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[[GTPAlgorithmFactory], World]:
    """Makes what an experiment makes around an algorithm."""

    def make(factory: GTPAlgorithmFactory) -> World:
        def env() -> Any:
            return gym.make("Pendulum-v1", max_episode_steps=5)

        envs = ContinuousEnvironments(env(), DummyVectorEnv([env]), DummyVectorEnv([env]))
        envs.test_envs.seed(0)
        algorithm = factory.create_algorithm(envs, "cpu")
        train, test = factory.create_train_test_collectors(algorithm, envs)
        return World(
            envs=envs,
            algorithm=algorithm,
            training_collector=train,
            test_collector=test,
            logger=LazyLogger(),
            persist_directory=str(tmp_path),
            restore_directory=str(tmp_path),
        )

    return make


@pytest.mark.parametrize("critic", [True, False])
def test_the_factory_makes_what_an_experiment_runs(
    small: GTPConfig, make_world: Any, critic: bool
) -> None:
    config = small if critic else small.replace(critic=None)
    params = GTPParams(
        config=config,
        gamma=0.9,
        actor_lr=1e-2,
        actor_lr_scheduler=LRSchedulerFactoryFactoryLinear(training()),
        critic_optim=OptimizerFactoryFactoryRMSprop(),
        candidates=2 if critic else None,
    )
    factory = GTPAlgorithmFactory(
        lambda: buffer_from_dataset(pendulum_data()),
        params,
        training(),
        OptimizerFactoryFactoryAdam(),
        seed=3,
    )
    factory.trainer_callbacks.epoch_stop_callback = EpochStopCallbackRewardThreshold(1e9)
    world = make_world(factory)
    algorithm = world.algorithm
    mode = PolicyPersistence.Mode.POLICY_STATE_DICT
    persistence = PolicyPersistence(enabled=True, mode=mode)
    trainer = factory.create_trainer(world, persistence)
    optimizers = algorithm.learner.optimizers
    kinds = {name: type(o).__name__ for name, o in optimizers.items()}
    assert kinds == ({"actor": "Adam", "critic": "RMSprop"} if critic else {"actor": "Adam"})
    assert algorithm.learner.config.seed == 3
    assert algorithm.gamma == 0.9
    assert algorithm.policy.candidates == params.candidates
    trainer.params.show_progress = False
    result = trainer.run()
    assert result.update_step == algorithm.learner.config.total_updates == 10
    # The linear schedule counts updates, and ends at 0 with the last one.
    assert optimizers["actor"].param_groups[0]["lr"] == pytest.approx(0.0)
    # What the host has written at the best test is read back by the host's own means.
    other = make_world(factory)
    saved = torch.load(Path(world.persist_directory) / mode.get_filename(), weights_only=True)
    persistence.restore(other.algorithm, other, "cpu")
    for key, value in other.algorithm.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, saved[key])
    path = persistence.get_save_checkpoint_fn(world)(1, 0, 10)
    assert torch.load(path, weights_only=True)["learner._extra_state"]["updates"] == 10


def test_a_dataset_has_its_own_discount(small: GTPConfig, make_world: Any) -> None:
    params = GTPParams(config=small)
    factory = GTPAlgorithmFactory(
        pendulum_data, params, training(), OptimizerFactoryFactoryAdam(), seed=1
    )
    assert make_world(factory).algorithm.gamma == 0.99


def test_a_factory_holds_configuration_alone(small: GTPConfig, make_world: Any) -> None:
    factory = GTPAlgorithmFactory(
        pendulum_data, GTPParams(config=small), training(), OptimizerFactoryFactoryAdam()
    )
    before = len(pickle.dumps(factory))
    make_world(factory)
    assert factory._loaded is not None
    copy = pickle.loads(pickle.dumps(factory))  # noqa: S301 (what the host's experiments do)
    assert len(pickle.dumps(factory)) == before
    assert copy._loaded is None
    assert copy.params == factory.params
    assert "table" not in factory.pprints()


def test_an_id_is_that_of_a_minari_dataset(
    make_world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    factory = GTPAlgorithmFactory(
        "missing/nothing-v0", GTPParams(), training(), OptimizerFactoryFactoryAdam()
    )
    with pytest.raises(DataError, match="not on this machine"):
        make_world(factory)


def test_the_seed_of_the_config_is_overruled(small: GTPConfig, make_world: Any) -> None:
    config = small.replace(learner=GTPLearnerConfig(seed=9, ema_rate=0.01))
    factory = GTPAlgorithmFactory(
        pendulum_data, GTPParams(config=config), training(), OptimizerFactoryFactoryAdam(), seed=2
    )
    learner = make_world(factory).algorithm.learner
    assert (learner.config.seed, learner.config.ema_rate) == (2, 0.01)


def test_without_the_extra_the_builder_says_what_to_install() -> None:
    code = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "rliable" or name == "joblib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import gtp_tianshou.highlevel as highlevel
from gtp_policy.errors import DataError, MissingDependencyError
highlevel.GTPAlgorithmFactory  # is there all the same
try:
    from gtp_tianshou.experiment import GTPExperimentBuilder
except MissingDependencyError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert 'pip install "tianshou[eval]"' in result.stdout


@pytest.mark.skipif(EVAL, reason="Tianshou's extra `eval` is installed: the next test runs it")
def test_here_the_builder_cannot_be_imported() -> None:
    with pytest.raises(MissingDependencyError, match="extra `eval`"):
        importlib.import_module("gtp_tianshou.experiment")


@pytest.mark.skipif(not EVAL, reason="needs Tianshou's extra `eval` (joblib, rliable, scipy)")
@pytest.mark.global_rng  # an experiment seeds the global generators
@pytest.mark.filterwarnings("ignore")  # of seaborn, matplotlib and others on import
def test_an_experiment_from_the_builder(
    small: GTPConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tianshou.highlevel.experiment import Experiment, ExperimentConfig

    from gtp_tianshou.experiment import GTPExperimentBuilder

    monkeypatch.chdir(tmp_path)
    config = ExperimentConfig(watch=False, seed=5, device="cpu", log_file_enabled=False)
    envs = EnvFactoryRegistered(
        task="Pendulum-v1", venv_type=VectorEnvType.DUMMY, max_episode_steps=5
    )
    builder = (
        GTPExperimentBuilder(envs, pendulum_data, config, training())
        .with_gtp_params(GTPParams(config=small))
        .with_name("toy")
    )
    result = builder.build().run()
    algorithm = result.world.algorithm
    assert result.trainer_result.update_step == 10
    assert algorithm.learner.config.seed == 5
    folder = tmp_path / "log" / "toy" / "exp_seed=5"
    assert (folder / "policy_state_dict.pt").exists()
    again = Experiment.from_directory(str(folder))
    again.name = "again"
    restored = again.create_experiment_world().algorithm
    saved = torch.load(folder / "policy_state_dict.pt", weights_only=True)
    actor = restored.policy.actor.state_dict()
    assert all(
        torch.equal(v, saved[f"policy.actor.{k}"])
        for k, v in actor.items()
        if isinstance(v, torch.Tensor)
    )
    many = builder.with_name("many").build_seeded_collection(2).experiments
    assert [e.algorithm_factory.seed for e in many] == [5, 6]
