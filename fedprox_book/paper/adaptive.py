"""FedProx with a mu that follows the loss (Li et al. 2020, section 5.3.2, figures 3 and 11).

Taught in "Choosing mu". Layer: book (PyTorch).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedprox_lib.algorithms import Hyperparameters
from fedprox_lib.algorithms.base import require_positive
from fedprox_lib.algorithms.fedprox import FedProx
from fedprox_lib.tree import Params


@dataclass(frozen=True)
class AdaptiveFedProx(FedProx):
    r"""$\mu$ grows by ``step`` in every round after which the loss has risen, and shrinks by it after ``patience``
    rounds in a row in which it has fallen.

    The paper says no more than that. Open in it, and settled here: the loss is the global training loss that the run
    measures after every round (the authors, in their issue 34: one mu for all clients, the global loss); mu does not
    fall below 0; after shrinking, the count of rounds starts again.

    Attributes:
        mu: the value in round 1. The paper starts at 1 on IID data and at 0 elsewhere.
        step: 0.1 in the paper.
        patience: 5 in the paper.

    References:
        Li et al., MLSys 2020, section 5.3.2.
    """

    step: float = 0.1
    patience: int = 5

    watches_loss: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "step")
        if not (isinstance(self.patience, int) and self.patience >= 1):
            raise ValueError(f"AdaptiveFedProx needs an integer patience >= 1, got patience={self.patience!r}.")

    def init_server(self, w: Params) -> Params:
        start = {"mu": self.mu, "loss": math.inf, "falls": 0}
        return {name: torch.tensor(float(value), dtype=torch.float64) for name, value in start.items()}

    def hyperparameters_at(self, server: Params) -> Hyperparameters:
        return {"mu": float(server["mu"])}

    def observe(self, server: Params, loss: float) -> Params:
        mu, before, falls = (float(server[name]) for name in ("mu", "loss", "falls"))
        falls = falls + 1 if loss < before < math.inf else 0  # what came first has not fallen
        if loss > before:
            mu += self.step
        elif falls == self.patience:
            mu, falls = max(0.0, mu - self.step), 0
        new = {"mu": mu, "loss": loss, "falls": falls}
        return {name: torch.full_like(server[name], value) for name, value in new.items()}
