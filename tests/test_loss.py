"""The two losses: exact on what is known, kind to float32, and blind where they must be."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gtp_policy import (
    Curriculum,
    FlowMap,
    FlowMapActor,
    FlowMapActorConfig,
    GTPLoss,
    GTPLossConfig,
    presets,
)
from gtp_policy.errors import ShapeError
from gtp_policy.functional import flow_map, perturb
from gtp_policy.loss import gtp_residuals
from gtp_policy.teachers import NoTeacher
from gtp_policy.testing import (
    GaussianFlowMap,
    MixtureFlowMap,
    PointMassFlowMap,
    actions,
    actors,
    flow_times,
    generators,
    observations,
    schedules,
)
from gtp_policy.times import (
    KarrasTimes,
    LogNormalIndex,
    Times,
    TimeSchedule,
    UniformTimes,
    draw_times,
)

ON_GRID = presets.paper_loss().loss
OBS, ACT, BATCH = 3, 2, 16
PAPER = KarrasTimes(t_min=0.002, t_max=80.0)


class Spy:
    """A flow map that predicts a constant and remembers where it was evaluated."""

    def __init__(self, value: float, times: TimeSchedule) -> None:
        self.value, self.times = value, times
        self.calls: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        self.calls.append((obs, x, t, s))
        return torch.full_like(x, self.value)

    def __call__(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        raise AssertionError("the loss formed Phi: its flow term would be 0 for any network")


def data(dtype: torch.dtype = torch.float32, batch: int = BATCH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    obs = torch.randn(batch, OBS, generator=generator, dtype=dtype)
    return obs, 2 * torch.rand(batch, ACT, generator=generator, dtype=dtype) - 1


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the residuals


@given(schedules(), st.integers(1, 64), generators())
def test_the_exact_flow_map_of_one_action_has_no_loss(
    schedule: TimeSchedule, intervals: int, generator: torch.Generator
) -> None:
    oracle = PointMassFlowMap([0.3, -0.8], times=schedule)
    config = ON_GRID.replace(curriculum=Curriculum(start=intervals, end=intervals), max_gap=3)
    obs, action = (
        torch.zeros(BATCH, OBS).double(),
        oracle.sample(torch.zeros(BATCH, OBS).double(), generator=generator),
    )
    terms = GTPLoss(config)(oracle, oracle, obs, action, generator=generator)
    assert float(terms.loss) < 1e-20
    wrong = PointMassFlowMap([0.3, -0.7], times=schedule)
    assert float(GTPLoss(config)(wrong, oracle, obs, action, generator=generator).loss) > 1e-6


@pytest.mark.slow
@given(st.data())
def test_the_residual_form_is_the_difference_of_arrivals(draw: st.DataObject) -> None:
    batch = draw.draw(st.integers(1, 3))
    actor, target = draw.draw(actors(OBS, ACT)), draw.draw(actors(OBS, ACT))
    times = draw.draw(flow_times(PAPER, batch=batch))
    obs, action = draw.draw(observations(OBS, batch=batch)), draw.draw(actions(ACT, batch=batch))
    z = draw.draw(actions(ACT, batch=batch)) * 4
    t, u, s = times
    got = gtp_residuals(actor, target, obs, action, times, z)
    x_t, x_u = action + t.unsqueeze(-1) * z, action + u.unsqueeze(-1) * z
    phi_t, phi_u = actor.endpoint(obs, x_t, t, s), target.endpoint(obs, x_u, u, s)
    direct = actor(obs, x_t, t, s) - target(obs, x_u, u, s)
    # Both sides round at the size of what they subtract.
    size = max(1.0, *(float(v.detach().abs().max()) for v in (x_t, phi_t, phi_u)))
    torch.testing.assert_close(got.consistency, direct, atol=1e-12 * size, rtol=0)
    flow = actor.endpoint(obs, x_t, t, t) - action
    torch.testing.assert_close(got.flow, flow, atol=1e-12 * size, rtol=0)


def test_the_residual_form_keeps_what_float32_would_lose() -> None:
    grid = PAPER.grid(1280, dtype=torch.float32)
    t, u = grid[0].expand(64), grid[1].expand(64)
    oracle = GaussianFlowMap([0.1], 0.5, times=PAPER)
    generator = seeded()
    action = oracle.sample(torch.zeros(64, 1), generator=generator)
    z = torch.randn(64, 1, generator=generator)
    obs, times = torch.zeros(64, 1), Times(t, u, u)

    def wide(*tensors: Tensor) -> list[Tensor]:
        return [tensor.double() for tensor in tensors]

    exact = gtp_residuals(oracle, oracle, *wide(obs, action), Times(*wide(*times)), z.double())
    got = gtp_residuals(oracle, oracle, obs, action, times, z)
    naive = oracle(obs, perturb(action, t, z), t, u) - perturb(action, u, z)
    residual_error = (got.consistency - exact.consistency).abs().max().item()
    naive_error = (naive - exact.consistency).abs().max().item()
    # Rounding of x_t, near 80: 4e-6 for the naive form; the residual form rounds near 0.01.
    assert naive_error > 1e-6
    assert residual_error < 5e-9


@pytest.mark.parametrize(
    "oracle",
    [
        PointMassFlowMap([0.2, 0.2]),
        GaussianFlowMap([0.2, 0.1], 0.3),
        MixtureFlowMap([[-0.7, 0.7], [-0.1, 0.4]], 0.1),
    ],
    ids=lambda oracle: type(oracle).__name__,
)
def test_at_u_zero_the_target_is_the_action(oracle: FlowMap) -> None:
    obs, action = data(torch.float64)
    t, zero = torch.full((BATCH,), 0.1).double(), torch.zeros(BATCH).double()
    z = torch.randn(BATCH, ACT, generator=seeded(), dtype=torch.float64)
    got = gtp_residuals(oracle, oracle, obs, action, Times(t, zero, zero), z)
    expected = oracle(obs, perturb(action, t, z), t, zero) - action
    torch.testing.assert_close(got.consistency, expected, atol=1e-12, rtol=0)


def test_no_flow_map_is_started_at_time_zero() -> None:
    spies = Spy(0.5, UniformTimes()), Spy(0.5, UniformTimes())
    loss = GTPLoss(ON_GRID.replace(curriculum=Curriculum(start=2, end=2)))
    loss(*spies, *data(), generator=seeded())
    for spy in spies:
        for _, _, t, s in spy.calls:
            assert (t > 0).all()
            assert ((s >= 0) & (s <= t)).all()


def test_where_actor_and_target_are_evaluated() -> None:
    actor, target = Spy(0.0, UniformTimes()), Spy(0.0, UniformTimes())
    obs, action = data()
    z = torch.randn(BATCH, ACT, generator=seeded())
    t, u, s = draw_times(UniformTimes(), 4, BATCH, generator=seeded())
    gtp_residuals(actor, target, obs, action, Times(t, u, s), z)
    evaluated = [torch.cat(parts) for parts in zip(*actor.calls, strict=True)]
    x_t = action + t.unsqueeze(-1) * z
    expected = [torch.cat([obs, obs]), torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([s, t])]
    for got, want in zip(evaluated, expected, strict=True):
        torch.testing.assert_close(got, want)
    ((got_obs, got_x, got_u, got_s),) = target.calls
    torch.testing.assert_close(got_x, action + u.unsqueeze(-1) * z)  # the same noise
    assert torch.equal(got_obs, obs)
    assert torch.equal(got_u[u > 0], u[u > 0])
    assert torch.equal(got_s, s)


# --- the gradient


def test_the_gradient_reaches_the_actor_alone() -> None:
    actor = FlowMapActor(OBS, ACT, FlowMapActorConfig(hidden=(8,), time_dim=4))
    target = copy.deepcopy(actor)  # its parameters require gradients, and get none
    weight = torch.ones(BATCH, requires_grad=True)
    terms = GTPLoss()(actor, target, *data(), weight, generator=seeded())
    terms.loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in actor.parameters())
    assert all(p.grad is None for p in target.parameters())
    assert weight.grad is None
    assert not terms.consistency.requires_grad
    assert not terms.flow.requires_grad


class Closed(nn.Module):
    """The loss as a function of the actor's parameters, with its draws held fixed."""

    def __init__(self, actor: FlowMapActor, target: FlowMapActor, config: GTPLossConfig) -> None:
        super().__init__()
        self.actor, self.loss = actor, GTPLoss(config)
        self.frozen = [target]  # in a list, so that its parameters are not ours

    def forward(self, obs: Tensor, action: Tensor, weight: Tensor) -> Tensor:
        return self.loss(self.actor, self.frozen[0], obs, action, weight, generator=seeded(1)).loss


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("time_weight", ["none", "gap", "endpoint"])
@pytest.mark.parametrize("huber", [None, 0.3])
def test_gradients_agree_with_finite_differences(
    reduction: str, time_weight: str, huber: float | None
) -> None:
    config = ON_GRID.replace(
        reduction=reduction,
        time_weight=time_weight,
        huber=huber,
        flow_weight=0.3,
        curriculum=Curriculum(start=4, end=4),
    )
    small = FlowMapActorConfig(
        hidden=(3,), time_dim=2, times=KarrasTimes(t_min=0.05, t_max=2.0), sigma_data=0.5
    )
    actor, target = (FlowMapActor(OBS, ACT, small, seed=i).double() for i in range(2))
    closed = Closed(actor, target, config)
    names, values = zip(*closed.named_parameters(), strict=True)
    obs, action = data(torch.float64, batch=4)
    weight = torch.tensor([1.0, 2.0, 1.0, 5.0]).double()

    def f(*parameters: Tensor) -> Tensor:
        return torch.func.functional_call(
            closed, dict(zip(names, parameters, strict=True)), (obs, action, weight)
        )

    leaves = tuple(v.detach().clone().requires_grad_() for v in values)
    assert torch.autograd.gradcheck(f, leaves, atol=1e-7, rtol=1e-5)


# --- numbers by hand: the actor always says 3, the target 1, the action is 0

# Endpoint 3 from t to s on the grid 2, 1, 0 leaves (1 - s/t) 3 - (1 - s/u) 1, and 3 at u = 0.
CONSISTENCY = {(2.0, 1.0): 1.5, (2.0, 0.0): 2.0, (1.0, 0.0): 3.0}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("time_weight", ["none", "gap", "endpoint"])
@pytest.mark.parametrize("huber", [None, 4.0])
def test_every_option_by_hand(reduction: str, time_weight: str, huber: float | None) -> None:
    times = UniformTimes(t_max=2.0)
    actor, target = Spy(3.0, times), Spy(1.0, times)
    config = ON_GRID.replace(
        reduction=reduction,
        time_weight=time_weight,
        huber=huber,
        flow_weight=0.25,
        curriculum=Curriculum(start=2, end=2),
    )
    weight = torch.arange(1.0, BATCH + 1)
    zeros = torch.zeros(BATCH, ACT)
    terms = GTPLoss(config)(actor, target, torch.zeros(BATCH, 1), zeros, weight, generator=seeded())

    def metric(residual: float) -> float:
        square = residual**2 * (ACT if reduction == "sum" else 1)
        return square if huber is None else (square + 16.0) ** 0.5 - 4.0

    _, _, t, s = actor.calls[0]
    pairs = [(a, b) for a, b in zip(t[:BATCH].tolist(), s[:BATCH].tolist(), strict=True)]
    assert set(pairs) == set(CONSISTENCY)  # the draw covers the table
    consistency = flow = 0.0
    for i, (start, end) in enumerate(pairs):
        # Neighbours are 1 apart; (1 - 1/2)^-2 = 4 and (1 - 0)^-2 = 1.
        factor = {"none": 1.0, "gap": 1.0, "endpoint": 4.0 if end else 1.0}[time_weight]
        consistency += (i + 1) * factor * metric(CONSISTENCY[start, end]) / BATCH
        flow += (i + 1) * metric(3.0) / BATCH
    assert terms.consistency.item() == pytest.approx(consistency, rel=1e-5)
    assert terms.flow.item() == pytest.approx(flow, rel=1e-5)
    assert terms.loss.item() == pytest.approx(consistency + 0.25 * flow, rel=1e-5)


def test_the_gap_weight_is_one_over_the_gap() -> None:
    times = UniformTimes(t_max=0.5)  # one interval: t = 0.5, u = s = 0
    config = ON_GRID.replace(time_weight="gap", curriculum=Curriculum(start=1, end=1))
    terms = GTPLoss(config)(
        Spy(3.0, times), Spy(1.0, times), torch.zeros(4, 1), torch.zeros(4, 1), generator=seeded()
    )
    assert (terms.consistency.item(), terms.flow.item()) == (18.0, 9.0)


def test_the_loss_is_linear_in_the_weights() -> None:
    actor = FlowMapActor(OBS, ACT, FlowMapActorConfig(hidden=(8,), time_dim=4)).double()
    target = copy.deepcopy(actor)
    obs, action = data(torch.float64)
    first, second = (torch.rand(BATCH, generator=seeded(i), dtype=torch.float64) for i in (8, 9))

    def loss(weight: Tensor | None) -> Tensor:
        return GTPLoss()(actor, target, obs, action, weight, generator=seeded()).loss

    torch.testing.assert_close(loss(2 * first + 3 * second), 2 * loss(first) + 3 * loss(second))
    torch.testing.assert_close(loss(None), loss(torch.ones(BATCH).double()))
    one_hot = torch.zeros(BATCH).double()
    one_hot[5] = BATCH
    assert not torch.isclose(loss(one_hot), loss(None))


# --- draws


@pytest.mark.parametrize(("progress", "intervals"), [(0.0, 4), (0.5, 8), (0.999, 16), (1.0, 16)])
def test_progress_chooses_the_grid(progress: float, intervals: int) -> None:
    spy = Spy(0.0, PAPER)
    loss = GTPLoss(ON_GRID.replace(curriculum=Curriculum(start=4, end=16)))
    obs, action = data(batch=512)
    loss(spy, Spy(0.0, PAPER), obs, action, progress=progress, generator=seeded())
    _, _, t, s = spy.calls[0]
    nodes = set(PAPER.grid(intervals).tolist())
    # 512 draws: some node stays away with a chance of at most 16 (15/16)^512 < 1e-13.
    assert set(t.tolist()) == nodes - {0.0}
    assert set(s.tolist()) == nodes


def test_law_and_gap_reach_the_draw() -> None:
    narrow, wide = (
        GTPLoss(ON_GRID.replace(curriculum=Curriculum(start=64, end=64), **choices))
        for choices in ({"t_law": LogNormalIndex(mean=-1.0, std=0.1)}, {"max_gap": 5})
    )
    obs, action = data(batch=512)
    spy, target = Spy(0.0, PAPER), Spy(0.0, PAPER)
    narrow(spy, target, obs, action, generator=seeded())
    assert (spy.calls[0][2].log() + 1).abs().max() < 1
    wide(spy, target, obs, action, generator=seeded())
    grid = PAPER.grid(64)
    t, u = spy.calls[1][2][:512], target.calls[1][2]
    moved = u != t  # where u = 0 the target is evaluated at t, without a share
    gaps = torch.searchsorted(grid.flip(0), t) - torch.searchsorted(grid.flip(0), u)
    assert set(gaps[moved].tolist()) == {1, 2, 3, 4, 5}


def test_noise_is_standard_normal_and_repeats_with_its_generator() -> None:
    times = UniformTimes(t_max=2.0)
    obs, action = torch.zeros(20_000, 1), torch.full((20_000, 1), 0.5)
    spies = [Spy(0.0, times) for _ in range(4)]
    loss = GTPLoss(ON_GRID.replace(curriculum=Curriculum(start=1, end=1)))
    loss(spies[0], spies[1], obs, action, generator=seeded(1))
    loss(spies[2], spies[3], obs, action, generator=seeded(1))
    x = spies[0].calls[0][1]
    assert torch.equal(x, spies[2].calls[0][1])
    z = (x[:20_000] - 0.5) / 2
    # Six standard errors: a correct draw fails with probability 4e-9.
    assert abs(z.mean().item()) < 6 / 20_000**0.5
    assert abs(z.square().mean().item() - 1) < 6 * (2 / 20_000) ** 0.5


def test_without_a_generator_the_package_draws_its_own() -> None:
    actor = FlowMapActor(OBS, ACT)
    first, second = (GTPLoss()(actor, actor, *data()).loss for _ in range(2))
    assert not torch.equal(first, second)


# --- types and shapes


def test_under_autocast_the_residuals_stay_float32() -> None:
    actor = FlowMapActor(OBS, ACT, FlowMapActorConfig(hidden=(64, 64), times=PAPER))
    target = copy.deepcopy(actor)
    obs, action = data(batch=256)
    times = draw_times(PAPER, 40, 256, generator=seeded())
    z = torch.randn(256, ACT, generator=seeded())
    exact = gtp_residuals(actor, target, obs, action, times, z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gtp_residuals(actor, target, obs, action, times, z)
        loss = GTPLoss()(actor, target, obs, action, generator=seeded()).loss
    for low, high in zip(got, exact, strict=True):
        assert low.dtype == torch.float32
        assert not torch.equal(low, high)  # the network did run in bfloat16
        assert low.square().mean().item() == pytest.approx(high.square().mean().item(), rel=2e-2)
    reference = GTPLoss()(actor, target, obs, action, generator=seeded()).loss
    assert loss.item() == pytest.approx(reference.item(), rel=2e-2)


class HalfPrecision(Spy):
    """A flow map that answers in bfloat16."""

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return super().endpoint(obs, x, t, s).bfloat16()


def test_a_flow_map_of_low_precision_is_subtracted_in_float32() -> None:
    spy = HalfPrecision(0.5, PAPER)
    times = draw_times(PAPER, 8, BATCH, generator=seeded())
    action = torch.full((BATCH, ACT), 0.5001)
    got = gtp_residuals(spy, spy, torch.zeros(BATCH, OBS), action, times, torch.zeros(BATCH, ACT))
    torch.testing.assert_close(got.flow, torch.full((BATCH, ACT), -1e-4), atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("field", "shapes"),
    [
        ("weight", {"weight": (BATCH, 1)}),
        ("weight", {"weight": ()}),
        ("weight", {"weight": (BATCH - 1,)}),
        ("obs", {"obs": (BATCH - 1, OBS)}),
        ("obs", {"obs": (OBS,)}),
        ("obs", {"obs": ()}),
        ("obs", {"obs": (BATCH, OBS + 1)}),
        ("action", {"action": (BATCH,)}),
        ("action", {"action": (BATCH, ACT, 1)}),
        ("x", {"action": (BATCH, ACT + 1)}),
    ],
)
def test_wrong_shapes_are_named(field: str, shapes: dict[str, Any]) -> None:
    actor = FlowMapActor(OBS, ACT)
    full = {"obs": (BATCH, OBS), "action": (BATCH, ACT), "weight": (BATCH,)} | shapes
    obs, action, weight = (torch.zeros(full[k]) for k in ("obs", "action", "weight"))
    with pytest.raises(ShapeError, match=f"`{field}` has the wrong shape"):
        GTPLoss()(actor, actor, obs, action, weight, generator=seeded())


@pytest.mark.parametrize("progress", [-0.01, 1.01, float("nan")])
def test_progress_is_a_fraction(progress: float) -> None:
    actor = FlowMapActor(OBS, ACT)
    with pytest.raises(ValueError, match="`progress` is out of range"):
        GTPLoss()(actor, actor, *data(), progress=progress)


def test_the_flow_map_of_the_spy_would_be_seen() -> None:
    """The guard of `Spy` itself: a loss that formed Phi would fail these tests."""
    spy = Spy(0.0, PAPER)
    with pytest.raises(AssertionError, match="formed Phi"):
        spy(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1), torch.ones(1))
    x, t = torch.ones(1, 1), torch.ones(1)
    assert torch.equal(flow_map(x, spy.endpoint(x, x, t, t), t, t), x)


@pytest.mark.parametrize("choices", [{"units": "velocity"}, {"time_weight": "edm"}])
def test_without_a_teacher_a_share_of_the_rows_is_as_good_as_all(
    choices: dict[str, Any], generator: torch.Generator
) -> None:
    config = GTPLossConfig(teacher=NoTeacher(), flow_times="uniform", map_share=0.5, **choices)
    actor = FlowMapActor(3, 2)
    obs, action = torch.zeros(6, 3), torch.full((6, 2), 0.5)
    terms = GTPLoss(config)(actor, actor, obs, action, torch.ones(6), generator=generator)
    assert float(terms.consistency) == 0
    assert float(terms.flow) > 0
