"""Which place in the sequence of queries each copy of a target has, and which queries may attend to which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fssops.losses.matcher import Match

TOTAL_BUDGET = 100
"""From here on a number of groups is the number of queries that all groups may have together."""


@dataclass
class QueryLayout:
    """Places of the copies: target i of an image stands, in group k, at k * width + i.

    Attributes:
        groups: g, how often every target is copied.
        width: most targets of an image; images with fewer leave places empty.
        counts: targets of each image.
        images: [g * sum(counts)] image of each copy; copies are listed group first, then image, then target.
        places: [g * sum(counts)] place of each copy.
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
        """Places of an image, empty or not."""
        return self.groups * self.width

    @staticmethod
    def of(counts: Sequence[int], groups: int, device: torch.device) -> QueryLayout | None:
        """Places for images with ``counts`` targets; None where there is nothing to pilot.

        Args:
            counts: targets of each image.
            groups: copies of every target; from 100 on, the number of places that they may take together.
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
        return QueryLayout(
            groups,
            width,
            list(counts),
            images.repeat(groups).to(device),
            (within.repeat(groups) + group * width).to(device),
            torch.arange(len(images)).repeat(groups).to(device),
        )

    def self_attention_mask(self, queries: int) -> Tensor:
        """Bool [total + queries, total + queries], True = may not attend.

        Normal queries do not see piloted ones, nor a group the others; piloted queries see the normal ones.

        Args:
            queries: normal queries, which stand behind the piloted ones.
        """
        group = torch.full((self.total + queries,), -1, device=self.images.device)
        group[: self.total] = torch.arange(self.groups, device=group.device).repeat_interleave(self.width)
        return (group >= 0)[None] & (group[None] != group[:, None])

    def matches(self) -> list[Match]:
        """The fixed matches of each image: every copy with its target."""
        matches = []
        for count in self.counts:
            targets = torch.arange(count, device=self.images.device).repeat(self.groups)
            first = torch.arange(self.groups, device=self.images.device).repeat_interleave(count) * self.width
            matches.append(Match(first + targets, targets))
        return matches
