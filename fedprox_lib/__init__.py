"""Federated optimisation under heterogeneity, small enough to read: the library behind the FedProx book.

A training run is five objects and one loop::

    train, test = data.digits()                                              # rows and labels
    partition = LabelShards(num_clients=50).split(train.labels, data_seed=0)  # who holds which rows
    federation = Federation(train, test, partition, models.logistic())       # data, clients and a model
    work = LocalWork(epochs=5, batch_size=10, lr=0.03)                       # what a client does in a round
    for state, measured in simulate(federation, FedProx(mu=0.1), work=work, rounds=10, cohort_size=10, seed=0):
        print(state.round, measured["test_accuracy"])

Read :mod:`fedprox_lib.simulation` first, then :mod:`fedprox_lib.algorithms`. Many runs, records and statistics are in
:mod:`fedprox_lib.sweeps`, the same rounds on Flower in :mod:`fedprox_lib.flower`. Layer: core (NumPy and PyTorch).
"""

from fedprox_lib import _moved, data, models, tree
from fedprox_lib.algorithms import Algorithm, FedAdam, FedAvg, FedAvgM, FedProx, Replies, Scaffold
from fedprox_lib.data import Examples, read_leaf
from fedprox_lib.engine import batched
from fedprox_lib.federation import Federation
from fedprox_lib.models import Model
from fedprox_lib.partition import IID, Dirichlet, LabelShards, Partition, PowerLaw, hold_out
from fedprox_lib.plan import ClientWork, LocalWork, Planner, RoundPlan, UniformPlanner
from fedprox_lib.simulation import Job, State, local_step, run_round, sequential, simulate

__version__ = "0.2.0"

__all__ = [
    # data, and who holds which rows
    "data", "Examples", "read_leaf", "Partition", "IID", "LabelShards", "Dirichlet", "PowerLaw", "hold_out",
    # models
    "models", "Model", "tree",
    # who works in a round, and how much
    "Planner", "UniformPlanner", "LocalWork", "ClientWork", "RoundPlan",
    # algorithms
    "Algorithm", "FedAvg", "FedProx", "Scaffold", "FedAvgM", "FedAdam", "Replies",
    # the loop, and what is inside
    "Federation", "simulate", "run_round", "local_step", "State", "Job", "sequential", "batched",
]  # by what one wants to do  # fmt: skip

__getattr__ = _moved.say_where
