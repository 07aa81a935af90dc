"""Panoptic quality, as the reference implementation (panopticapi) defines it.

Source: Kirillov et al., "Panoptic Segmentation", CVPR 2019. A predicted and a true segment of one class match where
their IoU, void pixels left out, is above one half. Crowd regions match nothing; a prediction that lies mostly in void
or in the crowd of its class counts nowhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

UNIT = 1 << 40
"""IoUs are added up as whole multiples of 1 / UNIT, so that sums do not depend on their order."""


@dataclass(frozen=True)
class TrueSegment:
    """A segment of the truth: its value in the map, its class index, and whether it is a crowd."""

    id: int
    label: int
    crowd: bool = False


class PanopticCounts:
    """Integer counts over images; exact under any order of summation.

    Args:
        classes: number of classes C.

    Attributes:
        table: int64 [C, 4]: true positives, false positives, false negatives, and the sum of IoUs in ``UNIT``.
    """

    def __init__(self, classes: int) -> None:
        self.table: np.ndarray = np.zeros((classes, 4), dtype=np.int64)

    def add(
        self,
        segment_ids: np.ndarray,
        labels: Mapping[int, int],
        true_ids: np.ndarray,
        true_segments: Sequence[TrueSegment],
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
                f"PanopticCounts.add: segment_ids must have the truth's size {true_ids.shape}, got {segment_ids.shape}"
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
            raise ValueError(f"PanopticCounts.add: every id of a map must have a class, got {min(unknown)} without one")

        before, segments = self.table.copy(), {s.id: s for s in true_segments}
        matched: set[int] = set()
        found: set[int] = set()
        for (true_id, segment_id), shared in overlap.items():
            truth = segments.get(true_id)
            if truth is None or segment_id == 0 or truth.crowd or truth.label != labels[segment_id]:
                continue
            union = area[segment_id] + true_area[true_id] - shared - overlap.get((0, segment_id), 0)
            if 2 * shared > union:
                self.table[truth.label, 0] += 1
                self.table[truth.label, 3] += round(shared * UNIT / union)
                found.add(true_id)
                matched.add(segment_id)
        # Of several crowd regions of a class the last one listed counts, as in panopticapi.
        crowds = {s.label: s.id for s in true_segments if s.crowd}
        for truth in true_segments:
            self.table[truth.label, 2] += not truth.crowd and truth.id not in found
        for segment_id in sorted(set(area) - {0} - matched):
            excused = overlap.get((0, segment_id), 0)
            label = labels[segment_id]
            if label in crowds:
                excused += overlap.get((crowds[label], segment_id), 0)
            self.table[label, 1] += 2 * excused <= area[segment_id]
        return np.asarray(self.table - before)

    def flat(self) -> np.ndarray:
        """All counts as one vector, to be summed over processes."""
        return self.table.ravel()

    def take(self, flat: np.ndarray) -> None:
        """Replace the counts by those of :meth:`flat`."""
        self.table = flat.reshape(self.table.shape).astype(np.int64)

    def scores(self, things: Collection[int]) -> PanopticScores:
        """Form the scores; a class without any segment, true or predicted, takes no part in the means."""
        hits, wrong, missed = (self.table[:, column].astype(np.float64) for column in range(3))
        overlap = self.table[:, 3].astype(np.float64) / UNIT
        weight = hits + 0.5 * wrong + 0.5 * missed
        with np.errstate(invalid="ignore", divide="ignore"):
            quality = np.where(weight > 0, overlap / weight, np.nan)
            recognition = np.where(weight > 0, hits / weight, np.nan)
            segmentation = np.where(weight > 0, np.where(hits > 0, overlap / hits, 0.0), np.nan)
        rows = np.stack([quality, segmentation, recognition], axis=1)  # [C, 3]
        countable = np.array([label in set(things) for label in range(len(rows))])
        everything = np.ones(len(rows), dtype=bool)
        return PanopticScores(
            every=_group(rows, everything), things=_group(rows, countable), stuff=_group(rows, ~countable),
            class_pq=quality.tolist(), class_sq=segmentation.tolist(), class_rq=recognition.tolist(),
            class_counts=self.table[:, :3].tolist(),
        )  # fmt: skip


@dataclass(frozen=True)
class Quality:
    """Means over the classes of a group: panoptic, segmentation and recognition quality, and how many classes count."""

    pq: float
    sq: float
    rq: float
    classes: int


@dataclass(frozen=True)
class PanopticScores:
    """Scores in [0, 1]; NaN where nothing was measured.

    Attributes:
        every, things, stuff: means over all, countable and other classes.
        class_pq, class_sq, class_rq: by class.
        class_counts: true positives, false positives and false negatives by class.
    """

    every: Quality
    things: Quality
    stuff: Quality
    class_pq: list[float]
    class_sq: list[float]
    class_rq: list[float]
    class_counts: list[list[int]]

    def summary(self) -> dict[str, float]:
        """The scores that a line shows."""
        found = {"PQ": self.every.pq, "SQ": self.every.sq, "RQ": self.every.rq}
        return {**found, "PQ things": self.things.pq, "PQ stuff": self.stuff.pq}


def _group(rows: np.ndarray, chosen: np.ndarray) -> Quality:
    seen = rows[chosen & ~np.isnan(rows[:, 0])]
    if not len(seen):
        return Quality(float("nan"), float("nan"), float("nan"), 0)
    pq, sq, rq = seen.mean(0).tolist()
    return Quality(pq, sq, rq, len(seen))
