"""The smallest few-shot model and episodes over a few images, for the tests of evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fssops.structures import IGNORE, Episode


class PrototypeModel(nn.Module):
    """The smallest few-shot model: one convolution, mean prototypes, dot products."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.convolution = nn.Conv2d(3, 6, 3, padding=1)

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": self.convolution(images)}

    def query_features(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features

    def summarise(self, features: dict[str, Tensor], foreground: Tensor, background: Tensor) -> Tensor:
        maps = features["features"].unflatten(0, foreground.shape[:3])  # [1, N, K, C, H, W]

        def mean(masks: Tensor, over: tuple[int, ...]) -> Tensor:
            return (maps * masks[:, :, :, None]).sum(over) / (masks[:, :, :, None].sum(over) + 1e-5)

        behind = mean(background, (2, 4, 5)).mean(1, keepdim=True)
        return torch.cat([behind, mean(foreground, (2, 4, 5))], dim=1)

    def match(self, support: Tensor, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        scores = torch.einsum("qchw,bnc->bqnhw", features["features"], support)
        return nn.functional.interpolate(scores[0], size=size, mode="bilinear")[None]


class Episodes:
    """Random episodes over a few images, so that images recur; of other original labels where they are given."""

    def __init__(
        self, length: int, seed: int, ways: int = 1, shots: int = 2, images: int = 6, original: np.ndarray | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(7)
        self.images = torch.rand(images, 3, 12, 10, generator=generator)
        self.labels = torch.randint(0, 2, (images, 12, 10), generator=generator)
        self.labels[:, 0] = IGNORE
        self.length, self.seed, self.ways, self.shots, self.original = length, seed, ways, shots, original

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Episode:
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        order = torch.randperm(len(self.images), generator=generator)[: self.ways * self.shots + 1]
        support, query = order[:-1].view(self.ways, self.shots), int(order[-1])
        foreground = (self.labels[support] == 1).float()
        label = self.labels[query] * (1 + index % self.ways)
        return Episode(
            support_images=self.images[support],
            support_foreground=foreground,
            support_background=(self.labels[support] == 0).float(),
            query_images=self.images[query][None],
            query_labels=torch.where(self.labels[query] == IGNORE, IGNORE, label)[None],
            classes=torch.tensor([3, 5][: self.ways]),
            query_names=[f"image{query}"],
            index=index,
        )

    def query_truth(self, index: int) -> list[np.ndarray]:
        assert self.original is not None
        return [self.original]

    def query_base_truth(self, index: int) -> Any:
        raise AssertionError("these episodes have no base labels")
