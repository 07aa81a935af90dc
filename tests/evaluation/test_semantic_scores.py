"""IoUs and accuracies of label maps by hand, and boundaries against their published erosion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fssops.evaluation.semantic import (
    SemanticCounts,
    boundary_of,
    boundary_width,
    most_confused,
)
from fssops.evaluation.universal import UniversalCounts, score
from fssops.evaluation.universal_pictures import (
    Region,
    confusion_picture,
    overlay_regions,
    palette_image,
    semantic_regions,
)


def test_scores_by_hand() -> None:
    truth = np.array([[0, 0, 0, 1], [1, 1, 255, 255]])
    prediction = np.array([[0, 0, 1, 1], [1, -1, 0, 2]])
    counts = SemanticCounts(3)
    counts.add(prediction, truth)
    found = counts.scores()
    # class 0: 2 hits of 3, nothing false; class 1: 2 hits of 3, one false; class 2 is not in the truth.
    assert found.class_iou[:2] == pytest.approx([2 / 3, 2 / 4])
    assert np.isnan(found.class_iou[2])
    assert found.miou == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.fwiou == pytest.approx(0.5 * 2 / 3 + 0.5 * 1 / 2)
    assert found.pixel_accuracy == pytest.approx(4 / 6)
    assert found.mean_accuracy == pytest.approx(2 / 3)


def test_ignored_pixels_count_nowhere() -> None:
    truth, prediction = np.full((4, 4), 255), np.zeros((4, 4), dtype=int)
    counts = SemanticCounts(2)
    counts.add(prediction, truth, boundary=True)
    assert counts.flat().sum() == 0
    assert np.isnan(counts.scores().miou)


def test_sums_over_processes_equal_one_process() -> None:
    rng = np.random.default_rng(0)
    maps = [
        (rng.integers(-1, 4, (9, 8)), np.where(rng.random((9, 8)) < 0.1, 255, rng.integers(0, 4, (9, 8))))
        for _ in range(6)
    ]
    whole = UniversalCounts.start(["semantic"], 4)
    parts = [UniversalCounts.start(["semantic"], 4) for _ in range(2)]
    for number, (prediction, truth) in enumerate(maps):
        for counts in (whole, parts[number % 2]):
            assert counts.semantic is not None
            counts.semantic.add(prediction, truth, boundary=True)
            counts.quality[number] = 0.5
    states = [part.state() for part in parts]
    parts[0].merge(states)
    assert whole.semantic is not None
    assert parts[0].semantic is not None
    assert np.array_equal(parts[0].semantic.flat(), whole.semantic.flat())
    assert sorted(parts[0].quality) == list(range(6))


def test_boundary_is_what_erosion_takes_away() -> None:
    from scipy import ndimage

    mask = np.random.default_rng(0).random((40, 50)) < 0.5
    mask = ndimage.binary_opening(mask, iterations=1) | (np.add.outer(np.arange(40), np.arange(50)) < 45)
    for width in (1, 3):
        eroded = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=width)  # outside the image counts as 0
        assert np.array_equal(boundary_of(mask, width), mask & ~eroded)
    assert boundary_width(480, 640) == 16
    assert boundary_width(4, 4) == 1


def test_boundary_iou_of_equal_maps_is_one_and_falls_with_a_shift() -> None:
    truth = np.zeros((60, 80), dtype=np.uint8)
    truth[20:40, 20:60] = 1
    counts, moved = SemanticCounts(2), SemanticCounts(2)
    counts.add(truth, truth, boundary=True)
    moved.add(np.roll(truth, 2, axis=1), truth, boundary=True)
    assert counts.scores().boundary_iou == 1.0
    assert moved.scores().boundary_iou < moved.scores().miou < 1.0


def test_wrong_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="must have the truth's size"):
        SemanticCounts(2).add(np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"truth must hold 0..1 and 255, got 0..7"):
        SemanticCounts(2).add(np.zeros((1, 2)), np.array([[0, 7]]))


def test_result_states_its_setting_and_its_classes() -> None:
    counts = UniversalCounts.start(["semantic"], 2)
    assert counts.semantic is not None
    counts.semantic.add(np.array([[0, 1]]), np.array([[0, 0]]))
    counts.quality[4] = 0.5
    result = score(
        counts,
        [1],
        boundary=False,
        model="m",
        dataset="d val",
        images=1,
        of=3,
        test_size="short side 5",
        classes=["a", "b"],
    )
    assert result.line() == (
        "mIoU 50.00  fwIoU 50.00  pixel accuracy 50.00  [m; d val, 1 of 3 images, short side 5; "
        "mIoU of detectron2 (one confusion matrix, classes that the truth shows)]"
    )
    assert result.class_table()[1:] == [["0", "a", "stuff", "50.00", "50.00"], ["1", "b", "thing", "-", "-"]]
    plain = result.as_json()
    assert plain["semantic"]["class_iou"] == [0.5, None]
    assert plain["most_confused"] == [{"truth": "a", "predicted": "b", "share": 0.5, "pixels": 1}]
    assert result.main == ("mIoU", 0.5)


def test_most_confused_pairs_come_first() -> None:
    table = np.array([[8, 2, 0, 0], [5, 5, 0, 0], [0, 0, 3, 0]])
    found = most_confused(table, ["a", "b", "c"], 2)
    assert [(row["truth"], row["predicted"], row["share"]) for row in found] == [("b", "a", 0.5), ("a", "b", 0.2)]


@pytest.mark.parametrize(("left", "width"), [(601, 9), (0, 2048)])
def test_a_caption_stands_on_its_region_however_thin(left: int, width: int) -> None:
    image = np.full((1024, 2048, 3), 100, dtype=np.uint8)
    mask = np.zeros(image.shape[:2], dtype=bool)
    mask[200:900, left : left + width] = True  # 9 pixels are less than the steps in which places are looked for
    plain, written = (overlay_regions(image, [Region(mask, (255, 0, 0), name)]) for name in ("", "pole"))
    rows, columns = np.nonzero((plain != written).any(-1))
    assert mask[int(rows.mean()), int(columns.mean())]


def test_pictures_show_classes(tmp_path: Path) -> None:
    labels = np.zeros((60, 60), dtype=np.uint8)
    labels[:, 30:] = 1
    labels[:5] = 255
    image = np.full((60, 60, 3), 100, dtype=np.uint8)
    colours = [(255, 0, 0), (0, 0, 255)]
    regions = semantic_regions(labels, ["left", "right"], colours)
    assert [region.caption for region in regions] == ["left", "right"]
    drawn = overlay_regions(image, [Region(r.mask, r.colour) for r in regions])
    assert drawn[50, 10].tolist() == [178, 50, 50]
    assert np.array_equal(drawn[2, 2], image[2, 2])
    assert not np.array_equal(overlay_regions(image, regions), drawn)
    stored = palette_image(labels, colours)
    assert np.array_equal(np.asarray(stored), labels)
    assert stored.convert("RGB").getpixel((50, 50)) == (0, 0, 255)
    confusion_picture(np.array([[3, 1, 0], [0, 4, 0]]), ["left", "right"], tmp_path / "c.png", "title")
    assert (tmp_path / "c.png").stat().st_size > 5000
