"""Looks at the built pages as a visitor's browser would, without a network.

    python docs/check.py docs/_build/html

Every link within the site has a target, every image is there and says what it shows, no page loads
anything from another host, no mathematics is left as LaTeX, no page begins with a table, and the
search knows the words that people come with.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself: by element, the attributes that name it.
FETCHED = {
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "img": ("src", "srcset"),
    "input": ("src",),
    "link": ("href",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "track": ("src",),
    "video": ("src", "poster"),
}
NOT_FETCHED = {"author", "canonical", "help", "index", "next", "prev", "search"}  # of <link rel=>
ELSEWHERE = re.compile(r"(?:https?:)?//[^/\s]")
STYLE_URL = re.compile(r"""(?:url\(\s*['"]?|@import\s+['"])((?:https?:)?//[^'")]+)""")
SCRIPT_CALL = re.compile(r"""(?:fetch|import|importScripts)\(\s*['"`]((?:https?:)?//[^'"`]+)""")
LATEX = re.compile(r"\\\(|\\\[|\$\$|\\(?:frac|tfrac|mathrm|theta|varphi|left|sum)(?![a-zA-Z])")
WORDS = ("onnx", "chunk", "window")  # stems, as the index has them


class Page(HTMLParser):
    """What there is to check on one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.silent: list[str] = []
        self.words: list[str] = []
        self.first: str | None = None  # the first element of content below the title
        self._quiet: list[str] = []  # open elements whose text is no prose
        self._article = self._titled = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes what an element names, links and fetches."""
        of = {name: value or "" for name, value in attrs}
        self.anchors |= {of[name] for name in ("id", "name") if of.get(name)}
        if tag == "a" and "href" in of:
            self.links.append(of["href"])
        if tag == "link" and set(of.get("rel", "").split()) & NOT_FETCHED:
            return
        self.fetched += [of[name] for name in FETCHED.get(tag, ()) if of.get(name)]
        if tag == "img" and not of.get("alt", "").strip():
            self.silent.append(of.get("src", ""))
        if tag in ("code", "pre", "script", "style"):
            self._quiet.append(tag)
        self._article |= tag == "article"
        if self._article and self._titled and self.first is None and tag in ("p", "table", "img"):
            self.first = tag

    def handle_endtag(self, tag: str) -> None:
        """Leaves an element."""
        if self._quiet and self._quiet[-1] == tag:
            self._quiet.pop()
        self._titled |= self._article and tag == "h1"

    def handle_data(self, data: str) -> None:
        """Collects prose."""
        if not self._quiet:
            self.words.append(data)


def troubles(site: Path) -> Iterator[str]:
    """Yields everything that is wrong with a built site.

    Args:
        site: The folder of its HTML.

    Yields:
        A sentence each, that names the page.
    """
    site = site.resolve()
    pages = {
        path: Page(path.read_text(encoding="utf-8"))
        for path in sorted(site.rglob("*.html"))
        if "_static" not in path.parts
    }
    if not pages:
        yield f"{site}: no page"
    for path, page in pages.items():
        name = path.relative_to(site)
        for link in page.links:
            yield from (f"{name}: {trouble}" for trouble in _link(link, path, pages))
        for url in page.fetched:
            if ELSEWHERE.match(url):
                yield f"{name}: loads {url} from another host"
            elif not url.startswith("data:") and not _file(url, path).exists():
                yield f"{name}: {url} is not there"
        yield from (f"{name}: no alternative text for {image}" for image in page.silent)
        if found := LATEX.search(" ".join(page.words)):
            yield f"{name}: mathematics as LaTeX, {found.group()!r}"
        if page.first == "table":
            yield f"{name}: begins with a table"
    for pattern, kind in ((STYLE_URL, "css"), (SCRIPT_CALL, "js")):
        for path in sorted(site.rglob(f"*.{kind}")):
            for url in pattern.findall(path.read_text(encoding="utf-8", errors="replace")):
                yield f"{path.relative_to(site)}: loads {url} from another host"
    index = site / "searchindex.js"
    terms = _terms(index.read_text(encoding="utf-8")) if index.exists() else set()
    yield from (f"search: does not know {word!r}" for word in WORDS if word not in terms)


def _file(url: str, page: Path) -> Path:
    return Path(os.path.normpath(page.parent / unquote(urlsplit(url).path)))


def _link(link: str, page: Path, pages: dict[Path, Page]) -> Iterator[str]:
    """Yields what is wrong with a link; those to other hosts are not followed."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return
    target = _file(link, page) if parts.path else page
    fragment = unquote(parts.fragment)
    if target not in pages:
        if not target.exists():
            yield f"{link} leads nowhere"
    elif fragment and fragment not in pages[target].anchors:
        yield f"{link} names no place on its page"


def _terms(index: str) -> set[str]:
    """Returns the words of Sphinx's search index."""
    document = json.loads(index[index.index("(") + 1 : index.rindex(")")])
    return set(document["terms"]) | set(document["titleterms"])


if __name__ == "__main__":
    found = list(troubles(Path(sys.argv[1])))
    print("\n".join(found) or "nothing wrong")
    sys.exit(bool(found))
