"""What Theorem 4 asks for, measured along real runs: B(w_t), gamma, L, and the rho that they leave.

Do the conditions under which the paper proves progress hold where it makes progress? The theorem (Li et al. 2020,
section 4) promises E f(w_{t+1}) <= f(w_t) - rho ||grad f(w_t)||^2 if rho > 0; :func:`rho` is its formula, :func:`along`
measures what goes into it, and the claims on it are judged by :func:`gamma_table`. As a command (part of
``make results``)::

    python -m fedprox_book.paper.theory            # makes the table, unless it is there

Taught in "What the theory asks for, and what the runs do". Layer: book (PyTorch, pandas and a command line).
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from fedprox_book import diagnostics, sweeps_paper
from fedprox_book import profile as profiles
from fedprox_book.paper import synthetic
from fedprox_book.profile import Profile
from fedprox_lib import engine, simulation
from fedprox_lib.algorithms import FedProx
from fedprox_lib.federation import Federation
from fedprox_lib.simulation import Backend, Job, State
from fedprox_lib.sweeps import lockstep, results
from fedprox_lib.sweeps.experiment import Experiment, grid
from fedprox_lib.sweeps.federations import federations_of
from fedprox_lib.tree import Params

TABLE = "paper-gamma"
"""Name of the table, as ``claims.yml`` has it."""

ROUNDS = (1, 5, 20, 50)
EPOCHS = (1, 2, 5, 10, 20)
"""At whose start the table looks, and with how many local epochs from there."""


def rho(
    mu: float, *, gamma: float, dissimilarity: float, smoothness: float, cohort_size: int, concavity: float = 0.0
) -> float:
    r"""Theorem 4's rho.

    .. math::

        \rho = \frac{1 - \gamma B}{\mu} - \frac{B(1+\gamma)\sqrt 2}{\bar\mu\sqrt K} - \frac{LB(1+\gamma)}{\bar\mu\mu}
        - \frac{L(1+\gamma)^2B^2}{2\bar\mu^2} - \frac{LB^2(1+\gamma)^2}{\bar\mu^2 K}\bigl(2\sqrt{2K}+2\bigr)

    Args:
        mu: of the proximal term, > 0.
        gamma: inexactness of the local solutions (Definition 2), >= 0.
        dissimilarity: B(w_t) (Definition 3), >= 1.
        smoothness: L of the local losses.
        cohort_size: K.
        concavity: ``L_-``, 0 for convex losses; mubar = mu - ``L_-`` must be > 0.

    Raises:
        ValueError: if mu or mubar is not positive: the theorem says nothing then.

    Example:
        >>> rho(1.0, gamma=0.0, dissimilarity=1.0, smoothness=0.0, cohort_size=8)
        0.5
    """
    bar = mu - concavity
    if not (mu > 0 and bar > 0):
        raise ValueError(f"Theorem 4 needs mu > L_- >= 0, got mu={mu} and L_-={concavity}.")
    b, k, reach = dissimilarity, cohort_size, 1 + gamma
    return (
        (1 - gamma * b) / mu
        - b * reach * math.sqrt(2) / (bar * math.sqrt(k))
        - smoothness * b * reach / (bar * mu)
        - smoothness * (reach * b / bar) ** 2 / 2
        - smoothness * (reach * b / bar) ** 2 / k * (2 * math.sqrt(2 * k) + 2)
    )


def along(
    experiments: Sequence[Experiment],
    rounds: Sequence[int],
    epochs: Sequence[int],
    *,
    backend: Backend = engine.batched,
) -> pd.DataFrame:
    """What Theorem 4 needs, at the start of some rounds of runs without stragglers.

    From each of these w_t every client of the cohort solves its local problem again, with each number of epochs; the
    batches are those of the run, so fewer epochs are the beginning of more.

    Args:
        experiments: FedProx runs with mu > 0 and logistic regression (convex: ``L_-`` is 0), no stragglers, gradients
            measured; they train together.
        rounds: t >= 1, at whose start to look; a run of T rounds can be looked at up to the start of round T + 1.
        epochs: numbers of local epochs, each at most the experiments'.
        backend: who trains and solves; another one than SGD may make gamma as small as it likes.

    Returns:
        One row per run, round, number of epochs and client: columns data, seed, round, epochs, client, gamma, and of
        the round dissimilarity, smoothness and rho. The smoothness is the largest Hessian eigenvalue of any client of
        the cohort *at w_t*, which is at most the L of the theorem; and rho is taken with the largest gamma of the
        cohort (Corollary 9). rho falls with both, so where this one is negative, the theorem's is, too.

    Raises:
        ValueError: if an experiment is not of that kind.
    """
    for e in experiments:
        _require(e, epochs)
    federations = dict(zip(experiments, federations_of(experiments), strict=True))
    looks, jobs = [], []
    for e, state, measured, *_ in lockstep.together(
        experiments, backend=backend, federations=list(federations.values())
    ):
        if state.round + 1 in rounds:
            plan = federations[e].planner.round_plan(state.round + 1)
            cohort = simulation.round_jobs(state, plan, e.algorithm, e.work.lr)
            looks.append((e, state, measured, cohort))
            jobs += [_shortened(job, number, e) for number in epochs for job in cohort]
    some = federations[experiments[0]]
    ends = iter(backend(some.model, some.train, jobs))
    rows: list[dict] = []
    for e, state, measured, cohort in looks:
        rows += _look(e, federations[e], state, measured["dissimilarity"], cohort, epochs, ends)
    return pd.DataFrame(rows)


def gamma_table(profile: Profile) -> pd.DataFrame:
    """The table of C17 and C18-rho: FedProx with mu = 1 on the synthetic sets, five replicates. Runs or loads."""
    small = profile.is_smoke
    rounds, epochs = ((1, 3), (1, 2)) if small else (ROUNDS, EPOCHS)
    replicates = sweeps_paper.REPLICATES[:2] if small else sweeps_paper.FEWER
    runs = [
        e
        for name in synthetic.SPREADS
        for e in grid(
            replace(
                sweeps_paper.paper_synthetic(profile, name),
                algorithm=FedProx(mu=sweeps_paper.BEST_MU),
                rounds=max(rounds) - 1,  # the last look is at the start of a round
            ),
            replicate=replicates,
        )
    ]
    varied = {name: list(dict.fromkeys(getattr(e, name) for e in runs)) for name in ("data", "seed", "data_seed")}
    settings = runs[0].settings() | varied | {"looked_at": list(rounds), "local_epochs": list(epochs)}
    return results.table(TABLE, profile, settings, lambda: along(runs, rounds, epochs))


def _require(e: Experiment, epochs: Sequence[int]) -> None:
    if (
        not e.algorithm.hyperparameters().get("mu", 0.0) > 0
        or e.model != "logistic"
        or e.straggler_fraction
        or not e.evaluation.gradients
        or max(epochs) > e.work.epochs
    ):
        raise ValueError(
            "along() needs FedProx with mu > 0, logistic regression, no stragglers, gradients measured and epochs of "
            f"at most the run's {e.work.epochs}, got {e.label}, {e.model!r}, {e.straggler_fraction:g}, "
            f"{e.evaluation.gradients} and {max(epochs)}."
        )


def _look(
    e: Experiment,
    federation: Federation,
    state: State,
    dissimilarity: float,
    cohort: list[Job],
    epochs: Sequence[int],
    ends: Iterator[Params],
) -> list[dict]:
    """The rows of one round; ``ends`` gives where its clients end: all of them after each number of epochs."""
    model, mu = federation.model, e.algorithm.hyperparameters()["mu"]
    held = [federation.train.take(federation.partition.rows[job.work.client]) for job in cohort]
    sharpest = max(diagnostics.sharpness(model, state.params, examples) for examples in held)
    rows = []
    for number in epochs:
        gammas = [diagnostics.inexactness(model, next(ends), state.params, examples, mu) for examples in held]
        measured = {"dissimilarity": dissimilarity, "smoothness": sharpest}
        about = {
            "data": e.data,
            "seed": e.seed,
            "round": state.round + 1,
            "epochs": number,
            **measured,
            "rho": rho(mu, gamma=max(gammas), **measured, cohort_size=e.cohort_size),
        }
        rows += [{**about, "client": job.work.client, "gamma": g} for job, g in zip(cohort, gammas, strict=True)]
    return rows


def _shortened(job: Job, epochs: int, experiment: Experiment) -> Job:
    """The same job with fewer epochs: the beginning of its order of batches."""
    sizes = job.work.batch_sizes[: job.work.num_steps * epochs // experiment.work.epochs]
    return job._replace(work=replace(job.work, order=job.work.order[: int(sizes.sum())], batch_sizes=sizes))


def theory_command(arguments: Sequence[str] | None = None) -> None:
    """Make the table of gamma, L and rho along runs, unless it is there."""
    parser = argparse.ArgumentParser(prog="python -m fedprox_book.paper.theory", description=theory_command.__doc__)
    parser.add_argument("--profile", default="paper", choices=profiles.PROFILES)
    parser.add_argument("--store", type=Path, help="another results folder")
    given = parser.parse_args(arguments)
    profile = profiles.profile_named(given.profile)
    if given.store:
        profile = replace(profile, folder=given.store, may_train=True)
    print(f"table {TABLE!r}: {len(gamma_table(profile))} rows in {profile.folder}")


if __name__ == "__main__":
    theory_command()
