"""The fast path computes what the definition computes: every algorithm, ragged clients, whole sweeps at once."""

import itertools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedprox_book.paper import AdaptiveFedProx, FedDane
from fedprox_lib import engine, models, simulation, tree
from fedprox_lib.algorithms import FedAdam, FedAvg, FedAvgM, FedProx, Scaffold
from fedprox_lib.data import Examples
from fedprox_lib.federation import Gradients
from fedprox_lib.partition import IID, Dirichlet, LabelShards, Partition
from fedprox_lib.plan import ClientWork, LocalWork, UniformPlanner
from fedprox_lib.rng import stream
from fedprox_lib.sweeps import experiment, lockstep, parallel, registry, results
from fedprox_lib.sweeps.federations import PreparedFederation, federation_of, federations_of, measure_together
from fedprox_lib.sweeps.registry import ALGORITHMS

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
EXAMPLES = [
    FedAvg(), FedProx(mu=0.7), AdaptiveFedProx(mu=0.3), FedDane(mu=0.4, gradient_clients=5), Scaffold(server_lr=0.9),
    FedAvgM(momentum=0.5), FedAdam(server_lr=0.02),
]  # fmt: skip


def apart(a, b, start):
    """How far two results are from each other, relative to how far they are from the start."""
    moved = tree.norm(tree.subtract(b, start))
    assert moved > 0
    return float(tree.norm(tree.subtract(a, b)) / moved)


def train(toy, algorithm, backend, dtype, *, model=None, rounds=3, fraction=0.5, epochs=3, batch_size=4):
    """The 7 ragged clients of the fixture: one of 1 row, last batches of 1, 2 and 3 rows."""
    linear, train, partition = toy
    model = model or linear
    planner = UniformPlanner(partition, LocalWork(epochs, batch_size, 0.05), 0, 6, fraction)
    params = model.init(0, dtype)
    state = simulation.State(0, params, algorithm.init_server(params), {})
    train = Examples(train.x.to(dtype), train.y)
    for t in range(1, rounds + 1):
        state = simulation.run_round(
            state, planner.round_plan(t), train, model=model, algorithm=algorithm, lr=0.05, num_clients=7,
            backend=backend, gradients=Gradients(model, train, partition, seed=0),
        )  # fmt: skip
    return params, state


def test_every_algorithm_is_among_the_examples():
    assert {type(a).__name__ for a in EXAMPLES} == set(ALGORITHMS)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("algorithm", EXAMPLES, ids=repr)
def test_batched_is_sequential(toy, algorithm, dtype, monkeypatch):
    monkeypatch.setattr(engine, "MOST_STEPS", 5)  # so that borders are crossed
    start, slow = train(toy, algorithm, simulation.sequential, dtype)
    _, fast = train(toy, algorithm, engine.batched, dtype)
    assert apart(fast.params, slow.params, start) <= TOLERANCE[dtype]
    assert fast.memories.keys() == slow.memories.keys()
    for client, memory in slow.memories.items():
        assert apart(fast.memories[client], memory, tree.map(torch.zeros_like, memory)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
@pytest.mark.parametrize("batch_size", [1, 10, 1000])
def test_batched_is_sequential_however_it_is_chunked(toy, batch_size, at_once, monkeypatch):
    monkeypatch.setitem(engine.STACK_BYTES, "cpu", at_once * 7850 * 8)
    start, slow = train(toy, FedProx(mu=1.0), simulation.sequential, torch.float64, batch_size=batch_size)
    _, fast = train(toy, FedProx(mu=1.0), engine.batched, torch.float64, batch_size=batch_size)
    assert apart(fast.params, slow.params, start) <= 1e-12


@pytest.mark.parametrize("at_once", [1, 4], ids=["one client at a time", "side by side"])
@pytest.mark.parametrize("name", ["cnn", "cnn_blog"])
@pytest.mark.parametrize("algorithm", [FedProx(mu=0.7), Scaffold()], ids=repr)
def test_convolutional_models_too(toy, name, algorithm, at_once, monkeypatch):
    """One client at a time is what a CPU does, side by side what a GPU does."""
    monkeypatch.setitem(engine.STACK_BYTES, "cpu", at_once * 1_663_370 * 4)
    model = registry.model_named(name)
    start, slow = train(toy, algorithm, simulation.sequential, torch.float32, model=model, rounds=1, epochs=2)
    _, fast = train(toy, algorithm, engine.batched, torch.float32, model=model, rounds=1, epochs=2)
    assert apart(fast.params, slow.params, start) <= 1e-5


@pytest.mark.parametrize("algorithm", EXAMPLES, ids=repr)
def test_an_empty_cohort_changes_nothing(toy, algorithm):
    assert engine.batched(toy[0], toy[1], []) == []

    class Dropping(type(algorithm)):
        keeps_partial_work = False

    start, state = train(toy, Dropping(**algorithm.hyperparameters()), engine.batched, torch.float64, fraction=1.0)
    assert state.round == 3 and all(torch.equal(state.params[name], start[name]) for name in start)


def test_a_client_without_a_step_stays_where_it_was(toy, job_of):
    """No planner of ours makes one, but somebody's may."""
    model, train, _ = toy
    start = model.init(0, torch.float64)
    idle = ClientWork(0, True, 3, np.array([], dtype=np.int64), np.array([], dtype=np.int64))
    busy = ClientWork(1, False, 3, np.arange(3), np.array([2, 1]))
    jobs = [job_of(start, work, FedProx(mu=1.0)) for work in (idle, busy, idle)]
    fast, slow = engine.batched(model, train, jobs), simulation.sequential(model, train, jobs)
    assert all(torch.equal(fast[i][name], start[name]) for i in (0, 2) for name in start)
    assert apart(fast[1], slow[1], start) <= 1e-12
    assert engine.batched(model, train, jobs[:1])[0].keys() == start.keys()


def test_jobs_of_one_plan_share_their_batches_and_others_do_not(toy):
    model, _, partition = toy
    drawn: dict = {}
    arms = [FedProx(mu=0.0), FedProx(mu=1.0), FedAvg()]
    jobs = []
    for seed, fraction, algorithm in itertools.product([0, 1], [0.0, 0.5], arms):
        shared = drawn.setdefault(seed, {})
        plan = UniformPlanner(partition, LocalWork(3, 4, 0.1), seed, 4, fraction, drawn=shared).round_plan(1)
        w = model.init(0)
        jobs += simulation.round_jobs(simulation.State(0, w, {}, {}), plan, algorithm, 0.1)
    units = [unit for chunk in engine.stacks(jobs, 12) for unit in chunk]
    assert sorted(i for unit in units for i in unit) == list(range(len(jobs)))
    assert (
        max(len(unit) for unit in units) == 6
    )  # three arms at two straggler fractions, where the client is late in none
    for unit in units:
        longest = max((jobs[i].work for i in unit), key=lambda work: work.num_steps)
        for work in (jobs[i].work for i in unit):
            assert work.client == longest.client
            assert np.array_equal(work.order, longest.order[: len(work.order)])
            assert np.array_equal(work.batch_sizes, longest.batch_sizes[: work.num_steps])
    assert all(len(chunk) * max(map(len, chunk)) <= 12 for chunk in engine.stacks(jobs, 12))
    assert all(len(unit) <= 5 for chunk in engine.stacks(jobs, 5) for unit in chunk)  # wider ones are split


@pytest.fixture
def sweep(quick):
    """Algorithms x stragglers x seeds, each its own subset and partition."""
    quick = replace(quick, rounds=3, train_rows=300, evaluation=experiment.Evaluation(gradients=True))
    return experiment.grid(quick, algorithm=EXAMPLES, straggler_fraction=[0.0, 0.5], replicate=[0, 1])


def test_a_sweep_trained_together_is_its_runs_trained_alone(sweep):
    mixed = [
        *sweep,
        replace(sweep[0], partition=IID(15), work=LocalWork(2, 10, 0.01), rounds=2),
        replace(sweep[1], partition=Dirichlet(10, 0.5), cohort_size=3, straggler_epochs="1..E-1"),
        replace(sweep[2], work=LocalWork(1, 10, 0.05), straggler_fraction=0.9),
    ]
    done: dict[str, list] = {e.id: [] for e in mixed}
    for progress in lockstep.together(mixed, backend=engine.batched):
        done[progress.experiment.id].append((progress.state, progress.measured))
    for e in mixed:
        alone = list(lockstep.follow(e))
        assert len(done[e.id]) == len(alone) == e.rounds + 1
        start = alone[0][0].params
        for (fast, measured), (slow, expected) in zip(done[e.id][1:], alone[1:], strict=True):
            assert apart(fast.params, slow.params, start) <= 1e-5
            assert measured.keys() == expected.keys() and len(measured) == 5 + e.algorithm.watches_loss
            for name, value in expected.items():
                # one of 1,000 test digits may fall on the other side
                assert measured[name] == pytest.approx(value, rel=1e-4, abs=1.5e-3 if name == "test_accuracy" else 0)


def test_runs_that_are_behind_catch_up(sweep):
    a, b, c = sweep[:3]
    ahead = [done.state for done in lockstep.together([a], backend=engine.batched)][2]
    states = [done.state for done in lockstep.together([a, b, c], backend=engine.batched, states=[ahead, None, None])]
    rounds = [s.round for s in states]
    assert rounds == [0, 0, 1, 1, 2, 2, 3, 3, 3]


def test_measurements_are_means_over_rows_and_clients(quick):
    """Against plain sums, for one model and for three at once."""
    e = replace(quick, train_rows=500, evaluation=experiment.Evaluation(train_rows=200, gradients=True))
    f = federation_of(e)
    several = [f.model.init(seed) for seed in range(3)]
    for params in ([several[0]], several):
        for w, row in zip(params, measure_together(params, f, gradients=True), strict=True):
            sample = f.train.take(f.sampled)
            assert len(sample.y) == 200
            assert row["train_loss"] == pytest.approx(float(f.model.loss(w, *sample)), rel=1e-5)
            assert row["test_loss"] == pytest.approx(float(f.model.loss(w, *f.test)), rel=1e-5)
            right = f.model.logits(w, f.test.x).argmax(1) == f.test.y
            assert row["test_accuracy"] == float(right.double().mean())
            p = f.partition.sizes / f.partition.sizes.sum()
            gradients = [f.model.gradient(w, *f.train.take(rows)) for rows in f.partition.rows]
            flat = np.array(
                [torch.cat([g.flatten() for g in tree.values()]).numpy() for tree in gradients], dtype=float
            )
            mean = p @ flat
            variance = p @ ((flat - mean) ** 2).sum(1)
            assert row["gradient_variance"] == pytest.approx(variance, rel=1e-4)
            b = np.sqrt(p @ (flat**2).sum(1) / (mean**2).sum())
            assert row["dissimilarity"] == pytest.approx(b, rel=1e-4) and b > 1


def test_equal_clients_have_no_gradient_variance():
    x, y = torch.randn(4, 60, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([0, 1, 2, 3])
    twice = Examples(torch.cat([x, x]), torch.cat([y, y]))
    model = models.logistic(60)
    w = {name: p[None, None] for name, p in model.init(0, torch.float64).items()}
    spread = engine.gradient_spread(model, w, twice, Partition((np.arange(4), np.arange(4, 8))))
    assert float(spread["gradient_variance"]) == pytest.approx(0, abs=1e-15)
    assert float(spread["dissimilarity"]) == pytest.approx(1, abs=1e-12)


# --- many runs, many clients -----------------------------------------------------------------------------------------


def test_waves_bound_what_trains_together(quick):
    many = experiment.grid(quick, replicate=range(1000))
    parts = parallel.waves(many, 2, "batched", "cpu", 4.0)
    most = parallel.TOGETHER_BYTES // (4 * 7850)
    assert 50 < max(map(len, parts)) <= most < 100
    assert sorted(e.id for part in parts for e in part) == sorted(e.id for e in many)
    tight = parallel.waves(many, 1, "batched", "cpu", 0.05)
    assert max(map(parallel.estimated_bytes, tight)) <= 0.05 * 2**30 < parallel.estimated_bytes(parts[0])
    # what cannot share a program does not: other batch sizes, models, data; and CNNs win nothing from it on a CPU
    cnn = replace(quick, model="cnn")
    odd = [quick, replace(quick, work=LocalWork(3, 5, 0.05)), cnn, replace(cnn, seed=1), replace(quick, seed=1)]
    assert sorted(len(part) for part in parallel.waves(odd, 1, "batched", "cpu", 4.0)) == [1, 1, 1, 2]


def test_more_runs_need_no_more_memory(quick, tmp_path):
    """Peak memory of the process that trains them, measured; the runs are tiny, their number is not."""
    tiny = replace(quick, rounds=1, train_rows=60, partition=IID(20), evaluation=experiment.Evaluation(test_rows=10))
    script = tmp_path / "many.py"
    script.write_text(
        "import resource, sys\nfrom dataclasses import replace\nfrom pathlib import Path\n"
        "from fedprox_lib import *\nfrom fedprox_lib.sweeps import *\nfrom fedprox_lib.sweeps import results\n"
        f"quick = {tiny!r}\n"
        "n = int(sys.argv[1])\n"
        "results.run(grid(quick, replicate=range(n)), Path(sys.argv[2]), workers=1)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"
    )

    def peak(n: int) -> float:
        command = [sys.executable, script, str(n), tmp_path / str(n)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    mebibytes = [peak(n) for n in (parallel.TOGETHER_BYTES // (4 * 7850), 400)]
    assert len(list((tmp_path / "400" / "runs").iterdir())) == 400
    assert mebibytes[1] < mebibytes[0] + 40, mebibytes


def test_what_does_not_fit_is_refused_before_it_starts(quick, tmp_path):
    huge = replace(quick, algorithm=Scaffold(), rounds=1000, partition=IID(4000), train_rows=None, data="mnist")
    with pytest.raises(
        parallel.TooLarge, match=r"needs about 0\.1 GiB, .* up to 4000 clients remember.*raise memory_gib"
    ):
        results.run([huge], tmp_path, memory_gib=0.05)
    assert not (tmp_path / "runs").exists()


def test_a_hundred_thousand_clients(quick):
    """The plan touches the cohort, and only who took part is remembered."""
    clients, each = 100_000, 3
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((clients * each, 60), dtype=np.float32))
    y = torch.from_numpy(rng.integers(0, 10, clients * each))
    partition = IID(clients).split(y.numpy(), data_seed=0)
    e = replace(
        quick, algorithm=Scaffold(), partition=IID(clients), rounds=3, cohort_size=20,
        evaluation=experiment.Evaluation(every=3, train_rows=1000, test_rows=1000),
    )  # fmt: skip
    planner = UniformPlanner(partition, e.work, 0, 20, 0.5)
    federation = PreparedFederation(
        train=Examples(x, y),
        test=Examples(x[:1000], y[:1000]),
        sampled=np.arange(1000),
        partition=partition,
        model=models.logistic(60),
        planner=planner,
        data_sha256="",
    )  # fmt: skip (arguments that belong together)
    *_, last = lockstep.together([e], backend=engine.batched, federations=[federation])
    took_part = {work.client for t in (1, 2, 3) for work in planner.round_plan(t).cohort}
    assert set(last.state.memories) == took_part and len(took_part) == 60
    assert len(planner.drawn) <= 20
    assert last.measured["train_loss"] < np.log(10) * 1.2


def test_federations_of_a_sweep_share_what_they_have_in_common(quick):
    a, b, c, d = federations_of(
        [quick, replace(quick, straggler_fraction=0.9), replace(quick, seed=1), replace(quick, data_seed=1)]
    )
    assert a.train.x is b.train.x is c.train.x is d.train.x
    assert a.partition is b.partition is c.partition is not d.partition
    assert a.planner.drawn is b.planner.drawn is not c.planner.drawn
    alone = federation_of(replace(quick, data_seed=1))
    for rows, expected in zip(d.partition.rows, alone.partition.rows, strict=True):
        assert torch.equal(d.train.take(rows).x, alone.train.take(expected).x)
    assert torch.equal(d.train.take(d.sampled).x, alone.train.take(alone.sampled).x)


# --- the mathematics of the algorithms with memory -------------------------------------------------------------------


def test_scaffold_by_hand(toy):
    """Two clients, one step each: c_k becomes the client's gradient, c moves by their sum / N."""
    model, train, partition = toy
    w = model.init(0, torch.float64)
    algorithm, lr = Scaffold(server_lr=0.5), 0.1
    planner = UniformPlanner(partition, LocalWork(1, 1000, lr), 0, 2, 0.0)
    state = simulation.State(0, w, algorithm.init_server(w), {})
    plan = planner.round_plan(1)
    after = simulation.run_round(state, plan, train, model=model, algorithm=algorithm, lr=lr, num_clients=7)
    gradients = {k.client: model.gradient(w, *train.take(partition.rows[k.client])) for k in plan.cohort}
    for client, g in gradients.items():
        assert apart(after.memories[client], g, tree.map(torch.zeros_like, g)) <= 1e-12
    total = tree.map(torch.add, *gradients.values())
    assert apart(after.server, tree.map(lambda g: g / 7, total), tree.map(torch.zeros_like, w)) <= 1e-12
    assert apart(after.params, tree.map(lambda w, g: w - 0.5 * lr * g / 2, w, total), w) <= 1e-12
    # second round: the direction is g - c_k + c
    c, c_k = after.server, next(iter(after.memories.values()))
    one = {"x": torch.ones(1)}
    name = "dense.bias"
    direction = Scaffold.local_gradient({"x": c[name] * 0 + 2.0}, one, one, {"x": c[name]}, {"x": c_k[name]}, {})
    assert torch.equal(direction["x"], 2.0 - c_k[name] + c[name])


def test_scaffold_keeps_c_the_mean_of_all_c_k(toy):
    """If everybody takes part, c = (1/N) sum_k c_k after every round."""
    model, train, partition = toy
    w = model.init(0, torch.float64)
    algorithm = Scaffold()
    planner = UniformPlanner(partition, LocalWork(2, 4, 0.05), 0, 7, 0.5)
    state = simulation.State(0, w, algorithm.init_server(w), {})
    for t in range(1, 4):
        state = simulation.run_round(
            state, planner.round_plan(t), train, model=model, algorithm=algorithm, lr=0.05, num_clients=7,
            backend=engine.batched,
        )  # fmt: skip
        mean = tree.map(lambda *c: sum(c) / 7, *state.memories.values())
        assert apart(state.server, mean, tree.map(torch.zeros_like, mean)) <= 1e-12


def feddane_round(model, train, partition, algorithm, *, seed=0, cohort_size=3, work=None, state=None):
    """One round; all rows of a client in one step unless told otherwise."""
    work = work or LocalWork(1, 1000, 0.1)
    state = state or simulation.State(0, model.init(0, torch.float64), {}, {})
    plan = UniformPlanner(partition, work, seed, cohort_size, 0.0).round_plan(state.round + 1)
    return simulation.run_round(
        state, plan, train, model=model, algorithm=algorithm, lr=work.lr, num_clients=partition.num_clients,
        gradients=Gradients(model, train, partition, seed),
    )  # fmt: skip


@pytest.mark.parametrize("mu", [0.0, 1.0, 30.0])
def test_feddane_that_asks_everybody_takes_a_step_of_gradient_descent(toy, mu):
    """Whoever trains: at w_t the direction of every client is g_t, and with all N asked g_t is grad f."""
    model, train, partition = toy
    w = model.init(0, torch.float64)
    expected = tree.map(lambda w, g: w - 0.1 * g, w, model.gradient(w, *train))
    after = feddane_round(model, train, partition, FedDane(mu=mu, gradient_clients=7))
    assert apart(after.params, expected, w) <= 1e-12
    assert apart(feddane_round(model, train, partition, FedProx(mu=mu)).params, expected, w) > 0.1


def test_feddane_by_hand(toy):
    """Two clients asked: g_t weighs them by their rows. The second local step meets the correction and the pull."""
    model, train, partition = toy
    w, lr, mu = model.init(0, torch.float64), 0.1, 0.7
    asked = stream(0, "gradients", 1).permutation(7)[:2]
    a, b = (model.gradient(w, *train.take(partition.rows[k])) for k in asked)
    n_a, n_b = partition.sizes[asked]
    assert n_a != n_b
    g_t = tree.map(lambda a, b: (n_a * a + n_b * b) / (n_a + n_b), a, b)
    algorithm = FedDane(mu=mu, gradient_clients=2)
    after = feddane_round(model, train, partition, algorithm, cohort_size=1, work=LocalWork(2, 1000, lr))
    (k,) = (k.client for k in UniformPlanner(partition, LocalWork(2, 1000, lr), 0, 1, 0.0).round_plan(1).cohort)
    rows = train.take(partition.rows[k])
    g_k, one = model.gradient(w, *rows), tree.map(lambda w, g: w - lr * g, w, g_t)
    g = model.gradient(one, *rows)
    two = tree.map(lambda w, g, g_t, g_k, w_t: w - lr * (g + g_t - g_k + mu * (w - w_t)), one, g, g_t, g_k, w)
    assert apart(after.params, two, w) <= 1e-12
    assert after.server == {} and after.memories == {}  # nothing outlives the round


def test_feddane_is_fedprox_where_all_clients_are_alike(toy):
    model, train, _ = toy
    same = Partition(tuple(np.arange(12) for _ in range(7)))
    both = [FedDane(mu=0.5, gradient_clients=2), FedProx(mu=0.5)]
    dane, prox = (feddane_round(model, train, same, a, work=LocalWork(3, 4, 0.1)) for a in both)
    assert apart(dane.params, prox.params, model.init(0, torch.float64)) <= 1e-12


def test_arms_of_one_seed_ask_the_same_clients(toy):
    """g_t is the same whatever else differs; another round or seed asks others."""
    model, train, partition = toy
    state = simulation.State(0, model.init(0, torch.float64), {}, {})

    def g_t(seed=0, t=1, mu=0.0, cohort_size=3, fraction=0.0):
        plan = UniformPlanner(partition, LocalWork(2, 4, 0.1), seed, cohort_size, fraction).round_plan(t)
        gradients = Gradients(model, train, partition, seed)
        jobs = simulation.round_jobs(state, plan, FedDane(mu=mu, gradient_clients=2), 0.1, gradients)
        assert len({id(job.server) for job in jobs}) == 1 and len(jobs) == cohort_size
        return jobs[0].server["dense.bias"]

    assert torch.equal(g_t(), g_t(mu=1.0)) and torch.equal(g_t(), g_t(cohort_size=5, fraction=0.9))
    assert not torch.equal(g_t(), g_t(t=2)) and not torch.equal(g_t(), g_t(seed=1))
    with pytest.raises(ValueError, match=r"FedDane asks clients for gradients: pass gradients="):
        simulation.round_jobs(state, UniformPlanner(partition, LocalWork(1, 4, 0.1), 0, 3, 0.0).round_plan(1),
                            FedDane(mu=1.0), 0.1)  # fmt: skip
    with pytest.raises(ValueError, match=r"gradient_clients must be in \[1, 7\] \(the number of clients\), got 8"):
        feddane_round(model, train, partition, FedDane(mu=1.0, gradient_clients=8))


class KeepingFedAvg(FedAvg):
    keeps_partial_work = True


def test_server_optimisers_by_hand(toy):
    """FedAvgM without momentum is FedAvg; v accumulates with it. FedAdam's first step has a closed form."""
    start, plain = train(toy, KeepingFedAvg(), simulation.sequential, torch.float64, rounds=1)
    delta = tree.subtract(plain.params, start)
    _, still = train(toy, FedAvgM(momentum=0.0), simulation.sequential, torch.float64, rounds=1)
    assert apart(still.params, plain.params, start) <= 1e-12
    algorithm = FedAvgM(momentum=0.5, server_lr=2.0)
    _, first = train(toy, algorithm, simulation.sequential, torch.float64, rounds=1)
    assert apart(first.params, tree.map(lambda w, d: w + 2 * d, start, delta), start) <= 1e-12
    model, rows, partition = toy
    plan = UniformPlanner(partition, LocalWork(3, 4, 0.05), 0, 6, 0.5).round_plan(2)
    go_on = {"model": model, "lr": 0.05, "num_clients": 7}
    second = simulation.run_round(first, plan, rows, algorithm=algorithm, **go_on)
    plain = simulation.run_round(first, plan, rows, algorithm=KeepingFedAvg(), **go_on)
    v = tree.map(lambda v, new, old: 0.5 * v + new - old, first.server, plain.params, first.params)
    assert apart(second.server, v, tree.map(torch.zeros_like, v)) <= 1e-12
    assert apart(second.params, tree.map(lambda w, v: w + 2 * v, first.params, v), first.params) <= 1e-12

    adam = FedAdam(server_lr=0.02, beta1=0.9, beta2=0.99, tau=0.001)
    _, state = train(toy, adam, simulation.sequential, torch.float64, rounds=1)
    expected = tree.map(
        lambda w, d: w + 0.02 * 0.1 * d / ((0.99 * 0.001**2 + 0.01 * d**2).sqrt() + 0.001), start, delta
    )
    assert apart(state.params, expected, start) <= 1e-12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scaffold(server_lr=0), r"Scaffold needs a finite server_lr > 0, got server_lr=0"),
        (lambda: FedAvgM(momentum=1.0), r"FedAvgM needs momentum in \[0, 1\), got momentum=1.0"),
        (lambda: FedAdam(tau=float("nan")), r"FedAdam needs a finite tau > 0, got tau=nan"),
        (lambda: FedAdam(beta2=-0.1), r"FedAdam needs beta2 in \[0, 1\), got beta2=-0.1"),
        (lambda: FedDane(mu=1, gradient_clients=0), r"FedDane needs an integer gradient_clients >= 1, got .*=0"),
        (lambda: FedDane(mu=1, gradient_clients=2.0), r"FedDane needs an integer gradient_clients >= 1, got .*=2.0"),
    ],
)
def test_impossible_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_label_shards_sweep_through_results(quick, tmp_path):
    """Both backends through the front door: the tables agree."""
    sweep = experiment.grid(quick, algorithm=[FedAvg(), FedProx(mu=1.0)], partition=[LabelShards(20), IID(20)])
    fast = results.run(sweep, tmp_path / "fast")
    slow = results.run(sweep, tmp_path / "slow", backend="sequential")
    assert np.allclose(fast["train_loss"], slow["train_loss"], rtol=1e-5)
    assert np.allclose(fast["test_accuracy"], slow["test_accuracy"], atol=1.5e-3)
