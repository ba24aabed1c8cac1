"""Foreign rules, losses, planners and mixed runs: never silently wrong numbers, whatever the backend.

Each test holds the batched engine to the sequential definition for an object that a stranger may bring, and counts what
was really trained on stacked tensors.
"""

import itertools
import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from fedprox_lib import FedAvg, Federation, FedProx, LocalWork, UniformPlanner, data, engine, models, simulate, tree
from fedprox_lib.algorithms import Algorithm
from fedprox_lib.models import Model
from fedprox_lib.plan import RoundPlan
from fedprox_lib.simulation import sequential
from fedprox_lib.sweeps import Experiment, together
from fedprox_lib.sweeps.federations import federation_of

WORK = LocalWork(epochs=2, batch_size=4, lr=0.2)


@pytest.fixture
def clients(toy):
    model, train, partition = toy
    return Federation(train, train, partition, model)


@pytest.fixture
def stacked(monkeypatch):
    """How many jobs were trained on stacked tensors."""
    seen = []
    inner = engine.stacks

    def counting(jobs, most):
        seen.extend(jobs)
        return inner(jobs, most)

    monkeypatch.setattr(engine, "stacks", counting)
    return seen


def ends(federation, algorithm, backend, **changes):
    how = {"work": WORK, "rounds": 3, "seed": 0, "cohort_size": 5, "straggler_fraction": 0.5} | changes
    if federation.planner:
        del how["cohort_size"]
    *_, (state, _) = simulate(federation, algorithm, backend=backend, **how)
    return state.params["dense.weight"]


def assert_same(federation, algorithm, **changes):
    slow = ends(federation, algorithm, sequential, **changes)
    fast = ends(federation, algorithm, engine.batched, **changes)
    assert torch.allclose(slow, fast, rtol=1e-9, atol=1e-12)
    start = federation.model.init(0)["dense.weight"]
    assert not torch.allclose(slow.float(), start, rtol=1e-3)


# --- local rules that are not entry by entry -----------------------------------------------------------------------


@dataclass(frozen=True)
class Clipped(FedAvg):
    """Clipping by global norm: one number for all tensors."""

    most: float = 0.05

    @staticmethod
    def local_gradient(g, w, w_t, server, memory, hyperparameters):
        scale = torch.clamp(hyperparameters["most"] / (tree.norm(g) + 1e-12), max=1.0)
        return tree.map(lambda t: t * scale.to(t.dtype), g)


@dataclass(frozen=True)
class NormalisedProx(FedProx):
    """Inherits from a class whose rule is entry by entry, and is not."""

    @staticmethod
    def local_gradient(g, w, w_t, server, memory, hyperparameters):
        return tree.map(lambda g, w, w_t: g + hyperparameters["mu"] * (w - w_t) / (1 + (w - w_t).norm()), g, w, w_t)


@dataclass(frozen=True)
class Largest(Algorithm):
    """Keeps the largest entry of every tensor."""

    @staticmethod
    def local_gradient(g, w, w_t, server, memory, hyperparameters):
        return tree.map(lambda t: torch.where(t.abs() == t.abs().max(), t, 0.0), g)


@dataclass(frozen=True)
class RowMeans(Algorithm):
    """Centres every gradient along its first axis."""

    @staticmethod
    def local_gradient(g, w, w_t, server, memory, hyperparameters):
        return tree.map(lambda t: t - t.mean(0, keepdim=True) / 2, g)


@pytest.mark.parametrize("algorithm", [Clipped(), NormalisedProx(mu=3.0), Largest(), RowMeans()], ids=repr)
def test_a_rule_that_mixes_entries_is_trained_one_client_at_a_time(clients, algorithm, stacked):
    with pytest.warns(UserWarning, match=f"trained one client at a time: the local rule of {type(algorithm).__name__}"):
        assert_same(clients, algorithm)
    assert not stacked


# --- rules that say that they are: they run on stacked tensors -----------------------------------------------------


def rule(name, function, **fields):
    """An algorithm of a stranger, entry by entry."""

    def local_gradient(g, w, w_t, server, memory, hyperparameters):
        return tree.map(lambda *t: function(*t, hyperparameters), g, w, w_t)

    namespace = {"local_gradient": staticmethod(local_gradient), "entrywise": True, **fields}
    namespace["__annotations__"] = {"entrywise": ClassVar[bool]} | dict.fromkeys(fields, float)
    return dataclass(frozen=True)(type(name, (Algorithm,), namespace))()


FOREIGN = [
    rule("SignSGD", lambda g, w, w_t, h: torch.sign(g)),
    rule("WeightDecay", lambda g, w, w_t, h: g + h["decay"] * w, decay=0.1),
    rule("L1Prox", lambda g, w, w_t, h: g + h["mu"] * torch.sign(w - w_t), mu=0.05),
    rule("Elastic", lambda g, w, w_t, h: g + h["mu"] * (w - w_t) + h["decay"] * w, mu=0.3, decay=0.01),
    rule("ClippedByValue", lambda g, w, w_t, h: torch.clamp(g, -0.01, 0.01)),
    rule("Cubic", lambda g, w, w_t, h: g + h["mu"] * (w - w_t) ** 3, mu=5.0),
    rule("HuberProx", lambda g, w, w_t, h: g + h["mu"] * torch.clamp(w - w_t, -0.01, 0.01), mu=2.0),
    rule("Halved", lambda g, w, w_t, h: g / 2),
    rule("Tanh", lambda g, w, w_t, h: torch.tanh(10 * g)),
    rule("Sparse", lambda g, w, w_t, h: torch.where(g.abs() > 0.001, g, torch.zeros_like(g))),
]


@pytest.mark.parametrize("algorithm", FOREIGN, ids=lambda a: type(a).__name__)
def test_a_rule_that_says_it_is_entry_by_entry_runs_on_stacked_tensors(clients, algorithm, stacked):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(clients, algorithm)
    assert len(stacked) == 3 * 5


@pytest.mark.parametrize("algorithm", [FedAvg(), FedProx(mu=1.0)], ids=repr)
def test_the_librarys_own_run_on_stacked_tensors(clients, algorithm, stacked):
    assert_same(clients, algorithm)
    assert stacked


def test_a_class_that_changes_no_rule_needs_to_say_nothing(clients, stacked):
    @dataclass(frozen=True)
    class Renamed(FedProx):
        pass

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(clients, Renamed(mu=0.5))
    assert stacked


# --- models with a loss of their own -------------------------------------------------------------------------------


class Smoothed(Model):
    """Label smoothing by overriding the loss."""

    def loss(self, params, x, y):
        return torch.nn.functional.cross_entropy(self.logits(params, x), y, label_smoothing=0.3)


class Scaled(Model):
    """Another gradient than that of the loss."""

    def gradient(self, params, x, y):
        return tree.map(lambda g: 3 * g, super().gradient(params, x, y))


@pytest.mark.parametrize("kind", [Smoothed, Scaled])
def test_a_model_that_overrides_its_loss_is_trained_with_it(clients, kind, stacked):
    own = replace(clients, model=kind(*models.logistic()))
    with pytest.warns(UserWarning, match="model 'logistic' has a loss of its own"):
        assert_same(own, FedProx(mu=0.5))
    assert not stacked
    assert not torch.allclose(ends(own, FedAvg(), sequential), ends(clients, FedAvg(), sequential), rtol=1e-6)


def test_an_own_loss_is_obeyed(clients, stacked):
    def smoothed(scores, y):
        return torch.nn.functional.cross_entropy(scores, y, label_smoothing=0.3)

    own = replace(clients, model=models.logistic()._replace(own_loss=smoothed))
    with pytest.warns(UserWarning, match="has a loss of its own"):
        assert_same(own, FedProx(mu=0.5))
    assert not stacked
    same = replace(clients, model=Smoothed(*models.logistic()))
    assert torch.equal(ends(own, FedAvg(), sequential), ends(same, FedAvg(), sequential))


# --- planners that hand out one array in several ways --------------------------------------------------------------


@dataclass(frozen=True)
class Changed:
    """Another planner's rounds, with every second client's share changed."""

    planner: UniformPlanner
    change: str

    def round_plan(self, t):
        cohort = list(self.planner.round_plan(t).cohort)
        return RoundPlan(t, tuple(self.changed(work) if i % 2 else work for i, work in enumerate(cohort)))

    def changed(self, work):
        n = len(work.order)
        if self.change == "rebatched":  # the same rows in the same order, cut elsewhere
            first = int(work.batch_sizes[0])
            rest = n - first
            return replace(work, batch_sizes=np.array([first, *[3] * (rest // 3), *[rest % 3] * (rest % 3 > 0)]))
        if self.change == "one batch":
            return replace(work, batch_sizes=np.array([n]))
        if self.change == "strided":  # begins at the same address
            order = work.order[::2]
            return replace(work, order=order, batch_sizes=np.array([len(order)]))
        return replace(
            work,
            order=work.order[: work.batch_sizes[0]].repeat(2)[: work.batch_sizes[0]],
            batch_sizes=work.batch_sizes[:1],
        )


@pytest.mark.parametrize("change", ["rebatched", "one batch", "strided", "repeated"])
def test_orders_that_begin_at_one_address_are_told_apart(clients, change):
    """Both arms of a comparison in one program: one as planned, one changed, from the very same arrays."""
    drawn: dict = {}
    planner = UniformPlanner(clients.partition, WORK, 0, 5, 0.5, drawn=drawn)
    assert_same(replace(clients, planner=Changed(planner, change)), FedProx(mu=0.4))
    model, train = clients.model, clients.train
    w = model.init(0, torch.float64)
    state = engine.simulation.State(0, w, {}, {})
    jobs = []
    for each in (planner, Changed(planner, change)):
        jobs += engine.simulation.round_jobs(state, each.round_plan(1), FedProx(mu=0.4), 0.2)
    slow, fast = sequential(model, train, jobs), engine.batched(model, train, jobs)
    for a, b in zip(slow, fast, strict=True):
        assert torch.allclose(a["dense.weight"], b["dense.weight"], rtol=1e-9, atol=1e-12)
    assert any(not torch.equal(a["dense.bias"], b["dense.bias"]) for a, b in itertools.pairwise(slow))


# --- runs that are not of one kind ---------------------------------------------------------------------------------


def test_runs_on_different_rows_or_models_do_not_train_on_each_others(quick):
    """Federations that were prepared one by one share nothing; neither do two models or two batch sizes."""
    runs = [
        replace(quick, rounds=2),
        replace(quick, rounds=2, data_seed=1),
        replace(quick, rounds=2, work=LocalWork(2, 7, 0.05)),
        replace(quick, rounds=1, model="cnn", train_rows=60, cohort_size=2, work=LocalWork(1, 10, 0.05)),
    ]
    federations = [federation_of(e) for e in runs]
    mixed: dict[str, list] = {e.id: [] for e in runs}
    for done in together(runs, backend=engine.batched, federations=federations):
        mixed[done.experiment.id].append(done.measured["train_loss"])
    for e, f in zip(runs, federations, strict=True):
        alone = [done.measured["train_loss"] for done in together([e], backend=engine.batched, federations=[f])]
        assert mixed[e.id] == pytest.approx(alone, rel=1e-5)
    assert isinstance(runs[0], Experiment) and len({round(losses[1], 6) for losses in mixed.values()}) == 4


# --- the weight of a reply -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weighing:
    """Another planner's rounds under other weights."""

    planner: UniformPlanner
    weight_of: dict

    def round_plan(self, t):
        plan = self.planner.round_plan(t)
        return RoundPlan(t, tuple(replace(work, weight=self.weight_of[work.client]) for work in plan.cohort))


@pytest.mark.parametrize("backend", [sequential, engine.batched], ids=["sequential", "batched"])
@pytest.mark.parametrize("weights", ["n_k", "plain", "odd"])
def test_the_average_uses_the_planners_weights_and_rules_see_both(clients, weights, backend):
    seen = []

    @dataclass(frozen=True)
    class Watching(FedAvg):
        keeps_partial_work: ClassVar[bool] = True

        @staticmethod
        def server_update(w_t, server, replies, hyperparameters, num_clients):
            seen.append(replies)
            return Algorithm.server_update(w_t, server, replies, hyperparameters, num_clients)

    n = clients.partition.sizes
    given = {"n_k": dict.fromkeys(range(len(n))), "plain": dict.fromkeys(range(len(n)), 1.0)}
    chosen = given.get(weights, {k: 0.5 + k for k in range(len(n))})
    planner = Weighing(UniformPlanner(clients.partition, WORK, 0, 4, 0.0), chosen)
    states = [
        s
        for s, _ in simulate(
            replace(clients, planner=planner), Watching(), work=WORK, rounds=1, seed=0, backend=backend
        )
    ]
    [replies] = seen
    cohort = sorted(work.client for work in planner.round_plan(1).cohort)
    assert replies.num_examples.tolist() == [n[k] for k in cohort]
    p = np.array([n[k] if chosen[k] is None else chosen[k] for k in cohort], dtype=float)
    assert replies.weights.tolist() == p.tolist()
    mean = torch.tensordot(torch.from_numpy(p / p.sum()), replies.delta["dense.weight"].double(), dims=1)
    moved = states[1].params["dense.weight"].double() - states[0].params["dense.weight"].double()
    assert torch.allclose(moved, mean, rtol=1e-4, atol=1e-7)


def test_rows_come_from_where_the_partition_says(toy):
    """A federation of tensors that start elsewhere in memory: views are copied nowhere by address."""
    model, train, partition = toy
    shifted = data.Examples(torch.cat([train.x[:3], train.x])[3:], torch.cat([train.y[:3], train.y])[3:])
    assert_same(Federation(shifted, shifted, partition, model), FedProx(mu=0.2))
