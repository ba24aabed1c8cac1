"""Holds pyproject.toml (the ranges), constraints.txt (what was tested) and conda's file together."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tools import pin_versions

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALLED_EXTRAS = ("notebooks", "build", "flower", "dev")


def direct_dependencies() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    texts = PROJECT["dependencies"] + [text for texts in extras.values() for text in texts]
    return [found for text in texts if (found := Requirement(text)).name != PROJECT["name"]]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("requirement", direct_dependencies(), ids=str)
def test_every_dependency_is_pinned_inside_its_range(requirement):
    version = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version)


def test_pins_are_plain_versions_that_fit_any_machine():
    for name, version in pins().items():
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), f"{name}=={version}"
        assert not name.startswith(("nvidia-", "cuda-")), f"{name} would force a CUDA build"
        assert name != "triton"
    assert "://" not in (ROOT / "constraints.txt").read_text()


def test_conda_brings_python_and_pip_and_nothing_else():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert [re.match(r"\w+", name)[0] for name in conda] == ["python", "pip"]
    assert pip == {"pip": ["-c constraints.txt", f"-e .[{','.join(INSTALLED_EXTRAS)}]"]}


def test_the_makefile_installs_the_same_extras():
    assert f"-c constraints.txt -e '.[{','.join(INSTALLED_EXTRAS)}]'" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("version", ["3.11.7", "3.12.0", "3.13.15"])
def test_python_versions(version):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = environment["dependencies"][0].removeprefix("python")
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)
    assert SpecifierSet(conda).contains(version)


def test_make_pins_follows_the_same_extras_and_does_not_pin_ourselves():
    assert pin_versions.EXTRAS == INSTALLED_EXTRAS
    assert PROJECT["name"] not in pins()


def brought(extra: str) -> set[str]:
    """Packages that we ask for by name where this extra is installed ("" for none)."""
    found: set[str] = set()
    for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"].get(extra, []):
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            found |= set().union(*map(brought, requirement.extras))
        else:
            found.add(canonicalize_name(requirement.name))
    return found


def test_the_library_alone_needs_numpy_and_torch():
    assert brought("") == {"numpy", "torch"}


def test_the_chapters_need_no_book_tooling_and_no_flower():
    assert not brought("chapters") & {"jupyter-book", "papermill", "jupyterlab", "nbmake", "flwr", "selenium"}


def imported(path: Path) -> set[str]:
    """Packages that a module or the code cells of a notebook import, without ours and Python's own."""
    sources = [path.read_text()]
    if path.suffix == ".ipynb":
        sources = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    found = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - {"fedprox_lib", "fedprox_book"}


NOT_BY_NAME = {
    "fedprox_lib/flower/apps.py": {"ray"},  # flwr[simulation] is Flower on Ray
    "notebooks/17_federation.ipynb": {"flwr"},  # it installs Flower itself
}


@pytest.mark.parametrize(
    ("extra", "files"),
    [
        ("digits", "fedprox_lib/*.py"),
        ("digits", "fedprox_lib/algorithms/*.py"),
        ("chapters", "fedprox_lib/sweeps/**/*.py"),
        ("flower", "fedprox_lib/flower/**/*.py"),
        ("chapters", "fedprox_book/**/*.py"),
        ("chapters", "notebooks/*.ipynb"),
    ],
)
def test_every_package_that_is_imported_is_asked_for_by_name(extra, files):
    """What one package happens to bring along may be gone with its next version."""
    distributions = metadata.packages_distributions()
    paths = sorted(ROOT.glob(files))
    assert paths
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        for package in imported(path) - NOT_BY_NAME.get(name, set()):
            owners = set(map(canonicalize_name, distributions[package]))
            assert owners & brought(extra), f"{name} imports {package}, which [{extra}] does not ask for"


def test_errors_name_extras_that_exist():
    code = "".join(path.read_text() for path in ROOT.glob("fedprox_*/**/*.py"))
    named = set(re.findall(r'brought_by\("([\w-]+)"\)', code))
    assert {"digits", "chapters", "flower"} <= named <= PROJECT["optional-dependencies"].keys()
