"""A sweep on all cores: cut into waves of runs that train together, done by worker processes, with one progress bar.

Which runs share a program, which process does them, and does it fit into memory? A *wave* is what
:func:`fedprox_lib.sweeps.training.train_wave` gets at once; :func:`waves` cuts them. Each worker is a process of its
own that trains one wave at a time. After every round it looks at the event that asks it to stop; all the time it
watches its parent, so that a killed parent leaves no worker behind.

Taught in "Fast enough to sweep". Layer: sweeps (processes).
"""

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fedprox_lib import engine
from fedprox_lib.plan import num_stragglers
from fedprox_lib.simulation import State
from fedprox_lib.sweeps import registry, training
from fedprox_lib.sweeps.experiment import Experiment

TOGETHER_BYTES = 2 << 20
"""Weights of the runs that train as one program, at most: more would need more memory and win little."""

WORTH_A_PROCESS = 30.0
"""Seconds of estimated work below which no second process is started (a start costs some seconds itself)."""

STEPS_PER_SECOND = {"logistic": 20_000, "cnn": 60, "cnn_blog": 60}
"""Rough local steps per second of one core, for that estimate only."""


class TooLarge(MemoryError):
    """A run would not fit into the memory budget; said before it starts."""


def train_sweep(
    lacking: Sequence[Experiment],
    store: Path,
    *,
    workers: int | None = None,
    backend: str = engine.DEFAULT,
    device: str = "cpu",
    memory_gib: float = 4.0,
    checkpoint_seconds: float | None = None,
) -> None:
    """Train and record runs, as :func:`fedprox_lib.sweeps.results.run` describes it."""
    cores = (os.cpu_count() or 1) if device == "cpu" else 1
    if workers is None:
        seconds = sum(estimated_steps(e) / STEPS_PER_SECOND[e.model] for e in lacking)
        workers = cores if seconds > WORTH_A_PROCESS else 1
    cut = waves(lacking, workers, backend, device, memory_gib)
    alone = len(cut) == 1 and workers > 1  # nothing to do side by side: give the one program all cores
    how: dict[str, Any] = {
        "backend": backend,
        "device": device,
        "threads": threads_of(cut[0][0].model, cores, device) if alone else 1,
        "checkpoint_seconds": checkpoint_seconds,
    }
    total = round(sum(map(estimated_steps, lacking)))
    with tqdm(total=total, unit="step", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        if alone or workers == 1:
            for wave in cut:
                training.train_wave(wave, store, **how, on_round=lambda e, state: bar.update(_steps_in_round(e, state)))
        else:
            _side_by_side(cut, store, workers, how, bar)


def threads_of(model: str, cores: int, device: str) -> int:
    """Threads of one program that has all cores to itself.

    A CNN's operations are long enough to be shared out; the short ones of logistic regression lose on a busy machine
    far more than they win on an idle one, because threads wait for each other at every step.
    """
    one_by_one = engine.jobs_at_once(4 * registry.model_named(model).num_parameters, device) == 1
    return cores if device == "cpu" and one_by_one else 1


def waves(
    experiments: Sequence[Experiment], workers: int, backend: str, device: str, memory_gib: float
) -> list[list[Experiment]]:
    """Cut a sweep into lists of runs that train together: same model, row shape and batch size.

    Runs with the same seeds stay side by side, for they share data, plans and batches.

    Raises:
        TooLarge: if a run alone needs more than the budget, shared among ``workers``.
    """
    budget = memory_gib * 2**30 / workers
    alike: dict[tuple, list[Experiment]] = {}
    for e in experiments:
        gains = backend != "sequential" and engine.jobs_at_once(_parameter_bytes(e), device) > 1
        key = (e.model, registry.DATASETS[e.data].num_features, e.work.batch_size) if gains else (e.id,)
        alike.setdefault(key, []).append(e)
    cut = []
    for runs in alike.values():
        runs.sort(key=lambda e: (e.data, e.data_seed, e.seed, repr(e.partition), e.straggler_fraction))
        most = min(max(1, TOGETHER_BYTES // _parameter_bytes(runs[0])), -(-len(runs) // workers))
        wave: list[Experiment] = []
        for e in runs:
            _require_fits(e, budget, workers)
            if wave and (len(wave) == most or estimated_bytes([*wave, e]) > budget):
                cut.append(wave)
                wave = []
            wave.append(e)
        cut.append(wave)
    return cut


def _require_fits(e: Experiment, budget: float, workers: int) -> None:
    if (alone := estimated_bytes([e])) > budget:
        raise TooLarge(
            f"run {e.id} ({e.label}, {e.partition.num_clients} clients, {e.rounds} rounds) needs about "
            f"{alone / 2**30:.1f} GiB, most of it what up to {_touched(e)} clients remember, and each of {workers} "
            f"worker(s) may use {budget / 2**30:.1f} GiB: raise memory_gib, use fewer workers, rounds or clients. "
            "Nothing was trained."
        )


def estimated_bytes(together: Sequence[Experiment]) -> float:
    """Roughly what runs need while they train together, beyond the data set itself: subsets, weights, memories."""
    total = 0.0
    subsets = {
        (e.data, e.data_seed, e.train_rows): 4 * registry.DATASETS[e.data].num_features * e.train_rows
        for e in together
        if e.train_rows
    }
    for e in together:
        some = {"w": torch.zeros(1)}
        held = 2 + len(e.algorithm.init_server(some)) + 4 * e.cohort_size  # a cohort's models, deltas in float64
        held += 4 * e.algorithm.gradient_clients  # likewise
        total += _parameter_bytes(e) * (held + _touched(e) * len(e.algorithm.init_memory(some)))
    return total + sum(subsets.values())


def estimated_steps(e: Experiment) -> float:
    """Roughly how many local steps a run costs, for the progress bar; sizes are taken as equal."""
    rows = (e.train_rows or registry.DATASETS[e.data].num_rows) / e.partition.num_clients
    full = e.work.epochs * -(-rows // e.work.batch_size)
    late = num_stragglers(e.cohort_size, e.straggler_fraction)
    partial = late * full * (e.work.epochs + 1) / (2 * e.work.epochs) if e.algorithm.keeps_partial_work else 0
    return e.rounds * ((e.cohort_size - late) * full + partial)


def _touched(e: Experiment) -> int:
    return min(e.partition.num_clients, e.rounds * e.cohort_size)


def _parameter_bytes(e: Experiment) -> int:
    return 4 * registry.model_named(e.model, registry.DATASETS[e.data].num_features).num_parameters


def _steps_in_round(e: Experiment, state: State) -> float:
    return estimated_steps(e) / e.rounds if state.round else 0.0  # round 0 only measures


# --- worker processes ------------------------------------------------------------------------------------------------

_worker: dict[str, Any] = {}


def _start_worker(steps: Any, stop: Any, parent: int, sources: list[str]) -> None:
    for source in sources:  # what the parent knows by name
        importlib.import_module(source)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    _worker.update(steps=steps, stop=stop)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)  # records and checkpoints appear by renaming, so no moment is a wrong one


def _work(wave: list[Experiment], store: Path, how: dict[str, Any]) -> None:
    def on_round(e: Experiment, state: State) -> bool:
        _worker["steps"].put(_steps_in_round(e, state))
        return not _worker["stop"].is_set()

    training.train_wave(wave, store, **how, on_round=on_round)


def _side_by_side(cut: list[list[Experiment]], store: Path, workers: int, how: dict[str, Any], bar: tqdm) -> None:
    spawn = multiprocessing.get_context("spawn")
    steps, stop = spawn.SimpleQueue(), spawn.Event()

    def follow() -> None:
        while (done := steps.get()) is not None:
            bar.update(done)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    pool = ProcessPoolExecutor(
        min(workers, len(cut)), spawn, _start_worker, (steps, stop, os.getpid(), registry.SOURCES)
    )
    try:
        futures = [pool.submit(_work, wave, store, how) for wave in cut]
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
