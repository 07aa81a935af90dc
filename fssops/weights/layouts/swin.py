"""ImageNet weights of Swin as Microsoft publishes them (``{"model": ...}`` with ``layers.{s}.blocks.{b}.*``).

They carry the classifier and its norm, and masks and indices that are computed here; the norms of the four outputs are
not among them and keep their initial values (scale 1, shift 0), as in the published training code.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn
from torch.nn import functional as F

from fssops.weights.layout import Layout, State

_TABLE = "relative_position_bias_table"


def _recognise(keys: Collection[str]) -> bool:
    return "patch_embed.proj.weight" in keys and "layers.0.blocks.0.attn.qkv.weight" in keys


def _resized(table: Tensor, rows: int) -> Tensor:
    """A bias table of another window size, resampled bicubically over the relative offsets."""
    old, new = round(len(table) ** 0.5), round(rows**0.5)
    grid = table.float().T.reshape(1, -1, old, old)
    return F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False).flatten(2)[0].T


def _convert(state: State, model: nn.Module) -> dict[str, Tensor]:
    initial = model.state_dict()
    converted = dict(state)
    for key, value in state.items():
        if key.endswith(_TABLE) and key in initial and value.shape != initial[key].shape and value.dim() == 2:
            converted[key] = _resized(value, len(initial[key]))
    for key, value in initial.items():  # the classification network has no norms on its four outputs
        if key.startswith("norm"):
            converted.setdefault(key, value)
    return converted


LAYOUTS = (
    Layout(
        "official Swin (microsoft/Swin-Transformer)",
        "swin",
        _recognise,
        _convert,
        (r"^head\.", r"^norm\.", r"attn_mask$", r"relative_position_index$", r"relative_coords_table$"),
    ),
)
