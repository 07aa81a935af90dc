"""What the values of an object's mask mean: one rule, for supports and for folders of masks.

=======================================  ==========================================================================
values                                   read as
=======================================  ==========================================================================
booleans                                 True is the object
0 and one other value                    that value is the object, 1 and 255 alike
0, 1 and 255                             1 is the object, 255 neither object nor background
anything else, without a setting         refused: smoothed outlines, several ids, probabilities, logits
with ``object=V``                        V (or each of several) is the object, the rest background, 255 neither
with ``threshold=T``                     T and above is the object, the rest background
=======================================  ==========================================================================

In folders of label maps (``label_folder``) 255 is neither, but where no label map of the split holds anything else
beside 0: then it is the object, of the one class that is listed beside the background; of several it is refused.

``ignore=V`` names another value for neither. A picture with a palette whose background is brighter than its object is
refused too: its numbers and its look say the opposite.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from fssops.data.errors import MaskValueError
from fssops.labels import IGNORE

Values = int | Collection[int] | None


def object_area(
    values: np.ndarray[Any, Any],
    where: str,
    *,
    object: Values = None,
    threshold: float | None = None,
    ignore: int | None = None,
    colours: np.ndarray[Any, Any] | None = None,
) -> np.ndarray[Any, Any]:
    """Read a mask as object, background and neither.

    Args:
        values: [H, W], booleans or numbers.
        where: what errors call it.
        object: the value, or values, of the object.
        threshold: least value of the object; for grey outlines, probabilities (0.5) and logits (0).
        ignore: the value that is neither; unset: 255 beside an ``object`` other than 255, none beside a ``threshold``.
        colours: [n, 3] of a picture with a palette, which must not show the background, 0, brighter than the object
            where neither ``object`` nor ``threshold`` says which is which.

    Returns:
        uint8 [H, W] of 1 object, 0 background, 255 neither.

    Raises:
        MaskValueError: the values do not say which is the object, their palette says the opposite, or they are not
            finite.
        ValueError: both ``object`` and ``threshold``.
    """
    if object is not None and threshold is not None:
        raise ValueError(f"{where}: give object or threshold, got both")
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise MaskValueError(f"{where}: mask must be finite, got NaN or infinity")
    if threshold is not None:
        inside, neither = values >= threshold, ignore
    elif object is not None:
        wanted = np.atleast_1d(np.asarray(object if isinstance(object, int) else sorted(object)))
        inside, neither = np.isin(values, wanted), IGNORE if ignore is None and IGNORE not in wanted else ignore
    else:
        _check_palette(colours, values, where)
        present = np.unique(values)
        others = present[(present != 0) & (present != ignore)].tolist()
        neither = IGNORE if ignore is None and others == [1, IGNORE] else ignore
        others = [value for value in others if value != neither]
        if len(others) > 1 or (others and others[0] % 1):
            raise MaskValueError(undecided(where, others))
        inside = np.isin(values, others)
    area = inside.astype(np.uint8)
    if neither is not None:
        area[values == neither] = IGNORE
    return area


def white_is_object(masks: Iterable[np.ndarray[Any, Any]]) -> bool:
    """Whether 255 is the object of label maps: some have it, and none a value other than 0 beside it."""
    seen: set[int] = set()
    for values in masks:
        seen.update(np.unique(values).tolist())
        if not seen <= {0, IGNORE}:
            return False
    return IGNORE in seen


def undecided(where: str, others: Sequence[float]) -> str:
    """The message for values beside 0 that do not say which is the object."""
    shown = ", ".join(f"{value:g}" for value in others[:6]) + (", ..." if len(others) > 6 else "")
    return (
        f"{where}: mask must be of 0 and one other value (or of 0, 1 and 255, which is neither), got also {shown}; say "
        f"object={others[0]:g} (or another value), or threshold=128 for grey outlines, 0.5 for probabilities, 0 for "
        "logits"
    )


def _check_palette(colours: np.ndarray[Any, Any] | None, values: np.ndarray[Any, Any], where: str) -> None:
    if colours is None or not len(colours):
        return
    others = [int(value) for value in np.unique(values) if 0 < value < len(colours)]
    if others and all(colours[value].sum() < colours[0].sum() for value in others):
        background, shown = (tuple(colours[value].tolist()) for value in (0, others[0]))
        raise MaskValueError(
            f"{where}: mask must show its background, 0, darker than its object, got a palette with 0 as {background} "
            f"and {others[0]} as {shown}; say object=0 or object={others[0]}"
        )
