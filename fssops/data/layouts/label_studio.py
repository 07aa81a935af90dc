"""Label Studio's COCO export: one file, and a folder of images.

    ROOT/result.json (or result_coco.json)    ROOT/images/3f2a91c0-a.jpg  (or ROOT/*.jpg)

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
from fssops.data.layouts.coco import COCOSource, readers_of_objects
from fssops.data.listing import pictures_in
from fssops.data.source import PathLike
from fssops.data.tool_exports import check_outlined, chosen_split

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
        FileNotFoundError: no file, no such split, or none of the images; single ones are left out and told.
        AnnotationError: the file is broken, marks objects by boxes alone, or a name fits several images.
    """

    def __init__(self, root: PathLike, split: str | None = None, *, warn: bool = True) -> None:
        base = Path(root)
        split = chosen_split(base, split, ["all"])
        path = _file(base)
        if path is None:
            raise FileNotFoundError(f"{base / FILES[1]}: annotation file must exist, got no such file")
        self._path, self._images = path, base / "images" if (base / "images").is_dir() else base
        self._places: dict[str, list[str]] = {}
        for place in pictures_in(self._images).files:
            for called in {place.name, _UPLOAD.sub("", place.name)}:
                self._places.setdefault(called, []).append(place.relative_to(self._images).as_posix())
        super().__init__(None, split, annotations=path, images=self._images, warn=warn)

    def adapt(self, content: dict[str, Any]) -> list[Problem]:
        check_outlined(self._path, content, "label by polygons or brush, not by rectangles")
        named = [(row, stated) for row in rows_of(content, "images") if (stated := name(row.get("file_name")))]
        problems: list[Problem] = []
        missing: set[int] = set()
        for row, stated in named:
            place = self._place_of(stated)
            if place is not None:
                row["file_name"] = place
                continue
            missing.add(id(row))
            text = f"image {shown(row.get('id'))}: {shown(stated)} is not in {self._images}; left out"
            problems.append(("bad_annotation", text))
        if named and len(problems) == len(named):
            raise FileNotFoundError(
                f"{self._images}: the images of {self._path.name} must be there, got none of {len(named)}, e.g. "
                f"{shown(named[0][1])}; {_REMEDY}"
            )
        content["images"] = [row for row in content["images"] if id(row) not in missing]
        return problems

    def _place_of(self, stated: str) -> str | None:
        """The image that a name of the file means, below the folder of images; None: there is none."""
        whole = stated.replace("\\", "/")
        if "?d=" in whole:
            whole = whole.rpartition("?d=")[2]
        elif "://" in whole:
            whole = whole.partition("?")[0].partition("#")[0]
        base = whole.rpartition("/")[2]
        for part in dict.fromkeys((base, unquote(base), _UPLOAD.sub("", base), _UPLOAD.sub("", unquote(base)))):
            places = self._places.get(part, [])
            places = [place for place in places if place.rpartition("/")[2] == part] or places
            if len(places) > 1:
                # Of images in sub-folders the one whose path the name ends with.
                places = [place for place in places if f"/{whole}".endswith(f"/{place}")] or places
            if len(places) > 1:
                few = ", ".join(places[:3])
                raise AnnotationError(f"{self._path}: file_name must mean one image, got {shown(stated)} (fits {few})")
            if places:
                return places[0]
        return None


def _recognise(root: Path) -> str:
    file = _file(root)
    if file is None:
        return f"no {FILES[1]} or {FILES[0]}"
    if not mentions(file, "categories") or not mentions(file, "annotations"):
        return f"{file.name} is no COCO export of Label Studio; export again as COCO with images"
    return ""


def _splits(root: Path) -> list[str]:
    return ["all"]


LAYOUT = Layout(
    name="label_studio",
    files="result.json or result_coco.json, images/",
    readers=readers_of_objects(LabelStudioSource),
    recognise=_recognise,
    splits=_splits,
)
