"""Draws the figure at the top of the README from the committed records: `python -m tools.readme_figure`.

SVG, so that the repository holds text and a change of the records shows as a change of the picture.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pandas as pd
import seaborn as sns

from fedprox_book import figures, sweeps
from fedprox_book import profile as profiles
from fedprox_lib.sweeps import plots, results

TARGET = Path(__file__).resolve().parent.parent / "book" / "side_by_side.svg"


def draw() -> bytes:
    """The learning curves of the three arms at 50 and 90 % stragglers, as SVG."""
    published = profiles.profile_named("published")
    table: pd.DataFrame = results.run(sweeps.side_by_side(profiles.profile_named("paper")), published)
    late = table[table["straggler_fraction"] > 0]
    sns.set_theme(**figures.THEME)
    figure = plots.learning_curves(late, {"test_accuracy": "test accuracy"})
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(TARGET, facecolor="white", metadata={"Date": None, "Creator": None})
    return TARGET.read_bytes()


if __name__ == "__main__":
    print(f"{TARGET}: {len(draw()):,} bytes")
