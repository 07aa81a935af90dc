"""Results of predictors: what every kind can be made into, with values that can be seen by eye."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fssops.evaluation.regions import object_regions
from fssops.fixed_class_predictors import universal_segmentation
from fssops.pictures import overlay
from fssops.run_lengths import decode, draw, encode
from fssops.segmentations import Segmentation, VideoSegmentation
from fssops.structures import InstanceResult, PanopticResult, PanopticSegment, SegmentationResult, SemanticResult
from fssops.truth import Classes

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CLASSES = Classes.from_names(["sky", "cup", "cat"], things=[1, 2], ids=[3, 7, 9])
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((40, 60), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def found(**changes: Any) -> Segmentation:
    """Two cups and a cat, the cat doubtful."""
    values: dict[str, Any] = {
        "image": IMAGE,
        "categories": CLASSES,
        "labels": np.array([1, 1, 2]),
        "masks": np.stack([box(2, 3, 12, 8), box(20, 10, 30, 12), box(40, 30, 60, 40)]),
        "scores": np.array([0.9, 0.5, 0.1], dtype=np.float32),
        "origin": "photos/a.jpg",
    }
    return Segmentation(**{**values, **changes})


def test_names_and_boxes_of_regions() -> None:
    result = found()
    assert result.names == ["cup", "cup", "cat"]
    assert result.classes == ("sky", "cup", "cat")
    assert result.boxes.tolist() == [[2, 3, 12, 8], [20, 10, 30, 12], [40, 30, 60, 40]]
    assert len(result) == 3


def test_counts_are_of_regions_that_are_shown() -> None:
    rows = [(one.name, one.count, one.pixels, one.mean_score) for one in found().counts()]
    assert rows == [("cup", 2, 70, pytest.approx(0.7)), ("cat", 1, 200, pytest.approx(0.1))]
    assert [(one.name, one.count, one.pixels) for one in found().counts(0.6)] == [("cup", 1, 50)]
    assert [one.mean_score for one in found(scores=None).counts(0.6)] == [None, None]


def test_the_overlay_leaves_out_what_is_below_the_score() -> None:
    result = found()
    drawn = object_regions(list(result.masks), [1, 1, 2], CLASSES.names, [0.9, 0.5, 0.1], least_score=0.3)
    assert len(drawn) == 2
    assert np.array_equal(np.asarray(result.overlay()), overlay(IMAGE, drawn))
    assert np.array_equal(np.asarray(result.overlay(0.05))[36, 50] != IMAGE[36, 50], [True] * 3)


def test_coco_rows_have_ids_of_the_data_set_and_polygons_draw_the_masks() -> None:
    result = found()
    rows = result.to_coco(5)
    assert [(row["id"], row["image_id"], row["category_id"], row["bbox"], row["area"]) for row in rows] == [
        (1, 5, 7, [2, 3, 10, 5], 50),
        (2, 5, 7, [20, 10, 10, 2], 20),
        (3, 5, 9, [40, 30, 20, 10], 200),
    ]
    assert [row["score"] for row in rows] == pytest.approx([0.9, 0.5, 0.1])
    assert all(np.array_equal(decode(row["segmentation"]), m) for row, m in zip(rows, result.masks, strict=True))
    flat = [row["segmentation"] for row in result.to_coco(as_polygons=True)]
    assert all(np.array_equal(draw(parts, 60, 40), m) for parts, m in zip(flat, result.masks, strict=True))
    assert [np.array_equal(draw(p, 60, 40), m) for p, m in zip(result.to_polygons(), result.masks, strict=True)] == [
        True,
        True,
        True,
    ]
    assert "score" not in found(scores=None).to_coco()[0]


def test_saving_writes_what_the_ending_says(tmp_path: Path) -> None:
    result = found()
    assert result.save(tmp_path / "new" / "a.png") == tmp_path / "new" / "a.png"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), np.asarray(result.overlay()))
    body = json.loads(result.save(tmp_path / "a.json").read_text())
    assert body["images"] == [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}]
    assert body["annotations"] == result.to_coco()
    assert [row["id"] for row in body["categories"]] == [3, 7, 9]
    with np.load(result.save(tmp_path / "a.npz")) as held:
        assert set(held) == {"labels", "masks", "scores", "boxes", "classes"}
        assert np.array_equal(held["masks"], result.masks)
        assert held["classes"].tolist() == ["sky", "cup", "cat"]
    with pytest.raises(ValueError, match=r"save: path must end in one of .*\.npz.*, got .*a\.txt"):
        result.save(tmp_path / "a.txt")


class _Detections:
    """A stand-in for supervision's, which is an extra."""

    def __init__(self, **values: Any) -> None:
        self.values = values


def test_detections_are_supervisions_or_a_line_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"supervision must be installed \(fssops\[detections\]\)"):
        found().to_detections()
    package = types.ModuleType("supervision")
    package.Detections = _Detections  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", package)
    values = found(masks=np.stack([box(2, 3, 12, 8), box(0, 0, 0, 0), box(40, 30, 60, 40)]), tracked=True)
    given: dict[str, Any] = values.to_detections().values  # type: ignore[attr-defined]
    assert given["xyxy"].tolist() == [[2, 3, 12, 8], [40, 30, 60, 40]]
    assert given["class_id"].tolist() == [1, 2]
    assert given["tracker_id"].tolist() == [0, 2]
    assert given["confidence"].tolist() == pytest.approx([0.9, 0.1])
    assert given["data"]["class_name"].tolist() == ["cup", "cat"]
    assert given["mask"].shape == (2, 40, 60)
    assert found().to_detections().values["tracker_id"] is None  # type: ignore[attr-defined]


def test_a_model_of_all_tasks_gives_each_and_shows_the_one_that_says_most() -> None:
    import torch

    scores = torch.zeros(3, 40, 60)
    scores[2, 10:20, 5:25] = 1
    ids = torch.zeros(40, 60, dtype=torch.int32)
    ids[:5], ids[20:30, :7] = 4, 9
    segments = [PanopticSegment(4, 0, False, 0.8), PanopticSegment(9, 2, True, 0.6)]
    masks = torch.zeros(2, 40, 60, dtype=torch.bool)
    masks[1, 1:3, 1:9] = True
    instances = InstanceResult(torch.tensor([0.9, 0.4]), torch.tensor([2, 1]), masks)
    both = SegmentationResult(semantic=SemanticResult(scores), instance=instances)
    result = universal_segmentation(IMAGE, replace(both, panoptic=PanopticResult(ids, segments)), CLASSES, "a")
    assert result.semantic is not None
    assert result.semantic.names == ["sky", "cat"]
    assert result.semantic.masks.sum(axis=(1, 2)).tolist() == [2200, 200]
    assert result.semantic.label_map[15, 10] == 2
    assert result.instance is not None
    assert (result.instance.names, result.instance.scores.tolist()) == (["cup"], pytest.approx([0.4]))  # type: ignore[union-attr]
    assert result.panoptic is not None
    assert result.names == result.panoptic.names == ["sky", "cat"]
    assert result.masks.sum(axis=(1, 2)).tolist() == [300, 70]
    assert [region.colour for region in result.regions()] == [CLASSES.colours[0], (29, 120, 216)]
    assert {"label_map", "segment_ids", "masks", "boxes"} < set(result.arrays())
    assert universal_segmentation(IMAGE, both, CLASSES, "a").names == ["cup"]
    nothing = InstanceResult(torch.zeros(0), torch.zeros(0, dtype=torch.long), masks[:0])
    empty = universal_segmentation(IMAGE, replace(both, instance=nothing), CLASSES, "a")
    assert (empty.names, empty.to_coco(), empty.boxes.shape) == ([], [], (0, 4))
    assert empty.main is empty.instance


def video() -> VideoSegmentation:
    """A cup in all of three frames, the second of which cannot be read, and a cat in the last."""
    cup, cat = [encode(box(n, 3, n + 10, 8)) for n in range(3)], encode(box(40, 30, 60, 40))
    return VideoSegmentation(
        categories=CLASSES,
        labels=np.array([1, 2]),
        scores=np.array([0.9, 0.4], dtype=np.float32),
        tracks=[[cup[0], None, cup[2]], [None, None, cat]],
        size=(40, 60),
        length=3,
        frames=lambda: iter([(0, IMAGE), (2, IMAGE)]),
        unreadable={1: "broken"},
        origin="clip",
    )


def test_a_video_is_its_objects_and_its_frames(tmp_path: Path) -> None:
    result = video()
    assert result.names == ["cup", "cat"]
    assert result.masks.sum(axis=(2, 3)).tolist() == [[50, 0, 50], [0, 0, 200]]
    frames = list(result)
    assert [(one.frame, one.origin, one.names) for one in frames] == [
        (0, "clip frame 0", ["cup", "cat"]),
        (2, "clip frame 2", ["cup", "cat"]),
    ]
    assert frames[1].boxes.tolist() == [[2, 3, 12, 8], [40, 30, 60, 40]]
    assert [(one.name, one.count, one.pixels) for one in result.counts()] == [("cup", 1, 100), ("cat", 1, 200)]
    assert [[len(parts) for parts in track] for track in result.to_polygons()] == [[1, 0, 1], [0, 0, 1]]
    rows = result.to_coco(4)
    assert [(row["video_id"], row["category_id"], row["score"]) for row in rows] == [
        (4, 7, pytest.approx(0.9)),
        (4, 9, pytest.approx(0.4)),
    ]
    assert json.loads(result.save(tmp_path / "a.json").read_text())[0]["segmentations"][1] is None
    with Image.open(result.save(tmp_path / "a.gif", rate=5)) as animation:
        assert animation.n_frames == 2  # type: ignore[attr-defined]
    assert [path.name for path in sorted(result.save(tmp_path / "frames").iterdir())] == ["000000.jpg", "000002.jpg"]
    with pytest.raises(ValueError, match="save: path must end in one of"):
        result.save(tmp_path / "a.png")
