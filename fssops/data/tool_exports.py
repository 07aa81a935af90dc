"""What exports of labelling tools share: naming a split as users do, and saying what an export lacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fssops.data.coco_json import rows_of
from fssops.data.errors import AnnotationError
from fssops.data.source import ImageSource

_ALIKE = (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))
_WHOLE = ("all", "default")


def chosen_split(root: Path, split: str | None, listed: Sequence[str]) -> str:
    """The split that is meant: ``val`` is valid, validation or Val where that is there.

    Args:
        root: named in errors.
        split: as asked for; None: ``train``, or the only one. ``train`` and ``all`` are also the whole of an export
            without splits; other names are not: scores on them would be scores on what was trained on.
        listed: the splits that are there.

    Raises:
        FileNotFoundError: none of them is meant.
    """
    if split in listed:
        return str(split)
    wanted = (split or "train").lower()
    names = next((names for names in _ALIKE if wanted in names), (wanted,))
    meant = [name for name in listed if name.lower() in names]
    if not meant and len(listed) == 1 and (split is None or (wanted in ("train", "all") and listed[0] in _WHOLE)):
        return listed[0]
    if len(meant) != 1:
        raise FileNotFoundError(f"{root}: split must be one of {', '.join(listed) or 'none'}, got {split or wanted!r}")
    return meant[0]


def check_outlined(file: Path, content: dict[str, Any], remedy: str) -> None:
    """Refuse tables in COCO's form whose objects are all marked by boxes alone.

    Raises:
        AnnotationError: says what to do.
    """
    rows = rows_of(content, "annotations")
    if rows and not any(row.get("segmentation") for row in rows):
        raise AnnotationError(f"{file}: annotations must have outlines, got {len(rows)} boxes alone; {remedy}")


def check_some_image(source: ImageSource, file: Path, remedy: str) -> None:
    """Refuse a data set none of whose images is there; single ones that are missing are said where they are read.

    Raises:
        FileNotFoundError: names the first, and says what to do.
    """
    places = [path for name in source.names if (path := source.image_file(name)) is not None]
    if places and not any(path.is_file() for path in places):
        raise FileNotFoundError(
            f"{places[0]}: the images of {file.name} must be there, got none of {len(places)}; {remedy}"
        )
