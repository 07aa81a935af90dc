"""Reading text files that users bring along: JSON, and lists of one entry a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fssops.data.errors import AnnotationError
from fssops.data.json_values import shown


def read_json(file: Path, what: str) -> Any:
    """Read a JSON file.

    Args:
        file: the file.
        what: what errors call it.

    Raises:
        FileNotFoundError: no such file.
        AnnotationError: it cannot be read, is no complete JSON, or says two things by one key.
    """
    text = _content(file, what)
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise AnnotationError(
            f"{file}: {what} must be complete JSON, got {len(text)} bytes that break at line {error.lineno}, "
            f"column {error.colno} ({error.msg}); was it cut short?"
        ) from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{file}: {what} must be JSON text, got {error}") from error


def read_lines(file: Path, what: str) -> list[str]:
    """Read the lines of a list.

    Raises:
        FileNotFoundError: no such file.
        AnnotationError: it cannot be read, or is no UTF-8 text.
    """
    try:
        return _content(file, what).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{file}: {what} must be UTF-8 text, got {error}") from error


def _content(file: Path, what: str) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: {what} must exist, got nothing of that name") from None
    except OSError as error:
        raise AnnotationError(f"{file}: {what} must be readable, got {error.strerror or error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; where a key occurs twice, JSON's readers would keep the last value and lose the first."""
    table = dict(pairs)
    if len(table) != len(pairs):
        for key, value in pairs:
            if value != table[key]:
                raise ValueError(f"two values of the key {shown(key)} in one object")
    return table
