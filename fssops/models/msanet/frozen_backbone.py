"""The frozen backbone as MSANet uses it: every compared layer, and the outputs of three stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fssops.models.checks import check_images
from fssops.models.layers.image_input import images_a_pass
from fssops.models.msanet.similarity import resize
from fssops.models.pspnet import PSPNet

LayerTaker = Callable[[Sequence[int]], Callable[[Tensor], None]]
"""From rows of images to what takes the compared layers of these images, one after another."""

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""What :meth:`FrozenBackbone.outputs` returns, and "gram" of :meth:`FrozenBackbone.encode`."""


class FrozenBackbone:
    """The backbone of a base learner, with the layers that are compared.

    With a ResNet these are all blocks of the last three stages; with VGG-16 all convolutions of the last two stages and
    the output of the last. These are published. With a transformer of one scale they are all blocks of the last three
    quarters, and with a backbone whose layers cannot be watched the outputs of the last three stages.

    Args:
        network: the base learner.

    Attributes:
        layer_names: of the compared layers, low to high.
    """

    def __init__(self, network: PSPNet) -> None:
        self.network, self.backbone = network, network.backbone
        self.is_vgg, self.is_resnet = (self.backbone.name == name for name in ("vgg16", "resnet"))
        counts, taps = self.backbone.layer_counts, self.backbone.taps
        self.watched_stages = () if not counts else taps[1:] if self.is_vgg else taps
        names = [f"{stage}.{number}" for stage in self.watched_stages for number in range(counts[stage])]
        self.compared_outputs = (network.feature,) if self.is_vgg else () if counts else taps
        self.layer_names: tuple[str, ...] = (*names, *self.compared_outputs)

    @torch.no_grad()
    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """See :meth:`fssops.models.msanet.MSANet.encode`."""
        check_images("MSANet.encode", images, self.network.stride)
        group = images_a_pass(images)
        if len(images) <= group:
            return self._features(images)
        features: dict[str, Tensor] = {}
        # Copied one after another: a final concatenation would hold everything twice.
        for start in range(0, len(images), group):
            part = self._features(images[start : start + group])
            for name in list(part):
                x = part.pop(name)
                if name not in features:
                    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
                    size = (len(images), *x.shape[1:])
                    features[name] = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)
                features[name][start : start + group] = x
        return features

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        layers: list[Tensor] = []
        outputs, gram = self._run(images, layers.append)
        features = dict(zip(self.layer_names, layers, strict=True))
        if not self.is_resnet:
            features.update(outputs)
        return {**features, "gram": gram}

    @torch.no_grad()
    def run(self, images: Tensor, rows: Sequence[int], taker: LayerTaker) -> Outputs:
        """Pass images through the backbone; the taker of their rows gets each compared layer as soon as it is there."""
        check_images("MSANet", images, self.network.stride)
        group, parts = images_a_pass(images), []
        for start in range(0, len(images), group):
            outputs, gram = self._run(images[start : start + group], taker(rows[start : start + group]))
            parts.append((*self._of_one_size(outputs), gram))
        low, middle, top, gram = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
        return low, middle, top, gram

    def _run(self, images: Tensor, on_layer: Callable[[Tensor], None]) -> tuple[dict[str, Tensor], Tensor]:
        """Outputs of the backbone and the gram of the second layer; ``on_layer`` gets the compared layers in order."""
        images = images.contiguous(memory_format=torch.channels_last)
        watchers = dict.fromkeys(self.watched_stages, on_layer)
        outputs = self.backbone(images, watchers) if watchers else self.backbone(images)
        for name in self.compared_outputs:
            on_layer(outputs[name])
        with torch.autocast(images.device.type, enabled=False):
            rows = outputs[self.backbone.taps[0]].flatten(2).float()
            lengths = torch.linalg.vector_norm(rows, dim=2)
            products = lengths[:, :, None] * lengths[:, None, :]
            gram = torch.bmm(rows, rows.transpose(1, 2)) / (products + 1e-7)
        return outputs, gram

    def _of_one_size(self, outputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        low, middle, top = (outputs[name] for name in self.backbone.taps)
        return resize(low, (middle.shape[-2], middle.shape[-1])), middle, top

    def replay(self, features: dict[str, Tensor], take: Callable[[Tensor], None]) -> Outputs:
        """As :meth:`run`, of features that :meth:`encode` gave."""
        for name in self.layer_names:
            take(features[name])
        return (*self.outputs(features), features["gram"])

    def outputs(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs of the second, third and fourth layer after ReLU, the second at the third's size."""
        return self._of_one_size({stage: self._output(features, stage) for stage in self.backbone.taps})

    def _output(self, features: dict[str, Tensor], stage: str) -> Tensor:
        if not self.is_resnet:
            return features[stage]
        # The output of a stage is its last block's after ReLU: it need not be kept beside it.
        return F.relu(features[f"{stage}.{self.backbone.layer_counts[stage] - 1}"])

    def first_size(self, masks: Tensor) -> tuple[int, int]:
        """Size of the first layer that the authors tap: with a ResNet res2, which they do not compare."""
        stride = 8 if self.is_vgg else 4
        return -(-int(masks.shape[-2]) // stride), -(-int(masks.shape[-1]) // stride)
