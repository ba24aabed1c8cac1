"""Tables to pictures that set things side by side: slips and what was meant, settings, values of mu, work, and others.

Which question this answers: *what differs, where, and by how much?* What was not run has no marker; whoever calls says
so. The look is that of :mod:`fedprox_book.figures`, whose ``show`` displays these, too.

Taught in chapters "The baseline as published" to "Does it hold elsewhere?". Room: matplotlib; computes nothing but
means and intervals. May import figures, statistics.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from fedprox_book.figures import INK, STYLES
from fedprox_lib.sweeps import statistics


def before_after(panels: Mapping[str, pd.DataFrame]) -> Figure:
    """A panel a quantity, a row a slip: mean over replicates and Student's 95 % interval of each variant.

    The panels have axes and rows of their own. An interval is cut at the panel's border where few replicates make it
    wider than what is drawn; the points decide the limits.

    Args:
        panels: label of the axis, with its unit -> columns row, variant, value; a line a replicate.
    """
    heights = [table["row"].nunique() for table in panels.values()]
    fig, axes = plt.subplots(
        len(panels), 1, figsize=(7.6, 0.42 * sum(heights) + 1.2 * len(panels)), height_ratios=heights,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for ax, (label, table) in zip(axes[:, 0], panels.items(), strict=True):
        rows, variants = list(dict.fromkeys(table["row"])), list(dict.fromkeys(table["variant"]))
        for i, ((color, _, marker), variant) in enumerate(zip(STYLES[1::-1], variants, strict=False)):
            for y, row in enumerate(rows):
                part = table[(table["row"] == row) & (table["variant"] == variant)]
                mean, low, high = statistics.interval(list(part["value"]))
                at = y + 0.24 * (i - (len(variants) - 1) / 2)
                ax.plot([low, high], [at, at], color=color, linewidth=2)
                ax.plot(mean, at, marker, color=color, markersize=6, label=variant if y == 0 else None)
                ax.plot(part["value"], [at] * len(part), "|", color=color, markersize=7, alpha=0.5)
        low, high = table["value"].min(), table["value"].max()
        room = 0.08 * (high - low)
        ax.set(xlabel=label, ylim=(len(rows) - 0.5, -0.5), xlim=(low - room, high + room))
        ax.set_yticks(range(len(rows)), rows)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncol=len(labels))
    return fig


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


def across(gaps: pd.DataFrame, panel: str, row: str, hue: str, xlabel: str) -> Figure:
    """Differences with their intervals: a panel a value, rows from top to bottom, colour and marker by ``hue``.

    Panels have axes of their own; the line at 0 is "no difference". Rows without a value stay empty.

    Args:
        gaps: columns difference, low, high and the three named ones; panels and rows come in order of appearance.
        panel: column whose values get a panel each.
        row: column whose values get a row each.
        hue: column that tells the markers of a row apart, sorted.
        xlabel: what is subtracted, with its unit.
    """
    panels, rows, hues = list(dict.fromkeys(gaps[panel])), list(dict.fromkeys(gaps[row])), sorted(set(gaps[hue]))
    fig, axes = plt.subplots(
        1, len(panels), figsize=(3.4 * len(panels) + 2, 0.26 * len(rows) * len(hues) + 1.6), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for ax, title in zip(axes[0], panels, strict=True):
        for i, (color, _, marker) in zip(range(len(hues)), STYLES, strict=False):
            part = gaps[(gaps[panel] == title) & (gaps[hue] == hues[i])]
            at = [rows.index(r) + 0.7 * ((i + 0.5) / len(hues) - 0.5) for r in part[row]]
            error = [part["difference"] - part["low"], part["high"] - part["difference"]]
            ax.errorbar(part["difference"], at, xerr=error, color=color, marker=marker, ls="", capsize=3, label=hues[i])
        for edge in np.arange(len(rows) - 1) + 0.5:
            ax.axhline(edge, color="0.85", linewidth=1)
        ax.axvline(0, color="0.3", linewidth=1)
        ax.set(title=title, ylim=(len(rows) - 0.5, -0.5))
        ax.grid(axis="y", visible=False)
    axes[0][0].set_yticks(range(len(rows)), rows)
    fig.supxlabel(xlabel, fontsize="medium")
    handles, labels = max((ax.get_legend_handles_labels() for ax in axes[0]), key=lambda hl: len(hl[0]))
    fig.legend(handles, labels, loc="outside upper center", ncol=len(labels))
    return fig


def error_curves(
    panels: Mapping[str, pd.DataFrame], theirs: Mapping[str, Sequence[float]], target: float, who: str
) -> Figure:
    """Test error by round on a logarithmic axis, a thin line a run; others' rounds to the target as crosses.

    Args:
        panels: title -> table from :func:`fedprox_lib.sweeps.results.run`.
        theirs: title -> rounds in which others reached the target.
        target: accuracy in [0, 1]; the dashed horizontal line.
        who: the others, for the legend.
    """
    fig, axes = plt.subplots(
        1, len(panels), figsize=(3.2 * len(panels) + 1.2, 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for ax, (title, table) in zip(axes[0], panels.items(), strict=True):
        for _, run in table.groupby("record", sort=False):
            run = run[run["round"] > 0].sort_values("round")
            ax.plot(run["round"], 1 - run["test_accuracy"], color=INK[0], linewidth=0.9, alpha=0.8, label="ours, a run")
        ax.axhline(1 - target, color="0.3", linestyle="--", linewidth=1, label=f"{target:.0%} accuracy")
        ax.plot(theirs[title], [1 - target] * len(theirs[title]), "X", color=INK[3], markersize=9, ls="", label=who)
        ax.set(title=title, xlabel="communication round", yscale="log")
    low, high = axes[0][0].get_ylim()
    ticks = [tick for tick in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if low <= tick <= high]
    axes[0][0].set_yticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
    axes[0][0].set_yticks([], minor=True)
    axes[0][0].set_ylabel("test error")
    found: dict = {}
    for ax in axes[0]:
        found |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(list(found.values()), list(found), loc="outside upper center", ncol=len(found))
    return fig
