"""Experiments from start (or their last checkpoints) to finished records, trained together where that pays.

:func:`train_wave` trains the runs of one program and records each as soon as it is done. What stops it leaves
checkpoints, ``<store>/.partial/<id>.safetensors``. Layer: sweeps (where simulation meets files).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from fedprox_lib import engine
from fedprox_lib.simulation import State
from fedprox_lib.sweeps import records
from fedprox_lib.sweeps.checkpoint import load_checkpoint, save_checkpoint
from fedprox_lib.sweeps.experiment import Experiment
from fedprox_lib.sweeps.federations import federations_of
from fedprox_lib.sweeps.lockstep import Progress, together
from fedprox_lib.sweeps.provenance import commit, provenance
from fedprox_lib.sweeps.records import Record

CHECKPOINT_SECONDS = 20.0
"""A run writes a checkpoint when this long has passed since the last one."""


class Interrupted(Exception):
    """Training was asked to stop; a checkpoint holds what was done."""


def train_wave(
    experiments: Sequence[Experiment],
    store: Path,
    *,
    backend: str = engine.DEFAULT,
    device: str = "cpu",
    threads: int = 1,
    checkpoint_seconds: float | None = None,
    on_round: Callable[[Experiment, State], object] = lambda experiment, state: True,
) -> list[Record]:
    """Train experiments together and record each under ``store/runs/<id>`` as soon as it is done.

    Args:
        experiments: what to train: runs of one model and batch size.
        store: folder of records.
        backend: who does the jobs, one of ``engine.BACKENDS``.
        device: where the tensors lie.
        threads: of PyTorch's operations.
        checkpoint_seconds: time between checkpoints; None for ``CHECKPOINT_SECONDS``, 0 for every round.
        on_round: called after every round of every run; False stops all of them after a checkpoint.

    Raises:
        Interrupted: if ``on_round`` said so.
        StoreUnwritable: if the store cannot be written.
    """
    commit()  # of the code that trains, not of what has been committed by the time it is done
    wave = _Wave(experiments, store, {"backend": backend, "device": device, "threads": threads})
    pause = CHECKPOINT_SECONDS if checkpoint_seconds is None else checkpoint_seconds
    saved = time.monotonic()
    try:
        with engine.use_threads(threads):
            for progress in wave.rounds():
                wave.note(progress)
                go_on = on_round(progress.experiment, progress.state) is not False
                if not go_on or time.monotonic() - saved >= pause:
                    wave.save_checkpoints()
                    saved = time.monotonic()
                if not go_on and wave.unfinished:
                    raise Interrupted(", ".join(wave.unfinished))
    except KeyboardInterrupt:
        wave.save_checkpoints()  # the last round that every run has finished, so that little is lost
        raise
    return [wave.finished[e.id] for e in experiments]


class _Wave:
    """Runs that train as one program: which are unfinished, and the records of those that are done."""

    def __init__(self, experiments: Sequence[Experiment], store: Path, how: dict) -> None:
        self.experiments, self.store, self.how = experiments, store, how
        self.unfinished = {e.id: load_checkpoint(store / ".partial" / f"{e.id}.safetensors") for e in experiments}
        self.finished: dict[str, Record] = {}
        self.started = time.monotonic()

    @property
    def share(self) -> float:
        """Seconds since the start that one run accounts for."""
        return (time.monotonic() - self.started) / len(self.experiments)

    def rounds(self) -> Iterator[Progress]:
        """Every round of every run that is left."""
        device = self.how["device"]
        federations = federations_of(self.experiments, device)
        self.data_sha256 = {e.id: f.data_sha256 for e, f in zip(self.experiments, federations, strict=True)}
        states = [run.state and run.state.to(device) for run in self.unfinished.values()]
        backend = engine.BACKENDS[self.how["backend"]]
        return together(self.experiments, backend=backend, device=device, federations=federations, states=states)

    def note(self, progress: Progress) -> None:
        """Take a round down, and record the run if it was its last."""
        e, state, measured, seconds, finite = progress
        run = self.unfinished[e.id]
        run.state, run.measuring = state, run.measuring + seconds
        if measured:
            run.rows.append({"round": state.round, **measured})
        if state.round == e.rounds or not finite:
            self._record(e, state.round, finite)

    def _record(self, e: Experiment, t: int, finite: bool) -> None:
        run = self.unfinished[e.id]
        facts = provenance(
            data_sha256=self.data_sha256[e.id],
            **self.how,
            runs_together=len(self.experiments),
            seconds=round(run.seconds + self.share, 3),
            seconds_measuring=round(run.measuring, 3),
        )
        outcome = {"status": "complete"} if finite else {"status": "diverged", "round": t}
        self.finished[e.id] = Record(e.settings(), pd.DataFrame(run.rows), outcome, facts)
        records.write(self.store / "runs" / e.id, self.finished[e.id])
        self.unfinished.pop(e.id).path.unlink(missing_ok=True)

    def save_checkpoints(self) -> None:
        """Of all runs that have begun."""
        for run in self.unfinished.values():
            if run.state is not None:
                save_checkpoint(run, self.share)
