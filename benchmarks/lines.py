"""How many lines of code a package has: without docstrings, comments and blank lines, as JSON.

python -m benchmarks.lines [--root DIR] [--package gtp_policy]
"""

import argparse
import ast
import io
import json
import tokenize
from pathlib import Path

from benchmarks.pages import ROOT

_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(source: str) -> int:
    """Returns the number of lines that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstring_lines(source))


def docstring_lines(source: str) -> set[int]:
    """Returns the lines of the docstrings of a module, its classes and its functions."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if ast.get_docstring(node, clean=False) is not None and first is not None:
                lines.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return lines


def count(package: Path) -> dict[str, int]:
    """Returns the lines of code of every file of a package, by its path in it."""
    return {
        str(path.relative_to(package)): code_lines(path.read_text(encoding="utf-8"))
        for path in sorted(package.rglob("*.py"))
    }


def main() -> None:
    """Prints the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout")
    parser.add_argument("--package", default="gtp_policy", help="its folder in the checkout")
    args = parser.parse_args()
    files = count(args.root / args.package)
    print(json.dumps({"files": files, "lines": sum(files.values())}, indent=1))


if __name__ == "__main__":
    main()
