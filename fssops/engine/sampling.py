"""The stream of training items: which item, with which randomness, at which step, on which process.

The whole stream is a function of (seed, position). The state of training is therefore one number, the step,
and the stream is the same for any number of loader workers and, item for item, of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch.utils.data import Dataset, Sampler


class Draw(NamedTuple):
    """One item of the stream."""

    item: int
    """Index into the data set."""
    position: int
    """Place in the endless stream; equal positions mean equal items, augmentation included."""


@runtime_checkable
class SeededDataset(Protocol):
    """A data set whose items are random (augmentation) with explicit randomness.

    One that has ``repeats``, a number of at least 1 an item, is gone through with item i that often in a pass.
    """

    def __len__(self) -> int: ...

    def draw(self, index: int, generator: torch.Generator) -> Any:
        """Return item ``index``; every random choice comes from ``generator``."""
        ...


class UnreadableItemError(RuntimeError):
    """An item of the data set could not be read; the message names the item and the cause."""


def permutation(length: int, seed: int, epoch: int) -> torch.Tensor:
    """Return the order of the items in one pass, [length] int64."""
    generator = torch.Generator().manual_seed(mix_seed(seed, epoch))
    return torch.randperm(length, generator=generator)


def repeated_order(repeats: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """Return the order of a pass in which item i occurs ``repeats[i]`` times on average over passes.

    Args:
        repeats: [n] float64, at least 1 each; their sum is rounded up to L by making all a little larger.
        seed: of all passes.
        epoch: number of the pass.

    Returns:
        [L] int64: within a pass item i occurs floor or ceil of its number of times.
    """
    total = pass_length(repeats)
    generator = torch.Generator().manual_seed(mix_seed(seed, epoch))
    order = torch.randperm(len(repeats), generator=generator)
    # One offset for all (systematic sampling) keeps every pass as long as the others, so that places have numbers.
    ends = (repeats[order].cumsum(0) * (total / repeats.sum())).clamp(max=total)
    ends[-1] = total
    offset = float(torch.rand((), generator=generator, dtype=torch.float64))
    counts = (ends + offset).floor().diff(prepend=torch.zeros(1, dtype=torch.float64))
    drawn = order.repeat_interleave(counts.to(torch.int64))
    return drawn[torch.randperm(total, generator=generator)]


def pass_length(repeats: Sequence[float] | torch.Tensor) -> int:
    """Items of one pass over a data set with repeats."""
    return math.ceil(float(torch.as_tensor(repeats, dtype=torch.float64).sum()) - 1e-9)


def mix_seed(seed: int, number: int) -> int:
    """Return a 63-bit seed that differs in about half its bits for neighbouring inputs (splitmix64)."""
    mask = (1 << 64) - 1
    value = (seed * 0x9E3779B97F4A7C15 + number + 0x632BE59BD9B4E019) & mask
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = ((value ^ (value >> shift)) * factor) & mask
    return (value ^ (value >> 31)) >> 1


class StepSampler(Sampler[list[Draw]]):
    """Endless micro-batches of :class:`Draw`, for one process, from a given step on.

    The stream concatenates one random permutation of the data set after another. Step ``t`` takes positions
    ``[t * B, (t + 1) * B)``, cut into ``accumulate`` micro-batches; within one, process ``r`` of ``R`` takes every R-th
    position starting at the r-th. So processes never overlap, leave no gap, and together see what one process would.

    Args:
        length: number of items in the data set, at least 1.
        batch_size: B, items of a step over all processes; a multiple of ``world_size * accumulate``.
        seed: of the permutations.
        start_step: first step to yield.
        repeats: how often each item occurs in a pass, see :func:`repeated_order`; None: once.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        *,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        repeats: Sequence[float] | None = None,
    ) -> None:
        if length < 1:
            raise ValueError(f"StepSampler: length must be at least 1, got {length}")
        if batch_size % (world_size * accumulate):
            raise ValueError(
                f"StepSampler: batch_size must be a multiple of world_size * accumulate = {world_size * accumulate}, "
                f"got {batch_size}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"StepSampler: rank must lie in [0, {world_size}), got {rank}")
        self._repeats = None if repeats is None else torch.tensor(repeats, dtype=torch.float64)
        self.length = length if self._repeats is None else pass_length(self._repeats)
        self.batch_size, self.seed, self.start_step = batch_size, seed, start_step
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def draw_at(self, position: int) -> Draw:
        """Return the item at a position of the stream."""
        epoch, place = divmod(position, self.length)
        if epoch != self._epoch:
            self._epoch = epoch
            if self._repeats is None:
                self._order = permutation(self.length, self.seed, epoch)
            else:
                self._order = repeated_order(self._repeats, self.seed, epoch)
        return Draw(int(self._order[place]), position)

    def __iter__(self) -> Iterator[list[Draw]]:
        micro = self.batch_size // self.accumulate
        position = self.start_step * self.batch_size
        while True:
            yield [self.draw_at(position + offset) for offset in range(self.rank, micro, self.world_size)]
            position += micro


class DrawnDataset(Dataset[Any]):
    """A data set addressed by :class:`Draw`: gives each item its own generator, and handles unreadable items.

    Args:
        dataset: map-style; a :class:`SeededDataset` gets a generator seeded by (seed, position), any other data set
            must return the same item for the same index.
        seed: of the items' randomness.
        report: called with one line for each item that raises ``OSError`` or ``ValueError``, which is replaced by the
            next one that does not, at most 10 on; None: raise :class:`UnreadableItemError`.
    """

    def __init__(self, dataset: Any, seed: int, *, report: Callable[[str], None] | None = None) -> None:
        self.dataset, self.seed, self.report = dataset, seed, report

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:
        cause: Exception | None = None
        for offset in range(1 if self.report is None else 10):
            index = (draw.item + offset) % len(self.dataset)
            try:
                return self._item(index, draw.position)
            except (OSError, ValueError) as error:
                cause = error
                if self.report is not None:
                    self.report(f"skipped item {index}: {error}")
        raise UnreadableItemError(f"training data: item {draw.item} must be readable, got {cause}") from cause

    def _item(self, index: int, position: int) -> Any:
        if isinstance(self.dataset, SeededDataset):
            return self.dataset.draw(index, torch.Generator().manual_seed(mix_seed(self.seed + 1, position)))
        return self.dataset[index]
