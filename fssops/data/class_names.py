"""Lists of classes in JSON: what a folder of label maps and a run say which classes they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fssops.data.errors import AnnotationError
from fssops.data.json_values import shown
from fssops.data.text_files import read_json
from fssops.truth import Classes


def read_classes(file: Path) -> Classes:
    """Read a list of classes.

    Forms: names by id from 0; ``{"1": "cat", ...}``; ``{"classes": [{"id": 0, "name": "road", "color": [128, 64, 128],
    "isthing": 0}, ...]}`` or the inner list alone; ``{"names": ...}`` around any of them.

    Raises:
        FileNotFoundError: no such file.
        AnnotationError: not JSON of these forms.
    """
    content: Any = read_json(file, "class list")
    if isinstance(content, dict):
        content = content.get("classes", content.get("names", content))
    if isinstance(content, dict):
        content = [{"id": key, "name": name} for key, name in content.items()]
    if not isinstance(content, list):
        raise AnnotationError(f"{file}: class list must be a list or map ids to names, got {shown(content)}")
    rows = [row if isinstance(row, dict) else {"id": i, "name": row} for i, row in enumerate(content)]
    return Classes.from_rows(rows, str(file), things=False)


def spans(text: str) -> tuple[int, ...]:
    """The numbers of ``1-3 7``: 1, 2, 3 and 7."""
    parts = (part.partition("-") for part in text.split())
    return tuple(number for first, _, last in parts for number in range(int(first), int(last or first) + 1))
