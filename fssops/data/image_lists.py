"""Splits of one's own: a JSON file that lists the images (or videos) of each by name.

    {"of": "all", "splits": {"train": ["a", "b"], "val": ["c"]}}

``of`` is the split of the layout that holds all of them; left out or null: its usual one. Names are those that ``python
-m fssops.data`` shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fssops.data.errors import AnnotationError
from fssops.data.layouts import open_data
from fssops.data.source import PathLike
from fssops.data.text_files import read_json


def write_lists(file: Path, of: str | None, splits: Mapping[str, Sequence[str]]) -> None:
    """Write a file of lists.

    Raises:
        OSError: it cannot be written.
    """
    content = {"of": of, "splits": {split: list(names) for split, names in splits.items()}}
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def open_listed(
    lists: str, layout: str, root: PathLike | None, split: str | None, truth: Any, options: Mapping[str, Any]
) -> Any:
    """Open a split of a layout, or the one that a file of lists calls so.

    Args:
        lists: the file; "" for none.
        layout, root, split, truth, options: as of :func:`fssops.data.layouts.open_data`; with lists, no split is train.

    Raises:
        AnnotationError: the file is no such file, has no such split, or names what the data set has not.
        ValueError, FileNotFoundError, DataError: as ``open_data``.
    """
    if not lists:
        return open_data(layout, root, split=split, truth=truth, **options)
    split = split or "train"
    content = read_json(Path(lists), "lists")
    splits = content.get("splits") if isinstance(content, dict) else None
    if not isinstance(splits, dict) or not all(_names(names) for names in splits.values()):
        raise AnnotationError(f'{lists}: lists must read {{"of": SPLIT, "splits": {{SPLIT: [NAME, ...]}}}}, got others')
    if split not in splits:
        raise AnnotationError(f"{lists}: split must be {' or '.join(splits)}, got {split!r}")
    source: Any = open_data(layout, root, split=content.get("of"), truth=truth, **options)
    try:
        source.keep(splits[split], split)
    except ValueError as error:
        raise AnnotationError(f"{lists}: {error}") from None
    return source


def _names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)
