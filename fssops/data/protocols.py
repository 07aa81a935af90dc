"""The choices of published few-shot protocols that change results, each with a name.

What an evaluation counts (mean IoU over which classes, binary IoU) is decided in ``fssops.evaluation``; here is what
concerns folds, episodes and masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Protocol:
    """One set of choices.

    Attributes:
        name: how settings and reports call it.
        definition: which definition of COCO-20i.
        draw: how episodes are drawn: ``balanced`` (classes uniform, every episode independent of the others, no image
            twice in an episode), ``panet`` (the published generator: the ways that supply the queries are drawn once a
            list; with several ways an image may serve two of them), ``list`` (BAM and MSANet: queries run through the
            list of images, over and over; the class is drawn from those in the query) or ``shuffled`` (MM-Former: the
            same over a shuffled list; always five supports are drawn, so that fewer shots see the same queries).
        min_area: pixels of the class, at original size, that an image must have to be listed for it.
        drop_novel: leave out training images that hold novel classes (else they are background there).
        ignore_in_support: what pixels labelled 255 are in support masks: ``background`` or ``neither``.
        other_ways: what an image of one way shows of the episode's other ways: their ``label``, or ``background`` (each
            image labelled for the class that it was drawn for, PANet on COCO).
        crowd: COCO's crowd regions: ``ignore``, ``object`` or ``background``.
        overlap: which object is on top in COCO: the ``smaller``, or the ``later`` annotation of the file.
        geometry: ``square`` (aspect not kept), ``square_by_corners`` (the same, labels resized by another rule) or
            ``letterbox`` (aspect kept, padded).
        seeds: seeds of the published runs.
        fold_seeds: where every fold has its own: benchmark -> seed of each fold's one run; ``seeds`` elsewhere.
    """

    name: str
    definition: Literal["panet", "msanet"] = "panet"
    draw: Literal["balanced", "panet", "list", "shuffled"] = "balanced"
    min_area: int = 1
    drop_novel: bool = False
    ignore_in_support: Literal["background", "neither"] = "background"
    other_ways: Literal["label", "background"] = "label"
    crowd: Literal["ignore", "object", "background"] = "ignore"
    overlap: Literal["smaller", "later"] = "smaller"
    geometry: Literal["square", "square_by_corners", "letterbox"] = "square"
    seeds: tuple[int, ...] = (1234, 1235, 1236, 1237, 1238)
    fold_seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def seeds_of(self, folds: str, fold: int) -> tuple[int, ...]:
        """Seeds of the runs of a fold of a benchmark."""
        return (self.fold_seeds[folds][fold],) if folds in self.fold_seeds else self.seeds

    def source_options(self, format: str) -> dict[str, Any]:
        """Arguments of ``open_source`` that follow from it, for a layout."""
        return {"crowd": self.crowd, "overlap": self.overlap} if format == "coco" else {}

    def draw_options(self) -> dict[str, Any]:
        """Arguments of ``EpisodeList.draw`` that follow from it."""
        return {"draw": self.draw, "min_area": self.min_area}

    def dataset_options(self) -> dict[str, Any]:
        """Arguments of ``EpisodeDataset`` that follow from it (augmentation left out: it is for training only)."""
        return {
            "ignore_in_support": self.ignore_in_support,
            "other_ways": self.other_ways,
            "geometry": self.geometry,
        }


PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        # Ours: sound choices where papers' quirks are accidents.
        Protocol("fssops", drop_novel=True, ignore_in_support="neither"),
        # PANet on PASCAL: panet.md sections 3 and 8.
        Protocol("panet", draw="panet"),
        # PANet on COCO: binary map a category, crowds part of it, other ways of an episode not marked.
        Protocol("panet_coco", draw="panet", other_ways="background", crowd="object"),
        # BAM and MSANet: msanet.md sections 5 and 7.
        Protocol(
            "msanet",
            definition="msanet",
            draw="list",
            min_area=2048,
            drop_novel=True,
            ignore_in_support="neither",
            geometry="letterbox",
            seeds=(510, 365, 382, 322, 988),
        ),
        # MM-Former: mmformer.md sections 8 and 9.
        Protocol(
            "mm_former",
            definition="msanet",
            draw="shuffled",
            min_area=2048,
            crowd="background",
            overlap="later",
            geometry="square_by_corners",
            seeds=(1234,),
            fold_seeds={
                "pascal5i": (4604572, 7743485, 5448843, 2534673),
                "coco20i": (8420323, 27163933, 8162312, 3391510),
            },
        ),
    )
}
"""Published and own protocols by name."""


def protocol_of(name: str, format: str) -> Protocol:
    """The protocol of a name for a layout: ``panet`` has one of its own on ``coco``."""
    return PROTOCOLS.get(f"{name}_{format}", PROTOCOLS[name])
