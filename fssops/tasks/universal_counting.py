"""One test image at a time: its truth and its result into the counts that scores are formed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from fssops.data.source import ImageSource
from fssops.data.universal.dataset import EvaluationDataset, UniversalItem, check_size
from fssops.evaluation.panoptic import UNIT, TrueSegment
from fssops.evaluation.universal import UniversalCounts
from fssops.structures import SegmentationResult
from fssops.truth import Truth


@dataclass
class TestItem:
    """An image as the model sees it, its number in the split, and its truth."""

    __test__ = False  # not a test, whatever pytest makes of the name

    number: int
    seen: UniversalItem
    truth: Truth


class TestItems(Dataset[TestItem]):
    """Test images by number, with their truth.

    Args:
        source: of the evaluation split.
        numbers: positions in ``source.names``.
        short_side: of the resized image; 0 keeps its size.
        longest: limit for the other side.
    """

    __test__ = False

    def __init__(self, source: ImageSource, numbers: Sequence[int], short_side: int, longest: int) -> None:
        self.source, self.numbers = source, list(numbers)
        self.images = EvaluationDataset(source, short_side, longest)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> TestItem:
        if not 0 <= place < len(self.numbers):
            raise IndexError(place)
        number = self.numbers[place]
        seen, truth = self.images[number], self.source.truth(self.source.names[number])
        check_size(self.source, seen.name, seen.output_size, (truth.height, truth.width))
        return TestItem(number, seen, truth)


def count_image(
    counts: UniversalCounts, item: TestItem, result: SegmentationResult, things: Sequence[int], *, boundary: bool
) -> None:
    """Add one image to the counts.

    Args:
        counts: of this process.
        item: the image and its truth.
        result: with every task that is counted.
        things: indices of the countable classes.
        boundary: count boundaries of classes too.
    """
    quality = 0.0
    if counts.semantic is not None and result.semantic is not None:
        labels = result.semantic.label_map.cpu().numpy()
        table = counts.semantic.add(labels, item.truth.semantic(), boundary=boundary)
        quality = _mean_iou(table)
    if counts.instance is not None and result.instance is not None:
        found = result.instance
        masks = found.masks.cpu().numpy()
        detections = list(zip(found.labels.tolist(), found.scores.tolist(), masks, strict=True))
        height, width = item.truth.height, item.truth.width
        objects = [(o.label, o.mask(height, width), o.crowd, o.area) for o in item.truth.instances(things)]
        counts.instance.add(item.number, (height, width), detections, objects)
        quality = _instance_quality(detections, [(label, mask) for label, mask, crowd, _ in objects if not crowd])
    if counts.panoptic is not None and result.panoptic is not None and item.truth.segment_ids is not None:
        labels_of = {segment.id: segment.label for segment in result.panoptic.segments}
        segments = [TrueSegment(s.id, s.label, s.crowd) for s in item.truth.segments]
        ids = result.panoptic.segment_ids.cpu().numpy()
        table = counts.panoptic.add(ids, labels_of, item.truth.segment_ids, segments)
        hits, wrong, missed, overlap = table.sum(0).tolist()
        quality = overlap / UNIT / max(hits + 0.5 * wrong + 0.5 * missed, 1e-9)
    counts.quality[item.number] = round(quality, 6)


def _mean_iou(table: np.ndarray) -> float:
    """Mean IoU of one image over the classes that its truth shows."""
    hits, truth = np.diagonal(table), table.sum(1)
    union = truth + table[:, : len(table)].sum(0) - hits
    seen = truth > 0
    return float((hits[seen] / union[seen]).mean()) if seen.any() else 0.0


def _instance_quality(
    detections: Sequence[tuple[int, float, np.ndarray]], objects: Sequence[tuple[int, np.ndarray]]
) -> float:
    """Mean over objects of the best IoU with a detection of their class, weighted by its score.

    Every fourth row and column is enough to put images in order for pictures.
    """
    if not detections or not objects:
        return 0.0
    found = np.stack([mask[::4, ::4].ravel() for _, _, mask in detections]).astype(np.float32)
    known = np.stack([mask[::4, ::4].ravel() for _, mask in objects]).astype(np.float32)
    shared = known @ found.T
    union = known.sum(1)[:, None] + found.sum(1) - shared
    same = np.array([label for label, _ in objects])[:, None] == np.array([label for label, _, _ in detections])
    scores = np.array([score for _, score, _ in detections])
    return float((same * scores * shared / np.maximum(union, 1.0)).max(1).mean())
