"""The sampling of the paper's Algorithm 2: clients drawn with probabilities p_k, and a plain mean.

Taught in "Choosing mu". Layer: book (NumPy).
"""

from dataclasses import dataclass

import numpy as np

from fedprox_lib.partition import Partition
from fedprox_lib.plan import ClientWork, LocalWork, RoundPlan, client_order, require_cohort
from fedprox_lib.rng import stream


@dataclass(frozen=True)
class BySizePlanner:
    """The paper's Algorithm 2 as printed: K draws with replacement, client k with probability p_k, and a plain mean.

    A client that is drawn m times does its work once and weighs m: the mean over the draws. Nobody straggles; the paper
    uses this scheme without stragglers (Fig. 12).

    Attributes:
        partition: who holds what; p_k = n_k / n.
        work: full work.
        seed: of all draws.
        cohort_size: K, the number of draws, in [1, N].
    """

    partition: Partition
    work: LocalWork
    seed: int
    cohort_size: int

    def __post_init__(self) -> None:
        require_cohort(self.cohort_size, self.partition.num_clients)

    def round_plan(self, t: int) -> RoundPlan:
        p = self.partition.sizes / self.partition.sizes.sum()
        draws = stream(self.seed, "cohort", t).choice(len(p), self.cohort_size, p=p)
        cohort = []
        for k, times in zip(*np.unique(draws, return_counts=True), strict=True):
            order, batch_sizes = client_order(
                self.seed, t, int(k), self.partition.rows[k], epochs=self.work.epochs, batch_size=self.work.batch_size
            )
            n_k = len(self.partition.rows[k])
            cohort.append(ClientWork(int(k), False, n_k, order, batch_sizes, weight=float(times)))
        return RoundPlan(t, tuple(cohort))
