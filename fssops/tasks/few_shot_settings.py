"""What the recipe of a few-shot system may say about data and evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fssops.engine.settings import Settings, Table
from fssops.tasks.folded_settings import FoldedTable, Size


class FewShotData(FoldedTable):
    """``[data]``: where images come from, which classes are novel, and how training episodes are drawn."""

    ways: int = Field(default=1, ge=1)
    """Classes that a training episode asks for."""
    shots: int = Field(default=1, ge=1)
    """Labelled images of each way."""
    queries: int = Field(default=1, ge=1)
    """Images of an episode that are to be segmented."""
    size: Size = (417, 417)
    """Height and width of the network's input."""
    draw: Literal["balanced", "panet", "list", "shuffled", "independent"] = "balanced"
    """How episodes are drawn, see :class:`fssops.protocols.FewShotProtocol`."""
    seed: int | None = Field(default=None, ge=0)
    """Of the training episodes; unset: engine.seed."""
    episodes: int = Field(default=0, ge=0)
    """Length of the training list; 0: an episode for every item of every step. A shorter list is gone through again,
    augmented anew."""
    min_area: int = Field(default=1, ge=1)
    """Pixels that an image must show of a class, at its own size, to be drawn for it."""
    drop_novel: bool = True
    """Leave out training images that hold novel classes; otherwise they are background there."""
    ignore_in_support: Literal["background", "neither"] = "neither"
    """What pixels labelled 255 are in masks of supports."""
    other_ways: Literal["label", "background"] = "label"
    """Whether an image shows the episode's other ways by their label, or as background."""
    geometry: Literal["square", "square_by_corners", "letterbox"] = "square"
    """How images reach ``size`` where ``augment`` does not crop: aspect not kept (of ``square_by_corners`` labels are
    resized by another rule, MM-Former's and INSID3's), or kept and padded."""
    augment: Literal["none", "flip", "msanet_pascal", "msanet_coco", "mm_former"] = "flip"
    """Of training images, see :data:`fssops.data.augmentation.chains.CHAINS`."""
    least_query: int = Field(default=0, ge=0)
    """Augment a query again, up to 100 times, while it keeps fewer pixels of its class."""
    least_support: int = Field(default=0, ge=0)
    """The same for supports."""
    too_few: Literal["error", "skip"] = "error"
    """What to do about a class with too few images, in training and evaluation."""


class FewShotEval(Table):
    """``[eval]``: the protocol, and what may deviate from it; every deviation shows in the result lines."""

    protocol: str = "fssops"
    """One of :data:`fssops.protocols.PROTOCOLS`; a paper's does what its code does."""
    root: str | None = None
    """Folder of the data set; unset: data.root."""
    split: str | None = None
    """Part that episodes are drawn from; unset: data.split."""
    validation_split: str | None = None
    """Part that validation's episodes are drawn from, by which the best checkpoint is chosen; unset: ``split``."""
    runs: int = Field(default=0, ge=0)
    """0: the protocol's number."""
    episodes: int = Field(default=0, ge=0)
    """Of each run; 0: the protocol's number."""
    seed: int | None = Field(default=None, ge=0)
    """Of the first run; unset: the protocol's seeds."""
    ways: int = Field(default=0, ge=0)
    """0: as in training."""
    shots: int = Field(default=0, ge=0)
    """0: as in training."""
    queries: int = Field(default=1, ge=1)
    """Images to be segmented in each episode."""
    min_area: int | None = Field(default=None, ge=1)
    """Pixels that an image must show of a class to be drawn for it; unset: the protocol's."""
    empty_support: Literal["keep", "skip", "error"] | None = None
    """What is done with an episode of which a support shows no pixel of its class at ``data.size``; unset: the
    protocol's."""
    annotation: Literal["mask", "box", "component_boxes", "scribble"] = "mask"
    """How supports are marked: by the mask, by a box around the largest object or one around each connected part, or by
    a stroke made from the mask."""
    workers: int = Field(default=0, ge=0)
    """Processes that read images ahead."""
    cache_mb: int = Field(default=2048, ge=0)
    """Memory for features that are kept over episodes and runs; 0 encodes every image anew."""
    cache_disk_mb: int = Field(default=0, ge=0)
    """Disk for features beyond that."""
    pictures: int = Field(default=4, ge=0)
    """Number of best and of worst episodes drawn."""
    baseline: bool = False
    """Training also evaluates the model as it was before the first step, on the same episodes."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint training evaluates at its end."""
    validation_episodes: int = Field(default=0, ge=0)
    """Episodes of training classes that validation scores; novel classes never take part in it."""


class FewShotSettings(Settings):
    """A recipe of a few-shot system."""

    data: FewShotData = FewShotData()
    eval: FewShotEval = FewShotEval()
