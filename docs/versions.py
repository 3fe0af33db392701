"""Writes the front of a site that keeps one folder per version of the documentation.

    python docs/versions.py SITE

``index.html`` leads to the newest release (to ``main`` before there is one), ``versions.html``
lists all of them.
"""

import html
import re
import sys
from pathlib import Path

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>gtp-policy: documentation by version</title>{head}
<style>body {{ font: 1.1rem/1.6 sans-serif; margin: 2rem auto; max-width: 40rem }}</style>
<h1>gtp-policy: documentation by version</h1>
<ul>
{rows}
</ul>
</html>
"""


def order(name: str) -> tuple[int, ...]:
    """Returns by what folders are sorted: releases by number, all else before them."""
    return tuple(map(int, name.split("."))) if re.fullmatch(r"\d+(\.\d+)*", name) else ()


def versions(site: Path) -> list[str]:
    """Returns the folders of a site that hold documentation, the newest release first."""
    folders = [path.parent.name for path in site.glob("*/index.html")]
    return sorted(folders, key=lambda name: (order(name), name), reverse=True)


def write(site: Path) -> None:
    """Writes both pages, and the file that keeps the host from leaving out `_static`."""
    found = [html.escape(name, quote=True) for name in versions(site)]
    rows = "\n".join(f'<li><a href="{name}/">{name}</a></li>' for name in found)
    head = f'\n<meta http-equiv="refresh" content="0; url={found[0]}/">' if found else ""
    (site / "index.html").write_text(PAGE.format(head=head, rows=rows), encoding="utf-8")
    (site / "versions.html").write_text(PAGE.format(head="", rows=rows), encoding="utf-8")
    (site / ".nojekyll").touch()


if __name__ == "__main__":
    write(Path(sys.argv[1]))
