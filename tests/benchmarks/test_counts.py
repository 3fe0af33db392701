"""Walks and lines of code are counted as they say."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from benchmarks import lines, walks

ROOT = Path(__file__).parents[2]
SOURCE = '''"""A docstring
of two lines."""

import json  # a comment


# Another one.
class A:
    """Its docstring."""

    x = """a text
of two lines"""

    def f(self):
        """Only this."""


def g(x):
    "One more."
    return [
        x,

        "not a docstring",
    ]
'''


def test_docstrings_comments_and_blank_lines_are_no_code(tmp_path: Path) -> None:
    # import, class, both lines of x, def f, def g, and of the return all but the blank line.
    assert lines.code_lines(SOURCE) == 1 + 1 + 2 + 1 + 1 + 4
    assert lines.code_lines("") == 0
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "b.py").write_text("x = 1\n\n", encoding="utf-8")
    assert lines.count(tmp_path) == {"b.py": 1, "inner/a.py": 10}


def test_files_are_those_that_are_entered(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f(x):\n    return json.dumps(x)\n", encoding="utf-8")
    (tmp_path / "b.py").write_text("def g(): pass\n", encoding="utf-8")
    before = sys.gettrace()
    f = runpy.run_path(str(tmp_path / "a.py"), {"json": json})["f"]
    assert walks.passed(lambda: f({"x": 1}), tmp_path) == ["a.py"]
    assert sys.gettrace() is before


def test_the_walks_begin_at_the_learner() -> None:
    found = walks.measure(ROOT / "gtp_policy")
    for walk in found.values():
        assert "learner.py" in walk["files"]
        assert walk["count"] == len(set(walk["files"]))
        assert all((ROOT / "gtp_policy" / name).exists() for name in walk["files"])
    minibatch = set(found["sample, update, metrics"]["files"])
    assert minibatch >= {"dataset.py", "metrics.py", *found["update"]["files"]}
    assert "acting.py" in found["act"]["files"]


def test_another_checkout_has_to_have_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["walks", "--root", str(tmp_path)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit, match="The package is another one: got"):
        walks.main()
