"""Options that the universal systems share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from fssops.models.backbones.build import check_backbone
from fssops.models.checks import Count, Natural, Positive, Rate, Share, check_options, check_width
from fssops.models.layers.convolution import Norm
from fssops.models.pixel_decoders.features import STRIDES

Task = Literal["semantic", "instance", "panoptic", "general"]
TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True)
class UniversalConfig:
    """Options that the universal systems share.

    Attributes:
        backbone: any with maps at strides 4, 8, 16 and 32 or of one scale, of :mod:`fssops.models.backbones.build`.
        backbone_norm: normalisation of a ResNet backbone: "frozen" (published), "sync" or "batch".
        drop_path: of a Swin or vision transformer backbone.
        num_classes: C, without "no object".
        things: classes with countable objects; panoptic segmentation keeps their segments apart, and instance
            segmentation beside panoptic returns only them. None: every class.
        num_queries: Q.
        channels: width of pixel decoder and queries.
        mask_channels: E, of mask embeddings and mask features.
        heads: attention heads.
        size_divisor: images of a batch are padded to a common multiple of this; 0 or 1: to the largest.
        mask_padding: keep attention away from padding. The published systems attend to it (False).
        no_object_weight: weight of "no object" in the class loss; with 0 that of an image without objects were 0 / 0.
        tasks: what :meth:`UniversalModel.segment` returns: "semantic", "instance", "panoptic", "general".
        object_threshold: least class probability of a panoptic segment.
        overlap_threshold: least share of its own mask that a panoptic segment must win.
        detections: instances an image.
        resize_before_inference: resize mask logits before class and mask probabilities are combined, also where only
            semantic maps are asked for, which are otherwise combined first and resized then.
    """

    backbone: str = "resnet50"
    backbone_norm: Norm = "frozen"
    drop_path: Rate = 0.3
    num_classes: Count = 133
    things: tuple[int, ...] | None = None
    num_queries: Count = 100
    channels: Count = 256
    mask_channels: Count = 256
    heads: Count = 8
    size_divisor: Natural = 32
    mask_padding: bool = False
    no_object_weight: Positive = 0.1
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)] = ("semantic",)
    object_threshold: Share = 0.8
    overlap_threshold: Share = 0.8
    detections: Count = 100
    resize_before_inference: bool = False

    def __post_init__(self) -> None:
        check_options(self)
        check_backbone(self, *STRIDES)
        check_width(self)
        if self.things is not None and any(not 0 <= c < self.num_classes for c in self.things):
            raise ValueError(
                f"{type(self).__name__}: things must be classes in 0..{self.num_classes - 1}, got {self.things}"
            )

    trains_on_label_maps: ClassVar[bool] = False
    """Whether training targets must come with a label map."""
    measurable_layers: ClassVar[int] = 0
    """Number of decoder layers that attend inside the masks of those before, whose course can be measured."""

    @property
    def possible_tasks(self) -> tuple[Task, ...]:
        """What a trained model can be asked for: panoptic systems for all, others for what they were trained for."""
        if "panoptic" in self.tasks:
            return ("semantic", "instance", "panoptic")
        return tuple(task for task in self.tasks if task != "general")

    @property
    def thing_classes(self) -> frozenset[int]:
        """The countable classes."""
        return frozenset(range(self.num_classes) if self.things is None else self.things)
