"""The sweeps behind the book's chapters: lists of experiments, written down before they were run.

Each function takes the profile: the committed size for ``published`` and ``paper``, a tiny one for ``smoke``.
``BOOK`` is what ``make results`` trains. Room: descriptions. May import experiment, profile.
"""

from collections.abc import Callable
from dataclasses import replace

from fedprox_lib.algorithms import FedAvg, FedProx
from fedprox_lib.experiment import Evaluation, Experiment, grid
from fedprox_lib.partition import IID, LabelShards
from fedprox_lib.plan import LocalWork
from fedprox_lib.profile import Profile

STRAGGLERS = (0.0, 0.5, 0.9)
REPLICATES = (0, 1, 2)

CHOOSING_REPLICATE = 1000
"""Learning rate and mu are chosen on this replicate, which no figure shows."""

LR_GRID = (0.03, 0.1)
MU_GRID = (0.01, 0.1, 1.0)
LR = 0.1
MU = 0.1


def base(profile: Profile) -> Experiment:
    """McMahan's CNN on label shards: 100 clients of 100 digits, 10 a round, E = 5, B = 10, 40 rounds."""
    if profile.is_smoke:
        return Experiment(
            algorithm=FedAvg(),
            data="mnist5k",
            train_rows=750,
            model="cnn",
            # 70 shards of 10 or 11 rows: their borders cut labels, as they do on full MNIST.
            partition=LabelShards(num_clients=35),
            work=LocalWork(epochs=2, batch_size=10, lr=LR),
            rounds=2,
            cohort_size=10,
            evaluation=Evaluation(every=1, train_rows=200, test_rows=200),
        )
    return Experiment(
        algorithm=FedAvg(),
        data="mnist",
        train_rows=10_000,
        model="cnn",
        partition=LabelShards(num_clients=100),
        work=LocalWork(epochs=5, batch_size=10, lr=LR),
        rounds=40,
        cohort_size=10,
        evaluation=Evaluation(every=4, train_rows=2_000),
    )


def arms(mu: float = MU) -> list:
    """Always three: stragglers dropped, partial work kept, and kept with a proximal term."""
    return [FedAvg(), FedProx(mu=0.0), FedProx(mu=mu)]


def choose_lr(profile: Profile) -> list[Experiment]:
    """FedAvg without stragglers, one run a learning rate, on the replicate that is not reported."""
    b = replace(base(profile), algorithm=FedAvg())
    works = [replace(b.work, lr=lr) for lr in LR_GRID]
    return grid(b, work=works, replicate=[CHOOSING_REPLICATE])


def choose_mu(profile: Profile) -> list[Experiment]:
    """FedProx at 50 % stragglers, one run a mu, on the replicate that is not reported."""
    b = replace(base(profile), straggler_fraction=0.5)
    return grid(b, algorithm=[FedProx(mu=mu) for mu in MU_GRID], replicate=[CHOOSING_REPLICATE])


def side_by_side(profile: Profile) -> list[Experiment]:
    """Label shards: three arms x stragglers 0, 50, 90 % x replicates.

    Without stragglers FedAvg and FedProx(mu=0) are one algorithm (a test shows it to the last bit), so that run is
    made once, as FedAvg.
    """
    replicates = REPLICATES[:1] if profile.is_smoke else REPLICATES
    fractions = (0.0, 0.9) if profile.is_smoke else STRAGGLERS
    sweep = [
        e
        for r in replicates
        for e in grid(base(profile), straggler_fraction=fractions, algorithm=arms(), replicate=[r])
    ]
    return [e for e in sweep if not (e.straggler_fraction == 0 and e.algorithm == FedProx(mu=0.0))]


def iid(profile: Profile) -> list[Experiment]:
    """The same digits dealt evenly, the three arms at 90 % stragglers."""
    b = base(profile)
    even = replace(b, partition=IID(num_clients=b.partition.num_clients))
    replicates = REPLICATES[:1] if profile.is_smoke else REPLICATES
    return [e for r in replicates for e in grid(even, algorithm=arms(), straggler_fraction=[0.9], replicate=[r])]


def rerun(profile: Profile) -> list[Experiment]:
    """The small experiment that every build of the book trains again and compares with its record."""
    return [
        Experiment(
            algorithm=FedProx(mu=MU),
            data="mnist5k",
            model="logistic",
            partition=LabelShards(num_clients=35),
            work=LocalWork(epochs=5, batch_size=10, lr=0.03),
            rounds=10,
            cohort_size=10,
            straggler_fraction=0.5,
        )
    ]


BOOK: dict[str, Callable[[Profile], list[Experiment]]] = {
    "choose_lr": choose_lr,
    "choose_mu": choose_mu,
    "side_by_side": side_by_side,
    "iid": iid,
    "rerun": rerun,
}
"""Every sweep of the book by name, in the order in which ``make results`` trains them."""
