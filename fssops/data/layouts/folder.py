"""One's own images and masks: a sub-folder a class, or label maps.

One sub-folder a class (any of these forms, also mixed; images may lie in sub-folders, masks then in the same ones):

    ROOT/CLASS/images/NAME.jpg    ROOT/CLASS/masks/NAME.png
    ROOT/CLASS/NAME.jpg           ROOT/CLASS/NAME.png
    ROOT/CLASS/NAME.jpg           ROOT/CLASS/NAME_mask.png

Such masks are of one object, read as :mod:`fssops.data.object_masks` says, except that where some mask of the data set
holds both 1 and 255, 255 is ignored in all of them. Classes are numbered in the alphabetical order of their folders.

Or one label map an image, read as :mod:`fssops.data.layouts.label_folder` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from fssops.data.errors import DataError, DuplicateError, MaskValueError
from fssops.data.few_shot_source import FewShotSource
from fssops.data.images import image_size, palette_of, read_mask
from fssops.data.label_maps import OnUnknown, PairedSource, Pairs
from fssops.data.layout import Layout
from fssops.data.layouts import label_folder
from fssops.data.listing import folders_in, pictures_in
from fssops.data.object_masks import object_area, undecided
from fssops.data.source import PathLike
from fssops.labels import IGNORE
from fssops.truth import Classes, Truth

_SUFFIX = "_mask"


def pair_files(folder: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Pair the images of a class folder with their masks; the forms are listed in the module.

    Returns:
        image and mask files in natural order, and what else lies there.

    Raises:
        DataError: a folder of images without a folder of masks.
        AnnotationError: two images of one name.
    """
    masks: dict[str, Path] = {}
    if (folder / "images").is_dir():
        masks_in = next((folder / name for name in ("masks", "labels") if (folder / name).is_dir()), None)
        if masks_in is None:
            raise DataError(f"{folder}: folder must hold masks (or labels) beside images, got neither")
        listing, listed_masks = pictures_in(folder / "images"), pictures_in(masks_in)
        images, ending = listing.by_stem(), ""
        masks = {stem: paths[-1] for stem, paths in listed_masks.by_stem().items()}
        left_out = [*listing.notes(), *listed_masks.notes()]
    else:
        listing = pictures_in(folder, below=bool(pictures_in(folder, below=False).files))
        images, masks_in, ending, left_out = listing.by_stem(), folder, _SUFFIX, list(listing.notes())
        for stem in [stem for stem in images if stem.endswith(_SUFFIX)]:
            masks[stem] = images.pop(stem)[-1]
        for stem, paths in images.items():
            # Two files of one name: the PNG is the mask.
            png = next((path for path in paths if path.suffix.lower() == ".png"), None)
            if len(paths) > 1 and png is not None and f"{stem}{_SUFFIX}" not in masks:
                masks[stem] = png
                paths.remove(png)
    pairs: list[tuple[Path, Path]] = []
    for stem, paths in images.items():
        if len(paths) > 1:
            raise DuplicateError(f"{paths[1]}: images of a class must differ in name, got also {paths[0].name}")
        mask = masks.pop(stem, None) or masks.pop(f"{stem}{_SUFFIX}", None)
        # Where none is there, the file that should be: reading it says so, and a check goes on to the next image.
        pairs.append((paths[0], mask or masks_in / f"{stem}{ending}.png"))
    if masks:
        left_out.append(f"{masks_in}: {len(masks)} left out (no image of their name), e.g. {next(iter(masks))}")
    return pairs, left_out


def class_folders(root: Path) -> list[Path]:
    """Sub-folders in alphabetical order, by which classes are numbered; hidden ones are left out."""
    return [root / name for name in sorted(folders_in(root))]


class ClassFolders(PairedSource):
    """Images with one mask each, of the class whose folder they lie in.

    Args:
        split: which part of the data set.
        classes: its classes, by id.
        folders: class folders by the id of their class.

    Raises:
        DataError: images and masks do not pair.
    """

    def __init__(self, split: str, classes: Classes, folders: Mapping[int, Path]) -> None:
        listed = Pairs({})
        self._labels: dict[str, int] = {}
        for number, folder in folders.items():
            pairs, left_out = pair_files(folder)
            listed.left_out += left_out
            place = folder / "images" if (folder / "images").is_dir() else folder
            for image, mask in pairs:
                name = f"{folder.name}/{image.relative_to(place).as_posix()}"
                listed.files[name], self._labels[name] = (image, mask), classes.index_of[number]
        super().__init__("semantic", split, classes, listed)

    def label_of(self, name: str) -> int:
        """Index of the class of an image."""
        self.check_name(name)
        return self._labels[name]


class FolderSource(ClassFolders):
    """A folder a class, masks of 0 and 1 (255 ignored) or of 0 and 255; class 0 is the background.

    Args:
        root: the folder.
        object: value of the object in masks that do not say it.
        threshold: least value of the object, for grey masks.

    Raises:
        DataError: nothing in it fits, or images and masks do not pair.
    """

    def __init__(self, root: PathLike, object: int | None = None, threshold: float | None = None) -> None:
        base = Path(root)
        folders = [folder for folder in class_folders(base) if holds_images(folder)]
        if not folders:
            raise DataError(
                f"{base}: root must hold one sub-folder a class with images and masks, or images/ and labels/, "
                "got neither"
            )
        classes = Classes.from_names(["background", *(folder.name for folder in folders)])
        classes.check_label_maps(str(base))
        super().__init__("all", classes, dict(enumerate(folders, start=1)))
        self.object, self.threshold = object, threshold

    def truth(self, name: str) -> Truth:
        image, mask = self.paths(name)
        values = read_mask(mask, size=image_size(image))
        ignore = None
        if self.object is None and self.threshold is None:
            # Stricter than for one support: another number may be another class in a folder of them.
            if others := [int(value) for value in np.unique(values) if value not in (0, 1, IGNORE)]:
                raise MaskValueError(undecided(str(mask), others))
            ignore = IGNORE if self._white_is_ignored else None
        area = object_area(
            values,
            str(mask),
            object=self.object,
            threshold=self.threshold,
            ignore=ignore,
            colours=palette_of(mask),
        )
        labels = np.where(area == 1, np.uint8(self.label_of(name)), area)
        return Truth(labels.shape[0], labels.shape[1], label_map=labels)

    @cached_property
    def _white_is_ignored(self) -> bool:
        """Whether 255 is ignored: where some mask of the data set holds 1 beside it."""
        return any(_holds_one_and_white(mask) for _, mask in self._pairs.files.values())


def holds_images(folder: Path) -> bool:
    """Whether images lie in a class folder, or in ``images`` in it."""
    if (folder / "images").is_dir():
        return bool(pictures_in(folder / "images").files)
    return bool(pictures_in(folder, below=False).files)


def _holds_one_and_white(mask: Path) -> bool:
    try:
        values = read_mask(mask)
        return bool((values == 1).any() and (values == IGNORE).any())
    except (DataError, OSError):
        return False  # said where this mask itself is asked for: others need not fail with it


def _has_label_maps(root: Path) -> bool:
    return (root / "images").is_dir() or bool(label_folder.split_folders(root))


def few_shot(
    root: PathLike,
    split: str | None = None,
    *,
    unknown: OnUnknown = "error",
    object: int | None = None,
    threshold: float | None = None,
    ignore: int | None = None,
) -> FewShotSource:
    """Open a plain folder of images and masks; layouts in the module.

    Args:
        root: the folder.
        split: for label maps: one of their splits, or ``all``; None takes ``train`` where that is one of them. Class
            folders have no splits: always ``all``.
        unknown: for label maps: ids outside classes.json are an ``error`` or mapped to 255 (``ignore``).
        object: for class folders: value of the object in masks that do not say it.
        threshold: for class folders: least value of the object, 128 for masks with grey outlines.
        ignore: for label maps: 255 says that it is ignored although they hold nothing else beside 0.

    Raises:
        FileNotFoundError: no such folder.
        DataError: nothing in it fits a layout, or images and masks do not pair.
    """
    label_maps = _has_label_maps(Path(root))
    without_effect = {"object": object, "threshold": threshold} if label_maps else {"ignore": ignore}
    for name, value in without_effect.items():
        if value is not None:
            what = "label maps" if label_maps else "class folders"
            raise ValueError(f"folder: {name} must be left out for {what}, where it says nothing, got {value!r}")
    if label_maps:
        return label_folder.few_shot(root, split, unknown=unknown, ignore=ignore)
    if unknown not in ("error", "ignore"):
        raise ValueError(f"folder: unknown must be error or ignore, got {unknown!r}")
    return FewShotSource(FolderSource(root, object, threshold))


def numbered_as_fss1000(folder: Path) -> bool:
    """Whether a class folder holds 1.jpg and 1.png, as all of FSS-1000 do."""
    return (folder / "1.jpg").is_file() and (folder / "1.png").is_file()


def _recognise(root: Path) -> str:
    if label_folder.recognise(root) == "":
        return ""
    if _has_label_maps(root):
        return label_folder.recognise(root)
    folders = class_folders(root)
    if any(map(numbered_as_fss1000, folders)):
        return "sub-folders hold 1.jpg and 1.png as FSS-1000's"
    if any(label_folder.labels_beside(folder) or _holds_a_pair(folder) for folder in folders):
        return ""
    return "no images beside labels, and no sub-folder that holds images with masks"


def _holds_a_pair(folder: Path) -> bool:
    stems = pictures_in(folder, below=False).by_stem()
    return any(len(paths) > 1 or f"{stem}{_SUFFIX}" in stems for stem, paths in stems.items())


def _splits(root: Path) -> list[str]:
    return label_folder.splits(root) if _has_label_maps(root) else ["all"]


LAYOUT = Layout(
    name="folder",
    files="CLASS/images/ CLASS/masks/, or CLASS/NAME.jpg CLASS/NAME.png, or as label_folder",
    readers={"few-shot": few_shot},
    recognise=_recognise,
    splits=_splits,
    family="folder",
)
