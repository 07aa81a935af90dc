"""MP-Former: the authors' cases."""

from __future__ import annotations

from pathlib import Path

import parity
import pytest


@pytest.mark.parametrize("case", ["mpformer_r50", "mpformer_r50_shift"])
def test_every_array_of_the_authors_cases_is_reproduced(oracle_root: Path, case: str) -> None:
    """Attention bits, walls, predictions, points and losses of both parts, gradients, first step, inference."""
    lines = list(parity.lines_of(oracle_root / case))
    assert not [str(line) for line in lines if line.out]
    assert not [line.name for line in lines if line.error is None and "input" not in line.measure]
    assert sum(line.error is not None for line in lines) > 110
