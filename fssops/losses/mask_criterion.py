"""The training losses of MaskFormer and Mask2Former: set prediction with deep supervision.

Every prediction head is matched to the targets on its own. What the two systems share stands in
:class:`SetCriterion`; they differ in where a mask loss looks: MaskFormer at every pixel, Mask2Former at sampled points.

Sources: Cheng et al., "Per-pixel classification is not all you need", NeurIPS 2021, section 3.3, and "Masked-attention
mask transformer", CVPR 2022, section 3.3, with their code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fssops.losses.matcher import Match, assign
from fssops.structures import MaskPredictions, MaskTargets, StepShare

Matches = list[list[Match]]
"""Matches by head (auxiliary heads first, the final one last), then by image."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the three terms, in the loss and in the matching cost."""

    classes: float
    mask: float
    dice: float


def head_of(index: int, heads: int) -> int:
    """Name of a head by its position: -1 for the last, its position for an auxiliary one."""
    return -1 if index == heads - 1 else index


def suffix_of(index: int, heads: int) -> str:
    """What a head's losses are called: "" for the last, "_0".. for the auxiliary ones."""
    return "" if index == heads - 1 else f"_{index}"


def mean_over_ranks(count: Tensor) -> Tensor:
    """Mean of a scalar over the processes of torch.distributed; the scalar itself where that is not initialised."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return count
    total = count.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


class SetCriterion(nn.Module):
    """Class loss and bookkeeping over heads; subclasses add the matching and the mask losses.

    Args:
        num_classes: C, without "no object"; None where queries name no class: then there is no class term.
        weights: of the terms.
        no_object_weight: class weight of "no object".

    Attributes:
        allow_no_object_targets: whether a target may have label C (a track that is absent where its class was read).
        reduce_num_masks: mean over processes of the number of targets, a scalar tensor.
    """

    class_weights: Tensor
    allow_no_object_targets = False
    reduce_num_masks = staticmethod(mean_over_ranks)

    def __init__(self, num_classes: int | None, weights: LossWeights, *, no_object_weight: float = 0.1) -> None:
        super().__init__()
        self.num_classes, self.weights = num_classes, weights
        class_weights = torch.ones((num_classes or 0) + 1)
        class_weights[-1] = no_object_weight
        self.register_buffer("class_weights", class_weights, persistent=False)

    def check_targets(self, predictions: MaskPredictions, targets: Sequence[MaskTargets]) -> None:
        """Refuse targets that do not fit the predictions.

        Raises:
            ValueError: wrong number of images, labels out of range, or masks whose count or size is wrong.
        """
        images = predictions.mask_features.shape[0]
        if len(targets) != images:
            raise ValueError(f"SetCriterion: targets must be one an image ({images}), got {len(targets)}")
        height, width = predictions.padded_size
        self.check_labels(targets)
        for index, target in enumerate(targets):
            shape = tuple(target.masks.shape)
            if len(shape) < 3 or shape[0] != len(target.labels) or shape[-2] > height or shape[-1] > width:
                raise ValueError(
                    f"SetCriterion: targets[{index}].masks must be [{len(target.labels)}, ..., H <= {height},"
                    f" W <= {width}], got {list(shape)}"
                )

    def check_labels(self, targets: Sequence[MaskTargets]) -> None:
        """Refuse labels of classes that there are not.

        Raises:
            ValueError: labels are not int64 [G], or one is out of range.
        """
        for index, target in enumerate(targets):
            if target.labels.dim() != 1 or target.labels.dtype != torch.int64:
                raise ValueError(
                    f"SetCriterion: targets[{index}].labels must be int64 [G], got {target.labels.dtype}"
                    f" {list(target.labels.shape)}"
                )
        if self.num_classes is None or not targets:
            return
        last = self.num_classes - (0 if self.allow_no_object_targets else 1)
        labels = torch.cat([target.labels for target in targets])
        # One look at the device for the whole batch; only a fault is searched for image by image.
        if not bool(((labels < 0) | (labels > last)).any()):
            return
        for index, target in enumerate(targets):
            if bool(((target.labels < 0) | (target.labels > last)).any()):
                raise ValueError(
                    f"SetCriterion: targets[{index}].labels must be in 0..{last}, got"
                    f" {int(target.labels.min())}..{int(target.labels.max())}"
                )

    def counts(self, targets: Sequence[MaskTargets], queries: int) -> dict[str, float]:
        """What the terms divide by, from the targets alone; see :class:`fssops.models.interface.Counted`.

        Args:
            targets: of a batch.
            queries: Q.

        Returns:
            "masks", the number of targets, and "classes", the class weights of what all queries of a head should say;
            of more targets than queries, of which matching leaves some out, the mean weight is taken.

        Raises:
            ValueError: as :meth:`check_labels`.
        """
        self.check_labels(targets)
        weights, classes = self.class_weights.to("cpu"), 0.0
        for target in targets if self.num_classes is not None else ():
            count = len(target.labels)
            weight = float(weights[target.labels.to("cpu")].sum())
            matched = weight if count <= queries else weight * queries / count
            classes += matched + max(queries - count, 0) * float(weights[-1])
        return {"masks": float(sum(len(target.labels) for target in targets)), "classes": classes}

    def masks_divisor(self, targets: Sequence[MaskTargets], share: StepShare | None, device: torch.device) -> Tensor:
        """What the mask terms divide by: the step's mean number of targets a part, at least one in the whole step."""
        if share is not None:
            return torch.tensor(share.divisor("masks"), device=device)
        count = torch.tensor(float(sum(len(target.labels) for target in targets)), device=device)
        return self.reduce_num_masks(count).clamp(min=1.0)

    def class_losses(
        self,
        class_logits: Tensor,
        matches: Matches,
        targets: Sequence[MaskTargets],
        share: StepShare | None = None,
    ) -> Tensor:
        """Weighted mean cross-entropy of every head: class_logits [heads, B, Q, C + 1] -> [heads], float32.

        Unmatched queries should say "no object". Divided by the sum of the class weights of the heads' targets; of a
        part of a step, by the mean of that sum over the parts. Zeros where queries name no class.
        """
        heads, images, queries, _ = class_logits.shape
        if self.num_classes is None:
            return class_logits.new_zeros(heads, dtype=torch.float32)
        wanted = torch.full((heads, images, queries), self.num_classes, dtype=torch.int64, device=class_logits.device)
        for head, of_head in enumerate(matches):
            for image, match in enumerate(of_head):
                wanted[head, image, match.queries] = targets[image].labels[match.targets]
        logits = class_logits.float().flatten(0, 2)
        losses = F.cross_entropy(logits, wanted.flatten(), weight=self.class_weights, reduction="none")
        if share is not None:
            return losses.view(heads, -1).sum(1) / share.divisor("classes", 0.0)
        return losses.view(heads, -1).sum(1) / self.class_weights[wanted].view(heads, -1).sum(1)

    def named(self, classes: Tensor, masks: Tensor, dice: Tensor, part: str = "") -> dict[str, Tensor]:
        """Weighted losses [heads] of the three terms as ``loss_ce``, ``loss_mask``, ``loss_dice`` with head suffixes.

        The final head comes first, as in the published code. ``part`` stands before the head: ``loss_ce_dn_0``.
        ``loss_ce`` is left out where queries name no class.
        """
        heads = len(classes)
        losses = {}
        for index in [heads - 1, *range(heads - 1)]:
            suffix = part + suffix_of(index, heads)
            if self.num_classes is not None:
                losses[f"loss_ce{suffix}"] = self.weights.classes * classes[index]
            losses[f"loss_mask{suffix}"] = self.weights.mask * masks[index]
            losses[f"loss_dice{suffix}"] = self.weights.dice * dice[index]
        return losses


def as_clip(masks: Tensor) -> Tensor:
    """Masks of an image [G, H, W] with an axis of one frame; those of a clip [G, T, H, W] as they are."""
    return masks[:, None] if masks.dim() == 3 else masks


def matched_mask_logits(predictions: MaskPredictions, matches: Matches) -> list[Tensor]:
    """Mask logits of the matched queries of all heads: [heads, n_b, T, h, w] of each image.

    One product an image serves all heads, so the gradient of the mask features is accumulated once.
    """
    features = predictions.mask_features  # [B, T, E, h, w]
    heads = predictions.class_logits.shape[0]
    frames, channels, height, width = features.shape[1:]
    logits = []
    for image in range(features.shape[0]):
        queries = torch.stack([of_head[image].queries for of_head in matches])  # [heads, n]
        embeddings = predictions.mask_embeddings[:, image].gather(1, queries[..., None].expand(-1, -1, channels))
        flat = features[image].transpose(0, 1).reshape(channels, -1)
        product = embeddings.flatten(0, 1).to(flat.dtype) @ flat
        logits.append(product.view(heads, -1, frames, height, width))
    return logits


def assign_by_head(costs: Sequence[Sequence[Tensor]], predictions: MaskPredictions) -> Matches:
    """Hungarian matching by the costs [Q, G] of every head and image.

    Raises:
        ValueError: a cost is not finite; it names the prediction that is not.
    """
    images = len(costs[0])
    matches = assign(
        [cost for of_head in costs for cost in of_head],
        lambda number: bad_cost_term(predictions, *divmod(number, images)),
    )
    return [matches[head * images : (head + 1) * images] for head in range(len(costs))]


def bad_cost_term(predictions: MaskPredictions, head: int, image: int) -> str:
    """Say which term of a matching cost is NaN or infinite, in which query, and which prediction it comes from."""
    heads = predictions.class_logits.shape[0]
    place = f"of {'the final head' if head == heads - 1 else f'auxiliary head {head}'}, image {image} of the batch"
    embeddings, features = predictions.mask_embeddings[head, image], predictions.mask_features[image]
    terms = (
        ("class cost", "class_logits", predictions.class_logits[head, image]),
        ("mask and dice cost", "mask_embeddings", embeddings),
        ("mask and dice cost", "mask_features", features),
        ("mask cost", "mask logits", predictions.mask_logits(image, head).float()),
    )
    for term, name, tensor in terms:
        bad = ~torch.isfinite(tensor)
        if bool(bad.any()):
            query = f", query {int(bad.flatten(1).any(1).nonzero()[0])}" if name != "mask_features" else ""
            return f"a bad {term} {place}{query}: {int(bad.sum())} of {bad.numel()} values of {name} are not finite"
    return f"a bad mask or dice cost {place}, though all predictions are finite: they are too large"
