"""How one image is made ready for a model outside training, and how what the model says of it is brought back.

The only code for that: validation, evaluation, prediction, the Python API and export all use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from fssops.data.augmentation.chains import GEOMETRIES
from fssops.data.augmentation.geometry import Letterbox, Resize, shortest_edge_size
from fssops.data.augmentation.scene import Scene, Size, resized_image
from fssops.data.datasets.universal import UniversalItem, to_tensor
from fssops.normalisation import normalise


@dataclass(frozen=True)
class FewShotPreparation:
    """Supports and queries of few-shot systems, which have one fixed size.

    Attributes:
        size: (height, width) at which images enter the model.
        geometry: one of :data:`fssops.data.augmentation.chains.GEOMETRIES`.

    Raises:
        ValueError: an unknown geometry, or a ``letterbox`` that is not square.
    """

    size: Size
    geometry: str = "square"

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.geometry not in GEOMETRIES:
            raise ValueError(
                f"FewShotPreparation: geometry must be one of {', '.join(GEOMETRIES)}, got {self.geometry!r}"
            )
        self._resize()

    @property
    def compared_size(self) -> Literal["original", "square"]:
        """Where results and truth are compared, in the words of protocols; a letterbox on the whole of its square."""
        return "square" if self.geometry == "letterbox" else "original"

    def _resize(self) -> Resize | Letterbox:
        return GEOMETRIES[self.geometry](self.size)

    def __call__(self, image: np.ndarray, maps: Mapping[str, np.ndarray] | None = None) -> Scene:
        """Bring an image to ``size``, and its maps with it.

        Args:
            image: [H, W, 3] uint8 RGB.
            maps: [H, W] each, with names of :data:`fssops.data.augmentation.scene.FILL`.
        """
        return self._resize()(Scene(image, dict(maps or {})))

    def inner_size(self, height: int, width: int) -> Size:
        """(height, width) that a picture of that size fills, from the top left, of what enters the model."""
        return self._resize().inner_size(height, width)

    def tensor(self, scene: Scene) -> Tensor:
        """The scene's image as the model takes it: float32 [3, H, W], scaled by ImageNet's mean and deviation."""
        return normalise(scene.image)

    def restore(self, logits: Tensor, size: Size) -> Tensor:
        """Bring logits to a picture's own size; of a ``letterbox`` only the part that the picture fills.

        Args:
            logits: [C, h, w], of what entered the model.
            size: (height, width) of the picture.

        Returns:
            [C, height, width], bilinear; as they are where the size fits.
        """
        if self.geometry == "letterbox":
            # The published evaluation stretches the whole square instead, which shifts by up to the rest of a multiple
            # of 8 pixels that the picture does not fill.
            (height, width), (h, w) = self.inner_size(*size), logits.shape[-2:]
            logits = logits[:, : max(1, round(height * h / self.size[0])), : max(1, round(width * w / self.size[1]))]
        if tuple(logits.shape[-2:]) != size:
            logits = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
        return logits


@dataclass(frozen=True)
class UniversalPreparation:
    """Images of universal systems and frames of videos, which keep their aspect; models normalise them.

    Attributes:
        short_side: of the resized image; 0 keeps its size.
        longest: limit for the other side.
    """

    short_side: int = 0
    longest: int = 1333

    def __call__(self, image: np.ndarray, name: str = "") -> UniversalItem:
        """Resize an image [H, W, 3] uint8 RGB; results of it come back at its own size."""
        size = (image.shape[0], image.shape[1])
        if self.short_side:
            image = resized_image(image, shortest_edge_size(size, self.short_side, self.longest))
        return UniversalItem(to_tensor(image), None, name, size)
