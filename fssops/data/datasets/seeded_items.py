"""What data sets share whose items are augmented at random."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

Item = TypeVar("Item", covariant=True)


class SeededItems(Dataset[Item], ABC):
    """One item a name; its random choices come from its index, or from a generator that is given.

    Attributes:
        names: of the images or videos, in order.
    """

    seeds: ClassVar[int] = 1 << 62
    """:meth:`draw` takes the item's seed from below this."""

    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def draw(self, index: int, generator: torch.Generator) -> Item:
        """An item whose random choices come from ``generator``."""
        seed = int(torch.randint(self.seeds, (), generator=generator))
        return self.item(index, np.random.default_rng(seed))

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < len(self):
            raise IndexError(f"{type(self).__name__}: index must be below {len(self)}, got {index}")
        return self.item(index, np.random.default_rng(index))

    @abstractmethod
    def item(self, index: int, rng: np.random.Generator) -> Item:
        """Item ``index``, every random choice from ``rng``."""
