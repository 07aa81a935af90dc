"""Reading checkpoints of any known layout into fssops models, without ever executing what a file holds."""

from fssops.weights.layouts import LAYOUT_MODULES, Layout, layouts_of
from fssops.weights.loading import LoadReport, load_weights, save_weights
from fssops.weights.reading import Checkpoint, CheckpointError, read_weights

__all__ = [
    "LAYOUT_MODULES",
    "Checkpoint",
    "CheckpointError",
    "Layout",
    "LoadReport",
    "layouts_of",
    "load_weights",
    "read_weights",
    "save_weights",
]
