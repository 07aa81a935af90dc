"""YouTube-VIS 2019 and 2021, OVIS, and data sets of one's own in their form.

ROOT/SPLIT.json, ROOT/SPLIT/instances.json, ROOT/annotations_SPLIT.json or ROOT/annotations/instances_SPLIT.json, with
frames below ROOT/SPLIT/JPEGImages/ or ROOT/SPLIT/.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fssops.data import ytvis_json
from fssops.data.annotation_json import mentions
from fssops.data.errors import AnnotationError, ImageSizeError
from fssops.data.images import read_image
from fssops.data.layout import DataTruth, Layout
from fssops.data.source import PathLike, VideoSource
from fssops.truth import Classes, TrackTruth

if TYPE_CHECKING:
    from PIL import Image

_YTVIS2019 = (
    "person|giant_panda|lizard|parrot|skateboard|sedan|ape|dog|snake|monkey|hand|rabbit|duck|cat|cow|fish|train|horse|"
    "turtle|bear|motorbike|giraffe|leopard|fox|deer|owl|surfboard|airplane|truck|zebra|tiger|elephant|snowboard|boat|"
    "shark|mouse|frog|eagle|earless_seal|tennis_racket"
)
_YTVIS2021 = (
    "airplane|bear|bird|boat|car|cat|cow|deer|dog|duck|earless_seal|elephant|fish|flying_disc|fox|frog|giant_panda|"
    "giraffe|horse|leopard|lizard|monkey|motorbike|mouse|parrot|person|rabbit|shark|skateboard|snake|snowboard|"
    "squirrel|surfboard|tennis_racket|tiger|train|truck|turtle|whale|zebra"
)
_OVIS = (
    "Person|Bird|Cat|Dog|Horse|Sheep|Cow|Elephant|Bear|Zebra|Giraffe|Poultry|Giant_panda|Lizard|Parrot|Monkey|Rabbit|"
    "Tiger|Fish|Turtle|Bicycle|Motorcycle|Airplane|Boat|Vehical"
)

NAMES: dict[str, list[str]] = {
    "ytvis2019": _YTVIS2019.split("|"),
    "ytvis2021": _YTVIS2021.split("|"),
    "ovis": _OVIS.split("|"),
}
"""Data set -> class names by ascending id, which starts at 1."""

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


def _splits(root: Path) -> list[str]:
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
        warn: warn of videos and objects that are left out.
        data_set: whose classes the file must have, a key of :data:`NAMES`; "" takes what it has.

    Raises:
        FileNotFoundError: a file or folder is missing.
        AnnotationError: the file is broken, or of other classes.
    """

    def __init__(
        self,
        root: PathLike | None,
        split: str = "train",
        *,
        annotations: PathLike | None = None,
        frames: PathLike | None = None,
        warn: bool = True,
        data_set: str = "",
    ) -> None:
        if root is None and (annotations is None or frames is None):
            raise ValueError("YTVISSource: root must be a folder unless annotations and frames are given, got None")
        base = Path(root or ".")
        if annotations is None:
            place = find_annotations(base, split)
            if place is None:
                places = ", ".join(place.format(split) for place in PLACES[:4])
                there = ", ".join(_splits(base)) or "none"
                raise FileNotFoundError(f"{base}: split {split!r} must have one of {places} (splits there: {there})")
            path, split = place
        else:
            path = Path(annotations)
        self.folder = _frame_folder(base, split) if frames is None else Path(frames)
        self.file = ytvis_json.read(path, warn=warn)
        listed, names = self.file.classes, NAMES.get(data_set)
        if names is not None and listed.names != names:
            wrong = next((n for n in listed.names if n not in names), None) or f"{len(listed)} in another order"
            raise AnnotationError(f"{path}: categories must be the {len(names)} of {data_set}, got {wrong!r}")
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
            raise ImageSizeError(
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
        return list(self.file.annotations.get(self._video(name).id, ()))

    def problems(self) -> Iterator[tuple[str, str]]:
        for kind, text in self.file.problems:
            yield kind, f"{self.file.path}: {text}"


def _frame_folder(root: Path, split: str) -> Path:
    for folder in (root / split / "JPEGImages", root / "JPEGImages" / split, root / split, root / "JPEGImages"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"{root / split / 'JPEGImages'}: frames of split {split!r} must be there, got no folder")


def lists_videos(root: Path) -> bool:
    """Whether a folder holds an annotation file of this form: one with a table of videos."""
    places = [find_annotations(root, split) for split in ("train", "val", "test")]
    file = next((place[0] for place in places if place is not None), None)
    return file is not None and mentions(file, "file_names", "videos")


def _recognise(root: Path) -> str:
    return "" if lists_videos(root) else "no SPLIT.json, SPLIT/instances.json or alike that lists videos"


def _classes(truth: DataTruth, name: str) -> Classes:
    return Classes.from_names(NAMES[name], range(len(NAMES[name])), ids=range(1, len(NAMES[name]) + 1))


def _published(name: str) -> Layout:
    return Layout(
        name=name,
        files=f"as ytvis, with the {len(NAMES[name])} classes of this data set",
        readers={"video": partial(YTVISSource, data_set=name)},
        recognise=_recognise,
        splits=_splits,
        classes=partial(_classes, name=name),
        instead_of_root=("annotations", "frames"),
        family="ytvis",
    )


LAYOUTS = (
    Layout(
        name="ytvis",
        files="SPLIT.json or SPLIT/instances.json, SPLIT/JPEGImages/VIDEO/FRAME.jpg",
        readers={"video": partial(YTVISSource, data_set="")},
        recognise=_recognise,
        splits=_splits,
        instead_of_root=("annotations", "frames"),
        family="ytvis",
    ),
    *map(_published, NAMES),
)
