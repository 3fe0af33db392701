"""The prepared sampler: the reference's numbers, whatever happens to the network in between."""

import copy
import gc
import io
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gtp_policy import FlowMapActor, FlowMapActorConfig, _folding
from gtp_policy.errors import DataError
from gtp_policy.kernels import folded, using
from gtp_policy.kernels.switch import EngineName
from gtp_policy.networks import FlowMapMLP, Mish, linear
from gtp_policy.times import KarrasTimes, LinearTimes, UniformTimes
from tests.spread import spread_apart

OBS, ACT = 3, 2
ENGINES: tuple[EngineName, ...] = ("auto", "torch")


def make(**choices: Any) -> FlowMapActor:
    several = {"hidden": (16, 8), "steps": 5, "times": KarrasTimes(), "embedding": "log"}
    return FlowMapActor(OBS, ACT, FlowMapActorConfig(**several | choices))


def inputs(actor: FlowMapActor, rows: int = 5, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(rows, width, generator=g).to(actor.normalizer.mean.dtype)
        for name, width in (("obs", actor.obs_dim), ("noise", actor.action_dim))
    }


def planned(actor: FlowMapActor, steps: int | None = None) -> bool:
    """Whether the sampler would take a plan, not the reference."""
    return actor._folded(inputs(actor)["obs"], steps or actor.config.steps) is not None


def check_equal(actor: FlowMapActor, rows: int = 5, atol: float = 2e-6, **choices: Any) -> None:
    given = inputs(actor, rows)
    with using("reference"):
        expected = actor.sample(**given, **choices)
    # Few rows go through numba where it is installed, and through torch where that is selected.
    for engine in ENGINES:
        with using(engine):
            got = actor.sample(**given, **choices)
        torch.testing.assert_close(got, expected, atol=atol, rtol=0)


TIMES = [
    LinearTimes(),
    KarrasTimes(),
    KarrasTimes(t_min=0.002, t_max=80.0),
    UniformTimes(t_max=2.0),
]


@pytest.mark.slow
@given(
    actor=st.builds(
        lambda obs, act, dtype, seed, **choices: FlowMapActor(
            obs, act, FlowMapActorConfig(**choices), seed=seed
        ).to(dtype),
        obs=st.integers(1, 40),
        act=st.integers(1, 9),
        dtype=st.sampled_from([torch.float32, torch.float64]),
        seed=st.integers(0, 99),
        hidden=st.lists(st.integers(1, 70), min_size=1, max_size=3).map(tuple),
        time_dim=st.sampled_from([2, 8, 32]),
        sigma_data=st.floats(0.05, 2.0),
        times=st.sampled_from(TIMES),
    ),
    steps=st.integers(1, 12),
    rows=st.integers(1, 300),
    block=st.sampled_from([64, 2**12, 2**16]),
    shift=st.floats(-5, 5, width=32),
    standardised=st.booleans(),
)
def test_a_plan_gives_the_references_actions(
    actor: FlowMapActor, steps: int, rows: int, block: int, shift: float, standardised: bool
) -> None:
    if standardised:
        actor.set_action_scales_(actor.sigma_data, spread_apart(actor.action_dim))
    assert planned(actor, steps)
    mean = torch.full_like(actor.normalizer.mean, shift)
    actor.normalizer.set_statistics_(mean, mean.abs() + 0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folded, "_BLOCK", block)
        wide = actor.fixed_noise.dtype == torch.float64
        check_equal(actor, rows, atol=1e-12 if wide else 2e-6, steps=steps)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 64, 256, 257, 1000])
def test_the_default_network(rows: int) -> None:
    for steps in (1, 2, 5):
        actor = FlowMapActor(11, 3)
        assert planned(actor, steps)
        check_equal(actor, rows, steps=steps)


def test_weights_of_any_size_in_float64() -> None:
    actor = make().double()
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.mul_(4)  # biases too, which the plan moves from layer to layer
    check_equal(actor, 200, atol=1e-10)


# --- what happens in between


def scale(actor: FlowMapActor) -> None:
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.mul_(2)


def write_past_autograd(actor: FlowMapActor) -> None:
    for parameter in actor.parameters():
        parameter.data.mul_(2)  # leaves the version of the tensor as it was


def write_through_numpy(actor: FlowMapActor) -> None:
    for parameter in actor.parameters():
        parameter.detach().numpy()[:] *= 2


def swap_data(actor: FlowMapActor) -> None:
    for parameter in actor.parameters():
        parameter.data = 2 * parameter.data


def from_vector(actor: FlowMapActor) -> None:
    for _ in range(3):  # memory that was freed is used again
        vector = 2 * nn.utils.parameters_to_vector(actor.parameters()).detach()
        nn.utils.vector_to_parameters(vector, actor.parameters())


def assign(actor: FlowMapActor) -> None:
    actor.load_state_dict(FlowMapActor(OBS, ACT, actor.config, seed=7).state_dict(), assign=True)


def load(actor: FlowMapActor) -> None:
    actor.load_state_dict(FlowMapActor(OBS, ACT, actor.config, seed=7).state_dict())


def replace_parameter(actor: FlowMapActor) -> None:
    actor.network.mlp[0].weight = nn.Parameter(2 * actor.network.mlp[0].weight.detach())


def replace_layer(actor: FlowMapActor) -> None:
    actor.network.mlp[2] = linear(16, 8, generator=torch.Generator().manual_seed(7))


def replace_network(actor: FlowMapActor) -> None:
    actor.network = FlowMapMLP(OBS, ACT, (9, 7), 4, generator=torch.Generator().manual_seed(7))


def transpose(actor: FlowMapActor) -> None:
    with torch.no_grad():
        layer = actor.network.mlp[2]
        layer.weight.data = layer.weight.data.t().contiguous().t()


def statistics(actor: FlowMapActor) -> None:
    actor.normalizer.set_statistics_(torch.full((OBS,), 0.5), torch.full((OBS,), 3.0))


def replace_normalizer(actor: FlowMapActor) -> None:
    actor.normalizer = copy.deepcopy(actor.normalizer)
    statistics(actor)


def train(actor: FlowMapActor) -> None:
    optimizer = torch.optim.Adam(actor.parameters(), lr=0.1, fused=True)
    o, x, t = torch.ones(4, OBS), torch.ones(4, ACT), torch.ones(4)
    actor.endpoint(o, x, t, t).sum().backward()
    optimizer.step()


CHANGES = [scale, write_past_autograd, write_through_numpy, swap_data, from_vector, assign, load]
CHANGES += [replace_parameter, replace_layer, replace_network, transpose, statistics, train]
CHANGES += [replace_normalizer]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_network_is_noticed(change: Callable[[FlowMapActor], None]) -> None:
    actor = make()
    before = actor.sample(**inputs(actor))
    change(actor)
    assert planned(actor)
    check_equal(actor)
    if change is not transpose:
        assert not torch.equal(actor.sample(**inputs(actor)), before)


def tie_layers(actor: FlowMapActor) -> None:
    actor.network.mlp[4] = actor.network.mlp[2]


def tie_weights(actor: FlowMapActor) -> None:
    actor.network.mlp[4].weight = actor.network.mlp[2].weight


def tie_biases(actor: FlowMapActor) -> None:
    actor.network.mlp[2].bias = actor.network.mlp[0].bias


@pytest.mark.parametrize("tie", [tie_layers, tie_weights, tie_biases])
def test_layers_may_share_what_they_have(tie: Callable[[FlowMapActor], None]) -> None:
    actor = make(hidden=(16, 16, 16))
    tie(actor)
    assert planned(actor)
    check_equal(actor, rows=30)


def test_another_dtype_and_back() -> None:
    actor = make()
    expected = actor.sample(**inputs(actor))
    check_equal(actor.double(), atol=1e-12)
    assert torch.equal(actor.float().sample(**inputs(actor)), expected)


def test_times_and_scale_are_noticed() -> None:
    actor = make()
    before = actor.sample(**inputs(actor))
    for change in ({"times": UniformTimes(t_max=3.0)}, {"sigma_data": 0.3}):
        actor.config = actor.config.replace(**change)
        check_equal(actor)
        after = actor.sample(**inputs(actor))
        assert not torch.equal(after, before)
        before = after
    actor.config = actor.config.replace(times=LinearTimes())
    assert planned(actor)
    check_equal(actor)


@pytest.mark.parametrize("rows", [1, 5])
def test_layouts_of_what_is_given_do_not_matter(rows: int) -> None:
    actor = make()
    obs, noise = inputs(actor, rows).values()
    for engine in ENGINES:
        with using(engine):
            expected = actor.sample(obs, noise=noise)
            spread = torch.stack([obs, obs + 1], 2)[..., 0]
            assert torch.equal(actor.sample(spread, noise=noise.t().contiguous().t()), expected)
            repeated = noise[:1].expand(rows, -1)
            expected = actor.sample(obs, noise=repeated.contiguous())
            assert torch.equal(actor.sample(obs, noise=repeated), expected)


# --- where there is no plan


class Encoder(nn.Module):
    features_dim = OBS

    def forward(self, obs: Tensor) -> Tensor:
        return 2 * obs


class Doubled(FlowMapMLP):
    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return 2 * super().forward(obs, x, t, s)


class Mirrored(FlowMapActor):
    def _endpoint(self, features: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return -super()._endpoint(features, x, t, s)


class Halved(FlowMapActor):
    def to_action(self, x: Tensor) -> Tensor:
        return super().to_action(x) / 2


def without_bias() -> FlowMapActor:
    actor = make()
    layer = nn.Linear(16, 8, bias=False, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.copy_(actor.network.mlp[2].weight)
    actor.network.mlp[2] = layer
    return actor


def other_activation() -> FlowMapActor:
    actor = make()
    actor.network.mlp[1] = nn.ReLU()
    return actor


def hooked() -> FlowMapActor:
    actor = make()
    actor.sample(**inputs(actor))  # a plan there was
    actor.network.mlp[0].register_forward_hook(lambda module, args, output: -output)
    return actor


def longer() -> FlowMapActor:
    actor = make()
    actor.sample(**inputs(actor))
    layer = linear(ACT, ACT, generator=torch.Generator().manual_seed(7))
    actor.network.mlp.extend([Mish(), layer, nn.Identity()])
    return actor


NO_PLAN: list[tuple[str, Callable[[], FlowMapActor]]] = [
    ("encoder", lambda: FlowMapActor(OBS, ACT, encoder=Encoder())),
    (
        "custom network",
        lambda: FlowMapActor(
            OBS, ACT, network=Doubled(OBS, ACT, (8,), 4, generator=torch.Generator())
        ),
    ),
    ("is a Mirrored, which changes the flow map", lambda: Mirrored(OBS, ACT)),
    ("33 jumps", lambda: make(steps=_folding._MOST_STEPS + 1)),
    ("without bias", without_bias),
    ("other layers", other_activation),
    ("hooks", hooked),
    ("which changes its end (to_action)", lambda: Halved(OBS, ACT)),
    ("other layers", longer),
]


@pytest.mark.parametrize(("why", "build"), NO_PLAN)
def test_what_a_plan_does_not_know_is_left_to_the_reference(
    why: str, build: Callable[[], FlowMapActor]
) -> None:
    actor = build()
    assert not planned(actor)
    check_equal(actor, atol=0.0)
    (line,) = actor.explain()
    assert line.startswith("sample: reference (")
    assert why in line.partition(" because ")[2]


def part(actor: FlowMapActor, name: str) -> Any:
    return actor.get_submodule(name)


def halved(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: function(*args, **kwargs) / 2


PATCHED = [
    *[(name, "forward") for name in ("normalizer", "network", "network.embedding", "network.mlp")],
    *[("network.mlp.0", "forward"), ("network.mlp.1", "forward")],
    *[("", name) for name in ("_features", "_endpoint", "_jump", "to_action")],
]


@pytest.mark.parametrize("on_class", [False, True])
@pytest.mark.parametrize(("name", "method"), PATCHED)
def test_a_method_that_comes_and_goes_is_noticed(name: str, method: str, on_class: bool) -> None:
    actor = make()
    expected = actor.sample(**inputs(actor))
    assert planned(actor)
    patched = part(actor, name)
    with pytest.MonkeyPatch.context() as patch:
        place = type(patched) if on_class else patched
        patch.setattr(place, method, halved(getattr(place, method)))
        assert not planned(actor)
        check_equal(actor, atol=0.0)
        assert not torch.equal(actor.sample(**inputs(actor)), expected)
        (line,) = actor.explain()
        assert f"has a {method}{f' of {name}' if name else ''} that was put in" in line
    assert planned(actor)
    assert torch.equal(actor.sample(**inputs(actor)), expected)
    setattr(patched, method, getattr(patched, method))  # as some give a method back
    assert planned(actor)


@pytest.mark.parametrize("register", ["forward", "forward_pre"])
def test_hooks_of_all_modules_are_noticed(register: str) -> None:
    actor = make()
    expected = actor.sample(**inputs(actor))
    hooks = {
        "forward": lambda module, args, output: output / 2 if type(module) is Mish else None,
        "forward_pre": lambda module, args: args[0] / 2 if type(module) is Mish else None,
    }
    handle = getattr(nn.modules.module, f"register_module_{register}_hook")(hooks[register])
    try:
        assert "hooks of all modules" in actor.explain()[0]
        check_equal(actor, atol=0.0)
        assert not torch.equal(actor.sample(**inputs(actor)), expected)
    finally:
        handle.remove()
    assert planned(actor)
    assert torch.equal(actor.sample(**inputs(actor)), expected)


def test_what_is_in_unused_buffers_changes_nothing() -> None:
    actor = make()
    expected = actor.sample(**inputs(actor))
    actor.action_scale.mul_(0.5)
    actor.action_mean.add_(0.5)
    assert torch.equal(actor.sample(**inputs(actor)), expected)
    check_equal(actor)


def test_an_actor_is_freed_without_the_garbage_collector() -> None:
    actor = make()
    actor.sample(**inputs(actor))
    gone = weakref.ref(actor.network)
    gc.disable()
    try:
        del actor
        assert gone() is None
    finally:
        gc.enable()


def test_the_reference_under_autocast_and_function_transforms() -> None:
    actor = make()
    given = inputs(actor)
    assert planned(actor)
    with using("reference"):
        assert not planned(actor)
        assert actor.explain()[0].endswith('because kernels.using("reference") selects it')
        exact = actor.sample(**given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not planned(actor)
        assert actor.explain()[0].endswith("because autocast is on")
    one = torch.func.vmap(lambda o, z: actor.sample(o[None], noise=z[None])[0])
    torch.testing.assert_close(one(given["obs"], given["noise"]), exact)
    assert actor.sample(given["obs"][:0]).shape == (0, ACT)


# --- buffers


@pytest.mark.parametrize("engine", ENGINES)
def test_results_are_plain_tensors_of_their_own(engine: EngineName) -> None:
    actor = make()
    given = {name: tensor.requires_grad_() for name, tensor in inputs(actor).items()}
    before = {name: tensor.detach().clone() for name, tensor in given.items()}
    with using(engine):
        first = actor.sample(**given)
        kept = first.clone()
        second = actor.sample(given["obs"] + 1, noise=given["noise"])
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)
    assert not first.requires_grad
    assert not first.is_inference()
    (first * torch.ones(1, requires_grad=True)).sum().backward()
    for name, tensor in given.items():
        assert torch.equal(tensor, before[name])
        assert tensor.grad is None


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("row", range(5))
def test_a_row_that_is_not_a_number_spoils_no_other(row: int, engine: EngineName) -> None:
    actor = make()
    given = inputs(actor)
    with using(engine):
        expected = actor.sample(**given)
        given["obs"][row] = torch.nan
        with pytest.raises(DataError, match=f"`obs` is not finite: got nan at row {row}"):
            actor.sample(**given)
        got = _folding.FoldedActor(_folding.fold(actor, actor.config.steps)).sample(**given)
        assert got[row].isnan().all()
        keep = [i for i in range(5) if i != row]
        assert torch.equal(got[keep], expected[keep])
        assert torch.equal(actor.sample(**inputs(actor)), expected)  # nothing of it stays behind


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_do_not_meet(engine: EngineName) -> None:
    actor = make(hidden=(64, 64, 64))
    calls = [inputs(actor, rows=1 + i % 7, seed=i) for i in range(400)]

    def sample(i: int) -> Tensor:
        with using(engine):  # a thread chooses for itself
            return actor.sample(**calls[i], steps=2 + i % 2)

    expected = [sample(i) for i in range(400)]
    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8, initializer=barrier.wait) as pool:
        got = list(pool.map(sample, range(400)))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_copies_and_pickles_start_without_plans() -> None:
    actor = make()
    expected = actor.sample(**inputs(actor))
    file = io.BytesIO()
    torch.save(actor, file)
    file.seek(0)
    for other in (copy.deepcopy(actor), torch.load(file, weights_only=False)):
        assert not other._foldings._made
        assert torch.equal(other.sample(**inputs(actor)), expected)
        scale(other)
        check_equal(other)
    assert torch.equal(actor.sample(**inputs(actor)), expected)
