"""This library on the task: its batched engine, plans included, alone or with the other runs of a sweep.

``ours`` is the task's run alone. ``ours_sweep`` trains it together with the rest of the paper's grid (FedAvg and four
mu, three straggler fractions, as many seeds as it takes), one process a thread, which is how ``results.run`` does it.
What is timed is the whole sweep; ``all_client_steps`` says how many steps that was.
"""

import itertools
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from benchmarks import protocol
from fedprox_lib import engine, models, simulate, tree
from fedprox_lib.algorithms import FedAvg, FedProx
from fedprox_lib.data import Examples
from fedprox_lib.experiment import Evaluation, Experiment
from fedprox_lib.federation import Federation
from fedprox_lib.partition import IID, Partition
from fedprox_lib.plan import LocalWork, UniformPlanner
from fedprox_lib.training import use_threads

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
        grid = itertools.product(itertools.count(), (0.0, 0.5, 0.9), arms)
        self.experiments, self.federations, drawn = [], [], {}
        for seed, late, algorithm in list(itertools.islice(grid, numbers.stop))[numbers.start :]:
            seed += facts["seed"]
            self.experiments.append(
                Experiment(
                    algorithm=algorithm, partition=IID(partition.num_clients), work=work, rounds=facts["rounds"],
                    cohort_size=facts["cohort_size"], straggler_fraction=late, model=facts["model"], seed=seed,
                    evaluation=Evaluation(every=10**6),
                )  # fmt: skip
            )
            shared = drawn.setdefault(seed, {})
            planner = UniformPlanner(partition, work, seed, facts["cohort_size"], late, drawn=shared)
            # The loss of ten rows after the last round is all that is measured.
            few = train.take(some_rows)
            self.federations.append(
                Federation(train, few, some_rows, partition, models.get(facts["model"]), planner, "")
            )
        self.start = {name: tree.laid_out(torch.from_numpy(w)) for name, w in task.start.items()}

    def train(self) -> tuple[protocol.Weights, int, int]:
        """The first run's final weights, the steps it took, and the steps that all took."""
        steps = [0, 0]

        def counting(model, train, jobs):
            steps[0] += sum(job.work.num_steps for job in jobs if job.numbers == first.numbers())
            steps[1] += sum(job.work.num_steps for job in jobs)
            return engine.batched(model, train, jobs)

        first = self.experiments[0].algorithm
        states = [simulate.State(0, self.start, e.algorithm.init_server(self.start), {}) for e in self.experiments]
        ends = {}
        for done in simulate.together(
            self.experiments, backend=counting, federations=self.federations, states=states
        ):
            ends[done.experiment.id] = done.state.params
        weights = ends[self.experiments[0].id]
        return {name: w.contiguous().numpy() for name, w in weights.items()}, steps[0], steps[1]


