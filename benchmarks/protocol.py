"""What a peer is given and what it answers: the task on disk, the command line, one line of JSON.

Read by every peer in an environment of its own, so nothing but NumPy is imported here.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_IMPORTED = time.time()

Weights = dict[str, Any]
"""NumPy arrays by name."""


class Task(NamedTuple):
    """The work, as everybody gets it.

    Attributes:
        x: (n, 784) or (n, 1, 28, 28) float32.
        y: (n,) int64.
        rows: row numbers of each client.
        cohorts: (T, K) int64, the clients of each round.
        start: initial weights by name.
        facts: what ``task.json`` says: model, epochs, batch_size, lr, mu, seed, client_steps, ...
    """

    x: np.ndarray
    y: np.ndarray
    rows: list[np.ndarray]
    cohorts: np.ndarray
    start: Weights
    facts: dict


def write(folder: Path, task: Task) -> None:
    """Lay a task out as ``task.npz`` and ``task.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
        "x": task.x,
        "y": task.y,
        "rows": np.concatenate(task.rows),
        "splits": np.cumsum([len(rows) for rows in task.rows])[:-1],
        "cohorts": task.cohorts,
    }
    arrays |= {f"start/{name}": w for name, w in task.start.items()}
    np.savez(folder / "task.npz", **arrays)
    (folder / "task.json").write_text(json.dumps(task.facts, indent=1) + "\n")


def read(folder: Path) -> Task:
    """Read what :func:`write` wrote."""
    with np.load(folder / "task.npz") as file:
        start = {name.removeprefix("start/"): file[name] for name in file.files if name.startswith("start/")}
        rows = np.split(file["rows"], file["splits"])
        x, y, cohorts = file["x"], file["y"], file["cohorts"]
    return Task(x, y, rows, cohorts, start, json.loads((folder / "task.json").read_text()))


def arguments() -> argparse.Namespace:
    """The command line that every peer understands."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", type=Path, required=True, help="folder with task.npz and task.json")
    parser.add_argument("--out", type=Path, required=True, help="where to write the final weights (npz)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--started", type=float, default=_IMPORTED, help="Unix time at which this process was started")
    return parser.parse_args()


def run(
    peer: str,
    packages: tuple[str, ...],
    args: argparse.Namespace,
    task: Task,
    train: Callable[[np.ndarray], tuple],
    warm_up: np.ndarray | None = None,
) -> None:
    """Time the training and answer.

    Args:
        peer: its name.
        packages: distributions whose versions belong to the answer.
        args: from :func:`arguments`.
        task: the work.
        train: ``train(cohorts)`` trains from the initial weights through these rounds and returns the final weights,
            in memory and finished, and the number of local steps that were *done* (counted, not computed). A third
            number, if given, is how many steps were done in all, by whatever else was trained in the same time.
        warm_up: the cohorts of an untimed first call; its time counts as start-up.
    """
    if warm_up is not None:
        train(warm_up)
    startup = time.time() - args.started
    seconds = []
    for _ in range(args.repeats):
        begin = time.perf_counter()
        weights, steps, *all_steps = train(task.cohorts)
        seconds.append(round(time.perf_counter() - begin, 4))
    np.savez(args.out, **weights)
    answer = {
        "peer": peer,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "startup_seconds": round(startup, 2),
        "seconds": seconds,
        "client_steps": steps,
        "all_client_steps": all_steps[0] if all_steps else steps,
        "threads": args.threads,
    }
    print(json.dumps(answer), flush=True)
