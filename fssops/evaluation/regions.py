"""Results and truths of images and videos as regions to draw, each object in a colour of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fssops.evaluation.metrics.video_instance import Masks
from fssops.pictures import CROWD, Colour, Region, object_colour
from fssops.run_lengths import decode
from fssops.structures import SegmentationResult
from fssops.truth import Classes, Truth

SHOWN_SCORE = 0.3
"""Objects below this score are left out of pictures."""


def semantic_regions(labels: np.ndarray, names: Sequence[str], colours: Sequence[Colour]) -> list[Region]:
    """One region a class of a label map [H, W]; 255 and values beyond the classes are left out."""
    present = [label for label in np.unique(labels).tolist() if 0 <= label < len(names)]
    return [Region(labels == label, colours[label], names[label]) for label in present]


def shown_objects(scores: Sequence[float], least_score: float = SHOWN_SCORE, at_least: int = 0) -> list[int]:
    """Positions of the objects that are drawn: those of ``least_score``, and the first ``at_least`` in any case."""
    return [number for number, score in enumerate(scores) if score >= least_score or number < at_least]


def object_regions(
    masks: Sequence[np.ndarray | None],
    labels: Sequence[int],
    names: Sequence[str],
    scores: Sequence[float] | None = None,
    *,
    least_score: float = SHOWN_SCORE,
    at_least: int = 0,
) -> list[Region]:
    """Regions of the objects of an image or of a frame, the first on top.

    Args:
        masks: bool [H, W] each; None or empty where the object is not in sight. Its place decides its colour.
        labels: class indices.
        names: of the classes.
        scores: in [0, 1], for captions; None for the truth.
        least_score, at_least: which are drawn, see :func:`shown_objects`.
    """
    shown = range(len(masks)) if scores is None else shown_objects(scores, least_score, at_least)
    regions = []
    for number in reversed(shown):
        mask, score = masks[number], "" if scores is None else f" {100 * scores[number]:.0f}"
        if mask is not None and mask.any():
            regions.append(Region(mask, object_colour(number), f"{names[labels[number]]}{score}"))
    return regions


def frame_regions(
    frame: int, tracks: Sequence[Masks], labels: Sequence[int], names: Sequence[str], scores: Sequence[float] | None,
    *, least_score: float = SHOWN_SCORE, at_least: int = 0,
) -> list[Region]:  # fmt: skip
    """As :func:`object_regions`, of one frame of a video whose objects are run lengths, one a frame."""
    shown = range(len(tracks)) if scores is None else shown_objects(scores, least_score, at_least)
    masks: list[np.ndarray | None] = [None] * len(tracks)
    for number in shown:
        run = tracks[number][frame]
        masks[number] = None if run is None else decode(run)
    return object_regions(masks, labels, names, scores, least_score=least_score, at_least=at_least)


def result_regions(
    result: SegmentationResult, task: str, classes: Classes, least_score: float = SHOWN_SCORE, at_least: int = 0
) -> list[Region]:
    """Regions of a result.

    Args:
        result: of one image.
        task: which of its parts.
        classes: for names and colours.
        least_score, at_least: which instances are drawn, see :func:`shown_objects`.
    """
    names, colours = classes.names, classes.colours
    if task == "semantic":
        assert result.semantic is not None
        return semantic_regions(result.semantic.label_map.cpu().numpy(), names, colours)
    if task == "panoptic":
        assert result.panoptic is not None
        ids = result.panoptic.segment_ids.cpu().numpy()
        segments = [(ids == s.id, s.label, s.is_thing, False) for s in result.panoptic.segments]
        return segment_regions(segments, names, colours)
    instances = result.instance
    assert instances is not None
    rows = list(instances.masks.cpu().numpy()), instances.labels.tolist()
    return object_regions(*rows, names, instances.scores.tolist(), least_score=least_score, at_least=at_least)


def truth_regions(truth: Truth, task: str, classes: Classes) -> list[Region]:
    """Regions of the truth; crowds in grey."""
    names, colours = classes.names, classes.colours
    if task == "semantic":
        return semantic_regions(truth.semantic(), names, colours)
    if task == "panoptic" and truth.segment_ids is not None:
        things = set(classes.things)
        segments = [(truth.segment_ids == s.id, s.label, s.label in things, s.crowd) for s in truth.segments]
        return segment_regions(segments, names, colours)
    objects = [(o.mask(truth.height, truth.width), o.label, True, o.crowd) for o in truth.instances(classes.things)]
    return segment_regions(sorted(objects, key=lambda entry: -entry[0].sum()), names, colours)


def segment_regions(
    segments: Sequence[tuple[np.ndarray, int, bool, bool]], names: Sequence[str], colours: Sequence[Colour]
) -> list[Region]:
    """Regions of (mask, class, thing or not, crowd or not): things in colours of their own, stuff in its class's."""
    regions: list[Region] = []
    for mask, label, thing, crowd in segments:
        colour = CROWD if crowd else object_colour(len(regions)) if thing else colours[label]
        regions.append(Region(mask, colour, names[label]))
    return regions
