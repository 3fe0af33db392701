"""The README's code type-checks as it would in a user's project: by mypy and by pyright.

The project's own configuration is left out, and with it pydantic's plugin for mypy, which a user
does not have.
"""

import ast
import builtins
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PACKAGES = (ROOT, ROOT / "adapters")
WRONG = """\
from gtp_policy import FlowMapActorConfig, GTPLearnerConfig

GTPLearnerConfig(total_updates=[3])
FlowMapActorConfig().hidden.no_such_name
"""


class Error(NamedTuple):
    """One error of a checker, with the line of the README."""

    file: str
    line: int
    message: str


def free_names(code: str) -> set[str]:
    """Returns the names that code uses without binding them anywhere."""
    used, bound = set(), set(dir(builtins))
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Name(id=name) | ast.arg(arg=name):
                bound.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.alias(name=name, asname=asname):
                bound.add(asname or name.partition(".")[0])
    return used - bound


def modules(page: str) -> Iterator[tuple[str, str]]:
    """Yields a name and a source for each Python block, with the page's own line numbers.

    A block that uses names of the blocks before it comes together with them.
    """
    before = ""
    for match in re.finditer(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        line = page.count("\n", 0, match.start(1))
        blank = "\n" * (line - before.count("\n"))
        alone = "\n" * line + match[1]
        before += blank + match[1]
        yield f"block_at_line_{line + 1}.py", before if free_names(match[1]) else alone


def by_mypy(folder: Path) -> Iterator[Error]:
    """Yields what mypy says of a folder's files; it follows imports without reporting on them."""
    config = folder / "mypy.ini"
    config.write_text(
        "[mypy]\n"
        "strict = True\n"
        "disallow_untyped_defs = False\n"  # what is shown may leave out annotations
        "disallow_incomplete_defs = False\n"
        "allow_redefinition = True\n"  # a name may mean another thing in the next block
        "follow_imports = silent\n"
        f"mypy_path = {','.join(map(str, PACKAGES))}\n"
        f"cache_dir = {ROOT / '.mypy_cache' / 'readme'}\n"
    )
    output = run("mypy", "--config-file", config, "--no-error-summary", "--output=json", folder)
    for entry in map(json.loads, output.splitlines()):
        if entry["severity"] == "error":
            yield Error(Path(entry["file"]).name, entry["line"], entry["message"])


def by_pyright(folder: Path) -> Iterator[Error]:
    """Yields what pyright says of a folder's files, in its own default mode."""
    config = {"typeCheckingMode": "standard", "extraPaths": list(map(str, PACKAGES))}
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    output = run("basedpyright", "-p", folder, "--pythonpath", sys.executable, "--outputjson")
    for entry in json.loads(output)["generalDiagnostics"]:
        if entry["severity"] == "error":
            line = entry["range"]["start"]["line"] + 1
            yield Error(Path(entry["file"]).name, line, entry["message"])


def run(module: str, *arguments: object) -> str:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode in (0, 1), result.stdout + result.stderr  # 1: there are errors
    return result.stdout


# One run per checker, of the README and of code that is wrong: most of the time is imports.
@pytest.mark.slow
@pytest.mark.parametrize("check", [by_mypy, by_pyright])
def test_readme_type_checks(check: Callable[[Path], Iterator[Error]], tmp_path: Path) -> None:
    sources = dict(modules(README.read_text(encoding="utf-8")))
    assert sources
    for name, source in [*sources.items(), ("wrong.py", WRONG)]:
        (tmp_path / name).write_text(source, encoding="utf-8")
    errors = list(check(tmp_path))
    assert {e.line for e in errors if e.file == "wrong.py"} == {3, 4}
    # A block that stands in several files is reported once.
    assert {f"README.md:{e.line}: {e.message}" for e in errors if e.file != "wrong.py"} == set()


def test_a_block_is_checked_alone_unless_it_builds_on_others() -> None:
    blocks = "x = 1\n", "y = x\n", "import os.path\n\nos\n"
    page = "text\n" + "\n".join(f"```python\n{block}```\n" for block in blocks)
    assert dict(modules(page)) == {
        "block_at_line_3.py": "\n\nx = 1\n",
        "block_at_line_7.py": "\n\nx = 1\n\n\n\ny = x\n",
        "block_at_line_11.py": "\n" * 10 + "import os.path\n\nos\n",
    }


def test_no_block_of_the_readme_needs_another() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.M)
    assert [free_names(block) for block in blocks] == [set()] * len(blocks)


@pytest.mark.parametrize(
    ("code", "free"),
    [
        ("import a as b\nb.c(d)", {"d"}),
        ("def f(x, *y):\n    return [z for z in x if w]", {"w"}),
        ("class C(B): ...\nprint(C)", {"B"}),
    ],
)
def test_free_names(code: str, free: set[str]) -> None:
    assert free_names(code) == free
