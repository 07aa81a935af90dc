"""Folders in the layout of ``transformers``: writing ``config.json`` and ``model.safetensors``, reading the former."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fssops.models.backbones.swin import SWIN, relative_position_index
from fssops.models.mask2former import Mask2Former
from fssops.models.maskformer import MaskFormer
from fssops.models.universal import UniversalConfig, UniversalModel
from fssops.normalisation import MEAN, STD
from fssops.weights.layouts import transformers as names

logger = logging.getLogger(__name__)

_SHARED = {"mask_channels": "mask_feature_size", "no_object_weight": "no_object_weight"}
"""Our options and what they are called in a ``config.json``; defaults are the same on both sides."""

_MASK2FORMER = _SHARED | {
    "channels": "hidden_dim",
    "num_queries": "num_queries",
    "heads": "num_attention_heads",
    "encoder_layers": "encoder_layers",
    "encoder_hidden": "encoder_feedforward_dim",
    "decoder_hidden": "dim_feedforward",
    "dropout": "dropout",
    "class_weight": "class_weight",
    "mask_weight": "mask_weight",
    "dice_weight": "dice_weight",
    "train_points": "train_num_points",
    "oversample_ratio": "oversample_ratio",
    "importance_ratio": "importance_sample_ratio",
}
_MASKFORMER = _SHARED | {
    "channels": "fpn_feature_size",
    "class_weight": "cross_entropy_weight",
    "mask_weight": "mask_weight",
    "dice_weight": "dice_weight",
}
_MASKFORMER_DECODER = {
    "num_queries": "num_queries",
    "decoder_layers": "decoder_layers",
    "heads": "decoder_attention_heads",
    "hidden": "decoder_ffn_dim",
    "dropout": "dropout",
}


def _theirs(config: UniversalConfig, names: Mapping[str, str]) -> dict[str, Any]:
    return {theirs: getattr(config, ours) for ours, theirs in names.items()}


def _ours(table: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Options by our names; what is not written is at its default."""
    return {ours: table[theirs] for ours, theirs in names.items() if theirs in table}


def to_transformers(model: UniversalModel) -> dict[str, Tensor]:
    """A model's tensors under transformers' names (version 5), complete for ``from_pretrained``.

    Raises:
        ValueError: transformers has no such model: a pixel decoder with a transformer encoder or another number of
            sampling points, or a system other than these two.
    """
    state = model.state_dict()
    if isinstance(model, Mask2Former) and model.name == "mask2former":
        if model.config.sampling_points != 4:
            raise ValueError(
                f"transformers layout: sampling_points must be 4, as transformers has them, got"
                f" {model.config.sampling_points}"
            )
        renamed = names.MASK2FORMER.state_to_theirs(names.split_packed(state, keep="cross_attn"))
        root = "swin."
    elif isinstance(model, MaskFormer):
        if model.config.encoder_layers:
            raise ValueError(
                "transformers layout: encoder_layers must be 0, as transformers has no transformer encoder in "
                f"MaskFormer's pixel decoder, got {model.config.encoder_layers}"
            )
        renamed = names.MASKFORMER.state_to_theirs(names.split_packed(state))
        root = "model."
    else:
        raise ValueError(f"transformers layout: model must be mask2former or maskformer, got {model.name}")
    for name in list(renamed):
        if name.endswith("running_var"):
            renamed[name.removesuffix("running_var") + "num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    if model.config.backbone in SWIN:  # transformers builds a last LayerNorm that it does not use
        channels = SWIN[model.config.backbone].channels * 8
        renamed[names.ENCODER + root + "layernorm.weight"] = torch.ones(channels)
        renamed[names.ENCODER + root + "layernorm.bias"] = torch.zeros(channels)
        if isinstance(model, MaskFormer):
            for name in list(renamed):
                if name.endswith("relative_position_bias_table"):
                    index = relative_position_index(SWIN[model.config.backbone].window)
                    renamed[name.replace("bias_table", "index")] = index
    renamed["criterion.empty_weight"] = model.criterion.class_weights
    return renamed


def _backbone_config(model: UniversalModel) -> dict[str, Any]:
    name, norm = model.config.backbone, model.config.backbone_norm
    stages = [f"stage{n}" for n in range(1, 5)]
    if name in SWIN:
        form = SWIN[name]
        return {
            "model_type": "maskformer-swin" if isinstance(model, MaskFormer) else "swin",
            "embed_dim": form.channels,
            "depths": list(form.depths),
            "num_heads": list(form.heads),
            "window_size": form.window,
            "image_size": 224 if form.window == 7 else 384,
            "drop_path_rate": model.config.drop_path,
            "out_features": stages,
        }
    depths = {"resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3], "resnet50": [3, 4, 6, 3], "resnet101": [3, 4, 23, 3]}
    if name not in depths:
        raise ValueError(f"transformers layout: backbone must be {', '.join(depths)} or a Swin, got {name}")
    if norm not in ("frozen", "batch", "sync"):
        raise ValueError(f"transformers layout: backbone_norm must be frozen, batch or sync, got {norm}")
    basic = name in ("resnet18", "resnet34")
    return {
        "model_type": "resnet",
        "depths": depths[name],
        "layer_type": "basic" if basic else "bottleneck",
        "hidden_sizes": [64, 128, 256, 512] if basic else [256, 512, 1024, 2048],
        "embedding_size": 64,
        "out_features": stages,
    }


def transformers_config(model: UniversalModel, class_names: Sequence[str] | None = None) -> dict[str, Any]:
    """What ``config.json`` must say for ``from_pretrained`` to build the same network.

    Args:
        model: of this family.
        class_names: C names; None writes LABEL_0, LABEL_1, ...

    Raises:
        ValueError: transformers has no such backbone, or the number of names is wrong.
    """
    config = model.config
    labels = list(class_names) if class_names is not None else [f"LABEL_{n}" for n in range(config.num_classes)]
    if len(labels) != config.num_classes:
        raise ValueError(f"transformers layout: class_names must be {config.num_classes}, got {len(labels)}")
    table: dict[str, Any] = {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        "backbone_config": _backbone_config(model),
    }
    if isinstance(model, Mask2Former):
        table |= {
            "model_type": "mask2former",
            "architectures": ["Mask2FormerForUniversalSegmentation"],
            "feature_size": config.channels,
            "decoder_layers": model.config.decoder_layers + 1,
            **_theirs(config, _MASK2FORMER),
        }
    elif isinstance(model, MaskFormer):
        decoder = {"model_type": "detr", "d_model": config.channels, **_theirs(config, _MASKFORMER_DECODER)}
        table |= {
            "model_type": "maskformer",
            "architectures": ["MaskFormerForInstanceSegmentation"],
            "decoder_config": decoder,
            **_theirs(config, _MASKFORMER),
        }
    return table


def write_transformers(
    model: nn.Module, folder: str | os.PathLike[str], class_names: Sequence[str] | None = None
) -> None:
    """Write ``config.json`` and ``model.safetensors`` that ``from_pretrained`` reads.

    Args:
        model: MaskFormer or Mask2Former.
        folder: made if it is not there.
        class_names: C names, or None.

    Raises:
        ValueError: transformers has no such model.
        OSError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    if not isinstance(model, UniversalModel):
        raise ValueError(f"transformers layout: model must be mask2former or maskformer, got {model.name}")
    table = transformers_config(model, class_names)
    state = {key: value.detach().cpu().contiguous().clone() for key, value in to_transformers(model).items()}
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    save_file(state, target / "model.safetensors", {"format": "pt"})
    (target / "config.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def options_of(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Model name and options for ``create_model`` from a ``config.json`` of transformers.

    Raises:
        ValueError: it is not of MaskFormer or Mask2Former, or its backbone is none of ours.
    """
    kind = config.get("model_type")
    if kind not in ("mask2former", "maskformer"):
        raise ValueError(f"config.json: model_type must be mask2former or maskformer, got {kind!r}")
    try:
        options: dict[str, Any] = {
            "backbone": _backbone_name(config.get("backbone_config") or {}),
            "num_classes": len(config.get("id2label") or {0: "", 1: ""}),
        }
        if kind == "mask2former":
            options |= _ours(config, _MASK2FORMER)
            options["decoder_layers"] = config.get("decoder_layers", 10) - 1
        else:
            options |= _ours(config, _MASKFORMER) | _ours(config.get("decoder_config") or {}, _MASKFORMER_DECODER)
            options["enforce_input_proj"] = True  # transformers always projects the memory
    except (TypeError, AttributeError) as error:
        raise ValueError(f"config.json: config must be as transformers writes it, got a value where {error}") from None
    return kind, options


def class_names_of(config: Mapping[str, Any]) -> list[str]:
    """Names of the classes by index, from ``id2label`` of a ``config.json``.

    Raises:
        ValueError: it is not a name for each of 0..C-1.
    """
    labels = config.get("id2label")
    names: list[Any] = [labels.get(str(n)) for n in range(len(labels))] if isinstance(labels, Mapping) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"config.json: id2label must give a name for each class from 0, got {labels!r:.80}")
    return names


def preprocessing_of(table: Mapping[str, Any]) -> dict[str, Any]:
    """How images enter the model, as tables of a recipe, from a ``preprocessor_config.json``.

    Raises:
        ValueError: images are scaled otherwise than every system here scales them.
    """
    for key, ours in (("image_mean", MEAN), ("image_std", STD)):
        theirs = table.get(key, ours)
        if not isinstance(theirs, list | tuple) or [round(float(v), 3) for v in theirs] != list(ours):
            raise ValueError(f"preprocessor_config.json: {key} must be {list(ours)}, got {theirs!r:.80}")
    size = table.get("size")
    if isinstance(size, int):
        size = {"shortest_edge": size, "longest_edge": table.get("max_size")}
    if not isinstance(size, Mapping) or "shortest_edge" not in size:
        if size is not None:
            logger.info("preprocessing  pictures keep their size and aspect; transformers brings them to %s", size)
        return {}
    sides = {"short_side": size["shortest_edge"], "longest": size.get("longest_edge")}
    return {"eval": {key: side for key, side in sides.items() if side is not None}}


def _backbone_name(config: Mapping[str, Any]) -> str:
    kind = config.get("model_type")
    if kind in ("swin", "maskformer-swin"):
        given = (config.get("embed_dim", 96), tuple(config.get("depths", (2, 2, 6, 2))), config.get("window_size", 7))
        for name, form in SWIN.items():
            if given == (form.channels, form.depths, form.window):
                return name
        raise ValueError(f"config.json: backbone_config must be of Swin {', '.join(SWIN)}, got {given}")
    if kind == "resnet":
        depths, basic = tuple(config.get("depths", (3, 4, 6, 3))), config.get("layer_type") == "basic"
        table = {
            ((2, 2, 2, 2), True): "resnet18",
            ((3, 4, 6, 3), True): "resnet34",
            ((3, 4, 6, 3), False): "resnet50",
            ((3, 4, 23, 3), False): "resnet101",
        }
        if (depths, basic) in table:
            return table[depths, basic]
    raise ValueError(f"config.json: backbone_config must be a ResNet or Swin that fssops has, got {kind!r}")
