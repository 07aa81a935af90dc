"""What a training has left, as Python reads it: scores, curves, checkpoints and a predictor."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from fssops.fixed_class_predictors import UniversalPredictor, VideoPredictor
    from fssops.predictor import FewShotPredictor


class Scores(dict[str, float]):
    """Scores in [0, 1] by name, the main one first; NaN where one could not be formed.

    Attributes:
        line: the scores with what was measured, to be quoted; "" where nothing was.
        details: all that ``results.json`` says of the evaluation.
    """

    def __init__(
        self, scores: Mapping[str, float | None], line: str = "", details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__({name: float("nan") if value is None else float(value) for name, value in scores.items()})
        self.line, self.details = line, dict(details or {})


@dataclass(frozen=True)
class Run:
    """A finished training. It may stand wherever a path may, as in ``fssops.load(run)``.

    Args:
        path: its folder.
    """

    path: Path

    def __init__(self, path: str | os.PathLike[str]) -> None:
        object.__setattr__(self, "path", Path(path))

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def result(self) -> dict[str, Any]:
        """All that ``result.json`` says.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        file = self.path / "result.json"
        try:
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"Run: {file} must be of a finished training, got {error}") from None
        return content

    @property
    def scores(self) -> Scores:
        """Of the evaluation at the end of the training; empty where it was left out."""
        result = self.result
        return Scores(result.get("scores", {}), result.get("line", ""), result)

    @property
    def curves(self) -> dict[str, tuple[list[int], list[float]]]:
        """Metrics over the training: name -> steps and values, e.g. ``plot(*run.curves["loss"])``.

        Values that are no number are left out.
        """
        from fssops.engine.metrics_log import read_metrics

        curves: dict[str, tuple[list[int], list[float]]] = {}
        for record in read_metrics(self.path / "metrics.jsonl"):
            for name, value in record.items():
                if name != "step" and value is not None:
                    steps, values = curves.setdefault(name, ([], []))
                    steps.append(record["step"])
                    values.append(value)
        return curves

    @property
    def last_checkpoint(self) -> Path:
        """The weights after the last step."""
        return self.path / "checkpoints" / "last.pt"

    @property
    def best_checkpoint(self) -> Path | None:
        """The weights at the best value of ``engine.best_metric``; None where it was never a number."""
        path = self.path / "checkpoints" / "best.pt"
        return path if path.is_file() else None

    def predictor(
        self, which: Literal["last", "best"] | None = None, **options: Any
    ) -> FewShotPredictor | UniversalPredictor | VideoPredictor:
        """The trained model as a predictor.

        Args:
            which: checkpoint; None: the one that was scored, as :func:`fssops.load` takes of a run.
            **options: of :func:`fssops.load`: ``device``, ``size``, ...

        Raises:
            RunCheckpointError, SettingsError: as of :func:`fssops.load`.
        """
        from fssops.api import load

        return load(self.path / "checkpoints" / f"{which}.pt" if which else self, **options)
