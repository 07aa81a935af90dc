"""What MaskFormer and Mask2Former share: images in, classes and masks of queries out, losses, and the inferences.

Source: Cheng et al., "Per-pixel classification is not all you need for semantic segmentation", NeurIPS 2021.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fssops.losses.mask_criterion import SetCriterion
from fssops.models import postprocessing
from fssops.models.backbones.build import BackboneName
from fssops.models.layers.convolution import Norm
from fssops.models.layers.image_input import ImageInput
from fssops.structures import ImageBatch, MaskPredictions, MaskTargets, SegmentationResult, SemanticResult

Task = Literal["semantic", "instance", "panoptic", "general"]


@dataclass(frozen=True)
class MaskClassificationConfig:
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
        tasks: what :meth:`MaskClassificationModel.segment` returns: "semantic", "instance", "panoptic", "general".
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
        for field in ("num_classes", "num_queries", "channels", "mask_channels", "heads", "detections"):
            if getattr(self, field) < 1:
                raise ValueError(f"{name}: {field} must be at least 1, got {getattr(self, field)}")
        if self.channels % 32 or self.channels % self.heads:
            raise ValueError(
                f"{name}: channels must be divisible by 32 (GroupNorm) and by heads ({self.heads}), got {self.channels}"
            )
        if self.size_divisor < 0:
            raise ValueError(f"{name}: size_divisor must not be negative, got {self.size_divisor}")
        if not self.tasks or set(self.tasks) - {"semantic", "instance", "panoptic", "general"}:
            raise ValueError(f"{name}: tasks must be among semantic, instance, panoptic, general, got {self.tasks}")
        if self.things is not None and any(not 0 <= c < self.num_classes for c in self.things):
            raise ValueError(f"{name}: things must be classes in 0..{self.num_classes - 1}, got {self.things}")

    @property
    def thing_classes(self) -> frozenset[int]:
        """The countable classes."""
        return frozenset(range(self.num_classes) if self.things is None else self.things)


class MaskClassificationModel(nn.Module, ABC):
    """A backbone, a pixel decoder, a transformer decoder and a criterion; subclasses build them and run them.

    Args:
        config: of the subclass.
        criterion: computes the training losses.
    """

    class_dependent = ("transformer_decoder.class_embed.",)
    """Names of tensors that a checkpoint with another number of classes leaves at their initial values."""
    cut_panoptic_at_half: bool
    """See :func:`fssops.models.postprocessing.panoptic_map`."""

    def __init__(self, config: MaskClassificationConfig, criterion: SetCriterion) -> None:
        super().__init__()
        self.config: MaskClassificationConfig = config
        self.image_input = ImageInput(config.size_divisor)
        self.criterion = criterion

    @abstractmethod
    def predict(self, images: Tensor, padding: Tensor | None, *, auxiliary: bool) -> MaskPredictions:
        """Predictions of normalised, padded images.

        Args:
            images: [B, 3, H, W].
            padding: [B, H, W] bool, True = padding; None attends to everything.
            auxiliary: return every head's predictions instead of the last one's only.
        """

    def forward(self, batch: ImageBatch) -> MaskPredictions:
        """Predictions of a batch: of all heads in training mode, of the final head in evaluation mode."""
        images, padding = self.image_input(batch.images)
        return self.predict(images, padding if self.config.mask_padding else None, auxiliary=self.training)

    def training_predictions(self, batch: ImageBatch) -> tuple[MaskPredictions, list[MaskTargets]]:
        """Predictions of all heads, and the batch's targets.

        Raises:
            ValueError: the batch has no targets.
        """
        if batch.targets is None:
            raise ValueError(f"{type(self).__name__}.losses: batch.targets must be given, got None")
        images, padding = self.image_input(batch.images)
        padding = padding if self.config.mask_padding else None
        return self.predict(images, padding, auxiliary=True), batch.targets

    def losses(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Weighted loss terms of a batch with targets; their sum is the training loss.

        Args:
            batch: images of any sizes, each with its targets; a target may be empty.

        Raises:
            ValueError: the batch has no targets, or they do not fit.
        """
        losses: dict[str, Tensor] = self.criterion(*self.training_predictions(batch))
        return losses

    @torch.no_grad()
    def segment(self, batch: ImageBatch, tasks: Collection[Task] | None = None) -> list[SegmentationResult]:
        """Segment images.

        Args:
            batch: images of any sizes; results have ``batch.output_sizes``, or the images' own sizes.
            tasks: what to return; None takes the configuration's.

        Returns:
            one result an image.
        """
        images, padding = self.image_input(batch.images)
        predictions = self.predict(images, padding if self.config.mask_padding else None, auxiliary=False)
        sizes = batch.sizes
        outputs = batch.output_sizes or sizes
        wanted = self.config.tasks if tasks is None else tasks
        return [self.result(predictions, index, sizes[index], outputs[index], wanted) for index in range(len(sizes))]

    def result(
        self,
        predictions: MaskPredictions,
        image: int,
        true_size: tuple[int, int],
        output_size: tuple[int, int],
        tasks: Collection[Task],
    ) -> SegmentationResult:
        """The results of one image; masks are formed only of the queries that the tasks look at.

        Args:
            predictions: of :meth:`predict`.
            image: index in the batch.
            true_size: (height, width) of the image without padding.
            output_size: (height, width) of the results.
            tasks: what to return.
        """
        config = self.config
        class_logits = predictions.class_logits[-1, image]
        result = SegmentationResult()
        if set(tasks) == {"semantic"} and not config.resize_before_inference:
            logits = postprocessing.resize(predictions.mask_logits(image)[:, 0].float(), predictions.padded_size)
            scores = postprocessing.semantic_scores(class_logits, logits)
            result.semantic = SemanticResult(postprocessing.crop_and_resize(scores, true_size, output_size))
            return result

        kept, kept_scores, kept_labels = postprocessing.confident_queries(class_logits, config.object_threshold)
        naming, naming_scores, naming_labels = postprocessing.confident_queries(class_logits, 0.0)
        chosen, chosen_scores, chosen_labels = postprocessing.best_instances(
            class_logits, config.detections, config.thing_classes if "panoptic" in tasks else None
        )
        needed = torch.zeros(len(class_logits), dtype=torch.bool, device=class_logits.device)
        if "semantic" in tasks:
            needed[:] = True
        if "panoptic" in tasks:
            needed[kept] = True
        if "instance" in tasks:
            needed[chosen] = True
        if "general" in tasks:
            needed[naming] = True
        rows = needed.cumsum(0) - 1  # query -> row of the logits formed
        logits = self.output_mask_logits(predictions, image, needed.nonzero()[:, 0], true_size, output_size)
        if "semantic" in tasks:
            result.semantic = SemanticResult(postprocessing.semantic_scores(class_logits, logits))
        if "panoptic" in tasks:
            result.panoptic = postprocessing.panoptic_map(
                kept_scores,
                kept_labels,
                logits[rows[kept]],
                things=config.thing_classes,
                overlap_threshold=config.overlap_threshold,
                cut_at_half=self.cut_panoptic_at_half,
            )
        if "instance" in tasks:
            result.instance = postprocessing.instances(chosen_scores, chosen_labels, logits, rows[chosen])
        if "general" in tasks:
            result.general = postprocessing.general_label_map(naming_scores, naming_labels, logits[rows[naming]])
        return result

    def output_mask_logits(
        self,
        predictions: MaskPredictions,
        image: int,
        queries: Tensor,
        true_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> Tensor:
        """Mask logits [len(queries), H, W] at the output size: upsampled to the padded size, cropped, resized."""
        logits = predictions.mask_logits(image, queries=queries)[:, 0].float()
        if len(queries) == 0:
            return logits.new_zeros((0, *output_size))
        full = postprocessing.resize(logits, predictions.padded_size)
        return postprocessing.crop_and_resize(full, true_size, output_size)
