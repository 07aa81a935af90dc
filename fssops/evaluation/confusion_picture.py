"""The confusion matrix of a semantic evaluation as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def confusion_picture(confusion: np.ndarray, names: Sequence[str], target: Path, title: str, most: int = 40) -> None:
    """Draw a confusion matrix as shares of the true class.

    Args:
        confusion: [C, C + 1] pixels, rows truth; the last column: no class.
        names: of the classes.
        target: PNG to write.
        title: above the picture.
        most: of more classes, those with the most pixels are drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    totals = confusion.sum(1)
    shown = [index for index in np.argsort(-totals, kind="stable").tolist() if totals[index] > 0][:most]
    shown.sort()
    share = confusion[shown][:, shown].astype(np.float64) / np.maximum(totals[shown], 1)[:, None]
    side = 2.2 + 0.32 * max(len(shown), 6)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    labels = [names[index] if len(names[index]) <= 22 else f"{names[index][:20]}.." for index in shown]
    axis.set_xticks(range(len(shown)), labels, rotation=90, fontsize=8)
    axis.set_yticks(range(len(shown)), labels, fontsize=8)
    axis.set_xlabel("predicted", fontsize=9)
    axis.set_ylabel("truth", fontsize=9)
    axis.set_title(title, fontsize=9, wrap=True)
    if len(shown) <= 20:
        for row in range(len(shown)):
            for column in range(len(shown)):
                if share[row, column] >= 0.005:
                    colour = "white" if share[row, column] > 0.5 else "black"
                    text = f"{100 * share[row, column]:.0f}"
                    axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    bar = figure.colorbar(image, ax=axis, shrink=0.8)
    bar.set_label("share of the true class's pixels", fontsize=8)
    figure.savefig(target, dpi=110)
