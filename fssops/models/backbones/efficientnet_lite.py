"""EfficientNet-Lite: EfficientNet without squeeze-and-excitation, with ReLU6, and with stem and ends of one width.

Source: Tan and Le, "EfficientNet", ICML 2019; the Lite variants: github tensorflow/tpu, efficientnet/lite. Padding is
TensorFlow's "same": the rest of an odd sum goes to the right and below, so it depends on the image's size at strides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fssops.models.backbones.backbone import STAGES, Backbone
from fssops.models.layers.convolution import ConvNorm, FrozenBatchNorm2d, Norm
from fssops.normalisation import MEAN, STD

NORM_EPS = 1e-3
STEM_WIDTH = 32


@dataclass(frozen=True)
class LiteForm:
    """Factors of the widths and depths of EfficientNet-B0's stages."""

    width: float
    depth: float


EFFICIENTNET_LITE: dict[str, LiteForm] = {
    "efficientnet_lite0": LiteForm(1.0, 1.0),
    "efficientnet_lite1": LiteForm(1.0, 1.1),
    "efficientnet_lite2": LiteForm(1.1, 1.2),
}
"""Published sizes."""

# Blocks, kernel, stride, expansion and width of the stages of B0.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STAGE_NAMES = tuple(f"stage{number}" for number in range(1, len(_STAGES) + 1))
DEEPEST_AT_STRIDE = dict(zip(STAGES, ("stage2", "stage3", "stage5", "stage7"), strict=True))
"""The stages that the maps "res2".."res5" are outputs of: where sizes change, the last before it."""


def _scaled_width(width: int, factor: float) -> int:
    """A multiple of 8 near the product, at least 90 % of it."""
    wide = width * factor
    near = max(8, int(wide + 4) // 8 * 8)
    return near if near >= 0.9 * wide else near + 8


class SameConv(ConvNorm):
    """A convolution with its normalisation, padded as TensorFlow's "same" does, with a ReLU6 if it is asked for."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm: Norm = "frozen",
        relu6: bool = True,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=None if stride == 1 else 0,
            dilation=dilation,
            groups=groups,
            norm=norm,
        )
        self.relu6 = relu6
        if isinstance(self.norm, (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm)):
            self.norm.eps = NORM_EPS

    def forward(self, x: Tensor) -> Tensor:
        """[B, Cin, h, w] to [B, Cout, ceil(h / stride), ceil(w / stride)]."""
        stride = int(self.stride[0])
        if stride > 1:
            reach = int(self.dilation[0]) * (int(self.kernel_size[0]) - 1) + 1
            rows, columns = (max(0, (-(-n // stride) - 1) * stride + reach - n) for n in x.shape[-2:])
            x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        x = super().forward(x)
        return F.hardtanh_(x, 0.0, 6.0) if self.relu6 else x


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection without activation; a shortcut where the shape stays."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int, dilation: int, norm: Norm
    ) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.expand = SameConv(in_channels, inner, 1, norm=norm) if expansion > 1 else None
        self.depthwise = SameConv(inner, inner, kernel, stride=stride, dilation=dilation, groups=inner, norm=norm)
        self.project = SameConv(inner, out_channels, 1, norm=norm, relu6=False)
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, Cin, h, w] to [B, Cout, h', w']."""
        inner = x if self.expand is None else self.expand(x)
        out: Tensor = self.project(self.depthwise(inner))
        return out + x if self.shortcut else out


class EfficientNetLite(Backbone):
    """EfficientNet-Lite that returns outputs of its stages, linear ones without activation.

    Images come normalised by torchvision's mean and standard deviation like those of every backbone here; the network's
    own range, (RGB - 127) / 128, is restored inside, before any padding.

    Args:
        form: a row of :data:`EFFICIENTNET_LITE`.
        taps: which to return: "stage1".."stage7", or "res2".."res5", which are stages 2, 3, 5 and 7; later stages are
            neither built nor run.
        stride: 32, 16 or 8: a stage that would pass it keeps the size instead, and the depthwise convolutions after its
            first block are dilated, so that each weight still meets the distances it was trained at.
        norm: normalisation; "frozen" keeps its statistics and affine part fixed.

    Raises:
        ValueError: there are no such taps, or another stride.
    """

    name = "efficientnet_lite"
    input_scale: Tensor
    input_shift: Tensor

    def __init__(
        self,
        form: LiteForm,
        *,
        taps: Sequence[str] = STAGES,
        stride: Literal[8, 16, 32] = 32,
        norm: Norm = "frozen",
    ) -> None:
        super().__init__()
        if not taps or set(taps) - {*STAGE_NAMES, *STAGES}:
            names = ", ".join((*STAGE_NAMES, *STAGES))
            raise ValueError(f"EfficientNetLite: taps must be among {names}, got {list(taps)}")
        if stride not in (8, 16, 32):
            raise ValueError(f"EfficientNetLite: stride must be 8, 16 or 32, got {stride}")
        self.form, self.taps, self.layer_counts = form, tuple(taps), {}
        self._stage_of = {tap: DEEPEST_AT_STRIDE.get(tap, tap) for tap in taps}
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        self.register_buffer("input_scale", std * 255 / 128, persistent=False)
        self.register_buffer("input_shift", (mean * 255 - 127) / 128, persistent=False)

        self.stem = SameConv(3, STEM_WIDTH, 3, stride=2, norm=norm)
        channels, reached, dilation = STEM_WIDTH, 2, 1
        last = max(STAGE_NAMES.index(name) for name in self._stage_of.values())
        self.stages, self.unbuilt = STAGE_NAMES[: last + 1], STAGE_NAMES[last + 1 :]
        self.layers_by_depth = ("stem", *self.stages)
        self.channels, self.strides = {}, {}
        for number, name in enumerate(self.stages):
            blocks, kernel, step, expansion, width = _STAGES[number]
            # The first and the last stage are not deepened.
            if 0 < number < len(_STAGES) - 1:
                blocks = math.ceil(blocks * form.depth)
            spread = dilation  # of the first block, which reads what the stage before gave
            if reached * step > stride:
                step, dilation = 1, dilation * step
            reached *= step
            width = _scaled_width(width, form.width)
            stage = nn.Sequential()
            for _ in range(blocks):
                stage.append(InvertedResidual(channels, width, kernel, step, expansion, spread, norm))
                channels, step, spread = width, 1, dilation
            self.add_module(name, stage)
            self.channels[name], self.strides[name] = channels, reached
        for name, stage_name in DEEPEST_AT_STRIDE.items():
            if stage_name in self.stages:
                self.channels[name], self.strides[name] = self.channels[stage_name], self.strides[stage_name]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images [B, 3, H, W] to tap -> [B, C, ceil(H / stride), ceil(W / stride)]."""
        x = self.stem(images * self.input_scale + self.input_shift)
        outputs: dict[str, Tensor] = {}
        for name in self.stages:
            x = self.get_submodule(name)(x)
            if name in self._stage_of.values():
                outputs[name] = x
        return {tap: outputs[stage] for tap, stage in self._stage_of.items()}
