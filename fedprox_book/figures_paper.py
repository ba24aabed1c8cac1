"""Tables to pictures for the paper's experiments: its curves with a band, its claims beside what they expect.

Which question this answers: *what would the paper's figure look like with ten runs a curve, and where does each claim's
interval lie?* Losses of single runs differ by orders of magnitude here, so a curve is a median and its band an interval
for the median. The look is that of :mod:`fedprox_book.figures`, whose ``show`` displays these, too.

Taught in the chapters from "Statistical heterogeneity" on. Room: matplotlib; computes nothing but medians and
intervals. May import figures, statistics.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from fedprox_book.figures import INK, STYLES
from fedprox_lib.sweeps import statistics

BAND = (
    "Lines are medians over replicates, bands intervals for the median: of ten runs the second lowest to the second "
    "highest (97.9 %), of five their range (93.8 %)."
)
"""What a band of :func:`curves` is, for captions."""

SIDES = {"inside": (INK[2], "o"), "open": ("0.35", "D"), "outside": (INK[3], "X")}
"""Colour and marker by where an interval lies; the words are those of :func:`fedprox_book.paper.claims.side`."""


def curves(
    panels: Mapping[str, pd.DataFrame], measures: Mapping[str, str], *, x: str = "round", log: Sequence[str] = ()
) -> Figure:
    """A column a title, a row a measure: median over replicates by round, and an interval for the median as a band.

    Args:
        panels: title -> table with columns arm, ``x`` and the measures; several rows an arm and ``x`` are replicates.
        measures: column -> label of its axis, with its unit. A row shares its axis.
        x: what the curves are drawn over.
        log: columns that get a logarithmic axis.
    """
    arms = list(dict.fromkeys(arm for table in panels.values() for arm in table["arm"]))
    fig, axes = plt.subplots(
        len(measures), len(panels), figsize=(2.6 * len(panels) + 0.8, 2.5 * len(measures) + 0.6),
        sharex="col", sharey="row", squeeze=False, layout="constrained",
    )  # fmt: skip
    for row, (y, ylabel) in zip(axes, measures.items(), strict=True):
        for ax, (title, table) in zip(row, panels.items(), strict=True):
            for (color, style, _), arm in zip(STYLES, arms, strict=False):
                _band(ax, table[table["arm"] == arm], x, y, color, style, arm)
            if ax in axes[0]:
                ax.set_title(title, fontsize="medium")
            if ax in axes[-1]:
                ax.set_xlabel("communication round" if x == "round" else x)
        if y in log:
            row[0].set_yscale("log")
        row[0].set_ylabel(ylabel)
        # A single diverging run must not squash the others: the medians decide the limits, with room around them.
        lines = np.concatenate([line.get_ydata() for ax in row for line in ax.get_lines()]).astype(float)
        low, high = np.nanmin(lines), np.nanmax(lines)
        row[0].set_ylim(
            (low / 1.3, high * 1.3) if y in log else (low - 0.08 * (high - low), high + 0.08 * (high - low))
        )
        if y in log:
            subs = (1, 2, 5) if high < 100 * low else (1,)
            row[0].yaxis.set_major_locator(LogLocator(subs=subs))
            row[0].yaxis.set_major_formatter("{x:g}")
            row[0].yaxis.set_minor_formatter(NullFormatter())
    found: dict = {}
    for ax in axes.flat:
        found |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(list(found.values()), list(found), loc="outside upper center", ncol=min(len(found), 4))
    return fig


def _band(ax: Axes, part: pd.DataFrame, x: str, y: str, color: Any, style: str, label: str) -> None:
    part = part.dropna(subset=[y])
    if part.empty:
        return
    found = pd.DataFrame({at: statistics.median_band(v) for at, v in part.groupby(x)[y]}, index=["mid", "low", "high"])
    ax.plot(found.columns, found.loc["mid"], style, color=color, linewidth=1.6, label=label)
    ax.fill_between(found.columns, found.loc["low"], found.loc["high"], color=color, alpha=0.18, linewidth=0)


def claim_panels(judged: Mapping[str, tuple[dict[str, Any], pd.DataFrame]], columns: int = 2) -> Figure:
    """A panel a claim: the interval of every part, and the shaded ground on which the claim expects it.

    Args:
        judged: title -> (what is expected, as in ``claims.yml``; parts, from
            :func:`fedprox_book.paper.claims.parts`). A part that has no interval has no marker.
        columns: panels side by side.
    """
    sizes = [max(1, len(parts)) for _, parts in judged.values()]
    heights = [0.32 * max(sizes[i : i + columns]) + 1 for i in range(0, len(sizes), columns)]
    fig, axes = plt.subplots(
        len(heights), columns, figsize=(4.4 * columns, sum(heights)), height_ratios=heights, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for ax in axes.flat[len(judged) :]:
        ax.set_axis_off()
    for ax, (title, (expected, parts)) in zip(axes.flat, judged.items(), strict=False):
        shown = parts.dropna(subset=["mean"]).reset_index(drop=True)
        ends = shown[["low", "high", "mean"]].to_numpy(float).ravel()
        ((kind, bound),) = expected.items()
        bounds = [float(b) for b in (bound if kind == "within" else [bound])]
        left, right = np.nanmin([*ends, *bounds]), np.nanmax([*ends, *bounds])
        room = 0.08 * (right - left) or 1.0
        left, right = left - room, right + room
        start, stop = bounds if kind == "within" else (bounds[0], right) if kind == "above" else (left, bounds[0])
        ax.axvspan(start, stop, color=INK[2], alpha=0.12, zorder=0)
        for edge in bounds:
            ax.axvline(edge, color="0.3", linewidth=1)
        for at, part in shown.iterrows():
            color, marker = SIDES[part["side"]]
            ax.plot([part["low"], part["high"]], [at, at], color=color, linewidth=1.8)
            ax.plot(part["mean"], at, marker, color=color, markersize=8 if marker == "X" else 6)
        ax.set(xlim=(left, right), ylim=(max(1, len(shown)) - 0.5, -0.5))
        ax.set_title(title, fontsize="small")
        ax.set_yticks(range(len(shown)), list(shown["part"]), fontsize="small")
        ax.tick_params(axis="x", labelsize="small")
        ax.grid(axis="y", visible=False)
    return fig
