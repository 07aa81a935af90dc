"""Which place in the sequence of queries each copy of a target has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fssops.losses.matcher import Match

TOTAL_BUDGET = 100
"""From here on a number of groups is the number of slots that all groups may have together."""


@dataclass
class PilotSlots:
    """Places of the copies: target i of an image has, in group k, slot k * width + i.

    Attributes:
        groups: g, how often every target is copied.
        width: most targets of an image; images with fewer leave slots unused.
        counts: targets of each image.
        images: [g * sum(counts)] image of each copy; copies are listed group first, then image, then target.
        places: [g * sum(counts)] slot of each copy.
        sources: [g * sum(counts)] its target, counted over the whole batch.
    """

    groups: int
    width: int
    counts: list[int]
    images: Tensor
    places: Tensor
    sources: Tensor

    @property
    def total(self) -> int:
        """Slots of an image, used or not."""
        return self.groups * self.width

    @staticmethod
    def of(counts: Sequence[int], groups: int, device: torch.device) -> PilotSlots | None:
        """Slots for images with ``counts`` targets; None where there is nothing to pilot.

        Args:
            counts: targets of each image.
            groups: copies of every target; from 100 on, the number of slots that they may fill together.
            device: of the index tensors.
        """
        width = max(counts, default=0)
        if width == 0:
            return None
        if groups >= TOTAL_BUDGET:
            groups //= width
        if groups == 0:
            return None
        images = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(list(counts)))
        within = torch.cat([torch.arange(count) for count in counts])
        group = torch.arange(groups).repeat_interleave(len(images))
        return PilotSlots(
            groups,
            width,
            list(counts),
            images.repeat(groups).to(device),
            (within.repeat(groups) + group * width).to(device),
            torch.arange(len(images)).repeat(groups).to(device),
        )

    def blocked(self, queries: int) -> Tensor:
        """The walls of self-attention: bool [total + queries, total + queries], True = may not attend.

        Normal queries do not see piloted ones, nor a group the others; piloted queries see the normal ones.

        Args:
            queries: normal queries, which stand behind the piloted ones.
        """
        group = torch.full((self.total + queries,), -1, device=self.images.device)
        group[: self.total] = torch.arange(self.groups, device=group.device).repeat_interleave(self.width)
        return (group >= 0)[None] & (group[None] != group[:, None])

    def matches(self) -> list[Match]:
        """The fixed matches of each image: every copy with its target."""
        found = []
        for count in self.counts:
            targets = torch.arange(count, device=self.images.device).repeat(self.groups)
            first = torch.arange(self.groups, device=self.images.device).repeat_interleave(count) * self.width
            found.append(Match(first + targets, targets))
        return found
