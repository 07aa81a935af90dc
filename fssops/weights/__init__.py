"""Reading checkpoints of any known layout into fssops models, without ever executing what a file holds.

The table of names (:mod:`fssops.weights.sources`) imports nothing heavy, so all else is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fssops.weights.finding import FoundWeights, UnavailableWeightsError, find_weights
    from fssops.weights.loading import LoadReport, load_weights, save_weights
    from fssops.weights.pretrained import from_pretrained, save_pretrained
    from fssops.weights.reading import Checkpoint, CheckpointError, read_weights
    from fssops.weights.sources import SOURCES

_MODULES = {
    "finding": ("FoundWeights", "UnavailableWeightsError", "find_weights"),
    "loading": ("LoadReport", "load_weights", "save_weights"),
    "pretrained": ("from_pretrained", "save_pretrained"),
    "reading": ("Checkpoint", "CheckpointError", "read_weights"),
    "sources": ("SOURCES",),
}

__all__ = [
    "SOURCES",
    "Checkpoint",
    "CheckpointError",
    "FoundWeights",
    "LoadReport",
    "UnavailableWeightsError",
    "find_weights",
    "from_pretrained",
    "load_weights",
    "read_weights",
    "save_pretrained",
    "save_weights",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"fssops.weights.{module}"), name)
    raise AttributeError(f"module 'fssops.weights' has no attribute {name!r}")
