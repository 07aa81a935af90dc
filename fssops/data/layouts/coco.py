"""COCO instances: polygons, run lengths and crowds, 2014 and 2017.

    ROOT/annotations/instances_train2017.json    ROOT/train2017/000000000009.jpg
    ROOT/annotations/instances_val2014.json      ROOT/val2014/COCO_val2014_000000000042.jpg  (or ROOT/images/val2014)
    ROOT/annotations/instances_train.json        ROOT/images/NAME.jpg

Few-shot classes are numbered 1..80 in the order of the category ids, as PANet, BAM and MSANet number them. Label maps
are those of few-shot data: the smaller object on top, crowds ignored, everything else background.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fssops.data import coco_json
from fssops.data.annotation_json import Problem
from fssops.data.class_names import spans
from fssops.data.errors import AnnotationError
from fssops.data.few_shot_source import FewShotSource
from fssops.data.images import read_sized
from fssops.data.layout import DataTruth, Layout, Reader, few_shot_view
from fssops.data.layouts import ytvis
from fssops.data.listing import holds_pictures
from fssops.data.source import ImageSource, PathLike
from fssops.truth import Classes, ObjectTruth, Truth, TruthKind

if TYPE_CHECKING:
    from PIL import Image


_NAMES = (
    "person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant|stop sign|"
    "parking meter|bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|backpack|umbrella|"
    "handbag|tie|suitcase|frisbee|skis|snowboard|sports ball|kite|baseball bat|baseball glove|skateboard|"
    "surfboard|tennis racket|bottle|wine glass|cup|fork|knife|spoon|bowl|banana|apple|sandwich|orange|"
    "broccoli|carrot|hot dog|pizza|donut|cake|chair|couch|potted plant|bed|dining table|toilet|tv|"
    "laptop|mouse|remote|keyboard|cell phone|microwave|oven|toaster|sink|refrigerator|book|clock|vase|"
    "scissors|teddy bear|hair drier|toothbrush"
)
NAMES: list[str] = _NAMES.split("|")
"""COCO's 80 classes (cocodataset.org), all of them things."""
IDS = spans("1-11 13-25 27-28 31-44 46-65 67 70 72-82 84-90")
"""Category id of each class in COCO's files."""


# Places of the files.


def find_split(root: Path, prefix: str, split: str) -> tuple[Path, str]:
    """Annotation file of a split, and the split's full name; ``val`` finds val2017 where one year is there.

    ``train`` finds ``default``, CVAT's name of a set without splits, where nothing else is there.

    Raises:
        FileNotFoundError: none.
        AnnotationError: several.
    """
    folder = root / "annotations"
    exact = folder / f"{prefix}_{split}.json"
    if exact.is_file():
        return exact, split
    of_years = sorted(folder.glob(f"{prefix}_{split}[0-9][0-9][0-9][0-9].json"))
    if len(of_years) == 1:
        return of_years[0], of_years[0].stem.removeprefix(f"{prefix}_")
    if of_years:
        fitting = ", ".join(path.stem.removeprefix(f"{prefix}_") for path in of_years)
        raise AnnotationError(f"{folder}: split must name one annotation file, got {split!r} (fits {fitting})")
    if split == "train" and splits_with(root, prefix) == ["default"]:
        return folder / f"{prefix}_default.json", "default"
    there = ", ".join(splits_with(root, prefix)) or "none"
    raise FileNotFoundError(f"{exact}: annotation file must exist, got no such file (splits there: {there})")


def splits_with(root: Path, prefix: str) -> list[str]:
    """Splits that have an annotation file of a kind."""
    return sorted(p.stem.removeprefix(f"{prefix}_") for p in (root / "annotations").glob(f"{prefix}_*.json"))


def is_from_datumaro(root: Path) -> bool:
    """Whether the instances files are CVAT's: of its default subset, or with the head that Datumaro writes."""
    for split in splits_with(root, "instances"):
        with (root / "annotations" / f"instances_{split}.json").open("rb") as file:
            head = b"".join(file.read(256).split())
        if split == "default" or head.startswith(b'{"licenses":[{"name":"","id":0,"url":""}],"info":{"contributor":""'):
            return True
    return False


def find_places(
    where: str,
    prefix: str,
    root: PathLike | None,
    split: str,
    annotations: PathLike | None,
    images: PathLike | None,
) -> tuple[Path, Path, str]:
    """Annotation file, image folder and full name of a split: as they are given, else as the layout has them.

    Raises:
        ValueError: neither the folder nor both of them are given.
        FileNotFoundError: one of them is missing.
        AnnotationError: the split fits several files.
    """
    if root is None and (annotations is None or images is None):
        raise ValueError(f"{where}: root must be a folder unless annotations and images are given, got None")
    base = Path(root or ".")
    if annotations is None:
        path, split = find_split(base, prefix, split)
    else:
        path = Path(annotations)
    if images is not None:
        if not Path(images).is_dir():
            raise FileNotFoundError(f"{images}: images must be a folder, got no such folder")
        return path, Path(images), split
    for folder in (base / split, base / "images" / split):
        if folder.is_dir():
            return path, folder, split
    if holds_pictures(base / "images"):
        return path, base / "images", split
    raise FileNotFoundError(
        f"{base / split}: the images of split {split!r} must be there, under images/{split} or images"
    )


# Sources.


class COCOSource(ImageSource):
    """Objects of COCO instances JSON.

    Args:
        root: folder with ``annotations`` and images; may be None where both are given below.
        split: ``train2017``, or ``train`` where one year is present.
        annotations: annotation file, instead of the one that ``split`` names.
        images: folder of the images, instead of the one that ``split`` names.
        warn: warn of annotations that are dropped.

    Attributes:
        file: the checked annotation file, with ``dropped`` annotations and why.

    Raises:
        FileNotFoundError: a file or folder is missing.
        AnnotationError: the file is broken.
    """

    def __init__(
        self,
        root: PathLike | None,
        split: str = "train",
        *,
        annotations: PathLike | None = None,
        images: PathLike | None = None,
        warn: bool = True,
    ) -> None:
        path, self.image_folder, split = find_places("COCOSource", "instances", root, split, annotations, images)
        self.file = coco_json.read(path, adapt=self.adapt, warn=warn)
        self._ids = {name: identifier for identifier, (name, _, _) in self.file.images.items()}
        super().__init__("instance", split, self.file.classes, list(self._ids))

    def adapt(self, content: dict[str, Any]) -> list[Problem]:
        """Bring a tool's tables into COCO's form; see :data:`fssops.data.coco_json.Adapt`."""
        return []

    def _entry(self, name: str) -> tuple[int | str, int, int]:
        """Image id, width and height."""
        self.check_name(name)
        _, width, height = self.file.images[self._ids[name]]
        return self._ids[name], width, height

    def image_id(self, name: str) -> int | str:
        return self._entry(name)[0]

    def image_file(self, name: str) -> Path:
        return self.image_folder / name

    def image(self, name: str) -> Image.Image:
        _, width, height = self._entry(name)
        return read_sized(self.image_file(name), (width, height))

    def annotations_of(self, name: str) -> list[coco_json.Annotation]:
        """Usable annotations of an image, in the order of the file."""
        return self.file.annotations.get(self._entry(name)[0], [])

    def truth(self, name: str) -> Truth:
        _, width, height = self._entry(name)
        objects = []
        for row in self.annotations_of(name):
            outline = row.segmentation
            if isinstance(outline, list):
                outline = [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in outline]
            objects.append(ObjectTruth(row.id, self.classes.index_of[row.category], outline, row.crowd, row.area))
        return Truth(height, width, objects=objects)

    def truth_files(self, name: str) -> tuple[Path, ...]:
        return (self.file.path,)

    def crowds(self, name: str, kind: TruthKind) -> list[bool]:
        return [row.crowd for row in self.annotations_of(name)]

    def images_of_annotations(self, label: int) -> list[str]:
        """The order is that of pycocotools' ``getImgIds``, a Python set of image ids built in the order of the file."""
        category = self.classes.categories[label].id
        images = self.file.images_of_category.get(category, [])
        # The order of a set of texts differs from run to run.
        ordered = set(images) if all(isinstance(image, int) for image in images) else dict.fromkeys(images)
        names = dict.fromkeys(self.file.images[identifier][0] for identifier in ordered)
        # Of a list of names some are left out.
        listed = [name for name in names if name in self]
        return [name for name in listed if any(row.category == category for row in self.annotations_of(name))]

    def problems(self) -> Iterator[tuple[str, str]]:
        for kind, text in self.file.told():
            yield kind, f"{self.file.path}: {text}"


class COCOLabelMapSource(ImageSource):
    """Label maps painted from a few-shot view of objects; class 0 is the background."""

    def __init__(self, objects: FewShotSource) -> None:
        self.objects = objects
        names = ["background", *objects.classes.values()]
        classes = Classes.from_names(names, range(1, len(names)))
        classes.check_label_maps("COCOLabelMapSource")
        super().__init__("semantic", objects.split, classes, objects.names)

    def image_id(self, name: str) -> int | str:
        return self.objects.images.image_id(name)

    def image_file(self, name: str) -> Path | None:
        return self.objects.images.image_file(name)

    def image(self, name: str) -> Image.Image:
        self.check_name(name)
        return self.objects.image(name)

    def truth(self, name: str) -> Truth:
        self.check_name(name)
        labels = self.objects.label_map(name)
        return Truth(labels.shape[0], labels.shape[1], label_map=labels)

    def truth_files(self, name: str) -> tuple[Path, ...]:
        return self.objects.images.truth_files(name)

    def problems(self) -> Iterator[tuple[str, str]]:
        return self.objects.images.problems()


def readers_of_objects(source: Callable[..., ImageSource]) -> dict[DataTruth, Reader]:
    """Objects for instance segmentation, painted as label maps for semantic, as numbered classes for few-shot.

    Args:
        source: opens the objects; its options stay, ``crowd`` and ``overlap`` of label maps come with them.
    """
    few_shot = few_shot_view(source, options=("crowd", "overlap"))

    @functools.wraps(few_shot)
    def semantic(*arguments: Any, **options: Any) -> COCOLabelMapSource:
        return COCOLabelMapSource(few_shot(*arguments, **options))

    return {"instance": source, "semantic": semantic, "few-shot": few_shot}


_READERS = readers_of_objects(COCOSource)
few_shot = _READERS["few-shot"]


# The layouts.


def _recognise(root: Path) -> str:
    if not splits_with(root, "instances"):
        return "no annotations/instances_*.json"
    if is_from_datumaro(root):
        return "annotations/instances_*.json are CVAT's"
    return "annotations/instances_*.json lists videos" if ytvis.lists_videos(root) else ""


def _recognise_without_panoptic(root: Path) -> str:
    return _recognise(root) or ("annotations/panoptic_*.json hold more" if splits_with(root, "panoptic") else "")


def _splits(root: Path) -> list[str]:
    return splits_with(root, "instances")


def _classes(truth: DataTruth) -> Classes:
    """Background and 80 classes of label maps, by their place; else the 80 by COCO's ids."""
    if truth == "semantic":
        return Classes.from_names(["background", *NAMES], range(1, len(NAMES) + 1))
    return Classes.from_names(NAMES, range(len(NAMES)), ids=IDS)


_FILES = "annotations/instances_SPLIT.json, SPLIT/ or images/SPLIT/ or images/"
_GIVEN = ("annotations", "images")
LAYOUTS = (
    Layout(
        name="coco",
        files=_FILES,
        readers={truth: _READERS[truth] for truth in ("few-shot", "instance", "semantic")},
        recognise=_recognise,
        splits=_splits,
        classes=_classes,
        other_classes=True,
        instead_of_root=_GIVEN,
        family="coco",
    ),
    Layout(
        name="coco_instances",
        files="as coco, with the rules of instance segmentation",
        readers=_READERS,
        recognise=_recognise_without_panoptic,
        splits=_splits,
        classes=_classes,
        other_classes=True,
        instead_of_root=_GIVEN,
        family="coco",
    ),
)
