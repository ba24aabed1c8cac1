"""The prose of the book and of the repository: chapters by title, links and commands that lead somewhere."""

import ast
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from fedprox_lib import ClientWork, FedAvg, Replies, sweeps
from tools import build_book

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = build_book.chapters(ROOT)
PAGES = [
    *sorted(ROOT.glob("book/*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "fedprox_lib/README.md", "benchmarks/README.md")),
]
CODE = sorted(
    path
    for folder in ("fedprox_lib", "fedprox_book", "tools", "benchmarks", "examples", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if not any(part.startswith((".", "_results")) for part in path.relative_to(ROOT).parts)
)
NUMBERED = re.compile(
    r"\b[Cc]hap(?:ter)?s?\.?(?:[ \t]+|[ \t]*\n[ \t]*)[0-9]|\[(?:[Cc]hapter\s+)?[0-9]+\]\([^)]*\.ipynb"
)
"""A chapter by its number, or a link to one that shows a number."""


def title_of(notebook: Path) -> str:
    first = nbformat.read(notebook, as_version=4).cells[0].source.splitlines()[0]
    assert first.startswith("# ")
    return first.removeprefix("# ")


def prose() -> Iterator[tuple[str, str]]:
    """(where, text) of every page, every cell and every Python file."""
    for path in [*PAGES, *CODE]:
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    for chapter in CHAPTERS:
        for cell in nbformat.read(chapter, as_version=4).cells:
            yield f"{chapter.name}, cell {cell.id!r}", cell.source


# --- chapters have titles; their numbers are Sphinx's -----------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["as chapter N shows", "Chapters\nN to N", "(chap. N)", "[N](x/y.ipynb)", "[Chapter N](y.ipynb)"]
)
def test_a_typed_number_is_seen(text):
    assert NUMBERED.search(text.replace("N", "12"))


def test_nobody_types_the_number_of_a_chapter():
    assert [(where, found[0]) for where, text in prose() for found in NUMBERED.finditer(text)] == []


def test_the_next_chapter_is_named_by_its_title():
    titles = {chapter.name: title_of(chapter) for chapter in CHAPTERS}
    for chapter in CHAPTERS:
        last = nbformat.read(chapter, as_version=4).cells[-1].source
        for text, name in re.findall(r"\*\*Next:\*\* \[([^\]]+)\]\((\w+\.ipynb)\)", last):
            assert text.replace("$\\mu$", "mu") == titles[name], chapter.name


@pytest.mark.parametrize(("page", "prefix"), [("README.md", "main/notebooks/"), ("book/intro.md", "../notebooks/")])
def test_lists_of_chapters_have_every_chapter_by_its_title(page, prefix):
    pattern = rf"^(?:- |\| )\[([^\]]+)\]\([^)]*{re.escape(prefix)}(\w+)\.ipynb\)"
    listed = re.findall(pattern, (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert listed == [(title_of(chapter), chapter.stem) for chapter in CHAPTERS]


# --- what is printed can be done --------------------------------------------------------------------------------------


def test_commands_that_are_printed_exist():
    for where, text in prose():
        for module in re.findall(r"python3? -m ((?:fedprox_lib|fedprox_book|tools|benchmarks|tests)[\w.]*)", text):
            spec = importlib.util.find_spec(module.rstrip("."))
            assert spec and spec.origin, f"{where}: python -m {module}"
            runs = Path(spec.origin).with_name("__main__.py") if spec.submodule_search_locations else Path(spec.origin)
            assert runs.exists() and "__main__" in f"{runs.name} {runs.read_text(encoding='utf-8')}", (
                f"{where}: {module}"
            )


def test_files_of_ours_that_are_named_exist():
    for where, text in prose():
        for name in re.findall(r"\bfedprox_(?:lib|book)/[\w/]+\.(?:py|yml|md)\b", text):
            assert (ROOT / name).exists(), f"{where} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_link_to_files_that_exist(page):
    text = re.sub(r"`[^`]*`", "", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_the_house_lists_every_module_and_names_what_is_there():
    """The table of modules is whole, and the ways of mu and of a row index go through code that exists."""
    text = (ROOT / "fedprox_lib" / "README.md").read_text(encoding="utf-8")
    table = "".join(re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE))
    files = [path.relative_to(ROOT / "fedprox_lib") for path in CODE if path.is_relative_to(ROOT / "fedprox_lib")]
    names = {f"{path.parts[0]}/" if path.parts[0] == "algorithms" else path.stem for path in files}
    assert set(re.findall(r"`([\w/]+)`", table)) == {name for name in names if not name.startswith("_")}
    source = "".join(path.read_text(encoding="utf-8") for path in CODE if path.parts[-2] != "tests")
    words = set(re.findall(r"\w+", source))
    for name in re.findall(r"`([A-Za-z_][\w.]*)(?:\([^`]*\))?`", text[text.index("## The way of mu") :]):
        assert set(name.split(".")) <= words, name


# --- the API page -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fedprox_lib", "fedprox_lib.sweeps", "fedprox_lib.flower"])
def test_the_api_page_begins_with_everything_that_is_public(name):
    package = pytest.importorskip(name, reason="needs the extra `flower`")
    first, _, _ = (ROOT / "book" / "api.md").read_text(encoding="utf-8").partition("\n## Run a federation")
    for public in (getattr(package, name) for name in package.__all__):
        modules = inspect.ismodule(public)
        full = public.__name__ if modules else f"{public.__module__}.{public.__qualname__}"
        assert full in first if modules else re.search(rf"^   ~{full}$", first, flags=re.MULTILINE), full


def api_members():
    """The Sphinx extension, which is not in a package."""
    spec = importlib.util.spec_from_file_location("api_members", ROOT / "tools" / "_ext" / "api_members.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def described(what: str, name: str, thing: object, *lines: str) -> list[str]:
    """A docstring as napoleon gets it."""
    text = list(lines)
    api_members().before_napoleon(None, what, name, thing, None, text)
    return text


def test_docstrings_are_prepared_for_the_api_page():
    assert described(
        "class", "fedprox_lib.algorithms.fedavg.FedAvg", FedAvg, "Of $F_k(w)$ and ``$HOME``.", "", "More."
    ) == [
        "Of :math:`F_k(w)` and ``$HOME``.",
        "",
        "Class switches: ``keeps_partial_work = False``.",
        "",
        "More.",
    ]
    assert described("module", "fedprox_lib.sweeps", sweeps, ":func:`run` and :meth:`observe`.") == [
        ":func:`~fedprox_lib.sweeps.results.run` and :meth:`~observe`."
    ]
    assert described("data", "fedprox_lib.plan.STRAGGLER_EPOCHS", (), "This: and that.") == [
        "..",
        "",
        "This: and that.",
    ]
    assert api_members().skip_tuple_fields(None, "class", "delta", Replies.delta, False, None)
    assert api_members().skip_tuple_fields(None, "class", "num_steps", ClientWork.num_steps, False, None) is None


def test_python_on_the_pages_is_python():
    for page in PAGES:
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S):
            ast.parse(block)
