"""Grids, curriculum and the draw of t > u >= s >= 0."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gtp_policy import Curriculum
from gtp_policy.testing import assert_frequencies_close, generators, schedules
from gtp_policy.times import (
    AnyTimes,
    KarrasTimes,
    LinearTimes,
    LogitNormalPairs,
    LogNormalIndex,
    Times,
    TimeSchedule,
    UniformIndex,
    UniformPairs,
    UniformTimes,
    draw_times,
)

PAPER = KarrasTimes(t_min=0.002, t_max=80.0)
SEVERAL = pytest.mark.parametrize("schedule", [PAPER, UniformTimes(t_max=3.0)], ids=str)


def index_of(grid: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """Node numbers, upwards from 0; fails for a time that is not a node."""
    up = grid.flip(0)
    index = torch.searchsorted(up, times)
    assert torch.equal(up[index], times)
    return index


# --- grids


@pytest.mark.parametrize(
    ("steps", "nodes"),
    [
        (1, [80, 0]),
        (2, [80, 2.515, 0]),
        (5, [80, 24.408, 5.839, 0.9654, 0.0851, 0]),
    ],
)
def test_the_papers_nodes(steps: int, nodes: list[float]) -> None:
    assert PAPER.grid(steps, dtype=torch.float64).tolist() == pytest.approx(nodes, rel=5e-4)


def test_nodes_are_even_in_the_root_of_t() -> None:
    roots = PAPER.grid(40, dtype=torch.float64)[:-1] ** (1 / 7)
    torch.testing.assert_close(roots.diff(n=2), torch.zeros(38).double(), atol=1e-12, rtol=0)
    step = (0.002 ** (1 / 7) - 80 ** (1 / 7)) / 40
    assert float(roots[1] - roots[0]) == pytest.approx(step)
    assert UniformTimes(t_max=2.0).grid(4).tolist() == [2.0, 1.5, 1.0, 0.5, 0.0]


@given(schedules(), st.integers(1, 1280), st.sampled_from([torch.float32, torch.float64]))
def test_grids_fall_strictly_from_t_max_to_zero(
    schedule: TimeSchedule, n: int, dtype: torch.dtype
) -> None:
    grid = schedule.grid(n, dtype=dtype)
    assert grid.shape == (n + 1,)
    assert grid.dtype == dtype
    assert (grid.diff() < 0).all()
    assert grid[0] == torch.tensor(schedule.t_max, dtype=dtype)
    assert grid[-1] == 0
    assert schedule.grid(n).dtype == torch.float32


@SEVERAL
@pytest.mark.parametrize("n", [0, -1])
def test_a_grid_has_an_interval(schedule: TimeSchedule, n: int) -> None:
    with pytest.raises(ValueError, match=f"too few intervals: got {n}"):
        schedule.grid(n)


def test_a_grid_does_not_depend_on_its_first_caller() -> None:
    schedule = KarrasTimes(t_max=1.2345)  # no other test uses it
    with torch.inference_mode():
        assert schedule.grid(3)[-1] == 0
    weight = torch.ones(4, requires_grad=True)
    (weight * schedule.grid(3)).sum().backward()
    assert torch.equal(weight.grad, schedule.grid(3))
    with torch.device("meta"):
        assert KarrasTimes(t_max=1.2346).grid(3).device.type == "cpu"


# --- draws


@given(schedules(), st.integers(1, 64), st.integers(1, 6), generators(), st.booleans())
def test_draws_keep_their_order_on_the_grid(
    schedule: TimeSchedule, n: int, max_gap: int, generator: torch.Generator, normal: bool
) -> None:
    law = LogNormalIndex() if normal else UniformIndex()
    times = draw_times(schedule, n, 64, generator=generator, law=law, max_gap=max_gap)
    grid = schedule.grid(n)
    k, j, m = (index_of(grid, v) for v in times)
    assert all(v.shape == (64,) for v in times)
    assert (times.t > times.u).all()
    assert (times.u >= times.s).all()
    assert (times.s >= 0).all()
    gap = k - j
    assert (gap >= 1).all()
    assert (gap <= max_gap).all()
    assert (j >= m).all()


def draws(schedule: TimeSchedule, n: int, max_gap: int, law: object = None) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    times = draw_times(schedule, n, 200_000, generator=generator, law=law, max_gap=max_gap)
    return [index_of(schedule.grid(n), v) for v in times]


@SEVERAL
def test_t_and_s_are_uniform_over_the_nodes_and_u_is_the_neighbour(schedule: TimeSchedule) -> None:
    n = 6
    k, j, m = draws(schedule, n, max_gap=1)
    assert torch.equal(j, k - 1)
    assert_frequencies_close(k.bincount(minlength=n + 1), [0.0] + [1 / n] * n)
    for node in range(1, n + 1):
        below = m[k == node].bincount(minlength=n)
        assert_frequencies_close(below, [1 / node] * node + [0.0] * (n - node))


def test_the_gap_is_uniform_over_what_fits() -> None:
    n, max_gap = 6, 3
    k, j, m = draws(PAPER, n, max_gap)
    for room in range(1, n + 1):
        gap = (k - j)[k - m == room]
        fits = min(room, max_gap)
        chance = [0.0] + [1 / fits] * fits + [0.0] * (max_gap - fits)
        assert_frequencies_close(gap.bincount(minlength=max_gap + 1), chance)


@pytest.mark.parametrize(("mean", "std"), [(-1.1, 2.0), (0.5, 0.3), (-30.0, 1.0), (30.0, 1.0)])
@pytest.mark.parametrize("n", [1, 2, 20])
def test_the_lognormal_law_has_the_mass_of_its_cells(mean: float, std: float, n: int) -> None:
    k, _, _ = draws(PAPER, n, 1, LogNormalIndex(mean=mean, std=std))
    log_t = PAPER.grid(n, dtype=torch.float64)[:-1].flip(0).log().numpy()
    edges = [-math.inf, *((log_t[1:] + log_t[:-1]) / 2), math.inf]
    mass = [0.0, *torch.tensor(stats.norm(mean, std).cdf(edges)).diff().tolist()]
    assert_frequencies_close(k.bincount(minlength=n + 1), mass)


def test_draws_repeat_with_their_generator_and_follow_its_dtype() -> None:
    def draw(dtype: torch.dtype | None = None) -> Times:
        return draw_times(PAPER, 8, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)

    for a, b, c in zip(draw(), draw(), draw(torch.float64), strict=True):
        assert torch.equal(a, b)
        assert (a.dtype, c.dtype) == (torch.float32, torch.float64)
        torch.testing.assert_close(c.float(), a)


def test_draws_refuse_what_makes_no_sense(generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="`max_gap` is out of range: got 0"):
        draw_times(PAPER, 4, 2, generator=generator, max_gap=0)
    with pytest.raises(ValueError, match="too few intervals: got 0"):
        draw_times(PAPER, 0, 2, generator=generator)


# --- the curriculum


@given(
    st.integers(1, 50),
    st.integers(0, 5000),
    st.lists(st.floats(0, 1), min_size=2, max_size=8).map(sorted),
)
def test_the_grid_only_grows(start: int, more: int, progress: list[float]) -> None:
    curriculum = Curriculum(start=start, end=start + more)
    n = [curriculum.intervals(p) for p in (0.0, *progress, 1.0)]
    assert n == sorted(n)
    assert n[0] == start
    assert n[-1] == start + more
    for value in n:  # a doubling of start, or the end
        power = value / start
        assert value == start + more or power == 2 ** round(math.log2(power))


@pytest.mark.parametrize(("start", "end"), [(10, 1280), (10, 160), (1, 64), (7, 7), (4, 1024)])
def test_the_methods_formula(start: int, end: int) -> None:
    # N(k) = min(s0 2^floor(k / K'), s1) with K' = floor(total / (log2(s1 / s0) + 1)).
    stages = int(math.log2(end / start)) + 1
    total = 24 * stages
    for k in range(total):
        expected = min(start * 2 ** (k // 24), end)
        assert Curriculum(start=start, end=end).intervals(k / total) == expected


@pytest.mark.parametrize("progress", [-1e-9, 1.1, math.nan])
def test_progress_is_a_fraction(progress: float) -> None:
    with pytest.raises(ValueError, match="`progress` is out of range"):
        Curriculum().intervals(progress)


@given(st.integers(1, 64), st.integers(0, 5000), st.integers(1, 10**7), st.floats(1e-4, 1))
def test_capped_stages_are_long_enough(start: int, more: int, total: int, rate: float) -> None:
    curriculum = Curriculum(start=start, end=start + more)
    capped = curriculum.capped(total, rate)
    assert capped.start == start
    assert start <= capped.end <= curriculum.end
    assert capped.end == start or total / capped.stages * rate >= capped.end / 8
    assert capped.capped(total, rate) == capped
    longer = curriculum.capped(2 * total, rate)
    assert longer.end >= capped.end
    if capped.end < curriculum.end and 2 * capped.end <= curriculum.end and capped.end > start:
        finer = Curriculum(start=start, end=2 * capped.end)
        assert total / finer.stages * rate < finer.end / 8 * 1.001 + 1


def test_capped_by_hand() -> None:
    # 20,000 updates in 5 stages of 4,000; times 0.005 is 20 = 160 / 8.
    assert Curriculum().capped(20_000, 0.005).end == 160
    assert Curriculum().capped(19_999, 0.005).end == 80
    assert Curriculum().capped(1_000_000, 0.005) == Curriculum()
    assert Curriculum().capped(1, 0.005) == Curriculum(start=10, end=10)


# --- other rules for s and u


def nodes_drawn(n: int, batch: int = 4000, **rules: Any) -> set[tuple[int, int, int]]:
    """The node numbers of (t, u, s) that a rule draws, from t_0 = 0."""
    times = draw_times(
        UniformTimes(t_max=float(n)),
        n,
        batch,
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
        **rules,
    )
    rows = torch.stack(list(times), 1).round().int().tolist()
    return {tuple(row) for row in rows}


def test_s_can_be_zero_with_u_in_reach_of_t() -> None:
    expected = {(k, k - g, 0) for k in range(1, 7) for g in (1, 2) if g <= k}
    assert nodes_drawn(6, s_rule="zero", max_gap=2) == expected


def test_s_can_be_u() -> None:
    expected = {(k, k - g, k - g) for k in range(1, 7) for g in (1, 2, 3) if g <= k}
    assert nodes_drawn(6, s_rule="equal_u", max_gap=3) == expected


def test_u_can_be_the_midpoint_of_every_pair() -> None:
    drawn = nodes_drawn(7, u_rule="midpoint")
    assert {(k, m) for k, _, m in drawn} == {(k, m) for k in range(1, 8) for m in range(k)}
    for k, j, m in drawn:
        assert j - m in (k - j, k - j - 1)  # the lower one of two middles
        assert (j == m) == (k - m == 1)


@pytest.mark.parametrize("n", [1, 2, 8, 10, 13])
def test_dyadic_pairs_are_the_aligned_powers_of_two(n: int) -> None:
    expected = {
        (k, k - width // 2 if width > 1 else k - 1, k - width)
        for width in (2**j for j in range(n.bit_length()))
        for k in range(width, n + 1, width)
    }
    assert nodes_drawn(n, s_rule="dyadic", u_rule="midpoint") == expected


def test_every_dyadic_width_is_drawn_equally_often() -> None:
    t, _, s = draw_times(
        UniformTimes(t_max=16.0),
        16,
        10_000,
        generator=torch.Generator().manual_seed(0),
        s_rule="dyadic",
        dtype=torch.float64,
    )
    counts = torch.bincount((t - s).log2().round().long(), minlength=5)
    assert_frequencies_close(counts, torch.full((5,), 0.2, dtype=torch.float64))


def test_times_of_the_linear_path_are_even_from_1_to_0() -> None:
    grid = LinearTimes().grid(7, dtype=torch.float64)
    torch.testing.assert_close(grid, torch.linspace(1, 0, 8, dtype=torch.float64))
    assert (grid[0], grid[-1]) == (1, 0)
    assert LinearTimes().t_max == 1.0
    assert 0 < LinearTimes().floor < LinearTimes().grid(2000)[-2]
    assert [s.path for s in (LinearTimes(), UniformTimes(), KarrasTimes())] == [
        "linear",
        "ve",
        "ve",
    ]


# --- pairs off the grid

SCHEDULES = [LinearTimes(), KarrasTimes(), UniformTimes(t_max=2.0)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
@pytest.mark.parametrize("law", [UniformPairs(), LogitNormalPairs(mean=-0.4, s_mean=-2.0)])
def test_pairs_are_ordered_and_some_are_those_of_one_step(
    schedule: AnyTimes, law: UniformPairs | LogitNormalPairs, generator: torch.Generator
) -> None:
    times = draw_times(
        schedule, 1, 20_000, generator=generator, law=law, u_rule="between", inner=0.25
    )
    t, u, s = times
    assert (t > s).all()
    assert (s >= 0).all()
    assert (t <= schedule.t_max).all()
    torch.testing.assert_close(u, s + 0.25 * (t - s))
    at_the_edge = ((t == schedule.t_max) & (s == 0)).float().mean()
    # Hoeffding: false alarm below 1e-8.
    assert abs(float(at_the_edge) - 0.1) < math.sqrt(math.log(2e8) / 2 / 20_000)


def test_uniform_pairs_are_order_statistics_of_the_share_of_noise(
    generator: torch.Generator,
) -> None:
    """The larger of two uniform draws has mean 2/3, the smaller 1/3, on either path."""
    law, n = UniformPairs(edge=0.0), 200_000
    for schedule in (LinearTimes(), KarrasTimes(t_max=5.0)):
        t, s = law.draw(schedule, n, generator, torch.float64)
        largest = 1.0 if schedule.path == "linear" else 5 / 6
        shares = [x if schedule.path == "linear" else x / (1 + x) for x in (t, s)]
        for share, mean in zip(shares, (2 / 3, 1 / 3), strict=True):
            assert abs(float(share.mean()) / largest - mean) < 6 * math.sqrt(1 / 18 / n) + 1e-3


def test_the_law_of_pairs_and_the_rule_for_u_belong_together(generator: torch.Generator) -> None:
    for choices in ({"law": UniformPairs()}, {"u_rule": "between"}):
        with pytest.raises(ValueError, match="do not belong together"):
            draw_times(LinearTimes(), 10, 4, generator=generator, **choices)  # type: ignore[arg-type]


def test_more_nodes_near_the_action() -> None:
    grid = LinearTimes(rho=2.0).grid(4, dtype=torch.float64)
    assert grid.tolist() == [1.0, 0.5625, 0.25, 0.0625, 0.0]


def test_a_grid_with_equal_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="equal neighbours"):
        KarrasTimes(t_min=4.9999999, t_max=5.0).grid(4, dtype=torch.float32)
