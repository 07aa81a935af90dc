"""ADE20K: 150 scene classes, and the panoptic and instance forms that Mask2Former's preparation scripts write.

ROOT/images/{training,validation}/     ROOT/annotations/{training,validation}/           semantic
ROOT/ade20k_panoptic_{train,val}.json  ROOT/ade20k_panoptic_{train,val}/                 panoptic
ROOT/ade20k_instance_{train,val}.json                                                    instance (100 classes)
"""

from __future__ import annotations

import os
from pathlib import Path

from fssops.data.universal.class_lists import ADE20K, ADE20K_THINGS
from fssops.data.universal.coco_sources import COCOInstanceSource, COCOPanopticSource
from fssops.data.universal.label_folder import LabelMapSource, pairs
from fssops.data.universal.source import UniversalSource
from fssops.structures import IGNORE
from fssops.truth import Classes, TruthKind


class ADE20KSemanticSource(LabelMapSource):
    """Annotation values 1..150 are classes 0..149; 0 is ignored.

    Args:
        root: ``ADEChallengeData2016``.
        split: train or val.
    """

    format = "ade20k"

    def __init__(self, root: str | os.PathLike[str], split: str = "train") -> None:
        base, folder = Path(root), _folder(split)
        files = pairs(base / "images" / folder, base / "annotations" / folder)
        classes = Classes.from_names(ADE20K, ADE20K_THINGS)
        remap = {0: IGNORE, **{index + 1: index for index in range(len(ADE20K))}}
        super().__init__(split, classes, files, remap=remap)


class ADE20KInstanceSource(COCOInstanceSource):
    """The 100 countable classes."""

    format = "ade20k"

    def __init__(self, root: str | os.PathLike[str], split: str = "train") -> None:
        base = Path(root)
        annotations, images = base / f"ade20k_instance_{split}.json", base / "images" / _folder(split)
        super().__init__(base, split, annotations=annotations, images=images)


class ADE20KPanopticSource(COCOPanopticSource):
    """All 150 classes; instances are those of the instance form where that is there."""

    format = "ade20k"

    def __init__(self, root: str | os.PathLike[str], split: str = "train") -> None:
        base = Path(root)
        instances = base / f"ade20k_instance_{split}.json"
        super().__init__(
            base,
            split,
            annotations=base / f"ade20k_panoptic_{split}.json",
            images=base / "images" / _folder(split),
            instances=None if not instances.is_file() else instances,
        )


def _folder(split: str) -> str:
    return {"train": "training", "val": "validation"}.get(split, split)


def ade20k(root: str | os.PathLike[str], split: str = "train", kind: TruthKind = "semantic") -> UniversalSource:
    """Open ADE20K for a task."""
    if kind == "instance":
        return ADE20KInstanceSource(root, split)
    if kind == "panoptic":
        return ADE20KPanopticSource(root, split)
    return ADE20KSemanticSource(root, split)
