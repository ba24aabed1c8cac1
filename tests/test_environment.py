"""Holds pyproject.toml (the ranges), constraints.txt (what was tested) and conda's file together."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

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


def test_the_library_alone_needs_no_book_tooling_and_no_flower():
    core = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert not core & {"jupyter-book", "papermill", "jupyterlab", "nbmake", "flwr", "selenium"}
