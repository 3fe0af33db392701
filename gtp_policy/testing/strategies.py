r"""Hypothesis strategies for everything a flow map is made of.

Nothing is ever filtered: times are drawn as ordered, distinct places on a fine logarithmic lattice,
so every draw is valid and shrinks to small, close times. Randomness for torch comes as generators
from drawn integers. Arguments that hypothesis may vary are strategies; a plain number fixes them.
"""

from typing import TypeVar

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from gtp_policy.actor import FlowMapActor, FlowMapActorConfig
from gtp_policy.testing.probes import Probe, time_at
from gtp_policy.times import KarrasTimes, Times, TimeSchedule, UniformTimes
from gtp_policy.transitions import Transitions

_T = TypeVar("_T")
Fixed = int | st.SearchStrategy[int]

# Places of the time lattice. Neighbours differ by 1e-5 for the paper's range: distinct in float32.
_PLACES = 2**20


def _strategy(value: _T | st.SearchStrategy[_T]) -> st.SearchStrategy[_T]:
    return value if isinstance(value, st.SearchStrategy) else st.just(value)


def batches() -> st.SearchStrategy[int]:
    """Draws batch sizes, 1 to 4: all that independent rows need, and quick to shrink.

    Returns:
        A strategy of integers.

    Example:
        >>> from hypothesis import find
        >>> from gtp_policy.testing import batches
        >>> find(batches(), lambda b: b > 1)
        2
    """
    return st.integers(1, 4)


def generators(device: torch.device | str = "cpu") -> st.SearchStrategy[torch.Generator]:
    """Draws seeded generators; torch's global one is never touched.

    Args:
        device: Device of the generators.

    Returns:
        A strategy of fresh ``torch.Generator`` objects.

    Example:
        >>> from hypothesis import find
        >>> from gtp_policy.testing import generators
        >>> find(generators(), lambda g: True).initial_seed()
        0
    """
    return st.integers(0, 2**63 - 1).map(lambda seed: torch.Generator(device).manual_seed(seed))


@st.composite
def flow_times(
    draw: st.DrawFn,
    schedule: TimeSchedule | None = None,
    *,
    batch: Fixed | None = None,
    dtype: torch.dtype = torch.float64,
) -> Times:
    """Draws times t > u > s >= 0 over the whole range of a schedule, evenly in log t.

    The lowest place of s is exactly 0, the highest of t exactly ``t_max``.

    Args:
        draw: Given by hypothesis.
        schedule: Gives the range; default the paper's ``KarrasTimes(t_max=80.0)``.
        batch: B, or a strategy for it; default `batches`.
        dtype: Floating type of the times, float32 or wider.

    Returns:
        A strategy of `Times`, each of shape (B,).

    Example:
        >>> from hypothesis import given
        >>> from gtp_policy.testing import flow_times
        >>> @given(flow_times())
        ... def test_order(times):
        ...     assert ((times.t > times.u) & (times.u > times.s) & (times.s >= 0)).all()
        >>> test_order()
    """
    schedule = schedule or KarrasTimes(t_min=0.002, t_max=80.0)
    rows = []
    for _ in range(draw(_strategy(batches() if batch is None else batch))):
        low = draw(st.integers(0, _PLACES - 2))
        middle = draw(st.integers(low + 1, _PLACES - 1))
        rows.append((draw(st.integers(middle + 1, _PLACES)), middle, low))
    places = torch.tensor(rows, dtype=torch.float64)
    times = time_at(schedule, (places - 1) / (_PLACES - 1))
    t, u, s = torch.where(places > 0, times, 0.0).to(dtype).unbind(-1)
    return Times(t, u, s)


def _matrix(
    batch: Fixed | None, dim: int, low: float, high: float, dtype: torch.dtype
) -> st.SearchStrategy[Tensor]:
    # Elements are float32 numbers, so that no dtype rounds them out of the bounds.
    elements = st.floats(low, high, width=32, allow_subnormal=False)
    return _strategy(batches() if batch is None else batch).flatmap(
        lambda b: hnp.arrays(np.float64, (b, dim), elements=elements).map(
            lambda values: torch.from_numpy(values.copy()).to(dtype)
        )
    )


def observations(
    dim: int, *, batch: Fixed | None = None, dtype: torch.dtype = torch.float64
) -> st.SearchStrategy[Tensor]:
    """Draws observations with entries in [-10, 10].

    Args:
        dim: O.
        batch: B, or a strategy for it; default `batches`.
        dtype: Floating type.

    Returns:
        A strategy of tensors of shape (B, O).

    Example:
        >>> from hypothesis import find
        >>> from gtp_policy.testing import observations
        >>> find(observations(2, batch=1), lambda obs: True).tolist()
        [[0.0, 0.0]]
    """
    return _matrix(batch, dim, -10.0, 10.0, dtype)


def actions(
    dim: int, *, batch: Fixed | None = None, dtype: torch.dtype = torch.float64
) -> st.SearchStrategy[Tensor]:
    """Draws actions in [-1, 1], the bounds included.

    Args:
        dim: A.
        batch: B, or a strategy for it; default `batches`.
        dtype: Floating type.

    Returns:
        A strategy of tensors of shape (B, A).

    Example:
        >>> from hypothesis import find
        >>> from gtp_policy.testing import actions
        >>> find(actions(1, batch=1), lambda action: bool(action > 0.9)).item()
        1.0
    """
    return _matrix(batch, dim, -1.0, 1.0, dtype)


@st.composite
def transitions(
    draw: st.DrawFn,
    obs_dim: int,
    action_dim: int,
    *,
    batch: Fixed | None = None,
    dtype: torch.dtype = torch.float32,
) -> Transitions:
    """Draws minibatches: rewards in [-100, 100], discounts of 0 (terminated) or in [0.9, 1].

    Args:
        draw: Given by hypothesis.
        obs_dim: O.
        action_dim: A.
        batch: B, or a strategy for it; default `batches`.
        dtype: Floating type.

    Returns:
        A strategy of `Transitions`.

    Example:
        >>> from hypothesis import given
        >>> from gtp_policy.testing import transitions
        >>> @given(transitions(3, 2))
        ... def test_shapes(batch):
        ...     batch.check(obs_dim=3, action_dim=2)
        >>> test_shapes()
    """
    size = draw(_strategy(batches() if batch is None else batch))

    def column(elements: st.SearchStrategy[float]) -> Tensor:
        return torch.tensor(draw(st.lists(elements, min_size=size, max_size=size)), dtype=dtype)

    return Transitions(
        obs=draw(observations(obs_dim, batch=size, dtype=dtype)),
        action=draw(actions(action_dim, batch=size, dtype=dtype)),
        reward=column(st.floats(-100.0, 100.0, width=32)),
        next_obs=draw(observations(obs_dim, batch=size, dtype=dtype)),
        discount=column(st.just(0.0) | st.floats(0.9, 1.0)),
    )


@st.composite
def advantages(
    draw: st.DrawFn,
    *,
    nan: bool = False,
    batch: st.SearchStrategy[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draws advantages, the harmful ones before all.

    Constant vectors, single elements, magnitudes up to 1e30, subnormal numbers, and nearly constant
    vectors far from 0, next to ordinary ones.

    Args:
        draw: Given by hypothesis.
        nan: Whether each draw contains a NaN.
        batch: A strategy for B; default 1 to 8.
        dtype: Floating type.

    Returns:
        A strategy of tensors of shape (B,).

    Example:
        >>> from hypothesis import given
        >>> from gtp_policy.testing import advantages
        >>> @given(advantages())
        ... def test_finite(advantage):
        ...     assert advantage.isfinite().all()
        >>> test_finite()
    """
    size = draw(batch or st.integers(1, 8))
    ordinary = st.floats(-10.0, 10.0, width=32)
    # float32's largest subnormal number is 1.1754942e-38.
    subnormal = st.floats(-1.1754942106924411e-38, 1.1754942106924411e-38, width=32)
    huge = st.sampled_from([-1e30, 1e30]) | st.floats(-(2.0**99), 2.0**99, width=32)
    element = draw(st.sampled_from([ordinary, huge, subnormal, ordinary | huge | subnormal]))
    kind = draw(st.sampled_from(["free", "constant", "nearly constant"]))
    if kind == "free":
        values = draw(st.lists(element, min_size=size, max_size=size))
    else:
        values = [draw(element)] * size
    result = torch.tensor(values, dtype=torch.float64)
    if kind == "nearly constant":
        result *= 1 + 1e-3 * torch.linspace(-1.0, 1.0, size, dtype=torch.float64)
    result = result.to(dtype)
    if nan:
        result[draw(st.integers(0, size - 1))] = torch.nan
    return result


@st.composite
def probes(
    draw: st.DrawFn,
    obs_dim: int,
    action_dim: int,
    schedule: TimeSchedule | None = None,
    *,
    batch: Fixed | None = None,
    dtype: torch.dtype = torch.float64,
) -> Probe:
    """Draws points for the checks: noisy actions :math:`a + t z` with z in [-4, 4].

    Args:
        draw: Given by hypothesis.
        obs_dim: O.
        action_dim: A.
        schedule: Gives the time range; default the paper's ``KarrasTimes(t_max=80.0)``.
        batch: B, or a strategy for it; default `batches`.
        dtype: Floating type.

    Returns:
        A strategy of `Probe`.

    Example:
        >>> from hypothesis import given
        >>> from gtp_policy.testing import PointMassFlowMap, check_identity, probes
        >>> @given(probes(obs_dim=3, action_dim=1))
        ... def test_identity(probe):
        ...     check_identity(PointMassFlowMap([0.5]), probe)
        >>> test_identity()
    """
    size = draw(_strategy(batches() if batch is None else batch))
    times = draw(flow_times(schedule, batch=size, dtype=dtype))
    z = draw(_matrix(size, action_dim, -4.0, 4.0, dtype))
    action = draw(actions(action_dim, batch=size, dtype=dtype))
    obs = draw(observations(obs_dim, batch=size, dtype=dtype))
    return Probe(obs, action + times.t.unsqueeze(-1) * z, times)


def schedules() -> st.SearchStrategy[TimeSchedule]:
    """Draws time schedules of the path x = a + t z, from narrow ranges to the paper's.

    Returns:
        A strategy of `KarrasTimes` and `UniformTimes`.

    Example:
        >>> from hypothesis import find
        >>> from gtp_policy.testing import schedules
        >>> find(schedules(), lambda schedule: schedule.kind == "uniform").t_max >= 0.5
        True
    """
    t_max = st.floats(0.5, 80.0)
    karras = st.builds(
        KarrasTimes, t_min=st.floats(0.002, 0.1), t_max=t_max, rho=st.floats(1.0, 9.0)
    )
    return karras | st.builds(UniformTimes, t_max=t_max)


def configs() -> st.SearchStrategy[FlowMapActorConfig]:
    """Draws configs of small actors.

    Returns:
        A strategy of `FlowMapActorConfig`.

    Example:
        >>> from hypothesis import find
        >>> from gtp_policy.testing import configs
        >>> find(configs(), lambda config: len(config.hidden) == 2).steps
        1
    """
    return st.builds(
        FlowMapActorConfig,
        hidden=st.lists(st.integers(1, 16), min_size=1, max_size=3).map(tuple),
        time_dim=st.integers(1, 4).map(lambda half: 2 * half),
        steps=st.integers(1, 5),
        sigma_data=st.floats(0.05, 2.0),
        times=schedules(),
    )


@st.composite
def actors(
    draw: st.DrawFn,
    obs_dim: Fixed = 3,
    action_dim: Fixed = 2,
    *,
    config: st.SearchStrategy[FlowMapActorConfig] | None = None,
    dtype: torch.dtype = torch.float64,
) -> FlowMapActor:
    """Draws small actors whose parameters are all random, so that nothing holds by a zero layer.

    Args:
        draw: Given by hypothesis.
        obs_dim: O, or a strategy for it.
        action_dim: A, or a strategy for it.
        config: A strategy for the config; default `configs`.
        dtype: Floating type of the parameters.

    Returns:
        A strategy of `FlowMapActor`.

    Example:
        >>> from hypothesis import given
        >>> from gtp_policy.testing import actors, check_flow_map
        >>> @given(actors(obs_dim=3, action_dim=2))
        ... def test_structure(actor):
        ...     check_flow_map(actor, obs_dim=3, action_dim=2)
        >>> test_structure()
    """
    actor = FlowMapActor(
        draw(_strategy(obs_dim)),
        draw(_strategy(action_dim)),
        draw(configs() if config is None else config),
    ).to(dtype)
    generator = draw(generators())
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.normal_(generator=generator)
    return actor
