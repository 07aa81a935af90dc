"""Cityscapes: 19 classes in the published order of training ids, from the files of gtFine.

    ROOT/leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png
    ROOT/gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png, NAME_gtFine_instanceIds.png
    ROOT/gtFine/cityscapes_panoptic_SPLIT.json, ROOT/gtFine/cityscapes_panoptic_SPLIT/      (panoptic only)

Label ids that are not among the 19 classes are ignored. Panoptic files come from cityscapesscripts'
createPanopticImgs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fssops.data.errors import DataError, MaskError
from fssops.data.images import check_size, image_size, read_numbers
from fssops.data.label_maps import LabelMapSource, PairedSource, Pairs
from fssops.data.layout import DataTruth, Layout, few_shot_view
from fssops.data.layouts.coco_panoptic import COCOPanopticSource
from fssops.data.listing import folders_in, pictures_in
from fssops.data.paths import check_inside
from fssops.data.source import PathLike
from fssops.labels import IGNORE
from fssops.truth import Category, Classes, ObjectTruth, Truth

_ROWS = """7 road 128 64 128|8 sidewalk 244 35 232|11 building 70 70 70|12 wall 102 102 156|13 fence 190 153 153
17 pole 153 153 153|19 traffic_light 250 170 30|20 traffic_sign 220 220 0|21 vegetation 107 142 35
22 terrain 152 251 152|23 sky 70 130 180|24 person 220 20 60|25 rider 255 0 0|26 car 0 0 142|27 truck 0 0 70
28 bus 0 60 100|31 train 0 80 100|32 motorcycle 0 0 230|33 bicycle 119 11 32"""

_FIRST_THING = 24
"""Label ids from here on are countable."""


def _categories() -> tuple[Category, ...]:
    rows = []
    for row in _ROWS.replace("\n", "|").split("|"):
        number, name, *colour = row.split()
        red, green, blue = map(int, colour)
        rows.append(
            Category(int(number), name.replace("_", " "), (red, green, blue), is_thing=int(number) >= _FIRST_THING)
        )
    return tuple(rows)


CATEGORIES = _categories()
"""The 19 classes, with their colours and label ids."""


def _classes(truth: DataTruth) -> Classes:
    """The 8 countable classes of instance segmentation, else all 19; ids are Cityscapes' label ids."""
    return Classes(tuple(category for category in CATEGORIES if category.is_thing or truth != "instance"))


def _pairs(root: Path, split: str, kind: str) -> Pairs:
    """Image and annotation of each name CITY/NAME."""
    images, truth = root / "leftImg8bit" / split, root / "gtFine" / split
    for folder in (images, truth):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: folder must exist, got no such folder")
    listing = pictures_in(images)
    files = {}
    for path in listing.files:
        name = path.name.removesuffix("_leftImg8bit.png")
        if name != path.name and path.parent.parent == images:
            files[f"{path.parent.name}/{name}"] = (path, truth / path.parent.name / f"{name}_gtFine_{kind}.png")
    if not files:
        raise DataError(f"{images}: there must be at least one CITY/NAME_leftImg8bit.png, got none")
    return Pairs(files, list(listing.notes()))


class CityscapesSource(LabelMapSource):
    """Label maps of the 19 classes from ``labelIds``; every other label id is ignored.

    Args:
        root: the folder.
        split: train or val.
    """

    def __init__(self, root: PathLike, split: str = "train") -> None:
        classes = _classes("semantic")
        remap = dict.fromkeys(range(34), IGNORE) | dict(classes.index_of)
        super().__init__(split, classes, _pairs(Path(root), split, "labelIds"), remap=remap)


class CityscapesInstanceSource(PairedSource):
    """The 8 countable classes from ``instanceIds``: label id * 1000 + number; a bare label id is a crowd region.

    The published training reads the polygons instead and cuts those in front out of those behind, which gives the same
    regions up to pixels on outlines.

    Args:
        root: the folder.
        split: train or val.
    """

    def __init__(self, root: PathLike, split: str = "train") -> None:
        super().__init__("instance", split, _classes("instance"), _pairs(Path(root), split, "instanceIds"))

    def truth(self, name: str) -> Truth:
        image, path = self.paths(name)
        values = read_numbers(path, "instance map")
        if values.ndim != 2:
            raise MaskError(f"{path}: instance map must hold one number a pixel, got colours")
        check_size(values, image_size(image), path, "instance map")
        objects = []
        for number in np.unique(values).tolist():
            label = self.classes.index_of.get(number // 1000 if number >= 1000 else number)
            if label is not None:
                objects.append(ObjectTruth(number, label, values == number, crowd=number < 1000))
        return Truth(values.shape[0], values.shape[1], objects=objects)


class CityscapesPanopticSource(COCOPanopticSource):
    """Panoptic files of createPanopticImgs, with label ids or training ids.

    Args:
        root: the folder.
        split: train or val.
    """

    def __init__(self, root: PathLike, split: str = "train") -> None:
        base = Path(root)
        super().__init__(
            base,
            split,
            annotations=base / "gtFine" / f"cityscapes_panoptic_{split}.json",
            images=base / "leftImg8bit" / split,
        )

    def image_file(self, name: str) -> Path:
        # The JSON calls images CITY_..._gtFine_leftImg8bit.png; the files lie in a folder a city.
        stem = Path(name).name.replace("_gtFine_leftImg8bit", "_leftImg8bit")
        city = check_inside(str(self.entry(name).id).split("_")[0], f"{self.file.path}: image id")
        return self.image_folder / city / stem


def _recognise(root: Path) -> str:
    return "" if (root / "leftImg8bit").is_dir() else "no leftImg8bit"


def _splits(root: Path) -> list[str]:
    return [split for split in folders_in(root / "leftImg8bit") if split != "test"]


LAYOUT = Layout(
    name="cityscapes",
    files="leftImg8bit/SPLIT/CITY/ gtFine/SPLIT/CITY/ (and gtFine/cityscapes_panoptic_*.json)",
    readers={
        "semantic": CityscapesSource,
        "instance": CityscapesInstanceSource,
        "panoptic": CityscapesPanopticSource,
        "few-shot": few_shot_view(CityscapesSource),
    },
    recognise=_recognise,
    splits=_splits,
    classes=_classes,
)
