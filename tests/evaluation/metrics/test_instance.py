"""Mask AP against pycocotools run on the annotation file itself, and boundary AP by what it must do."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fssops.data.layouts import open_data
from fssops.evaluation.metrics.instance import InstancePrecision
from fssops.evaluation.metrics.metric import Coverage
from fssops.evaluation.submissions import coco_results
from fssops.run_lengths import decode, encode
from fssops.structures import InstanceResult, SegmentationResult
from fssops.truth import ObjectTruth, Segment, Truth

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def square(y: int, x: int, side: int, size: int = 40) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


def test_real_annotations_score_as_pycocotools_says(data_root: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    source = open_data("coco_instances", data_root / "coco_mini", split="val2017", truth="instance")
    rng, records, rows, ids = np.random.default_rng(0), InstancePrecision(80), [], []
    categories = [category.id for category in source.classes.categories]
    for number, name in enumerate(source.names[:25]):
        truth = source.truth(name)
        objects = [(o.label, o.mask(truth.height, truth.width), o.crowd, o.area) for o in truth.objects or ()]
        detections = []
        for label, mask, _, _ in objects:
            if rng.random() < 0.85:
                label = label if rng.random() < 0.9 else int(rng.integers(80))
                detections.append((label, float(rng.random()), np.roll(mask, int(rng.integers(12)), axis=1)))
        records.record(number, (truth.height, truth.width), detections, objects)
        identifier = source.image_id(name)
        ids.append(identifier)
        if detections:
            labels, scores, masks = zip(*detections, strict=True)
            rows += coco_results(identifier, labels, scores, np.stack(masks), categories)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(data_root / "coco_mini" / "annotations" / "instances_val2017.json"))
        evaluator = COCOeval(reference, reference.loadRes(json.loads(json.dumps(rows))), "segm")
        evaluator.params.imgIds = ids
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    found = records.scores()
    mine = [found.ap, found.ap50, found.ap75, found.ap_small, found.ap_medium, found.ap_large]
    assert 0.1 < found.ap < 0.9
    assert mine == pytest.approx(evaluator.stats[:6].tolist(), abs=1e-6)


def rectangle(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    (top, left), (height, width) = rng.integers(0, np.subtract(size, 1)), rng.integers(2, size)
    mask[top : top + height, left : left + width] = True
    return mask


@pytest.mark.parametrize("limit", [1, 3, 20, 100])
def test_drawn_cases_score_as_pycocotools_says(limit: int) -> None:
    """Crowds, annotated areas of all sizes, equal scores, empty detections, and limits below COCO's."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng, records, classes = np.random.default_rng(limit), InstancePrecision(3, limit), range(3)
    images, annotations, rows = [], [], []
    for image in range(8):
        size = (int(rng.integers(40, 160)), int(rng.integers(40, 160)))
        images.append({"id": image, "height": size[0], "width": size[1]})
        truth: list[tuple[int, np.ndarray, bool, float | None]] = []
        for _ in range(int(rng.integers(0, 6))):
            area = None if rng.random() < 0.5 else float(rng.integers(1, 20000))
            truth.append((int(rng.integers(3)), rectangle(rng, size), bool(rng.random() < 0.25), area))
        detections = []
        for label, mask, _, _ in truth:
            for _ in range(int(rng.integers(0, 4))):
                label = label if rng.random() < 0.8 else int(rng.integers(3))
                score = round(float(rng.random()), int(rng.choice([1, 6])))
                detections.append((label, score, np.roll(mask, int(rng.integers(6)), axis=0)))
        detections.append((int(rng.integers(3)), 0.9, np.zeros(size, dtype=bool)))
        records.record(image, size, detections, truth)
        for label, mask, crowd, area in truth:
            row = {"id": len(annotations) + 1, "image_id": image, "category_id": label, "segmentation": encode(mask)}
            annotations.append({**row, "area": mask.sum() if area is None else area, "iscrowd": int(crowd), "bbox": []})
        rows += coco_results(image, *map(list, zip(*detections, strict=True)), category_ids=list(classes))
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        categories = [{"id": label} for label in classes]
        reference.dataset = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        reference.createIndex()
        evaluator = COCOeval(reference, reference.loadRes(rows), "segm")
        evaluator.params.maxDets = [limit]
        evaluator.evaluate()
        evaluator.accumulate()
    precision, found = evaluator.eval["precision"][..., 0], records.scores()  # [thresholds, recalls, classes, areas]

    def mean(values: np.ndarray) -> float:
        return float(values[values > -1].mean())

    ranges = [mean(precision[..., area]) for area in range(4)]
    assert [found.ap, found.ap_small, found.ap_medium, found.ap_large] == pytest.approx(ranges, abs=1e-12)
    at = [mean(precision[threshold, ..., 0]) for threshold in (0, 5)]
    assert [found.ap50, found.ap75] == pytest.approx(at, abs=1e-12)
    assert found.class_ap == pytest.approx([mean(precision[:, :, label, 0]) for label in classes], abs=1e-12)
    assert 0 < found.ap < 0.9


def test_records_of_several_processes_join_to_the_same_scores() -> None:
    rng, whole, parts = np.random.default_rng(1), InstancePrecision(3), [InstancePrecision(3), InstancePrecision(3)]
    for image in range(12):
        truth = [(int(rng.integers(3)), square(*rng.integers(0, 20, 2), 12), False, None) for _ in range(3)]
        detections = [(label, float(rng.random()), np.roll(mask, 2, 0)) for label, mask, _, _ in truth]
        for records in (whole, parts[image % 2]):
            records.record(image, (40, 40), detections, truth)
    parts[1].merge([part.state() for part in reversed(parts)])
    joined, alone = parts[1].scores(), whole.scores()
    assert joined.class_ap == alone.class_ap
    assert joined.summary() == alone.summary()
    assert 0 < alone.ap < 1


def test_perfect_detections_score_one_and_none_score_zero() -> None:
    records = InstancePrecision(2, boundary=True)
    records.record(0, (40, 40), [(0, 0.9, square(5, 5, 20))], [(0, square(5, 5, 20), False, None)])
    found = records.scores()
    assert [found.ap, found.boundary_ap] == pytest.approx([1.0, 1.0])
    assert np.isnan(found.ap_medium)
    assert np.isnan(found.class_ap[1])
    records.record(1, (40, 40), [], [(1, square(5, 5, 20), False, None)])
    assert records.scores().class_ap == pytest.approx([1.0, 0.0])
    nothing = InstancePrecision(1)
    nothing.record(0, (40, 40), [], [(0, square(1, 1, 5), False, None)])
    assert nothing.scores().ap == 0.0


def test_boundary_precision_punishes_a_coarse_outline_that_mask_precision_forgives() -> None:
    truth = square(40, 40, 120, 200)
    coarse = square(46, 46, 108, 200)
    records = InstancePrecision(1, boundary=True)
    records.record(0, (200, 200), [(0, 0.9, coarse)], [(0, truth, False, None)])
    found = records.scores()
    assert found.ap == pytest.approx(0.7)  # IoU 0.81: right at thresholds 0.5 to 0.8
    assert found.boundary_ap == 0.0


def test_crowds_are_no_misses_and_excuse_detections() -> None:
    records = InstancePrecision(1)
    crowd = (0, square(0, 20, 20), True, None)
    records.record(
        0,
        (40, 40),
        [(0, 0.9, square(0, 0, 15)), (0, 0.99, square(2, 22, 10))],
        [(0, square(0, 0, 15), False, None), crowd],
    )
    assert records.scores().ap == pytest.approx(1.0)


def test_run_lengths_come_back() -> None:
    mask = np.random.default_rng(0).random((13, 7)) < 0.4
    assert np.array_equal(decode(json.loads(json.dumps(encode(mask)))), mask)


def test_wrong_use_is_told() -> None:
    records = InstancePrecision(1)
    records.record(3, (40, 40), [], [])
    with pytest.raises(ValueError, match="image must be new, got 3 again"):
        records.record(3, (40, 40), [], [])
    with pytest.raises(ValueError, match=r"masks must be \[40, 40\], got \[20, 20\]"):
        records.record(4, (40, 40), [(0, 0.5, square(0, 0, 3, 20))], [])


def test_an_image_goes_as_well_as_the_best_scored_overlap_with_each_object() -> None:
    masks = [square(0, 0, 20), square(20, 20, 20), square(0, 20, 20)]
    half = masks[0] & (np.arange(40) < 10)
    truth = Truth(
        40,
        40,
        objects=[ObjectTruth(1, 0, masks[0]), ObjectTruth(2, 1, masks[1]), ObjectTruth(3, 1, masks[2], crowd=True)],
    )
    found = InstanceResult(
        torch.tensor([0.5, 0.8, 0.9]), torch.tensor([0, 0, 0]), torch.from_numpy(np.stack([masks[0], half, masks[1]]))
    )
    metric = InstancePrecision(2)
    # Object 1: 0.5 x 1 against 0.8 x 3 of 5 columns that are looked at; object 2 is found under another class.
    assert metric.add(4, SegmentationResult(instance=found), truth) == pytest.approx((0.5 + 0) / 2)
    assert metric.records[4]["truth"][2][2] is True
    nothing = InstanceResult(torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0, 40, 40, dtype=torch.bool))
    assert metric.add(5, SegmentationResult(instance=nothing), truth) == 0.0
    found.scores[1] = 0.9
    assert metric.add(6, SegmentationResult(instance=found), truth) == pytest.approx(0.9 * 15 / 25 / 2)


def test_things_of_a_panoptic_map_are_the_objects() -> None:
    ids = np.array([[1, 2]], dtype=np.int32)
    nothing = InstanceResult(torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0, 1, 2, dtype=torch.bool))
    truth = Truth(1, 2, segment_ids=ids, segments=[Segment(1, 0), Segment(2, 1)])
    metric = InstancePrecision(2, things=[1])
    metric.add(0, SegmentationResult(instance=nothing), truth)
    assert [(label, area) for label, _, _, area in metric.records[0]["truth"]] == [(1, 1.0)]


def test_scores_without_any_detection_are_zero_where_there_is_an_object() -> None:
    metric = InstancePrecision(3, boundary=True)
    metric.record(0, (40, 40), [], [(1, square(0, 0, 5), False, None)])
    found = metric.scores()
    assert found.class_ap[1] == found.boundary_ap == 0.0
    assert np.isnan([found.class_ap[0], found.class_ap[2]]).all()
    assert found.coverage() == dict.fromkeys(("AP", "AP50", "AP75", "boundary AP"), Coverage(1, 3))
    assert list(found.columns()) == ["AP", "boundary AP"]
