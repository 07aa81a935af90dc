"""YouTube-VIS 2019 and 2021, OVIS, and data sets of one's own in their form.

ROOT/SPLIT.json, ROOT/SPLIT/instances.json, ROOT/annotations_SPLIT.json or ROOT/annotations/instances_SPLIT.json, with
frames below ROOT/SPLIT/JPEGImages/ or ROOT/SPLIT/.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from fssops.data.errors import AnnotationError, ImageFileError
from fssops.data.images import read_image
from fssops.data.video import ytvis_json
from fssops.data.video.source import VideoSource
from fssops.truth import Classes, TrackTruth

PathLike = str | os.PathLike[str]

PLACES = ("{}.json", "{}/instances.json", "annotations_{}.json", "annotations/instances_{}.json", "annotations/{}.json")
"""Where the annotation file of a split may be."""

_ALIASES = {"val": ("val", "valid"), "valid": ("valid", "val")}


def find_annotations(root: Path, split: str) -> tuple[Path, str] | None:
    """Annotation file of a split and the split's name there (``val`` finds ``valid``), or None."""
    for name in _ALIASES.get(split, (split,)):
        for place in PLACES:
            if (root / place.format(name)).is_file():
                return root / place.format(name), name
    return None


def splits_of(root: Path) -> list[str]:
    """Splits that a folder has annotation files for."""
    return [split for split in ("train", "val", "valid", "test") if _named(root, split)]


def _named(root: Path, split: str) -> bool:
    return any((root / place.format(split)).is_file() for place in PLACES)


class YTVISSource(VideoSource):
    """A data set in the form of YouTube-VIS.

    Args:
        root: its folder; may be None where both are given below.
        split: ``train``, ``val`` (or ``valid``) or ``test``.
        annotations: JSON file, instead of the one that ``split`` names.
        frames: folder that the file names of frames start from, instead of the one that ``split`` names.
        classes: class names that the file must have, by ascending id; None takes what it has.
        format: what reports call it.
        warn: warn of videos and objects that are left out.

    Raises:
        FileNotFoundError: a file or folder is missing.
        AnnotationError: the file is broken, or of other classes.
    """

    format = "ytvis"

    def __init__(
        self,
        root: PathLike | None,
        split: str = "train",
        *,
        annotations: PathLike | None = None,
        frames: PathLike | None = None,
        classes: list[str] | None = None,
        format: str = "ytvis",
        warn: bool = True,
    ) -> None:
        if root is None and (annotations is None or frames is None):
            raise ValueError("YTVISSource: root must be a folder unless annotations and frames are given, got None")
        base = Path(root or ".")
        if annotations is None:
            found = find_annotations(base, split)
            if found is None:
                places = ", ".join(place.format(split) for place in PLACES[:4])
                known = ", ".join(splits_of(base)) or "none"
                raise FileNotFoundError(f"{base}: split {split!r} must have one of {places} (splits there: {known})")
            path, split = found
        else:
            path = Path(annotations)
        self.folder = _frame_folder(base, split) if frames is None else Path(frames)
        self.file = ytvis_json.read(path, warn=warn)
        self.format = format  # type: ignore[misc]  # one reader, several data sets
        listed = Classes.from_rows(self.file.categories, str(path), things=True)
        if classes is not None and listed.names != classes:
            wrong = next((n for n in listed.names if n not in classes), None) or f"{len(listed)} in another order"
            raise AnnotationError(f"{path}: categories must be the {len(classes)} of {format}, got {wrong!r}")
        super().__init__(split, listed, list(self.file.videos))

    def _video(self, name: str) -> ytvis_json.Video:
        self.check_name(name)
        return self.file.videos[name]

    def frames(self, name: str) -> int:
        return len(self._video(name).files)

    def size(self, name: str) -> tuple[int, int]:
        video = self._video(name)
        return video.height, video.width

    def video_id(self, name: str) -> int | str:
        return self._video(name).id

    def frame(self, name: str, index: int) -> Image.Image:
        video = self._video(name)
        path = self.folder / video.files[index]
        try:
            picture = read_image(path)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: frame {index} of video {name} must exist, got no such file") from None
        if picture.size != (video.width, video.height):
            raise ImageFileError(
                f"{path}: frame {index} must have the size of its video {name}, {video.width} x {video.height}, "
                f"got {picture.width} x {picture.height}"
            )
        return picture

    @property
    def has_truth(self) -> bool:
        return self.file.annotations is not None

    def tracks(self, name: str) -> list[TrackTruth]:
        if self.file.annotations is None:
            raise AnnotationError(
                f"{self.file.path}: annotations must be a list to train on or to score against, got none: this file is "
                "for predictions that a server scores"
            )
        rows = self.file.annotations.get(self._video(name).id, [])
        index_of = self.classes.index_of
        return [TrackTruth(r.id, index_of[r.category], r.segmentations, r.crowd, r.areas) for r in rows]

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from self.file.problems


def _frame_folder(root: Path, split: str) -> Path:
    for folder in (root / split / "JPEGImages", root / "JPEGImages" / split, root / split, root / "JPEGImages"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"{root / split / 'JPEGImages'}: frames of split {split!r} must be there, got no folder")
