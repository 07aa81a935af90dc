"""ImageNet's scaling of colours and back."""

from __future__ import annotations

import numpy as np
import torch

from fssops.models.layers.image_input import PIXEL_MEAN, PIXEL_STD
from fssops.normalisation import MEAN, STD, denormalise, normalise

IMAGE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


def test_normalise_subtracts_the_mean_and_divides_by_the_deviation() -> None:
    expected = (IMAGE.astype(np.float64) / 255 - MEAN) / STD
    result = normalise(IMAGE)
    assert result.dtype == torch.float32
    assert np.abs(result.numpy().transpose(1, 2, 0) - expected).max() < 1e-6
    assert np.abs(normalise(IMAGE[:, ::-1] * np.float32(0.5)).numpy()[:, :, ::-1]).shape == (3, 37, 53)


def test_denormalise_inverts_it_and_cuts_what_no_picture_holds() -> None:
    assert (denormalise(normalise(IMAGE)) == IMAGE).all()
    expected = ((IMAGE / 255.0 - MEAN) / STD).transpose(2, 0, 1).astype(np.float32)
    assert np.array_equal(denormalise(torch.from_numpy(expected)), IMAGE)
    beyond = denormalise(torch.tensor([-9.0, 9.0]).view(1, 1, 2).expand(3, 1, 2))
    assert beyond.dtype == np.uint8
    assert beyond[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_models_that_take_bytes_use_the_published_statistics() -> None:
    assert torch.equal(torch.tensor(PIXEL_MEAN), torch.tensor((123.675, 116.28, 103.53)))
    assert torch.equal(torch.tensor(PIXEL_STD), torch.tensor((58.395, 57.12, 57.375)))
