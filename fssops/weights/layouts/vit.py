"""Weights of vision transformers: the official files of DINO, DINOv2 and DINOv3, and transformers' names for them.

Official names are ours but for registers, DINOv3's two input layers of a SwiGLU and its mask of the biases: the mask is
applied here, and where a file lacks it or holds NaN, the keys have no bias, as published. transformers has no biases of
the keys at all and stores queries, keys and values apart.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import torch
from torch import Tensor, nn

from fssops.weights.layout import Layout, State

_CHUNKED = re.compile(r"^blocks\.\d+\.(\d+\.)")
_PREFIX = re.compile(r"^(?:(?:vit|dinov2|dinov2_with_registers|dinov3_vit|model)\.)*(?:encoder\.)?")
_BLOCK = re.compile(r"^layers?\.(\d+)\.(.+)$")

_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.bias": "patch_embed.proj.bias",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
}
"""transformers' names outside the blocks, without a leading ``model.`` or ``vit.``, and ours."""

_IN_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attn.proj",
    "attention.output.dense": "attn.proj",
    "layer_scale1": "ls1",
    "layer_scale2": "ls2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.up_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
    "mlp.weights_in": "mlp.w12",
    "mlp.weights_out": "mlp.w3",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
"""transformers' names of a block's layers and ours; queries, keys and values are joined apart."""

_GATED = {"mlp.down_proj": "mlp.w3"}
_PARTS = {
    "attention.q_proj": ("attn.qkv", 0),
    "attention.k_proj": ("attn.qkv", 1),
    "attention.v_proj": ("attn.qkv", 2),
    "attention.attention.query": ("attn.qkv", 0),
    "attention.attention.key": ("attn.qkv", 1),
    "attention.attention.value": ("attn.qkv", 2),
    "mlp.gate_proj": ("mlp.w12", 0),
    "mlp.up_proj": ("mlp.w12", 1),
}
"""Layers of transformers that are rows of one layer of ours, in this order; ``up_proj`` only beside a ``gate_proj``."""


def _recognise_official(keys: Collection[str]) -> bool:
    first = ("blocks.0.attn.qkv.weight", "blocks.0.0.attn.qkv.weight")
    return "cls_token" in keys and "patch_embed.proj.weight" in keys and any(key in keys for key in first)


def _convert_official(state: State, model: nn.Module) -> dict[str, Tensor]:
    named = {_CHUNKED.sub(r"blocks.\1", key): value for key, value in state.items()}
    converted: dict[str, Tensor] = {}
    for key, value in named.items():
        if key.endswith("attn.qkv.bias") and not _keys_have_bias(model):
            mask = named.get(f"{key}_mask")
            queries, _, values = value.chunk(3)
            if mask is not None and bool(mask.isfinite().all()):
                queries, _, values = (value * mask).chunk(3)
            converted[key] = torch.cat([queries, torch.zeros_like(queries), values])
        elif match := re.match(r"^(blocks\.\d+\.mlp\.)w([12])\.(weight|bias)$", key):
            stem, number, kind = match.groups()
            if number == "1":
                other = named.get(f"{stem}w2.{kind}")
                converted[f"{stem}w12.{kind}"] = value if other is None else torch.cat([value, other])
        elif not key.endswith("attn.qkv.bias_mask"):
            converted["register_tokens" if key == "storage_tokens" else key] = value
    return _with_periods(converted, model)


def _recognise_transformers(keys: Collection[str]) -> bool:
    names = {_PREFIX.sub("", key) for key in keys}
    projections = ("query.weight", "q_proj.weight")
    return "embeddings.cls_token" in names and any(
        bool(_BLOCK.match(name)) and name.endswith(projections) for name in names
    )


def _convert_transformers(state: State, model: nn.Module) -> dict[str, Tensor]:
    gated = any(".mlp.gate_proj." in key for key in state)
    converted: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        name = _PREFIX.sub("", key)
        match = _BLOCK.match(name)
        if match is None:
            converted[_TOP.get(name, key)] = value
            continue
        layer, _, kind = match[2].rpartition(".")
        stem = f"blocks.{match[1]}."
        if layer in _PARTS and (gated or layer != "mlp.up_proj"):
            ours, place = _PARTS[layer]
            parts.setdefault(f"{stem}{ours}.{kind}", {})[place] = value
        elif layer in _IN_BLOCK:
            ours = _GATED.get(layer, _IN_BLOCK[layer]) if gated else _IN_BLOCK[layer]
            converted[f"{stem}{ours}.{'gamma' if kind == 'lambda1' else kind}"] = value
        else:
            converted[key] = value
    for ours, rows in parts.items():
        if ours.endswith("attn.qkv.bias") and {0, 2} <= rows.keys():
            rows.setdefault(1, torch.zeros_like(rows[0]))
        converted[ours] = torch.cat([rows[place] for place in sorted(rows)])
    return _with_periods(converted, model)


def _keys_have_bias(model: nn.Module) -> bool:
    return getattr(getattr(model, "form", None), "qkv_bias", "all") == "all"


def _with_periods(converted: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rotary periods that a file does not hold are the ones that the model has: they are no weights."""
    periods = model.state_dict().get("rope_embed.periods")
    if periods is not None:
        converted.setdefault("rope_embed.periods", periods)
    return converted


LAYOUTS = (
    Layout(
        "official ViT (facebookresearch/dino, dinov2, dinov3)",
        "vit",
        _recognise_official,
        _convert_official,
        (r"^mask_token$", r"^local_cls_norm\.", r"^head\."),
    ),
    Layout(
        "transformers ViT (ViTModel, Dinov2Model, Dinov2WithRegistersModel, DINOv3ViTModel)",
        "vit",
        _recognise_transformers,
        _convert_transformers,
        (r"(^|\.)embeddings\.mask_token$", r"(^|\.)pooler\.", r"(^|\.)inv_freq$", r"^classifier\."),
    ),
)
