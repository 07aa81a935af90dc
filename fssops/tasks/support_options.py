"""Labelled images on a command line: ``--class``, ``--support``, ``--box`` and ``--scribble``, whose order matters."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fssops.engine.settings import SettingsError

Box = tuple[float, float, float, float]


@dataclass
class Support:
    """One labelled image as it was given.

    Attributes:
        image: path.
        way: name of its class.
        mask: path of its mask, or None.
        scribble: path of its scribble, or None.
        boxes: (x0, y0, x1, y1) in its pixels.
    """

    image: str
    way: str
    mask: str | None = None
    scribble: str | None = None
    boxes: list[Box] = field(default_factory=list)

    def mark(self) -> str:
        """What marks the object: "mask", "scribble" or "boxes".

        Raises:
            SettingsError: none of them, or several.
        """
        given = [name for name in ("mask", "scribble", "boxes") if getattr(self, name)]
        if len(given) != 1:
            marks = " and ".join(given) or "none"
            raise SettingsError(f"--support: {self.image} must have one of a mask, --box or --scribble, got {marks}")
        return given[0]


class SupportAction(argparse.Action):
    """Collects the options in the order in which they come."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Take one option."""
        supports: list[Support] = list(getattr(namespace, "supports", None) or [])
        if option_string == "--class":
            namespace.way = values
        elif option_string == "--support":
            if len(values) > 2:
                parser.error(
                    f"--support takes an image and, unless --box or --scribble follows, its mask, got {values}"
                )
            way = getattr(namespace, "way", "object")
            folder = len(values) == 1 and os.path.isdir(values[0])
            supports += supports_in(Path(values[0]), way) if folder else [Support(values[0], way, *values[1:])]
        elif not supports:
            parser.error(f"{option_string} must follow the --support image that it marks")
        elif option_string == "--box":
            supports[-1].boxes.append(_box(parser, values))
        else:
            supports[-1].scribble = values
        namespace.supports = supports


def supports_in(folder: Path, way: str) -> list[Support]:
    """The labelled images of a folder, or of its sub-folders, which are then a class each.

    Args:
        folder: in a form that :mod:`fssops.data.layouts.folder` lists for a class.
        way: name of the class of images that are not in sub-folders.

    Raises:
        DataError: there is none, or an image has no mask.
    """
    from fssops.data.errors import DataError
    from fssops.data.layouts.folder import class_folders, holds_images, pair_files

    ways = {way: folder} if holds_images(folder) else {p.name: p for p in class_folders(folder) if holds_images(p)}
    supports = [Support(str(i), name, str(m)) for name, place in ways.items() for i, m in pair_files(place)[0]]
    if not supports:
        raise DataError(f"--support: {folder} must hold images with masks, or folders of these, got none")
    for support in supports:
        if not os.path.isfile(str(support.mask)):
            raise DataError(f"--support: {support.image} must have a mask {support.mask}, got none")
    return supports


def add_support_options(group: Any) -> None:
    """Add the options to a group of a parser; they gather in ``supports``, None where there are none."""
    group.add_argument("--class", action=SupportAction, metavar="NAME", help="name of the class of what follows")
    group.add_argument(
        "--support", action=SupportAction, nargs="+", metavar="FILE", help="a labelled image and its mask, or a folder"
    )
    group.add_argument(
        "--box", action=SupportAction, metavar="X0,Y0,X1,Y1", help="marks the object in the support before it"
    )
    group.add_argument("--scribble", action=SupportAction, metavar="FILE", help="marks the support before it")
    group.add_argument("--object", type=int, metavar="VALUE", help="value of the object in masks of several values")
    group.add_argument("--threshold", type=float, metavar="VALUE", help="least value of the object in grey masks: 128")
    group.add_argument(
        "--ignore", type=int, metavar="VALUE", help="value of masks that is neither object nor background"
    )


def set_support(predictor: Any, supports: Sequence[Support], **mask_values: Any) -> None:
    """Give a few-shot predictor the supports of a command line, and what the values of their masks mean.

    Raises:
        SettingsError: they are not all marked the same way.
    """
    marks = sorted({support.mark() for support in supports})
    if len(marks) > 1:
        raise SettingsError(f"--support: all supports must be marked the same way, got {' and '.join(marks)}")
    images: dict[str, list[Any]] = {}
    annotations: dict[str, list[Any]] = {}
    for support in supports:
        images.setdefault(support.way, []).append(support.image)
        annotations.setdefault(support.way, []).append(getattr(support, marks[0]))
    argument = {"mask": "masks", "boxes": "boxes", "scribble": "scribbles"}[marks[0]]
    predictor.set_support(images, **{argument: annotations}, **mask_values)


def _box(parser: Any, text: str) -> Box:
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        parser.error(f"--box must be four numbers x0,y0,x1,y1, got {text!r}")
    return x0, y0, x1, y1
