"""Assignment of the cost matrices of a training step against scipy, matrix by matrix."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fssops import ops

WORKS = {
    "20 matrices of 100 x 20": (20, 100, 20),  # 10 heads of 2 images
    "160 matrices of 100 x 20": (160, 100, 20),  # 10 heads of 16 images
    "20 matrices of 300 x 100": (20, 300, 100),
    "10 matrices of 900 x 300": (10, 900, 300),
}


@pytest.mark.parametrize("implementation", ["composition", "fssops"])
@pytest.mark.parametrize("work", list(WORKS))
def test_assignment(measure, device, work, implementation) -> None:  # type: ignore[no-untyped-def]
    count, queries, targets = WORKS[work]
    generator = torch.Generator().manual_seed(0)
    costs = [torch.randn(queries, targets, generator=generator).to(device) for _ in range(count)]

    def published() -> list[tuple[Tensor, Tensor]]:
        pairs = []
        for cost in costs:
            rows, columns = linear_sum_assignment(cost.cpu())
            pairs.append((torch.as_tensor(rows, dtype=torch.int64), torch.as_tensor(columns, dtype=torch.int64)))
        return pairs

    run = published if implementation == "composition" else lambda: ops.assign(costs)
    for got, want in zip(run(), published(), strict=True):
        assert torch.equal(got[0].cpu(), want[0])
        assert torch.equal(got[1].cpu(), want[1])
    measure(run, group=f"assign {work}", implementation=implementation)
