"""The oracles against formulas, quadrature and solvers that share no code with them."""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.linalg import sqrtm
from torch import Tensor

from gtp_policy.errors import NonFiniteError, ShapeError
from gtp_policy.functional import flow_map, perturb, precondition, sample_flow
from gtp_policy.testing import (
    AnalyticFlowMap,
    GaussianFlowMap,
    LinearPathFlowMap,
    MixtureFlowMap,
    PointMassFlowMap,
    Probe,
    assert_moments_close,
    assert_same_distribution,
    check_between,
    check_boundary,
    check_flow_map,
    check_identity,
    check_semigroup,
    draw_probe,
    probes,
)
from gtp_policy.times import KarrasTimes, UniformTimes

PAPER = KarrasTimes(t_min=0.002, t_max=80.0)
LINEAR = UniformTimes(t_max=1.0)
COVARIANCE = [[0.3, 0.1, -0.05], [0.1, 0.2, 0.02], [-0.05, 0.02, 0.04]]
MEANS, STDS, WEIGHTS = [-0.8, 0.1, 0.8], [0.05, 0.3, 0.05], [0.2, 0.5, 0.3]
BANDIT = MixtureFlowMap([[-0.8, 0.8], [-0.8, 0.8]], 0.05, times=PAPER)

CLOSED: dict[str, AnalyticFlowMap] = {
    "point mass": PointMassFlowMap([0.3, -0.9], times=PAPER),
    "gaussian": GaussianFlowMap([0.3, -0.5], [0.2, 1.0], times=PAPER),
    "narrow gaussian": GaussianFlowMap([0.3, -0.5], [1e-9, 0.0], times=PAPER),
    "full covariance": GaussianFlowMap([0.1, 0.2, -0.3], covariance=COVARIANCE, times=PAPER),
}
MIXTURES: dict[str, AnalyticFlowMap] = {
    "mixture": MixtureFlowMap(MEANS, STDS, WEIGHTS, times=PAPER),
    "bandit": BANDIT,
    "two points": MixtureFlowMap([-0.7, 0.7], 0.0, times=PAPER),
    "narrow and wide": MixtureFlowMap([[0.0, 0.0], [0.5, -0.5]], [[1e-4, 1.0], [0.1, 0.2]]),
    "impossible component": MixtureFlowMap([-0.5, 0.5], 0.1, [1.0, 0.0]),
}
LINEARS: dict[str, AnalyticFlowMap] = {
    "linear gaussian": LinearPathFlowMap(CLOSED["full covariance"]),
    "linear mixture": LinearPathFlowMap(MIXTURES["mixture"]),
}
ALL = CLOSED | MIXTURES | LINEARS


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def call(oracle: AnalyticFlowMap, x: float, t: float, s: float) -> float:
    return oracle(torch.zeros(1, 1), f64(x).unsqueeze(0), f64(t), f64(s)).item()


def endpoint(oracle: AnalyticFlowMap, x: float, t: float, s: float) -> float:
    return oracle.endpoint(torch.zeros(1, 1), f64(x).unsqueeze(0), f64(t), f64(s)).item()


@st.composite
def cases(draw: st.DrawFn, oracles: dict[str, AnalyticFlowMap]) -> tuple[AnalyticFlowMap, Probe]:
    oracle = oracles[draw(st.sampled_from(sorted(oracles)))]
    return oracle, draw(probes(2, len(oracle.mean), oracle.times))


@pytest.mark.slow
@given(cases(ALL))
def test_oracles_keep_identity_and_boundary_bit_for_bit(
    case: tuple[AnalyticFlowMap, Probe],
) -> None:
    oracle, probe = case
    check_identity(oracle, probe, atol=0.0)
    check_boundary(oracle, probe, atol=0.0)
    check_between(oracle, probe)


@given(cases(CLOSED | {"linear gaussian": LINEARS["linear gaussian"]}))
def test_closed_forms_keep_the_semigroup(case: tuple[AnalyticFlowMap, Probe]) -> None:
    oracle, probe = case
    check_semigroup(oracle, probe, atol=1e-9)


def log_density(oracle: MixtureFlowMap, x: Tensor, t: Tensor) -> Tensor:
    """Returns the log density of noisy actions, (B, A)."""
    variance = oracle._stds.square() + t.reshape(-1, 1, 1).square()
    square = (x.unsqueeze(-1) - oracle._means).square() / variance
    return (oracle._weights.log() - (square + variance.log()) / 2).logsumexp(-1)


@pytest.mark.slow
@given(cases(MIXTURES))
def test_mixtures_keep_the_semigroup(case: tuple[AnalyticFlowMap, Probe]) -> None:
    oracle, (obs, x, (t, u, s)) = case
    assert isinstance(oracle, MixtureFlowMap)
    x_u, x_s = oracle(obs, x, t, u), oracle(obs, x, t, s)
    # The exact map stretches by the ratio of the densities, without bound in the void between two
    # modes; there it also stretches the rounding of x and of x_u.
    end = log_density(oracle, x_s, s)
    stretch = (log_density(oracle, x, t) - end).exp() + (log_density(oracle, x_u, u) - end).exp()
    error = (oracle(obs, x_u, u, s) - x_s).abs()
    assert (error <= 1e-11 * (1 + stretch.nan_to_num(nan=torch.inf))).all()


@pytest.mark.slow
@given(probes(2, 1, LINEAR))
def test_a_linear_mixture_keeps_the_semigroup_where_data_is(probe: Probe) -> None:
    oracle = LinearPathFlowMap(MixtureFlowMap(MEANS, 0.3, WEIGHTS))  # overlapping modes: no void
    z = probe.x.remainder(4.0) - 2
    x = (1 - probe.times.t).unsqueeze(-1) * 0.5 + probe.times.t.unsqueeze(-1) * z
    check_semigroup(oracle, probe._replace(x=x), atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_oracles_pass_every_check(name: str, dtype: torch.dtype) -> None:
    oracle = ALL[name]
    # "narrow gaussian" has a std of 1e-9: finite and exact all the same.
    check_flow_map(oracle, obs_dim=3, action_dim=len(oracle.mean), dtype=dtype)


@pytest.mark.parametrize("name", ALL)
def test_float32_agrees_with_float64(name: str, generator: torch.Generator) -> None:
    oracle = ALL[name]
    probe = draw_probe(oracle, 3, len(oracle.mean), generator=generator)
    x, (t, _, s) = probe.x, probe.times
    wide = oracle.endpoint(probe.obs.double(), x.double(), t.double(), s.double())
    narrow = oracle.endpoint(probe.obs, x, t, s)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=1e-5)


# --- closed forms ---------------------------------------------------------------------------------


@given(probes(2, 2))
def test_point_mass_is_a_straight_line(probe: Probe) -> None:
    obs, x, (t, _, s) = probe
    action = f64(0.3, -0.9)
    line = action + (s / t).unsqueeze(-1) * (x - action)
    torch.testing.assert_close(CLOSED["point mass"](obs, x, t, s), line, rtol=0, atol=1e-12)


@given(probes(2, 3))
def test_gaussians_scale_by_the_square_root_of_their_covariances(probe: Probe) -> None:
    obs, x, (t, _, s) = probe
    mean, covariance, eye = np.array([0.1, 0.2, -0.3]), np.array(COVARIANCE), np.eye(3)
    moved = CLOSED["full covariance"](obs, x, t, s).numpy()
    denoised = CLOSED["full covariance"].endpoint(obs, x, t, t).numpy()
    for i in range(len(x)):
        start, end = covariance + float(t[i]) ** 2 * eye, covariance + float(s[i]) ** 2 * eye
        centered = x[i].numpy() - mean
        whitened = np.linalg.solve(sqrtm(start).real, centered)
        np.testing.assert_allclose(moved[i], mean + sqrtm(end).real @ whitened, atol=1e-9)
        regression = mean + covariance @ np.linalg.solve(start, centered)
        np.testing.assert_allclose(denoised[i], regression, atol=1e-9)


def test_two_points_denoise_by_a_hyperbolic_tangent() -> None:
    x, t = torch.meshgrid(
        torch.linspace(-3, 3, 41, dtype=torch.float64), f64(0.05, 0.3, 1.0, 10.0), indexing="ij"
    )
    x, t = x.reshape(-1, 1), t.reshape(-1)
    got = MIXTURES["two points"].endpoint(torch.zeros(len(x), 1), x, t, t)
    expected = 0.7 * torch.tanh(0.7 * x / t.unsqueeze(-1).square())
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


def test_a_mixture_of_one_is_a_gaussian(generator: torch.Generator) -> None:
    mixture, gaussian = MixtureFlowMap([0.3], 0.2), GaussianFlowMap([0.3], 0.2)
    probe = draw_probe(gaussian, 1, 1, generator=generator, dtype=torch.float64)
    arguments = (probe.obs, probe.x, probe.times.t, probe.times.s)
    torch.testing.assert_close(mixture(*arguments), gaussian(*arguments), rtol=0, atol=1e-13)


def test_products_move_each_dimension_by_its_own_mixture(generator: torch.Generator) -> None:
    means, stds, weights = [MEANS, [0.0, 0.4, 0.5]], [STDS, [0.2, 0.1, 0.3]], [WEIGHTS, [1, 2, 3]]
    product = MixtureFlowMap(means, stds, weights)
    obs, x, (t, _, s) = draw_probe(product, 1, 2, generator=generator, dtype=torch.float64)
    alone = [
        MixtureFlowMap(means[i], stds[i], weights[i])(obs, x[:, i : i + 1], t, s) for i in range(2)
    ]
    torch.testing.assert_close(product(obs, x, t, s), torch.cat(alone, 1), rtol=0, atol=1e-13)


def test_the_mixture_endpoint_is_smooth_up_to_the_diagonal() -> None:
    # Solving F_s(y) = F_t(x) for y would lose all digits of the endpoint here.
    diagonal = endpoint(MIXTURES["mixture"], 0.3, 0.5, 0.5)
    slope = (diagonal - endpoint(MIXTURES["mixture"], 0.3, 0.5, 0.5 * (1 - 1e-3))) / 1e-3
    for h in (1e-5, 1e-7, 1e-9, 1e-11, 1e-13):
        near = endpoint(MIXTURES["mixture"], 0.3, 0.5, 0.5 * (1 - h))
        assert abs(near - (diagonal - slope * h)) < 1e-2 * abs(slope) * h + 2e-14


# --- independent numerics -------------------------------------------------------------------------


def posterior_mean(x: float, scale: float, noise: float) -> float:
    """Returns E[a | scale a + noise z = x] for the mixture, by Bayes' rule per component."""
    means, variances = np.array(MEANS), np.square(STDS)
    spread = scale**2 * variances + noise**2
    log_weight = np.log(WEIGHTS) - (np.square(x - scale * means) / spread + np.log(spread)) / 2
    weight = np.exp(log_weight - log_weight.max())
    component = means + scale * variances / spread * (x - scale * means)
    return float((weight * component).sum() / weight.sum())


Derivative: TypeAlias = Callable[[float, np.ndarray], list[float]]


def solved(derivative: Derivative, x: float, start: float, end: float) -> float:
    """Integrates over the logarithm of time, in which the field is smooth."""
    solution = solve_ivp(
        derivative, (math.log(start), math.log(end)), [x], method="DOP853", rtol=1e-13, atol=1e-14
    )
    return float(solution.y[0, -1])


def journeys(high: float) -> list[tuple[float, float, float]]:
    """Returns (noise, start, end) of 24 journeys along the time axis, a third of them to 1e-9."""
    rng = np.random.default_rng(7)
    start = high * np.exp(-rng.uniform(0, math.log(high / 0.01), 24))
    end = np.where(np.arange(24) % 3 > 0, start * rng.uniform(0, 1, 24), 1e-9)
    return [tuple(map(float, row)) for row in zip(2 * rng.normal(size=24), start, end, strict=True)]


@pytest.mark.parametrize(("z", "t", "s"), journeys(80.0))
def test_mixtures_agree_with_a_solver(z: float, t: float, s: float) -> None:
    x = 0.8 + t * z

    def derivative(log_t: float, x: np.ndarray) -> list[float]:
        return [x[0] - posterior_mean(x[0], 1.0, math.exp(log_t))]

    assert call(MIXTURES["mixture"], x, t, s) == pytest.approx(
        solved(derivative, x, t, s), rel=0, abs=1e-10
    )


@pytest.mark.parametrize(("z", "a", "b"), [(0.3, 1.0, 1e-9), (-2.0, 1.0, 0.4), *journeys(0.99)])
def test_linear_paths_agree_with_a_solver(z: float, a: float, b: float) -> None:
    y = (1 - a) * 0.8 + a * z

    def derivative(log_a: float, y: np.ndarray) -> list[float]:
        a = math.exp(log_a)
        return [y[0] - posterior_mean(y[0], 1 - a, a)]

    assert call(LINEARS["linear mixture"], y, a, b) == pytest.approx(
        solved(derivative, y, a, b), rel=0, abs=1e-10
    )


@pytest.mark.slow
@given(st.floats(-2.5, 2.5), st.floats(0.02, 0.98), st.floats(0.0, 0.98))
def test_linear_paths_are_the_noising_path_in_other_coordinates(
    y: float, a: float, share: float
) -> None:
    b = share * a
    t, s = a / (1 - a), b / (1 - b)
    conjugate = call(MIXTURES["mixture"], y * (1 + t), t, s) / (1 + s)
    assert call(LINEARS["linear mixture"], y, a, b) == pytest.approx(conjugate, rel=0, abs=1e-12)


@pytest.mark.parametrize("t", [0.03, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("x", [-4.0, -0.7, 0.0, 0.2, 1.1])
def test_denoisers_are_posterior_means(x: float, t: float) -> None:
    # The trapezoidal rule on a smooth integrand that vanishes at both ends: exact to rounding.
    a = np.linspace(-8.0, 8.0, 400_001)[:, None]
    prior = np.log(WEIGHTS) - np.square((a - MEANS) / np.array(STDS)) / 2 - np.log(STDS)
    log_joint = prior - np.square((x - a) / t) / 2
    joint = np.exp(log_joint - log_joint.max()).sum(1)
    expected = np.trapezoid(joint * a[:, 0]) / np.trapezoid(joint)
    assert endpoint(MIXTURES["mixture"], x, t, t) == pytest.approx(expected, rel=0, abs=1e-9)


# --- distributions --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_samples_have_the_moments_that_the_oracle_states(
    name: str, generator: torch.Generator
) -> None:
    oracle = ALL[name]
    sample = oracle.sample(torch.zeros(20_000, 3, dtype=torch.float64), generator=generator)
    assert_moments_close(sample, oracle.mean, oracle.std)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("name", ["full covariance", "bandit", "two points", "mixture"])
def test_noisy_data_flows_back_to_the_data(
    name: str, steps: int, generator: torch.Generator
) -> None:
    oracle = ALL[name]
    obs = torch.zeros(8_000, 1, dtype=torch.float64)
    action = oracle.sample(obs, generator=generator)
    grid = oracle.times.grid(steps, dtype=torch.float64)
    z = torch.randn(action.shape, generator=generator, dtype=torch.float64)
    noisy = perturb(action, grid[0].expand(len(obs)), z)
    restored = sample_flow(oracle, obs, noisy, grid)[-1]
    assert_moments_close(restored, oracle.mean, oracle.std)
    if name != "two points":  # its samples are at +-0.7 only up to rounding
        fresh = oracle.sample(obs, generator=generator)
        assert_same_distribution(restored, fresh)


def test_one_jump_of_pure_noise_has_the_moments_of_the_data(generator: torch.Generator) -> None:
    mean, std, t_max = 0.3, 0.2, 80.0
    oracle = GaussianFlowMap([mean], std, times=PAPER)
    x = t_max * torch.randn(400_000, 1, generator=generator, dtype=torch.float64)
    t = torch.full((len(x),), t_max, dtype=torch.float64)
    action = oracle(torch.zeros(len(x), 1), x, t, torch.zeros_like(t))
    # Noise of std T is not quite noisy data: std loses the factor T / sqrt(T^2 + std^2), and the
    # mean is short by std / sqrt(T^2 + std^2) of itself.
    width = math.hypot(t_max, std)
    assert_moments_close(action, mean * (1 - std / width), std * t_max / width)
    assert abs(action.mean() - mean) < 0.007 * std
    assert abs(action.std() / std - 1) < 0.007


# --- the formulas that the method rests on --------------------------------------------------------


class ConstantDenoiser:
    """A preconditioned network that outputs 0, at all times."""

    times = PAPER

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return precondition(t, 0.5).skip.unsqueeze(-1) * x

    def __call__(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return flow_map(x, self.endpoint(obs, x, t, s), t, s)


@pytest.mark.parametrize(
    ("steps", "multiplier"),
    [(1, 3.906097e-5), (2, 1.196643e-3), (5, 3.421496e-3), (10, 4.704170e-3)],
)
def test_a_zero_network_samples_with_known_multipliers(steps: int, multiplier: float) -> None:
    start = f64(80.0).unsqueeze(0)
    grid = PAPER.grid(steps, dtype=torch.float64)
    end = sample_flow(ConstantDenoiser(), torch.zeros(1, 1), start, grid)[-1]
    assert end.item() / 80.0 == pytest.approx(multiplier, rel=5e-7)  # all printed digits


def test_a_zero_network_is_the_denoiser_of_a_gaussian(generator: torch.Generator) -> None:
    oracle = GaussianFlowMap([0.0, 0.0], 0.5, times=PAPER)
    obs, x, (t, _, s) = draw_probe(oracle, 1, 2, generator=generator, dtype=torch.float64)
    denoiser = ConstantDenoiser().endpoint(obs, x, t, s)
    torch.testing.assert_close(oracle.endpoint(obs, x, t, t), denoiser, rtol=1e-13, atol=0)


def test_the_score_approximation_gap_falls_with_the_square_of_the_step(
    generator: torch.Generator,
) -> None:
    std, t, s = 0.4, 1.5, 0.2
    oracle = GaussianFlowMap([0.1], std)
    obs = torch.zeros(200_000, 1, dtype=torch.float64)
    action = oracle.sample(obs, generator=generator)
    z = torch.randn(action.shape, generator=generator, dtype=torch.float64)

    def times(value: float) -> Tensor:
        return torch.full((len(obs),), value, dtype=torch.float64)

    def gap(h: float) -> float:
        u = t * (1 - h)
        far = oracle(obs, perturb(action, times(t), z), times(t), times(s))
        near = oracle(obs, perturb(action, times(u), z), times(u), times(s))
        return (far - near).square().mean().item()

    def exact(h: float) -> float:
        u = t * (1 - h)
        widths = math.hypot(std, t) * math.hypot(std, u)
        return 2 * (std**2 + s**2) * (1 - (std**2 + u * t) / widths)

    steps = [0.4, 0.2, 0.1, 0.05, 0.025]
    gaps = [gap(h) for h in steps]
    # 200,000 squares of a normal variable: relative standard error sqrt(2 / n) = 0.3 %.
    assert gaps == pytest.approx([exact(h) for h in steps], rel=0.02)
    # The slope has nearly no sampling error, for all gaps are taken on the same draws.
    assert math.log2(gaps[-2] / gaps[-1]) == pytest.approx(2.0, abs=0.1)


# --- errors ---------------------------------------------------------------------------------------


def test_wrong_shapes_are_named() -> None:
    one, two = torch.ones(1), torch.ones(2)
    with pytest.raises(ShapeError, match=r"`x` has the wrong shape: got \(1, 2\), expected \(1, 1"):
        PointMassFlowMap([0.5])(torch.zeros(1, 3), torch.zeros(1, 2), one, one)
    with pytest.raises(ShapeError, match=r"`t` has the wrong shape: got \(2,\), expected \(1,\)"):
        GaussianFlowMap([0.5], 1.0)(torch.zeros(1, 3), torch.zeros(1, 1), two, one)
    with pytest.raises(ShapeError, match=r"`action` has the wrong shape: got \(1, 1\)"):
        PointMassFlowMap([[0.5]])
    with pytest.raises(ShapeError, match="`std`"):
        GaussianFlowMap([0.5], [1.0, 1.0])
    with pytest.raises(ShapeError, match="`covariance`"):
        GaussianFlowMap([0.5], covariance=COVARIANCE)
    with pytest.raises(ShapeError, match="`means`"):
        MixtureFlowMap(0.5, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="`weights`"):
        MixtureFlowMap(MEANS, STDS, [0.5, 0.5])


def test_impossible_distributions_are_refused() -> None:
    with pytest.raises(NonFiniteError, match="`action` is not finite"):
        PointMassFlowMap([math.nan])
    with pytest.raises(ValueError, match="`std` is negative"):
        GaussianFlowMap([0.0], -1.0)
    with pytest.raises(ValueError, match="exactly one of the two"):
        GaussianFlowMap([0.0])
    with pytest.raises(ValueError, match="exactly one of the two"):
        GaussianFlowMap([0.0], 1.0, covariance=[[1.0]])
    with pytest.raises(ValueError, match="not symmetric"):
        GaussianFlowMap([0.0, 0.0], covariance=[[1.0, 0.5], [0.0, 1.0]])
    with pytest.raises(ValueError, match="not positive semi-definite"):
        GaussianFlowMap([0.0, 0.0], covariance=[[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(ValueError, match="`weights` are negative"):
        MixtureFlowMap(MEANS, STDS, [-1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="`weights` are all 0"):
        MixtureFlowMap(MEANS, STDS, [0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="t_max=80"):
        LinearPathFlowMap(MIXTURES["mixture"], times=PAPER)
