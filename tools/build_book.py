"""Builds the book: sources checked, chapters run, pages staged, Jupyter Book run, HTML checked.

    python -m tools.build_book [--profile published|paper|smoke] [--fresh] [--execute-only]

Everything made lies under _build: executed/ (chapters with outputs), stage/ (what Jupyter Book
reads), provenance/ (when and how long each chapter ran), html/ (the book).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import yaml

from tools import check_html, gates, run_notebooks
from tools.run_notebooks import BookError

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ("published", "paper", "smoke")
# What Jupyter Book reads besides the chapters. tools/_ext is the local Sphinx extension.
STAGED = ("_config.yml", "_toc.yml", "_static", "book", "tools/_ext")


def chapters(root: Path) -> list[Path]:
    """The notebooks named in _toc.yml, in the order of the book."""

    def files(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key in {"root", "file"}:
                    yield value
                else:
                    yield from files(value)
        elif isinstance(node, list):
            for item in node:
                yield from files(item)

    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    return [root / f"{name}.ipynb" for name in files(toc) if name.startswith("notebooks/")]


def check_sources(sources: list[Path], profile: str) -> None:
    problems = []
    for source in sources:
        if source.exists():
            problems += gates.source_problems(source, {"PROFILE": profile})
        else:
            problems.append(f"{source.name}: named in _toc.yml, not there")
    if problems:
        raise BookError("\n".join(problems))


def stage(root: Path, sources: list[Path]) -> Path:
    """Lay out what Jupyter Book reads, each page at the path of its source.

    The same paths matter: the Colab and GitHub buttons are made from them.
    """
    stage = root / "_build" / "stage"
    provenance = root / "_build" / "provenance"
    for folder in (stage, provenance):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for name in STAGED:
        source, target = root / name, stage / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, target)
    (stage / "notebooks").mkdir()
    for name, notebook in run_notebooks.read_executed(root, sources).items():
        run = run_notebooks.prepare_page(notebook)
        nbformat.write(notebook, stage / "notebooks" / name)
        (provenance / name).with_suffix(".json").write_text(json.dumps(run, indent=1) + "\n")
    return stage


def build_html(root: Path, stage: Path) -> Path:
    """Run Jupyter Book with warnings as errors. Its chatter is shown only when it fails."""
    html = root / "_build" / "html"
    shutil.rmtree(html, ignore_errors=True)
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command += ["build", str(stage)]
    command += ["--path-output", str(root), "-W", "-n", "--keep-going", "--all"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    log = root / "_build" / "jupyter-book.log"
    lines = run_notebooks.without_colours(done.stdout + done.stderr).splitlines()
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if done.returncode:
        said = [line for line in lines if "WARNING" in line or "ERROR" in line]
        raise BookError("\n".join(said or lines[-15:]) + f"\nAll of it: {log}")
    return html


@contextmanager
def timed(step: str, durations: dict[str, float]) -> Iterator[None]:
    print(f"{step} ...", flush=True)
    start = time.perf_counter()
    yield
    durations[step] = time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the book.")
    parser.add_argument("--profile", choices=PROFILES, default="published")
    parser.add_argument("--fresh", action="store_true", help="run every chapter again")
    parser.add_argument("--execute-only", action="store_true", help="stop before Jupyter Book")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository to build")
    options = parser.parse_args()
    root = options.root.resolve()
    durations: dict[str, float] = {}
    try:
        sources = chapters(root)
        with timed("Checking the sources", durations):
            check_sources(sources, options.profile)
        with timed(f"Running the chapters (profile {options.profile})", durations):
            run_notebooks.execute(root, sources, options.profile, fresh=options.fresh)
            run_notebooks.read_executed(root, sources)
        if options.execute_only:
            return 0
        with timed("Building the pages", durations):
            html = build_html(root, stage(root, sources))
        with timed("Checking the pages", durations):
            problems = check_html.problems(html, root)
            if problems:
                raise BookError("\n".join(problems))
    except BookError as error:
        print(f"\nThe book was not built:\n{error}", file=sys.stderr)
        return 1
    print()
    for step, seconds in durations.items():
        print(f"{seconds:8.1f} s  {step}")
    print(f"\nOpen {html / 'index.html'} in a browser.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
