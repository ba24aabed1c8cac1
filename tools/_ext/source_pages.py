"""A local Sphinx extension: the index of the library's source pages names only pages there are.

sphinx.ext.viewcode also lists the modules whose source it could not read. For an alias of a type,
such as `Parameters = dict[str, Tensor]`, that is Python's own `builtins`, and a dead link.
"""

from __future__ import annotations

from sphinx.application import Sphinx


def forget_unreadable(app: Sphinx) -> list[tuple]:
    modules = getattr(app.env, "_viewcode_modules", {})
    for name in [name for name, source in modules.items() if not source]:
        del modules[name]
    return []  # no pages of our own


def setup(app: Sphinx) -> dict[str, bool]:
    # Before viewcode collects its pages.
    app.connect("html-collect-pages", forget_unreadable, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
