"""Federated algorithms, one per file. Diff two of them to see the science.

An algorithm here is nothing but its difference from the base class; :mod:`fedprox_lib.algorithms.base` says which hooks
there are and what a rule may do. Layer: core (PyTorch).
"""

from fedprox_lib.algorithms.base import Algorithm, Hyperparameters, Replies, mean_delta
from fedprox_lib.algorithms.fedadam import FedAdam
from fedprox_lib.algorithms.fedavg import FedAvg
from fedprox_lib.algorithms.fedavgm import FedAvgM
from fedprox_lib.algorithms.fedprox import FedProx
from fedprox_lib.algorithms.scaffold import Scaffold

__all__ = [
    "Algorithm", "FedAdam", "FedAvg", "FedAvgM", "FedProx", "Hyperparameters", "Replies", "Scaffold", "mean_delta",
]  # on one line  # fmt: skip
