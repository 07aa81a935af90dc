"""What every recipe says of a data set whose classes come in folds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, Strict

from fssops.data.layouts import names_for
from fssops.engine.settings import Table

Side = Annotated[int, Field(ge=1)]
"""Pixels."""

Size = Annotated[tuple[Side, Side], Strict(False)]
"""Height and width."""


if TYPE_CHECKING:
    LayoutName = str
else:
    _NAMES = ("auto", *names_for("few-shot"))
    LayoutName = Literal[_NAMES]


class FoldedTable(Table):
    """The part of ``[data]`` that names the data set and the fold."""

    source: LayoutName = "generated"
    """Layout, as ``python -m fssops.data --help`` lists them; ``auto`` tells it from the folder."""
    root: str = ""
    """Folder of the data set; refused by ``generated``."""
    split: str = ""
    """Part that training draws from; empty takes the layout's usual one."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the layout, e.g. ``{ crowd = "object" }`` for coco."""
    folds: Literal["pascal5i", "coco20i", "generated", "custom", "all"] = "custom"
    """``custom`` cuts the sorted classes into four blocks; ``all`` trains and tests every class, so that results say
    nothing of classes that were not trained: give ``eval.split`` other images than ``split``."""
    definition: Literal["panet", "msanet"] = "panet"
    """Which papers' COCO-20i."""
    fold: int = Field(default=0, ge=0, le=3)
    """Novel are the classes that this fold tests, the others are base classes."""
