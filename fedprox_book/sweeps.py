"""The sweeps behind the book's chapters: lists of experiments, written down before they were run.

Each function takes the profile: the committed size for ``published`` and ``paper``, a tiny one for ``smoke``.
``BOOK`` is what the committed records hold, ``PLANNED`` what they lack; ``make results`` trains both.
Layer: book (descriptions).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from fedprox_book.profile import Profile
from fedprox_lib.algorithms import FedAvg, FedProx
from fedprox_lib.partition import IID, LabelShards
from fedprox_lib.plan import LocalWork
from fedprox_lib.sweeps.experiment import Evaluation, Experiment, grid

STRAGGLERS = (0.0, 0.5, 0.9)
REPLICATES = (0, 1, 2)

CHOOSING_REPLICATE = 1000
"""Learning rate and mu are chosen on this replicate, which no figure shows."""

LR_GRID = (0.03, 0.1)
MU_GRID = (0.01, 0.1, 1.0)
LR = 0.1
MU = 0.1


def base(profile: Profile) -> Experiment:
    """McMahan's CNN on label shards: 100 clients of 100 digits, 10 per round, E = 5, B = 10, 40 rounds."""
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
    """FedAvg without stragglers, one run per learning rate, on the replicate that is not reported."""
    b = replace(base(profile), algorithm=FedAvg())
    works = [replace(b.work, lr=lr) for lr in LR_GRID]
    return grid(b, work=works, replicate=[CHOOSING_REPLICATE])


def choose_mu(profile: Profile) -> list[Experiment]:
    """FedProx at 50 % stragglers, one run per mu, on the replicate that is not reported."""
    b = replace(base(profile), straggler_fraction=0.5)
    return grid(b, algorithm=[FedProx(mu=mu) for mu in MU_GRID], replicate=[CHOOSING_REPLICATE])


def side_by_side(profile: Profile) -> list[Experiment]:
    """Label shards: three arms x stragglers 0, 50, 90 % x replicates.

    Without stragglers FedAvg and FedProx(mu=0) are one algorithm (a test shows it to the last bit), so that run is
    made once, as FedAvg.
    """
    fractions = (0.0, 0.9) if profile.is_smoke else STRAGGLERS
    return distinct(grid(base(profile), replicate=_replicates(profile), straggler_fraction=fractions, algorithm=arms()))


def iid(profile: Profile, fraction: float = 0.9) -> list[Experiment]:
    """The same digits dealt evenly, the three arms at one share of stragglers."""
    b = base(profile)
    even = replace(b, partition=IID(num_clients=b.partition.num_clients))
    return distinct(grid(even, replicate=_replicates(profile), straggler_fraction=[fraction], algorithm=arms()))


# --- the experiment that the blog meant ------------------------------------------------------------------------------

MORE_MU = (0.001, 0.01, 1.0)
"""With ``MU`` and 0, which :func:`side_by_side` has, the paper's grid."""

LR_EDGES = (0.01, 0.3)
"""Beyond both ends of ``LR_GRID``, run after the choice was made: was the grid wide enough?"""


def lr_edges(profile: Profile) -> list[Experiment]:
    """:func:`choose_lr` beyond its edges."""
    b = base(profile)
    return grid(b, work=[replace(b.work, lr=lr) for lr in LR_EDGES], replicate=[CHOOSING_REPLICATE])


def mu_grid(profile: Profile, fraction: float) -> list[Experiment]:
    """Label shards, FedProx over the rest of the paper's grid of mu."""
    return grid(
        base(profile),
        replicate=_replicates(profile),
        straggler_fraction=[fraction],
        algorithm=[FedProx(mu=mu) for mu in MORE_MU],
    )


def smaller_steps(profile: Profile, fraction: float) -> list[Experiment]:
    """Label shards, partial work kept and mu = 0, with a smaller learning rate or fewer epochs instead."""
    b = base(profile)
    works = [replace(b.work, lr=0.03), replace(b.work, epochs=2), replace(b.work, epochs=1)]
    works = works[:2] if profile.is_smoke else works
    kept = FedProx(mu=0.0) if fraction else FedAvg()
    return grid(replace(b, algorithm=kept), replicate=_replicates(profile), straggler_fraction=[fraction], work=works)


# --- against McMahan's table -----------------------------------------------------------------------------------------

MCMAHAN_LR_GRID = (0.05, 0.1, 0.2)
MCMAHAN_LR = 0.1


def mcmahan(profile: Profile) -> Experiment:
    """FedAvg with the CNN on all 60,000 digits: 100 clients of 600, C = 0.1, B = 10; IID and E = 1 unless replaced."""
    if profile.is_smoke:
        b = base(profile)
        return replace(b, partition=IID(num_clients=35), work=replace(b.work, epochs=1, lr=MCMAHAN_LR))
    return Experiment(
        algorithm=FedAvg(),
        data="mnist",
        model="cnn",
        partition=IID(num_clients=100),
        work=LocalWork(epochs=1, batch_size=10, lr=MCMAHAN_LR),
        rounds=40,
        cohort_size=10,
        evaluation=Evaluation(every=1, train_rows=2_000),
    )


def mcmahan_lr(profile: Profile) -> list[Experiment]:
    """The first 20 rounds of IID, E = 1, one run per learning rate, on the replicate that is not reported."""
    b = mcmahan(profile)
    short = replace(b, rounds=min(b.rounds, 20))
    rates = MCMAHAN_LR_GRID[:1] if profile.is_smoke else MCMAHAN_LR_GRID
    return grid(short, work=[replace(b.work, lr=lr) for lr in rates], replicate=[CHOOSING_REPLICATE])


def mcmahan_iid(profile: Profile, epochs: int) -> list[Experiment]:
    """IID, E = 1 or E = 5."""
    b = mcmahan(profile)
    rounds = 25 if epochs == 5 and not profile.is_smoke else b.rounds
    return grid(replace(b, rounds=rounds, work=replace(b.work, epochs=epochs)), replicate=_replicates(profile))


def mcmahan_shards(profile: Profile, lr: float = MCMAHAN_LR) -> list[Experiment]:
    """Label shards, E = 1: one long run, on replicate 0."""
    b = replace(mcmahan(profile), partition=LabelShards(num_clients=mcmahan(profile).partition.num_clients))
    if not profile.is_smoke:
        b = replace(b, rounds=400, evaluation=Evaluation(every=2, train_rows=2_000))
    return grid(b, replicate=[0], work=[replace(b.work, lr=lr)])


# --- does it hold elsewhere? -----------------------------------------------------------------------------------------


def fashion(profile: Profile, fraction: float) -> list[Experiment]:
    """:func:`side_by_side` on Fashion-MNIST, with the learning rate and mu that were chosen on MNIST."""
    b = base(profile) if profile.is_smoke else replace(base(profile), data="fashion_mnist")
    return distinct(grid(b, replicate=_replicates(profile), straggler_fraction=[fraction], algorithm=arms()))


LOGISTIC_LR_GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
LOGISTIC_MU_GRID = (0.001, 0.01, 0.1, 1.0)
LOGISTIC_LR = 0.1
LOGISTIC_CHOOSING = tuple(range(1000, 1005))
LOGISTIC_REPLICATES = tuple(range(10))


def logistic_base(profile: Profile, name: str) -> Experiment:
    """:func:`base` with logistic regression, which is cheap enough for ten replicates."""
    b = base(profile)
    b = replace(b, model="logistic", work=replace(b.work, lr=LOGISTIC_LR))
    return b if profile.is_smoke else replace(b, data=name, evaluation=Evaluation(every=2, train_rows=2_000))


def logistic_choices(profile: Profile, name: str) -> list[Experiment]:
    """The learning rate as in :func:`choose_lr`, and at that rate mu as in :func:`choose_mu`; five replicates each."""
    b = logistic_base(profile, name)
    replicates = LOGISTIC_CHOOSING[:1] if profile.is_smoke else LOGISTIC_CHOOSING
    works = [replace(b.work, lr=lr) for lr in LOGISTIC_LR_GRID]
    half = replace(b, straggler_fraction=0.5)
    proxes = [FedProx(mu=mu) for mu in LOGISTIC_MU_GRID]
    return grid(b, replicate=replicates, work=works) + grid(half, replicate=replicates, algorithm=proxes)


def logistic_arms(profile: Profile, name: str) -> list[Experiment]:
    """Three arms and the whole grid of mu, at 0, 50 and 90 % stragglers, ten replicates."""
    algorithms = [FedAvg(), FedProx(mu=0.0)] + [FedProx(mu=mu) for mu in LOGISTIC_MU_GRID]
    replicates = LOGISTIC_REPLICATES[:2] if profile.is_smoke else LOGISTIC_REPLICATES
    return distinct(
        grid(logistic_base(profile, name), replicate=replicates, straggler_fraction=STRAGGLERS, algorithm=algorithms)
    )


def _replicates(profile: Profile) -> tuple[int, ...]:
    return REPLICATES[:1] if profile.is_smoke else REPLICATES


def distinct(sweep: list[Experiment]) -> list[Experiment]:
    """Without stragglers FedAvg and FedProx(mu=0) are one algorithm; that run is made once, as FedAvg."""
    return [e for e in sweep if not (e.straggler_fraction == 0 and e.algorithm == FedProx(mu=0.0))]


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
    "lr_edges": lr_edges,
    "choose_mu": choose_mu,
    "side_by_side": side_by_side,
    "iid": iid,
    "rerun": rerun,
    "logistic_choices_mnist": partial(logistic_choices, name="mnist"),
    "logistic_choices_fashion": partial(logistic_choices, name="fashion_mnist"),
    "logistic_mnist": partial(logistic_arms, name="mnist"),
    "logistic_fashion": partial(logistic_arms, name="fashion_mnist"),
    "mu_grid_90": partial(mu_grid, fraction=0.9),
    "mcmahan_shards": mcmahan_shards,
    "mcmahan_lr": mcmahan_lr,
    "smaller_steps_90": partial(smaller_steps, fraction=0.9),
    "mcmahan_iid_1": partial(mcmahan_iid, epochs=1),
    "mcmahan_iid_5": partial(mcmahan_iid, epochs=5),
    "fashion_90": partial(fashion, fraction=0.9),
    "fashion_0": partial(fashion, fraction=0.0),
}
"""Every recorded sweep of the book by name."""

PLANNED: dict[str, Callable[[Profile], list[Experiment]]] = {
    "mu_grid_0": partial(mu_grid, fraction=0.0),
    "smaller_steps_0": partial(smaller_steps, fraction=0.0),
    "iid_0": partial(iid, fraction=0.0),
    "mu_grid_50": partial(mu_grid, fraction=0.5),
    "fashion_50": partial(fashion, fraction=0.5),
    "iid_50": partial(iid, fraction=0.5),
    "mcmahan_shards_slower": partial(mcmahan_shards, lr=0.05),
}
"""Written down and costed, but not recorded, or only in part: chapters list them as not run. In order of importance."""
