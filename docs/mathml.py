"""Equations of the documentation as MathML, made when the site is built: browsers need no script and no network."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_EQUATION = re.compile(r'class="arithmatex">\\([\[(])(.*?)\\[\])]<', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace what the arithmatex extension has marked."""

    def mathml(found: re.Match[str]) -> str:
        display = "block" if found[1] == "[" else "inline"
        return f'class="arithmatex">{convert(html.unescape(found[2]), display=display)}<'

    return _EQUATION.sub(mathml, content)
