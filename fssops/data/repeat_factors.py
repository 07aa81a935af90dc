"""Repeat-factor sampling: images with rare classes come more often (Gupta et al., LVIS, CVPR 2019)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence


def repeat_factors(classes: Sequence[Collection[int]], share: float) -> list[float]:
    """How often each image should occur in a pass: as often as its rarest class asks for.

    Args:
        classes: of each image.
        share: t in (0, 1]; a class in a share f < t of the images asks for sqrt(t / f), others for 1.
    """
    counts = Counter(number for of_image in classes for number in set(of_image))
    factors = {number: max(1.0, math.sqrt(share * len(classes) / count)) for number, count in counts.items()}
    return [max((factors[number] for number in of_image), default=1.0) for of_image in classes]
