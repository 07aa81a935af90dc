"""The layouts of data on disk, one file each: opening a data set, telling its layout, and its classes.

from fssops.data.layouts import open_data

source = open_data("voc", "VOCdevkit/VOC2012", split="train", truth="few-shot")
source = open_data("coco_panoptic", "data/coco", split="train2017", truth="panoptic")
source = open_data("ytvis2019", "data/ytvis_2019", split="train", truth="video")
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path
from typing import Any, Literal, overload

from fssops.data.errors import DataError
from fssops.data.few_shot_source import FewShotSource
from fssops.data.layout import TRUTHS, DataTruth, Layout
from fssops.data.source import ImageSource, PathLike, VideoSource
from fssops.truth import Classes, TruthKind


def _declared() -> dict[str, Layout]:
    declared: dict[str, Layout] = {}
    for module in pkgutil.iter_modules(__path__):
        content = importlib.import_module(f"{__name__}.{module.name}")
        for layout in getattr(content, "LAYOUTS", None) or (content.LAYOUT,):
            declared[layout.name] = layout
    return declared


LAYOUTS: dict[str, Layout] = _declared()
"""Every layout by name: ``LAYOUT`` or ``LAYOUTS`` of each file of this folder."""


def names_for(truth: DataTruth) -> list[str]:
    """Names of the layouts that can be read for something."""
    return [name for name, layout in LAYOUTS.items() if truth in layout.offers]


@overload
def open_data(
    layout: str, root: PathLike | None = ..., *, split: str | None = ..., truth: Literal["few-shot"], **options: Any
) -> FewShotSource: ...


@overload
def open_data(
    layout: str, root: PathLike | None = ..., *, split: str | None = ..., truth: TruthKind, **options: Any
) -> ImageSource: ...


@overload
def open_data(
    layout: str, root: PathLike | None = ..., *, split: str | None = ..., truth: Literal["video"], **options: Any
) -> VideoSource: ...


@overload
def open_data(
    layout: str, root: PathLike | None = ..., *, split: str | None = ..., truth: DataTruth, **options: Any
) -> FewShotSource | ImageSource | VideoSource: ...


def open_data(
    layout: str, root: PathLike | None = None, *, split: str | None = None, truth: DataTruth, **options: Any
) -> FewShotSource | ImageSource | VideoSource:
    """Open one split of a data set.

    Args:
        layout: a key of :data:`LAYOUTS`, or ``auto`` to tell it from the folder.
        root: the data set's folder; refused by layouts without files.
        split: part of the data set; None takes the layout's usual one.
        truth: what it is read for.
        **options: of the layout; its readers' docstrings explain them, e.g. ``crowd="object"`` (coco).

    Raises:
        ValueError: unknown layout, option or split, or the layout has no truth of this kind.
        FileNotFoundError: files are missing.
        DataError: files break the layout's rules.
    """
    if layout == "auto":
        if root is None:
            raise ValueError("open_data: root must be a folder for layout auto, got None")
        layout = recognise(root, truth)
    return layout_of(layout, truth).open(root, split, truth, **options)


def layout_of(name: str, truth: DataTruth | None = None) -> Layout:
    """A layout by name.

    Raises:
        ValueError: there is none of this name; lists those that can be read for ``truth``.
    """
    if name not in LAYOUTS:
        names = list(LAYOUTS) if truth is None else names_for(truth)
        raise ValueError(f"open_data: layout must be auto, {', '.join(names)}, got {name!r}")
    return LAYOUTS[name]


def known_classes(layout: str, truth: DataTruth) -> Classes | None:
    """Classes of a layout as published, without its files; None where every data set has its own, and for ``auto``."""
    return None if layout == "auto" else layout_of(layout, truth).classes(truth)


def recognise(root: PathLike, truth: DataTruth | None = None) -> str:
    """Tell the layout of a folder.

    Where several fit, as they are forms of the same files, the one whose usual reading is asked for (few-shot, where
    none is), then the one that can be read for most.

    Args:
        root: the folder.
        truth: what it is to be read for.

    Raises:
        FileNotFoundError: no such folder.
        DataError: it fits no layout (says for each why not), or holds the files of several.
    """
    base = Path(root)
    if not base.is_dir():
        raise FileNotFoundError(f"{base}: root must be a folder, got no such folder")
    layouts = [layout for layout in LAYOUTS.values() if truth is None or truth in layout.offers]
    reason_of = functools.cache(lambda rule: rule(base))  # several names may have one rule
    reasons: dict[str, str] = {layout.name: reason_of(layout.recognise) for layout in layouts}
    fitting = [layout for layout in layouts if not reasons[layout.name]]
    if not fitting:
        told: dict[str, list[str]] = {}
        for name, reason in reasons.items():
            told.setdefault(reason, []).append(name)
        kind = "" if truth is None else f" with {truth} truth"
        text = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in told.items())
        raise DataError(f"{base}: folder must be of a layout{kind}, got none ({text})")
    families = {layout.family or layout.name: layout for layout in fitting}
    if len(families) > 1:
        forms = "; ".join(f"{layout.name}: {layout.files}" for layout in families.values())
        raise DataError(f"{base}: folder must hold data of one layout, got several ({forms}); name one by --format")
    wanted = truth or TRUTHS[0]
    return min(fitting, key=lambda layout: (layout.offers[0] != wanted, -len(layout.offers))).name
