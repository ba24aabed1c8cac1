"""What a notebook must satisfy before and after it is run: each broken rule is one line of text.

Jupyter Book publishes an unexecuted notebook, a stored error or a figure without alternative text
without a word (tried). These functions are what says the word. They return the complaints instead
of raising, so that an author sees all of them at once.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import nbformat
import papermill

# The first code cell of every chapter. The repository and the version are also in _config.yml and
# pyproject.toml; a test holds the three together.
COLAB_GUARD = """\
# On Google Colab this cell installs the library. Anywhere else it does nothing.
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("fedprox_lib") is None and (
    "google.colab" in sys.modules or "FEDPROX_PIP_SPEC" in os.environ
):
    spec = os.environ.get(
        "FEDPROX_PIP_SPEC",
        "fedprox-lib[chapters] @ git+https://github.com/fedprox-book/fedprox-book@v0.2.0",
    )
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", spec], check=True)
    importlib.invalidate_caches()"""


def source_problems(path: Path, parameters: dict[str, Any]) -> list[str]:
    """Complaints about a notebook as its author stores it, and about running it with these."""
    try:
        # nbformat.read would quietly mend what we are here to find.
        notebook = nbformat.v4.reads(path.read_text(encoding="utf-8"))
        for error in nbformat.validator.iter_validate(notebook):
            raise error
    except (ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
        return [f"{path.name}: not a valid notebook: {str(error).splitlines()[0]}"]
    if (notebook.nbformat, notebook.nbformat_minor) < (4, 5):
        return [f"{path.name}: nbformat {notebook.nbformat}.{notebook.nbformat_minor}, not 4.5"]

    problems = []
    kernel = notebook.metadata.get("kernelspec", {}).get("name")
    if kernel != "python3":
        problems.append(f"the kernel is {kernel!r}, it must be 'python3'")
    for key in ("widgets", "papermill"):
        if key in notebook.metadata:
            problems.append(f"stored {key} metadata: run `make tidy`")
    for cell_id, count in Counter(cell.id for cell in notebook.cells).items():
        if count > 1:
            problems.append(f"{count} cells have the id {cell_id!r}")

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        if cell.outputs or cell.execution_count is not None:
            problems.append(f"{_where(cell)}: stored outputs or execution count: run `make tidy`")
    if not code or code[0].source != COLAB_GUARD or "remove-cell" not in _tags(code[0]):
        problems.append("the first code cell is not the Colab cell: run `make tidy`")

    tagged = sum("parameters" in _tags(cell) for cell in code)
    if tagged != 1:
        problems.append(f"{tagged} cells are tagged 'parameters', there must be one")
    else:
        # papermill itself only warns here, and runs with the default.
        known = papermill.inspect_notebook(str(path))
        for name in sorted(set(parameters) - set(known)):
            problems.append(f"unknown parameter {name!r}, it has {', '.join(sorted(known))}")
    return [f"{path.name}: {problem}" for problem in problems]


def executed_problems(notebook: nbformat.NotebookNode, name: str) -> list[str]:
    """Complaints about a notebook that papermill has run."""
    problems = []
    if notebook.metadata.get("papermill", {}).get("exception"):
        problems.append("papermill stopped at an error")
    for cell in notebook.cells:
        if "papermill-error-cell-tag" in _tags(cell):
            problems.append(f"{_where(cell)}: papermill left its error banner")
        if cell.cell_type == "code":
            problems += [f"{_where(cell)}: {problem}" for problem in _cell_problems(cell)]
    return [f"{name}: {problem}" for problem in problems]


def figure_of(cell: nbformat.NotebookNode) -> dict[str, str]:
    """What `figures.show` said about the figure in a cell: name, alt, caption, width."""
    for output in _images(cell):
        return dict(output.get("metadata", {}).get("fedprox", {}))
    return {}


def repeated_figure_names(notebooks: dict[str, nbformat.NotebookNode]) -> list[str]:
    """Complaints about figure names used twice: a name is a link target of the whole book."""
    seen: dict[str, str] = {}
    problems = []
    for name, notebook in notebooks.items():
        for cell in notebook.cells:
            figure = figure_of(cell).get("name")
            if figure and figure in seen:
                problems.append(f"{name}: {_where(cell)}: {seen[figure]} has a {figure!r} too")
            elif figure:
                seen[figure] = name
    return problems


def _cell_problems(cell: nbformat.NotebookNode) -> list[str]:
    if cell.source.strip() and cell.execution_count is None:
        return ["not executed"]
    problems = []
    for output in cell.outputs:
        if output.output_type == "error" and "raises-exception" not in _tags(cell):
            problems.append(f"error output: {output.ename}: {output.evalue}"[:200])
        if output.output_type == "stream" and output.name == "stderr":
            problems.append(f"stderr output: {output.text.strip()}"[:200])

    images = _images(cell)
    if not images:
        return problems
    displayed = [o for o in cell.outputs if o.output_type in {"display_data", "execute_result"}]
    if len(images) > 1:
        problems.append(f"{len(images)} figures in one cell, only one can have a caption")
    elif len(displayed) > 1:
        # The caption and the name would be drawn around each of them.
        problems.append("a figure and another displayed object in one cell")
    for image in images:
        figure = image.get("metadata", {}).get("fedprox", {})
        for key in ("name", "alt", "caption"):
            if not str(figure.get(key, "")).strip():
                problems.append(f"an image without {key}: use fedprox_book.figures.show")
    return problems


def _images(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [
        output
        for output in cell.get("outputs", [])
        if any(mime.startswith("image/") for mime in output.get("data", {}))
    ]


def _tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _where(cell: nbformat.NotebookNode) -> str:
    """The cell as its author can find it: its id and its first line."""
    lines = cell.source.strip().splitlines()
    return f"cell {cell.id!r} ({lines[0][:60] if lines else 'empty'})"
