"""LVIS: COCO's images with 1,203 classes, each annotated in some of the images only.

    ROOT/lvis_v1_train.json (or in annotations/)    ROOT/train2017/*.jpg    ROOT/val2017/*.jpg  (or below images/)

An image is where its ``coco_url`` ends: split and name, since images of LVIS's validation are also of COCO's training.
What an image says of classes beside its objects is kept: which are not in it (``neg_category_ids``), and of which not
every object is outlined (``not_exhaustive_category_ids``). Of all other classes it says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fssops.data.annotation_json import Problem
from fssops.data.coco_json import rows_of
from fssops.data.json_values import name, shown, whole_number
from fssops.data.layout import Layout
from fssops.data.layouts.coco import COCOSource, readers
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
        warn: warn of annotations that are dropped.

    Raises:
        FileNotFoundError: no such split, or none of its images is there.
        AnnotationError: the file is broken.
    """

    def __init__(self, root: PathLike, split: str | None = None, *, warn: bool = True) -> None:
        base = Path(root)
        files = _files(base)
        split = chosen_split(base, split, list(files))
        images = base / "images" if any(n.startswith(("train", "val")) for n in folders_in(base / "images")) else base
        self._said: dict[str, dict[str, list[int]]] = {}
        super().__init__(None, split, annotations=files[split], images=images, warn=warn)
        check_some_image(self, self.file.path, "they are those of COCO 2017: train2017.zip and val2017.zip")

    def adapt(self, content: dict[str, Any]) -> list[Problem]:
        problems: list[Problem] = []
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
            if isinstance(row.get("file_name"), str):
                self._said[row["file_name"]] = said
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

    def left_out(self) -> Iterator[str]:
        rule = "of classes that an image neither shows nor excludes nothing is known"
        yield f"{self.file.path}: {rule}; training and AP take them as absent"


def _recognise(root: Path) -> str:
    return "" if _files(root) else "no lvis_v1_*.json"


def _splits(root: Path) -> list[str]:
    return list(_files(root))


_READERS = readers(LVISSource)
LAYOUT = Layout(
    name="lvis",
    files="lvis_v1_SPLIT.json (or in annotations/), train2017/, val2017/ (or in images/)",
    readers={"instance": _READERS["instance"], "few-shot": _READERS["few-shot"]},  # too many classes for label maps
    recognise=_recognise,
    splits=_splits,
)
