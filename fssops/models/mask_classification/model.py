"""What MaskFormer and Mask2Former share: images in, classes and masks of queries out, losses, and the inferences.

Source: Cheng et al., "Per-pixel classification is not all you need for semantic segmentation", NeurIPS 2021.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from fssops.losses.mask_criterion import SetCriterion
from fssops.models.layers.image_input import ImageInput
from fssops.models.mask_classification import postprocessing
from fssops.models.mask_classification.config import MaskClassificationConfig, Task
from fssops.structures import ImageBatch, MaskPredictions, MaskTargets, SegmentationResult, SemanticResult


class MaskClassificationModel(nn.Module, ABC):
    """A backbone, a pixel decoder, a transformer decoder and a criterion; subclasses build them and run them.

    Args:
        config: of the subclass.
        criterion: computes the training losses.
    """

    class_dependent: tuple[str, ...] = ("transformer_decoder.class_embed.",)
    """Names of tensors that a checkpoint with another number of classes leaves at their initial values."""
    cut_panoptic_at_half: bool
    """See :func:`fssops.models.mask_classification.postprocessing.panoptic_map`."""

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
            ValueError: the batch has no targets, or masks of another size than their image.
        """
        targets = self.checked_targets(batch)
        images, padding = self.image_input(batch.images)
        padding = padding if self.config.mask_padding else None
        return self.predict(images, padding, auxiliary=True), targets

    def checked_targets(self, batch: ImageBatch) -> list[MaskTargets]:
        """The batch's targets.

        Raises:
            ValueError: there are none, or not one an image, or masks are not bool or of another size than their image.
        """
        if batch.targets is None:
            raise ValueError(f"{type(self).__name__}.losses: batch.targets must be given, got None")
        if len(batch.targets) != len(batch.images):
            raise ValueError(
                f"{type(self).__name__}.losses: batch.targets must be one an image ({len(batch.images)}),"
                f" got {len(batch.targets)}"
            )
        for index, (target, size) in enumerate(zip(batch.targets, batch.sizes, strict=True)):
            if tuple(target.masks.shape[-2:]) != size:
                raise ValueError(
                    f"{type(self).__name__}.losses: targets[{index}].masks must have the size of their image,"
                    f" {list(size)}, got {list(target.masks.shape[-2:])}"
                )
            if target.masks.dtype != torch.bool:
                raise ValueError(
                    f"{type(self).__name__}.losses: targets[{index}].masks must be bool, got {target.masks.dtype}"
                )
        return batch.targets

    def losses(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Weighted loss terms of a batch with targets; their sum is the training loss.

        Args:
            batch: images of any sizes, each with its targets; a target may be empty.

        Raises:
            ValueError: the batch has no targets, or they do not fit.
        """
        losses: dict[str, Tensor] = self.criterion(*self.training_predictions(batch), share=batch.share)
        return losses

    def loss_counts(self, batch: ImageBatch) -> dict[str, float]:
        """Targets and their class weights; see :class:`fssops.models.interface.Counted`."""
        return self.criterion.counts(batch.targets or [], self.config.num_queries)

    @torch.no_grad()
    def segment(
        self,
        batch: ImageBatch,
        tasks: Collection[Task] | None = None,
        watch: Callable[[MaskPredictions], None] | None = None,
    ) -> list[SegmentationResult]:
        """Segment images.

        Args:
            batch: images of any sizes; results have ``batch.output_sizes``, or the images' own sizes.
            tasks: what to return; None takes the configuration's.
            watch: is given the predictions of all heads, which are formed only then.

        Returns:
            one result an image.
        """
        images, padding = self.image_input(batch.images)
        padding = padding if self.config.mask_padding else None
        predictions = self.predict(images, padding, auxiliary=watch is not None)
        if watch is not None:
            watch(predictions)
        sizes = batch.sizes
        outputs = batch.output_sizes or sizes
        wanted = self.config.tasks if tasks is None else tasks
        with torch.autocast(images.device.type, enabled=False):
            return [
                self.result(predictions, index, sizes[index], outputs[index], wanted) for index in range(len(sizes))
            ]

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
