"""Backbone weights alone: torchvision's VGG-16 and ResNet, the deep-stem "v2" ResNet, detectron2's ResNet.

torchvision numbers every module of VGG in one list ``features.{index}``; ResNet's stages are ``layer1``..``layer4``.
The deep-stem files of PSPNet's line (``resnet50_v2.pth``) are torchvision's with a stem of ``conv1``/``bn1`` ..
``conv3``/``bn3``, or, inside a model, ``layer0.{0,3,6}`` and ``layer0.{1,4,7}``.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from torch import Tensor, nn

from fssops.weights.layout import Layout, State

_VGG_KEY = re.compile(r"^features\.(\d+)\.(.+)$")
_RESNET_BLOCK = re.compile(r"^layer([1-4])\.(\d+)\.(conv|bn)([123])\.(.+)$")
_RESNET_SHORTCUT = re.compile(r"^layer([1-4])\.(\d+)\.downsample\.([01])\.(.+)$")
_RESNET_STEM = re.compile(r"^(conv|bn)([123])\.(.+)$")
_RESNET_LAYER0 = re.compile(r"^layer0\.(\d)\.(.+)$")
_DETECTRON2 = re.compile(r"^(?:backbone\.)?(?:bottom_up\.)?((?:stem|res[2-5])\..+)$")


def vgg_positions(norm: bool) -> dict[int, str]:
    """Index in torchvision's ``features`` to our name, for VGG-16 without or with batch normalisation."""
    names: dict[int, str] = {}
    index = 0
    for stage, count in enumerate((2, 2, 3, 3, 3), start=1):
        for position in range(count):
            names[index] = f"stage{stage}.{position}"
            if norm:
                names[index + 1] = f"stage{stage}.{position}.norm"
            index += 3 if norm else 2
        index += 1
    return names


def _vgg_recognise(keys: Collection[str]) -> bool:
    return "features.0.weight" in keys and ("features.28.weight" in keys or "features.40.weight" in keys)


def _vgg_convert(state: State, model: nn.Module) -> dict[str, Tensor]:
    names = vgg_positions(norm="features.1.running_mean" in state)
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        match = _VGG_KEY.match(key)
        layer = names.get(int(match[1])) if match else None
        converted[f"{layer}.{match[2]}" if match and layer else key] = value
    return converted


def resnet_name(key: str) -> str:
    """Our name of a tensor of a ResNet in torchvision's layout (plain or deep stem); unknown names stay."""
    if match := _RESNET_BLOCK.match(key):
        stage, block, kind, number, rest = match.groups()
        norm = "norm." if kind == "bn" else ""
        return f"res{int(stage) + 1}.{block}.conv{number}.{norm}{rest}"
    if match := _RESNET_SHORTCUT.match(key):
        stage, block, part, rest = match.groups()
        norm = "norm." if part == "1" else ""
        return f"res{int(stage) + 1}.{block}.shortcut.{norm}{rest}"
    if match := _RESNET_STEM.match(key):
        kind, number, rest = match.groups()
        norm = "norm." if kind == "bn" else ""
        return f"stem.conv{number}.{norm}{rest}"
    if match := _RESNET_LAYER0.match(key):
        index, rest = int(match[1]), match[2]
        norm = "norm." if index % 3 == 1 else ""
        return f"stem.conv{index // 3 + 1}.{norm}{rest}"
    return key


def _resnet_recognise(keys: Collection[str]) -> bool:
    return "layer1.0.conv1.weight" in keys and "layer4.0.conv1.weight" in keys


def _resnet_convert(state: State, model: nn.Module) -> dict[str, Tensor]:
    return {resnet_name(key): value for key, value in state.items()}


def _detectron2_recognise(keys: Collection[str]) -> bool:
    plain = [match[1] for match in map(_DETECTRON2.match, keys) if match]
    return "stem.conv1.weight" in plain and "res2.0.conv1.weight" in plain and len(plain) >= len(keys) / 2


def _detectron2_convert(state: State, model: nn.Module) -> dict[str, Tensor]:
    return {_DETECTRON2.sub(r"\1", key): value for key, value in state.items()}


LAYOUTS = (
    Layout("torchvision VGG-16", "vgg16", _vgg_recognise, _vgg_convert, (r"^classifier\.",)),
    Layout("torchvision ResNet", "resnet", _resnet_recognise, _resnet_convert, (r"^fc\.", r"num_batches_tracked$")),
    Layout(
        "detectron2 ResNet", "resnet", _detectron2_recognise, _detectron2_convert, (r"(^|\.)fc1000\.", r"^stem\.fc\.")
    ),
)
