"""Writes docs/explanation/performance.md and its pictures from the speed benchmarks' JSON.

    python -m benchmarks.performance [--check]

No figure on the page is typed: each stands between markers that name its section. With ``--check``
nothing is written, and the exit status says whether page and pictures are what the JSON says.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import pages
from benchmarks.pages import RESULTS, ROOT, fill, is_current, page_parser, table

PAGE = ROOT / "docs" / "explanation" / "performance.md"
PICTURES = {"growth.svg": "growth", "latency.svg": "speed"}  # file: what it is drawn from
NAMES = ("speed", "growth", "memory", "imports", "host_speed", "nodes", "gpu")
LIBRARY, TORCH = "library", "library, torch"
UNKNOWN = "not yet measured"
# What the paper says: hours for 2M updates of 256 rows and ms per action, on one RTX 4090.
PAPER = (
    ("Diffusion-QL", 5, 7.1, 1.16),
    ("Consistency-AC", 2, 3.7, 0.55),
    ("FQL", 1, 10.0, 0.36),
    ("GTP", 5, 4.3, 0.94),
    ("GTP", 2, 3.8, 0.67),
)
UPDATES = 2_000_000
Records = dict[str, dict[str, Any]]


def cell(figure: dict[str, float], digits: int) -> str:
    """Returns a median with its quartiles."""
    median, low, high = (f"{figure[key]:.{digits}f}" for key in ("median", "q1", "q3"))
    return f"{median} [{low}, {high}]"


def missing(module: str) -> str:
    """Returns what stands where there is no figure yet."""
    return f"{UNKNOWN.capitalize()}: `python -m benchmarks.{module}`."


def about(record: dict[str, Any]) -> str:
    """Returns command, machine and versions of a record."""
    c = record["conditions"]
    where = c.get("gpu") or c["processor"]
    taken = [f"{c['threads']} thread" + "s" * (c["threads"] != 1)]
    taken += [c["clock"]] if "clock" in c else []
    taken.append(f"{c['rounds']} round" + "s" * (c["rounds"] != 1))
    numbers = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return f"`{record['command']}`: {where}, {', '.join(taken)}; {numbers}."


def timing(label: str, comparison: dict[str, Any], digits: int) -> list[list[str]]:
    """Returns rows of medians, tails and ratios, one per contender."""
    return [
        [
            label,
            name,
            cell(entry["ms"], digits),
            f"{entry['p99']:.{digits}f}",
            f"{entry['max']:.{digits}f}",
            cell(entry["times_faster_than_naive"], 2),
        ]
        for name, entry in comparison.items()
    ]


TIMING = ["", "", "ms", "p99", "max", "times faster than naive"]


def explained(record: dict[str, Any]) -> list[str]:
    """Returns what the library said of its choice of engines."""
    if "explained" not in record:
        return []
    return [f"What `kernels.explain` says there:\n\n```text\n{record['explained']}\n```"]


def update(records: Records) -> str:
    """Returns the section on an update."""
    if "speed" not in records:
        return missing("speed")
    record = records["speed"]
    c = record["conditions"]
    hidden = " × ".join(str(width) for width in c["hidden"])
    rows = [row for label, of in record["update"].items() for row in timing(label, of, 1)]
    drawn = [
        [
            label,
            name,
            cell(entry["ms"], 1),
            cell(entry["sample_ms"], 2) if "sample_ms" in entry else "",
            cell(entry["times_faster_than_naive"], 2),
        ]
        for label, of in record["update with data"].items()
        for name, entry in of.items()
    ]
    return "\n\n".join(
        [
            f"{about(record)} Batch {c['batch']}, observations {c['obs_dim']}, actions "
            f"{c['action_dim']}, hidden layers {hidden}. Median [quartiles] over rounds; p99 and "
            "max over calls. On a given minibatch:",
            table(TIMING, rows),
            *explained(record),
            f"With drawing the minibatch from {c['rows']:,} transitions, each in its own way; "
            "the mean of a round's updates, K = 5:",
            table(["", "", "ms", "of it drawing", "times faster than naive"], drawn),
        ]
    )


def action(records: Records) -> str:
    """Returns the section on actions."""
    if "speed" not in records:
        return missing("speed")
    record = records["speed"]
    rows = [row for k, of in record["action"].items() for row in timing(k, of, 3)]
    many = [row for k, of in record["4096 actions"].items() for row in timing(k, of, 1)]
    return "\n\n".join(
        [
            "One action, from numpy to numpy:",
            table(TIMING, rows),
            "![Latency of one action: median, 99th percentile and slowest call](latency.svg)",
            "4096 actions in one call:",
            table(TIMING, many),
        ]
    )


AXES = {
    "steps": "K",
    "batch": "batch",
    "width": "hidden width",
    "action_dim": "action dimensions",
    "samples": "M",
}


def _passes(record: dict[str, Any]) -> list[list[str]]:
    kinds, ways = ("cloning", "with a critic"), ("with gradient", "without")
    return [
        [f"`{name}`", *(f"{of[k][way]:g}" if k in of else "" for k in kinds for way in ways)]
        for name, of in record["passes"].items()
    ]


def growth(records: Records) -> str:
    """Returns the section on growth."""
    if "growth" not in records:
        return missing("growth")
    record = records["growth"]
    rows = [
        [
            AXES[axis],
            value,
            *(cell(of[name]["ms"], 1) for name in ("naive", LIBRARY)),
            cell(of[LIBRARY]["times_faster_than_naive"], 2),
        ]
        for axis, values in record.get("update", {}).items()
        for value, of in values.items()
    ]
    acts = [
        [
            value,
            *(cell(of[name]["ms"], 3) for name in ("naive", LIBRARY)),
            cell(of[LIBRARY]["times_faster_than_naive"], 2),
        ]
        for value, of in record.get("action", {}).get("steps", {}).items()
    ]
    header = ["naive", "library", "times faster"]
    parts = [
        f"{about(record)} Milliseconds per update, one size changed at a time:",
        "![Time of an update against each size](growth.svg)",
        table(["size", "", *header], rows),
    ]
    if "passes" in record:
        parts += [
            "Passes of a minibatch through the actor's network in one update, counted; those of "
            "cloning, and with a critic:",
            table(
                ["preset", "with gradient", "without", "with gradient", "without"], _passes(record)
            ),
        ]
    if acts:
        parts += ["Milliseconds per action:", table(["K", *header], acts)]
    if "seeds" in record:
        seeds = [
            [
                n,
                cell(of["one seed"]["ms"], 2),
                cell(of["all seeds"]["ms"], 2),
                f"{of['all seeds']['ms']['median'] / of['one seed']['ms']['median']:.2f}",
            ]
            for n, of in record["seeds"].items()
        ]
        parts += [
            "Several seeds in one program, milliseconds per update of all of them:",
            table(["seeds", "one seed alone", "all seeds", "all over one"], seeds),
        ]
    return "\n\n".join(parts)


def memory(records: Records) -> str:
    """Returns the section on memory."""
    if "memory" not in records:
        return missing("memory")
    record = records["memory"]
    rows = [
        [
            f"{case['rows']:,} rows, M = {case['samples']}",
            name,
            cell(case[name]["growth"], 0),
            cell(case[name]["peak"], 0),
            f"{case['data_mib']:.0f}",
        ]
        for case in record["cases"]
        for name in ("naive", TORCH, LIBRARY)
        if name in case
    ]
    first = record["cases"][0]
    stages = [
        [name, stage["after"], f"{stage['growth']:.0f}", str(stage["modules_loaded"])]
        for name in (TORCH, LIBRARY)
        if name in first
        for stage in first[name]["stages"]
    ]
    return "\n\n".join(
        [
            f"{about(record)} MiB on top of what the imports take, the data included, after "
            f"{record['conditions']['updates']} updates and 100 actions, each in a fresh process:",
            table(["", "", "growth", "growth of the peak", "of it data"], rows),
            "Where it goes, in the first of these cases, added up:",
            table(["", "after", "MiB", "modules loaded meanwhile"], stages),
        ]
    )


def imports(records: Records) -> str:
    """Returns the section on imports."""
    if "imports" not in records:
        return missing("imports")
    record = records["imports"]
    rows = [
        [
            f"`{statement}`",
            cell(figure, 2),
            cell(record["over_torch"][statement], 2) if statement in record["over_torch"] else "",
            str(record["modules"][statement]),
        ]
        for statement, figure in record["seconds"].items()
    ]
    spent = record["by_package_ms"]
    whole = sum(spent.values())
    shares = ", ".join(
        f"{name} {100 * ms / whole:.0f} %" for name, ms in spent.items() if ms > 0.01 * whole
    )
    return "\n\n".join(
        [
            f"{about(record)} Fresh interpreters:",
            table(["", "seconds", "over `import torch`", "modules"], rows),
            f"What `import gtp_policy` spends its time on, over torch: {shares}.",
        ]
    )


def hosts(records: Records) -> str:
    """Returns the section on hosts."""
    if "host_speed" not in records:
        return missing("host_speed")
    record = records["host_speed"]
    rows = [
        [label, f"`{name}`", cell(entry["ms"], 2), cell(entry["times_faster_than_core"], 3)]
        for label, of in record["hosts"].items()
        for name, entry in of.items()
    ]
    return "\n\n".join(
        [
            f"{about(record)} From one update to the next inside each host's own training loop:",
            table(["", "loop", "ms per update", "update rate over the core's"], rows),
        ]
    )


def profile(records: Records) -> str:
    """Returns the section on operations, and the floor."""
    if "speed" not in records:
        return missing("speed")
    record = records["speed"]
    groups = record["profile"]
    total = {name: sum(entry["ms"] for entry in of.values()) for name, of in groups.items()}
    rows = [
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
    header = ["", *(f"{name}, ms" for name in groups), *(f"{name}, calls" for name in groups)]
    floors = record["floor"]
    least = []
    for label, entry in floors.items():
        if isinstance(entry, dict):
            ms = record["update"][label][LIBRARY]["ms"]["median"]
            slow = record["update"][label]["naive"]["ms"]["median"]
            least.append(
                [
                    label,
                    f"{entry['gflop']:.2f}",
                    f"{entry['ms']:.1f}",
                    f"{slow:.1f}",
                    f"{ms:.1f}",
                    f"{ms / entry['ms']:.2f}",
                ]
            )
    return "\n\n".join(
        [
            "Milliseconds per update by operation, K = 5, M = 1, under torch's profiler (it slows "
            "small operators down, so the shares count), and how often an operator is called; "
            "*before* is the naive column, *after* the library's. Between operators are Python, "
            "autograd's and the dispatcher's own work, and what numba compiled:",
            table(header, rows),
            f"The floor: the matrix products alone, at {floors['gflop_per_second']:.0f} GFLOP/s, "
            "the rate of one product of a batch with a hidden layer in this run:",
            table(["", "GFLOP", "floor, ms", "naive, ms", "library, ms", "library / floor"], least),
        ]
    )


def _measured(record: dict[str, Any], steps: int) -> list[str]:
    """Returns what is compared with the paper's figures: hours for M = 1 and 4, ms per action."""

    def median(section: str, label: str) -> float | None:
        of = record.get(section, {}).get(label)
        return of[LIBRARY]["ms"]["median"] if of else None

    train = [median("update", f"K = {steps}, M = {m}") for m in (1, 4)]
    act = median("action", f"K = {steps}")
    return [
        *(UNKNOWN if ms is None else f"{ms * UPDATES / 3.6e6:.1f}" for ms in train),
        UNKNOWN if act is None else f"{act:.3f}",
    ]


def paper(records: Records) -> str:
    """Returns the paper's table of efficiency with further columns."""
    measured = [records.get("speed"), records.get("gpu", {}).get("speed")]
    names = []
    for record, kind in zip(measured, ("one CPU core", "GPU"), strict=True):
        machine = record["conditions"] if record else {}
        names.append(machine.get("gpu") or machine.get("processor") or kind)
    header = ["", "steps", "paper, RTX 4090: hours", "paper, RTX 4090: ms per action"]
    for name, core in zip(names, (", one core", ""), strict=True):
        header += [f"{name}{core}: hours, M = 1", "hours, M = 4", "ms per action"]
    rows = []
    for method, steps, train, act in PAPER:
        row = [method, str(steps), f"{train:.1f}", f"{act:.2f}"]
        for record in measured:
            row += _measured(record or {}, steps) if method == "GTP" else [""] * 3
        rows.append(row)
    return "\n\n".join(
        [
            f"Hours for {UPDATES:,} updates of 256 rows, computed from milliseconds per update, "
            "and milliseconds per action. The paper's columns are its own figures, from its own "
            "card; the others are this package's, from the machines that they name:",
            table(header, rows),
        ]
    )


LAUNCHES = {  # steps of `benchmarks.gpu` that update from a dataset
    "update_from_m1": "M = 1",
    "update_from_m4": "M = 4",
    "tf32": "M = 1, TF32 products allowed",
    "seeds_4": "M = 1, 4 seeds",
    "seeds_16": "M = 1, 16 seeds",
}


def steps(record: dict[str, Any]) -> list[str]:
    """Returns what the steps of `benchmarks.gpu` found, the benchmarks apart."""
    parts = []
    launches = [
        [text, *(f"{record[name][k]:.3f}" if k in record[name] else "" for k in LAUNCH_TIMES)]
        for name, text in LAUNCHES.items()
        if name in record
    ]
    if launches:
        text = "Updates from a dataset (`update_from`), milliseconds per update of all seeds; "
        text += "*host* is until the call returns, *replay* the recorded graph alone:"
        parts += [text, table(["", *LAUNCH_TIMES], launches)]
    samplers = [
        [name, f"{of['ms']:.4f}", f"{of['largest error']:.1e}"]
        for name, of in record.get("samplers", {}).items()
        if "ms" in of
    ]
    if samplers:
        parts.append("Samplers, and their largest error against the reference in float64:")
        parts.append(table(["", "ms", "error"], samplers))
    if "equal_to_the_reference" in record:
        differences = record["equal_to_the_reference"]["largest difference"]
        parts.append(
            f"After {len(differences)} updates a parameter differs from the reference's by "
            f"{differences[-1]:.1e} at most."
        )
    if (kernels := record.get("kernels_by_name", {})).get("replayed"):
        parts.append(
            f"A replayed update has {kernels['kernels']:.0f} kernels, which take "
            f"{kernels['us'] / 1000:.3f} of its {kernels['replay us'] / 1000:.3f} ms."
        )
    return parts


LAUNCH_TIMES = ("wall", "host", "replay")


def nodes(records: Records) -> str:
    """Returns the section on what is recorded, which is counted without a GPU."""
    if "nodes" not in records:
        return missing("gpu --nodes")
    record = records["nodes"]
    (low, high), (least, most) = record["estimated_ms"], record["estimated_node_us"]
    rows = [[name, str(number)] for name, number in record["nodes"].items()]
    return "\n\n".join(
        [
            f"Nodes of the CUDA graph, counted without a GPU by `{record['command']}`; M = 1:",
            table(["", "nodes of an update"], rows),
            f"Before guidance starts an update of the default is {record['nodes_before_guidance']} "
            f"nodes. {record['seeds']} seeds side by side are {record['nodes_of_seeds']}. A launch "
            f"of {record['updates_per_launch']} updates leaves {record['host_ops_per_launch']} "
            "operators to the host, one of them a copy to the device, and "
            f"{record['host_ops_per_launch_of_seeds']} at {record['seeds']} seeds.",
            f"On an H200 {record['nodes_m1']} nodes would take {low} to {high} ms: an estimate on "
            f"paper, at {least} to {most} microseconds a node.",
        ]
    )


def gpu(records: Records) -> str:
    """Returns the section on the GPU."""
    if "gpu" not in records:
        return missing("gpu --output DIR")
    record = records["gpu"]
    parts = []
    if "speed" in record:
        speed = record["speed"]
        parts.append(about(speed))
        for section in ("update", "action", "4096 actions"):
            taken = speed.get(section, {})
            rows = [row for label, of in taken.items() for row in timing(label, of, 3)]
            parts += [f"{section.capitalize()}:", table(TIMING, rows)] if rows else []
        parts += explained(speed)
        if "floor" in speed:
            parts.append(profile({"speed": speed}))
    parts += steps(record)
    for name, make in (("growth", growth), ("memory", memory), ("host_speed", hosts)):
        if name in record:
            text = make({name: record[name]})
            # The pictures are those of the CPU.
            parts.append(re.sub(r"!\[[^]]*\]\([^)]*\)\n\n", "", text))
    for name, text in (("tests_on_gpu", "Tests on it"), ("tests_of_triton", "of its kernels")):
        if name in record:
            parts.append(f"{text}: {record[name]['summary']}.")
    if record["left_out"]:
        parts.append(f"Left out: {', '.join(record['left_out'])}.")
    return "\n\n".join(parts)


def _ratio(section: str, label: str, contender: str = LIBRARY) -> Callable[[Records], float]:
    return lambda of: of["speed"][section][label][contender]["times_faster_than_naive"]["median"]


def _ms(section: str, label: str, contender: str = LIBRARY) -> Callable[[Records], float]:
    return lambda of: of["speed"][section][label][contender]["ms"]["median"]


def _on_gpu(value: Callable[[Records], float]) -> Callable[[Records], float]:
    return lambda of: value(of["gpu"])


def _growth_of_memory(of: Records) -> float:
    cases = {(case["rows"], case["samples"]): case for case in of["memory"]["cases"]}
    case = cases[100_000, 1]
    return case.get(TORCH, case[LIBRARY])["growth"]["median"]


def _over_torch(of: Records) -> float:
    return of["imports"]["over_torch"]["import torch; import gtp_policy"]["median"]


def _slowest_host(of: Records) -> float:
    rates = [
        entry["times_faster_than_core"]["median"]
        for hosts_of in of["host_speed"]["hosts"].values()
        for name, entry in hosts_of.items()
        if name != "core"
    ]
    return min(rates)


def _update_in_torch(samples: int) -> Callable[[Records], float]:
    def ratio(of: Records) -> float:
        taken = of["speed"]["update"][f"K = 5, M = {samples}"]
        figure: float = taken.get(TORCH, taken[LIBRARY])["times_faster_than_naive"]["median"]
        return figure

    return ratio


def _one_action(contender: str) -> Callable[[Records], dict[str, Any]]:
    def of_record(of: Records) -> dict[str, Any]:
        one: dict[str, dict[str, Any]] = of["speed"]["action"]["K = 5"]
        if contender == TORCH and TORCH not in one:  # without numba there is only this
            return one[LIBRARY]
        if contender == LIBRARY and TORCH not in one:
            raise KeyError("numba")
        return one[contender]

    return of_record


def _action_ms(contender: str) -> Callable[[Records], float]:
    return lambda of: _one_action(contender)(of)["ms"]["median"]


def _action_ratio(contender: str) -> Callable[[Records], float]:
    return lambda of: _one_action(contender)(of)["times_faster_than_naive"]["median"]


def _against_tianshou(of: Records) -> float:
    one = of["speed"]["action"]["K = 5"]
    return one["tianshou TD3+BC"]["ms"]["median"] / one[LIBRARY]["ms"]["median"]


def _all_over_one(of: Records) -> float:
    return of["seeds_16"]["wall"] / of["update_from_m1"]["wall"]


def _minutes(of: Records) -> float:
    return of["update_from_m1"]["wall"] * UPDATES / 6e4


# Targets: text, figure, bound, whether the figure must be at least (or at most) that.
TARGETS: tuple[tuple[str, Callable[[Records], float], float, str], ...] = (
    ("update over naive, M = 1", _ratio("update", "K = 5, M = 1"), 2.0, ">="),
    ("update over naive, M = 4", _ratio("update", "K = 5, M = 4"), 1.8, ">="),
    ("update over naive without numba, M = 1", _update_in_torch(1), 2.0, ">="),
    ("update over naive without numba, M = 4", _update_in_torch(4), 1.8, ">="),
    ("one action in torch, K = 5, ms", _action_ms(TORCH), 0.12, "<="),
    ("or: over naive", _action_ratio(TORCH), 9.0, ">="),
    ("one action with numba, K = 5, ms", _action_ms(LIBRARY), 0.06, "<="),
    ("or: over naive, with numba", _action_ratio(LIBRARY), 16.0, ">="),
    ("one action over Tianshou's TD3+BC, K = 5", _against_tianshou, 1.0, ">="),
    ("4096 actions over naive, K = 5", _ratio("4096 actions", "K = 5"), 2.0, ">="),
    ("memory over imports, 100,000 rows, M = 1, without numba, MiB", _growth_of_memory, 60.0, "<="),
    ("`import gtp_policy` over `import torch`, s", _over_torch, 0.5, "<="),
    ("slowest host's update rate over the core's", _slowest_host, 0.9, ">="),
    ("GPU: update over naive, M = 1", _on_gpu(_ratio("update", "K = 5, M = 1")), 6.0, ">="),
    ("GPU: 2,000,000 updates, M = 1, minutes", _on_gpu(_minutes), 10.0, "<="),
    ("GPU: 16 seeds over one", _on_gpu(_all_over_one), 3.0, "<="),
    ("GPU: 4096 actions, K = 5, ms", _on_gpu(_ms("4096 actions", "K = 5")), 0.15, "<="),
    ("GPU: one action, K = 5, ms", _on_gpu(_action_ms(LIBRARY)), 0.06, "<="),
)


def reached(records: Records) -> dict[str, tuple[float | None, bool | None]]:
    """Returns for every target the figure and whether it is reached; None where not measured."""
    result: dict[str, tuple[float | None, bool | None]] = {}
    for text, value, bound, sense in TARGETS:
        try:
            figure = value(records)
        except KeyError:
            result[text] = (None, None)
            continue
        result[text] = (figure, figure >= bound if sense == ">=" else figure <= bound)
    return result


def targets(records: Records) -> str:
    """Returns the table of what is aimed at and what is reached."""
    rows = []
    for (text, _, bound, sense), (figure, met) in zip(
        TARGETS, reached(records).values(), strict=True
    ):
        shown = UNKNOWN if figure is None else f"{figure:.3g}"
        wanted = f"{'at least' if sense == '>=' else 'at most'} {bound:g}"
        rows.append([text, wanted, shown, "" if met is None else "yes" if met else "no"])
    return table(["", "target", "measured", "reached"], rows)


SECTIONS: dict[str, Callable[[Records], str]] = {
    section.__name__: section
    for section in (
        *(targets, update, action, growth, memory, imports, hosts, profile, paper, nodes, gpu),
    )
}


def read(folder: Path = RESULTS) -> Records:
    """Returns the records that are there."""
    found = {name: pages.read(folder / f"{name}.json") for name in NAMES}
    return {name: record for name, record in found.items() if record is not None}


def render(text: str, records: Records) -> str:
    """Returns the page's text with every section filled in.

    Raises:
        ValueError: If a section has no place on the page.
    """
    for name, section in SECTIONS.items():
        text = fill(text, name, section(records))
    return text


def summary(records: Records) -> str:
    """Returns the lines on speed of the page on small results."""
    speed, memory_of = records["speed"], records["memory"]
    ratio = {m: _ratio("update", f"K = 5, M = {m}")(records) for m in (1, 4)}
    one, many = speed["action"]["K = 5"][LIBRARY], speed["4096 actions"]["K = 5"][LIBRARY]
    rows = f"{memory_of['cases'][0]['rows']:,}"
    return (
        f"**Speed** (`{speed['command']}`; one core of {speed['conditions']['processor']}, batch "
        f"{speed['conditions']['batch']}, K = 5): an update is {ratio[1]:.2f} times (M = 1) and "
        f"{ratio[4]:.2f} times (M = 4) as fast as the algorithm written down naively; one action "
        f"takes {one['p50']:.3f} ms ({one['times_faster_than_naive']['median']:.1f} times as fast),"
        f" 4096 take {many['p50']:.0f} ms ({many['times_faster_than_naive']['median']:.1f} times). "
        f"With {rows} rows of data, training takes {_growth_of_memory(records):.0f} MiB on top of "
        f"the imports (without numba), and `import gtp_policy` {_over_torch(records):.2f} s on top "
        "of torch. [Everything that was measured](explanation/performance.md)."
    )


def main() -> None:
    """Writes or checks the page and the pictures."""
    args = page_parser(__doc__).parse_args()
    from benchmarks import pictures  # what other pages need of this module draws nothing

    records = read()
    wanted = render(PAGE.read_text(encoding="utf-8"), records)
    drawings = {PAGE.parent / name: of for name, of in PICTURES.items() if of in records}
    if args.check:
        old = (path for path, of in drawings.items() if not pictures.shows(path, records[of]))
        stale = [path.name for path in old]
        stale += [PAGE.name] * (not is_current(PAGE, wanted))
        sys.exit(f"not what the JSON says: {', '.join(stale)}" if stale else 0)
    PAGE.write_text(wanted, encoding="utf-8")
    draw = {"growth": pictures.draw_growth, "speed": pictures.draw_latency}
    for path, of in drawings.items():
        draw[of](records[of], path)


if __name__ == "__main__":
    main()
