"""How Sphinx makes the site: ``sphinx-build --fail-on-warning docs build/site``."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import download_reference, pending_xref
from sphinx.application import Sphinx

import learned_opt

ROOT = Path(__file__).parents[1]

project = "learned-opt"
author = "learned-opt maintainers"
copyright = author
release = learned_opt.__version__
root_doc = "index"
html_title = f"learned-opt {release}"
repository = "https://github.com/learned-opt/learned-opt"

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "myst_nb"]
exclude_patterns = ["paper/**"]  # pictures and numbers, which docs/paper.md shows

# The notebooks are committed as they were executed, and the tests execute them again.
nb_execution_mode = "off"
nb_merge_streams = True
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]

default_role = "code"
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 90
# Aliases stay the names that the source has for them.
autodoc_type_aliases = {
    name: name
    for name in (
        "Batch",
        "Data",
        "Params",
        "State",
        "Theta",
        "jax.typing.ArrayLike",
        "optax.ScalarOrSchedule",
    )
}
napoleon_custom_sections = [("Attributes", "params_style")]
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
pygments_dark_style = "github-dark"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {
    "source_repository": repository,
    "source_branch": "main",
    "source_directory": "docs/",
}
copybutton_exclude = ".linenos, .gp, .go"


def fields_of(cls: type) -> list[tuple[str, str]]:
    """The fields of a NamedTuple or a dataclass, and the comments beside them."""
    source = textwrap.dedent(inspect.getsource(cls))
    lines = source.splitlines()
    body = ast.parse(source).body[0].body
    fields = [node for node in body if isinstance(node, ast.AnnAssign)]
    comments = [lines[node.end_lineno - 1].partition("  # ")[2] for node in fields]
    return [(node.target.id, text.replace("*", r"\*")) for node, text in zip(fields, comments, strict=True)]


def describe_fields(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """List the fields of a class whose docstring has no list of its own."""
    has_fields = what == "class" and (hasattr(obj, "_fields") or dataclasses.is_dataclass(obj))
    if has_fields and "Attributes:" not in lines:
        described = [f"  {field}: {comment}" for field, comment in fields_of(obj) if comment]
        lines += ["", "Attributes:", *described] if described else []


def skip_fields(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Fields are listed with their class, and so they get no entries of their own."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def shorten_aliases(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, result: str | None
) -> tuple[str | None, str | None]:
    """Sphinx leaves aliases inside of other types in a form of its own."""
    alias = re.compile(r"TypeAliasForwardRef\('([\w.]+)'\)")
    return signature and alias.sub(r"\1", signature), result and alias.sub(r"\1", result)


def link_repository(app: Sphinx, doctree: nodes.document) -> None:
    """Links to files that are no pages of the site lead to the repository."""
    page = app.env.docname
    folders = [(app.srcdir / page).parent, *([ROOT] if page == root_doc else [])]  # it includes README.md
    for node in [*doctree.findall(download_reference), *doctree.findall(pending_xref)]:
        if node.get("reftype") != "myst":
            continue
        target, _, anchor = node["reftarget"].partition("#")
        if node["refdomain"] == "doc":  # MyST has taken the suffix off
            target += ".md"
        paths = [path for folder in folders if (path := (folder / target).resolve()).exists()]
        if not paths or paths[0].is_relative_to(app.srcdir) or not paths[0].is_relative_to(ROOT):
            continue
        path = paths[0]
        kind = "tree" if path.is_dir() else "blob"
        url = f"{repository}/{kind}/main/{path.relative_to(ROOT).as_posix()}{anchor and '#' + anchor}"
        node.replace_self(nodes.reference("", "", *node.children, refuri=url))


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", describe_fields, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-signature", shorten_aliases)
    app.connect("doctree-read", link_repository)
