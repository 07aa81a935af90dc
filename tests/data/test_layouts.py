"""Opening, naming and recognising data sets of all layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from example_folders import (
    EXAMPLES,
    ade20k,
    cityscapes,
    coco_panoptic,
    coco_with_both,
    halves,
    label_folder,
    label_folder_called_like_ade20k,
    picture,
    save,
    splits_without_a_class_file,
    training_names,
)

from fssops.data import layouts
from fssops.data.errors import DataError
from fssops.data.few_shot_source import FewShotSource
from fssops.data.layout import TRUTHS, DataTruth
from fssops.data.layouts import LAYOUTS, known_classes, names_for, open_data, recognise
from fssops.data.source import VideoSource


def test_folder_that_fits_no_layout_lists_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got none \(.*voc: no JPEGImages"):
        open_data("auto", tmp_path, truth="few-shot")
    with pytest.raises(FileNotFoundError):
        open_data("auto", tmp_path / "nowhere", truth="few-shot")


def test_unknown_format_and_option_name_the_valid_ones(voc_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"layout must be auto, .*coco, .*folder, fss1000, .*voc, .*got 'ade'"):
        open_data("ade", voc_folder, truth="few-shot")
    with pytest.raises(ValueError, match=r"options of layout voc must be split, list_file, .*got 'crowd'"):
        open_data("voc", voc_folder, crowd="object", truth="few-shot")
    with pytest.raises(ValueError, match="root must be a folder for layout voc, got None"):
        open_data("voc", truth="few-shot")


@pytest.mark.parametrize(
    ("layout", "truth"), [("generated", "few-shot"), ("generated", "panoptic"), ("generated_videos", "video")]
)
def test_a_folder_is_not_passed_over_where_data_are_drawn(layout: str, truth: DataTruth, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=f"root must be left out for layout {layout}, which has no files, got {tmp_path}"
    ):
        open_data(layout, tmp_path, truth=truth)


def test_wrong_requests_are_told(tmp_path: Path) -> None:
    for arguments, told in (
        (("fss1000", tmp_path), "truth must be few-shot for layout fss1000, got 'semantic'"),
        (("label_folder",), "root must be a folder for layout label_folder, got None"),
        (("auto", tmp_path), "cityscapes: no leftImg8bit"),
    ):
        with pytest.raises((ValueError, DataError), match=told):
            open_data(*arguments, truth="semantic")
    with pytest.raises(ValueError, match="options of layout generated must be split, size, images, seed, got 'roof'"):
        open_data("generated", roof=1, truth="panoptic")
    save(tmp_path / "train" / "a.png", picture())
    save(tmp_path / "trainannot" / "a.png", halves(0, 0).astype(np.uint8))
    with pytest.raises(ValueError, match="truth must be semantic or few-shot for layout camvid, got 'panoptic'"):
        open_data("camvid", tmp_path, truth="panoptic")


def test_class_lists_are_whole() -> None:
    assert (len(layouts.coco_panoptic.NAMES), len(layouts.ade20k.NAMES), len(layouts.ade20k.THINGS)) == (133, 150, 100)
    for names in (layouts.coco_panoptic.NAMES, layouts.ade20k.NAMES):
        assert len(set(names)) == len(names)
    for format in ("coco_panoptic", "ade20k", "cityscapes"):
        found = known_classes(format, "panoptic")
        assert found is not None
        assert len(found.things) in (80, 100, 8)


def test_known_classes_are_those_of_the_real_file(data_root: Path) -> None:
    source = open_data("coco_panoptic", data_root / "panoptic_sample", split="val2017", truth="panoptic")
    known = known_classes("coco_panoptic", "panoptic")
    assert known is not None
    assert (known.names, known.things) == (source.classes.names, source.classes.things)
    assert known.index_of == source.classes.index_of  # results files of a model without its data name classes by id
    objects = open_data("coco_instances", data_root / "coco_mini", split="val", truth="instance").classes
    countable = known_classes("coco_instances", "instance")
    assert countable is not None
    assert (countable.names, countable.things, countable.index_of) == (objects.names, objects.things, objects.index_of)


def test_real_camvid_and_coco_open(data_root: Path) -> None:
    camvid = open_data("label_folder", data_root / "camvid", split="val", truth="semantic")
    assert (len(camvid.names), camvid.classes.names) == (
        101,
        open_data("camvid", data_root / "camvid", truth="semantic").classes.names,
    )
    coco = open_data("coco_instances", data_root / "coco_mini", split="train", truth="instance")
    assert (len(coco.names), len(training_names(coco, "instance"))) == (166, 166)
    crowds = [o.crowd for name in coco.names for o in coco.truth(name).objects or ()]
    assert (len(crowds), sum(crowds)) == (1580, 15)


SAME_FILES = [{"coco", "coco_instances"}, {"folder", "label_folder"}, {"ytvis", "ytvis2019", "ytvis2021", "ovis"}]
"""Names of one form of data, kept apart by what they are read for or by the classes they must have."""


@pytest.mark.parametrize("write", EXAMPLES, ids=lambda write: write.__name__)
def test_a_folder_is_of_one_layout_and_the_others_say_why_not(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    reasons = {name: layout.recognise(tmp_path) for name, layout in LAYOUTS.items()}
    fitting = {name for name, reason in reasons.items() if not reason}
    if write.__name__ == "coco_with_both":
        assert fitting == {"coco", "coco_panoptic"}
    else:
        assert any(fitting <= names for names in [*SAME_FILES, *({name} for name in LAYOUTS)]), fitting
    for truth in TRUTHS:
        if truth in EXAMPLES[write]:
            assert recognise(tmp_path, truth) == EXAMPLES[write][truth]
        else:
            with pytest.raises(DataError, match=f"folder must be of a layout with {truth} truth, got none") as told:
                recognise(tmp_path, truth)
            for name in names_for(truth):
                assert name in str(told.value)
                assert reasons[name] in str(told.value)


@pytest.mark.parametrize(
    ("write", "layout"),
    [(label_folder, "folder"), (coco_with_both, "coco"), (coco_panoptic, "coco_panoptic"), (cityscapes, "cityscapes")],
)
def test_without_a_purpose_the_few_shot_reading_comes_first(
    write: Callable[[Path], None], layout: str, tmp_path: Path
) -> None:
    write(tmp_path)
    assert recognise(tmp_path) == layout


@pytest.mark.parametrize("write", EXAMPLES, ids=lambda write: write.__name__)
def test_what_is_recognised_opens_for_all_that_its_files_have(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    without_files = {ade20k: ("instance", "panoptic"), cityscapes: ("panoptic",)}
    if write is splits_without_a_class_file:
        for layout, truth in (("folder", "few-shot"), ("label_folder", "semantic")):
            with pytest.raises(FileNotFoundError, match=r"classes\.json: class list must exist, got nothing"):
                open_data(layout, tmp_path, truth=truth)  # type: ignore[call-overload]
        return
    for truth in EXAMPLES[write]:
        if truth in without_files.get(write, ()):
            continue
        split = "training" if write is label_folder_called_like_ade20k else None
        source = open_data("auto", tmp_path, truth=truth, split=split)  # type: ignore[call-overload]
        assert source.format == EXAMPLES[write][truth]
        if isinstance(source, VideoSource):
            assert source.tracks(source.names[0])
        elif isinstance(source, FewShotSource):
            labels = source.label_map(source.names[0])
            assert labels.shape == (20, 30)
            present = source.classes_of(source.names[0])
            assert present
            assert set(np.unique(labels)) <= {0, 255, *present}
            assert set(present) <= set(source.classes)
            assert min(source.classes) > 0
        else:
            assert source.offers(truth)
            truth_of_it = source.truth(source.names[0])
            assert truth_of_it.semantic().shape == (20, 30) if truth != "instance" else truth_of_it.instances(range(99))


def test_names_typed_before_stay_valid_for_their_truth() -> None:
    before = {
        "few-shot": "voc coco fss1000 folder generated",
        "semantic": "label_folder camvid coco_panoptic ade20k cityscapes generated",
        "instance": "coco_instances coco_panoptic ade20k cityscapes generated",
        "panoptic": "coco_panoptic ade20k cityscapes generated",
        "video": "ytvis ytvis2019 ytvis2021 ovis generated_videos",
    }
    for truth in TRUTHS:
        assert set(before[truth].split()) <= set(names_for(truth))
