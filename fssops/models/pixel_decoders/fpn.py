"""The FPN-like pixel decoder of MaskFormer (Cheng et al., NeurIPS 2021; Lin et al., FPN, CVPR 2017)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from fssops.models.layers.convolution import ConvNorm
from fssops.models.layers.derived import Conv2d
from fssops.models.layers.initialisation import xavier_fill
from fssops.models.pixel_decoders.features import PixelFeatures


def as_tokens(maps: Tensor) -> Tensor:
    """[B, C, h, w] to [B, h * w, C], row-major."""
    return maps.flatten(2).transpose(1, 2)


class FPNPixelDecoder(nn.Module):
    """Top-down: a 3x3 convolution on the coarsest map, then at each finer one a lateral 1x1, sum, and 3x3.

    The memory is the backbone's coarsest map, as it is.

    Args:
        in_channels: channels of "res2".."res5".
        channels: C inside.
        mask_channels: E of the mask features.
    """

    def __init__(self, in_channels: Mapping[str, int], *, channels: int = 256, mask_channels: int = 256) -> None:
        super().__init__()
        self.memory_channels = in_channels["res5"]
        self._build(in_channels, in_channels["res5"], channels, mask_channels)

    def _build(self, in_channels: Mapping[str, int], top: int, channels: int, mask_channels: int) -> None:
        for level, name in ((1, "res2"), (2, "res3"), (3, "res4")):
            self.add_module(f"adapter_{level}", ConvNorm(in_channels[name], channels, 1, norm="group"))
            self.add_module(f"layer_{level}", ConvNorm(channels, channels, 3, norm="group", activation=True))
        self.layer_4 = ConvNorm(top, channels, 3, norm="group", activation=True)
        self.mask_features = Conv2d(channels, mask_channels, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                xavier_fill(module)

    def top_down(self, features: Mapping[str, Tensor], coarsest: Tensor) -> Tensor:
        """Mask features [B, E, h, w] at the size of "res2"; ``coarsest`` takes the place of "res5"."""
        y = self.layer_4(coarsest)
        for level, name in ((3, "res4"), (2, "res3"), (1, "res2")):
            lateral = self.get_submodule(f"adapter_{level}")(features[name])
            y = lateral + F.interpolate(y, size=lateral.shape[-2:], mode="nearest")
            y = self.get_submodule(f"layer_{level}")(y)
        out: Tensor = self.mask_features(y)
        return out

    def forward(self, features: Mapping[str, Tensor], padding: Tensor | None = None) -> PixelFeatures:
        """Decode.

        Args:
            features: "res2".."res5" of a backbone, [B, C_i, h_i, w_i].
            padding: not used; convolutions see padding as zeros.

        Returns:
            mask features, and "res5" as memory.
        """
        coarsest = features["res5"]
        size = (int(coarsest.shape[2]), int(coarsest.shape[3]))
        return PixelFeatures(self.top_down(features, coarsest), [as_tokens(coarsest)], [size])
