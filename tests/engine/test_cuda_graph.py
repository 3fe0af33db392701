"""Recorded updates: everything around the graph, which alone needs a GPU.

Kernels are interpreted, which is slow: networks and minibatches are as small as they can be.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from gtp_policy import (
    Curriculum,
    ExpectileBaseline,
    GTPConfig,
    GTPLearner,
    LinearQGuidance,
    MultiSeedLearner,
    OfflineDataset,
    PolicyBaseline,
    Transitions,
    presets,
)
from gtp_policy._engine import choice
from gtp_policy._engine.adam import Optimizer
from gtp_policy._engine.by_hand import ByHand
from gtp_policy._engine.cuda_graph import GraphedUpdate
from gtp_policy.algorithm import minibatch
from gtp_policy.errors import DeviceError
from gtp_policy.kernels import explain, update_triton, using
from tests.interpreted import needs_triton, recording

pytestmark = needs_triton
OBS, ACT, ROWS = 2, 2, 5


def make_config(preset: str = "paper_loss", critic: bool = True, **learner: Any) -> GTPConfig:
    config = presets.get(preset)
    run = {"total_updates": 40, "ema_rate": 0.5, "lr_schedule": "cosine", "max_grad_norm": 1.0}
    return config.replace(
        actor=config.actor.replace(hidden=(6,), time_dim=4, steps=min(config.actor.steps, 2)),
        critic=config.critic.replace(hidden=(6,)) if critic else None,
        # The grid is refined within the first ten updates; the default draws its times off it.
        loss=config.loss.replace(curriculum=Curriculum(start=4, end=16))
        if preset != "gtp"
        else config.loss,
        learner=config.learner.replace(**{"baseline": PolicyBaseline(samples=1)} | run | learner),
    )


def make_dataset(seed: int = 0) -> OfflineDataset:
    g = torch.Generator().manual_seed(seed)
    return OfflineDataset.from_arrays(
        obs=torch.randn(40, OBS, generator=g),
        action=torch.rand(40, ACT, generator=g) * 2 - 1,
        reward=torch.randn(40, generator=g),
        next_obs=torch.randn(40, OBS, generator=g),
        terminated=torch.zeros(40),
        truncated=torch.ones(40),
        low=[-1.0] * ACT,
        high=[1.0] * ACT,
    )


def distance(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((p - q).detach().abs().max()) for p, q in pairs)


@pytest.fixture(scope="module")
def recorded() -> Iterator[list[int]]:
    with recording() as seen:
        yield seen


@pytest.fixture
def seen(recorded: list[int]) -> list[int]:
    recorded.clear()
    return recorded


CASES: dict[str, dict[str, Any]] = {
    "paper": {},
    # What is left open goes by the length of the run: rates, and when guidance starts (after two).
    "default": {"preset": "gtp", "total_updates": 12, "ema_rate": None, "max_grad_norm": None},
    "one step": {"preset": "one_step"},
    "cloning": {"critic": False},
    "max-Q, a value": {"backup_actions": 2, "baseline": ExpectileBaseline(hidden=(4,))},
    "guided through a jump": {"guidance": LinearQGuidance(scale=0.5, steps=1, weighted=True)},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_launches_are_the_updates_of_the_reference(case: str, seen: list[int]) -> None:
    """Draws, minibatches, grids and rates included: the reference draws them in other ways."""
    dataset, config = make_dataset(), make_config(**CASES[case])
    learner, reference = (GTPLearner.from_dataset(dataset, config) for _ in range(2))
    assert "recorded as a CUDA graph" in explain(learner)
    assert learner.updates_per_launch(ROWS) == 2
    reported = learner.update_from(dataset, 5, batch_size=ROWS).to_floats()
    assert seen == [2, 2, 1]
    with using("reference"):
        for _ in range(5):
            expected = reference.update(minibatch(reference, dataset, ROWS)).to_floats()
    assert learner.updates == 5
    assert reported == pytest.approx(expected, rel=2e-3, abs=1e-4)
    assert distance(learner, reference) <= 1e-5
    # A minibatch that is given takes the same draws.
    batch = dataset.take(torch.arange(ROWS))
    reported = learner.update(batch).to_floats()
    with using("reference"):
        expected = reference.update(batch).to_floats()
    assert reported == pytest.approx(expected, rel=2e-3, abs=1e-4)
    assert distance(learner, reference) <= 1e-5
    assert seen == [2, 2, 1, 1]


@pytest.mark.slow
def test_how_updates_are_divided_among_calls_does_not_matter(seen: list[int]) -> None:
    dataset = make_dataset()
    one, other = (GTPLearner.from_dataset(dataset, make_config()) for _ in range(2))
    one.update_from(dataset, 4, batch_size=ROWS)
    for _ in range(4):
        other.update_from(dataset, batch_size=ROWS)
    assert seen == [2, 2, 1, 1, 1, 1]
    assert distance(one, other) == 0


@pytest.mark.slow
def test_seeds_are_recorded_side_by_side(seen: list[int]) -> None:
    dataset = make_dataset()
    several = MultiSeedLearner.from_dataset(dataset, make_config(), seeds=(0, 3))
    alone = GTPLearner.from_dataset(dataset, make_config(seed=3))
    several.update_from(dataset, 2, batch_size=ROWS)
    assert seen == [2]
    alone.update_from(dataset, 2, batch_size=ROWS)
    assert distance(several.learners[1], alone) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("turn", ["guidance_start", "critic_updates"])
def test_guidance_begins_and_the_critic_rests_between_launches(seen: list[int], turn: str) -> None:
    dataset, config = make_dataset(), make_config(**{turn: 3})
    learner, reference = (GTPLearner.from_dataset(dataset, config) for _ in range(2))
    learner.update_from(dataset, 5, batch_size=ROWS)
    assert seen == [2, 1, 2]
    with using("reference"):
        for _ in range(5):
            reference.update(minibatch(reference, dataset, ROWS))
    assert distance(learner, reference) <= 1e-5


@pytest.mark.slow
def test_a_loaded_state_and_another_dataset_are_recorded_anew(
    seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moments may lie where other memory is now, and so may rows."""
    records, record = [], GraphedUpdate.record_graph
    monkeypatch.setattr(
        GraphedUpdate, "record_graph", lambda update: records.append(1) or record(update)
    )
    first, second = make_dataset(), make_dataset(1)
    learner, reference = (GTPLearner.from_dataset(first, make_config()) for _ in range(2))
    for step, dataset in enumerate((first, first, first, second, second)):
        if step == 2:
            for x in (learner, reference):
                x.load_state_dict(copy.deepcopy(x.state_dict()))
        learner.update_from(dataset, batch_size=ROWS)
        with using("reference"):
            reference.update(minibatch(reference, dataset, ROWS))
        assert len(records) == (1, 1, 2, 3, 3)[step]
    assert distance(learner, reference) <= 1e-5


def test_a_schedule_of_a_users_own_counts(seen: list[int]) -> None:
    def factory(name: str, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)

    dataset = make_dataset()
    learner, reference = (
        GTPLearner.from_dataset(dataset, make_config(), optimizer=factory) for _ in range(2)
    )
    for step in range(2):
        for x in (learner, reference):
            x.optimizers["actor"].param_groups[0]["lr"] = 1e-2 / (step + 1)
        learner.update_from(dataset, batch_size=ROWS)
        with using("reference"):
            reference.update(minibatch(reference, dataset, ROWS))
    assert seen == [1, 1]
    assert distance(learner, reference) <= 1e-5


class OwnSampling(OfflineDataset):
    """A dataset that draws minibatches in its own way."""

    def sample(self, batch_size: int, *, generator: torch.Generator) -> Transitions:
        del generator
        return self.transitions.map(lambda field: field[:batch_size])


def test_a_dataset_with_custom_sampling_draws_every_minibatch(seen: list[int]) -> None:
    dataset = make_dataset()
    dataset.__class__ = OwnSampling
    learner, reference = (GTPLearner.from_dataset(dataset, make_config()) for _ in range(2))
    learner.update_from(dataset, 2, batch_size=ROWS)
    assert seen == [1, 1]
    with using("reference"):
        for _ in range(2):
            reference.update(dataset.take(torch.arange(ROWS)))
    assert distance(learner, reference) <= 1e-5


# --- what fails


def fail(error: Exception) -> Callable[..., Any]:
    def failing(*_: object, **__: object) -> Any:
        raise error

    return failing


def both(learner: GTPLearner, reference: GTPLearner, dataset: OfflineDataset, n: int) -> None:
    learner.update_from(dataset, n, batch_size=ROWS)
    with using("reference"):
        for _ in range(n):
            reference.update(minibatch(reference, dataset, ROWS))


@pytest.mark.parametrize("stage", ["recording", "compiling"])
def test_what_fails_is_said_once_and_costs_no_update(
    stage: str, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learner goes on as the reference does: a trial that fails half-way is taken back."""
    if stage == "recording":
        reason = "operation not permitted when stream is capturing"
        monkeypatch.setattr(GraphedUpdate, "record_graph", fail(RuntimeError(reason)))
    else:
        reason = "PTXAS error: Internal Triton PTX codegen error"
        monkeypatch.setattr(update_triton, "flow_loss", fail(Exception(reason)))
    dataset = make_dataset()
    learner, reference = (GTPLearner.from_dataset(dataset, make_config()) for _ in range(2))
    with pytest.warns(RuntimeWarning, match=f"not recorded as a CUDA graph: .*{reason}"):
        both(learner, reference, dataset, 3)
    both(learner, reference, dataset, 1)  # where a second warning would be an error
    assert seen == []
    assert learner.updates == 4
    assert learner.broken is None
    assert distance(learner, reference) <= 1e-5
    assert learner.updates_per_launch(ROWS) == 1
    assert reason in learner.explain()[0]
    assert learner._dispatcher._fast.by_triton == (stage == "recording")


def test_no_memory_left_is_a_typed_error_and_breaks_nothing(
    seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset()
    learner = GTPLearner.from_dataset(dataset, make_config())
    before = copy.deepcopy(learner)
    monkeypatch.setattr(choice, "_on_cpu", lambda learner: False)
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with monkeypatch.context() as patch:
        patch.setattr(update_triton, "flow_loss", fail(error))
        with pytest.raises(DeviceError, match=r"no memory left .*allocate 2.00 GiB.*about 1 MiB"):
            learner.update_from(dataset, 2, batch_size=ROWS)
    assert learner.broken is None
    assert learner.updates == 0
    assert distance(learner, before) == 0
    learner.update_from(dataset, 2, batch_size=ROWS)  # memory is there again
    assert seen == [2]


def test_a_device_that_was_taken_is_a_typed_error(
    seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset()
    learner = GTPLearner.from_dataset(dataset, make_config())
    learner.update_from(dataset, batch_size=ROWS)
    monkeypatch.setattr(choice, "_on_cpu", lambda learner: False)
    taken = RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nmore")
    monkeypatch.setattr(GraphedUpdate, "replay", fail(taken))
    with pytest.raises(DeviceError, match="busy or unavailable, expected a device that"):
        learner.update_from(dataset, batch_size=ROWS)
    assert learner.broken is not None  # half of the update may have been done
    assert learner.updates == 1


def test_another_error_in_a_launch_is_not_counted(
    seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset()
    learner = GTPLearner.from_dataset(dataset, make_config())
    learner.update_from(dataset, 2, batch_size=ROWS)
    monkeypatch.setattr(GraphedUpdate, "replay", fail(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        learner.update_from(dataset, 2, batch_size=ROWS)
    assert learner.updates == 2
    assert "ZeroDivisionError" in str(learner.broken)


def test_recording_takes_one_thread_at_a_time(seen: list[int], monkeypatch: Any) -> None:
    from gtp_policy._engine import cuda_graph

    held = []
    record = GraphedUpdate.record_graph

    def noted(update: GraphedUpdate) -> Any:
        held.append(cuda_graph._RECORDING.locked())
        return record(update)

    monkeypatch.setattr(GraphedUpdate, "record_graph", noted)
    dataset = make_dataset()
    GTPLearner.from_dataset(dataset, make_config(critic=False)).update_from(dataset, batch_size=3)
    assert held == [True]
    assert not cuda_graph._RECORDING.locked()


def test_a_changed_precision_of_products_is_recorded_anew(
    seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_on_cpu", lambda learner: False)
    dataset, built = make_dataset(), []
    build = choice._build
    monkeypatch.setattr(choice, "_build", lambda *a, **k: built.append(1) or build(*a, **k))
    learner = GTPLearner.from_dataset(dataset, make_config(critic=False))
    learner.update_from(dataset, batch_size=3)
    learner.update_from(dataset, batch_size=3)
    assert built == [1]
    try:
        torch.set_float32_matmul_precision("high")
        learner.update_from(dataset, batch_size=3)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert built == [1, 1]


def test_a_launch_looks_once_where_moments_are(
    seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, looks, tensors = make_dataset(), [], Optimizer.tensors
    learner = GTPLearner.from_dataset(dataset, make_config(critic=False))
    learner.update_from(dataset, batch_size=3)
    monkeypatch.setattr(Optimizer, "tensors", lambda self: looks.append(1) or tensors(self))
    learner.update_from(dataset, batch_size=3)
    assert looks == [1]


def test_a_schedule_builds_nothing_anew(seen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    built, init = [], ByHand.__init__
    monkeypatch.setattr(
        ByHand, "__init__", lambda self, *a, **k: built.append(1) or init(self, *a, **k)
    )
    dataset = make_dataset()
    learner = GTPLearner.from_dataset(dataset, make_config(critic=False))
    learner.update_from(dataset, 12, batch_size=3)
    assert built == [1]
