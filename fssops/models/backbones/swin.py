"""Swin Transformer (Liu et al., "Swin Transformer: hierarchical vision transformer using shifted windows", ICCV 2021).

In the form that dense prediction uses: any input size, padded to whole windows in every block, a LayerNorm of its own
on each of the four outputs. Names in the state dict are those of the official code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fssops.models.backbones.backbone import STAGES, Backbone
from fssops.models.layers.derived import Conv2d, Linear
from fssops.models.layers.stochastic_depth import drop_path
from fssops.models.layers.tensor_cache import TensorCache

LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class SwinForm:
    """Size of a Swin: width of the first stage, blocks and heads of each stage, window side in tokens."""

    channels: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    window: int


SWIN = {
    "swin_tiny": SwinForm(96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "swin_small": SwinForm(96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "swin_base": SwinForm(128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "swin_large": SwinForm(192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}
"""Published sizes; Base and Large are those pretrained at 384 x 384."""


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens of a window: [window^2, window^2] int64."""
    steps = torch.arange(window)
    rows = steps.repeat_interleave(window)
    columns = steps.repeat(window)
    down = rows[:, None] - rows[None] + window - 1
    right = columns[:, None] - columns[None] + window - 1
    return down * (2 * window - 1) + right


def shift_regions(height: int, width: int, window: int, device: torch.device | None = None) -> Tensor:
    """Which pairs of tokens may attend in shifted windows, on ``device``.

    After the cyclic shift a window can hold tokens from opposite borders; the map is cut at ``-window`` and
    ``-(window // 2)`` in both directions, and only tokens of one region see each other.

    Returns:
        [windows, window^2, window^2] float32: 0 within a region, -100 across.
    """

    def cuts(length: int) -> Tensor:
        position = torch.arange(length, device=device)
        return (position >= length - window).int() + (position >= length - window // 2).int()

    regions = cuts(height)[:, None] * 3 + cuts(width)[None]
    tokens = regions.view(height // window, window, width // window, window).transpose(1, 2).reshape(-1, window**2)
    return torch.where(tokens[:, None] == tokens[:, :, None], 0.0, -100.0)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learnt bias for each relative position.

    Args:
        channels: C.
        heads: M.
        window: side of a window.
    """

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        self.qkv = Linear(channels, 3 * channels)
        self.proj = Linear(channels, channels)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, tokens: Tensor, regions: Tensor | None) -> Tensor:
        """Tokens [B * windows, window^2, C] to the same; regions [windows, window^2, window^2], added, or None."""
        count, length, channels = tokens.shape
        q, k, v = self.qkv(tokens).view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(length, length, self.heads).permute(2, 0, 1)[None]  # [1, M, n, n]
        if regions is not None:
            bias = (bias + regions[:, None]).repeat(count // len(regions), 1, 1, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        merged: Tensor = self.proj(out.transpose(1, 2).reshape(count, length, channels))
        return merged


class SwinBlock(nn.Module):
    """Window attention, shifted in every second block, and an MLP; LayerNorm before each, residual around each."""

    def __init__(self, channels: int, heads: int, window: int, shifted: bool, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift, self.drop_path = window, window // 2 if shifted else 0, drop_path
        self.norm1 = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.attn = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", Linear(channels, 4 * channels))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", Linear(4 * channels, channels))

    def forward(self, x: Tensor, regions: Tensor | None) -> Tensor:
        """x [B, h, w, C]; regions of :func:`shift_regions` at the padded size, in shifted blocks."""
        batch, height, width, channels = x.shape
        side = self.window
        # Padding follows the norm: padded tokens are zeros that take part, as published.
        y = F.pad(self.norm1(x), (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = y.shape[1], y.shape[2]
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
        windows = y.view(batch, rows // side, side, columns // side, side, channels).transpose(2, 3)
        attended = self.attn(windows.reshape(-1, side * side, channels), regions if self.shift else None)
        y = attended.view(batch, rows // side, columns // side, side, side, channels).transpose(2, 3)
        y = y.reshape(batch, rows, columns, channels)
        if self.shift:
            y = y.roll((self.shift, self.shift), (1, 2))
        x = x + drop_path(y[:, :height, :width], self.drop_path, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path, self.training)


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice the width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels, eps=LAYER_NORM_EPS)
        self.reduction = Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, h, w, C] to [B, ceil(h / 2), ceil(w / 2), 2 C]."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        # (row, column) offsets (0, 0), (1, 0), (0, 1), (1, 1), in this order.
        parts = (x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2])
        merged: Tensor = self.reduction(self.norm(torch.cat(parts, dim=-1)))
        return merged


class SwinStage(nn.Module):
    """Blocks of one resolution and, but for the last stage, the merging that follows."""

    def __init__(self, channels: int, heads: int, window: int, drop_paths: list[float], merge: bool) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            SwinBlock(channels, heads, window, index % 2 == 1, rate) for index, rate in enumerate(drop_paths)
        )
        self.downsample = PatchMerging(channels) if merge else None
        self._regions = TensorCache()

    def forward(self, x: Tensor) -> Tensor:
        """[B, h, w, C] to the same; the merging is left to the caller."""
        height, width = x.shape[1] + -x.shape[1] % self.window, x.shape[2] + -x.shape[2] % self.window
        regions = self._regions.of(
            (height, width, x.device), lambda: shift_regions(height, width, self.window, x.device)
        )
        for block in self.blocks:
            x = block(x, regions)
        return x


class PatchEmbedding(nn.Module):
    """4 x 4 patches to tokens, then LayerNorm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = Conv2d(3, channels, 4, stride=4)
        self.norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, ceil(H / 4), ceil(W / 4), C]."""
        images = F.pad(images, (0, -images.shape[3] % 4, 0, -images.shape[2] % 4))
        tokens: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))
        return tokens


class SwinTransformer(Backbone):
    """Swin backbone with "res2".."res5" at strides 4, 8, 16, 32.

    Args:
        form: size.
        taps: which stages to return; all are built, those after the last of them are neither run nor trained.
        drop_path: stochastic-depth rate of the last block; it grows linearly from 0 at the first.
    """

    name = "swin"

    def __init__(self, form: SwinForm, *, taps: Sequence[str] = STAGES, drop_path: float = 0.3) -> None:
        super().__init__()
        self.form, self.taps = form, tuple(taps)
        self.patch_embed = PatchEmbedding(form.channels)
        blocks = sum(form.depths)
        rates = [drop_path * index / max(blocks - 1, 1) for index in range(blocks)]
        self.layers = nn.ModuleList()
        self.channels = {name: form.channels * 2**stage for stage, name in enumerate(STAGES)}
        self.strides = {name: 4 * 2**stage for stage, name in enumerate(STAGES)}
        self.layer_counts = {}
        self.layers_by_depth = ("patch_embed", *(f"layers.{stage}" for stage in range(len(STAGES))))
        for stage, (depth, heads, width) in enumerate(
            zip(form.depths, form.heads, self.channels.values(), strict=True)
        ):
            of_stage, rates = rates[:depth], rates[depth:]
            self.layers.append(SwinStage(width, heads, form.window, of_stage, merge=stage < 3))
            self.add_module(f"norm{stage}", nn.LayerNorm(width, eps=LAYER_NORM_EPS))
        self._freeze_what_is_not_run()

    def _freeze_what_is_not_run(self) -> None:
        self.run_stages = 1 + max(STAGES.index(tap) for tap in self.taps)
        for stage, (name, layer) in enumerate(zip(STAGES, self.layers, strict=True)):
            self.get_submodule(f"norm{stage}").requires_grad_(name in self.taps)
            layer.requires_grad_(stage < self.run_stages)
            if stage == self.run_stages - 1 and stage < 3:
                layer.get_submodule("downsample").requires_grad_(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps [B, C, h, w] of images [B, 3, H, W]."""
        features: dict[str, Tensor] = {}
        x = self.patch_embed(images)
        for stage, (name, layer) in enumerate(zip(STAGES[: self.run_stages], self.layers, strict=False)):
            assert isinstance(layer, SwinStage)
            x = layer(x)
            if name in self.taps:
                features[name] = self.get_submodule(f"norm{stage}")(x).permute(0, 3, 1, 2)
            if layer.downsample is not None and stage + 1 < self.run_stages:
                x = layer.downsample(x)
        return features
