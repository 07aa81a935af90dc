"""ADE20K: 150 scene classes, and the panoptic and instance forms that Mask2Former's preparation scripts write.

ROOT/images/{training,validation}/     ROOT/annotations/{training,validation}/           semantic
ROOT/ade20k_panoptic_{train,val}.json  ROOT/ade20k_panoptic_{train,val}/                 panoptic
ROOT/ade20k_instance_{train,val}.json                                                    instance (100 classes)
"""

from __future__ import annotations

from pathlib import Path

from fssops.data.class_names import spans
from fssops.data.label_maps import LabelMapSource, paired
from fssops.data.layout import DataTruth, Layout, few_shot_view
from fssops.data.layouts.coco import COCOSource
from fssops.data.layouts.coco_panoptic import COCOPanopticSource
from fssops.data.source import PathLike
from fssops.labels import IGNORE
from fssops.truth import Classes

_NAMES = (
    "wall|building|sky|floor|tree|ceiling|road|bed|window|grass|cabinet|sidewalk|person|earth|door|"
    "table|mountain|plant|curtain|chair|car|water|painting|sofa|shelf|house|sea|mirror|rug|field|"
    "armchair|seat|fence|desk|rock|wardrobe|lamp|tub|rail|cushion|base|box|column|signboard|"
    "chest of drawers|counter|sand|sink|skyscraper|fireplace|refrigerator|grandstand|path|stairs|runway|"
    "case|pool table|pillow|screen door|stairway|river|bridge|bookcase|blind|coffee table|toilet|flower|"
    "book|hill|bench|countertop|stove|palm|kitchen island|computer|swivel chair|boat|bar|arcade machine|"
    "hovel|bus|towel|light|truck|tower|chandelier|awning|street lamp|booth|tv|plane|dirt track|clothes|"
    "pole|land|bannister|escalator|ottoman|bottle|buffet|poster|stage|van|ship|fountain|conveyer belt|"
    "canopy|washer|plaything|pool|stool|barrel|basket|falls|tent|bag|minibike|cradle|oven|ball|food|"
    "step|tank|trade name|microwave|pot|animal|bicycle|lake|dishwasher|screen|blanket|sculpture|hood|"
    "sconce|vase|traffic light|tray|trash can|fan|pier|crt screen|plate|monitor|bulletin board|shower|"
    "radiator|glass|clock|flag"
)
NAMES: list[str] = _NAMES.split("|")
"""150 names: objectInfo150 of sceneparsing.csail.mit.edu, first synonyms."""

THINGS = spans(
    "7-8 10 12 14-15 18-20 22-24 27 30-33 35-39 41-45 47 49-50 53 55-58 62 64-67 69-76 78 80-83 85-90 92-93 95 "
    "97-98 102-104 107-108 110-112 115-116 118-121 123-127 129-130 132-139 142-144 146-149"
)
"""Indices of the 100 countable classes of Mask2Former's panoptic form; the instance files have them as category ids."""


def _folder(split: str) -> str:
    return {"train": "training", "val": "validation"}.get(split, split)


class ADE20KSource(LabelMapSource):
    """Label maps: values 1..150 are classes 0..149; 0 is ignored.

    Args:
        root: ``ADEChallengeData2016``.
        split: train or val.
    """

    def __init__(self, root: PathLike, split: str = "train") -> None:
        base, folder = Path(root), _folder(split)
        pairs = paired(base / "images" / folder, base / "annotations" / folder)
        remap = {0: IGNORE, **{index + 1: index for index in range(len(NAMES))}}
        super().__init__(split, _classes("semantic"), pairs, remap=remap)


def _instances(root: PathLike, split: str = "train") -> COCOSource:
    """Objects of the 100 countable classes."""
    base = Path(root)
    annotations, images = base / f"ade20k_instance_{split}.json", base / "images" / _folder(split)
    return COCOSource(base, split, annotations=annotations, images=images)


def _panoptic(root: PathLike, split: str = "train") -> COCOPanopticSource:
    """All 150 classes; instances are those of the instance form where that is there."""
    base = Path(root)
    objects = base / f"ade20k_instance_{split}.json"
    return COCOPanopticSource(
        base,
        split,
        annotations=base / f"ade20k_panoptic_{split}.json",
        images=base / "images" / _folder(split),
        instances=objects if objects.is_file() else None,
    )


def _recognise(root: Path) -> str:
    images = root / "images"
    if not (images / "training").is_dir() or not (images / "validation").is_dir():
        return "no images/training and images/validation"
    return "classes.json says that the label maps have other classes" if (root / "classes.json").is_file() else ""


def _splits(root: Path) -> list[str]:
    return ["train", "val"]


def _classes(truth: DataTruth) -> Classes:
    """The 100 countable ones of the instance form; else all."""
    if truth == "instance":
        return Classes.from_names([NAMES[i] for i in THINGS], range(len(THINGS)), ids=THINGS)
    return Classes.from_names(NAMES, THINGS)


LAYOUT = Layout(
    name="ade20k",
    files="images/training/ annotations/training/ (and ade20k_panoptic_*.json, ade20k_instance_*.json)",
    readers={
        "semantic": ADE20KSource,
        "instance": _instances,
        "panoptic": _panoptic,
        "few-shot": few_shot_view(ADE20KSource),
    },
    recognise=_recognise,
    splits=_splits,
    classes=_classes,
)
