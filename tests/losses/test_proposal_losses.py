"""Losses of proposals in mixed precision."""

from __future__ import annotations

import pytest
import torch

from fssops.losses.proposals import ranked_similarities, ranking_loss, soft_iou


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_overlap_is_the_same_under_autocast(dtype: torch.dtype) -> None:
    """The area of a 480 x 480 image exceeds float16, and every proposal would overlap by 0."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(2, 5, 60, 60, generator=generator)
    target = (torch.rand(2, 480, 480, generator=generator) > 0.6).float()
    wanted = soft_iou(masks, target)
    with torch.autocast("cpu", dtype):
        found = soft_iou(masks, target)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


def ranking(device: str, dtype: torch.dtype) -> torch.Tensor:
    similarity = torch.tensor([[0.1, 0.9, 0.4]], device=device, requires_grad=True)
    with torch.autocast(device, dtype):
        ranked, _ = ranked_similarities(similarity.to(dtype), torch.tensor([[0.2, 0.3, 0.8]], device=device))
        loss = ranking_loss(ranked, 1e-3)
    loss.backward()
    assert similarity.grad is not None
    assert similarity.grad.isfinite().all()
    return loss


def test_ranking_loss_is_float32_under_autocast() -> None:
    assert ranking("cpu", torch.bfloat16).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ranking_loss_runs_under_autocast_on_a_gpu(dtype: torch.dtype) -> None:
    """PyTorch refuses binary cross-entropy of probabilities there."""
    assert ranking("cuda", dtype).dtype == torch.float32
