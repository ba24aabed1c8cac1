"""Which client holds which rows: four ways to cut a training set.

========================  =======================================================================================
:class:`IID`              shuffle, cut evenly (McMahan et al. 2017, section 3)
:class:`LabelShards`      sort by label, cut, deal: at most four digits a client (Flower's blog post; McMahan et al.)
:class:`PowerLaw`         two digits a client, sizes from a log-normal law (Li et al. 2020, appendix C.1)
:class:`Dirichlet`        each label spread over the clients by Dirichlet(alpha) (Hsu et al. 2019, as in NIID-Bench)
========================  =======================================================================================

A scheme is a frozen description; ``scheme.split(labels, data_seed=0)`` gives the :class:`Partition`. No row is ever
given to two clients, and a promise that cannot be kept is a ``ValueError``. Taught in "What federated data looks like".
Layer: core (NumPy).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedprox_lib.require import require_integer
from fedprox_lib.rng import stream


@dataclass(frozen=True)
class Partition:
    """Rows of the training set by client.

    Attributes:
        rows: one array of distinct row numbers (int64) a client, ``rows[k]`` of length n_k.
    """

    rows: tuple[np.ndarray, ...]

    @property
    def num_clients(self) -> int:
        """N."""
        return len(self.rows)

    @property
    def sizes(self) -> np.ndarray:
        """(N,) int64: the number of examples n_k of each client."""
        return np.array([len(rows) for rows in self.rows], dtype=np.int64)

    def label_counts(self, labels: np.ndarray) -> np.ndarray:
        """(N, classes) int64: how often each label occurs at each client."""
        labels = np.asarray(labels)
        classes = int(labels.max()) + 1
        return np.stack([np.bincount(labels[rows], minlength=classes) for rows in self.rows])


def hold_out(partition: Partition, fraction: float, *, data_seed: int) -> tuple[Partition, Partition]:
    """Split every client's rows at random, (for training, for testing): 80/20 in the paper (appendix C.2).

    A client of n_k rows trains on floor((1 - fraction) n_k) of them.

    Args:
        partition: of all rows.
        fraction: for testing, in [0, 1).
        data_seed: of the draw.

    Example:
        >>> train, test = hold_out(Partition((np.arange(10), np.arange(10, 21))), 0.2, data_seed=0)
        >>> train.sizes.tolist(), test.sizes.tolist()
        ([8, 8], [2, 3])
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the fraction held out for testing must be in [0, 1), got {fraction!r}.")
    orders = [stream(data_seed, "hold out", k).permutation(rows) for k, rows in enumerate(partition.rows)]
    # The small sum keeps 0.8 x 10 at 8 where 1 - 0.2 is a hair below 0.8.
    cuts = [int((1 - fraction) * len(order) + 1e-9) for order in orders]
    return (
        partition_of([np.sort(order[:cut]) for order, cut in zip(orders, cuts, strict=True)]),
        partition_of([np.sort(order[cut:]) for order, cut in zip(orders, cuts, strict=True)]),
    )


class Scheme(Protocol):
    """What every way of cutting offers; those below are frozen dataclasses."""

    @property
    def num_clients(self) -> int: ...

    def split(self, labels: np.ndarray, *, data_seed: int) -> Partition:
        """Cut the rows ``0 .. len(labels) - 1``; the same seed gives the same cut."""
        ...


def _require_rows(needed: int, available: int, what: str) -> None:
    if needed > available:
        raise ValueError(
            f"{what} needs at least {needed} rows, got {available}: use fewer clients or a larger training set."
        )


def holders_by_label(num_clients: int, labels_per_client: int, labels: np.ndarray) -> list[list[int]]:
    """The clients that hold each label, where client k holds labels k, k+1, ... (mod classes)."""
    classes = int(labels.max()) + 1
    if labels_per_client > classes:
        raise ValueError(
            f"labels_per_client must be at most {classes}, the number of labels in the data, got {labels_per_client}."
        )
    return [[k for k in range(num_clients) if (label - k) % classes < labels_per_client] for label in range(classes)]


def partition_of(rows: Sequence[np.ndarray]) -> Partition:
    return Partition(tuple(np.asarray(r, dtype=np.int64) for r in rows))


@dataclass(frozen=True)
class IID:
    """Shuffle the rows and cut them evenly; sizes differ by at most one.

    Attributes:
        num_clients: N >= 1; McMahan et al. and the blog use 100.
    """

    num_clients: int

    def __post_init__(self) -> None:
        require_integer("num_clients", self.num_clients)

    def split(self, labels: np.ndarray, *, data_seed: int) -> Partition:
        _require_rows(self.num_clients, len(labels), f"IID(num_clients={self.num_clients})")
        order = stream(data_seed, "partition").permutation(len(labels))
        return partition_of(np.array_split(order, self.num_clients))


@dataclass(frozen=True)
class LabelShards:
    """Sort by label, cut the sequence into equal shards, deal the shards to the clients at random.

    The blog's rule: with two shards a client, and no shard longer than the rarest label, a shard spans at most two
    labels, so a client holds at most four. Sizes differ by at most one row a shard.

    Attributes:
        num_clients: N >= 1.
        shards_per_client: shards dealt to each client, 2 in the blog and in McMahan et al.

    Example:
        >>> labels = np.repeat(np.arange(10), 60)
        >>> counts = LabelShards(num_clients=30).split(labels, data_seed=0).label_counts(labels)
        >>> int((counts > 0).sum(axis=1).max()) <= 4
        True
    """

    num_clients: int
    shards_per_client: int = 2

    def __post_init__(self) -> None:
        require_integer("num_clients", self.num_clients)
        require_integer("shards_per_client", self.shards_per_client)

    def split(self, labels: np.ndarray, *, data_seed: int) -> Partition:
        labels = np.asarray(labels)
        num_shards = self.num_clients * self.shards_per_client
        _require_rows(num_shards, len(labels), f"{num_shards} label shards")
        shards = np.array_split(np.argsort(labels, kind="stable"), num_shards)
        crowded = [i for i, shard in enumerate(shards) if len(np.unique(labels[shard])) > 2]
        if crowded:
            raise ValueError(
                f"a label shard may span at most 2 labels, but shard {crowded[0]} of {num_shards} spans "
                f"{len(np.unique(labels[shards[crowded[0]]]))}: use more clients, so that no shard is longer than "
                "the rarest label."
            )
        dealt = stream(data_seed, "partition").permutation(num_shards).reshape(self.num_clients, -1)
        return partition_of([np.concatenate([shards[i] for i in hand]) for hand in dealt])


@dataclass(frozen=True)
class PowerLaw:
    """Few labels a client and very unequal sizes: the paper's MNIST federation (Li et al. 2020, appendix C.1).

    Client k holds labels k, k+1, ... (mod classes). It first gets ``min_per_label`` rows of each; what is left of a
    label is shared among its holders in proportion to log-normal(0, sigma) draws, rounded down, so a few rows of each
    label stay unused. On MNIST with 1,000 clients this gives a mean of 69 rows, as in the paper's Table 1.

    # differs from paper: Table 1 states a standard deviation of 106; the authors' own script (sigma=2) gives about 164.

    Attributes:
        num_clients: N >= 1; 1,000 in the paper.
        labels_per_client: 2 in the paper.
        sigma: spread of the log-normal law > 0; 2.0 in the authors' code.
        min_per_label: rows that a client holds of each of its labels at least; 5 in the authors' code.
    """

    num_clients: int = 1000
    labels_per_client: int = 2
    sigma: float = 2.0
    min_per_label: int = 5

    def __post_init__(self) -> None:
        require_integer("num_clients", self.num_clients)
        require_integer("labels_per_client", self.labels_per_client)
        if not self.sigma > 0:
            raise ValueError(f"sigma must be > 0, got {self.sigma!r}.")
        if not self.min_per_label >= 1:
            raise ValueError(f"min_per_label must be >= 1, got {self.min_per_label!r}.")

    def split(self, labels: np.ndarray, *, data_seed: int) -> Partition:
        labels = np.asarray(labels)
        rng = stream(data_seed, "partition")
        held: list[list[np.ndarray]] = [[] for _ in range(self.num_clients)]
        for label, holders in enumerate(holders_by_label(self.num_clients, self.labels_per_client, labels)):
            rows = rng.permutation(np.flatnonzero(labels == label))
            reserved = self.min_per_label * len(holders)
            if reserved > len(rows):
                raise ValueError(
                    f"{len(holders)} clients hold label {label} and each needs {self.min_per_label} rows of it, "
                    f"but the data have {len(rows)}: use fewer clients or a larger training set."
                )
            share = rng.lognormal(0.0, self.sigma, len(holders))
            extra = np.floor(share / share.sum() * (len(rows) - reserved)).astype(int) if holders else []
            ends = np.cumsum(self.min_per_label + np.asarray(extra, dtype=int))
            for k, piece in zip(holders, np.split(rows, ends)[: len(holders)], strict=True):
                held[k].append(piece)
        return partition_of([np.concatenate(pieces) for pieces in held])


@dataclass(frozen=True)
class Dirichlet:
    """Spread each label over the clients in proportions drawn from Dirichlet(alpha, ..., alpha).

    Small alpha: a label sits with few clients. Large alpha: every client gets about the same share of every label,
    even more evenly than IID does. All rows are used. Proportions are drawn
    again (at most 1,000 times) until every client holds ``min_rows`` rows.

    Attributes:
        num_clients: N >= 1.
        alpha: concentration > 0; NIID-Bench uses 0.5.
        min_rows: rows that every client holds at least.
    """

    num_clients: int
    alpha: float
    min_rows: int = 1

    def __post_init__(self) -> None:
        require_integer("num_clients", self.num_clients)
        if not (self.alpha > 0 and np.isfinite(self.alpha)):
            raise ValueError(
                f"Dirichlet needs a finite alpha > 0, got alpha={self.alpha!r}; the larger, the more even."
            )

    def split(self, labels: np.ndarray, *, data_seed: int) -> Partition:
        labels = np.asarray(labels)
        _require_rows(self.num_clients * self.min_rows, len(labels), f"Dirichlet over {self.num_clients} clients")
        rng = stream(data_seed, "partition")
        by_label = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
        for _ in range(1000):
            shares = rng.dirichlet(np.full(self.num_clients, self.alpha), size=len(by_label))
            # A label's rows are cut at the rounded cumulative shares, so every row lands at exactly one client.
            pieces = [
                np.split(rows, np.rint(np.cumsum(share)[:-1] * len(rows)).astype(int))
                for rows, share in zip(by_label, shares, strict=True)
            ]
            clients = [np.concatenate(held) for held in zip(*pieces, strict=True)]
            if min(len(rows) for rows in clients) >= self.min_rows:
                return partition_of(clients)
        raise ValueError(
            f"no draw of Dirichlet(alpha={self.alpha}) in 1,000 gave each of {self.num_clients} clients at least "
            f"{self.min_rows} rows of {len(labels)}: use a larger alpha, fewer clients or more rows."
        )
