"""MSANet's published checkpoints: the base learner's (``best.pth`` of PSPNet) and the whole system's.

The base learner's file holds its backbone twice (``layer0..4`` and ``encoder.0..4``); the system's calls the base
learner's head ``learner_base`` and its backbone ``layer0..4``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from torch import Tensor, nn

from fssops.weights.layout import Layout, Renaming, State
from fssops.weights.layouts.backbones import resnet_name

_BASE = Renaming(
    [
        ("head.pyramid.{}.weight", "ppm.features.{}.1.weight"),
        ("head.pyramid.{}.norm.*", "ppm.features.{}.2.*"),
        ("head.convolution.weight", "cls.0.weight"),
        ("head.convolution.norm.*", "cls.1.*"),
        ("head.classifier.*", "cls.4.*"),
    ]
)
_META = Renaming(
    [
        ("query_embedding.convolution.*", "down_query.0.*"),
        ("support_embedding.convolution.*", "down_supp.0.*"),
        ("gate.squeeze.*", "gam.gate.0.*"),
        ("gate.expand.*", "gam.gate.2.*"),
        ("similarity.norm.*", "hyper_final.1.*"),
        ("similarity.*", "hyper_final.0.*"),
        ("decoder.merge.*", "init_merge.0.*"),
        ("decoder.aspp.pooled.*", "ASPP_meta.layer6_0.0.*"),
        ("decoder.aspp.branches.0.*", "ASPP_meta.layer6_1.0.*"),
        ("decoder.aspp.branches.1.*", "ASPP_meta.layer6_2.0.*"),
        ("decoder.aspp.branches.2.*", "ASPP_meta.layer6_3.0.*"),
        ("decoder.aspp.branches.3.*", "ASPP_meta.layer6_4.0.*"),
        ("decoder.reduce.*", "res1_meta.0.*"),
        ("decoder.residual1.*", "res2_meta.0.*"),
        ("decoder.residual2.*", "res2_meta.2.*"),
        ("decoder.convolution.*", "cls_meta.0.*"),
        ("decoder.classifier.*", "cls_meta.3.*"),
        ("scene_merge.*", "gram_merge.*"),
        ("base_merge.*", "cls_merge.*"),
        ("shot_scorer.layers.0.weight", "kshot_rw.weight"),
        ("shot_scorer.layers.*", "kshot_rw.*"),
    ]
)
_LAYER = re.compile(r"^layer([0-4])\.(\d+)\.(.+)$")
_LEARNER = re.compile(r"^learner_base\.([01])\.(.+)$")


def _vgg_name(key: str) -> str:
    """Our name of a tensor of VGG-16 with batch normalisation cut into ``layer0..4``."""
    match = _LAYER.match(key)
    if match is None:
        return key
    layer, index, rest = int(match[1]), int(match[2]), match[3]
    return f"stage{layer + 1}.{index // 3}.{'norm.' if index % 3 else ''}{rest}"


def _backbone_names(model: nn.Module) -> Callable[[str], str]:
    config = getattr(model, "config", None)
    return _vgg_name if getattr(config, "backbone", "") == "vgg16" else resnet_name


def _base_name(key: str, backbone_name: Callable[[str], str]) -> str:
    return f"backbone.{backbone_name(key)}" if _LAYER.match(key) else _BASE.ours(key) or key


def _recognise_base(keys: Collection[str]) -> bool:
    return "cls.4.weight" in keys and any(key.startswith("ppm.features.") for key in keys)


def _convert_base(state: State, model: nn.Module) -> dict[str, Tensor]:
    backbone_name = _backbone_names(model)
    return {_base_name(key, backbone_name): value for key, value in state.items()}


def _recognise(keys: Collection[str]) -> bool:
    return "down_query.0.weight" in keys and "learner_base.1.4.weight" in keys


def _convert(state: State, model: nn.Module) -> dict[str, Tensor]:
    backbone_name = _backbone_names(model)
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        learner = _LEARNER.match(key)
        if learner is not None:
            key = f"{('ppm', 'cls')[int(learner[1])]}.{learner[2]}"
        if learner is not None or _LAYER.match(key):
            converted[f"base_learner.{_base_name(key, backbone_name)}"] = value
        else:
            converted[_META.ours(key) or key] = value
    return converted


LAYOUTS = (
    Layout("authors (AIVResearch/MSANet)", "msanet", _recognise, _convert),
    Layout("authors' base learner (BAM, MSANet)", "pspnet", _recognise_base, _convert_base, (r"^encoder\.",)),
)
