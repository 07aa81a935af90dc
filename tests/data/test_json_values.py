"""What is a number, an id, a name, a yes: the same whoever wrote the file."""

from __future__ import annotations

from typing import Any

import pytest

from fssops.data.json_values import identifier, name, positive, shown, whole_number, yes_or_no

HUGE = 1 << 63


@pytest.mark.parametrize("value", [60, 60.0, "60", "0060"])
def test_what_is_plainly_a_number_is_that_number(value: Any) -> None:
    found = whole_number(value)
    assert (found, type(found)) == (60, int)


@pytest.mark.parametrize("value", [-3, -3.0, "-3", HUGE - 1, -HUGE, str(HUGE - 1)])
def test_whole_numbers_have_64_bits(value: Any) -> None:
    assert whole_number(value) == int(value)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 60.5, float("nan"), float("inf"), 1e300, HUGE, -HUGE - 1, str(HUGE)),
        *("", " 60", "6e1", "60.0", "٣", "9" * 5000, [60], {"id": 60}, 2.0**54),
    ],
)
def test_everything_else_is_no_whole_number(value: Any) -> None:
    assert whole_number(value) is None


@pytest.mark.parametrize(
    ("value", "found"),
    [
        *((7, 7), (7.0, 7), ("7", 7), ("007", "007"), ("a.jpg", "a.jpg"), ("7.5", "7.5"), (7.5, None), (True, None)),
        *(
            ("", None),
            ("  ", None),
            ("a\nb", None),
            ("\ud800", None),
            ([7], None),
            (str(HUGE), str(HUGE)),
            (HUGE, None),
        ),
    ],
)
def test_images_are_called_by_numbers_or_texts(value: Any, found: Any) -> None:
    assert (identifier(value), type(identifier(value))) == (found, type(found))


@pytest.mark.parametrize("value", ["ü b", "a\xa0b", "犬", "[red]"])
def test_a_name_may_hold_any_letters(value: str) -> None:
    assert name(value) == value


@pytest.mark.parametrize("value", ["", " ", "a\x00", "a\x1b[31m", "a\x7f", "a\x85b", "a\u2028b", "\udfff", 5, ["a"]])
def test_a_name_holds_nothing_that_breaks_a_line_or_cannot_be_written(value: Any) -> None:
    assert name(value) is None


@pytest.mark.parametrize(
    ("value", "found"),
    [
        *((0, False), (1, True), ("0", False), ("1", True), (1.0, True), (True, True), (False, False)),
        *((2, None), ("no", None), (None, None), ([], None), (0.5, None)),
    ],
)
def test_yes_or_no(value: Any, found: Any) -> None:
    assert yes_or_no(value) is found


@pytest.mark.parametrize("value", [0, -1, 10**400, float("inf"), float("nan"), "81", None, True, [1]])
def test_what_is_no_positive_number_is_not_stated(value: Any) -> None:
    assert positive(value) is None
    assert positive(81) == 81.0


def test_a_value_of_any_size_and_depth_is_shown_in_a_short_line() -> None:
    nested: Any = []
    for _ in range(900):
        nested = [nested, {"a\n": "b" * 10_000}]
    assert len(shown(nested)) < 300
    assert "\n" not in shown(nested)
    assert shown(10**4000) == shown(10**4000)[:18] + "..." + shown(10**4000)[-19:]
