"""This library on the task: its batched engine, plans included, alone or with the other runs of a sweep.

``ours`` is the task's run alone. ``ours_sweep`` trains it together with the rest of the paper's grid (FedAvg and four
mu, three straggler fractions, as many seeds as it takes), one process a thread, which is how ``results.run`` does it.
What is timed is the whole sweep; ``all_client_steps`` says how many steps that was.
"""

import itertools
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from benchmarks import protocol
from fedprox_lib import engine, simulation, tree
from fedprox_lib.algorithms import FedAvg, FedProx
from fedprox_lib.data import Examples
from fedprox_lib.engine import use_threads
from fedprox_lib.partition import IID, Partition
from fedprox_lib.plan import LocalWork, UniformPlanner
from fedprox_lib.sweeps import lockstep, parallel, registry
from fedprox_lib.sweeps.experiment import Evaluation, Experiment
from fedprox_lib.sweeps.federations import PreparedFederation

SWEEP = {"logistic": 45, "cnn": 9}
"""Runs of the sweep, by model."""


class Runs:
    """Some runs of the grid on a task, ready to train."""

    def __init__(self, folder: Path, numbers: range) -> None:
        task = protocol.read(folder)
        facts = task.facts
        train, partition = Examples(torch.from_numpy(task.x), torch.from_numpy(task.y)), Partition(tuple(task.rows))
        work = LocalWork(facts["epochs"], facts["batch_size"], facts["lr"])
        mu, some_rows = facts["mu"], np.arange(10)
        arms = [FedProx(mu), FedAvg(), FedProx(0.0), FedProx(mu / 100), FedProx(mu / 10)]
        grid = list(itertools.product(range(numbers.stop), (0.0, 0.5, 0.9), arms))
        self.experiments: list[Experiment] = []
        self.federations: list[PreparedFederation] = []
        drawn: dict[int, dict] = {}
        for seed, late, algorithm in grid[numbers.start : numbers.stop]:
            seed += facts["seed"]
            self.experiments.append(
                Experiment(
                    algorithm=algorithm,
                    partition=IID(partition.num_clients),
                    work=work,
                    rounds=facts["rounds"],
                    cohort_size=facts["cohort_size"],
                    straggler_fraction=late,
                    model=facts["model"],
                    seed=seed,
                    evaluation=Evaluation(every=10**6),
                )  # fmt: skip
            )
            shared = drawn.setdefault(seed, {})
            planner = UniformPlanner(partition, work, seed, facts["cohort_size"], late, drawn=shared)
            # The loss of ten rows after the last round is all that is measured.
            few = train.take(some_rows)
            self.federations.append(
                PreparedFederation(
                    train=train,
                    test=few,
                    sampled=some_rows,
                    partition=partition,
                    model=registry.model_named(facts["model"]),
                    planner=planner,
                    data_sha256="",
                )  # fmt: skip (arguments, not lines)
            )
        self.start = {name: tree.laid_out(torch.from_numpy(w)) for name, w in task.start.items()}

    def train(self) -> tuple[protocol.Weights, int, int]:
        """The first run's final weights, the steps it took, and the steps that all took."""
        steps = [0, 0]

        def counting(model, train, jobs):
            num_steps = [job.work.num_steps for job in jobs]
            steps[0] += sum(num_steps[: self.experiments[0].cohort_size])  # the first run's jobs come first
            steps[1] += sum(num_steps)
            return engine.batched(model, train, jobs)

        states = [simulation.State(0, self.start, e.algorithm.init_server(self.start), {}) for e in self.experiments]
        ends = {}
        for done in lockstep.together(self.experiments, backend=counting, federations=self.federations, states=states):
            ends[done.experiment.id] = done.state.params
        weights = ends[self.experiments[0].id]
        return {name: w.contiguous().numpy() for name, w in weights.items()}, steps[0], steps[1]


_runs: list[Runs] = []


def _prepare(folder: Path, numbers: range) -> None:
    torch.set_num_threads(1)
    _runs.append(Runs(folder, numbers))


def _train() -> tuple[protocol.Weights, int, int]:
    with use_threads(1):
        return _runs[0].train()


def main(sweep: bool = False) -> None:
    args = protocol.arguments()
    task = protocol.read(args.task)
    num_runs = SWEEP[task.facts["model"]] if sweep else 1
    cuts = [num_runs * n // args.threads for n in range(args.threads + 1)]
    if not sweep:
        alone = Runs(args.task, range(1))
        threads = parallel.threads_of(task.facts["model"], args.threads, "cpu")

        def train(cohorts: np.ndarray) -> tuple[protocol.Weights, int, int]:
            with use_threads(threads):
                return alone.train()

        protocol.run("ours", ("torch", "numpy"), args, task, train, warm_up=task.cohorts)
        return
    spawn = get_context("spawn")
    workers = [ProcessPoolExecutor(1, spawn, _prepare, (args.task, range(*part))) for part in itertools.pairwise(cuts)]
    for started in [worker.submit(int) for worker in workers]:
        started.result()

    def train_all(cohorts: np.ndarray) -> tuple[protocol.Weights, int, int]:
        parts = [future.result() for future in [worker.submit(_train) for worker in workers]]
        return parts[0][0], parts[0][1], sum(steps for _, _, steps in parts)

    # A first call costs some tenths of a second more, which matters where a sweep takes seconds and not a minute.
    short = task.cohorts if task.facts["model"] == "logistic" else None
    protocol.run("ours_sweep", ("torch", "numpy"), args, task, train_all, warm_up=short)


if __name__ == "__main__":
    main()
