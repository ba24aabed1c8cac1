"""Experiments from start (or their last checkpoints) to finished records, trained together where that pays.

A checkpoint is a safetensors file ``<store>/.partial/<id>.safetensors``: the tensors of the :class:`State`, and as
metadata the round and the rows measured so far. Since plans are pure functions of (seed, round), a run that goes on
from a checkpoint ends with the same digits as one that was never stopped.
Room: where simulation meets files. May import simulate, records and what they stand on.
"""

import contextlib
import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedprox_lib import engine, records, tree
from fedprox_lib.experiment import Experiment
from fedprox_lib.federation import prepare
from fedprox_lib.records import Record, RecordDamaged
from fedprox_lib.simulate import State, together

CHECKPOINT_SECONDS = 20.0
"""A run writes a checkpoint when this long has passed since the last one."""


class Interrupted(Exception):
    """Training was asked to stop; a checkpoint holds what was done."""


def train(
    experiments: Sequence[Experiment],
    store: Path,
    *,
    backend: str = engine.DEFAULT,
    device: str = "cpu",
    threads: int = 1,
    checkpoint_seconds: float | None = None,
    on_round: Callable[[Experiment, State], bool] = lambda experiment, state: True,
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
    _commit()  # of the code that trains, not of what has been committed by the time it is done
    pause = CHECKPOINT_SECONDS if checkpoint_seconds is None else checkpoint_seconds
    unfinished = {e.id: load_checkpoint(store / ".partial" / f"{e.id}.safetensors") for e in experiments}
    finished: dict[str, Record] = {}
    started = saved = time.monotonic()
    share = lambda: (time.monotonic() - started) / len(experiments)  # noqa: E731

    def checkpoint() -> None:
        for run in unfinished.values():
            if run.state is not None:
                save_checkpoint(run, share())

    try:
        with use_threads(threads):
            federations = prepare(experiments, device)
            shas = {e.id: f.data_sha256 for e, f in zip(experiments, federations, strict=True)}
            states = [s if s is None else _placed(s, device) for s in (run.state for run in unfinished.values())]
            for e, state, measured, seconds, finite in together(
                experiments, backend=engine.BACKENDS[backend], device=device, federations=federations, states=states
            ):
                run = unfinished[e.id]
                run.state, run.measuring = state, run.measuring + seconds
                if measured:
                    run.rows.append({"round": state.round, **measured})
                if state.round == e.rounds or not finite:
                    facts = provenance(
                        data_sha256=shas[e.id],
                        backend=backend,
                        device=device,
                        threads=threads,
                        runs_together=len(experiments),
                        seconds=round(run.seconds + share(), 3),
                        seconds_measuring=round(run.measuring, 3),
                    )
                    outcome = {"status": "complete"} if finite else {"status": "diverged", "round": state.round}
                    finished[e.id] = Record(e.settings(), pd.DataFrame(run.rows), outcome, facts)
                    records.write(store / "runs" / e.id, finished[e.id])
                    unfinished.pop(e.id).path.unlink(missing_ok=True)
                go_on = on_round(e, state)
                if not go_on or time.monotonic() - saved >= pause:
                    checkpoint()
                    saved = time.monotonic()
                if not go_on and unfinished:
                    raise Interrupted(", ".join(unfinished))
    except KeyboardInterrupt:
        checkpoint()  # the last round that every run has finished, so that little is lost
        raise
    return [finished[e.id] for e in experiments]


def default_device() -> str:
    """A CUDA GPU if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def use_threads(threads: int = 1) -> Iterator[None]:
    """Compute on so many threads. One is the rule: sums then have one order, and another core does another run.

    On Linux freed memory is also kept for reuse, or the kernel zeroes fresh pages at every local step of the CNN.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def provenance(**facts: Any) -> dict[str, Any]:
    """Who, where, when: everything about a record that does not change its numbers."""
    return {
        "made_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "fedprox_lib": _version("fedprox-lib"),
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "numpy")},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        **facts,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@lru_cache(maxsize=1)
def _commit() -> str:
    """The commit of the checkout that this code lies in, with "+changes" if files differ from it."""
    here = Path(__file__).resolve().parent
    try:
        ask = lambda *words: subprocess.run(  # noqa: E731
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = ask("status", "--porcelain", "--", str(here))
        return ask("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@dataclass
class Run:
    """What is known of an unfinished run: ``state`` is None before round 0."""

    path: Path
    state: State | None = None
    rows: list[dict] = field(default_factory=list)
    seconds: float = 0.0
    measuring: float = 0.0


def save_checkpoint(run: Run, seconds: float) -> None:
    path, state = run.path, run.state
    assert state is not None
    tensors = {f"params/{name}": w for name, w in state.params.items()}
    tensors |= {f"server/{name}": w for name, w in state.server.items()}
    for client, memory in state.memories.items():
        tensors |= {f"memory/{client}/{name}": w for name, w in memory.items()}
    about = {
        "round": str(state.round),
        "rows": json.dumps(run.rows),
        "seconds": str(run.seconds + seconds),
        "measuring": str(run.measuring),
    }
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        records.write_file(partial, save({name: w.cpu().contiguous() for name, w in tensors.items()}, about))
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise records.StoreUnwritable(
            f"checkpoint {path} could not be written ({error}). Free some space or choose a writable folder, then "
            "start again."
        ) from error


def load_checkpoint(path: Path) -> Run:
    if not path.exists():
        return Run(path)
    parts: dict[str, dict] = {"params": {}, "server": {}}
    memories: dict[int, dict] = {}
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            for key in file.keys():  # noqa: SIM118 (not a dictionary)
                kind, _, name = key.partition("/")
                if kind == "memory":
                    client, _, name = name.partition("/")
                    memories.setdefault(int(client), {})[name] = file.get_tensor(key)
                else:
                    parts[kind][name] = file.get_tensor(key)
        state = State(int(about["round"]), parts["params"], parts["server"], memories)
        return Run(path, state, json.loads(about["rows"]), float(about["seconds"]), float(about["measuring"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise RecordDamaged(f"checkpoint {path} is damaged ({error}): delete it to start this run again.") from error


def _placed(state: State, device: str) -> State:
    place = lambda w: tree.laid_out(w.to(device))  # noqa: E731
    return State(
        state.round,
        tree.map(place, state.params),
        tree.map(place, state.server),
        {client: tree.map(place, memory) for client, memory in state.memories.items()},
    )
