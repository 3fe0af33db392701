"""What holds to the last bit, and what up to rounding, whatever processor computes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from gtp_policy import (
    Curriculum,
    ExpectileBaseline,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    GTPLossConfig,
    OfflineDataset,
    QEnsembleConfig,
    load_checkpoint,
    save_checkpoint,
)
from gtp_policy.kernels import using
from gtp_policy.kernels.switch import EngineName
from gtp_policy.samplers import JumpSampler, OdeSampler, Sampler
from tests.cpus import NUMERICAL, OLDEST
from tests.uneven import uneven_products

ROOT = Path(__file__).parents[1]
OBS, ACT, BATCH, UPDATES = 3, 2, 18, 8
ENGINES: tuple[EngineName, ...] = ("auto", "torch", "reference")
SAMPLERS: list[Sampler] = [JumpSampler(), JumpSampler(gamma=0.5), OdeSampler(method="heun")]


@pytest.fixture(autouse=True)
def _uneven() -> Iterator[None]:
    with uneven_products():
        yield


def make_dataset() -> OfflineDataset:
    rng = np.random.default_rng(1)
    return OfflineDataset.from_arrays(
        obs=rng.normal(3.0, 2.0, size=(64, OBS)),
        action=rng.uniform(-0.6, 0.6, size=(64, ACT)),
        reward=rng.normal(size=64),
        next_obs=rng.normal(3.0, 2.0, size=(64, OBS)),
        terminated=np.arange(64) % 8 == 7,
        truncated=np.arange(64) % 16 == 3,
        low=[-1.0] * ACT,
        high=[1.0] * ACT,
    )


def make_learner(sampler: Sampler | None = None, **choices: Any) -> GTPLearner:
    fixed = {"total_updates": 40, "ema_rate": 0.1, "eval_candidates": 4, "max_grad_norm": 1.0}
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=(16, 16), steps=3, sampler=sampler or JumpSampler()),
        critic=QEnsembleConfig(hidden=(16,)),
        loss=GTPLossConfig(curriculum=Curriculum(start=4, end=8)),
        learner=GTPLearnerConfig(**fixed | choices),
    )
    return GTPLearner.from_dataset(make_dataset(), config)


def train(learner: GTPLearner, until: int = UPDATES) -> GTPLearner:
    dataset = make_dataset()
    while learner.updates < until:
        learner.update(dataset.sample(BATCH, generator=learner.stream("batch")))
    return learner


def observations(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, OBS, generator=torch.Generator().manual_seed(seed))


def test_the_place_of_a_row_shows_in_its_last_bit() -> None:
    """Otherwise the tests below, and all tests with ``-p tests.uneven``, would see nothing."""
    rows, weight = observations(1).expand(20, -1), observations(50, seed=1)
    product = functional.linear(rows, weight)
    differs = (product != product[0]).any(1)
    assert 0 < differs.sum() < 20
    assert not torch.equal(functional.linear(rows[:19], weight), product[:19])
    torch.testing.assert_close(product, product[:1].expand(20, -1))
    assert torch.equal(functional.linear(rows, weight), product)
    exact = functional.linear(torch.ones(7, 3), torch.tensor([[1.0, 2.0, 4.0]]))
    assert exact.flatten().tolist() == [7.0] * 7


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("candidates", [1, 4])
def test_equal_calls_give_equal_bits(engine: EngineName, sampler: Sampler, candidates: int) -> None:
    learner = make_learner(sampler)

    def act(rows: int) -> Tensor:
        with using(engine):  # a thread chooses for itself
            return learner.act(observations(rows), deterministic=True, candidates=candidates)

    sizes = [1, 2, 5, 8, 30, 70]
    first = [act(rows) for rows in sizes]
    with ThreadPoolExecutor(2) as pool:
        others = [*map(act, sizes), *pool.map(act, sizes)]
    assert all(map(torch.equal, first * 2, others))


@given(
    rows=st.integers(1, 40),
    before=st.integers(0, 9),
    after=st.integers(0, 9),
    candidates=st.sampled_from([1, 4]),
    sampler=st.sampled_from(SAMPLERS),
    engine=st.sampled_from(ENGINES),
)
def test_an_observation_gets_its_action_in_any_batch_up_to_rounding(
    rows: int, before: int, after: int, candidates: int, sampler: Sampler, engine: EngineName
) -> None:
    learner, obs = make_learner(sampler), observations(rows)
    padded = torch.cat([observations(before, 2), obs, observations(after, 3)])
    with using(engine):
        alone, among_others = (
            learner.act(x, deterministic=True, candidates=candidates) for x in (obs, padded)
        )
    got = among_others[before : before + rows]
    torch.testing.assert_close(got, alone, rtol=0, atol=2e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_equal_rows_get_equal_actions_up_to_rounding(engine: EngineName) -> None:
    learner, obs = make_learner(), observations(1).expand(70, -1)
    with using(engine):
        action = learner.act(obs, deterministic=True)
    torch.testing.assert_close(action, action[:1].expand(70, -1), rtol=0, atol=2e-6)


def tensors(learner: GTPLearner) -> dict[str, Tensor]:
    """Every parameter, buffer and moment by name."""
    found = {n: t for n, t in learner.state_dict().items() if isinstance(t, Tensor)}
    for part, optimizer in learner.optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            found |= {f"{part}/{index}/{key}": value for key, value in state.items()}
    return found


def differing(a: GTPLearner, b: GTPLearner) -> list[str]:
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("baseline", [{}, {"baseline": ExpectileBaseline(hidden=(8,))}])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
    tmp_path: Path, engine: EngineName, baseline: dict[str, Any]
) -> None:
    with using(engine):
        whole = train(make_learner(**baseline))
        path = save_checkpoint(tmp_path / "half", train(make_learner(**baseline), UPDATES // 2))
        resumed = train(load_checkpoint(path).learner)
    assert differing(whole, resumed) == []


# --- other processors


def test_the_tests_that_other_processors_run_exist() -> None:
    assert [p for p in NUMERICAL if not (ROOT / p.partition("::")[0]).exists()] == []


CONTINUE = """
import sys
import torch
from gtp_policy import load_checkpoint, save_checkpoint
from tests.test_rounding import make_learner, train
torch.set_num_threads(1)
source, folder, until = sys.argv[1:]
learner = load_checkpoint(source).learner if source else make_learner()
save_checkpoint(f"{folder}/loaded", learner)
save_checkpoint(f"{folder}/trained", train(learner, int(until)))
"""


def train_elsewhere(source: Path | str, folder: Path, until: int) -> None:
    """Trains in a process that computes as another processor would; writes two checkpoints."""
    command = [sys.executable, "-c", CONTINUE, str(source), str(folder), str(until)]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | OLDEST, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_run_goes_on_on_another_processor(tmp_path: Path) -> None:
    there, here, half = tmp_path / "there", tmp_path / "here", UPDATES // 2
    there.mkdir()
    here.mkdir()
    whole = train(make_learner())
    train_elsewhere("", there, half)
    finished_here = train(load_checkpoint(there / "trained").learner)
    begun_here = train(make_learner(), half)
    train_elsewhere(save_checkpoint(here / "half", begun_here), here, UPDATES)
    finished_there = load_checkpoint(here / "trained").learner
    assert differing(load_checkpoint(here / "loaded").learner, begun_here) == []
    for learner in (finished_here, finished_there):
        assert learner.updates == whole.updates == UPDATES
        # Rounding apart; one update moves a parameter by about its learning rate, 3e-4.
        for name, value in tensors(whole).items():
            torch.testing.assert_close(tensors(learner)[name], value, rtol=1e-5, atol=2e-6)
