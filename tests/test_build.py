"""Every gate of the build must refuse what it is there to refuse, and name it."""

import json
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import build_book, check_book, check_html, gates, run_notebooks, tidy_notebooks

PIXEL = "iVBORw0KGgo="  # nobody looks at it
FIGURE = {
    "name": "fig-drift",
    "alt": 'A curve that "bends": it stays below 1',
    "caption": 'The *drift* for $\\mu = 1$, which we call "short".',
    "width": "80%",
}


def chapter(*cells) -> nbformat.NotebookNode:
    """A small chapter as an author stores it."""
    guard = new_code_cell(gates.COLAB_GUARD, id="colab", metadata={"tags": ["remove-cell"]})
    parameters = new_code_cell("PROFILE = None", id="parameters")
    parameters.metadata["tags"] = ["parameters", "remove-cell"]
    return new_notebook(
        cells=[new_markdown_cell("# A chapter", id="title"), guard, parameters, *cells],
        metadata={"kernelspec": dict(tidy_notebooks.KERNEL)},
    )


def source_complaints(tmp_path: Path, notebook, parameters=None) -> str:
    path = tmp_path / "01_chapter.ipynb"
    path.write_text(nbformat.v4.writes(notebook))
    return "\n".join(gates.source_problems(path, parameters or {"PROFILE": "smoke"}))


# --- sources -------------------------------------------------------------------------------------


def test_a_clean_source_passes(tmp_path):
    assert source_complaints(tmp_path, chapter()) == ""


def stored_output(notebook):
    notebook.cells[2].outputs = [new_output("stream", name="stdout", text="1")]


def stored_count(notebook):
    notebook.cells[2].execution_count = 3


def other_kernel(notebook):
    notebook.metadata.kernelspec["name"] = "conda-env"


def same_ids(notebook):
    notebook.cells[2].id = "colab"


def no_parameters(notebook):
    notebook.cells[2].metadata["tags"] = ["remove-cell"]


def edited_guard(notebook):
    notebook.cells[1].source += "\n%pip install something"


def widget_state(notebook):
    notebook.metadata["widgets"] = {}


def missing_field(notebook):
    del notebook.cells[0]["source"]


@pytest.mark.filterwarnings("ignore:Non-unique cell id")
@pytest.mark.parametrize(
    ("mutate", "said"),
    [
        (stored_output, "cell 'parameters' (PROFILE = None): stored outputs"),
        (stored_count, "cell 'parameters' (PROFILE = None): stored outputs"),
        (other_kernel, "the kernel is 'conda-env', it must be 'python3'"),
        (same_ids, "2 cells have the id 'colab'"),
        (no_parameters, "0 cells are tagged 'parameters'"),
        (edited_guard, "the first code cell is not the Colab cell"),
        (widget_state, "stored widgets metadata"),
        (missing_field, "not a valid notebook"),
    ],
)
def test_a_bad_source_is_refused(tmp_path, mutate, said):
    notebook = chapter()
    mutate(notebook)
    complaint = source_complaints(tmp_path, notebook)
    assert complaint.startswith("01_chapter.ipynb: ")
    assert said in complaint


def test_an_unknown_parameter_is_refused(tmp_path):
    complaint = source_complaints(tmp_path, chapter(), {"PROFIL": "smoke"})
    assert complaint == "01_chapter.ipynb: unknown parameter 'PROFIL', it has PROFILE"


def test_a_file_that_is_no_notebook_is_refused(tmp_path):
    path = tmp_path / "01_chapter.ipynb"
    path.write_text("half a note")
    assert "not a valid notebook" in gates.source_problems(path, {})[0]


def test_tidying_makes_a_source_pass(tmp_path):
    notebook = chapter()
    for mutate in (stored_output, stored_count, other_kernel, edited_guard, widget_state):
        mutate(notebook)
    notebook.cells[1].source = notebook.cells[1].source.replace("@v0.2.0", "@v0.0.9")
    before = [cell.id for cell in notebook.cells]
    tidy_notebooks.tidy(notebook)
    assert source_complaints(tmp_path, notebook) == ""
    assert [cell.id for cell in notebook.cells] == before


# --- executed chapters ---------------------------------------------------------------------------


def image(**metadata):
    output = new_output("display_data", data={"image/png": PIXEL})
    output.metadata["fedprox"] = FIGURE | metadata
    return output


def executed(*outputs, count=1) -> nbformat.NotebookNode:
    return new_notebook(cells=[new_code_cell("show()", id="drift", execution_count=count, outputs=list(outputs))])


def test_a_clean_chapter_passes():
    assert gates.executed_problems(executed(image()), "01.ipynb") == []


ERROR = new_output("error", ename="ValueError", evalue="mu < 0", traceback=[])
STDERR = new_output("stream", name="stderr", text="Downloading...")
TABLE = new_output("display_data", data={"text/html": "<table></table>"})


@pytest.mark.parametrize(
    ("notebook", "said"),
    [
        (executed(count=None), "not executed"),
        (executed(ERROR), "error output: ValueError: mu < 0"),
        (executed(STDERR), "stderr output: Downloading..."),
        (executed(image(alt=" ")), "an image without alt"),
        (executed(image(caption="")), "an image without caption"),
        (executed(image(name="")), "an image without name"),
        (executed(new_output("display_data", data={"image/png": PIXEL})), "an image without alt"),
        (executed(image(), image(name="fig-other")), "2 figures in one cell"),
        (executed(image(), TABLE), "a figure and another displayed object"),
    ],
)
def test_a_bad_chapter_is_refused(notebook, said):
    complaints = gates.executed_problems(notebook, "01.ipynb")
    assert any(text.startswith("01.ipynb: cell 'drift' (show()): " + said) for text in complaints)


def test_papermills_error_banner_is_refused():
    notebook = executed(image())
    banner = new_markdown_cell("An exception was encountered", id="banner")
    banner.metadata["tags"] = ["papermill-error-cell-tag"]
    notebook.cells.insert(0, banner)
    notebook.metadata["papermill"] = {"exception": True}
    assert len(gates.executed_problems(notebook, "01.ipynb")) == 2


def test_an_expected_error_may_be_shown():
    notebook = executed(ERROR)
    notebook.cells[0].metadata["tags"] = ["raises-exception"]
    assert gates.executed_problems(notebook, "01.ipynb") == []


def test_a_figure_name_belongs_to_one_chapter():
    both = {"01.ipynb": executed(image()), "02.ipynb": executed(image())}
    assert "01.ipynb has a 'fig-drift' too" in gates.repeated_figure_names(both)[0]


# --- pages ---------------------------------------------------------------------------------------


def test_a_page_keeps_figure_texts_and_loses_dates_and_random_ids():
    notebook = executed(image())
    injected = new_code_cell("PROFILE = 'smoke'", id="a1b2c3")
    injected.metadata["tags"] = ["injected-parameters"]
    notebook.cells.insert(0, injected)
    notebook.metadata["papermill"] = {"start_time": "2026-01-01", "duration": 3.0}
    notebook.metadata["widgets"] = {"state": {}}
    notebook.cells[1].metadata["papermill"] = {"duration": 2.0}

    run = run_notebooks.prepare_page(notebook)

    assert notebook.cells[0].id == "injected-parameters"
    assert "remove-cell" in notebook.cells[0].metadata.tags
    figure = notebook.cells[1].metadata["mystnb"]
    assert figure["image"]["alt"] == FIGURE["alt"]
    assert figure["figure"] == {"name": FIGURE["name"], "caption": FIGURE["caption"]}
    assert run["started"] == "2026-01-01" and run["seconds_by_cell"]["drift"] == 2.0
    assert "papermill" not in json.dumps(notebook) and "widgets" not in notebook.metadata


def test_the_key_of_an_execution_covers_library_records_versions_and_profile(tmp_path):
    files = (
        "notebooks/01.ipynb",
        "fedprox_lib/algorithms/fedprox.py",
        "fedprox_book/paper/theory.py",
        "fedprox_book/paper/claims.yml",
        "results/a.csv",
    )
    for name in (*files, "constraints.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    source = tmp_path / files[0]
    keys = {run_notebooks.execution_key(tmp_path, source, "smoke")}
    keys.add(run_notebooks.execution_key(tmp_path, source, "paper"))
    for name in (*files, "constraints.txt"):
        (tmp_path / name).write_text("2")
        keys.add(run_notebooks.execution_key(tmp_path, source, "smoke"))
    assert len(keys) == 2 + len(files) + 1  # two profiles, and every file changed


def book(root: Path, *cells) -> list[Path]:
    """A repository with one chapter and nothing else."""
    (root / "notebooks").mkdir()
    (root / "constraints.txt").write_text("")
    (root / "_toc.yml").write_text("format: jb-book\nroot: notebooks/01_chapter\n")
    source = root / "notebooks" / "01_chapter.ipynb"
    nbformat.write(chapter(*cells), source)
    return [source]


def test_a_failing_chapter_stops_the_build_and_leaves_no_finished_file(tmp_path):
    sources = book(tmp_path, new_code_cell("1 / 0", id="bang"))
    with pytest.raises(run_notebooks.BookError, match=r"01_chapter.ipynb.*\n?(.*\n)*.*ZeroDivision"):
        run_notebooks.execute(tmp_path, sources, "smoke")
    assert not (tmp_path / "_build/executed/01_chapter.ipynb").exists()


def test_a_chapter_runs_with_its_profile_and_is_not_run_twice(tmp_path, capsys):
    cell = new_code_cell("import os; print(PROFILE, os.environ['FEDPROX_PROFILE'])", id="say")
    sources = book(tmp_path, cell)
    assert build_book.chapters(tmp_path) == sources
    run_notebooks.execute(tmp_path, sources, "smoke")
    notebook = run_notebooks.read_executed(tmp_path, sources)["01_chapter.ipynb"]
    assert notebook.cells[-1].outputs[0].text == "smoke smoke\n"
    run_notebooks.execute(tmp_path, sources, "smoke")
    assert "01_chapter: unchanged" in capsys.readouterr().out


# --- built pages ---------------------------------------------------------------------------------

CONFIG = "repository: {url: https://github.com/a/b, branch: main}\n"
PAGE = "<html><body><article class='bd-article'>{}</article></body></html>"


def html_complaints(tmp_path: Path, body: str) -> list[str]:
    root, html = tmp_path, tmp_path / "_build" / "html"
    html.mkdir(parents=True)
    (root / "_config.yml").write_text(CONFIG)
    (root / "notebooks").mkdir()
    (root / "notebooks" / "01.ipynb").write_text("{}")
    (html / "other.html").write_text("<p id='here'></p>")
    (html / "a.png").write_text("")
    (html / "index.html").write_text(PAGE.format(body))
    return check_html.problems(html, root)


@pytest.mark.parametrize(
    "body",
    [
        "<a href='other.html#here'>x</a> <a href='https://example.org'>y</a>",
        "<img src='a.png' alt='A curve'>",
        "<pre>$$ \\frac{1}{2}</pre> <span class='math'>\\(\\frac{1}{2}\\)</span>",
        "<a href='https://colab.research.google.com/github/a/b/blob/main/notebooks/01.ipynb'>x</a>",
    ],
)
def test_a_sound_page_passes(tmp_path, body):
    assert html_complaints(tmp_path, body) == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("<a href='gone.html'>x</a>", "dead link 'gone.html'"),
        ("<a href='../../../x.html'>x</a>", "dead link"),
        ("<a href='other.html#there'>x</a>", "dead anchor 'other.html#there'"),
        ("<img src='a.png'>", "image 'a.png' has no alternative text"),
        ("<img src='a.png' alt='_images/a.png'>", "image 'a.png' has no alternative text"),
        (
            "<script src='https://cdn.example/x.js'></script>",
            "<script> loads https://cdn.example/x.js",
        ),
        ("<img alt='x' src='//host/x.png'>", "<img> loads //host/x.png"),
        ("<link rel='stylesheet' href='https://f.example/c.css'>", "<link> loads"),
        ("<script type='module'>import 'https://esm.example/x'</script>", "<script> loads"),
        ("<script>const url = 'https://unpkg.com/thebe@1/lib.js'</script>", "<script> loads"),
        ("<style>p {background: url(https://h.example/i.png)}</style>", "<style> loads"),
        ("<p style='background: url(https://h.example/i.png)'></p>", "a style loads"),
        ("<p>then \\frac{1}{2}</p>", "unprocessed TeX"),
        (
            "<a href='https://github.com/a/b/blob/main/notebooks/02.ipynb'>x</a>",
            "notebooks/02.ipynb",
        ),
    ],
)
def test_an_unsound_page_is_refused(tmp_path, body, said):
    complaints = html_complaints(tmp_path, body)
    assert len(complaints) == 1
    assert complaints[0].startswith("index.html: ") and said in complaints[0]


def test_a_stylesheet_that_loads_from_elsewhere_is_refused(tmp_path):
    (tmp_path / "_build" / "html" / "_static").mkdir(parents=True)
    sheet = tmp_path / "_build" / "html" / "_static" / "x.css"
    sheet.write_text("/* url(https://in.a.comment) */ @import 'https://fonts.example/f.css';")
    (tmp_path / "_build" / "html" / "index.html").write_text("<p></p>")
    (tmp_path / "_config.yml").write_text(CONFIG)
    assert check_html.problems(tmp_path / "_build" / "html", tmp_path) == [
        "_static/x.css: loads https://fonts.example/f.css"
    ]


# --- the browser ---------------------------------------------------------------------------------

BROKEN = """<html><head><script>window.MathJax = {startup: {promise: Promise.resolve()}};</script>
<style>html[data-theme="dark"] p {color: #333; background: #222}</style></head>
<body><main><article class="bd-article"><p>One can read this only by day.</p>
<span class="math">\\(x\\)</span> <mjx-merror>?</mjx-merror>
<div style="width: 600px">wide</div><script>throw new Error("on purpose")</script>
</article></main></body></html>"""


def test_no_browser_is_a_clear_message(monkeypatch):
    monkeypatch.setenv("FEDPROX_CHROME", "/no/such/chrome")
    with pytest.raises(check_book.NoBrowser, match="(?s)no/such/chrome is not a program.*apt install"):
        check_book.find_browser()


def test_the_browser_refuses_what_only_it_can_see(tmp_path):
    page = tmp_path / "broken.html"
    page.write_text(BROKEN)
    try:
        with check_book.browser() as driver:
            said = "\n".join(check_book.check_page(driver, page, None))
    except check_book.NoBrowser as reason:
        pytest.skip(str(reason).splitlines()[0])
    assert "console: " in said and "on purpose" in said
    assert "not typeset: \\(x\\)" in said
    assert "MathJax error" in said
    assert "scrolls sideways: div. wide" in said
    assert "dark theme: p has contrast" in said
    assert "light theme" not in said
