"""Data sets whose items are single images, drawn with an augmentation of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

Item = TypeVar("Item", covariant=True)


class ImageItems(Dataset[Item], ABC):
    """One item an image; what an item draws comes from its index, or from a generator that is given.

    Attributes:
        names: the images, in order.
    """

    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def draw(self, index: int, generator: torch.Generator) -> Item:
        """An item whose random choices come from ``generator``."""
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        return self._item(index, np.random.default_rng(seed))

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < len(self):
            raise IndexError(f"{type(self).__name__}: index must be below {len(self)}, got {index}")
        return self._item(index, np.random.default_rng(index))

    @abstractmethod
    def _item(self, index: int, rng: np.random.Generator) -> Item:
        """Item ``index``, every random choice from ``rng``."""
