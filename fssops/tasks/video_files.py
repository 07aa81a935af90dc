"""Videos to predict on, and videos that are made: files that a decoder reads, animated pictures, folders of frames.

Animated GIF and WebP are read and written by Pillow, everything else by the package av (extra fssops[video]).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from fssops.data.images import read_image
from fssops.data.listing import folders_in, natural
from fssops.engine.settings import SettingsError
from fssops.tasks.prediction_inputs import (
    distinct_names,
    frames_in,
    frames_of,
    is_camera,
    is_video,
    require_decoder,
)

DEFAULT_RATE = 10.0
"""Frames a second of videos that are made of folders."""


@dataclass
class VideoInput:
    """One video to segment; it can be read as often as needed.

    Attributes:
        name: for output files.
        paths: one video file, or the frames in order.
        unreadable: number of each frame that could not be read, with the reason; filled by reading.
    """

    name: str
    paths: list[Path]
    unreadable: dict[int, str] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """What it is called in messages."""
        return str(self.paths[0] if self.is_file else self.paths[0].parent)

    @property
    def is_file(self) -> bool:
        """Whether one file holds all frames."""
        return len(self.paths) == 1 and is_video(self.paths[0])

    def frames(self) -> Iterator[tuple[int, np.ndarray]]:
        """Number and picture [H, W, 3] uint8 of every frame that can be read."""
        for number, (image, error) in enumerate(self._pictures()):
            if image is None:
                self.unreadable[number] = error
            else:
                yield number, image

    def _pictures(self) -> Iterator[tuple[np.ndarray | None, str]]:
        if self.is_file:
            yield from frames_of(self.paths[0])
        else:
            for path in self.paths:
                try:
                    yield np.asarray(read_image(path)), ""
                except (ValueError, OSError) as error:
                    yield None, str(error)


def find_videos(given: Sequence[str], where: str = "--query") -> list[VideoInput]:
    """The videos that paths stand for: a video file each, a folder of frames each, a folder of such folders or files.

    Several pictures given one by one are the frames of one video, in the order given.

    Args:
        given: paths.
        where: they were given, for messages.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds nothing of the kind.
        SettingsError: a video file, and no decoder is installed; or a camera.
    """
    videos: list[VideoInput] = []
    loose: list[Path] = []
    for text in given:
        path = Path(text)
        if path.is_dir():
            videos += _videos_in(path, where)
        elif is_camera(path):
            raise SettingsError(f"{where}: a video system needs whole videos, which can be read again, got {path}")
        elif not path.is_file():
            raise FileNotFoundError(f"{where}: {path} must be a video or a folder of frames, got nothing there")
        elif is_video(path):
            videos.append(VideoInput(path.stem, [path]))
        else:
            loose.append(path)
    if loose:
        videos.insert(0, VideoInput(loose[0].parent.name or "video", loose))
    require_decoder([path for video in videos for path in video.paths if video.is_file], where)
    for video, name in zip(videos, distinct_names([video.name for video in videos]), strict=True):
        video.name = name
    return videos


def _videos_in(folder: Path, where: str) -> list[VideoInput]:
    visible = (entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    entries = sorted(visible, key=lambda entry: natural(entry.name))
    files = [entry for entry in entries if is_video(entry)]
    frames = [frame for frame in frames_in(folder) if frame not in files]
    if frames:
        return [VideoInput(folder.resolve().name, frames)]
    inner = [VideoInput(name, frames) for name in folders_in(folder) if (frames := frames_in(folder / name))]
    videos = [VideoInput(file.stem, [file]) for file in files] + inner
    if not videos:
        raise FileNotFoundError(f"{where}: folder {folder} must hold frames, videos or folders of frames, got none")
    return videos


def animation_suffix(wanted: str) -> str:
    """Ending of the videos that are made: as wanted, or for ``auto`` what can be written here.

    Raises:
        SettingsError: mp4 is wanted and av is not installed.
    """
    try:
        import av  # noqa: F401

        has_av = True
    except ImportError:
        has_av = False
    if wanted == "mp4" and not has_av:
        raise SettingsError("--video: mp4 needs the package av: install fssops[video], or take webp or gif")
    return wanted if wanted != "auto" else ("mp4" if has_av else "webp")


def write_video(path: Path, pictures: Iterator[np.ndarray], rate: float = DEFAULT_RATE) -> None:
    """Write a video, taking picture after picture.

    Args:
        path: ends in ``.webp``, ``.gif`` or ``.mp4``.
        pictures: [H, W, 3] uint8 each, at least one, all of one size.
        rate: frames a second, above 0.
    """
    if path.suffix == ".mp4":
        _write_mp4(path, pictures, rate)
        return
    images = (Image.fromarray(picture) for picture in pictures)
    first = next(images)
    # quality and method are WebP's; the writer of GIF passes over them.
    duration = max(1, round(1000 / rate))
    first.save(path, save_all=True, append_images=images, duration=duration, loop=0, quality=80, method=2)


def _write_mp4(path: Path, pictures: Iterator[np.ndarray], rate: float) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = None
        for picture in pictures:
            # The common pixel format wants even sides.
            even = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
                stream.height, stream.width, stream.pix_fmt = even.shape[0], even.shape[1], "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode())
