"""Images with one label map each: pairing their files, and reading them as class indices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from fssops.data.errors import DataError, DuplicateError
from fssops.data.images import Picture, image_size, read_image, read_mask
from fssops.data.listing import pictures_in
from fssops.data.source import ImageSource
from fssops.labels import IGNORE
from fssops.truth import Classes, Truth, TruthKind

if TYPE_CHECKING:
    from PIL import Image

OnUnknown = Literal["error", "ignore"]


@dataclass
class Pairs:
    """Images and their label files.

    Attributes:
        files: name -> (image file, label file), in natural order.
        left_out: what lies beside them and is not read.
    """

    files: dict[str, tuple[Path, Path]]
    left_out: list[str] = field(default_factory=list)


def paired(images: Path, labels: Path, ending: str = "") -> Pairs:
    """Pair images with labels of the same path below their folders, whatever their suffixes.

    Args:
        images: folder.
        labels: folder.
        ending: that names of labels may have behind those of their images, e.g. ``_mask``.

    Raises:
        FileNotFoundError: a folder is missing.
        DataError: there is no image, or two of one name.
    """
    for folder, what in ((images, "images"), (labels, "labels")):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: {what} must be a folder, got no such folder")
    listed, listed_labels = pictures_in(images), pictures_in(labels)
    stored = {name.removesuffix(ending): paths[-1] for name, paths in listed_labels.by_stem().items()}
    files: dict[str, tuple[Path, Path]] = {}
    for name, paths in listed.by_stem().items():
        if len(paths) > 1:
            raise DuplicateError(f"{paths[1]}: images must differ in name, got also {paths[0].name}")
        # Where there is none, the file that should be there: reading it says so.
        files[name] = (paths[0], stored.pop(name, labels / f"{name}.png"))
    if not files:
        raise DataError(f"{images}: there must be at least one image, got none")
    left_out = [*listed.notes(), *listed_labels.notes()]
    if stored:
        left_out.append(f"{labels}: {len(stored)} left out (no image of their name), e.g. {next(iter(stored))}")
    return Pairs(files, left_out)


class PairedSource(ImageSource):
    """Images whose truth lies in one file each.

    Args:
        kind: the form of the truth.
        split: of the data set.
        classes: its classes.
        pairs: image and truth files by name.
    """

    def __init__(self, kind: TruthKind, split: str, classes: Classes, pairs: Pairs) -> None:
        super().__init__(kind, split, classes, list(pairs.files))
        self._pairs = pairs

    def paths(self, name: str) -> tuple[Path, Path]:
        """Image file and truth file.

        Raises:
            ValueError: no such image.
        """
        self.check_name(name)
        return self._pairs.files[name]

    def pictures(self, name: str) -> tuple[Picture, Picture]:
        """What image and truth are read from: their files."""
        return self.paths(name)

    def image_file(self, name: str) -> Path | None:
        return self.paths(name)[0]

    def image(self, name: str) -> Image.Image:
        return read_image(self.pictures(name)[0])

    def truth_files(self, name: str) -> tuple[Path, ...]:
        return (self._pairs.files[name][1],)

    def left_out(self) -> Iterator[str]:
        yield from self._pairs.left_out


class LabelMapSource(PairedSource):
    """Images with a label map each.

    Args:
        split: of the data set.
        classes: its classes.
        pairs: images and label files by name.
        remap: value in the files -> class index; other values are errors. None: by the ids of ``classes``.
        unknown: values outside ``remap`` are an ``error`` or mapped to 255 (``ignore``).

    Raises:
        AnnotationError: more classes than a label map can hold.
    """

    def __init__(
        self,
        split: str,
        classes: Classes,
        pairs: Pairs,
        *,
        remap: Mapping[int, int] | None = None,
        unknown: OnUnknown = "error",
    ) -> None:
        super().__init__("semantic", split, classes, pairs)
        if unknown not in ("error", "ignore"):
            raise ValueError(f"{type(self).__name__}: unknown must be error or ignore, got {unknown!r}")
        classes.check_label_maps(type(self).__name__)
        self._unknown = unknown
        rule = dict(classes.index_of) if remap is None else remap
        self._allowed = sorted(rule)
        self._table: np.ndarray | None = None
        if any(value != index for value, index in rule.items()):
            self._table = np.full(256, IGNORE, dtype=np.uint8)
            self._table[list(rule)] = list(rule.values())

    def truth(self, name: str) -> Truth:
        image, label = self.pictures(name)
        values = read_mask(label, size=image_size(image), allowed=self._allowed, unknown=self._unknown)
        indices = values if self._table is None else self._table.take(values)
        return Truth(values.shape[0], values.shape[1], label_map=indices)
