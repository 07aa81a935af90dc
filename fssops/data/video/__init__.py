"""Video data in one import: frames with objects that keep their number.

from fssops.data import video
from fssops.data.augmentation.chains import universal_chain
from fssops.data.datasets.clips import ClipItem, TrainingClips

source = video.open_source("ytvis2019", "data/ytvis_2019", split="train")
chain = universal_chain("flip", short_sides=[360, 480], longest=1333)
dataset = TrainingClips(source, chain, frames=2)
loader = torch.utils.data.DataLoader(dataset, batch_size=8, collate_fn=ClipItem.stack)
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fssops.data.video import class_lists, moving_shapes, ytvis
from fssops.data.video.moving_shapes import MovingShapesSource
from fssops.data.video.source import VideoSource
from fssops.data.video.ytvis import YTVISSource
from fssops.truth import Classes, TrackTruth

__all__ = [
    "FORMATS",
    "TrackTruth",
    "VideoSource",
    "known_classes",
    "looks_like_videos",
    "open_source",
    "splits_of",
]

FORMATS: dict[str, Callable[..., VideoSource]] = {
    "ytvis": YTVISSource,
    **{name: functools.partial(YTVISSource, classes=names, format=name) for name, names in class_lists.NAMES.items()},
    "generated_videos": MovingShapesSource,
}
"""Layout name -> class or function; its docstring lists the options that :func:`open_source` passes on."""


def open_source(
    format: str, root: str | os.PathLike[str] | None = None, *, split: str | None = None, **options: Any
) -> VideoSource:
    """Open a data set.

    Args:
        format: a key of :data:`FORMATS`. ``ytvis`` takes any classes, the others of its form their own.
        root: the data set's folder; refused by ``generated_videos``.
        split: part of the data set; None takes ``train``.
        **options: further arguments of the layout, e.g. ``annotations=...``.

    Raises:
        ValueError: unknown format, option or split.
        FileNotFoundError: files are missing.
        DataError: files break the layout's rules.
    """
    if format not in FORMATS:
        raise ValueError(f"open_source: format must be {', '.join(FORMATS)}, got {format!r}")
    known = [
        name for name in inspect.signature(FORMATS[format]).parameters if name not in ("root", "classes", "format")
    ]
    if split is not None:
        options["split"] = split
    for option in options:
        if option not in known:
            raise ValueError(f"open_source: options of format {format} must be {', '.join(known)}, got {option!r}")
    if format == "generated_videos":
        if root is not None:
            raise ValueError(f"open_source: root must be left out for format {format}, which has no files, got {root}")
        return FORMATS[format](**options)
    if root is None and not {"annotations", "frames"} <= set(options):
        raise ValueError(f"open_source: root must be a folder for format {format}, got None")
    if root is not None and not Path(root).is_dir():
        raise FileNotFoundError(f"{root}: root must be a folder, got no such folder")
    return FORMATS[format](root, **options)


def known_classes(format: str) -> Classes | None:
    """Classes of a layout whose classes are fixed, without its files; None for the others."""
    if format == "generated_videos":
        return moving_shapes.CLASSES
    names = class_lists.NAMES.get(format)
    if names is None:
        return None
    return Classes.from_names(names, range(len(names)), ids=range(1, len(names) + 1))


def looks_like_videos(root: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an annotation file of YouTube-VIS' form: one with a table of videos."""
    base = Path(root)
    found = [ytvis.find_annotations(base, split) for split in ("train", "val", "test")]
    for entry in found:
        if entry is not None:
            with entry[0].open("rb") as file:
                # The files run to hundreds of megabytes; tables are named within the first part, or near the end.
                head = file.read(1 << 16)
                file.seek(max(0, entry[0].stat().st_size - (1 << 16)))
                return b'"file_names"' in head or b'"videos"' in head or b'"file_names"' in file.read()
    return False


def splits_of(format: str, root: str | os.PathLike[str]) -> list[str]:
    """Splits that a data set has."""
    if format == "generated_videos":
        return ["train", "val", "test"]
    return ytvis.splits_of(Path(root))
