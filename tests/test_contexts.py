"""What is kept from one call to the next is plain, in whatever context the first call was made."""

import functools
import gc
import importlib
import pkgutil
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import gtp_policy
from gtp_policy import (
    FlowMapActor,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    ObservationLayout,
    OfflineDataset,
    QEnsemble,
    QEnsembleConfig,
    act,
    load_checkpoint,
    presets,
    save_checkpoint,
)
from gtp_policy._contexts import constant, outside, transforming
from gtp_policy.acting import CPUSnapshot
from gtp_policy.critic import ValueNetwork
from gtp_policy.encoders import ImpalaEncoderConfig
from gtp_policy.errors import StateMismatchError
from gtp_policy.export import export_onnx, export_torch
from gtp_policy.kernels import using
from gtp_policy.networks import linear
from gtp_policy.times import KarrasTimes, LinearTimes, LogNormalIndex, draw_times
from tests.spread import spread_apart

OBS, ACT, ROWS = 3, 2, 40
OF_TRACING = "ignore::torch.jit.TracerWarning", "ignore:`torch.jit:DeprecationWarning"
CONFIG = GTPConfig(
    actor=FlowMapActorConfig(hidden=(16, 16), steps=3),
    critic=QEnsembleConfig(hidden=(16,)),
    learner=GTPLearnerConfig(total_updates=20),
)


def data() -> OfflineDataset:
    z = torch.Generator().manual_seed(0)
    obs = torch.randn(ROWS, OBS, generator=z)
    return OfflineDataset.from_arrays(
        obs=obs.numpy(),
        action=torch.rand(ROWS, ACT, generator=z).numpy(),
        reward=obs[:, 0].numpy(),
        next_obs=obs.flip(0).numpy(),
        terminated=[False] * ROWS,
        truncated=[False] * ROWS,
        low=[-1.0] * ACT,
        high=[1.0] * ACT,
    )


class Policy(nn.Module):
    def __init__(self, actor: FlowMapActor, steps: int | None = None) -> None:
        super().__init__()
        self.actor, self.steps = actor, steps

    def forward(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.actor.sample(obs, noise=noise, steps=self.steps)


# --- every cache of the package


def modules() -> Iterator[types.ModuleType]:
    for info in pkgutil.walk_packages(gtp_policy.__path__, "gtp_policy."):
        if not any(part in info.name for part in ("testing", "triton", "_numba", "__main__")):
            yield importlib.import_module(info.name)


def tensors_within(*roots: object) -> list[Tensor]:
    """Returns every tensor that can be reached without passing through code."""
    seen: set[int] = set()
    found, left = [], list(roots)
    code = types.ModuleType, type, types.FrameType, types.CodeType
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, code):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            found.append(thing)
        if isinstance(thing, types.FunctionType):
            # Not its globals, which are everything; what it keeps is in its attributes and cells.
            left += [thing.__dict__, *(c.cell_contents for c in thing.__closure__ or ())]
            continue
        left += gc.get_referents(thing)
    return found


def kept() -> list[Tensor]:
    """Returns every tensor that a module of the package keeps."""
    # Where names begin with "__", torch.compile puts graphs of its own into the modules it reads.
    return tensors_within(
        *(v for module in modules() for n, v in vars(module).items() if not n.startswith("__"))
    )


def clear() -> None:
    """Empties every cache of functions, so that the next call is the first one of the process."""
    for module in modules():
        for value in vars(module).values():
            for function in (value, getattr(value, "kept", None)):
                if hasattr(function, "cache_clear"):
                    function.cache_clear()


def wrong(tensors: list[Tensor], devices: tuple[str, ...] = ("cpu",)) -> list[str]:
    """Returns what is not plain about tensors."""
    return [
        f"{type(x).__name__} on {x.device}, inference={x.is_inference()}"
        for x in tensors
        if type(x) not in (Tensor, nn.Parameter)
        or x.device.type not in devices
        or x.is_inference()
        or torch._C._functorch.is_functorch_wrapped_tensor(x)
    ]


def use_everything(learner: GTPLearner, dataset: OfflineDataset) -> list[Tensor]:
    """Fills every cache there is, and returns what it computed on the way."""
    obs = dataset.transitions.obs[:4]
    noise = torch.arange(4.0 * ACT, dtype=torch.float32, device="cpu").view(4, ACT) / 8
    actor = learner.target_actor
    found = [
        learner.act(obs, deterministic=True),
        learner.act(obs, candidates=3, deterministic=True),
        actor.sample(obs, noise=noise, steps=2),
        actor.sample_with_gradient(obs, noise).detach(),
        LinearTimes().grid(7, dtype=torch.float32),
    ]
    law = draw_times(
        KarrasTimes(), 8, 5, generator=torch.Generator().manual_seed(1), law=LogNormalIndex(),
        dtype=torch.float32,
    )  # fmt: skip
    learner.update_from(dataset)
    with using("reference"):
        learner.update_from(dataset)
    actor.explain(1)
    return [*found, *law, learner.act(obs, deterministic=True)]


def exported(learner: GTPLearner, dataset: OfflineDataset) -> None:
    inputs = torch.randn(2, OBS), torch.randn(2, ACT)
    torch.export.export(Policy(learner.target_actor), inputs)


def written(learner: GTPLearner, dataset: OfflineDataset) -> None:
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(learner, f"{folder}/policy.onnx")
        export_onnx(learner, f"{folder}/policy.onnx", candidates=3, noise="keyed")


def written_by_torch(learner: GTPLearner, dataset: OfflineDataset) -> None:
    with tempfile.TemporaryDirectory() as folder:
        export_torch(learner, f"{folder}/policy.pt2")


def traced(learner: GTPLearner, dataset: OfflineDataset) -> None:
    inputs = torch.randn(2, OBS), torch.randn(2, ACT)
    torch.jit.trace(Policy(learner.target_actor), inputs)


def made_fx(learner: GTPLearner, dataset: OfflineDataset) -> None:
    policy, inputs = Policy(learner.target_actor), (torch.randn(2, OBS), torch.randn(2, ACT))
    make_fx(policy, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*inputs)


def faked(learner: GTPLearner, dataset: OfflineDataset) -> None:
    with FakeTensorMode():
        actor, critic, obs = FlowMapActor(OBS, ACT), QEnsemble(OBS, ACT), torch.zeros(3, OBS)
        for candidates in (1, 2):
            for deterministic in (False, True):
                action = act(actor, critic, obs, candidates=candidates, deterministic=deterministic)
                assert isinstance(action, FakeTensor)


def on_meta(learner: GTPLearner, dataset: OfflineDataset) -> None:
    actor = GTPLearner.build(OBS, ACT, CONFIG, device="meta").target_actor
    obs = torch.zeros(2, OBS, device="meta")
    assert actor.sample(obs, noise=torch.zeros(2, ACT, device="meta")).is_meta


def mapped(learner: GTPLearner, dataset: OfflineDataset) -> None:
    policy, obs, noise = Policy(learner.target_actor), torch.randn(4, 1, OBS), torch.ones(4, 1, ACT)
    torch.testing.assert_close(torch.vmap(policy)(obs, noise)[:, 0], policy(obs[:, 0], noise[:, 0]))


def differentiated(learner: GTPLearner, dataset: OfflineDataset) -> None:
    obs, noise = torch.randn(2, OBS), torch.randn(2, ACT)
    actor = learner.actor

    def total(z: Tensor) -> Tensor:
        return actor.sample_with_gradient(obs, z).sum()

    torch.func.grad(total)(noise)
    torch.func.jvp(total, (noise,), (noise,))


def compiled(learner: GTPLearner, dataset: OfflineDataset) -> None:
    policy, (obs, noise) = Policy(learner.target_actor), (torch.randn(2, OBS), torch.randn(2, ACT))
    found = torch.compile(policy, backend="eager")(obs, noise)
    torch.testing.assert_close(found, policy(obs, noise))
    torch.compiler.reset()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def within(make: Callable[[], AbstractContextManager[object]]) -> Callable[..., None]:
    def run(learner: GTPLearner, dataset: OfflineDataset) -> None:
        with make():
            use_everything(learner, dataset)

    return run


FIRST: dict[str, Callable[[GTPLearner, OfflineDataset], None]] = {
    "torch.export": exported,
    "export_onnx": written,
    "export_torch": written_by_torch,
    "a trace": traced,
    "make_fx": made_fx,
    "FakeTensorMode": faked,
    "the meta device": on_meta,
    "vmap": mapped,
    "grad and jvp": differentiated,
    "torch.compile": compiled,
    "inference mode": within(torch.inference_mode),
    "a default device": within(lambda: torch.device("meta")),
    "a default dtype": within(lambda: default_dtype(torch.float64)),
    "autocast": within(lambda: torch.autocast("cpu", torch.bfloat16)),
}


@pytest.mark.slow
@pytest.mark.global_rng
@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:`torch.jit:DeprecationWarning"
)
@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST.keys())
def test_whoever_comes_first_leaves_no_trace(
    first: Callable[[GTPLearner, OfflineDataset], None],
) -> None:
    dataset = data()
    clear()
    expected = use_everything(GTPLearner.from_dataset(dataset, CONFIG), dataset)
    used = GTPLearner.from_dataset(dataset, CONFIG)
    clear()
    first(used, dataset)
    assert not transforming()
    # A grid for the meta device lies there.
    devices = ("cpu", "meta") if first is on_meta else ("cpu",)
    assert wrong([*kept(), *tensors_within(used)], devices) == []
    # Learners that were there before, and those that come after.
    other = GTPLearner.from_dataset(dataset, CONFIG)
    for a, b in zip(use_everything(other, dataset), expected, strict=True):
        assert torch.equal(a, b)
    use_everything(used, dataset)
    assert len(kept()) > 5


@pytest.mark.parametrize(
    "make", [lambda: torch.device("meta"), lambda: default_dtype(torch.float64)]
)
def test_a_default_changes_no_result(make: Callable[[], AbstractContextManager[object]]) -> None:
    dataset = data()
    results = []
    for context in (nullcontext, make):
        clear()
        learner = GTPLearner.from_dataset(dataset, CONFIG)
        with context():
            results.append(use_everything(learner, dataset))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["gtp", "one_step", "gtp_linear_q", "paper"])
def test_a_default_device_is_not_where_networks_are_built(name: str) -> None:
    config = presets.get(name)
    with torch.device("meta"):
        learner = GTPLearner.build(OBS, ACT, config, device="cpu")
        CPUSnapshot()
    assert {x.device.type for x in tensors_within(learner)} == {"cpu"}
    other = GTPLearner.build(OBS, ACT, config)
    obs = torch.zeros(2, OBS)
    assert torch.equal(learner.act(obs, deterministic=True), other.act(obs, deterministic=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "choices", [{"deterministic": True}, {}, {"candidates": 3}, {"deterministic": True, "steps": 2}]
)
def test_policies_are_exported_for_any_number_of_rows(choices: dict[str, Any]) -> None:
    learner = GTPLearner.build(OBS, ACT, CONFIG)

    class Acting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.actor, self.critic = learner.target_actor, learner.target_critic

        def forward(self, obs: Tensor) -> Tensor:
            return act(self.actor, self.critic, obs, **choices)

    rows = {0: torch.export.Dim("B")}
    program = torch.export.export(Acting(), (torch.zeros(5, OBS),), dynamic_shapes=(rows,)).module()
    for n in (2, 5, 40):
        obs = torch.linspace(-1, 1, n * OBS).view(n, OBS)
        with torch.random.fork_rng():
            got = program(obs)
            assert got.shape == (n, ACT)
            if choices.get("deterministic"):
                expected = Acting()(obs)
                torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
            else:
                assert not torch.equal(program(obs), got)


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = linear(OBS + ACT, ACT, generator=torch.Generator())

    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        found: Tensor = self.layer(torch.cat([obs, x], 1))
        return found


def images(shape: tuple[int, ...]) -> GTPConfig:
    layout, encoder = ObservationLayout(shape), ImpalaEncoderConfig(channels=(2,), features=4)
    config = GTPConfig(encoder=encoder, critic=QEnsembleConfig(hidden=(8,)))
    return config.fit_to_observations(layout, ("",))


BUILT: dict[str, Callable[[Path, OfflineDataset], nn.Module]] = {
    "actor": lambda path, dataset: FlowMapActor(OBS, ACT),
    "actor of statistics": lambda path, dataset: FlowMapActor(
        OBS, ACT, FlowMapActorConfig(action_statistics=spread_apart(ACT))
    ),
    "critic": lambda path, dataset: QEnsemble(OBS, ACT),
    "value": lambda path, dataset: ValueNetwork(OBS, (8,)),
    "learner": lambda path, dataset: GTPLearner.build(OBS, ACT),
    "learner of images": lambda path, dataset: GTPLearner.build(48, ACT, images((4, 4, 3))),
    "from_dataset": lambda path, dataset: GTPLearner.from_dataset(dataset, CONFIG),
    "from_actor": lambda path, dataset: GTPLearner.from_actor(
        load_checkpoint(path).learner, CONFIG
    ),
    "load_checkpoint": lambda path, dataset: load_checkpoint(path).learner,
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", BUILT)
def test_a_default_dtype_changes_nothing_of_what_is_built(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    dataset, path = data(), tmp_path / "checkpoint"
    save_checkpoint(path, GTPLearner.from_dataset(dataset, CONFIG))
    expected = BUILT[name](path, dataset)
    with default_dtype(dtype):
        got = BUILT[name](path, dataset)
        if isinstance(got, FlowMapActor):
            got.sample(torch.zeros(1, OBS, dtype=torch.float32))
    tensors = [[*module.parameters(), *module.buffers()] for module in (got, expected)]
    for a, b in zip(*tensors, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert torch.equal(a, b)


def test_a_network_of_the_callers_in_float64_is_taken_as_it_is() -> None:
    network = Backbone().double()
    learner = GTPLearner.build(OBS, ACT, CONFIG, network=network)
    assert learner.dtype == torch.float64
    assert learner.act(torch.zeros(1, OBS, dtype=torch.float64)).dtype == torch.float64
    of_data = GTPLearner.from_dataset(data(), CONFIG, network=network)
    assert {parameter.dtype for parameter in of_data.parameters()} == {torch.float32}
    of_data.update_from(data(), 1, batch_size=4)


def test_a_walk_finds_what_is_not_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    @functools.cache
    def careless() -> Tensor:
        return torch.ones(1)

    module = sys.modules["gtp_policy.times"]
    monkeypatch.setattr(module, "careless", careless, raising=False)
    with FakeTensorMode():
        careless()
    assert any("FakeTensor" in line for line in wrong(kept()))
    careless.cache_clear()
    with torch.inference_mode():
        careless()
    assert any("inference=True" in line for line in wrong(kept()))


def test_what_is_kept_appears_in_every_context_with_the_same_numbers() -> None:
    made = []

    @constant(maxsize=4)
    def numbers(n: int) -> Tensor:
        made.append(n)
        return torch.linspace(0.0, 1.0, n, dtype=torch.float32, device="cpu")

    with FakeTensorMode():
        assert isinstance(numbers(3), FakeTensor)
    plain = numbers(3)
    graph = make_fx(lambda x: x + numbers(3))(torch.zeros(3))
    assert torch.equal(graph(torch.ones(3)), 1 + plain)
    assert torch.equal(torch.vmap(lambda x: x + numbers(3))(torch.zeros(2, 3))[1], plain)
    assert numbers(3) is plain
    assert made == [3]


def test_outside_is_outside_of_all_at_once_and_comes_back() -> None:
    with ExitStack() as stack:
        stack.enter_context(torch.device("meta"))
        stack.enter_context(torch.inference_mode())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        with outside():
            x = torch.zeros(1)
            assert (type(x), x.device.type, x.is_inference()) == (Tensor, "cpu", False)
            assert not transforming()
        assert transforming()
        assert torch.zeros(1).is_meta
        with pytest.raises(KeyError), outside():
            raise KeyError
        assert transforming()


# --- a traced policy is the policy


@pytest.mark.slow
@pytest.mark.global_rng
@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:`torch.jit:DeprecationWarning"
)
@pytest.mark.parametrize("width", [16, 600])  # layers of few and of many elements
@pytest.mark.parametrize("steps", [1, 5])
def test_a_trace_is_the_policy_at_every_number_of_rows(width: int, steps: int) -> None:
    actor = FlowMapActor(OBS, ACT, FlowMapActorConfig(hidden=(width, width)))
    policy = Policy(actor, steps)
    inputs = torch.randn(5, OBS), torch.randn(5, ACT)
    rows = torch.export.Dim("rows", min=1)
    exported_program = torch.export.export(policy, inputs, dynamic_shapes=({0: rows}, {0: rows}))
    policies: dict[str, Any] = {
        "jit": torch.jit.trace(policy, inputs),
        "export": exported_program.module(),
        "make_fx": make_fx(policy, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*inputs),
    }
    for n in (1, 2, 14, 15, 16, 300):
        obs, noise = torch.randn(n, OBS), torch.randn(n, ACT)
        for name, traced_policy in policies.items():
            if name == "export" and n == 1:
                continue  # torch.export takes a batch of one for another case
            torch.testing.assert_close(
                traced_policy(obs, noise), policy(obs, noise), atol=1e-5, rtol=0, msg=name
            )


@pytest.mark.slow
@pytest.mark.global_rng
def test_a_strict_export_is_the_policy_too() -> None:
    policy = Policy(FlowMapActor(OBS, ACT), 2)
    inputs = torch.randn(5, OBS), torch.randn(5, ACT)
    program = torch.export.export(policy, inputs, strict=True)
    torch.testing.assert_close(program.module()(*inputs), policy(*inputs), atol=1e-5, rtol=0)


# --- a state of tensors


def test_an_actors_state_is_tensors_alone(tmp_path: Any) -> None:
    actor, other = FlowMapActor(OBS, ACT), FlowMapActor(OBS, ACT, seed=1)
    state = actor.state_dict()
    assert all(isinstance(x, Tensor) for x in state.values())
    save_file(state, tmp_path / "state.safetensors")
    save_model(actor, str(tmp_path / "model.safetensors"))
    load_model(other, str(tmp_path / "model.safetensors"))
    assert torch.equal(other.network.mlp[0].weight, actor.network.mlp[0].weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_an_average_of_states_loads(dtype: torch.dtype) -> None:
    a, b = (FlowMapActor(OBS, ACT, seed=seed).to(dtype) for seed in (0, 1))
    states = a.state_dict(), b.state_dict()
    mean = {k: (0.3 * states[0][k].to(dtype) + 0.7 * states[1][k].to(dtype)) for k in states[0]}
    a.load_state_dict(mean)
    halved = {k: ((v + v) / 2).to(v.dtype) for k, v in b.state_dict().items()}
    b.load_state_dict(halved)
    third = FlowMapActor(OBS, ACT, seed=2).to(dtype).state_dict()
    a.load_state_dict({k: (states[0][k] + states[1][k] + third[k]) / 3 for k in third})


def test_the_dictionary_of_earlier_versions_still_loads_and_still_differs() -> None:
    actor = FlowMapActor(OBS, ACT, presets.paper_loss().actor)
    before: dict[str, Any] = dict(actor.state_dict())
    facts = {"sigma_data": 0.5, "times": KarrasTimes().model_dump(mode="json")}
    before["_extra_state"] = facts
    actor.load_state_dict(before)
    before["_extra_state"] = {**facts, "sigma_data": 0.25}
    with pytest.raises(StateMismatchError, match="another flow map"):
        actor.load_state_dict(before)
    for damaged in (torch.zeros(5), torch.full((9,), torch.nan), torch.tensor([91.0] * 100_000)):
        with pytest.raises(StateMismatchError, match="something unreadable"):
            actor.set_extra_state(damaged)
