"""The steps of `benchmarks.gpu`, each a function, and the process that runs some of them.

    python -m benchmarks.gpu_steps --folder DIR --device cuda [--quick] STEP ...

After an error on a device the process ends, as the error may have broken the device's state for it.
A step that exceeds its limit ends the process, too, and leaves the stacks of all threads on stderr.
"""

import argparse
import copy
import dataclasses
import faulthandler
import functools
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks import samplers as private
from benchmarks.clock import on_gpu, versions
from benchmarks.contenders import Case, batch, config, dataset, library, random_data
from benchmarks.gpu import BENCHMARKS, DONE, LIMITS
from benchmarks.pages import ROOT, read, write
from benchmarks.processes import environment as process_environment
from gtp_policy import GTPLearner, MultiSeedLearner, OfflineDataset
from gtp_policy.kernels import explain, using

Call = Callable[[], Any]
# Updates in one call of `update_from`: several launches, however many updates a launch does.
UPDATES = 64
# Updates after which an update is replayed as a graph, where graphs are recorded.
WARM_UP = 6
TESTS = {"tests_on_gpu": "tests/test_gpu.py", "tests_of_triton": "tests/**/test_*triton*.py"}
ROUNDS = {"speed": 5, "growth": 3, "host_speed": 5, "memory": 1}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where and how much is measured."""

    folder: Path
    device: str
    quick: bool

    @property
    def gpu(self) -> bool:
        """Whether calls return before their work is done."""
        return on_gpu(self.device)

    @property
    def case(self) -> Case:
        """The sizes: the paper's networks on Hopper's dimensions."""
        tiny = {"width": 8, "batch": 32} if self.quick else {}
        return Case(device=self.device, **tiny)

    @property
    def calls(self) -> int:
        """How many calls are timed as one."""
        return 1 if self.quick else 32

    def learner(self, **changes: int) -> GTPLearner:
        """Returns a learner, with some sizes changed."""
        return library(self.case.but(**changes))

    @functools.cached_property
    def table(self) -> OfflineDataset:
        """Random transitions on the device."""
        return dataset(random_data(self.case, 1000 if self.quick else 100_000), self.device)

    def wait(self) -> None:
        """Waits until the device is idle."""
        if self.gpu:
            torch.accelerator.synchronize()

    def wall(self, call: Call, *, calls: int | None = None, turns: int = 5) -> float:
        """Returns the median of milliseconds per call, the device idle at both ends."""
        n, taken = calls or self.calls, []
        call()
        for _ in range(turns):
            self.wait()
            start = time.perf_counter()
            for _ in range(n):
                call()
            self.wait()
            taken.append((time.perf_counter() - start) / n * 1e3)
        return float(np.median(taken))

    def host(self, call: Call, *, turns: int = 7) -> float:
        """Returns the fewest milliseconds until a call returns to an idle host."""
        taken = []
        for _ in range(turns):
            self.wait()
            start = time.perf_counter()
            call()
            taken.append((time.perf_counter() - start) * 1e3)
        self.wait()
        return min(taken)

    def on_device(self, call: Call, *, turns: int = 5) -> float:
        """Returns the median of milliseconds of a GPU's own time per call."""
        if not self.gpu:
            return self.wall(call, turns=turns)
        taken = []
        call()
        for _ in range(turns):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(self.calls):
                call()
            end.record()
            self.wait()
            taken.append(begin.elapsed_time(end) / self.calls)
        return float(np.median(taken))


@contextmanager
def replays() -> Iterator[list[torch.cuda.CUDAGraph]]:
    """Yields a list of the CUDA graphs that are replayed within it, one entry per replay."""
    seen: list[torch.cuda.CUDAGraph] = []
    replay = torch.cuda.CUDAGraph.replay

    def noted(graph: torch.cuda.CUDAGraph) -> None:
        seen.append(graph)
        replay(graph)

    with mock.patch.object(torch.cuda.CUDAGraph, "replay", noted):
        yield seen


# --- steps


def environment(at: Setting) -> dict[str, Any]:
    """Returns what figures depend on: machine, versions, and every switch of TF32."""
    torch.zeros(1, device=at.device)
    names = ("TORCH", "CUDA", "CUBLAS", "NVIDIA", "PYTORCH", "OMP", "TRITON")
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(at.device) if at.gpu else at.device,
        "python": platform.python_version(),
        "versions": versions(["triton", "pydantic", "numba", "pytest", "hypothesis"]),
        "torch built for CUDA": torch.version.cuda,
        "float32_matmul_precision": _switch(torch.get_float32_matmul_precision),
        "cuda.matmul.fp32_precision": _switch(lambda: torch.backends.cuda.matmul.fp32_precision),
        "cudnn.allow_tf32": _switch(lambda: torch.backends.cudnn.allow_tf32),
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": os.environ.get("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
        "NVIDIA_TF32_OVERRIDE": os.environ.get("NVIDIA_TF32_OVERRIDE"),
        "variables": {  # no paths, which are of one machine
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(names) and os.sep not in value
        },
    }
    if at.gpu:
        found["capability"] = list(torch.cuda.get_device_capability(at.device))
    return found


def _switch(read: Callable[[], Any]) -> Any:  # noqa: ANN401 - a name or a flag
    """Returns the state of a switch; torch refuses to name one that was set in two ways."""
    try:
        return read()
    except (AttributeError, RuntimeError) as error:
        return repr(error)[:200]


def first_updates(at: Setting) -> dict[str, Any]:
    """Returns the times of the first updates, and whether the last one was a replay."""
    learner, taken = at.learner(), []
    for i in range(WARM_UP):
        data = batch(at.case, i)
        at.wait()
        start = time.perf_counter()
        with replays() as seen:
            learner.update(data)
        at.wait()
        taken.append((time.perf_counter() - start) * 1e3)
    return {"ms": taken, "replayed": bool(seen), "explained": explain(learner)}


def equal_to_the_reference(at: Setting) -> dict[str, Any]:
    """Returns the largest difference of a parameter to the reference's, update by update."""
    mine, theirs = at.learner(), at.learner()
    differences, replayed = [], []
    for i in range(WARM_UP + 2):
        data = batch(at.case, i)
        with replays() as seen:
            mine.update(data)
        with using("reference"):
            theirs.update(data)
        replayed.append(bool(seen))
        pairs = zip(mine.parameters(), theirs.parameters(), strict=True)
        differences.append(max(float((p - q).detach().abs().max()) for p, q in pairs))
    return {"largest difference": differences, "replayed": replayed}


def launches(at: Setting, learner: GTPLearner | MultiSeedLearner) -> dict[str, float]:
    """Returns milliseconds per update of `update_from`: wall, host, and the graph alone."""
    updates = 2 if at.quick else UPDATES

    def launch() -> None:
        learner.update_from(at.table, updates, batch_size=at.case.batch)

    for _ in range(2 if at.quick else 5):
        launch()
    found = {
        "wall": at.wall(launch, calls=1 if at.quick else 4) / updates,
        "host": at.host(launch) / updates,
    }
    with replays() as seen:
        launch()
    if seen:
        found["replay"] = at.on_device(seen[-1].replay) * len(seen) / updates
        found["updates per replay"] = updates / len(seen)
    if at.gpu:
        found["reserved MiB"] = torch.cuda.memory_reserved() / 2**20
    return found


def update_from_m1(at: Setting) -> dict[str, float]:
    """Measures updates from a dataset, M = 1."""
    return launches(at, at.learner(samples=1))


def update_from_m4(at: Setting) -> dict[str, float]:
    """Measures updates from a dataset, M = 4."""
    return launches(at, at.learner(samples=4))


def update_alone(at: Setting) -> dict[str, float]:
    """Measures `update` on one minibatch, and the reference's."""
    learner, data = at.learner(), batch(at.case)

    def update() -> None:
        learner.update(data)

    for _ in range(WARM_UP):
        update()
    found = {"wall": at.wall(update), "host": at.host(update)}
    with using("reference"):
        found["reference"] = at.wall(update, calls=max(1, at.calls // 4), turns=3)
    return found


def samplers(at: Setting) -> dict[str, Any]:
    """Measures every sampler: its own time, and its error against the reference in float64."""
    actor = at.learner().target_actor
    exact_actor = copy.deepcopy(actor).double()
    folded = private.fold(actor, actor.config.steps)
    made: dict[str, Callable[[], private.Sample]] = {"torch": lambda: private.by_torch(folded)}
    if at.gpu:
        transposed = private.with_outputs_side_by_side(folded)
        for precision in private.precisions():
            for name, of in (("", folded), (", transposed weights", transposed)):
                made[f"{precision}{name}"] = functools.partial(private.by_triton, of, precision)
    found: dict[str, Any] = {}
    for rows in (8,) if at.quick else (1, 512, 1280, 4096):
        g = torch.Generator().manual_seed(0)
        obs = torch.randn(rows, at.case.obs_dim, generator=g).to(at.device)
        noise = torch.randn(rows, at.case.action_dim, generator=g).to(at.device)
        with using("reference"):
            exact = exact_actor.sample(obs.double(), noise=noise.double())
        for name, make in made.items():
            try:
                found[f"{rows} rows, {name}"] = _sampler(at, make(), obs, noise, exact)
            except Exception as error:  # another sampler may do
                found[f"{rows} rows, {name}"] = {"error": repr(error)[:300]}
    return found


def _sampler(
    at: Setting,
    sample: private.Sample,
    obs: torch.Tensor,
    noise: torch.Tensor,
    exact: torch.Tensor,
) -> dict[str, float]:
    out = torch.full_like(noise, float("nan"))

    def call() -> None:
        sample(obs, noise, out)

    call()
    at.wait()
    error = float((out.double() - exact).abs().max())
    timed: Call = call
    if at.gpu:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        timed = graph.replay
    return {"ms": at.on_device(timed), "largest error": error}


def actions(at: Setting) -> dict[str, float]:
    """Measures actions for observations on the CPU, answered as the library does, and there."""
    learner, found = at.learner(), {}
    for rows in (1,) if at.quick else (1, 4096):
        obs = torch.from_numpy(
            np.random.default_rng(0).standard_normal((rows, at.case.obs_dim), dtype=np.float32)
        )
        found[f"{rows} rows"] = at.wall(lambda obs=obs: learner.act(obs, candidates=1).numpy())
        found[f"{rows} rows, on the device"] = at.wall(
            lambda obs=obs: learner.act(obs.to(at.device), candidates=1).cpu().numpy()
        )
    return found


def seeds_4(at: Setting) -> dict[str, float]:
    """Measures 4 seeds in one program, all of them per update."""
    return _seeds(at, 4)


def seeds_16(at: Setting) -> dict[str, float]:
    """Measures 16 seeds in one program, all of them per update."""
    return _seeds(at, 16)


def _seeds(at: Setting, n: int) -> dict[str, float]:
    return launches(at, MultiSeedLearner.from_dataset(at.table, config(at.case), seeds=range(n)))


def kernels_by_name(at: Setting) -> dict[str, Any]:
    """Returns the kernels of one replayed update, by name, the longest first."""
    learner, data = at.learner(), batch(at.case)
    for _ in range(WARM_UP):
        with replays() as seen:
            learner.update(data)
    if not seen:
        return {"replayed": False}
    graph, kinds, n = seen[-1], torch.profiler.ProfilerActivity, 10
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]) as recorded:
        for _ in range(n):
            graph.replay()
        at.wait()
    rows = [
        {"name": e.key[:90], "calls": e.count / n, "us": e.self_device_time_total / n}
        for e in recorded.key_averages()
        if e.device_type != torch.autograd.DeviceType.CPU
    ]
    rows.sort(key=lambda row: -row["us"])
    return {
        "replayed": True,
        "replay us": 1e3 * at.on_device(graph.replay),
        "kernels": sum(row["calls"] for row in rows),
        "us": sum(row["us"] for row in rows),
        "by name": rows[:60],
    }


def tf32(at: Setting) -> dict[str, float]:
    """Measures updates from a dataset, M = 1, with TF32 products wherever torch allows them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return launches(at, at.learner(samples=1))
    finally:
        torch.set_float32_matmul_precision(before)


def tests(at: Setting, name: str) -> dict[str, Any]:
    """Runs the tests that need a GPU in some files, without the project's pytest options.

    Those name plugins that need not be there, and other files' hosts need not be there either.
    """
    paths = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob(TESTS[name]))]
    if not paths:
        raise FileNotFoundError(f"There are no tests: got no file {TESTS[name]}, expected one.")
    words = ["-c", os.devnull, "--rootdir=.", "--import-mode=importlib", "-q", "-m", "gpu"]
    words += ["-p", "no:cacheprovider", *paths]
    if importlib.util.find_spec("hypothesis") is None:  # as tests/conftest.py needs it
        words.append("--noconftest")
    if importlib.util.find_spec("pytest_timeout") is not None:
        words += ["-p", "pytest_timeout", "--timeout=60"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=ROOT,
        env=process_environment() | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMITS[name] - 5,
        check=False,
    )
    print(result.stdout)
    (at.folder / f"{name}.txt").write_text(result.stdout, encoding="utf-8")
    lines = result.stdout.strip().splitlines()
    summary = lines[-1].strip("= ") if lines else "no output"
    return {"files": paths, "status": result.returncode, "summary": summary}


def benchmark(at: Setting, name: str) -> dict[str, Any]:
    """Runs a benchmark that stands alone, into the folder, and returns its record."""
    path = at.folder / f"{name}.json"
    path.unlink(missing_ok=True)
    rounds = min(2, ROUNDS[name]) if at.quick else ROUNDS[name]
    words = ["--device", at.device, "--rounds", str(rounds), "--output", str(path)]
    importlib.import_module(f"benchmarks.{name}").main([*words, *["--quick"] * at.quick])
    return read(path) or {}


MEASURES: tuple[Callable[[Setting], dict[str, Any]], ...] = (
    *(environment, first_updates, equal_to_the_reference, update_from_m1, update_from_m4),
    *(update_alone, samplers, actions, seeds_4, seeds_16, kernels_by_name, tf32),
)
STEPS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    **{step.__name__: step for step in MEASURES},
    **{name: functools.partial(tests, name=name) for name in TESTS},
    **{name: functools.partial(benchmark, name=name) for name in BENCHMARKS},
}


def run(name: str, at: Setting) -> bool:
    """Runs a step and notes in the record how it ended; returns whether it is done."""
    path, start = at.folder / "gpu.json", time.perf_counter()
    record: dict[str, Any] = read(path) or {"steps": {}}
    # What stands if the process does not survive the step.
    record["steps"][name] = {"status": f"not finished: at most {LIMITS[name]} s"}
    write(record, path)
    print(f"== {name}, at most {LIMITS[name]} s", flush=True)
    faulthandler.dump_traceback_later(LIMITS[name], exit=True)
    try:
        record[name] = STEPS[name](at)
        at.wait()
        step: dict[str, Any] = {"status": DONE}
        if name not in (*TESTS, *BENCHMARKS):  # which print more than this
            print(json.dumps(record[name])[:900], flush=True)
    except Exception as error:  # one step's failure is its own
        trace = traceback.format_exc().replace(f"{ROOT}{os.sep}", "")
        step = {"status": f"failed: {error!r}"[:300], "trace": trace[-3000:]}
        print(trace, flush=True)
    finally:
        faulthandler.cancel_dump_traceback_later()
    record["steps"][name] = step | {"seconds": round(time.perf_counter() - start, 1)}
    write(record, path)
    return step["status"] == DONE


def main() -> None:
    """Runs the steps that are named until one fails on a device."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("steps", nargs="+", choices=STEPS, metavar="STEP")
    options.add_argument("--folder", type=Path, required=True)
    options.add_argument("--device", required=True)
    options.add_argument("--quick", action="store_true")
    args = options.parse_args()
    torch.set_num_threads(1)
    at = Setting(args.folder, args.device, args.quick)
    for name in args.steps:
        if not run(name, at) and at.gpu:
            sys.exit(1)


if __name__ == "__main__":
    main()
