"""ResNet-18/34/50/101 in the forms that the systems use: plain or deep stem, dilated stages, any normalisation.

Source: He et al., "Deep residual learning for image recognition", 2015; stride in the 3x3 convolution
(torchvision's form, "v1.5"); deep stem and dilation as in PSPNet and DeepLab.

Names in the state dict are ``stem.conv1``, ``res2.0.conv1``, ``res2.0.shortcut``, each with ``weight`` and ``norm.*``,
as in detectron2; ``fssops.weights.layouts.backbones`` maps torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fssops.models.layers.convolution import ConvNorm, Norm

DEPTHS: dict[int, tuple[tuple[int, int, int, int], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}
"""Depth to (blocks of each stage, whether the blocks are bottlenecks)."""

STAGES = ("res2", "res3", "res4", "res5")

Convolution = Callable[..., nn.Module]
Taps = Mapping[str, Callable[[Tensor], None]]
"""Stage name to what is called with the inner outputs of that stage, in order."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, stride: int, dilation: int, norm: Norm, convolution: Convolution = ConvNorm
    ) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, width, 3, stride=stride, dilation=dilation, norm=norm, activation=True)
        self.conv2 = convolution(width, width, 3, dilation=dilation, norm=norm)
        self.shortcut = None
        if stride != 1 or in_channels != width:
            self.shortcut = convolution(in_channels, width, 1, stride=stride, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """The sum before the last ReLU."""
        out: Tensor = self.conv2(self.conv1(x))
        out += x if self.shortcut is None else self.shortcut(x)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 convolution and a shortcut; four times ``width`` channels leave."""

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int, dilation: int, norm: Norm, convolution: Convolution = ConvNorm
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = convolution(in_channels, width, 1, norm=norm, activation=True)
        self.conv2 = convolution(width, width, 3, stride=stride, dilation=dilation, norm=norm, activation=True)
        self.conv3 = convolution(width, out_channels, 1, norm=norm)
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = convolution(in_channels, out_channels, 1, stride=stride, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """The sum before the last ReLU."""
        out: Tensor = self.conv3(self.conv2(self.conv1(x)))
        out += x if self.shortcut is None else self.shortcut(x)
        return out


class Stem(nn.Module):
    """Stride 4: one 7x7 convolution, or three 3x3 ones ("deep"), then a 3x3 max pool; every convolution with ReLU."""

    def __init__(self, width: int, deep: bool, norm: Norm, convolution: Convolution = ConvNorm) -> None:
        super().__init__()
        self.deep = deep
        if deep:
            self.conv1 = convolution(3, width, 3, stride=2, norm=norm, activation=True)
            self.conv2 = convolution(width, width, 3, norm=norm, activation=True)
            self.conv3 = convolution(width, 2 * width, 3, norm=norm, activation=True)
        else:
            self.conv1 = convolution(3, width, 7, stride=2, norm=norm, activation=True)
        self.out_channels = 2 * width if deep else width

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, C, ceil(ceil(H / 2) / 2), ...]."""
        x = self.conv1(x)
        if self.deep:
            x = self.conv3(self.conv2(x))
        return F.max_pool2d(x, 3, stride=2, padding=1)


class ResNet(nn.Module):
    """A residual network that returns the stages asked for.

    Args:
        depth: 18, 34, 50 or 101.
        norm: kind of normalisation.
        deep_stem: three 3x3 convolutions (3 -> width -> width -> 2 width) in place of the 7x7 one.
        strides: of res2..res5.
        dilations: of the 3x3 convolutions of res2..res5: a number for all blocks of a stage, or a number a block, of
            which the last repeats; ``(1, 1, 2, 4)`` with strides ``(1, 2, 1, 1)`` is MSANet's, ``(1, 1, 1, (1, 2, 4))``
            DeepLab's multi-grid.
        out_features: which of "stem", "res2".."res5" to return; later stages are neither built nor run.
        final_relu: whether the last stage built ends with its ReLU; without, its features can be negative, which a
            cosine needs.
        width: channels of the stem's first convolution and of res2's 3x3 convolutions.
        convolution: builds a convolution with its normalisation; takes the arguments of :class:`ConvNorm`.
    """

    name = "resnet"

    def __init__(
        self,
        depth: int = 50,
        *,
        norm: Norm = "frozen",
        deep_stem: bool = False,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int | Sequence[int]] = (1, 1, 1, 1),
        out_features: Sequence[str] = STAGES,
        final_relu: bool = True,
        width: int = 64,
        convolution: Convolution = ConvNorm,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"ResNet: depth must be one of {', '.join(map(str, DEPTHS))}, got {depth}")
        unknown = [name for name in out_features if name not in ("stem", *STAGES)]
        if unknown or not out_features:
            raise ValueError(f"ResNet: out_features must be among stem, {', '.join(STAGES)}, got {list(out_features)}")
        if len(strides) != 4 or len(dilations) != 4:
            raise ValueError(f"ResNet: strides and dilations must have 4 entries, got {strides} and {dilations}")
        blocks, bottleneck = DEPTHS[depth]
        block: Any = Bottleneck if bottleneck else BasicBlock
        self.out_features = tuple(out_features)
        self.final_relu = final_relu
        self.stem = Stem(width, deep_stem, norm, convolution)
        channels = self.stem.out_channels
        stride = 4
        self.channels: dict[str, int] = {"stem": channels}
        self.strides: dict[str, int] = {"stem": stride}
        last = max((*STAGES, "stem").index(name) if name != "stem" else -1 for name in out_features)
        self.stages, self.unbuilt = STAGES[: last + 1], STAGES[last + 1 :]
        for index, name in enumerate(self.stages):
            spread = dilations[index]
            grid = [spread] if isinstance(spread, int) else list(spread)
            stage = nn.ModuleList()
            for position in range(blocks[index]):
                stage.append(
                    block(
                        channels,
                        width * 2**index,
                        strides[index] if position == 0 else 1,
                        grid[min(position, len(grid) - 1)],
                        norm,
                        convolution,
                    )
                )
                channels = width * 2**index * block.expansion
            self.add_module(name, stage)
            stride *= strides[index]
            self.channels[name], self.strides[name] = channels, stride
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, taps: Taps | None = None) -> dict[str, Tensor]:
        """Features of images [B, 3, H, W].

        Args:
            images: normalised.
            taps: for each stage that is a key here, called with the output of every block before its last ReLU.

        Returns:
            stage name to [B, C, h, w].
        """
        features: dict[str, Tensor] = {}
        x = self.stem(images)
        if "stem" in self.out_features:
            features["stem"] = x
        for name in self.stages:
            blocks = self.get_submodule(name)
            assert isinstance(blocks, nn.ModuleList)
            for position, block in enumerate(blocks):
                x = block(x)
                tapped = taps is not None and name in taps
                if taps is not None and tapped:
                    taps[name](x)
                if self.final_relu or name != self.stages[-1] or position < len(blocks) - 1:
                    x = F.relu(x) if tapped else F.relu_(x)
            if name in self.out_features:
                features[name] = x
        return features
