"""The compiled sampler for few rows: the reference's numbers, and torch where it cannot be."""

import copy
import functools
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gtp_policy import FlowMapActor, FlowMapActorConfig, _folding
from gtp_policy.kernels import folded, folded_numba, using
from gtp_policy.times import KarrasTimes, UniformTimes
from tests.spread import spread_apart

ROOT = Path(__file__).parents[2]
NUMBA = ["sample: numba (one compiled function)"]
TIMES = [KarrasTimes(), KarrasTimes(t_min=0.002, t_max=80.0), UniformTimes(t_max=2.0)]


def make(obs_dim: int = 3, action_dim: int = 2, **choices: Any) -> FlowMapActor:
    return FlowMapActor(obs_dim, action_dim, FlowMapActorConfig(**({"hidden": (16, 8)} | choices)))


def inputs(actor: FlowMapActor, rows: int = 5) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    dtype = actor.fixed_noise.dtype
    return {
        "obs": torch.randn(rows, actor.obs_dim, generator=g, dtype=dtype),
        "noise": torch.randn(rows, actor.action_dim, generator=g, dtype=dtype),
    }


def reference(actor: FlowMapActor, rows: int = 5, **choices: Any) -> Tensor:
    with using("reference"):
        return actor.sample(**inputs(actor, rows), **choices)


@given(
    obs_dim=st.integers(1, 40),
    action_dim=st.integers(1, 9),
    seed=st.integers(0, 99),
    hidden=st.lists(st.integers(1, 300), min_size=1, max_size=3).map(tuple),
    sigma_data=st.floats(0.05, 2.0),
    times=st.sampled_from(TIMES),
    steps=st.integers(1, 12),
    rows=st.integers(1, _folding._FEW_ROWS),
    shift=st.floats(-5, 5, width=32),
    standardised=st.booleans(),
)
def test_the_references_actions(
    obs_dim: int,
    action_dim: int,
    seed: int,
    steps: int,
    rows: int,
    shift: float,
    standardised: bool,
    **choices: Any,
) -> None:
    actor = FlowMapActor(obs_dim, action_dim, FlowMapActorConfig(**choices), seed=seed)
    if standardised:
        actor.set_action_scales_(actor.sigma_data, spread_apart(action_dim))
    mean = torch.full_like(actor.normalizer.mean, shift)
    actor.normalizer.set_statistics_(mean, mean.abs() + 0.5)
    assert actor.explain(rows, steps=steps) == NUMBA
    given = inputs(actor, rows)
    got, rounded = actor.sample(**given, steps=steps), reference(actor, rows, steps=steps)
    with using("reference"):
        wide = {name: tensor.double() for name, tensor in given.items()}
        exact = copy.deepcopy(actor).double().sample(**wide, steps=steps)
    # A network with large factors amplifies rounding: then by no more than twice the reference's.
    error, usual = ((actions - exact).abs().max().item() for actions in (got, rounded))
    assert error <= max(1e-6, 2 * usual)


@pytest.mark.parametrize("outputs", range(1, 10))
@pytest.mark.parametrize("rows", range(1, 6))
def test_products_of_any_size(outputs: int, rows: int) -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(outputs, 21)), rng.normal(size=(rows, 16))
    out = np.full((rows, outputs), np.nan, np.float32)
    folded_numba._product(weight.astype(np.float32), 5, x.astype(np.float32), out)
    np.testing.assert_allclose(out, x @ weight[:, 5:].T, atol=1e-5)


@pytest.mark.parametrize("rows", [2, 3, 4, 7, 24])
def test_equal_rows_get_equal_actions(rows: int) -> None:
    for width in (7, 33, 256):
        actor = make(hidden=(width, width))
        one = inputs(actor, 1)
        got = actor.sample(one["obs"].expand(rows, -1), noise=one["noise"].expand(rows, -1))
        assert torch.equal(got, got[:1].expand(rows, -1))


# --- parameters are read where they are


def optimise(actor: FlowMapActor) -> None:
    optimizer = torch.optim.Adam(actor.parameters(), lr=0.1)
    o, x, t = torch.ones(4, 3), torch.ones(4, 2), torch.ones(4)
    actor.endpoint(o, x, t, t).sum().backward()
    optimizer.step()


def load(actor: FlowMapActor) -> None:
    actor.load_state_dict(FlowMapActor(3, 2, actor.config, seed=7).state_dict())


def past_autograd(actor: FlowMapActor) -> None:
    for parameter in actor.parameters():
        parameter.data.mul_(2)


def copy_into(actor: FlowMapActor) -> None:
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.copy_(2 * parameter)


def swap(actor: FlowMapActor) -> None:
    for parameter in actor.parameters():
        parameter.data = 2 * parameter.data


def statistics(actor: FlowMapActor) -> None:
    actor.normalizer.set_statistics_(torch.full((3,), 0.5), torch.full((3,), 3.0))


@pytest.mark.parametrize("write", [optimise, load, past_autograd, copy_into, swap, statistics])
def test_every_write_counts_at_once(write: Callable[[FlowMapActor], None]) -> None:
    actor = make()
    before = actor.sample(**inputs(actor))
    write(actor)
    assert actor.explain() == NUMBA
    after = actor.sample(**inputs(actor))
    torch.testing.assert_close(after, reference(actor), atol=1e-6, rtol=0)
    assert not torch.equal(after, before)


# --- where torch is left to do it


def check_torch(actor: FlowMapActor, why: str, rows: int = 5, atol: float = 1e-6) -> None:
    (line,) = actor.explain(rows)
    assert line.startswith("sample: torch (")
    assert why in line.partition(" because ")[2]
    got = actor.sample(**inputs(actor, rows))
    torch.testing.assert_close(got, reference(actor, rows), atol=atol, rtol=0)


def test_other_dtypes_layouts_and_many_rows() -> None:
    check_torch(make(), "beyond 24 rows", rows=_folding._FEW_ROWS + 1)
    check_torch(make().double(), "float64", atol=1e-12)
    transposed = make()
    weight = transposed.network.mlp[2].weight
    weight.data = weight.data.t().contiguous().t()
    check_torch(transposed, "not contiguous")
    stretched = make()
    bias = stretched.network.mlp[2].bias
    stretched.sample(**inputs(stretched))
    bias.data = bias.data[:1].expand(8)  # the same memory, in another layout
    check_torch(stretched, "not contiguous")
    with using("torch"):
        check_torch(make(), 'kernels.using("torch") selects it')


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found out about numba is forgotten for one test."""
    monkeypatch.setattr(folded, "_compiled", functools.cache(folded._compiled.__wrapped__))


@pytest.mark.usefixtures("fresh")
def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_torch(make(), "not installed (in a checkout: pip install '.[fast]')")


@pytest.mark.usefixtures("fresh")
def test_numba_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def refuse(name: str) -> None:
        calls.append(name)
        raise ImportError("Numba needs another NumPy")

    monkeypatch.setattr(importlib, "import_module", refuse)
    actor = make()
    for _ in range(3):
        check_torch(actor, "ImportError: Numba needs another NumPy")
        check_torch(make(), "ImportError: Numba needs another NumPy")
    assert len(calls) == 1  # once is enough to know


@pytest.mark.usefixtures("fresh")
def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(folded_numba, "sample", fail)
    check_torch(make(), "OSError: no space left on device")


def test_numba_is_imported_for_the_first_few_rows_and_not_before() -> None:
    code = """
import sys, torch, gtp_policy
actor = gtp_policy.FlowMapActor(3, 2, gtp_policy.FlowMapActorConfig(hidden=(16, 8)))
print("numba" in sys.modules)
for rows in (100, 1):
    actor.sample(torch.zeros(rows, 3))
    print("numba" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.split() == ["False", "False", "True"]
