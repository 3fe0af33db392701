"""Numbers of NumPy and torch are numbers wherever one is asked for; booleans are none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from gtp_policy import (
    CheckpointFolder,
    FlowMapActor,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    GTPLoss,
    MultiSeedLearner,
    OfflineDataset,
    QEnsemble,
    QEnsembleConfig,
    act,
)
from gtp_policy._numbers import as_float, as_int
from gtp_policy._random import new_stream
from gtp_policy.config import AdvantageWeighterConfig
from gtp_policy.errors import GTPError
from gtp_policy.kernels import using
from gtp_policy.networks import features_dim

ROWS = 8
CONFIG = GTPConfig(
    actor=FlowMapActorConfig(hidden=(8,)),
    critic=QEnsembleConfig(hidden=(8,)),
    learner=GTPLearnerConfig(total_updates=20),
)


def data(gamma: Any = 0.99) -> OfflineDataset:
    return OfflineDataset.from_arrays(
        obs=np.linspace(-1, 1, 3 * ROWS).reshape(ROWS, 3),
        action=np.linspace(-1, 1, 2 * ROWS).reshape(ROWS, 2),
        reward=np.arange(ROWS),
        terminated=np.arange(ROWS) % 4 == 3,
        truncated=np.zeros(ROWS),
        low=-1,
        high=1,
        gamma=gamma,
    )


def learner() -> GTPLearner:
    return GTPLearner.from_dataset(data(), CONFIG)


class Encoder(nn.Module):
    def __init__(self, width: Any) -> None:
        super().__init__()
        self.features_dim = width

    def forward(self, obs: Tensor) -> Tensor:
        return obs


OBS = torch.zeros(1, 3)
# What each returns is compared with what a plain number gives.
OF_INTEGERS: dict[str, Callable[[Any, Path], Any]] = {
    "act steps": lambda n, _: learner().act(OBS, steps=n, deterministic=True),
    "act candidates": lambda n, _: learner().act(OBS, candidates=n, deterministic=True),
    "act of an actor": lambda n, _: act(FlowMapActor(3, 2), None, OBS, steps=n, deterministic=True),
    "sample": lambda n, _: FlowMapActor(3, 2).sample(OBS, steps=n, noise=torch.ones(1, 2)),
    "sample_with_gradient": lambda n, _: FlowMapActor(3, 2).sample_with_gradient(
        OBS, torch.ones(1, 2), steps=n
    ),
    "fold": lambda n, _: FlowMapActor(3, 2).fold(n).alpha,  # type: ignore[union-attr]
    "noise_dim": lambda n, _: FlowMapActor(3, 2).noise_dim(n),
    "updates": lambda n, _: learner().update_from(data(), n).to_floats(),
    "batch_size": lambda n, _: learner().update_from(data(), 1, batch_size=n).to_floats(),
    "dataset.sample": lambda n, _: data().sample(n, generator=torch.Generator()).obs,
    "with_n_step": lambda n, _: data().with_n_step(n).transitions.reward,
    "with_chunks": lambda n, _: data().with_chunks(n).transitions.action,
    "with_history": lambda n, _: data().with_history(n).transitions.obs,
    "dimensions": lambda n, _: FlowMapActor(n, n).obs_dim,
    "dimensions of a critic": lambda n, _: QEnsemble(n, n).action_dim,
    "dimensions of a learner": lambda n, _: GTPLearner.build(n, n, CONFIG).actor.fixed_noise,
    "seed": lambda n, _: FlowMapActor(3, 2, seed=n).fixed_noise,
    "stream": lambda n, _: torch.rand(1, generator=new_stream(n, "a", n)),
    "features_dim": lambda n, _: features_dim(Encoder(n), 3),
    "a config": lambda n, _: GTPLearnerConfig(seed=n).model_dump_json(),
    "a width": lambda n, _: FlowMapActorConfig(hidden=(n, n)).model_dump_json(),
    "replace": lambda n, _: CONFIG.learner.replace(total_updates=n).model_dump_json(),
    "a float field": lambda n, _: AdvantageWeighterConfig(eta=n).model_dump_json(),
    "seeds": lambda n, _: [
        x.config.seed for x in MultiSeedLearner.from_dataset(data(), CONFIG, seeds=[n]).learners
    ],
    "shard_bytes": lambda n, path: data().to_memmap(path / "shards", shard_bytes=n).obs_dim,
    "keep": lambda n, path: CheckpointFolder(path, keep=n).keep,
    "threads": lambda n, _: using("auto", threads=n).__enter__(),
}
INTEGERS: dict[str, Callable[[int], Any]] = {
    "np.int64": np.int64,
    "np.uint8": np.uint8,
    "0-d array": np.array,
    "0-d tensor": torch.tensor,
}
NO_INTEGERS = [True, np.True_, torch.tensor(True), np.array([2]), torch.tensor([2]), 2.5, "2"]
OF_FLOATS: dict[str, Callable[[Any], Any]] = {
    "progress": lambda x: GTPLoss().draw(
        FlowMapActor(3, 2).times, torch.zeros(4, 2), progress=x, generator=torch.Generator()
    )[0],
    "with_best_episodes": lambda x: data().with_best_episodes(x).transitions.obs,
    "split_episodes": lambda x: data().split_episodes(x)[0].transitions.obs,
    "with_return_weighting": lambda x: data().with_return_weighting(x).transitions.obs,
    "gamma": lambda x: data(x).gamma,
    "a config": lambda x: AdvantageWeighterConfig(eta=x).model_dump_json(),
}
FLOATS: dict[str, Callable[[float], Any]] = {
    "np.float32": np.float32,
    "np.float64": np.float64,
    "0-d array": np.array,
    "0-d tensor": torch.tensor,
}
NO_FLOATS = [True, np.True_, torch.tensor(True), "0.5", None, 0.5j, np.array([0.5]), np.nan]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple | list):
        return all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else type(a) is type(b) and a == b


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("name", OF_INTEGERS)
def test_integers_of_numpy_and_torch_are_integers(name: str, kind: str, tmp_path: Path) -> None:
    call = OF_INTEGERS[name]
    expected = call(2, tmp_path / "plain")
    assert same(call(INTEGERS[kind](2), tmp_path / "other"), expected)


NOT_CHECKED = "seed", "stream", "threads", "a float field"


@pytest.mark.parametrize("value", NO_INTEGERS, ids=repr)
@pytest.mark.parametrize("name", [name for name in OF_INTEGERS if name not in NOT_CHECKED])
def test_what_is_no_integer_is_refused(name: str, value: object, tmp_path: Path) -> None:
    with pytest.raises((ValueError, GTPError), match=r"integer|valid"):
        OF_INTEGERS[name](value, tmp_path)


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("name", OF_FLOATS)
def test_floats_of_numpy_and_torch_are_floats(name: str, kind: str) -> None:
    assert same(OF_FLOATS[name](FLOATS[kind](0.5)), OF_FLOATS[name](0.5))


@pytest.mark.parametrize("value", NO_FLOATS, ids=repr)
@pytest.mark.parametrize("name", OF_FLOATS)
def test_what_is_no_number_is_refused(name: str, value: object) -> None:
    with pytest.raises((ValueError, GTPError), match=r"expected|valid|finite|no real"):
        OF_FLOATS[name](value)


@pytest.mark.parametrize(
    "value",
    [
        np.ma.array(5, mask=True),
        torch.tensor(5, device="meta"),
        torch.tensor(0.5, device="meta"),
    ],
)
def test_what_holds_no_number_is_none(value: Any) -> None:
    assert as_int(value) is None
    for field in ("total_updates", "gamma", "normalize_obs"):
        with pytest.raises(ValidationError):
            GTPLearnerConfig(**{field: value})


def test_plain_numbers_come_back() -> None:
    assert as_int(3) == as_int(np.int8(3)) == as_int(torch.tensor(3)) == 3
    assert as_int(2.0) is as_int(None) is as_int(np.float64(2)) is None
    assert as_float(3) == as_float(np.int64(3)) == as_float(torch.tensor(3)) == 3.0
    assert type(as_float(np.float64(0.5))) is float
    assert as_float(10**400) is as_float([0.5]) is None
