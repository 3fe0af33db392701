"""The speed benchmarks measure what they say, and their page says what they measured."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import (
    clock,
    contenders,
    gpu,
    gpu_steps,
    growth,
    host_speed,
    imports,
    performance,
    pictures,
    speed,
)
from benchmarks.contenders import Case
from gtp_policy.kernels import switch, using

ROOT = Path(__file__).parents[2]
TINY = Case(width=4)


def test_rounds_are_interleaved() -> None:
    order: list[str] = []
    named: clock.Contenders = {name: (lambda name=name: order.append(name)) for name in ("a", "b")}
    times = clock.measure(named, rounds=2, calls=2)
    assert order[6:] == ["a", "a", "b", "b"] * 2
    assert times["a"].shape == (2, 2)
    assert clock.measure(named, rounds=3, calls=2, together=True)["b"].shape == (3, 1)


def test_ratios_are_of_one_round() -> None:
    # The machine slows down by half in the second round: both are met, their ratio is not.
    slow = {
        "naive": np.array([[6.0, 6.0], [12.0, 12.0], [6.0, 6.0]]),
        "fast": np.array([[2.0, 2.0], [4.0, 4.0], [2.0, 9.0]]),
    }
    compared = clock.compare(slow)
    assert compared["fast"]["times_faster_than_naive"]["median"] == 3
    assert compared["naive"]["times_faster_than_naive"] == {"median": 1, "q1": 1, "q3": 1}
    assert compared["fast"]["max"] == 9


def test_time_of_a_gpu_is_taken_when_it_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: order.append("wait"))
    monkeypatch.setattr(clock.time, "perf_counter_ns", lambda: order.append("read") or 0)
    calls: clock.Contenders = {"a": lambda: order.append("call")}
    clock.measure(calls, 1, 2, device="cuda", together=True)
    assert order[12:] == ["wait", "read", "call", "call", "wait", "read"]
    del order[:]
    clock.measure(calls, 1, 1, device="cuda")
    assert order[12:] == ["wait", "read", "call", "wait", "read"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the run on a GPU writes on the CPU: every step and every benchmark once, quickly."""
    folder = tmp_path_factory.mktemp("gpu")
    words = ["-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--output", folder]
    result = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    record: dict[str, Any] = json.loads((folder / "gpu.json").read_text(encoding="utf-8"))
    assert record["left_out"] == [], result.stdout + result.stderr
    assert len(list(folder.iterdir())) <= 8
    return record


@pytest.mark.slow
@pytest.mark.xdist_group("gpu run")
def test_every_step_on_a_gpu_leaves_its_figures(quick: dict[str, Any]) -> None:
    assert list(quick["steps"]) == list(gpu.LIMITS) == list(gpu_steps.STEPS)
    assert quick["environment"]["float32_matmul_precision"] == "highest"
    assert "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE" in quick["environment"]
    assert len(quick["first_updates"]["ms"]) == gpu_steps.WARM_UP
    assert 0 < max(quick["equal_to_the_reference"]["largest difference"]) < 1e-3
    for name in performance.LAUNCHES:
        assert 0 < quick[name]["wall"]
        assert 0 < quick[name]["host"]
    assert quick["samplers"]["8 rows, torch"]["largest error"] < 1e-4
    assert quick["update_alone"]["reference"] > 0
    assert quick["actions"]["1 rows"] > 0
    for name in ("tests_on_gpu", "tests_of_triton"):  # they were found, and need a GPU
        assert re.fullmatch(r"\d+ skipped.*", quick[name]["summary"])


@pytest.mark.slow
@pytest.mark.xdist_group("gpu run")
def test_every_benchmark_runs(quick: dict[str, Any]) -> None:
    result = quick["speed"]
    assert result["conditions"]["device"] == "cpu"
    assert set(result["update"]) == {f"K = {k}, M = {m}" for k in (2, 5) for m in (1, 4)}
    assert set(result["action"]) == {"K = 1", "K = 2", "K = 5"}
    assert set(result["4096 actions"]) == {"K = 2", "K = 5"}
    for section in ("update", "update with data", "action", "4096 actions"):
        for of in result[section].values():
            assert set(of) >= {"naive", "library"}
            assert of["naive"]["times_faster_than_naive"]["median"] == 1
            for entry in of.values():
                assert 0 < entry["ms"]["q1"] <= entry["ms"]["median"] <= entry["ms"]["q3"]
                assert entry["p50"] <= entry["p99"] <= entry["max"]
    for groups in result["profile"].values():
        assert groups["matrix products"]["operators"] >= 20
    assert set(quick["growth"]["update"]) == set(growth.AXES)
    assert all(len(of) == 2 for of in quick["growth"]["update"].values())
    assert set(quick["host_speed"]["hosts"]) == {"M = 1", "M = 4"}
    assert set(quick["growth"]["seeds"]) == {"1", "4"}
    assert quick["growth"]["passes"]["paper_loss"] == {
        "cloning": {"with gradient": 2, "without": 1},
        # Four actions of five jumps each, and one for the target.
        "with a critic": {"with gradient": 2, "without": 1 + 5 * 5},
    }


@pytest.mark.slow
@pytest.mark.xdist_group("gpu run")
def test_memory_is_that_of_training_in_a_process_of_its_own(quick: dict[str, Any]) -> None:
    (case,) = quick["memory"]["cases"]
    taken = case["library"]
    assert [stage["after"] for stage in taken["stages"]][:2] == ["data", "learner"]
    assert case["data_mib"] == pytest.approx(50_000 * (2 * 11 + 3 + 1 + 0.5) * 4 / 2**20)
    assert 4 < taken["stages"][0]["growth"] < 50
    assert taken["growth"]["median"] <= taken["peak"]["median"] < 500


@pytest.mark.slow
@pytest.mark.xdist_group("gpu run")
def test_everything_measured_stands_on_the_page(quick: dict[str, Any]) -> None:
    text = performance.PAGE.read_text(encoding="utf-8")
    page = performance.render(text, quick | {"gpu": quick})
    assert page == performance.render(page, quick | {"gpu": quick})
    assert f"Tests on it: {quick['tests_on_gpu']['summary']}." in page
    for name, text in performance.LAUNCHES.items():
        assert f"| {text} | {quick[name]['wall']:.3f} |" in page
    assert page.count("Not yet measured") == 2  # imports and nodes, which no GPU changes
    # Left out is what stands for full sizes, other libraries and imports.
    left_out = ["memory", "Tianshou", "import"]
    if performance.TORCH not in quick["speed"]["action"]["K = 5"]:
        left_out.append("with numba")
    for name, (figure, met) in performance.reached(quick | {"gpu": quick}).items():
        absent = any(word in name for word in left_out)
        assert (figure is None) == absent, name
        assert (met is None) == absent, name
    without = copy.deepcopy(quick)
    del without["memory"], without["speed"]["floor"], without["speed"]["action"]["K = 5"]
    without["left_out"] = ["memory"]
    assert "Left out: memory." in performance.gpu({"gpu": without})
    assert "not yet measured" in performance.paper({"speed": quick["speed"], "gpu": without})


@pytest.mark.slow
@pytest.mark.xdist_group("gpu run")
def test_pictures_are_the_same_for_the_same_record(quick: dict[str, Any], tmp_path: Path) -> None:
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    for draw, record in (
        (pictures.draw_growth, quick["growth"]),
        (pictures.draw_latency, quick["speed"]),
    ):
        draw(record, first)
        draw(record, second)
        assert first.read_bytes() == second.read_bytes()
        assert pictures.shows(first, record)
        assert not pictures.shows(first, record | {"command": "another"})


def test_a_record_is_kept_as_it_grows() -> None:
    kept: list[list[str]] = []
    with pytest.raises(TimeoutError):
        growth.run(TINY, 1, quick=True, keep=lambda record: stop_after(kept, record))
    assert kept == [["1"], ["1", "4"]]


def stop_after(kept: list[list[str]], record: dict[str, Any]) -> None:
    kept.append(list(record["seeds"]))
    if len(kept) == 2:
        raise TimeoutError


def test_every_operator_belongs_to_one_group() -> None:
    operators = [op for ops in speed.GROUPS.values() for op in ops]
    assert len(operators) == len(set(operators))
    spent = speed.profile(lambda: nn.functional.mish(torch.ones(4) + 1), calls=3)
    assert spent["Mish, as one operator"]["operators"] == 1
    assert spent["elementwise arithmetic"]["operators"] == 1


@pytest.mark.parametrize(
    ("kernel", "group"),
    [
        ("sm90_xmma_gemm_f32f32_f32f32_f32_nn_n", "matrix products"),
        ("void cutlass::Kernel2<cutlass_80_simt_sgemm_128x64_8x5_nn_align1>", "matrix products"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "Adam"),
        ("void at::native::vectorized_elementwise_kernel<4, mish>", "elementwise arithmetic"),
        ("void at::native::reduce_kernel<512, 1, MeanOps>", "reductions"),
        ("Memcpy DtoD (Device -> Device)", "copies and new tensors"),
        ("void at::native::distribution_elementwise_grid_stride_kernel", "random numbers"),
        ("something_else", "everything else"),
    ],
)
def test_kernels_of_a_gpu_are_grouped_by_name(kernel: str, group: str) -> None:
    assert speed.kernel_group(kernel) == group


def test_kernels_of_this_package_are_known_by_their_names() -> None:
    compiled = [
        name
        for path in (ROOT / "gtp_policy" / "kernels").glob("*triton*.py")
        for name in re.findall(r"jit\ndef (\w+)", path.read_text(encoding="utf-8"))
    ]
    assert compiled
    assert {speed.kernel_group(name) for name in compiled} == {"kernels of this package"}


def test_spans_that_python_named_are_no_kernels() -> None:
    kinds = torch.autograd.DeviceType
    common = {"self_cpu_time_total": 4e6, "self_device_time_total": 2e3, "count": 6}
    events = [
        SimpleNamespace(key="aten::mm", device_type=kinds.CPU, **common),
        SimpleNamespace(key="sgemm", device_type=kinds.CUDA, is_user_annotation=False, **common),
        SimpleNamespace(key="step", device_type=kinds.CUDA, is_user_annotation=True, **common),
    ]
    groups = {name: {"ms": 0.0, "operators": 0.0} for name in ("matrix products",)}
    speed.add_events(groups, events, calls=2, gpu=True)
    assert groups == {"matrix products": {"ms": 1.0, "operators": 3.0}}


def test_another_engine_is_chosen_for_its_own_calls_alone() -> None:
    assert speed.under("reference", switch.engine)() == "reference"
    assert switch.engine() != "reference"


@pytest.mark.parametrize("samples", [1, 4])
def test_the_floor_counts_what_torch_counts(samples: int) -> None:
    """The products of an update by torch's own counter, less those the floor folds away."""
    case = Case(samples=samples)
    learner = contenders.library(case)
    with using("reference"), FlopCounterMode(display=False) as counter:
        learner.update(contenders.batch(case))
    counted = counter.get_total_flops() / 1e9
    # The reference pushes the times through the first layer again on every jump.
    times = 2 * 2 * 32 * 256 * 256 * 5 * (1 + samples) / 1e9
    observations = 2 * 256 * 256 * 14 * 5 * (1 + samples) / 1e9
    assert 0 < counted - speed.gflop(case) < 1.05 * (times + observations)


def test_a_contender_of_ones_own_is_timed(tmp_path: Path) -> None:
    (tmp_path / "its_speed.py").write_text(
        "import numpy as np\n"
        "seen = []\n"
        "def make(data, batch_size, device):\n"
        "    seen.append((sorted(data), batch_size, device))\n"
        "    return {'update': lambda: None,\n"
        "            'act': lambda obs: np.zeros((len(obs), data['action'].shape[1]))}\n",
        encoding="utf-8",
    )
    path = list(sys.path)
    name, make = contenders.named_peer(f"mine={tmp_path}:its_speed:make")
    assert (name, sys.path) == ("mine", path)
    data = contenders.random_data(TINY, 300)
    own = speed.our_own(TINY, 300)
    of = own | {name: make(data, 256, "cpu")}
    timed = speed.updates_with_data(of, 1, 2, "cpu")
    assert set(timed) == {"naive", "library", "mine"}
    assert timed["mine"]["times_faster_than_naive"]["median"] > 1
    assert "sample_ms" in timed["library"]
    assert "sample_ms" not in timed["mine"]
    assert "mine" in speed.actions(of, TINY, 1, 1, 2)
    (seen,) = sys.modules["its_speed"].seen
    fields = ["action", "next_obs", "obs", "reward", "terminated", "truncated"]
    assert seen == (fields, 256, "cpu")


@pytest.mark.parametrize("text", ["mine", "mine=", "=a:b:c", "mine=a:b", "mine=a::c"])
def test_a_contender_that_is_not_understood_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="expected NAME=PATH:MODULE:FUNCTION"):
        contenders.named_peer(text)


@pytest.mark.global_rng
def test_contenders_act_within_bounds_and_learn() -> None:
    data = contenders.random_data(TINY, 600)
    of = speed.our_own(TINY, 600) | contenders.peers(data, 64, "cpu")
    for name, peer in of.items():
        for rows in (1, 5):
            action = peer["act"](data["obs"][:rows])
            assert action.shape == (rows, 3), name
            assert np.abs(action).max() <= 1, name
        peer["update"]()


def test_a_hosts_loop_is_timed_from_update_to_update(monkeypatch: pytest.MonkeyPatch) -> None:
    time = iter([10_000_000, 40_000_000])  # read at the first and the last of four updates
    monkeypatch.setattr(host_speed, "now", lambda device: next(time))
    learner = contenders.library(TINY)
    data = contenders.batch(TINY)

    def train(n: int) -> None:
        for _ in range(n):
            learner.update(data)

    assert host_speed.Period(learner, train, "cpu")(4) == pytest.approx(10.0)
    silent = host_speed.Period(learner, lambda n: None, "cpu")
    with pytest.raises(RuntimeError, match="got 0 calls"):
        silent(4)


@pytest.mark.global_rng
def test_every_hosts_loop_asks_for_each_update_once() -> None:
    periods = host_speed.loops(TINY, 300)
    assert set(periods) == {"core", "gtp_tianshou", "gtp_sb3"}
    for name, period in periods.items():
        assert period(3) > 0, name
        assert period.learner.updates == 3


def test_import_times_are_added_up_by_package() -> None:
    text = (
        "import time:       100 |        100 |   torch\n---\n"
        "import time:      1500 |       1500 |     pydantic_core._pydantic_core\n"
        "import time:       500 |       2000 |   pydantic\n"
        "import time:       250 |        250 |   json.decoder\n"
        "import time:      1000 |       3250 | gtp_policy\n"
    )
    by_package = imports.imported(text, "---\n")
    assert by_package == {"pydantic": 2.0, "gtp_policy": 1.0, "standard library": 0.25}


def test_imports_are_timed_in_fresh_interpreters() -> None:
    result = imports.interpreter("-c", imports.TIMED.format(statement="import json"))
    seconds, modules = json.loads(result.stdout)
    assert 0 <= seconds < 5
    assert "gtp_policy" not in result.stderr
    assert modules < 400  # those of this process are not there


def test_page_and_pictures_say_what_the_json_says() -> None:
    text = performance.PAGE.read_text(encoding="utf-8")
    records = performance.read()
    assert text == performance.render(text, records), "run: make bench-page"
    for name, source in performance.PICTURES.items():
        if source in records:
            path = performance.PAGE.parent / name
            assert pictures.shows(path, records[source]), "run: make bench-page"


def test_what_is_not_measured_is_said_to_be() -> None:
    text = performance.PAGE.read_text(encoding="utf-8")
    page = performance.render(text, {})
    for module in ("speed", "growth", "memory", "imports", "host_speed"):
        assert f"Not yet measured: `python -m benchmarks.{module}`." in page
    assert all(figure is None for figure, _ in performance.reached({}).values())
    assert "| GTP | 5 | 4.3 | 0.94 | not yet measured |" in page


def test_targets_tell_what_is_reached() -> None:
    records = {"imports": {"over_torch": {"import torch; import gtp_policy": {"median": 0.4}}}}
    text = "`import gtp_policy` over `import torch`, s"
    assert performance.reached(records)[text] == (0.4, True)
    slower = copy.deepcopy(records)
    slower["imports"]["over_torch"]["import torch; import gtp_policy"]["median"] = 0.6
    assert performance.reached(slower)[text] == (0.6, False)


def test_hours_of_two_million_updates_stand_beside_the_papers() -> None:
    ms = {"library": {"ms": {"median": 18.0}}}
    speed_record = {
        "conditions": {"processor": "A Processor"},
        "update": {f"K = {k}, M = {m}": ms for k in (2, 5) for m in (1, 4)},
        "action": {"K = 5": ms, "K = 2": ms},
    }
    page = performance.paper({"speed": speed_record})
    assert "A Processor, one core: hours, M = 1" in page
    assert "| GTP | 5 | 4.3 | 0.94 | 10.0 | 10.0 | 18.000 | not yet measured |" in page
    assert "| FQL | 1 | 10.0 | 0.36 |  |  |" in page


def test_lines_for_the_readme_are_those_of_the_records() -> None:
    records = performance.read()
    text = performance.summary(records)
    ratio = records["speed"]["update"]["K = 5, M = 1"]["library"]["times_faster_than_naive"]
    assert f"an update is {ratio['median']:.2f} times (M = 1)" in text
    assert f"`{records['speed']['command']}`" in text


def test_a_section_without_a_place_is_told() -> None:
    with pytest.raises(ValueError, match="no place for a section"):
        performance.render("nothing", {})
