"""Plans are pure: a function of (seed, round), the same for every algorithm, exact in their counts."""

import random

import numpy as np
import pytest
import torch

from fedprox_book.paper import BySizePlanner
from fedprox_lib.partition import IID, Partition
from fedprox_lib.plan import LocalWork, UniformPlanner
from fedprox_lib.rng import stream

PARTITION = IID(30).split(np.zeros(730, int), data_seed=0)  # clients of 24 and 25 rows
WORK = LocalWork(epochs=5, batch_size=10, lr=0.1)


def planner(fraction=0.5, seed=0, work=WORK, **kwargs):
    return UniformPlanner(PARTITION, work, seed, 10, fraction, **kwargs)


def same(a, b):
    return len(a.cohort) == len(b.cohort) and all(
        (v.client, v.straggler) == (w.client, w.straggler)
        and np.array_equal(v.order, w.order)
        and np.array_equal(v.batch_sizes, w.batch_sizes)
        for v, w in zip(a.cohort, b.cohort, strict=True)
    )


def test_round_70_needs_no_history_and_no_global_generator():
    p = planner()
    first = p.round_plan(70)
    for t in (1, 5, 70):
        p.round_plan(t)
    np.random.seed(1)  # noqa: NPY002 (the point: global generators have no influence)
    random.seed(1)
    torch.manual_seed(1)
    before = (np.random.get_state()[1].sum(), random.getstate(), torch.get_rng_state().sum())  # noqa: NPY002
    assert same(first, planner().round_plan(70))
    after = (np.random.get_state()[1].sum(), random.getstate(), torch.get_rng_state().sum())  # noqa: NPY002
    assert before == after


def test_seed_and_round_change_every_part():
    a, b, c = planner().round_plan(1), planner(seed=1).round_plan(1), planner().round_plan(2)
    for other in (b, c):
        assert [w.client for w in a.cohort] != [w.client for w in other.cohort]
        assert [w.straggler for w in a.cohort] != [w.straggler for w in other.cohort]
    assert not np.array_equal(stream(0, "batches", 1, 3).random(5), stream(0, "batches", 2, 3).random(5))


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.5, 5), (0.9, 9), (1.0, 10)])
def test_straggler_counts_are_exact_in_every_round(fraction, count):
    for t in range(1, 30):
        plan = planner(fraction).round_plan(t)
        assert sum(w.straggler for w in plan.cohort) == count
        assert len(plan.without_stragglers().cohort) == 10 - count
        assert len({w.client for w in plan.cohort}) == 10


def test_the_straggler_fraction_changes_nothing_but_who_straggles():
    """Stragglers at 50 % are among those at 90 %, with the same epochs; everybody else has the same batches."""
    for t in range(1, 10):
        none, half, most = (planner(f).round_plan(t).cohort for f in (0.0, 0.5, 0.9))
        for v, w, z in zip(none, half, most, strict=True):
            assert v.client == w.client == z.client
            assert not w.straggler or (z.straggler and np.array_equal(w.order, z.order))
            # a straggler's order is the beginning of the order it would have had
            assert np.array_equal(w.order, v.order[: len(w.order)])


def test_a_batch_sequence_visits_every_row_once_an_epoch():
    work = planner(0.0).round_plan(1).cohort[0]
    n = work.num_examples
    assert work.num_steps == 5 * 3 and list(work.batch_sizes[:3]) == [10, 10, n - 20]
    for epoch in work.order.reshape(5, n):
        assert sorted(epoch) == sorted(PARTITION.rows[work.client])
    assert np.array_equal(np.concatenate(list(work.batches())), work.order)


@pytest.mark.parametrize(("rule", "highest"), [("1..E", 5), ("1..E-1", 4)])
def test_straggler_epochs_are_uniform_on_their_range(rule, highest):
    p = planner(0.9, straggler_epochs=rule)
    late = [w for t in range(1, 200) for w in p.round_plan(t).cohort if w.straggler]
    epochs = np.array([len(w.order) // w.num_examples for w in late])
    counts = np.bincount(epochs, minlength=6)
    assert set(epochs) == set(range(1, highest + 1))
    expected = len(late) / highest
    chi2 = ((counts[1 : highest + 1] - expected) ** 2 / expected).sum()
    assert chi2 < 20  # 99.9 % quantile at 4 degrees of freedom: 18.5


def test_with_one_epoch_partial_work_is_counted_in_batches():
    p = planner(0.9, work=LocalWork(epochs=1, batch_size=10, lr=0.1))
    late = [w for t in range(1, 60) for w in p.round_plan(t).cohort if w.straggler]
    assert {w.num_steps for w in late} == {1, 2, 3}
    assert all(w.batch_sizes.sum() == len(w.order) for w in late)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LocalWork(0, 10, 0.1), r"epochs must be an integer >= 1, got 0"),
        (lambda: LocalWork(1, 0, 0.1), r"batch_size must be an integer >= 1, got 0"),
        (lambda: LocalWork(1, 10, -0.1), r"lr must be a finite number > 0, got -0.1"),
        (lambda: LocalWork(1, 10, float("nan")), r"lr must be a finite number > 0, got nan"),
        (lambda: UniformPlanner(PARTITION, WORK, 0, 31, 0.0), r"cohort_size must be in \[1, 30\] .*got 31"),
        (lambda: planner(1.5), r"straggler_fraction must be in \[0, 1\], got 1.5"),
        (lambda: planner(-0.1), r"straggler_fraction must be in \[0, 1\], got -0.1"),
        (lambda: planner(straggler_epochs="0..E"), r"one of 1..E, 1..E-1, got '0..E'"),
    ],
)
def test_impossible_plans_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_drawing_by_size_is_right_on_average():
    """Clients of 10, 30 and 60 rows: over 2,000 rounds of 3 draws their weights in the mean are 0.1, 0.3 and 0.6."""
    rows = np.split(np.arange(100), [10, 40])
    by_size = BySizePlanner(Partition(tuple(rows)), WORK, seed=0, cohort_size=3)
    weight = np.zeros(3)
    for t in range(1, 2001):
        plan = by_size.round_plan(t)
        drawn = [w.client for w in plan.cohort]
        assert drawn == sorted(set(drawn)) and sum(w.weight for w in plan.cohort) == 3
        for w in plan.cohort:
            weight[w.client] += w.weight / 3 / 2000
            assert not w.straggler and set(w.order) == set(rows[w.client])
    # The standard error of a share p over 6,000 draws is sqrt(p (1 - p) / 6000) < 0.0065.
    assert np.abs(weight - [0.1, 0.3, 0.6]).max() < 0.025


def test_drawing_by_size_is_a_function_of_seed_and_round():
    twice = [BySizePlanner(PARTITION, WORK, 0, 10).round_plan(7) for _ in range(2)]
    assert same(*twice)
    assert not same(twice[0], BySizePlanner(PARTITION, WORK, 1, 10).round_plan(7))
    # What a client does when it is drawn does not depend on how it was drawn.
    uniform = {w.client: w for w in planner(0.0).round_plan(7).cohort}
    both = [w for w in twice[0].cohort if w.client in uniform]
    assert both and all(np.array_equal(w.order, uniform[w.client].order) for w in both)
