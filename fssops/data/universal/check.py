"""Looks for what would spoil training or evaluation of fixed classes, before it starts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fssops.data import universal
from fssops.data.check import Finding, Report, open_splits
from fssops.data.errors import (
    DataError,
    ImageFileError,
    ImageSizeError,
    MaskSizeError,
    MaskValueError,
    PanopticMismatchError,
)
from fssops.data.sources import Progress
from fssops.data.universal.coco_sources import COCOPanopticSource
from fssops.data.universal.source import UniversalSource
from fssops.truth import Truth


def check_universal(
    format: str,
    root: str | Path | None,
    *,
    splits: Sequence[str] | None = None,
    kind: universal.TruthKind | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Read every image and annotation of a data set once and report what is wrong.

    Args:
        format: a key of ``universal.FORMATS``.
        root: the data set's folder.
        splits: which; None checks all there are.
        kind: form of the truth, for layouts that store several.
        progress: called with (done, total) images.
        **options: options of the layout, see ``universal.open_source``.

    Raises:
        FileNotFoundError: ``root`` is not there.
    """
    if root is not None and not Path(root).exists():
        raise FileNotFoundError(f"{root}: root must be a folder, got no such folder")
    report = Report(str(root or ""), format)
    chosen = splits or universal.splits_of(format, root or ".") or ["train"]
    sources = open_splits(
        report, chosen, lambda split: universal.open_source(format, root, split=split, kind=kind, **options)
    )
    total, done = sum(len(source.names) for source in sources.values()), 0
    digests: dict[str, dict[str, str]] = {}
    for split, source in sources.items():
        for found_kind, message in source.problems():
            report.findings.append(Finding(found_kind, split, message))
        images = np.zeros(len(source.classes), dtype=np.int64)
        digests[split] = {}
        with ThreadPoolExecutor(max_workers=4) as pool:
            for name, (present, digest, findings) in zip(
                source.names, pool.map(lambda name, s=source: _check_image(s, name), source.names), strict=True
            ):
                images[present] += 1
                digests[split].setdefault(digest, name)
                report.findings.extend(findings)
                done += 1
                if progress:
                    progress(done, total)
        for index in np.flatnonzero(images == 0).tolist():
            category = source.classes.categories[index]
            message = f"class {category.name!r} ({category.id}) has no image"
            report.findings.append(Finding("empty_class", split, message, "note"))
        numbers = {"images": len(source.names), "classes": len(source.classes)}
        report.splits[split] = {**numbers, "empty classes": int((images == 0).sum())}
    _check_leakage(digests, report)
    return report


def _check_image(source: UniversalSource, name: str) -> tuple[list[int], str, list[Finding]]:
    """Classes of an image, a hash of its pixels, and what is wrong."""
    where, found, digest = f"{source.split}: {name}", [], ""
    size = None
    try:
        image = source.image(name)
        size, digest = (image.height, image.width), hashlib.sha256(image.tobytes()).hexdigest()
    except ImageFileError as error:
        kind = "wrong_size" if isinstance(error, ImageSizeError) else "unreadable_image"
        found.append(Finding(kind, where, str(error)))
    except OSError as error:
        found.append(Finding("unreadable_image", where, str(error)))
    try:
        truth = source.truth(name)
    except (DataError, OSError) as error:
        if not found or str(error) != found[0].message:
            found.append(Finding(_truth_kind(error), where, str(error)))
        return [], digest, found
    if size is not None and size != (truth.height, truth.width) and not found:
        message = (
            f"image must have the size of its annotation, {truth.width} x {truth.height}, got {size[1]} x {size[0]}"
        )
        found.append(Finding("wrong_size", where, message))
    present, empty = _present(source, name, truth)
    found += [Finding("bad_annotation", where, message, "note") for message in empty]
    if not present:
        found.append(Finding("no_annotation", where, "image holds no class: nothing to learn or to find", "note"))
    if isinstance(source, COCOPanopticSource):
        found += [Finding("panoptic_mismatch", where, text) for text in _wrong_areas(source, name, truth)]
    return present, digest, found


def _truth_kind(error: Exception) -> str:
    if isinstance(error, PanopticMismatchError):
        return "panoptic_mismatch"
    if isinstance(error, MaskSizeError):
        return "wrong_size"
    return "unknown_id" if isinstance(error, MaskValueError) else "unreadable_mask"


def _present(source: UniversalSource, name: str, truth: Truth) -> tuple[list[int], list[str]]:
    """Class indices in an image, and annotations that cover no pixel of it."""
    labels = {segment.label for segment in truth.segments}
    if truth.label_map is not None:
        labels |= {label for label in np.unique(truth.label_map).tolist() if label < len(source.classes)}
    empty = []
    for entry in truth.objects or ():
        if entry.mask(truth.height, truth.width).any():
            labels.add(entry.label)
        else:
            empty.append(f"annotation {entry.id} must cover a pixel of {name}, got none; it trains nothing")
    return sorted(labels), empty


def _wrong_areas(source: COCOPanopticSource, name: str, truth: Truth) -> list[str]:
    """Segments whose area in the JSON is not what the PNG shows."""
    assert truth.segment_ids is not None
    ids, counts = np.unique(truth.segment_ids, return_counts=True)
    pixels = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    return [
        f"{source.file.path}: area of segment {row['id']} must be that of the PNG, {pixels.get(row['id'], 0)}, "
        f"got {row['area']}"
        for row in source.entry(name).segments
        if "area" in row and row["area"] != pixels.get(row["id"], 0)
    ]


def _check_leakage(digests: dict[str, dict[str, str]], report: Report) -> None:
    for train in (split for split in digests if split.startswith("train")):
        for other in (split for split in digests if split.startswith(("val", "test"))):
            for digest in sorted(set(digests[train]) & set(digests[other]) - {""}):
                message = (
                    f"{digests[other][digest]} of {other} must not be in {train}, "
                    f"got the same picture as {digests[train][digest]}"
                )
                report.findings.append(Finding("split_leakage", f"{train} / {other}", message))
