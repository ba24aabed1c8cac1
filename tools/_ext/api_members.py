"""A local Sphinx extension: the API page says everything once, and as it was meant.

autodoc and napoleon need help in a few places:

- A field of a NamedTuple documents itself as "Alias for field number 0", below a class whose docstring has said what it
  is; and the fields of a class stand with their types both there and in its signature.
- A class variable that a subclass sets anew, such as ``keeps_partial_work``, has no docstring in the subclass and would
  not be shown, although it tells the two apart.
- A constant shows its value, however long.
- napoleon takes the beginning of a sentence about a constant, up to a colon, for its type.
- Formulas stand between dollars, as everywhere in the book, which reStructuredText takes for text.
- A docstring names things as its module sees them, and its first line is also shown in a table elsewhere.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections import namedtuple
from dataclasses import is_dataclass
from operator import attrgetter
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.autodoc import DataDocumenter
from sphinx.util.inspect import object_description

TUPLE_FIELD = type(vars(namedtuple("Probe", "field"))["field"])
LONGEST_VALUE = 120
FORMULA = re.compile(r"(``.*?``)|\$([^$]+)\$", re.DOTALL)
REFERENCE = re.compile(r":(func|class|data|exc|meth):`([A-Za-z_][\w.]*)`")


class ShortData(DataDocumenter):
    """A constant, with its value if that is short and means something in print."""

    def should_suppress_value_header(self) -> bool:
        value = object_description(self.object)
        return len(value) > LONGEST_VALUE or "<" in value or super().should_suppress_value_header()


def skip_tuple_fields(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    return True if isinstance(member, TUPLE_FIELD) else None


def shorten(
    app: Sphinx, what: str, name: str, documented: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Signatures: no types where the fields' descriptions have them; elsewhere Params by that name."""
    if what == "class" and (is_dataclass(documented) or hasattr(documented, "_fields")):
        bare = inspect.signature(documented)
        fields = [field.replace(annotation=field.empty) for field in bare.parameters.values()]
        return str(bare.replace(parameters=fields, return_annotation=bare.empty)), None
    return signature and _with_params(signature), returns and _with_params(returns)


def before_napoleon(app: Sphinx, what: str, name: str, documented: Any, options: Any, lines: list[str]) -> None:
    """What has to be said in reStructuredText before sections become fields."""

    def reference(match: re.Match) -> str:
        role, target = match.groups()
        return f":{role}:`~{_full_name(name, target)}`"

    def formula(match: re.Match) -> str:
        return match[1] or f":math:`{' '.join(match[2].split())}`"

    if what == "class" and (switches := _switches(documented)):
        summary = lines.index("") if "" in lines else len(lines)
        lines[summary:summary] = ["", f"Class switches: {', '.join(switches)}."]
    paragraphs = "\n".join(lines).split("\n\n")
    # A table would lose its columns.
    text = "\n\n".join(part if "====" in part else REFERENCE.sub(reference, part) for part in paragraphs)
    text = FORMULA.sub(formula, text)
    # An empty comment is where napoleon then looks for a type.
    lines[:] = ["..", ""] * (what in ("attribute", "data", "property")) + text.split("\n")


def after_napoleon(app: Sphinx, what: str, name: str, documented: Any, options: Any, lines: list[str]) -> None:
    """Types of fields by their last name, as in signatures."""
    lines[:] = [
        re.sub(r"(?<![~.\w])(?=(\w+\.)+\w)", "~", _with_params(line)) if line.startswith(":vartype ") else line
        for line in lines
    ]


def _with_params(text: str) -> str:
    return re.sub(r"dict\[str, ~?torch\.Tensor\]", "~fedprox_lib.tree.Params", text)


def _switches(cls: type) -> list[str]:
    """The class variables of its bases that a class sets anew."""
    declared = {name for base in cls.__mro__[1:] for name in vars(base).get("__annotations__", {})}
    own = vars(cls).get("__annotations__", {})
    return [f"``{n} = {vars(cls)[n]}``" for n, kind in own.items() if "ClassVar" in str(kind) and n in declared]


def _full_name(described: str, target: str) -> str:
    """Where the thing is defined that is called ``target`` in the module of what is described."""
    parts = described.split(".")
    modules = (sys.modules.get(".".join(parts[:n])) for n in range(len(parts), 0, -1))
    module = next(found for found in modules if found)
    try:
        found = attrgetter(target)(module)
    except AttributeError:
        return target  # a full name, or a method of the class that is described
    if inspect.isclass(found) or inspect.isfunction(found):
        return f"{found.__module__}.{found.__qualname__}"
    return f"{module.__name__}.{target}"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_autodocumenter(ShortData, override=True)
    app.connect("autodoc-skip-member", skip_tuple_fields)
    app.connect("autodoc-process-signature", shorten)
    app.connect("autodoc-process-docstring", before_napoleon, priority=100)
    app.connect("autodoc-process-docstring", after_napoleon, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
