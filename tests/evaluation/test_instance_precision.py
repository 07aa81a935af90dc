"""Mask AP against pycocotools run on the annotation file itself, and boundary AP by what it must do."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

from fssops.evaluation.instance import InstanceRecords, coco_results, decode, encode

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def square(y: int, x: int, side: int, size: int = 40) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


def test_real_annotations_score_as_pycocotools_says(data_root: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from fssops.data import universal

    source = universal.open_source("coco_instances", data_root / "coco_mini", split="val2017")
    rng, records, rows, ids = np.random.default_rng(0), InstanceRecords(80), [], []
    categories = [category.id for category in source.metadata.categories]
    for number, name in enumerate(source.names[:25]):
        truth = source.truth(name)
        objects = [(o.label, o.mask(truth.height, truth.width), o.crowd, o.area) for o in truth.objects or ()]
        detections = []
        for label, mask, _, _ in objects:
            if rng.random() < 0.85:
                label = label if rng.random() < 0.9 else int(rng.integers(80))
                detections.append((label, float(rng.random()), np.roll(mask, int(rng.integers(12)), axis=1)))
        records.add(number, (truth.height, truth.width), detections, objects)
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


def test_records_of_several_processes_join_to_the_same_scores() -> None:
    rng, whole, parts = np.random.default_rng(1), InstanceRecords(3), [InstanceRecords(3), InstanceRecords(3)]
    for image in range(12):
        truth = [(int(rng.integers(3)), square(*rng.integers(0, 20, 2), 12), False, None) for _ in range(3)]
        detections = [(label, float(rng.random()), np.roll(mask, 2, 0)) for label, mask, _, _ in truth]
        for records in (whole, parts[image % 2]):
            records.add(image, (40, 40), detections, truth)
    parts[1].merge([parts[0].images])
    joined, alone = parts[1].scores(), whole.scores()
    assert joined.class_ap == alone.class_ap
    assert joined.summary() == alone.summary()
    assert 0 < alone.ap < 1


def test_perfect_detections_score_one_and_none_score_zero() -> None:
    records = InstanceRecords(2)
    records.add(0, (40, 40), [(0, 0.9, square(5, 5, 20))], [(0, square(5, 5, 20), False, None)])
    found = records.scores(boundary=True)
    assert [found.ap, found.boundary_ap] == pytest.approx([1.0, 1.0])
    assert np.isnan(found.ap_medium)
    assert np.isnan(found.class_ap[1])
    records.add(1, (40, 40), [], [(1, square(5, 5, 20), False, None)])
    assert records.scores().class_ap == pytest.approx([1.0, 0.0])
    nothing = InstanceRecords(1)
    nothing.add(0, (40, 40), [], [(0, square(1, 1, 5), False, None)])
    assert nothing.scores().ap == 0.0


def test_boundary_precision_punishes_a_coarse_outline_that_mask_precision_forgives() -> None:
    truth = square(40, 40, 120, 200)
    coarse = square(46, 46, 108, 200)
    records = InstanceRecords(1)
    records.add(0, (200, 200), [(0, 0.9, coarse)], [(0, truth, False, None)])
    found = records.scores(boundary=True)
    assert found.ap == pytest.approx(0.7)  # IoU 0.81: right at thresholds 0.5 to 0.8
    assert found.boundary_ap == 0.0


def test_crowds_are_no_misses_and_excuse_detections() -> None:
    records = InstanceRecords(1)
    crowd = (0, square(0, 20, 20), True, None)
    records.add(
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
    records = InstanceRecords(1)
    records.add(3, (40, 40), [], [])
    with pytest.raises(ValueError, match="image must be new, got 3 again"):
        records.add(3, (40, 40), [], [])
    with pytest.raises(ValueError, match=r"masks must be \[40, 40\], got \[20, 20\]"):
        records.add(4, (40, 40), [(0, 0.5, square(0, 0, 3, 20))], [])
