"""The course of a run as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fssops.engine.metrics_log import read_metrics

_NOT_LOSSES = {"step", "loss", "lr", "grad_norm", "step_seconds", "data_wait"}
_COLOURS = ("#1d78d8", "#e63946", "#2a9d5d", "#f4a21c", "#9b51e0", "#00afc8")


def draw_curves(metrics: Path, target: Path, title: str, finals: Mapping[str, float] | None = None) -> None:
    """Draw losses, learning rate and validation metrics over the steps.

    Args:
        metrics: a ``metrics.jsonl``.
        target: PNG to write.
        title: above the picture.
        finals: scores to draw as level lines among the validation metrics, name to value in [0, 1].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read_metrics(metrics)
    training = [record for record in records if "loss" in record]
    validation = [record for record in records if "loss" not in record]
    scores = sorted({key for record in validation for key in record if key != "step"})
    panels = 2 + bool(scores or finals)
    figure = Figure(figsize=(4.6 * panels, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels)
    figure.suptitle(title, fontsize=11)

    # Terms of auxiliary heads (loss_ce_0, ..) run beside those of the last one and would only hide them.
    names = {key for record in training for key in record} - _NOT_LOSSES
    terms = sorted(name for name in names if not name.rpartition("_")[2].isdigit())
    _lines(axes[0], training, ["loss", *(terms if len(terms) > 1 else [])], "training loss")
    axes[0].set_ylim(bottom=0)
    _lines(axes[1], training, ["lr"], "learning rate")
    if panels == 3:
        _lines(axes[2], validation, scores, "scores", marker="o")
        for number, (name, value) in enumerate((finals or {}).items()):
            colour = _COLOURS[(len(scores) + number) % len(_COLOURS)]
            axes[2].axhline(value, color=colour, linestyle="--", linewidth=1.4, label=name)
        axes[2].set_ylim(0, 1)
        axes[2].legend(frameon=False, fontsize=8)
    figure.savefig(target, dpi=120)


def _lines(axis: Any, records: list[dict[str, Any]], names: list[str], title: str, marker: str = "") -> None:
    for number, name in enumerate(names):
        points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
        if points:
            steps, values = zip(*points, strict=True)
            axis.plot(steps, values, color=_COLOURS[number % len(_COLOURS)], linewidth=1.6, marker=marker, label=name)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("step", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    if len(names) > 1:
        axis.legend(frameon=False, fontsize=8)
