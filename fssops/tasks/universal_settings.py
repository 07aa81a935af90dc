"""What the recipe of a universal system may say about data and evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, Strict, model_validator

from fssops.data.layouts import names_for
from fssops.engine.settings import Settings, Table
from fssops.tasks.folded_settings import Side, Size

if TYPE_CHECKING:
    LayoutName = str
else:
    _TRUTHS = ("semantic", "instance", "panoptic")
    _NAMES = ("auto", *dict.fromkeys(name for truth in _TRUTHS for name in names_for(truth)))
    LayoutName = Literal[_NAMES]


class UniversalData(Table):
    """``[data]``: where images come from, which masks are trained, and how images are augmented."""

    source: LayoutName = "generated"
    """Layout, as ``python -m fssops.data --help`` lists them; ``auto`` tells it from the folder."""
    root: str = ""
    """Folder of the data set; refused by ``generated``."""
    split: str = "train"
    """Part that training draws from."""
    truth: Literal["semantic", "instance", "panoptic"] = "panoptic"
    """Which masks are trained: one a class present, one an object, or one a panoptic segment."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the layout, e.g. ``{ annotations = "my.json", images = "pictures" }``."""
    augment: Literal["none", "flip", "resize_crop", "large_scale_jitter", "detr"] = "flip"
    """Of training images, see :func:`fssops.data.augmentation.chains.universal_chain`."""
    short_sides: list[Side] = Field(default_factory=list)
    """Sizes of the shorter side that training draws from."""
    longest: int = Field(default=1333, ge=1)
    """Limit for the longer side in training."""
    crop: Size | None = None
    """Height and width of ``resize_crop``."""
    category_share: float = Field(default=1.0, gt=0, le=1)
    """Largest share of one class in a crop; 1 sets no limit, as in every published setting."""
    pad: bool = True
    """Pad smaller crops to the crop's size."""
    side: int = Field(default=1024, ge=1)
    """Side of ``large_scale_jitter``."""
    scales: Annotated[tuple[float, float], Strict(False)] = (0.1, 2.0)
    """Least and largest factor of ``large_scale_jitter``, above 0."""
    keep_empty: bool = False
    """Keep objects of which augmentation leaves no pixel."""
    rare_classes: float = Field(default=0.0, ge=0, le=1)
    """Share of images that a class should have: images with one of a lesser share f occur sqrt(share / f) times in a
    pass (repeat-factor sampling of LVIS, whose baselines take 0.001); 0 never."""

    @model_validator(mode="after")
    def _sizes_are_given(self) -> UniversalData:
        if self.augment in ("resize_crop", "detr") and not self.short_sides:
            raise ValueError(f"short_sides must be given for augment {self.augment}, got none")
        if self.augment == "resize_crop" and self.crop is None:
            raise ValueError("crop must be given for augment resize_crop, got none")
        if not 0 < self.scales[0] <= self.scales[1]:
            raise ValueError(f"scales must be two factors above 0, the lesser first, got {list(self.scales)}")
        return self


class UniversalEval(Table):
    """``[eval]``: what is scored, on which images, at which size; all of it shows in the result lines."""

    root: str | None = None
    """Folder of the data set; unset: data.root."""
    split: str = "val"
    """Part that is evaluated."""
    validation_split: str | None = None
    """Split that the best checkpoint is chosen by in training; unset: ``split``, which the result then flatters."""
    options: dict[str, Any] | None = None
    """Further arguments of the layout; unset: data.options."""
    tasks: list[Literal["semantic", "instance", "panoptic"]] = Field(default_factory=list)
    """Which scores; empty: the model's tasks that the data set has truth for."""
    short_side: int = Field(default=0, ge=0)
    """Shorter side of test images; 0 keeps their size."""
    longest: int = Field(default=1333, ge=1)
    """Limit for the longer side."""
    scales: list[Side] = Field(default_factory=list)
    """Shorter sides that semantic scores are averaged over; empty: one pass at ``short_side``."""
    flip: bool = False
    """Average semantic scores over mirrored images as well."""
    scales_longest: int = Field(default=4096, ge=1)
    """Limit for the longer side in ``scales``."""
    images: int = Field(default=0, ge=0)
    """Evaluate this many images, evenly spread over the split; 0 all."""
    validation_images: int = Field(default=0, ge=0)
    """The same for validation during training; 0 as ``images``."""
    boundary: bool = False
    """Also score boundaries: boundary IoU of classes, boundary AP of instances."""
    layer_measures: bool = False
    """Also measure how the layers of a masked-attention decoder go along: agreement of a query's masks between
    consecutive layers, and share of each layer's matched queries that are of use in the end (mask2former, mp_former).
    """
    workers: int = Field(default=1, ge=0)
    """Processes that read images ahead."""
    pictures: int = Field(default=4, ge=0)
    """Number of best and of worst images drawn."""
    baseline: bool = False
    """Training also evaluates the model as it was before the first step."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint training evaluates at its end."""


class UniversalSettings(Settings):
    """A recipe of a universal system."""

    data: UniversalData = UniversalData()
    eval: UniversalEval = UniversalEval()
