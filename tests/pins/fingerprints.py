"""What of data and results is written down: exact hashes of whole numbers and words, a few sums of fractions."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

EXPECTED = Path(__file__).parent / "expected"

Fingerprint = dict[str, "str | list[float]"]
"""Field -> hash of its whole numbers and words, or sums of its fractions."""

FRACTION_TOLERANCE = 2e-4
"""Between two sums of fractions. Another order of the same float32 operations stays below a tenth of it; one grey level
of one pixel of an image of 48 x 48 is above it."""


@functools.cache
def expected(name: str) -> Any:
    """The content of ``expected/<name>.json``."""
    return json.loads((EXPECTED / f"{name}.json").read_text())


def fingerprint(content: object) -> Fingerprint:
    """Fingerprint nested records, dicts and lists of tensors, arrays, numbers and words, by field.

    Lists are gone through in order, their entries count for one field; ``None`` is nothing.
    """
    digests: dict[str, Any] = {}
    fractions: dict[str, list[np.ndarray]] = {}
    for field, leaf in _leaves(content, ""):
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f":
            fractions.setdefault(field, []).append(leaf.astype(np.float64))
            leaf = leaf.shape
        elif isinstance(leaf, float):
            fractions.setdefault(field, []).append(np.array([leaf]))
            leaf = "fraction"
        digest = digests.setdefault(field, hashlib.sha256())
        if isinstance(leaf, np.ndarray):
            digest.update(f"{leaf.shape}".encode() + np.ascontiguousarray(leaf, dtype="<i8").tobytes())
        else:
            digest.update(f"{leaf!r}\n".encode())
    found: Fingerprint = {field: digest.hexdigest()[:16] for field, digest in digests.items()}
    for field, arrays in fractions.items():
        found[f"{field} (sums)"] = _sums(np.concatenate([array.reshape(-1) for array in arrays]))
    return found


def differences(found: Fingerprint, wanted: Fingerprint) -> list[str]:
    """Say which fields differ."""
    lines = [f"{field} is gone" for field in wanted if field not in found]
    for field, value in found.items():
        if field not in wanted:
            lines.append(f"{field} is new")
        elif isinstance(value, str) or isinstance(wanted[field], str):
            if value != wanted[field]:
                lines.append(f"{field} has other values or another shape")
        elif not np.allclose(value, wanted[field], rtol=0, atol=FRACTION_TOLERANCE):
            lines.append(f"{field} has other values: {value} instead of {wanted[field]}")
    return lines


def key_paths(content: object, prefix: str = "") -> set[str]:
    """Dotted keys of nested JSON; entries of lists count as one ``[]``, and keys that are numbers as one ``#``."""
    paths: set[str] = set()
    if isinstance(content, Mapping):
        for key, value in content.items():
            path = f"{prefix}.{'#' if str(key).isdecimal() else key}".lstrip(".")
            paths |= {path} | key_paths(value, path)
    elif isinstance(content, list):
        for value in content:
            paths |= key_paths(value, f"{prefix}[]")
    return paths


def files_in(folder: Path) -> list[str]:
    """Files in a folder and below, without those of a first stage."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(name.as_posix() for name in names if name.parts[0] not in ("base", "segmenter", "run.lock"))


def _leaves(content: object, field: str) -> Iterator[tuple[str, Any]]:
    if content is None:
        return
    if dataclasses.is_dataclass(content) and not isinstance(content, type):
        content = {entry.name: getattr(content, entry.name) for entry in dataclasses.fields(content)}
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from _leaves(value, f"{field}.{name}".lstrip("."))
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _leaves(value, field)
    else:
        yield field, np.asarray(content.detach()) if isinstance(content, torch.Tensor) else content


def _sums(values: np.ndarray) -> list[float]:
    """Three sums over all values, each under other signs; scaled so that their size does not grow with the number."""
    place = np.arange(len(values), dtype=np.uint64)
    sums = [values.sum()]
    for factor in (2654435761, 2246822519):
        signs = (place * np.uint64(factor) % np.uint64(1 << 32)) >> np.uint64(31)
        sums.append(np.where(signs == 1, values, -values).sum())
    return [round(float(total / np.sqrt(len(values))), 6) for total in sums]
