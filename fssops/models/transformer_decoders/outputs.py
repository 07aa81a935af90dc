"""What every transformer decoder returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class DecoderOutput:
    """Predictions of the heads, the final one last.

    Attributes:
        class_logits: [heads, B, Q, C + 1]; without a class head [heads, B, Q, 0].
        mask_embeddings: [heads, B, Q, E].
    """

    class_logits: Tensor
    mask_embeddings: Tensor
