"""What the recipe of a video system may say about data and evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from fssops.data.layouts import names_for
from fssops.engine.settings import Settings, Table

if TYPE_CHECKING:
    LayoutName = str
else:
    _NAMES = ("auto", *names_for("video"))
    LayoutName = Literal[_NAMES]


class VideoData(Table):
    """``[data]``: where videos come from, and how clips are drawn from them and augmented."""

    source: LayoutName = "generated_videos"
    """Layout, as ``python -m fssops.data --help`` lists them; ``auto`` tells it from the folder."""
    root: str = ""
    """Folder of the data set; not used by ``generated_videos``."""
    split: str = "train"
    """Part that training draws from."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the layout, e.g. ``{ annotations = "my.json", frames = "pictures" }``."""
    frames: int = Field(default=2, ge=1)
    """Frames of a training clip."""
    reach: int = Field(default=20, ge=1)
    """Greatest distance of a clip's frames from the one that is drawn first."""
    augment: Literal["none", "flip"] = "flip"
    """``flip``: mirror half of the clips; both resize where ``short_sides`` are given. All frames of a clip alike."""
    short_sides: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    """Sizes of the shorter side that training draws from."""
    longest: int = Field(default=1333, ge=1)
    """Limit for the longer side in training."""


class VideoEval(Table):
    """``[eval]``: what is scored, on which videos, at which size; all of it shows in the result lines."""

    root: str | None = None
    """Folder of the data set; unset: data.root."""
    split: str = "val"
    """Part that is evaluated."""
    validation_split: str | None = None
    """Split that the best checkpoint is chosen by in training; unset: ``split``, which the result then flatters."""
    options: dict[str, Any] | None = None
    """Further arguments of the layout; unset: data.options."""
    short_side: int = Field(default=0, ge=0)
    """Shorter side of test frames; 0 keeps their size."""
    longest: int = Field(default=1333, ge=1)
    """Limit for the longer side."""
    window: int | None = Field(default=None, ge=0)
    """Frames held at once, see the model's option of that name; 0 the whole video; unset: model.window."""
    videos: int = Field(default=0, ge=0)
    """Evaluate this many videos, evenly spread over the split; 0 all."""
    validation_videos: int = Field(default=0, ge=0)
    """The same for validation during training; 0 as ``videos``."""
    workers: int = Field(default=1, ge=0)
    """Processes that read frames ahead."""
    pictures: int = Field(default=3, ge=0)
    """Number of best and of worst videos drawn."""
    baseline: bool = False
    """Training also evaluates the model as it was before the first step."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint training evaluates at its end."""


class VideoSettings(Settings):
    """A recipe of a video system."""

    data: VideoData = VideoData()
    eval: VideoEval = VideoEval()
