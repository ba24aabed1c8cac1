"""Partitions keep their promises, or say why they can't."""

import numpy as np
import pytest

from fedprox_book.paper import AsGenerated, LogNormalSizes
from fedprox_lib.partition import IID, Dirichlet, LabelShards, PowerLaw, hold_out
from fedprox_lib.sweeps.registry import PARTITIONS

MNIST_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


@pytest.fixture(scope="module")
def labels():
    """As many of each digit as MNIST's training set has, in random order."""
    return np.random.default_rng(1).permutation(np.repeat(np.arange(10), MNIST_COUNTS))


ALL = [IID(100), LabelShards(100), PowerLaw(1000), LogNormalSizes(200), Dirichlet(100, alpha=0.5)]


def test_every_scheme_is_tested():
    assert {type(s).__name__ for s in ALL} == set(PARTITIONS) - {"AsGenerated"}
    with pytest.raises(ValueError, match="AsGenerated cuts nothing: it is for data sets that come with their clients"):
        AsGenerated().split(np.zeros(30, dtype=int), data_seed=0)
    with pytest.raises(ValueError, match="num_clients must be 30, for so many the synthetic sets have, got 20"):
        AsGenerated(20)


@pytest.mark.parametrize("scheme", ALL, ids=lambda s: type(s).__name__)
def test_rows_are_given_once_and_depend_on_the_seed_alone(scheme, labels):
    split = scheme.split(labels, data_seed=3)
    rows = np.concatenate(split.rows)
    assert split.num_clients == scheme.num_clients
    assert len(np.unique(rows)) == len(rows) <= len(labels)
    assert rows.min() >= 0 and rows.max() < len(labels)
    assert split.sizes.min() >= 1
    again, other = scheme.split(labels, data_seed=3), scheme.split(labels, data_seed=4)
    assert all(np.array_equal(a, b) for a, b in zip(split.rows, again.rows, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(split.rows, other.rows, strict=True))


def test_iid_sizes_differ_by_at_most_one(labels):
    sizes = IID(7).split(labels, data_seed=0).sizes
    assert sizes.sum() == len(labels) and np.ptp(sizes) == 1


def test_label_shards_as_the_blog_tells(labels):
    """600 rows a client; a shard at most two labels, hence a client at most four; some shards do span a border."""
    split = LabelShards(100).split(labels, data_seed=0)
    assert set(split.sizes) == {600}
    held = (split.label_counts(labels) > 0).sum(1)
    assert held.max() <= 4
    per_shard = [len(np.unique(labels[half])) for rows in split.rows for half in (rows[:300], rows[300:])]
    assert set(per_shard) == {1, 2} and per_shard.count(2) == 9  # nine borders between ten labels


def test_label_shards_are_dealt_at_random(labels):
    """Neighbouring shards must not stay together: with a sorted deal every client would hold one or two labels."""
    counts = [(LabelShards(100).split(labels, data_seed=s).label_counts(labels) > 0).sum(1).max() for s in range(5)]
    assert max(counts) >= 3


def test_power_law_matches_the_paper_mean_but_not_its_sd(labels):
    """Table 1: 1,000 clients, mean 69, sd 106, over 70,000 digits. The recipe gives the mean; its sd is larger."""
    pooled = np.repeat(np.arange(10), [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958])
    splits = [PowerLaw().split(pooled, data_seed=s) for s in range(10)]
    for split in splits:
        assert round(split.sizes.mean()) == 69
        assert split.sizes.min() >= 10
        assert set((split.label_counts(pooled) > 0).sum(1)) == {2}
    assert 130 < np.median([split.sizes.std() for split in splits]) < 200


@pytest.mark.parametrize("held", [5, 3])
def test_log_normal_sizes_as_the_recipe_for_femnist(held):
    """Client k holds labels k, k+1, ... equally often; the paper's Table 1 has a mean of 92 and an sd of 159."""
    pooled = np.repeat(np.arange(10), 4_000)
    splits = [LogNormalSizes(labels_per_client=held).split(pooled, data_seed=s) for s in range(20)]
    for split in splits:
        counts = split.label_counts(pooled)
        for k, own in enumerate(counts):
            assert set(np.flatnonzero(own)) == {(k + j) % 10 for j in range(held)}
            assert len(set(own[own > 0])) == 1 and own.max() >= 2
    # log-normal(4, 1) + 5 has mean 95; rounding down takes about half a row of each label.
    assert 85 < np.mean([split.sizes.mean() for split in splits]) < 100
    # The authors' script, run anew over 200 seeds, gave standard deviations from 65 to 477.
    assert all(65 < split.sizes.std() < 477 for split in splits)


def test_log_normal_sizes_give_at_least_two_rows_of_each_label():
    labels = np.arange(30_000) % 10
    assert (
        LogNormalSizes(num_clients=100, labels_per_client=10).split(labels, data_seed=0).label_counts(labels).min() == 2
    )


def test_dirichlet_alpha_orders_heterogeneity(labels):
    """alpha = 1000 is close to the global label shares, alpha = 0.05 puts most of a client in one label."""

    def top_share(alpha):
        counts = Dirichlet(20, alpha=alpha).split(labels, data_seed=0).label_counts(labels)
        return (counts.max(1) / counts.sum(1)).mean()

    assert top_share(1000.0) < 0.13
    assert top_share(0.05) > 0.6
    assert Dirichlet(20, alpha=0.5).split(labels, data_seed=0).sizes.sum() == len(labels)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IID(0), r"num_clients must be an integer >= 1, got 0"),
        (lambda: IID(11).split(np.zeros(10, int), data_seed=0), r"needs at least 11 rows, got 10"),
        (lambda: LabelShards(6).split(np.zeros(10, int), data_seed=0), r"12 label shards needs at least 12 rows"),
        (
            lambda: LabelShards(1).split(np.arange(10), data_seed=0),
            r"may span at most 2 labels, but shard 0 of 2 spans 5",
        ),
        (lambda: PowerLaw(10, labels_per_client=11).split(np.arange(10), data_seed=0), r"at most 10.*got 11"),
        (lambda: PowerLaw(100).split(np.repeat(np.arange(10), 50), data_seed=0), r"20 clients hold label 0.*have 50"),
        (lambda: LogNormalSizes(10, labels_per_client=0), r"labels_per_client must be an integer >= 1, got 0"),
        (lambda: LogNormalSizes(10, 11).split(np.arange(10), data_seed=0), r"at most 10.*got 11"),
        (
            lambda: LogNormalSizes().split(np.repeat(np.arange(10), 900), data_seed=0),
            r"100 clients need \d{4} rows of label \d, but the data have 900: use fewer clients",
        ),
        (lambda: PowerLaw(10, sigma=0), r"sigma must be > 0"),
        (lambda: Dirichlet(10, alpha=0), r"alpha > 0, got alpha=0"),
        (lambda: Dirichlet(10, alpha=-1.0), r"alpha > 0, got alpha=-1.0"),
        (lambda: Dirichlet(10, alpha=float("nan")), r"alpha > 0, got alpha=nan"),
        (lambda: Dirichlet(11, alpha=1.0).split(np.zeros(10, int), data_seed=0), r"needs at least 11 rows"),
        (lambda: Dirichlet(50, alpha=0.001).split(np.arange(100) % 10, data_seed=0), r"use a larger alpha"),
    ],
)
def test_what_cannot_be_cut_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_holding_out_splits_every_client(labels):
    """Four fifths of n_k rounded down, so that ten rows, the paper's smallest client, leave 8 and 2."""
    whole = PowerLaw(1000).split(labels, data_seed=0)
    train, test = hold_out(whole, 0.2, data_seed=0)
    assert train.sizes.tolist() == [n * 4 // 5 for n in whole.sizes]
    for held, a, b in zip(whole.rows, train.rows, test.rows, strict=True):
        assert sorted([*a, *b]) == sorted(held)
    other, _ = hold_out(whole, 0.2, data_seed=1)
    assert not all(np.array_equal(a, b) for a, b in zip(train.rows, other.rows, strict=True))
    with pytest.raises(ValueError, match=r"must be in \[0, 1\), got 1"):
        hold_out(whole, 1, data_seed=0)
