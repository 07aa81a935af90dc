"""Results of fixed-class evaluation: every number with what it was measured on, as lines, tables and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fssops.evaluation.instance import InstanceRecords, InstanceScores
from fssops.evaluation.layer_measures import LayerCounts, LayerScores
from fssops.evaluation.panoptic import PanopticCounts, PanopticScores
from fssops.evaluation.scores import percent, without_nan
from fssops.evaluation.semantic import SemanticCounts, SemanticScores, most_confused

PROTOCOLS = {
    "semantic": "mIoU of detectron2 (one confusion matrix, classes that the truth shows)",
    "panoptic": "PQ of panopticapi",
    "instance": "mask AP of pycocotools",
}
"""Task -> how it is scored."""


@dataclass
class UniversalCounts:
    """What is added up over images and processes.

    Attributes:
        semantic, panoptic, instance: None where the task is not scored.
        layers: the layer measures, None where they are not asked for.
        quality: image number -> how well it went in [0, 1], for best and worst pictures.
    """

    semantic: SemanticCounts | None = None
    panoptic: PanopticCounts | None = None
    instance: InstanceRecords | None = None
    layers: LayerCounts | None = None
    quality: dict[int, float] = field(default_factory=dict)

    @staticmethod
    def start(tasks: Sequence[str], classes: int, detections: int = 100, layers: int = 0) -> UniversalCounts:
        """Nothing counted yet; ``layers`` above 0 are those of the measured decoder."""
        return UniversalCounts(
            SemanticCounts(classes) if "semantic" in tasks else None,
            PanopticCounts(classes) if "panoptic" in tasks else None,
            InstanceRecords(classes, detections) if "instance" in tasks else None,
            LayerCounts(layers) if layers else None,
        )

    def merge(self, others: Sequence[Mapping[str, Any]]) -> None:
        """Replace the counts by the sum over processes of :meth:`state`."""
        for counts, key in ((self.semantic, "semantic"), (self.panoptic, "panoptic")):
            if counts is not None:
                counts.take(np.sum([other[key] for other in others], axis=0))
        if self.instance is not None:
            self.instance.merge(other["instance"] for other in others)
        if self.layers is not None:
            self.layers.sums = np.sum([other["layers"] for other in others], axis=0)
        for other in others:
            self.quality.update(other["quality"])

    def state(self) -> dict[str, Any]:
        """Everything as plain values, to be sent to other processes."""
        return {
            "semantic": None if self.semantic is None else self.semantic.flat(),
            "panoptic": None if self.panoptic is None else self.panoptic.flat(),
            "instance": None if self.instance is None else self.instance.images,
            "layers": None if self.layers is None else self.layers.sums,
            "quality": self.quality,
        }


@dataclass(frozen=True)
class UniversalResult:
    """Scores of one model on one split.

    Attributes:
        model: what was evaluated, for the reader.
        dataset: name and split of the data.
        images: number of images scored.
        of: number of images in the split.
        test_size: at which size, in words.
        classes: class names by index.
        things: indices of the countable classes.
        semantic, panoptic, instance: scores; None where the task was not scored.
        layers: the layer measures; None where they were not asked for.
        confusion: [C][C + 1] pixels, rows truth; None without semantic scores.
        quality: (image number, how well it went), best first.
        seconds: wall time.
    """

    model: str
    dataset: str
    images: int
    of: int
    test_size: str
    classes: list[str]
    things: list[int]
    semantic: SemanticScores | None = None
    panoptic: PanopticScores | None = None
    instance: InstanceScores | None = None
    layers: LayerScores | None = None
    confusion: list[list[int]] | None = None
    quality: list[tuple[int, float]] = field(default_factory=list, repr=False)
    seconds: float = 0.0

    @property
    def tasks(self) -> list[str]:
        """The tasks that were scored."""
        return [task for task in PROTOCOLS if getattr(self, task) is not None]

    def scores(self) -> dict[str, float]:
        """All summary scores in [0, 1] by name."""
        found: dict[str, float] = {}
        for task in self.tasks:
            found.update(getattr(self, task).summary())
        if self.layers is not None:
            found.update(self.layers.summary())
        return found

    @property
    def main(self) -> tuple[str, float]:
        """Name and value of the score that a run is judged by: PQ, else AP, else mIoU."""
        for task, name in (("panoptic", "PQ"), ("instance", "AP"), ("semantic", "mIoU")):
            if getattr(self, task) is not None:
                return name, self.scores()[name]
        raise ValueError("UniversalResult: at least one task must be scored, got none")

    def setting(self) -> str:
        """Say what was measured, without the scores."""
        images = f"{self.images} images" if self.images == self.of else f"{self.images} of {self.of} images"
        return f"{self.dataset}, {images}, {self.test_size}; " + ", ".join(PROTOCOLS[task] for task in self.tasks)

    def line(self) -> str:
        """One line that can be quoted: the scores in percent and the whole setting."""
        scores = "  ".join(f"{name} {percent(value)}" for name, value in self.scores().items())
        return f"{scores}  [{self.model}; {self.setting()}]"

    def class_table(self) -> list[list[str]]:
        """Rows of a table, one a class, in percent; the first row names the columns."""
        columns: dict[str, Sequence[float]] = {}
        if self.semantic is not None:
            columns |= {"IoU": self.semantic.class_iou, "accuracy": self.semantic.class_accuracy}
            if not math.isnan(self.semantic.boundary_iou):
                columns["boundary IoU"] = self.semantic.class_boundary_iou
        if self.panoptic is not None:
            columns |= {"PQ": self.panoptic.class_pq, "SQ": self.panoptic.class_sq, "RQ": self.panoptic.class_rq}
        if self.instance is not None:
            columns["AP"] = self.instance.class_ap
            if self.instance.class_boundary_ap:
                columns["boundary AP"] = self.instance.class_boundary_ap
        rows = [["class", "name", "kind", *columns]]
        for index, name in enumerate(self.classes):
            kind = "thing" if index in set(self.things) else "stuff"
            rows.append([str(index), name, kind, *(percent(values[index]) for values in columns.values())])
        return rows

    def as_json(self) -> dict[str, Any]:
        """Plain values; NaN becomes null."""
        plain = asdict(self)
        plain["protocols"] = {task: PROTOCOLS[task] for task in self.tasks}
        plain["scores"], plain["line"] = self.scores(), self.line()
        if self.confusion is not None:
            plain["most_confused"] = most_confused(np.array(self.confusion), self.classes, 10)
        return without_nan(plain)  # type: ignore[no-any-return]


def score(counts: UniversalCounts, things: Sequence[int], *, boundary: bool, **setting: Any) -> UniversalResult:
    """Turn the counts of all processes into scores.

    Args:
        counts: summed over processes.
        things: indices of the countable classes.
        boundary: also form boundary AP.
        **setting: the remaining fields of :class:`UniversalResult`.
    """
    return UniversalResult(
        things=list(things),
        semantic=None if counts.semantic is None else counts.semantic.scores(),
        panoptic=None if counts.panoptic is None else counts.panoptic.scores(things),
        instance=None if counts.instance is None else counts.instance.scores(boundary=boundary),
        layers=None if counts.layers is None else counts.layers.scores(),
        confusion=None if counts.semantic is None else counts.semantic.confusion.tolist(),
        quality=sorted(counts.quality.items(), key=lambda entry: (-entry[1], entry[0])),
        **setting,
    )
