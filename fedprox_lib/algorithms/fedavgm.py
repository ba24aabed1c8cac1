"""FedAvgM (Hsu et al. 2019; Reddi et al. 2021, Algorithm 1 with SGD and momentum): momentum on the server.

Layer: core (PyTorch).
"""

from dataclasses import dataclass

import torch

from fedprox_lib import tree
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
class FedAvgM(Algorithm):
    r"""Server: $v \leftarrow \beta v + \Delta$, $w \leftarrow w + \eta v$, where $\Delta$ is the weighted mean delta.

    Clients do plain SGD; partial work is kept. With momentum 0 and server_lr 1 it is FedAvg that keeps partial work.

    Attributes:
        momentum: beta in [0, 1); 0.9 in both papers.
        server_lr: eta > 0.

    References:
        Hsu et al. 2019, section 4.3, https://arxiv.org/abs/1909.06335; Reddi et al., ICLR 2021,
        https://arxiv.org/abs/2003.00295.
    """

    momentum: float = 0.9
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        require_fraction(self, "momentum")
        require_positive(self, "server_lr")

    def init_server(self, w: Params) -> Params:
        return tree.map(torch.zeros_like, w)  # v

    @staticmethod
    def server_update(
        w_t: Params, server: Params, replies: Replies, hyperparameters: Hyperparameters, num_clients: int
    ) -> tuple[Params, Params]:
        v = tree.map(lambda v, d: (hyperparameters["momentum"] * v + d).to(v.dtype), server, mean_delta(replies))
        return tree.map(lambda w, v: w + hyperparameters["server_lr"] * v, w_t, v), v
