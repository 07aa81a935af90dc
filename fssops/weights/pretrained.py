"""A model as one folder or one file, from which it is built again with its configuration and its weights.

A folder holds ``config.json`` (:data:`fssops.weights.reading.DESCRIPTION`) and ``model.safetensors``; a single
``.safetensors`` file says the same in its metadata.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fssops.engine.checkpoints import write_text_atomically
from fssops.models import MODELS, create_config
from fssops.weights.loading import describe, load_weights, save_weights, shapes_of
from fssops.weights.reading import Checkpoint, CheckpointError, read_weights


def save_pretrained(
    model: nn.Module,
    target: str | os.PathLike[str],
    *,
    classes: Mapping[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> None:
    """Write a model that :func:`from_pretrained` and :func:`fssops.load` build again.

    Args:
        model: a system, from :func:`fssops.create_model`.
        target: a folder, made where it is missing; or a file that ends in ``.safetensors``.
        classes: names, in the form of a run's ``classes.json``: ``{"classes": [{"id": 0, "name": "road"}, ...]}``.
        preprocessing: how images enter the model, as tables of a recipe: ``{"data": {"size": [417, 417]}}`` of few-shot
            systems, ``{"eval": {"short_side": 800, "longest": 1333}}`` of the others.

    Raises:
        ValueError: the module is no system.
        OSError: it cannot be written; no partial file is left.
    """
    if getattr(model, "name", None) not in MODELS:
        raise ValueError(f"save_pretrained: model must be one of {', '.join(MODELS)}, got {type(model).__name__}")
    path = Path(target)
    if path.suffix == ".safetensors":
        return save_weights(model, path, classes=classes, preprocessing=preprocessing)
    path.mkdir(parents=True, exist_ok=True)
    save_weights(model, path / "model.safetensors", classes=classes, preprocessing=preprocessing)
    described = describe(model, classes, preprocessing)
    write_text_atomically(path / "config.json", json.dumps(described, indent=2) + "\n")


def from_pretrained(source: str | os.PathLike[str]) -> nn.Module:
    """Build the model that a folder or file describes, with its weights, in evaluation mode.

    Args:
        source: what :func:`save_pretrained` has written, a run, a folder in transformers' layout, or a name, address or
            repository of such (:func:`fssops.weights.find_weights`).

    Raises:
        ValueError: it does not say which model it is of, or describes none that its weights fit.
        FileNotFoundError, UnavailableWeightsError, CheckpointError: as :func:`fssops.load_weights`.
    """
    checkpoint = read_weights(source)
    name, options = checkpoint.described_model()
    config = create_config(name, options)
    refuse_larger_model(name, config, checkpoint)
    model = MODELS[name].model_class()(config)
    load_weights(model, checkpoint)
    return model.eval()


def refuse_larger_model(name: str, config: Any, checkpoint: Checkpoint) -> None:
    """Refuse a description of a model that is far larger than the weights beside it, before it fills the memory.

    Raises:
        CheckpointError: says both sizes.
    """
    layers = {key: value for key, value in vars(config).items() if key.endswith("_layers") and isinstance(value, int)}
    for key, value in layers.items():
        if value > len(checkpoint.state):
            raise CheckpointError(
                f"weights: {checkpoint.source}: {key} must be at most the number of tensors, {len(checkpoint.state)}, "
                f"got {value}"
            )
    shapes = shapes_of(name, config, {}) or {}
    described = sum(math.prod(shape) for shape in shapes.values())
    held = sum(value.numel() for value in checkpoint.state.values())
    if described > 2 * held + 1_000_000:
        raise CheckpointError(
            f"weights: {checkpoint.source} must hold the model that it describes, of {described} numbers, got {held}"
        )
