"""Images with rare classes are repeated."""

from __future__ import annotations

import pytest

from fssops.data.repeat_factors import repeat_factors


def test_images_of_rare_classes_are_repeated_by_the_root_of_what_they_lack() -> None:
    # Class 1 is in half of the images, class 2 in a twentieth: sqrt(0.2 / 0.05) = 2.
    classes = [{1} if number % 2 else {3} for number in range(19)] + [{1, 2}]
    assert repeat_factors(classes, 0.2) == [1.0] * 19 + [pytest.approx(2.0)]
    assert repeat_factors([set(), {1}], 0.001) == [1.0, 1.0]
