"""Tables and pictures of several methods over several tasks."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.aggregates import (
    DIVERGED,
    draw,
    main,
    scores_of,
    shared_tasks,
    summary_table,
    tasks_table,
)
from benchmarks.pictures import shows
from gtp_experiments import Evaluation, Reference, RunResult, interquartile_mean
from gtp_experiments.records import write_json

REFERENCE = Reference(min=0.0, max=100.0, source="made up")


def run(method: str, task: str, seed: int, *scores: float, **fields: Any) -> RunResult:
    """A run with an evaluation every ten updates, of thirty unless it diverged."""
    defaults: dict[str, Any] = {
        "method": method,
        "dataset": "a/b-v0",
        "task": task,
        "group": method,
        "seed": seed,
        "updates": 30,
        "status": "finished",
        "evaluations": tuple(
            Evaluation(update=10 * i, returns=(s,), lengths=(1,)) for i, s in enumerate(scores, 1)
        ),
        "reference": REFERENCE,
        "ms_per_update": 1.0,
        "data_sha256": "",
        "config": {},
        "provenance": {},
    }
    return RunResult(**{**defaults, **fields})


def runs() -> list[RunResult]:
    """Two tasks that both methods have, and one that only one has with two seeds."""
    return [
        *(run("gtp", "scene", seed, 10, 20, 60 + seed) for seed in range(3)),
        *(run("gtp", "hopper", seed, 30, 40, 50 + seed) for seed in range(3)),
        *(run("iql", "scene", seed, 5, 10, 20 + seed) for seed in range(3)),
        *(run("iql", "hopper", seed, 35, 45, 51 + seed) for seed in range(3)),
        run("gtp", "pendulum", 0, 1, 2, 3),
        run("gtp", "pendulum", 1, 1, 2, 5),
        run("iql", "pendulum", 0, 1, 2, 3),
    ]


def cells_of(text: str, first: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_scores_are_those_of_the_end_or_of_a_number_of_updates() -> None:
    assert scores_of(runs())["gtp"]["scene"] == [60, 61, 62]
    assert scores_of(runs(), 20)["iql"]["hopper"] == [45, 45, 45]
    assert scores_of(runs(), 15) == {}


def test_a_run_that_diverged_scores_the_lower_end() -> None:
    gone = run("gtp", "scene", 0, 90, status="diverged")
    assert scores_of([gone])["gtp"]["scene"] == [DIVERGED]
    assert scores_of([gone], 10)["gtp"]["scene"] == [90]  # what it had by then
    assert scores_of([gone], 20)["gtp"]["scene"] == [DIVERGED]


def test_every_task_is_in_the_table_of_tasks() -> None:
    text = tasks_table(scores_of(runs()))
    assert cells_of(text, "hopper") == ["hopper", "51.0 ± 1.0 (3)", "52.0 ± 1.0 (3)"]
    assert cells_of(text, "pendulum") == ["pendulum", "4.0 ± 1.4 (2)", "3.0 (1)"]


def test_only_shared_tasks_are_summarised() -> None:
    assert shared_tasks(scores_of(runs())) == ["hopper", "scene"]
    text = summary_table(runs(), "gtp", [10, 20])
    found = interquartile_mean({"hopper": [50.0, 51, 52], "scene": [60.0, 61, 62]})
    gtp, iql = cells_of(text, "gtp"), cells_of(text, "iql")
    assert gtp[1:3] == ["20.0 [20.0, 20.0]", "30.0 [30.0, 30.0]"]
    assert gtp[3] == f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}]"
    assert gtp[4] == ""
    # All of scene's pairs, and of hopper's nine one and two ties: (1 + 2 / 9) / 2.
    assert iql[4].startswith(f"{(1 + (1 + 2 * 0.5) / 9) / 2:.2f} [")
    assert "over 2 tasks: hopper, scene. Not every method has two seeds of: pendulum." in text


def test_a_number_of_updates_that_a_run_lacks_is_left_open() -> None:
    assert cells_of(summary_table(runs(), "gtp", [15]), "gtp")[1] == ""


@pytest.mark.parametrize(
    ("chosen", "found", "message"),
    [
        ("sac", runs(), "there is no run of 'sac'; there are gtp, iql"),
        ("gtp", runs()[-3:], "no task has two seeds or more of every method"),
    ],
)
def test_what_cannot_be_summarised_says_why(
    chosen: str, found: list[RunResult], message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        summary_table(found, chosen, [])


def test_pictures_are_drawn_from_the_results(tmp_path: Path) -> None:
    paths = draw(runs(), tmp_path)
    assert [p.name for p in paths] == ["hopper.svg", "pendulum.svg", "scene.svg", "summary.svg"]
    text = (tmp_path / "scene.svg").read_text()
    assert ">gtp</text>" in text
    assert ">iql</text>" in text
    iqm = {
        method: interquartile_mean({t: of[t] for t in ("hopper", "scene")})
        for method, of in scores_of(runs()).items()
    }
    assert shows(tmp_path / "summary.svg", {"iqm": iqm})
    before = [p.read_bytes() for p in paths]
    assert [p.read_bytes() for p in draw(runs(), tmp_path)] == before


def test_the_command_reads_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, found in enumerate(runs()):
        (tmp_path / str(i)).mkdir()
        write_json(tmp_path / str(i) / "result.json", found.model_dump(mode="json"))
    monkeypatch.setattr("sys.argv", ["aggregates", str(tmp_path), "--budgets", "10"])
    main()
    text = capsys.readouterr().out
    assert cells_of(text.split("\n\n")[1], "gtp")[1] == "20.0 [20.0, 20.0]"
    monkeypatch.setattr("sys.argv", ["aggregates", str(tmp_path / "empty")])
    with pytest.raises(SystemExit, match="there is no result below"):
        main()
