"""Learning-rate factors as pure functions of the step, so a schedule has no state to save."""

from __future__ import annotations

import math
from collections.abc import Callable

from fssops.engine.settings import ScheduleSettings


def learning_rate_factor(settings: ScheduleSettings) -> Callable[[int], float]:
    """Return the factor on the base learning rate for the update that follows ``step`` finished updates.

    ``step``: ``gamma ** (milestones passed)`` as PyTorch's MultiStepLR; ``poly``: ``(1 - step / steps) ** power``,
    not below ``end_factor``; ``cosine``: half a wave from 1 to ``end_factor``. Warm-up multiplies the factor:
    ``constant`` by ``warmup_factor``, ``linear`` by a ramp from ``warmup_factor`` to 1, as in detectron2.
    """
    milestones = sorted(settings.milestones)
    total = max(settings.steps, 1)

    def main(step: int) -> float:
        if settings.name == "step":
            return float(settings.gamma ** sum(step >= milestone for milestone in milestones))
        done = min(step / total, 1.0)
        if settings.name == "poly":
            return max(float((1.0 - done) ** settings.power), settings.end_factor)
        if settings.name == "cosine":
            return settings.end_factor + (1.0 - settings.end_factor) * 0.5 * (1.0 + math.cos(math.pi * done))
        return 1.0

    def warmup(step: int) -> float:
        if step >= settings.warmup_steps:
            return 1.0
        if settings.warmup == "constant":
            return settings.warmup_factor
        ramp = step / settings.warmup_steps
        return settings.warmup_factor * (1.0 - ramp) + ramp

    return lambda step: main(step) * warmup(step)
