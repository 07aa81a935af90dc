"""Pictures to predict on, one after another: image files, and the frames of video files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fssops.data.images import read_image
from fssops.engine.settings import SettingsError

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})


@dataclass(frozen=True)
class Frame:
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


def is_video(path: Path) -> bool:
    """Whether a file is taken for a video, by its name."""
    return path.suffix.lower() in VIDEO_SUFFIXES


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


def frames(paths: Sequence[Path], names: Sequence[str]) -> Iterator[Frame]:
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
            yield Frame(name, str(path), np.asarray(read_image(path)))
        except (ValueError, OSError) as error:
            # One unreadable photo must not cost the other thousand.
            yield Frame(name, str(path), None, str(error))


def _video_frames(path: Path, name: str) -> Iterator[Frame]:
    import av

    number = 0
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield Frame(f"{name}_{number:06d}", f"{path} frame {number}", frame.to_ndarray(format="rgb24"))
                number += 1
    except (av.error.FFmpegError, OSError, IndexError) as error:
        yield Frame(f"{name}_{number:06d}", f"{path} frame {number}", None, f"{path}: video must decode, got {error}")
