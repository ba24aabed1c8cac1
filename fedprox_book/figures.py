"""The book's figures: one function per kind of figure, each making a matplotlib figure from tables, and :func:`show`.

``show`` refuses a figure without alt text and caption, and hands both to the book with the picture. Learning curves
and paired differences are in :mod:`fedprox_lib.sweeps.plots`, with the styles. Importing this module gives every
figure the book's look. Sections: how figures are shown; clients and their data; one client; arms set side by side; the
paper's claims; speed.
Layer: book (pandas, matplotlib, seaborn); computes nothing but means, medians and intervals.
"""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from fedprox_lib.sweeps import plots, statistics
from fedprox_lib.sweeps.plots import INK, arm_styles, panel_grid, shared_legend

THEME: dict[str, Any] = {
    "context": "notebook",
    "style": "whitegrid",
    "palette": INK,
    "rc": {"figure.dpi": 100, "savefig.dpi": 160, "legend.frameon": False, "svg.hashsalt": "fedprox"},
}
"""The book's look, for ``seaborn.set_theme``."""
sns.set_theme(**THEME)

BAND = (
    "Lines are medians over replicates, bands intervals for the median: of ten runs the second lowest to the second "
    "highest (97.9 %), of five their range (93.8 %)."
)
"""What the band of a median is in :func:`fedprox_lib.sweeps.plots.learning_curves`, for captions."""

SIDES = {"inside": (INK[2], "o"), "open": ("0.35", "D"), "outside": (INK[3], "X")}
"""Colour and marker by where an interval lies; the words are those of :func:`fedprox_book.paper.claims.side`."""


# How figures are shown, and what several kinds of them share


def show(fig: Figure, *, name: str, alt: str, caption: str, width: str = "100%") -> None:
    """Display a figure with its alt text (the finding, for readers who cannot see it) and caption (what is drawn).

    Args:
        fig: from one of the functions below; it is closed.
        name: cross-reference label, ``fig-...``.
        alt: a sentence that says what the picture shows.
        caption: what is plotted, from how many replicates, and what a band is.
        width: of the picture in the page.

    Raises:
        ValueError: for fewer than five words of alt text or caption, or another kind of name.
    """
    from IPython.display import display

    if len(alt.split()) < 5 or len(caption.split()) < 5:
        raise ValueError(f"figure {name!r} needs an alt text and a caption of at least five words each.")
    if not name.startswith("fig-"):
        raise ValueError(f"figure names start with 'fig-', got {name!r}.")
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", bbox_inches="tight", facecolor="white", metadata={"Software": None})
    plt.close(fig)
    about = {"name": name, "alt": " ".join(alt.split()), "caption": " ".join(caption.split()), "width": width}
    picture = {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": f"{alt} ({caption})"}
    display(picture, raw=True, metadata={"fedprox": about})


def _styled(table: pd.DataFrame, hue: str) -> Iterator[tuple[Any, pd.DataFrame, dict[str, Any]]]:
    """(value, its rows, its style) for every value of a column, by order of appearance."""
    for value, style in arm_styles(table[hue]).items():
        yield value, table[table[hue] == value], style


def _beside(i: int, n: int, room: float) -> float:
    """How far to shift the i-th of n markers, so that together they fill ``room`` around their place."""
    return room * ((i + 0.5) / n - 0.5)


def _intervals(ax: Any, table: pd.DataFrame, at: Any, middle: str = "difference", **look: Any) -> None:
    """Horizontal intervals from low to high, with a marker at ``middle``, at the heights ``at``."""
    error = [table[middle] - table["low"], table["high"] - table[middle]]
    ax.errorbar(table[middle], at, xerr=error, **look | {"linestyle": ""})


def _rows(ax: Any, labels: Sequence[str], **look: Any) -> None:
    """Labelled places on the vertical axis, the first one at the top."""
    ax.set_yticks(range(len(labels)), labels, **look)
    ax.set_ylim(len(labels) - 0.5, -0.5)


# Clients and their data


def label_heatmaps(counts: Mapping[str, np.ndarray], clients: int = 30) -> Figure:
    """One panel per partition: clients down, labels across, shade by the share of the client's rows.

    Args:
        counts: title -> (N, 10) rows by client and label.
        clients: how many clients to draw.
    """
    fig, (axes,) = panel_grid(2.9 * len(counts), 5, columns=len(counts), sharey=True)
    for ax, (title, table) in zip(axes, counts.items(), strict=True):
        share = table[:clients] / table[:clients].sum(1, keepdims=True)
        sns.heatmap(share, ax=ax, cmap="rocket_r", vmin=0, vmax=1, cbar=False, linewidths=0.3)
        ax.set(title=title, xlabel="digit")
        ax.tick_params(axis="y", rotation=0)
    axes[0].set_ylabel("client")
    shades = matplotlib.cm.ScalarMappable(cmap="rocket_r", norm=matplotlib.colors.Normalize(0, 1))
    fig.colorbar(shades, ax=axes, label="share of the client's rows", shrink=0.7)
    return fig


def size_histograms(sizes: Mapping[str, np.ndarray]) -> Figure:
    """One panel per partition: how many rows the clients hold (logarithmic axis)."""
    fig, (axes,) = panel_grid(2.9 * len(sizes), 2.8, columns=len(sizes))
    top = max(int(np.max(s)) for s in sizes.values())
    bins = np.unique(np.geomspace(1, top + 1, 24).round())
    for ax, (title, held) in zip(axes, sizes.items(), strict=True):
        sns.histplot(x=held, bins=bins, ax=ax, color=INK[0])
        ax.set(xscale="log", title=title, xlabel="rows held", ylabel="")
    axes[0].set_ylabel("clients")
    return fig


def digit_rows(images: Mapping[str, np.ndarray]) -> Figure:
    """One strip of digits per client: title -> (n, 28, 28)."""
    width = max(len(strip) for strip in images.values())
    fig, axes = panel_grid(0.62 * width + 1, 0.75 * len(images), rows=len(images), columns=width)
    for row, (title, strip) in zip(axes, images.items(), strict=True):
        for ax in row:
            ax.axis("off")
        for ax, image in zip(row, strip, strict=False):  # a strip may be shorter than the longest
            ax.imshow(image, cmap="gray_r")
        row[0].text(-0.3, 0.5, title, transform=row[0].transAxes, ha="right", va="center")
    return fig


# One client


def digit_bars(table: pd.DataFrame, hue: str) -> Figure:
    """Accuracy by digit, bars side by side.

    Args:
        table: columns digit, accuracy in [0, 1], and ``hue``.
        hue: column that tells the bars apart.
    """
    fig, ((ax,),) = panel_grid(8, 3.2)
    sns.barplot(table, x="digit", y="accuracy", hue=hue, ax=ax, errorbar=None)
    ax.set(ylim=(0, 1), ylabel="test accuracy")
    sns.move_legend(ax, "lower center", bbox_to_anchor=(0.5, 1), ncol=4, title=None)
    return fig


def lines(table: pd.DataFrame, x: str, y: str, hue: str, xlabel: str, ylabel: str, log_y: bool = False) -> Figure:
    """Plain lines, one per value of ``hue``; for paths of a single client."""
    fig, ((ax,),) = panel_grid(7, 3.6)
    for value, part, style in _styled(table, hue):
        ax.plot(part[x], part[y], markevery=max(1, len(part) // 10), markersize=5, label=str(value), **style)
    ax.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log_y else "linear")
    ax.legend(title=None)
    return fig


def bands(table: pd.DataFrame, x: str, y: str, hue: str, xlabel: str, ylabel: str) -> Figure:
    """Mean by x, one line per value of ``hue``, and Student's 95 % interval over whatever shares both as a band."""
    fig, ((ax,),) = panel_grid(7, 3.8)
    for value, part, style in _styled(table, hue):
        groups = part.groupby(x)[y]
        every = max(1, len(groups) // 10)
        plots.draw_band(ax, groups, statistics.interval, markevery=every, markersize=5, label=str(value), **style)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    shared_legend(fig)
    return fig


def dots(table: pd.DataFrame, x: str, y: str, hue: str, xlabel: str, ylabel: str) -> Figure:
    """Small dots for all values, a large hollow marker for their geometric mean, side by side at each x."""
    places, series = list(dict.fromkeys(table[x])), list(_styled(table, hue))
    fig, ((ax,),) = panel_grid(7.5, 3.8)
    for i, (value, part, style) in enumerate(series):
        style, shift = style | {"linestyle": ""}, _beside(i, len(series), 0.7)
        ax.plot([places.index(v) + shift for v in part[x]], part[y], ".", color=style["color"], markersize=5)
        means = np.exp(np.log(part[y]).groupby(part[x], sort=False).mean())
        at = [places.index(v) + shift for v in means.index]
        ax.plot(at, means, markersize=10, fillstyle="none", markeredgewidth=1.8, label=str(value), **style)
    ax.set(xlabel=xlabel, ylabel=ylabel, yscale="log")
    ax.set_xticks(range(len(places)), places)
    if max(len(str(v)) for v in places) > 6:
        plt.setp(ax.get_xticklabels(), rotation=20, ha="right")
    ax.grid(axis="x", visible=False)
    shared_legend(fig)
    return fig


def scatter(table: pd.DataFrame, x: str, y: str, hue: str, xlabel: str, ylabel: str) -> Figure:
    """Points on two logarithmic axes, one colour and marker per value of ``hue``."""
    fig, ((ax,),) = panel_grid(7, 3.8)
    for value, part, style in _styled(table, hue):
        ax.plot(part[x], part[y], markersize=4, alpha=0.6, label=str(value), **style | {"linestyle": ""})
    ax.set(xlabel=xlabel, ylabel=ylabel, xscale="log", yscale="log")
    ax.legend(title=None)
    return fig


def plane_paths(
    paths: Mapping[str, np.ndarray],
    height: Callable[..., np.ndarray],
    start: np.ndarray,
    optimum: np.ndarray,
    extent: tuple[float, ...],
) -> Figure:
    """Paths of gradient descent over the contours of a function of two variables.

    Args:
        paths: label -> (steps + 1, 2) points.
        height: function of two arrays, the objective without the proximal term.
        start: w_t.
        optimum: the minimum of the objective.
        extent: (left, right, bottom, top).
    """
    fig, ((ax,),) = panel_grid(7, 4.6)
    left, right, bottom, top = extent
    grid = np.meshgrid(np.linspace(left, right, 200), np.linspace(bottom, top, 200))
    ax.contour(*grid, height(*grid), levels=14, colors="0.8", linewidths=0.8)
    for label, style in arm_styles(paths).items():
        ax.plot(*np.asarray(paths[label]).T, markersize=4, label=label, **style)
    for point, marker, size, text in [(start, "*", 14, "$w_t$"), (optimum, "X", 9, "minimum of $F_k$")]:
        ax.plot(*point, f"k{marker}", markersize=size)
        ax.annotate(text, point, xytext=(8, 8), textcoords="offset points")
    ax.set(xlabel="$w_1$", ylabel="$w_2$")
    ax.legend(loc="best")
    return fig


# Arms, settings and others set side by side; what was not run has no marker, and whoever calls says so


def agreement(table: pd.DataFrame, y: str, ylabel: str, reference: str) -> Figure:
    """Two panels: a recorded curve with ours over it, and how far ours are from it, relatively, on a logarithmic axis.

    Args:
        table: columns source, round and ``y``; one line per source.
        y: a measured column.
        ylabel: with its unit.
        reference: the source that the others are compared with; hollow circles.
    """
    fig, ((left, right),) = panel_grid(8.5, 3.4, columns=2)
    wide = table.pivot(index="round", columns="source", values=y)
    for source, style in arm_styles(source for source in table["source"] if source != reference).items():
        left.plot(wide[source], label=source, **style | {"marker": ""})
        right.plot((wide[source] - wide[reference]).abs() / wide[reference], markersize=5, **style)
    left.plot(wide[reference], "o", color="0.2", fillstyle="none", markersize=9, label=reference)
    left.set(xlabel="communication round", ylabel=ylabel)
    right.set(xlabel="communication round", ylabel="relative difference", yscale="log")
    shared_legend(fig)
    return fig


def forest(gaps: pd.DataFrame, singles: pd.DataFrame, margin: float, xlabel: str) -> Figure:
    """Paired differences of several comparisons, with intervals, one panel per data set; the margin is a grey band.

    Args:
        gaps: columns data, comparison, difference, low, high.
        singles: columns data, comparison, difference; one small stroke per replicate, below the mean.
        margin: differences within it do not matter.
        xlabel: what is subtracted, with its unit.
    """
    names, panels = list(dict.fromkeys(gaps["comparison"])), list(_styled(gaps, "data"))
    size = 3.1 * len(panels) + 3.2, 0.5 * len(names) + 1.3
    fig, (axes,) = panel_grid(*size, columns=len(panels), sharey=True)
    for ax, (title, gap, style) in zip(axes, panels, strict=True):
        single = singles[singles["data"] == title]
        ax.axvspan(-margin, margin, color="0.9", zorder=0)
        ax.axvline(0, color="0.3", linewidth=1)
        strokes = [names.index(name) + 0.28 for name in single["comparison"]]
        ax.plot(single["difference"], strokes, "|", color="0.4", markersize=7)
        _intervals(ax, gap.set_index("comparison").loc[names], range(len(names)), capsize=4, **style)
        ax.set_title(title)
    _rows(axes[0], names)
    fig.supxlabel(xlabel, fontsize="medium")
    return fig


def across(gaps: pd.DataFrame, panel: str, row: str, hue: str, xlabel: str) -> Figure:
    """Differences with their intervals: one panel per value, rows from top to bottom, colour and marker by ``hue``.

    Panels have axes of their own; the line at 0 is "no difference". Rows without a value stay empty.

    Args:
        gaps: columns difference, low, high and the three named ones; panels and rows come in order of appearance.
        panel: column whose values get a panel each.
        row: column whose values get a row each.
        hue: column that tells the markers of a row apart, sorted.
        xlabel: what is subtracted, with its unit.
    """
    panels, rows, hues = list(dict.fromkeys(gaps[panel])), list(dict.fromkeys(gaps[row])), sorted(set(gaps[hue]))
    size = 3.4 * len(panels) + 2, 0.26 * len(rows) * len(hues) + 1.6
    fig, (axes,) = panel_grid(*size, columns=len(panels), sharey=True)
    for ax, title in zip(axes, panels, strict=True):
        for i, (value, style) in enumerate(arm_styles(hues).items()):
            part = gaps[(gaps[panel] == title) & (gaps[hue] == value)]
            at = [rows.index(name) + _beside(i, len(hues), 0.7) for name in part[row]]
            _intervals(ax, part, at, capsize=3, label=value, **style)
        for edge in np.arange(len(rows) - 1) + 0.5:
            ax.axhline(edge, color="0.85", linewidth=1)
        ax.axvline(0, color="0.3", linewidth=1)
        ax.set_title(title)
        ax.grid(axis="y", visible=False)
    _rows(axes[0], rows)
    fig.supxlabel(xlabel, fontsize="medium")
    shared_legend(fig)
    return fig


def before_after(panels: Mapping[str, pd.DataFrame]) -> Figure:
    """One panel per quantity, one row per slip: mean over replicates and Student's 95 % interval of each variant.

    The panels have axes and rows of their own. An interval is cut at the panel's border where few replicates make it
    wider than what is drawn; the points decide the limits.

    Args:
        panels: label of the axis, with its unit -> columns row, variant (at most two), value; one line per replicate.
    """
    heights = [table["row"].nunique() for table in panels.values()]
    size = 7.6, 0.42 * sum(heights) + 1.2 * len(panels)
    fig, axes = panel_grid(*size, rows=len(panels), height_ratios=heights)
    for ax, (label, table) in zip(axes[:, 0], panels.items(), strict=True):
        rows, variants = list(dict.fromkeys(table["row"])), list(dict.fromkeys(table["variant"]))
        for i, (style, variant) in enumerate(zip(plots.STYLES[1::-1], variants, strict=False)):
            for y, row in enumerate(rows):
                part = table[(table["row"] == row) & (table["variant"] == variant)]
                mean, low, high = statistics.interval(list(part["value"]))
                at = y + 0.24 * (i - (len(variants) - 1) / 2)
                color = style["color"]
                ax.plot([low, high], [at, at], color=color, linewidth=2)
                ax.plot(mean, at, style["marker"], color=color, markersize=6, label=variant if y == 0 else None)
                ax.plot(part["value"], [at] * len(part), "|", color=color, markersize=7, alpha=0.5)
        low, high = table["value"].min(), table["value"].max()
        room = 0.08 * (high - low)
        ax.set(xlabel=label, xlim=(low - room, high + room))
        _rows(ax, rows)
    shared_legend(fig)
    return fig


def over_hyperparameter(panels: Mapping[str, pd.DataFrame], x: str, xlabel: str, ylabel: str) -> Figure:
    """Paired differences over a hyperparameter, one panel per title: one dot per replicate, mean and interval.

    The horizontal axis is logarithmic, the line at 0 is "no difference".

    Args:
        panels: title -> table with columns ``x`` (> 0) and difference, one row per replicate and value of ``x``.
        x: the hyperparameter, for example mu.
        xlabel: what it is.
        ylabel: what is subtracted, with its unit.
    """
    fig, (axes,) = panel_grid(2.9 * len(panels) + 0.6, 3.3, columns=len(panels), sharey=True)
    values = sorted({value for table in panels.values() for value in table[x]})
    for ax, (title, style) in zip(axes, arm_styles(panels).items(), strict=True):
        table = panels[title]
        ax.axhline(0, color="0.3", linewidth=1)
        # Replicates stand beside their mean, not under it.
        ax.plot(table[x] * 1.25, table["difference"], ".", color="0.4", markersize=6)
        found = {at: statistics.interval(list(part)) for at, part in table.groupby(x)["difference"]}
        mean, low, high = np.array(list(found.values())).T
        ax.errorbar(list(found), mean, [mean - low, high - mean], lw=1, capsize=4, **style | {"linestyle": "-"})
        ax.set(xscale="log", xlabel=xlabel, title=title, xlim=(values[0] / 2, values[-1] * 2))
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.minorticks_off()
    axes[0].set_ylabel(ylabel)
    return fig


def over_work(panels: Mapping[str, pd.DataFrame], y: str, xlabel: str, ylabel: str) -> Figure:
    """Errors over the work that was used instead of rounds, one panel per title.

    Both axes are logarithmic: arms may differ in their work by an order of magnitude, and small errors must be told
    apart. So round 0 is left out, means are geometric, and bands are Student's 95 % intervals of the logarithm.
    Replicates differ a little in their work, so a point stands at the mean work of its round.

    Args:
        panels: title -> table with columns arm, round, work and ``y``.
        y: a column of positive values of which less is better.
        xlabel: the unit of work.
        ylabel: with its unit.
    """
    fig, (axes,) = panel_grid(2.9 * len(panels) + 0.6, 3.3, columns=len(panels), sharey=True)
    shown = [float(each) for table in panels.values() for each in table[y]]
    for ax, (title, table) in zip(axes, panels.items(), strict=True):
        for arm, part, style in _styled(table[table["work"] > 0], "arm"):
            groups = ((at["work"].mean(), at[y]) for _, at in part.groupby("round"))
            plots.draw_band(ax, groups, plots.geometric_interval, markersize=4, label=str(arm), **style)
        ax.set(xlabel=xlabel, title=title, xscale="log", yscale="log", ylim=(min(shown) * 0.8, max(shown) * 1.2))
        plots.log_ticks(ax.xaxis, (1, 3), "{x:,.0f}")
        plots.log_ticks(ax.yaxis, (1, 2, 5))
        ax.minorticks_off()
    axes[0].set_ylabel(ylabel)
    shared_legend(fig)
    return fig


def error_curves(
    panels: Mapping[str, pd.DataFrame], theirs: Mapping[str, Sequence[float]], target: float, who: str
) -> Figure:
    """Test error by round on a logarithmic axis, one thin line per run; others' rounds to the target as crosses.

    Args:
        panels: title -> table from :func:`fedprox_lib.sweeps.results.run`.
        theirs: title -> rounds in which others reached the target.
        target: accuracy in [0, 1]; the dashed horizontal line.
        who: the others, for the legend.
    """
    fig, (axes,) = panel_grid(3.2 * len(panels) + 1.2, 3.6, columns=len(panels), sharey=True)
    for ax, (title, table) in zip(axes, panels.items(), strict=True):
        for _, run in table.groupby("record", sort=False):
            run = run[run["round"] > 0].sort_values("round")
            ax.plot(run["round"], 1 - run["test_accuracy"], color=INK[0], linewidth=0.9, alpha=0.8, label="ours, a run")
        ax.axhline(1 - target, color="0.3", linestyle="--", linewidth=1, label=f"{target:.0%} accuracy")
        ax.plot(theirs[title], [1 - target] * len(theirs[title]), "X", color=INK[3], markersize=9, label=who)
        ax.set(title=title, xlabel="communication round", yscale="log")
    low, high = axes[0].get_ylim()
    ticks = [tick for tick in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if low <= tick <= high]
    axes[0].set_yticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
    axes[0].set_yticks([], minor=True)
    axes[0].set_ylabel("test error")
    shared_legend(fig)
    return fig


# The paper's claims


def claim_panels(judged: Mapping[str, tuple[dict[str, Any], pd.DataFrame]], columns: int = 2) -> Figure:
    """One panel per claim: the interval of every part, and the shaded ground on which the claim expects it.

    Args:
        judged: title -> (what is expected, as in ``claims.yml``; parts, from
            :func:`fedprox_book.paper.claims.parts`). A part that has no interval has no marker.
        columns: panels side by side.
    """
    sizes = [max(1, len(parts)) for _, parts in judged.values()]
    heights = [0.32 * max(sizes[i : i + columns]) + 1 for i in range(0, len(sizes), columns)]
    fig, axes = panel_grid(4.4 * columns, sum(heights), rows=len(heights), columns=columns, height_ratios=heights)
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
        ax.set_title(title, fontsize="small")
        _rows(ax, list(shown["part"]), fontsize="small")
        ax.set(xlim=(left, right), ylim=(max(1, len(shown)) - 0.5, -0.5))
        ax.tick_params(axis="x", labelsize="small")
        ax.grid(axis="y", visible=False)
    return fig


# Speed: how work is packed, how fast programs are, how cost grows


def packing(panels: Mapping[str, tuple[Sequence[tuple], Sequence[tuple]]], xlabel: str) -> Figure:
    """One panel per title: jobs as bars, coloured by stack in turn, on grey for the slots computed for nobody.

    Args:
        panels: title -> (bars, slots): bars are (row, number of steps, number of the stack), slots are
            (first row, rows, first step, steps).
        xlabel: what a bar's length counts.
    """
    fig, (axes,) = panel_grid(4 * len(panels), 4.4, columns=len(panels))
    for ax, (title, (bars, slots)) in zip(axes, panels.items(), strict=True):
        for row, rows, begin, steps in slots:
            ax.barh(row, steps, left=begin, height=rows, align="edge", color="0.8", linewidth=0)
        row, steps, stack = (np.array(part) for part in zip(*bars, strict=True))
        edge = 1.0 if len(row) < 40 else 0.0  # thin bars would vanish behind their edges
        colors = [INK[c % 2] for c in stack]
        ax.barh(row, steps, height=1, align="edge", color=colors, edgecolor="white", linewidth=edge)
        last = max(first + rows for first, rows, _, _ in slots)
        ax.set(title=title, xlabel=xlabel, ylabel="slot", ylim=(last, 0), xlim=(0, steps.max() * 1.02))
        ax.grid(axis="y", visible=False)
    return fig


def rates(panels: Mapping[str, pd.DataFrame], xlabel: str) -> Figure:
    """One panel per title: medians as markers on a logarithmic axis, the slowest and the fastest as whiskers.

    Markers and not bars, because the length of a bar means nothing on a logarithmic axis.

    Args:
        panels: title -> table with columns label, threads, low, middle, high; the first row is drawn at the top.
        xlabel: with the unit.
    """
    most = max(table["label"].nunique() for table in panels.values())
    fig, (axes,) = panel_grid(4.4 * len(panels), 0.5 * most + 1.3, columns=len(panels))
    for ax, (title, table) in zip(axes, panels.items(), strict=True):
        labels = list(dict.fromkeys(table["label"]))
        series = list(_styled(table.sort_values("threads", kind="stable"), "threads"))
        for i, (threads, part, style) in enumerate(series):
            at = [labels.index(label) + _beside(i, len(series), 0.6) for label in part["label"]]
            _intervals(ax, part, at, "middle", capsize=3, label=f"{threads} thread{'s' * (threads != 1)}", **style)
        _rows(ax, labels)
        ax.set(title=title, xlabel=xlabel, xscale="log", ylim=(len(labels) - 0.4, -0.6))
        low, high = table["low"].min(), table["high"].max()
        ax.set_xlim(low / 1.3, high * 1.3)
        plots.log_ticks(ax.xaxis, (1,) if high > 20 * low else (1, 2, 5), "{x:,.0f}")
    shared_legend(fig)
    return fig


def growth(panels: Mapping[str, pd.DataFrame], ylabel: str, band: float) -> Figure:
    """One panel per title: medians and extremes over a logarithmic axis, and a band around the panel's own median.

    Args:
        panels: label of the horizontal axis -> table with columns x, low, middle, high.
        ylabel: with the unit.
        band: half its width, as a fraction of the median.
    """
    fig, (axes,) = panel_grid(3.1 * len(panels), 3.2, columns=len(panels))
    for ax, (xlabel, style) in zip(axes, arm_styles(panels).items(), strict=True):
        table, middle = panels[xlabel], panels[xlabel]["middle"].median()
        error = [table["middle"] - table["low"], table["high"] - table["middle"]]
        ax.errorbar(table["x"], table["middle"], error, markersize=5, capsize=3, **style)
        ax.axhspan(middle * (1 - band), middle * (1 + band), color="0.5", alpha=0.2, linewidth=0)
        ax.yaxis.set_major_formatter("{x:,.0f}")
        ax.set(xscale="log", xlabel=xlabel, ylim=(0, 1.1 * max(table["high"].max(), middle * (1 + band))))
    axes[0].set_ylabel(ylabel)
    return fig
