"""The library behind the FedProx book: federated optimisation under heterogeneity, small enough to read.

Start with :mod:`fedprox_lib.simulate`; ``README.md`` has an example. Each module's first lines say which question it
answers and which chapter teaches it.
"""

from fedprox_lib.algorithms import AdaptiveFedProx, FedAdam, FedAvg, FedAvgM, FedDane, FedProx, Scaffold
from fedprox_lib.experiment import Evaluation, Experiment, grid
from fedprox_lib.partition import IID, AsGenerated, Dirichlet, LabelShards, LogNormalSizes, PowerLaw
from fedprox_lib.plan import LocalWork

__version__ = "0.1.0"

__all__ = [
    "IID",
    "AsGenerated",
    "Dirichlet",
    "Evaluation",
    "Experiment",
    "AdaptiveFedProx",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedDane",
    "FedProx",
    "LabelShards",
    "LocalWork",
    "LogNormalSizes",
    "PowerLaw",
    "Scaffold",
    "grid",
]
