"""Options that MaskFormer and Mask2Former share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fssops.models.backbones.build import BackboneName
from fssops.models.checks import check_choices, check_least, check_share, check_width
from fssops.models.layers.convolution import Norm

Task = Literal["semantic", "instance", "panoptic", "general"]
TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True)
class UniversalConfig:
    """Options that the systems of this family share.

    Attributes:
        backbone: name of :func:`fssops.models.backbones.build.build_backbone`.
        backbone_norm: normalisation of a ResNet backbone: "frozen" (published), "sync" or "batch".
        drop_path: of a Swin backbone.
        num_classes: C, without "no object".
        things: classes with countable objects; panoptic segmentation keeps their segments apart, and instance
            segmentation beside panoptic returns only them. None: every class.
        num_queries: Q.
        channels: width of pixel decoder and queries.
        mask_channels: E, of mask embeddings and mask features.
        heads: attention heads.
        size_divisor: images of a batch are padded to a common multiple of this; 0 or 1: to the largest.
        mask_padding: keep attention away from padding. The published systems attend to it (False).
        no_object_weight: weight of "no object" in the class loss.
        tasks: what :meth:`UniversalModel.segment` returns: "semantic", "instance", "panoptic", "general".
        object_threshold: least class probability of a panoptic segment.
        overlap_threshold: least share of its own mask that a panoptic segment must win.
        detections: instances an image.
        resize_before_inference: resize mask logits before class and mask probabilities are combined, also where only
            semantic maps are asked for, which are otherwise combined first and resized then.
    """

    backbone: BackboneName = "resnet50"
    backbone_norm: Norm = "frozen"
    drop_path: float = 0.3
    num_classes: int = 133
    things: tuple[int, ...] | None = None
    num_queries: int = 100
    channels: int = 256
    mask_channels: int = 256
    heads: int = 8
    size_divisor: int = 32
    mask_padding: bool = False
    no_object_weight: float = 0.1
    tasks: tuple[Task, ...] = ("semantic",)
    object_threshold: float = 0.8
    overlap_threshold: float = 0.8
    detections: int = 100
    resize_before_inference: bool = False

    def __post_init__(self) -> None:
        """Check what types cannot say.

        Raises:
            ValueError: an option breaks its rule.
        """
        name = type(self).__name__
        check_choices(self, but="backbone")  # whose table of Swins may be added to
        check_least(self, 1, "num_classes", "num_queries", "channels", "mask_channels", "heads", "detections")
        check_least(self, 0, "size_divisor")
        check_share(self, "object_threshold", "overlap_threshold")
        check_share(self, "drop_path", below_one=True)
        if not self.no_object_weight > 0:  # with 0 the class loss of an image without objects is 0 / 0
            raise ValueError(f"{name}: no_object_weight must be more than 0, got {self.no_object_weight}")
        check_width(self)
        if not self.tasks or set(self.tasks) - set(TASKS):
            raise ValueError(f"{name}: tasks must be among {', '.join(TASKS)}, got {self.tasks}")
        if self.things is not None and any(not 0 <= c < self.num_classes for c in self.things):
            raise ValueError(f"{name}: things must be classes in 0..{self.num_classes - 1}, got {self.things}")

    @property
    def thing_classes(self) -> frozenset[int]:
        """The countable classes."""
        return frozenset(range(self.num_classes) if self.things is None else self.things)
