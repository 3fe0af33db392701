"""Writes `docs/results.md` from the collected results of `benchmarks.studies`.

    python -m benchmarks.results_page [--check]

No number on the page is typed: each comes from a result that names its config, its data's hash and
its software. A row without results is "not yet run"; one whose results were made with another
config than the study now has says so. With ``--check`` nothing is written, and the exit status
says whether the page is what the results say.
"""

import shlex
from pathlib import Path

from benchmarks import advantages, failing, signatures, teachers
from benchmarks.pages import ROOT, page_parser, publish, read, table
from benchmarks.pictures import draw_scores
from benchmarks.studies import COLLECTED, NOTE, OUT, STUDIES, Row, Study, folder_of
from benchmarks.tasks import DEMONSTRATIONS
from gtp_experiments import RunResult, difference_interval, read_results
from gtp_experiments.table import HEADER, cells, rows

PAGE = ROOT / "docs" / "results.md"
PICTURE = ROOT / "docs" / "pictures" / "scores.svg"
MISSING = "not yet run"
INTRODUCTION = """\
# Results

<!-- Written by `python -m benchmarks.results_page` from the results of the studies. -->

![Scores by method on three tasks: a dot per seed, a bar to their mean](pictures/scores.svg)

Scores of the last weights: a dot per seed, a bar to their mean; the package in blue, peers in grey.
Every figure below comes from a run of [the experiment runner](how-to/run-experiments.md) and names
its command, its data and its seeds. `make results` runs what is missing and writes this page.

- **Data**: {note}. Scores on them are not comparable
  with those on D4RL's files; the paper's figures have a separate column. For the robot arm,
  {demonstrations}.
- **Score**: D4RL's normalisation, from 0 for a random to 100 for an expert policy; in AntMaze and
  for the robot arm the share of successful episodes in %.
- **Last and best**: *last* is the end of training, and what counts. *Best* is the highest of the
  evaluations in between, chosen in hindsight.
- **Spread**: mean ± standard deviation over seeds, each seed the mean of its episodes; IQM is the
  interquartile mean over seeds (fewer than four lose none), its interval a bootstrap over seeds.
- **Actions** are sampled, one candidate, with the number of steps K that the config says (1 for
  today's objective, 5 for the paper's), unless a row says otherwise; the peers act with their mean,
  as they do by default.
- **Peers** are those of d3rlpy with GTP's sizes (three layers of 256), minibatches, normalised
  observations, number of updates and evaluation. ReBRAC has the betas that its authors give for
  each dataset, a twentieth or less of their number of updates, and neither their discount nor
  their minibatches.
- **ms/update** is time on the clock while other runs kept the machine busy, so rows of equal work
  can differ by a lot. [Where the time goes](explanation/performance.md) has what was measured.
"""


def results_of(row: Row, found: list[RunResult]) -> tuple[list[RunResult], str]:
    """Returns the results of a row, and what is wrong with them."""
    mine = [r for r in found if r.method == row.method and r.seed in row.seeds]
    current = [r for r in mine if row.made(r)]
    if current:
        missing = sorted(set(row.seeds) - {r.seed for r in current})
        return current, f"seeds {', '.join(map(str, missing))} {MISSING}" if missing else ""
    return mine, "made with another config than the command's now" if mine else MISSING


def study_section(study: Study, found: list[RunResult]) -> str:
    """Returns the section of one study."""
    lines, commands, notes, scores, again = [], [], [], {}, []
    for row in study.rows:
        commands.append(f"python -m {shlex.join(row.command(folder_of(study, OUT)))}")
        results, remark = results_of(row, found)
        if not results:
            blank = [row.method, ", ".join(map(str, row.seeds)), str(row.updates), MISSING]
            lines.append([*blank, *[""] * (len(HEADER) - 1 - len(blank))])
            continue
        (summary, *others) = rows(results)
        assert not others, f"{row.method}: results of several configs"
        lines.append(cells(summary)[1:])
        notes += [f"- {row.method}: {remark}."] if remark else []
        notes += [
            f"- {row.method}, seed {r.seed} diverged {r.message}"
            for r in results
            if r.status == "diverged"
        ]
        last = [r.score(r.last) for r in results]
        scores[row.method] = [s for s in last if s is not None]
        if row.steps:
            again += [r for r in found if r.method.startswith(f"{row.method}, K = ")]
    parts = [f"## {study.title}", study.question, table(HEADER[1:], lines, aligned=True)]
    parts += ["\n".join(notes)] if notes else []
    if differences := differences_of(study, scores):
        parts.append(differences)
    if again:
        parts.append(steps_table(again))
    made = made_with([r for row in study.rows for r in results_of(row, found)[0]])
    parts += [folded("Commands, data and software", "```bash", *commands, "```", "", made)]
    return "\n\n".join(part for part in parts if part)


def folded(summary: str, *lines: str) -> str:
    """Returns lines of Markdown that a click opens, on the site and on hosts of repositories."""
    body = "\n".join(lines).strip()
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"


def differences_of(study: Study, scores: dict[str, list[float]]) -> str:
    """Returns by how much the first method differs from the others, where seeds allow it."""
    first = study.rows[0].method
    found = [
        f"{name} {low:+.1f} to {high:+.1f}"
        for name, values in scores.items()
        if name != first and min(len(values), len(scores.get(first, []))) > 1
        for low, high in [difference_interval(scores[first], values)]
    ]
    if not found:
        return ""
    return f"Last score of {first} minus that of (95 % interval over seeds): {'; '.join(found)}."


def steps_of(result: RunResult) -> tuple[str, int, str]:
    """Returns the method whose weights were evaluated, K, and how else one acted."""
    whose, steps = result.method.split(", K = ")
    number, _, how = steps.partition(",")
    return whose, int(number), how


def steps_table(results: list[RunResult]) -> str:
    """Returns score and latency by number of steps K, with the weights of the runs above."""
    lines = []
    for row in sorted(rows(results), key=lambda row: steps_of(row.results[0])):
        method, seeds, _, last, interval = cells(row)[1:6]
        times = [r.ms_per_action for r in row.results if r.ms_per_action is not None]
        latency = f"{sum(times) / len(times):.2f}" if times else ""
        episodes = str(len(row.results[0].evaluations[0].returns))
        lines.append([method, seeds, episodes, last, interval, latency])
    header = ["last weights", "seeds", "episodes", "score", "IQM [95 %]", "ms/action"]
    return "\n\n".join(
        [
            "The same weights with other numbers of steps, and where it says so without sampling "
            "(`python -m gtp_experiments evaluate`); "
            "the time is that of one action for one observation, one thread:",
            table(header, lines, aligned=True),
        ]
    )


def made_with(results: list[RunResult]) -> str:
    """Returns data hashes and software of results."""
    data = sorted({f"{r.dataset} (sha256 {r.data_sha256[:12]})" for r in results})
    names = ("machine", "python", "torch", "gymnasium", "mujoco", "d3rlpy", "gtp_policy", "git")
    values = {
        n: sorted({str(r.provenance[n]) for r in results if n in r.provenance}) for n in names
    }
    values["git"] = [revision[:10] for revision in values["git"]]
    software = "; ".join(f"{n} {', '.join(v)}" for n, v in values.items() if v)
    return f"Data: {', '.join(data)}. Made with: {software}." if results else ""


def render(results: Path = COLLECTED) -> str:
    """Returns the page."""
    introduction = INTRODUCTION.format(note=NOTE, demonstrations=DEMONSTRATIONS.note)
    sections = [introduction.rstrip()]
    for study in STUDIES:
        found = read_results(folder_of(study, results))
        sections.append(study_section(study, found))
    for script in (advantages, failing, teachers, signatures):
        if (record := read(script.OUTPUT)) is not None:
            sections.append(script.section(record))
    return "\n\n".join(sections) + "\n"


def scores(results: Path = COLLECTED) -> dict[str, dict[str, list[float]]]:
    """Returns the last scores of the first studies, by task and method, a number per seed."""
    panels: dict[str, dict[str, list[float]]] = {}
    for study in STUDIES[:3]:
        found = read_results(folder_of(study, results))
        for row in study.rows:
            last = [r.score(r.last) for r in results_of(row, found)[0]]
            if values := [s for s in last if s is not None]:
                panels.setdefault(study.title, {})[row.method] = values
    return panels


def main() -> None:
    """Writes or checks the page."""
    args = page_parser(__doc__).parse_args()
    publish(PAGE, render(), check=args.check, target="results-page")
    draw_scores(scores(), PICTURE)
    if (record := read(signatures.OUTPUT)) is not None:
        signatures.draw(record, PAGE.parent / "explanation" / "signatures.svg")


if __name__ == "__main__":
    main()
