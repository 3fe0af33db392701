"""What an environment shows that is no array of real numbers is refused wherever it is acted on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import gtp_tianshou
from gtp_policy import (
    ActionScaler,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    OfflineDataset,
    QEnsembleConfig,
)
from gtp_policy.errors import DataError, NonFiniteError
from gtp_policy.export import export_onnx
from gtp_policy.spaces import ObservationNormalizer
from gtp_runtime import ActionQueue, ObservationError, Policy
from gtp_sb3 import MlpPolicy
from gtp_tianshou import buffer_from_dataset

ROW = np.array([0.1, 999.0, 0.2], np.float32)
CONFIG = GTPConfig(actor=FlowMapActorConfig(hidden=(8,)), critic=QEnsembleConfig(hidden=(8,)))
BOX = gym.spaces.Box(-2, 2, (1,))


def player(folder: Path) -> Callable[[Any], Any]:
    config = CONFIG.replace(actor=CONFIG.actor.replace(chunk=2), critic=None)
    made = GTPLearner.build(3, 2, config).player(deterministic=True)
    made.act(torch.zeros(1, 3))  # in the middle of a chunk nothing is computed

    def act(obs: Any) -> Any:
        rows = obs[None] if isinstance(obs, np.ndarray) else [obs]
        return made.act(rows)  # type: ignore[arg-type]

    return act


def of_sb3(folder: Path) -> Callable[[Any], Any]:
    policy = MlpPolicy(gym.spaces.Box(-1, 1, (3,)), BOX, net_arch=[8])
    return lambda obs: policy.predict(obs, deterministic=True)[0]


def made_for_tianshou() -> Any:
    dataset = OfflineDataset.from_arrays(
        obs=np.zeros((9, 3)),
        action=np.zeros((9, 1)),
        reward=np.zeros(9),
        terminated=np.ones(9),
        truncated=np.zeros(9),
        low=[-2.0],
        high=[2.0],
    )
    buffer = buffer_from_dataset(dataset, seed=0)
    return gtp_tianshou.GTP.from_buffer(buffer, action_space=BOX, config=CONFIG)


def of_tianshou(folder: Path) -> Callable[[Any], Any]:
    return made_for_tianshou().policy.compute_action


def written(folder: Path, history: int = 1) -> Policy:
    config = CONFIG.replace(actor=CONFIG.actor.replace(history=history))
    learner = GTPLearner.build(3 * history, 1, config)
    export_onnx(learner, folder / "policy.onnx", action_scaler=ActionScaler([-2], [2]))
    return Policy.load(folder / "policy.onnx")


HOSTS: dict[str, Callable[[Path], Callable[[Any], Any]]] = {
    "a player": player,
    "SB3": of_sb3,
    "Tianshou": of_tianshou,
    "the runtime": lambda folder: written(folder).act,
    "the runtime's queue": lambda folder: ActionQueue(written(folder, history=2)).act,
}
ODD: dict[str, Any] = {
    "masked": np.ma.masked_greater(ROW, 10),
    "a list of masked": list(np.ma.masked_greater(ROW, 10)),
    "complex": ROW.astype(np.complex64),
    "text": np.array(["0.1", "0.2", "0.3"]),
    "text in objects": np.array(["0.1", "0.2", "0.3"], object),
    "dates": np.zeros(3, "datetime64[s]"),
    "NaN": np.array([0.1, np.nan, 0.2], np.float32),
}


@pytest.mark.filterwarnings("ignore:Warning. converting a masked element:UserWarning")
@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("host", HOSTS)
def test_odd_observations_are_refused(host: str, what: str, tmp_path: Path) -> None:
    act = HOSTS[host](tmp_path)
    with pytest.raises((ValueError, ObservationError), match=r"expected .*(real|finite|numbers)"):
        act(ODD[what])


@pytest.mark.parametrize("host", ["a player", "SB3", "Tianshou"])
def test_an_array_may_lie_in_memory_in_any_way(host: str, tmp_path: Path) -> None:
    row = ROW / 1000
    for way in (
        row.astype(">f4"),
        row[::-1].copy()[::-1],
        row.astype(object),
        np.ma.masked_greater(row, 10),  # nothing is
        row.astype(np.longdouble),
    ):
        expected, got = HOSTS[host](tmp_path)(row), HOSTS[host](tmp_path)(way)
        np.testing.assert_allclose(np.asarray(got), np.asarray(expected), atol=1e-6)


def test_a_player_takes_half_precision() -> None:
    config = CONFIG.replace(actor=CONFIG.actor.replace(chunk=2), critic=None)
    made = GTPLearner.build(3, 2, config).player(deterministic=True)
    for dtype in (torch.bfloat16, torch.float16):
        made.reset()
        assert made.act(torch.ones(1, 3, dtype=dtype)).dtype == dtype


def test_an_observation_too_large_for_an_action_is_told_by_every_host() -> None:
    """It is finite, and what the networks make of it is not: no Box holds that."""
    policy = MlpPolicy(gym.spaces.Box(-1, 1, (3,)), BOX, net_arch=[8])
    algorithm = made_for_tianshou()
    for module in (*policy.modules(), *algorithm.modules()):
        if isinstance(module, ObservationNormalizer):
            module.set_statistics_(torch.zeros(3), torch.full((3,), 1e-3))
    far = np.array([1e37, 0.0, 0.0], np.float32)
    for deterministic in (True, False):
        assert np.isfinite(policy.predict(far / 1e20, deterministic=deterministic)[0]).all()
        with pytest.raises(DataError, match=r"`action` is not finite.*outside of what the policy"):
            policy.predict(far, deterministic=deterministic)
    assert np.isfinite(algorithm.policy.compute_action(far / 1e20)).all()
    with pytest.raises(NonFiniteError, match="`act` is not finite"):
        algorithm.policy.compute_action(far)
