"""Pictures of a sweep: learning curves with a band, and paired differences with their intervals.

Its functions draw tables of :func:`fedprox_lib.sweeps.results.run` and :func:`fedprox_lib.sweeps.statistics.paired`
and return matplotlib figures, which can be changed further. Colour, line and marker tell the arms of a figure apart, by
order of appearance; the rest of the look is matplotlib's, which nothing here changes.
Layer: sweeps (pandas, matplotlib, seaborn); computes nothing but means, medians and intervals.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from fedprox_lib.sweeps import statistics

INK = sns.color_palette("colorblind")
_LINES = [("-", "o"), ("--", "s"), ("-.", "D"), (":", "^"), ("-", "v")]
STYLES = [{"color": ink, "linestyle": line, "marker": marker} for ink, (line, marker) in zip(INK, _LINES, strict=False)]
"""Colour, line and marker by position of the arm. They tell arms apart without colour, too."""


def learning_curves(
    tables: pd.DataFrame | Mapping[str, pd.DataFrame],
    measures: Mapping[str, str],
    centre: Literal["mean", "median"] = "mean",
    *,
    x: str = "round",
    log: Collection[str] = (),
) -> Figure:
    """One line per arm with a band over its replicates; panels by table, from left to right, and by measure, downwards.

    Args:
        tables: from :func:`fedprox_lib.sweeps.results.run`, of which each straggler fraction gets a panel; or
            title -> table with columns arm, ``x`` and the measures. Rows that share arm and ``x`` are replicates.
        measures: column -> label of its axis, with its unit. Panels of one measure share that axis.
        centre: "mean", with Student's 95 % interval as the band; for a measure in ``log`` both are taken of the
            logarithm, so the mean is geometric. Or "median", with the interval of
            :func:`fedprox_lib.sweeps.statistics.median_band`, for values whose mean a single run could make.
        x: column that the curves are drawn over.
        log: measures with a logarithmic axis, such as losses.

    Raises:
        ValueError: for more arms than there are styles.
    """
    parts, mean = [tables] if isinstance(tables, pd.DataFrame) else list(tables.values()), centre == "mean"
    styles = arm_styles(arm for part in parts for arm in part["arm"])
    if isinstance(tables, pd.DataFrame):
        tables = {f"{share:.0%} stragglers": part for share, part in tables.groupby("straggler_fraction")}
    n, m = len(tables), len(measures)
    size = (2.8 * n + 0.6, 3 * m + 0.3) if mean else (2.6 * n + 0.8, 2.5 * m + 0.6)
    fig, axes = panel_grid(*size, rows=m, columns=n, sharex="col", sharey="row")
    # Means stand at few measured rounds, each with its marker; medians are measured too often for that.
    look = {"markersize": 4} if mean else {"marker": "", "linewidth": 1.6, "opacity": 0.18}
    for row, (y, label) in zip(axes, measures.items(), strict=True):
        spread = {"mean": geometric_interval if y in log else statistics.interval, "median": statistics.median_band}
        for ax, table in zip(row, tables.values(), strict=True):
            for arm, style in styles.items():
                groups = table[table["arm"] == arm].dropna(subset=[y]).groupby(x)[y]
                draw_band(ax, groups, spread[centre], label=arm, **style | look)
        # What was measured, or its medians, sets the limits: neither the wide bands of a few replicates nor a single
        # run that diverges may squash the curves.
        shown = np.concatenate([p[y] for p in parts] if mean else [a.get_ydata() for ax in row for a in ax.lines])
        low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
        row[0].set(ylabel=label, yscale="log" if y in log else "linear", ylim=_limits(low, high, mean, y in log))
        if y in log:
            log_ticks(row[0].yaxis, (1, 2, 5) if high < 100 * low else (1,))
    for ax, title in zip(axes[0], tables, strict=True):
        ax.set_title(title)
    plt.setp(axes[-1], xlabel="communication round" if x == "round" else x)
    shared_legend(fig)
    return fig


def _limits(low: float, high: float, mean: bool, log: bool) -> tuple[float, float]:
    if log:
        return (low * 0.8, high * 1.2) if mean else (low / 1.3, high * 1.3)
    if mean:  # from 0 on; a panel of accuracies ends at 1
        return min(0, low * 1.05), 1 if 0.9 < high <= 1 else high * 1.05
    return low - 0.08 * (high - low), high + 0.08 * (high - low)


def paired_differences(gaps: Mapping[str, pd.DataFrame], xlabel: str) -> Figure:
    """Paired differences with their 95 % intervals, one panel per comparison; the line at 0 is "no difference".

    The panels have axes of their own: what is compared may differ by orders of magnitude.

    Args:
        gaps: comparison -> table from :func:`fedprox_lib.sweeps.statistics.paired`.
        xlabel: what is subtracted, with its unit.
    """
    fig, (axes,) = panel_grid(4 * len(gaps), 0.55 * max(map(len, gaps.values())) + 1.4, columns=len(gaps))
    for ax, (comparison, style) in zip(axes, arm_styles(gaps).items(), strict=True):
        gap = gaps[comparison]
        error = [gap["difference"] - gap["low"], gap["high"] - gap["difference"]]
        ax.errorbar(gap["difference"], range(len(gap)), xerr=error, capsize=4, **style | {"linestyle": ""})
        ax.axvline(0, color="0.3", linewidth=1)
        ax.set_yticks(range(len(gap)), [f"{fraction:.0%} stragglers" for fraction in gap["straggler_fraction"]])
        ax.set(title=comparison, ylim=(len(gap) - 0.5, -0.5))
    fig.supxlabel(xlabel, fontsize="medium")
    return fig


def arm_styles(arms: Iterable[Any]) -> dict[Any, dict[str, Any]]:
    """Arm -> its style, by order of appearance.

    Raises:
        ValueError: for more arms than there are styles.
    """
    names = list(dict.fromkeys(arms))
    if len(names) > len(STYLES):
        raise ValueError(
            f"a figure can tell at most {len(STYLES)} arms apart, got {len(names)}: draw fewer of {names}."
        )
    return dict(zip(names, STYLES, strict=False))


def geometric_interval(values: Any) -> tuple[float, float, float]:
    """(geometric mean, low, high) of positive values: Student's 95 % interval of their logarithms, transformed back.

    Example:
        >>> [round(v, 2) for v in geometric_interval([1, 2, 4])]
        [2.0, 0.36, 11.19]
    """
    return tuple(np.exp(statistics.interval(np.log(values))).tolist())


def panel_grid(width: float, height: float, *, rows: int = 1, columns: int = 1, **more: Any) -> tuple[Figure, Any]:
    """(figure, (rows, columns) axes) of a size in inches; ``more`` is for ``plt.subplots``."""
    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **more)


def draw_band(ax: Any, groups: Iterable[tuple], spread: Callable, opacity: float = 0.15, **look: Any) -> None:
    """A line with a band: ``spread`` makes (centre, low, high) of the values of every (x, values) of the groups."""
    band = pd.DataFrame({at: spread(values) for at, values in groups}, index=["centre", "low", "high"]).T
    if len(band):
        ax.plot(band["centre"], **look)
        ax.fill_between(band.index, band["low"], band["high"], color=look["color"], alpha=opacity, linewidth=0)


def log_ticks(axis: Any, digits: tuple[int, ...], pattern: str = "{x:g}") -> None:
    """Ticks of a logarithmic axis at ``digits`` of every power of ten, written out, and no smaller ones."""
    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter(pattern)
    axis.set_minor_formatter(NullFormatter())


def shared_legend(fig: Figure) -> None:
    """One legend above the panels, in at most four columns, with what any of them shows."""
    found: dict[str, Any] = {}
    for ax in fig.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    fig.legend(list(found.values()), list(found), loc="outside upper center", ncol=min(len(found), 4))
