"""What strategies promise, and that they reach the corners they were written for."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import find, given
from hypothesis import strategies as st

from gtp_policy import Transitions
from gtp_policy.actor import FlowMapActor, FlowMapActorConfig
from gtp_policy.testing import (
    Probe,
    actions,
    actors,
    advantages,
    configs,
    flow_times,
    generators,
    observations,
    probes,
    schedules,
    transitions,
)
from gtp_policy.times import KarrasTimes, Times, TimeSchedule, UniformTimes


def ordered(times: Times) -> bool:
    return bool(((times.t > times.u) & (times.u > times.s) & (times.s >= 0)).all())


@given(schedules().flatmap(lambda s: st.tuples(st.just(s), flow_times(s))))
def test_times_are_ordered_and_in_range(case: tuple[TimeSchedule, Times]) -> None:
    schedule, times = case
    assert ordered(times)
    assert (times.t <= schedule.t_max).all()
    assert times.t.shape == times.u.shape == times.s.shape


@given(flow_times(KarrasTimes(t_min=0.002, t_max=80.0), dtype=torch.float32))
def test_times_stay_apart_in_float32(times: Times) -> None:
    assert times.t.dtype == torch.float32
    assert ordered(times)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [KarrasTimes(t_max=80.0), UniformTimes(t_max=2.0)], ids=str)
@pytest.mark.parametrize(
    "reached",
    [
        lambda times, t_max: times.s == 0,
        lambda times, t_max: times.t == t_max,
        lambda times, t_max: times.t < 1e-3 * t_max,
        lambda times, t_max: times.s > 0.1 * t_max,
        lambda times, t_max: times.t - times.u < 1e-4 * times.t,
        lambda times, t_max: times.t > 10 * times.u,
    ],
    ids=["s=0", "t=t_max", "small t", "large s", "close u", "distant u"],
)
def test_times_reach_both_scales_and_both_ends(
    schedule: TimeSchedule, reached: Callable[[Times, float], torch.Tensor]
) -> None:
    found = find(flow_times(schedule, batch=1), lambda times: bool(reached(times, schedule.t_max)))
    assert ordered(found)


@given(observations(3), actions(2, dtype=torch.float32), observations(1, batch=5))
def test_observations_and_actions_have_shape_dtype_and_range(
    obs: torch.Tensor, action: torch.Tensor, five: torch.Tensor
) -> None:
    assert (obs.shape[1], obs.dtype) == (3, torch.float64)
    assert 1 <= obs.shape[0] <= 4
    assert obs.abs().max() <= 10
    assert (action.shape[1], action.dtype) == (2, torch.float32)
    assert action.abs().max() <= 1
    assert five.shape == (5, 1)


@given(transitions(3, 2, batch=st.integers(2, 6)))
def test_transitions_are_consistent(batch: Transitions) -> None:
    assert batch.check(obs_dim=3, action_dim=2) is batch
    assert 2 <= len(batch.obs) <= 6
    assert ((batch.discount == 0) | ((batch.discount >= 0.9) & (batch.discount <= 1))).all()
    assert {v.dtype for v in batch.present()} == {torch.float32}


def test_transitions_terminate_and_go_on() -> None:
    batch = find(transitions(1, 1, batch=2), lambda b: bool(b.discount.min() < b.discount.max()))
    assert batch.discount.min() == 0


@given(advantages())
def test_advantages_are_finite_vectors(advantage: torch.Tensor) -> None:
    assert advantage.ndim == 1
    assert 1 <= len(advantage) <= 8
    assert advantage.dtype == torch.float32
    assert advantage.isfinite().all()


@given(advantages(nan=True))
def test_advantages_with_nan_have_one(advantage: torch.Tensor) -> None:
    assert advantage.isnan().sum() == 1


TINY = torch.finfo(torch.float32).tiny


@pytest.mark.parametrize(
    "reached",
    [
        lambda a: len(a) == 1,
        lambda a: len(a) > 2 and bool((a == a[0]).all()) and bool(a[0] > 0),
        lambda a: bool((a == 1e30).any()),
        lambda a: bool((a == -1e30).any()),
        lambda a: bool(((a.abs() > 0) & (a.abs() < TINY)).any()),
        lambda a: len(a) > 2 and bool(a.min() > 1) and bool(0 < a.std() < 1e-2 * a.min()),
        lambda a: bool(a.min() < 0) and bool(a.max() > 0),
    ],
    ids=["single", "constant", "1e30", "-1e30", "subnormal", "nearly constant", "both signs"],
)
def test_advantages_reach_what_breaks_the_printed_formula(
    reached: Callable[[torch.Tensor], bool],
) -> None:
    assert reached(find(advantages(), reached))


@given(generators())
def test_generators_start_at_their_seed(generator: torch.Generator) -> None:
    again = torch.Generator().manual_seed(generator.initial_seed())
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=again))


@given(probes(3, 2, KarrasTimes(t_max=5.0), batch=3, dtype=torch.float32))
def test_probes_are_noisy_actions(probe: Probe) -> None:
    assert (probe.obs.shape, probe.x.shape, probe.times.t.shape) == ((3, 3), (3, 2), (3,))
    assert probe.x.dtype == probe.obs.dtype == probe.times.s.dtype == torch.float32
    assert ordered(probe.times)
    assert (probe.x.abs() <= 1 + 4 * probe.times.t.unsqueeze(-1) + 1e-5).all()


@given(configs())
def test_configs_survive_json(config: FlowMapActorConfig) -> None:
    assert FlowMapActorConfig.model_validate_json(config.model_dump_json()) == config


@given(actors(obs_dim=st.integers(1, 4), action_dim=1))
def test_actors_have_random_parameters(actor: FlowMapActor) -> None:
    assert actor.action_dim == 1
    assert 1 <= actor.obs_dim <= 4
    for name, parameter in actor.named_parameters():
        assert parameter.dtype == torch.float64
        assert (parameter != 0).all(), name


def test_the_kit_names_the_extra_when_hypothesis_is_missing() -> None:
    code = """
import sys
sys.modules["hypothesis"] = None
from gtp_policy.errors import MissingDependencyError
try:
    import gtp_policy.testing
except MissingDependencyError as error:
    assert isinstance(error.__cause__, ImportError)
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == (
        "gtp_policy.testing needs hypothesis: got no installed package of that name, expected the "
        "extra `testing`. In a checkout of gtp-policy, run: pip install '.[testing]'"
    )
