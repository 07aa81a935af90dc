"""Predictors of systems whose classes are fixed: of images, and of the objects of videos."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fssops.evaluation.results import main_task
from fssops.image_predictor import ImageLike, ImagePredictor, called, rgb_array
from fssops.segmentations import (
    PanopticSegmentation,
    Segmentation,
    SemanticSegmentation,
    UniversalSegmentation,
    VideoSegmentation,
)
from fssops.structures import InstanceResult, PanopticResult, SegmentationResult
from fssops.tasks.video import encoded
from fssops.tasks.video_files import VideoInput, find_videos
from fssops.truth import Classes

if TYPE_CHECKING:
    from fssops.tasks.universal import UniversalTask
    from fssops.tasks.video import VideoTask

Array = np.ndarray[Any, Any]


class UniversalPredictor(ImagePredictor[UniversalSegmentation]):
    """Segments images into the classes of a model.

    Args:
        task: says how images enter the model, and what it is asked for.
        model: on its device, in evaluation mode.
        label: what it is called.
        size: shorter side at which images enter, instead of the settings'; 0 keeps theirs.

    Attributes:
        categories: classes of the model.
        classes: their names by index.
        tasks: what results hold, "semantic", "instance" or "panoptic" each: what the model was trained for, or as set.

    Raises:
        SettingsError: the model has no classes.
    """

    def __init__(self, task: UniversalTask, model: nn.Module, label: str, size: int | None = None) -> None:
        self.task, self.model, self.label = task, model, label
        self.categories = task.classes()
        self.classes = tuple(self.categories.names)
        self.tasks: Sequence[str] = task.model_tasks
        self._prepare = task.preparation(size)

    def _found_in(self, image: ImageLike, where: str, origin: str) -> UniversalSegmentation:
        picture = rgb_array(image, where)
        result = self.task.segment_item(self.model, self._prepare(picture, origin), self.tasks)
        return universal_segmentation(picture, result, self.categories, origin)


def universal_segmentation(
    image: Array, result: SegmentationResult, categories: Classes, origin: str
) -> UniversalSegmentation:
    """What a model's result of an image [H, W, 3] says, on the CPU; instances without a pixel are left out."""
    common: dict[str, Any] = {"image": image, "categories": categories, "origin": origin}
    parts: dict[str, Segmentation] = {}
    if result.semantic is not None:
        label_map = result.semantic.label_map.cpu().numpy()
        labels = np.unique(label_map)
        masks = label_map == labels[:, None, None]
        parts["semantic"] = SemanticSegmentation(**common, labels=labels, masks=masks, scores=None, label_map=label_map)
    if result.instance is not None:
        parts["instance"] = Segmentation(**common, **_instances(result.instance))
    if result.panoptic is not None:
        parts["panoptic"] = PanopticSegmentation(**common, **_segments(result.panoptic))
    main = parts[main_task(list(parts))]
    return UniversalSegmentation(
        **common,
        labels=main.labels,
        masks=main.masks,
        scores=main.scores,
        **parts,  # type: ignore[arg-type]
    )


def _instances(result: InstanceResult) -> dict[str, Any]:
    masks = result.masks.cpu().numpy()
    seen = masks.any(axis=(1, 2))
    scores = result.scores.float().cpu().numpy()
    return {"labels": result.labels.cpu().numpy()[seen], "masks": masks[seen], "scores": scores[seen]}


def _segments(result: PanopticResult) -> dict[str, Any]:
    ids, segments = result.segment_ids.cpu().numpy(), result.segments
    numbers = np.array([segment.id for segment in segments], dtype=ids.dtype)
    return {
        "labels": np.array([segment.label for segment in segments], dtype=np.int64),
        "masks": ids == numbers[:, None, None],
        "scores": np.array([segment.score for segment in segments], dtype=np.float32),
        "segment_ids": ids,
        "segments": segments,
    }


@dataclass
class _HeldVideo:
    """Frames that Python holds, as a :class:`fssops.tasks.video_files.VideoInput`."""

    pictures: list[Array]
    origin: str = "frames of this call"
    unreadable: dict[int, str] = field(default_factory=dict)

    def frames(self) -> Iterator[tuple[int, Array]]:
        return iter(enumerate(self.pictures))


class VideoPredictor:
    """Follows the objects of a model's classes through videos.

    Args:
        task: says how frames enter the model, and how many are held at once.
        model: on its device, in evaluation mode.
        label: what it is called.
        size: shorter side at which frames enter, instead of the settings'; 0 keeps theirs.

    Attributes:
        categories: classes of the model.
        classes: their names by index.

    Raises:
        SettingsError: the model has no classes.
    """

    def __init__(self, task: VideoTask, model: nn.Module, label: str, size: int | None = None) -> None:
        self.task, self.model, self.label = task, model, label
        self.categories = task.classes()
        self.classes = tuple(self.categories.names)
        self._prepare = task.preparation(size)

    @overload
    def __call__(
        self, source: Array | Tensor | list[ImageLike] | tuple[ImageLike, ...] | Iterator[ImageLike]
    ) -> VideoSegmentation: ...

    @overload
    def __call__(self, source: str | os.PathLike[str]) -> Any: ...

    def __call__(self, source: Any) -> Any:
        """Segment a video.

        Args:
            source: a video file, a folder of frames, an array [T, H, W, 3] or a tensor [T, 3, H, W], or a list or an
                iterator of the frames in order, each a picture as :meth:`fssops.FewShotPredictor.segment` takes it;
                its frames are kept. Also a folder of several videos or folders of frames.

        Returns:
            the result of the video; of several an iterator, which segments the next one when it is asked for it.

        Raises:
            FileNotFoundError: there is nothing of the kind.
            SettingsError: a video file and no decoder (extra fssops[video]); a camera.
            ValueError, TypeError: no frame can be read, frames differ in size, or are of another form.
        """
        where = type(self).__name__
        if isinstance(source, (str, os.PathLike)):
            videos = find_videos([os.fspath(source)], where)
            return self.track(videos[0]) if len(videos) == 1 else map(self.track, videos)
        if isinstance(source, Image.Image) or not isinstance(source, (Iterable, Tensor)):
            raise TypeError(f"{where}: source must be a video or its frames, got {type(source).__name__}")
        frames = [rgb_array(one, f"{where}: frame {called(one, n)}") for n, one in enumerate(source)]
        return self.track(_HeldVideo(frames))

    @torch.inference_mode()
    def track(self, video: VideoInput | _HeldVideo) -> VideoSegmentation:
        """Segment a video that can be read more than once; its frames that cannot be read are left out and named.

        Raises:
            ValueError: no frame can be read, or frames differ in size.
        """
        first = next(video.frames(), None)
        if first is None:
            reason = next(iter(video.unreadable.values()), "no frame")
            raise ValueError(
                f"{video.origin}: video must have at least one frame that can be read, got none ({reason})"
            )
        size = (int(first[1].shape[0]), int(first[1].shape[1]))
        read: list[int] = []
        result: InstanceResult = self.model.track(  # type: ignore[operator]
            self._prepared(video, read, size), size, keep=encoded, window=self.task.window
        )
        length = max([*read, *video.unreadable]) + 1
        place = {frame: index for index, frame in enumerate(read)}
        return VideoSegmentation(
            categories=self.categories,
            labels=result.labels.cpu().numpy(),
            scores=result.scores.float().cpu().numpy(),
            tracks=[[mask[place[f]] if f in place else None for f in range(length)] for mask in result.masks],
            size=size,
            length=length,
            frames=video.frames,
            unreadable=video.unreadable,
            origin=video.origin,
        )

    def _prepared(self, video: VideoInput | _HeldVideo, read: list[int], size: tuple[int, int]) -> Iterator[Tensor]:
        """The frames as the model sees them; notes which they are."""
        for frame, image in video.frames():
            if image.shape[:2] != size:
                raise ValueError(
                    f"{video.origin}: frame {frame} must have the size of the first, {size[1]} x {size[0]}, got "
                    f"{image.shape[1]} x {image.shape[0]}"
                )
            read.append(frame)
            yield self._prepare(image, video.origin).image
