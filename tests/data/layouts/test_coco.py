"""COCO instances: classes, crowds, overlaps, and broken files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fssops.data import coco_json
from fssops.data.augmentation.chains import universal_chain
from fssops.data.check import check_data
from fssops.data.datasets.universal import TrainingDataset
from fssops.data.errors import AnnotationError, DataWarning, ImageFileError
from fssops.data.few_shot_source import FewShotSource
from fssops.data.layouts import known_classes, open_data
from fssops.data.layouts.coco import COCOSource


def annotations_of(source: FewShotSource) -> list[coco_json.Annotation]:
    """Usable annotations of the first image."""
    assert isinstance(source.images, COCOSource)
    return source.images.annotations_of(source.names[0])


def square(x: float, y: float, side: float) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def test_coco_numbers_classes_by_category_order_and_finds_the_year(coco_folder: Callable[..., Path]) -> None:
    root = coco_folder([{"image_id": 1, "category_id": 4, "segmentation": [square(10, 10, 20)]}])
    source = open_data("coco", root, split="train", truth="few-shot")
    assert source.split == "train2017"
    assert source.classes == {1: "cat", 2: "dog", 3: "owl"}
    assert source.images_of(2) == ["000000000001.jpg"]
    assert source.areas()["000000000001.jpg"] == {2: 400}
    assert (source.label_map("000000000001.jpg") == 2).sum() == 400


def test_coco_smaller_object_lies_on_top_and_areas_are_of_whole_classes(coco_folder: Callable[..., Path]) -> None:
    root = coco_folder(
        [
            {"image_id": 1, "category_id": 1, "segmentation": [square(20, 20, 5)]},
            {"image_id": 1, "category_id": 4, "segmentation": [square(10, 10, 20)]},
            {"image_id": 1, "category_id": 4, "segmentation": [square(20, 10, 20)]},
        ]
    )
    source = open_data("coco", root, split="train", truth="few-shot")
    name = source.names[0]
    label = source.label_map(name)
    assert label[22, 22] == 1
    assert (label == 2).sum() == 600 - 25
    assert (source.label_map(name, [2]) == 2).sum() == 600
    assert source.areas()[name] == {1: 25, 2: 600}
    assert {
        int(n): int(c) for n, c in zip(*np.unique(source.instance_map(name, 2), return_counts=True), strict=True)
    } == {
        0: 1800,
        1: 200,
        2: 400,
    }


def test_coco_crowds_are_ignored_or_part_of_the_class(coco_folder: Callable[..., Path]) -> None:
    counts = [40 * 30, 40 * 10, 40 * 20]  # columns 30 to 39
    crowd = {"image_id": 1, "category_id": 1, "iscrowd": 1, "segmentation": {"size": [40, 60], "counts": counts}}
    root = coco_folder([crowd, {"image_id": 1, "category_id": 1, "segmentation": [square(35, 0, 10)]}])
    ignored = open_data("coco", root, split="train", truth="few-shot")
    label = ignored.label_map(ignored.names[0], [1])
    assert (label == 1).sum() == 100
    assert (label == 255).sum() == 400 - 50
    assert ignored.areas()[ignored.names[0]] == {1: 100}
    assert (ignored.label_map(ignored.names[0], [2]) == 0).all()
    part = open_data("coco", root, split="train", crowd="object", truth="few-shot")
    assert (part.label_map(part.names[0], [1]) == 1).sum() == 450
    assert part.areas()[part.names[0]] == {1: 450}


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("image_id", [1], r"image id \[1\] not in images"),
        ("image_id", "01", "image id '01' not in images"),
        ("image_id", True, "image id True not in images"),
        ("category_id", None, "category id None not in categories"),
        ("category_id", {"id": 1}, r"category id \{'id': 1\} not in categories"),
        ("iscrowd", "no", "iscrowd is neither 0 nor 1 but 'no'"),
    ],
)
def test_annotation_with_a_field_of_another_type_is_dropped(
    coco_folder: Callable[..., Path], field: str, value: object, reason: str
) -> None:
    good = {"image_id": 1, "category_id": 1, "segmentation": [square(0, 0, 9)]}
    with pytest.warns(DataWarning, match=f"annotation 2 dropped: {reason}"):
        source = open_data("coco", coco_folder([good, {**good, field: value}]), split="train", truth="few-shot")
    assert [a.id for a in annotations_of(source)] == [1]


def test_area_that_is_no_finite_number_counts_as_not_stated(coco_folder: Callable[..., Path]) -> None:
    good = {"image_id": 1, "category_id": 1, "segmentation": [square(0, 0, 9)]}
    areas = [81, 10**400, "81", None, -1]
    source = open_data("coco", coco_folder([{**good, "area": area} for area in areas]), split="train", truth="few-shot")
    assert [a.area for a in annotations_of(source)] == [81.0, None, None, None, None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "must hold a list 'images', got no such table"),
        (lambda c: c["images"].append(c["images"][0]), "image ids must be unique, got 1 twice"),
        (lambda c: c["categories"].append({"id": "4", "name": "x"}), "categories: ids must be unique, got 4 twice"),
        (lambda c: c["categories"].append({"id": "x", "name": "x"}), r"categories\[3\] must have an integer id"),
        (lambda c: [i.update(height=0) for i in c["images"]], "a row that can be used, got image 1: width and height"),
    ],
)
def test_broken_coco_structure_is_an_error_that_says_where(
    coco_folder: Callable[..., Path], change: Callable[[dict], None], message: str
) -> None:
    root = coco_folder([{"image_id": 1, "category_id": 1, "segmentation": [square(0, 0, 9)]}])
    file = root / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=rf"instances_train2017\.json.*{message}"):
        open_data("coco", root, split="train", truth="few-shot")


def test_coco_json_cut_anywhere_is_an_error(coco_folder: Callable[..., Path]) -> None:
    root = coco_folder([{"image_id": 1, "category_id": 1, "segmentation": [square(0, 0, 9)]}])
    file = root / "annotations" / "instances_train2017.json"
    whole = file.read_text()
    for kept in (0, 1, len(whole) // 2, len(whole) - 1):
        file.write_text(whole[:kept])
        with pytest.raises(AnnotationError, match="must be complete JSON"):
            open_data("coco", root, split="train", truth="few-shot")


def test_coco_annotation_with_the_id_of_another_gets_a_free_one(coco_folder: Callable[..., Path]) -> None:
    one = {"id": 7, "image_id": 1, "category_id": 1, "segmentation": [square(0, 0, 9)]}
    with pytest.warns(DataWarning, match=r"annotations\[1\]: id must be .* no other .*, got 7; it is called 1"):
        source = open_data("coco", coco_folder([one, one]), split="train", truth="few-shot")
    assert [row.id for row in annotations_of(source)] == [7, 1]


def test_coco_image_of_another_size_than_its_annotations_is_an_error(coco_folder: Callable[..., Path]) -> None:
    root = coco_folder([])
    Image.fromarray(np.zeros((60, 40, 3), np.uint8)).save(root / "train2017" / "000000000001.jpg")
    with pytest.raises(ImageFileError, match=r"000000000001\.jpg.*60 x 40, got 40 x 60"):
        open_data("coco", root, split="train", truth="few-shot").image("000000000001.jpg")


def test_coco_polygon_parts_outside_the_image_are_left_out_of_a_good_object(coco_folder: Callable[..., Path]) -> None:
    parts = [square(10, 10, 5), square(100, 100, 5), square(30, 10, 5)]
    root = coco_folder([{"image_id": 1, "category_id": 1, "segmentation": parts}])
    source = open_data("coco", root, split="train", truth="few-shot")
    assert source.areas()[source.names[0]] == {1: 50}


def test_coco_without_a_root_needs_annotations_and_images(
    coco_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = coco_folder([{"image_id": 1, "category_id": 1, "segmentation": [square(0, 0, 9)]}], split="train")
    monkeypatch.chdir(root)  # where a folder called train must not be taken without being asked for
    annotations = "annotations/instances_train.json"
    with pytest.raises(ValueError, match="root must be a folder unless annotations and images are given, got None"):
        COCOSource(None, annotations=annotations)
    with pytest.raises(ValueError, match="root must be a folder for layout coco, got None"):
        open_data("coco", annotations=annotations, truth="few-shot")
    assert len(open_data("coco", annotations=annotations, images="train", truth="few-shot").names) == 3


def test_coco_image_that_is_listed_twice_is_drawn_once(coco_folder: Callable[..., Path]) -> None:
    root = coco_folder([{"image_id": i, "category_id": 1, "segmentation": [square(0, 0, 9)]} for i in (1, 2)])
    file = root / "annotations" / "instances_train2017.json"
    file.write_text(file.read_text().replace("000000000002.jpg", "000000000001.jpg"))
    with pytest.warns(DataWarning, match=r"images 1 and 2 share the file 000000000001\.jpg; the annotations of both"):
        source = open_data("coco", root, split="train", truth="few-shot")
    assert [row.id for row in annotations_of(source)] == [1, 2]
    assert source.images_of_annotations(1) == ["000000000001.jpg"]


def test_coco_two_years_need_an_explicit_split(coco_folder: Callable[..., Path]) -> None:
    coco_folder([], split="train2014")
    root = coco_folder([], split="train2017")
    with pytest.raises(AnnotationError, match=r"got 'train' .fits train2014, train2017"):
        open_data("coco", root, split="train", truth="few-shot")
    assert open_data("coco", root, split="train2014", truth="few-shot").split == "train2014"


def test_coco_label_maps_are_those_of_few_shot_data_with_a_background_class(coco_folder: Callable[..., Path]) -> None:
    root = coco_folder(
        [
            {"image_id": 1, "category_id": 1, "segmentation": [square(20, 20, 5)]},
            {"image_id": 1, "category_id": 4, "segmentation": [square(10, 10, 20)]},
        ]
    )
    source = open_data("coco", root, truth="semantic")
    assert source.classes.names == ["background", "cat", "dog", "owl"]
    assert (source.classes.background, source.classes.things) == (0, (1, 2, 3))
    label = source.truth(source.names[0]).semantic()
    assert (label == open_data("coco", root, truth="few-shot").label_map(source.names[0])).all()
    assert sorted(np.unique(label)) == [0, 1, 2]
    assert source.image_id(source.names[0]) == 1
    painted = open_data("coco", root, truth="semantic", overlap="later").truth(source.names[0]).semantic()
    assert (painted != label).sum() == 25
    published = known_classes("coco", "semantic")
    assert published is not None
    assert len(published) == 81


def test_coco_category_0_called_background_is_a_class_like_any_other(coco_folder: Callable[..., Path]) -> None:
    rows = [{"image_id": 1, "category_id": c, "segmentation": [square(5 + 9 * c, 5, 5)]} for c in (0, 1)]
    root = coco_folder(rows, categories=((0, "background"), (1, "cat")))
    assert open_data("coco", root, truth="few-shot").classes == {1: "background", 2: "cat"}
    assert open_data("coco", root, truth="semantic").classes.names == ["background", "background", "cat"]


@pytest.mark.parametrize("count", [365, 1203])
def test_coco_may_have_thousands_of_classes_but_not_in_8_bit_label_maps(
    coco_folder: Callable[..., Path], count: int
) -> None:
    names = tuple((number, f"c{number}") for number in range(1, count + 1))
    rows = [{"image_id": 1, "category_id": c, "segmentation": [square(x, 5, 9)]} for x, c in ((5, 255), (25, count))]
    root = coco_folder(rows, categories=names)
    objects = open_data("coco_instances", root, truth="instance")
    assert len(objects.classes) == count
    truth = objects.truth(objects.names[0])
    assert [entry.label for entry in truth.instances(objects.classes.things)] == [254, count - 1]
    few_shot = open_data("coco", root, truth="few-shot")
    # 255 means ignored: the numbers of classes pass it over.
    assert (few_shot.classes[254], few_shot.classes[256], 255 in few_shot.classes) == ("c254", "c255", False)
    label = few_shot.label_map(few_shot.names[0])
    assert label.dtype == np.uint16
    assert sorted(np.unique(label)) == [0, 256, count + 1]
    assert few_shot.classes_of(few_shot.names[0]) == [256, count + 1]
    with pytest.raises(AnnotationError, match=f"label maps must be of at most 254 classes, got {count + 1}"):
        open_data("coco", root, truth="semantic")
    assert check_data("coco_instances", root).problems() == []


def turned(file: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(file).save(file, exif=exif)


def test_images_that_exif_turns_are_named_as_such(coco_folder: Callable[..., Path]) -> None:
    root = coco_folder([{"image_id": i, "category_id": 1, "segmentation": [square(5, 5, 9)]} for i in (1, 2, 3)])
    turned(root / "train2017" / "000000000001.jpg", 6)
    turned(root / "train2017" / "000000000002.jpg", 3)
    source = open_data("coco", root, truth="few-shot")
    with pytest.raises(ImageFileError, match=r"60 x 40, got 40 x 60 \(EXIF orientation 6 turns it; annotations must"):
        source.image("000000000001.jpg")
    findings = {finding.kind: finding for finding in check_data("coco", root).findings if "empty" not in finding.kind}
    assert "EXIF orientation 6 turns it" in findings["wrong_size"].message
    assert "000000000002.jpg: EXIF orientation 3 turns it" in findings["exif_orientation"].message
    assert findings["exif_orientation"].severity == "note"
    Image.new("RGB", (50, 40)).save(root / "train2017" / "000000000003.jpg")
    with pytest.raises(ImageFileError, match=r"60 x 40, got 50 x 40$"):
        source.image("000000000003.jpg")


@pytest.mark.parametrize("crowd", ["0", 0, None, False, 0.0])
def test_iscrowd_is_read_as_the_number_that_it_plainly_is(coco_folder: Callable[..., Path], crowd: object) -> None:
    rows = [{"image_id": 1, "category_id": 1, "segmentation": [square(0, 0, 9)], "iscrowd": crowd}]
    source = open_data("coco", coco_folder(rows), split="train", truth="few-shot")
    assert [row.crowd for row in annotations_of(source)] == [False]


@pytest.mark.parametrize("rows", [[], [{"iscrowd": 1}], [{"iscrowd": "1"}, {"iscrowd": 1}]])
def test_training_on_nothing_but_crowds_is_refused(
    coco_folder: Callable[..., Path], rows: list[dict[str, Any]]
) -> None:
    shape = {"image_id": 1, "category_id": 1, "segmentation": [square(0, 0, 9)]}
    source = open_data(
        "coco_instances", coco_folder([{**shape, **row} for row in rows]), split="train", truth="instance"
    )
    with pytest.raises(ValueError, match=r"at least one object to learn from, got .* iscrowd 1, are none"):
        TrainingDataset(source, "instance", universal_chain("none"))


def edited(root: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    file = root / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("form", [float, str])
def test_numbers_in_other_forms_are_the_same_data_set(
    coco_folder: Callable[..., Path], form: Callable[..., Any]
) -> None:
    rows = [{"image_id": i, "category_id": c, "segmentation": [square(5, 5, c)]} for i, c in ((1, 4), (2, 9), (2, 1))]
    truths = []
    for change in (int, form):
        root = coco_folder(rows)

        def edit(content: dict[str, Any], change: Any = change) -> None:
            for table, keys in (
                ("images", ("id", "width", "height")),
                ("annotations", ("id", "image_id", "category_id")),
                ("categories", ("id",)),
            ):
                for row in content[table]:
                    row.update({key: change(row[key]) for key in keys})

        source = open_data("coco_instances", edited(root, edit), truth="instance")
        assert list(source.problems()) == []
        truths.append(
            [(source.image_id(n), [(o.id, o.label) for o in source.truth(n).objects or ()]) for n in source.names]
        )
    assert truths[0] == truths[1] == [(1, [(1, 1)]), (2, [(2, 2), (3, 0)]), (3, [])]


@pytest.mark.parametrize("names", [("a", "b c"), ("0001", "0002"), ("9" * 30, "-")])
def test_images_may_be_called_by_texts(coco_folder: Callable[..., Path], names: tuple[str, str]) -> None:
    rows = [{"image_id": name, "category_id": 4, "segmentation": [square(5, 5, 9)]} for name in names]
    root = edited(
        coco_folder(rows, images=2), lambda c: [i.update(id=n) for i, n in zip(c["images"], names, strict=True)]
    )
    source = open_data("coco_instances", root, truth="instance")
    assert [source.image_id(name) for name in source.names] == list(names)
    assert [len(source.truth(name).objects or ()) for name in source.names] == [1, 1]
    assert source.images_of_annotations(1) == source.names


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"width": -60}, "image 1: width and height must be positive integers, got -60 x 40; left out"),
        ({"height": 40.5}, "image 1: width and height must be positive integers, got 60 x 40.5; left out"),
        (
            {"width": 10**6, "height": "1000000"},
            "image 1: there must be at most .* pixels, got 1000000 x 1000000; le",
        ),
        ({"file_name": 5}, "image 1: file_name must be a name below its folder, got 5; left out"),
        ({"file_name": "a\nb"}, r"image 1: file_name must be a name below its folder, got 'a\\nb'; left out"),
        ({"id": None}, r"images\[0\] must be an object whose id is a number or a name, got .*; left out"),
        ({"id": True}, r"images\[0\] must be an object whose id is a number or a name, got .*; left out"),
    ],
)
def test_a_broken_image_is_left_out_with_its_annotations_and_told(
    coco_folder: Callable[..., Path], change: dict[str, Any], told: str
) -> None:
    rows = [{"image_id": i, "category_id": 4, "segmentation": [square(5, 5, 9)]} for i in (1, 2)]
    root = edited(coco_folder(rows), lambda c: c["images"][0].update(change))
    with pytest.warns(DataWarning, match=rf"instances_train2017\.json: {told}"):
        source = open_data("coco_instances", root, truth="instance")
    assert [source.image_id(name) for name in source.names] == [2, 3]
    messages = [message for _, message in source.problems()]
    assert sum("left out" in message for message in messages) == 1
    assert sum("annotation 1 dropped: image id 1 not in images" in message for message in messages) == 1


@pytest.mark.parametrize(
    ("row", "told"),
    [(7, r"annotations\[1\] must be an object, got 7; left out"), ({"id": [3]}, r"annotations\[1\]: id .* got \[3\]")],
)
def test_a_row_that_is_no_annotation_is_left_out(coco_folder: Callable[..., Path], row: Any, told: str) -> None:
    good = {"image_id": 1, "category_id": 4, "segmentation": [square(5, 5, 9)]}
    root = edited(coco_folder([good, good]), lambda c: c["annotations"].insert(1, row))
    with pytest.warns(DataWarning, match=told):
        source = open_data("coco", root, truth="few-shot")
    assert [a.id for a in annotations_of(source)] == [1, 2]


@pytest.mark.parametrize("value", [None, "uuid-4", 1.5, [1], {}])
def test_an_object_without_an_id_of_its_own_is_kept_and_gets_one(coco_folder: Callable[..., Path], value: Any) -> None:
    good = {"image_id": 1, "category_id": 4, "segmentation": [square(5, 5, 9)]}
    root = edited(coco_folder([good, good, good]), lambda c: [c["annotations"][n].update(id=value) for n in (0, 2)])
    source = open_data("coco", root, truth="few-shot")
    assert [a.id for a in annotations_of(source)] == [1, 2, 3]
    assert sum("it is called" in message for _, message in source.images.problems()) == 2


def test_a_dropped_polygon_is_told_once_and_the_check_lists_it(coco_folder: Callable[..., Path]) -> None:
    parts = [square(5, 5, 9), [1, 2, 3, 4], [9, 9, 9e9, 9, 9, 30]]
    root = coco_folder([{"image_id": 1, "category_id": 4, "segmentation": parts}])
    with pytest.warns(DataWarning) as caught:
        open_data("coco", root, truth="few-shot")
    told = [str(w.message) for w in caught if "annotation 1" in str(w.message)]
    assert [text.split("annotation 1: ")[1] for text in told] == [
        "polygon 1 left out: fewer than 3 points",
        "polygon 2 cut: coordinates must be within the image's own size around it, got 9e+09",
    ]
    found = [f.message for f in check_data("coco", root).problems() if f.kind == "bad_annotation"]
    assert found == told


def test_many_of_one_kind_are_summed(coco_folder: Callable[..., Path]) -> None:
    parts = [square(5, 5, 9), [1, 2, 3, 4]]
    root = coco_folder([{"image_id": 1, "category_id": 4, "segmentation": parts}] * 120)
    with pytest.warns(DataWarning) as caught:
        open_data("coco", root, truth="few-shot")
    told = [str(w.message) for w in caught if w.category is DataWarning]
    assert len(told) == 51
    assert told[-1].endswith("instances_train2017.json: 70 more problems")


@pytest.mark.parametrize("name", ["sub\\a.jpg", "sub\\deeper\\b.jpg"])
def test_folders_in_names_may_be_divided_as_on_windows(coco_folder: Callable[..., Path], name: str) -> None:
    root = edited(coco_folder([], images=1), lambda c: c["images"][0].update(file_name=name))
    target = root / "train2017" / name.replace("\\", "/")
    target.parent.mkdir(parents=True)
    (root / "train2017" / "000000000001.jpg").rename(target)
    source = open_data("coco_instances", root, truth="instance")
    assert source.image(source.names[0]).size == (60, 40)


def test_one_file_under_two_ids_of_two_sizes_keeps_the_first(coco_folder: Callable[..., Path]) -> None:
    rows = [{"image_id": i, "category_id": 1, "segmentation": [square(0, 0, 9)]} for i in (1, 2)]
    root = edited(coco_folder(rows), lambda c: c["images"][1].update(file_name="000000000001.jpg", width=50))
    with pytest.warns(DataWarning, match="images 1 and 2 share the file .* but not its size; 2 is left out"):
        source = open_data("coco", root, truth="few-shot")
    assert [a.id for a in annotations_of(source)] == [1]


def test_many_large_objects_take_the_memory_of_one(coco_folder: Callable[..., Path]) -> None:
    """Run lengths of 12 objects of 67 million pixels are 1 kB of text, and 800 MB when drawn."""
    import tracemalloc

    side = 1 << 13
    whole = {"size": [side, side], "counts": [0, side * side]}
    root = coco_folder([{"image_id": 1, "category_id": 4, "segmentation": whole}] * 12, images=1)
    edited(root, lambda c: c["images"][0].update(width=side, height=side))
    tracemalloc.start()
    source = open_data("coco", root, truth="few-shot")
    assert source.areas() == {source.names[0]: {2: side * side}}
    assert (source.label_map(source.names[0])[::999, ::999] == 2).all()
    assert tracemalloc.get_traced_memory()[1] < 500e6
    tracemalloc.stop()
