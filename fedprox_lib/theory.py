"""What Theorem 4 asks for, measured along real runs: B(w_t), gamma, L, and the rho that they leave.

Which question this answers: *do the conditions under which the paper proves progress hold where it makes progress?* The
theorem (Li et al. 2020, section 4) promises E f(w_{t+1}) <= f(w_t) - rho ||grad f(w_t)||^2 if rho > 0; :func:`rho` is
its formula, :func:`along` measures what goes into it. Taught in "What the theory asks for".

Room: PyTorch computation. May import diagnostics, simulate, engine and what they stand on.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from fedprox_lib import diagnostics, engine, simulate
from fedprox_lib.experiment import Experiment
from fedprox_lib.federation import Federation
from fedprox_lib.simulate import Job


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


def along(experiment: Experiment, rounds: Sequence[int], epochs: Sequence[int]) -> pd.DataFrame:
    """What Theorem 4 needs, at the start of some rounds of a run without stragglers.

    From each of these w_t every client of the cohort solves its local problem again, with each number of epochs; the
    batches are those of the run, so fewer epochs are the beginning of more.

    Args:
        experiment: a FedProx run with mu > 0 and logistic regression (convex: ``L_-`` is 0); no stragglers.
        rounds: t >= 1, at whose start to look.
        epochs: numbers of local epochs, each at most the experiment's.

    Returns:
        One row a round, number of epochs and client: columns data, seed, round, epochs, client, gamma, and for the
        round dissimilarity, smoothness and rho. The smoothness is the largest Hessian eigenvalue of any client of the
        cohort *at w_t*, which is at most the L of the theorem; and gamma is the largest of the cohort (Corollary 9).
        rho falls with both, so where this one is negative, the theorem's is, too.

    Raises:
        ValueError: if the experiment is not of that kind.
    """
    mu = experiment.algorithm.numbers().get("mu", 0.0)
    if (
        not mu > 0
        or experiment.model != "logistic"
        or experiment.straggler_fraction
        or max(epochs) > experiment.work.epochs
    ):
        raise ValueError(
            "along() needs FedProx with mu > 0, logistic regression, no stragglers and epochs of at most the run's "
            f"{experiment.work.epochs}, got {experiment.label}, {experiment.model!r}, "
            f"{experiment.straggler_fraction:g} and {max(epochs)}."
        )
    federation = Federation.of(experiment)
    rows: list[dict] = []
    for state, measured in simulate.simulate(experiment, backend=engine.batched, federation=federation):
        t = state.round + 1
        if t not in rounds:
            continue
        jobs = simulate.round_jobs(state, federation.planner.round_plan(t), experiment.algorithm, experiment.work.lr)
        held = [federation.train.take(federation.partition.rows[job.work.client]) for job in jobs]
        sharpest = max(diagnostics.sharpness(federation.model, state.params, examples) for examples in held)
        for e in epochs:
            ends = engine.batched(federation.model, federation.train, [_shortened(job, e, experiment) for job in jobs])
            gammas = [
                diagnostics.inexactness(federation.model, w, state.params, examples, mu)
                for w, examples in zip(ends, held, strict=True)
            ]
            about = {
                "data": experiment.data, "seed": experiment.seed, "round": t, "epochs": e,
                "dissimilarity": measured["dissimilarity"], "smoothness": sharpest,
                "rho": rho(
                    mu, gamma=max(gammas), dissimilarity=measured["dissimilarity"], smoothness=sharpest,
                    cohort_size=experiment.cohort_size,
                ),
            }  # fmt: skip
            rows += [{**about, "client": j.work.client, "gamma": g} for j, g in zip(jobs, gammas, strict=True)]
    return pd.DataFrame(rows)


def _shortened(job: Job, epochs: int, experiment: Experiment) -> Job:
    """The same job with fewer epochs: the beginning of its order of batches."""
    sizes = job.work.batch_sizes[: job.work.num_steps * epochs // experiment.work.epochs]
    return job._replace(work=replace(job.work, order=job.work.order[: int(sizes.sum())], batch_sizes=sizes))
