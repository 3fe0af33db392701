"""Writes what `explanation/architecture.md` says of files: from the sources and the import test.

    python docs/architecture.py

The tree is the first sentence of every module, the rows are those of ``tests/test_imports.py``.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "explanation" / "architecture.md"
# In the order of reading; whatever else there is follows in the order of the alphabet.
ORDER = (
    "_config _random errors times functional networks actor loss critic guidance config algorithm "
    "learner"
).split()
FOLDERS = {
    "adapters/gtp_datasets": "files of every kind as OfflineDataset (`datasets`, `csv`, `lerobot`)",
    "adapters/gtp_experiments": "runs, evaluation and comparison by command (`experiments`)",
    "adapters/gtp_sb3": "an algorithm for Stable-Baselines3, offline and online (`sb3`)",
    "adapters/gtp_tianshou": "a policy and an offline algorithm for Tianshou 2.x (`tianshou`)",
    "runtime/gtp_runtime": "policies without torch: load a policy file, act, serve",
    "examples": "short scripts, and the run of `make demo`",
    "benchmarks": "one script per figure that the documentation states, and the results as JSON",
    "tests": "mirrors the packages",
    "docs": "these pages; `architecture.py` writes the generated part of this one",
}


def first_sentence(path: Path) -> str:
    """Returns the first line of a module's docstring, without markup."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    line = docstring.split("\n")[0].rstrip(".").replace(":math:", "").replace("\\ge", ">=")
    return line.replace("``", "").replace("`", "").replace("\\", "")


def tree() -> str:
    """Returns the core's files with what each is, and the other folders."""
    core = ROOT / "gtp_policy"
    paths = [p for p in core.glob("*.py") if p.stem not in ("__init__", "_version")]
    rank = {name: i for i, name in enumerate(ORDER)}
    lines = ["gtp_policy/"]
    for path in sorted(paths, key=lambda p: (rank.get(p.stem, len(rank)), p.stem)):
        lines.append(f"  {path.name:<22} {first_sentence(path)}")
    for folder in ("_engine", "kernels", "checkpoint", "export", "testing"):
        lines.append(f"  {folder + '/':<22} {first_sentence(core / folder / '__init__.py')}")
        for path in sorted((core / folder).glob("*.py")):
            if path.stem != "__init__":
                lines.append(f"    {path.name:<24} {first_sentence(path)}")
    lines += [f"{folder + '/':<26} {what}" for folder, what in FOLDERS.items()]
    return "\n".join(lines)


def rows(layers: list[set[str]]) -> str:
    """Returns the rows of imports as a Markdown table."""
    lines = ["| row | modules |", "|---|---|"]
    for number, names in enumerate(layers, 1):
        modules = ", ".join(
            "the package itself" if name == "__init__" else f"`{name}`" for name in sorted(names)
        )
        lines.append(f"| {number} | {modules} |")
    return "\n".join(lines)


def page(text: str, layers: list[set[str]]) -> str:
    """Returns the page with its generated parts made anew."""
    for name, content in (("tree", f"```text\n{tree()}\n```"), ("rows", rows(layers))):
        start, end = f"<!-- {name}:start -->\n", f"\n<!-- {name}:end -->"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = f"{before}{start}\n{content}\n{end}{after}"
    return text


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from tests.test_imports import LAYERS

    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), LAYERS), encoding="utf-8")
