"""Options of INSID3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from fssops.models.backbones.vit import VIT
from fssops.models.checks import check_options

PUBLISHED_COMPONENTS, PUBLISHED_WIDTH = 500, 1024
Cosine = Annotated[float, Field(ge=-1, le=1, description="in -1..1")]


@dataclass(frozen=True)
class INSID3Config:
    """Options of :class:`INSID3`; the defaults are the published ones.

    Attributes:
        backbone: a name of ``fssops.models.backbones.vit.VIT``.
        components: directions of the features that hold the position and are taken out; 0 none, None 500 of 1,024 as
            published, and in proportion at other widths.
        cluster_similarity: average cosine (the paper's tau) down to which clusters of the target merge.
        merge_threshold: score (alpha) above which a cluster belongs to the class.
        refinement: "none", or "crf": a dense conditional random field decides within a band about the mask's outline.
        behaviour: "sound" or "published", see the module's table.
    """

    backbone: str = "dinov3_vitl16"
    components: int | None = None
    cluster_similarity: Cosine = 0.6
    merge_threshold: Cosine = 0.2
    refinement: Literal["none", "crf"] = "none"
    behaviour: Literal["sound", "published"] = "sound"

    def __post_init__(self) -> None:
        check_options(self, backbone=tuple(VIT))
        width = VIT[self.backbone].width
        if self.components is not None and not 0 <= self.components < width:
            raise ValueError(
                f"INSID3Config: components must be 0 to {width - 1}, since {self.backbone} has {width} channels, got "
                f"{self.components}"
            )
