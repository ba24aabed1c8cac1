"""FedProx (Li et al. 2020, Algorithm 2): a proximal term on the local objective, and partial work is kept.

Layer: core (PyTorch).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from fedprox_lib import tree
from fedprox_lib.algorithms.base import Algorithm, Hyperparameters
from fedprox_lib.tree import Params


@dataclass(frozen=True)
class FedProx(Algorithm):
    r"""Local objective $h_k(w; w_t) = F_k(w) + \frac{\mu}{2}\lVert w - w_t\rVert^2$; partial work kept.

    Attributes:
        mu: mu >= 0, in units of curvature; stable when lr (L + mu) < 2. mu = 0 is FedAvg that keeps partial work. The
            paper's grid is 0.001, 0.01, 0.1, 1.

    References:
        Li et al., MLSys 2020, Algorithm 2, https://arxiv.org/abs/1812.06127. Taught in "The proximal term".
    """

    mu: float

    entrywise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.mu, int | float) or not 0 <= self.mu < math.inf:
            raise ValueError(
                f"FedProx needs a finite mu >= 0, got mu={self.mu!r}; mu=0 is FedAvg that keeps partial work."
            )

    @staticmethod
    def local_gradient(
        g: Params, w: Params, w_t: Params, server: Params, memory: Params, hyperparameters: Hyperparameters
    ) -> Params:
        mu = hyperparameters["mu"]
        return tree.map(lambda g, w, w_t: g + mu * (w - w_t), g, w, w_t)
