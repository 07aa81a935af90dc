"""LVIS: COCO's images with 1,203 classes, of which each image is labelled with some.

    ROOT/lvis_v1_train.json (or ROOT/annotations/...)    ROOT/train2017/000000391895.jpg    ROOT/val2017/...

Images are found by the end of ``coco_url``: LVIS's validation images come from both of COCO's folders. An image tells
in ``neg_category_ids`` and ``not_exhaustive_category_ids`` what it does not show and where objects are missing; LVIS's
own evaluation needs that, ours does not know it, and says so.

Source: Gupta, Dollár and Girshick, "LVIS: A dataset for large vocabulary instance segmentation", CVPR 2019.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fssops.data.annotation_json import Problem
from fssops.data.layout import Layout
from fssops.data.layouts.coco import COCOSource, readers_of_objects
from fssops.data.source import PathLike


def _files(root: Path) -> dict[str, Path]:
    found = {}
    for folder in (root / "annotations", root):
        found.update({path.stem.split("_")[-1]: path for path in sorted(folder.glob("lvis_v*_*.json"))})
    return found


class LVISSource(COCOSource):
    """Objects of LVIS; layout in the module.

    Args:
        root: the folder.
        split: ``train`` or ``val``.
        images: folder that holds ``train2017`` and ``val2017``, instead of ROOT.

    Raises:
        FileNotFoundError: there is no such file.
        AnnotationError: the file is broken.
    """

    def __init__(self, root: PathLike, split: str = "train", *, images: PathLike | None = None) -> None:
        base = Path(root)
        files = _files(base)
        if split not in files:
            raise FileNotFoundError(f"{base}: split must be one of {', '.join(files) or 'none'}, got {split!r}")
        super().__init__(None, split, annotations=files[split], images=base if images is None else images)

    def adapt(self, content: dict[str, Any]) -> list[Problem]:
        partly = 0
        for row in content["images"]:
            if isinstance(row, dict):
                if "file_name" not in row and isinstance(row.get("coco_url"), str):
                    row["file_name"] = "/".join(row["coco_url"].split("/")[-2:])
                partly += bool(row.get("not_exhaustive_category_ids"))
        if not partly:
            return []
        text = f"{partly} images are not labelled with all objects of some classes; objects found there count as wrong"
        return [("read_as", text)]


LAYOUT = Layout(
    name="lvis",
    files="lvis_v1_SPLIT.json, train2017/, val2017/",
    readers=readers_of_objects(LVISSource),
    recognise=lambda root: "" if _files(root) else "no lvis_v*_*.json",
    splits=lambda root: list(_files(root)),
)
