"""Sphinx configuration: Markdown pages, a reference from the docstrings, warnings are errors."""

import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from pydantic import BaseModel

import gtp_policy

project = "gtp-policy"
author = "gtp-policy contributors"
copyright = "gtp-policy contributors"
version = release = gtp_policy.__version__

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_extensions"), str(HERE.parent)]  # the second for `examples`

# Nothing that a page shows comes from another host: mathematics is MathML, scripts and styles are
# those of the packages. `docs/check.py` looks.
extensions = [
    "mathml",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery"]
myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
autosummary_generate = False
copybutton_prompt_text = ">>> |\\.\\.\\. |\\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"gtp-policy {version}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sphinx = False
html_use_index = html_domain_indices = False  # the search finds what they list
# On a host of several versions each leads to the list of them: see contributing/release.md.
if versions := os.environ.get("DOCS_VERSIONS"):
    html_theme_options = {
        "announcement": f'This is version {version}. <a href="{versions}">Other versions</a>'
    }

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "pictures/gallery",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "copyfile_regex": r".*\.rst",
    "download_all_examples": False,
    "min_reported_time": 10_000,
    "write_computation_times": False,
    "show_signature": False,
    "abort_on_example_error": True,
    "reset_modules": ("matplotlib",),
    "default_thumb_file": str(HERE / "pictures" / "maze.png"),
}

default_role = "code"
add_module_names = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def _is_config(obj: object) -> bool:
    return isinstance(obj, type) and issubclass(obj, BaseModel)


def show_fields(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Appends a config's fields, whose text is the same that its JSON schema carries."""
    if isinstance(obj, type) and issubclass(obj, BaseModel) and obj.model_fields:
        lines.extend(["", "**Fields**", ""])
        for field, info in obj.model_fields.items():
            value = None if info.is_required() else info.get_default(call_default_factory=True)
            # A nested config is described in its own place.
            shown = f"{type(value).__name__}()" if isinstance(value, BaseModel) else repr(value)
            default = "required" if info.is_required() else f"default ``{shown}``"
            lines.append(f"- ``{field}`` ({default}): {info.description}")
        lines.append("")


def hide_docs_of_type(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Removes what a constant would inherit from its type: the manual of ``str``, say."""
    if what == "data" and lines and lines[0] == (inspect.getdoc(type(obj)) or "\n").splitlines()[0]:
        lines.clear()


def keep_initials(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Keeps descriptions such as ``O.`` text: a letter and a stop would begin a numbered list."""
    for i, before in enumerate(lines[:-1]):
        if re.fullmatch(r":(param \w+|returns):", before):
            lines[i + 1] = re.sub(r"^(\s+)([A-Za-z]\.)", r"\1\\\2", lines[i + 1])


def hide_machinery(
    app: object, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Hides pydantic's own members, and fields that the class docstring has described."""
    field_of_tuple = type(obj).__name__ == "_tuplegetter"
    return True if field_of_tuple or name.startswith("model_") else None


def short_signature(
    app: object, what: str, name: str, obj: object, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """Leaves out a config's signature: it repeats the list of fields."""
    return ("(**fields)", "") if what == "class" and _is_config(obj) else None


def describe_thumbnails(app: object, doctree: nodes.document) -> None:
    """Gives a gallery's thumbnails, which have none, a text: what the script is called."""
    for image in doctree.findall(nodes.image):
        if thumbnail := re.search(r"sphx_glr_(\w+)_thumb", image["uri"]):
            image["alt"] = f"Picture of the script {thumbnail[1].replace('_', ' ')}"


def hide_aliases(app: object, doctree: nodes.document) -> None:
    """Cuts what autodoc adds to unions of configs: the pages say in words what they are."""
    for paragraph in doctree.findall(nodes.paragraph):
        for i, child in enumerate(paragraph.children):
            if isinstance(child, nodes.Text) and child.endswith("alias of "):
                paragraph.children[i:] = [nodes.Text(child.removesuffix("alias of ").rstrip())]
                break


def setup(app: Any) -> None:  # noqa: ANN401 (Sphinx hands over its application object)
    app.connect("doctree-read", describe_thumbnails)
    app.connect("doctree-read", hide_aliases)
    app.connect("autodoc-process-docstring", keep_initials)
    app.connect("autodoc-process-docstring", show_fields)
    app.connect("autodoc-process-docstring", hide_docs_of_type)
    app.connect("autodoc-process-signature", short_signature)
    app.connect("autodoc-skip-member", hide_machinery)


# The runtime, which shares no code with the core, has errors of the same names.
suppress_warnings = ["ref.python"]
