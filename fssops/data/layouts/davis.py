"""DAVIS and YouTube-VOS: frames of videos with masks of object numbers.

    ROOT/JPEGImages/480p/VIDEO/00000.jpg  ROOT/Annotations/480p/VIDEO/00000.png   (or Full-Resolution, or neither)
    ROOT/ImageSets/2017/SPLIT.txt         one VIDEO a line, or lines of files     (or 2016, 480p, or ImageSets itself)

    ROOT/SPLIT/JPEGImages/VIDEO/00000.jpg ROOT/SPLIT/Annotations/VIDEO/00000.png  ROOT/SPLIT/meta.json   (YouTube-VOS)

Values of a mask are the numbers of objects, 0 is background and 255 ignored, but for videos of 0 and 255 alone (DAVIS
2016), where 255 is the object. meta.json gives objects their categories; without it all are of one class, ``object``.
A frame without a mask says nothing of any object: YouTube-VOS has masks of every fifth. Its valid and test splits have
masks of first frames alone, which is no truth to score against.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fssops import run_lengths
from fssops.data.errors import AnnotationError, DataError, ImageSizeError
from fssops.data.images import image_size, read_image, read_mask
from fssops.data.json_values import name as json_name
from fssops.data.json_values import shown
from fssops.data.label_maps import PairedSource, Pairs
from fssops.data.layout import Layout, few_shot_view
from fssops.data.listing import folders_in, pictures_in
from fssops.data.object_masks import white_is_object
from fssops.data.paths import check_inside
from fssops.data.source import PathLike, VideoSource
from fssops.data.text_files import read_json, read_lines
from fssops.labels import IGNORE
from fssops.truth import Classes, ObjectTruth, TrackTruth, Truth

if TYPE_CHECKING:
    from PIL import Image

_SIZES = ("480p", "Full-Resolution", "1080p")


def _deepest(folder: Path) -> Path:
    """The folder of a resolution, where a folder holds such."""
    return next((folder / name for name in _SIZES if (folder / name).is_dir()), folder)


def _lists(root: Path) -> dict[str, Path]:
    """Split -> list of its videos; of the latest year where there are several."""
    folders = [root / "ImageSets", *(root / "ImageSets" / name for name in ("480p", "2016", "2017"))]
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.txt"))}


def _splits(root: Path) -> list[str]:
    if (root / "JPEGImages").is_dir():
        return sorted(_lists(root)) or ["all"]
    return [name for name in folders_in(root) if (root / name / "Annotations").is_dir()]


class _Videos:
    """Files of one split.

    Attributes:
        frames: files of every video's frames, in order.
        masks: those of its masks by stem.
        classes: of the data set.
        category: class index by video and object number; empty where all objects are of one class.
        asked: stems of the frames that meta.json lists, by video.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.category: dict[tuple[str, int], int] = {}
        self.asked: dict[str, set[str]] = {}
        base, self.meta = root, root / split / "meta.json"
        listed = _lists(root)
        if not (root / "JPEGImages").is_dir():
            base = root / split
        images, masks = _deepest(base / "JPEGImages"), _deepest(base / "Annotations")
        there = ", ".join(_splits(root)) or "none"
        if not images.is_dir() or (base == root and split not in listed and (listed or split not in ("all", "train"))):
            raise FileNotFoundError(f"{root}: split must be one of {there}, got {split!r}")
        names = _names(listed[split]) if base == root and split in listed else folders_in(images)
        self.frames = {name: list(pictures_in(images / name, below=False).files) for name in names}
        empty = [name for name, files in self.frames.items() if not files]
        if empty or not names:
            raise DataError(f"{images / (empty or ['*'])[0]}: video must have at least one frame, got none")
        self.masks = {
            name: {file.stem: file for file in pictures_in(masks / name, below=False).files}
            if (masks / name).is_dir()
            else {}
            for name in names
        }
        self.classes = Classes.from_names(["object"], [0], ids=[1])
        if base != root and self.meta.is_file():
            self._read_meta()

    def _read_meta(self) -> None:
        content = read_json(self.meta, "meta.json")
        videos = content.get("videos") if isinstance(content, dict) else None
        if not isinstance(videos, dict):
            raise AnnotationError(f"{self.meta}: meta.json must hold a map 'videos', got {shown(content)}")
        names: dict[tuple[str, int], str | None] = {}
        for video, row in videos.items():
            objects = row.get("objects") if isinstance(row, dict) else None
            if not isinstance(objects, dict) or not all(str(key).isdecimal() for key in objects):
                raise AnnotationError(
                    f"{self.meta}: objects of video {video!r} must map numbers to objects, got {shown(row)}"
                )
            for number, entry in objects.items():
                entry = entry if isinstance(entry, dict) else {}
                names[video, int(number)] = json_name(entry.get("category"))
                frames = entry.get("frames")
                self.asked.setdefault(video, set()).update(map(str, frames if isinstance(frames, list) else []))
        if not any(names.values()):
            return  # valid and test say no categories
        without = next((key for key, name in names.items() if name is None), None)
        if without is not None:
            raise AnnotationError(
                f"{self.meta}: object {without[1]} of video {without[0]!r} must have a category, got none"
            )
        listed = sorted({name for name in names.values() if name})
        self.classes = Classes.from_names(listed, range(len(listed)), ids=range(1, len(listed) + 1))
        self.category = {key: listed.index(name) for key, name in names.items() if name}

    def label(self, video: str, number: int, where: Path) -> int:
        """Class index of an object."""
        if not self.category:
            return 0
        if (video, number) not in self.category:
            raise AnnotationError(f"{where}: every object must be one of {self.meta}, got {number} of video {video!r}")
        return self.category[video, number]

    def numbers(self, video: str, stem: str, white: bool, size: tuple[int, int]) -> np.ndarray:
        """Object number of every pixel, 0 none."""
        values = read_mask(self.masks[video][stem], size=size)
        return np.where(values == IGNORE, np.uint8(1 if white else 0), values)

    def white(self, video: str) -> bool:
        """Whether 255 is the object of a video, as nothing else is beside 0."""
        return white_is_object(map(read_mask, self.masks[video].values()))


def _names(file: Path) -> list[str]:
    """Videos of a list: names, or paths of their frames."""
    words = [line.split()[0] for line in read_lines(file, "list of videos") if line.strip()]
    names = [Path(word).parent.name if "/" in word else word for word in words]
    return [check_inside(name, f"{file}: line") for name in dict.fromkeys(names)]


class MaskVideoSource(VideoSource):
    """Videos with masks of object numbers; layout in the module.

    Args:
        root: the folder.
        split: a list of ImageSets, a folder of YouTube-VOS, or ``all`` where there is neither.

    Raises:
        FileNotFoundError: no such split.
        DataError: a video without frames, or a broken list or meta.json.
    """

    def __init__(self, root: PathLike, split: str = "train") -> None:
        self._videos = _Videos(Path(root), split)
        super().__init__(split, self._videos.classes, list(self._videos.frames))

    def frames(self, name: str) -> int:
        self.check_name(name)
        return len(self._videos.frames[name])

    def size(self, name: str) -> tuple[int, int]:
        self.check_name(name)
        width, height = image_size(self._videos.frames[name][0])
        return height, width

    def frame(self, name: str, index: int) -> Image.Image:
        height, width = self.size(name)
        file = self._videos.frames[name][index]
        picture = read_image(file)
        if picture.size != (width, height):
            got = f"{picture.width} x {picture.height}"
            raise ImageSizeError(f"{file}: frame must have the size of its video {name}, {width} x {height}, got {got}")
        return picture

    @property
    def has_truth(self) -> bool:
        """Masks of all frames that meta.json asks for, in some video; without it, masks at all."""
        videos = self._videos
        return any(
            videos.masks[name] and videos.asked.get(name, set()) <= set(videos.masks[name]) for name in self.names
        )

    def tracks(self, name: str) -> list[TrackTruth]:
        self.check_name(name)
        videos, (height, width) = self._videos, self.size(name)
        missing = sorted(videos.asked.get(name, set()) - set(videos.masks[name]))
        if missing or not videos.masks[name]:
            got = f"none of frame {missing[0]}" if missing else "none"
            raise AnnotationError(
                f"{videos.frames[name][0].parent}: video must have its masks in Annotations, got {got}"
            )
        white, objects, last = videos.white(name), dict[int, list[Any]](), len(videos.frames[name])
        for index, file in enumerate(videos.frames[name]):
            if file.stem not in videos.masks[name]:
                continue
            numbers = videos.numbers(name, file.stem, white, (width, height))
            for number in np.unique(numbers[numbers > 0]).tolist():
                objects.setdefault(number, [None] * last)[index] = run_lengths.encode(numbers == number)
        for index, file in enumerate(videos.frames[name]):
            for segmentations in objects.values():
                if file.stem in videos.masks[name] and segmentations[index] is None:
                    segmentations[index] = []
        first = self.names.index(name) << 8
        mask = next(iter(videos.masks[name].values()))
        return [TrackTruth(first + n, videos.label(name, n, mask), objects[n]) for n in sorted(objects)]

    def left_out(self) -> Iterator[str]:
        for name, masks in self._videos.masks.items():
            free = set(masks) - {file.stem for file in self._videos.frames[name]}
            if free:
                yield f"{masks[min(free)].parent}: {len(free)} left out (no frame of their name), e.g. {min(free)}"


class MaskFrameSource(PairedSource):
    """The frames that have a mask, as images of their own.

    Args:
        root: the folder.
        split: as for :class:`MaskVideoSource`.
    """

    def __init__(self, root: PathLike, split: str = "train") -> None:
        videos = self._videos = _Videos(Path(root), split)
        files = {
            f"{name}/{frame.stem}": (frame, videos.masks[name][frame.stem])
            for name, frames in videos.frames.items()
            for frame in frames
            if frame.stem in videos.masks[name]
        }
        if not files:
            raise DataError(f"{root}: split {split} must have a frame with a mask, got none")
        super().__init__("instance", split, videos.classes, Pairs(files))
        self._white: dict[str, bool] = {}

    def truth(self, name: str) -> Truth:
        image, mask = self.paths(name)
        video, stem = name.split("/")
        if video not in self._white:
            self._white[video] = self._videos.white(video)
        numbers = self._videos.numbers(video, stem, self._white[video], image_size(image))
        objects = [
            ObjectTruth(number, self._videos.label(video, number, mask), numbers == number)
            for number in np.unique(numbers[numbers > 0]).tolist()
        ]
        return Truth(numbers.shape[0], numbers.shape[1], objects=objects)


def _is_davis(root: Path) -> str:
    images, masks = _deepest(root / "JPEGImages"), _deepest(root / "Annotations")
    both = set(folders_in(images)) & set(folders_in(masks))
    return "" if both else "no folders of the same videos in JPEGImages and Annotations"


def _is_youtube_vos(root: Path) -> str:
    found = any(not _is_davis(root / name) and (root / name / "meta.json").is_file() for name in folders_in(root))
    return "" if found else "no SPLIT/meta.json beside SPLIT/JPEGImages and SPLIT/Annotations"


_READERS: Mapping[Any, Any] = {
    "video": MaskVideoSource,
    "instance": MaskFrameSource,
    "few-shot": few_shot_view(MaskFrameSource),
}

LAYOUTS = (
    Layout(
        name="davis",
        files="JPEGImages/[480p/]VIDEO/FRAME.jpg Annotations/[480p/]VIDEO/FRAME.png ImageSets/2017/SPLIT.txt",
        readers=_READERS,
        recognise=_is_davis,
        splits=_splits,
    ),
    Layout(
        name="youtube_vos",
        files="SPLIT/JPEGImages/VIDEO/FRAME.jpg SPLIT/Annotations/VIDEO/FRAME.png SPLIT/meta.json",
        readers=_READERS,
        recognise=_is_youtube_vos,
        splits=_splits,
    ),
)
