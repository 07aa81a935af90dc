"""Names of one layout to names of another, by a table that reads in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

Rules = Sequence[tuple[str, str]]
"""Pairs (our name, their name). ``{}`` stands for a number, a final ``*`` for any rest; equal numbers on both sides."""


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


class Renaming:
    """Both directions of a table of rules; the first rule that fits a name is taken.

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

    def state_to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict under our names; unknown names stay as they are."""
        return {self.ours(name) or name: value for name, value in state.items()}

    def state_to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of ours under their names.

        Raises:
            ValueError: a name of ours has no counterpart.
        """
        renamed: dict[str, Tensor] = {}
        for name, value in state.items():
            theirs = self.theirs(name)
            if theirs is None:
                raise ValueError(f"Renaming: every tensor must have a name in the other layout, got {name!r}")
            renamed[theirs] = value
        return renamed
