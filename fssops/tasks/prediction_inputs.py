"""Pictures to predict on, one after another: image files, and the frames of videos and cameras.

Animated GIF and WebP are read by Pillow, other videos by the package av (extra fssops[video]), cameras by OpenCV (extra
fssops[camera]).
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from fssops.data.errors import ImageFileError
from fssops.data.images import read_image
from fssops.data.listing import pictures_in
from fssops.engine.settings import SettingsError

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})

ANIMATED = frozenset({".gif", ".webp", ".apng"})
"""Picture files that may hold a video."""

_CAMERA = "camera:"
"""What a query of a camera begins with; its number follows."""


@dataclass(frozen=True)
class Picture:
    """A picture to segment.

    Attributes:
        name: for the files that are written.
        origin: where it comes from, for messages.
        image: uint8 [H, W, 3], or None where it could not be read.
        error: why not.
        video: name of the video that it is a frame of; "" for a picture.
        frame: its number there.
    """

    name: str
    origin: str
    image: np.ndarray | None
    error: str = ""
    video: str = ""
    frame: int = 0

    def pixels(self) -> np.ndarray:
        """The picture, uint8 [H, W, 3].

        Raises:
            ImageFileError: it could not be read.
        """
        if self.image is None:
            raise ImageFileError(self.error)
        return self.image


def is_camera(path: Path) -> bool:
    """Whether a query is ``camera:`` and a number."""
    return str(path).startswith(_CAMERA) and str(path).removeprefix(_CAMERA).isdecimal()


def is_video(path: Path) -> bool:
    """Whether a query holds frames: a camera, a file with a video's name, or an animated picture."""
    if path.suffix.lower() not in ANIMATED:
        return path.suffix.lower() in VIDEO_SUFFIXES or is_camera(path)
    try:
        with Image.open(path) as picture:
            return int(getattr(picture, "n_frames", 1)) > 1
    except (OSError, UnidentifiedImageError, ValueError):
        return False


def find_pictures(queries: Sequence[str], where: str = "--query") -> list[Path]:
    """The files and cameras named, and the pictures in the folders named, in order, each once.

    Args:
        queries: paths, or ``camera:0``.
        where: they were given, for messages.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no picture.
    """
    paths: dict[Path, None] = {}
    for text in queries:
        path = Path(text)
        if path.is_dir():
            inside = frames_in(path)
            if not inside:
                raise FileNotFoundError(f"{where}: folder {path} must hold images, got none")
            paths.update(dict.fromkeys(inside))
        elif path.is_file() or is_camera(path):
            paths[path] = None
        else:
            raise FileNotFoundError(f"{where}: {path} must be an image or a folder, got nothing there")
    return list(paths)


def frames_in(folder: Path) -> list[Path]:
    """The pictures of a folder by the numbers in their names; what is left out, sub-folders too, is told."""
    listing = pictures_in(folder, below=False)
    if listing.files:
        for note in listing.notes():
            logger.info("left out       %s", note)
    return list(listing.files)


def output_names(paths: Sequence[Path]) -> list[str]:
    """A name for each picture and video: as its file's, or with a number, so that no two files written share a name.

    Frames of a video are called after it and their number, see :func:`pictures`; no picture is called so.
    """
    names = distinct_names([path.stem.replace(_CAMERA, "camera-") for path in paths])
    taken = set(names)
    for place, path in enumerate(paths):
        if is_video(path):
            while any(re.fullmatch(rf"{re.escape(names[place])}_\d{{6,}}", other) for other in taken):
                names[place] += "-video"
            taken.add(names[place])
    return distinct_names(names)


def distinct_names(wanted: Sequence[str]) -> list[str]:
    """A name for each file that is written: as wanted, and where that is taken, with a number that none else has."""
    asked_for = set(wanted)
    names: dict[str, None] = {}
    for name in wanted:
        free, number = name, 2
        while free in names or (free != name and free in asked_for):
            free, number = f"{name}-{number}", number + 1
        names[free] = None
    return list(names)


def require_decoder(paths: Sequence[Path], where: str = "--query") -> None:
    """See that videos can be decoded, and cameras opened, before anything else is done.

    Raises:
        SettingsError: there is a video and no decoder; names the extra that brings one.
    """
    for path in paths:
        if is_camera(path):
            _require("cv2", "camera", f"{where}: {path} is a camera", "")
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            _require("av", "video", f"{where}: {path} is a video", ", or give a folder of its frames")


def _require(package: str, extra: str, what: str, instead: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError:
        raise SettingsError(f"{what}, which needs the package {package}: install fssops[{extra}]{instead}") from None


def pictures(paths: Sequence[Path], names: Sequence[str], limit: int = 0) -> Iterator[Picture]:
    """Read every image and every frame of every video; what cannot be read comes with its error.

    Args:
        paths: files and cameras.
        names: one each, for output files; frames of a video get ``_`` and six digits after it.
        limit: at most so many frames of each video or camera; 0 all, which of a camera never ends.
    """
    for path, name in zip(paths, names, strict=True):
        if is_video(path):
            for number, (image, error) in enumerate(islice(frames_of(path), limit or None)):
                yield Picture(f"{name}_{number:06d}", f"{path} frame {number}", image, error, name, number)
            continue
        try:
            yield Picture(name, str(path), np.asarray(read_image(path)))
        except (ValueError, OSError) as error:
            yield Picture(name, str(path), None, str(error))


def frames_of(path: Path) -> Iterator[tuple[np.ndarray | None, str]]:
    """Pictures [H, W, 3] uint8 of a video or camera; last, where it breaks off, None with the reason."""
    try:
        if is_camera(path):
            yield from _seen_by_camera(int(str(path).removeprefix(_CAMERA)))
        elif path.suffix.lower() in ANIMATED:
            with Image.open(path) as animation:
                for frame in ImageSequence.Iterator(animation):
                    yield np.asarray(frame.convert("RGB")), ""
        else:
            yield from _decoded(path)
    except (OSError, ValueError, IndexError) as error:
        rule = "camera must show pictures" if is_camera(path) else "video must decode"
        yield None, f"{path}: {rule}, got {error}"


def _decoded(path: Path) -> Iterator[tuple[np.ndarray, str]]:
    import av

    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24"), ""
    except av.error.FFmpegError as error:
        raise ValueError(str(error)) from None


def _seen_by_camera(number: int) -> Iterator[tuple[np.ndarray, str]]:
    import cv2

    camera = cv2.VideoCapture(number)
    try:
        if not camera.isOpened():
            raise OSError("no such camera, or one that another program uses")
        while True:
            seen, picture = camera.read()
            if not seen:
                raise OSError("no further picture")
            yield np.ascontiguousarray(picture[..., ::-1]), ""  # OpenCV's order is blue, green, red
    finally:
        camera.release()
