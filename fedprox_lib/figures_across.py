"""Tables to pictures that set several settings side by side: one comparison everywhere, our curves by others' numbers.

Which question this answers: *does a finding hold in another setting, and do our curves arrive where others' did?* What
was not run has no marker; whoever calls says so. The look is that of :mod:`fedprox_lib.figures`, whose ``show``
displays these, too.

Taught in "Against McMahan's table" and "Does it hold elsewhere?". Room: matplotlib; computes nothing but means.
May import figures.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fedprox_lib.figures import INK, STYLES


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
        panels: title -> table from :func:`fedprox_lib.results.run`.
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
