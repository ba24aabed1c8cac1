"""Run or load: hand over a list of experiments, get one tidy table back.

``run`` loads what the profile's store has, trains what it lacks (if the profile may), and returns one row per
experiment and measured round, settings on the left, measurements on the right (``COLUMNS`` explains them). ``table``
does the same for a named table. An interrupted sweep goes on where it stopped.

``python -m fedprox_lib.results`` (``make results``) trains every sweep of the book, two at a time, with a progress bar.
Room: pandas. May import all of the above; nothing of ours imports it.
"""

import argparse
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from fedprox_lib import profile as profiles
from fedprox_lib import records, training
from fedprox_lib.experiment import Experiment
from fedprox_lib.plan import num_stragglers
from fedprox_lib.profile import Profile
from fedprox_lib.records import Record

COLUMNS = {
    "record": "id of the run: names its record under results/runs",
    "arm": "algorithm and its numbers",
    "round": "communication round t; 0 is before training",
    "train_loss": "mean cross-entropy (nats) of w_t on the evaluated training rows of all clients",
    "test_loss": "mean cross-entropy (nats) of w_t on the evaluated test rows",
    "test_accuracy": "fraction in [0, 1] of the evaluated test rows that w_t classifies correctly",
    "diverged_at": "round in which a weight stopped being finite; empty if none did",
}
"""What the measured columns mean; all other columns are fields of :class:`Experiment` and of what it holds."""


class RecordMissing(FileNotFoundError):
    """The profile may not train, and its store lacks what was asked for."""


def run(
    experiments: Sequence[Experiment],
    profile: Profile,
    *,
    workers: int = 1,
    device: str = "cpu",
    checkpoint_seconds: float | None = None,
) -> pd.DataFrame:
    """Load what is recorded, train what is not, return one table.

    Args:
        experiments: what is wanted; duplicates are trained once.
        profile: whose store, and whether training is allowed.
        workers: how many runs train side by side, each on one thread.
        device: "cpu" or "cuda".
        checkpoint_seconds: time between checkpoints of a run; None for the library's choice.

    Raises:
        RecordMissing: something lacks and the profile may not train.
        RecordDamaged: a record is not what it should be; nothing is trained then.
        StoreUnwritable: the store cannot be written.
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
        steps = round(sum(map(estimated_steps, lacking)))
        with tqdm(total=steps, unit="step", unit_scale=True, disable=_no_terminal()) as bar:
            if workers == 1:
                for e in lacking:
                    training.train(
                        e,
                        profile.store,
                        device=device,
                        checkpoint_seconds=checkpoint_seconds,
                        on_round=_advance(bar, e),
                    )
            else:
                _train_side_by_side(lacking, profile.store, workers, device, checkpoint_seconds, bar)
        have |= {e.id: load(e, profile) for e in lacking}
    return pd.concat([_tidy(wanted[name], have[name]) for name in wanted], ignore_index=True)


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
        with training.one_thread():
            made = make()
        records.write(folder, Record(settings, made, {"status": "complete"}, training.provenance()))
    return records.read(folder, settings).table


def provenance(experiments: Sequence[Experiment], profile: Profile) -> pd.DataFrame:
    """One row a run: where its record comes from and what it cost."""
    rows = []
    for e in experiments:
        record = load(e, profile)
        rows.append({"record": e.id, "arm": e.label, "outcome": record.outcome["status"], **record.provenance})
    return pd.DataFrame(rows)


def estimated_steps(e: Experiment) -> float:
    """Roughly how many local steps a run costs, for the progress bar; sizes are taken as equal."""
    rows = (e.train_rows or (4_000 if e.data == "mnist5k" else 60_000)) / e.partition.num_clients
    full = e.work.epochs * -(-rows // e.work.batch_size)
    late = num_stragglers(e.cohort_size, e.straggler_fraction)
    partial = late * full * (e.work.epochs + 1) / (2 * e.work.epochs) if e.algorithm.keeps_partial_work else 0
    return e.rounds * ((e.cohort_size - late) * full + partial)


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


def _no_terminal() -> bool:
    return not sys.stderr.isatty()


def _steps_in_round(e: Experiment, state: Any) -> float:
    return estimated_steps(e) / e.rounds if state.round else 0.0  # round 0 only measures


def _advance(bar: tqdm, e: Experiment) -> Callable[[Any], bool]:
    def on_round(state: Any) -> bool:
        bar.update(_steps_in_round(e, state))
        return True

    return on_round


# --- several runs side by side -------------------------------------------------------------------------------------
# Each worker is a process of its own that trains one run at a time. After every round it looks at the event that asks
# it to stop; all the time it watches its parent, so that a killed parent leaves no worker behind.

_worker: dict[str, Any] = {}


def _start_worker(steps: Any, stop: Any, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    _worker.update(steps=steps, stop=stop)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)  # records and checkpoints appear by renaming, so no moment is a wrong one


def _work(e: Experiment, store: Path, device: str, checkpoint_seconds: float | None) -> None:
    def on_round(state: Any) -> bool:
        _worker["steps"].put(_steps_in_round(e, state))
        return not _worker["stop"].is_set()

    training.train(e, store, device=device, checkpoint_seconds=checkpoint_seconds, on_round=on_round)


def _train_side_by_side(
    lacking: list[Experiment], store: Path, workers: int, device: str, checkpoint_seconds: float | None, bar: tqdm
) -> None:
    spawn = multiprocessing.get_context("spawn")
    steps, stop = spawn.SimpleQueue(), spawn.Event()

    def follow() -> None:
        while (done := steps.get()) is not None:
            bar.update(done)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    pool = ProcessPoolExecutor(min(workers, len(lacking)), spawn, _start_worker, (steps, stop, os.getpid()))
    try:
        futures = [pool.submit(_work, e, store, device, checkpoint_seconds) for e in lacking]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        steps.put(None)
        follower.join()


def main() -> None:
    """Train every sweep of the book that the store lacks."""
    from fedprox_lib import sweeps

    parser = argparse.ArgumentParser(prog="python -m fedprox_lib.results", description=main.__doc__)
    parser.add_argument("--sweep", choices=sorted(sweeps.BOOK), action="append", help="only this sweep (repeatable)")
    parser.add_argument("--profile", default="paper", choices=profiles.PROFILES)
    parser.add_argument("--store", type=Path, help="another results folder")
    parser.add_argument("--workers", type=int, help="runs side by side; one a core on a CPU, one on a GPU")
    parser.add_argument("--device", default=training.default_device(), help="default here: %(default)s")
    parser.add_argument("--checkpoint-seconds", type=float)
    chosen = parser.parse_args()
    profile = profiles.get(chosen.profile)
    if chosen.store:
        profile = replace(profile, store=chosen.store, may_train=True)
    experiments = [e for name in chosen.sweep or sweeps.BOOK for e in sweeps.BOOK[name](profile)]
    recorded = lambda: sum(records.exists(profile.store / "runs" / e.id) for e in experiments)  # noqa: E731
    print(f"{recorded()} of {len(experiments)} runs are recorded in {profile.store}", flush=True)
    try:
        run(
            experiments,
            profile,
            workers=chosen.workers or (os.cpu_count() or 1 if chosen.device == "cpu" else 1),
            device=chosen.device,
            checkpoint_seconds=chosen.checkpoint_seconds,
        )
    except KeyboardInterrupt:
        sys.exit(f"stopped: {recorded()} of {len(experiments)} runs are recorded; the same command goes on from here")
    print(f"{recorded()} of {len(experiments)} runs are recorded in {profile.store}")


if __name__ == "__main__":
    main()
