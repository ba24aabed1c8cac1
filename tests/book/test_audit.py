"""The audit of Flower's baselines: every re-enactment is the slip that it claims, and our library does not have it."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fedprox_book import audit, baselines, profile, sweeps
from fedprox_book.audit import COLUMNS, MEANT, PUBLISHED, power_law, summary
from fedprox_lib import engine, models, simulation, tree
from fedprox_lib.algorithms import FedAvg, FedProx
from fedprox_lib.data import Examples
from fedprox_lib.partition import IID, LabelShards, Partition, PowerLaw
from fedprox_lib.plan import LocalWork, UniformPlanner
from fedprox_lib.sweeps import datasets, lockstep, records
from fedprox_lib.sweeps.experiment import Experiment
from fedprox_lib.sweeps.federations import federation_of, federations_of

ROOT = Path(__file__).resolve().parents[2]
MNIST_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
UNEQUAL = Partition(tuple(np.arange(start, stop) for start, stop in ((0, 10), (10, 21), (21, 60), (60, 61), (61, 90))))


def planner(fraction=0.9, seed=0, epochs=4):
    return UniformPlanner(UNEQUAL, LocalWork(epochs, 10, 0.1), seed, 4, fraction)


# --- the registry ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("defect", audit.DEFECTS.values(), ids=audit.DEFECTS)
def test_every_slip_names_its_place_and_tests_that_exist(defect):
    path, _, function = defect.where.partition("::")
    assert path.endswith(".py") and function and defect.commit in (audit.BLOG, audit.LATER, audit.NOW)
    assert defect.url == f"https://github.com/adap/flower/blob/{defect.commit}/{path}"
    assert defect.pinned_by
    for test in defect.pinned_by:
        file, _, name = test.partition("::")
        defined = {node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)}
        assert name in defined, test


def test_an_unknown_slip_is_refused_with_the_list(capsys):
    with pytest.raises(ValueError, match=r"one of unsquared, .*snippet, got 'squared'"):
        audit.find("squared")
    with pytest.raises(SystemExit):
        audit.audit_command(["squared"])
    assert "two-digits" in capsys.readouterr().err
    audit.audit_command([])
    assert len(capsys.readouterr().out.splitlines()) == len(audit.DEFECTS)


def test_the_command_measures_again_and_sets_it_beside_the_record(tmp_path, capsys):
    audit.audit_command(["snippet", "--profile", "smoke", "--store", str(tmp_path)])
    said = capsys.readouterr().out
    assert "measured now, profile smoke" in said and said.count("largest difference from plain SGD") == 2
    made = records.read(tmp_path / "tables" / "audit-snippet")
    assert list(made.table.columns) == list(COLUMNS) and made.settings["size"] == "smoke"
    record = summary(audit.find("snippet").measure(profile.profile_named("published")))
    assert f"{record[MEANT].iloc[0]:.4f}" in said.split("the book's record")[1]


def test_a_summary_pairs_by_replicate():
    """Published 1, 2, 4 and meant 0, 2, 1: differences 1, 0, 3; a third variant stays out."""
    lines = [("s", v, r, "m", x) for v, xs in ((PUBLISHED, (1, 2, 4)), (MEANT, (0, 2, 1))) for r, x in enumerate(xs)]
    row = summary(pd.DataFrame([*lines, ("s", "other", 0, "m", 9.0)], columns=list(COLUMNS))).iloc[0]
    assert row["difference"] == pytest.approx(4 / 3) and row["replicates"] == 3
    half = 4.3027 * np.std([1, 0, 3], ddof=1) / 3**0.5
    assert row["low"] == pytest.approx(4 / 3 - half, abs=1e-3) and row["high"] == pytest.approx(4 / 3 + half, abs=1e-3)


# --- the proximal term -----------------------------------------------------------------------------------------------


def test_the_unsquared_pull_has_one_length_and_a_dead_zone():
    """mu/2 along the way back for every tensor that moved, however far; nothing at w_t."""
    w_t = {"a": torch.tensor([0.0, 0.0]), "b": torch.tensor([1.0])}
    w = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0])}
    g = tree.map(torch.zeros_like, w)
    pull = baselines.UnsquaredProx.local_gradient(g, w, w_t, {}, {}, {"mu": 2.0})
    assert torch.allclose(pull["a"], torch.tensor([0.6, 0.8])) and pull["b"] == 0
    far = baselines.UnsquaredProx.local_gradient(g, {**w, "a": w["a"] * 100}, w_t, {}, {}, {"mu": 2.0})
    assert torch.allclose(far["a"], pull["a"])
    assert FedProx.local_gradient(g, w, w_t, {}, {}, {"mu": 2.0})["a"].tolist() == [6.0, 8.0]


def test_the_unsquared_pull_is_the_gradient_of_the_unsquared_penalty():
    model, y = models.logistic(5, 3), torch.tensor([0, 1, 2, 0])
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w_t = model.init(0, torch.float64)
    w = tree.map(lambda t: t + 0.1, w_t)
    leaves = tree.map(lambda t: t.clone().requires_grad_(), w)
    penalty = sum(torch.linalg.vector_norm(leaves[name] - w_t[name]) for name in w)
    wanted = torch.autograd.grad(model.loss(leaves, x, y) + 3.0 / 2 * penalty, list(leaves.values()))
    g = model.gradient(w, x, y)
    ours = baselines.UnsquaredProx.local_gradient(g, w, w_t, {}, {}, {"mu": 3.0})
    assert all(torch.allclose(a, b, atol=1e-14) for a, b in zip(ours.values(), wanted, strict=True))


@pytest.fixture(scope="module")
def local_run():
    model, digits = models.logistic(), datasets.load("mnist5k").train
    w = model.init(0, torch.float64)
    taken = [digits.take(np.arange(i, 4000, 400)) for i in range(4)]
    batches = [Examples(batch.x.double(), batch.y) for batch in taken]
    return model, w, batches, baselines.train_with_anchor(model, w, batches, [], lr=0.001, mu=0.0)


def test_an_iterator_is_used_up_and_leaves_plain_sgd(local_run):
    model, w, batches, plain = local_run
    anchor = iter([t.clone() for t in w.values()])
    ours = baselines.train_with_anchor(model, w, batches, anchor, lr=0.001, mu=1000.0)
    assert all(torch.equal(ours[name], plain[name]) for name in w)
    assert next(anchor, None) is None


def test_a_list_as_anchor_makes_it_fedprox(local_run):
    """Squared and from a list, these lines are our FedProx; unsquared and from a list, they are UnsquaredProx."""
    model, w, batches, plain = local_run
    anchor = [t.clone() for t in w.values()]
    for squared, algorithm in ((True, FedProx(mu=1000.0)), (False, baselines.UnsquaredProx(mu=1000.0))):
        theirs = baselines.train_with_anchor(model, w, batches, anchor, lr=0.001, mu=1000.0, squared=squared)
        ours = w
        for batch in batches:
            g = model.gradient(ours, *batch)
            d = algorithm.local_gradient(g, ours, w, {}, {}, algorithm.hyperparameters())
            ours = tree.map(lambda t, d: t - 0.001 * d, ours, d)
        assert all(torch.allclose(theirs[name], ours[name], atol=1e-9) for name in w)
        assert max(float((theirs[name] - plain[name]).abs().max()) for name in w) > 1e-4


# --- data ------------------------------------------------------------------------------------------------------------


def test_balancing_by_counts_on_mnist_leaves_two_digits():
    """The counts of MNIST alone decide: 11 blocks of 5,421, zeros and ones only."""
    labels = np.repeat(np.arange(10), MNIST_COUNTS)
    rows = baselines.balanced_by_counts(labels)
    assert len(rows) == 11 * 5421 == 59_631 and len(np.unique(rows)) == 12_163
    assert np.bincount(labels[rows], minlength=10).tolist() == [6081, 53550] + [0] * 8
    right = baselines.balanced_by_offsets(labels)
    assert len(np.unique(right)) == len(right)
    assert np.bincount(labels[right]).tolist() == [5421] * 10


def test_balancing_does_not_need_sorted_labels():
    """Labels 2 0 1 0 2 2: sorted rows are 1 3 | 2 | 0 4 5, counts 2 1 3, the smallest 1."""
    labels = np.array([2, 0, 1, 0, 2, 2])
    assert baselines.balanced_by_counts(labels).tolist() == [1, 2, 3, 0]  # [0:1], [2:3], [1:2], [3:4]
    assert baselines.balanced_by_offsets(labels).tolist() == [1, 2, 0]


def test_our_shards_hold_every_row_and_every_digit():
    labels = np.repeat(np.arange(10), MNIST_COUNTS)
    split = LabelShards(100).split(labels, data_seed=0)
    assert np.array_equal(np.sort(np.concatenate(split.rows)), np.arange(60_000))
    assert split.label_counts(labels).sum(0).tolist() == MNIST_COUNTS


def test_held_out_rows_are_taken_from_the_clients():
    test, without = baselines.held_out_of_the_pool(UNEQUAL, 9, seed=3)
    assert len(np.unique(test)) == 9
    assert np.array_equal(np.sort(np.concatenate([test, *without.rows])), np.arange(90))
    assert all(set(kept) <= set(held) for kept, held in zip(without.rows, UNEQUAL.rows, strict=True))
    other, _ = baselines.held_out_of_the_pool(UNEQUAL, 9, seed=4)
    assert not np.array_equal(test, other)


@pytest.mark.parametrize("scheme", [IID(20), LabelShards(35), PowerLaw(num_clients=20)])
def test_no_client_holds_a_row_that_we_test_on(scheme):
    """Images, not numbers: no test image is among the images that clients train on."""
    e = Experiment(
        algorithm=FedAvg(), partition=scheme, work=LocalWork(1, 10, 0.1), rounds=1, cohort_size=2, data="mnist5k"
    )
    f = federation_of(e)
    held = {image.numpy().tobytes() for image in f.train.take(np.concatenate(f.partition.rows)).x}
    assert not any(image.numpy().tobytes() in held for image in f.test.x)


# --- plans -----------------------------------------------------------------------------------------------------------


def test_the_minimum_does_not_lower_the_fraction():
    assert [baselines.cohort_size_of(100, 1.0, m) for m in (10, 50, 100)] == [100] * 3
    assert baselines.cohort_size_of(1000, 0.00001, 10) == 10  # as its successor asks for ten
    assert baselines.cohort_size_of(1000, 0.01, 2) == 10


def test_batches_for_examples_change_the_weights_and_nothing_else():
    """10, 11, 39, 1 and 29 rows are 1, 2, 4, 1 and 3 batches of ten."""
    expected = dict(zip(range(5), (1, 2, 4, 1, 3), strict=True))
    for t in range(1, 5):
        right, wrong = planner().round_plan(t), baselines.CountsBatches(planner()).round_plan(t)
        for a, b in zip(right.cohort, wrong.cohort, strict=True):
            assert b.num_examples == expected[a.client] and a.num_examples == len(UNEQUAL.rows[a.client])
            assert np.array_equal(a.order, b.order) and replace(b, num_examples=a.num_examples).client == a.client


def test_coins_vary_the_number_of_stragglers_and_keep_the_rest():
    tossed, exact = baselines.TossesCoins(planner(0.5)), planner(0.5)
    full, late = (replace(exact, straggler_fraction=s) for s in (0.0, 1.0))
    numbers = set()
    for t in range(1, 60):
        cohort, coins = tossed.round_plan(t).cohort, tossed.is_straggler(t)
        numbers.add(sum(c.straggler for c in cohort))
        pairs = zip(cohort, full.round_plan(t).cohort, late.round_plan(t).cohort, strict=True)
        for c, all_of_it, part in pairs:
            assert c.straggler == coins[c.client]
            assert np.array_equal(c.order, (part if c.straggler else all_of_it).order)
        assert [c.client for c in cohort] == [c.client for c in exact.round_plan(t).cohort]
    assert numbers == {0, 1, 2, 3, 4} and sum(c.straggler for c in exact.round_plan(1).cohort) == 2


def test_coins_fall_as_often_as_they_should():
    """90 % of 5 x 2,000 coins, within four standard deviations; two schedules agree on 0.9^2 + 0.1^2 = 82 % of them."""
    one, two = (np.array([baselines.TossesCoins(planner(), k).is_straggler(t) for t in range(2000)]) for k in (0, 1))
    assert abs(one.mean() - 0.9) < 4 * (0.09 / one.size) ** 0.5
    assert abs((one == two).mean() - 0.82) < 4 * (0.82 * 0.18 / one.size) ** 0.5


def test_our_arms_meet_the_same_stragglers():
    b = power_law(profile.profile_named("smoke"))
    arms = [replace(b, algorithm=a) for a in (FedAvg(), FedProx(mu=0.0), FedProx(mu=1.0))]
    plans = [[f.planner.round_plan(t) for t in range(1, 4)] for f in federations_of(arms)]
    for same_round in zip(*plans, strict=True):
        late = [[(c.client, c.straggler, c.num_steps) for c in plan.cohort] for plan in same_round]
        assert late[0] == late[1] == late[2] and any(straggler for _, straggler, _ in late[0])


def test_the_batched_engine_trains_coins_as_the_definition_does():
    b = power_law(profile.profile_named("smoke"))
    f = federation_of(b)
    ends = []
    for backend in (simulation.sequential, engine.batched):
        other = replace(f, planner=baselines.TossesCoins(f.planner))
        *_, (state, _) = lockstep.follow(b, backend=backend, federation=other)
        ends.append(state.params)
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-5) for name in ends[0])


# --- what is reported ------------------------------------------------------------------------------------------------


def test_the_reported_loss_is_a_tenth():
    losses = np.arange(40.0)
    assert baselines.reported_loss(losses, 10) == pytest.approx(losses.mean() / 10)
    assert baselines.reported_loss(losses, 1) == pytest.approx(losses.mean())
    assert baselines.reported_loss([1.0, 1.0, 4.0], 2) == pytest.approx((1 + 4) / 3)  # a last, smaller batch


# --- the measurements ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["batch-counts", "bernoulli", "redrawn", "everybody", "tenfold-loss", "unseeded", "leak"]
)
def test_every_cheap_measurement_has_both_variants(key, tmp_path):
    """Exact consequences that hold at any size; CNNs and the sequential backend are left to the notebook."""
    small = replace(profile.profile_named("smoke"), folder=tmp_path)
    table = audit.find(key).measure(small)
    assert list(table.columns) == list(COLUMNS) and table["value"].notna().all()
    by = summary(table).set_index("metric")
    assert len(by) and {PUBLISHED, MEANT} <= set(table["variant"])
    certain = {
        "bernoulli": ("share of rounds without an update", MEANT, 0.0),
        "redrawn": ("share of equal entries", MEANT, 1.0),
        "unseeded": ("same method twice (test accuracy)", MEANT, 0.0),
        "leak": ("test rows that a client holds", PUBLISHED, 1.0),
        "batch-counts": ("largest factor on a weight", MEANT, 1.0),
    }
    if key in certain:
        metric, variant, value = certain[key]
        assert by.loc[metric, variant] == value
    assert sweeps.REPLICATES == (0, 1, 2)
