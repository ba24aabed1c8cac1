"""Puts the notebooks into the form in which they are stored: no outputs, the common first cell.

Cell ids, tags and the author's own metadata are kept. The formatting of the code is ruff's.
"""

from __future__ import annotations

from pathlib import Path

import nbformat

from tools.gates import COLAB_GUARD

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Change `notebook` in place."""
    notebook.metadata.clear()
    notebook.metadata.kernelspec = KERNEL
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        for noise in ("papermill", "execution", "collapsed", "scrolled", "ExecuteTime"):
            cell.metadata.pop(noise, None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if not code or "FEDPROX_PIP_SPEC" not in code[0].source:
        # After the title, so that the chapter still opens with its heading.
        code.insert(0, nbformat.v4.new_code_cell(id="colab"))
        notebook.cells.insert(1, code[0])
    code[0].source = COLAB_GUARD
    code[0].metadata.tags = ["remove-cell"]


def main() -> None:
    for path in sorted(Path("notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        tidy(notebook)
        text = nbformat.writes(notebook) + "\n"
        if text != path.read_text(encoding="utf-8"):
            path.write_text(text, encoding="utf-8")
            print(f"tidied {path}")


if __name__ == "__main__":
    main()
