"""Docstrings as the site's markdown: their roles and equations are those of reStructuredText, which editors show."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EQUATION = re.compile(r"^\.\. math::(.*(?:\n(?:[ \t]+\S.*))*)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]+)`")
_ROLE = re.compile(r":(?:class|data|func|meth|mod):`~?([^`]+)`")


class Markdown(griffe.Extension):
    """Rewrites every docstring when it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Replace equations and roles."""
        if obj.docstring is not None:
            text = _EQUATION.sub(lambda found: f"$$\n{found[1].strip()}\n$$", obj.docstring.value)
            obj.docstring.value = _ROLE.sub(r"`\1`", _INLINE.sub(r"$\1$", text))
