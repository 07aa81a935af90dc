"""Fixed-class data in one import: semantic, instance and panoptic.

from fssops.data import universal
from fssops.data.augmentation.chains import universal_chain
from fssops.data.datasets.universal import TrainingDataset, UniversalItem

source = universal.open_source("coco_panoptic", "data/coco", split="train2017")
chain = universal_chain("large_scale_jitter", side=1024)
dataset = TrainingDataset(source, "panoptic", chain)
loader = torch.utils.data.DataLoader(dataset, batch_size=2, collate_fn=UniversalItem.stack)
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fssops.data.errors import DataError
from fssops.data.universal import class_lists
from fssops.data.universal import scenes as _scenes
from fssops.data.universal.ade20k import ade20k
from fssops.data.universal.cityscapes import CLASSES as _CITYSCAPES
from fssops.data.universal.cityscapes import THINGS as _CITYSCAPES_THINGS
from fssops.data.universal.cityscapes import cityscapes
from fssops.data.universal.coco_sources import COCOInstanceSource, COCOPanopticSource, splits_with
from fssops.data.universal.label_folder import (
    LABEL_FOLDERS,
    CamVidSource,
    LabelFolderSource,
    folders_in,
    read_classes,
)
from fssops.data.universal.scenes import GeneratedScenesSource
from fssops.data.universal.source import UniversalSource
from fssops.truth import Category, Classes, ObjectTruth, Segment, Truth, TruthKind

__all__ = [
    "FORMATS",
    "Category",
    "Classes",
    "ObjectTruth",
    "Segment",
    "Truth",
    "TruthKind",
    "UniversalSource",
    "guess_format",
    "known_classes",
    "open_source",
    "read_classes",
    "splits_of",
]

FORMATS: dict[str, Callable[..., UniversalSource]] = {
    "label_folder": LabelFolderSource,
    "camvid": CamVidSource,
    "coco_instances": COCOInstanceSource,
    "coco_panoptic": COCOPanopticSource,
    "ade20k": ade20k,
    "cityscapes": cityscapes,
    "generated": GeneratedScenesSource,
}
"""Layout name -> class or function; its docstring lists the options that :func:`open_source` passes on."""


def open_source(
    format: str,
    root: str | os.PathLike[str] | None = None,
    *,
    split: str | None = None,
    kind: TruthKind | None = None,
    **options: Any,
) -> UniversalSource:
    """Open a data set.

    Args:
        format: a key of :data:`FORMATS`, or ``auto`` to tell it from the folder.
        root: the data set's folder; refused by ``generated``.
        split: part of the data set; None takes the layout's usual one.
        kind: the form of truth that is wanted. ADE20K and Cityscapes store each in files of its own.
        **options: further arguments of the layout, e.g. ``annotations=...`` (COCO formats).

    Raises:
        ValueError: unknown format, option or split, or the layout has no truth of this kind.
        FileNotFoundError: files are missing.
        DataError: files break the layout's rules.
    """
    if format == "auto":
        if root is None:
            raise ValueError("open_source: root must be a folder for format auto, got None")
        format = guess_format(root)
    if format not in FORMATS:
        raise ValueError(f"open_source: format must be auto, {', '.join(FORMATS)}, got {format!r}")
    known = [name for name in inspect.signature(FORMATS[format]).parameters if name != "root"]
    if split is not None:
        options["split"] = split
    if "kind" in known and kind is not None:
        options["kind"] = kind
    for option in options:
        if option not in known:
            raise ValueError(f"open_source: options of format {format} must be {', '.join(known)}, got {option!r}")
    if format == "generated":
        if root is not None:
            raise ValueError(f"open_source: root must be left out for format generated, which has no files, got {root}")
        source = FORMATS[format](**options)
    elif root is None and not {"annotations", "images"} <= set(options):
        raise ValueError(f"open_source: root must be a folder for format {format}, got None")
    else:
        source = FORMATS[format](root, **options)
    if kind is not None and not source.offers(kind):
        raise ValueError(f"open_source: kind must be {source.kind} for format {format}, got {kind}")
    return source


def known_classes(format: str, kind: TruthKind) -> Classes | None:
    """Classes of a layout whose classes are fixed, without its files; None for the others."""
    if format == "generated":
        return _scenes.CLASSES
    if format == "camvid":
        from fssops.data.universal.label_folder import CAMVID

        return Classes.from_names(CAMVID)
    if format == "cityscapes":
        return _CITYSCAPES_THINGS if kind == "instance" else _CITYSCAPES
    if format == "ade20k":
        names, things = class_lists.ADE20K, class_lists.ADE20K_THINGS
        if kind == "instance":
            return Classes.from_names([names[i] for i in things], range(len(things)), ids=things)
        return Classes.from_names(names, things)
    if format in ("coco_panoptic", "coco_instances"):
        count = len(class_lists.COCO_THINGS if format == "coco_instances" else class_lists.COCO_PANOPTIC)
        names, ids = class_lists.COCO_PANOPTIC[:count], class_lists.COCO_IDS[:count]
        return Classes.from_names(names, class_lists.COCO_THINGS, ids=ids)
    return None


def guess_format(root: str | os.PathLike[str]) -> str:
    """Tell a layout from what a folder holds.

    Raises:
        FileNotFoundError: no such folder.
        DataError: it fits no layout.
    """
    base = Path(root)
    if not base.is_dir():
        raise FileNotFoundError(f"{base}: root must be a folder, got no such folder")
    if (base / "leftImg8bit").is_dir():
        return "cityscapes"
    if (base / "images" / "training").is_dir() and (base / "images" / "validation").is_dir():
        return "ade20k"
    if splits_with(base, "panoptic"):
        return "coco_panoptic"
    if splits_with(base, "instances"):
        return "coco_instances"
    if (base / "trainannot").is_dir():
        return "camvid"
    if (base / "images").is_dir() and any((base / name).is_dir() for name in LABEL_FOLDERS):
        return "label_folder"
    raise DataError(
        f"{base}: folder must hold leftImg8bit (cityscapes), images/training (ade20k), annotations/panoptic_*.json or "
        "instances_*.json (coco), or images and labels (label_folder), got none of these"
    )


def splits_of(format: str, root: str | os.PathLike[str]) -> list[str]:
    """Splits that a data set has."""
    base = Path(root)
    if format in ("coco_panoptic", "coco_instances"):
        return splits_with(base, "panoptic" if format == "coco_panoptic" else "instances")
    if format == "generated":
        return ["train", "val", "test"]
    if format == "ade20k":
        return ["train", "val"]
    if format == "cityscapes":
        return sorted(p.name for p in (base / "leftImg8bit").glob("*") if p.is_dir() and p.name != "test")
    if format == "camvid" and (base / "trainannot").is_dir():
        return [s for s in ("train", "val", "test") if (base / s).is_dir()]
    return folders_in(base / "images") or ["all"]
