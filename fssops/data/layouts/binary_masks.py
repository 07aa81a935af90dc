"""Images and masks of one kind of object: 0 where it is not, 255 where it is.

    ROOT/images/NAME.jpg          ROOT/masks/NAME.png or NAME_mask.png (or labels/, annotations/)
    ROOT/SPLIT/images/NAME.jpg    ROOT/SPLIT/masks/NAME.png            (or ROOT/images/SPLIT/, ROOT/masks/SPLIT/)

Masks are read as :mod:`fssops.data.object_masks` says. With a classes.json it is a folder of label maps.
"""

from __future__ import annotations

from pathlib import Path

from fssops.data.images import image_size, palette_of, read_grey, read_mask
from fssops.data.label_maps import PairedSource, paired
from fssops.data.layout import Layout, few_shot_view
from fssops.data.layouts import label_folder
from fssops.data.object_masks import object_area
from fssops.data.source import PathLike
from fssops.truth import Classes, Truth


class BinaryMaskSource(PairedSource):
    """Masks of one class; class 0 is the background.

    Args:
        root: the folder.
        split: as for :class:`fssops.data.layouts.label_folder.LabelFolderSource`.
        name: of the class.
        threshold: least brightness of the object, 128 for masks with grey outlines.

    Raises:
        FileNotFoundError: a folder is missing.
        DataError: no image, or two of one name.
    """

    def __init__(
        self, root: PathLike, split: str = "train", *, name: str = "object", threshold: float | None = None
    ) -> None:
        classes = Classes.from_names(["background", name], [1])
        super().__init__("semantic", split, classes, paired(*label_folder.places(Path(root), split), "_mask"))
        self.threshold = threshold

    def truth(self, name: str) -> Truth:
        image, mask = self.paths(name)
        values = (read_mask if self.threshold is None else read_grey)(mask, size=image_size(image))
        labels = object_area(values, str(mask), threshold=self.threshold, colours=palette_of(mask))
        return Truth(labels.shape[0], labels.shape[1], label_map=labels)


def _recognise(root: Path) -> str:
    if label_folder.are_binary(root):
        return ""
    return "no images beside masks of 0 and 255 alone, or a class list says what their values are"


LAYOUT = Layout(
    name="binary_masks",
    files="images/ masks/NAME.png or NAME_mask.png of 0 and 255 (or SPLIT/images/ SPLIT/masks/), without classes.json",
    readers={"semantic": BinaryMaskSource, "few-shot": few_shot_view(BinaryMaskSource)},
    recognise=_recognise,
    splits=label_folder.splits,
)
