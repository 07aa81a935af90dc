"""What a vision transformer's features say of the position alone, and features without it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHORTEST = 1e-12
"""Vectors are divided by their length or by this."""


def content_basis(tokens: Tensor, components: int) -> Tensor:
    """Directions that are free of position: those across the leading components of an image without content.

    The published code takes the part along B, the leading left singular vectors of the centred features, away from each
    feature, I - B B^T. Here U, the rest of the orthonormal basis, is what is kept: U^T x are the coordinates of the
    same vector, with the same inner products, in C - s numbers instead of C.

    Args:
        tokens: [N, C] unit features of the image, one a position.
        components: s, how many directions hold the position; at most N - 1 are there.

    Returns:
        U [C, C - min(s, N - 1)], orthonormal, in the precision of ``tokens``; computed in float64.
    """
    centred = tokens.double()
    centred = centred - centred.mean(0)
    directions: Tensor = torch.linalg.eigh(centred.T @ centred).eigenvectors  # of ascending size
    return directions[:, : tokens.shape[1] - min(components, len(tokens) - 1)].to(tokens.dtype)


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1, or shorter where they are next to nothing; the last axis holds a vector."""
    return F.normalize(vectors, dim=-1, eps=SHORTEST)
