"""The paper's own experiments as sweeps: its federations, its settings, ten replicates of each.

Li et al. 2020, section 5 and appendix C: K = 10, B = 10, E = 20, learning rates 0.03 (MNIST) and 0.01 (synthetic), both
from its grid on FedAvg; FedAvg drops stragglers, FedProx keeps them. Ours: ten replicates instead of one run, all
70,000 digits with a fifth of every client's rows held out, both ways of scaling pixels.

``PAPER`` is what ``make results ONLY=paper`` trains; :mod:`fedprox_book.paper.claims` judges the paper's claims by it.
``NOT_RUN`` is what could not be trained where this book was made. Layer: book (descriptions).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from fedprox_book.paper import AdaptiveFedProx, AsGenerated, FedDane, LogNormalSizes
from fedprox_book.paper.synthetic import SPREADS
from fedprox_book.profile import Profile
from fedprox_book.sweeps import STRAGGLERS, arms, distinct
from fedprox_lib.algorithms import Algorithm, FedAdam, FedAvg, FedAvgM, FedProx, Scaffold
from fedprox_lib.partition import PowerLaw
from fedprox_lib.plan import LocalWork
from fedprox_lib.sweeps.experiment import Evaluation, Experiment, grid

REPLICATES = tuple(range(10))
FEWER = REPLICATES[:5]
"""For the experiments beside the main arms."""

CHOOSING_REPLICATES = (1000, 1001, 1002)
MU_GRID = (0.001, 0.01, 0.1, 1.0)
BEST_MU = 1.0
"""What the paper found best on MNIST and on the synthetic data (appendix C.2)."""

UNTIL_CONVERGED = 1_000
"""Rounds of the runs for the rule behind the 22 % (appendix C.3.2), its own example of "sufficient"."""


def paper_mnist(profile: Profile, normalisation: str) -> Experiment:
    """Logistic regression; 1,000 clients of two digits whose sizes follow a power law; 100 rounds."""
    small = profile.is_smoke
    return Experiment(
        algorithm=FedAvg(),
        data="mnist5k" if small else "mnist",
        normalisation=normalisation,
        split="within_clients",
        model="logistic",
        partition=PowerLaw(num_clients=60 if small else 1_000),
        work=LocalWork(epochs=4 if small else 20, batch_size=10, lr=0.03),
        rounds=6 if small else 100,
        cohort_size=10,
    )


def paper_synthetic(profile: Profile, name: str) -> Experiment:
    """Logistic regression on the 30 clients of a synthetic set; 200 rounds; gradients of all clients measured."""
    small = profile.is_smoke
    return Experiment(
        algorithm=FedAvg(),
        data=name,
        model="logistic",
        partition=AsGenerated(),
        work=LocalWork(epochs=2 if small else 20, batch_size=10, lr=0.01),
        rounds=6 if small else 200,
        cohort_size=10,
        evaluation=Evaluation(gradients=True),
    )


def femnist(profile: Profile) -> list[Experiment]:
    """Figures 1 and 7, FEMNIST: 200 clients of five letters each; 200 rounds. Never run: see ``NOT_RUN``.

    The ten replicates need between 2,400 and 2,500 images of the letter that is asked for most; where EMNIST has fewer
    of a letter than a replicate needs, :class:`fedprox_book.paper.LogNormalSizes` says so and nothing is trained.

    # differs from authors' code: its model has 26 outputs, of which 10 occur; ours has 10.
    """
    small = profile.is_smoke
    b = Experiment(
        algorithm=FedAvg(),
        data="mnist5k" if small else "femnist",
        normalisation="unit",
        split="within_clients",
        model="logistic",
        partition=LogNormalSizes(num_clients=20 if small else 200),
        work=LocalWork(epochs=2 if small else 20, batch_size=10, lr=0.003),
        rounds=6 if small else 200,
        cohort_size=10,
    )
    return _at_all_shares(b, profile, arms(BEST_MU))


def _base(profile: Profile, name: str) -> Experiment:
    return paper_mnist(profile, "standard") if name == "mnist" else paper_synthetic(profile, name)


def _replicates(profile: Profile, wanted: tuple[int, ...] = REPLICATES) -> tuple[int, ...]:
    return wanted[:2] if profile.is_smoke else wanted


def _at_all_shares(b: Experiment, profile: Profile, algorithms: list[Algorithm]) -> list[Experiment]:
    return distinct(grid(b, replicate=_replicates(profile), straggler_fraction=STRAGGLERS, algorithm=algorithms))


def mnist_arms(profile: Profile, normalisation: str) -> list[Experiment]:
    """Figures 1 and 7, MNIST, and the U-shape over mu: FedAvg and FedProx over mu, at 0, 50 and 90 % stragglers."""
    algorithms = [FedAvg(), FedProx(mu=0.0), *(FedProx(mu=mu) for mu in MU_GRID)]
    return _at_all_shares(paper_mnist(profile, normalisation), profile, algorithms)


def synthetic_arms(profile: Profile, name: str) -> list[Experiment]:
    """Figures 1, 2, 5, 6, 7 and 8: FedAvg and FedProx with mu 0 and 1, at 0, 50 and 90 % stragglers."""
    return _at_all_shares(paper_synthetic(profile, name), profile, arms(BEST_MU))


def synthetic_mu(profile: Profile) -> list[Experiment]:
    """Section 5.3.2 on Synthetic(1,1) without stragglers: the rest of the grid of mu."""
    b = paper_synthetic(profile, "synthetic_1_1")
    return grid(b, replicate=_replicates(profile), algorithm=[FedProx(mu=mu) for mu in MU_GRID if mu != BEST_MU])


def one_epoch(profile: Profile, name: str) -> list[Experiment]:
    """Figures 9 and 10: E = 1, partial work counted in mini-batches."""
    b = _base(profile, name)
    b = replace(b, work=replace(b.work, epochs=1), evaluation=Evaluation())
    return _at_all_shares(b, profile, arms(BEST_MU))


def adaptive(profile: Profile) -> list[Experiment]:
    """Figures 3 and 11: mu follows the loss, from 1 on IID data and from 0 on the others."""
    return [
        e
        for name in SPREADS
        for e in grid(
            paper_synthetic(profile, name),
            replicate=_replicates(profile, FEWER),
            algorithm=[AdaptiveFedProx(mu=1.0 if name == "synthetic_iid" else 0.0)],
        )
    ]


def feddane(profile: Profile) -> list[Experiment]:
    """Figure 4: FedDane with FedProx's mu and 10 clients asked for gradients; off IID data also with all 30."""
    asked = {name: (10,) if name == "synthetic_iid" else (10, 30) for name in SPREADS}
    return [
        e
        for name, counts in asked.items()
        for e in grid(
            paper_synthetic(profile, name),
            replicate=_replicates(profile, FEWER),
            algorithm=[FedDane(mu=BEST_MU, gradient_clients=n) for n in counts],
        )
    ]


def by_size(profile: Profile) -> list[Experiment]:
    """Figure 12: Algorithm 2's sampling. It meets the largest clients almost every round: three replicates."""
    return [
        e
        for name in SPREADS
        for e in grid(
            replace(paper_synthetic(profile, name), rounds=6 if profile.is_smoke else 100, sampling="by_size"),
            replicate=_replicates(profile, REPLICATES[:3]),
            algorithm=[FedProx(mu=0.0), FedProx(mu=BEST_MU)],
        )
    ]


def until_converged(profile: Profile, name: str) -> list[Experiment]:
    """The rule behind the 22 %: 90 % stragglers, run on until the rule has stopped every arm."""
    b = _base(profile, name)
    b = replace(b, rounds=6 if profile.is_smoke else UNTIL_CONVERGED, evaluation=Evaluation())
    return grid(b, replicate=_replicates(profile), straggler_fraction=[0.9], algorithm=arms(BEST_MU))


def paper_smaller_steps(profile: Profile, name: str) -> list[Experiment]:
    """Is mu more than a smaller step? mu = 0 with a third and a tenth of the learning rate, or with 5 epochs or 1."""
    b = _base(profile, name)
    works = [replace(b.work, lr=round(b.work.lr * part, 6)) for part in (1 / 3, 1 / 10)]
    works += [replace(b.work, epochs=epochs) for epochs in (5, 1) if epochs < b.work.epochs]
    b = replace(b, evaluation=Evaluation())
    return [
        e
        for fraction, kept in ((0.0, FedAvg()), (0.9, FedProx(mu=0.0)))
        for e in grid(
            replace(b, algorithm=kept), replicate=_replicates(profile, FEWER), straggler_fraction=[fraction], work=works
        )
    ]


def today_choices(profile: Profile, name: str) -> list[Experiment]:
    """Hyperparameters for FedProx and what came after it: 100 rounds without stragglers, on unreported replicates."""
    candidates = [
        *(FedProx(mu=mu) for mu in MU_GRID),
        *(Scaffold(server_lr=lr) for lr in (0.3, 1.0)),
        *(FedAvgM(server_lr=lr) for lr in (0.01, 0.03, 0.1, 0.3, 1.0)),
        *(FedAdam(server_lr=lr) for lr in (0.001, 0.003, 0.01, 0.03, 0.1)),
    ]
    b = _base(profile, name)
    b = replace(b, rounds=min(b.rounds, 100), evaluation=Evaluation())
    return grid(b, replicate=_replicates(profile, CHOOSING_REPLICATES), algorithm=candidates)


CHOSEN = {
    "mnist": (FedProx(mu=1.0), Scaffold(server_lr=1.0), FedAvgM(server_lr=0.03), FedAdam(server_lr=0.003)),
    "synthetic_1_1": (FedProx(mu=1.0), Scaffold(server_lr=1.0), FedAvgM(server_lr=0.3), FedAdam(server_lr=0.01)),
}
"""Of each kind in :func:`today_choices`, the one with the lowest training loss over its last 20 rounds."""


def today(profile: Profile, name: str) -> list[Experiment]:
    """FedAvg and, with the hyperparameters in ``CHOSEN``, FedProx and what came after it, without stragglers."""
    return grid(_base(profile, name), replicate=_replicates(profile), algorithm=[FedAvg(), *CHOSEN[name]])


PAPER: dict[str, Callable[[Profile], list[Experiment]]] = {
    **{f"paper_{name}": partial(synthetic_arms, name=name) for name in SPREADS},
    "paper_mnist": partial(mnist_arms, normalisation="standard"),
    "paper_mnist_per_pixel": partial(mnist_arms, normalisation="per_pixel"),
    "paper_synthetic_mu": synthetic_mu,
    "paper_one_epoch_mnist": partial(one_epoch, name="mnist"),
    "paper_one_epoch_synthetic": partial(one_epoch, name="synthetic_1_1"),
    "paper_adaptive": adaptive,
    "paper_feddane": feddane,
    "paper_converged_mnist": partial(until_converged, name="mnist"),
    "paper_converged_synthetic": partial(until_converged, name="synthetic_1_1"),
    "paper_smaller_mnist": partial(paper_smaller_steps, name="mnist"),
    "paper_smaller_synthetic": partial(paper_smaller_steps, name="synthetic_1_1"),
    "paper_today_choices_mnist": partial(today_choices, name="mnist"),
    "paper_today_choices_synthetic": partial(today_choices, name="synthetic_1_1"),
    "paper_today_mnist": partial(today, name="mnist"),
    "paper_today_synthetic": partial(today, name="synthetic_1_1"),
    "paper_by_size": by_size,
}
"""The sweeps by name, in the order in which they are trained: the main arms first, Figure 12 last."""

NOT_RUN: dict[str, tuple[Callable[[Profile], list[Experiment]], str]] = {
    "paper_femnist": (femnist, "EMNIST could not be had where this book was made: not run"),
}
"""Sweeps without records, with the reason: no part of ``make results``.

``python -m fedprox_book.make --sweep paper_femnist --store FOLDER`` trains one where its data can be had.
"""
