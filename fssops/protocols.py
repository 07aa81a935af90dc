"""The protocols of few-shot segmentation: one visible table. A paper's row does what its published code does.

A protocol says everything that changes a result: which folds, how episodes are drawn and masks are read, at which
geometry images enter the network, how many runs of how many episodes there are and with which seeds, and how
predictions are compared with the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fssops.spelling import did_you_mean

EmptySupport = Literal["keep", "skip", "error"]
FalsePositives = Literal["present", "all"]
Absent = Literal["nan", "skip"]


@dataclass(frozen=True)
class FewShotProtocol:
    """One set of choices.

    Attributes:
        name: key of :data:`PROTOCOLS`; what settings and reports call it.
        source: where it is defined.
        definition: which definition of COCO-20i.
        draw: how episodes are drawn: ``balanced`` (classes uniform, every episode independent of the others, no image
            twice in an episode), ``panet`` (the published generator: the ways that supply the queries are drawn once a
            list; with several ways an image may serve two of them), ``list`` (BAM and MSANet: queries run through the
            list of images, over and over; the class is drawn from those in the query), ``shuffled`` (MM-Former: the
            same over a shuffled list; always five supports are drawn, so that fewer shots see the same queries) or
            ``independent`` (INSID3: class, query and supports uniform; an image may be a support twice).
        min_area: pixels of the class, at original size, that an image must have to be listed for it.
        drop_novel: leave out training images that hold novel classes (else they are background there).
        ignore_in_support: what pixels labelled 255 are in support masks: ``background`` or ``neither``.
        empty_support: an episode with a support that shows no pixel of its class at the network's size is scored with
            that support empty ("keep", as in all published code), left out of the scores ("skip"), or an "error".
            Results count such supports whatever is done.
        other_ways: what an image of one way shows of the episode's other ways: their ``label``, or ``background`` (each
            image labelled for the class that it was drawn for, PANet on COCO).
        crowd: COCO's crowd regions: ``ignore``, ``object`` or ``background``.
        overlap: which object is on top in COCO: the ``smaller``, or the ``later`` annotation of the file.
        geometry: ``square`` (aspect not kept), ``square_by_corners`` (the same, labels resized by another rule) or
            ``letterbox`` (aspect kept, padded).
        seeds: of the runs, each with its own episode list; scores are means over runs.
        fold_seeds: where every fold has its own: benchmark -> seed of each fold's one run; ``seeds`` elsewhere.
        episodes: of each run.
        size: compare at the "network" size, on resized labels, at the query's "original" size, or on a "square" of its
            longer side, to which the whole network output is stretched and the label pasted top left, as BAM and
            MSANet do.
        false_positives: "all" counts them always; "present" only for labels that the query's truth shows, as PANet's
            published code does.
        binary: binary (foreground-background) IoU from "class_sums", the counts of all classes added up, or from
            "pixels", with any way taken as foreground.
        absent: a class that no query shows makes the mean "nan" or is left out ("skip"). MSANet's and MM-Former's code
            count it as 0; in lists of their length every class is shown.
    """

    name: str
    source: str
    definition: Literal["panet", "msanet"] = "panet"
    draw: Literal["balanced", "panet", "list", "shuffled", "independent"] = "balanced"
    min_area: int = 1
    drop_novel: bool = False
    ignore_in_support: Literal["background", "neither"] = "background"
    empty_support: EmptySupport = "keep"
    other_ways: Literal["label", "background"] = "label"
    crowd: Literal["ignore", "object", "background"] = "ignore"
    overlap: Literal["smaller", "later"] = "smaller"
    geometry: Literal["square", "square_by_corners", "letterbox"] = "square"
    seeds: tuple[int, ...] = (1234, 1235, 1236, 1237, 1238)
    fold_seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    episodes: int = 1000
    size: Literal["network", "original", "square"] = "original"
    false_positives: FalsePositives = "all"
    binary: Literal["class_sums", "pixels"] = "pixels"
    absent: Absent = "skip"

    @property
    def runs(self) -> int:
        """Number of runs."""
        return len(self.seeds)

    def seeds_of(self, folds: str, fold: int) -> tuple[int, ...]:
        """Seeds of the runs of a fold of a benchmark."""
        return (self.fold_seeds[folds][fold],) if folds in self.fold_seeds else self.seeds

    def source_options(self, format: str) -> dict[str, Any]:
        """Arguments of ``open_data`` that follow from it, for a layout."""
        return {"crowd": self.crowd, "overlap": self.overlap} if format == "coco" else {}

    def draw_options(self) -> dict[str, Any]:
        """Arguments of ``EpisodeList.draw`` that follow from it."""
        return {"draw": self.draw, "min_area": self.min_area}

    def dataset_options(self) -> dict[str, Any]:
        """Arguments of ``EpisodeDataset`` that follow from it (augmentation left out: it is for training only)."""
        return {
            "ignore_in_support": self.ignore_in_support,
            "empty_support": "error" if self.empty_support == "error" else "keep",
            "other_ways": self.other_ways,
            "geometry": self.geometry,
        }

    def describe(self) -> str:
        """Runs and comparison in one line, for tables and help texts."""
        false_positives = {"present": "false positives of absent ways not counted", "all": "all false positives"}
        binary = {"class_sums": "binary IoU from class sums", "pixels": "binary IoU of any way"}
        seeds = "of the fold" if self.fold_seeds else span(self.seeds)
        return (
            f"{self.runs} runs x {self.episodes} episodes, seeds {seeds}, {self.size} size, "
            f"{false_positives[self.false_positives]}, {binary[self.binary]}"
        )


_PANET = FewShotProtocol(
    "panet",
    "kaixin96/PANet test.py and util/metric.py at 1695bf3",
    draw="panet",
    size="network",
    false_positives="present",
    binary="class_sums",
    absent="nan",
)

PROTOCOLS: dict[str, FewShotProtocol] = {
    row.name: row
    for row in (
        # Sound choices where papers' quirks are accidents.
        FewShotProtocol(
            "fssops",
            "this package: every pixel counts, at the size of the image",
            drop_novel=True,
            ignore_in_support="neither",
        ),
        _PANET,
        # A binary map a category, crowds part of it, other ways of an episode not marked.
        replace(_PANET, name="panet_coco", source=f"{_PANET.source}, on COCO", other_ways="background", crowd="object"),
        FewShotProtocol(
            "msanet",
            "AIVResearch/MSANet test.py at ecd5d08",
            definition="msanet",
            draw="list",
            min_area=2048,
            drop_novel=True,
            ignore_in_support="neither",
            geometry="letterbox",
            seeds=(510, 365, 382, 322, 988),
            size="square",
        ),
        FewShotProtocol(
            "mm_former",
            "Picsart-AI-Research/Mask-Matching-Transformer test.py at eb474f8",
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
            size="network",
        ),
        # Pascal-5i is no part of their evaluation. On COCO their images are those of lists made elsewhere (Matcher's),
        # which leave out small objects and paint overlaps and crowds by rules that are not told; PFENet's 2,048 pixels
        # and MM-Former's painting stand for them, and lists in another order give other episodes of the same law.
        FewShotProtocol(
            "insid3",
            "visinf/INSID3 inference_segmentation.py at f1c9622",
            definition="msanet",
            draw="independent",
            min_area=2048,
            crowd="background",
            overlap="later",
            geometry="square_by_corners",
            seeds=(0,),
            size="network",
            binary="class_sums",
        ),
    )
}
"""Published and own protocols by name."""


def find_protocol(name: str) -> FewShotProtocol:
    """Return a row of :data:`PROTOCOLS`.

    Raises:
        ValueError: there is none; names the nearest.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}{did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def protocol_of(name: str, format: str) -> FewShotProtocol:
    """The protocol of a name as it draws from a layout: ``panet`` has a row of its own on ``coco``."""
    return PROTOCOLS.get(f"{name}_{format}", PROTOCOLS[name])


def span(seeds: Sequence[int]) -> str:
    """Seeds as ``first..last`` where they are consecutive, else one after another."""
    consecutive = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))) and len(seeds) > 1
    return f"{seeds[0]}..{seeds[-1]}" if consecutive else " ".join(map(str, seeds))
