r"""Each teacher against the map it must leave alone: a residual of 0, or of mean 0, by arithmetic.

For Gaussian data N(0, sigma^2) everything is linear, Phi(x, t, s) = c(t, s) x, and each rule has a
fixed point in closed form on a grid t_0 = 0 < ... < t_N:

- surrogate and Euler: c(t_k, t_m) = prod_j (sigma^2 + t_{j-1} t_j) / (sigma^2 + t_j^2); an Euler
  step with the true denoiser is the conditional mean of the surrogate's point;
- Heun: the product of Heun's factors, which are nearer to the flow's by one order;
- self: any product over the grid's intervals, and Euler's where the diagonal is the denoiser;
- jvp: the exact flow, whatever the grid.
"""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gtp_policy import (
    Curriculum,
    FlowMap,
    FlowMapActor,
    FlowMapActorConfig,
    GTPLoss,
    presets,
)
from gtp_policy.functional import flow_map, frozen, perturb, signal
from gtp_policy.loss import gtp_residuals, teach
from gtp_policy.teachers import (
    DifferenceTeacher,
    JvpTeacher,
    NoTeacher,
    OdeTeacher,
    SelfTeacher,
    SurrogateTeacher,
    Teacher,
    TerminalTeacher,
)
from gtp_policy.testing import (
    GaussianFlowMap,
    LinearPathFlowMap,
    MixtureFlowMap,
    PointMassFlowMap,
    actors,
    flow_times,
    generators,
)
from gtp_policy.times import (
    AnyTimes,
    KarrasTimes,
    LinearTimes,
    Times,
    TimeSchedule,
    draw_times,
)

ON_GRID = presets.paper_loss().loss
PAPER = KarrasTimes(t_min=0.002, t_max=80.0)
VE, LINEAR = KarrasTimes(t_min=0.02, t_max=5.0), LinearTimes()
SIGMA, INTERVALS = 0.5, 8
TEACHERS: list[Teacher] = [
    SurrogateTeacher(),
    OdeTeacher(method="euler", steps=1),
    OdeTeacher(method="euler", steps=3),
    OdeTeacher(method="heun", steps=1),
    OdeTeacher(method="heun", steps=2),
    SelfTeacher(),
    JvpTeacher(),
]
paths = pytest.mark.parametrize("schedule", [VE, LINEAR], ids=["ve", "linear"])


def name_of(teacher: object) -> str:
    return "-".join(str(v) for v in getattr(teacher, "model_dump", dict)().values()) or str(teacher)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def denoiser(t: Tensor, schedule: TimeSchedule) -> Tensor:
    """E[a | x_t] / x_t for N(0, sigma^2), from the joint covariance of a and x_t."""
    alpha = 1.0 if schedule.path == "ve" else 1 - t
    return alpha * SIGMA**2 / (alpha**2 * SIGMA**2 + t**2)


class Linear:
    """A linear flow map from a table of factors over a grid's nodes, numbered from t_0 = 0."""

    def __init__(self, schedule: TimeSchedule, table: Tensor) -> None:
        self.times, self.table = schedule, table
        nodes = schedule.grid(INTERVALS, dtype=torch.float64).flip(0)
        self.middles = (nodes[1:] + nodes[:-1]) / 2

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        k, m = torch.bucketize(t, self.middles), torch.bucketize(s, self.middles)
        jump = ((self.table[k, m] - s / t) / (1 - s / t)).nan_to_num()
        return torch.where(s == t, denoiser(t, self.times), jump).unsqueeze(-1) * x

    def __call__(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return flow_map(x, self.endpoint(obs, x, t, s), t, s)


def euler_factor(t: float, u: float, schedule: TimeSchedule) -> float:
    return u / t + (1 - u / t) * float(denoiser(torch.tensor(t, dtype=torch.float64), schedule))


def heun_factor(t: float, u: float, schedule: TimeSchedule) -> float:
    ahead = euler_factor(t, u, schedule)
    if u == 0:
        return ahead

    def field(time: float) -> float:
        return (1 - float(denoiser(torch.tensor(time, dtype=torch.float64), schedule))) / time

    return 1 + (u - t) * (field(t) + field(u) * ahead) / 2


def fixed_point(schedule: TimeSchedule, factor: Any) -> Linear:
    """The map whose jumps are products of one factor per grid interval."""
    nodes = schedule.grid(INTERVALS, dtype=torch.float64).flip(0).tolist()
    table = torch.eye(INTERVALS + 1, dtype=torch.float64)
    for m, k in itertools.combinations(range(INTERVALS + 1), 2):
        table[k, m] = math.prod(
            factor(nodes[j], nodes[j - 1], schedule) for j in range(m + 1, k + 1)
        )
    return Linear(schedule, table)


def draws(schedule: TimeSchedule, n: int = 512, **rules: Any) -> tuple[Tensor, Tensor, Times]:
    action = SIGMA * torch.randn(n, 1, generator=seeded(1), dtype=torch.float64)
    z = torch.randn(n, 1, generator=seeded(2), dtype=torch.float64)
    dtype = torch.float64
    return action, z, draw_times(schedule, INTERVALS, n, generator=seeded(3), dtype=dtype, **rules)


def largest_residual(
    flow: FlowMap, action: Tensor, z: Tensor, times: Times, teacher: Teacher, **options: Any
) -> float:
    obs = torch.zeros(len(action), 1).double()
    residuals = gtp_residuals(flow, flow, obs, action, times, z, teacher, **options)
    return residuals.consistency.abs().max().item()


# --- every teacher


@pytest.mark.slow
@pytest.mark.parametrize("teacher", TEACHERS, ids=name_of)
@paths
@given(generators(), st.sampled_from(["uniform", "zero", "equal_u", "dyadic"]))
def test_data_that_is_one_action_leaves_nothing_to_learn(
    schedule: TimeSchedule, teacher: Teacher, generator: torch.Generator, s_rule: str
) -> None:
    oracle = PointMassFlowMap([0.3, -0.8], times=schedule)
    obs = torch.zeros(16, 1).double()
    action = oracle.sample(obs, generator=generator)
    config = ON_GRID.replace(
        teacher=teacher,
        s_rule=s_rule,
        u_rule="midpoint" if isinstance(teacher, SelfTeacher) else "adjacent",
        max_gap=3,
        curriculum=Curriculum(start=16, end=16),
    )
    assert float(GTPLoss(config)(oracle, oracle, obs, action, generator=generator).loss) < 1e-20
    wrong = PointMassFlowMap([0.3, -0.7], times=schedule)
    assert float(GTPLoss(config)(wrong, oracle, obs, action, generator=generator).loss) > 1e-6


@pytest.mark.slow
@given(st.data())
def test_the_residual_is_the_difference_of_arrivals(draw: st.DataObject) -> None:
    """The form that avoids cancellation against the definitions, formed at moderate times."""
    schedule = draw.draw(st.sampled_from([VE, LINEAR]))
    config = FlowMapActorConfig(hidden=(4,), time_dim=4, times=schedule)
    actor, target = (draw.draw(actors(1, 2, config=st.just(config))) for _ in range(2))
    t, u, s = times = draw.draw(flow_times(schedule, batch=3))
    obs, action = torch.zeros(3, 1).double(), torch.full((3, 2), 0.4).double()
    z = torch.tensor([[0.3, -1.0]] * 3).double()

    def euler(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return x + (s - t)[:, None] * (x - target.endpoint(obs, x, t, t)) / t[:, None]

    def heun(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        first = (x - target.endpoint(obs, x, t, t)) / t[:, None]
        ahead = x + (s - t)[:, None] * first
        second = (ahead - target.endpoint(obs, ahead, s, s)) / s[:, None]
        return x + (s - t)[:, None] * (first + second) / 2

    x_t = perturb(action, t, z, schedule.path)
    half = (t + u) / 2
    for teacher, at_u in (
        (SurrogateTeacher(), perturb(action, u, z, schedule.path)),
        (OdeTeacher(method="euler"), euler(x_t, t, u)),
        (OdeTeacher(method="heun"), heun(x_t, t, u)),
        (OdeTeacher(method="heun", steps=2), heun(heun(x_t, t, half), half, u)),
        (SelfTeacher(), target(obs, x_t, t, u)),
    ):
        got = gtp_residuals(actor, target, obs, action, times, z, teacher)
        mine, theirs = actor(obs, x_t, t, s), target(obs, at_u, u, s)
        size = max(1.0, *(float(v.detach().abs().max()) for v in (x_t, at_u, mine, theirs)))
        torch.testing.assert_close(got.consistency, mine - theirs, atol=1e-10 * size, rtol=0)
        zero = torch.zeros_like(s)
        late = gtp_residuals(actor, target, obs, action, times, z, teacher, compare_at="zero")
        jumped = [target(obs, x, torch.where(s > 0, s, t), zero) for x in (mine, theirs)]
        expected = torch.where(s[:, None] > 0, jumped[0] - jumped[1], mine - theirs)
        size = max(size, *(float(v.detach().abs().max()) for v in jumped))
        torch.testing.assert_close(late.consistency, expected, atol=1e-8 * size, rtol=1e-6)


@pytest.mark.parametrize("teacher", TEACHERS, ids=name_of)
@pytest.mark.parametrize("compare_at", ["s", "zero"])
@pytest.mark.parametrize("target", ["ema", "stopgrad"])
def test_the_gradient_reaches_the_actor_through_its_own_arrival_alone(
    teacher: Teacher, compare_at: str, target: str
) -> None:
    small = FlowMapActorConfig(hidden=(6,), time_dim=4, times=VE)
    actor = FlowMapActor(1, 1, small).double()
    slow = copy.deepcopy(actor) if target == "ema" else actor
    config = ON_GRID.replace(
        teacher=teacher,
        compare_at=compare_at,
        target=target,
        flow_weight=0.0,
        curriculum=Curriculum(start=INTERVALS, end=INTERVALS),
    )
    action, z, times = draws(VE, 32)
    obs = torch.zeros(32, 1).double()
    GTPLoss(config).terms(actor, slow, obs, action, None, times, z).loss.backward()
    got = [p.grad.clone() for p in actor.parameters() if p.grad is not None]
    if target == "ema":
        assert all(p.grad is None for p in slow.parameters())
    # The same with everything but the actor's arrival made a constant first.
    fixed = copy.deepcopy(actor)
    actor.zero_grad()
    t, _, s = times
    x_t = perturb(action, t, z)
    taught = teach(fixed, obs, action, times, z, teacher)
    offset = actor(obs, x_t, t, s) - (action + s[:, None] * z)
    if compare_at == "zero":
        places = [action + s[:, None] * z + e for e in (offset, taught)]
        start, zero = torch.where(s > 0, s, t), torch.zeros_like(s)
        jumped = [frozen(fixed)(obs, place, start, zero) for place in places]
        offset, taught = (
            torch.where(s[:, None] > 0, x, place) for x, place in zip(jumped, places, strict=True)
        )
    (offset - taught.detach()).square().mean().backward()
    expected = [p.grad for p in actor.parameters() if p.grad is not None]
    torch.testing.assert_close(got, expected, atol=1e-11, rtol=1e-7)


@pytest.mark.parametrize("teacher", TEACHERS, ids=name_of)
def test_rounding_stays_small_under_large_noise(teacher: Teacher) -> None:
    """Neighbours near t = 80: a difference of plain arrivals rounds at 4e-6."""
    grid = PAPER.grid(1280, dtype=torch.float32)
    t, u = grid[0].expand(64), grid[1].expand(64)
    oracle = GaussianFlowMap([0.1], 0.5, times=PAPER)
    action = oracle.sample(torch.zeros(64, 1), generator=seeded())
    z, obs = torch.randn(64, 1, generator=seeded(1)), torch.zeros(64, 1)
    times = Times(t, u, u)
    got = gtp_residuals(oracle, oracle, obs, action, times, z, teacher).consistency
    wide = gtp_residuals(
        oracle, oracle, obs.double(), action.double(), Times(*(v.double() for v in times)),
        z.double(), teacher,
    ).consistency  # fmt: skip
    assert (got - wide).abs().max().item() < 2e-7


# --- fixed points on a grid


@paths
@pytest.mark.parametrize(
    ("teacher", "factor"),
    [(OdeTeacher(method="euler"), euler_factor), (OdeTeacher(method="heun"), heun_factor)],
    ids=["euler", "heun"],
)
@pytest.mark.parametrize("compare_at", ["s", "zero"])
def test_a_solver_leaves_the_product_of_its_own_factors_alone(
    schedule: TimeSchedule, teacher: Teacher, factor: Any, compare_at: str
) -> None:
    own = fixed_point(schedule, factor)
    case = draws(schedule)
    assert largest_residual(own, *case, teacher, compare_at=compare_at) < 1e-12
    other = fixed_point(schedule, heun_factor if factor is euler_factor else euler_factor)
    assert largest_residual(other, *case, teacher, compare_at=compare_at) > 1e-3


@paths
def test_the_surrogate_leaves_eulers_fixed_point_alone_on_average(schedule: TimeSchedule) -> None:
    own = fixed_point(schedule, euler_factor)
    _, _, times = draws(schedule)
    t, u, _ = times
    obs = torch.zeros(len(t), 1).double()
    alpha, alpha_u = (torch.ones_like(v) if schedule.path == "ve" else 1 - v for v in (t, u))
    # Given x_t = 1, the mean of action and noise: residuals are linear in both.
    action = denoiser(t, schedule)[:, None]
    z = (1 - alpha[:, None] * action) / t[:, None]
    residual = gtp_residuals(own, own, obs, action, times, z).consistency
    assert residual.abs().max().item() < 1e-12
    # The conditional mean of x_u is the known factor on the default path.
    if schedule.path == "ve":
        expected = (SIGMA**2 + u * t) / (SIGMA**2 + t**2)
        torch.testing.assert_close((alpha_u[:, None] * action + u[:, None] * z)[:, 0], expected)
    wrong = fixed_point(schedule, heun_factor)
    assert gtp_residuals(wrong, wrong, obs, action, times, z).consistency.abs().max().item() > 1e-3


@paths
@pytest.mark.parametrize("s_rule", ["uniform", "dyadic"])
def test_shortcut_leaves_eulers_fixed_point_alone(schedule: TimeSchedule, s_rule: str) -> None:
    own = fixed_point(schedule, euler_factor)
    case = draws(schedule, s_rule=s_rule, u_rule="midpoint")
    t, u, s = case[2]
    assert (u == s).any()  # where the recursion touches the data
    assert ((u > s) & (t > u)).any()
    assert largest_residual(own, *case, SelfTeacher()) < 1e-12
    # Products of other factors agree with themselves, but not with the denoiser where u = s.
    other = fixed_point(schedule, heun_factor)
    inner = u > s
    within = Times(t[inner], u[inner], s[inner])
    action, z = case[0][inner], case[1][inner]
    assert largest_residual(other, action, z, within, SelfTeacher()) < 1e-12
    assert largest_residual(other, *case, SelfTeacher()) > 1e-3


# --- fixed points that are the flow itself


ORACLES = {
    "gaussian": GaussianFlowMap([0.2, -0.1], 0.4, times=VE),
    "mixture": MixtureFlowMap([[-0.7, 0.7], [-0.1, 0.4]], 0.2, times=VE),
    "linear gaussian": LinearPathFlowMap(GaussianFlowMap([0.2, -0.1], 0.4)),
}


@pytest.mark.parametrize(
    "oracle", [ORACLES["gaussian"], ORACLES["linear gaussian"]], ids=["ve", "linear"]
)
def test_mean_flow_leaves_the_flow_alone_for_any_pair_of_times(oracle: FlowMap) -> None:
    times = draw_times(oracle.times, 64, 256, generator=seeded(), dtype=torch.float64)
    inner = (
        times.t < 1 if oracle.times.path == "linear" else times.t > 0
    )  # 1 - t = 0 has no oracle derivative
    times = Times(*(v[inner] for v in times))
    t = times.t
    obs = torch.zeros(len(t), 1).double()
    x = torch.randn(len(t), 2, generator=seeded(1), dtype=torch.float64)
    # The target is linear in v; with a the denoised action, v is its mean: the true field.
    action = oracle.endpoint(obs, x, t, t)
    velocity = (x - action) / t[:, None]
    z = velocity if oracle.times.path == "ve" else velocity + action
    torch.testing.assert_close(perturb(action, t, z, oracle.times.path), x)
    got = gtp_residuals(oracle, oracle, obs, action, times, z, JvpTeacher()).consistency
    assert got.abs().max().item() < 1e-10
    shifted = action + 0.1
    moved = (x - shifted) / t[:, None]
    z = moved if oracle.times.path == "ve" else moved + shifted
    got = gtp_residuals(oracle, oracle, obs, shifted, times, z, JvpTeacher()).consistency
    assert got.abs().max().item() > 1e-2


def test_the_derivative_is_that_of_the_endpoint_along_the_ray() -> None:
    config = FlowMapActorConfig(hidden=(8,), time_dim=4, times=KarrasTimes())
    actor = FlowMapActor(1, 2, config).double()
    t, s = torch.tensor([1.3, 0.4]).double(), torch.tensor([0.2, 0.0]).double()
    action = torch.tensor([[0.3, -0.5], [0.1, 0.9]]).double()
    z, obs, h = torch.ones(2, 2).double(), torch.zeros(2, 1).double(), 1e-5

    def along(t: Tensor) -> Tensor:
        return actor.endpoint(obs, perturb(action, t, z), t, s)

    change = (along(t + h) - along(t - h)) / (2 * h)
    share, gap = (1 - s / t)[:, None], (t - s)[:, None]
    # phi_tgt = a + (1 - s/t)(phi - a) - (t - s) d phi/dt, and the offset is (1 - s/t)(phi_tgt - a)
    expected = share * (share * (along(t) - action) - gap * change)
    got = teach(actor, obs, action, Times(t, t, s), z, JvpTeacher())
    torch.testing.assert_close(got, expected.detach(), atol=1e-8, rtol=0)
    assert not got.requires_grad


def order(errors: list[float]) -> float:
    """Slope of log error over log step for steps that halve, on the last pair."""
    return math.log2(errors[-2] / errors[-1])


@pytest.mark.parametrize("name", list(ORACLES))
@pytest.mark.parametrize(("method", "expected"), [("euler", 1), ("heun", 2)])
def test_the_solver_converges_with_its_order(name: str, method: Any, expected: int) -> None:
    """The target from one step of width h against the flow: a local error of order + 1 in h."""
    oracle = ORACLES[name]
    x = torch.tensor([[0.9, -0.6]]).double()
    obs, t = torch.zeros(1, 1).double(), torch.full((1,), 0.6).double()
    errors = []
    for halvings in range(4, 9):
        u = t * (1 - 2.0**-halvings)
        action = torch.zeros(1, 2).double()
        z = x / t[:, None]
        offset = teach(oracle, obs, action, Times(t, u, u), z, OdeTeacher(method=method))
        errors.append(float((u[:, None] * z + offset - oracle(obs, x, t, u)).norm()))
    assert abs(order(errors) - (expected + 1)) < 0.1
    # More steps over the same gap: the global order.
    errors = [
        float(
            (
                teach(oracle, obs, torch.zeros(1, 2).double(), Times(t, t * 0.9, t * 0.9),
                      x / t[:, None], OdeTeacher(method=method, steps=steps))
                + 0.9 * x - oracle(obs, x, t, t * 0.9)
            ).norm()
        )
        for steps in (1, 2)
    ]  # fmt: skip
    assert abs(order(errors) - expected) < 0.35


@pytest.mark.parametrize("name", ["gaussian", "mixture"])
def test_the_flow_is_its_own_teacher(name: str) -> None:
    oracle = ORACLES[name]
    times = draw_times(oracle.times, 32, 256, generator=seeded(), dtype=torch.float64, max_gap=32)
    inner = times.u > times.s
    times = Times(*(v[inner] for v in times))
    t = times.t
    obs = torch.zeros(len(t), 1).double()
    action = oracle.sample(obs, generator=seeded(1))
    z = torch.randn(len(t), 2, generator=seeded(2), dtype=torch.float64)
    assert largest_residual(oracle, action, z, times, SelfTeacher()) < 1e-9


# --- no teacher


@paths
def test_without_a_teacher_the_loss_is_the_flow_loss(schedule: TimeSchedule) -> None:
    small = FlowMapActorConfig(hidden=(6,), time_dim=4, times=schedule)
    actor = FlowMapActor(1, 1, small).double()
    config = ON_GRID.replace(teacher=NoTeacher(), curriculum=Curriculum(start=8, end=8))
    action, z, times = draws(schedule, 32)
    obs = torch.zeros(32, 1).double()
    terms = GTPLoss(config).terms(actor, actor, obs, action, None, times, z)
    alone = GTPLoss(config.replace(teacher=SurrogateTeacher())).terms(
        actor, actor, obs, action, None, times, z
    )
    assert terms.consistency.item() == 0.0
    torch.testing.assert_close(terms.loss, alone.flow)
    terms.loss.backward()
    with pytest.raises(ValueError, match="nothing to compare with"):
        teach(actor, obs, action, times, z, NoTeacher())


def test_the_flow_loss_is_least_at_the_denoiser_on_both_paths() -> None:
    for oracle in (ORACLES["gaussian"], ORACLES["linear gaussian"]):
        n = 200_000
        action = oracle.sample(torch.zeros(n, 1).double(), generator=seeded(1))
        z = torch.randn(n, 2, generator=seeded(2), dtype=torch.float64)
        t = torch.full((n,), 0.7).double()
        x = perturb(action, t, z, oracle.times.path)
        best = torch.linalg.lstsq(torch.cat([x, torch.ones(n, 1).double()], 1), action).solution
        obs = torch.zeros(3, 1).double()
        points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, -1.0]]).double()
        got = oracle.endpoint(obs, points, t[:3], t[:3])
        fitted = torch.cat([points, torch.ones(3, 1).double()], 1) @ best
        # Six standard errors of a regression with residual std below 0.4.
        torch.testing.assert_close(got, fitted, atol=6 * 0.4 / n**0.5 * 2, rtol=0)


# --- time weights


@paths
def test_the_edm_weight_measures_errors_in_the_networks_own_units(schedule: TimeSchedule) -> None:
    small = FlowMapActorConfig(hidden=(6,), time_dim=4, times=schedule, sigma_data=0.3)
    actor = FlowMapActor(1, 1, small).double()
    config = ON_GRID.replace(time_weight="edm", curriculum=Curriculum(start=8, end=8))
    action, z, times = draws(schedule, 64)
    obs, (t, _, _) = torch.zeros(64, 1).double(), times
    terms = GTPLoss(config).terms(actor, actor, obs, action, None, times, z)
    x = perturb(action, t, z, schedule.path)
    alpha = torch.ones_like(t) if schedule.path == "ve" else 1 - t
    variance = t**2 + alpha**2 * 0.3**2
    raw = actor.network(obs, x / variance.sqrt()[:, None], t, t)
    skip, out = alpha * 0.3**2 / variance, t * 0.3 / variance.sqrt()
    wanted = (action - skip[:, None] * x) / out[:, None]
    torch.testing.assert_close(terms.flow, (raw - wanted).square().mean())
    residual = gtp_residuals(actor, actor, obs, action, times, z).consistency
    torch.testing.assert_close(terms.consistency, (residual[:, 0].square() / out**2).mean())


# --- a finite difference


def difference_error(
    teacher: DifferenceTeacher | TerminalTeacher, times: AnyTimes, s_at: float = 0.2
) -> float:
    """How far a Gaussian's exact flow map is from its own target, where the ray is the field."""
    oracle = GaussianFlowMap([0.1, -0.2], 0.4, times=times)
    t = torch.full((64,), 0.8, dtype=torch.float64)
    s = torch.full((64,), s_at, dtype=torch.float64)
    x = torch.linspace(-2, 2, 128, dtype=torch.float64).view(64, 2)
    obs = torch.zeros(64, 1, dtype=torch.float64)
    # The denoised action lies on the ray whose velocity is the field: no noise of a single action.
    action = oracle.endpoint(obs, x, t, t)
    z = (x - signal(t, times.path).unsqueeze(-1) * action) / t.unsqueeze(-1)
    taught = teacher.offset(oracle, obs, action, Times(t, t, s), z)
    arrival = ((t - s) / t).unsqueeze(-1) * (oracle.endpoint(obs, x, t, s) - action)
    return float((arrival - taught).abs().max())


@pytest.mark.parametrize("s", [0.0, 0.2])
@pytest.mark.parametrize("kind", [DifferenceTeacher, TerminalTeacher])
@pytest.mark.parametrize("times", [LinearTimes(), KarrasTimes()], ids=lambda s: s.kind)
def test_a_difference_has_order_one(times: AnyTimes, kind: Any, s: float) -> None:
    """The exact map is its fixed point up to h: halving the step halves the residual."""
    steps = [0.02, 0.01, 0.005, 0.0025]
    errors = [difference_error(kind(step=step), times, s) for step in steps]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(slope - 1) < 0.15 for slope in slopes), slopes
    assert difference_error(kind(step=1e-6), times, s) < 1e-5


@pytest.mark.parametrize("units", ["position", "velocity"])
@pytest.mark.parametrize("times", [LinearTimes(), KarrasTimes()], ids=lambda s: s.kind)
def test_the_exact_flow_map_is_a_zero_of_two_jumps(
    times: AnyTimes, units: str, generator: torch.Generator
) -> None:
    """Off the grid the residual of the true map is zero for every pair, to rounding."""
    oracle = GaussianFlowMap([0.1, -0.2], 0.4, times=times)
    config = presets.one_step().loss.replace(units=units)
    assert isinstance(config.teacher, SelfTeacher)
    loss = GTPLoss(config)
    action = torch.randn(256, 2, generator=generator, dtype=torch.float64)
    obs = torch.zeros(256, 1, dtype=torch.float64)
    draws = loss.draw(times, action, progress=0.0, generator=generator)
    residuals = gtp_residuals(
        oracle, oracle, obs, action, *draws[:2], config.teacher, flow_t=draws.flow_t
    )
    scale, _ = loss.unit_factors(draws.times)
    assert float((residuals.consistency * scale).abs().max()) < 1e-9
