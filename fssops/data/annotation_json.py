"""Opening annotation files in JSON: what is checked before any table is looked into."""

from __future__ import annotations

import json
import mmap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from fssops.data.errors import AnnotationError, DataWarning
from fssops.data.images import MAX_PIXELS

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
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: annotation file must exist, got nothing of that name") from None
    except OSError as error:
        raise AnnotationError(f"{file}: annotation file must be readable, got {error.strerror or error}") from error
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise AnnotationError(
            f"{file}: annotation file must be complete JSON, got {len(text)} bytes that break at line {error.lineno}, "
            f"column {error.colno} ({error.msg}); was it cut short?"
        ) from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{file}: annotation file must be JSON text, got {error}") from error
    if not isinstance(content, dict):
        raise AnnotationError(f"{file}: annotation file must hold a JSON object, got {type(content).__name__}")
    for table in tables:
        if not isinstance(content.get(table), list):
            got = "no such table" if table not in content else type(content[table]).__name__
            raise AnnotationError(f"{file}: annotation file must hold a list {table!r}, got {got}")
    return content


def whole(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def checked_size(row: Mapping[str, Any], where: str) -> tuple[int, int]:
    """Width and height that a row of a table states.

    Raises:
        AnnotationError: not positive integers, or more pixels than are ever read.
    """
    width, height = row.get("width"), row.get("height")
    if not whole(width) or not whole(height) or width < 1 or height < 1:
        raise AnnotationError(f"{where}: width and height must be positive integers, got {width!r} x {height!r}")
    if width * height > MAX_PIXELS:
        raise AnnotationError(f"{where}: there must be at most {MAX_PIXELS} pixels, got {width} x {height}")
    return width, height


def warn_of(file: Path, messages: Sequence[str]) -> None:
    """Warn of faults of a file: of the first fifty one by one, of the others by their number."""
    for message in messages[:MAX_WARNINGS]:
        warnings.warn(f"{file}: {message}", DataWarning, 4)
    if len(messages) > MAX_WARNINGS:
        warnings.warn(f"{file}: {len(messages) - MAX_WARNINGS} more problems", DataWarning, 4)


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
