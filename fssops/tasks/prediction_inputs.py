"""Pictures to predict on, one after another: image files, and the frames of video files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fssops.data.errors import ImageFileError
from fssops.data.images import read_image
from fssops.data.listing import pictures_in
from fssops.engine.settings import SettingsError

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})


@dataclass(frozen=True)
class Picture:
    """A picture to segment.

    Attributes:
        name: for the files that are written.
        origin: where it comes from, for messages.
        image: uint8 [H, W, 3], or None where it could not be read.
        error: why not.
    """

    name: str
    origin: str
    image: np.ndarray | None
    error: str = ""

    def pixels(self) -> np.ndarray:
        """The picture, uint8 [H, W, 3].

        Raises:
            ImageFileError: it could not be read.
        """
        if self.image is None:
            raise ImageFileError(self.error)
        return self.image


def is_video(path: Path) -> bool:
    """Whether a file is taken for a video, by its name."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def find_pictures(queries: Sequence[str]) -> list[Path]:
    """The files named, and the pictures in the folders named, in order, each once.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no picture.
    """
    paths: dict[Path, None] = {}
    for text in queries:
        path = Path(text)
        if path.is_dir():
            inside = frames_in(path)
            if not inside:
                raise FileNotFoundError(f"--query: folder {path} must hold images, got none")
            paths.update(dict.fromkeys(inside))
        elif path.is_file():
            paths[path] = None
        else:
            raise FileNotFoundError(f"--query: {path} must be an image or a folder, got nothing there")
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
    names = distinct_names([path.stem for path in paths])
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


def require_decoder(paths: Sequence[Path]) -> None:
    """See that videos can be decoded before anything else is done.

    Raises:
        SettingsError: there is a video and no decoder; names the extra that brings one.
    """
    video = next((path for path in paths if is_video(path)), None)
    if video is None:
        return
    try:
        import av  # noqa: F401
    except ImportError:
        raise SettingsError(
            f"--query: {video} is a video, which needs the package av: install fssops[video], "
            "or give a folder of its frames"
        ) from None


def pictures(paths: Sequence[Path], names: Sequence[str]) -> Iterator[Picture]:
    """Read every image and every frame of every video; what cannot be read comes with its error.

    Args:
        paths: files.
        names: one each, for output files; frames of a video get ``_`` and six digits after it.
    """
    for path, name in zip(paths, names, strict=True):
        if is_video(path):
            yield from _video_frames(path, name)
            continue
        try:
            yield Picture(name, str(path), np.asarray(read_image(path)))
        except (ValueError, OSError) as error:
            yield Picture(name, str(path), None, str(error))


def _video_frames(path: Path, name: str) -> Iterator[Picture]:
    import av

    number = 0
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield Picture(f"{name}_{number:06d}", f"{path} frame {number}", frame.to_ndarray(format="rgb24"))
                number += 1
    except (av.error.FFmpegError, OSError, IndexError) as error:
        yield Picture(f"{name}_{number:06d}", f"{path} frame {number}", None, f"{path}: video must decode, got {error}")
