"""What all scores share: means that leave out what could not be measured, percentages, and JSON without NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def mean(values: Sequence[float] | np.ndarray) -> float:
    """Mean of the values that are numbers; NaN of none."""
    array = np.asarray(values, dtype=np.float64)
    seen = array[~np.isnan(array)]
    return float(seen.mean()) if seen.size else float("nan")


def percent(value: float, unmeasured: str = "-") -> str:
    """A score as a percentage with two digits; ``unmeasured`` for NaN."""
    return unmeasured if math.isnan(value) else f"{100 * value:.2f}"


def without_nan(value: Any) -> Any:
    """Replace NaN by None, which JSON can say, in nested lists and dicts."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return value
