"""The import block tells the room: each module imports from rows above it, and nothing else."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fedprox_lib"

LAYERS = [
    ["rng", "tree", "profile", "records", "statistics"],
    ["data", "partition", "models", "algorithms.base"],
    [
        "plan",
        "synthetic",
        "diagnostics",
        *(f"algorithms.{name}" for name in ("fedavg", "fedprox", "scaffold", "fedavgm", "fedadam")),
    ],
    ["algorithms.adaptive", "algorithms.feddane"],
    ["algorithms", "authors_plan"],
    ["experiment"],
    ["federation", "sweeps"],
    ["sweeps_paper"],
    ["simulate", "baselines"],
    ["engine"],
    ["training"],
    ["parallel", "authors"],
    ["results"],
    ["audit_table", "claim_statistics", "theory"],
    ["audit_blog", "audit_later"],
    ["audit", "claims", "flower_server"],
    ["flower"],
    ["figures"],
    ["figures_speed", "figures_compare", "figures_paper"],
]
MAY_IMPORT = {
    "rng": {"numpy"}, "partition": {"numpy"}, "plan": {"numpy"}, "profile": set(), "records": {"pandas"},
    "statistics": {"numpy", "pandas", "scipy"}, "experiment": set(), "sweeps": set(), "sweeps_paper": set(),
    "synthetic": {"numpy", "torch"}, "authors_plan": {"numpy"}, "authors": {"numpy", "torch", "tqdm"},
    "theory": {"pandas"}, "claims": {"numpy", "pandas", "yaml"}, "claim_statistics": {"numpy", "pandas"},
    "baselines": {"numpy", "torch"}, "audit_table": {"pandas", "tqdm"}, "audit_blog": {"numpy", "pandas"},
    "audit_later": {"numpy", "pandas"}, "audit": {"pandas"}, "flower": {"flwr", "ray"}, "flower_server": {"flwr"},
    "figures": {"numpy", "pandas", "matplotlib", "seaborn", "IPython"},
    "figures_speed": {"numpy", "pandas", "matplotlib"}, "figures_compare": {"numpy", "pandas", "matplotlib"},
    "figures_paper": {"numpy", "pandas", "matplotlib"},
}  # fmt: skip
STANDARD = set(__import__("sys").stdlib_module_names)


def modules():
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "__init__.py" and "_results" not in path.parts
    }


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = modules()
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full.removeprefix("fedprox_lib.") in names else node.module


def test_every_module_has_its_layer():
    assert sorted(modules()) == sorted(name for layer in LAYERS for name in layer)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_upwards(name):
    rank = {module: i for i, layer in enumerate(LAYERS) for module in layer}
    for target in imports(modules()[name]):
        if target.startswith("fedprox_lib."):
            assert rank[target.removeprefix("fedprox_lib.")] < rank[name], f"{name} imports {target}"
        elif name in MAY_IMPORT and target.split(".")[0] not in STANDARD:
            assert target.split(".")[0] in MAY_IMPORT[name], f"{name} may not import {target}"


@pytest.mark.parametrize("name", sorted(modules()))
def test_files_say_what_they_are_and_stay_short(name):
    source = modules()[name].read_text()
    tree = ast.parse(source)
    assert len(ast.get_docstring(tree) or "") > 60
    prose: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            prose |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = dict(enumerate(source.splitlines(), 1))
    code = sum(bool(t.strip()) and not t.strip().startswith("#") for i, t in lines.items() if i not in prose)
    assert code <= 200, f"{name} has {code} lines of code"


RE_ENACTS_THE_AUTHORS = {"synthetic", "authors_plan"}
"""They need NumPy's legacy generator and Python's own, as private instances."""


@pytest.mark.parametrize("name", sorted(modules()))
def test_randomness_comes_from_streams(name):
    """No global generator is read, seeded or drawn from. ruff's NPY002 sees NumPy's; this sees torch's and Python's."""
    source = modules()[name].read_text()
    assert not re.search(r"torch\.manual_seed|torch\.rand(n|int|perm)?\((?![^)]*generator=)", source)
    if name in RE_ENACTS_THE_AUTHORS:
        used = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
        drawn = {name for name in used if re.match(r"(np\.|numpy\.)?random\.", name)}
        assert drawn <= {"np.random.RandomState", "random.Random"}
        assert not re.search(r"from (numpy\.)?random import|from numpy import random", source)
    else:
        assert not re.search(r"^\s*(import random|from random import)", source, re.M)
        if name != "rng":
            assert not re.search(r"np\.random\.(?!Generator)", source)
