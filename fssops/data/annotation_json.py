"""What all annotation files in JSON share: their tables, sizes and ids, and telling what is wrong with them."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from fssops.data.errors import AnnotationError, DataWarning
from fssops.data.images import MAX_PIXELS
from fssops.data.json_values import identifier, name, shown, whole_number
from fssops.data.paths import check_inside
from fssops.data.text_files import read_json

Problem = tuple[str, str]
"""A kind of finding (``fssops.data.check.KINDS``), and what is wrong and what was done; the file is not named."""

Row = TypeVar("Row")

MAX_WARNINGS = 50
"""Faults of a file that get a warning of their own."""


def read_tables(file: Path, tables: Sequence[str]) -> dict[str, Any]:
    """Read a JSON object that holds certain lists.

    Args:
        file: the file.
        tables: keys whose values must be lists.

    Raises:
        FileNotFoundError: no such file.
        AnnotationError: it cannot be read, is no complete JSON, or lacks a table.
    """
    content = read_json(file, "annotation file")
    if not isinstance(content, dict):
        raise AnnotationError(f"{file}: annotation file must hold a JSON object, got {type(content).__name__}")
    for table in tables:
        if not isinstance(content.get(table), list):
            got = "no such table" if table not in content else type(content[table]).__name__
            raise AnnotationError(f"{file}: annotation file must hold a list {table!r}, got {got}")
    return content


def usable_rows(
    file: Path, table: str, rows: Sequence[Any], problems: list[Problem], read: Callable[[Any, str], Row]
) -> list[Row]:
    """The rows of a table of images or videos.

    Args:
        file: named where no row can be used.
        table: named for each.
        rows: of the table.
        problems: is added to: rows that are left out.
        read: makes something of a row, which it may call what the second argument says; raises AnnotationError.

    Raises:
        AnnotationError: there are rows, and none can be used.
    """
    found, before = [], len(problems)
    for place, row in enumerate(rows):
        try:
            found.append(read(row, f"{table}[{place}]"))
        except AnnotationError as error:
            problems.append(("bad_annotation", f"{error}; left out"))
    if rows and not found:
        raise AnnotationError(f"{file}: {table} must have a row that can be used, got {problems[before][1]}")
    return found


def checked_id(row: Any, where: str) -> int | str:
    """The id of a row of images or videos.

    Raises:
        AnnotationError: the row is no object, or has no id.
    """
    found = identifier(row.get("id")) if isinstance(row, dict) else None
    if found is None:
        raise AnnotationError(f"{where} must be an object whose id is a number or a name, got {shown(row)}")
    return found


def checked_name(value: Any, where: str) -> str:
    """A file name that stays in its folder, with ``/`` between folders.

    Raises:
        AnnotationError: it is no name, or leads out of its folder.
    """
    if name(value) is None:
        raise AnnotationError(f"{where} must be a name below its folder, got {shown(value)}")
    return check_inside(value, where)


def checked_size(row: Mapping[str, Any], where: str) -> tuple[int, int]:
    """Width and height that a row of a table states.

    Raises:
        AnnotationError: not positive whole numbers, or more pixels than are ever read.
    """
    width, height = whole_number(row.get("width")), whole_number(row.get("height"))
    if width is None or height is None or width < 1 or height < 1:
        got = " x ".join(shown(row.get(side)) for side in ("width", "height"))
        raise AnnotationError(f"{where}: width and height must be positive integers, got {got}")
    if width * height > MAX_PIXELS:
        raise AnnotationError(f"{where}: there must be at most {MAX_PIXELS} pixels, got {width} x {height}")
    return width, height


def own_ids(rows: Sequence[Any], problems: list[Problem]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a table of annotations, each with an id that no other has.

    Args:
        rows: of the table.
        problems: is added to: rows that are no objects and are left out, and ids that were replaced by free ones.
    """
    taken = {whole_number(row.get("id")) for row in rows if isinstance(row, dict)}
    free = (number for number in count(1) if number not in taken)
    seen: set[int] = set()
    for place, row in enumerate(rows):
        where = f"annotations[{place}]"
        if not isinstance(row, dict):
            problems.append(("bad_annotation", f"{where} must be an object, got {shown(row)}; left out"))
            continue
        number = whole_number(row.get("id"))
        if number is None or number in seen:
            kind, got = ("bad_annotation" if number is None else "duplicate_id"), shown(row.get("id"))
            number = next(free)
            rule = "id must be a whole number that no other annotation has"
            problems.append((kind, f"{where}: {rule}, got {got}; it is called {number}"))
        seen.add(number)
        yield number, row


def tell(file: Path, problems: Sequence[Problem]) -> None:
    """Warn of faults of a file: of the first fifty one by one, of the others by their number."""
    for _, message in problems[:MAX_WARNINGS]:
        warnings.warn(f"{file}: {message}", DataWarning, 4)
    if len(problems) > MAX_WARNINGS:
        warnings.warn(f"{file}: {len(problems) - MAX_WARNINGS} more problems", DataWarning, 4)


def mentions(file: Path, key: str, *tables: str) -> bool:
    """Whether a JSON file has a key, without parsing it: such files run to hundreds of megabytes.

    Args:
        file: the file.
        key: looked for everywhere.
        tables: other keys that tell as much, looked for where tables are named: near the beginning and the end.
    """
    if file.stat().st_size == 0:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        ends = content[: 1 << 16] + content[-(1 << 16) :]
        return any(f'"{table}"'.encode() in ends for table in tables) or content.find(f'"{key}"'.encode()) >= 0
