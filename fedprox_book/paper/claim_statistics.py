"""What the claims are judged by: each function turns runs into one value a replicate, for every part of a claim.

A *part* is what a claim is true or false of: a share of stragglers, a pair of data sets, a value of mu. Arms are
compared within replicates, so where two of them are involved, a value is a difference or the logarithm of a ratio.

``claims.yml`` names these functions; :mod:`fedprox_book.paper.claims` calls them. Input is a table from
``results.run``, output a table with the columns part, replicate, value. Room: pandas. May import statistics.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

LAST = 20
"""Final means the mean over that many measured rounds."""

RISE, STANDSTILL, WINDOW = 1.0, 1e-4, 10
"""Appendix C.3.2: diverging is a rise by more than 1 in 10 rounds, converged a change of less than 0.0001 in one."""


def _arm(runs: pd.DataFrame, label: str, fraction: float, metric: str = "train_loss") -> pd.DataFrame:
    """Rounds x replicates of one metric of one arm. Without stragglers FedProx(mu=0) is FedAvg, run once as FedAvg."""
    if label == "FedProx, mu = 0" and fraction == 0 and label not in set(runs.query("straggler_fraction == 0")["arm"]):
        label = "FedAvg"
    chosen = runs[(runs["arm"] == label) & (runs["straggler_fraction"] == fraction)]
    if chosen.empty:
        raise ValueError(f"there is no run of {label!r} at {_share(fraction)} stragglers among the records.")
    return chosen.pivot(index="round", columns="seed", values=metric)


def final_difference(
    runs: pd.DataFrame, *, metric: str, arm: str, baseline: str, stragglers: Sequence[float]
) -> pd.DataFrame:
    """Final value of one arm minus that of the other."""
    return _parts({_share(f): _final(runs, arm, f, metric) - _final(runs, baseline, f, metric) for f in stragglers})


def step_between_stragglers(runs: pd.DataFrame, *, metric: str, arm: str) -> pd.DataFrame:
    """Final value of one arm from one share of stragglers to the next larger one."""
    shares = sorted(runs["straggler_fraction"].unique())
    finals = [_final(runs, arm, f, metric) for f in shares]
    return _parts(
        {
            f"{_share(a)} to {_share(b)}": y - x
            for a, b, x, y in zip(shares, shares[1:], finals, finals[1:], strict=False)
        }
    )


def roughness_ratio(
    runs: pd.DataFrame, *, metric: str, arm: str, baseline: str, stragglers: Sequence[float]
) -> pd.DataFrame:
    """log of the ratio of the standard deviations of the change from round to round."""
    return _parts(
        {_share(f): np.log(_rough(runs, arm, f, metric) / _rough(runs, baseline, f, metric)) for f in stragglers}
    )


def roughness_ratio_by_set(runs: pd.DataFrame, *, metric: str, arm: str, baseline: str) -> pd.DataFrame:
    """The same without stragglers, a part a data set."""
    return _by_set(
        runs, lambda part: roughness_ratio(part, metric=metric, arm=arm, baseline=baseline, stragglers=[0.0])
    )


def rescued(runs: pd.DataFrame, *, arm: str, baseline: str, stragglers: Sequence[float]) -> pd.DataFrame:
    """1 for each replicate that diverges in the baseline and not in the arm, 0 if in both; others have no value."""
    found = {}
    for f in stragglers:
        ill = _diverges(_arm(runs, baseline, f))
        found[_share(f)] = (~_diverges(_arm(runs, arm, f)))[ill].astype(float)
    return _parts(found)


def gap_where_stopped(runs: pd.DataFrame, *, arm: str, baseline: str) -> pd.DataFrame:
    """Test accuracy of an arm minus the baseline's, each where the rule of appendix C.3.2 stops it, in points."""
    shares = sorted(runs["straggler_fraction"].unique())
    return _parts({_share(f): 100 * (_stopped(runs, arm, f) - _stopped(runs, baseline, f)) for f in shares})


def step_between_sets(runs: pd.DataFrame, *, metric: str, arm: str) -> pd.DataFrame:
    """log of the ratio of a metric's mean over the run (or of the roughness of the loss) from data set to data set."""
    logs = {}
    for name, part in runs.groupby("data", sort=False):
        if metric == "roughness":
            logs[name] = np.log(_rough(part, arm, 0.0, "train_loss"))
        else:
            logs[name] = np.log(_arm(part, arm, 0.0, metric)).mean()
    return _parts({f"{a} to {b}": logs[b] - logs[a] for a, b in pairwise(logs)})


def rounds_ratio(runs: pd.DataFrame, *, arm: str, baseline: str, above_best: float) -> pd.DataFrame:
    """log of the ratio of the rounds to come within a fraction of the baseline's lowest loss; never is the last one."""
    target = _arm(runs, baseline, 0.0).min() * (1 + above_best)

    def rounds(curve: pd.DataFrame) -> pd.Series:
        reached = curve.le(target, axis=1)
        return reached.idxmax().where(reached.any(), curve.index[-1]).clip(lower=1)

    pair = rounds(_arm(runs, arm, 0.0)) / rounds(_arm(runs, baseline, 0.0))
    return _parts({"0 %": np.log(pair)})


def mean_log_ratio(runs: pd.DataFrame, *, metric: str, arm: str, baseline: str) -> pd.DataFrame:
    """Mean over rounds of the log of the ratio of a metric, without stragglers; round 0 is the same for both."""
    both = [_arm(runs, label, 0.0, metric).loc[1:] for label in (arm, baseline)]
    return _parts({"0 %": np.log(both[0] / both[1]).mean()})


def rank_correlation(runs: pd.DataFrame, *, x: str, y: str, arms: Sequence[str], stragglers: float) -> pd.DataFrame:
    """Spearman's correlation of two metrics over the rounds of the second half of each run, a part an arm."""
    found = {}
    for label in arms:
        a, b = (_arm(runs, label, stragglers, metric) for metric in (x, y))
        late = a.index > a.index[-1] / 2
        found[label] = a[late].corrwith(b[late], method="spearman")
    return _parts(found)


def gap_to_better(runs: pd.DataFrame, *, metric: str, arms: Sequence[str], adaptive: str) -> pd.DataFrame:
    """Final value of the adaptive arm minus that of whichever fixed arm is lower on average."""
    better = min((_final(runs, label, 0.0, metric) for label in arms), key=lambda values: values.mean())
    label = next(name for name in runs["arm"].unique() if name.startswith(adaptive))
    return _parts({"0 %": _final(runs, label, 0.0, metric) - better})


def sampling_difference(runs: pd.DataFrame, *, metric: str, mus: Sequence[float], round: int) -> pd.DataFrame:
    """Drawn by size minus uniform, both over the 20 rounds up to one, a part a mu; replicates that both have."""
    drawn = runs.get("sampling", pd.Series("uniform", runs.index)).fillna("uniform")
    found = {}
    for mu in mus:
        uniform, by_size = (
            _arm(runs[drawn == how], f"FedProx, mu = {mu:g}", 0.0, metric).loc[round - LAST + 1 : round].mean()
            for how in ("uniform", "by_size")
        )
        found[f"mu = {mu:g}"] = (by_size - uniform).dropna()
    return _parts(found)


def against_best_mu(runs: pd.DataFrame, *, metric: str, best: float, others: Sequence[float]) -> pd.DataFrame:
    """Final value with each other mu minus that with the best one, without stragglers."""
    of = lambda mu: _final(runs, f"FedProx, mu = {mu:g}", 0.0, metric)  # noqa: E731
    return _parts({f"mu = {mu:g}": of(mu) - of(best) for mu in others})


def largest(runs: pd.DataFrame, *, metric: str, arms: Sequence[str], stragglers: float) -> pd.DataFrame:
    """Largest value of a metric over the rounds of a run, a part an arm."""
    return _parts({label: _arm(runs, label, stragglers, metric).max() for label in arms})


def gamma_by_epochs(table: pd.DataFrame) -> pd.DataFrame:
    """log of the ratio of mean gamma from one number of local epochs to the next; columns data, epochs, seed, gamma."""

    def steps(part: pd.DataFrame) -> pd.DataFrame:
        wide = np.log(part.groupby(["epochs", "seed"])["gamma"].mean().unstack("seed"))
        return _parts(
            {f"E = {a} to {b}": wide.loc[b] - wide.loc[a] for a, b in zip(wide.index, wide.index[1:], strict=False)}
        )

    return _by_set(table, steps)


def smallest_rho(table: pd.DataFrame) -> pd.DataFrame:
    """Smallest rho of Theorem 4 over the rounds looked at; columns data, round, seed, rho."""
    return _by_set(table, lambda part: _parts({"": part.groupby("seed")["rho"].min()}))


STATISTICS: dict[str, Callable[..., pd.DataFrame]] = {
    f.__name__: f
    for f in (
        final_difference, step_between_stragglers, roughness_ratio, roughness_ratio_by_set, rescued, gap_where_stopped,
        step_between_sets, rounds_ratio, mean_log_ratio, rank_correlation, gap_to_better, sampling_difference,
        against_best_mu, largest, gamma_by_epochs, smallest_rho,
    )
}  # fmt: skip
"""By name, as ``claims.yml`` has them. (``identity`` needs no records; it lives in ``claims``.)"""


def _share(fraction: float) -> str:
    return f"{fraction:.0%}".replace("%", " %")


def _final(runs: pd.DataFrame, label: str, fraction: float, metric: str) -> pd.Series:
    return _arm(runs, label, fraction, metric).tail(LAST).mean()


def _rough(runs: pd.DataFrame, label: str, fraction: float, metric: str) -> pd.Series:
    return _arm(runs, label, fraction, metric).diff().std()


def _diverges(loss: pd.DataFrame) -> pd.Series:
    return (loss.diff(WINDOW) > RISE).any() | loss.iloc[-1].isna()  # a run ends where a weight is not finite


def _stopped(runs: pd.DataFrame, label: str, fraction: float) -> pd.Series:
    """Test accuracy in the first round in which the rule stops the run, or in the last one."""
    loss, accuracy = (_arm(runs, label, fraction, metric) for metric in ("train_loss", "test_accuracy"))
    stop = (loss.diff().abs() < STANDSTILL) | (loss.diff(WINDOW) > RISE)
    at = stop.idxmax().where(stop.any(), loss.index[-1])
    return pd.Series({seed: accuracy.loc[at[seed], seed] for seed in accuracy.columns})


def _by_set(runs: pd.DataFrame, statistic: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    found = []
    for name in dict.fromkeys(runs["data"]):
        part = statistic(runs[runs["data"] == name])
        found.append(part.assign(part=(name + " " + part["part"]).str.strip()))
    return pd.concat(found, ignore_index=True)


def _parts(values: dict[str, pd.Series]) -> pd.DataFrame:
    rows = [(part, seed, float(value)) for part, series in values.items() for seed, value in series.items()]
    empty = [(part, np.nan, np.nan) for part, series in values.items() if series.empty]
    return pd.DataFrame(rows + empty, columns=["part", "replicate", "value"])
