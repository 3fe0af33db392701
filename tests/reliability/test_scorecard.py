"""The page on reliability is what the record says, and the record is one of success."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scorecard
from tests.reliability import registry
from tests.reliability.outcome import Outcome


def test_the_page_says_what_the_json_says() -> None:
    wanted = scorecard.render(scorecard.read(scorecard.RECORD))
    assert scorecard.PAGE.read_text(encoding="utf-8") == wanted, "run: make scorecard"


def test_the_record_is_of_this_scorecard_and_of_passes() -> None:
    record = scorecard.read(scorecard.RECORD)
    assert record["trials"].keys() <= registry.TRIALS.keys()
    for name, row in record["trials"].items():
        assert record["counts"] == "release"
        assert row["passed"] == row["count"] >= (registry.TRIALS[name].release or 1)
        assert row["failures"] == []


def test_a_release_tries_at_least_as_much_as_a_pull_request() -> None:
    for trial in registry.TRIALS.values():
        assert trial.release is None or trial.release >= (trial.pull_request or 0)


def test_what_was_not_run_is_said_to_be_so() -> None:
    page = scorecard.render({"versions": {}, "trials": {}})
    assert page.count("| not run |") == len(registry.TRIALS)
    assert "make audit" in page


def test_an_interrupted_run_goes_on_and_a_failure_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    def run(name: str, *, release: bool) -> Outcome:
        calls.append(name)
        if calls.count("A2") == 1 and name == "A2":
            raise RuntimeError("no room")
        if calls.count("A3") == 1 and name == "A3":
            raise KeyboardInterrupt
        outcome = Outcome(worst="none", details={"by kind": {"bit": 3}})
        outcome.add("case")
        return outcome

    monkeypatch.setattr(registry, "run", run)
    path, names = tmp_path / "record.json", ["A1", "A2", "A3"]
    with pytest.raises(KeyboardInterrupt):
        scorecard.run(path, names, release=True, fresh=False)
    trials = scorecard.read(path)["trials"]
    assert list(trials) == ["A1", "A2"]
    assert trials["A2"]["failures"] == ["RuntimeError: no room"]
    assert scorecard.run(path, names, release=True, fresh=False)
    assert calls == ["A1", "A2", "A3", "A2", "A3"]
    assert list(scorecard.read(path)["trials"]) == names
    assert "held: 1 passed" in capsys.readouterr().out


def test_a_record_of_other_code_or_counts_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def run(name: str, *, release: bool) -> Outcome:
        calls.append(name)
        outcome = Outcome()
        outcome.add("case")
        return outcome

    monkeypatch.setattr(registry, "run", run)
    path = tmp_path / "record.json"
    for release in (True, True, False):
        scorecard.run(path, ["E3", "E4"], release=release, fresh=False)
    assert calls == ["E3", "E4"] * 2
    monkeypatch.setattr(scorecard, "library_digest", lambda: "another")
    scorecard.run(path, ["E3"], release=False, fresh=False)
    assert calls[-1:] == ["E3"]
    assert list(scorecard.read(path)["trials"]) == ["E3"]


def test_words_about_code_are_not_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gtp_policy"
    folder.mkdir()
    monkeypatch.setattr(scorecard, "ROOT", tmp_path)
    digests: list[Any] = []
    for source in (
        'def f():\n    """One."""\n    return 1\n',
        'def f():\n    """Two."""\n    # why\n    return 1\n',
        'def f():\n    """One."""\n    return 2\n',
    ):
        (folder / "a.py").write_text(source)
        digests.append(scorecard.library_digest())
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"bit": 3, "byte": 4000}, "bit 3; byte 4,000"),
        (["a", "b"], "a, b"),
        ([], "none"),
        (1.5, "1.5"),
        ("x", "x"),
    ],
)
def test_figures_become_text(value: object, text: str) -> None:
    assert scorecard.shown(value) == text
    assert json.loads(json.dumps(value)) == value


def test_every_promise_of_the_security_page_names_its_trial() -> None:
    text = (scorecard.ROOT / "SECURITY.md").read_text(encoding="utf-8")
    promised = text.partition("## What is promised")[2].partition("## What is not promised")[0]
    promises = promised.split("\n- ")[1:]
    assert len(promises) > 10
    for promise in promises:
        trials = re.search(r"\(([A-Z][0-9]+(?:, [A-Z][0-9]+)*)\)\s*$", promise.strip())
        assert trials is not None, promise
        assert set(trials[1].split(", ")) <= registry.TRIALS.keys(), promise
