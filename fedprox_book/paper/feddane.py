"""FedDane (Li et al. 2019; appendix B of the FedProx paper): FedProx whose clients are told the others' gradient.

Taught in "Where FedProx stands today". Layer: book (PyTorch).
"""

from dataclasses import dataclass
from typing import ClassVar

from fedprox_lib import tree
from fedprox_lib.algorithms import Hyperparameters
from fedprox_lib.algorithms.fedprox import FedProx
from fedprox_lib.tree import Params


@dataclass(frozen=True)
class FedDane(FedProx):
    r"""Local objective $F_k(w) + \langle g_t - \nabla F_k(w_t), w - w_t\rangle + \frac{\mu}{2}\lVert w - w_t\rVert^2$.

    A round has two exchanges. In the first, a cohort of its own answers with full gradients at w_t; their n_k-weighted
    mean is g_t, an estimate of grad f(w_t). In the second, the round's cohort minimises the objective above, which at
    w_t has the gradient g_t for everybody, and the server averages as in FedProx. So the correction is exact where all
    clients are asked, and elsewhere as good as g_t. Partial work is kept, and nobody straggles in the first exchange.

    # differs from the authors' code: litian96/FedDANE at 23ff2ce364 draws with a generator that it seeds with the round
    # (trainers/fedbase.py, select_clients), so that both exchanges meet the same clients (its issue 5). Here, as in the
    # algorithm as printed, the two cohorts are drawn apart.

    Attributes:
        mu: mu >= 0, as in FedProx.
        gradient_clients: how many clients are asked for their gradient, in [1, N]; 10 in the upper row of the FedProx
            paper's figure 4, more in the lower.

    References:
        Li et al. 2019, https://arxiv.org/abs/2001.01920. Li et al., MLSys 2020, appendix B.
    """

    gradient_clients: int = 10

    entrywise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.gradient_clients, int) and self.gradient_clients >= 1):
            raise ValueError(
                f"FedDane needs an integer gradient_clients >= 1, got gradient_clients={self.gradient_clients!r}."
            )

    @staticmethod
    def local_gradient(
        g: Params, w: Params, w_t: Params, server: Params, memory: Params, hyperparameters: Hyperparameters
    ) -> Params:
        mu = hyperparameters["mu"]
        return tree.map(lambda g, w, w_t, g_t, g_k: g + (g_t - g_k) + mu * (w - w_t), g, w, w_t, server, memory)

    @staticmethod
    def reply(
        delta: Params, num_steps: int, lr: float, server: Params, memory: Params, hyperparameters: Hyperparameters
    ) -> tuple[Params, Params]:
        return {}, {}  # grad F_k(w_t) belongs to this round and is forgotten
