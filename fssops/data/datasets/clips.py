"""Clips of videos: a few frames, augmented alike, with the objects they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fssops.data.augmentation.scene import Outline, Scene, Transform
from fssops.data.datasets.seeded_items import SeededItems
from fssops.data.datasets.universal import target_of, to_tensor
from fssops.data.source import VideoSource
from fssops.structures import ImageBatch, MaskTargets
from fssops.truth import TrackTruth


@dataclass
class ClipItem:
    """One clip with its targets, before batching.

    Attributes:
        clip: [T, 3, H, W] uint8 RGB.
        target: masks [G, T, H, W].
        name: of the video, with the frames' numbers.
    """

    clip: Tensor
    target: MaskTargets
    name: str

    @staticmethod
    def stack(items: Sequence[ClipItem]) -> ImageBatch:
        """Collect items; clips keep their sizes."""
        return ImageBatch(
            [item.clip for item in items], [item.target for item in items], names=[item.name for item in items]
        )


def sampled_frames(total: int, count: int, reach: int, rng: np.random.Generator) -> list[int]:
    """Draw the frames of a clip as Mask2Former for video does, in temporal order.

    One frame is drawn evenly from the video; the others, with replacement, from the frames at most ``reach`` before or
    behind it, itself left out. A video of one frame gives that frame ``count`` times (the published code fails there).

    Args:
        total: frames of the video, at least 1.
        count: frames of the clip, at least 1.
        reach: greatest distance from the first drawn.
        rng: where random choices come from.

    Raises:
        ValueError: a number is too small.

    Source: facebookresearch/Mask2Former, YTVISDatasetMapper.
    """
    for name, value, least in (("total", total, 1), ("count", count, 1), ("reach", reach, 1)):
        if value < least:
            raise ValueError(f"sampled_frames: {name} must be at least {least}, got {value}")
    first = int(rng.integers(total))
    near = [index for index in range(max(0, first - reach), min(total, first + reach + 1)) if index != first] or [first]
    others = rng.choice(near, count - 1) if count > 1 else np.empty(0, dtype=np.int64)
    return sorted([first, *(int(index) for index in others)])


class TrainingClips(SeededItems[ClipItem]):
    """Clips of a few frames, every frame augmented with the same random numbers.

    An object that no frame of the clip shows is left out; one that some frames show has an empty mask in the others.

    Args:
        source: videos with truth.
        augmentation: see :func:`fssops.data.augmentation.chains.universal_chain`; it must draw the same numbers for
            frames of the same size, as all of them do that do not look at the truth.
        frames: T, of a clip.
        reach: see :func:`sampled_frames`.

    Attributes:
        crowds: of each video, whether each object is a crowd region.

    Raises:
        ValueError: the source has no video, no truth, or no object to learn from.
    """

    def __init__(self, source: VideoSource, augmentation: Transform, *, frames: int = 2, reach: int = 20) -> None:
        if not source.names:
            raise ValueError(f"{source.label}: there must be at least one video with a frame, got none")
        if not source.has_truth:
            source.tracks(source.names[0])  # raises, and names the file
        self.source, self.augmentation, self.length, self.reach = source, augmentation, frames, reach
        self.names = source.names
        self.crowds = [[track.crowd for track in source.tracks(name)] for name in source.names]
        if all(map(all, self.crowds)):
            raise ValueError(
                f"{source.label}: there must be at least one object to learn from, got {len(source.names)} videos "
                "without one (crowd regions, iscrowd 1, are none: some exporters mark every object so)"
            )

    def item(self, index: int, rng: np.random.Generator) -> ClipItem:
        name = self.names[index]
        frames = sampled_frames(self.source.frames(name), self.length, self.reach, rng)
        seed = int(rng.integers(1 << 62))
        tracks = self.source.tracks(name)
        # A generator of the same seed for every frame: one clip, one augmentation.
        scenes = [self._scene(name, frame, tracks, np.random.default_rng(seed)) for frame in frames]
        masks = torch.zeros(len(tracks), len(frames), *scenes[0].size, dtype=torch.bool)
        for position, scene in enumerate(scenes):
            target = target_of(scene, "instance")
            masks[target.labels, position] = target.masks
        annotated = [[track.segmentations[frame] is not None for frame in frames] for track in tracks]
        shown = [k for k, track in enumerate(tracks) if masks[k].any() and not track.crowd]
        target = MaskTargets(
            torch.tensor([tracks[k].label for k in shown], dtype=torch.int64),
            masks[shown],
            annotated=torch.tensor(annotated, dtype=torch.bool).view(len(tracks), len(frames))[shown],
        )
        clip = torch.stack([to_tensor(scene.image) for scene in scenes])
        return ClipItem(clip, target, f"{name} {','.join(map(str, frames))}")

    def _scene(self, name: str, frame: int, tracks: Sequence[TrackTruth], rng: np.random.Generator) -> Scene:
        """An augmented frame; the labels of its outlines are the numbers of their tracks."""
        image = np.asarray(self.source.frame(name, frame))
        outlines = [_outline(track, frame, image.shape[0], image.shape[1]) for track in tracks]
        numbers = [number for number, outline in enumerate(outlines) if outline is not None]
        scene = Scene(image, outlines=[outline for outline in outlines if outline is not None], labels=numbers)
        return self.augmentation(scene, rng)


def _outline(track: TrackTruth, frame: int, height: int, width: int) -> Outline | None:
    """Polygons stay polygons through augmentation, as published; run lengths become masks."""
    segmentation = track.segmentations[frame]
    if isinstance(segmentation, list) and segmentation:
        return [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]
    return track.mask(frame, height, width)
