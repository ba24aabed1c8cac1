"""The examples: they say what they show, stay short, run, and compute what the library and the formulas say."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from copy import copy, deepcopy
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedprox_lib import FedAvg, Federation, FedProx, LabelShards, LocalWork, State, UniformPlanner, models, tree
from fedprox_lib.data import Examples
from fedprox_lib.rng import stream
from fedprox_lib.simulation import sequential, simulate
from fedprox_lib.sweeps import registry

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LINES = {"plain_fedprox": 100, "own_loop": 60, "flower_client": 60}


def example(name: str) -> ModuleType:
    """The file as a module, without running what it does as a script."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, timeout: float) -> subprocess.CompletedProcess:
    """The file as a script, from the root of the repository; it must succeed."""
    done = subprocess.run(
        [sys.executable, f"examples/{name}.py"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done


# --- what a reader sees first -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_first_line_says_what_is_shown(path):
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = said.partition("\n")[0]
    assert len(first.split()) >= 8 and first.endswith("."), first
    assert f"Run: python examples/{path.name}" in said


@pytest.mark.parametrize("name", LINES)
def test_they_stay_short(name):
    assert len((ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= LINES[name]


def test_plain_fedprox_needs_pytorch_alone():
    body = ast.parse((ROOT / "examples" / "plain_fedprox.py").read_text(encoding="utf-8")).body
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - {"typing"} == {"torch"}
    *functions, script = body
    assert isinstance(script, ast.If) and not any("fedprox_lib" in ast.dump(node) for node in functions[1:])


# --- nobody needs a trick ---------------------------------------------------------------------------------------------


def tricks(source: str) -> Iterator[str]:
    """Where something imported is changed or registered, and where an argument is passed that means nothing."""
    program = ast.parse(source)
    imported = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(program)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    } - {"os"}  # its environment is there to be set

    def root(node: ast.AST) -> str:
        while isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        return node.id if isinstance(node, ast.Name) else ""

    changing = {"update", "setdefault", "append", "extend", "insert", "add", "pop", "clear", "register"}
    for node in ast.walk(program):
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Attribute | ast.Subscript) and root(t) in imported for t in targets):
            yield f"changes what it imported: {ast.unparse(node)}"
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else root(called)
            if name in changing and root(called) in imported or name in {"register", "setattr"}:
                yield f"changes what it imported: {ast.unparse(node)}"
            for given in [*node.args, *(keyword.value for keyword in node.keywords)]:
                empty = isinstance(given, ast.Dict | ast.List | ast.Tuple) and not ast.unparse(given).strip("{}[]()")
                if empty or isinstance(given, ast.Constant) and given.value in (None, ...):
                    yield f"passes a dummy: {ast.unparse(node)}"


@pytest.mark.parametrize(
    "source",
    [
        "from fedprox_lib import models\nmodels.MODELS['mlp'] = 1",
        "from fedprox_lib.sweeps import registry\nregistry.MODELS.update(mlp=1)",
        "from fedprox_lib.sweeps.registry import register\nregister(1)",
        "import fedprox_lib\nsetattr(fedprox_lib, 'x', 1)",
        "f(g, w, {}, 1)",
        "f(memory=[])",
        "f(1, None)",
    ],
)
def test_tricks_are_seen(source):
    assert list(tricks(source))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_no_example_needs_a_trick(path):
    assert list(tricks(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("name", LINES)
def test_importing_one_registers_nothing(name):
    if name == "flower_client":
        pytest.importorskip("flwr", reason="needs the extra `flower`")
    before = {key: copy(value) for key, value in vars(registry).items() if key.isupper()}
    example(name)
    assert before == {key: value for key, value in vars(registry).items() if key.isupper()}


# --- plain_fedprox: the library's numbers -----------------------------------------------------------------------------

plain = example("plain_fedprox")


def logistic() -> nn.Module:
    """The library's logistic regression as a module, with its names."""
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), dense=nn.Linear(784, 10)))


@pytest.mark.parametrize(
    ("network", "model", "work", "cohort_size", "fraction"),
    [
        (logistic, models.logistic(), LocalWork(epochs=5, batch_size=4, lr=0.05), 6, 0.5),
        (logistic, models.logistic(), LocalWork(epochs=2, batch_size=4, lr=0.05), 3, 1.0),
        (plain.CNN, models.cnn(), LocalWork(epochs=2, batch_size=8, lr=0.02), 3, 0.5),
    ],
    ids=["logistic", "only stragglers", "cnn"],
)
def test_given_the_same_draws_the_library_comes_to_the_same_weights(toy, network, model, work, cohort_size, fraction):
    _, rows, partition = toy
    planner = UniformPlanner(partition, work, 0, cohort_size, fraction)
    cohorts = [
        [plain.Work(w.num_examples, w.straggler, [tuple(rows.take(b)) for b in w.batches()]) for w in plan.cohort]
        for plan in (planner.round_plan(t) for t in (1, 2, 3))
    ]
    assert any(w.is_straggler for cohort in cohorts for w in cohort)
    federation = Federation(rows, rows, partition, model, planner)
    start, ends = model.init(0, torch.float64), {}
    for algorithm, mu in ((FedAvg(), 0.0), (FedProx(mu=0.0), 0.0), (FedProx(mu=5.0), 5.0)):
        state = State(0, start, algorithm.init_server(start), {})
        found, module = start, network().double()
        rounds = simulate(federation, algorithm, work=work, rounds=3, seed=0, every=3, backend=sequential, state=state)
        for cohort, (expected, row) in zip(cohorts, rounds, strict=True):
            found = plain.run_round(module, found, cohort, work.lr, mu, keep=algorithm.keeps_partial_work)
            moved = tree.norm(tree.subtract(expected.params, start))
            assert tree.norm(tree.subtract(found, expected.params)) <= 1e-10 * moved
            assert not row or plain.accuracy(module, found, *rows) == row["test_accuracy"]  # measured at the end
        ends[f"{algorithm}"] = found
    dropped, kept, held = ends.values()
    assert tree.norm(tree.subtract(dropped, kept)) > 1e-2 and tree.norm(tree.subtract(kept, held)) > 1e-2
    assert (tree.norm(tree.subtract(dropped, start)) == 0) == (fraction == 1.0)


def test_a_client_leaves_what_it_was_sent_and_returns_a_copy(toy):
    module, (x, y) = logistic().double(), toy[1]
    w_t = deepcopy(dict(module.state_dict()))
    sent, work = deepcopy(w_t), plain.Work(60, False, [(x, y)] * 3)
    ends = [plain.train_client(module, w_t, work, lr, 0.1) for lr in (0.1, 0.2)]
    assert all(torch.equal(w_t[name], w) for name, w in sent.items())
    assert tree.norm(tree.subtract(*ends)) > 1e-2


def test_the_network_is_that_of_mcmahan_et_al():
    assert sum(w.numel() for w in plain.CNN().parameters()) == 1_663_370


def test_shards_are_dealt_as_the_librarys():
    labels = torch.randperm(97, generator=torch.Generator().manual_seed(0)) % 10
    deal = torch.from_numpy(stream(3, "partition").permutation(14).reshape(7, 2))
    expected = LabelShards(num_clients=7).split(labels.numpy(), data_seed=3).rows
    assert [rows.tolist() for rows in plain.label_shards(labels, deal)] == [rows.tolist() for rows in expected]


def test_stragglers_do_1_to_e_epochs_and_the_others_all():
    torch.manual_seed(0)
    numbers = torch.arange(40).split([1, 4, 7, 12, 16])
    clients = [(rows, -rows) for rows in numbers]
    epochs_seen, clients_seen = [], set()
    for _ in range(200):
        cohort = plain.draw_cohort(clients, size=4, stragglers=2, epochs=3, batch_size=5)
        assert [work.is_straggler for work in cohort] == [True, True, False, False]
        for work in cohort:
            x, y = (torch.cat(part) for part in zip(*work.batches, strict=True))
            held = next(rows for rows in numbers if x[0] in rows)
            passes = x.view(-1, work.num_examples)  # one line per epoch: each a shuffle of all rows
            assert work.num_examples == len(held) and torch.equal(y, -x)
            assert all(torch.equal(line.sort().values, held) for line in passes)
            assert len(work.batches) == len(passes) * -(-len(held) // 5) and max(len(b) for b, _ in work.batches) <= 5
            assert work.is_straggler or len(passes) == 3
            epochs_seen += [len(passes)] * work.is_straggler
            clients_seen.add(int(held[0]))
    assert len(clients_seen) == 5
    assert all(epochs_seen.count(number) == pytest.approx(400 / 3, rel=0.25) for number in (1, 2, 3))


@pytest.mark.slow
def test_plain_fedprox_runs():
    found = re.findall(r"^round (\d), (.+): test accuracy ([\d.]+)%$", run("plain_fedprox", 600).stdout, re.MULTILINE)
    best = {arm: max(float(accuracy) for _, name, accuracy in found if name == arm) for _, arm, _ in found}
    assert len(found) == 15 and list(best) == ["FedAvg", "FedProx, mu = 0", "FedProx, mu = 1"]
    assert min(best["FedProx, mu = 0"], best["FedProx, mu = 1"]) > best["FedAvg"]  # nine of ten are stragglers


# --- own_loop ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def few() -> Examples:
    """Rows of four classes in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 1, 28, 28, generator=generator, dtype=torch.float64)
    return Examples(x, torch.arange(24) % 4)


def gradients(model: nn.Module, w: dict, x: torch.Tensor, y: torch.Tensor) -> dict:
    """Of the mean cross-entropy at w, without any term."""
    leaves = {name: each.detach().clone().requires_grad_() for name, each in w.items()}
    loss = nn.functional.cross_entropy(torch.func.functional_call(model, leaves, (x,)), y)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def test_the_pull_in_the_own_loop_goes_past_clipping_into_the_momentum(few):
    """Three full-batch steps, by hand: v <- 0.9 v + clip(g) + mu (w - w_t), w <- w - lr v."""
    model, mu = logistic().double(), 2.0
    start = deepcopy(dict(model.state_dict()))
    example("own_loop").train_client(model, DataLoader(TensorDataset(*few), batch_size=24, shuffle=True), mu, epochs=3)
    w, v = start, {name: torch.zeros_like(each) for name, each in start.items()}
    for _ in range(3):
        g = gradients(model, w, *few)
        norm = tree.norm(g)
        assert norm > 1.0
        g = {name: each / (norm + 1e-6) for name, each in g.items()}  # PyTorch's clipping
        v = tree.map(lambda v, g, w, w_t: 0.9 * v + g + mu * (w - w_t), v, g, w, start)
        w = tree.map(lambda w, v: w - 0.02 * v, w, v)
    found = dict(model.state_dict())
    assert tree.norm(tree.subtract(found, w)) <= 1e-10 * tree.norm(tree.subtract(w, start))


def test_own_loop_runs_and_clients_drift_less_the_larger_mu_is():
    lines = re.findall(r"^mu = ([\d.]+): drift by round ([\d. ]+) \| test accuracy", run("own_loop", 300).stdout, re.M)
    drifts = {float(mu): [float(drift) for drift in listed.split()] for mu, listed in lines}
    assert list(drifts) == [0.0, 0.1, 1.0] and all(len(listed) == 5 for listed in drifts.values())
    assert all(free > weak > strong for free, weak, strong in zip(*drifts.values(), strict=True))


# --- flower_client ----------------------------------------------------------------------------------------------------


def test_the_term_of_the_flower_client_is_the_closed_form(few, monkeypatch):
    """The strategy sends mu; two full-batch steps: w <- w - lr g(w_t), then w <- w - lr (g(w) + mu (w - w_t))."""
    pytest.importorskip("flwr", reason="needs the extra `flower`")
    from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_run_id", "_task_id", "_node_id"):  # whose messages these are; a run sets it
        monkeypatch.setattr(TaskIdentity, name, 1)
    flower, mu, lr = example("flower_client"), 0.7, 0.1
    monkeypatch.setattr(flower.data, "digits", lambda: (few, few))
    monkeypatch.setattr(flower, "model", flower.model.double())
    w_t = {name: w.clone() for name, w in flower.model.state_dict().items()}

    class Grid:
        def get_node_ids(self):
            return [11, 12]

    config = ConfigRecord({"lr": lr, "epochs": 2, "batch-size": 100})
    fedprox = flower.strategy.FedProx(proximal_mu=mu)
    message, _ = fedprox.configure_train(1, ArrayRecord(w_t), config, Grid())
    context = Context(1, message.metadata.dst_node_id, {"partition-id": 1, "num-partitions": 2}, RecordDict(), {})
    reply = flower.client_app(message, context).content
    assert reply["metrics"]["num-examples"] == 12  # rows of the classes 2 and 3

    x, y = few.x[few.y >= 2], few.y[few.y >= 2]
    step = tree.map(lambda w, g: w - lr * g, w_t, gradients(flower.model, w_t, x, y))
    moved = torch.cat([w.flatten() for w in tree.subtract(step, w_t).values()])
    assert (moved > 0).any() and (moved < 0).any()  # on both sides of w_t
    g = gradients(flower.model, step, x, y)
    expected = tree.map(lambda w, g, w_t: w - lr * (g + mu * (w - w_t)), step, g, w_t)
    found = reply["arrays"].to_torch_state_dict()
    assert tree.norm(tree.subtract(found, expected)) <= 1e-12 * tree.norm(tree.subtract(expected, w_t))


@pytest.mark.federation
def test_flower_client_runs_in_flowers_simulation():
    pytest.importorskip("flwr", reason="needs the extra `flower`")
    done = run("flower_client", 600)
    assert done.stderr.count("Received 5 results and 0 failures") == 5
    accuracies = [float(found) for found in re.findall(r"\d: \{'test-accuracy': '([\d.e+-]+)'\}", done.stderr)]
    assert len(accuracies) == 6 and accuracies[-1] > 0.5 > accuracies[0]
