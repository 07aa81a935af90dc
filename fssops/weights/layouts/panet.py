"""PANet's published checkpoints: ``encoder.backbone.features.{block}.{index}``, blocks at 0, 2, 4, 6, 8."""

from __future__ import annotations

import re
from collections.abc import Collection

from torch import Tensor, nn

from fssops.weights.layout import Layout, State

_KEY = re.compile(r"^encoder\.(?:backbone\.)?features\.([02468])\.([024])\.(weight|bias)$")


def _recognise(keys: Collection[str]) -> bool:
    return sum(1 for key in keys if _KEY.match(key)) >= len(keys) / 2 > 0


def our_name(key: str) -> str:
    """Our name of a tensor of the authors' checkpoint; unknown names stay."""
    match = _KEY.match(key)
    if match is None:
        return key
    block, index, kind = int(match[1]), int(match[2]), match[3]
    return f"backbone.stage{block // 2 + 1}.{index // 2}.{kind}"


def _convert(state: State, model: nn.Module) -> dict[str, Tensor]:
    return {our_name(key): value for key, value in state.items()}


LAYOUTS = (Layout("authors (kaixin96/PANet)", "panet", _recognise, _convert),)
