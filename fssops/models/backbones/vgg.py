"""VGG-16, as BAM and MSANet use it and in the dilated form of PANet.

Source: Simonyan and Zisserman, "Very deep convolutional networks", 2014 (configuration D), without the classifier;
PANet's form after kaixin96/PANet ``models/vgg.py`` as described in its paper, section 3.2.

Names in the state dict are ``stage1.0.weight`` .. ``stage5.2.bias`` (and ``.norm.*``); the taps are called "res1"..
"res5" after them, as the stages of every backbone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fssops.models.backbones.backbone import STAGES, Backbone, Watchers
from fssops.models.layers.convolution import ConvNorm, Norm

MODULES = {"res1": "stage1", "res2": "stage2", "res3": "stage3", "res4": "stage4", "res5": "stage5"}
"""Tap to the name of its stage in the state dict."""

CONVOLUTIONS = (2, 2, 3, 3, 3)
WIDTHS = (1, 2, 4, 8, 8)
"""Channels of the five stages, in units of the first stage's."""


class VGG16(Backbone):
    """Thirteen 3x3 convolutions in five stages; a max pool ends each of the first four, and its output is the tap.

    Args:
        taps: which of "res1".."res5" to return.
        stride: of res5. 16: pools of 2, which round an odd size up (BAM, MSANet). 8: pools of 3 with padding, of which
            the last has no stride, and dilation 2 after it (PANet).
        width: channels of the first stage.
        norm: kind of normalisation.
        final_relu: whether the last convolution is followed by ReLU.
    """

    name = "vgg16"

    def __init__(
        self,
        *,
        taps: Sequence[str] = STAGES,
        stride: int = 16,
        width: int = 64,
        norm: Norm = "none",
        final_relu: bool = True,
    ) -> None:
        super().__init__()
        if not taps or set(taps) - set(MODULES):
            raise ValueError(f"VGG16: taps must be among {', '.join(MODULES)}, got {list(taps)}")
        if stride not in (8, 16):
            raise ValueError(f"VGG16: stride must be 8 or 16, got {stride}")
        dilated = stride == 8
        self.taps, self.layers_by_depth = tuple(taps), tuple(MODULES.values())
        self.pool_size, self.pool_strides = (3, (2, 2, 2, 1)) if dilated else (2, (2, 2, 2, 2))
        self.channels, self.layer_counts = {}, dict(zip(MODULES, CONVOLUTIONS, strict=True))
        self.strides = {name: min(2 ** (index + 1), stride) for index, name in enumerate(MODULES)}
        channels = 3
        for index, (tap, name) in enumerate(MODULES.items()):
            stage = nn.ModuleList()
            for position in range(CONVOLUTIONS[index]):
                last = index == 4 and position == CONVOLUTIONS[index] - 1
                stage.append(
                    ConvNorm(
                        channels,
                        width * WIDTHS[index],
                        3,
                        dilation=2 if dilated and index == 4 else 1,
                        bias=True,
                        norm=norm,
                        activation=final_relu or not last,
                    )
                )
                channels = width * WIDTHS[index]
            self.add_module(name, stage)
            self.channels[tap] = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, images: Tensor, watchers: Watchers | None = None) -> dict[str, Tensor]:
        """Feature maps [B, C, h, w] of images [B, 3, H, W]; watchers see every convolution before norm and ReLU."""
        features: dict[str, Tensor] = {}
        x = images
        for index, (tap, name) in enumerate(MODULES.items()):
            stage = self.get_submodule(name)
            assert isinstance(stage, nn.ModuleList)
            for convolution in stage:
                assert isinstance(convolution, ConvNorm)
                if watchers is not None and tap in watchers:
                    raw = convolution.raw(x)
                    watchers[tap](raw)
                    x = convolution.finish(raw)
                else:
                    x = convolution(x)
            if index < 4:
                padding = self.pool_size // 3
                x = F.max_pool2d(x, self.pool_size, self.pool_strides[index], padding=padding, ceil_mode=not padding)
            if tap in self.taps:
                features[tap] = x
            if len(features) == len(self.taps):
                break
        return features
