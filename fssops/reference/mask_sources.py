"""Forms in which masks are handed to the point operators, other than dense tensors.

Predicted masks as the product they come from, and ground-truth masks as bits or as COCO run lengths: what is read are a
few thousand points of each, so the dense masks need not exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Union

import torch
from torch import Tensor


@dataclass(frozen=True)
class FactoredMasks:
    """Mask logits [N, h, w] as products of embeddings and mask features, image by image.

    Attributes:
        embeddings: [N, C], of one dtype with features.
        features: [B, C, h, w]. For a matching cost B counts the frames of one clip, and every embedding meets all.
        counts: number of masks of each image, adding up to N, masks listed image by image; None where B is 1.
    """

    embeddings: Tensor
    features: Tensor
    counts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.embeddings.dim() != 2:
            raise ValueError(f"FactoredMasks: embeddings must have shape [N, C], got {list(self.embeddings.shape)}")
        if self.features.dim() != 4 or self.features.shape[1] != self.embeddings.shape[1]:
            raise ValueError(
                f"FactoredMasks: features must have shape [B, {self.embeddings.shape[1]}, h, w], got "
                f"{list(self.features.shape)}"
            )
        if self.counts is not None:
            object.__setattr__(self, "counts", tuple(self.counts))
            if len(self.counts) != self.features.shape[0] or sum(self.counts) != self.embeddings.shape[0]:
                raise ValueError(
                    f"FactoredMasks: counts must be {self.features.shape[0]} numbers that add up to "
                    f"{self.embeddings.shape[0]}, got {self.counts}"
                )

    def per_image(self) -> list[tuple[Tensor, Tensor]]:
        """Pairs of embeddings [n, C] and features [C, h, w], one an image."""
        if self.counts is None:
            if self.features.shape[0] != 1:
                raise ValueError(f"FactoredMasks: counts must be given for {self.features.shape[0]} images, got None")
            return [(self.embeddings, self.features[0])]
        return list(zip(self.embeddings.split(self.counts), self.features.unbind(), strict=True))

    def logits(self) -> Tensor:
        """The masks themselves, [N, h, w]."""
        masks = [(e @ f.flatten(1)).view(-1, *f.shape[1:]) for e, f in self.per_image()]
        return masks[0] if len(masks) == 1 else torch.cat(masks)


@dataclass(frozen=True)
class PackedMasks:
    """Binary masks as bits: ``numpy.packbits(masks, axis=-1)``.

    Attributes:
        bits: [M, h, ceil(w / 8)] uint8; pixel x is bit 7 - x % 8 of byte x // 8.
        width: w in pixels.
    """

    bits: Tensor
    width: int

    def __post_init__(self) -> None:
        if self.bits.dtype != torch.uint8:
            raise TypeError(f"PackedMasks: bits must be uint8, got {self.bits.dtype}")
        if self.bits.dim() != 3 or self.width < 1 or self.bits.shape[2] != (self.width + 7) // 8:
            raise ValueError(
                f"PackedMasks: bits must have shape [M, h, ceil({self.width} / 8)], got {list(self.bits.shape)}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(M, h, w)."""
        return self.bits.shape[0], self.bits.shape[1], self.width

    @staticmethod
    def pack(masks: Tensor) -> PackedMasks:
        """Pack masks [M, h, w]; every value but 0 counts as inside."""
        if masks.dim() != 3:
            raise ValueError(f"PackedMasks.pack: masks must have shape [M, h, w], got {list(masks.shape)}")
        width = masks.shape[2]
        padded = torch.nn.functional.pad((masks != 0).to(torch.uint8), (0, -width % 8)).unflatten(2, (-1, 8))
        weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=masks.device)
        return PackedMasks((padded * weights).sum(-1, dtype=torch.uint8), width)

    def unpack(self) -> Tensor:
        """Masks [M, h, w] bool."""
        shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=self.bits.device)
        return ((self.bits[..., None] >> shifts) & 1).flatten(2)[..., : self.width].bool()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedMasks:
        """A copy on ``device``."""
        return replace(self, bits=self.bits.to(device, non_blocking=non_blocking))


@dataclass(frozen=True)
class RunLengthMasks:
    """Binary masks as run lengths down the columns, ready for access at any pixel.

    The runs of all masks stand one after the other; runs of even position are outside, of odd position inside, and
    every mask starts at an even position.

    Attributes:
        ends: [R] int32; pixel (column by column, within its mask) at which a run has ended.
        columns: [M, w + 1] int32; position in ``ends`` of the run that holds the first pixel of each column, and, last,
            of the mask's last run.
        height, width: h, w in pixels.
    """

    ends: Tensor
    columns: Tensor
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.ends.dtype != torch.int32 or self.columns.dtype != torch.int32:
            raise TypeError(
                f"RunLengthMasks: ends and columns must be int32, got {self.ends.dtype} and {self.columns.dtype}"
            )
        if self.ends.dim() != 1 or self.columns.dim() != 2 or self.columns.shape[1] != self.width + 1:
            raise ValueError(
                f"RunLengthMasks: ends must have shape [R] and columns [M, {self.width + 1}], got "
                f"{list(self.ends.shape)} and {list(self.columns.shape)}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(M, h, w)."""
        return self.columns.shape[0], self.height, self.width

    @staticmethod
    def from_coco(masks: Sequence[Mapping[str, Any]], size: tuple[int, int] | None = None) -> RunLengthMasks:
        """Read COCO run lengths.

        Args:
            masks: mappings with ``size`` (h, w) and ``counts``: a list of run lengths, or COCO's compressed text.
            size: (h, w); needed only where ``masks`` is empty.

        Raises:
            ValueError: naming the entry whose size or counts are wrong.
        """
        if not masks and size is None:
            raise ValueError("RunLengthMasks.from_coco: size must be given for an empty list of masks, got None")
        height, width = size if size is not None else tuple(int(v) for v in masks[0]["size"])
        starts = torch.arange(width, dtype=torch.int64) * height
        all_ends, all_columns, position = [], [], 0
        for number, mask in enumerate(masks):
            name = f"RunLengthMasks.from_coco: masks[{number}]"
            if tuple(int(v) for v in mask["size"]) != (height, width):
                raise ValueError(f"{name}.size must be ({height}, {width}), got {tuple(mask['size'])}")
            counts = mask["counts"]
            lengths = (
                _decompress(counts, name)
                if isinstance(counts, (str, bytes))
                else torch.as_tensor(counts, dtype=torch.int64)
            )
            ends = lengths.cumsum(0)
            if lengths.dim() != 1 or (lengths < 0).any() or int(lengths.sum()) != height * width:
                raise ValueError(
                    f"{name}.counts must be lengths that add up to {height * width}, got a sum of {int(lengths.sum())}"
                )
            if len(ends) % 2:
                ends = torch.cat((ends, ends[-1:]))
            all_columns.append(
                torch.cat((torch.searchsorted(ends, starts, right=True), ends.new_tensor([len(ends) - 1])))
            )
            all_columns[-1] += position
            all_ends.append(ends)
            position += len(ends)
        if position >= 2**31:
            raise ValueError(f"RunLengthMasks.from_coco: masks must have fewer than 2^31 runs, got {position}")
        nothing = torch.zeros(0, dtype=torch.int64)
        columns = torch.stack(all_columns) if all_columns else torch.zeros(0, width + 1, dtype=torch.int64)
        ends = torch.cat(all_ends) if all_ends else nothing
        return RunLengthMasks(ends.to(torch.int32), columns.to(torch.int32), height, width)

    def unpack(self) -> Tensor:
        """Masks [M, h, w] bool."""
        last = self.columns[:, -1].tolist()
        masks, first = [], 0
        for end in last:
            ends = self.ends[first : end + 1].long()
            values = torch.arange(len(ends), device=ends.device) % 2
            lengths = torch.diff(ends, prepend=ends.new_zeros(1))
            masks.append(values.repeat_interleave(lengths).view(self.width, self.height).T.bool())
            first = end + 1
        if not masks:
            return torch.zeros(self.shape, dtype=torch.bool, device=self.ends.device)
        return torch.stack(masks)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RunLengthMasks:
        """A copy on ``device``."""
        return replace(
            self,
            ends=self.ends.to(device, non_blocking=non_blocking),
            columns=self.columns.to(device, non_blocking=non_blocking),
        )


MaskSource = Union[Tensor, PackedMasks, RunLengthMasks]  # noqa: UP007 - read at run time on Python 3.10
"""Masks that can be sampled: dense [M, h, w] of a float dtype, bool or uint8; bits; run lengths."""


def dense_masks(masks: MaskSource) -> Tensor:
    """The masks as a dense tensor [M, h, w]."""
    return masks if isinstance(masks, Tensor) else masks.unpack()


def _decompress(text: str | bytes, name: str) -> Tensor:
    """Run lengths of COCO's text: 5 bits a character, low bits first, differences to the last but one run."""
    data = text.encode("ascii") if isinstance(text, str) else text
    codes = torch.frombuffer(bytearray(data), dtype=torch.uint8).long() - 48 if data else torch.zeros(0).long()
    if len(codes) == 0 or (codes < 0).any() or (codes > 63).any() or int(codes[-1]) & 32:
        raise ValueError(f"{name}.counts must be COCO's compressed run lengths, got {text!r:.40}")
    last = (codes & 32) == 0
    number = torch.cat((torch.zeros(1, dtype=torch.int64), last.cumsum(0)[:-1]))  # which run a character belongs to
    first = torch.cat((torch.zeros(1, dtype=torch.int64), (last.nonzero()[:, 0] + 1)[:-1]))
    place = torch.arange(len(codes)) - first[number]
    if int(place.max()) > 11:
        raise ValueError(f"{name}.counts must be COCO's compressed run lengths, got {text!r:.40}")
    runs = torch.zeros(len(first), dtype=torch.int64).index_add_(0, number, (codes & 31) << (5 * place))
    negative = (codes[last] & 16) != 0
    runs -= negative.long() << (5 * (place[last] + 1))
    runs[1::2] = runs[1::2].cumsum(0)
    runs[2::2] = runs[2::2].cumsum(0)
    return runs
