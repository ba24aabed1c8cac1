"""FedAvg (McMahan et al. 2017, Algorithm 1) as the FedProx paper compares against it: stragglers are dropped.

Layer: core.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedprox_lib.algorithms.base import Algorithm


@dataclass(frozen=True)
class FedAvg(Algorithm):
    r"""Local objective $F_k(w)$; a client that does not finish its E epochs is left out of the average.

    References:
        McMahan et al., AISTATS 2017, Algorithm 1, https://arxiv.org/abs/1602.05629. Li et al., MLSys 2020, Algorithm 1
        and section 5.2. Taught in "FedAvg and FedProx side by side".
    """

    keeps_partial_work: ClassVar[bool] = False
