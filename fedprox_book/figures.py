"""Tables to pictures: one function per kind of figure, each returning a matplotlib figure, and :func:`show`.

``show`` refuses a figure without alt text and caption, and hands both to the book with the picture. Colours, line
styles and markers belong to arms and stay the same in every chapter. Room: matplotlib and seaborn; computes nothing
but means and intervals. May import statistics.
"""

import base64
import io
from collections.abc import Mapping

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from fedprox_lib.sweeps import statistics

INK = sns.color_palette("colorblind")
sns.set_theme(
    context="notebook",
    style="whitegrid",
    palette=INK,
    rc={"figure.dpi": 100, "savefig.dpi": 160, "legend.frameon": False, "svg.hashsalt": "fedprox"},
)

STYLES = [(INK[0], "-", "o"), (INK[1], "--", "s"), (INK[2], "-.", "D"), (INK[3], ":", "^"), (INK[4], "-", "v")]
"""Colour, line and marker by position of the arm. They tell arms apart without colour, too."""


def show(fig: Figure, *, name: str, alt: str, caption: str, width: str = "100%") -> None:
    """Display a figure with its alt text (the finding, for who cannot see it) and caption (what is drawn).

    Args:
        fig: from one of the functions below; it is closed.
        name: cross-reference label, ``fig-...``.
        alt: a sentence that says what the picture shows.
        caption: what is plotted, from how many replicates, and what a band is.
        width: of the picture in the page.
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


def label_heatmaps(counts: Mapping[str, np.ndarray], clients: int = 30) -> Figure:
    """One panel a partition: clients down, labels across, shade by the share of the client's rows.

    Args:
        counts: title -> (N, 10) rows by client and label.
        clients: how many clients to draw.
    """
    fig, axes = plt.subplots(1, len(counts), figsize=(2.9 * len(counts), 5), sharey=True, layout="constrained")
    for ax, (title, table) in zip(np.atleast_1d(axes), counts.items(), strict=True):
        share = table[:clients] / table[:clients].sum(1, keepdims=True)
        sns.heatmap(share, ax=ax, cmap="rocket_r", vmin=0, vmax=1, cbar=False, linewidths=0.3)
        ax.set(title=title, xlabel="digit")
        ax.tick_params(axis="y", rotation=0)
    np.atleast_1d(axes)[0].set_ylabel("client")
    shades = matplotlib.cm.ScalarMappable(cmap="rocket_r", norm=matplotlib.colors.Normalize(0, 1))
    fig.colorbar(shades, ax=axes, label="share of the client's rows", shrink=0.7)
    return fig


def size_histograms(sizes: Mapping[str, np.ndarray]) -> Figure:
    """One panel a partition: how many rows the clients hold (logarithmic axis)."""
    fig, axes = plt.subplots(1, len(sizes), figsize=(2.9 * len(sizes), 2.8), layout="constrained")
    top = max(int(np.max(s)) for s in sizes.values())
    bins = np.unique(np.geomspace(1, top + 1, 24).round())
    for ax, (title, held) in zip(np.atleast_1d(axes), sizes.items(), strict=True):
        sns.histplot(x=held, bins=bins, ax=ax, color=INK[0])
        ax.set(xscale="log", title=title, xlabel="rows held", ylabel="")
    np.atleast_1d(axes)[0].set_ylabel("clients")
    return fig


def digit_rows(images: Mapping[str, np.ndarray]) -> Figure:
    """A strip of digits a client: title -> (n, 28, 28)."""
    width = max(len(strip) for strip in images.values())
    fig, axes = plt.subplots(
        len(images), width, figsize=(0.62 * width + 1, 0.75 * len(images)), squeeze=False, layout="constrained"
    )
    for row, (title, strip) in zip(axes, images.items(), strict=True):
        for ax in row:
            ax.axis("off")
        for ax, image in zip(row, strip, strict=False):
            ax.imshow(image, cmap="gray_r")
        row[0].text(-0.3, 0.5, title, transform=row[0].transAxes, ha="right", va="center")
    return fig


def digit_bars(table: pd.DataFrame, hue: str) -> Figure:
    """Accuracy by digit, bars side by side.

    Args:
        table: columns digit, accuracy in [0, 1], and ``hue``.
        hue: column that tells the bars apart.
    """
    fig, ax = plt.subplots(figsize=(8, 3.2), layout="constrained")
    sns.barplot(table, x="digit", y="accuracy", hue=hue, ax=ax, errorbar=None)
    ax.set(ylim=(0, 1), ylabel="test accuracy")
    sns.move_legend(ax, "lower center", bbox_to_anchor=(0.5, 1), ncol=4, title=None)
    return fig


def lines(table: pd.DataFrame, x: str, y: str, hue: str, xlabel: str, ylabel: str, log_y: bool = False) -> Figure:
    """Plain lines, one a value of ``hue``; for paths of a single client."""
    fig, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for (color, style, marker), (value, part) in zip(STYLES, table.groupby(hue, sort=False), strict=False):
        every = max(1, len(part) // 10)
        ax.plot(part[x], part[y], style, color=color, marker=marker, markevery=every, markersize=5, label=str(value))
    ax.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log_y else "linear")
    ax.legend(title=None)
    return fig


def bands(table: pd.DataFrame, x: str, y: str, hue: str, xlabel: str, ylabel: str) -> Figure:
    """Mean by x, one line a value of ``hue``, and Student's 95 % interval over whatever shares both as a band."""
    fig, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
    for (color, style, marker), (value, part) in zip(STYLES, table.groupby(hue, sort=False), strict=False):
        at = {t: statistics.interval(list(v)) for t, v in part.groupby(x)[y]}
        band = pd.DataFrame(at, index=["mean", "low", "high"]).T
        every = max(1, len(band) // 10)
        ax.plot(band["mean"], style, color=color, marker=marker, markevery=every, markersize=5, label=str(value))
        ax.fill_between(band.index, band["low"], band["high"], color=color, alpha=0.15, linewidth=0)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    fig.legend(loc="outside upper center", ncol=table[hue].nunique())
    return fig


def dots(table: pd.DataFrame, x: str, y: str, hue: str, xlabel: str, ylabel: str) -> Figure:
    """Small dots for all values, a large hollow marker for their geometric mean, side by side at each x."""
    places, groups = list(dict.fromkeys(table[x])), list(table.groupby(hue, sort=False))
    fig, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    for i, ((color, _, marker), (value, part)) in enumerate(zip(STYLES, groups, strict=False)):
        shift = 0.7 * ((i + 0.5) / len(groups) - 0.5)
        ax.plot([places.index(v) + shift for v in part[x]], part[y], ".", color=color, markersize=5)
        means = np.exp(np.log(part[y]).groupby(part[x], sort=False).mean())
        at = [places.index(v) + shift for v in means.index]
        ax.plot(at, means, marker, color=color, markersize=10, fillstyle="none", markeredgewidth=1.8, label=str(value))
    ax.set(xlabel=xlabel, ylabel=ylabel, yscale="log")
    ax.set_xticks(range(len(places)), places)
    if max(len(str(v)) for v in places) > 6:
        plt.setp(ax.get_xticklabels(), rotation=20, ha="right")
    ax.grid(axis="x", visible=False)
    fig.legend(loc="outside upper center", ncol=len(groups))
    return fig


def scatter(table: pd.DataFrame, x: str, y: str, hue: str, xlabel: str, ylabel: str) -> Figure:
    """Points on two logarithmic axes, one colour and marker a value of ``hue``."""
    fig, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
    for (color, _, marker), (value, part) in zip(STYLES, table.groupby(hue, sort=False), strict=False):
        ax.plot(part[x], part[y], marker, color=color, markersize=4, alpha=0.6, label=str(value))
    ax.set(xlabel=xlabel, ylabel=ylabel, xscale="log", yscale="log")
    ax.legend(title=None)
    return fig


def plane_paths(
    paths: Mapping[str, np.ndarray], height: "object", start: np.ndarray, optimum: np.ndarray, extent: tuple[float, ...]
) -> Figure:
    """Paths of gradient descent over the contours of a function of two variables.

    Args:
        paths: label -> (steps + 1, 2) points.
        height: function of two arrays, the objective without the proximal term.
        start: w_t.
        optimum: the minimum of the objective.
        extent: (left, right, bottom, top).
    """
    fig, ax = plt.subplots(figsize=(7, 4.6), layout="constrained")
    left, right, bottom, top = extent
    grid = np.meshgrid(np.linspace(left, right, 200), np.linspace(bottom, top, 200))
    ax.contour(*grid, height(*grid), levels=14, colors="0.8", linewidths=0.8)  # type: ignore[operator]
    for (color, style, marker), (label, points) in zip(STYLES, paths.items(), strict=False):
        ax.plot(*np.asarray(points).T, style, color=color, marker=marker, markersize=4, label=label)
    ax.plot(*start, "k*", markersize=14)
    ax.annotate("$w_t$", start, xytext=(8, 8), textcoords="offset points")
    ax.plot(*optimum, "kX", markersize=9)
    ax.annotate("minimum of $F_k$", optimum, xytext=(8, 8), textcoords="offset points")
    ax.set(xlabel="$w_1$", ylabel="$w_2$")
    ax.legend(loc="best")
    return fig


def learning_curves(table: pd.DataFrame, y: str, ylabel: str, col: str = "straggler_fraction") -> Figure:
    """A panel a straggler fraction: mean over replicates by round, and Student's 95 % interval as a band.

    Losses have a logarithmic axis, so their means are geometric and their intervals those of the logarithm.

    Args:
        table: from ``results.run``.
        y: a measured column.
        ylabel: with its unit.
        col: column whose values get a panel each.
    """
    is_loss = y.endswith("loss")
    scale, back = (np.log, np.exp) if is_loss else (np.asarray, np.asarray)
    panels = sorted(table[col].unique())
    arms = list(dict.fromkeys(table["arm"]))
    fig, axes = plt.subplots(
        1, len(panels), figsize=(2.8 * len(panels) + 0.6, 3.3), sharey=True, squeeze=False, layout="constrained"
    )
    for ax, value in zip(axes[0], panels, strict=True):
        for (color, style, marker), arm in zip(STYLES, arms, strict=False):
            part = table[(table["arm"] == arm) & (table[col] == value)]
            if part.empty:
                continue
            bands = pd.DataFrame(
                {t: back(np.asarray(statistics.interval(scale(v)))) for t, v in part.groupby("round")[y]},
                index=["mean", "low", "high"],
            ).T
            ax.plot(bands.index, bands["mean"], style, color=color, marker=marker, markersize=4, label=arm)
            ax.fill_between(bands.index, bands["low"], bands["high"], color=color, alpha=0.15, linewidth=0)
        ax.set(xlabel="communication round", title=f"{value:.0%} stragglers" if col == "straggler_fraction" else value)
        # The limits follow the curves: the wide bands of a few replicates must not squash them.
        shown = [table[y].min(), table[y].max()]
        if is_loss:
            ax.set(yscale="log", ylim=(shown[0] * 0.8, shown[1] * 1.2))
        else:
            ax.set_ylim(0, 1 if shown[1] > 0.9 else shown[1] * 1.05)
    axes[0][0].set_ylabel(ylabel)
    handles, labels = max((ax.get_legend_handles_labels() for ax in axes[0]), key=lambda hl: len(hl[0]))
    fig.legend(handles, labels, loc="outside upper center", ncol=len(labels))
    return fig


def differences(gaps: Mapping[str, pd.DataFrame], xlabel: str) -> Figure:
    """Paired differences with their 95 % intervals, a panel a comparison; the line at 0 is "no difference".

    The panels have axes of their own: what is compared may differ by orders of magnitude.

    Args:
        gaps: comparison -> table from ``statistics.paired``.
        xlabel: what is subtracted, with its unit.
    """
    most = max(len(gap) for gap in gaps.values())
    fig, axes = plt.subplots(1, len(gaps), figsize=(4 * len(gaps), 0.55 * most + 1.4), layout="constrained")
    for ax, (color, _, marker), (comparison, gap) in zip(np.atleast_1d(axes), STYLES, gaps.items(), strict=False):
        error = [gap["difference"] - gap["low"], gap["high"] - gap["difference"]]
        ax.errorbar(gap["difference"], range(len(gap)), xerr=error, color=color, marker=marker, capsize=4, linestyle="")
        ax.axvline(0, color="0.3", linewidth=1)
        ax.set_yticks(range(len(gap)), [f"{fraction:.0%} stragglers" for fraction in gap["straggler_fraction"]])
        ax.set(title=comparison, ylim=(len(gap) - 0.5, -0.5))
    fig.supxlabel(xlabel, fontsize="medium")
    return fig


def agreement(table: pd.DataFrame, y: str, ylabel: str, reference: str) -> Figure:
    """Two panels: a recorded curve with ours over it, and how far ours are from it, relatively, on a logarithmic axis.

    Args:
        table: columns source, round and ``y``; a line a source.
        y: a measured column.
        ylabel: with its unit.
        reference: the source that the others are compared with; hollow circles.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.4), layout="constrained")
    wide = table.pivot(index="round", columns="source", values=y)
    ours = [source for source in dict.fromkeys(table["source"]) if source != reference]
    for (color, style, marker), source in zip(STYLES, ours, strict=False):
        left.plot(wide[source], style, color=color, label=source)
        gap = (wide[source] - wide[reference]).abs() / wide[reference]
        right.plot(gap, style, color=color, marker=marker, markersize=5)
    left.plot(wide[reference], "o", color="0.2", fillstyle="none", markersize=9, label=reference)
    left.set(xlabel="communication round", ylabel=ylabel)
    right.set(xlabel="communication round", ylabel="relative difference", yscale="log")
    fig.legend(loc="outside upper center", ncol=len(ours) + 1)
    return fig


def forest(gaps: pd.DataFrame, singles: pd.DataFrame, margin: float, xlabel: str) -> Figure:
    """Paired differences of several comparisons with intervals, a panel a data set, and the margin as a grey band.

    Args:
        gaps: columns data, comparison, difference, low, high.
        singles: columns data, comparison, difference; a small stroke a replicate, below the mean.
        margin: differences within it do not matter.
        xlabel: what is subtracted, with its unit.
    """
    names, panels = list(dict.fromkeys(gaps["comparison"])), list(dict.fromkeys(gaps["data"]))
    fig, axes = plt.subplots(
        1, len(panels), figsize=(3.1 * len(panels) + 3.2, 0.5 * len(names) + 1.3), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for ax, (color, _, marker), panel in zip(axes[0], STYLES, panels, strict=False):
        gap = gaps[gaps["data"] == panel].set_index("comparison").loc[names]
        dots = singles[singles["data"] == panel]
        ax.axvspan(-margin, margin, color="0.9", zorder=0)
        ax.axvline(0, color="0.3", linewidth=1)
        ax.plot(dots["difference"], [names.index(c) + 0.28 for c in dots["comparison"]], "|", color="0.4", markersize=7)
        error = [gap["difference"] - gap["low"], gap["high"] - gap["difference"]]
        ax.errorbar(gap["difference"], range(len(gap)), xerr=error, color=color, marker=marker, capsize=4, linestyle="")
        ax.set(title=panel, ylim=(len(names) - 0.5, -0.5))
    axes[0][0].set_yticks(range(len(names)), names)
    fig.supxlabel(xlabel, fontsize="medium")
    return fig
