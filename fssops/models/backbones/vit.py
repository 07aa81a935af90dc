"""Plain vision transformers: DINO, DINOv2 with and without registers, and DINOv3, as rows of one table.

Source: Caron et al., "Emerging properties in self-supervised vision transformers", ICCV 2021; Oquab et al., "DINOv2",
2023; Darcet et al., "Vision transformers need registers", ICLR 2024; Siméoni et al., "DINOv3", 2025. Names in the state
dict are those of the official code but for three: registers are ``register_tokens``, the two halves of a SwiGLU are one
``mlp.w12``, and the mask token, which only masked training uses, is left out.

Attention goes through ``scaled_dot_product_attention``: at 4,101 tokens it was 1.4 to 2 times as fast on a CPU as
:func:`fssops.ops.masked_attention`, which has no closed tile to skip here.

Its maps have one size. Systems that need several take "res2".."res5" after each quarter of the blocks, or
:mod:`fssops.models.backbones.feature_pyramid`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fssops.models.backbones.backbone import STAGES, Backbone, Watchers, padded_to, quarters, without_padding
from fssops.models.layers.derived import Conv2d, Linear
from fssops.models.layers.stochastic_depth import drop_path

ROTARY_BASE = 100.0
Rotation = tuple[Tensor, Tensor]
"""Cosine and sine [tokens, head width / 2] of the angles that queries and keys are turned by."""


@dataclass(frozen=True)
class ViTForm:
    """Size and details of a vision transformer.

    Attributes:
        patch: side of a patch in pixels.
        width: channels D.
        depth: number of blocks.
        heads: M.
        hidden: width inside the MLP.
        swiglu: whether the MLP is gated (two input halves) instead of one layer and a GELU.
        layer_scale: whether each branch has a learnt factor a channel.
        registers: tokens beside the class token that stand for no patch.
        table: side of the learnt position table in patches; 0: rotary positions instead.
        table_resize: how the table becomes one of another size: "offset" bicubic by the factor (h + 0.1) / table, as
            DINO and DINOv2 do, "antialias" bicubic to h x w with antialiasing, as DINOv2 with registers does.
        norm_eps: of every LayerNorm.
        qkv_bias: "all"; "no_key" leaves the keys' part at zero; "none".
    """

    patch: int
    width: int
    depth: int
    heads: int
    hidden: int
    swiglu: bool = False
    layer_scale: bool = True
    registers: int = 0
    table: int = 0
    table_resize: Literal["offset", "antialias"] = "offset"
    norm_eps: float = 1e-6
    qkv_bias: Literal["all", "no_key", "none"] = "all"

    @property
    def prefix(self) -> int:
        """Tokens before the patches: the class token and the registers."""
        return 1 + self.registers


def _dino(patch: int, width: int, heads: int) -> ViTForm:
    return ViTForm(patch, width, 12, heads, 4 * width, layer_scale=False, table=224 // patch)


def _dinov2(width: int, depth: int, heads: int, registers: int) -> ViTForm:
    giant = width == 1536
    resize: Literal["offset", "antialias"] = "antialias" if registers else "offset"
    return ViTForm(
        14, width, depth, heads, 4096 if giant else 4 * width, giant, registers=registers, table=37, table_resize=resize
    )


def _dinov3(width: int, depth: int, heads: int, hidden: int, swiglu: bool = False) -> ViTForm:
    bias: Literal["no_key", "none"] = "none" if width == 4096 else "no_key"
    return ViTForm(16, width, depth, heads, hidden, swiglu, registers=4, norm_eps=1e-5, qkv_bias=bias)


VIT: dict[str, ViTForm] = {
    "dino_vits16": _dino(16, 384, 6),
    "dino_vits8": _dino(8, 384, 6),
    "dino_vitb16": _dino(16, 768, 12),
    "dino_vitb8": _dino(8, 768, 12),
    "dinov2_vits14": _dinov2(384, 12, 6, 0),
    "dinov2_vitb14": _dinov2(768, 12, 12, 0),
    "dinov2_vitl14": _dinov2(1024, 24, 16, 0),
    "dinov2_vitg14": _dinov2(1536, 40, 24, 0),
    "dinov2_vits14_reg": _dinov2(384, 12, 6, 4),
    "dinov2_vitb14_reg": _dinov2(768, 12, 12, 4),
    "dinov2_vitl14_reg": _dinov2(1024, 24, 16, 4),
    "dinov2_vitg14_reg": _dinov2(1536, 40, 24, 4),
    "dinov3_vits16": _dinov3(384, 12, 6, 1536),
    "dinov3_vits16plus": _dinov3(384, 12, 6, 1536, swiglu=True),
    "dinov3_vitb16": _dinov3(768, 12, 12, 3072),
    "dinov3_vitl16": _dinov3(1024, 24, 16, 4096),
    "dinov3_vitl16plus": _dinov3(1024, 24, 16, 4096, swiglu=True),
    "dinov3_vith16plus": _dinov3(1280, 32, 20, 5120, swiglu=True),
    "dinov3_vit7b16": _dinov3(4096, 40, 32, 8192, swiglu=True),
}
"""Published sizes, by the names of the official hub."""


class RotaryPositions(nn.Module):
    """Angles of rotary positions over a patch grid whose coordinates span -1..1 in each direction, whatever its size.

    Args:
        head: channels of a head; a quarter of them are periods, which rows and columns share.
    """

    periods: Tensor

    def __init__(self, head: int) -> None:
        super().__init__()
        steps = head // 4
        self.register_buffer("periods", ROTARY_BASE ** (torch.arange(steps) / steps))

    def forward(self, height: int, width: int, prefix: int = 0, rescale: float = 1.0) -> Rotation:
        """Cosine and sine [prefix + height * width, head / 2], row-major; the prefix is not turned.

        Args:
            height, width: patches.
            prefix: tokens before them.
            rescale: factor of the coordinates.
        """
        periods = self.periods.float() if self.periods.dtype in (torch.float16, torch.bfloat16) else self.periods

        def turns(length: int) -> Tensor:
            steps = torch.arange(length, device=periods.device, dtype=periods.dtype)
            centres = 2 * ((steps + 0.5) / length) - 1
            return 2 * math.pi * (rescale * centres)[:, None] / periods

        rows, columns = turns(height)[:, None], turns(width)[None]
        shape = (height, width, len(periods))
        angles = torch.cat([rows.expand(shape), columns.expand(shape)], dim=2).flatten(0, 1)
        angles = F.pad(angles, (0, 0, prefix, 0))
        return angles.cos(), angles.sin()


def _turned(x: Tensor, rotation: Rotation) -> Tensor:
    """Channel c of the first half and of the second half turned together; in the angles' precision."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class SelfAttention(nn.Module):
    """Attention of all tokens over all tokens."""

    def __init__(self, form: ViTForm) -> None:
        super().__init__()
        self.heads, self.keys_have_bias = form.heads, form.qkv_bias == "all"
        self.qkv = Linear(form.width, 3 * form.width, bias=form.qkv_bias != "none")
        self.proj = Linear(form.width, form.width)

    def forward(self, tokens: Tensor, rotation: Rotation | None) -> Tensor:
        """[B, S, D] to the same."""
        bias: Tensor | None = self.qkv.bias
        if bias is not None and not self.keys_have_bias:
            parts = bias.chunk(3)
            bias = torch.cat([parts[0], torch.zeros_like(parts[1]), parts[2]])
        mixed = F.linear(tokens, self.qkv.weight, bias)
        q, k, v = mixed.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if rotation is not None:
            q, k = _turned(q, rotation), _turned(k, rotation)
        out = F.scaled_dot_product_attention(q, k, v)
        merged: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return merged


class Mlp(nn.Module):
    """Two layers with a GELU between them."""

    def __init__(self, form: ViTForm) -> None:
        super().__init__()
        self.fc1 = Linear(form.width, form.hidden)
        self.fc2 = Linear(form.hidden, form.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, S, D] to the same."""
        out: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return out


class SwiGLU(nn.Module):
    """A gated MLP: SiLU of the first half times the second."""

    def __init__(self, form: ViTForm) -> None:
        super().__init__()
        self.w12 = Linear(form.width, 2 * form.hidden)
        self.w3 = Linear(form.hidden, form.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, S, D] to the same."""
        gate, value = self.w12(tokens).chunk(2, dim=-1)
        out: Tensor = self.w3(F.silu(gate) * value)
        return out


class LayerScale(nn.Module):
    """A learnt factor a channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, S, D] to the same."""
        return tokens * self.gamma


class ViTBlock(nn.Module):
    """Attention and MLP, LayerNorm before each, residual around each; stochastic depth in training."""

    def __init__(self, form: ViTForm, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(form.width, eps=form.norm_eps)
        self.attn = SelfAttention(form)
        self.ls1 = LayerScale(form.width) if form.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(form.width, eps=form.norm_eps)
        self.mlp = SwiGLU(form) if form.swiglu else Mlp(form)
        self.ls2 = LayerScale(form.width) if form.layer_scale else nn.Identity()

    def forward(self, tokens: Tensor, rotation: Rotation | None) -> Tensor:
        """[B, S, D] to the same."""
        tokens = tokens + drop_path(self.ls1(self.attn(self.norm1(tokens), rotation)), self.drop_path, self.training)
        return tokens + drop_path(self.ls2(self.mlp(self.norm2(tokens))), self.drop_path, self.training)


class PatchEmbedding(nn.Module):
    """Patches to tokens by one convolution."""

    def __init__(self, form: ViTForm) -> None:
        super().__init__()
        self.proj = Conv2d(3, form.width, form.patch, stride=form.patch)


class VisionTransformer(Backbone):
    """A vision transformer that returns the patch tokens of some of its blocks as maps.

    "block0".. are the maps of all blocks, "res2".."res5" those after each quarter of them. Images whose sides are no
    multiple of the patch are padded on the right and below with zeros, the mean colour of normalised images, and a
    warning says so; "block" maps cover the padded image, "res" maps the image alone
    (:func:`fssops.models.backbones.backbone.without_padding`).

    Args:
        form: a row of :data:`VIT`, or a size of one's own.
        taps: which of the maps to return; None: that of the last block. Blocks after the last of them are not run.
        norm_outputs: whether the final LayerNorm is applied to every map, as the official code does.
        drop_path: stochastic-depth rate of the last block; it grows linearly from 0 at the first.
        rope_rescale: in training, each block of a rotary form turns by coordinates times a factor drawn from
            1 / rope_rescale..rope_rescale (2 in DINOv3's own training); 1: never.

    Raises:
        ValueError: taps that the form does not have, a rate or a factor out of range.
    """

    name = "vit"

    def __init__(
        self,
        form: ViTForm,
        *,
        taps: Sequence[str] | None = None,
        norm_outputs: bool = True,
        drop_path: float = 0.0,
        rope_rescale: float = 1.0,
    ) -> None:
        super().__init__()
        self.form = form
        self.block_of = {f"block{number}": number for number in range(form.depth)} | quarters(form.depth)
        last = f"block{form.depth - 1}"
        if taps is not None and (not taps or set(taps) - set(self.block_of)):
            names = f"block0 to {last} and {', '.join(STAGES)}"
            raise ValueError(f"VisionTransformer: taps must be among {names}, got {list(taps)}")
        self.taps = (last,) if taps is None else tuple(taps)
        self.run_blocks = 1 + max(self.block_of[tap] for tap in self.taps)
        if not 0 <= drop_path < 1:
            raise ValueError(f"VisionTransformer: drop_path must be at least 0 and less than 1, got {drop_path}")
        if not rope_rescale >= 1:
            raise ValueError(f"VisionTransformer: rope_rescale must be at least 1, got {rope_rescale}")
        self.norm_outputs, self.rope_rescale = norm_outputs, rope_rescale
        built = [tap for tap, number in self.block_of.items() if number < self.run_blocks]
        self.channels, self.strides = dict.fromkeys(built, form.width), dict.fromkeys(built, form.patch)
        self.layer_counts = {stage: len(self._blocks_of(stage)) for stage in STAGES if stage in built}
        self.layers_by_depth = ("patch_embed", *(f"blocks.{number}" for number in range(self.run_blocks)))

        self.cls_token = nn.Parameter(torch.zeros(1, 1, form.width))
        self.register_tokens = nn.Parameter(torch.zeros(1, form.registers, form.width)) if form.registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + form.table**2, form.width)) if form.table else None
        self.rope_embed = None if form.table else RotaryPositions(form.width // form.heads)
        self.patch_embed = PatchEmbedding(form)
        rates = [drop_path * index / max(form.depth - 1, 1) for index in range(form.depth)]
        self.blocks = nn.ModuleList(ViTBlock(form, rate) for rate in rates)
        self.norm = nn.LayerNorm(form.width, eps=form.norm_eps)
        self._initialise()
        self.blocks[self.run_blocks :].requires_grad_(False)
        self.norm.requires_grad_(norm_outputs)

    def _initialise(self) -> None:
        for tokens in (self.cls_token, self.register_tokens, self.pos_embed):
            if tokens is not None:
                nn.init.trunc_normal_(tokens, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _blocks_of(self, stage: str) -> range:
        """Numbers of the blocks of a quarter."""
        place = STAGES.index(stage)
        return range(self.block_of[STAGES[place - 1]] + 1 if place else 0, self.block_of[stage] + 1)

    def layer_of(self, name: str) -> int:
        """Depth of a parameter: 0 the embeddings, then the blocks that run, and last the norm."""
        return 0 if name in ("cls_token", "register_tokens", "pos_embed") else super().layer_of(name)

    def positions(self, height: int, width: int) -> Tensor:
        """The learnt table [1, 1 + height * width, D] at a patch grid; the class token's row stays, resized in float32.

        Raises:
            RuntimeError: the form has rotary positions.
        """
        table, side = self.pos_embed, self.form.table
        if table is None:
            raise RuntimeError("VisionTransformer.positions: the form must have a learnt table, got rotary positions")
        if (height, width) == (side, side):
            return table
        grid = table[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        grid = grid.float() if grid.dtype in (torch.float16, torch.bfloat16) else grid
        if self.form.table_resize == "antialias":
            grid = F.interpolate(grid, size=(height, width), mode="bicubic", antialias=True)
        else:
            # The factor itself, not the size that follows from it, gives the sampling positions.
            factors = ((height + 0.1) / side, (width + 0.1) / side)
            grid = F.interpolate(grid, scale_factor=factors, mode="bicubic")
        return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens [B, prefix + h * w, D] that enter the first block, and the patch grid (h, w)."""
        images = padded_to(self.form.patch, images, "VisionTransformer")
        x = self.patch_embed.proj(images)
        grid = (int(x.shape[2]), int(x.shape[3]))
        patches = x.flatten(2).transpose(1, 2)
        batch = len(images)
        cls = self.cls_token.expand(batch, -1, -1)
        if self.pos_embed is not None:
            positions = self.positions(*grid)
            cls, patches = cls + positions[:, :1], patches + positions[:, 1:]
        registers = [] if self.register_tokens is None else [self.register_tokens.expand(batch, -1, -1)]
        return torch.cat([cls, *registers, patches], dim=1), grid

    def tokens(self, images: Tensor, blocks: Collection[int]) -> tuple[dict[int, Tensor], tuple[int, int]]:
        """Tokens after some blocks, before the final norm.

        Args:
            images: normalised, [B, 3, H, W].
            blocks: their numbers, from 0.

        Returns:
            block number to [B, prefix + h * w, D], in the order class token, registers, patches row by row; and (h, w).
        """
        x, grid = self.embed(images)
        rotation = None if self.rope_embed is None else self.rope_embed(*grid, self.form.prefix)
        outputs: dict[int, Tensor] = {}
        for number in range(max(blocks) + 1):
            if self.rope_embed is not None and self.training and self.rope_rescale > 1:
                factor = self.rope_rescale ** (2 * torch.rand(()).item() - 1)
                rotation = self.rope_embed(*grid, self.form.prefix, factor)
            x = self.blocks[number](x, rotation)
            if number in blocks:
                outputs[number] = x
        return outputs, grid

    def forward(self, images: Tensor, watchers: Watchers | None = None) -> dict[str, Tensor]:
        """Normalised images [B, 3, H, W] to tap -> [B, D, h, w] in channels-last memory.

        Watchers see every block of their quarter as a map that covers the image alone.
        """
        watched = [(number, watch) for stage, watch in (watchers or {}).items() for number in self._blocks_of(stage)]
        numbers = {tap: self.block_of[tap] for tap in self.taps}
        outputs, grid = self.tokens(images, {*numbers.values(), *(number for number, _ in watched)})
        size = (int(images.shape[2]), int(images.shape[3]))

        def maps(number: int) -> Tensor:
            patches = outputs[number][:, self.form.prefix :]
            patches = self.norm(patches) if self.norm_outputs else patches
            return patches.unflatten(1, grid).permute(0, 3, 1, 2)  # type: ignore[no-any-return]

        for number, watch in watched:
            watch(without_padding(maps(number), self.form.patch, size))
        return {
            tap: without_padding(maps(number), self.form.patch, size) if tap in STAGES else maps(number)
            for tap, number in numbers.items()
        }


def upsample_to_image(maps: Tensor, size: tuple[int, int], patch: int) -> Tensor:
    """Maps of a padded image, bilinear at its pixels, without what was padded.

    Args:
        maps: [B, C, h, w].
        size: (H, W) of the image, at most (h * patch, w * patch).
        patch: pixels of a cell's side.

    Returns:
        [B, C, H, W].
    """
    padded = (maps.shape[-2] * patch, maps.shape[-1] * patch)
    return F.interpolate(maps, size=padded, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]
