"""LVIS: COCO's images with 1,203 classes, each annotated in some of the images only.

    ROOT/lvis_v1_train.json (or in annotations/)    ROOT/train2017/*.jpg    ROOT/val2017/*.jpg  (or below images/)

An image is where its ``coco_url`` ends: split and name, since images of LVIS's validation are also of COCO's training.
What an image says of classes beside its objects is kept: which are not in it (``neg_category_ids``), and of which not
every object is outlined (``not_exhaustive_category_ids``). Of all other classes it says nothing.
LVIS's own evaluation needs that, ours does not know it, and says so. 1,203 classes are too many for label maps.

Source: Gupta, Dollár and Girshick, "LVIS: A dataset for large vocabulary instance segmentation", CVPR 2019.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fssops.data.annotation_json import Problem
from fssops.data.coco_json import rows_of
from fssops.data.json_values import name, shown, whole_number
from fssops.data.layout import Layout
from fssops.data.layouts.coco import COCOSource, readers_of_objects
from fssops.data.listing import folders_in
from fssops.data.source import PathLike
from fssops.data.tool_exports import check_some_image, chosen_split

_FACTS = ("neg_category_ids", "not_exhaustive_category_ids")


def _files(root: Path) -> dict[str, Path]:
    """Annotation files by split."""
    found = [path for folder in (root, root / "annotations") for path in sorted(folder.glob("lvis_v*_*.json"))]
    split_of = {path: path.stem.split("_", 2)[2] for path in found}
    return {split: path for path, split in split_of.items() if not split.startswith("image_info")}


class LVISSource(COCOSource):
    """Objects of LVIS; layout in the module.

    Args:
        root: the folder.
        split: ``train``, ``val``, ``minival``, as files are called. None: train, or the only one.
        images: folder that holds ``train2017`` and ``val2017``, instead of ROOT or ROOT/images.
        warn: warn of annotations that are dropped.

    Raises:
        FileNotFoundError: no such split, or none of its images is there.
        AnnotationError: the file is broken.
    """

    def __init__(
        self, root: PathLike, split: str | None = None, *, images: PathLike | None = None, warn: bool = True
    ) -> None:
        base = Path(root)
        files = _files(base)
        split = chosen_split(base, split, list(files))
        if images is None:
            below = any(name.startswith(("train", "val")) for name in folders_in(base / "images"))
            images = base / "images" if below else base
        self._said: dict[str, dict[str, list[int]]] = {}
        super().__init__(None, split, annotations=files[split], images=images, warn=warn)
        check_some_image(self, self.file.path, "they are those of COCO 2017: train2017.zip and val2017.zip")

    def adapt(self, content: dict[str, Any]) -> list[Problem]:
        problems: list[Problem] = []
        partly = 0
        known = {whole_number(row.get("id")) for row in rows_of(content, "categories")}
        for row in rows_of(content, "images"):
            url = name(row.get("coco_url"))
            if url is not None:
                row["file_name"] = "/".join(url.split("/")[-2:])
            said: dict[str, list[int]] = {}
            for fact in _FACTS:
                given = row.get(fact) or []
                numbers = [whole_number(value) for value in given] if isinstance(given, list) else [None]
                said[fact] = [number for number in numbers if number is not None and number in known]
                if len(said[fact]) != len(numbers):
                    text = f"image {shown(row.get('id'))}: {fact} must be ids of categories, got {shown(given)}"
                    problems.append(("unknown_id", f"{text}; others are left out"))
            partly += bool(said["not_exhaustive_category_ids"])
            if isinstance(row.get("file_name"), str):
                self._said[row["file_name"]] = said
        if partly:
            text = f"{partly} images are not labelled with all objects of some classes"
            problems.append(("read_as", f"{text}; objects found there count as wrong"))
        return problems

    def negative(self, name: str) -> list[int]:
        """Indices of classes that are said not to be in an image."""
        return self._classes_said(name, "neg_category_ids")

    def not_exhaustive(self, name: str) -> list[int]:
        """Indices of classes of which an image may show more objects than are outlined."""
        return self._classes_said(name, "not_exhaustive_category_ids")

    def _classes_said(self, name: str, fact: str) -> list[int]:
        self.check_name(name)
        return [self.classes.index_of[number] for number in self._said[name][fact]]


def _recognise(root: Path) -> str:
    return "" if _files(root) else "no lvis_v1_*.json"


def _splits(root: Path) -> list[str]:
    return list(_files(root))


LAYOUT = Layout(
    name="lvis",
    files="lvis_v1_SPLIT.json (or in annotations/), train2017/, val2017/ (or in images/)",
    readers=readers_of_objects(LVISSource),
    recognise=_recognise,
    splits=_splits,
)
