"""What the recipe of a base learner may say about data and evaluation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from fssops.engine.settings import Settings, Table


class BaseClassData(Table):
    """``[data]``: where images come from, and which classes are base classes."""

    source: Literal["auto", "generated", "voc", "coco", "fss1000", "folder"] = "generated"
    root: str = ""
    """Folder of the data set; not used by ``generated``."""
    split: str = ""
    """Part that training draws from; empty takes the layout's usual one."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the layout."""
    folds: Literal["pascal5i", "coco20i", "generated", "custom"] = "custom"
    """``custom`` cuts the sorted classes into four blocks."""
    definition: Literal["panet", "msanet"] = "msanet"
    """Which papers' COCO-20i."""
    fold: int = Field(default=0, ge=0, le=3)
    """The base classes are those that this fold does not test."""
    size: Annotated[tuple[int, int], Strict(False)] = (417, 417)
    drop_novel: bool = False
    """Leave out training images that hold novel classes; otherwise they are background there, as published."""
    geometry: Literal["square", "letterbox"] = "letterbox"
    """Of evaluation, and of training where ``augment`` does not crop."""
    augment: Literal["none", "flip", "msanet_base"] = "msanet_base"


class BaseClassEval(Table):
    """``[eval]``: base classes of the evaluation images, compared at ``data.size``."""

    root: str | None = None
    """Folder of the data set; unset: data.root."""
    split: str | None = None
    """Part that is evaluated; unset: data.split."""
    images: int = Field(default=0, ge=0)
    """Evaluated at most; 0: all."""
    validation_images: int = Field(default=0, ge=0)
    """The same during training."""
    pictures: int = Field(default=4, ge=0)
    baseline: bool = False
    """Training also evaluates the model as it was before the first step."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint training evaluates at its end, and a second stage starts from."""


class BaseClassSettings(Settings):
    """A recipe of a base learner."""

    data: BaseClassData = Field(default_factory=BaseClassData)
    eval: BaseClassEval = Field(default_factory=BaseClassEval)
