"""The tables of the audit: train runs under other decisions, and put what they end at into rows.

Which question this answers: *what is compared with what, and how is it written down?* :func:`power_law` and
:func:`label_shards` are the sizes at which it is trained, :func:`trained` trains runs whose planner or partition has
been replaced, :func:`finals` and :func:`differences` make rows of them, :func:`table` records the rows, and
:func:`summary` sets "as published" beside "as meant" with the paired difference and its interval.

Taught in "The baseline as published". Room: pandas. May import results, statistics and what they stand on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
from tqdm import tqdm

from fedprox_book import sweeps
from fedprox_book.profile import Profile
from fedprox_lib.algorithms import FedProx
from fedprox_lib.engine import batched
from fedprox_lib.partition import Partition, PowerLaw
from fedprox_lib.plan import LocalWork, Planner, UniformPlanner
from fedprox_lib.simulation import Backend, State
from fedprox_lib.sweeps import lockstep, records, results, statistics
from fedprox_lib.sweeps.experiment import Evaluation, Experiment
from fedprox_lib.sweeps.federations import PreparedFederation, federations_of

COLUMNS = ("setting", "variant", "replicate", "metric", "value")
"""Of every table of the audit. Values are fractions, nats or counts, as the metric says."""

PUBLISHED, MEANT = "as published", "as meant"
"""The two variants that every table has: what the code does, and what its text or the paper says."""

ELSE = 5000
"""Added to a seed that should have nothing to do with the other; the replicate is the seed modulo this."""

Row = tuple[str, str, int, str, float]
"""One line of a table, in the order of ``COLUMNS``."""


POWER_LAW, SHARDS, CNN = "logistic, power law", "logistic, label shards", "CNN, label shards"
"""The settings in which something is trained."""


def power_law(profile: Profile) -> Experiment:
    """The size of the baseline's successors: 1,000 clients, 10 a round, E = 10, B = 10, lr 0.03; 40 rounds."""
    small = profile.is_smoke
    return Experiment(
        algorithm=FedProx(mu=0.0),
        data="mnist5k" if small else "mnist",
        model="logistic",
        partition=PowerLaw(num_clients=40 if small else 1000),
        work=LocalWork(epochs=2 if small else 10, batch_size=10, lr=0.03),
        rounds=3 if small else 40,
        cohort_size=10,
        straggler_fraction=0.9,
        evaluation=Evaluation(every=1 if small else 4, train_rows=2_000),
    )


def label_shards(profile: Profile) -> Experiment:
    """:func:`fedprox_book.sweeps.logistic` over 20 rounds at 90 % stragglers."""
    b = replace(sweeps.logistic(profile, "mnist"), algorithm=FedProx(mu=0.0), straggler_fraction=0.9)
    return replace(b, rounds=min(b.rounds, 20))


def replicates(profile: Profile) -> range:
    """Ten of them where training is cheap; two in smoke."""
    return range(2 if profile.is_smoke else 10)


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


def uniform(federation: PreparedFederation) -> UniformPlanner:
    """The planner of a federation as it is prepared."""
    assert isinstance(federation.planner, UniformPlanner)
    return federation.planner


def recut(f: PreparedFederation, partition: Partition) -> PreparedFederation:
    """The federation with other clients."""
    return replace(f, partition=partition, planner=replace(uniform(f), partition=partition, drawn={}))


def trained(
    runs: Sequence[Experiment],
    planner: Callable[[UniformPlanner], Planner] = lambda planner: planner,
    change: Callable[[PreparedFederation], PreparedFederation] = lambda federation: federation,
    backend: Backend = batched,
) -> list[Trained]:
    """Train different experiments of one model.

    Args:
        runs: no two of them alike.
        planner: makes another plan producer of a run's own.
        change: makes another federation of a run's own; comes first.
        backend: who does the jobs.
    """
    federations = [change(f) for f in federations_of(runs)]
    federations = [replace(f, planner=planner(uniform(f))) for f in federations]
    measured: dict[str, list[dict[str, float]]] = {e.id: [] for e in runs}
    states: dict[str, State] = {}
    steps = lockstep.together(runs, backend=backend, federations=federations)
    # None: a bar on a terminal only, never in a notebook.
    for done in tqdm(steps, total=sum(e.rounds + 1 for e in runs), unit="round", leave=False, disable=None):
        measured[done.experiment.id] += [done.measured] if done.measured else []
        states[done.experiment.id] = done.state
    last = {name: pd.DataFrame(rows[-3:]).mean().to_dict() for name, rows in measured.items()}
    return [Trained(e.data_seed % ELSE, states[e.id], last[e.id]) for e in runs]


def finals(setting: str, variant: str, runs: Sequence[Trained]) -> Iterator[Row]:
    """Test accuracy and training loss of every run."""
    for run in runs:
        yield (setting, variant, run.replicate, "test accuracy", run.measured["test_accuracy"])
        yield (setting, variant, run.replicate, "training loss (nats)", run.measured["train_loss"])


def differences(
    setting: str, variant: str, metric: str, runs: Sequence[Trained], minus: Sequence[Trained]
) -> Iterator[Row]:
    """Test accuracy of each run minus that of its partner."""
    for a, b in zip(runs, minus, strict=True):
        yield (setting, variant, a.replicate, metric, a.measured["test_accuracy"] - b.measured["test_accuracy"])


def table(
    name: str, profile: Profile, make: Callable[[], Iterator[Row]], base: Experiment | None = None, **settings: Any
) -> pd.DataFrame:
    """A named table of rows.

    Args:
        name: without the prefix ``audit-``.
        profile: whose store, and whether computing is allowed.
        make: computes the rows.
        base: the experiment that the measurement starts from; its settings are part of the table's identity.
        settings: what else is.
    """
    identity = {"size": "smoke" if profile.is_smoke else "paper"} | (base.settings() if base else {}) | settings
    return results.table(f"audit-{name}", profile, identity, lambda: pd.DataFrame(list(make()), columns=list(COLUMNS)))


def by_replicate(
    name: str, profile: Profile, make: Callable[[int], Iterator[Row]], base: Experiment
) -> list[pd.DataFrame]:
    """One table a replicate, so that an interrupted measurement goes on with the next; without training, what is there.

    Args:
        name: to which the replicate is appended.
        profile: as for :func:`table`.
        make: computes the rows of a replicate.
        base: as for :func:`table`.
    """
    wanted = sweeps.REPLICATES[:1] if profile.is_smoke else sweeps.REPLICATES
    there = [r for r in wanted if profile.may_train or records.exists(profile.folder / "tables" / f"audit-{name}-{r}")]
    return [table(f"{name}-{r}", profile, partial(make, r), base.replicate(r)) for r in there]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Published beside meant: one line a setting and metric.

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
    wide = rows.pivot_table(
        index=["setting", "metric", "replicate"], columns="variant", values="value", sort=False
    )[[PUBLISHED, MEANT]].dropna()  # fmt: skip
    lines = []
    for (setting, metric), part in wide.groupby(level=["setting", "metric"], sort=False):
        mean, low, high = statistics.interval(list(part[PUBLISHED] - part[MEANT]))
        both = {PUBLISHED: part[PUBLISHED].mean(), MEANT: part[MEANT].mean()}
        gap = {"difference": mean, "low": low, "high": high, "replicates": len(part)}
        lines.append({"setting": setting, "metric": metric, **both, **gap})
    return pd.DataFrame(lines)
