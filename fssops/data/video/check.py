"""Looks for what would spoil training or evaluation on videos, before it starts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fssops.data import video
from fssops.data.check import Finding, Report, open_splits
from fssops.data.errors import DataError, ImageFileError
from fssops.data.sources import Progress
from fssops.data.video.source import VideoSource


def check_videos(
    format: str,
    root: str | Path | None,
    *,
    splits: Sequence[str] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Read every frame and every object of a data set once and report what is wrong.

    Args:
        format: a key of ``video.FORMATS``.
        root: the data set's folder.
        splits: which; None checks all there are.
        progress: called with (done, total) videos.
        **options: options of the layout, see ``video.open_source``.

    Raises:
        FileNotFoundError: ``root`` is not there.
    """
    if root is not None and not Path(root).exists():
        raise FileNotFoundError(f"{root}: root must be a folder, got no such folder")
    report = Report(str(root or ""), format)
    chosen = splits or video.splits_of(format, root or ".") or ["train"]
    sources = open_splits(report, chosen, lambda split: video.open_source(format, root, split=split, **options))
    total, done = sum(len(source.names) for source in sources.values()), 0
    digests: dict[str, dict[str, str]] = {}
    for split, source in sources.items():
        report.findings += [Finding(kind, split, message) for kind, message in source.problems()]
        objects = np.zeros(len(source.classes), dtype=np.int64)
        digests[split] = {}
        frames = 0
        with ThreadPoolExecutor(max_workers=4) as pool:
            results = pool.map(lambda name, s=source: _check_video(s, name), source.names)
            for name, (labels, found, findings) in zip(source.names, results, strict=True):
                np.add.at(objects, labels, 1)
                for digest in found:
                    digests[split].setdefault(digest, name)
                report.findings.extend(findings)
                frames += source.frames(name)
                done += 1
                if progress:
                    progress(done, total)
        if source.has_truth:
            for index in np.flatnonzero(objects == 0).tolist():
                category = source.classes.categories[index]
                message = f"class {category.name!r} ({category.id}) has no object"
                report.findings.append(Finding("empty_class", split, message, "note"))
        else:
            report.findings.append(Finding("no_annotation", split, "no truth: predictions alone are possible", "note"))
        numbers = {"images": frames, "classes": len(source.classes), "empty classes": int((objects == 0).sum())}
        report.splits[split] = {**numbers, "videos": len(source.names), "objects": int(objects.sum())}
    _check_leakage(digests, report)
    return report


def _check_video(source: VideoSource, name: str) -> tuple[list[int], list[str], list[Finding]]:
    """Classes of the objects, a hash of every frame, and what is wrong."""
    where, findings, digests = f"{source.split}: {name}", [], []
    for index in range(source.frames(name)):
        try:
            digests.append(hashlib.sha256(source.frame(name, index).tobytes()).hexdigest())
        except (ImageFileError, OSError) as error:
            kind = "wrong_size" if "must have the size" in str(error) else "unreadable_image"
            findings.append(Finding(kind, where, str(error)))
    if not source.has_truth:
        return [], digests, findings
    try:
        tracks = source.tracks(name)
    except DataError as error:
        return [], digests, [*findings, Finding("unreadable_mask", where, str(error))]
    labels = []
    for track in tracks:
        masks = (track.mask(frame, *source.size(name)) for frame in range(source.frames(name)))
        if any(mask is not None and mask.any() for mask in masks):
            labels.append(track.label)
        else:
            message = f"annotation {track.id} must be seen in a frame of {name}, got none; it trains nothing"
            findings.append(Finding("bad_annotation", where, message, "note"))
    if not labels:
        findings.append(Finding("no_annotation", where, "video holds no object: nothing to find", "note"))
    return labels, digests, findings


def _check_leakage(digests: dict[str, dict[str, str]], report: Report) -> None:
    for train in (split for split in digests if split.startswith("train")):
        for other in (split for split in digests if split.startswith(("val", "test"))):
            pairs = {(digests[other][d], digests[train][d]) for d in set(digests[train]) & set(digests[other])}
            for theirs, ours in sorted(pairs):
                message = f"{theirs} of {other} must not be in {train}, got a frame that is the same in {ours}"
                report.findings.append(Finding("split_leakage", f"{train} / {other}", message))
