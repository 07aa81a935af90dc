"""Swin systems against numbers that transformers 5.23.0 (CPU) gave with the same weights and images.

The numbers stand in ``transformers_swin.json``; running this file as a script where transformers is installed makes
them again.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fssops
from fssops.models.universal import UniversalModel
from fssops.weights.transformers_folder import write_transformers

NUMBERS = Path(__file__).with_name("transformers_swin.json")
COMMON: dict[str, Any] = {
    "backbone": "swin_tiny",
    "num_classes": 7,
    "num_queries": 10,
    "channels": 64,
    "mask_channels": 64,
    "heads": 4,
}
SYSTEMS: dict[str, dict[str, Any]] = {
    "mask2former": {**COMMON, "encoder_layers": 1, "encoder_hidden": 64, "decoder_layers": 3, "decoder_hidden": 64},
    "maskformer": {**COMMON, "decoder_layers": 2, "hidden": 64, "enforce_input_proj": True},
}


def filled(name: str) -> UniversalModel:
    """A model whose weights are a function of their names and shapes."""
    model = fssops.create_model(name, **SYSTEMS[name]).eval()
    assert isinstance(model, UniversalModel)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            random = np.random.RandomState(zlib.crc32(key.encode()))
            spread = (
                random.standard_normal(tuple(value.shape))
                / (np.prod(value.shape[1:]) if value.dim() > 1 else 100) ** 0.5
            )
            norm = key.endswith("weight") and value.dim() == 1
            value.copy_(torch.from_numpy(spread + (1.0 if norm else 0.0)).to(value.dtype))
    return model


def images(model: UniversalModel) -> Tensor:
    """Two images of different sizes, normalised and padded."""
    random = np.random.RandomState(5)
    raw = [random.randint(0, 256, (3, height, width)).astype(np.float32) for height, width in ((75, 101), (96, 84))]
    batch: Tensor = model.image_input([torch.from_numpy(image) for image in raw])[0]
    return batch


def sampled(class_logits: Tensor, mask_logits: Tensor) -> dict[str, list[float]]:
    """What is kept of the logits [2, Q, C + 1] and [2, Q, h, w]."""
    return {"classes": class_logits.flatten().tolist(), "masks": mask_logits.flatten()[::97].tolist()}


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_logits_equal_those_of_transformers(name: str) -> None:
    model = filled(name)
    with torch.no_grad():
        said = model.predict(images(model), None, auxiliary=False)
    found = sampled(said.class_logits[-1], torch.stack([said.mask_logits(image)[:, 0] for image in range(2)]))
    for key, wanted in json.loads(NUMBERS.read_text())[name].items():
        difference = np.abs(np.array(found[key]) - np.array(wanted)).max()
        assert difference < 1e-4 * np.abs(wanted).max(), key


def main() -> None:
    """Write the numbers."""
    import transformers

    kinds = {"mask2former": "Mask2FormerForUniversalSegmentation", "maskformer": "MaskFormerForInstanceSegmentation"}
    numbers = {}
    for name, kind in kinds.items():
        model = filled(name)
        with tempfile.TemporaryDirectory() as folder:
            write_transformers(model, folder)
            twin = getattr(transformers, kind).from_pretrained(folder).eval()
        batch = images(model)
        with torch.no_grad():
            said = twin(pixel_values=batch, pixel_mask=torch.ones(2, *batch.shape[-2:], dtype=torch.long))
        found = sampled(said.class_queries_logits, said.masks_queries_logits)
        numbers[name] = {key: [float(f"{value:.7g}") for value in values] for key, values in found.items()}
    NUMBERS.write_text(json.dumps(numbers) + "\n")


if __name__ == "__main__":
    sys.exit(main())
