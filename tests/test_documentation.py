"""The docs gate: every public name is documented, stands in the reference, and its code runs."""

import contextlib
import enum
import importlib
import inspect
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from pydantic import BaseModel

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "gtp_policy",
    "gtp_policy.export",
    "gtp_policy.kernels",
    "gtp_policy.testing",
    "gtp_datasets",
    "gtp_experiments",
    "gtp_runtime",
    "gtp_sb3",
    "gtp_tianshou",
)
# Public modules whose names are imported by their full path and are no part of an `__all__`.
MODULES = (
    "gtp_policy.acting",
    "gtp_policy.critic",
    "gtp_policy.dataset_builder",
    "gtp_policy.errors",
    "gtp_policy.functional",
    "gtp_policy.guidance",
    "gtp_policy.loss",
    "gtp_policy.metrics",
    "gtp_policy.networks",
    "gtp_policy.presets",
    "gtp_policy.rewards",
    "gtp_policy.samplers",
    "gtp_policy.spaces",
    "gtp_policy.teachers",
    "gtp_policy.times",
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def defined_in(module: str) -> set[str]:
    """Returns a module's classes and functions, and the unions of configs that it names."""
    names = vars(importlib.import_module(module))
    source = Path(str(names["__file__"])).read_text(encoding="utf-8")
    unions = set(re.findall(r"^([A-Z]\w*) = Annotated", source, re.M))
    return {
        n
        for n, value in names.items()
        if not n.startswith("_") and (n in unions or getattr(value, "__module__", None) == module)
    }


def public_objects() -> dict[str, Any]:
    """Returns every public object once, under its shortest full name."""
    objects: dict[str, Any] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        objects |= {f"{package}.{name}": getattr(module, name) for name in module.__all__}
    known = {id(value) for value in objects.values()}
    for name in MODULES:
        module = importlib.import_module(name)
        for entry in sorted(defined_in(name)):
            if id(getattr(module, entry)) not in known:
                objects[f"{name}.{entry}"] = getattr(module, entry)
    return objects


PUBLIC = public_objects()
CALLABLE = {n: o for n, o in PUBLIC.items() if inspect.isclass(o) or inspect.isfunction(o)}


def section(doc: str, title: str) -> str:
    """Returns the body of a Google-style section, or "" if there is none."""
    match = re.search(rf"^{title}:\n((?:[ \t]+.*\n|\n)+)", doc + "\n", re.MULTILINE)
    return match.group(1) if match else ""


def gaps_of_function(name: str, function: Callable[..., Any]) -> Iterator[str]:
    """Yields what a function's docstring leaves out."""
    doc = inspect.getdoc(function) or ""
    if not doc:
        yield f"{name}: no docstring"
        return
    signature = inspect.signature(function)
    arguments = section(doc, "Args")
    for parameter in signature.parameters.values():
        if parameter.name in {"self", "cls"} or parameter.name.startswith("_"):
            continue
        if not re.search(rf"^\s+\**{parameter.name}(?: \(.*\))?:", arguments, re.MULTILINE):
            yield f"{name}: Args says nothing of `{parameter.name}`"
    returns = get_type_hints_or_raw(function).get("return", signature.return_annotation)
    silent = returns in (None, type(None), "None", inspect.Signature.empty)
    # Without arguments the first line may say it all.
    silent |= doc.startswith("Returns ") and set(signature.parameters) <= {"self", "cls"}
    if not silent and not (section(doc, "Returns") or section(doc, "Yields")):
        yield f"{name}: no Returns section"


def get_type_hints_or_raw(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except NameError:  # a name that only the type checker imports
        return dict(getattr(function, "__annotations__", {}))


def gaps_of_class(name: str, cls: type) -> Iterator[str]:
    """Yields what a class and its own public methods leave undocumented."""
    doc = inspect.getdoc(cls) if "__doc__" in vars(cls) else None
    if not doc:
        yield f"{name}: no docstring"
        return
    if issubclass(cls, BaseModel):
        for field, info in cls.model_fields.items():
            if not info.description:
                yield f"{name}.{field}: no description"
    elif issubclass(cls, tuple):
        for field in getattr(cls, "_fields", ()):
            if f"{field}:" not in section(doc, "Attributes"):
                yield f"{name}: Attributes says nothing of `{field}`"
    elif "__init__" in vars(cls) and not (
        issubclass(cls, BaseException) or getattr(cls, "_is_protocol", False)
    ):
        arguments = section(doc, "Args")
        for parameter in list(inspect.signature(vars(cls)["__init__"]).parameters)[1:]:
            if not re.search(rf"^\s+\**{parameter}(?: \(.*\))?:", arguments, re.MULTILINE):
                yield f"{name}: Args says nothing of `{parameter}`"
    for method, value in vars(cls).items():
        if method.startswith("_") and method != "__call__":
            continue
        full = f"{name}.{method}"
        if isinstance(value, classmethod | staticmethod):
            yield from gaps_of_function(full, value.__func__)
        elif isinstance(value, property):
            if not inspect.getdoc(value):
                yield f"{full}: no docstring"
        elif inspect.isfunction(value) and value.__module__ == cls.__module__:
            yield from gaps_of_function(full, inspect.unwrap(value))


@pytest.mark.parametrize("name", sorted(CALLABLE))
def test_public_name_is_documented(name: str) -> None:
    value = CALLABLE[name]
    gaps = gaps_of_class(name, value) if inspect.isclass(value) else gaps_of_function(name, value)
    assert list(gaps) == []


@pytest.mark.parametrize("name", sorted(CALLABLE))
def test_public_name_has_an_example_that_runs_as_a_doctest(name: str) -> None:
    value = CALLABLE[name]
    if inspect.isclass(value) and issubclass(value, enum.Enum):
        return
    assert ">>> " in section(inspect.getdoc(value) or "", "Example")


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_name_stands_in_the_reference(name: str) -> None:
    directive = re.compile(rf"^\.\. auto\w+:: {re.escape(name)}(?:\(.*\))?$", re.MULTILINE)
    pages = [
        page.name
        for page in (ROOT / "docs" / "reference").glob("*.rst")
        if directive.search(page.read_text(encoding="utf-8"))
    ]
    assert len(pages) == 1, f"{name} stands on {pages}, expected exactly one reference page"


# By top-level module of the core; what a private module defines stands where it is used.
HOMES = {
    name: value.__module__.split(".")[1]
    for name, value in CALLABLE.items()
    if re.match(r"gtp_policy\.[a-z]", value.__module__)
}


@pytest.mark.parametrize("name", sorted(HOMES))
def test_a_name_of_the_core_stands_on_the_page_of_its_module(name: str) -> None:
    page = ROOT / "docs" / "reference" / f"{HOMES[name]}.rst"
    assert re.search(
        rf"^\.\. auto\w+:: {re.escape(name)}(?:\(.*\))?$", page.read_text("utf-8"), re.M
    )


def test_the_first_page_of_the_reference_lists_what_programs_name() -> None:
    page = (ROOT / "docs" / "reference" / "index.rst").read_text(encoding="utf-8")
    names = set(importlib.import_module("gtp_policy").__all__) - {"__version__"}
    assert set(re.findall(r"^   (\w+)$", page.partition("autosummary::")[2], re.M)) >= names


def test_the_gate_sees_gaps() -> None:
    def function(batch: int) -> int:  # noqa: D417 (the gap is the point)
        """Does something.

        Args:
            other: Not this one.
        """
        return batch

    class Thing:
        """Is something."""

        def __init__(self, size: int) -> None:
            self.size = size

        def grow(self) -> None:
            self.size += 1

    assert list(gaps_of_function("f", function)) == [
        "f: Args says nothing of `batch`",
        "f: no Returns section",
    ]
    assert list(gaps_of_class("T", Thing)) == [
        "T: Args says nothing of `size`",
        "T.grow: no docstring",
    ]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.M)


def pages_with_code() -> Iterator[Any]:
    for page in PAGES:
        if page.name == "README.md":
            continue  # whose blocks stand alone: see below
        # Stable-Baselines3 seeds the global generators, Tianshou draws from them.
        hosts = re.search(r"gtp_(sb3|tianshou)", "".join(python_blocks(page)))
        marks = [pytest.mark.global_rng] if hosts else []
        if python_blocks(page):
            yield pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks)


@pytest.mark.slow
@pytest.mark.parametrize("page", list(pages_with_code()))
def test_python_code_of_a_page_runs_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # what a page writes stays out of the checkout
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    namespace: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(python_blocks(page), 1):
        exec(compile(block, f"{page.name}, python block {number}", "exec"), namespace)


README = python_blocks(ROOT / "README.md")


def run_alone(block: str, folder: str) -> None:
    """Runs code in a process of its own, and leaves what it prints in a file."""
    os.chdir(folder)
    with open("printed", "w", encoding="utf-8") as printed, contextlib.redirect_stdout(printed):
        exec(compile(block, "a block of README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(README)))
def test_a_block_of_the_readme_runs_pasted_alone(number: int, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["numpy", "torch"])  # whose import is most of the time
    process = context.Process(target=run_alone, args=(README[number], str(tmp_path)))
    process.start()
    process.join()
    assert process.exitcode == 0
    printed = (tmp_path / "printed").read_text(encoding="utf-8")
    if number == 0:  # the quickstart ends with a score that is better than that of the logs
        found = re.fullmatch(r"steps to the flag: (\d+) logged, (\d+) of GTP\n", printed)
        assert found
        assert int(found[2]) < 0.8 * int(found[1])


def test_the_readme_is_short_and_its_files_are_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert README
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 10
    assert [x for x in links if "://" not in x and not (ROOT / x.partition("#")[0]).exists()] == []
    pictures = re.findall(r"!\[([^]]*)\]\(([^)]+)\)", text)
    assert len(pictures) == 5
    assert all(alt for alt, _ in pictures)
    assert all((ROOT / x).stat().st_size <= 200_000 for _, x in pictures)


def test_changelog_starts_with_unreleased() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"


@pytest.mark.slow
def test_documentation_builds_without_a_warning_and_its_pages_are_sound(tmp_path: Path) -> None:
    # `make docs` runs the gallery's scripts too, and spells; here they run in tests/test_site.py.
    options = ["-W", "--keep-going", "-q", "-D", "plot_gallery=0", "-d", str(tmp_path / "doctrees")]
    for command in (
        [sys.executable, "-m", "sphinx", "-b", "html", *options, ROOT / "docs", tmp_path / "out"],
        [sys.executable, ROOT / "docs" / "check.py", tmp_path / "out"],
    ):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
