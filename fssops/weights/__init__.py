"""Reading checkpoints of any known layout into fssops models, without ever executing what a file holds."""

from fssops.weights.loading import LoadReport, load_weights, save_weights
from fssops.weights.reading import Checkpoint, CheckpointError, read_weights

__all__ = ["Checkpoint", "CheckpointError", "LoadReport", "load_weights", "read_weights", "save_weights"]
