"""What the repository promises about itself: names, addresses, the README, the wheel."""

import io
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import nbformat
import pytest
import yaml

import fedprox_lib
from tools import build_book, gates

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
CHAPTERS = build_book.chapters(ROOT)
PACKAGES = ("fedprox_lib", "fedprox_book")


def readme_blocks(*languages: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    found = re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [block for language, block in found if language in languages]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


# --- one address, one version --------------------------------------------------------------------


def test_the_repository_has_one_address():
    address = CONFIG["repository"]["url"]
    assert PROJECT["urls"]["Repository"] == address
    assert f"git+{address}@" in gates.COLAB_GUARD
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["repository-code"] == address
    for path in [ROOT / "README.md", *ROOT.glob("book/*.md")]:
        for found in re.findall(r"https://github\.com/fedprox[\w-]*/[\w-]+", path.read_text()):
            assert found == address, path.name


def test_the_version_is_the_same_everywhere():
    version = PROJECT["version"]
    assert f"@v{version}" in gates.COLAB_GUARD
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert fedprox_lib.__version__ == version


# --- sources -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapters_are_stored_clean_and_begin_with_the_colab_cell(chapter):
    assert gates.source_problems(chapter, {"PROFILE": "smoke"}) == []


def test_every_notebook_is_in_the_book():
    assert sorted(CHAPTERS) == sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_launch_buttons_lead_to_a_file_that_git_keeps(chapter):
    ignored = subprocess.run(["git", "check-ignore", "-q", str(chapter)], cwd=ROOT)
    assert chapter.exists() and ignored.returncode != 0


def python_files() -> list[Path]:
    folders = (
        "fedprox_lib/**",
        "fedprox_book/**",
        "tools/**",
        "tests/**",
        "examples",
        "benchmarks",
        "benchmarks/peers",
    )
    return sorted(path for folder in folders for path in ROOT.glob(f"{folder}/*.py"))


def test_every_python_file_says_what_it_is_for():
    for path in python_files():
        assert path.read_text().startswith(('"""', 'r"""')), path.relative_to(ROOT)
        assert path.stem not in {"utils", "helpers", "common", "misc"}, path.relative_to(ROOT)


def test_every_module_is_in_the_api_reference():
    paths = [path.relative_to(ROOT).with_suffix("") for package in PACKAGES for path in ROOT.glob(f"{package}/**/*.py")]
    names = {".".join(path.parts).removesuffix(".__init__") for path in paths}
    described = re.findall(r"^\.\. automodule:: (\S+)$", (ROOT / "book" / "api.md").read_text(), flags=re.MULTILINE)
    assert sorted(described) == sorted(name for name in names if "._" not in name)


# --- README, Makefile, CI ------------------------------------------------------------------------


def test_python_in_the_readme_runs(tmp_path):
    code = "\n".join(readme_blocks("python"))
    environment = os.environ | {"FEDPROX_PROFILE": "smoke", "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_commands_in_the_readme_exist_and_are_what_ci_runs():
    commands = "\n".join(readme_blocks("sh", "bash", "console", "shell"))
    named = set(re.findall(r"\bmake ([a-z-]+)", commands))
    assert named <= make_targets()
    assert {"book", "test"} <= named
    ci = (ROOT / ".ci" / "run").read_text()
    assert re.findall(r"^make ([a-z-]+)$", ci, flags=re.MULTILINE) == ["book", "check-book", "test-federation", "test"]


def test_make_without_a_target_lists_the_targets():
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True)
    for target in ("book", "test", "lab", "results", "check-book", "clean"):
        assert re.search(rf"^  make {target} ", done.stdout, flags=re.MULTILINE), target


def test_an_old_python_is_refused_by_name(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1\nexit 1\n')
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "hatch_build.py"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    done = subprocess.run(["make", "book", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stdout and "Python 3.9.1" in done.stdout
    assert not (tmp_path / ".venv").exists()


# --- the wheel -----------------------------------------------------------------------------------


def test_the_wheel_holds_both_packages_and_the_records(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    packages = {path.relative_to(ROOT).as_posix() for name in PACKAGES for path in ROOT.glob(f"{name}/**/*.py")}
    packages.add("fedprox_book/paper/claims.yml")
    results = ROOT / "results"
    records = {
        f"fedprox_book/_results/{path.relative_to(results).as_posix()}"
        for path in results.rglob("*")
        if path.suffix in {".csv", ".json"}
        and not any(part.startswith(".") for part in path.relative_to(results).parts)
    }
    assert packages | records <= inside
    extra = {name for name in inside - packages - records if ".dist-info/" not in name}
    assert extra <= {f"{name}/py.typed" for name in PACKAGES}


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")
def test_the_flower_app_carries_all_that_it_imports(tmp_path):
    """A node has Flower and our dependencies; the library comes with the run, and need not be installed there."""
    build = pytest.importorskip("flwr.cli.build", reason="needs the extra `flower`")
    app = zipfile.ZipFile(io.BytesIO(build.build_fab_from_disk(ROOT)))
    library = {path.relative_to(ROOT).as_posix() for name in PACKAGES for path in ROOT.glob(f"{name}/**/*.py")}
    assert set(app.namelist()) == library | {"pyproject.toml", ".info/CONTENT"}

    app.extractall(tmp_path)
    components = tomllib.loads((tmp_path / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["components"]
    lines = [f"import sys; sys.path[:] = [{str(tmp_path)!r}, *(p for p in sys.path if p != {str(ROOT)!r})]"]
    for kind in ("ServerApp", "ClientApp"):
        module, attribute = components[kind.lower()].split(":")
        lines += [f"import {module} as apps", f"print(type(apps.{attribute}).__name__, apps.__file__)"]
    lines += ["from fedprox_lib.sweeps import from_settings; print(from_settings(dict(algorithm='FedDane', mu=0.1,"]
    lines += [
        "  partition='AsGenerated', data='synthetic_1_1', model='logistic', epochs=1, batch_size=9, lr=0.1, rounds=1,"
    ]
    lines += ["  cohort_size=5)).label)"]
    done = subprocess.run([sys.executable, "-I", "-c", "\n".join(lines)], capture_output=True, text=True)
    apps = tmp_path / "fedprox_book" / "flower_app.py"
    label = "FedDane, mu = 0.1, gradient_clients = 10"  # the paper's names are known there, too
    assert done.stdout.splitlines() == [f"ServerApp {apps}", f"ClientApp {apps}", label], done.stderr


@pytest.fixture
def stranger(tmp_path) -> tuple[Path, dict[str, str]]:
    """A Python with our dependencies but without our library, and its environment.

    It stands for Colab: pip sees the packages of this environment, but not the editable install,
    and installs into a folder of its own.
    """
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    theirs = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    (theirs / "dependencies.pth").write_text(ours + "\n")
    installed = tmp_path / "installed"
    installed.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FEDPROX_")}
    environment |= {"PYTHONPATH": str(installed), "PIP_TARGET": str(installed), "PIP_NO_DEPS": "1"}
    return python, environment | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}


def run_cells(python: Path, code: str, folder: Path, environment: dict[str, str]):
    script = folder / "cells.py"
    script.write_text(code)
    return subprocess.run([python, script], cwd=folder, env=environment, capture_output=True, text=True)


def test_a_chapter_alone_in_an_empty_folder_installs_the_library_and_runs(wheel, stranger, tmp_path):
    python, environment = stranger
    folder = tmp_path / "empty"
    folder.mkdir()
    notebook = nbformat.read(CHAPTERS[0], as_version=4)
    code = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    code += "\n\nimport fedprox_lib\nprint('came from', fedprox_lib.__file__)\n"
    done = run_cells(python, code, folder, environment | {"FEDPROX_PIP_SPEC": str(wheel)})
    assert done.returncode == 0, done.stderr
    assert f"came from {tmp_path / 'installed'}" in done.stdout


def test_elsewhere_the_colab_cell_installs_nothing(stranger, tmp_path):
    python, environment = stranger
    done = run_cells(python, gates.COLAB_GUARD, tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert not any((tmp_path / "installed").iterdir())
