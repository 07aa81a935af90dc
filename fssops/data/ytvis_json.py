"""Reading YouTube-VIS JSON (2019, 2021, and OVIS' alike): structure checked here, before anything is drawn.

A video or an object that is broken is left out with a warning that gives its id and the reason; a broken file is an
error.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fssops.data.annotation_json import checked_size, read_tables, warn_of, whole
from fssops.data.coco_json import fault
from fssops.data.errors import AnnotationError, DuplicateError
from fssops.data.paths import check_inside
from fssops.truth import Classes, TrackTruth

HIDDEN = ("zero area", "outside the image", "empty polygon list")
"""Faults of a frame's outline that say no more than that the object is not seen there."""


@dataclass
class Video:
    """One video.

    Attributes:
        id: video id.
        name: folder of its frames, or what tells it apart.
        height, width: of all frames.
        files: file names of the frames.
    """

    id: int
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
        problems: (kind of finding, message) of what was left out or looks wrong.
    """

    path: Path
    classes: Classes
    videos: dict[str, Video] = field(default_factory=dict)
    annotations: dict[int, list[TrackTruth]] | None = None
    problems: list[tuple[str, str]] = field(default_factory=list)


def read(path: str | os.PathLike[str], *, warn: bool = True) -> YTVISFile:
    """Read and check a file.

    Args:
        path: the JSON file.
        warn: warn of what is left out (the first fifty one by one); ``problems`` is filled either way.

    Raises:
        FileNotFoundError: no such file.
        AnnotationError: incomplete JSON, a missing table or field, a video id that occurs twice.
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
        warn_of(file, [message.removeprefix(f"{file}: ") for _, message in result.problems])
    return result


def _read_videos(rows: list[Any], result: YTVISFile) -> set[int]:
    """Fill ``videos``; returns the ids of those without a frame."""
    ids: set[int] = set()
    empty: set[int] = set()
    for number, row in enumerate(rows):
        where = f"{result.path}: videos[{number}]"
        if not isinstance(row, dict) or not whole(row.get("id")):
            raise AnnotationError(f"{where} must be an object with an integer id, got {row!r:.80}")
        identifier = row["id"]
        if identifier in ids:
            raise DuplicateError(f"{result.path}: video ids must be unique, got {identifier} twice")
        ids.add(identifier)
        width, height = checked_size(row, f"{result.path}: video {identifier}")
        files = row.get("file_names")
        if not isinstance(files, list) or not all(isinstance(name, str) and name for name in files):
            raise AnnotationError(
                f"{result.path}: video {identifier}: file_names must be a list of names, got {files!r:.80}"
            )
        for name in files:
            check_inside(name, f"{result.path}: video {identifier}: file_names")
        if not files:
            message = f"{result.path}: video {identifier} must have at least one frame, got 0; left out"
            result.problems.append(("empty_video", message))
            empty.add(identifier)
            continue
        length = row.get("length", len(files))
        if length != len(files):
            message = (
                f"{result.path}: video {identifier}: length must be the number of file_names, {len(files)}, "
                f"got {length!r}; file_names are used"
            )
            result.problems.append(("empty_video", message))
        folder = files[0].rpartition("/")[0].rpartition("/")[2] or f"video{identifier}"
        name = folder if folder not in result.videos else f"{folder}-{identifier}"
        result.videos[name] = Video(identifier, name, height, width, files)
    return empty


def _read_annotations(rows: list[Any], left_out: set[int], result: YTVISFile) -> None:
    assert result.annotations is not None
    videos = {video.id: video for video in result.videos.values()}
    seen: set[int] = set()
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not whole(row.get("id")):
            raise AnnotationError(
                f"{result.path}: annotations[{number}] must be an object with an integer id, got {row!r:.80}"
            )
        identifier = row["id"]
        if identifier in seen:
            result.problems.append(("duplicate_id", f"{result.path}: annotation id {identifier} occurs more than once"))
        seen.add(identifier)
        # Ids may be of any JSON type; those that are no numbers are in no table.
        video_id, category_id = (v if whole(v := row.get(key)) else -1 for key in ("video_id", "category_id"))
        if video_id in left_out:
            continue
        video, label = videos.get(video_id), result.classes.index_of.get(category_id)
        if video is None:
            track: TrackTruth | str = f"video id {row.get('video_id')!r} not in videos"
        elif label is None:
            track = f"category id {row.get('category_id')!r} not in categories"
        else:
            track = _track(row, video, label)
        if isinstance(track, str) or video is None:
            result.problems.append(("bad_annotation", f"{result.path}: annotation {identifier} left out: {track}"))
        else:
            result.annotations.setdefault(video.id, []).append(track)


def _track(row: dict[str, Any], video: Video, label: int) -> TrackTruth | str:
    """An object, or why it cannot be used."""
    segmentations = row.get("segmentations")
    if not isinstance(segmentations, list):
        return f"segmentations must be a list with an entry a frame, got {segmentations!r:.40}"
    if len(segmentations) != len(video.files):
        return f"segmentations must be one a frame ({len(video.files)}), got {len(segmentations)}"
    outlines: list[Any] = []
    for frame, segmentation in enumerate(segmentations):
        reason = fault(segmentation, video.width, video.height) if segmentation else None
        if reason is not None and reason not in HIDDEN:
            return f"frame {frame}: {reason}"
        outlines.append(None if not segmentation else [] if reason else _compact(segmentation))
    areas = row.get("areas")
    if not isinstance(areas, list) or len(areas) != len(outlines):
        areas = []
    areas = [float(area) if isinstance(area, (int, float)) and area > 0 else None for area in areas]
    return TrackTruth(row["id"], label, outlines, bool(row.get("iscrowd", 0)), areas)


def _compact(segmentation: Any) -> Any:
    """Run lengths as a compressed string: lists of numbers take many times the memory, and YouTube-VIS is full of
    them."""
    if not isinstance(segmentation, dict) or isinstance(segmentation["counts"], str):
        return segmentation
    from pycocotools import mask as coco_mask

    packed = coco_mask.frPyObjects(segmentation, *segmentation["size"])
    return {"size": segmentation["size"], "counts": packed["counts"].decode("ascii")}
