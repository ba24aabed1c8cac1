"""Runs the chapters with papermill and turns what comes out into pages Jupyter Book can print.

Sources stay without outputs. An executed chapter is kept in _build/executed/ together with a key
that covers everything its numbers depend on, so that a second build runs only what changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import papermill

from tools import gates


class BookError(Exception):
    """The book cannot be built. The message has one line for each reason."""


def execution_key(root: Path, source: Path, profile: str) -> str:
    """A hash of all that an executed chapter depends on.

    Jupyter's own cache looks at the notebook only, and would miss a change in the library, in the
    records or in the installed versions.
    """
    files = [source, root / "constraints.txt"]
    for kind in ("fedprox_lib/**/*.py", "fedprox_book/**/*.py", "fedprox_book/**/*.yml"):
        files += sorted(root.glob(kind))
    files += sorted(path for path in root.glob("results/**/*") if path.is_file())
    key = hashlib.sha256(profile.encode())
    for path in files:
        key.update(path.relative_to(root).as_posix().encode())
        key.update(hashlib.sha256(path.read_bytes()).digest())
    return key.hexdigest()


def execute(root: Path, sources: list[Path], profile: str, *, fresh: bool = False) -> None:
    """Run each notebook whose key changed, and print how long each took."""
    executed = root / "_build" / "executed"
    executed.mkdir(parents=True, exist_ok=True)
    os.environ["FEDPROX_PROFILE"] = profile
    workers = 1
    if profile != "paper":
        # Drawing hardly uses a second thread; two chapters at a time do use a second core.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        workers = min(2, os.cpu_count() or 1)

    def run(source: Path) -> str | None:
        target = executed / source.name
        record = target.with_suffix(".key.json")
        key = execution_key(root, source, profile)
        if not fresh and target.exists() and record.exists():
            last = json.loads(record.read_text(encoding="utf-8"))
            if last["key"] == key:
                print(f"  {source.stem}: unchanged", flush=True)
                return None
        record.unlink(missing_ok=True)
        # Only a finished run gets the final name: papermill writes as it goes.
        running = target.with_suffix(".running.ipynb")
        start = time.perf_counter()
        try:
            papermill.execute_notebook(
                source,
                running,
                parameters={"PROFILE": profile},
                kernel_name="python3",
                cwd=executed,
                progress_bar=False,
                autosave_cell_every=0,
                # The kernel's note about its local connection is of no use to a reader.
                extra_arguments=["--IPKernelApp.log_level=ERROR"],
            )
        except Exception as error:  # an error in the chapter, a dead kernel, a missing kernel
            return f"{source.name}: {without_colours(str(error)).strip()}"
        running.replace(target)
        seconds = time.perf_counter() - start
        record.write_text(json.dumps({"key": key, "profile": profile, "seconds": round(seconds, 1)}))
        print(f"  {source.stem}: {seconds:.1f} s", flush=True)
        return None

    with ThreadPoolExecutor(workers) as pool:
        failures = [failure for failure in pool.map(run, sources) if failure]
    if failures:
        raise BookError("\n".join(failures))


def read_executed(root: Path, sources: list[Path]) -> dict[str, nbformat.NotebookNode]:
    """The executed chapters by file name, once every gate has let them through."""
    notebooks = {
        source.name: nbformat.read(root / "_build" / "executed" / source.name, as_version=4) for source in sources
    }
    problems = gates.repeated_figure_names(notebooks)
    for name, notebook in notebooks.items():
        problems += gates.executed_problems(notebook, name)
    if problems:
        raise BookError("\n".join(problems))
    return notebooks


def prepare_page(notebook: nbformat.NotebookNode) -> dict[str, object]:
    """Make an executed chapter printable, in place. Returns what is known of its run.

    The run's dates and durations are taken out: with them in, two builds would never be equal.
    """
    run = notebook.metadata.pop("papermill", {})
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    seconds: dict[str, float | None] = {}
    for cell in notebook.cells:
        timing = cell.metadata.pop("papermill", {})
        cell.metadata.pop("execution", None)
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags:
            # papermill draws a random id, and does not inherit the tags of the cell it overrides.
            cell.id = "injected-parameters"
            cell.metadata.tags = [*tags, "remove-cell"]
        if cell.cell_type == "code":
            seconds[cell.id] = timing.get("duration")
            figure = gates.figure_of(cell)
            if figure:
                _write_figure_options(cell, figure)
    return {
        "parameters": run.get("parameters"),
        "started": run.get("start_time"),
        "seconds": run.get("duration"),
        "seconds_by_cell": seconds,
    }


def _write_figure_options(cell: nbformat.NotebookNode, figure: dict[str, str]) -> None:
    """Hand a figure's texts to MyST-NB, which reads them from the metadata of the cell."""
    options = dict(cell.metadata.get("mystnb", {}))
    # Our figures are opaque; "dark-light" keeps the dark theme from shifting their colours.
    image = {"alt": figure["alt"], "classes": "dark-light", **options.get("image", {})}
    if figure.get("width"):
        image.setdefault("width", figure["width"])
    options["image"] = image
    options["figure"] = {"name": figure["name"], "caption": figure["caption"]}
    cell.metadata["mystnb"] = options


def without_colours(text: str) -> str:
    """What a program wrote for a terminal, as plain text."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
