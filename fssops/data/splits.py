"""Splits of one's own: drawing them, writing them as lists of names, and reading such a list in place of a split.

A list is a text file of one name a line. Its first line may say of which split of the data set these are::

    # split: train
    street/0001.jpg
    street/0007.jpg

Wherever a split is named, ``--split`` or ``split`` of a recipe, the path of such a file may stand, from the folder of
the data or from where one is: ``split = "splits/val.txt"``. No image is moved or copied.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from fssops.data.errors import AnnotationError, DataError, DuplicateError
from fssops.data.few_shot_source import FewShotSource, Progress
from fssops.data.images import pixel_hash
from fssops.data.source import ImageSource, PathLike, Source, VideoSource
from fssops.data.text_files import read_lines
from fssops.labels import IGNORE

SUFFIX = ".txt"
_HEADER = "# split: "


@dataclass(frozen=True)
class Split:
    """A data set taken apart.

    Attributes:
        parts: names by part: ``train``, then those asked for; each in the order of the data set.
        of: the split of the data set that was taken apart.
        classes: number of images (videos) that hold a class, by class name and part.
        copies: images (videos) that show the same picture as another, which is in the same part.
    """

    parts: dict[str, list[str]]
    of: str
    classes: dict[str, dict[str, int]]
    copies: int


def stratified_split(
    source: FewShotSource | ImageSource | VideoSource,
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    by_sequence: bool = False,
    progress: Progress | None = None,
) -> Split:
    """Take a data set apart so that every part has its share of each class, the rarest class first.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas, 2011). Copies of one picture stay together, and so do
    videos that share a frame; that may cost the shares, which are met as nearly as whole images can.

    Args:
        source: one split of the data set, with truth.
        shares: of each part but ``train``, above 0 and below 1 together, e.g. ``{"val": 0.2, "test": 0.1}``.
        seed: the same seed gives the same parts.
        by_sequence: also keep images together whose names differ only in a number at their end.
        progress: called with (done, total) images or videos.

    Raises:
        ValueError: shares that leave nothing for a part or for ``train``.
        DataError: an image or its truth cannot be read, or there are fewer groups of images than parts.
    """
    if not shares or "train" in shares or any(not share > 0 for share in shares.values()) or sum(shares.values()) >= 1:
        raise ValueError(f"stratified_split: shares must be above 0 and leave some for train, got {dict(shares)}")
    whole = {"train": 1 - sum(shares.values()), **shares}
    labels, hashes = _look_through(source, progress)
    units = _kept_together(source.names, hashes, by_sequence)
    if len(units) < len(whole):
        kind = f"{'sequences of' if by_sequence else 'different'} {source.items}"
        raise DataError(f"{source.label}: there must be at least {len(whole)} {kind} to split, got {len(units)}")
    places = _assign([[labels[name] for name in unit] for unit in units], whole, seed)
    part_of = {name: part for unit, part in zip(units, places, strict=True) for name in unit}
    parts = {part: [name for name in source.names if part_of[name] == part] for part in whole}
    counts = {part: Counter(label for name in names for label in labels[name]) for part, names in parts.items()}
    classes = {name: {part: counts[part][key] for part in parts} for key, name in _class_names(source).items()}
    shown = Counter(digest for of_item in hashes.values() for digest in of_item)
    copies = sum(any(shown[digest] > 1 for digest in of_item) for of_item in hashes.values())
    return Split(parts, source.split, classes, copies)


def _class_names(source: FewShotSource | ImageSource | VideoSource) -> dict[int, str]:
    """Names of what is counted: few-shot classes by number, others by index; without the background."""
    if isinstance(source, FewShotSource):
        return source.classes
    return {index: name for index, name in enumerate(source.classes.names) if index != source.classes.background}


def _look_through(
    source: FewShotSource | ImageSource | VideoSource, progress: Progress | None
) -> tuple[dict[str, set[int]], dict[str, set[str]]]:
    """Classes of every item, and hashes of its pictures."""

    def look(name: str) -> tuple[set[int], set[str]]:
        if isinstance(source, VideoSource):
            frames = {pixel_hash(source.frame(name, index)) for index in range(source.frames(name))}
            return {track.label for track in source.tracks(name) if not track.crowd}, frames
        images = source.images if isinstance(source, FewShotSource) else source
        truth, picture = images.truth(name), {pixel_hash(images.image(name))}
        if isinstance(source, FewShotSource):
            return set(source.areas_in(truth)), picture
        if truth.label_map is not None:
            return set(np.unique(truth.label_map).tolist()) - {IGNORE, source.classes.background}, picture
        return {entry.label for entry in truth.objects or truth.segments if not entry.crowd}, picture

    labels: dict[str, set[int]] = {}
    hashes: dict[str, set[str]] = {}
    with ThreadPoolExecutor(max_workers=4) as pool:
        for name, found in zip(source.names, pool.map(look, source.names), strict=True):
            labels[name], hashes[name] = found
            if progress:
                progress(len(labels), len(source.names))
    return labels, hashes


def sequence_of(name: str) -> str:
    """What a name has in common with those that differ in the number at its end: ``a/cam_0012.jpg`` -> ``a/cam``."""
    path = PurePosixPath(name)
    return str(path.parent / re.sub(r"[\s._-]*[0-9]+$", "", path.stem))


def _kept_together(names: Sequence[str], hashes: Mapping[str, set[str]], by_sequence: bool) -> list[list[str]]:
    """Groups of names that share a picture, or a sequence; in the order of their first names."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    places: dict[Hashable, int] = {}  # of what names may share, behind the names
    edges = []
    for number, name in enumerate(names):
        shared: list[Hashable] = [*hashes[name], *([("sequence", sequence_of(name))] if by_sequence else [])]
        edges += [(number, places.setdefault(key, len(names) + len(places))) for key in shared]
    size = len(names) + len(places)
    graph = coo_array((np.ones(len(edges), dtype=bool), tuple(np.array(edges).reshape(-1, 2).T)), shape=(size, size))
    groups: dict[int, list[str]] = {}
    for name, group in zip(names, connected_components(graph, directed=False)[1].tolist(), strict=False):
        groups.setdefault(group, []).append(name)
    return list(groups.values())


def _assign(units: Sequence[Sequence[set[int]]], shares: Mapping[str, float], seed: int) -> list[str]:
    """The part of every unit, which is the labels of its items."""
    labels = [Counter(label for item in unit for label in item) for unit in units]
    # Large units first, while there is room for them; those of a size in random order.
    order = sorted(np.random.default_rng(seed).permutation(len(units)).tolist(), key=lambda unit: -len(units[unit]))
    left: Counter[int] = sum(labels, Counter())
    wanted = {part: {label: share * count for label, count in left.items()} for part, share in shares.items()}
    room = {part: share * sum(map(len, units)) for part, share in shares.items()}
    holding: dict[int, list[int]] = {}
    for unit in order:
        for label in labels[unit]:
            holding.setdefault(label, []).append(unit)
    places: dict[int, str] = {}

    def place(unit: int, label: int | None) -> None:
        demand = room if label is None else {part: wanted[part][label] for part in shares}
        part = max(shares, key=lambda part: (demand[part], room[part]))
        places[unit] = part
        room[part] -= len(units[unit])
        for held, count in labels[unit].items():
            wanted[part][held] -= count
            left[held] -= count

    while any(left.values()):
        rarest = min((label for label in holding if left[label]), key=lambda label: (left[label], label))
        for unit in holding[rarest]:
            if unit not in places:
                place(unit, rarest)
    for unit in order:
        if unit not in places:
            place(unit, None)
    for empty in [part for part in shares if part not in places.values()]:
        fullest = Counter(places.values()).most_common(1)[0][0]
        # The one that was placed last holds the most common class, or none.
        places[next(unit for unit in reversed(places) if places[unit] == fullest)] = empty
    return [places[unit] for unit in range(len(units))]


# Lists of names.


def write_lists(split: Split, folder: PathLike, *, overwrite: bool = False) -> dict[str, Path]:
    """Write a list of names for each part: FOLDER/train.txt and so on.

    Raises:
        DataError: a list is there already and says something else; or a name does not fit a line.
    """
    base = Path(folder)
    for name in (name for names in split.parts.values() for name in names):
        if name != name.strip() or len(name.splitlines()) != 1:
            raise DataError(f"{base}: names in a list must be of one line, without space around them, got {name!r}")
    texts = {
        base / f"{part}{SUFFIX}": "\n".join([f"{_HEADER}{split.of}", *names, ""]) for part, names in split.parts.items()
    }
    for file, text in texts.items():
        if file.exists() and not overwrite and file.read_text(encoding="utf-8") != text:
            raise DataError(f"{file}: list must be new, or the same again, got another one; overwrite it on purpose")
    base.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        file.write_text(text, encoding="utf-8")
    return {file.stem: file for file in texts}


def find_list(root: PathLike | None, split: str) -> Path | None:
    """The list that ``split`` names, from the folder of the data or from where one is; None: it names no list."""
    if not split.endswith(SUFFIX):
        return None
    places = [*([] if root is None else [Path(root) / split]), Path(split)]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{places[0]}: list of a split must exist, got no such file")
    return file


def read_list(file: Path) -> tuple[str | None, list[str]]:
    """Read a list: of which split its names are, None where it does not say; and the names.

    Raises:
        AnnotationError: it holds no name, or one twice.
    """
    lines = read_lines(file, "list of a split")
    of = lines[0].removeprefix(_HEADER).strip() if lines and lines[0].startswith(_HEADER) else None
    names = [line.strip() for line in lines[of is not None :] if line.strip()]
    if not names:
        raise AnnotationError(f"{file}: list of a split must hold at least one name, got none")
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DuplicateError(f"{file}: every name must be listed once, got {twice!r} twice")
    return of, names


def keep_listed(source: Source, file: Path, names: Sequence[str]) -> None:
    """Leave of an opened split what a list names, in the order of the data set; the split is called as the list.

    Raises:
        AnnotationError: a name that is none of the split's.
    """
    unknown = next((name for name in names if name not in source), None)
    if unknown is not None:
        raise AnnotationError(
            f"{file}: names must be of {source.label}, e.g. {source.names[0]!r}, got {unknown!r}; a first line "
            f"'{_HEADER}NAME' says of which split they are"
        )
    source.keep(names, file.stem)
