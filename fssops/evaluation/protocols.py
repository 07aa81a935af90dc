"""Few-shot evaluation protocols: one visible table. A paper's row does what its published code does."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from fssops.evaluation.pixel_counts import Absent, FalsePositives


@dataclass(frozen=True)
class FewShotProtocol:
    """How episodes are drawn, compared and summed up.

    Attributes:
        name: key of :data:`PROTOCOLS`.
        source: where it is defined.
        runs: number of runs, each with its own episode list; scores are means over runs.
        episodes: episodes of a run.
        first_seed: run ``i`` draws its list with ``first_seed + i``.
        data: key of the data layer's protocol, which decides how episodes are drawn and supports labelled; where that
            table has a row ``<data>_<data set>``, it holds for that data set.
        size: compare at the "network" size, on resized labels, at the query's "original" size, or on a "square" of its
            longer side, to which the whole network output is stretched and the label pasted top left, as BAM and
            MSANet do.
        false_positives: see :func:`fssops.evaluation.pixel_counts.count_pixels`.
        binary: binary (foreground-background) IoU from "class_sums", the counts of all classes added up, or from
            "pixels", with any way taken as foreground.
        absent: a class that no query shows makes the mean "nan" or is left out ("skip"). MSANet's and MM-Former's code
            count it as 0; in lists of their length every class is shown.
        seeds: of the runs, for readers, where the data layer's protocol has a list of its own.
    """

    name: str
    source: str
    runs: int = 5
    episodes: int = 1000
    first_seed: int = 1234
    data: str = "fssops"
    size: Literal["network", "original", "square"] = "original"
    false_positives: FalsePositives = "all"
    binary: Literal["class_sums", "pixels"] = "pixels"
    absent: Absent = "skip"
    seeds: str = ""

    def describe(self) -> str:
        """Return the rules in one line, for tables and help texts."""
        false_positives = {"present": "false positives of absent ways not counted", "all": "all false positives"}
        binary = {"class_sums": "binary IoU from class sums", "pixels": "binary IoU of any way"}
        last = self.first_seed + self.runs - 1
        seeds = self.seeds or f"{self.first_seed}..{last}"
        return (
            f"{self.runs} runs x {self.episodes} episodes, seeds {seeds}, {self.size} size, "
            f"{false_positives[self.false_positives]}, {binary[self.binary]}"
        )


PROTOCOLS: dict[str, FewShotProtocol] = {
    row.name: row
    for row in (
        FewShotProtocol(name="fssops", source="this package: every pixel counts, at the size of the image"),
        FewShotProtocol(
            name="panet",
            source="kaixin96/PANet test.py and util/metric.py at 1695bf3",
            data="panet",
            size="network",
            false_positives="present",
            binary="class_sums",
            absent="nan",
        ),
        FewShotProtocol(
            name="msanet",
            source="AIVResearch/MSANet test.py at ecd5d08",
            data="msanet",
            size="square",
            seeds="510 365 382 322 988",
        ),
        FewShotProtocol(
            name="mm_former",
            source="Picsart-AI-Research/Mask-Matching-Transformer test.py at eb474f8",
            runs=1,
            data="mm_former",
            size="network",
            seeds="of the fold",
        ),
    )
}


def find_protocol(name: str) -> FewShotProtocol:
    """Return a row of :data:`PROTOCOLS`.

    Raises:
        ValueError: there is none; names the nearest.
    """
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}{hint}")
    return PROTOCOLS[name]
