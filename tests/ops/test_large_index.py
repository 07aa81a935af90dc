"""Tensors of more than 2^31 elements: the last image is addressed as well as the first.

The memory is numpy's untouched zero pages, which cost nothing until they are written; only the last image is.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fssops import ops, reference

IMAGES, CHANNELS, SIDE = 65_537, 512, 8


@pytest.fixture(scope="module")
def features() -> Tensor:
    pages = torch.from_numpy(np.zeros((IMAGES, CHANNELS, SIDE, SIDE), dtype=np.float32))
    assert pages.numel() > 2**31
    generator = torch.Generator().manual_seed(0)
    pages[-1] = torch.randn(CHANNELS, SIDE, SIDE, generator=generator)
    return pages


def test_masked_average_pooling_addresses_in_64_bits(features: Tensor) -> None:
    masks = torch.zeros(IMAGES, 1, SIDE, SIDE)
    masks[-1, 0, 2:5, 1:7] = 0.5
    prototypes = ops.masked_average_pooling(features, masks, eps=1e-5)
    want = reference.masked_average_pooling(features[-1:], masks[-1:], eps=1e-5)
    torch.testing.assert_close(prototypes[-1:], want)
    assert not prototypes[:-1].any()


def test_cosine_similarity_to_prototypes_addresses_in_64_bits(features: Tensor) -> None:
    prototypes = torch.ones(IMAGES, 1, CHANNELS)
    scores = ops.cosine_similarity_to_prototypes(features, prototypes)
    want = reference.cosine_similarity_to_prototypes(features[-1:], prototypes[-1:])
    torch.testing.assert_close(scores[-1:], want)
    assert not scores[:-1].any()
