"""Keeps on disk how many pixels each class has in each image, so that large data sets open quickly again.

The folder is ``$FSSOPS_CACHE``, else ``$XDG_CACHE_HOME/fssops``, else ``~/.cache/fssops``; ``FSSOPS_CACHE=off``
stores nothing. An entry is named by a hash over the layout, its options, its classes, and the size and time of every
file it was counted from, so a changed data set is counted again. A folder that cannot be written costs only time.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fssops.data.few_shot_source import FewShotSource

VERSION = 1
MIN_IMAGES = 500
"""Smaller data sets are counted in about a second; storing them would only litter."""


def folder() -> Path | None:
    """Where entries lie; None when that is switched off."""
    setting = os.environ.get("FSSOPS_CACHE", "")
    if setting.lower() in ("off", "0", "none"):
        return None
    if setting:
        return Path(setting)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fssops"


def key_of(source: FewShotSource) -> str | None:
    """Hash that names the entry of a source; None when it is not worth storing or a file cannot be examined."""
    if len(source.names) < MIN_IMAGES:
        return None
    classes = {str(number): name for number, name in source.classes.items()}
    digest = hashlib.sha256(json.dumps([VERSION, source.describe(), classes, source.names]).encode())
    files = source.truth_files()
    for file in files:
        try:
            status = os.stat(file)
        except OSError:
            return None  # the error is reported where the file is read
        digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest() if files else None


def load(key: str) -> dict[str, dict[int, int]] | None:
    """Read an entry; None when there is none or it is damaged."""
    where = folder()
    if where is None:
        return None
    try:
        raw = json.loads((where / f"classes-{key}.json").read_text())
        return {name: {int(c): int(area) for c, area in areas.items()} for name, areas in raw.items()}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return None


def save(key: str, areas: dict[str, dict[int, int]]) -> None:
    """Write an entry in one step, so that a reader never sees half of it."""
    where = folder()
    if where is None:
        return
    try:
        where.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=where, suffix=".tmp")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(areas, file)
            os.replace(temporary, where / f"classes-{key}.json")
        except OSError:
            os.unlink(temporary)
            raise
    except OSError:
        return  # a read-only or full folder: the next run counts again
