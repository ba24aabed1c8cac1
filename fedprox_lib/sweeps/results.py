"""Run or load: hand over a list of experiments, get one tidy table back.

:func:`run` loads what the store has, trains what it lacks (if it may), and returns one row per experiment and measured
round, settings on the left, measurements on the right (``COLUMNS`` explains them). :func:`table` does the same for a
named table. An interrupted sweep goes on where it stopped. Layer: sweeps (pandas).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fedprox_lib import engine
from fedprox_lib.sweeps import parallel, records
from fedprox_lib.sweeps.experiment import Experiment
from fedprox_lib.sweeps.provenance import provenance
from fedprox_lib.sweeps.records import Record
from fedprox_lib.sweeps.store import Store, store_at

COLUMNS = {
    "record": "id of the run: names its record in the store's folder runs",
    "arm": "algorithm and its hyperparameters",
    "round": "communication round t; 0 is before training",
    "train_loss": "mean cross-entropy (nats) of w_t on the evaluated training rows of all clients",
    "test_loss": "mean cross-entropy (nats) of w_t on the evaluated test rows",
    "test_accuracy": "fraction in [0, 1] of the evaluated test rows that w_t classifies correctly",
    "gradient_variance": "E_k ||grad F_k(w_t) - grad f(w_t)||^2 over all clients, weighted by n_k / n",
    "dissimilarity": "B(w_t) = sqrt(E_k ||grad F_k||^2 / ||grad f||^2), at least 1; the paper's Definition 3",
    "next_mu": "mu in the round after this one, where it follows the loss",
    "diverged_at": "round in which a weight stopped being finite; empty if none did",
}
"""What the measured columns mean; all other columns are fields of :class:`Experiment` and of what it holds."""


class RecordMissing(FileNotFoundError):
    """A store lacks what was asked for, and may not train."""


def run(
    experiments: Sequence[Experiment],
    store: Store | Path | str,
    *,
    workers: int | None = None,
    backend: str = engine.DEFAULT,
    device: str = "cpu",
    memory_gib: float = 4.0,
    checkpoint_seconds: float | None = None,
) -> pd.DataFrame:
    """Load what is recorded, train what is not, return one table.

    Runs that can train as one program do so: same model, data set and batch size; everything else may differ.

    A record is found by names and settings, not by code: after a change to an algorithm of your own, give its class
    another name or use another folder.

    Args:
        experiments: what is wanted; duplicates are trained once.
        store: where records are, and whether training is allowed; a folder of yours is enough.
        workers: how many processes train side by side, each on one thread; None for one per core, or a single one
            where the work is too little to be worth a start.
        backend: "batched", or "sequential" for the readable definition, which is slower and agrees up to rounding.
        device: "cpu" or "cuda".
        memory_gib: what all workers together may use beyond the data set, in GiB. It bounds how many runs train
            together, not how many there may be.
        checkpoint_seconds: time between checkpoints of a run; None for the library's choice.

    Raises:
        RecordMissing: something is missing and the store may not train.
        RecordDamaged: a record is not what it should be; nothing is trained then.
        StoreUnwritable: the store cannot be written.
        TooLarge: a run would not fit into the memory; nothing is trained then.
    """
    wanted = {experiment.id: experiment for experiment in experiments}
    store = store_at(store)
    have = {name: load_record(e, store) for name, e in wanted.items() if store.run_folder(name).exists()}
    lacking = [e for name, e in wanted.items() if name not in have]
    if lacking and not store.may_train:
        raise RecordMissing(
            f"{len(lacking)} of {len(wanted)} runs are not in {store.folder} (first: {lacking[0].id}), and it does not "
            f"train. {store.advice}"
        )
    if lacking:
        store.require_writable()
        parallel.train_sweep(
            lacking,
            store.folder,
            workers=workers,
            backend=backend,
            device=device,
            memory_gib=memory_gib,
            checkpoint_seconds=checkpoint_seconds,
        )
        have |= {e.id: load_record(e, store) for e in lacking}
    return pd.concat([_tidy(wanted[name], have[name]) for name in wanted], ignore_index=True)


def available(experiments: Sequence[Experiment], store: Store) -> list[Experiment]:
    """Those that :func:`run` can give: all if the store may train, else the recorded ones."""
    return [e for e in experiments if store.may_train or store.run_folder(e.id).exists()]


def load_record(experiment: Experiment, store: Store) -> Record:
    """The record of one run, checked."""
    return records.read(store.run_folder(experiment.id), experiment.settings())


def table(name: str, store: Store, settings: dict[str, Any], make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Run or load a named table.

    Args:
        name: of the table, for example ``"heatmap"``.
        store: where it is, and whether computing is allowed.
        settings: everything that changes the numbers; part of the table's identity.
        make: computes it.
    """
    folder = store.table_folder(name)
    if not folder.exists():
        if not store.may_train:
            raise RecordMissing(f"table {name!r} is not in {store.folder}, and it does not compute. {store.advice}")
        store.require_writable()
        with engine.use_threads(1):
            made = make()
        records.write(folder, Record(settings, made, {"status": "complete"}, provenance(threads=1)))
    return records.read(folder, settings).table


def _tidy(e: Experiment, record: Record) -> pd.DataFrame:
    left = {"record": e.id, "arm": e.label, **e.settings()}
    frame = record.table.assign(**{name: value for name, value in left.items() if value is not None})
    frame["diverged_at"] = record.outcome.get("round", float("nan"))
    return frame[[name for name in left if name in frame] + [*record.table.columns, "diverged_at"]]
