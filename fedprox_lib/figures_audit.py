"""The figure of the audit: each slip beside what was meant, with intervals.

Room: matplotlib; computes nothing but means and intervals. Taught in "The baseline as published". May import figures
(colours, markers) and statistics.
"""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from fedprox_lib import statistics
from fedprox_lib.figures import STYLES


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
