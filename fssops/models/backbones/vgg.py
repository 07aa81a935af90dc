"""VGG-16: as published, with batch normalisation, and in the dilated form of PANet.

Source: Simonyan and Zisserman, "Very deep convolutional networks", 2014 (configuration D), without the classifier;
PANet's form after kaixin96/PANet ``models/vgg.py`` as described in its paper, section 3.2.

Names in the state dict are ``stage1.0.weight`` .. ``stage5.2.bias`` (and ``.norm.*``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fssops.models.backbones.resnet import Taps
from fssops.models.layers.convolution import ConvNorm, Norm

CONVOLUTIONS = (2, 2, 3, 3, 3)
WIDTHS = (1, 2, 4, 8, 8)
"""Channels of the five stages, in units of the first stage's."""

STAGES = ("stage1", "stage2", "stage3", "stage4", "stage5")


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions in five stages; a max pool ends each of the first four.

    The defaults give the published network. PANet's form: :meth:`dilated`; MSANet's: ``norm="batch", pool_ceil=True``.

    Args:
        norm: kind of normalisation.
        pool_size: side of the max pools; 3 has padding 1, 2 has none.
        pool_ceil: whether an odd size is rounded up (pool_size 2 only; 3 with padding 1 always does).
        last_pool_stride: of the pool after stage 4; with 1 the features stay at stride 8.
        last_dilation: of the convolutions of stage 5.
        final_relu: whether the last convolution is followed by ReLU.
        out_features: which of "stage1".."stage5" to return, each after its pool.
        width: channels of stage 1.
    """

    name = "vgg16"

    def __init__(
        self,
        *,
        norm: Norm = "none",
        pool_size: int = 2,
        pool_ceil: bool = False,
        last_pool_stride: int = 2,
        last_dilation: int = 1,
        final_relu: bool = True,
        out_features: Sequence[str] = ("stage5",),
        width: int = 64,
    ) -> None:
        super().__init__()
        if pool_size not in (2, 3):
            raise ValueError(f"VGG16: pool_size must be 2 or 3, got {pool_size}")
        if not out_features or any(name not in STAGES for name in out_features):
            raise ValueError(f"VGG16: out_features must be among {', '.join(STAGES)}, got {list(out_features)}")
        self.out_features = tuple(out_features)
        self.pool_size, self.pool_ceil = pool_size, pool_ceil
        self.pool_strides = (2, 2, 2, last_pool_stride)
        self.channels: dict[str, int] = {}
        self.strides: dict[str, int] = {}
        channels, stride = 3, 1
        for index, name in enumerate(STAGES):
            stage = nn.ModuleList()
            for position in range(CONVOLUTIONS[index]):
                last = index == 4 and position == CONVOLUTIONS[index] - 1
                stage.append(
                    ConvNorm(
                        channels,
                        width * WIDTHS[index],
                        3,
                        dilation=last_dilation if index == 4 else 1,
                        bias=True,
                        norm=norm,
                        activation=final_relu or not last,
                    )
                )
                channels = width * WIDTHS[index]
            self.add_module(name, stage)
            stride *= self.pool_strides[index] if index < 4 else 1
            self.channels[name], self.strides[name] = channels, stride
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    @classmethod
    def dilated(cls, *, norm: Norm = "none", width: int = 64) -> VGG16:
        """PANet's encoder: pools of 3, stride 8, dilation 2 in stage 5, no ReLU at the end."""
        return cls(norm=norm, pool_size=3, last_pool_stride=1, last_dilation=2, final_relu=False, width=width)

    def forward(self, images: Tensor, taps: Taps | None = None) -> dict[str, Tensor]:
        """Features of images [B, 3, H, W].

        Args:
            images: normalised.
            taps: for each stage that is a key here, called with the output of every convolution, before
                normalisation and ReLU.

        Returns:
            stage name to [B, C, h, w].
        """
        features: dict[str, Tensor] = {}
        x = images
        for index, name in enumerate(STAGES):
            stage = self.get_submodule(name)
            assert isinstance(stage, nn.ModuleList)
            for convolution in stage:
                assert isinstance(convolution, ConvNorm)
                if taps is not None and name in taps:
                    raw = convolution.raw(x)
                    taps[name](raw)
                    x = convolution.finish(raw)
                else:
                    x = convolution(x)
            if index < 4:
                x = F.max_pool2d(
                    x, self.pool_size, self.pool_strides[index], padding=self.pool_size // 3, ceil_mode=self.pool_ceil
                )
            if name in self.out_features:
                features[name] = x
            if len(features) == len(self.out_features):
                break
        return features
