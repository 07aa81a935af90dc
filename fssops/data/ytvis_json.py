"""Reading YouTube-VIS JSON (2019, 2021, and OVIS' alike): structure checked here, before anything is drawn.

What is broken is left out and told, be it a video, an object, its outline in a frame or one polygon of that; a broken
file is an error.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fssops.data.annotation_json import (
    Problem,
    checked_id,
    checked_name,
    checked_size,
    own_ids,
    read_tables,
    tell,
    usable_rows,
)
from fssops.data.errors import AnnotationError, DuplicateError
from fssops.data.json_values import identifier, positive, shown, whole_number, yes_or_no
from fssops.data.outlines import HIDDEN, drawable
from fssops.truth import Classes, TrackTruth

VideoId = int | str


@dataclass
class Video:
    """One video.

    Attributes:
        id: video id.
        name: folder of its frames, or what tells it apart.
        height, width: of all frames.
        files: file names of the frames.
    """

    id: VideoId
    name: str
    height: int
    width: int
    files: list[str]


@dataclass
class YTVISFile:
    """A checked file.

    Attributes:
        path: where it was read from.
        classes: of the file's table.
        videos: name -> video, in the order of the file.
        annotations: video id -> its usable objects; None where the file holds no truth.
        problems: what was left out, cut or looks wrong.
    """

    path: Path
    classes: Classes
    videos: dict[str, Video] = field(default_factory=dict)
    annotations: dict[VideoId, list[TrackTruth]] | None = None
    problems: list[Problem] = field(default_factory=list)


def read(path: str | os.PathLike[str], *, warn: bool = True) -> YTVISFile:
    """Read and check a file.

    Args:
        path: the JSON file.
        warn: warn of what is left out (the first fifty one by one); ``problems`` is filled either way.

    Raises:
        FileNotFoundError: no such file.
        AnnotationError: incomplete JSON, a missing table, a broken category, a video id that occurs twice, or no video
            that can be used.
    """
    file = Path(path)
    content = read_tables(file, ("videos", "categories"))
    if content.get("annotations") is not None and not isinstance(content["annotations"], list):
        raise AnnotationError(
            f"{file}: annotations must be a list, or null in files without truth, got "
            f"{type(content['annotations']).__name__}"
        )
    result = YTVISFile(file, Classes.from_rows(content["categories"], str(file), things=True))
    left_out = _read_videos(content["videos"], result)
    if isinstance(content.get("annotations"), list):
        result.annotations = {}
        _read_annotations(content["annotations"], left_out, result)
    if warn:
        tell(file, result.problems)
    return result


def _read_videos(rows: list[Any], result: YTVISFile) -> set[VideoId]:
    """Fill ``videos``; returns the ids of those without a frame."""
    ids: set[VideoId] = set()
    empty: set[VideoId] = set()
    for number, width, height, files, length in usable_rows(result.path, "videos", rows, result.problems, _video):
        if number in ids:
            raise DuplicateError(f"{result.path}: video ids must be unique, got {number} twice")
        ids.add(number)
        if not files:
            message = f"video {number} must have at least one frame, got 0; left out"
            result.problems.append(("empty_video", message))
            empty.add(number)
            continue
        if whole_number(length) != len(files):
            message = f"video {number}: length must be the number of file_names, {len(files)}, got {shown(length)}"
            result.problems.append(("empty_video", f"{message}; file_names are used"))
        folder = files[0].rpartition("/")[0].rpartition("/")[2] or f"video{number}"
        name = folder
        while name in result.videos:
            name += f"-{number}"
        result.videos[name] = Video(number, name, height, width, files)
    return empty


def _video(row: Any, where: str) -> tuple[VideoId, int, int, list[str], Any]:
    """Id, width, height, names of frames, and what it says of their number."""
    number = checked_id(row, where)
    width, height = checked_size(row, f"video {number}")
    files = row.get("file_names")
    if not isinstance(files, list):
        raise AnnotationError(f"video {number}: file_names must be a list of names, got {shown(files)}")
    names = [checked_name(name, f"video {number}: file_names") for name in files]
    return number, width, height, names, row.get("length", len(names))


def _read_annotations(rows: list[Any], left_out: set[VideoId], result: YTVISFile) -> None:
    assert result.annotations is not None
    videos = {video.id: video for video in result.videos.values()}
    for number, row in own_ids(rows, result.problems):
        video_id, category = identifier(row.get("video_id")), whole_number(row.get("category_id"))
        if video_id in left_out:
            continue
        video = None if video_id is None else videos.get(video_id)
        label = None if category is None else result.classes.index_of.get(category)
        if video is None:
            track: TrackTruth | str = f"video id {shown(row.get('video_id'))} not in videos"
        elif label is None:
            track = f"category id {shown(row.get('category_id'))} not in categories"
        else:
            track = _track(number, row, video, label, result.problems)
        if isinstance(track, str) or video is None:
            result.problems.append(("bad_annotation", f"annotation {number} left out: {track}"))
        else:
            result.annotations.setdefault(video.id, []).append(track)


def _track(number: int, row: dict[str, Any], video: Video, label: int, problems: list[Problem]) -> TrackTruth | str:
    """An object, or why it cannot be used. Where one frame's outline cannot, nothing is known of it in that frame."""
    segmentations, crowd = row.get("segmentations"), yes_or_no(row.get("iscrowd") or 0)
    if crowd is None:
        return f"iscrowd is neither 0 nor 1 but {shown(row['iscrowd'])}"
    if not isinstance(segmentations, list):
        return f"segmentations must be a list with an entry a frame, got {shown(segmentations)}"
    if len(segmentations) != len(video.files):
        return f"segmentations must be one a frame ({len(video.files)}), got {len(segmentations)}"
    outlines: list[Any] = []
    told: list[Problem] = []
    for frame, segmentation in enumerate(segmentations):
        outline, faults = drawable(segmentation, video.width, video.height)
        if segmentation in (None, []):
            faults = []
        elif faults[:1] and faults[0] in HIDDEN:
            outline, faults = [], []
        outlines.append(outline)
        end = "; left out of that frame" if outline is None else ""
        told += [("bad_annotation", f"annotation {number}: frame {frame}: {fault}{end}") for fault in faults]
    if told and all(outline is None for outline in outlines):
        return told[0][1].split(": ", 1)[1].removesuffix("; left out of that frame")
    problems += told
    areas = row.get("areas")
    if not isinstance(areas, list) or len(areas) != len(outlines):
        areas = []
    return TrackTruth(number, label, outlines, crowd, [positive(area) for area in areas])
