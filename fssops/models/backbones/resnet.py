"""ResNet-18/34/50/101 in the forms that the systems use: plain or deep stem, dilated stages, any normalisation.

Source: He et al., "Deep residual learning for image recognition", 2015; stride in the 3x3 convolution
(torchvision's form, "v1.5"); deep stem and dilation as in PSPNet and DeepLab.

Names in the state dict are ``stem.conv1``, ``res2.0.conv1``, ``res2.0.shortcut``, each with ``weight`` and ``norm.*``,
as in detectron2; ``fssops.weights.layouts.backbones`` maps torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fssops.models.backbones.backbone import STAGES, Backbone, Watchers
from fssops.models.layers.convolution import ConvNorm, Norm

DEPTHS: dict[int, tuple[tuple[int, int, int, int], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}
"""Depth to (blocks of each stage, whether the blocks are bottlenecks)."""

Dilations = Sequence[int | Sequence[int]]
"""Of the 3x3 convolutions of res2..res5: a number for all blocks of a stage, or a number a block; the last repeats."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, width, 3, stride=stride, dilation=dilation, norm=norm, activation=True)
        self.conv2 = ConvNorm(width, width, 3, dilation=dilation, norm=norm)
        self.shortcut = None
        if stride != 1 or in_channels != width:
            self.shortcut = ConvNorm(in_channels, width, 1, stride=stride, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """The sum before the last ReLU."""
        out: Tensor = self.conv2(self.conv1(x))
        out += x if self.shortcut is None else self.shortcut(x)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 convolution and a shortcut; four times ``width`` channels leave."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = ConvNorm(in_channels, width, 1, norm=norm, activation=True)
        self.conv2 = ConvNorm(width, width, 3, stride=stride, dilation=dilation, norm=norm, activation=True)
        self.conv3 = ConvNorm(width, out_channels, 1, norm=norm)
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = ConvNorm(in_channels, out_channels, 1, stride=stride, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """The sum before the last ReLU."""
        out: Tensor = self.conv3(self.conv2(self.conv1(x)))
        out += x if self.shortcut is None else self.shortcut(x)
        return out


class Stem(nn.Module):
    """Stride 4: one 7x7 convolution, or three 3x3 ones ("deep"), then a 3x3 max pool; every convolution with ReLU."""

    def __init__(self, width: int, deep: bool, norm: Norm) -> None:
        super().__init__()
        self.deep = deep
        if deep:
            self.conv1 = ConvNorm(3, width, 3, stride=2, norm=norm, activation=True)
            self.conv2 = ConvNorm(width, width, 3, norm=norm, activation=True)
            self.conv3 = ConvNorm(width, 2 * width, 3, norm=norm, activation=True)
        else:
            self.conv1 = ConvNorm(3, width, 7, stride=2, norm=norm, activation=True)
        self.out_channels = 2 * width if deep else width

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, C, ceil(ceil(H / 2) / 2), ...]."""
        x = self.conv1(x)
        if self.deep:
            x = self.conv3(self.conv2(x))
        return F.max_pool2d(x, 3, stride=2, padding=1)


class ResNet(Backbone):
    """A residual network that returns the stages asked for.

    Args:
        depth: 18, 34, 50 or 101.
        taps: which of "stem", "res2".."res5" to return; later stages are neither built nor run.
        stride: of res5: 32, or 16 or 8, where the stages that would go beyond it have no stride.
        dilations: None makes up for the strides that are left out, (1, 1, 2, 4) at stride 8.
        deep_stem: three 3x3 convolutions (3 -> width -> width -> 2 width) in place of the 7x7 one.
        width: channels of the stem's first convolution and of res2's 3x3 convolutions.
        norm: kind of normalisation.
        final_relu: whether the last stage built ends with its ReLU; without, its features can be negative, which a
            cosine needs.
    """

    name = "resnet"

    def __init__(
        self,
        depth: int = 50,
        *,
        taps: Sequence[str] = STAGES,
        stride: int = 32,
        dilations: Dilations | None = None,
        deep_stem: bool = False,
        width: int = 64,
        norm: Norm = "frozen",
        final_relu: bool = True,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"ResNet: depth must be one of {', '.join(map(str, DEPTHS))}, got {depth}")
        if not taps or set(taps) - {"stem", *STAGES}:
            raise ValueError(f"ResNet: taps must be among stem, {', '.join(STAGES)}, got {list(taps)}")
        if stride not in (8, 16, 32):
            raise ValueError(f"ResNet: stride must be 8, 16 or 32, got {stride}")
        dilations = [max(1, plain // stride) for plain in (4, 8, 16, 32)] if dilations is None else dilations
        if len(dilations) != 4:
            raise ValueError(f"ResNet: dilations must have 4 entries, got {dilations}")
        blocks, bottleneck = DEPTHS[depth]
        block: Any = Bottleneck if bottleneck else BasicBlock
        self.taps = tuple(taps)
        self.final_relu = final_relu
        self.stem = Stem(width, deep_stem, norm)
        channels = self.stem.out_channels
        self.channels, self.strides, self.layer_counts = {"stem": channels}, {"stem": 4}, {}
        built = 1 + max((STAGES.index(name) for name in taps if name != "stem"), default=-1)
        self.stages, self.unbuilt = STAGES[:built], STAGES[built:]
        self.layers_by_depth = ("stem", *self.stages)
        for index, name in enumerate(self.stages):
            dilation = dilations[index]
            of_blocks = [dilation] if isinstance(dilation, int) else list(dilation)
            self.strides[name] = min(4 * 2**index, stride)
            halves = index > 0 and self.strides[name] > self.strides[STAGES[index - 1]]
            stage = nn.ModuleList()
            for position in range(blocks[index]):
                stage.append(
                    block(
                        channels,
                        width * 2**index,
                        2 if halves and position == 0 else 1,
                        of_blocks[min(position, len(of_blocks) - 1)],
                        norm,
                    )
                )
                channels = width * 2**index * block.expansion
            self.add_module(name, stage)
            self.channels[name], self.layer_counts[name] = channels, blocks[index]
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, watchers: Watchers | None = None) -> dict[str, Tensor]:
        """Feature maps [B, C, h, w] of images [B, 3, H, W]; watchers see every block before its last ReLU."""
        features: dict[str, Tensor] = {}
        x = self.stem(images)
        if "stem" in self.taps:
            features["stem"] = x
        for name in self.stages:
            blocks = self.get_submodule(name)
            assert isinstance(blocks, nn.ModuleList)
            watcher = None if watchers is None else watchers.get(name)
            for position, block in enumerate(blocks):
                x = block(x)
                if watcher is not None:
                    watcher(x)
                if self.final_relu or name != self.stages[-1] or position < len(blocks) - 1:
                    x = F.relu_(x) if watcher is None else F.relu(x)
            if name in self.taps:
                features[name] = x
        return features
