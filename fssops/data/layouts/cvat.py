"""CVAT's COCO 1.0 export, and others of Datumaro's: a file a subset, images by subset or all in one folder.

    ROOT/annotations/instances_default.json      ROOT/images/*.jpg  (or ROOT/images/default/)
    ROOT/annotations/instances_SUBSET.json       ROOT/images/SUBSET/*.jpg

CVAT writes ``iscrowd`` 1 for every object that was drawn as a mask (brush, SAM) instead of a polygon: it means that the
outline is run lengths. So these are objects here, unless ``crowd_rule="crowd"`` says that they are groups, as in COCO.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from fssops.data.annotation_json import Problem
from fssops.data.coco_json import rows_of
from fssops.data.json_values import yes_or_no
from fssops.data.layout import Layout
from fssops.data.layouts import coco
from fssops.data.listing import holds_pictures
from fssops.data.source import PathLike
from fssops.data.tool_exports import check_outlined, check_some_image, chosen_split


def _splits(root: Path) -> list[str]:
    return coco.splits_with(root, "instances")


class CVATSource(coco.COCOSource):
    """Objects of CVAT's COCO export; layout in the module.

    Args:
        root: the folder.
        split: a subset; ``default`` of exports without subsets, which ``train`` and ``all`` mean as well. None: train,
            or the only one.
        crowd_rule: whether ``iscrowd`` 1 means an ``object`` drawn as a mask, or a ``crowd``.
        warn: warn of annotations that are dropped.

    Raises:
        FileNotFoundError: no such subset, or none of its images is there.
        AnnotationError: the file is broken, or marks objects by boxes alone.
    """

    def __init__(
        self,
        root: PathLike,
        split: str | None = None,
        *,
        crowd_rule: Literal["object", "crowd"] = "object",
        warn: bool = True,
    ) -> None:
        if crowd_rule not in ("object", "crowd"):
            raise ValueError(f"CVATSource: crowd_rule must be object or crowd, got {crowd_rule!r}")
        base = Path(root)
        split = chosen_split(base, split, _splits(base))
        self._crowds_are_objects = crowd_rule == "object"
        self._path = base / "annotations" / f"instances_{split}.json"
        folders = [base / "images" / split, base / "images", base / split]
        images = next((folder for folder in folders if holds_pictures(folder)), None)
        images = images or next((folder for folder in folders if folder.is_dir()), None)
        if images is None:
            raise FileNotFoundError(
                f"{folders[0]}: the images of {self._path.name} must be there or in images, got no such folder; export "
                "again with Save images, or copy them"
            )
        super().__init__(None, split, annotations=self._path, images=images, warn=warn)
        check_some_image(self, self._path, "export again with Save images, or copy them")

    def adapt(self, content: dict[str, Any]) -> list[Problem]:
        check_outlined(self._path, content, "mark objects by polygons or masks, not by rectangles")
        marked = [row for row in rows_of(content, "annotations") if yes_or_no(row.get("iscrowd"))]
        if not marked or not self._crowds_are_objects:
            return []
        for row in marked:
            row["iscrowd"] = 0
        text = f"{len(marked)} annotations with iscrowd 1 are read as objects drawn as masks"
        return [("read_as", f'{text}, as CVAT means it; say crowd_rule="crowd" if they are groups')]

    def identity(self) -> Mapping[str, object]:
        return {} if self._crowds_are_objects else {"crowd_rule": "crowd"}


def _recognise(root: Path) -> str:
    if not _splits(root):
        return "no annotations/instances_*.json"
    return "" if coco.is_from_datumaro(root) else "annotations/instances_*.json are not of CVAT's form"


LAYOUT = Layout(
    name="cvat",
    files="annotations/instances_default.json (or a file a subset), images/ or images/SUBSET/",
    readers=coco.readers_of_objects(CVATSource),
    recognise=_recognise,
    splits=_splits,
)
