"""The folded samplers: torch's operators and the Triton kernel against the actor's own reference.

Without a GPU the kernel runs through Triton's interpreter, on the CPU, and is compiled for one.
"""

import importlib
import importlib.util
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gtp_policy import FlowMapActor, FlowMapActorConfig, _folding
from gtp_policy._folding import fastest
from gtp_policy.errors import DataError, ShapeError
from gtp_policy.kernels import using
from gtp_policy.kernels.folded import Folded, FoldedSampler, TorchSampler
from gtp_policy.times import KarrasTimes, UniformTimes
from tests.spread import spread_apart

OBS, ACT = 3, 2
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed: it comes with torch's builds for CUDA, on Linux",
)
needs_gpu = pytest.mark.gpu
SAMPLERS = ["torch", pytest.param("triton", marks=needs_triton)]


@contextmanager
def kernel(*, interpreted: bool) -> Iterator[ModuleType]:
    """The kernel's host; Triton decides when a kernel is defined whether it interprets it."""
    from gtp_policy.kernels import folded_triton

    with pytest.MonkeyPatch.context() as patch:
        if interpreted:
            patch.setenv("TRITON_INTERPRET", "1")
        else:
            patch.delenv("TRITON_INTERPRET", raising=False)
        importlib.reload(folded_triton.kernel)
        yield folded_triton
    importlib.reload(folded_triton.kernel)


@pytest.fixture(params=SAMPLERS)
def build(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Builds a sampler of either kind for the CPU."""
    if request.param == "torch":
        yield lambda folded, **choices: TorchSampler(folded)
        return
    with kernel(interpreted=True) as module:

        def supported(folded: Folded, **choices: Any) -> FoldedSampler:
            assert module.unsupported(folded) is None
            return module.TritonSampler(folded, **choices)

        yield supported


def make(seed: int = 0, obs: int = OBS, act: int = ACT, **choices: Any) -> FlowMapActor:
    actor = FlowMapActor(obs, act, FlowMapActorConfig(**({"hidden": (16, 8)} | choices)), seed=seed)
    with torch.no_grad():
        shift = torch.linspace(-1, 1, obs)
        actor.normalizer.set_statistics_(shift + seed, shift.abs() + 0.5 + seed)
    return actor


def linears(actor: FlowMapActor) -> list[nn.Linear]:
    return [layer for layer in actor.network.mlp if isinstance(layer, nn.Linear)]


def folded_from(actor: FlowMapActor, tensors: dict[str, Any], steps: int | None = None) -> Folded:
    layers = zip(tensors["weights"], tensors["biases"], strict=True)
    return _folding.fold(
        actor,
        steps or actor.config.steps,
        [tensor for layer in layers for tensor in layer],
        (tensors["mean"], tensors["scale"]),
    )


def fold(actor: FlowMapActor, steps: int | None = None) -> Folded:
    tensors = {
        "weights": [layer.weight for layer in linears(actor)],
        "biases": [layer.bias for layer in linears(actor)],
        "mean": actor.normalizer.mean,
        "scale": actor.normalizer.scale,
    }
    return folded_from(actor, tensors, steps)


def inputs(actor: FlowMapActor, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    like = actor.normalizer.mean
    obs, noise = (torch.randn(rows, n, generator=g) for n in (actor.obs_dim, actor.action_dim))
    return obs.to(like), noise.to(like)


def reference(actor: FlowMapActor, obs: Tensor, noise: Tensor, steps: int | None = None) -> Tensor:
    with using("reference"):
        return actor.sample(obs, noise=noise, steps=steps)


def check(got: Tensor, expected: Tensor, atol: float = 1e-6) -> None:
    # Actions are at most 1: this is the error relative to their range.
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)


# --- compiled, without a GPU. Compiled kernels come first: up to Triton 3.5 the interpreter leaves
# its traces in a process.


def compiled(module: ModuleType, folded: Folded, precision: str) -> Any:
    """The kernel for compute capability 9.0, as it is launched for a few hundred rows."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    constants = module.settings(folded, precision, stages=4)
    options = {name: constants.pop(name) for name in ("num_warps", "enable_fp_fusion")}
    constants |= {"TILE": 16, "TURNS": 1, "WEIGHT_STRIDES": module.strides(folded.weights, 2)}
    deep = "*bf16" if precision == "bf16" else "*fp32"
    n = len(folded.weights)
    kinds: dict[str, Any] = {"rows": "i32", "zero": "i32", "start": "fp32", "hidden": deep}
    kinds |= {"weights": ("*fp32", *[deep] * (n - 1)), "biases": ("*fp32",) * n}
    names = module.kernel.jumps.arg_names
    signature = {k: "constexpr" if k in constants else kinds.get(k, "*fp32") for k in names}
    aligned = {}
    for i, kind in enumerate(signature.values()):
        for place in [(i, j) for j in range(n)] if isinstance(kind, tuple) else [(i,)]:
            if isinstance(kind, tuple) or kind.startswith("*"):
                aligned[place] = [["tt.divisibility", 16]]
    source = ASTSource(module.kernel.jumps, signature, constants, aligned)
    return compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_the_default_networks_kernel_fits_on_a_gpu(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    actor = make(obs=11, act=3, hidden=(256, 256, 256))
    with kernel(interpreted=False) as module:
        result = compiled(module, fold(actor, 5), precision)
    # Weights that are not streamed would show here: one layer alone has 256 KiB.
    assert result.metadata.shared <= 227 * 1024
    assert (".bf16" in result.asm["ptx"]) == (precision == "bf16")
    assert "mma.sync" in result.asm["ptx"]  # float32 too: three products of TF32 parts
    (tmp_path / "kernel.cubin").write_bytes(result.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if tool.exists():
        command = [tool, "-res-usage", tmp_path / "kernel.cubin"]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        stack = re.search(r"STACK:(\d+)", usage)
        assert stack is not None
        # Bytes per thread that did not fit in registers; Triton 3.6 needs none.
        assert int(stack.group(1)) <= 64


# --- on a GPU


@needs_gpu
@needs_triton
@pytest.mark.parametrize(("precision", "atol"), [("fp32", 2e-5), ("tf32", 5e-3), ("bf16", 3e-2)])
@pytest.mark.parametrize("rows", [1, 37, 512, 4096, 20_000])
def test_on_a_gpu(precision: Any, atol: float, rows: int) -> None:
    actor = make(obs=11, act=3, hidden=(256, 256, 256)).cuda()
    obs, noise = inputs(actor, rows)
    with kernel(interpreted=False) as module:
        folded = fold(actor)
        assert module.unsupported(folded, precision) is None
        got = module.TritonSampler(folded, precision).run(obs, noise)
        check(got, reference(actor, obs, noise), atol)


@needs_gpu
@needs_triton
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_odd_sizes_and_stacks_on_a_gpu(precision: Any) -> None:
    atol = {"fp32": 2e-5, "tf32": 5e-3, "bf16": 3e-2}[precision]
    with kernel(interpreted=False) as module:
        for hidden in [(20,), (300, 17), (24, 17, 20)]:
            actors = [make(seed, act=5, hidden=hidden).cuda() for seed in range(3)]
            given = [inputs(actor, 37, seed) for seed, actor in enumerate(actors)]
            obs, noise = (torch.stack(column) for column in zip(*given, strict=True))
            got = module.TritonSampler(stacked(actors, in_one_piece), precision).run(obs, noise)
            for actor, (o, z), actions in zip(actors, given, got, strict=True):
                check(actions, reference(actor, o, z), atol)


@needs_gpu
@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_graph_sees_new_parameters_and_waits_for_nothing(kind: str) -> None:
    actor = make(obs=11, act=3, hidden=(256, 256, 256)).cuda()
    obs, noise = inputs(actor, 512)
    out = torch.empty_like(noise)
    with kernel(interpreted=False) as module:
        build = TorchSampler if kind == "torch" else module.TritonSampler
        sampler = build(fold(actor))
        sampler.run(obs, noise, out)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            sampler.run(obs, noise, out)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            sampler.run(obs, noise, out)
        sampler.run(obs[:7], noise[:7])  # must leave the graph its buffers
        with torch.no_grad():
            for parameter in actor.parameters():
                parameter.mul_(1.1)
        obs.add_(1)
        out.fill_(torch.nan)
        graph.replay()
        check(out, reference(actor, obs, noise), 2e-5)


# --- the reference's actions, through the interpreter

TIMES = [KarrasTimes(), KarrasTimes(t_min=0.002, t_max=80.0), UniformTimes(t_max=2.0)]


@pytest.mark.slow
@given(
    obs_dim=st.integers(1, 40),
    act=st.integers(1, 20),
    hidden=st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple),
    time_dim=st.sampled_from([2, 8, 32]),
    sigma_data=st.floats(0.05, 2.0),
    times=st.sampled_from(TIMES),
    steps=st.integers(1, 4),
    rows=st.integers(1, 100),
    tile=st.sampled_from([None, 16, 32]),
    seed=st.integers(0, 99),
    standardised=st.booleans(),
)
def test_actions_are_the_references(
    build: Any,
    obs_dim: int,
    act: int,
    steps: int,
    rows: int,
    tile: int | None,
    standardised: bool,
    **choices: Any,
) -> None:
    actor = make(obs=obs_dim, act=act, **choices)
    if standardised:
        actor.set_action_scales_(actor.sigma_data, spread_apart(act))
    obs, noise = inputs(actor, rows)
    got = build(fold(actor, steps), tile=tile).run(obs, noise)
    # What the network says is multiplied by sigma_data before it is clipped, its rounding as well:
    # the reference itself is 1.1e-6 away from its own value in float64 at sigma_data = 2.
    check(got, reference(actor, obs, noise, steps), 1e-6 * max(1.0, actor.sigma_data))


@pytest.mark.parametrize("hidden", [(256, 256, 256), (300, 20, 270)])
def test_layers_that_take_several_slices(build: Any, hidden: tuple[int, ...]) -> None:
    actor = make(obs=11, act=3, hidden=hidden)
    obs, noise = inputs(actor, 17)
    check(build(fold(actor)).run(obs, noise), reference(actor, obs, noise))


def test_large_activations_do_not_overflow(build: Any) -> None:
    actor = make(hidden=(16, 16))
    with torch.no_grad():
        linears(actor)[0].bias.add_(torch.linspace(-90, 90, 16))  # e^90 squared is no float32
        linears(actor)[1].weight.mul_(0.01)
    obs, noise = inputs(actor, 5)
    expected = reference(actor, obs, noise)
    assert (expected.abs() < 1).any()
    check(build(fold(actor)).run(obs, noise), expected)


@needs_triton
@pytest.mark.parametrize("networks", [1, 16])
@pytest.mark.parametrize("rows", [1, 512, 4096, 100_000])
def test_programs_cover_the_rows_and_keep_processors_busy(rows: int, networks: int) -> None:
    folded = stacked([make(seed) for seed in range(networks)], in_one_piece)
    with kernel(interpreted=True) as module:
        for precision in ("fp32", "tf32"):
            sampler = module.TritonSampler(folded, precision)
            sampler._processors = 132
            made = sampler._allocate(rows)
            (programs, stack), tile = made.grid, made.layout["TILE"]
            assert stack == networks
            assert programs * made.layout["TURNS"] * tile >= rows
            assert networks * programs <= 2 * 132 + networks
            assert made.hidden.numel() == 2 * networks * programs * tile * 16
            if -(-rows // 16) * networks <= 132:
                assert tile == 16  # as many programs as there can be


def test_torchs_operators_in_float64() -> None:
    actor = make(hidden=(32, 32)).double()
    obs, noise = inputs(actor, 50)
    check(TorchSampler(fold(actor)).run(obs, noise), reference(actor, obs, noise), atol=1e-12)


# --- several networks at once


def in_one_piece(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors)


def transposed(tensors: list[Tensor]) -> Tensor:
    return (
        torch.stack([t.mT.contiguous() for t in tensors]).mT
        if tensors[0].dim() == 2
        else (torch.stack(tensors))
    )


def in_an_arena(tensors: list[Tensor]) -> Tensor:
    """Views of one row of memory per network, with other things before and behind."""
    n = tensors[0].numel()
    arena = torch.full((len(tensors), n + 5), torch.nan)
    arena[:, 2 : n + 2] = torch.stack(tensors).flatten(1)
    return arena[:, 2 : n + 2].unflatten(1, tensors[0].shape)


def stacked(actors: list[FlowMapActor], layout: Any, *, shared: bool = False) -> Folded:
    columns = list(zip(*map(linears, actors), strict=True))
    stats = [torch.stack([getattr(a.normalizer, n) for a in actors]) for n in ("mean", "scale")]
    tensors = {
        "weights": [layout([layer.weight.detach() for layer in c]) for c in columns],
        "biases": [layout([layer.bias.detach() for layer in c]) for c in columns],
        "mean": stats[0][0] if shared else stats[0],
        "scale": stats[1][0] if shared else stats[1],
    }
    return folded_from(actors[0], tensors)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [in_one_piece, transposed, in_an_arena])
def test_each_slice_of_a_stack_is_what_it_is_alone(build: Any, layout: Any) -> None:
    actors = [make(seed, hidden=(24, 17, 20)) for seed in range(3)]
    given = [inputs(actor, 37, seed) for seed, actor in enumerate(actors)]
    obs, noise = (torch.stack(column) for column in zip(*given, strict=True))
    got = build(stacked(actors, layout)).run(obs, noise)
    for actor, (o, z), actions in zip(actors, given, got, strict=True):
        check(actions, reference(actor, o, z))
        check(actions, build(fold(actor)).run(o, z))


def test_a_stack_may_share_its_statistics(build: Any) -> None:
    actors = [make(0), make(1)]
    actors[1].normalizer = actors[0].normalizer
    obs, noise = inputs(actors[0], 5)
    folded = stacked(actors, in_one_piece, shared=True)
    got = build(folded).run(obs.expand(2, -1, -1), noise.expand(2, -1, -1))
    for actor, actions in zip(actors, got, strict=True):
        check(actions, reference(actor, obs, noise))


# --- parameters in place, buffers, results


def test_an_optimisers_step_counts_at_once(build: Any) -> None:
    actor = make()
    obs, noise = inputs(actor, 20)
    sampler = build(fold(actor))
    before = sampler.run(obs, noise)
    optimizer = torch.optim.Adam(actor.parameters(), lr=0.1)
    t = torch.ones(len(obs))
    actor.endpoint(obs, noise, t, t).sum().backward()
    optimizer.step()
    actor.normalizer.set_statistics_(torch.full((OBS,), 0.5), torch.full((OBS,), 3.0))
    after = sampler.run(obs, noise)
    check(after, reference(actor, obs, noise))
    assert not torch.equal(after, before)


def test_results_are_plain_tensors_of_their_own(build: Any) -> None:
    actor = make()
    obs, noise = (tensor.requires_grad_() for tensor in inputs(actor, 20))
    sampler = build(fold(actor))
    first = sampler.run(obs, noise)
    kept = first.clone()
    assert not torch.equal(sampler.run(obs + 1, noise), first)
    assert torch.equal(first, kept)
    assert not first.requires_grad
    assert not first.is_inference()
    for rows in (3, 20, 0):
        check(sampler.run(obs[:rows], noise[:rows]), kept[:rows])


def test_a_result_can_be_written_where_one_wants_it(build: Any) -> None:
    actor = make()
    obs, noise = inputs(actor, 20)
    sampler = build(fold(actor))
    out = torch.full((20, ACT), torch.nan)
    assert sampler.run(obs, noise, out) is out
    assert torch.equal(out, sampler.run(obs, noise))
    spaced = torch.stack([obs, obs], -1)[..., 0], torch.stack([noise, noise], -1)[..., 0]
    assert torch.equal(sampler.run(*spaced), out)


def test_what_was_made_in_inference_mode_serves_outside(build: Any) -> None:
    actor = make()
    obs, noise = inputs(actor, 20)
    with torch.inference_mode():
        sampler = build(fold(actor))
        first = sampler.run(obs, noise)
    assert torch.equal(sampler.run(obs, noise), first)


def test_a_row_that_is_not_a_number_spoils_no_other(build: Any) -> None:
    actor = make()
    obs, noise = inputs(actor, 5)
    sampler = build(fold(actor))
    expected = sampler.run(obs, noise)
    obs[2] = torch.nan
    got = sampler.run(obs, noise)
    assert got[2].isnan().all()
    keep = [0, 1, 3, 4]
    assert torch.equal(got[keep], expected[keep])


def test_what_does_not_fit_is_named(build: Any) -> None:
    sampler = build(fold(make()))
    obs, noise, out = torch.zeros(5, OBS), torch.zeros(5, ACT), torch.zeros(5, ACT)
    for wrong in (obs[0], obs[:, :1], obs[None]):
        with pytest.raises(ShapeError, match="`obs` has the wrong shape"):
            sampler.run(wrong, noise)
    with pytest.raises(ShapeError, match=r"`noise` .*got \(4, 2\), expected \(5, 2\)"):
        sampler.run(obs, noise[:4])
    with pytest.raises(ShapeError, match="`out` has the wrong shape"):
        sampler.run(obs, noise, out[:4])
    with pytest.raises(DataError, match=r"`noise` .*got torch.float64 on cpu"):
        sampler.run(obs, noise.double())
    with pytest.raises(DataError, match="`out` has gaps"):
        sampler.run(obs, noise, torch.zeros(ACT, 5).T)


# --- which sampler


@needs_triton
def test_what_the_kernel_cannot_take_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with kernel(interpreted=False) as module:
        assert module.unsupported(fold(make())) == (
            "the network is on cpu, and compiled kernels are for CUDA"
        )
    with kernel(interpreted=True) as module:
        why = module.unsupported
        assert why(fold(make())) is None
        assert why(fold(make()), "bf16") == "Triton's interpreter multiplies no bfloat16"
        assert why(fold(make().double())) == "the network is not in float32"
        assert why(fold(make(hidden=(4,) * 9))) == "9 hidden layers are more than 8"
        assert why(fold(make(act=33))) == "33 action dimensions are more than 32"
        elsewhere = fold(make())._replace(mean=torch.zeros(OBS, device="meta"))
        assert why(elsewhere) == "the network is on several devices"
        monkeypatch.setattr(torch.version, "hip", "6.0")
        assert why(fold(make())) == "the kernel was not made for ROCm"


def test_without_triton_that_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from gtp_policy.kernels import folded_triton

    monkeypatch.setattr(folded_triton.kernel, "INSTALLED", False)
    assert folded_triton.unsupported(fold(make())) == "Triton is not installed"


def test_an_old_device_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from gtp_policy.kernels import folded_triton

    on_gpu = SimpleNamespace(device=torch.device("cuda", 0))
    folded = fold(make())._replace(weights=(on_gpu,))
    monkeypatch.setattr(folded_triton.kernel, "INSTALLED", True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert folded_triton.unsupported(folded) == "compute capability 7.5 is below 8.0"


def test_on_the_cpu_torchs_operators_are_chosen() -> None:
    sampler, why_not = fastest(fold(make()))
    assert isinstance(sampler, TorchSampler)
    assert why_not == "the network is on the CPU"


@needs_triton
def test_the_kernel_is_chosen_where_it_can_be() -> None:
    with kernel(interpreted=True) as module:
        elsewhere = fold(make().to("meta"))
        assert isinstance(fastest(elsewhere)[0], module.TritonSampler)
        sampler, why_not = fastest(elsewhere, "bf16")
        assert isinstance(sampler, TorchSampler)
        assert why_not == "Triton's interpreter multiplies no bfloat16"


def test_what_was_folded_reads_the_parameters_where_they_are() -> None:
    actor = make()
    sampler, why_not = fastest(_folding.fold(actor, 3))
    assert why_not == "the network is on the CPU"
    obs, noise = inputs(actor, 5)
    check(sampler.run(obs, noise), reference(actor, obs, noise, steps=3))
    with torch.no_grad():
        linears(actor)[0].weight.mul_(2)
    check(sampler.run(obs, noise), reference(actor, obs, noise, steps=3))
