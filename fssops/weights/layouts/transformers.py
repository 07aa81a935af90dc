"""Names of MaskFormer and Mask2Former in the ``transformers`` library, in both directions.

Attention projections are packed into one matrix here and stand apart there (but for Mask2Former's cross-attention),
so a state dict is split or joined around the renaming. Where a table has several lines for one of our names, the first
is what transformers 5 writes; the others are read from files of version 4.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from fssops.weights.layout import Layout, Renaming, Rules, State

ENCODER = "model.pixel_level_module.encoder."
DECODER = "model.pixel_level_module.decoder."
QUERIES = "model.transformer_module."

_PARTS = ("q_proj", "k_proj", "v_proj")


def _resnet() -> Rules:
    stem = ENCODER + "embedder.embedder."
    rules = [
        ("backbone.stem.conv1.norm.*", stem + "normalization.*"),
        ("backbone.stem.conv1.*", stem + "convolution.*"),
    ]
    for stage in range(4):
        ours, theirs = f"backbone.res{stage + 2}.", ENCODER + f"encoder.stages.{stage}."
        for conv in range(3):
            layer = theirs + "layers.{}." + f"layer.{conv}."
            rules.append((ours + "{}." + f"conv{conv + 1}.norm.*", layer + "normalization.*"))
            rules.append((ours + "{}." + f"conv{conv + 1}.*", layer + "convolution.*"))
        rules.append((ours + "{}.shortcut.norm.*", theirs + "layers.{}.shortcut.normalization.*"))
        rules.append((ours + "{}.shortcut.*", theirs + "layers.{}.shortcut.convolution.*"))
    return rules


def _swin(root: str, *, modern: bool) -> Rules:
    """Swin below ``ENCODER + root``; ``modern`` are the names of transformers 5 for "swin" itself."""
    block, ours = ENCODER + root + "encoder.layers.{}.blocks.{}.", "backbone.layers.{}.blocks.{}."
    rules = [
        ("backbone.patch_embed.proj.*", ENCODER + root + "embeddings.patch_embeddings.projection.*"),
        ("backbone.patch_embed.norm.*", ENCODER + root + "embeddings.norm.*"),
        (ours + "norm1.*", block + "layernorm_before.*"),
        (ours + "norm2.*", block + "layernorm_after.*"),
        ("backbone.layers.{}.downsample.*", ENCODER + root + "encoder.layers.{}.downsample.*"),
    ]
    table = "relative_position_bias_table"
    if modern:
        rules += [
            (ours + "attn." + table, block + "attention.relative_position_bias." + table),
            *((ours + f"attn.{part}.*", block + f"attention.{part}.*") for part in _PARTS),
            (ours + "attn.proj.*", block + "attention.o_proj.*"),
            (ours + "mlp.fc1.*", block + "mlp.fc1.*"),
            (ours + "mlp.fc2.*", block + "mlp.fc2.*"),
        ]
    else:
        rules += [
            (ours + "attn." + table, block + "attention.self." + table),
            (ours + "attn.q_proj.*", block + "attention.self.query.*"),
            (ours + "attn.k_proj.*", block + "attention.self.key.*"),
            (ours + "attn.v_proj.*", block + "attention.self.value.*"),
            (ours + "attn.proj.*", block + "attention.output.dense.*"),
            (ours + "mlp.fc1.*", block + "intermediate.dense.*"),
            (ours + "mlp.fc2.*", block + "output.dense.*"),
        ]
    return rules


MASK2FORMER = Renaming(
    (
        ("pixel_decoder.input_proj.{}.norm.*", DECODER + "input_projections.{}.1.*"),
        ("pixel_decoder.input_proj.{}.*", DECODER + "input_projections.{}.0.*"),
        ("pixel_decoder.level_embed", DECODER + "level_embed"),
        ("pixel_decoder.encoder.{}.ffn.linear{}.*", DECODER + "encoder.layers.{}.fc{}.*"),
        ("pixel_decoder.encoder.{}.norm1.*", DECODER + "encoder.layers.{}.self_attn_layer_norm.*"),
        ("pixel_decoder.encoder.{}.norm2.*", DECODER + "encoder.layers.{}.final_layer_norm.*"),
        ("pixel_decoder.encoder.{}.self_attn.*", DECODER + "encoder.layers.{}.self_attn.*"),
        ("pixel_decoder.adapter_{}.norm.*", DECODER + "adapter_{}.1.*"),
        ("pixel_decoder.adapter_{}.*", DECODER + "adapter_{}.0.*"),
        ("pixel_decoder.layer_{}.norm.*", DECODER + "layer_{}.1.*"),
        ("pixel_decoder.layer_{}.*", DECODER + "layer_{}.0.*"),
        ("pixel_decoder.mask_features.*", DECODER + "mask_projection.*"),
        ("transformer_decoder.layers.{}.self_attn.*", QUERIES + "decoder.layers.{}.self_attn.*"),
        ("transformer_decoder.layers.{}.self_norm.*", QUERIES + "decoder.layers.{}.self_attn_layer_norm.*"),
        ("transformer_decoder.layers.{}.cross_attn.*", QUERIES + "decoder.layers.{}.cross_attn.*"),
        ("transformer_decoder.layers.{}.cross_norm.*", QUERIES + "decoder.layers.{}.cross_attn_layer_norm.*"),
        ("transformer_decoder.layers.{}.ffn.linear{}.*", QUERIES + "decoder.layers.{}.fc{}.*"),
        ("transformer_decoder.layers.{}.ffn_norm.*", QUERIES + "decoder.layers.{}.final_layer_norm.*"),
        ("transformer_decoder.decoder_norm.*", QUERIES + "decoder.layernorm.*"),
        ("transformer_decoder.query_feat.*", QUERIES + "queries_features.*"),
        ("transformer_decoder.query_embed.*", QUERIES + "queries_embedder.*"),
        ("transformer_decoder.level_embed.*", QUERIES + "level_embed.*"),
        ("transformer_decoder.input_proj.{}.*", QUERIES + "input_projections.{}.*"),
        ("transformer_decoder.mask_embed.layers.{}.*", QUERIES + "decoder.mask_predictor.mask_embedder.{}.0.*"),
        ("transformer_decoder.class_embed.*", "class_predictor.*"),
        *_resnet(),
        *_swin("swin.", modern=True),
        *_swin("swin.", modern=False),
        *_swin("", modern=False),
        *((f"backbone.norm{stage}.*", ENCODER + f"hidden_states_norms.stage{stage + 1}.*") for stage in range(4)),
    )
)
"""Our names, with packed projections split, and transformers' of ``Mask2FormerForUniversalSegmentation``."""

_MASKFORMER_LAYER = QUERIES + "decoder.layers.{}."
_MASKFORMER_OURS = "transformer_decoder.layers.{}."

MASKFORMER = Renaming(
    (
        ("pixel_decoder.layer_4.norm.*", DECODER + "fpn.stem.1.*"),
        ("pixel_decoder.layer_4.*", DECODER + "fpn.stem.0.*"),
        *(
            rule
            for level in (3, 2, 1)
            for rule in (
                (f"pixel_decoder.adapter_{level}.norm.*", DECODER + f"fpn.layers.{3 - level}.proj.1.*"),
                (f"pixel_decoder.adapter_{level}.*", DECODER + f"fpn.layers.{3 - level}.proj.0.*"),
                (f"pixel_decoder.layer_{level}.norm.*", DECODER + f"fpn.layers.{3 - level}.block.1.*"),
                (f"pixel_decoder.layer_{level}.*", DECODER + f"fpn.layers.{3 - level}.block.0.*"),
            )
        ),
        ("pixel_decoder.mask_features.*", DECODER + "mask_projection.*"),
        *(
            rule
            for ours, theirs in (("self_attn", "self_attn"), ("cross_attn", "encoder_attn"))
            for rule in (
                *((_MASKFORMER_OURS + f"{ours}.{p}.*", _MASKFORMER_LAYER + f"{theirs}.{p}.*") for p in _PARTS),
                (_MASKFORMER_OURS + f"{ours}.out_proj.*", _MASKFORMER_LAYER + f"{theirs}.o_proj.*"),
                (_MASKFORMER_OURS + f"{ours}.out_proj.*", _MASKFORMER_LAYER + f"{theirs}.out_proj.*"),
            )
        ),
        (_MASKFORMER_OURS + "self_norm.*", _MASKFORMER_LAYER + "self_attn_layer_norm.*"),
        (_MASKFORMER_OURS + "cross_norm.*", _MASKFORMER_LAYER + "encoder_attn_layer_norm.*"),
        (_MASKFORMER_OURS + "ffn_norm.*", _MASKFORMER_LAYER + "final_layer_norm.*"),
        (_MASKFORMER_OURS + "ffn.linear{}.*", _MASKFORMER_LAYER + "mlp.fc{}.*"),
        (_MASKFORMER_OURS + "ffn.linear{}.*", _MASKFORMER_LAYER + "fc{}.*"),
        ("transformer_decoder.decoder_norm.*", QUERIES + "decoder.layernorm.*"),
        ("transformer_decoder.query_embed.*", QUERIES + "queries_embedder.*"),
        ("transformer_decoder.input_proj.*", QUERIES + "input_projection.*"),
        ("transformer_decoder.mask_embed.layers.{}.*", "mask_embedder.{}.0.*"),
        ("transformer_decoder.class_embed.*", "class_predictor.*"),
        *_resnet(),
        *_swin("model.", modern=False),
        *_swin("model.", modern=True),
        *((f"backbone.norm{stage}.*", ENCODER + f"hidden_states_norms.{stage}.*") for stage in range(4)),
    )
)
"""The same of ``MaskFormerForInstanceSegmentation``; it has no transformer encoder in the pixel decoder."""

_PACKED = re.compile(r"^(.+)\.(in_proj_|qkv\.)(weight|bias)$")
_PART = re.compile(r"^(.+)\.(q|k|v)_proj\.(weight|bias)$")


def split_packed(state: Mapping[str, Tensor], *, keep: str = "") -> dict[str, Tensor]:
    """Our state dict with packed projections as ``q_proj``, ``k_proj``, ``v_proj``, but where ``keep`` is in a name."""
    split: dict[str, Tensor] = {}
    for name, value in state.items():
        match = _PACKED.match(name)
        if match is None or (keep and keep in name):
            split[name] = value
            continue
        for part, rows in zip(_PARTS, value.chunk(3), strict=True):
            split[f"{match[1]}.{part}.{match[3]}"] = rows
    return split


def join_packed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`split_packed`: ``attn`` of a Swin block becomes ``qkv``, all others ``in_proj``."""
    joined: dict[str, Tensor] = {}
    for name, value in state.items():
        match = _PART.match(name)
        if match is None:
            joined[name] = value
            continue
        stem, part, kind = match.groups()
        siblings = [f"{stem}.{p}.{kind}" for p in _PARTS]
        if any(sibling not in state for sibling in siblings):
            joined[name] = value
        elif part == "q":
            packed = f"{stem}.qkv.{kind}" if stem.startswith("backbone.") else f"{stem}.in_proj_{kind}"
            joined[packed] = torch.cat([state[sibling] for sibling in siblings])
    return joined


def _is_mask2former(keys: Collection[str]) -> bool:
    return QUERIES + "queries_features.weight" in keys


def _is_maskformer(keys: Collection[str]) -> bool:
    return DECODER + "fpn.stem.0.weight" in keys


def _converter(renaming: Renaming) -> Callable[[State, nn.Module], dict[str, Tensor]]:
    return lambda state, model: join_packed(renaming.state_to_ours(state))


_IGNORED = (
    r"^criterion\.empty_weight$",
    r"relative_position_index$",
    r"num_batches_tracked$",
    r"^model\.pixel_level_module\.encoder\.(swin\.|model\.)?layernorm\.",
)

LAYOUTS = (
    Layout(
        "transformers (Mask2FormerForUniversalSegmentation)",
        "mask2former",
        _is_mask2former,
        _converter(MASK2FORMER),
        _IGNORED,
        also=("mask2former_vis",),
    ),
    Layout(
        "transformers (MaskFormerForInstanceSegmentation)",
        "maskformer",
        _is_maskformer,
        _converter(MASKFORMER),
        _IGNORED,
    ),
)
