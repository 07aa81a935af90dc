"""Small models and batches of the MaskFormer family for tests."""

from __future__ import annotations

from typing import Any

import torch

from fssops.models.mask2former import Mask2Former, Mask2FormerConfig
from fssops.models.maskformer import MaskFormer, MaskFormerConfig
from fssops.models.universal import UniversalModel
from fssops.structures import ImageBatch, MaskTargets

SMALL: dict[str, Any] = {
    "backbone": "resnet18",
    "num_classes": 5,
    "num_queries": 6,
    "channels": 32,
    "mask_channels": 16,
    "heads": 4,
    "dropout": 0.0,
    "things": (0, 1),
}


def small_model(name: str, **options: Any) -> UniversalModel:
    """A MaskFormer or Mask2Former of a few layers."""
    if name == "mask2former":
        small = {**SMALL, "encoder_layers": 1, "encoder_hidden": 32, "decoder_layers": 3, "decoder_hidden": 32}
        return Mask2Former(Mask2FormerConfig(**{**small, "train_points": 64, **options}))
    return MaskFormer(MaskFormerConfig(**{**SMALL, "decoder_layers": 2, "hidden": 32, **options}))


def box_target(size: tuple[int, int], labels: list[int]) -> MaskTargets:
    """Boxes side by side, one a label."""
    masks = torch.zeros(len(labels), *size, dtype=torch.bool)
    for index in range(len(labels)):
        step = size[1] // max(len(labels), 1)
        masks[index, 4 : size[0] // 2, index * step : (index + 1) * step] = True
    return MaskTargets(torch.tensor(labels, dtype=torch.int64), masks)


def small_batch(labels: list[list[int]] | None = None, seed: int = 0) -> ImageBatch:
    """Two images of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(48, 70), (61, 40)]
    images = [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    wanted = [[0, 3], [4]] if labels is None else labels
    return ImageBatch(images, [box_target(size, own) for size, own in zip(sizes, wanted, strict=True)])
