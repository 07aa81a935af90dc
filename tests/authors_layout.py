"""Our weights as the authors of the universal systems would have written them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fssops.weights.layout import Renaming


def to_authors(state: Mapping[str, Tensor], renaming: Renaming, no_object_weight: float) -> dict[str, Tensor]:
    """Our tensors under the authors' names, with the class weights that their files carry."""
    renamed = renaming.state_to_theirs(state)
    weights = torch.ones(len(state["transformer_decoder.class_embed.bias"]))
    weights[-1] = no_object_weight
    renamed["criterion.empty_weight"] = weights
    return renamed
