"""Panoptic quality, as the reference implementation (panopticapi) defines it.

Source: Kirillov et al., "Panoptic Segmentation", CVPR 2019. A predicted and a true segment of one class match where
their IoU, void pixels left out, is above one half. Crowd regions match nothing; a prediction that lies mostly in void
or in the crowd of its class counts nowhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fssops.evaluation.metrics.metric import ClassSetting, Coverage, Scores, SummedMetric
from fssops.structures import SegmentationResult
from fssops.truth import Segment, Truth

UNIT = 1 << 40
"""IoUs are added up as whole multiples of 1 / UNIT, so that sums do not depend on their order."""


class PanopticQuality(SummedMetric):
    """Matched and unmatched segments over all images.

    Args:
        classes: number of classes C.
        things: indices of the countable classes.

    Attributes:
        table: int64 [C, 4]: true positives, false positives, false negatives, and the sum of IoUs in ``UNIT``.
    """

    name = prediction = "panoptic"
    table: Tensor

    def __init__(self, classes: int, things: Collection[int] = ()) -> None:
        super().__init__(table=torch.zeros(classes, 4, dtype=torch.int64))
        self.things = frozenset(things)

    @classmethod
    def build(cls, setting: ClassSetting) -> PanopticQuality:
        return cls(setting.classes, setting.things)

    def add(self, number: int, prediction: SegmentationResult, truth: Truth) -> float:
        assert prediction.panoptic is not None
        assert truth.segment_ids is not None
        labels = {segment.id: segment.label for segment in prediction.panoptic.segments}
        table = self.count(prediction.panoptic.segment_ids.cpu().numpy(), labels, truth.segment_ids, truth.segments)
        hits, wrong, missed, overlap = table.sum(0).tolist()
        return float(round(overlap / UNIT / max(hits + 0.5 * wrong + 0.5 * missed, 1e-9), 6))

    def count(
        self,
        segment_ids: np.ndarray,
        labels: Mapping[int, int],
        true_ids: np.ndarray,
        true_segments: Sequence[Segment],
    ) -> np.ndarray:
        """Count one image.

        Args:
            segment_ids: predicted map [H, W], 0 void.
            labels: class index of each id in it.
            true_ids: [H, W], 0 void.
            true_segments: of ``true_ids``.

        Returns:
            the counts of this image alone, [C, 4].

        Raises:
            ValueError: sizes differ, or a map holds an id that has no class.
        """
        if segment_ids.shape != true_ids.shape:
            raise ValueError(
                f"PanopticQuality.count: segment_ids must have the truth's size {true_ids.shape}, "
                f"got {segment_ids.shape}"
            )
        offset = 1 << 32
        joint, counts = np.unique(true_ids.astype(np.int64) * offset + segment_ids.astype(np.int64), return_counts=True)
        overlap = {divmod(pair, offset): count for pair, count in zip(joint.tolist(), counts.tolist(), strict=True)}
        true_area: dict[int, int] = {}
        area: dict[int, int] = {}
        for (true_id, segment_id), count in overlap.items():
            true_area[true_id] = true_area.get(true_id, 0) + count
            area[segment_id] = area.get(segment_id, 0) + count
        unknown = (set(area) - {0} - set(labels)) or (set(true_area) - {0} - {s.id for s in true_segments})
        if unknown:
            raise ValueError(
                f"PanopticQuality.count: every id of a map must have a class, got {min(unknown)} without one"
            )

        table, segments = np.zeros(tuple(self.table.shape), dtype=np.int64), {s.id: s for s in true_segments}
        matched: set[int] = set()
        matched_truth: set[int] = set()
        for (true_id, segment_id), shared in overlap.items():
            truth = segments.get(true_id)
            if truth is None or segment_id == 0 or truth.crowd or truth.label != labels[segment_id]:
                continue
            union = area[segment_id] + true_area[true_id] - shared - overlap.get((0, segment_id), 0)
            if 2 * shared > union:
                table[truth.label, 0] += 1
                table[truth.label, 3] += round(shared * UNIT / union)
                matched_truth.add(true_id)
                matched.add(segment_id)
        # Of several crowd regions of a class the last one listed counts, as in panopticapi.
        crowds = {s.label: s.id for s in true_segments if s.crowd}
        for truth in true_segments:
            table[truth.label, 2] += not truth.crowd and truth.id not in matched_truth
        for segment_id in sorted(set(area) - {0} - matched):
            excused = overlap.get((0, segment_id), 0)
            label = labels[segment_id]
            if label in crowds:
                excused += overlap.get((crowds[label], segment_id), 0)
            table[label, 1] += 2 * excused <= area[segment_id]
        self.table += torch.from_numpy(table)
        return table

    def scores(self) -> PanopticScores:
        """Form the scores; a class without any segment, true or predicted, takes no part in the means."""
        table = self.table.numpy()
        hits, wrong, missed = (table[:, column].astype(np.float64) for column in range(3))
        overlap = table[:, 3].astype(np.float64) / UNIT
        weight = hits + 0.5 * wrong + 0.5 * missed
        with np.errstate(invalid="ignore", divide="ignore"):
            quality = np.where(weight > 0, overlap / weight, np.nan)
            recognition = np.where(weight > 0, hits / weight, np.nan)
            segmentation = np.where(weight > 0, np.where(hits > 0, overlap / hits, 0.0), np.nan)
        rows = np.stack([quality, segmentation, recognition], axis=1)  # [C, 3]
        countable = np.array([label in self.things for label in range(len(rows))])
        everything = np.ones(len(rows), dtype=bool)
        return PanopticScores(
            every=_group(rows, everything), things=_group(rows, countable), stuff=_group(rows, ~countable),
            class_pq=quality.tolist(), class_sq=segmentation.tolist(), class_rq=recognition.tolist(),
            class_counts=table[:, :3].tolist(),
        )  # fmt: skip


@dataclass(frozen=True)
class Quality:
    """Means over the classes of a group: panoptic, segmentation and recognition quality.

    Attributes:
        classes: number of classes that took part,
        of: of so many in the group.
    """

    pq: float
    sq: float
    rq: float
    classes: int
    of: int


@dataclass(frozen=True)
class PanopticScores(Scores):
    """Scores in [0, 1]; NaN where nothing was measured.

    Attributes:
        every, things, stuff: means over all, countable and other classes.
        class_pq, class_sq, class_rq: by class.
        class_counts: true positives, false positives and false negatives by class.
    """

    protocol = "PQ of panopticapi"
    every: Quality
    things: Quality
    stuff: Quality
    class_pq: list[float]
    class_sq: list[float]
    class_rq: list[float]
    class_counts: list[list[int]]

    def summary(self) -> dict[str, float]:
        summary = {"PQ": self.every.pq, "SQ": self.every.sq, "RQ": self.every.rq}
        return {**summary, "PQ things": self.things.pq, "PQ stuff": self.stuff.pq}

    def coverage(self) -> dict[str, Coverage]:
        groups = {**dict.fromkeys(("PQ", "SQ", "RQ"), self.every), "PQ things": self.things, "PQ stuff": self.stuff}
        return {name: Coverage(group.classes, group.of) for name, group in groups.items()}

    def columns(self) -> dict[str, Sequence[float]]:
        return {"PQ": self.class_pq, "SQ": self.class_sq, "RQ": self.class_rq}


def _group(rows: np.ndarray, members: np.ndarray) -> Quality:
    seen, of = rows[members & ~np.isnan(rows[:, 0])], int(members.sum())
    if not len(seen):
        return Quality(float("nan"), float("nan"), float("nan"), 0, of)
    pq, sq, rq = seen.mean(0).tolist()
    return Quality(pq, sq, rq, len(seen), of)
