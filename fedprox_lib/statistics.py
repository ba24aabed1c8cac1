"""What may be concluded from a few replicates: Student's t intervals, always on paired differences.

A replicate r has seed r and data seed r, and all arms of a replicate share cohort, stragglers, batches and initial
weights, so arms are compared within replicates. A bootstrap would under-cover at 3 to 10 replicates; Student's t does
not, if the differences are roughly normal. Three replicates are indicative, not proof. Room: pandas. Imports nothing
of ours.
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


def final(table: pd.DataFrame, metric: str, last: int = 3) -> pd.DataFrame:
    """One row a run: the mean of a metric over its last measured rounds, so that one lucky round does not decide.

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
