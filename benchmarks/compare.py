"""Runs a peer on a task, and judges whether what it did is the same work.

Three conditions, all against our own run; whoever misses one is shown as different work and gets no ratio:

1. it counted as many local steps as the task has;
2. the training loss of its final weights is near ours. Peers shuffle by themselves, and with batches of ten that alone
   moves the loss, so this catches blunders only (``LOSS_TOLERANCE``);
3. on a small task with full batches (``task.CHECKS``), where no shuffle matters, its weights are ours to rounding
   (``CHECK_TOLERANCE``): same epochs, learning rate, penalty, weights of the clients.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.environments import HERE
from benchmarks.protocol import Task, Weights
from fedprox_lib.sweeps import registry

LOSS_TOLERANCE = {"logistic": 0.05, "cnn": 0.30}
"""Relative, by model. Seventeen shuffles of the logistic workload gave 1.064 to 1.098 (sd 0.8 %), nine of the CNN
workload 1.21 to 1.41 (sd 5 %): six standard deviations, or four of a difference."""

CHECK_TOLERANCE = 1e-3
"""Distance of a peer's weights from ours on the check, as a fraction of how far training moved them."""

LOSS_ROWS = 10_000
"""The loss is taken on that many of the federation's rows, evenly spaced."""


class Failed(Exception):
    """A peer gave no answer; the message is the reason."""


def run_peer(
    peer: str, python: Path, task: Path, out: Path, *, repeats: int, threads: int, timeout: float = 1800
) -> tuple[dict, Weights]:
    """One process of a peer, on as many cores as threads: its answer and its final weights."""
    module = f"benchmarks.{peer}" if peer.startswith("ours") else f"benchmarks.peers.{peer}"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    log = out.with_suffix(".log")
    command = [str(python), "-m", module, f"--task={task}", f"--out={out}", f"--repeats={repeats}"]
    command += [f"--threads={threads}", f"--started={time.time()}"]
    count = str(threads)
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    environment |= {f"{name}_NUM_THREADS": count for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}
    with log.open("w") as said:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True
        )
        _confine(process.pid, threads)
        try:
            printed, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"no answer within {timeout:.0f} s") from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it may have left behind
            process.wait()
    answers = [line for line in printed.splitlines() if line.startswith('{"peer"')]
    if process.returncode or len(answers) != 1 or not out.exists():
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise Failed(f"exit code {process.returncode}: {lines[-1] if lines else 'nothing said'}")
    with np.load(out) as file:
        return json.loads(answers[0]), {name: file[name] for name in file.files}


def _confine(pid: int, threads: int) -> None:
    """Keep a process and its children on as many cores as it may have threads, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(pid, sorted(os.sched_getaffinity(0))[-threads:])


def training_loss(task: Task, weights: Weights) -> float:
    """Mean cross-entropy of weights on the federation's rows, by our own code."""
    held = np.sort(np.concatenate(task.rows))
    rows = held[np.linspace(0, len(held) - 1, min(LOSS_ROWS, len(held))).astype(int)]
    x, y = torch.from_numpy(task.x[rows]), torch.from_numpy(task.y[rows])
    params = {name: torch.from_numpy(np.array(w)) for name, w in weights.items()}
    loss, _ = registry.model_named(task.facts["model"]).loss_and_correct(params, x, y)
    return float(loss.mean())


def distance(task: Task, weights: Weights, reference: Weights) -> float:
    """||w - w_ours|| as a fraction of ||w_ours - w_0||."""
    flat = lambda tree: np.concatenate([np.asarray(tree[name], np.float64).ravel() for name in task.start])  # noqa: E731
    away = np.linalg.norm(flat(weights) - flat(reference))
    return float(away / np.linalg.norm(flat(reference) - flat(task.start)))


def same_steps(task: Task, answer: dict) -> str | None:
    """What is wrong with the number of steps, if anything."""
    done, asked = answer["client_steps"], task.facts["client_steps"]
    return None if done == asked else f"did {done} local steps of {asked}"


def same_loss(task: Task, loss: float, reference: float) -> str | None:
    """What is wrong with the training loss, if anything."""
    if abs(loss - reference) <= LOSS_TOLERANCE[task.facts["model"]] * reference:
        return None
    return f"training loss {loss:.4f}, ours {reference:.4f}"


def same_weights(task: Task, answer: dict, weights: Weights, reference: Weights) -> str | None:
    """What is wrong with the answer to the check, if anything."""
    if problem := same_steps(task, answer):
        return f"check: {problem}"
    away = distance(task, weights, reference)
    return None if away <= CHECK_TOLERANCE else f"check: weights are {away:.1e} of the way from ours"
