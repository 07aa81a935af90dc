"""Video sources as data sets: augmented clips with tracks for training, frames one after another for testing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fssops.data.universal.dataset import evaluation_item, to_tensor
from fssops.data.universal.geometry import Augmentation, Outline, Scene
from fssops.data.video.sampling import sampled_frames
from fssops.data.video.source import VideoSource
from fssops.structures import ImageBatch, MaskTargets
from fssops.truth import TrackTruth, draw


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


class TrainingClips(Dataset[ClipItem]):
    """Clips of a few frames, every frame augmented with the same random numbers.

    An object that no frame of the clip shows is left out; one that some frames show has an empty mask in the others.

    Args:
        source: videos with truth.
        augmentation: see :func:`fssops.data.universal.pipelines.pipeline`; it must draw the same numbers for frames of
            the same size, as all of them do that do not look at the truth.
        frames: T, of a clip.
        reach: see :func:`fssops.data.video.sampling.sampled_frames`.

    Raises:
        ValueError: the source has no video or no truth.
    """

    def __init__(self, source: VideoSource, augmentation: Augmentation, *, frames: int = 2, reach: int = 20) -> None:
        if not source.names:
            raise ValueError(f"{source.label}: there must be at least one video with a frame, got none")
        if not source.has_truth:
            source.tracks(source.names[0])  # raises, and names the file
        self.source, self.augmentation, self.length, self.reach = source, augmentation, frames, reach

    def __len__(self) -> int:
        return len(self.source.names)

    def draw(self, index: int, generator: torch.Generator) -> ClipItem:
        """A clip of video ``index``; every random choice comes from ``generator``."""
        seed = int(torch.randint(0, 1 << 62, (), generator=generator))
        return self.item(index, np.random.default_rng(seed))

    def __getitem__(self, index: int) -> ClipItem:
        return self.item(index, np.random.default_rng(index))

    def item(self, index: int, rng: np.random.Generator) -> ClipItem:
        """A clip of video ``index`` with random choices from a NumPy generator."""
        name = self.source.names[index]
        chosen = sampled_frames(self.source.frames(name), self.length, self.reach, rng)
        seed = int(rng.integers(1 << 62))
        tracks = self.source.tracks(name)
        images: list[Tensor] = []
        masks: list[np.ndarray] = []
        for frame in chosen:
            # A generator of the same seed for every frame: one clip, one augmentation.
            image, drawn = self._frame(name, frame, tracks, np.random.default_rng(seed))
            images.append(to_tensor(image))
            masks.append(drawn)
        stacked = np.stack(masks, axis=1)  # [G, T, H, W]
        seen = stacked.any(axis=(1, 2, 3))
        annotated = np.array([[t.segmentations[frame] is not None for frame in chosen] for t in tracks], dtype=bool)
        kept = np.flatnonzero(seen & ~np.array([t.crowd for t in tracks], dtype=bool))
        target = MaskTargets(
            torch.tensor([tracks[k].label for k in kept], dtype=torch.int64),
            torch.from_numpy(np.ascontiguousarray(stacked[kept])),
            annotated=torch.from_numpy(annotated.reshape(len(tracks), len(chosen))[kept]),
        )
        return ClipItem(torch.stack(images), target, f"{name} {','.join(map(str, chosen))}")

    def _frame(
        self, name: str, frame: int, tracks: Sequence[TrackTruth], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """An augmented frame [H, W, 3], and the bool masks [G, H, W] of all tracks in it."""
        image = np.asarray(self.source.frame(name, frame))
        height, width = image.shape[:2]
        outlines: list[Outline] = []
        owners: list[int] = []
        for number, track in enumerate(tracks):
            outline = _outline(track, frame, height, width)
            if outline is not None:
                outlines.append(outline)
                owners.append(number)
        scene = self.augmentation(Scene(image, outlines=outlines, labels=owners), rng)
        masks = np.zeros((len(tracks), *scene.size), dtype=bool)
        for number, outline in zip(scene.labels, scene.outlines, strict=True):
            masks[number] = draw(outline, *scene.size)
        return scene.image, masks


def _outline(track: TrackTruth, frame: int, height: int, width: int) -> Outline | None:
    """Polygons stay polygons through augmentation, as published; run lengths become masks."""
    segmentation = track.segmentations[frame]
    if isinstance(segmentation, list) and segmentation:
        return [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]
    return track.mask(frame, height, width)


def seen_frames(source: VideoSource, name: str, short_side: int, longest: int) -> Iterator[Tensor]:
    """The frames of a video as a model sees them in testing, [3, H, W] uint8, read as they are asked for.

    Args:
        source: of the video.
        name: which.
        short_side: of the resized frames; 0 keeps their size.
        longest: limit for the other side.
    """
    for index in range(source.frames(name)):
        image = np.asarray(source.frame(name, index))
        yield evaluation_item(image, name, short_side, longest).image
