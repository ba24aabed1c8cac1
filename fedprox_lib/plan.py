"""Who takes part in a round, how much each client does, on which rows, in which order: all decisions, no arithmetic.

A :class:`RoundPlan` is plain NumPy integers and a pure function of (seed, round). The algorithm is not among its
arguments, nor do the draws depend on the straggler fraction: FedAvg and FedProx under one seed meet the same cohort,
the same stragglers and the same batches, which is the paper's protocol (Li et al. 2020, section 5.1), and the
stragglers at 50 % are among those at 90 %.

Anything with ``round_plan(t)`` is a plan producer (:class:`Planner`). :class:`UniformPlanner` is what the paper's
experiments do. Taught in "FedAvg and FedProx side by side". Layer: core (NumPy).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from fedprox_lib.partition import Partition
from fedprox_lib.require import require_integer, require_one_of
from fedprox_lib.rng import stream

STRAGGLER_EPOCHS = ("1..E", "1..E-1")
"""What a straggler may be left with: the paper's text (section 5.2), and the authors' code (upper end exclusive)."""


@dataclass(frozen=True)
class LocalWork:
    """What a client that has time does in a round.

    Attributes:
        epochs: E >= 1, passes over its own rows.
        batch_size: B >= 1; the last batch of an epoch may be smaller. 10 in the paper.
        lr: learning rate > 0 of local SGD. 0.03 for the paper's MNIST.
    """

    epochs: int
    batch_size: int
    lr: float

    def __post_init__(self) -> None:
        require_integer("epochs", self.epochs)
        require_integer("batch_size", self.batch_size)
        if not (isinstance(self.lr, int | float) and 0 < self.lr < np.inf):
            raise ValueError(f"lr must be a finite number > 0, got {self.lr!r}.")


@dataclass(frozen=True)
class ClientWork:
    """One client's share of a round.

    Attributes:
        client: its number, 0-based.
        straggler: whether it was left with less than full work (it may still have drawn all of it: the paper draws
            uniformly on 1..E).
        num_examples: n_k, the rows it holds, however much of them it visits.
        order: (sum of batch_sizes,) int64, rows in the order in which they are visited.
        batch_sizes: (num_steps,) int64, how ``order`` falls into mini-batches.
        weight: in the server's average, > 0; None for n_k.
    """

    client: int
    straggler: bool
    num_examples: int
    order: np.ndarray
    batch_sizes: np.ndarray
    weight: float | None = None

    @property
    def num_steps(self) -> int:
        """tau_k, the number of local SGD steps."""
        return len(self.batch_sizes)

    @property
    def starts(self) -> np.ndarray:
        """(num_steps,) int64: where in ``order`` each mini-batch begins."""
        return np.cumsum(self.batch_sizes) - self.batch_sizes

    def batches(self) -> Iterator[np.ndarray]:
        """The mini-batches, step by step: arrays of row numbers."""
        stop = 0
        for size in self.batch_sizes:
            start, stop = stop, stop + int(size)
            yield self.order[start:stop]


@dataclass(frozen=True)
class RoundPlan:
    """The cohort of one round and its work, in the order of selection.

    Attributes:
        round: t >= 1.
        cohort: one entry per selected client.
    """

    round: int
    cohort: tuple[ClientWork, ...]

    def without_stragglers(self) -> "RoundPlan":
        """What is left for an algorithm that drops them (FedAvg)."""
        return replace(self, cohort=tuple(work for work in self.cohort if not work.straggler))


class Planner(Protocol):
    """A plan producer. ``simulate`` asks for rounds 1, 2, 3, ... in order."""

    def round_plan(self, t: int) -> RoundPlan: ...


def num_stragglers(cohort_size: int, fraction: float) -> int:
    """Exact count: K - round(K (1 - fraction)), so that 90 % of 10 leaves one client (authors' code).

    Example:
        >>> [num_stragglers(10, f) for f in (0.0, 0.5, 0.9)]
        [0, 5, 9]
    """
    return cohort_size - round(cohort_size * (1 - fraction))


def client_order(
    seed: int, t: int, client: int, rows: np.ndarray, *, epochs: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The visiting order of one client's rows and its batch sizes: a fresh shuffle every epoch.

    A function of (seed, round, client) alone, so a client on another machine computes it without being sent it, and a
    straggler's order is the beginning of the order that it would have had with full work.
    """
    rng = stream(seed, "batches", t, client)
    order = np.concatenate([rng.permutation(rows) for _ in range(epochs)])
    full, rest = divmod(len(rows), batch_size)
    epoch = np.array([batch_size] * full + [rest] * (rest > 0), dtype=np.int64)
    return order, np.tile(epoch, epochs)


@dataclass(frozen=True)
class UniformPlanner:
    """K clients drawn uniformly without replacement; an exact number of stragglers among them.

    A straggler's local epochs are drawn uniformly on 1..E (``straggler_epochs="1..E"``, the paper's text) or on
    1..E-1 (``"1..E-1"``, the authors' code). With E = 1 neither leaves partial work, so it is counted in mini-batches,
    uniform on 1..tau_k (the paper's Figs. 9 and 10).

    Attributes:
        partition: who holds what.
        work: full work.
        seed: of all draws.
        cohort_size: K in [1, N].
        straggler_fraction: in [0, 1].
        straggler_epochs: one of ``STRAGGLER_EPOCHS``.
        drawn: orders already drawn, by (round, client, epochs, batch size): planners of the same seed and partition
            that are given one dictionary draw each order once, and hand out the very same arrays.
    """

    partition: Partition
    work: LocalWork
    seed: int
    cohort_size: int
    straggler_fraction: float
    straggler_epochs: str = "1..E"
    drawn: dict = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        require_cohort(self.cohort_size, self.partition.num_clients)
        require_stragglers(self.straggler_fraction, self.straggler_epochs)

    def round_plan(self, t: int) -> RoundPlan:
        if self.drawn and next(iter(self.drawn))[0] != t:
            self.drawn.clear()  # orders are kept for one round only
        clients = stream(self.seed, "cohort", t).permutation(self.partition.num_clients)[: self.cohort_size]
        # Always drawn for the whole cohort, so that neither draw depends on the straggler fraction.
        rng = stream(self.seed, "stragglers", t)
        late = set(rng.permutation(self.cohort_size)[: num_stragglers(self.cohort_size, self.straggler_fraction)])
        luck = rng.random(self.cohort_size)
        return RoundPlan(
            t, tuple(self._client_work(t, int(k), i in late, float(luck[i])) for i, k in enumerate(clients))
        )

    def _client_work(self, t: int, client: int, straggler: bool, luck: float) -> ClientWork:
        rows, epochs, size = self.partition.rows[client], self.work.epochs, self.work.batch_size
        if straggler and epochs > 1:
            epochs = 1 + int(luck * (epochs if self.straggler_epochs == "1..E" else epochs - 1))
        key = (t, client, self.work.epochs, size)
        if key not in self.drawn:
            self.drawn[key] = client_order(self.seed, t, client, rows, epochs=self.work.epochs, batch_size=size)
        order, batch_sizes = self.drawn[key]
        if straggler:  # the beginning of the full order
            num_steps = epochs * (len(batch_sizes) // self.work.epochs)
            if self.work.epochs == 1:
                num_steps = 1 + int(luck * len(batch_sizes))
            batch_sizes = batch_sizes[:num_steps]
            order = order[: batch_sizes.sum()]
        return ClientWork(client, straggler, len(rows), order, batch_sizes)


def require_cohort(cohort_size: int, num_clients: int, name: str = "cohort_size") -> None:
    """Raise unless 1 <= K <= N."""
    if not (isinstance(cohort_size, int) and 1 <= cohort_size <= num_clients):
        raise ValueError(f"{name} must be in [1, {num_clients}] (the number of clients), got {cohort_size!r}.")


def require_stragglers(fraction: float, epochs: str) -> None:
    """Raise unless the fraction is in [0, 1] and the rule for their epochs is known."""
    if not (isinstance(fraction, int | float) and 0 <= fraction <= 1):
        raise ValueError(f"straggler_fraction must be in [0, 1], got {fraction!r}; 90 % is 0.9.")
    require_one_of("straggler_epochs", epochs, STRAGGLER_EPOCHS)
