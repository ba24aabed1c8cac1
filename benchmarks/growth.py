"""How our cost grows: with the number of runs, of clients and of the cohort; in a sweep; from a cold start.

``python -m benchmarks.growth`` measures the library alone and writes ``results/benchmarks/growth.json``. One process,
one thread, except where workers are named. Every point is a median of five timings after a warm-up, evaluation left
out (its share is a point of its own). Rates are client-steps a second.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks import machine
from benchmarks.environments import HERE
from benchmarks.task import WORKLOADS
from fedprox_book import chapters, profile
from fedprox_book.paper import AsGenerated
from fedprox_lib import engine, models, simulation
from fedprox_lib.algorithms import FedAvg, FedProx
from fedprox_lib.data import Examples
from fedprox_lib.partition import IID, Partition
from fedprox_lib.plan import LocalWork, UniformPlanner
from fedprox_lib.sweeps import lockstep, results
from fedprox_lib.sweeps.experiment import Evaluation, Experiment, grid
from fedprox_lib.sweeps.federations import PreparedFederation, federations_of
from fedprox_lib.sweeps.provenance import provenance

REPEATS = 5

RARELY = Evaluation(every=10**6, train_rows=10, test_rows=10)

PAPER = replace(WORKLOADS["logistic"], evaluation=RARELY)
"""The paper's MNIST experiment: 1,000 clients, ten a round, E=20, B=10."""

ARMS = [FedAvg(), *(FedProx(mu) for mu in (0.0, 0.001, 0.01, 0.1, 1.0))]

SYNTHETIC = Experiment(
    algorithm=FedAvg(), data="synthetic_1_1", partition=AsGenerated(), model="logistic",
    work=LocalWork(epochs=20, batch_size=10, lr=0.01), rounds=2, cohort_size=10, evaluation=RARELY,
)  # fmt: skip


def timed(
    experiments: list[Experiment], federations: list[PreparedFederation] | None = None, repeats: int = REPEATS
) -> dict:
    """Train them together, several times over: client-steps, seconds, of which measuring."""
    federations = federations or federations_of(experiments)
    steps, seconds = 0, []

    def counting(model, train, jobs):
        nonlocal steps
        steps += sum(job.work.num_steps for job in jobs)
        return engine.batched(model, train, jobs)

    for turn in range(repeats + 1):
        for f in federations:
            getattr(f.planner, "drawn", {}).clear()  # the drawing of plans is part of the work
        steps, measuring, begin = 0, 0.0, time.perf_counter()
        states = [
            simulation.initial_state(f.model, e.algorithm, e.seed)
            for e, f in zip(experiments, federations, strict=True)
        ]
        for done in lockstep.together(experiments, backend=counting, federations=federations, states=states):
            measuring += done.seconds_measuring
        if turn:
            seconds.append(time.perf_counter() - begin - measuring)
    return point(steps, seconds) | {"seconds_measuring": round(measuring, 4)}


def point(steps: int, seconds: list[float]) -> dict:
    """One measured point."""
    return {
        "client_steps": steps,
        "seconds": [round(s, 4) for s in seconds],
        "client_steps_per_second": round(steps / median(seconds), 1),
        "others_cores": machine.busy_cores(),
    }


def by_runs() -> list[dict]:
    """1 to 1,000 runs of the paper's MNIST: arms and stragglers, then seeds; in waves as results.run cuts them."""
    curve = []
    for num_runs in (1, 3, 9, 18, 45, 90, 200, 450, 1000):
        seeds = range(-(-num_runs // 18))
        runs = grid(replace(PAPER, rounds=1), seed=seeds, straggler_fraction=[0.0, 0.5, 0.9], algorithm=ARMS)[:num_runs]
        most = 66  # as many as results.run trains together
        waves = [runs[first : first + most] for first in range(0, num_runs, most)]
        repeats = REPEATS if num_runs <= 90 else 1
        parts = [timed(wave, repeats=repeats) for wave in waves]
        seconds = [sum(s) for s in zip(*(part["seconds"] for part in parts), strict=True)]
        curve.append({"runs": num_runs, **point(sum(part["client_steps"] for part in parts), seconds)})
    return curve


def by_clients() -> list[dict]:
    """100 to 100,000 clients of 20 rows; the cohort stays at ten."""
    curve = []
    for num_clients in (100, 1_000, 10_000, 100_000):
        curve.append({"clients": num_clients, **timed(*_generated(num_clients, 10, rounds=20))})
    return curve


def by_cohort() -> list[dict]:
    """Cohorts of 1 to 1,000 of 1,000 clients of 20 rows."""
    curve = []
    for cohort in (1, 3, 10, 30, 100, 300, 1000):
        curve.append({"cohort": cohort, **timed(*_generated(1000, cohort, rounds=max(2, 200 // cohort)))})
    return curve


def _generated(num_clients: int, cohort_size: int, rounds: int) -> tuple[list[Experiment], list[PreparedFederation]]:
    """Clients of 20 random rows of 60 features."""
    rng, num_rows = np.random.default_rng(0), 20 * num_clients
    x = torch.from_numpy(rng.standard_normal((num_rows, 60), dtype=np.float32))
    train = Examples(x, torch.from_numpy(rng.integers(0, 10, num_rows)))
    partition = Partition(tuple(np.arange(num_rows).reshape(num_clients, 20)))
    work = LocalWork(epochs=5, batch_size=10, lr=0.01)
    few = np.arange(10)
    planner = UniformPlanner(partition, work, 0, cohort_size, 0.5)
    federation = PreparedFederation(
        train=train,
        test=train.take(few),
        sampled=few,
        partition=partition,
        model=models.logistic(60),
        planner=planner,
        data_sha256="",
    )  # fmt: skip (arguments, not lines)
    experiment = Experiment(
        algorithm=FedProx(mu=1.0), partition=IID(num_clients), work=work, rounds=rounds, cohort_size=cohort_size,
        model="logistic", straggler_fraction=0.5, evaluation=RARELY,
    )  # fmt: skip
    return [experiment], [federation]


def synthetic_sweep() -> dict:
    """The paper's synthetic figure: six arms, three straggler fractions, ten seeds; one process."""
    sweep = grid(SYNTHETIC, replicate=range(10), straggler_fraction=[0.0, 0.5, 0.9], algorithm=ARMS)
    return {"runs": len(sweep), "workers": 1, **timed(sweep)}


def through_the_front_door(sweep: list[Experiment], workers: int) -> dict:
    """``results.run`` as a user calls it: start of workers, evaluation and records included. One timing."""
    steps = 0
    for e, f in zip(sweep, federations_of(sweep), strict=True):
        for t in range(1, e.rounds + 1):
            plan = f.planner.round_plan(t)
            plan = plan if e.algorithm.keeps_partial_work else plan.without_stragglers()
            steps += sum(work.num_steps for work in plan.cohort)
    with tempfile.TemporaryDirectory() as folder:
        own = profile.at(Path(folder))
        begin = time.perf_counter()
        results.run(sweep, own, workers=workers)
        seconds = time.perf_counter() - begin
        measuring = chapters.origins(sweep, own)["seconds_measuring"].sum()
    return {
        "runs": len(sweep), "workers": workers, **point(steps, [seconds]),
        "core_seconds_measuring": round(float(measuring), 2),
    }  # fmt: skip


def figure(rounds: int = 20) -> list[Experiment]:
    """A figure of the paper on MNIST: 45 runs, evaluated on everything after every round."""
    base = replace(PAPER, rounds=rounds, evaluation=Evaluation())
    return grid(base, seed=range(3), straggler_fraction=[0.0, 0.5, 0.9], algorithm=ARMS[:5])


def synthetic_figure(rounds: int = 20) -> list[Experiment]:
    base = replace(SYNTHETIC, rounds=rounds, evaluation=Evaluation())
    return grid(base, replicate=range(10), straggler_fraction=[0.0, 0.5, 0.9], algorithm=ARMS)


def cold_start() -> dict:
    """From nothing to the end of the first round of a small experiment on the bundled digits: a fresh process."""
    code = (
        "from fedprox_lib import *\nfrom fedprox_lib import engine, simulate\n"
        "e = Experiment(algorithm=FedProx(mu=1.0), data='mnist5k', model='logistic', partition=IID(100), rounds=1,\n"
        "               work=LocalWork(5, 10, 0.03), cohort_size=10)\n"
        "print(list(lockstep.follow(e, backend=engine.batched))[-1][1]['test_accuracy'])\n"
    )
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        seconds.append(round(time.perf_counter() - begin, 3))
    return {"seconds": seconds, "median": median(seconds)}


PARTS: dict[str, Callable] = {
    "cold_start": cold_start,
    "runs": by_runs,
    "clients": by_clients,
    "cohort": by_cohort,
    "synthetic_sweep": synthetic_sweep,
    "figure": lambda: through_the_front_door(figure(), workers=2),
    "synthetic_figure": lambda: through_the_front_door(synthetic_figure(), workers=2),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated, of %(default)s")
    parser.add_argument("--save", action="store_true", help="keep the result in results/benchmarks")
    chosen = parser.parse_args()
    report = {"machine": machine.facts(), "provenance": provenance()}
    with engine.use_threads(1):
        for name in chosen.parts.split(","):
            begin = time.perf_counter()
            report[name] = PARTS[name]()
            print(f"{name} ({time.perf_counter() - begin:.0f} s): {json.dumps(report[name])[:600]}", file=sys.stderr)
    folder = HERE.parent / "results" / "benchmarks" if chosen.save else HERE / ".work" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "growth.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
