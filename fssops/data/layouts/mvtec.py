"""Folders of products with and without defects, as MVTec AD has them.

    ROOT/PRODUCT/train/good/NAME.png
    ROOT/PRODUCT/test/good/NAME.png      ROOT/PRODUCT/test/DEFECT/NAME.png
    ROOT/PRODUCT/ground_truth/DEFECT/NAME_mask.png

ROOT may also be one PRODUCT. Classes are the defects: ``DEFECT`` of one product, ``PRODUCT/DEFECT`` of several. Good
images are background everywhere. Nothing defective is in ``train``, which is made for learning what is good; take
``all`` or ``test`` apart (``python -m fssops.data split``) to learn the defects.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fssops.data.errors import DataError
from fssops.data.images import image_size, palette_of, read_mask
from fssops.data.label_maps import PairedSource, Pairs
from fssops.data.layout import Layout, few_shot_view
from fssops.data.listing import folders_in, pictures_in
from fssops.data.object_masks import object_area
from fssops.data.source import PathLike
from fssops.truth import Classes, Truth

_GOOD = "good"


def _products(root: Path) -> list[Path]:
    """Folders that hold test and ground_truth: the root, or those in it."""
    return [
        folder for folder in (root, *(root / name for name in folders_in(root))) if (folder / "ground_truth").is_dir()
    ]


class MVTecSource(PairedSource):
    """Defects, one class each; class 0 is the background.

    Args:
        root: the folder.
        split: ``test``, ``train`` (good images alone), or ``all``.

    Raises:
        FileNotFoundError: no such split.
        DataError: no image.
    """

    def __init__(self, root: PathLike, split: str = "all") -> None:
        base = Path(root)
        if split not in ("all", "train", "test"):
            raise FileNotFoundError(f"{base}: split must be all, train or test, got {split!r}")
        products = _products(base)
        classes, pairs, self._labels = ["background"], Pairs({}), dict[str, int]()
        for product in products:
            start = "" if product == base else f"{product.name}/"
            defects = [name for name in folders_in(product / "test") if name != _GOOD]
            classes += [f"{start}{name}" for name in defects]
            for part in ("test", "train") if split == "all" else (split,):
                for kind in folders_in(product / part):
                    if kind != _GOOD and kind not in defects:
                        raise DataError(
                            f"{product / part / kind}: folder must be {_GOOD}, or a defect of test, got {kind!r}"
                        )
                    masks, listing = product / "ground_truth" / kind, pictures_in(product / part / kind)
                    stored = {} if kind == _GOOD or not masks.is_dir() else pictures_in(masks).by_stem()
                    pairs.left_out += listing.notes()
                    for image in listing.files:
                        name = image.relative_to(base).as_posix()
                        file = next((stored[s][-1] for s in (f"{image.stem}_mask", image.stem) if s in stored), None)
                        pairs.files[name] = (image, file or masks / f"{image.stem}_mask.png")
                        self._labels[name] = 0 if kind == _GOOD else classes.index(f"{start}{kind}")
        if not pairs.files:
            raise DataError(f"{base}: split {split} must hold at least one image, got none")
        super().__init__("semantic", split, Classes.from_names(classes, range(1, len(classes))), pairs)
        self.classes.check_label_maps(str(base))

    def truth(self, name: str) -> Truth:
        image, mask = self.paths(name)
        size, label = image_size(image), self._labels[name]
        labels = np.zeros(size[::-1], dtype=np.uint8)
        if label:
            area = object_area(read_mask(mask, size=size), str(mask), colours=palette_of(mask))
            labels = np.where(area == 1, np.uint8(label), area)
        return Truth(labels.shape[0], labels.shape[1], label_map=labels)

    def truth_files(self, name: str) -> tuple[Path, ...]:
        return super().truth_files(name) if self._labels[name] else ()


def _recognise(root: Path) -> str:
    found = [folder for folder in _products(root) if folders_in(folder / "test")]
    return "" if found else "no PRODUCT/ground_truth beside PRODUCT/test"


def _splits(root: Path) -> list[str]:
    """All: apart, ``train`` has nothing to learn a defect from, and ``test`` nothing to be compared with."""
    return ["all"]


LAYOUT = Layout(
    name="mvtec",
    files="PRODUCT/train/good/, PRODUCT/test/DEFECT/, PRODUCT/ground_truth/DEFECT/NAME_mask.png",
    readers={"semantic": MVTecSource, "few-shot": few_shot_view(MVTecSource)},
    recognise=_recognise,
    splits=_splits,
)
