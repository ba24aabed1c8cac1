"""Federated algorithms, one a file; ``ALL`` is what the conformance tests run through.

Diff two files to see the science: an algorithm here is nothing but its difference from the base class.
"""

from fedprox_lib.algorithms.adaptive import AdaptiveFedProx
from fedprox_lib.algorithms.base import Algorithm, Reports
from fedprox_lib.algorithms.fedadam import FedAdam
from fedprox_lib.algorithms.fedavg import FedAvg
from fedprox_lib.algorithms.fedavgm import FedAvgM
from fedprox_lib.algorithms.feddane import FedDane
from fedprox_lib.algorithms.fedprox import FedProx
from fedprox_lib.algorithms.scaffold import Scaffold

ALL = {cls.__name__: cls for cls in (FedAvg, FedProx, AdaptiveFedProx, FedDane, Scaffold, FedAvgM, FedAdam)}
"""The algorithms by name, as they stand in records."""

__all__ = [
    "ALL", "AdaptiveFedProx", "Algorithm", "FedAdam", "FedAvg", "FedAvgM", "FedDane", "FedProx", "Reports", "Scaffold",
]  # fmt: skip
