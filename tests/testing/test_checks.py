"""Every check passes on what is right and fails on a flow map that was broken for it."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from gtp_policy.functional import FlowMap, flow_map
from gtp_policy.testing import (
    CheckFailure,
    GaussianFlowMap,
    PointMassFlowMap,
    Probe,
    actors,
    check_batch_independence,
    check_between,
    check_boundary,
    check_denoiser_is_endpoint,
    check_deterministic,
    check_finite,
    check_finite_gradients,
    check_flow_map,
    check_identity,
    check_line,
    check_no_inplace,
    check_semigroup,
    check_shape_dtype_device,
    draw_probe,
    parametrize_with_checks,
    probes,
)
from gtp_policy.testing.suite import _due
from gtp_policy.times import KarrasTimes, Times

OBS_DIM, ACTION_DIM = 3, 2


class Sound(nn.Module):
    """A small network in the residual form; every defect below departs from it."""

    times = KarrasTimes(t_min=0.002, t_max=5.0)

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        shape = (OBS_DIM + ACTION_DIM + 2, ACTION_DIM)
        self.weight = nn.Parameter(torch.randn(shape, generator=generator))
        self.bias = nn.Parameter(torch.randn(ACTION_DIM, generator=generator))

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        inputs = torch.cat([obs, x, t.unsqueeze(-1), s.unsqueeze(-1)], -1)
        return torch.tanh(inputs @ self.weight.to(x) + self.bias.to(x))

    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return flow_map(x, self.endpoint(obs, x, t, s), t, s)


class WritesToItsInput(Sound):
    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        result = super().endpoint(obs, x, t, s)
        obs.mul_(0.5)
        return result


class WritesToTheTime(Sound):
    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return flow_map(x, self.endpoint(obs, x, t, s), t, s.add_(0.0).mul_(0.9))


class DropsADimension(Sound):
    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return super().endpoint(obs, x, t, s)[:, 0]

    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return flow_map(x, super().endpoint(obs, x, t, s), t, s)


class WidensTheDtype(Sound):
    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return super().forward(obs, x, t, s).double()


class TakesTheLogOfZero(Sound):
    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return super().endpoint(obs, x, t, s) * s.log().unsqueeze(-1)


class DividesByNoTime(Sound):
    """Solves Phi = r x + (1 - r) phi for phi, also where r is 1."""

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        r = (s / t).unsqueeze(-1)
        moved = flow_map(x, super().endpoint(obs, x, t, s), t, s)
        return (moved - r * x) / (1 - r)

    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return flow_map(x, super().endpoint(obs, x, t, s), t, s)


class DrawsNoise(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=self.generator)
        return super().endpoint(obs, x, t, s) + 1e-3 * noise.to(x)


class LeaksAcrossTheBatch(Sound):
    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return super().endpoint(obs, x - 1e-3 * x.mean(0), t, s)


class MovesWithoutTime(Sound):
    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        r = (s / (t + 1e-6)).unsqueeze(-1)
        return r * x + (1 - r) * self.endpoint(obs, x, t, s)


class StopsShortOfZero(Sound):
    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return super().forward(obs, x, t, torch.maximum(s, torch.full_like(s, 0.002)).minimum(t))


class JumpsToTheWrongPlace(Sound):
    """Right at both ends, wrong in between, but still between x and phi."""

    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        r = (s / t).square().unsqueeze(-1)
        return r * x + (1 - r) * self.endpoint(obs, x, t, s)


class Overshoots(Sound):
    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        r = (s / t).unsqueeze(-1)
        return x + (1 - r) * (1 + r) * 1.5 * (self.endpoint(obs, x, t, s) - x)


class ReturnsPhiAsDenoiser(Sound):
    """At s = t, the flow map instead of the endpoint: it looks like a denoiser, and is x."""

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        away = super().endpoint(obs, x, t, s)
        return torch.where((s == t).unsqueeze(-1), flow_map(x, away, t, s), away)


class HasAnUnusedParameter(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.forgotten = nn.Parameter(torch.zeros(1))


class HasAnInfiniteGradient(Sound):
    """Finite values, but the root of |weight| has no derivative where the weight is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(ACTION_DIM))

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return super().endpoint(obs, x, t, s) + self.gain.abs().sqrt().to(x)


def semigroup(flow_map: FlowMap, probe: Probe) -> None:
    check_semigroup(flow_map, probe, atol=1e-4)


MUTANTS: list[tuple[Callable[[FlowMap, Probe], None], type[Sound], str]] = [
    (check_no_inplace, WritesToItsInput, r"writes to its input `obs`"),
    (check_no_inplace, WritesToTheTime, r"The call writes to its input `s`"),
    (check_shape_dtype_device, DropsADimension, r"phi\(x, t, s\) has the wrong shape"),
    (check_shape_dtype_device, WidensTheDtype, r"Phi\(x, t, s\) has the wrong dtype: got .*64"),
    (check_finite, TakesTheLogOfZero, r"Phi\(x, t, s\) is not finite"),
    (check_finite, DividesByNoTime, r"phi\(x, t, t\) is not finite: got \[nan"),
    (check_deterministic, DrawsNoise, r"differs from call to call"),
    (check_batch_independence, LeaksAcrossTheBatch, r"depends on the rest of the batch"),
    (check_identity, MovesWithoutTime, r"Phi\(x, t, t\) is not x: got .* where 0 is allowed"),
    (check_boundary, StopsShortOfZero, r"Phi\(x, t, 0\) is not phi\(x, t, 0\)"),
    (check_line, JumpsToTheWrongPlace, r"is not \(s/t\) x \+ \(1 - s/t\) phi"),
    (check_between, Overshoots, r"is not between x and phi"),
    (check_denoiser_is_endpoint, ReturnsPhiAsDenoiser, r"removes nothing: got x itself"),
    (check_finite_gradients, HasAnUnusedParameter, r"Parameter `forgotten` gets no gradient"),
    (check_finite_gradients, HasAnInfiniteGradient, r"gradient of parameter `gain` is not finite"),
    (semigroup, Sound, r"is not Phi\(x, t, s\)"),
]


@pytest.mark.parametrize(
    ("check", "mutant", "message"),
    MUTANTS,
    ids=[f"{c.__name__}-{m.__name__}" for c, m, _ in MUTANTS],
)
def test_a_check_fails_on_its_mutant(
    check: Callable[[FlowMap, Probe], None], mutant: type[Sound], message: str
) -> None:
    broken = mutant()
    with pytest.raises(CheckFailure, match=message):
        check(broken, draw_probe(broken, OBS_DIM, ACTION_DIM))


def test_every_check_has_a_mutant() -> None:
    due = _due(Sound(), semigroup_atol=None)
    assert set(due.values()) == {check for check, _, _ in MUTANTS} - {semigroup}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_sound_network_passes_all_but_the_semigroup(dtype: torch.dtype) -> None:
    check_flow_map(Sound(), obs_dim=OBS_DIM, action_dim=ACTION_DIM, dtype=dtype)
    with pytest.raises(CheckFailure, match=r"Phi\(Phi\(x, t, u\), u, s\) is not Phi\(x, t, s\)"):
        check_flow_map(
            Sound(), obs_dim=OBS_DIM, action_dim=ACTION_DIM, dtype=dtype, semigroup_atol=1e-3
        )


@pytest.mark.parametrize("mutant", sorted({m for _, m, _ in MUTANTS} - {Sound}, key=str))
def test_the_suite_finds_every_mutant(mutant: type[Sound]) -> None:
    with pytest.raises(CheckFailure):
        check_flow_map(mutant(), obs_dim=OBS_DIM, action_dim=ACTION_DIM)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [MovesWithoutTime, JumpsToTheWrongPlace, LeaksAcrossTheBatch])
def test_checks_find_mutants_on_the_points_of_hypothesis(mutant: type[Sound]) -> None:
    check = next(check for check, m, _ in MUTANTS if m is mutant)

    @given(probes(OBS_DIM, ACTION_DIM, batch=2))
    def run(probe: Probe) -> None:
        check(mutant().double(), probe)

    with pytest.raises(CheckFailure):
        run()


@pytest.mark.slow
@given(actors(OBS_DIM, ACTION_DIM))
def test_actors_with_random_parameters_pass(actor: FlowMap) -> None:
    check_flow_map(actor, obs_dim=OBS_DIM, action_dim=ACTION_DIM)


def test_semigroup_is_checked_only_on_request() -> None:
    class Broken(GaussianFlowMap):
        """Keeps identity and boundary, and breaks the semigroup law."""

        def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return super().endpoint(obs, x, t, t)

    broken = Broken([0.0, 0.0], 0.5)
    check_flow_map(broken, obs_dim=1, action_dim=2)
    with pytest.raises(CheckFailure, match="is not Phi"):
        check_flow_map(broken, obs_dim=1, action_dim=2, semigroup_atol=1e-3)


def test_a_failure_names_the_row_and_the_times() -> None:
    times = Times(torch.tensor([4.0, 2.0]), torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.25]))
    x = torch.tensor([[1.0], [1.0]])

    class MovesInOneRow(PointMassFlowMap):
        def __call__(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return torch.where((t == 2.0).unsqueeze(-1), x + 0.5, x)

    with pytest.raises(CheckFailure) as caught:
        check_identity(MovesInOneRow([0.0]), Probe(torch.zeros(2, 1), x, times))
    assert str(caught.value) == (
        "Phi(x, t, t) is not x: got [1.5], expected [1.0], a difference of 0.5 where 0 is allowed, "
        "in row 1 with t=2, u=1, s=0.25. 1 of 2 rows fail."
    )


def test_a_tolerance_can_be_given() -> None:
    probe = draw_probe(Sound(), OBS_DIM, ACTION_DIM)
    check_identity(MovesWithoutTime(), probe, atol=1.0)
    check_boundary(StopsShortOfZero(), probe, atol=1000.0)
    with pytest.raises(CheckFailure):
        check_boundary(StopsShortOfZero(), probe, atol=0.0)


def test_only_modules_have_gradients_to_check() -> None:
    oracle = PointMassFlowMap([0.5])
    with pytest.raises(TypeError, match="got PointMassFlowMap"):
        check_finite_gradients(oracle, draw_probe(oracle, 3, 1))
    assert "check_finite_gradients" not in _due(oracle, None)


def test_gradients_are_left_alone() -> None:
    sound = Sound()
    check_finite_gradients(sound, draw_probe(sound, OBS_DIM, ACTION_DIM))
    assert sound.weight.grad is None


def test_frozen_parameters_need_no_gradient() -> None:
    network = HasAnUnusedParameter()
    network.forgotten.requires_grad_(False)
    check_finite_gradients(network, draw_probe(network, OBS_DIM, ACTION_DIM))


# --- points ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("t_max", [0.5, 80.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_points_cover_the_range_in_order(t_max: float, dtype: torch.dtype) -> None:
    oracle = PointMassFlowMap([0.0], times=KarrasTimes(t_max=t_max))
    obs, x, (t, u, s) = draw_probe(oracle, 3, 1, batch=200, dtype=dtype)
    assert (t > u).all()
    assert (u > s).all()
    assert (s >= 0).all()
    assert t[0] == t_max
    assert (t <= t_max).all()
    assert (s == 0).sum() == 50
    assert (t < t_max / 10).any()
    assert {v.dtype for v in (obs, x, t, u, s)} == {dtype}
    assert (obs.shape, x.shape) == ((200, 3), (200, 1))


def test_points_are_the_same_every_time_unless_a_generator_says_otherwise() -> None:
    oracle = PointMassFlowMap([0.0])
    first, second = draw_probe(oracle, 3, 1), draw_probe(oracle, 3, 1)
    assert torch.equal(first.x, second.x)
    other = draw_probe(oracle, 3, 1, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(first.x, other.x)


def test_points_take_the_dtype_of_a_module() -> None:
    assert draw_probe(Sound().double(), OBS_DIM, ACTION_DIM).x.dtype == torch.float64


def test_one_point_is_too_few() -> None:
    with pytest.raises(ValueError, match="got 1, expected at least 2"):
        draw_probe(PointMassFlowMap([0.0]), 3, 1, batch=1)


# --- pytest ---------------------------------------------------------------------------------------


@parametrize_with_checks(
    {"oracle": GaussianFlowMap([0.0, 0.3], 0.5), "sound": Sound(), "moves": MovesWithoutTime()},
    obs_dim=OBS_DIM,
    action_dim=ACTION_DIM,
    expected_failures={
        "moves-check_identity": "divides by t + 1e-6",
        "moves-check_line": "divides by t + 1e-6",
    },
)
def test_the_decorator_runs_each_check(flow_map: FlowMap, check: Callable[[FlowMap], None]) -> None:
    check(flow_map)


def ids(mark: pytest.MarkDecorator) -> list[str]:
    return [case.id for case in mark.args[1]]


def test_ids_name_flow_map_and_check() -> None:
    oracle = GaussianFlowMap([0.0], 0.5)
    mark = parametrize_with_checks([oracle, Sound(), oracle], obs_dim=3, action_dim=1)
    names = ids(mark)
    assert names[0] == "GaussianFlowMap0-check_no_inplace"
    assert "Sound-check_finite_gradients" in names
    assert "GaussianFlowMap1-check_identity" in names
    assert len(names) == len(set(names)) == 31
    assert not any("semigroup" in name for name in names)
    chosen = parametrize_with_checks([oracle], obs_dim=3, action_dim=1, semigroup_atol=1e-4)
    assert "GaussianFlowMap-check_semigroup" in ids(chosen)


def test_expected_failures_are_strict_and_must_name_a_test() -> None:
    case = {"mine-check_identity": "not exact yet"}
    mark = parametrize_with_checks(
        {"mine": Sound()}, obs_dim=3, action_dim=2, expected_failures=case
    )
    (marked,) = [c for c in mark.args[1] if c.marks]
    assert marked.id == "mine-check_identity"
    assert marked.marks[0].kwargs == {
        "reason": "not exact yet",
        "strict": True,
        "raises": AssertionError,
    }
    with pytest.raises(ValueError, match=r"name no test: got \['mine-check_identiy'\]"):
        parametrize_with_checks(
            {"mine": Sound()},
            obs_dim=3,
            action_dim=2,
            expected_failures={"mine-check_identiy": "misspelt"},
        )
