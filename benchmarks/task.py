"""Makes the work that is timed, from an experiment of the library: rows, cohorts, initial weights, constants."""

from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks import protocol
from fedprox_lib.algorithms import FedProx
from fedprox_lib.partition import IID, LabelShards, PowerLaw
from fedprox_lib.plan import LocalWork
from fedprox_lib.sweeps.experiment import Experiment
from fedprox_lib.sweeps.federations import federation_of

WORKLOADS = {
    # The paper's MNIST experiment (Li et al. 2020, section 5.1), ten of its rounds.
    "logistic": Experiment(
        algorithm=FedProx(mu=1.0),
        partition=PowerLaw(num_clients=1000),
        work=LocalWork(epochs=20, batch_size=10, lr=0.03),
        rounds=10,
        cohort_size=10,
        model="logistic",
    ),
    # One round of McMahan et al.'s CNN: ten clients of 60 batches.
    "cnn": Experiment(
        algorithm=FedProx(mu=0.1),
        partition=IID(num_clients=100),
        work=LocalWork(epochs=1, batch_size=10, lr=0.1),
        rounds=1,
        cohort_size=10,
        model="cnn",
    ),
}
"""What is timed. Both need the 60,000 training images of MNIST (``FEDPROX_DATA``, or torchvision downloads them)."""

CHECKS = {
    # Clients of a few hundred rows and one batch each, so that the order of the rows cannot matter.
    "logistic": Experiment(
        algorithm=FedProx(mu=1.0),
        partition=PowerLaw(num_clients=40),
        work=LocalWork(epochs=20, batch_size=4000, lr=0.03),
        rounds=3,
        cohort_size=5,
        model="logistic",
        data="mnist5k",
    ),
    "cnn": Experiment(
        # Small steps, or rounding grows; and a penalty that shows in spite of them.
        algorithm=FedProx(mu=10.0),
        partition=LabelShards(num_clients=40),
        work=LocalWork(epochs=4, batch_size=4000, lr=0.02),
        rounds=2,
        cohort_size=3,
        model="cnn",
        data="mnist5k",
    ),
}
"""For every workload a small task with its algorithm and model whose answer is known to rounding."""


def make(name: str, experiment: Experiment, folder: Path) -> protocol.Task:
    """Write the task of an experiment (FedProx without stragglers) into a folder, and return it.

    Raises:
        DataMissing: full MNIST is neither here nor to be downloaded.
    """
    if experiment.straggler_fraction or not isinstance(experiment.algorithm, FedProx):
        raise ValueError(f"a benchmark task is FedProx without stragglers, got {experiment}.")
    federation = federation_of(experiment)
    start = federation.model.init(experiment.seed)
    plans = [federation.planner.round_plan(t) for t in range(1, experiment.rounds + 1)]
    x = federation.train.x.flatten(1) if experiment.model == "logistic" else federation.train.x
    task = protocol.Task(
        x=x.numpy(),
        y=federation.train.labels,
        rows=list(federation.partition.rows),
        cohorts=np.array([[work.client for work in plan.cohort] for plan in plans], dtype=np.int64),
        # As they lie in memory everywhere else, not channels-last.
        start={name: w.contiguous().numpy() for name, w in start.items()},
        facts={
            "workload": name,
            "model": experiment.model,
            "data": experiment.data,
            "partition": repr(experiment.partition),
            "epochs": experiment.work.epochs,
            "batch_size": experiment.work.batch_size,
            "lr": experiment.work.lr,
            "mu": float(experiment.algorithm.mu),
            "rounds": experiment.rounds,
            "cohort_size": experiment.cohort_size,
            "seed": experiment.seed,
            "client_steps": sum(work.num_steps for plan in plans for work in plan.cohort),
            "versions": {package: version(package) for package in ("torch", "numpy")},
        },
    )
    protocol.write(folder, task)
    return task
