"""A local Sphinx extension: the built book loads nothing from another host.

A book opened from disk may not fetch its own pages, so search goes without excerpts there.
MathJax is copied from the data of the PyPI package `sphinx-mathjax-offline`; the part for TeX in,
HTML out is 2 MB of its 24. Scripts that sphinx-thebe puts on every page are dropped: the book has
no live cells, they name an outside address, and as they come twice they are a JavaScript error.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

NO_EXCERPTS = "if (location.protocol === 'file:') DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;"
# The entry script, the fonts and font metrics for HTML, and the TeX packages loaded on demand.
PARTS = ("tex-mml-chtml.js", "output/chtml", "input/tex")
VENDOR = "_static/vendor/mathjax"


def mathjax_folder() -> Path:
    """Where pip put MathJax. The package cannot be imported by name: the name has a hyphen."""
    files = importlib.metadata.files("sphinx-mathjax-offline") or []
    for file in files:
        if file.name == PARTS[0]:
            return Path(str(file.locate())).parent
    raise FileNotFoundError(f"sphinx-mathjax-offline is installed without {PARTS[0]}")


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Copy MathJax into the finished output.

    Not into a source _static folder: every script in there is loaded on every page.
    """
    if error or app.builder.format != "html":
        return
    source, target = mathjax_folder(), Path(app.outdir) / VENDOR
    for part in PARTS:
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / part, target / part)


def drop_thebe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    def is_thebe(script: Any) -> bool:
        attributes = getattr(script, "attributes", {})
        text = f"{getattr(script, 'filename', '')} {attributes.get('body', '')}"
        return "thebe" in text.lower()

    for key in ("script_files", "css_files"):
        context[key] = [script for script in context.get(key, []) if not is_thebe(script)]


def use_local_mathjax(app: Sphinx, config: Any) -> None:
    # Relative to _static, where Sphinx looks for scripts.
    config.mathjax_path = "vendor/mathjax/tex-mml-chtml.js"
    # The menu's accessibility tools would be fetched from a host we do not use.
    config.mathjax3_config = {"options": {"enableMenu": False}, **(config.mathjax3_config or {})}


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_js_file(None, body=NO_EXCERPTS)
    # Before MyST completes the same configuration.
    app.connect("config-inited", use_local_mathjax, priority=100)
    # After the themes and sphinx-thebe have added what they add.
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
