"""How fast an update and an action are: this package, a naive transcription, other libraries.

    python -m benchmarks.speed [--rounds 15] [--device cuda] [--peer NAME=PATH:MODULE:FUNCTION]

Contenders are those of `benchmarks.contenders`; of other libraries, what is installed: Tianshou is
with the development tools, `make bench-peers` adds d3rlpy. How it is measured: `benchmarks.clock`.
`python -m benchmarks.performance` writes the page from the JSON.
"""

import ast
import contextvars
import functools
import importlib.util
import re
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.clock import (
    Comparison,
    Contenders,
    command,
    compare,
    conditions,
    first_calls,
    measure,
    now,
    on_gpu,
    parser,
    say,
    spread,
    versions,
)
from benchmarks.contenders import (
    Case,
    MakePeer,
    Peer,
    batch,
    library,
    make_library,
    make_naive,
    naive,
    named_peer,
    peers,
    random_data,
)
from benchmarks.pages import RESULTS, write
from gtp_policy import FlowMapActorConfig, kernels

RESULT = RESULTS / "speed.json"


def under(engine: Any, call: Callable[..., Any]) -> Callable[..., Any]:  # noqa: ANN401 - a literal
    """Returns a callable that computes by another engine of this package.

    It is chosen once, in a context that is kept: on every call it would take one or two
    microseconds.
    """
    with kernels.using(engine):
        context = contextvars.copy_context()
    return functools.partial(context.run, call)


def numba_is_used() -> bool:
    """Returns whether there are kernels that numba compiles, which can be switched off."""
    return importlib.util.find_spec("numba") is not None


def updaters(case: Case) -> Contenders:
    """Returns one update on a given minibatch: naive, by the modules, by the engines."""
    theirs, modules, ours, data = naive(case), library(case), library(case), batch(case)
    contenders: Contenders = {
        "naive": lambda: theirs.update(*data.present()),
        "library, reference": under("reference", functools.partial(modules.update, data)),
    }
    if not on_gpu(case.device) and numba_is_used():
        plain = library(case)
        contenders["library, torch"] = under("torch", functools.partial(plain.update, data))
    return contenders | {"library": lambda: ours.update(data)}


def updates(case: Case, rounds: int, calls: int) -> Comparison:
    """Times one update on a given minibatch."""
    together, device = on_gpu(case.device), case.device
    return compare(measure(updaters(case), rounds, calls, device=device, together=together))


def our_own(case: Case, rows: int) -> dict[str, Peer]:
    """Returns the naive transcription and the library as contenders, each with the data."""
    data = random_data(case, rows)
    own = {"naive": make_naive(case), "library": make_library(case)}
    return {name: make(data, case.batch, case.device) for name, make in own.items()}


def actors(case: Case) -> dict[str, Peer]:
    """Returns the contenders that act: as above, and without numba if there is numba."""
    own = our_own(case, 1000)
    if on_gpu(case.device) or not numba_is_used():
        return own
    act = our_own(case, 1000)["library"]["act"]
    return {"naive": own["naive"], "library, torch": {"act": under("torch", act)}} | own


def updates_with_data(of: dict[str, Peer], rounds: int, calls: int, device: str) -> Comparison:
    """Times drawing a minibatch and one update with it, as the mean of a turn's calls.

    Methods that update their actor every other time have no typical single call.
    """

    def times(key: str) -> dict[str, np.ndarray]:
        contenders = {name: calls_of[key] for name, calls_of in of.items() if key in calls_of}
        return measure(contenders, rounds, calls, device=device, together=True)

    result = compare(times("update"))
    for name, values in times("sample").items():
        if name in result:
            result[name]["sample_ms"] = spread(values[:, 0])
    return result


def actions(of: dict[str, Peer], case: Case, rows: int, rounds: int, calls: int) -> Comparison:
    """Times actions for some observations, from numpy to numpy."""
    obs = np.random.default_rng(0).standard_normal((rows, case.obs_dim), dtype=np.float32)
    contenders: Contenders = {
        name: functools.partial(entry["act"], obs) for name, entry in of.items() if "act" in entry
    }
    return compare(measure(contenders, rounds, calls, device=case.device))


def own_kernels() -> list[str]:
    """Returns the names of the functions that Triton compiles for this package."""
    found: list[str] = []
    for path in sorted(Path(kernels.__file__).parent.glob("*triton*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and any(
                ast.unparse(decorator).endswith("jit") for decorator in node.decorator_list
            ):
                found.append(node.name)
    return found


GROUPS = {
    "matrix products": ("addmm", "mm", "bmm", "baddbmm", "addmm_", "baddbmm_", "mv", "addmv"),
    "Mish, as one operator": ("mish", "mish_backward"),
    "Adam": ("_fused_adam_", "addcdiv_", "sqrt", "_foreach_norm", "linalg_vector_norm"),
    "elementwise arithmetic": (
        *("add", "sub", "mul", "div", "neg", "pow", "square", "reciprocal", "rsqrt", "rsub"),
        *("addcmul", "addcdiv", "lerp", "lerp_", "exp", "log", "sin", "cos", "clamp", "clamp_min"),
        *("clamp_max", "minimum", "maximum", "where", "add_", "mul_", "div_", "sub_", "exp_"),
        *("addcmul_", "clamp_", "clamp_max_", "clamp_min_", "_foreach_lerp_", "_foreach_mul_"),
        *("ge", "gt", "le", "lt", "ne", "eq", "isfinite", "abs", "reciprocal_", "square_"),
        *("pow_", "sigmoid", "sigmoid_", "tanh", "tanh_", "softplus", "sgn", "maximum_"),
    ),
    "reductions": ("sum", "mean", "amin", "amax", "max", "min", "std", "all"),
    "copies and new tensors": (
        *("copy_", "cat", "empty", "empty_like", "empty_strided", "clone", "fill_", "zero_"),
        *("repeat", "stack", "_to_copy", "contiguous", "index", "resize_", "zeros", "ones_like"),
    ),
    "random numbers": ("randn", "normal_", "rand", "uniform_", "randint", "random_"),
    "views": (
        *("as_strided", "t", "transpose", "permute", "unsqueeze", "squeeze", "expand", "view"),
        *("reshape", "_unsafe_view", "narrow", "slice", "select", "split", "unbind", "chunk"),
        *("detach", "detach_", "resolve_conj", "to", "flatten", "unflatten"),
    ),
}
# Kernels of a GPU have other names: the first pattern that is found decides.
KERNELS = {
    "kernels of this package": rf"^({'|'.join(own_kernels())})$",
    "matrix products": r"gemm|gemv|cutlass|xmma|splitk",
    "Adam": r"adam|multi_tensor|foreach|lpnorm",
    "random numbers": r"philox|distribution|random",
    "reductions": r"reduce",
    "copies and new tensors": r"memcpy|memset|copy|cat|fill|gather|index",
    "elementwise arithmetic": r"elementwise|vectorized|mish",
}
BETWEEN = "between operators"  # Python, autograd, dispatch


def profile(update: Callable[[], Any], calls: int, device: str = "cpu") -> dict[str, Any]:
    """Returns milliseconds and operators (on a GPU: kernels) per update by group.

    The profiler itself costs time per operator: the shares are meaningful, the sum is not.
    """
    for _ in range(first_calls(device)):
        update()
    gpu = on_gpu(device)
    kinds = torch.profiler.ProfilerActivity
    names = [*(KERNELS if gpu else GROUPS), "everything else"]
    result = {group: {"ms": 0.0, "operators": 0.0} for group in [*names, BETWEEN]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.profiler.profile(
            activities=[kinds.CPU, kinds.CUDA] if gpu else [kinds.CPU]
        ) as recorded:
            now(device)
            start = time.perf_counter()  # the profiler's clock is the wall's, too
            for _ in range(calls):
                update()
            now(device)
            whole = (time.perf_counter() - start) * 1e3 / calls
    add_events(result, recorded.key_averages(), calls, gpu=gpu)
    result[BETWEEN]["ms"] = max(0.0, whole - sum(entry["ms"] for entry in result.values()))
    return result


def add_events(result: dict[str, Any], events: Iterable[Any], calls: int, *, gpu: bool) -> None:
    """Adds what a profiler recorded to the groups: operators, or on a GPU its kernels."""
    group_of = {f"aten::{op}": group for group, ops in GROUPS.items() for op in ops}
    for event in events:
        of_gpu = event.device_type != torch.autograd.DeviceType.CPU
        # A span that Python named is on the GPU's time line too, over the kernels within it.
        if of_gpu != gpu or (gpu and getattr(event, "is_user_annotation", False)):
            continue
        group = kernel_group(event.key) if gpu else group_of.get(event.key, "everything else")
        if event.key.startswith("Optimizer."):  # what the optimiser does in Python
            group = "Adam"
        spent = event.self_device_time_total if gpu else event.self_cpu_time_total
        result[group]["ms"] += spent / 1000 / calls
        if gpu or event.key.startswith("aten::"):
            result[group]["operators"] += event.count / calls


def kernel_group(name: str) -> str:
    """Returns the group that a GPU's kernel belongs to."""
    for group, pattern in KERNELS.items():
        if re.search(pattern, name, re.IGNORECASE):
            return group
    return "everything else"


def profiles(case: Case, turns: int, calls: int) -> dict[str, Any]:
    """Returns the median of some profiles of the naive update, the modules and the engine."""
    contenders = updaters(case)
    taken = [
        {name: profile(update, calls, case.device) for name, update in contenders.items()}
        for _ in range(turns)
    ]
    return {
        name: {
            group: {
                key: float(np.median([turn[name][group][key] for turn in taken])) for key in entry
            }
            for group, entry in taken[0][name].items()
        }
        for name in contenders
    }


def gflop(case: Case) -> float:
    """Returns the arithmetic of one update's matrix products, in units of 1e9.

    The products that Algorithm 1 cannot do without, times of the sampler folded away: next actions
    and M of the policy through the sampler; the critic on the data (6: forward and backward),
    its target (2), the advantage (2 (1 + M)); and the actor 7 times.
    """
    width, m = case.width, case.samples
    hidden = 2 * width * width
    jump = hidden + 2 * width * case.action_dim
    inputs = case.obs_dim + case.action_dim + 2 * FlowMapActorConfig().time_dim
    actor = hidden + width * (inputs + case.action_dim)
    critic = hidden + width * (case.obs_dim + case.action_dim + 1)
    macs = case.steps * (1 + m) * jump + (8 + 2 * (1 + m)) * critic + 7 * actor
    return 2 * case.batch * macs / 1e9


def floor(case: Case, rounds: int) -> dict[str, Any]:
    """Returns how long the matrix products of an update take at this machine's rate.

    That is the rate of one product of a batch with a hidden layer's weights.
    """
    a = torch.ones(case.batch, case.width, device=case.device)
    b = torch.ones(case.width, case.width, device=case.device)
    product = {"product": lambda: a @ b}
    times = measure(product, rounds, 50, device=case.device, together=True)["product"]
    rate = 2 * case.batch * case.width**2 / (float(np.median(times)) / 1e3) / 1e9
    result: dict[str, Any] = {"gflop_per_second": rate}
    for m in (1, 4):
        work = gflop(case.but(samples=m))
        result[f"K = {case.steps}, M = {m}"] = {"gflop": work, "ms": work / rate * 1e3}
    return result


def explanation(case: Case) -> str:
    """Returns what this package says of the engines it chose."""
    learner = library(case)
    learner.update(batch(case))
    return kernels.explain(learner)


def run(
    case: Case,
    rounds: int,
    *,
    quick: bool = False,
    more: dict[str, MakePeer] | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda record: None,
) -> dict[str, Any]:
    """Measures everything; ``keep`` gets the record as it grows."""
    few: Callable[[int], int] = (lambda n: 2) if quick else (lambda n: n)
    rows = 2000 if quick else 100_000
    calls = 50 if on_gpu(case.device) else 10
    record: dict[str, Any] = {
        "conditions": conditions(
            case.device,
            batch=case.batch,
            obs_dim=case.obs_dim,
            action_dim=case.action_dim,
            hidden=[case.width] * 3,
            rows=rows,
            rounds=rounds,
        ),
        "versions": versions(["tianshou", "d3rlpy"]),
    }
    sections: list[tuple[str, str, Callable[[], Any]]] = [
        (
            "update",
            f"K = {k}, M = {m}",
            functools.partial(updates, case.but(steps=k, samples=m), rounds, few(calls)),
        )
        for k in (5, 2)
        for m in (1, 4)
    ]
    data = random_data(case, rows)
    # Importing other libraries takes longer than the rest of a quick run.
    others = peers(data, case.batch, case.device, more, installed=not quick)
    sections += [
        (
            "update with data",
            f"M = {m}",
            lambda m=m: updates_with_data(  # type: ignore[misc]
                our_own(case.but(samples=m), rows) | others, rounds, few(calls), case.device
            ),
        )
        for m in (1, 4)
    ]
    sections += [
        (
            section,
            f"K = {k}",
            lambda k=k, n=n, calls=calls: actions(  # type: ignore[misc]
                actors(case.but(steps=k)) | others, case, n, rounds, few(calls)
            ),
        )
        for section, n, calls, steps in (
            ("action", 1, 200, (1, 2, 5)),
            ("4096 actions", 4096, 5, (2, 5)),
        )
        for k in steps
    ]
    for section, label, take in sections:
        record.setdefault(section, {})[label] = taken = take()
        say(section, label, taken)
        keep(record)
    record["explained"] = explanation(case)
    keep(record)
    record["profile"] = profiles(case, *((1, 1) if quick else (5, 10)))
    record["floor"] = floor(case, rounds)
    keep(record)
    return record


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes the JSON."""
    options = parser(__doc__, RESULT, rounds=15)
    options.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PATH:MODULE:FUNCTION",
        help="another contender, see benchmarks/contenders.py",
    )
    args = options.parse_args(arguments)
    torch.set_num_threads(1)
    case = Case(device=args.device, **({"width": 8} if args.quick else {}))
    more = dict(named_peer(text) for text in args.peer)

    def keep(record: dict[str, Any]) -> None:
        write({"command": command("speed", args)} | record, args.output)

    start = time.perf_counter()
    record = run(case, args.rounds, quick=args.quick, more=more, keep=keep)
    for name, groups in record["profile"].items():
        for group, entry in groups.items():
            print(f"{name:20} {group:24} {entry['ms']:7.3f} ms {entry['operators']:7.0f} operators")
    print(f"wrote {args.output} after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
