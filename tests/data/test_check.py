"""``data check`` finds what would spoil training on fixed classes, and names file, rule and value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fssops.data.__main__ import main
from fssops.data.check import check_data
from fssops.data.panoptic_json import encode_ids

H, W = 20, 30


@pytest.fixture
def panoptic(tmp_path: Path) -> Path:
    """Two splits of two images each, sound."""
    rng = np.random.default_rng(0)
    for split in ("train2017", "val2017"):
        images, annotations = [], []
        for number in (1, 2):
            ids = np.where(np.arange(W) < 10 * number, 5, 1000)[None].repeat(H, axis=0)
            pixels = rng.integers(0, 256, (H, W, 3), dtype=np.uint8)
            for folder, values in ((split, pixels), (f"annotations/panoptic_{split}", encode_ids(ids))):
                (tmp_path / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(tmp_path / folder / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "height": H, "width": W})
            rows = [{"id": 5, "category_id": 1, "area": 10 * number * H}, {"id": 1000, "category_id": 2}]
            annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": rows})
        categories = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(content))
    return tmp_path


def change(root: Path, edit: Any) -> None:
    path = root / "annotations" / "panoptic_train2017.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def problems(root: Path, format: str = "coco_panoptic", **options: Any) -> list[tuple[str, str]]:
    report = check_data(format, root, **options)
    return [(finding.kind, finding.message) for finding in report.problems()]


def test_a_sound_set_has_no_problems(panoptic: Path) -> None:
    assert problems(panoptic) == []
    assert main(["check", str(panoptic)]) == 0


def test_png_with_an_unlisted_segment(panoptic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = panoptic / "annotations" / "panoptic_train2017" / "1.png"
    pixels = np.array(Image.open(path))
    pixels[0, 0] = (9, 0, 0)
    Image.fromarray(pixels).save(path)
    ((kind, message),) = problems(panoptic)
    assert kind == "panoptic_mismatch"
    assert "1.png: panoptic map must hold only ids of segments_info, got 9 (9: 1 px)" in message
    assert main(["check", str(panoptic), "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out)["counts"]["panoptic_mismatch"] == 1


def first_segment(content: Any) -> Any:
    return content["annotations"][0]["segments_info"][0]


@pytest.mark.parametrize(
    ("edit", "kind", "told"),
    [
        (lambda c: first_segment(c).update(area=3), "panoptic_mismatch", "must be that of the PNG, 200, got 3"),
        (lambda c: first_segment(c).update(category_id=3), "unknown_id", "category_id must be one of the 2"),
        (lambda c: c["images"][0].update(width=29), "wrong_size", "29 x 20, got 30 x 20"),
        (lambda c: c["images"][1].update(id=1), "duplicate_id", "image ids must be unique, got 1 twice"),
        (
            lambda c: c["annotations"][0].update(file_name="no.png"),
            "unreadable_mask",
            "no.png: panoptic map must exist",
        ),
        (
            lambda c: c["annotations"][0].update(image_id=9),
            "bad_annotation",
            "must be listed in images, got 9",
        ),
        (lambda c: c.pop("categories"), "unreadable_layout", "must hold a list 'categories'"),
        (lambda c: c["categories"][0].pop("isthing"), "unreadable_layout", "category 1 must say isthing"),
    ],
)
def test_faults_of_the_json(panoptic: Path, edit: Any, kind: str, told: str) -> None:
    change(panoptic, edit)
    found = problems(panoptic, splits=["train2017"])
    assert kind in {k for k, _ in found}
    assert any(told in message for _, message in found), found


def test_the_same_picture_in_two_splits(panoptic: Path) -> None:
    (panoptic / "val2017" / "2.png").write_bytes((panoptic / "train2017" / "1.png").read_bytes())
    ((kind, message),) = problems(panoptic)
    assert kind == "split_leakage"
    assert message == "2.png of val2017 must not be in train2017, got the same picture as 1.png"


def test_words_of_a_path_do_not_decide_the_kind_of_a_finding(panoptic: Path) -> None:
    root = panoptic.rename(panoptic.parent / "seen once, unique")
    change(root, lambda c: c.pop("categories"))
    assert [kind for kind, _ in problems(root, splits=["train2017"])] == ["unreadable_layout"]


def test_instances_that_cannot_be_drawn(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train").mkdir()
    Image.new("RGB", (W, H)).save(tmp_path / "train" / "a.png")
    row = {"image_id": 1, "category_id": 1, "iscrowd": 0}
    square = [[0, 0, 9, 0, 9, 9, 0, 9]]
    cases: list[Any] = [
        square,
        {"size": [H, W], "counts": [10, 20]},
        {"size": [W, H], "counts": [600]},
        [[100, 100, 110, 100, 110, 110]],
        [],
    ]
    rows = [{**row, "id": number, "segmentation": segmentation} for number, segmentation in enumerate(cases, start=1)]
    rows.append({**row, "id": 6, "category_id": 5, "segmentation": square})
    images = [{"id": 1, "file_name": "a.png", "height": H, "width": W}]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    found = dict(enumerate(message.split("annotation ")[1] for _, message in problems(tmp_path, "coco_instances")))
    assert list(found.values()) == [
        "2 dropped: RLE counts cover 30 pixels, the image has 600",
        "3 dropped: RLE size [30, 20] is not that of the image, [20, 30]",
        "4 dropped: outside the image",
        "5 dropped: empty polygon list",
        "6 dropped: category id 5 not in categories",
    ]


def test_label_folder_faults_are_all_found_in_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "classes.json").write_text('["road", "tree"]')
    for number, name in enumerate("abc"):
        Image.new("RGB", (W, H), (number, 0, 0)).save(tmp_path / "images" / f"{name}.png")
    Image.fromarray(np.full((H, W), 2, np.uint8)).save(tmp_path / "labels" / "a.png")
    Image.fromarray(np.zeros((H, W + 1), np.uint8)).save(tmp_path / "labels" / "b.png")
    kinds = sorted(kind for kind, _ in problems(tmp_path, "label_folder"))
    assert kinds == ["unknown_id", "unreadable_mask", "wrong_size"]
    assert main(["check", str(tmp_path), "--format", "label_folder"]) == 1
    assert "3 problems" in capsys.readouterr().out


def test_real_packs_are_sound(data_root: Path) -> None:
    assert problems(data_root / "panoptic_sample") == []


def test_fold_has_no_meaning_for_fixed_classes(panoptic: Path) -> None:
    from fssops.data.errors import DataError

    with pytest.raises(DataError, match="coco_panoptic has fixed classes and no folds, got 1"):
        main(["check", str(panoptic), "--fold", "1"])


def test_splits_that_mean_other_classes_by_a_number_are_found(panoptic: Path) -> None:
    for split, names in (("train2017", ("cat", "sky")), ("val2017", ("sky", "cat"))):
        path = panoptic / "annotations" / f"panoptic_{split}.json"
        content = json.loads(path.read_text())
        for row, name in zip(content["categories"], names, strict=True):
            row["name"] = name
        path.write_text(json.dumps(content))
    assert problems(panoptic) == [
        ("class_mismatch", "class 1 must be 'cat' as in train2017, got 'sky'"),
        ("class_mismatch", "class 2 must be 'sky' as in train2017, got 'cat'"),
    ]


def test_a_few_shot_split_that_lists_only_its_own_categories_is_found(coco_folder: Any) -> None:
    good = [{"image_id": 1, "category_id": 4, "segmentation": [[5, 5, 25, 5, 25, 25]]}]
    coco_folder(good)
    root = coco_folder(good, split="val2017", categories=((4, "dog"),))
    assert [message for kind, message in problems(root, "coco") if kind == "class_mismatch"] == [
        "class 1 must be 'cat' as in train2017, got 'dog'",
        "class 2 must be 'dog' as in train2017, got number 1",
    ]


def test_copies_within_a_split_are_told_and_no_problem_of_fixed_classes(panoptic: Path) -> None:
    (panoptic / "train2017" / "2.png").write_bytes((panoptic / "train2017" / "1.png").read_bytes())
    notes = [f for f in check_data("coco_panoptic", panoptic).findings if f.kind == "duplicate_id"]
    assert [(note.severity, note.message) for note in notes] == [("note", "1.png and 2.png are the same picture")]


def test_a_layout_is_checked_for_its_use(voc_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(voc_folder)]) == 1, "empty classes are a problem of few-shot tasks"
    assert main(["check", str(voc_folder), "--truth", "semantic"]) == 0
    capsys.readouterr()
    assert main(["check", str(voc_folder), "--truth", "instance", "--json", "-"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["counts"]["unreadable_mask"] == 12
    with pytest.raises(ValueError, match="truth must be few-shot, semantic or instance for layout voc, got 'video'"):
        main(["check", str(voc_folder), "--format", "voc", "--truth", "video"])
