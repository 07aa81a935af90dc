"""How the layers of a masked-attention decoder go along with each other: the two measures of MP-Former.

Zhang et al., "MP-Former: Mask-piloted transformer for image segmentation", CVPR 2023, name them layer-wise mean IoU
(mIoU-L: how well the masks of consecutive layers agree) and layer-wise query utilisation (Util: how much of a layer's
matched queries is of use in the end). The authors' code does not hold them. As measured here:

- *agreement* of layer l: over the queries that the last layer's matching gives a target, the mean IoU of a query's mask
  (logit above 0) predicted after layer l - 1 and after layer l. Queries without a target in the end are left out, for
  nothing says what their masks should be; pairs where both masks are empty do not count.
- *utilisation* of layer l: of the queries that the matching of layer l gives a target, the share that the last layer's
  matching gives the same target. The others were trained for nothing at that layer.

Layer 0 is the prediction from the learnt queries alone, before the first layer. Both are means over all pairs of all
images; an image without a target adds nothing. Matching is that of training (Hungarian, the training losses as costs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fssops.evaluation.scores import mean, percent
from fssops.structures import MaskPredictions

Pairs = tuple[Tensor, Tensor]
"""Matched queries [n] and their targets [n] of one image at one layer."""


@dataclass(frozen=True)
class LayerScores:
    """Shares in [0, 1]; NaN where nothing could be measured.

    Attributes:
        agreement: of layers 1..L with the layer before.
        utilisation: of layers 0..L - 1.
    """

    agreement: list[float]
    utilisation: list[float]

    def summary(self) -> dict[str, float]:
        """Means over the layers by name."""
        return {
            "layer agreement": mean(self.agreement),
            "query utilisation": mean(self.utilisation),
        }

    def table(self) -> list[list[str]]:
        """Rows of a table, one a layer, in percent; the first row names the columns."""
        rows = [["layer", "agreement with the layer before", "queries of use in the end"]]
        for layer in range(len(self.agreement) + 1):
            agreement = "-" if layer == 0 else percent(self.agreement[layer - 1])
            utilisation = "-" if layer == len(self.utilisation) else percent(self.utilisation[layer])
            rows.append([str(layer), agreement, utilisation])
        return rows


class LayerCounts:
    """What is added up over images and processes.

    Args:
        layers: L; there are L + 1 prediction heads.
    """

    def __init__(self, layers: int) -> None:
        # Rows: sum of IoUs and number of pairs (layers 1..L); queries kept and queries matched (layers 0..L - 1).
        self.sums = np.zeros((4, layers))

    @torch.no_grad()
    def add(self, predictions: MaskPredictions, image: int, size: tuple[int, int], matches: Sequence[Pairs]) -> None:
        """Count one image.

        Args:
            predictions: of all heads, the last one last.
            image: index in the batch.
            size: (height, width) of the image without padding.
            matches: of each head.
        """
        queries, targets = matches[-1]
        if len(queries) == 0:
            return
        height, width = predictions.padded_size
        rows, columns = predictions.mask_features.shape[-2:]
        # Cells that hold something of the image.
        inside = (-(-size[0] * rows // height), -(-size[1] * columns // width))
        before: Tensor | None = None
        for head in range(len(matches)):
            logits = predictions.mask_logits(image, head, queries)[..., : inside[0], : inside[1]]
            mask = (logits > 0).flatten(1)
            if before is not None:
                union = (mask | before).sum(1)
                iou = ((mask & before).sum(1) / union.clamp(min=1))[union > 0]
                self.sums[0, head - 1] += float(iou.double().sum())
                self.sums[1, head - 1] += len(iou)
            before = mask
        final = dict(zip(queries.tolist(), targets.tolist(), strict=True))
        for head, (own, wanted) in enumerate(matches[:-1]):
            pairs = list(zip(own.tolist(), wanted.tolist(), strict=True))
            self.sums[2, head] += sum(final.get(query) == target for query, target in pairs)
            self.sums[3, head] += len(pairs)

    def scores(self) -> LayerScores:
        """The measures of everything counted."""
        return LayerScores(_shares(self.sums[0], self.sums[1]), _shares(self.sums[2], self.sums[3]))


def _shares(parts: np.ndarray, wholes: np.ndarray) -> list[float]:
    return [float(part / whole) if whole else math.nan for part, whole in zip(parts, wholes, strict=True)]
