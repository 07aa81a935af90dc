"""What the recipe of a base learner may say about data and evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fssops.engine.settings import Settings, Table
from fssops.tasks.folded_settings import FoldedTable, Size


class BaseClassData(FoldedTable):
    """``[data]``: where images come from, and which classes are base classes."""

    definition: Literal["panet", "msanet"] = "msanet"
    """Which papers' COCO-20i."""
    size: Size = (417, 417)
    """Height and width of the network's input."""
    drop_novel: bool = False
    """Leave out training images that hold novel classes; otherwise they are background there, as published."""
    geometry: Literal["square", "letterbox"] = "letterbox"
    """Of evaluation, and of training where ``augment`` does not crop."""
    augment: Literal["none", "flip", "msanet_base"] = "msanet_base"
    """Of training images, see :data:`fssops.data.augmentation.chains.CHAINS`."""


class BaseClassEval(Table):
    """``[eval]``: base classes of the evaluation images, compared at ``data.size``."""

    root: str | None = None
    """Folder of the data set; unset: data.root."""
    split: str | None = None
    """Part that is evaluated; unset: data.split."""
    validation_split: str | None = None
    """Part that the best checkpoint is chosen by in training; unset: ``split``."""
    images: int = Field(default=0, ge=0)
    """Evaluated at most; 0: all."""
    validation_images: int = Field(default=0, ge=0)
    """The same during training."""
    pictures: int = Field(default=4, ge=0)
    """Number of images drawn."""
    baseline: bool = False
    """Training also evaluates the model as it was before the first step."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint training evaluates at its end, and a second stage starts from."""


class BaseClassSettings(Settings):
    """A recipe of a base learner."""

    data: BaseClassData = Field(default_factory=BaseClassData)
    eval: BaseClassEval = Field(default_factory=BaseClassEval)
