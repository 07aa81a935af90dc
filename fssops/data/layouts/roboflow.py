"""Roboflow's COCO export: an annotation file among the images of each split.

    ROOT/train/_annotations.coco.json    ROOT/train/*.jpg    (valid/ and test/ alike)
    ROOT/_annotations.coco.json          ROOT/*.jpg          (one folder of it)

Roboflow lists a category 0 that is called after the project and groups the others: their ``supercategory``. Where no
annotation of any split is of it, it is no class and is left out, as rf-detr leaves it out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fssops.data.annotation_json import Problem
from fssops.data.coco_json import rows_of
from fssops.data.json_values import shown, whole_number
from fssops.data.layout import Layout
from fssops.data.layouts.coco import COCOSource, readers_of_objects
from fssops.data.listing import folders_in
from fssops.data.source import PathLike
from fssops.data.tool_exports import check_outlined, check_some_image, chosen_split

FILE = "_annotations.coco.json"
_OF_CATEGORY_0 = re.compile(rb'"category_id"\s*:\s*(0(\.0)?|"0")\s*[,}]')


def _files(root: Path) -> dict[str, Path]:
    """Annotation files by split."""
    if (root / FILE).is_file():
        return {"all": root / FILE}
    return {name: root / name / FILE for name in folders_in(root) if (root / name / FILE).is_file()}


class RoboflowSource(COCOSource):
    """Objects of Roboflow's COCO export; layout in the module.

    Args:
        root: the folder.
        split: ``train``, ``valid`` (or ``val``), ``test``; of a single folder ``all``. None: train, or the only one.
        warn: warn of annotations that are dropped.

    Raises:
        FileNotFoundError: no such split, or none of its images is there.
        AnnotationError: the file is broken, or marks objects by boxes alone.
    """

    def __init__(self, root: PathLike, split: str | None = None, *, warn: bool = True) -> None:
        base = Path(root)
        self._files = _files(base)
        split = chosen_split(base, split, list(self._files))
        self._path = self._files[split]
        super().__init__(None, split, annotations=self._path, images=self._path.parent, warn=warn)
        check_some_image(self, self._path, "put the export's images beside it")

    def adapt(self, content: dict[str, Any]) -> list[Problem]:
        check_outlined(self._path, content, "export again as COCO Segmentation")
        categories = rows_of(content, "categories")
        first = next((row for row in categories if whole_number(row.get("id")) == 0), None)
        groups = {shown(row.get("supercategory")) for row in categories if row is not first}
        if first is None or shown(first.get("name")) not in groups:
            return []
        if any(_OF_CATEGORY_0.search(file.read_bytes()) for file in self._files.values()):
            return []
        content["categories"].remove(first)
        text = f"category 0, {shown(first.get('name'))}, has no object and is above the others; left out"
        return [("read_as", text)]


def _recognise(root: Path) -> str:
    return "" if _files(root) else f"no {FILE} in it or in folders of it"


def _splits(root: Path) -> list[str]:
    return list(_files(root))


LAYOUT = Layout(
    name="roboflow",
    files=f"train/{FILE}, train/*.jpg; valid/ and test/ alike",
    readers=readers_of_objects(RoboflowSource),
    recognise=_recognise,
    splits=_splits,
)
