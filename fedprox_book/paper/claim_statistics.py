"""What the claims are judged by: each function turns runs into one value per replicate, for every part of a claim.

A *part* is what a claim is true or false of: a share of stragglers, a pair of data sets, a value of mu. Arms are
compared within replicates, so where two of them are involved, a value is a difference or the logarithm of a ratio.

``claims.yml`` names these functions; :mod:`fedprox_book.paper.claims` calls them. (``identity``, which needs no
records, is there.) The input is a table from ``results.run``, the output a table with the columns part, replicate and
value. Layer: book (pandas).
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
import pandas as pd

LAST = 20
"""Final means the mean over that many measured rounds."""

RISE, STANDSTILL, WINDOW = 1.0, 1e-4, 10
"""Appendix C.3.2: diverging is a rise by more than 1 in 10 rounds, converged a change of less than 0.0001 in one."""


def final_difference(
    runs: pd.DataFrame,
    *,
    metric: str,
    arm: str | Sequence[str],
    baseline: str | Sequence[str] | None,
    stragglers: Sequence[float] = (0.0,),
    sampling: tuple[str, str] | None = None,
    until: int | None = None,
) -> pd.DataFrame:
    """Final value of one arm minus that of another, in the replicates that both have.

    Args:
        runs: of one data set.
        metric: a measured column.
        arm: its label, and the parts are shares of stragglers; or several, and the parts are arms, at one share.
        baseline: its label; of several the one that is lowest on average. None: the arm itself, otherwise sampled.
        stragglers: their shares.
        sampling: how the clients of arm and baseline are drawn, where the runs differ in that.
        until: the last round that counts; by default that of the run.
    """
    if not isinstance(arm, str) and len(stragglers) != 1:
        raise ValueError(f"several arms are compared at one share of stragglers, got {stragglers}.")
    ours, theirs, found = runs, runs, {}
    if sampling is not None:
        ours, theirs = (runs[runs["sampling"].fillna("uniform") == how] for how in sampling)
    for label, fraction in product(_several(arm), stragglers):
        value = _final(ours, label, fraction, metric, until)
        others = _several(label if baseline is None else baseline)
        reference = min((_final(theirs, other, fraction, metric, until) for other in others), key=pd.Series.mean)
        part = _share(fraction) if isinstance(arm, str) else label.partition(", ")[2]
        found[part] = (value - reference).dropna()
    return _parts(found)


def log_ratio(
    runs: pd.DataFrame,
    *,
    metric: str,
    arm: str,
    baseline: str,
    stragglers: Sequence[float] = (0.0,),
    above_best: float | None = None,
) -> pd.DataFrame:
    """log of the ratio of two arms, by share of stragglers, and by data set where there are several.

    Args:
        runs: of one data set or more.
        metric: a measured column, whose logarithms are averaged over the rounds after round 0, which is the same for
            both; or "roughness", the standard deviation of the change of the training loss from round to round.
        arm: its label.
        baseline: its label.
        stragglers: their shares.
        above_best: what is compared is then how many rounds each arm needs to come within that fraction of the lowest
            value of the baseline; one that never does counts with its last round.
    """
    if runs["data"].nunique() > 1:
        how: dict[str, Any] = {"metric": metric, "arm": arm, "baseline": baseline, "stragglers": stragglers}
        return _by_set(runs, lambda part: log_ratio(part, **how, above_best=above_best))
    found = {}
    for fraction in stragglers:
        one, other = (_measured(runs, label, fraction, metric) for label in (arm, baseline))
        if above_best is not None:
            target = other.min() * (1 + above_best)
            one, other = (_rounds_to(target, curve) for curve in (one, other))
        found[_share(fraction)] = _mean_log(one / other, first=1)
    return _parts(found)


def step_to_next(runs: pd.DataFrame, *, metric: str, arm: str, by: str) -> pd.DataFrame:
    """How a metric of one arm changes from each share of stragglers, or from each data set, to the next.

    Args:
        runs: of one data set, or of several.
        metric: as for :func:`log_ratio`.
        arm: its label.
        by: "straggler_fraction", for the change of the final value; or "data", for that of the mean logarithm over
            the run without stragglers, since losses of different data sets cannot be compared.
    """
    if by == "data":
        sets = runs.groupby("data", sort=False)
        return _steps({name: _mean_log(_measured(part, arm, 0.0, metric)) for name, part in sets})
    return _steps({_share(f): _final(runs, arm, f, metric) for f in sorted(runs["straggler_fraction"].unique())})


def rescued(runs: pd.DataFrame, *, arm: str, baseline: str, stragglers: Sequence[float]) -> pd.DataFrame:
    """1 for each replicate that diverges in the baseline and not in the arm, 0 if in both; others have no value."""
    found = {}
    for f in stragglers:
        ill = _diverges(_curves(runs, baseline, f))
        found[_share(f)] = (~_diverges(_curves(runs, arm, f)))[ill].astype(float)
    return _parts(found)


def gap_where_stopped(runs: pd.DataFrame, *, arm: str, baseline: str) -> pd.DataFrame:
    """Test accuracy of an arm minus the baseline's, each where the rule of appendix C.3.2 stops it, in points."""
    shares = sorted(runs["straggler_fraction"].unique())
    return _parts({_share(f): 100 * (_stopped(runs, arm, f) - _stopped(runs, baseline, f)) for f in shares})


def rank_correlation(runs: pd.DataFrame, *, x: str, y: str, arms: Sequence[str], stragglers: float) -> pd.DataFrame:
    """Spearman's correlation of two metrics over the rounds of the second half of each run, one part per arm."""
    found = {}
    for label in arms:
        a, b = (_curves(runs, label, stragglers, metric) for metric in (x, y))
        late = a.index > a.index[-1] / 2
        found[label] = a[late].corrwith(b[late], method="spearman")
    return _parts(found)


def largest(runs: pd.DataFrame, *, metric: str, arms: Sequence[str], stragglers: float) -> pd.DataFrame:
    """Largest value of a metric over the rounds of a run, one part per arm."""
    return _parts({label: _curves(runs, label, stragglers, metric).max() for label in arms})


def gamma_by_epochs(table: pd.DataFrame) -> pd.DataFrame:
    """log of the ratio of mean gamma from one number of local epochs to the next; columns data, epochs, seed, gamma."""

    def steps(part: pd.DataFrame) -> pd.DataFrame:
        logs = np.log(part.groupby(["epochs", "seed"])["gamma"].mean().unstack("seed"))
        return _steps(dict(logs.iterrows()), before="E = ")

    return _by_set(table, steps)


def smallest_rho(table: pd.DataFrame) -> pd.DataFrame:
    """Smallest rho of Theorem 4 over the rounds looked at; columns data, round, seed, rho."""
    return _by_set(table, lambda part: _parts({"": part.groupby("seed")["rho"].min()}))


def _share(fraction: float) -> str:
    return f"{fraction:.0%}".replace("%", " %")


def _several(labels: str | Sequence[str]) -> Sequence[str]:
    return [labels] if isinstance(labels, str) else labels


def _curves(runs: pd.DataFrame, label: str, fraction: float, metric: str = "train_loss") -> pd.DataFrame:
    """Rounds x replicates of one metric of one arm.

    Without stragglers FedProx with mu = 0 is FedAvg, and is run once, as FedAvg. The name of an algorithm alone stands
    for its arm, whatever the hyperparameters.
    """
    there = runs[runs["straggler_fraction"] == fraction]
    arms = list(there["arm"].unique())
    if label == "FedProx, mu = 0" and fraction == 0 and label not in arms:
        label = "FedAvg"
    if label not in arms:
        label = next((name for name in arms if name.startswith(f"{label}, ")), label)
    chosen = there[there["arm"] == label]
    if chosen.empty:
        raise ValueError(f"there is no run of {label!r} at {_share(fraction)} stragglers among the records.")
    return chosen.pivot(index="round", columns="seed", values=metric)


def _final(runs: pd.DataFrame, label: str, fraction: float, metric: str, until: int | None = None) -> pd.Series:
    return _curves(runs, label, fraction, metric).loc[:until].tail(LAST).mean()


def _measured(runs: pd.DataFrame, label: str, fraction: float, metric: str) -> pd.DataFrame | pd.Series:
    """A metric in every round; roughness is one value per replicate."""
    if metric == "roughness":
        return _curves(runs, label, fraction).diff().std()
    return _curves(runs, label, fraction, metric)


def _mean_log(values: pd.DataFrame | pd.Series, first: int = 0) -> pd.Series:
    """The logarithm; its mean over the rounds, from the first that counts, if there is one in every round."""
    logs = np.log(values)
    return logs.loc[first:].mean() if isinstance(values, pd.DataFrame) else logs


def _rounds_to(target: pd.Series, curves: pd.DataFrame) -> pd.Series:
    """The first round in which each replicate is at its target or below it, at least 1; never is the last round."""
    reached = curves.le(target, axis=1)
    return reached.idxmax().where(reached.any(), curves.index[-1]).clip(lower=1)


def _diverges(loss: pd.DataFrame) -> pd.Series:
    return (loss.diff(WINDOW) > RISE).any() | loss.iloc[-1].isna()  # a run ends where a weight is not finite


def _stopped(runs: pd.DataFrame, label: str, fraction: float) -> pd.Series:
    """Test accuracy in the first round in which the rule stops the run, or in the last one."""
    loss, accuracy = (_curves(runs, label, fraction, metric) for metric in ("train_loss", "test_accuracy"))
    stop = (loss.diff().abs() < STANDSTILL) | (loss.diff(WINDOW) > RISE)
    at = stop.idxmax().where(stop.any(), loss.index[-1])
    return pd.Series({seed: accuracy.loc[at[seed], seed] for seed in accuracy.columns})


def _steps(values: Mapping[Any, pd.Series], before: str = "") -> pd.DataFrame:
    """From each to the next; ``before`` is what the names of the parts begin with."""
    return _parts({f"{before}{a} to {b}": y - x for (a, x), (b, y) in pairwise(values.items())})


def _by_set(runs: pd.DataFrame, statistic: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    found = []
    for name in dict.fromkeys(runs["data"]):
        part = statistic(runs[runs["data"] == name])
        found.append(part.assign(part=(name + " " + part["part"]).str.strip()))
    return pd.concat(found, ignore_index=True)


def _parts(values: Mapping[str, pd.Series]) -> pd.DataFrame:
    rows = [(part, seed, float(value)) for part, series in values.items() for seed, value in series.items()]
    empty = [(part, np.nan, np.nan) for part, series in values.items() if series.empty]
    return pd.DataFrame(rows + empty, columns=["part", "replicate", "value"])
