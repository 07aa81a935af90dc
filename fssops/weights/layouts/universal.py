"""The authors' checkpoints of MaskFormer, Mask2Former, MP-Former and the per-pixel baselines: detectron2's names.

Backbones are named alike on both sides. Old files lack the level ``pixel_decoder`` in the names of that part and call
Mask2Former's query features ``static_query``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from torch import Tensor, nn

from fssops.weights.layout import Layout, Renaming, State

PIXEL = "sem_seg_head.pixel_decoder."
PREDICTOR = "sem_seg_head.predictor."
_OLD_PIXEL = re.compile(r"^sem_seg_head\.(?!predictor\.|pixel_decoder\.)(.+)$")

_SHARED = (
    ("backbone.*", "backbone.*"),
    ("pixel_decoder.adapter_{}.*", PIXEL + "adapter_{}.*"),
    ("pixel_decoder.layer_{}.*", PIXEL + "layer_{}.*"),
    ("pixel_decoder.mask_features.*", PIXEL + "mask_features.*"),
    ("pixel_decoder.encoder.{}.ffn.linear{}.*", PIXEL + "transformer.encoder.layers.{}.linear{}.*"),
    ("pixel_decoder.encoder.{}.*", PIXEL + "transformer.encoder.layers.{}.*"),
    ("transformer_decoder.class_embed.*", PREDICTOR + "class_embed.*"),
    ("transformer_decoder.mask_embed.*", PREDICTOR + "mask_embed.*"),
    ("transformer_decoder.query_embed.*", PREDICTOR + "query_embed.*"),
    ("transformer_decoder.input_proj.*", PREDICTOR + "input_proj.*"),
)

MASK2FORMER = Renaming(
    (
        ("pixel_decoder.input_proj.{}.norm.*", PIXEL + "input_proj.{}.1.*"),
        ("pixel_decoder.input_proj.{}.*", PIXEL + "input_proj.{}.0.*"),
        ("pixel_decoder.level_embed", PIXEL + "transformer.level_embed"),
        *_SHARED,
        ("transformer_decoder.layers.{}.self_attn.*", PREDICTOR + "transformer_self_attention_layers.{}.self_attn.*"),
        ("transformer_decoder.layers.{}.self_norm.*", PREDICTOR + "transformer_self_attention_layers.{}.norm.*"),
        (
            "transformer_decoder.layers.{}.cross_attn.*",
            PREDICTOR + "transformer_cross_attention_layers.{}.multihead_attn.*",
        ),
        ("transformer_decoder.layers.{}.cross_norm.*", PREDICTOR + "transformer_cross_attention_layers.{}.norm.*"),
        ("transformer_decoder.layers.{}.ffn.linear{}.*", PREDICTOR + "transformer_ffn_layers.{}.linear{}.*"),
        ("transformer_decoder.layers.{}.ffn_norm.*", PREDICTOR + "transformer_ffn_layers.{}.norm.*"),
        ("transformer_decoder.decoder_norm.*", PREDICTOR + "decoder_norm.*"),
        ("transformer_decoder.query_feat.*", PREDICTOR + "query_feat.*"),
        ("transformer_decoder.level_embed.*", PREDICTOR + "level_embed.*"),
        ("transformer_decoder.label_enc.*", PREDICTOR + "label_enc.*"),
    )
)
"""Our names and the authors' of Mask2Former; MP-Former's add ``label_enc``."""

_MASKFORMER_RULES = (
    ("pixel_decoder.input_proj.*", PIXEL + "input_proj.*"),
    *_SHARED,
    ("transformer_decoder.layers.{}.self_attn.*", PREDICTOR + "transformer.decoder.layers.{}.self_attn.*"),
    ("transformer_decoder.layers.{}.cross_attn.*", PREDICTOR + "transformer.decoder.layers.{}.multihead_attn.*"),
    ("transformer_decoder.layers.{}.ffn.linear{}.*", PREDICTOR + "transformer.decoder.layers.{}.linear{}.*"),
    ("transformer_decoder.layers.{}.self_norm.*", PREDICTOR + "transformer.decoder.layers.{}.norm1.*"),
    ("transformer_decoder.layers.{}.cross_norm.*", PREDICTOR + "transformer.decoder.layers.{}.norm2.*"),
    ("transformer_decoder.layers.{}.ffn_norm.*", PREDICTOR + "transformer.decoder.layers.{}.norm3.*"),
    ("transformer_decoder.decoder_norm.*", PREDICTOR + "transformer.decoder.norm.*"),
)

MASKFORMER = Renaming(_MASKFORMER_RULES)
"""Our names and the authors' of MaskFormer."""


PER_PIXEL = Renaming(
    (
        ("classifier.weight", PREDICTOR + "weight"),
        ("classifier.bias", PREDICTOR + "bias"),
        *((ours, theirs) for ours, theirs in _MASKFORMER_RULES if "class_embed" not in ours),
    )
)
"""Our names and the authors' of the per-pixel baselines."""


def modern_name(name: str) -> str:
    """The authors' name of a tensor in their later files."""
    name = _OLD_PIXEL.sub(lambda match: PIXEL + match[1], name)
    return name.replace(PREDICTOR + "static_query", PREDICTOR + "query_feat")


def _converter(renaming: Renaming) -> Callable[[State, nn.Module], dict[str, Tensor]]:
    return lambda state, model: renaming.state_to_ours({modern_name(name): value for name, value in state.items()})


def _has_masked_attention(keys: Collection[str]) -> bool:
    # MM-Former's decoders are named alike, but its backbone lies at the top level.
    return PREDICTOR + "transformer_cross_attention_layers.0.norm.weight" in keys and any(
        key.startswith("backbone.") for key in keys
    )


def _is_mask2former(keys: Collection[str]) -> bool:
    return _has_masked_attention(keys) and PREDICTOR + "query_embed.weight" in keys


def _is_mp_former(keys: Collection[str]) -> bool:
    return _has_masked_attention(keys) and PREDICTOR + "label_enc.weight" in keys


def _is_maskformer(keys: Collection[str]) -> bool:
    return PREDICTOR + "transformer.decoder.layers.0.norm1.weight" in keys and (
        PREDICTOR + "class_embed.weight" in keys
    )


def _is_per_pixel(keys: Collection[str]) -> bool:
    if PREDICTOR + "class_embed.weight" in keys or PIXEL + "layer_4.weight" not in map(modern_name, keys):
        return False
    return PREDICTOR + "weight" in keys or PREDICTOR + "transformer.decoder.layers.0.norm1.weight" in keys


_IGNORED = (r"^criterion\.empty_weight$", r"relative_position_index$", r"num_batches_tracked$", r"^pixel_(mean|std)$")

LAYOUTS = (
    Layout(
        "authors (facebookresearch/Mask2Former)",
        "mask2former",
        _is_mask2former,
        _converter(MASK2FORMER),
        _IGNORED,
        also=("mask2former_vis",),
    ),
    Layout("authors (IDEA-Research/MP-Former)", "mp_former", _is_mp_former, _converter(MASK2FORMER), _IGNORED),
    Layout("authors (facebookresearch/MaskFormer)", "maskformer", _is_maskformer, _converter(MASKFORMER), _IGNORED),
    Layout(
        "authors (facebookresearch/MaskFormer)", "per_pixel_baseline", _is_per_pixel, _converter(PER_PIXEL), _IGNORED
    ),
)
