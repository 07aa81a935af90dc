"""Images and label maps whose classes are colours.

    ROOT/images/NAME.jpg    ROOT/labels/NAME.png (or masks/, annotations/; splits as in a folder of label maps)
    ROOT/labelmap.txt, classes.csv, class_dict.csv, label_colors.txt, classes.txt or classes.json

The file says which colour is which class; its forms are those of :func:`fssops.data.colour_maps.read_code`. Instead of
it ``colours`` takes another file, or the palette of a data set: ``voc``, ``cityscapes``.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fssops.data.colour_maps import (
    FILES,
    ColourCode,
    read_code,
    read_colour_map,
    read_packed,
    unpacked,
    voc_colours,
)
from fssops.data.errors import AnnotationError
from fssops.data.images import image_size
from fssops.data.label_maps import OnUnknown, PairedSource, Pairs, paired
from fssops.data.layout import Layout, few_shot_view
from fssops.data.layouts import cityscapes, label_folder, voc
from fssops.data.source import PathLike
from fssops.truth import Truth

_CITYSCAPES_VOID = [(0, 0, 0), (111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140), (180, 165, 180)]
_CITYSCAPES_VOID += [(150, 100, 100), (150, 120, 90), (0, 0, 90), (0, 0, 110)]
"""Colours of label ids that are not among the 19 classes (cityscapesscripts, helpers/labels.py)."""


def _palette(name: str) -> ColourCode:
    """A data set's palette."""
    if name == "voc":
        rows = [*zip(["background", *voc.NAMES], voc_colours(21), strict=True), ("void", (224, 224, 192))]
    else:
        rows = [(category.name, category.colour) for category in cityscapes.CATEGORIES]
        rows += [("void", colour) for colour in _CITYSCAPES_VOID]
    return ColourCode.from_rows(rows, f"palette {name}")


def _code(root: Path, colours: PathLike | None, pairs: Pairs) -> ColourCode:
    if colours in ("voc", "cityscapes"):
        return _palette(str(colours))
    if colours is not None:
        return read_code(root / colours if (root / colours).is_file() else Path(colours))
    file = next((root / name for name in FILES if (root / name).is_file()), None)
    if file is not None:
        return read_code(file)
    counts: Counter[int] = Counter()
    for _, label in pairs.files.values():
        if label.is_file():
            counts.update(set(read_packed(label, None).reshape(-1).tolist()))
    most = [f"{unpacked(value)} (in {count})" for value, count in counts.most_common(20)]
    more = f" and {len(counts) - 20} more" if len(counts) > 20 else ""
    raise AnnotationError(
        f"{root / 'classes.csv'}: a file must name the colours of the labels, got no such file; write a line "
        f"NAME,R,G,B for each of {'; '.join(most)}{more}; or say colours=voc, colours=cityscapes or colours=FILE"
    )


class ColourLabelSource(PairedSource):
    """Label maps of colours; layout in the module.

    Args:
        root: the folder.
        split: as for :class:`fssops.data.layouts.label_folder.LabelFolderSource`.
        colours: a file of names and colours, from the folder or from where one is; or ``voc``, ``cityscapes``.
        unknown: colours of no class are an ``error`` or ignored (``ignore``).

    Raises:
        FileNotFoundError: a folder is missing.
        AnnotationError: no file names the colours; lists those that there are.
    """

    def __init__(
        self, root: PathLike, split: str = "train", *, colours: PathLike | None = None, unknown: OnUnknown = "error"
    ) -> None:
        if unknown not in ("error", "ignore"):
            raise ValueError(f"ColourLabelSource: unknown must be error or ignore, got {unknown!r}")
        pairs = paired(*label_folder.places(Path(root), split), "_mask")
        self._code, self._unknown = _code(Path(root), colours, pairs), unknown
        self._code.classes.check_label_maps(str(root))
        super().__init__("semantic", split, self._code.classes, pairs)

    def truth(self, name: str) -> Truth:
        image, label = self.paths(name)
        labels = read_colour_map(label, self._code, image_size(image), self._unknown)
        return Truth(labels.shape[0], labels.shape[1], label_map=labels)


def _recognise(root: Path) -> str:
    if label_folder.are_coloured(root):
        return ""
    return "no images beside labels, masks or annotations that hold colours, or beside a file of colours"


LAYOUT = Layout(
    name="colour_labels",
    files="images/ labels/ (or masks/, annotations/) of colours, and labelmap.txt, classes.csv or classes.json",
    readers={"semantic": ColourLabelSource, "few-shot": few_shot_view(ColourLabelSource)},
    recognise=_recognise,
    splits=label_folder.splits,
)
