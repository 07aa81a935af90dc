"""Looks for what would spoil training or evaluation, before it starts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fssops import run_lengths
from fssops.data import layouts
from fssops.data.check_facts import Limits, empty_supports, facts_of
from fssops.data.episodes import EpisodeList
from fssops.data.errors import (
    DataError,
    DataWarning,
    DuplicateError,
    ImageSizeError,
    MaskSizeError,
    MaskValueError,
    PanopticMismatchError,
)
from fssops.data.few_shot_source import FewShotSource, Progress
from fssops.data.folds import FoldClasses
from fssops.data.images import exif_orientation, pixel_hash
from fssops.data.layout import DataTruth
from fssops.data.source import ImageSource, VideoSource
from fssops.facts import Facts
from fssops.labels import IGNORE

Source = FewShotSource | ImageSource | VideoSource

FoldRule = Callable[[Sequence[int]], FoldClasses]
"""Gives a fold of the class ids that a data set turns out to have."""

KINDS = {
    "unreadable_layout": "the data set cannot be opened: a missing folder or list, broken JSON",
    "unreadable_image": "an image is missing, empty, truncated or no picture",
    "unreadable_mask": "a mask is missing, truncated, lossy or no mask",
    "wrong_size": "an image or mask has another size than it should",
    "unknown_id": "a mask holds ids outside the class list",
    "bad_annotation": "an annotation cannot be drawn: bad polygon or RLE, unknown image or category",
    "duplicate_id": "an id, name or picture that should be unique occurs twice",
    "empty_class": "a class has no image",
    "nothing_to_learn": "a split has no object that is no crowd region (iscrowd)",
    "too_few_images": "a class of the fold has fewer images than an episode needs",
    "panoptic_mismatch": "the PNG and the JSON of a panoptic data set disagree",
    "empty_video": "a video has no frame, or another number of them than it says",
    "class_mismatch": "a class has another number or name than in another split",
    "read_as": "what a file or a value of label maps means was concluded from all of it",
    "exif_orientation": "an image is turned by its EXIF data, which its size does not show",
    "left_out": "a file or folder of the data set is not read",
    "no_annotation": "an image or video holds no class at all",
    "split_leakage": "the same picture in two of training, validation and test",
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
    """What a check looked at and found; ``facts`` of each split are no findings."""

    root: str
    format: str
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    facts: dict[str, Facts] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def problems(self, allow: Iterable[str] = ()) -> list[Finding]:
        """Findings that are neither notes nor of an allowed kind."""
        allowed = set(allow)
        return [f for f in self.findings if f.severity == "problem" and f.kind not in allowed]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        facts = {split: of_split.as_json() for split, of_split in self.facts.items()}
        return {**asdict(self), "facts": facts, "counts": self.counts()}

    def counts(self) -> dict[str, int]:
        """Findings of each kind that occurs."""
        return {kind: n for kind in KINDS if (n := sum(f.kind == kind for f in self.findings))}


@dataclass
class _Look:
    """What is seen in an image or a video.

    Attributes:
        classes: class ids (few-shot: pixels of each; else objects of each, or 1 where it is there at all).
        pictures: hashes of its pixels, of every frame of a video.
        crowds: whether each object is a crowd region; empty where the truth has no objects.
        supports: few-shot: what :func:`fssops.data.check_facts.empty_supports` says.
        findings: what is wrong.
    """

    classes: dict[int, int] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    crowds: list[bool] = field(default_factory=list)
    supports: tuple[int, int] = (0, 0)
    findings: list[Finding] = field(default_factory=list)


def check_data(
    layout: str,
    root: str | Path | None,
    *,
    truth: DataTruth | None = None,
    splits: Sequence[str] | None = None,
    fold: FoldClasses | FoldRule | None = None,
    min_area: int = 1,
    need: int = 0,
    limits: Limits | None = None,
    train_episodes: EpisodeList | None = None,
    test_episodes: EpisodeList | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Read every picture and annotation of a data set once and report what is wrong.

    Args:
        layout: a key of ``layouts.LAYOUTS`` or ``auto``.
        root: the data set's folder.
        truth: what it is to be used for; None: the layout's usual reading.
        splits: which; None checks all there are.
        fold: also report training images that hold novel classes (a note: PANet allows them, others drop them), and
            classes with too few images. A function is given the class ids of the first split that can be opened.
        min_area: few-shot: pixels that an image needs to count for a class.
        need: few-shot: images that each class of the fold needs (shots + queries).
        limits: of a model: also count what it can make nothing of.
        train_episodes: list for training, to be looked through for leakage.
        test_episodes: list for evaluation, likewise.
        progress: called with (done, total) images or videos.
        **options: options of the layout, see ``layouts.open_data``.

    Raises:
        FileNotFoundError: ``root`` is not there.
        DataError: it fits no layout.
        ValueError: the layout is unknown, needs a folder, or has no truth of this kind.
    """
    if layout == "auto":
        layout = layouts.recognise(root or ".", truth)
    declared = layouts.layout_of(layout, truth)
    declared.check_root(root, options)
    reading, limits = truth or declared.offers[0], limits or Limits()
    report = Report(str(root or ""), layout)
    stored = root is not None or not declared.has_files
    wanted = splits or (declared.splits(Path(root or ".")) if stored else []) or ["train"]
    sources = _open_splits(report, wanted, lambda split: declared.open(root, split, reading, **options))
    if callable(fold):
        fold = fold(list(_class_names(next(iter(sources.values()))))) if sources else None
    total = len({_key(source, name) for source in sources.values() for name in source.names})
    seen: dict[tuple[str, ...], _Look] = {}
    for split, source in sources.items():
        for kind, message in _images_of(source).problems():
            report.findings.append(Finding(kind, split, message, "note" if kind == "read_as" else "problem"))
        report.findings += [Finding("left_out", split, text, "note") for text in _images_of(source).left_out()]
        _look_at(source, report, seen, total, min_area, limits, progress)
        looks = [seen[_key(source, name)] for name in source.names]
        least = min_area if isinstance(source, FewShotSource) else 1
        counts = dict.fromkeys(_class_names(source), 0)
        for look in looks:
            for number, amount in look.classes.items():
                counts[number] += amount if isinstance(source, VideoSource) else amount >= least
        _check_classes(source, counts, fold, min_area, need, report)
        numbers = {"images": len(source.names), "classes": len(counts)}
        numbers["empty classes"] = sum(count == 0 for count in counts.values())
        if isinstance(source, VideoSource):
            numbers["images"] = sum(source.frames(name) for name in source.names)
            numbers |= {"videos": len(source.names), "objects": sum(counts.values())}
        elif _has_objects(source):
            numbers["objects"] = sum(look.crowds.count(False) for look in looks)
        report.splits[split] = numbers
        crowds = [look.crowds for look in looks] if _has_objects(source) else []
        report.facts[split] = facts_of(crowds, limits, (look.supports for look in looks))
        _check_objects(source, looks, report)
    report.findings += _class_mismatches(sources)
    _check_leakage(sources, seen, fold, limits.novel_images, report)
    pictures = {n: seen[_key(s, n)].pictures for s in sources.values() for n in s.names}
    report.findings += check_episodes(train_episodes, test_episodes, None, fold, pictures)
    return report


def _open_splits(report: Report, splits: Iterable[str], open_split: Callable[[str], Source]) -> dict[str, Source]:
    """Open the splits of a data set; those that cannot be opened become findings."""
    sources = {}
    for split in splits:
        try:
            with warnings.catch_warnings():
                # A source tells of the same faults when it is asked.
                warnings.simplefilter("ignore", DataWarning)
                sources[split] = open_split(split)
        except (DataError, OSError) as error:
            report.findings.append(Finding(_kind_of(error, "unreadable_layout"), split, str(error)))
    return sources


def _images_of(source: Source) -> ImageSource | VideoSource:
    return source.images if isinstance(source, FewShotSource) else source


def _class_names(source: Source) -> dict[int, str]:
    """Names of the classes by the number that is theirs in files, or in few-shot tasks."""
    if isinstance(source, FewShotSource):
        return source.classes
    return {category.id: category.name for category in source.classes.categories}


def _key(source: Source, name: str) -> tuple[str, ...]:
    """What is equal where two splits share an item."""
    images = _images_of(source)
    files = images.truth_files(name) if isinstance(images, ImageSource) else ()
    return (*map(str, files), name) if files else (source.split, name)


def _look_at(
    source: Source,
    report: Report,
    seen: dict[tuple[str, ...], _Look],
    total: int,
    min_area: int,
    limits: Limits,
    progress: Progress | None,
) -> None:
    def look(name: str) -> _Look:
        if isinstance(source, VideoSource):
            return _look_at_video(source, name)
        found = _look_at_image(source, name)
        if limits.preparation and isinstance(source, FewShotSource):
            classes = [number for number, area in found.classes.items() if area >= min_area]
            found.supports = empty_supports(source, name, classes, limits.preparation)
        return found

    new = [name for name in source.names if _key(source, name) not in seen]
    with ThreadPoolExecutor(max_workers=4) as pool:
        for name, result in zip(new, pool.map(look, new), strict=True):
            seen[_key(source, name)] = result
            report.findings += result.findings
            if progress:
                progress(len(seen), total)


_KINDS_OF_ERRORS = (
    (DuplicateError, "duplicate_id"),
    (MaskValueError, "unknown_id"),
    (PanopticMismatchError, "panoptic_mismatch"),
    ((ImageSizeError, MaskSizeError), "wrong_size"),
)


def _kind_of(error: Exception, otherwise: str) -> str:
    return next((kind for errors, kind in _KINDS_OF_ERRORS if isinstance(error, errors)), otherwise)


def _look_at_image(source: FewShotSource | ImageSource, name: str) -> _Look:
    images = source.images if isinstance(source, FewShotSource) else source
    where, look, size = f"{source.split}: {name}", _Look(), None
    try:
        picture = images.image(name)
        size, look.pictures = (picture.height, picture.width), [pixel_hash(picture)]
        del picture  # a large one takes 270 MB, and its truth is read next
        file = images.image_file(name)
        orientation = 1 if file is None else exif_orientation(file)
        if orientation in (2, 3, 4):
            message = f"{file}: EXIF orientation {orientation} turns it; annotations must be of the upright picture"
            look.findings.append(Finding("exif_orientation", where, message, "note"))
    except (DataError, OSError) as error:
        look.findings.append(Finding(_kind_of(error, "unreadable_image"), where, str(error)))
    try:
        truth = images.truth(name)
    except (DataError, OSError) as error:
        if str(error) not in [finding.message for finding in look.findings]:
            look.findings.append(Finding(_kind_of(error, "unreadable_mask"), where, str(error)))
        return look
    if size is not None and size != (truth.height, truth.width):
        message = (
            f"image must have the size of its annotation, {truth.width} x {truth.height}, got {size[1]} x {size[0]}"
        )
        look.findings.append(Finding("wrong_size", where, message))
    kind = images.kind if images.kind == "panoptic" and not isinstance(source, FewShotSource) else "instance"
    look.crowds = truth.crowds(kind, images.classes.things)
    labels = {segment.label for segment in truth.segments}
    if truth.label_map is not None:
        labels |= set(np.unique(truth.label_map).tolist()) - {IGNORE}
    for entry in truth.objects or ():
        if run_lengths.area_of_union([entry.outline], truth.width, truth.height):
            labels.add(entry.label)
        else:
            message = f"annotation {entry.id} must cover a pixel of {name}, got none; it trains nothing"
            look.findings.append(Finding("bad_annotation", where, message, "note"))
    look.findings += [Finding("panoptic_mismatch", where, text) for text in images.disagreements(name, truth)]
    if isinstance(source, FewShotSource):
        look.classes = source.areas_in(truth)
    elif labels:
        look.classes = {source.classes.categories[label].id: 1 for label in labels}
    else:
        message = "image holds no class: nothing to learn or to find"
        look.findings.append(Finding("no_annotation", where, message, "note"))
    return look


def _look_at_video(source: VideoSource, name: str) -> _Look:
    where, look = f"{source.split}: {name}", _Look()
    for index in range(source.frames(name)):
        try:
            look.pictures.append(pixel_hash(source.frame(name, index)))
        except (DataError, OSError) as error:
            look.findings.append(Finding(_kind_of(error, "unreadable_image"), where, str(error)))
    if not source.has_truth:
        return look
    try:
        tracks = source.tracks(name)
    except DataError as error:
        look.findings.append(Finding("unreadable_mask", where, str(error)))
        return look
    look.crowds = [track.crowd for track in tracks]
    for track in tracks:
        masks = (track.mask(frame, *source.size(name)) for frame in range(source.frames(name)))
        if any(mask is not None and mask.any() for mask in masks):
            number = source.classes.categories[track.label].id
            look.classes[number] = look.classes.get(number, 0) + 1
        else:
            message = f"annotation {track.id} must be seen in a frame of {name}, got none; it trains nothing"
            look.findings.append(Finding("bad_annotation", where, message, "note"))
    if not look.classes:
        look.findings.append(Finding("no_annotation", where, "video holds no object: nothing to find", "note"))
    return look


def _check_classes(
    source: Source, counts: dict[int, int], fold: FoldClasses | None, min_area: int, need: int, report: Report
) -> None:
    """Classes without an image are a problem of few-shot tasks, and of a fold those with too few."""
    few_shot, split = isinstance(source, FewShotSource), source.split
    if isinstance(source, VideoSource) and not source.has_truth:
        report.findings.append(Finding("no_annotation", split, "no truth: predictions alone are possible", "note"))
        return
    item = "object" if isinstance(source, VideoSource) else "image"
    rule = f" with at least {min_area} px of it" if few_shot and min_area > 1 else ""
    for number, name in _class_names(source).items():
        title, count = f"class {name!r} ({number})", counts[number]
        if count == 0:
            message = f"{title} must have an {item}{rule}, got none"
            report.findings.append(Finding("empty_class", split, message, "problem" if few_shot else "note"))
        elif few_shot and fold and count < need and number in (*fold.train, *fold.test):
            part = "novel" if number in fold.test else "training"
            message = f"{title}, a {part} class of {fold}, must have at least {need} images{rule}, got {count}"
            report.findings.append(Finding("too_few_images", split, message))


def _has_objects(source: Source) -> bool:
    """Whether the truth tells objects apart."""
    images = _images_of(source)
    return images.has_truth if isinstance(images, VideoSource) else images.offers("instance")


def _check_objects(source: Source, looks: Sequence[_Look], report: Report) -> None:
    """A split whose truth is objects must have one to learn from."""
    if _has_objects(source) and all(all(look.crowds) for look in looks):
        crowds = sum(len(look.crowds) for look in looks)
        got = f"{crowds} crowd regions alone (iscrowd 1: some exporters mark every object so)" if crowds else "none"
        message = f"there must be at least one object to learn from, got {got}"
        report.findings.append(Finding("nothing_to_learn", source.split, message))


def _class_mismatches(sources: dict[str, Source]) -> Iterator[Finding]:
    """Splits that do not mean the same by a number or a name."""
    listed = {split: _class_names(source) for split, source in sources.items()}
    first = next(iter(listed), "")
    for split, names in listed.items():
        numbers = {name: number for number, name in names.items()}
        for number, name in listed[first].items():
            other = names.get(number, name)
            if other != name or numbers.get(name, number) != number:
                got = f"{other!r}" if other != name else f"number {numbers[name]}"
                message = f"class {number} must be {name!r} as in {first}, got {got}"
                yield Finding("class_mismatch", f"{first} / {split}", message)


def _purpose(split: str) -> int:
    """What a split is for, by its name: 1 training, 2 choosing, 3 reporting, 0 something else."""
    split = Path(split).stem  # of a list of names
    if split.startswith(("train", "trn")):
        return 0 if "val" in split else 1
    return 2 if split.startswith("val") else 3 if split.startswith("test") else 0


def _check_leakage(
    sources: dict[str, Source],
    seen: dict[tuple[str, ...], _Look],
    fold: FoldClasses | None,
    novel_images: str,
    report: Report,
) -> None:
    for split, source in sources.items():
        few_shot, purpose = isinstance(source, FewShotSource), _purpose(split)
        same = "a frame that is the same in" if isinstance(source, VideoSource) else "the same picture as"
        first: dict[str, str] = {}
        for name in source.names:
            for digest in seen[_key(source, name)].pictures:
                earlier = first.setdefault(digest, name)
                if earlier != name and not isinstance(source, VideoSource):
                    message = f"{earlier} and {name} are the same picture"
                    severity = "problem" if few_shot else "note"
                    report.findings.append(Finding("duplicate_id", f"{split}: {name}", message, severity))
        for other in (other for other in sources if 0 < purpose < _purpose(other)):
            for name in sources[other].names:
                pictures = seen[_key(sources[other], name)].pictures
                for earlier in dict.fromkeys(first[digest] for digest in pictures if digest in first):
                    message = f"{name} of {other} must not be in {split}, got {same} {earlier}"
                    kind = "fold_leakage" if few_shot else "split_leakage"
                    report.findings.append(Finding(kind, f"{split} / {other}", message))
        if fold and purpose == 1:
            novel = sum(not set(fold.test).isdisjoint(seen[_key(source, name)].classes) for name in source.names)
            if novel_images:
                report.facts[split].add(f"novel_images_{novel_images}", novel, len(source.names))
            elif novel:
                message = (
                    f"{novel} of {len(source.names)} images hold novel classes of {fold}; they are "
                    "background there (PANet) unless such images are dropped (drop_novel, as BAM and MSANet do)"
                )
                report.findings.append(Finding("fold_leakage", split, message, "note"))


def check_episodes(
    train: EpisodeList | None,
    test: EpisodeList | None,
    source: FewShotSource | None,
    fold: FoldClasses | None,
    pictures: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[Finding]:
    """Look for leakage in episode lists.

    Args:
        train: list for training.
        test: list for evaluation.
        source: data set of the training list, to see which classes its images hold.
        fold: the classes that each list may use.
        pictures: name -> hash of its pixels, by which copies of other names are found.
    """
    digests = {name: hashes[0] for name, hashes in (pictures or {}).items() if hashes}
    for name, episodes in (("training list", train), ("test list", test)):
        for index, e in enumerate(episodes or ()):
            supports = {digests.get(n, n): n for names in e.support for n in names}
            for query in (query for query in e.query if digests.get(query, query) in supports):
                support = supports[digests.get(query, query)]
                got = f"{query!r} as both" if support == query else f"{query!r}, the same picture as {support!r}"
                message = f"episode {index}: support and query must be different images, got {got}"
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
