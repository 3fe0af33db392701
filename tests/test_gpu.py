"""Updates and actions on a CUDA device, against the reference there and copies on the CPU."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from gtp_policy import (
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    MultiSeedLearner,
    OfflineDataset,
    PolicyBaseline,
    Transitions,
)
from gtp_policy.kernels import explain, using

# Nothing is imported here but torch, pytest and the core: no host, no plugin, no conftest.py.
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
OBS, ACT, ROWS = 11, 3, 256
# A graph is recorded in the first update, after trials that are taken back.
UPDATES = 8


def make_batch(seed: int) -> Transitions:
    g = torch.Generator().manual_seed(seed)
    return Transitions(
        obs=torch.randn(ROWS, OBS, generator=g),
        action=torch.rand(ROWS, ACT, generator=g) * 2 - 1,
        reward=torch.randn(ROWS, generator=g),
        next_obs=torch.randn(ROWS, OBS, generator=g),
        discount=torch.full((ROWS,), 0.99),
    ).to("cuda")


def make_config(seed: int = 0, critic: bool = True) -> GTPConfig:
    learner = GTPLearnerConfig(
        baseline=PolicyBaseline(samples=2), max_grad_norm=1.0, lr_schedule="cosine", seed=seed
    )
    config = GTPConfig(learner=learner)
    return config if critic else config.replace(critic=None)


def distance(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((p - q).detach().abs().max()) for p, q in pairs)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Makes every operator that waits for the device an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("critic", [True, False])
def test_recorded_updates_are_those_of_the_reference(critic: bool) -> None:
    recorded = GTPLearner.build(OBS, ACT, make_config(critic=critic), device="cuda")
    reference = GTPLearner.build(OBS, ACT, make_config(critic=critic), device="cuda")
    assert "recorded as a CUDA graph" in explain(recorded)
    for step in range(UPDATES):
        batch = make_batch(step)
        reported = recorded.update(batch).to_floats()
        with using("reference"):
            expected = reference.update(batch).to_floats()
        assert reported == pytest.approx(expected, rel=2e-2, abs=1e-3)
        if step == 1:
            assert distance(recorded, reference) < 2e-4
    assert distance(recorded, reference) < 5e-3


def test_an_update_never_waits_for_the_device() -> None:
    learner = GTPLearner.build(OBS, ACT, make_config(), device="cuda")
    batch = make_batch(0)
    for _ in range(UPDATES):  # warm-up, recording
        learner.update(batch)
    with no_waiting():
        for _ in range(3):
            learner.update(batch)


@pytest.mark.parametrize("seeds", [1, 2])
def test_several_updates_in_one_launch_are_those_of_a_loop(seeds: int) -> None:
    rows = make_batch(0).to("cpu")
    dataset = OfflineDataset.from_arrays(
        obs=rows.obs,
        action=rows.action,
        reward=rows.reward,
        next_obs=rows.next_obs,
        terminated=rows.discount == 0,
        truncated=rows.discount != 0,
        low=[-1.0] * ACT,
        high=[1.0] * ACT,
    ).to("cuda")
    blocks, single = (
        MultiSeedLearner.from_dataset(dataset, make_config(), seeds=range(seeds)) for _ in range(2)
    )
    blocks.update_from(dataset, 4 * 16)  # warm-up, recording
    with no_waiting():
        blocks.update_from(dataset, 16)
    for _ in range(5 * 16):
        single.update(single.sample(dataset, 256))
    for one, own in zip(blocks.learners, single.learners, strict=True):
        assert one.updates == own.updates == 80
        assert distance(one, own) < 5e-3


def test_a_loaded_state_and_another_batch_size_are_seen() -> None:
    learner = GTPLearner.build(OBS, ACT, make_config(), device="cuda")
    twin = GTPLearner.build(OBS, ACT, make_config(), device="cuda")
    for step in range(UPDATES):
        learner.update(make_batch(step))
    twin.load_state_dict(copy.deepcopy(learner.state_dict()))
    learner.load_state_dict(copy.deepcopy(learner.state_dict()))
    half = make_batch(99).map(lambda x: x[: ROWS // 2].contiguous())
    for batch in [half, *(make_batch(step) for step in range(UPDATES))]:
        learner.update(batch)
        twin.update(batch)
    assert distance(learner, twin) < 1e-5


def test_seeds_side_by_side_are_those_alone() -> None:
    alone = [GTPLearner.build(OBS, ACT, make_config(seed), device="cuda") for seed in (0, 1, 2)]
    several = MultiSeedLearner(
        [GTPLearner.build(OBS, ACT, make_config(seed), device="cuda") for seed in (0, 1, 2)]
    )
    for step in range(UPDATES):
        batches = [make_batch(10 * seed + step) for seed in (0, 1, 2)]
        several.update(batches)
        for learner, batch in zip(alone, batches, strict=True):
            learner.update(batch)
        if step == 1:
            for a, b in zip(several.learners, alone, strict=True):
                assert distance(a, b) < 2e-4
    for a, b in zip(several.learners, alone, strict=True):
        assert distance(a, b) < 5e-3


@pytest.mark.parametrize("rows", [1, 100])
def test_observations_on_the_cpu_are_answered_there(rows: int) -> None:
    learner = GTPLearner.build(OBS, ACT, make_config(), device="cuda")
    obs = torch.randn(rows, OBS, generator=torch.Generator().manual_seed(0))
    for step in range(UPDATES):  # replays count as writes: the copy follows
        learner.update(make_batch(step))
        here = learner.act(obs, candidates=1, deterministic=True)
        there = learner.act(obs.cuda(), candidates=1, deterministic=True)
        assert here.device.type == "cpu"
        torch.testing.assert_close(here, there.cpu(), atol=1e-4, rtol=0)
