"""What a folder of one's own holds, as far as a training must know, and how it is divided."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fssops.data.errors import DataError
from fssops.data.few_shot_source import FewShotSource
from fssops.data.images import image_size
from fssops.data.layout import TRUTHS
from fssops.data.layouts import LAYOUTS, open_data, recognise
from fssops.data.source import VideoSource
from fssops.data.splits import Split, stratified_split
from fssops.engine.settings import SettingsError
from fssops.models import MODELS

_KINDS = {"universal": ("panoptic", "instance", "semantic"), "semantic": ("semantic",)}
_KINDS |= {"video": ("video",), "few-shot": ("few-shot",)}
"""Task of a model -> what it can be trained on, the most specific first."""

_SAMPLE = 200
"""Items that are looked at for sizes and numbers of objects."""
_COUNTED = 5000
"""Up to so many images, which classes each one shows is counted."""
_PARTS = {
    "train": re.compile(r"(train|training|trn)\d*", re.IGNORECASE),
    "val": re.compile(r"(val|valid|validation|dev)\d*", re.IGNORECASE),
    "test": re.compile(r"(test|testing|tst)\d*", re.IGNORECASE),
}
_FLATTERS = "the best checkpoint is chosen by {} too, so its scores there flatter a little"


@dataclass
class LookedAt:
    """A folder as it will be trained on.

    Attributes:
        folder: which.
        truth: what it is read for.
        layout: its name.
        splits: those of the layout.
        source: of training.
        classes: names.
        things: indices of the countable ones.
        sizes: (height, width) of a sample.
        objects: most of an item of the sample.
        shown: numbers of the classes that each item shows; empty where there are too many items to look.
    """

    folder: Path
    truth: str
    layout: str
    splits: list[str]
    source: Any
    classes: list[str]
    things: list[int]
    sizes: list[tuple[int, int]]
    objects: int
    shown: dict[str, Collection[int]]


def look(folder: Path, task: str | None, system: str | None, given: Mapping[str, Any]) -> tuple[LookedAt, list[str]]:
    """Open a folder for the most specific truth that it has; and why more specific ones cannot be read."""
    kinds: tuple[str, ...] = ("video", "panoptic", "instance", "semantic", "few-shot")
    if system is not None:
        if MODELS[system].task not in _KINDS:
            raise SettingsError(f"--model: {system} is not trained on a folder alone, but by its recipes")
        kinds = _KINDS[MODELS[system].task]
    if task is not None:
        if task not in TRUTHS:
            raise SettingsError(f"--task: must be one of {', '.join(TRUTHS)}, got {task!r}")
        if task not in kinds:
            raise SettingsError(f"--task: must be {' or '.join(kinds)} for {system}, got {task!r}")
        kinds = (task,)
    if not folder.is_dir():
        raise FileNotFoundError(f"--data: {folder} must be a folder, got no such folder")
    skipped: list[str] = []
    first: Exception | None = None
    layouts: dict[str, str] = {}
    for kind in kinds:
        try:
            layouts[kind] = given.get("data", {}).get("source") or recognise(folder, kind)  # type: ignore[arg-type]
        except DataError as error:
            first = first or error
    for kind, layout in layouts.items():
        try:
            return _opened(folder, kind, layout, given), skipped
        except (DataError, OSError) as error:
            if not skipped:
                first = error
            skipped.append(f"not {kind}: {error}")
    if layouts or task is not None or system is not None:
        raise first or DataError(f"--data: {folder} must have truth of {', '.join(kinds)}, got none")
    recognise(folder)  # says for every layout why not
    raise first or DataError(f"--data: {folder} must be of a layout that can be trained, got none")


def _opened(folder: Path, truth: Any, layout: str, given: Mapping[str, Any]) -> LookedAt:
    table = given.get("data", {})
    options, splits = table.get("options", {}), LAYOUTS[layout].splits(folder)
    split = table.get("split") or _part("train", splits) or (splits[0] if len(splits) == 1 else None)
    if split is None and splits:
        raise SettingsError(
            f"--data: {folder} must have a split train, got {', '.join(splits)}; say --set data.split=... and --set "
            "eval.split=..."
        )
    source = open_data(layout, folder, split=split, truth=truth, **options)  # type: ignore[call-overload]
    if not source.names:
        raise DataError(f"{folder}: {source.label} must hold an item, got none")
    sample = source.names[:: math.ceil(len(source.names) / _SAMPLE)]
    images = source.images if isinstance(source, FewShotSource) else source
    if isinstance(source, VideoSource):
        sizes = [source.size(name) for name in sample]
        objects = max(len(source.tracks(name)) for name in sample)
        shown: dict[str, Collection[int]] = {}
        if len(source.names) <= _COUNTED:
            shown = {name: {track.label for track in source.tracks(name)} for name in source.names}
    else:
        images.truth(sample[0])
        sizes = [_size(images, name) for name in sample]
        crowds = [] if truth in ("semantic", "few-shot") else [images.crowds(name, truth) for name in sample]
        objects = max((of_image.count(False) for of_image in crowds), default=0)
        view, shown = source if isinstance(source, FewShotSource) else FewShotSource(source), {}
        if len(source.names) <= _COUNTED or truth == "few-shot":
            shown = {name: areas.keys() for name, areas in view.areas().items()}
    classes = list(source.classes.values()) if isinstance(source, FewShotSource) else list(source.classes.names)
    things = [] if isinstance(source, FewShotSource) else list(source.classes.things)
    return LookedAt(folder, truth, layout, splits, source, classes, things, sizes, objects, shown)


def _size(images: Any, name: str) -> tuple[int, int]:
    """(height, width)."""
    file = images.image_file(name)
    width, height = images.image(name).size if file is None else image_size(file)
    return height, width


def _part(part: str, splits: Sequence[str]) -> str | None:
    """The split that is called as a part usually is; the plain name before others."""
    fitting = [split for split in splits if _PARTS[part].fullmatch(split)]
    return part if part in fitting else next(iter(fitting), None)


@dataclass(frozen=True)
class Division:
    """Which items train, choose the best checkpoint, and are scored.

    Attributes:
        train, val, test: names of the splits; all the same where nothing can be held out.
        count: items to train on.
        lines: what is said of it.
        made: the split that was made here; None where the data have their own.
    """

    train: str
    val: str
    test: str
    count: int
    lines: list[str]
    made: Split | None = None


def divide(data: LookedAt, given: Mapping[str, Any], seed: int) -> Division:
    """Take the splits of a data set, or make some, each class in proportion.

    Args:
        data: as it was looked at.
        given: tables of settings that are given; ``data.split``, ``eval.split`` and ``eval.validation_split`` count.
        seed: of a division that is made here.
    """
    source, rules = data.source, given.get("eval", {})
    train, count = source.split, len(source.names)
    others = {part: _part(part, [name for name in data.splits if name != train]) for part in ("val", "test")}
    test = rules.get("split") or _with_truth(data, others["test"], given) or others["val"]
    val = rules.get("validation_split") or others["val"] or test
    if test and val:
        chosen = f", the best checkpoint is chosen by {val}" if val != test else ""
        lines = [f"trained on {train} ({count}){chosen}, scored on {test}: the data's own"]
        return Division(train, val, test, count, [*lines, *([] if val != test else [_FLATTERS.format(val)])])
    shares = {"val": 0.1, "test": 0.1} if count >= 100 else {"val": 0.2}
    if data.truth == "few-shot":
        images = Counter(number for numbers in data.shown.values() for number in numbers).values()
        least = min((n for n in images if n >= 4), default=0)
        # A class is tested with a support and a query of its own.
        shares = {"val": min(0.5, max(0.2, 2 / least)) if least else 0.0}
    if count < 5 or not shares["val"]:
        told = f"{count} {source.items} are too few to hold any out: scores are of what was trained on"
        return Division(train, train, train, count, [told])
    made = stratified_split(source, shares, seed=seed)
    sizes = ", ".join(f"{part} {len(names)}" for part, names in made.parts.items())
    lines = [f"{sizes}; each class in proportion, seed {seed}: the data have none of their own"]
    if made.copies:
        lines.append(f"{made.copies} {source.items} show the same picture as another and stay in one part with it")
    test = "test" if "test" in shares else "val"
    lines += [] if test == "test" else [_FLATTERS.format(test)]
    return Division("train", "val", test, len(made.parts["train"]), lines, made)


def _with_truth(data: LookedAt, split: str | None, given: Mapping[str, Any]) -> str | None:
    """The split where it has truth; those of challenges have not."""
    if split is None:
        return None
    options = given.get("data", {}).get("options", {})
    try:
        source: Any = open_data(data.layout, data.folder, split=split, truth=data.truth, **options)  # type: ignore
        first = source.names[0]
        if isinstance(source, VideoSource):
            source.tracks(first)
        else:
            (source.images if isinstance(source, FewShotSource) else source).truth(first)
    except (DataError, OSError):
        return None
    return split
