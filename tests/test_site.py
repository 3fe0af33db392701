"""The site: its checker sees what it is for, the gallery runs, the glossary has the notation."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GALLERY = sorted((DOCS / "gallery").glob("*.py"))


def script(name: str) -> ModuleType:
    """Returns a script of the documentation as a module."""
    module = ModuleType(name)
    vars(module).update(runpy.run_path(str(DOCS / f"{name}.py"), run_name=name))
    return module


check, versions = script("check"), script("versions")

GOOD = """<html><link rel="stylesheet" href="_static/a.css"><article>
<h1>Title</h1><p id="here">Words.</p>
<code>\\frac</code><img src="a.png" alt="A picture"><a href="#here">here</a>
<a href="https://example.org">there</a></article></html>"""


def site(folder: Path, page: str = GOOD, style: str = "", index: str | None = None) -> Path:
    """Writes a site of one page."""
    (folder / "_static").mkdir(parents=True)
    (folder / "_static" / "a.css").write_text(style)
    (folder / "a.png").write_bytes(b"")
    (folder / "index.html").write_text(page)
    terms = index or '{"terms": {"onnx": 0, "chunk": 0}, "titleterms": {"window": 0}}'
    (folder / "searchindex.js").write_text(f"Search.setIndex({terms})")
    return folder


def test_a_good_site_has_no_trouble(tmp_path: Path) -> None:
    assert list(check.troubles(site(tmp_path / "site"))) == []


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ('href="#here"', 'href="#there"', "#there names no place on its page"),
        ('href="#here"', 'href="b.html"', "b.html leads nowhere"),
        ("a.png", "b.png", "b.png is not there"),
        (' alt="A picture"', ' alt=""', "no alternative text for a.png"),
        ("a.png", "//host/b.png", "loads //host/b.png from another host"),
        ("_static/a.css", "https://host/a.css", "loads https://host/a.css from another host"),
        ("Words.", r"\(x\)", "mathematics as LaTeX, '\\\\('"),
        ("Words.", r"\frac12", "mathematics as LaTeX, '\\\\frac'"),
        ("</h1>", "</h1><table></table>", "begins with a table"),
    ],
)
def test_the_checker_sees_it(tmp_path: Path, before: str, after: str, found: str) -> None:
    assert before in GOOD
    troubles = list(check.troubles(site(tmp_path / "site", GOOD.replace(before, after, 1))))
    assert troubles == [f"index.html: {found}"]


def test_the_checker_sees_styles_that_load_and_words_that_are_missing(tmp_path: Path) -> None:
    style = "@font-face { src: url('https://host/a.woff2') }"
    empty = '{"terms": {"onnx": 0}, "titleterms": {"window": 0}}'
    assert list(check.troubles(site(tmp_path / "site", style=style, index=empty))) == [
        "_static/a.css: loads https://host/a.woff2 from another host",
        "search: does not know 'chunk'",
    ]


def test_versions_are_listed_the_newest_release_first(tmp_path: Path) -> None:
    for name in ("main", "0.2.0", "0.10.0", "drafts"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.html").touch()
    (tmp_path / "notes").mkdir()
    versions.write(tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert re.findall('href="(.+?)/"', text) == ["0.10.0", "0.2.0", "main", "drafts"]
    assert 'url=0.10.0/"' in text
    assert "url=" not in (tmp_path / "versions.html").read_text()


def test_the_gallery_has_ten_short_scripts() -> None:
    assert len(GALLERY) >= 10
    for path in GALLERY:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 40, path.name


@pytest.mark.slow
@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.stem)
def test_a_script_of_the_gallery_draws_a_picture(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plt = pytest.importorskip("matplotlib.pyplot", reason="pictures need matplotlib")
    monkeypatch.setattr(plt, "show", lambda: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    plt.switch_backend("agg")
    try:
        runpy.run_path(str(path), run_name="__main__")
        (number,) = plt.get_fignums()
        assert any(axes.has_data() for axes in plt.figure(number).axes)
    finally:
        plt.close("all")


def test_the_glossary_has_the_notation() -> None:
    notation = (DOCS / "explanation" / "notation.md").read_text(encoding="utf-8")
    glossary = (DOCS / "glossary.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \|", notation.split("## One update")[0], re.M)
    names = {name for row in rows for name in re.findall(r"`(\w+)", row)}
    assert len(names) > 15
    known = set(re.findall(r"`(\w+)", glossary)) | set(re.findall(r"^[\w ]+$", glossary, re.M))
    assert names - known == set()


@pytest.mark.slow
def test_words_are_spelled() -> None:
    codespell = shutil.which("codespell", path=str(Path(sys.executable).parent))
    assert codespell is not None, "codespell belongs to the extra `docs`"
    places = ("docs", "examples", "gtp_policy", "adapters", "runtime", "benchmarks", "tests")
    result = subprocess.run(
        [codespell, *sorted(p.name for p in ROOT.glob("*.md")), *places],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
