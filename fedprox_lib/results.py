"""Run or load: hand over a list of experiments, get one tidy table back.

``run`` loads what the profile's store has, trains what it lacks (if the profile may), and returns one row per
experiment and measured round, settings on the left, measurements on the right (``COLUMNS`` explains them). ``table``
does the same for a named table. An interrupted sweep goes on where it stopped.

``python -m fedprox_lib.results`` (``make results``) trains every sweep of the book, on all cores, with a progress bar.
Room: pandas. May import all of the above; nothing of ours imports it.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from fedprox_lib import data, engine, parallel, records, training
from fedprox_lib import profile as profiles
from fedprox_lib.experiment import Experiment
from fedprox_lib.parallel import TooLarge
from fedprox_lib.profile import Profile
from fedprox_lib.records import Record

COLUMNS = {
    "record": "id of the run: names its record under results/runs",
    "arm": "algorithm and its numbers",
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
    """The profile may not train, and its store lacks what was asked for."""


def run(
    experiments: Sequence[Experiment],
    profile: Profile,
    *,
    workers: int | None = None,
    backend: str = engine.DEFAULT,
    device: str = "cpu",
    memory_gib: float = 4.0,
    checkpoint_seconds: float | None = None,
) -> pd.DataFrame:
    """Load what is recorded, train what is not, return one table.

    Runs that can train as one program do so: same model, data set and batch size; everything else may differ.

    Args:
        experiments: what is wanted; duplicates are trained once.
        profile: whose store, and whether training is allowed.
        workers: how many processes train side by side, each on one thread; None for one a core, or a single one
            where the work is too little to be worth a start.
        backend: "batched", or "sequential" for the readable definition, which is slower and agrees up to rounding.
        device: "cpu" or "cuda".
        memory_gib: what all workers together may use beyond the data set, in GiB. It bounds how many runs train
            together, not how many there may be.
        checkpoint_seconds: time between checkpoints of a run; None for the library's choice.

    Raises:
        RecordMissing: something lacks and the profile may not train.
        RecordDamaged: a record is not what it should be; nothing is trained then.
        StoreUnwritable: the store cannot be written.
        TooLarge: a run would not fit into the memory; nothing is trained then.
    """
    wanted = {experiment.id: experiment for experiment in experiments}
    folder = lambda name: profile.store / "runs" / name  # noqa: E731
    have = {name: load(e, profile) for name, e in wanted.items() if records.exists(folder(name))}
    lacking = [e for name, e in wanted.items() if name not in have]
    if lacking and not profile.may_train:
        raise RecordMissing(
            f"{len(lacking)} of {len(wanted)} runs are not in {profile.store} (first: {lacking[0].id}), and profile "
            f"{profile.name!r} does not train. Use profile 'paper' (make results) or 'smoke'."
        )
    if lacking:
        _require_writable(profile.store)
        parallel.train(
            lacking,
            profile.store,
            workers=workers,
            backend=backend,
            device=device,
            memory_gib=memory_gib,
            checkpoint_seconds=checkpoint_seconds,
        )
        have |= {e.id: load(e, profile) for e in lacking}
    return pd.concat([_tidy(wanted[name], have[name]) for name in wanted], ignore_index=True)


def available(experiments: Sequence[Experiment], profile: Profile) -> list[Experiment]:
    """Those that :func:`run` can give: all if the profile may train, else the recorded ones."""
    return [e for e in experiments if profile.may_train or records.exists(profile.store / "runs" / e.id)]


def load(experiment: Experiment, profile: Profile) -> Record:
    """The record of one run, checked."""
    return records.read(profile.store / "runs" / experiment.id, experiment.settings())


def table(name: str, profile: Profile, settings: dict[str, Any], make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Run or load a named table.

    Args:
        name: of the table, for example ``"heatmap"``.
        profile: whose store, and whether computing is allowed.
        settings: everything that changes the numbers; part of the table's identity.
        make: computes it.
    """
    folder = profile.store / "tables" / name
    if not records.exists(folder):
        if not profile.may_train:
            raise RecordMissing(f"table {name!r} is not in {profile.store}: 'make results' computes it.")
        _require_writable(profile.store)
        with training.use_threads(1):
            made = make()
        records.write(folder, Record(settings, made, {"status": "complete"}, training.provenance(threads=1)))
    return records.read(folder, settings).table


def provenance(experiments: Sequence[Experiment], profile: Profile) -> pd.DataFrame:
    """One row a run: where its record comes from and what it cost."""
    rows = []
    for e in experiments:
        record = load(e, profile)
        rows.append({"record": e.id, "arm": e.label, "outcome": record.outcome["status"], **record.provenance})
    return pd.DataFrame(rows)


def _tidy(e: Experiment, record: Record) -> pd.DataFrame:
    left = {"record": e.id, "arm": e.label, **e.settings()}
    frame = record.table.assign(**{name: value for name, value in left.items() if value is not None})
    frame["diverged_at"] = record.outcome.get("round", float("nan"))
    return frame[[name for name in left if name in frame] + [*record.table.columns, "diverged_at"]]


def _require_writable(store: Path) -> None:
    """Fail before training, not after it."""
    probe = store / ".partial" / f"probe.{os.getpid()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        records.write_file(probe, b"x" * 4096)
        probe.unlink()
    except OSError as error:
        if probe.parent.is_dir():
            probe.unlink(missing_ok=True)
        raise records.StoreUnwritable(
            f"results folder {store} cannot be written ({error}); nothing was trained. Free some space or choose a "
            "writable folder."
        ) from error


def main() -> None:
    """Train every sweep of the book that the store lacks."""
    from fedprox_lib import sweeps, sweeps_paper

    parser = argparse.ArgumentParser(prog="python -m fedprox_lib.results", description=main.__doc__)
    groups = {"book": sweeps.BOOK | sweeps.PLANNED, "paper": sweeps_paper.PAPER}
    every = groups["book"] | groups["paper"]
    by_name = every | {name: sweep for name, (sweep, _) in sweeps_paper.NOT_RUN.items()}
    parser.add_argument("--only", choices=groups, help="only the sweeps of the chapters, or only the paper's own")
    parser.add_argument("--sweep", choices=sorted(by_name), action="append", help="only this sweep (repeatable)")
    parser.add_argument("--profile", default="paper", choices=profiles.PROFILES)
    parser.add_argument("--store", type=Path, help="another results folder")
    parser.add_argument("--workers", type=int, help="processes side by side; by default one a core, on a GPU one")
    parser.add_argument("--backend", default=engine.DEFAULT, choices=engine.BACKENDS)
    parser.add_argument("--memory-gib", type=float, default=4.0, help="for all workers together; default: %(default)s")
    parser.add_argument("--device", default=training.default_device(), help="default here: %(default)s")
    parser.add_argument("--checkpoint-seconds", type=float)
    chosen = parser.parse_args()
    profile = profiles.get(chosen.profile)
    if chosen.store:
        profile = replace(profile, store=chosen.store, may_train=True)
    experiments = [e for name in chosen.sweep or groups.get(chosen.only, every) for e in by_name[name](profile)]
    recorded = lambda: sum(records.exists(profile.store / "runs" / e.id) for e in experiments)  # noqa: E731
    print(f"{recorded()} of {len(experiments)} runs are recorded in {profile.store}", flush=True)
    try:
        run(
            experiments,
            profile,
            workers=chosen.workers,
            backend=chosen.backend,
            device=chosen.device,
            memory_gib=chosen.memory_gib,
            checkpoint_seconds=chosen.checkpoint_seconds,
        )
    except KeyboardInterrupt:
        sys.exit(f"stopped: {recorded()} of {len(experiments)} runs are recorded; the same command goes on from here")
    except (data.DataMissing, data.DataCorrupt, records.RecordDamaged, records.StoreUnwritable, TooLarge) as error:
        sys.exit(f"{error}\n{recorded()} of {len(experiments)} runs are recorded in {profile.store}")
    print(f"{recorded()} of {len(experiments)} runs are recorded in {profile.store}")


if __name__ == "__main__":
    main()
