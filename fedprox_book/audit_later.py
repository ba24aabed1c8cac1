"""What the slips in the later baselines and in the documentation do, measured: as published and as meant.

Which question this answers: *how much does each matter?* The code is that of Flower's FedProx baseline with logistic
regression (adap/flower at 010feb0440 and at fdef7afb1d) and the lines in the documentation of its FedProx strategy; the
slips are those of :mod:`fedprox_book.baselines`. Tables and records are as in :mod:`fedprox_book.audit_blog`.

Taught in "The baseline as published". Room: pandas. May import baselines, audit_table and what they stand on.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from fedprox_book import baselines
from fedprox_book.audit_table import (
    MEANT,
    POWER_LAW,
    PUBLISHED,
    Row,
    differences,
    finals,
    power_law,
    recut,
    replicates,
    table,
    trained,
    uniform,
)
from fedprox_book.profile import Profile
from fedprox_lib import models
from fedprox_lib.algorithms import FedAvg, FedProx
from fedprox_lib.partition import PowerLaw
from fedprox_lib.plan import Planner, UniformPlanner
from fedprox_lib.rng import stream
from fedprox_lib.sweeps import datasets
from fedprox_lib.sweeps.experiment import grid
from fedprox_lib.sweeps.federations import PreparedFederation, federation_of, federations_of


def bernoulli(profile: Profile) -> pd.DataFrame:
    """FedAvg at 90 % stragglers with exact counts and with a coin a client: idle rounds, and what they cost."""
    b = replace(power_law(profile), algorithm=FedAvg())
    b = b if profile.is_smoke else replace(b, rounds=100)

    def make() -> Iterator[Row]:
        runs = grid(b, replicate=replicates(profile))
        ways: list[tuple[str, Callable[[UniformPlanner], Planner]]] = [
            (PUBLISHED, baselines.TossesCoins),
            (MEANT, lambda planner: planner),
        ]
        for variant, planner in ways:
            for e, f in zip(runs, federations_of(runs), strict=True):
                plans = (planner(uniform(f)).round_plan(t) for t in range(1, e.rounds + 1))
                idle = float(np.mean([all(c.straggler for c in plan.cohort) for plan in plans]))
                yield (POWER_LAW, variant, e.data_seed, "share of rounds without an update", idle)
            yield from finals(POWER_LAW, variant, trained(runs, planner))

    return table("bernoulli", profile, make, base=b)


def redrawn(profile: Profile) -> pd.DataFrame:
    """One table of coins for both arms and one each: how far they agree, and the interval of a comparison."""
    b = power_law(profile)

    def make() -> Iterator[Row]:
        runs = grid(b, replicate=replicates(profile))
        arms = {"keeping partial work": FedAvg(), "mu = 2": FedProx(mu=2.0)}
        base = trained(runs, baselines.TossesCoins)
        for variant, schedule in ((PUBLISHED, 1), (MEANT, 0)):

            def coins(planner: UniformPlanner, schedule: int = schedule) -> Planner:
                return baselines.TossesCoins(planner, schedule)

            for e, f in zip(runs, federations_of(runs), strict=True):
                tables = [baselines.TossesCoins(uniform(f), k) for k in (0, schedule)]
                same = [np.equal(*(c.is_straggler(t) for c in tables)).mean() for t in range(1, e.rounds + 1)]
                yield (POWER_LAW, variant, e.data_seed, "share of equal entries", float(np.mean(same)))
            kept, pulled = (trained([replace(e, algorithm=a) for e in runs], coins) for a in arms.values())
            yield from differences(POWER_LAW, variant, "gain of keeping partial work (test accuracy)", base, kept)
            yield from differences(POWER_LAW, variant, "mu = 2 minus mu = 0 (test accuracy)", pulled, base)

    return table("redrawn", profile, make, base=b)


def leak(profile: Profile) -> pd.DataFrame:
    """A tenth of the pool as test set, with and without taking it from the clients. MNIST plays FEMNIST's part."""
    b = replace(power_law(profile), straggler_fraction=0.0)
    if not profile.is_smoke:
        b = replace(b, train_rows=10_000, partition=PowerLaw(num_clients=200))
    runs = grid(b, replicate=replicates(profile))

    def split(f: PreparedFederation, *, kept: bool) -> PreparedFederation:
        test, without = baselines.held_out_of_the_pool(f.partition, len(f.train.y) // 10, uniform(f).seed)
        return replace(recut(f, f.partition if kept else without), test=f.train.take(test))

    def make() -> Iterator[Row]:
        for variant, kept in ((PUBLISHED, True), (MEANT, False)):
            for e in runs:  # each has a pool of its own
                federation = federation_of(e)
                test, _ = baselines.held_out_of_the_pool(federation.partition, len(federation.train.y) // 10, e.seed)
                federation = split(federation, kept=kept)
                held = np.isin(test, np.concatenate(federation.partition.rows)).mean()
                yield (POWER_LAW, variant, e.seed, "test rows that a client holds", float(held))
                done = trained([e], change=partial(split, kept=kept))
                right = federation.model.loss_and_correct(done[0].state.params, *datasets.load(b.data).test)[1]
                yield (POWER_LAW, variant, e.seed, "accuracy on MNIST's own test set", float(right.double().mean()))
                yield from finals(POWER_LAW, variant, done)

    return table("leak", profile, make, base=b)


def snippet(profile: Profile) -> pd.DataFrame:
    """How far four batches with mu = 1000 end from plain SGD, for an iterator and for a list as anchor."""
    model, digits = models.logistic(), datasets.load("mnist5k").train

    def make() -> Iterator[Row]:
        for r in replicates(profile):
            w = model.init(r)
            batches = [
                digits.take(rows) for rows in stream(r, "snippet").permutation(len(digits.y))[:40].reshape(4, 10)
            ]
            copies = [t.detach().clone() for t in w.values()]
            plain = baselines.train_with_anchor(model, w, batches, [], lr=0.001, mu=0.0)
            ways = {PUBLISHED: (iter(copies), False), "a list instead": (copies, False), MEANT: (copies, True)}
            for variant, (anchor, squared) in ways.items():
                end = baselines.train_with_anchor(model, w, batches, anchor, lr=0.001, mu=1000.0, squared=squared)
                far = max(float((t - plain[name]).abs().max()) for name, t in end.items())
                yield ("four batches of 10 digits", variant, r, "largest difference from plain SGD", far)

    return table("snippet", profile, make, data="mnist5k", mu=1000.0, lr=0.001)
