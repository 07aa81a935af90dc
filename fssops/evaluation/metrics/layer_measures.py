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
from dataclasses import dataclass

import torch
from torch import Tensor

from fssops.evaluation.metrics.metric import ClassSetting, RecordedMetric, Rows, Scores
from fssops.evaluation.scores import mean, percent
from fssops.structures import LayerOutputs, SegmentationResult


class LayerMeasures(RecordedMetric):
    """Keeps four counts of every image and layer, [4, L] float64.

    They are the sum of IoUs and the number of pairs (layers 1..L), and the number of queries that keep their target and
    of queries that are matched (layers 0..L - 1).

    Args:
        layers: L; there are L + 1 prediction heads.
    """

    name = prediction = "layers"

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = layers

    @classmethod
    def build(cls, setting: ClassSetting) -> LayerMeasures:
        return cls(setting.layers)

    def add(self, number: int, prediction: SegmentationResult, truth: object) -> None:
        """Count one image by its ``prediction.layers``; the truth is in their matches."""
        outputs = prediction.layers
        assert outputs is not None
        if len(outputs.matches[-1][0]):
            with torch.no_grad(), torch.autocast(outputs.predictions.class_logits.device.type, enabled=False):
                self.records[number] = self._counts(outputs)

    def _counts(self, outputs: LayerOutputs) -> Tensor:
        predictions, counts = outputs.predictions, torch.zeros(4, self.layers, dtype=torch.float64)
        queries, targets = outputs.matches[-1]
        height, width = predictions.padded_size
        rows, columns = predictions.mask_features.shape[-2:]
        # Cells that hold something of the image.
        inside = (-(-outputs.size[0] * rows // height), -(-outputs.size[1] * columns // width))
        before: Tensor | None = None
        for head in range(len(outputs.matches)):
            logits = predictions.mask_logits(0, head, queries)[..., : inside[0], : inside[1]]
            mask = (logits > 0).flatten(1)
            if before is not None:
                union = (mask | before).sum(1)
                iou = ((mask & before).sum(1) / union.clamp(min=1))[union > 0]
                counts[0, head - 1] = float(iou.double().sum())
                counts[1, head - 1] = len(iou)
            before = mask
        last = dict(zip(queries.tolist(), targets.tolist(), strict=True))
        for head, (matched, wanted) in enumerate(outputs.matches[:-1]):
            pairs = list(zip(matched.tolist(), wanted.tolist(), strict=True))
            counts[2, head] = sum(last.get(query) == target for query, target in pairs)
            counts[3, head] = len(pairs)
        return counts

    def scores(self) -> LayerScores:
        # Images are added up in the order of their numbers: sums of fractions depend on it.
        sums = torch.zeros(4, self.layers, dtype=torch.float64)
        for number in sorted(self.records):
            sums += self.records[number]
        return LayerScores(_shares(sums[0], sums[1]), _shares(sums[2], sums[3]))


@dataclass(frozen=True)
class LayerScores(Scores):
    """Shares in [0, 1]; NaN where nothing could be measured.

    Attributes:
        agreement: of layers 1..L with the layer before.
        utilisation: of layers 0..L - 1.
    """

    agreement: list[float]
    utilisation: list[float]

    def summary(self) -> dict[str, float]:
        return {"layer agreement": mean(self.agreement), "query utilisation": mean(self.utilisation)}

    def tables(self) -> list[tuple[str, Rows]]:
        rows = [["layer", "agreement with the layer before", "queries of use in the end"]]
        for layer in range(len(self.agreement) + 1):
            agreement = "-" if layer == 0 else percent(self.agreement[layer - 1])
            utilisation = "-" if layer == len(self.utilisation) else percent(self.utilisation[layer])
            rows.append([str(layer), agreement, utilisation])
        return [("layers of the decoder", rows)]


def _shares(parts: Tensor, wholes: Tensor) -> list[float]:
    return [part / whole if whole else math.nan for part, whole in zip(parts.tolist(), wholes.tolist(), strict=True)]
