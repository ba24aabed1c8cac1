"""What this book found in Flower's FedProx baselines: where it is, what it does, and a command that measures it again.

``DEFECTS`` lists the slips with file, function and commit of github.com/adap/flower. Each has one measurement or two:
the same runs as published and as meant, which differ by a re-enactment from :mod:`fedprox_book.baselines`. The tables
are recorded as ``results/tables/audit-...``; :func:`summary` sets the two variants side by side. Logistic regression on
few clients is trained wherever the point allows it, in ten replicates, and the CNN in three. As a command::

    python -m fedprox_book.audit                        # what there is
    python -m fedprox_book.audit batch-counts           # trains again on full MNIST and compares with the record
    python -m fedprox_book.audit batch-counts --profile smoke

Taught in "The baseline as published". Layer: book (pandas and a command line).
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from fedprox_book import baselines, sweeps
from fedprox_book import profile as profiles
from fedprox_book.profile import Profile
from fedprox_lib import models, simulation
from fedprox_lib.algorithms import Algorithm, FedAvg, FedProx
from fedprox_lib.engine import batched
from fedprox_lib.partition import LabelShards, Partition, PowerLaw
from fedprox_lib.plan import LocalWork, Planner, UniformPlanner
from fedprox_lib.rng import stream
from fedprox_lib.simulation import Backend, State
from fedprox_lib.sweeps import datasets, lockstep, registry, results, statistics
from fedprox_lib.sweeps.datasets import DataMissing
from fedprox_lib.sweeps.experiment import Evaluation, Experiment, grid
from fedprox_lib.sweeps.federations import PreparedFederation, federation_of, federations_of
from fedprox_lib.sweeps.results import RecordMissing

COLUMNS = ("setting", "variant", "replicate", "metric", "value")
"""Of every table of the audit. Values are fractions, nats or counts, as the metric says."""

Row = tuple[str, str, int, str, float]
"""One line of a table, in the order of ``COLUMNS``."""

PUBLISHED, MEANT = "as published", "as meant"
"""The two variants that every table has: what the code does, and what its text or the paper says."""

POWER_LAW, SHARDS, CNN = "logistic, power law", "logistic, label shards", "CNN, label shards"
"""The settings in which something is trained."""

GAIN = "gain of keeping partial work (test accuracy)"

ELSE = 5000
"""Added to a seed that should have nothing to do with the other; the replicate is the seed modulo this."""

KEEPS = FedProx(mu=0.0)
"""Partial work is kept, and nothing else changes."""

# --- what is trained -------------------------------------------------------------------------------------------------


def power_law(
    profile: Profile, algorithm: Algorithm = KEEPS, straggler_fraction: float = 0.9, rounds: int = 40
) -> Experiment:
    """The size of the baseline's successors: 1,000 clients, 10 per round, E = 10, B = 10, lr 0.03."""
    small = profile.is_smoke
    return Experiment(
        algorithm=algorithm,
        data="mnist5k" if small else "mnist",
        model="logistic",
        partition=PowerLaw(num_clients=40 if small else 1000),
        work=LocalWork(epochs=2 if small else 10, batch_size=10, lr=0.03),
        rounds=3 if small else rounds,
        cohort_size=10,
        straggler_fraction=straggler_fraction,
        evaluation=Evaluation(every=1 if small else 4, train_rows=2_000),
    )


def label_shards(profile: Profile, straggler_fraction: float = 0.9) -> Experiment:
    """:func:`fedprox_book.sweeps.logistic_base` over 20 rounds."""
    b = sweeps.logistic_base(profile, "mnist")
    return replace(b, algorithm=KEEPS, straggler_fraction=straggler_fraction, rounds=min(b.rounds, 20))


def _cnn(profile: Profile, algorithm: Algorithm, rounds: int) -> Experiment:
    b = replace(sweeps.base(profile), algorithm=algorithm)
    return replace(b, rounds=1, cohort_size=2) if profile.is_smoke else replace(b, rounds=rounds)


class Trained(NamedTuple):
    """The end of a run.

    Attributes:
        replicate: its number.
        state: the last one.
        measured: mean of the last three measurements, by name.
    """

    replicate: int
    state: State
    measured: dict[str, float]


def trained(
    runs: Sequence[Experiment],
    planner: Callable[[UniformPlanner], Planner] = lambda planner: planner,
    change: Callable[[PreparedFederation], PreparedFederation] = lambda federation: federation,
    backend: Backend = batched,
) -> list[Trained]:
    """Train different experiments of one model under other decisions.

    Args:
        runs: no two of them alike.
        planner: makes another plan producer of a run's own.
        change: makes another federation of a run's own; comes first.
        backend: who does the jobs.
    """
    federations = [change(f) for f in federations_of(runs)]
    federations = [replace(f, planner=planner(_uniform(f))) for f in federations]
    measured: dict[str, list[dict[str, float]]] = {e.id: [] for e in runs}
    states: dict[str, State] = {}
    steps = lockstep.together(runs, backend=backend, federations=federations)
    # None: a bar on a terminal only, never in a notebook.
    for done in tqdm(steps, total=sum(e.rounds + 1 for e in runs), unit="round", leave=False, disable=None):
        measured[done.experiment.id] += [done.measured] if done.measured else []
        states[done.experiment.id] = done.state
    last = {name: pd.DataFrame(rows[-3:]).mean().to_dict() for name, rows in measured.items()}
    return [Trained(e.data_seed % ELSE, states[e.id], last[e.id]) for e in runs]


def _uniform(federation: PreparedFederation) -> UniformPlanner:
    """The planner of a federation as it is prepared."""
    assert isinstance(federation.planner, UniformPlanner)
    return federation.planner


def _recut(f: PreparedFederation, partition: Partition) -> PreparedFederation:
    """The federation with other clients."""
    return replace(f, partition=partition, planner=replace(_uniform(f), partition=partition, drawn={}))


def _finals(setting: str, variant: str, runs: Sequence[Trained]) -> Iterator[Row]:
    """Test accuracy and training loss of every run."""
    for run in runs:
        yield (setting, variant, run.replicate, "test accuracy", run.measured["test_accuracy"])
        yield (setting, variant, run.replicate, "training loss (nats)", run.measured["train_loss"])


def _gaps(setting: str, variant: str, metric: str, runs: Sequence[Trained], minus: Sequence[Trained]) -> Iterator[Row]:
    """Test accuracy of each run minus that of its partner."""
    for a, b in zip(runs, minus, strict=True):
        yield (setting, variant, a.replicate, metric, a.measured["test_accuracy"] - b.measured["test_accuracy"])


# --- what is measured ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """One table, or one per replicate: runs as published and as meant.

    Attributes:
        name: of the table, without the prefix ``audit-``.
        base: the experiment that it starts from, by profile.
        rows: computes the lines from that experiment, for some replicates.
        identity: the settings that the table is known by, besides its size.
        apart: whether each replicate has a table of its own, so that an interrupted measurement goes on with the next.
    """

    name: str
    base: Callable[[Profile], Experiment]
    rows: Callable[[Experiment, Sequence[int]], Iterator[Row]]
    identity: Callable[[Experiment], dict[str, Any]] = Experiment.settings
    apart: bool = False

    def tables(self, profile: Profile) -> list[pd.DataFrame]:
        """From the record or by training. Of tables that are apart, those that are there if nothing may be trained."""
        b, small = self.base(profile), profile.is_smoke

        def table(name: str, settings: dict[str, Any], replicates: Sequence[int]) -> pd.DataFrame:
            def make() -> pd.DataFrame:
                return pd.DataFrame(list(self.rows(b, replicates)), columns=list(COLUMNS))

            return results.table(name, profile, {"size": "smoke" if small else "paper"} | settings, make)

        if not self.apart:
            return [table(f"audit-{self.name}", self.identity(b), range(2 if small else 10))]
        names = {r: f"audit-{self.name}-{r}" for r in (sweeps.REPLICATES[:1] if small else sweeps.REPLICATES)}
        return [
            table(name, self.identity(b.replicate(r)), (r,))
            for r, name in names.items()
            if profile.may_train or profile.table_folder(name).exists()
        ]


def _unsquared(b: Experiment, replicates: Sequence[int]) -> Iterator[Row]:
    """The term with and without its square, in the logistic successor."""
    for variant, algorithm, backend in (
        (PUBLISHED, baselines.UnsquaredProx(mu=2.0), simulation.sequential),
        (MEANT, b.algorithm, batched),
        ("no term", FedProx(mu=0.0), batched),
    ):
        runs = grid(b, algorithm=[algorithm], replicate=replicates)
        yield from _finals(POWER_LAW, variant, trained(runs, backend=backend))


def _unsquared_cnn(b: Experiment, replicates: Sequence[int]) -> Iterator[Row]:
    """The same in the blog's CNN."""
    for variant, algorithm in ((PUBLISHED, baselines.UnsquaredProx(mu=1.0)), (MEANT, b.algorithm)):
        runs = grid(b, algorithm=[algorithm], replicate=replicates)
        yield from _finals(CNN, variant, trained(runs, backend=simulation.sequential))


def _unsquared_base(profile: Profile) -> Experiment:
    return power_law(profile, FedProx(mu=2.0), straggler_fraction=0.5)


def _unsquared_cnn_base(profile: Profile) -> Experiment:
    return replace(_cnn(profile, FedProx(mu=1.0), rounds=20), straggler_fraction=0.5)


BALANCED = {PUBLISHED: baselines.balanced_by_counts, MEANT: baselines.balanced_by_offsets}


def _two_digits(b: Experiment, _: Sequence[int]) -> Iterator[Row]:
    """Balancing by counts and by offsets: which digits are left, and how good a model can get."""
    train, test = datasets.load(b.data).train.labels, datasets.load(b.data).test.labels
    for variant, way in BALANCED.items():
        rows = way(train)
        yield ("labels", variant, 0, "rows", len(rows))
        yield ("labels", variant, 0, "different rows", len(np.unique(rows)))
        yield ("labels", variant, 0, "best possible test accuracy", float(np.isin(test, train[rows]).mean()))
        for digit, count in enumerate(np.bincount(train[rows], minlength=10)):
            yield ("labels", variant, 0, f"rows of digit {digit}", int(count))


def _two_digits_cnn(b: Experiment, replicates: Sequence[int]) -> Iterator[Row]:
    """How good the CNN gets on what is left."""

    def cut(f: PreparedFederation, way: Callable[[np.ndarray], np.ndarray], r: int) -> PreparedFederation:
        rows = way(f.train.labels)
        shards = LabelShards(b.partition.num_clients).split(f.train.labels[rows], data_seed=r)
        return _recut(f, Partition(tuple(rows[held] for held in shards.rows)))

    for variant, way in BALANCED.items():
        for r in replicates:
            # The loss on rows that no client holds says nothing, so only the accuracy is kept.
            yield next(_finals(CNN, variant, trained([b.replicate(r)], change=partial(cut, way=way, r=r))))


def _two_digits_cnn_base(profile: Profile) -> Experiment:
    b = _cnn(profile, FedAvg(), rounds=10)
    often = replace(b.evaluation, every=min(b.evaluation.every, 2))
    return replace(b, train_rows=None, work=replace(b.work, epochs=1), evaluation=often)


def _everybody(b: Experiment, replicates: Sequence[int]) -> Iterator[Row]:
    """Who trains in a round, and what keeping partial work gains when everybody does and when 10 do."""
    n = b.partition.num_clients
    for s in sweeps.STRAGGLERS:
        everyone = baselines.cohort_size_of(n, 1.0, int(n * (1 - s)))
        yield (f"{s:.0%} stragglers", PUBLISHED, 0, "clients averaged", everyone)
        yield (f"{s:.0%} stragglers", MEANT, 0, "clients averaged", round(10 * (1 - s)))
    for variant, cohort in ((PUBLISHED, n), (MEANT, 10)):
        sized = replace(b, cohort_size=cohort)
        kept, dropped = (trained(grid(sized, algorithm=[a], replicate=replicates)) for a in (KEEPS, FedAvg()))
        yield from _gaps(SHARDS, variant, GAIN, kept, dropped)


def _batch_counts(b: Experiment, replicates: Sequence[int]) -> Iterator[Row]:
    """Weights by rows and by mini-batches, without stragglers."""

    def weights(planner: Planner, t: int) -> np.ndarray:
        held = np.array([c.num_examples for c in planner.round_plan(t).cohort], dtype=float)
        return held / held.sum()

    runs = grid(b, replicate=replicates)
    for e, f in zip(runs, federations_of(runs), strict=True):
        for variant, planner in ((PUBLISHED, baselines.CountsBatches(_uniform(f))), (MEANT, f.planner)):
            factors = [(weights(planner, t) / weights(f.planner, t)).max() for t in range(1, e.rounds + 1)]
            yield (POWER_LAW, variant, e.data_seed, "largest factor on a weight", float(max(1.0, *factors)))
    yield from _finals(POWER_LAW, PUBLISHED, trained(runs, baselines.CountsBatches))
    yield from _finals(POWER_LAW, MEANT, trained(runs))


def _tenfold_loss(b: Experiment, _: Sequence[int]) -> Iterator[Row]:
    """The reported loss of one trained model over its true one, for three batch sizes of the test loader."""
    w = trained([b])[0].state.params
    losses = registry.model_named(b.model).loss_and_correct(w, *datasets.load(b.data).test)[0].numpy()
    for size in (1, 10, 100):
        ratio = baselines.reported_loss(losses, size) / losses.mean()
        yield (f"batches of {size}", PUBLISHED, 0, "reported / true loss", ratio)
        yield (f"batches of {size}", MEANT, 0, "reported / true loss", 1.0)


def _unseeded(b: Experiment, replicates: Sequence[int]) -> Iterator[Row]:
    """Two runs of one method, and mu = 0.1 against mu = 0, with luck shared and with luck of their own."""
    runs = grid(b, replicate=replicates)
    others = {
        MEANT: runs,
        PUBLISHED: [replace(e, seed=e.seed + ELSE) for e in runs],
        "own partition too": [e.replicate(e.seed + ELSE) for e in runs],
    }
    first = trained(runs)
    for variant, other in others.items():
        for what, algorithm in (("same method twice", KEEPS), ("mu = 0.1 minus mu = 0", FedProx(mu=0.1))):
            second = trained([replace(e, algorithm=algorithm) for e in other])
            yield from _gaps(SHARDS, variant, f"{what} (test accuracy)", second, first)


def _upper_end(b: Experiment, replicates: Sequence[int]) -> Iterator[Row]:
    """Stragglers' epochs on 1..E-1 and on 1..E."""
    for variant, rule in ((PUBLISHED, "1..E-1"), (MEANT, "1..E")):
        runs = grid(replace(b, straggler_epochs=rule), replicate=replicates)
        for e, f in zip(runs, federations_of(runs), strict=True):
            late = [c for t in range(1, e.rounds + 1) for c in f.planner.round_plan(t).cohort if c.straggler]
            mean = float(np.mean([len(c.order) / c.num_examples for c in late]))
            yield (POWER_LAW, variant, e.data_seed, "epochs of a straggler", mean)
        yield from _finals(POWER_LAW, variant, trained(runs))


def _bernoulli(b: Experiment, replicates: Sequence[int]) -> Iterator[Row]:
    """FedAvg at 90 % stragglers with exact counts and with one coin per client: idle rounds, and what they cost."""
    runs = grid(b, replicate=replicates)
    ways: dict[str, Callable[[UniformPlanner], Planner]] = {
        PUBLISHED: baselines.TossesCoins,
        MEANT: lambda planner: planner,
    }
    for variant, planner in ways.items():
        for e, f in zip(runs, federations_of(runs), strict=True):
            plans = (planner(_uniform(f)).round_plan(t) for t in range(1, e.rounds + 1))
            idle = float(np.mean([all(c.straggler for c in plan.cohort) for plan in plans]))
            yield (POWER_LAW, variant, e.data_seed, "share of rounds without an update", idle)
        yield from _finals(POWER_LAW, variant, trained(runs, planner))


def _redrawn(b: Experiment, replicates: Sequence[int]) -> Iterator[Row]:
    """One table of coins for both arms, and one for each: how far they agree, and the interval of a comparison."""
    runs = grid(b, replicate=replicates)
    base = trained(runs, baselines.TossesCoins)
    for variant, schedule in ((PUBLISHED, 1), (MEANT, 0)):
        for e, f in zip(runs, federations_of(runs), strict=True):
            tables = [baselines.TossesCoins(_uniform(f), k) for k in (0, schedule)]
            same = [np.equal(*(c.is_straggler(t) for c in tables)).mean() for t in range(1, e.rounds + 1)]
            yield (POWER_LAW, variant, e.data_seed, "share of equal entries", float(np.mean(same)))
        coins = partial(baselines.TossesCoins, schedule=schedule)
        dropped, pulled = (trained([replace(e, algorithm=a) for e in runs], coins) for a in (FedAvg(), FedProx(mu=2.0)))
        yield from _gaps(POWER_LAW, variant, GAIN, base, dropped)
        yield from _gaps(POWER_LAW, variant, "mu = 2 minus mu = 0 (test accuracy)", pulled, base)


def _leak(b: Experiment, replicates: Sequence[int]) -> Iterator[Row]:
    """A tenth of the pool as test set, with and without taking it from the clients. MNIST plays FEMNIST's part."""

    def split(f: PreparedFederation, *, kept: bool) -> PreparedFederation:
        test, without = baselines.held_out_of_the_pool(f.partition, len(f.train.y) // 10, _uniform(f).seed)
        return replace(_recut(f, f.partition if kept else without), test=f.train.take(test))

    for variant, kept in ((PUBLISHED, True), (MEANT, False)):
        for e in grid(b, replicate=replicates):  # each has a pool of its own
            federation = federation_of(e)
            test, _ = baselines.held_out_of_the_pool(federation.partition, len(federation.train.y) // 10, e.seed)
            federation = split(federation, kept=kept)
            held = np.isin(test, np.concatenate(federation.partition.rows)).mean()
            yield (POWER_LAW, variant, e.seed, "test rows that a client holds", float(held))
            done = trained([e], change=partial(split, kept=kept))
            right = federation.model.loss_and_correct(done[0].state.params, *datasets.load(b.data).test)[1]
            yield (POWER_LAW, variant, e.seed, "accuracy on MNIST's own test set", float(right.double().mean()))
            yield from _finals(POWER_LAW, variant, done)


def _leak_base(profile: Profile) -> Experiment:
    b = power_law(profile, straggler_fraction=0.0)
    return b if profile.is_smoke else replace(b, train_rows=10_000, partition=PowerLaw(num_clients=200))


SNIPPET: dict[str, Any] = {"data": "mnist5k", "mu": 1000.0, "lr": 0.001}


def _snippet(_: Experiment, replicates: Sequence[int]) -> Iterator[Row]:
    """How far four batches end from plain SGD, for an iterator and for a list as anchor."""
    model, digits = models.logistic(), datasets.load(SNIPPET["data"]).train
    for r in replicates:
        w = model.init(r)
        batches = [digits.take(rows) for rows in stream(r, "snippet").permutation(len(digits.y))[:40].reshape(4, 10)]
        copies = [t.detach().clone() for t in w.values()]
        train = partial(baselines.train_with_anchor, model, w, batches, lr=SNIPPET["lr"])
        plain = train([], mu=0.0)
        ways = {PUBLISHED: (iter(copies), False), "a list instead": (copies, False), MEANT: (copies, True)}
        for variant, (anchor, squared) in ways.items():
            end = train(anchor, mu=SNIPPET["mu"], squared=squared)
            far = max(float((t - plain[name]).abs().max()) for name, t in end.items())
            yield ("four batches of 10 digits", variant, r, "largest difference from plain SGD", far)


@dataclass(frozen=True)
class Defect:
    """One slip.

    Attributes:
        key: its name on the command line.
        title: in a few words.
        where: ``path::function`` in adap/flower.
        commit: at which it was read.
        what: one sentence.
        still: whether it is there, in whatever file, at ``NOW``.
        history: since when, and by which commit it was fixed, in words.
        pinned_by: tests of ours that hold the library to what is right.
        moves_accuracy: whether test accuracy is among what is measured.
        measurements: what shows its effect.
    """

    key: str
    title: str
    where: str
    commit: str
    what: str
    still: bool
    history: str
    pinned_by: tuple[str, ...]
    moves_accuracy: bool
    measurements: tuple[Measurement, ...]

    @property
    def url(self) -> str:
        """The file at the commit."""
        return f"https://github.com/adap/flower/blob/{self.commit}/{self.where.partition('::')[0]}"

    @property
    def command(self) -> str:
        """What measures it again."""
        return f"python -m fedprox_book.audit {self.key}"

    def measure(self, profile: Profile) -> pd.DataFrame:
        """All its lines, with the columns ``COLUMNS``, from the record or by training."""
        return pd.concat([table for measurement in self.measurements for table in measurement.tables(profile)])


# --- the slips -------------------------------------------------------------------------------------------------------

BLOG, LATER, NOW = "8c63abf50c", "010feb0440", "fdef7afb1d"
"""The commits that were read: the blog's code (February 2023), its successor (October 2023), March 2026."""

_OLD = "baselines/flwr_baselines/publications/fedprox_mnist"
_NEW = "baselines/fedprox/fedprox"

_LIST = (
    Defect(
        "unsquared", "The norm without its square", f"{_OLD}/model.py::_training_loop", BLOG,
        "The penalty adds up the norms of the tensors' differences, not their squares.",
        False, f"from {BLOG} on; fixed in the baseline by cbe2bc4563 (September 2023, pull request 2210)",
        ("tests/test_algorithms.py::test_proximal_steps_match_the_closed_form_of_a_quadratic",
         "tests/test_algorithms.py::test_one_client_matches_torch_sgd_on_the_penalised_loss"),
        True,
        (Measurement("unsquared-logistic", _unsquared_base, _unsquared),
         Measurement("unsquared-cnn", _unsquared_cnn_base, _unsquared_cnn, apart=True)),
    ),
    Defect(
        "two-digits", "Balanced down to two digits", f"{_OLD}/dataset.py::_balance_classes", BLOG,
        "The sorted rows are cut at the class counts instead of at the places where the classes begin.",
        True, "fixed in the FedProx baseline by 8872ec3146 (July 2023, pull request 1918); baselines/flwr_baselines/"
        f"flwr_baselines/publications/fedavg_mnist/dataset.py still has it at {NOW}",
        ("tests/test_partition.py::test_label_shards_as_the_blog_tells",
         "tests/book/test_audit.py::test_our_shards_hold_every_row_and_every_digit"),
        True,
        (Measurement("two-digits", sweeps.base, _two_digits, lambda b: {"data": b.data}),
         Measurement("two-digits-cnn", _two_digits_cnn_base, _two_digits_cnn, apart=True)),
    ),
    Defect(
        "everybody", "All clients, every round, one arm", f"{_OLD}/main.py::main", BLOG,
        "fraction_fit=1.0 selects all clients, so the smaller min_fit_clients changes nothing, nobody is dropped, and "
        "there is no FedAvg to compare with.",
        False, "since 8872ec3146 (July 2023) 10 clients a round, and FedAvg drops its stragglers",
        ("tests/test_plan.py::test_straggler_counts_are_exact_in_every_round",
         "tests/test_experiment.py::test_sweeps_pair_their_arms"),
        True, (Measurement("everybody", label_shards, _everybody),),
    ),
    Defect(
        "batch-counts", "Batches counted as examples", f"{_OLD}/client.py::FlowerClient.fit", BLOG,
        "A client reports len(trainloader), its mini-batches, as the number of its examples.",
        True, f"harmless there, where all clients are equal; still so at {LATER} and {NOW}, where they are not",
        ("tests/test_algorithms.py::test_the_average_weighs_rows_not_batches_and_not_work",),
        True, (Measurement("batch-counts", partial(power_law, straggler_fraction=0.0), _batch_counts),),
    ),
    Defect(
        "tenfold-loss", "A loss ten times too small", f"{_OLD}/model.py::test", BLOG,
        "Means over mini-batches are added up and divided by the number of rows.",
        True, f"unchanged in {_NEW}/model.py at {NOW}",
        ("tests/test_diagnostics.py::test_metrics_are_means_over_rows_for_any_chunk",),
        False, (Measurement("tenfold-loss", partial(power_law, straggler_fraction=0.0, rounds=3), _tenfold_loss),),
    ),
    Defect(
        "unseeded", "Luck of its own for every run", f"{_OLD}/client.py::gen_client_fn", BLOG,
        "Initial weights, stragglers and batches come from generators that nobody seeds; two runs share only the data.",
        True, f"at {LATER} the sizes of the clients too ({_NEW}/dataset_preparation.py, _power_law_split); at {NOW} "
        "the partition is seeded, the rest is not",
        ("tests/test_plan.py::test_round_70_needs_no_history_and_no_global_generator",
         "tests/test_experiment.py::test_initial_weights_depend_on_the_seed_alone",
         "tests/test_results.py::test_two_runs_give_the_same_record_to_the_last_digit"),
        True, (Measurement("unseeded", partial(label_shards, straggler_fraction=0.5), _unseeded),),
    ),
    Defect(
        "upper-end", "The upper end of a straggler's epochs", f"{_OLD}/client.py::FlowerClient.fit", BLOG,
        "NumPy's randint(1, E) draws from 1..E-1; the paper says 1..E. The authors' own code does the same.",
        True, f"unchanged in {_NEW}/client_app.py at {NOW}",
        ("tests/test_plan.py::test_straggler_epochs_are_uniform_on_their_range",),
        True, (Measurement("upper-end", power_law, _upper_end),),
    ),
    Defect(
        "bernoulli", "A coin for every straggler", f"{_NEW}/client.py::gen_client_fn", LATER,
        "Each client is a straggler with probability s by itself, so their number varies from round to round.",
        True, f"from {BLOG} on; it matters since stragglers are dropped (8872ec3146, July 2023)",
        ("tests/test_plan.py::test_straggler_counts_are_exact_in_every_round",),
        True, (Measurement("bernoulli", partial(power_law, algorithm=FedAvg(), rounds=100), _bernoulli),),
    ),
    Defect(
        "redrawn", "A schedule drawn anew at every birth", f"{_NEW}/client_app.py::client_fn", NOW,
        "Whenever a client object is made it draws a whole schedule, unseeded, and reads one entry of it.",
        True, "in the port to Flower Apps (be663c70e7, February 2025)",
        ("tests/test_plan.py::test_the_straggler_fraction_changes_nothing_but_who_straggles",
         "tests/book/test_audit.py::test_our_arms_meet_the_same_stragglers"),
        True, (Measurement("redrawn", power_law, _redrawn),),
    ),
    Defect(
        "leak", "Test images in the clients' hands", f"{_NEW}/dataset.py::prepare_test_loader", NOW,
        "FEMNIST's test set is a tenth of the split that the clients are given in full.",
        True, "from aea46f6d3d (June 2025) on, for FEMNIST only; MNIST has its own test set",
        ("tests/book/test_audit.py::test_no_client_holds_a_row_that_we_test_on",),
        True, (Measurement("leak", _leak_base, _leak),),
    ),
    Defect(
        "snippet", "An anchor that is used up", "framework/py/flwr/server/strategy/fedprox.py::FedProx", NOW,
        "The documentation keeps the global weights in an iterator, which the first mini-batch uses up; and its norm "
        "lacks the square.",
        True, "in both strategies' docstrings (the other is framework/py/flwr/serverapp/strategy/fedprox.py), and so "
        "in the released flwr 1.41.0; the baselines themselves copy the weights into a list",
        ("tests/test_algorithms.py::test_a_stronger_leash_keeps_closer_in_the_stable_regime",
         "tests/test_algorithms.py::test_one_client_matches_torch_sgd_on_the_penalised_loss"),
        False, (Measurement("snippet", power_law, _snippet, lambda _: SNIPPET),),
    ),
)  # one paragraph per slip  # fmt: skip

DEFECTS = {defect.key: defect for defect in _LIST}
"""The slips by key, the blog's own first."""


def find(key: str) -> Defect:
    """The slip of that name.

    Raises:
        ValueError: if there is none; the message lists the names.
    """
    if key not in DEFECTS:
        raise ValueError(f"defect must be one of {', '.join(DEFECTS)}, got {key!r}.")
    return DEFECTS[key]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Published beside meant: one line per setting and metric.

    Args:
        rows: with the columns ``COLUMNS``.

    Returns:
        Columns setting, metric, ``PUBLISHED``, ``MEANT`` (means over replicates), difference (published minus meant),
        low, high (Student's 95 % interval of the paired difference; NaN for a single replicate) and replicates.

    Example:
        >>> lines = [("s", v, r, "m", r + x) for r in (0, 1) for v, x in ((PUBLISHED, 1.0), (MEANT, 0.0))]
        >>> summary(pd.DataFrame(lines, columns=list(COLUMNS)))[[PUBLISHED, MEANT, "difference"]].values.tolist()
        [[1.5, 0.5, 1.0]]
    """
    index = ["setting", "metric", "replicate"]
    wide = rows.pivot_table(index=index, columns="variant", values="value", sort=False)[[PUBLISHED, MEANT]].dropna()
    lines = []
    for (setting, metric), part in wide.groupby(level=["setting", "metric"], sort=False):
        mean, low, high = statistics.interval(list(part[PUBLISHED] - part[MEANT]))
        both = {PUBLISHED: part[PUBLISHED].mean(), MEANT: part[MEANT].mean()}
        gap = {"difference": mean, "low": low, "high": high, "replicates": len(part)}
        lines.append({"setting": setting, "metric": metric, **both, **gap})
    return pd.DataFrame(lines)


def describe(table: pd.DataFrame) -> str:
    """The summary of a table in lines of text, with the interval of the paired difference."""
    lines = []
    for row in summary(table).to_dict("records"):
        interval = f" [{row['low']:+.4f}, {row['high']:+.4f}]" if row["replicates"] > 1 else ""
        lines.append(
            f"  {row['setting']}: {row['metric']}: {PUBLISHED} {row[PUBLISHED]:.4f}, {MEANT} {row[MEANT]:.4f}, "
            f"difference {row['difference']:+.4f}{interval}, replicates: {row['replicates']}"
        )
    return "\n".join(lines)


def audit_command(arguments: Sequence[str] | None = None) -> None:
    """Measure one slip again, or list them all."""
    parser = argparse.ArgumentParser(prog="python -m fedprox_book.audit", description=audit_command.__doc__)
    parser.add_argument("key", nargs="?", help="which; without it they are listed")
    parser.add_argument("--profile", choices=("smoke", "paper"), default="paper", help="default: %(default)s")
    parser.add_argument("--store", type=Path, help="keep the new records here; by default they are thrown away")
    given = parser.parse_args(arguments)
    if given.key is None:
        print("\n".join(f"{d.key:14} {d.title}" for d in DEFECTS.values()))
        return
    try:
        defect = find(given.key)
    except ValueError as error:
        parser.error(str(error))
    print(f"{defect.title}\n{defect.what}\n{defect.url} ({defect.where.partition('::')[2]})\n{defect.history}")
    with tempfile.TemporaryDirectory(prefix="fedprox-audit-") as temporary:
        store = given.store or Path(temporary)
        try:
            fresh = defect.measure(replace(profiles.profile_named(given.profile), folder=store, may_train=True))
        except DataMissing as error:
            sys.exit(f"{error}\nOr add --profile smoke, which uses the digits that come with the installation.")
    print(f"measured now, profile {given.profile}:\n{describe(fresh)}")
    try:
        print(f"the book's record, full MNIST:\n{describe(defect.measure(profiles.profile_named('published')))}")
    except RecordMissing as error:
        print(f"the book has no record of it: {error}")


if __name__ == "__main__":
    audit_command()
