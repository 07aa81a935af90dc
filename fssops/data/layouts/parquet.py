"""Data sets of Hugging Face's ``datasets`` as Parquet files: columns of images and label maps (extra fssops[datasets]).

    ROOT/data/train-00000-of-00002.parquet    ROOT/id2label.json (or classes.json)
    ROOT/train/0000.parquet                   (also ROOT/*.parquet)

Images and label maps are encoded pictures in the file, or name files below its folder. The class list has the forms of
:func:`fssops.data.class_names.read_classes`; ids are the values in the label maps, 0 to 254; 255 is ignored.

A file is read by its groups of rows (100 images, as ``datasets`` writes them), so images in random order take long: for
a training, ``python -m fssops.data convert ROOT OUT --to label_folder`` first.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fssops.data.class_names import read_classes
from fssops.data.errors import AnnotationError, DataError, MaskError
from fssops.data.images import EncodedPicture, Picture
from fssops.data.label_maps import LabelMapSource, OnUnknown, Pairs
from fssops.data.layout import Layout, few_shot_view
from fssops.data.paths import check_inside
from fssops.data.source import ImageSource, PathLike
from fssops.data.tool_exports import chosen_split

CLASS_FILES = ("classes.json", "id2label.json")
IMAGES = ("image", "img", "pixel_values")
_SHARD = re.compile(r"-[0-9]+-of-[0-9]+.*$")


def _files(root: Path) -> dict[str, list[Path]]:
    """Files of each split: called after it, or in a folder of its name."""
    found: dict[str, list[Path]] = {}
    for pattern in ("*.parquet", "data/*.parquet", "*/[0-9]*.parquet"):
        for path in sorted(root.glob(pattern)):
            split = _SHARD.sub("", path.stem)
            files = found.setdefault(path.parent.name if split.isdigit() else split, [])
            if path not in files:
                files.append(path)
    return found


def _opened(file: Path) -> Any:
    """A file, of which the end alone is read.

    Raises:
        ImportError: pyarrow is not installed.
        AnnotationError: it is no Parquet file.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("reading Parquet files needs pyarrow: pip install 'fssops[datasets]'") from error
    try:
        return parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise AnnotationError(f"{file}: file must be Parquet, got {str(error).splitlines()[0]}") from error


@functools.lru_cache(maxsize=4)
def _group(file: Path, changed: int, group: int, column: str) -> Any:
    """A column of a group of rows of a file, which was changed then; the last few are kept."""
    import pyarrow

    try:
        return _opened(file).read_row_group(group, columns=[column]).column(0)
    except (pyarrow.ArrowException, OSError) as error:
        text = str(error).splitlines()[0]
        raise AnnotationError(f"{file}: rows must be readable, got {text} in group {group}") from error


def _picture_columns(file: Path) -> tuple[list[str], list[int]]:
    """Names of the columns that may hold pictures, and rows of each group."""
    opened = _opened(file)
    from pyarrow import types

    names = [
        field.name
        for field in opened.schema_arrow
        if types.is_binary(field.type)
        or (types.is_struct(field.type) and {part.name for part in field.type} == {"bytes", "path"})
    ]
    return names, [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)]


class ParquetSource(LabelMapSource):
    """Images and label maps of Parquet files; layout in the module.

    Args:
        root: the folder.
        split: as files or their folders are called. None: train, or the only one.
        image: column of the images. None: the one called image, img or pixel_values.
        mask: column of the label maps. None: the other one that holds pictures.
        classes: class file, instead of ROOT/classes.json or ROOT/id2label.json.
        unknown: values outside the class list are an ``error`` or mapped to 255 (``ignore``).

    Raises:
        ImportError: pyarrow is not installed.
        FileNotFoundError: no such split, or no class file.
        DataError: a file is broken, or its columns do not say which hold images and label maps.
    """

    def __init__(
        self,
        root: PathLike,
        split: str | None = None,
        *,
        image: str | None = None,
        mask: str | None = None,
        classes: PathLike | None = None,
        unknown: OnUnknown = "error",
    ) -> None:
        base = Path(root)
        files = _files(base)
        split = chosen_split(base, split, list(files))
        there = [base / name for name in CLASS_FILES if (base / name).is_file()]
        listed = read_classes(Path(classes) if classes is not None else [*there, base / CLASS_FILES[0]][0])
        self._rows: list[tuple[Path, int, int, int]] = []
        for file in files[split]:
            columns, rows = _picture_columns(file)
            changed = file.stat().st_mtime_ns
            self._rows += [(file, changed, group, row) for group, count in enumerate(rows) for row in range(count)]
            self._image, self._mask = _columns(file, columns, image, mask)
        pairs = Pairs({f"{number:06d}": (row[0], row[0]) for number, row in enumerate(self._rows)})
        super().__init__(split, listed, pairs, unknown=unknown)

    def pictures(self, name: str) -> tuple[Picture, Picture]:
        return self._picture(name, self._image), self._picture(name, self._mask)

    def image_file(self, name: str) -> None:
        return None

    def identity(self) -> Mapping[str, object]:
        return {"image": self._image, "mask": self._mask}

    def _picture(self, name: str, column: str) -> Picture:
        self.check_name(name)
        file, changed, group, row = self._rows[int(name)]
        value, where = _group(file, changed, group, column)[row].as_py(), f"{file}: {column} of row {int(name)}"
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if content is not None:
            return EncodedPicture(where, content)
        if path is None:
            raise MaskError(f"{where} must hold a picture, got nothing")
        return file.parent / check_inside(path, where)


def _columns(file: Path, columns: list[str], image: str | None, mask: str | None) -> tuple[str, str]:
    """The columns of images and label maps.

    Raises:
        DataError: a named one is not there, or none is told by its name.
    """
    for given in (image, mask):
        if given is not None and given not in columns:
            raise DataError(f"{file}: column must be one of pictures ({', '.join(columns) or 'none'}), got {given!r}")
    image = image or next((name for name in columns if name in IMAGES and name != mask), None)
    others = [name for name in columns if name != image]
    mask = mask or (others[0] if len(others) == 1 else None)
    if image is None or mask is None or image == mask:
        got = ", ".join(columns) or "none"
        raise DataError(f"{file}: there must be a column image and one of label maps, got {got}; say image= and mask=")
    return image, mask


def _numbers(images: ImageSource) -> list[int]:
    """Few-shot numbers of classes: their ids; one higher where 0 is a class of its own."""
    shift = 0 if images.classes.background is not None or 0 not in images.classes.index_of else 1
    return [category.id + shift for category in images.classes.categories]


def _recognise(root: Path) -> str:
    return "" if _files(root) else "no *.parquet, data/*.parquet or SPLIT/0000.parquet"


def _splits(root: Path) -> list[str]:
    return list(_files(root))


LAYOUT = Layout(
    name="parquet",
    files="data/SPLIT-00000-of-00001.parquet with images and label maps, id2label.json or classes.json",
    readers={"semantic": ParquetSource, "few-shot": few_shot_view(ParquetSource, _numbers)},
    recognise=_recognise,
    splits=_splits,
)
