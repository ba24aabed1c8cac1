"""Tables to pictures, for speed: how work is packed, how fast programs are, how cost grows.

The look is that of :mod:`fedprox_book.figures`, whose ``show`` displays these, too. Taught in "Fast enough to sweep".
Room: matplotlib; computes nothing but medians. May import figures.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from fedprox_book.figures import INK, STYLES


def packing(panels: Mapping[str, tuple[Sequence[tuple], Sequence[tuple]]], xlabel: str) -> Figure:
    """One panel a title: jobs as bars, coloured by chunk in turn, on grey for the places computed for nobody.

    Args:
        panels: title -> (bars, places): bars are (row, number of steps, number of the chunk), places are
            (first row, rows, first step, steps).
        xlabel: what a bar's length counts.
    """
    fig, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 4.4), layout="constrained")
    for ax, (title, (bars, places)) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for row, rows, begin, steps in places:
            ax.barh(row, steps, left=begin, height=rows, align="edge", color="0.8", linewidth=0)
        row, steps, chunk = (np.array(part) for part in zip(*bars, strict=True))
        edge = 1.0 if len(row) < 40 else 0.0  # thin bars would vanish behind their edges
        colors = [INK[c % 2] for c in chunk]
        ax.barh(row, steps, height=1, align="edge", color=colors, edgecolor="white", linewidth=edge)
        last = max(first + rows for first, rows, _, _ in places)
        ax.set(title=title, xlabel=xlabel, ylabel="place", ylim=(last, 0), xlim=(0, steps.max() * 1.02))
        ax.grid(axis="y", visible=False)
    return fig


def rates(panels: Mapping[str, pd.DataFrame], xlabel: str) -> Figure:
    """One panel a title: medians as markers on a logarithmic axis, the slowest and the fastest as whiskers.

    Markers and not bars, because the length of a bar means nothing on a logarithmic axis.

    Args:
        panels: title -> table with columns label, threads, low, middle, high; the first row is drawn at the top.
        xlabel: with the unit.
    """
    most = max(table["label"].nunique() for table in panels.values())
    fig, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 0.5 * most + 1.3), layout="constrained")
    for ax, (title, table) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        labels = list(dict.fromkeys(table["label"]))
        groups = list(table.groupby("threads"))
        for i, ((color, _, marker), (threads, part)) in enumerate(zip(STYLES, groups, strict=False)):
            at = [labels.index(label) + 0.3 * ((i + 0.5) / len(groups) - 0.5) * 2 for label in part["label"]]
            error = [part["middle"] - part["low"], part["high"] - part["middle"]]
            name = f"{threads} thread{'s' * (threads != 1)}"
            ax.errorbar(part["middle"], at, xerr=error, color=color, marker=marker, ls="", capsize=3, label=name)
        ax.set_yticks(range(len(labels)), labels)
        ax.set(title=title, xlabel=xlabel, xscale="log", ylim=(len(labels) - 0.4, -0.6))
        wide = table["high"].max() > 20 * table["low"].min()
        ax.set_xlim(table["low"].min() / 1.3, table["high"].max() * 1.3)
        ax.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    handles, names = np.atleast_1d(axes)[0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncol=len(names))
    return fig


def growth(panels: Mapping[str, pd.DataFrame], ylabel: str, band: float) -> Figure:
    """One panel a title: medians and extremes over a logarithmic axis, and a band around the panel's own median.

    Args:
        panels: label of the horizontal axis -> table with columns x, low, middle, high.
        ylabel: with the unit.
        band: half its width, as a fraction of the median.
    """
    fig, axes = plt.subplots(1, len(panels), figsize=(3.1 * len(panels), 3.2), layout="constrained")
    for ax, (color, style, marker), (xlabel, table) in zip(np.atleast_1d(axes), STYLES, panels.items(), strict=False):
        error = [table["middle"] - table["low"], table["high"] - table["middle"]]
        ax.errorbar(table["x"], table["middle"], error, color=color, ls=style, marker=marker, markersize=5, capsize=3)
        middle = table["middle"].median()
        ax.axhspan(middle * (1 - band), middle * (1 + band), color="0.5", alpha=0.2, linewidth=0)
        ax.yaxis.set_major_formatter("{x:,.0f}")
        ax.set(xscale="log", xlabel=xlabel, ylim=(0, 1.1 * max(table["high"].max(), middle * (1 + band))))
    np.atleast_1d(axes)[0].set_ylabel(ylabel)
    return fig
