"""An update by Triton's kernels: interpreted against the reference, and compiled without a GPU."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import nodes
from benchmarks.contenders import Case
from gtp_policy import GTPConfig, PolicyBaseline, QEnsembleConfig, presets
from gtp_policy.kernels import mlp, using
from tests.engine.test_choice import VARIANTS, make_batch, make_config, make_learner
from tests.interpreted import needs_triton, other_device

pytestmark = needs_triton

# --- compiled, without a GPU, before anything is interpreted


def launched(policy: GTPConfig) -> list[tuple[Any, dict[str, Any], dict[str, Any]]]:
    """Returns the kernels that an update of a config launches: types and constants."""
    seen = {}
    kinds = {torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64"}

    def kind(x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(map(kind, x))
        if isinstance(x, torch.Tensor):
            return kinds[x.dtype]
        return "i32" if isinstance(x, int) else "fp32"

    def note(self: Any, kernel: Any, grid: Any, like: Any, *args: Any, **constants: Any) -> None:
        names = [name for name in kernel.arg_names if name not in constants]
        types = dict(zip(names, map(kind, args), strict=True))
        key = kernel.fn.__name__, str(types), str(constants)
        seen.setdefault(key, (kernel, types, constants))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nodes.Counted, "launch", note)
        nodes.count(policy, Case())
    return list(seen.values())


@pytest.mark.slow
@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="kernels are interpreted")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("preset", ["paper_loss", "one_step"])
def test_every_kernel_of_an_update_fits_on_a_gpu(
    preset: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared memory as an A100 has it, and no register goes to memory."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    policy = presets.get(preset)
    run = policy.learner.replace(baseline=PolicyBaseline(samples=1))
    policy = policy.replace(learner=run, critic=QEnsembleConfig(layer_norm=True))
    names = set()
    for kernel, types, given in launched(policy):
        name = kernel.fn.__name__
        if name == "jumps":
            continue  # has a test of its own, and is planned for the device it runs on
        names.add(name)
        full = {n: "constexpr" if n in given else types[n] for n in kernel.arg_names}
        aligned = {
            (i,): [["tt.divisibility", 16]]
            for i, kind in enumerate(full.values())
            if kind.startswith("*")
        }
        source = ASTSource(kernel, full, given, aligned)
        result = compile(source, target=GPUTarget("cuda", capability, 32))
        assert result.metadata.shared <= 163 * 1024, name
        (tmp_path / "kernel.cubin").write_bytes(result.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if tool.exists():
            command = [tool, "-res-usage", tmp_path / "kernel.cubin"]
            usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            stack = re.search(r"STACK:(\d+)", usage)
            assert stack is not None
            # Sines and cosines of large angles keep 32 bytes there.
            assert int(stack.group(1)) <= 64, name
    assert names >= {"draws", "forward", "backward_columns", "backward_rows", "flow_inputs"}
    assert names >= {"flow_loss", "weights", "critic_error", "adam", "follow", "join"}


# --- interpreted


@pytest.fixture(scope="module")
def interpreted() -> Iterator[None]:
    with other_device():
        yield


QUICK = ["off the grid", "layer norm, gelu, three members", "one jump, its own weights", "solver"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS],
)
def test_gradients_are_those_of_the_reference(variant: str, interpreted: None) -> None:
    config = make_config(**VARIANTS[variant])
    reference, mine = make_learner(config), make_learner(config)
    batch = make_batch()
    with using("reference"):
        expected = reference.update(batch).to_floats()
    reported = mine.update(batch).to_floats()
    assert mine._dispatcher._fast.by_triton
    assert reported == pytest.approx(expected, rel=1e-4, abs=1e-5)
    for name in reference.optimizers:
        pairs = zip(
            getattr(mine, name).parameters(), getattr(reference, name).parameters(), strict=True
        )
        for a, b in pairs:
            size = float(b.grad.abs().max())
            torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=2e-4 * size + 1e-7)
            # Adam's first step divides a gradient by its size: the same sign gives the same step.
            clear = b.grad.abs() > 1e-3 * size
            torch.testing.assert_close(a[clear], b[clear], rtol=0, atol=1e-6)


def test_states_serve_both_ways(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments and counts of steps are torch's own."""
    reference, mixed = make_learner(), make_learner()
    for step in range(4):
        batch = make_batch(step)
        with using("reference"):
            reference.update(batch)
        with using("reference" if step % 2 else "auto"):
            mixed.update(batch)
    for name, optimizer in reference.optimizers.items():
        own = mixed.optimizers[name].state_dict()["state"]
        for key, state in optimizer.state_dict()["state"].items():
            assert own[key]["step"] == state["step"] == 4
            torch.testing.assert_close(own[key]["exp_avg"], state["exp_avg"], atol=1e-5, rtol=1e-3)


def test_what_is_not_a_number_is_not_hidden(interpreted: None) -> None:
    from gtp_policy.kernels import update_triton

    advantage = torch.tensor([[1.0, float("nan"), 2.0], [1.0, 0.0, 2.0]])
    choices = {"eps": 1e-6, "max_weight": 100.0, "signed": False, "effective_share": None}
    weight, metrics = update_triton.weights(advantage, 1.0, halvings=24, **choices)
    assert weight[0].isnan().all()
    assert metrics[[0, 1, 2, 3, 5], 0].isnan().all()  # none of which is clipped, as in torch
    assert weight[1].isfinite().all()


def test_without_triton_torchs_operators_compute(
    interpreted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gtp_policy.kernels import mlp_triton

    reasons: dict[str, tuple[ModuleType | Any, str, Any]] = {
        "Triton is not installed": (mlp_triton.kernel, "INSTALLED", False),
        "the kernel was not made for ROCm": (torch.version, "hip", "6.0"),
        "a layer of 24 units is wider than 16": (mlp_triton, "_WIDEST", 16),
    }
    from gtp_policy._engine.support import against_triton

    for reason, (owner, name, value) in reasons.items():
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            learner = make_learner()
            assert against_triton([learner]) == reason
            learner.update(make_batch())
            assert not learner._dispatcher._fast.by_triton
    assert against_triton([make_learner(dtype=torch.float64)]) == "the network is not in float32"
    monkeypatch.setattr(mlp, "in_blocks", lambda x: True)
    assert against_triton([make_learner()]) == "the device is the CPU"
