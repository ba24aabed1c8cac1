"""What may be concluded from a few replicates: Student's t intervals, always on paired differences.

A replicate r has seed r and data seed r, and all arms of a replicate share cohort, stragglers, batches and initial
weights, so arms are compared within replicates. A bootstrap would under-cover at 3 to 10 replicates; Student's t does
not, if the differences are roughly normal. Three replicates are indicative, not proof.
Layer: sweeps (pandas).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats


def interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) of Student's t interval for the mean; low and high are NaN for fewer than two values.

    Example:
        >>> [round(v, 2) for v in interval([1.0, 2.0, 3.0])]
        [2.0, -0.48, 4.48]
    """
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        return float(x.mean()), float("nan"), float("nan")
    half = stats.t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean()), float(x.mean() - half), float(x.mean() + half)


def proportion(successes: int, trials: int, level: float = 0.95) -> tuple[float, float, float]:
    """(share, low, high) of the exact interval of Clopper and Pearson.

    Example:
        >>> [round(v, 2) for v in proportion(10, 10)]
        [1.0, 0.69, 1.0]
    """
    exact = stats.binomtest(successes, trials).proportion_ci(level, method="exact")
    return successes / trials, float(exact.low), float(exact.high)


def median_band(values: Sequence[float] | np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """(median, low, high): a distribution-free interval for the median, between two of the values themselves.

    The lowest and the highest values are left out in equal number as long as the interval still covers the median
    with at least ``level``: of ten values one on either side (97.9 %). With fewer than six values even all of them do
    not reach 95 %, and their range is returned (93.8 % with five). For values whose mean a single run could make.

    Example:
        >>> median_band([1, 2, 3, 4, 5, 6, 7, 8, 9, 1000])
        (5.5, 2.0, 9.0)
    """
    x = np.sort(np.asarray(values, dtype=float))
    out = max(0, int(stats.binom.ppf((1 - level) / 2, len(x), 0.5)) - 1)
    return float(np.median(x)), float(x[out]), float(x[-1 - out])


def final(table: pd.DataFrame, metric: str, last: int = 3) -> pd.DataFrame:
    """One row per run: the mean of a metric over its last measured rounds, so that one lucky round does not decide.

    Args:
        table: from ``results.run``.
        metric: a measured column.
        last: how many measured rounds to average.
    """
    chosen = table.sort_values("round").groupby("record", sort=False).tail(last)
    keep = [name for name in ("arm", "partition", "straggler_fraction", "seed") if name in table]
    return chosen.groupby(["record", *keep], sort=False, as_index=False)[metric].mean()


def paired(finals: pd.DataFrame, metric: str, arm: str, baseline: str, level: float = 0.95) -> pd.DataFrame:
    """Difference arm - baseline, paired by replicate, one row a straggler fraction.

    Args:
        finals: from :func:`final`.
        metric: the column that was averaged.
        arm: label of the one.
        baseline: label of the other.
        level: of the interval.

    Returns:
        Columns straggler_fraction, replicates, difference, low, high.
    """
    wide = finals.pivot_table(index=["straggler_fraction", "seed"], columns="arm", values=metric)
    gap = (wide[arm] - wide[baseline]).dropna()
    rows = []
    for fraction, values in gap.groupby(level="straggler_fraction"):
        mean, low, high = interval(list(values), level)
        rows.append(
            {"straggler_fraction": fraction, "replicates": len(values), "difference": mean, "low": low, "high": high}
        )
    return pd.DataFrame(rows)


def rounds_to(table: pd.DataFrame, target: float, metric: str = "test_accuracy") -> pd.DataFrame:
    """In which round each run first reaches a target, by the rule of McMahan et al. 2017, section 3.

    The curve is made monotone (best value so far) and read off by linear interpolation between measured rounds. A run
    that ends below the target is censored: all we know is that it needs more rounds than it had.

    Args:
        table: from ``results.run``.
        target: of the metric, in its unit.
        metric: a measured column of which more is better.

    Returns:
        One row per run: record, arm, what else tells runs apart, rounds (NaN if the target was not reached) and ran
        (the last measured round).

    Example:
        >>> run = pd.DataFrame({"record": "a", "round": [0, 2, 4, 6], "test_accuracy": [0, 0.8, 0.6, 1]})
        >>> float(rounds_to(run, 0.9)["rounds"].iloc[0])
        5.0
    """
    keep = [
        name for name in ("arm", "partition", "straggler_fraction", "epochs", "lr", "data", "seed") if name in table
    ]
    rows = []
    for record, run in table.groupby("record", sort=False):
        run = run.sort_values("round")
        at, best = run["round"].to_numpy(float), run[metric].cummax().to_numpy()
        reached = np.flatnonzero(best >= target)
        rounds = float("nan")
        if len(reached):
            i = reached[0]
            # np.interp on the last step below the target and the first at or above it; round 0 has none below it.
            rounds = at[0] if i == 0 else float(np.interp(target, best[i - 1 : i + 1], at[i - 1 : i + 1]))
        rows.append({"record": record, **{name: run[name].iloc[0] for name in keep}, "rounds": rounds, "ran": at[-1]})
    return pd.DataFrame(rows)
