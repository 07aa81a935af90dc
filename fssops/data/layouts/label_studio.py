"""Label Studio's COCO export: one file, and a folder of images.

    ROOT/result.json (or result_coco.json)    ROOT/images/3f2a91c0-a.jpg

It calls an image by where it found it: ``images\\\\1/3f2a91c0-a.jpg``, ``..\\\\media\\\\upload\\\\4\\\\a.png``,
``/data/local-files/?d=shots/a.jpg``, ``https://host/a.jpg?token=..``. The last part of it is looked for in ``images``:
as it is, with its ``%20`` read as spaces, then whatever the eight digits are that an upload puts before the name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fssops.data.annotation_json import Problem, mentions
from fssops.data.coco_json import rows_of
from fssops.data.errors import AnnotationError
from fssops.data.json_values import name, shown
from fssops.data.layout import Layout
from fssops.data.layouts.coco import COCOSource, readers
from fssops.data.listing import pictures_in
from fssops.data.source import PathLike
from fssops.data.tool_exports import check_outlined, check_some_image, chosen_split

FILES = ("result_coco.json", "result.json")
_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")
_REMEDY = "export again as COCO with images, or copy them there"


def _file(root: Path) -> Path | None:
    return next((root / file for file in FILES if (root / file).is_file()), None)


class LabelStudioSource(COCOSource):
    """Objects of Label Studio's COCO export; layout in the module.

    Args:
        root: the folder.
        split: ``all``, which ``train`` means as well.
        warn: warn of annotations that are dropped.

    Raises:
        FileNotFoundError: no file, no folder of images, or none of the images.
        AnnotationError: the file is broken, marks objects by boxes alone, or a name fits several images.
    """

    def __init__(self, root: PathLike, split: str | None = None, *, warn: bool = True) -> None:
        base = Path(root)
        split = chosen_split(base, split, ["all"])
        path = _file(base)
        if path is None:
            raise FileNotFoundError(f"{base / FILES[1]}: annotation file must exist, got no such file")
        self._path, images = path, base / "images"
        if not images.is_dir():
            raise FileNotFoundError(f"{images}: the images of {path.name} must be there, got no such folder; {_REMEDY}")
        self._places: dict[str, list[str]] = {}
        for place in pictures_in(images).files:
            for called in {place.name, _UPLOAD.sub("", place.name)}:
                self._places.setdefault(called, []).append(place.relative_to(images).as_posix())
        super().__init__(None, split, annotations=path, images=images, warn=warn)
        check_some_image(self, path, _REMEDY)

    def adapt(self, content: dict[str, Any]) -> list[Problem]:
        check_outlined(self._path, content, "label by polygons or brush, not by rectangles")
        for row in rows_of(content, "images"):
            called = name(row.get("file_name"))
            if called is not None:
                row["file_name"] = self._found(called)
        return []

    def _found(self, called: str) -> str:
        """The image that a name of the file means, below the folder of images; else its last part."""
        whole = called.replace("\\", "/")
        link = "://" in whole or "?d=" in whole
        if link:
            whole = whole.rpartition("?d=")[2] if "?d=" in whole else whole.partition("?")[0].partition("#")[0]
        base = whole.rpartition("/")[2]
        for part in dict.fromkeys((base, unquote(base), _UPLOAD.sub("", base), _UPLOAD.sub("", unquote(base)))):
            places = self._places.get(part, [])
            exact = [place for place in places if place.rpartition("/")[2] == part]
            fitting = exact or places
            if len(fitting) > 1:
                # Of images in sub-folders the one whose path the name ends with.
                fitting = [place for place in fitting if f"/{whole}".endswith(f"/{place}")] or fitting
            if len(fitting) > 1:
                few = ", ".join(fitting[:3])
                raise AnnotationError(f"{self._path}: file_name must mean one image, got {shown(called)} (fits {few})")
            if fitting:
                return fitting[0]
        return base or called


def _recognise(root: Path) -> str:
    file = _file(root)
    if file is None:
        return f"no {FILES[1]} or {FILES[0]}"
    if not mentions(file, "categories") or not mentions(file, "annotations"):
        return f"{file.name} is no COCO; export from Label Studio as COCO with images"
    return ""


def _splits(root: Path) -> list[str]:
    return ["all"]


LAYOUT = Layout(
    name="label_studio",
    files="result.json or result_coco.json, images/",
    readers=readers(LabelStudioSource),
    recognise=_recognise,
    splits=_splits,
)
