"""The mathematics: closed forms, identities, and agreement with torch.optim.SGD on the penalised loss."""

import numpy as np
import pytest
import torch

from fedprox_book.paper import AdaptiveFedProx
from fedprox_lib import simulation, tree
from fedprox_lib.algorithms import FedAvg, FedProx
from fedprox_lib.data import Examples
from fedprox_lib.plan import ClientWork, LocalWork, UniformPlanner
from fedprox_lib.sweeps import registry
from fedprox_lib.sweeps.registry import ALGORITHMS


class KeepingFedAvg(FedAvg):
    """FedAvg that keeps partial work: what FedProx(mu=0) must be."""

    keeps_partial_work = True


def run(toy, algorithm, rounds=3, fraction=0.5, dtype=torch.float64, lr=0.1):
    model, train, partition = toy
    train = Examples(train.x.to(dtype), train.y)
    planner = UniformPlanner(partition, LocalWork(3, 4, lr), 0, 5, fraction)
    params = model.init(0, dtype)
    state = simulation.State(0, params, algorithm.init_server(params), {})
    for t in range(1, rounds + 1):
        state = simulation.run_round(
            state, planner.round_plan(t), train, model=model, algorithm=algorithm, lr=lr, num_clients=7
        )
    return state


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fedprox_0_is_fedavg_that_keeps_partial_work_exactly(toy, dtype):
    assert equal(run(toy, FedProx(mu=0.0), dtype=dtype).params, run(toy, KeepingFedAvg(), dtype=dtype).params)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fedprox_0_without_stragglers_is_fedavg_exactly(toy, dtype):
    fedprox = run(toy, FedProx(mu=0.0), fraction=0.0, dtype=dtype)
    assert equal(fedprox.params, run(toy, FedAvg(), fraction=0.0, dtype=dtype).params)
    # and they differ as soon as there are stragglers
    assert not equal(run(toy, FedProx(mu=0.0), dtype=dtype).params, run(toy, FedAvg(), dtype=dtype).params)


@pytest.mark.parametrize("mu", [0.0, 0.5, 2.0])
def test_proximal_steps_match_the_closed_form_of_a_quadratic(mu):
    """F(w) = ||w - c||^2 / 2: w_s = w* + (1 - lr (1 + mu))^s (w_t - w*), w* = (c + mu w_t) / (1 + mu).

    c lies below w_t in one coordinate and above in the other; lr (1 + mu) < 2.
    """
    c, w_t, lr = torch.tensor([-1.0, 3.0]).double(), torch.tensor([0.5, 0.5]).double(), 0.3
    best = (c + mu * w_t) / (1 + mu)
    w = {"w": w_t}
    for s in range(1, 21):
        g = {"w": w["w"] - c}
        d = FedProx.local_gradient(g, w, {"w": w_t}, {}, {}, {"mu": mu})
        w = {"w": w["w"] - lr * d["w"]}
        expected = best + (1 - lr * (1 + mu)) ** s * (w_t - best)
        assert torch.allclose(w["w"], expected, rtol=0, atol=1e-14)
    assert best[0] < w_t[0] and best[1] > w_t[1]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize(("name", "steps"), [("logistic", 20), ("cnn", 3), ("cnn_blog", 3)])
def test_one_client_matches_torch_sgd_on_the_penalised_loss(name, steps, dtype, tolerance, job_of):
    model, mu, lr = registry.model_named(name), 0.7, 0.05
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((12, 1, 28, 28))).to(dtype)
    y = torch.from_numpy(rng.integers(0, 10, 12))
    order = np.concatenate([rng.permutation(12)[:5] for _ in range(steps)])
    work = ClientWork(0, False, 12, order, np.full(steps, 5))
    start = model.init(0, dtype)
    (ours,) = simulation.sequential(model, Examples(x, y), [job_of(start, work, FedProx(mu=mu), lr)])

    w = {k: v.clone().requires_grad_() for k, v in start.items()}
    optimiser = torch.optim.SGD(w.values(), lr=lr)
    for rows in work.batches():
        optimiser.zero_grad()
        penalty = sum(((w[k] - start[k]) ** 2).sum() for k in w)
        (model.loss(w, x[rows], y[rows]) + mu / 2 * penalty).backward()
        optimiser.step()
    gap = max(float((ours[k] - w[k]).abs().max().detach()) for k in w)
    moved = max(float((ours[k] - start[k]).abs().max()) for k in w)
    assert gap <= tolerance and moved > 100 * gap


def test_the_average_weighs_rows_not_batches_and_not_work(toy):
    """w_{t+1} = sum n_k w_k / sum n_k, whatever part of its rows a straggler got through."""
    model, train, partition = toy
    planner = UniformPlanner(partition, LocalWork(3, 4, 0.1), 0, 5, 0.9)
    plan = planner.round_plan(1)
    start = model.init(0, torch.float64)
    algorithm = FedProx(mu=0.3)
    state = simulation.State(0, start, {}, {})
    after = simulation.run_round(state, plan, train, model=model, algorithm=algorithm, lr=0.1, num_clients=7)
    jobs = [simulation.Job(start, w, 0.1, algorithm, algorithm.hyperparameters(), {}, {}) for w in plan.cohort]
    ends = simulation.sequential(model, train, jobs)
    n = np.array([len(partition.rows[w.client]) for w in plan.cohort], dtype=float)
    for name in start:
        expected = sum(p * w[name] for p, w in zip(n / n.sum(), ends, strict=True))
        assert torch.allclose(after.params[name], expected, rtol=0, atol=1e-14)


def test_everybody_one_full_batch_is_gradient_descent(toy):
    """K = N, E = 1, one batch a client: the round is one step on f = sum n_k/n F_k."""
    model, train, partition = toy
    planner = UniformPlanner(partition, LocalWork(1, 1000, 0.1), 0, 7, 0.0)
    w = model.init(0, torch.float64)
    for algorithm in (FedAvg(), FedProx(mu=5.0)):  # at w_t the proximal gradient is 0
        state = simulation.run_round(
            simulation.State(0, w, {}, {}), planner.round_plan(1), train,
            model=model, algorithm=algorithm, lr=0.1, num_clients=7,
        )  # fmt: skip
        expected = tree.map(lambda w, g: w - 0.1 * g, w, model.gradient(w, train.x, train.y))
        assert all(torch.allclose(state.params[k], expected[k], rtol=0, atol=1e-13) for k in w)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_empty_cohort_changes_nothing(name, toy):
    algorithm = ALGORITHMS[name](mu=1.0) if issubclass(ALGORITHMS[name], FedProx) else ALGORITHMS[name]()
    model, train, partition = toy
    plan = UniformPlanner(partition, LocalWork(1, 4, 0.1), 0, 5, 1.0).round_plan(1)
    start = model.init(0, torch.float64)
    state = simulation.State(0, start, algorithm.init_server(start), {})
    after = simulation.run_round(
        state, plan.without_stragglers(), train, model=model, algorithm=algorithm, lr=0.1, num_clients=7
    )
    assert after.round == 1 and equal(after.params, start)


def test_a_stronger_leash_keeps_closer_in_the_stable_regime(toy):
    """lr (L + mu) < 2 and many full-batch steps: each run ends where mu (w_t - w) = grad F(w), nearer for larger mu."""
    model, train, partition = toy
    rows = partition.rows[4]
    work = ClientWork(4, False, len(rows), np.tile(rows, 400), np.full(400, len(rows)))
    start = model.init(0, torch.float64)
    distance = []
    for mu in (1.0, 10.0, 100.0):
        job = simulation.Job(start, work, 0.01, FedProx(mu=mu), {"mu": mu}, {}, {})
        (w,) = simulation.sequential(model, train, [job])
        g = model.gradient(w, *train.take(rows))
        # stationarity of h: mu (w_t - w) = grad F(w)
        assert float(tree.norm(tree.map(lambda g, w, s, mu=mu: g + mu * (w - s), g, w, start))) < 0.05 * mu
        distance.append(float(tree.norm(tree.subtract(w, start))))
    assert distance[0] > 1.5 * distance[1] > 2.25 * distance[2] > 0


@pytest.mark.parametrize("mu", [-1, -1e-9, float("nan"), float("inf"), "0.1", None])
def test_mu_must_be_a_number_of_at_least_0(mu):
    with pytest.raises(ValueError, match=r"FedProx needs a finite mu >= 0, got mu="):
        FedProx(mu=mu)


def mu_path(algorithm, losses):
    server = algorithm.init_server({})
    path = []
    for loss in losses:
        server = algorithm.observe(server, loss)
        path.append(algorithm.hyperparameters_at(server)["mu"])
    return path


def test_adaptive_mu_follows_the_loss_by_hand():
    """Up by 0.1 after a rise; down after five falls in a row, and the count begins again; a standstill breaks it."""
    up = mu_path(AdaptiveFedProx(mu=0.0), [1.0, 2.0, 3.0, 2.5, 2.6])
    assert up == pytest.approx([0.0, 0.1, 0.2, 0.2, 0.3])
    falling = [10.0 - i for i in range(12)]  # eleven falls
    assert mu_path(AdaptiveFedProx(mu=1.0), falling) == pytest.approx([1.0] * 5 + [0.9] * 5 + [0.8] * 2)
    still = mu_path(AdaptiveFedProx(mu=1.0, patience=3), [5.0, 4.0, 4.0, 3.0, 2.0, 1.0])
    assert still == pytest.approx([1.0, 1.0, 1.0, 1.0, 1.0, 0.9])


def test_adaptive_mu_stays_at_or_above_0():
    assert mu_path(AdaptiveFedProx(mu=0.05, patience=1), [3.0, 2.0, 1.0]) == [0.05, 0.0, 0.0]
