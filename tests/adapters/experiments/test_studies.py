"""The studies list what can be run, and the page shows their results."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from benchmarks import studies
from benchmarks.pictures import shows
from benchmarks.results_page import PAGE, PICTURE, render, results_of, scores, study_section
from benchmarks.studies import OUT, STUDIES, Row, chosen, collect, folder_of, left_of
from gtp_experiments import Evaluation, Reference, RunResult
from gtp_experiments.records import write_json

HOPPER = next(study for study in STUDIES if study.name == "hopper")


def result(row: Row, seed: int, *scores: float, **fields: Any) -> RunResult:
    """A result of a row's own config."""
    config = row.configs(OUT)[0].replace(seed=seed)
    defaults: dict[str, Any] = {
        "method": row.method,
        "dataset": config.dataset,
        "task": config.task,
        "group": config.group,
        "seed": seed,
        "updates": row.updates,
        "status": "finished",
        "evaluations": [
            Evaluation(update=10 * i, returns=(s,), lengths=(1,)) for i, s in enumerate(scores, 1)
        ],
        "reference": Reference(min=0.0, max=100.0, source="made up"),
        "ms_per_update": 4.0,
        "data_sha256": "0123456789abcdef",
        "config": config.model_dump(mode="json"),
        "provenance": {"torch": "2.13.0", "git": "f" * 40},
    }
    return RunResult(**{**defaults, **fields})


def line_of(text: str, method: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {method} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(
    "row", [row for study in STUDIES for row in study.rows], ids=lambda row: row.method
)
def test_every_row_is_a_valid_experiment(row: Row) -> None:
    configs = row.configs(OUT)
    assert [c.seed for c in configs] == list(row.seeds)
    assert all(c.updates == row.updates and c.method == row.method for c in configs)
    assert row.updates >= studies.MAZE_UPDATES
    note = studies.NOTE if row.task is None else row.task.note
    assert all(c.data_note == note for c in configs)


def test_no_two_rows_of_a_folder_share_a_name_but_differ() -> None:
    seen: dict[tuple[Path, str], str] = {}
    for study in STUDIES:
        for row in study.rows:
            assert seen.setdefault((folder_of(study, OUT), row.method), row.words) == row.words


def test_an_unknown_study_is_named() -> None:
    with pytest.raises(SystemExit, match=r"there is no study chess; there are hopper, umaze"):
        list(chosen(["chess"]))


def test_what_was_not_run_says_so() -> None:
    section = study_section(HOPPER, [])
    for row in HOPPER.rows:
        assert line_of(section, row.method)[3] == "not yet run"


def test_numbers_of_the_page_are_those_of_the_results() -> None:
    by_method = {row.method: row for row in HOPPER.rows}
    gtp, bc, gaussian = (by_method[name] for name in ("gtp", "gtp_bc", "Gaussian BC"))
    found = [
        *(result(gtp, seed, 10, 60 + seed) for seed in range(3)),
        *(result(bc, seed, 50) for seed in range(2)),
        result(gaussian, 0, status="diverged", message="after 7: nan"),
    ]
    section = study_section(HOPPER, found)
    assert line_of(section, "gtp")[1:7] == [
        *("0, 1, 2", "50000", "61.0 ± 1.0", "61.0 [60.0, 62.0]"),
        *("61.0 ± 1.0", "4.0"),
    ]
    assert line_of(section, "gtp")[7] == "90.3"  # the paper's
    assert "- gtp_bc: seeds 2 not yet run." in section
    assert "- Gaussian BC, seed 0 diverged after 7: nan" in section
    assert "minus that of (95 % interval over seeds): gtp_bc +10.0 to +12.0." in section
    assert "sha256 0123456789ab" in section
    assert "git ffffffffff." in section
    assert "python -m gtp_experiments run --dataset mujoco-local/hopper/medium-v0" in section


def test_results_of_another_config_are_kept_apart() -> None:
    gtp = HOPPER.rows[0]
    old = result(gtp, 0, 60)
    changed = {**old.config, "batch_size": 64}
    assert results_of(gtp, [old]) == ([old], "seeds 1, 2 not yet run")
    stale = old.replace(config=changed)
    assert results_of(gtp, [stale]) == ([stale], "made with another config than the command's now")
    assert results_of(gtp, [stale, result(gtp, 1, 60)])[0] == [result(gtp, 1, 60)]
    # A field that the result knows nothing of is one that was added since, with its default.
    unaware = {k: v for k, v in old.config.items() if k != "advantage_bias"}
    assert results_of(gtp, [old.replace(config=unaware)])[1] == "seeds 1, 2 not yet run"
    # How deterministic actions would have been chosen does not matter to sampled ones.
    policy = old.config["policy"]
    assert isinstance(policy, dict)
    for field, value, same in (("eval_candidates", 3, True), ("max_grad_norm", 3.0, False)):
        learner = {**policy["learner"], field: value}
        other = {**old.config, "policy": {**policy, "learner": learner}}
        assert gtp.made(old.replace(config=other)) == same


def test_steps_have_a_separate_table() -> None:
    gtp = HOPPER.rows[0]
    again = result(gtp, 0, 42).replace(method="gtp, K = 2", group="k2", ms_per_action=0.25)
    cells = line_of(study_section(HOPPER, [result(gtp, 0, 40), again]), "gtp, K = 2")
    assert cells == ["gtp, K = 2", "0", "1", "42.0", "", "0.25"]


def test_collected_results_are_the_runs_own(tmp_path: Path) -> None:
    gtp = HOPPER.rows[0]
    one = result(gtp, 0, 60)
    folder = tmp_path / "out" / "hopper" / "some_run"
    folder.mkdir(parents=True)
    write_json(folder / "result.json", one.model_dump(mode="json"))
    assert collect(tmp_path / "out", tmp_path / "into") == 1
    (path,) = (tmp_path / "into" / "hopper").iterdir()
    assert TypeAdapter(RunResult).validate_json(path.read_text()) == one
    assert re.search(r"\| gtp +\| 0 +\| 50000 +\| 60.0 ", render(tmp_path / "into"))


def test_what_is_collected_is_not_run_again() -> None:
    gtp = HOPPER.rows[0]
    assert gtp.steps == (1, 2, 5, 10)

    def with_steps(seed: int, *steps: int) -> list[RunResult]:
        one = result(gtp, seed, 60)
        others = [one.replace(method=f"gtp, K = {k}", group=f"k{k}") for k in steps]
        return [one, *others]

    assert left_of(gtp, []) == gtp
    some = [*with_steps(0, 1, 2, 5, 10), *with_steps(1, 1, 2, 5)]
    left = left_of(gtp, some)
    assert left is not None
    assert left.seeds == (1, 2)  # of seed 1 an evaluation is missing, which takes its weights
    everything = [r for seed in gtp.seeds for r in with_steps(seed, 1, 2, 5, 10)]
    assert left_of(gtp, everything) is None
    changed = {**everything[0].config, "batch_size": 64}
    stale = [everything[0].replace(config=changed), *everything[1:]]
    left = left_of(gtp, stale)
    assert left is not None
    assert left.seeds == (0,)


def test_the_page_in_the_documentation_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run: make results-page"
    assert shows(PICTURE, scores()), "run: make results-page"


def test_runs_are_evaluated_again_in_the_environment_they_were_evaluated_in() -> None:
    """A run's record names no module to import, so the second command has to."""
    rows = [row for study in STUDIES for row in study.rows if row.steps]
    assert rows
    again = [(row, words) for row in rows for words in row.again(OUT)]
    for row, words in again:
        given = words[words.index("--environment") + 1] if "--environment" in words else None
        (named,) = {config.evaluation.environment for config in row.configs(OUT)}
        assert given == named
        runs = words[2 : words.index("--steps")]
        assert runs == [str(OUT / config.name) for config in row.configs(OUT)]
