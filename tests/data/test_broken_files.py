"""Every case of shared/data/broken, handled as its manifest.json states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fssops.data import images
from fssops.data.augmentation.chains import few_shot_chain
from fssops.data.augmentation.scene import Scene
from fssops.data.errors import AnnotationError, DataWarning, ImageFileError, MaskSizeError, MaskValueError
from fssops.data.few_shot_source import FewShotSource
from fssops.data.layouts.coco import COCOSource
from fssops.run_lengths import draw


@pytest.fixture
def broken(data_root: Path) -> Path:
    return data_root / "broken"


@pytest.fixture
def expected(broken: Path) -> dict[str, dict[str, Any]]:
    cases = json.loads((broken / "manifest.json").read_text())["cases"]
    return {case["id"]: case["expected"] for case in cases}


def test_every_case_of_the_manifest_has_a_test_here(expected: dict[str, Any]) -> None:
    assert set(expected) == {
        *REJECTED,
        *ACCEPTED,
        "exif_orientation_6",
        "mask_value_outside_class_range",
        "mask_size_differs_from_image",
        "coco_json_truncated",
        "coco_json_missing_image_id",
        "coco_json_bad_polygons",
    }


REJECTED = {
    "truncated_jpeg": ("01_truncated.jpg", "must decode completely, got a broken or truncated file"),
    "zero_byte_image": ("02_zero_byte.jpg", "must not be empty, got a file of 0 bytes"),
}
ACCEPTED = {
    "png_with_jpeg_extension": "03_png_named.jpg",
    "cmyk_jpeg": "04_cmyk.jpg",
    "gray_16bit_png": "05_gray16.png",
    "rgba_png": "07_rgba.png",
    "palette_png_image": "08_palette.png",
    "one_pixel_image": "09_one_pixel.png",
}


@pytest.mark.parametrize("case", REJECTED)
def test_unreadable_image_is_rejected_by_name(broken: Path, expected: dict[str, Any], case: str) -> None:
    assert expected[case]["action"] == "reject"
    name, rule = REJECTED[case]
    with pytest.raises(ImageFileError, match=rf"{name}: image {rule}"):
        images.read_image(broken / name)


@pytest.mark.parametrize("case", ACCEPTED)
def test_odd_image_is_loaded_with_the_stated_pixels(broken: Path, expected: dict[str, Any], case: str) -> None:
    facts = expected[case]
    image = images.read_image(broken / ACCEPTED[case])
    assert image.mode == facts["mode"]
    assert list(image.size) == facts["size"]
    for pixel in facts["pixels"]:
        difference = np.abs(np.array(image.getpixel(tuple(pixel["xy"]))) - pixel["rgb"])
        assert difference.max() <= pixel["tol"], pixel


def test_exif_orientation_lines_image_and_mask_up(broken: Path, expected: dict[str, Any]) -> None:
    facts = expected["exif_orientation_6"]
    image = images.read_image(broken / "06_exif6.jpg")
    upright = images.read_image(broken / facts["equals"])
    assert list(image.size) == facts["size"]
    difference = np.abs(np.asarray(image, dtype=float) - np.asarray(upright, dtype=float)).mean()
    assert difference <= facts["mean_abs_diff_max"]
    assert images.read_mask(broken / "06_exif6_upright_mask.png", size=image.size).any()


def test_one_pixel_image_is_resized_to_what_is_asked(broken: Path) -> None:
    scene = Scene(np.asarray(images.read_image(broken / "09_one_pixel.png")), {"label": np.ones((1, 1), int)})
    for name in ("none", "flip", "msanet_pascal"):
        result = few_shot_chain((33, 33), name)(scene, np.random.default_rng(0))
        assert result.size == (33, 33)
        assert result.maps["label"].shape == (33, 33)


def test_mask_value_outside_the_class_list_is_rejected_with_its_count(broken: Path, expected: dict[str, Any]) -> None:
    facts = expected["mask_value_outside_class_range"]
    with pytest.raises(MaskValueError, match=r"10_bad_value_mask\.png.*got 37 \(16 px\)"):
        images.read_mask(broken / "10_bad_value_mask.png", allowed=range(facts["num_classes"]))
    with pytest.warns(DataWarning, match="37"):
        mask = images.read_mask(broken / "10_bad_value_mask.png", allowed=range(facts["num_classes"]), unknown="ignore")
    assert int((mask == facts["ignore_index"]).sum()) == facts["bad_pixels"]


def test_mask_of_another_size_is_rejected_with_both_sizes(broken: Path) -> None:
    with pytest.raises(MaskSizeError, match=r"11_size_mismatch_mask\.png.*96 x 64, got 80 x 60"):
        images.read_mask(broken / "11_size_mismatch_mask.png", size=images.image_size(broken / "11_size_mismatch.jpg"))


def open_coco(broken: Path, name: str) -> COCOSource:
    return COCOSource(None, annotations=broken / name, images=broken / "coco_images")


def test_truncated_coco_json_is_rejected_by_name(broken: Path) -> None:
    with pytest.raises(AnnotationError, match=r"12_truncated\.json: annotation file must be complete JSON"):
        open_coco(broken, "12_truncated.json")


def test_annotation_of_a_missing_image_is_dropped_with_both_ids(broken: Path, expected: dict[str, Any]) -> None:
    facts = expected["coco_json_missing_image_id"]
    with pytest.warns(DataWarning, match="annotation 2 dropped: image id 999 not in images"):
        source = open_coco(broken, "13_missing_image_id.json")
    assert source.file.dropped == {int(k): v for k, v in facts["bad_annotations"].items()}
    assert [a.id for name in source.names for a in source.annotations_of(name)] == facts["good_annotations"]
    empty = next(name for name in source.names if not source.annotations_of(name))
    assert not FewShotSource(source).label_map(empty).any()


def test_bad_polygons_are_dropped_each_with_its_reason_and_good_ones_clipped(
    broken: Path, expected: dict[str, Any]
) -> None:
    facts = expected["coco_json_bad_polygons"]
    with pytest.warns(DataWarning) as caught:
        source = open_coco(broken, "14_bad_polygons.json")
    assert source.file.dropped == {int(k): v for k, v in facts["bad_annotations"].items()}
    for identifier, reason in facts["bad_annotations"].items():
        assert any(f"annotation {identifier} dropped: {reason}" in str(w.message) for w in caught)
    kept = {a.id: a for name in source.names for a in source.annotations_of(name)}
    assert sorted(kept) == sorted([*facts["good_annotations"], *map(int, facts["clip_annotations"])])
    clipped = facts["clip_annotations"]["7"]
    mask = draw(kept[7].segmentation, 96, 64)
    rows, columns = np.nonzero(mask)
    assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == clipped["box_xyxy"]
    assert mask.sum() == clipped["mask_pixels"]
