"""The authors' protocol: which clients, which epochs and which batches their released code would have chosen.

The trainers are those of litian96/FedProx at d2a4501 (flearn/trainers and flearn/utils/model_utils.py). They draw from
NumPy's global generator and seed it again and again, so that most of their draws are not what they seem. A private
generator of the same kind plays that part here; the global one is neither read nor moved. Their code is MIT-licensed;
it is re-enacted, and none of it is copied.

Taught in "Do we compute what the authors computed?". Layer: book (NumPy).
"""

import numpy as np

from fedprox_lib.partition import Partition
from fedprox_lib.plan import ClientWork, LocalWork, RoundPlan


class AuthorsPlanner:
    """The plans of the authors' trainers, FedAvg's or FedProx's, number for number.

    - Round t seeds the generator with t - 1 and draws the cohort; seeded again, it draws from the cohort the active
      clients, round(K (1 - fraction)) of them. The rest are stragglers.
    - FedAvg trains the active clients only. FedProx trains the cohort in the order drawn; a straggler's epochs are
      drawn on 1..E-1 just before it trains.
    - Every epoch seeds the generator with 100 and shuffles the client's rows *in place*. So each epoch applies one and
      the same permutation to the order that the last one left, round after round; under FedAvg a straggler's order
      stays; and a straggler's epochs follow from the number of rows of the client before it (the first one's, from the
      draws of the round).

    Plans depend on the algorithm and on all earlier rounds. The planner remembers each client's order: rounds asked for
    in turn cost nothing extra, any other round is reached by playing those before it.

    Args:
        partition: who holds what; clients in the order of their ids.
        work: E, B and lr of a client that has time.
        cohort_size: K >= 1. As in their code, a K above N selects everybody, yet enters the count of active clients
            as it is.
        straggler_fraction: in [0, 1]; ``drop_percent`` in their code, where it is a fraction too.
        keeps_partial_work: False for FedAvg's trainer, True for FedProx's (whatever mu is).

    Raises:
        ValueError: for values out of range; for stragglers with E = 1 under FedProx, and for more active clients than
            selected ones, since there the authors' code stops with an error.
    """

    def __init__(
        self,
        partition: Partition,
        work: LocalWork,
        cohort_size: int,
        straggler_fraction: float,
        *,
        keeps_partial_work: bool,
    ) -> None:
        if not (isinstance(cohort_size, int) and cohort_size >= 1):
            raise ValueError(f"cohort_size (clients per round) must be an integer >= 1, got {cohort_size!r}.")
        if not (isinstance(straggler_fraction, int | float) and 0 <= straggler_fraction <= 1):
            raise ValueError(
                f"straggler_fraction (drop_percent) must be in [0, 1], got {straggler_fraction!r}; 90 % is 0.9."
            )
        selected = min(cohort_size, partition.num_clients)
        active = round(cohort_size * (1 - straggler_fraction))
        if active > selected:
            raise ValueError(
                f"{active} active clients cannot be drawn from {selected} selected ones, and the authors' code stops "
                f"here: cohort_size (clients per round) must be at most {selected}, the number of clients, got "
                f"{cohort_size}."
            )
        if keeps_partial_work and work.epochs == 1 and active < selected:
            raise ValueError(
                "epochs must be at least 2 where FedProx has stragglers, got 1: the authors' code draws a straggler's "
                "epochs on 1..E-1 and stops with an error at E = 1. Use no stragglers or more epochs."
            )
        self.partition, self.work, self.keeps_partial_work = partition, work, keeps_partial_work
        self.num_selected, self.num_active = selected, active
        self.generator = np.random.RandomState()  # in the part of NumPy's global one; a round seeds it before drawing
        self._start_again()

    def round_plan(self, t: int) -> RoundPlan:
        """The plan of round t >= 1; an empty cohort if FedAvg's round has no active client."""
        if not (isinstance(t, int) and t >= 1):
            raise ValueError(f"round must be an integer >= 1, got {t!r}.")
        if t <= self._played:
            self._start_again()
        while self._played < t - 1:
            self._play()
        return self._play()

    def straggler_epochs(self) -> int:
        """How many epochs the next straggler gets, drawn from the generator as the client before it left it.

        # differs from paper: it says 1..E; the authors' code excludes E. Override this to measure what that changes.
        """
        return int(self.generator.randint(1, self.work.epochs))

    def _start_again(self) -> None:
        self._played = 0
        self._order = [rows.copy() for rows in self.partition.rows]

    def _play(self) -> RoundPlan:
        self.generator.seed(self._played)
        selected = self.generator.choice(self.partition.num_clients, self.num_selected, replace=False)
        self.generator.seed(self._played)
        active = self.generator.choice(selected, self.num_active, replace=False)
        trained = selected if self.keeps_partial_work else active
        cohort = tuple(self._train(int(k), straggler=k not in active) for k in trained)
        self._played += 1
        return RoundPlan(self._played, cohort)

    def _train(self, client: int, *, straggler: bool) -> ClientWork:
        epochs = self.straggler_epochs() if straggler else self.work.epochs
        order, visited = self._order[client], []
        for _ in range(epochs):
            self.generator.seed(100)
            self.generator.shuffle(order)
            visited.append(order.copy())
        full, rest = divmod(len(order), self.work.batch_size)
        epoch = np.array([self.work.batch_size] * full + [rest] * (rest > 0), dtype=np.int64)
        return ClientWork(client, straggler, len(order), np.concatenate(visited), np.tile(epoch, epochs))
