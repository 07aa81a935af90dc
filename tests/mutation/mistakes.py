"""Single-line mistakes that can be planted in a Python source: what each would change, and where."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

_COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_REPLACED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_EXCHANGED = dict(
    pair
    for a, b in (
        ("min", "max"),
        ("amin", "amax"),
        ("minimum", "maximum"),
        ("argmin", "argmax"),
        ("any", "all"),
        ("floor", "ceil"),
        ("zeros", "ones"),
        ("zeros_like", "ones_like"),
        ("height", "width"),
        ("nearest", "bilinear"),
    )
    for pair in ((a, b), (b, a))
)
_GUARDS = ("frozen", "strict")
_LEFT_OUT = ("clone", "copy", "clamp", "detach", "abs", "flip", "sigmoid", "sqrt", "contiguous")


@dataclass(frozen=True)
class Mistake:
    """A changed source: the line (from 1), what was done, and the text that stands there now."""

    line: int
    kind: str
    text: str
    source: str


def mistakes(source: str) -> Iterator[Mistake]:
    """All mistakes that this module knows how to make in a source.

    Left alone are annotations, docstrings, ``__all__``, log messages and the words of errors, in which no behaviour is,
    and ``frozen`` and ``strict``, which only guard against mistakes elsewhere.
    """
    offsets = [0]
    for line in source.encode().splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    for node in _behaviour(ast.parse(source)):
        for kind, place, changed in _changes(node):
            start = offsets[place.lineno - 1] + place.col_offset
            end = offsets[(place.end_lineno or 0) - 1] + (place.end_col_offset or 0)
            words = changed if isinstance(changed, str) else f"({ast.unparse(changed)})"
            whole = (source.encode()[:start] + words.encode() + source.encode()[end:]).decode()
            yield Mistake(place.lineno, kind, f"{ast.unparse(place)} -> {words}", whole)


def _behaviour(node: ast.AST) -> Iterator[ast.stmt | ast.expr]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.Expr) and ast.unparse(node).startswith(("logger.", "warnings.")):
        return
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
        return
    if isinstance(node, ast.keyword) and node.arg in _GUARDS:
        return
    if isinstance(node, (ast.stmt, ast.expr)):
        yield node
    if isinstance(node, (ast.Raise, ast.JoinedStr)):
        return
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _behaviour(child)


def _changes(node: ast.stmt | ast.expr) -> Iterator[tuple[str, ast.stmt | ast.expr, ast.expr | str]]:
    """Kind of mistake, the node it replaces, and by what."""
    match node:
        case ast.Compare(left, [op], right):
            for other in _COMPARED[type(op)]:
                yield "comparison", node, ast.Compare(left, [other()], right)
        case ast.BinOp(left, op, right) if type(op) in _REPLACED and not _is_text(left) and not _is_text(right):
            yield "arithmetic", node, ast.BinOp(left, _REPLACED[type(op)](), right)
        case ast.BoolOp(op, values):
            yield "and/or", node, ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            for left_out in values:
                kept = [value for value in values if value is not left_out]
                yield "condition left out", node, kept[0] if len(kept) == 1 else ast.BoolOp(op, kept)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield "sign or negation left out", node, operand
        case ast.Constant(bool() as value):
            yield "constant", node, ast.Constant(not value)
        case ast.Constant(int() as value):
            yield "constant", node, ast.Constant(value + 1)
            if value > 0:
                yield "constant", node, ast.Constant(value - 1)
        case ast.Constant(float() as value):
            yield "constant", node, ast.Constant(2 * value or 1.0)
        case ast.Constant(str() as value) if value in _EXCHANGED:
            yield "word", node, ast.Constant(_EXCHANGED[value])
        case ast.Name(name, ast.Load()) if name in _EXCHANGED:
            yield "name", node, ast.Name(_EXCHANGED[name])
        case ast.Attribute(of, name, ast.Load()) if name in _EXCHANGED:
            yield "name", node, ast.Attribute(of, _EXCHANGED[name])
        case ast.If(test) | ast.While(test) | ast.IfExp(test):
            yield "condition negated", test, ast.UnaryOp(ast.Not(), test)
        case ast.Call(function, arguments, keywords):
            for keyword in keywords:
                if keyword.arg and keyword.arg not in _GUARDS:
                    others = [other for other in keywords if other is not keyword]
                    yield "keyword left out", node, ast.Call(function, arguments, others)
            for place, (first, second) in enumerate(pairwise(arguments)):
                if not isinstance(first, ast.Starred) and not isinstance(second, ast.Starred):
                    swapped = [*arguments[:place], second, first, *arguments[place + 2 :]]
                    yield "arguments exchanged", node, ast.Call(function, swapped, keywords)
            if isinstance(function, ast.Attribute) and function.attr in _LEFT_OUT:
                yield "call left out", node, function.value
        case ast.AugAssign(target, op, value):
            yield "statement left out", node, "pass"
            if type(op) in _REPLACED:
                yield "arithmetic", node, ast.unparse(ast.AugAssign(target, _REPLACED[type(op)](), value))
        case ast.Expr() | ast.Continue() | ast.Break() | ast.Raise() | ast.Delete():
            yield "statement left out", node, "pass"
        case ast.Assign([ast.Subscript() | ast.Attribute()]):
            yield "statement left out", node, "pass"


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
