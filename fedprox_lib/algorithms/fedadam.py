"""FedAdam (Reddi et al. 2021, Algorithm 2): Adam on the server, with the mean delta as its gradient.

Layer: core (PyTorch).
"""

from dataclasses import dataclass

import torch

from fedprox_lib.algorithms.base import (
    Algorithm,
    Hyperparameters,
    Replies,
    mean_delta,
    require_fraction,
    require_positive,
)
from fedprox_lib.tree import Params


@dataclass(frozen=True)
class FedAdam(Algorithm):
    r"""Server: $m \leftarrow \beta_1 m + (1-\beta_1)\Delta$, $v \leftarrow \beta_2 v + (1-\beta_2)\Delta^2$,
    $w \leftarrow w + \eta\, m / (\sqrt v + \tau)$.

    $\Delta$ is the weighted mean delta; there is no bias correction, and v starts at tau^2, as printed.
    Clients do plain SGD; partial work is kept.

    Attributes:
        server_lr: eta > 0.
        beta1: in [0, 1), 0.9 in the paper.
        beta2: in [0, 1), 0.99 in the paper.
        tau: > 0, how adaptive: 0.001 in the paper's experiments.

    References:
        Reddi et al., ICLR 2021, Algorithm 2 and section 5, https://arxiv.org/abs/2003.00295.
    """

    server_lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 0.001

    def __post_init__(self) -> None:
        require_positive(self, "server_lr", "tau")
        require_fraction(self, "beta1", "beta2")

    def init_server(self, w: Params) -> Params:
        m = {f"m/{name}": torch.zeros_like(t) for name, t in w.items()}
        return m | {f"v/{name}": torch.full_like(t, self.tau**2) for name, t in w.items()}

    @staticmethod
    def server_update(
        w_t: Params, server: Params, replies: Replies, hyperparameters: Hyperparameters, num_clients: int
    ) -> tuple[Params, Params]:
        after: Params = {}
        memory: Params = {}
        for name, delta in mean_delta(replies).items():
            m = hyperparameters["beta1"] * server[f"m/{name}"] + (1 - hyperparameters["beta1"]) * delta
            v = hyperparameters["beta2"] * server[f"v/{name}"] + (1 - hyperparameters["beta2"]) * delta**2
            w = w_t[name]
            after[name] = (w + hyperparameters["server_lr"] * m / (v.sqrt() + hyperparameters["tau"])).to(w.dtype)
            memory |= {f"m/{name}": m.to(w.dtype), f"v/{name}": v.to(w.dtype)}
        return after, memory
