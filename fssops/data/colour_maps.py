"""Label maps whose classes are colours: which colour is which class, and reading such pictures as class indices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fssops.data.class_names import read_classes
from fssops.data.errors import AnnotationError, DataError, MaskValueError
from fssops.data.images import check_size, palette_of, read_numbers
from fssops.data.json_values import shown
from fssops.data.text_files import read_json, read_lines
from fssops.labels import IGNORE
from fssops.truth import Classes, Colour

FILES = ("labelmap.txt", "classes.csv", "class_dict.csv", "label_colors.txt", "classes.txt", "classes.json")
"""Names of files that say which colour is which class, in the order in which they are looked for."""

_VOID = frozenset({"void", "ignore", "ignored", "unlabelled", "unlabeled"})
"""Names of colours that mean no class: these pixels are ignored."""


@dataclass(frozen=True)
class ColourCode:
    """Which colour is which class.

    Attributes:
        classes: the classes, in the order in which they are listed.
        index_of: colour -> class index, or 255 where it means no class.
    """

    classes: Classes
    index_of: Mapping[Colour, int]

    @staticmethod
    def from_rows(rows: Iterable[tuple[str, Colour]], where: str) -> ColourCode:
        """Build from names and colours; one class may have several colours, and names of void make colours ignored.

        Raises:
            AnnotationError: one colour for two classes, or no class.
        """
        names: dict[str, Colour] = {}
        of: dict[Colour, str] = {}
        for name, colour in rows:
            if of.setdefault(colour, name) != name:
                raise AnnotationError(
                    f"{where}: a colour must be of one class, got {colour} for {of[colour]!r} and {name!r}"
                )
            if name.lower() not in _VOID:
                names.setdefault(name, colour)
        if not names:
            raise AnnotationError(f"{where}: there must be at least one class with a colour, got none")
        things = [index for index, name in enumerate(names) if name.lower() not in ("background", "bg")]
        classes = Classes.from_names(list(names), things if len(things) < len(names) else (), list(names.values()))
        place = {name: index for index, name in enumerate(names)}
        return ColourCode(classes, {colour: place.get(name, IGNORE) for colour, name in of.items()})


def read_code(file: Path) -> ColourCode:
    """Read a file of names and colours.

    Forms: ``NAME:R,G,B::`` (labelmap.txt of CVAT), ``NAME,R,G,B`` (with or without a first line of titles),
    ``R G B NAME``, and JSON of :func:`fssops.data.class_names.read_classes` whose every class has a ``color``.

    Raises:
        FileNotFoundError: no such file.
        AnnotationError: it breaks its form.
    """
    if file.suffix.lower() == ".json":
        content = read_json(file, "class list")
        listed = content.get("classes") if isinstance(content, dict) else content
        if not isinstance(listed, list) or not all(isinstance(row, dict) and row.get("color") for row in listed):
            raise AnnotationError(
                f"{file}: every class must have a color for labels that are coded by colours, got none"
            )
        return ColourCode.from_rows(zip((c := read_classes(file)).names, c.colours, strict=True), str(file))
    rows = []
    for number, line in enumerate(read_lines(file, "list of colours"), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        found = re.fullmatch(r"(?P<n>[^:]+?)\s*:\s*(?P<c>\d+\s*,\s*\d+\s*,\s*\d+)\s*(:.*)?", text)
        found = found or re.fullmatch(r"(?P<n>.+?)\s*[,;\t]\s*(?P<c>\d+\s*[,;\t]\s*\d+\s*[,;\t]\s*\d+)\s*", text)
        found = found or re.fullmatch(r"(?P<c>\d+[\s,;]+\d+[\s,;]+\d+)[\s,;]+(?P<n>.+?)", text)
        if found is None:
            if number == 1 and not re.search(r"\d", text):
                continue  # titles of columns
            raise AnnotationError(
                f"{file}: line {number} must be a name and a colour, as NAME,R,G,B, got {shown(line)}"
            )
        red, green, blue = (int(value) for value in re.findall(r"\d+", found["c"]))
        if max(red, green, blue) > 255:
            raise AnnotationError(f"{file}: line {number}: colours must be from 0 to 255, got {found['c']}")
        rows.append((found["n"].strip(), (red, green, blue)))
    return ColourCode.from_rows(rows, str(file))


def names_colours(file: Path) -> bool:
    """Whether a file is one that :func:`read_code` reads; others of the same names list classes without colours."""
    try:
        return bool(read_code(file).index_of)
    except (DataError, OSError):
        return False


def voc_colours(count: int) -> list[Colour]:
    """PASCAL VOC's palette: the bits of a number spread over red, green and blue, the highest bits first."""
    palette = []
    for number in range(count):
        channels = [sum((number >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)]
        palette.append((channels[0], channels[1], channels[2]))
    return palette


def read_colour_map(
    file: Path, code: ColourCode, size: tuple[int, int] | None, unknown: Literal["error", "ignore"] = "error"
) -> np.ndarray:
    """Read a picture of colours as class indices.

    Args:
        file: a lossless picture, RGB or with a palette.
        code: which colour is which class.
        size: (width, height) that it must have.
        unknown: other colours are an ``error``, or ignored (255).

    Returns:
        uint8 [H, W].

    Raises:
        FileNotFoundError, ImageFileError, MaskError: as :func:`fssops.data.images.read_mask`.
        MaskValueError: a colour that is no class's.
    """
    packed = read_packed(file, size)
    codes = np.array([(r << 16) + (g << 8) + b for r, g, b in code.index_of], dtype=np.int32)
    order = codes.argsort()
    place = np.searchsorted(codes[order], packed).clip(max=len(codes) - 1)
    labels: np.ndarray = np.array(list(code.index_of.values()), dtype=np.uint8)[order][place]
    strange = codes[order][place] != packed
    if strange.any():
        if unknown == "error":
            names = ", ".join(code.classes.names[:4]) + (", ..." if len(code.classes) > 4 else "")
            raise MaskValueError(
                f"{file}: label map must hold only the {len(codes)} colours of its classes ({names}), got "
                f"{_told(packed[strange])}; unknown=ignore leaves such pixels out"
            )
        labels[strange] = IGNORE
    return labels


def read_packed(file: Path, size: tuple[int, int] | None) -> np.ndarray:
    """A picture's colours as numbers: int32 [H, W] of red * 65536 + green * 256 + blue."""
    values, palette = read_numbers(file, "label map"), palette_of(file)
    check_size(values, size, file, "label map")
    if palette is not None:
        values = np.pad(palette, ((0, 256 - len(palette)), (0, 0)))[values]
    elif values.ndim == 2:
        values = np.repeat(values[..., None].clip(0, 255), 3, axis=2)
    channels = values.astype(np.int32)
    packed: np.ndarray = np.dot(channels, np.array((1 << 16, 1 << 8, 1), dtype=np.int32))
    return packed


def _told(packed: np.ndarray, most: int = 6) -> str:
    """Colours with their pixels, the most frequent first."""
    values, counts = np.unique(packed, return_counts=True)
    order = counts.argsort()[::-1]
    texts = [f"{unpacked(values[i])} ({counts[i]} px)" for i in order[:most]]
    return ", ".join(texts) + (f" and {len(values) - most} more" if len(values) > most else "")


def unpacked(value: int) -> str:
    """A number of :func:`read_packed` as R,G,B."""
    return f"{value >> 16},{value >> 8 & 255},{value & 255}"


def is_coloured(file: Path) -> bool:
    """Whether a picture holds a pixel that is no shade of grey, and no palette."""
    try:
        values = read_numbers(file, "label map")
    except (DataError, OSError):
        return False
    return values.ndim == 3 and bool((values != values[..., :1]).any())
