"""TOML in and out: parsing with the standard library, and a writer for the flat tables that settings are."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TomlError = tomllib.TOMLDecodeError


def parse_toml(text: str) -> dict[str, Any]:
    """Parse a TOML document."""
    parsed: dict[str, Any] = tomllib.loads(text)
    return parsed


def parse_toml_value(text: str) -> Any:
    """Parse one TOML value; a text that is none (``resnet50``, ``runs/a``) is taken as a string.

    Raises:
        TomlError: a text that begins like a list, a table or a quoted string goes on otherwise.
    """
    try:
        parsed = tomllib.loads(f"value = {text}")
    except TomlError:
        if text.startswith(("[", "{", '"', "'")):
            raise
        return text
    return parsed["value"] if set(parsed) == {"value"} else text


def to_toml(tables: Mapping[str, Any]) -> str:
    """Write nested dicts as TOML; ``None`` is left out, which stands for "not set"."""
    plain = [_line(key, value) for key, value in tables.items() if not _is_table(value) and value is not None]
    parts = ["\n".join(plain)] if plain else []
    for name, table in tables.items():
        if _is_table(table):
            lines = [_line(key, value) for key, value in table.items() if value is not None]
            parts.append("\n".join([f"[{_key(name)}]", *lines]))
    return "\n\n".join(parts) + "\n"


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _line(key: str, value: Any) -> str:
    return f"{_key(key)} = {toml_value(value)}"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _string(key)


def _string(text: str) -> str:
    # JSON's escapes are a subset of TOML's basic strings, except for DEL, which TOML forbids raw.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_value(value: Any) -> str:
    """Write one value.

    Raises:
        TypeError: TOML has no such value.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        text = repr(value)
        return text if any(mark in text for mark in ".einf") else f"{text}.0"
    if isinstance(value, Mapping):
        inner = ", ".join(_line(key, item) for key, item in value.items() if item is not None)
        return f"{{ {inner} }}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(item) for item in value if item is not None) + "]"
    if isinstance(value, str):
        return _string(value)
    raise TypeError(f"to_toml: value must be a string, number, boolean, list or table, got {type(value).__name__}")
