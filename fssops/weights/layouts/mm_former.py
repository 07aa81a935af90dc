"""MM-Former's published checkpoints: the potential objects segmenter's (step 1) and the whole system's (step 2).

The backbone lies at the top level, ``layer0..4``, every kernel as a product: ``conv_V`` (r filters), ``vector_S`` and
``conv_U`` (1x1). The decoders are named as Mask2Former's. detectron2 renames the head's tensors when a file lacks the
module's version, so files of step 2 may name the pixel decoder once too often or not at all; all three are read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor, nn

from fssops.models.layers.singular_values import LEFT, RIGHT, VALUES
from fssops.weights.layout import Layout, Renaming, State
from fssops.weights.layouts.backbones import resnet_name
from fssops.weights.layouts.universal import MASK2FORMER, PIXEL, PREDICTOR, modern_name

_FACTORS = {"vector_S": VALUES, "conv_U.weight": LEFT, "conv_V.weight": RIGHT}
_BACKBONE = re.compile(r"^layer[0-4]\.")
_REPEATED = re.compile(r"^sem_seg_head\.(?:pixel_decoder\.){2,}")

_MATCHING = Renaming(
    [
        ("projections.{}.*", "conv_{}.*"),
        (
            "cross_alignment.{}.layers.{}.attn.*",
            "crossat_{}.transformer_cross_attention_layers.{}.multihead_attn.*",
        ),
        ("cross_alignment.{}.layers.{}.attn_norm.*", "crossat_{}.transformer_cross_attention_layers.{}.norm.*"),
        ("cross_alignment.{}.layers.{}.ffn.linear{}.*", "crossat_{}.transformer_ffn_layers.{}.linear{}.*"),
        ("cross_alignment.{}.layers.{}.ffn_norm.*", "crossat_{}.transformer_ffn_layers.{}.norm.*"),
        ("merge.layers.0.*", "fc1.*"),
        ("merge.layers.1.*", "fc2.*"),
    ]
)


def segmenter_name(key: str) -> str:
    """Our name, within the segmenter, of a tensor of the authors'; unknown names stay."""
    if not _BACKBONE.match(key):
        return MASK2FORMER.ours(_usual(key)) or key
    name = resnet_name(key)
    for theirs, ours in _FACTORS.items():
        if name.endswith(f".{theirs}"):
            name = name.removesuffix(theirs) + ours
    return f"backbone.{name}"


def our_name(key: str) -> str:
    """Our name of a tensor of the authors' whole system; unknown names stay."""
    name = segmenter_name(key)
    return _MATCHING.ours(key) or key if name == key else f"segmenter.{name}"


def _usual(key: str) -> str:
    """A head's name with one level ``pixel_decoder``."""
    return modern_name(_REPEATED.sub(PIXEL, key))


def _is_segmenter(keys: Collection[str]) -> bool:
    return "layer0.0.vector_S" in keys and PREDICTOR + "query_feat.weight" in keys


def _is_system(keys: Collection[str]) -> bool:
    return _is_segmenter(keys) and "fc1.weight" in keys


def _convert_segmenter(state: State, model: nn.Module) -> dict[str, Tensor]:
    return _renamed({segmenter_name(key): value for key, value in state.items()})


def _convert_system(state: State, model: nn.Module) -> dict[str, Tensor]:
    return _renamed({our_name(key): value for key, value in state.items()})


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors store factors with axes of length 1."""
    return {
        name: value.flatten()
        if name.endswith(f".{VALUES}")
        else value.flatten(1)
        if name.endswith(f".{LEFT}")
        else value
        for name, value in state.items()
    }


_IGNORED = (r"^criterion\.empty_weight$", r"num_batches_tracked$", r"^pixel_(mean|std)$", r"^crossat_3\.")

LAYOUTS = (
    Layout("authors (Mask-Matching-Transformer)", "mm_former", _is_system, _convert_system, _IGNORED),
    Layout(
        "authors (Mask-Matching-Transformer, step 1)",
        "mm_former_segmenter",
        _is_segmenter,
        _convert_segmenter,
        _IGNORED,
    ),
)
