"""The dataclasses that cross layers; every shape is written here once.

Shape letters, used in the whole package: B batch, N ways, K shots, Q queries,
C channels, H W image size, h w feature size, L levels, P points, M heads,
D channels per head, S flattened tokens, T frames.

Label maps hold 0 for the background, 1..N for the ways of an episode (or the
class index of a universal system) and ``IGNORE`` where no truth is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from fssops.labels import IGNORE as IGNORE

_Batch = TypeVar("_Batch")


def move_to(batch: _Batch, device: torch.device | str, non_blocking: bool = False) -> _Batch:
    """Return a copy of a dataclass with every tensor on ``device``; lists of tensors are moved too."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=non_blocking)
        if isinstance(value, list):
            return [moved(item) for item in value]
        if hasattr(value, "__dataclass_fields__"):
            return move_to(value, device, non_blocking)
        return value

    changes = {f.name: moved(getattr(batch, f.name)) for f in fields(batch)}  # type: ignore[arg-type]
    return replace(batch, **changes)  # type: ignore[type-var]


class NonFiniteOutputError(ValueError):
    """A model's output is no number, so that whatever would be made of it is wrong."""


def require_numbers(values: Tensor, where: str) -> Tensor:
    """Return a model's outputs as they are.

    Args:
        values: of any shape; infinity is an answer, NaN is none.
        where: what errors call the model and its input.

    Raises:
        NonFiniteOutputError: a value is NaN.
    """
    if bool(values.isnan().any()):
        raise NonFiniteOutputError(
            f"{where}: outputs must be numbers, got NaN; damaged weights or a precision that overflows: try 32 bits"
        )
    return values


@dataclass
class StepShare:
    """Which part of an optimiser step a batch is, so that means are taken over the step and not over the part.

    A step may be cut into micro-batches and over processes. A term that is a mean over pixels or objects divides by
    ``divisor``; the mean of the parts' losses is then the loss of the whole batch, whatever lies in which part.

    Attributes:
        totals: what the model's ``loss_counts`` add up to over all parts, by name.
        parts: number of micro-batches of the step, over all processes.
    """

    totals: dict[str, float]
    parts: int

    def divisor(self, name: str, least: float = 1.0) -> float:
        """The mean count of a part; the total is taken as ``least`` where it is smaller."""
        return max(self.totals[name], least) / self.parts


@dataclass
class Episode:
    """One few-shot task: N ways, K support images a way, Q query images, all of one size.

    Attributes:
        support_images: [N, K, 3, H, W] float32, normalised as the model expects.
        support_foreground: [N, K, H, W] float32 in [0, 1]; 1 where the pixel belongs to the way.
        support_background: [N, K, H, W] float32 in [0, 1]; 1 where the pixel is background. A pixel may be
            neither (another way of the episode, the doubtful part of a box or scribble).
        query_images: [Q, 3, H, W] float32.
        query_labels: [Q, H, W] int64; 0 background, n = way n (1-based), ``IGNORE``.
        classes: [N] int64, ids of the data set's classes, in the order of the ways.
        support_names: N lists of K image names; for reports and reproducibility.
        query_names: Q image names.
        index: position of the episode in its list.
        query_base_labels: [Q, H, W] int64 or None: 0 background and novel classes, 1..C the fold's base classes,
            ``IGNORE``; for systems with a base learner.
        base_channels: [N] int64 or None: index among the fold's base classes, from 1, of each way; 0 for a novel class.
    """

    support_images: Tensor
    support_foreground: Tensor
    support_background: Tensor
    query_images: Tensor
    query_labels: Tensor
    classes: Tensor
    support_names: list[list[str]] = field(default_factory=list)
    query_names: list[str] = field(default_factory=list)
    index: int = 0
    query_base_labels: Tensor | None = None
    base_channels: Tensor | None = None


@dataclass
class FewShotBatch:
    """B episodes of equal N, K, Q, H, W, stacked.

    Attributes: those of :class:`Episode` with a leading B; the name lists are lists over B; ``share`` is set where the
    batch is a part of a step.
    """

    support_images: Tensor  # [B, N, K, 3, H, W]
    support_foreground: Tensor  # [B, N, K, H, W]
    support_background: Tensor  # [B, N, K, H, W]
    query_images: Tensor  # [B, Q, 3, H, W]
    query_labels: Tensor  # [B, Q, H, W]
    classes: Tensor  # [B, N]
    support_names: list[list[list[str]]] = field(default_factory=list)
    query_names: list[list[str]] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    query_base_labels: Tensor | None = None  # [B, Q, H, W]
    base_channels: Tensor | None = None  # [B, N]
    share: StepShare | None = None

    @staticmethod
    def stack(episodes: Sequence[Episode]) -> FewShotBatch:
        """Stack episodes of equal shapes; the collate function of few-shot loaders."""
        if not episodes:
            raise ValueError("FewShotBatch.stack: episodes must not be empty, got 0")
        return FewShotBatch(
            support_images=torch.stack([e.support_images for e in episodes]),
            support_foreground=torch.stack([e.support_foreground for e in episodes]),
            support_background=torch.stack([e.support_background for e in episodes]),
            query_images=torch.stack([e.query_images for e in episodes]),
            query_labels=torch.stack([e.query_labels for e in episodes]),
            classes=torch.stack([e.classes for e in episodes]),
            support_names=[e.support_names for e in episodes],
            query_names=[e.query_names for e in episodes],
            indices=[e.index for e in episodes],
            query_base_labels=_stack_where_given([e.query_base_labels for e in episodes]),
            base_channels=_stack_where_given([e.base_channels for e in episodes]),
        )


def _stack_where_given(values: Sequence[Tensor | None]) -> Tensor | None:
    given = [value for value in values if value is not None]
    return torch.stack(given) if given and len(given) == len(values) else None


def _joined(name: str, items: Sequence[_Batch]) -> _Batch:
    """One batch of several: tensors and lists one after the other, everything else as of the first."""
    if not items:
        raise ValueError(f"{name}.stack: items must not be empty, got 0")
    changes: dict[str, Any] = {}
    for option in fields(items[0]):  # type: ignore[arg-type]
        values = [getattr(item, option.name) for item in items]
        if isinstance(values[0], Tensor):
            changes[option.name] = torch.cat(values)
        elif isinstance(values[0], list):
            changes[option.name] = [entry for value in values for entry in value]
    return replace(items[0], **changes)  # type: ignore[type-var]


@dataclass
class LabelMapBatch:
    """B images of one size with the class of every pixel; what the base learner of few-shot systems trains on.

    Attributes:
        images: [B, 3, H, W] float32, normalised as the model expects.
        labels: [B, H, W] int64; 0 background, 1..C base classes in the order of the fold, ``IGNORE``.
        names: B image names; for reports.
        share: set where the batch is a part of a step.
    """

    images: Tensor
    labels: Tensor
    names: list[str] = field(default_factory=list)
    share: StepShare | None = None

    @staticmethod
    def stack(items: Sequence[LabelMapBatch]) -> LabelMapBatch:
        """Join batches of equal image size; the collate function of loaders whose items are batches of one."""
        return _joined("LabelMapBatch", items)


@dataclass
class ProposalBatch:
    """B images of one size with the regions that proposals should cover; what MM-Former's segmenter trains on.

    Attributes:
        images: [B, 3, H, W] float32, normalised as the model expects.
        labels: [B, H, W] int64; every distinct value, the background's 0 as well, is one region, ``IGNORE`` none.
            Pixels of novel classes hold ``IGNORE``.
        objects: [B, H, W] int64; 1 on one class of the image, 0 elsewhere, ``IGNORE``.
        names: B image names; for reports.
        seeds, share: as of :class:`ImageBatch`.
    """

    images: Tensor
    labels: Tensor
    objects: Tensor
    names: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    share: StepShare | None = None

    @staticmethod
    def stack(items: Sequence[ProposalBatch]) -> ProposalBatch:
        """Join batches of equal image size; the collate function of loaders whose items are batches of one."""
        return _joined("ProposalBatch", items)


@dataclass
class MaskTargets:
    """What one image (or clip) should be cut into: G objects or regions, each a class and a binary mask.

    Attributes:
        labels: [G] int64 class indices in 0..C-1; C itself ("no object") only where a system says so.
        masks: [G, H, W] bool at the size of the unpadded image; of a clip [G, T, H, W]. G may be 0.
        label_map: [H, W] integer class indices with the data set's ignore value, or None; what the per-pixel
            baselines train on.
        annotated: of a clip, [G, T] bool: frames in which the data set says something of the object, be it that
            nothing of it is seen there; None: all frames.
    """

    labels: Tensor
    masks: Tensor
    label_map: Tensor | None = None
    annotated: Tensor | None = None


@dataclass
class ImageBatch:
    """B images, or B clips of T frames each, of any sizes, as they leave the data pipeline.

    A model normalises and pads them itself.

    Attributes:
        images: B tensors [3, H_b, W_b], of clips [T, 3, H_b, W_b] with the same T for all; RGB, values 0..255, uint8 or
            float32.
        targets: B targets, or None where nothing is trained.
        output_sizes: B pairs (height, width) that results are resized to; None keeps each item's own size.
        names: B names; for reports.
        seeds: B seeds of what training draws for an item (points of the losses), so that they do not depend on which
            items share its batch; empty draws from the device's default generator.
        share: set where the batch is a part of a step.
    """

    images: list[Tensor]
    targets: list[MaskTargets] | None = None
    output_sizes: list[tuple[int, int]] | None = None
    names: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    share: StepShare | None = None

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of every item before padding."""
        return [(int(image.shape[-2]), int(image.shape[-1])) for image in self.images]

    @property
    def result_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of every item's results.

        Raises:
            ValueError: sizes are given, but not one an item.
        """
        if self.output_sizes is not None and len(self.output_sizes) != len(self.images):
            raise ValueError(
                f"batch.output_sizes must be one an item ({len(self.images)}), got {len(self.output_sizes)}"
            )
        return self.sizes if self.output_sizes is None else self.output_sizes


@dataclass
class MaskPredictions:
    """What a query-based model says of a batch, with masks left in their factored form.

    The mask logits of a query are the inner products of its mask embedding with the mask features; whoever
    needs them forms those it needs (:meth:`mask_logits`).

    Attributes:
        class_logits: [heads, B, Q, C + 1]; index C is "no object". The final head stands last; the auxiliary
            heads, in order of their layers, before it.
        mask_embeddings: [heads, B, Q, E].
        mask_features: [B, T, E, h, w]; T = 1 for images.
        padded_size: (height, width) of the padded images that [h, w] covers.
    """

    class_logits: Tensor
    mask_embeddings: Tensor
    mask_features: Tensor
    padded_size: tuple[int, int]

    def mask_logits(self, image: int, head: int = -1, queries: Tensor | None = None) -> Tensor:
        """Mask logits [Q or len(queries), T, h, w] of one image and head, for all queries or those listed."""
        embeddings = self.mask_embeddings[head, image]
        if queries is not None:
            embeddings = embeddings[queries]
        features = self.mask_features[image]  # [T, E, h, w]
        logits = embeddings.to(features.dtype) @ features.transpose(0, 1).reshape(features.shape[1], -1)
        return logits.reshape(len(embeddings), features.shape[0], *features.shape[-2:])


@dataclass
class SemanticResult:
    """Semantic segmentation of one image.

    Attributes:
        scores: [C, H, W] float32, larger is likelier: sums of probabilities, not normalised over the classes, of
            universal systems; logits of the per-pixel baselines.
    """

    scores: Tensor

    @property
    def label_map(self) -> Tensor:
        """[H, W] int64, the class with the highest score."""
        return self.scores.argmax(0)


@dataclass
class InstanceResult:
    """Instances of one image or video, best first; each keeps its place in all frames.

    Attributes:
        scores: [K] float32 in [0, 1].
        labels: [K] int64.
        masks: [K, H, W] bool. Of a video K lists of T entries: a bool [H, W], or what the caller had made of it; None
            where the object is not in sight.
    """

    scores: Tensor
    labels: Tensor
    masks: Any


@dataclass
class PanopticSegment:
    """One segment of a panoptic map.

    Attributes:
        id: its value in the map, from 1.
        label: class index.
        is_thing: whether the class is countable.
        score: class probability of the query it came from; of merged stuff, that of the first.
    """

    id: int
    label: int
    is_thing: bool
    score: float


@dataclass
class PanopticResult:
    """Panoptic segmentation of one image.

    Attributes:
        segment_ids: [H, W] int32; 0 where nothing was assigned.
        segments: one entry an id in the map.
    """

    segment_ids: Tensor
    segments: list[PanopticSegment]


@dataclass
class LayerOutputs:
    """What the layers of a masked-attention decoder say of one image, and what a matching makes of each.

    Attributes:
        predictions: of all heads, of a batch of this image alone.
        matches: of each head, matched queries [n] and their targets [n].
        size: (height, width) of the image without padding.
    """

    predictions: MaskPredictions
    matches: list[tuple[Tensor, Tensor]]
    size: tuple[int, int]


@dataclass
class SegmentationResult:
    """The results asked for of one image or video; those not asked for are None.

    Attributes:
        layers: what the measures of the decoder's layers are formed from.
        general: [H, W] int64 classes by assigning each pixel to one query, -1 where no query names a class.
    """

    semantic: SemanticResult | None = None
    instance: InstanceResult | None = None
    panoptic: PanopticResult | None = None
    layers: LayerOutputs | None = None
    general: Tensor | None = None
