"""Results and pages: where they are, and how JSON and Markdown are written.

Only the standard library is imported here, so that every benchmark and page can import this.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def read(path: Path) -> dict[str, Any] | None:
    """Returns the record at a path, if there is one."""
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def write(record: dict[str, Any], path: Path) -> None:
    """Writes a record as JSON; an interruption leaves the record that was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, aligned: bool = False) -> str:
    """Returns a Markdown table.

    Args:
        header: Names of the columns.
        rows: One text per column and row.
        aligned: Whether columns are padded to one width. Such a table reads well as text; without
            it, a figure that changes changes its own line alone.
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * (width if aligned else 3) for width in widths])
    if aligned:
        lines = [[c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fill(text: str, name: str, content: str) -> str:
    """Returns a page with the section between ``<!-- name:start -->`` and ``end`` replaced.

    Raises:
        ValueError: If the section does not have exactly one place on the page.
    """
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(
            f"The page has no place for a section: got {text.count(start)} of {start!r} and "
            f"{text.count(end)} of {end!r}, expected one each."
        )
    before, rest = text.split(start)
    _, after = rest.split(end)
    return f"{before}{start}\n\n{content}\n\n{end}{after}"


def page_parser(doc: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the option that every page has."""
    options = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("--check", action="store_true", help="write nothing; is it current?")
    return options


def is_current(path: Path, text: str) -> bool:
    """Returns whether a page is there and says this."""
    return path.exists() and path.read_text(encoding="utf-8") == text


def publish(path: Path, text: str, *, check: bool, target: str) -> None:
    """Writes a page; with ``check``, ends the program and names the make target if it is stale."""
    if check:
        stale = f"{path.name} is not what the JSON says: make {target}"
        sys.exit(None if is_current(path, text) else stale)
    path.write_text(text, encoding="utf-8")
