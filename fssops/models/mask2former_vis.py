"""Mask2Former for video: the image system with one more axis; a query is one object in all frames of a clip.

Frames pass backbone and pixel decoder one by one; the transformer decoder attends to the tokens of all frames at once,
with the frame in their position, and predicts one class and one mask through space and time. Parameters, names and
shapes are those of the image system, so an image checkpoint fits as it is.

Where the published code departs from what it means to do, ``behaviour`` chooses:

=====================================  ==========================================  ==================================
                                       sound (default)                             published
=====================================  ==========================================  ==================================
object that is not annotated in the    its class                                   "no object": its mask is trained,
last frame of the clip                                                             its class is trained away
=====================================  ==========================================  ==================================

Sources: Cheng et al., "Mask2Former for video instance segmentation", 2021, and folder mask2former_video of
facebookresearch/Mask2Former. Videos that do not fit in memory: :mod:`fssops.models.clip_joining`, not published there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal

import torch
from torch import Tensor

from fssops.models.checks import Count, Natural
from fssops.models.clip_joining import ClipJoiner
from fssops.models.mask2former import Mask2Former, Mask2FormerConfig
from fssops.models.pixel_decoders.features import PixelFeatures
from fssops.models.universal import postprocessing
from fssops.structures import (
    ImageBatch,
    InstanceResult,
    MaskPredictions,
    MaskTargets,
    SegmentationResult,
    require_numbers,
)

Keep = Callable[[Tensor], Sequence[Any]]
"""Makes what is stored of the bool masks [n, H, W] of a frame: n things, e.g. run lengths."""


@dataclass(frozen=True)
class Mask2FormerVISConfig(Mask2FormerConfig):
    """Options of :class:`Mask2FormerVIS`; the defaults are YouTube-VIS'.

    Attributes:
        num_classes: C, without "no object".
        tasks: always instances.
        detections: objects a video, published 10 whatever the data set's limit.
        behaviour: "sound" or "published", see the module's table.
        encode_frames: in inference, frames that pass backbone and pixel decoder together; the result does not depend
            on it.
        window: in inference, frames that the decoder sees, and whose features are held, at once; longer videos are
            cut into such clips, whose objects are matched. 0: the whole video, as published.
        overlap: frames that neighbouring clips share.
    """

    num_classes: Count = 40
    tasks: tuple[Literal["instance"]] = ("instance",)
    detections: Count = 10
    behaviour: Literal["sound", "published"] = "sound"
    encode_frames: Count = 4
    window: Natural = 0
    overlap: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window and not 0 <= self.overlap < self.window:
            raise ValueError(
                "Mask2FormerVISConfig: window must be 0 or overlap in 0..window - 1, got window "
                f"{self.window}, overlap {self.overlap}"
            )


class Mask2FormerVIS(Mask2Former):
    """Backbone and pixel decoder a frame, masked-attention decoder over the frames of a clip.

    Args:
        config: options.
    """

    name = "mask2former_vis"
    config: Mask2FormerVISConfig

    def __init__(self, config: Mask2FormerVISConfig) -> None:
        super().__init__(config)
        self.criterion.allow_no_object_targets = config.behaviour == "published"
        self.transformer_decoder.clips = True  # the frame is encoded in the positions of the memory

    def predict_batch(self, batch: ImageBatch, *, auxiliary: bool) -> MaskPredictions:
        """Predictions of a batch of clips.

        One assignment a clip: the matcher compares masks at points that all frames share. In the mask losses every
        frame of a matched mask is a mask with points of its own; their sum is divided by the number of objects, so
        they grow with the number of frames, as published. Frames without the object have an empty mask and count.
        """
        frames = self._clip_length(batch.images)
        images, padding = self.input_of(list(chain.from_iterable(batch.images)))
        return self.predict(images, padding, auxiliary=auxiliary, frames=frames)

    @staticmethod
    def _clip_length(clips: Sequence[Tensor]) -> int:
        for index, clip in enumerate(clips):
            if clip.dim() != 4 or clip.shape[1] != 3 or 0 in clip.shape:
                raise ValueError(f"Mask2FormerVIS: images[{index}] must be [T, 3, H, W], got {list(clip.shape)}")
        lengths = [len(clip) for clip in clips]
        if len(set(lengths)) != 1:
            raise ValueError(f"Mask2FormerVIS: images must be clips of one length, got lengths {lengths}")
        return lengths[0]

    def trained_target(self, target: MaskTargets) -> MaskTargets:
        """The target with the labels that are trained; published: "no object" where the last frame is not annotated.

        Raises:
            ValueError: ``annotated`` is not an entry an object and frame.
        """
        if self.config.behaviour == "sound" or target.annotated is None:
            return target
        if target.annotated.shape != target.masks.shape[:2]:
            raise ValueError(
                f"Mask2FormerVIS: annotated must be [G, T] as the masks are, {list(target.masks.shape[:2])}, got"
                f" {list(target.annotated.shape)}"
            )
        labels = target.labels.masked_fill(~target.annotated[:, -1], self.config.num_classes)
        return MaskTargets(labels, target.masks)

    # -- inference --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def segment(  # type: ignore[override]  # instances are all there is
        self, batch: ImageBatch
    ) -> list[SegmentationResult]:
        """Instances of videos, each a clip of the batch, of any lengths; results have ``batch.output_sizes``."""
        videos = zip(batch.images, batch.result_sizes, strict=True)
        return [SegmentationResult(instance=self.track(clip, size)) for clip, size in videos]

    @torch.no_grad()
    def track(
        self,
        frames: Iterable[Tensor],
        output_size: tuple[int, int] | None = None,
        *,
        keep: Keep = list,
        window: int | None = None,
    ) -> InstanceResult:
        """The objects of one video.

        Frames are taken from the iterable as they are needed. With a window the features of at most that many frames
        are held (and ``encode_frames`` frames on their way through the backbone), however long the video is; what
        remains of the others is what ``keep`` makes of their masks.

        Args:
            frames: [3, H, W] each, RGB, 0..255, all of one size; at least one.
            output_size: (height, width) of the masks; None: that of the frames.
            keep: applied to the bool masks [n, H, W] of every frame; by default they are kept themselves.
            window: instead of the configuration's.

        Raises:
            ValueError: no frame, frames of different sizes, or a window that the frames shared by two clips fill.
        """
        window = self.config.window if window is None else window
        if window < 0 or 0 < window <= self.config.overlap:
            raise ValueError(
                f"Mask2FormerVIS.track: window must be 0 or more than overlap ({self.config.overlap}), got {window}"
            )
        source = _of_one_size(frames)
        held: deque[PixelFeatures] = deque(maxlen=window or None)
        joiner = ClipJoiner(self.config.detections)
        padded = true = (0, 0)
        pending = next(source, None)
        if pending is None:
            raise ValueError("Mask2FormerVIS.track: frames must be at least one, got 0")
        while pending is not None:
            # The first clip fills the window; later ones replace all but the shared frames of the one before.
            room = 0 if not window else window - min(len(held), self.config.overlap)
            coming = chain((pending,), source if not room else islice(source, room - 1))
            new = 0
            while chunk := list(islice(coming, self.config.encode_frames)):
                true = (int(chunk[0].shape[-2]), int(chunk[0].shape[-1]))
                encoded, padded = self._encoded(chunk)
                held.extend(encoded)
                new += len(chunk)
            pending = next(source, None)
            sizes = padded, true, output_size or true
            only = pending is None and joiner.clips == 0
            self._decode_clip(_stacked(held, release=pending is None), new, sizes, joiner, keep, only=only)
        return joiner.result()

    def _encoded(self, chunk: Sequence[Tensor]) -> tuple[list[PixelFeatures], tuple[int, int]]:
        """Features of frames, one by one (their batches would keep each other alive), and the padded size."""
        device = self.image_input.mean.device
        images, padding = self.input_of([frame.to(device) for frame in chunk])
        features = self.encode(images, padding)
        parts = zip(features.mask_features, *features.memory, strict=True)
        single = [
            PixelFeatures(mask.clone()[None], [tokens.clone()[None] for tokens in memory], features.sizes)
            for mask, *memory in parts
        ]
        return single, (int(images.shape[2]), int(images.shape[3]))

    def _decode_clip(
        self,
        features: PixelFeatures,
        new: int,
        sizes: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
        joiner: ClipJoiner,
        keep: Keep,
        *,
        only: bool,
    ) -> None:
        """Decode a clip whose last ``new`` frames were in none before, and join what it says to the others."""
        padded, true, output = sizes
        frames = len(features.mask_features)
        padding = self._padding(padded, true, frames) if self.config.mask_padding else None
        memory = self.memory_of(features, padding, frames)
        features.memory.clear()  # keys and values have taken its place
        decoded = self.transformer_decoder(memory, auxiliary=False)
        class_logits, embeddings = decoded.class_logits[-1, 0].float(), decoded.mask_embeddings[-1, 0].float()
        require_numbers(class_logits, "Mask2FormerVIS.track")
        with torch.autocast(class_logits.device.type, enabled=False):
            mask_features = features.mask_features.float()
            tracks = joiner.add(class_logits, embeddings, mask_features[: frames - new], only=only)
            queries = joiner.queries_of(tracks)
            for frame in mask_features[frames - new :]:
                logits = (embeddings[queries] @ frame.flatten(1)).unflatten(1, frame.shape[1:])
                full = postprocessing.crop_and_resize(postprocessing.resize(logits, padded), true, output)
                joiner.keep_frame(tracks, keep(full > 0) if len(full) else [])

    def _padding(self, padded: tuple[int, int], true: tuple[int, int], frames: int) -> Tensor:
        padding = torch.ones((frames, *padded), dtype=torch.bool, device=self.image_input.mean.device)
        padding[:, : true[0], : true[1]] = False
        return padding


def _stacked(held: Sequence[PixelFeatures], *, release: bool) -> PixelFeatures:
    """Features of frames as one batch; with ``release`` they are let go of, part by part, as they are joined."""
    mask_features = torch.cat([frame.mask_features for frame in held])
    if release:
        for frame in held:
            frame.mask_features = mask_features[:0]
    memory = []
    for level in range(len(held[0].sizes)):
        memory.append(torch.cat([frame.memory[level] for frame in held]))
        if release:
            for frame in held:
                frame.memory[level] = memory[-1][:0]
    return PixelFeatures(mask_features, memory, held[0].sizes)


def _of_one_size(frames: Iterable[Tensor]) -> Iterator[Tensor]:
    """The frames, checked as they pass.

    Raises:
        ValueError: one is not [3, H, W], or of another size than the first.
    """
    first: tuple[int, ...] = ()
    for index, frame in enumerate(frames):
        shape = tuple(frame.shape)
        if len(shape) != 3 or shape[0] != 3 or 0 in shape:
            raise ValueError(f"Mask2FormerVIS.track: frame {index} must be [3, H, W], got {list(shape)}")
        first = first or shape
        if shape != first:
            raise ValueError(
                f"Mask2FormerVIS.track: frame {index} must have the size of the first, {list(first[1:])},"
                f" got {list(shape[1:])}"
            )
        yield frame
