"""The pixel decoder of Mask2Former: deformable attention over strides 32, 16 and 8, then one FPN step to stride 4.

Source: Cheng et al., "Masked-attention mask transformer for universal image segmentation", CVPR 2022, and its code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fssops.models.layers.convolution import ConvNorm
from fssops.models.layers.derived import Conv2d, autocast_type
from fssops.models.layers.feed_forward import FeedForward
from fssops.models.layers.initialisation import xavier_fill
from fssops.models.layers.ms_deform_attn import MSDeformAttn
from fssops.models.layers.position_encoding import PositionEncodingCache
from fssops.models.layers.tensor_cache import TensorCache
from fssops.models.pixel_decoders.features import PixelFeatures

IN_FEATURES = ("res5", "res4", "res3")
"""Levels of the encoder, coarse to fine."""


class MSDeformEncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward, each with residual and LayerNorm after it."""

    def __init__(self, channels: int, heads: int, levels: int, points: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(channels, heads, levels, points)
        self.norm1 = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, hidden, dropout)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = dropout

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        reference_points: Tensor,
        sizes: Sequence[tuple[int, int]],
        padding: Tensor | None,
    ) -> Tensor:
        """Tokens [B, S, C] to [B, S, C]; positions [S, C] are added to the query only."""
        attended = self.self_attn(tokens + positions, reference_points, tokens, sizes, padding)
        tokens = self.norm1(tokens + F.dropout(attended, self.dropout, self.training))
        out: Tensor = self.norm2(tokens + F.dropout(self.ffn(tokens), self.dropout, self.training))
        return out


class MSDeformPixelDecoder(nn.Module):
    """Multi-scale deformable attention pixel decoder.

    Args:
        in_channels: channels of "res2".."res5".
        channels: C inside.
        mask_channels: E of the mask features.
        heads: attention heads.
        layers: encoder layers.
        points: sampling points a head and level.
        hidden: width of the feed-forward sub-layers.
        dropout: rate in training.
        recompute: in training, keep only the tokens between encoder layers and run each again for the backward pass.
    """

    def __init__(
        self,
        in_channels: Mapping[str, int],
        *,
        channels: int = 256,
        mask_channels: int = 256,
        heads: int = 8,
        layers: int = 6,
        points: int = 4,
        hidden: int = 1024,
        dropout: float = 0.0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        levels = len(IN_FEATURES)
        self.channels, self.recompute, self.dropout = channels, recompute, dropout
        projections = [ConvNorm(in_channels[name], channels, 1, bias=True, norm="group") for name in IN_FEATURES]
        for conv in projections:
            nn.init.xavier_uniform_(conv.weight)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        self.input_proj = nn.ModuleList(projections)
        self.level_embed = nn.Parameter(torch.randn(levels, channels))
        self.encoder = nn.ModuleList(
            MSDeformEncoderLayer(channels, heads, levels, points, hidden, dropout) for _ in range(layers)
        )
        self.adapter_1 = ConvNorm(in_channels["res2"], channels, 1, norm="group")
        self.layer_1 = ConvNorm(channels, channels, 3, norm="group", activation=True)
        self.mask_features = Conv2d(channels, mask_channels, 1)
        for module in (self.adapter_1, self.layer_1, self.mask_features):
            xavier_fill(module)
        self._positions = PositionEncodingCache(channels)
        self._references = TensorCache()

    def forward(self, features: Mapping[str, Tensor], padding: Tensor | None = None) -> PixelFeatures:
        """Decode; float32 and bfloat16 are mixed as :func:`_precision` says.

        Args:
            features: "res2".."res5" of a backbone, [B, C_i, h_i, w_i].
            padding: [B, h, w] bool of any size, True where the image is padding; None attends to padding, as published.

        Returns:
            mask features and the memory at strides 32, 16 and 8.
        """
        with _precision(features["res5"]):
            # The finest map is made when it is needed: until then only the backbone's is held.
            return self._decode(self._levels(features), lambda: self._fine(features), padding)

    def project(self, features: Mapping[str, Tensor]) -> tuple[list[Tensor], Tensor]:
        """All that is read of the backbone's features: the encoder's levels, coarse to fine, and a map at stride 4."""
        with _precision(features["res5"]):
            return self._levels(features), self._fine(features)

    def decode(self, levels: Sequence[Tensor], fine: Tensor, padding: Tensor | None = None) -> PixelFeatures:
        """The rest of :meth:`forward`, from what :meth:`project` returns."""
        with _precision(fine):
            return self._decode(levels, lambda: _as_read(fine).clone(), padding)  # it is added to in place

    def _levels(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        return [conv(_as_read(features[name])) for name, conv in zip(IN_FEATURES, self.input_proj, strict=True)]

    def _fine(self, features: Mapping[str, Tensor]) -> Tensor:
        fine: Tensor = self.adapter_1(_as_read(features["res2"]))
        return fine

    def _decode(self, maps: Sequence[Tensor], fine_map: Callable[[], Tensor], padding: Tensor | None) -> PixelFeatures:
        sizes = [(int(m.shape[2]), int(m.shape[3])) for m in maps]
        device = maps[0].device
        areas = [height * width for height, width in sizes]
        positions = torch.cat(
            [self._positions(size, device) + level for size, level in zip(sizes, self.level_embed, strict=True)]
        )
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)  # [B, S, C]
        tokens = tokens.to(positions.dtype)  # what layers add up stays in float32
        references = self._references.of((tuple(sizes), device), lambda: _pixel_centres(sizes).to(device))
        references = references.expand(len(tokens), -1, -1, -1)
        blocked = None if padding is None else torch.cat([resized_padding(padding, size) for size in sizes], dim=1)
        for layer in self.encoder:
            if self.recompute and self.training and torch.is_grad_enabled():
                tokens = checkpoint(
                    layer,
                    *(tokens, positions, references, sizes, blocked),
                    use_reentrant=False,
                    preserve_rng_state=self.dropout > 0,
                )
            else:
                tokens = layer(tokens, positions, references, sizes, blocked)
        memory = list(tokens.split(areas, dim=1))
        y = fine_map()
        # As tokens the finest level is channels-last; in the layout of the map it joins no later step copies.
        fine = memory[-1].transpose(1, 2).unflatten(2, sizes[-1])
        layout = torch.channels_last if y.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        fine = fine.contiguous(memory_format=layout)
        y += F.interpolate(fine, size=y.shape[-2:], mode="bilinear", align_corners=False)
        y = self.layer_1(y)
        # Mask features are read row by row of a channel, many times.
        return PixelFeatures(self.mask_features(y).contiguous(), memory, sizes)


def _precision(like: Tensor) -> torch.autocast:
    """Float32 whatever autocast says, as published, but for predictions under bfloat16, which has float32's range.

    Then products are of bfloat16, and the sums of residuals, the norms and the sampling locations of float32.
    """
    half = autocast_type(like) == torch.bfloat16 and not torch.is_grad_enabled()
    return torch.autocast(like.device.type, torch.bfloat16, enabled=half)


def _as_read(features: Tensor) -> Tensor:
    """Features as the first convolutions take them in the precision that is on."""
    return features.float() if autocast_type(features) is None else features


def _pixel_centres(sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Pixel centres [1, S, L, 2] of the tokens of all levels, (x, y) in 0..1, the same for every target level."""
    centres = []
    for height, width in sizes:
        y = (torch.arange(height, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32) + 0.5) / width
        grid = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=2)
        centres.append(grid.reshape(-1, 2))
    return torch.cat(centres)[None, :, None].expand(1, -1, len(sizes), 2).contiguous()


def resized_padding(padding: Tensor, size: tuple[int, int]) -> Tensor:
    """Padding mask [B, H, W] (True = padding) at a coarser grid, nearest, flattened: [B, h * w]."""
    return F.interpolate(padding[:, None].float(), size=size, mode="nearest").flatten(1) > 0.5
