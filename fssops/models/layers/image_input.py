"""Images on their way into a model: MaskFormer's normalisation and padding, and how many of them pass at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fssops.normalisation import MEAN, STD

PIXEL_MEAN = tuple(255.0 * value for value in MEAN)
PIXEL_STD = tuple(255.0 * value for value in STD)
"""ImageNet statistics of RGB values 0..255."""


def images_a_pass(images: Tensor) -> int:
    """How many of images [n, 3, H, W] pass a backbone at once where no gradient is kept.

    One on a CPU, where more only cost memory; enough to fill a GPU.
    """
    return 1 if images.device.type == "cpu" else max(1, 2**22 // (images.shape[-2] * images.shape[-1]))


class ImageInput(nn.Module):
    """(x - mean) / std, then zeros to the right and below up to a common size.

    Padding follows the normalisation, so padded pixels have the value of the mean colour.

    Args:
        divisor: the common size is a multiple of this; 0 or 1: the largest height and width of the batch.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, divisor: int) -> None:
        super().__init__()
        self.divisor = divisor
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)

    def padded_size(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """(height, width) that a batch of images of these sizes is padded to."""
        step = max(self.divisor, 1)
        height = max(size[0] for size in sizes)
        width = max(size[1] for size in sizes)
        return (height + step - 1) // step * step, (width + step - 1) // step * step

    def forward(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Normalise and pad.

        Args:
            images: B tensors [3, H_b, W_b], RGB, 0..255, uint8 or float.

        Returns:
            images [B, 3, H, W] float32 and padding [B, H, W] bool, True = padding.

        Raises:
            ValueError: no image, one that is not [3, H, W], or floats that are not 0..255; those that reach 1 at most
                are taken for 0..1, which would be a black image.
        """
        if not images:
            raise ValueError("ImageInput: images must not be empty, got 0")
        for index, image in enumerate(images):
            if image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
                raise ValueError(f"ImageInput: images[{index}] must be [3, H, W], got {list(image.shape)}")
            if image.is_floating_point() and not torch.compiler.is_compiling():
                least, most = (float(value) for value in image.aminmax())
                if not (least >= 0 and most <= 255) or 0 < most <= 1:  # NaN is neither
                    raise ValueError(
                        f"ImageInput: images[{index}] must be RGB of 0..255, got floats of {least:.3g} to {most:.3g}; "
                        "multiply what is 0..1 by 255, do not normalise, or give uint8"
                    )
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        height, width = self.padded_size(sizes)
        batch = self.mean.new_zeros((len(images), 3, height, width))
        padding = torch.ones((len(images), height, width), dtype=torch.bool, device=batch.device)
        for index, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
            batch[index, :, :h, :w] = (image.to(batch.dtype) - self.mean) / self.std
            padding[index, :h, :w] = False
        return batch, padding
