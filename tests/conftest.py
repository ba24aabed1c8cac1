"""Small federations for the tests: seconds, one thread, no network, and double precision where bits matter."""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedprox_lib import models
from fedprox_lib.algorithms import FedProx
from fedprox_lib.data import Examples
from fedprox_lib.partition import IID, LabelShards
from fedprox_lib.plan import LocalWork, Planner
from fedprox_lib.simulation import Job
from fedprox_lib.sweeps.experiment import Experiment


@pytest.fixture(autouse=True)
def one_thread():
    """Sums have one order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """This checkout as pip builds it, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(Path(__file__).parent.parent)], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture
def quick() -> Experiment:
    """Logistic regression on the bundled digits: half a second."""
    return Experiment(
        algorithm=FedProx(mu=0.1),
        data="mnist5k",
        model="logistic",
        train_rows=600,
        partition=LabelShards(num_clients=20),
        work=LocalWork(epochs=3, batch_size=10, lr=0.05),
        rounds=4,
        cohort_size=6,
        straggler_fraction=0.5,
    )


@pytest.fixture
def toy():
    """(model, train rows, partition) in float64: 7 ragged clients of random images, one of them of one row."""
    rng = np.random.default_rng(0)
    sizes = [1, 3, 10, 11, 20, 7, 8]
    x = torch.from_numpy(rng.standard_normal((sum(sizes), 1, 28, 28)))
    y = torch.from_numpy(rng.integers(0, 10, sum(sizes)))
    partition = IID(len(sizes)).split(y.numpy(), data_seed=0)
    rows = np.split(np.concatenate(partition.rows), np.cumsum(sizes)[:-1])
    return models.logistic(), Examples(x, y), type(partition)(tuple(rows))


@pytest.fixture
def job_of():
    """Make a job from parameters, a work order and an algorithm."""

    def make(start, work, algorithm, lr=0.1):
        return Job(start, work, lr, algorithm, algorithm.hyperparameters(), {}, {})

    return make


@dataclass(frozen=True)
class LeavingOut:
    """A plan without some clients of some rounds."""

    planner: Planner
    missing: dict[int, set[int]]

    def round_plan(self, t):
        plan, missing = self.planner.round_plan(t), self.missing.get(t, set())
        return replace(plan, cohort=tuple(work for work in plan.cohort if work.client not in missing))


@pytest.fixture
def without():
    """Leave clients out of a federation's rounds: what these should come to if the clients' replies do not count."""
    return lambda federation, missing: replace(federation, planner=LeavingOut(federation.planner, missing))
