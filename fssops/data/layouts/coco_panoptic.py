"""COCO panoptic JSON and PNGs; ADE20K's and Cityscapes' published conversions are read by it too.

ROOT/annotations/panoptic_SPLIT.json      ROOT/annotations/panoptic_SPLIT/*.png      ROOT/SPLIT/ or ROOT/images/SPLIT/
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fssops.data import panoptic_json
from fssops.data.class_names import spans
from fssops.data.errors import MaskSizeError
from fssops.data.images import check_size, image_size, read_sized
from fssops.data.json_values import shown
from fssops.data.layout import DataTruth, Layout, few_shot_view
from fssops.data.layouts import coco
from fssops.data.source import ImageSource, PathLike
from fssops.truth import Classes, ObjectTruth, Truth, TruthKind

if TYPE_CHECKING:
    from PIL import Image

_STUFF = (
    "banner|blanket|bridge|cardboard|counter|curtain|door-stuff|"
    "floor-wood|flower|fruit|gravel|house|light|mirror-stuff|net|pillow|platform|playingfield|railroad|"
    "river|road|roof|sand|sea|shelf|snow|stairs|tent|towel|wall-brick|wall-stone|wall-tile|wall-wood|"
    "water-other|window-blind|window-other|tree-merged|fence-merged|ceiling-merged|sky-other-merged|"
    "cabinet-merged|table-merged|floor-other-merged|pavement-merged|mountain-merged|grass-merged|dirt-merged|"
    "paper-merged|food-other-merged|building-other-merged|rock-merged|wall-other-merged|rug-merged"
)
NAMES = [*coco.NAMES, *_STUFF.split("|")]
"""133 names (cocodataset.org) by ascending category id: the 80 of the instance task, then 53 of stuff."""
IDS = coco.IDS + spans(
    "92-93 95 100 107 109 112 118-119 122 125 128 130 133 138 141 144-145 147-149 151 154-156 159 161 166 168 171 "
    "175-178 180-181 184-200"
)


class COCOPanopticSource(ImageSource):
    """COCO panoptic JSON and PNGs.

    Args:
        root: folder with ``annotations`` and images; may be None where annotation file and images are given.
        split: ``train2017``, or ``train`` where one year is present.
        annotations: panoptic JSON, instead of the one that ``split`` names.
        maps: folder of the PNGs; None: named as the JSON.
        images: folder of the images, instead of the one that ``split`` names.
        instances: instances JSON with objects that may overlap, for training and scoring instances; images are
            matched by file name, classes by category id. ``auto``: ROOT/annotations/instances_SPLIT.json where that
            is there. None: the countable segments are the instances.

    Raises:
        FileNotFoundError: a file or folder is missing.
        AnnotationError: a file is broken.
    """

    def __init__(
        self,
        root: PathLike | None,
        split: str = "train",
        *,
        annotations: PathLike | None = None,
        maps: PathLike | None = None,
        images: PathLike | None = None,
        instances: PathLike | None = None,
    ) -> None:
        path, self.image_folder, split = coco.find_places(
            "COCOPanopticSource", "panoptic", root, split, annotations, images
        )
        self.map_folder = Path(maps) if maps is not None else path.with_suffix("")
        if not self.map_folder.is_dir():
            raise FileNotFoundError(f"{self.map_folder}: the PNGs of {path.name} must be there, got no such folder")
        self.file = panoptic_json.read(path)
        self.objects = None
        if instances == "auto":
            beside = Path(root or ".") / "annotations" / f"instances_{split}.json"
            instances = beside if beside.is_file() else None
        if instances is not None:
            self.objects = coco.COCOSource(None, split, annotations=instances, images=self.image_folder)
        super().__init__("panoptic", split, self.file.classes, list(self.file.images))

    @property
    def label(self) -> str:
        name = super().label
        return name if self.objects is None else f"{name} (objects of {self.objects.file.path.name})"

    def entry(self, name: str) -> panoptic_json.PanopticImage:
        """The JSON's row of an image.

        Raises:
            ValueError: no such image.
        """
        self.check_name(name)
        return self.file.images[name]

    def image_file(self, name: str) -> Path:
        return self.image_folder / name

    def image_id(self, name: str) -> int | str:
        return self.entry(name).id

    def image(self, name: str) -> Image.Image:
        return read_sized(self.image_file(name), self.entry(name).size)

    def truth(self, name: str) -> Truth:
        entry = self.entry(name)
        path = self.map_folder / entry.map
        ids, segments = panoptic_json.read_map(path, entry), list(entry.segments)
        check_size(ids, image_size(self.image_file(name)), path, "panoptic map")
        height, width = ids.shape
        return Truth(height, width, segment_ids=ids, segments=segments, objects=self._objects(name, width, height))

    def truth_files(self, name: str) -> tuple[Path, ...]:
        return self.file.path, self.map_folder / self.entry(name).map

    def crowds(self, name: str, kind: TruthKind) -> list[bool]:
        if kind == "instance" and self.objects is not None:
            return self.objects.crowds(name, kind) if name in self.objects else []
        counted = set(range(len(self.classes)) if kind == "panoptic" else self.classes.things)
        return [segment.crowd for segment in self.entry(name).segments if segment.label in counted]

    def problems(self) -> Iterator[tuple[str, str]]:
        for kind, text in self.file.problems:
            yield kind, f"{self.file.path}: {text}"
        if self.objects is not None:
            yield from self.objects.problems()

    def disagreements(self, name: str, truth: Truth) -> Iterator[str]:
        """Segments whose area in the JSON is not what the PNG shows."""
        assert truth.segment_ids is not None
        ids, counts = np.unique(truth.segment_ids, return_counts=True)
        pixels = dict(zip(ids.tolist(), counts.tolist(), strict=True))
        for number, area in self.entry(name).areas.items():
            if area != pixels.get(number, 0):
                rule = f"area of segment {number} must be that of the PNG, {pixels.get(number, 0)}"
                yield f"{self.file.path}: {rule}, got {shown(area)}"

    def _objects(self, name: str, width: int, height: int) -> list[ObjectTruth] | None:
        if self.objects is None:
            return None
        if name not in self.objects:
            return []
        truth = self.objects.truth(name)
        if (truth.width, truth.height) != (width, height):
            raise MaskSizeError(
                f"{self.objects.file.path}: image {name} must have the size of its file, {width} x {height}, "
                f"got {truth.width} x {truth.height}"
            )
        ids = [category.id for category in self.objects.classes.categories]
        return [
            ObjectTruth(o.id, self.classes.index_of[ids[o.label]], o.outline, o.crowd, o.area)
            for o in truth.objects or []
            if ids[o.label] in self.classes.index_of
        ]


def _recognise(root: Path) -> str:
    return "" if _splits(root) else "no annotations/panoptic_*.json"


def _splits(root: Path) -> list[str]:
    return coco.splits_with(root, "panoptic")


def _classes(truth: DataTruth) -> Classes:
    return Classes.from_names(NAMES, range(len(coco.NAMES)), ids=IDS)


LAYOUT = Layout(
    name="coco_panoptic",
    files="annotations/panoptic_SPLIT.json, annotations/panoptic_SPLIT/*.png, SPLIT/ or images/SPLIT/",
    readers={
        "panoptic": COCOPanopticSource,
        "semantic": COCOPanopticSource,
        "instance": COCOPanopticSource,
        "few-shot": few_shot_view(COCOPanopticSource, options=("crowd",)),
    },
    recognise=_recognise,
    splits=_splits,
    classes=_classes,
    other_classes=True,
    instead_of_root=("annotations", "images"),
    family="coco",
)
