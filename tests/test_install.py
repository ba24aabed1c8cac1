"""What pip gives to somebody with nothing: the core alone, or what the chapters need; and what an import costs."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def outside() -> dict[str, str]:
    """The environment without what would lead a program back to this checkout."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("FEDPROX_", "PYTHON"))}
    return ours | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}


class Environment(NamedTuple):
    """A virtual environment that sees nothing of ours but what pip installed into it."""

    folder: Path

    def python(self, *words: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess:
        # -I: neither the current folder nor the user's own packages.
        command = [self.folder / "bin" / "python", "-I", *words]
        cwd = cwd or self.folder
        return subprocess.run(command, cwd=cwd, env=outside() | variables, capture_output=True, text=True)

    def pip(self, *words: str) -> subprocess.CompletedProcess:
        return self.python("-m", "pip", *words)

    def install(self, *what: str) -> subprocess.CompletedProcess:
        # Compiling all of torch would take longer than installing it.
        return self.pip("install", "--quiet", "--no-compile", "-c", str(ROOT / "constraints.txt"), *what)

    def packages(self) -> set[str]:
        lines = self.pip("list", "--format=freeze").stdout.split()
        return {str(canonicalize_name(line.split("==")[0])) for line in lines}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Iterator[Callable[[str], Environment]]:
    """Make an environment with the wheel and one of its extras ("" for none), and write down what pip put there."""
    folder = tmp_path_factory.mktemp("environments")
    venv.create(folder / "torch", with_pip=True, symlinks=True)
    # First, as in the Makefile: where pip is offered a CPU build of torch, what comes after keeps it.
    done = Environment(folder / "torch").install("torch")
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        pytest.skip(f"pip does not get torch from a package index: {errors[0] if errors else done.stderr[-200:]}")

    def make(extra: str) -> Environment:
        name = extra or "core"
        # Hard links, since torch is big. pip replaces files and never writes into them.
        shutil.copytree(folder / "torch", folder / name, symlinks=True, copy_function=os.link)
        environment = Environment(folder / name)
        done = environment.install(f"{wheel}[{extra}]" if extra else str(wheel))
        assert done.returncode == 0, done.stderr
        (tmp_path_factory.getbasetemp() / f"pip-list-{name}.txt").write_text(environment.pip("list").stdout)
        return environment

    yield make
    shutil.rmtree(folder)  # pytest keeps the folders of three runs


# --- the core ------------------------------------------------------------------------------------

TRAINING = """
import numpy as np
import torch

import fedprox_lib
from fedprox_lib import IID, Examples, Federation, FedProx, LocalWork, batched, models, sequential, simulate

rng = np.random.default_rng(0)
x = rng.standard_normal((600, 20)).astype(np.float32)
y = (x @ rng.standard_normal((20, 3))).argmax(1)
train, test = (Examples(torch.from_numpy(x[part]), torch.from_numpy(y[part])) for part in (slice(500), slice(500, 600)))
clients = Federation(train, test, IID(num_clients=12).split(train.labels, data_seed=0), models.logistic(20, 3))
last = {}
for backend in (sequential, batched):
    work = LocalWork(epochs=3, batch_size=10, lr=0.1)
    settings = {"rounds": 8, "cohort_size": 5, "straggler_fraction": 0.4, "seed": 0}
    run = list(simulate(clients, FedProx(mu=0.1), work=work, backend=backend, **settings))
    assert [state.round for state, _ in run] == list(range(9))
    assert run[0][1]["test_accuracy"] < 0.6 < 0.85 < run[-1][1]["test_accuracy"], run[-1][1]
    last[backend] = run[-1][0].params
for name, w in last[sequential].items():
    assert torch.allclose(w, last[batched][name], atol=1e-5), name
print(fedprox_lib.__file__)
"""

MISSING = {
    "fedprox_lib.data.digits()": "digits",
    "import fedprox_lib.sweeps": "chapters",
    "import fedprox_lib.flower": "flower",
}
"""What fails in the core alone -> the extra that brings what it lacks."""


@pytest.fixture(scope="module")
def core(installed) -> Environment:
    return installed("")


@pytest.mark.slow
def test_the_core_needs_numpy_and_torch_and_nothing_that_an_extra_brings(core):
    optional = {Requirement(text).name for texts in EXTRAS.values() for text in texts} - {PROJECT["name"]}
    present = core.packages()
    assert {"fedprox-lib", "numpy", "torch"} <= present
    assert not present & set(map(canonicalize_name, optional))
    modules = ("IPython", "flwr", "matplotlib", "mlxtend", "pandas", "scipy", "torchvision", "tqdm", "yaml")
    done = core.python("-c", f"from importlib.util import find_spec; print([m for m in {modules} if find_spec(m)])")
    assert done.stdout == "[]\n", done


@pytest.mark.slow
def test_made_up_arrays_train_in_the_core_on_both_backends(core, tmp_path):
    done = core.python("-c", TRAINING, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(core.folder)


@pytest.mark.slow
@pytest.mark.parametrize("code", MISSING)
def test_what_the_core_lacks_is_named_with_the_extra_that_brings_it(core, code):
    done = core.python("-c", f"import fedprox_lib; {code}")
    assert done.returncode == 1
    said = rf'ModuleNotFoundError: \w+ is not installed: pip install "fedprox-lib\[{MISSING[code]}\]" brings it\.'
    assert re.fullmatch(said, done.stderr.splitlines()[-1]), done.stderr


# --- the chapters --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def complete(installed) -> Environment:
    return installed("chapters")


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["smoke", "published"])
def test_a_chapter_runs_as_a_script_from_the_wheel(complete, profile, tmp_path):
    notebook = nbformat.read(ROOT / "notebooks" / "01_federated_data.ipynb", as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    code += ["import fedprox_book, fedprox_lib", "print(fedprox_lib.__file__, fedprox_book.__file__, profile.folder)"]
    (tmp_path / "chapter.py").write_text("\n\n".join(code))
    done = complete.python("chapter.py", cwd=tmp_path, FEDPROX_PROFILE=profile)
    assert done.returncode == 0, done.stderr
    library, book, records = map(Path, done.stdout.splitlines()[-1].split())
    assert library.is_relative_to(complete.folder) and book.is_relative_to(complete.folder)
    assert (records == book.parent / "_results") == (profile == "published")


@pytest.mark.slow
def test_the_chapters_leave_flower_and_the_tools_of_the_book_alone(complete):
    others = {Requirement(text).name for extra in ("flower", "notebooks", "build") for text in EXTRAS[extra]}
    assert not complete.packages() & (set(map(canonicalize_name, others)) - {PROJECT["name"]})
    done = complete.python("-c", "import fedprox_lib.flower")
    assert re.search(r"flwr is not installed: .*fedprox-lib\[flower\]", done.stderr), done


# --- the import ----------------------------------------------------------------------------------


def run_here(code: str) -> str:
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    return subprocess.run(command, env=outside(), capture_output=True, text=True, check=True).stdout


def test_importing_the_library_imports_numpy_and_torch_and_no_other_package():
    code = """
import torch
before = set(sys.modules)
import fedprox_lib
new = [name for name in set(sys.modules) - before if getattr(sys.modules[name], "__file__", None)]
print(*{name.split(".")[0] for name in new} - sys.stdlib_module_names)
"""
    imported = {name for name in run_here(code).split() if not name.startswith("_")}
    assert imported - {"numpy"} == {"fedprox_lib"}


def test_importing_the_library_costs_hardly_more_than_importing_torch():
    """In processor time of fresh processes, the best of each: what else runs here can only add to it."""

    def seconds(package: str) -> float:
        code = f"import time; start = time.process_time(); import {package}; print(time.process_time() - start)"
        return float(run_here(code))

    best = {"torch": float("inf"), "fedprox_lib": float("inf")}
    for pair in range(15):
        best = {package: min(least, seconds(package)) for package, least in best.items()}
        if pair >= 4 and best["fedprox_lib"] <= 1.1 * best["torch"]:
            return
    raise AssertionError(
        f"{best['fedprox_lib']:.3f} s, torch alone {best['torch']:.3f} s: at most 10 % more is allowed."
    )
