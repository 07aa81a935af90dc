"""Cityscapes: 19 classes in the published order of training ids, from the files of gtFine.

    ROOT/leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png
    ROOT/gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png, NAME_gtFine_instanceIds.png
    ROOT/gtFine/cityscapes_panoptic_SPLIT.json, ROOT/gtFine/cityscapes_panoptic_SPLIT/      (panoptic only)

Label ids that are not among the 19 classes are ignored. Panoptic files come from cityscapesscripts'
createPanopticImgs.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from fssops.data.errors import DataError, MaskError, MaskSizeError
from fssops.data.images import image_size, read_image, read_numbers
from fssops.data.paths import check_inside
from fssops.data.universal import panoptic_json
from fssops.data.universal.coco_sources import COCOPanopticSource
from fssops.data.universal.label_folder import LabelMapSource
from fssops.data.universal.source import UniversalSource
from fssops.truth import Category, Classes, ObjectTruth, Truth, TruthKind

_ROWS = """7 road 128 64 128|8 sidewalk 244 35 232|11 building 70 70 70|12 wall 102 102 156|13 fence 190 153 153
17 pole 153 153 153|19 traffic_light 250 170 30|20 traffic_sign 220 220 0|21 vegetation 107 142 35
22 terrain 152 251 152|23 sky 70 130 180|24 person 220 20 60|25 rider 255 0 0|26 car 0 0 142|27 truck 0 0 70
28 bus 0 60 100|31 train 0 80 100|32 motorcycle 0 0 230|33 bicycle 119 11 32"""

FIRST_THING = 24
"""Label ids from here on are countable."""


def _categories() -> tuple[Category, ...]:
    found = []
    for row in _ROWS.replace("\n", "|").split("|"):
        number, name, *colour = row.split()
        red, green, blue = map(int, colour)
        found.append(
            Category(int(number), name.replace("_", " "), (red, green, blue), is_thing=int(number) >= FIRST_THING)
        )
    return tuple(found)


CLASSES = Classes(_categories())
"""The 19 classes; ids are Cityscapes' label ids."""
THINGS = Classes(tuple(category for category in CLASSES.categories if category.is_thing))
"""The 8 classes of instance segmentation."""


def _files(root: Path, split: str, kind: str) -> dict[str, tuple[Path, Path]]:
    """Image and annotation of each name CITY/NAME."""
    images, truth = root / "leftImg8bit" / split, root / "gtFine" / split
    for folder in (images, truth):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: folder must exist, got no such folder")
    found = {}
    for path in sorted(images.glob("*/*_leftImg8bit.png")):
        name = path.name.removesuffix("_leftImg8bit.png")
        found[f"{path.parent.name}/{name}"] = (path, truth / path.parent.name / f"{name}_gtFine_{kind}.png")
    if not found:
        raise DataError(f"{images}: there must be at least one CITY/NAME_leftImg8bit.png, got none")
    return found


class CityscapesInstanceSource(UniversalSource):
    """The 8 countable classes from ``instanceIds``: label id * 1000 + number; a bare label id is a crowd region.

    The published training reads the polygons instead and cuts those in front out of those behind, which gives the same
    regions up to pixels on outlines.

    Args:
        root: the folder.
        split: train or val.
    """

    format = "cityscapes"

    def __init__(self, root: str | os.PathLike[str], split: str = "train") -> None:
        self._files = _files(Path(root), split, "instanceIds")
        super().__init__("instance", split, THINGS, list(self._files))

    def image(self, name: str) -> Image.Image:
        self.check_name(name)
        return read_image(self._files[name][0])

    def truth(self, name: str) -> Truth:
        self.check_name(name)
        image, path = self._files[name]
        values, (width, height) = read_numbers(path, what="instance map"), image_size(image)
        if values.ndim != 2:
            raise MaskError(f"{path}: instance map must hold one number a pixel, got colours")
        if values.shape != (height, width):
            raise MaskSizeError(
                f"{path}: instance map must have the size of its image, {width} x {height}, "
                f"got {values.shape[1]} x {values.shape[0]}"
            )
        objects = []
        for number in np.unique(values).tolist():
            label = self.classes.index_of.get(number // 1000 if number >= 1000 else number)
            if label is not None:
                objects.append(ObjectTruth(number, label, values == number, crowd=number < 1000))
        return Truth(height, width, objects=objects)

    def training_names(self, kind: TruthKind) -> list[str]:
        # As published: only images with an object, which needs a look at every map.
        return [name for name in self.names if any(not o.crowd for o in self.truth(name).objects or ())]


class CityscapesPanopticSource(COCOPanopticSource):
    """Panoptic files of createPanopticImgs, with label ids or training ids.

    Args:
        root: the folder.
        split: train or val.
    """

    format = "cityscapes"

    def __init__(self, root: str | os.PathLike[str], split: str = "train") -> None:
        base = Path(root)
        super().__init__(
            base,
            split,
            annotations=base / "gtFine" / f"cityscapes_panoptic_{split}.json",
            images=base / "leftImg8bit" / split,
        )

    def image_path(self, name: str) -> Path:
        entry: panoptic_json.PanopticImage = self.entry(name)
        # The JSON calls images CITY_..._gtFine_leftImg8bit.png; the files lie in a folder a city.
        stem = Path(name).name.replace("_gtFine_leftImg8bit", "_leftImg8bit")
        city = check_inside(str(entry.id).split("_")[0], f"{self.file.path}: image id")
        return self.image_folder / city / stem


def cityscapes(root: str | os.PathLike[str], split: str = "train", kind: TruthKind = "semantic") -> UniversalSource:
    """Open Cityscapes for a task."""
    if kind == "instance":
        return CityscapesInstanceSource(root, split)
    if kind == "panoptic":
        return CityscapesPanopticSource(root, split)
    return CityscapesSemanticSource(root, split)


class CityscapesSemanticSource(LabelMapSource):
    """The 19 classes from ``labelIds``; every other label id is ignored.

    Args:
        root: the folder.
        split: train or val.
    """

    format = "cityscapes"

    def __init__(self, root: str | os.PathLike[str], split: str = "train") -> None:
        remap = dict.fromkeys(range(34), 255) | dict(CLASSES.index_of)
        super().__init__(split, CLASSES, _files(Path(root), split, "labelIds"), remap=remap)
