"""What the universal systems share: images in, classes and masks of queries out, losses, and the inferences.

Source: Cheng et al., "Per-pixel classification is not all you need for semantic segmentation", NeurIPS 2021.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from fssops.losses.mask_criterion import SetCriterion
from fssops.models.backbones.feature_pyramid import build_multi_scale, multi_scale_maps
from fssops.models.layers.image_input import ImageInput
from fssops.models.universal import postprocessing
from fssops.models.universal.config import TASKS, Task, UniversalConfig
from fssops.structures import (
    ImageBatch,
    MaskPredictions,
    MaskTargets,
    SegmentationResult,
    SemanticResult,
    require_numbers,
)


class UniversalModel(nn.Module, ABC):
    """A backbone, a pixel decoder, a transformer decoder and a criterion; subclasses build them and run them.

    Args:
        config: of the subclass.
        criterion: computes the training losses.
    """

    class_dependent: tuple[str, ...] = ("transformer_decoder.class_embed.",)
    """Names of tensors that a checkpoint with another number of classes leaves at their initial values."""
    cut_panoptic_at_half: bool
    """See :func:`fssops.models.universal.postprocessing.panoptic_map`."""

    def __init__(self, config: UniversalConfig, criterion: SetCriterion) -> None:
        super().__init__()
        self.config: UniversalConfig = config
        self.image_input = ImageInput(config.size_divisor)
        self.criterion = criterion
        self.backbone, self.pyramid = build_multi_scale(
            config.backbone, config.channels, norm=config.backbone_norm, drop_path=config.drop_path
        )
        self.map_channels = (self.pyramid or self.backbone).channels

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Maps "res2".."res5" at strides 4, 8, 16, 32 of normalised images [B, 3, H, W]."""
        return multi_scale_maps(self.backbone, self.pyramid, images)

    @abstractmethod
    def predict(self, images: Tensor, padding: Tensor | None, *, auxiliary: bool) -> MaskPredictions:
        """Predictions of normalised, padded images.

        Args:
            images: [B, 3, H, W].
            padding: [B, H, W] bool, True = padding; None attends to everything.
            auxiliary: return every head's predictions instead of the last one's only.
        """

    def input_of(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Images [B, 3, H, W], normalised and padded, and where they are padding; None where that is attended to."""
        batch, padding = self.image_input(images)
        return batch, padding if self.config.mask_padding else None

    def forward(self, batch: ImageBatch) -> MaskPredictions:
        """Predictions of a batch: of all heads in training mode, of the final head in evaluation mode."""
        return self.predict_batch(batch, auxiliary=self.training)

    def predict_batch(self, batch: ImageBatch, *, auxiliary: bool) -> MaskPredictions:
        """Predictions of a batch; see :meth:`predict`."""
        return self.predict(*self.input_of(batch.images), auxiliary=auxiliary)

    def training_predictions(self, batch: ImageBatch) -> tuple[MaskPredictions, list[MaskTargets]]:
        """Predictions of all heads, and the batch's targets.

        Raises:
            ValueError: see :meth:`checked_targets`.
        """
        targets = [self.trained_target(target) for target in self.checked_targets(batch.images, batch.targets)]
        return self.predict_batch(batch, auxiliary=True), targets

    def trained_target(self, target: MaskTargets) -> MaskTargets:
        """The target as this system trains on it; by default the target itself."""
        return target

    def checked_targets(self, items: Sequence[Tensor], targets: list[MaskTargets] | None) -> list[MaskTargets]:
        """The targets of images, or of clips.

        Args:
            items: images [3, H_b, W_b] or clips [T, 3, H_b, W_b].
            targets: of a batch.

        Raises:
            ValueError: there are none, or not one an item, or masks are not bool, not one a label, or of another size
                than their item.
        """
        where = f"{type(self).__name__}.losses"
        if targets is None:
            raise ValueError(f"{where}: batch.targets must be given, got None")
        if len(targets) != len(items):
            raise ValueError(f"{where}: batch.targets must be one an item ({len(items)}), got {len(targets)}")
        for index, (target, item) in enumerate(zip(targets, items, strict=True)):
            wanted = [len(target.labels), *item.shape[:-3], *item.shape[-2:]]
            if list(target.masks.shape) != wanted or target.masks.dtype != torch.bool:
                raise ValueError(
                    f"{where}: targets[{index}].masks must be bool {wanted} as its labels and its item are, got"
                    f" {target.masks.dtype} {list(target.masks.shape)}"
                )
        return targets

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
        """Targets and their class weights; see :class:`fssops.models.interface.Counted`.

        Raises:
            ValueError: a label is of no class.
        """
        targets = [self.trained_target(target) for target in batch.targets or []]
        return self.criterion.counts(targets, self.config.num_queries)

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
            tasks: what to return, perhaps nothing; None takes the configuration's.
            watch: is given the predictions of all heads, which are formed only then.

        Returns:
            one result an image.

        Raises:
            ValueError: a task is unknown, or the output sizes are not one an image.
        """
        wanted = self.config.tasks if tasks is None else tasks
        if isinstance(wanted, str) or set(wanted) - set(TASKS):
            raise ValueError(f"{type(self).__name__}.segment: tasks must be some of {', '.join(TASKS)}, got {wanted!r}")
        sizes, outputs = batch.sizes, batch.result_sizes
        images, padding = self.input_of(batch.images)
        predictions = self.predict(images, padding, auxiliary=watch is not None)
        require_numbers(predictions.class_logits, f"{type(self).__name__}.segment")
        if watch is not None:
            watch(predictions)
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

        segments = postprocessing.confident_queries(class_logits, config.object_threshold)
        naming = postprocessing.confident_queries(class_logits, 0.0)
        instances = postprocessing.best_instances(
            class_logits, config.detections, config.thing_classes if "panoptic" in tasks else None
        )
        needed = torch.zeros(len(class_logits), dtype=torch.bool, device=class_logits.device)
        if "semantic" in tasks:
            needed[:] = True
        for task, scored in (("panoptic", segments), ("instance", instances), ("general", naming)):
            if task in tasks:
                needed[scored.queries] = True
        rows = needed.cumsum(0) - 1  # query -> row of the logits formed
        logits = self.output_mask_logits(predictions, image, needed.nonzero()[:, 0], true_size, output_size)
        if "semantic" in tasks:
            result.semantic = SemanticResult(postprocessing.semantic_scores(class_logits, logits))
        if "panoptic" in tasks:
            result.panoptic = postprocessing.panoptic_map(
                segments.scores,
                segments.labels,
                logits[rows[segments.queries]],
                things=config.thing_classes,
                overlap_threshold=config.overlap_threshold,
                cut_at_half=self.cut_panoptic_at_half,
            )
        if "instance" in tasks:
            result.instance = postprocessing.instances(
                instances.scores, instances.labels, logits, rows[instances.queries]
            )
        if "general" in tasks:
            result.general = postprocessing.general_label_map(
                naming.scores, naming.labels, logits[rows[naming.queries]]
            )
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
