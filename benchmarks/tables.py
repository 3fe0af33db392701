"""Writes tables of the README and of other pages from JSON, between their markers.

    python -m benchmarks.tables [--check]

No number in the README is typed: with ``--check`` nothing is written, and the exit status says
whether the README is what the JSON says.
"""

import json
import sys
import tomllib
from collections.abc import Callable
from statistics import mean, stdev
from typing import Any

import numpy as np

from benchmarks import performance, pictures
from benchmarks.pages import RESULTS, ROOT, fill, is_current, page_parser, publish, table
from benchmarks.studies import COLLECTED
from gtp_experiments import read_results, spread
from gtp_policy.acting import LEAST_MODE_SHARE, MODE_CANDIDATES

GLANCE = ROOT / "docs" / "small-results.md"
PICTURES = ROOT / "docs" / "pictures"
EXPORT = ROOT / "docs" / "how-to" / "export.md"
DEVIATIONS = ROOT / "docs" / "explanation" / "deviations.md"
DEPLOY = ROOT / "docs" / "how-to" / "deploy.md"
DISTRIBUTED = ROOT / "docs" / "how-to" / "distributed.md"
ROBOT_LOGS = ROOT / "docs" / "tutorials" / "robot-logs.md"


def cell(figure: dict[str, Any], digits: int, scale: float = 1.0) -> str:
    """Returns a mean with its interval."""
    low, high = (scale * x for x in figure["interval_95"])
    return f"{scale * figure['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _over_noise(measured: dict[str, Any]) -> float:
    return float(measured["distance"] / measured["noise_floor"])


def bandit(record: dict[str, Any]) -> str:
    """Returns the section on the four-mode bandit."""
    runs = record["runs"]

    def row(name: str, measured: list[dict[str, Any]]) -> list[str]:
        within = [100 * m["within_3_std"] for m in measured]
        modes = [100 * share for m in measured for share in m["modes"]]
        spread = f" ± {stdev(within):.1f}" if len(within) > 1 else ""
        return [
            name,
            f"{mean(within):.1f}{spread}",
            f"{min(within):.1f}",
            f"{min(modes):.1f} to {max(modes):.1f}",
        ]

    rows = [row(f"GTP, K = {k}", [run["gtp"][k] for run in runs]) for k in runs[0]["gtp"]]
    rows.append(row("Gaussian cloning", [run["gaussian"] for run in runs]))
    rows.append(["the data's law", f"{100 * record['truth_within_3_std']:.1f}", "", "25"])

    def percent(shares: list[float]) -> str:
        return ", ".join(f"{100 * x:.1f}" for x in shares)

    tilted = record["weighted"]
    rows_tilted = [[f"GTP, t_max = {t['t_max']}", percent(t["modes"])] for t in tilted]
    rows_tilted.append(["π_BC · w", percent(tilted[0]["expected"])])
    return "\n\n".join(
        [
            f"**Four-mode bandit, an illustration** (behaviour cloning, {len(runs)} seeds, "
            f"{record['updates']} updates; `{record['command']}`). Samples within three standard "
            "deviations of a mode, in %:",
            table(["policy", "mean ± std over seeds", "worst seed", "share per mode"], rows),
            f"With advantage weights (η = {tilted[0]['eta']}) and reward at the last mode, a time "
            "range that is cut short pulls the modes' frequencies together a little:",
            table(["policy", "frequency of each mode, %"], rows_tilted),
        ]
    )


# What a row says of one run at one K: the figure, and what is taken of several seeds.
CLONES: tuple[tuple[str, str, Callable[[dict[str, Any]], float], Callable[..., float]], ...] = (
    ("modes", "four modes: samples at a mode, %", lambda m: 100 * m["share"], mean),
    ("modes", "- rarest mode over its true share, worst seed", lambda m: min(m["ratios"]), min),
    ("modes", "- width of the modes over the truth's", lambda m: m["rms"] / m["true_rms"], mean),
    (
        "unequal",
        "eight unequal modes: largest error of a share, %, worst seed",
        lambda m: 100 * max(abs(ratio - 1) for ratio in m["ratios"]),
        max,
    ),
    ("moons", "two moons: distance over its noise", _over_noise, mean),
    ("spiral", "a spiral: distance over its noise", _over_noise, mean),
    ("slope", "a conditional mean: slope learned, %", lambda m: 100 * m["slope"], mean),
    (
        "joints",
        "six joints of ranges 1 to 0.02: largest error over a joint's spread, worst seed",
        lambda m: max(m["errors"]),
        max,
    ),
)


def cloning(record: dict[str, Any]) -> str:
    """Returns the section on clones by the number of network calls."""
    steps, rows = ("1", "2", "5"), []
    for task, title, figure, over in CLONES:
        for method in ("one_step", "gtp"):
            runs = [r for r in record["rows"] if (r["task"], r["method"]) == (task, method)]
            if not runs:
                continue
            last = [run["measured"][str(run["updates"])] for run in runs]
            cells = [f"{over(figure(m[k]) for m in last):.3g}" for k in steps]
            cells.append(f"{mean(run['ms_per_update'] for run in runs):.1f}")
            name = {"one_step": "the default's", "gtp": "`paper_loss`"}[method]
            rows.append([title, name, str(len(runs)), *cells])
    return "\n\n".join(
        [
            f"**One network call per action** (cloning of what is known; `{record['command']}`). "
            "The default's objective beside the paper's, by K, the number of network calls; "
            "15000 updates, 30000 for unequal modes, 3000 for the last two; learning rates 4e-3 "
            "and 2e-3, each objective's own (`GTPConfig()` takes 2e-3 for runs of this length). "
            "Distances are sliced Wasserstein-1, and 1 is that of two samples of the truth:",
            table(["", "objective", "seeds", *(f"K = {k}" for k in steps), "ms/update"], rows),
            one_call(),
        ]
    )


def one_call() -> str:
    """Returns the section on one network call against five, of runs with a critic."""
    rows = []
    for study in ("hopper", "medium-play"):
        found = read_results(COLLECTED / study)
        cells = []
        for k in (1, 5):
            own = [r for r in found if r.method == f"GTPConfig(), K = {k}"]
            scores = [score for r in own if (score := r.score(r.evaluations[-1])) is not None]
            cells.append(f"{mean(scores):.1f} ± {stdev(scores):.1f}")
        rows.append([str(own[0].task), str(len(scores)), *cells])
    return "\n\n".join(
        [
            "With a critic, one network call per action, and you lose nothing: `GTPConfig()` after "
            "30,000 updates, sampled actions, 100 episodes per seed "
            "([commands](results.md)); score, mean ± std over seeds:",
            table(["task", "seeds", "K = 1", "K = 5"], rows),
        ]
    )


def pointmaze(record: dict[str, Any]) -> str:
    """Returns the section on PointMaze."""
    rows = [
        [
            name,
            cell(row["success"], 1, 100),
            cell(row["steps"], 1),
            cell(row["discounted_return"], 3),
            f"{row['ms_per_update']:.1f}" if "ms_per_update" in row else "",
        ]
        for name, row in record["policies"].items()
    ]
    difference = record["gtp_minus_cloning"]
    return "\n\n".join(
        [
            f"**{record['environment']}**, dataset made by the project's own controller "
            f"({record['data']}); {record['seeds']} seeds, {record['updates']} updates, "
            f"{record['episodes_per_seed']} episodes per seed, {record['evaluation']}; "
            f"`{record['command']}`. Mean [95 % bootstrap interval over seeds and episodes]:",
            table(
                ["policy", "success, %", "steps to goal", "discounted return", "ms/update"], rows
            ),
            f"GTP minus cloning: success {100 * difference['success'][0]:+.1f} to "
            f"{100 * difference['success'][1]:+.1f} points, steps {difference['steps'][0]:+.1f} to "
            f"{difference['steps'][1]:+.1f} (95 %).",
        ]
    )


def datasets(record: dict[str, Any]) -> str:
    """Returns the sentence on the conversion of datasets."""
    minari, d4rl, npz = record["minari"], record["d4rl_gzip"], record["npz_folder"]
    shape = f"{minari['transitions']:,} transitions of {record['shape']['obs_dim']} dimensions"
    return (
        f"**Loading** {shape} (`python -m benchmarks.datasets`): Minari's HDF5 in "
        f"{minari['seconds']} s with a peak memory of {minari['peak_over_result']} times the "
        f"result, D4RL's compressed HDF5 in {d4rl['seconds']} s with "
        f"{d4rl['peak_over_result']} times. A folder of {npz['episodes']:,} npz files with "
        f"{npz['transitions']:,} transitions takes {npz['seconds']} s."
    )


def hosts(record: dict[str, Any]) -> str:
    """Returns the section on the core and its hosts."""
    maze = [
        [
            f"`{host}`",
            cell(row["success"], 1, 100),
            cell(row["steps"], 1),
            f"{row['ms_per_update']:.1f}",
        ]
        for host, row in record["pointmaze"].items()
    ]
    swing = [
        [
            f"`{run['host']}`",
            str(run["seed"]),
            f"{run['behaviour']:.0f}",
            f"{mean(run['returns']):.0f} ± {stdev(run['returns']):.0f}",
        ]
        for run in record["pendulum"]["runs"]
    ]
    equal = "equal bit for bit" if record["equal_parameters"] else "NOT equal"
    rewards = ", ".join(f"{run['reward']:.1f}" for run in record["identity"])
    return "\n\n".join(
        [
            f"**One policy, three places** (`{record['command']}`). The maze of above, trained by "
            f"each host's own loop and driven by its own way to act, {record['seeds']} seeds; the "
            f"parameters after {record['updates']} updates are {equal}. Success differs by the "
            "noise of sampled actions alone:",
            table(["trained in", "success, %", "steps to goal", "ms/update"], maze),
            f"Pendulum-v1 from data of a mediocre controller ({record['pendulum']['data']}), "
            f"{record['pendulum']['updates']} updates, deterministic evaluation; return per "
            "episode, mean ± std over 20 episodes:",
            table(["trained in", "seed", "data", "GTP"], swing),
            "Stable-Baselines3's one-step identity environment, online, "
            f"{record['identity'][0]['steps']} steps, by seed: {rewards} of 100.",
        ]
    )


def parity(record: dict[str, Any]) -> str:
    """Returns the table on exported files beside the policies they were made of."""
    rows = []
    for kind in dict.fromkeys(row["kind"] for row in record["rows"]):
        own = [row for row in record["rows"] if row["kind"] == kind]
        cells = []
        for precision in ("float32", "float16"):
            apart = [x for r in own if r["precision"] == precision for x in r["apart"].values()]
            cells.append(f"{max(apart):.1e}" if apart else "–")
        safe = all(row["in_box"] and row["nan_refused"] for row in own)
        rows.append([kind, *cells, "yes" if safe else "NO"])
    steps = list(dict.fromkeys(str(row["steps"]) for row in record["rows"]))
    sizes = list(record["rows"][0]["apart"])
    return "\n\n".join(
        [
            f"Largest difference from the core's action, whose range is [-1, 1], over "
            f"{record['conditions']['observations']:,} observations, K of {', '.join(steps)} and "
            f"batches of {', '.join(sizes)}, float16 of the last alone (`{record['command']}`):",
            table(["policy", "float32", "float16", "in the Box up to 1e6, NaN refused"], rows),
        ]
    )


def deterministic(record: dict[str, Any]) -> str:
    """Returns the table on what a deterministic action starts from, by run."""
    names = sorted(
        {name for row in record["rows"].values() for name in row["scores"]},
        key=lambda name: (name.startswith("one"), "noise" in name, len(name), name),
    )
    rows = []
    for row in record["rows"].values():
        # Where the goal is all that is rewarded, a return says whether it was reached.
        reached = {v for scores in row["scores"].values() for v in scores} <= {0.0, 1.0}
        scale = 100 if reached else 1
        cells = []
        for name in names:
            s = scale * np.array(row["scores"].get(name, []), float)
            spread = s.std(ddof=1) / len(s) ** 0.5 if len(s) else 0.0
            cells.append(f"{s.mean():.0f} ± {spread:.0f}" if len(s) else "–")
        unit = "at the goal, %" if reached else "return"
        episodes = len(row["scores"]["sampled"])
        share = f"{100 * row['mode_share']:.0f}"
        rows.append([f"{row['task']}, seed {row['seed']}, {unit}", str(episodes), share, *cells])
    first = next(iter(record["rows"].values()))
    return "\n\n".join(
        [
            f"`{first['method']}` after {first['updates']:,} updates, K = 1, mean ± standard error "
            f"over episodes (`{record['command']}`). From {100 * LEAST_MODE_SHARE:.0f} % of "
            f"the data on where the critic prefers the mode, the default is the mode of "
            f"{MODE_CANDIDATES}; below, one noise of the observation:",
            table(["", "episodes", "mode preferred, %", *names], rows),
        ]
    )


def scaling(record: dict[str, Any]) -> str:
    """Returns what was measured of shared updates, and what is estimated for GPUs."""
    measured = []
    for batch, found in record["measured"].items():
        one, two, ratio = (found[name] for name in ("one", "two", "times_faster"))
        spread = f"{ratio['median']:.2f} [{ratio['q1']:.2f}, {ratio['q3']:.2f}]"
        measured.append([batch, f"{one['median']:.0f}", f"{two['median']:.0f}", spread])
    machine, estimates = record["machine"], []
    for name, found in record["estimates"].items():
        gains = [
            f"{value:.1f} at {float(key.removeprefix('speedup_')):,.0f}"
            for key, value in found.items()
            if key.startswith("speedup_")
        ]
        wire, rows = f"{found['wire_ms']:.2f}", f"{found['pays_from']:,.0f}"
        estimates.append([name, wire, rows, ", ".join(gains)])
    return "\n\n".join(
        [
            f"Two processes on two cores, `GTPConfig()`, median over "
            f"{record['conditions']['rounds']} rounds with quartiles (`{record['command']}`):",
            table(["batch_size", "one process, ms", "two processes, ms", "times faster"], measured),
            f"An update sends {record['bytes'] / 1e6:.2f} MB in {record['messages']} messages and "
            f"computes {record['flops_per_row'] / 1e6:.1f} MFLOP per row. Eight GPUs **on paper**, "
            "not measured: each computes "
            f"{machine['flops_per_second'] / 1e12:.0f} TFLOP/s and launches {machine['kernels']} "
            f"kernels of {1e6 * machine['launch_seconds']:.0f} µs an update, a message takes "
            f"{1e6 * machine['message_seconds']:.0f} µs before its first byte:",
            table(["wire", "ms on it", "pays from batch_size", "times faster"], estimates),
        ]
    )


def load(steady: dict[str, Any], killed: dict[str, Any]) -> str:
    """Returns the table on a server with many clients."""
    rows = []
    for label, record in (("left alone", steady), ("killed every 30 s", killed)):
        counts, memory = record["counts"], record["memory_bytes"]
        answers = f"{counts['right']:,} / {counts['wrong']} / {counts['refused']}"
        grown = f"{memory['early'] / 1e6:.1f} to {memory['max'] / 1e6:.1f}"
        broken = f"{counts['broken']:,}" if record["restarts"] else str(counts["broken"])
        rows.append([f"`{record['command']}`", label, answers, broken, grown])
    wait = steady["metrics"]["latency_ms"]
    header = ["", "server", "right / wrong / refused", "no connection", "memory, MB"]
    return "\n\n".join(
        [
            "32 clients that ask as fast as they are answered and compare every answer with the "
            "policy's own, on the server's two cores (median wait "
            f"{wait['p50']:.0f} ms, 99th percentile {wait['p99']:.0f} ms):",
            table(header, rows),
        ]
    )


def control_loop(record: dict[str, Any]) -> str:
    """Returns the table on actions in a loop at 100 Hz, and what the runtime costs beside them."""
    c, foot, rows, missed = record["conditions"], record["footprint"], [], []
    for steps, found in record["steps"].items():
        for name, ms in found["ms"].items():
            figures = [f"{ms[key]:.2f}" for key in ("p50", "p99", "p999", "max")]
            rows.append([steps, name, *figures])
        lost = found["missed_while_stolen"]
        taken = f" ({lost} while a hypervisor had taken the core)" if lost else ""
        missed.append(f"{found['missed']}{taken} at K = {steps}")
    own = {"fifo": "at real-time priority", "other": "at ordinary priority"}[c["scheduler"]]
    return "\n\n".join(
        [
            f"A loop at {c['hertz']:.0f} Hz on one core, {own}, in which the core's numba kernel "
            f"and three ways of the runtime act in every tick, {c['ticks']:,} ticks for each K; "
            f"milliseconds per action, of wall time (`{record['command']}`, {c['processor']}, "
            f"load {c['load']:.1f} at the start):",
            table(["K", "", "median", "99 %", "99.9 %", "largest"], rows),
            f"Ticks that were missed because the four together took longer than one: "
            f"{', '.join(missed)}. The runtime's wheel is "
            f"{foot['wheel_bytes'] / 1e3:.0f} kB; it is imported in "
            f"{1e3 * foot['import_s']:.0f} ms on top of ONNX Runtime's "
            f"{1e3 * foot['import_onnxruntime_s']:.0f}; a process that acts takes "
            f"{foot['resident_bytes']['onnxruntime'] / 1e6:.0f} MB of memory, and "
            f"{foot['resident_bytes']['numpy'] / 1e6:.0f} MB without ONNX Runtime.",
        ]
    )


def robot_logs(text: str, record: dict[str, Any]) -> str:
    """Returns the tutorial on robot logs with its two tables, of what its script measured."""
    joints = [str(i) for i in range(len(record["error"]))]
    units = ["rad"] * (len(joints) - 1) + ["m"]
    errors = [
        [i, f"{error:.2g} {unit}", f"{relative:.2f}"]
        for i, error, unit, relative in zip(
            joints, record["error"], units, record["relative_error"], strict=True
        )
    ]
    fit = "\n\n".join(
        [
            table(["joint", "error", "over its spread in the data"], errors),
            f"Distance of the clone from held-out data: {record['distance']:.3f}. Between two "
            f"halves of that data: {record['floor']:.3f}.",
        ]
    )
    rows = [
        [name, f"{figures['mean']:.3f}", f"{figures['last']:.3f}"]
        for name, figures in record["distances"].items()
    ]
    driven = "\n\n".join(
        [
            f"Mean distance, joints in units of their limits, after {record['updates']:,} updates "
            f"of each and {record['episodes']} logged episodes, one seed:",
            table(["who drives", "over the two seconds", "at the end"], rows),
        ]
    )
    return fill(fill(text, "fit", fit), "drive", driven)


SECTIONS: dict[Callable[[dict[str, Any]], str], str] = {
    pointmaze: "A maze",
    hosts: "Three hosts",
    bandit: "Four modes",
    cloning: "By the number of network calls",
    datasets: "Loading",
}


def render(text: str) -> str:
    """Returns the page on small results with its tables filled in."""
    parts = []
    for section, title in SECTIONS.items():
        record = json.loads((RESULTS / f"{section.__name__}.json").read_text(encoding="utf-8"))
        parts += [f"## {title}", section(record)]
    parts += ["## Speed", performance.summary(performance.read())]
    return fill(text, "results", "\n\n".join(parts))


def glance() -> dict[str, Any]:
    """Returns what the README's picture shows: clones by K, and scores by task with intervals."""
    clones, flat = (
        json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("cloning", "bandit")
    )
    modes: dict[str, dict[str, float]] = {}
    for method, name in (("one_step", "GTP"), ("gtp", "GTP, the paper's objective")):
        runs = [r for r in clones["rows"] if (r["task"], r["method"]) == ("modes", method)]
        last = [run["measured"][str(run["updates"])] for run in runs]
        modes[name] = {k: mean(100 * m[k]["share"] for m in last) for k in ("1", "2", "5")}
    scores: dict[str, dict[str, list[float]]] = {}
    for study in ("hopper", "umaze", "medium-play"):
        found = read_results(COLLECTED / study)
        task = scores.setdefault(str(found[0].task), {})
        for method, name in SHOWN.items():
            own = [r for r in found if r.method == method]
            if own:
                s = spread([r.score(r.evaluations[-1]) or 0.0 for r in own])
                task[name] = [s.iqm, s.iqm if s.low is None else s.low, s.high or s.iqm]
    return {
        "modes": modes,
        "gaussian": mean(100 * run["gaussian"]["within_3_std"] for run in flat["runs"]),
        "truth": 100 * flat["truth_within_3_std"],
        "scores": scores,
    }


# Methods of the studies, as the README's picture calls them.
SHOWN = {
    "Gaussian BC": "cloning",
    "TD3+BC": "TD3+BC",
    "IQL": "IQL",
    "gtp": "GTP, the paper's objective",
    "GTPConfig()": "GTP",
}


def badges() -> dict[str, str]:
    """Returns the README's badges by file name, with what `pyproject.toml` says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    prefix = "Programming Language :: Python :: 3."
    versions = [c.rpartition(" ")[2] for c in project["classifiers"] if c.startswith(prefix)]
    typed = "Typing :: Typed" in project["classifiers"]
    facts = {
        "python": f"{versions[0]} to {versions[-1]}",
        "types": "mypy strict" if typed else "none",
        "licence": project["license"],
    }
    return {f"badge-{label}.svg": badge(label, fact) for label, fact in facts.items()}


def badge(label: str, fact: str) -> str:
    """Returns a small picture of two words: a file, where others ask a server for one."""
    left, right = (7 * len(word) + 14 for word in (label, fact))
    width, style = left + right, 'font-family="Verdana,sans-serif" font-size="11" fill="#fff"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" '
        f'aria-label="{label}: {fact}">'
        f'<title>{label}: {fact}</title><rect width="{width}" height="20" rx="3" fill="#4b5563"/>'
        f'<path d="M{left} 0h{right - 3}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3H{left}z" fill="#0b62a4"/>'
        f'<g text-anchor="middle" {style}><text x="{left / 2}" y="14">{label}</text>'
        f'<text x="{left + right / 2}" y="14">{fact}</text></g></svg>\n'
    )


def main() -> None:
    """Writes or checks the pages that have tables, and the README's pictures."""
    args = page_parser(__doc__).parse_args()
    names = "parity robot_logs deterministic scaling serving serving_killed runtime".split()
    record, logs, rules, shared, steady, killed, ticks = (
        json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in names
    )
    deploy = fill(DEPLOY.read_text(encoding="utf-8"), "load", load(steady, killed))
    pages = {
        GLANCE: render(GLANCE.read_text(encoding="utf-8")),
        EXPORT: fill(EXPORT.read_text(encoding="utf-8"), "parity", parity(record)),
        DEVIATIONS: fill(
            DEVIATIONS.read_text(encoding="utf-8"), "deterministic", deterministic(rules)
        ),
        DEPLOY: fill(deploy, "control-loop", control_loop(ticks)),
        DISTRIBUTED: fill(DISTRIBUTED.read_text(encoding="utf-8"), "scaling", scaling(shared)),
        ROBOT_LOGS: robot_logs(ROBOT_LOGS.read_text(encoding="utf-8"), logs),
    }
    pages |= {PICTURES / name: text for name, text in badges().items()}
    picture = PICTURES / "results.svg"
    if not pictures.shows(picture, glance()):
        if args.check:
            sys.exit("results.svg is not what the JSON says: make tables")
        pictures.draw_glance(glance(), picture)
    stale = [path for path, text in pages.items() if not is_current(path, text)]
    for path in stale or [GLANCE]:
        publish(path, pages[path], check=args.check, target="tables")


if __name__ == "__main__":
    main()
