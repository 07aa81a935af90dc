"""What a fixed-class data set says about its classes: names, colours, which are countable, and their numbers."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fssops.data.errors import AnnotationError, DuplicateError
from fssops.structures import IGNORE

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Category:
    """One class.

    Attributes:
        id: number in the data set's files, e.g. 1..90 in COCO.
        name: as the data set calls it.
        colour: RGB for pictures and palette files.
        is_thing: whether its objects are counted (things) or it is an amorphous region (stuff).
    """

    id: int
    name: str
    colour: Colour
    is_thing: bool = False


@dataclass(frozen=True)
class Metadata:
    """The classes of a data set. A class is known everywhere by its index in ``categories``: 0..C-1.

    Attributes:
        categories: by index.

    Raises:
        AnnotationError: no class, too many for 8-bit label maps, or an id twice.
    """

    categories: tuple[Category, ...]

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        if not 1 <= len(self.categories) < IGNORE:
            raise AnnotationError(f"categories: there must be 1 to {IGNORE - 1} classes, got {len(self.categories)}")
        if len(self.index_of) != len(self.categories):
            ids = [category.id for category in self.categories]
            raise DuplicateError(
                f"categories: ids must be unique, got {next(i for i in ids if ids.count(i) > 1)} twice"
            )

    @cached_property
    def index_of(self) -> Mapping[int, int]:
        """Id in the data set's files -> index."""
        return {category.id: index for index, category in enumerate(self.categories)}

    @property
    def names(self) -> list[str]:
        """Class names by index."""
        return [category.name for category in self.categories]

    @property
    def colours(self) -> list[Colour]:
        """Class colours by index."""
        return [category.colour for category in self.categories]

    @property
    def things(self) -> tuple[int, ...]:
        """Indices of the countable classes."""
        return tuple(index for index, category in enumerate(self.categories) if category.is_thing)

    def __len__(self) -> int:
        return len(self.categories)

    def as_json(self) -> dict[str, Any]:
        """Plain values: the form of ``classes.json``."""
        rows = [
            {"id": c.id, "name": c.name, "color": list(c.colour), "isthing": int(c.is_thing)} for c in self.categories
        ]
        return {"classes": rows, "ignore_index": IGNORE}

    @staticmethod
    def from_rows(rows: Iterable[Any], where: str, *, things: bool | None = None) -> Metadata:
        """Build from rows as COCO's ``categories`` have them, in ascending order of ids.

        Args:
            rows: dicts with ``id`` and ``name``; ``color`` and ``isthing`` where known.
            where: what errors call it.
            things: whether rows that do not say are things; None makes ``isthing`` compulsory.

        Raises:
            AnnotationError: a row is broken.
        """
        listed = list(rows)
        plain = distinct_colours(len(listed))
        found: list[Category] = []
        for number, row in enumerate(listed):
            if not isinstance(row, Mapping) or not isinstance(row.get("id"), int) or isinstance(row.get("id"), bool):
                raise AnnotationError(f"{where}: categories[{number}] must have an integer id and a name, got {row!r}")
            if not isinstance(row.get("name"), str):
                raise AnnotationError(f"{where}: category {row['id']} must have a name, got {row.get('name')!r}")
            is_thing = row.get("isthing", things)
            if is_thing not in (0, 1):
                got = "nothing" if is_thing is None else repr(is_thing)
                raise AnnotationError(f"{where}: category {row['id']} must say isthing (0 or 1), got {got}")
            colour = _colour(row.get("color"), where, row["id"]) or plain[number]
            found.append(Category(row["id"], row["name"], colour, bool(is_thing)))
        try:
            return Metadata(tuple(sorted(found, key=lambda category: category.id)))
        except AnnotationError as error:
            raise AnnotationError(f"{where}: {error}") from None

    @staticmethod
    def from_names(
        names: Sequence[str],
        things: Iterable[int] = (),
        colours: Sequence[Colour] | None = None,
        ids: Sequence[int] | None = None,
    ) -> Metadata:
        """Build from names by index, with the indices of the countable ones; without ``ids`` they equal indices."""
        countable = set(things)
        chosen = distinct_colours(len(names)) if colours is None else colours
        numbers = range(len(names)) if ids is None else ids
        rows = enumerate(zip(numbers, names, chosen, strict=True))
        return Metadata(tuple(Category(number, name, colour, i in countable) for i, (number, name, colour) in rows))


def _colour(value: Any, where: str, identifier: int) -> Colour | None:
    if value is None:
        return None
    valid = isinstance(value, (list, tuple)) and len(value) == 3
    if not valid or any(isinstance(v, bool) or not isinstance(v, int) or not 0 <= v <= 255 for v in value):
        raise AnnotationError(f"{where}: color of category {identifier} must be three numbers 0..255, got {value!r}")
    return value[0], value[1], value[2]


def distinct_colours(count: int) -> list[Colour]:
    """Colours that neighbouring numbers do not share: hues by the golden ratio, four steps of brightness."""
    colours = []
    for index in range(count):
        hue = (0.61803398875 * index + 0.02) % 1.0
        saturation, value = ((0.75, 0.9), (0.55, 0.75), (0.9, 0.65), (0.45, 0.95))[index // 3 % 4]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours
