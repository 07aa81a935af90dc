"""One test image at a time, with its truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from fssops.data import universal


@dataclass
class TestItem:
    """An image as the model sees it, its number in the split, and its truth."""

    __test__ = False  # not a test, whatever pytest makes of the name

    number: int
    seen: universal.UniversalItem
    truth: universal.Truth


class TestItems(Dataset[TestItem]):
    """Test images by number, with their truth.

    Args:
        source: of the evaluation split.
        numbers: positions in ``source.names``.
        short_side: of the resized image; 0 keeps its size.
        longest: limit for the other side.
    """

    __test__ = False

    def __init__(
        self, source: universal.UniversalSource, numbers: Sequence[int], short_side: int, longest: int
    ) -> None:
        self.source, self.numbers = source, list(numbers)
        self.images = universal.EvaluationDataset(source, short_side, longest)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> TestItem:
        if not 0 <= place < len(self.numbers):
            raise IndexError(place)
        number = self.numbers[place]
        seen, truth = self.images[number], self.source.truth(self.source.names[number])
        universal.check_size(self.source, seen.name, seen.output_size, (truth.height, truth.width))
        return TestItem(number, seen, truth)
