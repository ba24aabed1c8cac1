"""SCAFFOLD (Karimireddy et al. 2020, Algorithm 1, option II): control variates correct the clients' drift.

Layer: core (PyTorch).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedprox_lib import tree
from fedprox_lib.algorithms.base import Algorithm, Hyperparameters, Replies, require_positive
from fedprox_lib.tree import Params


@dataclass(frozen=True)
class Scaffold(Algorithm):
    r"""Each local step follows $g - c_k + c$: c_k estimates the client's own gradient, c everybody's.

    The client's new c_k is its mean gradient of the round, recovered from how far it came (option II). Both averages
    are simple means over clients, as printed: all clients count alike, however many rows they hold. Partial work is
    kept; with tau_k local steps done, c_k is a mean over tau_k gradients.

    Attributes:
        server_lr: factor > 0 on the mean delta, 1 in the paper's experiments.

    References:
        Karimireddy et al., ICML 2020, Algorithm 1, https://arxiv.org/abs/1910.06378. Taught in "Fast enough to sweep".
    """

    server_lr: float = 1.0

    entrywise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_positive(self, "server_lr")

    def init_server(self, w: Params) -> Params:
        return tree.map(torch.zeros_like, w)  # c

    @staticmethod
    def init_memory(w: Params) -> Params:
        return tree.map(torch.zeros_like, w)  # c_k

    @staticmethod
    def local_gradient(
        g: Params, w: Params, w_t: Params, server: Params, memory: Params, hyperparameters: Hyperparameters
    ) -> Params:
        return tree.map(lambda g, c_k, c: g - c_k + c, g, memory, server)

    @staticmethod
    def reply(
        delta: Params, num_steps: int, lr: float, server: Params, memory: Params, hyperparameters: Hyperparameters
    ) -> tuple[Params, Params]:
        new = tree.map(lambda c_k, c, d: c_k - c - d / (num_steps * lr), memory, server, delta)
        return tree.subtract(new, memory), new

    @staticmethod
    def server_update(
        w_t: Params, server: Params, replies: Replies, hyperparameters: Hyperparameters, num_clients: int
    ) -> tuple[Params, Params]:
        w = tree.map(lambda w, d: w + hyperparameters["server_lr"] * d.mean(0), w_t, replies.delta)
        return w, tree.map(lambda c, d: c + d.sum(0) / num_clients, server, replies.extra)
