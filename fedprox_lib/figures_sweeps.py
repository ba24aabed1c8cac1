"""Tables to pictures, for sweeps: what a number of the algorithm changes, and what a local step buys.

The look is that of :mod:`fedprox_lib.figures`, whose ``show`` displays these, too. Taught in "The experiment the blog
meant". Room: matplotlib; computes nothing but means and intervals. May import figures, statistics.
"""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from fedprox_lib import statistics
from fedprox_lib.figures import STYLES


def over_number(panels: Mapping[str, pd.DataFrame], x: str, xlabel: str, ylabel: str) -> Figure:
    """Paired differences over a number of the algorithm, a panel a title: one dot a replicate, mean and interval.

    The horizontal axis is logarithmic, the line at 0 is "no difference".

    Args:
        panels: title -> table with columns ``x`` (> 0) and difference, one row a replicate and value of ``x``.
        x: the number, for example mu.
        xlabel: what it is.
        ylabel: what is subtracted, with its unit.
    """
    fig, axes = plt.subplots(
        1, len(panels), figsize=(2.9 * len(panels) + 0.6, 3.3), sharey=True, squeeze=False, layout="constrained"
    )
    values = sorted({value for table in panels.values() for value in table[x]})
    for ax, (color, _, marker), (title, table) in zip(axes[0], STYLES, panels.items(), strict=False):
        ax.axhline(0, color="0.3", linewidth=1)
        # Replicates stand beside their mean, not under it.
        ax.plot(table[x] * 1.25, table["difference"], ".", color="0.4", markersize=6)
        found = {at: statistics.interval(list(part)) for at, part in table.groupby(x)["difference"]}
        mean, low, high = (pd.Series({at: each[i] for at, each in found.items()}) for i in range(3))
        ax.errorbar(mean.index, mean, [mean - low, high - mean], color=color, marker=marker, ls="-", lw=1, capsize=4)
        ax.set(xscale="log", xlabel=xlabel, title=title, xlim=(values[0] / 2, values[-1] * 2))
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.minorticks_off()
    axes[0][0].set_ylabel(ylabel)
    return fig


def over_work(panels: Mapping[str, pd.DataFrame], y: str, xlabel: str, ylabel: str) -> Figure:
    """Errors over the work that was used instead of rounds, a panel a title.

    Both axes are logarithmic: arms may differ in their work by an order of magnitude, and small errors must be told
    apart. So round 0 is left out, means are geometric, and bands are Student's 95 % intervals of the logarithm.
    Replicates differ a little in their work, so a point stands at the mean work of its round.

    Args:
        panels: title -> table with columns arm, round, work and ``y``.
        y: a column of positive values of which less is better.
        xlabel: the unit of work.
        ylabel: with its unit.
    """
    fig, axes = plt.subplots(
        1, len(panels), figsize=(2.9 * len(panels) + 0.6, 3.3), sharey=True, squeeze=False, layout="constrained"
    )
    shown = [float(each) for table in panels.values() for each in table[y]]
    for ax, (title, table) in zip(axes[0], panels.items(), strict=True):
        arms = table[table["work"] > 0].groupby("arm", sort=False)
        for (color, style, marker), (arm, part) in zip(STYLES, arms, strict=False):
            work = part.groupby("round")["work"].mean()
            found = {t: np.exp(statistics.interval(list(np.log(each)))) for t, each in part.groupby("round")[y]}
            mean, low, high = (np.array([found[t][i] for t in work.index]) for i in range(3))
            ax.plot(work, mean, style, color=color, marker=marker, markersize=4, label=str(arm))
            ax.fill_between(work, low, high, color=color, alpha=0.15, linewidth=0)
        ax.set(xlabel=xlabel, xscale="log", yscale="log", ylim=(min(shown) * 0.8, max(shown) * 1.2))
        ax.set_title(title, fontsize="medium")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
    axes[0][0].set_ylabel(ylabel)
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncol=len(labels))
    return fig
