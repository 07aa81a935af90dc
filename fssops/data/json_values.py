"""What values of annotation files plainly are, whoever wrote them: one rule for every reader.

=========================  ============================================================================================
asked for                  read
=========================  ============================================================================================
whole number               ``60``, ``60.0`` and ``"60"``, within 64 bits; ``true`` is none
id of an image or video    a whole number, or a text; a text that is how a number is written (``"60"``, not ``"007"``)
                           is that number
id of a category           a whole number
id of an object            a whole number; an object without one, or with that of another, gets a free one and is told
yes or no                  ``0`` and ``1`` as whole numbers, ``true`` and ``false``
name                       a text with something in it, without control characters
=========================  ============================================================================================
"""

from __future__ import annotations

import math
import re
import reprlib
from typing import Any

_DIGITS = re.compile(r"-?[0-9]{1,19}")
_NO_NAME = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_EXACT = 1 << 53
"""Up to here every whole number is a float."""


def whole_number(value: Any) -> int | None:
    """The whole number that a value plainly is, or None."""
    digits = isinstance(value, str) and _DIGITS.fullmatch(value)
    if digits or (isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63:
        return value
    return None


def identifier(value: Any) -> int | str | None:
    """How an image or a video is called: a whole number or a text, or None."""
    number = whole_number(value)
    return name(value) if isinstance(value, str) and str(number) != value else number


def name(value: Any) -> str | None:
    """The name that a value is, or None."""
    return value if isinstance(value, str) and value.strip() and not _NO_NAME.search(value) else None


def yes_or_no(value: Any) -> bool | None:
    """Whether a value says yes, or None where it says neither."""
    number = int(value) if isinstance(value, bool) else whole_number(value)
    return bool(number) if number in (0, 1) else None


def positive(value: Any) -> float | None:
    """A finite number above 0, or None."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if 0 < number < math.inf else None


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 80, 80


def shown(value: Any) -> str:
    """A value of any size and depth in one short line."""
    return _SHORT.repr(value)
