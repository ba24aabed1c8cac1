"""Experiments name themselves: equal settings give one id, changed settings another, new defaults none."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from fedprox_book import chapters, profile, sweeps, sweeps_paper
from fedprox_book.paper import AdaptiveFedProx, FedDane, LogNormalSizes
from fedprox_lib import models
from fedprox_lib.algorithms import FedAvg, FedProx
from fedprox_lib.partition import IID
from fedprox_lib.plan import LocalWork
from fedprox_lib.sweeps import datasets, registry
from fedprox_lib.sweeps.experiment import Evaluation, Experiment, from_settings, grid
from fedprox_lib.sweeps.federations import federation_of

PAPER = profile.profile_named("paper")


def test_every_setting_that_changes_the_numbers_changes_the_id(quick):
    variants = [
        quick,
        replace(quick, algorithm=FedAvg()),
        replace(quick, algorithm=FedProx(mu=0.2)),
        replace(quick, partition=IID(20)),
        replace(quick, partition=replace(quick.partition, num_clients=21)),
        replace(quick, work=LocalWork(3, 10, 0.06)),
        replace(quick, rounds=5),
        replace(quick, cohort_size=7),
        replace(quick, straggler_fraction=0.4),
        replace(quick, straggler_epochs="1..E-1"),
        replace(quick, model="cnn"),
        replace(quick, data="mnist"),
        replace(quick, normalisation="per_pixel"),
        replace(quick, normalisation="unit"),
        replace(quick, partition=LogNormalSizes(20)),
        replace(quick, partition=LogNormalSizes(20, labels_per_client=3)),
        replace(quick, split="within_clients"),
        replace(quick, sampling="by_size", straggler_fraction=0.0),
        replace(quick, straggler_fraction=0.0),
        replace(quick, train_rows=601),
        replace(quick, evaluation=Evaluation(every=2)),
        replace(quick, seed=1),
        replace(quick, data_seed=1),
    ]
    assert len({e.id for e in variants}) == len(variants)


def test_the_id_is_stable_across_processes_and_number_types(quick):
    """An id that moved would orphan every committed record."""
    code = (
        "from fedprox_lib import *; from fedprox_lib.sweeps import *;"
        "print(Experiment(algorithm=FedProx(mu=1), partition=LabelShards(num_clients=20),"
        "work=LocalWork(epochs=3, batch_size=10, lr=1), rounds=4, cohort_size=6).id)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    base = replace(quick, data="mnist", model="cnn", train_rows=None, straggler_fraction=0)
    here = replace(base, algorithm=FedProx(mu=1.0), work=LocalWork(3, 10, 1.0))
    assert printed == here.id == "451dd2441a4e"


def test_settings_give_the_experiment_back(quick):
    for e in (quick, *(make(PAPER)[0] for make in (sweeps.BOOK | sweeps_paper.PAPER).values())):
        assert from_settings(e.settings()) == e
    assert from_settings({**quick.settings(), "algorithm": "FedAvg"}).algorithm == FedAvg()
    with pytest.raises(ValueError, match="algorithm must be one of FedAvg, FedProx"):
        from_settings({**quick.settings(), "algorithm": "FedPrix"})
    with pytest.raises(ValueError, match="FedProx needs settings that are not given: mu"):
        from_settings({name: value for name, value in quick.settings().items() if name != "mu"})


def test_settings_are_flat_scalars_with_one_name_each(quick):
    settings = quick.settings()
    assert settings["algorithm"] == "FedProx" and settings["mu"] == 0.1 and settings["num_clients"] == 20
    assert all(v is None or isinstance(v, str | int | float) for v in settings.values())


def test_grid_multiplies_axes_and_names_unknown_ones(quick):
    sweep = grid(quick, algorithm=[FedAvg(), FedProx(mu=0.0)], replicate=range(3))
    assert [(e.label, e.seed, e.data_seed) for e in sweep][:4] == [
        ("FedAvg", 0, 0), ("FedAvg", 1, 1), ("FedAvg", 2, 2), ("FedProx, mu = 0", 0, 0),
    ]  # fmt: skip
    with pytest.raises(TypeError, match=r"unknown experiment field 'mu'; the fields are algorithm, partition, .*seed"):
        grid(quick, mu=[0.1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, r"rounds must be an integer >= 1, got 0"),
        ({"cohort_size": 21}, r"cohort_size must be in \[1, 20\]"),
        ({"algorithm": FedDane(mu=1.0, gradient_clients=21)}, r"gradient_clients must be in \[1, 20\] .*got 21"),
        ({"straggler_fraction": 2}, r"straggler_fraction must be in \[0, 1\], got 2"),
        ({"model": "resnet"}, r"model must be one of logistic, cnn, cnn_blog, got 'resnet'"),
        (
            {"partition": "shards"},
            r"partition must be one of IID, .*, AsGenerated, got 'shards'",
        ),
        (
            {"algorithm": "fedprox"},
            r"must be one of FedAvg, FedProx, Scaffold, FedAvgM, FedAdam, AdaptiveFedProx, FedDane, got 'fedprox'",
        ),
        ({"data": "cifar"}, r"data must be one of mnist, fashion_mnist, mnist5k, .*, got 'cifar'"),
        ({"normalisation": "none"}, r"normalisation must be one of standard, per_pixel, unit, got 'none'"),
        ({"train_rows": 0}, r"train_rows must be an integer >= 1 or None, got 0"),
        ({"seed": -1}, r"seed must be an integer >= 0, got -1"),
    ],
)
def test_impossible_experiments_are_refused(quick, change, message):
    with pytest.raises(ValueError, match=message):
        replace(quick, **change)


def test_unknown_fields_are_refused_by_name():
    with pytest.raises(TypeError, match="lr"):
        Experiment(lr=0.1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="evaluation every must be an integer >= 1, got 0"):
        Evaluation(every=0)


def test_profiles(monkeypatch):
    with pytest.raises(ValueError, match=r"profile must be one of smoke, published, paper, got 'quick'"):
        profile.profile_named("quick")
    monkeypatch.delenv("FEDPROX_PROFILE")
    assert profile.profile_named().name == "published" and not profile.profile_named().may_train
    monkeypatch.setenv("FEDPROX_PROFILE", "paper")
    assert profile.profile_named().data == "mnist"
    smoke = profile.profile_named("smoke")
    assert smoke.folder != profile.committed_store() and smoke.data == "mnist5k"


@pytest.mark.parametrize("name", sorted(sweeps.BOOK))
def test_sweeps_pair_their_arms(name):
    """Arms of one replicate share everything but the algorithm (in the choosing sweeps, lr; in one, the epochs)."""
    for p in ("smoke", "paper"):
        sweep = sweeps.BOOK[name](profile.profile_named(p))
        assert len({e.id for e in sweep}) == len(sweep)
        assert all(e.seed == e.data_seed for e in sweep)
        shared = {(e.model, e.data, e.train_rows, e.partition, e.rounds, e.cohort_size) for e in sweep}
        assert len(shared) == 1 and (len({e.work.epochs for e in sweep}) == 1 or name.startswith("smaller_steps"))
    chosen_on = {
        e.seed
        for e in sweeps.choose_lr(profile.profile_named("paper")) + sweeps.choose_mu(profile.profile_named("paper"))
    }
    assert chosen_on.isdisjoint(e.seed for e in sweeps.side_by_side(profile.profile_named("paper")))


def test_models_have_the_parameters_that_the_papers_state():
    assert {name: registry.model_named(name).num_parameters for name in registry.MODELS} == {
        "logistic": 7_850, "cnn": 1_663_370, "cnn_blog": 1_663_370,
    }  # fmt: skip


def test_the_two_cnns_are_different_networks():
    same, blog = models.cnn(), chapters.cnn_blog()
    assert [s[-1] for s in chapters.layer_shapes(same)[:5]] == [28, 28, 14, 14, 7]
    assert [s[-1] for s in chapters.layer_shapes(blog)[:5]] == [28, 26, 14, 12, 7]
    import torch

    w, x = same.init(0), torch.linspace(-1, 1, 784).reshape(1, 1, 28, 28)
    assert not torch.allclose(same.logits(w, x), blog.logits(w, x), atol=1e-3)


def test_initial_weights_depend_on_the_seed_alone():
    import torch

    m = models.logistic()
    torch.manual_seed(0)
    before = torch.get_rng_state().clone()
    assert torch.equal(m.init(3)["dense.weight"], m.init(3)["dense.weight"])
    assert not torch.equal(m.init(3)["dense.weight"], m.init(4)["dense.weight"])
    assert torch.equal(torch.get_rng_state(), before)
    assert float(m.init(3)["dense.weight"].abs().max()) <= 1 / 28
    assert m.init(3)["dense.bias"].shape == (10,)


def test_a_split_within_clients_leaves_no_row_to_two_parts(quick):
    """4,000 and 1,000 digits pooled; each client tests on a fifth of its own rows, and nobody trains on them."""

    f = federation_of(replace(quick, split="within_clients", train_rows=None))
    whole = datasets.pooled("mnist5k")
    assert len(whole.y) == 5_000 and len(datasets.load("mnist5k").train.y) == 4_000
    assert set(f.partition.sizes) == {200} and len(f.test.y) == 1_000  # 20 clients of 250 rows
    training = {row.numpy().tobytes() for row in f.train.x[np.concatenate(f.partition.rows)]}
    assert not training & {row.numpy().tobytes() for row in f.test.x}
    # A client's test rows have its own labels: label shards leave it at most four.
    for k, rows in enumerate(f.partition.rows):
        mine = set(f.train.labels[rows])
        assert set(f.test.labels[50 * k : 50 * k + 50]) <= mine and len(mine) <= 4


def test_adaptive_mu_needs_a_loss_after_every_round(quick):
    adaptive = replace(quick, algorithm=AdaptiveFedProx(mu=0.0), evaluation=Evaluation(every=1))
    with pytest.raises(ValueError, match=r"AdaptiveFedProx follows the training loss .* every must be 1, got 2"):
        replace(adaptive, evaluation=Evaluation(every=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "80/20"}, r"split must be one of official, within_clients, got '80/20'"),
        ({"sampling": "p_k", "straggler_fraction": 0.0}, r"sampling must be one of uniform, by_size, got 'p_k'"),
        ({"sampling": "by_size", "straggler_fraction": 0.5}, r"sampling='by_size' is defined without stragglers"),
    ],
)
def test_split_and_sampling_are_checked(quick, change, message):
    with pytest.raises(ValueError, match=message):
        replace(quick, **change)


def test_what_is_not_run_is_no_part_of_what_is_and_says_why():
    others = {e.id for sweep in (sweeps.BOOK | sweeps.PLANNED | sweeps_paper.PAPER).values() for e in sweep(PAPER)}
    assert not sweeps_paper.NOT_RUN.keys() & (sweeps.BOOK | sweeps.PLANNED | sweeps_paper.PAPER).keys()
    for sweep, reason in sweeps_paper.NOT_RUN.values():
        assert reason.endswith("not run")
        assert not others & {e.id for e in sweep(PAPER)}


def test_the_recipe_for_femnist():
    """Section 5.1 and appendix C of the paper: three arms at three shares of stragglers, ten replicates."""
    arms = sweeps_paper.femnist(PAPER)
    assert len(arms) == (3 * 3 - 1) * 10  # without stragglers FedAvg is FedProx with mu = 0
    for e in arms:
        assert (e.data, e.normalisation, e.split, e.model) == ("femnist", "unit", "within_clients", "logistic")
        assert e.partition == LogNormalSizes(num_clients=200, labels_per_client=5)
        assert e.work == LocalWork(epochs=20, batch_size=10, lr=0.003) and (e.rounds, e.cohort_size) == (200, 10)
    assert {e.data for e in sweeps_paper.femnist(profile.profile_named("smoke"))} == {"mnist5k"}
    # "The ten replicates need between 2,400 and 2,500 images of the letter that is asked for most"
    labels = np.repeat(np.arange(10), 4_000)
    needed = [e.partition.split(labels, data_seed=r).label_counts(labels).sum(0).max() for r in range(10)]
    assert 2_400 < max(needed) < 2_500
