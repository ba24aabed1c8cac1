"""What the slips in the blog's own code do, measured: the same runs as published and as meant.

Which question this answers: *how much does each matter?* The code is Flower's first FedProx baseline (adap/flower at
8c63abf50c), the slips are those of :mod:`fedprox_book.baselines`. Each function here returns a tidy table with the
columns of :mod:`fedprox_book.audit_table` and records it as ``results/tables/audit-...``, one table a replicate where a
CNN is trained. Logistic regression on few clients wherever the point allows it: ten replicates there, three of the
CNN. :mod:`fedprox_book.audit_later` does the same for what came after, :mod:`fedprox_book.audit` re-runs any of them.

Taught in "The baseline as published". Room: pandas. May import baselines, audit_table and what they stand on.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from fedprox_book import baselines, sweeps
from fedprox_book.audit_table import (
    CNN,
    ELSE,
    MEANT,
    POWER_LAW,
    PUBLISHED,
    SHARDS,
    Row,
    by_replicate,
    differences,
    finals,
    label_shards,
    power_law,
    recut,
    replicates,
    table,
    trained,
    uniform,
)
from fedprox_book.profile import Profile
from fedprox_lib import simulation
from fedprox_lib.algorithms import Algorithm, FedAvg, FedProx
from fedprox_lib.engine import batched
from fedprox_lib.partition import LabelShards, Partition
from fedprox_lib.plan import Planner
from fedprox_lib.simulation import Backend
from fedprox_lib.sweeps import datasets, registry
from fedprox_lib.sweeps.experiment import grid
from fedprox_lib.sweeps.federations import PreparedFederation, federations_of


def unsquared(profile: Profile) -> pd.DataFrame:
    """The term with and without its square: mu = 2 in the logistic successor, mu = 1 in the blog's CNN."""
    b = replace(power_law(profile), straggler_fraction=0.5)
    arms: list[tuple[str, Algorithm, Backend]] = [
        (PUBLISHED, baselines.UnsquaredProx(mu=2.0), simulation.sequential),
        (MEANT, FedProx(mu=2.0), batched),
        ("no term", FedProx(mu=0.0), batched),
    ]

    def make() -> Iterator[Row]:
        for variant, algorithm, backend in arms:
            runs = grid(b, algorithm=[algorithm], replicate=replicates(profile))
            yield from finals(POWER_LAW, variant, trained(runs, backend=backend))

    cnn = replace(sweeps.base(profile), algorithm=FedProx(mu=1.0), straggler_fraction=0.5)
    cnn = replace(cnn, rounds=1, cohort_size=2) if profile.is_smoke else replace(cnn, rounds=20)

    def make_cnn(r: int) -> Iterator[Row]:
        for variant, algorithm in ((PUBLISHED, baselines.UnsquaredProx(mu=1.0)), (MEANT, cnn.algorithm)):
            runs = [replace(cnn, algorithm=algorithm).replicate(r)]
            yield from finals(CNN, variant, trained(runs, backend=simulation.sequential))

    logistic = table("unsquared-logistic", profile, make, base=b, mu=2.0)
    return pd.concat([logistic, *by_replicate("unsquared-cnn", profile, make_cnn, base=cnn)])


def two_digits(profile: Profile) -> pd.DataFrame:
    """Balancing by counts and by offsets: which digits are left, how good a model can get, how good the CNN gets."""
    b = sweeps.base(profile)
    b = replace(b, algorithm=FedAvg(), train_rows=None, work=replace(b.work, epochs=1))
    if profile.is_smoke:
        b = replace(b, rounds=1, cohort_size=2)
    else:
        b = replace(b, rounds=10, evaluation=replace(b.evaluation, every=2))
    ways = {PUBLISHED: baselines.balanced_by_counts, MEANT: baselines.balanced_by_offsets}

    def make() -> Iterator[Row]:
        train, test = datasets.load(b.data).train.labels, datasets.load(b.data).test.labels
        for variant, way in ways.items():
            rows = way(train)
            yield ("labels", variant, 0, "rows", len(rows))
            yield ("labels", variant, 0, "different rows", len(np.unique(rows)))
            yield ("labels", variant, 0, "best possible test accuracy", float(np.isin(test, train[rows]).mean()))
            for digit, count in enumerate(np.bincount(train[rows], minlength=10)):
                yield ("labels", variant, 0, f"rows of digit {digit}", int(count))

    def make_cnn(r: int) -> Iterator[Row]:
        for variant, way in ways.items():

            def cut(f: PreparedFederation, way: Callable = way) -> PreparedFederation:
                rows = way(f.train.labels)
                shards = LabelShards(b.partition.num_clients).split(f.train.labels[rows], data_seed=r)
                return recut(f, Partition(tuple(rows[held] for held in shards.rows)))

            # The loss on rows that no client holds says nothing, so only the accuracy is kept.
            yield next(finals(CNN, variant, trained([b.replicate(r)], change=cut)))

    labels = table("two-digits", profile, make, data=b.data)
    return pd.concat([labels, *by_replicate("two-digits-cnn", profile, make_cnn, base=b)])


def everybody(profile: Profile) -> pd.DataFrame:
    """Who trains in a round, and what keeping partial work gains when everybody does and when 10 do."""
    b = label_shards(profile)
    n = b.partition.num_clients

    def make() -> Iterator[Row]:
        for s in sweeps.STRAGGLERS:
            everyone = baselines.cohort_size_of(n, 1.0, int(n * (1 - s)))
            yield (f"{s:.0%} stragglers", PUBLISHED, 0, "clients averaged", everyone)
            yield (f"{s:.0%} stragglers", MEANT, 0, "clients averaged", round(10 * (1 - s)))
        for variant, cohort in ((PUBLISHED, n), (MEANT, 10)):
            sized = replace(b, cohort_size=cohort)
            kept, dropped = (
                trained(grid(sized, algorithm=[a], replicate=replicates(profile))) for a in (FedProx(mu=0.0), FedAvg())
            )
            yield from differences(SHARDS, variant, "gain of keeping partial work (test accuracy)", kept, dropped)

    return table("everybody", profile, make, base=b)


def batch_counts(profile: Profile) -> pd.DataFrame:
    """Weights by rows and by mini-batches, without stragglers."""
    b = replace(power_law(profile), straggler_fraction=0.0)
    runs = grid(b, replicate=replicates(profile))

    def make() -> Iterator[Row]:
        for e, f in zip(runs, federations_of(runs), strict=True):
            worst = {PUBLISHED: 1.0, MEANT: 1.0}
            for t in range(1, e.rounds + 1):
                right = _weights(f.planner, t)
                for variant, planner in ((PUBLISHED, baselines.CountsBatches(uniform(f))), (MEANT, f.planner)):
                    worst[variant] = max(worst[variant], float((_weights(planner, t) / right).max()))
            for variant, factor in worst.items():
                yield (POWER_LAW, variant, e.data_seed, "largest factor on a weight", factor)
        yield from finals(POWER_LAW, PUBLISHED, trained(runs, baselines.CountsBatches))
        yield from finals(POWER_LAW, MEANT, trained(runs))

    return table("batch-counts", profile, make, base=b)


def tenfold_loss(profile: Profile) -> pd.DataFrame:
    """The reported loss of one trained model over its true one, for three batch sizes of the test loader."""
    b = replace(power_law(profile), rounds=3, straggler_fraction=0.0)

    def make() -> Iterator[Row]:
        w = trained([b])[0].state.params
        losses = registry.model_named(b.model).loss_and_correct(w, *datasets.load(b.data).test)[0].numpy()
        for size in (1, 10, 100):
            ratio = baselines.reported_loss(losses, size) / losses.mean()
            yield (f"batches of {size}", PUBLISHED, 0, "reported / true loss", ratio)
            yield (f"batches of {size}", MEANT, 0, "reported / true loss", 1.0)

    return table("tenfold-loss", profile, make, base=b)


def unseeded(profile: Profile) -> pd.DataFrame:
    """Two runs of one method, and mu = 0.1 against mu = 0, with luck shared and with luck of their own."""
    b = replace(label_shards(profile), straggler_fraction=0.5)
    other = {
        MEANT: lambda e: e,
        PUBLISHED: lambda e: replace(e, seed=e.seed + ELSE),
        "own partition too": lambda e: e.replicate(e.seed + ELSE),
    }

    def make() -> Iterator[Row]:
        runs = grid(b, replicate=replicates(profile))
        first = trained(runs)
        for variant, change in other.items():
            for what, algorithm in (("same method twice", FedProx(mu=0.0)), ("mu = 0.1 minus mu = 0", FedProx(mu=0.1))):
                second = trained([replace(change(e), algorithm=algorithm) for e in runs])
                yield from differences(SHARDS, variant, f"{what} (test accuracy)", second, first)

    return table("unseeded", profile, make, base=b)


def upper_end(profile: Profile) -> pd.DataFrame:
    """Stragglers' epochs on 1..E-1 and on 1..E."""
    b = power_law(profile)

    def make() -> Iterator[Row]:
        for variant, rule in ((PUBLISHED, "1..E-1"), (MEANT, "1..E")):
            runs = grid(replace(b, straggler_epochs=rule), replicate=replicates(profile))
            for e, f in zip(runs, federations_of(runs), strict=True):
                late = [c for t in range(1, e.rounds + 1) for c in f.planner.round_plan(t).cohort if c.straggler]
                mean = float(np.mean([len(c.order) / c.num_examples for c in late]))
                yield (POWER_LAW, variant, e.data_seed, "epochs of a straggler", mean)
            yield from finals(POWER_LAW, variant, trained(runs))

    return table("upper-end", profile, make, base=b)


def _weights(planner: Planner, t: int) -> np.ndarray:
    held = np.array([c.num_examples for c in planner.round_plan(t).cohort], dtype=float)
    return held / held.sum()
