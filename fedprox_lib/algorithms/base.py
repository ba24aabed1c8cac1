"""What an algorithm is: one local rule and one server rule, as functions of tensors.

The frozen dataclass names and checks the algorithm's hyperparameters (``mu``, ...) and is what records show. Its rules
never read those fields: they receive them as ``hyperparameters``, which travel with the job. That is what lets one
program train the clients of runs with different mu side by side: there every tensor carries leading axes of clients,
and the hyperparameters broadcast along them. That works for a local rule that is arithmetic entry by entry (``+ - *``,
no norms, no indexing, no ``if`` on values) and reads of server or memory what has the names of the parameters. Its
class says so (``entrywise = True``); any other rule is trained one client at a time.

Conventions: delta = w_k - w_t points from the global to the local model. Symbols are the papers'.
Layer: core (PyTorch).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fedprox_lib import tree
from fedprox_lib.tree import Params

Hyperparameters = dict[str, Any]
"""An algorithm's hyperparameters by name: floats, or tensors that broadcast where several runs are stacked."""


class Replies(NamedTuple):
    """What the server receives from the K clients of a round, stacked and sorted by client number.

    Attributes:
        delta: w_k - w_t, leading axis K.
        extra: what else the algorithm sends, leading axis K; usually empty.
        num_examples: (K,) float64, n_k in rows.
        num_steps: (K,) float64, tau_k.
        weights: (K,) float64, in the average: n_k, or what the planner says instead.
    """

    delta: Params
    extra: Params
    num_examples: Tensor
    num_steps: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Algorithm:
    """The hooks in the order of a round. Nothing that changes in training is stored here."""

    keeps_partial_work: ClassVar[bool] = True
    """Whether a straggler's unfinished work is averaged, or dropped as FedAvg does."""

    watches_loss: ClassVar[bool] = False
    """Whether :meth:`observe` is told the global training loss after every round."""

    entrywise: ClassVar[bool] = True
    """Whether ``local_gradient`` of this very class is arithmetic entry by entry.

    A class that overrides ``local_gradient`` says so again, or it is trained one client at a time: a norm over stacked
    clients would mix them.
    """

    @property
    def gradient_clients(self) -> int:
        """How many clients are asked for their full gradient at w_t before a round's local work. Default: none.

        Where it is positive, the local rule reads the mean of these gradients as ``server`` and the client's own as
        ``memory``.
        """
        return 0

    def hyperparameters(self) -> Hyperparameters:
        """The fields, as the rules receive them."""
        return asdict(self)

    def hyperparameters_at(self, server: Params) -> Hyperparameters:
        """The same in a round that begins with this server memory. Default: ``hyperparameters()``, in every round."""
        return self.hyperparameters()

    def init_server(self, w: Params) -> Params:
        """Server memory before round 1."""
        return {}

    @staticmethod
    def init_memory(w: Params) -> Params:
        """A client's memory before it first takes part."""
        return {}

    @staticmethod
    def local_gradient(
        g: Params, w: Params, w_t: Params, server: Params, memory: Params, hyperparameters: Hyperparameters
    ) -> Params:
        """Direction of one local SGD step, from the mini-batch gradient g at w. Default: g itself, plain SGD."""
        return g

    @staticmethod
    def reply(
        delta: Params, num_steps: int, lr: float, server: Params, memory: Params, hyperparameters: Hyperparameters
    ) -> tuple[Params, Params]:
        """After local work: (extra to send, new memory)."""
        return {}, memory

    @staticmethod
    def server_update(
        w_t: Params, server: Params, replies: Replies, hyperparameters: Hyperparameters, num_clients: int
    ) -> tuple[Params, Params]:
        """(w_{t+1}, server memory). Default: the weighted mean of the clients' models, summed in float64."""
        return tree.map(lambda w, d: (w.double() + d).to(w.dtype), w_t, mean_delta(replies)), server

    def observe(self, server: Params, loss: float) -> Params:
        """Server memory after a measurement of the global training loss. Called if ``watches_loss``."""
        return server


def mean_delta(replies: Replies) -> Params:
    """The weighted mean of the cohort's deltas, in float64; weights are n_k unless the planner says otherwise."""
    p = replies.weights / replies.weights.sum()
    return tree.map(lambda delta: torch.tensordot(p.to(delta.device), delta.double(), dims=1), replies.delta)


def require_positive(algorithm: Algorithm, *names: str) -> None:
    """Raise unless these hyperparameters are finite and > 0."""
    for name in names:
        value = getattr(algorithm, name)
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{type(algorithm).__name__} needs a finite {name} > 0, got {name}={value!r}.")


def require_fraction(algorithm: Algorithm, *names: str) -> None:
    """Raise unless these hyperparameters are in [0, 1)."""
    for name in names:
        value = getattr(algorithm, name)
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise ValueError(f"{type(algorithm).__name__} needs {name} in [0, 1), got {name}={value!r}.")
