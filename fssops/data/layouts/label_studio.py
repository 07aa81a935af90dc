r"""COCO as Label Studio exports it: one JSON file beside the images.

    ROOT/result.json (or result_coco.json)    ROOT/images/NAME.jpg

``file_name`` may be an address, a path of the server, or have back-slashes, and the server puts eight digits and a dash
before the name that was uploaded. An image is found by the last part of its path, then by that part without the digits.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fssops.data.annotation_json import Problem, mentions
from fssops.data.layout import Layout
from fssops.data.layouts.coco import COCOSource, readers_of_objects
from fssops.data.listing import pictures_in
from fssops.data.source import PathLike

FILES = ("result.json", "result_coco.json")


def _file(root: Path) -> Path | None:
    return next((root / name for name in FILES if (root / name).is_file()), None)


class LabelStudioSource(COCOSource):
    """Objects of a Label Studio export; layout in the module.

    Args:
        root: the folder.
        split: ``all``, or ``train`` for the same; other splits are refused, since scores on them would be scores on
            what was trained on (``python -m fssops.data split`` makes some).

    Raises:
        FileNotFoundError: there is no such file or split.
        AnnotationError: the file is broken.
    """

    def __init__(self, root: PathLike, split: str = "train") -> None:
        base = Path(root)
        path = _file(base)
        if path is None:
            raise FileNotFoundError(f"{base}: root must hold {' or '.join(FILES)}, got neither")
        if split not in ("all", "train"):
            raise FileNotFoundError(f"{base}: split must be all or train, which is the same here, got {split!r}")
        folder = base / "images" if (base / "images").is_dir() else base
        self._there = {file.name for file in pictures_in(folder, below=False).files}
        super().__init__(None, "all", annotations=path, images=folder)

    def adapt(self, content: dict[str, Any]) -> list[Problem]:
        missing: list[Problem] = []
        rows = []
        for row in content["images"]:
            if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
                rows.append(row)  # refused where rows are checked
                continue
            stated = unquote(urlsplit(row["file_name"].replace("\\", "/")).path).rpartition("/")[2]
            name = next((one for one in (stated, re.sub(r"^[0-9a-f]{8}-", "", stated)) if one in self._there), None)
            if name is None:
                text = f"image {row.get('id')}: {row['file_name']} is not in {self.image_folder}; left out"
                missing.append(("bad_annotation", text))
            else:
                rows.append({**row, "file_name": name})
        content["images"] = rows
        return missing


def _recognise(root: Path) -> str:
    path = _file(root)
    if path is None:
        return f"no {' or '.join(FILES)}"
    return "" if mentions(path, "file_name", "images") else f"{path.name} is no COCO export of Label Studio"


LAYOUT = Layout(
    name="label_studio",
    files="result.json, images/, as Label Studio exports COCO",
    readers=readers_of_objects(LabelStudioSource),
    recognise=_recognise,
    splits=lambda root: ["all"],
)
