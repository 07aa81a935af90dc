"""What a layout is: a way of naming a network's tensors, and how such names become ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

State = Mapping[str, Tensor]

Rules = Sequence[tuple[str, str]]
"""Pairs (our name, their name). ``{}`` stands for a number, a final ``*`` for any rest; equal numbers on both sides."""


@dataclass(frozen=True)
class Layout:
    """One way of naming the tensors of one network.

    Attributes:
        name: for readers and reports, e.g. "authors (kaixin96/PANet)".
        model: the ``name`` attribute of the module class that the names belong to: a system ("panet") or a backbone
            ("resnet"). A backbone's layout fills ``model.backbone`` of any system that has such a backbone.
        recognise: whether a set of keys is of this layout. Keys come without wrappers and without ``module.``.
        convert: the tensors under our names, for a module of that class; it may reshape, split, join or drop.
            Names it does not know it passes on unchanged, so that the report shows them as unexpected.
        also: further systems whose tensors bear the same names.
        ignore: regular expressions (``re.search`` on the checkpoint's names) of entries that are known not to matter,
            e.g. a classifier: they are listed apart in the report.
    """

    name: str
    model: str
    recognise: Callable[[Collection[str]], bool]
    convert: Callable[[State, nn.Module], dict[str, Tensor]]
    ignore: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    def fits(self, model: str) -> bool:
        """Whether the names are those of a system or backbone."""
        return model == self.model or model in self.also


class Renaming:
    """A table of rules from our names to another layout's, which reads in both directions; the first that fits counts.

    Args:
        rules: pairs (our name, their name).
    """

    def __init__(self, rules: Rules) -> None:
        self._to_ours = [(_pattern(theirs), ours) for ours, theirs in rules]
        self._to_theirs = [(_pattern(ours), theirs) for ours, theirs in rules]

    @staticmethod
    def _renamed(name: str, table: list[tuple[re.Pattern[str], str]]) -> str | None:
        for pattern, template in table:
            if match := pattern.match(name):
                return _filled(template, match.groups())
        return None

    def ours(self, name: str) -> str | None:
        """Our name of their tensor, None if no rule fits."""
        return self._renamed(name, self._to_ours)

    def theirs(self, name: str) -> str | None:
        """Their name of our tensor, None if no rule fits."""
        return self._renamed(name, self._to_theirs)

    def state_to_ours(self, state: State) -> dict[str, Tensor]:
        """A state dict under our names; unknown names stay as they are."""
        return {self.ours(name) or name: value for name, value in state.items()}

    def state_to_theirs(self, state: State) -> dict[str, Tensor]:
        """A state dict of ours under their names.

        Raises:
            ValueError: a name of ours has no counterpart.
        """
        renamed: dict[str, Tensor] = {}
        for name, value in state.items():
            theirs = self.theirs(name)
            if theirs is None:
                raise ValueError(f"weights: every tensor must have a name in the other layout, got {name!r}")
            renamed[theirs] = value
        return renamed


def _pattern(template: str) -> re.Pattern[str]:
    body = re.escape(template).replace(r"\{\}", r"(\d+)")
    if body.endswith(r"\*"):
        body = body[:-2] + "(.+)"
    return re.compile(f"^{body}$")


def _filled(template: str, parts: Iterable[str]) -> str:
    values = list(parts)
    if template.endswith("*"):
        return template[:-1].format(*values[:-1]) + values[-1]
    return template.format(*values)
