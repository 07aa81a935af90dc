"""Few-shot data in one import.

    from fssops.data import fewshot, folds

    source = fewshot.open_source("voc", "VOCdevkit/VOC2012", split="train")
    fold = folds.pascal5i(0)
    episodes = fewshot.EpisodeList.draw(source, fold.test, ways=1, shots=5, episodes=1000, seed=1234)
    dataset = fewshot.EpisodeDataset(source, episodes, size=(417, 417))
    loader = torch.utils.data.DataLoader(dataset, collate_fn=FewShotBatch.stack, num_workers=2)

Formats: ``voc``, ``coco``, ``fss1000``, ``folder``, ``generated``.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fssops.data.coco import COCOSource
from fssops.data.datasets.episodes import EpisodeDataset, RepeatedEpisodes
from fssops.data.episode_draws import EpisodeSpec
from fssops.data.episodes import EpisodeList
from fssops.data.errors import AnnotationError, DataError, ImageFileError, MaskError, TooFewImagesError
from fssops.data.folder import FolderSource
from fssops.data.fss1000 import FSS1000Source
from fssops.data.generated import GeneratedSource
from fssops.data.sources import FewShotSource
from fssops.data.voc import VOCSource

__all__ = [
    "FORMATS",
    "AnnotationError",
    "COCOSource",
    "DataError",
    "EpisodeDataset",
    "EpisodeList",
    "EpisodeSpec",
    "FSS1000Source",
    "FewShotSource",
    "FolderSource",
    "GeneratedSource",
    "ImageFileError",
    "MaskError",
    "RepeatedEpisodes",
    "TooFewImagesError",
    "VOCSource",
    "guess_format",
    "open_source",
]

FORMATS: dict[str, Callable[..., FewShotSource]] = {
    "voc": VOCSource,
    "coco": COCOSource,
    "fss1000": FSS1000Source,
    "folder": FolderSource,
    "generated": GeneratedSource,
}
"""Layout name -> class; its docstring lists the options that :func:`open_source` passes on."""


def open_source(
    format: str, root: str | os.PathLike[str] | None = None, *, split: str | None = None, **options: Any
) -> FewShotSource:
    """Open a data set.

    Args:
        format: a key of :data:`FORMATS`, or ``auto`` to tell it from the folder.
        root: the data set's folder; refused by ``generated``.
        split: part of the data set; None takes ``train``, or ``all`` where the layout knows no splits.
        **options: passed to the layout's class, e.g. ``crowd="object"`` (coco), ``list_file=...`` (voc).

    Raises:
        ValueError: unknown format, option or split.
        FileNotFoundError: files are missing.
        DataError: files break the layout's rules.
    """
    if format == "auto":
        if root is None:
            raise ValueError("open_source: root must be a folder for format auto, got None")
        format = guess_format(root)
    if format not in FORMATS:
        raise ValueError(f"open_source: format must be auto, {', '.join(FORMATS)}, got {format!r}")
    if split is not None:
        options["split"] = split
    if format == "generated":
        if root is not None:
            raise ValueError(f"open_source: root must be left out for format generated, which has no files, got {root}")
        return _build(format, **options)
    if root is None and not {"annotations", "images"} <= set(options):
        raise ValueError(f"open_source: root must be a folder for format {format}, got None")
    return _build(format, root, **options)


def _build(format: str, *arguments: Any, **options: Any) -> FewShotSource:
    known = [name for name in inspect.signature(FORMATS[format]).parameters if name != "root"]
    for option in options:
        if option not in known:
            raise ValueError(f"open_source: options of format {format} must be {', '.join(known)}, got {option!r}")
    return FORMATS[format](*arguments, **options)


def guess_format(root: str | os.PathLike[str]) -> str:
    """Tell a layout from what a folder holds.

    Raises:
        FileNotFoundError: no such folder.
        DataError: it fits no layout.
    """
    base = Path(root)
    if not base.is_dir():
        raise FileNotFoundError(f"{base}: root must be a folder, got no such folder")
    if any((base / below / "JPEGImages").is_dir() for below in (".", "VOC2012", "VOCdevkit/VOC2012")):
        return "voc"
    if any((base / "annotations").glob("instances_*.json")):
        return "coco"
    if (base / "images").is_dir():
        return "folder"
    folders = [p for p in base.iterdir() if p.is_dir() and not p.name.startswith(".")]
    for folder in folders:
        if (folder / "1.jpg").is_file() and (folder / "1.png").is_file():
            return "fss1000"
    for folder in folders:
        if (folder / "images").is_dir() or any(folder.glob("*.png")):
            return "folder"
    raise DataError(
        f"{base}: folder must hold JPEGImages (voc), annotations/instances_*.json (coco), one folder a class "
        "(fss1000, folder) or images and labels (folder), got none of these"
    )
