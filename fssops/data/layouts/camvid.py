"""CamVid with 11 classes, in the layout of the SegNet tutorial (11 is void there) or of a folder of label maps.

ROOT/SPLIT/NAME.png           ROOT/SPLITannot/NAME.png
ROOT/images/SPLIT/NAME.jpg    ROOT/labels/SPLIT/NAME.png
"""

from __future__ import annotations

from pathlib import Path

from fssops.data.label_maps import LabelMapSource, paired
from fssops.data.layout import DataTruth, Layout, few_shot_view
from fssops.data.layouts import label_folder
from fssops.data.source import PathLike
from fssops.labels import IGNORE
from fssops.truth import Classes

_NAMES = ["Sky", "Building", "Pole", "Road", "Pavement", "Tree"]
_NAMES += ["SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"]
_COLOURS = [(128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0)]
_COLOURS += [(192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)]


class CamVidSource(LabelMapSource):
    """CamVid.

    Args:
        root: the folder.
        split: train, val or test.
    """

    def __init__(self, root: PathLike, split: str = "train") -> None:
        base = Path(root)
        if (base / f"{split}annot").is_dir():
            pairs = paired(base / split, base / f"{split}annot")
        else:
            pairs = paired(base / "images" / split, base / "labels" / split)
        remap = {**{index: index for index in range(len(_NAMES))}, len(_NAMES): IGNORE}
        super().__init__(split, Classes.from_names(_NAMES, colours=_COLOURS), pairs, remap=remap)


def _recognise(root: Path) -> str:
    return "" if (root / "trainannot").is_dir() else "no folder trainannot"


def _splits(root: Path) -> list[str]:
    if not (root / "trainannot").is_dir():
        return label_folder.splits(root)
    return [split for split in ("train", "val", "test") if (root / split).is_dir()]


def _classes(truth: DataTruth) -> Classes:
    return Classes.from_names(_NAMES)


LAYOUT = Layout(
    name="camvid",
    files="train/ trainannot/ (SegNet's), or images/SPLIT/ labels/SPLIT/",
    readers={"semantic": CamVidSource, "few-shot": few_shot_view(CamVidSource)},
    recognise=_recognise,
    splits=_splits,
    classes=_classes,
)
