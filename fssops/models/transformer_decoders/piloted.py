"""The masked-attention decoder of MP-Former: in training, piloted queries stand before the normal ones.

Source: Zhang et al., "MP-Former: Mask-piloted transformer for image segmentation", CVPR 2023, section 4, and its code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fssops.models.mask_piloting.pilots import Pilots
from fssops.models.transformer_decoders.masked import MaskedTransformerDecoder, Memory
from fssops.models.transformer_decoders.outputs import DecoderOutput


class PilotedTransformerDecoder(MaskedTransformerDecoder):
    """Queries without positions, and an embedding of classes for the piloted ones, which exist in training only.

    Args:
        in_channels: channels of the memory.
        num_classes: classes without "no object".
        num_queries: Q, the normal queries.
        channels: C of the queries.
        **options: of :class:`MaskedTransformerDecoder`.
    """

    def __init__(
        self, in_channels: int, *, num_classes: int, num_queries: int, channels: int = 256, **options: Any
    ) -> None:
        super().__init__(
            in_channels,
            num_classes=num_classes,
            num_queries=num_queries,
            channels=channels,
            query_positions=False,
            **options,
        )
        self.label_enc = nn.Embedding(num_classes, channels)

    def decode_piloted(self, memory: Memory, pilots: Pilots | None) -> tuple[DecoderOutput, DecoderOutput | None]:
        """Predictions of all heads, of the normal and of the piloted queries.

        Normal queries attend to no piloted one, so theirs are those of :meth:`forward`.

        Args:
            memory: of :meth:`prepare`.
            pilots: None where there is nothing to pilot; then the second output is None.
        """
        normal = self.query_feat.weight.expand(len(memory.values[0]), -1, -1)
        if pilots is None:
            return self.decode(normal, None, memory, auxiliary=True), None
        decoded = self.decode(
            torch.cat((pilots.content, normal), dim=1),
            None,
            memory,
            auxiliary=True,
            blocked=pilots.blocked,
            piloted=pilots.masks,
        )
        first = pilots.layout.total
        return (
            DecoderOutput(decoded.class_logits[:, :, first:], decoded.mask_embeddings[:, :, first:]),
            DecoderOutput(decoded.class_logits[:, :, :first], decoded.mask_embeddings[:, :, :first]),
        )
