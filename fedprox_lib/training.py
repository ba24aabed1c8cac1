"""One experiment from start (or its last checkpoint) to a finished record.

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
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedprox_lib import records, tree
from fedprox_lib.experiment import Experiment
from fedprox_lib.records import Record, RecordDamaged
from fedprox_lib.simulate import Backend, Federation, State, sequential, simulate

CHECKPOINT_SECONDS = 20.0
"""A run writes a checkpoint when this long has passed since the last one."""


class Interrupted(Exception):
    """Training was asked to stop; a checkpoint holds what was done."""


def train(
    experiment: Experiment,
    store: Path,
    *,
    backend: Backend = sequential,
    device: str = "cpu",
    checkpoint_seconds: float | None = None,
    on_round: Callable[[State], bool] = lambda state: True,
) -> Record:
    """Train one experiment and record it under ``store/runs/<id>``.

    Args:
        experiment: what to train.
        store: folder of records.
        backend: who does the jobs.
        device: where the tensors lie.
        checkpoint_seconds: time between checkpoints; None for ``CHECKPOINT_SECONDS``, 0 for every round.
        on_round: called after every round; False stops the run after a checkpoint.

    Raises:
        Interrupted: if ``on_round`` said so.
        StoreUnwritable: if the store cannot be written.
    """
    _commit()  # of the code that trains, not of what has been committed by the time it is done
    pause = CHECKPOINT_SECONDS if checkpoint_seconds is None else checkpoint_seconds
    checkpoint = store / ".partial" / f"{experiment.id}.safetensors"
    reached, rows, spent = _load_checkpoint(checkpoint)
    started = saved = time.monotonic()
    outcome: dict[str, Any] = {"status": "complete"}
    with one_thread():
        federation = Federation.of(experiment, device)
        if reached is not None:
            reached = _placed(reached, device)
        rounds = simulate(experiment, backend=backend, device=device, federation=federation, state=reached)
        for state, measured in rounds:
            if measured:
                rows.append({"round": state.round, **measured})
            if not tree.all_finite(state.params):
                outcome = {"status": "diverged", "round": state.round}
                break
            go_on = on_round(state)
            now = time.monotonic()
            if not go_on or (now - saved >= pause and state.round < experiment.rounds):
                _save_checkpoint(checkpoint, state, rows, spent + now - started)
                saved = now
            if not go_on:
                raise Interrupted(experiment.id)
    facts = provenance(
        data_sha256=federation.data_sha256,
        backend=getattr(backend, "__name__", str(backend)),
        device=device,
        seconds=round(spent + time.monotonic() - started, 1),
    )
    record = Record(experiment.settings(), pd.DataFrame(rows), outcome, facts)
    records.write(store / "runs" / experiment.id, record)
    checkpoint.unlink(missing_ok=True)
    return record


def default_device() -> str:
    """A CUDA GPU if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Train on one thread: sums then have one order, and a second core does the next run instead.

    On Linux freed memory is also kept for reuse, or the kernel zeroes fresh pages at every local step of the CNN.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def provenance(**facts: Any) -> dict[str, Any]:
    """Who, where, when: everything about a record that does not change its numbers."""
    return {
        "made_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "fedprox_lib": _version("fedprox-lib"),
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "numpy")},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": 1,
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


def _save_checkpoint(path: Path, state: State, rows: list[dict], seconds: float) -> None:
    tensors = {f"params/{name}": w for name, w in state.params.items()}
    tensors |= {f"server/{name}": w for name, w in state.server.items()}
    for client, memory in state.memories.items():
        tensors |= {f"memory/{client}/{name}": w for name, w in memory.items()}
    about = {"round": str(state.round), "rows": json.dumps(rows), "seconds": str(seconds)}
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


def _load_checkpoint(path: Path) -> tuple[State | None, list[dict], float]:
    if not path.exists():
        return None, [], 0.0
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
        return state, json.loads(about["rows"]), float(about["seconds"])
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
