"""The mistakes that are planted: each on one line, each another program, none in what has no behaviour."""

from __future__ import annotations

import ast

import pytest
from mistakes import mistakes


def texts(source: str) -> set[str]:
    """The source after each mistake, brackets that the planting adds aside."""
    return {ast.unparse(ast.parse(mistake.source)) for mistake in mistakes(source)}


@pytest.mark.parametrize(
    ("source", "planted"),
    [
        ("x = a < b", {"x = a <= b", "x = a > b"}),
        ("x = a is None", {"x = a is not None"}),
        ("x = a + b", {"x = a - b"}),
        ("x = a / b", {"x = a * b"}),
        ("x = a and b", {"x = a or b", "x = a", "x = b"}),
        ("x = not a", {"x = a"}),
        ("x = a.sum(-1)", {"x = a.sum(1)", "x = a.sum(-2)", "x = a.sum(-0)"}),
        ("x = True", {"x = False"}),
        ("x = 0.5", {"x = 1.0"}),
        ("x = min(a)", {"x = max(a)"}),
        ("x = a.argmax()", {"x = a.argmin()"}),
        ("x = f(a, b, size=c)", {"x = f(a, b)", "x = f(b, a, size=c)"}),
        ("x = a.clamp()", {"x = a"}),
        ("x = f(mode='nearest')", {"x = f()", "x = f(mode='bilinear')"}),
        ("if a:\n    x = b", {"if not a:\n    x = b"}),
        ("x = b if a else c", {"x = b if not a else c"}),
        ("x += y", {"pass", "x -= y"}),
        ("x[i] = y", {"pass"}),
        ("if a:\n    raise E(1 + 2)", {"if not a:\n    raise E(1 + 2)", "if a:\n    pass"}),
        ("def f(a=1):\n    return a", {"def f(a=2):\n    return a", "def f(a=0):\n    return a"}),
    ],
)
def test_mistakes_of_every_kind(source: str, planted: set[str]) -> None:
    assert texts(source) == planted


@pytest.mark.parametrize(
    "source",
    [
        "'words'",
        "def f(a: int | None = b) -> list[1]:\n    'words'",
        "__all__ = [1, 2]",
        "x = f'{a + 1}'",
        "x = 'words' + a",
        "logger.info('%d', 3)",
        "@dataclass(frozen=True)\nclass A:\n    x: int",
    ],
)
def test_what_has_no_behaviour_is_left_alone(source: str) -> None:
    assert texts(source) == set()


def test_a_mistake_is_on_its_line_and_leaves_the_others_byte_for_byte() -> None:
    source = "x = 'ü'\ny = f(\n    a,\n    1,\n)\nz = 2  # kept\n"
    lines = source.splitlines()
    for mistake in mistakes(source):
        changed = mistake.source.splitlines()
        assert changed[: mistake.line - 1] == lines[: mistake.line - 1]
        assert changed[0] == lines[0]
        if mistake.line < 6:
            assert changed[-1] == lines[-1]
    assert {mistake.line for mistake in mistakes(source)} == {2, 4, 6}
