"""COCO as Roboflow exports it: a JSON file among the images of each split.

    ROOT/train/_annotations.coco.json    ROOT/train/NAME.jpg
    ROOT/valid/_annotations.coco.json    ROOT/valid/NAME.jpg        (also ROOT/test; or all of it in ROOT alone)

The project's name stands among the categories, with id 0, as the supercategory of the others; no object is of it, and
it is left out and told.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fssops.data.annotation_json import Problem
from fssops.data.layout import Layout
from fssops.data.layouts.coco import COCOSource, readers_of_objects
from fssops.data.listing import folders_in
from fssops.data.source import PathLike

FILE = "_annotations.coco.json"


def splits(root: Path) -> list[str]:
    """Folders that hold an annotation file, or ``all`` where the root holds it."""
    listed = [name for name in folders_in(root) if (root / name / FILE).is_file()]
    return listed or (["all"] if (root / FILE).is_file() else [])


class RoboflowSource(COCOSource):
    """Objects of a Roboflow export; layout in the module.

    Args:
        root: the folder.
        split: ``train``, ``valid`` (``val`` finds it too) or ``test``; ``all`` where ROOT holds the images itself.

    Raises:
        FileNotFoundError: there is no such split.
        AnnotationError: the file is broken.
    """

    def __init__(self, root: PathLike, split: str = "train") -> None:
        base = Path(root)
        there = splits(base)
        if split == "val" and "val" not in there:
            split = "valid"
        if split not in there:
            raise FileNotFoundError(f"{base}: split must be one of {', '.join(there) or 'none'}, got {split!r}")
        folder = base if split == "all" else base / split
        super().__init__(None, split, annotations=folder / FILE, images=folder)

    def adapt(self, content: dict[str, Any]) -> list[Problem]:
        categories, annotations = content["categories"], content["annotations"]
        used = {row.get("category_id") for row in annotations if isinstance(row, dict)}
        above = {row.get("supercategory") for row in categories if isinstance(row, dict)}
        for row in categories:
            if isinstance(row, dict) and row.get("id") == 0 and row.get("name") in above and 0 not in used:
                categories.remove(row)
                name = row["name"]
                return [("read_as", f"category 0, {name!r}, has no object and is above the others; left out")]
        return []


LAYOUT = Layout(
    name="roboflow",
    files=f"SPLIT/{FILE} among the images, as Roboflow exports COCO",
    readers=readers_of_objects(RoboflowSource),
    recognise=lambda root: "" if splits(root) else f"no {FILE}",
    splits=splits,
)
