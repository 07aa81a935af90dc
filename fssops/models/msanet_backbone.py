"""The frozen backbone as MSANet uses it: every compared layer, and the outputs of three stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fssops.models.checks import check_images
from fssops.models.layers.image_input import images_a_pass
from fssops.models.layers.multi_similarity import resize
from fssops.models.pspnet import PSPNet

Taker = Callable[[Sequence[int]], Callable[[Tensor], None]]
"""From which images to what takes their compared layers, one after another."""

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""What :meth:`TappedBackbone.outputs` returns, and "gram" of :meth:`TappedBackbone.encode`."""


class TappedBackbone:
    """The backbone of a base learner, with its layers.

    Args:
        network: the base learner.
    """

    def __init__(self, network: PSPNet) -> None:
        self.network = network
        self.is_vgg = network.config.backbone == "vgg16"
        outputs = network.backbone.out_features
        self.stages: tuple[str, ...] = outputs[1:] if self.is_vgg else outputs
        """The stages whose every layer is compared."""
        names = [
            f"{stage}.{number}" for stage in self.stages for number in range(len(getattr(network.backbone, stage)))
        ]
        self.names: tuple[str, ...] = (*names, network.feature) if self.is_vgg else tuple(names)
        """Names of the compared layers, low to high."""

    @torch.no_grad()
    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """See :meth:`fssops.models.msanet.MSANet.encode`."""
        check_images("MSANet.encode", images, self.network.stride)
        group = images_a_pass(images)
        if len(images) <= group:
            return self._features(images)
        found: dict[str, Tensor] = {}
        # Copied one after another: a final concatenation would hold everything twice.
        for start in range(0, len(images), group):
            part = self._features(images[start : start + group])
            for name in list(part):
                x = part.pop(name)
                if name not in found:
                    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
                    size = (len(images), *x.shape[1:])
                    found[name] = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)
                found[name][start : start + group] = x
        return found

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        layers: list[Tensor] = []
        outputs, gram = self._run(images, layers.append)
        found = dict(zip(self.names, layers, strict=True))
        if self.is_vgg:
            found.update(outputs)
        return {**found, "gram": gram}

    @torch.no_grad()
    def passed(self, images: Tensor, rows: Sequence[int], taker: Taker) -> Outputs:
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
        taps = dict.fromkeys(self.stages, on_layer)
        outputs = self.network.backbone(images.contiguous(memory_format=torch.channels_last), taps)
        if self.is_vgg:
            on_layer(outputs[self.network.feature])
        with torch.autocast(images.device.type, enabled=False):
            rows = outputs[self.network.backbone.out_features[0]].flatten(2).float()
            lengths = torch.linalg.vector_norm(rows, dim=2)
            products = lengths[:, :, None] * lengths[:, None, :]
            gram = torch.bmm(rows, rows.transpose(1, 2)) / (products + 1e-7)
        return outputs, gram

    def _of_one_size(self, outputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        low, middle, top = (outputs[name] for name in self.network.backbone.out_features)
        return resize(low, (middle.shape[-2], middle.shape[-1])), middle, top

    def replayed(self, features: dict[str, Tensor], take: Callable[[Tensor], None]) -> Outputs:
        """As :meth:`passed`, of features that :meth:`encode` gave."""
        for name in self.names:
            take(features[name])
        return (*self.outputs(features), features["gram"])

    def outputs(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs of the second, third and fourth layer after ReLU, the second at the third's size."""
        stages = self.network.backbone.out_features
        return self._of_one_size({stage: self._output(features, stage) for stage in stages})

    def _output(self, features: dict[str, Tensor], stage: str) -> Tensor:
        if self.is_vgg:
            return features[stage]
        # The output of a stage is its last block's after ReLU: it need not be kept beside it.
        return F.relu(features[[name for name in self.names if name.startswith(f"{stage}.")][-1]])

    def first_size(self, masks: Tensor) -> tuple[int, int]:
        """Size of the first layer that the authors tap: with a ResNet res2, which they do not compare."""
        stride = 8 if self.is_vgg else 4
        return -(-int(masks.shape[-2]) // stride), -(-int(masks.shape[-1]) // stride)
