"""Looks for what would spoil a training run, before it starts."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fssops.data import coco, fewshot, voc
from fssops.data.coco import COCOSource
from fssops.data.episodes import EpisodeList
from fssops.data.errors import (
    DataError,
    DataWarning,
    DuplicateError,
    ImageFileError,
    ImageSizeError,
    MaskError,
    MaskSizeError,
    MaskValueError,
    UnknownCategoryError,
)
from fssops.data.folds import FoldClasses
from fssops.data.sources import FewShotSource, PairedFilesSource, Progress, count_classes
from fssops.data.voc import VOCSource

Source = TypeVar("Source")

FoldRule = Callable[[Sequence[int]], FoldClasses]
"""Gives a fold of the class ids that a data set turns out to have."""

KINDS = {
    "unreadable_layout": "the data set cannot be opened: a missing folder or list, broken JSON",
    "unreadable_image": "an image is missing, empty, truncated or no picture",
    "unreadable_mask": "a mask is missing, truncated, lossy or no mask",
    "wrong_size": "an image or mask has another size than it should",
    "unknown_id": "a mask holds ids outside the class list",
    "bad_annotation": "an annotation cannot be drawn: bad polygon or RLE, unknown image or category",
    "duplicate_id": "an id or name that should be unique occurs twice",
    "empty_class": "a class has no image",
    "too_few_images": "a class of the fold has fewer images than an episode needs",
    "panoptic_mismatch": "the PNG and the JSON of a panoptic data set disagree",
    "empty_video": "a video has no frame, or another number of them than it says",
    "no_annotation": "an image or video holds no class at all",
    "split_leakage": "the same picture in training and in validation or test",
    "fold_leakage": "the same picture, or a novel class, on both sides of a split",
}
"""Kinds of findings. Notes (``severity`` "note") report what a protocol may allow; they are no problems."""


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        kind: key of :data:`KINDS`.
        where: split, and image or class.
        message: what is wrong, with the file, the rule and the value.
        severity: ``problem`` or ``note``.
    """

    kind: str
    where: str
    message: str
    severity: str = "problem"


@dataclass
class Report:
    """What a check looked at and found."""

    root: str
    format: str
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def problems(self, allow: Iterable[str] = ()) -> list[Finding]:
        """Findings that are neither notes nor of an allowed kind."""
        allowed = set(allow)
        return [f for f in self.findings if f.severity == "problem" and f.kind not in allowed]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "counts": self.counts()}

    def counts(self) -> dict[str, int]:
        """Findings of each kind that occurs."""
        return {kind: n for kind in KINDS if (n := sum(f.kind == kind for f in self.findings))}


def splits_of(format: str, root: str | Path) -> list[str]:
    """Splits that a data set has; ``all`` where the layout knows none."""
    if format == "voc":
        return voc.splits(root)
    if format == "coco":
        return coco.splits(root)
    if format == "folder":
        images = Path(root) / "images"
        found = sorted(p.name for p in images.iterdir() if p.is_dir()) if images.is_dir() else []
        return found or ["all"]
    if format == "generated":
        return ["train", "val", "test"]
    return ["all"]


def check_data(
    format: str,
    root: str | Path | None,
    *,
    splits: Sequence[str] | None = None,
    fold: FoldClasses | FoldRule | None = None,
    min_area: int = 1,
    need: int = 0,
    train_episodes: EpisodeList | None = None,
    test_episodes: EpisodeList | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Read every image and mask of a data set once and report what is wrong.

    Args:
        format: a key of ``fewshot.FORMATS`` or ``auto``.
        root: the data set's folder.
        splits: which; None checks all there are.
        fold: also report training images that hold novel classes (a note: PANet allows them, others drop them), and
            classes with too few images. A function is given the class ids of the first split that can be opened.
        min_area: pixels that an image needs to count for a class.
        need: images that each class of the fold needs (shots + queries).
        train_episodes: list for training, to be looked through for leakage.
        test_episodes: list for evaluation, likewise.
        progress: called with (done, total) images.
        **options: options of the layout, see ``fewshot.open_source``.

    Raises:
        FileNotFoundError: ``root`` is not there.
        DataError: it fits no layout.
    """
    if format == "auto":
        format = fewshot.guess_format(root or ".")
    elif root is not None and not Path(root).exists():
        raise FileNotFoundError(f"{root}: root must be a folder, got no such folder")
    elif root is None and format != "generated" and not {"annotations", "images"} <= set(options):
        raise ValueError(f"check_data: root must be a folder for format {format}, got None")
    report = Report(str(root or ""), format)
    chosen = splits or splits_of(format, root or ".") or ["train"]
    sources = open_splits(report, chosen, lambda split: fewshot.open_source(format, root, split=split, **options))
    if callable(fold):
        fold = fold(list(next(iter(sources.values())).classes)) if sources else None
    total = len({n for s in sources.values() for n in _keys(s)})
    seen: dict[str, tuple[dict[int, int], str, list[Finding]]] = {}
    for split, source in sources.items():
        _check_split(split, source, report, seen, total, progress)
        counts = dict.fromkeys(source.classes, 0)
        for key in _keys(source):
            for class_id, area in seen[key][0].items():
                counts[class_id] += area >= min_area
        _check_classes(split, source, counts, fold, min_area, need, report)
        report.splits[split] = {
            "images": len(source.names),
            "classes": len(source.classes),
            "empty classes": sum(n == 0 for n in counts.values()),
        }
    _check_leakage(sources, seen, fold, report)
    report.findings.extend(check_episodes(train_episodes, test_episodes, None, fold))
    return report


def open_splits(report: Report, splits: Iterable[str], open_split: Callable[[str], Source]) -> dict[str, Source]:
    """Open the splits of a data set; those that cannot be opened become findings.

    Args:
        report: gets the findings.
        splits: which.
        open_split: gives the source of a split. It may warn: a source tells of the same faults when it is asked.

    Returns:
        split -> source.
    """
    sources = {}
    for split in splits:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DataWarning)
                sources[split] = open_split(split)
        except (DataError, OSError) as error:
            report.findings.append(Finding(_layout_kind(error), split, str(error)))
    return sources


def _layout_kind(error: Exception) -> str:
    if isinstance(error, DuplicateError):
        return "duplicate_id"
    return "unknown_id" if isinstance(error, UnknownCategoryError) else "unreadable_layout"


def _keys(source: FewShotSource) -> list[str]:
    """Names that are equal where two splits share a file."""
    if isinstance(source, VOCSource):
        return [str(source.paths(name)[1]) for name in source.names]
    return [f"{source.split}/{name}" for name in source.names]


def _check_split(
    split: str,
    source: FewShotSource,
    report: Report,
    seen: dict[str, tuple[dict[int, int], str, list[Finding]]],
    total: int,
    progress: Progress | None,
) -> None:
    if isinstance(source, COCOSource):
        for identifier, reason in source.file.dropped.items():
            message = f"{source.file.path}: annotation {identifier}: {reason}"
            report.findings.append(Finding("bad_annotation", split, message))
        for text in source.file.problems:
            report.findings.append(Finding("duplicate_id", split, f"{source.file.path}: {text}"))
    new = [(key, name) for key, name in zip(_keys(source), source.names, strict=True) if key not in seen]
    with ThreadPoolExecutor(max_workers=4) as pool:
        for (key, _), result in zip(new, pool.map(lambda item: _check_image(split, source, item[1]), new), strict=True):
            seen[key] = result
            report.findings.extend(result[2])
            if progress:
                progress(len(seen), total)


def _check_image(split: str, source: FewShotSource, name: str) -> tuple[dict[int, int], str, list[Finding]]:
    """Areas of the classes, a hash of the image file, and what is wrong."""
    where, found = f"{split}: {name}", []
    digest = ""
    try:
        source.image(name)
        digest = _file_hash(source, name)
    except ImageFileError as error:
        kind = "wrong_size" if isinstance(error, ImageSizeError) else "unreadable_image"
        found.append(Finding(kind, where, str(error)))
    except OSError as error:
        found.append(Finding("unreadable_image", where, str(error)))
    areas: dict[int, int] = {}
    if isinstance(source, COCOSource):
        for annotation in source.empty_annotations(name):
            message = f"{source.file.path}: annotation {annotation} must cover a pixel of {name}, got none; not used"
            found.append(Finding("bad_annotation", where, message, "note"))
    try:
        label = source.label_map(name)
        areas = source._areas_of(name) if isinstance(source, COCOSource) else count_classes(label, source.classes)
    except MaskSizeError as error:
        found.append(Finding("wrong_size", where, str(error)))
    except MaskValueError as error:
        found.append(Finding("unknown_id", where, str(error)))
    except (MaskError, DataError, OSError) as error:
        if not (found and str(error) == found[0].message):
            found.append(Finding("unreadable_mask", where, str(error)))
    return areas, digest, found


def _file_hash(source: FewShotSource, name: str) -> str:
    if isinstance(source, COCOSource):
        file = source.image_folder / name
    elif isinstance(source, PairedFilesSource):
        file = source.paths(name)[0]
    else:
        return ""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _check_classes(
    split: str,
    source: FewShotSource,
    counts: dict[int, int],
    fold: FoldClasses | None,
    min_area: int,
    need: int,
    report: Report,
) -> None:
    rule = f" with at least {min_area} px of it" if min_area > 1 else ""
    for class_id, count in counts.items():
        title = f"class {source.classes[class_id]!r} ({class_id})"
        if count == 0:
            report.findings.append(Finding("empty_class", split, f"{title} must have an image{rule}, got none"))
        elif fold and count < need and class_id in (*fold.train, *fold.test):
            part = "novel" if class_id in fold.test else "training"
            message = f"{title}, a {part} class of {fold}, must have at least {need} images{rule}, got {count}"
            report.findings.append(Finding("too_few_images", split, message))


def _training(split: str) -> bool:
    return split.startswith(("train", "trn")) and "val" not in split


def _check_leakage(
    sources: dict[str, FewShotSource],
    seen: dict[str, tuple[dict[int, int], str, list[Finding]]],
    fold: FoldClasses | None,
    report: Report,
) -> None:
    for train in filter(_training, sources):
        first: dict[str, str] = {}
        for key, name in zip(_keys(sources[train]), sources[train].names, strict=True):
            digest = seen[key][1]
            if digest:
                if digest in first:
                    message = f"{first[digest]} and {name} are the same picture"
                    report.findings.append(Finding("duplicate_id", f"{train}: {name}", message))
                first.setdefault(digest, name)
        for other in (s for s in sources if s.startswith(("val", "test"))):
            for key, name in zip(_keys(sources[other]), sources[other].names, strict=True):
                if seen[key][1] in first:
                    message = f"{name} of {other} must not be in {train}, got the same picture as {first[seen[key][1]]}"
                    report.findings.append(Finding("fold_leakage", f"{train} / {other}", message))
        if fold:
            novel = set(fold.test)
            holds = [k for k in _keys(sources[train]) if not novel.isdisjoint(seen[k][0])]
            if holds:
                message = (
                    f"{len(holds)} of {len(sources[train].names)} images hold novel classes of {fold}; they are "
                    "background there (PANet) unless such images are dropped (drop_novel, as BAM and MSANet do)"
                )
                report.findings.append(Finding("fold_leakage", train, message, "note"))


def check_episodes(
    train: EpisodeList | None, test: EpisodeList | None, source: FewShotSource | None, fold: FoldClasses | None
) -> Iterator[Finding]:
    """Look for leakage in episode lists.

    Args:
        train: list for training.
        test: list for evaluation.
        source: data set of the training list, to see which classes its images hold.
        fold: the classes that each list may use.
    """
    for name, episodes in (("training list", train), ("test list", test)):
        for index, e in enumerate(episodes or ()):
            both = set(e.query) & {n for names in e.support for n in names}
            if both:
                message = (
                    f"episode {index}: support and query must be different images, got {sorted(both)[0]!r} as both"
                )
                yield Finding("fold_leakage", name, message)
    used = [{c for e in episodes for c in e.classes} if episodes else set() for episodes in (train, test)]
    for class_id in sorted(used[0] & used[1]):
        names = (train.class_names if train else {}).get(class_id, "?")
        yield Finding(
            "fold_leakage", "lists", f"class {names!r} ({class_id}) must not be trained and tested, got it in both"
        )
    if fold is None or train is None:
        return
    for class_id in sorted(used[0] & set(fold.test)):
        name = train.class_names.get(class_id, "?")
        yield Finding(
            "fold_leakage", "training list", f"class {name!r} ({class_id}) must not be a novel class of {fold}"
        )
    if source is None:
        return
    areas, novel = source.areas(), set(fold.test)
    holds = sorted(n for n in train.names() if n in areas and not novel.isdisjoint(areas[n]))
    if holds:
        dropped = bool(train.options.get("avoid"))
        message = f"{len(holds)} training images hold novel classes of {fold}, e.g. {holds[0]}"
        yield Finding("fold_leakage", "training list", message, "problem" if dropped else "note")
