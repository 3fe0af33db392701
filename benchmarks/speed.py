"""How fast an update and an action are: this package, a naive transcription, and Tianshou's TD3+BC.

    python -m benchmarks.speed [--rounds 15] [--output FILE]     measure, write JSON
    python -m benchmarks.speed --page                            write the page from the JSON

One process, one thread, every contender in turn, round by round, so that a slow moment of the
machine meets all of them. Time is that of the process: what neighbours take from it is not counted,
what they do to its caches is. A figure is the median over rounds with its quartiles; a ratio is
that of two contenders in one round, then the median over rounds.
"""

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gtp_policy
from benchmarks.naive import NaiveGTP
from benchmarks.tables import table
from gtp_policy import (
    Curriculum,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    GTPLossConfig,
    PolicyBaseline,
    QEnsembleConfig,
    Transitions,
)

ROOT = Path(__file__).parents[1]
START, END = "<!-- figures:start -->", "<!-- figures:end -->"
RESULT, PAGE = ROOT / "benchmarks/results/speed.json", ROOT / "docs/explanation/performance.md"
OBS, ACT, BATCH, WIDTH = 11, 3, 256, 256  # Hopper's dimensions
MAX_GRAD_NORM = 5.0
Contenders = dict[str, Callable[[], Any]]


def naive(samples: int = 1, steps: int = 5, width: int = WIDTH) -> NaiveGTP:
    """Returns the naive transcription."""
    return NaiveGTP(
        OBS, ACT, width=width, steps=steps, samples=samples, max_grad_norm=MAX_GRAD_NORM
    )


def library(samples: int = 1, steps: int = 5, width: int = WIDTH) -> GTPLearner:
    """Returns the same of this package."""
    hidden = (width,) * 3
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=hidden, steps=steps),
        critic=QEnsembleConfig(hidden=hidden),
        loss=GTPLossConfig(curriculum=Curriculum(start=40, end=40)),
        learner=GTPLearnerConfig(
            baseline=PolicyBaseline(samples=samples), max_grad_norm=MAX_GRAD_NORM
        ),
    )
    return GTPLearner.build(OBS, ACT, config)


def tianshou_td3_bc(width: int = WIDTH) -> Callable[[np.ndarray], np.ndarray] | None:
    """Returns ``compute_action`` of Tianshou's TD3+BC policy, or None where it is not installed."""
    try:
        import gymnasium as gym
        from tianshou.algorithm.modelfree.ddpg import ContinuousDeterministicPolicy
        from tianshou.utils.net.common import Net
        from tianshou.utils.net.continuous import ContinuousActorDeterministic
    except ImportError:
        return None
    space = gym.spaces.Box(-1.0, 1.0, (ACT,))
    with torch.random.fork_rng():
        # TD3+BC's own size: two hidden layers.
        body = Net(state_shape=(OBS,), hidden_sizes=(width, width))
        actor = ContinuousActorDeterministic(preprocess_net=body, action_shape=(ACT,))
        policy = ContinuousDeterministicPolicy(actor=actor, action_space=space).eval()

    def act(obs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return policy.compute_action(obs[0])

    return act


def batch(seed: int = 0) -> Transitions:
    """Returns a random minibatch."""
    g = torch.Generator().manual_seed(seed)
    return Transitions(
        obs=torch.randn(BATCH, OBS, generator=g),
        action=torch.rand(BATCH, ACT, generator=g) * 2 - 1,
        reward=torch.randn(BATCH, generator=g),
        next_obs=torch.randn(BATCH, OBS, generator=g),
        discount=torch.full((BATCH,), 0.99),
    )


def measure(contenders: Contenders, rounds: int, calls: int) -> dict[str, np.ndarray]:
    """Returns the milliseconds of every call, (rounds, calls) per contender, rounds interleaved."""
    times = {name: np.empty((rounds, calls)) for name in contenders}
    for call in contenders.values():
        for _ in range(3):
            call()
    for r in range(rounds):
        for name, call in contenders.items():
            for c in range(calls):
                start = time.process_time_ns()
                call()
                times[name][r, c] = (time.process_time_ns() - start) / 1e6
    return times


def spread(values: np.ndarray) -> dict[str, float]:
    """Returns the median and the quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(middle), "q1": float(low), "q3": float(high)}


def compare(times: dict[str, np.ndarray], first: str = "naive") -> dict[str, Any]:
    """Returns per contender the spread over rounds, the tails of calls and the ratio to another."""
    rounds = {name: np.median(values, axis=1) for name, values in times.items()}
    return {
        name: {
            "ms": spread(rounds[name]),
            "p50": float(np.quantile(values, 0.5)),
            "p99": float(np.quantile(values, 0.99)),
            "max": float(values.max()),
            f"times_faster_than_{first}": spread(rounds[first] / rounds[name]),
        }
        for name, values in times.items()
    }


def updates(samples: int, rounds: int, calls: int, width: int) -> dict[str, Any]:
    """Times one update with M samples of the baseline."""
    ours, theirs, data = library(samples, width=width), naive(samples, width=width), batch()
    contenders = {"naive": lambda: theirs.update(*data), "library": lambda: ours.update(data)}
    return compare(measure(contenders, rounds, calls))


def actions(steps: int, rows: int, rounds: int, calls: int, width: int) -> dict[str, Any]:
    """Times K-step actions for some observations, from numpy to numpy."""
    ours, theirs = library(steps=steps, width=width), naive(steps=steps, width=width)
    g = torch.Generator().manual_seed(0)
    obs = torch.randn(rows, OBS, generator=g).numpy()
    contenders: Contenders = {
        "naive": lambda: theirs.act(obs),
        "library": lambda: ours.act(torch.from_numpy(obs), generator=g).numpy(),
    }
    peer = tianshou_td3_bc(width) if rows == 1 else None
    if peer is not None:
        contenders["tianshou TD3+BC"] = lambda: peer(obs)
    return compare(measure(contenders, rounds, calls))


GROUPS = {
    "matrix products": ("addmm", "mm", "bmm", "baddbmm"),
    "Mish, as one operator": ("mish", "mish_backward"),
    "Adam": ("_fused_adam_", "addcdiv_", "sqrt", "_foreach_norm", "linalg_vector_norm"),
    "elementwise arithmetic": (
        *("add", "sub", "mul", "div", "neg", "pow", "square", "reciprocal", "rsqrt", "rsub"),
        *("addcmul", "addcdiv", "lerp", "lerp_", "exp", "log", "sin", "cos", "clamp", "clamp_min"),
        *("clamp_max", "minimum", "maximum", "where", "add_", "mul_", "div_", "sub_", "exp_"),
        *("addcmul_", "clamp_", "clamp_max_", "clamp_min_", "_foreach_lerp_", "_foreach_mul_"),
        *("ge", "gt", "le", "lt", "ne", "eq", "isfinite", "abs", "reciprocal_", "square_"),
    ),
    "reductions": ("sum", "mean", "amin", "amax", "max", "min", "std", "all"),
    "copies and new tensors": (
        *("copy_", "cat", "empty", "empty_like", "empty_strided", "clone", "fill_", "zero_"),
        *("repeat", "stack", "_to_copy", "contiguous", "index", "resize_", "zeros", "ones_like"),
    ),
    "random numbers": ("randn", "normal_", "rand", "uniform_", "randint", "random_"),
}


def profile(update: Callable[[], Any], calls: int) -> dict[str, Any]:
    """Returns milliseconds and operators per update by group, under torch's profiler.

    The profiler itself costs time per operator: the shares are its answer, not the sum.
    """
    group_of = {f"aten::{op}": group for group, ops in GROUPS.items() for op in ops}
    for _ in range(3):
        update()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.profiler.profile(activities=activities) as recorded:
            for _ in range(calls):
                update()
    result = {group: {"ms": 0.0, "operators": 0.0} for group in [*GROUPS, "everything else"]}
    for event in recorded.key_averages():
        entry = result[group_of.get(event.key, "everything else")]
        entry["ms"] += event.self_cpu_time_total / 1000 / calls
        if event.key.startswith("aten::"):
            entry["operators"] += event.count / calls
    return result


def floor(rounds: int, width: int) -> dict[str, Any]:
    """Returns how long the matrix products of an update take at this machine's best rate.

    The products that Algorithm 1 cannot do without, times of the sampler folded away, over the rate
    of one square product of the hidden layers.
    """
    a, b = torch.ones(BATCH, width), torch.ones(width, width)
    times = measure({"product": lambda: a @ b}, rounds, 50)["product"]
    rate = 2 * BATCH * width**2 / (float(np.median(times)) / 1e3)
    hidden = 2 * width * width
    jump = hidden + 2 * width * ACT
    actor = hidden + width * (OBS + 2 * ACT + 2 * FlowMapActorConfig().time_dim)
    critic = hidden + width * (OBS + ACT + 1)
    result: dict[str, Any] = {"gflop_per_second": rate / 1e9}
    for m in (1, 4):
        # Sampler: next actions and m of the policy. Critic: data 6, target 2, advantage 2 (1 + m).
        rows = 5 * (1 + m) * jump + (8 + 2 * (1 + m)) * critic + 7 * actor
        result[f"M = {m}"] = {
            "gflop": 2 * BATCH * rows / 1e9,
            "ms": 2 * BATCH * rows / rate * 1e3,
        }
    return result


def cell(figure: dict[str, float], digits: int) -> str:
    """Returns a median with its quartiles."""
    median, low, high = (f"{figure[key]:.{digits}f}" for key in ("median", "q1", "q3"))
    return f"{median} [{low}, {high}]"


def render(record: dict[str, Any]) -> str:
    """Returns what stands between the page's markers."""
    c = record["conditions"]
    told = " × ".join(str(width) for width in c["hidden"])
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())

    def timing(label: str, of: dict[str, Any], digits: int) -> list[list[str]]:
        return [
            [
                label,
                name,
                cell(entry["ms"], digits),
                f"{entry['p99']:.{digits}f}",
                f"{entry['max']:.{digits}f}",
                cell(entry["times_faster_than_naive"], 2),
            ]
            for name, entry in of.items()
        ]

    header = ["", "", "ms", "p99", "max", "times faster than naive"]
    rows = [row for m, of in record["update"].items() for row in timing(f"update, {m}", of, 1)]
    rows += [row for k, of in record["action"].items() for row in timing(f"action, {k}", of, 3)]
    for k, of in record["4096 actions"].items():
        rows += timing(f"4096 actions, {k}", of, 1)
    groups = record["profile"]
    total = {name: sum(entry["ms"] for entry in of.values()) for name, of in groups.items()}
    profiled = [
        [
            group,
            *(
                f"{of[group]['ms']:.1f} ({100 * of[group]['ms'] / total[name]:.0f} %)"
                for name, of in groups.items()
            ),
            *(f"{of[group]['operators']:.0f}" for of in groups.values()),
        ]
        for group in groups["naive"]
    ]
    floors = record["floor"]
    least = [
        [
            m,
            f"{floors[m]['gflop']:.2f}",
            f"{floors[m]['ms']:.1f}",
            f"{record['update'][m]['library']['ms']['median']:.1f}",
            f"{record['update'][m]['library']['ms']['median'] / floors[m]['ms']:.2f}",
        ]
        for m in record["update"]
    ]
    return "\n\n".join(
        [
            START,
            f"`{record['command']}`: {c['processor']}, {c['threads']} thread, {c['clock']}, "
            f"{c['rounds']} interleaved rounds; batch {c['batch']}, observations "
            f"{c['obs_dim']}, actions {c['action_dim']}, hidden layers {told}, K = 5 for updates; "
            f"{versions}. Median [quartiles] over rounds; p99 and max over calls.",
            table(header, rows),
            "By operation, M = 1, milliseconds per update under torch's profiler (it slows small "
            "operators down, so the shares count) and number of operators:",
            table(["", "naive ms", "library ms", "naive operators", "library operators"], profiled),
            f"The floor: matrix products at {floors['gflop_per_second']:.0f} GFLOP/s, the rate of "
            "one square product of the hidden layers in this run:",
            table(["", "GFLOP", "floor, ms", "library, ms", "library / floor"], least),
            END,
        ]
    )


def write_page(record: dict[str, Any]) -> None:
    """Writes the figures into the page, between its markers."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(START)
    _, after = rest.split(END)
    PAGE.write_text(before + render(record) + after, encoding="utf-8")


def processor() -> str:
    """Returns the name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def run(rounds: int, width: int, smoke: bool) -> dict[str, Any]:
    """Measures everything."""
    few = (lambda n: 2) if smoke else (lambda n: n)
    names = ["torch", "numpy"]
    result: dict[str, Any] = {
        "command": f"python -m benchmarks.speed --rounds {rounds}",
        "conditions": {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "clock": "process time",
            "batch": BATCH,
            "obs_dim": OBS,
            "action_dim": ACT,
            "hidden": [width] * 3,
            "rounds": rounds,
        },
        "versions": {name: version(name).split("+")[0] for name in names}
        | {"gtp_policy": gtp_policy.__version__, "python": platform.python_version()},
        "update": {f"M = {m}": updates(m, rounds, few(10), width) for m in (1, 4)},
        "action": {f"K = {k}": actions(k, 1, rounds, few(200), width) for k in (1, 2, 5)},
        "4096 actions": {"K = 5": actions(5, 4096, rounds, few(5), width)},
    }
    ours, theirs, data = library(1, width=width), naive(1, width=width), batch()
    contenders: Contenders = {
        "naive": lambda: theirs.update(*data),
        "library": lambda: ours.update(data),
    }
    turns = [
        {name: profile(update, few(10)) for name, update in contenders.items()}
        for _ in range(few(5))
    ]
    result["profile"] = {
        name: {
            group: {
                key: float(np.median([turn[name][group][key] for turn in turns])) for key in entry
            }
            for group, entry in turns[0][name].items()
        }
        for name in contenders
    }
    result["floor"] = floor(rounds, width)
    return result


def main() -> None:
    """Measures and writes the JSON, or the page from it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--smoke", action="store_true", help="two rounds, tiny networks: a test")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--page", action="store_true", help="write the page from the JSON")
    args = parser.parse_args()
    if args.page:
        write_page(json.loads(args.output.read_text(encoding="utf-8")))
        return
    torch.set_num_threads(1)
    rounds, width = (2, 8) if args.smoke else (args.rounds, WIDTH)
    result = run(rounds, width, args.smoke)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for section in ("update", "action", "4096 actions"):
        for label, of in result[section].items():
            for name, entry in of.items():
                ms, ratio = entry["ms"], entry["times_faster_than_naive"]
                print(
                    f"{section:13} {label:6} {name:16} {ms['median']:9.3f} ms "
                    f"[{ms['q1']:.3f}, {ms['q3']:.3f}]  p99 {entry['p99']:.3f}  "
                    f"max {entry['max']:.3f}  {ratio['median']:.2f}x naive "
                    f"[{ratio['q1']:.2f}, {ratio['q3']:.2f}]"
                )
    for name, groups in result["profile"].items():
        for group, entry in groups.items():
            print(f"{name:8} {group:24} {entry['ms']:7.3f} ms {entry['operators']:7.0f} operators")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
