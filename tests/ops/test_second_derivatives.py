"""Gradients may keep their graph, but differentiating them again is an error, never a wrong number."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fssops import ops


def _masked_average_pooling(x: Tensor) -> Tensor:
    return ops.masked_average_pooling(x, torch.rand(1, 3, 4, 4, dtype=x.dtype), eps=0.1)


def _cosine_similarity_to_prototypes(x: Tensor) -> Tensor:
    return ops.cosine_similarity_to_prototypes(x, torch.randn(1, 3, 6, dtype=x.dtype))


def _cosine_correlation(x: Tensor) -> Tensor:
    return ops.cosine_correlation(x, torch.randn(1, 1, 6, 3, 3, dtype=x.dtype), torch.ones(1, 1, 3, 3))


def _masked_attention(x: Tensor) -> Tensor:
    return ops.masked_attention(x, *torch.randn(2, 1, 6, 5, 4, dtype=x.dtype))


def _ms_deform_attn(x: Tensor) -> Tensor:
    value = x.flatten(2).transpose(1, 2)[:, :, None]
    return ops.ms_deform_attn(value, [(4, 4)], torch.rand(1, 5, 1, 1, 2, 2).to(x), torch.rand(1, 5, 1, 1, 2).to(x))


def _sample_points(x: Tensor) -> Tensor:
    return ops.sample_points(x, torch.rand(1, 5, 2, dtype=x.dtype))


def _point_mask_loss(x: Tensor) -> Tensor:
    mask, dice = ops.point_mask_loss(x[0], torch.rand(6, 4, 4, dtype=x.dtype), torch.rand(1, 5, 2, dtype=x.dtype))
    return mask + dice


OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine_correlation": _cosine_correlation,
    "cosine_similarity_to_prototypes": _cosine_similarity_to_prototypes,
    "masked_attention": _masked_attention,
    "masked_average_pooling": _masked_average_pooling,
    "ms_deform_attn": _ms_deform_attn,
    "point_mask_loss": _point_mask_loss,
    "sample_points": _sample_points,
}


@pytest.mark.parametrize("operator", OPERATORS)
def test_gradient_that_keeps_its_graph_is_the_gradient_and_has_no_derivative(operator: str) -> None:
    x = torch.randn(1, 6, 4, 4, dtype=torch.float64, requires_grad=True)

    def gradient(create_graph: bool) -> Tensor:
        torch.manual_seed(1)
        loss = OPERATORS[operator](x).square().sum()
        return torch.autograd.grad(loss, x, create_graph=create_graph)[0]

    kept = gradient(create_graph=True)
    assert torch.equal(kept, gradient(create_graph=False))
    with pytest.raises(NotImplementedError, match=f"{operator}: gradients must not be differentiated again"):
        torch.autograd.grad(kept.square().sum(), x)
